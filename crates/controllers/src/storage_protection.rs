//! Lets claims, volumes and volume attributes classes go whose deletion has begun, once nobody uses them. What keeps them
//! until then is a finalizer, which admission gives them, and this controller where they lack it. A bound claim says in the
//! condition `Unused` whether pods use it, and since when. Source:
//! `k8s.io/kubernetes/pkg/controller/volume/{pvcprotection,pvprotection,vacprotection}`, KEP-5541.

use std::sync::Arc;

use api::{Key, ListOptions, Object, PatchType, Status};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use futures::future::join_all;
use reconcile::{Action, Change, Informer, Kind, Queue, Reconcile, kinds, run_workers};
use serde_json::{Value, json};

use crate::claim::{ignore_gone, ignore_missing};
use crate::claim_users::ClaimUsers;
use crate::context::{Ctx, decode, ready};
use crate::pods::{claims_of, uses_claim};

const NAME: &str = "storage-protection-controller";
const WORKERS: usize = 2;
const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

/// The controller.
pub struct StorageProtection {
    ctx: Ctx,
}

impl StorageProtection {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Protected {
    Claim,
    Volume,
    Class,
}

impl Protected {
    const ALL: [Self; 3] = [Self::Claim, Self::Volume, Self::Class];

    fn kind(self) -> Kind {
        match self {
            Self::Claim => kinds::PERSISTENT_VOLUME_CLAIMS,
            Self::Volume => kinds::PERSISTENT_VOLUMES,
            Self::Class => kinds::VOLUME_ATTRIBUTES_CLASSES,
        }
    }

    fn finalizer(self) -> &'static str {
        match self {
            Self::Claim => CLAIM,
            Self::Volume => VOLUME,
            Self::Class => CLASS,
        }
    }

    /// The name of its work queue. Source: `NewPVCProtectionController` and its siblings.
    fn queue(self) -> &'static str {
        match self {
            Self::Claim => "pvcprotection",
            Self::Volume => "pvprotection",
            Self::Class => "vacprotection",
        }
    }

    fn of<T>(self, each: &[T; 3]) -> &T {
        match self {
            Self::Claim => &each[0],
            Self::Volume => &each[1],
            Self::Class => &each[2],
        }
    }
}

type Item = (Protected, Key);
/// In the order of [`Protected::ALL`].
type Queues = [Queue<Item>; 3];

#[async_trait]
impl Component for StorageProtection {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let informers = Protected::ALL.map(|what| self.ctx.informers.get(what.kind()));
        let pods = self.ctx.informers.get(kinds::PODS);
        let users = Arc::new(ClaimUsers::default());
        let worker = Worker { ctx: self.ctx.clone(), informers, pods, users: users.clone() };
        let queues: Queues = Protected::ALL.map(|what| self.ctx.queue(what.queue()));
        let mut registrations = Vec::new();
        for (what, informer) in Protected::ALL.into_iter().zip(&worker.informers) {
            let (queues, known) = (queues.clone(), worker.informers.clone());
            registrations.push(informer.on_change(move |change| {
                let is_claim = what == Protected::Claim;
                if change.new.as_ref().is_some_and(|held| is_claim || todo(held, what.finalizer()).is_some())
                {
                    what.of(&queues).add((what, change.key.clone()));
                }
                // A claim or volume that goes or changes may have been the last to use a class.
                if what != Protected::Class {
                    add_waiting(&queues, Protected::Class, &known[2].list());
                }
            }));
        }
        let (from_pods, claims) = (queues.clone(), worker.informers[0].clone());
        registrations.push(worker.pods.on_change(move |change| {
            for claim in users.changed(change) {
                Protected::Claim.of(&from_pods).add((Protected::Claim, claim));
            }
            // Only a pod that is gone, or another one now, holds its claims no more.
            let Some(gone) = former_pod(change) else { return };
            let used = decode::<Value>(gone).map(|pod| claims_of(&pod)).unwrap_or_default();
            let held = used.into_iter().filter_map(|name| {
                let claim = claims.get(&Key::new(change.key.namespace.as_str(), name))?;
                waits(&claim, CLAIM).then(|| claim.key())
            });
            held.for_each(|key| Protected::Claim.of(&from_pods).add((Protected::Claim, key)));
        }));
        if !ready(&ctx, &worker.caches()).await {
            return Ok(());
        }
        let worker = Arc::new(worker);
        join_all(queues.iter().map(|queue| run_workers(&ctx, NAME, queue, WORKERS, worker.clone()))).await;
        drop(registrations);
        Ok(())
    }
}

/// The pod that a change took away.
fn former_pod(change: &Change) -> Option<&Object> {
    let old = change.old.as_deref()?;
    change.new.as_ref().is_none_or(|new| new.meta().uid != old.meta().uid).then_some(old)
}

/// What an object needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    /// The finalizer that it lacks.
    Protect,
    /// To be let go, once nobody uses it.
    Release,
}

/// What an object needs, if anything. Pure.
fn todo(object: &Object, finalizer: &str) -> Option<Todo> {
    let meta = object.meta();
    match (meta.is_terminating(), meta.finalizers.iter().any(|held| held == finalizer)) {
        (true, true) => Some(Todo::Release),
        (false, false) => Some(Todo::Protect),
        _ => None,
    }
}

fn waits(object: &Object, finalizer: &str) -> bool {
    todo(object, finalizer) == Some(Todo::Release)
}

fn add_waiting(queues: &Queues, what: Protected, objects: &[Arc<Object>]) {
    let waiting = objects.iter().filter(|object| waits(object, what.finalizer()));
    waiting.for_each(|object| what.of(queues).add((what, object.key())));
}

struct Worker {
    ctx: Ctx,
    /// Claims, volumes, classes.
    informers: [Informer; 3],
    pods: Informer,
    users: Arc<ClaimUsers>,
}

impl Worker {
    fn caches(&self) -> Vec<&Informer> {
        self.informers.iter().chain([&self.pods]).collect()
    }

    fn informer(&self, what: Protected) -> &Informer {
        what.of(&self.informers)
    }

    fn is_used(&self, what: Protected, object: &Object) -> Result<bool, BoxError> {
        let any = |objects: Vec<Arc<Object>>, uses: &dyn Fn(&Value) -> bool| -> Result<bool, BoxError> {
            for object in objects {
                if uses(&decode::<Value>(&object)?) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let meta = object.meta();
        match what {
            Protected::Claim => {
                any(self.pods.in_namespace(&meta.namespace), &|pod| pod_uses(pod, &meta.name))
            }
            Protected::Volume => Ok(decode::<Value>(object)?["status"]["phase"] == "Bound"),
            Protected::Class => {
                let uses = |held: &Value| names_class(held, &meta.name);
                Ok(any(self.informers[0].list(), &uses)? || any(self.informers[1].list(), &uses)?)
            }
        }
    }
}

impl Worker {
    /// Whether a pod that the cache does not show yet uses a claim: only the server knows.
    async fn is_used_after_all(&self, claim: &Object) -> Result<bool, BoxError> {
        let meta = claim.meta();
        let pods = self.ctx.client.list(&kinds::PODS.gvr(), &meta.namespace, ListOptions::default()).await?;
        for pod in &pods.items {
            if pod_uses(&decode::<Value>(pod)?, &meta.name) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Worker {
    /// Gives what lacks its finalizer that, and lets go what nobody uses.
    async fn protect(&self, what: Protected, key: &Key, held: &Object) -> Result<(), BoxError> {
        let Some(todo) = todo(held, what.finalizer()) else { return Ok(()) };
        if todo == Todo::Release
            && (self.is_used(what, held)?
                || (what == Protected::Claim && self.is_used_after_all(held).await?))
        {
            return Ok(());
        }
        let mut object: Value = decode(held)?;
        let mut finalizers = held.meta().finalizers.clone();
        finalizers.retain(|name| name != what.finalizer());
        if todo == Todo::Protect {
            finalizers.push(what.finalizer().to_owned());
        }
        object["metadata"]["finalizers"] = finalizers.into();
        let written = self.ctx.client.update(&what.kind().gvr(), key, "", &object).await;
        ignore_missing(written)?;
        Ok(())
    }

    /// Says on a claim whether pods use it, unless it says so.
    async fn tell_use(&self, key: &Key, claim: &Object) -> Result<(), BoxError> {
        let now = reconcile::time::seconds(self.ctx.clock.now());
        let Some(condition) = unused(&decode(claim)?, self.users.uses(key), &now) else { return Ok(()) };
        let patch =
            json!({ "metadata": { "uid": claim.meta().uid }, "status": { "conditions": [condition] } });
        let resource = kinds::PERSISTENT_VOLUME_CLAIMS.gvr();
        let strategic = PatchType::StrategicMerge;
        let written: Result<_, Status> =
            self.ctx.client.patch(&resource, key, "status", strategic, &patch).await;
        if let Some(figures) = &self.ctx.figures {
            figures.volumes.told_unused(written.is_ok());
        }
        ignore_gone(written)?;
        Ok(())
    }
}

/// The condition that says whether a claim is used, where it has to be written: what is not bound says nothing of it, and
/// what is on its way out need not. Pure.
fn unused(claim: &Value, used: bool, now: &str) -> Option<Value> {
    if claim["status"]["phase"] != "Bound" || claim["metadata"]["deletionTimestamp"].is_string() {
        return None;
    }
    let (status, reason, message) = match used {
        true => ("False", "PodUsingPVC", "A pod is currently referencing this PVC"),
        false => ("True", "NoPodsUsingPVC", "No pods are currently referencing this PVC"),
    };
    let mut held = claim["status"]["conditions"].as_array().into_iter().flatten();
    let said = held.find(|held| held["type"] == "Unused").is_some_and(|held| held["status"] == status);
    (!said).then(|| {
        json!({ "type": "Unused", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": now })
    })
}

/// Whether a pod that has a node mounts a claim. Pure.
fn pod_uses(pod: &Value, claim: &str) -> bool {
    pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty()) && uses_claim(pod, claim)
}

/// Whether a claim or volume names a volume attributes class. Pure.
fn names_class(object: &Value, class: &str) -> bool {
    let status = &object["status"];
    [
        &object["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ]
    .iter()
    .any(|name| **name == class)
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, (what, key): &Item) -> Result<Action, BoxError> {
        let informer = self.informer(*what);
        let Some(held) = informer.get(key) else { return Ok(Action::Done) };
        self.protect(*what, key, &held).await?;
        if *what == Protected::Claim {
            self.tell_use(key, &held).await?;
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_lacks_its_finalizer_gets_it_and_what_ends_waits_for_its_users() {
        let object = |ends: bool, finalizers: &[&str]| {
            let ends = ends.then_some("2026-01-01T00:00:00Z");
            let meta = json!({ "name": "d", "finalizers": finalizers, "deletionTimestamp": ends });
            Object::parse(json!({ "metadata": meta }).to_string().into()).unwrap()
        };
        for (ends, finalizers, wanted) in [
            (false, &["other"][..], Some(Todo::Protect)),
            (false, &["other", CLAIM], None),
            (true, &["other", CLAIM], Some(Todo::Release)),
            (true, &["other"], None),
        ] {
            assert_eq!(todo(&object(ends, finalizers), CLAIM), wanted, "{ends} {finalizers:?}");
        }
    }

    #[test]
    fn pods_with_a_node_use_their_claims() {
        let pod = |node: &str| {
            json!({ "metadata": { "name": "p" }, "spec": { "nodeName": node, "volumes": [
                { "name": "a", "persistentVolumeClaim": { "claimName": "data" } },
                { "name": "tmp", "ephemeral": {} },
            ] } })
        };
        assert!(pod_uses(&pod("n"), "data") && pod_uses(&pod("n"), "p-tmp"));
        assert!(!pod_uses(&pod("n"), "other") && !pod_uses(&pod(""), "data"));
    }

    #[test]
    fn a_pod_lets_go_of_its_claims_when_it_is_gone() {
        let pod = |uid: &str| {
            let pod = json!({ "metadata": { "name": "p", "uid": uid } });
            Some(Arc::new(Object::parse(pod.to_string().into()).unwrap()))
        };
        let change = |old, new| Change { key: Key::new("ns", "p"), old, new };
        assert!(former_pod(&change(pod("a"), None)).is_some());
        assert!(former_pod(&change(pod("a"), pod("b"))).is_some());
        assert!(former_pod(&change(pod("a"), pod("a"))).is_none());
        assert!(former_pod(&change(None, pod("a"))).is_none());
    }

    #[test]
    fn a_bound_claim_says_whether_pods_use_it() {
        let claim = |phase: &str, said: &str, ends: Option<&str>| {
            json!({ "metadata": { "deletionTimestamp": ends }, "status": { "phase": phase, "conditions": [
                { "type": "Resizing", "status": "True" }, { "type": "Unused", "status": said }] } })
        };
        let now = "2026-01-01T00:00:00Z";
        let told = |claim: Value, used| {
            unused(&claim, used, now).map(|it| (it["status"].clone(), it["reason"].clone()))
        };
        let (used, idle) = ((json!("False"), json!("PodUsingPVC")), (json!("True"), json!("NoPodsUsingPVC")));
        let fresh = json!({ "status": { "phase": "Bound" } });
        assert_eq!((told(fresh.clone(), true), told(fresh, false)), (Some(used.clone()), Some(idle.clone())));
        assert_eq!(
            (told(claim("Bound", "True", None), true), told(claim("Bound", "True", None), false)),
            (Some(used), None)
        );
        assert_eq!(
            (told(claim("Bound", "False", None), false), told(claim("Bound", "False", None), true)),
            (Some(idle), None)
        );
        assert_eq!(told(claim("Pending", "", None), false), None);
        assert_eq!(told(claim("Bound", "False", Some(now)), false), None);
    }

    #[test]
    fn classes_are_used_while_they_are_named() {
        assert!(names_class(&json!({ "spec": { "volumeAttributesClassName": "gold" } }), "gold"));
        assert!(names_class(&json!({ "status": { "currentVolumeAttributesClassName": "gold" } }), "gold"));
        assert!(!names_class(&json!({ "spec": {} }), "gold"));
    }
}
