//! Protobuf request bodies into JSON trees, driven by the schema's field numbers.
//!
//! Bodies are `k8s\0` followed by a `runtime.Unknown` message that names the kind. Clients that speak protobuf also take
//! JSON, so that answers need no encoder. Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::Status;
use crate::schema::{Field, Scalar, Schema, Struct, Type, Typed};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; the API's own types stay far below.
const DEPTH_MAX: u32 = 64;

/// Fields that tell absent from zero (pointers in upstream's Go types). All others are written by Go clients also where
/// they are zero, which JSON leaves out. Source: the types of `k8s.io/api`.
const ZERO_COUNTS: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "backoffLimit",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "privileged",
    "procMount",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "storageClassName",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];

/// Decodes a body: the object as JSON would have it, with `apiVersion` and `kind`.
pub fn decode(schema: &Schema, body: &[u8]) -> Result<Value, Status> {
    decode_envelope(schema, body).map_err(|problem| {
        Status::bad_request(format!("the body of the request is not valid protobuf: {problem}"))
    })
}

type Problem = &'static str;

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

/// The type of a kind; options (`DeleteOptions`) are sent under any group.
fn find<'s>(schema: &'s Schema, api_version: &str, kind: &str) -> Option<Typed<'s>> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let wanted = [group, version, kind];
    let is = |definition: &Struct| {
        definition
            .kind
            .as_ref()
            .is_some_and(|known| known.iter().zip(wanted).all(|(known, part)| known == part))
    };
    let by_kind =
        schema.definitions().find(|(_, id)| schema.structure(*id).is_some_and(is)).map(|(_, id)| id);
    let id = by_kind.or_else(|| schema.named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))?;
    Some(schema.typed(id))
}

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("it is cut short")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next field's number and value.
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Problem> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| "a field number is too large")?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| "it is cut short")?;
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some((number, wire)))
    }
}

fn utf8(bytes: &[u8]) -> Result<String, Problem> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a text is not UTF-8")
}

/// A message of a type with fields.
fn message_of(ty: Typed<'_>, bytes: &[u8], depth: u32) -> Result<Value, Problem> {
    let mut object = Map::new();
    fields_of(ty, 0, bytes, depth, &mut object)?;
    Ok(Value::Object(object))
}

/// The fields of a type that stand in its own message (`within` 0), or in the one that it embeds under that number.
fn fields_of(
    ty: Typed<'_>,
    within: u32,
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
        let place = (within, number);
        let field =
            definition.fields.iter().find(|field| number > 0 && (field.within, field.number) == place);
        match (field, wire) {
            (Some(field), wire) => field_of(ty, field, wire, depth, object)?,
            (None, Wire::Bytes(bytes))
                if within == 0
                    && number > 0
                    && definition.fields.iter().any(|field| field.within == number) =>
            {
                fields_of(ty, number, bytes, depth + 1, object)?;
            }
            _ => {}
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
            if says_something(&field.name, &value) {
                object.insert(field.name.to_string(), value);
            }
        }
    }
    Ok(())
}

/// Whether JSON would have the field.
fn says_something(name: &str, value: &Value) -> bool {
    let zero = match value {
        Value::Null => return false,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    !zero || ZERO_COUNTS.binary_search(&name).is_ok()
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
    let empty = || match value.get() {
        Type::Scalar(Scalar::String | Scalar::Bytes) => Value::String(String::new()),
        _ => Value::Null,
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
    let (mut seconds, mut nanos, mut said) = (0i64, 0i32, false);
    let mut reader = Reader(message);
    while let Some((number, wire)) = reader.next()? {
        if let Wire::Varint(value) = wire {
            said |= value != 0;
            match number {
                1 => seconds = value.cast_signed(),
                2 => nanos = i32::try_from(value.cast_signed()).map_err(|_| "a time is out of range")?,
                _ => {}
            }
        }
    }
    if !said {
        return Ok(Value::Null);
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
