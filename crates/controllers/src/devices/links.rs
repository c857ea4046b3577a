//! Who names what, both ways, so that news of a thing find those that name it without a look at all of them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

/// Those that name things, and the things. It is as large as what is named.
#[derive(Debug)]
pub(super) struct Links<W, T> {
    by_who: BTreeMap<W, BTreeSet<T>>,
    by_thing: BTreeMap<T, BTreeSet<W>>,
}

impl<W, T> Default for Links<W, T> {
    fn default() -> Self {
        Self { by_who: BTreeMap::new(), by_thing: BTreeMap::new() }
    }
}

impl<W: Clone + Ord, T: Clone + Ord> Links<W, T> {
    /// What somebody names from now on; nothing if they are gone.
    pub(super) fn set(&mut self, who: &W, things: BTreeSet<T>) {
        let before = self.by_who.remove(who).unwrap_or_default();
        for thing in before.difference(&things) {
            if let Some(known) = self.by_thing.get_mut(thing) {
                known.remove(who);
                if known.is_empty() {
                    self.by_thing.remove(thing);
                }
            }
        }
        for thing in things.difference(&before) {
            self.by_thing.entry(thing.clone()).or_default().insert(who.clone());
        }
        if !things.is_empty() {
            self.by_who.insert(who.clone(), things);
        }
    }

    /// Those that name it.
    pub(super) fn of<Q: Ord + ?Sized>(&self, thing: &Q) -> Vec<W>
    where
        T: Borrow<Q>,
    {
        self.by_thing.get(thing).into_iter().flatten().cloned().collect()
    }

    /// Everything that is named, and by whom.
    pub(super) fn things(&self) -> impl Iterator<Item = (&T, &BTreeSet<W>)> {
        self.by_thing.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_name_a_thing_now_are_found() {
        let mut links: Links<&str, &str> = Links::default();
        links.set(&"one", ["a"].into());
        links.set(&"two", ["a", "b"].into());
        assert_eq!(links.of("a"), ["one", "two"]);
        links.set(&"one", ["b"].into());
        assert_eq!((links.of("a"), links.of("b").len(), links.things().count()), (vec!["two"], 2, 2));
        links.set(&"one", BTreeSet::new());
        links.set(&"two", BTreeSet::new());
        assert!(links.by_who.is_empty() && links.by_thing.is_empty());
    }
}
