//! Tests of the documents, by what clients look for in them.

use super::*;

/// Every reference in a document.
fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn assert_closed(document: &Value) {
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn every_document_is_closed_and_listed() {
    let catalog = Catalog::builtin();
    let index = v3_index(&catalog, "v1.37.0");
    let paths = index["paths"].as_object().expect("paths");
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/extensions/v1beta1"));
    for path in paths.keys() {
        assert_closed(&v3(&catalog, path, "v1.37.0").expect("a listed document"));
    }
    assert_closed(&v2(&catalog, "v1.37.0"));
    assert!(v3(&catalog, "apis/nobody/v1", "v1.37.0").is_none() && v3(&catalog, "x", "v1.37.0").is_none());
}

#[test]
fn each_write_names_field_validation() {
    let catalog = Catalog::builtin();
    for document in [v2(&catalog, "v"), v3(&catalog, "apis/apps/v1", "v").expect("a document")] {
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in ["post", "put", "patch"] {
                let Some(operation) = item.get(method) else { continue };
                let parameters = operation["parameters"].as_array().expect("parameters");
                let named = parameters.iter().any(|parameter| parameter["name"] == "fieldValidation");
                assert!(named, "{method} {path} does not name fieldValidation");
            }
        }
    }
}

#[test]
fn kubectl_finds_a_kind_its_fields_and_how_they_merge() {
    let document = v3(&Catalog::builtin(), "apis/apps/v1", "v1.37.0").expect("a document");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    let schemas = &document["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    let replicas = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
    assert!(replicas["description"].as_str().is_some_and(|text| text.contains("Number of desired pods")));
    assert_eq!(replicas["default"], 1);
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(strategy["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy");
}
