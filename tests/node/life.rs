//! How pods begin, go on and end. Source: `test/e2e/common/node/{pods,init_container,runtime,kubelet}.go`,
//! `test/e2e/node/pods.go`.

use serde_json::{Value, json};

use crate::space::{
    IDLE, Space, condition, container, is_in, is_ready, main, mount, pod, restarts, shell, text,
};

/// Containers that run before the others: each ends by a command.
fn with_init(mut pod: Value, commands: &[&str]) -> Value {
    let containers =
        commands.iter().enumerate().map(|(index, command)| shell(&format!("init{}", index + 1), command));
    pod["spec"]["initContainers"] = containers.collect();
    pod
}

pub(crate) fn init_containers_run_before_the_others(space: &Space<'_>) {
    let once = with_init(pod("once", "true"), &["true", "true"]);
    let mut always = with_init(pod("always", IDLE), &["true", "true"]);
    always["spec"]["restartPolicy"] = "Always".into();
    space.create("pods", &once);
    space.create("pods", &always);
    let ended = space.until_pod("once", "Succeeded", |pod| is_in(pod, "Succeeded"));
    let running = space.until_pod("always", "Ready", is_ready);
    for pod in [&ended, &running] {
        assert_eq!(condition(pod, "Initialized")["status"], "True", "{pod}");
        for name in ["init1", "init2"] {
            let status = container(pod, name);
            assert_eq!((&status["ready"], &status["restartCount"]), (&json!(true), &json!(0)), "{status}");
            assert_eq!(status["state"]["terminated"]["exitCode"], 0, "{status}");
        }
    }
    let finished = |name: &str| text(&container(&running, name)["state"]["terminated"]["finishedAt"]);
    let started = text(&container(&running, "main")["state"]["running"]["startedAt"]);
    assert!(finished("init1") <= finished("init2") && finished("init2") <= started, "{running}");
    assert_eq!(container(&ended, "main")["state"]["terminated"]["exitCode"], 0, "{ended}");
}

/// What a pod says that waits for containers before its others.
#[track_caller]
fn says_that_it_waits_for(pod: &Value, names: &str) {
    let initialized = condition(pod, "Initialized");
    assert_eq!(
        (&initialized["status"], &initialized["reason"], text(&initialized["message"])),
        (
            &json!("False"),
            &json!("ContainersNotInitialized"),
            format!("containers with incomplete status: [{names}]")
        ),
        "{pod}"
    );
    let main = container(pod, "main");
    assert!(!main["state"]["waiting"].is_null(), "{main}");
    assert_eq!((&main["restartCount"], text(&main["containerID"])), (&json!(0), String::new()), "{main}");
}

pub(crate) fn init_containers_that_fail_are_started_anew_and_hold_back_the_others(space: &Space<'_>) {
    let mut pod = with_init(pod("failing", IDLE), &["false", "true"]);
    pod["spec"]["restartPolicy"] = "Always".into();
    space.create("pods", &pod);
    let pod = space.until_pod("failing", "three restarts", |pod| restarts(pod, "init1") >= 3);
    assert_eq!(pod["status"]["phase"], "Pending", "{pod}");
    says_that_it_waits_for(&pod, "init1 init2");
    assert!(!container(&pod, "init2")["state"]["waiting"].is_null(), "{pod}");
}

pub(crate) fn an_init_container_that_fails_ends_a_pod_that_never_restarts(space: &Space<'_>) {
    space.create("pods", &with_init(pod("failing", "true"), &["true", "false"]));
    let pod = space.until_pod("failing", "Failed", |pod| is_in(pod, "Failed"));
    says_that_it_waits_for(&pod, "init2");
    assert_eq!(container(&pod, "init1")["state"]["terminated"]["exitCode"], 0, "{pod}");
    assert_ne!(container(&pod, "init2")["state"]["terminated"]["exitCode"], 0, "{pod}");
}

/// Fails at first, then succeeds, then goes on.
const THRICE: &str = "echo hello >> /counted/times; case `wc -l < /counted/times` in 1) exit 1;; 2) exit 0;; esac; \
                      trap 'exit 0' TERM; sleep 3600 & wait";

pub(crate) fn containers_are_restarted_as_their_policy_says(space: &Space<'_>) {
    let cases = [
        ("always", "Always", "Running", "running", 2),
        ("on-failure", "OnFailure", "Succeeded", "terminated", 1),
        ("never", "Never", "Failed", "terminated", 0),
    ];
    for (name, policy, ..) in cases {
        let mut pod = pod(name, THRICE);
        let memory = json!({"emptyDir": {"medium": "Memory"}});
        mount(&mut pod, "counted", memory, "/counted", Value::Null);
        pod["spec"]["restartPolicy"] = policy.into();
        space.create("pods", &pod);
    }
    for (name, _, phase, state, count) in cases {
        let pod = space.until_pod(name, "its restarts and its phase", |pod| {
            let state = &container(pod, "main")["state"][state];
            restarts(pod, "main") == count && is_in(pod, phase) && !state.is_null()
        });
        assert_eq!(is_ready(&pod), state == "running", "{pod}");
        space.stop(name);
    }
}

pub(crate) fn a_pod_ends_at_its_deadline(space: &Space<'_>) {
    let mut pod = pod("late", "exec sleep 3600");
    pod["metadata"]["labels"] = json!({"name": "foo"});
    space.start(&pod);
    assert_eq!(space.list("pods?labelSelector=name%3Dfoo").len(), 1);
    space.update("pods/late", |pod| pod["spec"]["activeDeadlineSeconds"] = 1.into());
    let pod = space.until_pod("late", "ended", |pod| is_in(pod, "Failed"));
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded", "{pod}");
    assert!(!container(&pod, "main")["state"]["terminated"].is_null(), "{pod}");
}

pub(crate) fn a_pod_is_watched_from_its_creation_to_its_end(space: &Space<'_>) {
    let selected = "pods?labelSelector=time%3Dnow";
    assert_eq!(space.list(selected), Vec::<Value>::new());
    let mut watch = space.watch(selected);
    let mut pod = pod("watched", IDLE);
    pod["metadata"]["labels"] = json!({"time": "now"});
    space.create("pods", &pod);
    assert_eq!(space.list(selected).len(), 1);
    watch.until("added", |pods| pods.contains_key("watched"));
    watch.until("running", |pods| is_in(&pods["watched"], "Running"));
    space.delete("pods/watched?gracePeriodSeconds=30");
    let mut seen = false;
    watch.until("deleted", |pods| {
        seen |= pods.get("watched").is_some_and(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        pods.is_empty()
    });
    assert!(seen, "nobody was told that it is to go");
    let last = &watch.deleted[0];
    assert!(!last["metadata"]["deletionTimestamp"].is_null(), "{last}");
    assert_ne!(last["spec"]["terminationGracePeriodSeconds"], 0, "{last}");
    // What it came to is told before it is gone.
    assert!(!container(last, "main")["state"]["terminated"].is_null(), "{last}");
    assert_eq!(space.list(selected), Vec::<Value>::new());
}

pub(crate) fn labels_of_pods_change(space: &Space<'_>) {
    let mut pod = pod("labelled", IDLE);
    pod["metadata"]["labels"] = json!({"time": "before"});
    space.start(&pod);
    assert_eq!(space.list("pods?labelSelector=time%3Dbefore").len(), 1);
    space.update("pods/labelled", |pod| pod["metadata"]["labels"]["time"] = "after".into());
    assert_eq!(space.list("pods?labelSelector=time%3Dbefore"), Vec::<Value>::new());
    let after = space.list("pods?labelSelector=time%3Dafter");
    assert!(after.len() == 1 && is_ready(&after[0]), "{after:?}");
}

pub(crate) fn pods_are_deleted_together(space: &Space<'_>) {
    for number in 1..=3 {
        let mut pod = pod(&format!("together-{number}"), IDLE);
        pod["metadata"]["labels"] = json!({"type": "Testing"});
        space.create("pods", &pod);
    }
    let selected = "pods?labelSelector=type%3DTesting";
    space.until(selected, "three that run", |pods| pods.len() == 3 && pods.values().all(is_ready));
    space.delete(selected);
    space.until(selected, "gone", |pods| pods.is_empty());
}

pub(crate) fn a_pods_status_is_read_and_written(space: &Space<'_>) {
    let mut pod = pod("static", IDLE);
    pod["metadata"]["labels"] = json!({"test-pod-static": "true"});
    space.start(&pod);
    let patch = json!({"metadata": {"labels": {"test-pod": "patched"}},
        "spec": {"terminationGracePeriodSeconds": 1}});
    assert_eq!(space.patch("pods/static", &patch)["metadata"]["labels"]["test-pod"], "patched");
    let ours = json!({"type": "Ours", "status": "True", "reason": "Shown", "message": "by hand"});
    let written = space.update("pods/static/status", |pod| {
        pod["status"]["conditions"].as_array_mut().unwrap().push(ours.clone());
    });
    assert_eq!(condition(&written, "Ours")["message"], "by hand");
    let patch = json!({"status": {"message": "Patched"}});
    assert_eq!(space.patch("pods/static/status", &patch)["status"]["message"], "Patched");
    space.delete("pods?labelSelector=test-pod-static%3Dtrue");
    space.until("pods", "gone", |pods| pods.is_empty());
}

pub(crate) fn a_pod_says_where_it_runs_and_what_its_quality_is(space: &Space<'_>) {
    let resources = json!({"cpu": "10m", "memory": "16Mi"});
    let cases = [
        ("guaranteed", json!({"requests": resources, "limits": resources}), "Guaranteed"),
        ("burstable", json!({"requests": resources}), "Burstable"),
        ("best-effort", json!({}), "BestEffort"),
    ];
    for (name, resources, class) in cases {
        let mut pod = pod(name, IDLE);
        main(&mut pod)["resources"] = resources;
        // It is decided when the pod is made.
        assert_eq!(space.create("pods", &pod)["status"]["qosClass"], class);
    }
    let pods = space.until("pods", "Ready", |pods| pods.values().filter(|pod| is_ready(pod)).count() == 3);
    for pod in pods.values() {
        assert_eq!(pod["status"]["hostIP"], space.cluster.host.address.as_str(), "{pod}");
        assert_eq!(pod["status"]["hostIPs"][0]["ip"], space.cluster.host.address.as_str(), "{pod}");
    }
}

pub(crate) fn a_command_that_fails_has_a_reason_and_its_pod_can_go(space: &Space<'_>) {
    let mut pod = pod("failing", "");
    main(&mut pod)["command"] = json!(["/bin/false"]);
    pod["spec"]["restartPolicy"] = "Always".into();
    space.create("pods", &pod);
    let pod = space.until_pod("failing", "terminated", |pod| {
        !container(pod, "main")["lastState"]["terminated"].is_null()
            || !container(pod, "main")["state"]["terminated"].is_null()
    });
    assert_eq!(pod["status"]["containerStatuses"].as_array().unwrap().len(), 1);
    let status = container(&pod, "main");
    let ended = [&status["state"]["terminated"], &status["lastState"]["terminated"]];
    let ended = ended.iter().find(|ended| !ended.is_null()).unwrap();
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(1), &json!("Error")), "{pod}");
    space.stop("failing");
}

pub(crate) fn termination_messages_come_from_a_file_or_the_log(space: &Space<'_>) {
    let fallback = "FallbackToLogsOnError";
    let cases = [
        (
            "file",
            "File",
            0,
            "/dev/termination-log",
            "echo -n DONE > /dev/termination-log",
            "Succeeded",
            "DONE",
        ),
        (
            "own-file",
            "File",
            10_000,
            "/dev/termination-custom-log",
            "echo -n DONE > /dev/termination-custom-log",
            "Succeeded",
            "DONE",
        ),
        ("failed-log", fallback, 0, "/dev/termination-log", "echo -n DONE; false", "Failed", "DONE"),
        ("succeeded-log", fallback, 0, "/dev/termination-log", "echo -n DONE; true", "Succeeded", ""),
        (
            "file-first",
            fallback,
            0,
            "/dev/termination-log",
            "echo -n OK > /dev/termination-log; echo DONE; true",
            "Succeeded",
            "OK",
        ),
    ];
    for (name, policy, user, path, script, ..) in cases {
        let mut pod = pod(name, script);
        let container = main(&mut pod);
        container["securityContext"] = json!({"runAsUser": user});
        container["terminationMessagePath"] = path.into();
        container["terminationMessagePolicy"] = policy.into();
        space.create("pods", &pod);
    }
    for (name, .., phase, message) in cases {
        let pod = space.until_pod(name, phase, |pod| is_in(pod, phase));
        let ended = &container(&pod, "main")["state"]["terminated"];
        assert_eq!(text(&ended["message"]), message, "{name}: {ended}");
    }
}

pub(crate) fn a_pod_is_ready_when_its_gates_are_open(space: &Space<'_>) {
    let mut pod = pod("gated", IDLE);
    pod["spec"]["readinessGates"] = json!([{"conditionType": "k8s.io/test-condition1"}]);
    space.create("pods", &pod);
    let waiting = space.until_pod("gated", "its containers are ready", |pod| {
        condition(pod, "ContainersReady")["status"] == "True"
    });
    let ready = condition(&waiting, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("ReadinessGatesNotReady")),
        "{ready}"
    );
    let set = |status: &str| {
        let gate = json!({"type": "k8s.io/test-condition1", "status": status});
        space.update("pods/gated/status", |pod| {
            let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
            conditions.retain(|known| known["type"] != gate["type"]);
            conditions.push(gate.clone());
        });
    };
    set("True");
    space.until_pod("gated", "Ready", is_ready);
    set("False");
    space.until_pod("gated", "not Ready", |pod| condition(pod, "Ready")["status"] == "False");
}

pub(crate) fn a_pod_is_resized_where_it_runs(space: &Space<'_>) {
    let mut pod = pod("resized", IDLE);
    let amounts = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    main(&mut pod)["resources"] =
        json!({"requests": amounts("50m", "32Mi"), "limits": amounts("100m", "64Mi")});
    space.start(&pod);
    let wanted = json!({"requests": amounts("60m", "40Mi"), "limits": amounts("120m", "80Mi")});
    space.patch(
        "pods/resized/resize",
        &json!({"spec": {"containers": [{"name": "main", "image": "busybox",
        "resources": wanted}]}}),
    );
    let pod = space.until_pod("resized", "resized", |pod| container(pod, "main")["resources"] == wanted);
    assert_eq!(restarts(&pod, "main"), 0, "{pod}");
    // The pod's group has more until its containers have theirs.
    space.until_event("resized", "ResizeCompleted", "");
    let bytes = 80 << 20;
    assert_eq!(memory_limits(space, &pod), format!("{bytes}\n{bytes}\n"));
}

/// The memory limits of a burstable pod's group and of its container's in it, in bytes, as the host has them in a hierarchy
/// of version 1, or of version 2.
#[track_caller]
fn memory_limits(space: &Space<'_>, pod: &Value) -> String {
    let (host, uid) = (&space.cluster.host, text(&pod["metadata"]["uid"]));
    let id = text(&container(pod, "main")["containerID"]).replace("skiff://", "");
    let files = [("memory/", "memory.limit_in_bytes"), ("", "memory.max")].map(|(hierarchy, file)| {
        (format!("/sys/fs/cgroup/{hierarchy}{}/kubepods/burstable/pod{uid}", host.name), file)
    });
    let (group, file) = files
        .into_iter()
        .find(|(group, file)| std::path::Path::new(group).join(file).exists())
        .expect("a group of the pod");
    host.must_sh(&format!("cat {group}/{file} {group}/*/{id}/{file}"))
}
