//! The socket: connections of HTTP/2, and which service a call is for.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use base::BoxError;
use base::lifecycle::{Context, Tasks};
use engine_api::{Images, Runtime, SandboxNetworks};
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, broadcast};
use tonic::codegen::Service as _;
use tonic::server::NamedService;

use crate::known::Known;
use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::runtime_service_server::RuntimeServiceServer;
use crate::shared::Shared;
use crate::tokens::Tokens;
use crate::{events, images, runtime, sandboxes, streaming};

/// The longest message that is read, as upstream's kubelet has it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Connections at once; more wait. Some clients open one for each call and keep it.
const CONNECTIONS_MAX: usize = 1024;
/// Calls at once on a connection.
const CALLS_MAX: u32 = 256;

/// Where this server keeps its files, and what it says of the host.
#[derive(Debug, Clone)]
pub struct Config {
    /// Skiff's version.
    pub version: String,
    /// The directory for sandboxes' `hosts`, `hostname` and `resolv.conf`.
    pub data_dir: PathBuf,
    /// The image store's directory.
    pub image_dir: PathBuf,
    /// The cgroup below which all of the engine's are.
    pub cgroup_root: String,
}

type Runtimes = RuntimeServiceServer<runtime::Service>;
type ImageStore = ImageServiceServer<images::Service>;

/// Serves the interface.
pub struct Server {
    shared: Arc<Shared>,
    /// Taken by the one who serves.
    streams: parking_lot::Mutex<Option<TcpListener>>,
}

impl Server {
    /// Over the engine's traits; takes a port of loopback for streams.
    pub async fn bind(
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn Images>,
        networks: Arc<dyn SandboxNetworks>,
        config: Config,
    ) -> std::io::Result<Self> {
        let streams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let streams_at = format!("http://{}", streams.local_addr()?);
        let shared = Shared {
            runtime,
            images,
            networks,
            config,
            known: Known::default(),
            connected: Default::default(),
            events: broadcast::Sender::new(events::KEPT),
            tokens: Tokens::default(),
            streams_at,
            samples: Default::default(),
            image_files: Default::default(),
            tasks: Tasks::default(),
        };
        Ok(Self { shared: Arc::new(shared), streams: parking_lot::Mutex::new(Some(streams)) })
    }

    /// Serves until the context is cancelled.
    pub async fn serve(&self, listener: UnixListener, ctx: &Context) -> Result<(), BoxError> {
        let streams = self.streams.lock().take().ok_or("the interface was served before")?;
        sandboxes::take_back(&self.shared).await?;
        let follower = self.shared.clone();
        ctx.spawn(async move { follower.follow().await });
        ctx.spawn(streaming::serve(self.shared.clone(), streams, ctx.clone()));
        let runtimes = RuntimeServiceServer::new(runtime::Service(self.shared.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let images = ImageServiceServer::new(images::Service(self.shared.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await?;
            let (stream, _) = tokio::select! {
                accepted = base::accept::next("the runtime's socket", || listener.accept()) => accepted,
                () = ctx.cancelled() => return Ok(()),
            };
            let (runtimes, images, executor) = (runtimes.clone(), images.clone(), Owned(ctx.clone()));
            ctx.spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    answer(runtimes.clone(), images.clone(), request)
                });
                let connection = hyper::server::conn::http2::Builder::new(executor)
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(CALLS_MAX)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the runtime's socket broke off");
                }
                drop(place);
            });
        }
    }
}

/// Spawns a connection's tasks on the component that serves.
#[derive(Clone)]
struct Owned(Context);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Owned {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Answers a call by the service that its path names.
async fn answer(
    mut runtimes: Runtimes,
    mut images: ImageStore,
    request: Request<Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    match service {
        name if name == Runtimes::NAME => runtimes.call(request).await,
        name if name == ImageStore::NAME => images.call(request).await,
        name => {
            let text = format!("no service {name} is served here: use runtime.v1");
            Ok(tonic::Status::unimplemented(text).into_http())
        }
    }
}
