//! The hosts file. Source: `test/e2e/common/node/kubelet_etc_hosts.go`, `kubelet.go`.

use serde_json::{Value, json};

use crate::space::{IDLE, Space, mount, pod, push, shell};

/// What the file begins with that the node writes.
const MANAGED: &str = "# Kubernetes-managed hosts file.";

pub(crate) fn the_hosts_file_is_managed_unless_it_is_mounted(space: &Space<'_>) {
    let source = json!({"hostPath": {"path": "/etc/hosts", "type": "FileOrCreate"}});
    let of_pod = |name: &str| {
        let mut pod = pod(name, IDLE);
        mount(&mut pod, "hosts", source.clone(), "/etc/hosts-original", Value::Null);
        pod
    };
    let mut own = of_pod("own");
    let mut third = shell("third", IDLE);
    let original = json!({"name": "hosts", "mountPath": "/etc/hosts-original"});
    third["volumeMounts"] = json!([original, {"name": "hosts", "mountPath": "/etc/hosts"}]);
    push(&mut own["spec"]["containers"], third);
    let mut of_host = of_pod("of-host");
    of_host["spec"]["hostNetwork"] = true.into();
    for pod in [&own, &of_host] {
        space.start(pod);
    }
    let read =
        |pod: &str, container: &str, file: &str| space.exec(pod, container, &format!("cat /etc/{file}"));
    for (pod, container, managed) in
        [("own", "main", true), ("own", "third", false), ("of-host", "main", false)]
    {
        let (now, original) = (read(pod, container, "hosts"), read(pod, container, "hosts-original"));
        assert!(!now.is_empty() && !original.is_empty(), "{pod} {container}");
        let is_managed = now.starts_with(MANAGED) && now != original;
        assert_eq!(is_managed, managed, "{pod} {container}: {now}");
    }
}

pub(crate) fn host_aliases_are_in_the_hosts_file(space: &Space<'_>) {
    let mut pod = pod("aliased", "cat /etc/hosts");
    pod["spec"]["hostAliases"] = json!([{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]);
    let hosts = space.output(&pod);
    assert!(hosts.contains("# Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\n"), "{hosts}");
    // A pod without a network of its own gets them beside what its host has.
    pod["metadata"]["name"] = "of-host".into();
    pod["spec"]["hostNetwork"] = true.into();
    let hosts = space.output(&pod);
    assert!(hosts.contains("123.45.67.89\tfoo\tbar\n"), "{hosts}");
}
