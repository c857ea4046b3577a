//! Endpoints: one object per Service, for clients that do not read slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{DeleteOptions, Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use super::trigger::{self, TRIGGER_TIME, Triggers};
use super::types::{HEADLESS, Port, Service, address, target_ref};
use super::{WORKERS, Watched};
use crate::claim::{ignore_gone, is_ending_namespace};
use crate::context::{Ctx, decode, ready};
use crate::pods::Pod;

const NAME: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Says that there are more addresses than the object holds.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Source: `maxCapacity`.
const ADDRESSES_MAX: usize = 1000;

/// The Endpoints controller.
pub struct EndpointsController {
    ctx: Ctx,
}

impl EndpointsController {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for EndpointsController {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let endpoints = self.ctx.informers.get(kinds::ENDPOINTS);
        let watched = Arc::new(Watched::new(&self.ctx, self.ctx.queue("endpoint")));
        let _registrations = watched.listen();
        let queue = watched.queue.clone();
        let _endpoints_registration = endpoints.on_change(move |change| queue.add(change.key.clone()));
        if !ready(&ctx, &[&watched.services, &watched.pods, &endpoints]).await {
            return Ok(());
        }
        let events = EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, "");
        let triggers = Triggers::default();
        let worker =
            Arc::new(Worker { ctx: self.ctx.clone(), watched: watched.clone(), endpoints, events, triggers });
        run_workers(&ctx, NAME, &watched.queue, WORKERS, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    watched: Arc<Watched>,
    endpoints: Informer,
    events: EventRecorder,
    triggers: Triggers,
}

/// A projection of `core/v1.Endpoints`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoints {
    metadata: api::ObjectMeta,
    subsets: Value,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let held = self.endpoints.get(key);
        match self.watched.services.get(key) {
            Some(service) => self.sync(key, &service, held.as_deref()).await?,
            None => self.remove(key, held.as_deref()).await?,
        }
        Ok(Action::Done)
    }
}

impl Worker {
    /// Only what this controller made goes with the Service.
    async fn remove(&self, key: &Key, held: Option<&Object>) -> Result<(), BoxError> {
        self.triggers.forget(key);
        if held.is_some_and(|held| held.meta().labels.contains_key(MANAGED_BY)) {
            let resource = kinds::ENDPOINTS.gvr();
            ignore_gone(self.ctx.client.delete(&resource, key, DeleteOptions::default()).await)?;
        }
        Ok(())
    }

    async fn sync(&self, key: &Key, service: &Object, held: Option<&Object>) -> Result<(), BoxError> {
        let service: Service = decode(service)?;
        if !service.is_ours() || service.metadata.is_terminating() {
            return Ok(());
        }
        let pods = self.watched.selected(key, &service);
        let trigger = self.triggers.next(key, &service, &pods);
        let body = body(&service, &pods, trigger);
        let resource = kinds::ENDPOINTS.gvr();
        let written = match held {
            None => self.ctx.client.create(&resource, &key.namespace, &body).await,
            Some(held) => match patch(&decode(held)?, &body) {
                None => return Ok(()),
                Some(patch) => self.ctx.client.patch(&resource, key, "", PatchType::Merge, &patch).await,
            },
        };
        match written {
            Ok(written) => self.ctx.caught_up(&self.endpoints, written.revision()).await,
            Err(status) if held.is_none() && is_ending_namespace(&status) => {}
            Err(status) => {
                let (reason, what) = match held {
                    None => ("FailedToCreateEndpoint", "create endpoint for service"),
                    Some(_) => ("FailedToUpdateEndpoint", "update endpoint"),
                };
                let uid = held.map_or("", |held| held.meta().uid.as_str());
                let involved = Involved::named(&kinds::ENDPOINTS, key, uid);
                let message = format!("Failed to {what} {key}: {status}");
                self.events.event(involved, EventType::Warning, reason, message);
                return Err(status.into());
            }
        }
        Ok(())
    }
}

/// What has to change in the Endpoints that are held, if anything has to. The moment of the last change alone is no reason.
pub(super) fn patch(held: &Endpoints, body: &Value) -> Option<Value> {
    let none = |subsets: &Value| subsets.as_array().is_none_or(Vec::is_empty);
    let (wanted, meta) = (&body["subsets"], &held.metadata);
    let labels: BTreeMap<String, String> =
        serde_json::from_value(body["metadata"]["labels"].clone()).unwrap_or_default();
    let annotation = |name: &str| body["metadata"]["annotations"].get(name).and_then(Value::as_str);
    let over = annotation(OVER_CAPACITY);
    if labels == meta.labels
        && over == meta.annotations.get(OVER_CAPACITY).map(String::as_str)
        && (held.subsets == *wanted || (none(&held.subsets) && none(wanted)))
    {
        return None;
    }
    Some(json!({
        "metadata": {
            "labels": trigger::changes(&meta.labels, &labels),
            "annotations": { OVER_CAPACITY: over, TRIGGER_TIME: annotation(TRIGGER_TIME) },
            "resourceVersion": meta.resource_version,
        },
        "subsets": wanted,
    }))
}

/// Ready and other addresses that have equal ports.
#[derive(Default)]
struct Subset {
    ready: Vec<Address>,
    other: Vec<Address>,
}

/// An address, and by what it is put in order: clients see it. Source: `lessEndpointAddress`.
struct Address {
    ip: String,
    uid: String,
    body: Value,
}

fn subsets(service: &Service, pods: &[Pod]) -> BTreeMap<Vec<Port>, Subset> {
    let family = service.first_family();
    let early = service.spec.publish_not_ready_addresses;
    let mut subsets: BTreeMap<Vec<Port>, Subset> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.is_finished() && (early || !pod.metadata.is_terminating())) {
        let ports = service.ports_of(pod);
        // A headless Service needs none; whose named ports a pod does not have is not served by it.
        if ports.is_empty() && !(service.is_headless() && service.spec.ports.is_empty()) {
            continue;
        }
        let Some(ip) = address(pod, family) else { continue };
        let mut body = json!({ "ip": ip, "targetRef": target_ref(pod) });
        if !pod.spec.node_name.is_empty() {
            body["nodeName"] = pod.spec.node_name.as_str().into();
        }
        if let Some(hostname) = service.hostname_of(pod) {
            body["hostname"] = hostname.into();
        }
        let subset = subsets.entry(ports).or_default();
        let list = if early || pod.is_ready() { &mut subset.ready } else { &mut subset.other };
        list.push(Address { ip, uid: pod.metadata.uid.clone(), body });
    }
    for subset in subsets.values_mut() {
        for list in [&mut subset.ready, &mut subset.other] {
            list.sort_by(|a, b| (&a.ip, &a.uid).cmp(&(&b.ip, &b.uid)));
        }
    }
    subsets
}

/// Leaves out what is too much, of each subset in proportion, and of those that are not ready first; tells whether
/// something was. Source: `truncateEndpoints`.
fn truncate(subsets: &mut BTreeMap<Vec<Port>, Subset>) -> bool {
    let ready: usize = subsets.values().map(|subset| subset.ready.len()).sum();
    let other: usize = subsets.values().map(|subset| subset.other.len()).sum();
    if ready + other <= ADDRESSES_MAX {
        return false;
    }
    let too_many_ready = ready > ADDRESSES_MAX;
    let (room, total) = if too_many_ready { (ADDRESSES_MAX, ready) } else { (ADDRESSES_MAX - ready, other) };
    let mut left = room;
    for subset in subsets.values_mut() {
        let list = if too_many_ready { &mut subset.ready } else { &mut subset.other };
        list.truncate((list.len() * room).div_ceil(total).min(left));
        left -= list.len();
        if too_many_ready {
            subset.other.clear();
        }
    }
    // One without addresses would be refused.
    subsets.retain(|_, subset| !subset.ready.is_empty() || !subset.other.is_empty());
    true
}

/// The Endpoints of a Service.
pub(super) fn body(service: &Service, pods: &[Pod], trigger: Option<Timestamp>) -> Value {
    let mut subsets = subsets(service, pods);
    let over = truncate(&mut subsets);
    let subsets: Vec<Value> =
        subsets.into_iter().map(|(ports, subset)| subset_body(&ports, subset)).collect();
    let mut labels = service.metadata.labels.clone();
    labels.insert(MANAGED_BY.into(), NAME.into());
    labels.remove(HEADLESS);
    if !service.has_address() {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut annotations = BTreeMap::new();
    annotations.extend(over.then(|| (OVER_CAPACITY, "truncated".to_owned())));
    annotations.extend(trigger.map(|at| (TRIGGER_TIME, at.to_string())));
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": service.metadata.name, "namespace": service.metadata.namespace, "labels": labels,
            "annotations": annotations,
        },
        "subsets": subsets,
    })
}

fn subset_body(ports: &[Port], subset: Subset) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            let mut body = json!({ "port": port.port, "protocol": port.protocol });
            if !port.name.is_empty() {
                body["name"] = port.name.as_str().into();
            }
            if let Some(protocol) = &port.app_protocol {
                body["appProtocol"] = protocol.as_str().into();
            }
            body
        })
        .collect();
    let bodies = |list: Vec<Address>| list.into_iter().map(|address| address.body).collect::<Vec<_>>();
    let (ready, other) = (bodies(subset.ready), bodies(subset.other));
    let mut body = json!({});
    for (field, list) in [("addresses", ready), ("notReadyAddresses", other), ("ports", ports)] {
        if !list.is_empty() {
            body[field] = list.into();
        }
    }
    body
}
