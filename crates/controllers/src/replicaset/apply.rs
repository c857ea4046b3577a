//! Carries out what the plan says: claims pods, makes and deletes them, writes the status.

use std::collections::HashMap;

use api::{Key, ObjectMeta, PatchType, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, Involved};

use super::Worker;
use super::members::Member;
use super::plan::{Decision, plan, pod_body};
use super::status;
use super::types::{self, Set, SetStatus};
use crate::claim::{Claim, ignore_missing};
use crate::pod_control::PodControl;
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
        let pods = claim.run(|pod| self.standings.of(pod).is_ok_and(|standing| standing.is_active())).await?;
        let mut active: Vec<Member> = pods
            .into_iter()
            .map(|pod| self.standings.of(&pod).map(|standing| Member { pod, standing }))
            .collect::<Result<_, _>>()?;
        let leaving = active.iter().filter(|member| member.standing.is_leaving()).count();
        let leaving = self.flavor.counts_leaving.then(|| i64::try_from(leaving).unwrap_or(i64::MAX));
        active.retain(|member| member.standing.is_active());
        let involved = Involved::object(&self.flavor.kind, &object);
        let result = if wait.is_none() && !set.metadata.is_terminating() {
            self.manage(key, &set, &active, &involved).await
        } else {
            Ok(())
        };
        let failure = result.as_ref().err().map(|(reason, status)| (*reason, status.message.clone()));
        let next = status::status(&set, &active, leaving, failure.as_ref(), self.ctx.clock.now());
        self.write_status(key, &set, &next).await?;
        match result {
            Err((_, status)) => Err(status.into()),
            Ok(()) => {
                let available = status::next_available(&set, &active, self.ctx.clock.now());
                Ok(Action::after(wait.into_iter().chain(available)))
            }
        }
    }

    async fn manage(
        &self,
        key: &Key,
        set: &Set,
        active: &[Member],
        involved: &Involved,
    ) -> Result<(), (&'static str, Status)> {
        let (events, expectations) = (&self.events, &self.expectations);
        let control = PodControl { ctx: &self.ctx, events, expectations, key, involved };
        match plan(set, active, || self.per_node(set), self.ctx.clock.now()) {
            Decision::Nothing => Ok(()),
            Decision::Create(count) => {
                let body = pod_body(&self.flavor.kind, set);
                expectations.expect(key, &set.metadata.uid, count as u64, []);
                let (_, result) = control.create(count, |_| body.clone()).await;
                result.map_err(|status| ("FailedCreate", status))
            }
            Decision::Delete(victims) => {
                let victims: Vec<&ObjectMeta> =
                    victims.into_iter().map(|index| active[index].pod.meta()).collect();
                expectations.expect(key, &set.metadata.uid, 0, victims.iter().map(|pod| pod.uid.clone()));
                let results = join_all(victims.iter().map(|pod| control.delete(&pod.name, &pod.uid))).await;
                results.into_iter().collect::<Result<(), _>>().map_err(|status| ("FailedDelete", status))
            }
        }
    }

    /// Active pods by node, of the set and of its siblings under one owner.
    fn per_node(&self, set: &Set) -> HashMap<String, usize> {
        let siblings: Vec<String> = match set.metadata.controller() {
            Some(owner) => {
                self.sets.owned_by(&owner.uid).iter().map(|sibling| sibling.meta().uid.clone()).collect()
            }
            None => vec![set.metadata.uid.clone()],
        };
        let mut counts = HashMap::new();
        for pod in siblings.iter().flat_map(|uid| self.pods.owned_by(uid)) {
            // One that cannot be read is the pass's to tell.
            let active = self.standings.of(&pod).is_ok_and(|standing| standing.is_active());
            if let Some(node) = pod.node_name().filter(|_| active) {
                *counts.entry(node.to_owned()).or_insert(0) += 1;
            }
        }
        counts
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
