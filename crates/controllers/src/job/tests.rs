//! The decisions against a model of the API server, the kubelets and a cache of pods that lags: whatever happens in
//! whatever order, and wherever the controller crashes, each pod is counted once and the Job comes to its end.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::backoff::Record;
use super::body;
use super::plan::{Act, Snapshot, View};
use super::track::{Acted, Tracked, track};
use super::types::{Job, JobStatus, index, is_tracked};
use crate::pods::{Condition, Pod};

/// A small deterministic source of chance (xorshift64*), so that a failure names its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// Where the controller's process ends in the middle of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    Never,
    AfterPods,
    AfterStatus,
    AmongFinalizers,
}

#[derive(Default)]
struct Model {
    seed: u64,
    job: Job,
    pods: BTreeMap<String, Pod>,
    now: Timestamp,
    made: u64,
    /// The controller's cache of pods, and the changes that it does not know yet.
    seen: BTreeMap<String, Pod>,
    coming: VecDeque<(String, Option<Pod>)>,
    /// The controller's memory.
    creations: usize,
    deletions: HashSet<String>,
    removed: HashSet<String>,
    failures: Record,
    /// Everybody who ever was counted.
    counted: BTreeSet<String>,
    said: Vec<String>,
}

fn job(spec: Value) -> Job {
    let mut job: Job = serde_json::from_value(json!({
        "metadata": { "name": "sum", "namespace": "ns", "uid": "j" },
        "spec": { "parallelism": 1, "completions": 1, "backoffLimit": 6, "template": { "spec": { "restartPolicy": "Never" } } },
    }))
    .unwrap();
    let mut whole =
        json!({ "parallelism": 1, "completions": 1, "backoffLimit": 6, "template": job.spec.template });
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    job.spec = serde_json::from_value(whole).unwrap();
    job
}

impl Model {
    fn new(seed: u64, job: Job) -> Self {
        Self { seed, job, now: "2024-01-01T00:00:00Z".parse().unwrap(), ..Self::default() }
    }

    fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// Somebody changes a pod; it goes when it has ended, was deleted and nobody holds it.
    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Pod)) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        change(pod);
        let goes = pod.metadata.is_terminating() && pod.is_finished() && pod.metadata.finalizers.is_empty();
        let event = if goes { None } else { Some(pod.clone()) };
        if goes {
            self.pods.remove(uid);
        }
        self.coming.push_back((uid.to_owned(), event));
    }

    fn delete(&mut self, uid: &str) {
        let now = self.now;
        self.change(uid, |pod| {
            pod.metadata.deletion_timestamp.get_or_insert(now);
        });
    }

    fn end(&mut self, uid: &str, phase: &str) {
        self.end_with(uid, phase, i64::from(phase == "Failed"));
    }

    fn end_with(&mut self, uid: &str, phase: &str, exit_code: i64) {
        let now = self.now;
        self.change(uid, |pod| {
            pod.status.phase = phase.into();
            pod.status.conditions.clear();
            pod.status.container_statuses = serde_json::from_value(json!([
                { "name": "main", "state": { "terminated": { "exitCode": exit_code, "finishedAt": now } } }]))
            .unwrap();
        });
    }

    fn get_ready(&mut self, uid: &str) {
        let ready = Condition {
            r#type: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(self.now),
            ..Condition::default()
        };
        self.change(uid, |pod| {
            pod.status.phase = "Running".into();
            pod.status.conditions = vec![ready];
        });
    }

    /// The cache learns of one change.
    fn learn(&mut self) -> bool {
        let Some((uid, pod)) = self.coming.pop_front() else { return false };
        match pod {
            None => {
                self.deletions.remove(&uid);
                self.seen.remove(&uid);
            }
            Some(pod) => {
                if pod.metadata.is_terminating() {
                    self.deletions.remove(&uid);
                } else if !self.seen.contains_key(&uid) {
                    self.creations = self.creations.saturating_sub(1);
                }
                self.seen.insert(uid, pod);
            }
        }
        true
    }

    fn learn_all(&mut self) {
        while self.learn() {}
    }

    /// The controller begins anew: it remembers nothing and reads everything.
    fn restart(&mut self) {
        self.coming.clear();
        self.seen.clone_from(&self.pods);
        self.creations = 0;
        self.deletions.clear();
        self.removed.clear();
        self.failures = Record::default();
    }

    /// One pass; gives how long the controller wants to wait.
    fn pass(&mut self, crash: Crash) -> Option<Duration> {
        if self.job.status.finished().is_some() {
            return None;
        }
        let job = self.job.clone();
        let mut pods: Vec<Pod> = self.seen.values().cloned().collect();
        pods.sort_by_key(index);
        let shown: HashSet<String> =
            pods.iter().filter(|pod| is_tracked(&pod.metadata)).map(|pod| pod.metadata.uid.clone()).collect();
        self.removed.retain(|uid| shown.contains(uid));
        let removed = self.removed.clone();
        let may_act = self.creations == 0 && self.deletions.is_empty();
        let view = View::new(Snapshot {
            job: &job,
            pods: &pods,
            may_act,
            removed: &removed,
            backoff: self.failures,
            now: self.now,
        });
        let act = view.act();
        let wait = if let Act::Wait(wait) = act { Some(wait) } else { None };
        let acted = self.act(&view, act);
        if crash == Crash::AfterPods {
            self.restart();
            return None;
        }
        let tracked = track(&view, acted);
        self.write_down(&view, tracked, crash);
        wait.into_iter().chain(view.until_deadline().filter(|left| !left.is_zero())).min()
    }

    fn act(&mut self, view: &View<'_>, act: Act) -> Acted {
        let ready = |uids: &[String]| {
            let known =
                |uid: &String| view.active.iter().any(|pod| pod.metadata.uid == *uid && pod.is_ready());
            uids.iter().filter(|uid| known(uid)).count() as i64
        };
        match act {
            Act::Nothing | Act::Wait(_) => Acted::default(),
            Act::End(uids) => {
                uids.iter().for_each(|uid| self.delete(uid));
                Acted { deleted: uids.len() as i64, deleted_ready: ready(&uids), created: 0 }
            }
            Act::Remove(uids) => {
                for uid in &uids {
                    self.change(uid, |pod| pod.metadata.finalizers.clear());
                    if self.pods.get(uid).is_some_and(|pod| !pod.metadata.is_terminating()) {
                        self.deletions.insert(uid.clone());
                    }
                    self.delete(uid);
                }
                Acted { deleted: uids.len() as i64, deleted_ready: ready(&uids), created: 0 }
            }
            Act::Create(new) => {
                let template = body::template(&self.job);
                for new in &new {
                    let mut pod: Pod =
                        serde_json::from_value(body::pod(&template, &self.job.metadata, new)).unwrap();
                    self.made += 1;
                    let uid = format!("p{:05}", self.made);
                    pod.metadata.uid.clone_from(&uid);
                    pod.metadata.name.clone_from(&uid);
                    pod.metadata.creation_timestamp = Some(self.now);
                    pod.status.phase = "Pending".into();
                    self.pods.insert(uid.clone(), pod.clone());
                    self.coming.push_back((uid, Some(pod)));
                    self.creations += 1;
                }
                self.check_size();
                Acted { created: new.len() as i64, ..Acted::default() }
            }
        }
    }

    fn write_down(&mut self, view: &View<'_>, tracked: Tracked<'_>, crash: Crash) {
        let first = tracked.status.clone();
        if first != self.job.status {
            self.write(first.clone());
            self.said.extend(tracked.events.iter().map(|(_, reason, _)| reason.clone()));
            self.failures = view.backoff;
        }
        if crash == Crash::AfterStatus {
            return self.restart();
        }
        let uids: Vec<String> = tracked.counted.iter().map(|pod| pod.metadata.uid.clone()).collect();
        for (place, uid) in uids.iter().enumerate() {
            if crash == Crash::AmongFinalizers && place * 2 >= uids.len() {
                return self.restart();
            }
            self.change(uid, |pod| pod.metadata.finalizers.clear());
            self.removed.insert(uid.clone());
        }
        let (last, events) = tracked.settle(&view.at.job.clone(), &HashSet::new(), self.now);
        if last != first {
            self.write(last);
            self.said.extend(events.into_iter().map(|(_, reason, _)| reason));
        }
    }

    /// The status changes: nobody is counted twice, and nobody who was counted is lost.
    fn write(&mut self, next: JobStatus) {
        let seed = self.seed;
        let held = std::mem::replace(&mut self.job.status, next);
        let next = &self.job.status;
        let uids = |status: &JobStatus| {
            let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
            [uncounted.succeeded, uncounted.failed].concat()
        };
        let before: HashSet<String> = uids(&held).into_iter().collect();
        let mut new = [0, 0];
        let lists = next.uncounted_terminated_pods.clone().unwrap_or_default();
        for (list, new) in [lists.succeeded, lists.failed].into_iter().zip(&mut new) {
            for uid in list.into_iter().filter(|uid| !before.contains(uid)) {
                assert!(self.counted.insert(uid.clone()), "seed {seed}: {uid} is counted twice");
                *new += 1;
            }
        }
        let totals = |status: &JobStatus| {
            let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
            let succeeded =
                if self.job.is_indexed() { 0 } else { status.succeeded + uncounted.succeeded.len() as i64 };
            [succeeded, status.failed + uncounted.failed.len() as i64]
        };
        let (old, now) = (totals(&held), totals(next));
        assert_eq!([old[0] + new[0], old[1] + new[1]], now, "seed {seed}: a count came from nowhere");
        assert!(next.ready <= Some(next.active), "seed {seed}: {next:?}");
        if next.finished().is_some() {
            let open = |pod: &Pod| !pod.is_finished() || is_tracked(&pod.metadata);
            let left: Vec<_> = self.pods.values().filter(|pod| open(pod)).collect();
            assert!(left.is_empty(), "seed {seed}: it has ended and {left:?} has not");
            assert_eq!((next.active, next.terminating), (0, Some(0)), "seed {seed}");
            assert!(next.completion_time >= next.start_time || next.holds("Failed").is_some(), "seed {seed}");
        }
    }

    /// Never are there more pods than may be, nor two of one index.
    fn check_size(&self) {
        let active: Vec<&Pod> = self.pods.values().filter(|pod| pod.is_active()).collect();
        let leaving =
            self.pods.values().filter(|pod| pod.metadata.is_terminating() && !pod.is_finished()).count();
        let taken = active.len() + if self.job.waits_for_the_end() { leaving } else { 0 };
        assert!(taken as i64 <= self.job.parallelism(), "seed {}: {taken} pods", self.seed);
        if self.job.is_indexed() {
            let indexes: BTreeSet<_> = active.iter().map(|pod| index(pod)).collect();
            assert_eq!(indexes.len(), active.len(), "seed {}: two pods of one index", self.seed);
        }
    }

    /// The kubelets do one thing. `fails`: one in so many pods does.
    fn live(&mut self, chance: &mut Chance, fails: u64) {
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        if uids.is_empty() {
            return;
        }
        let uid = &uids[usize::try_from(chance.below(uids.len() as u64)).unwrap()];
        let pod = &self.pods[uid];
        if pod.is_finished() {
            return;
        }
        match pod.status.phase.as_str() {
            _ if pod.metadata.is_terminating() => self.end(uid, "Failed"),
            "Pending" => self.get_ready(uid),
            _ if chance.one_in(fails) => self.end(uid, "Failed"),
            _ => self.end(uid, "Succeeded"),
        }
    }

    fn active(&self) -> Vec<String> {
        self.pods.values().filter(|pod| pod.is_active()).map(|pod| pod.metadata.uid.clone()).collect()
    }

    /// Everything is seen and done that can be without anybody doing more.
    fn quiet(&mut self) -> Option<Duration> {
        for _ in 0..50 {
            self.learn_all();
            let before = (self.job.status.clone(), self.made);
            let wait = self.pass(Crash::Never);
            self.learn_all();
            if (self.job.status.clone(), self.made) == before {
                return wait;
            }
        }
        panic!("it does not come to rest: {:?}", self.job.status);
    }

    fn ended(&self) -> String {
        self.job.status.finished().map_or_else(String::new, |end| format!("{} {}", end.r#type, end.reason))
    }
}

fn random_job(chance: &mut Chance) -> Job {
    let completions = 1 + chance.below(12);
    let mut spec =
        json!({ "completions": completions, "parallelism": 1 + chance.below(6), "backoffLimit": 1000 });
    match chance.below(4) {
        0 => spec["completionMode"] = "Indexed".into(),
        1 => {
            spec["completionMode"] = "Indexed".into();
            spec["backoffLimitPerIndex"] = chance.below(4).into();
        }
        2 => spec["completions"] = Value::Null,
        _ => {}
    }
    if chance.one_in(2) {
        spec["podReplacementPolicy"] = "Failed".into();
    }
    if chance.one_in(4) {
        spec["backoffLimit"] = chance.below(5).into();
    }
    if chance.one_in(4) {
        spec["podFailurePolicy"] = json!({ "rules": [
            { "action": "Ignore", "onExitCodes": { "operator": "In", "values": [1] } }] });
    }
    job(spec)
}

#[test]
fn every_pod_is_counted_once_whatever_happens() {
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 1..600_u64 {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut model = Model::new(seed, random_job(&mut chance));
        for round in 0..3000 {
            if model.job.status.finished().is_some() {
                break;
            }
            // After some time nobody disturbs it any more, so that it can come to its end.
            disturb(&mut model, &mut chance, round < 300);
        }
        let end = model.ended();
        assert!(!end.is_empty(), "seed {seed}: it does not end: {:?} {:?}", model.job, model.pods);
        let (spec, status) = (&model.job.spec, &model.job.status);
        if end.starts_with("Complete") {
            let wanted = spec.completions.unwrap_or(1);
            assert!(status.succeeded >= wanted, "seed {seed}: {} of {wanted}", status.succeeded);
            if model.job.is_indexed() {
                assert_eq!(super::indexes::Indexes::parse(&status.completed_indexes, 99).len(), wanted);
                assert_eq!(status.succeeded, wanted);
            }
        } else {
            let failed = status.failed > model.job.backoff_limit()
                || status.failed_indexes.as_deref().is_some_and(|list| !list.is_empty());
            assert!(failed, "seed {seed}: {status:?}");
        }
        *ends.entry(end).or_default() += 1;
    }
    for end in ["Complete CompletionsReached", "Failed BackoffLimitExceeded", "Failed FailedIndexes"] {
        assert!(ends.get(end).is_some_and(|count| *count > 10), "{ends:?}");
    }
}

/// One thing that happens.
fn disturb(model: &mut Model, chance: &mut Chance, wild: bool) {
    match chance.below(if wild { 16 } else { 10 }) {
        0..4 => model.live(chance, 4),
        4..6 => {
            model.learn();
        }
        6..8 => {
            model.pass(Crash::Never);
        }
        8 => model.wait(chance.below(700).try_into().unwrap()),
        9 => model.learn_all(),
        10 => {
            model.pass(
                [Crash::AfterPods, Crash::AfterStatus, Crash::AmongFinalizers][chance.below(3) as usize],
            );
        }
        11 => model.restart(),
        12 => {
            let uids: Vec<String> = model.pods.keys().cloned().collect();
            if !uids.is_empty() {
                model.delete(&uids[chance.below(uids.len() as u64) as usize]);
            }
        }
        13 => model.job.spec.parallelism = Some(1 + i64::try_from(chance.below(6)).unwrap()),
        14 => model.job.spec.suspend = true,
        _ => model.job.spec.suspend = false,
    }
    if !wild {
        model.job.spec.suspend = false;
    }
}

#[test]
fn failures_double_the_pause_and_the_limit_ends_it() {
    let mut model = Model::new(0, job(json!({ "backoffLimit": 3 })));
    for pause in [10, 20, 40] {
        model.quiet();
        let pod = model.active().pop().unwrap();
        model.end(&pod, "Failed");
        model.learn_all();
        assert_eq!(model.quiet(), Some(Duration::from_secs(pause)));
        model.wait(i64::try_from(pause).unwrap() - 1);
        assert_eq!((model.quiet(), model.active().len()), (Some(Duration::from_secs(1)), 0));
        model.wait(1);
        model.quiet();
        assert_eq!(model.active().len(), 1);
    }
    let pod = model.active().pop().unwrap();
    model.end(&pod, "Failed");
    model.quiet();
    assert_eq!(model.ended(), "Failed BackoffLimitExceeded");
    let kinds: Vec<_> = model.job.status.conditions.iter().map(|held| held.r#type.as_str()).collect();
    assert_eq!((kinds, model.job.status.failed), (vec!["FailureTarget", "Failed"], 4));
    assert_eq!(model.said, ["BackoffLimitExceeded"]);
}

#[test]
fn a_suspended_job_has_no_pods_and_no_time() {
    let mut model =
        Model::new(0, job(json!({ "parallelism": 3, "completions": 3, "activeDeadlineSeconds": 100 })));
    assert_eq!(model.quiet(), Some(Duration::from_secs(100)));
    let first = model.active().remove(0);
    model.end(&first, "Succeeded");
    model.wait(60);
    model.job.spec.suspend = true;
    model.quiet();
    let status = &model.job.status;
    assert_eq!((status.active, status.terminating, status.succeeded, status.failed), (0, Some(2), 1, 0));
    assert_eq!(
        (status.start_time, status.holds("Suspended").unwrap().reason.as_str()),
        (None, "JobSuspended")
    );
    for uid in model.pods.keys().cloned().collect::<Vec<_>>() {
        model.end(&uid, "Failed");
    }
    model.wait(600);
    assert_eq!(model.quiet(), None);
    assert_eq!((model.job.status.failed, model.job.status.terminating), (0, Some(0)));
    model.job.spec.suspend = false;
    assert_eq!(model.quiet(), Some(Duration::from_secs(100)));
    assert_eq!((model.active().len(), model.job.status.start_time), (2, Some(model.now)));
    model.wait(100);
    model.quiet();
    // It is not at its end before its pods are.
    assert_eq!(model.job.status.holds("FailureTarget").unwrap().reason, "DeadlineExceeded");
    assert_eq!((model.ended(), model.job.status.terminating), (String::new(), Some(2)));
    for uid in model.pods.keys().cloned().collect::<Vec<_>>() {
        model.end(&uid, "Failed");
    }
    model.quiet();
    assert_eq!(model.ended(), "Failed DeadlineExceeded");
    assert_eq!((model.job.status.succeeded, model.job.status.failed), (1, 2));
    assert_eq!(model.said, ["Suspended", "Resumed", "DeadlineExceeded"]);
}

#[test]
fn a_replacement_comes_at_once_or_at_the_end() {
    for (policy, made) in [("TerminatingOrFailed", 2), ("Failed", 1)] {
        let mut model = Model::new(0, job(json!({ "podReplacementPolicy": policy })));
        model.quiet();
        let pod = model.active().pop().unwrap();
        model.delete(&pod);
        model.quiet();
        model.wait(60);
        model.quiet();
        assert_eq!((model.made, model.job.status.failed), (made, i64::from(made == 2)), "{policy}");
        model.end(&pod, "Failed");
        model.quiet();
        model.wait(60);
        model.quiet();
        assert_eq!((model.made, model.job.status.failed), (2, 1), "{policy}");
    }
}

#[test]
fn an_index_has_its_own_limit_and_its_own_pause() {
    let spec = json!({ "completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1,
        "backoffLimit": 100 });
    let mut model = Model::new(0, job(spec));
    model.quiet();
    let of = |model: &Model, wanted: i64| {
        let mut active = model.pods.values().filter(|pod| pod.is_active() && index(pod) == Some(wanted));
        active.next().map(|pod| pod.metadata.uid.clone()).unwrap()
    };
    let first = of(&model, 1);
    model.end(&first, "Failed");
    assert_eq!(model.quiet(), Some(Duration::from_secs(10)));
    // The failed pod is held until its successor knows of it.
    assert!(is_tracked(&model.pods[&first].metadata));
    model.wait(10);
    model.quiet();
    assert!(!is_tracked(&model.pods[&first].metadata));
    let second = of(&model, 1);
    assert_eq!(model.pods[&second].metadata.annotations[super::types::FAILURES], "1");
    model.end(&second, "Failed");
    model.quiet();
    assert_eq!(model.job.status.failed_indexes.as_deref(), Some("1"));
    assert_eq!((model.ended(), model.active().len()), (String::new(), 1));
    let last = of(&model, 0);
    model.end(&last, "Succeeded");
    model.quiet();
    assert_eq!(
        (model.ended(), model.job.status.completed_indexes.as_str()),
        ("Failed FailedIndexes".into(), "0")
    );
}

#[test]
fn too_many_failed_indexes_end_it() {
    let spec = json!({ "completionMode": "Indexed", "completions": 5, "parallelism": 5, "backoffLimitPerIndex": 0,
        "maxFailedIndexes": 1 });
    let mut model = Model::new(0, job(spec));
    model.quiet();
    let active = model.active();
    model.end(&active[1], "Failed");
    model.quiet();
    assert_eq!(model.ended(), "");
    model.end(&active[3], "Failed");
    model.quiet();
    let status = &model.job.status;
    assert_eq!(status.holds("FailureTarget").unwrap().reason, "MaxFailedIndexesExceeded");
    assert_eq!(status.failed_indexes.as_deref(), Some("1,3"));
}

#[test]
fn a_policy_says_what_a_failure_is_worth() {
    let rules = json!([
        { "action": "Ignore", "onExitCodes": { "operator": "In", "values": [7] } },
        { "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [8] } },
        { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [9] } },
    ]);
    let spec = json!({ "completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1,
        "backoffLimit": 100, "podFailurePolicy": { "rules": rules } });
    let mut model = Model::new(0, job(spec));
    model.quiet();
    let active = model.active();
    model.end_with(&active[0], "Failed", 7);
    model.end_with(&active[1], "Failed", 8);
    model.quiet();
    model.wait(10);
    model.quiet();
    assert_eq!((model.job.status.failed, model.job.status.failed_indexes.as_deref()), (1, Some("1")));
    let again = model.active().into_iter().find(|uid| index(&model.pods[uid]) == Some(0)).unwrap();
    let annotations = &model.pods[&again].metadata.annotations;
    assert_eq!(
        (annotations[super::types::FAILURES].as_str(), annotations[super::types::IGNORED_FAILURES].as_str()),
        ("0", "1")
    );
    model.end_with(&active[2], "Failed", 9);
    model.quiet();
    let target = model.job.status.holds("FailureTarget").unwrap();
    let why = format!(
        "Container main for pod ns/{} failed with exit code 9 matching FailJob rule at index 2",
        active[2]
    );
    assert_eq!((target.reason.as_str(), target.message.as_str()), ("PodFailurePolicy", why.as_str()));
}

#[test]
fn a_policy_of_success_ends_the_rest_without_counting_it() {
    let spec = json!({ "completionMode": "Indexed", "completions": 4, "parallelism": 4,
        "successPolicy": { "rules": [{ "succeededIndexes": "0" }] } });
    let mut model = Model::new(0, job(spec));
    model.quiet();
    let active = model.active();
    model.end(&active[0], "Succeeded");
    model.quiet();
    assert_eq!(model.job.status.holds("SuccessCriteriaMet").unwrap().message, "Matched rules at index 0");
    assert_eq!((model.ended(), model.job.status.terminating), (String::new(), Some(3)));
    active[1..].iter().for_each(|uid| model.end(uid, "Failed"));
    model.quiet();
    assert_eq!((model.ended(), model.job.status.failed), ("Complete SuccessPolicy".into(), 0));
    assert_eq!(model.job.status.completed_indexes, "0");
}

#[test]
fn an_indexed_job_grows_and_shrinks() {
    let mut model =
        Model::new(0, job(json!({ "completionMode": "Indexed", "completions": 4, "parallelism": 4 })));
    model.quiet();
    let active = model.active();
    model.end(&active[3], "Succeeded");
    model.quiet();
    assert_eq!((model.job.status.succeeded, model.job.status.completed_indexes.as_str()), (1, "3"));
    (model.job.spec.completions, model.job.spec.parallelism) = (Some(2), Some(2));
    model.quiet();
    assert_eq!((model.active(), model.job.status.succeeded), (active[..2].to_vec(), 0));
    (model.job.spec.completions, model.job.spec.parallelism) = (Some(6), Some(6));
    model.quiet();
    let indexes: BTreeSet<_> = model.active().iter().map(|uid| index(&model.pods[uid])).collect();
    assert_eq!(indexes, (0..6).map(Some).collect());
}

#[test]
fn restarts_in_place_count_towards_the_limit() {
    let template = json!({ "spec": { "restartPolicy": "OnFailure" } });
    let mut model = Model::new(0, job(json!({ "backoffLimit": 2, "template": template })));
    model.quiet();
    let pod = model.active().pop().unwrap();
    model.get_ready(&pod);
    for (restarts, reason) in [(1, None), (2, Some("BackoffLimitExceeded"))] {
        model.change(&pod, |pod| {
            pod.status.container_statuses =
                serde_json::from_value(json!([{ "restartCount": restarts }])).unwrap();
        });
        model.quiet();
        assert_eq!(model.job.status.holds("FailureTarget").map(|held| held.reason.as_str()), reason);
    }
}

#[test]
fn many_pods_are_counted_in_portions() {
    let mut model = Model::new(0, job(json!({ "completions": 1200, "parallelism": 1200 })));
    model.quiet();
    assert_eq!(model.active().len(), 1200);
    model.active().iter().for_each(|uid| model.end(uid, "Succeeded"));
    model.learn_all();
    model.pass(Crash::AfterStatus);
    assert_eq!(model.job.status.uncounted_terminated_pods.as_ref().unwrap().succeeded.len(), 500);
    model.quiet();
    assert_eq!((model.ended(), model.job.status.succeeded), ("Complete CompletionsReached".into(), 1200));
}

#[test]
fn a_clock_that_goes_back_spoils_nothing() {
    let mut model = Model::new(0, job(json!({ "activeDeadlineSeconds": 60 })));
    model.quiet();
    let pod = model.active().pop().unwrap();
    model.end(&pod, "Failed");
    model.wait(-3600);
    assert_eq!(model.quiet(), Some(Duration::from_secs(10)));
    model.wait(3610);
    model.quiet();
    let pod = model.active().pop().unwrap();
    model.end(&pod, "Succeeded");
    model.wait(-7200);
    model.quiet();
    assert_eq!(
        (model.ended(), model.job.status.completion_time),
        ("Complete CompletionsReached".into(), model.job.status.start_time)
    );
}
