//! Files of variables, as `fileKeyRef` reads them: `NAME='value'` a line. Values stand in single quotes, mean what they
//! are, and may span lines. Source: KEP-3721, `ParseEnv` in `pkg/kubelet/util/env`.

use std::collections::HashMap;

const BLANK: [char; 2] = [' ', '\t'];

/// What a file says, as far as it can be read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct EnvFile {
    /// The first that is said of each name; `None`: no value.
    values: HashMap<String, Option<String>>,
    /// What is wrong where reading ended.
    broken: Option<String>,
}

impl EnvFile {
    /// Reads a file.
    pub(crate) fn parse(text: &str) -> Self {
        let mut file = Self::default();
        file.broken = file.read(text).err();
        file
    }

    /// The value of a variable; `None` for one that the file does not have, or has without a value. What is wrong behind it
    /// is not its fault.
    pub(crate) fn value(&self, key: &str) -> Result<Option<String>, String> {
        match (self.values.get(key), &self.broken) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    fn say(&mut self, name: &str, value: Option<String>) {
        self.values.entry(name.to_owned()).or_insert(value);
    }

    fn read(&mut self, text: &str) -> Result<(), String> {
        let invalid = |line: usize, what: &str| {
            Err(format!("invalid environment variable format at line {}: {what}", line + 1))
        };
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let line = line.trim_start_matches(BLANK);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, rest)) = line.split_once('=') else { return invalid(number, "missing '='") };
            if name.trim_end_matches(BLANK).is_empty() {
                return invalid(number, "empty variable name");
            }
            if name.ends_with(BLANK) {
                return invalid(number, "whitespace before '=' is not allowed");
            }
            if rest.starts_with(BLANK) {
                // As shells have it: nothing is assigned.
                self.say(name, None);
                continue;
            }
            let Some(mut rest) = rest.strip_prefix('\'') else {
                return invalid(number, "value must be enclosed in single quotes");
            };
            let mut value = String::new();
            let (last, after) = loop {
                if let Some((end, after)) = rest.split_once('\'') {
                    value.push_str(end);
                    break (number, after);
                }
                value.push_str(rest);
                value.push('\n');
                match lines.next() {
                    Some((_, next)) => rest = next,
                    None => return invalid(number, "unclosed single quote"),
                }
            };
            let after = after.trim_start_matches(BLANK);
            if !after.is_empty() && !after.starts_with('#') {
                return invalid(last, "unexpected content after closing quote");
            }
            self.say(name, Some(value).filter(|value| !value.is_empty()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_upstream_reads_them() {
        let some = |value: &str| Ok(Some(value.to_owned()));
        for (text, wanted) in [
            ("K='v'", some("v")),
            ("# c\n\n  \t K='v' # why\nK='w'", some("v")),
            ("A='1'\nK='$A \\n \"x\" #'\n", some("$A \\n \"x\" #")),
            ("K='a\n b\n\n# c'\nA='1'", some("a\n b\n\n# c")),
            ("A='K=1\nK=2'\nK='3'", some("3")),
            ("K=''", Ok(None)),
            ("K= 'v'", Ok(None)),
            ("A= 'v'\nK='w'", some("w")),
            ("A='1'", Ok(None)),
            ("", Ok(None)),
            ("=K", Err("1: empty variable name")),
            ("A='1'\nK", Err("2: missing '='")),
            ("K ='v'", Err("1: whitespace before '=' is not allowed")),
            ("K=v", Err("1: value must be enclosed in single quotes")),
            ("A=\"1\"\nK='v'", Err("1: value must be enclosed in single quotes")),
            ("K='v'w", Err("1: unexpected content after closing quote")),
            ("A='1'\nK='v\nw", Err("2: unclosed single quote")),
        ] {
            let wanted =
                wanted.map_err(|what: &str| format!("invalid environment variable format at line {what}"));
            assert_eq!(EnvFile::parse(text).value("K"), wanted, "{text}");
        }
    }
}
