//! Endpoints that people make for Services without a selector, as slices: whoever routes reads nothing else.
//! Source: `k8s.io/kubernetes/pkg/controller/endpointslicemirroring`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::backoff::Policy;
use base::lifecycle::{Component, Context};
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds};
use serde::Deserialize;
use serde_json::{Value, json};

use super::WORKERS;
use super::plan::Step;
use super::slices::{carry_out, held, services_of};
use super::trigger::{TRIGGER_TIME, changes};
use super::types::{
    Conditions, Endpoint, Identity, MANAGED_BY, Port, SERVICE_NAME, Service, Slice, TargetRef, sorted,
};
use crate::context::{Ctx, controller_ref, decode, work};
use crate::figures::mirroring::Mirrored;

const NAME: &str = "endpointslicemirroring-controller";
/// The value of [`MANAGED_BY`] on slices that this controller keeps.
pub(super) const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Whoever makes slices himself says so with this label on his Endpoints.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints were once used for elections: those are nobody's addresses.
const ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Source: `--mirroring-max-endpoints-per-subset`, which is also the most that a slice may hold.
const PER_SUBSET: usize = 1000;
/// The source of its events.
const EVENTS: &str = "endpoint-slice-mirroring-controller";
/// Annotations that mean the Endpoints alone.
const NOT_COPIED: [&str; 2] = [TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];
/// The longest name of an object.
const NAME_MAX: usize = 253;
/// Source: `defaultSyncBackOff`, `maxSyncBackOff`.
const BACKOFF: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(100) };

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
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), EVENTS, ""),
        });
        let queue: Queue<Key> = self.ctx.queue_with("endpoint_slice_mirroring", BACKOFF);
        let changed = queue.clone();
        let _endpoints = worker.endpoints.on_change(move |change| changed.add(change.key.clone()));
        let changed = queue.clone();
        let _services = worker.services.on_change(move |change| changed.add(change.key.clone()));
        let changed = queue.clone();
        let _slices = worker.slices.on_change(move |change| {
            services_of(change, MANAGER).into_iter().for_each(|key| changed.add(key));
        });
        work(&ctx, NAME, &[&worker.endpoints, &worker.services, &worker.slices], &queue, WORKERS, &worker)
            .await
    }
}

struct Worker {
    ctx: Ctx,
    endpoints: Informer,
    services: Informer,
    slices: Informer,
    events: EventRecorder,
}

/// A projection of `core/v1.Endpoints`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoints {
    pub(super) metadata: ObjectMeta,
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
        let begun = Instant::now();
        let done = self.mirror(key).await;
        self.ctx.figures.iter().for_each(|figures| figures.mirror.looked(begun.elapsed()));
        done.map(|()| Action::Done)
    }
}

impl Worker {
    async fn mirror(&self, key: &Key) -> Result<(), BoxError> {
        let held = held(&self.slices, key, MANAGER)?;
        let endpoints = self.mirrored(key)?;
        let plan = plan(endpoints.as_ref(), held);
        if let Some(endpoints) = &endpoints {
            self.tell(key, endpoints, &plan);
        }
        let figures = self.ctx.figures.as_ref().map(|figures| &figures.mirror);
        if let Some(figures) = figures {
            figures.mirrored(key, endpoints.is_some().then_some(&plan.count));
        }
        let changed = |operation| figures.into_iter().for_each(|figures| figures.changed(operation));
        carry_out(&self.ctx, &self.slices, key, plan.steps, changed).await
    }

    /// The Endpoints of that name, if they are to be mirrored.
    fn mirrored(&self, key: &Key) -> Result<Option<Endpoints>, BoxError> {
        let (Some(endpoints), Some(service)) = (self.endpoints.get(key), self.services.get(key)) else {
            return Ok(None);
        };
        let service: Service = decode(&service)?;
        if !service.spec.selector.is_empty() || is_left_alone(&endpoints)? {
            return Ok(None);
        }
        decode(&endpoints).map(Some)
    }

    /// Says which addresses are in no slice.
    fn tell(&self, key: &Key, endpoints: &Endpoints, plan: &Plan) {
        for (reason, message) in plan.complaints() {
            let involved = Involved::named(&kinds::ENDPOINTS, key, &endpoints.metadata.uid);
            self.events.event(involved, EventType::Warning, reason, message);
        }
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
    Ok(meta.labels.get(SKIP).is_some_and(|skip| skip == "true")
        || head.metadata.annotations.contains_key(ELECTION))
}

/// Endpoints of one family with equal ports: the ports in their order, and what is there.
type Groups = BTreeMap<(&'static str, Vec<Port>), (Vec<Port>, BTreeMap<Identity, Endpoint>)>;

/// What has to be written, and what cannot be said in slices.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// Addresses that are none.
    invalid: usize,
    /// What there is to count; skipped addresses are in no slice, the invalid ones among them.
    pub(super) count: Mirrored,
}

impl Plan {
    /// Reasons and messages of events.
    pub(super) fn complaints(&self) -> Vec<(&'static str, String)> {
        let Self { invalid, count: Mirrored { skipped, .. }, .. } = self;
        let mut all = Vec::new();
        if *invalid > 0 {
            let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
            all.push(("InvalidIPAddress", message));
        }
        if skipped > invalid {
            let message = format!(
                "A max of {PER_SUBSET} addresses can be mirrored to EndpointSlices per Endpoints subset. \
                 {skipped} addresses were skipped"
            );
            all.push(("TooManyAddressesToMirror", message));
        }
        all
    }
}

/// What has to be written so that the slices say what the Endpoints say; `None`: there is nothing to mirror.
/// Source: `reconciler.reconcile`.
pub(super) fn plan(endpoints: Option<&Endpoints>, held: Vec<Slice>) -> Plan {
    let mut plan = Plan::default();
    let delete = |slice: Slice| Step::Delete { name: slice.metadata.name };
    let Some(endpoints) = endpoints else {
        plan.steps = held.into_iter().map(delete).collect();
        return plan;
    };
    let mut groups = desired(endpoints, &mut plan);
    plan.count.slices = groups.len();
    plan.count.endpoints = groups.values().map(|(_, wanted)| wanted.len()).sum();
    let mut gone: Vec<Slice> = Vec::new();
    for slice in held {
        let wanted = match slice.address_type.as_str() {
            "IPv4" => groups.remove(&("IPv4", sorted(&slice.ports))),
            "IPv6" => groups.remove(&("IPv6", sorted(&slice.ports))),
            _ => None,
        };
        match wanted {
            Some((ports, wanted)) => {
                compare(&mut plan.count, &slice.endpoints, &wanted);
                plan.steps.extend(patch(endpoints, slice, &ports, wanted));
            }
            None => {
                compare(&mut plan.count, &slice.endpoints, &BTreeMap::new());
                gone.push(slice);
            }
        }
    }
    for ((family, _), (ports, wanted)) in groups {
        compare(&mut plan.count, &[], &wanted);
        // What would go is written over: fewer changes for those who watch.
        match gone.iter().position(|slice| slice.address_type == family) {
            Some(at) => plan.steps.extend(patch(endpoints, gone.remove(at), &ports, wanted)),
            None if endpoints.metadata.is_terminating() => {}
            None => plan.steps.push(Step::Create(body(endpoints, family, &ports, wanted))),
        }
    }
    // Nothing vanishes before what replaces it is there.
    plan.steps.extend(gone.into_iter().map(delete));
    plan
}

/// Counts what becomes of the endpoints of a slice.
fn compare(count: &mut Mirrored, held: &[Endpoint], wanted: &BTreeMap<Identity, Endpoint>) {
    let kept = held.iter().filter_map(|held| Some((held, wanted.get(&held.identity())?)));
    let (mut same, mut changed) = (0, 0);
    for (held, wanted) in kept {
        let counter = if wanted.says_as(held) { &mut same } else { &mut changed };
        *counter += 1;
    }
    let kept = same + changed;
    count.added += wanted.len().saturating_sub(kept);
    count.updated += changed;
    count.removed += held.len().saturating_sub(kept);
}

fn desired(endpoints: &Endpoints, plan: &mut Plan) -> Groups {
    let mut groups = Groups::new();
    for subset in &endpoints.subsets {
        let ready = subset.addresses.iter().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().map(|address| (address, false)));
        let mut added = 0;
        for (address, ready) in all {
            if added == PER_SUBSET {
                break;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                plan.invalid += 1;
                continue;
            };
            added += 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let group = groups.entry((family, sorted(&subset.ports)));
            let (_, group) = group.or_insert_with(|| (subset.ports.clone(), BTreeMap::new()));
            let endpoint = Endpoint {
                addresses: vec![ip.to_string()],
                conditions: Conditions { ready: Some(ready), ..Conditions::default() },
                hostname: address.hostname.clone().filter(|name| !name.is_empty()),
                node_name: address.node_name.clone(),
                target_ref: address.target_ref.clone(),
                ..Endpoint::default()
            };
            // Subsets with equal ports share a slice, which holds so many and no more.
            if group.len() < PER_SUBSET {
                group.insert(endpoint.identity(), endpoint);
            }
        }
        plan.count.skipped += subset.addresses.len() + subset.not_ready_addresses.len() - added;
    }
    groups
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.metadata.labels.clone();
    labels.insert(SERVICE_NAME.into(), endpoints.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.metadata.annotations.clone();
    annotations.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    annotations
}

fn patch(
    endpoints: &Endpoints,
    slice: Slice,
    ports: &[Port],
    wanted: BTreeMap<Identity, Endpoint>,
) -> Option<Step> {
    let (labels, annotations) = (labels(endpoints), annotations(endpoints));
    let meta = &slice.metadata;
    let as_wanted = |held: &Endpoint| wanted.get(&held.identity()).is_some_and(|wanted| wanted.says_as(held));
    if sorted(&slice.ports) == sorted(ports)
        && slice.endpoints.len() == wanted.len()
        && slice.endpoints.iter().all(as_wanted)
        && meta.labels == labels
        && meta.annotations == annotations
    {
        return None;
    }
    let patch = json!({
        "metadata": {
            "labels": changes(&meta.labels, &labels),
            "annotations": changes(&meta.annotations, &annotations),
            "resourceVersion": meta.resource_version,
        },
        "ports": ports, "endpoints": wanted.values().collect::<Vec<_>>(),
    });
    Some(Step::Patch { name: slice.metadata.name, patch })
}

fn body(endpoints: &Endpoints, family: &str, ports: &[Port], wanted: BTreeMap<Identity, Endpoint>) -> Value {
    let meta = &endpoints.metadata;
    // Endpoints may have the longest of names, after which nothing fits.
    let dash = if meta.name.len() < NAME_MAX { "-" } else { "" };
    json!({
        "apiVersion": kinds::ENDPOINT_SLICES.api_version(), "kind": kinds::ENDPOINT_SLICES.kind,
        "metadata": {
            "generateName": format!("{}{dash}", meta.name), "namespace": meta.namespace,
            "labels": labels(endpoints), "annotations": annotations(endpoints),
            "ownerReferences": [controller_ref(&kinds::ENDPOINTS, meta)],
        },
        "addressType": family, "ports": ports, "endpoints": wanted.values().collect::<Vec<_>>(),
    })
}
