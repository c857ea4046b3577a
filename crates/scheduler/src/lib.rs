//! Places pods on nodes: a queue of those that wait, plugins that filter and score nodes, and a binding.
//!
//! One loop decides for one pod at a time over the scheduler's own view of the cluster, which holds a small projection of
//! each node and pod and is kept up to date change by change; the binding is written while the next pod is decided on,
//! which sees the placed one as assumed.

pub mod budgets;
pub mod cluster;
pub mod config;
pub mod devices;
pub mod extender;
pub mod framework;
pub mod queue;
pub mod resources;
pub mod storage;
pub mod types;

mod bind;
mod followers;
mod metrics;
mod plugins;
mod retry;
mod turns;
mod watch;

#[cfg(test)]
mod model;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context};
use client::Client;
use parking_lot::Mutex;
use reconcile::{EventRecorder, EventType, Informers, Involved, kinds};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use bind::{Prepared, Told};
use cluster::Cluster;
pub use config::Config;
use framework::{Decision, Event, Preemption, Preparation, Profile, Refused, Turn};
use metrics::{Attempt, Metrics, Outcome, Work, Working};
use queue::PodQueue;
use turns::Turns;
use types::Pod;
use types::intern::Interner;
use watch::Sources;

/// Reason of PodScheduled: no node takes the pod.
const UNSCHEDULABLE: &str = "Unschedulable";
/// Reason of PodScheduled: the scheduler could not even try. Source: `PodReasonSchedulerError`.
const SCHEDULER_ERROR: &str = "SchedulerError";
/// So many decisions may wait to be written; the next one is made when one of them is.
const WRITES_MAX: usize = 256;

/// The scheduler.
pub struct Scheduler {
    client: Client,
    informers: Informers,
    clock: SharedClock,
    config: Arc<Config>,
    metrics: Option<Arc<Metrics>>,
}

impl Scheduler {
    /// A scheduler over these handles, with upstream's defaults.
    pub fn new(client: &Client, informers: &Informers, clock: &SharedClock) -> Self {
        Self {
            client: client.for_manager("scheduler"),
            informers: informers.clone(),
            clock: clock.clone(),
            config: Arc::default(),
            metrics: None,
        }
    }

    /// The same, showing figures with those of a registry.
    pub fn counted(self, registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::new()?;
        metrics.register(registry)?;
        Ok(Self { metrics: Some(Arc::new(metrics)), ..self })
    }

    /// The same, configured.
    #[must_use]
    pub fn configured(self, config: Config) -> Self {
        Self { config: Arc::new(config), ..self }
    }
}

/// What the loop, the handlers and the writes share.
struct Shared {
    client: Client,
    clock: SharedClock,
    config: Arc<Config>,
    /// Of a scheduler that shows some.
    metrics: Option<Arc<Metrics>>,
    sources: Sources,
    /// By profile: events come from the scheduler that a pod asks for.
    events: Vec<EventRecorder>,
    interner: Interner,
    turns: Arc<Turns>,
    state: Mutex<State>,
    /// Something may have become due.
    wake: Notify,
}

struct State {
    queue: PodQueue,
    cluster: Cluster,
    turn: Turn,
    /// Pods on nodes of which the API server has not told yet.
    assumed: HashSet<Arc<str>>,
    /// Pods for which others are being told to go, and whether they would have been tried again meanwhile.
    preempting: HashMap<Arc<str>, bool>,
    /// Pods that are assumed on a node and for which something is done before they are bound: until then a more important
    /// pod takes their place without their going. Source: `PodsInPreBind`.
    preparing: HashMap<Arc<str>, CancellationToken>,
    /// Pods that cannot be read, with the reason: to be told.
    unreadable: Vec<(Arc<Pod>, String)>,
    /// The revisions of statuses that were written and that the informer has not told of yet.
    written: HashMap<Arc<str>, i64>,
}

/// What the loop does next.
enum Next {
    /// Bind: the pod carries the node.
    Bind(Arc<Pod>, Attempt),
    /// Do this for the pod, and bind it then, unless it is told that another takes its place.
    Prepare(Arc<Pod>, Vec<Preparation>, Attempt, CancellationToken),
    /// Say why not.
    Refuse(Arc<Pod>, Told),
    /// Say why not, and have others go.
    Preempt(Arc<Pod>, Told, Preemption),
    /// Ask extenders about it.
    Ask(Arc<Pod>),
    /// Sleep until then, or until something happens.
    Wait(Option<jiff::Timestamp>),
}

#[async_trait]
impl Component for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let shared = Arc::new(Shared::new(self));
        if let Some(metrics) = &shared.metrics {
            metrics.tell_of(Arc::downgrade(&shared));
        }
        let _registrations = watch::listen(&shared);
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = shared.sources.synced() => {}
        }
        ctx.ready();
        let writes = Arc::new(Semaphore::new(WRITES_MAX));
        loop {
            let permit = tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                permit = writes.clone().acquire_owned() => permit?,
            };
            let mut next = shared.next();
            if let Next::Ask(pod) = next {
                next = tokio::select! {
                    () = ctx.cancelled() => return Ok(()),
                    next = shared.decide_extended(pod) => next,
                };
            }
            if let Next::Wait(until) = next {
                tokio::select! {
                    () = ctx.cancelled() => return Ok(()),
                    () = shared.wake.notified() => {}
                    () = sleep_until(&shared.clock, until) => {}
                }
            } else {
                write(&ctx, &shared, next, permit);
            }
        }
    }
}

/// Writes a decision, beside those that are being written, but after those about the same pod.
fn write(ctx: &Context, shared: &Arc<Shared>, next: Next, permit: OwnedSemaphorePermit) {
    let shared = shared.clone();
    match next {
        Next::Bind(pod, attempt) => {
            let mut ticket = shared.turns.enter(&pod.uid);
            drop(ctx.spawn_draining(async move {
                let _binding = shared.working(Work::Binding);
                ticket.turn().await;
                bind::bind(shared, pod, attempt, Prepared::default()).await;
                drop((ticket, permit));
            }));
        }
        Next::Prepare(pod, preparations, attempt, pushed_out) => {
            // It may take long, and nobody else has to wait for it.
            drop(permit);
            let mut ticket = shared.turns.enter(&pod.uid);
            let ended = ctx.cancel().clone();
            drop(ctx.spawn_draining(async move {
                let _binding = shared.working(Work::Binding);
                let mut made = Prepared::default();
                let prepared = async {
                    ticket.turn().await;
                    bind::prepare(&shared, &pod, &preparations, attempt, &pushed_out, &mut made).await
                };
                let ready = tokio::select! {
                    () = ended.cancelled() => return,
                    ready = prepared => ready,
                };
                // If not, it has been said why; and it may be tried again already, and be prepared anew.
                if ready {
                    let stays = shared.state.lock().preparing.remove(&pod.uid).is_some();
                    if stays {
                        bind::bind(shared, pod, attempt, made).await;
                    } else {
                        bind::not_prepared(&shared, &pod, bind::PUSHED_OUT, attempt, made.special).await;
                    }
                }
                drop(ticket);
            }));
        }
        Next::Refuse(pod, told) => {
            let mut ticket = shared.turns.enter(&pod.uid);
            drop(ctx.spawn(async move {
                ticket.turn().await;
                bind::refuse(shared, pod, told).await;
                drop((ticket, permit));
            }));
        }
        Next::Preempt(pod, told, preemption) => {
            let mut ticket = shared.turns.enter(&pod.uid);
            let displaced = preemption.displaced.iter();
            let displaced = displaced.map(|pod| (shared.turns.enter(&pod.uid), pod.clone())).collect();
            drop(ctx.spawn(async move {
                ticket.turn().await;
                bind::refuse(shared.clone(), pod.clone(), told).await;
                drop(ticket);
                bind::displace(&shared, displaced).await;
                bind::preempt(shared, pod, preemption).await;
                drop(permit);
            }));
        }
        Next::Ask(_) | Next::Wait(_) => {}
    }
}

async fn sleep_until(clock: &SharedClock, until: Option<jiff::Timestamp>) {
    match until {
        Some(deadline) => clock.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    fn new(scheduler: &Scheduler) -> Self {
        let state = State {
            queue: PodQueue::new(scheduler.config.backoff),
            cluster: Cluster::default(),
            turn: Turn::timed(scheduler.metrics.as_ref().map(|metrics| metrics.plugins().clone())),
            assumed: HashSet::new(),
            preempting: HashMap::new(),
            preparing: HashMap::new(),
            unreadable: Vec::new(),
            written: HashMap::new(),
        };
        let (client, clock) = (scheduler.client.clone(), scheduler.clock.clone());
        Self {
            sources: Sources::new(&scheduler.informers),
            events: scheduler
                .config
                .profiles
                .iter()
                .map(|profile| EventRecorder::new(client.clone(), clock.clone(), &profile.name, ""))
                .collect(),
            config: scheduler.config.clone(),
            metrics: scheduler.metrics.clone(),
            interner: Interner::default(),
            turns: Arc::default(),
            state: Mutex::new(state),
            wake: Notify::new(),
            client,
            clock,
        }
    }

    /// The profile that a pod asks for, if it is one of ours.
    fn profile(&self, pod: &Pod) -> Option<&Profile> {
        self.config.profiles.iter().find(|profile| profile.name == pod.spec.scheduler_name)
    }

    /// Records that something happened to a pod, on account of another or of itself.
    fn event(&self, pod: &Pod, on_account_of: &Pod, kind: EventType, reason: &str, message: String) {
        let name = &on_account_of.spec.scheduler_name;
        let at = self.config.profiles.iter().position(|profile| profile.name == *name).unwrap_or(0);
        if let Some(events) = self.events.get(at) {
            events.event(Involved::named(&kinds::PODS, &pod.key, &pod.uid), kind, reason, message);
        }
    }

    /// Counts work of a kind while it is held.
    fn working(&self, work: Work) -> Option<Working> {
        self.metrics.as_ref().map(|metrics| metrics.working(work))
    }

    /// Counts an attempt that ended.
    fn attempted(&self, profile: &str, outcome: Outcome, begun: Instant) {
        if let Some(metrics) = &self.metrics {
            metrics.attempted(profile, outcome, begun.elapsed());
        }
    }

    /// Counts a decision; an attempt that came to a node ends with its binding.
    fn decided(&self, profile: &Profile, decision: &Decision, took: [Duration; 2], begun: Instant) {
        let Some(metrics) = &self.metrics else { return };
        let [filtered, scored] = took;
        metrics.decided(begun.elapsed());
        let status = match decision {
            Decision::Node(_) => "Success",
            Decision::Failed(_) => "Error",
            Decision::Refused(_) | Decision::Preempt(..) => "Unschedulable",
        };
        metrics.ran("Filter", &profile.name, status, filtered);
        match decision {
            Decision::Node(_) => return metrics.ran("Score", &profile.name, status, scored),
            Decision::Refused(_) => metrics.preempted(None),
            Decision::Preempt(_, preemption) => metrics.preempted(Some(preemption.victims.len())),
            Decision::Failed(_) => return self.attempted(&profile.name, Outcome::Error, begun),
        }
        self.attempted(&profile.name, Outcome::Unschedulable, begun);
    }

    /// Decides for the next pod. Everything here is in memory; the writes come after.
    fn next(&self) -> Next {
        let now = self.clock.now();
        let state = &mut *self.state.lock();
        state.cluster.devices.now = now;
        if let Some((pod, message)) = state.unreadable.pop() {
            self.attempted(&pod.spec.scheduler_name, Outcome::Error, Instant::now());
            return Next::Refuse(
                pod,
                Told { reason: SCHEDULER_ERROR, message, nominated: None, frees: None },
            );
        }
        loop {
            let deadline = state.queue.tick(now);
            let Some(pod) = state.queue.pop() else { return Next::Wait(deadline) };
            if let Some(asked) = state.preempting.get_mut(&pod.uid) {
                // Others are going to make room for it: it waits until they have been told to.
                *asked = true;
                state.queue.refused(&pod.uid, HashSet::from(["DefaultPreemption"]), now);
                continue;
            }
            let Some(profile) = self.profile(&pod) else {
                state.queue.remove(&pod.uid);
                continue;
            };
            if self.is_extended(&pod) {
                return Next::Ask(pod);
            }
            let begun = Instant::now();
            let decision = profile.decide(&pod, &mut state.cluster, &mut state.turn);
            self.decided(profile, &decision, state.turn.took, begun);
            return self.carry_out(state, pod, profile, decision, begun);
        }
    }

    /// Carries out a decision in the state, and tells those whom it may help.
    fn carry_out(
        &self,
        state: &mut State,
        pod: Arc<Pod>,
        profile: &Profile,
        decision: Decision,
        begun: Instant,
    ) -> Next {
        let nominated = state.cluster.nominated.node_of(&pod.uid).map(str::to_owned);
        let next = state.carry_out(pod.clone(), profile, decision, (self.clock.now(), begun));
        if let Next::Preempt(_, _, preemption) = &next {
            for displaced in &preemption.displaced {
                self.room_is_free(state, displaced, &preemption.node);
            }
        }
        if let Some(node) = nominated {
            self.room_is_free(state, &pod, &node);
        }
        next
    }

    /// Room on a node that was left to a pod is left to it no more, unless it still is, or the pod is there. Others of no
    /// higher priority are tried again. Source: `hasNominatedNodeNameChanged`, `getLEPriorityPreCheck`.
    fn room_is_free(&self, state: &mut State, pod: &Arc<Pod>, node: &str) {
        let there = state.cluster.pod(&pod.uid).is_some_and(|placed| *placed.node == *node);
        if !there && state.cluster.nominated.node_of(&pod.uid) != Some(node) {
            let others = |other: &Pod| other.priority() <= pod.priority() && other.uid != pod.uid;
            self.raise_among(state, &Event::PodLeft(pod.clone()), others);
        }
    }
}

impl State {
    fn carry_out(
        &mut self,
        pod: Arc<Pod>,
        profile: &Profile,
        decision: Decision,
        (now, begun): (jiff::Timestamp, Instant),
    ) -> Next {
        let told = |refused: &Refused| Told {
            reason: UNSCHEDULABLE,
            message: refused.message.clone(),
            nominated: refused.nominated.clone(),
            frees: refused.frees.clone(),
        };
        match decision {
            Decision::Node(node) => {
                let times = self.turn.sampled();
                let preparations = profile.reserve(&pod, &node, &mut self.cluster, times);
                let placed = Arc::new(Pod { node: node.into(), ..(*pod).clone() });
                let waited = self.queue.waited(&placed.uid);
                let attempt = Attempt { begun, waited, is_timed: times.is_some() };
                self.assumed.insert(placed.uid.clone());
                self.cluster.put_pod(placed.clone());
                if preparations.is_empty() {
                    Next::Bind(placed, attempt)
                } else {
                    let pushed_out = CancellationToken::new();
                    self.preparing.insert(placed.uid.clone(), pushed_out.clone());
                    Next::Prepare(placed, preparations, attempt, pushed_out)
                }
            }
            Decision::Refused(refused) => {
                let told = told(&refused);
                self.give_back(&pod, refused, now);
                Next::Refuse(pod, told)
            }
            Decision::Failed(message) => {
                self.queue.failed(&pod.uid, now);
                self.cluster.nominated.remove(&pod.uid);
                let nominated = Some(String::new());
                Next::Refuse(pod, Told { reason: SCHEDULER_ERROR, message, nominated, frees: None })
            }
            Decision::Preempt(refused, preemption) => {
                let told = told(&refused);
                self.give_back(&pod, refused, now);
                self.preempting.insert(pod.uid.clone(), false);
                for displaced in &preemption.displaced {
                    self.cluster.nominated.remove(&displaced.uid);
                    self.queue.retry(&displaced.uid);
                }
                Next::Preempt(pod, told, preemption)
            }
        }
    }

    fn give_back(&mut self, pod: &Arc<Pod>, refused: Refused, now: jiff::Timestamp) {
        if let Some(node) = &refused.nominated {
            self.cluster.nominated.put(pod.clone(), node);
        }
        self.queue.refused(&pod.uid, refused.by, now);
    }
}
