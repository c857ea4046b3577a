//! Tables of containers and what the pod's status says of them.

use std::collections::{BTreeMap, HashMap};

use engine_api::ContainerState;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde_json::json;

use super::plan::{ProbeState, Waiting};
use super::status::{StatusInput, pod_status};
use super::tests::{NODE_MEMORY, at, exited, pod, record, running};
use super::{ContainerRecord, PodView};
use crate::resize::{Progress, Told};

/// A pod with what is known of it; every probe succeeds unless said otherwise.
struct Case {
    pod: PodView,
    last: PodStatus,
    containers: Vec<ContainerRecord>,
    waiting: BTreeMap<String, Waiting>,
    unready: Vec<&'static str>,
    messages: HashMap<String, String>,
    ended: bool,
    holds_claims: bool,
    failure: Option<(&'static str, &'static str)>,
    resize: Progress,
    now: i64,
}

fn case(spec: serde_json::Value) -> Case {
    Case {
        pod: pod(spec),
        last: PodStatus::default(),
        containers: Vec::new(),
        waiting: BTreeMap::new(),
        unready: Vec::new(),
        messages: HashMap::new(),
        ended: false,
        holds_claims: false,
        failure: None,
        resize: Progress::default(),
        now: 100,
    }
}

impl Case {
    fn with(mut self, name: &str, attempt: u32, state: ContainerState) -> Self {
        self.containers.push(record(&self.pod, name, attempt, state));
        self
    }

    fn waits(mut self, name: &str, reason: &str) -> Self {
        let waiting = Waiting { reason: reason.to_owned(), message: String::new() };
        self.waiting.insert(name.to_owned(), waiting);
        self
    }

    fn status(&self) -> PodStatus {
        let probes: HashMap<String, ProbeState> = self
            .containers
            .iter()
            .map(|record| {
                let ready = !self.unready.contains(&record.name.as_str());
                (record.id.clone(), ProbeState { started: true, ready, ..ProbeState::default() })
            })
            .collect();
        pod_status(&StatusInput {
            pod: &self.pod,
            last: &self.last,
            containers: &self.containers,
            waiting: &self.waiting,
            probes: &probes,
            messages: &self.messages,
            addresses: &[],
            host_addresses: &[],
            sandbox_ready: true,
            recursive_read_only: true,
            ended: self.ended,
            holds_claims: self.holds_claims,
            failure: self.failure,
            node_memory_bytes: NODE_MEMORY,
            resize: &self.resize,
            disrupted: None,
            now: at(self.now),
        })
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap_or_default()
    }
}

fn spec(policy: &str) -> serde_json::Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]})
}

fn condition(status: &PodStatus, kind: &str) -> (String, String) {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    found.map(|found| (found.status.clone(), found.reason.clone().unwrap_or_default())).unwrap_or_default()
}

#[test]
fn phases_follow_containers_and_policy() {
    for (policy, a, b, wanted) in [
        ("Always", running(0), running(0), "Running"),
        ("Always", running(0), exited(1, 0, 1), "Running"),
        ("Always", exited(0, 0, 1), exited(0, 0, 1), "Running"),
        ("OnFailure", exited(0, 0, 1), exited(1, 0, 1), "Running"),
        ("OnFailure", exited(0, 0, 1), exited(0, 0, 1), "Succeeded"),
        ("Never", exited(0, 0, 1), exited(0, 0, 1), "Succeeded"),
        ("Never", exited(0, 0, 1), exited(1, 0, 1), "Failed"),
        ("Never", running(0), exited(1, 0, 1), "Running"),
    ] {
        let case = case(spec(policy)).with("a", 0, a).with("b", 0, b);
        assert_eq!(case.phase(), wanted, "{policy} {:?}", case.containers);
    }
    let one_missing = case(spec("Always")).with("a", 0, running(0)).waits("b", "ContainerCreating");
    assert_eq!(one_missing.phase(), "Pending");
}

#[test]
fn phases_follow_the_containers_own_policies() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    for (code, wanted) in [(42, "Running"), (1, "Failed"), (0, "Succeeded")] {
        assert_eq!(case(spec.clone()).with("a", 0, exited(code, 0, 1)).phase(), wanted, "{code}");
    }
    let once = json!({"restartPolicy": "Always", "containers": [{"name": "a", "restartPolicy": "Never"}]});
    for (code, wanted) in [(1, "Failed"), (0, "Succeeded")] {
        assert_eq!(case(once.clone()).with("a", 0, exited(code, 0, 1)).phase(), wanted, "{code}");
    }
    let init = json!({"restartPolicy": "Never", "containers": [{"name": "a"}], "initContainers": [
        {"name": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    for (code, wanted) in [(42, "Pending"), (1, "Failed")] {
        let case = case(init.clone()).with("i", 0, exited(code, 0, 1)).waits("a", "PodInitializing");
        assert_eq!(case.phase(), wanted, "{code}");
    }
}

#[test]
fn a_pod_that_begins_anew_says_so_and_has_not_failed() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b"}]});
    let mut case =
        case(spec).with("i", 0, running(0)).with("a", 0, exited(42, 0, 5)).with("b", 0, running(0));
    let kind = "AllContainersRestarting";
    let status = case.status();
    assert_eq!((condition(&status, kind).0.as_str(), case.phase().as_str()), ("True", "Running"));
    for index in [0, 2] {
        case.containers[index].state = exited(137, 0, 6);
    }
    case.last = status;
    let status = case.status();
    assert_eq!((condition(&status, kind).0.as_str(), status.phase.as_deref()), ("False", Some("Running")));
    let ended = |status: &ContainerStatus| status.state.clone().unwrap().terminated.unwrap().reason;
    let reasons: Vec<_> = status.container_statuses.iter().flatten().map(ended).collect();
    assert_eq!(reasons, [Some("Error".to_owned()), Some("RestartingAllContainers".to_owned())]);
}

#[test]
fn who_is_still_to_begin_anew_ends_nothing() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b"}]});
    // The first has begun anew and ended before the other, which had ended by itself, has begun.
    let mut both = case(spec.clone()).with("a", 1, exited(0, 5, 6)).with("b", 0, exited(0, 0, 1));
    both.containers[0].epoch = 1;
    assert_eq!(both.phase(), "Running");
    let mut waits = case(spec).with("a", 1, exited(0, 5, 6)).with("b", 0, exited(0, 0, 1));
    waits.containers[0].epoch = 1;
    assert_eq!(waits.waits("b", "CrashLoopBackOff").phase(), "Running");
}

#[test]
fn a_crash_loop_is_running_and_shows_its_last_end() {
    let case = case(spec("Always"))
        .with("a", 0, running(0))
        .with("b", 2, exited(3, 0, 1))
        .waits("b", "CrashLoopBackOff");
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let b: &ContainerStatus = &status.container_statuses.as_ref().unwrap()[1];
    assert_eq!(b.restart_count, 2);
    let waiting = b.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(b.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!(condition(&status, "Ready"), ("False".to_owned(), "ContainersNotReady".to_owned()));
}

#[test]
fn readiness_needs_every_container_and_every_gate() {
    let mut case = case(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "g"}]}))
        .with("a", 0, running(0));
    let no_gate = condition(&case.status(), "Ready");
    assert_eq!(no_gate, ("False".to_owned(), "ReadinessGatesNotReady".to_owned()));
    assert_eq!(condition(&case.status(), "ContainersReady").0, "True");
    case.pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "g", "status": "True"}]})).unwrap();
    assert_eq!(condition(&case.status(), "Ready").0, "True");
    case.unready.push("a");
    assert_eq!(condition(&case.status(), "Ready"), ("False".to_owned(), "ContainersNotReady".to_owned()));
}

#[test]
fn transition_times_stay_until_the_condition_changes() {
    let mut case = case(json!({"containers": [{"name": "a"}]})).with("a", 0, running(0));
    let time = |status: &PodStatus| {
        let conditions = status.conditions.as_ref().unwrap();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        ready.last_transition_time.as_ref().unwrap().0
    };
    case.last = case.status();
    case.now = 200;
    assert_eq!(time(&case.status()), at(100));
    case.unready.push("a");
    assert_eq!(time(&case.status()), at(200));
}

#[test]
fn init_containers_hold_the_pod_back() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let waiting = case(spec.clone()).with("i", 0, running(0)).waits("a", "PodInitializing");
    let status = waiting.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        condition(&status, "Initialized"),
        ("False".to_owned(), "ContainersNotInitialized".to_owned())
    );
    let done = case(spec).with("i", 0, exited(0, 0, 1)).with("a", 0, running(1));
    let status = done.status();
    assert_eq!(condition(&status, "Initialized").0, "True");
    assert!(status.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn containers_that_were_lost_say_so_at_the_end() {
    let mut case = case(json!({"containers": [{"name": "a"}]}));
    case.ended = true;
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    let state = status.container_statuses.unwrap().remove(0).state.unwrap();
    let terminated = state.terminated.unwrap();
    assert_eq!((terminated.exit_code, terminated.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn a_pod_that_was_refused_has_no_containers() {
    let mut case = case(json!({"containers": [{"name": "a"}]}));
    case.last.phase = Some("Failed".to_owned());
    for ended in [false, true] {
        case.ended = ended;
        assert_eq!(case.status().container_statuses, None);
    }
}

#[test]
fn containers_that_were_lost_count_as_restarted_once() {
    let mut case = case(json!({"containers": [{"name": "a"}]}));
    let known = json!({"name": "a", "containerID": "skiff://1", "restartCount": 2, "ready": true, "image": "",
        "imageID": "", "state": {"running": {}}});
    case.last.container_statuses = Some(vec![serde_json::from_value(known).unwrap()]);
    for _ in 0..2 {
        let status = case.status();
        let container = status.container_statuses.clone().unwrap().remove(0);
        assert_eq!((container.restart_count, container.container_id), (3, None));
        let ended = container.last_state.unwrap().terminated.unwrap();
        assert_eq!((ended.exit_code, ended.container_id.as_deref()), (137, Some("skiff://1")));
        assert!(container.state.unwrap().waiting.is_some());
        case.last = status;
    }
}

#[test]
fn the_messages_of_all_containers_share_what_a_pod_has() {
    let containers = |count: usize| {
        let list: Vec<_> = (0..count).map(|index| json!({"name": format!("c{index}")})).collect();
        json!({"restartPolicy": "Never", "containers": list})
    };
    for (count, text, wanted) in
        [(2, "x".repeat(4096), 4096), (6, "x".repeat(4096), 2048), (7, "é".repeat(2048), 1754)]
    {
        let mut case = case(containers(count)).with("c0", 0, exited(1, 0, 1));
        case.messages.insert("c0-0".to_owned(), text);
        let status = case.status().container_statuses.unwrap().remove(0);
        assert_eq!(status.state.unwrap().terminated.unwrap().message.unwrap().len(), wanted, "{count}");
    }
}

#[test]
fn an_end_is_final() {
    let mut case = case(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    case.last.phase = Some("Succeeded".to_owned());
    assert_eq!(case.phase(), "Succeeded");
}

#[test]
fn nobody_hears_of_an_end_before_the_last_container_has_ended() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let mut case = case(spec).with("s", 0, running(0)).with("a", 0, exited(0, 0, 1));
    assert_eq!(case.phase(), "Running", "its sidecar runs");
    case.failure = Some(("DeadlineExceeded", "too long"));
    let status = case.status();
    assert_eq!((status.phase.as_deref(), status.reason), (Some("Running"), None));
    case.containers[0].state = exited(137, 0, 2);
    case.holds_claims = true;
    assert_eq!(case.phase(), "Running", "devices are prepared for it");
    case.holds_claims = false;
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    case.failure = None;
    assert_eq!(case.phase(), "Succeeded");
}

#[test]
fn a_container_shows_what_it_was_granted_and_what_it_has() {
    let sized = |cpu: &str, memory: &str| {
        let amounts = json!({ "cpu": cpu, "memory": memory });
        json!({"containers": [{"name": "a", "resources": {"requests": amounts, "limits": amounts}}]})
    };
    let mut case = case(sized("1", "64Mi")).with("a", 0, running(0));
    case.pod = pod(sized("2", "128Mi"));
    let shown = |case: &Case| {
        let status = case.status().container_statuses.unwrap().remove(0);
        (json!(status.resources), json!(status.allocated_resources))
    };
    let had =
        json!({ "requests": { "cpu": "1", "memory": "128Mi" }, "limits": { "cpu": "1", "memory": "64Mi" } });
    let granted = json!({ "cpu": "2", "memory": "128Mi" });
    assert_eq!(shown(&case), (had, granted.clone()));
    case.containers[0].state = exited(1, 0, 1);
    let whole = json!({ "requests": granted, "limits": granted });
    assert_eq!(shown(&case), (whole, granted), "the next run has it");
}

#[test]
fn a_resize_is_told_of_as_long_as_it_is_not_done() {
    let mut case = case(json!({"containers": [{"name": "a"}]})).with("a", 0, running(0));
    let told = |reason: &str, generation: i64| {
        Some(Told { reason: reason.to_owned(), message: "m".to_owned(), generation })
    };
    let shown = |case: &Case| -> Vec<_> {
        let conditions = case.status().conditions.unwrap().into_iter();
        let of_resize = conditions.filter(|condition| condition.type_.starts_with("PodResize"));
        of_resize
            .map(|condition| {
                (condition.type_, condition.status, condition.reason, condition.observed_generation)
            })
            .collect()
    };
    assert_eq!(shown(&case), []);
    case.resize = Progress { pending: told("Deferred", 3), in_progress: told("", 2) };
    let text = str::to_owned;
    let pending = (text("PodResizePending"), text("True"), Some(text("Deferred")), Some(3));
    let in_progress = (text("PodResizeInProgress"), text("True"), None, Some(2));
    assert_eq!(shown(&case), [pending, in_progress]);
    case.last.phase = Some("Failed".to_owned());
    assert_eq!(shown(&case), []);
}

#[test]
fn who_a_container_runs_as_is_told() {
    let mut case = case(json!({"containers": [{"name": "a"}]})).with("a", 0, running(0));
    let told = |case: &Case| case.status().container_statuses.unwrap().remove(0).user;
    assert_eq!(told(&case), None);
    case.containers[0].identity =
        Some(engine_api::Identity { uid: 1000, gid: 3000, groups: vec![3000, 4000] });
    let wanted = json!({"linux": {"uid": 1000, "gid": 3000, "supplementalGroups": [3000, 4000]}});
    assert_eq!(serde_json::to_value(told(&case)).unwrap(), wanted);
}

#[test]
fn a_pod_as_a_whole_shows_what_it_was_granted() {
    let sized = |cpu: &str| json!({ "requests": { "cpu": cpu } });
    let mut case = case(json!({"containers": [{"name": "a"}], "resources": sized("1")}));
    let status = case.status();
    assert_eq!(
        (json!(status.resources), json!(status.allocated_resources)),
        (sized("1"), json!({ "cpu": "1" }))
    );
    case.last = status;
    case.pod = pod(json!({"containers": [{"name": "a"}], "resources": sized("2")}));
    case.resize.in_progress = Some(Told::default());
    let status = case.status();
    assert_eq!(
        (json!(status.resources), json!(status.allocated_resources)),
        (sized("1"), json!({ "cpu": "2" }))
    );
    case.resize.in_progress = None;
    assert_eq!(json!(case.status().resources), sized("2"));
}
