//! Indexes that do not follow from comparing decisions: order, eviction of counters, and that nothing is left behind.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::types::{Labels, Selector};

fn node(name: &str, zone: &str) -> Arc<Node> {
    let labels = Labels::from([("topology.kubernetes.io/zone".to_owned(), zone.to_owned())]);
    Arc::new(Node { name: name.into(), labels, images: vec![("i".into(), 1)], ..Node::default() })
}

fn pod(uid: &str, node: &str, app: &str) -> Arc<Pod> {
    let labels = Arc::new(Labels::from([("app".to_owned(), app.to_owned())]));
    let key = api::Key::new("ns", uid);
    Arc::new(Pod { key, uid: uid.into(), node: node.into(), labels, ..Pod::default() })
}

fn web() -> [Matcher; 1] {
    let selector = serde_json::from_value(json!({ "matchLabels": { "app": "web" } })).unwrap();
    [Matcher::within("ns", Selector::new(Some(selector)))]
}

#[test]
fn zones_take_turns() {
    let mut cluster = Cluster::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")] {
        cluster.put_node(node(name, zone));
    }
    let names = |cluster: &Cluster| {
        cluster.states().map(|state| state.node().name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&cluster), "a1 b1 c1 a2 c2 a3");
    cluster.remove_node("a1");
    cluster.put_node(node("b1", "c"));
    assert_eq!(names(&cluster), "a2 c1 a3 c2 b1");
}

#[test]
fn counters_follow_and_are_bounded() {
    let mut cluster = Cluster::default();
    cluster.put_node(node("n", "a"));
    cluster.put_pod(pod("p1", "n", "web"));
    cluster.count(&web());
    cluster.put_pod(pod("p2", "n", "web"));
    cluster.put_pod(pod("p3", "n", "db"));
    let all = |cluster: &Cluster| {
        cluster.groups.counts(&web()).map(|counts| counts.values().map(|count| count.all).sum::<i64>())
    };
    assert_eq!(all(&cluster), Some(2));
    cluster.put_pod(Arc::new(Pod { terminating: true, ..(*pod("p2", "n", "web")).clone() }));
    assert_eq!(cluster.groups.counts(&web()).unwrap()[&0], groups::Count { all: 2, staying: 1 });
    for number in 0..5000 {
        let labels = Labels::from([("n".to_owned(), number.to_string())]);
        cluster.begin();
        cluster.count(&[Matcher::within("ns", Selector::of_labels(&labels))]);
    }
    // Forgotten; counted for the moment, or anew when it is asked for.
    assert_eq!(all(&cluster), None);
    assert_eq!(cluster.counts(&web())[&0], groups::Count { all: 2, staying: 1 });
    cluster.count(&web());
    assert_eq!(all(&cluster), Some(2));
}

#[test]
fn nothing_is_left_behind() {
    let mut cluster = Cluster::default();
    // A pod may be told before its node, and outlive it.
    cluster.put_pod(pod("p", "n", "web"));
    assert!(cluster.is_empty() && cluster.named("n").is_none() && cluster.has_pod("p"));
    cluster.put_node(node("n", "a"));
    assert_eq!(cluster.named("n").unwrap().pods.len(), 1);
    cluster.put_pod(pod("p", "m", "web"));
    assert_eq!(cluster.named("n").unwrap().pods.len(), 0);
    assert!(cluster.remove_node("n").is_some() && cluster.remove_node("n").is_none());
    assert!(cluster.remove_pod("p").is_some() && cluster.remove_pod("p").is_none());
    assert!(cluster.by_name.is_empty() && cluster.places.is_empty() && !cluster.has_images());
    cluster.put_node(node("other", "a"));
    assert_eq!((cluster.states.len(), cluster.len()), (2, 1));
}
