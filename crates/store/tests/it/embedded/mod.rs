//! The embedded store: the contract on files and in memory, a model, crashes, damage and failing disks.

mod crash;
mod disk;
mod faults;
mod model;
mod random;

use std::sync::Arc;

use store::memory::Memory;
use store::{Backend, Embedded, EmbeddedConfig, Files};

/// Segments and bases so small that a test sees many of them.
pub(crate) const SMALL: EmbeddedConfig =
    EmbeddedConfig { segment_bytes: 1024, ahead_bytes: 512, base_bytes_min: 1, ..EmbeddedConfig::STANDARD };

pub(crate) fn open(backend: impl Backend) -> Arc<Embedded> {
    Embedded::open(Arc::new(backend), SMALL).unwrap()
}

#[tokio::test]
async fn fulfils_the_contract_on_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = Arc::new(Files::open(dir.path().join("store")).unwrap());
    crate::contract::run(Embedded::open(files, EmbeddedConfig::STANDARD).unwrap()).await;
}

#[tokio::test]
async fn fulfils_the_contract_with_small_segments() {
    crate::contract::run(open(Memory::new())).await;
}

#[tokio::test]
async fn a_directory_serves_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::open(dir.path()).unwrap();
    let error = Files::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    drop(files);
    Files::open(dir.path()).unwrap();
}
