//! An operator in Go on controller-runtime (`pages/`): elected, with caches that are filled by streamed lists, in protobuf.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::{Site, client, file};

/// Longer than the election's lease, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(180);

/// The operator while it runs, and what it tells.
struct Operator {
    process: Child,
    told: Receiver<String>,
}

impl Operator {
    fn start(site: &Site, identity: &str) -> Self {
        let mut command = site.host.command(&client("pages/pages").to_string_lossy());
        let mut process = command.args(["-identity", identity]).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = tell.send(line);
            }
        });
        Self { process, told }
    }

    /// Reads on until each of the lines was told, in whatever order.
    #[track_caller]
    fn tells(&self, lines: &[&str]) {
        let mut missing = lines.to_vec();
        while !missing.is_empty() {
            let line = self.told.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{error}: not told: {missing:?}"));
            missing.retain(|wanted| **wanted != *line);
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        testbed::end(&mut self.process);
    }
}

#[test]
fn an_elected_operator_reconciles_in_protobuf() {
    let site = Site::up();
    let kubectl = |args: &[&str]| site.host.must_kubectl(args);
    kubectl(&["apply", "-f", &file("pages/pages.yaml")]);
    kubectl(&["wait", "crd/pages.web.example.com", "--for=condition=Established", "--timeout=60s"]);
    let mut first = Operator::start(&site, "first");
    first.tells(&[
        "created in leases with protobuf, answered as application/vnd.kubernetes.protobuf: 201",
        "first leads",
        "streamed list of pages as application/json: 200",
        "streamed list of deployments as application/vnd.kubernetes.protobuf;stream=watch: 200",
        "streamed list of services as application/vnd.kubernetes.protobuf;stream=watch: 200",
    ]);
    let second = Operator::start(&site, "second");

    let page = site.host.directory().join("page.yaml");
    let page = page.to_string_lossy();
    let yaml = "apiVersion: web.example.com/v1\nkind: Page\nmetadata: {name: p}\nspec: {text: hello}\n";
    std::fs::write(&*page, yaml).unwrap();
    kubectl(&["apply", "-f", &page]);
    let ready = |generation: u32| {
        let seen = format!("--for=jsonpath={{.status.observedGeneration}}={generation}");
        kubectl(&["wait", "page/p", &seen, "--timeout=180s"]);
        kubectl(&["wait", "page/p", "--for=condition=Ready", "--timeout=180s"]);
    };
    ready(1);
    first.tells(&[
        "created in deployments with protobuf, answered as application/vnd.kubernetes.protobuf: 201",
    ]);
    assert_eq!(kubectl(&["exec", "deploy/p", "--", "wget", "-qO-", "localhost:8080"]), "hello\n");
    let owners =
        ["get", "deploy,svc", "p", "-o", "jsonpath={.items[*].metadata.ownerReferences[*].controller}"];
    assert_eq!(kubectl(&owners), "true true");
    assert!(kubectl(&["events", "--for", "page/p"]).contains("deployment created"));

    // Who ends in order gives its Lease back: the other one leads at once, and goes on with what is there.
    testbed::end(&mut first.process);
    first.tells(&["ended in order"]);
    second.tells(&["second leads"]);
    kubectl(&["scale", "page/p", "--replicas=2"]);
    ready(2);
    assert_eq!(kubectl(&["get", "deploy", "p", "-o", "jsonpath={.status.readyReplicas}"]), "2");
    // What it owns comes back.
    kubectl(&["delete", "service", "p"]);
    kubectl(&["wait", "service/p", "--for=create", "--timeout=180s"]);

    kubectl(&["delete", "page", "p", "--timeout=120s"]);
    assert_eq!(kubectl(&["get", "configmap", "p-gone", "-o", "jsonpath={.data.text}"]), "hello");
    kubectl(&["wait", "deployment/p", "service/p", "--for=delete", "--timeout=120s"]);
    drop(second);
    site.end();
}
