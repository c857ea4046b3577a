//! A user's first minutes on a host of its own: start, image, Deployment, Service, removal without a trace. Needs root,
//! `scripts/setup` and `scripts/base-image busybox`.

use testbed::{Host, Testbed};

/// A web server that answers with its pod's name.
const SERVER: &str = "mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w";

fn kubectl(host: &Host, args: &[&str]) -> String {
    host.kubectl(args).unwrap().ok().unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
}

fn skiff(host: &Host, args: &[&str]) -> String {
    host.skiff(args).unwrap().ok().unwrap_or_else(|error| panic!("skiff {args:?}: {error}"))
}

#[test]
fn from_an_image_to_a_balanced_service_and_no_trace_after() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let links = host.sh("ip -br link").unwrap().ok().unwrap();

    let summary = skiff(&host, &["up"]);
    assert!(summary.contains(&format!("({})", host.address)), "{summary}");
    assert!(skiff(&host, &["up"]).contains("already running"));
    assert_eq!(host.skiff(&["up", "--api-port", "7777"]).unwrap().code, 1);

    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    skiff(&host, &["load", "-i", &archive.to_string_lossy()]);
    assert_eq!(skiff(&host, &["run", "--rm", "busybox", "echo", "hello"]), "hello\n");
    assert_eq!(host.skiff(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]).unwrap().code, 7);

    kubectl(
        &host,
        &["create", "deployment", "web", "--image=busybox", "--replicas=2", "--", "sh", "-c", SERVER],
    );
    kubectl(&host, &["expose", "deployment", "web", "--port", "80", "--type", "LoadBalancer"]);
    kubectl(&host, &["rollout", "status", "deployment", "web", "--timeout=60s"]);
    kubectl(
        &host,
        &["wait", "service", "web", "--for=jsonpath={.status.loadBalancer.ingress[0].ip}", "--timeout=60s"],
    );
    let address =
        kubectl(&host, &["get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"]);
    let answer = host
        .sh(&format!("curl -s --max-time 5 --retry 5 --retry-connrefused http://{address}/"))
        .unwrap()
        .ok()
        .unwrap();
    assert!(answer.starts_with("web-"), "{answer}");

    let pods = kubectl(&host, &["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]);
    let pod = pods.split(' ').next().unwrap();
    let seen = kubectl(&host, &["exec", pod, "--", "cat", "/w/index.html"]);
    assert_eq!(seen.trim(), pod);
    let by_name = kubectl(&host, &["exec", pod, "--", "wget", "-qO-", "http://web/"]);
    assert!(by_name.starts_with("web-"), "{by_name}");

    assert_eq!(bed.leaked_packets().unwrap(), 0);
    skiff(&host, &["down", "--purge"]);
    assert_eq!(host.processes().unwrap(), Vec::<String>::new());
    assert_eq!(host.sh("ip -br link").unwrap().ok().unwrap(), links);
    assert_eq!(host.sh("nft list tables").unwrap().ok().unwrap(), "");
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}
