//! Addresses for Services of the type LoadBalancer, from the cluster's small range. One instance per cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, ObjectMeta, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::backoff::Policy;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context, OnFailure};
use client::Client;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use reconcile::kinds::SERVICES;
use reconcile::{
    Action, EventRecorder, EventType, Informer, Informers, Involved, Queue, Reconcile, run_workers,
};
use serde_json::{Value, json};

use crate::objects::Service;

/// Keeps a Service until its balancer is gone. Source: `k8s.io/cloud-provider/service/helpers`,
/// `LoadBalancerCleanupFinalizer`.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The source of events. Source: `k8s.io/cloud-provider/controllers/service`.
const EVENTS: &str = "service-controller";
/// How soon a Service that got no address tries again; one that is given back wakes it earlier.
/// Source: `minRetryDelay`, `maxRetryDelay`.
const RETRY: Policy = Policy { first: Duration::from_secs(5), max: Duration::from_secs(300) };
/// How long the cache may take to show what was written.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What has to happen to a Service's balancer status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Keep,
    /// It is to have this address, and to stay until that is given back.
    Ensure(Ipv4Addr),
    /// It wants an address and none is free.
    Full,
    /// It is no balancer of ours any more.
    Release,
}

/// Decides for one Service; `used` are the addresses of all others.
pub fn plan(meta: &ObjectMeta, service: &Service, range: Ipv4Net, used: &BTreeSet<Ipv4Addr>) -> Plan {
    let spec = &service.spec;
    let held = held(service, range);
    let of_kind = spec.kind.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none();
    let protected = is_protected(meta, service);
    match (of_kind && !meta.is_terminating(), held) {
        (false, None) if !protected => Plan::Keep,
        (false, _) => Plan::Release,
        (true, Some(address)) if !used.contains(&address) => {
            if protected {
                Plan::Keep
            } else {
                Plan::Ensure(address)
            }
        }
        (true, _) => {
            let free = |address: &Ipv4Addr| range.contains(address) && !used.contains(address);
            let asked = spec.load_balancer_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(free);
            match asked.or_else(|| range.hosts().find(free)) {
                Some(address) => Plan::Ensure(address),
                None => Plan::Full,
            }
        }
    }
}

/// Whether a Service has our finalizer: that of one with a class is somebody else's.
fn is_protected(meta: &ObjectMeta, service: &Service) -> bool {
    service.spec.load_balancer_class.is_none() && meta.finalizers.iter().any(|held| held == FINALIZER)
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
    clock: SharedClock,
    range: Ipv4Net,
    queue: Queue<Key>,
    events: EventRecorder,
    /// What was written and may not be in the cache yet.
    assigned: Mutex<HashMap<Key, Ipv4Addr>>,
    /// Who found no address.
    waiting: Mutex<BTreeSet<Key>>,
}

impl Balancers {
    /// Gives addresses of `range` out. Made within a tokio runtime.
    pub fn new(informers: &Informers, client: Client, range: Ipv4Net, clock: SharedClock) -> Self {
        let inner = Inner {
            services: informers.get(SERVICES),
            client: client.for_manager("skiff-load-balancer"),
            range,
            queue: Queue::with_backoff(clock.clone(), RETRY),
            events: EventRecorder::new(client, clock.clone(), EVENTS, ""),
            clock,
            assigned: Mutex::default(),
            waiting: Mutex::default(),
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

impl Inner {
    fn tell(&self, object: &Object, kind: EventType, reason: &str, message: &str) {
        self.events.event(Involved::object(&SERVICES, object), kind, reason, message);
    }

    /// An address is free: whoever waits for one comes again.
    fn wake(&self) {
        std::mem::take(&mut *self.waiting.lock()).into_iter().for_each(|key| self.queue.add(key));
    }

    async fn ensure(&self, key: &Key, object: &Object, address: Ipv4Addr) -> Result<(), BoxError> {
        let service: Service = object.decode()?;
        self.assigned.lock().insert(key.clone(), address);
        self.tell(object, EventType::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
        if !is_protected(object.meta(), &service) {
            self.set_finalizer(key, object, "finalizers").await?;
        }
        if held(&service, self.range) != Some(address) {
            self.show(key, object, json!([{"ip": address, "ipMode": "VIP"}])).await?;
        }
        self.tell(object, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        Ok(())
    }

    async fn release(&self, key: &Key, object: &Object) -> Result<(), BoxError> {
        let service: Service = object.decode()?;
        if held(&service, self.range).is_some() {
            self.tell(object, EventType::Normal, "DeletingLoadBalancer", "Deleting load balancer");
            self.show(key, object, json!([])).await?;
        }
        self.assigned.lock().remove(key);
        self.wake();
        if is_protected(object.meta(), &service) {
            self.set_finalizer(key, object, "$deleteFromPrimitiveList/finalizers").await?;
        }
        self.tell(object, EventType::Normal, "DeletedLoadBalancer", "Deleted load balancer");
        Ok(())
    }

    /// Writes the addresses that clients may come to.
    async fn show(&self, key: &Key, object: &Object, ingress: Value) -> Result<(), BoxError> {
        let status = json!({
            "metadata": {"uid": object.meta().uid},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        self.patch(key, "status", PatchType::Merge, &status).await
    }

    /// Adds the finalizer to a list of a strategic merge patch.
    async fn set_finalizer(&self, key: &Key, object: &Object, list: &str) -> Result<(), BoxError> {
        let patch = json!({"metadata": {"uid": object.meta().uid, list: [FINALIZER]}});
        self.patch(key, "", PatchType::StrategicMerge, &patch).await
    }

    /// Writes, and waits until the cache shows it: what is decided next is decided on that.
    async fn patch(
        &self,
        key: &Key,
        subresource: &str,
        kind: PatchType,
        patch: &Value,
    ) -> Result<(), BoxError> {
        let written = match self.client.patch(&SERVICES.gvr(), key, subresource, kind, patch).await {
            Ok(written) => written,
            Err(status) if status.reason == Reason::NotFound => return Ok(()),
            Err(status) => return Err(status.into()),
        };
        tokio::select! {
            () = self.services.caught_up(written.revision()) => {}
            () = self.clock.sleep_until(self.clock.now() + CATCH_UP) => {}
        }
        Ok(())
    }
}

#[async_trait]
impl Reconcile<Key> for Inner {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.waiting.lock().remove(key);
        let Some(object) = self.services.get(key) else {
            self.assigned.lock().remove(key);
            self.wake();
            return Ok(Action::Done);
        };
        let service: Service = object.decode()?;
        match plan(object.meta(), &service, self.range, &self.used(key)) {
            Plan::Keep => drop(self.assigned.lock().remove(key)),
            Plan::Ensure(address) => self.ensure(key, &object, address).await?,
            Plan::Release => self.release(key, &object).await?,
            Plan::Full => {
                self.waiting.lock().insert(key.clone());
                let why = format!("all addresses of {} are in use: remove a Service", self.range);
                let message = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
                self.tell(&object, EventType::Warning, "SyncLoadBalancerFailed", &message);
                return Err(message.into());
            }
        }
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

    fn meta(finalizers: &[&str], gone: Option<&str>) -> ObjectMeta {
        serde_json::from_value(json!({"name": "s", "finalizers": finalizers, "deletionTimestamp": gone}))
            .unwrap()
    }

    #[test]
    fn addresses_are_given_kept_and_taken_back() {
        let range: Ipv4Net = "10.44.0.0/30".parse().unwrap();
        let (one, two) = (Ipv4Addr::new(10, 44, 0, 1), Ipv4Addr::new(10, 44, 0, 2));
        let none = BTreeSet::new();
        let decide = |kind: &str, ip: Option<&str>, used: &BTreeSet<Ipv4Addr>| {
            plan(&meta(&[FINALIZER], None), &service(kind, ip), range, used)
        };
        assert_eq!(decide("LoadBalancer", None, &none), Plan::Ensure(one));
        assert_eq!(decide("LoadBalancer", None, &BTreeSet::from([one])), Plan::Ensure(two));
        assert_eq!(decide("LoadBalancer", None, &BTreeSet::from([one, two])), Plan::Full);
        assert_eq!(decide("LoadBalancer", Some("10.44.0.2"), &none), Plan::Keep);
        assert_eq!(decide("ClusterIP", Some("10.44.0.2"), &none), Plan::Release);
        assert_eq!(decide("ClusterIP", None, &none), Plan::Release);
    }

    #[test]
    fn a_service_stays_until_its_address_is_given_back() {
        let range: Ipv4Net = "10.44.0.0/30".parse().unwrap();
        let (one, none) = (Ipv4Addr::new(10, 44, 0, 1), BTreeSet::new());
        let with = service("LoadBalancer", Some("10.44.0.1"));
        let (free, held) = (meta(&[], None), meta(&[FINALIZER], None));
        assert_eq!(plan(&free, &with, range, &none), Plan::Ensure(one));
        assert_eq!(plan(&held, &with, range, &none), Plan::Keep);
        let gone = Some("2026-01-01T00:00:00Z");
        assert_eq!(plan(&meta(&[FINALIZER], gone), &with, range, &none), Plan::Release);
        let without = service("LoadBalancer", None);
        assert_eq!(plan(&meta(&[FINALIZER], gone), &without, range, &none), Plan::Release);
        assert_eq!(plan(&meta(&["other"], gone), &without, range, &none), Plan::Keep);
        // Of other kinds and other balancers nothing is ours.
        for ip in [Some("192.0.2.1"), None] {
            assert_eq!(plan(&free, &service("ClusterIP", ip), range, &none), Plan::Keep);
        }
        let mut classed = without;
        classed.spec.load_balancer_class = Some("example.com/other".into());
        assert_eq!(plan(&meta(&[FINALIZER], gone), &classed, range, &none), Plan::Keep);
    }
}
