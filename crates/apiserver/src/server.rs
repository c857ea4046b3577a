//! The server: the listener, TLS and connections around the HTTP front; the certificates' renewal and the store's
//! compaction beside it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::connect::User;
use async_trait::async_trait;
use base::BoxError;
use base::backoff::Policy;
use base::lifecycle::{Component, Context};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use store::StoreError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::aggregation;
use crate::authn::front_proxy::FrontProxy;
use crate::authn::user_of_certificate;
use crate::authz::defaults;
use crate::bootstrap::{Bootstrap, administrator};
use crate::flow;
use crate::gathered::Gathered;
use crate::http::{Front, Known, Remote};
use crate::identity;
use crate::peers;
use crate::pipeline::Pipeline;
use crate::pki::Pki;
use crate::started::{Start, Step};

/// A client has this long to finish the TLS handshake and each request's head.
const HEAD_MAX: Duration = Duration::from_secs(15);
/// A connection whose client has not proved who it is ends after this time, so that strangers cannot take the places of
/// others for good; what it has asked until then is answered.
const STRANGER_MAX: Duration = Duration::from_secs(60);
/// Longer than the longest answer to a stranger.
const LINGER_MAX: Duration = Duration::from_secs(75);
/// The head of a request may be so large: tokens of users in many groups are long.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Streams that a client may reset before they are served; one that goes on opening and resetting them is cut off.
const RESETS_MAX: usize = 100;
/// What waits in memory for a client that does not take it, for each of its streams.
const SEND_BYTES_MAX: usize = 128 * 1024;
/// Of the files that the process may have open, connections take one in so many at most.
const FILES_PART: usize = 2;
/// Connections where nobody says how many files there may be.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// How many requests one HTTP/2 connection may have open: a node watches each object that its pods refer to.
const STREAMS_MAX: u32 = 1000;
/// HTTP/2 windows: lists are large, and most clients are on this machine.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// How often history is forgotten, and so how long at least it can be watched from. Source: upstream's compactor.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

/// The API server's component.
pub struct Server {
    pub(crate) front: Arc<Front>,
    pub(crate) pki: Arc<Pki>,
    pub(crate) listener: Arc<TcpListener>,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) bootstrap: Arc<Mutex<Bootstrap>>,
}

impl Server {
    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The certificate authority.
    pub fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// The HTTP front: for tests and for serving over other listeners.
    pub fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// Ready when everything is done that the server does when it starts, also beside answering others.
    pub fn start(&self) -> Start {
        Start(self.front.started.clone())
    }

    /// Follows a change of the host's addresses: the certificate is issued anew and swapped, and the endpoints of
    /// Service `default/kubernetes` are written anew.
    pub async fn set_addresses(&self, addresses: Vec<IpAddr>) -> Result<(), BoxError> {
        let kubernetes = self.bootstrap.lock().kubernetes;
        self.pki.set_addresses(addresses.iter().copied().chain(kubernetes))?;
        self.bootstrap.lock().addresses = addresses;
        Bootstrap::apply(&self.bootstrap, &self.front.pipeline).await
    }

    async fn accept(&self, ctx: &Context) -> Result<(), BoxError> {
        let acceptor = TlsAcceptor::from(self.tls.clone());
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let places = Arc::new(Semaphore::new(connections_max(&limits)));
        loop {
            let accepted = async {
                // Who finds no place waits in the kernel until another goes.
                let place = places.clone().acquire_owned().await;
                let (stream, _) = base::accept::next("the API server", || self.listener.accept()).await;
                (stream, place)
            };
            let (stream, place) = tokio::select! {
                accepted = accepted => accepted,
                () = ctx.cancelled() => return Ok(()),
            };
            let connection = Connection {
                front: self.front.clone(),
                pki: self.pki.clone(),
                acceptor: acceptor.clone(),
                ctx: ctx.clone(),
            };
            ctx.spawn_draining(async move {
                if let Err(error) = connection.serve(stream).await {
                    tracing::debug!(%error, "connection ended");
                }
                drop(place);
            });
        }
    }
}

struct Connection {
    front: Arc<Front>,
    pki: Arc<Pki>,
    acceptor: TlsAcceptor,
    ctx: Context,
}

impl Connection {
    async fn serve(self, stream: TcpStream) -> Result<(), BoxError> {
        stream.set_nodelay(true)?;
        let remote = Remote(stream.peer_addr()?);
        let shaken = tokio::time::timeout(HEAD_MAX, self.acceptor.accept(stream)).await;
        let failed = || self.front.metrics.handshakes_failed.inc();
        let tls = shaken.inspect_err(|_| failed())?.inspect_err(|_| failed())?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let proxy = self.pki.front_proxy(chain).map(FrontProxy);
        // Who names others in headers is nobody itself.
        let own = chain.first().filter(|_| proxy.is_none());
        let user: Arc<Option<User>> = Arc::new(own.and_then(|cert| user_of_certificate(cert)));
        let front = self.front.clone();
        let known = Known::default();
        if user.is_some() {
            known.proved();
        }
        let stranger = known.clone();
        let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            let (front, user) = (front.clone(), user.clone());
            request.extensions_mut().insert(remote);
            request.extensions_mut().insert(known.clone());
            if let Some(proxy) = proxy {
                request.extensions_mut().insert(proxy);
            }
            async move { Ok::<_, std::convert::Infallible>(front.serve(user.as_ref().as_ref(), request).await) }
        });
        let mut builder = auto::Builder::new(Owned(self.ctx.clone()));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX as usize * 2);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_local_error_reset_streams(RESETS_MAX)
            .max_send_buf_size(SEND_BYTES_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES * 4);
        let gathers = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(Gathered::new(tls, gathers));
        let connection = builder.serve_connection_with_upgrades(io, service);
        tokio::pin!(connection);
        let overdue = async {
            tokio::time::sleep(STRANGER_MAX).await;
            if stranger.is_proved() {
                std::future::pending::<()>().await;
            }
        };
        let linger = tokio::select! {
            result = connection.as_mut() => return result.map_err(|error| error as BoxError),
            () = self.ctx.cancelled() => None,
            () = overdue => Some(LINGER_MAX),
        };
        connection.as_mut().graceful_shutdown();
        let result = match linger {
            None => connection.await,
            Some(linger) => tokio::time::timeout(linger, connection).await?,
        };
        result.map_err(|error| error as BoxError)
    }
}

/// How many connections there may be, by what `/proc/self/limits` says about open files: the rest is left to the store,
/// the containers and the connections that the server opens itself.
fn connections_max(limits: &str) -> usize {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let files =
        line.and_then(|line| line.split_whitespace().next()).and_then(|soft| soft.parse::<usize>().ok());
    files.map_or(CONNECTIONS_MAX, |files| (files / FILES_PART).clamp(16, CONNECTIONS_MAX))
}

/// Runs hyper's tasks as tasks of the component.
#[derive(Clone)]
struct Owned(Context);

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.0.spawn_draining(async move {
            task.await;
        });
    }
}

/// Brings back what everything rests on when somebody deletes it (`kubectl delete all --all`).
async fn keep_bootstrap(pipeline: Arc<Pipeline>, bootstrap: Arc<Mutex<Bootstrap>>) {
    const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(10) };
    let mut failures = 0;
    loop {
        failures = match kept_once(&pipeline, &bootstrap).await {
            Ok(()) => 0,
            Err(error) => {
                tracing::warn!(%error, "objects of the system are not kept; trying again");
                failures + 1
            }
        };
        tokio::time::sleep(RETRY.delay(failures)).await;
    }
}

/// One round: applied, and disturbed again.
async fn kept_once(pipeline: &Pipeline, bootstrap: &Mutex<Bootstrap>) -> Result<(), BoxError> {
    let present = bootstrap.lock().clone();
    let mut watched = present.watch(pipeline).await?;
    Bootstrap::apply(bootstrap, pipeline).await?;
    Ok(watched.disturbed().await?)
}

/// Forgets history that is older than one round.
async fn compact(pipeline: Arc<Pipeline>) {
    let store = pipeline.store().clone();
    let mut before = 0;
    loop {
        tokio::time::sleep(COMPACT_EVERY).await;
        let newest = match store.current_revision().await {
            Ok(revision) => revision,
            Err(error) => {
                tracing::warn!(%error, "cannot read the store's revision; history is kept");
                continue;
            }
        };
        if before > 0 && before < newest {
            match store.compact(before).await {
                // Another server over the same store was there first.
                Ok(()) | Err(StoreError::Compacted { .. }) => {}
                Err(error) => tracing::warn!(%error, "cannot compact the store"),
            }
        }
        before = newest;
    }
}

#[async_trait]
impl Component for Server {
    fn name(&self) -> &'static str {
        "apiserver"
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let pipeline = self.front.pipeline.clone();
        if let Some(auditor) = pipeline.auditor() {
            auditor.run(&ctx);
        }
        if let Some(sealed) = pipeline.sealed() {
            // Before the caches are filled: a key that is missing may yet come.
            ctx.spawn(sealed.keys().clone().follow());
        }
        ctx.waiting_for("the store's objects");
        pipeline.synced().await;
        let started = self.front.started.clone();
        started.done(Step::Definitions);
        ctx.waiting_for("the system's namespaces and Services");
        Bootstrap::apply(&self.bootstrap, &pipeline).await?;
        started.done(Step::Bootstrap);
        ctx.waiting_for("the default roles");
        defaults::reconcile(&pipeline, &administrator()).await?;
        started.done(Step::Roles);
        ctx.waiting_for("the default priority levels");
        flow::ensure(&pipeline, &administrator()).await?;
        started.done(Step::Flow);
        ctx.spawn(flow::keep(pipeline.clone(), administrator()));
        ctx.spawn(keep_bootstrap(pipeline.clone(), self.bootstrap.clone()));
        if self.bootstrap.lock().servers.is_some() {
            ctx.spawn(peers::keep(pipeline.clone(), self.bootstrap.clone()));
        }
        ctx.spawn(identity::keep(pipeline.clone()));
        let weak = || Arc::downgrade(&pipeline);
        ctx.spawn(aggregation::register(weak(), started.clone()));
        ctx.spawn(aggregation::follow(weak(), self.front.aggregator.clone(), started.clone()));
        ctx.spawn(aggregation::publish(weak(), self.pki.clone(), started));
        ctx.spawn(compact(pipeline));
        let drain = self.front.drain.clone();
        let cancel = ctx.cancel().clone();
        ctx.spawn_draining(async move {
            cancel.cancelled().await;
            drain.cancel();
        });
        ctx.ready();
        tokio::select! {
            result = self.accept(&ctx) => result,
            result = self.pki.keep_renewed(&ctx) => result.map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_others() {
        let limits = |soft: &str| {
            format!(
                "Limit   Soft Limit   Hard Limit   Units\nMax open files            {soft}        524288    files\n"
            )
        };
        assert_eq!(connections_max(&limits("1024")), 512);
        assert_eq!(connections_max(&limits("1000000")), CONNECTIONS_MAX);
        assert_eq!((connections_max(&limits("10")), connections_max("")), (16, CONNECTIONS_MAX));
    }
}
