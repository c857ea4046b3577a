//! Building images from Dockerfiles.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{EngineError, RegistryAuth};

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
    /// RUN steps have no network but loopback, in place of the host's.
    pub no_network: bool,
    /// `name:address` that RUN steps find in /etc/hosts.
    pub extra_hosts: Vec<String>,
    /// Credentials for base images, by the registry's domain (`docker.io`, `127.0.0.1:5000`).
    pub registry_auth: BTreeMap<String, RegistryAuth>,
}

/// An image to be made of what a container changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitRequest {
    /// The container's id. It may run; what it writes meanwhile may be in the image or not.
    pub container: String,
    /// The name that the image gets, a local one; empty: none.
    pub reference: String,
    /// Instructions of a Dockerfile over the container's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
    /// USER, VOLUME, WORKDIR, ….
    pub changes: Vec<String>,
    /// Who made it.
    pub author: String,
    /// A remark for the image's history.
    pub comment: String,
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
    /// Makes an image of a container's changes over its image; answers its id.
    async fn commit(&self, request: CommitRequest) -> Result<String, EngineError>;
}
