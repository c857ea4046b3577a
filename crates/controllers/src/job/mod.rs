//! Jobs: pods that run to their end, each counted exactly once. Source: `k8s.io/kubernetes/pkg/controller/job`.

mod apply;
mod backoff;
mod body;
mod indexes;
mod orphans;
mod plan;
mod policy;
mod track;
mod types;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, OwnerReference};
use async_trait::async_trait;
use base::BoxError;
use base::backoff::Policy;
use base::lifecycle::{Component, Context};
use parking_lot::Mutex;
use reconcile::queue::Gather;
use reconcile::{
    Action, Change, EventRecorder, Expectations, Informer, Queue, Reconcile, Registration, kinds, run_workers,
};

use crate::claim::{adopters, former, resolve};
use crate::context::{self, Ctx, ready};
use crate::pods::Pod;
use backoff::Record;
use orphans::Orphans;
use types::is_tracked;

pub use types::{Job, JobCondition, JobSpec, JobStatus};

const NAME: &str = "job-controller";
/// How many keys are worked on at once. Source: `--concurrent-job-syncs`.
const WORKERS: usize = 5;
/// Source: `DefaultJobApiBackOff`, `MaxJobApiBackOff`.
const RETRY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// What pods tell is gathered before the Job is looked at: a pass counts all of them and writes.
/// Source: `syncJobBatchPeriod`, which is a second for any number.
const GATHER: Gather = Gather { each: Duration::from_millis(1), from: 21 };

/// The Job controller.
pub struct Jobs {
    ctx: Ctx,
}

impl Jobs {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for Jobs {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let _registrations = worker.listen();
        if !ready(&ctx, &[&worker.jobs, &worker.pods]).await {
            return Ok(());
        }
        let orphans = Arc::new(Orphans(worker.clone()));
        tokio::join!(
            run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()),
            run_workers(&ctx, NAME, &worker.orphans, 1, orphans),
        );
        Ok(())
    }
}

/// What is known of a Job beside its status. All of it may be lost.
#[derive(Default)]
struct Memory {
    uid: String,
    failures: Record,
    /// Pods whose finalizers were taken, though the cache does not show it yet.
    removed: HashSet<String>,
    pods: usize,
}

/// Whether a pod has ended and is still to be counted. Source: `isFinishedPodWithTrackingFinalizer`.
fn ended_and_tracked(pod: &Object) -> bool {
    is_tracked(pod.meta()) && context::decode::<Pod>(pod).is_ok_and(|pod| pod.is_finished())
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    jobs: Informer,
    pods: Informer,
    queue: Queue<Key>,
    /// Pods whose finalizers nobody else takes.
    orphans: Queue<Key>,
    expectations: Expectations,
    memory: Mutex<HashMap<Key, Memory>>,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            jobs: ctx.informers.get(kinds::JOBS),
            pods: ctx.informers.get(kinds::PODS),
            queue: ctx.queue_with("job", RETRY),
            orphans: ctx.queue_with("job_orphan_pod", RETRY),
            expectations: Expectations::new(ctx.clock.clone()),
            memory: Mutex::default(),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), NAME, ""),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let weak = Arc::downgrade(self);
        let jobs = self.jobs.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.job_changed(change);
            }
        });
        let weak = Arc::downgrade(self);
        let pods = self.pods.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.pod_changed(change);
            }
        });
        [jobs, pods]
    }

    fn job_changed(&self, change: &Change) {
        if let (Some(figures), None, Some(new)) = (&self.ctx.figures, &change.old, &change.new)
            && let Some(manager) = context::decode::<Job>(new).ok().and_then(|job| job.manager_elsewhere())
        {
            figures.jobs.elsewhere(&manager);
        }
        let generation = |job: &Option<Arc<Object>>| job.as_ref().map(|job| job.meta().generation);
        if generation(&change.old) == generation(&change.new) {
            self.add_gathered(&change.key);
        } else {
            self.queue.add(change.key.clone());
        }
        let Some(job) = change.latest() else { return };
        let ended = || context::decode::<Job>(job).is_ok_and(|job| job.status.finished().is_some());
        if change.new.is_none() || ended() {
            // Whoever was not counted yet never will be.
            for pod in self.pods.owned_by(&job.meta().uid) {
                self.add_orphan(&pod);
            }
        }
    }

    fn pod_changed(&self, change: &Change) {
        let Some(pod) = change.latest() else { return };
        let meta = pod.meta();
        if let Some(figures) = &self.ctx.figures {
            let holds = |pod: &Option<Arc<Object>>| pod.as_deref().is_some_and(ended_and_tracked);
            let (held, holds) = (holds(&change.old), holds(&change.new));
            if held != holds {
                figures.jobs.tracked(holds);
            }
        }
        former(&self.jobs, &kinds::JOBS, change).iter().for_each(|job| self.add_gathered(job));
        let Some(controller) = meta.controller() else { return self.orphan_changed(change) };
        let gone = change.new.is_none() || meta.is_terminating();
        let Some(job) = self.resolve(&meta.namespace, Some(controller)) else {
            if gone && controller.kind == kinds::JOBS.kind {
                self.add_orphan(pod);
            }
            return;
        };
        let key = job.key();
        if gone {
            self.expectations.deletion_observed(&key, &meta.uid);
            // A Job that has ended is looked at no more.
            if is_tracked(meta)
                && context::decode::<Job>(&job).is_ok_and(|job| job.status.finished().is_some())
            {
                self.add_orphan(pod);
            }
        } else if change.old.is_none() {
            self.expectations.creation_observed(&key);
            if self.expectations.wait(&key, &job.meta().uid).is_none() {
                // The last of those that were made has been seen: the next ones need not wait.
                return self.queue.add(key);
            }
        }
        self.add_gathered(&key);
    }

    /// A pod without a controller: its finalizer goes, unless a Job adopts it.
    fn orphan_changed(&self, change: &Change) {
        let Some(pod) = &change.new else { return };
        self.add_orphan(pod);
        let selector = |job: &Object| Some(context::decode::<Job>(job).ok()?.spec.selector);
        adopters(&self.jobs, change, selector).into_iter().for_each(|job| self.queue.add(job));
    }

    fn add_orphan(&self, pod: &Object) {
        if is_tracked(pod.meta()) {
            self.orphans.add(pod.key());
        }
    }

    /// Wakes a Job whose pods or status have changed. Of many pods, many more will.
    fn add_gathered(&self, key: &Key) {
        let pods = self.memory.lock().get(key).map_or(0, |memory| memory.pods);
        self.queue.add_gathered(key.clone(), pods, GATHER);
    }

    /// The Job that a controller reference means, if it is still the same object.
    fn resolve(&self, namespace: &str, owner: Option<&OwnerReference>) -> Option<Arc<Object>> {
        resolve(&self.jobs, &kinds::JOBS, namespace, owner)
    }

    /// What is remembered of a Job, now that these are its pods.
    fn recall(&self, key: &Key, uid: &str, pods: &[Pod]) -> (Record, HashSet<String>) {
        self.with_memory(key, uid, |memory| {
            memory.pods = pods.len();
            let still_shown =
                |uid: &String| pods.iter().any(|pod| pod.metadata.uid == *uid && is_tracked(&pod.metadata));
            memory.removed.retain(still_shown);
            memory.failures = memory.failures.kept(self.ctx.clock.now());
            (memory.failures, memory.removed.clone())
        })
    }

    fn remember_failures(&self, key: &Key, uid: &str, failures: Record) {
        self.with_memory(key, uid, |memory| memory.failures = failures);
    }

    fn remember_removal(&self, key: &Key, uid: &str, pod: &str) {
        self.with_memory(key, uid, |memory| memory.removed.insert(pod.to_owned()));
    }

    fn with_memory<T>(&self, key: &Key, uid: &str, with: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memories = self.memory.lock();
        let memory = memories.entry(key.clone()).or_default();
        if memory.uid != uid {
            // Another Job has the name by now.
            *memory = Memory { uid: uid.to_owned(), ..Memory::default() };
        }
        with(memory)
    }

    fn forget(&self, key: &Key) {
        self.expectations.forget(key);
        self.memory.lock().remove(key);
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.sync(key).await
    }
}
