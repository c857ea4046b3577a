//! Counts what a budget's pods are expected to be, and writes its status.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use api::{Key, Object, OwnerReference, PatchType, Reason, Status};
use base::BoxError;
use reconcile::time::seconds;
use reconcile::{Action, EventType, Informer, Involved, kinds};
use serde_json::{Value, json};

use super::Worker;
use super::plan::{failed, plan, stale_in};
use super::types::{Budget, BudgetStatus};
use crate::claim::ignore_missing;
use crate::context::decode;
use crate::pods::Pod;
use crate::scale;
use crate::selector::{Select, go_text};

/// After so long a budget is counted anew though nobody told of a change: not everything tells that has a scale, and what
/// could not be counted may be by then. Source: `MinResyncPeriod`, by which upstream's informers tell of everything again.
const RESYNC: Duration = Duration::from_secs(12 * 3600);

/// Why a budget's pods could not be counted.
#[derive(Debug)]
enum Uncounted {
    /// It stays so until something changes, of which nobody may tell.
    Lasting(String),
    /// The server did not answer as it should.
    Passing(Status),
}

impl From<Status> for Uncounted {
    fn from(status: Status) -> Self {
        Self::Passing(status)
    }
}

/// How many replicas a controller wants, by its uid.
type Found = Option<(String, i32)>;

impl Worker {
    /// One pass over one budget.
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.budgets.get(key) else { return Ok(Action::Done) };
        let budget: Budget = decode(&object)?;
        let involved = Involved::object(&kinds::POD_DISRUPTION_BUDGETS, &object);
        let pods = self.pods_of(key, &budget)?;
        if pods.is_empty() {
            self.events.event(involved.clone(), EventType::Normal, "NoPods", "No matching pods found");
        }
        let scale = match self.scale_of(&budget, &pods, &involved).await {
            Ok(scale) => scale,
            Err(why) => return self.fail(&object, &budget, &involved, why).await,
        };
        let outcome = plan(&budget, &pods, scale, self.ctx.clock.now());
        for name in &outcome.not_deleted {
            // Upstream names the namespace twice.
            let namespace = &key.namespace;
            let message =
                format!("Pod was expected by PDB {namespace}/{namespace} to be deleted but it wasn't");
            if let Some(pod) = self.pods.get(&Key::new(namespace.as_str(), name.as_str())) {
                let pod = Involved::object(&kinds::PODS, &pod);
                self.events.event(pod, EventType::Warning, "NotDeleted", message);
            }
        }
        self.write(&object, &budget.status, &outcome.status).await?;
        Ok(Action::After(outcome.recheck.unwrap_or(RESYNC)))
    }

    fn pods_of(&self, key: &Key, budget: &Budget) -> Result<Vec<Pod>, BoxError> {
        let Some(selector) = &budget.spec.selector else { return Ok(Vec::new()) };
        let pods = self.pods.labelled(&key.namespace, |labels| selector.matches(labels));
        self.selectors.counted(key, pods.len());
        pods.iter().map(|pod| decode(pod)).collect()
    }

    async fn fail(
        &self,
        object: &Object,
        budget: &Budget,
        involved: &Involved,
        why: Uncounted,
    ) -> Result<Action, BoxError> {
        let text = match &why {
            Uncounted::Lasting(text) => text.clone(),
            Uncounted::Passing(status) => status.to_string(),
        };
        let message = format!("Failed to calculate the number of expected pods: {text}");
        self.events.event(involved.clone(), EventType::Warning, "CalculateExpectedPodCountFailed", message);
        let status = failed(budget, text, self.ctx.clock.now());
        self.write(object, &budget.status, &status).await?;
        match why {
            Uncounted::Lasting(_) => Ok(Action::After(RESYNC)),
            Uncounted::Passing(status) => Err(status.into()),
        }
    }

    /// Writes a status over the one that was read: an eviction in between is a conflict, and counted anew.
    async fn write(&self, object: &Object, held: &BudgetStatus, next: &BudgetStatus) -> Result<(), BoxError> {
        if held == next {
            return Ok(());
        }
        let mut body: Value = decode(object)?;
        body["status"] = json!(next);
        let resource = self.budgets.resource();
        match self.ctx.client.update(resource, &object.key(), "status", &body).await {
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            written => Ok(written.map(drop)?),
        }
    }

    /// How many pods the controllers of a budget's pods want together, where the budget counts so.
    async fn scale_of(&self, budget: &Budget, pods: &[Pod], involved: &Involved) -> Result<i32, Uncounted> {
        if !budget.spec.counts_controllers() {
            return Ok(0);
        }
        let mut wanted: HashMap<String, i32> = HashMap::new();
        let mut asked: HashSet<&str> = HashSet::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = pod.metadata.controller() else {
                unmanaged = true;
                continue;
            };
            if !asked.insert(&owner.uid) {
                continue;
            }
            let Some((uid, replicas)) = self.controller(&pod.metadata.namespace, owner).await? else {
                return Err(Uncounted::Lasting(format!(
                    "found no controllers for pod {:?}",
                    pod.metadata.name
                )));
            };
            wanted.insert(uid, replicas);
        }
        if unmanaged {
            let selector = go_text(budget.spec.selector.as_ref());
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
                 result, the status of the PDB cannot be calculated correctly, which may result in undefined \
                 behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an \
                 integer value."
            );
            self.events.event(involved.clone(), EventType::Warning, "UnmanagedPods", message);
        }
        Ok(wanted.values().fold(0, |sum: i32, replicas| sum.saturating_add(*replicas)))
    }

    /// What a pod's controller, or the Deployment above it, wants: from the caches for the common kinds, and by the
    /// scale subresource for all others.
    async fn controller(&self, namespace: &str, owner: &OwnerReference) -> Result<Found, Uncounted> {
        let key = Key::new(namespace, owner.name.as_str());
        let group = scale::group_of(&owner.api_version);
        let found = match (group, owner.kind.as_str()) {
            ("", "ReplicationController") => replicas(&self.controllers[0], &key, &owner.uid),
            ("apps" | "extensions", "ReplicaSet") => self.of_replica_set(&key, &owner.uid),
            ("apps", "StatefulSet") => replicas(&self.controllers[3], &key, &owner.uid),
            _ => None,
        };
        match found {
            Some(found) => Ok(Some(found)),
            None => self.by_scale(&key, group, owner).await,
        }
    }

    fn of_replica_set(&self, key: &Key, uid: &str) -> Found {
        let set = self.controllers[1].get(key).filter(|set| set.meta().uid == uid)?;
        let above = set.meta().controller().filter(|above| above.kind == kinds::DEPLOYMENTS.kind);
        match above {
            None => replicas(&self.controllers[1], key, uid),
            Some(above) => {
                let key = Key::new(key.namespace.as_str(), above.name.as_str());
                replicas(&self.controllers[2], &key, &above.uid)
            }
        }
    }

    async fn by_scale(&self, key: &Key, group: &str, owner: &OwnerReference) -> Result<Found, Uncounted> {
        let Some(resource) = scale::resource_of(&self.ctx, group, &owner.kind) else {
            let text = format!("no matches for kind {:?} in version {:?}", owner.kind, owner.api_version);
            return Err(Uncounted::Lasting(text));
        };
        match scale::get(&self.ctx, &resource, key).await {
            Ok((_, scale)) if scale.metadata.uid == owner.uid => {
                Ok(Some((scale.metadata.uid, scale.spec.replicas)))
            }
            Ok(_) => Ok(None),
            Err(status) if status.reason == Reason::NotFound => {
                if scale::exists(&self.ctx, &resource, key).await? {
                    let name = api::status::qualified(&resource.group, &resource.resource);
                    return Err(Uncounted::Lasting(format!(
                        "{name} does not implement the scale subresource"
                    )));
                }
                Ok(None)
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Takes back that a pod is disrupted, if it has not been deleted in time.
    pub(super) async fn sync_stale(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(Action::Done) };
        let pod: Pod = decode(&object)?;
        let now = self.ctx.clock.now();
        match stale_in(&pod, now) {
            None => Ok(Action::Done),
            Some(left) if !left.is_zero() => Ok(Action::After(left)),
            Some(_) => {
                let generation = Some(pod.metadata.generation).filter(|generation| *generation > 0);
                let condition = json!({
                    "type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
                    "lastTransitionTime": seconds(now), "observedGeneration": generation,
                });
                let meta =
                    json!({ "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version });
                let patch = json!({ "metadata": meta, "status": { "conditions": [condition] } });
                let (pods, kind) = (self.pods.resource(), PatchType::StrategicMerge);
                ignore_missing(self.ctx.client.patch(pods, key, "status", kind, &patch).await)?;
                Ok(Action::Done)
            }
        }
    }
}

/// `spec.replicas` of an object that is still the same.
fn replicas(informer: &Informer, key: &Key, uid: &str) -> Found {
    let object = informer.get(key).filter(|object| object.meta().uid == uid)?;
    let held: Value = object.decode().ok()?;
    let replicas = held["spec"]["replicas"].as_i64().unwrap_or(1);
    Some((uid.to_owned(), i32::try_from(replicas).unwrap_or(i32::MAX)))
}
