//! An operator that somebody wrote on kopf, and its users with `kubectl`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use testbed::Host;

use crate::{Site, client, file};

/// The operator while it runs.
struct Operator(Child);

impl Operator {
    fn start(host: &Host) -> Self {
        // kopf asks who this host is: answered here, and not by the machine's resolver.
        host.must_sh(
            "(cat /etc/hosts; echo 127.0.0.1 $(hostname)) > /run/hosts; mount --bind /run/hosts /etc/hosts",
        );
        let mut command: Command = host.command(&client("python/bin/python3").to_string_lossy());
        command.args(["-m", "kopf", "run", "--all-namespaces", "--standalone", &file("python/greetings.py")]);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        // Read to the end, so that it never waits for its log.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Self(process)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        testbed::end(&mut self.0);
    }
}

#[test]
fn an_operator_keeps_what_its_users_ask_for() {
    let site = Site::up();
    let kubectl = |args: &[&str]| site.host.must_kubectl(args);
    kubectl(&["apply", "-f", &file("python/greetings.yaml")]);
    kubectl(&["wait", "crd/greetings.example.com", "--for=condition=Established", "--timeout=60s"]);
    let operator = Operator::start(&site.host);

    let apply = |spec: &str| {
        let object = format!(
            r#"{{"apiVersion":"example.com/v1","kind":"Greeting","metadata":{{"name":"g"}},"spec":{spec}}}"#
        );
        site.host
            .sh(&format!("echo '{object}' | {} apply -f -", testbed::kubectl().unwrap().display()))
            .unwrap()
    };
    let refused = apply(r#"{"text":"far too long for a short greeting"}"#);
    assert!(refused.code == 1 && refused.err.contains("spec.text: Too long"), "{refused:?}");
    apply(r#"{"text":"hello"}"#).ok().unwrap();
    kubectl(&["wait", "gr/g", "--for=jsonpath={.status.said}=hello hello", "--timeout=180s"]);
    let table = kubectl(&["get", "greetings"]);
    assert!(table.contains("SAID") && table.contains("hello hello"), "{table}");
    assert_eq!(kubectl(&["get", "configmap", "g", "-o", "jsonpath={.data.said}"]), "hello hello");
    apply(r#"{"text":"bye","times":1}"#).ok().unwrap();
    kubectl(&["wait", "gr/g", "--for=jsonpath={.status.said}=bye", "--timeout=180s"]);
    assert_eq!(kubectl(&["get", "configmap", "g", "-o", "jsonpath={.data.said}"]), "bye");
    assert!(kubectl(&["explain", "greeting.spec"]).contains("times"));

    // Its finalizer holds the object until it has cleaned up; then the collector takes what it owned.
    kubectl(&["delete", "greeting", "g", "--timeout=120s"]);
    kubectl(&["get", "configmap", "g-gone"]);
    kubectl(&["wait", "configmap/g", "--for=delete", "--timeout=120s"]);
    drop(operator);
    kubectl(&["delete", "crd", "greetings.example.com", "--timeout=120s"]);
    // Asked past kubectl's own memory of what is served.
    let gone = site.host.kubectl(&["get", "--raw", "/apis/example.com/v1/greetings"]).unwrap();
    assert!(gone.code == 1 && gone.err.contains("could not find the requested resource"), "{gone:?}");
    site.end();
}
