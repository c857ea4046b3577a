//! Every resource of a sort that the server serves, each with its shared informer: the set follows what is served.

use std::collections::HashMap;
use std::sync::Arc;

use api::GroupVersionResource;
use base::lifecycle::Context;
use parking_lot::{RwLock, RwLockReadGuard};
use reconcile::kinds::Served;
use reconcile::{Change, Informer, Informers, Registration};
use tokio::sync::watch;

/// One resource.
pub(crate) struct One {
    /// Its row.
    pub(crate) served: Served,
    /// Its cache.
    pub(crate) informer: Informer,
    _registration: Registration,
}

/// The resources that are followed now.
#[derive(Default)]
pub(crate) struct Followed(RwLock<HashMap<GroupVersionResource, One>>);

impl Followed {
    /// The resources.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, HashMap<GroupVersionResource, One>> {
        self.0.read()
    }

    /// Follows exactly these from now on, and tells `changed` of each change; whether there are new ones among them.
    pub(crate) fn set<'a>(
        &self,
        informers: &Informers,
        wanted: impl Iterator<Item = &'a Served>,
        changed: impl Fn(&GroupVersionResource, &Change) + Clone + Send + Sync + 'static,
    ) -> bool {
        let wanted: HashMap<&GroupVersionResource, &Served> =
            wanted.map(|row| (&row.resource, row)).collect();
        self.0.write().retain(|resource, _| wanted.contains_key(resource));
        let mut more = false;
        for row in wanted.into_values() {
            if self.0.read().contains_key(&row.resource) {
                continue;
            }
            let informer = informers.get(row.resource.clone());
            let (changed, resource) = (changed.clone(), row.resource.clone());
            // What is there already is told at once, and may ask what is followed: nothing is locked here.
            let registration = informer.on_change(move |change| changed(&resource, change));
            let one = One { served: row.clone(), informer, _registration: registration };
            self.0.write().insert(row.resource.clone(), one);
            more = true;
        }
        more
    }
}

/// Tells what is served whenever that changes, until the component drains.
pub(crate) fn on_served(
    ctx: &Context,
    mut catalog: watch::Receiver<Arc<[Served]>>,
    tell: impl Fn(&[Served]) + Send + Sync + 'static,
) {
    let draining = ctx.clone();
    ctx.spawn(async move {
        while catalog.changed().await.is_ok() && !draining.cancel().is_cancelled() {
            let served = catalog.borrow_and_update().clone();
            tell(&served);
        }
    });
}
