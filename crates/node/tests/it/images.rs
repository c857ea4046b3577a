//! Images that pods ask for: credentials, policies, volumes.

use engine_api::ImageOrigin;
use serde_json::{Value, json};

use crate::pods::running;
use crate::world::{World, holds, one};

#[tokio::test]
async fn every_pull_secret_that_matches_is_tried_and_missing_ones_are_told() {
    let world = World::new().await;
    let secret = |name: &str, auths: Value| {
        let config = k8s_openapi::ByteString(json!({ "auths": auths }).to_string().into_bytes());
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": name, "namespace": "default"}, "data": {".dockerconfigjson": config}});
        world.api.put("secrets", secret);
    };
    secret("broad", json!({"private.test": {"username": "right", "password": "p"}}));
    secret("near", json!({"private.test/team": {"username": "wrong", "password": "p"}}));
    let mut spec = one();
    spec["containers"][0]["image"] = "private.test/team/app:1".into();
    spec["imagePullSecrets"] = json!([{"name": "broad"}, {"name": "near"}, {"name": "gone"}]);
    world.create("web", spec);
    world.pod_until("web", "Ready", |pod| holds(pod, "Ready")).await;
    assert_eq!(*world.images.users.lock(), ["wrong", "right"]);
    let told = world.until("event", || world.events("FailedToRetrieveImagePullSecret").pop()).await;
    assert!(told.contains("(gone (not found))"), "{told}");

    // Who has the Secret as well needs no registry, who has none is asked by it.
    let mut other = one();
    other["containers"][0]["image"] = "private.test/team/app:1".into();
    other["imagePullSecrets"] = json!([{"name": "broad"}]);
    world.create("also", other.clone());
    world.pod_until("also", "Ready", |pod| holds(pod, "Ready")).await;
    assert_eq!(world.images.users.lock().len(), 2);
    let waits = async |name: &str, reason: &str| {
        let waiting =
            |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason;
        world.pod_until(name, reason, waiting).await;
    };
    other["imagePullSecrets"] = json!([]);
    world.create("stranger", other.clone());
    waits("stranger", "ErrImagePull").await;
    assert_eq!(*world.images.users.lock(), ["wrong", "right", "nobody"]);
    other["containers"][0]["imagePullPolicy"] = "Never".into();
    world.create("never", other);
    waits("never", "ErrImageNeverPull").await;
}

#[tokio::test]
async fn the_image_of_a_volume_is_pulled_and_held_until_the_pod_has_ended() {
    let world = World::new().await;
    let mut spec = one();
    spec["volumes"] = json!([{"name": "content", "image": {"reference": "registry.test/content:1"}}]);
    spec["containers"][0]["volumeMounts"] =
        json!([{"name": "content", "mountPath": "/content", "readOnly": true}]);
    world.create("web", spec.clone());
    let pod = world.pod_until("web", "Running", running).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(world.images.held.lock().clone(), [(uid, "sha256:pulled".to_owned())]);
    let mounts = world.runtime.newest("main").unwrap().spec.mounts;
    let mount = mounts.iter().find(|mount| mount.target == std::path::Path::new("/content")).unwrap();
    assert!(!mount.read_only, "what is mounted is sealed, and stays as it is: {mount:?}");
    spec["volumes"][0]["image"]["reference"] = "elsewhere/none:1".into();
    world.create("missing", spec);
    let told = world.until("event", || world.events("FailedMount").pop()).await;
    let start = "MountVolume.SetUp failed for volume \"content\" : ErrImagePull: failed to pull image";
    assert!(told.starts_with(start), "{told}");
    world.api.delete_pod("web", 0);
    world.until("released", || world.images.held.lock().is_empty().then_some(())).await;
}

#[tokio::test]
async fn local_tags_ask_no_registry_and_missing_ones_are_explained() {
    let world = World::new().await;
    let mut spec = one();
    spec["containers"][0]["imagePullPolicy"] = "Always".into();
    world.create("web", spec.clone());
    world.pod_until("web", "Running", running).await;
    assert!(world.images.pulls.lock().is_empty());
    // A rebuilt tag is picked up by the next start.
    world.images.tags.lock().insert("app:1".to_owned(), ("sha256:app2".to_owned(), ImageOrigin::Local));
    world.runtime.end(&world.runtime.newest("main").unwrap().spec.id, 1);
    world
        .pod_until("web", "new image", |pod| {
            pod["status"]["containerStatuses"][0]["imageID"] == "sha256:app2"
        })
        .await;
    spec["containers"][0]["image"] = "elsewhere/none:1".into();
    world.create("missing", spec.clone());
    let pod = world
        .pod_until("missing", "ErrImagePull", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull"
        })
        .await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let message = waiting["message"].as_str().unwrap();
    for part in
        ["\"elsewhere/none:1\": registry not reachable;", "skiff build -t elsewhere/none:1 .", "skiff load"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(pod["status"]["phase"], "Pending");
    spec["containers"][0]["image"] = "registry.test/x:1".into();
    world.create("pulled", spec);
    world.pod_until("pulled", "Running", running).await;
}
