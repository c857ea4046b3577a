//! Carries out what is decided about a CronJob.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, ObjectMeta, PatchType, Propagation, Reason, Status};
use base::BoxError;
use reconcile::{Action, EventType, Involved, kinds};

use super::Worker;
use super::plan::{self, Event, Observed};
use super::types::{ActiveJob, CronJob, CronJobStatus};
use crate::claim::{is_ending_namespace, is_gone};
use crate::context::{decode, key_of};
use crate::job::Job;

/// The cache is behind: its change brings the next pass, and this time does if it was missed.
const BEHIND: Duration = Duration::from_secs(1);

/// One pass over one CronJob.
struct Pass<'a> {
    key: &'a Key,
    involved: Involved,
}

impl Worker {
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.crons.get(key) else { return Ok(Action::Done) };
        let mut cron: CronJob = decode(&object)?;
        let pass = Pass { key, involved: Involved::object(&kinds::CRON_JOBS, &object) };
        let held = cron.status.clone();
        let jobs = self.jobs_of(&cron.metadata.uid)?;
        let Observed { status, events, unexpected, missing } = plan::observe(&cron, &jobs);
        if !unexpected.is_empty() && self.is_behind(&cron).await? {
            return Ok(Action::After(BEHIND));
        }
        let old = plan::too_old(&cron, &jobs);
        cron.status = status;
        self.say_all(&pass, events);
        for name in unexpected {
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            self.say(&pass, EventType::Warning, "UnexpectedJob", &message);
        }
        let known = self.drop_missing(&pass, &mut cron.status, &missing).await;
        // Before a new Job is made, for which a quota may need the room.
        let mut tidied = Ok(());
        for at in old {
            // One that cannot be deleted is not in the way of the others.
            tidied = self.delete(&pass, &jobs[at].metadata).await.and(tidied);
        }
        // Whatever fails: what was seen is written down, since Jobs that told it may be gone by the next pass.
        let result = match known {
            Ok(()) => self.start_what_is_due(&pass, &mut cron).await,
            Err(status) => Err(status),
        };
        if cron.status != held {
            match self.write_status(key, &cron).await {
                Err(status) if is_gone(&status) => return Ok(Action::After(BEHIND)),
                written => written?,
            }
        }
        let next = result?;
        if let Err(status) = tidied {
            // What is due next does not wait for an old Job that cannot be deleted.
            next.into_iter().for_each(|delay| self.queue.add_after(key.clone(), delay));
            return Err(status.into());
        }
        Ok(next.map_or(Action::Done, Action::After))
    }

    /// The Jobs that a CronJob controls, by name.
    fn jobs_of(&self, uid: &str) -> Result<Vec<Job>, BoxError> {
        let owned = self.jobs.owned_by(uid);
        let controlled =
            owned.iter().filter(|job| job.meta().controller().is_some_and(|owner| owner.uid == uid));
        let mut jobs: Vec<Job> = controlled.map(|job| decode(job)).collect::<Result<_, _>>()?;
        jobs.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(jobs)
    }

    /// Whether the CronJob has another version by now, which may well know its Jobs.
    async fn is_behind(&self, cron: &CronJob) -> Result<bool, Status> {
        match self.ctx.client.get(&kinds::CRON_JOBS.gvr(), &key_of(&cron.metadata)).await {
            Ok(live) => Ok(live.meta().resource_version != cron.metadata.resource_version),
            Err(status) if status.reason == Reason::NotFound => Ok(true),
            Err(status) => Err(status),
        }
    }

    /// Asks the server, not the cache, which of the active Jobs are gone.
    async fn drop_missing(
        &self,
        pass: &Pass<'_>,
        status: &mut CronJobStatus,
        missing: &[String],
    ) -> Result<(), Status> {
        for uid in missing {
            let Some(active) = status.active.iter().find(|active| active.uid == *uid) else { continue };
            let key = Key::new(pass.key.namespace.as_str(), active.name.as_str());
            match self.ctx.client.get(&kinds::JOBS.gvr(), &key).await {
                Ok(live) if live.meta().uid == *uid => continue,
                Err(error) if error.reason != Reason::NotFound => return Err(error),
                _ => {}
            }
            let message = format!("Active job went missing: {}", key.name);
            self.say(pass, EventType::Normal, "MissingJob", &message);
            status.active.retain(|active| active.uid != *uid);
        }
        Ok(())
    }

    /// Makes the Job that is due, if one is; gives when to look again.
    async fn start_what_is_due(
        &self,
        pass: &Pass<'_>,
        cron: &mut CronJob,
    ) -> Result<Option<Duration>, Status> {
        let now = self.ctx.clock.now();
        let due = plan::due(cron, now);
        self.say_all(pass, due.events);
        let Some(at) = due.start else { return Ok(due.again) };
        if due.replace {
            for active in cron.status.active.clone() {
                self.replace(pass, &mut cron.status, &active).await?;
            }
        }
        let Some(object) = self.create(pass, cron, at).await? else { return Ok(due.again) };
        let ended = object.decode::<Job>().is_ok_and(|job| job.status.finished().is_some());
        if !ended && !cron.status.is_active(&object.meta().uid) {
            cron.status.active.push(ActiveJob::of(object.meta()));
        }
        cron.status.last_schedule_time = Some(at);
        // The moment counts as done now: the next one is another.
        Ok(plan::due(cron, now).again)
    }

    /// A Job that still runs makes way.
    async fn replace(
        &self,
        pass: &Pass<'_>,
        status: &mut CronJobStatus,
        active: &ActiveJob,
    ) -> Result<(), Status> {
        let meta = ObjectMeta {
            name: active.name.clone(),
            namespace: pass.key.namespace.clone(),
            uid: active.uid.clone(),
            ..ObjectMeta::default()
        };
        self.delete(pass, &meta).await?;
        status.active.retain(|held| held.uid != active.uid);
        Ok(())
    }

    /// Makes the Job for a moment. If it is there already it is the one that was made before a crash; one that somebody
    /// else made under this name is left alone.
    async fn create(
        &self,
        pass: &Pass<'_>,
        cron: &CronJob,
        at: jiff::Timestamp,
    ) -> Result<Option<Arc<Object>>, Status> {
        let body = plan::job_body(cron, at);
        let namespace = pass.key.namespace.as_str();
        match self.ctx.client.create(&kinds::JOBS.gvr(), namespace, &body).await {
            Ok(job) => {
                let message = format!("Created job {}", job.meta().name);
                self.say(pass, EventType::Normal, "SuccessfulCreate", &message);
                if let Some(figures) = &self.ctx.figures {
                    let late = self.ctx.clock.now().duration_since(at);
                    figures.late_by(late.try_into().unwrap_or_default());
                }
                self.ctx.caught_up(&self.jobs, job.revision()).await;
                Ok(Some(job))
            }
            Err(error) if error.reason == Reason::AlreadyExists => {
                let key = Key::new(namespace, plan::job_name(cron, at));
                let job = self.ctx.client.get(&kinds::JOBS.gvr(), &key).await?;
                let ours = job.meta().controller().is_some_and(|owner| owner.uid == cron.metadata.uid);
                Ok(Some(job).filter(|_| ours))
            }
            Err(error) => {
                // Nothing can be made in a namespace that is being deleted, and soon nobody will want it.
                if !is_ending_namespace(&error) {
                    let message = format!("Error creating job: {error}");
                    self.say(pass, EventType::Warning, "FailedCreate", &message);
                }
                Err(error)
            }
        }
    }

    /// Deletes a Job and its pods.
    async fn delete(&self, pass: &Pass<'_>, job: &ObjectMeta) -> Result<(), Status> {
        let options = DeleteOptions {
            propagation: Some(Propagation::Background),
            precondition_uid: Some(job.uid.clone()),
            ..DeleteOptions::default()
        };
        match self.ctx.client.delete(&kinds::JOBS.gvr(), &key_of(job), options).await {
            Ok(()) => {
                let message = format!("Deleted job {}", job.name);
                self.say(pass, EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {error}");
                self.say(pass, EventType::Warning, "FailedDelete", &message);
                Err(error)
            }
        }
    }

    /// Writes the status, unless the CronJob has another version by now; returns when the cache shows it.
    async fn write_status(&self, key: &Key, cron: &CronJob) -> Result<(), Status> {
        let patch = cron.status.patch(&cron.metadata);
        let resource = kinds::CRON_JOBS.gvr();
        let written = self.ctx.client.patch(&resource, key, "status", PatchType::Merge, &patch).await?;
        self.ctx.caught_up(&self.crons, written.revision()).await;
        Ok(())
    }

    fn say(&self, pass: &Pass<'_>, event_type: EventType, reason: &str, message: &str) {
        self.events.event(pass.involved.clone(), event_type, reason, message);
    }

    fn say_all(&self, pass: &Pass<'_>, events: Vec<Event>) {
        for (event_type, reason, message) in events {
            self.say(pass, event_type, reason, &message);
        }
    }
}
