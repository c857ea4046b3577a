//! Volumes that only one pod may have, or one node's pods. Source: `plugins/volumerestrictions`.

use std::collections::BTreeSet;

use api::Key;

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Refusal};
use crate::storage::matching::not_found;
use crate::types::{Pod, PodVolume};

const DISK: &str = "node(s) had no available disk";
const IN_USE: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

/// Claims of one pod alone are in no other's use, and disks are where nobody has them.
pub(super) struct VolumeRestrictions;

/// The claims that a pod names.
fn named(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec.volumes.iter().filter_map(|volume| match volume {
        PodVolume::Claim(name) => Some(name.as_str()),
        _ => None,
    })
}

fn disk_conflict(pod: &Pod, other: &Pod) -> bool {
    pod.disks().any(|disk| other.disks().any(|held| disk.conflicts(held)))
}

struct Free<'a> {
    pod: &'a Pod,
    /// Claims that only one pod may have.
    alone: BTreeSet<&'a str>,
    /// How many uses of them others make.
    in_use: usize,
    disks: bool,
}

impl Free<'_> {
    fn uses(&self, other: &Pod) -> usize {
        let near = other.key.namespace == self.pod.key.namespace;
        if near { named(other).filter(|name| self.alone.contains(name)).count() } else { 0 }
    }
}

impl Check for Free<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        if self.disks && state.pods.iter().any(|placed| disk_conflict(self.pod, &placed.pod)) {
            return Some(Refusal::resolvable(DISK));
        }
        (self.in_use > 0).then(|| Refusal::resolvable(IN_USE))
    }

    fn add(&mut self, pod: &Pod, _state: &NodeState) {
        self.in_use += self.uses(pod);
    }

    fn remove(&mut self, pod: &Pod, _state: &NodeState) {
        self.in_use = self.in_use.saturating_sub(self.uses(pod));
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        let mut free = Free { pod, alone: BTreeSet::new(), in_use: 0, disks: pod.disks().next().is_some() };
        for name in named(pod) {
            let key = Key::new(pod.key.namespace.as_str(), name);
            let Some(claim) = cluster.storage.claim(&key) else {
                return PreFilter::Refuse(Refusal::lasting(not_found(name)));
            };
            if claim.access.iter().any(|mode| mode == "ReadWriteOncePod") && free.alone.insert(name) {
                free.in_use += cluster.storage.users(&key);
            }
        }
        if free.disks || free.in_use > 0 { PreFilter::Check(Box::new(free)) } else { PreFilter::Skip }
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::PodLeft(_) | Event::Claim(None, _))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::PodLeft(left) => {
                left.key.namespace == pod.key.namespace
                    && (disk_conflict(pod, left)
                        || named(pod).any(|name| named(left).any(|held| held == name)))
            }
            Event::Claim(None, claim) => pod.uses(&claim.version.key),
            _ => false,
        }
    }
}
