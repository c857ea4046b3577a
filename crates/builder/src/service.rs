//! [`engine_api::Builds`]: takes requests, runs each build as a task of its own, and streams what it tells.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::lifecycle::Tasks;
use engine_api::{BuildEvent, BuildRequest, Builds, CommitRequest, EngineError, Runtime};
use futures::StreamExt;
use futures::stream::BoxStream;
use image::Store;
use tokio::sync::mpsc;

use crate::Error;
use crate::dispatch::Build;
use crate::run::OWNER_LABEL;

const EVENTS_WAITING: usize = 256;
/// Where distributions keep the bundle of CA certificates.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
const PROXY_VARIABLES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What RUN steps get of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The resolver's configuration.
    pub resolver: PathBuf,
    /// The CA certificates that the host trusts.
    pub ca_bundle: Option<PathBuf>,
    /// `NAME=value` of proxies.
    pub proxies: Vec<String>,
}

impl Host {
    /// This host, as this process sees it.
    pub fn detect() -> Self {
        let set = |name: &&str| std::env::var(name).ok().map(|value| format!("{name}={value}"));
        Self {
            resolver: PathBuf::from("/etc/resolv.conf"),
            ca_bundle: CA_BUNDLES.iter().map(PathBuf::from).find(|path| Path::exists(path)),
            proxies: PROXY_VARIABLES.iter().filter_map(set).collect(),
        }
    }
}

/// Whether an argument is one of the proxies that every build knows and no cache counts.
pub(crate) fn is_proxy(name: &str) -> bool {
    PROXY_VARIABLES.contains(&name)
}

/// Builds images over an image store and a runtime.
pub struct Builder {
    store: Store,
    runtime: Arc<dyn Runtime>,
    host: Host,
    tasks: Tasks,
}

impl Builder {
    /// Over a store and a runtime whose containers take their root file systems from that store.
    pub fn new(store: Store, runtime: Arc<dyn Runtime>, host: Host) -> Self {
        Self { store, runtime, host, tasks: Tasks::default() }
    }

    /// Removes sandboxes of builds that a crash ended. Call it once, before the first build.
    pub async fn recover(&self) -> Result<(), EngineError> {
        for sandbox in self.runtime.sandboxes().await? {
            if sandbox.spec.labels.get(OWNER_LABEL.0).is_some_and(|owner| owner == OWNER_LABEL.1) {
                self.runtime.remove_sandbox(&sandbox.spec.id).await?;
            }
        }
        for key in self.store.snapshots() {
            if key.starts_with("build-") {
                let store = self.store.clone();
                let removed = crate::run::blocking(move || Ok(store.remove_snapshot(&key)?)).await;
                removed.map_err(Error::into_engine)?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Builds for Builder {
    async fn build(
        &self,
        request: BuildRequest,
    ) -> Result<BoxStream<'static, Result<BuildEvent, EngineError>>, EngineError> {
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING);
        let events = Events(sender.clone());
        let build = Build::new(self.store.clone(), self.runtime.clone(), self.host.clone(), events, request);
        self.tasks.spawn(async move {
            let last = match build.run().await {
                Ok(id) => Ok(BuildEvent::Built(id.to_string())),
                Err(error) => Err(error.into_engine()),
            };
            let _ = sender.send(last).await;
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(receiver).boxed())
    }

    async fn commit(&self, request: CommitRequest) -> Result<String, EngineError> {
        let container = self.runtime.container(&request.container).await?.spec;
        let store = self.store.clone();
        // On a thread of its own to its end, also where the client leaves.
        let made = crate::run::blocking(move || crate::commit::commit(&store, &container, &request)).await;
        made.map(|id| id.to_string()).map_err(Error::into_engine)
    }
}

/// Where a build tells what it does.
#[derive(Clone)]
pub(crate) struct Events(mpsc::Sender<Result<BuildEvent, EngineError>>);

impl Events {
    /// Prints; fails when nobody listens any more, which ends the build.
    pub(crate) async fn output(&self, text: String) -> Result<(), Error> {
        self.0.send(Ok(BuildEvent::Output(text))).await.map_err(|_| Error::Cancelled)
    }

    /// What work gives, unless nobody listens any more: then it is dropped where it is.
    pub(crate) async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            done = work => Ok(done),
            () = self.closed() => Err(Error::Cancelled),
        }
    }

    /// Returns when nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}
