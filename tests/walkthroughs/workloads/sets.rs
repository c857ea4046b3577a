//! Deployments, ReplicaSets and ReplicationControllers.

use serde_json::{Value, json};

use super::common;
use super::space::{
    DEPLOYMENT, IMAGE, NO_IMAGE, OTHER_IMAGE, Objects, REPLICA_SET, REPLICATION_CONTROLLER, Space, condition,
    controller, image, is_ending, is_ready, of, uid, with_image,
};

const ROLLED_OUT: [&str; 3] = ["rollout", "status", "--timeout=240s"];

#[track_caller]
fn rolled_out(space: &Space<'_>, what: &str) {
    space.run(&[&ROLLED_OUT[..], &[what]].concat());
}

fn replicas(set: &Value) -> u64 {
    set["spec"]["replicas"].as_u64().unwrap_or_default()
}

/// How many replicas the ReplicaSet has whose pods run an image.
fn of_image(sets: &Objects, wanted: &str) -> Option<u64> {
    sets.values().find(|set| image(&set["spec"]["template"]) == wanted).map(replicas)
}

pub(crate) fn a_deployment_has_a_working_scale(space: &Space<'_>) {
    common::scales(space, DEPLOYMENT);
}

pub(crate) fn a_deployments_status_is_read_and_written(space: &Space<'_>) {
    common::has_a_status(space, DEPLOYMENT, 1);
}

pub(crate) fn a_recreated_deployment_never_has_old_pods_beside_new_ones(space: &Space<'_>) {
    let mut deployment = DEPLOYMENT.of("anew", 2);
    deployment["spec"]["strategy"] = json!({"type": "Recreate"});
    space.make(&deployment);
    space.ready_pods("anew", 2);
    let mut pods = space.watch(&of("anew"));
    space.patch("deployments/anew", &with_image(OTHER_IMAGE));
    pods.until("only new pods, Ready", |pods| {
        let (new, old): (Vec<_>, Vec<_>) = pods.values().partition(|pod| image(pod) == OTHER_IMAGE);
        // One that has ended runs no more, though it may still be there. Source: `oldPodsRunning`.
        let ended = |pod: &&Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        assert!(new.is_empty() || old.iter().all(ended), "old pods run beside new ones: {pods:#?}");
        new.len() == 2 && old.is_empty() && new.into_iter().all(is_ready)
    });
}

pub(crate) fn a_rolling_update_adopts_the_old_set_and_replaces_its_pods(space: &Space<'_>) {
    space.make(&REPLICA_SET.of("rolling", 1));
    space.ready_pods("rolling", 1);
    let mut pods = space.watch(&of("rolling"));
    let mut deployment = DEPLOYMENT.of("rolling", 1);
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = OTHER_IMAGE.into();
    space.make(&deployment);
    pods.until("the new pod alone", |pods| {
        assert!(pods.values().any(is_ready), "nothing serves: {pods:#?}");
        pods.len() == 1 && pods.values().all(|pod| image(pod) == OTHER_IMAGE)
    });
    rolled_out(space, "deployment/rolling");
    let owner = uid(&space.get(&["deployment", "rolling"]));
    let sets = space.until("replicasets", "the old one at zero, the new one at one", |sets| {
        of_image(sets, IMAGE) == Some(0) && of_image(sets, OTHER_IMAGE) == Some(1)
    });
    assert!(sets.values().all(|set| controller(set) == owner), "{sets:#?}");
}

pub(crate) fn old_replica_sets_go_by_the_history_limit(space: &Space<'_>) {
    let mut deployment = DEPLOYMENT.of("short", 1);
    deployment["spec"]["revisionHistoryLimit"] = 0.into();
    space.make(&deployment);
    rolled_out(space, "deployment/short");
    space.patch("deployments/short", &with_image(OTHER_IMAGE));
    rolled_out(space, "deployment/short");
    let left = space.until("replicasets", "one left", |sets| sets.len() == 1);
    assert_eq!(of_image(&left, OTHER_IMAGE), Some(1), "{left:#?}");
}

/// Five replicas, of which one may lack and two may be beyond: an update that cannot go on stands at four and three.
pub(crate) fn a_deployment_is_scaled_in_proportion(space: &Space<'_>) {
    let mut deployment = DEPLOYMENT.of("shares", 5);
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}});
    space.make(&deployment);
    rolled_out(space, "deployment/shares");
    space.patch("deployments/shares", &with_image(NO_IMAGE));
    let shares = |old, new| {
        space.until("replicasets", &format!("{old} old and {new} new replicas"), |sets| {
            of_image(sets, IMAGE) == Some(old) && of_image(sets, NO_IMAGE) == Some(new)
        });
    };
    shares(4, 3);
    space.run(&["scale", "deployment/shares", "--replicas=10"]);
    shares(7, 5);
}

pub(crate) fn a_deployment_rolls_over_an_update_that_has_not_ended(space: &Space<'_>) {
    space.make(&REPLICA_SET.of("over", 1));
    space.ready_pods("over", 1);
    let mut deployment = DEPLOYMENT.of("over", 1);
    deployment["spec"]["template"]["spec"]["containers"] =
        with_image(NO_IMAGE)["spec"]["template"]["spec"]["containers"].clone();
    space.make(&deployment);
    space.until(&of("over"), "a pod that cannot start", |pods| {
        pods.values().any(|pod| image(pod) == NO_IMAGE && pod["status"]["phase"] == "Pending")
    });
    let mut pods = space.watch(&of("over"));
    space.patch("deployments/over", &with_image(OTHER_IMAGE));
    pods.until("the newest pod alone", |pods| {
        assert!(pods.values().any(is_ready), "nothing serves: {pods:#?}");
        pods.len() == 1 && pods.values().all(|pod| image(pod) == OTHER_IMAGE)
    });
    space.until("replicasets", "two of three at zero", |sets| {
        sets.len() == 3 && of_image(sets, IMAGE) == Some(0) && of_image(sets, NO_IMAGE) == Some(0)
    });
}

pub(crate) fn a_deployment_lives_its_life(space: &Space<'_>) {
    space.make(&DEPLOYMENT.of("life", 1));
    space.run(&["wait", "deployment/life", "--for=condition=Available", "--timeout=240s"]);
    let mut change = with_image(OTHER_IMAGE);
    change["metadata"]["labels"]["patched"] = "yes".into();
    change["spec"]["replicas"] = 2.into();
    space.patch("deployments/life", &change);
    assert_eq!(space.list(&["deployments", "-A", "-l", "patched=yes"]).len(), 1, "listed by its new label");
    let both = |count| {
        space.until(&of("life"), &format!("{count} new pods"), |pods| {
            let new = |pod: &Value| is_ready(pod) && image(pod) == OTHER_IMAGE;
            pods.len() == count && pods.values().all(new)
        });
    };
    both(2);
    space.run(&["scale", "deployment/life", "--replicas=1"]);
    both(1);
    let part = ["deployments/life", "--subresource=status"];
    assert_eq!(condition(&space.get(&part), "Available"), "True");
    let patched = space.patch_with(&part, &json!({"metadata": {"annotations": {"seen": "yes"}}}));
    assert_eq!(patched["metadata"]["annotations"]["seen"], "yes");
    space.update(&["deployments/life"], |deployment| deployment["spec"]["replicas"] = 2.into());
    both(2);
    space.run(&["delete", "deployment/life"]);
    space.until_gone("deployments");
    space.until_gone(&of("life"));
}

pub(crate) fn a_replica_set_is_replaced_and_patched(space: &Space<'_>) {
    space.make(&REPLICA_SET.of("changed", 1));
    space.ready_pods("changed", 1);
    space.update(&["replicasets/changed"], |set| set["spec"]["replicas"] = 2.into());
    space.ready_pods("changed", 2);
    let mut change = with_image(OTHER_IMAGE);
    change["metadata"]["labels"]["patched"] = "yes".into();
    change["spec"]["replicas"] = 3.into();
    let patched = space.patch("replicasets/changed", &change);
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    let pods = space.ready_pods("changed", 3);
    let new = pods.values().filter(|pod| image(pod) == OTHER_IMAGE).count();
    assert_eq!(new, 1, "only pods made since are of the new template: {pods:#?}");
}

pub(crate) fn a_replica_set_has_a_working_scale(space: &Space<'_>) {
    common::scales(space, REPLICA_SET);
}

pub(crate) fn a_replica_set_adopts_and_releases_pods(space: &Space<'_>) {
    let set = common::adopts(space, REPLICA_SET);
    common::releases(space, &set);
}

pub(crate) fn replica_sets_are_listed_and_deleted_together(space: &Space<'_>) {
    let sets = ["one", "two", "three"].map(|name| REPLICA_SET.of(name, 1));
    common::is_a_collection(space, REPLICA_SET, &sets);
}

pub(crate) fn each_pod_of_a_replica_set_serves(space: &Space<'_>) {
    common::serves(space, REPLICA_SET);
}

pub(crate) fn a_replica_sets_status_is_read_and_written(space: &Space<'_>) {
    common::has_a_status(space, REPLICA_SET, 1);
}

pub(crate) fn a_replication_controller_adopts_pods(space: &Space<'_>) {
    common::adopts(space, REPLICATION_CONTROLLER);
}

pub(crate) fn a_replication_controller_releases_pods(space: &Space<'_>) {
    space.make(&REPLICATION_CONTROLLER.of("releasing", 1));
    let set = space.get(&["replicationcontrollers/releasing"]);
    common::releases(space, &set);
}

pub(crate) fn each_pod_of_a_replication_controller_serves(space: &Space<'_>) {
    common::serves(space, REPLICATION_CONTROLLER);
}

pub(crate) fn a_replication_controller_says_that_a_quota_is_exceeded(space: &Space<'_>) {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two"},
        "spec": {"hard": {"pods": "2"}}});
    space.make(&quota);
    space.run(&["wait", "quota/two", "--for=jsonpath={.status.hard.pods}=2", "--timeout=240s"]);
    space.make(&REPLICATION_CONTROLLER.of("many", 3));
    let failure = |wanted: &str| {
        space.until_one("replicationcontrollers", "many", &format!("ReplicaFailure {wanted:?}"), |set| {
            condition(set, "ReplicaFailure") == wanted
        })
    };
    let failed = failure("True");
    let said = failed["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(said.contains("exceeded quota: two"), "{said}");
    space.run(&["scale", "replicationcontroller/many", "--replicas=2"]);
    failure("");
}

pub(crate) fn a_replication_controller_lives_its_life(space: &Space<'_>) {
    let (kind, what) = (REPLICATION_CONTROLLER, "replicationcontrollers/life");
    space.make(&kind.of("life", 1));
    space.ready_pods("life", 1);
    let patched = space.patch(what, &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    let status = ["replicationcontrollers/life", "--subresource=status"];
    assert_eq!(space.get(&status)["status"]["readyReplicas"], 1);
    let mut sets = space.watch(kind.1);
    let none = space.patch_with(&status, &json!({"status": {"readyReplicas": 0, "availableReplicas": 0}}));
    assert!(none["status"]["readyReplicas"].as_u64().unwrap_or_default() == 0, "{none}");
    sets.until("its controller counts again", |sets| {
        sets.get("life").is_some_and(|set| {
            set["status"]["readyReplicas"] == 1
                && set["metadata"]["resourceVersion"] != none["metadata"]["resourceVersion"]
        })
    });
    let scaled = space.patch_with(&[what, "--subresource=scale"], &json!({"spec": {"replicas": 2}}));
    assert_eq!(scaled["spec"]["replicas"], 2);
    space.ready_pods("life", 2);
    let updated = space.update(&[what], |set| set["metadata"]["annotations"]["updated"] = "yes".into());
    assert_eq!(updated["metadata"]["annotations"]["updated"], "yes");
    assert_eq!(space.list(&[kind.1, "-A", "-l", "patched=yes"]).len(), 1);
    space.delete_collection(kind.1, "patched=yes");
    space.until_gone(kind.1);
    // Unless something else is asked for, this kind alone leaves its pods to themselves.
    space.until(&of("life"), "two pods that nobody owns", |pods| {
        pods.len() == 2 && pods.values().all(|pod| controller(pod).is_empty() && !is_ending(pod))
    });
}
