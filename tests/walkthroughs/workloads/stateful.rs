//! StatefulSets.

use serde_json::{Value, json};

use super::common;
use super::space::{
    IMAGE, OTHER_IMAGE, Objects, STATEFUL_SET, Space, controller, image, is_ending, is_ready, of, pod, uid,
    with_image,
};

/// A pod is Ready while this file is there.
const HEALTHY: &str = "touch /tmp/healthy; trap 'exit 0' TERM; sleep 3600 & wait";

/// A StatefulSet whose pods' health is set by [`health`].
fn with_health(name: &str, replicas: u32, policy: &str) -> Value {
    let mut set = STATEFUL_SET.of(name, replicas);
    set["spec"]["podManagementPolicy"] = policy.into();
    let container = &mut set["spec"]["template"]["spec"]["containers"][0];
    container["command"] = json!(["sh", "-c", HEALTHY]);
    container["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/healthy"]}, "periodSeconds": 1, "failureThreshold": 1});
    set
}

/// Makes a pod healthy or not, and waits until that is known.
fn health(space: &Space<'_>, pod: &str, healthy: bool) {
    let command = if healthy { "touch" } else { "rm" };
    space.run(&["exec", pod, "--", command, "/tmp/healthy"]);
    space.until_one("pods", pod, "its health", |pod| is_ready(pod) == healthy);
}

fn scale(space: &Space<'_>, name: &str, replicas: u32) {
    space.run(&["scale", &STATEFUL_SET.named(name), &format!("--replicas={replicas}")]);
}

pub(crate) fn a_burst_goes_on_with_unhealthy_pods(space: &Space<'_>) {
    space.make(&with_health("burst", 1, "Parallel"));
    space.ready_pods("burst", 1);
    health(space, "burst-0", false);
    scale(space, "burst", 3);
    space.until(&of("burst"), "the others are Ready", |pods| {
        ["burst-1", "burst-2"].iter().all(|name| pods.get(*name).is_some_and(is_ready))
    });
    health(space, "burst-1", false);
    scale(space, "burst", 0);
    space.until_gone(&of("burst"));
}

pub(crate) fn scaling_goes_in_order_and_halts_at_unhealthy_pods(space: &Space<'_>) {
    space.make(&with_health("row", 1, "OrderedReady"));
    space.ready_pods("row", 1);
    health(space, "row-0", false);
    scale(space, "row", 3);
    space.seen("statefulsets", "row");
    let pods = space.list(&["pods", "-l", "app=row"]);
    assert_eq!(pods.len(), 1, "it grows beyond an unhealthy pod: {pods:#?}");
    let mut watch = space.watch(&of("row"));
    health(space, "row-0", true);
    let mut before = 1;
    watch.until("three Ready pods", |pods| {
        if pods.len() > before {
            before = pods.len();
            let lower = (0..before - 1).map(|at| &pods[&format!("row-{at}")]);
            assert!(lower.into_iter().all(is_ready), "made before those below it were Ready: {pods:#?}");
        }
        pods.len() == 3 && pods.values().all(is_ready)
    });

    let each = ["row-0", "row-1", "row-2"];
    for pod in each {
        health(space, pod, false);
    }
    scale(space, "row", 0);
    space.seen("statefulsets", "row");
    let pods = space.list(&["pods", "-l", "app=row"]);
    assert!(pods.len() == 3 && !pods.iter().any(is_ending), "it shrinks with unhealthy pods: {pods:#?}");
    let mut watch = space.watch(&of("row"));
    // The probes of pods that end already are no longer looked at.
    for pod in each {
        space.try_run(&["exec", pod, "--", "touch", "/tmp/healthy"]);
    }
    watch.until("no pods", |pods| {
        let ending: Vec<_> = pods.iter().filter(|(_, pod)| is_ending(pod)).map(|(name, _)| name).collect();
        let last = pods.keys().next_back();
        assert!(ending.is_empty() || ending == [last.unwrap()], "not from the last one down: {pods:#?}");
        pods.is_empty()
    });
}

/// A pod holds a port of the node, so that the StatefulSet's pod, which is sent there, is refused by it.
pub(crate) fn a_pod_that_its_node_refuses_is_made_again(space: &Space<'_>) {
    let ports = json!([{"containerPort": 21017, "hostPort": 21017}]);
    let node = space.cluster.nodes()[0];
    let mut first = pod("holder", "holder");
    first["spec"]["containers"][0]["ports"] = ports.clone();
    first["spec"]["nodeName"] = node.into();
    space.make(&first);
    space.ready_pods("holder", 1);
    let mut set = STATEFUL_SET.of("refused", 1);
    set["spec"]["template"]["spec"]["containers"][0]["ports"] = ports;
    set["spec"]["template"]["spec"]["nodeName"] = node.into();
    let mut watch = space.watch(&of("refused"));
    space.make(&set);
    let mut failed = None;
    watch.until("a failed pod is followed by another", |pods| {
        let Some(pod) = pods.get("refused-0") else { return false };
        if pod["status"]["phase"] == "Failed" {
            failed = Some(uid(pod));
        }
        failed.as_ref().is_some_and(|failed| *failed != uid(pod))
    });
    space.run(&["delete", "pod", "holder", "--wait=false"]);
    watch.until("a Ready pod", |pods| pods.values().any(is_ready));
}

pub(crate) fn a_stateful_set_has_a_working_scale(space: &Space<'_>) {
    common::scales(space, STATEFUL_SET);
}

pub(crate) fn a_stateful_sets_status_is_read_and_written(space: &Space<'_>) {
    common::has_a_status(space, STATEFUL_SET, 1);
}

pub(crate) fn stateful_sets_are_listed_patched_and_deleted_together(space: &Space<'_>) {
    space.make(&STATEFUL_SET.of("patched", 1));
    space.ready_pods("patched", 1);
    let mut change = with_image(OTHER_IMAGE);
    change["metadata"]["labels"]["test"] = "patched".into();
    change["spec"]["replicas"] = 2.into();
    space.patch("statefulsets/patched", &change);
    let pods = space.until(&of("patched"), "two new pods", |pods| {
        pods.len() == 2 && pods.values().all(|pod| is_ready(pod) && image(pod) == OTHER_IMAGE)
    });
    assert!(pods.contains_key("patched-0") && pods.contains_key("patched-1"), "{pods:#?}");
    common::is_a_collection(space, STATEFUL_SET, &[STATEFUL_SET.of("one", 1), STATEFUL_SET.of("two", 1)]);
}

/// The images of pods in order; nothing while one of them is not Ready.
fn images(pods: &Objects, count: usize) -> Option<Vec<&str>> {
    (pods.len() == count && pods.values().all(is_ready)).then(|| pods.values().map(image).collect())
}

fn partition(space: &Space<'_>, at: u32) {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": at}});
    space.patch("statefulsets/canary", &json!({"spec": {"updateStrategy": strategy}}));
}

pub(crate) fn updates_are_phased_by_a_partition(space: &Space<'_>) {
    let mut set = STATEFUL_SET.of("canary", 3);
    set["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 3}});
    space.make(&set);
    let before = space.ready_pods("canary", 3);
    space.patch("statefulsets/canary", &with_image(OTHER_IMAGE));
    let seen = space.seen("statefulsets", "canary");
    assert_ne!(seen["status"]["currentRevision"], seen["status"]["updateRevision"], "{seen}");
    let pods = space.list(&["pods", "-l", "app=canary"]);
    assert!(pods.iter().all(|pod| image(pod) == IMAGE && !is_ending(pod)), "updated below the partition");

    let stand_at = |wanted: [&str; 3]| {
        space.until(&of("canary"), &format!("{wanted:?}"), |pods| {
            images(pods, 3).is_some_and(|are| are == wanted)
        })
    };
    partition(space, 2);
    let canary = stand_at([IMAGE, IMAGE, OTHER_IMAGE]);
    assert_eq!(uid(&canary["canary-0"]), uid(&before["canary-0"]));
    space.run(&["delete", "pod", "canary-0", "canary-2"]);
    let restored = stand_at([IMAGE, IMAGE, OTHER_IMAGE]);
    for pod in ["canary-0", "canary-2"] {
        assert_ne!(uid(&restored[pod]), uid(&canary[pod]), "{pod} is another one of the same revision");
    }
    partition(space, 1);
    stand_at([IMAGE, OTHER_IMAGE, OTHER_IMAGE]);
    partition(space, 0);
    stand_at([OTHER_IMAGE; 3]);
    let update = seen["status"]["updateRevision"].clone();
    space.until_one("statefulsets", "canary", "the update is current", |set| {
        set["status"]["currentRevision"] == update && set["status"]["updateRevision"] == update
    });
}

/// Changes the template's image and follows the pods from the last one down, one at a time.
fn roll(space: &Space<'_>, to: &str) -> Value {
    let mut pods = space.watch(&of("rolled"));
    space.patch("statefulsets/rolled", &with_image(to));
    pods.until("all of the new image", |pods| {
        let lacking = (0..2).filter(|at| !pods.get(&format!("rolled-{at}")).is_some_and(is_ready));
        assert!(lacking.count() <= 1, "more than one at a time: {pods:#?}");
        if pods.get("rolled-0").is_some_and(|pod| image(pod) == to) {
            assert_eq!(pods.get("rolled-1").map(image), Some(to), "not from the last one down");
        }
        images(pods, 2).is_some_and(|images| images == [to; 2])
    });
    space.until_one("statefulsets", "rolled", "the update is current", |set| {
        let status = &set["status"];
        status["currentRevision"] == status["updateRevision"] && status["currentReplicas"] == 2
    })
}

pub(crate) fn updates_roll_and_are_rolled_back_to_the_same_revision(space: &Space<'_>) {
    space.make(&STATEFUL_SET.of("rolled", 2));
    space.ready_pods("rolled", 2);
    let first = space.seen("statefulsets", "rolled")["status"]["updateRevision"].clone();
    let second = roll(space, OTHER_IMAGE)["status"]["updateRevision"].clone();
    assert_ne!(first, second);
    let back = roll(space, IMAGE);
    assert_eq!(back["status"]["updateRevision"], first, "the template's earlier revision");
    let revisions = space.list(&["controllerrevisions"]);
    assert!(
        revisions.len() == 2 && revisions.iter().all(|known| controller(known) == uid(&back)),
        "{revisions:#?}"
    );
}
