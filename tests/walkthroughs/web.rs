//! A web server under test, shared by walkthroughs: nginx in two versions behind a Service, and what happens to it.
//!
//! The server takes SIGTERM as an order to stop at once, with whatever connections it has: the hard case.

use std::net::SocketAddr;

use testbed::Host;

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

/// Ends the daemon without warning, and waits until it is gone.
const KILL: &str = r#"pid=$(sed -n 's/^ *"pid": \([0-9]*\),$/\1/p' /run/$SKIFF_NAME/instance.json)
kill -9 $pid && tail --pid=$pid -f /dev/null"#;

/// Builds `web:v1` and `web:v2`, which differ in what they answer, and starts three pods of the first behind a Service.
pub(crate) fn deploy(host: &Host) {
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
    let manifest = host.directory().join("web.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    host.must_kubectl(&["apply", "-f", &manifest.to_string_lossy()]);
    rolled_out(host);
}

/// Waits until every pod is the newest template's.
pub(crate) fn rolled_out(host: &Host) {
    host.must_kubectl(&["rollout", "status", "deployment", "web", "--timeout=300s"]);
}

/// Begins an update to another version.
pub(crate) fn set_version(host: &Host, version: &str) {
    host.must_kubectl(&["set", "image", "deployment/web", &format!("web=web:{version}")]);
}

/// Sets the number of pods, and waits for it.
pub(crate) fn scaled(host: &Host, replicas: &str) {
    host.must_kubectl(&["scale", "deployment", "web", "--replicas", replicas]);
    rolled_out(host);
    let wanted = format!("jsonpath={{.status.replicas}}={replicas}");
    host.must_kubectl(&["wait", "deployment", "web", "--for", &wanted, "--timeout=300s"]);
}

/// Waits until the pods that were told to end are gone.
pub(crate) fn quiet(host: &Host) {
    let ending = "jsonpath={.items[?(@.metadata.deletionTimestamp)].metadata.name}";
    let names = host.must_kubectl(&["get", "pods", "-o", ending]);
    for name in names.split_whitespace() {
        host.must_kubectl(&["wait", "pod", name, "--for=delete", "--timeout=300s"]);
    }
}

fn field(host: &Host, path: &str) -> String {
    host.must_kubectl(&["get", "service", "web", "-o", &format!("jsonpath={{{path}}}")])
}

/// The Service's cluster address and its balancer's.
pub(crate) fn targets(host: &Host) -> Vec<SocketAddr> {
    let balancer = ".status.loadBalancer.ingress[0].ip";
    host.must_kubectl(&[
        "wait",
        "service",
        "web",
        &format!("--for=jsonpath={{{balancer}}}"),
        "--timeout=180s",
    ]);
    [".spec.clusterIP", balancer].map(|path| format!("{}:80", field(host, path)).parse().unwrap()).into()
}

/// Kills the daemon without warning and starts it again.
pub(crate) fn kill_and_restart(host: &Host) {
    host.must_sh(KILL);
    host.must_skiff(&["up"]);
}
