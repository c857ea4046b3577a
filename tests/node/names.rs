//! Names and namespaces of pods. Source: `test/e2e/node/pod_hostnameoverride.go`, `test/e2e/network/dns.go`,
//! `test/e2e/common/node/pods.go`, `pkg/kubelet/kubelet_pods.go` (`GeneratePodHostNameAndDomain`).

use serde_json::json;

use crate::space::{IDLE, Space, container, is_ready, pod, push, shell, text};

pub(crate) fn a_pod_has_the_host_name_that_it_asks_for(space: &Space<'_>) {
    let script = "hostname; hostname -f; cat /etc/hostname";
    let domain = format!("sub.{}.svc.cluster.local", space.name);
    let cases = [
        ("plain", json!({}), "plain\nplain\nplain\n".to_owned()),
        ("named", json!({"hostname": "other"}), "other\nother\nother\n".to_owned()),
        (
            "below",
            json!({"hostname": "other", "subdomain": "sub"}),
            format!("other\nother.{domain}\nother\n"),
        ),
        (
            "qualified",
            json!({"hostname": "other", "subdomain": "sub", "setHostnameAsFQDN": true}),
            format!("other.{domain}\nother.{domain}\nother.{domain}\n"),
        ),
    ];
    let pods: Vec<_> = cases
        .iter()
        .map(|(name, fields, _)| {
            let mut pod = pod(name, script);
            for (field, value) in fields.as_object().unwrap() {
                pod["spec"][field] = value.clone();
            }
            pod
        })
        .collect();
    let printed = space.outputs(&pods);
    for (name, _, wanted) in cases {
        assert_eq!(printed[name], wanted, "{name}");
    }
}

pub(crate) fn a_full_name_that_is_too_long_holds_the_pod_back(space: &Space<'_>) {
    let mut pod = pod("long", IDLE);
    pod["spec"]["hostname"] = "h".repeat(50).into();
    pod["spec"]["subdomain"] = "subdomain".into();
    pod["spec"]["setHostnameAsFQDN"] = true.into();
    space.create("pods", &pod);
    space.until_event("long", "FailedCreatePodSandBox", "too long");
    space.stop("long");
}

pub(crate) fn containers_share_processes_where_they_are_asked_to(space: &Space<'_>) {
    let mut shared = pod("shared", "sleep 100005");
    push(&mut shared["spec"]["containers"], shell("beside", "sleep 100006"));
    let mut apart = shared.clone();
    apart["metadata"]["name"] = "apart".into();
    shared["spec"]["shareProcessNamespace"] = true.into();
    for pod in [&shared, &apart] {
        space.start(pod);
    }
    let seen = |pod: &str| space.exec(pod, "main", "ps -o args");
    assert!(seen("shared").contains("sleep 100006") && seen("shared").contains("sleep 100005"));
    assert!(!seen("apart").contains("sleep 100006") && seen("apart").contains("sleep 100005"));
    // Who has no process namespace of its own may signal the others.
    space.try_exec("shared", "beside", "killall -9 sleep");
    let pod = space.until_pod("shared", "ended", |pod| !is_ready(pod) && pod["status"]["phase"] == "Failed");
    assert_eq!(container(&pod, "main")["state"]["terminated"]["exitCode"], 137, "{pod}");
    assert_eq!(text(&container(&pod, "main")["state"]["terminated"]["reason"]), "Error");
}
