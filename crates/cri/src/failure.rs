//! The engine's errors in the codes of gRPC.

use engine_api::{EngineError, ErrorKind};
use tonic::{Code, Status};

/// The engine's error as the caller gets it.
pub(crate) fn of(error: EngineError) -> Status {
    let code = match error.kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::FailedPrecondition,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Unreachable => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
    };
    Status::new(code, error.message)
}

/// A failed pull. Kubelets know a registry that cannot be reached by the first word. Source: `k8s.io/cri-api`,
/// `pkg/errors`.
pub(crate) fn of_pull(error: EngineError) -> Status {
    match error.kind {
        ErrorKind::Unreachable => Status::unavailable(format!("RegistryUnavailable: {}", error.message)),
        _ => of(error),
    }
}

/// A fault of this host's.
pub(crate) fn internal(what: &str, error: &std::io::Error) -> Status {
    Status::internal(format!("{what}: {error}"))
}
