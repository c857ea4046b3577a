//! The embedded store: the contract, on real files and in memory.

use std::sync::Arc;

use store::memory::Memory;
use store::{Embedded, EmbeddedConfig, Files};

/// Segments and bases so small that a test sees many of them.
pub(crate) const SMALL: EmbeddedConfig =
    EmbeddedConfig { segment_bytes: 4096, ahead_bytes: 512, base_bytes_min: 1, ..EmbeddedConfig::STANDARD };

#[tokio::test]
async fn fulfils_the_contract_on_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = Arc::new(Files::open(dir.path().join("store")).unwrap());
    crate::contract::run(Embedded::open(files, EmbeddedConfig::STANDARD).unwrap()).await;
}

#[tokio::test]
async fn fulfils_the_contract_with_small_segments() {
    crate::contract::run(Embedded::open(Arc::new(Memory::new()), SMALL).unwrap()).await;
}
