//! What is counted of webhooks and policies, under upstream's names. Names of webhooks, policies and bindings are their
//! administrators'. Source: `apiserver/pkg/admission/metrics`, `admission/plugin/policy/validating/metrics`.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::Operation;

/// Upper bounds of the classes of durations, in seconds, as upstream has them.
const WEBHOOK_SECONDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const PLUGIN_SECONDS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
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
    plugins: Arc<Plugins>,
}

/// A step of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Plugins may change the object.
    Admit,
    /// They may only refuse.
    Validate,
}

/// The plugins in the chain's order, and whether they take part in each step.
const PLUGINS: [(&str, [bool; 2]); 24] = [
    ("NamespaceLifecycle", [true, true]),
    ("LimitRanger", [true, true]),
    ("ServiceAccount", [true, true]),
    ("NodeRestriction", [false, true]),
    ("TaintNodesByCondition", [true, false]),
    ("PodSecurity", [false, true]),
    ("Priority", [true, true]),
    ("DefaultTolerationSeconds", [true, false]),
    ("DefaultStorageClass", [true, false]),
    ("StorageObjectInUseProtection", [true, false]),
    ("PersistentVolumeClaimResize", [false, true]),
    ("RuntimeClass", [true, true]),
    ("CertificateApproval", [false, true]),
    ("CertificateSigning", [false, true]),
    ("ClusterTrustBundleAttest", [false, true]),
    ("CertificateSubjectRestriction", [false, true]),
    ("DefaultIngressClass", [true, false]),
    ("PodTopologyLabels", [true, false]),
    ("MutatingAdmissionPolicy", [true, false]),
    ("MutatingAdmissionWebhook", [true, false]),
    ("ValidatingAdmissionPolicy", [false, true]),
    ("ValidatingAdmissionWebhook", [false, true]),
    ("ResourceQuota", [false, true]),
    ("DenyServiceExternalIPs", [false, true]),
];

/// By step, operation and whether the request was refused; looked up once.
type Durations = [[[OnceLock<Histogram>; 2]; 4]; 2];

/// How long plugins and whole steps take.
#[derive(Debug)]
struct Plugins {
    of_plugins: HistogramVec,
    of_steps: HistogramVec,
    plugins: Vec<Durations>,
    steps: Durations,
}

/// Takes the time of the plugins of one step of one request.
pub(super) struct StopWatch<'a> {
    plugins: Option<&'a Plugins>,
    step: Step,
    operation: Operation,
    since: Instant,
    lap: Instant,
    /// The plugin that is probably the next.
    next: usize,
    refused: bool,
}

impl<'a> StopWatch<'a> {
    pub(super) fn start(figures: Option<&'a Metrics>, step: Step, operation: Operation) -> Self {
        let plugins = figures.map(|figures| &*figures.plugins);
        let now = Instant::now();
        Self { plugins, step, operation, since: now, lap: now, next: 0, refused: false }
    }

    /// A plugin has had its turn.
    pub(super) fn lap(&mut self, name: &str, refused: bool) {
        let Some(plugins) = self.plugins else { return };
        self.refused |= refused;
        // Who takes no part takes no time.
        let Some(at) = self.place(name) else { return };
        let now = Instant::now();
        self.took(plugins, at, refused, now - self.lap);
        self.lap = now;
    }

    /// A plugin has nothing to say about such resources. It is counted as one that said so at once.
    pub(super) fn skip(&mut self, name: &str) {
        let Some(plugins) = self.plugins else { return };
        if let Some(at) = self.place(name) {
            self.took(plugins, at, false, Duration::ZERO);
        }
    }

    /// Where a plugin stands in the chain, if it takes part in the step.
    fn place(&mut self, name: &str) -> Option<usize> {
        let at = (self.next..PLUGINS.len()).chain(0..self.next).find(|at| PLUGINS[*at].0 == name)?;
        self.next = (at + 1) % PLUGINS.len();
        PLUGINS[at].1[self.step as usize].then_some(at)
    }

    fn took(&self, plugins: &Plugins, at: usize, refused: bool, time: Duration) {
        let durations =
            &plugins.plugins[at][self.step as usize][self.operation as usize][usize::from(refused)];
        let labels = || [PLUGINS[at].0, self.step.as_str(), self.operation.as_str(), word(refused)];
        let durations = durations.get_or_init(|| plugins.of_plugins.with_label_values(&labels()));
        durations.observe(time.as_secs_f64());
    }
}

impl Drop for StopWatch<'_> {
    fn drop(&mut self) {
        let Some(plugins) = self.plugins else { return };
        let durations =
            &plugins.steps[self.step as usize][self.operation as usize][usize::from(self.refused)];
        let labels = [self.step.as_str(), self.operation.as_str(), word(self.refused)];
        let durations = durations.get_or_init(|| plugins.of_steps.with_label_values(&labels));
        durations.observe((self.lap - self.since).as_secs_f64());
    }
}

impl Step {
    fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Validate => "validate",
        }
    }
}

fn word(refused: bool) -> &'static str {
    if refused { "true" } else { "false" }
}

/// How a webhook's call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It lets the request pass.
    Passed,
    /// It refuses the request with this code.
    Refused(u16),
    /// It could not be asked, for which this code stands; the request is refused.
    Failed(u16),
    /// It could not be asked, for which this code stands; the request goes on.
    FailedOpen(u16),
    /// It was not asked, since it may do more than answer; the request is refused.
    Unasked,
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
            plugins: Arc::new(Plugins {
                of_plugins: histogram(
                    "apiserver_admission_controller_admission_duration_seconds",
                    "How long plugins of admission took.",
                    &PLUGIN_SECONDS,
                    &["name", "type", "operation", "rejected"],
                )?,
                of_steps: histogram(
                    "apiserver_admission_step_admission_duration_seconds",
                    "How long steps of admission took.",
                    &PLUGIN_SECONDS,
                    &["type", "operation", "rejected"],
                )?,
                plugins: PLUGINS.iter().map(|_| Durations::default()).collect(),
                steps: Durations::default(),
            }),
        })
    }

    /// A webhook was asked.
    pub(super) fn webhook(&self, asked: Asked<'_>, took: Duration, ended: Ended) {
        let Asked { name, step, operation } = asked;
        let (code, rejected) = match ended {
            Ended::Passed => (200, "false"),
            Ended::Refused(code) | Ended::Failed(code) => (code, "true"),
            Ended::FailedOpen(code) => (code, "false"),
            Ended::Unasked => (0, "true"),
        };
        let code = code.min(CODE_MAX).to_string();
        self.requests.with_label_values(&[name, step, operation, &code, rejected]).inc();
        let took = took.as_secs_f64();
        self.seconds.with_label_values(&[name, step, operation, rejected]).observe(took);
        let error = match ended {
            Ended::Passed => return,
            Ended::FailedOpen(_) => return self.failed_open.with_label_values(&[name, step]).inc(),
            Ended::Refused(_) => "no_error",
            Ended::Failed(_) => "calling_webhook_error",
            Ended::Unasked => "apiserver_internal_error",
        };
        self.rejections.with_label_values(&[name, step, operation, error, &code]).inc();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_counted_in_its_order() {
        let names: Vec<&str> = crate::admission::standard().iter().map(|link| link.name()).collect();
        assert_eq!(names, PLUGINS.map(|(name, _)| name)[..names.len()]);
    }

    #[test]
    fn plugins_and_steps_are_counted_under_upstreams_names() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let mut watch = StopWatch::start(Some(&metrics), Step::Validate, Operation::Create);
        for (name, refused) in [("LimitRanger", false), ("DefaultStorageClass", false), ("LimitRanger", true)]
        {
            watch.lap(name, refused);
        }
        drop(watch);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let counts: Vec<&str> = text.lines().filter(|line| line.contains("_count{")).collect();
        let (plugin, step) = (
            "apiserver_admission_controller_admission_duration_seconds_count",
            "apiserver_admission_step_admission_duration_seconds_count",
        );
        assert_eq!(
            counts,
            [
                format!(
                    r#"{plugin}{{name="LimitRanger",operation="CREATE",rejected="false",type="validate"}} 1"#
                ),
                format!(
                    r#"{plugin}{{name="LimitRanger",operation="CREATE",rejected="true",type="validate"}} 1"#
                ),
                format!(r#"{step}{{operation="CREATE",rejected="true",type="validate"}} 1"#),
            ]
        );
    }
}
