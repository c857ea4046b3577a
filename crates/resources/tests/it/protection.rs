//! What protects the server and what it keeps: encryption at rest.

use std::path::Path;
use std::sync::Arc;

use apiserver::Protection;
use http::Method;
use serde_json::{Value, json};
use store::memory::Memory;
use store::{Embedded, EmbeddedConfig, RangeRequest, Store};

use crate::cluster::Cluster;
use crate::http_front::{JSON, get, write};

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

/// Writes the secret as it is until it lies in the store under a prefix: the server reads its keys anew when the kernel
/// tells it that they changed, and nobody tells the client.
async fn rewritten(cluster: &Cluster, store: &Arc<dyn Store>, prefix: &[u8]) -> Value {
    let path = format!("{SECRETS}/a");
    for _ in 0..600 {
        let now = get(cluster, &path, JSON).await;
        assert_eq!(now.code, 200, "{}", now.message());
        let written = write(cluster, Method::PUT, &path, JSON, now.body.clone()).await;
        assert_eq!(written.code, 200, "{}", written.message());
        if stored(store).await.starts_with(prefix) {
            return written.json();
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("never rewritten")
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
    keys(&path, &format!("{{secretbox: {{keys: [{TWO}]}}}}, {{aescbc: {{keys: [{ONE}]}}}}"));
    rewritten(&cluster, &store, b"k8s:enc:secretbox:v1:two:").await;
    drop(cluster);

    // Values that are older than the keys are refused, by name, and nothing takes their place.
    let before = stored(&store).await;
    keys(&path, &format!("{{secretbox: {{keys: [{TWO}]}}}}, {{identity: {{}}}}"));
    let cluster = Cluster::start_protected(store.clone(), protection).await;
    keys(&path, &format!("{{secretbox: {{keys: [{ONE}]}}}}, {{identity: {{}}}}"));
    let mut refused = get(&cluster, &format!("{SECRETS}/a"), JSON).await;
    for _ in 0..600 {
        if refused.code != 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        refused = get(&cluster, &format!("{SECRETS}/a"), JSON).await;
    }
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
