//! From changes of objects to the scheduler's view of the cluster, and to its queue.

use std::sync::Arc;

use api::Object;
use api::selectors::LabelSelectorSpec;
use reconcile::{Change, Informer, Informers, Registration, kinds};
use serde::Deserialize;

use crate::framework::Event;
use crate::types::{Labels, Node, Pod, Selector};
use crate::{Shared, State, devices, storage};

/// The informers that the scheduler reads.
pub(crate) struct Sources {
    pub(crate) pods: Informer,
    pub(crate) nodes: Informer,
    namespaces: Informer,
    services: Informer,
    budgets: Informer,
    controllers: [(&'static str, Informer); 3],
    storage: storage::watch::Sources,
    devices: devices::watch::Sources,
}

impl Sources {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            pods: informers.get(kinds::PODS),
            nodes: informers.get(kinds::NODES),
            namespaces: informers.get(kinds::NAMESPACES),
            services: informers.get(kinds::SERVICES),
            budgets: informers.get(kinds::POD_DISRUPTION_BUDGETS),
            controllers: [kinds::REPLICA_SETS, kinds::STATEFUL_SETS, kinds::REPLICATION_CONTROLLERS]
                .map(|kind| (kind.kind, informers.get(kind))),
            storage: storage::watch::Sources::new(informers),
            devices: devices::watch::Sources::new(informers),
        }
    }

    /// Returns once everything that the server had has been told.
    pub(crate) async fn synced(&self) {
        let others = [&self.namespaces, &self.services, &self.budgets, &self.nodes, &self.pods];
        for informer in others.into_iter().chain(self.controllers.iter().map(|(_, informer)| informer)) {
            informer.synced().await;
        }
        self.storage.synced().await;
        self.devices.synced().await;
    }
}

/// Registers the handlers; pods last, so that a first pod meets the others.
pub(crate) fn listen(shared: &Arc<Shared>) -> Vec<Registration> {
    let on = |informer: &Informer, handler: fn(&Shared, &Change)| shared.on(informer, handler);
    let sources = &shared.sources;
    let mut held = vec![
        on(&sources.namespaces, Shared::namespace_changed),
        on(&sources.services, Shared::service_changed),
        on(&sources.budgets, Shared::budget_changed),
    ];
    for (kind, informer) in &sources.controllers {
        let kind = *kind;
        held.push(shared.on(informer, move |shared, change| shared.controller_changed(kind, change)));
    }
    held.extend(sources.storage.listen(shared));
    held.extend(sources.devices.listen(shared));
    held.push(on(&sources.nodes, Shared::node_changed));
    held.push(on(&sources.pods, Shared::pod_changed));
    held
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Selecting<S: Default> {
    spec: SelectingSpec<S>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SelectingSpec<S: Default> {
    selector: S,
}

/// Whether a change leaves the spec as it was.
fn same_spec(change: &Change) -> bool {
    let generation = |object: &Option<Arc<Object>>| object.as_ref().map(|object| object.meta().generation);
    let old = generation(&change.old);
    old.is_some_and(|old| old > 0) && old == generation(&change.new)
}

impl Shared {
    /// Is told of each change that an informer sees, for as long as it is there.
    pub(crate) fn on(
        self: &Arc<Self>,
        informer: &Informer,
        handler: impl Fn(&Self, &Change) + Send + Sync + 'static,
    ) -> Registration {
        let weak = Arc::downgrade(self);
        informer.on_change(move |change| {
            if let Some(shared) = weak.upgrade() {
                handler(&shared, change);
            }
        })
    }

    fn namespace_changed(&self, change: &Change) {
        let labels = change.new.as_ref().map(|new| new.meta().labels.clone());
        let state = &mut *self.state.lock();
        if state.cluster.groups.put_namespace(&change.key.name, labels) {
            self.raise(state, &Event::NamespaceChanged);
        }
    }

    fn service_changed(&self, change: &Change) {
        let read = |new: &Arc<Object>| new.decode::<Selecting<Labels>>().unwrap_or_default().spec.selector;
        let selector = change.new.as_ref().map(read);
        let selected = &mut self.state.lock().cluster.selected;
        selected.put_service(&change.key.namespace, &change.key.name, selector);
    }

    fn controller_changed(&self, kind: &'static str, change: &Change) {
        if same_spec(change) {
            return;
        }
        let selector = change.new.as_ref().map(|new| match kind {
            "ReplicationController" => {
                let labels = new.decode::<Selecting<Labels>>().unwrap_or_default().spec.selector;
                if labels.is_empty() { Selector::default() } else { Selector::of_labels(&labels) }
            }
            _ => {
                let read = new.decode::<Selecting<Option<LabelSelectorSpec>>>().unwrap_or_default();
                Selector::new(read.spec.selector)
            }
        });
        let selected = &mut self.state.lock().cluster.selected;
        selected.put_controller(kind, &change.key.namespace, &change.key.name, selector);
    }

    fn budget_changed(&self, change: &Change) {
        if let Err(error) = self.state.lock().cluster.budgets.put(&change.key, change.new.as_deref()) {
            tracing::warn!(budget = %change.key, %error, "disruption budget left out");
        }
    }

    pub(crate) fn node_changed(&self, change: &Change) {
        let Some(new) = &change.new else {
            let state = &mut *self.state.lock();
            if let Some(node) = state.cluster.remove_node(&change.key.name) {
                state.cluster.storage.wake_all();
                self.raise(state, &Event::NodeGone(node));
            }
            return;
        };
        let node = match Node::decode(new) {
            Ok(node) => Arc::new(node),
            Err(error) => return tracing::warn!(node = change.key.name, %error, "node left out"),
        };
        let state = &mut *self.state.lock();
        let old = state.cluster.node(&node.name).cloned();
        // Heartbeats change nothing that matters here.
        if old.as_ref() == Some(&node) {
            return;
        }
        state.cluster.put_node(node.clone());
        let event = match old {
            None => Event::NodeAdded(node),
            Some(old) => {
                if old.labels != node.labels {
                    state.cluster.storage.wake_all();
                }
                Event::NodeChanged(old, node)
            }
        };
        self.raise(state, &event);
    }

    pub(crate) fn pod_changed(&self, change: &Change) {
        let Some(new) = &change.new else {
            if let Some(old) = &change.old {
                self.pod_gone(&old.meta().uid);
            }
            return;
        };
        if change.old.as_ref().is_some_and(|old| self.is_still(old, new)) {
            return;
        }
        let pod = match Pod::decode(new) {
            Ok(pod) => Arc::new(self.interner.share(pod)),
            Err(error) => return self.pod_unreadable(change, new, &error.to_string()),
        };
        let state = &mut *self.state.lock();
        if state.written.get(&pod.uid).is_some_and(|written| *written <= new.revision()) {
            state.written.remove(&pod.uid);
        }
        if pod.occupies() {
            self.pod_placed(state, pod);
        } else if pod.waits() {
            self.pod_waits(state, pod);
        } else {
            // It has finished, or goes before it had a node: what it used or waited for is free.
            self.pod_left(state, &pod.uid);
        }
    }

    /// Whether a pod on a node has changed in nothing that counts, as most of its versions.
    fn is_still(&self, old: &Object, new: &Object) -> bool {
        let uid = new.meta().uid.as_str();
        let held = {
            let state = self.state.lock();
            // Of one that is only assumed to be there this is the first news.
            let told = !state.assumed.contains(uid) && !state.queue.contains(uid);
            state.cluster.pod(uid).filter(|_| told).cloned()
        };
        held.is_some_and(|held| held.is_still(old, new))
    }

    fn pod_placed(&self, state: &mut State, pod: Arc<Pod>) {
        state.queue.remove(&pod.uid);
        let assumed = state.assumed.remove(&pod.uid);
        let nominated = state.cluster.nominated.node_of(&pod.uid).map(str::to_owned);
        let before = state.cluster.put_pod(pod.clone());
        if let Some(node) = nominated {
            self.room_is_free(state, &pod, &node);
        }
        let event = match before {
            Some(before) if !assumed => {
                let same = before.labels == pod.labels
                    && before.terminating == pod.terminating
                    && before.spec.requests == pod.spec.requests;
                if same {
                    return;
                }
                Event::PodChanged(before, pod)
            }
            _ => Event::PodPlaced(pod),
        };
        self.raise(state, &event);
    }

    fn pod_waits(&self, state: &mut State, pod: Arc<Pod>) {
        let Some(profile) = self.profile(&pod) else {
            return self.pod_left(state, &pod.uid);
        };
        // A pod that is being bound is assumed somewhere: its own news are no reason to try again.
        if state.cluster.has_pod(&pod.uid) && !state.queue.contains(&pod.uid) {
            return;
        }
        let held = state.queue.get(&pod.uid);
        let withdrawn = held.is_some_and(|held| !held.nominated.is_empty()) && pod.nominated.is_empty();
        let before = state.cluster.nominated.node_of(&pod.uid).map(str::to_owned);
        let nominated = match before.as_deref() {
            _ if !pod.nominated.is_empty() => pod.nominated.to_string(),
            // What the scheduler has just decided is not told by the API server yet.
            Some(node) if !withdrawn => node.to_owned(),
            _ => String::new(),
        };
        if !state.cluster.has_pod(&pod.uid) {
            state.cluster.nominated.put(pod.clone(), &nominated);
        }
        if let Some(node) = before {
            self.room_is_free(state, &pod, &node);
        }
        let gated = profile.gate(&pod, &state.cluster).is_some();
        let cluster = &state.cluster;
        state.queue.put(pod.clone(), gated, self.clock.now(), |before, by| {
            let changed = Event::OwnChanged(Arc::new(before.clone()), pod.clone());
            profile.may_help(&pod, by, &changed, cluster) && crate::queue::is_another(before, &pod)
        });
        self.wake.notify_one();
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

    fn pod_gone(&self, uid: &str) {
        self.pod_left(&mut self.state.lock(), uid);
    }

    /// A pod uses nothing any more and waits for nothing.
    fn pod_left(&self, state: &mut State, uid: &str) {
        let waited = state.queue.get(uid).cloned();
        state.queue.remove(uid);
        state.assumed.remove(uid);
        state.preempting.remove(uid);
        state.written.remove(uid);
        let had_room = state.cluster.nominated.node_of(uid).is_some();
        state.cluster.nominated.remove(uid);
        let left = state.cluster.remove_pod(uid);
        if let Some(pod) = left.or(waited.filter(|_| had_room)) {
            self.raise(state, &Event::PodLeft(pod));
        }
    }

    /// Something changed: whom it may help is tried again.
    pub(crate) fn raise(&self, state: &mut State, event: &Event) {
        self.raise_among(state, event, |_| true);
    }

    /// The same for some pods alone.
    pub(crate) fn raise_among(&self, state: &mut State, event: &Event, among: impl Fn(&Pod) -> bool) {
        let heeds = |plugin: &str| self.config.profiles.iter().any(|profile| profile.heeds(plugin, event));
        let cluster = &state.cluster;
        state.queue.event(self.clock.now(), event.label(), heeds, |pod, by| {
            among(pod) && self.profile(pod).is_some_and(|profile| profile.may_help(pod, by, event, cluster))
        });
        self.wake.notify_one();
    }
}
