//! Regular expressions as upstream reads them, in Go's dialect (RE2), for an engine whose dialect is another: each is read
//! as Go reads it, with Go's failures, and written anew so that the engine cannot take it for anything else.
//! Source: `regexp/syntax` of Go, with its Perl flags.

use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// How often a part may be repeated by numbers, also by several around each other. Source: `maxRepeat`.
const REPEAT_MAX: u32 = 1000;
/// What Go's classes are: none of them goes beyond ASCII.
const CLASSES: [(char, &str); 6] = [
    ('d', "[0-9]"),
    ('D', "[^0-9]"),
    ('s', r"[\t\n\x0C\r\x20]"),
    ('S', r"[^\t\n\x0C\r\x20]"),
    ('w', "[0-9A-Za-z_]"),
    ('W', "[^0-9A-Za-z_]"),
];
const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

const BAD_CLASS: &str = "invalid character class range";
const BAD_ESCAPE: &str = "invalid escape sequence";
const BAD_REPEAT: &str = "invalid repeat count";

/// Why there is no program for a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It is larger than it may be.
    TooLarge,
    /// It is no pattern, in Go's words.
    Wrong(String),
}

/// The program of a pattern, of so many bytes at most.
pub(crate) fn compile(source: &str, bytes: usize) -> Result<Regex, Failed> {
    let translated = translated(source).map_err(Failed::Wrong)?;
    let built = RegexBuilder::new(&translated).size_limit(bytes).dfa_size_limit(2 * bytes).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => Failed::TooLarge,
        error => Failed::Wrong(format!("error parsing regexp: {error}")),
    })
}

/// A pattern in the engine's dialect; the failure is Go's.
fn translated(source: &str) -> Result<String, String> {
    let mut reader =
        Reader { whole: source, rest: source, out: String::new(), levels: vec![Level::default()] };
    match reader.read() {
        Ok(()) => Ok(reader.out),
        Err((problem, part)) => Err(format!("error parsing regexp: {problem}: `{part}`")),
    }
}

/// Go's words, and the part that they are about.
type Wrong<'s> = (&'static str, &'s str);
type Read<'s, T> = Result<T, Wrong<'s>>;

/// What was read of a group.
#[derive(Default)]
struct Level {
    /// Whether there is something that can be repeated.
    some: bool,
    /// How often numbers repeat what is in the last part.
    last: u32,
    /// The same of all parts.
    most: u32,
}

impl Level {
    fn add(&mut self, times: u32) {
        self.some = true;
        self.last = times;
        self.most = self.most.max(times);
    }
}

struct Reader<'s> {
    whole: &'s str,
    rest: &'s str,
    out: String,
    levels: Vec<Level>,
}

impl<'s> Reader<'s> {
    fn read(&mut self) -> Read<'s, ()> {
        // The repetition that was just read, and what followed it.
        let mut repeated: Option<&'s str> = None;
        while let Some(letter) = self.rest.chars().next() {
            let before = std::mem::take(&mut repeated);
            match letter {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.skip(1);
                    self.out.push('|');
                    self.level().some = false;
                }
                '^' | '$' | '.' => {
                    self.skip(1);
                    self.out.push(letter);
                    self.level().add(1);
                }
                '[' => self.class()?,
                '\\' => self.escaped()?,
                '*' | '+' | '?' => {
                    repeated = Some(before.unwrap_or(self.rest));
                    self.repeat(before, 1, None)?;
                }
                '{' => match counts(self.rest) {
                    None => self.take_literal(),
                    Some((least, most, length)) => {
                        let part = &self.rest[..length];
                        let (Some(least), Some(most)) = (least, most) else { return Err((BAD_REPEAT, part)) };
                        if least > REPEAT_MAX || most.is_some_and(|most| most > REPEAT_MAX || most < least) {
                            return Err((BAD_REPEAT, part));
                        }
                        repeated = Some(before.unwrap_or(self.rest));
                        self.repeat(before, length, Some((least, most)))?;
                    }
                },
                _ => self.take_literal(),
            }
        }
        if self.levels.len() > 1 { Err(("missing closing )", self.whole)) } else { Ok(()) }
    }

    fn level(&mut self) -> &mut Level {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    fn skip(&mut self, length: usize) {
        self.rest = &self.rest[length..];
    }

    /// The next letter is itself.
    fn take_literal(&mut self) {
        let mut letters = self.rest.chars();
        if let Some(letter) = letters.next() {
            self.rest = letters.as_str();
            self.literal(u32::from(letter));
            self.level().add(1);
        }
    }

    fn literal(&mut self, letter: u32) {
        match char::from_u32(letter) {
            Some(letter) if letter.is_ascii_alphanumeric() || !letter.is_ascii() => self.out.push(letter),
            _ => self.out.push_str(&format!("\\x{{{letter:X}}}")),
        }
    }

    /// What is read from here to where `rest` begins.
    fn part(from: &'s str, rest: &str) -> &'s str {
        &from[..from.len() - rest.len()]
    }

    /// A repetition; `before`: the one that stands directly before it.
    fn repeat(
        &mut self,
        before: Option<&'s str>,
        length: usize,
        counts: Option<(u32, Option<u32>)>,
    ) -> Read<'s, ()> {
        let from = self.rest;
        self.skip(length);
        if let Some(rest) = self.rest.strip_prefix('?') {
            self.rest = rest;
        }
        let part = Self::part(from, self.rest);
        if let Some(before) = before {
            return Err(("invalid nested repetition operator", Self::part(before, self.rest)));
        }
        let level = self.level();
        if !level.some {
            return Err(("missing argument to repetition operator", part));
        }
        if let Some((least, most)) = counts {
            level.last = match most {
                Some(0) => 1,
                most => level.last.saturating_mul(most.unwrap_or(least).max(1)),
            };
            if level.last > REPEAT_MAX {
                return Err((BAD_REPEAT, part));
            }
            level.most = level.most.max(level.last);
        }
        self.out.push_str(part);
        Ok(())
    }

    /// A group, or flags for the rest of this one.
    fn open(&mut self) -> Read<'s, ()> {
        let from = self.rest;
        self.skip(1);
        let Some(special) = self.rest.strip_prefix('?') else {
            self.out.push('(');
            self.levels.push(Level::default());
            return Ok(());
        };
        if let Some(named) = special.strip_prefix("P<").or_else(|| special.strip_prefix('<')) {
            let problem = "invalid named capture";
            let Some((name, rest)) = named.split_once('>') else { return Err((problem, from)) };
            if name.is_empty() || !name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()) {
                return Err((problem, Self::part(from, rest)));
            }
            // Nobody asks for names.
            self.rest = rest;
            self.out.push('(');
            self.levels.push(Level::default());
            return Ok(());
        }
        self.rest = special;
        self.flags(from)
    }

    fn flags(&mut self, from: &'s str) -> Read<'s, ()> {
        let (mut on, mut off, mut negative) = (String::new(), String::new(), false);
        let mut letters = self.rest.chars();
        while let Some(letter) = letters.next() {
            match letter {
                'i' | 'm' | 's' | 'U' => {
                    let flags = if negative { &mut off } else { &mut on };
                    if !flags.contains(letter) {
                        flags.push(letter);
                    }
                }
                '-' if !negative => negative = true,
                ':' | ')' if !negative || !off.is_empty() => {
                    self.rest = letters.as_str();
                    on.retain(|flag| !off.contains(flag));
                    let minus = if negative { "-" } else { "" };
                    if letter == ':' {
                        self.levels.push(Level::default());
                    }
                    if letter == ':' || !on.is_empty() || negative {
                        self.out.push_str(&format!("(?{on}{minus}{off}{letter}"));
                    }
                    return Ok(());
                }
                _ => break,
            }
        }
        Err(("invalid or unsupported Perl syntax", Self::part(from, letters.as_str())))
    }

    fn close(&mut self) -> Read<'s, ()> {
        if self.levels.len() < 2 {
            return Err(("unexpected )", self.whole));
        }
        let inside = self.levels.pop().unwrap_or_default();
        self.level().add(inside.most.max(1));
        self.skip(1);
        self.out.push(')');
        Ok(())
    }

    /// Something behind a backslash, outside of brackets.
    fn escaped(&mut self) -> Read<'s, ()> {
        let mut letters = self.rest.chars();
        letters.next();
        let assertion = match letters.next() {
            Some('A') => r"\A",
            Some('b') => r"(?-u:\b)",
            Some('B') => r"(?-u:\B)",
            Some('z') => r"\z",
            Some('C') => return Err((BAD_ESCAPE, Self::part(self.rest, letters.as_str()))),
            Some('Q') => {
                let (quoted, rest) = letters.as_str().split_once(r"\E").unwrap_or((letters.as_str(), ""));
                self.rest = rest;
                for letter in quoted.chars() {
                    self.literal(u32::from(letter));
                    self.level().add(1);
                }
                return Ok(());
            }
            _ => {
                if !self.named_class()? {
                    let letter = self.escape()?;
                    self.literal(letter);
                }
                self.level().add(1);
                return Ok(());
            }
        };
        self.out.push_str(assertion);
        self.rest = letters.as_str();
        self.level().add(1);
        Ok(())
    }

    /// `\d` and its like, and `\pN` and its like, if one begins here.
    fn named_class(&mut self) -> Read<'s, bool> {
        let from = self.rest;
        let mut letters = from.chars();
        let (Some('\\'), Some(letter)) = (letters.next(), letters.next()) else { return Ok(false) };
        if let Some((_, class)) = CLASSES.iter().find(|(known, _)| *known == letter) {
            self.out.push_str(class);
            self.rest = letters.as_str();
            return Ok(true);
        }
        if !matches!(letter, 'p' | 'P') {
            return Ok(false);
        }
        let after = letters.as_str();
        let (name, rest) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').ok_or((BAD_CLASS, from))?,
            None => after.split_at(after.chars().next().map_or(0, char::len_utf8)),
        };
        let (plain, negated) = name.strip_prefix('^').map_or((name, false), |plain| (plain, true));
        // What else a name may have for the engine is no name for Go.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b' ');
        if plain.is_empty() || !plain.bytes().all(is_name) {
            return Err((BAD_CLASS, Self::part(from, rest)));
        }
        let letter = if (letter == 'P') == negated { 'p' } else { 'P' };
        self.out.push_str(&format!("\\{letter}{{{plain}}}"));
        self.rest = rest;
        Ok(true)
    }

    /// A letter that stands behind a backslash.
    fn escape(&mut self) -> Read<'s, u32> {
        let from = self.rest;
        let mut letters = from.chars();
        letters.next();
        let Some(letter) = letters.next() else {
            return Err(("trailing backslash at end of expression", ""));
        };
        let found = match letter {
            '0'..='7' => octal(letter, &mut letters),
            'x' => hexadecimal(&mut letters),
            'a' => Some(7),
            'f' => Some(12),
            'n' => Some(10),
            'r' => Some(13),
            't' => Some(9),
            'v' => Some(11),
            _ => Some(u32::from(letter)).filter(|_| letter.is_ascii() && !letter.is_ascii_alphanumeric()),
        };
        self.rest = letters.as_str();
        found.ok_or((BAD_ESCAPE, Self::part(from, self.rest)))
    }

    /// What stands between brackets.
    fn class(&mut self) -> Read<'s, ()> {
        let from = self.rest;
        self.skip(1);
        self.out.push('[');
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.rest = rest;
            self.out.push('^');
        }
        let mut first = true;
        while first || !self.rest.starts_with(']') {
            first = false;
            if self.posix_class()? || self.named_class()? {
                continue;
            }
            let range = self.rest;
            let low = self.class_letter(from)?;
            self.literal(low);
            if let Some(high) =
                self.rest.strip_prefix('-').filter(|high| !high.is_empty() && !high.starts_with(']'))
            {
                self.rest = high;
                let high = self.class_letter(from)?;
                if high < low {
                    return Err((BAD_CLASS, Self::part(range, self.rest)));
                }
                self.out.push('-');
                self.literal(high);
            }
        }
        self.skip(1);
        self.out.push(']');
        self.level().add(1);
        Ok(())
    }

    fn class_letter(&mut self, class: &'s str) -> Read<'s, u32> {
        if self.rest.starts_with('\\') {
            return self.escape();
        }
        let mut letters = self.rest.chars();
        let letter = letters.next().ok_or(("missing closing ]", class))?;
        self.rest = letters.as_str();
        Ok(u32::from(letter))
    }

    /// `[:alpha:]` and its like, if one begins here.
    fn posix_class(&mut self) -> Read<'s, bool> {
        let Some((name, rest)) = self.rest.strip_prefix("[:").and_then(|named| named.split_once(":]")) else {
            return Ok(false);
        };
        let class = Self::part(self.rest, rest);
        if !POSIX_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err((BAD_CLASS, class));
        }
        self.out.push_str(class);
        self.rest = rest;
        Ok(true)
    }
}

/// `{2}`, `{2,}` or `{2,3}` at the beginning of a text: the numbers and its length. Numbers are `None` that are too large.
type Counts = (Option<u32>, Option<Option<u32>>, usize);

fn counts(text: &str) -> Option<Counts> {
    let (inside, _) = text.strip_prefix('{')?.split_once('}')?;
    let length = inside.len() + 2;
    let is_number = |digits: &str| {
        !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'))
    };
    let (least, most) = inside.split_once(',').map_or((inside, None), |(least, most)| (least, Some(most)));
    if !is_number(least) || most.is_some_and(|most| !most.is_empty() && !is_number(most)) {
        return None;
    }
    let number = |digits: &str| digits.parse::<u32>().ok();
    let least = number(least);
    let most = match most {
        None => least.map(Some),
        Some("") => Some(None),
        Some(most) => number(most).map(Some),
    };
    Some((least, most, length))
}

/// Up to three digits; one alone, apart from 0, would be a reference to a group.
fn octal(first: char, letters: &mut Chars<'_>) -> Option<u32> {
    let mut value = first.to_digit(8)?;
    for place in 1..3 {
        let Some(digit) = letters.clone().next().and_then(|letter| letter.to_digit(8)) else {
            return (place > 1 || value == 0).then_some(value);
        };
        letters.next();
        value = value * 8 + digit;
    }
    Some(value)
}

/// Two digits, or some in braces.
fn hexadecimal(letters: &mut Chars<'_>) -> Option<u32> {
    let first = letters.next()?;
    if first != '{' {
        let second = letters.next()?;
        return Some(first.to_digit(16)? * 16 + second.to_digit(16)?);
    }
    let (mut value, mut digits) = (0, 0);
    loop {
        match letters.next()? {
            '}' => return (digits > 0).then_some(value),
            letter => value = value * 16 + letter.to_digit(16)?,
        }
        digits += 1;
        if value > u32::from(char::MAX) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern, 1 << 20).unwrap_or_else(|error| panic!("{pattern}: {error:?}")).is_match(text)
    }

    #[test]
    fn patterns_mean_what_they_mean_to_go() {
        for (pattern, text, wanted) in [
            (r"^\d$", "٣", false),
            (r"^\d$", "3", true),
            (r"^\D$", "٣", true),
            (r"^\w+$", "é", false),
            (r"^\W$", "é", true),
            (r"^\s$", "\u{a0}", false),
            (r"^\s$", "\u{b}", false),
            (r"^[\s]$", "\u{c}", true),
            (r"^[^\w]$", "é", true),
            (r"^[\Wa]$", "é", true),
            (r"a\b", "aé", true),
            (r"a\B", "aé", false),
            (r"a\B", "ab", true),
            (r"^[[:alpha:]]$", "é", false),
            (r"^[[:^alpha:]_]$", "é", true),
            (r"^[[:word:]]+$", "a_1", true),
            (r"(?i)^\w$", "ſ", true),
            (r"(?i)^[^s]$", "ſ", false),
            (r"(?i)^\W$", "ſ", false),
            ("^{{.*}}$", "{{x}}", true),
            ("^{{.*}}$", "x", false),
            ("^{a}$", "{a}", true),
            ("^a{,2}$", "a{,2}", true),
            ("^a{1, 2}$", "a{1, 2}", true),
            ("^a{02}$", "a{02}", true),
            ("^a{2}$", "aa", true),
            ("^a{1,}?$", "aaa", true),
            ("^a{", "a{", true),
            ("^[a&&b]+$", "a&b", true),
            ("^[+--b~~c]+$", ",-b~c", true),
            ("^[a[]+$", "a[", true),
            ("^[[a]+$", "[a", true),
            ("^[]a]+$", "a]", true),
            ("^[^]a]+$", "a]", false),
            ("^[a-]+$", "a-", true),
            ("^[a\\-z]+$", "b", false),
            ("^[[:alpha]+$", "[:alph", true),
            ("[^a]", "\n", true),
            (".", "\n", false),
            ("(?s).", "\n", true),
            ("(?m)^b$", "a\nb\nc", true),
            ("^b$", "a\nb\nc", false),
            ("a$", "a\n", false),
            (r"^\Qa.b*\E+$", "a.b**", true),
            (r"^\Qa.b", "a.bc", true),
            (r"^\Q\E$", "", true),
            (r"\Aa\z", "a", true),
            (r"\Aa\z", "a\n", false),
            (r"^\012\x41\x{1F600}\07$", "\nA\u{1f600}\u{7}", true),
            (r"^\_\-\/\ $", "_-/ ", true),
            (r"^\a\f\n\r\t\v$", "\u{7}\u{c}\n\r\t\u{b}", true),
            (r"^\pL\p{Greek}\P{Lu}\p{^Lu}$", "aαaa", true),
            (r"^[\p{Lu}\d]+$", "A1", true),
            ("^(?P<1a>x)(?<b>y)(?:z)$", "xyz", true),
            ("^(?iis-s:A)(?-i)b(?)c$", "abc", true),
            ("^(?U)a+", "aa", true),
            ("^a b#c$", "a b#c", true),
            ("^(a|)*$", "aa", true),
            ("^^*a$", "a", true),
            ("", "", true),
            ("a||b", "", true),
            ("^(a{10}){100}$", "", false),
            ("^(a{0}){1000}$", "", true),
            ("^]}$", "]}", true),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text:?}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_in_its_words() {
        for (pattern, wanted) in [
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("a{5,2}", "invalid repeat count: `{5,2}`"),
            ("a{99999999999}", "invalid repeat count: `{99999999999}`"),
            ("(a{10}){101}", "invalid repeat count: `{101}`"),
            ("((a{11}b){10}){10,}?", "invalid repeat count: `{10,}?`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a{2}{3}", "invalid nested repetition operator: `{2}{3}`"),
            ("a*??b", "invalid nested repetition operator: `*??`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("a|*", "missing argument to repetition operator: `*`"),
            ("(+?)", "missing argument to repetition operator: `+?`"),
            ("{2}", "missing argument to repetition operator: `{2}`"),
            ("(?x)a", "invalid or unsupported Perl syntax: `(?x`"),
            ("(?u)a", "invalid or unsupported Perl syntax: `(?u`"),
            ("(?R)a", "invalid or unsupported Perl syntax: `(?R`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?i-:a)", "invalid or unsupported Perl syntax: `(?i-:`"),
            ("(?", "invalid or unsupported Perl syntax: `(?`"),
            ("(?<=a)b", "invalid named capture: `(?<=a)b`"),
            ("(?<a b>c)", "invalid named capture: `(?<a b>`"),
            ("(a", "missing closing ): `(a`"),
            ("a)", "unexpected ): `a)`"),
            ("[a", "missing closing ]: `[a`"),
            ("b[]", "missing closing ]: `[]`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("[[:foo:]]", "invalid character class range: `[:foo:]`"),
            (r"\p{Script=Greek}", r"invalid character class range: `\p{Script=Greek}`"),
            (r"\p{L", r"invalid character class range: `\p{L`"),
            (r"\C", r"invalid escape sequence: `\C`"),
            (r"\Z", r"invalid escape sequence: `\Z`"),
            (r"a\1", r"invalid escape sequence: `\1`"),
            (r"\8", r"invalid escape sequence: `\8`"),
            (r"\é", r"invalid escape sequence: `\é`"),
            (r"[\b]", r"invalid escape sequence: `\b`"),
            (r"\x{110000}", r"invalid escape sequence: `\x{110000`"),
            (r"\x{}", r"invalid escape sequence: `\x{}`"),
            (r"\xg1", r"invalid escape sequence: `\xg1`"),
            (r"\u0041", r"invalid escape sequence: `\u`"),
            ("a\\", "trailing backslash at end of expression: ``"),
        ] {
            let wanted = Failed::Wrong(format!("error parsing regexp: {wanted}"));
            assert_eq!(compile(pattern, 1 << 20).err(), Some(wanted), "{pattern}");
        }
        assert_eq!(compile(r"(\pL{99}){9}", 1 << 10).err(), Some(Failed::TooLarge));
    }

    /// Whatever is read is something that the engine can read, and that it reads as many parts of as there are.
    #[test]
    fn what_is_translated_is_a_pattern() {
        const PARTS: [&str; 34] = [
            "a",
            "é",
            "{",
            "}",
            "[",
            "]",
            "(",
            ")",
            "|",
            "*",
            "+",
            "?",
            "^",
            "$",
            ".",
            "\\",
            "-",
            "&&",
            "~~",
            "--",
            "{2}",
            "{1,}",
            "\\d",
            "\\W",
            "\\b",
            "\\Q",
            "\\E",
            "(?i)",
            "(?:",
            "[:alpha:]",
            "[^",
            ",",
            "#",
            " ",
        ];
        let mut seed = 7_u64;
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut pattern = String::new();
            for _ in 0..8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                pattern.push_str(PARTS[(seed >> 33) as usize % PARTS.len()]);
            }
            if let Ok(translated) = translated(&pattern) {
                let built = Regex::new(&translated);
                assert!(built.is_ok() || pattern.contains("(?i)"), "{pattern}: {translated}: {built:?}");
                accepted += 1;
            }
        }
        assert!(accepted > 1_000, "{accepted}");
    }
}
