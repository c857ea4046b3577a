//! The cache's data under its lock: objects by key, the ring of changes, and the watchers by what they look at.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use api::Object;
use parking_lot::Mutex;
use store::Revision;
use tokio::sync::Notify;

/// So many changes are kept for watches that start in the past.
const RING_MAX: usize = 1024;
/// A watcher that lags behind by more changes than this is ended (it lists again).
const QUEUE_MAX: usize = 8192;

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// Its revision.
    pub revision: Revision,
    /// The object before, if there was one.
    pub old: Option<Arc<Object>>,
    /// The object after; for a deletion its last state with the deletion's revision.
    pub new: Arc<Object>,
    /// Whether it is gone.
    pub deleted: bool,
}

/// What a watcher looks at: the index that finds it. Narrower scopes cost nothing when others change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every object.
    All,
    /// A namespace.
    Namespace(String),
    /// One object, by its key suffix.
    Name(String),
    /// Objects bound to a node (`spec.nodeName`).
    Node(String),
    /// Objects with an owner of this uid.
    Owner(String),
}

impl Change {
    /// The uids of the owners that the object has or had; one that it keeps comes twice.
    pub(super) fn owners(&self) -> impl Iterator<Item = &str> {
        let versions = [Some(&self.new), self.old.as_ref()].into_iter().flatten();
        versions.flat_map(|object| &object.meta().owner_references).map(|owner| owner.uid.as_str())
    }
}

/// What a watcher has not yet taken.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    changes: VecDeque<Arc<Change>>,
    ended: bool,
}

/// What a watcher finds in its mailbox.
pub(super) enum Mail {
    Changes(Vec<Arc<Change>>),
    Empty,
    /// It lagged behind, or the cache was filled anew.
    Ended,
}

impl Mailbox {
    fn put(&self, change: &Arc<Change>) {
        let mut queue = self.queue.lock();
        if queue.changes.len() >= QUEUE_MAX {
            queue.changes.clear();
            queue.ended = true;
        } else if !queue.ended {
            queue.changes.push_back(change.clone());
        }
        drop(queue);
        self.wake.notify_one();
    }

    fn end(&self) {
        self.queue.lock().ended = true;
        self.wake.notify_one();
    }

    /// The oldest changes, at most so many.
    pub(super) fn take(&self, max: usize) -> Mail {
        let mut queue = self.queue.lock();
        if !queue.changes.is_empty() {
            let count = queue.changes.len().min(max);
            Mail::Changes(queue.changes.drain(..count).collect())
        } else if queue.ended {
            Mail::Ended
        } else {
            Mail::Empty
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.lock().changes.is_empty()
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// The number of a watcher within its cache.
pub(super) type WatcherId = u64;

/// What is stored, by key suffix.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) objects: BTreeMap<Box<str>, Arc<Object>>,
    /// Why the others cannot be read.
    pub(super) unreadable: BTreeMap<Box<str>, Arc<str>>,
}

/// Everything under the cache's lock.
#[derive(Default)]
pub(super) struct State {
    contents: Contents,
    revision: Revision,
    ring: VecDeque<Arc<Change>>,
    /// Changes after this revision are in the ring.
    oldest: Revision,
    watchers: HashMap<Scope, Vec<(WatcherId, Arc<Mailbox>)>>,
    next_watcher: WatcherId,
}

impl State {
    pub(super) fn get(&self, suffix: &str) -> Option<Arc<Object>> {
        self.contents.objects.get(suffix).cloned()
    }

    /// Why an object cannot be read, if so.
    pub(super) fn unreadable(&self, suffix: &str) -> Option<Arc<str>> {
        self.contents.unreadable.get(suffix).cloned()
    }

    /// The objects of a namespace (empty: all) that cannot be read, and why.
    pub(super) fn unreadable_in(&self, namespace: &str) -> Vec<(Box<str>, Arc<str>)> {
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let from =
            self.contents.unreadable.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        let within = from.take_while(|(suffix, _)| suffix.starts_with(&prefix));
        within.map(|(suffix, why)| (suffix.clone(), why.clone())).collect()
    }

    /// Whether every object can be read.
    pub(super) fn is_whole(&self) -> bool {
        self.contents.unreadable.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.contents.objects.len()
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn oldest(&self) -> Revision {
        self.oldest
    }

    /// Objects of a namespace (empty: all), in order.
    pub(super) fn range(&self, namespace: &str) -> Vec<Arc<Object>> {
        let objects = &self.contents.objects;
        if namespace.is_empty() {
            return objects.values().cloned().collect();
        }
        // A namespace's keys end before what follows a slash: no key is looked at on the way.
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
        let bounds = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        objects.range::<str, _>(bounds).map(|(_, object)| object.clone()).collect()
    }

    /// Changes after `revision`, or `None` if the ring no longer holds them all.
    pub(super) fn since(&self, revision: Revision) -> Option<Vec<Arc<Change>>> {
        if revision < self.oldest {
            return None;
        }
        let from = self.ring.partition_point(|change| change.revision <= revision);
        Some(self.ring.iter().skip(from).cloned().collect())
    }

    /// Starts anew from a list at `revision`: every watcher ends, as nobody knows what happened in between.
    pub(super) fn fill(&mut self, contents: Contents, revision: Revision) {
        self.contents = contents;
        self.revision = revision;
        self.begin_again();
    }

    /// An object was written that cannot be read. What it is now nobody can be told: they begin again, and are refused.
    pub(super) fn lose(&mut self, suffix: &str, why: Arc<str>, revision: Revision) {
        self.contents.objects.remove(suffix);
        self.contents.unreadable.insert(suffix.into(), why);
        self.revision = self.revision.max(revision);
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.oldest = self.revision;
        self.ring.clear();
        for (_, mailbox) in self.watchers.drain().flat_map(|(_, list)| list) {
            mailbox.end();
        }
    }

    /// Applies a put (`object`) or a deletion (`None`) and tells the watchers whose scope it touches.
    pub(super) fn apply(&mut self, suffix: &str, object: Option<Arc<Object>>, revision: Revision) {
        self.contents.unreadable.remove(suffix);
        let old = match &object {
            Some(new) => self.contents.objects.insert(suffix.into(), new.clone()),
            None => self.contents.objects.remove(suffix),
        };
        let deleted = object.is_none();
        let last = || {
            let old = old.as_ref()?;
            Some(crate::storage::with_revision(old, revision).map_or_else(|| old.clone(), Arc::new))
        };
        let Some(new) = object.or_else(last) else { return };
        let change = Arc::new(Change { revision, old, new, deleted });
        self.dispatch(suffix, &change);
        self.ring.push_back(change);
        while self.ring.len() > RING_MAX {
            if let Some(dropped) = self.ring.pop_front() {
                self.oldest = dropped.revision;
            }
        }
    }

    /// Everything up to `revision` has been applied.
    pub(super) fn reached(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    fn dispatch(&self, suffix: &str, change: &Arc<Change>) {
        let mut scopes = vec![Scope::All, Scope::Name(suffix.to_owned())];
        if let Some((namespace, _)) = suffix.split_once('/') {
            scopes.push(Scope::Namespace(namespace.to_owned()));
        }
        let now = change.new.node_name();
        let before = change.old.as_ref().and_then(|old| old.node_name());
        scopes.extend(now.map(|node| Scope::Node(node.to_owned())));
        scopes.extend(before.filter(|_| before != now).map(|node| Scope::Node(node.to_owned())));
        let owners: BTreeSet<&str> = change.owners().collect();
        scopes.extend(owners.into_iter().map(|uid| Scope::Owner(uid.to_owned())));
        for scope in scopes {
            for (_, mailbox) in self.watchers.get(&scope).into_iter().flatten() {
                mailbox.put(change);
            }
        }
    }

    /// Adds a watcher.
    pub(super) fn register(&mut self, scope: &Scope) -> (WatcherId, Arc<Mailbox>) {
        self.next_watcher += 1;
        let mailbox = Arc::new(Mailbox::default());
        self.watchers.entry(scope.clone()).or_default().push((self.next_watcher, mailbox.clone()));
        (self.next_watcher, mailbox)
    }

    /// Removes a watcher.
    pub(super) fn unregister(&mut self, scope: &Scope, id: WatcherId) {
        if let Some(list) = self.watchers.get_mut(scope) {
            list.retain(|(known, _)| *known != id);
            if list.is_empty() {
                self.watchers.remove(scope);
            }
        }
    }

    /// The revision that a watcher with this mailbox has been told everything of, if nothing waits in it.
    pub(super) fn told(&self, mailbox: &Mailbox) -> Option<Revision> {
        mailbox.is_empty().then_some(self.revision)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(namespace: &str, name: &str, owner: &str, node: &str) -> Arc<Object> {
        let object: Value = json!({
            "metadata": { "namespace": namespace, "name": name, "resourceVersion": "1", "ownerReferences": [{ "uid": owner }] },
            "spec": { "nodeName": node },
        });
        Arc::new(Object::parse(object.to_string().into()).unwrap())
    }

    #[test]
    fn a_namespace_has_its_own_objects_and_no_others() {
        let mut state = State::default();
        let present = [("a", "y"), ("a", "x"), ("a-b", "x"), ("a0", "x"), ("ab", "x")];
        for (revision, (namespace, name)) in (1..).zip(present) {
            let key = crate::storage::suffix(namespace, name);
            state.apply(&key, Some(object(namespace, name, "", "")), revision);
        }
        let keys = |namespace: &str| -> Vec<String> {
            let found = state.range(namespace);
            found.iter().map(|object| format!("{}/{}", object.meta().namespace, object.meta().name)).collect()
        };
        assert_eq!(keys("a"), ["a/x", "a/y"]);
        assert_eq!(keys(""), ["a-b/x", "a/x", "a/y", "a0/x", "ab/x"]);
        assert!(keys("b").is_empty() && keys("A").is_empty());
    }

    #[test]
    fn a_change_reaches_the_interested_watchers_and_no_other() {
        let mut state = State::default();
        let scopes = [
            Scope::All,
            Scope::Namespace("a".into()),
            Scope::Namespace("b".into()),
            Scope::Name("a/x".into()),
            Scope::Name("a/y".into()),
            Scope::Node("n".into()),
            Scope::Node("m".into()),
            Scope::Owner("o".into()),
            Scope::Owner("p".into()),
        ];
        let mailboxes: Vec<_> = scopes.iter().map(|scope| state.register(scope).1).collect();
        let taken = || -> Vec<usize> {
            let count = |mail| if let Mail::Changes(changes) = mail { changes.len() } else { 0 };
            mailboxes.iter().map(|mailbox| count(mailbox.take(usize::MAX))).collect()
        };
        state.apply("a/x", Some(object("a", "x", "o", "n")), 1);
        assert_eq!(taken(), [1, 1, 0, 1, 0, 1, 0, 1, 0]);
        // Who loses the object hears of it too, and who keeps it hears once.
        state.apply("a/x", Some(object("a", "x", "p", "n")), 2);
        assert_eq!(taken(), [1, 1, 0, 1, 0, 1, 0, 1, 1]);
        state.apply("a/x", None, 3);
        assert_eq!(taken(), [1, 1, 0, 1, 0, 1, 0, 0, 1]);
    }
}
