//! Keeps the zone in step with Namespaces, Services and EndpointSlices.

use std::sync::Arc;

use parking_lot::RwLock;
use reconcile::{Informers, Registration, kinds};

use super::zone::Zone;

/// The label that names an EndpointSlice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Feeds the zone for as long as the returned registrations are held; each change costs its own object only.
pub(super) async fn follow(informers: &Informers, zone: &Arc<RwLock<Zone>>) -> [Registration; 3] {
    let namespaces = informers.get(kinds::NAMESPACES);
    let services = informers.get(kinds::SERVICES);
    let slices = informers.get(kinds::ENDPOINT_SLICES);
    namespaces.synced().await;
    services.synced().await;
    slices.synced().await;
    let target = zone.clone();
    let of_namespaces = namespaces
        .on_change(move |change| target.write().set_namespace(&change.key.name, change.new.is_some()));
    let target = zone.clone();
    let of_services =
        services.on_change(move |change| target.write().set_service(&change.key, change.new.as_deref()));
    let target = zone.clone();
    let of_slices = slices.on_change(move |change| {
        // The label decides whose slice it is; a slice that changed its Service leaves the old one first.
        let service = |object: &api::Object| object.meta().labels.get(SERVICE_NAME).cloned();
        let old = change.old.as_deref().and_then(service);
        let new = change.new.as_deref().and_then(service);
        let mut zone = target.write();
        if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
            zone.set_slice(&change.key, &old, None);
        }
        if let Some(new) = new {
            zone.set_slice(&change.key, &new, change.new.as_deref());
        }
    });
    [of_namespaces, of_services, of_slices]
}
