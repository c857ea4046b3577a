//! What protects the server and what it keeps: encryption at rest, the audit log, admission as a file configures it.

use std::path::Path;
use std::sync::Arc;

use api::{Call, ListOptions, Response};
use apiserver::Protection;
use futures::StreamExt;
use http::Method;
use inotify::{Inotify, WatchMask};
use serde_json::{Value, json};
use store::memory::Memory;
use store::{Embedded, EmbeddedConfig, RangeRequest, Store};

use crate::cluster::{Cluster, Made, PATIENCE, resource};
use crate::hook_server::HookServer;
use crate::hooks::{hook as admission_hook, rule};
use crate::http_front::{JSON, get, send, write};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const STORED: &str = "/registry/core/secrets/default/a";
const ONE: &str = "{name: one, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}";
const TWO: &str = "{name: two, secret: AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}";

fn keys(path: &Path, providers: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
         resources: [{{resources: [secrets, widgets.example.com], providers: [{providers}]}}]\n"
    );
    // As editors and volumes do: never half a file.
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

async fn stored(store: &Arc<dyn Store>) -> Vec<u8> {
    store.range(RangeRequest::key(STORED)).await.unwrap().kvs[0].value.to_vec()
}

/// Gives the server other keys, which it reads anew when the kernel tells it.
async fn rotate(cluster: &Cluster, path: &Path, providers: &str) {
    let mut changes = cluster.pipeline.key_changes().unwrap();
    keys(path, providers);
    tokio::time::timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
}

/// Writes the secret as it is; it then lies in the store under a prefix.
async fn rewritten(cluster: &Cluster, store: &Arc<dyn Store>, prefix: &[u8]) -> Value {
    let path = format!("{SECRETS}/a");
    let now = get(cluster, &path, JSON).await;
    assert_eq!(now.code, 200, "{}", now.message());
    let written = write(cluster, Method::PUT, &path, JSON, now.body.clone()).await;
    assert_eq!(written.code, 200, "{}", written.message());
    assert!(stored(store).await.starts_with(prefix));
    written.json()
}

/// What a file says once it says what is wanted: it is read again whenever the kernel tells that it was written.
async fn said<T>(path: &Path, wanted: impl Fn(&str) -> Option<T>) -> T {
    let inotify = Inotify::init().unwrap();
    inotify.watches().add(path.parent().unwrap(), WatchMask::MODIFY | WatchMask::CREATE).unwrap();
    let mut written = inotify.into_event_stream([0; 4096]).unwrap();
    let wait = async {
        loop {
            if let Some(found) = wanted(&std::fs::read_to_string(path).unwrap_or_default()) {
                return found;
            }
            written.next().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

#[tokio::test]
async fn secrets_are_encrypted_at_rest_and_their_keys_rotate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.yaml");
    let store: Arc<dyn Store> = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap();
    let secret = json!({ "metadata": { "name": "a" }, "stringData": { "password": "hunter2" } });
    let protection = Protection { encryption_provider_config: Some(path.clone()), ..Protection::default() };

    // Written before anything was encrypted.
    let plain = Cluster::start_over(store.clone()).await;
    assert_eq!(write(&plain, Method::POST, SECRETS, JSON, secret.to_string()).await.code, 201);
    let encoded = b"aHVudGVyMg==";
    let holds = |value: &[u8]| value.windows(encoded.len()).any(|part| part == encoded);
    assert!(holds(&stored(&store).await));
    drop(plain);

    keys(&path, &format!("{{aescbc: {{keys: [{ONE}]}}}}, {{identity: {{}}}}"));
    let cluster = Cluster::start_protected(store.clone(), protection.clone()).await;
    let version =
        get(&cluster, &format!("{SECRETS}/a"), JSON).await.json()["metadata"]["resourceVersion"].clone();
    // An update that changes nothing writes what lies there in another form, and only that.
    let written = rewritten(&cluster, &store, b"k8s:enc:aescbc:v1:one:").await;
    assert_ne!(written["metadata"]["resourceVersion"], version);
    assert!(!holds(&stored(&store).await));
    let again = write(&cluster, Method::PUT, &format!("{SECRETS}/a"), JSON, written.to_string()).await;
    assert_eq!(again.json()["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);
    for path in
        [format!("{SECRETS}?limit=1"), SECRETS.to_owned(), format!("{SECRETS}?watch=1&timeoutSeconds=1")]
    {
        assert!(holds(&get(&cluster, &path, JSON).await.body), "{path}");
    }
    // What is not named is not encrypted.
    let maps = crate::http_front::MAPS;
    assert_eq!(write(&cluster, Method::POST, maps, JSON, r#"{"metadata":{"name":"m"}}"#).await.code, 201);
    let map = store.range(RangeRequest::key("/registry/core/configmaps/default/m")).await.unwrap();
    assert!(map.kvs[0].value.starts_with(b"{"));

    // A new key is taken without a restart; values of the old one are read and rewritten.
    rotate(&cluster, &path, &format!("{{secretbox: {{keys: [{TWO}]}}}}, {{aescbc: {{keys: [{ONE}]}}}}"))
        .await;
    rewritten(&cluster, &store, b"k8s:enc:secretbox:v1:two:").await;
    drop(cluster);

    // Values that are older than the keys are refused, by name, and nothing takes their place.
    let before = stored(&store).await;
    keys(&path, &format!("{{secretbox: {{keys: [{TWO}]}}}}, {{identity: {{}}}}"));
    let cluster = Cluster::start_protected(store.clone(), protection).await;
    rotate(&cluster, &path, &format!("{{secretbox: {{keys: [{ONE}]}}}}, {{identity: {{}}}}")).await;
    let refused = get(&cluster, &format!("{SECRETS}/a"), JSON).await;
    assert_eq!(refused.code, 500);
    assert_eq!(
        refused.message(),
        format!(
            "Internal error occurred: unable to transform key {STORED:?}: no matching key was found for the \
             provided Secretbox transformer"
        )
    );
    assert_eq!(stored(&store).await, before);
}

#[tokio::test]
async fn what_no_key_opens_keeps_nobody_from_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.yaml");
    let store: Arc<dyn Store> = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap();
    let protection = Protection { encryption_provider_config: Some(path.clone()), ..Protection::default() };
    let secret = |name: &str| json!({ "metadata": { "name": name }, "stringData": { "a": "b" } }).to_string();
    keys(&path, &format!("{{secretbox: {{keys: [{ONE}]}}}}"));
    let cluster = Cluster::start_protected(store.clone(), protection.clone()).await;
    for name in ["a", "lost"] {
        assert_eq!(write(&cluster, Method::POST, SECRETS, JSON, secret(name)).await.code, 201);
    }
    let elsewhere = "/api/v1/namespaces/kube-system/secrets";
    drop(cluster);

    keys(&path, &format!("{{secretbox: {{keys: [{TWO}]}}}}"));
    let cluster = Cluster::start_protected(store.clone(), protection.clone()).await;
    let why = format!(
        "Internal error occurred: unable to transform key {STORED:?}: no matching key was found for the provided \
         Secretbox transformer"
    );
    for path in [
        format!("{SECRETS}/a"),
        format!("{SECRETS}/a?resourceVersion=0"),
        SECRETS.to_owned(),
        format!("{SECRETS}?resourceVersion=0"),
        "/api/v1/secrets".to_owned(),
        format!("{SECRETS}?watch=1&timeoutSeconds=1"),
        format!("{SECRETS}?fieldSelector=metadata.name%3Da"),
    ] {
        let refused = get(&cluster, &path, JSON).await;
        assert_eq!((refused.code, refused.message()), (500, why.clone()), "{path}");
        assert_eq!(refused.json()["reason"], "InternalError");
    }
    // Everything else is as ever.
    assert_eq!(write(&cluster, Method::POST, SECRETS, JSON, secret("b")).await.code, 201);
    for path in [
        format!("{SECRETS}/b"),
        format!("{SECRETS}?fieldSelector=metadata.name%3Db"),
        elsewhere.to_owned(),
        format!("{elsewhere}?watch=1&timeoutSeconds=1"),
        crate::http_front::MAPS.to_owned(),
        "/api/v1/namespaces".to_owned(),
    ] {
        let answer = get(&cluster, &path, JSON).await;
        assert_eq!(answer.code, 200, "{path}: {:?}", answer.body);
    }
    let figures = get(&cluster, "/metrics", "").await;
    let figures = String::from_utf8(figures.body.to_vec()).unwrap();
    for (way, status) in [("to_storage", "OK"), ("from_storage", "unknown-non-grpc")] {
        let line = format!(
            "apiserver_storage_transformation_operations_total{{status=\"{status}\",transformation_type=\"{way}\",\
             transformer_prefix=\"k8s:enc:secretbox:v1:\"}}"
        );
        assert!(figures.contains(&line), "{line}");
    }
    // What is lost for good can be removed, if that is what one wants.
    let lost = format!("{SECRETS}/lost");
    let remove = async |path: &str, options: Value| {
        let answer = write(&cluster, Method::DELETE, path, JSON, options.to_string()).await;
        (answer.code, answer.message())
    };
    assert_eq!(remove(&lost, json!({})).await.0, 500);
    let ignore = json!({ "ignoreStoreReadErrorWithClusterBreakingPotential": true });
    let mut graceful = ignore.clone();
    graceful["gracePeriodSeconds"] = 0.into();
    let (code, says) = remove(&lost, graceful).await;
    assert!(
        code == 422 && says.ends_with("Invalid value: true: cannot be set together with .gracePeriodSeconds")
    );
    let (code, says) = remove(SECRETS, ignore.clone()).await;
    assert!(code == 422 && says.contains("is not allowed with DELETECOLLECTION"), "{says}");
    let (code, says) = remove(&format!("{SECRETS}/b"), ignore.clone()).await;
    assert!(code == 409 && says.ends_with("because the object is decodable from storage"), "{says}");
    let stranger = api::connect::User { name: "jane".into(), ..Default::default() };
    let headers = [("content-type", JSON)];
    let refused = send(&cluster, Some(&stranger), Method::DELETE, &lost, &headers, ignore.to_string()).await;
    assert_eq!(refused.code, 403);
    assert_eq!(remove(&lost, ignore.clone()).await.0, 200);
    assert_eq!(remove(&lost, ignore).await.0, 404);
    // The key comes back: the cache begins anew, and ends whoever watches.
    let watch = Call::Watch(ListOptions::default());
    let watch = cluster.call(&resource("", "v1", "secrets"), "kube-system", "", "", watch).await;
    let Ok(Response::Watch(mut stream)) = watch else { panic!("no watch") };
    keys(&path, &format!("{{secretbox: {{keys: [{TWO}, {ONE}]}}}}"));
    let ended = async { while stream.next().await.is_some_and(|batch| batch.is_ok()) {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    let list = get(&cluster, SECRETS, JSON).await;
    assert_eq!((list.code, list.json()["items"].as_array().map(Vec::len)), (200, Some(2)));
}

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
  - {level: None, users: ["skiff:apiserver", "skiff:bootstrap"]}
  - {level: Metadata, resources: [{group: "", resources: [secrets]}], omitStages: [RequestReceived]}
  - {level: RequestResponse, resources: [{group: "", resources: [configmaps]}], omitManagedFields: true}
  - {level: Metadata, userGroups: ["system:authenticated", "system:unauthenticated"]}
  - {level: Metadata, namespaces: [default], omitStages: [RequestReceived]}
  - {level: Metadata, nonResourceURLs: [/version]}
"#;

/// The events of the log once there is one of this request and stage: they are written beside the requests.
async fn events_with(log: &Path, id: &str, stage: &str) -> Vec<Value> {
    said(log, |text| {
        let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let events: Vec<Value> = whole.filter(|event| event["auditID"] == id).collect();
        events.iter().any(|event| event["stage"] == stage).then_some(events)
    })
    .await
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one log, read from its first line to its last")]
async fn the_audit_log_says_who_did_what_and_no_more_than_the_policy_wants() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, log) = (dir.path().join("policy.yaml"), dir.path().join("audit/audit.log"));
    std::fs::write(&policy, POLICY).unwrap();
    let audit = apiserver::Audit {
        policy_file: Some(policy),
        log_path: Some(log.clone()),
        ..apiserver::Audit::default()
    };
    let store: Arc<dyn Store> = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap();
    let cluster = Cluster::start_protected(store, Protection { audit, ..Protection::default() }).await;
    let maps = crate::http_front::MAPS;
    let ask =
        async |peer: bool, id: &str, method: Method, path: &str, more: &[(&str, &str)], body: String| {
            let headers =
                [&[("audit-id", id), ("content-type", JSON), ("user-agent", "test/1")], more].concat();
            let peer = peer.then_some(&cluster.user);
            let answer = crate::http_front::send(&cluster, peer, method, path, &headers, body).await;
            assert_eq!(answer.header("audit-id"), id);
            answer
        };

    let map = json!({ "metadata": { "name": "m" }, "data": { "k": "v" } }).to_string();
    assert_eq!(ask(true, "one", Method::POST, maps, &[], map).await.code, 201);
    let events = events_with(&log, "one", "ResponseComplete").await;
    assert_eq!((events.len(), &events[0]["stage"]), (2, &json!("RequestReceived")));
    let done = &events[1];
    assert_eq!(
        (&done["verb"], &done["level"], &done["user"]["username"]),
        (&json!("create"), &json!("RequestResponse"), &json!("admin"))
    );
    assert_eq!((&done["requestURI"], &done["userAgent"]), (&json!(maps), &json!("test/1")));
    assert_eq!(
        done["objectRef"],
        json!({ "resource": "configmaps", "namespace": "default", "apiVersion": "v1" })
    );
    assert_eq!(
        (&done["responseStatus"]["code"], &done["requestObject"]["data"]),
        (&json!(201), &json!({ "k": "v" }))
    );
    let made = &done["responseObject"]["metadata"];
    assert!(made["uid"].is_string() && made.get("managedFields").is_none(), "{made}");
    assert_eq!(done["annotations"]["authorization.k8s.io/decision"], "allow");

    let secret = json!({ "metadata": { "name": "a" }, "stringData": { "password": "hunter2" } }).to_string();
    assert_eq!(ask(true, "two", Method::POST, SECRETS, &[], secret).await.code, 201);
    assert_eq!(ask(true, "three", Method::GET, SECRETS, &[], String::new()).await.code, 200);
    for id in ["two", "three"] {
        let events = events_with(&log, id, "ResponseComplete").await;
        assert_eq!(events.len(), 1, "its reception is left out");
        assert!(events[0].get("requestObject").is_none() && events[0].get("responseObject").is_none());
    }
    let bob = [("impersonate-user", "bob")];
    assert_eq!(ask(true, "four", Method::GET, SECRETS, &bob, String::new()).await.code, 403);
    let refused = events_with(&log, "four", "ResponseComplete").await.pop().unwrap();
    assert_eq!(
        (&refused["user"]["username"], &refused["impersonatedUser"]["username"]),
        (&json!("admin"), &json!("bob"))
    );
    assert_eq!(
        (&refused["verb"], &refused["responseStatus"]["reason"]),
        (&json!("list"), &json!("Forbidden"))
    );
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");

    let wrong = [("authorization", "Bearer nonsense")];
    assert_eq!(ask(false, "five", Method::GET, "/version", &wrong, String::new()).await.code, 401);
    let stranger = events_with(&log, "five", "ResponseStarted").await;
    assert_eq!(stranger.len(), 1);
    assert_eq!(stranger[0]["responseStatus"]["message"], "Authentication failed, attempted: bearer");

    // What is refused before anybody is asked who it is, is written down too.
    let hasty = format!("{SECRETS}?timeout=soon");
    assert_eq!(ask(true, "hasty", Method::GET, &hasty, &[], String::new()).await.code, 400);
    let hasty = events_with(&log, "hasty", "ResponseStarted").await;
    let why = hasty[0]["responseStatus"]["message"].as_str().unwrap();
    assert!(why.starts_with("invalid timeout specified in the request URL"), "{why}");

    // A namespace is in itself.
    assert_eq!(
        ask(true, "own", Method::GET, "/api/v1/namespaces/default", &[], String::new()).await.code,
        200
    );
    let own = events_with(&log, "own", "ResponseComplete").await;
    assert_eq!(
        own[0]["objectRef"],
        json!({ "resource": "namespaces", "namespace": "default", "name": "default", "apiVersion": "v1" })
    );

    let watch = format!("{maps}?watch=1&timeoutSeconds=1");
    assert_eq!(ask(true, "six", Method::GET, &watch, &[], String::new()).await.code, 200);
    let stages: Vec<Value> = events_with(&log, "six", "ResponseComplete")
        .await
        .iter()
        .map(|event| event["stage"].clone())
        .collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);

    // What the server writes of its own accord is written down: it registered its groups.
    let registered = |line: &str| {
        line.contains("\"username\":\"system:kube-aggregator\"") && line.contains("\"verb\":\"create\"")
    };
    // Components in this process are written down alike.
    let gvr = crate::cluster::resource("", "v1", "configmaps");
    cluster.delete(&gvr, "default", "m", api::DeleteOptions::default()).await.unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"), "a secret is in the log");
    let path = format!("{maps}/m");
    let deleted = |line: &str| line.contains(&path) && line.contains("\"verb\":\"delete\"");
    let both = |text: &str| text.lines().any(deleted) && text.lines().any(registered);
    said(&log, |text| both(text).then_some(())).await;
}

#[tokio::test]
async fn a_file_configures_admission() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admission.yaml");
    let pod_security = "{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, \
                        defaults: {enforce: baseline}, exemptions: {namespaces: [kube-system]}}";
    let text = format!(
        "{{apiVersion: apiserver.config.k8s.io/v1, kind: AdmissionConfiguration, plugins: [{{name: PodSecurity, \
         configuration: {pod_security}}}, {{name: DenyServiceExternalIPs}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    let protection = Protection { admission_control_config_file: Some(path), ..Protection::default() };
    let cluster = Cluster::make(Made { protection, ..Made::default() }).await;
    let (pods, accounts) = (resource("", "v1", "pods"), resource("", "v1", "serviceaccounts"));
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "hostNetwork": true, "containers": [
        { "name": "c", "image": "a:1" }] } });
    let account = json!({ "metadata": { "name": "default" } });
    for namespace in ["default", "kube-system"] {
        cluster.create(&accounts, namespace, account.clone()).await.unwrap();
    }
    let refused = cluster.create(&pods, "default", pod.clone()).await.unwrap_err();
    let says = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!((refused.code, refused.message.as_str()), (403, says));
    cluster.create(&pods, "kube-system", pod).await.unwrap();
    let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }], "externalIPs": ["192.0.2.1"] } });
    let refused = cluster.create(&resource("", "v1", "services"), "default", service).await.unwrap_err();
    let says = "services \"s\" is forbidden: Use of external IPs is denied by admission control.";
    assert_eq!((refused.code, refused.message.as_str()), (403, says));
}

#[tokio::test]
async fn webhooks_are_asked_as_the_user_that_a_file_names() {
    let hook = HookServer::start(|_, review| {
        let response = json!({ "uid": review["request"]["uid"], "allowed": true });
        Some(json!({ "apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response }))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (certificate, key) = hook.certificate();
    let users = json!({ "users": [
        { "name": hook.address().to_string(), "user": { "tokenFile": "token" } },
        { "name": "*.default.svc:8443", "user": { "client-certificate-data": certificate, "client-key-data": key } },
    ] });
    std::fs::write(at("users"), users.to_string()).unwrap();
    std::fs::write(at("token"), "first\n").unwrap();
    let webhooks = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
        "kubeConfigFile": at("users"),
    });
    std::fs::write(at("webhooks"), webhooks.to_string()).unwrap();
    let file = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": [
            { "name": "MutatingAdmissionWebhook", "configuration": webhooks },
            { "name": "ValidatingAdmissionWebhook", "path": "webhooks" },
        ],
    });
    std::fs::write(at("admission"), file.to_string()).unwrap();
    let protection =
        Protection { admission_control_config_file: Some(at("admission")), ..Protection::default() };
    let cluster = Cluster::make(Made { protection, ..Made::default() }).await;
    hook.serve_as_service(&cluster).await;
    let maps = rule(&["CREATE"], "", "configmaps");
    for (plural, client) in [
        ("mutatingwebhookconfigurations", hook.by_url("/")),
        ("validatingwebhookconfigurations", hook.by_service("/")),
    ] {
        let own =
            json!({ "metadata": { "name": "a" }, "webhooks": [admission_hook("a", client, maps.clone())] });
        cluster.create(&resource("admissionregistration.k8s.io", "v1", plural), "", own).await.unwrap();
    }
    let create = async |name: &str| {
        let map = json!({ "metadata": { "name": name } });
        cluster.create(&resource("", "v1", "configmaps"), "default", map).await.unwrap();
        hook.asked_by()
    };
    assert_eq!(create("a").await, ["Bearer first", "certificate"]);
    std::fs::write(at("token"), "second\n").unwrap();
    assert_eq!(create("b").await, ["Bearer second", "certificate"]);
}
