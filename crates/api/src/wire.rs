//! Requests and answers as HTTP writes them: path, query and body; lists and failures. Source: the API's conventions for URLs, `metav1.DeleteOptions`.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::object::Object;
use crate::request::{
    Call, DeleteOptions, FieldValidation, List, ListOptions, Propagation, Request, WriteOptions,
};
use crate::status::{Details, Reason, Status};

/// Everything but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The path and query of a request.
pub fn path_and_query(request: &Request) -> String {
    let mut query = Query::default();
    match &request.call {
        Call::Get { resource_version } => query.add("resourceVersion", resource_version),
        Call::List(options) | Call::DeleteCollection(_, options) => query.list(options),
        Call::Watch(options) => {
            query.add("watch", "true");
            query.list(options);
        }
        Call::Create { options, .. } | Call::Update { options, .. } | Call::Patch { options, .. } => {
            query.write(options);
        }
        Call::Delete(_) => {}
    }
    path(request) + &query.text
}

/// The body of a request; empty where it has none.
pub fn body(call: &Call) -> Bytes {
    match call {
        Call::Get { .. } | Call::List(_) | Call::Watch(_) => Bytes::new(),
        Call::Create { body, .. } | Call::Update { body, .. } | Call::Patch { body, .. } => body.clone(),
        Call::Delete(options) | Call::DeleteCollection(options, _) => delete_body(options),
    }
}

fn path(request: &Request) -> String {
    let resource = &request.resource;
    let mut path = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let parts: [(&str, &str); 4] = [
        ("/namespaces/", &request.namespace),
        ("/", &resource.resource),
        ("/", &request.name),
        ("/", &request.subresource),
    ];
    for (before, part) in parts {
        if !part.is_empty() {
            path.push_str(before);
            path.extend(utf8_percent_encode(part, ESCAPED));
        }
    }
    path
}

#[derive(Default)]
struct Query {
    text: String,
}

impl Query {
    fn add(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text.push(if self.text.is_empty() { '?' } else { '&' });
            self.text.push_str(name);
            self.text.push('=');
            self.text.extend(utf8_percent_encode(value, ESCAPED));
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.add(name, "true");
        }
    }

    fn list(&mut self, options: &ListOptions) {
        self.add("labelSelector", &options.label_selector);
        self.add("metricLabelSelector", &options.metric_label_selector);
        self.add("fieldSelector", &options.field_selector);
        if options.limit > 0 {
            self.add("limit", &options.limit.to_string());
        }
        self.add("continue", &options.continue_token);
        self.add("resourceVersion", &options.resource_version);
        self.add("resourceVersionMatch", &options.resource_version_match);
        if let Some(seconds) = options.timeout_seconds {
            self.add("timeoutSeconds", &seconds.to_string());
        }
        self.flag("allowWatchBookmarks", options.allow_watch_bookmarks);
        if let Some(send) = options.send_initial_events {
            self.add("sendInitialEvents", if send { "true" } else { "false" });
        }
    }

    fn write(&mut self, options: &WriteOptions) {
        if options.dry_run {
            self.add("dryRun", "All");
        }
        self.add("fieldManager", &options.field_manager);
        // Warn is the server's default.
        match options.field_validation {
            FieldValidation::Ignore => self.add("fieldValidation", "Ignore"),
            FieldValidation::Strict => self.add("fieldValidation", "Strict"),
            FieldValidation::Warn => {}
        }
        self.flag("force", options.force);
    }
}

fn delete_body(options: &DeleteOptions) -> Bytes {
    let mut body = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
    if options.dry_run {
        body["dryRun"] = json!(["All"]);
    }
    if let Some(seconds) = options.grace_period_seconds {
        body["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(propagation) = options.propagation {
        body["propagationPolicy"] = match propagation {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        }
        .into();
    }
    let preconditions =
        [("uid", &options.precondition_uid), ("resourceVersion", &options.precondition_resource_version)];
    for (name, wanted) in preconditions {
        if let Some(wanted) = wanted {
            body["preconditions"][name] = wanted.as_str().into();
        }
    }
    body.to_string().into()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TypeHead {
    api_version: String,
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: String,
    remaining_item_count: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListBody<'a> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

/// A list as a server answers it; its items have their type though the list says it only once.
///
/// # Errors
/// If it cannot be read.
pub fn list(body: &Bytes) -> Result<List, serde_json::Error> {
    let list: ListBody<'_> = serde_json::from_slice(body)?;
    let kind = list.kind.strip_suffix("List").unwrap_or(&list.kind);
    let items = list.items.unwrap_or_default().into_iter().map(|item| {
        let bytes = typed(body, item.get(), &list.api_version, kind)?;
        Object::parse(bytes).map(Into::into)
    });
    Ok(List {
        items: items.collect::<Result<_, _>>()?,
        revision: list.metadata.resource_version.parse().unwrap_or(0),
        continue_token: list.metadata.continue_token,
        remaining: list.metadata.remaining_item_count,
    })
}

/// An item's bytes with the type that lists say only once.
fn typed(body: &Bytes, item: &str, api_version: &str, kind: &str) -> Result<Bytes, serde_json::Error> {
    let head: TypeHead = serde_json::from_str(item)?;
    if !head.kind.is_empty() && !head.api_version.is_empty() {
        return Ok(body.slice_ref(item.as_bytes()));
    }
    let rest = item.trim_start().strip_prefix('{').unwrap_or("}").trim_start();
    let comma = if rest.starts_with('}') { "" } else { "," };
    let (api_version, kind) = (serde_json::Value::from(api_version), serde_json::Value::from(kind));
    Ok(format!("{{\"apiVersion\":{api_version},\"kind\":{kind}{comma}{rest}").into())
}

#[derive(Deserialize)]
struct StatusBody {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    reason: Option<Reason>,
    message: String,
    #[serde(default)]
    details: Option<Box<Details>>,
}

/// The `Status` in a refusal, or one made of its HTTP code.
pub fn failure(code: u16, body: &[u8]) -> Status {
    if let Ok(status) = serde_json::from_slice::<StatusBody>(body) {
        return Status {
            code: if status.code == 0 { code } else { status.code },
            reason: status.reason.unwrap_or_else(|| reason_of(code)),
            message: status.message,
            details: status.details.unwrap_or_default(),
        };
    }
    let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
    Status { code, ..Status::new(reason_of(code), format!("the server answered {code}: {}", text.trim())) }
}

fn reason_of(code: u16) -> Reason {
    match code {
        400 => Reason::BadRequest,
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        405 => Reason::MethodNotAllowed,
        409 => Reason::Conflict,
        410 => Reason::Expired,
        422 => Reason::Invalid,
        429 => Reason::TooManyRequests,
        503 => Reason::ServiceUnavailable,
        504 => Reason::Timeout,
        500 => Reason::InternalError,
        _ => Reason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::GroupVersionResource;
    use crate::request::PatchType;

    fn written(resource: GroupVersionResource, namespace: &str, name: &str, sub: &str, call: Call) -> String {
        let (namespace, name, subresource) = (namespace.into(), name.into(), sub.into());
        path_and_query(&Request { resource, namespace, name, subresource, call })
    }

    #[test]
    fn paths_and_queries_are_the_apis() {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let get = Call::Get { resource_version: String::new() };
        assert_eq!(written(pods.clone(), "a", "b", "status", get), "/api/v1/namespaces/a/pods/b/status");
        let options = ListOptions {
            label_selector: "a in (b,c)".into(),
            allow_watch_bookmarks: true,
            send_initial_events: Some(true),
            ..ListOptions::default()
        };
        assert_eq!(
            written(pods, "", "", "", Call::Watch(options)),
            "/api/v1/pods?watch=true&labelSelector=a%20in%20%28b%2Cc%29&allowWatchBookmarks=true&sendInitialEvents=true"
        );
        let deployments = GroupVersionResource::new("apps", "v1", "deployments");
        let options = WriteOptions { force: true, field_manager: "x".into(), ..WriteOptions::default() };
        let apply = Call::Patch { kind: PatchType::Apply, body: Bytes::new(), options };
        assert_eq!(
            written(deployments, "a", "../b", "", apply),
            "/apis/apps/v1/namespaces/a/deployments/..%2Fb?fieldManager=x&force=true"
        );
    }

    #[test]
    fn deletions_carry_their_options() {
        let of = |options| serde_json::from_slice::<Value>(&body(&Call::Delete(options))).unwrap();
        let plain = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
        assert_eq!(of(DeleteOptions::default()), plain);
        let options = DeleteOptions {
            dry_run: true,
            grace_period_seconds: Some(0),
            propagation: Some(Propagation::Background),
            precondition_uid: Some("u".into()),
            precondition_resource_version: Some("7".into()),
            ..DeleteOptions::default()
        };
        let wanted = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"], "gracePeriodSeconds": 0,
            "propagationPolicy": "Background", "preconditions": { "uid": "u", "resourceVersion": "7" } });
        assert_eq!(of(options), wanted);
    }

    #[test]
    fn lists_give_typed_items() {
        let body = Bytes::from_static(
            br#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"c"},
                "items":[{"metadata":{"name":"a"}},{"kind":"Pod","apiVersion":"v1","metadata":{"name":"b"}}]}"#,
        );
        let list = list(&body).unwrap();
        assert_eq!((list.revision, list.continue_token.as_str(), list.items.len()), (7, "c", 2));
        let first: serde_json::Value = list.items[0].decode().unwrap();
        assert_eq!((&first["kind"], &first["apiVersion"]), (&"Pod".into(), &"v1".into()));
        assert_eq!(list.items[1].meta().name, "b");
    }

    #[test]
    fn refusals_are_statuses_whatever_they_say() {
        assert_eq!(failure(502, b"<html>bad gateway").code, 502);
        let body = Status::not_found("", "pods", "x").to_json().to_string();
        assert_eq!(failure(404, body.as_bytes()), Status::not_found("", "pods", "x"));
    }

    #[test]
    fn a_list_may_have_no_items_as_go_writes_it() {
        assert!(list(&Bytes::from_static(br#"{"kind":"PodList","items":null}"#)).unwrap().items.is_empty());
    }
}
