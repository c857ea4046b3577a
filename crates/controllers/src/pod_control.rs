//! Makes and deletes pods for a controlling object, tells of it in events, and takes back what is expected of those that
//! come to nothing. Source: `controller.RealPodControl`, `slowStartBatch`.

use api::{DeleteOptions, Key, Status};
use futures::future::join_all;
use reconcile::{EventRecorder, EventType, Expectations, Involved, kinds};
use serde_json::Value;

use crate::claim::{is_ending_namespace, is_gone};
use crate::context::Ctx;

/// Handles of a pass over one object.
pub(crate) struct PodControl<'a> {
    /// Handles.
    pub(crate) ctx: &'a Ctx,
    /// Who is told.
    pub(crate) events: &'a EventRecorder,
    /// What the controller waits to see; the pass says it before it makes or deletes.
    pub(crate) expectations: &'a Expectations,
    /// The object.
    pub(crate) key: &'a Key,
    /// The object, as events name it.
    pub(crate) involved: &'a Involved,
}

impl PodControl<'_> {
    /// Makes so many pods, in batches that double as long as all succeed: who cannot make pods (a quota, a bad template)
    /// tries one and not five hundred. Gives how many were made, and the first failure. In a namespace that is being deleted
    /// nothing can be made, and soon nobody will want it: that is no failure.
    pub(crate) async fn create(
        &self,
        count: usize,
        body: impl Fn(usize) -> Value,
    ) -> (usize, Result<(), Status>) {
        let (mut made, mut next, mut batch) = (0, 0, 1);
        while next < count {
            let end = next.saturating_add(batch).min(count);
            let results = join_all((next..end).map(|at| self.create_one(body(at)))).await;
            made += results.iter().filter(|result| result.is_ok()).count();
            next = end;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                self.expectations.creations_failed(self.key, (count - made) as u64);
                return (made, if is_ending_namespace(&error) { Ok(()) } else { Err(error) });
            }
            batch *= 2;
        }
        (made, Ok(()))
    }

    async fn create_one(&self, body: Value) -> Result<(), Status> {
        match self.ctx.client.create(&kinds::PODS.gvr(), &self.key.namespace, &body).await {
            Ok(pod) => {
                self.say(EventType::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.meta().name));
                Ok(())
            }
            Err(status) => {
                if !is_ending_namespace(&status) {
                    self.say(EventType::Warning, "FailedCreate", format!("Error creating: {status}"));
                }
                Err(status)
            }
        }
    }

    /// Deletes a pod. One that is gone is no failure, also if another has its name by now.
    pub(crate) async fn delete(&self, name: &str, uid: &str) -> Result<(), Status> {
        let options = DeleteOptions { precondition_uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        let key = Key::new(self.key.namespace.as_str(), name);
        let Err(status) = self.ctx.client.delete(&kinds::PODS.gvr(), &key, options).await else {
            self.say(EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
            return Ok(());
        };
        // Its deletion will not be told any more.
        self.expectations.deletion_observed(self.key, uid);
        if is_gone(&status) {
            return Ok(());
        }
        self.say(EventType::Warning, "FailedDelete", format!("Error deleting: {status}"));
        Err(status)
    }

    fn say(&self, event_type: EventType, reason: &str, message: String) {
        self.events.event(self.involved.clone(), event_type, reason, message);
    }
}
