//! Jobs that have ended go after the time that they ask for. Source:
//! `k8s.io/kubernetes/pkg/controller/ttlafterfinished`.

use std::sync::Arc;

use api::{DeleteOptions, Key, Object, Propagation, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::{SignedDuration, Timestamp};
use reconcile::{Action, Informer, Queue, Reconcile, kinds};

use crate::claim::ignore_gone;
use crate::context::{Ctx, decode, work};
use crate::job::Job;

const NAME: &str = "ttl-after-finished-controller";
/// Source: `--concurrent-ttl-after-finished-syncs`.
const WORKERS: usize = 5;

/// The controller.
pub struct TtlAfterFinished {
    ctx: Ctx,
}

impl TtlAfterFinished {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for TtlAfterFinished {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), jobs: self.ctx.informers.get(kinds::JOBS) });
        let queue: Queue<Key> = self.ctx.queue("ttl_jobs_to_delete");
        let changed = queue.clone();
        let _registration = worker.jobs.on_change(move |change| {
            let ends = |job: &Arc<Object>| decode::<Job>(job).is_ok_and(|job| ends_at(&job).is_some());
            if change.new.as_ref().is_some_and(ends) {
                changed.add(change.key.clone());
            }
        });
        work(&ctx, NAME, &[&worker.jobs], &queue, WORKERS, &worker).await
    }
}

struct Worker {
    ctx: Ctx,
    jobs: Informer,
}

/// When a Job is to go: some time after it ended, if it ended and asks for it.
fn ends_at(job: &Job) -> Option<Timestamp> {
    let stay = job.spec.ttl_seconds_after_finished.filter(|_| !job.metadata.is_terminating())?;
    let ended = job.status.finished()?.last_transition_time?;
    Some(ended.saturating_add(SignedDuration::from_secs(stay)).unwrap_or(Timestamp::MAX))
}

impl Worker {
    /// How long a Job may still stay: zero if it has to go, nothing if it may stay for ever.
    fn left(&self, job: &Object) -> Result<Option<std::time::Duration>, BoxError> {
        let now = self.ctx.clock.now();
        let at = ends_at(&decode(job)?);
        Ok(at.map(|at| at.duration_since(now).try_into().unwrap_or_default()))
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(known) = self.jobs.get(key) else { return Ok(Action::Done) };
        match self.left(&known)? {
            None => return Ok(Action::Done),
            Some(left) if !left.is_zero() => return Ok(Action::After(left)),
            Some(_) => {}
        }
        // The cache may not know that it was given more time.
        let live = match self.ctx.client.get(&kinds::JOBS.gvr(), key).await {
            Ok(live) => live,
            Err(status) if status.reason == Reason::NotFound => return Ok(Action::Done),
            Err(status) => return Err(status.into()),
        };
        match self.left(&live)? {
            None => return Ok(Action::Done),
            Some(left) if !left.is_zero() => return Ok(Action::After(left)),
            Some(_) => {}
        }
        let due = ends_at(&decode(&live)?);
        let options = DeleteOptions {
            propagation: Some(Propagation::Foreground),
            precondition_uid: Some(live.meta().uid.clone()),
            precondition_resource_version: Some(live.meta().resource_version.clone()),
            ..DeleteOptions::default()
        };
        // Whatever changed meanwhile brings it back here.
        ignore_gone(self.ctx.client.delete(&kinds::JOBS.gvr(), key, options).await)?;
        if let Some((figures, due)) = self.ctx.figures.as_ref().zip(due) {
            figures.jobs.late(self.ctx.clock.now().duration_since(due).try_into().unwrap_or_default());
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_has_ended_and_asks_for_it_goes() {
        let at = |ttl: Option<i64>, conditions: serde_json::Value, gone: Option<&str>| {
            let job: Job = serde_json::from_value(json!({
                "metadata": { "deletionTimestamp": gone },
                "spec": { "ttlSecondsAfterFinished": ttl }, "status": { "conditions": conditions },
            }))
            .unwrap();
            ends_at(&job).map(|at| at.to_string())
        };
        let condition = |kind: &str, status: &str| {
            json!([{ "type": "Suspended", "status": "False", "lastTransitionTime": "2023-01-01T00:00:00Z" },
                { "type": kind, "status": status, "lastTransitionTime": "2024-01-01T00:00:00Z" }])
        };
        let at_once = Some("2024-01-01T00:00:00Z".to_owned());
        assert_eq!(at(Some(0), condition("Complete", "True"), None), at_once);
        assert_eq!(at(Some(90), condition("Failed", "True"), None), Some("2024-01-01T00:01:30Z".into()));
        assert_eq!(at(None, condition("Failed", "True"), None), None);
        assert_eq!(at(Some(0), condition("FailureTarget", "True"), None), None);
        assert_eq!(at(Some(0), condition("Complete", "False"), None), None);
        assert_eq!(at(Some(0), condition("Complete", "True"), Some("2024-01-01T00:00:00Z")), None);
    }
}
