//! The host's address: what it is, and what follows when it changes while the daemon runs.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use sys::net::{HostEvents, Routing};
use tokio::sync::watch;

/// Addresses and routes change in bursts (an address goes, another comes, the default route after it): they are acted
/// on once nothing has changed for so long.
const SETTLED: Duration = Duration::from_millis(250);
/// They are looked at after so long at the latest: also the coming and going of pods is news.
const SETTLED_MAX: Duration = Duration::from_secs(2);

/// Who has to know of a new address before the Node object shows it.
#[async_trait]
pub(crate) trait Follower: Send + Sync + 'static {
    /// Follows the change to `address`. Called again, with the newest address, until it succeeds.
    async fn follow(&self, address: IpAddr) -> Result<(), BoxError>;
}

/// Follows the host's address. The Node object comes last: whoever sees the address there finds certificates,
/// endpoints and kubeconfigs changed already.
pub(crate) struct HostAddress {
    instance: String,
    routing: Arc<dyn Routing>,
    followers: Vec<Arc<dyn Follower>>,
    /// The followers' components.
    after: &'static [&'static str],
    addresses: watch::Sender<Vec<IpAddr>>,
}

impl HostAddress {
    /// Begins with the address that everything was built with. The second of `followers` names their components.
    pub(crate) fn new(
        instance: &str,
        routing: Arc<dyn Routing>,
        (followers, after): (Vec<Arc<dyn Follower>>, &'static [&'static str]),
        address: IpAddr,
    ) -> Self {
        let addresses = watch::Sender::new(vec![address]);
        Self { instance: instance.to_owned(), routing, followers, after, addresses }
    }

    /// The addresses, for the node.
    pub(crate) fn watch(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.addresses.subscribe()
    }

    async fn follow(&self) -> Result<(), BoxError> {
        let Some(address) = current(&*self.routing, &self.instance) else { return Ok(()) };
        let held = self.addresses.borrow().first().copied();
        if held == Some(address) {
            return Ok(());
        }
        tracing::info!(%address, "the host's address changed");
        for follower in &self.followers {
            follower.follow(address).await?;
        }
        self.addresses.send_replace(vec![address]);
        Ok(())
    }
}

#[async_trait]
impl Component for HostAddress {
    fn name(&self) -> &'static str {
        "host-address"
    }

    fn after(&self) -> &'static [&'static str] {
        self.after
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        // Listened to before the first look: what changes in between is told.
        let events = HostEvents::open()?;
        ctx.ready();
        loop {
            self.follow().await?;
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                changed = events.changed() => changed?,
            }
            let settled = async {
                while let Ok(more) = tokio::time::timeout(SETTLED, events.changed()).await {
                    more?;
                }
                Ok(())
            };
            tokio::time::timeout(SETTLED_MAX, settled).await.unwrap_or(Ok::<_, BoxError>(()))?;
        }
    }
}

/// The address by which others reach this host: the source that the kernel would choose towards the outside, else the
/// first address of a link that is not Skiff's own. `None` where there is neither, perhaps only for the moment.
pub(crate) fn current(routing: &dyn Routing, instance: &str) -> Option<IpAddr> {
    preferred().or_else(|| first(routing, instance)).map(IpAddr::V4)
}

/// Connecting a UDP socket asks the kernel's routing table and sends nothing. `None` without a default route.
fn preferred() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // 192.0.2.1 is documentation's (RFC 5737): it stands for "anywhere outside".
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => Some(address),
        _ => None,
    }
}

fn first(routing: &dyn Routing, instance: &str) -> Option<Ipv4Addr> {
    let own = network::host::own_links(routing, instance).ok()?;
    let mut found: Vec<_> = routing
        .addresses()
        .ok()?
        .into_iter()
        .map(|(link, net)| (link, net.addr()))
        .filter(|(link, address)| !own.contains(link) && !address.is_loopback() && !address.is_link_local())
        .collect();
    found.sort_unstable();
    found.first().map(|(_, address)| *address)
}
