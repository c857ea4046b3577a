//! Building images from Dockerfiles.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::EngineError;

/// A build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildRequest {
    /// The unpacked build context.
    pub context: PathBuf,
    /// The Dockerfile, relative to the context; empty: `Dockerfile`.
    pub dockerfile: String,
    /// Names that the result gets.
    pub tags: Vec<String>,
    /// `ARG` values.
    pub build_args: BTreeMap<String, String>,
    /// The stage to stop at; empty: the last.
    pub target: String,
    /// Labels over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// Use no cache.
    pub no_cache: bool,
    /// Ask registries for newer base images.
    pub pull: bool,
    /// Keep the host's CA bundle out of RUN steps.
    pub no_host_certs: bool,
}

/// What a build tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// A line of output, with its line end, as Docker's classic builder prints it.
    Output(String),
    /// The image's id. Comes once, last.
    Built(String),
}

/// Builds images.
#[async_trait]
pub trait Builds: Send + Sync + 'static {
    /// Builds; the stream ends after [`BuildEvent::Built`] or with an error.
    async fn build(
        &self,
        request: BuildRequest,
    ) -> Result<BoxStream<'static, Result<BuildEvent, EngineError>>, EngineError>;
}
