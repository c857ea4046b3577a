//! What the pods on nodes say about other pods: each different term once, with the nodes where it holds.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::groups::Slot;
use super::topology::Spoken;
use crate::types::{Spec, Term};

/// On how many pods of each node a term stands.
pub type Standing = HashMap<Slot, i64, RandomState>;

/// What a term of a pod on a node means for others when nodes are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// It must be with them.
    Required,
    /// It would like to, or not to, be with them.
    Weight(i64),
}

/// The terms of all pods on nodes.
#[derive(Debug, Default)]
pub struct Terms {
    anti: HashMap<Arc<Term>, Standing, RandomState>,
    wishes: HashMap<(Arc<Term>, Wish), Standing, RandomState>,
    /// The labels of nodes that they speak of.
    pub(super) spoken: Spoken,
}

impl Terms {
    /// A pod came to a node (`by` is 1) or left it (−1).
    pub(super) fn change(&mut self, spec: &Spec, slot: Slot, by: i64) {
        for term in &spec.anti_affinity {
            let more = bump(&mut self.anti, term.clone(), slot, by);
            self.spoken.change(&term.topology_key, more);
        }
        let required = spec.affinity.iter().map(|term| (term, Wish::Required));
        let preferred = spec.preferred.iter().map(|(weight, term)| (term, Wish::Weight(*weight)));
        for (term, wish) in required.chain(preferred) {
            let more = bump(&mut self.wishes, (term.clone(), wish), slot, by);
            self.spoken.change(&term.topology_key, more);
        }
    }

    /// Terms that pods on nodes require not to be with others.
    pub fn anti(&self) -> impl Iterator<Item = (&Arc<Term>, &Standing)> {
        self.anti.iter()
    }

    /// Terms that count when nodes are compared.
    pub fn wishes(&self) -> impl Iterator<Item = (&(Arc<Term>, Wish), &Standing)> {
        self.wishes.iter()
    }
}

/// Counts a term up or down on a node; gives by how much the number of different terms has changed.
fn bump<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, Standing, RandomState>,
    key: K,
    slot: Slot,
    by: i64,
) -> i64 {
    use std::collections::hash_map::Entry;
    let (mut held, mut more) = match map.entry(key) {
        Entry::Occupied(held) => (held, 0),
        Entry::Vacant(vacant) => (vacant.insert_entry(Standing::default()), 1),
    };
    let standing = held.get_mut();
    let count = standing.entry(slot).or_insert(0);
    *count += by;
    if *count == 0 {
        standing.remove(&slot);
        if standing.is_empty() {
            held.remove();
            more -= 1;
        }
    }
    more
}
