//! `kill -9` of the daemon at random moments under load.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Cluster, Random, SERVER, deployment, running_containers, service, text};

const ROUNDS: u32 = 20;

/// Writes ConfigMaps over HTTPS as fast as it can: each is created with version 1, replaced, patched and, every third
/// one, deleted. Says before each write what it tries and after it the answer's status.
const HTTP_WRITER: &str = r#"
me=$1; dir=$2; server=$3
url=$server/api/v1/namespaces/default/configmaps
send() {
    echo "try $1 $2"
    curl -s -o /dev/null -w '%{http_code}\n' --max-time 60 --cert $dir/cert --key $dir/key --cacert $dir/ca \
        -X $3 -H "Content-Type: $4" --data "$5" $url$6 > $dir/code-$me
    code=$(cat $dir/code-$me)
    echo "$code $1 $2"
    # As any client, it does not ask a server that is away without a pause.
    [ $code != 000 ] || sleep 0.05
}
n=0
while :; do
    n=$((n + 1)); name=$me-$n
    map() { echo "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"$name\"},\"data\":{\"v\":\"$1\"}}"; }
    send configmap/$name 1 POST application/json "$(map 1)" ""
    send configmap/$name 2 PUT application/json "$(map 2)" /$name
    send configmap/$name 3 PATCH application/merge-patch+json '{"data":{"v":"3"}}' /$name
    [ $((n % 3)) != 0 ] || send configmap/$name 4 DELETE application/json '{}' /$name
done
"#;

/// Scales a Deployment with kubectl; an annotation says which write it was.
const SCALER: &str = r#"
kubectl=$1; n=0
while :; do
    n=$((n + 1))
    patch="{\"metadata\":{\"annotations\":{\"v\":\"$n\"}},\"spec\":{\"replicas\":$((n % 4))}}"
    echo "try deployment/churn $n"
    if $kubectl patch deployment churn --type merge -p "$patch" > /dev/null 2>&1; then code=200; else code=000; fi
    echo "$code deployment/churn $n"
done
"#;

/// Versions of an object: of a write that was acknowledged, and of the last that was tried.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    acknowledged: u32,
    tried: u32,
}

type Writes = Arc<Mutex<BTreeMap<String, Written>>>;

/// Programs that write, and what is known of their writes.
struct Load {
    writes: Writes,
    /// One message per acknowledged write.
    acknowledged: Receiver<()>,
    writers: Vec<(Child, JoinHandle<()>)>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (dir, server) = cluster.keys();
        let kubectl = testbed::kubectl().unwrap().to_string_lossy().into_owned();
        let (sender, acknowledged) = channel();
        let mut load = Self { writes: Writes::default(), acknowledged, writers: Vec::new() };
        for name in ["a", "b"] {
            load.writer(cluster, HTTP_WRITER, &[name, &dir, &server], &sender);
        }
        load.writer(cluster, SCALER, &[&kubectl], &sender);
        load
    }

    fn writer(&mut self, cluster: &Cluster, script: &str, args: &[&str], acknowledged: &Sender<()>) {
        let mut command = cluster.host.command("sh");
        command.args(["-c", script, "writer"]).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (writes, acknowledged) = (self.writes.clone(), acknowledged.clone());
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let fields: Vec<&str> = line.split(' ').collect();
                let [what, name, version] = fields[..] else { panic!("{line}") };
                let version = version.parse().unwrap();
                let mut writes = writes.lock().unwrap();
                let written = writes.entry(name.to_owned()).or_default();
                match what {
                    "try" => written.tried = version,
                    _ if what.starts_with('2') => {
                        written.acknowledged = version;
                        // Nobody listens at the end.
                        let _ = acknowledged.send(());
                    }
                    // The server was away, or this follows a write that failed.
                    "000" | "404" => {}
                    _ => panic!("unexpected answer: {line}"),
                }
            }
        });
        self.writers.push((child, reader));
    }

    fn written(&self) -> BTreeMap<String, Written> {
        self.writes.lock().unwrap().clone()
    }

    /// Returns after so many acknowledged writes and some time more.
    fn pass(&self, writes: u64, more: Duration) {
        while self.acknowledged.try_recv().is_ok() {}
        for _ in 0..writes {
            self.acknowledged.recv_timeout(Duration::from_secs(120)).expect("the writers get on");
        }
        let end = Instant::now() + more;
        while self.acknowledged.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
    }

    fn stop(&mut self) {
        for (mut child, reader) in self.writers.drain(..) {
            testbed::end(&mut child);
            reader.join().expect("every answer was understood");
        }
    }
}

/// Every acknowledged write is there, with its content or that of a later write that was tried.
fn check_writes(cluster: &Cluster, load: &Load) {
    let before = load.written();
    let configmaps = cluster.list(&["configmaps"]);
    let churn = cluster.get(&["deployment", "churn"]);
    let after = load.written();
    let version = |value: &Value| text(value).parse::<u32>().unwrap_or(0);
    let mut seen: BTreeMap<String, u32> = configmaps
        .iter()
        .map(|map| (format!("configmap/{}", text(&map["metadata"]["name"])), version(&map["data"]["v"])))
        .collect();
    let scaled = version(&churn["metadata"]["annotations"]["v"]);
    assert!(scaled == 0 || churn["spec"]["replicas"] == scaled % 4, "half a write: {churn}");
    seen.insert("deployment/churn".to_owned(), scaled);
    for (name, written) in before {
        let tried = after[&name].tried;
        match seen.get(&name) {
            Some(version) => assert!(
                (written.acknowledged..=tried).contains(version),
                "{name} has version {version}: {written:?}, tried {tried}"
            ),
            None => assert!(
                written.acknowledged == 0 || (tried == 4 && name.starts_with("configmap/")),
                "{name} is lost: {written:?}"
            ),
        }
        let deleted = name.starts_with("configmap/") && written.acknowledged == 4;
        assert!(!(deleted && seen.contains_key(&name)), "{name} is back after its deletion");
    }
}

/// No container that ran before has another id or more restarts, unless its pod is gone.
fn check_containers(cluster: &Cluster, before: &BTreeMap<(String, String), (String, u64)>) {
    let pods = cluster.list(&["pods"]);
    let alive = |uid: &str| {
        pods.iter().any(|pod| pod["metadata"]["uid"] == uid && pod["metadata"]["deletionTimestamp"].is_null())
    };
    let now = running_containers(&pods);
    for (key, run) in before {
        assert!(
            !alive(&key.0) || now.get(key) == Some(run),
            "{key:?}: {run:?} became {:?}: {pods:#?}",
            now.get(key)
        );
    }
}

/// Starts the daemon again and, in some rounds, kills it while it starts.
fn restart(cluster: &Cluster, random: &mut Random) -> Duration {
    if random.below(4) == 0 {
        let mut up = cluster.host.skiff_command(&["up"]).unwrap();
        let mut up = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let killed =
            format!("sleep 0.{:03}; kill -9 $(cat /var/lib/{}/lock)", random.below(300), cluster.host.name);
        // It may not have started yet, and is then killed by nobody.
        let _ = cluster.host.sh(&killed);
        let _ = up.wait();
    }
    let begun = Instant::now();
    cluster.host.must_skiff(&["up"]);
    begun.elapsed()
}

#[test]
fn twenty_kills_under_load_lose_nothing_and_restart_nothing() {
    let cluster = Cluster::up();
    cluster.apply(&[deployment("web", 2, SERVER), service("web"), deployment("churn", 1, "sleep 100000")]);
    let web = cluster.ready_pods("web", 2).into_values().collect::<Vec<_>>();
    let steady = running_containers(&web);
    let processes: BTreeSet<u32> = cluster.processes_with("httpd -f").into_iter().collect();
    assert_eq!((steady.len(), processes.len()), (2, 2));
    let url = format!("http://{}/", cluster.address_of("web"));
    cluster.fetch(&url);

    let mut random = Random::new();
    let mut load = Load::start(&cluster);
    let mut slowest = Duration::ZERO;
    for round in 1..=ROUNDS {
        load.pass(1 + random.below(20), Duration::from_millis(random.below(150)));
        let mut running = running_containers(&cluster.list(&["pods"]));
        running.extend(steady.clone());
        cluster.kill_daemon();
        let answer = cluster.host.must_sh(&format!("curl -sf --max-time 120 {url}"));
        assert!(answer.starts_with("web-"), "without the daemon: {answer:?}");

        let took = restart(&cluster, &mut random);
        slowest = slowest.max(took);
        eprintln!("round {round}: up again after {} ms", took.as_millis());
        check_writes(&cluster, &load);
        check_containers(&cluster, &running);
        assert_eq!(cluster.processes_with("httpd -f").into_iter().collect::<BTreeSet<_>>(), processes);
        assert!(cluster.fetch(&url).starts_with("web-"));
    }
    load.stop();
    check_writes(&cluster, &load);
    let acknowledged = load.written().values().filter(|written| written.acknowledged > 0).count();
    eprintln!("{acknowledged} objects were written; the slowest start took {} ms", slowest.as_millis());
    cluster.apply(&[deployment("churn", 3, "sleep 100000")]);
    cluster.ready_pods("churn", 3);
    assert_eq!(running_containers(&cluster.ready_pods("web", 2).into_values().collect::<Vec<_>>()), steady);
    cluster.purge();
}
