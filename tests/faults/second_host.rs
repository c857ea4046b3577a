//! A second host joins over HTTPS; a Service, logs and exec across both; its agent is killed; it goes away.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use testbed::{Host, Testbed};

/// A web server that says that it began, and answers with its pod's name.
const SERVER: &str = "echo began; mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w";
/// A pod on a given node that refers to one Secret.
const KEEPER: &str = r#"{"spec": {"nodeName": "NODE", "containers": [{
    "name": "keeper", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
    "env": [{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "ours", "key": "word"}}}]
}]}}"#;

/// Two hosts of one cluster, with a Deployment over both.
struct Pair {
    bed: Testbed,
    first: Host,
    second: Host,
    links: [String; 2],
}

impl Pair {
    fn new() -> Self {
        let bed = Testbed::new().unwrap();
        let (first, second) = (bed.host().unwrap(), bed.host().unwrap());
        let links = [&first, &second].map(links_of);
        first.must_skiff(&["up"]);
        strangers_stay_out(&first, &second);
        let command = first.must_skiff(&["token", "create", "--ttl", "1h"]);
        let words: Vec<&str> = command.split_ascii_whitespace().skip(1).collect();
        let joined = second.skiff(&words).unwrap();
        let log = format!("/var/lib/{}/skiff.log", second.name);
        assert_eq!(joined.code, 0, "{}\n{}", joined.err, second.must_sh(&format!("tail -n 50 {log}")));
        first.must_kubectl(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=120s"]);
        let requests = first.must_kubectl(&["get", "csr", "--no-headers"]);
        assert_eq!(
            requests.matches("Approved,Issued").count(),
            2,
            "client and serving certificate: {requests}"
        );
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        for host in [&first, &second] {
            host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
        }
        let pair = Self { bed, first, second, links };
        let web =
            ["create", "deployment", "web", "--image=busybox", "--replicas=4", "--", "sh", "-c", SERVER];
        pair.kubectl(&web);
        pair.kubectl(&["expose", "deployment", "web", "--port=80"]);
        pair.kubectl(&["rollout", "status", "deployment", "web", "--timeout=180s"]);
        pair
    }

    fn kubectl(&self, args: &[&str]) -> String {
        self.first.must_kubectl(args)
    }

    /// The names of the web pods on a host.
    fn pods(&self, host: &Host) -> BTreeSet<String> {
        let on = format!("--field-selector=spec.nodeName={}", host.name);
        let names =
            self.kubectl(&["get", "pods", "-l", "app=web", &on, "-o", "jsonpath={.items[*].metadata.name}"]);
        names.split_ascii_whitespace().map(str::to_owned).collect()
    }

    fn pod(&self, host: &Host) -> String {
        self.pods(host).into_iter().next().unwrap_or_else(|| panic!("no pod on {}", host.name))
    }

    /// Every container with its restarts.
    fn containers(&self) -> String {
        let each = "{range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{'\\n'}{end}";
        self.kubectl(&["get", "pods", "--sort-by=.metadata.name", "-o", &format!("jsonpath={each}")])
    }

    /// Watches objects until one of them is as it should be.
    fn watch_until(&self, what: &[&str], is_so: impl Fn(&serde_json::Value) -> bool) {
        let mut command = self.first.command("timeout");
        command.arg("120").arg(testbed::kubectl().unwrap()).arg("get").args(what).args(["-w", "-o", "json"]);
        let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
        let said = serde_json::Deserializer::from_reader(watch.stdout.take().unwrap()).into_iter();
        let mut objects = said.map(|object: Result<serde_json::Value, _>| object.unwrap());
        let seen = objects.any(|object| is_so(&object));
        end(watch);
        assert!(seen, "{what:?} did not become what they should within 120 s");
    }

    /// Who answers forty requests to the Service by its name, made in a pod.
    fn answers(&self, pod: &str) -> BTreeSet<String> {
        let many = "for i in $(seq 40); do timeout 120 wget -qO- http://web/ || exit 1; done";
        let seen = self.kubectl(&["exec", pod, "--", "sh", "-c", many]);
        seen.lines().map(str::to_owned).collect()
    }

    fn services_reach_across(&self) {
        let [here, there] = [&self.first, &self.second].map(|host| self.pods(host));
        assert!(!here.is_empty() && !there.is_empty(), "{here:?} and {there:?}: not spread");
        for pod in [self.pod(&self.first), self.pod(&self.second)] {
            let seen = self.answers(&pod);
            assert!(!seen.is_disjoint(&here) && !seen.is_disjoint(&there), "{pod} saw {seen:?}");
        }
        let ip = self.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
        for host in [&self.first, &self.second] {
            let seen = host.must_sh(&format!(
                "for i in $(seq 40); do curl -sf --max-time 120 http://{ip}/ || exit 1; done | sort -u"
            ));
            let seen: BTreeSet<String> = seen.lines().map(str::to_owned).collect();
            assert!(!seen.is_disjoint(&here) && !seen.is_disjoint(&there), "{} saw {seen:?}", host.name);
        }
    }

    fn streams_reach_across(&self) {
        let pod = self.pod(&self.second);
        assert_eq!(self.kubectl(&["logs", &pod]), "began\n");
        assert_eq!(self.kubectl(&["exec", &pod, "--", "cat", "/w/index.html"]).trim(), pod);
        let failed = self.first.kubectl(&["exec", &pod, "--", "sh", "-c", "exit 7"]).unwrap();
        assert_eq!(failed.code, 7, "{failed:?}");
        let source = self.first.directory().join("large");
        std::fs::write(&source, vec![b'x'; 3 << 20]).unwrap();
        self.kubectl(&["cp", &source.to_string_lossy(), &format!("{pod}:/tmp/large")]);
        assert_eq!(self.kubectl(&["exec", &pod, "--", "sh", "-c", "wc -c < /tmp/large"]).trim(), "3145728");
        let mut command =
            self.first.kubectl_command(&["port-forward", &format!("pod/{pod}"), ":80"]).unwrap();
        let mut forward = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        // Held to the end: kubectl goes on writing, and a closed pipe would end it.
        let mut said = BufReader::new(forward.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let port = line.split(" -> ").next().and_then(|from| from.rsplit(':').next()).unwrap().to_owned();
        let answer = self.first.sh(&format!("curl -sf --max-time 120 http://127.0.0.1:{port}/"));
        end(forward);
        assert_eq!(answer.unwrap().ok().unwrap().trim(), pod, "{line}");
    }

    /// Who shows nothing, or too little, gets nothing of the node's server; the administrator does.
    fn node_server_is_closed(&self) {
        let port = "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}";
        let port = self.kubectl(&["get", "node", &self.second.name, "-o", port]);
        let keys = crate::support::admin_keys(&self.first);
        let (name, address) = (&self.second.name, &self.second.address);
        let ask = |path: &str, more: &str| {
            self.first.must_sh(&format!(
                "curl -s -o /dev/null -w '%{{http_code}}' --max-time 120 --cacert {keys}/ca --resolve \
                 {name}:{port}:{address} {more} https://{name}:{port}{path}"
            ))
        };
        let exec = format!("/exec/default/{}/busybox?command=id", self.pod(&self.second));
        let token = self.kubectl(&["create", "token", "default"]);
        let token = format!("-H 'Authorization: Bearer {}'", token.trim());
        let node = format!("--cert /var/lib/{name}/join/client.pem");
        for path in ["/pods", "/healthz", "/metrics", &exec] {
            assert_eq!(ask(path, ""), "401", "{path} without credentials");
            assert_eq!(ask(path, "-H 'Authorization: Bearer nonsense'"), "401", "{path} with a wrong token");
            assert_eq!(ask(path, &token), "403", "{path} with a service account's token");
            // The file is the second host's own: it asks itself.
            let own = self.second.must_sh(&format!(
                "curl -s -o /dev/null -w '%{{http_code}}' --max-time 120 -k {node} https://{address}:{port}{path}"
            ));
            assert_eq!(own, "403", "{path} with a node's certificate");
        }
        assert_eq!(ask("/pods", &format!("--cert {keys}/cert --key {keys}/key")), "200");
    }

    /// The second node sees and changes what is its own, and what its pods refer to.
    fn node_keeps_to_its_own(&self) {
        self.kubectl(&["create", "secret", "generic", "ours", "--from-literal=word=open"]);
        self.kubectl(&["create", "secret", "generic", "theirs", "--from-literal=word=closed"]);
        let before = self.as_node("GET", "/api/v1/namespaces/default/secrets/ours", "");
        assert_eq!(before, "403", "no pod of the node refers to it yet");
        let keeper = KEEPER.replace("NODE", &self.second.name);
        self.kubectl(&["run", "keeper", "--image=busybox", "--overrides", &keeper]);
        self.kubectl(&["wait", "pod", "keeper", "--for=condition=Ready", "--timeout=120s"]);
        assert_eq!(self.kubectl(&["exec", "keeper", "--", "sh", "-c", "echo $WORD"]).trim(), "open");

        let (own, other) = (&self.second.name, &self.first.name);
        let label = r#"{"metadata": {"labels": {"touched": "yes"}}}"#;
        for (method, path, body, wanted) in [
            ("GET", "/api/v1/namespaces/default/secrets/ours".to_owned(), "", "200"),
            ("GET", "/api/v1/namespaces/default/secrets/theirs".to_owned(), "", "403"),
            ("GET", "/api/v1/secrets".to_owned(), "", "403"),
            ("GET", "/api/v1/namespaces/default/secrets".to_owned(), "", "403"),
            ("GET", "/api/v1/pods".to_owned(), "", "403"),
            ("GET", format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{own}"), "", "200"),
            ("GET", format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{other}"), "", "403"),
            ("PATCH", format!("/api/v1/nodes/{own}"), label, "200"),
            ("PATCH", format!("/api/v1/nodes/{other}"), label, "403"),
            (
                "PATCH",
                format!("/api/v1/namespaces/default/pods/{}/status", self.pod(&self.first)),
                label,
                "403",
            ),
            ("DELETE", format!("/api/v1/namespaces/default/pods/{}", self.pod(&self.first)), "", "403"),
            ("GET", "/apis/apps/v1/deployments".to_owned(), "", "403"),
        ] {
            assert_eq!(self.as_node(method, &path, body), wanted, "{method} {path}");
        }
        self.kubectl(&["delete", "pod", "keeper", "--grace-period=1"]);
    }

    /// The status code of a request to the API server with the second node's certificate.
    fn as_node(&self, method: &str, path: &str, body: &str) -> String {
        let api = state(&self.first)["api"].as_str().unwrap().to_owned();
        let join = format!("/var/lib/{}/join", self.second.name);
        let body = match body {
            "" => String::new(),
            body => format!("-H 'Content-Type: application/merge-patch+json' -d '{body}'"),
        };
        self.second.must_sh(&format!(
            "curl -s -o /dev/null -w '%{{http_code}}' --max-time 120 --cacert {join}/ca.crt --cert {join}/client.pem \
             -X {method} {body} '{api}{path}'"
        ))
    }

    fn killed_agent_leaves_pods_alone(&self) {
        let containers = self.containers();
        let there = self.pod(&self.second);
        let ip = self.kubectl(&["get", "pod", &there, "-o", "jsonpath={.status.podIP}"]);
        kill(&self.second);
        let answer = self.first.must_sh(&format!("curl -sf --max-time 120 http://{ip}/"));
        assert_eq!(answer.trim(), there, "the pod serves while its agent is away");
        self.second.must_skiff(&["up"]);
        assert_eq!(self.containers(), containers, "the agent took its pods back as they were");
        assert_eq!(self.kubectl(&["exec", &there, "--", "cat", "/w/index.html"]).trim(), there);
    }

    fn lost_host_is_not_ready(&self) {
        let name = &self.second.name;
        let lost = self.pods(&self.second);
        kill(&self.second);
        self.kubectl(&["wait", "node", name, "--for=condition=Ready=Unknown", "--timeout=240s"]);
        for pod in &lost {
            self.kubectl(&["wait", "pod", pod, "--for=condition=Ready=False", "--timeout=120s"]);
        }
        let label = "kubernetes.io/service-name=web";
        self.watch_until(&["endpointslices", "-l", label], |slice| {
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            let mut ready =
                endpoints.map(|endpoint| (&endpoint["nodeName"], &endpoint["conditions"]["ready"]));
            ready.all(|(node, ready)| *ready == (*node == *self.first.name))
        });
        let kept = self.answers(&self.pod(&self.first));
        assert!(kept.is_subset(&self.pods(&self.first)), "{kept:?}: the lost pods are asked still");
        self.second.must_skiff(&["up"]);
        self.kubectl(&["wait", "node", name, "--for=condition=Ready", "--timeout=120s"]);
        for pod in &lost {
            self.kubectl(&["wait", "pod", pod, "--for=condition=Ready", "--timeout=120s"]);
        }
    }

    /// The second host's address changes while its agent runs: routes, Node and streams follow.
    fn moved_host_is_followed(&mut self) {
        let containers = self.containers();
        self.second.change_address("198.18.0.88").unwrap();
        let shown = format!("--for=jsonpath={{.status.addresses[0].address}}={}", self.second.address);
        self.kubectl(&["wait", "node", &self.second.name, &shown, "--timeout=240s"]);
        let pod = self.pod(&self.second);
        let ip = self.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"]);
        // The first host's route to it is set by the same news.
        let reach =
            format!("curl -sf --max-time 120 --retry 60 --retry-delay 1 --retry-all-errors http://{ip}/");
        assert_eq!(self.first.must_sh(&reach).trim(), pod);
        self.services_reach_across();
        self.streams_reach_across();
        assert_eq!(self.containers(), containers, "pods go on as they were");
    }

    /// The first host's address changes while the second one's agent runs, and again while it is away: the server tells
    /// it, and what the agent does and writes goes to the new address.
    fn moved_server_is_followed(&mut self) {
        let containers = self.containers();
        for (address, away) in [("198.18.0.90", false), ("198.18.0.91", true)] {
            if away {
                kill(&self.second);
            }
            self.first.change_address(address).unwrap();
            let loopback = state(&self.first)["api"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
            let server = format!("--server=https://127.0.0.1:{loopback}");
            let shown = format!("--for=jsonpath={{.status.addresses[0].address}}={address}");
            self.kubectl(&[&server, "wait", "node", &self.first.name, &shown, "--timeout=120s"]);
            if away {
                self.second.must_skiff(&["up"]);
            }
            // It takes a pod, and reports it.
            let (name, keeper) = (&format!("keeper-{away}"), KEEPER.replace("NODE", &self.second.name));
            self.kubectl(&["run", name, "--image=busybox", "--overrides", &keeper]);
            self.kubectl(&["wait", "pod", name, "--for=condition=Ready", "--timeout=180s"]);
            let url = format!("https://{address}:{loopback}");
            assert_eq!(state(&self.second)["api"], url);
            assert!(self.second.must_skiff(&["kubeconfig"]).contains(&url));
            self.kubectl(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=120s"]);
            self.kubectl(&["delete", "pod", name, "--grace-period=1"]);
        }
        // A host that cannot be told is led there.
        let command = self.first.must_skiff(&["token", "create"]);
        let words: Vec<&str> = command.split_ascii_whitespace().skip(1).collect();
        kill(&self.second);
        let other = format!("sha256:{}", "0".repeat(64));
        let refused = self.second.skiff(&["join", words[1], "--token", words[3], words[4], &other]).unwrap();
        assert!(refused.code == 1 && refused.err.contains("a node of another cluster"), "{refused:?}");
        self.second.must_skiff(&words);
        self.services_reach_across();
        self.streams_reach_across();
        assert_eq!(self.containers(), containers, "pods go on as they were");
    }

    fn purge_leaves_nothing(self) {
        assert_eq!(self.bed.leaked_packets().unwrap(), 0);
        for (host, links) in [(&self.second, &self.links[1]), (&self.first, &self.links[0])] {
            host.must_skiff(&["down", "--purge"]);
            assert_eq!(host.processes().unwrap(), Vec::<String>::new());
            assert_eq!(links_of(host), *links);
            assert_eq!(host.must_sh("nft list tables"), "");
            assert_eq!(host.must_sh("ip route"), "default via 198.18.0.1 dev eth0 \n198.18.0.0/24 dev eth0 proto kernel scope link src ADDRESS \n".replace("ADDRESS", &host.address));
            assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
        }
    }
}

#[test]
fn a_second_host_joins_works_is_lost_and_leaves() {
    let mut pair = Pair::new();
    pair.services_reach_across();
    pair.streams_reach_across();
    pair.node_server_is_closed();
    pair.node_keeps_to_its_own();
    pair.killed_agent_leaves_pods_alone();
    pair.moved_host_is_followed();
    pair.moved_server_is_followed();
    pair.lost_host_is_not_ready();
    pair.services_reach_across();
    pair.purge_leaves_nothing();
}

/// Neither a wrong authority nor a wrong token lets a host in.
fn strangers_stay_out(first: &Host, second: &Host) {
    let command = first.must_skiff(&["token", "create"]);
    let words: Vec<&str> = command.split_ascii_whitespace().skip(1).collect();
    let (token, hash) = (words[3], words[5]);
    let other_hash = format!("sha256:{}", "0".repeat(64));
    let other_token = "abcdef.0123456789abcdef";
    for (token, hash, says) in [(token, other_hash.as_str(), "hash"), (other_token, hash, "token")] {
        let args = ["join", words[1], "--token", token, "--discovery-token-ca-cert-hash", hash];
        let refused = second.skiff(&args).unwrap();
        assert!(refused.code == 1 && refused.err.contains(says), "{refused:?}");
    }
    let id = token.split('.').next().unwrap();
    first.must_skiff(&["token", "delete", id]);
    let gone = ["join", words[1], "--token", token, "--discovery-token-ca-cert-hash", hash];
    assert_eq!(second.skiff(&gone).unwrap().code, 1);
    assert_eq!(second.processes().unwrap(), Vec::<String>::new());
}

/// Ends a command on a host: the child of `nsenter`, which then ends by itself.
fn end(mut command: Child) {
    let pid = command.id();
    let inner = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let _ = Command::new("kill").args(inner.split_ascii_whitespace()).status();
    let _ = command.wait();
}

/// The names of a host's links.
fn links_of(host: &Host) -> String {
    host.must_sh("ip -o link | cut -d : -f 2")
}

/// What the instance says of itself.
fn state(host: &Host) -> serde_json::Value {
    serde_json::from_str(&host.must_skiff(&["status", "-o", "json"])).unwrap()
}

/// `kill -9` of the daemon.
fn kill(host: &Host) {
    let daemon = state(host)["pid"].to_string();
    host.must_sh(&format!("kill -9 {daemon} && tail --pid {daemon} -f /dev/null"));
}
