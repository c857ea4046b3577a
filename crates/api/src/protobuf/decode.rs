//! Messages to JSON trees, as Go's types would print them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::{Problem, Reader, Wire};
use super::{DEPTH_MAX, MAGIC, SCHEMA_PROPS, find};
use crate::Status;
use crate::schema::{Field, Scalar, Schema, Type, Typed, Union};

/// Decodes a body: the object as JSON would have it, with `apiVersion` and `kind`.
pub fn decode(schema: &Schema, body: &[u8]) -> Result<Value, Status> {
    decode_envelope(schema, body).map_err(|problem| {
        Status::bad_request(format!("the body of the request is not valid protobuf: {problem}"))
    })
}

fn decode_envelope(schema: &Schema, body: &[u8]) -> Result<Value, Problem> {
    let message = body.strip_prefix(MAGIC).ok_or("it does not begin with the magic number")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(message);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some(field) = meta.next()? {
                    match field {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let ty = find(schema, &api_version, &kind).ok_or("its kind is not known")?;
    let mut object = message_of(ty, raw, 0)?;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), api_version.into());
        fields.insert("kind".into(), kind.into());
    }
    Ok(object)
}

fn utf8(bytes: &[u8]) -> Result<String, Problem> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a text is not UTF-8")
}

/// A message of a type with fields.
fn message_of(ty: Typed<'_>, bytes: &[u8], depth: u32) -> Result<Value, Problem> {
    let mut object = Map::new();
    fields_of(ty, &[], bytes, depth, &mut object)?;
    Ok(Value::Object(object))
}

/// The fields of a type that stand in its own message (`within` empty), or in the one that it embeds at that path.
fn fields_of(
    ty: Typed<'_>,
    within: &[u32],
    bytes: &[u8],
    depth: u32,
    object: &mut Map<String, Value>,
) -> Result<(), Problem> {
    if depth > DEPTH_MAX {
        return Err("it is nested too deeply");
    }
    let Some(definition) = ty.structure() else { return Ok(()) };
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let mut fields = definition.fields.iter();
        let field = fields.find(|field| number > 0 && field.number == number && *field.within == *within);
        if let Some(field) = field {
            field_of(ty, field, wire, depth, object)?;
        } else if let Wire::Bytes(bytes) = wire {
            let inner = [within, &[number]].concat();
            if definition.fields.iter().any(|field| field.within.starts_with(&inner)) {
                fields_of(ty, &inner, bytes, depth + 1, object)?;
            }
        }
    }
    Ok(())
}

/// One occurrence of a field.
fn field_of(
    ty: Typed<'_>,
    field: &Field,
    wire: Wire<'_>,
    depth: u32,
    object: &mut Map<String, Value>,
) -> Result<(), Problem> {
    let of = ty.of(field.ty);
    if let Some(union) = field.union() {
        return union_of(ty.schema(), field, union, wire, depth, object);
    }
    match of.get() {
        Type::List { item, .. } => {
            let list = object.entry(field.name.as_ref()).or_insert_with(|| Value::Array(Vec::new()));
            if let Some(list) = list.as_array_mut() {
                items_of(ty.of(*item), wire, depth, list)?;
            }
        }
        Type::Map { value, .. } => {
            let map = object.entry(field.name.as_ref()).or_insert_with(|| Value::Object(Map::new()));
            let (key, value) = entry_of(ty.of(*value), wire, depth)?;
            if let Some(map) = map.as_object_mut() {
                map.insert(key, value);
            }
        }
        Type::Scalar(_) | Type::Struct(_) => {
            let value = value_of(of, wire, depth)?;
            if says_something(field, &value) {
                object.insert(field.name.to_string(), value);
            }
        }
    }
    Ok(())
}

/// Whether JSON would have the field.
fn says_something(field: &Field, value: &Value) -> bool {
    let zero = match value {
        Value::Null => return false,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    !zero || field.shows_zero
}

/// A value that is one of several forms in JSON, and a message that spells them out on the wire.
fn union_of(
    schema: &Schema,
    field: &Field,
    union: Union,
    wire: Wire<'_>,
    depth: u32,
    object: &mut Map<String, Value>,
) -> Result<(), Problem> {
    let Wire::Bytes(bytes) = wire else { return Err("an object is no message") };
    let props = schema.named(SCHEMA_PROPS).ok_or("its schema is not known")?;
    let props = schema.typed(props);
    if union != Union::SchemaOrStrings {
        let value = one_of(props, union, bytes, depth)?;
        object.insert(field.name.to_string(), value);
        return Ok(());
    }
    let (key, value) = super::wire::entry(bytes)?;
    let value = one_of(props, union, value, depth)?;
    let map = object.entry(field.name.as_ref()).or_insert_with(|| Value::Object(Map::new()));
    if let Some(map) = map.as_object_mut() {
        map.insert(utf8(key)?, value);
    }
    Ok(())
}

fn one_of(props: Typed<'_>, union: Union, bytes: &[u8], depth: u32) -> Result<Value, Problem> {
    let (mut schema, mut several, mut allows) = (None, Vec::new(), false);
    let mut reader = Reader(bytes);
    while let Some(field) = reader.next()? {
        match (union, field) {
            (Union::SchemaOrBool, (1, Wire::Varint(value))) => allows = value != 0,
            (Union::SchemaOrBool, (2, Wire::Bytes(bytes)))
            | (Union::SchemaOrArray | Union::SchemaOrStrings, (1, Wire::Bytes(bytes))) => {
                schema = Some(message_of(props, bytes, depth + 1)?);
            }
            (Union::SchemaOrArray, (2, Wire::Bytes(bytes))) => {
                several.push(message_of(props, bytes, depth + 1)?);
            }
            (Union::SchemaOrStrings, (2, Wire::Bytes(text))) => several.push(utf8(text)?.into()),
            _ => {}
        }
    }
    Ok(match (schema, union) {
        (Some(schema), _) => schema,
        (None, Union::SchemaOrBool) => allows.into(),
        (None, _) => several.into(),
    })
}

/// One occurrence of a repeated field: an item, or several packed numbers.
fn items_of(item: Typed<'_>, wire: Wire<'_>, depth: u32, list: &mut Vec<Value>) -> Result<(), Problem> {
    let number = matches!(item.get(), Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool));
    match wire {
        Wire::Bytes(packed) if number => {
            let mut reader = Reader(packed);
            while !reader.0.is_empty() {
                let varint = reader.varint()?;
                list.push(value_of(item, Wire::Varint(varint), depth)?);
            }
        }
        wire => list.push(value_of(item, wire, depth)?),
    }
    Ok(())
}

/// One entry of a map: a message of key and value.
fn entry_of(value: Typed<'_>, wire: Wire<'_>, depth: u32) -> Result<(String, Value), Problem> {
    let Wire::Bytes(bytes) = wire else { return Err("a map's entry is no message") };
    let (mut key, mut found) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(text)) => key = utf8(text)?,
            (2, wire) => found = Some(value_of(value, wire, depth)?),
            _ => {}
        }
    }
    // Some encoders leave out a value that is its type's zero.
    let empty = || match value.get() {
        Type::Struct(_) | Type::Map { .. } => Value::Object(Map::new()),
        Type::List { .. } => Value::Array(Vec::new()),
        Type::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
        Type::Scalar(Scalar::Quantity) => "0".into(),
        Type::Scalar(Scalar::Bool) => false.into(),
        Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString) => 0.into(),
        Type::Scalar(Scalar::Any | Scalar::Time | Scalar::MicroTime) => Value::Null,
    };
    Ok((key, found.unwrap_or_else(empty)))
}

/// One value.
fn value_of(ty: Typed<'_>, wire: Wire<'_>, depth: u32) -> Result<Value, Problem> {
    let scalar = match ty.get() {
        Type::Struct(_) => {
            let Wire::Bytes(bytes) = wire else { return Err("an object is no message") };
            return message_of(ty, bytes, depth + 1);
        }
        // A list within a list or map is a message whose first field repeats (`ExtraValue`).
        Type::List { item, .. } => {
            let Wire::Bytes(bytes) = wire else { return Err("a list is no message") };
            let mut list = Vec::new();
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    items_of(ty.of(*item), wire, depth + 1, &mut list)?;
                }
            }
            return Ok(list.into());
        }
        Type::Map { .. } => return Err("a map stands where the API has none"),
        Type::Scalar(scalar) => *scalar,
    };
    scalar_of(scalar, wire)
}

fn scalar_of(scalar: Scalar, wire: Wire<'_>) -> Result<Value, Problem> {
    Ok(match (scalar, wire) {
        (Scalar::String, Wire::Bytes(text)) => utf8(text)?.into(),
        (Scalar::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Scalar::Bool, Wire::Varint(number)) => (number != 0).into(),
        // Negative numbers are sign-extended to 64 bits on the wire.
        (Scalar::Int32 | Scalar::Int64, Wire::Varint(number)) => number.cast_signed().into(),
        (Scalar::Double, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Scalar::Time | Scalar::MicroTime, Wire::Bytes(message)) => time_of(message, scalar)?,
        (Scalar::Quantity, Wire::Bytes(message)) => match first_bytes(message, 1)? {
            Some(text) => utf8(text)?.into(),
            None => "0".into(),
        },
        (Scalar::IntOrString, Wire::Bytes(message)) => int_or_string(message)?,
        (Scalar::Any, Wire::Bytes(message)) => match first_bytes(message, 1)? {
            Some(json) => serde_json::from_slice(json).map_err(|_| "an embedded object is not JSON")?,
            None => Value::Null,
        },
        _ => return Err("a field has the wrong wire type"),
    })
}

fn first_bytes(message: &[u8], wanted: u32) -> Result<Option<&[u8]>, Problem> {
    let mut reader = Reader(message);
    while let Some((number, wire)) = reader.next()? {
        if let Wire::Bytes(bytes) = wire
            && number == wanted
        {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// Seconds and nanoseconds since 1970; an empty message is no time.
fn time_of(message: &[u8], scalar: Scalar) -> Result<Value, Problem> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader(message);
    while let Some((number, wire)) = reader.next()? {
        if let Wire::Varint(value) = wire {
            match number {
                1 => seconds = value.cast_signed(),
                2 => nanos = i32::try_from(value.cast_signed()).map_err(|_| "a time is out of range")?,
                _ => {}
            }
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| "a time is out of range")?;
    let format = if scalar == Scalar::MicroTime { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

fn int_or_string(message: &[u8]) -> Result<Value, Problem> {
    let (mut is_text, mut number, mut text) = (false, 0i64, String::new());
    let mut reader = Reader(message);
    while let Some(field) = reader.next()? {
        match field {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = utf8(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).expect("a short field");
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &meta), &field(2, raw)].concat()
    }

    #[test]
    fn the_epoch_is_a_time_and_nothing_is_none() {
        assert_eq!(time_of(b"", Scalar::Time), Ok(Value::Null));
        for message in [&[8, 0, 16, 0][..], &[16, 1]] {
            assert_eq!(time_of(message, Scalar::Time), Ok("1970-01-01T00:00:00Z".into()));
        }
    }

    #[test]
    fn a_config_map_is_what_json_would_say() {
        // ConfigMap: metadata 1 (name 1, generateName 2, creationTimestamp 8), data 2.
        let metadata = [field(1, b"a"), field(2, b""), field(8, b"")].concat();
        let entry = [field(1, b"k"), field(2, b"")].concat();
        let raw = [field(1, &metadata), field(2, &entry)].concat();
        let decoded = decode(Schema::builtin(), &body("v1", "ConfigMap", &raw)).unwrap();
        assert_eq!(
            decoded,
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "" } })
        );
    }

    #[test]
    fn zero_replicas_are_not_forgotten() {
        // Deployment: spec 2 (replicas 1 as a varint, minReadySeconds 5).
        let spec = [0x08, 0x00, 0x28, 0x00];
        let decoded = decode(Schema::builtin(), &body("apps/v1", "Deployment", &field(2, &spec))).unwrap();
        assert_eq!(decoded["spec"], json!({ "replicas": 0 }));
    }

    #[test]
    fn fields_of_embedded_messages_are_the_objects_own() {
        // Pod: spec 2 (volumes 1: name 1, volumeSource 2 (configMap 19 is two bytes of key, so secret 6: secretName 1)).
        let volume = [field(1, b"v"), field(2, &field(6, &field(1, b"s")))].concat();
        let raw = field(2, &field(1, &volume));
        let decoded = decode(Schema::builtin(), &body("v1", "Pod", &raw)).unwrap();
        let wanted = json!({ "volumes": [{ "name": "v", "secret": { "secretName": "s" } }] });
        assert_eq!(decoded["spec"], wanted);
        // Ingress: spec 2 (rules 3: host 1, ingressRuleValue 2 (http 1 (paths 1: path 1))).
        let rule = [field(1, b"h"), field(2, &field(1, &field(1, &field(1, b"/"))))].concat();
        let raw = field(2, &field(3, &rule));
        let decoded = decode(Schema::builtin(), &body("networking.k8s.io/v1", "Ingress", &raw)).unwrap();
        assert_eq!(
            decoded["spec"],
            json!({ "rules": [{ "host": "h", "http": { "paths": [{ "path": "/" }] } }] })
        );
    }

    #[test]
    fn garbage_is_an_error_and_no_more() {
        for garbage in
            [&b""[..], b"k8s\0\xff\xff\xff", b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"{}"]
        {
            assert!(decode(Schema::builtin(), garbage).is_err());
        }
        assert!(decode(Schema::builtin(), &body("v1", "Nothing", b"")).is_err());
    }
}
