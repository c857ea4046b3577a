//! From changes of claims, volumes, classes and what drivers say to the scheduler's view of them, and to its queue.

use std::sync::Arc;

use api::Object;
use base::BoxError;
use reconcile::{Change, Informer, Informers, Registration, kinds};

use super::types::{Capacity, Claim, Class, CsiNode, Driver, Volume, attachment};
use crate::Shared;
use crate::framework::Event;

/// The informers that are read.
pub(crate) struct Sources {
    claims: Informer,
    volumes: Informer,
    classes: Informer,
    csi_nodes: Informer,
    drivers: Informer,
    capacities: Informer,
    attachments: Informer,
}

impl Sources {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            volumes: informers.get(kinds::PERSISTENT_VOLUMES),
            classes: informers.get(kinds::STORAGE_CLASSES),
            csi_nodes: informers.get(kinds::CSI_NODES),
            drivers: informers.get(kinds::CSI_DRIVERS),
            capacities: informers.get(kinds::CSI_STORAGE_CAPACITIES),
            attachments: informers.get(kinds::VOLUME_ATTACHMENTS),
        }
    }

    /// Returns once everything that the server had has been told.
    pub(crate) async fn synced(&self) {
        let Self { claims, volumes, classes, csi_nodes, drivers, capacities, attachments } = self;
        for informer in [claims, volumes, classes, csi_nodes, drivers, capacities, attachments] {
            informer.synced().await;
        }
    }

    /// Registers the handlers.
    pub(crate) fn listen(&self, shared: &Arc<Shared>) -> Vec<Registration> {
        let on = |informer: &Informer, handler: fn(&Shared, &Change)| shared.on(informer, handler);
        vec![
            on(&self.classes, Shared::class_changed),
            on(&self.drivers, Shared::driver_changed),
            on(&self.csi_nodes, Shared::csi_node_changed),
            on(&self.capacities, Shared::capacity_changed),
            on(&self.attachments, Shared::attachment_changed),
            on(&self.volumes, Shared::volume_changed),
            on(&self.claims, Shared::claim_changed),
        ]
    }
}

/// What a change makes of an object; one that cannot be read is none.
fn read<T>(change: &Change, decode: fn(&Object) -> Result<T, BoxError>) -> Option<Arc<T>> {
    match decode(change.new.as_ref()?) {
        Ok(read) => Some(Arc::new(read)),
        Err(error) => {
            tracing::warn!(%error, "left out");
            None
        }
    }
}

impl Shared {
    fn claim_changed(&self, change: &Change) {
        let claim = read(change, Claim::decode);
        let state = &mut *self.state.lock();
        let before = state.cluster.storage.put_claim(&change.key, claim.clone());
        if let Some(claim) = claim.filter(|claim| before.as_ref().is_none_or(|before| !before.same(claim))) {
            self.raise(state, &Event::Claim(before, claim));
        }
    }

    fn volume_changed(&self, change: &Change) {
        let volume = read(change, Volume::decode);
        let state = &mut *self.state.lock();
        let before = state.cluster.storage.put_volume(&change.key.name, volume.clone());
        if let Some(volume) = volume.filter(|volume| before.as_ref().is_none_or(|held| !held.same(volume))) {
            self.raise(state, &Event::Volume(before, volume));
        }
    }

    fn class_changed(&self, change: &Change) {
        let class = read(change, Class::decode);
        let state = &mut *self.state.lock();
        let before = state.cluster.storage.put_class(&change.key.name, class.clone());
        if let Some(class) = class.filter(|class| before.as_ref() != Some(class)) {
            self.raise(state, &Event::Class(before, class));
        }
    }

    fn csi_node_changed(&self, change: &Change) {
        let node = read(change, CsiNode::decode);
        let state = &mut *self.state.lock();
        let before = state.cluster.storage.put_csi_node(&change.key.name, node.clone());
        if let Some(node) = node.filter(|node| before.as_ref() != Some(node)) {
            self.raise(state, &Event::CsiNode(before, node));
        }
    }

    fn driver_changed(&self, change: &Change) {
        let driver = change.new.as_ref().map(|driver| Driver::decode(driver));
        let state = &mut *self.state.lock();
        let before = state.cluster.storage.put_driver(&change.key.name, driver);
        let (before, now) = (before.unwrap_or_default(), driver.unwrap_or_default());
        // Nobody asks any more whether there is room, or whether it is there.
        if (before.tells_capacity && !now.tells_capacity) || (before.needed && !now.needed) {
            self.raise(state, &Event::DriverEased);
        }
    }

    fn attachment_changed(&self, change: &Change) {
        let read = |object: &Option<Arc<Object>>| object.as_ref().and_then(|object| attachment(object));
        let (old, new) = (read(&change.old), read(&change.new));
        let state = &mut *self.state.lock();
        if let Some((node, _)) = &old {
            state.cluster.storage.detach(&change.key.name, node);
        }
        match new {
            Some((node, volume)) => state.cluster.storage.attach(&change.key.name, &node, &volume),
            None => self.raise(state, &Event::AttachmentGone),
        }
    }

    fn capacity_changed(&self, change: &Change) {
        let capacity = read(change, Capacity::decode);
        let state = &mut *self.state.lock();
        let Some(capacity) = capacity else {
            if let Some(old) = change.old.as_ref().and_then(|old| Capacity::decode(old).ok()) {
                state.cluster.storage.remove_capacity(&change.key, &old.class);
            }
            return;
        };
        let before = state.cluster.storage.put_capacity(&change.key, capacity.clone());
        if before.as_ref() != Some(&capacity) {
            self.raise(state, &Event::Capacity(before, capacity));
        }
    }
}
