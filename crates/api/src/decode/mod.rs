//! Bodies of requests to JSON trees, checked against the schema: types are enforced, unknown and repeated fields are
//! reported and dropped, numbers, quantities and times take their canonical form. Source: `sigs.k8s.io/json` and
//! KEP-2885 (server-side field validation).

mod plain;
mod scalar;
mod syntax;
mod walk;
mod yaml;

use serde::de::DeserializeSeed as _;
use serde_json::Value;

use crate::catalog::Row;
use crate::request::FieldValidation;
use crate::schema::Typed;
use crate::status::Status;

pub use plain::is_plain_json;
pub use syntax::syntax_error;
pub use yaml::yaml_to_json;

/// The largest body that is decoded. Source: upstream's `MaxRequestBodyBytes`.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Values nest so deep at most. Source: `maxNestingDepth` of Go's `encoding/json`.
const DEPTH_MAX: usize = 10_000;

/// What a body held.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The tree, without unknown fields.
    pub value: Value,
    /// Unknown and repeated fields, in upstream's words: `unknown field "spec.foo"`. At most 100.
    pub problems: Vec<String>,
}

/// How a value is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// As typed objects are: absent, null and empty optional lists and maps are one and the same.
    #[default]
    Object,
    /// As apply configurations are: an empty list or map is something that the configuration says.
    Configuration,
}

/// Decodes JSON as a type; the failure is upstream's message.
pub fn json(body: &[u8], ty: Typed<'_>, mode: Mode) -> Result<Decoded, String> {
    if body.len() > BODY_BYTES_MAX {
        return Err(format!("the body is larger than {BODY_BYTES_MAX} bytes"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut notes = walk::Notes::default();
    let read = walk::Seed::root(ty, mode, &mut notes).deserialize(&mut deserializer);
    let value = match (read, notes.mismatch.take()) {
        (_, Some(mismatch)) => return Err(mismatch),
        (Err(error), None) => return Err(format!("json: {error}")),
        (Ok(value), None) => value.unwrap_or(Value::Null),
    };
    deserializer.end().map_err(|error| format!("json: {error}"))?;
    // What is dropped may be of any depth; what is kept is not.
    if !notes.problems.is_empty()
        && let Some(problem) = too_deep(body)
    {
        return Err(problem);
    }
    Ok(Decoded { value, problems: notes.problems })
}

/// Checks a tree against a type, as [`json`] does with text. A tree cannot repeat a field.
pub fn value(tree: Value, ty: Typed<'_>, mode: Mode) -> Result<Decoded, String> {
    let mut notes = walk::Notes::default();
    let read = walk::Seed::root(ty, mode, &mut notes).deserialize(tree);
    match (read, notes.mismatch.take()) {
        (_, Some(mismatch)) => Err(mismatch),
        (Err(error), None) => Err(format!("json: {error}")),
        (Ok(value), None) => Ok(Decoded { value: value.unwrap_or(Value::Null), problems: notes.problems }),
    }
}

/// Decodes the body of a request for a row: an object with `apiVersion` and `kind` filled in, and the warnings to send.
/// Another version or kind than the row's, wrong types and, if strict, unknown fields are the client's fault (400).
pub fn object(
    row: &Row,
    body: &[u8],
    validation: FieldValidation,
    mode: Mode,
) -> Result<(Value, Vec<String>), Status> {
    let decoded = json(body, type_of(row), mode);
    let decoded = decoded.map_err(|problem| unreadable(body, &row.api_version(), &row.kind, &problem));
    of_row(row, decoded, validation)
}

/// [`object`] from a tree: what a patch has made of an object.
pub fn tree(
    row: &Row,
    tree: Value,
    validation: FieldValidation,
    mode: Mode,
) -> Result<(Value, Vec<String>), Status> {
    let decoded = value(tree, type_of(row), mode);
    of_row(row, decoded.map_err(|problem| refused(&row.api_version(), &row.kind, &problem)), validation)
}

/// Containers within containers of what is read from JSON at most: serde_json reads no deeper.
pub const NESTING_MAX: usize = 127;

/// Whether a value nests so many containers at most: what is stored deeper could not be read again.
pub fn nests_within(value: &Value, containers: usize) -> bool {
    let below = |value: &Value| containers > 0 && nests_within(value, containers - 1);
    match value {
        Value::Array(items) => containers > 0 && items.iter().all(below),
        Value::Object(members) => containers > 0 && members.values().all(below),
        _ => true,
    }
}

fn type_of(row: &Row) -> Typed<'_> {
    row.custom.as_ref().map_or_else(|| row.typed(), |custom| custom.envelope(&row.schema))
}

fn of_row(
    row: &Row,
    decoded: Result<Decoded, Status>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let (api_version, kind) = (row.api_version(), row.kind.as_ref());
    let mut decoded = decoded?;
    if let Some(custom) = &row.custom {
        decoded.problems.extend(custom.prune(&mut decoded.value));
    }
    checked(decoded, &api_version, kind, validation)
}

/// [`object`] for a type that is not a row: a subresource's kind.
pub fn kind(
    ty: Typed<'_>,
    api_version: &str,
    kind: &str,
    body: &[u8],
    validation: FieldValidation,
    mode: Mode,
) -> Result<(Value, Vec<String>), Status> {
    let decoded = json(body, ty, mode).map_err(|problem| unreadable(body, api_version, kind, &problem))?;
    checked(decoded, api_version, kind, validation)
}

/// What was decoded is of the kind, and says nothing that it may not.
fn checked(
    decoded: Decoded,
    api_version: &str,
    kind: &str,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let (mut object, problems) = (decoded.value, decoded.problems);
    let Value::Object(fields) = &mut object else {
        return Err(Status::bad_request("the body of the request is not an object"));
    };
    for (name, wanted) in [("apiVersion", api_version), ("kind", kind)] {
        let given = fields.entry(name).or_insert_with(|| wanted.into());
        let what = if name == "kind" { "kind" } else { "API version" };
        if given.as_str() == Some("") {
            *given = wanted.into();
        } else if given.as_str() != Some(wanted) {
            return Err(Status::bad_request(format!(
                "the {what} in the data ({}) does not match the expected {what} ({wanted})",
                given.as_str().unwrap_or_default()
            )));
        }
    }
    match validation {
        FieldValidation::Ignore => Ok((object, Vec::new())),
        FieldValidation::Warn => Ok((object, problems)),
        FieldValidation::Strict if problems.is_empty() => Ok((object, problems)),
        FieldValidation::Strict => {
            Err(refused(api_version, kind, &format!("strict decoding error: {}", problems.join(", "))))
        }
    }
}

/// What is not JSON says nothing of what it is. Source: `transformDecodeError` in `apiserver/pkg/endpoints/handlers`.
fn unreadable(body: &[u8], api_version: &str, kind: &str, problem: &str) -> Status {
    let cause = match (serde_json::from_slice::<serde::de::IgnoredAny>(body), too_deep(body)) {
        (Err(error), _) if error.is_eof() => "unexpected end of JSON input".to_owned(),
        (Err(error), _) => error.to_string(),
        (Ok(_), Some(depth)) => depth,
        (Ok(_), None) => return refused(api_version, kind, problem),
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: \
         {cause} ({})",
        summary(body)
    ))
}

/// What is wrong with JSON that nests deeper than [`DEPTH_MAX`], in Go's words.
fn too_deep(body: &[u8]) -> Option<String> {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Some(format!("invalid character '{}' exceeded max depth", char::from(*byte)));
        }
    }
    None
}

/// How a body begins.
fn summary(body: &[u8]) -> String {
    const SHOWN_MAX: usize = 30;
    let start = &body[..body.len().min(SHOWN_MAX)];
    let more = if body.len() > SHOWN_MAX { " ..." } else { "" };
    match start.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => start.iter().map(|byte| format!("{byte:02x}")).chain([more.to_owned()]).collect(),
    }
}

fn refused(api_version: &str, kind: &str, problem: &str) -> Status {
    let version = api_version.rsplit_once('/').map_or(api_version, |(_, version)| version);
    Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {problem}"))
}

#[cfg(test)]
mod tests;
