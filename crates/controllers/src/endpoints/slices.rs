//! The controller that keeps EndpointSlices; what they say is decided in [`super::plan`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::backoff::Policy;
use base::lifecycle::{Component, Context};
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, Registration, kinds,
    run_workers,
};

use super::hints::Distribution;
use super::plan::{self, Known, MANAGER, Outcome, Place, Step};
use super::topology::{self, Zones};
use super::trigger::Triggers;
use super::types::{MANAGED_BY, SERVICE_NAME, Service, Slice};
use super::{WORKERS, Watched};
use crate::claim::{ignore_gone, is_ending_namespace};
use crate::context::{Ctx, decode, ready};
use crate::figures::slices::{Look, Sizes};

const NAME: &str = "endpointslice-controller";
/// The source of its events.
const EVENTS: &str = "endpoint-slice-controller";
/// Source: `defaultSyncBackOff`, `maxSyncBackOff`.
const BACKOFF: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(1000) };

/// The EndpointSlice controller.
pub struct EndpointSlices {
    ctx: Ctx,
}

impl EndpointSlices {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for EndpointSlices {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let watched = Arc::new(Watched::new(&self.ctx, self.ctx.queue_with("endpoint_slice", BACKOFF)));
        let _registrations = watched.listen();
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            slices: self.ctx.informers.get(kinds::ENDPOINT_SLICES),
            nodes: self.ctx.informers.get(kinds::NODES),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), EVENTS, ""),
            triggers: Triggers::default(),
            zones: Arc::default(),
            watched,
        });
        let queue = worker.watched.queue.clone();
        let _slices = worker.slices.on_change(move |change| {
            services_of(change, MANAGER).into_iter().for_each(|key| queue.add(key));
        });
        let shares = Queue::new(self.ctx.clock.clone());
        let _nodes = worker.listen_to_nodes(shares.clone());
        if !ready(&ctx, &worker.caches()).await {
            return Ok(());
        }
        // Whoever is looked at first needs the zones' shares, and nobody waits for news of them yet.
        worker.zones.count();
        let counter =
            Arc::new(Counter { zones: worker.zones.clone(), services: worker.watched.queue.clone() });
        let queue = worker.watched.queue.clone();
        tokio::join!(
            run_workers(&ctx, NAME, &queue, WORKERS, worker),
            run_workers(&ctx, NAME, &shares, 1, counter)
        );
        Ok(())
    }
}

/// The Services whose slice, kept by `manager` before or after, changed.
pub(super) fn services_of(change: &Change, manager: &str) -> Vec<Key> {
    let service = |slice: &Arc<Object>| {
        let labels = &slice.meta().labels;
        let name =
            labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|by| by == manager))?;
        Some(Key::new(change.key.namespace.as_str(), name.as_str()))
    };
    let mut keys: Vec<Key> = [&change.old, &change.new].into_iter().flatten().filter_map(service).collect();
    keys.dedup();
    keys
}

/// The slices of a Service that `manager` keeps.
pub(super) fn held(slices: &Informer, key: &Key, manager: &str) -> Result<Vec<Slice>, BoxError> {
    let of_service = slices.by_label(&key.namespace, SERVICE_NAME, &key.name);
    let is_kept = |slice: &&Arc<Object>| {
        let meta = slice.meta();
        meta.labels.get(MANAGED_BY).is_some_and(|by| by == manager) && !meta.is_terminating()
    };
    of_service.iter().filter(is_kept).map(|slice| decode(slice)).collect()
}

/// Counts the zones' shares anew when nodes have changed. Source: `checkNodeTopologyDistribution`.
struct Counter {
    zones: Arc<Zones>,
    services: Queue<Key>,
}

#[async_trait]
impl Reconcile<()> for Counter {
    async fn reconcile(&self, (): &()) -> Result<Action, BoxError> {
        self.zones.count().into_iter().for_each(|service| self.services.add(service));
        Ok(Action::Done)
    }
}

struct Worker {
    ctx: Ctx,
    watched: Arc<Watched>,
    slices: Informer,
    nodes: Informer,
    events: EventRecorder,
    triggers: Triggers,
    zones: Arc<Zones>,
}

impl Worker {
    fn caches(&self) -> [&Informer; 4] {
        [&self.watched.services, &self.watched.pods, &self.nodes, &self.slices]
    }

    /// Nodes tell their endpoints' zones, and what their zones can bear.
    fn listen_to_nodes(&self, shares: Queue<()>) -> Registration {
        let (zones, watched) = (self.zones.clone(), Arc::downgrade(&self.watched));
        self.nodes.on_change(move |change| {
            if zones.node_changed(&change.key.name, change.new.as_deref()) {
                shares.add(());
            }
            let zone = |node: &Option<Arc<Object>>| node.as_ref().map(|node| topology::zone_of(node));
            // Pods of a node that has gone are looked at when they go.
            if change.new.is_some() && zone(&change.old) != zone(&change.new) {
                watched.upgrade().into_iter().for_each(|watched| watched.node_changed(&change.key.name));
            }
        })
    }

    fn forget(&self, key: &Key) {
        self.triggers.forget(key);
        self.zones.set(key, BTreeMap::new(), false);
        self.ctx.figures.iter().for_each(|figures| figures.slices.forget(key));
    }

    /// The slices of a Service that this controller keeps.
    fn held(&self, key: &Key) -> Result<Vec<Slice>, BoxError> {
        held(&self.slices, key, MANAGER)
    }

    fn plan(&self, key: &Key, service: &Service) -> Result<Outcome, BoxError> {
        let pods = self.watched.selected(key, service);
        let (ratios, hinted) = self.zones.of(key);
        let known = Known {
            service,
            pods: &pods,
            slices: self.held(key)?,
            trigger: self.triggers.next(key, service, &pods),
            ratios: ratios.as_deref(),
            hinted,
        };
        Ok(plan::plan(known, |node| {
            let node = self.nodes.get(&Key::new("", node))?;
            Some(Place { zone: topology::zone_of(&node) })
        }))
    }

    async fn sync(&self, key: &Key, object: &Object) -> Result<Action, BoxError> {
        let service: Service = decode(object)?;
        if !service.is_ours() {
            self.ctx.figures.iter().for_each(|figures| figures.slices.forget(key));
            return Ok(Action::Done);
        }
        let mut out = self.plan(key, &service)?;
        if let Some(figures) = &self.ctx.figures {
            figures.slices.looked(key, look(&service, &out));
        }
        self.zones.set(key, std::mem::take(&mut out.zones), out.hinted);
        let involved = || Involved::object(&kinds::SERVICES, object);
        let steps = std::mem::take(&mut out.steps);
        let changed = |operation| {
            self.ctx.figures.iter().for_each(|figures| figures.slices.changed(operation));
        };
        let done = carry_out(&self.ctx, &self.slices, key, steps, changed).await;
        for note in out.notes {
            self.events.event(involved(), note.event_type, note.reason, note.message);
        }
        let failed = match (done, &out.stray[..]) {
            (Err(failed), _) => failed,
            (Ok(()), []) => return Ok(Action::Done),
            (Ok(()), [only]) => only.as_str().into(),
            (Ok(()), all) => format!("[{}]", all.join(", ")).into(),
        };
        let message = format!("Error updating Endpoint Slices for Service {key}: {failed}");
        self.events.event(involved(), EventType::Warning, "FailedToUpdateEndpointSlices", message);
        Err(failed)
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        // Slices of a Service that is gone go with it: it is their owner.
        let Some(object) = self.watched.services.get(key) else {
            self.forget(key);
            return Ok(Action::Done);
        };
        let done = self.sync(key, &object).await;
        self.ctx.figures.iter().for_each(|figures| figures.slices.synced(done.is_ok()));
        done
    }
}

/// What there is to count of a look at a Service.
fn look(service: &Service, out: &Outcome) -> Look {
    let by_zones = topology::is_wanted(service);
    let distribution = Distribution::of(service).filter(|_| !by_zones);
    Look {
        added: out.added,
        removed: out.removed,
        changed: out.steps.len(),
        by_zones,
        sizes: Sizes {
            endpoints: out.endpoints,
            slices: out.slices,
            ideal: out.ideal,
            distribution: distribution.map(Distribution::name),
        },
    }
}

/// Writes slices of one Service and waits until the cache has seen it; `changed` is told of each. Where the namespace ends,
/// nothing is made any more.
pub(super) async fn carry_out(
    ctx: &Ctx,
    slices: &Informer,
    key: &Key,
    steps: Vec<Step>,
    changed: impl Fn(&'static str),
) -> Result<(), BoxError> {
    let resource = kinds::ENDPOINT_SLICES.gvr();
    let (mut newest, mut gone) = (0, Vec::new());
    for step in steps {
        let operation = step.operation();
        let written = match step {
            Step::Create(body) => match ctx.client.create(&resource, &key.namespace, &body).await {
                Err(status) if is_ending_namespace(&status) => break,
                made => Some(made?),
            },
            Step::Patch { name, patch } => {
                let slice = Key::new(key.namespace.as_str(), name);
                Some(ctx.client.patch(&resource, &slice, "", PatchType::Merge, &patch).await?)
            }
            Step::Delete { name } => {
                let slice = Key::new(key.namespace.as_str(), name);
                ignore_gone(ctx.client.delete(&resource, &slice, DeleteOptions::default()).await)?;
                gone.push(slice);
                None
            }
        };
        changed(operation);
        newest = newest.max(written.map_or(0, |object| object.revision()));
    }
    if newest > 0 {
        ctx.caught_up(slices, newest).await;
    }
    // What is gone must not be written to: that fails, and is told as an event.
    if !gone.is_empty() {
        ctx.gone_from(slices, &gone).await;
    }
    Ok(())
}
