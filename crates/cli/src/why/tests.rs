//! Tables: pods as upstream writes them, and what is said about them.

use serde_json::{Value, json};

use super::*;

fn case(pod: Value) -> Case {
    let node = json!({
        "metadata": {"name": "n1"},
        "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    Case {
        pod: serde_json::from_value(pod).unwrap(),
        nodes: vec![serde_json::from_value(node).unwrap()],
        now: "2026-01-01T00:00:10Z".parse().unwrap(),
        ..Case::default()
    }
}

/// A pod on `n1` with one container `app` in that state.
fn pod(state: Value) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u"},
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "me/app:v1"}]},
        "status": {
            "phase": "Pending",
            "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [{
                "name": "app", "image": "me/app:v1", "imageID": "", "ready": false, "restartCount": 3, "state": state,
            }],
        },
    })
}

fn event(reason: &str, path: &str, message: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": {}, "reason": reason, "message": message,
        "involvedObject": {"fieldPath": format!("spec.containers{{{path}}}")},
    }))
    .unwrap()
}

/// The only finding.
fn only(case: &Case) -> Finding {
    let mut findings = diagnose::diagnose(case);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.remove(0)
}

#[test]
fn waiting_containers_say_what_they_wait_for() {
    for (reason, cause, remedy) in [
        ("ImagePullBackOff", "cannot be pulled", "skiff build -t me/app:v1"),
        ("ErrImagePull", "cannot be pulled", "imagePullSecrets"),
        ("ErrImageNeverPull", "imagePullPolicy Never", "skiff load"),
        ("InvalidImageName", "is not an image's name", "lower case"),
        ("CreateContainerConfigError", "configuration cannot be made", "the message names"),
        ("RunContainerError", "cannot be started", "command, args"),
        ("PostStartHookError", "postStart hook fails", "skiff exec"),
    ] {
        let finding = only(&case(pod(json!({"waiting": {"reason": reason, "message": "because"}}))));
        assert_eq!(finding.container, "app");
        assert!(finding.cause.contains(cause), "{reason}: {}", finding.cause);
        assert!(finding.remedy.contains(remedy), "{reason}: {}", finding.remedy);
        assert_eq!(finding.evidence, ["because"], "{reason}");
    }
}

#[test]
fn a_crash_loop_tells_the_last_exit_and_its_log() {
    for (run, cause, remedy) in [
        (json!({"exitCode": 1, "reason": "Error"}), "exit code 1", "last lines"),
        (json!({"exitCode": 137, "reason": "OOMKilled"}), "exit code 137 (OOMKilled)", "limits.memory"),
        (json!({"exitCode": 127, "reason": "Error"}), "command not found", "name a program"),
        (json!({"exitCode": 128, "reason": "StartError"}), "exit code 128 (StartError)", "name a program"),
        (json!({"exitCode": 0, "reason": "Completed"}), "exit code 0", "a Deployment wants one that stays"),
    ] {
        let mut web = pod(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}));
        web["status"]["containerStatuses"][0]["lastState"] = json!({"terminated": run});
        let mut case = case(web);
        assert_eq!(diagnose::ended(&case.pod, "app"), Some(false));
        case.last_lines.insert("app".into(), vec!["no database".into()]);
        let finding = only(&case);
        assert!(finding.cause.contains(cause), "{}", finding.cause);
        assert!(finding.cause.contains("3 restarts"), "{}", finding.cause);
        assert!(finding.remedy.contains(remedy), "{}", finding.remedy);
        assert_eq!(finding.evidence, ["back-off 10s", "no database"]);
    }
}

#[test]
fn what_the_runtime_says_of_an_end_is_shown() {
    let mut web = pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}));
    web["status"]["containerStatuses"][0]["lastState"] =
        json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: no such file\n"}});
    assert_eq!(only(&case(web)).evidence, ["exec: no such file"]);
}

#[test]
fn a_liveness_probe_that_kills_is_named() {
    let mut web = pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}));
    web["status"]["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 137}});
    let mut case = case(web);
    case.events =
        vec![event("Unhealthy", "app", "Liveness probe failed: HTTP probe failed with statuscode: 500")];
    let finding = only(&case);
    assert!(finding.remedy.contains("liveness probe"), "{}", finding.remedy);
    assert!(finding.evidence[0].contains("statuscode: 500"));
}

#[test]
fn running_but_unready_names_the_probe() {
    for (probe, field, which) in
        [("readinessProbe", "ready", "Readiness"), ("startupProbe", "started", "Startup")]
    {
        let mut web = pod(json!({"running": {}}));
        web["status"]["containerStatuses"][0][field] = json!(false);
        web["spec"]["containers"][0][probe] = json!({"httpGet": {"port": 80, "path": "/"}});
        let mut case = case(web);
        assert!(only(&case).cause.contains("has not succeeded yet"));
        case.events = vec![
            event("Unhealthy", "other", &format!("{which} probe failed: of another")),
            event("Unhealthy", "app", &format!("{which} probe failed: connection refused")),
        ];
        let finding = only(&case);
        assert!(finding.cause.contains("probe fails"), "{}", finding.cause);
        assert!(finding.evidence[0].contains("connection refused"));
    }
}

#[test]
fn an_init_container_that_runs_holds_the_others() {
    let mut web = pod(json!({"waiting": {"reason": "PodInitializing"}}));
    web["spec"]["initContainers"] = json!([{"name": "migrate", "image": "me/app:v1"}]);
    web["status"]["initContainerStatuses"] = json!([{
        "name": "migrate", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"running": {}},
    }]);
    let finding = only(&case(web));
    assert_eq!(finding.container, "migrate");
    assert!(finding.remedy.contains("skiff logs web/migrate"), "{}", finding.remedy);
}

#[test]
fn an_unscheduled_pod_gets_the_figures() {
    let mut web = pod(json!({}));
    web["spec"] = json!({"containers": [{"name": "app", "resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}}}]});
    web["status"] = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient cpu.",
    }]});
    let mut case = case(web);
    let other = |phase: &str| {
        let pod = json!({
            "metadata": {}, "status": {"phase": phase},
            "spec": {"nodeName": "n1", "containers": [{"name": "x", "resources": {"requests": {"cpu": "600m"}}}]},
        });
        serde_json::from_value(pod).unwrap()
    };
    case.placed = vec![other("Running"), other("Succeeded")];
    let finding = only(&case);
    assert_eq!(
        finding.evidence,
        ["0/1 nodes are available: 1 Insufficient cpu.", "node n1: 1500m cpu wanted, 1400m of 2 free",]
    );
    assert!(finding.remedy.contains("resources.requests"), "{}", finding.remedy);
}

#[test]
fn what_the_scheduler_says_leads_to_the_remedy() {
    for (message, remedy) in [
        ("1 node(s) had untolerated taint {a: b}", "toleration"),
        ("1 node(s) didn't match Pod's node affinity/selector", "label node"),
        ("1 node(s) were unschedulable", "uncordon"),
        ("1 node(s) didn't have free ports for the requested pod ports", "hostPort"),
        ("1 node(s) had a strange day", "describe nodes"),
    ] {
        let finding = only(&case(json!({
            "metadata": {}, "spec": {"containers": []},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]},
        })));
        assert!(finding.remedy.contains(remedy), "{message}: {}", finding.remedy);
    }
    let gated = json!({"metadata": {}, "spec": {"containers": [], "schedulingGates": [{"name": "a/b"}]}});
    assert!(only(&case(gated)).cause.contains("a/b"));
    let foreign = json!({"metadata": {}, "spec": {"containers": [], "schedulerName": "mine"}});
    assert!(only(&case(foreign)).cause.contains("\"mine\""));
}

#[test]
fn missing_objects_and_keys_are_named_once() {
    let mut web = pod(json!({"waiting": {"reason": "CreateContainerConfigError", "message": "no"}}));
    web["spec"]["serviceAccountName"] = json!("robot");
    web["spec"]["volumes"] = json!([
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "perhaps", "secret": {"secretName": "maybe", "optional": true}},
        {"name": "all", "projected": {"sources": [{"secret": {"name": "tls", "items": [{"key": "crt", "path": "c"}]}}]}},
    ]);
    web["spec"]["containers"][0]["env"] = json!([
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "tls", "key": "key"}}},
    ]);
    let mut case = case(web);
    let needed = references::of(&case.pod);
    assert_eq!(needed.len(), 5, "{needed:#?}");
    let tls = json!({"data": {"crt": ""}});
    let there = |resource: &str| (resource == "secrets").then_some(&tls);
    case.missing = needed
        .iter()
        .filter_map(|reference| references::check(reference, there(reference.resource)))
        .collect();
    let findings = diagnose::diagnose(&case);
    let causes: Vec<&str> = findings.iter().map(|finding| finding.cause.as_str()).collect();
    assert_eq!(causes.len(), 3, "{causes:#?}");
    assert!(causes.iter().any(|cause| cause.contains("ConfigMap \"settings\"")), "{causes:#?}");
    assert!(causes.iter().any(|cause| cause.contains("Secret \"tls\" has no key \"key\"")), "{causes:#?}");
    assert!(causes.iter().any(|cause| cause.contains("ServiceAccount \"robot\"")), "{causes:#?}");
}

#[test]
fn terminating_pods_tell_who_holds_them() {
    let mut web = pod(json!({"running": {}}));
    web["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:20Z");
    web["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    assert!(only(&case(web.clone())).cause.contains("10 s of their 30 s grace"));
    web["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(only(&case(web.clone())).cause.contains("is over"));
    web["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let finding = only(&case(web.clone()));
    assert!(finding.cause.contains("finalizers hold it: example.com/hold"), "{}", finding.cause);
    assert!(finding.remedy.contains("patch pod web -n default"), "{}", finding.remedy);
    web["metadata"]["finalizers"] = Value::Null;
    let mut case = case(web);
    case.nodes.clear();
    assert!(only(&case).remedy.contains("--force"));
}

#[test]
fn volumes_and_gates_are_told_where_no_container_is() {
    let mut case1 = case(pod(json!({"waiting": {"reason": "ContainerCreating"}})));
    assert!(only(&case1).cause.contains("it is starting"));
    case1.events = vec![event("Pulling", "app", "Pulling image \"me/app:v1\"")];
    assert!(only(&case1).cause.contains("being pulled"));
    case1.events.push(event(
        "FailedMount",
        "",
        "MountVolume.SetUp failed for volume \"v\": no such directory",
    ));
    assert!(only(&case1).evidence[0].contains("no such directory"));
    let mut gated = pod(json!({"running": {}}));
    gated["status"]["containerStatuses"][0]["ready"] = json!(true);
    gated["spec"]["readinessGates"] = json!([{"conditionType": "example.com/in"}]);
    assert!(only(&case(gated)).cause.contains("example.com/in"));
}

#[test]
fn ended_and_healthy_pods() {
    let mut done = pod(json!({"terminated": {"exitCode": 0}}));
    done["status"]["phase"] = json!("Succeeded");
    let done = case(done);
    assert!(diagnose::diagnose(&done).is_empty());
    let said = text(&answer(&done));
    assert!(said.starts_with("pod default/web: Succeeded on node n1\n\nIt has done its work"), "{said}");
    let mut failed = pod(json!({"terminated": {"exitCode": 3, "reason": "Error"}}));
    failed["status"]["phase"] = json!("Failed");
    failed["spec"]["restartPolicy"] = json!("Never");
    assert!(only(&case(failed.clone())).cause.contains("exit code 3, and restartPolicy Never"));
    failed["status"]["containerStatuses"] = Value::Null;
    failed["status"]["reason"] = json!("Evicted");
    assert!(only(&case(failed)).cause.contains("Evicted"));
    let mut fine = pod(json!({"running": {}}));
    fine["status"]["phase"] = json!("Running");
    fine["status"]["conditions"][0]["status"] = json!("True");
    fine["status"]["containerStatuses"][0]["ready"] = json!(true);
    let case = case(fine);
    assert!(diagnose::diagnose(&case).is_empty());
    assert!(text(&answer(&case)).starts_with("pod default/web: Running on node n1, ready\n"));
}

#[test]
fn a_node_that_is_down_comes_first() {
    let mut case = case(pod(json!({"running": {}})));
    let conditions =
        json!([{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "silent"}]);
    case.nodes = vec![
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"conditions": conditions}}))
            .unwrap(),
    ];
    let finding = only(&case);
    assert!(finding.cause.contains("not Ready (NodeStatusUnknown)"), "{}", finding.cause);
    assert_eq!(finding.evidence, ["silent"]);
}
