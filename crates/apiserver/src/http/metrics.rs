//! What the server counts, in Prometheus' format under upstream's names. Requests are counted in [`super::counted`].
//! Source: `apiserver/pkg/endpoints/metrics`, `endpoints/filters/metrics.go`, `storage/etcd3/metrics` and
//! `component-base/metrics`.

use std::time::Instant;

use api::Status;
use api::connect::{Body, User};
use base::queues::Queues;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder, exponential_buckets,
};

use super::Front;
use super::body::text;
use super::counted::Requests;
use super::queues;
use super::respond::typed_response;
use crate::pipeline::{Comparisons, Pipeline};
use crate::words::Kind;
use crate::{admission, aggregation, audit, authz, encryption, flow};

/// Prometheus' text format.
const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The name of the store among upstream's, which may be several: those of the first of its endpoints.
const STORE: &str = "etcd-0";
/// Users that upstream counts by name.
const NAMED: [&str; 5] =
    ["admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default"];

/// The server's figures.
pub(crate) struct Metrics {
    registry: Registry,
    /// Held while figures are brought up to date and read: what starts anew from zero for one reader must not be counted
    /// twice by another.
    reading: Mutex<()>,
    pub(super) requests: Requests,
    authentication: [(IntCounter, Histogram); 3],
    users: IntCounterVec,
    watch_events: IntCounterVec,
    watch_sizes: HistogramVec,
    deprecated: IntGaugeVec,
    stored: IntGaugeVec,
    size: IntGaugeVec,
    objects: IntGaugeVec,
    caches: Caches,
    unavailable: IntGaugeVec,
    /// TLS connections that were given up before they began.
    pub(crate) handshakes_failed: IntCounter,
    health: IntGaugeVec,
    health_checks: IntCounterVec,
    /// Of priority and fairness.
    pub(crate) flow: flow::Metrics,
    /// Of auditing.
    pub(crate) audit: audit::Metrics,
    /// Of webhooks and policies.
    pub(crate) admission: admission::Metrics,
    /// Of what the authorizers decide.
    pub(crate) authorization: authz::Metrics,
    /// Of what updates change.
    pub(crate) comparisons: Comparisons,
    /// Of values at rest.
    pub(crate) encryption: encryption::Metrics,
}

/// The figures of the watch caches.
struct Caches {
    /// Events from the store: as the storage and as the watch cache counts them.
    received: [IntCounterVec; 2],
    filled: IntCounterVec,
    reached: IntGaugeVec,
}

impl Caches {
    fn new(make: &Maker<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            received: [
                make.counter(
                    "apiserver_storage_events_received_total",
                    "Events that the store told, by resource.",
                    &["group", "resource"],
                )?,
                make.counter(
                    "apiserver_watch_cache_events_received_total",
                    "Events that a watch cache took, by resource.",
                    &["group", "resource"],
                )?,
            ],
            filled: make.counter(
                "apiserver_watch_cache_initializations_total",
                "How often a watch cache was filled anew, by resource.",
                &["group", "resource"],
            )?,
            reached: make.gauge(
                "apiserver_watch_cache_resource_version",
                "The resource version up to which a watch cache has seen everything.",
                &["group", "resource"],
            )?,
        })
    }
}

/// The figures of one watch.
pub(super) struct Watched {
    events: IntCounter,
    sizes: Histogram,
}

impl Watched {
    /// An event was sent, whose object has so many bytes.
    #[allow(clippy::cast_precision_loss, reason = "no object has 2^53 bytes")]
    pub(super) fn sent(&self, bytes: usize) {
        self.events.inc();
        self.sizes.observe(bytes as f64);
    }
}

/// Makes and registers figures.
struct Maker<'r>(&'r Registry);

impl Maker<'_> {
    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauge.clone())).map(|()| gauge)
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(counter.clone())).map(|()| counter)
    }

    fn count(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone())).map(|()| counter)
    }

    fn histogram(
        &self,
        (name, help): (&str, &str),
        buckets: Vec<f64>,
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
        self.0.register(Box::new(histogram.clone())).map(|()| histogram)
    }

    /// `kubernetes_build_info` of a version such as `v1.37.0+skiff.1`.
    fn build_info(&self, git_version: &str) -> Result<(), prometheus::Error> {
        let labels = [
            ("major", "1"),
            ("minor", "37"),
            ("git_version", git_version),
            ("git_commit", ""),
            ("git_tree_state", "clean"),
            ("build_date", "1970-01-01T00:00:00Z"),
            ("go_version", ""),
            ("compiler", "rustc"),
            ("platform", super::documents::PLATFORM),
        ];
        let names = labels.map(|(name, _)| name);
        let info = self.gauge("kubernetes_build_info", "What this server was built from.", &names)?;
        info.with_label_values(&labels.map(|(_, value)| value)).set(1);
        Ok(())
    }
}

impl Metrics {
    /// All at zero, for a server of this version; the figures of the process are read when they are asked for.
    pub(crate) fn new(git_version: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let make = Maker(&registry);
        make.build_info(git_version)?;
        let results = ["success", "failure", "error"];
        let attempts = make.counter(
            "authentication_attempts",
            "Requests whose user was to be told, by whether it could.",
            &["result"],
        )?;
        let took = make.histogram(
            ("authentication_duration_seconds", "How long it took to tell a request's user."),
            exponential_buckets(0.001, 2.0, 15)?,
            &["result"],
        )?;
        let of_resource = ["group", "version", "resource"];
        let removed = ["group", "version", "resource", "subresource", "removed_release"];
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            requests: Requests::new(&registry)?,
            authentication: results
                .map(|result| (attempts.with_label_values(&[result]), took.with_label_values(&[result]))),
            users: make.counter(
                "authenticated_user_requests",
                "Requests of users that are known, by classes of names.",
                &["username"],
            )?,
            watch_events: make.counter(
                "apiserver_watch_events_total",
                "Events that were sent to watchers.",
                &of_resource,
            )?,
            watch_sizes: make.histogram(
                ("apiserver_watch_events_sizes", "Bytes of the objects of such events."),
                exponential_buckets(1024.0, 2.0, 8)?,
                &of_resource,
            )?,
            deprecated: make.gauge(
                "apiserver_requested_deprecated_apis",
                "Deprecated versions that were asked for, and the release that has them no more.",
                &removed,
            )?,
            stored: make.gauge("apiserver_storage_objects", "Stored objects, by resource.", &["resource"])?,
            size: make.gauge(
                "apiserver_storage_size_bytes",
                "[STABLE] The bytes that the store takes where it lies.",
                &["storage_cluster_id"],
            )?,
            objects: make.gauge(
                "apiserver_resource_objects",
                "Stored objects, by group and resource.",
                &["group", "resource"],
            )?,
            caches: Caches::new(&make)?,
            unavailable: make.gauge(
                "aggregator_unavailable_apiservice",
                "Whether an APIService is not available.",
                &["name"],
            )?,
            handshakes_failed: make.count(
                "apiserver_tls_handshake_errors_total",
                "TLS connections that were given up before they began.",
            )?,
            health: make.gauge(
                "kubernetes_healthcheck",
                "Whether a health check passed when it was last asked for.",
                &["name", "type"],
            )?,
            health_checks: make.counter(
                "kubernetes_healthchecks_total",
                "How often health checks passed and did not.",
                &["name", "type", "status"],
            )?,
            flow: flow::Metrics::new(&registry)?,
            audit: audit::Metrics::new(&registry)?,
            admission: admission::Metrics::new(&registry)?,
            authorization: authz::Metrics::new(&registry)?,
            comparisons: Comparisons::new(&registry)?,
            encryption: encryption::Metrics::new(&registry)?,
            reading: Mutex::default(),
            registry,
        })
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts how a request's user is told.
    pub(super) async fn authenticated(
        &self,
        headers: &HeaderMap,
        telling: impl Future<Output = Result<User, Status>>,
    ) -> Result<User, Status> {
        let since = Instant::now();
        let told = telling.await;
        let [success, failure, error] = &self.authentication;
        let (attempts, took) = match &told {
            Ok(user) => {
                self.users.with_label_values(&[class_of(&user.name)]).inc();
                success
            }
            // Who shows nothing is nobody; what is shown and not believed is an error.
            Err(_) if text(headers, header::AUTHORIZATION).is_empty() => failure,
            Err(_) => error,
        };
        attempts.inc();
        took.observe(since.elapsed().as_secs_f64());
        told
    }

    /// The figures of watches of a kind.
    pub(super) fn watched(&self, kind: &Kind) -> Watched {
        let labels = [kind.group.as_ref(), kind.version.as_ref(), kind.plural.as_ref()];
        Watched {
            events: self.watch_events.with_label_values(&labels),
            sizes: self.watch_sizes.with_label_values(&labels),
        }
    }

    /// A health check of an endpoint (`livez`) passed, or did not.
    pub(super) fn checked(&self, endpoint: &str, check: &str, passed: bool) {
        let status = if passed { "success" } else { "error" };
        self.health.with_label_values(&[check, endpoint]).set(i64::from(passed));
        self.health_checks.with_label_values(&[check, endpoint, status]).inc();
    }

    /// All figures, brought up to date; those of priority and fairness are theirs to bring.
    fn figures(&self, pipeline: &Pipeline, flow: &flow::Flow, size: Option<u64>) -> Vec<MetricFamily> {
        let _reading = self.reading.lock();
        flow.gather();
        // A store that does not tell its size has none, as upstream's.
        self.size.reset();
        if let Some(bytes) = size {
            self.size.with_label_values(&[STORE]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        self.stored.reset();
        self.objects.reset();
        for (group, resource, count) in pipeline.object_counts() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let qualified = api::status::qualified(&group, &resource);
            self.stored.with_label_values(&[qualified.as_str()]).set(count);
            self.objects.with_label_values(&[&group, &resource]).set(count);
        }
        self.deprecated(pipeline);
        self.cached(pipeline);
        self.unavailable.reset();
        for (name, available) in aggregation::availability(pipeline) {
            self.unavailable.with_label_values(&[name.as_str()]).set(i64::from(!available));
        }
        self.registry.gather()
    }

    /// What the watch caches have counted.
    fn cached(&self, pipeline: &Pipeline) {
        let Caches { received: [stored, cached], filled: fillings, reached } = &self.caches;
        stored.reset();
        cached.reset();
        fillings.reset();
        reached.reset();
        for (group, resource, [received, filled], revision) in pipeline.cache_counts() {
            let labels = [group.as_str(), resource.as_str()];
            stored.with_label_values(&labels).inc_by(received);
            cached.with_label_values(&labels).inc_by(received);
            fillings.with_label_values(&labels).inc_by(filled);
            reached.with_label_values(&labels).set(revision);
        }
    }

    /// What was asked for tells which of it is deprecated: a request does not pay for that.
    fn deprecated(&self, pipeline: &Pipeline) {
        let rows = pipeline.catalog().rows();
        for asked in self.requests.asked() {
            let Some([group, version, resource, subresource]) = asked.resource() else { continue };
            let row = rows.get(&api::GroupVersionResource::new(group, version, resource));
            let Some(row) = row.filter(|row| row.deprecation().is_some()) else { continue };
            let labels = [group, version, resource, subresource, row.removed_release()];
            self.deprecated.with_label_values(&labels).set(1);
        }
    }
}

/// Under which name a user is counted: there may be any number of users. Source: `compressUsername`.
fn class_of(name: &str) -> &str {
    match NAMED.iter().find(|named| **named == name) {
        Some(named) => named,
        None if name.contains('@') => "email_id",
        None => "other",
    }
}

impl Front {
    /// Answers `/metrics`.
    pub(super) async fn metrics_page(&self) -> http::Response<Body> {
        let size = self.pipeline.store().size().await;
        let size = size.inspect_err(|error| tracing::debug!(%error, "the store does not tell its size")).ok();
        let figures = self.metrics.figures(&self.pipeline, &self.flow, size);
        let text = TextEncoder::new().encode_to_string(&figures).unwrap_or_default();
        let text = text + &queues::text(&self.queues.figures());
        typed_response(StatusCode::OK, MEDIA_TYPE, text)
    }

    /// What `/metrics` shows: other components of this process show theirs there too.
    pub fn figures(&self) -> &Registry {
        self.metrics.registry()
    }

    /// The work queues of this process that `/metrics` shows.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }
}
