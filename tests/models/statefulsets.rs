//! StatefulSets: one pod of each ordinal, in order, with claims that outlive it or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Propagation};
use controllers::garbage::GarbageCollector;
use controllers::statefulset::StatefulSets;
use controllers::storage_protection::StorageProtection;
use reconcile::kinds::{CONTROLLER_REVISIONS, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS};
use serde_json::{Value, json};

use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{World, seeds};

const STEPS: usize = 60;
const NAME: &str = "db";
const LIMIT: usize = 2;

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(StatefulSets::new(ctx)),
            Arc::new(StorageProtection::new(ctx)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    let kinds = [STATEFUL_SETS, CONTROLLER_REVISIONS, PERSISTENT_VOLUME_CLAIMS, PODS];
    let witness = Witness::of(&world, &kinds).await;
    (world, witness)
}

fn policy(chance: &mut fastrand::Rng) -> Value {
    let mut one = || if chance.bool() { "Retain" } else { "Delete" };
    json!({ "whenScaled": one(), "whenDeleted": one() })
}

/// A set as chance has it.
fn set(chance: &mut fastrand::Rng) -> Value {
    let mut spec = json!({
        "replicas": chance.u8(1..5),
        "revisionHistoryLimit": LIMIT,
        "serviceName": "db",
        "ordinals": { "start": chance.u8(0..2) * 3 },
        "podManagementPolicy": if chance.u8(0..3) == 0 { "Parallel" } else { "OrderedReady" },
        "selector": { "matchLabels": { "app": "db" } },
        "template": {
            "metadata": { "labels": { "app": "db" } },
            "spec": { "containers": [{ "name": "db", "image": "db:1" }] },
        },
    });
    if chance.bool() {
        spec["persistentVolumeClaimRetentionPolicy"] = policy(chance);
        let resources = json!({ "requests": { "storage": "1Gi" } });
        spec["volumeClaimTemplates"] = json!([{
            "metadata": { "name": "data" },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": resources },
        }]);
    }
    json!({ "metadata": { "name": NAME }, "spec": spec })
}

fn ordinal(name: &str) -> i64 {
    name.rsplit_once('-').unwrap().1.parse().unwrap()
}

/// What a version of the set asks for.
#[derive(Debug, Clone)]
struct Told {
    generation: i64,
    start: i64,
    replicas: i64,
    partition: i64,
    max_unavailable: i64,
    image: String,
}

impl Told {
    fn by(object: &Object) -> Self {
        let set = value(object);
        let number = |path: &str| set.pointer(path).and_then(Value::as_i64);
        let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
        Self {
            generation: number("/metadata/generation").unwrap(),
            start: number("/spec/ordinals/start").unwrap_or(0),
            replicas: number("/spec/replicas").unwrap(),
            partition: number("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0),
            max_unavailable: number("/spec/updateStrategy/rollingUpdate/maxUnavailable").unwrap_or(1),
            image: image.as_str().unwrap().to_owned(),
        }
    }

    fn wants(&self, ordinal: i64) -> bool {
        (self.start..self.start + self.replicas).contains(&ordinal)
    }
}

fn image(pod: &Object) -> String {
    value(pod)["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
}

fn is_well(pod: &Object) -> bool {
    is_active(pod) && condition(pod, "Ready")
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// Every version that the controller may still work by.
    told: Vec<Told>,
    ordered: bool,
    on_delete: bool,
    /// Pods that users, kubelets or nodes took; others are the controller's doing.
    taken: BTreeSet<String>,
    /// The claims of a policy that keeps them.
    policies: BTreeMap<&'static str, BTreeSet<String>>,
    deleted: bool,
    /// In every other story pods only break where the controller breaks them: what it sees late is never worse than what
    /// is, and order holds in the eyes of everybody.
    strict: bool,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("StatefulSet", _, Some(set)) => self.see_set(set),
            ("Pod", None, Some(pod)) => self.see_new_pod(witness, pod),
            ("Pod", Some(before), Some(after)) => {
                let is_told = after.meta().is_terminating() && !before.meta().is_terminating();
                if is_told && !self.taken.contains(&after.meta().uid) {
                    self.see_deletion(witness, before);
                }
            }
            ("PersistentVolumeClaim", Some(claim), None) => self.see_lost_claim(claim),
            _ => {}
        }
    }

    fn see_set(&mut self, object: &Object) {
        let set = value(object);
        let observed = set["status"]["observedGeneration"].as_i64().unwrap_or(0);
        self.told.retain(|told| told.generation >= observed);
        self.told.push(Told::by(object));
        self.ordered = set["spec"]["podManagementPolicy"] != "Parallel";
        self.on_delete = set["spec"]["updateStrategy"]["type"] == "OnDelete";
        self.deleted |= object.meta().is_terminating();
        for when in ["whenScaled", "whenDeleted"] {
            let policy = &set["spec"]["persistentVolumeClaimRetentionPolicy"][when];
            self.policies.entry(when).or_default().insert(policy.as_str().unwrap_or("Retain").to_owned());
        }
    }

    fn see_new_pod(&self, witness: &Witness, pod: &Object) {
        let at = ordinal(&pod.meta().name);
        let wanted = |told: &Told| {
            let before_it = |other: i64| {
                let name = format!("{NAME}-{other}");
                witness.all("Pod").any(|pod| pod.meta().name == name && condition(pod, "Ready"))
            };
            told.wants(at) && (!self.ordered || !self.strict || (told.start..at).all(before_it))
        };
        assert!(self.told.iter().any(wanted), "{at} is made too early: {:?}", self.told);
        for claim in value(pod)["spec"]["volumes"].as_array().into_iter().flatten() {
            let Some(name) = claim["persistentVolumeClaim"]["claimName"].as_str() else { continue };
            let there = witness.all("PersistentVolumeClaim").any(|claim| claim.meta().name == name);
            assert!(there, "{at} is made without its claim {name}");
        }
    }

    /// The controller deletes a pod: one that has ended, one that is not wanted, or one of another version.
    fn see_deletion(&self, witness: &Witness, pod: &Object) {
        let at = ordinal(&pod.meta().name);
        let phase = value(pod)["status"]["phase"].as_str().unwrap_or_default().to_owned();
        if !self.strict || self.deleted || phase == "Failed" || phase == "Succeeded" {
            return;
        }
        let others = || witness.all("Pod").filter(|other| other.meta().uid != pod.meta().uid);
        let surplus = |told: &Told| {
            let above = |other: &&Arc<Object>| ordinal(&other.meta().name) > at;
            let last = !others().filter(above).any(|other| !told.wants(ordinal(&other.meta().name)));
            let lower = others().filter(|other| told.wants(ordinal(&other.meta().name)));
            let all_there = lower.filter(|other| condition(other, "Ready")).count();
            !told.wants(at) && (!self.ordered || (last && i64::try_from(all_there).unwrap() == told.replicas))
        };
        let replaced = |told: &Told| {
            let ready = others().filter(|other| told.wants(ordinal(&other.meta().name)) && is_well(other));
            let missing = told.replicas - i64::try_from(ready.count()).unwrap();
            let in_bounds = missing <= told.max_unavailable || (!self.ordered && !is_well(pod));
            let old = self.told.iter().any(|any| any.image != image(pod)) || self.told.len() > 1;
            !self.on_delete && told.wants(at) && at >= told.start + told.partition && old && in_bounds
        };
        let may = self.told.iter().any(|told| surplus(told) || replaced(told));
        assert!(may, "{at} is deleted: {:?} of {:?}", value(pod)["status"], self.told);
    }

    fn see_lost_claim(&self, claim: &Object) {
        let deletes = |when| self.policies.get(when).is_some_and(|held| held.contains("Delete"));
        let may = deletes("whenScaled") || (self.deleted && deletes("whenDeleted"));
        assert!(may, "{} is lost: {:?}", claim.key(), self.policies);
    }
}

/// Everything is as the set says, and stays so.
async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    world.faults.set(0);
    for _ in 0..200 {
        world.pass(Duration::from_secs(600)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        if !world.kubelet(witness, false).await {
            break;
        }
    }
    if let Some(set) = witness.all("StatefulSet").next().cloned() {
        check_end(witness, &set);
    }
    world.rest().await;
}

fn check_end(witness: &Witness, object: &Object) {
    let (set, told) = (value(object), Told::by(object));
    let ordinals: Vec<i64> = witness.all("Pod").map(|pod| ordinal(&pod.meta().name)).collect();
    let wanted: Vec<i64> = (told.start..told.start + told.replicas).collect();
    assert_eq!(ordinals, wanted, "{set:#}");
    assert!(witness.all("Pod").all(|pod| is_well(pod)));
    let status = &set["status"];
    assert_eq!(status["observedGeneration"], set["metadata"]["generation"]);
    for count in ["replicas", "readyReplicas", "availableReplicas"] {
        assert_eq!(status[count].as_i64().unwrap_or(0), told.replicas, "{count} {status:#}");
    }
    if set["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        for pod in witness.all("Pod").filter(|pod| ordinal(&pod.meta().name) >= told.start + told.partition) {
            assert_eq!(image(pod), told.image, "{} is of another version", pod.key());
        }
        if told.partition == 0 {
            assert_eq!(status["currentRevision"], status["updateRevision"], "{status:#}");
        }
    }
    let live: BTreeSet<String> = witness
        .all("Pod")
        .map(|pod| value(pod)["metadata"]["labels"]["controller-revision-hash"].to_string())
        .chain(["currentRevision", "updateRevision"].map(|which| status[which].to_string()))
        .collect();
    let kept = witness.owned("ControllerRevision", &object.meta().uid).count();
    assert!(kept <= live.len() + LIMIT, "{kept} revisions are kept, {live:?} are live");
    let claims: BTreeSet<String> =
        witness.all("PersistentVolumeClaim").map(|claim| claim.meta().name.clone()).collect();
    if !set["spec"]["volumeClaimTemplates"].is_null() {
        let missing = wanted.iter().find(|at| !claims.contains(&format!("data-{NAME}-{at}")));
        assert!(missing.is_none(), "the claim of {missing:?} is missing");
    }
}

async fn step(world: &mut World, witness: &mut Witness, always: &mut Always, version: &mut u32) {
    let spec = match world.chance.u8(0..24) {
        0 | 1 => json!({ "replicas": world.chance.u8(0..6) }),
        2 => {
            *version = if world.chance.bool() { *version + 1 } else { version.saturating_sub(1) };
            let container = json!({ "name": "db", "image": format!("db:{version}") });
            json!({ "template": { "spec": { "containers": [container] } } })
        }
        3 => {
            let partition = world.chance.u8(0..4);
            let most = world.chance.u8(1..3);
            json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": partition, "maxUnavailable": most } } })
        }
        4 if world.chance.u8(0..3) == 0 => {
            json!({ "updateStrategy": { "type": "OnDelete", "rollingUpdate": null } })
        }
        5 if world.chance.bool() => {
            json!({ "persistentVolumeClaimRetentionPolicy": policy(&mut world.chance) })
        }
        6 if !always.strict => {
            always.taken.extend(witness.all("Pod").map(|pod| pod.meta().uid.clone()));
            return world.delete_pod(witness).await;
        }
        7 => return world.restart(),
        8 | 9 => {
            let seconds = world.chance.u64(1..900);
            return world.pass(Duration::from_secs(seconds)).await;
        }
        10..=12 => return world.settle().await,
        _ => {
            let breaks = !always.strict && world.chance.u8(0..5) == 0;
            world.kubelet(witness, breaks).await;
            return;
        }
    };
    world.merge(&STATEFUL_SETS, NAME, &json!({ "spec": spec })).await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always { strict: !seed.is_multiple_of(2), ..Always::default() };
    world.faults.set(20);
    let made = set(&mut world.chance);
    world.create(&STATEFUL_SETS, &made).await;
    let mut version = 1;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, &mut always, &mut version).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    complete(&mut world, &mut witness, &mut always).await;
    always.deleted = true;
    let kept = always.policies["whenDeleted"] == BTreeSet::from(["Retain".to_owned()]);
    let claims = witness.all("PersistentVolumeClaim").count();
    let propagation = if world.chance.bool() { Propagation::Foreground } else { Propagation::Background };
    world.delete(&STATEFUL_SETS, NAME, Some(propagation)).await;
    complete(&mut world, &mut witness, &mut always).await;
    let left = ["StatefulSet", "ControllerRevision", "Pod"].iter().flat_map(|kind| witness.all(kind));
    let left: Vec<_> = left.map(|one| one.key()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    if kept {
        assert_eq!(witness.all("PersistentVolumeClaim").count(), claims, "claims are lost with the set");
    }
}

#[tokio::test]
async fn whatever_happens_ordinals_come_and_go_in_order() {
    for seed in seeds(10) {
        println!("seed {seed}");
        story(seed).await;
    }
}
