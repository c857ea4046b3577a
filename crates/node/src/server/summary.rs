//! What tools read from a node: its pods, their use of resources, a few counters.

use std::path::PathBuf;
use std::sync::Arc;

use api::Status;
use base::lifecycle::Tasks;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use serde_json::{Value, json};

use super::cgroups::{GroupFigures, Limit, Pressure, Stalled};
use super::disk_use::{Counted, Walks};
use super::host;
use super::text::{family, sample};
use super::usage::{self, ContainerUsage, Measured, PodUsage, Rates, Usage};
use super::volume_use::{self, Told, VolumeUse};
use crate::deps::{Deps, blocking};
use crate::pod::PodView;
use crate::registration::facts::architecture;
use crate::static_pods::mirrored;
use crate::volumes::kind::Kind;
use crate::volumes::{PodDirectories, empty_dir};

/// `GET /pods`: the pods of this node as the API has them.
pub(super) fn pods(deps: &Deps) -> Value {
    let items: Vec<Value> =
        deps.caches.pods.list().iter().filter_map(|pod| serde_json::from_slice(pod.bytes()).ok()).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

/// What is kept between two requests for the summary.
#[derive(Default)]
pub(super) struct Before {
    rates: Rates,
    walks: Walks,
    volumes: Arc<VolumeUse>,
}

/// `GET /stats/summary`: CPU, memory, file systems and network of the node, its pods and their containers. Rates are
/// those since it was last asked. `brief`: CPU and memory only. Shape: upstream's `stats/v1alpha1.Summary`.
/// What volumes of others hold is asked by `tasks`, which may take longer than this.
pub(super) async fn stats(deps: &Arc<Deps>, (before, tasks): (&Arc<Before>, &Tasks), brief: bool) -> Value {
    let at = deps.now();
    let now = reconcile::time::seconds(at);
    let (usage, pods) = (usage::node().await, usage::pods(deps).await.pods);
    let mut node = used(&usage, before.rates.nanocores("", at, usage.cpu_ns), &now);
    let memory = u64::try_from(deps.hardware.memory_bytes).unwrap_or_default();
    node["memory"]["availableBytes"] = memory.saturating_sub(usage.working_set_bytes).into();
    node["nodeName"] = deps.config.node_name.clone().into();
    let looked = match brief {
        true => Looked::briefly(&pods, &now),
        false => {
            let told = before.volumes.of(deps, tasks, pods.iter().map(|pod| &pod.pod)).await;
            let mut looked = look(deps, before, pods, at, now).await;
            looked.pods.iter_mut().for_each(|(shown, _)| add_told(shown, &told));
            looked
        }
    };
    let mut pods = looked.pods;
    for (shown, counters) in &mut pods {
        rated(shown, counters, &before.rates, at);
    }
    before.rates.keep(at);
    add_to(&mut node, looked.node);
    let pods: Vec<Value> = pods.into_iter().map(|(shown, _)| shown).collect();
    json!({ "node": node, "pods": pods })
}

/// What the file systems and the kernel tell.
#[derive(Default)]
struct Looked {
    /// To be added to the node.
    node: Value,
    /// Each pod, and the counters of which it has rates.
    pods: Vec<(Value, Vec<(String, u64)>)>,
}

impl Looked {
    fn briefly(pods: &[PodUsage], now: &str) -> Self {
        let shown = |pod| (pod_figures(pod, None, now), pod_rates(pod));
        Self { node: json!({}), pods: pods.iter().map(shown).collect() }
    }
}

async fn look(
    deps: &Deps,
    before: &Arc<Before>,
    mut pods: Vec<PodUsage>,
    at: Timestamp,
    now: String,
) -> Looked {
    let data_dir = deps.config.data_dir.clone();
    let directories: Vec<PodDirectories> = pods.iter().map(|pod| deps.directories(pod.pod.uid())).collect();
    let before = before.clone();
    let looked = blocking(move || {
        usage::add_groups(&mut pods);
        let fs = host::file_system(&data_dir, &now);
        let mut shown = Vec::new();
        for (pod, directories) in pods.iter().zip(&directories) {
            let mut entry = pod_figures(pod, fs.as_ref(), &now);
            add_storage(&mut entry, pod, directories, &before.walks, (at, &now));
            shown.push((entry, pod_rates(pod)));
        }
        before.walks.keep(at);
        Looked { node: node_figures(fs, &now), pods: shown }
    });
    looked.await.unwrap_or_default()
}

/// The node but for its CPU and memory. Images and what containers write lie in the same file system.
fn node_figures(fs: Option<Value>, now: &str) -> Value {
    let psi = |what| Pressure::of_host(what).map(|pressure| psi(&pressure));
    let mut node = json!({
        "runtime": { "imageFs": fs, "containerFs": fs },
        "network": host::network_of_host(now),
        "rlimit": host::processes(now),
        "swap": host::swap(now),
        "cpu": { "psi": psi("cpu") },
        "memory": { "psi": psi("memory") },
        "io": { "time": now, "psi": psi("io") },
    });
    node["fs"] = fs.into();
    without_null(&mut node);
    node
}

/// Adds what was told of a pod's volumes.
fn add_told(shown: &mut Value, told: &[Told]) {
    let own = told.iter().filter(|told| shown["podRef"]["uid"] == *told.uid);
    let own: Vec<Value> = own.map(Told::shown).collect();
    if own.is_empty() {
        return;
    }
    match &mut shown["volume"] {
        Value::Array(volumes) => volumes.extend(own),
        none => *none = own.into(),
    }
}

/// Fields without a value are left out, as Go does it.
pub(super) fn without_null(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(without_null);
        fields.retain(|_, field| !field.is_null());
    }
}

/// Adds fields to an object, also to objects in it.
fn add_to(target: &mut Value, more: Value) {
    match (target, more) {
        (Value::Object(target), Value::Object(more)) => {
            for (name, value) in more {
                match target.get_mut(&name) {
                    Some(known @ Value::Object(_)) if value.is_object() => add_to(known, value),
                    _ => drop(target.insert(name, value)),
                }
            }
        }
        (target, more) => *target = more,
    }
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

/// What the kernel tells of a container's group. Shape: `MemoryStats`, `SwapStats`, `PSIStats` (KEP-2400, KEP-4205).
fn group_figures(group: &GroupFigures, working_set_bytes: u64, now: &str) -> Value {
    let [cpu, memory, io] = &group.pressure;
    let psi = |pressure: &Option<Pressure>| pressure.as_ref().map(psi);
    let left = |limit: Option<Limit>, used: u64| Some(limit?.most()?.saturating_sub(used));
    let memory_left = left(group.memory_limit, working_set_bytes);
    let swap_left = group.swap_bytes.and_then(|used| left(group.swap_limit, used));
    let mut figures = json!({
        "cpu": { "psi": psi(cpu) },
        "memory": {
            "availableBytes": memory_left, "rssBytes": group.rss_bytes, "pageFaults": group.page_faults,
            "majorPageFaults": group.major_page_faults, "psi": psi(memory),
        },
        "io": io.as_ref().map(|pressure| json!({ "time": now, "psi": self::psi(pressure) })),
        "swap": group.swap_bytes.map(|used| {
            json!({ "time": now, "swapUsageBytes": used, "swapAvailableBytes": swap_left })
        }),
    });
    without_null(&mut figures);
    figures
}

fn psi(pressure: &Pressure) -> Value {
    let line = |stalled: &Stalled| {
        let [avg10, avg60, avg300] = stalled.averages;
        // In nanoseconds, which the kernel tells in microseconds.
        let total = stalled.total_us.saturating_mul(1000);
        json!({ "total": total, "avg10": avg10, "avg60": avg60, "avg300": avg300 })
    };
    json!({ "some": line(&pressure.some), "full": pressure.full.as_ref().map(line) })
}

/// A pod but for its rates and what it has stored. Reads files where a file system is given: blocks then.
fn pod_figures(pod: &PodUsage, fs: Option<&Value>, now: &str) -> Value {
    let container = |container: &ContainerUsage| {
        let mut entry = used(&container.usage, None, now);
        entry["name"] = container.name.clone().into();
        entry["startTime"] = json!(container.started.map(reconcile::time::seconds));
        if let Some(group) = &container.group {
            add_to(&mut entry, group_figures(group, container.usage.working_set_bytes, now));
        }
        if let Some(fs) = fs {
            entry["rootfs"] = shared(fs);
            entry["logs"] = shared(fs);
            entry["logs"]["usedBytes"] = engine_api::logs::bytes(&container.log_path).into();
        }
        entry
    };
    let meta = &pod.pod.metadata;
    let mut entry = used(&pod.sum(), None, now);
    entry["podRef"] = json!({ "name": meta.name, "namespace": meta.namespace, "uid": meta.uid });
    let started = pod.containers.iter().filter_map(|container| container.started).min();
    entry["startTime"] = json!(started.map(reconcile::time::seconds));
    entry["containers"] = pod.containers.iter().map(container).collect();
    if fs.is_none() {
        return entry;
    }
    let counts: Vec<u64> = pod.containers.iter().filter_map(|one| one.group.as_ref()?.processes).collect();
    if !counts.is_empty() {
        entry["process_stats"] = json!({ "process_count": counts.iter().sum::<u64>() });
    }
    // A pod in the host's network has none of its own.
    let process = pod.containers.first().filter(|_| !pod.pod.host_network());
    let network =
        process.and_then(|process| host::network_of(&process.pid.to_string(), host::POD_INTERFACE, now));
    if let Some(network) = network {
        entry["network"] = network;
    }
    entry
}

/// Adds the volumes that lie in directories of the pod's own, and what those on disk and the logs take together. What
/// containers write beside their volumes is not told: the engine does not measure it.
fn add_storage(
    entry: &mut Value,
    pod: &PodUsage,
    directories: &PodDirectories,
    walks: &Walks,
    (at, now): (Timestamp, &str),
) {
    let logs = entry["containers"].as_array().into_iter().flatten();
    let mut bytes: u64 = logs.filter_map(|one| one["logs"]["usedBytes"].as_u64()).sum();
    let mut volumes = Vec::new();
    for volume in pod.pod.spec.volumes.iter().flatten() {
        let Some((path, is_memory)) = kept_in(pod, directories, volume) else { continue };
        let counted = walks.used(&format!("{}/{}", pod.pod.uid(), volume.name), &path, at);
        let Some(used) = counted.and_then(Counted::whole) else { continue };
        let Some(mut shown) = host::file_system(&path, now) else { continue };
        shown["name"] = volume.name.clone().into();
        shown["usedBytes"] = used.bytes.into();
        shown["inodesUsed"] = used.inodes.into();
        volumes.push(shown);
        if !is_memory {
            bytes = bytes.saturating_add(used.bytes);
        }
    }
    if let Some(first) = entry["containers"].get(0) {
        entry["ephemeral-storage"] = first["rootfs"].clone();
        entry["ephemeral-storage"]["usedBytes"] = bytes.into();
    }
    if !volumes.is_empty() {
        entry["volume"] = volumes.into();
    }
}

/// Where a volume lies, and whether that is memory; `None` for one that is not the pod's alone.
fn kept_in(pod: &PodUsage, directories: &PodDirectories, volume: &Volume) -> Option<(PathBuf, bool)> {
    match Kind::of(&pod.pod.metadata.name, volume).ok()? {
        Kind::EmptyDir(source) => {
            Some((empty_dir::path(directories, &volume.name, source), empty_dir::is_memory(source)))
        }
        Kind::Objects => Some((directories.memory_volume(&volume.name), true)),
        _ => None,
    }
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

/// `GET /metrics` in the Prometheus text format: what the node counts, and what it has now. Source:
/// `pkg/kubelet/metrics`, its names.
pub(super) async fn metrics(deps: &Arc<Deps>, (before, tasks): (&Before, &Tasks)) -> Result<String, Status> {
    let (sandboxes, states) = deps.state.counts();
    let mut text = deps.figures.text()?;
    let out = &mut text;
    family(out, "kubelet_node_name", "gauge", "The node's name.");
    sample(out, "kubelet_node_name", &[("node", &deps.config.node_name)], 1, None);
    family(out, "kubelet_desired_pods", "gauge", "Pods that are bound to this node.");
    // Copies of pods of files are not counted: what they show is.
    let bound = deps.caches.pods.list().iter().filter(|pod| mirrored(pod).is_none()).count();
    sample(out, "kubelet_desired_pods", &[("static", "")], bound, None);
    sample(out, "kubelet_desired_pods", &[("static", "true")], deps.static_pods.list().len(), None);
    family(out, "kubelet_running_pods", "gauge", "Pods with a sandbox that runs.");
    sample::<&str>(out, "kubelet_running_pods", &[], sandboxes, None);
    family(out, "kubelet_running_containers", "gauge", "Containers of pods, by their state.");
    for (state, count) in ["created", "exited", "running"].into_iter().zip(states) {
        sample(out, "kubelet_running_containers", &[("container_state", state)], count, None);
    }
    family(out, "kubernetes_build_info", "gauge", "Which build it is.");
    let platform = format!("linux/{}", architecture());
    let build = [("git_version", deps.config.kubelet_version.as_str()), ("platform", &platform)];
    sample(out, "kubernetes_build_info", &build, 1, None);
    let pods: Vec<PodView> =
        deps.caches.pods.list().iter().filter_map(|pod| PodView::decode(pod).ok()).collect();
    volume_use::metrics(out, &before.volumes.of(deps, tasks, pods.iter()).await);
    Ok(text)
}

/// `GET /metrics/resource` in the Prometheus text format: what the resource metrics API is made of.
/// Source: `pkg/kubelet/metrics/collectors/resource_metrics.go`, its names.
pub(super) async fn resource_metrics(deps: &Deps) -> String {
    let measured = usage::pods(deps).await;
    resource_text(deps.now(), &usage::node().await, &measured)
}

fn resource_text(now: Timestamp, node: &Usage, measured: &Measured) -> String {
    let Measured { pods, failed } = measured;
    let mut text = String::new();
    let out = &mut text;
    let at = Some(now);
    family(out, "node_cpu_usage_seconds_total", "counter", "CPU time of the node, in core-seconds.");
    sample::<&str>(out, "node_cpu_usage_seconds_total", &[], seconds(node.cpu_ns), at);
    family(out, "node_memory_working_set_bytes", "gauge", "Working set of the node, in bytes.");
    sample::<&str>(out, "node_memory_working_set_bytes", &[], node.working_set_bytes, at);
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
    sample::<&str>(out, "resource_scrape_error", &[], u8::from(*failed), None);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn web(group: Option<GroupFigures>, log_path: PathBuf) -> PodUsage {
        let container = ContainerUsage {
            id: "c1".to_owned(),
            pid: std::process::id(),
            log_path,
            name: "main".to_owned(),
            image: String::new(),
            started: None,
            usage: Usage { cpu_ns: 5, memory_bytes: 2048, working_set_bytes: 1024 },
            group,
        };
        let pod = pod(json!({
            "containers": [{ "name": "main" }],
            "volumes": [{ "name": "scratch", "emptyDir": {} }, { "name": "host", "hostPath": { "path": "/" } }],
        }));
        PodUsage { pod, containers: vec![container] }
    }

    #[test]
    fn logs_and_volumes_are_counted_as_far_as_they_are_the_pods_own() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "12345").unwrap();
        std::fs::write(dir.path().join("0.log.1"), "123").unwrap();
        let directories = PodDirectories::new(dir.path(), &dir.path().join("run"), "u1");
        std::fs::create_dir_all(directories.disk_volume("scratch")).unwrap();
        std::fs::write(directories.disk_volume("scratch").join("file"), vec![1; 100_000]).unwrap();
        let pod = web(None, log);
        let fs = host::file_system(dir.path(), "now");
        let mut shown = pod_figures(&pod, fs.as_ref(), "now");
        add_storage(&mut shown, &pod, &directories, &Walks::default(), (Timestamp::UNIX_EPOCH, "now"));
        assert_eq!(shown["containers"][0]["logs"]["usedBytes"], 8);
        assert_eq!(shown["volume"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&shown["volume"][0]["name"], &shown["volume"][0]["inodesUsed"]),
            (&json!("scratch"), &json!(2))
        );
        assert!(shown["process_stats"].is_null(), "nobody has told how many there are");
        let (volume, all) = (&shown["volume"][0]["usedBytes"], &shown["ephemeral-storage"]["usedBytes"]);
        assert!(volume.as_u64() >= Some(100_000), "{volume}");
        assert_eq!(all.as_u64(), volume.as_u64().map(|bytes| bytes + 8));
    }

    #[test]
    fn what_the_kernel_tells_of_a_group_is_shown_and_nothing_else() {
        let stalled = Stalled { total_us: 7, averages: [1.5, 0.0, 0.0] };
        let group = GroupFigures {
            memory_limit: Some(Limit::Most(4096)),
            rss_bytes: Some(9),
            swap_bytes: Some(3),
            pressure: [Some(Pressure { some: stalled, full: None }), None, None],
            ..GroupFigures::default()
        };
        let shown = pod_figures(&web(Some(group), PathBuf::new()), None, "now");
        let main = &shown["containers"][0];
        let memory = json!({ "time": "now", "usageBytes": 2048, "workingSetBytes": 1024,
            "availableBytes": 3072, "rssBytes": 9 });
        assert_eq!(main["memory"], memory);
        assert_eq!(main["swap"], json!({ "time": "now", "swapUsageBytes": 3 }));
        assert_eq!(
            (&main["cpu"]["psi"]["some"]["total"], &main["cpu"]["psi"]["some"]["avg10"]),
            (&json!(7000), &json!(1.5))
        );
        assert!(main["cpu"]["psi"]["full"].is_null(), "{main}");
        assert!(main["io"].is_null() && main["cpu"]["usageCoreNanoSeconds"] == 5, "{main}");
    }
}
