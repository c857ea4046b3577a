//! Zones that the labels of volumes name. Source: `plugins/volumezone`.

use std::collections::BTreeSet;

use api::Key;

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Refusal};
use crate::storage::Storage;
use crate::storage::matching::not_found;
use crate::storage::types::Volume;
use crate::types::{Labels, Pod, PodVolume};

const CONFLICT: &str = "node(s) had no available volume zone";
/// Labels of zones and regions, each with its name of today.
const KEYS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// The node is in a zone that the pod's volumes name.
pub(super) struct VolumeZone;

/// A label, its name of today, and the values of which the node must have one.
type Zones<'a> = (&'static str, &'static str, BTreeSet<&'a str>);

/// The zones that the labels of a volume name; a label with an empty one says nothing. Source: `LabelZonesToSet`.
fn zones(labels: &Labels) -> impl Iterator<Item = Zones<'_>> {
    KEYS.iter().filter_map(|(key, today)| {
        let values: BTreeSet<&str> = labels.get(*key)?.split("__").map(str::trim).collect();
        (!values.contains("")).then_some((*key, *today, values))
    })
}

/// Source: `getPVbyPod`.
fn zones_of<'a>(pod: &Pod, storage: &'a Storage) -> Result<Vec<Zones<'a>>, String> {
    let mut found = Vec::new();
    for volume in &pod.spec.volumes {
        let PodVolume::Claim(name) = volume else { continue };
        let claim = storage.claim(&Key::new(pod.key.namespace.as_str(), name.as_str()));
        let claim = claim.ok_or_else(|| not_found(name))?;
        if claim.volume.is_empty() {
            let class = claim.class.as_str();
            if class.is_empty() {
                return Err("PersistentVolumeClaim had no pv name and storageClass name".to_owned());
            }
            let class = storage.class(class);
            let class =
                class.ok_or_else(|| format!("storageclass.storage.k8s.io {:?} not found", claim.class))?;
            if claim.is_late(Some(class)) {
                continue;
            }
            return Err("PersistentVolume had no name".to_owned());
        }
        let volume = storage.volume(&claim.volume);
        let volume = volume.ok_or_else(|| format!("persistentvolume {:?} not found", claim.volume))?;
        found.extend(zones(&volume.labels));
    }
    Ok(found)
}

struct Near<'a>(Vec<Zones<'a>>);

impl Check for Near<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let labels = &state.node().labels;
        // A node that says nothing of zones is in a cluster of one.
        if !KEYS.iter().any(|(key, _)| labels.contains_key(*key)) {
            return None;
        }
        let near = |(key, today, values): &Zones<'_>| {
            let value = labels.get(*key).or_else(|| labels.get(*today));
            value.is_some_and(|value| values.contains(value.as_str()))
        };
        (!self.0.iter().all(near)).then(|| Refusal::lasting(CONFLICT))
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        match zones_of(pod, &cluster.storage) {
            Ok(zones) if zones.is_empty() => PreFilter::Skip,
            Ok(zones) => PreFilter::Check(Box::new(Near(zones))),
            Err(why) => PreFilter::Refuse(Refusal::lasting(why)),
        }
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{Claim, Class, NodeAdded, NodeChanged, Volume};
        matches!(event, NodeAdded(_) | NodeChanged(..) | Claim(..) | Volume(..) | Class(None, _))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        let same = |old: &Volume, new: &Volume| zones(&old.labels).eq(zones(&new.labels));
        match event {
            Event::NodeAdded(_) => true,
            Event::NodeChanged(old, new) => old.labels != new.labels,
            Event::Claim(_, claim) => pod.uses(&claim.version.key),
            Event::Volume(old, new) => old.as_ref().is_none_or(|old| !same(old, new)),
            Event::Class(None, class) => class.mode == "WaitForFirstConsumer",
            _ => false,
        }
    }
}
