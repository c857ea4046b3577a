//! ResourceQuota through the API: what fits is charged at once, what does not is refused; and the plugins around
//! identities: certificates, service accounts, nodes.

use api::connect::User;
use http::Method;
use serde_json::{Value, json};

use crate::admission::{made, pod, post, refused, shop};
use crate::cluster::Cluster;
use crate::http_front::{JSON, get, send, write};

const PODS: &str = "/api/v1/namespaces/shop/pods";
const QUOTAS: &str = "/api/v1/namespaces/shop/resourcequotas";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const MERGE: &str = "application/merge-patch+json";

/// Makes a quota and tells its status as the controller does, with nothing used.
async fn limit(cluster: &Cluster, name: &str, hard: Value, scopes: Value) {
    let spec = json!({ "hard": hard, "scopes": scopes });
    made(cluster, QUOTAS, json!({ "metadata": { "name": name }, "spec": spec })).await;
    let used: Value = hard.as_object().unwrap().keys().map(|name| (name.clone(), json!("0"))).collect();
    let status = json!({ "status": { "hard": hard, "used": used } }).to_string();
    let told = write(cluster, Method::PATCH, &format!("{QUOTAS}/{name}/status"), MERGE, status).await;
    assert_eq!(told.code, 200, "{}", told.message());
}

async fn used(cluster: &Cluster, name: &str) -> Value {
    get(cluster, &format!("{QUOTAS}/{name}"), JSON).await.json()["status"]["used"].clone()
}

#[tokio::test]
async fn a_quota_is_charged_and_kept() {
    let cluster = shop().await;
    let hard = json!({ "pods": "2", "requests.cpu": "1", "count/configmaps": "1" });
    limit(&cluster, "q", hard, json!([])).await;
    let asks = |cpu: &str| json!({ "requests": { "cpu": cpu } });
    made(&cluster, PODS, pod("a", asks("600m"))).await;
    assert_eq!(
        used(&cluster, "q").await,
        json!({ "pods": "1", "requests.cpu": "600m", "count/configmaps": "0" })
    );
    assert_eq!(
        refused(&cluster, PODS, pod("b", asks("500m"))).await,
        "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: \
         requests.cpu=1"
    );
    assert_eq!(
        refused(&cluster, PODS, pod("c", json!({}))).await,
        "pods \"c\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    let dry = post(&cluster, &format!("{PODS}?dryRun=All"), pod("d", asks("400m"))).await;
    assert_eq!(dry.code, 201, "{}", dry.message());
    made(&cluster, PODS, pod("e", asks("400m"))).await;
    let maps = "/api/v1/namespaces/shop/configmaps";
    made(&cluster, maps, json!({ "metadata": { "name": "one" } })).await;
    assert_eq!(
        refused(&cluster, maps, json!({ "metadata": { "name": "two" } })).await,
        "configmaps \"two\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1, \
         limited: count/configmaps=1"
    );
    assert_eq!(
        used(&cluster, "q").await,
        json!({ "pods": "2", "requests.cpu": "1", "count/configmaps": "1" })
    );
    objects_of_each_kind_are_counted(&cluster).await;
}

async fn objects_of_each_kind_are_counted(cluster: &Cluster) {
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [
        { "name": "c", "image": "a:1" },
    ] } });
    let kinds = [
        ("/api/v1", "secrets", "secrets", json!({})),
        ("/api/v1", "services", "services", json!({ "spec": { "ports": [{ "port": 80 }] } })),
        (
            "/api/v1",
            "replicationcontrollers",
            "replicationcontrollers",
            json!({ "spec": { "selector": { "a": "b" }, "template": template } }),
        ),
        (
            "/apis/apps/v1",
            "replicasets",
            "count/replicasets.apps",
            json!({ "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": template } }),
        ),
    ];
    let of_each =
        |number: &str| -> Value { kinds.iter().map(|(_, _, name, _)| (*name, json!(number))).collect() };
    limit(cluster, "kinds", of_each("1"), json!([])).await;
    for (group, resource, counted, body) in &kinds {
        let path = format!("{group}/namespaces/shop/{resource}");
        let named = |name: &str| {
            let mut body = body.clone();
            body["metadata"] = json!({ "name": name });
            body
        };
        made(cluster, &path, named("one")).await;
        let why = refused(cluster, &path, named("two")).await;
        let wanted =
            format!("exceeded quota: kinds, requested: {counted}=1, used: {counted}=1, limited: {counted}=1");
        assert!(why.contains(&wanted), "{why}");
    }
    assert_eq!(used(cluster, "kinds").await, of_each("1"));
}

#[tokio::test]
async fn a_quota_counts_in_its_scope_and_updates_by_what_they_add() {
    let cluster = shop().await;
    limit(&cluster, "best", json!({ "pods": "0" }), json!(["BestEffort"])).await;
    limit(&cluster, "ports", json!({ "services.nodeports": "1" }), json!([])).await;
    limit(&cluster, "brief", json!({ "pods": "1" }), json!(["Terminating"])).await;
    limit(&cluster, "lasting", json!({ "pods": "5" }), json!(["NotTerminating"])).await;
    made(&cluster, PODS, pod("asks", json!({ "requests": { "cpu": "1" } }))).await;
    let why = refused(&cluster, PODS, pod("plain", json!({}))).await;
    assert!(why.contains("exceeded quota: best, requested: pods=1, used: pods=0, limited: pods=0"), "{why}");
    let brief = |name: &str| {
        let mut pod = pod(name, json!({ "requests": { "cpu": "1" } }));
        pod["spec"]["activeDeadlineSeconds"] = 60.into();
        pod
    };
    made(&cluster, PODS, brief("ends")).await;
    let why = refused(&cluster, PODS, brief("late")).await;
    assert!(why.contains("exceeded quota: brief, requested: pods=1, used: pods=1, limited: pods=1"), "{why}");
    for scope in ["brief", "lasting"] {
        assert_eq!(used(&cluster, scope).await, json!({ "pods": "1" }), "{scope}");
    }
    let services = "/api/v1/namespaces/shop/services";
    let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] } });
    made(&cluster, services, service).await;
    let opened = json!({ "spec": { "type": "NodePort" } }).to_string();
    let opened = write(&cluster, Method::PATCH, &format!("{services}/s"), MERGE, opened).await;
    assert_eq!(opened.code, 200, "{}", opened.message());
    assert_eq!(used(&cluster, "ports").await, json!({ "services.nodeports": "1" }));
    let more = json!({ "spec": { "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] } });
    let more = write(&cluster, Method::PATCH, &format!("{services}/s"), MERGE, more.to_string()).await;
    assert_eq!(more.code, 403, "{}", more.message());
}

#[tokio::test]
async fn devices_are_charged_as_what_their_class_stands_for_unless_a_pod_is() {
    let cluster = shop().await;
    let (gpu, devices) = ("requests.example.com/gpu", "gpu.deviceclass.resource.k8s.io/devices");
    limit(&cluster, "q", json!({ gpu: "2", devices: "3" }), json!([])).await;
    let class =
        json!({ "metadata": { "name": "gpu" }, "spec": { "extendedResourceName": "example.com/gpu" } });
    made(&cluster, "/apis/resource.k8s.io/v1/deviceclasses", class).await;
    let asked = json!({ "example.com/gpu": "1" });
    let asking = made(&cluster, PODS, pod("p", json!({ "requests": asked, "limits": asked }))).await;
    assert_eq!(used(&cluster, "q").await, json!({ gpu: "1", devices: "0" }));
    // The caches show the pod.
    let version = asking["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    assert_eq!(get(&cluster, &format!("{PODS}?resourceVersion={version}"), JSON).await.code, 200);

    let claims = "/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims";
    let claim = |name: &str| {
        let request = json!({ "name": "r", "exactly": { "deviceClassName": "gpu" } });
        json!({ "metadata": { "name": name }, "spec": { "devices": { "requests": [request] } } })
    };
    let mut own = claim("own");
    own["metadata"]["annotations"] = json!({ "resource.kubernetes.io/extended-resource-claim": "true" });
    own["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p",
        "uid": asking["metadata"]["uid"], "controller": true }]);
    made(&cluster, claims, own).await;
    assert_eq!(used(&cluster, "q").await, json!({ gpu: "1", devices: "1" }));
    made(&cluster, claims, claim("a")).await;
    assert_eq!(used(&cluster, "q").await, json!({ gpu: "2", devices: "2" }));
    assert_eq!(
        refused(&cluster, claims, claim("b")).await,
        "resourceclaims.resource.k8s.io \"b\" is forbidden: exceeded quota: q, requested: requests.example.com/gpu=1, \
         used: requests.example.com/gpu=2, limited: requests.example.com/gpu=2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_pass_no_more_than_fit() {
    let cluster = shop().await;
    limit(&cluster, "q", json!({ "count/secrets": "5" }), json!([])).await;
    let secrets = "/api/v1/namespaces/shop/secrets";
    let all = (0..20)
        .map(|number| post(&cluster, secrets, json!({ "metadata": { "name": format!("s{number}") } })));
    let answers = futures::future::join_all(all).await;
    let count = |code: u16| answers.iter().filter(|answer| answer.code == code).count();
    assert_eq!((count(201), count(403)), (5, 15));
    assert_eq!(used(&cluster, "q").await, json!({ "count/secrets": "5" }));
}

#[tokio::test]
async fn certificates_are_the_signers_and_make_no_administrators() {
    use base64::Engine as _;
    let cluster = shop().await;
    let request = |name: &str, groups: &[&str]| {
        let identity = apiserver::pki::Identity {
            user: "u".into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..apiserver::pki::Identity::default()
        };
        let pem = apiserver::pki::signing_request(&identity).unwrap().request_pem;
        let request = base64::engine::general_purpose::STANDARD.encode(pem);
        json!({ "metadata": { "name": name }, "spec": {
            "request": request, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
        } })
    };
    assert_eq!(
        refused(&cluster, REQUESTS, request("root", &["system:masters"])).await,
        "certificatesigningrequests.certificates.k8s.io \"root\" is forbidden: use of \
         kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    );
    made(&cluster, REQUESTS, request("r", &["dev"])).await;
    // Somebody who may write approvals, and for no signer.
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let rule = json!({ "apiGroups": ["certificates.k8s.io"], "verbs": ["patch", "update"],
        "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"] });
    made(&cluster, roles, json!({ "metadata": { "name": "approver" }, "rules": [rule] })).await;
    let binding = json!({
        "metadata": { "name": "approver" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "approver" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve" }],
    });
    made(&cluster, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let eve = User { name: "eve".into(), ..User::default() };
    let patch = |part: &str, body: Value| {
        let (cluster, eve) = (&cluster, &eve);
        let path = format!("{REQUESTS}/r/{part}");
        async move {
            let headers = [("content-type", MERGE)];
            send(cluster, Some(eve), Method::PATCH, &path, &headers, body.to_string()).await.message()
        }
    };
    let condition = |kind: &str| json!({ "status": { "conditions": [{ "type": kind, "status": "True", "reason": "x" }] } });
    assert_eq!(
        patch("approval", condition("Approved")).await,
        "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to approve requests with \
         signerName \"kubernetes.io/kube-apiserver-client\""
    );
    assert_eq!(
        patch("status", condition("Failed")).await,
        "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to sign requests with \
         signerName \"kubernetes.io/kube-apiserver-client\""
    );
}

#[tokio::test]
async fn accounts_may_bind_their_pods_to_their_secrets_and_objects_in_use_are_kept() {
    let cluster = shop().await;
    let account = json!({ "metadata": {
        "name": "strict", "annotations": { "kubernetes.io/enforce-mountable-secrets": "true" } } });
    made(&cluster, "/api/v1/namespaces/shop/serviceaccounts", account).await;
    let mut wanted = pod("p", json!({}));
    wanted["spec"]["serviceAccountName"] = "strict".into();
    wanted["spec"]["volumes"] = json!([{ "name": "v", "secret": { "secretName": "other" } }]);
    assert_eq!(
        refused(&cluster, PODS, wanted).await,
        "pods \"p\" is forbidden: volume with secret.secretName=\"other\" is not allowed because service account strict \
         does not reference that secret"
    );
    let claim = json!({ "metadata": { "name": "d" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let claim = made(&cluster, "/api/v1/namespaces/shop/persistentvolumeclaims", claim).await;
    assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
}
