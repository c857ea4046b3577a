//! The orderly release of a terminating pod: the data path sends it nothing new, and what came through Services has
//! ended. Events of the connection tracker tell when; nothing is looked at again and again.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use reconcile::ports::{Drain, PodRef};
use sys::net::{ConntrackEvents, Flow, FlowChange, TcpState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;
use crate::host::Handles;
use crate::proxy::agent::View;

const TCP: u8 = 6;

/// [`Drain`] by the service proxy and the connection tracker of this node.
pub struct DataPath {
    view: View,
    handles: Handles,
    // While this is held, the kernel can tell the end of every connection that begins.
    _events: ConntrackEvents,
}

impl DataPath {
    /// Made before the first connection that it shall see the end of, in the node's network namespace.
    pub fn new(view: View, handles: Handles) -> Result<Self, Error> {
        Ok(Self { view, handles, _events: ConntrackEvents::keep_open()? })
    }

    async fn let_go(&self, addresses: &HashSet<Ipv4Addr>) {
        let mut revision = self.view.revision();
        while addresses.iter().any(|address| self.view.sends_to(*address)) {
            // The proxy's view lives as long as this one, so waiting cannot fail.
            let _ = revision.changed().await;
        }
    }

    async fn ended(&self, addresses: &HashSet<Ipv4Addr>) -> Result<(), BoxError> {
        // Listened to before the list is read: what happens in between is told.
        // Deprecated for types that lie about their descriptor, in favour of an unsafe function; this one owns its
        // socket and never changes it.
        #[allow(deprecated)]
        let events = AsyncFd::with_interest(ConntrackEvents::open()?, Interest::READABLE)?;
        let mut open = self.list(addresses).await?;
        while !open.is_empty() {
            let mut ready = events.readable().await?;
            let read = events.get_ref().read(|change| follow(&mut open, addresses, change));
            ready.clear_ready();
            if read.is_err() {
                // News was lost in a burst: begin again from the list.
                open = self.list(addresses).await?;
            }
        }
        Ok(())
    }

    async fn list(&self, addresses: &HashSet<Ipv4Addr>) -> Result<HashSet<Flow>, BoxError> {
        let (conntrack, addresses) = (self.handles.conntrack.clone(), addresses.clone());
        let list = move || {
            let mut open = HashSet::new();
            conntrack.each(&mut |flow, state| follow(&mut open, &addresses, FlowChange::Is(flow, state)))?;
            Ok::<_, Error>(open)
        };
        Ok(tokio::task::spawn_blocking(list).await??)
    }
}

/// Keeps the set of open TCP connections that came to `addresses` through a Service.
fn follow(open: &mut HashSet<Flow>, addresses: &HashSet<Ipv4Addr>, change: FlowChange) {
    match change {
        FlowChange::Is(flow, Some(TcpState::Alive))
            if flow.protocol == TCP && flow.is_translated() && addresses.contains(flow.answered_by.ip()) =>
        {
            open.insert(flow);
        }
        FlowChange::Is(flow, Some(TcpState::Over)) | FlowChange::Gone(flow) => {
            open.remove(&flow);
        }
        FlowChange::Is(..) => {}
    }
}

#[async_trait]
impl Drain for DataPath {
    fn serves(&self, pod: &PodRef) -> bool {
        let addresses = addresses(pod);
        self.view.read(|catalog| addresses.iter().any(|address| catalog.is_endpoint(*address)))
    }

    async fn released(&self, pod: &PodRef, at_most: Duration) {
        let addresses = addresses(pod);
        let work = async {
            self.let_go(&addresses).await;
            self.ended(&addresses).await
        };
        match tokio::time::timeout(at_most, work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = base::error::chain(&*error);
                tracing::warn!(pod = %pod.name, %error, "cannot see when the pod's connections end");
            }
            Err(_) => tracing::debug!(pod = %pod.name, "signalled with connections still open"),
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
        let pod = HashSet::from([Ipv4Addr::new(10, 42, 0, 2)]);
        let flow = |destination: &str, answered_by: &str| Flow {
            protocol: TCP,
            source: "10.42.0.9:40000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            answered_by: answered_by.parse().unwrap(),
            answered_to: "10.42.0.9:40000".parse().unwrap(),
        };
        let through = flow("10.43.0.7:80", "10.42.0.2:8080");
        let direct = flow("10.42.0.2:8080", "10.42.0.2:8080");
        let other = flow("10.43.0.7:80", "10.42.0.3:8080");
        let mut open = HashSet::new();
        for flow in [through, direct, other] {
            follow(&mut open, &pod, FlowChange::Is(flow, Some(TcpState::Alive)));
        }
        assert_eq!(open, HashSet::from([through]));
        follow(&mut open, &pod, FlowChange::Is(through, None));
        assert_eq!(open.len(), 1);
        follow(&mut open, &pod, FlowChange::Is(through, Some(TcpState::Over)));
        assert!(open.is_empty());
    }
}
