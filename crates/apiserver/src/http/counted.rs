//! Requests as they are counted: under which labels, and in which figures. The figures of labels are looked up once for a
//! request. Source: `apiserver/pkg/endpoints/metrics/metrics.go`.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use api::connect::Body;
use foldhash::HashMap;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use parking_lot::RwLock;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

use super::CONNECTIONS;
use super::body::text;
use super::path::{ResourcePath, Target};
use super::query::{self, Query};

/// Upper bounds of the classes of durations, in seconds, as upstream has them.
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// The same without the shortest, where upstream leaves them out.
const SLI_FROM: usize = 2;
const LABELS: [&str; 8] =
    ["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"];
const COMPONENT: &str = "apiserver";
const APPLY: &str = "application/apply-patch+yaml";

/// Whether a request's body is an apply configuration.
pub(super) fn applies(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_TYPE) == APPLY
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// Those of a request, which applies or does not; what names no resource is counted under its verb alone. The names are the client's until
    /// `known` says that the server has them: unknown ones are not counted apart, or anybody could fill the memory.
    pub(super) fn of(
        method: &Method,
        target: Option<&Target>,
        query: &Query,
        applies: bool,
        known: impl Fn(&ResourcePath) -> bool,
    ) -> Self {
        let verb = match *method {
            Method::GET | Method::HEAD => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH if applies => "APPLY",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
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
            _ if connection => "CONNECT",
            ("GET", true) => "LIST",
            ("DELETE", true) => "DELETECOLLECTION",
            (verb, _) => verb,
        };
        let scope = match (path.name.is_empty(), path.namespace.is_empty()) {
            _ if verb == "POST" => "resource",
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

    /// The resource, as its group, version, plural and subresource; `None` where the request names none.
    pub(super) fn resource(&self) -> Option<[&str; 4]> {
        let named = [&self.group, &self.version, &self.resource, &self.subresource].map(String::as_str);
        (!self.resource.is_empty()).then_some(named)
    }

    /// All but whether it is a dry run.
    fn without_dry_run(&self) -> [&str; 7] {
        let [verb, _, group, version, resource, subresource, scope, component] = self.values();
        [verb, group, version, resource, subresource, scope, component]
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
        if matches!(self.verb, "GET" | "LIST" | "WATCH") { "readOnly" } else { "mutating" }
    }
}

/// One more for as long as it lives.
struct Held(IntGauge);

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

/// The figures of requests with the same labels; each is there once there is something to say.
struct Series {
    in_flight: IntGauge,
    codes: RwLock<Vec<(StatusCode, IntCounter)>>,
    seconds: OnceLock<Histogram>,
    sli: OnceLock<Histogram>,
    sizes: OnceLock<Histogram>,
}

/// A request that is being answered.
pub(super) struct Begun {
    labels: Labels,
    series: Arc<Series>,
    _held: Held,
}

impl Begun {
    /// Whether the request lasts for as long as its client likes.
    pub(super) fn long_running(&self) -> bool {
        self.labels.long_running
    }
}

/// The size of an answer whose length nobody knew before it was written; it counts when it is over.
struct Written {
    sizes: Histogram,
    bytes: usize,
}

impl Written {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

impl Drop for Written {
    #[allow(clippy::cast_precision_loss, reason = "no answer has 2^53 bytes")]
    fn drop(&mut self) {
        self.sizes.observe(self.bytes as f64);
    }
}

/// The figures of all requests.
pub(super) struct Requests {
    series: RwLock<HashMap<Labels, Arc<Series>>>,
    total: IntCounterVec,
    seconds: HistogramVec,
    sli: HistogramVec,
    sizes: HistogramVec,
    in_flight: IntGaugeVec,
    long_running: IntGaugeVec,
}

impl Requests {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]| {
            let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
            registry.register(Box::new(histogram.clone())).map(|()| histogram)
        };
        let fewer: Vec<&str> = LABELS.into_iter().filter(|label| *label != "dry_run").collect();
        let counted: Vec<&str> = LABELS.into_iter().chain(["code"]).collect();
        let total = Opts::new("apiserver_request_total", "Requests that were answered.");
        let total = IntCounterVec::new(total, &counted)?;
        registry.register(Box::new(total.clone()))?;
        Ok(Self {
            series: RwLock::default(),
            total,
            seconds: histogram(
                "apiserver_request_duration_seconds",
                "How long answers took, long-running requests left out.",
                SECONDS.to_vec(),
                &LABELS,
            )?,
            sli: histogram(
                "apiserver_request_sli_duration_seconds",
                "How long answers took without webhooks and without waiting for a turn, long-running requests left out.",
                SECONDS[SLI_FROM..].to_vec(),
                &fewer,
            )?,
            sizes: histogram(
                "apiserver_response_sizes",
                "Bytes of answers to requests that read.",
                exponential_buckets(1000.0, 10.0, 7)?,
                &fewer,
            )?,
            in_flight: gauge(
                "apiserver_current_inflight_requests",
                "Requests that are being answered, by kind; long-running ones apart.",
                &["request_kind"],
            )?,
            long_running: gauge(
                "apiserver_longrunning_requests",
                "Watches and connections that are open.",
                &fewer,
            )?,
        })
    }

    /// A request began.
    pub(super) fn began(&self, labels: Labels) -> Begun {
        let known = self.series.read().get(&labels).cloned();
        let series = known.unwrap_or_else(|| {
            let fresh = || Arc::new(self.fresh(&labels));
            self.series.write().entry(labels.clone()).or_insert_with(fresh).clone()
        });
        Begun { _held: Held::new(series.in_flight.clone()), labels, series }
    }

    fn fresh(&self, labels: &Labels) -> Series {
        let in_flight = if labels.long_running {
            self.long_running.with_label_values(&labels.without_dry_run())
        } else {
            self.in_flight.with_label_values(&[labels.kind()])
        };
        Series {
            in_flight,
            codes: RwLock::default(),
            seconds: OnceLock::new(),
            sli: OnceLock::new(),
            sizes: OnceLock::new(),
        }
    }

    /// A request was answered; of the time since it began, it was others that it waited for so long.
    pub(super) fn answered(
        &self,
        begun: &Begun,
        response: Response<Body>,
        since: Instant,
        waited: Duration,
    ) -> Response<Body> {
        let Begun { labels, series, .. } = begun;
        self.code(begun, response.status()).inc();
        if labels.long_running {
            return response;
        }
        let took = since.elapsed();
        let seconds = series.seconds.get_or_init(|| self.seconds.with_label_values(&labels.values()));
        seconds.observe(took.as_secs_f64());
        if labels.dry_run.is_empty() {
            let sli = || self.sli.with_label_values(&labels.without_dry_run());
            series.sli.get_or_init(sli).observe(took.saturating_sub(waited).as_secs_f64());
        }
        if !matches!(labels.verb, "GET" | "LIST") {
            return response;
        }
        let sizes = || self.sizes.with_label_values(&labels.without_dry_run());
        sized(response, series.sizes.get_or_init(sizes))
    }

    fn code(&self, Begun { labels, series, .. }: &Begun, code: StatusCode) -> IntCounter {
        let find = |codes: &[(StatusCode, IntCounter)]| {
            codes.iter().find(|(known, _)| *known == code).map(|(_, counter)| counter.clone())
        };
        let known = find(&series.codes.read());
        known.unwrap_or_else(|| {
            let counted: Vec<&str> = labels.values().into_iter().chain([code.as_str()]).collect();
            let counter = self.total.with_label_values(&counted);
            series.codes.write().push((code, counter.clone()));
            counter
        })
    }

    /// The resources that were asked for so far.
    pub(super) fn asked(&self) -> Vec<Labels> {
        self.series.read().keys().cloned().collect()
    }
}

/// Counts the size of an answer: at once where it is known.
#[allow(clippy::cast_precision_loss, reason = "no answer has 2^53 bytes")]
fn sized(response: Response<Body>, sizes: &Histogram) -> Response<Body> {
    if let Some(bytes) = response.body().size_hint().exact() {
        sizes.observe(bytes as f64);
        return response;
    }
    let mut written = Written { sizes: sizes.clone(), bytes: 0 };
    response.map(|body| {
        let counted = body.map_frame(move |frame| {
            written.add(frame.data_ref().map_or(0, bytes::Bytes::len));
            frame
        });
        counted.boxed_unsync()
    })
}

#[cfg(test)]
mod tests {
    use super::super::path;
    use super::*;

    fn labels(method: Method, path: &str, query: &str) -> [String; 4] {
        let target = path::parse(path);
        let query = Query::parse(query);
        let labels = Labels::of(&method, target.as_ref(), &query, false, |path| path.resource != "x");
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
        assert_eq!(labels(Method::GET, &format!("{pods}/p/log"), "")[0], "CONNECT");
        assert_eq!(labels(Method::POST, pods, ""), ["POST", "resource", "pods", "mutating"]);
        assert_eq!(labels(Method::HEAD, pods, ""), ["LIST", "namespace", "pods", "readOnly"]);
        assert_eq!(labels(Method::GET, "/api/v1/x/y", ""), ["GET", "", "", "readOnly"]);
        assert_eq!(labels(Method::TRACE, "/metrics", ""), ["other", "", "", "mutating"]);
    }

    #[tokio::test]
    async fn answers_are_counted_with_their_size_and_without_what_they_waited_for() {
        let registry = Registry::new();
        let requests = Requests::new(&registry).unwrap();
        let target = path::parse("/api/v1/namespaces/a/pods");
        let of = || Labels::of(&Method::GET, target.as_ref(), &Query::parse(""), false, |_| true);
        for known in [true, false] {
            let begun = requests.began(of());
            let body = super::super::body::full("x".repeat(5000));
            let body = if known { body } else { body.map_frame(|frame| frame).boxed_unsync() };
            let answer = requests.answered(&begun, Response::new(body), Instant::now(), Duration::MAX);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 5000);
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let of = r#"component="apiserver",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1""#;
        for line in [
            format!("apiserver_response_sizes_sum{{{of}}} 10000"),
            format!("apiserver_response_sizes_bucket{{{of},le=\"10000\"}} 2"),
            format!("apiserver_request_sli_duration_seconds_sum{{{of}}} 0"),
            "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }
}
