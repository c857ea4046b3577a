//! Variables and quotes in instructions. Source: Dockerfile reference, "Environment replacement".

use std::iter::Peekable;
use std::str::Chars;

/// How deep substitutions may stand in each other: `${a:-${b:-…}}` recurses, and its text comes from outside.
const DEPTH_MAX: usize = 64;
/// The longest text that comes out, in bytes: `ENV A=$A$A` doubles it with each line.
const LENGTH_MAX: usize = 4 << 20;

/// Takes quotes and escapes off a word and replaces `$name`, `${name}`, `${name:-default}`, `${name:+other}` (and both
/// without the colon, which then ask whether the variable is set at all).
pub(crate) fn expand(
    word: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut expander = Expander { chars: word.chars().peekable(), escape, lookup, depth: 0 };
    expander.until(None)
}

/// Splits at spaces that are neither quoted nor escaped; quotes stay for [`expand`].
pub(crate) fn split_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

struct Expander<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    /// How many substitutions are open.
    depth: usize,
}

impl Expander<'_> {
    /// Up to and without `end`, which is consumed; `None` means the end of the word.
    fn until(&mut self, end: Option<char>) -> Result<String, String> {
        let mut out = String::new();
        while let Some(c) = self.chars.next() {
            if Some(c) == end {
                return Ok(out);
            }
            check_length(&out)?;
            match c {
                '\'' => self.single_quoted(&mut out)?,
                '"' => self.double_quoted(&mut out)?,
                '$' => out.push_str(&self.variable()?),
                c if c == self.escape => out.extend(self.chars.next()),
                c => out.push(c),
            }
        }
        match end {
            None => Ok(out),
            Some(end) => Err(format!("missing '{end}'")),
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), String> {
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(());
            }
            out.push(c);
        }
        Err("unexpected end of text while looking for a matching single quote".to_owned())
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), String> {
        while let Some(c) = self.chars.next() {
            check_length(out)?;
            match c {
                '"' => return Ok(()),
                '$' => out.push_str(&self.variable()?),
                c if c == self.escape => match self.chars.peek() {
                    Some(next) if matches!(next, '"' | '$') || *next == self.escape => {
                        out.extend(self.chars.next())
                    }
                    _ => out.push(c),
                },
                c => out.push(c),
            }
        }
        Err("unexpected end of text while looking for a matching double quote".to_owned())
    }

    /// The word of a substitution, up to its closing brace.
    fn substitute(&mut self) -> Result<String, String> {
        if self.depth == DEPTH_MAX {
            return Err("substitutions are nested too deeply".to_owned());
        }
        self.depth += 1;
        let word = self.until(Some('}'))?;
        self.depth -= 1;
        Ok(word)
    }

    fn variable(&mut self) -> Result<String, String> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(if name.is_empty() {
                "$".to_owned()
            } else {
                (self.lookup)(&name).unwrap_or_default()
            });
        }
        let name = self.name();
        if name.is_empty() {
            return Err("bad substitution: a variable needs a name".to_owned());
        }
        let value = (self.lookup)(&name);
        let colon = self.chars.next_if_eq(&':').is_some();
        let present = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        match self.chars.next() {
            Some('}') if !colon => Ok(value.unwrap_or_default()),
            Some('-') => {
                let default = self.substitute()?;
                Ok(if present { value.unwrap_or_default() } else { default })
            }
            Some('+') => {
                let other = self.substitute()?;
                Ok(if present { other } else { String::new() })
            }
            Some('?') => {
                let message = self.substitute()?;
                match value.filter(|_| present) {
                    Some(value) => Ok(value),
                    None if message.is_empty() => Err(format!("{name}: is not allowed to be unset")),
                    None => Err(format!("{name}: {message}")),
                }
            }
            Some(other) => Err(format!("unsupported modifier '{other}' in substitution of {name}")),
            None => Err(format!("missing '}}' after {name}")),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }
}

fn check_length(out: &str) -> Result<(), String> {
    match out.len() > LENGTH_MAX {
        true => Err(format!("a value is longer than {LENGTH_MAX} bytes after its variables are replaced")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(word: &str) -> Result<String, String> {
        expand(word, '\\', &|name| match name {
            "A" => Some("one".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced() {
        for (word, expected) in [
            ("$A", "one"),
            ("${A}x", "onex"),
            ("$Ax", ""),
            ("/a/$A/b", "/a/one/b"),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A\"", "one"),
            ("\"a b\"", "a b"),
            ("\"\\\"\"", "\""),
            ("\"\\x\"", "\\x"),
            ("a\\ b", "a b"),
            ("${B:-d}", "d"),
            ("${B-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${A:-d}", "one"),
            ("${A:+x}", "x"),
            ("${B:+x}", ""),
            ("${EMPTY:+x}", ""),
            ("${EMPTY+x}", "x"),
            ("${B:-${A}y}", "oney"),
            ("$", "$"),
            ("a$", "a$"),
            ("100%", "100%"),
        ] {
            assert_eq!(with(word).unwrap(), expected, "{word}");
        }
    }

    #[test]
    fn broken_words_are_errors() {
        for word in ["${A", "${", "${}", "'a", "\"a", "${A:x}", "${B:?}", "${B?gone}", "${A%x}"] {
            assert!(with(word).is_err(), "{word}");
        }
    }

    #[test]
    fn substitutions_nest_to_a_bound() {
        let nested = |depth: usize| format!("{}x{}", "${B:-".repeat(depth), "}".repeat(depth));
        assert_eq!(with(&nested(DEPTH_MAX)).unwrap(), "x");
        for depth in [DEPTH_MAX + 1, 1_000_000] {
            assert_eq!(with(&nested(depth)).unwrap_err(), "substitutions are nested too deeply");
        }
        let quoted = "\"${B:-".repeat(100_000);
        assert_eq!(with(&quoted).unwrap_err(), "substitutions are nested too deeply");
        let beside = "${B:-x}".repeat(1_000);
        assert_eq!(with(&beside).unwrap().len(), 1_000, "only what is open counts");
    }

    #[test]
    fn what_comes_out_has_a_bound() {
        let long = |_: &str| Some("x".repeat(1 << 20));
        assert_eq!(expand("$A$A$A", '\\', &long).unwrap().len(), 3 << 20);
        for word in ["$A".repeat(1_000_000), format!("\"{}\"", "$A".repeat(1_000_000))] {
            assert!(expand(&word, '\\', &long).unwrap_err().contains("longer than"));
        }
    }

    #[test]
    fn words_are_split_outside_quotes() {
        assert_eq!(split_words(r#"a="b c" d='e f' g\ h  i"#, '\\'), [r#"a="b c""#, "d='e f'", "g\\ h", "i"]);
        assert!(split_words("   ", '\\').is_empty());
    }
}
