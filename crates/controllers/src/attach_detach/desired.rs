//! What pods need attached: from a pod's volumes over claims to volumes and their drivers.
//! Source: `attachdetach/util.CreateVolumeSpec`, `ProcessPodVolumes`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object};

use super::source::{Handle, handle_of, inline, is_shared, modes_of};
use super::types::{Claim, Driver, Pod, PodVolume, Volume};
use super::world::{Need, PodNeeds, Source, World};
use super::{Worker, decoded};

/// What is known of a pod's volume.
enum Known {
    /// It is to be attached.
    Need(Need),
    /// It is none that is attached.
    Nothing,
    /// That cannot be told now: what it was before still holds.
    Unclear,
}

/// A glance at the bytes: whether a pod may have volumes that are attached. Most have none.
pub(super) fn may_attach(pod: &Object) -> bool {
    const SOURCES: [&str; 9] = [
        "\"persistentVolumeClaim\"",
        "\"ephemeral\"",
        "\"awsElasticBlockStore\"",
        "\"gcePersistentDisk\"",
        "\"azureDisk\"",
        "\"azureFile\"",
        "\"vsphereVolume\"",
        "\"portworxVolume\"",
        "\"cinder\"",
    ];
    std::str::from_utf8(pod.bytes()).is_ok_and(|text| SOURCES.iter().any(|source| text.contains(source)))
}

impl Worker {
    /// What a pod needs as far as the caches tell.
    pub(super) fn needs(&self, world: &World, object: &Object) -> Option<PodNeeds> {
        let pod: Pod = decoded(object)?;
        let node = &pod.spec.node_name;
        let mut made = PodNeeds { uid: pod.metadata.uid.clone(), node: node.clone(), ..PodNeeds::default() };
        if node.is_empty() {
            return None;
        }
        let before = world.pod(&object.key()).filter(|held| held.uid == made.uid).map(|held| &held.needs);
        for volume in &pod.spec.volumes {
            let claim = claim_of(&pod, volume);
            made.claims.extend(claim.clone());
            let known = match claim {
                Some(claim) => self.claimed(&pod, volume, &claim).unwrap_or(Known::Unclear),
                None => self.inlined(&pod, volume),
            };
            let need = match known {
                Known::Need(need) => Some(Arc::new(need)),
                Known::Unclear => before.and_then(|held| held.get(&volume.name)).cloned(),
                Known::Nothing => None,
            };
            made.needs.extend(need.map(|need| (volume.name.clone(), need)));
        }
        if pod.is_terminated() && !world.traits(node).keeps {
            made.needs = BTreeMap::new();
        }
        Some(made)
    }

    /// A volume by a claim; nothing while the claim is not bound, or the volume not there.
    fn claimed(&self, pod: &Pod, volume: &PodVolume, claim: &Key) -> Option<Known> {
        let object = self.claims.get(claim)?;
        let owned = || object.meta().controller().is_some_and(|owner| owner.uid == pod.metadata.uid);
        if volume.ephemeral.is_some() && !owned() {
            return None;
        }
        let claim: Claim = decoded(&object)?;
        if claim.status.phase != "Bound" || claim.spec.volume_name.is_empty() {
            return None;
        }
        let volume: Volume = decoded(&*self.volumes.get(&Key::new("", claim.spec.volume_name.as_str()))?)?;
        if volume.spec.claim_ref.as_ref()?.uid != claim.metadata.uid {
            return None;
        }
        let Some(handle) = handle_of(&volume).filter(|handle| self.is_attachable(handle)) else {
            return Some(Known::Nothing);
        };
        let name = volume.metadata.name.clone();
        let shared = is_shared(&modes_of(&volume));
        Some(Known::Need(need(&pod.spec.node_name, handle, Source::Volume(name.clone()), name, shared)))
    }

    /// A volume that a pod names itself.
    fn inlined(&self, pod: &Pod, volume: &PodVolume) -> Known {
        let made = inline(&volume.in_tree, &volume.name, &pod.metadata.namespace);
        match made.filter(|made| self.is_attachable(&made.handle)) {
            None => Known::Nothing,
            Some(made) => {
                let shared = is_shared(&made.modes);
                let source = Source::Inline(made.spec);
                Known::Need(need(&pod.spec.node_name, made.handle, source, made.name, shared))
            }
        }
    }

    /// Whether a driver's volumes are attached: all but those of drivers that say no. Source: `csiPlugin.skipAttach`.
    fn is_attachable(&self, volume: &Handle) -> bool {
        let driver = self.drivers.get(&Key::new("", volume.driver.as_str()));
        let says = driver.and_then(|driver| decoded::<Driver>(&driver)?.spec.attach_required);
        says.unwrap_or(true)
    }
}

/// The claim of a pod's volume.
fn claim_of(pod: &Pod, volume: &PodVolume) -> Option<Key> {
    let meta = &pod.metadata;
    let name = match &volume.persistent_volume_claim {
        Some(claim) => claim.claim_name.clone(),
        None => {
            volume.ephemeral.as_ref()?;
            format!("{}-{}", meta.name, volume.name)
        }
    };
    Some(Key::new(meta.namespace.as_str(), name))
}

fn need(node: &str, volume: Handle, source: Source, name: String, shared: bool) -> Need {
    Need { id: volume.attachment_on(node), node: node.to_owned(), volume, source, name, shared }
}
