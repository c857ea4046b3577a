//! Keeps the status of ResourceQuotas: what they limit, and what is used of it. The API server charges what it admits;
//! this controller counts anew when something goes, when a quota changes, a moment after the server charged, since a
//! write that was charged may have failed, and every five minutes. Source: `k8s.io/kubernetes/pkg/controller/resourcequota`.

use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity};
use api::quota::{Around, Counted, masked};
use api::resources::{ResourceList, add, amounts, to_json};
use api::{GroupVersionResource, Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use reconcile::kinds::Served;
use reconcile::{Action, Change, Informer, Queue, Reconcile, kinds, run_workers};
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, ready};
use crate::followed::{Followed, on_served};

const NAME: &str = "resourcequota-controller";
/// Source: `--concurrent-resource-quota-syncs`.
const WORKERS: usize = 5;
/// By then what was charged is stored, or will not be.
const SETTLED: Duration = Duration::from_secs(5);
/// For how long what goes is gathered before it is counted.
const GATHERING: Duration = Duration::from_millis(100);
/// A timer: what is used may change with nothing but time (a pod counts no longer once its grace is over).
/// Source: `--resource-quota-sync-period`.
const RESYNC: Duration = Duration::from_secs(300);

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
            queue: self.ctx.queue("resourcequota_primary"),
            quotas: self.ctx.informers.get(kinds::RESOURCE_QUOTAS),
            classes: self.ctx.informers.get(kinds::DEVICE_CLASSES),
            claims: self.ctx.informers.get(kinds::RESOURCE_CLAIMS),
            pods: self.ctx.informers.get(kinds::PODS),
            counted: Followed::default(),
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
        let weak = Arc::downgrade(&worker);
        let _classes = worker.classes.on_change(move |change| {
            // Claims to a class count as what it stands for.
            let stands = |class: &Option<Arc<Object>>| class.as_ref().and_then(|class| extended_name(class));
            if stands(&change.old) != stands(&change.new) {
                weak.upgrade().into_iter().for_each(|worker| worker.count_all());
            }
        });
        if !ready(&ctx, &[&worker.quotas, &worker.classes, &worker.claims, &worker.pods]).await {
            return Ok(());
        }
        let following = worker.clone();
        on_served(&ctx, catalog, move |served| following.follow(served));
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

fn spec_differs(old: &Object, new: &Object) -> bool {
    let spec = |object: &Object| decode::<Value>(object).map(|tree| tree["spec"].clone()).unwrap_or_default();
    spec(old) != spec(new)
}

/// The extended resource that a class of devices stands for.
fn extended_name(class: &Object) -> Option<String> {
    let class = decode::<Value>(class).ok()?;
    class["spec"]["extendedResourceName"].as_str().map(str::to_owned)
}

struct Worker {
    ctx: Ctx,
    queue: Queue<Key>,
    quotas: Informer,
    /// What stands for extended resources, and who has what of them.
    classes: Informer,
    claims: Informer,
    pods: Informer,
    counted: Followed,
}

fn counted(resource: &GroupVersionResource) -> Counted<'_> {
    Counted { group: &resource.group, resource: &resource.resource }
}

impl Worker {
    /// Counts exactly the objects of these resources that live in namespaces. Events never count.
    fn follow(self: &Arc<Self>, served: &[Served]) {
        let wanted =
            served.iter().filter(|row| row.namespaced && row.resource.resource != kinds::EVENTS.resource);
        let weak = Arc::downgrade(self);
        let more = self.counted.set(&self.ctx.informers, wanted, move |resource, change| {
            if let Some(worker) = weak.upgrade() {
                worker.changed(resource, change);
            }
        });
        if more {
            // A quota may have waited for a resource.
            self.count_all();
        }
    }

    fn count_all(&self) {
        self.quotas.list().iter().for_each(|quota| self.queue.add(quota.key()));
    }

    /// What goes, or uses less, makes room. What goes together is counted together: a count looks at everything.
    fn changed(&self, resource: &GroupVersionResource, change: &Change) {
        let Some(old) = &change.old else { return };
        let namespace = &change.key.namespace;
        let quotas = self.quotas.in_namespace(namespace);
        let gone = change.new.is_none();
        let weighed = matches!(
            (resource.group.as_str(), resource.resource.as_str()),
            ("", "pods" | "services" | "persistentvolumeclaims") | ("resource.k8s.io", "resourceclaims")
        );
        if quotas.is_empty() || !(gone || weighed) {
            return;
        }
        let now = self.ctx.clock.now();
        let less =
            change.new.as_ref().is_none_or(|new| uses_otherwise(&counted(resource), &quotas, old, new, now));
        if less {
            quotas.iter().for_each(|quota| self.queue.add_after(quota.key(), GATHERING));
        }
    }

    /// What objects of the quota's namespace use of what it limits, by the caches.
    fn used(&self, quota: &Value, namespace: &str) -> Result<ResourceList, BoxError> {
        let hard = amounts(&quota["spec"]["hard"]);
        let now = self.ctx.clock.now();
        let unscoped = is_unscoped(quota);
        let (classes, claims) = (|| self.classes.list(), || self.claims.in_namespace(namespace));
        let pod = |name: &str| self.pods.get(&Key::new(namespace, name));
        let around = Around::new(&classes, &pod, &claims);
        let followed = self.counted.read();
        let mut used = ResourceList::new();
        for (resource, followed) in &*followed {
            let kind = counted(resource);
            let names = masked(&hard, |name| kind.is_tracked_among(name, &around));
            if names.is_empty() {
                continue;
            }
            if !followed.informer.is_synced() {
                return Err(format!("{resource} are not listed yet").into());
            }
            for name in names.keys() {
                used.entry(name.clone()).or_insert(Quantity::ZERO);
            }
            let objects = followed.informer.in_namespace(namespace);
            if unscoped && names.keys().all(|name| kind.counts_objects(name)) {
                let number = i64::try_from(objects.len()).unwrap_or(i64::MAX);
                let number = Quantity::from_units(number, Format::DecimalSi);
                used.extend(names.into_keys().map(|name| (name, number)));
                continue;
            }
            for object in objects {
                let object: Value = decode(&object)?;
                if kind.is_in_scope(quota, &object) {
                    let own = kind.usage_among(&object, now, &around);
                    add(&mut used, &masked(&own, |name| names.contains_key(name)));
                }
            }
        }
        Ok(used)
    }
}

/// Whether a quota counts objects whatever they are.
fn is_unscoped(quota: &Value) -> bool {
    let empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    let spec = &quota["spec"];
    empty(&spec["scopes"]) && empty(&spec["scopeSelector"]["matchExpressions"])
}

/// Whether a change of an object changes what it uses, or for which of these quotas it counts.
fn uses_otherwise(
    kind: &Counted<'_>,
    quotas: &[Arc<Object>],
    old: &Object,
    new: &Object,
    now: Timestamp,
) -> bool {
    let (Ok(old), Ok(new)) = (decode::<Value>(old), decode::<Value>(new)) else { return true };
    let mut scoped = quotas.iter().filter_map(|quota| decode::<Value>(quota).ok());
    kind.usage(&old, now) != kind.usage(&new, now)
        || scoped.any(|quota| {
            !is_unscoped(&quota) && kind.is_in_scope(&quota, &old) != kind.is_in_scope(&quota, &new)
        })
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
            if let Some(written) = ignore_missing(written)? {
                self.ctx.caught_up(&self.quotas, written.revision()).await;
            }
        }
        Ok(Action::After(RESYNC))
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

    #[test]
    fn what_counts_for_another_quota_makes_room() {
        let object =
            |value: Value| Arc::new(Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap());
        let claim = |class: &str| {
            object(json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "c" },
                "spec": { "volumeAttributesClassName": class } }))
        };
        let quota = |scope: &str| {
            let selects = json!([{ "scopeName": scope, "operator": "In", "values": ["gold"] }]);
            object(json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "q" },
                "spec": { "scopeSelector": { "matchExpressions": selects } } }))
        };
        let kind = Counted { group: "", resource: "persistentvolumeclaims" };
        let (gold, silver, now) = (claim("gold"), claim("silver"), Timestamp::UNIX_EPOCH);
        let changes = |quotas: &[Arc<Object>], new: &Object| uses_otherwise(&kind, quotas, &gold, new, now);
        let scoped = [quota("VolumeAttributesClass")];
        assert!(changes(&scoped, &silver) && !changes(&scoped, &gold) && !changes(&[], &silver));
    }
}
