//! Versions other than the stored one (retired ones, and the second group of Events), converted on the way in and back
//! on the way out. Nothing is lost in between: what the stored version cannot say is kept in annotations.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

/// No limit, as the old versions' defaults spelled it.
const UNLIMITED: i64 = i32::MAX as i64;

/// Where `spec.rollbackTo` is kept. Source: `apps.DeprecatedRollbackTo`.
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// What a client of a retired or deprecated version is warned with. `None`: the version is current.
pub fn deprecation(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    match (group, version, kind) {
        ("extensions", "v1beta1", "Deployment") => Some(
            "extensions/v1beta1 Deployment is deprecated in v1.9+, unavailable in v1.16+; use apps/v1 Deployment",
        ),
        ("extensions", "v1beta1", "Ingress") => Some(
            "extensions/v1beta1 Ingress is deprecated in v1.14+, unavailable in v1.22+; use networking.k8s.io/v1 Ingress",
        ),
        ("", "v1", "Endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        ("networking.k8s.io", "v1beta1", "Ingress") => Some(
            "networking.k8s.io/v1beta1 Ingress is deprecated in v1.19+, unavailable in v1.22+; use networking.k8s.io/v1 Ingress",
        ),
        _ => None,
    }
}

/// The group and version in which a kind is stored.
pub fn storage_version<'a>(group: &'a str, version: &'a str, kind: &str) -> (&'a str, &'a str) {
    match (group, kind) {
        ("extensions", "Deployment") => ("apps", "v1"),
        ("extensions" | "networking.k8s.io", "Ingress") => ("networking.k8s.io", "v1"),
        ("events.k8s.io", "Event") => ("", "v1"),
        _ => (group, version),
    }
}

/// Defaults of a retired version that differ from the stored one's or depend on other fields.
pub fn default(group: &str, kind: &str, object: &mut Value) {
    if (group, kind) != ("extensions", "Deployment") {
        return;
    }
    let labels =
        object.pointer("/spec/template/metadata/labels").filter(|labels| labels.is_object()).cloned();
    if let Some(labels) = &labels
        && object.pointer("/metadata/labels").and_then(Value::as_object).is_none_or(Map::is_empty)
        && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("labels".into(), labels.clone());
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let mut absent = |name: &str, value: Value| {
        if spec.get(name).is_none_or(Value::is_null) {
            spec.insert(name.to_owned(), value);
        }
    };
    absent("replicas", json!(1));
    absent("revisionHistoryLimit", json!(UNLIMITED));
    absent("progressDeadlineSeconds", json!(UNLIMITED));
    absent("strategy", json!({}));
    if let Some(labels) = labels {
        absent("selector", json!({"matchLabels": labels}));
    }
    let strategy = &mut spec["strategy"];
    if strategy.get("type").is_none_or(Value::is_null) {
        strategy["type"] = json!("RollingUpdate");
    }
    if strategy["type"] == "RollingUpdate" {
        for field in ["maxUnavailable", "maxSurge"] {
            if strategy["rollingUpdate"].get(field).is_none_or(Value::is_null) {
                strategy["rollingUpdate"][field] = json!(1);
            }
        }
    }
}

/// Converts an object between two versions of a kind, given as `group/version`.
pub fn convert(mut object: Value, kind: &str, from: &str, to: &str) -> Value {
    if from == to {
        return object;
    }
    object["apiVersion"] = json!(to);
    match (kind, is_old_ingress(from), is_old_ingress(to)) {
        ("Event", ..) if from == EVENTS => rename_event(&mut object, |(old, new)| (old, new)),
        ("Event", ..) if to == EVENTS => rename_event(&mut object, |(old, new)| (new, old)),
        ("Ingress", true, false) => ingress_to_v1(&mut object),
        ("Ingress", false, true) => ingress_from_v1(&mut object),
        ("Deployment", ..) if from == "extensions/v1beta1" => rollback_to_annotation(&mut object),
        ("Deployment", ..) if to == "extensions/v1beta1" => rollback_from_annotation(&mut object),
        _ => {}
    }
    object
}

/// The group in which Events have other names for their fields.
const EVENTS: &str = "events.k8s.io/v1";

/// What `events.k8s.io/v1` and `v1` call the same field. Source: `pkg/apis/events/v1/conversion.go`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename_event(
    object: &mut Value,
    way: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Some(fields) = object.as_object_mut() else { return };
    for (from, to) in EVENT_FIELDS.map(way) {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

/// The path in the stored version of a field that selectors of a version name.
pub fn selectable_path<'a>(group: &str, kind: &str, path: &'a str) -> Cow<'a, str> {
    match (group, kind, path) {
        ("events.k8s.io", "Event", "reportingController") => Cow::Borrowed("reportingComponent"),
        ("events.k8s.io", "Event", _) => match path.strip_prefix("regarding.") {
            Some(rest) => Cow::Owned(format!("involvedObject.{rest}")),
            None => Cow::Borrowed(path),
        },
        // The field is a structure, and the selector means the component in it.
        ("", "Event", "source") => Cow::Borrowed("source.component"),
        _ => Cow::Borrowed(path),
    }
}

fn is_old_ingress(api_version: &str) -> bool {
    matches!(api_version, "extensions/v1beta1" | "networking.k8s.io/v1beta1")
}

fn rollback_to_annotation(object: &mut Value) {
    let taken =
        object.get_mut("spec").and_then(Value::as_object_mut).and_then(|spec| spec.remove("rollbackTo"));
    let Some(rollback) = taken.filter(|value| !value.is_null()) else { return };
    let revision = rollback["revision"].as_i64().unwrap_or(0).to_string();
    object["metadata"]["annotations"][ROLLBACK_TO] = json!(revision);
}

fn rollback_from_annotation(object: &mut Value) {
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    let Some(revision) = annotations.and_then(|annotations| annotations.remove(ROLLBACK_TO)) else { return };
    let revision: i64 = revision.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    object["spec"]["rollbackTo"] = json!({"revision": revision});
}

/// Every backend of an ingress's rules.
fn each_backend(object: &mut Value, change: impl Fn(&mut Map<String, Value>)) {
    for rule in object.pointer_mut("/spec/rules").and_then(Value::as_array_mut).into_iter().flatten() {
        for path in rule.pointer_mut("/http/paths").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(backend) = path.get_mut("backend").and_then(Value::as_object_mut) {
                change(backend);
            }
        }
    }
}

fn rename(object: &mut Value, old: &str, new: &str) -> Option<()> {
    let spec = object.get_mut("spec")?.as_object_mut()?;
    let value = spec.remove(old)?;
    spec.insert(new.to_owned(), value);
    Some(())
}

fn ingress_to_v1(object: &mut Value) {
    let backend = |backend: &mut Map<String, Value>| {
        let (name, port) = (backend.remove("serviceName"), backend.remove("servicePort"));
        if name.is_none() && port.is_none() {
            return;
        }
        let mut service = json!({"name": name.unwrap_or(json!(""))});
        match port {
            Some(Value::String(port)) => service["port"] = json!({"name": port}),
            Some(Value::Number(port)) => service["port"] = json!({"number": port}),
            _ => {}
        }
        backend.insert("service".into(), service);
    };
    each_backend(object, backend);
    for rule in object.pointer_mut("/spec/rules").and_then(Value::as_array_mut).into_iter().flatten() {
        for path in rule.pointer_mut("/http/paths").and_then(Value::as_array_mut).into_iter().flatten() {
            if path.is_object() && path.get("pathType").is_none_or(Value::is_null) {
                path["pathType"] = json!("ImplementationSpecific");
            }
        }
    }
    rename(object, "backend", "defaultBackend");
    if let Some(default) = object.pointer_mut("/spec/defaultBackend").and_then(Value::as_object_mut) {
        backend(default);
    }
}

fn ingress_from_v1(object: &mut Value) {
    let backend = |backend: &mut Map<String, Value>| {
        let Some(service) = backend.remove("service") else { return };
        backend.insert("serviceName".into(), service["name"].clone());
        let port = &service["port"];
        let port = if port["number"].is_null() { &port["name"] } else { &port["number"] };
        if !port.is_null() {
            backend.insert("servicePort".into(), port.clone());
        }
    };
    each_backend(object, backend);
    rename(object, "defaultBackend", "backend");
    if let Some(default) = object.pointer_mut("/spec/backend").and_then(Value::as_object_mut) {
        backend(default);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_deployment_keeps_its_old_defaults() {
        let mut object = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "x"},
            "spec": {"strategy": {"rollingUpdate": {"maxSurge": 2}}, "template": {"metadata": {"labels": {"app": "x"}}}}});
        default("extensions", "Deployment", &mut object);
        let spec = &object["spec"];
        assert_eq!(spec["selector"], json!({"matchLabels": {"app": "x"}}));
        assert_eq!(object["metadata"]["labels"], json!({"app": "x"}));
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}})
        );
        assert_eq!(
            (&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
            (&json!(UNLIMITED), &json!(UNLIMITED))
        );
    }

    #[test]
    fn a_rollback_request_survives_the_round_trip() {
        let old = json!({"apiVersion": "extensions/v1beta1", "metadata": {"annotations": {"a": "b"}}, "spec": {"rollbackTo": {"revision": 3}}});
        let stored = convert(old.clone(), "Deployment", "extensions/v1beta1", "apps/v1");
        assert!(stored["spec"].get("rollbackTo").is_none());
        assert_eq!(convert(stored, "Deployment", "apps/v1", "extensions/v1beta1"), old);
    }

    #[test]
    fn an_old_ingress_becomes_a_new_one_and_back() {
        let old = json!({"apiVersion": "networking.k8s.io/v1beta1", "spec": {
            "backend": {"serviceName": "d", "servicePort": "http"},
            "rules": [{"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}});
        let new = convert(old.clone(), "Ingress", "networking.k8s.io/v1beta1", "networking.k8s.io/v1");
        assert_eq!(
            new["spec"]["defaultBackend"],
            json!({"service": {"name": "d", "port": {"name": "http"}}})
        );
        assert_eq!(
            new["spec"]["rules"][0]["http"]["paths"][0]["backend"],
            json!({"service": {"name": "s", "port": {"number": 80}}})
        );
        assert_eq!(convert(new, "Ingress", "networking.k8s.io/v1", "networking.k8s.io/v1beta1"), old);
    }

    #[test]
    fn an_event_is_one_object_in_both_groups() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "eventTime": "2026-01-01T00:00:00.000000Z",
            "regarding": {"kind": "Pod", "name": "p"}, "note": "hello", "reportingController": "example.com/c",
            "reportingInstance": "c-1", "action": "Look", "reason": "Seen", "type": "Normal",
            "deprecatedSource": {"component": "c"}, "deprecatedFirstTimestamp": "2026-01-01T00:00:00Z",
            "deprecatedLastTimestamp": "2026-01-02T00:00:00Z", "deprecatedCount": 2});
        let stored = convert(new.clone(), "Event", "events.k8s.io/v1", "v1");
        let expected = json!({"apiVersion": "v1", "kind": "Event", "eventTime": "2026-01-01T00:00:00.000000Z",
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "hello", "reportingComponent": "example.com/c",
            "reportingInstance": "c-1", "action": "Look", "reason": "Seen", "type": "Normal",
            "source": {"component": "c"}, "firstTimestamp": "2026-01-01T00:00:00Z",
            "lastTimestamp": "2026-01-02T00:00:00Z", "count": 2});
        assert_eq!(stored, expected);
        assert_eq!(convert(stored, "Event", "v1", "events.k8s.io/v1"), new);
        assert_eq!(selectable_path("events.k8s.io", "Event", "regarding.name"), "involvedObject.name");
        assert_eq!(selectable_path("", "Event", "source"), "source.component");
    }

    #[test]
    fn nonsense_does_not_panic() {
        for spec in [json!(null), json!([]), json!({"rules": [null, {"http": {"paths": [1]}}], "backend": 3})]
        {
            let object = json!({"metadata": {}, "spec": spec});
            convert(object.clone(), "Ingress", "extensions/v1beta1", "networking.k8s.io/v1");
            convert(object, "Ingress", "networking.k8s.io/v1", "extensions/v1beta1");
        }
    }
}
