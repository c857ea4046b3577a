//! Processes, probes and shims that fail.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    Cluster, SERVER, condition, container, deployment, is_ready, pod, restarts, service, text,
};

/// The messages of a pod's events with a reason.
fn events(cluster: &Cluster, name: &str, reason: &str) -> Vec<String> {
    let selector = format!("involvedObject.name={name},reason={reason}");
    let events = cluster.list(&["events", "--field-selector", &selector]);
    events.iter().map(|event| text(&event["message"])).collect()
}

/// Waits for an event of a pod whose message has a part.
#[track_caller]
fn until_event(cluster: &Cluster, name: &str, reason: &str, part: &str) {
    let selector = format!("involvedObject.name={name},reason={reason}");
    cluster.until_all(&["events", "--field-selector", &selector], part, |events| {
        events.values().any(|event| text(&event["message"]).contains(part))
    });
}

#[test]
fn a_killed_process_is_restarted_with_back_off() {
    let cluster = Cluster::up();
    cluster.apply(&[pod("victim", "exec sleep 100001")]);
    cluster.until(&["pod", "victim"], "Ready", is_ready);
    let kill = || {
        let found = cluster.processes_with("sleep 100001");
        assert_eq!(found.len(), 1, "{found:?}");
        cluster.host.must_sh(&format!("kill -9 {}", found[0]));
    };
    let victim = ["pod", "victim"];
    // The first restart is at once.
    let once = cluster.until_after(&victim, kill, "restarted", |pod| is_ready(pod) && restarts(pod) == 1);
    let ended = &container(&once)["lastState"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("Error")), "{once}");
    assert!(ended["startedAt"].is_string() && ended["finishedAt"].is_string(), "{once}");
    assert!(text(&ended["containerID"]).starts_with("skiff://"), "{once}");
    let waits = |pod: &Value, delay: &str| {
        let waiting = &container(pod)["state"]["waiting"];
        waiting["reason"] == "CrashLoopBackOff"
            && text(&waiting["message"]).starts_with(&format!(
                "back-off {delay} restarting failed container=main pod=victim_default("
            ))
    };
    let first = cluster.until_after(&victim, kill, "waiting 10 s", |pod| waits(pod, "10s"));
    assert_eq!((restarts(&first), condition(&first, "Ready").as_str()), (1, "False"), "{first}");
    assert_eq!(container(&first)["lastState"]["terminated"]["exitCode"], 137, "{first}");
    assert_eq!(first["status"]["phase"], "Running");
    until_event(
        &cluster,
        "victim",
        "BackOff",
        "Back-off restarting failed container main in pod victim_default(",
    );
    cluster.until(&victim, "restarted", |pod| is_ready(pod) && restarts(pod) == 2);
    cluster.until_after(&victim, kill, "waiting 20 s", |pod| waits(pod, "20s"));
    // The wait is in the runtime's records, not in the daemon's memory: it goes on, or has been kept to.
    cluster.kill_daemon();
    cluster.host.must_skiff(&["up"]);
    cluster.until(&victim, "waiting 20 s", |pod| waits(pod, "20s") || restarts(pod) == 3);
    let sandboxes = std::fs::read_dir(cluster.data_dir().join("engine/sandboxes")).unwrap().count();
    assert_eq!(sandboxes, 1, "its sandbox was kept");
    cluster.purge();
}

#[test]
fn a_deletion_is_hastened_by_a_second_one() {
    let cluster = Cluster::up();
    let pods = ["forced", "shortened"].map(|name| {
        let mut pod = pod(name, "trap '' TERM; exec sleep 100002");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(3600);
        pod
    });
    cluster.apply(&pods);
    cluster.until_all(&["pods"], "both Ready", |pods| pods.len() == 2 && pods.values().all(is_ready));
    let processes = cluster.processes_with("100002");
    assert_eq!(processes.len(), 2, "{processes:?}");
    let host = &cluster.host;
    host.must_kubectl(&["delete", "pod", "forced", "shortened", "--wait=false"]);
    for name in ["forced", "shortened"] {
        until_event(&cluster, name, "Killing", "Stopping container main");
    }
    host.must_kubectl(&["delete", "pod", "forced", "--grace-period=0", "--force"]);
    host.must_kubectl(&["delete", "pod", "shortened", "--grace-period=1", "--timeout=120s"]);
    for process in processes {
        host.must_sh(&format!("timeout 120 tail --pid {process} -f /dev/null"));
    }
    cluster.purge();
}

#[test]
fn exit_codes_signals_and_messages_are_told() {
    let cluster = Cluster::up();
    let mut ends = Vec::new();
    for (name, script) in [
        ("fails", "echo because > /dev/termination-log; exit 7"),
        ("signalled", "kill -9 $$$$; sleep 100000"),
        ("done", "exit 0"),
    ] {
        let mut pod = pod(name, script);
        pod["spec"]["restartPolicy"] = json!("Never");
        // The first process of a PID namespace takes no signal from inside. `$$` is one dollar to the node.
        pod["spec"]["shareProcessNamespace"] = json!(true);
        ends.push(pod);
    }
    let mut absent = pod("absent", "");
    absent["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    ends.push(absent);
    cluster.apply(&ends);
    for (name, phase, code, reason, message) in [
        ("fails", "Failed", 7, "Error", "because\n"),
        ("signalled", "Failed", 137, "Error", ""),
        ("done", "Succeeded", 0, "Completed", ""),
    ] {
        let pod = cluster.until(&["pod", name], "ended", |pod| pod["status"]["phase"] == phase);
        let ended = &container(&pod)["state"]["terminated"];
        assert_eq!(
            (ended["exitCode"].as_i64(), text(&ended["reason"]), text(&ended["message"])),
            (Some(code), reason.to_owned(), message.to_owned()),
            "{pod}"
        );
    }
    let absent = cluster.until(&["pod", "absent"], "not started", |pod| {
        ["RunContainerError", "CrashLoopBackOff"]
            .contains(&&*text(&container(pod)["state"]["waiting"]["reason"]))
    });
    until_event(&cluster, "absent", "Failed", "/no/such/program");
    let status = container(&absent).to_string();
    assert!(status.contains("/no/such/program"), "{status}");
    cluster.purge();
}

#[test]
fn without_a_probe_a_server_is_ready_when_it_listens() {
    let cluster = Cluster::up();
    let named = |name: &str, script: &str| {
        let mut pod = pod(name, script);
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80}]);
        pod
    };
    cluster.apply(&[named("slow", &format!("sleep 0.7; {SERVER}")), named("silent", "exec sleep 100000")]);
    let slow = cluster.until(&["pod", "slow"], "Ready", is_ready);
    let url = format!("http://{}/", text(&slow["status"]["podIP"]));
    assert_eq!(cluster.host.must_sh(&format!("curl --silent --show-error --fail {url}")), "slow\n");
    // What never listens is not held to it.
    cluster.until(&["pod", "silent"], "Ready", is_ready);
    cluster.purge();
}

/// Three containers, each with a server or a file that its liveness probe asks for.
fn probed() -> Value {
    let container = |name: &str, script: &str, question: Value| {
        let mut probe = question;
        probe["periodSeconds"] = json!(1);
        let mut startup = probe.clone();
        startup["failureThreshold"] = json!(120);
        probe["failureThreshold"] = json!(2);
        json!({"name": name, "image": "busybox", "command": ["sh", "-c", format!("{script}; exec sleep 100000")],
            "startupProbe": startup, "livenessProbe": probe})
    };
    let mut pod = pod("probed", "");
    pod["spec"]["containers"] = json!([
        container(
            "http",
            "mkdir -p /w; touch /w/ok; httpd -p 8081 -h /w",
            json!({"httpGet": {"path": "/ok", "port": 8081}})
        ),
        container("tcp", "httpd -p 8082 -h /tmp", json!({"tcpSocket": {"port": 8082}})),
        container("exec", "touch /tmp/ok", json!({"exec": {"command": ["cat", "/tmp/ok"]}})),
    ]);
    pod
}

#[test]
fn failing_liveness_probes_restart_their_containers() {
    let cluster = Cluster::up();
    cluster.apply(&[probed()]);
    cluster.until(&["pod", "probed"], "Ready", is_ready);
    for (name, spoil, message) in [
        ("http", "rm /w/ok", "HTTP probe failed with statuscode: 404"),
        ("tcp", "killall httpd", "connect: connection refused"),
        ("exec", "rm /tmp/ok", "No such file or directory"),
    ] {
        cluster.host.must_kubectl(&["exec", "probed", "-c", name, "--", "sh", "-c", spoil]);
        let status = |pod: &Value| {
            let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|status| status["name"] == name).unwrap_or_default()
        };
        let pod = cluster.until(&["pod", "probed"], "restarted and Ready", |pod| {
            status(pod)["restartCount"] == 1 && is_ready(pod)
        });
        assert_eq!(status(&pod)["lastState"]["terminated"]["exitCode"], 137, "{pod}");
        until_event(
            &cluster,
            "probed",
            "Unhealthy",
            &format!("Liveness probe failed: {}", first_words(name)),
        );
        until_event(&cluster, "probed", "Unhealthy", message);
        let killing = format!("Container {name} failed liveness probe, will be restarted");
        until_event(&cluster, "probed", "Killing", &killing);
    }
    let pod = cluster.get(&["pod", "probed"]);
    let counts: Vec<_> = pod["status"]["containerStatuses"].as_array().unwrap().iter().collect();
    assert!(counts.iter().all(|status| status["restartCount"] == 1), "{pod}");
    cluster.purge();
}

/// How the message of a failed probe of that container begins.
fn first_words(name: &str) -> &'static str {
    match name {
        "http" => "HTTP probe",
        "tcp" => "dial tcp",
        _ => "cat:",
    }
}

#[test]
fn a_failing_readiness_probe_takes_a_pod_out_of_its_service() {
    let cluster = Cluster::up();
    let mut web = deployment(
        "web",
        2,
        "touch /tmp/ok; mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w",
    );
    web["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.apply(&[web, service("web")]);
    let pods: Vec<_> = cluster.ready_pods("web", 2).into_keys().collect();
    let in_service = |wanted: BTreeSet<&str>| {
        let of_service = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
        cluster.until(&of_service, "the ready pods", |slice| {
            let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
            let ready = endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true);
            let names: Vec<_> = ready.map(|endpoint| text(&endpoint["targetRef"]["name"])).collect();
            names.iter().map(String::as_str).collect::<BTreeSet<_>>() == wanted
        });
    };
    in_service(BTreeSet::from([&*pods[0], &*pods[1]]));
    cluster.host.must_kubectl(&["exec", &pods[0], "--", "rm", "/tmp/ok"]);
    let unready = cluster.until(&["pod", &pods[0]], "not Ready", |pod| condition(pod, "Ready") == "False");
    assert_eq!((restarts(&unready), unready["status"]["phase"].as_str()), (0, Some("Running")));
    in_service(BTreeSet::from([&*pods[1]]));
    // The data path follows the slice; from then on nobody reaches the pod that is not ready.
    let url = format!("http://{}/", cluster.address_of("web"));
    let ask = format!(
        "until [ \"$(for n in 1 2 3 4 5 6 7 8 9 10; do curl -sf --max-time 60 {url}; done | sort -u)\" = {} ]; do :; done",
        pods[1]
    );
    cluster.host.must_sh(&format!("timeout 300 sh -c '{ask}'"));
    let answers =
        cluster.host.must_sh(&format!("for n in $(seq 50); do curl -sf --max-time 60 {url}; done | sort -u"));
    assert_eq!(answers.trim(), pods[1]);
    cluster.host.must_kubectl(&["exec", &pods[0], "--", "touch", "/tmp/ok"]);
    in_service(BTreeSet::from([&*pods[0], &*pods[1]]));
    let both = format!("until curl -sf --max-time 60 {url} | grep -q {}; do :; done", pods[0]);
    cluster.host.must_sh(&format!("timeout 300 sh -c '{both}'"));
    cluster.purge();
}

#[test]
fn a_startup_probe_holds_the_others() {
    let cluster = Cluster::up();
    let mut pod = pod("slow", "exec sleep 100000");
    let main = &mut pod["spec"]["containers"][0];
    let probe = |script: &str, failures: u32| {
        json!({"exec": {"command": ["sh", "-c", script]}, "periodSeconds": 1, "failureThreshold": failures,
            "timeoutSeconds": 10})
    };
    main["startupProbe"] = probe("echo asked >> /tmp/startup; test -f /tmp/started", 1000);
    main["livenessProbe"] = probe("touch /tmp/liveness; false", 1);
    main["readinessProbe"] = probe("touch /tmp/readiness", 1);
    cluster.apply(&[pod]);
    cluster.until(&["pod", "slow"], "running", |pod| !container(pod)["state"]["running"].is_null());
    let asked = "until [ $(cat /tmp/startup | wc -l) -ge 4 ]; do sleep 0.2; done; ls /tmp";
    let files = cluster.host.must_kubectl(&["exec", "slow", "--", "sh", "-c", asked]);
    assert_eq!(files.split_whitespace().collect::<Vec<_>>(), ["startup"]);
    let held = cluster.get(&["pod", "slow"]);
    assert_eq!((&container(&held)["started"], &container(&held)["ready"]), (&json!(false), &json!(false)));
    cluster.host.must_kubectl(&["exec", "slow", "--", "touch", "/tmp/started"]);
    cluster.until(&["pod", "slow"], "killed by its liveness probe", |pod| restarts(pod) == 1);
    assert!(!events(&cluster, "slow", "Killing").is_empty());
    cluster.purge();
}

#[test]
fn a_killed_shim_is_noticed_and_its_pod_recovers() {
    let cluster = Cluster::up();
    let mut shared = pod("shared", "exec sleep 100002");
    shared["spec"]["shareProcessNamespace"] = json!(true);
    cluster.apply(&[deployment("web", 1, crate::support::SERVER), service("web"), shared]);
    cluster.ready_pods("web", 1);
    cluster.until(&["pod", "shared"], "Ready", is_ready);
    let host = &cluster.host;
    let shims = || cluster.processes_with("skiff-shim-").into_iter().collect::<BTreeSet<_>>();
    assert_eq!(shims().len(), 2);
    // A dead container keeps its root file system, for its logs' sake, until the one after it has ended.
    let mounts =
        || host.must_sh(&format!("grep ' /run/{}/' /proc/self/mountinfo | grep -vc /rootfs", host.name));
    let before = mounts();
    for mark in ["httpd -f", "sleep 100002"] {
        let process = cluster.processes_with(mark)[0];
        let shim = host.must_sh(&format!("ps -o ppid= -p {process}")).trim().to_owned();
        assert!(shims().contains(&shim.parse().unwrap()), "{shim} of {:?}", shims());
        host.must_sh(&format!("kill -9 {shim}"));
        let selector = if mark == "httpd -f" { "app=web" } else { "!app" };
        let pods = cluster.until_all(&["pods", "-l", selector], "recovered", |pods| {
            pods.len() == 1 && pods.values().all(|pod| is_ready(pod) && restarts(pod) == 1)
        });
        let pod = pods.values().next().unwrap();
        let ended = &container(pod)["lastState"]["terminated"];
        assert_eq!(ended["exitCode"], 137, "{pod}");
        let now = cluster.processes_with(mark);
        assert!(now.len() == 1 && now[0] != process, "{process} became {now:?}");
        let name = text(&pod["metadata"]["name"]);
        let address = host.must_kubectl(&["exec", &name, "--", "hostname", "-i"]);
        assert_eq!(address.trim(), text(&pod["status"]["podIP"]));
    }
    assert_eq!(shims().len(), 2);
    assert_eq!(
        cluster.processes_with("/proc/self/exe init").len(),
        1,
        "the old PID namespace's init is gone"
    );
    assert_eq!(mounts(), before);
    assert_eq!(host.must_sh("ip -br link | grep -c '^skf'").trim(), "2");
    assert!(cluster.fetch(&format!("http://{}/", cluster.address_of("web"))).starts_with("web-"));
    cluster.purge();
}

#[test]
fn a_container_over_its_memory_limit_is_oom_killed() {
    let cluster = Cluster::up();
    let mut pod = pod("hungry", "tail /dev/zero");
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    cluster.apply(&[pod]);
    let pod = cluster.until(&["pod", "hungry"], "ended", |pod| pod["status"]["phase"] == "Failed");
    let ended = &container(&pod)["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{pod}");
    cluster.purge();
}
