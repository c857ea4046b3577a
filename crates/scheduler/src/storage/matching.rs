//! Where the volumes of a pod are, and which volumes its claims would get on a node. Pure.
//! Source: `volumebinding/binder.go`, `component-helpers/storage/volume.FindMatchingVolume`.

use std::sync::Arc;
use std::time::Duration;

use api::Key;
use api::quantity::Quantity;

use super::Storage;
use super::types::{Claim, Class, Volume};
use crate::types::{Node, Pod};

/// A bound claim's volume is elsewhere.
pub const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
/// No volume for a claim, and none can be made.
pub const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
/// A volume could be made, but for its size.
pub const NO_SPACE: &str = "node(s) did not have enough free storage";
/// A bound claim's volume is nowhere.
pub const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
/// A claim's volume does not wait for its pod, and is not there.
pub const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";

/// The claims of a pod.
#[derive(Debug)]
pub struct PodClaims<'a> {
    storage: &'a Storage,
    bound: Vec<&'a Arc<Claim>>,
    /// Those that wait for the pod, the smallest first.
    late: Vec<&'a Arc<Claim>>,
}

/// Which volumes claims get, and for which one is to be made.
#[derive(Debug, Default)]
pub struct Found<'a> {
    /// Volumes that are there.
    pub bindings: Vec<(&'a Arc<Volume>, &'a Arc<Claim>)>,
    /// Claims whose volume is to be made.
    pub provisions: Vec<&'a Arc<Claim>>,
}

/// What is to be done for a pod's claims before it is bound.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The pod's node.
    pub node: String,
    /// Volumes to be kept for claims.
    pub bindings: Vec<(Arc<Volume>, Arc<Claim>)>,
    /// Claims whose volume is to be made.
    pub provisions: Vec<Arc<Claim>>,
    /// So long it may take.
    pub timeout: Duration,
}

impl<'a> PodClaims<'a> {
    /// The claims of a pod, `None` if it has none, or why it can go nowhere. Source: `podHasPVCs`,
    /// `GetPodVolumeClaims`.
    pub fn of(pod: &Pod, storage: &'a Storage) -> Result<Option<Self>, String> {
        let mut claims = Self { storage, bound: Vec::new(), late: Vec::new() };
        let mut unbound = false;
        for used in pod.claims() {
            let name = &*used.name;
            let key = Key::new(pod.key.namespace.as_str(), name);
            let Some(claim) = storage.claim(&key) else {
                return Err(if used.own {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    )
                } else {
                    not_found(name)
                });
            };
            if claim.lost {
                let volume = &claim.volume;
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.terminating {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if used.own {
                is_own(pod, claim)?;
            }
            if claim.bound {
                claims.bound.push(claim);
            } else if claim.is_late(storage.class(&claim.class).map(|class| &**class)) {
                claims.late.push(claim);
            } else {
                unbound = true;
            }
        }
        if unbound {
            return Err(UNBOUND.to_owned());
        }
        claims.late.sort_by_key(|claim| size(claim));
        let any = !claims.bound.is_empty() || !claims.late.is_empty();
        Ok(any.then_some(claims))
    }

    /// Whether any of them waits for the pod.
    pub fn wait(&self) -> bool {
        !self.late.is_empty()
    }

    /// Which volumes the claims have and would get on a node, or why the pod cannot go there. Source: `FindPodVolumes`.
    pub fn find(&self, node: &Node) -> Result<Found<'a>, Vec<&'static str>> {
        let mut reasons = Vec::new();
        let volumes = self.bound.iter().map(|claim| self.storage.volume(&claim.volume));
        // The first claim that is not well ends the search.
        let bad = volumes.into_iter().find(|volume| volume.is_none_or(|volume| !volume.reaches(node)));
        if let Some(Some(_)) = bad {
            reasons.push(NODE_CONFLICT);
        }
        let found = self.find_late(node).map_err(|reason| reasons.push(reason));
        if let Some(None) = bad {
            reasons.push(NO_VOLUME);
        }
        match found {
            Ok(found) if reasons.is_empty() => Ok(found),
            _ => Err(reasons),
        }
    }

    fn find_late(&self, node: &Node) -> Result<Found<'a>, &'static str> {
        let (mut free, mut found) = (Vec::new(), Found::default());
        for claim in &self.late {
            match self.storage.node_of(claim) {
                Some(chosen) if chosen != node.name => return Err(BIND_CONFLICT),
                Some(_) => found.provisions.push(*claim),
                None => free.push(*claim),
            }
        }
        for claim in free {
            let taken: Vec<&str> = found.bindings.iter().map(|(volume, _)| name(volume)).collect();
            match best(self.storage, claim, node, &taken) {
                Some(volume) => found.bindings.push((volume, claim)),
                None => found.provisions.push(claim),
            }
        }
        for claim in &found.provisions {
            let class = self.storage.class(&claim.class).ok_or(BIND_CONFLICT)?;
            if !class.provisions() || !class.allows(node) {
                return Err(BIND_CONFLICT);
            }
            if !has_space(self.storage, claim, class, node) {
                return Err(NO_SPACE);
            }
        }
        Ok(found)
    }

    /// What is to be done for the pod on a node; `None` if nothing is, or if it cannot go there.
    pub fn plan(&self, node: &Node, timeout: Duration) -> Option<Plan> {
        let found = self.find(node).ok()?;
        if found.bindings.is_empty() && found.provisions.is_empty() {
            return None;
        }
        let owned = |(volume, claim): (&Arc<Volume>, &Arc<Claim>)| (volume.clone(), claim.clone());
        Some(Plan {
            node: node.name.clone(),
            bindings: found.bindings.into_iter().map(owned).collect(),
            provisions: found.provisions.into_iter().cloned().collect(),
            timeout,
        })
    }

    /// How much of each class's volumes would be used on a node: what is asked for, and what there is. If no volume that
    /// is there would be used, what can be made counts. Source: `VolumeBinding.Score`.
    pub fn usage(&self, node: &Node) -> Vec<(i64, i64)> {
        let Ok(found) = self.find(node) else { return Vec::new() };
        let mut usage: Vec<(&str, i64, i64)> = Vec::new();
        let mut add = |class: &'a str, asked: i64, offered: i64, again: bool| match usage
            .iter_mut()
            .find(|(held, ..)| *held == class)
        {
            Some((_, all_asked, all_offered)) => {
                *all_asked = all_asked.saturating_add(asked);
                *all_offered = if again { all_offered.saturating_add(offered) } else { offered };
            }
            None => usage.push((class, asked, offered)),
        };
        for (volume, claim) in &found.bindings {
            add(&volume.class, size(claim).value(), volume.size.value(), true);
        }
        if found.bindings.is_empty() {
            for claim in &found.provisions {
                let left = self
                    .storage
                    .class(&claim.class)
                    .and_then(|class| space(self.storage, claim, class, node));
                if let Some(left) = left {
                    add(&claim.class, size(claim).value(), left.value(), false);
                }
            }
        }
        usage.into_iter().map(|(_, asked, offered)| (asked, offered)).collect()
    }
}

/// What the API server says of a claim that is not there.
pub(crate) fn not_found(claim: &str) -> String {
    format!("persistentvolumeclaim {claim:?} not found")
}

/// Source: `ephemeral.VolumeIsForPod`.
fn is_own(pod: &Pod, claim: &Claim) -> Result<(), String> {
    if claim.owner == *pod.uid {
        return Ok(());
    }
    let (key, pod) = (&claim.version.key, &pod.key);
    Err(format!("PVC {key} was not created for pod {pod} (pod is not owner)"))
}

fn name(volume: &Volume) -> &str {
    &volume.version.key.name
}

fn size(claim: &Claim) -> Quantity {
    claim.size.unwrap_or(Quantity::ZERO)
}

/// The volume that a claim would get on a node: what is kept for it, else the smallest that fits.
fn best<'a>(storage: &'a Storage, claim: &Claim, node: &Node, taken: &[&str]) -> Option<&'a Arc<Volume>> {
    let mut smallest: Option<&Arc<Volume>> = None;
    for volume in storage.of_class(&claim.class) {
        let holder = storage.holder(volume);
        let fits = !taken.contains(&name(volume))
            && holder.is_none_or(|holder| holder.is(claim))
            && volume.size >= size(claim)
            && volume.mode == claim.mode
            && volume.attributes == claim.attributes
            && !volume.terminating;
        if !fits {
            continue;
        }
        if holder.is_some() {
            return volume.reaches(node).then_some(volume);
        }
        let better = smallest.is_none_or(|smallest| volume.size < smallest.size);
        let will_do = better
            && volume.available
            && claim.selector.as_ref().is_none_or(|selector| selector.matches(&volume.labels))
            && claim.access.iter().all(|mode| volume.access.contains(mode))
            && volume.reaches(node);
        if will_do {
            smallest = Some(volume);
        }
    }
    smallest
}

/// Whether a claim's volume would have room where a node reaches it. Source: `hasEnoughCapacity`.
fn has_space(storage: &Storage, claim: &Claim, class: &Class, node: &Node) -> bool {
    let told = claim.size.is_some() && storage.tells_capacity(&class.provisioner);
    !told || space(storage, claim, class, node).is_some()
}

/// What is left for a class where a node reaches it, if it is enough for a claim's volume.
fn space(storage: &Storage, claim: &Claim, class: &Class, node: &Node) -> Option<Quantity> {
    let asked = claim.size?;
    if !storage.tells_capacity(&class.provisioner) {
        return None;
    }
    let mut enough = storage.capacities(&class.name).filter(|capacity| {
        capacity.most().is_some_and(|most| most.value() >= asked.value())
            && capacity.nodes.matches(&node.labels)
    });
    enough.next().map(|capacity| capacity.left.unwrap_or(Quantity::ZERO))
}
