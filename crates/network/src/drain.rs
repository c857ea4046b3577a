//! The orderly release of a terminating pod: the data path of every node sends it nothing new, and what came through
//! Services has ended. Events of the connection tracker tell when; nothing is looked at again and again.
//!
//! A pod that is its Services' last endpoint is still sent what comes (KEP-1669) and cannot be let go of: it is left
//! time for the connections that it has.
//!
//! Connections that clients keep open and use again and again do not end by themselves. A server that is told to stop
//! closes them; where a request crosses that on its way, or lies unread in the server's socket, the client is told by a
//! reset, which also throws away what the client has not read yet. So from the signal on what clients send is held back
//! for a moment (their kernels send it again): the server answers what it has and ends quiet connections in order,
//! after the last byte of its answers. A server that goes on serving has what was held back when the moment is over.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use ipnet::Ipv4Net;
use reconcile::ports::{Drain, PodRef};
use sys::net::nft::{Op, Transaction};
use sys::net::{ConntrackEvents, End, Flow, FlowChange, TcpState, or_missing};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;
use crate::host::Handles;
use crate::peers::Peers;
use crate::proxy::agent::View;
use crate::proxy::table::{Fixed, PAUSED};

const TCP: u8 = 6;
/// How long clients' requests are held back from the signal on: long enough for a server to close its connections,
/// shorter than the second time that a client's kernel sends a request again (after 600 ms).
pub const PAUSE: Duration = Duration::from_millis(500);

/// [`Drain`] by the service proxy and the connection tracker of this node, and the reports of the others.
pub struct DataPath {
    view: View,
    handles: Handles,
    peers: Peers,
    fixed: Fixed,
    pause: Duration,
    // While this is held, the kernel can tell the end of every connection that begins.
    _events: ConntrackEvents,
}

/// The connections that a terminating pod is to be left with time for.
struct Wanted {
    /// The pod's addresses.
    pod: HashSet<Ipv4Addr>,
    /// Where Services that have an address of their own reach the pod.
    served: BTreeSet<SocketAddrV4>,
    /// The pods of this node.
    node_pods: Ipv4Net,
    /// The addresses of this host.
    host: HashSet<Ipv4Addr>,
}

impl Wanted {
    /// Whether a connection came to the pod through a Service: translated here, or on the node that it came from,
    /// where it looks as if it had been addressed to the pod.
    fn includes(&self, flow: &Flow) -> bool {
        let source = flow.source.ip();
        let elsewhere = || !self.node_pods.contains(source) && !self.host.contains(source);
        flow.protocol == TCP
            && self.pod.contains(flow.answered_by.ip())
            && (flow.is_translated() || self.served.contains(&flow.answered_by) && elsewhere())
    }
}

/// TCP connections to a terminating pod.
#[derive(Default)]
struct Seen {
    /// Those that are open.
    open: HashSet<Flow>,
    /// Those that have ended and are still remembered. Their clients may use the same port again, and would be sent
    /// to the pod once more.
    over: Vec<Flow>,
}

impl Seen {
    fn follow(&mut self, wanted: &Wanted, change: FlowChange) {
        match change {
            FlowChange::Is(flow, Some(TcpState::Alive)) if wanted.includes(&flow) => {
                self.open.insert(flow);
            }
            FlowChange::Is(flow, Some(TcpState::Over)) if wanted.includes(&flow) => {
                self.open.remove(&flow);
                self.over.push(flow);
            }
            FlowChange::Gone(flow) => {
                self.open.remove(&flow);
            }
            FlowChange::Is(..) => {}
        }
    }
}

impl DataPath {
    /// Made before the first connection that it shall see the end of, in the node's network namespace; `fixed` is what
    /// the proxy has, `pause` usually [`PAUSE`].
    pub fn new(
        view: View,
        handles: Handles,
        peers: Peers,
        fixed: Fixed,
        pause: Duration,
    ) -> Result<Self, Error> {
        Ok(Self { view, handles, peers, fixed, pause, _events: ConntrackEvents::keep_open()? })
    }

    /// Returns when this node sends the pod no new connection by right.
    async fn let_go(&self, addresses: &HashSet<Ipv4Addr>) {
        let mut revision = self.view.revision();
        while addresses.iter().any(|address| self.view.sends_to(*address)) {
            // The proxy's view lives as long as this one, so waiting cannot fail.
            let _ = revision.changed().await;
        }
    }

    /// Returns when the other nodes have programmed the slices that say that the pod terminates.
    async fn others_let_go(&self, addresses: &HashSet<Ipv4Addr>) {
        let named = self.view.read(|catalog| addresses.iter().filter_map(|at| catalog.named_at(*at)).max());
        let revision = named.unwrap_or_else(|| *self.view.revision().borrow());
        self.peers.programmed(revision).await;
    }

    /// Returns when the connections that came through Services have ended.
    async fn ended(&self, wanted: Arc<Wanted>) -> Result<(), BoxError> {
        // Listened to before the list is read: what happens in between is told.
        #[allow(
            deprecated,
            reason = "in favour of an unsafe function, for types that change their descriptor; this one owns it"
        )]
        let events = AsyncFd::with_interest(ConntrackEvents::open()?, Interest::READABLE)?;
        let mut seen = self.list(&wanted).await?;
        loop {
            self.forget(std::mem::take(&mut seen.over)).await?;
            if seen.open.is_empty() {
                return Ok(());
            }
            let mut ready = events.readable().await?;
            let read = events.get_ref().read(|change| seen.follow(&wanted, change));
            ready.clear_ready();
            if read.is_err() {
                // News was lost in a burst: begin again from the list.
                seen = self.list(&wanted).await?;
            }
        }
    }

    async fn list(&self, wanted: &Arc<Wanted>) -> Result<Seen, BoxError> {
        let (conntrack, wanted) = (self.handles.conntrack.clone(), wanted.clone());
        let list = move || {
            let mut seen = Seen::default();
            conntrack.each(&mut |flow, state| seen.follow(&wanted, FlowChange::Is(flow, state)))?;
            Ok::<_, Error>(seen)
        };
        Ok(tokio::task::spawn_blocking(list).await??)
    }

    async fn forget(&self, over: Vec<Flow>) -> Result<(), BoxError> {
        if over.is_empty() {
            return Ok(());
        }
        let conntrack = self.handles.conntrack.clone();
        let forget = move || over.iter().try_for_each(|flow| or_missing(conntrack.forget(flow, End::Server)));
        Ok(tokio::task::spawn_blocking(forget).await??)
    }

    fn wanted(&self, addresses: &HashSet<Ipv4Addr>) -> Result<Wanted, Error> {
        let served =
            self.view.read(|catalog| addresses.iter().flat_map(|at| catalog.served_at(*at)).collect());
        let host = self.handles.routing.addresses()?.into_iter().map(|(_, net)| net.addr()).collect();
        Ok(Wanted { pod: addresses.clone(), served, node_pods: self.fixed.node_pods, host })
    }

    /// Holds back what clients send to the pod, for a moment that the kernel ends by itself.
    async fn pause(&self, addresses: &HashSet<Ipv4Addr>) -> Result<(), BoxError> {
        let keys = addresses.iter().map(|address| address.octets().to_vec()).collect();
        let ops = vec![Op::AddExpiring(PAUSED.into(), keys, self.pause)];
        let nftables = self.handles.nftables.clone();
        let transaction = Transaction { table: self.fixed.table.clone(), ops };
        Ok(tokio::task::spawn_blocking(move || nftables.apply(&transaction)).await??)
    }
}

#[async_trait]
impl Drain for DataPath {
    fn serves(&self, pod: &PodRef) -> bool {
        let addresses = addresses(pod);
        // Right after a start, what is programmed is an earlier process's and may send it connections.
        !self.view.is_complete()
            || self.view.read(|catalog| addresses.iter().any(|address| catalog.is_endpoint(*address)))
    }

    async fn released(&self, pod: &PodRef, at_most: Duration) {
        let addresses = addresses(pod);
        let work = async {
            let wanted = Arc::new(self.wanted(&addresses)?);
            self.let_go(&addresses).await;
            self.others_let_go(&addresses).await;
            self.ended(wanted).await
        };
        match tokio::time::timeout(at_most, work).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let error = base::error::chain(&*error);
                tracing::warn!(pod = %pod.name, %error, "cannot see when the pod's connections end");
            }
            Err(_) => tracing::debug!(pod = %pod.name, "signalled with connections still open"),
        }
        // Without any grace nobody waits for the server to end in order.
        if !at_most.is_zero()
            && let Err(error) = self.pause(&addresses).await
        {
            let error = base::error::chain(&*error);
            tracing::warn!(pod = %pod.name, %error, "its clients may see resets");
        }
    }
}

fn addresses(pod: &PodRef) -> HashSet<Ipv4Addr> {
    let v4 = |address: &IpAddr| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    };
    pod.addresses.iter().filter_map(v4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_through_services_to_the_pod_count() {
        let wanted = Wanted {
            pod: HashSet::from([Ipv4Addr::new(10, 42, 0, 2)]),
            served: BTreeSet::from(["10.42.0.2:8080".parse().unwrap()]),
            node_pods: "10.42.0.0/24".parse().unwrap(),
            host: HashSet::from([Ipv4Addr::new(192, 0, 2, 1)]),
        };
        let flow = |source: &str, destination: &str, answered_by: &str| Flow {
            protocol: TCP,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            answered_by: answered_by.parse().unwrap(),
            answered_to: source.parse().unwrap(),
        };
        let here = "10.42.0.9:40000";
        let through = flow(here, "10.43.0.7:80", "10.42.0.2:8080");
        let from_other_node = flow("10.42.7.9:40000", "10.42.0.2:8080", "10.42.0.2:8080");
        let mut seen = Seen::default();
        for flow in [
            through,
            from_other_node,
            flow(here, "10.42.0.2:8080", "10.42.0.2:8080"),
            flow("192.0.2.1:40000", "10.42.0.2:8080", "10.42.0.2:8080"),
            flow("10.42.7.9:40000", "10.42.0.2:22", "10.42.0.2:22"),
            flow(here, "10.43.0.7:80", "10.42.0.3:8080"),
        ] {
            seen.follow(&wanted, FlowChange::Is(flow, Some(TcpState::Alive)));
        }
        assert_eq!(seen.open, HashSet::from([through, from_other_node]));
        seen.follow(&wanted, FlowChange::Is(through, None));
        seen.follow(&wanted, FlowChange::Gone(from_other_node));
        assert_eq!(seen.open, HashSet::from([through]));
        seen.follow(&wanted, FlowChange::Is(through, Some(TcpState::Over)));
        assert!(seen.open.is_empty());
        assert_eq!(seen.over, [through]);
    }
}
