//! Volumes of pods: directories made, filled, owned and mounted, and taken away again.

pub(crate) mod atomic;
pub(crate) mod directories;
pub(crate) mod host_path;
pub(crate) mod mounts;
pub(crate) mod ownership;
pub(crate) mod payload;
pub(crate) mod subpath;

pub(crate) use directories::PodDirectories;

/// A volume that cannot be had, for the `FailedMount` event: which, and why.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
pub(crate) struct VolumeError {
    /// Its name in the pod.
    pub(crate) volume: String,
    /// What was tried and failed.
    pub(crate) cause: String,
}
