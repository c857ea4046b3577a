//! What drivers offer on one node: pools of devices, each by its newest slices.
//! Source: `structured/internal/incubating/pools_incubating.go`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use api::quantity::Quantity;

use super::Devices;
use super::types::{Device, Place, Slice};
use crate::types::Node;

/// A counter, by the set and its name there.
pub type Counter<'a> = (&'a str, &'a str);

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
    /// Its other slices.
    pub others: Vec<&'a Arc<Slice>>,
    /// What its devices share.
    pub counters: HashMap<Counter<'a>, Quantity>,
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
        let mut others: Vec<&Arc<Slice>> = Vec::new();
        // Only where slices are missing it is looked at those that have nothing of the node.
        if i64::try_from(here.len()) != Ok(count) {
            let names: HashSet<&str> = here.iter().map(|slice| slice.name.as_str()).collect();
            for slice in self.slices_of(driver, name).filter(|slice| !names.contains(slice.name.as_str())) {
                if slice.generation > generation {
                    return None;
                }
                if slice.generation == generation {
                    others.push(slice);
                }
            }
        }
        let mut pool = Pool { driver, name, problem: None, here, others, counters: HashMap::new() };
        let all = pool.here.len() + pool.others.len();
        if i64::try_from(all) != Ok(count) {
            pool.problem = Some(Problem::Incomplete);
        } else if !pool.is_sound() {
            pool.problem = Some(Problem::Invalid);
        }
        Some(pool)
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

    /// All devices.
    pub fn all_devices(&self) -> impl Iterator<Item = &'a Device> {
        self.here.iter().chain(&self.others).flat_map(|slice| slice.devices.iter())
    }

    /// Whether something has to become true of a device before its pod is bound. Source: `poolHasBindingConditions`.
    fn waits(&self) -> bool {
        self.problem.is_none() && self.devices().any(|(_, device)| !device.binding_conditions.is_empty())
    }

    /// Reads the counters; whether what is told of the pool makes sense.
    /// Source: `getAndValidateCounterSets`, `validateDeviceNames`, `validateDeviceCounterConsumption`.
    fn is_sound(&mut self) -> bool {
        let mut sets = HashSet::new();
        for (set, counters) in self.here.iter().chain(&self.others).flat_map(|slice| &slice.counters) {
            if !sets.insert(set.as_str()) {
                return false;
            }
            let counters = counters.iter().map(|(name, amount)| ((set.as_str(), name.as_str()), *amount));
            self.counters.extend(counters);
        }
        let mut names = HashSet::new();
        self.devices().all(|(_, device)| names.insert(device.id.device.as_str()))
            && self
                .all_devices()
                .all(|device| consumption(device).all(|(counter, _)| self.counters.contains_key(&counter)))
    }
}

/// What a device takes of which counters.
pub fn consumption(device: &Device) -> impl Iterator<Item = (Counter<'_>, Quantity)> {
    device.consumes.iter().flat_map(|(set, counters)| {
        counters.iter().map(|(name, amount)| ((set.as_str(), name.as_str()), *amount))
    })
}
