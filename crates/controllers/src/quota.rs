//! Keeps the status of ResourceQuotas: what they limit, and what is used of it. The API server charges what it admits;
//! this controller counts anew when something goes, when a quota changes, and a moment after the server charged, since a
//! write that was charged may have failed. Source: `k8s.io/kubernetes/pkg/controller/resourcequota`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use api::quota::{Counted, is_terminating, masked};
use api::resources::{ResourceList, add, amounts, to_json};
use api::{GroupVersionResource, Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::RwLock;
use reconcile::kinds::Served;
use reconcile::{Action, Change, Informer, Queue, Reconcile, Registration, kinds, run_workers};
use serde_json::{Value, json};

use crate::claim::ignore_gone;
use crate::context::{Ctx, decode};

const NAME: &str = "resourcequota-controller";
/// Source: `--concurrent-resource-quota-syncs`.
const WORKERS: usize = 5;
/// By then what was charged is stored, or will not be.
const SETTLED: Duration = Duration::from_secs(5);

/// The controller.
pub struct Quotas {
    ctx: Ctx,
}

impl Quotas {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for Quotas {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            queue: Queue::new(self.ctx.clock.clone()),
            quotas: self.ctx.informers.get(kinds::RESOURCE_QUOTAS),
            counted: RwLock::default(),
        });
        let mut catalog = self.ctx.catalog.watch();
        let served = catalog.borrow_and_update().clone();
        worker.follow(&served);
        let queue = worker.queue.clone();
        let _registration = worker.quotas.on_change(move |change| {
            let Some(new) = &change.new else { return };
            match &change.old {
                Some(old) if !spec_differs(old, new) => queue.add_after(change.key.clone(), SETTLED),
                _ => queue.add(change.key.clone()),
            }
        });
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = worker.quotas.synced() => {}
        }
        ctx.ready();
        let (watcher, following) = (ctx.clone(), worker.clone());
        ctx.spawn(async move {
            while catalog.changed().await.is_ok() && !watcher.cancel().is_cancelled() {
                let served = catalog.borrow_and_update().clone();
                following.follow(&served);
            }
        });
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

fn spec_differs(old: &Object, new: &Object) -> bool {
    let spec = |object: &Object| decode::<Value>(object).map(|tree| tree["spec"].clone()).unwrap_or_default();
    spec(old) != spec(new)
}

/// A resource whose objects are counted.
struct Followed {
    informer: Informer,
    _registration: Registration,
}

struct Worker {
    ctx: Ctx,
    queue: Queue<Key>,
    quotas: Informer,
    counted: RwLock<HashMap<GroupVersionResource, Followed>>,
}

fn counted(resource: &GroupVersionResource) -> Counted<'_> {
    Counted { group: &resource.group, resource: &resource.resource }
}

impl Worker {
    /// Counts exactly the objects of these resources that live in namespaces. Events never count.
    fn follow(self: &Arc<Self>, served: &[Served]) {
        let wanted: Vec<&Served> = served
            .iter()
            .filter(|row| row.namespaced && row.resource.resource != kinds::EVENTS.resource)
            .collect();
        self.counted.write().retain(|resource, _| wanted.iter().any(|row| row.resource == *resource));
        for row in wanted {
            if self.counted.read().contains_key(&row.resource) {
                continue;
            }
            let informer = self.ctx.informers.get(row.resource.clone());
            let (weak, resource) = (Arc::downgrade(self), row.resource.clone());
            let registration = informer.on_change(move |change| {
                if let Some(worker) = weak.upgrade() {
                    worker.changed(&resource, change);
                }
            });
            let followed = Followed { informer, _registration: registration };
            self.counted.write().insert(row.resource.clone(), followed);
            // A quota may have waited for this resource.
            self.quotas.list().iter().for_each(|quota| self.queue.add(quota.key()));
        }
    }

    /// What goes, or uses less, makes room.
    fn changed(&self, resource: &GroupVersionResource, change: &Change) {
        let Some(old) = &change.old else { return };
        let namespace = &change.key.namespace;
        let quotas = self.quotas.in_namespace(namespace);
        let gone = change.new.is_none();
        let weighed = resource.group.is_empty()
            && matches!(resource.resource.as_str(), "pods" | "services" | "persistentvolumeclaims");
        if quotas.is_empty() || !(gone || weighed) {
            return;
        }
        let now = self.ctx.clock.now();
        let less = change.new.as_ref().is_none_or(|new| uses_otherwise(&counted(resource), old, new, now));
        if less {
            quotas.iter().for_each(|quota| self.queue.add(quota.key()));
        }
    }

    /// What objects of the quota's namespace use of what it limits, by the caches.
    fn used(&self, quota: &Value, namespace: &str) -> Result<ResourceList, BoxError> {
        let hard = amounts(&quota["spec"]["hard"]);
        let now = self.ctx.clock.now();
        let followed = self.counted.read();
        let mut used = ResourceList::new();
        for (resource, followed) in &*followed {
            let kind = counted(resource);
            let names = masked(&hard, |name| kind.is_tracked_as(name));
            if names.is_empty() {
                continue;
            }
            if !followed.informer.is_synced() {
                return Err(format!("{resource} are not listed yet").into());
            }
            for name in names.keys() {
                used.entry(name.clone()).or_insert(Quantity::ZERO);
            }
            for object in followed.informer.in_namespace(namespace) {
                let object: Value = decode(&object)?;
                if kind.is_in_scope(quota, &object) {
                    add(&mut used, &masked(&kind.usage(&object, now), |name| names.contains_key(name)));
                }
            }
        }
        Ok(used)
    }
}

/// Whether a change of an object changes what it uses, or for which quotas it counts.
fn uses_otherwise(kind: &Counted<'_>, old: &Object, new: &Object, now: Timestamp) -> bool {
    let (Ok(old), Ok(new)) = (decode::<Value>(old), decode::<Value>(new)) else { return true };
    kind.usage(&old, now) != kind.usage(&new, now) || is_terminating(&old) != is_terminating(&new)
}

/// The status that a quota should have, if it has another. What nobody counts stays as it was told. Pure.
fn plan(quota: &Value, mut used: ResourceList) -> Option<Value> {
    let hard = amounts(&quota["spec"]["hard"]);
    let status = &quota["status"];
    let before = amounts(&status["used"]);
    for (name, amount) in masked(&before, |name| hard.contains_key(name)) {
        used.entry(name).or_insert(amount);
    }
    let same = amounts(&status["hard"]) == hard && before == used && status["hard"].is_object();
    (!same).then(|| json!({ "hard": to_json(&hard), "used": to_json(&used) }))
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(held) = self.quotas.get(key) else { return Ok(Action::Done) };
        let mut quota: Value = decode(&held)?;
        let used = self.used(&quota, &key.namespace)?;
        if let Some(status) = plan(&quota, used) {
            // The version says that nothing was charged since.
            quota["status"] = status;
            let resource = kinds::RESOURCE_QUOTAS.gvr();
            let written = self.ctx.client.update(&resource, key, "status", &quota).await;
            if let Some(written) = ignore_gone(written)? {
                self.ctx.caught_up(&self.quotas, written.revision()).await;
            }
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_when_it_says_something_else() {
        let list = |value: Value| amounts(&value);
        let fresh = json!({ "spec": { "hard": { "pods": "2", "count/x.y": "1" } } });
        let status = plan(&fresh, list(json!({ "pods": "1" }))).unwrap();
        assert_eq!(status, json!({ "hard": { "pods": "2", "count/x.y": "1" }, "used": { "pods": "1" } }));
        let mut told = fresh;
        told["status"] = status;
        assert_eq!(plan(&told, list(json!({ "pods": "1" }))), None);
        assert_eq!(plan(&told, list(json!({ "pods": "0" }))).unwrap()["used"]["pods"], "0");
        told["spec"]["hard"] = json!({ "secrets": "1" });
        let status = plan(&told, list(json!({ "secrets": "0" }))).unwrap();
        assert_eq!(status, json!({ "hard": { "secrets": "1" }, "used": { "secrets": "0" } }));
        assert_eq!(plan(&json!({ "spec": {} }), ResourceList::new()).unwrap()["hard"], json!({}));
    }
}
