//! Conversions by hand, and of generated objects of every version that is not stored.

use serde_json::{Value, json};

use super::*;
use crate::catalog::{Catalog, Row};
use crate::generate::Generator;
use crate::schema::Schema;

fn defaulted(api_version: &str, kind: &str, mut object: Value) -> Value {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    default(group, version, kind, &mut object);
    let schema = Schema::builtin();
    let ty = schema.of_kind(group, version, kind).expect("a kind");
    crate::defaults::apply(&mut object, schema.typed(ty));
    object
}

fn converted_rows() -> Vec<Row> {
    let catalog = Catalog::builtin();
    catalog.rows().filter(|row| !row.is_storage_version()).map(|row| Row::clone(row)).collect()
}

/// What of one value is not in another, as paths. Order in lists of metrics is not kept where a version knows one of
/// them by a field of its own.
fn lost(before: &Value, after: &Value, path: &str, out: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                lost(value, after.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"), out);
            }
        }
        (Value::Array(one), Value::Array(other))
            if one.len() == other.len() && path.ends_with(".metrics") =>
        {
            let missing = one.iter().filter(|item| !other.contains(item));
            out.extend(missing.map(|item| format!("{path}: {item}")));
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (one, other)) in before.iter().zip(after).enumerate() {
                lost(one, other, &format!("{path}[{index}]"), out);
            }
        }
        _ if before == after => {}
        _ => out.push(format!("{path}: {before} became {after}")),
    }
}

/// Makes a generated object one that its own version could have accepted: what a union's parts contradict each other in
/// is no conversion's concern.
fn consistent(kind: &str, object: &mut Value) {
    if kind == "HorizontalPodAutoscaler" {
        each(object, "spec.metrics[]", &mut |metric| {
            for source in ["object", "pods", "resource", "containerResource", "external"] {
                let Some(target) = metric.get_mut(source).and_then(|source| source.get_mut("target")) else {
                    continue;
                };
                // One number each, and the type that says which.
                if target.get("type").is_some() {
                    *target = match source {
                        "object" | "external" => json!({"type": "Value", "value": "7m"}),
                        _ => json!({"type": "AverageValue", "averageValue": "7m"}),
                    };
                }
            }
        });
    }
    if kind == "HorizontalPodAutoscaler" {
        each(object, "status.currentMetrics[]", &mut |metric| {
            for source in ["object", "pods", "resource", "containerResource", "external"] {
                if let Some(current) = metric.get_mut(source).and_then(|source| source.get_mut("current")) {
                    *current = json!({"averageValue": "7m"});
                }
            }
        });
    }
    if kind == "Ingress" {
        let one_port = |backend: &mut Value| {
            if let Some(port) = backend.pointer_mut("/service/port") {
                *port = json!({"number": 80});
            }
        };
        each(object, "spec.defaultBackend", &mut { one_port });
        each(object, "spec.rules[].http.paths[].backend", &mut { one_port });
    }
    let object_is_stored = object["apiVersion"] == "apiextensions.k8s.io/v1";
    // A definition has versions, and the old name of one is the first of them.
    if kind == "CustomResourceDefinition"
        && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.remove("version");
        // Only the old version says so there, and always says which.
        if object_is_stored {
            spec.remove("preserveUnknownFields");
        }
        spec.entry("versions").or_insert_with(|| json!([{"name": "v1", "served": true, "storage": true}]));
    }
}

#[test]
fn every_version_comes_back_from_storage_as_it_was() {
    for row in converted_rows() {
        for seed in 0..24 {
            let (served, stored) = (row.api_version(), row.storage_api_version());
            let mut object = Generator::new(seed).object(row.typed(), &served, &row.kind);
            consistent(&row.kind, &mut object);
            let object = defaulted(&served, &row.kind, object);
            let there = convert(object.clone(), &row.kind, &served, &stored);
            assert_eq!(there["apiVersion"], json!(stored));
            let back = convert(there.clone(), &row.kind, &stored, &served);
            let mut differences = Vec::new();
            lost(&object, &back, "", &mut differences);
            // A definition says once what its versions share.
            differences
                .retain(|path| row.kind != "CustomResourceDefinition" || !path.starts_with(".spec.versions"));
            assert!(differences.is_empty(), "{served} {}, seed {seed}: {differences:#?}", row.kind);
            let again = convert(back, &row.kind, &served, &stored);
            assert_eq!(again, there, "{served} {}, seed {seed}: a second time differs", row.kind);
        }
    }
}

#[test]
fn what_is_stored_comes_back_from_every_version_as_it_was() {
    for row in converted_rows() {
        for seed in 0..24 {
            let (served, stored) = (row.api_version(), row.storage_api_version());
            let schema = Schema::builtin();
            let ty = schema.of_kind(&row.storage_group, &row.storage_version, &row.kind).expect("a kind");
            let mut object = Generator::new(seed).object(schema.typed(ty), &stored, &row.kind);
            consistent(&row.kind, &mut object);
            let object = defaulted(&stored, &row.kind, object);
            let shown = convert(object.clone(), &row.kind, &stored, &served);
            let back = convert(shown, &row.kind, &served, &stored);
            let mut differences = Vec::new();
            lost(&object, &back, "", &mut differences);
            assert!(differences.is_empty(), "{served} {}, seed {seed}: {differences:#?}", row.kind);
        }
    }
}

#[test]
fn what_a_version_shows_is_of_its_schema() {
    for row in converted_rows() {
        for seed in 0..8 {
            let schema = Schema::builtin();
            let ty = schema.of_kind(&row.storage_group, &row.storage_version, &row.kind).expect("a kind");
            let mut object =
                Generator::new(seed).object(schema.typed(ty), &row.storage_api_version(), &row.kind);
            consistent(&row.kind, &mut object);
            let shown = convert(object, &row.kind, &row.storage_api_version(), &row.api_version());
            let mut unknown = Vec::new();
            unknown_fields(&shown, row.typed(), "", &mut unknown);
            unknown.retain(|path| !(row.kind == "PodCertificateRequest" && path.starts_with(".spec.")));
            assert!(unknown.is_empty(), "{} {}: {unknown:?}", row.api_version(), row.kind);
        }
    }
}

fn unknown_fields(value: &Value, ty: crate::schema::Typed<'_>, path: &str, out: &mut Vec<String>) {
    use crate::schema::Type;
    match (ty.get(), value) {
        (Type::Struct(_), Value::Object(fields)) => {
            for (name, value) in fields {
                match ty.child(name) {
                    Some(child) => unknown_fields(value, child, &format!("{path}.{name}"), out),
                    None => out.push(format!("{path}.{name}")),
                }
            }
        }
        (Type::List { item, .. }, Value::Array(items)) => {
            items.iter().for_each(|value| unknown_fields(value, ty.of(*item), path, out));
        }
        (Type::Map { value: element, .. }, Value::Object(entries)) => {
            entries.values().for_each(|value| unknown_fields(value, ty.of(*element), path, out));
        }
        _ => {}
    }
}

#[test]
fn an_old_workload_keeps_its_old_defaults() {
    let template = json!({"metadata": {"labels": {"app": "x"}}});
    let old = |api_version: &str, kind: &str, spec: Value| {
        let mut object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
        object["spec"]["template"] = template.clone();
        defaulted(api_version, kind, object)
    };
    let object =
        old("extensions/v1beta1", "Deployment", json!({"strategy": {"rollingUpdate": {"maxSurge": 2}}}));
    let spec = &object["spec"];
    assert_eq!(spec["selector"], json!({"matchLabels": {"app": "x"}}));
    assert_eq!(object["metadata"]["labels"], json!({"app": "x"}));
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}})
    );
    assert_eq!(
        (&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
        (&json!(i32::MAX), &json!(i32::MAX))
    );
    let object = old("apps/v1beta1", "Deployment", json!({}));
    assert_eq!(object["spec"]["revisionHistoryLimit"], 2);
    assert_eq!(object["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    let object = old("apps/v1beta1", "StatefulSet", json!({}));
    assert_eq!(object["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    let object = old("extensions/v1beta1", "DaemonSet", json!({"updateStrategy": {"type": "RollingUpdate"}}));
    assert_eq!(object["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    let object = old("extensions/v1beta1", "DaemonSet", json!({}));
    assert_eq!(object["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    let object = old("apps/v1beta2", "Deployment", json!({}));
    assert!(object["spec"].get("selector").is_none());
    assert_eq!(object["spec"]["revisionHistoryLimit"], 10);
}

#[test]
fn an_old_webhook_keeps_its_old_defaults() {
    let (version, kind) = ("admissionregistration.k8s.io/v1beta1", "ValidatingWebhookConfiguration");
    let object = defaulted(version, kind, json!({"webhooks": [{"name": "w"}]}));
    let hook = &object["webhooks"][0];
    assert_eq!((&hook["failurePolicy"], &hook["matchPolicy"]), (&json!("Ignore"), &json!("Exact")));
    assert_eq!((&hook["timeoutSeconds"], &hook["sideEffects"]), (&json!(30), &json!("Unknown")));
    assert_eq!(hook["admissionReviewVersions"], json!(["v1beta1"]));
}

#[test]
fn a_rollback_request_survives_the_round_trip() {
    let old = json!({"apiVersion": "extensions/v1beta1", "metadata": {"annotations": {"a": "b"}}, "spec": {"rollbackTo": {"revision": 3}}});
    let stored = convert(old.clone(), "Deployment", "extensions/v1beta1", "apps/v1");
    assert!(stored["spec"].get("rollbackTo").is_none());
    assert_eq!(stored["metadata"]["annotations"]["deprecated.deployment.rollback.to"], "3");
    assert_eq!(convert(stored, "Deployment", "apps/v1", "extensions/v1beta1"), old);
    let odd = json!({"apiVersion": "apps/v1", "spec": {}, "metadata": {"annotations": {"deprecated.deployment.rollback.to": "x"}}});
    let shown = convert(odd.clone(), "Deployment", "apps/v1", "extensions/v1beta1");
    assert_eq!(convert(shown, "Deployment", "extensions/v1beta1", "apps/v1"), odd);
}

#[test]
fn an_old_ingress_becomes_a_new_one_and_back() {
    let old = json!({"apiVersion": "networking.k8s.io/v1beta1", "spec": {
        "backend": {"serviceName": "d", "servicePort": "http"},
        "rules": [{"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}});
    let new = convert(old.clone(), "Ingress", "networking.k8s.io/v1beta1", "networking.k8s.io/v1");
    assert_eq!(new["spec"]["defaultBackend"], json!({"service": {"name": "d", "port": {"name": "http"}}}));
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
    let stored =
        json!({"apiVersion": "v1", "kind": "Event", "reportingComponent": "", "reportingInstance": ""});
    assert_eq!(
        convert(stored, "Event", "v1", "events.k8s.io/v1"),
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event"})
    );
    assert_eq!(selectable_path("events.k8s.io", "Event", "regarding.name"), "involvedObject.name");
    assert_eq!(selectable_path("", "Event", "source"), "source.component");
}

#[test]
fn an_autoscaler_is_one_object_in_four_versions() {
    let stored = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {
        "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
            {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "1k"}}}],
        "behavior": {"scaleDown": {"selectPolicy": "Max", "tolerance": "50m"}}}});
    let shown = |version: &str| convert(stored.clone(), "HorizontalPodAutoscaler", "autoscaling/v2", version);
    let v1 = shown("autoscaling/v1");
    assert_eq!(v1["spec"], json!({"targetCPUUtilizationPercentage": 50}));
    assert_eq!(
        v1["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"],
        r#"[{"pods":{"metricName":"rps","targetAverageValue":"1k"},"type":"Pods"}]"#
    );
    let flat = shown("autoscaling/v2beta1");
    assert_eq!(
        flat["spec"]["metrics"][0]["resource"],
        json!({"name": "cpu", "targetAverageUtilization": 50})
    );
    assert!(flat["metadata"]["annotations"].get("autoscaling.alpha.kubernetes.io/behavior").is_some());
    let deep = shown("autoscaling/v2beta2");
    assert_eq!(deep["spec"]["behavior"], json!({"scaleDown": {"selectPolicy": "Max"}}));
    for version in [flat, deep] {
        let from = version["apiVersion"].as_str().expect("a version").to_owned();
        assert_eq!(convert(version, "HorizontalPodAutoscaler", &from, "autoscaling/v2"), stored);
    }
}

#[test]
fn an_empty_selector_of_a_budget_keeps_its_meaning() {
    let budget = |api_version: &str, selector: Value| json!({"apiVersion": api_version, "spec": {"selector": selector}});
    let label = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";
    let nothing = json!({"matchExpressions": [{"key": label, "operator": "Exists"}]});
    let old = budget("policy/v1beta1", json!({}));
    let stored = convert(old.clone(), "PodDisruptionBudget", "policy/v1beta1", "policy/v1");
    assert_eq!(stored, budget("policy/v1", nothing));
    assert_eq!(convert(stored, "PodDisruptionBudget", "policy/v1", "policy/v1beta1"), old);
    let all = convert(budget("policy/v1", json!({})), "PodDisruptionBudget", "policy/v1", "policy/v1beta1");
    assert_eq!(all["spec"]["selector"]["matchExpressions"][0]["operator"], "DoesNotExist");
}

#[test]
fn an_old_definition_is_stored_with_the_schema_that_it_has() {
    let (old, stored) = ("apiextensions.k8s.io/v1beta1", "apiextensions.k8s.io/v1");
    let schema = json!({"properties": {"spec": {"required": ["x"], "properties": {"x": {"type": "string"}, "any": {}}}}});
    let object = json!({"apiVersion": old, "spec": {"group": "example.com", "version": "v1", "names": {"kind": "Widget"},
        "validation": {"openAPIV3Schema": schema}}});
    let there =
        convert(defaulted(old, "CustomResourceDefinition", object), "CustomResourceDefinition", old, stored);
    assert_eq!(there["spec"]["preserveUnknownFields"], true);
    assert_eq!(there["spec"]["versions"][0]["schema"]["openAPIV3Schema"], schema);
}

#[test]
fn an_old_definition_says_for_each_version_what_it_said_for_all() {
    let (old, stored) = ("apiextensions.k8s.io/v1beta1", "apiextensions.k8s.io/v1");
    let object = json!({"apiVersion": old, "spec": {"group": "example.com", "version": "v1", "names": {"kind": "Widget"},
        "validation": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}},
        "additionalPrinterColumns": [{"name": "Size", "type": "integer", "JSONPath": ".spec.size"}],
        "preserveUnknownFields": false,
        "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://x"}}}});
    let object = defaulted(old, "CustomResourceDefinition", object);
    assert_eq!(object["spec"]["scope"], "Namespaced");
    let there = convert(object.clone(), "CustomResourceDefinition", old, stored);
    let version = &there["spec"]["versions"][0];
    assert_eq!(version["schema"]["openAPIV3Schema"]["type"], "object");
    assert_eq!(version["additionalPrinterColumns"][0]["jsonPath"], ".spec.size");
    assert_eq!(
        there["spec"]["conversion"]["webhook"],
        json!({"clientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1beta1"]})
    );
    assert_eq!(convert(there, "CustomResourceDefinition", stored, old), object);
    let bare = json!({"apiVersion": old, "spec": {"version": "v1"}});
    let bare = defaulted(old, "CustomResourceDefinition", bare);
    assert_eq!(bare["spec"]["preserveUnknownFields"], true);
    let there = convert(bare, "CustomResourceDefinition", old, stored);
    assert_eq!(there["spec"]["preserveUnknownFields"], true);
    assert!(there["spec"]["versions"][0].get("schema").is_none());
    assert_eq!(
        convert(there, "CustomResourceDefinition", stored, old)["spec"]["preserveUnknownFields"],
        true
    );
}

#[test]
fn a_device_of_an_older_version_is_one_of_the_newer() {
    let old = json!({"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": [{"name": "d", "basic": {"capacity": {}, "nodeName": "n"}}]}});
    let stored = convert(old.clone(), "ResourceSlice", "resource.k8s.io/v1beta1", "resource.k8s.io/v1");
    assert_eq!(stored["spec"]["devices"][0], json!({"name": "d", "capacity": {}, "nodeName": "n"}));
    assert_eq!(convert(stored, "ResourceSlice", "resource.k8s.io/v1", "resource.k8s.io/v1beta1"), old);
    let old = json!({"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": {"requests": [
        {"name": "a", "deviceClassName": "c", "count": 2}, {"name": "b", "firstAvailable": [{"name": "x"}]}]}}});
    let stored = convert(old.clone(), "ResourceClaim", "resource.k8s.io/v1beta1", "resource.k8s.io/v1");
    assert_eq!(
        stored["spec"]["devices"]["requests"],
        json!([{"name": "a", "exactly": {"deviceClassName": "c", "count": 2}}, {"name": "b", "firstAvailable": [{"name": "x"}]}])
    );
    assert_eq!(convert(stored, "ResourceClaim", "resource.k8s.io/v1", "resource.k8s.io/v1beta1"), old);
}

#[test]
fn nonsense_does_not_panic() {
    let specs = [
        json!(null),
        json!([]),
        json!({"rules": [null, {"http": {"paths": [1]}}], "backend": 3, "metrics": [1, {"pods": 2}], "versions": [null],
            "conversion": 1, "devices": {"requests": [1]}, "selector": 1, "strategy": 5, "behavior": []}),
    ];
    for row in converted_rows() {
        for spec in &specs {
            for metadata in [json!(null), json!({"annotations": [1]}), json!(3)] {
                let mut object = json!({"metadata": metadata, "spec": spec, "status": 1, "endpoints": [1, {"topology": 2}]});
                default(&row.group, &row.version, &row.kind, &mut object);
                convert(object.clone(), &row.kind, &row.api_version(), &row.storage_api_version());
                convert(object, &row.kind, &row.storage_api_version(), &row.api_version());
            }
        }
        convert(json!(1), &row.kind, &row.api_version(), &row.storage_api_version());
    }
}
