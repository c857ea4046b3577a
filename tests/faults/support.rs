//! A cluster on a testbed host of its own, and waiting for what its API says by watches.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Held, Host, Ran, Testbed, end};

/// Nothing here takes so long, however slow the machine: a wait that reaches it has failed.
const WAIT_MAX: Duration = Duration::from_secs(180);

/// A web server that answers with its pod's name.
pub(crate) const SERVER: &str = "mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w";

/// A host with a running cluster and the busybox image.
pub(crate) struct Cluster {
    pub(crate) bed: Testbed,
    pub(crate) host: Host,
    /// What the host had before.
    before: BTreeMap<&'static str, String>,
}

impl Cluster {
    /// Starts one.
    pub(crate) fn up() -> Self {
        Self::up_after(|_| Vec::new())
    }

    /// Starts one on a host that something was done to, which gives further arguments.
    pub(crate) fn up_after(prepare: impl FnOnce(&Host) -> Vec<String>) -> Self {
        let bed = Testbed::new().unwrap();
        let host = bed.host().unwrap();
        let more = prepare(&host);
        let before = host.traces().unwrap();
        let arguments: Vec<&str> = ["up"].into_iter().chain(more.iter().map(String::as_str)).collect();
        host.must_skiff(&arguments);
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
        host.must_kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=120s"]);
        Self { bed, host, before }
    }

    /// An object, or a list of them.
    #[track_caller]
    pub(crate) fn get(&self, args: &[&str]) -> Value {
        let text = self.host.must_kubectl(&[&["get", "-o", "json"], args].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// The items of a list.
    #[track_caller]
    pub(crate) fn list(&self, args: &[&str]) -> Vec<Value> {
        self.get(args)["items"].as_array().cloned().unwrap()
    }

    /// Runs kubectl with something on its standard input.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> Ran {
        let mut command = self.host.kubectl_command(args).unwrap();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Who does not read to the end says why.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap().into()
    }

    /// Applies objects that have to be accepted.
    #[track_caller]
    pub(crate) fn apply(&self, objects: &[Value]) {
        let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
        let ran = self.kubectl_with(&["apply", "-f", "-"], &documents.join("\n---\n"));
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Watches one object until it is as wanted; gives it as it is then.
    #[track_caller]
    pub(crate) fn until(&self, args: &[&str], what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        let objects = self.until_all(args, what, |objects| objects.values().next().is_some_and(&mut holds));
        objects.into_values().next().unwrap()
    }

    /// As [`Cluster::until`]; does something once the watch has begun, so that what follows from it is seen, however
    /// short it lasts.
    #[track_caller]
    pub(crate) fn until_after(
        &self,
        args: &[&str],
        act: impl FnOnce(),
        what: &str,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut act = Some(act);
        self.until(args, what, |object| match act.take() {
            Some(act) => {
                act();
                false
            }
            None => holds(object),
        })
    }

    /// Watches objects until all of them together are as wanted; gives them by name.
    #[track_caller]
    pub(crate) fn until_all(
        &self,
        args: &[&str],
        what: &str,
        mut holds: impl FnMut(&BTreeMap<String, Value>) -> bool,
    ) -> BTreeMap<String, Value> {
        let deadline = Instant::now() + WAIT_MAX;
        let mut objects = BTreeMap::new();
        // A watch ends with the daemon, or when the server has had enough of it: the next one lists anew.
        while Instant::now() < deadline {
            objects.clear();
            let limit = deadline.saturating_duration_since(Instant::now()).as_secs().max(1).to_string();
            let kubectl = testbed::kubectl().unwrap();
            let mut command = self.host.command("timeout");
            command.args([&limit, &*kubectl.to_string_lossy()]);
            command.args(["get", "-o", "json", "--watch", "--output-watch-events"]).args(args);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let events = serde_json::Deserializer::from_reader(child.stdout.take().unwrap());
            let mut held = false;
            for event in events.into_iter::<Value>().map_while(Result::ok) {
                let object = event["object"].clone();
                let name = text(&object["metadata"]["name"]);
                match event["type"].as_str() {
                    Some("DELETED") => drop(objects.remove(&name)),
                    _ => drop(objects.insert(name, object)),
                }
                held = holds(&objects);
                if held {
                    break;
                }
            }
            end(&mut child);
            if held {
                return objects;
            }
        }
        for object in objects.values_mut() {
            object["metadata"]["managedFields"] = Value::Null;
        }
        panic!("{args:?}: {what}: not so after {} s: {objects:?}", WAIT_MAX.as_secs());
    }

    /// Returns when there are none of these objects any more.
    #[track_caller]
    pub(crate) fn until_gone(&self, args: &[&str]) {
        let deadline = Instant::now() + WAIT_MAX;
        while let [first, ..] = &*self.list(args) {
            let (name, namespace) = (text(&first["metadata"]["name"]), text(&first["metadata"]["namespace"]));
            assert!(Instant::now() < deadline, "{args:?}: not gone after {} s: {first}", WAIT_MAX.as_secs());
            // Each is waited for; a watch that ends with the daemon is begun anew.
            let wait = ["wait", args[0], &name, "-n", &namespace, "--for=delete", "--timeout=60s"];
            self.host.kubectl(&wait).unwrap();
        }
    }

    /// The pods of a Deployment made by [`deployment`], once as many as wanted are Ready and no other is left.
    #[track_caller]
    pub(crate) fn ready_pods(&self, app: &str, count: usize) -> BTreeMap<String, Value> {
        self.until_all(&["pods", "-l", &format!("app={app}")], "Ready pods", |pods| {
            pods.len() == count && pods.values().all(is_ready)
        })
    }

    /// What the instance holds without a pod, when what is made with the first one is there.
    #[track_caller]
    pub(crate) fn held_at_rest(&self) -> Held {
        self.apply(&[pod("first", "exec sleep 100000")]);
        self.until(&["pod", "first"], "Ready", is_ready);
        self.host.must_kubectl(&["delete", "pod", "first", "--timeout=120s"]);
        Held::on(&self.host)
    }

    /// The daemon's process, as the host numbers it.
    pub(crate) fn daemon(&self) -> String {
        self.host.must_sh(&format!("cat /var/lib/{}/lock", self.host.name)).trim().to_owned()
    }

    /// Kills the daemon.
    pub(crate) fn kill_daemon(&self) {
        let daemon = self.daemon();
        self.host.must_sh(&format!("kill -9 {daemon}; tail --pid {daemon} -f /dev/null"));
    }

    /// Where the instance keeps its data, as this process sees it.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.host.directory().join("data")
    }

    /// Removes the cluster and shows that nothing of it is left.
    #[track_caller]
    pub(crate) fn purge(&self) {
        self.host.must_skiff(&["down", "--purge"]);
        self.assert_nothing_left();
        assert_eq!(self.bed.leaked_packets().unwrap(), 0, "{}", self.bed.leaks().unwrap());
    }

    /// No process, mount, namespace, cgroup, table, link, route, changed parameter or file of Skiff's.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        self.host.must_be_as(&self.before);
    }

    /// The administrator's keys as files `ca`, `cert` and `key`; gives their directory, and the API server.
    pub(crate) fn keys(&self) -> (String, String) {
        (admin_keys(&self.host), config_field(&self.host, "{.clusters[0].cluster.server}"))
    }

    /// What answers at an address, within some seconds; panics if nothing does.
    #[track_caller]
    pub(crate) fn fetch(&self, url: &str) -> String {
        let fetch = format!("curl -sf --max-time 60 --retry 60 --retry-delay 1 --retry-all-errors {url}");
        self.host.must_sh(&fetch).trim().to_owned()
    }

    /// The cluster address of a Service.
    pub(crate) fn address_of(&self, service: &str) -> String {
        text(&self.get(&["service", service])["spec"]["clusterIP"])
    }

    /// The processes on the host whose command line contains `mark`, as the host numbers them.
    pub(crate) fn processes_with(&self, mark: &str) -> Vec<u32> {
        let all = self.host.processes().unwrap();
        let of_it = all.iter().filter(|line| line.contains(mark));
        of_it.map(|line| line.split_ascii_whitespace().next().unwrap().parse().unwrap()).collect()
    }
}

fn config_field(host: &Host, path: &str) -> String {
    host.must_kubectl(&["config", "view", "--raw", "--minify", "-o", &format!("jsonpath={path}")])
}

/// The administrator's keys as files `ca`, `cert` and `key`; gives their directory.
pub(crate) fn admin_keys(host: &Host) -> String {
    let directory = host.directory().join("keys").to_string_lossy().into_owned();
    for (file, field) in [
        ("ca", "{.clusters[0].cluster.certificate-authority-data}"),
        ("cert", "{.users[0].user.client-certificate-data}"),
        ("key", "{.users[0].user.client-key-data}"),
    ] {
        let data = config_field(host, field);
        host.must_sh(&format!(
            "umask 077; mkdir -p {directory}; echo {data} | base64 -d > {directory}/{file}"
        ));
    }
    directory
}

/// A string of an object; empty where there is none.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Whether a pod lives and is Ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready") == "True"
}

/// The value of a condition.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|known| known["type"] == kind)
        .map(|known| text(&known["status"]))
        .next()
        .unwrap_or_default()
}

/// The status of a pod's only container.
pub(crate) fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// How often a pod's only container was restarted.
pub(crate) fn restarts(pod: &Value) -> u64 {
    container(pod)["restartCount"].as_u64().unwrap_or(0)
}

/// Containers of pods: (pod's uid, container) to (id, restarts), those that run.
pub(crate) fn running_containers(pods: &[Value]) -> BTreeMap<(String, String), (String, u64)> {
    let mut found = BTreeMap::new();
    for pod in pods {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            if !status["state"]["running"].is_null() {
                let key = (text(&pod["metadata"]["uid"]), text(&status["name"]));
                let run = (text(&status["containerID"]), status["restartCount"].as_u64().unwrap_or(0));
                found.insert(key, run);
            }
        }
    }
    found
}

/// A pod of one container.
pub(crate) fn pod(name: &str, script: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(script)})
}

/// A Deployment of such pods with the label `app`.
pub(crate) fn deployment(name: &str, replicas: u32, script: &str) -> Value {
    serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(script)}}})
}

/// A Service in front of a Deployment.
pub(crate) fn service(name: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}})
}

fn pod_spec(script: &str) -> Value {
    serde_json::json!({"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "busybox", "command": ["sh", "-c", script]}]})
}

/// Numbers for the moments of faults (xorshift), from `FAULTS_SEED` where it is set.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = std::env::var("FAULTS_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or(now.as_secs() ^ u64::from(now.subsec_nanos())).max(1);
        eprintln!("FAULTS_SEED={seed}");
        Self(seed)
    }

    /// A number below a limit.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
        }
        self.0 % limit
    }
}
