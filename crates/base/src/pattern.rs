//! Wildcards of COPY and `.dockerignore`. Source: Go's `filepath.Match`, with `**` for any number of directories.

/// Whether a path matches a pattern: `*` and `?` stay within one component, `[a-z]` and `[^a]` are classes, `**` as a
/// whole component spans any number of them. Both are relative and use `/`.
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    // Dynamic programming over components: which prefixes of the path the pattern so far can stand for.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == "**" {
            let mut open = false;
            for at in 0..=path.len() {
                open |= reach[at];
                next[at] = open;
            }
        } else {
            for at in 0..path.len() {
                next[at + 1] = reach[at] && component(part, path[at]);
            }
        }
        reach = next;
    }
    reach[path.len()]
}

/// Whether a source names files by pattern.
pub fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// A path's text without `.`, `..` and doubled slashes, relative to a root that `..` does not leave.
pub fn clean(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// One token of a component's pattern.
enum Token {
    One(char),
    Any,
    Star,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

fn component(pattern: &str, name: &str) -> bool {
    let tokens = tokens(pattern);
    let name: Vec<char> = name.chars().collect();
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    for token in &tokens {
        let mut next = vec![false; name.len() + 1];
        if let Token::Star = token {
            let mut open = false;
            for at in 0..=name.len() {
                open |= reach[at];
                next[at] = open;
            }
        } else {
            for at in 0..name.len() {
                next[at + 1] = reach[at] && takes(token, name[at]);
            }
        }
        reach = next;
    }
    reach[name.len()]
}

fn takes(token: &Token, c: char) -> bool {
    match token {
        Token::One(wanted) => *wanted == c,
        Token::Any | Token::Star => true,
        Token::Class { negated, ranges } => {
            ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
        }
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::One(chars.next().unwrap_or('\\')),
            '[' => {
                let negated = chars.next_if(|c| matches!(c, '^' | '!')).is_some();
                let mut ranges = Vec::new();
                while let Some(mut low) = chars.next().filter(|c| *c != ']' || ranges.is_empty()) {
                    if low == '\\' {
                        low = chars.next().unwrap_or('\\');
                    }
                    let mut high = low;
                    if chars.next_if_eq(&'-').is_some() {
                        high = chars.next().unwrap_or(low);
                    }
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            c => Token::One(c),
        });
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, path, expected) in [
            ("*.jar", "a.jar", true),
            ("*.jar", "d/a.jar", false),
            ("target/*.jar", "target/a.jar", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("**", "a/b", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
