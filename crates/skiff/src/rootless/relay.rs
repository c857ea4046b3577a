//! Connections from the host into the network namespace: a listener on the host for each port, and for each connection
//! one inside, to the same address, where node ports and published ports are served like everything else.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use base::lifecycle::Tasks;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use sys::ns::Namespace;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// So many connections are carried at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// So many descriptors are left for listeners and everything else; a connection has two.
const OTHER_DESCRIPTORS: u64 = 64;

/// The pause after a connection that could not be accepted.
pub(super) const REFUSED: Duration = Duration::from_millis(100);

/// A port that a daemon wants to be reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// The host's address.
    pub(crate) address: Ipv4Addr,
    /// The port, outside as inside.
    pub(crate) port: u16,
}

/// What a daemon says, a line of JSON each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wish {
    pub(crate) ports: Vec<Wanted>,
    /// Ports of earlier wishes stay as well; else these are all.
    #[serde(default)]
    pub(crate) others_stay: bool,
}

/// One that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) wanted: Wanted,
    /// The kernel's words.
    pub(crate) why: String,
}

/// Makes sockets in the network namespace, by a thread that lives there and so keeps it alive.
pub(super) struct Network {
    wishes: mpsc::Sender<oneshot::Sender<io::Result<OwnedFd>>>,
}

impl Network {
    /// Makes the namespace and pins it at `pin`; `again`: goes into the one that is pinned there.
    pub(super) fn start(pin: &Path, again: bool) -> io::Result<Self> {
        let (wishes, asked) = mpsc::channel::<oneshot::Sender<io::Result<OwnedFd>>>();
        let (tell, told) = mpsc::channel();
        let pin = pin.to_owned();
        #[allow(
            clippy::disallowed_methods,
            reason = "it ends with the channel, and keeps the network until then"
        )]
        let thread = std::thread::Builder::new().name("network".into()).spawn(move || {
            let entered = enter(&pin, again);
            let is_there = entered.is_ok();
            // Whoever asked is gone only with the process.
            let _ = tell.send(entered);
            while is_there && let Ok(answer) = asked.recv() {
                let _ = answer.send(socket());
            }
        })?;
        drop(thread);
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the network's thread ended")))?;
        Ok(Self { wishes })
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let gone = || io::Error::other("the network's thread ended");
        let (answer, made) = oneshot::channel();
        self.wishes.send(answer).map_err(|_| gone())?;
        let socket = made.await.map_err(|_| gone())??;
        TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(to).await
    }
}

fn enter(pin: &Path, again: bool) -> io::Result<()> {
    if again {
        return sys::ns::join(std::fs::File::open(pin)?, Namespace::Network);
    }
    sys::ns::unshare(&[Namespace::Network])?;
    sys::ns::loopback_up()?;
    sys::ns::pin_own(Namespace::Network, pin)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
}

/// How many connections are carried at once by who may have so many descriptors (`None`: any number). Pure.
pub(super) fn room(descriptors: Option<u64>) -> usize {
    let pairs = descriptors.unwrap_or(u64::MAX).saturating_sub(OTHER_DESCRIPTORS) / 2;
    usize::try_from(pairs).unwrap_or(CONNECTIONS_MAX).clamp(1, CONNECTIONS_MAX)
}

/// The listeners.
pub(super) struct Relay {
    inside: Arc<Network>,
    open: Mutex<BTreeMap<Wanted, CancellationToken>>,
    room: Arc<Semaphore>,
    tasks: Arc<Tasks>,
}

impl Relay {
    /// Relays into a network, so many connections at once.
    pub(super) fn new(inside: Network, room: usize) -> Self {
        Self {
            inside: Arc::new(inside),
            open: Mutex::default(),
            room: Arc::new(Semaphore::new(room)),
            tasks: Arc::default(),
        }
    }

    /// Listens as wished; connections that there are go on. Answers which ports it cannot have.
    pub(super) async fn set(&self, wish: Wish) -> Vec<Refused> {
        let mut wanted = wish.ports;
        wanted.sort_unstable();
        wanted.dedup();
        let mut open = self.open.lock().await;
        open.retain(|held, listening| {
            let stays = wish.others_stay || wanted.binary_search(held).is_ok();
            if !stays {
                listening.cancel();
            }
            stays
        });
        let mut refused = Vec::new();
        for wanted in wanted {
            if open.contains_key(&wanted) {
                continue;
            }
            match TcpListener::bind((wanted.address, wanted.port)).await {
                Ok(listener) => drop(open.insert(wanted, self.listen(listener, wanted))),
                Err(error) => refused.push(Refused { wanted, why: error.to_string() }),
            }
        }
        refused
    }

    fn listen(&self, listener: TcpListener, wanted: Wanted) -> CancellationToken {
        let end = CancellationToken::new();
        let (inside, room, tasks) = (self.inside.clone(), self.room.clone(), Arc::downgrade(&self.tasks));
        let ended = end.clone();
        self.tasks.spawn(async move {
            let to = SocketAddr::V4(SocketAddrV4::new(wanted.address, wanted.port));
            loop {
                let next = async {
                    let place = room.clone().acquire_owned().await.ok()?;
                    Some((listener.accept().await, place))
                };
                let accepted = tokio::select! {
                    () = ended.cancelled() => return,
                    accepted = next => accepted,
                };
                let Some((Ok((outer, _)), place)) = accepted else {
                    // The client is gone already; or there are no descriptors, of which the kernel tells nobody.
                    tokio::time::sleep(REFUSED).await;
                    continue;
                };
                let (Some(tasks), inside) = (tasks.upgrade(), inside.clone()) else { return };
                tasks.spawn(async move {
                    let _place = place;
                    // What fails inside is what the client sees: the connection ends.
                    let _ = carry(outer, &inside, to).await;
                });
            }
        });
        end
    }
}

async fn carry(mut outer: TcpStream, inside: &Network, to: SocketAddr) -> io::Result<()> {
    let mut inner = inside.connect(to).await?;
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut outer, &mut inner).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn connections_reach_the_namespace_and_outlive_their_listener() {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("net");
        let network = Network::start(&pin, false).unwrap();
        let inner = sys::ns::run_in_netns(&pin, || {
            let listener = std::net::TcpListener::bind("127.55.0.1:0")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        // The thread keeps the namespace.
        sys::mount::unmount(&pin).unwrap();
        let inner = TcpListener::from_std(inner.unwrap()).unwrap();
        let port = inner.local_addr().unwrap().port();
        let relay = Relay::new(network, CONNECTIONS_MAX);
        let address = Ipv4Addr::new(127, 55, 0, 1);
        let wanted = Wanted { address, port };
        let only = |ports: &[Wanted]| Wish { ports: ports.to_vec(), others_stay: false };
        assert_eq!(relay.set(only(&[wanted, wanted])).await, []);
        assert_eq!(relay.set(Wish { others_stay: true, ..only(&[]) }).await, []);
        let mut client = TcpStream::connect((address, port)).await.unwrap();
        let (mut server, _) = inner.accept().await.unwrap();
        assert_eq!(relay.set(only(&[])).await, []);
        client.write_all(b"in").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "in");
        server.write_all(b"out").await.unwrap();
        drop(server);
        heard.clear();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "out");
        // The port is free again as soon as the listener's task has ended.
        let free = async {
            while TcpListener::bind((address, port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), free).await.unwrap();
    }

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        assert_eq!([Some(1024), Some(10), Some(1 << 20), None].map(room), [480, 1, 4096, 4096]);
    }

    #[tokio::test]
    async fn a_port_that_another_has_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("net");
        let network = Network::start(&pin, false).unwrap();
        sys::mount::unmount(&pin).unwrap();
        let address = Ipv4Addr::new(127, 55, 0, 2);
        let taken = TcpListener::bind((address, 0)).await.unwrap();
        let wanted = Wanted { address, port: taken.local_addr().unwrap().port() };
        let relay = Relay::new(network, CONNECTIONS_MAX);
        let wish = Wish { ports: vec![wanted], others_stay: false };
        let refused = relay.set(wish.clone()).await;
        assert_eq!(refused[0].wanted, wanted);
        assert!(refused[0].why.contains("in use"), "{}", refused[0].why);
        drop(taken);
        assert_eq!(relay.set(wish).await, []);
    }
}
