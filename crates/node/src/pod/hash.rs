//! The hash of what restarts a container when it changes: its name and image. Source: upstream's `HashContainer`, which
//! covers the same two fields (everything else of a container is immutable).

use k8s_openapi::api::core::v1::Container;
use sha2::{Digest, Sha256};

/// Sixteen hexadecimal digits.
pub(crate) fn container_hash(container: &Container) -> String {
    let mut hasher = Sha256::new();
    hasher.update(container.name.as_bytes());
    hasher.update([0]);
    hasher.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
