//! What is counted of authorization, under upstream's names. Source: `endpoints/filters/metrics.go`,
//! `apiserver/pkg/authorization/metrics`.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets,
};

use super::{Attributes, Decision};
use crate::authn::node_of;

/// Figures of what the authorizers say.
#[derive(Debug, Clone)]
pub struct Metrics {
    allowed: (IntCounter, Histogram),
    denied: (IntCounter, Histogram),
    no_opinion: (IntCounter, Histogram),
    by_role: IntCounter,
    by_node: IntCounter,
    by_webhook: [IntCounter; 2],
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let attempts =
            Opts::new("authorization_attempts_total", "Requests that were judged, by what was said.");
        let attempts = IntCounterVec::new(attempts, &["result"])?;
        let took =
            HistogramOpts::new("authorization_duration_seconds", "How long it took to judge a request.");
        let took = HistogramVec::new(took.buckets(exponential_buckets(0.001, 2.0, 15)?), &["result"])?;
        let decisions = Opts::new(
            "apiserver_authorization_decisions_total",
            "Decisions of authorizers after which nobody else was asked.",
        );
        let decisions = IntCounterVec::new(decisions, &["type", "name", "decision"])?;
        registry.register(Box::new(attempts.clone()))?;
        registry.register(Box::new(took.clone()))?;
        registry.register(Box::new(decisions.clone()))?;
        let of = |result: &str| (attempts.with_label_values(&[result]), took.with_label_values(&[result]));
        let by =
            |kind: &str, name: &str, decision: &str| decisions.with_label_values(&[kind, name, decision]);
        Ok(Self {
            allowed: of("allowed"),
            denied: of("denied"),
            no_opinion: of("no-opinion"),
            by_role: by("RBAC", "rbac", "allowed"),
            by_node: by("Node", "node", "allowed"),
            by_webhook: ["allowed", "denied"].map(|decision| by("Webhook", "default", decision)),
        })
    }

    /// A request was judged.
    pub(crate) fn attempted(&self, decision: &Decision, took: Duration) {
        let (attempts, seconds) = match decision {
            Decision::Allow { .. } => &self.allowed,
            Decision::Deny { .. } => &self.denied,
            Decision::NoOpinion { .. } => &self.no_opinion,
        };
        attempts.inc();
        seconds.observe(took.as_secs_f64());
    }

    /// The server's own authorizers decided: roles give their reason, administrators and components are not counted.
    pub(crate) fn decided(&self, asked: &Attributes, decision: &Decision) {
        match decision {
            Decision::Allow { reason } if !reason.is_empty() => self.by_role.inc(),
            Decision::Allow { .. } if node_of(&asked.user).is_some() => self.by_node.inc(),
            _ => {}
        }
    }

    /// The webhook decided.
    pub(crate) fn webhook_decided(&self, decision: &Decision) {
        let [allowed, denied] = &self.by_webhook;
        match decision {
            Decision::Allow { .. } => allowed.inc(),
            Decision::Deny { .. } => denied.inc(),
            Decision::NoOpinion { .. } => {}
        }
    }
}
