//! Ports of this host that lead to sandboxes: pods' `hostPort`, `docker run -p`.
//!
//! Each is a frontend of the service proxy with one endpoint, so it is reached from wherever a node port is: from other
//! machines, from this host by each of its addresses and loopback, and from pods. A listening socket from which nobody
//! accepts tells whether a program of the host has the port, and keeps others from taking it later.
//!
//! Kept in files beside the sandboxes' addresses, since sandboxes outlive this process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::Key;
use base::published::{Protocol, PublishedPort};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Error;
use crate::proxy::desired::{Frontend, Group, IfEmpty};

/// The published ports of this node. Cheap to clone.
#[derive(Clone)]
pub struct Published {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// How many changes there were.
    wanted: watch::Sender<u64>,
    /// How many of them the kernel has.
    programmed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    by_sandbox: HashMap<String, Entry>,
    /// Sandboxes whose ports changed since the proxy last asked.
    changed: BTreeSet<String>,
}

struct Entry {
    address: Ipv4Addr,
    ports: Vec<PublishedPort>,
    /// What holds each of them, in the same order.
    reserved: Vec<Reservation>,
}

/// Where the reservation of a port comes from.
enum Held {
    /// From those that the sandbox has, by position.
    Kept(usize),
    Fresh(Reservation),
}

/// What holds a port of the host; an SCTP port is not held.
enum Reservation {
    Tcp { _socket: TcpListener },
    Udp { _socket: UdpSocket },
    None,
}

impl Published {
    /// The ports as the files in `dir` have them, for sandboxes that have an address; other files are removed.
    pub(crate) fn open(dir: &Path, address: impl Fn(&str) -> Option<Ipv4Addr>) -> Result<Self, Error> {
        let what = || format!("keep published ports in {}", dir.display());
        std::fs::create_dir_all(dir).map_err(|error| Error::io(what(), error))?;
        let mut state = State::default();
        for file in std::fs::read_dir(dir).map_err(|error| Error::io(what(), error))?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(address) = address(&name) else {
                std::fs::remove_file(file.path()).map_err(|error| Error::io(what(), error))?;
                continue;
            };
            let text = std::fs::read_to_string(file.path()).map_err(|error| Error::io(what(), error))?;
            let ports: Vec<PublishedPort> = text.lines().filter_map(|line| line.parse().ok()).collect();
            // Where another program took the port in between, the sandbox keeps what it was promised.
            let reserved = ports.iter().map(|port| reserve(port).map_or(Reservation::None, |(held, _)| held));
            let entry = Entry { address, reserved: reserved.collect(), ports };
            state.by_sandbox.insert(name, entry);
        }
        let shared = Shared {
            dir: dir.to_owned(),
            state: Mutex::new(state),
            wanted: watch::Sender::new(0),
            programmed: watch::Sender::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Publishes ports of a sandbox, instead of those that it had; gives them with the host's ports that were chosen,
    /// and what to wait for with [`Published::programmed`]. All or none.
    pub(crate) fn publish(
        &self,
        sandbox: &str,
        address: Ipv4Addr,
        asked: &[PublishedPort],
    ) -> Result<(Vec<PublishedPort>, u64), Error> {
        let mut state = self.shared.state.lock();
        if let Some(held) = state.by_sandbox.get(sandbox)
            && held.address == address
            && same(&held.ports, asked)
        {
            return Ok((held.ports.clone(), *self.shared.wanted.borrow()));
        }
        let own = state.by_sandbox.get(sandbox).map(|entry| entry.ports.clone()).unwrap_or_default();
        let mut ports = Vec::new();
        let mut reserved = Vec::new();
        for port in asked {
            // What it holds already it cannot take from itself.
            let kept = own.iter().position(|held| held.host_port != 0 && host_side(held) == host_side(port));
            let (held, host_port) = match kept {
                Some(position) => (Held::Kept(position), port.host_port),
                None => {
                    let (fresh, host_port) =
                        reserve(port).map_err(|cause| Error::Port { port: *port, cause })?;
                    (Held::Fresh(fresh), host_port)
                }
            };
            reserved.push(held);
            ports.push(PublishedPort { host_port, ..*port });
        }
        self.write(sandbox, &ports)?;
        // From here on nothing fails: until then the sandbox has what it had.
        let mut old = state.by_sandbox.remove(sandbox).map(|entry| entry.reserved).unwrap_or_default();
        let reserved = reserved.into_iter().map(|held| match held {
            Held::Kept(position) => std::mem::replace(&mut old[position], Reservation::None),
            Held::Fresh(reservation) => reservation,
        });
        let entry = Entry { address, ports: ports.clone(), reserved: reserved.collect() };
        state.by_sandbox.insert(sandbox.to_owned(), entry);
        state.changed.insert(sandbox.to_owned());
        Ok((ports, self.changed()))
    }

    /// Takes a sandbox's ports back; gives what to wait for, if it had any. The ports are free when the returned value
    /// is dropped.
    pub(crate) fn withdraw(&self, sandbox: &str) -> Result<Option<(u64, impl Sized + use<>)>, Error> {
        let mut state = self.shared.state.lock();
        if !state.by_sandbox.contains_key(sandbox) {
            return Ok(None);
        }
        let path = self.shared.dir.join(sandbox);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()), error));
            }
            _ => {}
        }
        let entry = state.by_sandbox.remove(sandbox);
        state.changed.insert(sandbox.to_owned());
        Ok(Some((self.changed(), entry)))
    }

    /// Returns when the kernel has the changes up to this one.
    pub(crate) async fn programmed(&self, change: u64) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.shared.programmed.subscribe().wait_for(|held| *held >= change).await;
    }

    /// The ports of a sandbox.
    pub fn of(&self, sandbox: &str) -> Vec<PublishedPort> {
        self.shared.state.lock().by_sandbox.get(sandbox).map(|entry| entry.ports.clone()).unwrap_or_default()
    }

    /// For the proxy: told of every change.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.shared.wanted.subscribe()
    }

    /// For the proxy: the keys of sandboxes whose ports changed since it last asked, or of all.
    pub(crate) fn take_changed(&self, all: bool) -> BTreeSet<Key> {
        let mut state = self.shared.state.lock();
        let mut changed = std::mem::take(&mut state.changed);
        if all {
            changed.extend(state.by_sandbox.keys().cloned());
        }
        changed.iter().map(|sandbox| key(sandbox)).collect()
    }

    /// For the proxy: the frontends of a sandbox's key; `None` where it is a Service's.
    pub(crate) fn groups(&self, key: &Key) -> Option<Vec<Group>> {
        if !key.namespace.is_empty() {
            return None;
        }
        let state = self.shared.state.lock();
        let entry = state.by_sandbox.get(&key.name);
        Some(entry.map(|entry| groups(entry.address, &entry.ports)).unwrap_or_default())
    }

    /// For the proxy: the kernel has what was wanted at this change.
    pub(crate) fn reached(&self, change: u64) {
        self.shared.programmed.send_replace(change);
    }

    fn changed(&self) -> u64 {
        self.shared.wanted.send_modify(|count| *count += 1);
        *self.shared.wanted.borrow()
    }

    fn write(&self, sandbox: &str, ports: &[PublishedPort]) -> Result<(), Error> {
        let path = self.shared.dir.join(sandbox);
        let text: String = ports.iter().map(|port| format!("{port}\n")).collect();
        let new = self.shared.dir.join(format!(".{sandbox}"));
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|error| Error::io(format!("write {}", path.display()), error))
    }
}

/// Services have namespaces, so that the keys never meet.
fn key(sandbox: &str) -> Key {
    Key::new("", sandbox)
}

/// What a port takes of the host.
fn host_side(port: &PublishedPort) -> (Ipv4Addr, u16, Protocol) {
    (port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port.host_port, port.protocol)
}

/// Whether what is held is what is asked for, a free port being any.
fn same(held: &[PublishedPort], asked: &[PublishedPort]) -> bool {
    let fits = |(held, asked): (&PublishedPort, &PublishedPort)| {
        let asked = PublishedPort {
            host_port: if asked.host_port == 0 { held.host_port } else { asked.host_port },
            ..*asked
        };
        *held == asked
    };
    held.len() == asked.len() && held.iter().zip(asked).all(fits)
}

/// Takes a port of the host, or a free one; gives which.
fn reserve(port: &PublishedPort) -> io::Result<(Reservation, u16)> {
    let at = SocketAddrV4::new(port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port.host_port);
    Ok(match port.protocol {
        Protocol::Tcp => {
            let socket = TcpListener::bind(at)?;
            let chosen = socket.local_addr()?.port();
            (Reservation::Tcp { _socket: socket }, chosen)
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(at)?;
            let chosen = socket.local_addr()?.port();
            (Reservation::Udp { _socket: socket }, chosen)
        }
        Protocol::Sctp if port.host_port == 0 => {
            return Err(io::Error::new(
                ErrorKind::Unsupported,
                "a free SCTP port cannot be chosen: name one",
            ));
        }
        Protocol::Sctp => (Reservation::None, port.host_port),
    })
}

fn groups(address: Ipv4Addr, ports: &[PublishedPort]) -> Vec<Group> {
    // By what names them: the same port twice is one.
    let by_name: BTreeMap<String, &PublishedPort> = ports
        .iter()
        .map(|port| {
            let ip = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
            (format!("{ip}/{}/{}", port.protocol, port.host_port), port)
        })
        .collect();
    let group = |(name, port): (String, &PublishedPort)| {
        let endpoint = SocketAddrV4::new(address, port.port);
        let (address, protocol) = (port.host_ip, port.protocol.number());
        Group {
            name,
            frontends: vec![Frontend { address, protocol, port: port.host_port, external: false }],
            endpoints: vec![endpoint],
            // They end with their sandbox: nobody else could be sent what comes, so nobody waits for it.
            leaving: BTreeSet::from([endpoint]),
            affinity_s: None,
            if_empty: IfEmpty::Reject,
        }
    };
    by_name.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PublishedPort {
        text.parse().unwrap()
    }

    #[test]
    fn ports_are_reserved_kept_over_a_restart_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let address = Ipv4Addr::new(10, 42, 0, 2);
        let known = |name: &str| (name == "one").then_some(address);
        let published = Published::open(dir.path(), known).unwrap();
        let asked = [port("127.0.0.1:0 80/tcp"), port("127.0.0.1:0 53/udp")];
        let (chosen, change) = published.publish("one", address, &asked).unwrap();
        assert_eq!(change, 1);
        assert!(chosen.iter().all(|port| port.host_port != 0));
        assert_eq!(
            published.publish("one", address, &asked).unwrap(),
            (chosen.clone(), 1),
            "again: the same"
        );
        let refused = published.publish("two", address, &chosen[..1]).unwrap_err().to_string();
        assert!(refused.contains(&format!("{}/tcp", chosen[0].host_port)), "{refused}");
        assert!(refused.contains("in use"), "{refused}");
        assert_eq!(
            published.take_changed(false),
            BTreeSet::from([key("one")]),
            "the refused one had nothing"
        );
        let groups = published.groups(&key("one")).unwrap();
        assert_eq!(groups.len(), 2);
        assert!(published.groups(&key("two")).unwrap().is_empty());
        assert!(published.groups(&Key::new("default", "web")).is_none());

        std::fs::write(dir.path().join("gone"), "127.0.0.1:1 1/tcp\n").unwrap();
        drop(published);
        let published = Published::open(dir.path(), known).unwrap();
        assert_eq!(published.of("one"), chosen);
        assert!(!dir.path().join("gone").exists());
        assert!(published.publish("two", address, &chosen[..1]).is_err(), "reserved again");

        // Others instead: those that stay are kept, and a refusal leaves everything as it is.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = port(&format!("{} 90/tcp", other.local_addr().unwrap()));
        assert!(published.publish("one", address, &[chosen[1], taken]).is_err());
        assert_eq!(published.of("one"), chosen);
        assert_eq!(published.groups(&key("one")).unwrap().len(), 2);
        assert!(published.publish("two", address, &chosen[..1]).is_err(), "still reserved");
        let (fewer, change) = published.publish("one", address, &chosen[1..]).unwrap();
        assert_eq!((fewer.as_slice(), change), (&chosen[1..], 1));
        drop(other);
        published.publish("one", address, &[chosen[1], taken]).unwrap();
        assert!(published.publish("two", address, &chosen[1..]).is_err(), "kept throughout");
        drop(published.withdraw("one").unwrap().unwrap());
        assert!(published.withdraw("one").unwrap().is_none());
        published.publish("two", address, &chosen[..1]).unwrap();
    }
}
