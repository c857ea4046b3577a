//! Pods that no Job will count any more lose their finalizers: they would never go otherwise. Source: `syncOrphanPod`.

use std::sync::Arc;

use api::{Key, ObjectMeta, OwnerReference, Reason};
use async_trait::async_trait;
use base::BoxError;
use reconcile::{Action, Reconcile, kinds};

use super::Worker;
use super::types::{Job, is_tracked};
use crate::context::decode;

/// Works on the queue of orphans.
pub(super) struct Orphans(pub(super) Arc<Worker>);

#[async_trait]
impl Reconcile<Key> for Orphans {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(pod) = self.0.pods.get(key) else { return Ok(Action::Done) };
        let meta = pod.meta();
        if is_tracked(meta) && !self.0.will_be_counted(meta).await? {
            self.0.take_finalizer(meta).await?;
        }
        Ok(Action::Done)
    }
}

impl Worker {
    /// Whether somebody else sees to the pod's finalizer.
    async fn will_be_counted(&self, pod: &ObjectMeta) -> Result<bool, BoxError> {
        let Some(owner) = pod.controller() else { return Ok(false) };
        if owner.kind != kinds::JOBS.kind || owner.api_version != kinds::JOBS.api_version() {
            return Ok(true);
        }
        let job = self.owner(&pod.namespace, owner).await?;
        Ok(job.is_some_and(|job| job.is_managed_elsewhere() || job.status.finished().is_none()))
    }

    /// The Job that a reference means. What the cache does not know is asked of the server: it may be too new.
    async fn owner(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<Job>, BoxError> {
        let key = Key::new(namespace, owner.name.as_str());
        let known = self.jobs.get(&key).filter(|job| job.meta().uid == owner.uid);
        let object = match known {
            Some(job) => job,
            None => match self.ctx.client.get(&kinds::JOBS.gvr(), &key).await {
                Ok(job) if job.meta().uid == owner.uid => job,
                Ok(_) => return Ok(None),
                Err(status) if status.reason == Reason::NotFound => return Ok(None),
                Err(status) => return Err(status.into()),
            },
        };
        Ok(Some(decode(&object)?))
    }
}
