//! What the pods on nodes say about other pods: each different term once, with the nodes where it holds.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::groups::Slot;
use super::topology::Spoken;
use crate::types::{Labels, Spec, Term};

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

/// Terms with the nodes where they stand.
type Held<K> = HashMap<K, Standing, RandomState>;

/// Terms by a label that each pod which they mean has to have, key and then value: of very many terms few may mean a pod.
#[derive(Debug)]
struct ByLabel<K> {
    by_label: HashMap<String, HashMap<String, Held<K>, RandomState>, RandomState>,
    /// Those that ask for no certain label.
    others: Held<K>,
}

impl<K> Default for ByLabel<K> {
    fn default() -> Self {
        Self { by_label: HashMap::default(), others: HashMap::default() }
    }
}

impl<K: std::hash::Hash + Eq> ByLabel<K> {
    /// Counts a term up or down on a node; gives by how much the number of different terms has changed.
    fn bump(&mut self, term: &Term, key: K, slot: Slot, by: i64) -> i64 {
        let Some((label, value)) = term.pods.selector.label() else {
            return bump(&mut self.others, key, slot, by);
        };
        let values = self.by_label.entry(label.to_owned()).or_default();
        let held = values.entry(value.to_owned()).or_default();
        let more = bump(held, key, slot, by);
        if held.is_empty() {
            values.remove(value);
        }
        if values.is_empty() {
            self.by_label.remove(label);
        }
        more
    }

    /// The terms that may mean pods with these labels.
    fn of<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = (&'a K, &'a Standing)> {
        let found = labels.iter().filter_map(|(label, value)| self.by_label.get(label)?.get(value));
        found.flatten().chain(&self.others)
    }
}

/// The terms of all pods on nodes.
#[derive(Debug, Default)]
pub struct Terms {
    anti: ByLabel<Arc<Term>>,
    wishes: ByLabel<(Arc<Term>, Wish)>,
    /// The labels of nodes that they speak of.
    pub(super) spoken: Spoken,
}

impl Terms {
    /// A pod came to a node (`by` is 1) or left it (−1).
    pub(super) fn change(&mut self, spec: &Spec, slot: Slot, by: i64) {
        for term in &spec.anti_affinity {
            let more = self.anti.bump(term, term.clone(), slot, by);
            self.spoken.change(&term.topology_key, more);
        }
        let required = spec.affinity.iter().map(|term| (term, Wish::Required));
        let preferred = spec.preferred.iter().map(|(weight, term)| (term, Wish::Weight(*weight)));
        for (term, wish) in required.chain(preferred) {
            let more = self.wishes.bump(term, (term.clone(), wish), slot, by);
            self.spoken.change(&term.topology_key, more);
        }
    }

    /// Terms that pods on nodes require not to be with others, as far as those may have these labels.
    pub fn anti<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = (&'a Arc<Term>, &'a Standing)> {
        self.anti.of(labels)
    }

    /// Terms that count when nodes are compared, as far as they may mean pods with these labels.
    pub fn wishes<'a>(
        &'a self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a (Arc<Term>, Wish), &'a Standing)> {
        self.wishes.of(labels)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::{Matcher, Selector};

    fn spec(selector: serde_json::Value) -> Spec {
        let selector = Selector::new(serde_json::from_value(selector).unwrap());
        let term = Arc::new(Term { pods: Matcher::within("ns", selector), topology_key: "zone".into() });
        Spec { anti_affinity: vec![term.clone()], preferred: vec![(5, term)], ..Spec::default() }
    }

    #[test]
    fn of_many_terms_those_are_looked_at_that_may_mean_a_pod() {
        let mut terms = Terms::default();
        let of_app = |app: &str| spec(json!({ "matchLabels": { "app": app } }));
        let loose = spec(json!({ "matchExpressions": [{ "key": "app", "operator": "Exists" }] }));
        let listed =
            spec(json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["7", "8"] }] }));
        let one = spec(json!({ "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["x"] }] }));
        let all: Vec<Spec> =
            (0..1000).map(|app| of_app(&app.to_string())).chain([loose, listed, one]).collect();
        for spec in all.iter().chain(&all) {
            terms.change(spec, 3, 1);
        }
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        for (pairs, looked_at) in [
            (vec![("app", "7")], 3),
            (vec![("app", "7"), ("tier", "x")], 4),
            (vec![("tier", "y")], 2),
            (vec![], 2),
        ] {
            let labels = labels(&pairs);
            assert_eq!(terms.anti(&labels).count(), looked_at, "{pairs:?}");
            assert_eq!(terms.wishes(&labels).count(), looked_at, "{pairs:?}");
            assert!(terms.anti(&labels).all(|(_, standing)| standing[&3] == 2));
        }
        for spec in all.iter().chain(&all) {
            terms.change(spec, 3, -1);
        }
        assert!(terms.anti.by_label.is_empty() && terms.anti.others.is_empty() && terms.spoken.is_empty());
    }
}
