//! DaemonSets on nodes that come, go, are tainted and relabelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Propagation};
use controllers::daemonset::DaemonSets;
use controllers::garbage::GarbageCollector;
use controllers::pod_gc::PodGc;
use reconcile::kinds::{CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS};
use serde_json::{Value, json};

use crate::faults::Faults;
use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{World, seeds};

const STEPS: usize = 60;
const NAME: &str = "agent";

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![Arc::new(DaemonSets::new(ctx)), Arc::new(PodGc::new(ctx)), Arc::new(GarbageCollector::new(ctx))]
    })
    .await;
    let witness = Witness::of(&world, &[NODES, DAEMON_SETS, CONTROLLER_REVISIONS, PODS]).await;
    (world, witness)
}

fn set(bounds: &Value) -> Value {
    json!({
        "metadata": { "name": NAME },
        "spec": {
            "revisionHistoryLimit": 2,
            "selector": { "matchLabels": { "app": "agent" } },
            "updateStrategy": { "rollingUpdate": bounds },
            "template": {
                "metadata": { "labels": { "app": "agent" } },
                "spec": { "containers": [{ "name": "agent", "image": "agent:1" }] },
            },
        },
    })
}

fn image(version: u32) -> Value {
    let container = json!({ "name": "agent", "image": format!("agent:{version}") });
    json!({ "template": { "spec": { "containers": [container] } } })
}

/// The bounds of a rolling update.
fn bounds(chance: &mut fastrand::Rng) -> Value {
    if chance.bool() {
        json!({ "maxSurge": 0, "maxUnavailable": chance.u8(1..3) })
    } else {
        json!({ "maxSurge": chance.u8(1..3), "maxUnavailable": 0 })
    }
}

/// The node that a pod is on, or is made for.
fn node_of(pod: &Object) -> String {
    if let Some(node) = pod.node_name() {
        return node.to_owned();
    }
    let affinity = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let field = format!("{affinity}/nodeSelectorTerms/0/matchFields/0/values/0");
    value(pod).pointer(&field).unwrap().as_str().unwrap().to_owned()
}

fn is_finished(pod: &Object) -> bool {
    matches!(value(pod)["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The effect of a node's taint that no daemon bears.
fn effect(node: &Object) -> Option<String> {
    let node = value(node);
    let taints = node["spec"]["taints"].as_array()?.clone();
    let taint = taints.iter().find(|taint| taint["key"] == "away")?;
    Some(taint["effect"].as_str().unwrap().to_owned())
}

/// Whether a set asks for nodes like this one, whatever taints it has.
fn is_chosen(set: &Value, node: &Object) -> bool {
    let selector = &set["spec"]["template"]["spec"]["nodeSelector"];
    selector["zone"].is_null() || selector["zone"] == value(node)["metadata"]["labels"]["zone"]
}

struct Always {
    faults: Arc<Faults>,
    /// Of each version that the controller may still work by, its generation and whether it surges.
    told: Vec<(i64, bool)>,
}

impl Always {
    fn new(world: &World) -> Self {
        Self { faults: world.faults.clone(), told: Vec::new() }
    }

    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("DaemonSet", _, Some(set)) => {
                let set = value(set);
                let observed = set["status"]["observedGeneration"].as_i64().unwrap_or(0);
                self.told.retain(|(generation, _)| *generation >= observed);
                let surges = set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] != 0;
                self.told.push((set["metadata"]["generation"].as_i64().unwrap(), surges));
            }
            ("Pod", None, Some(pod)) => self.see_new_pod(witness, pod),
            _ => {}
        }
    }

    fn see_new_pod(&self, witness: &Witness, pod: &Object) {
        let node = node_of(pod);
        let surges = self.told.iter().any(|(_, surges)| *surges);
        // One that is leaving stands in the way until it has ended; with surge it does not.
        let counts =
            |pod: &&Arc<Object>| if surges { is_active(pod) } else { !is_finished(pod) || is_active(pod) };
        let there = witness.all("Pod").filter(|pod| node_of(pod) == node).filter(counts).count();
        let most = 1 + usize::from(surges) + self.faults.lost_creations();
        assert!(there <= most, "{there} daemons on {node}");
    }
}

/// One step of a kubelet; whether there was one.
async fn kubelet(world: &mut World, witness: &Witness, breaks: bool) -> bool {
    let is_there = |node: &str| witness.all("Node").any(|held| held.meta().name == node);
    let due = |pod: &&Arc<Object>| {
        let rises = is_active(pod) && (breaks || !condition(pod, "Ready"));
        pod.meta().is_terminating() || (rises && is_there(&node_of(pod)))
    };
    let due: Vec<Arc<Object>> = witness.all("Pod").filter(due).cloned().collect();
    let Some(pod) = world.chance.choice(&due) else { return false };
    if pod.meta().is_terminating() {
        world.end(pod).await;
    } else if pod.node_name().is_none() {
        let binding = json!({ "target": { "kind": "Node", "name": node_of(pod) } });
        let bound = world.user.create_subresource(&PODS.gvr(), &pod.key(), "binding", &binding).await;
        or_too_late(bound);
    } else if !condition(pod, "Ready") {
        world.tell(pod, "Running", true).await;
    } else {
        let end = if world.chance.bool() { "Failed" } else { "Running" };
        world.tell(pod, end, false).await;
    }
    true
}

async fn add_node(world: &World, number: u8) {
    let zone = if number.is_multiple_of(2) { "a" } else { "b" };
    let node = json!({ "metadata": { "name": format!("node-{number}"), "labels": { "zone": zone } } });
    or_too_late(world.user.create(&NODES.gvr(), "", &node).await);
    // A new node has a taint until it is ready; nobody here tells that it is.
    let ready = json!({ "spec": { "taints": null } });
    or_too_late(world.try_merge(&NODES, &format!("node-{number}"), &ready).await);
}

async fn change_node(world: &mut World) {
    let number = world.chance.u8(0..5);
    let name = format!("node-{number}");
    let patch = match world.chance.u8(0..6) {
        0 => return world.delete(&NODES, &name, None).await,
        1 | 2 => return add_node(world, number).await,
        3 => {
            let effect = world.chance.choice(["NoSchedule", "NoExecute"]);
            json!({ "spec": { "taints": [{ "key": "away", "effect": effect }] } })
        }
        4 => json!({ "spec": { "taints": null } }),
        _ => json!({ "metadata": { "labels": { "zone": world.chance.choice(["a", "b"]) } } }),
    };
    or_too_late(world.try_merge(&NODES, &name, &patch).await);
}

async fn step(world: &mut World, witness: &mut Witness, version: &mut u32) {
    let spec = match world.chance.u8(0..24) {
        0..=3 => return change_node(world).await,
        4 => {
            *version = if world.chance.bool() { *version + 1 } else { version.saturating_sub(1) };
            image(*version)
        }
        5 => {
            let zone = world.chance.choice([json!("a"), json!("b"), Value::Null]);
            json!({ "template": { "spec": { "nodeSelector": { "zone": zone } } } })
        }
        6 => json!({ "updateStrategy": { "rollingUpdate": bounds(&mut world.chance) } }),
        7 => return world.delete_pod(witness).await,
        8 => return world.restart(),
        9 | 10 => {
            let seconds = world.chance.u64(1..900);
            return world.pass(Duration::from_secs(seconds)).await;
        }
        11..=13 => return world.settle().await,
        _ => {
            let breaks = world.chance.u8(0..5) == 0;
            kubelet(world, witness, breaks).await;
            return;
        }
    };
    world.merge(&DAEMON_SETS, NAME, &json!({ "spec": spec })).await;
}

async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    world.faults.set(0);
    for _ in 0..300 {
        world.pass(Duration::from_secs(1000)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        if !kubelet(world, witness, false).await {
            break;
        }
    }
    if let Some(set) = witness.all("DaemonSet").next() {
        check_end(witness, set);
    }
}

fn check_end(witness: &Witness, object: &Object) {
    let set = value(object);
    let mut daemons: BTreeMap<String, usize> = BTreeMap::new();
    for pod in witness.all("Pod") {
        assert!(is_active(pod) && condition(pod, "Ready"), "{:#}", value(pod));
        let newest = &set["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(&value(pod)["spec"]["containers"][0]["image"], newest, "{}", pod.key());
        *daemons.entry(node_of(pod)).or_default() += 1;
    }
    for node in witness.all("Node") {
        let held = daemons.remove(&node.meta().name).unwrap_or(0);
        let effect = effect(node);
        let fits = is_chosen(&set, node) && effect.as_deref() != Some("NoExecute");
        // What was there before nobody new may come stays.
        let least = usize::from(fits && effect.is_none());
        assert!((least..=usize::from(fits)).contains(&held), "{held} on {:#}", value(node));
    }
    assert!(daemons.is_empty(), "daemons on nodes that are gone: {daemons:?}");
    assert_eq!(set["status"]["observedGeneration"], set["metadata"]["generation"]);
    let kept = witness.owned("ControllerRevision", &object.meta().uid).count();
    assert!(kept <= 3, "{kept} revisions are kept");
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::new(&world);
    world.faults.set(20);
    for number in 0..3 {
        add_node(&world, number).await;
    }
    let bounds = bounds(&mut world.chance);
    world.create(&DAEMON_SETS, &set(&bounds)).await;
    let mut version = 1;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, &mut version).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    complete(&mut world, &mut witness, &mut always).await;
    world.delete(&DAEMON_SETS, NAME, Some(Propagation::Background)).await;
    complete(&mut world, &mut witness, &mut always).await;
    let left = ["DaemonSet", "ControllerRevision", "Pod"].iter().flat_map(|kind| witness.all(kind));
    let left: Vec<_> = left.map(|one| one.key()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    world.rest().await;
}

#[tokio::test]
async fn whatever_happens_a_node_has_one_daemon() {
    for seed in seeds(8) {
        println!("seed {seed}");
        story(seed).await;
    }
}

/// A rollout on nodes that stay as they are, in which requests fail, watches break and controllers are killed: never are
/// more nodes without a daemon that is ready than may be.
async fn calm_rollout(seed: u64, bounds: &Value) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::new(&world);
    for number in 0..5 {
        add_node(&world, number).await;
    }
    world.create(&DAEMON_SETS, &set(bounds)).await;
    complete(&mut world, &mut witness, &mut always).await;
    world.faults.set(15);
    world.merge(&DAEMON_SETS, NAME, &json!({ "spec": image(2) })).await;
    let most = bounds["maxUnavailable"].as_u64().unwrap();
    for _ in 0..400 {
        if world.chance.u8(0..40) == 0 {
            world.restart();
        }
        kubelet(&mut world, &witness, false).await;
        world.pass(Duration::from_secs(5)).await;
        let look = |witness: &Witness, seen: &Seen| {
            always.look(witness, seen);
            let is_well = |pod: &&Arc<Object>| is_active(pod) && condition(pod, "Ready");
            let served = |node: &&Arc<Object>| {
                let name = &node.meta().name;
                witness.all("Pod").filter(is_well).any(|pod| node_of(pod) == *name)
            };
            let without = 5 - witness.all("Node").filter(served).count() as u64;
            assert!(without <= most, "{without} nodes without a daemon of {most}");
        };
        witness.catch_up(look).await;
        let set = value(witness.all("DaemonSet").next().unwrap());
        let counts = ["updatedNumberScheduled", "numberAvailable"].map(|count| &set["status"][count]);
        if set["status"]["observedGeneration"] == set["metadata"]["generation"]
            && counts.iter().all(|count| **count == 5)
        {
            return;
        }
    }
    panic!("the rollout does not end");
}

#[tokio::test]
async fn a_rollout_never_leaves_too_many_nodes_alone() {
    let bounds = [
        json!({ "maxSurge": 0, "maxUnavailable": 1 }),
        json!({ "maxSurge": 0, "maxUnavailable": 3 }),
        json!({ "maxSurge": 2, "maxUnavailable": 0 }),
    ];
    for (seed, bounds) in (1..).zip(&bounds) {
        calm_rollout(seed, bounds).await;
    }
}
