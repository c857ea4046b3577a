//! The rules of the read and write verbs as clients see them: which options go together, and what refusals say.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, MAPS, get, send, started, write};

async fn made(cluster: &Cluster, name: &str) -> String {
    let map = json!({ "metadata": { "name": name }, "data": { "k": "v" } }).to_string();
    let answer = write(cluster, Method::POST, MAPS, JSON, map).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
    answer.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn refused(answer: &Answer) -> (u16, String, String) {
    let reason = answer.json()["reason"].as_str().unwrap_or_default().to_owned();
    (answer.code, reason, answer.message())
}

#[tokio::test]
async fn versions_and_tokens_of_reads_are_checked_in_upstreams_words() {
    let cluster = Cluster::start().await;
    made(&cluster, "a").await;
    let token = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    let options = "ListOptions.meta.k8s.io \"\" is invalid: ";
    let number = "strconv.ParseUint: parsing \"x\": invalid syntax";
    let start = token(r#"{"v":"meta.k8s.io/v1","rv":5,"start":""}"#);
    let version = token(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"default/a"}"#);
    let other = token(r#"{"v":"v2","rv":5,"start":"default/a"}"#);
    let good = token(r#"{"v":"meta.k8s.io/v1","rv":5,"start":"default/a"}"#);
    let cases = [
        (
            "resourceVersion=x".to_owned(),
            400,
            format!("invalid resource version: resourceVersion: Invalid value: \"x\": {number}"),
        ),
        ("limit=x".into(), 400, "strconv.ParseInt: parsing \"x\": invalid syntax".into()),
        (
            "limit=99999999999999999999".into(),
            400,
            "strconv.ParseInt: parsing \"99999999999999999999\": value out of range".into(),
        ),
        (
            "resourceVersionMatch=Exact".into(),
            422,
            format!(
                "{options}resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
            ),
        ),
        (
            "resourceVersion=1&resourceVersionMatch=Newest".into(),
            422,
            format!(
                "{options}resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\""
            ),
        ),
        (
            "sendInitialEvents=true".into(),
            422,
            format!("{options}sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
        ),
        (
            format!("continue={start}"),
            400,
            "invalid continue token: continue key is not valid: encoded start key empty (version meta.k8s.io/v1)".into(),
        ),
        (
            format!("continue={version}"),
            400,
            "invalid continue token: continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into(),
        ),
        (
            format!("continue={other}"),
            400,
            "invalid continue token: continue key is not valid: server does not recognize this encoded version v2".into(),
        ),
        (
            format!("continue={good}&resourceVersion=5"),
            400,
            "specifying resource version is not allowed when using continue".into(),
        ),
        (
            "watch=1&sendInitialEvents=true".into(),
            422,
            format!(
                "{options}resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            ),
        ),
        (
            "watch=1&resourceVersion=1&resourceVersionMatch=NotOlderThan".into(),
            422,
            format!(
                "{options}resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            ),
        ),
    ];
    for (query, code, message) in cases {
        let answer = get(&cluster, &format!("{MAPS}?{query}"), JSON).await;
        assert_eq!((answer.code, answer.message()), (code, message), "{query}");
    }
    let named = "/api/v1/watch/namespaces/default/configmaps/a?fieldSelector=metadata.name=b";
    let answer = get(&cluster, named, JSON).await;
    assert_eq!(
        (answer.code, answer.message()),
        (400, "fieldSelector metadata.name doesn't match requested name".to_owned())
    );
}

#[tokio::test]
async fn pages_of_a_version_are_exact_and_versions_to_come_are_told_so() {
    let cluster = Cluster::start().await;
    let first = made(&cluster, "a").await;
    let second = made(&cluster, "b").await;
    let names = |list: Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    // With a limit the version is meant exactly, without one it is a lower bound.
    let exact = get(&cluster, &format!("{MAPS}?resourceVersion={first}&limit=5"), JSON).await.json();
    assert_eq!(exact["metadata"]["resourceVersion"], *first);
    assert!(!names(exact).contains(&"b".to_owned()));
    // The cache answers as soon as it is at the version asked for: only the later one has to show the later object.
    let version =
        |list: &Value| list["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let newer = get(&cluster, &format!("{MAPS}?resourceVersion={first}"), JSON).await.json();
    assert!(version(&newer) >= first.parse().unwrap());
    let newer = get(&cluster, &format!("{MAPS}?resourceVersion={second}"), JSON).await.json();
    assert!(names(newer).contains(&"b".to_owned()));
    let page = get(&cluster, &format!("{MAPS}?limit=-1"), JSON).await.json();
    assert!(names(page).len() >= 2, "less than nothing is no limit");
    let path = format!("{MAPS}?resourceVersion=999999999&resourceVersionMatch=Exact");
    let future = get(&cluster, &path, JSON).await;
    assert_eq!((future.code, future.json()["reason"].as_str()), (504, Some("Timeout")));
    assert!(
        future.message().starts_with("Timeout: Too large resource version: 999999999, current: "),
        "{}",
        future.message()
    );
    let details = &future.json()["details"];
    assert_eq!(
        (&details["causes"][0]["reason"], &details["retryAfterSeconds"]),
        (&json!("ResourceVersionTooLarge"), &json!(1))
    );
    assert_eq!(future.header("retry-after"), "1");
}

#[tokio::test]
async fn a_watch_from_nothing_tells_where_its_initial_events_end() {
    let cluster = Cluster::start().await;
    made(&cluster, "a").await;
    let selected = "watch=1&timeoutSeconds=1&fieldSelector=metadata.name=a";
    let kinds = |answer: Answer| -> Vec<String> {
        let events = answer.events();
        let word = |event: &Value| {
            let end = &event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
            format!("{}{}", event["type"].as_str().unwrap(), end.as_str().unwrap_or_default())
        };
        events.iter().map(word).collect()
    };
    for (query, wanted) in [
        ("", &["ADDED"][..]),
        ("&allowWatchBookmarks=true", &["ADDED", "BOOKMARKtrue"]),
        ("&allowWatchBookmarks=true&resourceVersion=0", &["ADDED", "BOOKMARKtrue"]),
        (
            "&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            &["ADDED", "BOOKMARKtrue"],
        ),
        ("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", &["ADDED"]),
        ("&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", &[]),
    ] {
        let watched = get(&cluster, &format!("{MAPS}?{selected}{query}"), JSON).await;
        assert_eq!(kinds(watched), wanted, "{query}");
    }
    for path in [
        "/api/v1/watch/namespaces/default/configmaps/a?",
        "/api/v1/watch/configmaps?fieldSelector=metadata.name=a&",
    ] {
        let watched = get(&cluster, &format!("{path}timeoutSeconds=1"), JSON).await;
        assert_eq!(kinds(watched), ["ADDED"], "{path}");
    }
}

#[tokio::test]
async fn refused_writes_say_why_in_upstreams_words() {
    let cluster = Cluster::start().await;
    made(&cluster, "a").await;
    let generated = json!({ "metadata": { "name": "a", "generateName": "a-" } }).to_string();
    assert_eq!(
        refused(&write(&cluster, Method::POST, MAPS, JSON, generated).await),
        (
            409,
            "AlreadyExists".into(),
            "configmaps \"a\" already exists, the server was not able to generate a unique name for the object".into()
        )
    );
    let one = format!("{MAPS}/a");
    let stale = json!({ "metadata": { "name": "a", "resourceVersion": "1" }, "data": {} }).to_string();
    assert_eq!(
        refused(&write(&cluster, Method::PUT, &one, JSON, stale).await),
        (
            409,
            "Conflict".into(),
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your \
             changes to the latest version and try again"
                .into()
        )
    );
    let merge = "application/merge-patch+json";
    let strict = format!("{one}?fieldValidation=Strict");
    let unknown = write(&cluster, Method::PATCH, &strict, merge, r#"{"spec":{"x":1}}"#).await;
    assert_eq!((unknown.code, &unknown.json()["reason"]), (422, &json!("Invalid")));
    assert!(
        unknown.message().starts_with(" \"\" is invalid: patch: Invalid value: \"{"),
        "{}",
        unknown.message()
    );
    assert!(
        unknown.message().ends_with(": strict decoding error: unknown field \"spec\""),
        "{}",
        unknown.message()
    );
    let wrong = write(&cluster, Method::PATCH, &one, merge, r#"{"data":{"k":1}}"#).await;
    assert_eq!(wrong.code, 422);
    assert_eq!(wrong.json()["details"]["causes"][0]["field"], "patch");
    let twice = "metadata: {name: b}\ndata:\n  k: a\n  k: b\nextra: 1\n";
    let strict = format!("{MAPS}?fieldValidation=Strict");
    assert_eq!(
        write(&cluster, Method::POST, &strict, "application/yaml", twice).await.message(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  \
         line 4: key \"k\" already set in map, unknown field \"extra\""
    );
    let twice = r#"{"metadata":{"name":"b"},"data":{"k":"a","k":"b"},"extra":1}"#;
    assert_eq!(
        write(&cluster, Method::POST, &strict, JSON, twice).await.message(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \
         \"data.k\", unknown field \"extra\""
    );
    let options = json!({ "apiVersion": "v1", "kind": "ConfigMap" }).to_string();
    assert_eq!(
        refused(&write(&cluster, Method::DELETE, &one, JSON, options).await),
        (400, "BadRequest".into(), "decoded object cannot be converted to DeleteOptions".into())
    );
}

#[tokio::test]
async fn deletions_are_refused_in_upstreams_words() {
    let cluster = Cluster::start().await;
    let version = made(&cluster, "a").await;
    let one = format!("{MAPS}/a");
    let delete = async |query: &str, body: Value| {
        refused(&write(&cluster, Method::DELETE, &format!("{one}{query}"), JSON, body.to_string()).await)
    };
    let uid = get(&cluster, &one, JSON).await.json()["metadata"]["uid"].as_str().unwrap().to_owned();
    let conflict = "Operation cannot be fulfilled on ConfigMap \"a\": the";
    let invalid = "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy:";
    for (query, body, code, message) in [
        (
            "",
            json!({ "preconditions": { "uid": "other" } }),
            409,
            format!(
                "{conflict} UID in the precondition (other) does not match the UID in record ({uid}). The object might \
                 have been deleted and then recreated"
            ),
        ),
        (
            "",
            json!({ "preconditions": { "resourceVersion": "1" } }),
            409,
            format!(
                "{conflict} ResourceVersion in the precondition (1) does not match the ResourceVersion in record \
                 ({version}). The object might have been modified"
            ),
        ),
        (
            "?propagationPolicy=Orphan",
            json!({ "propagationPolicy": "Never" }),
            422,
            format!(
                "{invalid} Unsupported value: \"Never\": supported values: \"Foreground\", \"Background\", \"Orphan\", \
                 \"nil\""
            ),
        ),
        (
            "",
            json!({ "propagationPolicy": "Orphan", "orphanDependents": true }),
            422,
            format!(
                "{invalid} Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set"
            ),
        ),
    ] {
        let (found, _, said) = delete(query, body).await;
        assert_eq!((found, said), (code, message), "{query}");
    }
    // None of these, nor a dry run, deletes anything.
    for query in ["?dryRun=All", "?dryRun=All&propagationPolicy=Foreground"] {
        assert_eq!(write(&cluster, Method::DELETE, &format!("{one}{query}"), JSON, "").await.code, 200);
    }
    assert_eq!(get(&cluster, &one, JSON).await.json()["metadata"]["resourceVersion"], *version);
}

#[tokio::test]
async fn health_checks_have_names_and_figures_upstreams() {
    let cluster = Cluster::start().await;
    started(&cluster).await;
    let text = async |path: &str| {
        let answer = get(&cluster, path, "").await;
        (answer.code, String::from_utf8_lossy(&answer.body).into_owned())
    };
    assert_eq!(text("/livez/ping").await, (200, "ok".to_owned()));
    assert_eq!(text("/livez/nothing").await.0, 404);
    let (code, report) = text("/readyz?verbose&exclude=etcd&exclude=moon").await;
    assert_eq!(code, 200, "{report}");
    for line in [
        "[+]ping ok",
        "[+]etcd excluded: ok",
        "[+]informer-sync ok",
        "warn: some health checks cannot be excluded: no matches for \"moon\"",
        "readyz check passed",
    ] {
        assert!(report.lines().any(|known| known == line), "{line}: {report}");
    }
    made(&cluster, "a").await;
    get(&cluster, MAPS, JSON).await;
    get(&cluster, "/api/v1/namespaces/default/inventions", JSON).await;
    let stranger = send(&cluster, None, Method::GET, "/metrics", &[], "").await;
    assert_eq!(stranger.code, 403);
    let (code, figures) = text("/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "# TYPE apiserver_request_total counter",
        "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",\
         scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1",
        "# TYPE apiserver_request_duration_seconds histogram",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(figures.lines().any(|known| known == line), "{line}: {figures}");
    }
    assert!(figures.contains("apiserver_storage_objects{resource=\"configmaps\"} "), "{figures}");
    assert!(!figures.contains("inventions"), "only what there is has a figure of its own");
}
