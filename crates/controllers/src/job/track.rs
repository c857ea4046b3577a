//! Counts the pods that have ended, exactly once each, in three steps that survive a crash between any two of them:
//! their uids are written into the status; then they lose their finalizers; then the counts take the place of the uids.
//! Source: `trackJobStatusAndRemoveFinalizers`.

use std::collections::HashSet;

use jiff::Timestamp;
use reconcile::EventType;

use super::plan::{View, stamp};
use super::policy;
use super::types::{Job, JobCondition, JobStatus};
use crate::pods::Pod;

/// So many uids are in the status at most. Source: `MaxUncountedPods`.
const UNCOUNTED_MAX: usize = 500;

/// Type, reason and message of an event.
pub(super) type Event = (EventType, String, String);

/// What became of the pods that were to be made or deleted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Acted {
    pub(super) created: i64,
    pub(super) deleted: i64,
    /// Of the deleted ones, those that were ready.
    pub(super) deleted_ready: i64,
}

/// The first two steps.
pub(super) struct Tracked<'a> {
    /// To be written first.
    pub(super) status: JobStatus,
    /// What is said when it is.
    pub(super) events: Vec<Event>,
    /// Then their finalizers go.
    pub(super) counted: Vec<&'a Pod>,
    /// What rules of the policy did with failed pods among them.
    pub(super) judged: Vec<&'a str>,
    /// Pods that keep a finalizer.
    keep: HashSet<String>,
    /// The condition with which the Job ends, once everything is counted.
    finish: Option<JobCondition>,
}

/// What to write before any finalizer goes, and whose finalizer goes then.
pub(super) fn track<'a>(view: &View<'a>, acted: Acted) -> Tracked<'a> {
    let job = view.at.job;
    let mut status = job.status.clone();
    let mut events = Vec::new();
    status.start_time = view.start_time;
    status.active = super::plan::len(&view.active) + acted.created - acted.deleted;
    status.ready = Some((view.ready - acted.deleted_ready).max(0));
    status.terminating = Some(view.terminating + acted.deleted);
    let mut finish = finish(view, acted, status.active);
    if finish.is_none() && view.is_managed() {
        suspend_or_resume(job, &mut status, &mut events, stamp(view.at.now));
    }
    let mut keep: HashSet<String> = view
        .at
        .pods
        .iter()
        .filter(|pod| view.at.is_uncounted(pod))
        .map(|pod| pod.metadata.uid.clone())
        .collect();
    count_without_finalizer(&mut status, &keep);
    let Ended { counted, judged, full } = ended(view, &mut status, finish.as_ref());
    for pod in &counted {
        keep.remove(&pod.metadata.uid);
    }
    if let Some(view) = &view.indexes {
        status.succeeded = view.succeeded.len();
        status.completed_indexes = view.succeeded.to_string();
        status.failed_indexes = view.failed.as_ref().map(ToString::to_string);
    }
    if let Some(condition) = finish.take() {
        finish = Some(begin_to_end(&mut status, condition, stamp(view.at.now)));
    }
    Tracked { status, events, counted, judged, keep, finish: finish.filter(|_| !full) }
}

/// The condition on the way to the end. A Job whose pods are not all seen yet, or could not be deleted, is not there.
fn finish(view: &View<'_>, acted: Acted, active: i64) -> Option<JobCondition> {
    let job = view.at.job;
    if view.finish.is_some() {
        return view.finish.clone().filter(|_| active == 0 && view.at.may_act && acted.created == 0);
    }
    let enough = match job.spec.completions {
        Some(completions) => view.succeeded >= completions,
        None => view.succeeded > 0,
    };
    let message = "Reached expected number of succeeded pods";
    (enough && active == 0).then(|| {
        JobCondition::new("SuccessCriteriaMet", "True", "CompletionsReached", message, stamp(view.at.now))
    })
}

fn suspend_or_resume(job: &Job, status: &mut JobStatus, events: &mut Vec<Event>, now: Timestamp) {
    let mut say =
        |reason: &str, message: &str| events.push((EventType::Normal, reason.into(), message.into()));
    if job.spec.suspend {
        if status.ensure(JobCondition::new("Suspended", "True", "JobSuspended", "Job suspended", now)) {
            say("Suspended", "Job suspended");
        }
        status.start_time = None;
    } else if status.ensure(JobCondition::new("Suspended", "False", "JobResumed", "Job resumed", now)) {
        say("Resumed", "Job resumed");
        // The deadline does not run while the Job waits.
        status.start_time = Some(now);
    }
}

/// What has ended.
struct Ended<'a> {
    /// The pods that are counted by this status and need their finalizers no more.
    counted: Vec<&'a Pod>,
    /// What rules of the policy did with failed pods among them.
    judged: Vec<&'a str>,
    /// Whether there would be more.
    full: bool,
}

fn ended<'a>(view: &View<'a>, status: &mut JobStatus, finish: Option<&JobCondition>) -> Ended<'a> {
    let job = view.at.job;
    let fails = finish.is_some_and(|finish| finish.r#type != "SuccessCriteriaMet");
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let mut known: HashSet<String> = uncounted.succeeded.iter().chain(&uncounted.failed).cloned().collect();
    let (mut counted, mut judged) = (Vec::new(), Vec::new());
    let mut indexes = 0;
    let mut full = false;
    for pod in view.at.pods.iter().filter(|pod| view.at.is_uncounted(pod)) {
        if !may_go(view, pod, finish.is_some()) {
            continue;
        }
        let is_known = known.contains(&pod.metadata.uid);
        if !is_known && indexes + uncounted.succeeded.len() + uncounted.failed.len() >= UNCOUNTED_MAX {
            // Those that the status names already make room.
            full = true;
            continue;
        }
        counted.push(pod);
        let index = job.index_of(pod);
        let is_new = (!job.is_indexed() || index.is_some()) && !is_known;
        if pod.status.phase == "Succeeded" {
            match index.filter(|_| job.is_indexed()) {
                // The list of indexes says enough: an index is not counted twice.
                Some(index) => {
                    indexes += usize::from(view.indexes.as_ref().is_some_and(|view| !view.known.has(index)));
                }
                None if is_new => uncounted.succeeded.push(pod.metadata.uid.clone()),
                None => {}
            }
        } else if (fails || job.is_failed(pod)) && is_new {
            let policy = job.spec.pod_failure_policy.as_ref();
            judged.extend(policy::applied(policy, pod));
            if policy::judge(policy, pod).counts() {
                uncounted.failed.push(pod.metadata.uid.clone());
            }
        }
        known.insert(pod.metadata.uid.clone());
    }
    status.uncounted_terminated_pods = Some(uncounted);
    Ended { counted, judged, full }
}

/// Whether a pod's finalizer may go. Source: `canRemoveFinalizer`.
fn may_go(view: &View<'_>, pod: &Pod, finishes: bool) -> bool {
    let job = view.at.job;
    let held = || {
        let index = super::types::index(pod);
        let held = index.and_then(|index| view.held_back.get(&index));
        held.is_some_and(|held| held.metadata.uid == pod.metadata.uid)
    };
    finishes
        || job.metadata.is_terminating()
        || pod.status.phase == "Succeeded"
        || (job.is_failed(pod) && !held())
}

/// Writes down that the Job is coming to its end, and tells with which condition it will be there.
fn begin_to_end(status: &mut JobStatus, condition: JobCondition, now: Timestamp) -> JobCondition {
    let last = match condition.r#type.as_str() {
        "FailureTarget" => "Failed",
        "SuccessCriteriaMet" => "Complete",
        _ => return condition,
    };
    let end = JobCondition::new(last, "True", &condition.reason, &condition.message, now);
    status.ensure(condition);
    end
}

/// Counts the uids whose pods have lost their finalizers.
fn count_without_finalizer(status: &mut JobStatus, keep: &HashSet<String>) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else { return };
    for (uids, count) in
        [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)]
    {
        let before = uids.len();
        uids.retain(|uid| keep.contains(uid));
        *count += i64::try_from(before - uids.len()).unwrap_or(0);
    }
}

impl Tracked<'_> {
    /// The status after finalizers went, and what is said when it is written. `stuck` are the uids of those that did not.
    pub(super) fn settle(
        self,
        job: &Job,
        stuck: &HashSet<String>,
        now: Timestamp,
    ) -> (JobStatus, Vec<Event>) {
        let mut status = self.status;
        let keep = self.keep.union(stuck).cloned().collect();
        count_without_finalizer(&mut status, &keep);
        let uncounted = status.uncounted_terminated_pods.as_ref();
        let all_counted = uncounted.is_none_or(|held| held.succeeded.is_empty() && held.failed.is_empty());
        let Some(finish) = self.finish.filter(|_| all_counted && status.terminating.unwrap_or(0) == 0) else {
            return (status, Vec::new());
        };
        if status.start_time.is_none() && !(job.spec.suspend && job.spec.completions == Some(0)) {
            // What succeeds in the moment in which it is suspended has begun at some time.
            status.start_time = Some(stamp(now));
        }
        let events = conclude(job, &mut status, finish);
        (status, events)
    }
}

fn conclude(job: &Job, status: &mut JobStatus, finish: JobCondition) -> Vec<Event> {
    let mut events = Vec::new();
    if finish.r#type == "Complete" {
        // A clock that went back must not make it end before it began.
        status.completion_time = finish.last_transition_time.max(status.start_time);
        if job.spec.completions.is_some_and(|completions| status.succeeded > completions) {
            let message = "Too many succeeded pods running after completion count reached";
            events.push((EventType::Warning, "TooManySucceededPods".into(), message.into()));
        }
        events.push((EventType::Normal, "Completed".into(), "Job completed".into()));
    } else {
        events.push((EventType::Warning, finish.reason.clone(), finish.message.clone()));
    }
    status.ensure(finish);
    events
}
