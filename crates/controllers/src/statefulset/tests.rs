//! The plan against a model of nodes and of the garbage collector: whatever happens in whatever order, pods come and go
//! in order, no more are missing than may be, and in the end everything is as it is wanted.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::claims::{self, ClaimStep, Held};
use super::identity;
use super::plan::{Snapshot, Step, finished, plan};
use super::types::{Member, StatefulSet};
use crate::history::{self, Newest, Revision, newest};

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
}

fn template(version: u64) -> Value {
    json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "image": version }] } })
}

fn set(mut spec: Value) -> StatefulSet {
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    spec["template"] = template(1);
    spec["revisionHistoryLimit"] = 2.into();
    spec["volumeClaimTemplates"] = json!([{ "metadata": { "name": "data", "labels": { "own": "1" } },
        "spec": { "accessModes": ["ReadWriteOnce"] } }]);
    let metadata = json!({ "name": "web", "namespace": "ns", "uid": "s", "generation": 1 });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
}

/// The cluster as it is, and what the controller's caches show of it.
struct Model {
    set: StatefulSet,
    revisions: Vec<Revision>,
    pods: BTreeMap<i64, Member>,
    claims: Held,
    seen_pods: Vec<Member>,
    seen_claims: Held,
    /// Uids of pods whose deletion the cache has to show before the controller acts again.
    awaited: BTreeSet<String>,
    /// Ordinals that the rolling update took from service and that are not available again.
    out: BTreeSet<i64>,
    made: u64,
    now: Timestamp,
    /// Versions whose pods never get ready.
    broken: BTreeSet<u64>,
}

impl Model {
    fn new(spec: Value) -> Self {
        Self {
            set: set(spec),
            revisions: Vec::new(),
            pods: BTreeMap::new(),
            claims: Held::new(),
            seen_pods: Vec::new(),
            seen_claims: Held::new(),
            awaited: BTreeSet::new(),
            out: BTreeSet::new(),
            made: 0,
            now: "2024-01-01T00:00:00Z".parse().unwrap(),
            broken: BTreeSet::new(),
        }
    }

    fn uid(&mut self) -> String {
        self.made += 1;
        format!("u{}", self.made)
    }

    /// The caches catch up.
    fn see(&mut self) {
        self.seen_pods = self.pods.values().cloned().collect();
        self.seen_claims.clone_from(&self.claims);
        let alive = |uid: &String| {
            self.seen_pods.iter().any(|pod| pod.pod.metadata.uid == *uid && !pod.is_terminating())
        };
        self.awaited.retain(alive);
    }

    /// The revisions as `apply` finds and keeps them: current and update.
    fn versions(&mut self) -> (Revision, Revision) {
        let snapshot = history::Snapshot::of(&self.set.spec.template);
        let update = match newest(&snapshot, &self.revisions) {
            Newest::Is(held) => held.clone(),
            Newest::Again(held, number) => Revision { revision: number, ..held.clone() },
            Newest::Made(number) => {
                let (name, _) = snapshot.name("web", Some(0));
                let data = json!({ "spec": { "template": self.set.spec.template } });
                serde_json::from_value(json!({ "metadata": { "name": name, "uid": name }, "revision": number,
                    "data": data }))
                .unwrap()
            }
        };
        self.revisions.retain(|held| held.metadata.name != update.metadata.name);
        self.revisions.push(update.clone());
        history::sort(&mut self.revisions);
        let named = |held: &&Revision| held.metadata.name == self.set.status.current_revision;
        (self.revisions.iter().find(named).unwrap_or(&update).clone(), update)
    }

    /// One pass of the controller; gives whether it did anything.
    fn pass(&mut self, check: &mut impl FnMut(&Self, &Step)) -> bool {
        let (current, update) = self.versions();
        let (set, members, held) = (self.set.clone(), self.seen_pods.clone(), self.seen_claims.clone());
        let names = (current.metadata.name.as_str(), update.metadata.name.as_str());
        let plan = plan(&Snapshot {
            set: &set,
            revisions: names,
            collisions: 0,
            members: &members,
            claims: &held,
            now: self.now,
        });
        let mut replaced = 0;
        let mut acted = false;
        if self.awaited.is_empty() {
            for step in plan.phases.iter().flatten() {
                check(self, step);
                acted = true;
                if !self.carry_out(step, &current, &update) {
                    break;
                }
                replaced += i64::from(matches!(step, Step::Delete { rolling: true, .. }));
            }
        }
        let status = finished(&set, plan.status, replaced);
        acted |= status != self.set.status;
        self.set.status = status;
        let members = self.seen_pods.clone();
        let live = members.iter().map(Member::revision).chain([names.0, names.1]).collect();
        let limit = self.set.spec.revision_history_limit.unwrap();
        let gone: Vec<String> = history::surplus(&self.revisions, &live, limit)
            .iter()
            .map(|held| held.metadata.name.clone())
            .collect();
        self.revisions.retain(|held| !gone.contains(&held.metadata.name));
        acted
    }

    /// What the server does; `false` is a refusal.
    fn carry_out(&mut self, step: &Step, current: &Revision, update: &Revision) -> bool {
        match step {
            Step::Create { ordinal, updated, claims } => {
                if !self.arrange(claims) || self.pods.contains_key(ordinal) {
                    return false;
                }
                let revision = if *updated { update } else { current };
                let template = revision.template().unwrap();
                let mut body = identity::pod(&self.set, &template, &revision.metadata.name, *ordinal);
                body["metadata"]["uid"] = self.uid().into();
                body["status"] = json!({ "phase": "Pending" });
                let object = api::Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap();
                let member = Member::decode(&self.set, &object).unwrap().unwrap();
                assert!(member.claims.values().all(|claim| self.claims.contains_key(claim)));
                self.pods.insert(*ordinal, member);
            }
            Step::Claims { claims, .. } => return self.arrange(claims),
            Step::Update { patch, claims, .. } => {
                assert!(patch.is_none(), "the model's pods keep their identity");
                return self.arrange(claims);
            }
            Step::Delete { ordinal, uid, rolling } => {
                let Some(member) = self.pods.get_mut(ordinal) else { return true };
                if member.pod.metadata.uid != *uid || member.is_terminating() {
                    return true;
                }
                if *rolling && member.is_available(self.set.min_ready(), self.now) {
                    self.out.insert(*ordinal);
                }
                member.pod.metadata.deletion_timestamp = Some(self.now);
                self.awaited.insert(uid.clone());
            }
        }
        true
    }

    fn arrange(&mut self, steps: &[ClaimStep]) -> bool {
        for step in steps {
            match step {
                ClaimStep::Going { .. } => return false,
                ClaimStep::Create { name, body } => {
                    if self.claims.contains_key(name) {
                        return false;
                    }
                    assert_eq!(body["metadata"]["labels"], json!({ "own": "1", "app": "web" }));
                    let mut meta: api::ObjectMeta = serde_json::from_value(body["metadata"].clone()).unwrap();
                    meta.uid = self.uid();
                    meta.resource_version = self.uid();
                    self.claims.insert(name.clone(), meta);
                }
                ClaimStep::Own { name, patch } => {
                    let version = self.uid();
                    let Some(held) = self.claims.get_mut(name) else { return false };
                    if patch["metadata"]["resourceVersion"] != held.resource_version.as_str() {
                        return false;
                    }
                    let owners = patch["metadata"]["ownerReferences"].clone();
                    held.owner_references = serde_json::from_value(owners).unwrap();
                    held.resource_version = version;
                }
            }
        }
        true
    }

    /// The garbage collector: claims whose pod is gone go, after the pod that uses them.
    fn collect(&mut self) {
        let pods = &self.pods;
        self.claims.retain(|name, claim| {
            let alive = |uid: &str| uid == "s" || pods.values().any(|pod| pod.pod.metadata.uid == uid);
            let owners = &claim.owner_references;
            if !owners.is_empty() && !owners.iter().any(|owner| alive(&owner.uid)) {
                claim.deletion_timestamp = claim.deletion_timestamp.or(Some(Timestamp::UNIX_EPOCH));
            }
            claim.deletion_timestamp.is_none()
                || pods.values().any(|pod| pod.claims.values().any(|used| used == name))
        });
    }

    fn version(&self, member: &Member) -> u64 {
        let revision = self.revisions.iter().find(|held| held.metadata.name == member.revision());
        revision.map_or(0, |held| {
            held.data["spec"]["template"]["spec"]["containers"][0]["image"].as_u64().unwrap()
        })
    }

    fn set_ready(member: &mut Member, ready: bool, now: Timestamp) {
        let status = if ready { "True" } else { "False" };
        let condition = json!([{ "type": "Ready", "status": status, "lastTransitionTime": now.to_string() }]);
        member.pod.status.conditions = serde_json::from_value(condition).unwrap();
    }

    /// Something happens on some node: pods end, start and get ready; with `trouble` also what should not.
    fn advance(&mut self, chance: &mut Chance, trouble: bool) {
        self.now += SignedDuration::from_secs(i64::try_from(chance.below(4)).unwrap());
        let ordinals: Vec<i64> = self.pods.keys().copied().collect();
        if ordinals.is_empty() {
            return;
        }
        let ordinal = ordinals[usize::try_from(chance.below(ordinals.len() as u64)).unwrap()];
        let (now, wanted) = (self.now, self.set.wants(ordinal));
        let mut member = self.pods.remove(&ordinal).unwrap();
        let broken = self.broken.contains(&self.version(&member));
        let event = chance.below(if trouble { 12 } else { 6 });
        let gone = if member.is_terminating() {
            event < 3
        } else if member.pod.is_finished() {
            // Somebody cleans up among those that nobody wants.
            !wanted && !trouble
        } else {
            match event {
                0..=5 if member.is_pending() => member.pod.status.phase = "Running".into(),
                0..=5 if !member.pod.is_ready() => Self::set_ready(&mut member, !broken, now),
                6 | 7 => Self::set_ready(&mut member, false, now),
                8 => member.pod.status.phase = "Failed".into(),
                9 => member.pod.status.phase = "Succeeded".into(),
                10 => member.pod.metadata.deletion_timestamp = Some(now),
                _ => {}
            }
            event == 11
        };
        if !gone {
            self.pods.insert(ordinal, member);
        }
        let min_ready = self.set.min_ready();
        let well = |member: &Member| !member.is_terminating() && member.is_available(min_ready, now);
        let pods = &self.pods;
        self.out.retain(|ordinal| !pods.get(ordinal).is_some_and(&well));
        self.collect();
        if chance.below(3) > 0 {
            self.see();
        }
    }

    /// Lets everything happen until nothing does any more.
    fn settle(&mut self, chance: &mut Chance, seed: u64, check: &mut impl FnMut(&Self, &Step)) {
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
        let tell = |pod: &Member| {
            let (status, terminating) = (&pod.pod.status, pod.is_terminating());
            format!("{} {} {terminating} {}", pod.ordinal, status.phase, self.version(pod))
        };
        let pods: Vec<String> = self.pods.values().map(tell).collect();
        panic!("seed {seed}: it did not end: {:?} {pods:?} {:?}", self.set.spec, self.set.status);
    }

    fn is_settled(&self) -> bool {
        let wanted: Vec<i64> = (self.set.start()..self.set.start() + self.set.replicas()).collect();
        let min_ready = self.set.min_ready();
        self.pods.keys().copied().collect::<Vec<_>>() == wanted
            && self.pods.values().all(|pod| {
                !pod.is_terminating() && pod.is_running_and_ready() && pod.is_available(min_ready, self.now)
            })
    }

    fn revision_of(&self, ordinal: i64) -> u64 {
        self.version(&self.pods[&ordinal])
    }
}

/// What no step may break, whatever the caches show.
fn check_step(model: &Model, step: &Step, seed: u64) {
    let set = &model.set;
    match step {
        Step::Create { ordinal, .. } => {
            assert!(set.wants(*ordinal), "seed {seed}: {ordinal} is not wanted");
            for lower in set.start()..*ordinal {
                let seen = model.seen_pods.iter().find(|pod| pod.ordinal == lower);
                let well = seen.is_some_and(|pod| {
                    !pod.is_terminating()
                        && pod.is_running_and_ready()
                        && pod.is_available(set.min_ready(), model.now)
                });
                assert!(well || !set.is_ordered(), "seed {seed}: {ordinal} is made before {lower} is well");
            }
        }
        Step::Delete { ordinal, rolling: true, .. } => {
            assert!(*ordinal >= set.start() + set.partition(), "seed {seed}: {ordinal} is kept back");
            let well = model
                .pods
                .get(ordinal)
                .is_some_and(|pod| !pod.is_terminating() && pod.is_available(set.min_ready(), model.now));
            let out = model.out.iter().filter(|out| set.wants(**out)).count();
            let out = i64::try_from(out).unwrap() + i64::from(well);
            assert!(out <= set.max_unavailable(), "seed {seed}: {out} are taken from service at once");
        }
        Step::Delete { ordinal, .. } if !set.wants(*ordinal) && set.is_ordered() => {
            let last = model.pods.keys().copied().filter(|held| !set.wants(*held)).max();
            assert!(last.is_none_or(|last| last <= *ordinal), "seed {seed}: {last:?} goes before {ordinal}");
        }
        Step::Delete { ordinal, .. } if set.wants(*ordinal) => {
            let seen = model.seen_pods.iter().find(|pod| pod.ordinal == *ordinal).unwrap();
            assert!(seen.pod.is_finished(), "seed {seed}: {ordinal} is wanted and runs");
        }
        _ => {}
    }
}

fn random_spec(chance: &mut Chance) -> Value {
    let pick = |chance: &mut Chance, all: &[Value]| {
        all[usize::try_from(chance.below(all.len() as u64)).unwrap()].clone()
    };
    let policies = [json!("Retain"), json!("Delete")];
    let unavailable = [Value::Null, json!(1), json!(2), json!("40%"), json!("1%")];
    let mut spec = json!({
        "replicas": 1 + chance.below(6), "ordinals": { "start": chance.below(3) },
        "podManagementPolicy": pick(chance, &[json!("OrderedReady"), json!("Parallel")]),
        "minReadySeconds": chance.below(2) * 5,
        "persistentVolumeClaimRetentionPolicy": {
            "whenDeleted": pick(chance, &policies), "whenScaled": pick(chance, &policies) },
        "updateStrategy": { "type": "RollingUpdate" },
    });
    if chance.below(4) > 0 {
        spec["updateStrategy"]["rollingUpdate"] =
            json!({ "partition": chance.below(3), "maxUnavailable": pick(chance, &unavailable) });
    }
    spec
}

#[test]
fn pods_come_and_go_in_order_whatever_happens() {
    for seed in 1..150_u64 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(random_spec(&mut chance));
        let mut check = |model: &Model, step: &Step| check_step(model, step, seed);
        for round in 2..6 {
            match chance.below(3) {
                0 => model.set.spec.replicas = Some(i64::try_from(chance.below(7)).unwrap()),
                1 => model.set.spec.ordinals.start = i64::try_from(chance.below(4)).unwrap(),
                _ => model.set.spec.template = template(chance.below(round)),
            }
            model.set.metadata.generation += 1;
            for _ in 0..chance.below(60) {
                model.advance(&mut chance, true);
                model.pass(&mut check);
                if chance.below(20) == 0 {
                    // A restart: what was awaited is forgotten, and the caches are filled anew.
                    model.awaited.clear();
                    model.see();
                }
            }
            if chance.below(2) == 0 {
                model.settle(&mut chance, seed, &mut check);
            }
        }
        model.settle(&mut chance, seed, &mut check);
        check_end(&model, seed);
    }
}

fn check_end(model: &Model, seed: u64) {
    let (set, status) = (&model.set, &model.set.status);
    let replicas = set.replicas();
    let counts = [status.replicas, status.ready_replicas, status.available_replicas];
    assert_eq!(counts, [replicas; 3], "seed {seed}");
    assert_eq!(status.observed_generation, set.metadata.generation);
    let newest = model.revisions.last().unwrap();
    assert_eq!(newest.metadata.name, status.update_revision);
    for pod in model.pods.values().filter(|pod| pod.ordinal >= set.start() + set.partition()) {
        assert_eq!(pod.revision(), status.update_revision, "seed {seed}: web-{}", pod.ordinal);
    }
    if set.partition() == 0 {
        assert_eq!(status.current_revision, status.update_revision, "seed {seed}");
    }
    let live: BTreeSet<&str> = model
        .pods
        .values()
        .map(Member::revision)
        .chain([status.current_revision.as_str(), status.update_revision.as_str()])
        .collect();
    assert!(model.revisions.len() <= live.len() + 2, "seed {seed}: the history limit is 2");
    let policy = &set.spec.persistent_volume_claim_retention_policy;
    for ordinal in set.start()..set.start() + replicas {
        let claim = &model.claims[&format!("data-web-{ordinal}")];
        let owners: Vec<&str> = claim.owner_references.iter().map(|owner| owner.uid.as_str()).collect();
        let wanted: &[&str] = if policy.when_deleted == "Delete" { &["s"] } else { &[] };
        assert_eq!(owners, wanted, "seed {seed}: the claim of web-{ordinal}");
    }
}

fn settled(spec: Value) -> (Model, Chance) {
    let (mut model, mut chance) = (Model::new(spec), Chance::new(1));
    model.settle(&mut chance, 1, &mut |_, _| {});
    (model, chance)
}

#[test]
fn a_smaller_set_takes_claims_along_where_the_policy_says_so() {
    for (scaled, deleted, left) in
        [("Delete", "Delete", 1), ("Delete", "Retain", 1), ("Retain", "Delete", 3), ("Retain", "Retain", 3)]
    {
        let (mut model, mut chance) = settled(json!({ "replicas": 3,
            "persistentVolumeClaimRetentionPolicy": { "whenScaled": scaled, "whenDeleted": deleted } }));
        model.set.spec.replicas = Some(1);
        model.settle(&mut chance, 1, &mut |_, _| {});
        assert_eq!(model.claims.len(), left, "{scaled} {deleted}");
        // And they come anew with the pods.
        model.set.spec.replicas = Some(3);
        model.settle(&mut chance, 1, &mut |_, _| {});
        assert_eq!(model.claims.len(), 3);
    }
}

#[test]
fn a_partition_keeps_versions_back_also_of_pods_that_are_lost() {
    let rolling = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 2 } });
    let (mut model, mut chance) = settled(json!({ "replicas": 4, "updateStrategy": rolling }));
    model.set.spec.template = template(2);
    model.settle(&mut chance, 1, &mut |_, _| {});
    let versions = |model: &Model| (0..4).map(|ordinal| model.revision_of(ordinal)).collect::<Vec<_>>();
    assert_eq!(versions(&model), [1, 1, 2, 2]);
    assert_eq!((model.set.status.current_replicas, model.set.status.updated_replicas), (2, 2));
    assert_ne!(model.set.status.current_revision, model.set.status.update_revision);
    model.pods.remove(&0);
    model.see();
    model.settle(&mut chance, 1, &mut |_, _| {});
    assert_eq!(versions(&model), [1, 1, 2, 2]);
    model.set.spec.update_strategy.rolling_update.as_mut().unwrap().partition = 0;
    model.settle(&mut chance, 1, &mut |_, _| {});
    assert_eq!(versions(&model), [2, 2, 2, 2]);
    assert_eq!(model.set.status.current_revision, model.set.status.update_revision);
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let (mut model, mut chance) = settled(json!({ "replicas": 2, "updateStrategy": { "type": "OnDelete" } }));
    model.set.spec.template = template(2);
    model.settle(&mut chance, 1, &mut |_, _| {});
    assert_eq!((model.revision_of(0), model.revision_of(1)), (1, 1));
    model.pods.remove(&1);
    model.see();
    model.settle(&mut chance, 1, &mut |_, _| {});
    assert_eq!((model.revision_of(0), model.revision_of(1)), (1, 2));
    assert_ne!(model.set.status.current_revision, model.set.status.update_revision);
    model.pods.remove(&0);
    model.see();
    model.settle(&mut chance, 1, &mut |_, _| {});
    assert_eq!(model.set.status.current_revision, model.set.status.update_revision);
    assert_eq!(model.set.status.current_replicas, 2);
}

#[test]
fn an_undo_uses_the_earlier_revision_again() {
    let (mut model, mut chance) = settled(json!({ "replicas": 2 }));
    let first = model.set.status.current_revision.clone();
    for version in [2, 1] {
        model.set.spec.template = template(version);
        model.settle(&mut chance, 1, &mut |_, _| {});
    }
    assert_eq!((model.set.status.current_revision.as_str(), model.revisions.len()), (first.as_str(), 2));
    assert_eq!(model.revisions.last().unwrap().revision, 3);
}

/// Steps of a pass over what is there now.
fn steps(model: &mut Model) -> Vec<Step> {
    let mut steps = Vec::new();
    model.see();
    model.pass(&mut |_, step| steps.push(step.clone()));
    steps
}

#[test]
fn a_version_that_never_comes_up_is_mended_by_itself_with_parallel_pods_only() {
    for (policy, mends) in [("OrderedReady", false), ("Parallel", true)] {
        let (mut model, mut chance) = settled(json!({ "replicas": 3, "podManagementPolicy": policy }));
        model.broken.insert(2);
        model.set.spec.template = template(2);
        for _ in 0..300 {
            model.advance(&mut chance, false);
            model.pass(&mut |_, _| {});
        }
        let versions = |model: &Model| (0..3).map(|ordinal| model.revision_of(ordinal)).collect::<Vec<_>>();
        assert_eq!(versions(&model), [1, 1, 2], "{policy}");
        model.set.spec.template = template(3);
        let mut deleted = Vec::new();
        for _ in 0..300 {
            model.advance(&mut chance, false);
            model.pass(&mut |_, step| deleted.push(step.clone()));
        }
        assert_eq!(!deleted.is_empty(), mends, "{policy}");
        if !mends {
            // Somebody has to delete the pod.
            model.pods.get_mut(&2).unwrap().pod.metadata.deletion_timestamp = Some(model.now);
        }
        model.settle(&mut chance, 1, &mut |_, _| {});
        assert_eq!(versions(&model), [3, 3, 3], "{policy}");
    }
}

#[test]
fn broken_pods_are_replaced_and_terminating_ones_waited_for() {
    for phase in ["Failed", "Succeeded"] {
        let (mut model, _) = settled(json!({ "replicas": 2 }));
        model.pods.get_mut(&0).unwrap().pod.status.phase = phase.into();
        let uid = model.pods[&0].pod.metadata.uid.clone();
        assert_eq!(steps(&mut model), [Step::Delete { ordinal: 0, uid, rolling: false }]);
        assert_eq!(steps(&mut model), []);
        model.pods.remove(&0);
        assert!(matches!(steps(&mut model)[..], [Step::Create { ordinal: 0, .. }]));
        assert_eq!(steps(&mut model), []);
    }
}

#[test]
fn claims_are_made_for_pending_pods_and_waited_for_while_they_go() {
    let (mut model, mut chance) = settled(json!({ "replicas": 1 }));
    model.pods.remove(&0);
    model.claims.get_mut("data-web-0").unwrap().deletion_timestamp = Some(model.now);
    let going = ClaimStep::Going { name: "data-web-0".into() };
    // Of the current revision, which is the update revision too.
    let waits = [Step::Create { ordinal: 0, updated: false, claims: vec![going] }];
    assert_eq!(steps(&mut model), waits);
    assert!(model.pods.is_empty());
    model.claims.clear();
    assert!(matches!(&steps(&mut model)[..], [Step::Create { claims, .. }] if claims.len() == 1));
    // The claim of a pod that waits for it is lost.
    model.claims.clear();
    assert!(matches!(&steps(&mut model)[..], [Step::Claims { ordinal: 0, claims }] if claims.len() == 1));
    model.settle(&mut chance, 1, &mut |_, _| {});
}

#[test]
fn a_claim_of_an_earlier_pod_is_not_used() {
    let (mut model, _) = settled(json!({ "replicas": 1,
        "persistentVolumeClaimRetentionPolicy": { "whenScaled": "Delete" } }));
    let earlier = crate::context::controller_ref(
        &reconcile::kinds::PODS,
        &api::ObjectMeta { name: "web-0".into(), uid: "earlier".into(), ..api::ObjectMeta::default() },
    );
    model.claims.get_mut("data-web-0").unwrap().owner_references = vec![earlier];
    // The pod that is there goes on, and what an earlier one owns is left to the garbage collector.
    assert_eq!(steps(&mut model), []);
    model.pods.clear();
    assert_eq!(steps(&mut model), []);
    model.collect();
    assert!(matches!(steps(&mut model)[..], [Step::Create { ordinal: 0, .. }]));
}

#[test]
fn claims_that_others_control_are_let_be() {
    let (mut model, _) = settled(json!({ "replicas": 1 }));
    let stranger = api::OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "x".into(),
        uid: "x".into(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let owners = vec![stranger.clone()];
    model.claims.get_mut("data-web-0").unwrap().owner_references.clone_from(&owners);
    model.set.spec.persistent_volume_claim_retention_policy.when_deleted = "Delete".into();
    assert_eq!(steps(&mut model), []);
    // Our own reference beside it is taken back.
    let ours = crate::context::controller_ref(&reconcile::kinds::STATEFUL_SETS, &model.set.metadata);
    model.claims.get_mut("data-web-0").unwrap().owner_references.push(ours);
    assert!(matches!(&steps(&mut model)[..], [Step::Update { patch: None, .. }]));
    assert_eq!(model.claims["data-web-0"].owner_references, owners);
}

#[test]
fn names_say_which_set_and_which_number() {
    for (name, ordinal) in [
        ("web-0", Some(0)),
        ("web-17", Some(17)),
        ("web-01", None),
        ("web-+1", None),
        ("web-", None),
        ("web-x-1", None),
        ("we-1", None),
        ("web-99999999999", None),
    ] {
        assert_eq!(identity::ordinal("web", name), ordinal, "{name}");
    }
    let set = set(json!({}));
    assert!(claims::is_of(&set, "data-web-3") && !claims::is_of(&set, "data-web2-3"));
}

#[test]
fn a_pod_has_its_identity_and_a_volume_for_each_claim() {
    let mut set = set(json!({ "serviceName": "peers" }));
    set.spec.template["spec"]["volumes"] =
        json!([{ "name": "data", "emptyDir": {} }, { "name": "tmp", "emptyDir": {} }]);
    let pod = identity::pod(&set, &set.spec.template, "web-abc", 4);
    let claim = json!({ "name": "data", "persistentVolumeClaim": { "claimName": "data-web-4" } });
    assert_eq!(pod["spec"]["volumes"], json!([claim, { "name": "tmp", "emptyDir": {} }]));
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-4"), &json!("peers")));
    assert_eq!(
        pod["metadata"]["labels"],
        json!({ "app": "web", "apps.kubernetes.io/pod-index": "4", "controller-revision-hash": "web-abc",
            "statefulset.kubernetes.io/pod-name": "web-4" })
    );
    assert_eq!(
        (&pod["metadata"]["name"], &pod["metadata"]["generateName"]),
        (&json!("web-4"), &json!("web-"))
    );
    // An orphan that was adopted lacks both.
    let body = json!({ "metadata": { "name": "web-4", "uid": "o" }, "spec": {} });
    let object = api::Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap();
    let orphan = Member::decode(&set, &object).unwrap().unwrap();
    let patch = identity::correction(&set, &orphan).unwrap();
    assert_eq!(patch["spec"]["volumes"], json!([claim]));
    assert_eq!(patch["metadata"]["uid"], "o");
    assert_eq!(patch["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "4");
}

/// Any number that is not negative is valid: a pass is bounded by the pods that there are.
#[test]
fn a_pass_is_not_as_long_as_the_number_that_is_wished_for() {
    for policy in ["OrderedReady", "Parallel"] {
        let set = set(json!({ "replicas": i32::MAX, "podManagementPolicy": policy }));
        let ordinals = set.ordinals(&[3, 7, i64::from(i32::MAX)].into());
        assert_eq!(ordinals.len(), 502);
        assert_eq!(ordinals.first(), Some(&0));
        assert_eq!(ordinals.last(), Some(&501));
    }
}
