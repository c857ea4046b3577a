//! Ports of the host that lead to pods and containers, and node ports: from this host by every address, from another
//! machine, over a restart of the daemon, and what is said where a port is taken.

use testbed::{Host, Testbed};

use crate::web;

const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, 'mkdir /w; echo pod > /w/index.html; exec httpd -f -p 80 -h /w']
    ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 80, hostPort: 8081, hostIP: 127.0.0.1}]
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  type: NodePort
  selector: {app: nobody}
  ports: [{port: 80, nodePort: 30082}]
---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: late
    image: busybox
    imagePullPolicy: Never
    command: [sleep, '3600']
    ports: [{containerPort: 80, hostPort: 7070}]
";

/// What answers at a URL; an empty answer where the connection is refused.
fn fetch(host: &Host, url: &str) -> String {
    let ran = host.sh(&format!("curl -sS --max-time 60 http://{url}/")).unwrap();
    // 7: no connection was made.
    assert!(matches!(ran.code, 0 | 7), "{url}: {ran:?}");
    ran.out.trim().to_owned()
}

#[test]
fn ports_of_the_host_lead_to_pods_and_containers() {
    let bed = Testbed::new().unwrap();
    let (host, outside) = (bed.host().unwrap(), bed.host().unwrap());
    host.must_skiff(&["up"]);
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
    // A program of the host has the port that the second pod wants.
    let busy = host.must_sh("busybox httpd -f -p 7070 -h / >/dev/null 2>&1 & echo $!");
    let manifest = host.directory().join("ports.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    host.must_kubectl(&["apply", "-f", &manifest.to_string_lossy()]);
    host.must_kubectl(&["wait", "pod", "web", "--for=condition=Ready", "--timeout=120s"]);
    let endpoint = "--for=jsonpath={.endpoints[0].conditions.ready}=true";
    let of_web = "-l=kubernetes.io/service-name=web";
    host.must_kubectl(&["wait", "endpointslice", of_web, endpoint, "--timeout=120s"]);

    let address = host.address.clone();
    let run = "mkdir /w; echo container > /w/index.html; exec httpd -f -p 80 -h /w";
    let args = ["run", "-d", "-p", "8082:80", "--container-name", "box", "busybox", "sh", "-c", run];
    host.must_skiff(&args);
    assert!(host.must_skiff(&["ps"]).contains("0.0.0.0:8082->80/tcp"));
    let everywhere = [("8080", "pod"), ("30081", "pod"), ("8082", "container")];
    let answers = |say: &str| {
        for (port, who) in everywhere {
            assert_eq!(fetch(&host, &format!("127.0.0.1:{port}")), who, "{say}: loopback, port {port}");
            assert_eq!(fetch(&host, &format!("{address}:{port}")), who, "{say}: own address, port {port}");
            assert_eq!(
                fetch(&outside, &format!("{address}:{port}")),
                who,
                "{say}: from outside, port {port}"
            );
        }
        assert_eq!(fetch(&host, "127.0.0.1:8081"), "pod", "{say}");
        assert_eq!(fetch(&outside, &format!("{address}:8081")), "", "{say}: published on loopback only");
        assert_eq!(fetch(&outside, &format!("{address}:30082")), "", "{say}: nobody serves it");
    };
    // The container's server may need a moment more; a refused connection is tried again.
    host.must_sh("curl -sS --max-time 60 --retry 60 --retry-connrefused http://127.0.0.1:8082/");
    answers("at first");

    // One clear error each: for a container, and for a pod as an event.
    let ran = host.skiff(&["run", "--rm", "-p", "8080:80", "busybox", "true"]).unwrap();
    assert_ne!(ran.code, 0);
    assert!(ran.err.contains("port 8080/tcp of this host is in use"), "{ran:?}");
    let taken = "--for=jsonpath={.message}=Failed to create pod sandbox: failed to set up pod network: \
        port 7070/tcp of this host is in use: end who has it, or publish another port";
    let of_late = "--field-selector=involvedObject.name=late,reason=FailedCreatePodSandBox";
    host.must_kubectl(&["wait", "event", of_late, taken, "--timeout=120s"]);
    host.must_sh(&format!("kill {busy}"));
    host.must_kubectl(&["wait", "pod", "late", "--for=condition=Ready", "--timeout=120s"]);

    web::kill_and_restart(&host);
    answers("after the daemon's restart");

    host.must_skiff(&["rm", "-f", "box"]);
    host.must_kubectl(&["delete", "pod", "web", "late", "--wait"]);
    for port in ["8080", "8081", "8082", "30081"] {
        assert_eq!(fetch(&host, &format!("127.0.0.1:{port}")), "", "port {port} is free");
    }
    assert_eq!(bed.leaked_packets().unwrap(), 0);
    host.must_skiff(&["down", "--purge"]);
}
