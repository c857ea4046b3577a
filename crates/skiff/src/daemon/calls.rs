//! Requests of this process's components to its own API server, counted as upstream's clients count theirs. Source:
//! `component-base/metrics/prometheus/restclient`.

use std::borrow::Cow;
use std::time::Duration;

use api::{Response, Status, Verb};
use prometheus::{Error, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// Upper bounds of the classes of durations, in seconds, as upstream has them.
const SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// The figures of all such clients.
pub(crate) struct Calls {
    total: IntCounterVec,
    seconds: HistogramVec,
    /// Whom they ask, as `host:port`.
    host: String,
}

impl Calls {
    /// All at zero, shown with those of a registry.
    pub(crate) fn new(registry: &Registry, host: String) -> Result<Self, Error> {
        let total = Opts::new(
            "rest_client_requests_total",
            "[ALPHA] Requests of clients, by how they were answered.",
        );
        let total = IntCounterVec::new(total, &["code", "host", "method"])?;
        registry.register(Box::new(total.clone()))?;
        let seconds = HistogramOpts::new(
            "rest_client_request_duration_seconds",
            "[ALPHA] How long clients waited for answers.",
        );
        let seconds = HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["host", "verb"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { total, seconds, host })
    }

    /// A request was answered; of a watch that is when it begins.
    pub(crate) fn answered(&self, verb: Verb, answer: &Result<Response, Status>, took: Duration) {
        let method = method(verb);
        let code: Cow<'_, str> = match answer {
            Ok(_) if verb == Verb::Create => "201".into(),
            Ok(_) => "200".into(),
            Err(status) => status.code.to_string().into(),
        };
        self.total.with_label_values(&[&*code, self.host.as_str(), method]).inc();
        self.seconds.with_label_values(&[self.host.as_str(), method]).observe(took.as_secs_f64());
    }
}

/// The HTTP method that a call would have.
fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::List | Verb::Watch => "GET",
        Verb::Create => "POST",
        Verb::Update => "PUT",
        Verb::Patch => "PATCH",
        Verb::Delete | Verb::DeleteCollection => "DELETE",
    }
}

#[cfg(test)]
mod tests {
    use api::Reason;

    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let registry = Registry::new();
        let calls = Calls::new(&registry, "127.0.0.1:6443".to_owned()).unwrap();
        let refused = Err(Status::new(Reason::NotFound, "gone"));
        calls.answered(Verb::Get, &refused, Duration::from_millis(1));
        calls.answered(Verb::Patch, &refused, Duration::from_millis(30));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"rest_client_requests_total{code="404",host="127.0.0.1:6443",method="GET"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="PATCH",le="0.1"} 1"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in {text}");
        }
    }
}
