//! Documents of version 3 in protobuf, as Go's clients ask for them: all of a document, by tables of its messages. Source
//! of the numbers: gnostic's `OpenAPIv3.proto`; how JSON becomes these messages: its `OpenAPIv3.go`.

use serde_json::Value;

use super::protobuf::{Message, any};

/// The media type of this form. Source: `kube-openapi/pkg/handler3`.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

/// The name by which clients also ask for it. It is no media type by the book (RFC 9110), so no answer bears it.
pub const OLD_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";

/// How the value of a field is written.
enum Form {
    Text,
    /// A list of texts.
    Texts,
    /// `true`; anything else is not written.
    Flag,
    /// `double`.
    Number,
    /// `int64`.
    Count,
    /// A value as YAML.
    Any,
    /// A text or number that stands for what is not there; of others nothing is written but that there is one.
    Default,
    /// A schema, or whether there may be any.
    Additional,
    /// A message.
    One(&'static Layout),
    /// Each item of a list, as a field of its own.
    Many(&'static Form),
}

/// A field: its name in JSON, its number, how it is written.
type Field = (&'static str, u32, Form);

/// A message.
enum Layout {
    /// One with these fields; what begins with `x-` goes into the field of this number.
    Fields(&'static [Field], Option<u32>),
    /// One that has all members of an object in a field of this number, each with its name; one name may have its own.
    Members(u32, &'static Layout, &'static [Field]),
    /// One that is told in place or somewhere else (`$ref`).
    OrReference(&'static Layout),
    /// One that has another as its only field.
    Within(&'static Layout),
}

static DOCUMENT: Layout = Layout::Fields(
    &[
        ("openapi", 1, Form::Text),
        ("info", 2, Form::One(&INFO)),
        ("paths", 4, Form::One(&Layout::Members(1, &PATH, &[]))),
        ("components", 5, Form::One(&COMPONENTS)),
    ],
    Some(9),
);

static INFO: Layout = Layout::Fields(
    &[("title", 1, Form::Text), ("description", 2, Form::Text), ("version", 6, Form::Text)],
    Some(7),
);

static COMPONENTS: Layout = Layout::Fields(
    &[
        ("schemas", 1, Form::One(&Layout::Members(1, &ANY_SCHEMA, &[]))),
        ("securitySchemes", 7, Form::One(&Layout::Members(1, &Layout::OrReference(&SECURITY), &[]))),
    ],
    Some(10),
);

static SECURITY: Layout = Layout::Fields(
    &[
        ("type", 1, Form::Text),
        ("description", 2, Form::Text),
        ("name", 3, Form::Text),
        ("in", 4, Form::Text),
        ("scheme", 5, Form::Text),
        ("bearerFormat", 6, Form::Text),
    ],
    Some(9),
);

static PATH: Layout = Layout::Fields(
    &[
        ("summary", 2, Form::Text),
        ("description", 3, Form::Text),
        ("get", 4, Form::One(&OPERATION)),
        ("put", 5, Form::One(&OPERATION)),
        ("post", 6, Form::One(&OPERATION)),
        ("delete", 7, Form::One(&OPERATION)),
        ("options", 8, Form::One(&OPERATION)),
        ("head", 9, Form::One(&OPERATION)),
        ("patch", 10, Form::One(&OPERATION)),
        ("trace", 11, Form::One(&OPERATION)),
        ("parameters", 13, PARAMETERS),
    ],
    Some(14),
);

const PARAMETERS: Form = Form::Many(&Form::One(&Layout::OrReference(&PARAMETER)));

static OPERATION: Layout = Layout::Fields(
    &[
        ("tags", 1, Form::Texts),
        ("summary", 2, Form::Text),
        ("description", 3, Form::Text),
        ("operationId", 5, Form::Text),
        ("parameters", 6, PARAMETERS),
        ("requestBody", 7, Form::One(&Layout::OrReference(&BODY))),
        ("responses", 8, Form::One(&RESPONSES)),
        ("deprecated", 10, Form::Flag),
    ],
    Some(13),
);

static PARAMETER: Layout = Layout::Fields(
    &[
        ("name", 1, Form::Text),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("deprecated", 5, Form::Flag),
        ("allowEmptyValue", 6, Form::Flag),
        ("style", 7, Form::Text),
        ("explode", 8, Form::Flag),
        ("allowReserved", 9, Form::Flag),
        ("schema", 10, Form::One(&ANY_SCHEMA)),
        ("example", 11, Form::Any),
        ("content", 13, Form::One(&CONTENT)),
    ],
    Some(14),
);

static BODY: Layout = Layout::Fields(
    &[("description", 1, Form::Text), ("content", 2, Form::One(&CONTENT)), ("required", 3, Form::Flag)],
    Some(4),
);

static CONTENT: Layout = Layout::Members(1, &MEDIA, &[]);

static MEDIA: Layout =
    Layout::Fields(&[("schema", 1, Form::One(&ANY_SCHEMA)), ("example", 2, Form::Any)], Some(5));

static RESPONSES: Layout = Layout::Members(2, &ANY_RESPONSE, &[("default", 1, Form::One(&ANY_RESPONSE))]);

static ANY_RESPONSE: Layout = Layout::OrReference(&RESPONSE);

static RESPONSE: Layout =
    Layout::Fields(&[("description", 1, Form::Text), ("content", 3, Form::One(&CONTENT))], Some(5));

static ANY_SCHEMA: Layout = Layout::OrReference(&SCHEMA);

static ONE_SCHEMA: Form = Form::One(&ANY_SCHEMA);

static SCHEMA: Layout = Layout::Fields(
    &[
        ("nullable", 1, Form::Flag),
        ("readOnly", 3, Form::Flag),
        ("writeOnly", 4, Form::Flag),
        ("externalDocs", 6, Form::One(&DOCUMENTATION)),
        ("example", 7, Form::Any),
        ("deprecated", 8, Form::Flag),
        ("title", 9, Form::Text),
        ("multipleOf", 10, Form::Number),
        ("maximum", 11, Form::Number),
        ("exclusiveMaximum", 12, Form::Flag),
        ("minimum", 13, Form::Number),
        ("exclusiveMinimum", 14, Form::Flag),
        ("maxLength", 15, Form::Count),
        ("minLength", 16, Form::Count),
        ("pattern", 17, Form::Text),
        ("maxItems", 18, Form::Count),
        ("minItems", 19, Form::Count),
        ("uniqueItems", 20, Form::Flag),
        ("maxProperties", 21, Form::Count),
        ("minProperties", 22, Form::Count),
        ("required", 23, Form::Texts),
        ("enum", 24, Form::Many(&Form::Any)),
        ("type", 25, Form::Text),
        ("allOf", 26, Form::Many(&ONE_SCHEMA)),
        ("oneOf", 27, Form::Many(&ONE_SCHEMA)),
        ("anyOf", 28, Form::Many(&ONE_SCHEMA)),
        ("not", 29, Form::One(&SCHEMA)),
        ("items", 30, Form::One(&Layout::Within(&ANY_SCHEMA))),
        ("properties", 31, Form::One(&Layout::Members(1, &ANY_SCHEMA, &[]))),
        ("additionalProperties", 32, Form::Additional),
        ("default", 33, Form::Default),
        ("description", 34, Form::Text),
        ("format", 35, Form::Text),
    ],
    Some(36),
);

static DOCUMENTATION: Layout =
    Layout::Fields(&[("description", 1, Form::Text), ("url", 2, Form::Text)], Some(3));

static REFERENCE: Layout = Layout::Fields(
    &[("$ref", 1, Form::Text), ("summary", 2, Form::Text), ("description", 3, Form::Text)],
    None,
);

/// Encodes a document of version 3.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document).into_bytes()
}

fn message(layout: &Layout, value: &Value) -> Message {
    let mut out = Message::default();
    match layout {
        Layout::Fields(fields, extensions) => {
            for (name, number, form) in *fields {
                if let Some(value) = value.get(name) {
                    field(&mut out, *number, form, value);
                }
            }
            let Some(number) = extensions else { return out };
            for (name, value) in members(value).filter(|(name, _)| name.starts_with("x-")) {
                out.named(*number, name, &any(value));
            }
        }
        Layout::Members(number, layout, own) => {
            for (name, value) in members(value) {
                match own.iter().find(|(known, ..)| known == name) {
                    Some((_, number, form)) => field(&mut out, *number, form, value),
                    None => out.named(*number, name, &message(layout, value)),
                }
            }
        }
        Layout::OrReference(_) if value.get("$ref").is_some() => out.message(2, &message(&REFERENCE, value)),
        Layout::OrReference(layout) | Layout::Within(layout) => out.message(1, &message(layout, value)),
    }
    out
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Writes a field. What is nothing in protobuf (an empty text, a zero) is not written, nor is what has another type.
fn field(out: &mut Message, number: u32, form: &Form, value: &Value) {
    match form {
        Form::Text => out.text(number, value),
        Form::Texts => {
            let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.for_each(|text| out.put(number, text.as_bytes()));
        }
        Form::Flag if *value == true => out.count(number, 1),
        Form::Flag => {}
        Form::Number => out.number(number, value.as_f64().unwrap_or_default()),
        // A negative one is its two's complement.
        Form::Count => out.count(number, value.as_i64().unwrap_or_default().cast_unsigned()),
        Form::Any => out.message(number, &any(value)),
        Form::Default => out.message(number, &default(value)),
        Form::Additional => {
            let mut additional = Message::default();
            match value {
                Value::Bool(allowed) => additional.flag(2, *allowed),
                schema => additional.message(1, &message(&ANY_SCHEMA, schema)),
            }
            out.message(number, &additional);
        }
        Form::One(layout) => out.message(number, &message(layout, value)),
        Form::Many(form) => {
            for item in value.as_array().into_iter().flatten() {
                field(out, number, form, item);
            }
        }
    }
}

/// `DefaultType`: one of three, which is written even if it is nothing.
fn default(value: &Value) -> Message {
    let mut out = Message::default();
    match value {
        Value::Number(number) => out.double(1, number.as_f64().unwrap_or_default()),
        Value::Bool(flag) => out.flag(2, *flag),
        Value::String(text) => out.put(3, text.as_bytes()),
        Value::Null | Value::Array(_) | Value::Object(_) => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A document that has every field that documents have here, but for extensions.
    const DOCUMENT: &str = r##"{"openapi":"3.0.0","info":{"title":"K","version":"v1"},
"paths":{"/a":{"get":{"operationId":"a","tags":["t"],"description":"d","deprecated":true,
 "parameters":[{"in":"query","name":"q","required":true,"schema":{"type":"string","uniqueItems":true}}],
 "requestBody":{"content":{"*/*":{"schema":{"$ref":"#/components/schemas/A"}}},"required":true},
 "responses":{"200":{"description":"OK","content":{"application/json":{"schema":{"type":"string"}}}},"default":{"description":""}}},
 "parameters":[{"in":"path","name":"p","schema":{"type":"integer"}}]}},
"components":{"schemas":{"A":{"type":"object","required":["b"],"nullable":true,"format":"f","description":"d",
 "properties":{"b":{"allOf":[{"$ref":"#/components/schemas/B"}],"default":{}},"c":{"type":"number","minimum":-1.5,"maximum":300,"default":0,"multipleOf":2},
 "d":{"type":"string","pattern":"x","minLength":1,"maxLength":300,"default":"","enum":["a"]},"e":{"type":"array","items":{"type":"boolean","default":false},"minItems":1,"maxItems":2,"uniqueItems":true},
 "f":{"type":"object","additionalProperties":{"type":"string"},"minProperties":1,"maxProperties":200},"g":{"additionalProperties":false},"h":{"additionalProperties":true},
 "i":{"oneOf":[{"type":"string"}],"anyOf":[{"required":["x"]}],"not":{"title":"n"},"exclusiveMinimum":true,"exclusiveMaximum":true,"example":1,"default":[1]}}}},
"securitySchemes":{"T":{"type":"apiKey","name":"authorization","in":"header","description":"d"}}}}"##;
    /// The same as gnostic reads it and writes it down: its `ParseDocument` of the text above equals the message that these
    /// bytes are (v0.7.0, `proto.Equal`).
    const BYTES: &str = "0a05332e302e3012070a014b3202763122ba010ab7010a022f6112b0012292010a01741a01642a0161321e0a1c0a01711205\
        71756572792001520e0a0ca00101ca0106737472696e673a2b0a2912250a230a032a2f2a121c0a1a12180a16232f636f6d70\
        6f6e656e74732f736368656d61732f411801423812320a03323030122b0a290a024f4b1a230a210a106170706c6963617469\
        6f6e2f6a736f6e120d0a0b0a09ca0106737472696e670a020a0050016a190a170a0170120470617468520c0a0aca0107696e\
        74656765722a89030ad9020ad6020a014112d0020acd020801ba010162ca01066f626a656374fa01b2020a270a016212220a\
        20d2011a12180a16232f636f6d706f6e656e74732f736368656d61732f428a02000a370a016312320a305100000000000000\
        40590000000000c0724069000000000000f8bfca01066e756d6265728a02090900000000000000000a270a016412220a2078\
        ac028001018a010178c201051203226122ca0106737472696e678a02021a000a2e0a016512290a27900102980101a00101ca\
        01056172726179f201130a110a0fca0107626f6f6c65616e8a020210000a270a016612220a20a801c801b00101ca01066f62\
        6a65637482020d0a0b0a09ca0106737472696e670a0c0a016712070a0582020210000a0c0a016812070a0582020210010a30\
        0a0169122b0a293a0312013160017001da010b0a09ca0106737472696e67e201060a04ba010178ea01034a016e8a02009202\
        01649a0201663a2b0a290a015412240a220a066170694b65791201641a0d617574686f72697a6174696f6e22066865616465\
        72";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_document_is_the_message_that_gnostic_makes_of_it() {
        assert_eq!(hex(&encode(&serde_json::from_str(DOCUMENT).unwrap())), BYTES);
    }

    #[test]
    fn extensions_are_written_by_their_names_wherever_they_stand() {
        let schema = serde_json::json!({"x-k": [1], "unknown": 1, "$ref": 3});
        assert_eq!(
            hex(&message(&SCHEMA, &schema).into_bytes()),
            "a2020c0a03782d6b12051203".to_owned() + "5b315d"
        );
        // What is told somewhere else is told by that alone.
        assert_eq!(
            hex(&message(&ANY_SCHEMA, &serde_json::json!({"$ref": "#/a", "type": "string"})).into_bytes()),
            "12050a03232f61"
        );
    }
}
