//! Probes. Source: `test/e2e/common/node/container_probe.go`.

use serde_json::{Value, json};

use crate::grpc::{Health, SERVES};
use crate::space::{IDLE, Space, condition, container, is_ready, main, pod, pod_of, restarts, shell, text};

/// A container with a liveness probe each second, one failure of which is enough.
fn living(name: &str, script: &str, question: Value) -> Value {
    let mut container = shell(name, script);
    let mut probe = question;
    (probe["periodSeconds"], probe["failureThreshold"]) = (1.into(), 1.into());
    probe["timeoutSeconds"] = 30.into();
    // A server needs a moment.
    let mut startup = probe.clone();
    startup["failureThreshold"] = 120.into();
    (container["startupProbe"], container["livenessProbe"]) = (startup, probe);
    container
}

fn http(port: u16, path: &str) -> Value {
    json!({"httpGet": {"path": path, "port": port}})
}

fn file(path: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", format!("echo asked >> /tmp/asked; cat {path}")]}})
}

pub(crate) fn liveness_probes_that_succeed_restart_nothing(space: &Space<'_>) {
    let pod = pod_of(
        "living",
        &[
            living("http", "mkdir -p /w; touch /w/ok; exec httpd -f -vv -p 8081 -h /w", http(8081, "/ok")),
            // What it answers is not looked at.
            living("tcp", "exec httpd -f -p 8082 -h /tmp", json!({"tcpSocket": {"port": 8082}})),
            living("exec", &format!("echo ok > /tmp/health; {IDLE}"), file("/tmp/health")),
        ],
    );
    space.start(&pod);
    space.until_printed("living", "http", "url:/ok", 8);
    space.until_in("living", "exec", "[ `wc -l < /tmp/asked` -ge 8 ]");
    let pod = space.until_pod("living", "Ready", is_ready);
    for name in ["http", "tcp", "exec"] {
        assert_eq!(restarts(&pod, name), 0, "{pod}");
    }
}

pub(crate) fn failing_liveness_probes_restart_their_containers(space: &Space<'_>) {
    let mut pod = pod_of(
        "dying",
        &[
            living("http", "mkdir -p /w; touch /w/ok; httpd -p 8081 -h /w; sleep 3; rm /w/ok; sleep 3600", {
                http(8081, "/ok")
            }),
            living("exec", "echo ok > /tmp/health; sleep 3; rm /tmp/health; sleep 3600", file("/tmp/health")),
        ],
    );
    pod["spec"]["restartPolicy"] = "Always".into();
    space.create("pods", &pod);
    for (name, message) in [("http", "HTTP probe failed with statuscode: 404"), ("exec", "cat: can't open")] {
        space.until_pod("dying", "a restart", |pod| restarts(pod, name) >= 1);
        space.until_event("dying", "Unhealthy", message);
    }
}

pub(crate) fn a_failing_liveness_probe_restarts_its_container_again_and_again(space: &Space<'_>) {
    let script = "mkdir -p /w; touch /w/ok; httpd -p 8081 -h /w; sleep 2; rm /w/ok; sleep 3600";
    let mut container = living("http", script, http(8081, "/ok"));
    // A start whose first probe comes late would wait for all failures that the other allows.
    container["startupProbe"] = Value::Null;
    let mut pod = pod_of("dying", &[container]);
    pod["spec"]["restartPolicy"] = "Always".into();
    space.create("pods", &pod);
    let mut last = 0;
    space.until_pod("dying", "five restarts", |pod| {
        let now = restarts(pod, "http");
        assert!(now >= last, "{now} restarts after {last}");
        last = now;
        now >= 5
    });
}

pub(crate) fn a_pod_is_not_ready_before_its_initial_delay(space: &Space<'_>) {
    let mut pod = pod("delayed", "exec httpd -f -p 8080 -h /tmp");
    main(&mut pod)["readinessProbe"] =
        json!({"tcpSocket": {"port": 8080}, "initialDelaySeconds": 4, "periodSeconds": 1});
    let pod = space.start(&pod);
    let seconds = |time: &Value| -> u64 {
        let time = text(time);
        let parts: Vec<u64> = time[11..19].split(':').map(|part| part.parse().unwrap()).collect();
        (parts[0] * 60 + parts[1]) * 60 + parts[2]
    };
    let started = seconds(&container(&pod, "main")["state"]["running"]["startedAt"]);
    let ready = seconds(&condition(&pod, "Ready")["lastTransitionTime"]);
    // Midnight may lie between; both were cut to whole seconds.
    let after = (ready + 24 * 3600 - started) % (24 * 3600);
    assert!(after >= 4, "{after} s: {pod}");
    assert_eq!(restarts(&pod, "main"), 0, "{pod}");
}

pub(crate) fn a_pod_whose_readiness_probe_fails_is_never_ready(space: &Space<'_>) {
    let mut pod = pod("unready", IDLE);
    let probe =
        json!({"exec": {"command": ["sh", "-c", "echo asked >> /tmp/asked; false"]}, "periodSeconds": 1});
    main(&mut pod)["readinessProbe"] = probe;
    let mut watch = space.watch("pods");
    space.create("pods", &pod);
    watch.until("running", |pods| {
        pods.get("unready").is_some_and(|pod| !container(pod, "main")["state"]["running"].is_null())
    });
    space.until_in("unready", "main", "[ `cat /tmp/asked 2>/dev/null | wc -l` -ge 5 ]");
    space.patch("pods/unready", &json!({"metadata": {"labels": {"asked": "often"}}}));
    let pods = watch.until("asked often", |pods| {
        assert!(!is_ready(&pods["unready"]), "{}", pods["unready"]);
        pods["unready"]["metadata"]["labels"]["asked"] == "often"
    });
    assert_eq!(restarts(&pods["unready"], "main"), 0);
}

/// The API server stands in for a server with a certificate of its own.
pub(crate) fn probes_speak_tls_and_trust_whoever_answers(space: &Space<'_>) {
    let (host, port) = space.api.server();
    let question = |path: &str| json!({"httpGet": {"scheme": "HTTPS", "host": host, "port": port, "path": path}, "periodSeconds": 1});
    let (mut right, mut wrong) = (pod("right", IDLE), pod("wrong", IDLE));
    main(&mut right)["readinessProbe"] = question("/livez");
    main(&mut wrong)["readinessProbe"] = question("/api");
    space.create("pods", &wrong);
    space.start(&right);
    // Strangers are told that they may not.
    space.until_event("wrong", "Unhealthy", "HTTP probe failed with statuscode: 40");
}

pub(crate) fn a_probe_gives_a_grace_period_of_its_own(space: &Space<'_>) {
    let mut container =
        living("main", "trap '' TERM; touch /tmp/ok; while :; do sleep 3600 & wait; done", json!({}));
    let probe = json!({"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 30,
        "terminationGracePeriodSeconds": 1});
    container["startupProbe"] = Value::Null;
    container["livenessProbe"] = probe;
    let mut pod = pod_of("stubborn", &[container]);
    // Nobody waits so long.
    pod["spec"]["terminationGracePeriodSeconds"] = 3600.into();
    pod["spec"]["restartPolicy"] = "Always".into();
    space.start(&pod);
    space.exec("stubborn", "main", "rm /tmp/ok");
    let pod = space.until_pod("stubborn", "a restart", |pod| restarts(pod, "main") == 1);
    let ended = &crate::space::container(&pod, "main")["lastState"]["terminated"];
    assert_eq!(ended["exitCode"], 137, "{pod}");
    space.delete("pods/stubborn?gracePeriodSeconds=1");
}

pub(crate) fn probes_speak_grpc(space: &Space<'_>) {
    let health = Health::on(&space.cluster.host);
    for service in [SERVES, "fails"] {
        let mut pod = pod(service, IDLE);
        pod["spec"]["hostNetwork"] = true.into();
        main(&mut pod)["readinessProbe"] =
            json!({"grpc": {"port": health.port, "service": service}, "periodSeconds": 1});
        space.create("pods", &pod);
    }
    space.until_pod(SERVES, "Ready", is_ready);
    space.until_event("fails", "Unhealthy", "service unhealthy (responded with \"NOT_SERVING\")");
}
