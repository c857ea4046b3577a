//! The machine goes down.

use std::time::Duration;

use node::{ShutdownPeriod, ShutdownSettings};
use serde_json::{Value, json};

use crate::logind::{Daemon, Logind};
use crate::world::{World, holds, one};

fn of_priority(priority: i32) -> Value {
    let mut spec = one();
    spec["priority"] = priority.into();
    spec["terminationGracePeriodSeconds"] = 3600.into();
    spec
}

fn ready(world: &World) -> Option<Value> {
    let node = world.api.get("nodes", "", "n1")?;
    let conditions = node["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|condition| condition["type"] == "Ready")
}

async fn until_ready(world: &World, status: &str) -> Value {
    world.until("the Node's condition", || ready(world).filter(|ready| ready["status"] == status)).await
}

#[tokio::test]
async fn pods_end_by_their_priority_before_the_machine_goes_down() {
    let mut world = World::new().await;
    let Some(daemon) = Daemon::start(world.directory.path()) else { return };
    let mut logind = Logind::on(&daemon, Duration::from_secs(60)).await;
    world.stop().await;
    let period = |priority, seconds| ShutdownPeriod { priority, seconds };
    world.shutdown = ShutdownSettings {
        by_priority: vec![period(0, 10), period(1000, 20)],
        bus: Some(daemon.socket.clone()),
        ..ShutdownSettings::default()
    };
    world.start().await;
    logind.until_held().await;
    for (name, priority) in [("web", 0), ("important", 1000)] {
        world.create(name, of_priority(priority));
        world.pod_until(name, "Running", |pod| holds(pod, "Ready")).await;
    }
    world.runtime.stubborn.lock().push("main".to_owned());
    logind.goes_down(true).await;
    // The less important one has ten seconds, which it takes.
    world.until("the first stop", || (world.runtime.said("stop main 10") == 1).then_some(())).await;
    let ready = until_ready(&world, "False").await;
    assert_eq!(
        (&ready["reason"], &ready["message"]),
        (&json!("KubeletNotReady"), &json!("node is shutting down"))
    );
    world.create("late", one());
    let late = world.pod_until("late", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(late["status"]["reason"], "NodeShutdown");
    assert_eq!(late["status"]["message"], "Pod was rejected: Pod was rejected as the node is shutting down.");
    assert_eq!(world.runtime.said("stop main 20"), 0);
    world.clock.advance(Duration::from_secs(10));
    let ended = |pod: &Value| pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Terminated";
    let pod = world.pod_until("web", "ended", ended).await;
    let message = "Pod was terminated in response to imminent node shutdown.";
    assert_eq!(pod["status"]["message"], message);
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let disrupted = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!(
        (&disrupted["reason"], &disrupted["message"], &disrupted["status"]),
        (&json!("TerminationByKubelet"), &json!(message), &json!("True"))
    );
    world.until("the second stop", || (world.runtime.said("stop main 20") == 1).then_some(())).await;
    world.clock.advance(Duration::from_secs(20));
    world.pod_until("important", "ended", ended).await;
    logind.until_released().await;
    assert_eq!(world.events("Evicted"), [""; 0]);

    // The administrator has thought better of it.
    logind.goes_down(false).await;
    logind.until_held_again().await;
    until_ready(&world, "True").await;
    world.runtime.stubborn.lock().clear();
    world.create("again", one());
    world.pod_until("again", "Running", |pod| holds(pod, "Ready")).await;
}

#[tokio::test]
async fn a_bus_that_comes_late_is_found() {
    let mut world = World::new().await;
    world.stop().await;
    let socket = world.directory.path().join("bus");
    world.shutdown =
        ShutdownSettings { grace: Duration::from_secs(30), bus: Some(socket), ..ShutdownSettings::default() };
    world.start().await;
    until_ready(&world, "True").await;
    let Some(daemon) = Daemon::start(world.directory.path()) else { return };
    // It waits for less than what is asked for: that is told.
    let mut logind = Logind::on(&daemon, Duration::from_secs(5)).await;
    let held = logind.until_held();
    tokio::pin!(held);
    loop {
        tokio::select! {
            biased;
            () = &mut held => break,
            () = world.clock.go_on(Duration::from_secs(300)) => {}
        }
    }
    let told = "logind waits 5 s for the node when the machine goes down, less than the 30 s of shutdownGracePeriod: set \
                InhibitDelayMaxSec=30 in /etc/systemd/logind.conf.d";
    world.until("its event", || (world.events("NodeShutdownTooShort") == [told]).then_some(())).await;
}
