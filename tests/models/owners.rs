//! ReplicaSets and a ReplicationController that select the same pods: labels change, pods are adopted and released, and
//! sets are deleted without their pods. At rest each has exactly its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, Propagation};
use controllers::garbage::GarbageCollector;
use controllers::replicaset::{REPLICA_SET, REPLICATION_CONTROLLER, ReplicaSets};
use reconcile::kinds::{Kind, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Rules, Seen, Witness, is_active, tell, value};
use crate::world::{World, seeds};

const STEPS: u32 = 80;
const SETS: [(&str, Kind); 3] =
    [("x-a", REPLICA_SETS), ("x-b", REPLICA_SETS), ("x-c", REPLICATION_CONTROLLERS)];
/// What pods may be said to be; nobody selects the last.
const LABELS: [(&str, &str); 3] = [("app", "one"), ("app", "two"), ("app", "none")];

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(ReplicaSets::new(ctx, &REPLICA_SET)),
            Arc::new(ReplicaSets::new(ctx, &REPLICATION_CONTROLLER)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    let witness = Witness::of(&world, &[REPLICA_SETS, REPLICATION_CONTROLLERS, PODS]).await;
    (world, witness)
}

fn pod(labels: &Value) -> Value {
    json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "c:1" }] } })
}

/// The first and the last select the same, and the second some of that.
fn set(chance: &mut fastrand::Rng, name: &str) -> Value {
    let labels = match name {
        "x-b" => json!({ "app": "one", "tier": "b" }),
        _ => json!({ "app": *chance.choice(&["one", "two"]).unwrap() }),
    };
    let selector = if name == "x-c" { labels.clone() } else { json!({ "matchLabels": labels }) };
    let spec = json!({ "replicas": chance.u8(0..4), "selector": selector, "template": pod(&labels) });
    json!({ "metadata": { "name": name }, "spec": spec })
}

fn sets(witness: &Witness) -> Vec<Arc<Object>> {
    ["ReplicaSet", "ReplicationController"].iter().flat_map(|kind| witness.all(kind)).cloned().collect()
}

fn selects(set: &Object, pod: &Object) -> bool {
    let selector = &value(set)["spec"]["selector"];
    let labels = if selector["matchLabels"].is_null() { selector } else { &selector["matchLabels"] };
    let mut wanted = labels.as_object().unwrap().iter();
    wanted.all(|(name, wanted)| pod.meta().labels.get(name).is_some_and(|held| wanted == held))
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// Every version of a pod, by uid.
    had: BTreeMap<String, Vec<Arc<Object>>>,
    /// The pods that users took; no name is used twice.
    taken: BTreeSet<Key>,
}

impl Rules for Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        if seen.kind != "Pod" {
            return;
        }
        let owner = |pod: &Option<Arc<Object>>| pod.as_ref().and_then(|pod| pod.meta().controller().cloned());
        if let Some(pod) = &seen.after {
            self.had.entry(pod.meta().uid.clone()).or_default().push(pod.clone());
        }
        match (owner(&seen.before), owner(&seen.after)) {
            // Adopted, or made: by a set that selected it at some time.
            (None, Some(owner)) => {
                let pod = seen.after.as_ref().unwrap();
                let Some(set) = sets(witness).into_iter().find(|set| set.meta().uid == owner.uid) else {
                    return;
                };
                let versions = &self.had[&pod.meta().uid];
                assert!(versions.iter().any(|pod| selects(&set, pod)), "{} takes {}", set.key(), pod.key());
            }
            (Some(before), Some(after)) => {
                assert_eq!(before.uid, after.uid, "a pod changes its owner without being released");
            }
            // Released: by a set that did not select it at some time, or that goes without its pods.
            (Some(before), None) => {
                let Some(pod) = &seen.after else { return self.see_deletion(seen) };
                let Some(set) = sets(witness).into_iter().find(|set| set.meta().uid == before.uid) else {
                    return;
                };
                let stray = self.had[&pod.meta().uid].iter().any(|pod| !selects(&set, pod));
                assert!(stray || set.meta().is_terminating(), "{} lets go of {}", set.key(), pod.key());
            }
            _ => {}
        }
        self.see_deletion(seen);
    }
}

impl Always {
    /// Nobody deletes a pod that is nobody's.
    fn see_deletion(&self, seen: &Seen) {
        let Some(before) = seen.before.as_ref().filter(|before| !before.meta().is_terminating()) else {
            return;
        };
        let begins = seen.after.as_ref().is_none_or(|after| after.meta().is_terminating());
        if begins && !self.taken.contains(&before.key()) {
            let Some(versions) = self.had.get(&before.meta().uid) else { return };
            let owned = versions.iter().any(|pod| pod.meta().controller().is_some());
            assert!(owned, "{} is nobody's, and is deleted", before.key());
        }
    }
}

async fn step(world: &mut World, witness: &mut Witness, always: &mut Always, number: u32) {
    let (name, kind) = *world.chance.choice(&SETS).unwrap();
    let there = sets(witness).iter().any(|set| set.meta().name == name && !set.meta().is_terminating());
    match world.chance.u8(0..24) {
        0..=3 if !there => {
            let set = set(&mut world.chance, name);
            or_too_late(world.user.create(&kind.gvr(), crate::world::NAMESPACE, &set).await);
        }
        0..=3 => {
            let replicas = world.chance.u8(0..5);
            or_too_late(world.try_merge(&kind, name, &json!({ "spec": { "replicas": replicas } })).await);
        }
        4 => {
            let ways = [Propagation::Foreground, Propagation::Background, Propagation::Orphan];
            let way = *world.chance.choice(&ways).unwrap();
            world.delete(&kind, name, Some(way)).await;
        }
        5..=8 => {
            let pods: Vec<_> = witness.all("Pod").cloned().collect();
            let Some(pod) = world.chance.choice(&pods) else { return };
            let (label, held) = *world.chance.choice(&LABELS).unwrap();
            let tier = world.chance.bool().then_some("b");
            let patch = json!({ "metadata": { "labels": { label: held, "tier": tier } } });
            or_too_late(world.try_merge(&PODS, &pod.meta().name, &patch).await);
        }
        9 | 10 => {
            let (label, held) = *world.chance.choice(&LABELS).unwrap();
            let tier = world.chance.bool().then_some("b");
            let mut pod = pod(&json!({ label: held }));
            if tier.is_some() {
                pod["metadata"]["labels"]["tier"] = "b".into();
            }
            pod["metadata"]["name"] = format!("x-{number}").into();
            world.create(&PODS, &pod).await;
        }
        11 => {
            always.taken.extend(world.take_pod(witness).await);
        }
        12 => world.restart(),
        13 | 14 => {
            let seconds = world.chance.u64(1..400);
            world.pass(Duration::from_secs(seconds)).await;
        }
        15..=17 => world.settle().await,
        _ => {
            let breaks = world.chance.u8(0..5) == 0;
            world.kubelet(witness, breaks).await;
        }
    }
}

fn check_end(witness: &Witness) {
    let sets = sets(witness);
    for set in &sets {
        let held = value(set);
        let pods: Vec<_> = witness.owned("Pod", &set.meta().uid).filter(|pod| is_active(pod)).collect();
        let wanted = held["spec"]["replicas"].as_i64().unwrap();
        assert_eq!(i64::try_from(pods.len()).unwrap(), wanted, "{held:#}");
        assert_eq!(held["status"]["replicas"].as_i64().unwrap_or(0), wanted, "{:#}", held["status"]);
        assert_eq!(held["status"]["observedGeneration"], held["metadata"]["generation"]);
        // Nobody is on the way out any more, and ReplicationControllers do not tell of it.
        let leaving = if set.meta().name == "x-c" { Value::Null } else { json!(0) };
        assert_eq!(held["status"]["terminatingReplicas"], leaving, "{:#}", held["status"]);
        for pod in pods {
            assert!(selects(set, pod), "{} keeps {}", set.key(), pod.key());
        }
    }
    for pod in witness.all("Pod").filter(|pod| is_active(pod)) {
        match pod.meta().controller() {
            Some(owner) => {
                assert!(sets.iter().any(|set| set.meta().uid == owner.uid), "{} has no set", pod.key())
            }
            None => {
                let missed = sets.iter().find(|set| selects(set, pod)).map(|set| set.key());
                assert!(missed.is_none(), "{missed:?} does not adopt {}", pod.key());
            }
        }
    }
}

async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    world.faults.set(0);
    for _ in 0..3 {
        world.pass(Duration::from_secs(1200)).await;
        witness.hold(always).await;
        world.everything_runs(witness).await;
    }
    world.pass(Duration::from_secs(1200)).await;
    witness.catch_up(|_, _| {}).await;
    check_end(witness);
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::default();
    tell((&mut world, &mut witness, &mut always), STEPS, step).await;
    complete(&mut world, &mut witness, &mut always).await;
}

#[tokio::test]
async fn whatever_happens_each_set_has_its_own_pods() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}
