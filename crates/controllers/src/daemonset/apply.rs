//! Carries out a DaemonSet's plan: makes and deletes pods, writes the status, keeps the history short.

use std::sync::Arc;

use api::{DeleteOptions, Key, Reason, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, EventType, Involved, kinds};

use super::placement::{self, Placement};
use super::plan::{Plan, Snapshot, plan};
use super::types::{Daemon, DaemonSet, Node};
use super::{Worker, revisions, status};
use crate::claim::{Claim, ignore_gone};
use crate::context::decode;
use crate::history::History;
use crate::selector::Select;

/// At most so many pods are made, and so many deleted, in one go. Source: `BurstReplicas`.
const BURST: usize = 250;
/// How many old revisions are kept. Source: `SetDefaults_DaemonSet`.
const HISTORY_LIMIT: i64 = 10;

/// What a pass carries.
struct Pass<'a> {
    key: &'a Key,
    set: &'a DaemonSet,
    hash: &'a str,
    involved: Involved,
}

impl Worker {
    /// One pass over one DaemonSet.
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let set: DaemonSet = decode(&object)?;
        let involved = Involved::object(&kinds::DAEMON_SETS, &object);
        if set.spec.selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.event(involved, EventType::Warning, "SelectingAll", message);
            return Ok(Action::Done);
        }
        // Pods and history of a set that is being deleted go at their own pace: nothing sensible can be said of them.
        if set.metadata.is_terminating() {
            return Ok(Action::Done);
        }
        // Read before the pods: an observation that comes in between only makes the next pass come sooner.
        let wait = self.expectations.wait(key, &set.metadata.uid);
        let daemons = self.daemons(&set).await?;
        let history = History {
            ctx: &self.ctx,
            revisions: &self.revisions,
            owner_kind: kinds::DAEMON_SETS,
            owner: &set.metadata,
            selector: &set.spec.selector,
        };
        let (hash, old) = self.construct_history(key, &set, &daemons, &history).await?;
        let nodes: Vec<Arc<Node>> = self.known.read().values().cloned().collect();
        let snapshot = Snapshot {
            set: &set,
            placement: &Placement::of(&set)?,
            nodes: &nodes,
            daemons: &daemons,
            hash: &hash,
            now: self.ctx.clock.now(),
        };
        let mut again = None;
        let mut result = Ok(());
        if wait.is_none() {
            let plan = plan(&snapshot, &mut self.failures.lock());
            again = plan.again;
            result = self.carry_out(&Pass { key, set: &set, hash: &hash, involved }, plan).await;
            if result.is_ok() {
                let limit = set.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
                result = history.delete(revisions::surplus(&old, &daemons, limit)).await;
            }
        }
        let written = self.write_status(key, &snapshot, wait.is_none()).await;
        result?;
        written?;
        Ok(Action::after(wait.into_iter().chain(again)))
    }

    /// The set's pods after adoption and release.
    async fn daemons(&self, set: &DaemonSet) -> Result<Vec<Daemon>, BoxError> {
        let claim = Claim {
            ctx: &self.ctx,
            owner_kind: kinds::DAEMON_SETS,
            owner: &set.metadata,
            selector: &set.spec.selector,
            objects: &self.pods,
            finalizer: None,
        };
        claim.run(|_| true).await?.iter().map(|pod| Daemon::decode(pod)).collect()
    }

    /// Source: `syncNodes`.
    async fn carry_out(&self, pass: &Pass<'_>, mut plan: Plan) -> Result<(), Status> {
        for note in plan.notes {
            self.note(pass, note.event_type, note.reason, note.message);
        }
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        let uids = plan.delete.iter().map(|(_, uid)| uid.clone());
        self.expectations.expect(pass.key, &pass.set.metadata.uid, plan.create.len() as u64, uids);
        let created = self.create(pass, &plan.create).await;
        let deletions = plan.delete.iter().map(|(name, uid)| self.delete(pass, name, uid));
        let deleted: Result<(), Status> = join_all(deletions).await.into_iter().collect();
        created.and(deleted)
    }

    /// Makes pods in batches that double as long as all succeed: a set that cannot make pods (a quota, a bad template) tries
    /// one and not one for each node. Source: `slowStartBatch`.
    async fn create(&self, pass: &Pass<'_>, nodes: &[String]) -> Result<(), Status> {
        let (mut left, mut size) = (nodes, 1);
        while !left.is_empty() {
            let (batch, rest) = left.split_at(size.min(left.len()));
            let results = join_all(batch.iter().map(|node| self.create_one(pass, node))).await;
            let errors: Vec<Status> = results.into_iter().filter_map(Result::err).collect();
            left = rest;
            if let Some(error) = errors.first() {
                self.expectations.creations_failed(pass.key, (errors.len() + left.len()) as u64);
                // Nothing can be made in a namespace that is being deleted, and soon nobody will want it.
                return if in_ending_namespace(error) { Ok(()) } else { Err(error.clone()) };
            }
            size *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, pass: &Pass<'_>, node: &str) -> Result<(), Status> {
        let body = placement::pod(pass.set, pass.hash, node);
        match self.ctx.client.create(&kinds::PODS.gvr(), &pass.key.namespace, &body).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.meta().name);
                self.note(pass, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(status) => {
                if !in_ending_namespace(&status) {
                    let message = format!("Error creating: {status}");
                    self.note(pass, EventType::Warning, "FailedCreate", message);
                }
                Err(status)
            }
        }
    }

    async fn delete(&self, pass: &Pass<'_>, name: &str, uid: &str) -> Result<(), Status> {
        let options = DeleteOptions { precondition_uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        let key = Key::new(pass.key.namespace.as_str(), name);
        match self.ctx.client.delete(&kinds::PODS.gvr(), &key, options).await {
            Ok(()) => {
                self.note(pass, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(status) => {
                self.expectations.deletion_observed(pass.key, uid);
                if matches!(status.reason, Reason::NotFound | Reason::Conflict) {
                    // It is gone, and another may have its name by now.
                    return Ok(());
                }
                let message = format!("Error deleting: {status}");
                self.note(pass, EventType::Warning, "FailedDelete", message);
                Err(status)
            }
        }
    }

    fn note(&self, pass: &Pass<'_>, event_type: EventType, reason: &str, message: String) {
        self.events.event(pass.involved.clone(), event_type, reason, message);
    }

    async fn write_status(&self, key: &Key, snapshot: &Snapshot<'_>, acted: bool) -> Result<(), BoxError> {
        let next = status::status(snapshot, acted);
        if next == snapshot.set.status {
            return Ok(());
        }
        let patch = status::patch(&snapshot.set.metadata.uid, &next);
        let resource = kinds::DAEMON_SETS.gvr();
        let written = self.ctx.client.patch(&resource, key, "status", api::PatchType::Merge, &patch).await;
        if let Some(object) = ignore_gone(written)? {
            self.ctx.caught_up(&self.sets, object.revision()).await;
        }
        Ok(())
    }
}

fn in_ending_namespace(error: &Status) -> bool {
    error.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}
