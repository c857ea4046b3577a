//! What sandboxes and containers use, as metrics with cAdvisor's names: the kubelet passes them on under `/metrics/cadvisor`.
//! Pure. Source: KEP-2371, `cri_metrics.go` in `pkg/kubelet/metrics/collectors`.

use crate::proto::{
    ContainerMetrics, ContainerStats, CpuUsage, MemoryUsage, Metric, MetricDescriptor, MetricType,
    NetworkInterfaceUsage, PodSandboxMetrics, PodSandboxStats, UInt64Value,
};

/// The labels of each metric, and of one of an interface.
const LABELS: [&str; 4] = ["container", "id", "namespace", "pod"];
const INTERFACE: &str = "interface";

/// A metric: name, type, what it says, and its value.
type Of<U> = (&'static str, MetricType, &'static str, fn(&U) -> Option<u64>);

fn told(value: &Option<UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

const CPU: [Of<CpuUsage>; 1] = [(
    "container_cpu_usage_seconds_total",
    MetricType::Counter,
    "CPU time consumed, in whole core-seconds.",
    |cpu| told(&cpu.usage_core_nano_seconds).map(|nanoseconds| nanoseconds / 1_000_000_000),
)];

const MEMORY: [Of<MemoryUsage>; 2] = [
    ("container_memory_usage_bytes", MetricType::Gauge, "Memory in use, caches included.", |memory| {
        told(&memory.usage_bytes)
    }),
    (
        "container_memory_working_set_bytes",
        MetricType::Gauge,
        "Memory in use that cannot be reclaimed at once.",
        |memory| told(&memory.working_set_bytes),
    ),
];

const NETWORK: [Of<NetworkInterfaceUsage>; 4] = [
    ("container_network_receive_bytes_total", MetricType::Counter, "Bytes received.", |eth| {
        told(&eth.rx_bytes)
    }),
    ("container_network_receive_errors_total", MetricType::Counter, "Errors on receipt.", |eth| {
        told(&eth.rx_errors)
    }),
    ("container_network_transmit_bytes_total", MetricType::Counter, "Bytes sent.", |eth| told(&eth.tx_bytes)),
    ("container_network_transmit_errors_total", MetricType::Counter, "Errors on sending.", |eth| {
        told(&eth.tx_errors)
    }),
];

/// What metrics there are.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    fn of<U>(all: &[Of<U>], more: &[&str]) -> Vec<MetricDescriptor> {
        let keys = LABELS.iter().chain(more);
        let keys: Vec<String> = keys.map(|key| (*key).to_owned()).collect();
        let descriptor = |(name, _, help, _): &Of<U>| MetricDescriptor {
            name: (*name).to_owned(),
            help: (*help).to_owned(),
            label_keys: keys.clone(),
        };
        all.iter().map(descriptor).collect()
    }
    [of(&CPU, &[]), of(&MEMORY, &[]), of(&NETWORK, &[INTERFACE])].concat()
}

/// A sandbox's metrics with those of its containers.
pub(crate) fn of(stats: &PodSandboxStats) -> PodSandboxMetrics {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let pod = attributes.metadata.unwrap_or_default();
    let labels = |container: &str, id: &str| {
        vec![container.to_owned(), id.to_owned(), pod.namespace.clone(), pod.name.clone()]
    };
    let linux = stats.linux.clone().unwrap_or_default();
    let own = labels("", &attributes.id);
    let mut metrics = usage(linux.cpu.as_ref(), linux.memory.as_ref(), &own);
    if let Some(eth) = linux.network.and_then(|network| network.default_interface) {
        let with_name: Vec<String> = own.into_iter().chain([eth.name.clone()]).collect();
        add(&mut metrics, &NETWORK, &eth, &with_name);
    }
    let container = |one: &ContainerStats| {
        let attributes = one.attributes.clone().unwrap_or_default();
        let labels = labels(&attributes.metadata.unwrap_or_default().name, &attributes.id);
        let metrics = usage(one.cpu.as_ref(), one.memory.as_ref(), &labels);
        ContainerMetrics { container_id: attributes.id, metrics }
    };
    PodSandboxMetrics {
        pod_sandbox_id: attributes.id,
        metrics,
        container_metrics: linux.containers.iter().map(container).collect(),
    }
}

fn usage(cpu: Option<&CpuUsage>, memory: Option<&MemoryUsage>, labels: &[String]) -> Vec<Metric> {
    let mut metrics = Vec::new();
    if let Some(cpu) = cpu {
        add(&mut metrics, &CPU, cpu, labels);
    }
    if let Some(memory) = memory {
        add(&mut metrics, &MEMORY, memory, labels);
    }
    metrics
}

fn add<U>(metrics: &mut Vec<Metric>, all: &[Of<U>], usage: &U, labels: &[String]) {
    metrics.extend(all.iter().filter_map(|(name, kind, _, value)| {
        Some(Metric {
            name: (*name).to_owned(),
            // Gathered just now.
            timestamp: 0,
            metric_type: (*kind).into(),
            label_values: labels.to_vec(),
            value: Some(UInt64Value { value: value(usage)? }),
        })
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        ContainerAttributes, ContainerMetadata, LinuxPodSandboxStats, NetworkUsage, PodSandboxAttributes,
        PodSandboxMetadata,
    };

    #[test]
    fn every_metric_has_its_description_and_as_many_labels() {
        let cpu = CpuUsage {
            usage_core_nano_seconds: Some(UInt64Value { value: 2_500_000_000 }),
            ..CpuUsage::default()
        };
        let eth = NetworkInterfaceUsage {
            name: "eth0".into(),
            rx_bytes: Some(UInt64Value { value: 7 }),
            ..NetworkInterfaceUsage::default()
        };
        let container = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: "c1".into(),
                metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
                ..ContainerAttributes::default()
            }),
            cpu: Some(cpu),
            ..ContainerStats::default()
        };
        let linux = LinuxPodSandboxStats {
            cpu: Some(cpu),
            network: Some(NetworkUsage { default_interface: Some(eth), ..NetworkUsage::default() }),
            containers: vec![container],
            ..LinuxPodSandboxStats::default()
        };
        let metadata = PodSandboxMetadata {
            name: "web".into(),
            namespace: "ns".into(),
            ..PodSandboxMetadata::default()
        };
        let attributes = PodSandboxAttributes {
            id: "s1".into(),
            metadata: Some(metadata),
            ..PodSandboxAttributes::default()
        };
        let told = of(&PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None });
        let shown =
            |metric: &Metric| (metric.name.clone(), metric.label_values.join("/"), told_value(metric));
        let own: Vec<_> = told.metrics.iter().map(shown).collect();
        let cpu = "container_cpu_usage_seconds_total".to_owned();
        let received = "container_network_receive_bytes_total".to_owned();
        assert_eq!(
            own,
            [(cpu.clone(), "/s1/ns/web".to_owned(), 2), (received, "/s1/ns/web/eth0".to_owned(), 7)]
        );
        let [container] = told.container_metrics.as_slice() else { panic!("{told:?}") };
        assert_eq!(shown(&container.metrics[0]), (cpu, "main/c1/ns/web".to_owned(), 2));
        let known = descriptors();
        for metric in told.metrics.iter().chain(&container.metrics) {
            let described = known.iter().find(|known| known.name == metric.name).unwrap();
            assert_eq!(described.label_keys.len(), metric.label_values.len());
        }
    }

    fn told_value(metric: &Metric) -> u64 {
        told(&metric.value).unwrap()
    }
}
