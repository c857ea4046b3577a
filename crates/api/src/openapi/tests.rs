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
    for nowhere in ["apis/nobody/v1", "apis/nobody", "x", "apis/", "api/"] {
        assert!(v3(&catalog, nowhere, "v1.37.0").is_none(), "{nowhere}");
        assert!(v3_hash(&catalog, nowhere, "v1.37.0").is_none(), "{nowhere}");
    }
}

#[test]
fn a_hash_is_the_same_as_long_as_its_document_is() {
    let catalog = Catalog::builtin();
    let index = v3_index(&catalog, "v1.37.0");
    for (path, entry) in index["paths"].as_object().expect("paths") {
        let hash = v3_hash(&catalog, path, "v1.37.0").expect("a hash");
        assert_eq!(entry["serverRelativeURL"], format!("/openapi/v3/{path}?hash={hash}"));
    }
    let other = |catalog: &Catalog, version| v3_hash(catalog, "apis/apps/v1", version);
    assert_eq!(other(&catalog, "v1.37.0"), other(&Catalog::builtin(), "v1.37.0"));
    assert_ne!(other(&catalog, "v1.37.0"), other(&catalog, "v1.37.1"));
    let mut fewer = Catalog::builtin();
    fewer.remove(&crate::request::GroupVersionResource::new("apps", "v1", "deployments"));
    assert_ne!(other(&catalog, "v1.37.0"), other(&fewer, "v1.37.0"));
}

/// An operation of a document: method, path, id, tag, action, parameters and codes. Source: upstream's `swagger.json`.
type Known = (&'static str, &'static str, [&'static str; 5]);

const KNOWN: [Known; 19] = [
    ("get", "/api/", ["getCoreAPIVersions", "core", "", "", "200 401"]),
    ("get", "/apis/", ["getAPIVersions", "apis", "", "", "200 401"]),
    (
        "get",
        "/apis/rbac.authorization.k8s.io/",
        ["getRbacAuthorizationAPIGroup", "rbacAuthorization", "", "", "200 401"],
    ),
    ("get", "/apis/apps/v1/", ["getAppsV1APIResources", "apps_v1", "", "", "200 401"]),
    ("get", "/version/", ["getCodeVersion", "version", "", "", "200 401"]),
    (
        "get",
        "/.well-known/openid-configuration/",
        ["getServiceAccountIssuerOpenIDConfiguration", "WellKnown", "", "", "200 401"],
    ),
    ("get", "/openid/v1/jwks/", ["getServiceAccountIssuerOpenIDKeyset", "openid", "", "", "200 401"]),
    (
        "delete",
        "/api/v1/namespaces/{namespace}/configmaps",
        [
            "deleteCoreV1CollectionNamespacedConfigMap",
            "core_v1",
            "deletecollection",
            "body continue dryRun fieldSelector gracePeriodSeconds ignoreStoreReadErrorWithClusterBreakingPotential \
             labelSelector limit namespace orphanDependents pretty propagationPolicy resourceVersion \
             resourceVersionMatch sendInitialEvents timeoutSeconds",
            "200 401",
        ],
    ),
    (
        "post",
        "/api/v1/namespaces/{namespace}/configmaps",
        [
            "createCoreV1NamespacedConfigMap",
            "core_v1",
            "post",
            "body dryRun fieldManager fieldValidation namespace pretty",
            "200 201 202 401",
        ],
    ),
    (
        "delete",
        "/api/v1/nodes/{name}",
        [
            "deleteCoreV1Node",
            "core_v1",
            "delete",
            "body dryRun gracePeriodSeconds ignoreStoreReadErrorWithClusterBreakingPotential name orphanDependents \
             pretty propagationPolicy",
            "200 202 401",
        ],
    ),
    (
        "get",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        [
            "listRbacAuthorizationV1ClusterRole",
            "rbacAuthorization_v1",
            "list",
            "allowWatchBookmarks continue fieldSelector labelSelector limit pretty resourceVersion \
             resourceVersionMatch sendInitialEvents timeoutSeconds watch",
            "200 401",
        ],
    ),
    (
        "get",
        "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/{name}/status",
        [
            "readFlowcontrolApiserverV1FlowSchemaStatus",
            "flowcontrolApiserver_v1",
            "get",
            "name pretty",
            "200 401",
        ],
    ),
    (
        "get",
        "/api/v1/watch/namespaces/{namespace}/pods/{name}",
        [
            "watchCoreV1NamespacedPod",
            "core_v1",
            "watch",
            "allowWatchBookmarks continue fieldSelector labelSelector limit name namespace pretty resourceVersion \
             resourceVersionMatch sendInitialEvents timeoutSeconds watch",
            "200 401",
        ],
    ),
    (
        "get",
        "/apis/apps/v1/watch/deployments",
        [
            "watchAppsV1DeploymentListForAllNamespaces",
            "apps_v1",
            "watchlist",
            "allowWatchBookmarks continue fieldSelector labelSelector limit pretty resourceVersion \
             resourceVersionMatch sendInitialEvents timeoutSeconds watch",
            "200 401",
        ],
    ),
    (
        "post",
        "/api/v1/namespaces/{namespace}/pods/{name}/exec",
        [
            "connectCoreV1PostNamespacedPodExec",
            "core_v1",
            "connect",
            "command container name namespace stderr stdin stdout tty",
            "200 401",
        ],
    ),
    (
        "head",
        "/api/v1/namespaces/{namespace}/services/{name}/proxy/{path}",
        [
            "connectCoreV1HeadNamespacedServiceProxyWithPath",
            "core_v1",
            "connect",
            "name namespace path path",
            "200 401",
        ],
    ),
    (
        "options",
        "/api/v1/nodes/{name}/proxy",
        ["connectCoreV1OptionsNodeProxy", "core_v1", "connect", "name path", "200 401"],
    ),
    (
        "post",
        "/api/v1/namespaces/{namespace}/pods/{name}/eviction",
        [
            "createCoreV1NamespacedPodEviction",
            "core_v1",
            "post",
            "body dryRun fieldManager fieldValidation name namespace pretty",
            "200 201 202 401",
        ],
    ),
    (
        "get",
        "/api/v1/namespaces/{namespace}/pods/{name}/log",
        [
            "readCoreV1NamespacedPodLog",
            "core_v1",
            "get",
            "container follow insecureSkipTLSVerifyBackend limitBytes name namespace pretty previous sinceSeconds \
             stream tailLines timestamps",
            "200 401",
        ],
    ),
];

#[test]
fn operations_are_upstreams() {
    let catalog = Catalog::builtin();
    let v2 = v2(&catalog, "v1.37.0");
    for (method, path, wanted) in KNOWN {
        let item = &v2["paths"][path];
        let operation = &item[method];
        let parameters = [item, operation].map(|place| place["parameters"].as_array());
        let mut names: Vec<&str> = parameters
            .into_iter()
            .flatten()
            .flatten()
            .map(|parameter| {
                let shared = parameter["$ref"].as_str().and_then(|at| v2.pointer(at.trim_start_matches('#')));
                shared.unwrap_or(parameter)["name"].as_str().expect("a name")
            })
            .collect();
        names.sort_unstable();
        let codes: Vec<&str> =
            operation["responses"].as_object().expect(path).keys().map(String::as_str).collect();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let found = [
            word(&operation["operationId"]),
            word(&operation["tags"][0]),
            word(&operation["x-kubernetes-action"]),
            names.join(" "),
            codes.join(" "),
        ];
        assert_eq!(found, wanted.map(str::to_owned), "{method} {path}");
    }
    let mut ids = std::collections::BTreeSet::new();
    for item in v2["paths"].as_object().expect("paths").values() {
        let operations =
            item.as_object().expect("operations").iter().filter(|(method, _)| *method != "parameters");
        for (_, operation) in operations {
            assert!(ids.insert(operation["operationId"].as_str().expect("an id")), "{operation}");
        }
    }
}

#[test]
fn an_operation_says_what_it_takes_and_gives() {
    let v2 = v2(&Catalog::builtin(), "v1.37.0");
    let pods = &v2["paths"]["/api/v1/namespaces/{namespace}/pods"];
    let streams = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
    let produces = pods["get"]["produces"].as_array().expect("media types");
    assert!(streams.iter().all(|stream| produces.iter().any(|media| media == stream)), "{produces:?}");
    let pod = &v2["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
    assert_eq!(pod["patch"]["consumes"][0], "application/json-patch+json");
    assert_eq!(pod["delete"]["responses"]["202"]["schema"]["$ref"], "#/definitions/io.k8s.api.core.v1.Pod");
    let node = &v2["paths"]["/api/v1/nodes/{name}"]["delete"]["responses"]["200"]["schema"]["$ref"];
    assert_eq!(node, "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Status");
}

#[test]
fn definitions_have_upstreams_names() {
    let catalog = Catalog::builtin();
    let v2 = v2(&catalog, "v1.37.0");
    let definitions = v2["definitions"].as_object().expect("definitions");
    let meta =
        ["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "WatchEvent", "Patch", "FieldsV1"];
    for name in meta {
        let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}");
        assert!(definitions.contains_key(&name), "{name}");
    }
    assert!(definitions.contains_key("io.k8s.apimachinery.pkg.version.Info"));
    let data = &definitions["io.k8s.api.apps.v1.ControllerRevision"]["properties"]["data"];
    assert_eq!(data["$ref"], "#/definitions/io.k8s.apimachinery.pkg.runtime.RawExtension");
    let extensions = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";
    let items = &definitions[&format!("{extensions}.JSONSchemaProps")]["properties"]["items"];
    assert_eq!(items["$ref"], format!("#/definitions/{extensions}.JSONSchemaPropsOrArray"));
    // It may be an array.
    assert!(definitions[&format!("{extensions}.JSONSchemaPropsOrArray")].get("type").is_none());
    let kinds = |document: &Value, pointer: &str| {
        let at = format!("{pointer}/io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
        document.pointer(&at).expect("options")["x-kubernetes-group-version-kind"].clone()
    };
    assert!(kinds(&v2, "/definitions").as_array().is_some_and(|kinds| kinds.len() > 40));
    let apps = v3(&catalog, "apis/apps/v1", "v1.37.0").expect("a document");
    let of = |group| json!({"group": group, "version": "v1", "kind": "DeleteOptions"});
    assert_eq!(kinds(&apps, "/components/schemas"), json!([of(""), of("apps")]));
    assert_eq!(
        definitions["io.k8s.api.flowcontrol.v1.LimitResponse"]["x-kubernetes-unions"],
        json!([{"discriminator": "type", "fields-to-discriminateBy": {"queuing": "Queuing"}}])
    );
}

#[test]
fn retired_versions_are_described_as_the_present_ones() {
    let catalog = Catalog::builtin();
    for (path, name, field) in [
        ("autoscaling/v2beta2", "io.k8s.api.autoscaling.v2beta2.HorizontalPodAutoscaler", "spec"),
        ("autoscaling/v2beta1", "io.k8s.api.autoscaling.v2beta1.MetricSpec", "type"),
        ("autoscaling/v2beta1", "io.k8s.api.autoscaling.v2beta1.HorizontalPodAutoscalerSpec", "maxReplicas"),
        ("extensions/v1beta1", "io.k8s.api.extensions.v1beta1.Ingress", "spec"),
        ("extensions/v1beta1", "io.k8s.api.extensions.v1beta1.DeploymentSpec", "replicas"),
        ("extensions/v1beta1", "io.k8s.api.extensions.v1beta1.IngressSpec", "rules"),
        ("batch/v1beta1", "io.k8s.api.batch.v1beta1.CronJob", "spec"),
    ] {
        let document = v3(&catalog, &format!("apis/{path}"), "v").expect("a document");
        let definition = &document["components"]["schemas"][name];
        let texts = [&definition["description"], &definition["properties"][field]["description"]];
        for text in texts {
            assert!(text.as_str().is_some_and(|text| text.len() > 10), "{name} {field}: {texts:?}");
        }
    }
}

#[test]
fn each_write_names_field_validation() {
    let catalog = Catalog::builtin();
    for document in [v2(&catalog, "v"), v3(&catalog, "apis/apps/v1", "v").expect("a document")] {
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in ["post", "put", "patch"] {
                let Some(operation) = item.get(method) else { continue };
                if operation["x-kubernetes-action"] == "connect" {
                    continue;
                }
                let places = [item, operation].map(|place| place["parameters"].as_array());
                // Written out and not referred to, as older kubectls look for it.
                let mut all = places.into_iter().flatten().flatten();
                let named = all.any(|parameter| parameter["name"] == "fieldValidation");
                assert!(named, "{method} {path} does not name fieldValidation");
            }
        }
    }
}

#[test]
fn whatever_patches_a_kind_checks_its_fields() {
    let document = v3(&Catalog::builtin(), "api/v1", "v1.37.0").expect("a document");
    let kind_of = |operation: &Value| operation["x-kubernetes-group-version-kind"]["kind"].clone();
    let paths = document["paths"].as_object().expect("paths");
    let patches: Vec<_> = paths.iter().filter(|(_, item)| item["patch"].is_object()).collect();
    assert!(patches.iter().any(|(_, item)| kind_of(&item["patch"]) == "PodProxyOptions"));
    for (path, item) in patches.iter().filter(|(_, item)| kind_of(&item["patch"]) == "Pod") {
        let parameters = item["patch"]["parameters"].as_array().expect("parameters");
        assert!(parameters.iter().any(|one| one["name"] == "fieldValidation"), "{path}");
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
