//! StatefulSets: names, numbers, claims and revisions, on a real API server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::{DeleteOptions, Key, Object, PatchType, Propagation};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{in_steps, reason, start, start_virtual};

fn web(extra: Value) -> Value {
    let mut spec = json!({
        "replicas": 3, "serviceName": "web", "selector": { "matchLabels": { "app": "web" } },
        "template": template("web:1"),
        "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }],
    });
    for (name, value) in extra.as_object().unwrap() {
        spec[name] = value.clone();
    }
    let annotations = json!({ "kubernetes.io/change-cause": "first" });
    json!({ "metadata": { "name": "web", "annotations": annotations }, "spec": spec })
}

fn template(image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": image }] } })
}

fn key() -> Key {
    Key::new("default", "web")
}

/// What `kubectl rollout status` waits for.
fn is_complete(set: &Value, replicas: i64) -> bool {
    let status = &set["status"];
    let counts = ["replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"];
    counts.iter().all(|count| status[count].as_i64().unwrap_or(0) == replicas)
        && status["observedGeneration"] == set["metadata"]["generation"]
        && status["currentRevision"] == status["updateRevision"]
}

async fn completes(cluster: &Cluster, replicas: i64) -> Value {
    cluster.until(kinds::STATEFUL_SETS, &key(), |held| is_complete(held, replicas)).await
}

async fn pod(cluster: &Cluster, name: &str) -> Value {
    cluster.until(kinds::PODS, &Key::new("default", name), |held| !held.is_null()).await
}

fn numbers(revisions: &[Arc<Object>]) -> Vec<i64> {
    let mut numbers: Vec<i64> =
        revisions.iter().map(|held| held.decode::<Value>().unwrap()["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

fn message(event: &Object) -> String {
    event.decode::<Value>().unwrap()["message"].as_str().unwrap_or("").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_comes_up_in_order_rolls_out_and_is_undone() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    cluster.create(&kinds::STATEFUL_SETS, "default", web(json!({}))).await;
    let first = completes(&cluster, 3).await;
    assert_eq!(first["status"]["collisionCount"], 0);
    let revision = first["status"]["currentRevision"].clone();
    let last = pod(&cluster, "web-2").await;
    assert_eq!(last["spec"]["hostname"], "web-2");
    assert_eq!(last["spec"]["subdomain"], "web");
    assert_eq!(last["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-2");
    assert_eq!(last["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "2");
    assert_eq!(last["metadata"]["labels"]["controller-revision-hash"], revision);
    let made = |name: &str| {
        let pod = cluster.informers.get(kinds::PODS).get(&Key::new("default", name)).unwrap();
        pod.meta().resource_version.parse::<i64>().unwrap()
    };
    assert!(made("web-0") < made("web-1") && made("web-1") < made("web-2"));
    let claims = cluster.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS).in_namespace("default");
    assert_eq!(claims.len(), 3);
    assert!(
        claims
            .iter()
            .all(|claim| claim.meta().labels["app"] == "web" && claim.meta().owner_references.is_empty())
    );
    for wanted in [
        "create Pod web-0 in StatefulSet web successful",
        "create Claim data-web-0 Pod web-0 in StatefulSet web success",
    ] {
        cluster
            .until_all(kinds::EVENTS, "default", |events| {
                events.iter().any(|event| reason(event) == "SuccessfulCreate" && message(event) == wanted)
            })
            .await;
    }

    let change = json!({ "metadata": { "annotations": { "kubernetes.io/change-cause": "second" } },
        "spec": { "template": template("web:2") } });
    cluster.merge(&kinds::STATEFUL_SETS, &key(), change).await;
    let newer = |held: &Value| is_complete(held, 3) && held["status"]["currentRevision"] != revision;
    cluster.until(kinds::STATEFUL_SETS, &key(), newer).await;
    assert_eq!(pod(&cluster, "web-0").await["spec"]["containers"][0]["image"], "web:2");
    let revisions = cluster.until_all(kinds::CONTROLLER_REVISIONS, "default", |held| held.len() == 2).await;
    assert_eq!(numbers(&revisions), [1, 2]);
    let causes: Vec<_> =
        revisions.iter().map(|held| held.annotation("kubernetes.io/change-cause").unwrap()).collect();
    assert!(causes.contains(&"first".to_owned()) && causes.contains(&"second".to_owned()));

    // What `kubectl rollout undo` does: the patch that the first revision holds.
    let name = revision.as_str().unwrap();
    let held =
        cluster.client.get(&kinds::CONTROLLER_REVISIONS.gvr(), &Key::new("default", name)).await.unwrap();
    let patch = held.decode::<Value>().unwrap()["data"].clone();
    let resource = kinds::STATEFUL_SETS.gvr();
    cluster.client.patch(&resource, &key(), "", PatchType::StrategicMerge, &patch).await.unwrap();
    let back = |held: &Value| is_complete(held, 3) && held["status"]["currentRevision"] == revision;
    cluster.until(kinds::STATEFUL_SETS, &key(), back).await;
    let renumbered = |held: &[Arc<Object>]| numbers(held) == [2, 3];
    cluster.until_all(kinds::CONTROLLER_REVISIONS, "default", renumbered).await;
    assert_eq!(pod(&cluster, "web-2").await["spec"]["containers"][0]["image"], "web:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_set_lets_go_of_its_last_pods_and_their_claims() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let policy = json!({ "whenScaled": "Delete", "whenDeleted": "Delete" });
    let spec = json!({ "persistentVolumeClaimRetentionPolicy": policy, "podManagementPolicy": "Parallel",
        "ordinals": { "start": 5 } });
    cluster.create(&kinds::STATEFUL_SETS, "default", web(spec)).await;
    completes(&cluster, 3).await;
    pod(&cluster, "web-7").await;
    cluster.merge(&kinds::STATEFUL_SETS, &key(), json!({ "spec": { "replicas": 1 } })).await;
    completes(&cluster, 1).await;
    let left = |all: &[Arc<Object>]| all.len() == 1;
    assert_eq!(cluster.until_all(kinds::PODS, "default", left).await[0].meta().name, "web-5");
    let claims = cluster.until_all(kinds::PERSISTENT_VOLUME_CLAIMS, "default", left).await;
    assert_eq!(claims[0].meta().owner_references[0].kind, "StatefulSet");
    cluster.client.delete(&kinds::STATEFUL_SETS.gvr(), &key(), DeleteOptions::default()).await.unwrap();
    for kind in [kinds::PODS, kinds::PERSISTENT_VOLUME_CLAIMS, kinds::CONTROLLER_REVISIONS] {
        cluster.until_all(kind, "default", <[_]>::is_empty).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_set_takes_over_what_another_left_behind() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let old = cluster.create(&kinds::STATEFUL_SETS, "default", web(json!({}))).await;
    completes(&cluster, 3).await;
    let uids = |pods: &[Arc<Object>]| pods.iter().map(|pod| pod.meta().uid.clone()).collect::<Vec<_>>();
    let before = uids(&cluster.informers.get(kinds::PODS).in_namespace("default"));
    let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
    cluster.client.delete(&kinds::STATEFUL_SETS.gvr(), &key(), orphan).await.unwrap();
    cluster.until(kinds::STATEFUL_SETS, &key(), Value::is_null).await;
    // One of them fails meanwhile.
    let failed = json!({ "status": { "phase": "Failed" } });
    let kind = PatchType::StrategicMerge;
    cluster
        .client
        .patch(&kinds::PODS.gvr(), &Key::new("default", "web-1"), "status", kind, &failed)
        .await
        .unwrap();
    let new = cluster.create(&kinds::STATEFUL_SETS, "default", web(json!({}))).await;
    assert_ne!(old.meta().uid, new.meta().uid);
    completes(&cluster, 3).await;
    let pods = cluster.informers.get(kinds::PODS).in_namespace("default");
    assert!(pods.iter().all(|pod| pod.meta().controller().is_some_and(|owner| owner.uid == new.meta().uid)));
    let after = uids(&pods);
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
    assert_ne!(after[1], before[1]);
    let revisions = cluster.informers.get(kinds::CONTROLLER_REVISIONS).in_namespace("default");
    assert_eq!(numbers(&revisions), [1]);
    // A pod whose labels match no longer is let go, and its name has to be freed by somebody.
    let strip = json!({ "metadata": { "labels": { "app": "other" } } });
    cluster.merge(&kinds::PODS, &Key::new("default", "web-2"), strip).await;
    let released = |held: &Value| held["metadata"]["ownerReferences"].is_null();
    cluster.until(kinds::PODS, &Key::new("default", "web-2"), released).await;
    cluster.until(kinds::STATEFUL_SETS, &key(), |held| held["status"]["replicas"] == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_is_tried_again_only_as_time_passes() {
    // Time stands still until the test lets it go on.
    let (clock, cluster) = start_virtual().await;
    cluster.takes_pods("default").await;
    // Somebody else has the name of the first pod.
    let stranger = json!({ "metadata": { "name": "web-0" }, "spec": template("other:1")["spec"] });
    cluster.create(&kinds::PODS, "default", stranger).await;
    cluster.create(&kinds::STATEFUL_SETS, "default", web(json!({}))).await;
    cluster.until(kinds::STATEFUL_SETS, &key(), |held| held["status"]["observedGeneration"] == 1).await;
    // Meanwhile another set has all the time that it needs.
    let mut other = web(json!({}));
    other["metadata"]["name"] = "other".into();
    other["spec"]["selector"]["matchLabels"]["app"] = "other".into();
    other["spec"]["template"]["metadata"]["labels"]["app"] = "other".into();
    cluster.create(&kinds::STATEFUL_SETS, "default", other).await;
    cluster.until(kinds::STATEFUL_SETS, &Key::new("default", "other"), |held| is_complete(held, 3)).await;
    let asked = cluster.pods_asked_for.load(Ordering::Relaxed);
    // The stranger, three for the other set, and one for each change of the set that waits: it was made, and has a status.
    assert!(asked <= 4 + 3, "{asked} pods were asked for");
    // Once the name is free, the next try makes the pods.
    cluster
        .client
        .delete(&kinds::PODS.gvr(), &Key::new("default", "web-0"), DeleteOptions::default())
        .await
        .unwrap();
    cluster.until(kinds::PODS, &Key::new("default", "web-0"), Value::is_null).await;
    // From here on time passes: whoever meets a conflict waits for another try.
    in_steps(&clock, std::time::Duration::from_secs(2), completes(&cluster, 3)).await;
}
