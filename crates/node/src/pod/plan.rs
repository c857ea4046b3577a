//! What to do next for a pod: a pure function over its spec, what runs, what is known of images, probes and failed
//! steps, and the time. The model is upstream's `computePodActions`, with image pulls and volumes as steps of their own
//! so that no step waits for an unrelated one.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use base::backoff::Policy;
use engine_api::{ContainerState, Exit};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::hash::container_hash;
use super::restart::{epoch, restarts};
use super::view::{init_kind, probe_of};
use super::{ContainerKind, ContainerRecord, PodView, SandboxRecord};
use crate::probes::ProbeType;

/// Restarts in a row: at once, then after 10 s, 20 s, … up to `max`, which may be less than all of these.
/// Source: KEP-4603, `KubeletCrashLoopBackOffMax`.
pub(crate) fn crash_loop_policy(max: Duration) -> Policy {
    Policy { first: CRASH_LOOP_FIRST.min(max), max }
}

const CRASH_LOOP_FIRST: Duration = Duration::from_secs(10);
/// A container that ran this long starts with a clean record.
const CRASH_LOOP_RESET: Duration = Duration::from_secs(600);
/// A clock that goes back by less than this is being adjusted.
const CLOCKS_DIFFER_SECONDS: i64 = 60;
/// The exit code of a container whose end nobody saw. Source: `ContainerStatusUnknown` in `pkg/kubelet`.
const LOST: i32 = 137;
/// How long a fresh pull failure is shown as itself before the wait for the next try is.
const FRESH_FAILURE: Duration = Duration::from_secs(2);

/// A step of the pod's set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Step {
    /// Not done.
    #[default]
    Todo,
    /// Under way.
    Busy,
    /// Failed; again from then on.
    RetryAt(Timestamp),
    /// Done.
    Done,
}

/// What is known about the image that a container's next start needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageState {
    /// Being looked up or pulled.
    Busy,
    /// In the store: its id.
    Present(String),
    /// Not to be had for now.
    Failed(ImageFailure),
}

/// Why an image is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFailure {
    /// `ErrImagePull`, `RegistryUnavailable`, `ErrImageNeverPull`, `ImageInspectError` or `InvalidImageName`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) failed_at: Timestamp,
    /// `None`: only a changed pod can help.
    pub(crate) retry_at: Option<Timestamp>,
}

/// A container that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartFailure {
    /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) retry_at: Timestamp,
}

/// What probes say about a running container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ProbeState {
    /// The startup probe has succeeded, or there is none.
    pub(crate) started: bool,
    /// The readiness probe succeeds, or there is none and the ports that the container names are listened to.
    pub(crate) ready: bool,
    /// Set once the liveness probe has failed for good.
    pub(crate) liveness_failed: bool,
    /// Set once the startup probe has failed for good.
    pub(crate) startup_failed: bool,
}

/// Everything that the decision looks at.
pub(crate) struct Snapshot<'a> {
    pub(crate) pod: &'a PodView,
    /// Every sandbox of the pod; the one with the highest attempt is current.
    pub(crate) sandboxes: &'a [SandboxRecord],
    pub(crate) containers: &'a [ContainerRecord],
    pub(crate) sandbox: Step,
    pub(crate) volumes: Step,
    /// By container id.
    pub(crate) probes: &'a HashMap<String, ProbeState>,
    /// By container name.
    pub(crate) images: &'a HashMap<String, ImageState>,
    /// By container name.
    pub(crate) start_failures: &'a HashMap<String, StartFailure>,
    /// The container that is being started.
    pub(crate) starting: Option<&'a str>,
    /// Ids of containers that are being killed.
    pub(crate) killing: &'a [String],
    /// Ids of containers that were ended for a resize: they run again, whatever their policy says of ends.
    pub(crate) anew: &'a [String],
    /// How long restarts in a row wait.
    pub(crate) crash_loop: Policy,
    /// The node has failed the pod, whether or not the API server knows already.
    pub(crate) failed: bool,
    pub(crate) now: Timestamp,
}

/// Why a container is killed while its pod lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    DefinitionChanged,
    LivenessProbe,
    StartupProbe,
    PodBeginsAnew,
    /// It gets more or less of something for which it wants to begin anew.
    Resized,
}

impl KillReason {
    /// Upstream's message for the `Killing` event.
    pub(crate) fn message(self, container: &str) -> String {
        match self {
            Self::DefinitionChanged => {
                format!("Container {container} definition changed, will be restarted")
            }
            Self::LivenessProbe => {
                format!("Container {container} failed liveness probe, will be restarted")
            }
            Self::StartupProbe => {
                format!("Container {container} failed startup probe, will be restarted")
            }
            Self::Resized => format!("Container {container} resize requires restart"),
            Self::PodBeginsAnew => {
                format!("Container {container} will be restarted with all containers of its pod")
            }
        }
    }

    /// Seconds that the container has to end: its pod's, unless the probe that failed says otherwise.
    /// Source: `setTerminationGracePeriod` in `pkg/kubelet/kuberuntime`.
    pub(crate) fn grace_seconds(self, pod: &PodView, container: &str) -> i64 {
        let which = match self {
            Self::DefinitionChanged | Self::Resized => None,
            Self::PodBeginsAnew => return 0,
            Self::LivenessProbe => Some(ProbeType::Liveness),
            Self::StartupProbe => Some(ProbeType::Startup),
        };
        let probe = which.and_then(|which| probe_of(pod.container(container)?.1, which));
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        own.unwrap_or_else(|| pod.spec_grace_seconds())
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make sandbox and network.
    CreateSandbox { attempt: u32 },
    /// End everything in the pod's sandboxes: the pod has run its course.
    Finish,
    /// Put volumes and files in their places.
    MountVolumes,
    /// Look an image up, pull it if need be.
    EnsureImage { container: String },
    /// Make and start a container.
    Start { container: String, attempt: u32, failures: u32 },
    /// Stop one container; the next plan restarts it.
    Kill { id: String, container: String, reason: KillReason },
    /// Remove a dead container whose exit nobody needs any more.
    RemoveContainer { id: String },
    /// Remove a dead sandbox.
    RemoveSandbox { id: String },
}

/// Why a container is not running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// By container name: the reason that the status shows.
    pub(crate) waiting: BTreeMap<String, Waiting>,
    /// When time alone makes a new plan necessary.
    pub(crate) wake_at: Option<Timestamp>,
    /// Nothing will run any more.
    pub(crate) finished: bool,
    /// The pod's `activeDeadlineSeconds` have passed.
    pub(crate) deadline_exceeded: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    fn wait(&mut self, container: &str, reason: &str, message: impl Into<String>) {
        let waiting = Waiting { reason: reason.to_owned(), message: message.into() };
        self.waiting.insert(container.to_owned(), waiting);
    }
}

/// The newest record of a container.
pub(crate) fn latest<'a>(containers: &'a [ContainerRecord], name: &str) -> Option<&'a ContainerRecord> {
    containers
        .iter()
        .filter(|record| record.name == name)
        .max_by_key(|record| (record.attempt, record.created_at))
}

/// The sandbox that counts.
pub(crate) fn current_sandbox(sandboxes: &[SandboxRecord]) -> Option<&SandboxRecord> {
    sandboxes.iter().max_by_key(|sandbox| (sandbox.attempt, sandbox.created_at))
}

/// Decides what to do next for a pod that nobody has deleted.
pub(crate) fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let mut plan = Plan::default();
    check_deadline(snapshot, &mut plan);
    let over = plan.deadline_exceeded || snapshot.failed || snapshot.pod.is_terminal();
    if over || has_run_its_course(snapshot) {
        plan.finished = true;
        if anything_alive(snapshot) {
            plan.actions.push(Action::Finish);
        }
        return plan;
    }
    collect_garbage(snapshot, &mut plan);
    let sandbox_ready = plan_setup(snapshot, &mut plan);
    if !sandbox_ready || snapshot.volumes != Step::Done {
        return plan;
    }
    if !ends_for_anew(snapshot, &mut plan) {
        return plan;
    }
    for ephemeral in &snapshot.pod.ephemeral {
        plan_ephemeral(snapshot, &ephemeral.container, &mut plan);
    }
    if plan_init(snapshot, &mut plan) {
        for container in &snapshot.pod.spec.containers {
            plan_container(snapshot, ContainerKind::App, container, &mut plan);
        }
    } else {
        for container in &snapshot.pod.spec.containers {
            plan.wait(&container.name, "PodInitializing", "");
        }
    }
    plan
}

/// Where a rule has asked the pod to begin anew, ends what runs from before, at once and without hooks; tells whether
/// nothing of it runs any more. Source: KEP-5532.
fn ends_for_anew(snapshot: &Snapshot<'_>, plan: &mut Plan) -> bool {
    let epoch = epoch(snapshot.pod, snapshot.containers);
    let of_before = |record: &&ContainerRecord| record.is_running() && record.epoch < epoch;
    let mut ended = true;
    for record in snapshot.containers.iter().filter(of_before) {
        // It was added to see what the others do.
        if snapshot.pod.ephemeral.iter().any(|own| own.container.name == record.name) {
            continue;
        }
        ended = false;
        plan.waiting.remove(&record.name);
        if !snapshot.killing.contains(&record.id) {
            let (id, container) = (record.id.clone(), record.name.clone());
            plan.actions.push(Action::Kill { id, container, reason: KillReason::PodBeginsAnew });
        }
    }
    ended
}

fn check_deadline(snapshot: &Snapshot<'_>, plan: &mut Plan) {
    let (Some(seconds), Some(start)) =
        (snapshot.pod.spec.active_deadline_seconds, snapshot.pod.status.start_time.as_ref())
    else {
        return;
    };
    let Ok(at) = start.0.checked_add(jiff::SignedDuration::from_secs(seconds)) else { return };
    if snapshot.now >= at {
        plan.deadline_exceeded = true;
    } else {
        plan.wake(at);
    }
}

fn anything_alive(snapshot: &Snapshot<'_>) -> bool {
    snapshot.sandboxes.iter().any(|sandbox| sandbox.ready)
        || snapshot.containers.iter().any(ContainerRecord::is_running)
}

/// Whether every application container has ended for good, or an init container has failed for good.
fn has_run_its_course(snapshot: &Snapshot<'_>) -> bool {
    let epoch = epoch(snapshot.pod, snapshot.containers);
    let init_failed = snapshot.pod.init_containers().iter().any(|container| {
        init_kind(container) == ContainerKind::Init
            && latest(snapshot.containers, &container.name)
                .filter(|record| record.epoch >= epoch)
                .and_then(ContainerRecord::exit)
                .is_some_and(|exit| exit.code != 0 && !restarts(snapshot.pod, container, exit.code))
    });
    init_failed
        || snapshot.pod.spec.containers.iter().all(|container| {
            match latest(snapshot.containers, &container.name) {
                Some(record) => {
                    record.exit().is_some_and(|exit| !restarts(snapshot.pod, container, exit.code))
                        && !snapshot.killing.contains(&record.id)
                        && !snapshot.anew.contains(&record.id)
                        && record.epoch >= epoch
                }
                None => ended_and_forgotten(snapshot.pod, &container.name),
            }
        })
}

/// Whether a container of the application, or an ephemeral one, of which only the API knows has run and is not to run
/// again: the runtime was cleared (a removed sandbox, a lost disk), and a second run would do twice what was asked for once.
pub(crate) fn ended_and_forgotten(pod: &PodView, name: &str) -> bool {
    if pod.ephemeral.iter().any(|own| own.container.name == name) {
        return has_run(pod, name);
    }
    let known = pod.status.container_statuses.iter().flatten().find(|known| known.name == name);
    let Some(state) = known.and_then(|known| known.state.as_ref()) else { return false };
    let code = match (&state.terminated, &state.running) {
        (Some(ended), _) => ended.exit_code,
        (None, Some(_)) => LOST,
        (None, None) => return false,
    };
    pod.container(name).is_some_and(|(_, container)| !restarts(pod, container, code))
}

/// An ephemeral container runs once, as soon as there is a place for it. Source: `EphemeralContainersToStart` in
/// `computePodActions`.
fn plan_ephemeral(snapshot: &Snapshot<'_>, container: &Container, plan: &mut Plan) {
    let name = container.name.as_str();
    match latest(snapshot.containers, name) {
        Some(record) if record.state != ContainerState::Created => {
            plan.waiting.remove(name);
        }
        Some(record) if snapshot.starting != Some(name) => {
            plan.actions.push(Action::RemoveContainer { id: record.id.clone() });
        }
        Some(_) => {}
        // The runtime was cleared since.
        None if has_run(snapshot.pod, name) => {
            plan.waiting.remove(name);
        }
        None => plan_start(snapshot, container, None, plan),
    }
}

/// Whether the API knows of a run of a container.
fn has_run(pod: &PodView, name: &str) -> bool {
    let state = pod.reported(name).and_then(|known| known.state.as_ref());
    state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// Whether a container that has ended runs again.
fn should_restart(pod: &PodView, kind: ContainerKind, container: &Container, exit: &Exit) -> bool {
    match kind {
        ContainerKind::Sidecar => true,
        ContainerKind::App => restarts(pod, container, exit.code),
        ContainerKind::Init => exit.code != 0 && restarts(pod, container, exit.code),
        ContainerKind::Ephemeral => false,
    }
}

/// Sandbox and volumes. Tells whether there is a sandbox to start containers in.
fn plan_setup(snapshot: &Snapshot<'_>, plan: &mut Plan) -> bool {
    for (kind, container) in snapshot.pod.containers() {
        let later = matches!(kind, ContainerKind::App | ContainerKind::Ephemeral);
        let initializing = later && !snapshot.pod.init_containers().is_empty();
        plan.wait(&container.name, if initializing { "PodInitializing" } else { "ContainerCreating" }, "");
    }
    match snapshot.volumes {
        Step::Todo => plan.actions.push(Action::MountVolumes),
        Step::RetryAt(at) if snapshot.now >= at => plan.actions.push(Action::MountVolumes),
        Step::RetryAt(at) => plan.wake(at),
        Step::Busy | Step::Done => {}
    }
    let current = current_sandbox(snapshot.sandboxes);
    if current.is_some_and(|sandbox| sandbox.ready) && snapshot.sandbox == Step::Done {
        return true;
    }
    let attempt = match current {
        Some(sandbox) if sandbox.ready => sandbox.attempt,
        Some(sandbox) => sandbox.attempt + 1,
        None => 0,
    };
    match snapshot.sandbox {
        Step::Busy => {}
        Step::RetryAt(at) if snapshot.now < at => plan.wake(at),
        // `Done` with a sandbox that is not ready: it died since.
        Step::Todo | Step::RetryAt(_) | Step::Done => plan.actions.push(Action::CreateSandbox { attempt }),
    }
    false
}

/// Init containers and sidecars in their order. Tells whether the application containers may run.
fn plan_init(snapshot: &Snapshot<'_>, plan: &mut Plan) -> bool {
    let Some(sandbox) = current_sandbox(snapshot.sandboxes) else { return false };
    let epoch = epoch(snapshot.pod, snapshot.containers);
    // Once an application container exists in this sandbox, init is over, also when its records are gone.
    let initialized = snapshot.pod.spec.containers.iter().any(|container| {
        latest(snapshot.containers, &container.name)
            .is_some_and(|record| record.sandbox_id == sandbox.id && record.epoch >= epoch)
    });
    for container in snapshot.pod.init_containers() {
        let kind = init_kind(container);
        let here = latest(snapshot.containers, &container.name)
            .filter(|record| record.sandbox_id == sandbox.id && record.epoch >= epoch);
        match kind {
            ContainerKind::Init => {
                if initialized || here.is_some_and(ContainerRecord::succeeded) {
                    plan.waiting.remove(&container.name);
                    continue;
                }
                plan_container(snapshot, kind, container, plan);
                return false;
            }
            _ => {
                plan_container(snapshot, kind, container, plan);
                let started = here.is_some_and(|record| {
                    record.is_running()
                        && snapshot.probes.get(&record.id).is_some_and(|probes| probes.started)
                });
                if !started && !initialized {
                    return false;
                }
            }
        }
    }
    true
}

/// One container that ought to run now.
fn plan_container(snapshot: &Snapshot<'_>, kind: ContainerKind, container: &Container, plan: &mut Plan) {
    let name = container.name.as_str();
    plan.wait(name, "ContainerCreating", "");
    let sandbox_id = current_sandbox(snapshot.sandboxes).map(|sandbox| sandbox.id.as_str());
    let record = latest(snapshot.containers, name);
    match record.map(|record| (&record.state, record)) {
        Some((ContainerState::Running { .. }, record)) if sandbox_id == Some(record.sandbox_id.as_str()) => {
            plan.waiting.remove(name);
            if let Some(reason) = kill_reason(snapshot, container, record) {
                plan.actions.push(Action::Kill { id: record.id.clone(), container: name.to_owned(), reason });
            }
            return;
        }
        Some((ContainerState::Exited { exit, .. }, record)) => {
            let same_sandbox = sandbox_id == Some(record.sandbox_id.as_str());
            // In a new sandbox init containers run again, whatever they did in the old one.
            let of_before = record.epoch < epoch(snapshot.pod, snapshot.containers);
            let resized = snapshot.anew.contains(&record.id);
            let rerun = of_before || resized || kind == ContainerKind::Init && !same_sandbox;
            if snapshot.killing.contains(&record.id) {
                return;
            }
            if !rerun && !should_restart(snapshot.pod, kind, container, exit) {
                plan.waiting.remove(name);
                return;
            }
            if same_sandbox && crash_loop(snapshot, record, plan) {
                return;
            }
        }
        Some((ContainerState::Created, record)) if snapshot.starting != Some(name) => {
            // An interrupted start: its leftovers go, the next attempt takes its place.
            plan.actions.push(Action::RemoveContainer { id: record.id.clone() });
            return;
        }
        _ => {}
    }
    plan_start(snapshot, container, record, plan);
}

/// Whether a dead container has to wait for its restart; says so in the plan.
fn crash_loop(snapshot: &Snapshot<'_>, record: &ContainerRecord, plan: &mut Plan) -> bool {
    let Some(exit) = record.exit() else { return false };
    let delay = restart_delay(snapshot.crash_loop, record);
    let at = exit.finished_at.saturating_add(delay).unwrap_or(Timestamp::MAX);
    // An end in the future: the clock was put back since, and would keep the container waiting for as much as that.
    let ahead = exit.finished_at.duration_since(snapshot.now).as_secs() > CLOCKS_DIFFER_SECONDS;
    if snapshot.now >= at || ahead {
        return false;
    }
    plan.wake(at);
    let message = format!(
        "back-off {} restarting failed container={} pod={}",
        base::go_duration::show(delay),
        record.name,
        snapshot.pod.described()
    );
    plan.wait(&record.name, "CrashLoopBackOff", message);
    true
}

/// How long after its end a container is restarted.
fn restart_delay(policy: Policy, record: &ContainerRecord) -> Duration {
    if ran_long(record) { Duration::ZERO } else { policy.delay(record.failures) }
}

fn ran_long(record: &ContainerRecord) -> bool {
    match (record.started_at(), record.exit()) {
        (Some(started), Some(exit)) => {
            exit.finished_at.duration_since(started).unsigned_abs() >= CRASH_LOOP_RESET
        }
        _ => false,
    }
}

fn kill_reason(
    snapshot: &Snapshot<'_>,
    container: &Container,
    record: &ContainerRecord,
) -> Option<KillReason> {
    if snapshot.killing.contains(&record.id) {
        return None;
    }
    if !record.hash.is_empty() && record.hash != container_hash(container) {
        return Some(KillReason::DefinitionChanged);
    }
    let probes = snapshot.probes.get(&record.id)?;
    if probes.liveness_failed {
        Some(KillReason::LivenessProbe)
    } else if probes.startup_failed {
        Some(KillReason::StartupProbe)
    } else {
        None
    }
}

/// A container that has to be started: image first, then one start at a time per pod, in order.
fn plan_start(
    snapshot: &Snapshot<'_>,
    container: &Container,
    record: Option<&ContainerRecord>,
    plan: &mut Plan,
) {
    let name = container.name.as_str();
    if snapshot.starting == Some(name) {
        return;
    }
    if let Some(failure) = snapshot.start_failures.get(name) {
        if snapshot.now < failure.retry_at {
            plan.wake(failure.retry_at);
            plan.wait(name, failure.reason, failure.message.clone());
            return;
        }
        // The failure stays visible until the next try has ended.
        plan.wait(name, failure.reason, failure.message.clone());
    }
    match snapshot.images.get(name) {
        None => plan.actions.push(Action::EnsureImage { container: name.to_owned() }),
        Some(ImageState::Busy) => {}
        Some(ImageState::Failed(failure)) => plan_image_failure(snapshot, container, failure, plan),
        Some(ImageState::Present(_)) => {
            let starts = plan.actions.iter().any(|action| matches!(action, Action::Start { .. }));
            if snapshot.starting.is_none() && !starts {
                let (attempt, failures) = next_attempt(snapshot.pod, name, record);
                plan.actions.push(Action::Start { container: name.to_owned(), attempt, failures });
            }
        }
    }
}

fn plan_image_failure(
    snapshot: &Snapshot<'_>,
    container: &Container,
    failure: &ImageFailure,
    plan: &mut Plan,
) {
    let name = container.name.as_str();
    let Some(retry_at) = failure.retry_at else {
        plan.wait(name, failure.reason, failure.message.clone());
        return;
    };
    if snapshot.now >= retry_at {
        plan.actions.push(Action::EnsureImage { container: name.to_owned() });
        plan.wait(name, failure.reason, failure.message.clone());
        return;
    }
    let fresh_until = failure.failed_at.saturating_add(FRESH_FAILURE).unwrap_or(retry_at);
    if snapshot.now < fresh_until {
        plan.wait(name, failure.reason, failure.message.clone());
        plan.wake(fresh_until.min(retry_at));
    } else {
        let image = container.image.as_deref().unwrap_or_default();
        let message = format!("Back-off pulling image \"{image}\": {}: {}", failure.reason, failure.message);
        plan.wait(name, "ImagePullBackOff", message);
        plan.wake(retry_at);
    }
}

/// Restart count and restarts in a row of the next start.
fn next_attempt(pod: &PodView, name: &str, record: Option<&ContainerRecord>) -> (u32, u32) {
    if let Some(record) = record {
        let failures = if ran_long(record) { 1 } else { record.failures.saturating_add(1) };
        return (record.attempt.saturating_add(1), failures);
    }
    // The runtime has forgotten it (a reboot, a cleaned disk): the API's count goes on.
    let attempt = pod.reported(name).map_or(0, |status| {
        let ran = status.container_id.as_deref().is_some_and(|id| !id.is_empty());
        u32::try_from(status.restart_count).unwrap_or(0).saturating_add(u32::from(ran))
    });
    (attempt, 0)
}

/// Keeps, per container, the newest record and the one before (for `lastState` and `logs --previous`).
fn collect_garbage(snapshot: &Snapshot<'_>, plan: &mut Plan) {
    let is_garbage = |record: &ContainerRecord| {
        let newer = snapshot.containers.iter().filter(|other| {
            other.name == record.name
                && (other.attempt, other.created_at) > (record.attempt, record.created_at)
        });
        !record.is_running() && newer.count() >= 2
    };
    let current = current_sandbox(snapshot.sandboxes).map(|sandbox| sandbox.id.as_str());
    for sandbox in snapshot.sandboxes.iter().filter(|sandbox| Some(sandbox.id.as_str()) != current) {
        let mut inside = snapshot.containers.iter().filter(|record| record.sandbox_id == sandbox.id);
        if inside.all(is_garbage) {
            plan.actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
    for record in snapshot.containers.iter().filter(|record| Some(record.sandbox_id.as_str()) == current) {
        if is_garbage(record) {
            plan.actions.push(Action::RemoveContainer { id: record.id.clone() });
        }
    }
}
