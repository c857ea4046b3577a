//! [`engine_api::Images`] over the image store: blocking work moves off the async threads, names and errors take the
//! words of the engine's API.

use std::io::{self, Read, Write};

use async_trait::async_trait;
use bytes::Bytes;
use engine_api::{
    ByteStream, EngineError, ErrorKind, Image, ImageConfig, ImageName, ImageOrigin, Images, Progress,
    ProgressStream, RegistryAuth, RemovalKind, Resolution,
};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS_WAITING: usize = 4;
const PROGRESS_WAITING: usize = 256;

/// The image store as users of the engine see it.
#[derive(Debug, Clone)]
pub struct ImageService {
    store: image::Store,
}

impl ImageService {
    /// Over a store.
    pub fn new(store: image::Store) -> Self {
        Self { store }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&image::Store) -> Result<T, image::Error> + Send + 'static,
    ) -> Result<T, EngineError> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result.map_err(engine_error),
            Err(error) => Err(EngineError::internal("work on images", &error)),
        }
    }
}

#[async_trait]
impl Images for ImageService {
    fn name(&self, reference: &str) -> Result<ImageName, EngineError> {
        let parsed = image::Reference::parse(reference).map_err(engine_error)?;
        Ok(ImageName {
            registry: parsed.domain,
            repository: parsed.path,
            tag: parsed.tag,
            digest: parsed.digest.map(|digest| digest.to_string()),
        })
    }

    async fn resolve(&self, reference: &str) -> Result<Resolution, EngineError> {
        let reference = reference.to_owned();
        let found = self.blocking(move |store| store.resolve(&reference)).await?;
        Ok(Resolution {
            reference: found.reference,
            image: to_api(found.image),
            origin: origin(found.origin),
        })
    }

    async fn list(&self) -> Result<Vec<Image>, EngineError> {
        let images = self.blocking(image::Store::list).await?;
        Ok(images.into_iter().map(to_api).collect())
    }

    async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        image::Reference::parse(reference).map_err(engine_error)?;
        let (sender, receiver) = mpsc::channel(PROGRESS_WAITING);
        let (store, reference) = (self.store.clone(), reference.to_owned());
        let work = async move { store.pull(&reference, auth.map(credentials), sender).await.map(drop) };
        Ok(progress(Box::pin(work), receiver))
    }

    async fn push(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        image::Reference::parse(reference).map_err(engine_error)?;
        let (sender, receiver) = mpsc::channel(PROGRESS_WAITING);
        let (store, reference) = (self.store.clone(), reference.to_owned());
        let work = async move { store.push(&reference, auth.map(credentials), sender).await.map(drop) };
        Ok(progress(Box::pin(work), receiver))
    }

    async fn tag(&self, source: &str, target: &str) -> Result<(), EngineError> {
        let (source, target) = (source.to_owned(), target.to_owned());
        self.blocking(move |store| store.tag(&source, &target)).await
    }

    async fn remove(&self, reference: &str, force: bool) -> Result<Vec<(RemovalKind, String)>, EngineError> {
        let reference = reference.to_owned();
        let removed = self.blocking(move |store| store.remove(&reference, force)).await?;
        let to_api = |removed| match removed {
            image::Removed::Untagged(name) => (RemovalKind::Untagged, name),
            image::Removed::Deleted(id) => (RemovalKind::Deleted, id.to_string()),
        };
        Ok(removed.into_iter().map(to_api).collect())
    }

    async fn load(&self, archive: ByteStream) -> Result<Vec<String>, EngineError> {
        let archive = reader(archive);
        self.blocking(move |store| store.load(archive)).await
    }

    async fn import(&self, archive: ByteStream, reference: &str) -> Result<String, EngineError> {
        let (archive, reference) = (reader(archive), reference.to_owned());
        let id = self.blocking(move |store| store.import(archive, &reference)).await?;
        Ok(id.to_string())
    }

    async fn mount_read_only(
        &self,
        holder: &str,
        image_id: &str,
        target: &std::path::Path,
    ) -> Result<(), EngineError> {
        let id = image::Digest::parse(image_id).map_err(engine_error)?;
        let (holder, target) = (holder.to_owned(), target.to_owned());
        self.blocking(move |store| store.mount_read_only(&holder, &id, &target)).await
    }

    async fn release(&self, holder: &str) -> Result<(), EngineError> {
        let holder = holder.to_owned();
        self.blocking(move |store| store.release(&holder)).await
    }

    async fn held(&self) -> Result<Vec<(String, String)>, EngineError> {
        Ok(self.store.held().into_iter().map(|(holder, id)| (holder, id.to_string())).collect())
    }

    async fn save(&self, references: &[String]) -> Result<ByteStream, EngineError> {
        let references = references.to_vec();
        // Unknown names are an answer, not a broken stream.
        let known = references.clone();
        self.blocking(move |store| known.iter().try_for_each(|name| store.resolve(name).map(drop))).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let store = self.store.clone();
        // Ends by itself when the reader goes away.
        tokio::task::spawn_blocking(move || {
            let out = io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(sender.clone()));
            if let Err(error) = store.save_archive(&references, out) {
                let _ = sender.blocking_send(Err(engine_error(error)));
            }
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(receiver).boxed())
    }
}

/// The image store's error in the engine's classes.
pub(crate) fn engine_error(error: image::Error) -> EngineError {
    let kind = match &error {
        image::Error::NotFound(_) | image::Error::NotInRegistry(_) => ErrorKind::NotFound,
        image::Error::Reference(..) | image::Error::Invalid(_) | image::Error::Digest { .. } => {
            ErrorKind::Invalid
        }
        image::Error::Conflict(_) => ErrorKind::Conflict,
        image::Error::Denied(_) => ErrorKind::Denied,
        image::Error::Unreachable(_) => ErrorKind::Unreachable,
        image::Error::Unavailable(_) => ErrorKind::Unavailable,
        // What was sent is cut off or is not what it should be.
        image::Error::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            ErrorKind::Invalid
        }
        image::Error::Io { .. } => ErrorKind::Internal,
    };
    EngineError::new(kind, base::error::chain(&error))
}

fn credentials(auth: RegistryAuth) -> image::Credentials {
    image::Credentials { username: auth.username, password: auth.password }
}

fn origin(origin: image::Origin) -> ImageOrigin {
    match origin {
        image::Origin::Local => ImageOrigin::Local,
        image::Origin::Registry => ImageOrigin::Registry,
    }
}

pub(crate) fn to_api(image: image::Image) -> Image {
    let document = image.document;
    let config = document.config;
    Image {
        id: image.id.to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        tags: image.tags.into_iter().map(|(name, from)| (name, origin(from))).collect(),
        repo_digests: image.repo_digests,
        size_bytes: image.layer_bytes.iter().sum(),
        layer_bytes: image.layer_bytes,
        created: document.created.and_then(|created| created.parse().ok()),
        architecture: document.architecture,
        config: ImageConfig {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env,
            user: config.user,
            working_dir: config.working_dir,
            exposed_ports: config.exposed_ports.into_keys().collect(),
            volumes: config.volumes.into_keys().collect(),
            labels: config.labels,
            stop_signal: config.stop_signal,
        },
        config_json: image.config_json,
        diff_ids: document.rootfs.diff_ids.iter().map(ToString::to_string).collect(),
    }
}

/// A stream for blocking code; call it inside the runtime, read it outside its threads.
fn reader(stream: ByteStream) -> impl Read + Send + 'static {
    SyncIoBridge::new(StreamReader::new(stream.map_err(io::Error::other)))
}

/// Sends what is written as chunks of a stream.
struct Chunks(mpsc::Sender<Result<Bytes, EngineError>>);

impl Write for Chunks {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(buffer)));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader went away"))?;
        Ok(buffer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Progress while `work` runs, then its error if it failed. The work goes on only while the stream is read, and ends
/// with it.
fn progress(
    work: BoxFuture<'static, Result<(), image::Error>>,
    receiver: mpsc::Receiver<image::Progress>,
) -> ProgressStream {
    let state = (Some(work), receiver, None);
    futures::stream::unfold(state, |(mut work, mut receiver, mut failure)| async move {
        loop {
            let Some(running) = work.as_mut() else {
                let next = match receiver.recv().await {
                    Some(step) => Ok(step_to_api(step)),
                    None => Err(failure.take()?),
                };
                return Some((next, (None, receiver, failure)));
            };
            tokio::select! {
                biased;
                step = receiver.recv() => {
                    if let Some(step) = step {
                        return Some((Ok(step_to_api(step)), (work, receiver, failure)));
                    }
                    failure = running.await.err().map(engine_error);
                    work = None;
                }
                done = &mut *running => {
                    failure = done.err().map(engine_error);
                    work = None;
                }
            }
        }
    })
    .boxed()
}

fn step_to_api(step: image::Progress) -> Progress {
    Progress { id: step.id, status: step.status, current: step.current, total: step.total }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> (tempfile::TempDir, ImageService) {
        let dir = tempfile::tempdir().unwrap();
        let store = image::Store::open(dir.path()).unwrap();
        (dir, ImageService::new(store))
    }

    #[tokio::test]
    async fn a_failing_pull_ends_its_stream_with_the_error() {
        let (_dir, service) = service();
        // Port 1 on loopback: nobody listens there.
        let mut steps = service.pull("127.0.0.1:1/a", None).await.unwrap();
        let mut last = None;
        while let Some(step) = steps.next().await {
            last = Some(step);
        }
        assert_eq!(last.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(service.name("Nginx").unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(service.name("nginx:1").unwrap().path(), "docker.io/library/nginx");
    }
}
