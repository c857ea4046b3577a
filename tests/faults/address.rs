//! The host's address changes, while Skiff runs and while it is stopped.

use testbed::{Host, Testbed};

/// A web server that answers with its pod's name.
const SERVER: &str = "mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w";

#[test]
fn a_changed_address_is_followed_while_running_and_while_stopped() {
    let bed = Testbed::new().unwrap();
    let mut host = bed.host().unwrap();
    let client = bed.host().unwrap();
    host.must_skiff(&["up"]);
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
    let create = ["create", "deployment", "web", "--image=busybox", "--replicas=2", "--", "sh", "-c", SERVER];
    host.must_kubectl(&create);
    host.must_kubectl(&["expose", "deployment", "web", "--port=80", "--type=NodePort"]);
    host.must_kubectl(&["rollout", "status", "deployment", "web", "--timeout=120s"]);
    let containers = containers(&host);
    let first = host.address.clone();
    all_ways_lead_to(&host, &client);

    host.change_address("198.18.0.77").unwrap();
    // The loopback address stays in the certificate. The Node's address comes last.
    let server = format!("--server=https://127.0.0.1:{}", api_port(&host));
    let shown = format!("--for=jsonpath={{.status.addresses[0].address}}={}", host.address);
    host.must_kubectl(&[&server, "wait", "node", &host.name, &shown, "--timeout=120s"]);
    all_ways_lead_to(&host, &client);
    assert!(!certificate(&host, api_port(&host)).contains(&first), "the old address is certified still");
    assert_eq!(self::containers(&host), containers, "pods go on as they were");

    let daemon = state(&host)["pid"].to_string();
    host.must_sh(&format!("kill {daemon} && tail --pid {daemon} -f /dev/null"));
    host.change_address("198.18.0.78").unwrap();
    host.must_skiff(&["up"]);
    all_ways_lead_to(&host, &client);
    assert_eq!(self::containers(&host), containers, "pods go on as they were");

    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down", "--purge"]);
}

/// Kubeconfigs, certificates, endpoints, the Node and Services: all of them know the host's present address.
fn all_ways_lead_to(host: &Host, client: &Host) {
    let (address, port) = (&host.address, api_port(host));
    let url = format!("https://{address}:{port}");
    let get = |args: &[&str]| host.must_kubectl(args);
    assert_eq!(state(host)["api"], *url);
    assert_eq!(get(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]), url);
    assert!(host.must_skiff(&["kubeconfig"]).contains(&url));
    let own = format!("--kubeconfig=/var/lib/{}/kubeconfig", host.name);
    get(&[&own, "wait", "node", &host.name, "--for=condition=Ready", "--timeout=60s"]);
    let shown = get(&[
        "get",
        "node",
        &host.name,
        "-o",
        "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}",
    ]);
    assert_eq!(shown, *address);
    let endpoints = get(&["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}"]);
    assert_eq!(endpoints, *address);
    let slice = get(&["get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}"]);
    assert_eq!(slice, *address);
    let node_port =
        get(&["get", "node", &host.name, "-o", "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}"]);
    for port in [port, node_port.parse().unwrap()] {
        assert!(certificate(host, port).contains(address), "port {port} shows another certificate");
    }
    let pod = get(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    get(&["exec", &pod, "--", "sh", "-c", "nc -w 120 kubernetes.default 443 < /dev/null"]);
    assert!(get(&["exec", &pod, "--", "timeout", "120", "wget", "-qO-", "http://web/"]).starts_with("web-"));
    let published = get(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let answer = client.must_sh(&format!(
        "curl -s --max-time 120 --retry 60 --retry-delay 1 --retry-connrefused http://{address}:{published}/"
    ));
    assert!(answer.starts_with("web-"), "{answer}");
}

/// The addresses and names in the certificate that is shown at a port of the host.
fn certificate(host: &Host, port: u16) -> String {
    host.must_sh(&format!(
        "openssl s_client -connect {}:{port} < /dev/null 2> /dev/null | openssl x509 -noout -ext subjectAltName",
        host.address
    ))
}

/// What the instance says of itself.
fn state(host: &Host) -> serde_json::Value {
    serde_json::from_str(&host.must_skiff(&["status", "-o", "json"])).unwrap()
}

fn api_port(host: &Host) -> u16 {
    let state = state(host);
    state["api"].as_str().and_then(|url| url.rsplit(':').next()).unwrap().parse().unwrap()
}

/// Every container with its restarts.
fn containers(host: &Host) -> String {
    let path =
        "jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{'\\n'}{end}";
    host.must_kubectl(&["get", "pods", "-A", "--sort-by=.metadata.name", "-o", path])
}
