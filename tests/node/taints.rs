//! Taints of the node push pods out. Source: `test/e2e/node/taints.go`.

use serde_json::{Value, json};

use crate::space::{IDLE, Space, is_ready, pod, push};

/// Has the node's taints changed.
fn taint(space: &Space<'_>, change: impl Fn(&mut Vec<Value>)) {
    let node = format!("/api/v1/nodes/{}", space.cluster.host.name);
    space.update(&node, |node| {
        let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        change(&mut taints);
        node["spec"]["taints"] = taints.into();
    });
}

fn no_execute(key: &str) -> Value {
    json!({"key": key, "value": "evictTaintVal", "effect": "NoExecute"})
}

/// A pod that stays for so long where the node has the taints.
fn tolerant(name: &str, keys: &[(&str, Option<u32>)]) -> Value {
    let mut pod = pod(name, IDLE);
    for (key, seconds) in keys {
        let mut toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = (*seconds).into();
        }
        push(&mut pod["spec"]["tolerations"], toleration);
    }
    pod
}

pub(crate) fn pods_leave_a_tainted_node_when_their_tolerations_end(space: &Space<'_>) {
    let key = "kubernetes.io/e2e-evict-taint-key";
    for (name, seconds) in [("first", Some(2)), ("second", Some(6)), ("stays", None)] {
        space.start(&tolerant(name, &[(key, seconds)]));
    }
    let mut watch = space.watch("pods");
    taint(space, |taints| taints.push(no_execute(key)));
    let left = watch.until("two have left", |pods| pods.len() == 1);
    taint(space, |taints| taints.retain(|taint| taint["key"] != key));
    let order: Vec<_> = watch.deleted.iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(order, ["first", "second"]);
    assert!(left.values().all(is_ready), "{left:?}");
}

pub(crate) fn a_pod_stays_where_a_taint_goes_in_time(space: &Space<'_>) {
    let (short, long) = ("kubernetes.io/e2e-short-taint", "kubernetes.io/e2e-long-taint");
    space.start(&tolerant("stays", &[(short, Some(8)), (long, None)]));
    space.start(&tolerant("witness", &[(short, Some(1))]));
    let mut watch = space.watch("pods");
    taint(space, |taints| taints.push(no_execute(short)));
    watch.until("the taint has its effect", |pods| {
        pods.get("witness").is_none_or(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
    });
    taint(space, |taints| taints.retain(|taint| taint["key"] != short));
    // When the second witness is gone, what the first pod had of the first taint would long have been over.
    watch.until("the witness is gone", |pods| pods.len() == 1);
    space.start(&tolerant("second-witness", &[(long, Some(8))]));
    watch.until("both are known", |pods| pods.len() == 2);
    taint(space, |taints| taints.push(no_execute(long)));
    let left = watch.until("the second witness is gone", |pods| pods.len() == 1);
    taint(space, |taints| taints.retain(|taint| taint["key"] != long));
    assert!(left.contains_key("stays") && left.values().all(is_ready), "{left:?}");
}
