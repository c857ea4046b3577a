//! Tells the nodes that have joined where the API server is: once it has moved, they cannot ask it any more, but it can
//! reach them, and each side proves by certificate who it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::connect::{NodeAddress, NodeConnector};
use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::backoff::Policy;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context, OnFailure};
use http_body_util::{BodyExt as _, Empty};
use parking_lot::Mutex;
use reconcile::{Action, Informer, Informers, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use tokio::sync::watch;

use super::connect::Connector;

const NAME: &str = "members";

/// A node that cannot be told is tried again; one that was away may be waiting for it.
const RETRY: Policy = Policy { first: Duration::from_millis(250), max: Duration::from_secs(30) };

/// Nodes that are told at once.
const WORKERS: usize = 4;

/// The component.
pub(crate) struct Members {
    worker: Arc<Worker>,
    clock: SharedClock,
}

struct Worker {
    nodes: Informer,
    connector: Arc<Connector>,
    /// The node of this process, which need not be told.
    own: String,
    /// This host's addresses, the API server's first.
    addresses: watch::Receiver<Vec<IpAddr>>,
    port: u16,
    /// What each node was told last, and which object it had then.
    told: Mutex<BTreeMap<Key, (String, SocketAddr)>>,
}

impl Members {
    /// Tells all nodes but `own` that the API server is at the first of `addresses`.
    pub(crate) fn new(
        informers: &Informers,
        connector: Arc<Connector>,
        own: &str,
        (addresses, port): (watch::Receiver<Vec<IpAddr>>, u16),
        clock: SharedClock,
    ) -> Self {
        let (nodes, own) = (informers.get(kinds::NODES), own.to_owned());
        let worker = Worker { nodes, connector, own, addresses, port, told: Mutex::default() };
        Self { worker: Arc::new(worker), clock }
    }
}

#[async_trait]
impl Component for Members {
    fn name(&self) -> &'static str {
        NAME
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = self.worker.clone();
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = worker.nodes.synced() => {}
        }
        let queue = Queue::with_backoff(self.clock.clone(), RETRY);
        let listener = queue.clone();
        let _registration = worker.nodes.on_change(move |change| listener.add(change.key.clone()));
        let (mut addresses, all, everybody) = (worker.addresses.clone(), worker.nodes.clone(), queue.clone());
        ctx.spawn(async move {
            // Its end means that the address never changes.
            while addresses.changed().await.is_ok() {
                all.list().iter().for_each(|node| everybody.add(node.key()));
            }
        });
        ctx.ready();
        run_workers(&ctx, NAME, &queue, WORKERS, worker).await;
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeView {
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    addresses: Vec<Address>,
    daemon_endpoints: DaemonEndpoints,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    r#type: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonEndpoints {
    kubelet_endpoint: Endpoint,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "Port")]
    port: u16,
}

/// Where a node's server is; `None` as long as the node has not said so.
fn address_of(node: &Object) -> Result<Option<NodeAddress>, BoxError> {
    let NodeStatus { addresses, daemon_endpoints } = node.decode::<NodeView>()?.status;
    let internal = addresses.iter().find(|address| address.r#type == "InternalIP");
    let port = daemon_endpoints.kubelet_endpoint.port;
    let Some(address) = internal.and_then(|internal| internal.address.parse().ok()) else { return Ok(None) };
    Ok((port != 0).then(|| NodeAddress { name: node.meta().name.clone(), address, port }))
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let node = self.nodes.get(key).filter(|node| node.meta().name != self.own);
        let Some(node) = node else {
            self.told.lock().remove(key);
            return Ok(Action::Done);
        };
        let Some(at) = address_of(&node)? else { return Ok(Action::Done) };
        let Some(address) = self.addresses.borrow().first().copied() else { return Ok(Action::Done) };
        let server = SocketAddr::new(address, self.port);
        let news = (node.meta().uid.clone(), server);
        if self.told.lock().get(key) == Some(&news) {
            return Ok(Action::Done);
        }
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::put(format!("/apiServer?at={server}")).body(body)?;
        let answer = self.connector.request(&at, request).await?;
        if !answer.status().is_success() {
            return Err(format!("node {} answered {}", at.name, answer.status()).into());
        }
        self.told.lock().insert(key.clone(), news);
        Ok(Action::Done)
    }
}
