//! The plan against a model of the replica set controller and its pods: whatever happens in whatever order, the bounds
//! of the rolling update hold and the rollout ends.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Plan, Snapshot, Step, plan};
use super::types::Deployment;
use crate::replicaset::Set;

/// A small deterministic source of chance (xorshift64*), so that a failure names its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// The cluster as it is (`pods`, `sets`), and as the Deployment controller last saw it (statuses may lag).
struct Model {
    deployment: Deployment,
    sets: BTreeMap<String, Set>,
    /// Per set: one entry per pod, telling whether it is available.
    pods: BTreeMap<String, Vec<bool>>,
    made: i64,
    now: Timestamp,
    /// Reasons and messages of the answers to rollbacks.
    said: Vec<(&'static str, String)>,
}

fn deployment(spec: Value) -> Deployment {
    serde_json::from_value(
        json!({ "metadata": { "name": "web", "uid": "d", "generation": 1 }, "spec": spec }),
    )
    .unwrap()
}

fn template(version: u64) -> Value {
    json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "image": version }] } })
}

fn spec(replicas: i64, surge: Value, unavailable: Value) -> Value {
    json!({
        "replicas": replicas, "selector": { "matchLabels": { "app": "web" } }, "template": template(1),
        "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
        "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } },
    })
}

impl Model {
    fn new(deployment: Deployment) -> Self {
        let now = "2024-01-01T00:00:00Z".parse().unwrap();
        Self { deployment, sets: BTreeMap::new(), pods: BTreeMap::new(), made: 0, now, said: Vec::new() }
    }

    fn plan(&self) -> Plan {
        plan(Snapshot {
            deployment: self.deployment.clone(),
            sets: self.sets.values().cloned().collect(),
            sets_with_pods: self
                .pods
                .iter()
                .filter(|(_, pods)| !pods.is_empty())
                .map(|(name, _)| name.clone())
                .collect(),
            now: self.now,
        })
    }

    /// One pass of the Deployment controller; gives how many steps it took.
    fn pass(&mut self) -> usize {
        let steps = self.plan().steps;
        let count = steps.len();
        for step in steps {
            self.apply(step);
        }
        count
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Create { name, body, .. } => {
                self.made += 1;
                let mut set: Set = serde_json::from_value(body).unwrap();
                set.metadata.uid.clone_from(&name);
                set.metadata.creation_timestamp = Some(self.now + jiff::SignedDuration::from_secs(self.made));
                assert!(self.sets.insert(name, set).is_none(), "a set was made twice");
            }
            Step::Scale { name, to, patch, .. } => {
                let set = self.sets.get_mut(&name).unwrap();
                set.spec.replicas = Some(to);
                let annotations = patch["metadata"]["annotations"].clone();
                set.metadata
                    .annotations
                    .extend(serde_json::from_value::<BTreeMap<_, _>>(annotations).unwrap());
            }
            Step::Patch { name, patch } => {
                let set = self.sets.get_mut(&name).unwrap();
                set.metadata.annotations =
                    serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
            }
            Step::Delete { name, .. } => {
                assert!(self.pods.get(&name).is_none_or(Vec::is_empty), "a set with pods was deleted");
                self.sets.remove(&name);
            }
            Step::Rollback(rollback) => {
                let mut tree = json!({
                    "metadata": { "annotations": self.deployment.metadata.annotations },
                    "spec": { "template": self.deployment.spec.template },
                });
                api::patch::json_patch(&mut tree, rollback.patch.to_string().as_bytes()).unwrap();
                self.deployment.metadata.annotations =
                    serde_json::from_value(tree["metadata"]["annotations"].clone()).unwrap();
                self.deployment.spec.template = tree["spec"]["template"].clone();
                self.said.push((rollback.reason, rollback.message));
            }
            Step::Revision(revision) => {
                self.deployment.metadata.annotations.insert(super::types::REVISION.into(), revision);
            }
            Step::Status(status) => self.deployment.status = status,
        }
    }

    /// The replica set controller and the node do one thing somewhere.
    fn advance(&mut self, chance: &mut Chance) {
        let names: Vec<String> = self.sets.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = &names[usize::try_from(chance.below(names.len() as u64)).unwrap()];
        match chance.below(3) {
            0 => self.scale_pods(name),
            1 => {
                let waiting = self.pods.get_mut(name).and_then(|pods| pods.iter_mut().find(|ready| !**ready));
                if let Some(ready) = waiting {
                    *ready = true;
                }
            }
            _ => self.report(name),
        }
    }

    /// The replica set controller makes or deletes pods; those that are not available go first.
    fn scale_pods(&mut self, name: &str) {
        let wanted = usize::try_from(self.sets[name].replicas()).unwrap();
        let pods = self.pods.entry(name.to_owned()).or_default();
        pods.sort_by_key(|ready| !ready);
        pods.resize(wanted, false);
    }

    fn report(&mut self, name: &str) {
        let pods = self.pods.get(name).cloned().unwrap_or_default();
        let set = self.sets.get_mut(name).unwrap();
        set.status.replicas = pods.len() as i64;
        set.status.available_replicas = pods.iter().filter(|ready| **ready).count() as i64;
        set.status.ready_replicas = set.status.available_replicas;
    }

    fn total(&self) -> i64 {
        self.pods.values().map(|pods| pods.len() as i64).sum()
    }

    /// Pods that the sets are told to have: what the surge bounds. A set may still be on its way down.
    fn sized(&self) -> i64 {
        self.sets.values().map(Set::replicas).sum()
    }

    fn available(&self) -> i64 {
        self.pods.values().flatten().filter(|ready| **ready).count() as i64
    }

    /// Lets everything happen until nothing does any more.
    fn settle(&mut self, chance: &mut Chance, check: impl Fn(&Self)) {
        for _ in 0..5000 {
            for _ in 0..chance.below(4) {
                self.advance(chance);
                check(self);
            }
            self.pass();
            check(self);
            if self.is_settled() {
                return;
            }
        }
        panic!("the rollout did not end: {:?}", self.deployment.status);
    }

    fn is_settled(&self) -> bool {
        super::status::is_complete(&self.deployment, &self.deployment.status) && self.plan().steps.is_empty()
    }
}

#[test]
fn rolling_updates_keep_their_bounds_whatever_happens() {
    for seed in 1..120_u64 {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let replicas = 1 + i64::try_from(chance.below(12)).unwrap();
        let (surge, unavailable) = (chance.below(4), chance.below(4));
        let spec = if chance.below(2) == 0 {
            spec(replicas, json!(surge), json!(unavailable))
        } else {
            spec(replicas, json!(format!("{}%", surge * 20)), json!(format!("{}%", unavailable * 20)))
        };
        let mut model = Model::new(deployment(spec));
        model.settle(&mut chance, |_| {});
        let max = replicas + model.deployment.max_surge();
        let min = replicas - model.deployment.max_unavailable();
        for version in 2..5 {
            model.deployment.spec.template = template(version);
            model.deployment.metadata.generation += 1;
            // Sometimes the next version comes while the last one is still on its way.
            let check = |model: &Model| {
                let sized = model.sized();
                assert!(sized <= max, "seed {seed}: sets are sized for {sized}, at most {max} allowed");
                assert!(model.available() >= min, "seed {seed}: {} available of {min}", model.available());
            };
            if chance.below(3) == 0 {
                for _ in 0..chance.below(20) {
                    model.advance(&mut chance);
                    model.pass();
                    check(&model);
                }
            } else {
                model.settle(&mut chance, check);
            }
        }
        model.settle(&mut chance, |_| {});
        assert_eq!((model.total(), model.available()), (replicas, replicas));
        assert!(model.sets.len() <= 3, "seed {seed}: the history limit is 2");
    }
}

#[test]
fn recreate_never_runs_two_versions() {
    for seed in 1..100 {
        let mut chance = Chance(seed);
        let mut spec = spec(3, json!(0), json!(0));
        spec["strategy"] = json!({ "type": "Recreate" });
        let mut model = Model::new(deployment(spec));
        model.settle(&mut chance, |_| {});
        model.deployment.spec.template = template(2);
        model.deployment.metadata.generation += 1;
        model.settle(&mut chance, |model| {
            assert!(model.pods.values().filter(|pods| !pods.is_empty()).count() <= 1, "seed {seed}");
        });
    }
}

#[test]
fn an_undo_reuses_its_set_with_a_new_revision() {
    let mut chance = Chance(7);
    let mut model = Model::new(deployment(spec(2, json!(1), json!(0))));
    model.deployment.metadata.annotations.insert("kubernetes.io/change-cause".into(), "first".into());
    model.settle(&mut chance, |_| {});
    let first = model.sets.keys().next().unwrap().clone();
    assert!(first.starts_with("web-"));
    model.deployment.spec.template = template(2);
    model.deployment.metadata.annotations.insert("kubernetes.io/change-cause".into(), "second".into());
    model.settle(&mut chance, |_| {});
    assert_eq!(model.sets.len(), 2);
    model.deployment.spec.template = template(1);
    model.deployment.metadata.annotations.insert("kubernetes.io/change-cause".into(), "first".into());
    model.settle(&mut chance, |_| {});
    assert_eq!(model.sets.len(), 2);
    let annotations = &model.sets[&first].metadata.annotations;
    assert_eq!(annotations[super::types::REVISION], "3");
    assert_eq!(annotations[super::types::REVISION_HISTORY], "1");
    assert_eq!(annotations["kubernetes.io/change-cause"], "first");
    assert_eq!(model.deployment.metadata.annotations[super::types::REVISION], "3");
}

#[test]
fn a_pause_holds_the_template_but_not_the_size() {
    let mut chance = Chance(3);
    let mut model = Model::new(deployment(spec(10, json!(3), json!(2))));
    model.settle(&mut chance, |_| {});
    model.deployment.spec.paused = true;
    model.deployment.spec.template = template(2);
    model.pass();
    assert_eq!(model.sets.len(), 1);
    assert_eq!(model.deployment.condition("Progressing").unwrap().reason, "DeploymentPaused");
    model.deployment.spec.replicas = Some(5);
    model.pass();
    assert_eq!(model.sets.values().next().unwrap().replicas(), 5);
    model.deployment.spec.paused = false;
    model.settle(&mut chance, |_| {});
    assert_eq!((model.sets.len(), model.total()), (2, 5));
    assert_eq!(model.deployment.condition("Progressing").unwrap().reason, "NewReplicaSetAvailable");
}

#[test]
fn a_pause_keeps_the_revision_that_is_asked_for() {
    let mut chance = Chance(19);
    let mut model = Model::new(deployment(spec(1, json!(1), json!(0))));
    for version in [1, 2, 3] {
        model.deployment.spec.template = template(version);
        model.settle(&mut chance, |_| {});
    }
    assert_eq!(model.sets.len(), 3);
    model.deployment.spec.paused = true;
    model.deployment.spec.revision_history_limit = Some(0);
    model.deployment.metadata.annotations.insert(super::types::ROLLBACK_TO.into(), "1".into());
    model.pass();
    assert_eq!(model.sets.len(), 3);
    model.deployment.metadata.annotations.remove(super::types::ROLLBACK_TO);
    model.pass();
    assert_eq!(model.sets.len(), 1);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut model = Model::new(deployment(spec(10, json!(3), json!(2))));
    let mut chance = Chance(5);
    model.settle(&mut chance, |_| {});
    model.deployment.spec.template = template(2);
    model.deployment.metadata.generation += 1;
    let old = model.sets.keys().next().unwrap().clone();
    let sizes = |model: &Model| {
        let mut sizes: Vec<i64> = model.sets.values().map(Set::replicas).collect();
        sizes.sort_unstable();
        sizes
    };
    model.pass();
    model.pass();
    // Pods that are still there leave no room for others.
    assert_eq!(sizes(&model), [3, 8]);
    model.scale_pods(&old);
    model.report(&old);
    model.pass();
    // The example of upstream's documentation: 8 old and 5 new pods, then 15 are wanted instead of 10.
    assert_eq!(sizes(&model), [5, 8]);
    model.deployment.spec.replicas = Some(15);
    model.pass();
    assert_eq!(sizes(&model), [7, 11]);
}

#[test]
fn a_set_that_is_being_deleted_holds_up_nobody_with_its_pods() {
    let mut model = Model::new(deployment(spec(2, json!(0), json!(1))));
    model.settle(&mut Chance(3), |_| {});
    let old = model.sets.keys().next().unwrap().clone();
    model.deployment.spec.template = template(2);
    model.deployment.metadata.generation += 1;
    let sizes = |model: &Model| model.sets.values().map(Set::replicas).collect::<Vec<_>>();
    for _ in 0..3 {
        model.pass();
    }
    let mut held = sizes(&model);
    held.sort_unstable();
    assert_eq!(held, [0, 1], "its pod is known to be there");
    model.sets.get_mut(&old).unwrap().metadata.deletion_timestamp = Some(model.now);
    model.pass();
    assert_eq!(sizes(&model), [1, 1]);
}

#[test]
fn a_rollout_without_progress_times_out() {
    let mut model = Model::new(deployment(spec(1, json!(1), json!(0))));
    model.pass();
    assert_eq!(model.deployment.condition("Progressing").unwrap().reason, "NewReplicaSetCreated");
    assert_eq!(model.deployment.condition("Available").unwrap().status, "False");
    let again = model.plan().again.unwrap();
    assert_eq!(again.as_secs(), 601);
    model.now += again;
    model.pass();
    let progressing = model.deployment.condition("Progressing").unwrap();
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_str()),
        ("False", "ProgressDeadlineExceeded")
    );
    assert!(model.plan().again.is_none());
}

#[test]
fn what_was_done_once_is_not_looked_at_for_ever() {
    let mut chance = Chance(13);
    let mut model = Model::new(deployment(spec(2, json!(1), json!(0))));
    model.settle(&mut chance, |_| {});
    let order = |model: &Model| -> Vec<String> {
        model.deployment.status.conditions.iter().map(|held| held.r#type.clone()).collect()
    };
    assert_eq!(order(&model), ["Available", "Progressing"]);
    // A pod fails for good, long after the rollout.
    let name = model.sets.keys().next().unwrap().clone();
    model.pods.get_mut(&name).unwrap()[0] = false;
    model.report(&name);
    model.now += jiff::SignedDuration::from_hours(5);
    assert_eq!(model.plan().again, None);
    model.pass();
    assert_eq!(model.deployment.condition("Progressing").unwrap().reason, "NewReplicaSetAvailable");
    assert_eq!(model.deployment.condition("Available").unwrap().status, "False");
    // What has become another one stands last.
    assert_eq!(order(&model), ["Progressing", "Available"]);
    assert_eq!(model.plan(), Plan::default());
}

#[test]
fn a_failure_is_as_old_as_its_set_says() {
    let mut model = Model::new(deployment(spec(2, json!(1), json!(0))));
    model.pass();
    let since = model.now;
    model.now += jiff::SignedDuration::from_mins(3);
    let set = model.sets.values_mut().next().unwrap();
    set.status.conditions = vec![crate::replicaset::SetCondition {
        r#type: "ReplicaFailure".into(),
        status: "True".into(),
        last_transition_time: Some(since),
        reason: "FailedCreate".into(),
        message: "no room".into(),
    }];
    model.pass();
    let failure = model.deployment.condition("ReplicaFailure").unwrap();
    assert_eq!((failure.last_transition_time, failure.last_update_time), (Some(since), Some(since)));
    assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("FailedCreate", "no room"));
}

#[test]
fn pods_that_leave_are_told_where_all_sets_tell_it() {
    let mut chance = Chance(17);
    let mut model = Model::new(deployment(spec(2, json!(1), json!(0))));
    model.pass();
    // What is new has nothing to tell yet, and no pods.
    assert_eq!(model.deployment.status.terminating_replicas, Some(0));
    model.settle(&mut chance, |_| {});
    model.deployment.spec.template = template(2);
    model.settle(&mut chance, |_| {});
    let tell = |model: &mut Model, told: [Option<i64>; 2]| {
        for (set, told) in model.sets.values_mut().zip(told) {
            set.status.observed_generation = 1;
            set.status.terminating_replicas = told;
        }
        model.pass();
        model.deployment.status.terminating_replicas
    };
    assert_eq!(tell(&mut model, [Some(2), Some(1)]), Some(3));
    assert_eq!(tell(&mut model, [Some(2), None]), None);
}

#[test]
fn a_rollback_that_is_asked_for_brings_the_template_back() {
    let mut chance = Chance(11);
    let mut model = Model::new(deployment(spec(2, json!(1), json!(0))));
    let ask = |model: &mut Model, revision: &str| {
        model.deployment.metadata.annotations.insert(super::types::ROLLBACK_TO.into(), revision.into());
    };
    model.settle(&mut chance, |_| {});
    ask(&mut model, "0");
    model.settle(&mut chance, |_| {});
    for version in [2, 3] {
        model.deployment.spec.template = template(version);
        model.settle(&mut chance, |_| {});
    }
    ask(&mut model, "1");
    model.settle(&mut chance, |_| {});
    assert!(super::template::equal(&model.deployment.spec.template, &template(1)));
    ask(&mut model, "0");
    model.settle(&mut chance, |_| {});
    assert!(super::template::equal(&model.deployment.spec.template, &template(3)));
    // What is no number asks for nothing, and stays.
    ask(&mut model, "five");
    model.settle(&mut chance, |_| {});
    assert!(super::template::equal(&model.deployment.spec.template, &template(3)));
    for revision in ["5", "99"] {
        ask(&mut model, revision);
        model.settle(&mut chance, |_| {});
    }
    assert!(!model.deployment.metadata.annotations.contains_key(super::types::ROLLBACK_TO));
    let missing = "DeploymentRollbackRevisionNotFound";
    let said: Vec<&str> = model.said.iter().map(|(reason, _)| *reason).collect();
    let done = "DeploymentRollback";
    assert_eq!(said, [missing, done, done, "DeploymentRollbackTemplateUnchanged", missing]);
    let messages = [&model.said[0].1, &model.said[4].1];
    assert_eq!(messages, ["Unable to find last revision.", "Unable to find the revision to rollback to."]);
}
