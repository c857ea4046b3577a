//! The server: UDP and TCP on the cluster DNS address.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use parking_lot::RwLock;
use reconcile::Informers;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{Verdict, decide, refuse, respond};
use super::feed;
use super::forward::{Forwarder, Resolvers};
use super::zone::Zone;

/// Questions under way at once; more are dropped (UDP) or wait (TCP): a client asks again.
const QUESTIONS_MAX: usize = 1024;

/// TCP connections at once.
const CONNECTIONS_MAX: usize = 256;

/// An idle TCP connection is closed after this long.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// What the server needs to know.
#[derive(Debug)]
pub struct DnsConfig {
    /// Where it listens: the cluster IP of `kube-system/kube-dns`. It need not be on an interface yet.
    pub address: SocketAddr,
    /// The cluster's domain, `cluster.local`.
    pub domain: String,
    /// Resolvers for all other names.
    pub resolvers: Resolvers,
}

/// Cluster DNS.
pub struct Dns {
    shared: Arc<Shared>,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    informers: Informers,
}

struct Shared {
    zone: Arc<RwLock<Zone>>,
    domain: String,
    forwarder: Forwarder,
}

impl Dns {
    /// Binds its sockets.
    pub fn bind(config: DnsConfig, informers: Informers) -> std::io::Result<Self> {
        let udp = std::net::UdpSocket::from(socket(config.address, SocketType::DGRAM)?);
        udp.set_nonblocking(true)?;
        let tcp = socket(config.address, SocketType::STREAM)?;
        rustix::net::listen(&tcp, 128)?;
        let tcp = std::net::TcpListener::from(tcp);
        tcp.set_nonblocking(true)?;
        let domain = config.domain.trim_end_matches('.').to_ascii_lowercase();
        let shared = Shared { zone: Arc::default(), domain, forwarder: Forwarder::new(config.resolvers) };
        Ok(Self {
            shared: Arc::new(shared),
            udp: Arc::new(UdpSocket::from_std(udp)?),
            tcp: TcpListener::from_std(tcp)?,
            informers,
        })
    }

    /// Where it listens.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A bound socket whose address may appear on an interface later.
fn socket(address: SocketAddr, kind: SocketType) -> std::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    match address.ip() {
        IpAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        IpAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

#[async_trait]
impl Component for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let _feed = tokio::select! {
            feed = feed::follow(&self.informers, &self.shared.zone) => feed,
            () = ctx.cancelled() => return Ok(()),
        };
        ctx.ready();
        tokio::select! {
            result = self.serve_udp(&ctx) => result,
            result = self.serve_tcp(&ctx) => result,
            () = ctx.cancelled() => Ok(()),
        }
    }
}

impl Dns {
    async fn serve_udp(&self, ctx: &Context) -> Result<(), BoxError> {
        let questions = Arc::new(Semaphore::new(QUESTIONS_MAX));
        let mut buffer = vec![0; 4096];
        loop {
            let (read, peer) = match self.udp.recv_from(&mut buffer).await {
                Ok(received) => received,
                // A peer that is gone answers with ICMP, which arrives here as an error of the socket.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error.into()),
            };
            let Ok(query) = Message::from_vec(&buffer[..read]) else { continue };
            let Ok(permit) = questions.clone().try_acquire_owned() else { continue };
            let (shared, udp) = (self.shared.clone(), self.udp.clone());
            ctx.spawn(async move {
                if let Some(bytes) = shared.answer(&query).await.and_then(|answer| fit(&query, &answer)) {
                    let _ = udp.send_to(&bytes, peer).await;
                }
                drop(permit);
            });
        }
    }

    async fn serve_tcp(&self, ctx: &Context) -> Result<(), BoxError> {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = connections.clone().acquire_owned().await?;
            let (stream, _) = base::accept::next("cluster DNS", || self.tcp.accept()).await;
            let shared = self.shared.clone();
            ctx.spawn(async move {
                if let Err(error) = shared.converse(stream).await {
                    tracing::debug!(%error, "DNS connection ended");
                }
                drop(permit);
            });
        }
    }
}

impl Shared {
    /// The answer to a query; `None` for what is no query.
    async fn answer(&self, query: &Message) -> Option<Message> {
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        if query.queries.len() != 1 {
            return Some(refuse(query, ResponseCode::FormErr));
        }
        let verdict = decide(query, &self.zone.read(), &self.domain);
        let (first, question) = match verdict {
            Verdict::Answer(message) => return Some(*message),
            Verdict::Forward(first, question) => (first, question),
        };
        let Some(found) = self.forwarder.ask(&question).await else {
            return Some(refuse(query, ResponseCode::ServFail));
        };
        let mut answer = respond(query);
        answer.metadata.response_code = found.metadata.response_code;
        answer.answers = first;
        answer.answers.extend(found.answers);
        answer.authorities = found.authorities;
        Some(answer)
    }

    /// Questions and answers on one connection, each with its length before it. RFC 7766.
    async fn converse(&self, mut stream: TcpStream) -> Result<(), BoxError> {
        loop {
            let Ok(length) = timeout(IDLE_MAX, stream.read_u16()).await else { return Ok(()) };
            let length = match length {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let mut buffer = vec![0; usize::from(length)];
            timeout(IDLE_MAX, stream.read_exact(&mut buffer)).await??;
            let query = Message::from_vec(&buffer)?;
            let Some(answer) = self.answer(&query).await else { return Ok(()) };
            let bytes = answer.to_vec()?;
            let length = u16::try_from(bytes.len())?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(&bytes);
            timeout(IDLE_MAX, stream.write_all(&framed)).await??;
        }
    }
}

/// The answer within what the client takes by UDP: cut, and marked so, where it is larger.
fn fit(query: &Message, answer: &Message) -> Option<Vec<u8>> {
    let room = query.edns.as_ref().map_or(512, |edns| usize::from(edns.max_payload()).clamp(512, 1232));
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= room {
        return Some(bytes);
    }
    answer.truncate().to_vec().ok()
}
