//! Images: names, contents and where a name came from.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ByteStream, EngineError};

/// Who last wrote a tag: decides what `imagePullPolicy: Always` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageOrigin {
    /// Build, load, commit or import: no registry is asked for it.
    Local,
    /// Pulled from a registry.
    Registry,
}

/// The part of an image's configuration that a container starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// User.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths, sorted.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Stop signal.
    pub stop_signal: String,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The configuration's digest: `sha256:…`.
    pub id: String,
    /// The manifest's digest.
    pub manifest_digest: String,
    /// Every tag, normalised (`docker.io/library/x:latest`), with its origin.
    pub tags: BTreeMap<String, ImageOrigin>,
    /// `name@sha256:…` of registries that it was pulled from or pushed to.
    pub repo_digests: Vec<String>,
    /// Size of its layers unpacked, in bytes.
    pub size_bytes: u64,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// `amd64`, ….
    pub architecture: String,
    /// What containers start from.
    pub config: ImageConfig,
    /// The whole configuration document, as stored (JSON).
    pub config_json: String,
    /// Digests of the unpacked layers, the lowest first.
    pub diff_ids: Vec<String>,
    /// Sizes of the unpacked layers in bytes, in the same order.
    pub layer_bytes: Vec<u64>,
}

/// What a name means in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The name, normalised.
    pub reference: String,
    /// The image.
    pub image: Image,
    /// Who last wrote this tag.
    pub origin: ImageOrigin,
}

/// A name of an image, complete as Docker completes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// `docker.io`, `127.0.0.1:5000`.
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    /// `latest`; absent only where a digest stands.
    pub tag: Option<String>,
    /// `sha256:…`, where the name has one.
    pub digest: Option<String>,
}

impl ImageName {
    /// Registry and repository: `docker.io/library/nginx`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

/// Credentials for a registry; never logged.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User name; empty where the password is an identity token, which a registry exchanges.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A step of a pull, push, load or build, in the words of Docker's progress messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The layer or object.
    pub id: String,
    /// `Downloading`, `Pull complete`, ….
    pub status: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all, if known.
    pub total: u64,
}

/// Progress, then the end; an error ends the stream.
pub type ProgressStream = BoxStream<'static, Result<Progress, EngineError>>;

/// Keeps images. References are accepted as users write them and normalised as Docker does.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// What a name says; `Invalid` where no image can have it.
    fn name(&self, reference: &str) -> Result<ImageName, EngineError>;
    /// What a tag, digest, id or unique id prefix means. `NotFound` where nothing does.
    async fn resolve(&self, reference: &str) -> Result<Resolution, EngineError>;
    /// Every image.
    async fn list(&self) -> Result<Vec<Image>, EngineError>;
    /// Pulls a name from its registry; the image is complete when the stream ends without error.
    async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ProgressStream, EngineError>;
    /// Pushes a name to its registry.
    async fn push(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ProgressStream, EngineError>;
    /// Gives an image one more name; the tag is local.
    async fn tag(&self, source: &str, target: &str) -> Result<(), EngineError>;
    /// Takes a name away; the last name takes unused contents with it. Answers as Docker: `Untagged: …`, `Deleted: …`.
    async fn remove(&self, reference: &str, force: bool) -> Result<Vec<(RemovalKind, String)>, EngineError>;
    /// Loads a docker or OCI archive; yields the names loaded, as Docker shows them.
    async fn load(&self, archive: ByteStream) -> Result<Vec<String>, EngineError>;
    /// Makes an image of one layer from a plain root file system archive.
    async fn import(&self, archive: ByteStream, reference: &str) -> Result<String, EngineError>;
    /// Mounts an image's files (by its id) at a directory of the host, where nothing of it can be written or executed, and
    /// keeps the image for a holder. `NotFound` where it is gone. Source: KEP-4639.
    async fn mount_read_only(
        &self,
        holder: &str,
        image_id: &str,
        target: &std::path::Path,
    ) -> Result<(), EngineError>;
    /// Lets go of what is kept for a holder; what was mounted for it has been unmounted.
    async fn release(&self, holder: &str) -> Result<(), EngineError>;
    /// Holders, and the ids of the images that they hold.
    async fn held(&self) -> Result<Vec<(String, String)>, EngineError>;
    /// Writes images as one archive that docker and OCI tools both read.
    async fn save(&self, references: &[String]) -> Result<ByteStream, EngineError>;
}

/// What a removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalKind {
    /// A name went.
    Untagged,
    /// Content went.
    Deleted,
}
