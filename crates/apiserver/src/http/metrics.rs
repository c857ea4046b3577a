//! What the server counts, in Prometheus' format under upstream's names. Source:
//! `apiserver/pkg/endpoints/metrics/metrics.go` and `storage/etcd3/metrics`.

use std::time::Instant;

use api::connect::Body;
use http::{Method, StatusCode};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::path::{ResourcePath, Target};
use super::query::{self, Query};
use super::respond::typed_response;
use super::{CONNECTIONS, Front};
use crate::pipeline::Pipeline;
use crate::{admission, audit, encryption, flow};

/// Prometheus' text format.
const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Upper bounds of the classes of durations, in seconds, as upstream has them.
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
const LABELS: [&str; 8] =
    ["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"];
const COMPONENT: &str = "apiserver";

/// The server's figures.
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGaugeVec,
    long_running: IntGaugeVec,
    objects: IntGaugeVec,
    /// Of priority and fairness.
    pub(crate) flow: flow::Metrics,
    /// Of auditing.
    pub(crate) audit: audit::Metrics,
    /// Of webhooks and policies.
    pub(crate) admission: admission::Metrics,
    /// Of values at rest.
    pub(crate) encryption: encryption::Metrics,
}

/// One more for as long as it lives.
pub(super) struct Held(IntGauge);

impl Held {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a request is counted under.
pub(super) struct Labels {
    verb: &'static str,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    long_running: bool,
}

impl Labels {
    /// Those of a request; what names no resource is counted under its verb alone. The names are the client's until
    /// `known` says that the server has them: unknown ones are not counted apart, or anybody could fill the memory.
    pub(super) fn of(
        method: &Method,
        target: Option<&Target>,
        query: &Query,
        known: impl Fn(&ResourcePath) -> bool,
    ) -> Self {
        let verb = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let bare = Self {
            verb,
            dry_run: if query.get("dryRun").is_some() { "All" } else { "" },
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            scope: "",
            long_running: false,
        };
        let Some(Target::Resource(path)) = target else { return bare };
        if !known(path) {
            return bare;
        }
        let watch = query::is_watch(method, path, query);
        let connection = CONNECTIONS.contains(&path.subresource.as_str());
        let verb = match (verb, path.name.is_empty()) {
            _ if watch => "WATCH",
            _ if connection && path.subresource != "log" => "CONNECT",
            ("GET", true) => "LIST",
            ("DELETE", true) => "DELETECOLLECTION",
            (verb, _) => verb,
        };
        let scope = match (path.name.is_empty(), path.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        Self {
            verb,
            group: path.group.clone(),
            version: path.version.clone(),
            resource: path.resource.clone(),
            subresource: path.subresource.clone(),
            scope,
            long_running: watch || connection,
            ..bare
        }
    }

    /// Whether the request lasts for as long as its client likes.
    pub(super) fn long_running(&self) -> bool {
        self.long_running
    }

    fn values(&self) -> [&str; 8] {
        [
            self.verb,
            self.dry_run,
            &self.group,
            &self.version,
            &self.resource,
            &self.subresource,
            self.scope,
            COMPONENT,
        ]
    }

    fn kind(&self) -> &'static str {
        if matches!(self.verb, "GET" | "HEAD" | "LIST" | "WATCH") { "readOnly" } else { "mutating" }
    }
}

impl Metrics {
    /// All at zero; the figures of the process are read when they are asked for.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let in_flight = gauge(
            "apiserver_current_inflight_requests",
            "Requests that are being answered, by kind; long-running ones apart.",
            &["request_kind"],
        )?;
        let long: Vec<&str> = LABELS.into_iter().filter(|label| *label != "dry_run").collect();
        let long_running =
            gauge("apiserver_longrunning_requests", "Watches and connections that are open.", &long)?;
        let objects = gauge("apiserver_storage_objects", "Stored objects, by resource.", &["resource"])?;
        let counted: Vec<&str> = LABELS.into_iter().chain(["code"]).collect();
        let requests = Opts::new("apiserver_request_total", "Requests that were answered.");
        let requests = IntCounterVec::new(requests, &counted)?;
        let seconds = HistogramOpts::new(
            "apiserver_request_duration_seconds",
            "How long answers took, long-running requests left out.",
        );
        let seconds = HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &LABELS)?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let (flow, audit) = (flow::Metrics::new(&registry)?, audit::Metrics::new(&registry)?);
        let admission = admission::Metrics::new(&registry)?;
        let encryption = encryption::Metrics::new(&registry)?;
        Ok(Self {
            registry,
            requests,
            seconds,
            in_flight,
            long_running,
            objects,
            flow,
            audit,
            admission,
            encryption,
        })
    }

    /// A request began.
    pub(super) fn began(&self, labels: &Labels) -> Held {
        if !labels.long_running {
            return Held::new(self.in_flight.with_label_values(&[labels.kind()]));
        }
        let [verb, _, rest @ ..] = labels.values();
        let values: Vec<&str> = std::iter::once(verb).chain(rest).collect();
        Held::new(self.long_running.with_label_values(&values))
    }

    /// A request was answered.
    pub(super) fn answered(&self, labels: &Labels, code: StatusCode, since: Instant) {
        let values = labels.values();
        let counted: Vec<&str> = values.into_iter().chain([code.as_str()]).collect();
        self.requests.with_label_values(&counted).inc();
        if !labels.long_running {
            self.seconds.with_label_values(&values).observe(since.elapsed().as_secs_f64());
        }
    }

    /// All figures as text.
    fn text(&self, pipeline: &Pipeline) -> String {
        self.objects.reset();
        for (resource, count) in pipeline.object_counts() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.objects.with_label_values(&[resource.as_str()]).set(count);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Front {
    /// Answers `/metrics`.
    pub(super) fn metrics_page(&self) -> http::Response<Body> {
        self.flow.gather();
        typed_response(StatusCode::OK, MEDIA_TYPE, self.metrics.text(&self.pipeline))
    }
}

#[cfg(test)]
mod tests {
    use super::super::path;
    use super::*;

    fn labels(method: Method, path: &str, query: &str) -> [String; 4] {
        let target = path::parse(path);
        let labels = Labels::of(&method, target.as_ref(), &Query::parse(query), |path| path.resource != "x");
        [labels.verb, labels.scope, &labels.resource, labels.kind()].map(str::to_owned)
    }

    #[test]
    fn requests_are_counted_under_upstreams_names() {
        let pods = "/api/v1/namespaces/a/pods";
        assert_eq!(labels(Method::GET, pods, ""), ["LIST", "namespace", "pods", "readOnly"]);
        assert_eq!(labels(Method::GET, pods, "watch=1"), ["WATCH", "namespace", "pods", "readOnly"]);
        assert_eq!(labels(Method::GET, "/api/v1/watch/pods", ""), ["WATCH", "cluster", "pods", "readOnly"]);
        assert_eq!(labels(Method::DELETE, pods, ""), ["DELETECOLLECTION", "namespace", "pods", "mutating"]);
        let exec = format!("{pods}/p/exec");
        assert_eq!(labels(Method::GET, &exec, ""), ["CONNECT", "resource", "pods", "mutating"]);
        assert_eq!(labels(Method::GET, "/api/v1/x/y", ""), ["GET", "", "", "readOnly"]);
        assert_eq!(labels(Method::TRACE, "/metrics", ""), ["other", "", "", "mutating"]);
    }
}
