//! Volumes of pods: directories made, filled, owned and mounted, and taken away again.

pub(crate) mod atomic;
pub(crate) mod claim;
pub(crate) mod csi;
pub(crate) mod device;
pub(crate) mod directories;
pub(crate) mod empty_dir;
pub(crate) mod host_path;
pub(crate) mod image;
pub(crate) mod kind;
pub(crate) mod ledger;
pub(crate) mod leftovers;
pub(crate) mod mounts;
pub(crate) mod nfs;
mod objects;
pub(crate) mod ownership;
pub(crate) mod payload;
pub(crate) mod set_up;
pub(crate) mod staged;
pub(crate) mod stats;
pub(crate) mod subpath;
pub(crate) mod tear_down;
pub(crate) mod threads;
pub(crate) mod trust;

pub(crate) use directories::PodDirectories;

/// A volume that cannot be had, for an event: which, and why. The words are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Making it failed.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    SetUp {
        /// The volume: its name in the pod, or that of the PersistentVolume.
        volume: String,
        /// What was tried and failed.
        cause: String,
    },
    /// Getting it ready for use as a device failed.
    #[error("MapVolume.MapPodDevice failed for volume \"{volume}\" : {cause}")]
    Map {
        /// The PersistentVolume.
        volume: String,
        /// What was tried and failed.
        cause: String,
    },
    /// Its driver could not get it ready for any pod.
    #[error("{} failed for volume \"{volume}\" : {cause}", staging(*device))]
    Stage {
        /// The PersistentVolume.
        volume: String,
        /// It is to be used as a device.
        device: bool,
        /// What was tried and failed.
        cause: String,
    },
    /// The file system of one that is in use could not be made as large as its volume.
    #[error("NodeExpandVolume.NodeExpandVolume failed for volume \"{volume}\" : {cause}")]
    Growth {
        /// The PersistentVolume.
        volume: String,
        /// What was tried and failed.
        cause: String,
    },
    /// It cannot be begun with, or does not come to an end.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {cause}"
    )]
    Unprocessed {
        /// Its name in the pod.
        volume: String,
        /// What it waits for.
        cause: String,
    },
    /// It is to be used on other nodes.
    #[error("MountVolume.NodeAffinity check failed for volume \"{0}\" : no matching NodeSelectorTerms")]
    Elsewhere(String),
    /// What is begun could not be noted, and so was not begun.
    #[error("Unable to attach or mount volumes: what is noted of the pod's volumes: {0}")]
    Ledger(String),
}

/// Upstream's name of that step.
fn staging(device: bool) -> &'static str {
    if device { "MapVolume.SetUpDevice" } else { "MountVolume.MountDevice" }
}

impl VolumeError {
    /// The event's reason. Source: `pkg/kubelet/events`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Map { .. } | Self::Stage { device: true, .. } => "FailedMapVolume",
            Self::Growth { .. } => "VolumeResizeFailed",
            _ => "FailedMount",
        }
    }
}
