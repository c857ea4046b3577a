//! Places pods on nodes: a queue of those that wait, plugins that filter and score nodes, and a binding.
//!
//! One loop decides for one pod at a time over the scheduler's own cache, which holds a small projection of each node and
//! pod and is kept up to date change by change; the binding is written while the next pod is decided on, which sees the
//! placed one as assumed.

pub mod cache;
pub mod framework;
pub mod queue;
pub mod resources;
pub mod types;

mod bind;
mod plugins;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context};
use client::Client;
use parking_lot::Mutex;
use reconcile::{EventRecorder, Informer, Informers, kinds};
use tokio::sync::Notify;

use cache::Cache;
use framework::{Decision, Framework};
use queue::PodQueue;
use types::Pod;

/// Upstream's name of the event source.
const SOURCE: &str = "default-scheduler";
/// Reason of PodScheduled: no node takes the pod.
const UNSCHEDULABLE: &str = "Unschedulable";
/// Reason of PodScheduled: the scheduler could not even try. Source: `PodReasonSchedulerError`.
const SCHEDULER_ERROR: &str = "SchedulerError";

/// The scheduler.
pub struct Scheduler {
    client: Client,
    informers: Informers,
    clock: SharedClock,
}

impl Scheduler {
    /// A scheduler over these handles.
    pub fn new(client: &Client, informers: &Informers, clock: &SharedClock) -> Self {
        Self { client: client.for_manager("scheduler"), informers: informers.clone(), clock: clock.clone() }
    }
}

/// What the loop, the handlers and the bindings share.
struct Shared {
    client: Client,
    clock: SharedClock,
    pods: Informer,
    nodes: Informer,
    events: EventRecorder,
    framework: Framework,
    state: Mutex<State>,
    /// Something may have become due.
    wake: Notify,
}

#[derive(Default)]
struct State {
    queue: PodQueue,
    cache: Cache,
    turn: usize,
    /// Pods that cannot be read, with the reason: to be told.
    unreadable: Vec<(Arc<Pod>, String)>,
}

/// What the loop does next.
enum Next {
    /// Bind: the pod carries the node.
    Bind(Arc<Pod>),
    /// Say why not: the condition's reason and message.
    Refuse(Arc<Pod>, &'static str, String),
    /// Sleep until then, or until something happens.
    Wait(Option<jiff::Timestamp>),
}

#[async_trait]
impl Component for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let shared = Arc::new(Shared {
            client: self.client.clone(),
            clock: self.clock.clone(),
            pods: self.informers.get(kinds::PODS),
            nodes: self.informers.get(kinds::NODES),
            events: EventRecorder::new(self.client.clone(), self.clock.clone(), SOURCE, ""),
            framework: Framework::default(),
            state: Mutex::default(),
            wake: Notify::new(),
        });
        let _registrations = watch::listen(&shared);
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = async { tokio::join!(shared.nodes.synced(), shared.pods.synced()); } => {}
        }
        ctx.ready();
        loop {
            let next = shared.next();
            match next {
                Next::Bind(pod) => drop(ctx.spawn_draining(bind::bind(shared.clone(), pod))),
                Next::Refuse(pod, reason, message) => {
                    drop(ctx.spawn(bind::refuse(shared.clone(), pod, reason, message)));
                }
                Next::Wait(until) => {
                    tokio::select! {
                        () = ctx.cancelled() => return Ok(()),
                        () = shared.wake.notified() => {}
                        () = sleep_until(&shared.clock, until) => {}
                    }
                }
            }
            if ctx.cancel().is_cancelled() {
                return Ok(());
            }
        }
    }
}

async fn sleep_until(clock: &SharedClock, until: Option<jiff::Timestamp>) {
    match until {
        Some(deadline) => clock.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// Decides for the next pod. Everything here is in memory; the writes come after.
    fn next(&self) -> Next {
        let now = self.clock.now();
        let state = &mut *self.state.lock();
        if let Some((pod, error)) = state.unreadable.pop() {
            return Next::Refuse(pod, SCHEDULER_ERROR, error);
        }
        loop {
            let deadline = state.queue.tick(now);
            let Some(attempt) = state.queue.pop() else { return Next::Wait(deadline) };
            let pod = attempt.pod;
            if pod.gated {
                let by = std::collections::HashSet::from(["SchedulingGates"]);
                state.queue.refused(&pod.uid, by, now);
                continue;
            }
            state.turn = state.turn.wrapping_add(1);
            return match self.framework.decide(&pod, &state.cache, state.turn) {
                Decision::Node(node) => {
                    let placed = Arc::new(Pod { node, ..(*pod).clone() });
                    state.cache.put_pod(placed.clone());
                    Next::Bind(placed)
                }
                Decision::Unschedulable { message, rejected_by } => {
                    state.queue.refused(&pod.uid, rejected_by, now);
                    Next::Refuse(pod, UNSCHEDULABLE, message)
                }
            };
        }
    }
}
