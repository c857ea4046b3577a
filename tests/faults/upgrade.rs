//! An upgrade: another binary takes the place of the running one, and the pods do not notice.

use std::path::Path;

use serde_json::Value;

use crate::support::{Cluster, SERVER, deployment, running_containers, service, text};

#[test]
fn another_binary_takes_the_pods_over_as_they_run() {
    let mut cluster = Cluster::up();
    // What runs is a copy that the test may replace.
    let directory = cluster.host.directory().join("bin");
    std::fs::create_dir(&directory).unwrap();
    let installed = directory.join("skiff");
    install(&installed);
    restart_with(&mut cluster, &installed);
    cluster.apply(&[deployment("web", 2, SERVER), service("web")]);
    let pods = cluster.ready_pods("web", 2);
    cluster.host.must_skiff(&["run", "-d", "busybox", "sleep", "100002"]);
    let before = Running::of(&cluster);
    assert_eq!((before.servers.len(), before.sleepers.len(), before.shims.len()), (2, 1, 3), "{before:?}");

    let old = cluster.daemon();
    install(&installed);
    let gone = cluster.host.must_sh(&format!("readlink /proc/{old}/exe"));
    assert!(gone.contains("(deleted)"), "the old binary is gone while it runs: {gone}");
    restart_with(&mut cluster, &installed);
    assert_ne!(cluster.daemon(), old);
    let runs = cluster.host.must_sh(&format!("readlink /proc/{}/exe", cluster.daemon()));
    assert_eq!(Path::new(runs.trim()), installed);

    let after = cluster.ready_pods("web", 2);
    assert_eq!(after.keys().collect::<Vec<_>>(), pods.keys().collect::<Vec<_>>());
    assert_eq!(Running::of(&cluster), before);
    let name = pods.keys().next().unwrap();
    assert!(cluster.fetch(&format!("http://{}/", cluster.address_of("web"))).starts_with("web-"));
    assert_eq!(cluster.host.must_kubectl(&["exec", name, "--", "cat", "/w/index.html"]).trim(), name);
    // And the new one rules them.
    cluster.host.must_kubectl(&["delete", "pod", name]);
    let replaced = cluster.ready_pods("web", 2);
    assert!(!replaced.contains_key(name));
    cluster.purge();
}

/// Puts a copy of the program in its place, at once, as a package manager does.
fn install(path: &Path) {
    let beside = path.with_extension("new");
    std::fs::copy(testbed::skiff_binary().unwrap(), &beside).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// Ends the daemon as an init system does, and starts the program at `path`.
fn restart_with(cluster: &mut Cluster, path: &Path) {
    let daemon = cluster.daemon();
    cluster.host.must_sh(&format!("kill {daemon}; tail --pid {daemon} -f /dev/null"));
    cluster.host.must_sh(&format!("{} up > /dev/null", path.display()));
}

/// What runs: the processes of pods, of a container of its own, and their shims; and what the API says of the pods.
#[derive(Debug, PartialEq)]
struct Running {
    servers: Vec<u32>,
    sleepers: Vec<u32>,
    shims: Vec<u32>,
    containers: Vec<(String, u64)>,
}

impl Running {
    fn of(cluster: &Cluster) -> Self {
        let sorted = |mark: &str| {
            let mut found = cluster.processes_with(mark);
            found.sort_unstable();
            found
        };
        let pods: Vec<Value> = cluster.list(&["pods"]);
        assert!(pods.iter().all(|pod| text(&pod["status"]["phase"]) == "Running"));
        Self {
            servers: sorted("httpd -f"),
            sleepers: sorted("sleep 100002"),
            shims: sorted("skiff-shim-"),
            containers: running_containers(&pods).into_values().collect(),
        }
    }
}
