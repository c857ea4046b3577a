//! Containers beside others: sidecars, ephemeral containers, rules of restarts. Source:
//! `test/e2e_node/container_lifecycle_test.go`, `test/e2e/common/node/{ephemeral_containers,container_restart_policy}.go`.

use http::Method;
use serde_json::{Value, json};

use crate::space::{IDLE, Space, container, is_in, is_ready, main, mount, pod, push, restarts, shell, text};

/// The type of a strategic merge patch.
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A container that notes when it begins and when it is told to end, and whose hook does so before.
fn noting(name: &str) -> Value {
    let note = |what: &str| format!("echo {name}-{what} >> /order/notes");
    let script = format!("trap '{}; exit 0' TERM; {}; sleep 3600 & wait", note("ends"), note("begins"));
    let mut container = shell(name, &script);
    container["volumeMounts"] = json!([{"name": "order", "mountPath": "/order"}]);
    container["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", note("hook")]}}});
    container
}

/// A container that begins before the pod's own and goes on beside them.
fn sidecar(name: &str) -> Value {
    let mut container = noting(name);
    container["restartPolicy"] = "Always".into();
    container["startupProbe"] = json!({
        "exec": {"command": ["grep", "-q", format!("{name}-begins"), "/order/notes"]},
        "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 120,
    });
    container
}

pub(crate) fn sidecars_begin_before_the_others_and_end_after_them(space: &Space<'_>) {
    let notes = space.cluster.host.directory().join(&space.name);
    std::fs::create_dir(&notes).unwrap();
    let mut pod = pod("accompanied", "");
    *main(&mut pod) = noting("main");
    pod["spec"]["volumes"] = json!([{"name": "order", "hostPath": {"path": notes, "type": "Directory"}}]);
    let mut once = noting("once");
    once["command"] = json!(["sh", "-c", "echo once >> /order/notes"]);
    once["lifecycle"] = Value::Null;
    pod["spec"]["initContainers"] = json!([sidecar("first"), once, sidecar("second")]);
    pod["spec"]["terminationGracePeriodSeconds"] = 120.into();
    space.start(&pod);
    let read = || std::fs::read_to_string(notes.join("notes")).unwrap();
    assert_eq!(read(), "first-begins\nonce\nsecond-begins\nmain-begins\n");
    space.stop("accompanied");
    let all = read();
    let at = |what: &str| {
        all.lines().position(|line| line == what).unwrap_or_else(|| panic!("no {what} in\n{all}"))
    };
    // Hooks run at once, each before its container is told to end; these end one after the other.
    for name in ["main", "second", "first"] {
        assert!(at(&format!("{name}-hook")) < at(&format!("{name}-ends")), "{all}");
    }
    assert!(at("main-ends") < at("second-ends") && at("second-ends") < at("first-ends"), "{all}");
    assert_eq!(all.lines().count(), 10, "{all}");
}

pub(crate) fn sidecars_end_with_a_pod_that_completes(space: &Space<'_>) {
    let mut pod = pod("completes", "true");
    let mut beside = shell("beside", IDLE);
    beside["restartPolicy"] = "Always".into();
    pod["spec"]["initContainers"] = json!([beside]);
    space.create("pods", &pod);
    let pod = space.until_pod("completes", "Succeeded", |pod| is_in(pod, "Succeeded"));
    assert!(!container(&pod, "beside")["state"]["terminated"].is_null(), "{pod}");
}

pub(crate) fn an_ephemeral_container_sees_its_targets_processes(space: &Space<'_>) {
    space.start(&pod("target", "exec sleep 100004"));
    let mut debugger = shell("debugger", "ps -o args | grep -c '[1]00004'; sleep 3600");
    debugger["targetContainerName"] = "main".into();
    let patch = json!({"spec": {"ephemeralContainers": [debugger]}});
    let path = space.path("pods/target/ephemeralcontainers");
    let answer = space.api.send(&Method::PATCH, &path, STRATEGIC, Some(&patch));
    assert_eq!(answer.code, 200, "{}", answer.text());
    space.until_pod("target", "the ephemeral container runs", |pod| {
        !container(pod, "debugger")["state"]["running"].is_null()
    });
    space.until_printed("target", "debugger", "1", 1);
    let pod = space.until_pod("target", "Ready", is_ready);
    assert_eq!(restarts(&pod, "main"), 0, "{pod}");
    // It stays what it is.
    let patch = json!({"spec": {"ephemeralContainers": [{"name": "debugger", "image": "other"}]}});
    let said = space.refused(&Method::PATCH, "pods/target/ephemeralcontainers", STRATEGIC, &patch);
    assert!(text(&said["message"]).contains("Forbidden"), "{said}");
}

pub(crate) fn rules_of_a_container_decide_whether_it_is_restarted(space: &Space<'_>) {
    let script = "echo x >> /counted/times; case `wc -l < /counted/times` in 1) exit 42;; *) exit 7;; esac";
    let mut pod = pod("ruled", script);
    mount(&mut pod, "counted", json!({"emptyDir": {}}), "/counted", Value::Null);
    let rule = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}});
    main(&mut pod)["restartPolicy"] = "Never".into();
    push(&mut main(&mut pod)["restartPolicyRules"], rule);
    space.create("pods", &pod);
    let pod = space.until_pod("ruled", "Failed", |pod| is_in(pod, "Failed"));
    let status = container(&pod, "main");
    assert_eq!(
        (&status["restartCount"], &status["state"]["terminated"]["exitCode"]),
        (&json!(1), &json!(7)),
        "{pod}"
    );
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 42, "{pod}");
}
