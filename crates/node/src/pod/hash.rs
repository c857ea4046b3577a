//! Hashes by which things are told apart.

use k8s_openapi::api::core::v1::Container;
use sha2::{Digest, Sha256};

/// The hash of what restarts a container when it changes: its name and image, in sixteen hexadecimal digits. Source:
/// upstream's `HashContainer`, which covers the same two fields (everything else of a container is immutable).
pub(crate) fn container_hash(container: &Container) -> String {
    let mut hasher = Sha256::new();
    hasher.update(container.name.as_bytes());
    hasher.update([0]);
    hasher.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of several texts in order, each with its length: what is another list has another hash.
pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
