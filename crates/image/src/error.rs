//! What can go wrong with images.

use std::io;
use std::path::Path;

/// An error of the image store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of this name.
    #[error("No such image: {0}")]
    NotFound(String),
    /// The registry has no such image.
    #[error("{0}")]
    NotInRegistry(String),
    /// Not a name, or not a digest.
    #[error("invalid reference {0:?}: {1}")]
    Reference(String, &'static str),
    /// Something still uses it, or the name means two things.
    #[error("{0}")]
    Conflict(String),
    /// An archive, manifest or configuration that is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// Content whose digest is not the one that was asked for.
    #[error("content is {actual}, expected {expected}: the source is corrupt, fetch it again")]
    Digest {
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The registry refused it.
    #[error("{0}")]
    Denied(String),
    /// The registry cannot be reached, or fails.
    #[error("{0}")]
    Unreachable(String),
    /// The registry takes no connections, or says that it cannot serve for now.
    #[error("{0}")]
    Unavailable(String),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// An I/O error with what was tried.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    /// With what others had said before.
    pub(crate) fn after(self, before: &[String]) -> Self {
        if before.is_empty() {
            return self;
        }
        let told = |text: String| format!("{text} (before that: {})", before.join("; "));
        match self {
            Self::NotInRegistry(text) => Self::NotInRegistry(told(text)),
            Self::Invalid(text) => Self::Invalid(told(text)),
            Self::Denied(text) => Self::Denied(told(text)),
            Self::Unreachable(text) => Self::Unreachable(told(text)),
            Self::Unavailable(text) => Self::Unavailable(told(text)),
            other => other,
        }
    }
}

/// Adds what was tried to an I/O error.
pub(crate) trait During<T> {
    /// `what` was tried.
    fn during(self, what: &str) -> Result<T, Error>;
    /// `what` was tried on `path`.
    fn during_on(self, what: &str, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: &str) -> Result<T, Error> {
        self.map_err(|error| Error::io(what, error))
    }
    fn during_on(self, what: &str, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::io(format!("{what} {}", path.display()), error))
    }
}
