//! What is wrong with text that is no JSON, in the words of Go's scanner. Source: `encoding/json/scanner.go`.

/// The first thing that is wrong; `None` for JSON.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    Scanner { text, at: 0 }.document().err()
}

const ENDED: &str = "unexpected end of JSON input";
const VALUE: &str = "looking for beginning of value";
const KEY: &str = "looking for beginning of object key string";

struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
}

/// What a container waits for after a value in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Array,
    Object,
}

impl Scanner<'_> {
    /// Containers are kept in a list, so that no text goes deeper than a stack.
    fn document(&mut self) -> Result<(), String> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            // A value begins here.
            match self.solid()? {
                b'{' => {
                    self.at += 1;
                    if self.solid()? != b'}' {
                        self.key()?;
                        open.push(Open::Object);
                        continue;
                    }
                    self.at += 1;
                }
                b'[' => {
                    self.at += 1;
                    if self.solid()? != b']' {
                        open.push(Open::Array);
                        continue;
                    }
                    self.at += 1;
                }
                _ => self.scalar()?,
            }
            // A value has ended.
            loop {
                let Some(container) = open.last() else { return self.end() };
                match (self.solid()?, container) {
                    (b',', Open::Array) => {
                        self.at += 1;
                        break;
                    }
                    (b',', Open::Object) => {
                        self.at += 1;
                        self.solid()?;
                        self.key()?;
                        break;
                    }
                    (b']', Open::Array) | (b'}', Open::Object) => {
                        self.at += 1;
                        open.pop();
                    }
                    (_, Open::Array) => return Err(self.wrong("after array element")),
                    (_, Open::Object) => return Err(self.wrong("after object key:value pair")),
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), String> {
        match self.solid() {
            Ok(_) => Err(self.wrong("after top-level value")),
            Err(_) => Ok(()),
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<(), String> {
        if self.solid()? != b'"' {
            return Err(self.wrong(KEY));
        }
        self.string()?;
        if self.solid()? != b':' {
            return Err(self.wrong("after object key"));
        }
        self.at += 1;
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), String> {
        match self.solid()? {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            _ => Err(self.wrong(VALUE)),
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for letter in word.bytes() {
            if self.next()? != letter {
                let wanted = char::from(letter);
                return Err(self.wrong(&format!("in literal {word} (expecting '{wanted}')")));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.next()? {
                b'"' => break,
                b'\\' => {
                    self.at += 1;
                    self.escape()?;
                }
                0..0x20 => return Err(self.wrong("in string literal")),
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), String> {
        match self.next()? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.at += 1,
            b'u' => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.next()?.is_ascii_hexdigit() {
                        return Err(self.wrong("in \\u hexadecimal character escape"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.wrong("in string escape code")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        if self.next()? == b'-' {
            self.at += 1;
        }
        // A zero stands alone.
        match self.next()? {
            b'0' => self.at += 1,
            _ => self.digits("in numeric literal")?,
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.next()?, b'+' | b'-') {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self, context: &str) -> Result<(), String> {
        if !self.next()?.is_ascii_digit() {
            return Err(self.wrong(context));
        }
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    fn next(&self) -> Result<u8, String> {
        self.text.get(self.at).copied().ok_or_else(|| ENDED.to_owned())
    }

    /// The next byte that is no white space.
    fn solid(&mut self) -> Result<u8, String> {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.next()
    }

    /// Go takes a byte for a character here.
    fn wrong(&self, context: &str) -> String {
        let shown = match self.text.get(self.at).copied().unwrap_or_default() {
            b'\'' => "\\'".to_owned(),
            b'"' => "\"".to_owned(),
            b'\\' => "\\\\".to_owned(),
            7 => "\\a".to_owned(),
            8 => "\\b".to_owned(),
            9 => "\\t".to_owned(),
            10 => "\\n".to_owned(),
            11 => "\\v".to_owned(),
            12 => "\\f".to_owned(),
            13 => "\\r".to_owned(),
            byte @ (0..0x20 | 0x7f) => format!("\\x{byte:02x}"),
            byte @ (0x80..0xa0 | 0xad) => format!("\\u{byte:04x}"),
            0xa0 => "\\u00a0".to_owned(),
            byte => char::from(byte).to_string(),
        };
        format!("invalid character '{shown}' {context}")
    }
}

#[cfg(test)]
mod tests {
    use super::syntax_error;

    #[test]
    fn what_is_wrong_is_said_as_go_says_it() {
        for (text, wanted) in [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("01", "invalid character '1' after top-level value"),
            ("tru_", "invalid character '_' in literal true (expecting 'e')"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("\"\\q\"", "invalid character 'q' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
        ] {
            assert_eq!(syntax_error(text.as_bytes()).as_deref(), Some(wanted), "{text}");
        }
    }

    #[test]
    fn json_is_json() {
        let nested = "[".repeat(20_000) + &"]".repeat(20_000);
        for text in ["{}", "[]", " {\"a\": [1, -0.5e+3, true, null, \"\\u00e9\\n\", {\"b\": {}}]} ", &nested]
        {
            assert_eq!(syntax_error(text.as_bytes()), None);
        }
    }
}
