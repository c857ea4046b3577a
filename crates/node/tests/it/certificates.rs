//! Certificates that pods have of signers. The signer is the test.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::world::{World, holds, one};

const DAY: i64 = 24 * 3600;

fn spec() -> Value {
    let mut spec = one();
    let certificate = json!({ "signerName": "example.com/signer", "keyType": "ECDSAP256",
        "credentialBundlePath": "bundle.pem", "userAnnotations": { "example.com/a": "b" } });
    spec["volumes"] =
        json!([{ "name": "identity", "projected": { "sources": [{ "podCertificate": certificate }] } }]);
    spec["serviceAccountName"] = "sa".into();
    spec
}

/// The requests that nobody has answered.
fn open(world: &World) -> Vec<Value> {
    let all = world.api.list("podcertificaterequests").into_iter();
    all.filter(|request| request["status"].is_null()).collect()
}

async fn request(world: &World) -> Value {
    world.until("a request", || open(world).into_iter().next()).await
}

fn condition(kind: &str) -> Value {
    json!([{ "type": kind, "status": "True", "reason": "Reason", "message": "words" }])
}

/// Signs what is asked for; the certificate.
fn sign(world: &World, mut request: Value) -> String {
    let stub = STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().unwrap()).unwrap();
    let asked = CertificateSigningRequestParams::from_der(&stub.as_slice().into()).unwrap();
    let key = KeyPair::generate().unwrap();
    let signer = Issuer::new(CertificateParams::new(["signer".to_owned()]).unwrap(), &key);
    let pem = asked.signed_by(&signer).unwrap().pem();
    let after = |seconds: i64| (world_now(world) + Duration::from_secs(seconds.unsigned_abs())).to_string();
    request["status"] = json!({ "conditions": condition("Issued"), "certificateChain": pem,
        "notBefore": after(0), "beginRefreshAt": after(DAY / 2), "notAfter": after(DAY) });
    world.api.put("podcertificaterequests", request);
    pem.replace('\r', "")
}

fn world_now(world: &World) -> Timestamp {
    base::clock::Clock::now(&world.clock)
}

fn volume(world: &World, pod: &Value) -> PathBuf {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let run = world.directory.path().join("run");
    let found = walk(&run)
        .into_iter()
        .find(|path| path.ends_with("identity") && path.to_string_lossy().contains(uid));
    found.unwrap_or_else(|| panic!("no volume below {}", run.display()))
}

fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .flat_map(|entry| {
            let path = entry.path();
            let mut all = walk(&path);
            all.push(path);
            all
        })
        .collect()
}

async fn world() -> World {
    let world = World::new().await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "sa", "namespace": "default", "uid": "sa-uid" } });
    world.api.put("serviceaccounts", account);
    world
}

#[tokio::test]
async fn a_pod_waits_for_its_certificate_which_is_renewed_in_time() {
    let world = world().await;
    world.create("web", spec());
    let asked = request(&world).await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    let pod = world.pod("web");
    let wanted = json!({ "signerName": "example.com/signer", "podName": "web", "podUID": pod["metadata"]["uid"],
        "serviceAccountName": "sa", "serviceAccountUID": "sa-uid", "nodeName": "n1",
        "nodeUID": node["metadata"]["uid"], "unverifiedUserAnnotations": { "example.com/a": "b" },
        "stubPKCS10Request": asked["spec"]["stubPKCS10Request"] });
    assert_eq!(asked["spec"], wanted);
    assert_eq!(asked["metadata"]["ownerReferences"][0]["uid"], pod["metadata"]["uid"]);
    let told = || {
        let events = world.events("FailedMount");
        events
            .iter()
            .any(|text| text.contains("has not been issued yet by signer \"example.com/signer\""))
            .then_some(())
    };
    world.until("its event", told).await;
    let first = sign(&world, asked);
    let pod = world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    let directory = volume(&world, &pod);
    let shown = std::fs::read_to_string(directory.join("bundle.pem")).unwrap();
    assert!(shown.starts_with("-----BEGIN PRIVATE KEY-----\n") && shown.ends_with(&first), "{}", shown.len());
    // Nobody asks again before its time.
    world.settled("web").await;
    assert_eq!(open(&world).len(), 0);
    // Its time, and what is added so that not all ask together.
    world.clock.advance(Duration::from_secs(DAY.unsigned_abs() / 2 + 300));
    let second = request(&world).await;
    assert_ne!(second["spec"]["stubPKCS10Request"], wanted["stubPKCS10Request"], "another key");
    let unchanged = std::fs::read_to_string(directory.join("bundle.pem")).unwrap();
    assert!(unchanged == shown, "the old one is shown until there is another");
    let second = sign(&world, second);
    world.file_until(&directory, "bundle.pem", |text| text.ends_with(&second)).await;
}

#[tokio::test]
async fn a_signer_that_denies_is_told_of_and_not_asked_again() {
    let world = world().await;
    world.create("web", spec());
    let mut asked = request(&world).await;
    asked["status"] = json!({ "conditions": condition("Denied") });
    let name = asked["metadata"]["name"].as_str().unwrap().to_owned();
    world.api.put("podcertificaterequests", asked);
    let told =
        format!("PodCertificateRequest default/{name} was denied, reason=\"Reason\", message=\"words\"");
    world.until("its event", || world.events("Denied").contains(&told).then_some(())).await;
    let words = "PodCertificateRequest was permanently denied: reason=\"Reason\" message=\"words\"";
    let failed = || world.events("FailedMount").iter().any(|text| text.contains(words)).then_some(());
    world.until("its volume", failed).await;
    world.clock.advance(Duration::from_secs(300));
    let pod = world.settled("web").await;
    assert!(!holds(&pod, "Ready") && open(&world).is_empty());
}
