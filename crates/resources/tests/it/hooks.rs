//! Admission webhooks: what conformance asks of them, and what surrounds it. The webhook is a server of its own on a
//! loopback port, reached over HTTPS by its URL or through a Service.

use api::{Call, DeleteOptions, ListOptions, PatchType, WriteOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};
use crate::hook_server::HookServer;
use crate::http_front::{Answer, JSON, MAPS, get, write};

pub(crate) const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";

/// What the webhook says at its paths.
fn says(path: &str, review: &Value) -> Option<Value> {
    let request = &review["request"];
    let object = &request["object"];
    let mut response = json!({ "uid": request["uid"], "allowed": true });
    let refuse = |response: &mut Value, why: &str| {
        response["allowed"] = false.into();
        response["status"] = json!({ "message": why, "code": 403, "reason": "Forbidden" });
    };
    match path {
        "/allow" => {
            response["warnings"] = json!(["be careful"]);
        }
        "/deny" => refuse(&mut response, "the object contains unwanted data"),
        // Odd values are unwanted, in whichever object there is.
        "/unwanted" => {
            let seen = if object.is_null() { &request["oldObject"] } else { object };
            let value = &seen["data"]["webhook-e2e-test"];
            let container = &seen["spec"]["containers"][0]["name"];
            if value == "webhook-disallow"
                || container == "webhook-disallow"
                || (object.is_null() && value == "webhook-nondeletable")
            {
                refuse(&mut response, "the object contains unwanted key or value");
            }
        }
        "/hang" => return None,
        // Each stage needs the one before.
        "/stage-1" if object["data"]["mutation-start"] == "yes" => {
            patch(&mut response, json!([{ "op": "add", "path": "/data/mutation-stage-1", "value": "yes" }]));
        }
        "/stage-2" if object["data"]["mutation-stage-1"] == "yes" => {
            patch(&mut response, json!([{ "op": "add", "path": "/data/mutation-stage-2", "value": "yes" }]));
        }
        "/init-container" => {
            let container = json!([{ "name": "webhook-added", "image": "none" }]);
            patch(
                &mut response,
                json!([{ "op": "add", "path": "/spec/initContainers", "value": container }]),
            );
        }
        "/replicas" => {
            patch(&mut response, json!([{ "op": "replace", "path": "/spec/replicas", "value": 7 }]));
        }
        "/label" => {
            let labels = json!({ "touched": "yes" });
            patch(&mut response, json!([{ "op": "add", "path": "/metadata/labels", "value": labels }]));
        }
        "/nonsense" => return Some(json!({ "hello": "world" })),
        _ => {}
    }
    Some(json!({ "apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response }))
}

pub(crate) fn patch(response: &mut Value, patch: Value) {
    response["patchType"] = "JSONPatch".into();
    response["patch"] = STANDARD.encode(patch.to_string()).into();
}

pub(crate) fn rule(operations: &[&str], group: &str, resource: &str) -> Value {
    json!({ "operations": operations, "apiGroups": [group], "apiVersions": ["*"], "resources": [resource] })
}

pub(crate) fn hook(name: &str, client: Value, rule: Value) -> Value {
    json!({
        "name": format!("{name}.example.com"), "clientConfig": client, "rules": [rule], "sideEffects": "None",
        "admissionReviewVersions": ["v1", "v1beta1"],
    })
}

/// The same with other fields.
fn with(mut hook: Value, more: Value) -> Value {
    for (field, value) in more.as_object().unwrap() {
        hook[field] = value.clone();
    }
    hook
}

pub(crate) struct Case {
    pub(crate) cluster: Cluster,
    pub(crate) server: HookServer,
}

impl Case {
    async fn start() -> Self {
        Self::saying(says).await
    }

    /// With a webhook that answers so.
    pub(crate) async fn saying(says: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Self {
        Self { cluster: Cluster::start().await, server: HookServer::start(says).await }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        write(&self.cluster, Method::POST, path, JSON, body.to_string()).await
    }

    /// Registers webhooks; `kind` is `mutating` or `validating`.
    pub(crate) async fn register(&self, kind: &str, name: &str, hooks: Value) {
        let path = format!("{CONFIGURATIONS}/{kind}webhookconfigurations");
        let body = json!({ "metadata": { "name": name, "labels": { "of": "test" } }, "webhooks": hooks });
        let answer = self.post(&path, body).await;
        assert_eq!(answer.code, 201, "{}", answer.json());
    }

    async fn forget(&self, kind: &str) {
        let path = format!("{CONFIGURATIONS}/{kind}webhookconfigurations?labelSelector=of%3Dtest");
        assert_eq!(write(&self.cluster, Method::DELETE, &path, JSON, "").await.code, 200);
    }

    async fn map(&self, name: &str, data: Value) -> Answer {
        self.post(MAPS, json!({ "metadata": { "name": name }, "data": data })).await
    }
}

fn denied(name: &str, why: &str) -> String {
    format!("admission webhook \"{name}.example.com\" denied the request: {why}")
}

const UNWANTED: &str = "the object contains unwanted key or value";

async fn refuses_an_unwanted_pod(case: &Case) {
    let account = json!({ "metadata": { "name": "default" } });
    case.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |container: &str| {
        let containers = json!([{ "name": container, "image": "i" }]);
        json!({ "metadata": { "name": "p" }, "spec": { "containers": containers } })
    };
    let refused = case.post(pods, pod("webhook-disallow")).await;
    assert_eq!((refused.code, refused.message()), (403, denied("unwanted", UNWANTED)));
    let asked = case.server.asked();
    assert_eq!(asked.last().unwrap().1["request"]["kind"]["kind"], "Pod");
    assert_eq!(get(&case.cluster, &format!("{pods}/p"), JSON).await.code, 404);
    assert_eq!(case.post(pods, pod("c")).await.code, 201);
}

/// "deny create", "fail closed" and "update validating webhook".
#[tokio::test]
async fn a_validating_webhook_refuses_what_it_does_not_want() {
    let case = Case::start().await;
    case.server.serve_as_service(&case.cluster).await;
    let selector = json!({ "matchExpressions": [{ "key": "skip", "operator": "NotIn", "values": ["yes"] }] });
    let mut every = rule(&["CREATE", "UPDATE", "DELETE"], "", "configmaps");
    every["resources"] = json!(["configmaps", "pods"]);
    let unwanted = with(
        hook("unwanted", case.server.by_service("/unwanted"), every),
        json!({ "namespaceSelector": selector }),
    );
    case.register("validating", "a", json!([unwanted])).await;
    let bad = json!({ "webhook-e2e-test": "webhook-disallow" });
    let refused = case.map("bad", bad.clone()).await;
    assert_eq!((refused.code, refused.message()), (403, denied("unwanted", UNWANTED)));
    assert_eq!(refused.json()["reason"], "Forbidden");
    let asked = case.server.asked();
    let request = &asked[0].1["request"];
    assert_eq!(asked[0].1["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(request["kind"], json!({ "group": "", "version": "v1", "kind": "ConfigMap" }));
    assert_eq!((&request["operation"], &request["name"]), (&json!("CREATE"), &json!("bad")));
    assert_eq!((&request["oldObject"], &request["dryRun"]), (&Value::Null, &json!(false)));
    assert_eq!(request["options"]["kind"], "CreateOptions");
    assert_eq!(request["userInfo"]["username"], "admin");
    refuses_an_unwanted_pod(&case).await;

    assert_eq!(case.map("good", json!({ "a": "b" })).await.code, 201);
    let one = format!("{MAPS}/good");
    let merge = "application/merge-patch+json";
    let change = json!({ "data": bad }).to_string();
    case.server.asked();
    assert_eq!(write(&case.cluster, Method::PATCH, &one, merge, change).await.code, 403);
    assert_eq!(case.server.asked().len(), 1, "nobody is asked twice about one change");
    let pinned = json!({ "data": { "webhook-e2e-test": "webhook-nondeletable" } }).to_string();
    assert_eq!(write(&case.cluster, Method::PATCH, &one, merge, pinned).await.code, 200);
    let kept = write(&case.cluster, Method::DELETE, &one, JSON, "").await;
    assert_eq!((kept.code, kept.message()), (403, denied("unwanted", UNWANTED)));
    assert_eq!(write(&case.cluster, Method::DELETE, MAPS, JSON, "").await.code, 403);

    let exempt = json!({ "metadata": { "name": "exempt", "labels": { "skip": "yes" } } });
    assert_eq!(case.post("/api/v1/namespaces", exempt).await.code, 201);
    let there = "/api/v1/namespaces/exempt/configmaps";
    assert_eq!(case.post(there, json!({ "metadata": { "name": "bad" }, "data": bad })).await.code, 201);

    let place = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/a");
    let rules = |operations: &[&str]| {
        json!([{ "op": "replace", "path": "/webhooks/0/rules/0/operations", "value": operations }])
            .to_string()
    };
    let json_patch = "application/json-patch+json";
    write(&case.cluster, Method::PATCH, &place, json_patch, rules(&["UPDATE"])).await;
    assert_eq!(case.map("bad", bad.clone()).await.code, 201);
    write(&case.cluster, Method::PATCH, &place, json_patch, rules(&["CREATE"])).await;
    assert_eq!(case.map("worse", bad.clone()).await.code, 403);
    case.forget("validating").await;
    assert_eq!(case.map("worse", bad).await.code, 201);
}

/// "fail closed" and "honor timeout".
#[tokio::test]
async fn a_webhook_that_cannot_be_asked_is_what_its_policy_says() {
    let case = Case::start().await;
    let creates = || rule(&["CREATE"], "", "configmaps");
    let hidden = json!({ "service": { "namespace": "default", "name": "hook", "path": "/x", "port": 8443 } });
    let mut strange = case.server.by_url("/allow");
    strange["caBundle"] = STANDARD.encode(Case::start().await.server.ca()).into();
    let post = |url: &str, seconds: u64, cause: &str| {
        format!(
            "Internal error occurred: failed calling webhook \"x.example.com\": failed to call webhook: Post \
             \"{url}?timeout={seconds}s\": {cause}"
        )
    };
    let untrusted = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    let [allow, hang, nonsense] = ["/allow", "/hang", "/nonsense"].map(|path| case.server.by_url(path));
    let url = |client: &Value| client["url"].as_str().unwrap().to_owned();
    // Only what never answers is waited for.
    for (client, seconds, wanted) in [
        (hidden, 30, post("https://hook.default.svc:8443/x", 30, "service \"hook\" not found")),
        (strange, 30, post(&url(&allow), 30, untrusted)),
        (hang.clone(), 1, post(&url(&hang), 1, "context deadline exceeded")),
        (
            nonsense,
            30,
            "Internal error occurred: failed calling webhook \"x.example.com\": received invalid webhook response: webhook \
             response was absent"
                .to_owned(),
        ),
    ] {
        for (policy, code) in [("Fail", 500), ("Ignore", 201)] {
            let more = json!({ "failurePolicy": policy, "timeoutSeconds": seconds });
            let hooks = json!([with(hook("x", client.clone(), creates()), more)]);
            case.register("validating", "x", hooks.clone()).await;
            case.register("mutating", "y", hooks).await;
            let answer = case.post(MAPS, json!({ "metadata": { "generateName": "m" } })).await;
            assert_eq!(answer.code, code, "{policy} {wanted}");
            if code == 500 {
                assert_eq!(answer.message(), wanted);
                assert_eq!(answer.json()["reason"], "InternalError");
            }
            case.forget("validating").await;
            case.forget("mutating").await;
        }
    }
    // All of it is counted.
    let page = crate::http_front::get(&case.cluster, "/metrics", "").await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    for figure in [
        "apiserver_admission_webhook_request_total{code=\"503\"",
        "apiserver_admission_webhook_rejection_count{error_type=\"calling_webhook_error\"",
        "apiserver_admission_webhook_fail_open_count{",
        "apiserver_admission_webhook_admission_duration_seconds_bucket{",
    ] {
        assert!(page.contains(figure), "{figure}");
    }
}

/// "ordered mutation", "mutation with defaulting", "update mutating webhook" and "list mutating webhooks".
#[tokio::test]
async fn mutating_webhooks_change_objects_in_order_and_see_what_others_changed() {
    let case = Case::start().await;
    let maps = || rule(&["CREATE"], "", "configmaps");
    let [first, second] =
        ["/stage-1", "/stage-2"].map(|path| hook(&path[1..], case.server.by_url(path), maps()));
    case.register("mutating", "a", json!([first, second])).await;
    let made = case.map("a", json!({ "mutation-start": "yes" })).await;
    let all = json!({ "mutation-start": "yes", "mutation-stage-1": "yes", "mutation-stage-2": "yes" });
    assert_eq!((made.code, &made.json()["data"]), (201, &all));
    case.forget("mutating").await;
    let plain = case.map("b", json!({ "mutation-start": "yes" })).await;
    assert_eq!(plain.json()["data"], json!({ "mutation-start": "yes" }));

    // In the wrong order the first has to be asked again.
    for (policy, whole) in [("IfNeeded", true), ("Never", false)] {
        let late = hook("a-late", case.server.by_url("/stage-2"), maps());
        let late = with(late, json!({ "reinvocationPolicy": policy }));
        let early = hook("b-early", case.server.by_url("/stage-1"), maps());
        case.register("mutating", "a", json!([late, early])).await;
        let made = case.map(&policy.to_lowercase(), json!({ "mutation-start": "yes" })).await;
        assert_eq!(made.json()["data"]["mutation-stage-2"] == "yes", whole, "{policy}");
        case.forget("mutating").await;
    }

    let pods = rule(&["CREATE"], "", "pods");
    case.register("mutating", "a", json!([hook("pods", case.server.by_url("/init-container"), pods)])).await;
    let pod =
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let account = json!({ "metadata": { "name": "default" } });
    case.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let made = case.post("/api/v1/namespaces/default/pods", pod).await.json();
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(
        (&added["name"], &added["terminationMessagePolicy"]),
        (&json!("webhook-added"), &json!("File"))
    );
    // The chain's own links see what webhooks add.
    assert_eq!(added["volumeMounts"], made["spec"]["containers"][0]["volumeMounts"]);
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 1);
}

/// "admission control not allowed on webhook configuration objects", and dry runs.
#[tokio::test]
async fn webhooks_do_not_see_their_own_configurations_and_dry_runs_only_where_they_say_so() {
    let case = Case::start().await;
    let everything = || rule(&["*"], "*", "*/*");
    let label = hook("label", case.server.by_url("/label"), everything());
    case.register("mutating", "a", json!([label])).await;
    case.register("validating", "b", json!([hook("deny", case.server.by_url("/deny"), everything())])).await;
    let path = format!("{CONFIGURATIONS}/mutatingwebhookconfigurations");
    let made = case.post(&path, json!({ "metadata": { "name": "free" }, "webhooks": [] })).await;
    assert_eq!((made.code, &made.json()["metadata"]["labels"]), (201, &Value::Null));
    let refused = case.map("a", json!({})).await;
    assert_eq!(refused.message(), denied("deny", "the object contains unwanted data"));
    assert_eq!(write(&case.cluster, Method::DELETE, &format!("{path}/free"), JSON, "").await.code, 200);
    case.forget("validating").await;
    case.forget("mutating").await;

    let careful = with(
        hook("x", case.server.by_url("/allow"), everything()),
        json!({ "matchConditions": [{ "name": "not-me", "expression": "object.metadata.name != 'skipped'" }] }),
    );
    case.register("validating", "b", json!([careful])).await;
    case.server.asked();
    let dry = format!("{MAPS}?dryRun=All");
    let answer = case.post(&dry, json!({ "metadata": { "name": "a" } })).await;
    assert_eq!((answer.code, answer.warnings()), (201, vec!["299 - \"be careful\""]));
    assert_eq!(case.map("skipped", json!({})).await.warnings(), Vec::<&str>::new());
    // The server's own writes are reviewed too.
    let asked = case.server.asked();
    let about = |name: &str| asked.iter().map(|(_, review)| &review["request"]).find(|it| it["name"] == name);
    assert_eq!(about("a").unwrap()["dryRun"], true);
    assert!(about("skipped").is_none());
}

/// Scales and connections: "deny attach".
#[tokio::test]
async fn subresources_and_connections_are_reviewed_as_what_they_are() {
    let case = Case::start().await;
    let scale =
        hook("scale", case.server.by_url("/replicas"), rule(&["UPDATE"], "apps", "deployments/scale"));
    case.register("mutating", "a", json!([scale])).await;
    let deployment = json!({
        "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
            "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    });
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(case.post(deployments, deployment).await.code, 201);
    let change = json!({ "spec": { "replicas": 2 } }).to_string();
    let merge = "application/merge-patch+json";
    let scaled =
        write(&case.cluster, Method::PATCH, &format!("{deployments}/d/scale"), merge, change).await.json();
    assert_eq!(scaled["spec"]["replicas"], 7);
    let request = case.server.asked()[0].1["request"].clone();
    assert_eq!(request["kind"], json!({ "group": "autoscaling", "version": "v1", "kind": "Scale" }));
    assert_eq!(
        (&request["object"]["spec"]["replicas"], &request["subResource"]),
        (&json!(2), &json!("scale"))
    );
    case.forget("mutating").await;

    let attach = hook("attach", case.server.by_url("/deny"), rule(&["CONNECT"], "", "pods/attach"));
    case.register("validating", "b", json!([attach])).await;
    let path = "/api/v1/namespaces/default/pods/p/attach?container=c&stdin=true";
    let refused = case.post(path, json!(null)).await;
    assert_eq!(
        (refused.code, refused.message()),
        (403, denied("attach", "the object contains unwanted data"))
    );
    let request = case.server.asked()[0].1["request"].clone();
    assert_eq!(
        (&request["operation"], &request["kind"]["kind"]),
        (&json!("CONNECT"), &json!("PodAttachOptions"))
    );
    assert_eq!((&request["object"]["container"], &request["object"]["stdin"]), (&json!("c"), &json!(true)));
}

fn definition(stored: &str) -> Value {
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == stored,
            "schema": { "openAPIV3Schema": { "type": "object", "properties": { "data": {
                "type": "object", "properties": {
                    "mutation-start": { "type": "string" }, "mutation-stage-1": { "type": "string" },
                    "webhook-e2e-test": { "type": "string" } } } } } },
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced", "names": { "plural": "things", "kind": "Thing" },
            "versions": [version("v1"), version("v2")] },
    })
}

/// "deny custom resource definition", "mutate custom resource" (with pruning, with different stored version), "deny
/// custom resource create and delete".
#[tokio::test]
async fn custom_resources_and_their_definitions_are_reviewed_like_all_else() {
    let case = Case::start().await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let defines = rule(&["CREATE"], "apiextensions.k8s.io", "customresourcedefinitions");
    case.register("validating", "a", json!([hook("crd", case.server.by_url("/deny"), defines)])).await;
    let refused = case.cluster.create(&crds, "", definition("v1")).await.unwrap_err();
    assert_eq!(refused.message, denied("crd", "the object contains unwanted data"));
    case.forget("validating").await;
    case.cluster.create(&crds, "", definition("v1")).await.unwrap();

    // The rule names v1 alone; what is written as v2 is shown as v1.
    let mut writes = rule(&["CREATE", "UPDATE"], "example.com", "things");
    writes["apiVersions"] = json!(["v1"]);
    let [first, second] =
        ["/stage-1", "/stage-2"].map(|path| hook(&path[1..], case.server.by_url(path), writes.clone()));
    case.register("mutating", "a", json!([first, second])).await;
    let thing = |version: &str, name: &str, data: Value| {
        json!({ "apiVersion": format!("example.com/{version}"), "kind": "Thing", "metadata": { "name": name },
            "data": data })
    };
    let start = json!({ "mutation-start": "yes" });
    let pruned = json!({ "mutation-start": "yes", "mutation-stage-1": "yes" });
    for version in ["v1", "v2"] {
        let things = resource("example.com", version, "things");
        case.server.asked();
        let made =
            case.cluster.create(&things, "default", thing(version, version, start.clone())).await.unwrap();
        assert_eq!((&made["data"], &made["apiVersion"]), (&pruned, &json!(format!("example.com/{version}"))));
        let request = case.server.asked()[0].1["request"].clone();
        assert_eq!(request["object"]["apiVersion"], "example.com/v1");
        assert_eq!(
            (&request["resource"]["version"], &request["requestResource"]["version"]),
            (&json!("v1"), &json!(version))
        );
    }
    let versions = definition("v2")["spec"]["versions"].clone();
    let place = ("", "things.example.com", "");
    let stored = json!({ "spec": { "versions": versions } });
    case.cluster.patch(&crds, place, PatchType::Merge, stored, options()).await.unwrap();
    let things = resource("example.com", "v1", "things");
    let change = json!({ "data": { "webhook-e2e-test": "webhook-nondeletable" } });
    let place = ("default", "v1", "");
    let changed =
        case.cluster.patch(&things, place, PatchType::Merge, change, WriteOptions::default()).await.unwrap();
    assert_eq!(changed["data"]["webhook-e2e-test"], "webhook-nondeletable");
    case.forget("mutating").await;

    let all = rule(&["CREATE", "UPDATE", "DELETE"], "example.com", "things");
    case.register("validating", "b", json!([hook("cr", case.server.by_url("/unwanted"), all)])).await;
    let bad = thing("v1", "bad", json!({ "webhook-e2e-test": "webhook-disallow" }));
    let refused = case.cluster.create(&things, "default", bad).await.unwrap_err();
    assert_eq!((refused.code, refused.message), (403, denied("cr", UNWANTED)));
    let kept = case.cluster.delete(&things, "default", "v1", DeleteOptions::default()).await.unwrap_err();
    assert_eq!(kept.message, denied("cr", UNWANTED));
    let all = Call::DeleteCollection(DeleteOptions::default(), ListOptions::default());
    assert!(case.cluster.call(&things, "default", "", "", all).await.is_err());
    assert_eq!(case.server.asked().last().unwrap().1["request"]["object"], Value::Null);
}

/// Configurations of v1beta1 need not say what their webhooks do besides: such webhooks see no dry runs.
#[tokio::test]
async fn webhooks_of_the_older_version_may_have_side_effects() {
    let case = Case::start().await;
    let mut plain = hook("old", case.server.by_url("/allow"), rule(&["CREATE"], "", "configmaps"));
    for field in ["sideEffects", "admissionReviewVersions"] {
        plain.as_object_mut().unwrap().remove(field);
    }
    let body = json!({ "metadata": { "name": "old", "labels": { "of": "test" } }, "webhooks": [plain] });
    let path = |version: &str| {
        format!("/apis/admissionregistration.k8s.io/{version}/validatingwebhookconfigurations")
    };
    assert_eq!(case.post(&path("v1"), body.clone()).await.code, 422);
    let made = case.post(&path("v1beta1"), body).await;
    assert_eq!((made.code, &made.json()["webhooks"][0]["sideEffects"]), (201, &json!("Unknown")));
    let change = json!({ "metadata": { "labels": { "more": "yes" } } }).to_string();
    let merge = "application/merge-patch+json";
    let kept = write(&case.cluster, Method::PATCH, &format!("{}/old", path("v1")), merge, change).await;
    assert_eq!(kept.code, 200, "{}", kept.json());

    assert_eq!(case.map("a", json!({})).await.code, 201);
    assert_eq!(case.server.asked()[0].1["apiVersion"], "admission.k8s.io/v1beta1");
    let dry = case.post(&format!("{MAPS}?dryRun=All"), json!({ "metadata": { "name": "b" } })).await;
    let wanted = "admission webhook \"old.example.com\" does not support dry run";
    assert_eq!((dry.code, dry.message().as_str()), (400, wanted));
    assert!(case.server.asked().is_empty());
}

/// "list mutating webhooks", "list validating webhooks", "update mutating webhook" and "discovery document".
#[tokio::test]
async fn configurations_are_listed_changed_and_removed_like_all_else() {
    let case = Case::start().await;
    let group = get(&case.cluster, CONFIGURATIONS, JSON).await.json();
    let creates = || rule(&["CREATE"], "", "configmaps");
    for (kind, path) in [("mutating", "/stage-1"), ("validating", "/deny")] {
        let plural = format!("{kind}webhookconfigurations");
        let served = group["resources"].as_array().unwrap();
        assert!(served.iter().any(|served| served["name"] == plural.as_str()));
        for number in 0..10 {
            let hooks = json!([hook(&format!("h-{number}"), case.server.by_url(path), creates())]);
            case.register(kind, &format!("{kind}-{number}"), hooks).await;
        }
        let list = format!("{CONFIGURATIONS}/{plural}?labelSelector=of%3Dtest");
        assert_eq!(get(&case.cluster, &list, JSON).await.json()["items"].as_array().unwrap().len(), 10);
        let touched = async |name: &str| {
            let made = case.map(&format!("{kind}-{name}"), json!({ "mutation-start": "yes" })).await;
            made.code == 403 || made.json()["data"]["mutation-stage-1"] == "yes"
        };
        assert!(touched("a").await);
        case.forget(kind).await;
        assert!(!touched("b").await);

        case.register(kind, "one", json!([hook("one", case.server.by_url(path), creates())])).await;
        for (operations, wanted) in [(["UPDATE"], false), (["CREATE"], true)] {
            let change =
                json!([{ "op": "replace", "path": "/webhooks/0/rules/0/operations", "value": operations }]);
            let place = format!("{CONFIGURATIONS}/{plural}/one");
            let json_patch = "application/json-patch+json";
            let changed = write(&case.cluster, Method::PATCH, &place, json_patch, change.to_string()).await;
            assert_eq!(changed.code, 200);
            assert_eq!(touched(&operations[0].to_lowercase()).await, wanted, "{kind} {operations:?}");
        }
        case.forget(kind).await;
    }
}
