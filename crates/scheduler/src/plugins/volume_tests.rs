//! Tables of the plugins that look at volumes: which nodes take a pod, in which words others refuse it, what helps.

use std::sync::Arc;

use api::Key;
use serde_json::{Value, json};

use super::tests::{decide, merge, node_of, object, pod_of, profile};
use crate::cluster::Cluster;
use crate::framework::Event;
use crate::storage::types::{Capacity, Claim, Class, CsiNode, Driver, Volume};
use crate::types::Pod;

fn claim(name: &str, more: &Value) -> Arc<Claim> {
    let mut claim = json!({ "metadata": { "name": name, "namespace": "ns", "uid": name,
        "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
        "spec": { "accessModes": ["ReadWriteOnce"], "volumeName": format!("v-{name}") } });
    merge(&mut claim, more);
    Arc::new(Claim::decode(&object(&claim)).unwrap())
}

fn volume(claim: &str, more: &Value) -> Arc<Volume> {
    let mut volume = json!({ "metadata": { "name": format!("v-{claim}") },
        "spec": { "csi": { "driver": "d", "volumeHandle": claim } } });
    merge(&mut volume, more);
    Arc::new(Volume::decode(&object(&volume)).unwrap())
}

fn put(cluster: &mut Cluster, claim: &Arc<Claim>, volume: &Arc<Volume>) {
    cluster.storage.put_claim(&claim.version.key, Some(claim.clone()));
    cluster.storage.put_volume(&volume.version.key.name, Some(volume.clone()));
}

fn with_claims(name: &str, claims: &[&str]) -> Arc<Pod> {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } }))
        .collect();
    pod_of(name, &json!({ "volumes": volumes }), "x")
}

fn placed(pod: &Arc<Pod>, node: &str) -> Arc<Pod> {
    Arc::new(Pod { node: node.into(), ..(**pod).clone() })
}

fn one_node() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.put_node(node_of("n", &json!({})));
    cluster
}

fn says(what: &str) -> String {
    format!("0/1 nodes are available: 1 {what}.")
}

#[test]
fn a_claim_of_one_pod_alone_has_no_other() {
    let mut cluster = one_node();
    put(
        &mut cluster,
        &claim("c", &json!({ "spec": { "accessModes": ["ReadWriteOncePod"] } })),
        &volume("c", &json!({})),
    );
    put(&mut cluster, &claim("d", &json!({})), &volume("d", &json!({})));
    let profile = profile("");
    assert_eq!(decide(&profile, &with_claims("p", &["c"]), &mut cluster), "n");
    let first = with_claims("first", &["c", "d"]);
    cluster.put_pod(placed(&first, "n"));
    let second = with_claims("second", &["c"]);
    let in_use =
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert_eq!(decide(&profile, &second, &mut cluster), says(in_use));
    assert_eq!(decide(&profile, &with_claims("p", &["d"]), &mut cluster), "n");
    let by = ["VolumeRestrictions"].into();
    assert!(profile.may_help(&second, &by, &Event::PodLeft(first.clone()), &Cluster::default()));
    assert!(!profile.may_help(
        &second,
        &by,
        &Event::PodLeft(with_claims("other", &["d"])),
        &Cluster::default()
    ));
    cluster.remove_pod("first");
    assert_eq!(decide(&profile, &second, &mut cluster), "n");
    assert_eq!(
        decide(&profile, &with_claims("p", &["e"]), &mut cluster),
        "0/1 nodes are available: persistentvolumeclaim \"e\" not found. not found"
    );
}

#[test]
fn a_disk_that_is_written_is_had_once() {
    let with_disk = |name: &str, disk: &str, reads: bool| {
        let disk = json!([{ "name": "v", "gcePersistentDisk": { "pdName": disk, "readOnly": reads } }]);
        pod_of(name, &json!({ "volumes": disk }), "x")
    };
    let mut cluster = one_node();
    let held = with_disk("held", "a", true);
    cluster.put_pod(placed(&held, "n"));
    let profile = profile("");
    assert_eq!(
        decide(&profile, &with_disk("p", "a", false), &mut cluster),
        says("node(s) had no available disk")
    );
    assert_eq!(decide(&profile, &with_disk("p", "a", true), &mut cluster), "n");
    assert_eq!(decide(&profile, &with_disk("p", "b", false), &mut cluster), "n");
    let by = ["VolumeRestrictions"].into();
    assert!(profile.may_help(
        &with_disk("p", "a", false),
        &by,
        &Event::PodLeft(held.clone()),
        &Cluster::default()
    ));
    assert!(!profile.may_help(&with_disk("p", "b", false), &by, &Event::PodLeft(held), &Cluster::default()));
}

#[test]
fn a_pod_stays_in_the_zone_that_its_volume_names() {
    const ZONE: &str = "topology.kubernetes.io/zone";
    const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
    let labels = |labels: Value| json!({ "metadata": { "labels": labels } });
    let conflict = || says("node(s) had no available volume zone");
    let profile = profile("");
    for (of_node, of_volume, decision) in [
        (labels(json!({ ZONE: "a" })), labels(json!({ ZONE: "a" })), "n".to_owned()),
        (labels(json!({ ZONE: "b" })), labels(json!({ ZONE: "a" })), conflict()),
        (labels(json!({ ZONE: "b" })), labels(json!({ ZONE: "a__b" })), "n".into()),
        (labels(json!({ ZONE: "b" })), labels(json!({ OLD_ZONE: "b" })), "n".into()),
        (labels(json!({ OLD_ZONE: "b" })), labels(json!({ ZONE: "b" })), conflict()),
        (labels(json!({ ZONE: "b" })), labels(json!({ ZONE: "a__" })), "n".into()),
        (json!({}), labels(json!({ ZONE: "a" })), "n".into()),
    ] {
        let mut cluster = Cluster::default();
        cluster.put_node(node_of("n", &of_node));
        put(&mut cluster, &claim("c", &json!({})), &volume("c", &of_volume));
        let pod = with_claims("p", &["c"]);
        assert_eq!(decide(&profile, &pod, &mut cluster), decision, "{of_node} {of_volume}");
    }
    let mut cluster = one_node();
    let lone = claim("c", &json!({}));
    cluster.storage.put_claim(&lone.version.key, Some(lone.clone()));
    assert_eq!(
        decide(&profile, &with_claims("p", &["c"]), &mut cluster),
        "0/1 nodes are available: persistentvolume \"v-c\" not found. not found"
    );
    let (pod, by) = (with_claims("p", &["c"]), ["VolumeZone"].into());
    let moved = volume("c", &labels(json!({ ZONE: "b" })));
    for (event, helps) in [
        (Event::Volume(Some(volume("c", &json!({}))), moved.clone()), true),
        (Event::Volume(Some(moved.clone()), moved), false),
        (Event::Claim(None, lone), true),
        (Event::Claim(None, claim("d", &json!({}))), false),
        (Event::NodeAdded(node_of("m", &json!({}))), true),
        (Event::AttachmentGone, false),
    ] {
        assert_eq!(profile.may_help(&pod, &by, &event, &Cluster::default()), helps, "{event:?}");
    }
}

#[test]
fn a_driver_has_no_more_volumes_on_a_node_than_it_can() {
    let csi_node = |count: Value| {
        let node = json!({ "metadata": { "name": "n" },
            "spec": { "drivers": [{ "name": "d", "allocatable": { "count": count } }] } });
        Arc::new(CsiNode::decode(&object(&node)).unwrap())
    };
    let full = || says("node(s) exceed max volume count");
    let profile = profile("");
    let mut cluster = one_node();
    for name in ["a", "b", "c"] {
        put(&mut cluster, &claim(name, &json!({})), &volume(name, &json!({})));
    }
    let elsewhere = json!({ "spec": { "csi": { "driver": "other" } } });
    put(&mut cluster, &claim("o", &json!({})), &volume("o", &elsewhere));
    let class = json!({ "metadata": { "name": "late" }, "provisioner": "d", "volumeBindingMode": "WaitForFirstConsumer" });
    cluster.storage.put_class("late", Some(Arc::new(Class::decode(&object(&class)).unwrap())));
    let unbound = json!({ "spec": { "volumeName": "", "storageClassName": "late" } });
    let unbound = claim("u", &unbound);
    cluster.storage.put_claim(&Key::new("ns", "u"), Some(unbound));
    cluster.put_pod(placed(&with_claims("held", &["a", "o"]), "n"));
    for (limit, attached, claims, decision) in [
        (Value::Null, None, vec!["b", "c"], "n".to_owned()),
        (json!(2), None, vec!["b"], "n".into()),
        (json!(2), None, vec!["b", "c"], full()),
        // What is there counts once, whoever has it.
        (json!(1), None, vec!["a"], "n".into()),
        (json!(1), Some("v-a"), vec!["a"], "n".into()),
        (json!(1), None, vec!["b"], full()),
        (json!(1), None, vec!["o"], "n".into()),
        // What is still attached counts though its pod is gone; what is made counts as well.
        (json!(2), Some("v-c"), vec!["b"], full()),
        (json!(2), Some("v-c"), vec!["c"], "n".into()),
        (json!(2), None, vec!["u"], "n".into()),
        (json!(1), None, vec!["u"], full()),
    ] {
        cluster.storage.put_csi_node("n", Some(csi_node(limit.clone())));
        if let Some(volume) = attached {
            cluster.storage.attach("x", "n", volume);
        }
        let said = decide(&profile, &with_claims("p", &claims), &mut cluster);
        assert_eq!(said, decision, "{limit} {attached:?} {claims:?}");
        cluster.storage.detach("x", "n");
    }
    let (pod, by) = (with_claims("p", &["b"]), ["NodeVolumeLimits"].into());
    for (event, helps) in [
        (Event::CsiNode(None, csi_node(json!(1))), true),
        (Event::CsiNode(Some(csi_node(json!(1))), csi_node(json!(2))), true),
        (Event::CsiNode(Some(csi_node(json!(2))), csi_node(json!(1))), false),
        (Event::PodLeft(with_claims("held", &["a"])), true),
        (Event::PodLeft(pod_of("none", &json!({}), "x")), false),
        (Event::AttachmentGone, true),
    ] {
        assert_eq!(profile.may_help(&pod, &by, &event, &Cluster::default()), helps, "{event:?}");
    }
    assert_eq!(cluster.storage.users(&Key::new("ns", "a")), 1);
}

#[test]
fn a_pod_goes_only_where_the_drivers_are_that_it_cannot_do_without() {
    let csi_node = |drivers: Value| {
        let node = json!({ "metadata": { "name": "n" }, "spec": { "drivers": drivers } });
        Arc::new(CsiNode::decode(&object(&node)).unwrap())
    };
    let driver = |needed: bool| {
        let driver =
            json!({ "metadata": { "name": "d" }, "spec": { "preventPodSchedulingIfMissing": needed } });
        Some(Driver::decode(&object(&driver)))
    };
    let absent = || says("d CSI driver is not installed on the node");
    let (none, there) = (csi_node(json!([{ "name": "other" }])), csi_node(json!([{ "name": "d" }])));
    let profile = profile("");
    for (driver, node, decision) in [
        (driver(true), None, absent()),
        (driver(true), Some(&none), absent()),
        (driver(true), Some(&there), "n".to_owned()),
        (driver(false), Some(&none), "n".into()),
        (None, Some(&none), "n".into()),
    ] {
        let mut cluster = one_node();
        put(&mut cluster, &claim("c", &json!({})), &volume("c", &json!({})));
        cluster.storage.put_driver("d", driver);
        cluster.storage.put_csi_node("n", node.cloned());
        assert_eq!(
            decide(&profile, &with_claims("p", &["c"]), &mut cluster),
            decision,
            "{driver:?} {node:?}"
        );
    }
    let (pod, by) = (with_claims("p", &["c"]), ["NodeVolumeLimits"].into());
    for (event, helps) in [
        (Event::CsiNode(Some(none), there.clone()), true),
        (Event::CsiNode(Some(there), csi_node(json!([]))), false),
        (Event::DriverEased, true),
    ] {
        assert_eq!(profile.may_help(&pod, &by, &event, &Cluster::default()), helps, "{event:?}");
        assert!(profile.heeds("NodeVolumeLimits", &event));
    }
}

#[test]
fn a_node_with_more_storage_left_is_better_for_a_claim_that_waits() {
    let left = |node: &str, left: &str| {
        let capacity = json!({ "metadata": { "name": node }, "storageClassName": "late", "capacity": left,
            "nodeTopology": { "matchLabels": { "kubernetes.io/hostname": node } } });
        Arc::new(Capacity::decode(&object(&capacity)).unwrap())
    };
    let class = json!({ "metadata": { "name": "late" }, "provisioner": "d", "volumeBindingMode": "WaitForFirstConsumer" });
    let unbound = json!({ "spec": { "volumeName": "", "storageClassName": "late", "resources": { "requests": { "storage": "10Gi" } } } });
    let own = profile("");
    let filling = profile(
        "profiles: [{pluginConfig: [{name: VolumeBinding, args: {shape: [{utilization: 0, score: 0}, \
         {utilization: 100, score: 10}]}}]}]\n",
    );
    for (a, b, better, fuller) in [("100Gi", "20Gi", "a", "b"), ("20Gi", "100Gi", "b", "a")] {
        let mut cluster = one_node();
        cluster.remove_node("n");
        for (node, amount) in [("a", a), ("b", b)] {
            cluster.put_node(node_of(node, &json!({})));
            cluster.storage.put_capacity(&Key::new("", node), left(node, amount));
        }
        cluster.storage.put_class("late", Some(Arc::new(Class::decode(&object(&class)).unwrap())));
        cluster.storage.put_driver("d", Some(Driver { tells_capacity: true, needed: false }));
        cluster.storage.put_claim(&Key::new("ns", "c"), Some(claim("c", &unbound)));
        assert_eq!(decide(&own, &with_claims("p", &["c"]), &mut cluster), better);
        assert_eq!(decide(&filling, &with_claims("p", &["c"]), &mut cluster), fuller);
    }
}
