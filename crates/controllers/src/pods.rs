//! What controllers look at in a pod. Source: `k8s.io/kubernetes/pkg/api/v1/pod` and `pkg/controller`.

use std::cmp::Ordering;
use std::time::Duration;

use api::ObjectMeta;
use jiff::Timestamp;
use reconcile::taints::Toleration;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// A projection of `core/v1.Pod`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: PodSpec,
    /// Observed state.
    pub status: PodStatus,
}

/// The part of `core/v1.PodSpec` that controllers use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node; empty before scheduling.
    pub node_name: String,
    /// Its host name, for DNS.
    pub hostname: String,
    /// Its subdomain, for DNS.
    pub subdomain: String,
    /// Containers.
    pub containers: Vec<Container>,
    /// Containers that run before them; those that are restarted always run beside them.
    pub init_containers: Vec<InitContainer>,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
}

/// The part of an init container that controllers use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitContainer {
    /// Name.
    pub name: String,
    /// `Always` for one that runs beside the others.
    pub restart_policy: String,
    /// Ports with names.
    pub ports: Vec<ContainerPort>,
}

/// The part of `core/v1.Container` that controllers use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Ports with names.
    pub ports: Vec<ContainerPort>,
}

/// `core/v1.ContainerPort`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name.
    pub name: String,
    /// Port.
    pub container_port: i32,
    /// `TCP`, `UDP` or `SCTP`; empty stands for TCP.
    pub protocol: String,
}

/// The part of `core/v1.PodStatus` that controllers use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Why it is so, for machines: `Evicted`, ….
    pub reason: String,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Restart counts and ends.
    pub container_statuses: Vec<ContainerStatus>,
    /// The same of the containers that run before them.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// The primary address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

/// `core/v1.PodIP`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// `core/v1.ContainerStatus`, its restarts and its end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Name.
    pub name: String,
    /// How often it was started again.
    pub restart_count: i64,
    /// How it is.
    pub state: ContainerState,
}

/// `core/v1.ContainerState`, the end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Present once it has ended.
    pub terminated: Option<Terminated>,
}

/// `core/v1.ContainerStateTerminated`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// Exit code.
    pub exit_code: i64,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A condition of a pod or node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// `Ready`, ….
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Machine-readable.
    pub reason: String,
    /// When the status changed last.
    pub last_transition_time: Option<Timestamp>,
}

impl Pod {
    /// Not finished and not being deleted: it counts for its controller.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && !self.metadata.is_terminating()
    }

    /// Ran to its end.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// When its readiness changed last, to whatever.
    pub(crate) fn readiness_changed(&self) -> Option<Timestamp> {
        self.status.conditions.iter().find(|held| held.r#type == "Ready")?.last_transition_time
    }

    fn ready(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|held| held.r#type == "Ready" && held.status == "True")
    }

    /// Whether it takes traffic.
    pub fn is_ready(&self) -> bool {
        self.ready().is_some()
    }

    /// When it will have been ready for `min_ready`: `None` if it is not ready.
    pub fn available_at(&self, min_ready: Duration) -> Option<Timestamp> {
        available_at(self.ready()?.last_transition_time, min_ready)
    }

    /// Whether it has been ready for `min_ready`.
    pub fn is_available(&self, min_ready: Duration, now: Timestamp) -> bool {
        self.available_at(min_ready).is_some_and(|at| min_ready.is_zero() || at <= now)
    }

    /// Source: `maxContainerRestarts`.
    fn restarts(&self) -> Restarts {
        let beside = |name: &str| {
            self.spec.init_containers.iter().any(|init| init.name == name && init.restart_policy == "Always")
        };
        let most = |counts: &mut dyn Iterator<Item = &ContainerStatus>| {
            counts.map(|held| held.restart_count).max().unwrap_or(0)
        };
        let mut sidecars = self.status.init_container_statuses.iter().filter(|held| beside(&held.name));
        (most(&mut self.status.container_statuses.iter()), most(&mut sidecars))
    }

    fn deletion_cost(&self) -> i64 {
        let cost = self.metadata.annotations.get("controller.kubernetes.io/pod-deletion-cost");
        cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
    }

    fn phase_rank(&self) -> u8 {
        match self.status.phase.as_str() {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        }
    }
}

/// What a pod's status says of whether it still runs, or will.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodState {
    phase: String,
    init_container_statuses: Vec<RunState>,
    container_statuses: Vec<RunState>,
    ephemeral_container_statuses: Vec<RunState>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunState {
    state: Run,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Run {
    waiting: Option<IgnoredAny>,
    terminated: Option<IgnoredAny>,
}

impl PodState {
    /// Whether none of the containers runs or will run, of a pod that is being deleted or not.
    /// Source: `volumeutil.IsPodTerminated`.
    pub(crate) fn is_terminated(&self, is_terminating: bool) -> bool {
        let runs = |held: &RunState| held.state.waiting.is_none() && held.state.terminated.is_none();
        let lists =
            [&self.init_container_statuses, &self.container_statuses, &self.ephemeral_container_statuses];
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
            || is_terminating && !lists.into_iter().flatten().any(runs)
    }
}

/// Whether a pod mounts a claim, by name or as an ephemeral volume of its own.
pub(crate) fn uses_claim(pod: &Value, claim: &str) -> bool {
    claims_of(pod).iter().any(|name| name == claim)
}

/// The names of the claims that a pod mounts.
pub(crate) fn claims_of(pod: &Value) -> Vec<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes
        .filter_map(|volume| {
            let own = || format!("{name}-{}", volume["name"].as_str().unwrap_or_default());
            let named = volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_owned);
            named.or_else(|| volume["ephemeral"].is_object().then(own))
        })
        .collect()
}

/// When the next of the ready pods will have been ready for `min_ready`.
pub(crate) fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    min_ready: Duration,
    now: Timestamp,
) -> Option<Duration> {
    next_moment(pods.into_iter().filter_map(|pod| pod.available_at(min_ready)), min_ready, now)
}

/// How long it is until the next of the moments at which pods become available, that is still to come.
pub(crate) fn next_moment(
    moments: impl Iterator<Item = Timestamp>,
    min_ready: Duration,
    now: Timestamp,
) -> Option<Duration> {
    if min_ready.is_zero() {
        return None;
    }
    Duration::try_from(moments.filter(|at| *at > now).min()?.duration_since(now)).ok()
}

/// When a pod that is ready since then will have been so for `min_ready`.
fn available_at(since: Option<Timestamp>, min_ready: Duration) -> Option<Timestamp> {
    if min_ready.is_zero() {
        return Some(since.unwrap_or(Timestamp::MIN));
    }
    since?.saturating_add(min_ready).ok()
}

/// Orders pods by how far they have come: those that have come least go first. Source: `controller.ActivePods`.
pub fn progress_order(a: &Pod, b: &Pod) -> Ordering {
    let placed = |pod: &Pod| !pod.spec.node_name.is_empty();
    // The later moment goes first; none is the latest of all.
    let later_first = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (Some(a), Some(b)) => b.cmp(&a),
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    let since = |pod: &Pod| pod.ready().and_then(|held| held.last_transition_time);
    placed(a)
        .cmp(&placed(b))
        .then_with(|| a.phase_rank().cmp(&b.phase_rank()))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| later_first(since(a), since(b)))
        .then_with(|| b.restarts().cmp(&a.restarts()))
        .then_with(|| later_first(a.metadata.creation_timestamp, b.metadata.creation_timestamp))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// How often the container was started again that was most often, and which of those that run beside the others.
type Restarts = (i64, i64);

/// How far a pod has come: what decides between pods of one set. Read off a pod once for each of its versions, and small,
/// since one is kept for every pod of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    active: bool,
    placed: bool,
    phase_rank: u8,
    /// Whether it is being deleted and has not ended yet.
    leaving: bool,
    /// Whether it takes traffic, and since when where that is known.
    ready: Option<Option<Timestamp>>,
    deletion_cost: i64,
    restarts: Restarts,
    created: Option<Timestamp>,
}

impl From<&Pod> for Standing {
    fn from(pod: &Pod) -> Self {
        Self {
            active: pod.is_active(),
            placed: !pod.spec.node_name.is_empty(),
            phase_rank: pod.phase_rank(),
            leaving: pod.metadata.is_terminating() && !pod.is_finished(),
            ready: pod.ready().map(|held| held.last_transition_time),
            deletion_cost: pod.deletion_cost(),
            restarts: pod.restarts(),
            created: pod.metadata.creation_timestamp,
        }
    }
}

impl Standing {
    /// As of the pod.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// Whether it is being deleted and has not ended yet. Source: `IsPodTerminating`.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// As of the pod.
    pub fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// As of the pod.
    pub fn available_at(&self, min_ready: Duration) -> Option<Timestamp> {
        available_at(self.ready?, min_ready)
    }

    /// As of the pod.
    pub fn is_available(&self, min_ready: Duration, now: Timestamp) -> bool {
        self.available_at(min_ready).is_some_and(|at| min_ready.is_zero() || at <= now)
    }
}

/// A pod that may be deleted.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// How far it has come.
    pub standing: &'a Standing,
    /// Its uid.
    pub uid: &'a str,
    /// How many pods of related sets share its node.
    pub siblings: usize,
}

/// Orders pods by who is to be deleted first. Source: `controller.ActivePodsWithRanks`.
pub fn deletion_order(one: Candidate<'_>, other: Candidate<'_>, now: Timestamp) -> Ordering {
    let (a, b) = (one.standing, other.standing);
    a.placed
        .cmp(&b.placed)
        .then_with(|| a.phase_rank.cmp(&b.phase_rank))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| a.deletion_cost.cmp(&b.deletion_cost))
        .then_with(|| other.siblings.cmp(&one.siblings))
        .then_with(|| younger_first(a.ready.flatten(), b.ready.flatten(), now))
        .then_with(|| b.restarts.cmp(&a.restarts))
        .then_with(|| younger_first(a.created, b.created, now))
        .then_with(|| one.uid.cmp(other.uid))
}

/// Younger goes first, but ages are compared by their order of magnitude only, so that among pods of about one age
/// chance decides and not the clock. Source: KEP-2185.
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => magnitude(a, now).cmp(&magnitude(b, now)),
        // No time is the youngest of all.
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

fn magnitude(since: Timestamp, now: Timestamp) -> u32 {
    let age_s = now.duration_since(since).as_secs();
    u64::try_from(age_s).ok().and_then(u64::checked_ilog2).map_or(0, |log| log + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let now: Timestamp = "2024-01-01T12:00:00Z".parse().unwrap();
        let ready = |since: &str| serde_json::json!([{ "type": "Ready", "status": "True", "lastTransitionTime": since }]);
        let old = ready("2024-01-01T00:00:00Z");
        let pods = [
            serde_json::json!({ "metadata": { "name": "unassigned" }, "status": { "phase": "Pending" } }),
            serde_json::json!({ "metadata": { "name": "pending" }, "spec": { "nodeName": "n" }, "status": { "phase": "Pending" } }),
            serde_json::json!({ "metadata": { "name": "unready" }, "spec": { "nodeName": "n" }, "status": { "phase": "Running" } }),
            serde_json::json!({ "metadata": { "name": "cheap", "annotations": { "controller.kubernetes.io/pod-deletion-cost": "-5" } },
                "spec": { "nodeName": "n" }, "status": { "phase": "Running", "conditions": old } }),
            serde_json::json!({ "metadata": { "name": "young" }, "spec": { "nodeName": "n" },
                "status": { "phase": "Running", "conditions": ready("2024-01-01T11:59:00Z") } }),
            serde_json::json!({ "metadata": { "name": "restarted" }, "spec": { "nodeName": "n" },
                "status": { "phase": "Running", "conditions": old, "containerStatuses": [{ "restartCount": 3 }] } }),
            serde_json::json!({ "metadata": { "name": "steady" }, "spec": { "nodeName": "n" }, "status": { "phase": "Running", "conditions": old } }),
        ];
        let mut pods: Vec<(Pod, Standing)> = pods
            .into_iter()
            .map(|json| {
                let pod = pod(json);
                let standing = Standing::from(&pod);
                (pod, standing)
            })
            .collect();
        pods.reverse();
        fn candidate(standing: &Standing, siblings: usize) -> Candidate<'_> {
            Candidate { standing, uid: "", siblings }
        }
        pods.sort_by(|(_, a), (_, b)| deletion_order(candidate(a, 0), candidate(b, 0), now));
        let names: Vec<_> = pods.iter().map(|(pod, _)| pod.metadata.name.as_str()).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "cheap", "young", "restarted", "steady"]);
        let crowded = deletion_order(candidate(&pods[6].1, 2), candidate(&pods[4].1, 0), now);
        assert_eq!(crowded, Ordering::Less);
    }

    #[test]
    fn containers_beside_the_others_decide_where_these_do_not() {
        let restarted = |main: i64, side: i64, init: i64| {
            let count = |name: &str, count: i64| serde_json::json!({ "name": name, "restartCount": count });
            Standing::from(&pod(serde_json::json!({
                "spec": { "initContainers": [{ "name": "side", "restartPolicy": "Always" }, { "name": "init" }] },
                "status": { "phase": "Running", "containerStatuses": [count("main", main)],
                    "initContainerStatuses": [count("side", side), count("init", init)] },
            })))
        };
        fn candidate(standing: &Standing) -> Candidate<'_> {
            Candidate { standing, uid: "", siblings: 0 }
        }
        let order =
            |a: Standing, b: Standing| deletion_order(candidate(&a), candidate(&b), Timestamp::UNIX_EPOCH);
        assert_eq!(order(restarted(1, 3, 0), restarted(1, 2, 9)), Ordering::Less);
        assert_eq!(order(restarted(1, 3, 0), restarted(2, 0, 0)), Ordering::Greater);
        assert_eq!(order(restarted(1, 3, 7), restarted(1, 3, 0)), Ordering::Equal);
    }

    #[test]
    fn availability_waits_for_min_ready() {
        let since: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let ready = pod(serde_json::json!({ "status": { "conditions":
            [{ "type": "Ready", "status": "True", "lastTransitionTime": since.to_string() }] } }));
        let ten = Duration::from_secs(10);
        assert!(!ready.is_available(ten, since + Duration::from_secs(9)));
        assert!(ready.is_available(ten, since + ten) && ready.is_available(Duration::ZERO, since));
        assert!(!Pod::default().is_available(Duration::ZERO, since));
        let standing = Standing::from(&ready);
        assert!(!standing.is_available(ten, since + Duration::from_secs(9)));
        assert!(standing.is_available(ten, since + ten) && standing.is_available(Duration::ZERO, since));
    }
}
