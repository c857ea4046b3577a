//! Addresses for Services of the type LoadBalancer, from the cluster's small range. One instance per cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use api::{Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use client::Client;
use ipnet::Ipv4Net;
use reconcile::kinds::SERVICES;
use reconcile::{Action, Informer, Informers, Queue, Reconcile, run_workers};
use serde_json::json;

use crate::objects::Service;

/// What has to happen to a Service's balancer status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Keep,
    /// It gets this address.
    Assign(Ipv4Addr),
    /// It wants an address and none is free.
    Full,
    /// It is no balancer of ours any more.
    Clear,
}

/// Decides for one Service; `used` are the addresses of all others.
pub fn plan(service: &Service, range: Ipv4Net, used: &BTreeSet<Ipv4Addr>) -> Plan {
    let spec = &service.spec;
    let held = held(service, range);
    let ours = spec.kind.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none();
    match (ours, held) {
        (false, None) => Plan::Keep,
        (false, Some(_)) => Plan::Clear,
        (true, Some(address)) if !used.contains(&address) => Plan::Keep,
        (true, _) => {
            let free = |address: &Ipv4Addr| range.contains(address) && !used.contains(address);
            let asked = spec.load_balancer_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(free);
            match asked.or_else(|| range.hosts().find(free)) {
                Some(address) => Plan::Assign(address),
                None => Plan::Full,
            }
        }
    }
}

/// The address of the range that a Service's status shows.
fn held(service: &Service, range: Ipv4Net) -> Option<Ipv4Addr> {
    let addresses = service.status.load_balancer.ingress.iter().filter_map(|ingress| ingress.ip.as_deref());
    addresses.filter_map(|ip| ip.parse().ok()).find(|address| range.contains(address))
}

/// The component.
pub struct Balancers {
    inner: Arc<Inner>,
}

struct Inner {
    services: Informer,
    client: Client,
    range: Ipv4Net,
    queue: Queue<Key>,
    /// What was written and may not be in the cache yet.
    assigned: parking_lot::Mutex<HashMap<Key, Ipv4Addr>>,
}

impl Balancers {
    /// Gives addresses of `range` out.
    pub fn new(
        informers: &Informers,
        client: Client,
        range: Ipv4Net,
        clock: base::clock::SharedClock,
    ) -> Self {
        let inner = Inner {
            services: informers.get(SERVICES),
            client: client.for_manager("skiff-load-balancer"),
            range,
            queue: Queue::new(clock),
            assigned: parking_lot::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    /// The addresses that other Services have.
    fn used(&self, except: &Key) -> BTreeSet<Ipv4Addr> {
        let mut by_key: BTreeMap<Key, Ipv4Addr> = BTreeMap::new();
        for object in self.services.list() {
            let service: Service = object.decode().unwrap_or_default();
            by_key.extend(held(&service, self.range).map(|address| (object.key(), address)));
        }
        let mut assigned = self.assigned.lock();
        assigned.retain(|key, _| self.services.get(key).is_some());
        by_key.extend(assigned.iter().map(|(key, address)| (key.clone(), *address)));
        by_key.into_iter().filter(|(key, _)| key != except).map(|(_, address)| address).collect()
    }
}

#[async_trait]
impl Reconcile<Key> for Inner {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.services.get(key) else {
            // Its address is free: whoever waits for one comes again.
            self.assigned.lock().remove(key);
            return Ok(Action::Done);
        };
        let service: Service = object.decode()?;
        let ingress = match plan(&service, self.range, &self.used(key)) {
            Plan::Keep => {
                self.assigned.lock().remove(key);
                return Ok(Action::Done);
            }
            Plan::Full => {
                return Err(format!(
                    "all load balancer addresses of {} are in use: remove a Service",
                    self.range
                )
                .into());
            }
            Plan::Clear => {
                self.assigned.lock().remove(key);
                json!([])
            }
            Plan::Assign(address) => {
                self.assigned.lock().insert(key.clone(), address);
                json!([{"ip": address, "ipMode": "VIP"}])
            }
        };
        let status = json!({
            "metadata": {"uid": object.meta().uid},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        self.client.patch(&SERVICES.gvr(), key, "status", PatchType::Merge, &status).await?;
        Ok(Action::Done)
    }
}

#[async_trait]
impl Component for Balancers {
    fn name(&self) -> &'static str {
        "load-balancer-addresses"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = self.inner.services.synced() => {}
        }
        let queue = self.inner.queue.clone();
        let _registration = self.inner.services.on_change(move |change| queue.add(change.key.clone()));
        ctx.ready();
        // One worker: two at once could give the same address out.
        run_workers(&ctx, self.name(), &self.inner.queue, 1, self.inner.clone()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(kind: &str, ip: Option<&str>) -> Service {
        let ingress = ip.map(|ip| vec![json!({"ip": ip})]).unwrap_or_default();
        serde_json::from_value(
            json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": ingress}}}),
        )
        .unwrap()
    }

    #[test]
    fn addresses_are_given_kept_and_taken_back() {
        let range: Ipv4Net = "10.44.0.0/30".parse().unwrap();
        let (one, two) = (Ipv4Addr::new(10, 44, 0, 1), Ipv4Addr::new(10, 44, 0, 2));
        let none = BTreeSet::new();
        assert_eq!(plan(&service("LoadBalancer", None), range, &none), Plan::Assign(one));
        assert_eq!(plan(&service("LoadBalancer", None), range, &BTreeSet::from([one])), Plan::Assign(two));
        assert_eq!(plan(&service("LoadBalancer", None), range, &BTreeSet::from([one, two])), Plan::Full);
        assert_eq!(plan(&service("LoadBalancer", Some("10.44.0.2")), range, &none), Plan::Keep);
        assert_eq!(plan(&service("ClusterIP", Some("10.44.0.2")), range, &none), Plan::Clear);
        assert_eq!(plan(&service("ClusterIP", Some("192.0.2.1")), range, &none), Plan::Keep);
        assert_eq!(plan(&service("ClusterIP", None), range, &none), Plan::Keep);
    }
}
