//! A user's first minutes on a host of its own: start, image, Deployment, Service, removal without a trace.

use testbed::{Host, Testbed};

/// A web server that answers with its pod's name.
const SERVER: &str = "mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w";

#[test]
fn from_an_image_to_a_balanced_service_and_no_trace_after() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let before = host.traces().unwrap();

    let summary = host.must_skiff(&["up"]);
    assert!(summary.contains(&format!("({})", host.address)), "{summary}");
    assert!(host.must_skiff(&["up"]).contains("already running"));
    assert_eq!(host.skiff(&["up", "--api-port", "7777"]).unwrap().code, 1);

    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
    assert_eq!(host.must_skiff(&["run", "--rm", "busybox", "echo", "hello"]), "hello\n");
    assert_eq!(host.skiff(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]).unwrap().code, 7);

    host.must_kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=busybox",
        "--replicas=2",
        "--",
        "sh",
        "-c",
        SERVER,
    ]);
    host.must_kubectl(&["expose", "deployment", "web", "--port", "80", "--type", "LoadBalancer"]);
    host.must_kubectl(&["rollout", "status", "deployment", "web", "--timeout=180s"]);
    host.must_kubectl(&[
        "wait",
        "service",
        "web",
        "--for=jsonpath={.status.loadBalancer.ingress[0].ip}",
        "--timeout=180s",
    ]);
    let address =
        host.must_kubectl(&["get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"]);
    let answer = host
        .sh(&format!(
            "curl -s --max-time 60 --retry 60 --retry-delay 1 --retry-connrefused http://{address}/"
        ))
        .unwrap()
        .ok()
        .unwrap();
    assert!(answer.starts_with("web-"), "{answer}");

    let pods = host.must_kubectl(&["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]);
    let pod = pods.split(' ').next().unwrap();
    let seen = host.must_kubectl(&["exec", pod, "--", "cat", "/w/index.html"]);
    assert_eq!(seen.trim(), pod);
    let by_name = host.must_kubectl(&["exec", pod, "--", "wget", "-qO-", "http://web/"]);
    assert!(by_name.starts_with("web-"), "{by_name}");
    reached_through_the_api_server(&host, pod);

    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down", "--purge"]);
    host.must_be_as(&before);
}

/// A pod, its Service and the node's own server answer through the API server, which also tells what they use.
fn reached_through_the_api_server(host: &Host, pod: &str) {
    let raw = |path: &str| host.must_kubectl(&["get", "--raw", path]);
    assert_eq!(raw(&format!("/api/v1/namespaces/default/pods/{pod}:80/proxy/")).trim(), pod);
    assert!(raw("/api/v1/namespaces/default/services/web:80/proxy/").starts_with("web-"));
    let node = host.must_kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(raw(&format!("/api/v1/nodes/{node}/proxy/healthz")), "ok");
    assert!(raw(&format!("/api/v1/nodes/{node}/proxy/logs/")).contains("<pre>"));
    assert!(host.must_kubectl(&["top", "node"]).contains(&node));
    assert!(host.must_kubectl(&["top", "pod", "--containers"]).contains(pod));
    let service = host.must_kubectl(&["get", "apiservice", "v1beta1.metrics.k8s.io"]);
    assert!(service.contains("Local") && service.contains("True"), "{service}");
}
