//! Decisions over small clusters, and random clusters that must never be overcommitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::framework::{Decision, Event, Framework};
use crate::types::{Node, Pod};

fn object(value: &Value) -> Object {
    Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()
}

fn node(name: &str, spec: Value, cpu: &str, pods: u32) -> Node {
    let value = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } }, "spec": spec,
        "status": { "allocatable": { "cpu": cpu, "memory": "4Gi", "pods": pods.to_string() } },
    });
    Node::decode(&object(&value)).unwrap()
}

fn pod(uid: &str, spec: Value) -> Pod {
    Pod::decode(&object(&json!({ "metadata": { "name": uid, "namespace": "ns", "uid": uid }, "spec": spec })))
        .unwrap()
}

fn cpu(amount: &str) -> Value {
    json!({ "containers": [{ "resources": { "requests": { "cpu": amount } } }] })
}

fn cluster(nodes: Vec<Node>) -> Cache {
    let mut cache = Cache::default();
    for node in nodes {
        cache.put_node(node);
    }
    cache
}

fn refusal(pod: &Pod, cache: &Cache) -> String {
    match Framework::default().decide(pod, cache, 0) {
        Decision::Unschedulable { message, .. } => message,
        Decision::Node(node) => panic!("placed on {node}"),
    }
}

fn place(pod: &Pod, cache: &mut Cache) -> String {
    match Framework::default().decide(pod, cache, 0) {
        Decision::Node(node) => {
            cache.put_pod(Arc::new(Pod { node: node.clone(), ..pod.clone() }));
            node
        }
        Decision::Unschedulable { message, .. } => panic!("{message}"),
    }
}

#[test]
fn refusals_are_upstreams() {
    let taint = json!({ "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] });
    let mut cache = cluster(vec![
        node("a", json!({}), "1", 10),
        node("b", json!({ "unschedulable": true }), "8", 10),
        node("c", taint, "8", 10),
    ]);
    assert_eq!(
        refusal(&pod("x", cpu("2")), &cache),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. \
         preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
    assert_eq!(refusal(&pod("x", cpu("2")), &Cache::default()), "no nodes available to schedule pods");
    let selecting = json!({ "nodeSelector": { "disk": "ssd" } });
    assert!(
        refusal(&pod("x", selecting), &cache).contains("1 node(s) didn't match Pod's node affinity/selector")
    );
    let ports = json!({ "containers": [{ "ports": [{ "containerPort": 80, "hostPort": 80 }] }] });
    assert_eq!(place(&pod("p1", ports.clone()), &mut cache), "a");
    assert!(
        refusal(&pod("p2", ports), &cache)
            .contains("1 node(s) didn't have free ports for the requested pod ports")
    );
    cache.put_node(node("a", json!({}), "1", 1));
    assert!(refusal(&pod("x", cpu("0")), &cache).contains("1 Too many pods"));
}

#[test]
fn a_refusal_says_whether_others_could_make_room() {
    let mut cache = cluster(vec![node("a", json!({}), "1", 10)]);
    place(&pod("first", cpu("800m")), &mut cache);
    let wants = pod("x", cpu("500m"));
    let full = "0/1 nodes are available: 1 Insufficient cpu. preemption: ";
    let because = |pod: &Pod| refusal(pod, &cache).strip_prefix(full).unwrap().to_owned();
    let none = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(because(&wants), none);
    let higher = Pod { priority: 10, ..wants.clone() };
    assert_eq!(because(&higher), "0/1 nodes are available: 1 Preemption is not supported.");
    let polite = Pod { never_preempts: true, ..wants };
    assert_eq!(because(&polite), "not eligible due to preemptionPolicy=Never.");
}

#[test]
fn tolerations_affinity_and_spread_decide() {
    let taint = json!({ "taints": [{ "key": "k", "value": "v", "effect": "NoExecute" }] });
    let mut cache = cluster(vec![node("a", json!({}), "4", 10), node("b", taint, "4", 10)]);
    let mut tolerant = cpu("100m");
    tolerant["tolerations"] = json!([{ "key": "k", "operator": "Exists" }]);
    tolerant["affinity"] = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["b"] }] }] } } });
    assert_eq!(place(&pod("x", tolerant), &mut cache), "b");
    let mut cache = cluster(vec![node("a", json!({}), "4", 10), node("b", json!({}), "4", 10)]);
    let mut places: Vec<String> = (0..4)
        .map(|n| {
            let sibling = Pod { owner: "rs".into(), ..pod(&n.to_string(), cpu("100m")) };
            place(&sibling, &mut cache)
        })
        .collect();
    places.sort();
    assert_eq!(places, ["a", "a", "b", "b"]);
}

#[test]
fn the_largest_amounts_neither_overflow_nor_blur_what_others_use() {
    let mut cache = cluster(vec![node("a", json!({}), "2", 10)]);
    place(&pod("small", cpu("1")), &mut cache);
    let giant = json!({ "nodeName": "a", "containers": [
        { "resources": { "requests": { "cpu": "10E", "memory": "10E" } } },
        { "resources": { "requests": { "cpu": "10E", "memory": "10E" } } },
    ] });
    // Pods that name their node pass no filter: two of them are together far beyond an i64.
    for uid in ["g1", "g2"] {
        cache.put_pod(Arc::new(pod(uid, giant.clone())));
    }
    assert!(refusal(&pod("x", cpu("1m")), &cache).contains("1 Insufficient cpu"));
    assert!(refusal(&pod("y", cpu("10E")), &cache).contains("1 Insufficient cpu"));
    assert!(cache.remove_pod("g1") && cache.remove_pod("g2"));
    assert!(refusal(&pod("z", cpu("1001m")), &cache).contains("1 Insufficient cpu"));
    assert_eq!(place(&pod("z", cpu("1")), &mut cache), "a");
    let mut vast = cluster(vec![node("v", json!({}), "10E", 10)]);
    assert_eq!(place(&pod("g", cpu("10E")), &mut vast), "v");
}

#[test]
fn what_cannot_be_read_still_has_a_name() {
    let broken = object(&json!({
        "metadata": { "name": "b", "namespace": "ns", "uid": "u" }, "spec": { "priority": "high" },
        "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "SchedulerError" }] },
    }));
    assert!(Pod::decode(&broken).is_err());
    let known = Pod::unreadable(&broken);
    assert_eq!((known.key.name.as_str(), known.uid.as_str()), ("b", "u"));
    assert_eq!(known.scheduled.map(|(_, reason, _)| reason).as_deref(), Some("SchedulerError"));
}

#[test]
fn hints_wake_only_whom_they_help() {
    let framework = Framework::default();
    let small = Arc::new(node("a", json!({}), "1", 10));
    let big = Arc::new(node("a", json!({}), "4", 10));
    let cordoned = Arc::new(node("a", json!({ "unschedulable": true }), "1", 10));
    let wants = pod("x", cpu("2"));
    let by = |name| std::collections::HashSet::from([name]);
    let grew = Event::NodeChanged(small.clone(), big);
    assert!(framework.may_help(&wants, &by("NodeResourcesFit"), &grew));
    assert!(!framework.may_help(&wants, &by("NodeUnschedulable"), &grew));
    assert!(framework.may_help(&wants, &by("NodeUnschedulable"), &Event::NodeChanged(cordoned, small)));
    assert!(!framework.may_help(&wants, &by("TaintToleration"), &Event::PodLeft(Arc::new(wants.clone()))));
}

#[test]
fn no_node_is_ever_overcommitted() {
    let mut seed = 42_u64;
    let mut chance = move |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    };
    let framework = Framework::default();
    let nodes = ["a", "b", "c"].map(|name| node(name, json!({}), "2", 8));
    let mut cache = cluster(nodes.to_vec());
    let mut placed: BTreeMap<String, (String, i64)> = BTreeMap::new();
    let mut refused = 0;
    for turn in 0..3000 {
        if chance(3) == 0 && !placed.is_empty() {
            let index = usize::try_from(chance(placed.len() as u64)).unwrap();
            let uid = placed.keys().nth(index).unwrap().clone();
            placed.remove(&uid);
            assert!(cache.remove_pod(&uid));
        } else {
            let amount = i64::try_from(chance(900)).unwrap();
            let new = pod(&format!("p{turn}"), cpu(&format!("{amount}m")));
            match framework.decide(&new, &cache, turn) {
                Decision::Node(node) => {
                    placed.insert(new.uid.clone(), (node.clone(), amount));
                    cache.put_pod(Arc::new(Pod { node, ..new }));
                }
                Decision::Unschedulable { .. } => {
                    // Then it truly fits nowhere.
                    for node in ["a", "b", "c"] {
                        let on = placed.values().filter(|(name, _)| name == node);
                        let (used, count) =
                            on.fold((0, 0), |(used, count), (_, cpu)| (used + cpu, count + 1));
                        assert!(used + amount > 2000 || count >= 8);
                    }
                    refused += 1;
                }
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
