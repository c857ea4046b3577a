//! One error type for the engine: a kind that decides status codes, and one line with cause and remedy.

/// What went wrong, in the classes that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such container, image, sandbox or exec. Docker: 404.
    NotFound,
    /// The name or id is taken, or the state forbids it. Docker: 409.
    Conflict,
    /// The request itself is wrong. Docker: 400.
    Invalid,
    /// The registry or the host refused it for lack of rights. Docker: 401 or 403.
    Denied,
    /// A registry or another peer cannot be reached.
    Unreachable,
    /// A registry takes no connections, or says that it cannot serve for now.
    Unavailable,
    /// This kernel or host cannot do it.
    Unsupported,
    /// A fault of the engine. Docker: 500.
    Internal,
}

/// An engine error.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// Its class.
    pub kind: ErrorKind,
    /// Cause and remedy in one line.
    pub message: String,
}

impl EngineError {
    /// An error of a class with its message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Nothing there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// A bad request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// In the way of something that is.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// A fault of the engine, from an error with its causes.
    pub fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(ErrorKind::Internal, format!("{what}: {}", base::error::chain(error)))
    }
}
