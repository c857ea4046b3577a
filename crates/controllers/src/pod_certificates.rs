//! PodCertificateRequests go half an hour after they were made, whatever became of them: nodes make new ones.
//! Source: `k8s.io/kubernetes/pkg/controller/certificates/cleaner/pcrcleaner.go`.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use reconcile::{Action, Informer, Queue, Reconcile, kinds};

use crate::claim::ignore_gone;
use crate::context::{Ctx, work};

const NAME: &str = "podcertificaterequest-cleaner-controller";
const KEPT: Duration = Duration::from_secs(30 * 60);

/// The controller.
pub struct PodCertificates {
    ctx: Ctx,
}

impl PodCertificates {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// How long a request is still kept.
fn left(made: Option<Timestamp>, now: Timestamp) -> Duration {
    let age = made.map(|made| Duration::try_from(now.duration_since(made)).unwrap_or_default());
    KEPT.saturating_sub(age.unwrap_or_default())
}

struct Worker {
    ctx: Ctx,
    requests: Informer,
}

#[async_trait]
impl Component for PodCertificates {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let requests = self.ctx.informers.get(kinds::POD_CERTIFICATE_REQUESTS);
        let queue: Queue<Key> = self.ctx.queue("podcertificaterequest_cleaner");
        let keys = queue.clone();
        let _registration = requests.on_change(move |change| {
            if change.old.is_none() {
                keys.add(change.key.clone());
            }
        });
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), requests });
        work(&ctx, NAME, &[&worker.requests], &queue, 1, &worker).await
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(held) = self.requests.get(key) else { return Ok(Action::Done) };
        let left = left(held.meta().creation_timestamp, self.ctx.clock.now());
        if !left.is_zero() {
            return Ok(Action::After(left));
        }
        let uid = Some(held.meta().uid.clone());
        let options = DeleteOptions { precondition_uid: uid, ..DeleteOptions::default() };
        // Another one of the name is looked at for itself.
        ignore_gone(self.ctx.client.delete(self.requests.resource(), key, options).await)?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_kept_for_half_an_hour() {
        let made = Timestamp::UNIX_EPOCH;
        assert_eq!(left(Some(made), made), KEPT);
        assert_eq!(left(Some(made), made + Duration::from_secs(1799)), Duration::from_secs(1));
        assert!(left(Some(made), made + KEPT).is_zero());
    }
}
