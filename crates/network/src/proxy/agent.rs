//! The component that keeps the kernel's maps equal to the API's Services.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use api::Key;
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use parking_lot::RwLock;
use reconcile::kinds::{ENDPOINT_SLICES, NODES, SERVICES};
use reconcile::{Informer, Informers, Registration};
use sys::net::nft::{Op, Transaction};
use sys::net::{Conntrack, End, Flow, or_missing};
use tokio::sync::watch;

use super::desired::{Place, groups};
use super::plan::{Batch, Stale, State};
use super::table::{Fixed, fixed};
use crate::Error;
use crate::catalog::Catalog;
use crate::host::Handles;
use crate::published::Published;

/// The label that names a node's zone. Source: upstream's `v1.LabelTopologyZone`.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What others see of the proxy: the joined Services and endpoints, and what is programmed. Cheap to clone.
#[derive(Clone)]
pub struct View {
    catalog: Arc<RwLock<Catalog>>,
    programmed: Arc<RwLock<Programmed>>,
    /// Sent after every transaction: the revision of the endpoint slices that the kernel reflects.
    revision: watch::Sender<i64>,
}

/// What is planned, and whether the kernel has it already.
#[derive(Default)]
struct Programmed {
    state: Option<State>,
    settled: bool,
    /// Whether a first transaction has made the kernel's table this process's own.
    complete: bool,
}

impl Default for View {
    fn default() -> Self {
        Self { catalog: Arc::default(), programmed: Arc::default(), revision: watch::Sender::new(0) }
    }
}

impl View {
    /// Reads the catalog.
    pub fn read<T>(&self, read: impl FnOnce(&Catalog) -> T) -> T {
        read(&self.catalog.read())
    }

    /// Whether what this process knows is what the kernel does: before, an earlier process's table is in force.
    pub fn is_complete(&self) -> bool {
        self.programmed.read().complete
    }

    /// Whether new connections may be sent to this address by right: also while nothing is known yet. An address that
    /// terminates and is used for want of a better one does not count.
    pub fn sends_to(&self, address: Ipv4Addr) -> bool {
        let programmed = self.programmed.read();
        !programmed.settled || programmed.state.as_ref().is_none_or(|state| state.sends_to(address))
    }

    /// The TCP ports at which this host serves, with the address where only one does; see [`State::host_ports`].
    pub fn host_ports(&self) -> BTreeSet<(Option<Ipv4Addr>, u16)> {
        self.programmed.read().state.as_ref().map(State::host_ports).unwrap_or_default()
    }

    /// The revision of the endpoint slices that the kernel reflects, and every newer one.
    pub fn revision(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }
}

/// The service proxy of one node.
pub struct Proxy {
    services: Informer,
    slices: Informer,
    nodes: Informer,
    handles: Handles,
    fixed: Fixed,
    node: String,
    published: Published,
    view: View,
}

impl Proxy {
    /// The proxy of the node `node`; `fixed` is what [`crate::host::set_up`] gave, `published` are the ports of its
    /// sandboxes.
    pub fn new(
        informers: &Informers,
        handles: Handles,
        fixed: Fixed,
        published: Published,
        node: &str,
    ) -> Self {
        Self {
            services: informers.get(SERVICES),
            slices: informers.get(ENDPOINT_SLICES),
            nodes: informers.get(NODES),
            handles,
            fixed,
            node: node.to_owned(),
            published,
            view: View::default(),
        }
    }

    /// What others see of it.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// The zone that this node's own object names, told anew when that changes. Whatever else changes of nodes, which is
    /// much, wakes nobody.
    fn zone(&self) -> (watch::Receiver<String>, Registration) {
        let (zone, told) = watch::channel(String::new());
        let node = self.node.clone();
        let registration = self.nodes.on_change(move |change| {
            if change.key.name != node {
                return;
            }
            let named = change.new.as_ref().and_then(|node| node.meta().labels.get(ZONE).cloned());
            let named = named.unwrap_or_default();
            zone.send_if_modified(|held| {
                let is_new = *held != named;
                *held = named;
                is_new
            });
        });
        (told, registration)
    }

    /// Plans the changes of `keys` and gives them with the UDP connections to look at anew.
    fn plan(&self, keys: &BTreeSet<Key>, zone: &str) -> (Vec<Op>, Vec<Stale>) {
        let place = Place { node: &self.node, zone };
        let catalog = self.view.catalog.read();
        let mut programmed = self.view.programmed.write();
        programmed.settled = false;
        let Some(state) = programmed.state.as_mut() else { return Default::default() };
        let mut batch = Batch::default();
        let mut stale = Vec::new();
        let mut change = |state: &mut State, key: &Key, batch: &mut Batch| {
            if let Some(published) = self.published.groups(key) {
                stale.extend(state.change(key, &published, batch));
                return;
            }
            // DNS is served at its Service's address by this node itself.
            let desired = catalog
                .get(key)
                .and_then(|entry| Some((entry.service.as_ref()?, entry)))
                .filter(|(service, _)| {
                    service.spec.cluster_ip.as_deref() != Some(&*self.fixed.ranges.dns().to_string())
                })
                .map(|(service, entry)| {
                    let slices: Vec<_> = entry.slices.values().map(|slice| (**slice).clone()).collect();
                    groups(service, &slices, place)
                });
            stale.extend(state.change(key, &desired.unwrap_or_default(), batch));
        };
        for key in keys {
            change(state, key, &mut batch);
        }
        // An address that one Service gave up may be what another waits for; its own changes come in a batch of
        // their own, since it may have been planned in this one already.
        let mut ops = batch.into_ops();
        let mut second = Batch::default();
        for key in state.waiting() {
            change(state, &key, &mut second);
        }
        ops.extend(second.into_ops());
        (ops, stale)
    }

    /// Carries out the operations off the async threads: a first transaction may take a while.
    async fn apply(&self, ops: Vec<Op>) -> Result<(), BoxError> {
        if ops.is_empty() {
            return Ok(());
        }
        let nftables = self.handles.nftables.clone();
        let transaction = Transaction { table: self.fixed.table.clone(), ops };
        Ok(tokio::task::spawn_blocking(move || nftables.apply(&transaction)).await??)
    }

    async fn forget(&self, stale: Vec<Stale>) -> Result<(), BoxError> {
        if stale.is_empty() {
            return Ok(());
        }
        let conntrack = self.handles.conntrack.clone();
        Ok(tokio::task::spawn_blocking(move || forget(&*conntrack, &stale)).await??)
    }
}

/// Forgets the UDP connections that lead to endpoints which are gone: the client's next packet finds another.
fn forget(conntrack: &dyn Conntrack, stale: &[Stale]) -> Result<(), Error> {
    let mut flows: Vec<Flow> = Vec::new();
    conntrack.each(&mut |flow, _| {
        let matches = |stale: &Stale| {
            flow.protocol == stale.frontend.protocol
                && flow.answered_by == stale.endpoint
                && flow.destination.port() == stale.frontend.port
                && stale.frontend.address.is_none_or(|address| address == *flow.destination.ip())
        };
        if stale.iter().any(matches) {
            flows.push(flow);
        }
    })?;
    for flow in flows {
        or_missing(conntrack.forget(&flow, End::Server))?;
    }
    Ok(())
}

#[async_trait]
impl Component for Proxy {
    fn name(&self) -> &'static str {
        "service-proxy"
    }

    fn on_failure(&self) -> OnFailure {
        // What is programmed is not known any more then: `run` makes the table anew, in one transaction.
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let (mut services, mut slices) = (self.services.subscribe(), self.slices.subscribe());
        // Until everything is known, what an earlier process programmed stays in force.
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = async {
                tokio::join!(self.services.synced(), self.slices.synced(), self.nodes.synced());
            } => {}
        }
        *self.view.catalog.write() = Catalog::default();
        *self.view.programmed.write() =
            Programmed { state: Some(State::new(self.fixed.node_pods)), settled: false, complete: false };
        let mut published = self.published.news();
        let mut reached = self.slices.revisions();
        let (mut zones, _registration) = self.zone();
        let mut zone = String::new();
        let mut ops = fixed(&self.fixed);
        let mut first = true;
        loop {
            let mut keys = BTreeSet::new();
            // Everything that came while the last transaction was under way is one transaction.
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                changes = services.changed() => keys = self.view.catalog.write().services_changed(&changes),
                changes = slices.changed() => keys = self.view.catalog.write().slices_changed(&changes),
                // Their senders are held by this component.
                _ = published.changed() => {}
                _ = zones.changed() => {}
                // Changes may have been taken before it was said up to where they go.
                _ = reached.changed() => {}
                () = std::future::ready(()), if first => {}
            }
            let change = *published.borrow_and_update();
            keys.extend(self.published.take_changed(first));
            if let Some(changes) = futures::FutureExt::now_or_never(services.changed()) {
                keys.extend(self.view.catalog.write().services_changed(&changes));
            }
            let revision = *reached.borrow_and_update();
            if let Some(changes) = futures::FutureExt::now_or_never(slices.changed()) {
                keys.extend(self.view.catalog.write().slices_changed(&changes));
            }
            let named = zones.borrow_and_update().clone();
            if named != zone {
                zone = named;
                keys.extend(self.view.catalog.read().hinted());
            }
            let (changes, stale) = self.plan(&keys, &zone);
            ops.extend(changes);
            self.apply(std::mem::take(&mut ops)).await?;
            self.forget(stale).await?;
            {
                let mut programmed = self.view.programmed.write();
                programmed.settled = true;
                programmed.complete = true;
            }
            self.view.revision.send_replace(revision);
            self.published.reached(change);
            if first {
                first = false;
                ctx.ready();
            }
        }
    }
}
