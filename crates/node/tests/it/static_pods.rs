//! Pods of files.

use std::path::PathBuf;
use std::time::Duration;

use engine_api::ContainerState;
use serde_json::{Value, json};

use crate::streams::get;
use crate::world::{World, holds};

const NAME: &str = "web-n1";

fn manifest(world: &World) -> PathBuf {
    world.directory.path().join("manifests/web.yaml")
}

/// Puts the manifest in its place as a whole. `word`: an argument of its container.
fn write(world: &World, word: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: main\n    \
         image: app:1\n    imagePullPolicy: IfNotPresent\n    args: [{word}]\n"
    );
    let beside = world.directory.path().join("web.yaml");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, manifest(world)).unwrap();
}

fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && holds(pod, "Ready")
}

fn alive(world: &World) -> Option<engine_api::ContainerStatus> {
    world.runtime.newest("main").filter(|status| matches!(status.state, ContainerState::Running { .. }))
}

#[tokio::test]
async fn a_file_is_a_pod_for_as_long_as_it_is_there() {
    let mut world = World::new().await;
    write(&world, "one");
    let mirror = world.pod_until(NAME, "shown as Running", running).await;
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
    assert_ne!(annotations["kubernetes.io/config.hash"], mirror["metadata"]["uid"]);
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");
    let first = alive(&world).unwrap();

    // Who deletes the copy deletes nothing else.
    world.api.delete_pod(NAME, 30);
    let anew = world
        .pod_until(NAME, "shown anew", |pod| {
            pod["metadata"]["uid"] != mirror["metadata"]["uid"] && running(pod)
        })
        .await;
    world.api.remove("pods", "default", NAME);
    let uid = anew["metadata"]["uid"].clone();
    world.pod_until(NAME, "shown once more", |pod| pod["metadata"]["uid"] != uid && running(pod)).await;
    assert_eq!(alive(&world).unwrap().spec.id, first.spec.id);

    // Nor does a restart of the node, which finds the pod and its copy.
    world.stop().await;
    world.start().await;
    world.pod_until(NAME, "still shown", running).await;
    write(&world, "two");
    let changed = |pod: &Value| running(pod) && pod["spec"]["containers"][0]["args"] == json!(["two"]);
    let second = world.pod_until(NAME, "another one", changed).await;
    assert_ne!(
        second["metadata"]["annotations"]["kubernetes.io/config.hash"],
        annotations["kubernetes.io/config.hash"]
    );
    let log = world.runtime.log.lock().clone();
    let wanted = [
        "create sandbox default/web-n1",
        "start main 0",
        "stop main 30",
        "stop sandbox",
        "remove sandbox",
        "create sandbox default/web-n1",
        "start main 0",
    ];
    assert_eq!(log, wanted, "the second begins when nothing is left of the first");

    std::fs::remove_file(manifest(&world)).unwrap();
    world.until("ended", || world.runtime.sandbox_ids().is_empty().then_some(())).await;
    world.until("shown no more", || world.api.get("pods", "default", NAME).is_none().then_some(())).await;
}

#[tokio::test]
async fn a_pod_of_a_file_needs_no_api_server() {
    let world = World::new().await;
    *world.api.refuses_pods.lock() = true;
    write(&world, "one");
    world.until("runs", || alive(&world)).await;
    assert!(world.api.get("pods", "default", NAME).is_none());
    *world.api.refuses_pods.lock() = false;
    world.clock.advance(Duration::from_secs(60));
    world.pod_until(NAME, "shown as Running", running).await;
    assert_eq!(world.runtime.said("start main 0"), 1);
}

#[tokio::test]
async fn a_pod_of_a_file_has_figures_with_and_without_its_copy() {
    let world = World::new().await;
    *world.api.refuses_pods.lock() = true;
    write(&world, "one");
    world.until("runs", || alive(&world)).await;
    let server = world.agent().server();
    let summary =
        async || -> Value { serde_json::from_str(&get(&server, "/stats/summary").await.1).unwrap() };
    let alone = summary().await["pods"].clone();
    assert_eq!(alone[0]["containers"][0]["cpu"]["usageCoreNanoSeconds"], 5, "{alone}");
    *world.api.refuses_pods.lock() = false;
    world.clock.advance(Duration::from_secs(60));
    let mirror = world.pod_until(NAME, "shown as Running", running).await;
    let shown = summary().await["pods"].clone();
    assert_eq!((shown.as_array().unwrap().len(), &shown[0]["podRef"]), (1, &alone[0]["podRef"]));
    assert_eq!(shown[0]["podRef"]["uid"], mirror["metadata"]["annotations"]["kubernetes.io/config.hash"]);
    let metrics = get(&server, "/metrics").await.1;
    for line in [
        "kubelet_desired_pods{static=\"\"} 0\n",
        "kubelet_desired_pods{static=\"true\"} 1\n",
        "kubelet_started_containers_total{container_type=\"container\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(get(&server, "/metrics/cadvisor").await.1.contains("container_scrape_error 0\n"));
}

#[tokio::test]
async fn a_copy_without_its_file_goes_and_runs_nothing() {
    let world = World::new().await;
    let copy = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost-n1", "namespace": "default",
            "annotations": {"kubernetes.io/config.mirror": "0123"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "app:1"}]}, "status": {}});
    world.api.put("pods", copy);
    world.until("gone", || world.api.get("pods", "default", "lost-n1").is_none().then_some(())).await;
    assert!(world.runtime.log.lock().is_empty());
}

#[tokio::test]
async fn who_says_to_be_a_copy_of_another_pod_silences_nobody() {
    let world = World::new().await;
    let spec = json!({ "nodeName": "n1", "restartPolicy": "Never", "containers": [{ "name": "main", "image": "app:1" }] });
    let victim = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "victim", "namespace": "default",
            "annotations": {"kubernetes.io/config.source": "file"}}, "spec": spec, "status": {}});
    world.api.put("pods", victim);
    let victim = world.pod_until("victim", "shown as Running", running).await;
    let forged = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forged", "namespace": "default",
            "annotations": {"kubernetes.io/config.mirror": victim["metadata"]["uid"]}}, "spec": spec, "status": {}});
    world.api.put("pods", forged);
    world.until("gone", || world.api.get("pods", "default", "forged").is_none().then_some(())).await;
    let main = alive(&world).unwrap().spec.id;
    world.runtime.end(&main, 3);
    world.pod_until("victim", "shown as Failed", |pod| pod["status"]["phase"] == "Failed").await;
}
