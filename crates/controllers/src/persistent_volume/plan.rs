//! What is to become of a claim, and of a volume. Pure. Source: `persistentvolume/pv_controller.go`, and
//! `component-helpers/storage/volume/pv_helpers.go`.

use std::cmp::Ordering;
use std::sync::Arc;

use reconcile::EventType;

use super::types::{BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, Class, MIGRATED_TO, PROVISIONED_BY, Volume};
use crate::selector::Select;

/// An event: type, reason and message.
pub(super) type Said = (EventType, &'static str, String);

/// What is to become of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClaimStep {
    /// It waits, for what the event says.
    Wait(Option<Said>),
    /// It was bound, and its volume is gone or another's.
    Lost(&'static str, &'static str),
    /// It is bound to a volume, by its name.
    Bind(String),
    /// It gets the default class, which was not there when it was made.
    Classify(String),
    /// Somebody else is to make its volume.
    Provision(String),
    /// Nobody can make its volume.
    Unprovisionable(String),
}

/// What a claim is decided by.
pub(super) struct Around<'a> {
    /// The volume that it names, or all that could be its own.
    pub(super) volumes: &'a [Arc<Volume>],
    /// The claim's class, if there is one of its name.
    pub(super) class: Option<&'a Class>,
    /// The class of those that name none.
    pub(super) default_class: Option<&'a str>,
    /// Pods of the claim that have no node.
    pub(super) waiting: &'a [String],
}

/// Source: `syncClaim`.
pub(super) fn plan_claim(claim: &Claim, around: &Around<'_>) -> ClaimStep {
    let named = || {
        let name = &claim.spec.volume_name;
        around.volumes.iter().map(Arc::as_ref).find(|volume| volume.metadata.name == *name)
    };
    if claim.has(BIND_COMPLETED) {
        plan_bound(claim, named())
    } else if claim.spec.volume_name.is_empty() {
        plan_unbound(claim, around)
    } else {
        plan_named(claim, named())
    }
}

/// Source: `syncBoundClaim`.
fn plan_bound(claim: &Claim, volume: Option<&Volume>) -> ClaimStep {
    let lost = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    match volume {
        _ if claim.spec.volume_name.is_empty() => ClaimStep::Lost(
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        ),
        None => ClaimStep::Lost("ClaimLost", lost),
        Some(volume) => match &volume.spec.claim_ref {
            Some(held) if held.uid != claim.metadata.uid => ClaimStep::Lost(
                "ClaimMisbound",
                "Two claims are bound to the same volume, this one is bound incorrectly",
            ),
            _ => ClaimStep::Bind(volume.metadata.name.clone()),
        },
    }
}

/// A claim that asks for a volume by name. Source: `syncUnboundClaim`.
fn plan_named(claim: &Claim, volume: Option<&Volume>) -> ClaimStep {
    let Some(volume) = volume else { return ClaimStep::Wait(None) };
    let name = volume.metadata.name.clone();
    if volume.is_for(claim) {
        return ClaimStep::Bind(name);
    }
    if volume.spec.claim_ref.is_some() {
        let message = format!("volume {name:?} already bound to a different claim.");
        return ClaimStep::Wait(Some((EventType::Warning, "FailedBinding", message)));
    }
    match mismatch(claim, volume) {
        None => ClaimStep::Bind(name),
        Some(why) => {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            ClaimStep::Wait(Some((EventType::Warning, "VolumeMismatch", message)))
        }
    }
}

/// Why a volume that was asked for is none for a claim. Source: `checkVolumeSatisfyClaim`.
fn mismatch(claim: &Claim, volume: &Volume) -> Option<String> {
    if volume.metadata.is_terminating() {
        Some(format!("the volume is marked for deletion {:?}", volume.metadata.name))
    } else if volume.size().value() < claim.size().value() {
        Some("requested PV is too small".into())
    } else if volume.class() != claim.class() {
        Some("storageClassName does not match".into())
    } else if volume.mode() != claim.mode() {
        Some("incompatible volumeMode".into())
    } else if !volume.allows(&claim.spec.access_modes) {
        Some("incompatible accessMode".into())
    } else {
        None
    }
}

/// A claim that takes any volume that fits. Source: `syncUnboundClaim`.
fn plan_unbound(claim: &Claim, around: &Around<'_>) -> ClaimStep {
    let late = around.class.is_some_and(|class| class.volume_binding_mode == "WaitForFirstConsumer");
    if let Some(volume) = best(claim, around.volumes, late) {
        return ClaimStep::Bind(volume.metadata.name.clone());
    }
    if let Some(class) = around.default_class.filter(|_| !claim.says_class()) {
        return ClaimStep::Classify(class.to_owned());
    }
    if late && !claim.has_node() {
        let (reason, message) = match around.waiting {
            [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".into()),
            [pod] => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
        };
        return ClaimStep::Wait(Some((EventType::Normal, reason, message)));
    }
    match (claim.class(), around.class) {
        ("", _) => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            ClaimStep::Wait(Some((EventType::Normal, "FailedBinding", message.into())))
        }
        (name, None) => ClaimStep::Unprovisionable(format!("storageclass.storage.k8s.io {name:?} not found")),
        (_, Some(Class { provisioner, .. })) if let Some(driver) = driver_of(provisioner) => {
            ClaimStep::Provision(driver.to_owned())
        }
        // What upstream's own plugins made before drivers did.
        (_, Some(class)) if class.provisioner.starts_with("kubernetes.io/") => {
            ClaimStep::Unprovisionable(format!("no volume plugin matched name: {}", class.provisioner))
        }
        (_, Some(class)) => ClaimStep::Provision(class.provisioner.clone()),
    }
}

/// Drivers that stand in for upstream's own plugins of old. Source: `csi-translation-lib`.
const MIGRATED: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/azure-file", "file.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

/// The driver that makes what such a plugin made. Source: `provisionClaimOperationExternal`.
fn driver_of(provisioner: &str) -> Option<&'static str> {
    MIGRATED.iter().find(|(plugin, _)| *plugin == provisioner).map(|(_, driver)| *driver)
}

/// The volume that fits best: with the fewest access modes, then the smallest; what is kept for the claim goes before.
/// `late`: only the scheduler chooses among those that are not kept for the claim. Source: `findByClaim`,
/// `FindMatchingVolume`.
fn best<'a>(claim: &Claim, volumes: &'a [Arc<Volume>], late: bool) -> Option<&'a Volume> {
    let fits = |volume: &&Volume| {
        volume.allows(&claim.spec.access_modes)
            && (volume.spec.claim_ref.is_none() || volume.is_for(claim))
            && volume.size().cmp(&claim.size()) != Ordering::Less
            && volume.mode() == claim.mode()
            && volume.attributes() == claim.attributes()
            && !volume.metadata.is_terminating()
    };
    let free = |volume: &&Volume| {
        let selected =
            claim.spec.selector.as_ref().is_none_or(|asked| asked.matches(&volume.metadata.labels));
        !late && volume.status.phase == "Available" && selected && volume.class() == claim.class()
    };
    let modes = |volume: &Volume| {
        let mut modes = volume.spec.access_modes.clone();
        modes.sort_unstable();
        (modes.len(), modes)
    };
    let candidates =
        volumes.iter().map(Arc::as_ref).filter(fits).filter(|volume| volume.is_for(claim) || free(volume));
    candidates.min_by(|a, b| {
        let kept = |volume: &Volume| !volume.is_for(claim);
        let modes = modes(a).cmp(&modes(b));
        modes.then_with(|| kept(a).cmp(&kept(b))).then_with(|| a.size().cmp(&b.size()))
    })
}

/// What is to become of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// Nobody has it.
    Available,
    /// Its claim has it.
    Bound,
    /// Its claim has to take it first.
    Wake,
    /// Its claim cannot take it: what the volume and the claim are told.
    Mismatch(String, String),
    /// Its claim is gone.
    Release(Reclaim),
    /// Its claim has another one.
    Unbind,
}

/// What becomes of a volume without a claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reclaim {
    /// It stays, or somebody else sees to it.
    Leave,
    /// Nobody can do what its policy says: reason and message.
    Fail(&'static str, String),
}

/// Source: `syncVolume`. `claim` is the one that the volume names, if it is there and still the same.
pub(super) fn plan_volume(volume: &Volume, claim: Option<&Claim>) -> VolumeStep {
    match (&volume.spec.claim_ref, claim) {
        (None, _) => VolumeStep::Available,
        (Some(held), _) if held.uid.is_empty() => VolumeStep::Available,
        (Some(_), None) => VolumeStep::Release(reclaim(volume)),
        (Some(_), Some(claim)) if claim.spec.volume_name.is_empty() => {
            if volume.mode() == claim.mode() {
                return VolumeStep::Wake;
            }
            let (claim, name) = (&claim.metadata.name, &volume.metadata.name);
            VolumeStep::Mismatch(
                format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {claim:?} due to incompatible \
                     volumeMode."
                ),
                format!(
                    "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible \
                     volumeMode."
                ),
            )
        }
        (Some(_), Some(claim)) if claim.spec.volume_name == volume.metadata.name => VolumeStep::Bound,
        // It was made for the claim, which took another one: nobody needs it.
        (Some(_), Some(_))
            if volume.has(PROVISIONED_BY) && volume.spec.persistent_volume_reclaim_policy == "Delete" =>
        {
            VolumeStep::Release(reclaim(volume))
        }
        (Some(_), Some(_)) => VolumeStep::Unbind,
    }
}

/// Source: `reclaimVolume`, `findDeletablePlugin`. Upstream's plugins that ran in the controller are gone but for those
/// of directories of the controller's host, which here are nobody's business.
fn reclaim(volume: &Volume) -> Reclaim {
    let name = &volume.metadata.name;
    match volume.spec.persistent_volume_reclaim_policy.as_str() {
        "Retain" => Reclaim::Leave,
        "Recycle" => Reclaim::Fail("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()),
        "Delete" => match volume.metadata.annotations.get(PROVISIONED_BY).map(String::as_str) {
            _ if volume.has(MIGRATED_TO) => Reclaim::Leave,
            Some(maker) if maker.starts_with("kubernetes.io/") => {
                let message = format!("no volume plugin matched name: {maker}");
                Reclaim::Fail("VolumeFailedDelete", message)
            }
            Some(maker) if !maker.is_empty() => Reclaim::Leave,
            _ => {
                let why = "no deletable volume plugin matched";
                let message = format!("error getting deleter volume plugin for volume {name:?}: {why}");
                Reclaim::Fail("VolumeFailedDelete", message)
            }
        },
        _ => Reclaim::Fail(
            "VolumeUnknownReclaimPolicy",
            "Volume has unrecognized PersistentVolumeReclaimPolicy".into(),
        ),
    }
}

/// Whether this controller bound a volume, and so lets it go altogether.
pub(super) fn is_own_binding(volume: &Volume) -> bool {
    volume.has(BOUND_BY_CONTROLLER)
}
