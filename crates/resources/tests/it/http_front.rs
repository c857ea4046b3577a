//! Requests as HTTP clients send them: who may ask, what forms answers take, what is warned about and refused.

use api::connect::User;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE};

pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
pub(crate) const JSON: &str = "application/json";

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// A header's text; empty where absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.body.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    /// The message of a refusal.
    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect()
    }
}

/// Sends a request; `peer` is whom the client's certificate names.
pub(crate) async fn send(
    cluster: &Cluster,
    peer: Option<&User>,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    let response = cluster.front.serve(peer, request).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { code: head.status.as_u16(), headers: head.headers, body }
}

pub(crate) async fn get(cluster: &Cluster, path: &str, accept: &str) -> Answer {
    send(cluster, Some(&cluster.user), Method::GET, path, &[("accept", accept)], "").await
}

pub(crate) async fn write(
    cluster: &Cluster,
    method: Method,
    path: &str,
    media: &str,
    body: impl Into<Bytes>,
) -> Answer {
    send(cluster, Some(&cluster.user), method, path, &[("content-type", media)], body).await
}

fn deployment(api_version: &str, name: &str) -> Value {
    json!({
        "apiVersion": api_version, "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "a:1" }] },
            },
        },
    })
}

/// Waits until everything has been done that the server does when it starts: the last of it when it already answers.
pub(crate) async fn started(cluster: &Cluster) {
    let all = tokio::time::timeout(PATIENCE, cluster.readiness.wait_all()).await;
    assert!(all.is_ok(), "never started: {:?}", cluster.readiness.missing());
}

#[tokio::test]
async fn strangers_see_health_and_version_and_nothing_else() {
    let cluster = Cluster::start().await;
    // Whoever waits for all components is not told anything else afterwards.
    started(&cluster).await;
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(send(&cluster, None, Method::GET, path, &[], "").await.code, 200, "{path}");
    }
    for path in ["/api", "/apis", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", MAPS] {
        let refused = send(&cluster, None, Method::GET, path, &[], "").await;
        assert_eq!((refused.code, &refused.json()["reason"]), (403, &json!("Forbidden")), "{path}");
    }
    let bearer = [("authorization", "Bearer nonsense")];
    assert_eq!(send(&cluster, None, Method::GET, "/version", &bearer, "").await.code, 401);
    let core = get(&cluster, "/api", JSON).await.json();
    let address = core["serverAddressByClientCIDRs"][0]["serverAddress"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let version = get(&cluster, "/version", "").await.json();
    assert_eq!(version["gitVersion"], "v1.37.0+skiff.1");
}

#[tokio::test]
async fn a_service_account_may_discover_and_ask_about_itself() {
    let cluster = Cluster::start().await;
    let account = json!({ "metadata": { "name": "bob" } }).to_string();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(write(&cluster, Method::POST, accounts, JSON, account).await.code, 201);
    let token = write(&cluster, Method::POST, &format!("{accounts}/bob/token"), JSON, "{}").await.json();
    let bearer = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str()), ("content-type", JSON)];
    let ask = async |method, path, body: Value| {
        send(&cluster, None, method, path, &headers, body.to_string()).await
    };
    assert_eq!(ask(Method::GET, "/apis/apps/v1", json!(null)).await.code, 200);
    assert_eq!(ask(Method::GET, MAPS, json!(null)).await.code, 403);
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let about = json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "secrets", "namespace": "default" } } });
    let review = ask(Method::POST, reviews, about).await;
    assert_eq!((review.code, &review.json()["status"]["allowed"]), (201, &json!(false)));
    let whoami = ask(Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(whoami.json()["status"]["userInfo"]["username"], "system:serviceaccount:default:bob");
}

#[tokio::test]
async fn a_token_in_a_secret_holds_as_long_as_the_secret_holds_it() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({ "metadata": { "name": "bob" } }).to_string();
    let account = write(&cluster, Method::POST, accounts, JSON, account).await.json();
    let uid = account["metadata"]["uid"].as_str().unwrap();
    let claims = apiserver::authn::token::SecretClaims::new("default", ("bob", uid), "bob-token");
    let token = cluster.pipeline.tokens().sign_for_secret(&claims).unwrap();
    let bearer = format!("Bearer {token}");
    let whoami = async || {
        let headers = [("authorization", bearer.as_str()), ("content-type", JSON)];
        let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let review = send(&cluster, None, Method::POST, reviews, &headers, "{}").await;
        (review.code, review.json()["status"]["userInfo"].clone())
    };
    assert_eq!(whoami().await.0, 401);
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = |data: Value| {
        json!({
            "metadata": { "name": "bob-token", "annotations": { "kubernetes.io/service-account.name": "bob" } },
            "type": "kubernetes.io/service-account-token", "stringData": data,
        })
        .to_string()
    };
    let made = write(&cluster, Method::POST, secrets, JSON, secret(json!({ "token": token }))).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let (code, user) = whoami().await;
    assert_eq!((code, &user["username"]), (201, &json!("system:serviceaccount:default:bob")));
    assert_eq!(user["uid"], uid);
    // The day is noted, and the token tells of itself nothing more.
    let held = get(&cluster, &format!("{secrets}/bob-token"), JSON).await.json();
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().to_string();
    assert_eq!(held["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"], today);
    let review = json!({ "spec": { "token": token } }).to_string();
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = write(&cluster, Method::POST, reviews, JSON, review).await.json();
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:default:bob");
    // Another token in the Secret, and this one is over.
    let patch = json!({ "stringData": { "token": "another" } }).to_string();
    let kind = "application/merge-patch+json";
    assert_eq!(write(&cluster, Method::PATCH, &format!("{secrets}/bob-token"), kind, patch).await.code, 200);
    assert_eq!(whoami().await.0, 401);
}

#[tokio::test]
async fn whoever_trusts_the_issuer_finds_its_keys_and_verifies_a_token() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({ "metadata": { "name": "bob" } }).to_string();
    assert_eq!(write(&cluster, Method::POST, accounts, JSON, account).await.code, 201);
    let asked = json!({ "spec": { "audiences": ["oidc-discovery-test"] } }).to_string();
    let made = write(&cluster, Method::POST, &format!("{accounts}/bob/token"), JSON, asked).await.json();
    let token = made["status"]["token"].as_str().unwrap();
    let own = write(&cluster, Method::POST, &format!("{accounts}/bob/token"), JSON, "{}").await.json();
    // A pod reads the documents by its own token.
    let bearer = format!("Bearer {}", own["status"]["token"].as_str().unwrap());
    let document = async |path: &str| {
        let answer = send(&cluster, None, Method::GET, path, &[("authorization", &bearer)], "").await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.message());
        answer
    };
    let discovery = document("/.well-known/openid-configuration").await.json();
    let issuer = discovery["issuer"].as_str().unwrap();
    let path = discovery["jwks_uri"].as_str().unwrap().strip_prefix(issuer).unwrap();
    let keys = document(path).await;
    assert_eq!(keys.header("content-type"), "application/jwk-set+json");
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&keys.body).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let algorithms = discovery["id_token_signing_alg_values_supported"].as_array().unwrap();
    assert!(algorithms.contains(&serde_json::to_value(header.alg).unwrap()), "{algorithms:?}");
    let key = keys.find(header.kid.as_deref().unwrap()).unwrap();
    let mut demanded = jsonwebtoken::Validation::new(header.alg);
    demanded.set_issuer(&[issuer]);
    demanded.set_audience(&["oidc-discovery-test"]);
    let key = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
    let claims = jsonwebtoken::decode::<Value>(token, &key, &demanded).unwrap().claims;
    assert_eq!(claims["sub"], "system:serviceaccount:default:bob");
    demanded.set_audience(&["others"]);
    jsonwebtoken::decode::<Value>(token, &key, &demanded).unwrap_err();
}

#[tokio::test]
async fn administrators_may_speak_for_others() {
    let cluster = Cluster::start().await;
    let bob = [("impersonate-user", "bob"), ("impersonate-group", "testers")];
    let refused = send(&cluster, Some(&cluster.user), Method::GET, MAPS, &bob, "").await;
    assert!(
        refused.json()["message"].as_str().unwrap().contains("User \"bob\" cannot list"),
        "{}",
        refused.json()
    );
    let extra = [("impersonate-user", "bob"), ("impersonate-uid", "7"), ("impersonate-extra-team", "a")];
    let headers = [&extra[..], &[("content-type", JSON)]].concat();
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let taken = send(&cluster, Some(&cluster.user), Method::POST, whoami, &headers, "{}").await.json();
    let info = &taken["status"]["userInfo"];
    assert_eq!((&info["uid"], &info["extra"]), (&json!("7"), &json!({ "team": ["a"] })));
    let namespace =
        send(&cluster, Some(&cluster.user), Method::GET, "/api/v1/namespaces/default", &bob, "").await;
    assert!(namespace.message().ends_with("in the namespace \"default\""), "{}", namespace.message());
    let jane = apiserver::authn::authenticated(User { name: "jane".into(), ..User::default() });
    assert_eq!(send(&cluster, Some(&jane), Method::GET, "/api", &bob, "").await.code, 403);
}

#[tokio::test]
async fn answers_take_the_form_that_is_asked_for() {
    let cluster = Cluster::start().await;
    let object = json!({ "metadata": { "name": "a" }, "data": { "k": "true" } }).to_string();
    assert_eq!(write(&cluster, Method::POST, MAPS, JSON, object).await.code, 201);
    let (one, table) = (format!("{MAPS}/a"), "application/json;as=Table;g=meta.k8s.io;v=v1");
    for path in [MAPS, one.as_str()] {
        let answer = get(&cluster, path, &format!("{table},application/json")).await.json();
        assert_eq!(
            (&answer["kind"], &answer["columnDefinitions"][1]["name"]),
            (&json!("Table"), &json!("Data"))
        );
        let row = &answer["rows"][0];
        assert_eq!(
            (&row["cells"][0], &row["object"]["kind"]),
            (&json!("a"), &json!("PartialObjectMetadata"))
        );
    }
    let whole = get(&cluster, &format!("{one}?includeObject=Object"), table).await.json();
    assert_eq!(whole["rows"][0]["object"]["data"]["k"], "true");
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let answer = get(&cluster, &one, metadata).await.json();
    assert!(answer["kind"] == "PartialObjectMetadata" && answer.get("data").is_none(), "{answer}");
    let list =
        get(&cluster, MAPS, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").await.json();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("a"))
    );
    let yaml = get(&cluster, &one, "application/yaml").await;
    let text = String::from_utf8(yaml.body.to_vec()).unwrap();
    assert!(text.contains("k: 'true'") || text.contains("k: \"true\""), "{text}");
    assert_eq!(get(&cluster, &one, "text/html").await.code, 406);
    let watch = format!(
        "{MAPS}?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let events = get(&cluster, &watch, metadata).await.events();
    let kinds: Vec<_> = events.iter().map(|event| (&event["type"], &event["object"]["kind"])).collect();
    let partial = json!("PartialObjectMetadata");
    assert_eq!(kinds, [(&json!("ADDED"), &partial), (&json!("BOOKMARK"), &partial)]);
    let end = &events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
    assert_eq!(*end, "true");
    let rows = get(&cluster, &format!("{MAPS}?watch=1&timeoutSeconds=1"), table).await.events();
    assert_eq!(rows[0]["object"]["rows"][0]["cells"][0], "a");
}

#[tokio::test]
async fn clients_are_warned_or_refused_as_they_wish() {
    let cluster = Cluster::start().await;
    let mut unknown = deployment("apps/v1", "a");
    unknown["spec"]["replica"] = 3.into();
    let dry = |validation: &str| format!("{DEPLOYMENTS}?dryRun=All&fieldValidation={validation}");
    let warned = write(&cluster, Method::POST, &dry("Warn"), JSON, unknown.to_string()).await;
    assert_eq!((warned.code, warned.warnings()), (201, vec!["299 - \"unknown field \\\"spec.replica\\\"\""]));
    let ignored = write(&cluster, Method::POST, &dry("Ignore"), JSON, unknown.to_string()).await;
    assert_eq!((ignored.code, ignored.warnings().len()), (201, 0));
    let refused = write(&cluster, Method::POST, &dry("Strict"), JSON, unknown.to_string()).await;
    assert!(refused.json()["message"].as_str().unwrap().contains("unknown field \"spec.replica\""));
    let wrong = write(&cluster, Method::POST, &dry("Loud"), JSON, "{}").await;
    assert_eq!(
        (wrong.code, &wrong.json()["details"]["causes"][0]["field"]),
        (422, &json!("fieldValidation"))
    );
    let retired = "/apis/extensions/v1beta1/namespaces/default/deployments";
    let old =
        write(&cluster, Method::POST, retired, JSON, deployment("extensions/v1beta1", "old").to_string())
            .await;
    assert_eq!(old.code, 201);
    assert!(old.warnings()[0].contains("use apps/v1 Deployment"), "{:?}", old.warnings());
    let created =
        write(&cluster, Method::POST, DEPLOYMENTS, JSON, deployment("apps/v1", "a").to_string()).await;
    assert_eq!(created.code, 201);
    let one = format!("{DEPLOYMENTS}/a");
    let patches = [
        ("application/json-patch+json", r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#),
        ("application/merge-patch+json", r#"{"spec":{"replicas":3}}"#),
        ("application/strategic-merge-patch+json", r#"{"spec":{"replicas":4}}"#),
        ("application/apply-patch+yaml", "apiVersion: apps/v1\nkind: Deployment\nspec:\n  replicas: 5\n"),
    ];
    for (replicas, (media, patch)) in (2..).zip(patches) {
        let path = format!("{one}?fieldManager=test&force={}", media.contains("apply"));
        let patched = write(&cluster, Method::PATCH, &path, media, patch).await;
        assert_eq!((patched.code, &patched.json()["spec"]["replicas"]), (200, &json!(replicas)), "{media}");
    }
    assert_eq!(write(&cluster, Method::PATCH, &one, JSON, "{}").await.code, 415);
}

#[tokio::test]
async fn bodies_are_bounded_whatever_their_form() {
    let cluster = Cluster::start().await;
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", "));
    }
    let deep = "[".repeat(100_000);
    for (media, body) in [
        ("application/yaml", bomb),
        ("application/yaml", deep.clone()),
        (JSON, format!("{{\"data\":{deep}")),
        (JSON, String::new()),
    ] {
        assert_eq!(write(&cluster, Method::POST, MAPS, media, body).await.code, 400, "{media}");
    }
    assert_eq!(write(&cluster, Method::POST, MAPS, JSON, vec![b' '; 4 * 1024 * 1024]).await.code, 413);
    assert_eq!(write(&cluster, Method::POST, MAPS, "text/plain", "x").await.code, 415);
    let yaml = "metadata:\n  name: a\ndata:\n  port: \"80\"\n";
    let made = write(&cluster, Method::POST, MAPS, "application/yaml", yaml).await;
    assert_eq!((made.code, &made.json()["data"]["port"]), (201, &json!("80")));
    let twice = "metadata:\n  name: b\ndata:\n  port: \"80\"\n  port: \"81\"\n";
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let refused = write(&cluster, Method::POST, &strict, "application/yaml", twice).await;
    assert_eq!(refused.code, 400);
    assert!(refused.message().contains("key \"port\" already set in map"), "{}", refused.message());
    let warned = write(&cluster, Method::POST, MAPS, "application/yaml", twice).await;
    assert_eq!(
        (warned.code, &warned.json()["data"]["port"], warned.warnings().len()),
        (201, &json!("81"), 1)
    );
}

#[tokio::test]
async fn a_dry_run_refuses_what_cannot_be_stored() {
    let cluster = Cluster::start().await;
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let large =
        json!({ "metadata": { "name": "large" }, "revision": 1, "data": { "x": "x".repeat(1_600_000) } });
    for path in [revisions.to_owned(), format!("{revisions}?dryRun=All")] {
        let answer = write(&cluster, Method::POST, &path, JSON, large.to_string()).await;
        assert_eq!(answer.code, 413, "{path}");
    }
    assert_eq!(get(&cluster, &format!("{revisions}/large"), JSON).await.code, 404);
}

#[tokio::test]
async fn what_dashboards_and_alerts_ask_for_is_counted() {
    let cluster = Cluster::start().await;
    let old = "/apis/extensions/v1beta1/namespaces/default/deployments";
    assert_eq!(get(&cluster, old, JSON).await.code, 200);
    let map = json!({ "metadata": { "name": "a" } }).to_string();
    assert_eq!(write(&cluster, Method::POST, MAPS, JSON, map).await.code, 201);
    let watch = get(&cluster, &format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1"), JSON).await;
    assert!(!watch.events().is_empty());
    let changed = json!({ "metadata": { "name": "a" }, "data": { "k": "v" } }).to_string();
    assert_eq!(write(&cluster, Method::PUT, &format!("{MAPS}/a"), JSON, changed).await.code, 200);
    started(&cluster).await;
    assert_eq!(get(&cluster, "/readyz", "").await.code, 200);
    let text = String::from_utf8(get(&cluster, "/metrics", "").await.body.to_vec()).unwrap();
    let value = |series: &str| {
        let line =
            text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series}"));
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    let maps = r#"group="",resource="configmaps",version="v1""#;
    for counted in [
        "kubernetes_build_info{build_date=\"1970-01-01T00:00:00Z\",",
        r#"apiserver_requested_deprecated_apis{group="extensions",removed_release="1.16",resource="deployments","#,
        "apiserver_response_sizes_count{",
        r#"apiserver_request_sli_duration_seconds_count{component="apiserver",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"}"#,
        r#"apiserver_admission_controller_admission_duration_seconds_count{name="NamespaceLifecycle",operation="CREATE",rejected="false",type="admit"}"#,
        r#"apiserver_admission_step_admission_duration_seconds_count{operation="CREATE",rejected="false",type="validate"}"#,
        &format!("apiserver_watch_events_total{{{maps}}}"),
        &format!("apiserver_watch_events_sizes_count{{{maps}}}"),
        r#"authentication_attempts{result="success"}"#,
        r#"authentication_duration_seconds_count{result="success"}"#,
        r#"authenticated_user_requests{username="admin"}"#,
        r#"authorization_attempts_total{result="allowed"}"#,
        r#"apiserver_resource_objects{group="",resource="configmaps"}"#,
        r#"apiserver_storage_objects{resource="configmaps"}"#,
        r#"apiserver_storage_size_bytes{storage_cluster_id="etcd-0"}"#,
        r#"kubernetes_healthcheck{name="ping",type="readyz"}"#,
        r#"apiserver_request_timestamp_comparison_time_count{code_path="unequal_objects_fast"}"#,
        r#"apiserver_storage_events_received_total{group="",resource="configmaps"}"#,
        r#"apiserver_watch_cache_events_received_total{group="",resource="configmaps"}"#,
        r#"apiserver_watch_cache_initializations_total{group="",resource="configmaps"}"#,
        r#"apiserver_watch_cache_resource_version{group="",resource="configmaps"}"#,
    ] {
        assert!(value(counted) >= 1.0, "{counted}");
    }
    assert!(value(r#"aggregator_unavailable_apiservice{name="v1.apps"}"#) < 2.0);
    assert_eq!(value("apiserver_tls_handshake_errors_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_reads_figures_at_the_same_time_sees_each_event_once() {
    const FILLED: &str = r#"apiserver_watch_cache_initializations_total{group="",resource="configmaps"} "#;
    let cluster = std::sync::Arc::new(Cluster::start().await);
    let tasks = base::lifecycle::Tasks::default();
    let readers = (0..4).map(|_| {
        let cluster = cluster.clone();
        let (told, seen) = tokio::sync::oneshot::channel();
        tasks.spawn(async move {
            let mut lines = Vec::new();
            for _ in 0..25 {
                let page = get(&cluster, "/metrics", "").await;
                let page = String::from_utf8(page.body.to_vec()).unwrap();
                lines.extend(page.lines().find_map(|line| line.strip_prefix(FILLED)).map(str::to_owned));
            }
            let _ = told.send(lines);
        });
        seen
    });
    for lines in futures::future::join_all(readers).await {
        assert_eq!(lines.unwrap(), ["1"; 25]);
    }
}

const MERGE: [(&str, &str); 1] = [("content-type", "application/merge-patch+json")];

#[tokio::test]
async fn nothing_is_deleted_across_namespaces_at_once() {
    let cluster = Cluster::start().await;
    let admin = cluster.user.clone();
    for (path, name) in [("/api/v1/configmaps", "configmaps"), ("/apis/apps/v1/deployments", "deployments")] {
        let answer = send(&cluster, Some(&admin), Method::DELETE, path, &[], "").await;
        assert_eq!(answer.code, 405, "{name}: {}", answer.message());
    }
    let answer = send(&cluster, Some(&admin), Method::DELETE, MAPS, &[], "").await;
    assert_eq!(answer.code, 200);
}

#[tokio::test]
async fn a_head_is_answered_without_a_body() {
    let cluster = Cluster::start().await;
    let admin = cluster.user.clone();
    for path in ["/version", "/healthz", "/api/v1/namespaces/default", "/api/v1/namespaces/none"] {
        let got = send(&cluster, Some(&admin), Method::GET, path, &[], "").await;
        let head = send(&cluster, Some(&admin), Method::HEAD, path, &[], "").await;
        assert_eq!((head.code, head.body.len()), (got.code, 0), "{path}");
        assert_eq!(head.header("content-length"), got.body.len().to_string(), "{path}");
    }
}

#[tokio::test]
async fn a_patch_cannot_make_another_object_of_one() {
    let cluster = Cluster::start().await;
    let admin = cluster.user.clone();
    let made = json!({ "metadata": { "name": "a" }, "data": { "a": "1" } }).to_string();
    send(&cluster, Some(&admin), Method::POST, MAPS, &[("content-type", JSON)], made).await;
    let path = format!("{MAPS}/a");
    let said = [
        (
            json!({ "metadata": { "name": "b" } }),
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            json!({ "metadata": { "name": null } }),
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (
            json!({ "metadata": { "namespace": "b" } }),
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
    ];
    for (patch, message) in said {
        let answer = send(&cluster, Some(&admin), Method::PATCH, &path, &MERGE, patch.to_string()).await;
        assert_eq!((answer.code, answer.message().as_str()), (400, message));
    }
    // Who applies an object with a uid means one that there was.
    let apply =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "gone", "uid": "abc" } });
    let path = format!("{MAPS}/gone?fieldManager=me");
    let headers = [("content-type", "application/apply-patch+yaml")];
    let answer = send(&cluster, Some(&admin), Method::PATCH, &path, &headers, apply.to_string()).await;
    assert_eq!(answer.code, 409);
    let why = "uid mismatch: the provided object specified uid abc, and no existing object was found";
    assert!(answer.message().ends_with(why), "{}", answer.message());
}

#[tokio::test]
async fn one_empty_entry_takes_all_fields_from_all_owners() {
    let cluster = Cluster::start().await;
    let admin = cluster.user.clone();
    let made = json!({ "metadata": { "name": "a" }, "data": { "a": "1" } }).to_string();
    let made = send(&cluster, Some(&admin), Method::POST, MAPS, &[("content-type", JSON)], made).await.json();
    let owners = |object: &Value| object["metadata"]["managedFields"].as_array().map_or(0, Vec::len);
    assert_eq!(owners(&made), 1);
    let path = format!("{MAPS}/a");
    // An empty list, or one that says something wrong, is no such wish.
    for record in [json!([]), json!([{ "operation": "Foo" }])] {
        let patch = json!({ "metadata": { "managedFields": record } }).to_string();
        let answer = send(&cluster, Some(&admin), Method::PATCH, &path, &MERGE, patch).await.json();
        assert_eq!(answer["metadata"]["managedFields"], made["metadata"]["managedFields"]);
    }
    let patch = json!({ "metadata": { "managedFields": [{}] } }).to_string();
    let answer = send(&cluster, Some(&admin), Method::PATCH, &path, &MERGE, patch).await.json();
    assert_eq!(owners(&answer), 0, "{answer}");
    let read = send(&cluster, Some(&admin), Method::GET, &path, &[], "").await.json();
    assert_eq!(owners(&read), 0);
}

#[tokio::test]
async fn a_stateful_set_without_a_strategy_gets_all_of_the_default() {
    let cluster = Cluster::start().await;
    let admin = cluster.user.clone();
    let set = json!({
        "metadata": { "name": "web" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web" }] },
            },
        },
    });
    let path = "/apis/apps/v1/namespaces/default/statefulsets";
    let made =
        send(&cluster, Some(&admin), Method::POST, path, &[("content-type", JSON)], set.to_string()).await;
    let strategy =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0, "maxUnavailable": 1 } });
    assert_eq!(made.json()["spec"]["updateStrategy"], strategy);
}
