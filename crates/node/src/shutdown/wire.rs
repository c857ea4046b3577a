//! Messages of D-Bus, as far as logind's few need them. Pure: bytes in, bytes out; what comes is bounded and never trusted.
//! Source: the D-Bus Specification 0.43, "Marshaling (Wire Format)" and "Message Protocol".

/// No message that concerns the node is larger.
pub(super) const MESSAGE_MAX: usize = 1 << 20;
/// The part of a header of which the size is known.
pub(super) const HEAD: usize = 16;
/// Values within values.
const DEPTH_MAX: usize = 8;

/// One value, of the types that the messages here have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    Int(i64),
    Number(u64),
    /// A number of 32 bits.
    Count(u32),
    /// A string, or a path of an object.
    Text(String),
    /// The place of a descriptor among those that came with the message.
    Fd(u32),
}

/// What a message is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Call,
    Answer,
    Error,
    Signal,
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) serial: u32,
    pub(super) path: String,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) destination: String,
    pub(super) sender: String,
    /// Which message it answers.
    pub(super) answers: Option<u32>,
    pub(super) fds: u32,
    /// What it says; values of types that nobody here knows, and those after them, are left out.
    pub(super) body: Vec<Value>,
}

/// Writes values at the places that their sizes ask for.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(u32::try_from(text.len()).unwrap_or(0));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(0));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(is) => self.number(u32::from(*is)),
            Value::Int(int) => {
                self.align(8);
                self.0.extend(int.to_le_bytes());
            }
            Value::Number(number) => {
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Count(number) | Value::Fd(number) => self.number(*number),
        }
    }
}

fn signature_of(values: &[Value]) -> String {
    let letter = |value: &Value| match value {
        Value::Bool(_) => 'b',
        Value::Int(_) => 'x',
        Value::Number(_) => 't',
        Value::Count(_) => 'u',
        Value::Text(_) => 's',
        Value::Fd(_) => 'h',
    };
    values.iter().map(letter).collect()
}

/// A message as bytes, little-endian. `variants`: its values are each written with their types, as properties are.
pub(super) fn encode(message: &Message, variants: bool) -> Vec<u8> {
    let mut body = Writer::default();
    for value in &message.body {
        if variants {
            body.signature(&signature_of(std::slice::from_ref(value)));
        }
        body.value(value);
    }
    let signature = match variants {
        true => "v".repeat(message.body.len()),
        false => signature_of(&message.body),
    };
    let kind = match message.kind {
        Kind::Call => 1,
        Kind::Answer => 2,
        Kind::Error => 3,
        Kind::Signal => 4,
    };
    let mut head = Writer(vec![b'l', kind, 0, 1]);
    head.number(u32::try_from(body.0.len()).unwrap_or(0));
    head.number(message.serial);
    let mut fields = Writer::default();
    let texts = [
        (1, 'o', &message.path),
        (2, 's', &message.interface),
        (3, 's', &message.member),
        (4, 's', &message.error),
        (6, 's', &message.destination),
    ];
    for (code, letter, text) in texts.into_iter().filter(|(_, _, text)| !text.is_empty()) {
        fields.align(8);
        fields.0.push(code);
        fields.signature(&letter.to_string());
        fields.text(text);
    }
    for (code, number) in [(5, message.answers), (9, Some(message.fds).filter(|fds| *fds > 0))] {
        if let Some(number) = number {
            fields.align(8);
            fields.0.push(code);
            fields.signature("u");
            fields.number(number);
        }
    }
    if !signature.is_empty() {
        fields.align(8);
        fields.0.push(8);
        fields.signature("g");
        fields.signature(&signature);
    }
    // Fields begin at 16, which is a multiple of 8: their places are the same there.
    head.number(u32::try_from(fields.0.len()).unwrap_or(0));
    head.0.extend(fields.0);
    head.align(8);
    head.0.extend(body.0);
    head.0
}

/// Reads values from the places where they are.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// A number of 2, 4 or 8 bytes.
    fn number(&mut self, size: usize) -> Option<u64> {
        self.align(size);
        let bytes = self.take(size)?.iter();
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big { bytes.fold(0, add) } else { bytes.rev().fold(0, add) })
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number(4)?).ok().filter(|length| *length <= MESSAGE_MAX)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.length()?;
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        (self.byte()? == 0).then_some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        (self.byte()? == 0).then_some(text)
    }

    fn value(&mut self, letter: char, depth: usize) -> Option<Value> {
        match letter {
            'y' => Some(Value::Number(self.byte()?.into())),
            'b' => Some(Value::Bool(self.number(4)? != 0)),
            'q' => Some(Value::Number(self.number(2)?)),
            'u' => Some(Value::Count(u32::try_from(self.number(4)?).ok()?)),
            't' => Some(Value::Number(self.number(8)?)),
            'n' => Some(Value::Int(i64::from(self.number(2)? as u16 as i16))),
            'i' => Some(Value::Int(i64::from(self.number(4)? as u32 as i32))),
            'x' => Some(Value::Int(self.number(8)? as i64)),
            's' | 'o' => self.text().map(Value::Text),
            'g' => self.signature().map(Value::Text),
            'h' => Some(Value::Fd(u32::try_from(self.number(4)?).ok()?)),
            'v' if depth < DEPTH_MAX => {
                let signature = self.signature()?;
                let mut letters = signature.chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) => self.value(letter, depth + 1),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// How long a message is of which these are the first [`HEAD`] bytes; `None`: it is none, or too long.
pub(super) fn length(head: &[u8]) -> Option<usize> {
    let mut reader = reader(head)?;
    reader.at = 4;
    let body = reader.length()?;
    reader.at = 12;
    let fields = reader.length()?;
    let whole = (HEAD + fields).next_multiple_of(8) + body;
    (whole <= MESSAGE_MAX).then_some(whole)
}

fn reader(bytes: &[u8]) -> Option<Reader<'_>> {
    let big = match bytes.first()? {
        b'l' => false,
        b'B' => true,
        _ => return None,
    };
    Some(Reader { bytes, at: 0, big })
}

/// Reads a whole message.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    let mut reader = reader(bytes)?;
    reader.at = 1;
    let kind = match reader.byte()? {
        1 => Kind::Call,
        2 => Kind::Answer,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => return None,
    };
    reader.at = 8;
    let serial = u32::try_from(reader.number(4)?).ok()?;
    let end = reader.length()?.checked_add(HEAD)?;
    let mut message = Message { kind, serial, ..Message::default() };
    let mut signature = String::new();
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let value = reader.value('v', 0)?;
        match (code, value) {
            (1, Value::Text(text)) => message.path = text,
            (2, Value::Text(text)) => message.interface = text,
            (3, Value::Text(text)) => message.member = text,
            (4, Value::Text(text)) => message.error = text,
            (5, Value::Count(number)) => message.answers = Some(number),
            (6, Value::Text(text)) => message.destination = text,
            (7, Value::Text(text)) => message.sender = text,
            (8, Value::Text(text)) => signature = text,
            (9, Value::Count(number)) => message.fds = number,
            _ => {}
        }
    }
    reader.align(8);
    for letter in signature.chars() {
        let Some(value) = reader.value(letter, 0) else { break };
        message.body.push(value);
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Message {
        let words = ["shutdown", "Skiff", "because", "delay"].map(|word| Value::Text(word.to_owned()));
        Message {
            serial: 7,
            path: "/org/freedesktop/login1".to_owned(),
            interface: "org.freedesktop.login1.Manager".to_owned(),
            member: "Inhibit".to_owned(),
            destination: "org.freedesktop.login1".to_owned(),
            body: words.to_vec(),
            ..Message::default()
        }
    }

    #[test]
    fn messages_go_there_and_back() {
        let call = call();
        let answer = Message {
            kind: Kind::Answer,
            serial: 300,
            answers: Some(7),
            fds: 1,
            body: vec![
                Value::Fd(0),
                Value::Bool(true),
                Value::Number(5_000_000),
                Value::Int(-1),
                Value::Count(3),
            ],
            ..Message::default()
        };
        for message in [call, answer] {
            for variants in [false, true] {
                let bytes = encode(&message, variants);
                assert_eq!(length(&bytes[..HEAD]), Some(bytes.len()));
                assert_eq!(decode(&bytes).as_ref(), Some(&message));
            }
        }
    }

    #[test]
    fn both_orders_of_bytes_are_read() {
        // Fields of 23 bytes, and a body of 4.
        let mut bytes = vec![b'B', 4, 1, 1, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 23];
        bytes.extend([3, 1, b's', 0, 0, 0, 0, 1, b'P', 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([8, 1, b'g', 0, 1, b'b', 0, 0]);
        bytes.extend([0, 0, 0, 1]);
        assert_eq!(length(&bytes[..HEAD]), Some(bytes.len()));
        let message = decode(&bytes).unwrap();
        assert_eq!((message.kind, message.serial, message.member.as_str()), (Kind::Signal, 9, "P"));
        assert_eq!(message.body, [Value::Bool(true)]);
    }

    #[test]
    fn whatever_comes_is_read_within_its_bounds() {
        let bytes = encode(&call(), false);
        for cut in 0..bytes.len() {
            let _ = (length(&bytes[..cut]), decode(&bytes[..cut]));
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut other = bytes.clone();
                other[at] = value;
                let _ = (length(&other[..HEAD]), decode(&other));
            }
        }
        let mut long = bytes.clone();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(length(&long[..HEAD]), None);
    }
}
