//! The plan against a model of nodes that come, change and go: whatever happens in whatever order, no node gets two pods,
//! no more are missing or too many than may be, and in the end every node has what it is to have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::backoff::Failures;
use super::placement::{self, Placement, Verdict};
use super::plan::{Plan, Snapshot, by_node, plan};
use super::types::{Bounds, Daemon, DaemonSet, Node};
use super::{revisions, status};
use crate::history::{self, Revision};

/// A small deterministic source of chance (xorshift64*), so that a failure names its seed.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()].clone()
    }
}

fn template(version: u64) -> Value {
    json!({ "metadata": { "labels": { "app": "agent" } },
        "spec": { "nodeSelector": { "agent": "yes" }, "containers": [{ "image": version }] } })
}

fn set(spec: Value) -> DaemonSet {
    let mut body = json!({ "metadata": { "name": "agent", "namespace": "ns", "uid": "d", "generation": 1 },
        "spec": { "selector": { "matchLabels": { "app": "agent" } }, "template": template(1),
            "revisionHistoryLimit": 2 } });
    for (name, value) in spec.as_object().unwrap() {
        body["spec"][name] = value.clone();
    }
    serde_json::from_value(body).unwrap()
}

fn rolling(surge: u64, unavailable: u64, min_ready: u64) -> Value {
    json!({ "minReadySeconds": min_ready, "updateStrategy": { "type": "RollingUpdate",
        "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } } })
}

fn node(name: &str, label: &str, taint: Option<(&str, &str)>) -> Node {
    let taints: Vec<Value> =
        taint.iter().map(|(key, effect)| json!({ "key": key, "effect": effect })).collect();
    let body =
        json!({ "metadata": { "name": name, "labels": { "agent": label } }, "spec": { "taints": taints } });
    Node::decode(&object(&body)).unwrap()
}

fn object(body: &Value) -> api::Object {
    api::Object::parse(serde_json::to_vec(body).unwrap().into()).unwrap()
}

/// The cluster as it is, and what the controller's caches show of it.
struct Model {
    set: DaemonSet,
    nodes: BTreeMap<String, Arc<Node>>,
    pods: BTreeMap<String, Daemon>,
    revisions: Vec<Revision>,
    seen_nodes: Vec<Arc<Node>>,
    seen_pods: Vec<Daemon>,
    /// Pods that were made, and uids of pods that were deleted, which the cache has to show.
    awaited: (BTreeSet<String>, BTreeSet<String>),
    failures: Failures,
    /// Nodes from which the update took an available pod, and which have no available one again.
    out: BTreeSet<String>,
    made: u64,
    now: Timestamp,
}

impl Model {
    fn new(spec: Value, nodes: u64) -> Self {
        let mut model = Self {
            set: set(spec),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            revisions: Vec::new(),
            seen_nodes: Vec::new(),
            seen_pods: Vec::new(),
            awaited: Default::default(),
            failures: Failures::default(),
            out: BTreeSet::new(),
            made: 0,
            now: "2024-01-01T00:00:00Z".parse().unwrap(),
        };
        for number in 0..nodes {
            let node = node(&format!("n{number}"), "yes", None);
            model.nodes.insert(node.name.clone(), Arc::new(node));
        }
        model.see();
        model
    }

    fn see(&mut self) {
        self.seen_pods = self.pods.values().cloned().collect();
        self.seen_nodes = self.nodes.values().cloned().collect();
        self.awaited.0.clear();
        let (seen, gone) = (&self.seen_pods, &mut self.awaited.1);
        gone.retain(|uid| seen.iter().any(|pod| pod.pod.metadata.uid == *uid && !pod.is_terminating()));
    }

    fn hash(&self) -> String {
        history::Snapshot::of(&self.set.spec.template).hash(None)
    }

    /// The history as `apply` keeps it; gives the old revisions.
    fn history(&mut self) -> Vec<Revision> {
        let snapshot = history::Snapshot::of(&self.set.spec.template);
        let sorted = revisions::sort_out(&snapshot, self.revisions.clone());
        assert_eq!(sorted.copies, []);
        let (name, hash) = snapshot.name("agent", None);
        let mut current = sorted.current.unwrap_or_else(|| {
            let metadata =
                json!({ "name": name, "uid": name, "labels": { "controller-revision-hash": hash } });
            let data = json!({ "spec": { "template": self.set.spec.template } });
            serde_json::from_value(json!({ "metadata": metadata, "data": data })).unwrap()
        });
        current.revision = current.revision.max(sorted.number);
        self.revisions = sorted.old.clone();
        self.revisions.push(current);
        history::sort(&mut self.revisions);
        sorted.old
    }

    /// One pass of the controller; gives whether it did anything.
    fn pass(&mut self, check: &mut impl FnMut(&Self, &Plan)) -> bool {
        let old = self.history();
        let (set, hash) = (self.set.clone(), self.hash());
        let (nodes, daemons) = (self.seen_nodes.clone(), self.seen_pods.clone());
        let placement = Placement::of(&set).unwrap();
        let snapshot = Snapshot {
            set: &set,
            placement: &placement,
            nodes: &nodes,
            daemons: &daemons,
            hash: &hash,
            now: self.now,
        };
        let may_act = self.awaited.0.is_empty() && self.awaited.1.is_empty();
        let mut acted = false;
        if may_act {
            let plan = plan(&snapshot, &mut self.failures);
            check(self, &plan);
            acted = !plan.create.is_empty() || !plan.delete.is_empty();
            self.carry_out(&plan);
            let surplus = revisions::surplus(&old, &daemons, 2);
            let gone: Vec<&str> = surplus.iter().map(|held| held.metadata.name.as_str()).collect();
            self.revisions.retain(|held| !gone.contains(&held.metadata.name.as_str()));
        }
        let next = status::status(&snapshot, may_act);
        acted |= next != self.set.status;
        self.set.status = next;
        acted
    }

    fn carry_out(&mut self, plan: &Plan) {
        for node in &plan.create {
            self.made += 1;
            let mut body = placement::pod(&self.set, &self.hash(), node);
            let name = format!("agent-{}", self.made);
            body["metadata"]["name"] = name.as_str().into();
            body["metadata"]["uid"] = name.as_str().into();
            body["metadata"]["creationTimestamp"] = self.now.to_string().into();
            body["status"] = json!({ "phase": "Pending" });
            let daemon = Daemon::decode(&object(&body)).unwrap();
            assert_eq!(daemon.node, *node);
            self.awaited.0.insert(name.clone());
            self.pods.insert(name, daemon);
        }
        let judged = Placement::of(&self.set).unwrap();
        for (name, uid) in &plan.delete {
            let hash = self.hash();
            let Some(pod) = self.pods.get_mut(name).filter(|pod| !pod.is_terminating()) else { continue };
            let runs = self.nodes.get(&pod.node).is_some_and(|node| judged.judge(node).runs);
            let available = pod.pod.is_available(self.set.min_ready(), self.now);
            if runs && available && pod.hash() != hash && !self.set.surges() {
                self.out.insert(pod.node.clone());
            }
            pod.pod.metadata.deletion_timestamp = Some(self.now);
            self.awaited.1.insert(uid.clone());
        }
    }

    fn set_ready(pod: &mut Daemon, ready: bool, now: Timestamp) {
        let status = if ready { "True" } else { "False" };
        let condition = json!([{ "type": "Ready", "status": status, "lastTransitionTime": now.to_string() }]);
        pod.pod.status.conditions = serde_json::from_value(condition).unwrap();
    }

    fn is_served(&self, node: &str) -> bool {
        let available =
            |pod: &Daemon| !pod.is_terminating() && pod.pod.is_available(self.set.min_ready(), self.now);
        self.pods.values().any(|pod| pod.node == node && available(pod))
    }

    /// Something happens on some node; with `trouble` also what should not.
    fn advance(&mut self, chance: &mut Chance, trouble: bool) {
        self.now += SignedDuration::from_secs(i64::try_from(chance.below(4)).unwrap());
        if trouble && chance.below(6) == 0 {
            self.change_nodes(chance);
        }
        let names: Vec<String> = self.pods.keys().cloned().collect();
        if !names.is_empty() {
            let name = chance.pick(&names);
            self.advance_pod(chance, trouble, &name);
        }
        // Pods that are on nodes which are gone go.
        let nodes = &self.nodes;
        self.pods.retain(|_, pod| pod.pod.spec.node_name.is_empty() || nodes.contains_key(&pod.node));
        let judged = Placement::of(&self.set).unwrap();
        let wanted = |name: &String| self.nodes.get(name).is_some_and(|node| judged.judge(node).runs);
        self.out = self.out.iter().filter(|name| wanted(name) && !self.is_served(name)).cloned().collect();
        if chance.below(3) > 0 {
            self.see();
        }
    }

    fn advance_pod(&mut self, chance: &mut Chance, trouble: bool, name: &str) {
        let now = self.now;
        let mut pod = self.pods.remove(name).unwrap();
        let event = chance.below(if trouble { 12 } else { 6 });
        let mut gone = false;
        if pod.is_terminating() {
            gone = event < 3;
        } else if pod.pod.spec.node_name.is_empty() {
            if self.nodes.contains_key(&pod.node) {
                pod.pod.spec.node_name.clone_from(&pod.node);
            }
        } else if !pod.pod.is_finished() {
            match event {
                0..=5 if pod.pod.status.phase == "Pending" => pod.pod.status.phase = "Running".into(),
                0..=5 if !pod.pod.is_ready() => Self::set_ready(&mut pod, true, now),
                6 | 7 => Self::set_ready(&mut pod, false, now),
                8 | 9 => {
                    pod.pod.status.phase = chance.pick(&["Failed", "Succeeded"]).into();
                    Self::set_ready(&mut pod, false, now);
                }
                10 => pod.pod.metadata.deletion_timestamp = Some(now),
                _ => gone = event == 11,
            }
        }
        if !gone {
            self.pods.insert(name.to_owned(), pod);
        }
    }

    fn change_nodes(&mut self, chance: &mut Chance) {
        let name = format!("n{}", chance.below(8));
        if chance.below(4) == 0 {
            self.nodes.remove(&name);
            return;
        }
        let taint = chance.pick(&[
            None,
            None,
            None,
            Some(("k", "NoSchedule")),
            Some(("k", "NoExecute")),
            Some(("node.kubernetes.io/not-ready", "NoExecute")),
        ]);
        let node = node(&name, chance.pick(&["yes", "yes", "no"]), taint);
        self.nodes.insert(name, Arc::new(node));
    }

    fn settle(&mut self, chance: &mut Chance, seed: u64, check: &mut impl FnMut(&Self, &Plan)) {
        for _ in 0..20_000 {
            for _ in 0..chance.below(4) {
                self.advance(chance, false);
            }
            self.pass(check);
            self.see();
            if !self.pass(check) && self.is_settled() {
                return;
            }
        }
        let tell = |pod: &Daemon| format!("{} {} {}", pod.node, pod.pod.status.phase, pod.is_terminating());
        let pods: Vec<String> = self.pods.values().map(tell).collect();
        panic!("seed {seed}: it did not end: {:?} {pods:?} {:?}", self.set.spec, self.set.status);
    }

    fn is_settled(&self) -> bool {
        let judged = Placement::of(&self.set).unwrap();
        let hash = self.hash();
        self.nodes.values().all(|node| {
            let pods: Vec<_> = self.pods.values().filter(|pod| pod.node == node.name).collect();
            match judged.judge(node) {
                Verdict { runs: true, .. } => {
                    pods.len() == 1 && pods[0].hash() == hash && self.is_served(&node.name)
                }
                Verdict { stays: true, .. } => pods.len() <= 1,
                Verdict { .. } => pods.is_empty(),
            }
        }) && self.pods.values().all(|pod| self.nodes.contains_key(&pod.node))
    }

    fn alive_on(&self, node: &str) -> impl Iterator<Item = &Daemon> {
        let alive = |pod: &&Daemon| !pod.is_terminating() && !pod.pod.is_finished();
        self.pods.values().filter(move |pod| pod.node == node).filter(alive)
    }
}

/// What no pass may break, whatever the caches show.
fn check_plan(model: &Model, plan: &Plan, seed: u64) {
    let Bounds { unavailable, surge } = model.set.bounds(model.nodes.len());
    let created: BTreeSet<&String> = plan.create.iter().collect();
    assert_eq!(created.len(), plan.create.len(), "seed {seed}: two pods for one node");
    for name in &created {
        let alive = model.alive_on(name).count();
        assert!(alive <= usize::from(surge > 0), "seed {seed}: {name} has {alive} already");
        let leaving = model
            .pods
            .values()
            .any(|pod| pod.node == **name && pod.is_terminating() && !pod.pod.is_finished());
        assert!(surge > 0 || !leaving, "seed {seed}: the pod of {name} is not gone yet");
    }
    let judged = Placement::of(&model.set).unwrap();
    let hash = model.hash();
    let taken = plan.delete.iter().filter_map(|(name, _)| model.pods.get(name)).filter(|pod| {
        model.nodes.get(&pod.node).is_some_and(|node| judged.judge(node).runs)
            && pod.hash() != hash
            && !pod.is_terminating()
            && pod.pod.is_available(model.set.min_ready(), model.now)
            && !model.out.contains(&pod.node)
    });
    if surge == 0 {
        let out = model.out.len() + taken.count();
        assert!(out <= unavailable, "seed {seed}: {out} nodes are out of service at once");
    }
}

#[test]
fn every_node_gets_what_it_is_to_have_whatever_happens() {
    for seed in 1..60_u64 {
        let mut chance = Chance::new(seed);
        let (surge, unavailable) =
            if chance.below(2) == 0 { (1 + chance.below(2), 0) } else { (0, 1 + chance.below(2)) };
        let mut model = Model::new(rolling(surge, unavailable, chance.below(2) * 5), 1 + chance.below(6));
        let mut check = |model: &Model, plan: &Plan| check_plan(model, plan, seed);
        for version in 2..6 {
            if chance.below(2) == 0 {
                model.set.spec.template = template(chance.below(version));
                model.set.metadata.generation += 1;
            }
            for _ in 0..chance.below(80) {
                model.advance(&mut chance, true);
                model.pass(&mut check);
                if chance.below(20) == 0 {
                    // A restart: what was awaited and what failed is forgotten, and the caches are filled anew.
                    model.failures = Failures::default();
                    model.awaited = Default::default();
                    model.see();
                }
            }
            if chance.below(2) == 0 {
                model.settle(&mut chance, seed, &mut check);
            }
        }
        model.settle(&mut chance, seed, &mut check);
        let status = &model.set.status;
        let judged = Placement::of(&model.set).unwrap();
        let desired = model.nodes.values().filter(|node| judged.judge(node).runs).count();
        let desired = i64::try_from(desired).unwrap();
        let counts = [
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.updated_number_scheduled,
            status.number_ready,
            status.number_available,
        ];
        assert_eq!((counts, status.number_unavailable), ([desired; 5], 0), "seed {seed}");
        let old_hashes: BTreeSet<&str> = model.pods.values().map(Daemon::hash).collect();
        assert!(model.revisions.len() <= 3 + old_hashes.len(), "seed {seed}: the history limit is 2");
    }
}

#[test]
fn with_surge_no_node_is_ever_without_an_available_pod() {
    for seed in 1..40 {
        let mut chance = Chance::new(seed);
        let surge = 1 + chance.below(3);
        let mut model = Model::new(rolling(surge, 0, chance.below(2) * 5), 6);
        model.settle(&mut chance, seed, &mut |_, _| {});
        model.set.spec.template = template(2);
        model.set.metadata.generation += 1;
        let most = std::cell::Cell::new(0);
        model.settle(&mut chance, seed, &mut |model, _| {
            for node in model.nodes.keys() {
                assert!(model.is_served(node), "seed {seed}: {node}");
            }
            let crowded = model.nodes.keys().filter(|node| model.alive_on(node).count() > 1).count();
            most.set(most.get().max(crowded));
        });
        assert!(most.get() as u64 <= surge && most.get() > 0, "seed {seed}: {} surge at once", most.get());
    }
}

#[test]
fn an_undo_restarts_only_what_was_replaced() {
    for seed in 1..20 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(rolling(0, 1, 0), 5);
        model.settle(&mut chance, seed, &mut |_, _| {});
        let uids = |model: &Model| {
            model.pods.values().map(|pod| pod.pod.metadata.uid.clone()).collect::<BTreeSet<_>>()
        };
        let first = uids(&model);
        model.set.spec.template = template(2);
        model.set.metadata.generation += 1;
        while first.intersection(&uids(&model)).count() > 2 {
            model.advance(&mut chance, false);
            model.pass(&mut |_, _| {});
        }
        let hash = model.hash();
        let alive = |pod: &&Daemon| !pod.is_terminating() && pod.hash() != hash;
        let kept: BTreeSet<String> =
            model.pods.values().filter(alive).map(|pod| pod.pod.metadata.uid.clone()).collect();
        assert!(!kept.is_empty());
        model.set.spec.template = template(1);
        model.set.metadata.generation += 1;
        model.settle(&mut chance, seed, &mut |_, _| {});
        assert!(kept.is_subset(&uids(&model)), "seed {seed}");
        assert_eq!(model.revisions.iter().map(|held| held.revision).collect::<Vec<_>>(), [2, 3]);
    }
}

#[test]
fn bounds_are_rounded_up_and_never_both_zero() {
    let bounds = |surge: Value, unavailable: Value, nodes| {
        let mut spec = rolling(0, 0, 0);
        spec["updateStrategy"]["rollingUpdate"] = json!({ "maxSurge": surge, "maxUnavailable": unavailable });
        let bounds = set(spec).bounds(nodes);
        (bounds.surge, bounds.unavailable)
    };
    assert_eq!(bounds(json!(0), json!("10%"), 15), (0, 2));
    assert_eq!(bounds(json!("1%"), json!(0), 15), (1, 0));
    assert_eq!(bounds(json!(0), json!(0), 15), (0, 1));
    assert_eq!(bounds(json!(0), json!(0), 0), (0, 0));
    let on_delete = set(json!({ "updateStrategy": { "type": "OnDelete" } }));
    assert!(!on_delete.rolls() && !on_delete.surges());
}

#[test]
fn nodes_are_judged_by_names_labels_and_taints() {
    let verdict = |spec: Value, node: &Node| {
        let mut set = set(json!({}));
        set.spec.template["spec"] = spec;
        let Verdict { runs, stays } = Placement::of(&set).unwrap().judge(node);
        (runs, stays)
    };
    let plain = node("a", "yes", None);
    let tainted = |key, effect| node("a", "yes", Some((key, effect)));
    let named = |name: &str| {
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchFields": [
                { "key": "metadata.name", "operator": "In", "values": [name] }] }] } } } })
    };
    let network = "node.kubernetes.io/network-unavailable";
    for (spec, node, runs, stays) in [
        (json!({}), &plain, true, true),
        (json!({ "nodeName": "a" }), &plain, true, true),
        (json!({ "nodeName": "b" }), &plain, false, false),
        (json!({ "nodeSelector": { "agent": "yes" } }), &plain, true, true),
        (json!({ "nodeSelector": { "agent": "no" } }), &plain, false, false),
        (named("a"), &plain, true, true),
        (named("b"), &plain, false, false),
        (json!({}), &tainted("k", "NoSchedule"), false, true),
        (json!({}), &tainted("k", "NoExecute"), false, false),
        (json!({}), &tainted("k", "PreferNoSchedule"), true, true),
        (json!({ "tolerations": [{ "operator": "Exists" }] }), &tainted("k", "NoExecute"), true, true),
        (json!({}), &tainted("node.kubernetes.io/unschedulable", "NoSchedule"), true, true),
        (json!({}), &tainted("node.kubernetes.io/not-ready", "NoExecute"), true, true),
        (json!({}), &tainted("node.kubernetes.io/not-ready", "NoSchedule"), false, true),
        (json!({}), &tainted(network, "NoSchedule"), false, true),
        (json!({ "hostNetwork": true }), &tainted(network, "NoSchedule"), true, true),
    ] {
        assert_eq!(verdict(spec.clone(), node), (runs, stays), "{spec} {node:?}");
    }
}

#[test]
fn a_pod_is_bound_to_its_node_and_bears_what_daemons_bear() {
    let mut set = set(json!({}));
    set.metadata.annotations.insert("deprecated.daemonset.template.generation".into(), "7".into());
    let short = json!({ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 5 });
    let own = json!({ "key": "k", "operator": "Exists" });
    let preferred = json!([{ "weight": 1, "preference": {} }]);
    set.spec.template["spec"] = json!({ "tolerations": [short, own], "affinity": { "nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions": [] }] } } } });
    let pod = placement::pod(&set, "abc", "n1");
    let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
    assert_eq!(tolerations.len(), 7);
    assert_eq!(
        tolerations[0],
        json!({ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute" })
    );
    assert_eq!(tolerations[1], own);
    let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
    assert_eq!(affinity["preferredDuringSchedulingIgnoredDuringExecution"], preferred);
    assert_eq!(
        affinity["requiredDuringSchedulingIgnoredDuringExecution"],
        json!({ "nodeSelectorTerms": [{ "matchFields": [
            { "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] })
    );
    assert_eq!(
        pod["metadata"]["labels"],
        json!({ "app": "agent", "controller-revision-hash": "abc", "pod-template-generation": "7" })
    );
    let daemon = Daemon::decode(&object(&pod)).unwrap();
    assert_eq!(daemon.node, "n1");
    // Of the newest template is what has its hash, or its generation.
    assert!(daemon.is_updated(&set, "abc") && daemon.is_updated(&set, "other"));
    set.metadata.annotations.clear();
    assert!(daemon.is_updated(&set, "abc") && !daemon.is_updated(&set, "other"));
}

#[test]
fn failed_pods_are_deleted_ever_later_and_tell_so() {
    let mut chance = Chance::new(1);
    let mut model = Model::new(rolling(0, 1, 0), 1);
    let mut waits = Vec::new();
    let mut said = Vec::new();
    for _ in 0..8 {
        model.settle(&mut chance, 1, &mut |_, _| {});
        for pod in model.pods.values_mut() {
            pod.pod.status.phase = "Failed".into();
        }
        model.see();
        loop {
            let mut plans = Vec::new();
            model.pass(&mut |_, plan| {
                plans.push((plan.again, plan.delete.len()));
                said.extend(plan.notes.iter().map(|note| (note.reason, note.message.clone())));
            });
            match plans[..] {
                [(Some(again), 0)] => {
                    waits.push(again.as_secs());
                    model.now += again;
                }
                [(None, 1)] => break,
                _ => panic!("{plans:?}"),
            }
        }
    }
    assert!(!waits.is_empty() && waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
    assert_eq!(said.len(), 8);
    assert_eq!(said[0].0, "FailedDaemonPod");
    assert_eq!(said[0].1, "Found failed daemon pod ns/agent-1 on node n0, will try to kill it");
}

#[test]
fn of_several_pods_on_a_node_the_oldest_stays() {
    let mut model = Model::new(rolling(0, 1, 0), 1);
    model.pass(&mut |_, _| {});
    let mut second = model.pods["agent-1"].clone();
    second.pod.metadata.name = "agent-0".into();
    second.pod.metadata.uid = "x".into();
    second.pod.metadata.creation_timestamp = Some(model.now + SignedDuration::from_secs(1));
    model.pods.insert("agent-0".into(), second);
    model.see();
    let mut deleted = Vec::new();
    model.pass(&mut |_, plan| deleted.extend(plan.delete.clone()));
    assert_eq!(deleted, [("agent-0".to_owned(), "x".to_owned())]);
}

#[test]
fn with_surge_the_next_pod_does_not_wait_for_one_that_leaves() {
    for (surge, created) in [(0, 0), (1, 1)] {
        let mut model = Model::new(rolling(surge, 1 - surge, 0), 1);
        model.settle(&mut Chance::new(1), 1, &mut |_, _| {});
        model.pods.values_mut().for_each(|pod| pod.pod.metadata.deletion_timestamp = Some(model.now));
        model.see();
        model.pass(&mut |_, plan| assert_eq!(plan.create.len(), created, "{surge}"));
    }
}

#[test]
fn pods_that_wait_for_a_node_that_is_gone_go() {
    let mut model = Model::new(rolling(0, 1, 0), 2);
    model.pass(&mut |_, _| {});
    model.see();
    model.nodes.remove("n1");
    model.see();
    let mut deleted = Vec::new();
    model.pass(&mut |_, plan| deleted.extend(plan.delete.clone()));
    assert_eq!(deleted.len(), 1);
    assert_eq!(model.pods[&deleted[0].0].node, "n1");
}

#[test]
fn the_status_keeps_its_generation_until_the_controller_has_acted() {
    let mut model = Model::new(rolling(0, 1, 0), 2);
    model.pass(&mut |_, _| {});
    assert_eq!((model.set.status.observed_generation, model.set.status.desired_number_scheduled), (1, 2));
    model.set.metadata.generation = 2;
    model.nodes.clear();
    model.seen_nodes.clear();
    model.pass(&mut |_, _| panic!("it waits to see its pods"));
    assert_eq!((model.set.status.observed_generation, model.set.status.desired_number_scheduled), (1, 0));
    model.see();
    model.pass(&mut |_, _| {});
    assert_eq!(model.set.status.observed_generation, 2);
}

#[test]
fn revisions_are_sorted_by_what_they_hold() {
    let snapshot = history::Snapshot::of(&template(2));
    let held = |name: &str, number: i64, version: u64| -> Revision {
        let data = json!({ "spec": { "template": template(version) } });
        serde_json::from_value(json!({ "metadata": { "name": name }, "revision": number, "data": data }))
            .unwrap()
    };
    let sorted = revisions::sort_out(
        &snapshot,
        vec![held("a", 1, 2), held("b", 2, 1), held("c", 3, 2), held("d", 4, 3)],
    );
    let names = |held: &[Revision]| held.iter().map(|held| held.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(sorted.current.unwrap().metadata.name, "c");
    assert_eq!(
        (names(&sorted.copies), names(&sorted.old), sorted.number),
        (vec!["a".into()], vec!["b".into(), "d".into()], 5)
    );
    let none = revisions::sort_out(&snapshot, Vec::new());
    assert_eq!((none.current, none.number), (None, 1));
    // Revisions of pods that are there stay, whatever the limit says.
    let old = [held("a", 1, 1), held("b", 2, 1), held("c", 3, 1)];
    let mut daemon = Daemon::default();
    daemon.pod.metadata.labels.insert("controller-revision-hash".into(), "a".into());
    let surplus = |limit| revisions::surplus(&old, std::slice::from_ref(&daemon), limit);
    assert_eq!(surplus(1).iter().map(|held| held.metadata.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(surplus(2).len(), 1);
    assert_eq!(surplus(3).len(), 0);
}

#[test]
fn pods_of_a_node_are_ordered_and_those_that_ended_and_leave_are_nobodys() {
    let daemon = |name: &str, bound: bool, second: i64| {
        let mut daemon = Daemon { node: "a".into(), ..Daemon::default() };
        daemon.pod.metadata.name = name.into();
        daemon.pod.metadata.creation_timestamp = Timestamp::from_second(second).ok();
        if bound {
            daemon.pod.spec.node_name = "a".into();
        }
        daemon
    };
    let mut gone = daemon("gone", true, 0);
    gone.pod.status.phase = "Succeeded".into();
    gone.pod.metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH);
    let daemons =
        [daemon("c", false, 1), daemon("b", true, 9), daemon("a", true, 9), gone, Daemon::default()];
    let nodes = by_node(&daemons);
    let names: Vec<&str> = nodes["a"].iter().map(|daemon| daemon.pod.metadata.name.as_str()).collect();
    assert_eq!((names, nodes.len()), (vec!["a", "b", "c"], 1));
}
