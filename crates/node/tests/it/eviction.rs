//! Pods that have to go. What the node is short of here is what the tests say, and not the machine.

use node::{Amount, Eviction, Signal, Threshold};
use serde_json::{Value, json};
use std::time::Duration;

use crate::world::{World, holds, one};

/// All of the machine's: more than there ever is, and no more than a node may keep back.
const ALL: Amount = Amount::Share(10_000);
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
    let thresholds = vec![Threshold { signal: Signal::Memory, least: ALL, grace: None, reclaim: None }];
    world.eviction = Eviction { thresholds, ..Eviction::default() };
    world.start().await;
    let pressed = || holds(&world.api.get("nodes", "", "n1").unwrap(), "MemoryPressure").then_some(());
    world.until("MemoryPressure", pressed).await;

    world.create("late", one());
    let refused = world.pod_until("late", "refused", failed).await;
    let message = "Pod was rejected: The node had condition: [MemoryPressure]. ";
    assert_eq!(refused["status"]["message"], message);

    world.settled("web").await;
    world.runtime.stubborn.lock().push("main".to_owned());
    world.clock.advance(PERIOD);
    // No container is given less time than two seconds.
    let least = Duration::from_secs(2);
    world.until("its stop", || (world.runtime.said("stop main 2") == 1).then_some(())).await;
    world.clock.advance(least);
    let pod = world.pod_until("web", "evicted", failed).await;
    let message = pod["status"]["message"].as_str().unwrap();
    let told = "The node was low on resource: memory. Threshold quantity: ";
    assert!(message.starts_with(told) && message.contains(", available: "), "{message}");
    assert!(holds(&pod, "DisruptionTarget"), "{pod:#}");
    world.until("its sandbox gone", || (world.runtime.said("stop sandbox") == 1).then_some(())).await;
    // The round is over when the next one is waited for; who else has its period has waited for two seconds already.
    let next = tokio::time::timeout(Duration::from_secs(60), world.clock.go_to_deadline(PERIOD, PERIOD));
    next.await.expect("a round that is over");
    assert_eq!(world.runtime.said("stop main 2"), 1, "one pod a round");
    world.until("the second stop", || (world.runtime.said("stop main 2") == 2).then_some(())).await;
    world.clock.advance(least);
    world.pod_until("more", "evicted", failed).await;
    // The fourth round begins when the third is over, which has found nobody else.
    rounds_until(&world, "two more rounds", || rounds(&world) >= 4).await;
    assert!(!failed(&world.settled("critical").await) && world.runtime.said("stop sandbox") == 2);
    let reclaiming = || {
        world
            .events("EvictionThresholdMet")
            .contains(&"Attempting to reclaim memory".to_owned())
            .then_some(())
    };
    world.until("events", reclaiming).await;
}

/// A node that is short of memory, with thresholds that wait for `grace`, and pods that do not end before they have to:
/// `web`, which has an hour, is the first to go, and `more` the second.
async fn short_of_memory(grace: Option<Duration>) -> World {
    let mut world = World::new().await;
    world.runtime.stubborn.lock().push("main".to_owned());
    for (name, priority) in [("web", 0), ("more", 10)] {
        let mut spec = asking(priority);
        spec["terminationGracePeriodSeconds"] = 3600.into();
        world.create(name, spec);
        world.pod_until(name, "Running", |pod| holds(pod, "Ready")).await;
    }
    world.stop().await;
    let threshold = Threshold { signal: Signal::Memory, least: ALL, grace, reclaim: None };
    let eviction = Eviction { thresholds: vec![threshold], grace_seconds_max: 60, ..Eviction::default() };
    world.eviction = eviction;
    world.start().await;
    world
}

/// How many rounds have begun to make room.
fn rounds(world: &World) -> u64 {
    let events = world.api.list("events").into_iter();
    let met = events.filter(|event| event["reason"] == "EvictionThresholdMet");
    met.filter_map(|event| event["count"].as_u64()).sum()
}

/// Lets the node look at itself until something has come about.
async fn rounds_until(world: &World, what: &str, mut look: impl FnMut() -> bool) {
    let done = world.until(what, || look().then_some(()));
    tokio::pin!(done);
    loop {
        tokio::select! {
            biased;
            () = &mut done => return,
            () = world.clock.go_on(PERIOD) => {}
        }
    }
}

#[tokio::test]
async fn nobody_goes_for_what_another_has_yet_to_give_back() {
    let world = short_of_memory(Some(Duration::from_secs(1))).await;
    world.settled("more").await;
    world.clock.advance(PERIOD);
    // That is longer than a round waits for it.
    world.until("its stop", || (world.runtime.said("stop main 60") == 1).then_some(())).await;
    let stops = || {
        let log = world.runtime.log.lock();
        log.iter().filter(|line| line.starts_with("stop ")).cloned().collect::<Vec<String>>()
    };
    rounds_until(&world, "the end of another", || stops().len() > 2).await;
    assert_eq!(
        stops()[..2],
        ["stop main 60", "stop sandbox"],
        "the first has ended before the second is told"
    );
}

#[tokio::test]
async fn who_is_being_deleted_is_told_to_be_quicker() {
    let world = short_of_memory(None).await;
    world.api.delete_pod("web", 3600);
    world.until("its stop", || (world.runtime.said("stop main 3600") == 1).then_some(())).await;
    world.clock.advance(PERIOD);
    world.until("a word to it", || (world.events("Evicted").len() == 1).then_some(())).await;
    world.clock.advance(Duration::from_secs(1));
    world.until("its end", || (world.runtime.said("stop main 0") == 1).then_some(())).await;
    world.until("nothing left of it", || world.pod("web").is_null().then_some(())).await;
    assert!(!failed(&world.settled("more").await));
}

#[tokio::test]
async fn all_who_hold_too_much_are_told_before_any_is_waited_for() {
    let world = World::new().await;
    world.runtime.stubborn.lock().push("main".to_owned());
    for name in ["web", "more"] {
        with_a_full_volume(&world, name).await;
    }
    world.clock.advance(PERIOD);
    world.until("a word to both", || (world.events("Evicted").len() == 2).then_some(())).await;
}

/// A pod that runs, and has more in a volume than its limit.
async fn with_a_full_volume(world: &World, name: &str) {
    let mut spec = asking(0);
    spec["volumes"] = json!([{ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    world.create(name, spec);
    let pod = world.pod_until(name, "Running", |pod| holds(pod, "Ready")).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let volume = world.directory.path().join("data/pods").join(uid).join("volumes/scratch");
    std::fs::write(volume.join("file"), vec![1; 2 << 20]).unwrap();
}

#[tokio::test]
async fn who_fills_a_volume_beyond_its_limit_goes() {
    let world = World::new().await;
    with_a_full_volume(&world, "web").await;
    world.clock.advance(PERIOD);
    let pod = world.pod_until("web", "evicted", failed).await;
    assert_eq!(pod["status"]["message"], "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ");
    assert!(!holds(&pod, "DisruptionTarget"), "it goes for its own sake");
}
