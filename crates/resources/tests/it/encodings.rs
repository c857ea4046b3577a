//! What requests and answers are encoded in: protobuf as Go's clients speak it, negotiation, compression, indentation.

use std::io::Read as _;

use api::protobuf::{MEDIA_TYPE, decode};
use api::schema::Schema;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, MAPS, get, send, write};

/// What client-go sends where protobuf is its content type.
const GO: &str = "application/vnd.kubernetes.protobuf,application/json";

fn body(object: &Value) -> Bytes {
    api::protobuf::object(Schema::builtin(), object.to_string().as_bytes()).unwrap().into()
}

fn read(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), MEDIA_TYPE, "{:?}", answer.body);
    decode(Schema::builtin(), &answer.body).unwrap()
}

fn map(name: &str, value: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": value } })
}

async fn ask(cluster: &Cluster, method: Method, path: &str, object: Option<&Value>) -> Answer {
    let headers = [("accept", GO), ("content-type", MEDIA_TYPE)];
    send(cluster, Some(&cluster.user), method, path, &headers, object.map(body).unwrap_or_default()).await
}

#[tokio::test]
async fn a_go_client_speaks_protobuf_with_every_verb() {
    let cluster = Cluster::start().await;
    let created = ask(&cluster, Method::POST, MAPS, Some(&map("a", "1"))).await;
    assert_eq!(created.code, 201);
    let mut object = read(&created);
    assert_eq!(object["data"], json!({ "k": "1" }));
    assert!(object["metadata"]["managedFields"][0]["fieldsV1"]["f:data"].is_object(), "{object}");
    object["data"]["k"] = json!("2");
    let one = format!("{MAPS}/a");
    assert_eq!(read(&ask(&cluster, Method::PUT, &one, Some(&object)).await)["data"]["k"], "2");
    let merge = send(
        &cluster,
        Some(&cluster.user),
        Method::PATCH,
        &one,
        &[("accept", GO), ("content-type", "application/merge-patch+json")],
        r#"{"data":{"k":"3"}}"#,
    );
    assert_eq!(read(&merge.await)["data"]["k"], "3");
    let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": "other" } });
    let refused = ask(&cluster, Method::DELETE, &one, Some(&options)).await;
    assert_eq!((refused.code, &read(&refused)["reason"]), (409, &json!("Conflict")));
    let gone = read(&ask(&cluster, Method::DELETE, &one, None).await);
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(gone["details"]["name"], "a");
    let missing = ask(&cluster, Method::GET, &one, None).await;
    assert_eq!((missing.code, &read(&missing)["code"]), (404, &json!(404)));
    assert_eq!(read(&missing)["message"], "configmaps \"a\" not found");
    let garbage = write(&cluster, Method::POST, MAPS, MEDIA_TYPE, "k8s\0\u{7f}").await;
    assert_eq!(garbage.code, 400);
}

#[tokio::test]
async fn discovery_comes_in_protobuf_where_it_is_asked_for() {
    let cluster = Cluster::start().await;
    for (path, kind) in [
        ("/api", "APIVersions"),
        ("/apis", "APIGroupList"),
        ("/apis/apps", "APIGroup"),
        ("/apis/apps/v1", "APIResourceList"),
    ] {
        let mut told = get(&cluster, path, JSON).await.json();
        told["apiVersion"] = "v1".into();
        let packed = ask(&cluster, Method::GET, path, None).await;
        let mut read = read(&packed);
        assert_eq!((packed.code, &read["kind"]), (200, &json!(kind)));
        // What is empty is not on the wire.
        let shown = |document: &mut Value| {
            for one in document["resources"].as_array_mut().into_iter().flatten() {
                let fields = one.as_object_mut().unwrap();
                fields.retain(|_, value| *value != json!("") && *value != json!(false));
            }
        };
        shown(&mut told);
        shown(&mut read);
        assert_eq!(read, told, "{path}");
    }
    // The first field of a message, and not a field of the resource itself.
    let verb = b"\x0a\x06create";
    let resources = ask(&cluster, Method::GET, "/apis/apps/v1", None).await.body;
    assert!(resources.windows(verb.len()).any(|part| part == verb), "verbs are a message");
}

#[tokio::test]
async fn aggregated_discovery_comes_in_the_encoding_that_is_asked_for() {
    const FORM: &str = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let cluster = Cluster::start().await;
    for path in ["/api", "/apis"] {
        let ask = async |media: &str| get(&cluster, path, &format!("{media};{FORM},{JSON}")).await;
        let (told, packed) = (ask(JSON).await, ask(MEDIA_TYPE).await);
        for (answer, media) in [(&told, JSON), (&packed, MEDIA_TYPE)] {
            let said = String::from_utf8_lossy(&answer.body);
            assert_eq!(answer.header("content-type"), format!("{media};{FORM}"), "{path}: {said}");
            assert_eq!((answer.header("cache-control"), answer.header("vary")), ("public", "Accept"));
        }
        assert_eq!(packed.header("etag"), told.header("etag"), "that of its JSON");
        // What is empty is not on the wire.
        let mut told = told.json();
        for group in told["items"].as_array_mut().unwrap() {
            group["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        }
        strip(&mut told);
        let mut read = decode(Schema::builtin(), &packed.body).unwrap();
        strip(&mut read);
        assert_eq!(read, told, "{path}");
        let yaml = ask("application/yaml").await;
        assert_eq!(yaml.header("content-type"), format!("application/yaml;{FORM}"));
        assert!(yaml.body.starts_with(b"apiVersion:") || yaml.body.starts_with(b"kind:"));
        let accept = format!("{MEDIA_TYPE};{FORM}");
        let headers = [("accept", accept.as_str()), ("if-none-match", packed.header("etag"))];
        let known = send(&cluster, Some(&cluster.user), Method::GET, path, &headers, "").await;
        assert_eq!((known.code, known.header("cache-control")), (304, "public"));
        // Upstream has the first version no more: with nothing beside it, it is not acceptable.
        let old = format!("{JSON};{}", FORM.replace("v2", "v2beta1"));
        assert_eq!(get(&cluster, path, &old).await.code, 406);
        let old = get(&cluster, path, &format!("{old},{JSON}")).await;
        assert_eq!((old.code, old.header("content-type")), (200, JSON));
    }
}

/// Takes empty texts, lists and objects away.
fn strip(value: &mut Value) {
    let is_empty = |value: &Value| [json!(""), json!([]), json!({})].contains(value);
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(strip);
            fields.retain(|_, value| !is_empty(value));
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[tokio::test]
async fn lists_and_watches_come_in_protobuf() {
    let cluster = Cluster::start().await;
    let large = "x".repeat(100_000);
    for name in ["a", "b", "c"] {
        assert_eq!(ask(&cluster, Method::POST, MAPS, Some(&map(name, &large))).await.code, 201);
    }
    let list = read(&ask(&cluster, Method::GET, &format!("{MAPS}?limit=2"), None).await);
    let names: Vec<&Value> =
        list["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(list["kind"], "ConfigMapList");
    assert!(list["metadata"]["continue"].is_string() && list["metadata"]["remainingItemCount"].is_number());
    let partial = format!("{MEDIA_TYPE};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let metadata = get(&cluster, MAPS, &partial).await;
    let metadata = {
        // The kind is not one of the built-in schema: read as any list of objects' metadata.
        let text = String::from_utf8_lossy(&metadata.body).into_owned();
        assert!(!text.contains("xxxx"), "only metadata is sent");
        text
    };
    assert!(metadata.contains("PartialObjectMetadataList") && metadata.contains("meta.k8s.io/v1"));
    let watch = format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name=b");
    let watched = get(&cluster, &watch, &format!("{MEDIA_TYPE};stream=watch")).await;
    assert_eq!(watched.header("content-type"), "application/vnd.kubernetes.protobuf;stream=watch");
    let length = u32::from_be_bytes(watched.body[..4].try_into().unwrap()) as usize;
    assert_eq!(watched.body.len(), 4 + length, "one event");
    let object = body_in(&watched.body[4..]);
    assert_eq!(decode(Schema::builtin(), object).unwrap()["metadata"]["name"], "b");
}

/// The object in a watch event: what begins with the magic number.
fn body_in(message: &[u8]) -> &[u8] {
    let at = message.windows(4).position(|window| window == b"k8s\0").unwrap();
    &message[at..]
}

#[tokio::test]
async fn what_is_not_spoken_is_refused_in_upstreams_words() {
    let cluster = Cluster::start().await;
    for (path, accept, types) in [
        (MAPS, "text/html", "application/json, application/yaml, application/vnd.kubernetes.protobuf"),
        (MAPS, "application/cbor", "application/json, application/yaml, application/vnd.kubernetes.protobuf"),
        (
            "/api/v1/configmaps?watch=true&timeoutSeconds=1",
            "application/yaml",
            "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
        ),
    ] {
        let refused = get(&cluster, path, accept).await;
        // Who speaks only YAML is refused in YAML.
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert_eq!(refused.code, 406, "{accept}");
        assert!(text.contains("NotAcceptable"), "{text}");
        let wanted = format!("only the following media types are accepted: {types}");
        assert!(text.contains(&wanted), "{text}");
    }
    let unknown = "the body of the request was in an unknown format - accepted media types include: ";
    for media in ["application/cbor", "application/x-www-form-urlencoded", "text/plain; charset=utf-8"] {
        let refused = write(&cluster, Method::POST, MAPS, media, "{}").await;
        assert_eq!((refused.code, &refused.json()["reason"]), (415, &json!("UnsupportedMediaType")));
        let types = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
        assert_eq!(refused.message(), format!("{unknown}{types}"));
    }
    let patch = write(&cluster, Method::PATCH, &format!("{MAPS}/a"), JSON, "{}").await;
    assert_eq!(
        (patch.code, patch.message()),
        (
            415,
            format!(
                "{unknown}application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, application/apply-patch+yaml"
            )
        )
    );
    // YAML is spoken both ways.
    let yaml = "metadata: {name: plain}\ndata: {k: v}\n";
    assert_eq!(write(&cluster, Method::POST, MAPS, "application/yaml", yaml).await.code, 201);
    let answer = get(&cluster, &format!("{MAPS}/plain"), "application/json;q=0.5,application/yaml").await;
    assert_eq!(answer.header("content-type"), "application/yaml");
    assert!(String::from_utf8_lossy(&answer.body).contains("\n  k: v\n"));
}

#[tokio::test]
async fn large_answers_are_compressed_and_people_get_them_indented() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        let created = write(&cluster, Method::POST, MAPS, JSON, map(name, &"y".repeat(60_000)).to_string());
        assert_eq!(created.await.code, 201);
    }
    let plain = get(&cluster, MAPS, JSON).await;
    assert_eq!(plain.header("content-encoding"), "");
    for accept in [JSON, GO] {
        let headers = [("accept", accept), ("accept-encoding", "gzip")];
        let packed = send(&cluster, Some(&cluster.user), Method::GET, MAPS, &headers, "").await;
        assert_eq!(packed.header("content-encoding"), "gzip", "{accept}");
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed.body[..]).read_to_end(&mut unpacked).unwrap();
        if accept == JSON {
            // Not its version: others write in between.
            let unpacked: Value = serde_json::from_slice(&unpacked).unwrap();
            assert_eq!(unpacked["items"], plain.json()["items"]);
        }
        let one = send(&cluster, Some(&cluster.user), Method::GET, &format!("{MAPS}/a"), &headers, "").await;
        assert_eq!(one.header("content-encoding"), "", "small answers are not");
    }
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let headers = [("accept", metadata), ("accept-encoding", "gzip")];
    let metadata = send(&cluster, Some(&cluster.user), Method::GET, MAPS, &headers, "").await;
    assert_eq!(metadata.header("content-encoding"), "", "what counts is the size of the answer");
    assert_eq!(metadata.json()["items"].as_array().unwrap().len(), 3);
    let pretty = get(&cluster, &format!("{MAPS}?pretty=true"), JSON).await;
    assert!(pretty.body.starts_with(b"{\n  \"kind\": \"ConfigMapList\",\n"), "{:?}", &pretty.body[..80]);
    assert_eq!(pretty.json()["items"], plain.json()["items"]);
    let curl = [("user-agent", "curl/8.5.0")];
    let one = send(&cluster, Some(&cluster.user), Method::GET, &format!("{MAPS}/a"), &curl, "").await;
    assert!(one.body.starts_with(b"{\n  \""));
}
