//! DaemonSets, on both nodes.

use serde_json::{Value, json};

use super::common;
use super::space::{
    DAEMON_SET, IMAGE, NO_IMAGE, OTHER_IMAGE, Objects, Space, image, is_ready, of, text, uid, with_image,
};

fn node(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// A Ready pod on each node.
#[track_caller]
fn everywhere(space: &Space<'_>, app: &str) -> Objects {
    let pods = space.ready_pods(app, 2);
    let mut nodes: Vec<&str> = pods.values().map(node).collect();
    let mut wanted = space.cluster.nodes();
    nodes.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(nodes, wanted, "{pods:#?}");
    pods
}

pub(crate) fn a_daemon_runs_on_each_node_and_is_replaced(space: &Space<'_>) {
    space.make(&DAEMON_SET.of("simple", 0));
    let before = everywhere(space, "simple");
    let gone = before.keys().next().unwrap();
    space.run(&["delete", "pod", gone]);
    let after = everywhere(space, "simple");
    assert!(!after.contains_key(gone), "{after:#?}");
}

/// Nothing is selected, then a node by its label, no node by another, and a node by an update of the selector.
pub(crate) fn a_daemon_follows_the_labels_of_nodes(space: &Space<'_>) {
    let name = space.cluster.nodes()[1];
    let label = |value: &str| {
        space.run(&["label", "node", name, "--overwrite", &format!("test.example/colour{value}")]);
    };
    let mut set = DAEMON_SET.of("chosen", 0);
    set["spec"]["template"]["spec"]["nodeSelector"] = json!({"test.example/colour": "blue"});
    space.make(&set);
    let seen = space.seen("daemonsets", "chosen");
    assert_eq!(seen["status"]["desiredNumberScheduled"], 0, "{seen}");
    assert!(space.list(&["pods"]).is_empty());
    label("=blue");
    let pods = space.ready_pods("chosen", 1);
    assert!(pods.values().all(|pod| node(pod) == name), "{pods:#?}");
    label("=green");
    space.until_gone(&of("chosen"));
    let green = json!({"test.example/colour": "green"});
    space.patch("daemonsets/chosen", &json!({"spec": {"template": {"spec": {"nodeSelector": green}}}}));
    let pods = space.ready_pods("chosen", 1);
    assert!(pods.values().all(|pod| node(pod) == name), "{pods:#?}");
    label("-");
    space.until_gone(&of("chosen"));
}

pub(crate) fn failed_daemons_are_made_again(space: &Space<'_>) {
    space.make(&DAEMON_SET.of("failing", 0));
    let before = everywhere(space, "failing");
    let (name, failed) = before.first_key_value().unwrap();
    let mut pods = space.watch(&of("failing"));
    let what = format!("pods/{name}");
    space.patch_with(&[&what, "--subresource=status"], &json!({"status": {"phase": "Failed"}}));
    pods.until("another in its place", |pods| {
        pods.len() == 2 && pods.values().all(|pod| is_ready(pod) && uid(pod) != uid(failed))
    });
}

pub(crate) fn daemons_are_updated_when_their_template_is(space: &Space<'_>) {
    space.make(&DAEMON_SET.of("rolled", 0));
    let before = everywhere(space, "rolled");
    let hash = |pod: &Value| text(&pod["metadata"]["labels"]["controller-revision-hash"]);
    let mut pods = space.watch(&of("rolled"));
    space.patch("daemonsets/rolled", &with_image(OTHER_IMAGE));
    let after = pods.until("new pods on both nodes", |pods| {
        assert!(pods.values().any(is_ready), "more than one at a time: {pods:#?}");
        pods.len() == 2 && pods.values().all(|pod| is_ready(pod) && image(pod) == OTHER_IMAGE)
    });
    let hashes = |pods: &Objects| pods.values().map(hash).collect::<std::collections::BTreeSet<_>>();
    assert!(hashes(&before).len() == 1 && hashes(&after).len() == 1 && hashes(&before) != hashes(&after));
    let revisions = space.list(&["controllerrevisions"]);
    let mut numbers: Vec<_> = revisions.iter().filter_map(|known| known["revision"].as_u64()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2], "{revisions:#?}");
}

pub(crate) fn daemons_are_rolled_back_without_restarts(space: &Space<'_>) {
    space.make(&DAEMON_SET.of("back", 0));
    let before = everywhere(space, "back");
    space.patch("daemonsets/back", &with_image(NO_IMAGE));
    let during = space.until(&of("back"), "one that cannot start", |pods| {
        pods.len() == 2 && pods.values().any(|pod| image(pod) == NO_IMAGE && !node(pod).is_empty())
    });
    let kept: Vec<_> = during.iter().filter(|(name, _)| before.contains_key(*name)).collect();
    assert_eq!(kept.len(), 1, "one at a time: {during:#?}");
    space.run(&["rollout", "undo", "daemonset/back"]);
    let after = space.until(&of("back"), "all as before", |pods| {
        pods.len() == 2 && pods.values().all(|pod| is_ready(pod) && image(pod) == IMAGE)
    });
    let (name, _) = kept[0];
    assert_eq!(after.get(name).map(uid), before.get(name).map(uid), "what was never changed runs on");
    assert_eq!(after[name]["status"]["containerStatuses"][0]["restartCount"], 0);
}

pub(crate) fn a_daemon_sets_status_is_read_and_written(space: &Space<'_>) {
    common::has_a_status(space, DAEMON_SET, 2);
}

pub(crate) fn daemon_sets_are_listed_and_deleted_together(space: &Space<'_>) {
    common::is_a_collection(space, DAEMON_SET, &[DAEMON_SET.of("one", 0)]);
}
