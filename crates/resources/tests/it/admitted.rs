//! What admission sees of a request, when it sees it, and whose its changes are.

use api::connect::User;
use api::{DeleteOptions, PatchType, WriteOptions};
use http::Method;
use serde_json::{Value, json};

use crate::admission::{made, pod, shop};
use crate::cluster::{Cluster, options, resource};
use crate::hooks::{Case, hook, patch, rule};
use crate::http_front::{JSON, MAPS, get, write};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MERGE: &str = "application/merge-patch+json";

/// Allows everything, and changes what its paths say.
fn says(path: &str, review: &Value) -> Option<Value> {
    let mut response = json!({ "uid": review["request"]["uid"], "allowed": true });
    let mut change = |path: &str, value: Value| {
        patch(&mut response, json!([{ "op": "add", "path": path, "value": value }]));
    };
    match path {
        "/data" => change("/data", json!({ "hook": "yes" })),
        "/record" => change("/metadata/managedFields", json!([{ "operation": "Steal", "manager": "x" }])),
        "/me" => change("/spec/username", json!("system:admin")),
        "/question" => change("/spec/resourceAttributes/verb", json!("delete")),
        "/deny" => response["allowed"] = false.into(),
        "/warn" => {
            response["warnings"] = json!((0..9).map(|at| at.to_string().repeat(1000)).collect::<Vec<_>>())
        }
        _ => {}
    }
    Some(json!({ "apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response }))
}

impl Case {
    async fn with(kind: &str, path: &str, rule: Value) -> Self {
        let case = Self::saying(says).await;
        case.register(kind, "a", json!([hook("a", case.server.by_url(path), rule)])).await;
        case
    }

    /// The requests that the webhook was asked about since it was last asked this.
    fn requests(&self) -> Vec<Value> {
        self.server.asked().into_iter().map(|(_, review)| review["request"].clone()).collect()
    }
}

fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|group| (*group).into()).collect(),
        ..User::default()
    }
}

#[tokio::test]
async fn options_are_those_of_the_operation() {
    let case = Case::with("validating", "/", rule(&["*"], "", "configmaps")).await;
    let (cluster, maps) = (&case.cluster, resource("", "v1", "configmaps"));
    let signed = |force| WriteOptions { force, ..options() };
    let intent = |name: &str, value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": value } });
    let place = ("default", "m", "");
    cluster.patch(&maps, place, PatchType::Apply, intent("m", "1"), signed(true)).await.unwrap();
    cluster.patch(&maps, place, PatchType::Apply, intent("m", "2"), signed(true)).await.unwrap();
    let change = json!({ "data": { "k": "3" } });
    cluster.patch(&maps, place, PatchType::Merge, change, signed(false)).await.unwrap();
    cluster.delete(&maps, "default", "m", DeleteOptions::default()).await.unwrap();
    let requests = case.requests();
    let mut seen: Vec<(&str, &str)> = requests
        .iter()
        .filter(|request| request["name"] == "m")
        .map(|request| (request["operation"].as_str().unwrap(), request["options"]["kind"].as_str().unwrap()))
        .collect();
    // Who begins with what a late cache shows is asked again.
    seen.dedup();
    assert_eq!(seen, [("CREATE", "CreateOptions"), ("UPDATE", "UpdateOptions"), ("DELETE", "DeleteOptions")]);
    assert!(requests.iter().all(|request| request["options"].get("force").is_none()));
}

#[tokio::test]
async fn a_name_is_generated_between_mutation_and_validation() {
    let case = Case::with("mutating", "/data", rule(&["CREATE"], "", "configmaps")).await;
    let sees = json!([hook("b", case.server.by_url("/"), rule(&["CREATE"], "", "configmaps"))]);
    case.register("validating", "b", sees).await;
    let map = json!({ "metadata": { "generateName": "m-", "labels": { "a": "b" } } });
    let answer = case.post(MAPS, map).await.json();
    let (name, requests) = (answer["metadata"]["name"].as_str().unwrap(), case.requests());
    let [before, after] =
        requests.iter().filter(|one| one["object"]["metadata"]["labels"]["a"] == "b").collect::<Vec<_>>()[..]
    else {
        panic!("{requests:?}")
    };
    assert!(before.get("name").is_none());
    for field in ["name", "uid", "creationTimestamp"] {
        assert!(before["object"]["metadata"][field].is_null(), "{field}");
        assert!(after["object"]["metadata"][field].is_string(), "{field}");
    }
    assert_eq!((&after["name"], &after["object"]["metadata"]["name"]), (&json!(name), &json!(name)));
    // Who is refused before there is a name is told of the prefix.
    let nowhere =
        case.post("/api/v1/namespaces/nowhere/configmaps", json!({ "metadata": { "generateName": "m-" } }));
    assert_eq!(nowhere.await.code, 404);
    let lonely = json!({ "metadata": { "generateName": "p-" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let refused = case.post(PODS, lonely).await;
    assert!(refused.message().starts_with("pods \"p-\" is forbidden: "), "{}", refused.message());
}

#[tokio::test]
async fn what_admission_changes_is_not_the_writers() {
    let case = Case::with("mutating", "/data", rule(&["CREATE", "UPDATE"], "", "configmaps")).await;
    let fields = |object: &Value| object["metadata"]["managedFields"][0]["fieldsV1"].clone();
    let map = json!({ "metadata": { "name": "m", "labels": { "a": "b" } } });
    let created = case.post(MAPS, map).await.json();
    assert_eq!(created["data"]["hook"], "yes");
    assert_eq!(fields(&created), json!({ "f:metadata": { "f:labels": { ".": {}, "f:a": {} } } }));
    let change = json!({ "metadata": { "labels": { "c": "d" } }, "data": null }).to_string();
    let one = format!("{MAPS}/m");
    let changed = write(&case.cluster, Method::PATCH, &one, MERGE, change).await.json();
    assert_eq!(changed["data"]["hook"], "yes");
    assert_eq!(fields(&changed), json!({ "f:metadata": { "f:labels": { ".": {}, "f:a": {}, "f:c": {} } } }));
}

#[tokio::test]
async fn a_record_that_admission_spoils_goes_back_with_a_warning() {
    let case = Case::with("mutating", "/record", rule(&["CREATE"], "", "configmaps")).await;
    let created = case.post(MAPS, json!({ "metadata": { "name": "m", "labels": { "a": "b" } } })).await;
    let record = created.json()["metadata"]["managedFields"].clone();
    assert_eq!(record[0]["fieldsV1"], json!({ "f:metadata": { "f:labels": { ".": {}, "f:a": {} } } }));
    assert_eq!(
        created.warnings(),
        [
            "299 - \".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated \
             mutating admission controller; please fix your requests: operation must be `Apply` or `Update`\""
        ]
    );
}

#[tokio::test]
async fn nobody_says_who_asks_but_the_server() {
    let requests = "certificatesigningrequests";
    let case = Case::with("mutating", "/me", rule(&["CREATE"], "certificates.k8s.io", requests)).await;
    let csr = json!({ "metadata": { "name": "csr" }, "spec": {
        "request": crate::cluster::signing_request(), "signerName": "example.com/mine", "usages": ["client auth"], "username": "root",
    } });
    let made = case.post(&format!("/apis/certificates.k8s.io/v1/{requests}"), csr).await;
    assert_eq!((made.code, &made.json()["spec"]["username"]), (201, &json!("admin")));
    assert_eq!(case.requests().len(), 1);
}

#[tokio::test]
async fn questions_are_admitted_like_all_that_is_created() {
    let case = Case::with("mutating", "/question", rule(&["CREATE"], "authorization.k8s.io", "*")).await;
    let question =
        |verb: &str| json!({ "spec": { "resourceAttributes": { "verb": verb, "resource": "pods" } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = case.post(path, question("get")).await.json();
    assert_eq!(
        (&answer["spec"]["resourceAttributes"]["verb"], &answer["status"]["allowed"]),
        (&json!("delete"), &json!(true))
    );
    let denies = json!([hook(
        "b",
        case.server.by_url("/deny"),
        rule(&["CREATE"], "authentication.k8s.io", "tokenreviews")
    )]);
    case.register("validating", "b", denies).await;
    let refused =
        case.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({ "spec": { "token": "x" } })).await;
    assert_eq!(
        refused.message(),
        "admission webhook \"b.example.com\" denied the request without explanation"
    );
    // Whether there is such a namespace is nobody's business.
    let local = json!({ "spec": { "user": "u", "resourceAttributes": { "namespace": "nowhere", "verb": "get", "resource": "pods" } } });
    let local =
        case.post("/apis/authorization.k8s.io/v1/namespaces/nowhere/localsubjectaccessreviews", local).await;
    assert_eq!((local.code, &local.json()["status"]["allowed"]), (201, &json!(false)));
}

#[tokio::test]
async fn warnings_of_an_answer_come_to_an_end() {
    let case = Case::with("validating", "/warn", rule(&["CREATE"], "", "configmaps")).await;
    let answer = case.post(MAPS, json!({ "metadata": { "name": "m" } })).await;
    let wanted: Vec<String> = (0..9).map(|at| format!("299 - \"{}\"", at.to_string().repeat(256))).collect();
    assert_eq!(answer.warnings(), wanted);
}

/// A pod `p` that runs on a node.
async fn running(cluster: &Cluster, node: &str) {
    let account = json!({ "metadata": { "name": "default" } });
    made(cluster, "/api/v1/namespaces/default/serviceaccounts", account).await;
    let mut pod = pod("p", json!({}));
    pod["spec"]["nodeName"] = node.into();
    made(cluster, PODS, pod).await;
}

#[tokio::test]
async fn an_eviction_is_admitted_once() {
    let case = Case::with("validating", "/", rule(&["*"], "", "*/*")).await;
    running(&case.cluster, "n1").await;
    case.requests();
    let eviction = json!({ "metadata": { "name": "p" }, "deleteOptions": { "gracePeriodSeconds": 0 } });
    assert_eq!(case.post(&format!("{PODS}/p/eviction"), eviction).await.code, 201);
    let requests = case.requests();
    let about: Vec<&Value> = requests.iter().filter(|one| one["name"] == "p").collect();
    assert_eq!(about.len(), 1, "{about:?}");
    assert_eq!((&about[0]["operation"], &about[0]["subResource"]), (&json!("CREATE"), &json!("eviction")));
    assert_eq!(get(&case.cluster, &format!("{PODS}/p"), JSON).await.code, 404);
}

#[tokio::test]
async fn a_node_evicts_its_own_pods() {
    let cluster = Cluster::start().await;
    running(&cluster, "n1").await;
    let evict = async |node: &str| {
        let body = json!({ "metadata": { "name": "p" } }).to_string();
        let path = format!("{PODS}/p/eviction");
        let node = user(&format!("system:node:{node}"), &["system:nodes", "system:authenticated"]);
        crate::http_front::send(&cluster, Some(&node), Method::POST, &path, &[("content-type", JSON)], body)
            .await
    };
    let refused = evict("n2").await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (403, "pods \"p\" is forbidden: node n2 can only evict pods with spec.nodeName set to itself")
    );
    let evicted = evict("n1").await;
    assert_eq!(evicted.code, 201, "{}", evicted.message());
    let pod = get(&cluster, &format!("{PODS}/p"), JSON).await.json();
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn ephemeral_containers_use_listed_secrets_only() {
    let cluster = shop().await;
    let account = json!({ "metadata": { "name": "bound", "annotations": { "kubernetes.io/enforce-mountable-secrets": "true" } },
        "secrets": [{ "name": "known" }] });
    made(&cluster, "/api/v1/namespaces/shop/serviceaccounts", account).await;
    let mut pod = pod("p", json!({}));
    pod["spec"]["serviceAccountName"] = "bound".into();
    pod["spec"]["automountServiceAccountToken"] = false.into();
    made(&cluster, "/api/v1/namespaces/shop/pods", pod).await;
    let path = "/api/v1/namespaces/shop/pods/p/ephemeralcontainers";
    let strategic = "application/strategic-merge-patch+json";
    let add = async |name: &str, secret: &str| {
        let env = json!([{ "name": "E", "valueFrom": { "secretKeyRef": { "name": secret, "key": "k" } } }]);
        let container = json!({ "name": name, "image": "i", "env": env });
        let body = json!({ "spec": { "ephemeralContainers": [container] } }).to_string();
        write(&cluster, Method::PATCH, path, strategic, body).await
    };
    let refused = add("d", "other").await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (
            403,
            "pods \"p\" is forbidden: ephemeral container d with envVar E referencing secret.secretName=\"other\" is not \
             allowed because service account bound does not reference that secret"
        )
    );
    assert_eq!(add("d", "known").await.code, 200);
}

#[tokio::test]
async fn a_deletions_body_says_everything() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let one = format!("{MAPS}/m");
    made(&cluster, MAPS, json!({ "metadata": { "name": "m" } })).await;
    let wrong = write(&cluster, Method::DELETE, &one, JSON, json!({ "dryRun": ["Some"] }).to_string()).await;
    assert_eq!(wrong.code, 422, "{}", wrong.message());
    let body = json!({ "propagationPolicy": "Background" }).to_string();
    let path = format!("{one}?dryRun=All&propagationPolicy=Foreground&gracePeriodSeconds=nonsense");
    assert_eq!(write(&cluster, Method::DELETE, &path, JSON, body).await.code, 200);
    assert_eq!(cluster.get(&maps, "default", "m").await.unwrap_err().code, 404);
}
