//! The values of node labels that stand for places, as numbers: comparing places is comparing integers.

use std::collections::HashMap;

use super::groups::Slot;
use crate::types::Node;

/// Beyond so many different labels the table begins anew.
const COLUMNS_MAX: usize = 256;

/// The value that every node has for one label.
#[derive(Debug, Default)]
pub struct Column {
    /// By node: 0 if it lacks the label, else the value's number.
    values: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Column {
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
        if self.values.len() <= slot {
            self.values.resize(slot + 1, 0);
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX - 1) + 1;
        self.values[slot] = value.map_or(0, |value| match self.numbers.get(value) {
            Some(number) => *number,
            None => {
                self.numbers.insert(value.clone(), next);
                next
            }
        });
    }
}

/// The columns that were asked for.
#[derive(Debug, Default)]
pub struct Topology {
    columns: HashMap<String, Column>,
}

impl Topology {
    /// Makes sure that there is a column for a label.
    pub(super) fn add<'a>(&mut self, key: &str, nodes: impl Iterator<Item = (Slot, &'a Node)>) {
        // Nodes that come and go leave values behind.
        let worn = |column: &Column| column.numbers.len() > 2 * column.values.len() + COLUMNS_MAX;
        if self.columns.get(key).is_some_and(|column| !worn(column)) {
            return;
        }
        let mut column = Column::default();
        for (slot, node) in nodes {
            column.set(slot, node.labels.get(key));
        }
        self.columns.insert(key.to_owned(), column);
    }

    /// Whether so many labels were asked for that it is time to begin anew.
    pub(super) fn is_full(&self) -> bool {
        self.columns.len() > COLUMNS_MAX
    }

    pub(super) fn clear(&mut self) {
        self.columns.clear();
    }

    /// A node is there with these labels, or is gone.
    pub(super) fn put(&mut self, slot: Slot, node: Option<&Node>) {
        for (key, column) in &mut self.columns {
            column.set(slot, node.and_then(|node| node.labels.get(key)));
        }
    }

    /// The column of a label; `None` if it was not asked for.
    pub fn column(&self, key: &str) -> Option<&Column> {
        self.columns.get(key)
    }

    /// A label as the table holds it.
    pub fn key(&self, key: &str) -> Option<&str> {
        self.columns.get_key_value(key).map(|(key, _)| key.as_str())
    }
}
