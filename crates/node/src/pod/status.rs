//! A pod's status: a pure function over its spec, its containers, its probes and its last status.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use engine_api::{ContainerState as Runtime, Identity};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP, PodStatus,
    ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::phase::phase;
use super::plan::{ProbeState, Waiting, ended_and_forgotten, latest};
use super::recursion;
use super::restart::{ended_for_anew, epoch};
use super::view::{init_kind, reported};
use super::{ContainerKind, ContainerRecord, PodView};
use crate::admission::preemption::PREEMPTING;
use crate::cpus::limits::container_resources;
use crate::pod::resources::qos_class;
use crate::resize::{IN_PROGRESS, PENDING, Progress, Told, shown};

type Amounts = BTreeMap<String, Quantity>;

/// Condition types that the node writes; others belong to others.
pub(crate) const OWN_CONDITIONS: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    BEGINS_ANEW,
    PENDING,
    IN_PROGRESS,
];

/// The condition of a pod that a rule has asked to begin anew. Source: KEP-5532, `v1.AllContainersRestarting`.
const BEGINS_ANEW: &str = "AllContainersRestarting";
/// Why a container of such a pod has ended.
pub(crate) const ENDED_FOR_ANEW: &str = "RestartingAllContainers";

/// Why a pod is disrupted by its node, which is a condition beside [`OWN_CONDITIONS`] that others write too.
/// Source: `v1.PodReasonTerminationByKubelet`.
pub(crate) const DISRUPTION: (&str, &str) = ("DisruptionTarget", "TerminationByKubelet");

/// Bytes of termination messages that a pod's status holds. Source: `MaxPodTerminationMessageLogLength`.
const MESSAGES_MAX: usize = 12 * 1024;

/// What the status is made from.
pub(crate) struct StatusInput<'a> {
    /// With the resources that it was granted.
    pub(crate) pod: &'a PodView,
    /// The status that the API server has, or was last sent.
    pub(crate) last: &'a PodStatus,
    pub(crate) containers: &'a [ContainerRecord],
    /// By container name.
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    /// By container id.
    pub(crate) probes: &'a HashMap<String, ProbeState>,
    /// Termination messages by container id.
    pub(crate) messages: &'a HashMap<String, String>,
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) host_addresses: &'a [IpAddr],
    pub(crate) sandbox_ready: bool,
    /// The runtime makes mounts read-only with all that is mounted below them.
    pub(crate) recursive_read_only: bool,
    /// Every container has ended for good.
    pub(crate) ended: bool,
    /// Drivers have devices prepared for it.
    pub(crate) holds_claims: bool,
    /// `reason` and `message` of a pod that the node itself fails.
    pub(crate) failure: Option<(&'a str, &'a str)>,
    pub(crate) node_memory_bytes: i64,
    pub(crate) resize: &'a Progress,
    /// Why the pod has to go for the sake of others on its node.
    pub(crate) disrupted: Option<&'a str>,
    pub(crate) now: Timestamp,
}

/// Makes the status.
pub(crate) fn pod_status(input: &StatusInput<'_>) -> PodStatus {
    let (mut init, mut apps, mut ephemeral) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, container) in input.pod.containers() {
        let list = match kind {
            ContainerKind::App => &mut apps,
            ContainerKind::Init | ContainerKind::Sidecar => &mut init,
            ContainerKind::Ephemeral => &mut ephemeral,
        };
        list.push(container_status(input, kind, container));
    }
    let epoch = epoch(input.pod, input.containers);
    let due = |name: &str| latest(input.containers, name).is_some_and(|record| record.epoch < epoch);
    let (phase, failure) = match (input.failure, input.last.phase.as_deref()) {
        // A pod's end is final.
        (_, Some("Succeeded")) => ("Succeeded", None),
        (failure, Some("Failed")) => ("Failed", failure),
        (failure, before) => {
            let phase = match failure {
                Some(_) => "Failed",
                None => phase(input.pod, &init, &apps, input.ended, &due),
            };
            let uses = input.holds_claims || input.containers.iter().any(ContainerRecord::is_running);
            if is_end(phase) && uses {
                (if before == Some("Pending") { "Pending" } else { "Running" }, None)
            } else {
                (phase, failure)
            }
        }
    };
    let host_network = input.pod.host_network();
    let addresses = if host_network { input.host_addresses } else { input.addresses };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        start_time: Some(input.last.start_time.clone().unwrap_or(Time(input.now))),
        host_ip: input.host_addresses.first().map(ToString::to_string),
        host_ips: some(input.host_addresses.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: addresses.first().map(ToString::to_string),
        pod_ips: some(addresses.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        qos_class: Some(qos_class(&input.pod.spec).to_owned()),
        observed_generation: Some(input.pod.metadata.generation).filter(|generation| *generation > 0),
        reason: failure.map(|(reason, _)| reason.to_owned()).or_else(|| input.last.reason.clone()),
        message: failure.map(|(_, text)| text.to_owned()).or_else(|| input.last.message.clone()),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions(input, phase, &init, &apps));
    (status.allocated_resources, status.resources) = of_whole(input);
    // Where nothing has ever begun, containers that wait would hide why the pod has failed.
    if phase != "Failed" || has_begun(input) {
        status.container_statuses = Some(apps);
        status.init_container_statuses = some(init);
        status.ephemeral_container_statuses = some(ephemeral);
    }
    status
}

/// Whether a phase is the end of a pod. Nobody hears of it as long as a container runs, be it a sidecar, or devices are
/// prepared for it: who waits for the end takes what the pod has for free. Source: `mergePodStatus` in `pkg/kubelet/status`.
fn is_end(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// What the pod as a whole was granted, and what of that its group has: while it is resized, that of before.
/// Source: KEP-5419.
fn of_whole(input: &StatusInput<'_>) -> (Option<Amounts>, Option<ResourceRequirements>) {
    let Some(granted) = input.pod.spec.resources.clone() else { return (None, None) };
    let before = input.last.resources.clone().filter(|_| input.resize.in_progress.is_some());
    (granted.requests.clone(), before.or(Some(granted)))
}

/// Whether a container of the pod was ever heard of, or its loss is what the pod has failed of.
fn has_begun(input: &StatusInput<'_>) -> bool {
    let known = [&input.last.container_statuses, &input.last.init_container_statuses];
    let lost = input.ended && input.last.phase.as_deref() != Some("Failed");
    lost || !input.containers.is_empty() || known.into_iter().flatten().flatten().next().is_some()
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

fn container_status(input: &StatusInput<'_>, kind: ContainerKind, container: &Container) -> ContainerStatus {
    let record = latest(input.containers, &container.name);
    let previous =
        record.and_then(|record| previous_end(input, record).or_else(|| reported_end(input, record)));
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        // Nothing asks an ephemeral container how it is.
        started: (kind != ContainerKind::Ephemeral).then_some(false),
        volume_mounts: recursion::statuses(container, input.recursive_read_only),
        resources: had(input, container, record),
        allocated_resources: container.resources.as_ref().and_then(|resources| resources.requests.clone()),
        ..ContainerStatus::default()
    };
    let Some(record) = record else {
        forgotten(input, container, &mut status);
        return status;
    };
    status.image_id.clone_from(&record.image_id);
    status.image.clone_from(&record.image);
    status.container_id = Some(container_id(&record.id));
    status.user = record.identity.as_ref().map(user);
    status.restart_count = i32::try_from(record.attempt).unwrap_or(i32::MAX);
    status.last_state = Some(previous.unwrap_or_default());
    let waiting = input.waiting.get(&container.name);
    match (&record.state, waiting) {
        (Runtime::Running { started_at, .. }, _) => {
            let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
            status.state = Some(ContainerState { running: Some(running), ..ContainerState::default() });
            if kind != ContainerKind::Ephemeral {
                let probes = input.probes.get(&record.id).cloned().unwrap_or_default();
                status.started = Some(probes.started);
                status.ready = probes.started && probes.ready && kind != ContainerKind::Init;
            }
        }
        (Runtime::Exited { .. }, Some(waiting)) if !input.ended && restarts(waiting) => {
            status.last_state = terminated_state(input, record);
            status.state = Some(waiting_state(waiting));
        }
        (Runtime::Exited { .. }, _) => {
            status.state = terminated_state(input, record);
            status.ready = kind == ContainerKind::Init && record.succeeded();
        }
        (Runtime::Created, waiting) => {
            let waiting = waiting.cloned().unwrap_or_else(creating);
            status.state = Some(waiting_state(&waiting));
        }
    }
    status
}

/// What a container has of what it was granted. One that does not run is given it when it starts.
fn had(
    input: &StatusInput<'_>,
    container: &Container,
    record: Option<&ContainerRecord>,
) -> Option<ResourceRequirements> {
    let wanted = container_resources(input.pod, container, input.node_memory_bytes);
    let running = record.filter(|record| record.is_running());
    shown(container.resources.as_ref(), &wanted, running.map(|record| &record.resources))
}

/// Who a container's first process was started as. Source: KEP-3619.
fn user(identity: &Identity) -> ContainerUser {
    let supplemental_groups = Some(identity.groups.iter().copied().map(i64::from).collect());
    let (uid, gid) = (i64::from(identity.uid), i64::from(identity.gid));
    ContainerUser { linux: Some(LinuxContainerUser { uid, gid, supplemental_groups }) }
}

/// A dead container shows its own end until its restart is put off or fails: as upstream, where the moment between an
/// end and an immediate restart shows `Terminated`.
fn restarts(waiting: &Waiting) -> bool {
    !matches!(waiting.reason.as_str(), "ContainerCreating" | "PodInitializing" | "")
}

fn creating() -> Waiting {
    Waiting { reason: "ContainerCreating".to_owned(), message: String::new() }
}

/// A container that the runtime does not know: never made, or forgotten with a reboot.
fn forgotten(input: &StatusInput<'_>, container: &Container, status: &mut ContainerStatus) {
    let known = reported(input.last, &container.name);
    let waiting = input.waiting.get(&container.name).cloned().unwrap_or_else(creating);
    status.last_state = Some(ContainerState::default());
    if let Some(known) = known {
        status.restart_count = known.restart_count;
        status.image_id.clone_from(&known.image_id);
        status.last_state.clone_from(&known.last_state);
        status.container_id.clone_from(&known.container_id);
        if let Some(state) = &known.state {
            let for_good = ended_and_forgotten(input.pod, &container.name);
            if state.terminated.is_some() && (input.ended || input.pod.is_terminal() || for_good) {
                status.state = Some(state.clone());
                return;
            }
            if for_good {
                status.state =
                    Some(lost("The container could not be located when the pod was started", known));
                return;
            }
            if state.running.is_some() {
                status.last_state =
                    Some(lost("The container could not be located when the pod was started", known));
            }
            // Its end is counted here; what starts next has no predecessor that is to be counted.
            if state.running.is_some() && !input.ended {
                status.restart_count += 1;
                status.container_id = None;
            }
        }
    }
    status.state = if input.ended {
        let unknown = ContainerStatus::default();
        Some(lost(
            "The container could not be located when the pod was terminated",
            known.unwrap_or(&unknown),
        ))
    } else {
        Some(waiting_state(&waiting))
    };
}

fn lost(message: &str, known: &ContainerStatus) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(message.to_owned()),
        container_id: known.container_id.clone(),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// How the run before the newest one ended.
fn previous_end(input: &StatusInput<'_>, newest: &ContainerRecord) -> Option<ContainerState> {
    let older = input.containers.iter().filter(|record| {
        record.name == newest.name
            && (record.attempt, record.created_at) < (newest.attempt, newest.created_at)
    });
    older
        .max_by_key(|record| (record.attempt, record.created_at))
        .and_then(|record| terminated_state(input, record))
}

/// How the run before ended, where the runtime has forgotten it and the API has not.
fn reported_end(input: &StatusInput<'_>, newest: &ContainerRecord) -> Option<ContainerState> {
    let known = reported(input.last, &newest.name)?;
    let same_run = u32::try_from(known.restart_count) == Ok(newest.attempt) && newest.attempt > 0;
    known.last_state.clone().filter(|_| same_run)
}

/// `skiff://<id>`.
pub(crate) fn container_id(id: &str) -> String {
    format!("skiff://{id}")
}

fn waiting_state(waiting: &Waiting) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(waiting.reason.clone()),
        message: Some(waiting.message.clone()).filter(|message| !message.is_empty()),
    };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated_state(input: &StatusInput<'_>, record: &ContainerRecord) -> Option<ContainerState> {
    let exit = record.exit()?;
    let reason = match (record.started_at(), exit) {
        (_, exit) if exit.oom_killed => "OOMKilled",
        (None, _) => "StartError",
        _ if ended_for_anew(input.pod, record, epoch(input.pod, input.containers)) => ENDED_FOR_ANEW,
        (_, exit) if exit.code == 0 => "Completed",
        _ => "Error",
    };
    let message = input.messages.get(&record.id).unwrap_or(&exit.message);
    let message = message[..message.floor_char_boundary(message_max(input.pod))].to_owned();
    let terminated = ContainerStateTerminated {
        exit_code: exit.code,
        signal: None,
        reason: Some(reason.to_owned()),
        message: Some(message).filter(|message| !message.is_empty()),
        started_at: record.started_at().map(Time),
        finished_at: Some(Time(exit.finished_at)),
        container_id: Some(container_id(&record.id)),
    };
    Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() })
}

/// How long a container's message may be in bytes: all containers share what a pod has. Source: `normalizeStatus` in
/// `pkg/kubelet/status`.
fn message_max(pod: &PodView) -> usize {
    MESSAGES_MAX / pod.containers().count().max(1)
}

/// A condition before its transition time is known.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: "", message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }
}

fn conditions(
    input: &StatusInput<'_>,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input.pod, phase, init, apps);
    let ready = ready(input, &containers_ready);
    let sandbox = if input.sandbox_ready { Verdict::yes() } else { Verdict::no("", String::new()) };
    let verdicts = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(input.pod, phase, init, apps)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ];
    let disruption = is_disrupted(input).then(|| {
        let mut known = input.last.conditions.iter().flatten().filter(|known| known.type_ == DISRUPTION.0);
        let known = known.find_map(|known| known.message.clone());
        let preempted = || "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned();
        let message = input.disrupted.map(str::to_owned).or(known).unwrap_or_else(preempted);
        (DISRUPTION.0, Verdict { reason: DISRUPTION.1, message, ..Verdict::yes() })
    });
    let anew = begins_anew(input).map(|verdict| (BEGINS_ANEW, verdict));
    verdicts
        .into_iter()
        .chain(anew)
        .chain(disruption)
        .map(|(kind, verdict)| condition(input, kind, verdict))
        .chain(resize_conditions(input, phase))
        .collect()
}

/// Conditions of a resize, which are there as long as they hold.
fn resize_conditions(input: &StatusInput<'_>, phase: &str) -> Vec<PodCondition> {
    let Progress { pending, in_progress } = input.resize;
    let over = matches!(phase, "Succeeded" | "Failed");
    let told = [(PENDING, pending), (IN_PROGRESS, in_progress)].into_iter().filter(|_| !over);
    let shown = told.filter_map(|(kind, told)| {
        let Told { reason, message, generation } = told.as_ref()?;
        let verdict = Verdict { holds: true, reason: "", message: message.clone() };
        let reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
        Some(PodCondition {
            reason,
            observed_generation: Some(*generation).filter(|generation| *generation > 0),
            ..condition(input, kind, verdict)
        })
    });
    shown.collect()
}

/// Whether runs from before still run, of a pod that was asked to begin anew; `None` for one that never was.
fn begins_anew(input: &StatusInput<'_>) -> Option<Verdict> {
    let epoch = epoch(input.pod, input.containers);
    let known = input.last.conditions.iter().flatten().any(|known| known.type_ == BEGINS_ANEW);
    if epoch == 0 && !known {
        return None;
    }
    let of_before = |record: &ContainerRecord| record.is_running() && record.epoch < epoch;
    Some(if input.containers.iter().any(of_before) { Verdict::yes() } else { Verdict::no("", String::new()) })
}

/// Whether the pod has to go, or had to, for the sake of others.
fn is_disrupted(input: &StatusInput<'_>) -> bool {
    let mut known = input.last.conditions.iter().flatten();
    input.disrupted.is_some()
        || input.failure.is_some_and(|(reason, _)| reason == PREEMPTING)
        || known.any(|known| known.type_ == DISRUPTION.0 && known.reason.as_deref() == Some(DISRUPTION.1))
}

fn condition(input: &StatusInput<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let value = if verdict.holds { "True" } else { "False" };
    let known = input.last.conditions.iter().flatten().find(|known| known.type_ == kind);
    let since = known
        .filter(|known| known.status == value)
        .and_then(|known| known.last_transition_time.clone())
        .unwrap_or(Time(input.now));
    PodCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(verdict.reason.to_owned()).filter(|reason| !reason.is_empty()),
        message: Some(verdict.message).filter(|message| !message.is_empty()),
        last_transition_time: Some(since),
        last_probe_time: None,
        observed_generation: Some(input.pod.metadata.generation).filter(|generation| *generation > 0),
    }
}

fn initialized(pod: &PodView, phase: &str, init: &[ContainerStatus], apps: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { reason: "PodCompleted", ..Verdict::yes() };
    }
    // An application container that has run proves that init is over, whatever is known of the init containers.
    let ran = apps.iter().any(|status| {
        status.container_id.is_some()
            && status
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    });
    let incomplete: Vec<&str> = pod
        .init_containers()
        .iter()
        .filter(|container| {
            let status = init.iter().find(|status| status.name == container.name);
            !status.is_some_and(|status| match init_kind(container) {
                ContainerKind::Sidecar => status.started == Some(true) || ran,
                _ => status.ready || ran,
            })
        })
        .map(|container| container.name.as_str())
        .collect();
    if incomplete.is_empty() {
        Verdict::yes()
    } else {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Verdict::no("ContainersNotInitialized", message)
    }
}

fn containers_ready(
    pod: &PodView,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", String::new()),
        "Failed" => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    let sidecars = init
        .iter()
        .filter(|status| pod.container(&status.name).is_some_and(|(kind, _)| kind == ContainerKind::Sidecar));
    let unready: Vec<&str> =
        sidecars.chain(apps).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    if unready.is_empty() {
        Verdict::yes()
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        Verdict::no("ContainersNotReady", message)
    }
}

fn ready(input: &StatusInput<'_>, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict::no(containers.reason, containers.message.clone());
    }
    // Others write the gates' conditions: only the API server's copy of the pod has them.
    let conditions = input.pod.status.conditions.as_deref().unwrap_or_default();
    for gate in input.pod.spec.readiness_gates.iter().flatten() {
        let found = conditions.iter().find(|condition| condition.type_ == gate.condition_type);
        match found {
            None => {
                let message = format!(
                    "corresponding condition of pod readiness gate \"{}\" does not exist.",
                    gate.condition_type
                );
                return Verdict::no("ReadinessGatesNotReady", message);
            }
            Some(condition) if condition.status != "True" => {
                let message = format!(
                    "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                    gate.condition_type, condition.status
                );
                return Verdict::no("ReadinessGatesNotReady", message);
            }
            Some(_) => {}
        }
    }
    Verdict::yes()
}
