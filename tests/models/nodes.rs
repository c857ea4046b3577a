//! Nodes in zones that fall silent, alone, by zones or all at once, come back, and are tainted by users, while the clock
//! jumps. Pods leave nodes neither early nor never, nodes lose theirs no faster than their zone allows, and where nothing
//! answers nobody is evicted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType};
use base::clock::Clock;
use controllers::node_lifecycle::NodeLifecycle;
use controllers::taint_eviction::TaintEviction;
use jiff::{SignedDuration, Timestamp};
use reconcile::kinds::{LEASES, NODES, PODS};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 60;
/// Where nodes tell that they live.
const LEASES_IN: &str = "kube-node-lease";
const ZONES: [(&str, usize); 3] = [("a", 4), ("b", 2), ("c", 1)];
/// Nodes tell so often that they live.
const BEAT: u64 = 20;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What a story knows of a node.
#[derive(Clone, Copy, PartialEq)]
enum Life {
    Ready,
    /// It tells that it is not ready.
    Sick,
    Silent,
}

fn names() -> impl Iterator<Item = (String, &'static str)> {
    ZONES.iter().flat_map(|(zone, count)| (0..*count).map(move |at| (format!("{zone}{at}"), *zone)))
}

fn zone_of(node: &Object) -> &str {
    &node.meta().labels["topology.kubernetes.io/zone"]
}

fn executing(node: &Object) -> Vec<Value> {
    let taints = value(node)["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.into_iter().filter(|taint| taint["effect"] == "NoExecute").collect()
}

fn is_by_silence(taint: &Value) -> bool {
    taint["key"] == NOT_READY || taint["key"] == UNREACHABLE
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str().map(|text| text.parse().unwrap())
}

/// When the Ready condition changed last.
fn changed(node: &Object) -> Timestamp {
    let node = value(node);
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|held| held["type"] == "Ready").unwrap();
    time(&ready["lastTransitionTime"]).unwrap()
}

fn placed_at(pod: &Value) -> Option<Timestamp> {
    let conditions = pod["status"]["conditions"].as_array()?;
    time(&conditions.iter().find(|held| held["type"] == "PodScheduled")?["lastTransitionTime"])
}

/// For how many seconds a pod bears a taint: `None` for ever.
fn bears(pod: &Value, taint: &Value) -> Option<i64> {
    let covers = |held: &&Value| {
        let any_effect = held["effect"].is_null() || held["effect"] == "NoExecute";
        any_effect && (held["key"].is_null() || held["key"] == taint["key"])
    };
    let tolerations = pod["spec"]["tolerations"].as_array();
    match tolerations.into_iter().flatten().find(covers) {
        None => Some(0),
        Some(held) => held["tolerationSeconds"].as_i64(),
    }
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// In every other story nothing fails that concerns nodes.
    strict: bool,
    /// The clock, as long as no change is seen that happened later.
    now: Timestamp,
    /// Since when a node has a taint, as far back as anybody may count.
    since: BTreeMap<(String, String), Timestamp>,
    /// Taints that a node had at some time.
    had: BTreeMap<String, Vec<Value>>,
    /// When a node of a zone was told last to lose its pods, in this life of the controllers.
    last: BTreeMap<String, Timestamp>,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("Node", before, Some(after)) => self.see_node(witness, before.as_deref(), after),
            ("Pod", Some(before), after)
                if !before.meta().is_terminating()
                    && after.as_ref().is_none_or(|after| after.meta().is_terminating()) =>
            {
                self.see_eviction(witness, before);
            }
            _ => {}
        }
    }

    fn see_node(&mut self, witness: &Witness, before: Option<&Object>, after: &Object) {
        let name = &after.meta().name;
        let held = before.map(executing).unwrap_or_default();
        let taints = executing(after);
        let place = |taint: &Value| (name.clone(), taint["key"].as_str().unwrap().to_owned());
        for taint in &taints {
            let at = time(&taint["timeAdded"]).unwrap_or(self.now);
            self.since.entry(place(taint)).or_insert(at);
            self.had.entry(name.clone()).or_default().push(taint.clone());
        }
        let has = |taints: &[Value], key: &(String, String)| taints.iter().any(|taint| place(taint) == *key);
        self.since.retain(|key, _| key.0 != *name || has(&taints, key));
        let new = taints.iter().find(|taint| is_by_silence(taint));
        if let Some(taint) = new.filter(|_| !held.iter().any(is_by_silence)) {
            self.see_silenced(witness, after, time(&taint["timeAdded"]).unwrap());
        }
    }

    /// A node is told to lose its pods: its zone allows it.
    fn see_silenced(&mut self, witness: &Witness, node: &Object, at: Timestamp) {
        let zone = zone_of(node).to_owned();
        let last = self.last.insert(zone.clone(), at);
        let enough = last.is_none_or(|last| at.duration_since(last) >= SignedDuration::from_secs(9));
        assert!(enough, "two nodes of {zone} lose their pods at {last:?} and {at}");
        if !self.strict {
            return;
        }
        // Whatever happens in the same second may have come later.
        let allowed = [true, false].map(|sure| {
            let silent = |held: &&Arc<Object>| {
                let silent = !condition(held, "Ready");
                if sure && changed(held) >= at { !silent } else { silent }
            };
            let of_zone = || witness.all("Node").filter(|held| zone_of(held) == zone);
            let (count, lost) = (of_zone().count(), of_zone().filter(silent).count());
            let partial = lost > 2 && lost * 100 >= 55 * count && lost < count;
            let all = witness.all("Node").filter(silent).count() == witness.all("Node").count();
            !partial && !all
        });
        assert!(allowed.contains(&true), "{} loses its pods at {at} with most of its zone", node.key());
    }

    /// Nobody but the controllers begins to delete pods here.
    fn see_eviction(&self, witness: &Witness, pod: &Object) {
        let (name, held) = (pod.node_name().unwrap_or_default(), value(pod));
        if !self.strict {
            let had = self.had.get(name).into_iter().flatten();
            assert!(had.into_iter().any(|taint| bears(&held, taint).is_some()), "{} goes", pod.key());
            return;
        }
        let node = witness.all("Node").find(|node| node.meta().name == name).unwrap();
        let placed = placed_at(&held).filter(|placed| *placed <= self.now);
        let due = executing(node).into_iter().any(|taint| {
            let key = (name.to_owned(), taint["key"].as_str().unwrap().to_owned());
            let Some(since) = self.since.get(&key) else { return false };
            let since = (*since).max(placed.unwrap_or(*since));
            let ends = |seconds| since + SignedDuration::from_secs(seconds);
            bears(&held, &taint).is_some_and(|seconds| ends(seconds) <= self.now)
        });
        assert!(due, "{} leaves too early at {}: {:?} {held:#}", pod.key(), self.now, executing(node));
    }
}

struct Story {
    world: World,
    witness: Witness,
    always: Always,
    lives: BTreeMap<String, Life>,
    pods: u32,
}

impl Story {
    async fn new(seed: u64) -> Self {
        let world = World::new(seed, |ctx| {
            vec![Arc::new(NodeLifecycle::new(ctx)), Arc::new(TaintEviction::new(ctx))]
        })
        .await;
        let witness = Witness::of(&world, &[NODES, PODS]).await;
        let always = Always { strict: !seed.is_multiple_of(2), now: world.clock.now(), ..Always::default() };
        let mut story = Self { world, witness, always, lives: BTreeMap::new(), pods: 0 };
        for (name, zone) in names() {
            let labels = json!({ "topology.kubernetes.io/zone": zone });
            story.world.create(&NODES, &json!({ "metadata": { "name": name, "labels": labels } })).await;
            let lease = json!({ "metadata": { "name": name, "namespace": LEASES_IN }, "spec": {} });
            story.world.user.create(&LEASES.gvr(), LEASES_IN, &lease).await.unwrap();
            story.lives.insert(name, Life::Ready);
        }
        story.beat().await;
        story.look().await;
        story
    }

    async fn look(&mut self) {
        self.always.now = self.world.clock.now();
        let always = &mut self.always;
        self.witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }

    /// Nodes that live say so, and how they are if that is not what is told of them.
    async fn beat(&mut self) {
        self.look().await;
        let now = self.world.clock.now();
        let lives: Vec<_> = self.lives.iter().filter(|(_, life)| **life != Life::Silent).collect();
        for (name, life) in lives {
            let ready = if *life == Life::Ready { "True" } else { "False" };
            let lease = json!({ "spec": { "renewTime": format!("{now:.6}"), "holderIdentity": name } });
            let key = Key::new(LEASES_IN, name.as_str());
            let user = &self.world.user;
            user.patch(&LEASES.gvr(), &key, "", PatchType::Merge, &lease).await.unwrap();
            let node = self.witness.all("Node").find(|node| node.meta().name == *name);
            let held = node.map(|node| value(node)["status"]["conditions"].clone()).unwrap_or_default();
            let told = held.as_array().into_iter().flatten().find(|held| held["type"] == "Ready");
            if told.is_some_and(|held| held["status"] == ready) {
                continue;
            }
            let told = json!({ "type": "Ready", "status": ready, "lastHeartbeatTime": format!("{now:.0}"),
                "lastTransitionTime": format!("{now:.0}") });
            let key = Key::new("", name.as_str());
            let status = json!({ "status": { "conditions": [told] } });
            user.patch(&NODES.gvr(), &key, "status", PatchType::StrategicMerge, &status).await.unwrap();
        }
        self.world.settle().await;
        self.look().await;
    }

    /// Time passes, and nodes that live go on saying so.
    async fn pass(&mut self, seconds: u64) {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(BEAT);
            self.world.pass(Duration::from_secs(step)).await;
            self.look().await;
            self.beat().await;
            left -= step;
        }
    }

    fn some_node(&mut self) -> String {
        let names: Vec<_> = names().map(|(name, _)| name).collect();
        self.world.chance.choice(&names).cloned().unwrap()
    }

    async fn create_pod(&mut self) {
        self.pods += 1;
        let node = self.some_node();
        let name = format!("p{}", self.pods);
        let bearing = |seconds: Option<u16>| json!([{ "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds }]);
        let of_silence = json!([{ "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0 }]);
        let tolerations = [json!([]), bearing(None), bearing(Some(40)), bearing(Some(1000)), of_silence];
        let tolerations = self.world.chance.choice(&tolerations).cloned();
        let spec = json!({ "tolerations": tolerations, "containers": [{ "name": "c", "image": "c:1" }] });
        self.world.create(&PODS, &json!({ "metadata": { "name": name }, "spec": spec })).await;
        // A pod may wait for long before it has a node.
        if self.world.chance.u8(0..3) == 0 {
            self.pass(90).await;
        }
        let binding = json!({ "target": { "kind": "Node", "name": node } });
        let key = Key::new(NAMESPACE, name);
        let bound = self.world.user.create_subresource(&PODS.gvr(), &key, "binding", &binding).await;
        or_too_late(bound);
    }

    /// A user taints a node, or takes the taint away.
    async fn taint(&mut self) {
        let node = self.some_node();
        let now = self.world.clock.now();
        let patch = match self.world.chance.u8(0..4) {
            0 => json!({ "key": "own", "effect": "NoExecute" }),
            1 => json!({ "key": "own", "effect": "NoExecute", "timeAdded": format!("{now:.0}") }),
            _ => json!({ "$patch": "delete", "key": "own", "effect": "NoExecute" }),
        };
        let (key, kind) = (Key::new("", node), PatchType::StrategicMerge);
        let patch = json!({ "spec": { "taints": [patch] } });
        or_too_late(self.world.user.patch(&NODES.gvr(), &key, "", kind, &patch).await);
    }

    fn live(&mut self, zone: Option<&str>, life: Life) {
        let lives = self.lives.iter_mut().filter(|(name, _)| zone.is_none_or(|zone| name.starts_with(zone)));
        lives.for_each(|(_, held)| *held = life);
    }

    /// Pods that are told to go do so.
    async fn end_pods(&mut self) {
        let going: Vec<_> =
            self.witness.all("Pod").filter(|pod| pod.meta().is_terminating()).cloned().collect();
        for pod in going {
            self.world.end(&pod).await;
        }
    }

    /// The clock is set to another moment. By one that goes back nothing is older than it.
    fn jump(&mut self, to: Timestamp) {
        self.world.clock.set(to);
        self.always.last.clear();
        self.always.since.values_mut().for_each(|since| *since = (*since).min(to));
    }

    async fn step(&mut self) {
        let life = *self.world.chance.choice(&[Life::Ready, Life::Ready, Life::Sick, Life::Silent]).unwrap();
        match self.world.chance.u8(0..22) {
            0..=3 => {
                let node = self.some_node();
                self.lives.insert(node, life);
            }
            4 => {
                let (zone, _) = *self.world.chance.choice(&ZONES).unwrap();
                self.live(Some(zone), life);
            }
            5 if life != Life::Sick => self.live(None, life),
            5..=10 => self.create_pod().await,
            11 | 12 => self.taint().await,
            13 => {
                self.world.restart();
                self.always.last.clear();
            }
            14 => {
                let hours = SignedDuration::from_secs(self.world.chance.i64(60..10_000));
                let back = self.world.chance.bool();
                let now = self.world.clock.now();
                self.jump(if back { now - hours } else { now + hours });
            }
            15..=17 => {
                let seconds = self.world.chance.u64(1..70);
                self.pass(seconds).await;
            }
            18 => {
                let seconds = self.world.chance.u64(100..400);
                self.pass(seconds).await;
            }
            _ => self.end_pods().await,
        }
        if self.always.strict {
            self.world.settle().await;
        }
        self.look().await;
    }

    fn nodes_with(&self, tainted: impl Fn(&Value) -> bool) -> BTreeSet<String> {
        let nodes = self.witness.all("Node").filter(|node| executing(node).iter().any(&tainted));
        nodes.map(|node| node.meta().name.clone()).collect()
    }

    /// Pods that should have left their node by now.
    fn overdue(&self) -> Vec<Key> {
        let overdue = |pod: &&Arc<Object>| {
            let Some(node) = pod.node_name().filter(|_| is_active(pod)) else { return false };
            let node = self.witness.all("Node").find(|held| held.meta().name == node).unwrap();
            executing(node).iter().any(|taint| bears(&value(pod), taint).is_some())
        };
        self.witness.all("Pod").filter(overdue).map(|pod| pod.key()).collect()
    }

    async fn complete(&mut self) {
        self.world.faults.set(0);
        // Whoever waits for another try gets it; all pods that bear their node's taints for a while have had it.
        self.live(None, Life::Ready);
        self.pass(1300).await;
        assert_eq!(self.overdue(), Vec::<Key>::new());
        assert!(self.nodes_with(is_by_silence).is_empty(), "nodes that answer lose their pods");
        let ready = self.witness.all("Node").filter(|node| condition(node, "Ready")).count();
        assert_eq!(ready, names().count());
        self.end_pods().await;
        let before = self.world.faults.calls();
        self.pass(120).await;
        assert_eq!(self.world.faults.calls(), before, "somebody works on what is done");
        // Nothing answers any more: nobody goes.
        let pods = self.witness.all("Pod").count();
        self.live(None, Life::Silent);
        self.pass(700).await;
        assert!(self.nodes_with(is_by_silence).is_empty(), "evicted though nothing answers");
        assert_eq!(self.witness.all("Pod").filter(|pod| !pod.meta().is_terminating()).count(), pods);
        // All but a zone does: it is emptied, one node after the other.
        self.live(None, Life::Ready);
        self.live(Some("b"), Life::Silent);
        self.pass(1300).await;
        assert_eq!(self.nodes_with(is_by_silence), BTreeSet::from(["b0".to_owned(), "b1".to_owned()]));
        assert_eq!(self.overdue(), Vec::<Key>::new());
        // Most of a small zone is silent: it may be the network.
        self.live(None, Life::Ready);
        self.pass(60).await;
        for name in ["a0", "a1", "a2"] {
            self.lives.insert(name.to_owned(), Life::Silent);
        }
        self.pass(700).await;
        assert!(self.nodes_with(is_by_silence).is_empty(), "most of a zone loses its pods");
    }
}

async fn story(seed: u64) {
    let mut story = Story::new(seed).await;
    if story.always.strict {
        story.world.faults.set_apart(0, "pods", 20);
    } else {
        story.world.faults.set(20);
    }
    for _ in 0..STEPS {
        story.step().await;
    }
    story.complete().await;
}

#[tokio::test]
async fn whatever_happens_pods_leave_nodes_neither_early_nor_never() {
    for seed in seeds(4) {
        println!("seed {seed}");
        story(seed).await;
    }
}
