//! What pods ask of isolation, and what comes of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{World, one};

fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
}

#[tokio::test]
async fn a_runtime_class_names_the_runtime_and_is_waited_for() {
    let world = World::new().await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    let handlers = node["status"]["runtimeHandlers"].clone();
    let features = |able: bool| json!({"recursiveReadOnlyMounts": able, "userNamespaces": able});
    let wanted =
        json!([{"name": "", "features": features(true)}, {"name": "other", "features": features(false)}]);
    assert_eq!(handlers, wanted);
    let mut spec = one();
    spec["runtimeClassName"] = "fast".into();
    world.create("web", spec);
    let message = "Failed to create pod sandbox: runtimeclass.node.k8s.io \"fast\" not found";
    world
        .until("refused", || {
            world.events("FailedCreatePodSandBox").contains(&message.to_owned()).then_some(())
        })
        .await;
    assert!(world.runtime.sandbox_ids().is_empty());
    world.api.put(
        "runtimeclasses",
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "fast"},
            "handler": "other"}),
    );
    world.clock.advance(Duration::from_secs(1));
    world.pod_until("web", "Running", running).await;
    assert_eq!(world.runtime.sandbox_specs()[0].runtime_handler, "other");
}
