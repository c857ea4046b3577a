//! What containers and sandboxes use.

use std::collections::{HashMap, HashSet};

use engine_api::{ContainerState, Stats};
use jiff::Timestamp;
use tonic::Status;

use crate::known::{Kept, Pod};
use crate::proto::{self, UInt64Value};
use crate::shared::Shared;
use crate::status::nanos;

/// Counters of a container or sandbox when they were last asked for: a rate needs two.
#[derive(Clone, Copy)]
struct Sample {
    at: Timestamp,
    cpu_ns: u64,
    /// The rate that this sample gave.
    nano_cores: Option<u64>,
}

/// Rates closer together say little: the last one is told again.
const APART: std::time::Duration = std::time::Duration::from_millis(100);

/// The last samples by id.
#[derive(Default)]
pub(crate) struct Samples(HashMap<String, Sample>);

impl Samples {
    /// CPU time per second since the last sample, in nanoseconds.
    fn rate(&mut self, id: &str, at: Timestamp, cpu_ns: u64) -> Option<u64> {
        let before = self.0.get(id).copied();
        if let Some(before) = before
            && at.duration_since(before.at).unsigned_abs() < APART
        {
            return before.nano_cores;
        }
        let nano_cores = before.and_then(|before| {
            let passed =
                u64::try_from(at.duration_since(before.at).as_nanos()).ok().filter(|passed| *passed > 0)?;
            let used = u128::from(cpu_ns.saturating_sub(before.cpu_ns)) * 1_000_000_000;
            u64::try_from(used / u128::from(passed)).ok()
        });
        self.0.insert(id.to_owned(), Sample { at, cpu_ns, nano_cores });
        nano_cores
    }

    /// Forgets what is gone.
    fn keep(&mut self, ids: &HashSet<&str>) {
        self.0.retain(|id, _| ids.contains(id.as_str()));
    }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(at: Timestamp, ns: u64, rate: Option<u64>) -> proto::CpuUsage {
    proto::CpuUsage {
        timestamp: nanos(at),
        usage_core_nano_seconds: value(ns),
        usage_nano_cores: rate.and_then(value),
        psi: None,
    }
}

fn memory(at: Timestamp, stats: &Stats, limit: Option<u64>) -> proto::MemoryUsage {
    proto::MemoryUsage {
        timestamp: nanos(at),
        working_set_bytes: value(stats.memory_working_set_bytes),
        available_bytes: limit.and_then(|limit| value(limit.saturating_sub(stats.memory_working_set_bytes))),
        usage_bytes: value(stats.memory_usage_bytes),
        ..proto::MemoryUsage::default()
    }
}

/// One container; one that does not run uses nothing.
pub(crate) async fn container(
    shared: &Shared,
    container: &Kept,
) -> Result<(proto::ContainerStats, Stats), Status> {
    let spec = &container.status.spec;
    let stats = match container.status.state {
        ContainerState::Running { .. } => shared.runtime.stats(&spec.id).await.map_err(crate::failure::of)?,
        _ => Stats::default(),
    };
    let at = Timestamp::now();
    let rate = shared.samples.lock().rate(&spec.id, at, stats.cpu_usage_ns);
    let limit = spec.resources.memory_limit_bytes.and_then(|limit| u64::try_from(limit).ok());
    let attributes = proto::ContainerAttributes {
        id: spec.id.clone(),
        metadata: container.config.metadata.clone(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    };
    let told = proto::ContainerStats {
        attributes: Some(attributes),
        cpu: Some(cpu(at, stats.cpu_usage_ns, rate)),
        memory: Some(memory(at, &stats, limit)),
        ..proto::ContainerStats::default()
    };
    Ok((told, stats))
}

/// Containers that a filter lets through, as far as they run.
pub(crate) async fn containers(
    shared: &Shared,
    filter: Option<proto::ContainerStatsFilter>,
) -> Result<Vec<proto::ContainerStats>, Status> {
    let filter = filter.map(crate::filters::of_stats).unwrap_or_default();
    let mut all = Vec::new();
    for one in shared.containers_like(&filter).await? {
        // One that has ended meanwhile is left out.
        if matches!(one.status.state, ContainerState::Running { .. })
            && let Ok((stats, _)) = container(shared, &one).await
        {
            all.push(stats);
        }
    }
    forget_gone(shared).await?;
    Ok(all)
}

/// One sandbox: the sum of its containers, with each of them.
pub(crate) async fn pod(shared: &Shared, pod: &Pod) -> Result<proto::PodSandboxStats, Status> {
    let id = &pod.status.spec.id;
    let filter = proto::ContainerFilter { pod_sandbox_id: id.clone(), ..proto::ContainerFilter::default() };
    let (mut containers, mut sum) = (Vec::new(), Stats::default());
    for one in shared.containers_like(&filter).await? {
        if !matches!(one.status.state, ContainerState::Running { .. }) {
            continue;
        }
        let Ok((told, stats)) = container(shared, &one).await else { continue };
        sum.cpu_usage_ns += stats.cpu_usage_ns;
        sum.memory_usage_bytes += stats.memory_usage_bytes;
        sum.memory_working_set_bytes += stats.memory_working_set_bytes;
        sum.pids += stats.pids;
        containers.push(told);
    }
    let at = Timestamp::now();
    let rate = shared.samples.lock().rate(id, at, sum.cpu_usage_ns);
    let process = proto::ProcessUsage { timestamp: nanos(at), process_count: value(sum.pids) };
    let linux = proto::LinuxPodSandboxStats {
        cpu: Some(cpu(at, sum.cpu_usage_ns, rate)),
        memory: Some(memory(at, &sum, None)),
        network: network(shared, pod).await,
        process: Some(process),
        containers,
        io: None,
    };
    let attributes = proto::PodSandboxAttributes {
        id: id.clone(),
        metadata: pod.config.metadata.clone(),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
    };
    Ok(proto::PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None })
}

/// Sandboxes that a filter lets through, as far as they live.
pub(crate) async fn pods(
    shared: &Shared,
    filter: Option<proto::PodSandboxStatsFilter>,
) -> Result<Vec<proto::PodSandboxStats>, Status> {
    let filter = filter.map(crate::filters::of_pod_stats).unwrap_or_default();
    let mut all = Vec::new();
    for one in shared.pods_like(&filter).await? {
        if one.status.state == engine_api::SandboxState::Ready {
            all.push(pod(shared, &one).await?);
        }
    }
    forget_gone(shared).await?;
    Ok(all)
}

async fn forget_gone(shared: &Shared) -> Result<(), Status> {
    let (pods, containers) = (shared.pods().await?, shared.containers().await?);
    let ids = pods.iter().map(|pod| pod.status.spec.id.as_str());
    let ids = ids.chain(containers.iter().map(|container| container.status.spec.id.as_str())).collect();
    shared.samples.lock().keep(&ids);
    Ok(())
}

/// The sandbox's interface, seen from the host's side: what the host sends is what the sandbox receives.
async fn network(shared: &Shared, pod: &Pod) -> Option<proto::NetworkUsage> {
    let interface = shared.network(pod).await.ok().flatten()?.host_interface;
    if interface.is_empty() || interface.contains(['/', '.']) {
        return None;
    }
    let counter = async |name: &str| {
        let path = format!("/sys/class/net/{interface}/statistics/{name}");
        let text = tokio::fs::read_to_string(path).await.ok()?;
        value(text.trim().parse().ok()?)
    };
    let eth0 = proto::NetworkInterfaceUsage {
        name: "eth0".to_owned(),
        rx_bytes: counter("tx_bytes").await,
        rx_errors: counter("tx_errors").await,
        tx_bytes: counter("rx_bytes").await,
        tx_errors: counter("rx_errors").await,
    };
    let timestamp = nanos(Timestamp::now());
    Some(proto::NetworkUsage { timestamp, default_interface: Some(eth0), interfaces: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_samples_apart() {
        let mut samples = Samples::default();
        let at = |ms: i64| Timestamp::from_millisecond(ms).unwrap();
        assert_eq!(samples.rate("a", at(0), 0), None);
        assert_eq!(samples.rate("a", at(2000), 1_000_000_000), Some(500_000_000));
        assert_eq!(samples.rate("a", at(2001), 9_000_000_000), Some(500_000_000));
        samples.keep(&HashSet::from(["b"]));
        assert_eq!(samples.rate("a", at(4000), 0), None);
    }
}
