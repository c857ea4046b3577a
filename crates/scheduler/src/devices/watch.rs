//! From changes of claims, slices, classes and rules to the scheduler's view of them, and to its queue.

use std::sync::Arc;

use api::{Key, Object};
use base::BoxError;
use reconcile::{Change, Informer, Informers, Registration, kinds};

use super::types::{Claim, Class, Slice, TaintRule};
use crate::framework::Event;
use crate::types::Pod;
use crate::{Shared, State};

/// The informers that are read.
pub(crate) struct Sources {
    claims: Informer,
    slices: Informer,
    classes: Informer,
    rules: Informer,
}

impl Sources {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.get(kinds::RESOURCE_CLAIMS),
            slices: informers.get(kinds::RESOURCE_SLICES),
            classes: informers.get(kinds::DEVICE_CLASSES),
            rules: informers.get(kinds::DEVICE_TAINT_RULES),
        }
    }

    /// Returns once everything that the server had has been told.
    pub(crate) async fn synced(&self) {
        for informer in [&self.claims, &self.slices, &self.classes, &self.rules] {
            informer.synced().await;
        }
    }

    /// Registers the handlers.
    pub(crate) fn listen(&self, shared: &Arc<Shared>) -> Vec<Registration> {
        let on = |informer: &Informer, handler: fn(&Shared, &Change)| shared.on(informer, handler);
        vec![
            on(&self.rules, Shared::taint_rule_changed),
            on(&self.classes, Shared::device_class_changed),
            on(&self.slices, Shared::slice_changed),
            on(&self.claims, Shared::device_claim_changed),
        ]
    }
}

/// What a change makes of an object; one that cannot be read is none.
fn read<T>(change: &Change, decode: fn(&Object) -> Result<T, BoxError>) -> Option<T> {
    match decode(change.new.as_ref()?) {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!(%error, "left out");
            None
        }
    }
}

impl Shared {
    fn device_claim_changed(&self, change: &Change) {
        let claim = read(change, Claim::decode).map(Arc::new);
        let state = &mut *self.state.lock();
        let before = state.cluster.devices.put_claim(&change.key, claim.clone());
        let says_the_same = |before: &Arc<Claim>, claim: &Claim| {
            before.says_the_same(claim) && before.terminating == claim.terminating
        };
        // A finalizer that came or went lets nobody in.
        let news = |claim: &Arc<Claim>| before.as_ref().is_none_or(|before| !says_the_same(before, claim));
        match (claim, before.as_ref()) {
            (Some(claim), _) => {
                if news(&claim) {
                    self.raise(state, &Event::ResourceClaim(before, claim));
                    self.let_go(state, &change.key);
                }
            }
            (None, Some(gone)) => self.raise(state, &Event::ResourceClaimGone(gone.clone())),
            (None, None) => {}
        }
    }

    /// Pods that a claim held back are tried if nothing else does.
    fn let_go(&self, state: &mut State, claim: &Key) {
        let waiting: Vec<Arc<Pod>> = state.queue.held_back(claim).cloned().collect();
        for pod in waiting {
            let Some(profile) = self.profile(&pod) else { continue };
            if profile.gate(&pod, &state.cluster).is_none() {
                state.queue.put(pod, false, self.clock.now(), |_, _| false);
            }
        }
    }

    fn slice_changed(&self, change: &Change) {
        let slice = read(change, Slice::decode).map(Arc::new);
        let state = &mut *self.state.lock();
        let there = slice.is_some();
        let before = state.cluster.devices.put_slice(&change.key.name, slice);
        if there {
            self.raise(state, &Event::ResourceSlice(before.is_some()));
        }
    }

    fn device_class_changed(&self, change: &Change) {
        let class = read(change, Class::decode).map(Arc::new);
        let state = &mut *self.state.lock();
        let before = state.cluster.devices.put_class(&change.key.name, class.clone());
        if let Some(class) = class.filter(|class| before.as_ref() != Some(class)) {
            self.raise(state, &Event::DeviceClass(before, class));
        }
    }

    /// What a rule says is part of what drivers offer. Source: `resourceslice/tracker`.
    fn taint_rule_changed(&self, change: &Change) {
        let rule = read(change, TaintRule::decode);
        let state = &mut *self.state.lock();
        let before = state.cluster.devices.put_rule(&change.key.name, rule.clone());
        if before != rule {
            self.raise(state, &Event::ResourceSlice(true));
        }
    }
}
