//! Where the engine keeps what: data that survives a reboot, and run-time state that does not.

use std::path::{Path, PathBuf};

/// The engine's two directories.
///
/// | path | content |
/// |---|---|
/// | `<data>/sandboxes/<id>.json` | a sandbox's record |
/// | `<data>/containers/<id>/container.json` | a container's record; its log beside it, unless the sandbox says where |
/// | `<data>/id-ranges/<number>` | a range of user ids, with the sandbox that has it |
/// | `<run>/skiff-shim-<hash>` | the shim's executable |
/// | `<run>/sandboxes/<id>/` | socket, configuration, `ns/` pins and `shm` of a sandbox |
/// | `<run>/sandboxes/<id>/<container>/` | OCI bundle: `config.json`, `rootfs`, exit record |
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

impl Layout {
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    pub(crate) fn sandbox_record(&self, id: &str) -> PathBuf {
        self.sandboxes().join(format!("{id}.json"))
    }

    /// The ranges of ids that sandboxes have.
    pub(crate) fn id_ranges(&self) -> PathBuf {
        self.data.join("id-ranges")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub(crate) fn container_record(&self, id: &str) -> PathBuf {
        self.container(id).join("container.json")
    }

    pub(crate) fn run_sandboxes(&self) -> PathBuf {
        self.run.join("sandboxes")
    }

    pub(crate) fn run_sandbox(&self, id: &str) -> PathBuf {
        self.run_sandboxes().join(id)
    }

    pub(crate) fn bundle(&self, sandbox: &str, container: &str) -> PathBuf {
        self.run_sandbox(sandbox).join(container)
    }
}

/// A pinned namespace of a sandbox.
pub(crate) fn namespace(run_sandbox: &Path, file: &str) -> PathBuf {
    run_sandbox.join(shim::NAMESPACES_DIR).join(file)
}

/// The shared memory directory of a sandbox's containers.
pub(crate) fn shared_memory(run_sandbox: &Path) -> PathBuf {
    run_sandbox.join("shm")
}
