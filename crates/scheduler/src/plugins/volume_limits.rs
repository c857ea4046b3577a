//! Where the drivers of volumes are, and how many volumes each can have on a node. Source: `plugins/nodevolumelimits`.

use std::collections::{BTreeMap, BTreeSet};

use api::Key;

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Refusal};
use crate::storage::Storage;
use crate::storage::types::CsiNode;
use crate::types::Pod;

const TOO_MANY: &str = "node(s) exceed max volume count";

/// Drivers have no more volumes on a node than they can.
pub(super) struct VolumeLimits;

/// A driver, and its name of a volume.
type Attached<'a> = (&'a str, String);

/// The volumes of drivers that a pod needs. One that is not there yet counts by its claim. Source: `getCSIDriverInfo`.
fn volumes<'a>(pod: &'a Pod, storage: &'a Storage) -> impl Iterator<Item = Attached<'a>> {
    pod.claims().filter_map(|used| {
        let claim = storage.claim(&Key::new(pod.key.namespace.as_str(), &*used.name))?;
        // What another owns is none of this pod's.
        if used.own && claim.owner != *pod.uid {
            return None;
        }
        if let Some(volume) = storage.volume(&claim.volume) {
            return volume.driver.as_ref().map(|(driver, handle)| (driver.as_str(), handle.clone()));
        }
        let provisioner = storage.class(&claim.class)?.provisioner.as_str();
        Some((provisioner, format!("{}", claim.version.key)))
    })
}

struct Fits<'a> {
    storage: &'a Storage,
    needed: BTreeSet<Attached<'a>>,
}

impl Fits<'_> {
    /// A driver that has to be on the node and is not. Source: `checkCSIDriverOnNode`.
    fn missing(&self, node: Option<&CsiNode>) -> Option<&str> {
        let there = |driver: &str| node.is_some_and(|node| node.drivers.contains(driver));
        let mut drivers = self.needed.iter().map(|(driver, _)| *driver);
        drivers.find(|driver| self.storage.needs_driver(driver) && !there(driver))
    }
}

impl Check for Fits<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let node = self.storage.csi_node(&state.node().name);
        if let Some(driver) = self.missing(node.map(|node| &**node)) {
            let reason = format!("{driver} CSI driver is not installed on the node");
            return Some(Refusal { resolvable: true, reasons: vec![reason.into()] });
        }
        let node = node?;
        let limited = |driver: &str| node.limits.contains_key(driver);
        if !self.needed.iter().any(|(driver, _)| limited(driver)) {
            return None;
        }
        let pods = state.pods.iter().flat_map(|placed| volumes(&placed.pod, self.storage));
        // What is attached may be of pods that are gone.
        let attached = self.storage.attached(&state.node().name).filter_map(|volume| {
            let (driver, handle) = self.storage.volume(volume)?.driver.as_ref()?;
            Some((driver.as_str(), handle.clone()))
        });
        let there: BTreeSet<Attached<'_>> = pods.chain(attached).collect();
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for (driver, _) in &there {
            *counts.entry(driver).or_default() += 1;
        }
        let more = self.needed.iter().filter(|volume| !there.contains(*volume));
        let mut over = false;
        for (driver, _) in more {
            let count = counts.entry(driver).or_default();
            *count += 1;
            over |= node.limits.get(*driver).is_some_and(|limit| *count > *limit);
        }
        over.then(|| Refusal::resolvable(TOO_MANY))
    }
}

fn grows(old: &CsiNode, new: &CsiNode) -> bool {
    old.limits.iter().any(|(driver, limit)| new.limits.get(driver).is_none_or(|now| now > limit))
        || !new.drivers.is_subset(&old.drivers)
}

impl Plugin for VolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        let storage = &cluster.storage;
        let needed: BTreeSet<Attached<'_>> = volumes(pod, storage).collect();
        if needed.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Check(Box::new(Fits { storage, needed }))
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{AttachmentGone, Claim, CsiNode, DriverEased, NodeAdded, PodLeft};
        let of_drivers = matches!(event, AttachmentGone | CsiNode(..) | DriverEased);
        of_drivers || matches!(event, NodeAdded(_) | PodLeft(_) | Claim(None, _))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) | Event::AttachmentGone | Event::DriverEased => true,
            Event::CsiNode(old, new) => old.as_ref().is_none_or(|old| grows(old, new)),
            Event::PodLeft(left) => left.claims().next().is_some(),
            Event::Claim(None, claim) => pod.uses(&claim.version.key),
            _ => false,
        }
    }
}
