//! Where the files of a pod lie.

use std::path::{Path, PathBuf};

/// What is noted of a pod's volumes, in its directory on disk.
pub(crate) fn ledger_in(data: &Path) -> PathBuf {
    data.join("volumes.json")
}

/// The directories of one pod. What is derived from API objects (secrets above all) lies under the run directory, which
/// is memory; what the pod itself writes lies under the data directory.
#[derive(Debug, Clone)]
pub(crate) struct PodDirectories {
    root: PathBuf,
    data: PathBuf,
    run: PathBuf,
}

impl PodDirectories {
    /// The directories of the pod `uid`.
    pub(crate) fn new(data_root: &Path, run_root: &Path, uid: &str) -> Self {
        let pod = |root: &Path| root.join("pods").join(uid);
        Self { root: data_root.to_owned(), data: pod(data_root), run: pod(run_root) }
    }

    /// The node's directory, in which those on disk are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The place of a device that a plugin of the node brings, where upstream links to it.
    pub(crate) fn plugin_device(&self, plugin: &str, volume: &str) -> PathBuf {
        self.data.join("volumeDevices").join(plugin).join(volume)
    }

    /// The place of a volume that a plugin of the node mounts, where upstream has it.
    pub(crate) fn plugin_volume(&self, plugin: &str, volume: &str) -> PathBuf {
        self.data.join("volumes").join(plugin).join(volume)
    }

    /// Everything of the pod on disk.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Everything of the pod in memory.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// An `emptyDir` on disk.
    pub(crate) fn disk_volume(&self, name: &str) -> PathBuf {
        self.data.join("volumes").join(name)
    }

    /// A volume in memory.
    pub(crate) fn memory_volume(&self, name: &str) -> PathBuf {
        self.run.join("volumes").join(name)
    }

    /// Where a `subPath` is bound before a container binds it.
    pub(crate) fn subpath(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        self.run.join("subpaths").join(volume).join(container).join(index.to_string())
    }

    /// Where a file system is mounted that is a volume: a directory of a server, or a device.
    pub(crate) fn mounted(&self, name: &str) -> PathBuf {
        self.run.join("mounted").join(name)
    }

    /// What is noted of volumes that outlive the pod.
    pub(crate) fn ledger(&self) -> PathBuf {
        ledger_in(&self.data)
    }

    /// What the pod was granted of the node's resources.
    pub(crate) fn allocation(&self) -> PathBuf {
        self.data.join("allocated.json")
    }

    /// There once a volume that outlives the pod was given to its group.
    pub(crate) fn handed_over(&self, name: &str) -> PathBuf {
        self.data.join("handed-over").join(name)
    }

    /// A file such as `resolv.conf` that every container of the pod sees.
    pub(crate) fn etc(&self, name: &str) -> PathBuf {
        self.run.join("etc").join(name)
    }

    /// The termination message of one run of a container.
    pub(crate) fn termination_message(&self, container: &str, attempt: u32) -> PathBuf {
        self.data.join("containers").join(container).join(format!("{attempt}.message"))
    }
}
