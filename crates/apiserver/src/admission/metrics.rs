//! What is counted of webhooks and policies, under upstream's names. Names of webhooks, policies and bindings are their
//! administrators'. Source: `apiserver/pkg/admission/metrics`, `admission/plugin/policy/validating/metrics`.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// Upper bounds of the classes of durations, in seconds, as upstream has them.
const WEBHOOK_SECONDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const POLICY_SECONDS: [f64; 5] = [0.000_000_5, 0.001, 0.01, 0.1, 1.0];
const POLICY: [&str; 4] = ["policy", "policy_binding", "error_type", "enforcement_action"];
/// Larger codes than that are counted as that.
const CODE_MAX: u16 = 600;

/// Figures of what admission asks others, and of what its policies say.
#[derive(Debug, Clone)]
pub struct Metrics {
    seconds: HistogramVec,
    requests: IntCounterVec,
    rejections: IntCounterVec,
    failed_open: IntCounterVec,
    checks: IntCounterVec,
    check_seconds: HistogramVec,
}

/// How a webhook's call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It lets the request pass.
    Passed,
    /// It refuses the request with this code.
    Refused(u16),
    /// It could not be asked; the request is refused.
    Failed,
    /// It could not be asked; the request goes on.
    FailedOpen,
}

/// Which webhook was asked about what: its name, `admit` or `validating`, the operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) name: &'a str,
    pub(super) step: &'static str,
    pub(super) operation: &'static str,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(registry, HistogramVec::new(options, labels)?)
        };
        Ok(Self {
            seconds: histogram(
                "apiserver_admission_webhook_admission_duration_seconds",
                "How long webhooks took.",
                &WEBHOOK_SECONDS,
                &["name", "type", "operation", "rejected"],
            )?,
            requests: counter(
                "apiserver_admission_webhook_request_total",
                "Reviews that webhooks were sent.",
                &["name", "type", "operation", "code", "rejected"],
            )?,
            rejections: counter(
                "apiserver_admission_webhook_rejection_count",
                "Requests that were refused because of a webhook.",
                &["name", "type", "operation", "error_type", "rejection_code"],
            )?,
            failed_open: counter(
                "apiserver_admission_webhook_fail_open_count",
                "Requests that went on though a webhook could not be asked.",
                &["name", "type"],
            )?,
            checks: counter(
                "apiserver_validating_admission_policy_check_total",
                "Validations that did not hold or could not be evaluated, by what was done.",
                &POLICY,
            )?,
            check_seconds: histogram(
                "apiserver_validating_admission_policy_check_duration_seconds",
                "How long the evaluation of such a policy took.",
                &POLICY_SECONDS,
                &POLICY,
            )?,
        })
    }

    /// A webhook was asked.
    pub(super) fn webhook(&self, asked: Asked<'_>, took: Duration, ended: Ended) {
        let Asked { name, step, operation } = asked;
        let (code, rejected) = match ended {
            Ended::Passed => (200, "false"),
            Ended::Refused(code) => (code.min(CODE_MAX), "true"),
            // Upstream's for a webhook that cannot be reached.
            Ended::Failed => (503, "true"),
            Ended::FailedOpen => (503, "false"),
        };
        let code = code.to_string();
        self.requests.with_label_values(&[name, step, operation, &code, rejected]).inc();
        let took = took.as_secs_f64();
        self.seconds.with_label_values(&[name, step, operation, rejected]).observe(took);
        match ended {
            Ended::Passed => {}
            Ended::FailedOpen => self.failed_open.with_label_values(&[name, step]).inc(),
            Ended::Refused(_) => {
                self.rejections.with_label_values(&[name, step, operation, "no_error", &code]).inc();
            }
            Ended::Failed => {
                let error = "calling_webhook_error";
                self.rejections.with_label_values(&[name, step, operation, error, &code]).inc();
            }
        }
    }

    /// A validation of a policy did not hold, or failed: what was done about it (`deny`, `warn`, `audit`, `allow`).
    pub(super) fn policy(&self, [policy, binding]: [&str; 2], error: &str, action: &str, took: Duration) {
        let labels = [policy, binding, error, action];
        self.checks.with_label_values(&labels).inc();
        self.check_seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone())).map(|()| collector)
}
