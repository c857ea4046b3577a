//! What the engine remembers about sandboxes and containers: small JSON files, replaced whole.

use std::path::Path;

use engine_api::{ContainerSpec, ContainerState, EngineError, Identity, SandboxSpec};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) spec: SandboxSpec,
    pub(crate) created_at: Timestamp,
    /// The boot in which it was made: in another one nothing of it lives.
    pub(crate) boot_id: String,
    /// It was stopped, or its shim died.
    pub(crate) stopped: bool,
    /// The shim: process and start time (clock ticks since boot), which together name one process of a boot.
    pub(crate) shim: Option<(u32, u64)>,
    /// The ids of its user namespace, where it has one of its own.
    #[serde(default)]
    pub(crate) users: Option<shim::IdRange>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) spec: ContainerSpec,
    pub(crate) created_at: Timestamp,
    pub(crate) state: ContainerState,
    /// Who it was started as.
    #[serde(default)]
    pub(crate) identity: Option<Identity>,
}

/// Writes a record.
pub(crate) fn save<T: Serialize>(path: &Path, record: &T) -> Result<(), EngineError> {
    let failed = |error: &dyn std::fmt::Display| {
        EngineError::new(engine_api::ErrorKind::Internal, format!("writing {}: {error}", path.display()))
    };
    let bytes = serde_json::to_vec(record).map_err(|error| failed(&error))?;
    sys::files::write_atomic(path, &bytes).map_err(|error| failed(&error))
}

/// Reads a record; `None` with a warning where it cannot be read: one broken file must not keep the rest from life.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let read = std::fs::read(path).map_err(|error| error.to_string());
    match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "a record of the engine cannot be read and is left out");
            None
        }
    }
}

/// Removes a file; gone is fine.
pub(crate) fn remove(path: &Path) -> Result<(), EngineError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::internal(&format!("removing {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; gone is fine.
pub(crate) fn remove_dir(path: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::internal(&format!("removing {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}
