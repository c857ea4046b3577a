//! Carries out a DaemonSet's plan: makes and deletes pods, writes the status, keeps the history short.

use std::sync::Arc;

use api::{Key, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, EventType, Involved, kinds};

use super::placement::{self, Placement};
use super::plan::{Plan, Snapshot, plan};
use super::types::{Daemon, DaemonSet, Node};
use super::{Worker, revisions, status};
use crate::claim::{Claim, ignore_missing};
use crate::context::decode;
use crate::history::History;
use crate::pod_control::PodControl;
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
        let control = PodControl {
            ctx: &self.ctx,
            events: &self.events,
            expectations: &self.expectations,
            key: pass.key,
            involved: &pass.involved,
        };
        let body = |at: usize| placement::pod(pass.set, pass.hash, &plan.create[at]);
        let (_, created) = control.create(plan.create.len(), body).await;
        let deletions = plan.delete.iter().map(|(name, uid)| control.delete(name, uid));
        let deleted: Result<(), Status> = join_all(deletions).await.into_iter().collect();
        created.and(deleted)
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
        if let Some(object) = ignore_missing(written)? {
            self.ctx.caught_up(&self.sets, object.revision()).await;
        }
        Ok(())
    }
}
