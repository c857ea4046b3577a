//! Decides whether a Job has come to its end, and which pods to make or to delete. Source: `syncJob`, `manageJob` and
//! `indexed_job_utils.go`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::backoff::{self, Record};
use super::indexes::Indexes;
use super::policy::{self, Verdict};
use super::types::{Job, JobCondition, failures_before, index, indexes, is_tracked};
use crate::pods::{Pod, progress_order};

/// At most so many pods are made or deleted in one go. Source: `MaxPodCreateDeletePerSync`.
const BURST: usize = 500;
/// New pods that have to wait do so for this time at least. Source: `syncJobBatchPeriod`.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// What a decision is made from.
#[derive(Clone, Copy)]
pub(super) struct Snapshot<'a> {
    pub(super) job: &'a Job,
    /// Its pods.
    pub(super) pods: &'a [Pod],
    /// Whether the pods show everything that was made and deleted before.
    pub(super) may_act: bool,
    /// Pods whose finalizer was taken, though they do not show it yet: they are counted.
    pub(super) removed: &'a HashSet<String>,
    /// Failures until now.
    pub(super) backoff: Record,
    pub(super) now: Timestamp,
}

/// What the pods say about a Job.
pub(super) struct View<'a> {
    pub(super) at: Snapshot<'a>,
    pub(super) active: Vec<&'a Pod>,
    pub(super) ready: i64,
    pub(super) terminating: i64,
    /// Pods, or indexes, that have succeeded, whether the status counts them already or not.
    pub(super) succeeded: i64,
    failed: i64,
    /// Of a Job whose pods have indexes.
    pub(super) indexes: Option<IndexView>,
    /// Failed pods that stay until their successors are made, since these take the number of failures from them.
    pub(super) held_back: BTreeMap<i64, &'a Pod>,
    pub(super) backoff: Record,
    pub(super) start_time: Option<Timestamp>,
    /// The condition that it is to have next on its way to its end.
    pub(super) finish: Option<JobCondition>,
}

/// What became of the indexes.
pub(super) struct IndexView {
    /// The status knows that they succeeded.
    pub(super) known: Indexes,
    pub(super) succeeded: Indexes,
    /// Present if indexes have a limit of their own.
    pub(super) failed: Option<Indexes>,
}

/// What to do about the pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Their number is right, or nothing may be done about it.
    Nothing,
    /// The Job ends: all these go, and are counted as its end says.
    End(Vec<String>),
    /// These are too many. They go and count for nothing.
    Remove(Vec<String>),
    /// Make these.
    Create(Vec<NewPod>),
    /// Make more after this time.
    Wait(Duration),
}

/// A pod that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) index: Option<i64>,
    /// How many of its index failed before it: counted and ignored. Present if indexes have a limit of their own.
    pub(super) failures: Option<(i64, i64)>,
}

/// Whole seconds, as the API keeps moments.
pub(super) fn stamp(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

impl<'a> Snapshot<'a> {
    /// Whether a pod has not been counted.
    pub(super) fn is_uncounted(&self, pod: &Pod) -> bool {
        is_tracked(&pod.metadata) && !self.removed.contains(&pod.metadata.uid)
    }

    fn verdict(&self, pod: &Pod) -> Verdict {
        policy::judge(self.job.spec.pod_failure_policy.as_ref(), pod)
    }

    /// The pods that ended in one way, that the status says nothing about.
    fn news(&self, known: &[String], ended_so: impl Fn(&Pod) -> bool) -> Vec<&'a Pod> {
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let job = self.job;
        let counts = |pod: &&Pod| {
            self.is_uncounted(pod)
                && !known.contains(pod.metadata.uid.as_str())
                && (!job.is_indexed() || job.index_of(pod).is_some())
                && ended_so(pod)
        };
        self.pods.iter().filter(counts).collect()
    }

    fn indexes(&self) -> Option<IndexView> {
        let (job, bound) = (self.job, self.job.index_bound());
        if !job.is_indexed() {
            return None;
        }
        let tracked = || self.pods.iter().filter(|pod| is_tracked(&pod.metadata));
        let of = |holds: &dyn Fn(&Pod) -> bool| -> Indexes {
            tracked().filter(|pod| holds(pod)).filter_map(|pod| job.index_of(pod)).collect()
        };
        let known = Indexes::parse(&job.status.completed_indexes, bound);
        let succeeded = known.union(&of(&|pod| pod.status.phase == "Succeeded"));
        let failed = job.spec.backoff_limit_per_index.map(|limit| {
            let before = job.status.failed_indexes.as_deref().unwrap_or_default();
            Indexes::parse(before, bound).union(&of(&|pod| self.fails_index(pod, limit)))
        });
        Some(IndexView { known, succeeded, failed })
    }

    /// Whether no other pod follows a failed one in its index. Source: `isIndexFailed`.
    fn fails_index(&self, pod: &Pod, limit: i64) -> bool {
        self.job.is_failed(pod)
            && match self.verdict(pod) {
                Verdict::FailIndex => true,
                verdict => verdict.counts() && failures_before(pod).0 >= limit,
            }
    }

    /// Of each index that goes on, the pod that failed last. Source: `getPodsWithDelayedDeletionPerIndex`.
    fn held_back(&self, view: &IndexView, active: &[&'a Pod]) -> BTreeMap<i64, &'a Pod> {
        let Some(failed) = &view.failed else { return BTreeMap::new() };
        let active = indexes(active.iter().copied());
        let mut held: BTreeMap<i64, &Pod> = BTreeMap::new();
        for pod in self.news(&[], |pod| self.job.is_failed(pod)) {
            let Some(index) = self.job.index_of(pod) else { continue };
            if view.succeeded.has(index) || failed.has(index) || active.contains(&index) {
                continue;
            }
            let rank = |pod: &Pod| {
                let (counted, ignored) = failures_before(pod);
                (counted + ignored, backoff::finished_at(pod))
            };
            if held.get(&index).is_none_or(|other| rank(other) <= rank(pod)) {
                held.insert(index, pod);
            }
        }
        held
    }

    /// Whether containers that start again under `OnFailure` have used up the limit. Source:
    /// `pastBackoffLimitOnFailure`.
    fn restarted_too_often(&self) -> bool {
        if self.job.spec.template["spec"]["restartPolicy"] != "OnFailure" {
            return false;
        }
        let running = |pod: &&Pod| matches!(pod.status.phase.as_str(), "Running" | "Pending");
        let restarts: i64 = self
            .pods
            .iter()
            .filter(running)
            .flat_map(|pod| pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses))
            .map(|status| status.restart_count)
            .sum();
        restarts >= self.job.backoff_limit().max(1)
    }
}

impl<'a> View<'a> {
    /// Why pods are made, in upstream's words. Source: `recordJobPodsCreationTotal`.
    pub(super) fn why_created(&self) -> &'static str {
        let after_failures = self.at.job.spec.pod_replacement_policy == "Failed";
        match (after_failures, self.failed > 0, self.terminating > 0) {
            (true, true, _) => "recreate_failed",
            (false, true, _) | (_, _, true) => "recreate_terminating_or_failed",
            _ => "new",
        }
    }

    /// Looks at a Job and its pods.
    pub(super) fn new(at: Snapshot<'a>) -> Self {
        let job = at.job;
        let none = super::types::Uncounted::default();
        let uncounted = job.status.uncounted_terminated_pods.as_ref().unwrap_or(&none);
        let succeeded = at.news(&uncounted.succeeded, |pod| pod.status.phase == "Succeeded");
        let failed = at.news(&uncounted.failed, |pod| job.is_failed(pod));
        let active: Vec<&Pod> = at.pods.iter().filter(|pod| pod.is_active()).collect();
        let indexes = at.indexes();
        let held_back = indexes.as_ref().map(|view| at.held_back(view, &active)).unwrap_or_default();
        let waits = job.spec.suspend || job.status.start_time.is_some();
        let mut view = Self {
            at,
            ready: count(&active, |pod| pod.is_ready()),
            terminating: count(at.pods, |pod| pod.metadata.is_terminating() && !pod.is_finished()),
            succeeded: match &indexes {
                Some(view) => view.succeeded.len(),
                None => job.status.succeeded + len(&succeeded) + len(&uncounted.succeeded),
            },
            failed: job.status.failed
                + count(&failed, |pod| at.verdict(pod).counts())
                + len(&uncounted.failed),
            active,
            indexes,
            held_back,
            backoff: at.backoff.after(&succeeded, &failed),
            start_time: if waits { job.status.start_time } else { Some(stamp(at.now)) },
            finish: None,
        };
        view.finish = view.end();
        view
    }

    /// The condition that a Job is to have next, if it has come to its end.
    fn end(&self) -> Option<JobCondition> {
        let (job, now) = (self.at.job, stamp(self.at.now));
        if let Some(met) = job.status.holds("SuccessCriteriaMet") {
            return Some(met.clone());
        }
        if let Some(target) = job.status.holds("FailureTarget") {
            return Some(JobCondition::new("Failed", "True", &target.reason, &target.message, now));
        }
        if let Some((reason, message)) = self.failure() {
            return Some(JobCondition::new("FailureTarget", "True", reason, &message, now));
        }
        let view = self.indexes.as_ref()?;
        let message = policy::suffices(job.spec.success_policy.as_ref(), &view.succeeded, job.index_bound())?;
        Some(JobCondition::new("SuccessCriteriaMet", "True", "SuccessPolicy", &message, now))
    }

    /// Why it has failed: reason and message.
    fn failure(&self) -> Option<(&'static str, String)> {
        let job = self.at.job;
        let ended = self.at.pods.iter().filter(|pod| job.is_failed(pod));
        let said = ended.map(|pod| self.at.verdict(pod)).find_map(|verdict| match verdict {
            Verdict::FailJob(why) => Some(why),
            _ => None,
        });
        if let Some(why) = said {
            return Some(("PodFailurePolicy", why));
        }
        if self.failed > job.backoff_limit() || self.at.restarted_too_often() {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
        }
        if self.until_deadline().is_some_and(|left| left.is_zero()) {
            return Some(("DeadlineExceeded", "Job was active longer than specified deadline".into()));
        }
        let view = self.indexes.as_ref()?;
        let failed = view.failed.as_ref()?.len();
        if job.spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", message.into()));
        }
        (failed > 0 && failed + view.succeeded.len() >= job.index_bound())
            .then(|| ("FailedIndexes", "Job has failed indexes".into()))
    }

    /// How long it may still take; zero when that has passed. A Job that waits has no deadline.
    pub(super) fn until_deadline(&self) -> Option<Duration> {
        let allowed = self.at.job.spec.active_deadline_seconds.filter(|_| !self.at.job.spec.suspend)?;
        let deadline = self.start_time?.saturating_add(SignedDuration::from_secs(allowed)).ok()?;
        Some(Duration::try_from(deadline.duration_since(self.at.now)).unwrap_or_default())
    }

    /// Whether the number of pods is looked after at all.
    pub(super) fn is_managed(&self) -> bool {
        self.finish.is_none() && self.at.may_act && !self.at.job.metadata.is_terminating()
    }

    /// What to do about the pods.
    pub(super) fn act(&self) -> Act {
        if self.finish.is_some() {
            return Act::End(uids(&self.active));
        }
        if !self.is_managed() {
            return Act::Nothing;
        }
        let active = len(&self.active);
        let wanted = self.wanted();
        let surplus = self.surplus(usize::try_from(active - wanted).unwrap_or(0));
        if !surplus.is_empty() {
            let limit = if self.at.job.spec.suspend { surplus.len() } else { BURST };
            return Act::Remove(uids(&surplus[..surplus.len().min(limit)]));
        }
        let leaving = if self.at.job.waits_for_the_end() { self.terminating } else { 0 };
        match usize::try_from(wanted - leaving - active) {
            Ok(missing) if missing > 0 && !self.at.job.spec.suspend => self.create(missing.min(BURST)),
            _ => Act::Nothing,
        }
    }

    /// How many pods should be active.
    fn wanted(&self) -> i64 {
        let job = self.at.job;
        match job.spec.completions {
            _ if job.spec.suspend => 0,
            Some(completions) => (completions - self.succeeded).clamp(0, job.parallelism().max(0)),
            // One success tells that the work is done: whoever still runs comes to its end.
            None if self.succeeded > 0 => len(&self.active),
            None => job.parallelism(),
        }
    }

    /// The active pods that go: those whose index makes no sense or is another's too, and as many more as are too many.
    fn surplus(&self, at_least: usize) -> Vec<&'a Pod> {
        let job = self.at.job;
        let mut kept: Vec<&Pod> = self.active.clone();
        kept.sort_by(|a, b| progress_order(a, b));
        let mut gone = Vec::new();
        if job.is_indexed() {
            // From the end: of several with one index the one that has come furthest stays.
            let mut taken = HashSet::new();
            let mut stays: Vec<(&Pod, bool)> = kept
                .iter()
                .rev()
                .map(|pod| (*pod, job.index_of(pod).is_some_and(|index| taken.insert(index))))
                .collect();
            stays.reverse();
            gone.extend(stays.iter().filter(|(_, stays)| !stays).map(|(pod, _)| *pod));
            kept = stays.into_iter().filter(|(_, stays)| *stays).map(|(pod, _)| pod).collect();
        }
        let more = at_least.saturating_sub(gone.len());
        gone.extend(kept.into_iter().take(more));
        gone
    }

    fn create(&self, missing: usize) -> Act {
        let per_index = self.at.job.spec.backoff_limit_per_index.is_some();
        let pause = if per_index { Duration::ZERO } else { self.backoff.remaining(self.at.now) };
        if !pause.is_zero() {
            return Act::Wait(pause.max(WAIT_MIN));
        }
        let Some(view) = &self.indexes else { return Act::Create(vec![NewPod::default(); missing]) };
        let pending = self.pending(view, missing);
        if !per_index {
            let of = |index| NewPod { index: Some(index), failures: None };
            return Act::Create(pending.into_iter().map(of).collect()).or_nothing();
        }
        let pause_of = |index: &i64| {
            self.held_back
                .get(index)
                .map_or(Duration::ZERO, |failed| backoff::remaining_of_index(failed, self.at.now))
        };
        let (now, later): (Vec<i64>, Vec<i64>) =
            pending.into_iter().partition(|index| pause_of(index).is_zero());
        match later.iter().map(pause_of).min() {
            Some(pause) if now.is_empty() => Act::Wait(pause.max(WAIT_MIN)),
            _ => Act::Create(now.into_iter().map(|index| self.successor(index)).collect()).or_nothing(),
        }
    }

    /// The first indexes that nobody works on.
    fn pending(&self, view: &IndexView, count: usize) -> Vec<i64> {
        let mut taken = view.succeeded.with(indexes(self.active.iter().copied()));
        if self.at.job.waits_for_the_end() {
            let leaving =
                self.at.pods.iter().filter(|pod| pod.metadata.is_terminating() && !pod.is_finished());
            taken = taken.with(leaving.filter_map(index));
        }
        if let Some(failed) = &view.failed {
            taken = taken.union(failed);
        }
        taken.missing(count, self.at.job.index_bound())
    }

    /// The pod that follows the failed one of an index.
    fn successor(&self, index: i64) -> NewPod {
        let failures = self.held_back.get(&index).map_or((0, 0), |failed| {
            let (counted, ignored) = failures_before(failed);
            if self.at.verdict(failed).counts() { (counted + 1, ignored) } else { (counted, ignored + 1) }
        });
        NewPod { index: Some(index), failures: Some(failures) }
    }
}

impl Act {
    fn or_nothing(self) -> Self {
        match self {
            Self::Create(pods) if pods.is_empty() => Self::Nothing,
            act => act,
        }
    }
}

pub(super) fn len<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}

fn count<'a, T: 'a>(list: impl IntoIterator<Item = &'a T>, holds: impl Fn(&T) -> bool) -> i64 {
    i64::try_from(list.into_iter().filter(|one| holds(one)).count()).unwrap_or(i64::MAX)
}

fn uids(pods: &[&Pod]) -> Vec<String> {
    pods.iter().map(|pod| pod.metadata.uid.clone()).collect()
}
