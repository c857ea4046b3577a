//! Users, rights and parameters of the kernel. Source: `test/e2e/common/node/{security_context,sysctl,kubelet}.go`,
//! `test/e2e/node/security_context.go`.

use http::Method;
use serde_json::{Value, json};

use crate::space::{OWN_IMAGE, Space, container, main, pod, text};

pub(crate) fn users_and_groups_are_as_they_are_asked_for(space: &Space<'_>) {
    let both = json!({"runAsUser": 1001, "runAsGroup": 2002});
    let cases = [
        ("user", json!({"runAsUser": 65534}), Value::Null, "65534 65534 65534\n"),
        ("container", both.clone(), Value::Null, "1001 2002 2002\n"),
        ("pod", Value::Null, both.clone(), "1001 2002 2002\n"),
        ("container-over-pod", json!({"runAsUser": 1002}), both, "1002 2002 2002\n"),
        (
            "supplemental",
            json!({"runAsUser": 1001}),
            json!({"supplementalGroups": [1234, 5678]}),
            "1001 0 0 1234 5678\n",
        ),
    ];
    let pods: Vec<Value> = cases
        .iter()
        .map(|(name, container, of_pod, _)| {
            let mut pod = pod(name, "echo `id -u` `id -g` `id -G`");
            main(&mut pod)["securityContext"] = container.clone();
            pod["spec"]["securityContext"] = of_pod.clone();
            pod
        })
        .collect();
    let printed = space.outputs(&pods);
    for (name, .., wanted) in cases {
        assert_eq!(printed[name], wanted, "{name}");
    }
}

pub(crate) fn a_container_without_privilege_changes_no_network(space: &Space<'_>) {
    let script = "ip link add dummy0 type dummy || true; ip link show dummy0 && exit 1; exit 0";
    let mut unprivileged = pod("unprivileged", script);
    main(&mut unprivileged)["securityContext"] = json!({"privileged": false});
    let said = space.output(&unprivileged);
    assert!(said.contains("RTNETLINK answers: Operation not permitted"), "{said}");
}

pub(crate) fn root_file_systems_are_written_unless_they_are_read_only(space: &Space<'_>) {
    let mut written = pod("written", "touch checkfile && ls checkfile");
    main(&mut written)["securityContext"] = json!({"readOnlyRootFilesystem": false});
    let mut kept = pod("kept", "echo test > /file; sleep 0; true");
    main(&mut kept)["securityContext"] = json!({"readOnlyRootFilesystem": true});
    let printed = space.outputs(&[written, kept]);
    assert_eq!(printed["written"], "checkfile\n");
    assert_eq!(printed["kept"], "sh: can't create /file: Read-only file system\n");
}

/// busybox asks for root's rights where it is to be `su`, and says so where it does not get them.
const ROOTED: &str = "id -u; grep NoNewPrivs /proc/self/status; /rooted/busybox su -c true 2>&1; true";

pub(crate) fn privileges_do_not_grow_where_that_is_forbidden(space: &Space<'_>) {
    let pods = [("forbidden", json!(false)), ("allowed", json!(true)), ("unsaid", Value::Null)].map(
        |(name, may)| {
            let mut pod = pod(name, ROOTED);
            main(&mut pod)["image"] = OWN_IMAGE.into();
            main(&mut pod)["securityContext"] = json!({"runAsUser": 1000, "allowPrivilegeEscalation": may});
            pod
        },
    );
    let printed = space.outputs(&pods);
    for (name, bit, grows) in [("forbidden", 1, false), ("allowed", 0, true), ("unsaid", 0, true)] {
        let said = &printed[name];
        assert!(said.starts_with(&format!("1000\nNoNewPrivs:\t{bit}\n")), "{name}: {said}");
        assert_eq!(!said.contains("must be suid to work properly"), grows, "{name}: {said}");
    }
}

pub(crate) fn sysctls_are_set_or_refused(space: &Space<'_>) {
    let mut safe = pod("safe", "sysctl kernel.shm_rmid_forced");
    safe["spec"]["securityContext"] = json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
    assert_eq!(space.output(&safe), "kernel.shm_rmid_forced = 1\n");

    let mut invalid = pod("invalid", "true");
    let names =
        [("foo-", "bar"), ("kernel.shmmax", "100000000"), ("safe-and-unsafe", "100000000"), ("bar..", "42")];
    let sysctls: Vec<Value> =
        names.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    invalid["spec"]["securityContext"] = json!({"sysctls": sysctls});
    let said = text(&space.refused(&Method::POST, "pods", "", &invalid)["message"]);
    for (name, refused) in
        [("foo-", true), ("bar..", true), ("safe-and-unsafe", false), ("kernel.shmmax", false)]
    {
        assert_eq!(said.contains(&format!("Invalid value: \"{name}\"")), refused, "{name}: {said}");
        assert_eq!(said.contains(name), refused, "{name}: {said}");
    }

    let mut unsafe_one = pod("unsafe", "true");
    unsafe_one["spec"]["securityContext"] =
        json!({"sysctls": [{"name": "kernel.msgmax", "value": "10000000000"}]});
    space.create("pods", &unsafe_one);
    let pod = space.until_pod("unsafe", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "SysctlForbidden", "{pod}");
}

pub(crate) fn root_is_refused_where_only_others_may_run(space: &Space<'_>) {
    let cases = [
        ("image", json!({"runAsNonRoot": true}), "container has runAsNonRoot and image will run as root"),
        (
            "user",
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            "container's runAsUser breaks non-root policy",
        ),
    ];
    for (name, context, message) in cases {
        let mut pod = pod(name, "true");
        main(&mut pod)["securityContext"] = context;
        space.create("pods", &pod);
        let pod = space.until_pod(name, "refused", |pod| {
            container(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
        let said = text(&container(&pod, "main")["state"]["waiting"]["message"]);
        let pod =
            format!("(pod: \"{name}_{}({})\", container: main)", space.name, text(&pod["metadata"]["uid"]));
        assert_eq!(said, format!("{message} {pod}"));
        space.until_event(name, "Failed", message);
    }
    let mut allowed = pod("allowed", "id -u");
    main(&mut allowed)["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000});
    assert_eq!(space.output(&allowed), "1000\n");
}

pub(crate) fn capabilities_and_filters_are_as_they_are_asked_for(space: &Space<'_>) {
    // The set that container runtimes give to those who say nothing.
    let usual = "00000000a80425fb";
    let cases = [
        ("usual", json!({"seccompProfile": {"type": "RuntimeDefault"}}), usual, 2),
        ("unconfined", json!({"seccompProfile": {"type": "Unconfined"}}), usual, 0),
        ("none", json!({"capabilities": {"drop": ["ALL"]}}), "0000000000000000", -1),
        (
            "one",
            json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
            "0000000000000400",
            -1,
        ),
        ("less", json!({"capabilities": {"drop": ["CHOWN"]}}), "00000000a80425fa", -1),
        ("more", json!({"capabilities": {"add": ["SYS_TIME"]}}), "00000000aa0425fb", -1),
    ];
    let script = "sed -n 's/^\\(CapEff\\|Seccomp\\):.//p' /proc/self/status; cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; \
                  touch /proc/sys/kernel/domainname 2>/dev/null && echo open; true";
    let pods: Vec<Value> = cases
        .iter()
        .map(|(name, context, ..)| {
            let mut pod = pod(name, script);
            main(&mut pod)["securityContext"] = context.clone();
            pod
        })
        .collect();
    let printed = space.outputs(&pods);
    for (name, _, capabilities, filter) in cases {
        let lines: Vec<&str> = printed[name].lines().collect();
        // What may not be seen is empty, and parameters of the kernel are not to be written.
        assert_eq!((lines[0], &lines[2..]), (capabilities, &["0"][..]), "{name}: {lines:?}");
        assert!(filter < 0 || lines[1] == filter.to_string(), "{name}: {lines:?}");
    }
}

const NAMESPACES: &str = "for kind in net pid ipc; do readlink /proc/self/ns/$kind; done";

pub(crate) fn namespaces_of_the_host_are_had_where_they_are_asked_for(space: &Space<'_>) {
    let kinds = [("hostNetwork", "net"), ("hostPID", "pid"), ("hostIPC", "ipc")];
    let mut pods = vec![pod("own", NAMESPACES)];
    for (field, _) in kinds {
        let mut pod = pod(&field.to_lowercase(), NAMESPACES);
        pod["spec"][field] = true.into();
        pods.push(pod);
    }
    let mut mapped = pod("mapped", "cat /proc/self/uid_map; id -u; touch /f; stat -c %u /f");
    mapped["spec"]["hostUsers"] = false.into();
    pods.push(mapped);
    let printed = space.outputs(&pods);
    let of_host = |kind: &str| {
        let link = format!("/proc/{}/ns/{kind}", space.cluster.host.pid());
        std::fs::read_link(link).unwrap().to_string_lossy().into_owned()
    };
    for (_, kind) in kinds {
        assert!(!printed["own"].contains(&of_host(kind)), "{kind}");
    }
    for (field, asked) in kinds {
        for (_, kind) in kinds {
            let shared = printed[&field.to_lowercase()].contains(&of_host(kind));
            assert_eq!(shared, kind == asked, "{field}: {kind}");
        }
    }
    // Root there is nobody here, and all that it makes is its own.
    let said: Vec<&str> = printed["mapped"].split_whitespace().collect();
    assert!(said[0] == "0" && said[1] != "0" && said[2] == "65536", "{said:?}");
    assert_eq!(said[3..], ["0", "0"], "{said:?}");
}
