//! Pull and push: verified content, layers in parallel, progress in Docker's words.
//!
//! Registries on loopback speak plain HTTP, all others HTTPS with the host's CA roots.
//! Source: OCI distribution specification, through the `oci-client` library.

use std::io::{self, Read, Write};
use std::time::Duration;

use flate2::write::GzEncoder;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use crate::Error;
use crate::archive::parse;
use crate::blobs::DOCUMENT_BYTES_MAX;
use crate::digest::Digest;
use crate::document::{self, Descriptor, Index, Manifest, Platform};
use crate::error::During;
use crate::manifests::{Identity, Manifests, Refusal, in_words};
use crate::reference::Reference;
use crate::state::{ImageRecord, Origin};
use crate::store::Store;

const PARALLEL_LAYERS: usize = 4;
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection that brings nothing for so long is dead.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const USER_AGENT: &str = concat!("skiff/", env!("CARGO_PKG_VERSION"));
/// Progress is told once per so many bytes.
const REPORT_BYTES: u64 = 512 * 1024;

/// A user of a registry; never logged.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A step of a pull or push, in the words of Docker's messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The layer; empty for the whole image.
    pub id: String,
    /// `Downloading`, `Pull complete`, ….
    pub status: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all, if known.
    pub total: u64,
}

/// Tells progress; nobody has to listen.
#[derive(Clone)]
struct Report(mpsc::Sender<Progress>);

impl Report {
    async fn say(&self, id: &str, status: impl Into<String>) {
        let _ =
            self.0.send(Progress { id: id.to_owned(), status: status.into(), current: 0, total: 0 }).await;
    }

    /// Counts are replaced by later ones, so a listener that is slow may miss some.
    fn count(&self, id: &str, status: &str, current: u64, total: u64) {
        let _ = self.0.try_send(Progress { id: id.to_owned(), status: status.to_owned(), current, total });
    }
}

/// A registry, one repository and who asks.
struct Remote {
    client: Client,
    manifests: Manifests,
    reference: Reference,
    image: oci_client::Reference,
}

impl Store {
    /// Pulls a name from its registry. The image is complete when this returns; its tag comes from the registry.
    pub async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Digest, Error> {
        let lease = self.lease();
        let report = Report(progress);
        let remote = Remote::open(name, credentials, RegistryOperation::Pull).await?;
        let tag = remote.reference.tag.clone().unwrap_or_default();
        report.say(&tag, format!("Pulling from {}", remote.reference.path)).await;
        let (manifest, manifest_digest, repo_digest) = remote.manifest(self).await?;
        let id = manifest.config.digest.clone();
        remote.config(self, &manifest.config).await?;
        // Boxed, because the compiler cannot prove a closure's future `Send` for every lifetime.
        let mut downloads: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
        for layer in &manifest.layers {
            downloads.push(Box::pin(remote.layer(self, layer, &report)));
        }
        let () = futures::stream::iter(downloads).buffer_unordered(PARALLEL_LAYERS).try_collect().await?;
        let layers: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
        let names = match remote.reference.digest {
            Some(_) => Vec::new(),
            None => vec![remote.reference.to_string()],
        };
        let repo = remote.reference.with_digest(&repo_digest);
        let (store, adopted, blobs) = (self.clone(), id.clone(), layers.clone());
        let full_name = remote.reference.to_string();
        for layer in &layers {
            report.say(short(layer), "Extracting").await;
        }
        let up_to_date = run_blocking(move || {
            // Of this work and not of the caller: it goes on when nobody waits for the pull any more.
            let _lease = lease;
            let before = store.resolve(&full_name).ok().map(|found| found.image.id);
            store.adopt(&adopted, &blobs, Some(manifest_digest), names, Origin::Registry, Some(repo))?;
            Ok(before == Some(adopted))
        })
        .await?;
        for layer in layers.iter().filter(|_| !up_to_date) {
            report.say(short(layer), "Pull complete").await;
        }
        report.say("", format!("Digest: {repo_digest}")).await;
        let status = if up_to_date { "Image is up to date" } else { "Downloaded newer image" };
        report.say("", format!("Status: {status} for {}", remote.reference.familiar())).await;
        Ok(id)
    }

    /// Pushes a name to its registry. Layers without compression are sent with gzip. Answers the manifest's digest.
    pub async fn push(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Digest, Error> {
        let _lease = self.lease();
        let report = Report(progress);
        let resolved = self.resolve(name)?;
        let remote = Remote::open(&resolved.reference, credentials, RegistryOperation::Push).await?;
        report.say("", format!("The push refers to repository [{}]", remote.reference.repository())).await;
        let record = self.record_of(&resolved.image.id)?;
        let store = self.clone();
        let (layers, manifest) =
            run_blocking(move || store.manifest_to_push(&resolved.image.id, &record)).await?;
        let mut uploads: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
        for layer in &layers {
            uploads.push(Box::pin(remote.upload(self, layer, &report)));
        }
        let () = futures::stream::iter(uploads).buffer_unordered(PARALLEL_LAYERS).try_collect().await?;
        let parsed: Manifest = parse(&manifest, "a manifest")?;
        remote.upload(self, &parsed.config, &report).await?;
        let digest = Digest::of(&manifest);
        let size = manifest.len();
        let media_type = if parsed.media_type.is_empty() { document::MANIFEST } else { &parsed.media_type };
        let content_type = http_header(media_type)
            .ok_or_else(|| Error::Invalid(format!("{media_type:?} is no media type")))?;
        let sent = remote.client.push_manifest_raw(&remote.image, manifest, content_type).await;
        sent.map_err(|error| remote.failed(error))?;
        let tag = remote.reference.tag.clone().unwrap_or_default();
        report.say("", format!("{tag}: digest: {digest} size: {size}")).await;
        let pushed = remote.reference.with_digest(&digest);
        self.change(|state| {
            // One that was removed meanwhile stays removed.
            if let Some(image) = state.images.get_mut(&parsed.config.digest) {
                image.repo_digests.insert(pushed);
            }
            Ok(())
        })?;
        Ok(digest)
    }

    fn record_of(&self, id: &Digest) -> Result<ImageRecord, Error> {
        let state = self.inner.state.lock();
        state.images.get(id).cloned().ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// The layers as they are sent and the manifest that names them: the stored one where nothing had to be compressed.
    fn manifest_to_push(
        &self,
        id: &Digest,
        record: &ImageRecord,
    ) -> Result<(Vec<Descriptor>, Vec<u8>), Error> {
        let stored = self.inner.blobs.document(&record.manifest)?;
        let mut manifest: Manifest = parse(&stored, "a manifest")?;
        let mut changed = false;
        for (descriptor, layer) in manifest.layers.iter_mut().zip(&record.layers) {
            if layer.media_type == document::LAYER {
                let (digest, size) = self.compress(&layer.blob)?;
                *descriptor = Descriptor {
                    media_type: format!("{}+gzip", document::LAYER),
                    digest,
                    size,
                    ..descriptor.clone()
                };
                changed = true;
            }
        }
        if manifest.config.digest != *id {
            return Err(Error::Invalid(format!("the manifest of {id} names another configuration")));
        }
        let bytes = match changed {
            true => serde_json::to_vec(&manifest).map_err(|error| Error::io("write a manifest", error))?,
            false => stored,
        };
        Ok((manifest.layers, bytes))
    }

    fn compress(&self, blob: &Digest) -> Result<(Digest, u64), Error> {
        let mut encoder = GzEncoder::new(self.inner.blobs.ingest()?, flate2::Compression::default());
        io::copy(&mut self.inner.blobs.open_blob(blob)?, &mut encoder).during("compress a layer")?;
        self.inner.blobs.commit(encoder.finish().during("compress a layer")?, None)
    }
}

impl Remote {
    async fn open(
        name: &str,
        credentials: Option<Credentials>,
        operation: RegistryOperation,
    ) -> Result<Self, Error> {
        let reference = Reference::parse(name)?;
        let (registry, repository) = (reference.domain.clone(), reference.path.clone());
        let image = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_string()),
            (None, tag) => {
                oci_client::Reference::with_tag(registry, repository, tag.clone().unwrap_or_default())
            }
        };
        let protocol = match is_loopback(&reference.domain) {
            true => ClientProtocol::HttpsExcept(vec![reference.domain.clone()]),
            false => ClientProtocol::Https,
        };
        let config = ClientConfig {
            protocol,
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        let credentials = credentials.filter(|user| !user.username.is_empty());
        let auth = match credentials.clone() {
            Some(user) => RegistryAuth::Basic(user.username, user.password),
            None => RegistryAuth::Anonymous,
        };
        let client = Client::try_from(config)
            .map_err(|error| Error::Unreachable(format!("no client for registries: {error}")))?;
        let token = client.auth(&image, &auth, operation).await;
        let token = token.map_err(|error| failed(&reference, error))?;
        let identity = match (token, credentials) {
            (Some(token), _) => Identity::Token(token),
            (None, Some(user)) => Identity::User(user),
            (None, None) => Identity::Nobody,
        };
        Ok(Self { client, manifests: Manifests::new(identity)?, reference, image })
    }

    /// The manifest for this machine, its digest, and that of what the name means (an index, maybe).
    async fn manifest(&self, store: &Store) -> Result<(Manifest, Digest, Digest), Error> {
        let (bytes, named) = self.fetch_manifest(&self.image).await?;
        let kind: serde_json::Value = parse(&bytes, "a manifest")?;
        if kind.get("manifests").is_none() {
            store.inner.blobs.put(&bytes)?;
            return Ok((parse(&bytes, "a manifest")?, named.clone(), named));
        }
        let index: Index = parse(&bytes, "an index")?;
        let host = Platform::host();
        let entry = index.select(&host).ok_or_else(|| {
            let message = format!(
                "no matching manifest for {}/{} in the manifest list entries",
                host.os, host.architecture
            );
            Error::NotInRegistry(message)
        })?;
        let (bytes, digest) =
            self.fetch_manifest(&self.image.clone_with_digest(entry.digest.to_string())).await?;
        if digest != entry.digest {
            return Err(Error::Digest { expected: entry.digest.to_string(), actual: digest.to_string() });
        }
        store.inner.blobs.put(&bytes)?;
        Ok((parse(&bytes, "a manifest")?, digest, named))
    }

    async fn fetch_manifest(&self, image: &oci_client::Reference) -> Result<(Vec<u8>, Digest), Error> {
        let (registry, repository) = (image.resolve_registry(), image.repository());
        let scheme = if is_loopback(registry) { "http" } else { "https" };
        let version = image.digest().or(image.tag()).unwrap_or("latest");
        let url = format!("{scheme}://{registry}/v2/{repository}/manifests/{version}");
        let bytes = self.manifests.fetch(&url).await.map_err(|refusal| self.refused(refusal))?;
        let digest = Digest::of(&bytes);
        if let Some(wanted) = image.digest()
            && wanted != digest.as_str()
        {
            return Err(Error::Digest { expected: wanted.to_owned(), actual: digest.to_string() });
        }
        Ok((bytes, digest))
    }

    async fn config(&self, store: &Store, config: &Descriptor) -> Result<(), Error> {
        if config.size > DOCUMENT_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the image's configuration of {} bytes is too large",
                config.size
            )));
        }
        self.download(store, config, |_| {}).await
    }

    async fn layer(&self, store: &Store, layer: &Descriptor, report: &Report) -> Result<(), Error> {
        let id = short(&layer.digest).to_owned();
        if store.inner.blobs.contains(&layer.digest) {
            report.say(&id, "Already exists").await;
            return Ok(());
        }
        report.say(&id, "Pulling fs layer").await;
        let (counts, total, name) = (report.clone(), layer.size, id.clone());
        self.download(store, layer, move |done| counts.count(&name, "Downloading", done, total)).await?;
        report.say(&id, "Download complete").await;
        Ok(())
    }

    /// Brings one piece of content into the store; more bytes than were promised are refused.
    async fn download(
        &self,
        store: &Store,
        what: &Descriptor,
        counted: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        if store.inner.blobs.contains(&what.digest) {
            return Ok(());
        }
        let stream = self.client.pull_blob_stream(&self.image, what.digest.as_str()).await;
        let stream = stream.map_err(|error| self.failed(error))?;
        let bridge = SyncIoBridge::new(StreamReader::new(stream.stream));
        let (store, expected, size) = (store.clone(), what.digest.clone(), what.size);
        let from = self.reference.domain.clone();
        run_blocking(move || {
            let mut ingest = store.inner.blobs.ingest()?;
            let mut source = Counting { inner: bridge.take(size + 1), done: 0, told: 0, counted };
            io::copy(&mut source, &mut ingest).map_err(|error| {
                Error::Unreachable(format!("{expected} from {from} broke off: {error}: try again"))
            })?;
            ingest.flush().during("write content")?;
            store.inner.blobs.commit(ingest, Some(&expected)).map(drop)
        })
        .await
    }

    async fn upload(&self, store: &Store, what: &Descriptor, report: &Report) -> Result<(), Error> {
        let id = short(&what.digest).to_owned();
        let digest = what.digest.as_str();
        if self.client.blob_exists(&self.image, digest).await.map_err(|error| self.failed(error))? {
            report.say(&id, "Layer already exists").await;
            return Ok(());
        }
        report.say(&id, "Preparing").await;
        let file = tokio::fs::File::from_std(store.inner.blobs.open_blob(&what.digest)?);
        let (counts, total, name) = (report.clone(), what.size, id.clone());
        let mut done = 0;
        let stream = ReaderStream::with_capacity(file, 256 * 1024)
            .inspect_ok(move |chunk| {
                done += chunk.len() as u64;
                counts.count(&name, "Pushing", done, total);
            })
            .map_err(OciDistributionError::from);
        let sent = self.client.push_blob_stream(&self.image, stream, digest, Some(what.size)).await;
        sent.map_err(|error| self.failed(error))?;
        report.say(&id, "Pushed").await;
        Ok(())
    }

    fn failed(&self, error: OciDistributionError) -> Error {
        failed(&self.reference, error)
    }

    /// Why there is no manifest, with its remedy.
    fn refused(&self, refusal: Refusal) -> Error {
        let name = self.reference.familiar();
        match refusal {
            Refusal::Status(StatusCode::NOT_FOUND, _) => absent(&self.reference),
            Refusal::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, said) => {
                denied(&self.reference, &said)
            }
            Refusal::Status(status, said) => {
                let said = if said.is_empty() { said } else { format!(" ({said})") };
                let domain = &self.reference.domain;
                Error::Unreachable(format!("registry {domain} answered {status}{said} for {name}: try again"))
            }
            Refusal::Connection(error) => out_of_reach(&self.reference, &error),
            Refusal::TooLarge => Error::Invalid(format!(
                "the manifest of {name} is larger than the {DOCUMENT_BYTES_MAX} bytes that one may have"
            )),
        }
    }
}

/// A registry's failure with its remedy.
fn failed(reference: &Reference, error: OciDistributionError) -> Error {
    use OciDistributionError as E;
    match &error {
        E::AuthenticationFailure(said) => denied(reference, &in_words("", said)),
        E::UnauthorizedError { .. } => denied(reference, ""),
        E::ImageManifestNotFoundError(_) | E::ServerError { code: 404, .. } => absent(reference),
        E::ServerError { code: 401 | 403, message, .. } => denied(reference, &in_words("", message)),
        E::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| (&error.code, error)) {
                Some((
                    OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound,
                    _,
                )) => absent(reference),
                Some((OciErrorCode::Denied, told)) => denied(reference, &in_words("denied", &told.message)),
                Some((OciErrorCode::Unauthorized, told)) => {
                    denied(reference, &in_words("unauthorized", &told.message))
                }
                _ => Error::Unreachable(format!("{}: {error}", reference.domain)),
            }
        }
        E::DigestError(_) => Error::Invalid(format!("{}: {error}", reference.familiar())),
        _ => out_of_reach(reference, &error),
    }
}

/// `said`: the registry's own words, if it had any.
fn denied(reference: &Reference, said: &str) -> Error {
    let (name, domain) = (reference.familiar(), &reference.domain);
    let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
    Error::Denied(format!(
        "access to {name} denied by {domain}{said}: the repository does not exist or needs `docker login`"
    ))
}

fn absent(reference: &Reference) -> Error {
    Error::NotInRegistry(format!("manifest for {} not found: manifest unknown", reference.familiar()))
}

fn out_of_reach(reference: &Reference, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Unreachable(format!(
        "registry {} cannot be reached for {}: {}",
        reference.domain,
        reference.familiar(),
        base::error::chain(error)
    ))
}

/// Tells how much was read.
struct Counting<R, F> {
    inner: R,
    done: u64,
    told: u64,
    counted: F,
}

impl<R: Read, F: Fn(u64)> Read for Counting<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.done += read as u64;
        if self.done - self.told >= REPORT_BYTES {
            self.told = self.done;
            (self.counted)(self.done);
        }
        Ok(read)
    }
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::io("work on image content", io::Error::other(error))),
    }
}

fn short(digest: &Digest) -> &str {
    &digest.hex()[..12]
}

fn http_header(value: &str) -> Option<http::HeaderValue> {
    http::HeaderValue::from_str(value).ok()
}

/// Whether a registry is on this machine: only those are spoken to without TLS.
fn is_loopback(domain: &str) -> bool {
    let host = match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => domain.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_spoken_to_in_the_clear() {
        for loopback in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert!(is_loopback(loopback), "{loopback}");
        }
        for other in ["docker.io", "10.0.0.1:5000", "localhost.example.org", "127.0.0.1.nip.io", "[fd00::1]"]
        {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let user = Credentials { username: "u".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{user:?}").contains("secret"));
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod live_tests;
