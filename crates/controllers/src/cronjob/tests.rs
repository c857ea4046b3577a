//! The decisions against a model of Jobs, over weeks of a clock that jumps and a controller that crashes: for each moment
//! there is one Job at most, policies hold, and nothing is looked at more often than there is a reason to.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::plan::{due, job_body, job_name, observe, too_old};
use super::types::{ActiveJob, CronJob};
use crate::job::{Job, JobCondition};

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

struct Model {
    seed: u64,
    cron: CronJob,
    jobs: BTreeMap<String, Job>,
    now: Timestamp,
    /// All that were ever made, by name, and when.
    made: BTreeMap<String, Timestamp>,
    passes: usize,
    said: BTreeMap<String, usize>,
}

fn cron(spec: Value) -> CronJob {
    let mut whole = json!({ "schedule": "*/10 * * * *", "concurrencyPolicy": "Allow",
        "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
        "jobTemplate": { "metadata": { "labels": { "a": "b" } }, "spec": { "completions": 1 } } });
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    let metadata =
        json!({ "name": "tick", "namespace": "ns", "uid": "c", "creationTimestamp": "2024-01-01T00:00:30Z" });
    serde_json::from_value(json!({ "metadata": metadata, "spec": whole })).unwrap()
}

impl Model {
    fn new(seed: u64, cron: CronJob) -> Self {
        let now = cron.metadata.creation_timestamp.unwrap();
        let (jobs, made, said) = Default::default();
        Self { seed, cron, jobs, now, made, passes: 0, said }
    }

    fn say(&mut self, reason: &str) {
        *self.said.entry(reason.to_owned()).or_default() += 1;
    }

    fn said(&self, reason: &str) -> usize {
        self.said.get(reason).copied().unwrap_or(0)
    }

    /// One pass; gives when the controller wants to look again. In a crash the status is not written.
    fn pass(&mut self, crash: bool) -> Option<Duration> {
        self.passes += 1;
        let jobs: Vec<Job> = self.jobs.values().cloned().collect();
        let seen = observe(&self.cron, &jobs);
        let mut cron = self.cron.clone();
        cron.status = seen.status;
        seen.events.iter().for_each(|(_, reason, _)| self.say(reason));
        seen.unexpected.iter().for_each(|_| self.say("UnexpectedJob"));
        cron.status.active.retain(|active| !seen.missing.contains(&active.uid));
        for at in too_old(&self.cron, &jobs) {
            self.jobs.remove(&jobs[at].metadata.name);
        }
        let due_now = due(&cron, self.now);
        due_now.events.iter().for_each(|(_, reason, _)| self.say(reason));
        let mut again = due_now.again;
        if let Some(at) = due_now.start {
            if due_now.replace {
                for active in std::mem::take(&mut cron.status.active) {
                    self.jobs.remove(&active.name);
                }
            }
            let job = self.create(&cron, at);
            if job.status.finished().is_none() && !cron.status.is_active(&job.metadata.uid) {
                cron.status.active.push(ActiveJob::of(&job.metadata));
            }
            cron.status.last_schedule_time = Some(at);
            again = due(&cron, self.now).again;
        }
        if !crash {
            self.cron = cron;
        }
        self.check();
        again
    }

    fn create(&mut self, cron: &CronJob, at: Timestamp) -> Job {
        let name = job_name(cron, at);
        if let Some(held) = self.jobs.get(&name) {
            return held.clone();
        }
        let mut job: Job = serde_json::from_value(job_body(cron, at)).unwrap();
        job.metadata.uid = format!("{name}-{}", self.made.len());
        job.status.start_time = Some(self.now);
        let before = self.made.insert(name.clone(), self.now);
        assert!(before.is_none(), "seed {}: {name} is made again", self.seed);
        self.jobs.insert(name, job.clone());
        job
    }

    fn end(&mut self, name: &str, kind: &str) {
        let now = self.now;
        if let Some(job) = self.jobs.get_mut(name) {
            let end = JobCondition {
                r#type: kind.into(),
                status: "True".into(),
                last_transition_time: Some(now),
                ..JobCondition::default()
            };
            job.status.conditions.push(end);
            job.status.completion_time = Some(now).filter(|_| kind == "Complete");
        }
    }

    fn running(&self) -> Vec<String> {
        let runs = |job: &&Job| job.status.finished().is_none();
        self.jobs.values().filter(runs).map(|job| job.metadata.name.clone()).collect()
    }

    fn check(&self) {
        let (running, seed) = (self.running().len(), self.seed);
        if self.cron.spec.concurrency_policy != "Allow" {
            assert!(running <= 1, "seed {seed}: {running} at once");
        }
    }

    /// Sleeps until the next moment, in which some Jobs end.
    fn sleep(&mut self, wait: Duration, chance: &mut Chance) {
        assert!(wait >= Duration::from_millis(100), "seed {}: {wait:?}", self.seed);
        self.now += SignedDuration::try_from(wait).unwrap();
        for name in self.running() {
            match chance.below(6) {
                0 => self.end(&name, "Failed"),
                1 | 2 => self.end(&name, "Complete"),
                _ => continue,
            }
            self.pass(false);
        }
    }
}

#[test]
fn weeks_of_schedules_keep_their_promises() {
    for seed in 1..60_u64 {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let schedule = ["*/10 * * * *", "0 * * * *", "@every 17m", "30 6-16/4 * * 1-5", "* * * * *"]
            [chance.below(5) as usize];
        let policy = ["Allow", "Forbid", "Replace"][chance.below(3) as usize];
        let mut spec = json!({ "schedule": schedule, "concurrencyPolicy": policy });
        // Upstream counts the pause of `@every` from the horizon: with a deadline that is shorter it never comes.
        if chance.one_in(3) && !schedule.starts_with('@') {
            spec["startingDeadlineSeconds"] = (30 + chance.below(600)).into();
        }
        // Few of them: reading a time zone costs a test's build a millisecond.
        if seed % 20 == 0 {
            spec["timeZone"] = "America/New_York".into();
        }
        let mut model = Model::new(seed, cron(spec));
        let mut sleeps = 0;
        for _ in 0..150 {
            let crash = chance.one_in(10);
            let again = model.pass(crash);
            if crash {
                continue;
            }
            sleeps += 1;
            model.sleep(again.unwrap(), &mut chance);
            match chance.below(40) {
                0 => model.now += SignedDuration::from_hours(i64::try_from(chance.below(300)).unwrap()),
                1 => model.now -= SignedDuration::from_mins(i64::try_from(chance.below(90)).unwrap()),
                2 => {
                    let names = model.running();
                    names.iter().take(1).for_each(|name| drop(model.jobs.remove(name)));
                }
                _ => {}
            }
        }
        let ended = |kind: &str| {
            let of_kind = |job: &&Job| job.status.finished().is_some_and(|end| end.r#type == kind);
            model.jobs.values().filter(of_kind).count()
        };
        // One more may have ended since it was looked at last.
        assert!(ended("Complete") <= 4 && ended("Failed") <= 2, "seed {seed}: history grows");
        assert!(model.made.len() > 10, "seed {seed}: only {} in {sleeps} moments", model.made.len());
        // What began in the middle of nothing has a reason: a moment, an end, or a crash.
        assert!(model.passes <= sleeps + model.made.len() + 60, "seed {seed}: {} passes", model.passes);
    }
}

#[test]
fn each_policy_says_what_becomes_of_a_job_that_runs() {
    for (policy, running, last, said) in [("Allow", 3, 3, 0), ("Forbid", 1, 1, 2), ("Replace", 1, 3, 0)] {
        let mut model = Model::new(0, cron(json!({ "concurrencyPolicy": policy })));
        for minutes in [10, 20, 30] {
            model.now = "2024-01-01T00:00:00.1Z".parse().unwrap();
            model.now += SignedDuration::from_mins(minutes);
            model.pass(false);
        }
        assert_eq!((model.running().len(), model.said("JobAlreadyActive")), (running, said), "{policy}");
        let scheduled = model.cron.status.last_schedule_time.unwrap();
        assert_eq!(scheduled.as_second() / 600 % 144, last, "{policy}");
        assert_eq!(model.cron.status.active.len(), running);
    }
}

#[test]
fn a_job_knows_its_moment() {
    let cron = cron(json!({ "timeZone": "Europe/Berlin" }));
    let at = "2024-06-01T10:20:00Z".parse().unwrap();
    let body = job_body(&cron, at);
    assert_eq!(
        body["metadata"],
        json!({
            "name": "tick-28620620", "namespace": "ns", "labels": { "a": "b" },
            "annotations": { "batch.kubernetes.io/cronjob-scheduled-timestamp": "2024-06-01T12:20:00+02:00" },
            "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "c",
                "controller": true, "blockOwnerDeletion": true }],
        })
    );
    assert_eq!(body["spec"], json!({ "completions": 1 }));
}

#[test]
fn what_is_late_is_told() {
    let told = |spec: Value, now: &str| {
        let mut model = Model::new(0, cron(spec));
        model.now = now.parse().unwrap();
        let again = model.pass(false).unwrap();
        (model.said.keys().cloned().collect::<Vec<_>>(), model.made.len(), again.as_secs())
    };
    assert_eq!(told(json!({}), "2024-01-01T00:09:59Z"), (vec![], 0, 1));
    assert_eq!(told(json!({}), "2024-01-01T00:10:01Z"), (vec![], 1, 599));
    assert_eq!(told(json!({}), "2024-02-01T00:01:00Z"), (vec!["TooManyMissedTimes".into()], 1, 540));
    // The horizon is what is asked for: a moment at it is not yet missed, one before is not seen.
    let strict = json!({ "startingDeadlineSeconds": 20 });
    assert_eq!(told(strict.clone(), "2024-01-01T00:10:19.9Z").1, 1);
    assert_eq!(told(strict, "2024-01-01T00:10:21Z"), (vec![], 0, 579));
}

#[test]
fn bad_input_ends_in_an_event_and_no_loop() {
    for (spec, reason) in [
        (json!({ "schedule": "0 0 31 2 *" }), "InvalidSchedule"),
        (json!({ "schedule": "often" }), "UnparseableSchedule"),
        (json!({ "timeZone": "Mars/Olympus" }), "UnknownTimeZone"),
    ] {
        let mut model = Model::new(0, cron(spec));
        model.now += SignedDuration::from_hours(1);
        assert_eq!(model.pass(false), None, "{reason}");
        assert_eq!((model.said(reason), model.made.len()), (1, 0), "{reason}");
    }
    let mut model = Model::new(0, cron(json!({ "suspend": true, "schedule": "often" })));
    assert_eq!((model.pass(false), model.said.len()), (None, 0));
}

#[test]
fn what_was_made_before_a_crash_is_known_again() {
    let mut model = Model::new(0, cron(json!({ "concurrencyPolicy": "Forbid" })));
    model.now += SignedDuration::from_mins(10);
    model.pass(true);
    assert_eq!((model.running().len(), model.cron.status.active.len()), (1, 0));
    model.now += SignedDuration::from_mins(10);
    model.pass(false);
    assert_eq!((model.running().len(), model.said("UnexpectedJob")), (1, 1));
    // A Job that somebody made by hand is told, and is in nobody's way.
    let name = model.running().remove(0);
    model.end(&name, "Complete");
    model.pass(false);
    let mut by_hand = model.jobs[&name].clone();
    by_hand.metadata.name = "by-hand".into();
    by_hand.metadata.uid = "by-hand".into();
    by_hand.status.conditions.clear();
    model.jobs.insert("by-hand".into(), by_hand);
    model.cron.spec.concurrency_policy = "Allow".into();
    model.now += SignedDuration::from_mins(10);
    model.pass(false);
    // The one of 00:20, which had to wait, the one of 00:30, and that.
    assert_eq!((model.running().len(), model.cron.status.active.len()), (3, 2));
}

#[test]
fn the_end_of_a_job_is_noted() {
    let mut model = Model::new(0, cron(json!({})));
    model.now += SignedDuration::from_mins(10);
    model.pass(false);
    let name = model.running().remove(0);
    model.now += SignedDuration::from_mins(1);
    model.end(&name, "Complete");
    model.pass(false);
    let status = &model.cron.status;
    assert_eq!((status.active.len(), status.last_successful_time), (0, Some(model.now)));
    assert_eq!(model.said("SawCompletedJob"), 1);
    assert_eq!(model.cron.status.patch(&model.cron.metadata)["status"]["active"], Value::Null);
}

#[test]
fn a_moment_whose_job_runs_is_done() {
    let mut model = Model::new(0, cron(json!({})));
    model.now += SignedDuration::from_mins(10);
    model.pass(false);
    // Somebody has cut the status.
    model.cron.status.last_schedule_time = None;
    let due = due(&model.cron, model.now);
    assert_eq!((due.start, due.again.is_some()), (None, true));
}
