//! Process ids and memory that run out: of a pod, and of all pods of a node.

use serde_json::json;

use crate::support::{Cluster, container, is_ready, pod, restarts};

/// A file of the group of all pods in a hierarchy of version 1, or of version 2.
fn pods_group(cluster: &Cluster, controller: &str, file: &str) -> Option<String> {
    let name = &cluster.host.name;
    let roots = [format!("/sys/fs/cgroup/{controller}/{name}"), format!("/sys/fs/cgroup/{name}")];
    let files = roots.map(|root| format!("{root}/kubepods/{file}"));
    files.into_iter().find(|file| std::path::Path::new(file).exists())
}

#[test]
fn process_ids_run_out_for_those_who_take_them() {
    let cluster = Cluster::up_after(|host| {
        let config = format!("{}/node.yaml", host.directory().display());
        let text =
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodPidsLimit: 40\n";
        std::fs::write(&config, text).unwrap();
        vec!["--node-config".to_owned(), config]
    });
    let host = &cluster.host;
    let daemon = cluster.daemon();
    let bomb = "(while :; do sleep 100002 & done); exec sleep 100001";
    cluster.apply(&[pod("bomb", bomb), pod("calm", "exec sleep 100003")]);
    cluster.until_all(&["pods"], "Ready", |pods| pods.len() == 2 && pods.values().all(is_ready));
    host.must_sh(&format!(
        "timeout 120 sh -c 'until {} logs bomb | grep -q fork; do sleep 0.2; done'",
        testbed::kubectl().unwrap().display()
    ));
    // Nothing more is started in there, which is told and hangs nobody; beside it all is as ever.
    assert_ne!(host.kubectl(&["exec", "bomb", "--request-timeout=60s", "--", "true"]).unwrap().code, 0);
    assert_eq!(host.must_kubectl(&["exec", "calm", "--", "echo", "here"]), "here\n");
    host.must_kubectl(&["delete", "pod", "bomb", "--timeout=120s"]);
    assert_eq!(cluster.processes_with("sleep 100002"), Vec::<u32>::new());

    // For all pods of the node.
    let limit = pods_group(&cluster, "pids", "pids.max").expect("a group of all pods");
    let current = limit.replace("pids.max", "pids.current");
    host.must_sh(&format!("cat {current} > {limit}"));
    cluster.apply(&[pod("late", "exec sleep 100004")]);
    let late = cluster.until(&["pod", "late"], "not started", |pod| {
        !container(pod)["state"]["waiting"]["message"].is_null()
    });
    assert_eq!(restarts(&cluster.get(&["pod", "calm"])), 0, "{late}");
    host.must_sh(&format!("echo max > {limit}"));
    cluster.until(&["pod", "late"], "Ready", is_ready);
    assert_eq!(cluster.daemon(), daemon);
    cluster.purge();
}

#[test]
fn memory_runs_out_for_those_who_take_it() {
    let cluster = Cluster::up();
    let host = &cluster.host;
    let daemon = cluster.daemon();
    let limited = |name: &str, script: &str| {
        let mut pod = pod(name, script);
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
        pod
    };
    cluster.apply(&[limited("hungry", "exec tail /dev/zero"), limited("calm", "exec sleep 100003")]);
    let hungry = cluster.until(&["pod", "hungry"], "killed twice", |pod| restarts(pod) >= 2);
    assert_eq!(container(&hungry)["lastState"]["terminated"]["reason"], "OOMKilled", "{hungry}");
    host.must_kubectl(&["delete", "pod", "hungry", "--timeout=120s"]);

    // All pods of the node together: who takes it goes, and neither the others nor what is no pod.
    let limit = ["memory.limit_in_bytes", "memory.max"];
    let limit =
        limit.iter().find_map(|file| pods_group(&cluster, "memory", file)).expect("a group of all pods");
    let old = std::fs::read_to_string(&limit).unwrap();
    // Its own limit is for the machine's sake, should the other not hold.
    let mut greedy = pod("greedy", "until [ -e /tmp/go ]; do sleep 0.1; done; exec tail /dev/zero");
    greedy["spec"]["restartPolicy"] = json!("Never");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "512Mi"}});
    cluster.apply(&[greedy]);
    cluster.until(&["pod", "greedy"], "Ready", is_ready);
    // What the node gives all pods is set when one comes: from here on none does.
    host.must_sh(&format!("echo 64M > {limit}"));
    host.must_kubectl(&["exec", "greedy", "--", "touch", "/tmp/go"]);
    let greedy = cluster.until(&["pod", "greedy"], "killed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(container(&greedy)["state"]["terminated"]["exitCode"], 137, "{greedy}");
    host.must_sh(&format!("echo {} > {limit}", old.trim()));
    let calm = cluster.get(&["pod", "calm"]);
    assert!(is_ready(&calm) && restarts(&calm) == 0, "{calm}");
    assert_eq!(cluster.daemon(), daemon);
    cluster.purge();
}
