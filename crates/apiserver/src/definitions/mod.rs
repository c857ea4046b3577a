//! CustomResourceDefinitions at work: whenever one changes, its names are accepted or refused, its rows are served, and
//! what is left of one that is being deleted is deleted with it. A write of a definition is answered after that.
//! Source: `apiextensions-apiserver/pkg/controller` (status, establish, finalizer) and `pkg/apiserver`.

mod approval;
mod finalize;
mod names;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::connect::User;
use api::{Call, GroupVersionResource, Object, Request, Response, Status, WriteOptions};
use serde_json::Value;
use store::Revision;
use tokio::sync::watch;

use crate::cache::{Cache, Changes};
use crate::lengthy;
use crate::pipeline::Pipeline;
use crate::strategy::View as _;
use crate::tree;
pub use approval::{ANNOTATION as APPROVED, Approval};
use names::{Names, Taken};

/// The group of definitions.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
/// Their plural.
pub(crate) const PLURAL: &str = "customresourcedefinitions";
/// What keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Who writes here.
const MANAGER: &str = "skiff:apiextensions";
/// How long the answer to a write waits for what it says to be served.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// How far the definitions have been looked at.
#[derive(Debug)]
pub(crate) struct Progress(watch::Sender<Revision>);

impl Default for Progress {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Progress {
    /// Returns once everything that definitions said at a revision is served, or after a while without.
    pub(crate) async fn reached(&self, revision: Revision) {
        let mut seen = self.0.subscribe();
        let reached = seen.wait_for(|now| *now >= revision);
        if tokio::time::timeout(SETTLE_MAX, reached).await.is_err() {
            tracing::warn!(revision, "a CustomResourceDefinition is answered before it is served");
        }
    }

    /// Returns once all definitions have been looked at for the first time.
    pub(crate) async fn begun(&self) {
        // The sender is held by `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|now| *now > 0).await;
    }
}

/// The identity of what is written here.
pub(crate) fn identity() -> User {
    User { name: MANAGER.into(), groups: vec!["system:masters".into()], ..User::default() }
}

/// Whether a write is ours: its answer does not wait for us.
pub(crate) fn is_own(user: &User) -> bool {
    user.name == MANAGER
}

/// Follows the definitions for as long as there is a pipeline.
pub(crate) async fn follow(pipeline: Weak<Pipeline>) {
    let Some(cache) = pipeline.upgrade().and_then(|pipeline| definitions(&pipeline)) else { return };
    cache.synced().await;
    let mut changes = cache.revisions();
    let (mut registrar, mut seen) = (Registrar::default(), 0);
    loop {
        changes.mark_unchanged();
        let reached = cache.revision();
        let Some(present) = pipeline.upgrade() else { return };
        // Where only others changed there is nothing to do but to say how far this is.
        if seen > 0 && matches!(cache.changes(seen), Changes::None) {
            seen = reached.max(seen);
        } else {
            let snapshot = cache.list("", 0, |_| true);
            registrar.sync(&present, &snapshot.items).await;
            seen = snapshot.revision;
        }
        present.definitions.0.send_replace(seen);
        drop(present);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn definitions(pipeline: &Pipeline) -> Option<Arc<Cache>> {
    pipeline.catalog().storage_of(GROUP, PLURAL).map(|kind| pipeline.cache(&kind))
}

/// What is known of a definition.
#[derive(Debug, Default)]
struct Known {
    revision: Revision,
    uid: String,
    group: String,
    /// The names that are its own.
    names: Names,
    /// Whether it asks for others as well.
    waits: bool,
    /// What its rows were made of: the generation, and whether it is being deleted.
    served: Option<(i64, bool)>,
    rows: Vec<GroupVersionResource>,
}

#[derive(Default)]
struct Registrar {
    known: HashMap<String, Known>,
    /// The uids of those whose objects are being deleted.
    ending: HashSet<String>,
}

impl Registrar {
    async fn sync(&mut self, pipeline: &Arc<Pipeline>, present: &[Arc<Object>]) {
        let uids: HashMap<&str, &str> =
            present.iter().map(|object| (object.meta().name.as_str(), object.meta().uid.as_str())).collect();
        let gone: Vec<String> = self
            .known
            .iter()
            .filter(|(name, known)| uids.get(name.as_str()) != Some(&known.uid.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        let mut freed = !gone.is_empty();
        for name in gone {
            if let Some(known) = self.known.remove(&name) {
                self.ending.remove(&known.uid);
                known.rows.iter().for_each(|row| pipeline.withdraw(row));
            }
        }
        // Who came first has the names.
        let mut in_order: Vec<&Arc<Object>> = present.iter().collect();
        in_order.sort_by(|one, other| {
            let key = |object: &Object| (object.meta().creation_timestamp, object.meta().name.clone());
            key(one).cmp(&key(other))
        });
        for object in in_order {
            let known = self.known.get(&object.meta().name);
            if known.is_none_or(|known| known.revision < object.revision() || (freed && known.waits)) {
                freed |= self.take(pipeline, object).await;
            }
        }
    }

    /// Looks at one definition; whether it gave names back.
    async fn take(&mut self, pipeline: &Arc<Pipeline>, object: &Arc<Object>) -> bool {
        let name = object.meta().name.clone();
        let Ok(mut crd) = object.decode::<Value>() else { return false };
        let group = tree::text(&crd, &["spec", "group"]).to_owned();
        let others = self.known.iter().filter(|(other, known)| **other != name && known.group == group);
        let taken = Taken::of(others.map(|(_, known)| &known.names));
        let now = crate::rfc3339(pipeline.now());
        let mut revision = object.revision();
        let decided = names::decide(&crd, &taken, &now);
        let mut status = decided.clone().unwrap_or_else(|| tree::at(&crd, &["status"]).clone());
        if lengthy::run(|| names::tell_structure(&crd, &mut status, &now)) || decided.is_some() {
            crd["status"] = status;
            match write(pipeline, &crd, "status").await {
                Ok(written) => {
                    revision = written.revision();
                    crd = written.decode().unwrap_or(crd);
                }
                // Somebody else wrote it: there will be another change to look at.
                Err(status) if [404, 409].contains(&status.code) => return false,
                Err(status) => {
                    tracing::warn!(definition = name, %status, "the status of a CustomResourceDefinition was not written");
                    return false;
                }
            }
        }
        let mut known = self.known.remove(&name).unwrap_or_default();
        let names = Names::accepted(&crd);
        let freed = known.names.gives_back(&names);
        known.waits = !names.has_all(&Names::wanted(&crd));
        (known.revision, known.names, known.group) = (revision, names, group);
        known.uid.clone_from(&object.meta().uid);
        serve(pipeline, &name, &crd, &mut known).await;
        let terminating = object.meta().is_terminating();
        if terminating && has_finalizer(&crd) && self.ending.insert(known.uid.clone()) {
            pipeline.spawn(finalize::finish(Arc::downgrade(pipeline), name.clone(), known.rows.clone()));
        }
        self.known.insert(name, known);
        freed
    }
}

fn has_finalizer(crd: &Value) -> bool {
    tree::items(crd, &["metadata", "finalizers"]).iter().any(|name| name == FINALIZER)
}

/// Serves a definition that is established, if it says something else than what is served.
async fn serve(pipeline: &Pipeline, name: &str, crd: &Value, known: &mut Known) {
    let generation = tree::at(crd, &["metadata", "generation"]).as_i64().unwrap_or(0);
    let wanted = (generation, !tree::at(crd, &["metadata", "deletionTimestamp"]).is_null());
    if !names::holds(crd, "Established") || known.served == Some(wanted) {
        return;
    }
    let rows = match lengthy::run(|| api::custom::rows(crd)) {
        Ok(rows) => rows,
        Err(error) => {
            tracing::error!(definition = name, error, "a CustomResourceDefinition cannot be served");
            return;
        }
    };
    // What is built in stays what it is.
    let builtin = |resource: &GroupVersionResource| {
        pipeline.catalog().find(resource).is_some_and(|row| row.custom.is_none())
    };
    let rows: Vec<_> = rows.into_iter().filter(|row| !builtin(&row.resource())).collect();
    let resources: Vec<GroupVersionResource> = rows.iter().map(|row| row.resource()).collect();
    let changed = known.served.is_none_or(|(before, _)| before != generation);
    pipeline.serve_definition(rows, changed).await;
    for gone in known.rows.iter().filter(|before| !resources.contains(before)) {
        pipeline.withdraw(gone);
    }
    known.rows = resources;
    known.served = Some(wanted);
}

/// Writes a definition, or its status, if it is still what was read.
async fn write(pipeline: &Pipeline, crd: &Value, subresource: &str) -> Result<Arc<Object>, Status> {
    let options = WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() };
    let request = Request {
        resource: GroupVersionResource::new(GROUP, "v1", PLURAL),
        namespace: String::new(),
        name: tree::text(crd, &["metadata", "name"]).into(),
        subresource: subresource.into(),
        call: Call::Update { body: crd.to_string().into(), options },
    };
    match pipeline.call(&identity(), request).await? {
        Response::Object { object, .. } => Ok(object),
        _ => Err(Status::internal("an update was answered with something else")),
    }
}
