//! The order in which nodes are looked at: one of each zone in turn, so that the first nodes that take a pod are spread
//! over zones. Source: `nodeTree`.

use std::collections::BTreeMap;

use super::groups::Slot;
use crate::types::Node;

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// The nodes by zone, and one after the other.
#[derive(Debug, Default)]
pub struct Order {
    zones: Vec<(String, Vec<Slot>)>,
    zone_of: BTreeMap<Slot, String>,
    slots: Vec<Slot>,
}

/// Region and zone as one text. Source: `utilnode.GetZoneKey`.
fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.labels.get(key).map_or("", String::as_str);
    format!("{}:\u{0}:{}", label(REGION), label(ZONE))
}

impl Order {
    /// The nodes.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn put(&mut self, slot: Slot, node: &Node) {
        let zone = zone_of(node);
        if self.zone_of.get(&slot) == Some(&zone) {
            return;
        }
        self.take(slot);
        match self.zones.iter_mut().find(|(name, _)| *name == zone) {
            Some((_, slots)) => slots.push(slot),
            None => self.zones.push((zone.clone(), vec![slot])),
        }
        self.zone_of.insert(slot, zone);
        self.arrange();
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        if self.take(slot) {
            self.arrange();
        }
    }

    fn take(&mut self, slot: Slot) -> bool {
        let Some(zone) = self.zone_of.remove(&slot) else { return false };
        if let Some((_, slots)) = self.zones.iter_mut().find(|(name, _)| *name == zone) {
            slots.retain(|held| *held != slot);
        }
        self.zones.retain(|(_, slots)| !slots.is_empty());
        true
    }

    fn arrange(&mut self) {
        let longest = self.zones.iter().map(|(_, slots)| slots.len()).max().unwrap_or(0);
        let zones = &self.zones;
        let rounds = (0..longest).flat_map(|at| zones.iter().filter_map(move |(_, slots)| slots.get(at)));
        self.slots = rounds.copied().collect();
    }
}
