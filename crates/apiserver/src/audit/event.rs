//! One event as it is written. Source: `audit.k8s.io/v1` Event.

use std::collections::BTreeMap;

use api::Status;
use api::connect::User;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::policy::{Level, Stage, Target};

/// An event.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    pub(super) kind: &'static str,
    pub(super) api_version: &'static str,
    pub(super) level: Level,
    #[serde(rename = "auditID")]
    pub(super) audit_id: String,
    pub(super) stage: Stage,
    #[serde(rename = "requestURI")]
    pub(super) request_uri: String,
    pub(super) verb: String,
    pub(super) user: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) impersonated_user: Option<Value>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub(super) source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object_ref: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_object: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_object: Option<Box<RawValue>>,
    pub(super) request_received_timestamp: String,
    pub(super) stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Event {
    /// About how much memory it takes, in bytes.
    pub(super) fn size(&self) -> usize {
        let body = |body: &Option<Box<RawValue>>| body.as_ref().map_or(0, |body| body.get().len());
        let said: usize = self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        1024 + self.request_uri.len() + said + body(&self.request_object) + body(&self.response_object)
    }

    /// The event as one line of JSON, without its end.
    pub(super) fn line(&self) -> Vec<u8> {
        // Nothing in it can fail to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A moment with microseconds, as `MicroTime` is written.
pub(super) fn micro_time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A user as events show it.
pub(super) fn user(user: &User) -> Value {
    let mut shown = json!({ "username": user.name });
    if !user.uid.is_empty() {
        shown["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        shown["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        shown["extra"] = user.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
    }
    shown
}

/// What a request was about.
pub(super) fn object_ref(target: &Target<'_>) -> Value {
    let parts = [
        ("resource", target.resource),
        ("namespace", target.namespace),
        ("name", target.name),
        ("apiGroup", target.group),
        ("apiVersion", target.version),
        ("subresource", target.subresource),
    ];
    parts
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.to_owned(), json!(text)))
        .collect()
}

/// How a request ended: the whole of a failure, the code of a success.
pub(super) fn response_status(code: u16, failure: Option<&Status>) -> Value {
    match failure {
        Some(status) => {
            let mut shown = status.to_json();
            if let Some(shown) = shown.as_object_mut() {
                shown.remove("kind");
                shown.remove("apiVersion");
            }
            shown
        }
        None => json!({ "metadata": {}, "code": code }),
    }
}

/// A body as events carry it; without managed fields if those are not wanted. What is no JSON is left out.
pub(super) fn body(bytes: &[u8], omit_managed_fields: bool) -> Option<Box<RawValue>> {
    if omit_managed_fields {
        let mut value: Value = serde_json::from_slice(bytes).ok()?;
        strip(&mut value);
        return serde_json::value::to_raw_value(&value).ok();
    }
    let text = std::str::from_utf8(bytes).ok()?;
    RawValue::from_string(text.to_owned()).ok()
}

/// A list as events carry it, of the bodies of its items.
pub(super) fn list<'a>(
    revision: i64,
    items: impl Iterator<Item = &'a [u8]>,
    omit_managed_fields: bool,
) -> Option<Box<RawValue>> {
    let items: Vec<Box<RawValue>> = items.filter_map(|item| body(item, omit_managed_fields)).collect();
    let list = json!({ "kind": "List", "metadata": { "resourceVersion": revision.to_string() } }).to_string();
    let mut text = list.trim_end_matches('}').to_owned() + "},\"items\":[";
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(item.get());
    }
    text.push_str("]}");
    RawValue::from_string(text).ok()
}

/// Removes the managed fields of an object, of a list's items and of a table's rows.
fn strip(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let items = value.get_mut("items").and_then(Value::as_array_mut);
    items.into_iter().flatten().for_each(strip);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_carried_as_they_are_or_without_managed_fields() {
        let list =
            br#"{"items":[{"metadata":{"name":"a","managedFields":[1]}}],"metadata":{"managedFields":[]}}"#;
        assert_eq!(body(list, false).unwrap().get().as_bytes(), list);
        assert_eq!(body(list, true).unwrap().get(), r#"{"items":[{"metadata":{"name":"a"}}],"metadata":{}}"#);
        let items = [&br#"{"metadata":{"name":"a","managedFields":[1]}}"#[..], br#"{"b":1}"#];
        assert_eq!(
            super::list(7, items.into_iter(), true).unwrap().get(),
            r#"{"kind":"List","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"}},{"b":1}]}"#
        );
        assert!(body(b"{\"a\":", false).is_none() && body(b"{\"a\":", true).is_none());
        assert_eq!(micro_time("2026-01-02T03:04:05.5Z".parse().unwrap()), "2026-01-02T03:04:05.500000Z");
    }
}
