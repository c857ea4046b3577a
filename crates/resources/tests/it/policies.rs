//! Admission policies: what upstream's tests ask of them, through the API.

use api::connect::User;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, MAPS, get, send, write};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const MERGE: &str = "application/merge-patch+json";

async fn post(cluster: &Cluster, path: &str, body: Value) -> Answer {
    write(cluster, Method::POST, path, JSON, body.to_string()).await
}

async fn made(cluster: &Cluster, path: &str, body: Value) {
    let answer = post(cluster, path, body).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
}

/// A policy over a resource with one binding of its name, `-binding` added.
async fn validating(cluster: &Cluster, name: &str, rule: Value, spec: Value, binding: Value) {
    let mut spec = spec;
    spec["matchConstraints"] = json!({ "resourceRules": [rule] });
    made(
        cluster,
        &format!("{GROUP}/validatingadmissionpolicies"),
        json!({ "metadata": { "name": name }, "spec": spec }),
    )
    .await;
    let mut bound = json!({ "policyName": name, "validationActions": ["Deny"] });
    bound.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    let bound = json!({ "metadata": { "name": format!("{name}-binding") }, "spec": bound });
    made(cluster, &format!("{GROUP}/validatingadmissionpolicybindings"), bound).await;
}

async fn mutating(cluster: &Cluster, name: &str, rule: Value, mutation: Value) {
    let spec = json!({ "matchConstraints": { "resourceRules": [rule] }, "reinvocationPolicy": "Never",
        "mutations": [mutation] });
    made(
        cluster,
        &format!("{GROUP}/mutatingadmissionpolicies"),
        json!({ "metadata": { "name": name }, "spec": spec }),
    )
    .await;
    let bound = json!({ "metadata": { "name": name }, "spec": { "policyName": name } });
    made(cluster, &format!("{GROUP}/mutatingadmissionpolicybindings"), bound).await;
}

fn rule(group: &str, version: &str, resource: &str) -> Value {
    json!({ "apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"], "resources": [resource] })
}

fn maps() -> Value {
    rule("", "v1", "configmaps")
}

fn apply(expression: &str) -> Value {
    json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } })
}

fn json_patch(expression: &str) -> Value {
    json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } })
}

fn map(name: &str, data: Value) -> Value {
    json!({ "metadata": { "name": name }, "data": data })
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "replicas": replicas, "selector": { "matchLabels": { "a": name } },
        "template": { "metadata": { "labels": { "a": name } }, "spec": { "containers": [
            { "name": "c", "image": "nginx" } ] } } } })
}

#[tokio::test]
async fn a_deployment_is_validated_where_the_binding_says() {
    let cluster = Cluster::start().await;
    let spec = json!({ "validations": [
        { "expression": "object.spec.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(object.spec.replicas)" },
        { "expression": "namespaceObject.metadata.name == 'default'", "message": "Internal error! Other namespace should not be allowed." },
    ] });
    let selector = json!({ "matchLabels": { "kubernetes.io/metadata.name": "default" } });
    let binding = json!({ "matchResources": { "namespaceSelector": selector } });
    validating(&cluster, "replicas", rule("apps", "v1", "deployments"), spec, binding).await;

    let refused = post(&cluster, DEPLOYMENTS, deployment("one", 1)).await;
    assert_eq!((refused.code, refused.json()["reason"].as_str()), (422, Some("Invalid")));
    let message = "ValidatingAdmissionPolicy 'replicas' with binding 'replicas-binding' denied request: wants replicas > 1, got 1";
    assert_eq!(refused.message(), format!("deployments.apps \"one\" is forbidden: {message}"));
    assert_eq!(refused.json()["details"]["causes"][0]["message"], message);
    made(&cluster, DEPLOYMENTS, deployment("two", 2)).await;
    let scaled =
        write(&cluster, Method::PATCH, &format!("{DEPLOYMENTS}/two"), MERGE, r#"{"spec":{"replicas":1}}"#)
            .await;
    assert_eq!(scaled.code, 422);
    // Another namespace is not the binding's, and an older version of the kind is the same kind.
    made(&cluster, "/api/v1/namespaces", json!({ "metadata": { "name": "other" } })).await;
    made(&cluster, "/apis/apps/v1/namespaces/other/deployments", deployment("one", 1)).await;
    let mut old = deployment("old", 1);
    old["apiVersion"] = "apps/v1beta2".into();
    let refused = post(&cluster, "/apis/apps/v1beta2/namespaces/default/deployments", old).await;
    assert_eq!(refused.code, 422, "{}", refused.message());

    for plural in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
        let name = if plural.ends_with("bindings") { "replicas-binding" } else { "replicas" };
        let gone = write(&cluster, Method::DELETE, &format!("{GROUP}/{plural}/{name}"), JSON, "").await;
        assert_eq!(gone.code, 200);
    }
    made(&cluster, DEPLOYMENTS, deployment("one", 1)).await;
    let page = crate::http_front::get(&cluster, "/metrics", "").await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    let figure = "apiserver_validating_admission_policy_check_total{enforcement_action=\"deny\",\
                  error_type=\"no_error\",policy=\"replicas\",policy_binding=\"replicas-binding\"}";
    assert!(page.contains(figure), "{figure}");
}

#[tokio::test]
async fn variables_conditions_and_reasons_are_upstreams() {
    let cluster = Cluster::start().await;
    let spec = json!({
        "variables": [
            { "name": "size", "expression": "int(object.data.size)" },
            { "name": "odd", "expression": "variables.size % 2 == 1" },
            { "name": "unused", "expression": "object.nothing.at.all" },
        ],
        "matchConditions": [{ "name": "sized", "expression": "has(object.data) && has(object.data.size)" }],
        "validations": [
            { "expression": "variables.odd", "message": "size must be odd" },
            { "expression": "variables.size < 100", "reason": "Forbidden" },
        ],
    });
    validating(&cluster, "sizes", maps(), spec, json!({})).await;
    made(&cluster, MAPS, map("unsized", json!({ "a": "b" }))).await;
    made(&cluster, MAPS, map("odd", json!({ "size": "3" }))).await;
    for (size, code, said) in [
        ("4", 422, "size must be odd"),
        ("101", 403, "failed expression: variables.size < 100"),
        (
            "x",
            422,
            "expression 'variables.odd' resulted in error: composited variable \"odd\" fails to evaluate: composited \
             variable \"size\" fails to evaluate: type conversion error from 'string' to 'int'",
        ),
    ] {
        let refused = post(&cluster, MAPS, map("wrong", json!({ "size": size }))).await;
        let prefix = "configmaps \"wrong\" is forbidden: ValidatingAdmissionPolicy 'sizes' with binding 'sizes-binding' denied request: ";
        assert_eq!((refused.code, refused.message()), (code, format!("{prefix}{said}")));
    }
    // What goes wrong is let pass where the policy says so.
    let patch = json!({ "spec": { "failurePolicy": "Ignore" } });
    let path = format!("{GROUP}/validatingadmissionpolicies/sizes");
    assert_eq!(write(&cluster, Method::PATCH, &path, MERGE, patch.to_string()).await.code, 200);
    made(&cluster, MAPS, map("x", json!({ "size": "x" }))).await;
    assert_eq!(post(&cluster, MAPS, map("even", json!({ "size": "4" }))).await.code, 422);
}

#[tokio::test]
async fn parameters_come_by_name_and_by_selector() {
    let cluster = Cluster::start().await;
    let limit = |name: &str, max: &str| json!({ "metadata": { "name": name, "labels": { "role": "limit" } }, "data": { "max": max } });
    let params = "/api/v1/namespaces/default/secrets";
    let secret = |value: Value| {
        let mut secret = value;
        secret["stringData"] = secret["data"].take();
        secret
    };
    let spec = json!({
        "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
        "validations": [{ "expression": "!has(object.data) || !has(object.data.size) || int(object.data.size) <= int(params.data.max)",
            "messageExpression": "'more than ' + params.data.max" }],
    });
    let by_name = json!({ "paramRef": { "name": "limit", "parameterNotFoundAction": "Deny" } });
    validating(&cluster, "limited", maps(), spec.clone(), by_name).await;
    let refused = post(&cluster, MAPS, map("a", json!({ "size": "1" }))).await;
    assert!(
        refused.message().ends_with(
            "'limited' with binding 'limited-binding' denied request: failed to configure binding: no params found for \
             policy binding with `Deny` parameterNotFoundAction"
        ),
        "{}",
        refused.message()
    );
    made(&cluster, params, secret(limit("nobody", "1"))).await;
    let gone = write(
        &cluster,
        Method::DELETE,
        &format!("{GROUP}/validatingadmissionpolicybindings/limited-binding"),
        JSON,
        "",
    )
    .await;
    assert_eq!(gone.code, 200);
    made(&cluster, MAPS, limit("limit", "5")).await;
    made(&cluster, MAPS, limit("lower", "3")).await;
    let selected = json!({ "policyName": "limited", "validationActions": ["Deny"], "paramRef": {
        "selector": { "matchLabels": { "role": "limit" } }, "parameterNotFoundAction": "Allow" } });
    let bindings = format!("{GROUP}/validatingadmissionpolicybindings");
    made(&cluster, &bindings, json!({ "metadata": { "name": "by-selector" }, "spec": selected })).await;
    made(&cluster, MAPS, map("small", json!({ "size": "3" }))).await;
    let refused = post(&cluster, MAPS, map("large", json!({ "size": "4" }))).await;
    assert!(refused.message().ends_with("more than 3"), "{}", refused.message());
}

#[tokio::test]
async fn a_custom_resource_is_a_parameter_and_is_validated() {
    let cluster = Cluster::start().await;
    let schema = json!({ "type": "object", "properties": { "max": { "type": "integer" }, "spec": { "type": "object",
        "properties": { "replicas": { "type": "integer" } } } } });
    for (plural, kind) in [("limits", "Limit"), ("gadgets", "Gadget")] {
        let definition = json!({ "metadata": { "name": format!("{plural}.example.com") }, "spec": { "group": "example.com",
            "scope": "Cluster", "names": { "plural": plural, "kind": kind }, "versions": [{ "name": "v1", "served": true,
                "storage": true, "schema": { "openAPIV3Schema": schema } }] } });
        made(&cluster, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    }
    let object = |kind: &str, name: &str, more: Value| {
        let mut object =
            json!({ "apiVersion": "example.com/v1", "kind": kind, "metadata": { "name": name } });
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    made(&cluster, "/apis/example.com/v1/limits", object("Limit", "l", json!({ "max": 2 }))).await;
    let spec = json!({ "paramKind": { "apiVersion": "example.com/v1", "kind": "Limit" },
        "validations": [{ "expression": "object.spec.replicas <= params.max" }] });
    let binding = json!({ "paramRef": { "name": "l", "parameterNotFoundAction": "Deny" } });
    validating(&cluster, "gadgets", rule("example.com", "v1", "gadgets"), spec, binding).await;
    let gadget =
        |name: &str, replicas: i64| object("Gadget", name, json!({ "spec": { "replicas": replicas } }));
    made(&cluster, "/apis/example.com/v1/gadgets", gadget("a", 2)).await;
    assert_eq!(post(&cluster, "/apis/example.com/v1/gadgets", gadget("b", 3)).await.code, 422);
}

#[tokio::test]
async fn warnings_are_told_and_rights_are_asked() {
    let cluster = Cluster::start().await;
    let spec = json!({ "validations": [{ "expression": "!object.metadata.name.startsWith('odd')", "message": "odd name" }],
        "auditAnnotations": [{ "key": "name", "valueExpression": "'is ' + object.metadata.name" }] });
    validating(&cluster, "names", maps(), spec, json!({ "validationActions": ["Warn", "Audit"] })).await;
    let warned = post(&cluster, MAPS, map("odd-one", json!({}))).await;
    assert_eq!(warned.code, 201);
    let warning = "299 - \"Validation failed for ValidatingAdmissionPolicy 'names' with binding 'names-binding': odd name\"";
    assert_eq!(warned.warnings(), [warning]);

    let right =
        "authorizer.group('').resource('secrets').namespace(request.namespace).check('delete').allowed()";
    let spec = json!({ "validations": [{ "expression": format!("!has(object.data) || !has(object.data.secret) || {right}"),
        "message": "may not" }] });
    validating(&cluster, "rights", maps(), spec, json!({})).await;
    let role = json!({ "metadata": { "name": "writer" }, "rules": [
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"] }] });
    made(&cluster, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({ "metadata": { "name": "writer" }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "writer" }, "subjects": [{ "kind": "User", "name": "jane",
        "apiGroup": "rbac.authorization.k8s.io" }] });
    made(&cluster, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let jane = User { name: "jane".into(), groups: vec!["system:authenticated".into()], ..User::default() };
    let body = map("s", json!({ "secret": "x" })).to_string();
    let headers = [("content-type", JSON)];
    let refused = send(&cluster, Some(&jane), Method::POST, MAPS, &headers, body.clone()).await;
    assert_eq!(refused.code, 422, "{}", refused.message());
    assert_eq!(write(&cluster, Method::POST, MAPS, JSON, body).await.code, 201);
}

#[tokio::test]
async fn objects_are_changed_before_they_are_validated() {
    let cluster = Cluster::start().await;
    let expression =
        "Object{metadata: Object.metadata{labels: {'env': 'test'}}, data: {'added': object.metadata.name}}";
    mutating(&cluster, "a-apply", maps(), apply(expression)).await;
    let expression = "[JSONPatch{op: 'test', path: '/metadata/labels/env', value: 'test'}, \
                      JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/seen'), value: 'yes'}]";
    mutating(&cluster, "b-patch", maps(), json_patch(expression)).await;
    let spec =
        json!({ "validations": [{ "expression": "object.metadata.labels['example.com/seen'] == 'yes'" }] });
    validating(&cluster, "seen", maps(), spec, json!({})).await;
    let created = post(&cluster, MAPS, map("m", json!({ "own": "1" }))).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let object = created.json();
    assert_eq!(object["data"], json!({ "own": "1", "added": "m" }));
    assert_eq!(object["metadata"]["labels"], json!({ "env": "test", "example.com/seen": "yes" }));

    // A sidecar, merged by its name.
    let sidecar = "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [\
                   Object.spec.template.spec.containers{name: 'sidecar', image: 'proxy'}]}}}}";
    mutating(&cluster, "sidecars", rule("apps", "v1", "deployments"), apply(sidecar)).await;
    let created = post(&cluster, DEPLOYMENTS, deployment("d", 1)).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let containers = created.json()["spec"]["template"]["spec"]["containers"].clone();
    let names: Vec<&Value> =
        containers.as_array().unwrap().iter().map(|container| &container["name"]).collect();
    assert_eq!(names, ["c", "sidecar"]);
    assert_eq!(containers[1]["imagePullPolicy"], "Always");

    // What cannot be merged refuses the request.
    let whole =
        "Object{metadata: Object.metadata{finalizers: object.?nothing.orValue(['a.b/c'])}, data: {'x': 1}}";
    mutating(&cluster, "wrong", maps(), apply(whole)).await;
    let refused = post(&cluster, MAPS, map("n", json!({}))).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.message().starts_with("policy 'wrong' with binding 'wrong' denied request: "),
        "{}",
        refused.message()
    );
    assert_eq!(get(&cluster, &format!("{MAPS}/n"), JSON).await.code, 404);
}

/// A policy of one mutation with whatever else, with one binding.
async fn mutating_with(cluster: &Cluster, name: &str, expression: &str, more: Value, binding: Value) {
    let mut spec = json!({ "matchConstraints": { "resourceRules": [maps()] }, "reinvocationPolicy": "Never",
        "mutations": [apply(expression)] });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let policy = json!({ "metadata": { "name": name }, "spec": spec });
    made(cluster, &format!("{GROUP}/mutatingadmissionpolicies"), policy).await;
    let mut bound = json!({ "policyName": name });
    bound.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    let bound = json!({ "metadata": { "name": name }, "spec": bound });
    made(cluster, &format!("{GROUP}/mutatingadmissionpolicybindings"), bound).await;
}

#[tokio::test]
async fn mutations_have_parameters_and_conditions_and_run_again_where_they_want_to() {
    let cluster = Cluster::start().await;
    made(&cluster, MAPS, map("limits", json!({ "max": "5" }))).await;
    let condition = json!([{ "name": "asked", "expression": "has(object.data) && 'ask' in object.data" }]);
    let more =
        json!({ "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" }, "matchConditions": condition });
    let param = json!({ "paramRef": { "name": "limits", "parameterNotFoundAction": "Deny" } });
    mutating_with(&cluster, "a-params", "Object{data: {'max': params.data.max}}", more, param).await;
    // Whoever wants to see changes runs again once the object was written anew, after everybody else; nobody else does.
    let counts = |name: &str| {
        format!("Object{{data: {{'{name}': string(int(object.data.?{name}.orValue('0')) + 1)}}}}")
    };
    let asked = json!({ "matchConditions": condition, "reinvocationPolicy": "IfNeeded" });
    mutating_with(&cluster, "b-again", &counts("again"), asked, json!({})).await;
    let asked = json!({ "matchConditions": condition });
    mutating_with(&cluster, "c-once", &counts("once"), asked, json!({})).await;
    // What goes wrong is let pass where the policy says so, and what is done is done.
    let wrong = json!({ "matchConditions": condition, "failurePolicy": "Ignore" });
    mutating_with(&cluster, "d-wrong", "Object{data: {'d': object.data.nothing}}", wrong, json!({})).await;
    let plain = post(&cluster, MAPS, map("plain", json!({ "x": "y" }))).await;
    assert_eq!(plain.json()["data"], json!({ "x": "y" }));
    let asked = post(&cluster, MAPS, map("asked", json!({ "ask": "" }))).await;
    assert_eq!(asked.code, 201, "{}", asked.message());
    assert_eq!(asked.json()["data"], json!({ "ask": "", "max": "5", "again": "2", "once": "1" }));
    // A binding refuses where its parameter is not there.
    let more = json!({ "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" } });
    let param = json!({ "paramRef": { "name": "nobody", "parameterNotFoundAction": "Deny" } });
    mutating_with(&cluster, "e-missing", "Object{data: {'max': params.data.max}}", more, param).await;
    let refused = post(&cluster, MAPS, map("late", json!({ "ask": "" }))).await;
    assert_eq!(refused.code, 403, "{}", refused.message());
    assert!(refused.message().contains("no params found"), "{}", refused.message());
}

#[tokio::test]
async fn a_policy_that_cannot_hold_is_refused_with_the_place() {
    let cluster = Cluster::start().await;
    let path = format!("{GROUP}/validatingadmissionpolicies");
    for (field, validation, wanted) in [
        ("expression", json!({ "expression": "object.metadata.name" }), "must evaluate to bool but got dyn"),
        (
            "expression",
            json!({ "expression": "foo == 1" }),
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo == 1\n | ^",
        ),
        (
            "messageExpression",
            json!({ "expression": "true", "messageExpression": "authorizer.path('/a').check('get').reason()" }),
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'authorizer' (in container '')\n | \
             authorizer.path('/a').check('get').reason()\n | ^",
        ),
    ] {
        let spec = json!({ "matchConstraints": { "resourceRules": [maps()] }, "validations": [validation] });
        let refused = post(&cluster, &path, json!({ "metadata": { "name": "p" }, "spec": spec })).await;
        assert_eq!(refused.code, 422);
        let cause = refused.json()["details"]["causes"][0].clone();
        assert_eq!(cause["field"], format!("spec.validations[0].{field}"));
        let source = validation[field].as_str().unwrap();
        assert_eq!(cause["message"], format!("Invalid value: {source:?}: {wanted}"));
    }
    let spec = json!({ "matchConstraints": { "resourceRules": [maps()] }, "reinvocationPolicy": "Never",
        "mutations": [apply("{'a': 1}")] });
    let path = format!("{GROUP}/mutatingadmissionpolicies");
    let refused = post(&cluster, &path, json!({ "metadata": { "name": "p" }, "spec": spec })).await;
    assert!(
        refused.message().contains("must evaluate to Object but got map(string, int)"),
        "{}",
        refused.message()
    );
}
