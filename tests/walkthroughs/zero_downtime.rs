//! Updates, rollbacks and scaling under load: no request fails, and no manifest sleeps for it.
//!
//! The server is nginx, which takes SIGTERM as an order to stop at once, with whatever connections it has. The load
//! comes from the host itself, to the cluster address and to the balancer's, and from another machine to a node port.

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Host, Load, LoadConfig, LoadReport, Testbed};

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:v1
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, nodePort: 30080}]
";

/// Builds `web:v1` and `web:v2`, which differ in what they answer.
fn images(host: &Host) {
    let archive = testbed::base_image("nginx-bookworm.tar").unwrap();
    host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
    let context = host.directory().join("web");
    std::fs::create_dir_all(&context).unwrap();
    for version in ["v1", "v2"] {
        // nginx's own image asks for SIGQUIT, which lets requests end; its plain default does not.
        let dockerfile = format!(
            "FROM nginx:stable\nSTOPSIGNAL SIGTERM\nRUN echo {version} >/usr/share/nginx/html/index.html\n"
        );
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        host.must_skiff(&["build", "-t", &format!("web:{version}"), &context.to_string_lossy()]);
    }
}

fn rolled_out(host: &Host) {
    host.must_kubectl(&["rollout", "status", "deployment", "web", "--timeout=300s"]);
}

fn scaled(host: &Host, replicas: &str) {
    host.must_kubectl(&["scale", "deployment", "web", "--replicas", replicas]);
    rolled_out(host);
    let wanted = format!("jsonpath={{.status.replicas}}={replicas}");
    host.must_kubectl(&["wait", "deployment", "web", "--for", &wanted, "--timeout=300s"]);
}

fn field(host: &Host, path: &str) -> String {
    host.must_kubectl(&["get", "service", "web", "-o", &format!("jsonpath={{{path}}}")])
}

fn targets(host: &Host) -> Vec<SocketAddr> {
    let balancer = ".status.loadBalancer.ingress[0].ip";
    host.must_kubectl(&[
        "wait",
        "service",
        "web",
        &format!("--for=jsonpath={{{balancer}}}"),
        "--timeout=60s",
    ]);
    [".spec.clusterIP", balancer].map(|path| format!("{}:80", field(host, path)).parse().unwrap()).into()
}

/// Everything that happens to a Deployment in its life.
fn life(host: &Host, load: &Load) {
    load.more(300);
    host.must_kubectl(&["set", "image", "deployment/web", "web=web:v2"]);
    rolled_out(host);
    load.more(300);
    host.must_kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(host);
    load.more(300);
    scaled(host, "1");
    load.more(300);
    host.must_kubectl(&["rollout", "restart", "deployment/web"]);
    rolled_out(host);
    scaled(host, "4");
    load.more(300);
}

fn nothing_failed(report: &LoadReport, wanted_rate: f64) {
    println!("{report}");
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.kept > 0, "{report}");
    for version in ["v1", "v2"] {
        assert!(report.answers.contains_key(version), "{version} did not answer: {report}");
    }
    // It is no measurement: a machine that is busy with other things may fall behind.
    assert!(report.rate() > wanted_rate / 2.0, "too few requests: {report}");
}

#[test]
fn no_request_fails_while_a_deployment_is_updated_rolled_back_and_scaled() {
    let bed = Testbed::new().unwrap();
    let (host, outside) = (bed.host().unwrap(), bed.host().unwrap());
    host.must_skiff(&["up"]);
    images(&host);
    let manifest = host.directory().join("web.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    host.must_kubectl(&["apply", "-f", &manifest.to_string_lossy()]);
    rolled_out(&host);

    let pause = Duration::from_millis(50);
    let inside = LoadConfig { targets: targets(&host), per_second: 250, kept: 50, pause };
    let node_port = format!("{}:30080", host.address).parse().unwrap();
    let remote = LoadConfig { targets: vec![node_port], per_second: 50, kept: 10, pause };
    let (inside, remote) = (Load::start(&host, inside).unwrap(), Load::start(&outside, remote).unwrap());
    life(&host, &inside);
    let (inside, remote) = (inside.stop(), remote.stop());
    nothing_failed(&inside, 250.0);
    nothing_failed(&remote, 50.0);

    assert_eq!(bed.leaked_packets().unwrap(), 0);
    host.must_skiff(&["down", "--purge"]);
}
