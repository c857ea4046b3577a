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
use ipnet::IpNet;
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

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
        let ranges = self.ctx.informers.get(kinds::SERVICE_CIDRS);
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
        let (known, from_ranges) = (services.clone(), queues[0].clone());
        let _ranges = ranges.on_change(move |change| {
            // One that comes may have addresses that were in none.
            if change.old.is_none() {
                known.list().iter().for_each(|service| from_ranges.add(Subject::Service(service.key())));
            }
        });
        if !ready(&ctx, &[&services, &addresses, &ranges]).await {
            return Ok(());
        }
        let events = EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), SOURCE, "");
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), services, addresses, ranges, events });
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
    ranges: Informer,
    events: EventRecorder,
}

/// What is wrong about an address of a Service. Source: `syncService`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// No range has it.
    OutOfRange,
    /// It is not taken.
    Free,
    /// It is taken for nothing, or for a Service that is gone.
    Reference,
    /// It is taken for another Service, which has it.
    Twice,
}

impl Wrong {
    /// The event's reason and message, in upstream's words.
    fn told(self, service: &Key, address: IpAddr) -> (&'static str, String) {
        let family = family(address);
        match self {
            Self::OutOfRange => (
                "ClusterIPOutOfRange",
                format!(
                    "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
                ),
            ),
            Self::Free => (
                "ClusterIPNotAllocated",
                format!("Cluster IP [{family}]: {address} is not allocated; repairing"),
            ),
            Self::Reference => (
                "ClusterIPNotAllocated",
                format!(
                    "the ClusterIP [{family}]: {address} for Service {service} has a wrong reference; repairing"
                ),
            ),
            Self::Twice => (
                "ClusterIPAlreadyAllocated",
                format!(
                    "Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service"
                ),
            ),
        }
    }
}

/// Whether an address says that the allocator took it. Source: `verifyIPAddressLabels`.
fn is_labelled(held: &Object, address: IpAddr) -> bool {
    let said = |label: &str| held.meta().labels.get(label).map(String::as_str);
    said(MANAGED_BY) == Some(ALLOCATOR) && said(FAMILY) == Some(family(address))
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Whether a ServiceCIDR has an address.
fn covers(range: &Object, address: IpAddr) -> bool {
    let tree = range.decode::<Value>().unwrap_or_default();
    let nets = tree["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    nets.filter_map(|net| net.parse::<IpNet>().ok()).any(|net| net.contains(&address))
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
        let is_taken = |held: &Arc<Object>| parent(held).as_ref() == Some(key) && is_labelled(held, address);
        let ranges = self.ranges.list();
        let in_range = ranges.is_empty() || ranges.iter().any(|range| covers(range, address));
        if in_range && self.addresses.get(&Key::new("", address.to_string())).as_ref().is_some_and(is_taken) {
            return Ok(());
        }
        let Some(service) = self.live(key).await? else { return Ok(()) };
        if !cluster_ips(&service).contains(&address) || service.meta().is_terminating() {
            return Ok(());
        }
        if !in_range {
            self.tell(&service, key, address, Wrong::OutOfRange);
            return Ok(());
        }
        let resource = kinds::IP_ADDRESSES.gvr();
        match self.ctx.client.create(&resource, "", &taken(key, address)).await {
            Ok(_) => {
                self.tell(&service, key, address, Wrong::Free);
                Ok(())
            }
            Err(status) if status.reason == Reason::AlreadyExists => {
                // Where it is free by now, the next try takes it.
                let held = self.ctx.client.get(&resource, &Key::new("", address.to_string())).await?;
                self.settle(&service, key, address, &held).await
            }
            Err(status) => Err(status.into()),
        }
    }

    /// An address of a Service is taken, for whomever.
    async fn settle(
        &self,
        service: &Object,
        key: &Key,
        address: IpAddr,
        held: &Object,
    ) -> Result<(), BoxError> {
        let owner = parent(held);
        let own = owner.as_ref() == Some(key);
        if own && is_labelled(held, address) {
            return Ok(());
        }
        let other = match owner.filter(|_| !own) {
            Some(owner) => self.live(&owner).await?,
            None => None,
        };
        if let Some(other) = other {
            // One that does not have it loses it when it is looked at.
            if cluster_ips(&other).contains(&address) {
                self.tell(service, key, address, Wrong::Twice);
            }
            return Ok(());
        }
        if !own {
            self.tell(service, key, address, Wrong::Reference);
        }
        // It is given back, and taken anew when this is tried again.
        let options =
            DeleteOptions { precondition_uid: Some(held.meta().uid.clone()), ..DeleteOptions::default() };
        ignore_gone(self.ctx.client.delete(self.addresses.resource(), &held.key(), options).await)?;
        Err(format!("address {address} of Service {key} was not taken for it").into())
    }

    fn tell(&self, service: &Object, key: &Key, address: IpAddr, wrong: Wrong) {
        let (reason, message) = wrong.told(key, address);
        self.events.event(Involved::object(&kinds::SERVICES, service), EventType::Warning, reason, message);
    }

    /// Takes an address away that the allocator took for a Service which does not have it.
    async fn look_for_leak(&self, name: &str) -> Result<Action, BoxError> {
        let key = Key::new("", name);
        let Some(held) = self.addresses.get(&key) else { return Ok(Action::Done) };
        let managed = held.meta().labels.get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR);
        let Ok(address) = name.parse::<IpAddr>() else { return Ok(Action::Done) };
        if !managed {
            return Ok(Action::Done);
        }
        let Some(owner) = parent(&held) else {
            let message = format!(
                "IPAddress {name} appears to have been modified, not referencing a Service: cleaning up"
            );
            return self.take_back(&held, "IPAddressNotAllocated", message).await;
        };
        let has_it = |service: &Arc<Object>| cluster_ips(service).contains(&address);
        if self.services.get(&owner).as_ref().is_some_and(has_it) {
            return Ok(Action::Done);
        }
        let age = held.meta().creation_timestamp.map(|made| self.ctx.clock.now().duration_since(made));
        let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
        if age < LEAK_GRACE {
            return Ok(Action::After(LEAK_GRACE - age));
        }
        let (reason, what) = match self.live(&owner).await? {
            Some(service) if has_it(&service) => return Ok(Action::Done),
            Some(_) => ("IPAddressWrongReference", "has a wrong reference; cleaning up"),
            None => ("IPAddressNotAllocated", "appears to have leaked: cleaning up"),
        };
        self.take_back(&held, reason, format!("IPAddress: {name} for Service {owner} {what}")).await
    }

    async fn take_back(&self, held: &Object, reason: &str, message: String) -> Result<Action, BoxError> {
        let involved = Involved::object(&kinds::IP_ADDRESSES, held);
        self.events.event(involved, EventType::Warning, reason, message);
        let options =
            DeleteOptions { precondition_uid: Some(held.meta().uid.clone()), ..DeleteOptions::default() };
        ignore_gone(self.ctx.client.delete(self.addresses.resource(), &held.key(), options).await)?;
        Ok(Action::Done)
    }
}

/// The object that says that an address is taken for a Service, as the allocator makes it.
fn taken(service: &Key, address: IpAddr) -> serde_json::Value {
    json!({
        "apiVersion": kinds::IP_ADDRESSES.api_version(), "kind": kinds::IP_ADDRESSES.kind,
        "metadata": { "name": address.to_string(), "labels": { FAMILY: family(address), MANAGED_BY: ALLOCATOR } },
        "spec": { "parentRef": {
            "group": "", "resource": "services", "namespace": service.namespace, "name": service.name,
        } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_in_upstreams_words() {
        let (service, address) = (Key::new("ns", "web"), "10.96.0.5".parse().unwrap());
        for (wrong, reason, message) in [
            (
                Wrong::Free,
                "ClusterIPNotAllocated",
                "Cluster IP [IPv4]: 10.96.0.5 is not allocated; repairing",
            ),
            (
                Wrong::Reference,
                "ClusterIPNotAllocated",
                "the ClusterIP [IPv4]: 10.96.0.5 for Service ns/web has a wrong reference; repairing",
            ),
            (
                Wrong::Twice,
                "ClusterIPAlreadyAllocated",
                "Cluster IP [IPv4]:10.96.0.5 was assigned to multiple services; please recreate service",
            ),
        ] {
            assert_eq!(wrong.told(&service, address), (reason, message.to_owned()));
        }
        let (reason, message) = Wrong::OutOfRange.told(&service, "fd00::1".parse().unwrap());
        assert_eq!(reason, "ClusterIPOutOfRange");
        assert!(message.starts_with("Cluster IP [IPv6]: fd00::1 is not within any configured"), "{message}");
    }

    #[test]
    fn ranges_cover_and_labels_tell() {
        let range =
            json!({ "metadata": { "name": "r" }, "spec": { "cidrs": ["10.96.0.0/24", "fd00::/64"] } });
        let range = Object::parse(range.to_string().into()).unwrap();
        let covered = |address: &str| covers(&range, address.parse().unwrap());
        assert!(covered("10.96.0.5") && covered("fd00::1") && !covered("10.97.0.5"));
        let address: IpAddr = "10.96.0.5".parse().unwrap();
        let made = Object::parse(taken(&Key::new("ns", "web"), address).to_string().into()).unwrap();
        assert!(is_labelled(&made, address) && !is_labelled(&range, address));
    }
}
