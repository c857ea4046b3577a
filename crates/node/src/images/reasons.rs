//! Why a container has no image, in upstream's reasons and words. Pure.
//! Sources: `pkg/kubelet/images/{types,image_manager}.go`, `k8s.io/cri-api/pkg/errors`. `SignatureValidationFailed` is never
//! given: no signatures are looked at.

use engine_api::{EngineError, ErrorKind};

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What the container waits with.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Whether trying again can help.
    pub(crate) retry: bool,
}

/// An image that nothing is known of may not be asked for.
pub(super) fn never(image: &str) -> Missing {
    let message = format!("Container image \"{image}\" is not present with pull policy of Never");
    Missing { reason: "ErrImageNeverPull", message, retry: true }
}

/// No image can have this name.
pub(super) fn invalid_name(image: &str, error: &EngineError) -> Missing {
    let message = format!("Failed to apply default image tag \"{image}\": {error}");
    Missing { reason: "InvalidImageName", message, retry: false }
}

/// What is there cannot be looked at.
pub(super) fn not_inspected(image: &str, error: &dyn std::fmt::Display) -> Missing {
    let message = format!("Failed to inspect image \"{image}\": {error}");
    Missing { reason: "ImageInspectError", message, retry: true }
}

/// No registry gave it.
pub(super) fn not_pulled(image: &str, error: &EngineError) -> Missing {
    let remedy = format!(
        "check the name and the way to its registry, or put the image here with: skiff build -t {image} . or: skiff \
         load -i FILE"
    );
    let (reason, message) = match error.kind {
        ErrorKind::Unavailable => (
            "RegistryUnavailable",
            format!("image pull failed for {image} because the registry is unavailable: {error}; {remedy}"),
        ),
        _ => ("ErrImagePull", format!("failed to pull image \"{image}\": {error}; {remedy}")),
    };
    Missing { reason, message, retry: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unavailable_registry_has_a_reason_of_its_own() {
        let of = |kind| not_pulled("r.example/x", &EngineError::new(kind, "answered 503"));
        let unavailable = of(ErrorKind::Unavailable);
        assert_eq!(unavailable.reason, "RegistryUnavailable");
        let start = "image pull failed for r.example/x because the registry is unavailable: answered 503";
        assert!(unavailable.message.starts_with(start), "{}", unavailable.message);
        // A manifest that lies is no wrong name: it may be right tomorrow.
        for kind in [ErrorKind::Invalid, ErrorKind::Denied, ErrorKind::NotFound, ErrorKind::Unreachable] {
            assert_eq!((of(kind).reason, of(kind).retry), ("ErrImagePull", true));
        }
    }
}
