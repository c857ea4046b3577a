//! One worker per pod: it is told what changed (the pod, the runtime, a probe, the time), decides with the pure plan,
//! and applies. Steps that take time are futures that it polls beside its inbox, so that it never waits for one of them
//! while another matters. Nothing in a worker outlives the process that matters to the pod: a new worker finds everything
//! in the runtime's labels and in the API.

pub(crate) mod mailbox;
mod message;
pub(crate) mod ops;
mod patch;
mod resize;
mod state;
mod stop;
pub(crate) mod terminate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Object, PatchType, Reason};
use base::backoff::Policy;
use engine_api::ContainerState;
use futures::StreamExt as _;
use jiff::Timestamp;
use reconcile::{EventType, kinds};
use serde_json::Map;
use tokio::sync::watch;

use crate::cpus;
use crate::deps::{Deps, blocking};
use crate::groups;
use crate::plugins::dra;
use crate::pod::plan::{self, Action, ImageFailure, ImageState, Plan, Snapshot, StartFailure, Step, Waiting};
use crate::pod::recursion;
use crate::pod::restart::epoch;
use crate::pod::status::{StatusInput, pod_status};
use crate::pod::{ContainerKind, PodView};
use crate::probes::{ProbeReport, ProbeTarget, ProbeType, Prober};
use crate::runtime_state::PodRuntime;
use crate::sources;
use crate::volumes::csi;

use mailbox::Mailbox;
use ops::{Outcome, StartError};
use patch::{own_fields, status_patch};
pub(crate) use state::PodWorker;

/// Steps of a pod's set-up that fail are tried again after 500 ms, 1 s, … up to 2 minutes.
const SETUP_BACKOFF: Policy = Policy { first: Duration::from_millis(500), max: Duration::from_secs(120) };
/// Containers that cannot be made: 2 s, 4 s, … up to 5 minutes.
const START_BACKOFF: Policy = Policy { first: Duration::from_secs(2), max: Duration::from_secs(300) };
/// Status writes that fail.
const WRITE_BACKOFF: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(30) };

impl PodWorker {
    /// Works until the pod is gone. Cancel safe: whoever drops it leaves the containers running.
    pub(crate) async fn run(mut self) {
        loop {
            self.take_letters();
            if self.gone || self.withdrawn || self.pod.metadata.is_terminating() {
                return self.terminate().await;
            }
            let runtime = self.runtime();
            self.read_messages(&runtime).await;
            self.sync_probers(&runtime);
            let plan = self.plan(&runtime);
            self.announce(&plan);
            self.apply(&plan, &runtime);
            match plan.finished {
                true => self.forget_resizes(),
                false => self.actuate(&runtime),
            }
            if plan.finished && plan.actions.is_empty() && !self.finishing {
                self.mailbox.is_over();
                // It may lie here for long: its share is for those that run.
                groups::leave(&self.deps, self.pod.uid()).await;
                cpus::leave(&self.deps, self.pod.uid()).await;
            }
            self.refresh_volumes();
            self.publish(&plan.waiting, &runtime, false);
            self.waiting = plan.waiting;
            self.wait(plan.wake_at).await;
        }
    }

    /// What the runtime holds, without what is being removed.
    fn runtime(&self) -> PodRuntime {
        let mut runtime = self.deps.state.pod(self.pod.uid());
        runtime.containers.retain(|record| !self.removing.contains(&record.id));
        runtime.sandboxes.retain(|record| !self.removing.contains(&record.id));
        runtime
    }

    fn take_letters(&mut self) {
        let letters = self.mailbox.take();
        self.gone |= letters.gone;
        self.withdrawn |= letters.withdrawn;
        if let Some(copy) = letters.mirror {
            self.mirror_changed(copy.as_deref());
        }
        if let Some(object) = letters.pod {
            match PodView::decode(&object) {
                Ok(pod) => self.pod_changed(pod),
                Err(error) => tracing::error!(pod = %object.key(), %error, "pod not readable"),
            }
        }
        for answer in letters.resized {
            self.resized(answer);
        }
        if let Some(verdict) = letters.evicted {
            self.evict(verdict);
        }
        if letters.preempted {
            self.preempt();
        }
        if letters.references {
            self.refresh_due = true;
            // What was missing may be there now.
            let now = self.deps.now();
            for step in [&mut self.volumes, &mut self.sandbox] {
                if let Step::RetryAt(_) = step {
                    *step = Step::RetryAt(now);
                }
            }
            for failure in self.start_failures.values_mut() {
                failure.retry_at = now;
            }
        }
    }

    /// The API's copy of a pod of a file: its status is what the API heard last.
    fn mirror_changed(&mut self, copy: Option<&Object>) {
        let copy = copy.and_then(|object| PodView::decode(object).ok());
        let copy = copy.filter(|copy| !copy.metadata.is_terminating());
        let known_as = copy.as_ref().map(|copy| copy.uid().to_owned());
        if let Some(copy) = copy {
            if self.known_as != known_as {
                self.known = own_fields(&copy.status);
                self.renewed = self.writing.is_some();
            }
            Arc::make_mut(&mut self.pod).status = copy.status;
        }
        self.known_as = known_as;
    }

    fn pod_changed(&mut self, mut pod: PodView) {
        self.resizes.allocation.apply(&mut pod.spec);
        pod.own_cpus.clone_from(&self.pod.own_cpus);
        let old = std::mem::replace(&mut self.pod, Arc::new(pod));
        let (old, new) = (&old.metadata, &self.pod.metadata);
        self.refresh_due |= old.labels != new.labels || old.annotations != new.annotations;
        let references = sources::references(&self.pod);
        let held = self.deps.watched.hold(&new.namespace, &references);
        self.mailbox.interested_in(&new.namespace, references, held);
        // Another image: what is known of the old one says nothing.
        for (_, container) in self.pod.containers() {
            let image = container.image.clone().unwrap_or_default();
            let known = self.image_names.insert(container.name.clone(), image.clone());
            if known.is_some_and(|known| known != image) {
                self.images.remove(&container.name);
                self.image_failures.remove(&container.name);
            }
        }
    }

    /// Termination messages of containers that have ended since.
    async fn read_messages(&mut self, runtime: &PodRuntime) {
        for record in &runtime.containers {
            if record.exit().is_none() || self.messages.contains_key(&record.id) {
                continue;
            }
            let (file, log) = (record.message_file.clone(), record.log_path.clone());
            let from_logs = record.message_from_logs && !record.succeeded();
            let text = blocking(move || message::read(&file, &log, from_logs)).await.unwrap_or_default();
            if !text.is_empty() || record.exit().is_some_and(|exit| exit.message.is_empty()) {
                self.messages.insert(record.id.clone(), text);
            }
        }
    }

    /// Whether the pod has a living sandbox with an address. True at once for a pod that an earlier worker has set up: what
    /// the API heard of it still holds, and nobody must see it unready because the node was restarted.
    fn sandbox_ready(&self, runtime: &PodRuntime) -> bool {
        let alive = plan::current_sandbox(&runtime.sandboxes).is_some_and(|sandbox| sandbox.ready);
        alive && !self.addresses.is_empty()
    }

    /// A prober for each running container, none for others.
    fn sync_probers(&mut self, runtime: &PodRuntime) {
        let live = |id: &str| runtime.containers.iter().any(|record| record.id == id && record.is_running());
        self.probers.retain(|id, _| live(id));
        self.probes.retain(|id, _| live(id));
        if !self.sandbox_ready(runtime) {
            return;
        }
        for record in &runtime.containers {
            let ContainerState::Running { pid, started_at } = record.state else { continue };
            if self.probers.contains_key(&record.id) {
                continue;
            }
            let Some((kind, container)) = self.pod.container(&record.name) else { continue };
            if kind == ContainerKind::Ephemeral {
                continue;
            }
            let state = self.initial_probe_state(container, &record.id);
            if self.starting.as_deref() == Some(record.name.as_str()) {
                // Its start has not ended. Where no hook follows, it is what it will be: nobody needs to be told twice.
                if container.lifecycle.as_ref().is_none_or(|hooks| hooks.post_start.is_none()) {
                    self.probes.insert(record.id.clone(), state);
                }
                continue;
            }
            let target = ProbeTarget {
                pod: self.pod.clone(),
                container: container.clone(),
                container_id: record.id.clone(),
                address: self.addresses.first().copied(),
                pid,
                started_at,
                started: state.started,
                ready: state.ready,
            };
            self.probes.insert(record.id.clone(), state);
            let prober = Prober::start(&self.deps, target, &self.reports.0);
            self.probers.insert(record.id.clone(), prober);
        }
    }

    fn plan(&self, runtime: &PodRuntime) -> Plan {
        let mut plan = plan::plan(&Snapshot {
            pod: &self.pod,
            sandboxes: &runtime.sandboxes,
            containers: &runtime.containers,
            sandbox: self.sandbox,
            volumes: self.volumes,
            probes: &self.probes,
            images: &self.images,
            start_failures: &self.start_failures,
            starting: self.starting.as_deref(),
            killing: &self.killing,
            crash_loop: plan::crash_loop_policy(self.deps.config.crash_loop_max),
            failed: self.failure.is_some(),
            now: self.deps.now(),
        });
        if self.finishing {
            plan.actions.retain(|action| *action != Action::Finish);
        } else if plan.finished && self.deps.plugins.claims.holds(self.pod.uid()) && plan.actions.is_empty() {
            // Nothing of it runs, but drivers have devices prepared for it.
            plan.actions.push(Action::Finish);
        }
        plan
    }

    /// Events for what the plan makes wait.
    fn announce(&mut self, plan: &Plan) {
        for (name, waiting) in &plan.waiting {
            let before = self.waiting.get(name).map(|before| before.reason.as_str());
            if before == Some(waiting.reason.as_str()) {
                continue;
            }
            match waiting.reason.as_str() {
                "CrashLoopBackOff" => {
                    let pod = self.pod.described();
                    let message = format!("Back-off restarting failed container {name} in pod {pod}");
                    self.deps.warning(&self.pod, name, "BackOff", message);
                }
                "ImagePullBackOff" => {
                    let image = self.image_names.get(name).cloned().unwrap_or_default();
                    self.deps.normal(
                        &self.pod,
                        name,
                        "BackOff",
                        format!("Back-off pulling image \"{image}\""),
                    );
                    self.deps.warning(&self.pod, name, "Failed", "Error: ImagePullBackOff");
                }
                _ => {}
            }
        }
        if plan.deadline_exceeded && self.failure.is_none() {
            let message = "Pod was active on the node longer than the specified deadline";
            self.failure = Some(("DeadlineExceeded".to_owned(), message.to_owned()));
            self.deps.event(&self.pod, None, EventType::Normal, "DeadlineExceeded", message);
        }
    }

    fn apply(&mut self, plan: &Plan, runtime: &PodRuntime) {
        for action in &plan.actions {
            self.act(action, runtime);
        }
    }

    fn act(&mut self, action: &Action, runtime: &PodRuntime) {
        let deps = self.deps.clone();
        match action {
            Action::CreateSandbox { attempt } => self.create_sandbox(*attempt, runtime),
            Action::MountVolumes => {
                if let Some(tokens) = self.tokens.take() {
                    self.volumes = Step::Busy;
                    let until = self.uses_volumes.clone();
                    self.push(ops::volumes(deps, self.pod.clone(), tokens, false, until));
                }
            }
            Action::EnsureImage { container } => {
                self.images.insert(container.clone(), ImageState::Busy);
                let op = ops::image(deps, self.pod.clone(), container.clone(), self.cancel.clone());
                self.push(op);
            }
            Action::Start { container, attempt, failures } => {
                let sandbox = plan::current_sandbox(&runtime.sandboxes);
                let image = self.images.get(container);
                if let (Some(sandbox), Some(ImageState::Present(image_id))) = (sandbox, image) {
                    let start = ops::Start {
                        pod: self.pod.clone(),
                        container: container.clone(),
                        attempt: *attempt,
                        failures: *failures,
                        epoch: epoch(&self.pod, &runtime.containers),
                        sandbox_id: sandbox.id.clone(),
                        image_id: image_id.clone(),
                        addresses: self.addresses.clone(),
                        cancel: self.cancel.clone(),
                    };
                    self.starting = Some(container.clone());
                    self.push(ops::start(deps, start));
                }
            }
            Action::Kill { id, container, reason } => {
                if let Some(record) = runtime.containers.iter().find(|record| record.id == *id) {
                    self.killing.push(id.clone());
                    self.probers.remove(id);
                    let message = reason.message(container);
                    let deadline = grace_end(&deps, reason.grace_seconds(&self.pod, container));
                    self.push(kill(
                        deps,
                        self.pod.clone(),
                        record.clone(),
                        self.addresses.clone(),
                        (message, deadline),
                        self.cancel.clone(),
                    ));
                }
            }
            Action::RemoveContainer { id } => {
                self.removing.insert(id.clone());
                self.push(ops::remove_container(deps, id.clone(), self.cancel.clone()));
            }
            Action::RemoveSandbox { id } => {
                self.removing.insert(id.clone());
                self.push(ops::remove_sandbox(deps, id.clone(), self.cancel.clone()));
            }
            Action::Finish => {
                self.finishing = true;
                self.probers.clear();
                // Nothing is published behind the back of who takes the volumes away.
                self.uses_volumes.cancel();
                let cancel = self.cancel.clone();
                let until = self.at_most(grace_end(&deps, self.pod.spec_grace_seconds()));
                let (deadline, receiver) = watch::channel(until);
                self.stopping = Some(deadline);
                let (pod, addresses) = (self.pod.clone(), self.addresses.clone());
                let mailbox = self.mailbox.clone();
                self.push(finish(deps, pod, mailbox, runtime.clone(), addresses, receiver, cancel));
            }
        }
    }

    fn create_sandbox(&mut self, attempt: u32, runtime: &PodRuntime) {
        let current = plan::current_sandbox(&runtime.sandboxes).filter(|sandbox| sandbox.ready).cloned();
        let dead =
            runtime.sandboxes.iter().filter(|sandbox| !sandbox.ready).map(|sandbox| sandbox.id.clone());
        let dead: Vec<String> = dead.collect();
        if current.is_none() && !dead.is_empty() && self.sandbox_failures == 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.deps.event(&self.pod, None, EventType::Normal, "SandboxChanged", message);
        }
        if current.is_none() {
            self.addresses.clear();
        }
        self.sandbox = Step::Busy;
        let (deps, pod, cancel) = (self.deps.clone(), self.pod.clone(), self.uses_volumes.clone());
        self.push(ops::sandbox(deps, pod, attempt, current, dead, cancel));
    }

    /// When time alone makes a refresh of the volumes necessary: a token is due, or the last refresh failed. `None` while
    /// none can begin.
    fn refresh_at(&self) -> Option<Timestamp> {
        if self.volumes != Step::Done || self.finishing {
            return None;
        }
        self.refresh_retry_at.or_else(|| self.tokens.as_ref()?.renew_at())
    }

    /// Brings volumes up to date when what they show has changed or a token is due.
    fn refresh_volumes(&mut self) {
        let due = self.refresh_at().is_some_and(|at| at <= self.deps.now());
        if (!self.refresh_due && !due) || self.volumes != Step::Done || self.finishing {
            return;
        }
        // Without tokens at hand a refresh is under way: its end brings us here again.
        if let Some(tokens) = self.tokens.take() {
            self.refresh_due = false;
            let until = self.uses_volumes.clone();
            self.push(ops::volumes(self.deps.clone(), self.pod.clone(), tokens, true, until));
        }
    }

    /// Waits for the next thing to know.
    async fn wait(&mut self, wake_at: Option<Timestamp>) {
        // Without tokens at hand a refresh is under way, whose end wakes us.
        let renewal = self.tokens.as_ref().and(self.refresh_at());
        let write = self.write_retry_at;
        let wake_at = [wake_at, renewal, write, self.resizes.retry_at].into_iter().flatten().min();
        let clock = self.deps.clock.clone();
        let timer = async {
            match wake_at {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let mailbox = self.mailbox.clone();
        tokio::select! {
            () = mailbox.wait() => {}
            Some(outcome) = self.ops.next(), if !self.ops.is_empty() => self.absorb(outcome),
            Some(report) = self.reports.1.recv() => self.report(&report),
            () = timer => {}
        }
    }

    fn report(&mut self, report: &ProbeReport) {
        let Some(state) = self.probes.get_mut(&report.container_id) else { return };
        match (report.which, report.healthy) {
            (ProbeType::Startup, healthy) => {
                state.started = healthy;
                state.startup_failed = !healthy;
            }
            (ProbeType::Liveness, healthy) => state.liveness_failed = !healthy,
            (ProbeType::Readiness, healthy) => state.ready = healthy,
        }
    }

    fn absorb(&mut self, outcome: Outcome) {
        let now = self.deps.now();
        let later =
            |policy: Policy, failures| now.saturating_add(policy.delay(failures)).unwrap_or(Timestamp::MAX);
        match outcome {
            Outcome::Sandbox(Ok(addresses)) => {
                self.addresses = addresses;
                self.sandbox_failures = 0;
                self.sandbox = Step::Done;
            }
            Outcome::Sandbox(Err(error)) => {
                self.sandbox_failures += 1;
                self.sandbox = Step::RetryAt(later(SETUP_BACKOFF, self.sandbox_failures));
                self.deps.event(&self.pod, None, EventType::Warning, error.reason, error.message);
            }
            Outcome::Volumes { tokens, refresh, result } => {
                self.tokens = Some(tokens);
                match result {
                    Ok(()) => {
                        self.volume_failures = 0;
                        self.refresh_retry_at = None;
                        self.volumes = Step::Done;
                    }
                    Err(error) => {
                        ops::no_volume(&self.deps, &self.pod, error);
                        self.volume_failures += 1;
                        let again = later(SETUP_BACKOFF, self.volume_failures);
                        // A running pod keeps its old files meanwhile: only a new one waits.
                        match refresh {
                            true => self.refresh_retry_at = Some(again),
                            false => self.volumes = Step::RetryAt(again),
                        }
                    }
                }
            }
            Outcome::Image { container, result } => self.image_known(container, result),
            Outcome::Started { container, result } => self.start_ended(container, result),
            Outcome::Killed { id } => self.killing.retain(|known| *known != id),
            Outcome::Removed { id } => {
                self.messages.remove(&id);
                self.removing.remove(&id);
            }
            Outcome::Finished => {
                self.finishing = false;
                self.stopping = None;
                // They are taken away: nothing brings them up to date any more.
                self.volumes = Step::Todo;
                self.uses_volumes = self.cancel.child_token();
                // A step that was called off has kept them.
                self.tokens.get_or_insert_default();
            }
            Outcome::Granted { granted, generation, saved } => self.granted(granted, generation, saved),
            Outcome::Actuated(result) => self.actuated(result),
            Outcome::Written(result) => self.written(result),
            Outcome::Cancelled => {}
        }
    }

    fn image_known(&mut self, container: String, result: Result<String, crate::images::Missing>) {
        let now = self.deps.now();
        let state = match result {
            Ok(id) => {
                self.image_failures.remove(&container);
                ImageState::Present(id)
            }
            Err(missing) => {
                let failures = self.image_failures.entry(container.clone()).or_insert(0);
                *failures += 1;
                let delay = crate::images::PULL_BACKOFF.delay(*failures);
                let retry_at = missing.retry.then(|| now.saturating_add(delay).unwrap_or(Timestamp::MAX));
                let (reason, message) = (missing.reason, missing.message);
                ImageState::Failed(ImageFailure { reason, message, failed_at: now, retry_at })
            }
        };
        self.images.insert(container, state);
    }

    fn start_ended(&mut self, container: String, result: Result<(), StartError>) {
        self.starting = None;
        // The next start asks for the image again: the policy may be `Always`, or it may be gone.
        self.images.remove(&container);
        match result {
            Ok(()) => {
                self.start_failures.remove(&container);
                self.start_failure_counts.remove(&container);
            }
            Err(StartError { reason, message }) => {
                let count = self.start_failure_counts.entry(container.clone()).or_insert(0);
                *count += 1;
                let delay = START_BACKOFF.delay(*count);
                let retry_at = self.deps.now().saturating_add(delay).unwrap_or(Timestamp::MAX);
                self.start_failures.insert(container, StartFailure { reason, message, retry_at });
            }
        }
    }

    /// Writes the status if it differs from what was last written; one write at a time, the newest wins.
    fn publish(&mut self, waiting: &BTreeMap<String, Waiting>, runtime: &PodRuntime, ended: bool) {
        let host_addresses = self.deps.addresses();
        let handler =
            plan::current_sandbox(&runtime.sandboxes).map_or("", |sandbox| &sandbox.runtime_handler);
        let status = pod_status(&StatusInput {
            pod: &self.pod,
            last: &self.status,
            containers: &runtime.containers,
            waiting,
            probes: &self.probes,
            messages: &self.messages,
            addresses: &self.addresses,
            host_addresses: &host_addresses,
            sandbox_ready: self.sandbox_ready(runtime),
            recursive_read_only: recursion::supported(&self.deps.runtime.handlers(), handler),
            ended,
            holds_claims: self.deps.plugins.claims.holds(self.pod.uid()),
            failure: self.failure.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str())),
            node_memory_bytes: self.deps.facts.memory_bytes,
            resize: &self.resizes.progress,
            disrupted: self
                .eviction
                .as_ref()
                .filter(|verdict| verdict.disrupts)
                .map(|verdict| verdict.message.as_str()),
            now: self.deps.now(),
        });
        self.status = status;
        dra::health::show(&self.deps, &self.pod, &mut self.status);
        self.wanted = own_fields(&self.status);
        let waits = self.write_retry_at.is_some_and(|at| self.deps.now() < at);
        if self.writing.is_some() || waits {
            return;
        }
        self.write_retry_at = None;
        // A pod of a file may have nobody whom the API could be told of.
        let Some(known_as) = self.known_as.as_deref() else { return };
        let Some(patch) = status_patch(known_as, &self.known, &self.wanted) else { return };
        self.writing = Some(self.wanted.clone());
        let (client, key) = (self.deps.client.clone(), self.pod.key());
        let starts = self.known.get("phase").is_none_or(|phase| phase != "Running");
        let step = starts.then(|| self.deps.traces.step(self.pod.uid(), "node: tell the status", ""));
        self.push(async move {
            let _step = step;
            let pods = kinds::PODS.gvr();
            let written = client.patch(&pods, &key, "status", PatchType::StrategicMerge, &patch).await;
            Outcome::Written(written.map(drop))
        });
    }

    fn written(&mut self, result: Result<(), api::Status>) {
        let sent = self.writing.take();
        if std::mem::take(&mut self.renewed) {
            self.known = Map::new();
            return;
        }
        match result {
            Ok(()) => {
                self.write_failures = 0;
                self.known = sent.unwrap_or_default();
            }
            // Gone, or another pod of that name: the informer will say so.
            Err(status) if matches!(status.reason, Reason::NotFound | Reason::Conflict) => {
                self.known = sent.unwrap_or_default();
            }
            Err(status) => {
                tracing::warn!(pod = %self.pod.key(), error = %status, "pod status not written, trying again");
                self.write_failures += 1;
                let delay = WRITE_BACKOFF.delay(self.write_failures);
                self.write_retry_at = Some(self.deps.now().saturating_add(delay).unwrap_or(Timestamp::MAX));
            }
        }
    }
}

/// Kills one container of a pod that lives on, with the message of its event and the end of its grace.
async fn kill(
    deps: Arc<Deps>,
    pod: Arc<PodView>,
    record: crate::pod::ContainerRecord,
    addresses: Vec<std::net::IpAddr>,
    (message, until): (String, Timestamp),
    cancel: tokio_util::sync::CancellationToken,
) -> Outcome {
    let deadline = watch::Sender::new(until);
    let stop = stop::stop_one(
        &deps,
        &pod,
        &record,
        addresses.first().copied(),
        deadline.subscribe(),
        message,
        async {},
    );
    tokio::select! {
        () = stop => {}
        () = cancel.cancelled() => {}
    }
    Outcome::Killed { id: record.id }
}

/// Ends what is left of a pod that has run its course; its containers stay readable.
async fn finish(
    deps: Arc<Deps>,
    pod: Arc<PodView>,
    mailbox: Arc<Mailbox>,
    runtime: PodRuntime,
    addresses: Vec<std::net::IpAddr>,
    deadline: stop::Deadline,
    cancel: tokio_util::sync::CancellationToken,
) -> Outcome {
    let stop = stop::stop_all(&deps, &pod, &runtime.containers, addresses.first().copied(), &deadline);
    tokio::select! {
        () = stop => {}
        () = cancel.cancelled() => return Outcome::Finished,
    }
    for sandbox in &runtime.sandboxes {
        let failed = |error: &str| ops::failed_kill(&deps, &pod, error);
        if !ops::insist(&deps, &cancel, || ops::release(&deps, &sandbox.id), failed).await {
            return Outcome::Finished;
        }
    }
    // Who waits for the pod's place does not wait for drivers.
    mailbox.is_over();
    let failed = |error: &str| ops::failed_kill(&deps, &pod, error);
    if !ops::insist(&deps, &cancel, || dra::unprepare(&deps, pod.uid()), failed).await {
        return Outcome::Finished;
    }
    // Others may have the volumes before the pod itself is deleted.
    let directories = deps.directories(pod.uid());
    let failed = |error: &str| deps.event(&pod, None, EventType::Warning, "FailedUnMount", error);
    let step = || csi::tear_down(&*deps, &deps.threads, &directories, pod.uid());
    ops::insist(&deps, &cancel, step, failed).await;
    Outcome::Finished
}

fn grace_end(deps: &Deps, seconds: i64) -> Timestamp {
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    deps.now().saturating_add(grace).unwrap_or(Timestamp::MAX)
}
