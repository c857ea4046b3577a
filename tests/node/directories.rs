//! Empty directories, and many volumes at once. Source: `test/e2e/common/storage/empty_dir.go`,
//! `test/e2e/storage/empty_dir_wrapper.go`.

use serde_json::{Value, json};

use crate::space::{Space, config_map, is_ready, main, mount, pod, push, secret, shell};

/// The owner's, the group's and everybody's rights of files.
const MODES: [&str; 3] = ["644", "666", "777"];

fn empty_dir(memory: bool) -> Value {
    if memory { json!({"emptyDir": {"medium": "Memory"}}) } else { json!({"emptyDir": {}}) }
}

pub(crate) fn empty_directories_have_their_modes_and_owners(space: &Space<'_>) {
    let (mut pods, mut wanted) = (Vec::new(), Vec::new());
    for memory in [false, true] {
        for user in [0, 1001] {
            for mode in MODES {
                let medium = if memory { "memory" } else { "default" };
                let name = format!("{medium}-{user}-{mode}");
                let script = format!(
                    "cd /test-volume && echo mount-tester > file && chmod {mode} file && stat -c '%a %u' . file && \
                     cat file && stat -f -c %T ."
                );
                let mut pod = pod(&name, &script);
                mount(&mut pod, "volume", empty_dir(memory), "/test-volume", Value::Null);
                main(&mut pod)["securityContext"] = json!({"runAsUser": user});
                pods.push(pod);
                wanted.push((name, format!("777 0\n{mode} {user}\nmount-tester\n"), memory));
            }
        }
    }
    let printed = space.outputs(&pods);
    for (name, first, memory) in wanted {
        // A file system in memory has the sticky bit by itself.
        let printed = printed[&name].strip_prefix('1').unwrap_or(&printed[&name]);
        let rest = printed.strip_prefix(&first);
        let kind = rest.unwrap_or_else(|| panic!("{name}: {printed} is not {first}"));
        assert_eq!(kind == "tmpfs\n", memory, "{name}: {kind}");
    }
}

pub(crate) fn containers_share_a_directory(space: &Space<'_>) {
    let mut pod = pod("shared", "until [ -s /pod-data/message ]; do sleep 0.1; done; cat /pod-data/message");
    mount(&mut pod, "volume", empty_dir(false), "/pod-data", Value::Null);
    let mut other =
        shell("other", "echo Hello from the other container > /other/part; mv /other/part /other/message");
    other["volumeMounts"] = json!([{"name": "volume", "mountPath": "/other"}]);
    push(&mut pod["spec"]["containers"], other);
    assert_eq!(space.output(&pod), "Hello from the other container\n");
}

pub(crate) fn a_secret_and_a_config_map_do_not_conflict(space: &Space<'_>) {
    space.create("configmaps", &config_map("things", json!({"data-1": "value-1"})));
    space.create("secrets", &secret("things", json!({"data-1": "value-2"})));
    let mut pod = pod("both", "cat /etc/secret/data-1 /etc/config/data-1");
    mount(&mut pod, "secret", json!({"secret": {"secretName": "things"}}), "/etc/secret", Value::Null);
    mount(&mut pod, "config", json!({"configMap": {"name": "things"}}), "/etc/config", Value::Null);
    assert_eq!(space.output(&pod), "value-2value-1");
}

pub(crate) fn fifty_volumes_of_five_pods_do_not_race(space: &Space<'_>) {
    let mut template = pod("racing", "exec sleep 3600");
    for number in 0..50 {
        let name = format!("racing-{number}");
        space.create("configmaps", &config_map(&name, json!({"data-1": "value-1"})));
        let items = json!([{"key": "data-1", "path": "data-1"}]);
        let source = json!({"configMap": {"name": name, "items": items}});
        mount(&mut template, &name, source, &format!("/etc/config-{number}"), Value::Null);
    }
    template["metadata"] = json!({"labels": {"app": "racing"}});
    template["spec"]["restartPolicy"] = "Always".into();
    let controller = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "racing"},
        "spec": {"replicas": 5, "selector": {"app": "racing"}, "template": template}});
    space.create("replicationcontrollers", &controller);
    let pods =
        space.until("pods", "five that run", |pods| pods.values().filter(|pod| is_ready(pod)).count() == 5);
    for name in pods.keys() {
        let count = space.exec(name, "main", "cat /etc/config-*/data-1 | grep -o value-1 | wc -l");
        assert_eq!(count.trim(), "50", "{name}");
    }
}
