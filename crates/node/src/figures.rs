//! What the node counts, under the kubelet's names, for whoever scrapes it. Sources: `pkg/kubelet/metrics`,
//! `pkg/kubelet/server/metrics`, `pkg/kubelet/prober`.

use std::time::{Duration, Instant};

use api::Status;
use http::Method;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::pod::{ContainerKind, PodView};
use crate::probes::ProbeType;

/// The node's figures, each registry with an endpoint of its own.
pub(crate) struct Figures {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    requests_now: IntGaugeVec,
    started: IntCounterVec,
    pulls: HistogramVec,
    collected: IntCounterVec,
    evictions: IntCounterVec,
    pub(crate) probes: ProbeFigures,
    pub(crate) dra: DraFigures,
}

/// Labels of the server's figures.
const OF_REQUEST: [&str; 4] = ["method", "path", "server_type", "long_running"];
/// Upstream's buckets of image sizes: up to so many bytes, and how that is written.
const SIZES: [(u64, &str); 11] = [
    (0, "N/A"),
    (10 << 20, "0-10MB"),
    (100 << 20, "10MB-100MB"),
    (500 << 20, "100MB-500MB"),
    (1 << 30, "500MB-1GB"),
    (5 << 30, "1GB-5GB"),
    (10 << 30, "5GB-10GB"),
    (20 << 30, "10GB-20GB"),
    (40 << 30, "20GB-40GB"),
    (60 << 30, "40GB-60GB"),
    (100 << 30, "60GB-100GB"),
];
/// Upstream's buckets of what drivers of devices do, in seconds.
const DRA_SECONDS: [f64; 10] = [0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0];
/// Upstream's buckets of pulls, in seconds.
const PULL_SECONDS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0,
    2700.0, 3600.0,
];

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
    let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counter.clone())).map(|()| counter)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> Result<HistogramVec, Error> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let histogram = HistogramVec::new(options, labels)?;
    registry.register(Box::new(histogram.clone())).map(|()| histogram)
}

fn encoded(registry: &Registry) -> Result<String, Status> {
    let text = TextEncoder::new().encode_to_string(&registry.gather());
    text.map_err(|error| Status::internal(format!("figures cannot be written: {error}")))
}

impl Figures {
    /// All at zero.
    pub(crate) fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process))?;
        let now = Opts::new("kubelet_http_inflight_requests", "[ALPHA] Requests that are not answered yet.");
        let requests_now = IntGaugeVec::new(now, &OF_REQUEST)?;
        registry.register(Box::new(requests_now.clone()))?;
        Ok(Self {
            requests: counter(
                &registry,
                "kubelet_http_requests_total",
                "[ALPHA] Requests to the node's server.",
                &OF_REQUEST,
            )?,
            request_seconds: histogram(
                &registry,
                "kubelet_http_requests_duration_seconds",
                "[ALPHA] How long requests took until they were answered.",
                prometheus::DEFAULT_BUCKETS,
                &OF_REQUEST,
            )?,
            requests_now,
            started: counter(
                &registry,
                "kubelet_started_containers_total",
                "[ALPHA] Containers that were started.",
                &["container_type"],
            )?,
            pulls: histogram(
                &registry,
                "kubelet_image_pull_duration_seconds",
                "[ALPHA] How long pulls of images took.",
                &PULL_SECONDS,
                &["image_size_in_bytes"],
            )?,
            collected: counter(
                &registry,
                "kubelet_image_garbage_collected_total",
                "[ALPHA] Images that were removed, by why.",
                &["reason"],
            )?,
            evictions: counter(
                &registry,
                "kubelet_evictions",
                "[ALPHA] Pods that had to go, by why.",
                &["eviction_signal"],
            )?,
            probes: ProbeFigures::new()?,
            dra: DraFigures::new(&registry)?,
            registry,
        })
    }

    /// In the Prometheus text format.
    pub(crate) fn text(&self) -> Result<String, Status> {
        encoded(&self.registry)
    }

    /// Counts a request until what is given back is dropped: it has been answered then.
    pub(crate) fn request(&self, method: &Method, path: &'static str, long_running: bool) -> InFlight<'_> {
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
            _ => "other",
        };
        let long_running = if long_running { "true" } else { "false" };
        let labels = [method.to_owned(), path.to_owned(), "readwrite".to_owned(), long_running.to_owned()];
        self.requests.with_label_values(&labels).inc();
        self.requests_now.with_label_values(&labels).inc();
        InFlight { figures: self, labels, begun: Instant::now() }
    }

    /// A container of a pod has been started.
    pub(crate) fn started(&self, pod: &PodView, container: &str) {
        let kind = match pod.container(container) {
            Some((ContainerKind::Init | ContainerKind::Sidecar, _)) => "init_container",
            Some((ContainerKind::Ephemeral, _)) => "ephemeral_container",
            _ => "container",
        };
        self.started.with_label_values(&[kind]).inc();
    }

    /// An image of a size has been pulled.
    pub(crate) fn pulled(&self, bytes: u64, took: Duration) {
        let size = SIZES.iter().find(|(most, _)| bytes <= *most).map_or("GT100GB", |(_, name)| name);
        self.pulls.with_label_values(&[size]).observe(took.as_secs_f64());
    }

    /// Images have been removed since the disk is full.
    pub(crate) fn collected(&self, images: u64) {
        self.collected.with_label_values(&["space"]).inc_by(images);
    }

    /// A pod had to go.
    pub(crate) fn evicted(&self, signal: &str) {
        self.evictions.with_label_values(&[signal]).inc();
    }
}

/// A request that is not answered yet.
pub(crate) struct InFlight<'f> {
    figures: &'f Figures,
    labels: [String; 4],
    begun: Instant,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.figures.requests_now.with_label_values(&self.labels).dec();
        let seconds = self.begun.elapsed().as_secs_f64();
        self.figures.request_seconds.with_label_values(&self.labels).observe(seconds);
    }
}

/// What the probes of containers have answered.
pub(crate) struct ProbeFigures {
    registry: Registry,
    answers: IntCounterVec,
    seconds: HistogramVec,
}

/// Upstream's values of the label `result`, without `unknown`: a probe that cannot be asked has failed here.
const RESULTS: [&str; 2] = ["successful", "failed"];

impl ProbeFigures {
    fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let answers = counter(
            &registry,
            "prober_probe_total",
            "[BETA] Answers of a container's probe.",
            &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
        )?;
        let seconds = histogram(
            &registry,
            "prober_probe_duration_seconds",
            "[ALPHA] How long a container's probe took.",
            prometheus::DEFAULT_BUCKETS,
            &["probe_type", "container", "pod", "namespace"],
        )?;
        Ok(Self { registry, answers, seconds })
    }

    /// In the Prometheus text format.
    pub(crate) fn text(&self) -> Result<String, Status> {
        encoded(&self.registry)
    }

    /// Counts an answer.
    pub(crate) fn answered(
        &self,
        pod: &PodView,
        container: &str,
        which: ProbeType,
        healthy: bool,
        took: Duration,
    ) {
        let (which, meta) = (which.title(), &pod.metadata);
        let result = if healthy { RESULTS[0] } else { RESULTS[1] };
        let labels = [which, result, container, &meta.name, &meta.namespace, pod.uid()];
        self.answers.with_label_values(&labels).inc();
        let labels = [which, container, &meta.name, &meta.namespace];
        self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Forgets a probe that is asked no more, so that there are figures of living containers only.
    pub(crate) fn forget(&self, pod: &PodView, container: &str, which: ProbeType) {
        let (which, meta) = (which.title(), &pod.metadata);
        for result in RESULTS {
            let labels = [which, result, container, &meta.name, &meta.namespace, pod.uid()];
            // One that never answered so has no figure.
            let _ = self.answers.remove_label_values(&labels);
        }
        let _ = self.seconds.remove_label_values(&[which, container, &meta.name, &meta.namespace]);
    }
}

/// What drivers of devices are asked, and what the node is asked about devices. Source: `kubeletmetrics.DRASubsystem`,
/// `PodResourcesEndpointRequestsTotalCount`.
pub(crate) struct DraFigures {
    operations: HistogramVec,
    calls: HistogramVec,
    asked: [(&'static str, IntCounterVec); 4],
}

impl DraFigures {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let asked = |name: &str| {
            let name = format!("kubelet_pod_resources_endpoint_requests_{name}");
            let help = "[ALPHA] Questions about the devices of pods.";
            counter(registry, &name, help, &["server_api_version"])
        };
        Ok(Self {
            asked: [
                ("total", asked("total")?),
                ("list", asked("list")?),
                ("get_allocatable", asked("get_allocatable")?),
                ("get", asked("get")?),
            ],
            operations: histogram(
                registry,
                "dra_operations_duration_seconds",
                "[BETA] How long it took to prepare a pod's claims, and to take them back.",
                &DRA_SECONDS,
                &["operation_name", "is_error"],
            )?,
            calls: histogram(
                registry,
                "dra_grpc_operations_duration_seconds",
                "[BETA] How long drivers of devices took to answer.",
                &DRA_SECONDS,
                &["driver_name", "method_name", "grpc_status_code"],
            )?,
        })
    }

    /// Somebody asks which devices pods have.
    pub(crate) fn asked(&self, method: &str) {
        for (_, counter) in self.asked.iter().filter(|(name, _)| *name == "total" || *name == method) {
            counter.with_label_values(&["v1"]).inc();
        }
    }

    /// All claims of a pod.
    pub(crate) fn operation(&self, name: &str, failed: bool, took: Duration) {
        let failed = if failed { "true" } else { "false" };
        self.operations.with_label_values(&[name, failed]).observe(took.as_secs_f64());
    }

    /// One call of a driver. `error`: in gRPC's words.
    pub(crate) fn call(&self, driver: &str, method: &str, error: Option<&str>, took: Duration) {
        let code = error.map_or("OK", |error| {
            let code = error.strip_prefix("rpc error: code = ").and_then(|rest| rest.split(' ').next());
            code.unwrap_or("Unknown")
        });
        self.calls.with_label_values(&[driver, method, code]).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn requests_starts_and_pulls_are_counted() {
        let figures = Figures::new().unwrap();
        let labels = "{long_running=\"false\",method=\"GET\",path=\"pods\",server_type=\"readwrite\"}";
        let request = figures.request(&Method::GET, "pods", false);
        assert!(figures.text().unwrap().contains(&format!("kubelet_http_inflight_requests{labels} 1\n")));
        drop(request);
        drop(figures.request(&Method::from_bytes(b"MADEUP").unwrap(), "pods", false));
        let spec = serde_json::json!({"containers": [{"name": "main"}], "initContainers": [{"name": "first"}],
            "ephemeralContainers": [{"name": "debug"}]});
        let pod = pod(spec);
        figures.started(&pod, "debug");
        figures.started(&pod, "main");
        figures.started(&pod, "first");
        figures.pulled(11 << 20, Duration::from_secs(3));
        figures.pulled(200 << 30, Duration::from_secs(3));
        let text = figures.text().unwrap();
        for line in [
            format!("kubelet_http_requests_total{labels} 1\n"),
            format!("kubelet_http_inflight_requests{labels} 0\n"),
            format!("kubelet_http_requests_duration_seconds_count{labels} 1\n"),
            "kubelet_http_requests_total{long_running=\"false\",method=\"other\",".to_owned(),
            "kubelet_started_containers_total{container_type=\"container\"} 1\n".to_owned(),
            "kubelet_started_containers_total{container_type=\"init_container\"} 1\n".to_owned(),
            "kubelet_started_containers_total{container_type=\"ephemeral_container\"} 1\n".to_owned(),
            "kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes=\"10MB-100MB\",le=\"5\"} 1\n"
                .to_owned(),
            "kubelet_image_pull_duration_seconds_count{image_size_in_bytes=\"GT100GB\"} 1\n".to_owned(),
            "process_resident_memory_bytes ".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn probes_are_counted_as_long_as_they_are_asked() {
        let figures = Figures::new().unwrap();
        let pod = pod(serde_json::json!({"containers": [{"name": "main"}]}));
        for healthy in [true, true, false] {
            figures.probes.answered(&pod, "main", ProbeType::Liveness, healthy, Duration::from_millis(1));
        }
        let of = |result: &str| {
            format!(
                "prober_probe_total{{container=\"main\",namespace=\"default\",pod=\"web\",pod_uid=\"u1\",probe_type=\"Liveness\",result=\"{result}\"}}"
            )
        };
        let text = figures.probes.text().unwrap();
        assert!(text.contains(&format!("{} 2\n", of("successful"))), "{text}");
        assert!(text.contains(&format!("{} 1\n", of("failed"))), "{text}");
        assert!(text.contains("prober_probe_duration_seconds_count{"), "{text}");
        figures.probes.forget(&pod, "main", ProbeType::Liveness);
        assert_eq!(figures.probes.text().unwrap(), "");
    }
}
