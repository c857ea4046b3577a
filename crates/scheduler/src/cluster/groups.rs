//! How many pods of a kind are where, without looking at every pod: pods with equal labels are a group, and whoever asks
//! for the pods that a selector means gets a counter, which is kept up to date as pods come and go.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::types::{Labels, Matcher};

/// Beyond so many counters those that were asked for the longest time ago are forgotten, between decisions.
const COUNTERS_MAX: usize = 4096;

/// A place in the cluster's list of nodes.
pub type Slot = u32;

/// How many pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub all: i64,
    /// Those that are not being deleted.
    pub staying: i64,
}

/// Counts by node; nodes without any are absent.
pub type Counts = HashMap<Slot, Count, RandomState>;

/// Pods of one namespace with equal labels.
#[derive(Debug)]
struct Group {
    namespace: String,
    labels: Arc<Labels>,
    pods: usize,
    /// The counters that count it.
    counters: Vec<usize>,
}

/// The pods that all of these mean.
type Question = Arc<[Matcher]>;

#[derive(Debug)]
struct Counter {
    question: Question,
    nodes: Counts,
    used: u64,
}

/// The groups and the counters over them.
#[derive(Debug, Default)]
pub struct Groups {
    groups: Vec<Group>,
    free_groups: Vec<usize>,
    by_labels: HashMap<String, HashMap<Arc<Labels>, usize>>,
    counters: Vec<Option<Counter>>,
    free_counters: Vec<usize>,
    by_question: HashMap<Question, usize, RandomState>,
    used: u64,
    namespaces: HashMap<String, Labels>,
}

impl Groups {
    /// The group of a pod, which is on a node from now on.
    pub(super) fn enter(
        &mut self,
        namespace: &str,
        labels: &Arc<Labels>,
        slot: Slot,
        staying: bool,
    ) -> usize {
        let known = self.by_labels.get(namespace).and_then(|groups| groups.get(labels)).copied();
        let id = known.unwrap_or_else(|| self.found(namespace, labels));
        let group = &mut self.groups[id];
        group.pods += 1;
        for counter in &group.counters {
            if let Some(counter) = &mut self.counters[*counter] {
                let count = counter.nodes.entry(slot).or_default();
                count.all += 1;
                count.staying += i64::from(staying);
            }
        }
        id
    }

    /// A pod of a group has left its node.
    pub(super) fn leave(&mut self, id: usize, slot: Slot, staying: bool) {
        let group = &mut self.groups[id];
        group.pods -= 1;
        for counter in &group.counters {
            let Some(counter) = &mut self.counters[*counter] else { continue };
            if let Some(count) = counter.nodes.get_mut(&slot) {
                count.all -= 1;
                count.staying -= i64::from(staying);
                if count.all == 0 {
                    counter.nodes.remove(&slot);
                }
            }
        }
        if group.pods == 0 {
            self.dissolve(id);
        }
    }

    fn found(&mut self, namespace: &str, labels: &Arc<Labels>) -> usize {
        let among = self.namespaces.get(namespace);
        let counts =
            |question: &Question| question.iter().all(|matcher| matcher.matches(namespace, among, labels));
        let counters = self.counters.iter().enumerate();
        let counters = counters
            .filter(|(_, counter)| counter.as_ref().is_some_and(|counter| counts(&counter.question)))
            .map(|(id, _)| id)
            .collect();
        let group = Group { namespace: namespace.to_owned(), labels: labels.clone(), pods: 0, counters };
        let id = match self.free_groups.pop() {
            Some(id) => {
                self.groups[id] = group;
                id
            }
            None => {
                self.groups.push(group);
                self.groups.len() - 1
            }
        };
        self.by_labels.entry(namespace.to_owned()).or_default().insert(labels.clone(), id);
        id
    }

    fn dissolve(&mut self, id: usize) {
        let group = &mut self.groups[id];
        if let Some(groups) = self.by_labels.get_mut(&group.namespace) {
            groups.remove(&group.labels);
            if groups.is_empty() {
                self.by_labels.remove(&group.namespace);
            }
        }
        group.labels = Arc::default();
        group.counters = Vec::new();
        self.free_groups.push(id);
    }

    /// Another decision begins: what earlier ones asked for may be forgotten.
    pub(super) fn begin(&mut self) {
        if self.by_question.len() > COUNTERS_MAX {
            self.forget_old();
        }
    }

    /// Makes sure that there is a counter of the pods that all of these mean. `pods` are all pods on nodes: their group,
    /// node, and whether they stay.
    pub(super) fn count(&mut self, question: &[Matcher], pods: impl Iterator<Item = (usize, Slot, bool)>) {
        self.used += 1;
        let used = self.used;
        if let Some(counter) = self.by_question.get(question).and_then(|id| self.counters[*id].as_mut()) {
            counter.used = used;
            return;
        }
        let question: Question = question.into();
        let id = self.free_counters.pop().unwrap_or_else(|| {
            self.counters.push(None);
            self.counters.len() - 1
        });
        let counted = self.meant(&question);
        for (group, _) in self.groups.iter_mut().zip(&counted).filter(|(_, counted)| **counted) {
            group.counters.push(id);
        }
        let nodes = count(&counted, pods);
        self.by_question.insert(question.clone(), id);
        self.counters[id] = Some(Counter { question, nodes, used });
    }

    /// The groups whose pods all of these mean.
    fn meant(&self, question: &[Matcher]) -> Vec<bool> {
        let meant = |group: &Group| {
            let among = self.namespaces.get(&group.namespace);
            group.pods > 0
                && question.iter().all(|matcher| matcher.matches(&group.namespace, among, &group.labels))
        };
        self.groups.iter().map(meant).collect()
    }

    /// Counts without keeping a counter.
    pub(super) fn count_once(
        &self,
        question: &[Matcher],
        pods: impl Iterator<Item = (usize, Slot, bool)>,
    ) -> Counts {
        count(&self.meant(question), pods)
    }

    fn forget_old(&mut self) {
        let mut used: Vec<u64> = self.counters.iter().flatten().map(|counter| counter.used).collect();
        used.sort_unstable();
        let bound = used[used.len() / 4];
        self.forget(|counter| counter.used <= bound);
    }

    fn forget(&mut self, which: impl Fn(&Counter) -> bool) {
        for (id, held) in self.counters.iter_mut().enumerate() {
            if let Some(counter) = held.take_if(|counter| which(counter)) {
                self.by_question.remove(&counter.question);
                self.free_counters.push(id);
            }
        }
        let counters = &self.counters;
        for group in &mut self.groups {
            group.counters.retain(|id| counters[*id].is_some());
        }
    }

    /// What a counter says; `None` if it was not asked for.
    pub fn counts(&self, question: &[Matcher]) -> Option<&Counts> {
        let id = self.by_question.get(question)?;
        self.counters[*id].as_ref().map(|counter| &counter.nodes)
    }

    /// The labels of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// A namespace has these labels from now on, or is gone. Counters that ask for labels of namespaces begin anew. Gives
    /// whether that is news.
    pub fn put_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        self.forget(|counter| counter.question.iter().any(|matcher| matcher.namespace_selector.is_some()));
        true
    }
}

/// Counts the pods of some groups by node.
fn count(counted: &[bool], pods: impl Iterator<Item = (usize, Slot, bool)>) -> Counts {
    let mut nodes = Counts::default();
    for (_, slot, staying) in pods.filter(|(group, ..)| counted.get(*group).is_some_and(|counted| *counted)) {
        let count = nodes.entry(slot).or_default();
        count.all += 1;
        count.staying += i64::from(staying);
    }
    nodes
}
