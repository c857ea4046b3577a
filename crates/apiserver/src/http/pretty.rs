//! JSON indented for people, as it passes by. Pure.

/// Indents JSON text by two spaces a level; the text may come in pieces.
#[derive(Debug, Default)]
pub(super) struct Indent {
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// A bracket was opened and nothing stands in it yet.
    open: bool,
}

impl Indent {
    /// The next piece.
    pub(super) fn piece(&mut self, json: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(json.len() + json.len() / 2);
        for byte in json {
            self.byte(*byte, &mut out);
        }
        out
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.in_text {
            out.push(byte);
            self.in_text = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return;
        }
        if byte.is_ascii_whitespace() {
            return;
        }
        if matches!(byte, b'}' | b']') {
            self.depth = self.depth.saturating_sub(1);
            if !std::mem::take(&mut self.open) {
                self.line(out);
            }
            return out.push(byte);
        }
        if std::mem::take(&mut self.open) {
            self.line(out);
        }
        out.push(byte);
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                self.open = true;
            }
            b',' => self.line(out),
            b':' => out.push(b' '),
            b'"' => self.in_text = true,
            _ => {}
        }
    }

    fn line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        out.resize(out.len() + 2 * self.depth, b' ');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn text_is_indented_however_it_comes_in_pieces() {
        let value: Value =
            json!({ "a": [1, { "b": [], "c": {} }, "x,{\"\\"], "d": null, "e": { "f": true } });
        let (plain, wanted) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
        for size in [1, 2, 7, 1000] {
            let mut indent = Indent::default();
            let pieces: Vec<u8> =
                plain.as_bytes().chunks(size).flat_map(|piece| indent.piece(piece)).collect();
            assert_eq!(String::from_utf8(pieces).unwrap(), wanted);
        }
    }
}
