//! What tools read from a node: its pods, their use of resources, a few counters.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::deps::Deps;
use crate::pod::PodView;

/// `GET /pods`: the pods of this node as the API has them.
pub(super) fn pods(deps: &Deps) -> Value {
    let items: Vec<Value> =
        deps.caches.pods.list().iter().filter_map(|pod| serde_json::from_slice(pod.bytes()).ok()).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

/// `GET /stats/summary`: CPU and memory per container. Shape: upstream's `stats/v1alpha1.Summary`, its main fields.
pub(super) async fn stats(deps: &Deps) -> Value {
    let now = reconcile::time::seconds(deps.now());
    let mut pods = Vec::new();
    for object in deps.caches.pods.list() {
        let Ok(pod) = PodView::decode(&object) else { continue };
        let mut containers = Vec::new();
        for record in deps.state.pod(pod.uid()).containers.iter().filter(|record| record.is_running()) {
            let Ok(stats) = deps.runtime.stats(&record.id).await else { continue };
            containers.push(json!({
                "name": record.name,
                "startTime": record.started_at().map(reconcile::time::seconds),
                "cpu": { "time": now, "usageCoreNanoSeconds": stats.cpu_usage_ns },
                "memory": {
                    "time": now, "usageBytes": stats.memory_usage_bytes,
                    "workingSetBytes": stats.memory_working_set_bytes,
                },
            }));
        }
        let meta = &pod.metadata;
        pods.push(json!({
            "podRef": { "name": meta.name, "namespace": meta.namespace, "uid": meta.uid },
            "containers": containers,
        }));
    }
    json!({ "node": { "nodeName": deps.config.node_name }, "pods": pods })
}

/// `GET /metrics` in the Prometheus text format.
pub(super) fn metrics(deps: &Deps) -> String {
    let pods = deps.caches.pods.list();
    let running: usize = pods
        .iter()
        .map(|pod| {
            let runtime = deps.state.pod(&pod.meta().uid);
            runtime.containers.iter().filter(|record| record.is_running()).count()
        })
        .sum();
    let mut text = String::new();
    for (name, help, value) in [
        ("kubelet_running_pods", "Pods bound to this node.", pods.len()),
        ("kubelet_running_containers", "Containers that run.", running),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    text
}
