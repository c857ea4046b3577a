//! Equal parts of many pods, kept once: a pod is five kilobytes as JSON, and its like differ in name and node only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Labels, Pod, Spec};

/// So many specs of one owner are compared before a pod keeps its own.
const COMPARED_MAX: usize = 16;
/// So many pods come before what nobody uses any more is looked for, at least.
const SWEEP_MIN: usize = 4096;

/// What was seen before.
#[derive(Debug, Default)]
pub struct Interner {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By namespace and owner.
    specs: HashMap<(String, String), Vec<Arc<Spec>>>,
    labels: HashSet<Arc<Labels>>,
    names: HashSet<Arc<str>>,
    since_sweep: usize,
}

impl Interner {
    /// The same pod, sharing what is equal to parts of others.
    pub fn share(&self, mut pod: Pod) -> Pod {
        let held = &mut *self.held.lock();
        held.sweep();
        pod.labels = shared(&mut held.labels, pod.labels);
        pod.node = shared(&mut held.names, pod.node);
        let owner = pod.spec.owner.as_ref().map(|owner| owner.uid.clone()).unwrap_or_default();
        let like = held.specs.entry((pod.key.namespace.clone(), owner)).or_default();
        match like.iter().rev().take(COMPARED_MAX).find(|known| **known == pod.spec) {
            Some(known) => pod.spec = known.clone(),
            None => like.push(pod.spec.clone()),
        }
        pod
    }
}

fn shared<T: ?Sized + Eq + std::hash::Hash>(known: &mut HashSet<Arc<T>>, new: Arc<T>) -> Arc<T> {
    if let Some(held) = known.get(&*new) {
        return held.clone();
    }
    known.insert(new.clone());
    new
}

impl Held {
    /// Forgets what only this table holds, once for each time that as many pods came as it has entries.
    fn sweep(&mut self) {
        self.since_sweep += 1;
        if self.since_sweep < SWEEP_MIN.max(self.specs.len() + self.labels.len()) {
            return;
        }
        self.since_sweep = 0;
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.specs.retain(|_, like| {
            like.retain(|spec| Arc::strong_count(spec) > 1);
            !like.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(priority: i64) -> Pod {
        let labels = Arc::new(Labels::from([("app".to_owned(), "web".to_owned())]));
        Pod {
            labels,
            spec: Arc::new(Spec { priority, ..Spec::default() }),
            node: "n1".into(),
            ..Pod::default()
        }
    }

    #[test]
    fn equal_parts_are_one() {
        let interner = Interner::default();
        let (first, second, other) = (interner.share(pod(1)), interner.share(pod(1)), interner.share(pod(2)));
        assert!(Arc::ptr_eq(&first.spec, &second.spec) && Arc::ptr_eq(&first.labels, &other.labels));
        assert!(Arc::ptr_eq(&first.node, &other.node) && !Arc::ptr_eq(&first.spec, &other.spec));
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let interner = Interner::default();
        for priority in 0..3 * i64::try_from(SWEEP_MIN).unwrap() {
            drop(interner.share(pod(priority)));
        }
        let held = interner.held.lock();
        assert!(held.specs.values().map(Vec::len).sum::<usize>() <= 2 * SWEEP_MIN);
    }
}
