//! Jobs: what ends is counted exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Propagation};
use controllers::garbage::GarbageCollector;
use controllers::job::Jobs;
use controllers::ttl_after_finished::TtlAfterFinished;
use reconcile::kinds::{JOBS, PODS};
use serde_json::{Value, json};

use crate::faults::Faults;
use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{World, seeds};

const STEPS: usize = 60;
const NAME: &str = "work";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(Jobs::new(ctx)),
            Arc::new(TtlAfterFinished::new(ctx)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    let witness = Witness::of(&world, &[JOBS, PODS]).await;
    (world, witness)
}

/// A Job as chance has it.
fn job(chance: &mut fastrand::Rng) -> Value {
    let completions = chance.u8(1..7);
    let mut spec = json!({
        "completions": completions,
        "parallelism": chance.u8(1..5),
        "backoffLimit": chance.u8(0..8),
        "suspend": chance.u8(0..6) == 0,
        "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "work", "image": "work:1" }],
        } },
    });
    if chance.bool() {
        spec["completionMode"] = "Indexed".into();
        if chance.u8(0..3) == 0 {
            spec["backoffLimitPerIndex"] = chance.u8(0..3).into();
            spec["backoffLimit"] = json!(i32::MAX);
            if chance.bool() {
                spec["maxFailedIndexes"] = chance.u8(0..=completions).into();
            }
        } else if chance.u8(0..3) == 0 {
            spec["parallelism"] = completions.into();
        }
        if chance.u8(0..5) == 0 {
            spec["successPolicy"] = json!({ "rules": [{ "succeededCount": 1 }] });
        }
    } else if chance.u8(0..4) == 0 {
        spec["completions"] = Value::Null;
    }
    if chance.bool() {
        spec["podReplacementPolicy"] = "Failed".into();
    }
    if chance.u8(0..4) == 0 {
        spec["ttlSecondsAfterFinished"] = chance.u16(0..5000).into();
    }
    if chance.u8(0..6) == 0 {
        spec["activeDeadlineSeconds"] = chance.u16(600..9000).into();
    }
    json!({ "metadata": { "name": NAME }, "spec": spec })
}

/// The indexes that a list such as `0,3-5` names.
fn indexes(list: &Value) -> BTreeSet<i64> {
    let number = |text: &str| text.parse::<i64>().unwrap();
    let parts = list.as_str().unwrap_or_default().split(',').filter(|part| !part.is_empty());
    parts
        .flat_map(|part| match part.split_once('-') {
            Some((first, last)) => number(first)..=number(last),
            None => number(part)..=number(part),
        })
        .collect()
}

fn index(pod: &Object) -> Option<i64> {
    value(pod)["metadata"]["annotations"][INDEX].as_str().map(|index| index.parse().unwrap())
}

fn is_tracked(pod: &Object) -> bool {
    pod.meta().finalizers.iter().any(|held| held == TRACKING)
}

fn phase(pod: &Object) -> String {
    value(pod)["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

fn is_finished(job: &Object) -> bool {
    condition(job, "Complete") || condition(job, "Failed")
}

fn uids(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|uid| uid.as_str().unwrap().to_owned()).collect()
}

/// How a pod ended.
struct End {
    succeeded: bool,
    /// Whether it was being deleted before: its Job did not wait for it.
    late: bool,
    index: Option<i64>,
    /// Whether anybody has to count it: it had its finalizer when it ended.
    tracked: bool,
}

/// What was seen of a Job and its pods.
struct Ledger {
    faults: Arc<Faults>,
    ends: HashMap<String, End>,
    /// The uids that the status has ever named, and how.
    named: BTreeMap<String, &'static str>,
    /// The most that the Job was ever told.
    parallelism: i64,
    bound: i64,
    /// Pods are taken from the Job while they run, and then count for nothing.
    disturbed: bool,
    elastic: bool,
}

impl Ledger {
    fn new(world: &World) -> Self {
        Self {
            faults: world.faults.clone(),
            ends: HashMap::new(),
            named: BTreeMap::new(),
            parallelism: 0,
            bound: 0,
            disturbed: false,
            elastic: false,
        }
    }

    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("Job", before, Some(job)) => self.see_job(before.as_deref(), job),
            ("Pod", None, Some(pod)) => self.see_new_pod(witness, pod),
            ("Pod", Some(before), after) => self.see_pod(witness, before, after.as_deref()),
            _ => {}
        }
    }

    fn see_job(&mut self, before: Option<&Object>, object: &Object) {
        let job = value(object);
        let (spec, status) = (&job["spec"], &job["status"]);
        let parallelism = spec["parallelism"].as_i64().unwrap();
        self.disturbed |= parallelism < self.parallelism || spec["suspend"] == true;
        self.disturbed |= object.meta().is_terminating();
        self.parallelism = self.parallelism.max(parallelism);
        self.bound = self.bound.max(spec["completions"].as_i64().unwrap_or(0));
        for (list, how) in [("succeeded", "Succeeded"), ("failed", "Failed")] {
            for uid in uids(&status["uncountedTerminatedPods"][list]) {
                let known = self.named.insert(uid.clone(), how);
                assert!(known.is_none_or(|known| known == how), "{uid} is counted in two ways");
                if how == "Succeeded" {
                    assert!(self.ends[&uid].succeeded, "{uid} is counted and did not succeed");
                }
            }
        }
        let done = indexes(&status["completedIndexes"]);
        for index in &done {
            let succeeded = self.ends.values().any(|end| end.succeeded && end.index == Some(*index));
            assert!(succeeded, "index {index} is counted and did not succeed");
        }
        let succeeded = status["succeeded"].as_i64().unwrap_or(0);
        if spec["completionMode"] == "Indexed" {
            assert_eq!(i64::try_from(done.len()).unwrap(), succeeded, "{status:#}");
        }
        assert!(!(condition(object, "Complete") && condition(object, "Failed")), "{status:#}");
        if let Some(before) = before {
            self.compare(before, object);
        }
        if is_finished(object) {
            self.see_end(&job);
        }
    }

    /// What was counted stays counted, and what has ended has.
    fn compare(&self, before: &Object, after: &Object) {
        let (old, new) = (value(before), value(after));
        let count = |job: &Value, field| job["status"][field].as_i64().unwrap_or(0);
        let fewer = old["spec"]["completions"].as_i64() > new["spec"]["completions"].as_i64();
        if !self.elastic && !fewer {
            assert!(count(&new, "succeeded") >= count(&old, "succeeded"), "{old:#} then {new:#}");
        }
        assert!(count(&new, "failed") >= count(&old, "failed"), "{old:#} then {new:#}");
        for kind in ["SuccessCriteriaMet", "FailureTarget", "Complete", "Failed"] {
            assert!(!condition(before, kind) || condition(after, kind), "{kind} is taken back");
        }
        if is_finished(before) {
            assert_eq!(old["status"], new["status"], "the status of what has ended changes");
        }
    }

    /// Everything is counted when the Job has ended, once.
    fn see_end(&self, job: &Value) {
        let (spec, status) = (&job["spec"], &job["status"]);
        for field in ["active", "ready", "terminating"] {
            assert_eq!(status[field].as_i64().unwrap_or(0), 0, "{field} {status:#}");
        }
        let uncounted = &status["uncountedTerminatedPods"];
        assert!(uids(&uncounted["succeeded"]).is_empty() && uids(&uncounted["failed"]).is_empty());
        let named =
            |how: &str| i64::try_from(self.named.values().filter(|known| **known == how).count()).unwrap();
        assert_eq!(status["failed"].as_i64().unwrap_or(0), named("Failed"), "{status:#}");
        if spec["completionMode"] != "Indexed" {
            assert_eq!(status["succeeded"].as_i64().unwrap_or(0), named("Succeeded"), "{status:#}");
        }
    }

    fn see_new_pod(&self, witness: &Witness, pod: &Object) {
        let lost = self.faults.lost_creations();
        let job = witness.all("Job").next().unwrap();
        assert!(!is_finished(job), "a pod of what has ended");
        let active: Vec<_> = witness.all("Pod").filter(|pod| is_active(pod)).collect();
        let least = i64::try_from(active.len().saturating_sub(lost)).unwrap();
        assert!(least <= self.parallelism, "{least} active pods of {}", self.parallelism);
        let in_time = |end: &&End| end.succeeded && !end.late && end.tracked;
        let Some(index) = index(pod) else {
            let done = i64::try_from(self.ends.values().filter(in_time).count()).unwrap();
            let enough = self.bound == 0 || done + least <= self.bound;
            assert!(enough, "{least} are active, {done} have succeeded, of {}", self.bound);
            return;
        };
        assert!(index < self.bound, "index {index} of {}", self.bound);
        let waits = value(job)["spec"]["podReplacementPolicy"] == "Failed";
        let twin = |other: &&Arc<Object>| {
            let phase = phase(other);
            let is_there = is_active(other) || (waits && phase != "Succeeded" && phase != "Failed");
            is_there && self::index(other) == Some(index) && other.meta().uid != pod.meta().uid
        };
        let twins = witness.all("Pod").filter(twin).count();
        assert!(twins <= lost, "{twins} others have index {index}");
        let again = self.ends.values().filter(in_time).any(|end| end.index == Some(index));
        assert!(!again || self.disturbed || lost > 0, "index {index} runs again");
    }

    fn see_pod(&mut self, witness: &Witness, before: &Object, after: Option<&Object>) {
        let pod = after.unwrap_or(before);
        let (uid, phase) = (&pod.meta().uid, phase(pod));
        if matches!(phase.as_str(), "Succeeded" | "Failed") && !self.ends.contains_key(uid) {
            let end = End {
                succeeded: phase == "Succeeded",
                late: before.meta().is_terminating(),
                index: index(pod),
                tracked: is_tracked(pod),
            };
            self.ends.insert(uid.clone(), end);
        }
        let let_go = is_tracked(before) && !after.is_some_and(is_tracked);
        let Some(job) = witness.all("Job").next().filter(|_| let_go) else { return };
        let Some(end) = self.ends.get(uid).filter(|end| end.tracked) else { return };
        let counted = match end.index {
            Some(index) if end.succeeded => {
                indexes(&value(job)["status"]["completedIndexes"]).contains(&index)
            }
            _ => self.named.contains_key(uid),
        };
        // A surplus pod may end in the moment in which it is taken away.
        let excused = self.disturbed || self.faults.lost_creations() > 0 || is_finished(job);
        assert!(counted || excused, "{} ended and lost its finalizer uncounted", pod.key());
    }
}

/// What a kubelet does with pods that end: one step; whether there was one. Of a hundred that could, so many fail.
async fn kubelet(world: &mut World, witness: &Witness, failing: u8) -> bool {
    let due: Vec<Arc<Object>> = witness.all("Pod").filter(|pod| has_to_do(pod)).cloned().collect();
    let Some(pod) = world.chance.choice(&due) else { return false };
    let fails = world.chance.u8(0..100) < failing;
    let end = if fails { "Failed" } else { "Succeeded" };
    let is_over = !is_active(pod) && matches!(phase(pod).as_str(), "Succeeded" | "Failed");
    if pod.meta().is_terminating() && is_over {
        world.end(pod).await;
    } else if pod.meta().is_terminating() {
        let end = if world.chance.u8(0..4) == 0 { "Succeeded" } else { "Failed" };
        world.tell(pod, end, false).await;
    } else if pod.node_name().is_none() {
        world.bind(pod).await;
    } else if !condition(pod, "Ready") {
        world.tell(pod, "Running", true).await;
    } else {
        world.tell(pod, end, false).await;
    }
    true
}

fn has_to_do(pod: &Object) -> bool {
    is_active(pod)
        || (pod.meta().is_terminating()
            && (!is_tracked(pod) || !matches!(phase(pod).as_str(), "Succeeded" | "Failed")))
}

async fn step(world: &mut World, witness: &mut Witness, elastic: bool) {
    match world.chance.u8(0..24) {
        0 if elastic => {
            let count = world.chance.u8(1..7);
            let spec = json!({ "spec": { "parallelism": count, "completions": count } });
            let _ = world.try_merge(&JOBS, NAME, &spec).await;
        }
        0 | 1 if world.resizes() => {
            let spec = json!({ "spec": { "parallelism": world.chance.u8(0..6) } });
            let _ = world.try_merge(&JOBS, NAME, &spec).await;
        }
        2 if world.resizes() => {
            let spec = json!({ "spec": { "suspend": world.chance.bool() } });
            let _ = world.try_merge(&JOBS, NAME, &spec).await;
        }
        3 => world.delete_pod(witness).await,
        4 => world.restart(),
        5 | 6 => {
            let seconds = world.chance.u64(1..900);
            world.pass(Duration::from_secs(seconds)).await;
        }
        7..=10 => world.settle().await,
        _ => {
            kubelet(world, witness, 30).await;
        }
    }
}

impl World {
    /// In every other story users change their minds.
    fn resizes(&self) -> bool {
        self.seed.is_multiple_of(2)
    }
}

/// Pods come to their ends until nobody has anything to do.
async fn complete(world: &mut World, witness: &mut Witness, ledger: &mut Ledger) {
    world.faults.set(0);
    for _ in 0..300 {
        world.pass(Duration::from_secs(600)).await;
        witness.catch_up(|witness, seen| ledger.look(witness, seen)).await;
        if !kubelet(world, witness, 5).await {
            break;
        }
    }
    world.pass(Duration::from_secs(6000)).await;
    witness.catch_up(|witness, seen| ledger.look(witness, seen)).await;
    for pod in witness.all("Pod") {
        assert!(!is_tracked(pod), "{} has its finalizer for ever: {:#}", pod.key(), value(pod));
    }
    if let Some(job) = witness.all("Job").next() {
        let told = value(job);
        assert!(is_finished(job), "it has no end: {told:#}");
        assert!(told["spec"]["ttlSecondsAfterFinished"].is_null(), "its time is over");
        if condition(job, "Complete") {
            assert!(condition(job, "SuccessCriteriaMet"));
            let enough = told["spec"]["completions"].as_i64().unwrap_or(1);
            let early = !told["spec"]["successPolicy"].is_null();
            assert!(early || told["status"]["succeeded"].as_i64() >= Some(enough), "{told:#}");
        }
    }
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut ledger = Ledger::new(&world);
    let made = job(&mut world.chance);
    let spec = &made["spec"];
    let elastic = world.resizes()
        && spec["completionMode"] == "Indexed"
        && spec["completions"] == spec["parallelism"]
        && spec["successPolicy"].is_null()
        && spec["maxFailedIndexes"].is_null();
    ledger.elastic = elastic;
    world.faults.set(20);
    world.create(&JOBS, &made).await;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, elastic).await;
        witness.catch_up(|witness, seen| ledger.look(witness, seen)).await;
    }
    let cut_short = world.chance.u8(0..4) == 0;
    if !cut_short {
        let go_on = json!({ "spec": { "suspend": false } });
        let _ = world.try_merge(&JOBS, NAME, &go_on).await;
        if !elastic && witness.all("Job").next().is_some_and(|job| value(job)["spec"]["parallelism"] == 0) {
            let _ = world.try_merge(&JOBS, NAME, &json!({ "spec": { "parallelism": 2 } })).await;
        }
        complete(&mut world, &mut witness, &mut ledger).await;
    }
    let propagation = if world.chance.bool() { Propagation::Foreground } else { Propagation::Background };
    world.delete(&JOBS, NAME, Some(propagation)).await;
    complete(&mut world, &mut witness, &mut ledger).await;
    let left: Vec<_> =
        ["Job", "Pod"].iter().flat_map(|kind| witness.all(kind)).map(|one| one.key()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[tokio::test]
async fn whatever_happens_each_end_is_counted_once() {
    for seed in seeds(12) {
        println!("seed {seed}");
        story(seed).await;
    }
}
