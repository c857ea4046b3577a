//! The objects of one resource with their indexes. Objects are shared, never copied.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use api::{Key, Object};

/// Objects by key, uid, owner and node. Namespaces need no index of their own: keys sort by them.
#[derive(Default)]
pub(crate) struct Cache {
    objects: BTreeMap<Key, Arc<Object>>,
    by_uid: HashMap<Box<str>, Arc<Object>>,
    by_owner: HashMap<Box<str>, HashSet<Held>>,
    by_node: HashMap<Box<str>, HashSet<Held>>,
    /// Those that no controller has, once somebody has asked for them: of many resources they are all, and nobody asks.
    orphans: Option<BTreeSet<Key>>,
    /// By label, those that somebody has asked for.
    by_label: HashMap<&'static str, Labelled>,
}

/// An object that the cache holds, told from others by where it lies: each version of it is another one.
struct Held(Arc<Object>);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// The keys of objects by the value of one label. They sort by namespace.
type Labelled = HashMap<Box<str>, BTreeSet<Key>>;

impl Cache {
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Arc<Object>> {
        self.by_uid.get(uid)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(crate) fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        self.objects
            .range(Key::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, object)| object)
    }

    pub(crate) fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.by_owner.get(uid).into_iter().flatten().map(|held| &held.0)
    }

    pub(crate) fn owned_count(&self, uid: &str) -> usize {
        self.by_owner.get(uid).map_or(0, HashSet::len)
    }

    pub(crate) fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.by_node.get(node).into_iter().flatten().map(|held| &held.0)
    }

    /// The objects of a namespace that no controller has; `None` as long as they are not kept.
    pub(crate) fn orphans<'a>(&'a self, namespace: &'a str) -> Option<impl Iterator<Item = &'a Arc<Object>>> {
        let keys = self.orphans.as_ref()?.range(Key::new(namespace, "")..);
        Some(keys.take_while(move |key| key.namespace == namespace).filter_map(|key| self.objects.get(key)))
    }

    /// Keeps the objects that no controller has from now on.
    pub(crate) fn keep_orphans(&mut self) {
        let all = self.objects.iter().filter(|(_, object)| is_orphan(object));
        self.orphans.get_or_insert_with(|| all.map(|(key, _)| key.clone()).collect());
    }

    /// The objects of a namespace that have this value of a label, sorted by name; `None` as long as they are not kept.
    pub(crate) fn by_label<'a>(
        &'a self,
        namespace: &'a str,
        label: &str,
        value: &str,
    ) -> Option<impl Iterator<Item = &'a Arc<Object>>> {
        let keys = self.by_label.get(label)?.get(value).into_iter();
        let keys = keys.flat_map(move |keys| keys.range(Key::new(namespace, "")..));
        let keys = keys.take_while(move |key| key.namespace == namespace);
        Some(keys.filter_map(|key| self.objects.get(key)))
    }

    /// Keeps the objects by the values of a label from now on.
    pub(crate) fn keep_by_label(&mut self, label: &'static str) {
        let objects = &self.objects;
        self.by_label.entry(label).or_insert_with(|| {
            let mut kept = Labelled::new();
            for (key, object) in objects {
                if let Some(value) = object.meta().labels.get(label) {
                    kept.entry(value.as_str().into()).or_default().insert(key.clone());
                }
            }
            kept
        });
    }

    /// Puts an object; gives the one that it replaces.
    pub(crate) fn put(&mut self, object: Arc<Object>) -> Option<Arc<Object>> {
        let key = object.key();
        let old = self.objects.insert(key.clone(), object.clone());
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        let meta = object.meta();
        if !meta.uid.is_empty() {
            self.by_uid.insert(meta.uid.as_str().into(), object.clone());
        }
        for owner in &meta.owner_references {
            self.by_owner.entry(owner.uid.as_str().into()).or_default().insert(Held(object.clone()));
        }
        if let Some(orphans) = self.orphans.as_mut().filter(|_| is_orphan(&object)) {
            orphans.insert(key.clone());
        }
        for (label, kept) in &mut self.by_label {
            if let Some(value) = meta.labels.get(*label) {
                kept.entry(value.as_str().into()).or_default().insert(key.clone());
            }
        }
        if let Some(node) = object.node_name() {
            self.by_node.entry(node.into()).or_default().insert(Held(object.clone()));
        }
        old
    }

    /// Takes an object out.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        let old = self.objects.remove(key)?;
        self.unindex(key, &old);
        Some(old)
    }

    fn unindex(&mut self, key: &Key, old: &Arc<Object>) {
        let (meta, held) = (old.meta(), Held(old.clone()));
        if self.by_uid.get(meta.uid.as_str()).is_some_and(|known| Arc::ptr_eq(known, old)) {
            self.by_uid.remove(meta.uid.as_str());
        }
        for owner in &meta.owner_references {
            drop_from(&mut self.by_owner, &owner.uid, &held);
        }
        if let Some(orphans) = &mut self.orphans {
            orphans.remove(key);
        }
        for (label, kept) in &mut self.by_label {
            let Some(value) = meta.labels.get(*label) else { continue };
            if let Some(keys) = kept.get_mut(value.as_str()) {
                keys.remove(key);
                if keys.is_empty() {
                    kept.remove(value.as_str());
                }
            }
        }
        if let Some(node) = old.node_name() {
            drop_from(&mut self.by_node, node, &held);
        }
    }
}

fn is_orphan(object: &Object) -> bool {
    object.meta().controller().is_none()
}

fn drop_from(index: &mut HashMap<Box<str>, HashSet<Held>>, name: &str, object: &Held) {
    if let Some(held) = index.get_mut(name) {
        held.remove(object);
        if held.is_empty() {
            index.remove(name);
        }
    }
}
