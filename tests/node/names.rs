//! Names and namespaces of pods. Source: `test/e2e/node/pod_hostnameoverride.go`, `test/e2e/network/dns.go`,
//! `test/e2e/common/node/pods.go`, `pkg/kubelet/kubelet_pods.go` (`GeneratePodHostNameAndDomain`).

use serde_json::json;

use crate::space::{IDLE, Space, container, is_ready, pod, push, shell, text};

pub(crate) fn a_pod_has_the_host_name_that_it_asks_for(space: &Space<'_>) {
    // A host's name has 64 bytes at most.
    let space = &Space::new(space.cluster, space.api, "short");
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
    space.delete("/api/v1/namespaces/short");
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

pub(crate) fn a_pod_resolves_names_as_it_is_asked_to(space: &Space<'_>) {
    let config = json!({"nameservers": ["1.1.1.1"], "searches": ["resolv.conf.local"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
    let cluster = format!("search {}.svc.cluster.local svc.cluster.local cluster.local", space.name);
    let cases = [
        ("usual", json!({}), vec![cluster.clone(), "options ndots:5".to_owned()]),
        (
            "none",
            json!({"dnsPolicy": "None", "dnsConfig": config}),
            vec![
                "nameserver 1.1.1.1".to_owned(),
                "search resolv.conf.local".to_owned(),
                "options ndots:2 edns0".to_owned(),
            ],
        ),
        (
            "both",
            json!({"dnsPolicy": "ClusterFirst", "dnsConfig": config}),
            vec!["nameserver 1.1.1.1".to_owned(), format!("{cluster} resolv.conf.local")],
        ),
    ];
    let pods: Vec<_> = cases
        .iter()
        .map(|(name, fields, _)| {
            let mut pod = pod(name, "cat /etc/resolv.conf");
            for (field, value) in fields.as_object().unwrap() {
                pod["spec"][field] = value.clone();
            }
            pod
        })
        .collect();
    let printed = space.outputs(&pods);
    for (name, _, wanted) in cases {
        for line in wanted {
            assert!(
                printed[name].lines().any(|found| found == line),
                "{name}: no {line} in {}",
                printed[name]
            );
        }
    }
    assert_eq!(printed["none"].lines().count(), 3, "{}", printed["none"]);
}
