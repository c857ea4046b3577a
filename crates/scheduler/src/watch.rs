//! From changes of pods and nodes to the scheduler's cache and queue.

use std::sync::Arc;

use api::Object;
use reconcile::{Change, Registration};

use crate::framework::Event;
use crate::types::{Node, Pod};
use crate::{Shared, State};

/// Registers the handlers; nodes first, so that a first pod meets them.
pub(crate) fn listen(shared: &Arc<Shared>) -> [Registration; 2] {
    let weak = Arc::downgrade(shared);
    let nodes = shared.nodes.on_change(move |change| {
        if let Some(shared) = weak.upgrade() {
            shared.node_changed(change);
        }
    });
    let weak = Arc::downgrade(shared);
    let pods = shared.pods.on_change(move |change| {
        if let Some(shared) = weak.upgrade() {
            shared.pod_changed(change);
        }
    });
    [nodes, pods]
}

impl Shared {
    fn node_changed(&self, change: &Change) {
        let now = self.clock.now();
        let state = &mut *self.state.lock();
        let Some(new) = &change.new else {
            state.cache.remove_node(&change.key.name);
            return;
        };
        let node = match Node::decode(new) {
            Ok(node) => node,
            Err(error) => return tracing::warn!(node = change.key.name, %error, "node left out"),
        };
        let old = state.cache.node(&node.name).cloned();
        // Heartbeats change nothing that matters here.
        if old.as_deref() == Some(&node) {
            return;
        }
        let new = Arc::new(node.clone());
        state.cache.put_node(node);
        let event = match old {
            None => Event::NodeAdded(new),
            Some(old) => Event::NodeChanged(old, new),
        };
        self.raise(state, &event, now);
    }

    fn pod_changed(&self, change: &Change) {
        let now = self.clock.now();
        let Some(new) = &change.new else {
            if let Some(old) = &change.old {
                self.pod_gone(old);
            }
            return;
        };
        let pod = match Pod::decode(new) {
            Ok(pod) => Arc::new(pod),
            Err(error) => return self.pod_unreadable(change, new, &error.to_string()),
        };
        let state = &mut *self.state.lock();
        if pod.occupies() {
            state.queue.remove(&pod.uid);
            state.cache.put_pod(pod);
        } else if !pod.node.is_empty() {
            // It has finished: what it used is free.
            state.queue.remove(&pod.uid);
            if state.cache.remove_pod(&pod.uid) {
                self.raise(state, &Event::PodLeft(pod), now);
            }
        } else if pod.waits() {
            // A pod that is being bound is assumed somewhere: its own news are no reason to try again.
            let matters = change.old.as_ref().is_none_or(|old| {
                old.meta().generation != new.meta().generation || old.meta().labels != new.meta().labels
            });
            if !state.cache.has_pod(&pod.uid) || state.queue.contains(&pod.uid) {
                state.queue.put(pod, matters, now);
                self.wake.notify_one();
            }
        } else {
            state.queue.remove(&pod.uid);
            state.cache.remove_pod(&pod.uid);
        }
    }

    /// A pod that cannot be read is placed nowhere, which its user has to know. It is said once per version of its spec.
    fn pod_unreadable(&self, change: &Change, new: &Object, error: &str) {
        tracing::warn!(pod = %change.key, error, "pod left out");
        let state = &mut *self.state.lock();
        state.queue.remove(&new.meta().uid);
        let changed = change.old.as_ref().is_none_or(|old| old.meta().generation != new.meta().generation);
        if changed && new.node_name().is_none() && !new.meta().is_terminating() {
            state.unreadable.push((Arc::new(Pod::unreadable(new)), error.to_owned()));
            self.wake.notify_one();
        }
    }

    fn pod_gone(&self, old: &Object) {
        let now = self.clock.now();
        let state = &mut *self.state.lock();
        let uid = &old.meta().uid;
        state.queue.remove(uid);
        if state.cache.remove_pod(uid)
            && let Ok(pod) = Pod::decode(old)
        {
            self.raise(state, &Event::PodLeft(Arc::new(pod)), now);
        }
    }

    fn raise(&self, state: &mut State, event: &Event, now: jiff::Timestamp) {
        state.queue.event(now, |pod, rejected_by| self.framework.may_help(pod, rejected_by, event));
        self.wake.notify_one();
    }
}
