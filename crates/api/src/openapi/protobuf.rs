//! The version 2 document in protobuf, which is the only form that kubectl asks for when it validates a `List`, and
//! older clients for everything. It holds the definitions, by which clients validate and merge; operations are in the
//! JSON form. Source of the numbers: gnostic's `OpenAPIv2.proto`.

use serde_json::Value;

/// The media type of this form.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The name by which clients also ask for it. It is no media type by the book (RFC 9110), so no answer bears it.
pub const OLD_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A message while it is written.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A field with a length: text, or another message.
    pub(super) fn put(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn message(&mut self, number: u32, message: &Self) {
        self.put(number, &message.0);
    }

    /// A text, if it is one and not empty.
    pub(super) fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.put(number, text.as_bytes());
        }
    }

    /// An integer, if it is not 0.
    pub(super) fn count(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.varint(u64::from(number) << 3);
            self.varint(value);
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, number: u32, value: bool) {
        self.varint(u64::from(number) << 3);
        self.varint(u64::from(value));
    }

    /// A number, if it is not 0.
    pub(super) fn number(&mut self, number: u32, value: f64) {
        if value != 0.0 {
            self.double(number, value);
        }
    }

    pub(super) fn double(&mut self, number: u32, value: f64) {
        self.varint(u64::from(number) << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// `NamedSchema`, `NamedAny`: a name and a value.
    pub(super) fn named(&mut self, number: u32, name: &str, value: &Self) {
        let mut named = Self::default();
        named.put(1, name.as_bytes());
        named.put(2, &value.0);
        self.put(number, &named.0);
    }
}

/// Encodes a Swagger 2.0 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.put(2, &info.0);
    out.put(8, &[]);
    out.put(9, &schemas(&document["definitions"]).0);
    out.0
}

/// `Definitions`, `Properties`.
fn schemas(members: &Value) -> Message {
    let mut out = Message::default();
    for (name, member) in members.as_object().into_iter().flatten() {
        out.named(1, name, &schema(member));
    }
    out
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    for (key, value) in value.as_object().into_iter().flatten() {
        match key.as_str() {
            "$ref" => out.text(1, value),
            "format" => out.text(2, value),
            "description" => out.text(4, value),
            "default" => out.put(5, &any(value).0),
            "required" => value.as_array().into_iter().flatten().for_each(|name| out.text(19, name)),
            "enum" => value.as_array().into_iter().flatten().for_each(|one| out.put(20, &any(one).0)),
            "additionalProperties" => {
                let mut item = Message::default();
                item.put(1, &schema(value).0);
                out.put(21, &item.0);
            }
            "type" => {
                let mut item = Message::default();
                item.text(1, value);
                out.put(22, &item.0);
            }
            "items" => {
                let mut item = Message::default();
                item.put(1, &schema(value).0);
                out.put(23, &item.0);
            }
            "allOf" => value.as_array().into_iter().flatten().for_each(|one| out.put(24, &schema(one).0)),
            "properties" => out.put(25, &schemas(value).0),
            extension if extension.starts_with("x-") => out.named(31, extension, &any(value)),
            _ => {}
        }
    }
    out
}

/// `Any`: a value as YAML, of which JSON is a part.
pub(super) fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.put(2, value.to_string().as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_is_its_message() {
        let document = json!({
            "swagger": "2.0", "info": {"title": "K", "version": "v1"},
            "definitions": {"A": {"type": "object", "properties": {"b": {"$ref": "#/definitions/B"}}, "x-k": [1]}},
        });
        // Each field is `number << 3 | 2`, length, content.
        let reference = [b"\x0a\x0f".as_slice(), b"#/definitions/B"].concat();
        let property = [b"\x0a\x01b\x12\x11".as_slice(), &reference].concat();
        let properties = [b"\x0a\x16".as_slice(), &property].concat();
        let body = [
            b"\xca\x01\x18".as_slice(),
            &properties,
            b"\xb2\x01\x08\x0a\x06object",
            b"\xfa\x01\x0c\x0a\x03x-k\x12\x05\x12\x03[1]",
        ]
        .concat();
        let named = [b"\x0a\x01A\x12".as_slice(), &[u8::try_from(body.len()).unwrap()], &body].concat();
        let definitions = [b"\x0a".as_slice(), &[u8::try_from(named.len()).unwrap()], &named].concat();
        let wanted = [
            b"\x0a\x032.0".as_slice(),
            b"\x12\x07\x0a\x01K\x12\x02v1",
            b"\x42\x00",
            b"\x4a",
            &[u8::try_from(definitions.len()).unwrap()],
            &definitions,
        ]
        .concat();
        assert_eq!(encode(&document), wanted);
    }

    #[test]
    fn long_lengths_take_several_bytes() {
        let mut message = Message::default();
        message.put(1, &[7; 300]);
        assert_eq!(message.0[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(message.0.len(), 303);
    }
}
