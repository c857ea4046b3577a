//! What tools read from a node: its pods, their use of resources, a few counters.

use std::fmt::{Display, Write as _};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::host;
use super::usage::{self, ContainerUsage, PodUsage, Rates, Usage};
use crate::deps::{Deps, blocking};

/// `GET /pods`: the pods of this node as the API has them.
pub(super) fn pods(deps: &Deps) -> Value {
    let items: Vec<Value> =
        deps.caches.pods.list().iter().filter_map(|pod| serde_json::from_slice(pod.bytes()).ok()).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

/// `GET /stats/summary`: CPU, memory, file systems and network of the node, its pods and their containers. Rates are
/// those since it was last asked. Shape: upstream's `stats/v1alpha1.Summary`.
pub(super) async fn stats(deps: &Deps, rates: &Rates) -> Value {
    let at = deps.now();
    let now = reconcile::time::seconds(at);
    let data_dir = deps.config.data_dir.clone();
    let (usage, pods) = (usage::node().await, usage::pods(deps).await);
    let mut node = used(&usage, rates.nanocores("", at, usage.cpu_ns), &now);
    let memory = u64::try_from(deps.hardware.memory_bytes).unwrap_or_default();
    node["memory"]["availableBytes"] = memory.saturating_sub(usage.working_set_bytes).into();
    node["nodeName"] = deps.config.node_name.clone().into();
    let figures = blocking(move || {
        let fs = host::file_system(&data_dir, &now);
        let shown = pods.iter().map(|pod| (pod_figures(pod, fs.as_ref(), &now), pod_rates(pod)));
        let shown: Vec<(Value, Vec<(String, u64)>)> = shown.collect();
        (fs, host::network_of_host(&now), shown)
    });
    let (fs, network, mut pods) = figures.await.unwrap_or_default();
    for (shown, counters) in &mut pods {
        rated(shown, counters, rates, at);
    }
    rates.keep(at);
    // Images and what containers write lie in the same file system.
    node["runtime"] = json!({ "imageFs": fs, "containerFs": fs });
    node["fs"] = fs.into();
    node["network"] = network.into();
    let pods: Vec<Value> = pods.into_iter().map(|(shown, _)| shown).collect();
    json!({ "node": node, "pods": pods })
}

fn used(usage: &Usage, nanocores: Option<u64>, now: &str) -> Value {
    let mut cpu = json!({ "time": now, "usageCoreNanoSeconds": usage.cpu_ns });
    if let Some(nanocores) = nanocores {
        cpu["usageNanoCores"] = nanocores.into();
    }
    json!({
        "cpu": cpu,
        "memory": {
            "time": now, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes,
        },
    })
}

/// A pod but for its rates. Reads files: blocks.
fn pod_figures(pod: &PodUsage, fs: Option<&Value>, now: &str) -> Value {
    let container = |container: &ContainerUsage| {
        let mut entry = used(&container.usage, None, now);
        entry["name"] = container.name.clone().into();
        entry["startTime"] = json!(container.started.map(reconcile::time::seconds));
        if let Some(fs) = fs {
            entry["rootfs"] = shared(fs);
            entry["logs"] = shared(fs);
            let length = std::fs::metadata(&container.log_path).map(|file| file.len());
            entry["logs"]["usedBytes"] = length.unwrap_or_default().into();
        }
        entry
    };
    let meta = &pod.pod.metadata;
    let mut entry = used(&pod.sum(), None, now);
    entry["podRef"] = json!({ "name": meta.name, "namespace": meta.namespace, "uid": meta.uid });
    let started = pod.containers.iter().filter_map(|container| container.started).min();
    entry["startTime"] = json!(started.map(reconcile::time::seconds));
    entry["containers"] = pod.containers.iter().map(container).collect();
    // A pod in the host's network has none of its own.
    let process = pod.containers.first().filter(|_| !pod.pod.host_network());
    let network =
        process.and_then(|process| host::network_of(&process.pid.to_string(), host::POD_INTERFACE, now));
    if let Some(network) = network {
        entry["network"] = network;
    }
    entry
}

/// What somebody has of a file system that he shares with others: how large it is, and how much is left.
fn shared(fs: &Value) -> Value {
    let fields = ["time", "availableBytes", "capacityBytes", "inodesFree", "inodes"];
    fields.into_iter().map(|field| (field.to_owned(), fs[field].clone())).collect()
}

/// The counters of a pod and of its containers, in order.
fn pod_rates(pod: &PodUsage) -> Vec<(String, u64)> {
    let own = (pod.pod.uid().to_owned(), pod.sum().cpu_ns);
    let containers = pod.containers.iter().map(|container| (container.id.clone(), container.usage.cpu_ns));
    std::iter::once(own).chain(containers).collect()
}

/// Adds the rates of a pod and its containers, where there are any.
fn rated(shown: &mut Value, counters: &[(String, u64)], rates: &Rates, at: Timestamp) {
    for (place, (who, cpu_ns)) in counters.iter().enumerate() {
        let Some(nanocores) = rates.nanocores(who, at, *cpu_ns) else { continue };
        let entry = match place {
            0 => Some(&mut *shown),
            place => shown["containers"].get_mut(place - 1),
        };
        if let Some(entry) = entry {
            entry["cpu"]["usageNanoCores"] = nanocores.into();
        }
    }
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
    family(&mut text, "kubelet_running_pods", "gauge", "Pods bound to this node.");
    sample(&mut text, "kubelet_running_pods", &[], pods.len(), None);
    family(&mut text, "kubelet_running_containers", "gauge", "Containers that run.");
    sample(&mut text, "kubelet_running_containers", &[], running, None);
    text
}

/// `GET /metrics/resource` in the Prometheus text format: what the resource metrics API is made of.
/// Source: `pkg/kubelet/metrics/collectors/resource_metrics.go`, its names.
pub(super) async fn resource_metrics(deps: &Deps) -> String {
    let pods = usage::pods(deps).await;
    resource_text(deps.now(), &usage::node().await, &pods)
}

fn resource_text(now: Timestamp, node: &Usage, pods: &[PodUsage]) -> String {
    let mut text = String::new();
    let out = &mut text;
    let at = Some(now);
    family(out, "node_cpu_usage_seconds_total", "counter", "CPU time of the node, in core-seconds.");
    sample(out, "node_cpu_usage_seconds_total", &[], seconds(node.cpu_ns), at);
    family(out, "node_memory_working_set_bytes", "gauge", "Working set of the node, in bytes.");
    sample(out, "node_memory_working_set_bytes", &[], node.working_set_bytes, at);
    let running = || pods.iter().filter(|pod| !pod.containers.is_empty());
    let labels = |pod: &'_ PodUsage| {
        let meta = &pod.pod.metadata;
        [("namespace", meta.namespace.clone()), ("pod", meta.name.clone())]
    };
    family(out, "pod_cpu_usage_seconds_total", "counter", "CPU time of a pod, in core-seconds.");
    for pod in running() {
        sample(out, "pod_cpu_usage_seconds_total", &labels(pod), seconds(pod.sum().cpu_ns), at);
    }
    family(out, "pod_memory_working_set_bytes", "gauge", "Working set of a pod, in bytes.");
    for pod in running() {
        sample(out, "pod_memory_working_set_bytes", &labels(pod), pod.sum().working_set_bytes, at);
    }
    for (name, kind, help, value) in CONTAINER_METRICS {
        family(out, name, kind, help);
        for (pod, container) in
            running().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
        {
            let [namespace, pod] = labels(pod);
            if let Some(value) = value(container) {
                sample(out, name, &[("container", container.name.clone()), namespace, pod], value, at);
            }
        }
    }
    family(out, "resource_scrape_error", "gauge", "1 if something could not be measured.");
    sample(out, "resource_scrape_error", &[], 0, None);
    text
}

/// A metric of containers: name, type, what it says, and its value.
type ContainerMetric = (&'static str, &'static str, &'static str, fn(&ContainerUsage) -> Option<f64>);

#[allow(clippy::cast_precision_loss, reason = "figures of memory and time are far below 2^53")]
const CONTAINER_METRICS: [ContainerMetric; 3] = [
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "CPU time of a container, in core-seconds.",
        |container| Some(seconds(container.usage.cpu_ns)),
    ),
    ("container_memory_working_set_bytes", "gauge", "Working set of a container, in bytes.", |container| {
        Some(container.usage.working_set_bytes as f64)
    }),
    (
        "container_start_time_seconds",
        "gauge",
        "When a container started, in seconds since 1970.",
        |container| container.started.map(|at| at.as_millisecond() as f64 / 1000.0),
    ),
];

#[allow(clippy::cast_precision_loss, reason = "a nanosecond in years of CPU time is lost")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The head of a metric.
fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A line of a metric. Labels are names of the API, which need no escape.
fn sample(
    text: &mut String,
    name: &str,
    labels: &[(&str, String)],
    value: impl Display,
    at: Option<Timestamp>,
) {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let at = at.map_or_else(String::new, |at| format!(" {}", at.as_millisecond()));
    let _ = writeln!(text, "{name}{labels} {value}{at}");
}
