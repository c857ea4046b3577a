//! Resizes of a pod that runs: takes the door's answers, brings about what was granted, and says how far that is.
//! Source: KEP-1287, `pkg/kubelet/allocation`, `doPodResizeAction` in `pkg/kubelet/kuberuntime`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use engine_api::Resources;
use reconcile::EventType;

use super::PodWorker;
use super::ops::Outcome;
use crate::deps::{Deps, blocking};
use crate::groups;
use crate::pod::PodView;
use crate::pod::plan::{Action, KillReason};
use crate::pod::resources::{pod_group, qos_class};
use crate::resize::{
    Allocation, Answer, INFEASIBLE, Progress, Resized, Steps, Told, group_limits, memory_refusal, message,
    steps,
};
use crate::runtime_state::PodRuntime;

/// A resize that failed is tried again: memory that is in use may be given back.
const RETRY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(60) };

/// What a worker knows of its pod's resizes.
#[derive(Default)]
pub(super) struct Resizes {
    /// What the pod was granted, which the worker's view shows in the place of what the API asks for.
    pub(super) allocation: Allocation,
    pub(super) progress: Progress,
    /// What the pod's group was given last; `None` while that is not known.
    group: Option<Resources>,
    /// Groups are being set.
    busy: bool,
    /// A grant is being noted; what was granted since follows.
    noting: bool,
    next: Option<Resized>,
    failures: u32,
    pub(super) retry_at: Option<jiff::Timestamp>,
}

impl Resizes {
    /// A pod that has what it asks for.
    pub(super) fn of(pod: &PodView) -> Self {
        Self { allocation: Allocation::of(pod), ..Self::default() }
    }
}

impl PodWorker {
    /// Before anything of the pod is begun: takes what an earlier run of the agent has granted, or else notes what the pod
    /// asks for.
    pub(crate) async fn recall(&mut self) {
        let (directories, asked) = (self.deps.directories(self.pod.uid()), self.resizes.allocation.clone());
        let noted = blocking(move || match Allocation::load(&directories) {
            Some(known) => Ok((known, true)),
            None => asked.save(&directories).map(|()| (asked, false)),
        });
        Arc::make_mut(&mut self.pod).own_cpus = self.deps.cpus.owners(self.pod.uid());
        match noted.await {
            Ok(Ok((granted, was_noted))) => {
                self.grant(granted);
                // An earlier run may not have come to set the group; nothing was granted before this one.
                self.resizes.group = (!was_noted).then(|| group_limits(&self.pod, &self.deps.facts));
            }
            failed => tracing::warn!(pod = %self.pod.key(), ?failed, "what the pod was granted is not noted"),
        }
    }

    fn grant(&mut self, granted: Allocation) {
        granted.apply(&mut Arc::make_mut(&mut self.pod).spec);
        self.resizes.allocation = granted;
    }

    /// The door has answered.
    pub(super) fn resized(&mut self, Resized { generation, answer }: Resized) {
        match answer {
            Answer::Settled => self.resizes.progress.pending = None,
            Answer::Pending(reason, text, wish) => {
                let told = Told { reason: reason.to_owned(), message: text, generation };
                if self.resizes.progress.pending.as_ref() != Some(&told) {
                    let name = if reason == INFEASIBLE { "ResizeInfeasible" } else { "ResizeDeferred" };
                    let mut wished = PodView::clone(&self.pod);
                    wish.apply(&mut wished.spec);
                    let text = message(reason, &wished, generation, &told.message);
                    self.deps.event(&self.pod, None, EventType::Warning, name, text);
                }
                self.resizes.progress.pending = Some(told);
            }
            // One note after the other: the newest is the one that stays.
            Answer::Granted(_) if self.resizes.noting => {
                self.resizes.next = Some(Resized { generation, answer })
            }
            Answer::Granted(granted) => {
                self.resizes.noting = true;
                let directories = self.deps.directories(self.pod.uid());
                self.push(async move {
                    let noting = granted.clone();
                    let saved = blocking(move || noting.save(&directories)).await;
                    let saved = saved.unwrap_or_else(|error| Err(io::Error::other(error)));
                    Outcome::Granted { granted, generation, saved }
                });
            }
        }
    }

    /// What was granted is noted, and can be brought about.
    pub(super) fn granted(&mut self, granted: Allocation, generation: i64, saved: io::Result<()>) {
        if let Err(error) = saved {
            // It is gone by all the same; only who restarts the agent has to ask once more.
            tracing::warn!(pod = %self.pod.key(), %error, "what the pod was granted is not noted");
        }
        self.grant(granted);
        self.resizes.noting = false;
        if let Some(next) = self.resizes.next.take() {
            self.resized(next);
        }
        self.resizes.failures = 0;
        self.resizes.retry_at = None;
        self.resizes.progress.begins(generation);
        let text = message("started", &self.pod, generation, "");
        self.deps.event(&self.pod, None, EventType::Normal, "ResizeStarted", text);
    }

    /// Sets what containers that run have not got yet.
    pub(super) fn actuate(&mut self, runtime: &PodRuntime) {
        if self.resizes.retry_at.is_some_and(|at| self.deps.now() < at) {
            return;
        }
        self.resizes.retry_at = None;
        if self.resizes.busy || self.starting.is_some() {
            return;
        }
        let steps = steps(&self.pod, &runtime.containers, &self.deps.facts);
        let alive = runtime.sandboxes.iter().any(|sandbox| sandbox.ready);
        let due = alive && self.resizes.group.as_ref() != Some(&steps.pod);
        if steps.changes.is_empty() && steps.restart.is_empty() {
            if due {
                self.set(steps, runtime);
            } else {
                self.settled();
            }
            return;
        }
        let generation = self.pod.metadata.generation;
        self.resizes.progress.in_progress.get_or_insert(Told { generation, ..Told::default() });
        for (container, id) in &steps.restart {
            if !self.killing.contains(id) {
                let (id, container) = (id.clone(), container.clone());
                self.act(&Action::Kill { id, container, reason: KillReason::Resized }, runtime);
            }
        }
        if due || !steps.changes.is_empty() {
            self.set(steps, runtime);
        }
    }

    fn set(&mut self, steps: Steps, runtime: &PodRuntime) {
        self.resizes.busy = true;
        let running = runtime.containers.iter().filter(|record| record.is_running());
        let ids = running.map(|record| record.id.clone()).collect();
        self.push(set(self.deps.clone(), self.pod.clone(), steps, ids));
    }

    /// Nothing is resized any more.
    pub(super) fn forget_resizes(&mut self) {
        self.resizes.retry_at = None;
    }

    /// Every container that runs has what it is to have.
    fn settled(&mut self) {
        if let Some(told) = self.resizes.progress.in_progress.take() {
            let text = message("completed", &self.pod, told.generation, "");
            self.deps.event(&self.pod, None, EventType::Normal, "ResizeCompleted", text);
        }
    }

    /// Groups were set, or could not be.
    pub(super) fn actuated(&mut self, result: Result<Resources, String>) {
        self.resizes.busy = false;
        let error = match result {
            Ok(group) => {
                self.resizes.group = Some(group);
                self.resizes.failures = 0;
                self.resizes.retry_at = None;
                return;
            }
            Err(error) => error,
        };
        self.resizes.failures += 1;
        let delay = RETRY.delay(self.resizes.failures);
        self.resizes.retry_at = Some(self.deps.now().saturating_add(delay).unwrap_or(jiff::Timestamp::MAX));
        let told = self.resizes.progress.in_progress.get_or_insert_default();
        if told.message != error {
            (told.reason, told.message) = ("Error".to_owned(), error.clone());
            let text = message("error", &self.pod, told.generation, &error);
            self.deps.event(&self.pod, None, EventType::Warning, "ResizeError", text);
        }
    }
}

/// Sets groups: first room for all, then each container, then the pod's own limits and the shares of its class.
async fn set(deps: Arc<Deps>, pod: Arc<PodView>, steps: Steps, ids: Vec<String>) -> Outcome {
    Outcome::Actuated(try_set(&deps, &pod, &steps, &ids).await.map(|()| steps.pod))
}

async fn try_set(deps: &Deps, pod: &PodView, steps: &Steps, ids: &[String]) -> Result<(), String> {
    let failed = |error: engine_api::EngineError| error.to_string();
    let mut used = HashMap::new();
    for id in ids {
        if let Ok(stats) = deps.runtime.stats(id).await {
            used.insert(id.clone(), stats.memory_usage_bytes);
        }
    }
    if let Some(refusal) = memory_refusal(steps, |id| used.get(id).copied(), used.values().sum()) {
        return Err(refusal);
    }
    let group = pod_group(qos_class(&pod.spec), pod.uid());
    if !steps.changes.is_empty() {
        deps.runtime.limit_group(&group, steps.room.clone()).await.map_err(failed)?;
    }
    for change in &steps.changes {
        deps.runtime.update_resources(&change.id, change.resources.clone()).await.map_err(failed)?;
        deps.state.refresh_container(&*deps.runtime, &change.id).await;
    }
    deps.runtime.limit_group(&group, steps.pod.clone()).await.map_err(failed)?;
    groups::enter(deps, pod).await;
    Ok(())
}
