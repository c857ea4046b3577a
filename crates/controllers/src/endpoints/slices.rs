//! EndpointSlices: a hundred endpoints each, changed as little as possible, since every node reads every change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::{DeleteOptions, Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Change, Informer, Reconcile, kinds, run_workers};
use serde_json::{Value, json};

use super::types::{
    Conditions, Endpoint, HEADLESS, MANAGED_BY, Port, SERVICE_NAME, Service, Slice, address, target_ref,
};
use super::{WORKERS, Watched};
use crate::claim::ignore_gone;
use crate::context::{Ctx, controller_ref, decode, ready};
use crate::pods::Pod;

const NAME: &str = "endpointslice-controller";
/// The value of [`MANAGED_BY`] on slices that this controller keeps; others are left alone.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Source: `--max-endpoints-per-slice`.
const PER_SLICE: usize = 100;

/// The EndpointSlice controller.
pub struct EndpointSlices {
    ctx: Ctx,
}

impl EndpointSlices {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for EndpointSlices {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let slices = self.ctx.informers.get(kinds::ENDPOINT_SLICES);
        let watched = Arc::new(Watched::new(&self.ctx, "endpoint_slice"));
        let _registrations = watched.listen();
        let queue = watched.queue.clone();
        let _slices_registration = slices.on_change(move |change| {
            if let Some(key) = service_of(change, MANAGER) {
                queue.add(key);
            }
        });
        if !ready(&ctx, &watched.caches(&slices)).await {
            return Ok(());
        }
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), watched: watched.clone(), slices });
        run_workers(&ctx, NAME, &watched.queue, WORKERS, worker).await;
        Ok(())
    }
}

/// The Service whose slice, kept by `manager`, changed.
pub(super) fn service_of(change: &Change, manager: &str) -> Option<Key> {
    let labels = &change.latest()?.meta().labels;
    let name = labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|by| by == manager))?;
    Some(Key::new(change.key.namespace.as_str(), name.as_str()))
}

struct Worker {
    ctx: Ctx,
    watched: Arc<Watched>,
    slices: Informer,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        // Slices of a Service that is gone go with it: it is their owner.
        let Some(object) = self.watched.services.get(key) else { return Ok(Action::Done) };
        let service: Service = decode(&object)?;
        if !service.is_ours() || service.metadata.is_terminating() {
            return Ok(Action::Done);
        }
        let pods = self.watched.selected(&key.namespace, &service);
        let is_ours = |labels: &BTreeMap<String, String>| {
            labels.get(SERVICE_NAME) == Some(&key.name)
                && labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER)
        };
        let slices: Vec<Slice> = self
            .slices
            .labelled(&key.namespace, is_ours)
            .iter()
            .filter(|slice| !slice.meta().is_terminating())
            .map(|slice| decode(slice))
            .collect::<Result<_, _>>()?;
        let steps = plan(&service, &pods, slices, |node| self.watched.zone(node));
        carry_out(&self.ctx, &self.slices, key, steps).await?;
        Ok(Action::Done)
    }
}

/// Writes slices of one Service and waits until the cache has seen it.
pub(super) async fn carry_out(
    ctx: &Ctx,
    slices: &Informer,
    key: &Key,
    steps: Vec<Step>,
) -> Result<(), BoxError> {
    let resource = kinds::ENDPOINT_SLICES.gvr();
    let mut newest = 0;
    for step in steps {
        let written = match step {
            Step::Create(body) => Some(ctx.client.create(&resource, &key.namespace, &body).await?),
            Step::Patch { name, patch } => {
                let slice = Key::new(key.namespace.as_str(), name);
                Some(ctx.client.patch(&resource, &slice, "", PatchType::Merge, &patch).await?)
            }
            Step::Delete { name } => {
                let slice = Key::new(key.namespace.as_str(), name);
                ignore_gone(ctx.client.delete(&resource, &slice, DeleteOptions::default()).await)?;
                None
            }
        };
        newest = newest.max(written.map_or(0, |object| object.revision()));
    }
    if newest > 0 {
        ctx.caught_up(slices, newest).await;
    }
    Ok(())
}

/// One write.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Create(Value),
    Patch { name: String, patch: Value },
    Delete { name: String },
}

/// Endpoints of one family with equal ports.
type Groups = BTreeMap<(String, Vec<Port>), Vec<Endpoint>>;

/// What has to be written so that the slices say who serves.
pub(super) fn plan(
    service: &Service,
    pods: &[Pod],
    slices: Vec<Slice>,
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<Step> {
    let labels = labels(service);
    let mut groups = desired(service, pods, zone);
    let mut held: BTreeMap<(String, Vec<Port>), Vec<Slice>> = BTreeMap::new();
    for slice in slices {
        held.entry((slice.address_type.clone(), slice.ports.clone())).or_default().push(slice);
    }
    for group in held.keys() {
        groups.entry(group.clone()).or_default();
    }
    // A Service that nobody serves has one empty slice per family, which says so.
    let served: BTreeSet<String> = groups
        .iter()
        .filter(|(_, endpoints)| !endpoints.is_empty())
        .map(|((family, _), _)| family.clone())
        .collect();
    for family in service.families().into_iter().filter(|family| !served.contains(*family)) {
        groups.entry((family.to_owned(), Vec::new())).or_default();
    }
    let mut steps = Vec::new();
    for ((family, ports), endpoints) in groups {
        let slices = held.remove(&(family.clone(), ports.clone())).unwrap_or_default();
        let placeholder = ports.is_empty() && !served.contains(&family);
        steps.extend(Group { service, family, ports, labels: &labels }.plan(endpoints, slices, placeholder));
    }
    // Nothing vanishes before what replaces it is there.
    steps.sort_by_key(|step| matches!(step, Step::Delete { .. }));
    steps
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.is_headless() {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn desired(service: &Service, pods: &[Pod], zone: impl Fn(&str) -> Option<String>) -> Groups {
    let mut groups = Groups::new();
    for pod in pods.iter().filter(|pod| !pod.is_finished()) {
        let (serving, terminating) = (pod.is_ready(), pod.metadata.is_terminating());
        let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
        for family in service.families() {
            let Some(address) = address(pod, family) else { continue };
            let node = Some(&pod.spec.node_name).filter(|node| !node.is_empty());
            let endpoint = Endpoint {
                addresses: vec![address],
                conditions: Conditions { ready, serving, terminating },
                hostname: service.hostname_of(pod),
                zone: node.and_then(|node| zone(node)),
                node_name: node.cloned(),
                target_ref: Some(target_ref(pod)),
            };
            groups.entry((family.to_owned(), service.ports_of(pod))).or_default().push(endpoint);
        }
    }
    for endpoints in groups.values_mut() {
        endpoints.sort_by(|a, b| a.target_ref.cmp(&b.target_ref));
    }
    groups
}

/// The slices of one family and port set.
struct Group<'a> {
    service: &'a Service,
    family: String,
    ports: Vec<Port>,
    labels: &'a BTreeMap<String, String>,
}

impl Group<'_> {
    fn plan(&self, wanted: Vec<Endpoint>, slices: Vec<Slice>, placeholder: bool) -> Vec<Step> {
        let uid = |endpoint: &Endpoint| endpoint.target_ref.as_ref().map(|target| target.uid.clone());
        let mut missing: BTreeMap<Option<String>, Endpoint> =
            wanted.into_iter().map(|endpoint| (uid(&endpoint), endpoint)).collect();
        // What is held stays where it is, in its newest form.
        let mut kept: Vec<(Slice, Vec<Endpoint>)> = slices
            .into_iter()
            .map(|slice| {
                let endpoints =
                    slice.endpoints.iter().filter_map(|held| missing.remove(&uid(held))).collect();
                (slice, endpoints)
            })
            .collect();
        let mut missing: Vec<Endpoint> = missing.into_values().collect();
        missing.sort_by(|a, b| a.target_ref.cmp(&b.target_ref));
        // Slices that have to be written anyway take new endpoints first.
        kept.sort_by_key(|(slice, endpoints)| slice.endpoints == *endpoints);
        for (_, endpoints) in &mut kept {
            let room = PER_SLICE.saturating_sub(endpoints.len()).min(missing.len());
            endpoints.extend(missing.drain(..room));
        }
        let mut keep_one = placeholder;
        let mut steps = Vec::new();
        for (slice, endpoints) in kept {
            if endpoints.is_empty() && !std::mem::take(&mut keep_one) {
                steps.push(Step::Delete { name: slice.metadata.name });
            } else {
                steps.extend(self.patch(slice, endpoints));
            }
        }
        if keep_one {
            steps.push(Step::Create(self.body(&[])));
        }
        steps.extend(missing.chunks(PER_SLICE).map(|chunk| Step::Create(self.body(chunk))));
        steps
    }

    fn patch(&self, slice: Slice, endpoints: Vec<Endpoint>) -> Option<Step> {
        if slice.endpoints == endpoints && slice.metadata.labels == *self.labels {
            return None;
        }
        let mut labels: BTreeMap<&String, Value> =
            self.labels.iter().map(|(name, value)| (name, value.as_str().into())).collect();
        for gone in slice.metadata.labels.keys().filter(|name| !self.labels.contains_key(*name)) {
            labels.insert(gone, Value::Null);
        }
        let patch = json!({
            "metadata": { "labels": labels, "resourceVersion": slice.metadata.resource_version },
            "endpoints": endpoints,
        });
        Some(Step::Patch { name: slice.metadata.name, patch })
    }

    fn body(&self, endpoints: &[Endpoint]) -> Value {
        let meta = &self.service.metadata;
        json!({
            "apiVersion": kinds::ENDPOINT_SLICES.api_version(), "kind": kinds::ENDPOINT_SLICES.kind,
            "metadata": {
                "generateName": format!("{}-", meta.name), "namespace": meta.namespace, "labels": self.labels,
                "ownerReferences": [controller_ref(&kinds::SERVICES, meta)],
            },
            "addressType": self.family, "ports": self.ports, "endpoints": endpoints,
        })
    }
}
