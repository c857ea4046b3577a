//! What ends a build.

use engine_api::{EngineError, ErrorKind};

/// An error of a build, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Dockerfile is wrong.
    #[error("dockerfile parse error on line {line}: {message}")]
    Parse {
        /// From one.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// An instruction cannot be carried out.
    #[error("{0}")]
    Invalid(String),
    /// A command of a RUN instruction failed.
    #[error("The command '{command}' returned a non-zero code: {code}")]
    Command {
        /// As it was run.
        command: String,
        /// Its exit code.
        code: i32,
    },
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Nobody listens any more.
    #[error("the build was cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    /// In the engine's classes.
    pub(crate) fn into_engine(self) -> EngineError {
        let kind = match &self {
            Self::Parse { .. } | Self::Invalid(_) | Self::Command { .. } => ErrorKind::Invalid,
            Self::Image(
                image::Error::Reference(..) | image::Error::Invalid(_) | image::Error::Digest { .. },
            ) => ErrorKind::Invalid,
            Self::Image(image::Error::Conflict(_)) => ErrorKind::Conflict,
            Self::Image(image::Error::NotFound(_) | image::Error::NotInRegistry(_)) => ErrorKind::NotFound,
            Self::Image(image::Error::Denied(_)) => ErrorKind::Denied,
            Self::Image(image::Error::Unreachable(_)) => ErrorKind::Unreachable,
            Self::Image(image::Error::Unavailable(_)) => ErrorKind::Unavailable,
            Self::Engine(error) => error.kind,
            Self::Image(image::Error::Io { .. }) | Self::Io { .. } | Self::Cancelled => ErrorKind::Internal,
        };
        EngineError::new(kind, base::error::chain(&self))
    }
}
