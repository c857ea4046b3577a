//! Who serves a Service: EndpointSlices, and Endpoints for older clients.
//! Source: `k8s.io/endpointslice`, `k8s.io/kubernetes/pkg/controller/endpoint`.

mod hints;
mod legacy;
mod mirror;
mod plan;
mod slices;
mod topology;
mod trigger;
mod types;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object};
use reconcile::{Change, Informer, Queue, Registration, kinds};

use crate::context::{Ctx, decode};
use crate::pods::Pod;
use crate::selecting::{Selecting, Selectors};
use crate::selector::is_subset;

pub use legacy::EndpointsController;
pub use mirror::EndpointSliceMirroring;
pub use slices::EndpointSlices;
use types::Service;

/// How many Services are worked on at once. Source: `--concurrent-service-endpoint-syncs`.
const WORKERS: usize = 5;

/// Services, the pods that they select, and a queue of those that need work.
struct Watched {
    services: Informer,
    pods: Informer,
    queue: Queue<Key>,
    /// `spec.selector` of the Services that have one.
    selectors: Selectors<BTreeMap<String, String>>,
}

impl Watched {
    fn new(ctx: &Ctx, queue: Queue<Key>) -> Self {
        Self {
            services: ctx.informers.get(kinds::SERVICES),
            pods: ctx.informers.get(kinds::PODS),
            queue,
            selectors: Selectors::default(),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let weak = Arc::downgrade(self);
        let services = self.services.on_change(move |change| {
            if let Some(watched) = weak.upgrade() {
                watched.service_changed(change);
            }
        });
        let weak = Arc::downgrade(self);
        let pods = self.pods.on_change(move |change| {
            if let Some(watched) = weak.upgrade() {
                watched.pod_changed(change);
            }
        });
        [services, pods]
    }

    fn service_changed(&self, change: &Change) {
        let selector = change
            .new
            .as_ref()
            .and_then(|service| decode::<Service>(service).ok())
            .map(|service| service.spec.selector)
            .filter(|selector| !selector.is_empty());
        self.selectors.set(&change.key, selector);
        self.queue.add(change.key.clone());
    }

    fn pod_changed(&self, change: &Change) {
        let versions: Vec<_> = [&change.old, &change.new].into_iter().flatten().map(|pod| &**pod).collect();
        let services = self.selecting(&change.key.namespace, &versions);
        // Most changes of a pod are none to those who ask for it.
        if services.is_empty() || matches!(versions[..], [old, new] if serves_alike(old, new)) {
            return;
        }
        self.look_at(services);
    }

    /// The Services of the pods of a node, which tells something else of them now.
    fn node_changed(&self, node: &str) {
        for pod in self.pods.on_node(node) {
            let services = self.selecting(&pod.meta().namespace, &[&*pod]);
            self.look_at(services);
        }
    }

    fn look_at(&self, services: Vec<Selecting>) {
        services.into_iter().for_each(|service| service.add_to(&self.queue, |key| key));
    }

    /// The Services that select a pod in one of these versions.
    fn selecting(&self, namespace: &str, versions: &[&Object]) -> Vec<Selecting> {
        let selects = |selector: &BTreeMap<String, String>| {
            versions.iter().any(|pod| is_subset(selector, &pod.meta().labels))
        };
        self.selectors.of(namespace, selects)
    }

    /// The pods that a Service selects, decoded.
    fn selected(&self, key: &Key, service: &Service) -> Vec<Pod> {
        let pods = self.pods.labelled(&key.namespace, |labels| is_subset(&service.spec.selector, labels));
        self.selectors.counted(key, pods.len());
        pods.iter().filter_map(|pod| decode::<Pod>(pod).ok()).collect()
    }
}

/// Whether two versions of a pod are the same to every Service: nothing differs of which an endpoint is made. What its
/// containers are called and listen on never changes. Source: `podEndpointsChanged`.
fn serves_alike(old: &Object, new: &Object) -> bool {
    let same_labels = old.meta().uid == new.meta().uid && old.meta().labels == new.meta().labels;
    let (Ok(old), Ok(new)) = (decode::<Pod>(old), decode::<Pod>(new)) else { return false };
    let addresses = |pod: &Pod| pod.status.pod_ips.iter().map(|held| held.ip.clone()).collect::<Vec<_>>();
    same_labels
        && old.metadata.is_terminating() == new.metadata.is_terminating()
        && old.is_finished() == new.is_finished()
        && old.is_ready() == new.is_ready()
        && old.readiness_changed() == new.readiness_changed()
        && old.spec.node_name == new.spec.node_name
        && (&old.spec.hostname, &old.spec.subdomain) == (&new.spec.hostname, &new.spec.subdomain)
        && old.status.pod_ip == new.status.pod_ip
        && addresses(&old) == addresses(&new)
}
