//! Bodies of requests: objects in their encodings, and patches.

use std::sync::{Arc, OnceLock};

use api::protobuf;
use api::schema::Schema;
use api::{FieldValidation, GroupVersionResource, PatchType};
use apiserver::words::{self, Catalog, Kind, Patch, Writer};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{choice, halves};

/// Kinds whose types have little in common.
const KINDS: [(&str, &str, &str); 10] = [
    ("", "v1", "pods"),
    ("apps", "v1", "deployments"),
    ("", "v1", "services"),
    ("", "v1", "secrets"),
    ("", "v1", "configmaps"),
    ("extensions", "v1beta1", "ingresses"),
    ("autoscaling", "v2", "horizontalpodautoscalers"),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
    ("networking.k8s.io", "v1", "networkpolicies"),
    ("resource.k8s.io", "v1", "resourceclaims"),
];

fn kinds() -> &'static [Arc<Kind>] {
    static KINDS_BUILT_IN: OnceLock<Vec<Arc<Kind>>> = OnceLock::new();
    KINDS_BUILT_IN.get_or_init(|| {
        let catalog = Catalog::builtin();
        let resources =
            KINDS.iter().map(|(group, version, name)| GroupVersionResource::new(group, version, name));
        resources.filter_map(|resource| catalog.find(&resource)).collect()
    })
}

/// What the pipeline does with an object that a client sent: filled in, checked, and written in both encodings.
fn take_in(kind: &Kind, mut object: Value) {
    words::default(kind, &mut object);
    let once = object.clone();
    words::default(kind, &mut object);
    assert_eq!(once, object, "defaults are filled in once");
    words::validate(kind, &object, None, &mut Vec::new());
    let json = object.to_string();
    if let Ok(wire) = protobuf::object(Schema::builtin(), json.as_bytes()) {
        protobuf::decode(Schema::builtin(), &wire).expect("what was encoded is decoded");
    }
}

fn decode(kind: &Kind, body: &[u8]) {
    let strict = words::decode(kind, body, FieldValidation::Strict);
    if let Ok((object, warnings)) = words::decode(kind, body, FieldValidation::Warn) {
        assert_eq!(strict.is_ok(), warnings.is_empty(), "what is warned of is refused by the strict");
        take_in(kind, object);
    }
}

/// A kind, and a body in JSON.
pub(crate) fn json(data: &[u8]) {
    let Some((kind, body)) = choice(data, KINDS.len()) else { return };
    decode(&kinds()[kind], body);
}

/// A kind, and a body in YAML.
pub(crate) fn yaml(data: &[u8]) {
    let Some((kind, body)) = choice(data, KINDS.len()) else { return };
    let Ok((body, _)) = api::decode::yaml_to_json(body) else { return };
    serde_json::from_slice::<Value>(&body).expect("YAML becomes JSON");
    decode(&kinds()[kind], &body);
}

/// A body in protobuf, with or without its envelope's first bytes.
pub(crate) fn protobuf(data: &[u8]) {
    let schema = Schema::builtin();
    let enveloped = [b"k8s\0", data].concat();
    for body in [data, &enveloped] {
        let Ok(value) = protobuf::decode(schema, body) else { continue };
        let Ok(wire) = protobuf::object(schema, value.to_string().as_bytes()) else { continue };
        let again = protobuf::decode(schema, &wire).expect("what was encoded is decoded");
        let rewritten = protobuf::object(schema, again.to_string().as_bytes()).expect("and encoded again");
        assert_eq!(wire, rewritten, "one object has one form");
    }
}

/// A patch of one of the four kinds to a Deployment.
pub(crate) fn patches(data: &[u8]) {
    let Some((kind, body)) = choice(data, 4) else { return };
    let body = Bytes::copy_from_slice(body);
    let (row, live) = (&kinds()[1], deployment());
    let kind = [PatchType::Json, PatchType::Merge, PatchType::StrategicMerge, PatchType::Apply][kind];
    let Ok(patch) = Patch::parse(kind, &body) else { return };
    let new = match &patch {
        Patch::Apply(intent) => {
            let writer = Writer {
                manager: "fuzz".into(),
                api_version: "apps/v1".into(),
                subresource: String::new(),
                time: "2026-01-01T00:00:00Z".into(),
            };
            words::apply(row, Some(live), intent, &writer, true)
        }
        patch => words::patch(row, live, patch),
    };
    if let Ok(new) = new {
        decode(row, new.to_string().as_bytes());
    }
}

fn deployment() -> &'static Value {
    static DEPLOYMENT: OnceLock<Value> = OnceLock::new();
    DEPLOYMENT.get_or_init(|| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "a", "namespace": "default", "labels": { "a": "b" }, "finalizers": ["example.com/x"],
                "managedFields": [{
                    "manager": "other", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
                    "fieldsV1": { "f:spec": { "f:replicas": {}, "f:template": { "f:spec": { "f:containers": {
                        "k:{\"name\":\"a\"}": { ".": {}, "f:image": {} } } } } } },
                }],
            },
            "spec": {
                "replicas": 2, "selector": { "matchLabels": { "a": "b" } },
                "template": {
                    "metadata": { "labels": { "a": "b" } },
                    "spec": {
                        "containers": [
                            { "name": "a", "image": "a:1", "ports": [{ "containerPort": 80, "protocol": "TCP" }],
                              "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }] },
                            { "name": "b", "image": "b:1" },
                        ],
                        "tolerations": [{ "key": "a", "operator": "Exists" }],
                        "volumes": [{ "name": "v", "emptyDir": {} }],
                    },
                },
            },
        })
    })
}

/// A CustomResourceDefinition and, after a zero, an object of it.
pub(crate) fn definitions(data: &[u8]) {
    let (schema, object) = halves(data);
    let Ok(schema) = serde_json::from_slice::<Value>(schema) else { return };
    let path = "spec.versions[0].schema.openAPIV3Schema";
    let mut causes = api::custom::check_schema(path, &schema, true, true);
    causes.extend(api::custom::check_rules(path, &schema, "v1", None, !causes.is_empty()));
    let refused = !causes.is_empty();
    let definition = json!({
        "metadata": { "name": "things.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                "additionalPrinterColumns": [{ "name": "A", "type": "string", "jsonPath": ".spec.a" }],
            }],
        },
        "status": { "acceptedNames": { "plural": "things", "singular": "thing", "kind": "Thing",
                                       "listKind": "ThingList" } },
    });
    let rows = api::custom::rows(&definition);
    let (false, Ok(rows)) = (refused, rows) else { return };
    for row in &rows {
        let Some(custom) = &row.custom else { continue };
        let Ok(mut object) = serde_json::from_slice::<Value>(object) else { continue };
        custom.prune(&mut object);
        custom.default(&mut object);
        custom.validate(&object, None);
        custom.validate(&object, Some(&object));
    }
}
