//! Keeps IPAddress objects and the cluster addresses of Services in agreement: an address that a Service has is taken,
//! also when somebody deleted its object, and an address that no Service has is free.
//! Source: `k8s.io/kubernetes/pkg/registry/core/service/ipallocator/controller/repairip.go`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::json;

use crate::claim::ignore_gone;
use crate::context::{Ctx, ready};

const NAME: &str = "ipallocator-repair-controller";
/// The event source that users of upstream know.
const SOURCE: &str = "ipallocator-repair-controller";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// An address without a Service is looked at again after so long before it is taken away: the cache of Services may be
/// behind. Source: `gracePeriod` of the repair.
const LEAK_GRACE: Duration = Duration::from_secs(60);

/// The controller.
pub struct IpRepair {
    ctx: Ctx,
}

impl IpRepair {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    /// Whether a Service's addresses are taken for it.
    Service(Key),
    /// Whether an address belongs to a Service.
    Address(String),
}

#[async_trait]
impl Component for IpRepair {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let services = self.ctx.informers.get(kinds::SERVICES);
        let addresses = self.ctx.informers.get(kinds::IP_ADDRESSES);
        let queues: [Queue<Subject>; 2] = ["services", "ipaddresses"].map(|name| self.ctx.queue(name));
        let [from_services, from_addresses] = queues.clone();
        let owners = from_services.clone();
        let _registrations = [
            services.on_change(move |change| match (&change.old, &change.new) {
                // Its addresses went in its own transaction.
                (_, None) => {}
                (Some(old), Some(new)) if cluster_ips(old) == cluster_ips(new) => {}
                _ => from_services.add(Subject::Service(change.key.clone())),
            }),
            addresses.on_change(move |change| {
                let Some(latest) = change.latest() else { return };
                if change.new.is_some() {
                    from_addresses.add(Subject::Address(change.key.name.clone()));
                } else if let Some(owner) = parent(latest) {
                    owners.add(Subject::Service(owner));
                }
            }),
        ];
        if !ready(&ctx, &[&services, &addresses]).await {
            return Ok(());
        }
        let events = EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), SOURCE, "");
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), services, addresses, events });
        let work = |queue| run_workers(&ctx, NAME, queue, 1, worker.clone());
        tokio::join!(work(&queues[0]), work(&queues[1]));
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    r#type: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    spec: AddressSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AddressSpec {
    parent_ref: ParentRef,
}

#[derive(Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ParentRef {
    group: String,
    resource: String,
    namespace: String,
    name: String,
}

/// The cluster addresses that a Service has.
fn cluster_ips(service: &Object) -> Vec<IpAddr> {
    let spec = service.decode::<Service>().unwrap_or_default().spec;
    if spec.r#type == "ExternalName" {
        return Vec::new();
    }
    spec.cluster_ips.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The Service that an address is taken for.
fn parent(address: &Object) -> Option<Key> {
    let parent = address.decode::<Address>().ok()?.spec.parent_ref;
    (parent.group.is_empty() && parent.resource == "services")
        .then(|| Key::new(parent.namespace, parent.name))
}

struct Worker {
    ctx: Ctx,
    services: Informer,
    addresses: Informer,
    events: EventRecorder,
}

#[async_trait]
impl Reconcile<Subject> for Worker {
    async fn reconcile(&self, subject: &Subject) -> Result<Action, BoxError> {
        match subject {
            Subject::Service(key) => {
                for address in self.services.get(key).iter().flat_map(|held| cluster_ips(held)) {
                    self.repair(key, address).await?;
                }
                Ok(Action::Done)
            }
            Subject::Address(name) => self.look_for_leak(name).await,
        }
    }
}

impl Worker {
    /// The Service as the server has it: the cache may show one whose deletion took its address along.
    async fn live(&self, key: &Key) -> Result<Option<Arc<Object>>, BoxError> {
        match self.ctx.client.get(&kinds::SERVICES.gvr(), key).await {
            Ok(service) => Ok(Some(service)),
            Err(status) if status.reason == Reason::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Sees to it that an address of a Service is taken for it.
    async fn repair(&self, key: &Key, address: IpAddr) -> Result<(), BoxError> {
        if self.addresses.get(&Key::new("", address.to_string())).and_then(|held| parent(&held)).as_ref()
            == Some(key)
        {
            return Ok(());
        }
        let Some(service) = self.live(key).await? else { return Ok(()) };
        if !cluster_ips(&service).contains(&address) || service.meta().is_terminating() {
            return Ok(());
        }
        let resource = kinds::IP_ADDRESSES.gvr();
        let (reason, message) = match self.ctx.client.create(&resource, "", &taken(key, address)).await {
            Ok(_) => (
                "ClusterIPNotAllocated",
                format!("Cluster IP [{address}] of Service {key} is not allocated; repairing"),
            ),
            Err(status) if status.reason == Reason::AlreadyExists => {
                // Where it is free by now, the next try takes it.
                let held = self.ctx.client.get(&resource, &Key::new("", address.to_string())).await?;
                let owner = parent(&held);
                if owner.as_ref() == Some(key) {
                    return Ok(());
                }
                if let Some(owner) = &owner
                    && self.live(owner).await?.is_none()
                {
                    // The one that it was taken for is gone: it is given back, and taken anew when this is tried again.
                    let options = DeleteOptions {
                        precondition_uid: Some(held.meta().uid.clone()),
                        ..DeleteOptions::default()
                    };
                    ignore_gone(self.ctx.client.delete(&resource, &held.key(), options).await)?;
                    return Err(
                        format!("address {address} is taken for Service {owner}, which is gone").into()
                    );
                }
                let other =
                    owner.map_or_else(|| "something else".to_owned(), |owner| format!("Service {owner}"));
                (
                    "ClusterIPAlreadyAllocated",
                    format!(
                        "Cluster IP [{address}] of Service {key} was assigned to {other}; please recreate service"
                    ),
                )
            }
            Err(status) => return Err(status.into()),
        };
        self.events.event(Involved::object(&kinds::SERVICES, &service), EventType::Warning, reason, message);
        Ok(())
    }

    /// Takes an address away that the allocator took for a Service which does not have it.
    async fn look_for_leak(&self, name: &str) -> Result<Action, BoxError> {
        let key = Key::new("", name);
        let Some(held) = self.addresses.get(&key) else { return Ok(Action::Done) };
        let managed = held.meta().labels.get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR);
        let (Ok(address), Some(owner)) = (name.parse::<IpAddr>(), parent(&held)) else {
            return Ok(Action::Done);
        };
        let has_it = |service: &Arc<Object>| cluster_ips(service).contains(&address);
        if !managed || self.services.get(&owner).as_ref().is_some_and(has_it) {
            return Ok(Action::Done);
        }
        let age = held.meta().creation_timestamp.map(|made| self.ctx.clock.now().duration_since(made));
        let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
        if age < LEAK_GRACE {
            return Ok(Action::After(LEAK_GRACE - age));
        }
        if self.live(&owner).await?.as_ref().is_some_and(has_it) {
            return Ok(Action::Done);
        }
        let message = format!("IPAddress: {name} for Service {owner} appears to have leaked: cleaning up");
        let involved = Involved::object(&kinds::IP_ADDRESSES, &held);
        self.events.event(involved, EventType::Warning, "IPAddressNotAllocated", message);
        let options =
            DeleteOptions { precondition_uid: Some(held.meta().uid.clone()), ..DeleteOptions::default() };
        ignore_gone(self.ctx.client.delete(&kinds::IP_ADDRESSES.gvr(), &key, options).await)?;
        Ok(Action::Done)
    }
}

/// The object that says that an address is taken for a Service, as the allocator makes it.
fn taken(service: &Key, address: IpAddr) -> serde_json::Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": kinds::IP_ADDRESSES.api_version(), "kind": kinds::IP_ADDRESSES.kind,
        "metadata": { "name": address.to_string(), "labels": { FAMILY: family, MANAGED_BY: ALLOCATOR } },
        "spec": { "parentRef": {
            "group": "", "resource": "services", "namespace": service.namespace, "name": service.name,
        } },
    })
}
