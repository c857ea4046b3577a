//! Runs a reconcile function over a queue with several workers.

use std::sync::Arc;
use std::time::Duration;

use api::{Reason, Status};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::Context;

use crate::queue::{Queue, QueueKey};

/// What a successful reconcile asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Done,
    /// Once more after this time, changed or not.
    After(Duration),
}

impl Action {
    /// Once more after the shortest of these times; nothing if there is none.
    pub fn after(waits: impl IntoIterator<Item = Duration>) -> Self {
        waits.into_iter().min().map_or(Self::Done, Self::After)
    }
}

/// Brings the world of one key to where it should be. Idempotent: it is called again after every change and failure.
#[async_trait]
pub trait Reconcile<K: QueueKey>: Send + Sync + 'static {
    /// Works on one key. An error puts the key back with a back-off.
    async fn reconcile(&self, key: &K) -> Result<Action, BoxError>;
}

/// Works on the queue's keys with `workers` tasks until the component drains; then lets running work finish.
pub async fn run_workers<K, R>(
    ctx: &Context,
    name: &'static str,
    queue: &Queue<K>,
    workers: usize,
    reconciler: Arc<R>,
) where
    K: QueueKey + std::fmt::Debug,
    R: Reconcile<K> + ?Sized,
{
    let mut tasks = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        let (ctx, queue, reconciler) = (ctx.clone(), queue.clone(), reconciler.clone());
        let worker = ctx.clone();
        tasks.push(ctx.spawn_draining(async move {
            loop {
                let claim = tokio::select! {
                    biased;
                    () = worker.cancelled() => return,
                    claim = queue.next() => claim,
                };
                let Some(claim) = claim else { return };
                work_on(name, &queue, claim.key(), &*reconciler).await;
            }
        }));
    }
    for task in tasks {
        // A worker that panicked has been reported by the panic handler; the others go on.
        let _ = task.await;
    }
}

async fn work_on<K, R>(name: &'static str, queue: &Queue<K>, key: &K, reconciler: &R)
where
    K: QueueKey + std::fmt::Debug,
    R: Reconcile<K> + ?Sized,
{
    match reconciler.reconcile(key).await {
        Ok(action) => {
            queue.forget(key);
            if let Action::After(delay) = action {
                queue.add_after(key.clone(), delay);
            }
        }
        Err(error) => {
            let delay = queue.retry(key.clone());
            let text = base::error::chain(&*error);
            if is_race(&error) {
                tracing::debug!(controller = name, ?key, error = %text, ?delay, "out of date, trying again");
            } else {
                tracing::warn!(controller = name, ?key, error = %text, ?delay, "reconcile failed, trying again");
            }
        }
    }
}

/// Whether an error only says that someone else was faster: expected, and cured by trying again.
fn is_race(error: &BoxError) -> bool {
    error
        .downcast_ref::<Status>()
        .is_some_and(|status| matches!(status.reason, Reason::Conflict | Reason::AlreadyExists))
}
