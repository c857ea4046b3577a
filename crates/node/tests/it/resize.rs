//! Pods that get more or less while they run.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{World, holds, one};

fn sized(cpu: &str, memory: &str) -> Value {
    let amounts = json!({ "cpu": cpu, "memory": memory });
    json!({ "requests": amounts, "limits": amounts })
}

fn with(resources: &Value) -> Value {
    let mut spec = one();
    spec["containers"][0]["resources"] = resources.clone();
    spec
}

/// As a user does by the subresource `resize`.
fn resize(world: &World, name: &str, resources: &Value) {
    let mut pod = world.pod(name);
    let generation = pod["metadata"]["generation"].as_i64().unwrap() + 1;
    pod["metadata"]["generation"] = generation.into();
    pod["spec"]["containers"][0]["resources"] = resources.clone();
    world.api.put("pods", pod);
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn has(resources: &Value) -> impl Fn(&Value) -> bool {
    move |pod| {
        container(pod)["resources"] == *resources
            && container(pod)["allocatedResources"] == resources["requests"]
    }
}

fn condition(pod: &Value, kind: &str) -> Value {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

#[tokio::test]
async fn a_pod_gets_more_and_less_while_it_runs() {
    let world = World::new().await;
    let (small, large) = (sized("100m", "64Mi"), sized("200m", "128Mi"));
    world.create("web", with(&small));
    let pod = world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    assert!(has(&small)(&pod));
    let group = format!("kubepods/pod{}", pod["metadata"]["uid"].as_str().unwrap());
    let memory = || world.runtime.groups.lock()[&group].memory_limit_bytes;
    assert_eq!(memory(), Some(64 << 20));
    for (resources, megabytes, quota) in [(&large, 128, 20_000), (&small, 64, 10_000)] {
        resize(&world, "web", resources);
        let done = |pod: &Value| has(resources)(pod) && condition(pod, "PodResizeInProgress").is_null();
        let pod = world.pod_until("web", "resized", done).await;
        assert_eq!(container(&pod)["restartCount"], 0);
        let set = world.runtime.newest("main").unwrap().spec.resources;
        assert_eq!((set.memory_limit_bytes, set.cpu_quota_us), (Some(megabytes << 20), Some(quota)));
        assert_eq!(memory(), Some(megabytes << 20));
    }
    for reason in ["ResizeStarted", "ResizeCompleted"] {
        world.until("events", || (world.events(reason).len() == 2).then_some(())).await;
    }
    assert!(
        world
            .events("ResizeStarted")
            .iter()
            .all(|text| text.starts_with("Pod resize started: {\"containers\":["))
    );
}

#[tokio::test]
async fn a_resize_waits_for_room_also_where_the_agent_begins_anew() {
    let mut world = World::new().await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    let cores: u64 = node["status"]["allocatable"]["cpu"].as_str().unwrap().parse().unwrap();
    let (rest, more) = (sized(&format!("{}m", cores * 1000 - 100), "1Mi"), sized("200m", "64Mi"));
    let small = sized("100m", "64Mi");
    world.create("other", with(&rest));
    world.create("web", with(&small));
    for name in ["other", "web"] {
        world.pod_until(name, "Running", |pod| holds(pod, "Ready")).await;
    }
    resize(&world, "web", &sized(&(cores + 1).to_string(), "64Mi"));
    let pending =
        |reason: &'static str| move |pod: &Value| condition(pod, "PodResizePending")["reason"] == reason;
    let pod = world.pod_until("web", "Infeasible", pending("Infeasible")).await;
    let told = format!(
        "Node didn't have enough capacity: cpu, requested: {}, capacity: {}",
        (cores + 1) * 1000,
        cores * 1000
    );
    assert_eq!(condition(&pod, "PodResizePending")["message"], told);
    assert!(has(&small)(&pod));

    resize(&world, "web", &more);
    let pod = world.pod_until("web", "Deferred", pending("Deferred")).await;
    assert_eq!(condition(&pod, "PodResizePending")["observedGeneration"], 3);
    world.stop().await;
    world.start().await;
    let pod = world.settled("web").await;
    assert!(pending("Deferred")(&pod) && has(&small)(&pod), "{pod:#}");
    assert_eq!(world.runtime.newest("main").unwrap().spec.labels["skiff.dev/attempt"], "0");

    world.api.delete_pod("other", 0);
    let pod = world.pod_until("web", "resized", has(&more)).await;
    assert!(condition(&pod, "PodResizePending").is_null(), "{pod:#}");
}

#[tokio::test]
async fn who_has_finished_has_no_share_any_more() {
    let world = World::new().await;
    let mut spec = with(&json!({ "requests": { "cpu": "500m" } }));
    spec["restartPolicy"] = "Never".into();
    world.create("web", spec);
    world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    let shares = || world.runtime.groups.lock()["kubepods/burstable"].cpu_shares;
    assert_eq!(shares(), Some(512));
    world.runtime.end(&world.runtime.newest("main").unwrap().spec.id, 0);
    world.until("the least share", || (shares() == Some(2)).then_some(())).await;
    world.pod_until("web", "Succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
}

#[tokio::test]
async fn who_asked_for_it_begins_anew_with_more() {
    let world = World::new().await;
    let mut spec = with(&sized("100m", "64Mi"));
    spec["containers"][0]["resizePolicy"] =
        json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    world.create("web", spec);
    world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    let large = sized("100m", "128Mi");
    resize(&world, "web", &large);
    let anew = |pod: &Value| has(&large)(pod) && container(pod)["restartCount"] == 1 && holds(pod, "Ready");
    world.pod_until("web", "begun anew", anew).await;
    assert_eq!(world.runtime.newest("main").unwrap().spec.resources.memory_limit_bytes, Some(128 << 20));
    let killing = "Container main resize requires restart";
    world.until("an event", || world.events("Killing").contains(&killing.to_owned()).then_some(())).await;
}

#[tokio::test]
async fn a_group_that_cannot_be_set_is_told_of_and_tried_again() {
    let world = World::new().await;
    world.create("web", with(&sized("100m", "64Mi")));
    world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    world.runtime.fail("update", 1);
    let large = sized("100m", "128Mi");
    resize(&world, "web", &large);
    let failed = |pod: &Value| condition(pod, "PodResizeInProgress")["reason"] == "Error";
    let pod = world.pod_until("web", "an error", failed).await;
    assert_eq!(container(&pod)["resources"]["limits"]["memory"], "64Mi", "{pod:#}");
    world.until("an event", || (world.events("ResizeError").len() == 1).then_some(())).await;
    world.clock.advance(Duration::from_secs(1));
    let done = |pod: &Value| has(&large)(pod) && condition(pod, "PodResizeInProgress").is_null();
    world.pod_until("web", "resized", done).await;
}
