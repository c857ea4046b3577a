//! What drivers offer on one node: pools of devices, each by its newest slices.
//! Source: `structured/internal/incubating/pools_incubating.go`.

use std::collections::btree_map::Values;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use api::quantity::Quantity;

use super::Devices;
use super::types::{Amounts, Device, Place, Slice};
use crate::types::Node;

/// A counter, by the set and its name there.
pub type Counter<'a> = (&'a str, &'a str);

/// The slices of a pool that a driver told of together, by name. What they say together is found out once after each change
/// of one of them, and not for each node.
#[derive(Debug, Default)]
pub struct Generation {
    slices: BTreeMap<String, Arc<Slice>>,
    facts: OnceLock<Facts>,
}

/// What slices say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    /// Whether no two devices have the same name.
    distinct: bool,
    /// Whether no two sets of counters have the same name, and devices consume those that there are.
    counted: bool,
}

impl Generation {
    /// A slice is there, or gone.
    pub(super) fn put(&mut self, name: &str, slice: Option<Arc<Slice>>) {
        match slice {
            Some(slice) => self.slices.insert(name.to_owned(), slice),
            None => self.slices.remove(name),
        };
        self.facts = OnceLock::new();
    }

    /// Whether it has no slices.
    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Whether it is known what its slices say together.
    #[cfg(test)]
    pub(super) fn is_known(&self) -> bool {
        self.facts.get().is_some()
    }

    fn facts(&self) -> Facts {
        *self.facts.get_or_init(|| Facts::of(self.slices.values()))
    }
}

impl Facts {
    /// Source: `getAndValidateCounterSets`, `validateDeviceNames`, `validateDeviceCounterConsumption`.
    fn of<'s>(slices: impl Iterator<Item = &'s Arc<Slice>> + Clone) -> Self {
        let mut sets: HashMap<&str, &Amounts> = HashMap::new();
        let mut each = slices.clone().flat_map(|slice| &slice.counters);
        let once = each.all(|(set, counters)| sets.insert(set, counters).is_none());
        let mut devices = slices.clone().flat_map(|slice| &slice.devices);
        let is_there = |(set, name): Counter<'_>| sets.get(set).is_some_and(|set| set.contains_key(name));
        let counted = once && devices.all(|device| consumption(device).all(|(counter, _)| is_there(counter)));
        Self { distinct: are_distinct(slices), counted }
    }
}

/// Whether no two devices have the same name.
fn are_distinct<'s>(slices: impl Iterator<Item = &'s Arc<Slice>>) -> bool {
    let mut names = HashSet::new();
    slices.flat_map(|slice| &slice.devices).all(|device| names.insert(device.id.device.as_str()))
}

/// What one driver offers under one name.
#[derive(Debug)]
pub struct Pool<'a> {
    /// Driver.
    pub driver: &'a str,
    /// Name.
    pub name: &'a str,
    /// What keeps its devices from being had.
    pub problem: Option<Problem>,
    /// The slices with devices that may be of the node, by name.
    pub here: Vec<&'a Arc<Slice>>,
    /// All its slices; none where there are more of them than it is said to have: then it is those of the node.
    whole: Option<&'a Generation>,
}

/// Why the devices of a pool cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Its driver has not told of all of it.
    Incomplete,
    /// What its driver tells makes no sense.
    Invalid,
}

/// Whether a slice has devices of a node.
fn concerns(slice: &Slice, node: &Node) -> bool {
    match &slice.place {
        Place::PerDevice => slice.devices.iter().any(|device| device.place.is_on(node)),
        place => place.is_on(node),
    }
}

impl Devices {
    /// The pools with devices of a node: by driver and name, those last whose devices have to be waited for.
    pub fn pools(&self, node: &Node) -> Vec<Pool<'_>> {
        let mut newest: BTreeMap<(&str, &str), Vec<&Arc<Slice>>> = BTreeMap::new();
        for slice in self.slices_for(&node.name).filter(|slice| concerns(slice, node)) {
            let held = newest.entry((&slice.driver, &slice.pool)).or_default();
            let generation = held.first().map_or(i64::MIN, |first| first.generation);
            if slice.generation > generation {
                held.clear();
            }
            if slice.generation >= generation {
                held.push(slice);
            }
        }
        let pools = newest.into_iter().filter_map(|((driver, name), here)| self.pool(driver, name, here));
        let (last, first): (Vec<_>, Vec<_>) = pools.partition(|pool| pool.waits());
        first.into_iter().chain(last).collect()
    }

    /// A pool with these slices of a node; `None` if it has been replaced by one without any.
    fn pool<'a>(&'a self, driver: &'a str, name: &'a str, mut here: Vec<&'a Arc<Slice>>) -> Option<Pool<'a>> {
        let first = here.first()?;
        let (generation, count) = (first.generation, first.count);
        here.sort_by(|one, other| one.name.cmp(&other.name));
        let generations = self.generations(driver, name)?;
        let whole = generations.get(&generation)?;
        let is_all = |number: usize| i64::try_from(number) == Ok(count);
        let complete = is_all(here.len()) || is_all(whole.slices.len());
        // Only where slices are missing it matters whether there are newer ones.
        let is_newest = generations.last_key_value().is_some_and(|(newest, _)| *newest == generation);
        if !is_all(here.len()) && !is_newest {
            return None;
        }
        let too_many = is_all(here.len()) && whole.slices.len() > here.len();
        let whole = (!too_many).then_some(whole);
        let mut pool = Pool { driver, name, problem: None, here, whole };
        if !complete {
            pool.problem = Some(Problem::Incomplete);
        } else if !pool.is_sound() {
            pool.problem = Some(Problem::Invalid);
        }
        Some(pool)
    }
}

/// Slices of a pool.
enum Slices<'p, 'a> {
    Whole(Values<'a, String, Arc<Slice>>),
    Here(std::slice::Iter<'p, &'a Arc<Slice>>),
}

impl<'a> Iterator for Slices<'_, 'a> {
    type Item = &'a Arc<Slice>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Whole(slices) => slices.next(),
            Self::Here(slices) => slices.next().copied(),
        }
    }
}

impl<'a> Pool<'a> {
    /// The driver and the name, as messages tell of them.
    pub fn id(&self) -> String {
        format!("{}/{}", self.driver, self.name)
    }

    /// The devices that may be of the node.
    pub fn devices(&self) -> impl Iterator<Item = (&'a Arc<Slice>, &'a Device)> {
        self.here.iter().flat_map(|slice| slice.devices.iter().map(|device| (*slice, device)))
    }

    /// All its slices, also those of other nodes.
    fn slices(&self) -> Slices<'_, 'a> {
        match self.whole {
            Some(whole) => Slices::Whole(whole.slices.values()),
            None => Slices::Here(self.here.iter()),
        }
    }

    /// All devices.
    pub fn all_devices(&self) -> impl Iterator<Item = &'a Device> {
        self.slices().flat_map(|slice| slice.devices.iter())
    }

    /// What its devices share.
    pub fn counters(&self) -> HashMap<Counter<'a>, Quantity> {
        let of_set = |(set, counters): &'a (String, Amounts)| {
            counters.iter().map(|(name, amount)| ((set.as_str(), name.as_str()), *amount))
        };
        self.slices().flat_map(|slice| slice.counters.iter().flat_map(of_set)).collect()
    }

    /// Whether something has to become true of a device before its pod is bound. Source: `poolHasBindingConditions`.
    fn waits(&self) -> bool {
        self.problem.is_none() && self.here.iter().any(|slice| slice.waits)
    }

    /// Whether what is told of the pool makes sense. Devices of other nodes may have the names of those here.
    fn is_sound(&self) -> bool {
        let facts = match self.whole {
            Some(whole) => whole.facts(),
            None => Facts::of(self.here.iter().copied()),
        };
        facts.counted && (facts.distinct || are_distinct(self.here.iter().copied()))
    }
}

/// What a device takes of which counters.
pub fn consumption(device: &Device) -> impl Iterator<Item = (Counter<'_>, Quantity)> {
    device.consumes.iter().flat_map(|(set, counters)| {
        counters.iter().map(|(name, amount)| ((set.as_str(), name.as_str()), *amount))
    })
}
