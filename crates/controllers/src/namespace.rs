//! Namespaces that are being deleted: their content goes first, then they may.
//! Source: `k8s.io/kubernetes/pkg/controller/namespace/deletion`; pods go before everything else, as in KEP-5080.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Call, DeleteOptions, GroupVersionResource, Key, List, ListOptions, Object, ObjectMeta, PatchType,
    Propagation, Reason, Request, Status,
};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, ready};

const NAME: &str = "namespace-controller";
/// Source: `--concurrent-namespace-syncs`.
const WORKERS: usize = 10;
/// The finalizer in `spec.finalizers` that this controller removes.
const FINALIZER: &str = "kubernetes";
/// When to look again at content that nothing tells about.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The Namespace controller.
pub struct Namespaces {
    ctx: Ctx,
}

impl Namespaces {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for Namespaces {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let namespaces = self.ctx.informers.get(kinds::NAMESPACES);
        let pods = self.ctx.informers.get(kinds::PODS);
        let queue: Queue<Key> = self.ctx.queue("namespace");
        let (from_namespaces, from_pods, known) = (queue.clone(), queue.clone(), namespaces.clone());
        let left = pods.clone();
        let _registrations = [
            namespaces.on_change(move |change| {
                if change.new.as_ref().is_some_and(|held| held.meta().is_terminating()) {
                    from_namespaces.add(change.key.clone());
                }
            }),
            // Pods take the longest to go, and the last one tells that they are gone: each look at the namespace looks at
            // all that are left.
            pods.on_change(move |change| {
                let key = Key::new("", change.key.namespace.as_str());
                if change.new.is_none()
                    && !left.any_in_namespace(&key.name)
                    && known.get(&key).is_some_and(|held| held.meta().is_terminating())
                {
                    from_pods.add(key);
                }
            }),
        ];
        if !ready(&ctx, &[&namespaces, &pods]).await {
            return Ok(());
        }
        // After a restart the definitions and the other servers have to be read first: of what nobody knows yet, nothing
        // would be found, and the namespace would go without it.
        tokio::select! {
            () = self.ctx.catalog.completed() => {}
            () = ctx.cancelled() => return Ok(()),
        }
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), namespaces });
        run_workers(&ctx, NAME, &queue, WORKERS, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    namespaces: Informer,
}

/// Who serves a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Here,
    Another,
}

/// A projection of `core/v1.Namespace`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespace {
    metadata: ObjectMeta,
    spec: NamespaceSpec,
    status: NamespaceStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamespaceSpec {
    finalizers: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamespaceStatus {
    conditions: Vec<Value>,
}

/// What is left in a namespace.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// Objects per resource.
    counts: BTreeMap<String, usize>,
    /// Objects per finalizer that holds them.
    finalizers: BTreeMap<String, usize>,
    /// The longest grace of what is left.
    grace: Duration,
    /// What could not be deleted.
    failures: Vec<String>,
    /// Group versions of which nobody knows what there is.
    silent: Vec<String>,
}

impl Remains {
    fn add(&mut self, resource: &GroupVersionResource, list: &List) {
        let left = list.items.len() + list.remaining.and_then(|more| usize::try_from(more).ok()).unwrap_or(0);
        if left > 0 {
            // Also of the core group with the dot, as upstream writes it.
            *self.counts.entry(format!("{}.{}", resource.resource, resource.group)).or_insert(0) += left;
        }
        for meta in list.items.iter().map(|item| item.meta()) {
            for finalizer in &meta.finalizers {
                *self.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
            }
            let seconds = meta.deletion_grace_period_seconds.and_then(|grace| u64::try_from(grace).ok());
            self.grace = self.grace.max(Duration::from_secs(seconds.unwrap_or(0)));
        }
    }

    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.failures.is_empty() && self.silent.is_empty()
    }

    /// Whether everything that is known of is gone, and not everything is known of.
    fn is_only_silent(&self) -> bool {
        !self.silent.is_empty() && self.counts.is_empty() && self.failures.is_empty()
    }

    /// The conditions that say why a namespace is still there, in upstream's words.
    fn conditions(&self, held: &[Value], now: Timestamp) -> Vec<Value> {
        let list = |counts: &BTreeMap<String, usize>, what: &str| -> String {
            let parts: Vec<String> = counts
                .iter()
                .map(|(name, count)| format!("{name}{what}{count} resource instances"))
                .collect();
            parts.join(", ")
        };
        let remaining = format!("Some resources are remaining: {}", list(&self.counts, " has "));
        let finalizers = format!(
            "Some content in the namespace has finalizers remaining: {}",
            list(&self.finalizers, " in ")
        );
        let failures = format!(
            "Failed to delete all resource types, {} remaining: {}",
            self.failures.len(),
            self.failures.join(", ")
        );
        let stale = |version: &String| format!("{version}: stale GroupVersion discovery: {version}");
        let undiscovered = format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            self.silent.len(),
            self.silent.iter().map(stale).collect::<Vec<_>>().join(", ")
        );
        let rows = [
            (
                "NamespaceDeletionDiscoveryFailure",
                !self.silent.is_empty(),
                "DiscoveryFailed",
                undiscovered.as_str(),
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                "",
                "",
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
            (
                "NamespaceDeletionContentFailure",
                !self.failures.is_empty(),
                "ContentDeletionFailed",
                &failures,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            (
                "NamespaceContentRemaining",
                !self.counts.is_empty(),
                "SomeResourcesRemain",
                &remaining,
                "ContentRemoved",
                "All content successfully removed",
            ),
            (
                "NamespaceFinalizersRemaining",
                !self.finalizers.is_empty(),
                "SomeFinalizersRemain",
                &finalizers,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ];
        rows.into_iter()
            .map(|(kind, holds, bad_reason, bad_message, good_reason, good_message)| {
                let (status, reason, message) =
                    if holds { ("True", bad_reason, bad_message) } else { ("False", good_reason, good_message) };
                let before = held.iter().find(|condition| condition["type"] == kind);
                let since = before
                    .filter(|before| before["status"] == status)
                    .map_or_else(|| reconcile::time::seconds(now).into(), |before| before["lastTransitionTime"].clone());
                json!({ "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since })
            })
            .collect()
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        if !self.namespaces.get(key).is_some_and(|held| held.meta().is_terminating()) {
            return Ok(Action::Done);
        }
        // The cache may be behind: by now another one of the name may live, whose content is none of this.
        let object = match self.ctx.client.get(&kinds::NAMESPACES.gvr(), key).await {
            Ok(live) => live,
            Err(status) if status.reason == Reason::NotFound => return Ok(Action::Done),
            Err(status) => return Err(status.into()),
        };
        let namespace: Namespace = decode(&object)?;
        if !namespace.metadata.is_terminating()
            || !namespace.spec.finalizers.iter().any(|held| held == FINALIZER)
        {
            return Ok(Action::Done);
        }
        let remains = self.empty(&key.name).await?;
        self.write_conditions(key, &namespace, &remains).await?;
        if remains.is_empty() {
            self.finalize(key, &object).await?;
            return Ok(Action::Done);
        }
        if remains.is_only_silent() {
            // It may last for long: tried again later and later. Source: the queue of `namespace_controller.go`.
            return Err(format!("nobody knows what {} have there", remains.silent.join(", ")).into());
        }
        // Half the longest grace, as upstream estimates; pods tell earlier when they are gone.
        Ok(Action::After((remains.grace / 2).max(LOOK_AGAIN)))
    }
}

impl Worker {
    /// Deletes all content and tells what is left.
    async fn empty(&self, namespace: &str) -> Result<Remains, BoxError> {
        let (served, extensions) = (self.ctx.catalog.served(), self.ctx.catalog.extensions());
        let own = served.iter().map(|row| (row, At::Here));
        let (pods, others): (Vec<_>, Vec<_>) = own
            .chain(extensions.served.iter().map(|row| (row, At::Another)))
            .filter(|(row, _)| row.namespaced)
            .map(|(row, at)| (&row.resource, at))
            .partition(|(resource, _)| **resource == kinds::PODS.gvr());
        // What nobody knows of may well be there: the namespace stays, and all else goes.
        let mut remains = Remains { silent: extensions.silent, ..Remains::default() };
        for resources in [pods, others] {
            for (resource, at) in resources {
                match self.empty_of(namespace, resource, at).await {
                    Ok(left) => remains.add(resource, &left),
                    Err(status) => remains.failures.push(format!("{resource}: {status}")),
                }
            }
            if !remains.counts.is_empty() || !remains.failures.is_empty() {
                break;
            }
        }
        Ok(remains)
    }

    /// Deletes the objects of one resource and gives what is left of them.
    async fn empty_of(
        &self,
        namespace: &str,
        resource: &GroupVersionResource,
        at: At,
    ) -> Result<List, Status> {
        // A look into a cache saves a write; another server's list may be too long to be read at all.
        if at == At::Here {
            let listed = self.list(namespace, resource).await?;
            if listed.items.is_empty() {
                return Ok(listed);
            }
        }
        let delete = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        let request = Request {
            resource: resource.clone(),
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: String::new(),
            call: Call::DeleteCollection(delete.clone(), ListOptions::default()),
        };
        match self.ctx.client.send(request).await {
            Ok(_) => {}
            Err(status) if matches!(status.reason, Reason::MethodNotAllowed | Reason::NotFound) => {
                for item in &self.list(namespace, resource).await?.items {
                    // One that is gone meanwhile is none that could not be deleted.
                    ignore_missing(self.ctx.client.delete(resource, &item.key(), delete.clone()).await)?;
                }
            }
            Err(status) => return Err(status),
        }
        self.list(namespace, resource).await
    }

    /// Objects of one resource, not necessarily all.
    async fn list(&self, namespace: &str, resource: &GroupVersionResource) -> Result<List, Status> {
        let options = ListOptions { limit: 500, ..ListOptions::default() };
        match self.ctx.client.list(resource, namespace, options).await {
            // Nobody serves it any more, or not so. Source: `listCollection`.
            Err(status) if matches!(status.reason, Reason::MethodNotAllowed | Reason::NotFound) => {
                Ok(List::default())
            }
            listed => listed,
        }
    }

    async fn write_conditions(
        &self,
        key: &Key,
        namespace: &Namespace,
        remains: &Remains,
    ) -> Result<(), BoxError> {
        let held = &namespace.status.conditions;
        let next = remains.conditions(held, self.ctx.clock.now());
        // A namespace that goes at once needs no explanation.
        let is_told = |condition: &Value| held.contains(condition);
        if next.iter().all(is_told) || (remains.is_empty() && held.is_empty()) {
            return Ok(());
        }
        // By their types: conditions of others stay.
        let patch =
            json!({ "metadata": { "uid": namespace.metadata.uid }, "status": { "conditions": next } });
        let resource = kinds::NAMESPACES.gvr();
        let kind = PatchType::StrategicMerge;
        ignore_missing(self.ctx.client.patch(&resource, key, "status", kind, &patch).await)?;
        Ok(())
    }

    /// Takes this controller's finalizer away; with the last one the namespace goes.
    async fn finalize(&self, key: &Key, object: &Object) -> Result<(), BoxError> {
        let resource = kinds::NAMESPACES.gvr();
        let live = match self.ctx.client.get(&resource, key).await {
            Ok(live) if live.meta().uid == object.meta().uid => live,
            Ok(_) => return Ok(()),
            Err(status) if status.reason == Reason::NotFound => return Ok(()),
            Err(status) => return Err(status.into()),
        };
        let mut body: Value = decode(&live)?;
        if let Some(finalizers) = body["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|held| held != FINALIZER);
        }
        match self.ctx.client.update(&resource, key, "finalize", &body).await {
            Ok(_) => Ok(()),
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            Err(status) => Err(status.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let body =
            json!({ "metadata": { "name": "p", "finalizers": ["x/y"], "deletionGracePeriodSeconds": 30 } });
        let pod = Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap();
        let list = List { items: vec![Arc::new(pod)], remaining: Some(1), ..List::default() };
        let mut remains = Remains::default();
        remains.add(&pods, &list);
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let mut others = Remains::default();
        others.add(&GroupVersionResource::new("apps", "v1", "deployments"), &list);
        assert_eq!(
            others.conditions(&[], now)[3]["message"],
            "Some resources are remaining: deployments.apps has 2 resource instances"
        );
        let silent = ["a.example.com/v1", "b.example.com/v2"].map(str::to_owned).to_vec();
        let undiscovered = Remains { silent, ..Remains::default() };
        assert_eq!(
            undiscovered.conditions(&[], now)[0]["message"],
            "Discovery failed for some groups, 2 failing: unable to retrieve the complete list of server APIs: \
             a.example.com/v1: stale GroupVersion discovery: a.example.com/v1, \
             b.example.com/v2: stale GroupVersion discovery: b.example.com/v2"
        );
        assert!(!undiscovered.is_empty());
        let conditions = remains.conditions(&[], now);
        assert_eq!(conditions[3]["message"], "Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            conditions[4]["message"],
            "Some content in the namespace has finalizers remaining: x/y in 1 resource instances"
        );
        assert_eq!((remains.is_empty(), remains.grace.as_secs()), (false, 30));
        // The same again changes nothing, so that it is not written again.
        assert_eq!(remains.conditions(&conditions, now + LOOK_AGAIN), conditions);
        assert!(
            Remains::default()
                .conditions(&conditions, now)
                .iter()
                .all(|condition| condition["status"] == "False")
        );
    }
}
