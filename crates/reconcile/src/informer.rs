//! Shared informers: one cache per resource (and field selector) and process, kept by one list and watch.
//!
//! Readers look objects up in the cache; whoever has to act on changes either registers a handler, which is called for
//! every single change in order and must not block (it usually adds keys to a queue), or takes a [`Subscription`],
//! which hands over what changed since it was last asked, one entry per key, so that a slow reader costs no memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use api::{GroupVersionResource, Key, Object};
use base::clock::SharedClock;
use base::lifecycle::Tasks;
use client::Client;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::cache::Cache;
use crate::reflector::{self, Selection};

/// What happened to one object: `old` is absent when it is new, `new` when it is gone. In a subscription, where
/// several changes of a key are one, both may be absent (made and gone in between) and their uids may differ
/// (deleted and made anew).
#[derive(Debug, Clone)]
pub struct Change {
    /// The object's key.
    pub key: Key,
    /// As it was.
    pub old: Option<Arc<Object>>,
    /// As it is.
    pub new: Option<Arc<Object>>,
}

impl Change {
    /// The newest version that is known: the new one, or what was deleted.
    pub fn latest(&self) -> Option<&Arc<Object>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

type Handler = dyn Fn(&Change) + Send + Sync;

/// The informers of a process. Cheap to clone; needs a tokio runtime when an informer is first asked for.
#[derive(Clone)]
pub struct Informers {
    registry: Arc<Registry>,
}

struct Registry {
    client: Client,
    clock: SharedClock,
    known: Mutex<HashMap<(GroupVersionResource, String), Informer>>,
    tasks: Tasks,
}

impl Informers {
    /// A registry without informers yet; they read through `client`. Its identity must be allowed to list and watch
    /// whatever is asked for.
    pub fn new(client: Client, clock: SharedClock) -> Self {
        let registry = Registry { client, clock, known: Mutex::new(HashMap::new()), tasks: Tasks::default() };
        Self { registry: Arc::new(registry) }
    }

    /// The informer of a resource in all namespaces; started when it is first asked for.
    pub fn get(&self, resource: impl Into<GroupVersionResource>) -> Informer {
        self.selected(resource, "")
    }

    /// The informer of the objects that match a field selector, such as `spec.nodeName=n1`.
    pub fn selected(&self, resource: impl Into<GroupVersionResource>, field_selector: &str) -> Informer {
        let resource = resource.into();
        let mut known = self.registry.known.lock();
        let informer = known.entry((resource.clone(), field_selector.to_owned())).or_insert_with(|| {
            let informer = Informer { shared: Arc::new(Shared::new(resource.clone())) };
            let selection = Selection { fields: field_selector.to_owned(), ..Selection::default() };
            self.start(&self.registry.tasks, resource, selection, &informer);
            informer
        });
        informer.clone()
    }

    /// The informer of one object alone, for those who may see no others. It is not shared: its watch ends when it is
    /// dropped.
    pub fn object(&self, resource: impl Into<GroupVersionResource>, key: &Key) -> ObjectInformer {
        let resource = resource.into();
        let informer = Informer { shared: Arc::new(Shared::new(resource.clone())) };
        let tasks = Tasks::default();
        let fields = format!("metadata.name={}", key.name);
        self.start(&tasks, resource, Selection { namespace: key.namespace.clone(), fields }, &informer);
        ObjectInformer { informer, _tasks: tasks }
    }

    fn start(
        &self,
        tasks: &Tasks,
        resource: GroupVersionResource,
        selection: Selection,
        informer: &Informer,
    ) {
        tasks.spawn(reflector::run(
            self.registry.client.clone(),
            self.registry.clock.clone(),
            resource,
            selection,
            informer.shared.clone(),
        ));
    }

    /// Ends every informer's watch; the caches stay readable as they are.
    pub async fn shutdown(&self) {
        self.registry.tasks.shutdown().await;
    }
}

/// The state that one reflector writes and everyone else reads.
pub(crate) struct Shared {
    resource: GroupVersionResource,
    cache: RwLock<Cache>,
    /// Held while a change is applied and handed on, so that a handler which is being registered misses nothing and
    /// sees nothing twice.
    listeners: Mutex<Listeners>,
    /// The newest revision that the cache reflects; 0 before the first synchronisation.
    revision: watch::Sender<i64>,
}

#[derive(Default)]
struct Listeners {
    handlers: Vec<Weak<Handler>>,
    subscriptions: Vec<Weak<Pending>>,
}

impl Listeners {
    fn tell(&mut self, change: &Change) {
        self.handlers.retain(|handler| match handler.upgrade() {
            Some(handler) => {
                handler(change);
                true
            }
            None => false,
        });
        self.subscriptions.retain(|pending| match pending.upgrade() {
            Some(pending) => {
                pending.add(change);
                true
            }
            None => false,
        });
    }
}

impl Shared {
    fn new(resource: GroupVersionResource) -> Self {
        Self {
            resource,
            cache: RwLock::default(),
            listeners: Mutex::default(),
            revision: watch::Sender::new(0),
        }
    }

    /// Applies one object from the watch.
    pub(crate) fn put(&self, object: Arc<Object>) {
        let mut listeners = self.listeners.lock();
        let key = object.key();
        let old = {
            let mut cache = self.cache.write();
            // A list that raced with the watch may already hold something newer.
            if cache.get(&key).is_some_and(|held| held.revision() >= object.revision()) {
                return;
            }
            cache.put(object.clone())
        };
        listeners.tell(&Change { key, old, new: Some(object) });
    }

    /// Applies one deletion; `last` is the last state as the watch told it.
    pub(crate) fn remove(&self, last: &Arc<Object>) {
        let mut listeners = self.listeners.lock();
        let key = last.key();
        if self.cache.write().remove(&key).is_some() {
            listeners.tell(&Change { key, old: Some(last.clone()), new: None });
        }
    }

    /// Makes the cache equal to a list: what is not in it was deleted while nobody watched.
    pub(crate) fn replace(&self, items: Vec<Arc<Object>>) {
        let fresh: BTreeMap<Key, Arc<Object>> = items.into_iter().map(|item| (item.key(), item)).collect();
        let mut listeners = self.listeners.lock();
        let gone: Vec<Key> =
            self.cache.read().keys().filter(|key| !fresh.contains_key(key)).cloned().collect();
        for key in gone {
            let old = self.cache.write().remove(&key);
            listeners.tell(&Change { key, old, new: None });
        }
        for (key, object) in fresh {
            let held = self.cache.read().get(&key).cloned();
            match held {
                Some(held) if held.revision() >= object.revision() => {}
                // The same name under another uid is another object: handlers see one go and one come.
                Some(held) if held.meta().uid != object.meta().uid => {
                    self.cache.write().remove(&key);
                    listeners.tell(&Change { key: key.clone(), old: Some(held), new: None });
                    self.cache.write().put(object.clone());
                    listeners.tell(&Change { key, old: None, new: Some(object) });
                }
                old => {
                    self.cache.write().put(object.clone());
                    listeners.tell(&Change { key, old, new: Some(object) });
                }
            }
        }
    }

    /// Says that the cache reflects `revision`.
    pub(crate) fn reached(&self, revision: i64) {
        self.revision.send_if_modified(|held| {
            let newer = revision > *held;
            if newer {
                *held = revision;
            }
            newer
        });
    }

    pub(crate) fn revision(&self) -> i64 {
        *self.revision.borrow()
    }
}

/// The shared view on one resource. Cheap to clone.
#[derive(Clone)]
pub struct Informer {
    shared: Arc<Shared>,
}

impl Informer {
    /// The resource.
    pub fn resource(&self) -> &GroupVersionResource {
        &self.shared.resource
    }

    /// Returns once the cache has held everything that the server had.
    pub async fn synced(&self) {
        self.caught_up(1).await;
    }

    /// Whether the cache has held everything that the server had.
    pub fn is_synced(&self) -> bool {
        self.shared.revision() > 0
    }

    /// The newest revision that the cache is known to reflect; 0 before the first synchronisation.
    pub fn revision(&self) -> i64 {
        self.shared.revision()
    }

    /// The newest revision that the cache is known to reflect, and every newer one. Changes are told before the revision
    /// that they belong to.
    pub fn revisions(&self) -> watch::Receiver<i64> {
        self.shared.revision.subscribe()
    }

    /// Returns once the cache reflects `revision` or a later one.
    pub async fn caught_up(&self, revision: i64) {
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = self.shared.revision.subscribe().wait_for(|held| *held >= revision).await;
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.shared.cache.read().get(key).cloned()
    }

    /// One object by its uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<Object>> {
        self.shared.cache.read().by_uid(uid).cloned()
    }

    /// All objects, sorted by key.
    pub fn list(&self) -> Vec<Arc<Object>> {
        self.shared.cache.read().all().cloned().collect()
    }

    /// Whether a namespace has any.
    pub fn any_in_namespace(&self, namespace: &str) -> bool {
        self.shared.cache.read().in_namespace(namespace).next().is_some()
    }

    /// The objects of a namespace, sorted by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.shared.cache.read().in_namespace(namespace).cloned().collect()
    }

    /// The objects of a namespace whose labels satisfy `matches`, sorted by name.
    pub fn labelled(
        &self,
        namespace: &str,
        matches: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Vec<Arc<Object>> {
        let cache = self.shared.cache.read();
        cache.in_namespace(namespace).filter(|object| matches(&object.meta().labels)).cloned().collect()
    }

    /// The objects with an owner reference to `uid`, in no order.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<Object>> {
        self.shared.cache.read().owned_by(uid).cloned().collect()
    }

    /// How many objects have an owner reference to `uid`.
    pub fn owned_count(&self, uid: &str) -> usize {
        self.shared.cache.read().owned_count(uid)
    }

    /// The objects of a namespace that no controller has and whose labels satisfy `matches`, sorted by name. Others are not
    /// looked at, except by the first call of all.
    pub fn orphans(
        &self,
        namespace: &str,
        matches: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Vec<Arc<Object>> {
        let of = |cache: &Cache| -> Option<Vec<Arc<Object>>> {
            let orphans = cache.orphans(namespace)?;
            Some(orphans.filter(|object| matches(&object.meta().labels)).cloned().collect())
        };
        let known = of(&self.shared.cache.read());
        known.unwrap_or_else(|| {
            let mut cache = self.shared.cache.write();
            cache.keep_orphans();
            of(&cache).unwrap_or_default()
        })
    }

    /// The objects of a namespace that have this value of a label, sorted by name. Others are not looked at, except by the
    /// first call of all for this label.
    pub fn by_label(&self, namespace: &str, label: &'static str, value: &str) -> Vec<Arc<Object>> {
        let of = |cache: &Cache| -> Option<Vec<Arc<Object>>> {
            Some(cache.by_label(namespace, label, value)?.cloned().collect())
        };
        let known = of(&self.shared.cache.read());
        known.unwrap_or_else(|| {
            let mut cache = self.shared.cache.write();
            cache.keep_by_label(label);
            of(&cache).unwrap_or_default()
        })
    }

    /// The objects whose `spec.nodeName` is `node`, in no order.
    pub fn on_node(&self, node: &str) -> Vec<Arc<Object>> {
        self.shared.cache.read().on_node(node).cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.cache.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `handler` for every object that is there (as new) and then for every change, in order, from the task that
    /// keeps the cache: it must not block, and must not register handlers. It may read caches. It is called no more
    /// once the returned registration is dropped.
    pub fn on_change(&self, handler: impl Fn(&Change) + Send + Sync + 'static) -> Registration {
        let handler: Arc<Handler> = Arc::new(handler);
        let mut listeners = self.shared.listeners.lock();
        for object in self.list() {
            handler(&Change { key: object.key(), old: None, new: Some(object) });
        }
        listeners.handlers.push(Arc::downgrade(&handler));
        Registration { _handler: handler }
    }

    /// A subscription that begins with every object that is there, as new.
    pub fn subscribe(&self) -> Subscription {
        let pending = Arc::new(Pending::default());
        let mut listeners = self.shared.listeners.lock();
        for object in self.list() {
            pending.add(&Change { key: object.key(), old: None, new: Some(object) });
        }
        listeners.subscriptions.push(Arc::downgrade(&pending));
        Subscription { pending, _shared: self.shared.clone() }
    }
}

/// An informer of its holder alone.
pub struct ObjectInformer {
    informer: Informer,
    _tasks: Tasks,
}

impl std::ops::Deref for ObjectInformer {
    type Target = Informer;

    fn deref(&self) -> &Informer {
        &self.informer
    }
}

/// A registered handler. It is called until this is dropped.
#[must_use = "the handler is called only as long as its registration is held"]
pub struct Registration {
    _handler: Arc<Handler>,
}

/// What changed since it was last taken, one entry per key.
#[derive(Default)]
struct Pending {
    changes: Mutex<BTreeMap<Key, Change>>,
    wake: Notify,
}

impl Pending {
    fn add(&self, change: &Change) {
        self.changes
            .lock()
            .entry(change.key.clone())
            .and_modify(|held| held.new.clone_from(&change.new))
            .or_insert_with(|| change.clone());
        self.wake.notify_one();
    }
}

/// A reader's own view on the changes of an informer. Ends when dropped.
pub struct Subscription {
    pending: Arc<Pending>,
    // Keeps the sender of changes alive.
    _shared: Arc<Shared>,
}

impl Subscription {
    /// Everything that changed since the last call, sorted by key; waits until there is something. Cancel safe.
    pub async fn changed(&mut self) -> Vec<Change> {
        loop {
            let taken = std::mem::take(&mut *self.pending.changes.lock());
            if !taken.is_empty() {
                return taken.into_values().collect();
            }
            self.pending.wake.notified().await;
        }
    }
}
