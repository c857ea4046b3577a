//! The words of an expression. Source: the CEL specification, section "Syntax".

/// A word, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) at: usize,
    pub(super) end: usize,
    pub(super) word: Word,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// A name; `true`, `in` and their like are names here.
    Name(String),
    /// A name between backticks.
    Quoted(String),
    Int(String),
    UInt(String),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// An operator or bracket.
    Sign(&'static str),
    End,
}

/// Signs, longer ones first.
const SIGNS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}", ";",
];

/// Letters that stand for a byte behind a backslash.
const ESCAPES: [(char, u8); 12] = [
    ('a', 7),
    ('b', 8),
    ('f', 12),
    ('n', b'\n'),
    ('r', b'\r'),
    ('t', b'\t'),
    ('v', 11),
    ('\\', b'\\'),
    ('\'', b'\''),
    ('"', b'"'),
    ('`', b'`'),
    ('?', b'?'),
];

/// What is wrong, and where.
pub(super) type Wrong = (usize, String);

/// All words of a text; the last is [`Word::End`].
pub(super) fn words(source: &str) -> Result<Vec<Token>, Wrong> {
    let mut lexer = Lexer { source, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let word = lexer.word()?;
        let end = word == Word::End;
        tokens.push(Token { at, end: lexer.at, word });
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> String {
        let taken: String = self.rest().chars().take_while(|letter| fits(*letter)).collect();
        self.at += taken.len();
        taken
    }

    fn skip_blanks(&mut self) {
        loop {
            self.take_while(|letter| matches!(letter, ' ' | '\t' | '\r' | '\n' | '\u{c}'));
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|letter| letter != '\n');
        }
    }

    fn word(&mut self) -> Result<Word, Wrong> {
        let Some(first) = self.peek() else { return Ok(Word::End) };
        if let Some(text) = self.text()? {
            return Ok(text);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(Word::Name(self.take_while(|letter| letter.is_ascii_alphanumeric() || letter == '_')));
        }
        let second = self.rest().chars().nth(1);
        if first.is_ascii_digit() || (first == '.' && second.is_some_and(|letter| letter.is_ascii_digit())) {
            return self.number();
        }
        if first == '`' {
            let inner: String = self.rest().chars().skip(1).take_while(|letter| *letter != '`').collect();
            let fits = |letter: char| letter.is_ascii_alphanumeric() || "_.-/ ".contains(letter);
            if !inner.is_empty() && inner.chars().all(fits) && self.rest()[1 + inner.len()..].starts_with('`')
            {
                self.at += inner.len() + 2;
                return Ok(Word::Quoted(inner));
            }
        }
        let sign = SIGNS.into_iter().find(|sign| self.rest().starts_with(sign) && *sign != ";");
        let Some(sign) = sign else {
            let shown: String = self.rest().chars().take(1).collect();
            return Err((self.at, format!("Syntax error: token recognition error at: '{shown}'")));
        };
        self.at += sign.len();
        Ok(Word::Sign(sign))
    }

    fn number(&mut self) -> Result<Word, Wrong> {
        let at = self.at;
        let rest = self.rest();
        if rest.starts_with("0x") || rest.starts_with("0X") {
            self.at += 2;
            let digits = format!("0x{}", self.take_while(|letter| letter.is_ascii_hexdigit()));
            return Ok(if self.unsigned() { Word::UInt(digits) } else { Word::Int(digits) });
        }
        let mut text = self.take_while(|letter| letter.is_ascii_digit());
        let mut whole = true;
        let mut after = self.rest().chars();
        if after.next() == Some('.') && after.next().is_some_and(|letter| letter.is_ascii_digit()) {
            whole = false;
            self.at += 1;
            text = format!("{text}.{}", self.take_while(|letter| letter.is_ascii_digit()));
        }
        let mut after = self.rest().chars();
        if matches!(after.next(), Some('e' | 'E')) {
            let sign = after.next().filter(|sign| matches!(sign, '+' | '-'));
            let digit = if sign.is_some() { after.next() } else { self.rest().chars().nth(1) };
            if digit.is_some_and(|letter| letter.is_ascii_digit()) {
                whole = false;
                self.at += 1 + usize::from(sign.is_some());
                let digits = self.take_while(|letter| letter.is_ascii_digit());
                text = format!("{text}e{}{digits}", sign.unwrap_or('+'));
            }
        }
        if whole {
            return Ok(if self.unsigned() { Word::UInt(text) } else { Word::Int(text) });
        }
        text.parse().map(Word::Double).map_err(|_| (at, "invalid double literal".to_owned()))
    }

    fn unsigned(&mut self) -> bool {
        let found = matches!(self.peek(), Some('u' | 'U'));
        self.at += usize::from(found);
        found
    }

    /// A text or bytes: `'…'`, `"…"`, with `r` (raw) and `b` (bytes) before, and with three quotes over several lines.
    fn text(&mut self) -> Result<Option<Word>, Wrong> {
        let begin = self.at;
        let (mut raw, mut bytes) = (false, false);
        let marks: String =
            self.rest().chars().take_while(|letter| matches!(letter, 'r' | 'R' | 'b' | 'B')).collect();
        for mark in marks.chars() {
            let known = if mark.eq_ignore_ascii_case(&'r') { &mut raw } else { &mut bytes };
            if std::mem::replace(known, true) {
                return Ok(None);
            }
        }
        let rest = self.rest().get(marks.len()..).unwrap_or_default();
        let Some(quote) = rest.chars().next().filter(|quote| matches!(quote, '"' | '\'')) else {
            return Ok(None);
        };
        let long: String = std::iter::repeat_n(quote, 3).collect();
        let close = if rest.starts_with(&long) { long } else { quote.to_string() };
        self.at += marks.len() + close.len();
        let mut out = Vec::new();
        loop {
            if self.rest().starts_with(&close) {
                self.at += close.len();
                break;
            }
            match self.peek() {
                Some('\\') if !raw => self.escape(bytes, &mut out)?,
                Some('\\') => {
                    // A raw text keeps the backslash and what follows it.
                    let kept: String = self.rest().chars().take(2).collect();
                    self.at += kept.len();
                    out.extend(kept.bytes());
                }
                None | Some('\n' | '\r') if close.len() == 1 => return Err(unended(self.source, begin)),
                None => return Err(unended(self.source, begin)),
                Some(letter) => {
                    self.at += letter.len_utf8();
                    out.extend(letter.encode_utf8(&mut [0; 4]).bytes());
                }
            }
        }
        if bytes {
            return Ok(Some(Word::Bytes(out)));
        }
        let text = String::from_utf8(out).map_err(|_| (begin, "invalid string literal".to_owned()))?;
        Ok(Some(Word::Text(text)))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Wrong> {
        let at = self.at;
        let wrong = || (at, "Syntax error: token recognition error at: '\\'".to_owned());
        let letter = self.rest().chars().nth(1).ok_or_else(wrong)?;
        self.at += 1 + letter.len_utf8();
        let plain = ESCAPES.into_iter().find(|(known, _)| *known == letter);
        if let Some((_, byte)) = plain {
            out.push(byte);
            return Ok(());
        }
        let (digits, radix) = match letter {
            'x' | 'X' => (2, 16),
            'u' if !bytes => (4, 16),
            'U' if !bytes => (8, 16),
            '0'..='3' => {
                self.at -= 1;
                (3, 8)
            }
            _ => return Err(wrong()),
        };
        let code = self.rest().get(..digits).filter(|code| !code.starts_with('+'));
        let code = code.and_then(|code| u32::from_str_radix(code, radix).ok());
        let code = code.ok_or_else(wrong)?;
        self.at += digits;
        if bytes {
            out.push(u8::try_from(code).map_err(|_| wrong())?);
        } else {
            let letter = char::from_u32(code).ok_or_else(wrong)?;
            out.extend(letter.encode_utf8(&mut [0; 4]).bytes());
        }
        Ok(())
    }
}

fn unended(source: &str, begin: usize) -> Wrong {
    let shown: String = source.get(begin..).unwrap_or_default().chars().take(40).collect();
    (begin, format!("Syntax error: token recognition error at: '{shown}'"))
}
