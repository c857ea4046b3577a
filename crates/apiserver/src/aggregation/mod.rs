//! Extension API servers: an APIService says which group version is served by which Service. Its requests are passed on,
//! with the user in headers that a front proxy's certificate vouches for; what it serves is part of discovery and OpenAPI.
//! APIServices of what is served here are kept by [`registration`]. Source: `k8s.io/kube-aggregator`.

mod availability;
pub(crate) mod discovery;
mod inside;
mod openapi;
mod priorities;
mod registration;
mod remote;
mod trust;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::catalog::Catalog;
use api::connect::User;
use api::{Call, GroupVersionResource, Object, PatchType, Request, Status, WriteOptions};
use base::backoff::Policy;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Snapshot};
use crate::pipeline::Pipeline;
use crate::pki::{HotResolver, Pki, PkiError};
use crate::proxy::Outbound;
use crate::started::{Started, Step};
use crate::tree;
use crate::words::Kind;
use priorities::group_priority;

pub use inside::{Extension, ExtensionResource};
pub(crate) use openapi::{into_document, into_index};
pub(crate) use registration::follow as register;
pub(crate) use remote::{Remote, Stamp, Unanswered};
pub(crate) use trust::publish;

/// The group of APIServices.
pub(crate) const GROUP: &str = "apiregistration.k8s.io";
/// Their plural.
pub(crate) const PLURAL: &str = "apiservices";
/// Served here until somebody registers another server for it.
pub(crate) const METRICS: &str = "metrics.k8s.io";
/// Between attempts to write what was not written.
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(30) };
/// Who writes here.
const MANAGER: &str = "kube-aggregator";

/// The group versions that extension API servers serve, by group and version.
#[derive(Debug, Default)]
pub(crate) struct Remotes(BTreeMap<(String, String), Arc<Remote>>);

impl Remotes {
    /// Who serves a group version.
    pub(crate) fn get(&self, group: &str, version: &str) -> Option<&Arc<Remote>> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(group.to_owned(), version.to_owned()))
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.0.values()
    }

    /// What they say, to be compared.
    pub(crate) fn stamps(&self) -> Vec<Stamp> {
        self.all().map(Stamp::of).collect()
    }
}

/// The way to extension API servers.
pub(crate) struct Aggregator {
    pub(crate) outbound: Arc<Outbound>,
    pki: Arc<Pki>,
    /// By which they know this server.
    certificate: Arc<HotResolver>,
    remotes: RwLock<Arc<Remotes>>,
}

impl Aggregator {
    pub(crate) fn new(outbound: Arc<Outbound>, pki: Arc<Pki>) -> Result<Self, PkiError> {
        let certificate = Arc::new(HotResolver::new(&pki.issue_front_proxy()?)?);
        Ok(Self { outbound, pki, certificate, remotes: RwLock::default() })
    }

    /// The table as it is now.
    pub(crate) fn remotes(&self) -> Arc<Remotes> {
        self.remotes.read().clone()
    }

    /// Replaces the front proxy's certificate when its time has come.
    fn renew(&self, now: jiff::Timestamp) {
        if self.certificate.renew_at() > now {
            return;
        }
        let renewed = self.pki.issue_front_proxy().and_then(|issued| self.certificate.swap(&issued));
        if let Err(error) = renewed {
            tracing::error!(%error, "the front proxy's certificate was not renewed");
        }
    }
}

/// The identity of what is written here.
fn identity() -> User {
    User { name: "system:kube-aggregator".into(), groups: vec!["system:masters".into()], ..User::default() }
}

/// A request about an APIService.
fn about(name: &str, subresource: &str, call: Call) -> Request {
    Request {
        resource: GroupVersionResource::new(GROUP, "v1", PLURAL),
        namespace: String::new(),
        name: name.into(),
        subresource: subresource.into(),
        call,
    }
}

fn options() -> WriteOptions {
    WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() }
}

/// Writes the conditions of an APIService, if it is still the one of `uid`.
async fn write_conditions(
    pipeline: &Pipeline,
    name: &str,
    uid: &str,
    conditions: Value,
) -> Result<(), Status> {
    let body = json!({ "metadata": { "uid": uid }, "status": { "conditions": conditions } });
    let call = Call::Patch { kind: PatchType::Merge, body: body.to_string().into(), options: options() };
    pipeline.call(&identity(), about(name, "status", call)).await.map(drop)
}

/// The cache of a stored resource.
fn cache(pipeline: &Pipeline, group: &str, resource: &str) -> Option<Arc<Cache>> {
    pipeline.catalog().storage_of(group, resource).map(|kind| pipeline.cache(&kind))
}

/// A remote that is looked after.
struct Kept {
    /// The object's uid and spec.
    said: (String, Value),
    remote: Arc<Remote>,
    stop: CancellationToken,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Follows the APIServices for as long as there is a pipeline.
pub(crate) async fn follow(pipeline: Weak<Pipeline>, aggregator: Arc<Aggregator>, started: Arc<Started>) {
    let Some(cache) = pipeline.upgrade().and_then(|pipeline| cache(&pipeline, GROUP, PLURAL)) else { return };
    cache.synced().await;
    let (mut kept, mut failures): (HashMap<String, Kept>, u32) = Default::default();
    loop {
        let Snapshot { items: present, revision: seen, .. } = cache.list("", 0, |_| true);
        let Some(strong) = pipeline.upgrade() else { return };
        kept.retain(|name, _| present.iter().any(|object| object.meta().name == *name));
        let (mut fresh, mut written) = (Vec::new(), true);
        for object in &present {
            match take(&strong, &aggregator, object, &mut kept).await {
                Ok(taken) => fresh.extend(taken),
                Err(error) => {
                    tracing::debug!(%error, name = object.meta().name, "a condition is not written yet");
                    written = false;
                }
            }
        }
        failures = if written { 0 } else { failures + 1 };
        let table = kept.values().map(|kept| {
            let remote = &kept.remote;
            ((remote.group.clone(), remote.version.clone()), remote.clone())
        });
        *aggregator.remotes.write() = Arc::new(Remotes(table.collect()));
        started.done(Step::Services);
        // Whoever is told of one that it is available finds it in the table.
        for (remote, stop) in fresh {
            let keeping = remote::keep(remote, pipeline.clone(), aggregator.clone());
            strong.spawn(async move {
                stop.run_until_cancelled_owned(keeping).await;
            });
        }
        drop(strong);
        tokio::select! {
            () = cache.happened(seen, |_| true) => {}
            () = tokio::time::sleep(RETRY.delay(failures)), if failures > 0 => {}
        }
    }
}

/// The APIServices, and whether each is available as its condition says.
pub(crate) fn availability(pipeline: &Pipeline) -> Vec<(String, bool)> {
    let Some(cache) = cache(pipeline, GROUP, PLURAL) else { return Vec::new() };
    let each = cache.list("", 0, |_| true).items.into_iter().map(|object| {
        let service: Value = object.decode().unwrap_or_default();
        let mut conditions = tree::items(&service, &["status", "conditions"]).iter();
        let available = conditions.any(|one| one["type"] == "Available" && one["status"] == "True");
        (object.meta().name.clone(), available)
    });
    each.collect()
}

/// Whether a group is this server's own, so that nobody else ever answers for it: what is built in, and who registers whom.
/// Figures are the exception: another server may measure them better.
fn is_own(group: &str, catalog: &Catalog) -> bool {
    let built_in = |row: &Arc<Kind>| row.custom.is_none() && row.group == group;
    group.is_empty() || group == GROUP || (group != METRICS && catalog.rows().any(built_in))
}

/// Looks at one APIService: a local one is available, one that claims a group of this server is not; a remote one that is new, or says something new, is given back to be
/// looked after.
async fn take(
    pipeline: &Pipeline,
    aggregator: &Aggregator,
    object: &Object,
    kept: &mut HashMap<String, Kept>,
) -> Result<Option<(Arc<Remote>, CancellationToken)>, Status> {
    let (name, uid) = (object.meta().name.clone(), object.meta().uid.clone());
    let Ok(service) = object.decode::<Value>() else { return Ok(None) };
    let spec = tree::at(&service, &["spec"]);
    let group = tree::text(spec, &["group"]);
    let answered_here = match tree::at(spec, &["service"]).is_null() {
        true => Some(availability::Condition::local()),
        false => is_own(group, &pipeline.catalog().rows()).then(|| availability::Condition::own(group)),
    };
    if let Some(condition) = answered_here {
        kept.remove(&name);
        let now = crate::rfc3339(crate::strategy::View::now(pipeline));
        if let Some(conditions) = condition.among(tree::items(&service, &["status", "conditions"]), &now) {
            write_conditions(pipeline, &name, &uid, conditions).await?;
        }
        return Ok(None);
    }
    let said = (uid.clone(), spec.clone());
    if kept.get(&name).is_some_and(|kept| kept.said == said) {
        return Ok(None);
    }
    let before = kept.remove(&name);
    let remote = Arc::new(Remote::new(&name, &uid, spec, &aggregator.certificate));
    // What was known of it holds until it has been looked at again.
    if let Some(before) = before.filter(|before| before.said.0 == uid) {
        remote.inherit(&before.remote);
    }
    let stop = CancellationToken::new();
    kept.insert(name, Kept { said, remote: remote.clone(), stop: stop.clone() });
    Ok(Some((remote, stop)))
}
