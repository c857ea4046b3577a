//! What hangs or lies: file systems, registries, shims.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use testbed::Held;

use crate::support::{Cluster, container, is_ready, pod, restarts, text};

/// A program of this directory on the host, once it has printed a line; gives the line.
fn helper(cluster: &Cluster, script: &str, arguments: &[&str]) -> (Child, String) {
    let script = format!("{}/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = cluster.host.command("python3");
    let mut child = command.arg(script).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "the helper ended");
    (child, line.trim().to_owned())
}

/// A pod with a volume from the host.
fn with_host_path(name: &str, path: &str, sub_path: &str) -> Value {
    let mut pod = pod(name, "exec sleep 100000");
    pod["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": path}}]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "host", "mountPath": "/host", "subPath": sub_path}]);
    pod
}

#[test]
fn a_file_system_that_never_answers_holds_up_its_own_pods_alone() {
    let cluster = Cluster::up();
    let host = &cluster.host;
    host.must_sh("mkdir -p /run/test/hung /run/test/fine");
    let (mut server, _) = helper(&cluster, "hung.py", &["/run/test/hung"]);
    cluster.apply(&[
        with_host_path("whole", "/run/test/hung", ""),
        with_host_path("below", "/run/test/hung/deep", ""),
        with_host_path("part", "/run/test", "hung/deep"),
    ]);
    cluster.until_all(&["pods"], "scheduled", |pods| {
        pods.len() == 3 && pods.values().all(|pod| !pod["spec"]["nodeName"].is_null())
    });
    // Others come and go, and the node tells of itself.
    for number in 0..5 {
        let name = format!("fine-{number}");
        cluster.apply(&[with_host_path(&name, "/run/test/fine", "")]);
        cluster.until(&["pod", &name], "Ready", is_ready);
    }
    let node = text(&cluster.list(&["nodes"])[0]["metadata"]["name"]);
    for path in ["stats/summary", "metrics/resource", "pods"] {
        host.must_sh(&format!(
            "timeout 60 {} get --raw /api/v1/nodes/{node}/proxy/{path} > /dev/null",
            testbed::kubectl().unwrap().display()
        ));
    }
    for pod in cluster.list(&["pods"]) {
        let name = text(&pod["metadata"]["name"]);
        assert_eq!(is_ready(&pod), name.starts_with("fine"), "{pod}");
    }
    host.must_kubectl(&["delete", "pods", "whole", "below", "part", "--timeout=150s"]);
    // So they do where the daemon was killed meanwhile: nothing of it may wait for the file system.
    cluster.apply(&[with_host_path("again", "/run/test/hung", "")]);
    cluster.kill_daemon();
    host.must_skiff(&["up"]);
    cluster.until(&["pod", "fine-0"], "Ready", is_ready);
    host.must_kubectl(&["delete", "pods", "--all", "--timeout=150s"]);
    testbed::end(&mut server);
    host.must_sh("umount -l /run/test/hung; rm -r /run/test");
    cluster.purge();
}

#[test]
fn a_registry_that_lies_or_stalls_costs_its_own_pods_alone() {
    let cluster = Cluster::up();
    let host = &cluster.host;
    // Of each for itself: what one of them holds up is its own alone, also where both have the same content.
    let mut registries = [(); 2].map(|()| helper(&cluster, "registry.py", &[]));
    let ports = [("lie", registries[0].1.clone()), ("stall", registries[1].1.clone())];
    let before = cluster.held_at_rest();
    let named = |name: &str| {
        let port = &ports.iter().find(|(of, _)| *of == name).unwrap().1;
        let mut pod = pod(name, "true");
        pod["spec"]["containers"][0]["image"] = json!(format!("127.0.0.1:{port}/{name}:1"));
        pod
    };
    for _ in 0..3 {
        cluster.apply(&[named("lie"), named("stall"), pod("fine", "exec sleep 100000")]);
        let mut reasons = BTreeSet::new();
        cluster.until(&["pod", "lie"], "refused and waiting", |pod| {
            let waiting = &container(pod)["state"]["waiting"];
            reasons.insert(text(&waiting["reason"]));
            let message = text(&waiting["message"]);
            assert!(waiting["reason"] != "ErrImagePull" || message.contains("sha256:"), "{message}");
            reasons.contains("ErrImagePull") && reasons.contains("ImagePullBackOff")
        });
        cluster.until(&["pod", "fine"], "Ready", is_ready);
        // In the middle of its pull.
        assert_eq!(
            text(&container(&cluster.get(&["pod", "stall"]))["state"]["waiting"]["reason"]),
            "ContainerCreating"
        );
        host.must_kubectl(&["delete", "pods", "lie", "stall", "fine", "--timeout=60s"]);
    }
    // What was noted of pulls that nobody saw the end of is settled at the next start at the latest.
    cluster.kill_daemon();
    host.must_skiff(&["up"]);
    let noted = "find /var/lib/$SKIFF_NAME/node -path '*/pulling/*' -type f | grep -q .";
    host.must_sh(&format!("timeout 120 sh -c \"while {noted}; do sleep 0.2; done\""));
    before.assert_nothing_left(&Held::on(host));
    for (registry, _) in &mut registries {
        testbed::end(registry);
    }
    cluster.purge();
}

/// The shim of the process with a part of its command line.
fn shim_of(cluster: &Cluster, mark: &str) -> String {
    let process = cluster.processes_with(mark)[0];
    cluster.host.must_sh(&format!("ps -o ppid= -p {process}")).trim().to_owned()
}

#[test]
fn a_stopped_shim_holds_up_nobody_and_is_what_it_was_when_it_goes_on() {
    let cluster = Cluster::up();
    let host = &cluster.host;
    let before = cluster.held_at_rest();
    cluster.apply(&[pod("pausing", "exec sleep 100001"), pod("stuck", "exec sleep 100002")]);
    cluster.until_all(&["pods"], "Ready", |pods| pods.len() == 2 && pods.values().all(is_ready));
    // Stopped for half a minute: nothing is made up of it.
    let shim = shim_of(&cluster, "sleep 100001");
    host.must_sh(&format!("kill -STOP {shim}; sleep 30"));
    let paused = cluster.get(&["pod", "pausing"]);
    assert!(is_ready(&paused) && restarts(&paused) == 0, "{paused}");
    host.must_sh(&format!("kill -CONT {shim}"));
    assert_eq!(host.must_kubectl(&["exec", "pausing", "--", "echo", "here"]), "here\n");
    // For ever: its pod ends all the same, and others live.
    let shim = shim_of(&cluster, "sleep 100002");
    host.must_sh(&format!("kill -STOP {shim}"));
    host.must_kubectl(&["logs", "stuck"]);
    host.must_kubectl(&["delete", "pod", "stuck", "--timeout=170s"]);
    assert_eq!(cluster.processes_with("sleep 100002"), Vec::<u32>::new());
    // For ever, and the daemon is killed meanwhile: what cannot be reached ends, and its pod is made anew.
    let shim = shim_of(&cluster, "sleep 100001");
    host.must_sh(&format!("kill -STOP {shim}"));
    cluster.kill_daemon();
    host.must_skiff(&["up"]);
    let again = cluster.until(&["pod", "pausing"], "restarted", |pod| is_ready(pod) && restarts(pod) == 1);
    assert_eq!(container(&again)["lastState"]["terminated"]["exitCode"], 137, "{again}");
    host.must_kubectl(&["delete", "pod", "pausing", "--timeout=120s"]);
    before.assert_nothing_left(&Held::on(host));
    cluster.purge();
}
