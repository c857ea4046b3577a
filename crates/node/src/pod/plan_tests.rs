//! Tables of situations and what is done in them.

use std::collections::HashMap;
use std::time::Duration;

use super::plan::{
    Action, ImageFailure, ImageState, KillReason, Plan, ProbeState, Snapshot, StartFailure, Step,
    crash_loop_policy, plan,
};
use super::tests::{at, exited, pod, record, running, sandbox};
use super::{ContainerRecord, PodView, SandboxRecord};

/// A situation: everything fine unless said otherwise.
struct Case {
    pod: PodView,
    sandboxes: Vec<SandboxRecord>,
    containers: Vec<ContainerRecord>,
    sandbox: Step,
    volumes: Step,
    probes: HashMap<String, ProbeState>,
    images: HashMap<String, ImageState>,
    failures: HashMap<String, StartFailure>,
    starting: Option<String>,
    killing: Vec<String>,
    anew: Vec<String>,
    crash_loop_max: u64,
    failed: bool,
    now: i64,
}

fn case(spec: serde_json::Value) -> Case {
    let pod = pod(spec);
    let images = pod
        .containers()
        .map(|(_, container)| (container.name.clone(), ImageState::Present("sha256:1".to_owned())))
        .collect();
    Case {
        pod,
        sandboxes: vec![sandbox("s0", 0, true)],
        containers: Vec::new(),
        sandbox: Step::Done,
        volumes: Step::Done,
        probes: HashMap::new(),
        images,
        failures: HashMap::new(),
        starting: None,
        killing: Vec::new(),
        anew: Vec::new(),
        crash_loop_max: 300,
        failed: false,
        now: 0,
    }
}

impl Case {
    fn with(mut self, name: &str, attempt: u32, state: engine_api::ContainerState) -> Self {
        let record = record(&self.pod, name, attempt, state);
        let probes = ProbeState { started: true, ready: true, ..ProbeState::default() };
        self.probes.insert(record.id.clone(), probes);
        self.containers.push(record);
        self
    }

    fn at(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    fn plan(&self) -> Plan {
        plan(&Snapshot {
            pod: &self.pod,
            sandboxes: &self.sandboxes,
            containers: &self.containers,
            sandbox: self.sandbox,
            volumes: self.volumes,
            probes: &self.probes,
            images: &self.images,
            start_failures: &self.failures,
            starting: self.starting.as_deref(),
            killing: &self.killing,
            anew: &self.anew,
            crash_loop: crash_loop_policy(Duration::from_secs(self.crash_loop_max)),
            failed: self.failed,
            now: at(self.now),
        })
    }
}

fn one() -> serde_json::Value {
    serde_json::json!({"containers": [{"name": "main", "image": "x"}]})
}

fn start(name: &str, attempt: u32, failures: u32) -> Action {
    Action::Start { container: name.to_owned(), attempt, failures }
}

#[test]
fn a_new_pod_gets_volumes_and_sandbox_at_once() {
    let mut case = case(one());
    case.sandboxes.clear();
    (case.sandbox, case.volumes) = (Step::Todo, Step::Todo);
    let plan = case.plan();
    assert_eq!(plan.actions, [Action::MountVolumes, Action::CreateSandbox { attempt: 0 }]);
    assert_eq!(plan.waiting["main"].reason, "ContainerCreating");
    (case.sandbox, case.volumes) = (Step::Busy, Step::Busy);
    assert_eq!(case.plan().actions, []);
}

#[test]
fn nothing_of_a_pod_that_the_node_has_failed_is_begun() {
    let mut case = case(one());
    case.sandboxes.clear();
    (case.sandbox, case.volumes, case.failed) = (Step::Todo, Step::Todo, true);
    let plan = case.plan();
    assert!(plan.actions.is_empty() && plan.finished, "{plan:?}");
}

#[test]
fn failed_steps_are_tried_again_in_their_time() {
    let mut case = case(one());
    case.sandboxes.clear();
    (case.sandbox, case.volumes) = (Step::RetryAt(at(5)), Step::RetryAt(at(9)));
    let plan = case.plan();
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(5))));
    let case = case.at(6);
    assert_eq!(case.plan().actions, [Action::CreateSandbox { attempt: 0 }]);
}

#[test]
fn containers_wait_for_volumes_and_images() {
    let mut case = case(one());
    case.volumes = Step::Busy;
    assert_eq!(case.plan().actions, []);
    case.volumes = Step::Done;
    assert_eq!(case.plan().actions, [start("main", 0, 0)]);
    case.images.clear();
    assert_eq!(case.plan().actions, [Action::EnsureImage { container: "main".to_owned() }]);
    case.images.insert("main".to_owned(), ImageState::Busy);
    assert_eq!(case.plan().actions, []);
}

#[test]
fn a_running_container_is_left_alone() {
    let plan = case(one()).with("main", 0, running(0)).at(5000).plan();
    assert_eq!(plan, Plan::default());
}

#[test]
fn one_start_at_a_time_in_order() {
    let spec = serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let mut case = case(spec);
    assert_eq!(case.plan().actions, [start("a", 0, 0)]);
    case.starting = Some("a".to_owned());
    assert_eq!(case.plan().actions, []);
    // A container whose image is missing holds nobody up.
    case.starting = None;
    case.images.insert("a".to_owned(), ImageState::Busy);
    assert_eq!(case.plan().actions, [start("b", 0, 0)]);
}

#[test]
fn back_off_doubles_and_resets() {
    // (restarts in a row, ran for, seconds after the end) → (restart now?, wait message)
    let table = [
        (0, 1, 0, true, ""),
        (1, 1, 9, false, "back-off 10s restarting failed container=main pod=web_default(u1)"),
        (1, 1, 10, true, ""),
        (2, 1, 19, false, "back-off 20s restarting failed container=main pod=web_default(u1)"),
        (4, 1, 79, false, "back-off 1m20s restarting failed container=main pod=web_default(u1)"),
        (9, 1, 299, false, "back-off 5m0s restarting failed container=main pod=web_default(u1)"),
        (9, 1, 300, true, ""),
        (9, 600, 0, true, ""),
    ];
    for (failures, ran, after, restarts, message) in table {
        let mut case = case(one()).with("main", 3, exited(1, 0, ran)).at(ran + after);
        case.containers[0].failures = failures;
        let plan = case.plan();
        if restarts {
            let next = if ran >= 600 { 1 } else { failures + 1 };
            assert_eq!(plan.actions, [start("main", 4, next)], "{failures} {ran} {after}");
        } else {
            assert_eq!(plan.actions, [], "{failures} {ran} {after}");
            assert_eq!(plan.waiting["main"].reason, "CrashLoopBackOff");
            assert_eq!(plan.waiting["main"].message, message);
            assert!(plan.wake_at.is_some_and(|wake| wake > at(case.now)));
        }
    }
}

#[test]
fn a_clock_that_was_put_back_keeps_no_container_waiting() {
    // (seconds by which it was put back, starts now)
    for (back, restarts) in [(0, false), (30, false), (3600, true)] {
        let mut case = case(one()).with("main", 3, exited(1, 9000, 9001)).at(9002 - back);
        case.containers[0].failures = 2;
        let actions = case.plan().actions;
        assert_eq!(actions.contains(&start("main", 4, 3)), restarts, "{back}: {actions:?}");
    }
}

#[test]
fn a_node_may_wait_less_for_restarts() {
    // (longest wait, restarts in a row) → seconds
    for (max, failures, wanted) in
        [(300, 1, 10), (300, 9, 300), (25, 1, 10), (25, 2, 20), (25, 3, 25), (4, 1, 4)]
    {
        let mut case = case(one()).with("main", 3, exited(1, 0, 1)).at(1);
        (case.containers[0].failures, case.crash_loop_max) = (failures, max);
        assert_eq!(case.plan().wake_at, Some(at(1 + wanted)), "{max} {failures}");
    }
}

#[test]
fn restart_policies_decide_what_an_end_means() {
    for (policy, code, restarts) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let spec = serde_json::json!({"restartPolicy": policy, "containers": [{"name": "main"}]});
        let plan = case(spec).with("main", 0, exited(code, 0, 1)).at(1).plan();
        let wanted = if restarts { start("main", 1, 1) } else { Action::Finish };
        assert_eq!((plan.actions, plan.finished), (vec![wanted], !restarts), "{policy} {code}");
    }
}

#[test]
fn containers_may_have_policies_and_rules_of_their_own() {
    let rules = serde_json::json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let never = serde_json::json!({"restartPolicy": "Never", "containers": [
        {"name": "main", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    for (code, wanted) in [(42, start("main", 1, 1)), (1, Action::Finish), (0, Action::Finish)] {
        let plan = case(never.clone()).with("main", 0, exited(code, 0, 1)).at(1).plan();
        assert_eq!((plan.finished, plan.actions), (wanted == Action::Finish, vec![wanted]), "{code}");
    }
    let init = serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "main"}], "initContainers": [
        {"name": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    for (code, wanted) in [(42, start("i", 1, 1)), (1, Action::Finish), (0, start("main", 0, 0))] {
        let plan = case(init.clone()).with("i", 0, exited(code, 0, 1)).at(1).plan();
        assert_eq!(plan.actions, [wanted], "{code}");
    }
    // One whose pod starts its containers again may end for good.
    let always =
        serde_json::json!({"containers": [{"name": "once", "restartPolicy": "Never"}, {"name": "main"}]});
    let one_ended = case(always.clone()).with("once", 0, exited(0, 0, 1)).with("main", 0, running(0)).at(99);
    assert_eq!((one_ended.plan().actions, one_ended.plan().finished), (vec![], false));
}

#[test]
fn a_rule_may_ask_the_whole_pod_to_begin_anew() {
    let rules = serde_json::json!([{"action": "RestartAllContainers",
        "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = serde_json::json!({"restartPolicy": "Never", "initContainers": [{"name": "i"},
            {"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "main", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "other"}]});
    let again = |case: Case, name: &str, state: engine_api::ContainerState| {
        let mut case = case.with(name, 1, state);
        case.containers.last_mut().unwrap().epoch = 1;
        case
    };
    let mut case = case(spec)
        .with("i", 0, exited(0, 0, 1))
        .with("side", 0, running(1))
        .with("main", 0, exited(42, 2, 5))
        .with("other", 0, running(2))
        .at(5);
    let kill = |name: &str| Action::Kill {
        id: format!("{name}-0"),
        container: name.to_owned(),
        reason: KillReason::PodBeginsAnew,
    };
    assert_eq!(case.plan().actions, [kill("side"), kill("other")], "first all that run end");
    assert_eq!(KillReason::PodBeginsAnew.grace_seconds(&case.pod, "other"), 0);
    case.killing = vec!["side-0".to_owned(), "other-0".to_owned()];
    assert_eq!((case.plan().actions, case.plan().finished), (vec![], false));
    case.killing.clear();
    case.containers[1].state = exited(137, 1, 6);
    case.containers[3].state = exited(137, 2, 6);
    let mut case = case.at(7);
    assert_eq!(case.plan().actions, [start("i", 1, 1)], "then all begin, in their order");
    case = again(case, "i", exited(0, 7, 8)).at(8);
    assert_eq!(case.plan().actions, [start("side", 1, 1)]);
    case = again(case, "side", running(9)).at(9);
    assert_eq!(case.plan().actions, [start("main", 1, 1)]);
    case = again(case, "main", running(10)).at(10);
    assert_eq!(case.plan().actions, [start("other", 1, 1)]);
    case = again(case, "other", running(11)).at(11);
    assert_eq!(case.plan(), Plan::default());
    // What ends now ends for good, as far as no rule speaks of it.
    case.containers[7].state = exited(1, 11, 20);
    let case = case.at(20);
    assert_eq!((case.plan().actions, case.plan().finished), (vec![], false));
}

#[test]
fn a_finished_pod_stays_finished() {
    let mut case = case(serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "main"}]}))
        .with("main", 0, exited(0, 0, 1));
    case.sandboxes[0].ready = false;
    let plan = case.plan();
    assert_eq!((plan.actions.len(), plan.finished), (0, true));
    // Also when the runtime has forgotten it and only the API remembers.
    case.sandboxes.clear();
    case.containers.clear();
    case.pod.status.phase = Some("Succeeded".to_owned());
    let plan = case.plan();
    assert_eq!((plan.actions.len(), plan.finished), (0, true));
}

fn with_init(policy: &str) -> serde_json::Value {
    serde_json::json!({"restartPolicy": policy,
        "initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "main"}]})
}

#[test]
fn init_containers_run_one_after_the_other() {
    let first = case(with_init("Always"));
    assert_eq!(first.plan().actions, [start("i1", 0, 0)]);
    assert_eq!(first.plan().waiting["main"].reason, "PodInitializing");
    let running_one = case(with_init("Always")).with("i1", 0, running(0));
    assert_eq!(running_one.plan().actions, []);
    let second = case(with_init("Always")).with("i1", 0, exited(0, 0, 1));
    assert_eq!(second.plan().actions, [start("i2", 0, 0)]);
    let done = case(with_init("Always")).with("i1", 0, exited(0, 0, 1)).with("i2", 0, exited(0, 1, 2));
    assert_eq!(done.plan().actions, [start("main", 0, 0)]);
}

#[test]
fn a_failed_init_container_is_repeated_or_ends_the_pod() {
    let again = case(with_init("OnFailure")).with("i1", 0, exited(1, 0, 1)).at(1);
    assert_eq!(again.plan().actions, [start("i1", 1, 1)]);
    let over = case(with_init("Never")).with("i1", 0, exited(1, 0, 1)).at(1);
    assert_eq!(over.plan().actions, [Action::Finish]);
}

#[test]
fn init_is_over_once_an_application_container_ran() {
    // Records of init containers may be gone: they are not repeated in the same sandbox.
    let case = case(with_init("Always")).with("main", 0, exited(1, 5, 6)).at(6);
    assert_eq!(case.plan().actions, [start("main", 1, 1)]);
}

#[test]
fn a_new_sandbox_repeats_everything() {
    let mut case = case(with_init("Always"))
        .with("i1", 0, exited(0, 0, 1))
        .with("i2", 0, exited(0, 1, 2))
        .with("main", 0, exited(137, 2, 9));
    case.sandboxes[0].ready = false;
    assert_eq!(case.plan().actions, [Action::CreateSandbox { attempt: 1 }]);
    case.sandboxes.push(sandbox("s1", 1, true));
    assert_eq!(case.plan().actions, [start("i1", 1, 1)]);
}

#[test]
fn sidecars_start_in_order_and_keep_running() {
    let spec = serde_json::json!({"restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "main"}]});
    let mut waiting = case(spec.clone()).with("side", 0, running(0));
    waiting.probes.clear();
    assert_eq!(waiting.plan().actions, [], "not started yet");
    let next = case(spec.clone()).with("side", 0, running(0));
    assert_eq!(next.plan().actions, [start("i", 0, 0)]);
    let died = case(spec.clone())
        .with("side", 0, exited(1, 0, 1))
        .with("i", 0, exited(0, 0, 1))
        .with("main", 0, running(1))
        .at(2);
    assert_eq!(died.plan().actions, [start("side", 1, 1)]);
    let over =
        case(spec).with("side", 0, running(0)).with("i", 0, exited(0, 0, 1)).with("main", 0, exited(0, 1, 2));
    assert_eq!(over.plan().actions, [Action::Finish]);
}

#[test]
fn ephemeral_containers_run_once() {
    let spec = serde_json::json!({"initContainers": [{"name": "i"}], "containers": [{"name": "main"}],
        "ephemeralContainers": [{"name": "debug", "image": "x"}]});
    let added = case(spec.clone()).with("i", 0, running(0));
    assert_eq!(added.plan().actions, [start("debug", 0, 0)], "they need not wait for init containers");
    let ended = case(spec.clone()).with("i", 0, running(0)).with("debug", 0, exited(1, 0, 1)).at(99);
    assert_eq!(ended.plan().actions, []);
    assert!(!ended.plan().waiting.contains_key("debug"));
    let mut failed = case(spec.clone()).with("i", 0, running(0));
    failed.images.remove("debug");
    assert_eq!(failed.plan().actions, [Action::EnsureImage { container: "debug".to_owned() }]);
    // Nor do they run again where only the API remembers.
    let mut forgotten = case(spec).with("i", 0, running(0));
    forgotten.pod.status = serde_json::from_value(serde_json::json!({"ephemeralContainerStatuses": [{
        "name": "debug", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
        "containerID": "skiff://old", "state": {"running": {}}}]}))
    .unwrap();
    assert_eq!(forgotten.plan().actions, []);
}

#[test]
fn the_end_of_a_pod_does_not_wait_for_ephemeral_containers() {
    let spec = serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "main"}],
        "ephemeralContainers": [{"name": "debug", "image": "x"}]});
    let over = case(spec).with("main", 0, exited(0, 0, 1)).with("debug", 0, running(0));
    assert_eq!(over.plan().actions, [Action::Finish]);
}

#[test]
fn probes_and_changed_definitions_kill() {
    let mut live = case(one()).with("main", 0, running(0));
    live.probes.get_mut("main-0").unwrap().liveness_failed = true;
    let kill = |reason| vec![Action::Kill { id: "main-0".to_owned(), container: "main".to_owned(), reason }];
    assert_eq!(live.plan().actions, kill(KillReason::LivenessProbe));
    live.killing.push("main-0".to_owned());
    assert_eq!(live.plan().actions, []);
    let mut changed = case(one()).with("main", 0, running(0));
    changed.pod.spec.containers[0].image = Some("y".to_owned());
    assert_eq!(changed.plan().actions, kill(KillReason::DefinitionChanged));
    let mut startup = case(one()).with("main", 0, running(0));
    startup.probes.get_mut("main-0").unwrap().startup_failed = true;
    assert_eq!(startup.plan().actions, kill(KillReason::StartupProbe));
}

#[test]
fn who_was_ended_for_a_resize_runs_again_whatever_its_policy() {
    let mut spec = one();
    spec["restartPolicy"] = "OnFailure".into();
    let mut ended = case(spec).with("main", 0, exited(0, 0, 5)).at(1000);
    assert_eq!(ended.plan().actions, [Action::Finish]);
    ended.anew.push("main-0".to_owned());
    assert_eq!(ended.plan().actions, [start("main", 1, 1)]);
}

#[test]
fn a_probe_may_have_a_grace_of_its_own() {
    let spec = |probe: &str, own: Option<i64>| {
        serde_json::json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "main",
            probe: {"exec": {"command": ["false"]}, "terminationGracePeriodSeconds": own}}]})
    };
    for (probe, own, reason, wanted) in [
        ("livenessProbe", Some(7), KillReason::LivenessProbe, 7),
        ("livenessProbe", None, KillReason::LivenessProbe, 30),
        ("livenessProbe", Some(7), KillReason::StartupProbe, 30),
        ("startupProbe", Some(90), KillReason::StartupProbe, 90),
        ("startupProbe", Some(90), KillReason::DefinitionChanged, 30),
    ] {
        assert_eq!(
            reason.grace_seconds(&pod(spec(probe, own)), "main"),
            wanted,
            "{probe} {own:?} {reason:?}"
        );
    }
}

#[test]
fn pull_failures_are_shown_then_waited_for() {
    let mut case = case(one());
    let failure = ImageFailure {
        reason: "ErrImagePull",
        message: "no such image".to_owned(),
        failed_at: at(0),
        retry_at: Some(at(10)),
    };
    case.images.insert("main".to_owned(), ImageState::Failed(failure.clone()));
    assert_eq!(case.plan().waiting["main"].reason, "ErrImagePull");
    assert_eq!(case.plan().wake_at, Some(at(2)));
    let case = case.at(3);
    let plan = case.plan();
    assert_eq!(plan.waiting["main"].reason, "ImagePullBackOff");
    assert_eq!(plan.waiting["main"].message, "Back-off pulling image \"x\": ErrImagePull: no such image");
    assert_eq!(plan.wake_at, Some(at(10)));
    let mut case = case.at(10);
    assert_eq!(case.plan().actions, [Action::EnsureImage { container: "main".to_owned() }]);
    let never = ImageFailure { reason: "ErrImageNeverPull", retry_at: None, ..failure };
    case.images.insert("main".to_owned(), ImageState::Failed(never));
    let plan = case.plan();
    assert_eq!((plan.actions.len(), plan.wake_at), (0, None));
    assert_eq!(plan.waiting["main"].reason, "ErrImageNeverPull");
}

#[test]
fn configuration_errors_wait_and_retry() {
    let mut case = case(one());
    let failure = StartFailure {
        reason: "CreateContainerConfigError",
        message: "secret \"s\" not found".to_owned(),
        retry_at: at(10),
    };
    case.failures.insert("main".to_owned(), failure);
    let plan = case.plan();
    assert_eq!(plan.waiting["main"].reason, "CreateContainerConfigError");
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(10))));
    assert_eq!(case.at(10).plan().actions, [start("main", 0, 0)]);
}

#[test]
fn an_interrupted_start_is_cleared_away() {
    let mut case = case(one()).with("main", 2, engine_api::ContainerState::Created);
    assert_eq!(case.plan().actions, [Action::RemoveContainer { id: "main-2".to_owned() }]);
    case.starting = Some("main".to_owned());
    assert_eq!(case.plan().actions, []);
}

#[test]
fn old_records_are_removed_but_for_the_last_two() {
    let case = case(one()).with("main", 0, exited(1, 0, 1)).with("main", 1, exited(1, 1, 2)).with(
        "main",
        2,
        running(3),
    );
    assert_eq!(case.plan().actions, [Action::RemoveContainer { id: "main-0".to_owned() }]);
}

#[test]
fn an_old_sandbox_goes_when_its_exits_are_not_needed() {
    let mut case = case(one()).with("main", 0, exited(1, 0, 1)).with("main", 1, exited(1, 1, 2)).with(
        "main",
        2,
        running(3),
    );
    case.sandboxes.push(sandbox("s1", 1, true));
    case.containers[2].sandbox_id = "s1".to_owned();
    assert_eq!(case.plan().actions, [], "the exit of the last run is still shown");
    case.containers[1].sandbox_id = "s1".to_owned();
    assert_eq!(case.plan().actions, [Action::RemoveSandbox { id: "s0".to_owned() }]);
}

#[test]
fn the_apis_restart_count_goes_on_when_the_runtime_forgot() {
    let mut case = case(one());
    case.pod.status = serde_json::from_value(serde_json::json!({"containerStatuses": [{
        "name": "main", "image": "x", "imageID": "", "ready": true, "restartCount": 4,
        "containerID": "skiff://old"}]}))
    .unwrap();
    assert_eq!(case.plan().actions, [start("main", 5, 0)]);
}

#[test]
fn what_ran_and_is_not_to_run_again_does_not_when_the_runtime_forgot() {
    for (policy, state, over) in [
        ("Never", serde_json::json!({"running": {}}), true),
        ("Never", serde_json::json!({"terminated": {"exitCode": 1}}), true),
        ("Never", serde_json::json!({"waiting": {"reason": "ContainerCreating"}}), false),
        ("OnFailure", serde_json::json!({"running": {}}), false),
        ("OnFailure", serde_json::json!({"terminated": {"exitCode": 0}}), true),
        ("Always", serde_json::json!({"terminated": {"exitCode": 0}}), false),
    ] {
        let mut case = case(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "main"}]}));
        case.pod.status = serde_json::from_value(serde_json::json!({"containerStatuses": [{
            "name": "main", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": "skiff://old", "state": state}]}))
        .unwrap();
        assert_eq!(case.plan().finished, over, "{policy} {state}");
    }
}

#[test]
fn the_deadline_ends_the_pod() {
    let mut case = case(serde_json::json!({"activeDeadlineSeconds": 5, "containers": [{"name": "main"}]}))
        .with("main", 0, running(0));
    case.pod.status = serde_json::from_value(serde_json::json!({"startTime": at(0).to_string()})).unwrap();
    assert_eq!(case.plan().wake_at, Some(at(5)));
    let case = case.at(5);
    let plan = case.plan();
    assert_eq!(plan.actions, [Action::Finish]);
    assert!(plan.deadline_exceeded);
}
