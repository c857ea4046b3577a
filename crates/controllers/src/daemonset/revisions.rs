//! The history of a DaemonSet: which revision is that of its template, and which are earlier ones.
//! Source: `constructHistory`.

use std::collections::HashSet;

use api::{Key, PatchType, Status};
use base::BoxError;
use reconcile::kinds;
use serde_json::json;

use super::Worker;
use super::types::{Daemon, DaemonSet, HASH_LABEL};
use crate::claim::ignore_missing;
use crate::history::{History, Revision, Snapshot};

/// Which revisions hold what. Pure.
#[derive(Debug, PartialEq)]
pub(super) struct Sorted {
    /// The one of the template, if there is one.
    pub(super) current: Option<Revision>,
    /// Others that hold the same.
    pub(super) copies: Vec<Revision>,
    /// The earlier ones, oldest first.
    pub(super) old: Vec<Revision>,
    /// The number that the current one is to have, or a greater one.
    pub(super) number: i64,
}

/// Sorts revisions, which come oldest first, by what they hold.
pub(super) fn sort_out(snapshot: &Snapshot, revisions: Vec<Revision>) -> Sorted {
    let (mut same, old): (Vec<_>, Vec<_>) =
        revisions.into_iter().partition(|revision| snapshot.is_held_by(revision));
    let current = same.pop();
    let number = old.iter().map(|revision| revision.revision).max().unwrap_or(0).saturating_add(1);
    Sorted { current, copies: same, old, number }
}

/// The hash of a revision's pods.
fn hash(revision: &Revision) -> &str {
    let meta = &revision.metadata;
    meta.labels.get(HASH_LABEL).unwrap_or(&meta.name)
}

/// The old revisions that are too many. Those of pods that are there stay. Source: `cleanupHistory`.
pub(super) fn surplus<'a>(old: &'a [Revision], daemons: &[Daemon], limit: i64) -> Vec<&'a Revision> {
    let live: HashSet<&str> = daemons.iter().map(Daemon::hash).collect();
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.iter().filter(|revision| !live.contains(hash(revision))).take(surplus).collect()
}

impl Worker {
    /// The hash of the template's revision, which is made if there is none and is the newest in any case, and the earlier
    /// ones.
    pub(super) async fn construct_history(
        &self,
        key: &Key,
        set: &DaemonSet,
        daemons: &[Daemon],
        history: &History<'_>,
    ) -> Result<(String, Vec<Revision>), BoxError> {
        let snapshot = Snapshot::of(&set.spec.template);
        let revisions = history.claimed().await?;
        for revision in revisions.iter().filter(|revision| !revision.metadata.labels.contains_key(HASH_LABEL))
        {
            let name = &revision.metadata.name;
            let label =
                json!({ "metadata": { "uid": revision.metadata.uid, "labels": { HASH_LABEL: name } } });
            history.patch(revision, label).await?;
        }
        let Sorted { current, copies, old, number } = sort_out(&snapshot, revisions);
        let Some(current) = current else {
            return Ok((self.create_revision(key, set, history, &snapshot, number).await?, old));
        };
        if !copies.is_empty() {
            self.relabel(daemons, &copies, hash(&current)).await?;
            history.delete(&copies).await?;
        }
        if current.revision < number {
            history.renumber(&current, number).await?;
        }
        Ok((hash(&current).to_owned(), old))
    }

    async fn create_revision(
        &self,
        key: &Key,
        set: &DaemonSet,
        history: &History<'_>,
        snapshot: &Snapshot,
        number: i64,
    ) -> Result<String, BoxError> {
        let (name, hash) = snapshot.name(&set.metadata.name, set.status.collision_count);
        if history.create(snapshot, &name, (HASH_LABEL, &hash), number).await?.is_some() {
            return Ok(hash);
        }
        // Two templates have one hash: the next pass uses another name, if this one has seen the newest count.
        let resource = kinds::DAEMON_SETS.gvr();
        let live: DaemonSet = crate::context::decode(&*self.ctx.client.get(&resource, key).await?)?;
        if live.status.collision_count == set.status.collision_count {
            let collisions = set.status.collision_count.unwrap_or(0).saturating_add(1);
            let patch = json!({ "metadata": { "resourceVersion": live.metadata.resource_version },
                "status": { "collisionCount": collisions } });
            let object = self.ctx.client.patch(&resource, key, "status", PatchType::Merge, &patch).await?;
            self.ctx.caught_up(&self.sets, object.revision()).await;
        }
        Err(Status::conflict("apps", "controllerrevisions", &name, "another revision has the name").into())
    }

    /// Pods of a copy become pods of the revision that stays.
    async fn relabel(&self, daemons: &[Daemon], copies: &[Revision], kept: &str) -> Result<(), BoxError> {
        let copies: HashSet<&str> = copies.iter().map(hash).collect();
        for daemon in daemons.iter().filter(|daemon| copies.contains(daemon.hash()) && daemon.hash() != kept)
        {
            let meta = &daemon.pod.metadata;
            let key = Key::new(meta.namespace.as_str(), meta.name.as_str());
            let patch = json!({ "metadata": { "uid": meta.uid, "labels": { HASH_LABEL: kept } } });
            let patched = self.ctx.client.patch(&kinds::PODS.gvr(), &key, "", PatchType::Merge, &patch).await;
            if let Some(pod) = ignore_missing(patched)? {
                self.ctx.caught_up(&self.pods, pod.revision()).await;
            }
        }
        Ok(())
    }
}
