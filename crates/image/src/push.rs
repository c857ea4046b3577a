//! Push: what a registry has not is sent, layers in parallel.
//! Source: OCI distribution specification, "Push", through the `oci-client` library.

use std::io;

use flate2::write::GzEncoder;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use crate::Error;
use crate::archive::parse;
use crate::digest::Digest;
use crate::document::{self, Descriptor, Manifest};
use crate::error::During;
use crate::hosts::{Endpoint, read_named};
use crate::reference::Reference;
use crate::refusal::push_failed;
use crate::registry::{
    CONNECT_TIMEOUT, Credentials, PARALLEL_LAYERS, Progress, Report, USER_AGENT, run_blocking, short,
};
use crate::state::ImageRecord;
use crate::store::Store;

/// A registry, one repository and who asks.
struct Remote {
    client: Client,
    reference: Reference,
    image: oci_client::Reference,
}

impl Store {
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
        let remote = Remote::open(self, &resolved.reference, credentials).await?;
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
    /// The first place that takes images and can be reached.
    async fn open(store: &Store, name: &str, credentials: Option<Credentials>) -> Result<Self, Error> {
        let reference = Reference::parse(name)?;
        let (registries, registry) = (store.registries.clone(), reference.domain.clone());
        let silence = registries.pace.window;
        let places = run_blocking(move || {
            let places = registries.config.endpoints(&registry)?;
            let takes = places.into_iter().filter(|place| place.can.push);
            takes.map(|place| Ok((config(&place, silence)?, place))).collect::<Result<Vec<_>, Error>>()
        })
        .await?;
        let mut failed =
            Error::Invalid(format!("no place takes images of {}: see its hosts.toml", reference.domain));
        for (config, place) in places {
            match Self::at(&reference, &place, config, credentials.clone()).await {
                Err(error @ (Error::Unreachable(_) | Error::Unavailable(_))) => failed = error,
                other => return other,
            }
        }
        Err(failed)
    }

    async fn at(
        reference: &Reference,
        place: &Endpoint,
        config: ClientConfig,
        credentials: Option<Credentials>,
    ) -> Result<Self, Error> {
        let (host, repository) = (host(place)?.to_owned(), reference.path.clone());
        let image = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(host, repository, digest.to_string()),
            (None, tag) => oci_client::Reference::with_tag(host, repository, tag.clone().unwrap_or_default()),
        };
        if credentials.as_ref().is_some_and(|user| user.identity_token().is_some()) {
            return Err(Error::Denied(format!(
                "nothing is pushed to {} with an identity token: log in with user name and password",
                reference.domain
            )));
        }
        let auth = match credentials.filter(|user| !user.username.is_empty()) {
            Some(user) => RegistryAuth::Basic(user.username, user.password),
            None => RegistryAuth::Anonymous,
        };
        let client = Client::try_from(config)
            .map_err(|error| Error::Unreachable(format!("no client for registries: {error}")))?;
        let asked = client.auth(&image, &auth, RegistryOperation::Push).await;
        asked.map_err(|error| push_failed(reference, error))?;
        Ok(Self { client, reference: reference.clone(), image })
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
        push_failed(&self.reference, error)
    }
}

/// The host of a place that speaks the protocol at its root, as the library asks for.
fn host(place: &Endpoint) -> Result<&str, Error> {
    let host = place.base.split_once("://").and_then(|(_, rest)| rest.strip_suffix("/v2"));
    host.filter(|host| !host.contains('/') && place.headers.is_empty() && place.tls.clients.is_empty()).ok_or_else(|| {
        Error::Invalid(format!(
            "nothing can be pushed to {}: paths, headers and client certificates of hosts.toml are for pulls only",
            place.base
        ))
    })
}

/// Reads the certificates that a place wants. Blocks.
fn config(place: &Endpoint, silence: std::time::Duration) -> Result<ClientConfig, Error> {
    let mut roots = Vec::new();
    for path in &place.tls.authorities {
        let data = read_named(path)?.into_bytes();
        roots.push(Certificate { encoding: CertificateEncoding::Pem, data });
    }
    Ok(ClientConfig {
        protocol: match place.base.starts_with("http:") {
            true => ClientProtocol::Http,
            false => ClientProtocol::Https,
        },
        extra_root_certificates: roots,
        accept_invalid_certificates: place.tls.skip_verify == Some(true),
        use_monolithic_push: true,
        connect_timeout: Some(place.connect_timeout.unwrap_or(CONNECT_TIMEOUT)),
        read_timeout: Some(silence),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    })
}

fn http_header(value: &str) -> Option<http::HeaderValue> {
    http::HeaderValue::from_str(value).ok()
}
