//! Pull: verified content from the places that may have it, layers in parallel, progress in Docker's words.
//!
//! Registries on loopback speak plain HTTP, all others HTTPS with the host's CA roots, where nothing else is said
//! ([`crate::RegistryConfig`]). Source: OCI distribution specification.

use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use crate::Error;
use crate::archive::parse;
use crate::blobs::DOCUMENT_BYTES_MAX;
use crate::digest::Digest;
use crate::document::{self, Descriptor, Index, Manifest, Platform, Shape};
use crate::download::{Download, Pace};
use crate::hosts::RegistryConfig;
use crate::reference::Reference;
use crate::refusal::Refusal;
use crate::source::{Document, Source};
use crate::state::Origin;
use crate::store::Store;

pub(crate) const PARALLEL_LAYERS: usize = 4;
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
pub(crate) const USER_AGENT: &str = concat!("skiff/", env!("CARGO_PKG_VERSION"));

/// How registries are reached, and how long they are waited for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registries {
    pub(crate) config: RegistryConfig,
    pub(crate) pace: Pace,
}

/// A user of a registry; never logged.
#[derive(Clone)]
pub struct Credentials {
    /// User name; empty where the password is an identity token, which a registry exchanges.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl Credentials {
    /// The token that stands for who asks. Source: containerd's `ParseAuth`; Docker's name for who has one.
    pub(crate) fn identity_token(&self) -> Option<&str> {
        let has_name = !self.username.is_empty() && self.username != "<token>";
        Some(self.password.as_str()).filter(|token| !has_name && !token.is_empty())
    }

    /// Whether they are for nobody.
    pub(crate) fn is_nobody(&self) -> bool {
        self.username.is_empty() && self.password.is_empty()
    }
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
pub(crate) struct Report(pub(crate) mpsc::Sender<Progress>);

impl Report {
    pub(crate) async fn say(&self, id: &str, status: impl Into<String>) {
        let _ =
            self.0.send(Progress { id: id.to_owned(), status: status.into(), current: 0, total: 0 }).await;
    }

    /// Counts are replaced by later ones, so a listener that is slow may miss some.
    pub(crate) fn count(&self, id: &str, status: &str, current: u64, total: u64) {
        let _ = self.0.try_send(Progress { id: id.to_owned(), status: status.to_owned(), current, total });
    }
}

/// An image's name, and the places that may have it.
struct Remote {
    store: Store,
    reference: Reference,
    sources: Vec<Source>,
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
        let remote = Remote::open(self, name, credentials).await?;
        let tag = remote.reference.tag.clone().unwrap_or_default();
        report.say(&tag, format!("Pulling from {}", remote.reference.path)).await;
        let (manifest, manifest_digest, repo_digest) = remote.manifest().await?;
        let id = manifest.config.digest.clone();
        remote.config(&manifest.config).await?;
        // Boxed, because the compiler cannot prove a closure's future `Send` for every lifetime.
        let mut downloads: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
        for layer in &manifest.layers {
            downloads.push(Box::pin(remote.layer(layer, &report)));
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
}

impl Remote {
    async fn open(store: &Store, name: &str, credentials: Option<Credentials>) -> Result<Self, Error> {
        let reference = Reference::parse(name)?;
        let (registries, wanted) = (store.registries.clone(), reference.clone());
        let sources = run_blocking(move || {
            let endpoints = registries.config.endpoints(&wanted.domain)?;
            let open =
                |endpoint| Source::open(endpoint, &wanted, credentials.clone(), registries.pace.window);
            endpoints.into_iter().map(open).collect()
        })
        .await?;
        Ok(Self { store: store.clone(), reference, sources })
    }

    /// The manifest for this machine, its digest, and that of what the name means (an index, maybe).
    async fn manifest(&self) -> Result<(Manifest, Digest, Digest), Error> {
        let told = self.document(self.reference.digest.as_ref()).await?;
        let named = told.digest.clone();
        if self.shape(&told)? == Shape::Manifest {
            return Ok((self.keep(&told)?, named.clone(), named));
        }
        let index: Index = parse(&told.bytes, "an index")?;
        let host = Platform::host();
        let entry = index.select(&host).ok_or_else(|| {
            let message = format!(
                "no matching manifest for {}/{} in the manifest list entries",
                host.os, host.architecture
            );
            Error::NotInRegistry(message)
        })?;
        let told = self.document(Some(&entry.digest)).await?;
        if told.bytes.len() as u64 != entry.size || self.shape(&told)? != Shape::Manifest {
            let message = format!("{} is not the manifest that its index names", entry.digest);
            return Err(Error::Invalid(message));
        }
        Ok((self.keep(&told)?, told.digest, named))
    }

    /// What the name or a digest means to the first place that knows it. Where none does, the last one's answer counts,
    /// which is the registry's own.
    async fn document(&self, digest: Option<&Digest>) -> Result<Document, Error> {
        let tag = self.reference.tag.as_deref().unwrap_or_default();
        let version = digest.map_or(tag, Digest::as_str);
        let may = |source: &&Source| if digest.is_some() { source.can.pull } else { source.can.resolve };
        let (mut failed, mut before) = (None, Vec::new());
        for source in self.sources.iter().filter(may) {
            let told = source.manifest(version).await.and_then(|told| verified(told, digest));
            match told {
                Ok(told) => return Ok(told),
                Err(refusal) => {
                    let error = refusal.told(&self.reference, source.host());
                    before.extend(failed.replace(error).map(|error: Error| error.to_string()));
                }
            }
        }
        let nobody =
            || Error::Invalid(format!("no place may be asked for {}: see its hosts.toml", self.reference));
        Err(failed.unwrap_or_else(nobody).after(&before))
    }

    fn shape(&self, told: &Document) -> Result<Shape, Error> {
        let shape = document::shape(&parse(&told.bytes, "a manifest")?, &told.media_type);
        shape.map_err(|why| Error::Invalid(format!("{}: {why}", self.reference.familiar())))
    }

    /// Puts a manifest of an image into the store.
    fn keep(&self, told: &Document) -> Result<Manifest, Error> {
        let manifest: Manifest = parse(&told.bytes, "a manifest")?;
        let checked = manifest.check_types();
        checked.map_err(|why| Error::Invalid(format!("{}: {why}", self.reference.familiar())))?;
        self.store.inner.blobs.put(&told.bytes)?;
        Ok(manifest)
    }

    async fn config(&self, config: &Descriptor) -> Result<(), Error> {
        if config.size > DOCUMENT_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the image's configuration of {} bytes is too large",
                config.size
            )));
        }
        self.download().bring(config, |_| {}).await
    }

    async fn layer(&self, layer: &Descriptor, report: &Report) -> Result<(), Error> {
        let id = short(&layer.digest);
        if self.store.inner.blobs.contains(&layer.digest) {
            report.say(id, "Already exists").await;
            return Ok(());
        }
        report.say(id, "Pulling fs layer").await;
        let counted = |done| report.count(id, "Downloading", done, layer.size);
        self.download().bring(layer, counted).await?;
        report.say(id, "Download complete").await;
        Ok(())
    }

    fn download(&self) -> Download<'_> {
        let pace = self.store.registries.pace;
        Download { store: &self.store, sources: &self.sources, reference: &self.reference, pace }
    }
}

/// A document, if it has the digest by which it was asked for.
fn verified(told: Document, wanted: Option<&Digest>) -> Result<Document, Refusal> {
    match wanted {
        Some(wanted) if *wanted != told.digest => {
            let (expected, actual) = (wanted.to_string(), told.digest.to_string());
            Err(Refusal::Here(Error::Digest { expected, actual }))
        }
        _ => Ok(told),
    }
}

pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::io("work on image content", io::Error::other(error))),
    }
}

pub(crate) fn short(digest: &Digest) -> &str {
    &digest.hex()[..12]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        let user = Credentials { username: "u".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{user:?}").contains("secret"));
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod live_tests;
