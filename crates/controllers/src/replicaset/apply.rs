//! Carries out what the plan says: claims pods, makes and deletes them, writes the status.

use api::{Key, Object, PatchType, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, Involved};

use super::Worker;
use super::plan::{Decision, plan, pod_body};
use super::status;
use super::types::{self, Set, SetStatus};
use crate::claim::{Claim, ignore_missing};
use crate::context::decode;
use crate::pod_control::PodControl;
use crate::pods::Pod;
use crate::selector::Select;

impl Worker {
    /// One pass over one set.
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let set = types::decode(self.flavor, &object)?;
        if set.selector.is_empty() {
            return Ok(Action::Done);
        }
        // Read before the pods: an observation that comes in between only makes the next pass come sooner.
        let wait = self.expectations.wait(key, &set.metadata.uid);
        let claim = Claim {
            ctx: &self.ctx,
            owner_kind: self.flavor.kind,
            owner: &set.metadata,
            selector: &set.selector,
            objects: &self.pods,
            finalizer: None,
        };
        let strays = self.rosters.strays(&set)?;
        let adoptable = |pod: &Object| decode::<Pod>(pod).is_ok_and(|pod| pod.is_active());
        if !claim.settle(strays, adoptable).await?.is_empty() {
            // The watch brings what it has adopted, and with it the next pass.
            return Ok(Action::after(wait));
        }
        let now = self.ctx.clock.now();
        let pods = self.rosters.count(&set, now);
        let involved = Involved::object(&self.flavor.kind, &object);
        let result = if wait.is_none() && !set.metadata.is_terminating() {
            self.manage(key, &set, pods.active, &involved).await
        } else {
            Ok(())
        };
        let failure = result.as_ref().err().map(|(reason, status)| (*reason, status.message.clone()));
        let leaving = self.flavor.counts_leaving.then_some(pods.leaving);
        let next = status::status(&set, &pods, leaving, failure.as_ref(), now);
        self.write_status(key, &set, &next).await?;
        match result {
            Err((_, status)) => Err(status.into()),
            Ok(()) => Ok(Action::after(wait.into_iter().chain(pods.next_available))),
        }
    }

    async fn manage(
        &self,
        key: &Key,
        set: &Set,
        active: usize,
        involved: &Involved,
    ) -> Result<(), (&'static str, Status)> {
        let (events, expectations) = (&self.events, &self.expectations);
        let control = PodControl { ctx: &self.ctx, events, expectations, key, involved };
        match plan(set, active) {
            Decision::Nothing => Ok(()),
            Decision::Create(count) => {
                let body = pod_body(&self.flavor.kind, set);
                expectations.expect(key, &set.metadata.uid, count as u64, []);
                let (_, result) = control.create(count, |_| body.clone()).await;
                result.map_err(|status| ("FailedCreate", status))
            }
            Decision::Delete(aim) => {
                let (uid, now) = (&set.metadata.uid, self.ctx.clock.now());
                let victims = self.rosters.victims(&(&set.metadata).into(), &self.siblings(set), aim, now);
                expectations.expect(key, uid, 0, victims.iter().map(|pod| pod.uid.clone()));
                let results = join_all(victims.iter().map(|pod| control.delete(&pod.name, &pod.uid))).await;
                results.into_iter().collect::<Result<(), _>>().map_err(|status| ("FailedDelete", status))
            }
        }
    }

    /// The uids of the sets of this one's owner, its own among them.
    fn siblings(&self, set: &Set) -> Vec<String> {
        match set.metadata.controller() {
            Some(owner) => {
                self.sets.owned_by(&owner.uid).iter().map(|sibling| sibling.meta().uid.clone()).collect()
            }
            None => vec![set.metadata.uid.clone()],
        }
    }

    async fn write_status(&self, key: &Key, set: &Set, next: &SetStatus) -> Result<(), BoxError> {
        if *next == set.status {
            return Ok(());
        }
        let patch = status::patch(&set.metadata.uid, next);
        let resource = self.flavor.kind.gvr();
        let written = self.ctx.client.patch(&resource, key, "status", PatchType::Merge, &patch).await;
        ignore_missing(written)?;
        Ok(())
    }
}
