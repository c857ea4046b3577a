//! Requests that nobody should send: each is refused in upstream's words, nothing of it is stored, and none takes more
//! memory than its size explains.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, MAPS, get, send, write};

const JSON_PATCH: &str = "application/json-patch+json";
const YAML: &str = "application/yaml";
/// What all of it together may add to the process, other tests in it included.
const BYTES_MAX: u64 = 1024 * 1024 * 1024;

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn map(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

/// A request, the code of its refusal and a part of its message.
struct Case {
    what: &'static str,
    method: Method,
    path: String,
    media: &'static str,
    body: String,
    code: u16,
    says: &'static str,
}

fn case(what: &'static str, media: &'static str, body: String, code: u16, says: &'static str) -> Case {
    Case { what, method: Method::POST, path: MAPS.into(), media, body, code, says }
}

fn patch(what: &'static str, body: String, code: u16, says: &'static str) -> Case {
    Case { method: Method::PATCH, path: format!("{MAPS}/there"), ..case(what, JSON_PATCH, body, code, says) }
}

fn query(what: &'static str, query: &str, code: u16, says: &'static str) -> Case {
    let path = format!("{MAPS}?{query}");
    Case { method: Method::GET, path, ..case(what, JSON, String::new(), code, says) }
}

fn with_metadata(what: &'static str, field: &str, value: Value, says: &'static str) -> Case {
    let mut object = map("bad");
    object["metadata"][field] = value;
    case(what, JSON, object.to_string(), 422, says)
}

fn bodies() -> Vec<Case> {
    let deep = |open: &str, close: &str, n: usize| {
        format!(r#"{{"metadata":{{"name":"bad"}},"data":{}{}}}"#, open.repeat(n), close.repeat(n))
    };
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", "));
    }
    let large = format!(r#"{{"metadata":{{"name":"bad"}},"data":{{"k":"{}"}}}}"#, "x".repeat(4 << 20));
    let many_keys: Vec<String> = (0..200_000).map(|n| format!("\"k{n}\":1")).collect();
    vec![
        case("no JSON", JSON, "{".into(), 400, ""),
        case("another thing", JSON, "[1,2]".into(), 400, ""),
        case("deep lists", JSON, deep("[", "]", 100_000), 400, ""),
        case("deep objects", JSON, deep("{\"a\":", "}", 100_000), 400, ""),
        case("deep YAML", YAML, "[".repeat(500_000), 400, "error converting YAML to JSON"),
        case("a YAML bomb", YAML, bomb, 400, "error converting YAML to JSON"),
        case("a body over the limit", JSON, large, 413, "Request entity too large: limit is 3145728"),
        case("many unknown fields", JSON, format!("{{\"data\":{{{}}}}}", many_keys.join(",")), 400, ""),
        case("an unknown media type", "text/plain", "x".into(), 415, "accepted media types include"),
    ]
}

fn objects() -> Vec<Case> {
    let owners: Vec<Value> =
        (0..5000).map(|n| json!({ "apiVersion": "v1", "kind": "Pod", "name": format!("p{n}") })).collect();
    let labels: serde_json::Map<String, Value> =
        (0..5000).map(|n| (format!("bad label {n}"), json!("v"))).collect();
    vec![
        with_metadata("a huge name", "name", "a".repeat(1 << 20).into(), "metadata.name: Invalid value"),
        with_metadata(
            "a name of odd letters",
            "name",
            "../../etc/passwd".into(),
            "metadata.name: Invalid value",
        ),
        with_metadata(
            "owners without uid",
            "ownerReferences",
            owners.into(),
            "metadata.ownerReferences[0].uid",
        ),
        with_metadata("bad labels", "labels", labels.into(), "metadata.labels: Invalid value"),
        with_metadata("a long label", "labels", json!({ "k": "v".repeat(64) }), "must be no more than 63"),
        with_metadata(
            "annotations over their limit",
            "annotations",
            json!({ "k": "v".repeat(300 * 1024) }),
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
        with_metadata("a bad finalizer", "finalizers", json!(["x y"]), "metadata.finalizers"),
    ]
}

fn patches() -> Vec<Case> {
    let many = vec![json!({ "op": "test", "path": "/kind", "value": "ConfigMap" }); 10_001];
    let mut copies = vec![json!({ "op": "add", "path": "/data", "value": { "a": "x".repeat(1024) } })];
    copies.extend((0..40).map(|n| json!({ "op": "copy", "from": "/data", "path": format!("/data/c{n}") })));
    vec![
        patch(
            "too many operations",
            json!(many).to_string(),
            413,
            "maximum operations in a JSON patch is 10000, got 10001",
        ),
        patch("copies of copies", json!(copies).to_string(), 413, ""),
        patch("no patch", "{}".into(), 400, "error decoding patch"),
        patch("a path that is not there", r#"[{"op":"remove","path":"/x/y"}]"#.into(), 422, ""),
    ]
}

fn queries() -> Vec<Case> {
    vec![
        query("a bad label selector", "labelSelector=a%20b%20c", 400, "unable to parse requirement"),
        query(
            "a bad field selector",
            "fieldSelector=spec.moon%3Dfull",
            400,
            "\"spec.moon\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        query("a bad version", "resourceVersion=soon", 400, "resourceVersion: Invalid value"),
        query("a bad limit", "limit=many", 400, "strconv.ParseInt: parsing \"many\": invalid syntax"),
        query("a bad token", "continue=nonsense", 400, "continue key is not valid"),
        query("a bad timeout", "timeout=soon", 400, "invalid timeout specified in the request URL"),
    ]
}

#[tokio::test]
async fn bad_input_is_refused_leaves_nothing_and_takes_no_memory() {
    let cluster = Cluster::start().await;
    assert_eq!(write(&cluster, Method::POST, MAPS, JSON, map("there").to_string()).await.code, 201);
    let (before, there) = (resident_bytes(), get(&cluster, &format!("{MAPS}/there"), JSON).await.json());
    for Case { what, method, path, media, body, code, says } in
        [bodies(), objects(), patches(), queries()].into_iter().flatten()
    {
        let answer: Answer = write(&cluster, method, &path, media, body).await;
        assert_eq!(answer.code, code, "{what}: {}", answer.message());
        let status = answer.json();
        assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")), "{what}");
        assert!(answer.message().contains(says), "{what}: {}", answer.message());
    }
    let packed = [("content-type", JSON), ("content-encoding", "gzip")];
    let refused = send(&cluster, Some(&cluster.user), Method::POST, MAPS, &packed, "\u{1f}x").await;
    assert_eq!(refused.code, 415, "{}", refused.message());
    let list = get(&cluster, MAPS, JSON).await.json();
    assert_eq!(list["items"], json!([there]), "nothing of it is stored");
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < BYTES_MAX, "{grown} bytes more than before");
}
