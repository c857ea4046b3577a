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

#[tokio::test]
async fn mounts_are_recursively_read_only_where_the_runtime_can_do_it() {
    let world = World::new().await;
    world.api.put(
        "runtimeclasses",
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "plain"},
            "handler": "other"}),
    );
    let mounted = |name: &str, mode: &str, class: Option<&str>| {
        let mut spec = one();
        spec["containers"][0]["name"] = name.into();
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        spec["containers"][0]["volumeMounts"] =
            json!([{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": mode}]);
        if let Some(class) = class {
            spec["runtimeClassName"] = class.into();
        }
        world.create(name, spec);
    };
    for (name, class, made) in [("able", None, true), ("unable", Some("plain"), false)] {
        mounted(name, "IfPossible", class);
        let pod = world.pod_until(name, "Running", running).await;
        let mount = world.runtime.newest(name).unwrap().spec.mounts[0].clone();
        assert_eq!((mount.read_only, mount.recursive_read_only), (true, made));
        let shown = &pod["status"]["containerStatuses"][0]["volumeMounts"][0];
        assert_eq!(shown["recursiveReadOnly"], if made { "Enabled" } else { "Disabled" });
    }
    mounted("insists", "Enabled", Some("plain"));
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let refused = |pod: &Value| waiting(pod)["reason"] == "CreateContainerConfigError";
    let pod = world.pod_until("insists", "refused", refused).await;
    let message = waiting(&pod)["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("but it is not supported by the runtime"), "{message}");
}

#[tokio::test]
async fn a_profile_that_nobody_would_enforce_is_refused_at_the_door() {
    if sys::host::has_app_armor() {
        // Here it would be enforced: by the engine, which is a fake.
        return;
    }
    let world = World::new().await;
    for (name, profile) in [
        ("default", json!({"type": "RuntimeDefault"})),
        ("own", json!({"type": "Localhost", "localhostProfile": "deny"})),
    ] {
        let mut spec = one();
        spec["containers"][0]["securityContext"] = json!({"appArmorProfile": profile});
        world.create(name, spec);
        let pod = world.pod_until(name, "refused", |pod| pod["status"]["phase"] == "Failed").await;
        assert_eq!(pod["status"]["reason"], "AppArmor");
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(pod["status"]["message"], format!("Pod was rejected: {message}"));
        world.until("event", || world.events("AppArmor").contains(&message.to_owned()).then_some(())).await;
    }
    assert!(world.runtime.newest("main").is_none());
}

#[tokio::test]
async fn a_pod_has_users_of_its_own_where_its_runtime_can_give_them() {
    let world = World::new().await;
    world.api.put(
        "runtimeclasses",
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "plain"},
            "handler": "other"}),
    );
    let mut spec = one();
    spec["hostUsers"] = false.into();
    world.create("web", spec.clone());
    world.pod_until("web", "Running", running).await;
    assert!(world.runtime.sandbox_specs()[0].own_users);
    spec["runtimeClassName"] = "plain".into();
    world.create("plain", spec);
    let message = "Failed to create pod sandbox: can't set `spec.hostUsers: false`, RuntimeClass handler \"other\" \
                   does not support user namespaces";
    let refused = || world.events("FailedCreatePodSandBox").contains(&message.to_owned()).then_some(());
    world.until("refused", refused).await;
}
