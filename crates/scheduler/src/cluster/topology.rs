//! The values of node labels that stand for places, as numbers: comparing places is comparing integers.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use super::groups::Slot;
use crate::types::Node;

/// So many columns are kept beside those that pods speak of, in case that they are asked for again.
const SPARE_MAX: usize = 256;

/// The value that every node has for one label.
#[derive(Debug, Clone, Default)]
pub struct Column {
    /// By node: 0 if it lacks the label, else the value's number. Ends with the last node that ever had it.
    values: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Column {
    /// The values that these nodes have.
    pub(super) fn new<'a>(key: &str, nodes: impl Iterator<Item = (Slot, &'a Node)>) -> Self {
        let mut column = Self::default();
        for (slot, node) in nodes {
            column.set(slot, node.labels.get(key));
        }
        column
    }

    /// The number of a node's value; `None` if it lacks the label.
    pub fn value(&self, slot: Slot) -> Option<usize> {
        match self.values.get(slot as usize) {
            None | Some(0) => None,
            Some(number) => Some(*number as usize),
        }
    }

    /// Above every value's number.
    pub fn bound(&self) -> usize {
        self.numbers.len() + 1
    }

    fn set(&mut self, slot: Slot, value: Option<&String>) {
        let slot = slot as usize;
        let Some(value) = value else {
            self.values.get_mut(slot).into_iter().for_each(|held| *held = 0);
            return;
        };
        if self.values.len() <= slot {
            self.values.resize(slot + 1, 0);
        }
        if let Some(number) = self.numbers.get(value) {
            self.values[slot] = *number;
            return;
        }
        // Nodes that come and go leave values behind.
        if self.numbers.len() > 2 * self.values.len() + SPARE_MAX {
            self.values[slot] = 0;
            self.compact();
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX - 1) + 1;
        self.numbers.insert(value.clone(), next);
        self.values[slot] = next;
    }

    /// Forgets values that no node has, and numbers the others anew.
    fn compact(&mut self) {
        let mut numbers = vec![0_u32; self.bound()];
        for held in &self.values {
            numbers[*held as usize] = 1;
        }
        self.numbers.retain(|_, number| numbers[*number as usize] == 1);
        for (next, number) in (1..).zip(self.numbers.values_mut()) {
            numbers[*number as usize] = next;
            *number = next;
        }
        numbers[0] = 0;
        for held in &mut self.values {
            *held = numbers[*held as usize];
        }
    }
}

/// Labels of nodes that pods speak of, each with how many terms do.
#[derive(Debug, Default)]
pub struct Spoken {
    counts: HashMap<String, i64, RandomState>,
    /// Those of them that were not taken note of yet.
    news: HashSet<String, RandomState>,
}

impl Spoken {
    /// So many more terms, or fewer, speak of a label.
    pub(super) fn change(&mut self, key: &str, by: i64) {
        if by == 0 {
            return;
        }
        let Some(count) = self.counts.get_mut(key) else {
            self.counts.insert(key.to_owned(), by);
            self.news.insert(key.to_owned());
            return;
        };
        *count += by;
        if *count == 0 {
            self.counts.remove(key);
            self.news.remove(key);
        }
    }

    fn speaks_of(&self, key: &str) -> bool {
        self.counts.contains_key(key)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// The columns that were asked for.
#[derive(Debug, Default)]
pub struct Topology {
    columns: HashMap<String, Column, RandomState>,
}

impl Topology {
    /// Makes sure that there is a column for a label.
    pub(super) fn add<'a>(&mut self, key: &str, nodes: impl Iterator<Item = (Slot, &'a Node)>) {
        if !self.columns.contains_key(key) {
            self.columns.insert(key.to_owned(), Column::new(key, nodes));
        }
    }

    /// The same for labels that pods have begun to speak of.
    pub(super) fn add_news<'a, N>(&mut self, spoken: &mut Spoken, nodes: impl Fn() -> N)
    where
        N: Iterator<Item = (Slot, &'a Node)>,
    {
        for key in spoken.news.drain() {
            self.add(&key, nodes());
        }
    }

    /// Forgets columns that nobody speaks of, when there are many of them. Nothing may be in the midst of using one.
    pub(super) fn forget_spare(&mut self, spoken: [&Spoken; 2]) {
        let many = spoken.iter().map(|spoken| spoken.counts.len()).sum::<usize>() + SPARE_MAX;
        if self.columns.len() > many {
            self.columns.retain(|key, _| spoken.iter().any(|spoken| spoken.speaks_of(key)));
        }
    }

    /// A node is there with these labels, or is gone.
    pub(super) fn put(&mut self, slot: Slot, node: Option<&Node>) {
        for (key, column) in &mut self.columns {
            column.set(slot, node.and_then(|node| node.labels.get(key)));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// The column of a label; `None` if it was not asked for.
    pub(super) fn column(&self, key: &str) -> Option<&Column> {
        self.columns.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Labels;

    #[test]
    fn values_that_nodes_leave_behind_are_forgotten() {
        let mut topology = Topology::default();
        let node =
            |value: String| Node { labels: Labels::from([("k".to_owned(), value)]), ..Node::default() };
        let (first, second) = (node("a".into()), node("a".into()));
        topology.add("k", [(0, &first), (7, &second)].into_iter());
        for number in 0..2000 {
            topology.put(3, Some(&node(number.to_string())));
        }
        let column = topology.column("k").unwrap();
        assert!(column.bound() < 2 * SPARE_MAX, "{}", column.bound());
        assert_eq!(column.value(0), column.value(7));
        assert!(
            column.value(3).is_some_and(|value| value < column.bound() && Some(value) != column.value(0))
        );
        assert_eq!((column.value(1), column.value(100)), (None, None));
        // A label that no node has takes no room.
        topology.add("none", [(5000, &first)].into_iter());
        assert!(topology.column("none").unwrap().values.is_empty());
    }
}
