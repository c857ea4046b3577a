//! Carries out what is decided: makes and deletes pods, takes finalizers, writes the status.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use api::{Key, Object, ObjectMeta, PatchType, Reason, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, EventType, Involved, kinds};
use serde_json::json;

use super::indexes::Indexes;
use super::plan::{Act, NewPod, Snapshot, View};
use super::track::{Acted, Event, Tracked, track};
use super::types::{Job, JobStatus, TRACKING, index, is_tracked};
use super::{Worker, body};
use crate::claim::{Claim, is_gone};
use crate::context::{decode, key_of};
use crate::pod_control::PodControl;
use crate::pods::Pod;

/// Somebody else wrote the status meanwhile: its change brings the next pass, and this time does if it was missed.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);

/// One pass over one Job.
struct Pass<'a> {
    key: &'a Key,
    job: &'a Job,
    involved: Involved,
}

/// What acting on the pods came to, and the error with which it ended.
type Outcome = (Acted, Result<(), Status>);

impl Worker {
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.jobs.get(key) else {
            self.forget(key);
            return Ok(Action::Done);
        };
        let job: Job = decode(&object)?;
        if job.is_managed_elsewhere() {
            return Ok(Action::Done);
        }
        if job.status.finished().is_some() {
            self.forget(key);
            return Ok(Action::Done);
        }
        let pass = Pass { key, job: &job, involved: Involved::object(&kinds::JOBS, &object) };
        if !matches!(job.spec.completion_mode.as_str(), "" | "NonIndexed" | "Indexed") {
            let message = "Skipped Job sync because completion mode is unknown";
            self.say(&pass, EventType::Warning, "UnknownCompletionMode", message);
            return Ok(Action::Done);
        }
        self.bring_forward(&pass).await
    }

    async fn bring_forward(&self, pass: &Pass<'_>) -> Result<Action, BoxError> {
        let begun = Instant::now();
        let mut action = "reconciling";
        let result = self.counted_pass(pass, &mut action).await;
        if let Some(figures) = &self.ctx.figures {
            figures.synced(pass.job.completion_mode(), action, result.is_ok(), begun.elapsed());
        }
        result
    }

    /// The pass itself; says what it did in the words that it is counted under.
    async fn counted_pass(&self, pass: &Pass<'_>, action: &mut &'static str) -> Result<Action, BoxError> {
        let job = pass.job;
        // Read before the pods: an observation that comes in between only makes the next pass come sooner.
        let unseen = self.expectations.wait(pass.key, &job.metadata.uid);
        let pods = self.claim(job).await?;
        let (backoff, removed) = self.recall(pass.key, &job.metadata.uid, &pods);
        let now = self.ctx.clock.now();
        let view = View::new(Snapshot {
            job,
            pods: &pods,
            may_act: unseen.is_none(),
            removed: &removed,
            backoff,
            now,
        });
        let act = view.act();
        *action = match act {
            Act::Create(_) => "pods_created",
            Act::End(_) | Act::Remove(_) => "pods_deleted",
            Act::Nothing | Act::Wait(_) if unseen.is_none() => "tracking",
            Act::Nothing | Act::Wait(_) => "reconciling",
        };
        let wait = if let Act::Wait(wait) = act { Some(wait) } else { None };
        let (acted, result) = self.act(pass, &view, act).await;
        match self.write_down(pass, &view, track(&view, acted)).await {
            Err(status) if is_gone(&status) => return Ok(Action::After(AFTER_CONFLICT)),
            written => written?,
        }
        result?;
        let deadline = view.until_deadline().filter(|left| !left.is_zero());
        Ok(Action::after(wait.into_iter().chain(deadline).chain(unseen)))
    }

    /// The Job's pods, in the order of their indexes.
    async fn claim(&self, job: &Job) -> Result<Vec<Pod>, BoxError> {
        let claim = Claim {
            ctx: &self.ctx,
            owner_kind: kinds::JOBS,
            owner: &job.metadata,
            selector: &job.spec.selector,
            objects: &self.pods,
            finalizer: Some(TRACKING),
        };
        let objects = claim.run(|_| true).await?;
        let mut pods: Vec<Pod> =
            objects.iter().map(|object| decode::<Pod>(object)).collect::<Result<_, _>>()?;
        pods.sort_by(|a, b| index(a).cmp(&index(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name)));
        Ok(pods)
    }

    async fn act(&self, pass: &Pass<'_>, view: &View<'_>, act: Act) -> Outcome {
        let chosen = |uids: &[String]| -> Vec<&Pod> {
            let uids: HashSet<&String> = uids.iter().collect();
            view.active.iter().filter(|pod| uids.contains(&pod.metadata.uid)).copied().collect()
        };
        match act {
            Act::Nothing | Act::Wait(_) => (Acted::default(), Ok(())),
            Act::End(uids) => self.delete(pass, &chosen(&uids), false).await,
            Act::Remove(uids) => {
                self.expectations.expect(pass.key, &pass.job.metadata.uid, 0, uids.iter().cloned());
                self.delete(pass, &chosen(&uids), true).await
            }
            Act::Create(new) => self.create(pass, view, &new).await,
        }
    }

    fn control<'a>(&'a self, pass: &'a Pass<'_>) -> PodControl<'a> {
        PodControl {
            ctx: &self.ctx,
            events: &self.events,
            expectations: &self.expectations,
            key: pass.key,
            involved: &pass.involved,
        }
    }

    async fn create(&self, pass: &Pass<'_>, view: &View<'_>, new: &[NewPod]) -> Outcome {
        let template = body::template(pass.job);
        self.expectations.expect(pass.key, &pass.job.metadata.uid, new.len() as u64, []);
        let body = |at: usize| body::pod(&template, &pass.job.metadata, &new[at]);
        let (made, result) = self.control(pass).create(new.len(), body).await;
        if let Some(figures) = &self.ctx.figures {
            let count = |pods: usize| u64::try_from(pods).unwrap_or(u64::MAX);
            // The first failure ends the attempts.
            figures.jobs.created(view.why_created(), count(made), count(usize::from(result.is_err())));
        }
        (Acted { created: i64::try_from(made).unwrap_or(0), ..Acted::default() }, result)
    }

    /// Deletes pods. Those that are to count for nothing lose their finalizers first.
    async fn delete(&self, pass: &Pass<'_>, pods: &[&Pod], uncounted: bool) -> Outcome {
        let control = &self.control(pass);
        let results = join_all(pods.iter().map(|pod| async move {
            if uncounted && is_tracked(&pod.metadata) {
                self.take_finalizer(&pod.metadata).await?;
            }
            control.delete(&pod.metadata.name, &pod.metadata.uid).await
        }))
        .await;
        let mut acted = Acted::default();
        let mut outcome = Ok(());
        for (pod, result) in pods.iter().zip(results) {
            match result {
                Ok(()) => {
                    acted.deleted += 1;
                    acted.deleted_ready += i64::from(pod.is_ready());
                }
                Err(status) => {
                    self.expectations.deletion_observed(pass.key, &pod.metadata.uid);
                    outcome = Err(status);
                }
            }
        }
        (acted, outcome)
    }

    /// Takes the finalizer from a pod, if it is still the same one. A conflict tells nothing: the pod may have another
    /// version, and then it has its finalizer still and must not be counted as one that has none.
    pub(super) async fn take_finalizer(&self, pod: &ObjectMeta) -> Result<(), Status> {
        let patch =
            json!({ "metadata": { "uid": pod.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING] } });
        let resource = kinds::PODS.gvr();
        let patched =
            self.ctx.client.patch(&resource, &key_of(pod), "", PatchType::StrategicMerge, &patch).await;
        match patched {
            Err(status) if status.reason != Reason::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    /// The three steps of counting.
    async fn write_down(&self, pass: &Pass<'_>, view: &View<'_>, tracked: Tracked<'_>) -> Result<(), Status> {
        let meta = &pass.job.metadata;
        let mut version = meta.resource_version.clone();
        if tracked.status != pass.job.status {
            let written = self.write_status(pass, &tracked.status, &version).await?;
            version.clone_from(&written.meta().resource_version);
            self.remember_failures(pass.key, &meta.uid, view.backoff);
            self.say_all(pass, &tracked.events);
            self.count(pass, &pass.job.status, &tracked.status);
            let judged = self
                .ctx
                .figures
                .iter()
                .flat_map(|figures| tracked.judged.iter().map(move |by| (figures, by)));
            judged.for_each(|(figures, by)| figures.jobs.judged(by));
        }
        let (stuck, result) = self.take_finalizers(pass, &tracked.counted).await;
        let first = tracked.status.clone();
        let (last, events) = tracked.settle(pass.job, &stuck, self.ctx.clock.now());
        if last != first {
            self.write_status(pass, &last, &version).await?;
            self.say_all(pass, &events);
            self.count(pass, &first, &last);
        }
        result
    }

    /// Counts what a status that was written says and the one before it did not.
    fn count(&self, pass: &Pass<'_>, before: &JobStatus, after: &JobStatus) {
        let Some(figures) = &self.ctx.figures else { return };
        let mode = pass.job.completion_mode();
        figures.counted(mode, true, after.succeeded - before.succeeded);
        figures.counted(mode, false, after.failed - before.failed);
        let per_index = pass.job.spec.backoff_limit_per_index.is_some();
        if pass.job.is_indexed() {
            let failed = |status: &JobStatus| {
                let bound = pass.job.spec.completions.unwrap_or(0);
                status.failed_indexes.as_deref().map_or(0, |text| Indexes::parse(text, bound).len())
            };
            figures.jobs.indexes(true, per_index, after.succeeded - before.succeeded);
            figures.jobs.indexes(false, per_index, failed(after) - failed(before));
        }
        if let Some(end) = after.finished().filter(|_| before.finished().is_none()) {
            figures.finished(mode, &end.reason, end.r#type == "Complete");
        }
    }

    /// Takes the finalizers of pods; gives the uids of those that still have theirs, and why.
    async fn take_finalizers(&self, pass: &Pass<'_>, pods: &[&Pod]) -> (HashSet<String>, Result<(), Status>) {
        let results = join_all(pods.iter().map(|pod| self.take_finalizer(&pod.metadata))).await;
        let mut stuck = HashSet::new();
        let mut outcome = Ok(());
        for (pod, result) in pods.iter().zip(results) {
            match result {
                Ok(()) => self.remember_removal(pass.key, &pass.job.metadata.uid, &pod.metadata.uid),
                Err(status) => {
                    stuck.insert(pod.metadata.uid.clone());
                    outcome = Err(status);
                }
            }
        }
        (stuck, outcome)
    }

    /// Writes the status, unless the Job has another version by now; returns when the cache shows it.
    async fn write_status(
        &self,
        pass: &Pass<'_>,
        status: &JobStatus,
        version: &str,
    ) -> Result<std::sync::Arc<Object>, Status> {
        let patch = status.patch(&pass.job.metadata, version);
        let resource = kinds::JOBS.gvr();
        let written = self.ctx.client.patch(&resource, pass.key, "status", PatchType::Merge, &patch).await?;
        self.ctx.caught_up(&self.jobs, written.revision()).await;
        Ok(written)
    }

    fn say(&self, pass: &Pass<'_>, event_type: EventType, reason: &str, message: &str) {
        self.events.event(pass.involved.clone(), event_type, reason, message);
    }

    fn say_all(&self, pass: &Pass<'_>, events: &[Event]) {
        for (event_type, reason, message) in events {
            self.say(pass, *event_type, reason, message);
        }
    }
}
