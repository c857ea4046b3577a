//! Requests as HTTP: paths, queries and bodies of the Kubernetes API.

use std::fmt::Write;

use api::{
    Call, DeleteOptions, FieldValidation, ListOptions, PatchType, Propagation, Request, Status, WriteOptions,
};
use bytes::Bytes;
use http::{Method, header};
use http_body_util::Full;
use serde_json::{Value, json};

/// The request as the server's HTTP front takes it.
pub(super) fn http_request(request: &Request) -> Result<http::Request<Full<Bytes>>, Status> {
    let mut query = Query::default();
    let mut media = "application/json";
    let (method, body) = match &request.call {
        Call::Get { resource_version } => {
            query.add("resourceVersion", resource_version);
            (Method::GET, Bytes::new())
        }
        Call::List(options) => {
            query.list(options);
            (Method::GET, Bytes::new())
        }
        Call::Watch(options) => {
            query.add("watch", "true");
            query.list(options);
            (Method::GET, Bytes::new())
        }
        Call::Create { body, options } => {
            query.write(options);
            (Method::POST, body.clone())
        }
        Call::Update { body, options } => {
            query.write(options);
            (Method::PUT, body.clone())
        }
        Call::Patch { kind, body, options } => {
            query.write(options);
            media = media_type(*kind);
            (Method::PATCH, body.clone())
        }
        Call::Delete(options) => (Method::DELETE, delete_body(options)),
        Call::DeleteCollection(options, list) => {
            query.list(list);
            (Method::DELETE, delete_body(options))
        }
    };
    http::Request::builder()
        .method(method)
        .uri(format!("{}{}", path(request), query.text))
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, media)
        .body(Full::new(body))
        .map_err(|error| Status::bad_request(format!("cannot send {}: {error}", request.resource)))
}

fn media_type(kind: PatchType) -> &'static str {
    match kind {
        PatchType::Json => "application/json-patch+json",
        PatchType::Merge => "application/merge-patch+json",
        PatchType::StrategicMerge => "application/strategic-merge-patch+json",
        PatchType::Apply => "application/apply-patch+yaml",
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
            escape(&mut path, part);
        }
    }
    path
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
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
            escape(&mut self.text, value);
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
    let mut preconditions = serde_json::Map::new();
    if let Some(uid) = &options.precondition_uid {
        preconditions.insert("uid".to_owned(), uid.as_str().into());
    }
    if let Some(version) = &options.precondition_resource_version {
        preconditions.insert("resourceVersion".to_owned(), version.as_str().into());
    }
    if !preconditions.is_empty() {
        body["preconditions"] = Value::Object(preconditions);
    }
    body.to_string().into()
}

#[cfg(test)]
mod tests {
    use api::GroupVersionResource;

    use super::*;

    fn uri(resource: GroupVersionResource, namespace: &str, name: &str, sub: &str, call: Call) -> String {
        let request = Request {
            resource,
            namespace: namespace.into(),
            name: name.into(),
            subresource: sub.into(),
            call,
        };
        http_request(&request).unwrap().uri().to_string()
    }

    #[test]
    fn paths_and_queries_are_the_apis() {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let get = Call::Get { resource_version: String::new() };
        assert_eq!(uri(pods.clone(), "a", "b", "status", get), "/api/v1/namespaces/a/pods/b/status");
        let options = ListOptions {
            label_selector: "a in (b,c)".into(),
            allow_watch_bookmarks: true,
            send_initial_events: Some(true),
            ..ListOptions::default()
        };
        assert_eq!(
            uri(pods, "", "", "", Call::Watch(options)),
            "/api/v1/pods?watch=true&labelSelector=a%20in%20%28b%2Cc%29&allowWatchBookmarks=true&sendInitialEvents=true"
        );
        let deployments = GroupVersionResource::new("apps", "v1", "deployments");
        let options = WriteOptions { force: true, field_manager: "x".into(), ..WriteOptions::default() };
        let apply = Call::Patch { kind: PatchType::Apply, body: Bytes::new(), options };
        assert_eq!(
            uri(deployments, "a", "../b", "", apply),
            "/apis/apps/v1/namespaces/a/deployments/..%2Fb?fieldManager=x&force=true"
        );
    }
}
