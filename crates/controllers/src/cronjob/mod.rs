//! CronJobs: Jobs by the clock. Source: `k8s.io/kubernetes/pkg/controller/cronjob`.

mod apply;
mod plan;
mod timing;
mod types;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, Registration, kinds,
};

use crate::context::{self, Ctx, work};
use timing::Clockwork;

pub use types::{ActiveJob, CronJob, CronJobSpec, CronJobStatus};

const NAME: &str = "cronjob-controller";
/// How many keys are worked on at once. Source: `--concurrent-cron-job-syncs`.
const WORKERS: usize = 5;

/// The CronJob controller.
pub struct CronJobs {
    ctx: Ctx,
}

impl CronJobs {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for CronJobs {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            crons: self.ctx.informers.get(kinds::CRON_JOBS),
            jobs: self.ctx.informers.get(kinds::JOBS),
            queue: self.ctx.queue("cronjob"),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, ""),
        });
        let _registrations = worker.listen();
        work(&ctx, NAME, &[&worker.crons, &worker.jobs], &worker.queue, WORKERS, &worker).await
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    crons: Informer,
    jobs: Informer,
    queue: Queue<Key>,
    events: EventRecorder,
}

impl Worker {
    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let weak = Arc::downgrade(self);
        let crons = self.crons.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.cron_changed(change);
            }
        });
        let weak = Arc::downgrade(self);
        let jobs = self.jobs.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.job_changed(change);
            }
        });
        [crons, jobs]
    }

    /// A new schedule holds from its next moment on: what it would have done before is not made up for.
    fn cron_changed(&self, change: &Change) {
        match (&change.old, &change.new) {
            (Some(old), Some(new)) => match self.new_schedule(old, new) {
                Some(wait) => self.queue.add_after(change.key.clone(), wait),
                None => self.queue.add(change.key.clone()),
            },
            (None, Some(_)) => self.queue.add(change.key.clone()),
            _ => {}
        }
    }

    /// How long until the next moment of a schedule that has just changed.
    fn new_schedule(&self, old: &Object, new: &Object) -> Option<Duration> {
        if old.meta().generation == new.meta().generation {
            return None;
        }
        let (old, cron): (CronJob, CronJob) = (context::decode(old).ok()?, context::decode(new).ok()?);
        if old.spec.schedule == cron.spec.schedule && old.spec.time_zone == cron.spec.time_zone {
            return None;
        }
        match Clockwork::of(&cron) {
            Ok(clockwork) => clockwork.until_next(&cron, self.ctx.clock.now()),
            Err(("UnparseableSchedule", _)) => {
                let message = format!("unparseable schedule for cronjob: {}", cron.spec.schedule);
                let involved = Involved::object(&kinds::CRON_JOBS, new);
                self.events.event(involved, EventType::Warning, "UnParseableCronJobSchedule", message);
                None
            }
            Err(_) => None,
        }
    }

    fn job_changed(&self, change: &Change) {
        for job in [&change.old, &change.new].into_iter().flatten() {
            let meta = job.meta();
            let Some(owner) = meta.controller().filter(|owner| owner.kind == kinds::CRON_JOBS.kind) else {
                continue;
            };
            let key = Key::new(meta.namespace.as_str(), owner.name.as_str());
            if self.crons.get(&key).is_some_and(|cron| cron.meta().uid == owner.uid) {
                self.queue.add(key);
            }
        }
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.sync(key).await
    }
}
