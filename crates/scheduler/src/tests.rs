//! Random clusters that must never be overcommitted, the largest amounts, and pods that cannot be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use prometheus::{HistogramOpts, HistogramVec};
use serde_json::{Value, json};

use crate::Config;
use crate::cluster::Cluster;
use crate::framework::tally::Times;
use crate::framework::{Decision, Profile, Turn};
use crate::types::{Node, Pod};

fn object(value: &Value) -> Object {
    Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()
}

fn node(name: &str, cpu: &str, pods: u32) -> Arc<Node> {
    let value = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": cpu, "memory": "4Gi", "pods": pods.to_string() } },
    });
    Arc::new(Node::decode(&object(&value)).unwrap())
}

fn pod(uid: &str, cpu: &str) -> Arc<Pod> {
    let spec = json!({ "containers": [{ "resources": { "requests": { "cpu": cpu } } }] });
    let value = json!({ "metadata": { "name": uid, "namespace": "ns", "uid": uid }, "spec": spec });
    Arc::new(Pod::decode(&object(&value)).unwrap())
}

fn profile() -> Profile {
    Config::default().profiles.pop().unwrap()
}

fn put(cluster: &mut Cluster, pod: &Pod, node: &str) {
    cluster.put_pod(Arc::new(Pod { node: node.into(), ..pod.clone() }));
}

fn refusal(pod: &Arc<Pod>, cluster: &mut Cluster) -> String {
    match profile().decide(pod, cluster, &mut Turn::default()) {
        Decision::Refused(refused) => refused.message,
        Decision::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn place(pod: &Arc<Pod>, cluster: &mut Cluster) -> String {
    match profile().decide(pod, cluster, &mut Turn::default()) {
        Decision::Node(node) => {
            put(cluster, pod, &node);
            node
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_nodes_there_is_nothing_to_count() {
    assert_eq!(refusal(&pod("x", "1"), &mut Cluster::default()), "no nodes available to schedule pods");
}

#[test]
fn the_largest_amounts_neither_overflow_nor_blur_what_others_use() {
    let mut cluster = Cluster::default();
    cluster.put_node(node("a", "2", 10));
    place(&pod("small", "1"), &mut cluster);
    let giant = |uid: &str| {
        let container = json!({ "resources": { "requests": { "cpu": "10E", "memory": "10E" } } });
        let value = json!({ "metadata": { "name": uid, "uid": uid }, "spec": { "containers": [container, container] } });
        Pod::decode(&object(&value)).unwrap()
    };
    // Pods that name their node pass no filter: two of them are together far beyond an i64.
    for uid in ["g1", "g2"] {
        put(&mut cluster, &giant(uid), "a");
    }
    assert!(refusal(&pod("x", "1m"), &mut cluster).contains("1 Insufficient cpu"));
    assert!(refusal(&pod("y", "10E"), &mut cluster).contains("1 Insufficient cpu"));
    assert!(cluster.remove_pod("g1").is_some() && cluster.remove_pod("g2").is_some());
    assert!(refusal(&pod("z", "1001m"), &mut cluster).contains("1 Insufficient cpu"));
    assert_eq!(place(&pod("z", "1"), &mut cluster), "a");
    let mut vast = Cluster::default();
    vast.put_node(node("v", "10E", 10));
    assert_eq!(place(&pod("g", "10E"), &mut vast), "v");
}

#[test]
fn what_cannot_be_read_still_has_a_name() {
    let broken = object(&json!({
        "metadata": { "name": "b", "namespace": "ns", "uid": "u" }, "spec": { "priority": "high" },
        "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "SchedulerError" }] },
    }));
    assert!(Pod::decode(&broken).is_err());
    let known = Pod::unreadable(&broken);
    assert_eq!((known.key.name.as_str(), &*known.uid), ("b", "u"));
}

#[test]
fn no_node_is_ever_overcommitted() {
    let mut seed = 42_u64;
    let mut chance = move |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    };
    let (profile, mut turn, mut cluster) = (profile(), Turn::default(), Cluster::default());
    for name in ["a", "b", "c"] {
        cluster.put_node(node(name, "2", 8));
    }
    let mut placed: BTreeMap<String, (String, i64)> = BTreeMap::new();
    let mut refused = 0;
    for number in 0..3000 {
        if chance(3) == 0 && !placed.is_empty() {
            let index = usize::try_from(chance(placed.len() as u64)).unwrap();
            let uid = placed.keys().nth(index).unwrap().clone();
            placed.remove(&uid);
            assert!(cluster.remove_pod(&uid).is_some());
        } else {
            let amount = i64::try_from(chance(900)).unwrap();
            let new = pod(&format!("p{number}"), &format!("{amount}m"));
            if let Decision::Node(node) = profile.decide(&new, &mut cluster, &mut turn) {
                put(&mut cluster, &new, &node);
                placed.insert(new.uid.to_string(), (node, amount));
            } else {
                // Then it truly fits nowhere.
                for node in ["a", "b", "c"] {
                    let on = placed.values().filter(|(name, _)| name == node);
                    let (used, count) = on.fold((0, 0), |(used, count), (_, cpu)| (used + cpu, count + 1));
                    assert!(used + amount > 2000 || count >= 8);
                }
                refused += 1;
            }
        }
        for node in ["a", "b", "c"] {
            let on: Vec<i64> =
                placed.values().filter(|(name, _)| name == node).map(|(_, cpu)| *cpu).collect();
            assert!(on.iter().sum::<i64>() <= 2000 && on.len() <= 8);
        }
    }
    assert!(refused > 10, "the test must reach full nodes");
}

/// What plugins took at a point, by how often it was told.
fn told(seconds: &HistogramVec, labels: [&str; 3]) -> u64 {
    seconds.with_label_values(&labels).get_sample_count()
}

#[test]
fn every_decision_counts_what_plugins_are_asked_and_one_in_ten_tells_how_long_they_take() {
    const PODS: u64 = 2000;
    let profile = profile();
    let labels = ["extension_point", "plugin", "status"];
    let seconds = HistogramVec::new(HistogramOpts::new("seconds", "seconds"), &labels).unwrap();
    let mut cluster = Cluster::default();
    for (name, cpu) in [("a", "100"), ("b", "100"), ("c", "1m")] {
        cluster.put_node(node(name, cpu, 10_000));
    }
    let (mut plain, mut timed) = (Turn::default(), Turn::timed(Some(Times::new(seconds.clone()))));
    for number in 0..PODS {
        let pod = pod(&format!("p{number}"), "10m");
        let decision = profile.decide(&pod, &mut cluster, &mut plain);
        // Nothing follows from what is timed.
        assert_eq!(profile.decide(&pod, &mut cluster, &mut timed), decision);
    }
    let evaluated = profile.evaluated();
    let count = |plugin: &str, point: &str| {
        evaluated.iter().find(|held| (held.0, held.1) == (plugin, point)).map_or(0, |held| held.2)
    };
    let fit = "NodeResourcesFit";
    assert_eq!((count(fit, "PreFilter"), count(fit, "Filter")), (2 * PODS, 3 * 2 * PODS));
    assert_eq!((count(fit, "PreScore"), count(fit, "Score")), (2 * PODS, 2 * 2 * PODS));
    // It looks at nodes only, and a plugin with nothing to say of the pods is not counted.
    assert_eq!((count("NodeName", "PreFilter"), count("NodePorts", "Filter")), (0, 0));
    let sampled = told(&seconds, ["PreFilter", fit, "Success"]);
    assert!((PODS / 20..PODS / 5).contains(&sampled), "{sampled} of {PODS} are timed");
    for (wanted, labels) in [
        (2 * sampled, ["Filter", fit, "Success"]),
        (sampled, ["Filter", fit, "UnschedulableAndUnresolvable"]),
        (sampled, ["PreFilter", "NodePorts", "Skip"]),
        (sampled, ["PreScore", fit, "Success"]),
        (2 * sampled, ["Score", fit, "Success"]),
        (sampled, ["ScoreExtensionNormalize", fit, "Success"]),
    ] {
        assert_eq!(told(&seconds, labels), wanted, "{labels:?}");
    }
}
