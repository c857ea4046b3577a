//! Pods that have to go. What the node is short of here is what the tests say, and not the machine.

use std::time::Duration;

use node::{Amount, Eviction, Signal, Threshold};
use serde_json::{Value, json};

use crate::world::{World, holds, one};

/// So often the node looks at itself.
const PERIOD: Duration = Duration::from_secs(10);

fn asking(priority: i32) -> Value {
    let mut spec = one();
    spec["containers"][0]["resources"] = json!({ "requests": { "cpu": "1m" } });
    spec["priority"] = priority.into();
    spec
}

fn failed(pod: &Value) -> bool {
    pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Evicted"
}

#[tokio::test]
async fn the_least_important_pod_goes_where_memory_is_short() {
    let mut world = World::new().await;
    for (name, priority) in [("web", 0), ("more", 10), ("critical", 2_000_000_000)] {
        world.create(name, asking(priority));
        world.pod_until(name, "Running", |pod| holds(pod, "Ready")).await;
    }
    world.stop().await;
    // More than there ever will be.
    let least = Amount::Absolute(1 << 60);
    let thresholds = vec![Threshold { signal: Signal::Memory, least, grace: None, reclaim: None }];
    world.eviction = Eviction { thresholds, ..Eviction::default() };
    world.start().await;
    let pressed = || holds(&world.api.get("nodes", "", "n1").unwrap(), "MemoryPressure").then_some(());
    world.until("MemoryPressure", pressed).await;

    world.create("late", one());
    let refused = world.pod_until("late", "refused", failed).await;
    let message = "Pod was rejected: The node had condition: [MemoryPressure]. ";
    assert_eq!(refused["status"]["message"], message);

    world.settled("web").await;
    world.clock.advance(PERIOD);
    let pod = world.pod_until("web", "evicted", failed).await;
    let message = pod["status"]["message"].as_str().unwrap();
    let told = "The node was low on resource: memory. Threshold quantity: 1Ei, available: ";
    assert!(message.starts_with(told), "{message}");
    assert!(holds(&pod, "DisruptionTarget"), "{pod:#}");
    // No container is given less time than two seconds.
    world.until("its end", || (world.runtime.said("stop main 2") == 1).then_some(())).await;
    world.until("its sandbox gone", || (world.runtime.said("stop sandbox") == 1).then_some(())).await;
    world.settled("web").await;
    assert!(!failed(&world.settled("more").await), "one pod a round");
    world.clock.advance(PERIOD);
    world.pod_until("more", "evicted", failed).await;
    world.until("its sandbox gone", || (world.runtime.said("stop sandbox") == 2).then_some(())).await;
    world.settled("critical").await;
    world.clock.advance(PERIOD);
    assert!(!failed(&world.settled("critical").await));
    let reclaiming = || {
        world
            .events("EvictionThresholdMet")
            .contains(&"Attempting to reclaim memory".to_owned())
            .then_some(())
    };
    world.until("events", reclaiming).await;
}

#[tokio::test]
async fn who_fills_a_volume_beyond_its_limit_goes() {
    let world = World::new().await;
    let mut spec = asking(0);
    spec["volumes"] = json!([{ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    world.create("web", spec);
    let pod = world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let volume = world.directory.path().join("data/pods").join(uid).join("volumes/scratch");
    std::fs::write(volume.join("file"), vec![1; 2 << 20]).unwrap();
    world.clock.advance(PERIOD);
    let pod = world.pod_until("web", "evicted", failed).await;
    assert_eq!(pod["status"]["message"], "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ");
    assert!(!holds(&pod, "DisruptionTarget"), "it goes for its own sake");
}
