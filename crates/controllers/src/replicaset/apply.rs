//! Carries out what the plan says: claims pods, makes and deletes them, writes the status.

use std::collections::HashMap;

use api::{DeleteOptions, Key, PatchType, Reason, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, EventType, Involved, kinds};

use super::Worker;
use super::plan::{Decision, plan, pod_body};
use super::status::{self, Failure};
use super::types::{self, Set};
use crate::claim::{Claim, ignore_gone};
use crate::context::decode;
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
        let pods = claim.run(|pod| decode::<Pod>(pod).is_ok_and(|pod| pod.is_active())).await?;
        let active: Vec<Pod> = pods
            .iter()
            .map(|pod| decode::<Pod>(pod))
            .filter(|pod| pod.as_ref().map_or(true, Pod::is_active))
            .collect::<Result<_, _>>()?;
        let involved = Involved::object(&self.flavor.kind, &object);
        let result = if wait.is_none() && !set.metadata.is_terminating() {
            self.manage(key, &set, &active, &involved).await
        } else {
            Ok(())
        };
        let failure = result.as_ref().err().map(|(reason, status)| (*reason, status.message.clone()));
        self.write_status(key, &set, &active, failure.as_ref()).await?;
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
        active: &[Pod],
        involved: &Involved,
    ) -> Result<(), (&'static str, Status)> {
        match plan(set, active, &self.per_node(set), self.ctx.clock.now()) {
            Decision::Nothing => Ok(()),
            Decision::Create(count) => {
                self.create(key, set, count, involved).await.map_err(|status| ("FailedCreate", status))
            }
            Decision::Delete(victims) => {
                let victims: Vec<&Pod> = victims.into_iter().map(|index| &active[index]).collect();
                self.delete(key, set, &victims, involved).await.map_err(|status| ("FailedDelete", status))
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
            if let Some(node) = pod.node_name().filter(|_| !pod.meta().is_terminating()) {
                *counts.entry(node.to_owned()).or_insert(0) += 1;
            }
        }
        counts
    }

    /// Makes pods in batches that double as long as all succeed: a set that cannot make pods (a quota, a bad template)
    /// tries one and not five hundred. Source: `slowStartBatch`.
    async fn create(&self, key: &Key, set: &Set, count: usize, involved: &Involved) -> Result<(), Status> {
        let body = pod_body(&self.flavor.kind, set);
        self.expectations.expect(key, &set.metadata.uid, count as u64, []);
        let mut left = count;
        let mut batch = 1;
        while left > 0 {
            batch = batch.min(left);
            let results =
                join_all((0..batch).map(|_| self.create_one(&body, &key.namespace, involved))).await;
            let failed = results.iter().filter(|result| result.is_err()).count();
            left -= batch;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                self.expectations.creations_failed(key, (failed + left) as u64);
                // Nothing can be made in a namespace that is being deleted, and soon nobody will want it.
                let ends = error.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating");
                return if ends { Ok(()) } else { Err(error) };
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(
        &self,
        body: &serde_json::Value,
        namespace: &str,
        involved: &Involved,
    ) -> Result<(), Status> {
        match self.ctx.client.create(&kinds::PODS.gvr(), namespace, body).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.meta().name);
                self.events.event(involved.clone(), EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(status) => {
                let message = format!("Error creating: {status}");
                self.events.event(involved.clone(), EventType::Warning, "FailedCreate", message);
                Err(status)
            }
        }
    }

    async fn delete(
        &self,
        key: &Key,
        set: &Set,
        victims: &[&Pod],
        involved: &Involved,
    ) -> Result<(), Status> {
        let uids = victims.iter().map(|pod| pod.metadata.uid.clone());
        self.expectations.expect(key, &set.metadata.uid, 0, uids);
        let results = join_all(victims.iter().map(|pod| self.delete_one(key, pod, involved))).await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, key: &Key, pod: &Pod, involved: &Involved) -> Result<(), Status> {
        let meta = &pod.metadata;
        let options = DeleteOptions { precondition_uid: Some(meta.uid.clone()), ..DeleteOptions::default() };
        let pod_key = Key::new(meta.namespace.as_str(), meta.name.as_str());
        match self.ctx.client.delete(&kinds::PODS.gvr(), &pod_key, options).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", meta.name);
                self.events.event(involved.clone(), EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(status) => {
                self.expectations.deletion_observed(key, &meta.uid);
                if status.reason == Reason::Conflict {
                    // Another pod has the name by now: the one that was meant is gone.
                    return Ok(());
                }
                let message = format!("Error deleting: {status}");
                self.events.event(involved.clone(), EventType::Warning, "FailedDelete", message);
                Err(status)
            }
        }
    }

    async fn write_status(
        &self,
        key: &Key,
        set: &Set,
        active: &[Pod],
        failure: Option<&Failure>,
    ) -> Result<(), BoxError> {
        let next = status::status(set, active, failure, self.ctx.clock.now());
        if next == set.status {
            return Ok(());
        }
        let patch = status::patch(&set.metadata.uid, &next);
        let resource = self.flavor.kind.gvr();
        let written = self.ctx.client.patch(&resource, key, "status", PatchType::Merge, &patch).await;
        ignore_gone(written)?;
        Ok(())
    }
}
