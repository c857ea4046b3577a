//! Bounds on an expression before it is parsed: parser and walk recurse as deep as it is nested.

/// The longest expression.
const BYTES_MAX: usize = 16 * 1024;
/// How deep brackets may nest.
const NESTING_MAX: usize = 14;
/// How deep the tree may become: brackets, and operators and selections that lean on each other.
const DEPTH_MAX: usize = 60;

/// Refuses what would make too deep a tree.
pub(super) fn check(source: &str) -> Result<(), String> {
    let refused = |what: &str| Err(format!("ERROR: <input>:1:1: expression {what}"));
    if source.trim().is_empty() {
        return Err("ERROR: <input>:1:1: Syntax error: mismatched input '<EOF>'".to_owned());
    }
    if source.len() > BYTES_MAX {
        return refused(&format!("code point size exceeds limit: size: {}, limit {BYTES_MAX}", source.len()));
    }
    // Links of each open bracket, innermost last.
    let mut links = vec![0_usize];
    let mut letters = source.chars().peekable();
    let mut before = ' ';
    while let Some(letter) = letters.next() {
        match letter {
            '"' | '\'' => {
                let raw = matches!(before, 'r' | 'R');
                skip_text(letter, raw, &mut letters);
            }
            '/' if letters.peek() == Some(&'/') => {
                while letters.next().is_some_and(|letter| letter != '\n') {}
            }
            '(' | '[' | '{' => {
                add(&mut links, 1);
                links.push(0);
            }
            ')' | ']' | '}' if links.len() > 1 => {
                links.pop();
            }
            // Conjunctions are flat, and commas begin anew.
            '&' | '|' | ',' => set(&mut links, 0),
            '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' | '.' | '?' => add(&mut links, 1),
            'i' if letters.peek() == Some(&'n') => add(&mut links, 1),
            _ => {}
        }
        before = letter;
        if links.len() > NESTING_MAX {
            return refused(&format!("recursion limit exceeded: {NESTING_MAX}"));
        }
        if links.iter().sum::<usize>() > DEPTH_MAX {
            return refused(&format!(
                "nests or chains more than {DEPTH_MAX} operations; split it into several"
            ));
        }
    }
    Ok(())
}

fn add(links: &mut [usize], count: usize) {
    if let Some(last) = links.last_mut() {
        *last += count;
    }
}

fn set(links: &mut [usize], count: usize) {
    if let Some(last) = links.last_mut() {
        *last = count;
    }
}

/// Skips a literal; three quotes open one that spans lines.
fn skip_text(quote: char, raw: bool, letters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let mut long = false;
    if letters.peek() == Some(&quote) {
        letters.next();
        if letters.peek() != Some(&quote) {
            return;
        }
        letters.next();
        long = true;
    }
    let mut run = 0;
    while let Some(letter) = letters.next() {
        if letter == '\\' && !raw {
            letters.next();
            run = 0;
        } else if letter == quote {
            run += 1;
            if !long || run == 3 {
                return;
            }
        } else {
            run = 0;
        }
    }
}
