//! Endpoints that people make for Services without a selector, as slices: whoever routes reads nothing else.
//! Source: `k8s.io/kubernetes/pkg/controller/endpointslicemirroring`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use super::WORKERS;
use super::slices::{Step, carry_out, service_of};
use super::types::{Conditions, Endpoint, MANAGED_BY, Port, SERVICE_NAME, Service, Slice, TargetRef};
use crate::context::{Ctx, controller_ref, decode, ready};

const NAME: &str = "endpointslicemirroring-controller";
/// The value of [`MANAGED_BY`] on slices that this controller keeps.
pub(super) const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Whoever makes slices himself says so with this label on his Endpoints.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints were once used for elections: those are nobody's addresses.
const ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Source: `--mirroring-max-endpoints-per-subset`, which is also the most that a slice may hold.
const PER_SUBSET: usize = 1000;

/// The controller.
pub struct EndpointSliceMirroring {
    ctx: Ctx,
}

impl EndpointSliceMirroring {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for EndpointSliceMirroring {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            endpoints: self.ctx.informers.get(kinds::ENDPOINTS),
            services: self.ctx.informers.get(kinds::SERVICES),
            slices: self.ctx.informers.get(kinds::ENDPOINT_SLICES),
        });
        let queue: Queue<Key> = self.ctx.queue("endpoint_slice_mirroring");
        let changed = queue.clone();
        let _endpoints = worker.endpoints.on_change(move |change| changed.add(change.key.clone()));
        let changed = queue.clone();
        let _services = worker.services.on_change(move |change| changed.add(change.key.clone()));
        let changed = queue.clone();
        let _slices = worker.slices.on_change(move |change| {
            if let Some(key) = service_of(change, MANAGER) {
                changed.add(key);
            }
        });
        if !ready(&ctx, &[&worker.endpoints, &worker.services, &worker.slices]).await {
            return Ok(());
        }
        run_workers(&ctx, NAME, &queue, WORKERS, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    endpoints: Informer,
    services: Informer,
    slices: Informer,
}

/// A projection of `core/v1.Endpoints`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoints {
    metadata: ObjectMeta,
    subsets: Vec<Subset>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    addresses: Vec<Address>,
    not_ready_addresses: Vec<Address>,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Address {
    ip: String,
    hostname: Option<String>,
    node_name: Option<String>,
    target_ref: Option<TargetRef>,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let held = self.slices.labelled(&key.namespace, |labels| {
            labels.get(SERVICE_NAME) == Some(&key.name)
                && labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER)
        });
        let held: Vec<Slice> = held
            .iter()
            .filter(|slice| !slice.meta().is_terminating())
            .map(|slice| decode(slice))
            .collect::<Result<_, _>>()?;
        let steps = plan(self.mirrored(key)?.as_ref(), held);
        carry_out(&self.ctx, &self.slices, key, steps).await?;
        Ok(Action::Done)
    }
}

impl Worker {
    /// The Endpoints of that name, if they are to be mirrored.
    fn mirrored(&self, key: &Key) -> Result<Option<Endpoints>, BoxError> {
        let (Some(endpoints), Some(service)) = (self.endpoints.get(key), self.services.get(key)) else {
            return Ok(None);
        };
        let service: Service = decode(&service)?;
        if !service.spec.selector.is_empty()
            || service.metadata.is_terminating()
            || is_left_alone(&endpoints)?
        {
            return Ok(None);
        }
        decode(&endpoints).map(Some)
    }
}

fn is_left_alone(endpoints: &Object) -> Result<bool, BoxError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Head {
        metadata: ObjectMeta,
    }
    let meta = endpoints.meta();
    let head: Head = decode(endpoints)?;
    Ok(meta.is_terminating()
        || meta.labels.get(SKIP).is_some_and(|skip| skip == "true")
        || head.metadata.annotations.contains_key(ELECTION))
}

/// Endpoints of one family with equal ports.
type Groups = BTreeMap<(String, Vec<Port>), Vec<Endpoint>>;

/// What has to be written so that the slices say what the Endpoints say; `None`: there is nothing to mirror.
pub(super) fn plan(endpoints: Option<&Endpoints>, held: Vec<Slice>) -> Vec<Step> {
    let mut groups = endpoints.map(desired).unwrap_or_default();
    let mut steps = Vec::new();
    let mut gone = Vec::new();
    for slice in held {
        let wanted = groups.remove(&(slice.address_type.clone(), slice.ports.clone()));
        match (endpoints, wanted) {
            (Some(endpoints), Some(wanted)) => steps.extend(patch(endpoints, slice, wanted)),
            _ => gone.push(Step::Delete { name: slice.metadata.name }),
        }
    }
    let Some(endpoints) = endpoints else { return gone };
    let made = groups
        .into_iter()
        .map(|((family, ports), wanted)| Step::Create(body(endpoints, &family, &ports, &wanted)));
    steps.extend(made);
    // Nothing vanishes before what replaces it is there.
    steps.extend(gone);
    steps
}

fn desired(endpoints: &Endpoints) -> Groups {
    let mut groups = Groups::new();
    for subset in &endpoints.subsets {
        let ready = subset.addresses.iter().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().map(|address| (address, false)));
        for (address, ready) in all.take(PER_SUBSET) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            groups.entry((family.to_owned(), subset.ports.clone())).or_default().push(Endpoint {
                addresses: vec![address.ip.clone()],
                conditions: Conditions { ready, serving: ready, terminating: false },
                hostname: address.hostname.clone(),
                node_name: address.node_name.clone(),
                target_ref: address.target_ref.clone(),
                zone: None,
            });
        }
    }
    // Subsets with equal ports share a slice, which holds so many and no more.
    groups.values_mut().for_each(|group| group.truncate(PER_SUBSET));
    groups
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.metadata.labels.clone();
    labels.insert(SERVICE_NAME.into(), endpoints.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn patch(endpoints: &Endpoints, slice: Slice, wanted: Vec<Endpoint>) -> Option<Step> {
    let labels = labels(endpoints);
    if slice.endpoints == wanted && slice.metadata.labels == labels {
        return None;
    }
    let mut changed: BTreeMap<&String, Value> =
        labels.iter().map(|(name, value)| (name, value.as_str().into())).collect();
    for gone in slice.metadata.labels.keys().filter(|name| !labels.contains_key(*name)) {
        changed.insert(gone, Value::Null);
    }
    let patch = json!({
        "metadata": { "labels": changed, "resourceVersion": slice.metadata.resource_version },
        "endpoints": wanted,
    });
    Some(Step::Patch { name: slice.metadata.name, patch })
}

fn body(endpoints: &Endpoints, family: &str, ports: &[Port], wanted: &[Endpoint]) -> Value {
    let meta = &endpoints.metadata;
    json!({
        "apiVersion": kinds::ENDPOINT_SLICES.api_version(), "kind": kinds::ENDPOINT_SLICES.kind,
        "metadata": {
            "generateName": format!("{}-", meta.name), "namespace": meta.namespace, "labels": labels(endpoints),
            "ownerReferences": [controller_ref(&kinds::ENDPOINTS, meta)],
        },
        "addressType": family, "ports": ports, "endpoints": wanted,
    })
}
