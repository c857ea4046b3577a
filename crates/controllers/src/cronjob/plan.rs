//! Decides what a CronJob's Jobs mean for it, which of them go, and whether a new one comes. Source:
//! `cronjob_controllerv2.go`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use reconcile::{EventType, kinds};
use serde_json::{Map, Value, json};

use super::timing::Clockwork;
use super::types::{ActiveJob, CronJob, CronJobStatus, SCHEDULED};
use crate::context::controller_ref;
use crate::job::Job;

/// Type, reason and message of an event.
pub(super) type Event = (EventType, &'static str, String);

fn note(reason: &'static str, message: String) -> Event {
    (EventType::Normal, reason, message)
}

fn warning(reason: &'static str, message: String) -> Event {
    (EventType::Warning, reason, message)
}

/// What its Jobs mean for a CronJob.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) status: CronJobStatus,
    pub(super) events: Vec<Event>,
    /// Jobs that run though the status does not know them.
    pub(super) unexpected: Vec<String>,
    /// Uids of Jobs that the status knows and nobody sees.
    pub(super) missing: Vec<String>,
}

/// Compares the status with the Jobs.
pub(super) fn observe(cron: &CronJob, jobs: &[Job]) -> Observed {
    let mut seen = Observed { status: cron.status.clone(), ..Observed::default() };
    for job in jobs {
        let (name, uid) = (&job.metadata.name, &job.metadata.uid);
        let known = seen.status.is_active(uid);
        let moment = moment(cron, job);
        seen.status.last_schedule_time = seen.status.last_schedule_time.max(moment);
        let Some(end) = job.status.finished() else {
            if !known {
                seen.unexpected.push(name.clone());
                // Of one that was made before a crash the status does not know, and the next one would run beside it
                // under any policy.
                seen.status.active.extend(moment.map(|_| ActiveJob::of(&job.metadata)));
            }
            continue;
        };
        if known {
            seen.status.active.retain(|active| active.uid != *uid);
            let message = format!("Saw completed job: {name}, condition: {}", end.r#type);
            seen.events.push(note("SawCompletedJob", message));
        }
        if end.r#type == "Complete" {
            let last = &mut seen.status.last_successful_time;
            *last = (*last).max(job.status.completion_time);
        }
    }
    let there: HashSet<&String> = jobs.iter().map(|job| &job.metadata.uid).collect();
    let gone = seen.status.active.iter().filter(|active| !there.contains(&active.uid));
    seen.missing = gone.map(|active| active.uid.clone()).collect();
    seen
}

/// The moment for which a Job was made. Jobs that users made from the CronJob have none.
fn moment(cron: &CronJob, job: &Job) -> Option<Timestamp> {
    let told = job.metadata.annotations.get(SCHEDULED).and_then(|text| text.parse::<Timestamp>().ok());
    told.filter(|at| job_name(cron, *at) == job.metadata.name)
}

/// The ended Jobs that are too many, by index: the oldest of those that succeeded and of those that failed. One of which
/// the stored status does not tell everything stays: without both its moment would come again.
pub(super) fn too_old(cron: &CronJob, jobs: &[Job]) -> Vec<usize> {
    let limits = [
        ("Complete", cron.spec.successful_jobs_history_limit),
        ("Failed", cron.spec.failed_jobs_history_limit),
    ];
    let mut old = Vec::new();
    for (end, limit) in limits {
        let Some(limit) = limit else { continue };
        let ended_so = |at: &usize| {
            let job = &jobs[*at];
            !job.metadata.is_terminating()
                && job.status.finished().is_some_and(|held| held.r#type == end)
                && is_told(cron, job)
        };
        let mut ended: Vec<usize> = (0..jobs.len()).filter(ended_so).collect();
        ended.sort_by(|a, b| by_start(&jobs[*a], &jobs[*b]));
        ended.truncate(ended.len().saturating_sub(limit));
        old.extend(ended);
    }
    old
}

/// Whether the stored status tells what an ended Job does.
fn is_told(cron: &CronJob, job: &Job) -> bool {
    let status = &cron.status;
    let succeeded = job.status.finished().is_some_and(|end| end.r#type == "Complete");
    status.last_schedule_time >= moment(cron, job)
        && !status.is_active(&job.metadata.uid)
        && (!succeeded || status.last_successful_time >= job.status.completion_time)
}

/// Those that never began are the newest. Source: `byJobStartTime`.
fn by_start(a: &Job, b: &Job) -> Ordering {
    let never = |job: &Job| job.status.start_time.is_none();
    (never(a), a.status.start_time, &a.metadata.name).cmp(&(never(b), b.status.start_time, &b.metadata.name))
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) events: Vec<Event>,
    /// The moment for which a Job is to be made.
    pub(super) start: Option<Timestamp>,
    /// Whether the Jobs that run go first.
    pub(super) replace: bool,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

/// What is due now, with this status.
pub(super) fn due(cron: &CronJob, now: Timestamp) -> Due {
    let mut due = Due { events: Vec::new(), start: None, replace: false, again: None };
    if cron.metadata.is_terminating() {
        return due;
    }
    let clockwork = match Clockwork::of(cron) {
        Ok(clockwork) => clockwork,
        // What is suspended needs no schedule, but an unknown time zone is told all the same.
        Err((reason, message)) => {
            if !cron.spec.suspend || reason == "UnknownTimeZone" {
                due.events.push(warning(reason, message));
            }
            return due;
        }
    };
    if cron.spec.suspend {
        return due;
    }
    let schedule = &cron.spec.schedule;
    if schedule.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {schedule:?} is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
        );
        due.events.push(warning("UnsupportedSchedule", message));
    }
    let missed = match clockwork.missed(cron, true, now) {
        Ok(missed) => missed,
        Err(error) => {
            due.events.push(warning("InvalidSchedule", format!("invalid schedule: {schedule} : {error}")));
            return due;
        }
    };
    due.again = clockwork.until_next(cron, now);
    let Some(at) = missed.latest else { return due };
    if missed.many {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        due.events.push(warning("TooManyMissedTimes", message.into()));
    }
    decide(cron, at, now, &mut due);
    due
}

/// Whether a Job is made for a moment.
fn decide(cron: &CronJob, at: Timestamp, now: Timestamp, due: &mut Due) {
    let late = now.duration_since(at);
    if cron.spec.starting_deadline_seconds.is_some_and(|most| late > jiff::SignedDuration::from_secs(most)) {
        let moment = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        due.events.push(warning("MissSchedule", format!("Missed scheduled time to start a job: {moment}")));
        return;
    }
    let name = job_name(cron, at);
    let is_done = cron.status.last_schedule_time == Some(at)
        || cron.status.active.iter().any(|active| active.name == name);
    if is_done {
        return;
    }
    if cron.spec.concurrency_policy == "Forbid" && !cron.status.active.is_empty() {
        let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
        due.events.push(note("JobAlreadyActive", message.into()));
        return;
    }
    due.replace = cron.spec.concurrency_policy == "Replace";
    due.start = Some(at);
}

/// The name is a lock: for one moment one Job is made, however often it is tried. Source: `getJobName`.
pub(super) fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name, at.as_second() / 60)
}

/// The Job for a moment.
pub(super) fn job_body(cron: &CronJob, at: Timestamp) -> Value {
    let template = &cron.spec.job_template;
    let mut metadata = Map::new();
    metadata.insert("name".into(), job_name(cron, at).into());
    metadata.insert("namespace".into(), cron.metadata.namespace.as_str().into());
    if let Some(labels) = template["metadata"].get("labels").filter(|labels| !labels.is_null()) {
        metadata.insert("labels".into(), labels.clone());
    }
    let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert(SCHEDULED.into(), Clockwork::spell(cron, at).into());
    metadata.insert("annotations".into(), annotations.into());
    metadata.insert("ownerReferences".into(), json!([controller_ref(&kinds::CRON_JOBS, &cron.metadata)]));
    json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"] })
}
