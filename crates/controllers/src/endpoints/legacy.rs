//! Endpoints: one object per Service, for clients that do not read slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{DeleteOptions, Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use super::types::{HEADLESS, Port, Service, address, target_ref};
use super::{WORKERS, Watched};
use crate::claim::ignore_gone;
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
        let watched = Arc::new(Watched::new(&self.ctx, "endpoint"));
        let _registrations = watched.listen();
        let queue = watched.queue.clone();
        let _endpoints_registration = endpoints.on_change(move |change| queue.add(change.key.clone()));
        if !ready(&ctx, &watched.caches(&endpoints)).await {
            return Ok(());
        }
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), watched: watched.clone(), endpoints });
        run_workers(&ctx, NAME, &watched.queue, WORKERS, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    watched: Arc<Watched>,
    endpoints: Informer,
}

/// A projection of `core/v1.Endpoints`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoints {
    metadata: api::ObjectMeta,
    subsets: Value,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let resource = kinds::ENDPOINTS.gvr();
        let held = self.endpoints.get(key);
        let Some(object) = self.watched.services.get(key) else {
            // Only what this controller made goes with the Service.
            if held.is_some_and(|held| held.meta().labels.contains_key(MANAGED_BY)) {
                ignore_gone(self.ctx.client.delete(&resource, key, DeleteOptions::default()).await)?;
            }
            return Ok(Action::Done);
        };
        let service: Service = decode(&object)?;
        if !service.is_ours() || service.metadata.is_terminating() {
            return Ok(Action::Done);
        }
        let pods = self.watched.selected(&key.namespace, &service);
        let body = body(&service, &pods);
        let written = match held {
            None => self.ctx.client.create(&resource, &key.namespace, &body).await?,
            Some(held) => {
                let held: Endpoints = decode(&held)?;
                if !differs(&held, &body) {
                    return Ok(Action::Done);
                }
                let patch = json!({
                    "metadata": {
                        "labels": body["metadata"]["labels"],
                        "annotations": { OVER_CAPACITY: body["metadata"]["annotations"][OVER_CAPACITY] },
                        "resourceVersion": held.metadata.resource_version,
                    },
                    "subsets": body["subsets"],
                });
                self.ctx.client.patch(&resource, key, "", PatchType::Merge, &patch).await?
            }
        };
        self.ctx.caught_up(&self.endpoints, written.revision()).await;
        Ok(Action::Done)
    }
}

fn differs(held: &Endpoints, body: &Value) -> bool {
    let none = |subsets: &Value| subsets.is_null() || subsets.as_array().is_some_and(Vec::is_empty);
    let wanted = &body["subsets"];
    let labels = body["metadata"]["labels"].as_object();
    let labelled = labels.is_some_and(|labels| {
        labels
            .iter()
            .all(|(name, value)| held.metadata.labels.get(name).map(String::as_str) == value.as_str())
    });
    !labelled || (held.subsets != *wanted && !(none(&held.subsets) && none(wanted)))
}

/// Ready and other addresses that have equal ports.
#[derive(Default)]
struct Subset {
    ready: Vec<Value>,
    other: Vec<Value>,
}

/// The Endpoints of a Service.
pub(super) fn body(service: &Service, pods: &[Pod]) -> Value {
    let mut pods: Vec<&Pod> = pods
        .iter()
        .filter(|pod| !pod.is_finished())
        .filter(|pod| service.spec.publish_not_ready_addresses || !pod.metadata.is_terminating())
        .collect();
    pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    // Where not all fit, those that serve are the ones that count.
    pods.sort_by_key(|pod| !pod.is_ready());
    let over = pods.len() > ADDRESSES_MAX;
    pods.truncate(ADDRESSES_MAX);
    let family = service.families().first().copied().unwrap_or("IPv4").to_owned();
    let mut subsets: BTreeMap<Vec<Port>, Subset> = BTreeMap::new();
    for pod in pods {
        let ports = service.ports_of(pod);
        if ports.is_empty() && !service.is_headless() {
            continue;
        }
        let Some(ip) = address(pod, &family) else { continue };
        let mut entry = json!({ "ip": ip, "targetRef": target_ref(pod) });
        if !pod.spec.node_name.is_empty() {
            entry["nodeName"] = pod.spec.node_name.as_str().into();
        }
        if let Some(hostname) = service.hostname_of(pod) {
            entry["hostname"] = hostname.into();
        }
        let subset = subsets.entry(ports).or_default();
        if pod.is_ready() || service.spec.publish_not_ready_addresses {
            subset.ready.push(entry);
        } else {
            subset.other.push(entry);
        }
    }
    let subsets: Vec<Value> =
        subsets.into_iter().map(|(ports, subset)| subset_body(&ports, subset)).collect();
    let mut labels = service.metadata.labels.clone();
    labels.insert(MANAGED_BY.into(), NAME.into());
    if service.is_headless() {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut body = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": service.metadata.name, "namespace": service.metadata.namespace, "labels": labels,
        },
        "subsets": subsets,
    });
    if over {
        body["metadata"]["annotations"] = json!({ OVER_CAPACITY: "truncated" });
    }
    body
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
    let mut body = json!({});
    for (field, list) in [("addresses", subset.ready), ("notReadyAddresses", subset.other), ("ports", ports)]
    {
        if !list.is_empty() {
            body[field] = list.into();
        }
    }
    body
}
