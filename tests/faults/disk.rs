//! Disks that are full, break or fill up with logs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    Cluster, SERVER, container, deployment, is_ready, pod, running_containers, service, text,
};

/// Makes a file system of its own for the instance's data, of so many MB; on it nothing is evicted for want of room.
const OWN_DISK: &str = r#"
image=$DIRECTORY/disk.img
[ -e $image ] || { truncate -s 300M $image && mkfs.ext4 -q -m 0 -F $image && fresh=1; }
mount -o loop,errors=remount-ro $image /var/lib/$SKIFF_NAME
[ -z "$fresh" ] || rmdir /var/lib/$SKIFF_NAME/lost+found
"#;

const NEVER_EVICTED: &str = r#"
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
"#;

/// A cluster whose data is on a disk of its own.
fn on_own_disk() -> Cluster {
    Cluster::up_after(|host| {
        let directory = host.directory().display().to_string();
        host.must_sh(&format!("DIRECTORY={directory}; {OWN_DISK}"));
        let config = format!("{directory}/node.yaml");
        std::fs::write(&config, NEVER_EVICTED).unwrap();
        vec!["--node-config".to_owned(), config]
    })
}

fn map(name: &str, bytes: usize) -> String {
    let data = json!({"data": "x".repeat(bytes)});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

/// Creates ConfigMaps until one is refused: the names of the others, and what the refusal said.
fn create_until_refused(cluster: &Cluster, prefix: &str) -> (BTreeSet<String>, String) {
    let mut acknowledged = BTreeSet::new();
    for number in 0..400 {
        let name = format!("{prefix}-{number}");
        let ran = cluster.kubectl_with(&["create", "-f", "-"], &map(&name, 100_000));
        if ran.code != 0 {
            return (acknowledged, ran.err);
        }
        acknowledged.insert(name);
    }
    panic!("nothing was refused");
}

fn maps(cluster: &Cluster) -> BTreeSet<String> {
    cluster.list(&["configmaps"]).iter().map(|map| text(&map["metadata"]["name"])).collect()
}

#[test]
fn a_full_disk_refuses_writes_and_all_goes_on_when_there_is_room() {
    let cluster = on_own_disk();
    cluster.apply(&[deployment("web", 2, SERVER), service("web")]);
    let web: Vec<Value> = cluster.ready_pods("web", 2).into_values().collect();
    let running = running_containers(&web);
    let url = format!("http://{}/", cluster.address_of("web"));
    let daemon = cluster.daemon();
    let host = &cluster.host;

    host.must_sh("dd if=/dev/zero of=/var/lib/$SKIFF_NAME/ballast bs=64k 2>/dev/null; sync; true");
    let (acknowledged, refusal) = create_until_refused(&cluster, "map");
    assert!(refusal.contains("No space left on device"), "{refusal}");
    // What is there can be read, and runs.
    let seen = maps(&cluster);
    assert!(acknowledged.is_subset(&seen), "{acknowledged:?} of {seen:?}");
    assert!(cluster.fetch(&url).starts_with("web-"));
    assert_eq!(running_containers(&cluster.list(&["pods", "-l", "app=web"])), running);
    let again = cluster.kubectl_with(&["create", "-f", "-"], &map("again", 10));
    assert!(again.code != 0 && again.err.contains("No space left on device"), "{again:?}");

    host.must_sh("rm /var/lib/$SKIFF_NAME/ballast");
    // By itself: nobody restarts anything.
    let tried = "for n in $(seq 120); do kubectl create configmap after && exit; sleep 0.5; done; exit 1";
    let kubectl = testbed::kubectl().unwrap();
    host.must_sh(&tried.replace("kubectl", &kubectl.to_string_lossy()));
    assert!(acknowledged.is_subset(&maps(&cluster)), "{acknowledged:?}");
    cluster.apply(&[deployment("later", 2, "exec sleep 100000")]);
    cluster.ready_pods("later", 2);
    assert_eq!(cluster.daemon(), daemon);
    assert_eq!(running_containers(&cluster.list(&["pods", "-l", "app=web"])), running);
    // The node has told of itself again, and what is deleted goes.
    host.must_kubectl(&["wait", "nodes", "--all", "--for=condition=Ready", "--timeout=120s"]);
    host.must_kubectl(&["delete", "deployment", "web", "later", "--timeout=120s"]);
    cluster.until_gone(&["pods"]);
}

#[test]
fn a_disk_that_breaks_loses_nothing_that_was_acknowledged() {
    let mut cluster = on_own_disk();
    cluster.apply(&[deployment("web", 2, SERVER), service("web")]);
    let web: Vec<Value> = cluster.ready_pods("web", 2).into_values().collect();
    let running = running_containers(&web);
    let url = format!("http://{}/", cluster.address_of("web"));
    let mut acknowledged = BTreeSet::new();
    for number in 0..10 {
        cluster.host.must_kubectl(&["create", "configmap", &format!("early-{number}")]);
        acknowledged.insert(format!("early-{number}"));
    }
    // As after an error of the device: the kernel makes the file system read-only, until it is checked.
    let device = "$(basename $(df --output=source /var/lib/$SKIFF_NAME | tail -n 1))";
    cluster.host.must_sh(&format!("echo broken > /sys/fs/ext4/{device}/trigger_fs_error"));
    let (more, refusal) = create_until_refused(&cluster, "late");
    acknowledged.extend(more);
    eprintln!("refused: {refusal}");
    // What runs goes on.
    assert!(cluster.fetch(&url).starts_with("web-"));
    assert_eq!(cluster.processes_with("httpd -f").len(), running.len());

    cluster.host.reboot().unwrap();
    cluster.bed.connect(&cluster.host).unwrap();
    let directory = cluster.host.directory().display().to_string();
    cluster.host.must_sh(&format!("e2fsck -fy {directory}/disk.img > /dev/null 2>&1 || [ $? -le 1 ]"));
    cluster.host.must_sh(&format!("DIRECTORY={directory}; {OWN_DISK}"));
    cluster.host.must_skiff(&["up"]);
    let seen = maps(&cluster);
    assert!(acknowledged.is_subset(&seen), "{acknowledged:?} of {seen:?}");
    cluster.ready_pods("web", 2);
    assert!(cluster.fetch(&url).starts_with("web-"));
}

#[test]
fn a_full_log_disk_costs_text_and_nothing_else() {
    let cluster = Cluster::up();
    let host = &cluster.host;
    host.must_sh("cd /var/lib/$SKIFF_NAME; mkdir -p logs; mount -t tmpfs -o size=1m tmpfs logs");
    let script = "yes 0123456789012345678901234567890123456789 | head -c 2000000; \
                  while [ ! -e /tmp/go ]; do sleep 0.1; echo waiting; done; echo went on; exit 5";
    let mut noisy = pod("noisy", script);
    noisy["spec"]["restartPolicy"] = json!("Never");
    cluster.apply(&[noisy]);
    let told = |part: &str| {
        let events = ["events", "--field-selector", "involvedObject.name=noisy,reason=ContainerWarning"];
        cluster.until_all(&events, part, |events| {
            events.values().any(|event| text(&event["message"]).contains(part))
        });
    };
    told("what the container writes is lost");
    // It runs all the same, and so do others, who cannot write either.
    cluster.until(&["pod", "noisy"], "Ready", is_ready);
    let kept = host.must_kubectl(&["logs", "noisy"]);
    assert!(kept.lines().all(|line| line == "0123456789012345678901234567890123456789"), "entries are whole");
    host.must_sh("mount -o remount,size=8m /var/lib/$SKIFF_NAME/logs");
    told("is written again");
    host.must_kubectl(&["exec", "noisy", "--", "touch", "/tmp/go"]);
    let ended = cluster.until(&["pod", "noisy"], "ended", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(container(&ended)["state"]["terminated"]["exitCode"], 5, "{ended}");
    let log = host.must_kubectl(&["logs", "noisy", "--tail=3"]);
    assert!(log.ends_with("waiting\nwent on\n"), "{log}");
    host.must_kubectl(&["delete", "pod", "noisy", "--timeout=120s"]);
}
