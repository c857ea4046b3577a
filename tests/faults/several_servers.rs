//! Two servers over one etcd: one leads, and when it is killed the other one does.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;
use testbed::{Host, Testbed, end};

const SERVING: &str = "echo began; exec sleep 3600";

/// etcd on a host of its own. Ends when dropped.
struct Etcd {
    process: Child,
    host: Host,
}

impl Etcd {
    fn start(bed: &Testbed) -> Self {
        let host = bed.host().unwrap();
        let (url, peer) = (format!("http://{}:2379", host.address), "http://127.0.0.1:2380");
        let data = host.directory().join("etcd");
        let mut command = host.command("etcd");
        command
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .args(["--logger", "zap", "--log-outputs", "stderr"]);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(
            log.any(|line| line.contains("serving") && line.contains("client")),
            "etcd (etcd-server) ended"
        );
        // Read to the end, so that etcd never waits for its log.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, host }
    }

    fn url(&self) -> String {
        format!("http://{}:2379", self.host.address)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Watches one object until it is as it should be; gives it then.
#[track_caller]
fn until(host: &Host, what: &[&str], is_so: impl Fn(&Value) -> bool) -> Value {
    let mut command = host.command("timeout");
    command.arg("180").arg(testbed::kubectl().unwrap()).arg("get").args(what).args(["-w", "-o", "json"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let said = serde_json::Deserializer::from_reader(watch.stdout.take().unwrap()).into_iter();
    let found = said.map_while(Result::ok).find(|object| is_so(object));
    end(&mut watch);
    found.unwrap_or_else(|| panic!("{what:?} did not become what they should within 180 s"))
}

fn up(host: &Host, etcd: &Etcd) -> testbed::Ran {
    host.skiff(&["up", "--store", "etcd", "--etcd-servers", &etcd.url()]).unwrap()
}

#[track_caller]
fn must_up(host: &Host, etcd: &Etcd) {
    let ran = up(host, etcd);
    let log = || host.must_sh(&format!("tail -n 60 /var/lib/{}/skiff.log", host.name));
    assert_eq!(ran.code, 0, "{ran:?}\n{}", log());
}

/// Waits until the API server's own Service has exactly these hosts behind it.
fn until_endpoints(host: &Host, servers: &[&Host]) {
    let mut wanted: Vec<&str> = servers.iter().map(|server| server.address.as_str()).collect();
    wanted.sort_unstable();
    until(host, &["endpoints", "kubernetes"], |endpoints| {
        let addresses = endpoints["subsets"][0]["addresses"].as_array().into_iter().flatten();
        let mut addresses: Vec<&str> = addresses.filter_map(|address| address["ip"].as_str()).collect();
        addresses.sort_unstable();
        addresses == wanted
    });
}

/// Waits until the lease is held by a server on one of these hosts; gives which.
fn leader<'a>(host: &Host, lease: &str, among: &[&'a Host]) -> &'a Host {
    let on = |lease: &Value| {
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        among.iter().find(|host| holder.starts_with(&format!("{}_", host.name))).copied()
    };
    let held = until(host, &["lease", lease, "-n", "kube-system"], |lease| on(lease).is_some());
    on(&held).unwrap()
}

#[test]
fn another_server_takes_over() {
    let bed = Testbed::new().unwrap();
    let etcd = Etcd::start(&bed);
    let (one, two) = (bed.host().unwrap(), bed.host().unwrap());
    must_up(&one, &etcd);
    // Servers sign with the same keys.
    let refused = up(&two, &etcd);
    assert!(refused.code != 0 && refused.err.contains("copy ca.crt, ca.key and sa.key"), "{refused:?}");
    let keys = two.directory().join("data/pki");
    std::fs::create_dir_all(&keys).unwrap();
    for file in ["ca.crt", "ca.key", "sa.key"] {
        std::fs::copy(one.directory().join("data/pki").join(file), keys.join(file)).unwrap();
    }
    must_up(&two, &etcd);
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    for host in [&one, &two] {
        host.must_kubectl(&["wait", "node", &one.name, &two.name, "--for=condition=Ready", "--timeout=120s"]);
        host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
        until_endpoints(host, &[&one, &two]);
    }
    let ranges = one.must_kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    let ranges: Vec<&str> = ranges.split_ascii_whitespace().collect();
    assert!(ranges.len() == 2 && ranges[0] != ranges[1], "{ranges:?}");

    // What is written through one server is seen through the other, and pods of both reach each other's logs.
    one.must_kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=busybox",
        "--replicas=4",
        "--",
        "sh",
        "-c",
        SERVING,
    ]);
    two.must_kubectl(&["rollout", "status", "deployment", "web", "--timeout=180s"]);
    let pods =
        two.must_kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"]);
    for pod in pods.split_ascii_whitespace() {
        for host in [&one, &two] {
            assert_eq!(host.must_kubectl(&["logs", pod]), "began\n", "through {}", host.name);
        }
    }

    let both = [&one, &two];
    let led = leader(&one, "kube-controller-manager", &both);
    leader(&one, "kube-scheduler", &both);
    let other = if led.name == one.name { &two } else { &one };
    let pinned = serde_json::json!({ "spec": { "template": { "spec": {
        "nodeSelector": { "kubernetes.io/hostname": other.name },
    } } } });
    other.must_kubectl(&["create", "deployment", "after", "--image=busybox", "--", "sh", "-c", SERVING]);
    other.must_kubectl(&["patch", "deployment", "after", "-p", &pinned.to_string()]);
    other.must_kubectl(&["rollout", "status", "deployment", "after", "--timeout=180s"]);

    let daemon = led.must_sh(&format!("cat /var/lib/{}/lock", led.name));
    led.must_sh(&format!("kill -9 {0}; tail --pid {0} -f /dev/null", daemon.trim()));
    other.must_kubectl(&["scale", "deployment", "after", "--replicas=3"]);
    other.must_kubectl(&["rollout", "status", "deployment", "after", "--timeout=180s"]);
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        assert_eq!(leader(other, lease, &[other]).name, other.name);
    }
    until_endpoints(other, &[other]);

    // The one that was killed comes back as it was, and stands by.
    must_up(led, &etcd);
    until_endpoints(led, &both);
    led.must_kubectl(&["wait", "node", &led.name, "--for=condition=Ready", "--timeout=180s"]);
    assert_eq!(leader(led, "kube-controller-manager", &both).name, other.name);
    led.must_kubectl(&["scale", "deployment", "after", "--replicas=1"]);
    led.must_kubectl(&["rollout", "status", "deployment", "after", "--timeout=180s"]);
    for host in both {
        host.must_skiff(&["down", "--purge"]);
        assert_eq!(host.processes().unwrap(), Vec::<String>::new());
    }
    assert_eq!(bed.leaked_packets().unwrap(), 0, "packets left the hosts");
}
