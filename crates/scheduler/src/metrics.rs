//! What the scheduler counts, under upstream's names. Source: `pkg/scheduler/metrics`, `backend/queue`.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

use crate::Shared;
use crate::framework::tally::Times;
use crate::queue::{Counts, Waited};

/// From so many attempts on they are not told apart. Source: `getAttemptsLabel`.
const ATTEMPTS_MAX: u32 = 15;

/// An attempt to schedule a pod, while it is bound. What is known of its wait is taken before: the informer may say that
/// the pod is bound before the answer does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) begun: Instant,
    pub(crate) waited: Option<Waited>,
    /// Whether it is told how long plugins take for it.
    pub(crate) is_timed: bool,
}

/// Work of which several go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A pod is bound.
    Binding,
    /// An extender says how good nodes are.
    Prioritizing,
}

/// Work that is going on, while this is held.
pub(crate) struct Working(IntGauge);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How an attempt to schedule a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was bound.
    Scheduled,
    /// No node takes it.
    Unschedulable,
    /// Something failed.
    Error,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
            Self::Error => "error",
        }
    }
}

/// The scheduler's figures.
pub(crate) struct Metrics {
    attempts: IntCounterVec,
    seconds: HistogramVec,
    decisions: Histogram,
    waited: HistogramVec,
    tries: Histogram,
    points: HistogramVec,
    plugins: Times,
    plugin_seconds: HistogramVec,
    /// No plugin has pods wait before they are bound, so that nothing is ever put there; upstream shows it likewise.
    permits: HistogramVec,
    works: IntGaugeVec,
    /// Of [`Work`], in its order.
    working: [IntGauge; 2],
    preemptions: IntCounter,
    claims: IntCounterVec,
    victims: Histogram,
    queue: Arc<Queue>,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, Error> {
        let histogram =
            |name: &str, help: &str, buckets: Vec<f64>| HistogramOpts::new(name, help).buckets(buckets);
        let of_attempt = ["profile", "result"];
        let plugin_seconds = HistogramVec::new(
            histogram(
                "scheduler_plugin_execution_duration_seconds",
                "[BETA] How long a plugin took at an extension point, of one decision in ten.",
                exponential_buckets(0.00001, 1.5, 20)?,
            ),
            &["extension_point", "plugin", "status"],
        )?;
        let works = IntGaugeVec::new(
            Opts::new("scheduler_goroutines", "[BETA] Work that is going on at once, by what it is."),
            &["operation"],
        )?;
        Ok(Self {
            plugins: Times::new(plugin_seconds.clone()),
            plugin_seconds,
            permits: HistogramVec::new(
                histogram(
                    "scheduler_permit_wait_duration_seconds",
                    "[BETA] How long pods waited until plugins permitted their binding.",
                    exponential_buckets(0.001, 2.0, 15)?,
                ),
                &["result"],
            )?,
            working: ["binding", "prioritizing_extender"].map(|work| works.with_label_values(&[work])),
            works,
            attempts: IntCounterVec::new(
                Opts::new(
                    "scheduler_schedule_attempts_total",
                    "[STABLE] Attempts to schedule pods, by how they ended.",
                ),
                &of_attempt,
            )?,
            seconds: HistogramVec::new(
                histogram(
                    "scheduler_scheduling_attempt_duration_seconds",
                    "[STABLE] How long attempts took: the decision, and the binding where there was one.",
                    exponential_buckets(0.001, 2.0, 15)?,
                ),
                &of_attempt,
            )?,
            decisions: Histogram::with_opts(histogram(
                "scheduler_scheduling_algorithm_duration_seconds",
                "[BETA] How long decisions took.",
                exponential_buckets(0.001, 2.0, 15)?,
            ))?,
            waited: HistogramVec::new(
                histogram(
                    "scheduler_pod_scheduling_sli_duration_seconds",
                    "[BETA] How long pods waited that were scheduled, from when they could be tried first, by attempts.",
                    exponential_buckets(0.01, 2.0, 20)?,
                ),
                &["attempts"],
            )?,
            tries: Histogram::with_opts(histogram(
                "scheduler_pod_scheduling_attempts",
                "[STABLE] After how many attempts pods were scheduled.",
                exponential_buckets(1.0, 2.0, 5)?,
            ))?,
            points: HistogramVec::new(
                histogram(
                    "scheduler_framework_extension_point_duration_seconds",
                    "[STABLE] How long all plugins of an extension point took.",
                    exponential_buckets(0.0001, 2.0, 12)?,
                ),
                &["extension_point", "profile", "status"],
            )?,
            preemptions: IntCounter::new(
                "scheduler_preemption_attempts_total",
                "[STABLE] How often room was looked for by having others go.",
            )?,
            claims: IntCounterVec::new(
                Opts::new(
                    "scheduler_resourceclaim_creates_total",
                    "[ALPHA] Claims that the scheduler made for extended resources, or could not make.",
                ),
                &["status", "admin_access"],
            )?,
            victims: Histogram::with_opts(histogram(
                "scheduler_preemption_victims",
                "[STABLE] How many pods were chosen to go for another.",
                exponential_buckets(1.0, 2.0, 7)?,
            ))?,
            queue: Arc::new(Queue::new()?),
        })
    }

    /// Shows them with those of a registry.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), Error> {
        registry.register(Box::new(self.attempts.clone()))?;
        registry.register(Box::new(self.seconds.clone()))?;
        registry.register(Box::new(self.decisions.clone()))?;
        registry.register(Box::new(self.waited.clone()))?;
        registry.register(Box::new(self.tries.clone()))?;
        registry.register(Box::new(self.points.clone()))?;
        registry.register(Box::new(self.plugin_seconds.clone()))?;
        registry.register(Box::new(self.permits.clone()))?;
        registry.register(Box::new(self.works.clone()))?;
        registry.register(Box::new(self.preemptions.clone()))?;
        registry.register(Box::new(self.claims.clone()))?;
        registry.register(Box::new(self.victims.clone()))?;
        registry.register(Box::new(Shown(self.queue.clone())))
    }

    /// From now on the queue of this run is the one that is told of.
    pub(crate) fn tell_of(&self, shared: Weak<Shared>) {
        *self.queue.shared.lock() = shared;
    }

    /// An attempt ended.
    pub(crate) fn attempted(&self, profile: &str, outcome: Outcome, took: Duration) {
        let labels = [profile, outcome.name()];
        self.attempts.with_label_values(&labels).inc();
        self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// A decision was made.
    pub(crate) fn decided(&self, took: Duration) {
        self.decisions.observe(took.as_secs_f64());
    }

    /// A pod was scheduled by so many attempts, so long after it could be tried first.
    pub(crate) fn scheduled(&self, tries: u32, waited: Duration) {
        self.tries.observe(tries.into());
        self.waited.with_label_values(&[attempts(tries).as_str()]).observe(waited.as_secs_f64());
    }

    /// An extension point was run through; `status` in upstream's words.
    pub(crate) fn ran(&self, point: &str, profile: &str, status: &str, took: Duration) {
        self.points.with_label_values(&[point, profile, status]).observe(took.as_secs_f64());
    }

    /// Where is put how long plugins take.
    pub(crate) fn plugins(&self) -> &Times {
        &self.plugins
    }

    /// Work goes on while what is given is held.
    pub(crate) fn working(&self, work: Work) -> Working {
        let [binding, prioritizing] = &self.working;
        let gauge = match work {
            Work::Binding => binding,
            Work::Prioritizing => prioritizing,
        };
        gauge.inc();
        Working(gauge.clone())
    }

    /// A claim for extended resources was made, or could not be.
    pub(crate) fn claim_made(&self, made: bool) {
        let status = if made { "success" } else { "failure" };
        self.claims.with_label_values(&[status, "false"]).inc();
    }

    /// Room was looked for, and so many chosen to go.
    pub(crate) fn preempted(&self, victims: Option<usize>) {
        self.preemptions.inc();
        if let Some(victims) = victims.and_then(|victims| u32::try_from(victims).ok()) {
            self.victims.observe(victims.into());
        }
    }
}

fn attempts(tries: u32) -> String {
    if tries >= ATTEMPTS_MAX { format!("{ATTEMPTS_MAX}+") } else { tries.to_string() }
}

/// What the queue tells when it is asked: an attempt does not pay for that.
struct Queue {
    shared: Mutex<Weak<Shared>>,
    pending: IntGaugeVec,
    incoming: IntCounterVec,
    refused: IntGaugeVec,
    held: IntGaugeVec,
    evaluated: IntCounterVec,
}

/// How often a plugin was asked: its name, the point, the profile, the count.
type Evaluated = (&'static str, &'static str, String, u64);

/// What a queue and the rest of a scheduler tell.
type Told = (Counts, Held, Vec<Evaluated>);

/// What is in the scheduler's view of the cluster: nodes, pods on them, and those of them that are only assumed there.
type Held = [usize; 3];

impl Queue {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            shared: Mutex::default(),
            pending: IntGaugeVec::new(
                Opts::new(
                    "scheduler_pending_pods",
                    "[STABLE] Pods that wait, by where in the queue they are.",
                ),
                &["queue"],
            )?,
            incoming: IntCounterVec::new(
                Opts::new(
                    "scheduler_queue_incoming_pods_total",
                    "[STABLE] Pods that came to a part of the queue, by what brought them there.",
                ),
                &["event", "queue"],
            )?,
            refused: IntGaugeVec::new(
                Opts::new(
                    "scheduler_unschedulable_pods",
                    "[BETA] Pods that were refused, by each plugin that did.",
                ),
                &["plugin", "profile"],
            )?,
            held: IntGaugeVec::new(
                Opts::new("scheduler_cache_size", "[ALPHA] Nodes, pods and assumed pods that are known."),
                &["type"],
            )?,
            evaluated: IntCounterVec::new(
                Opts::new(
                    "scheduler_plugin_evaluation_total",
                    "[BETA] How often plugins were asked about pods, and about nodes for them.",
                ),
                &["extension_point", "plugin", "profile"],
            )?,
        })
    }

    fn counters(&self) -> [&IntCounterVec; 2] {
        [&self.incoming, &self.evaluated]
    }

    fn gauges(&self) -> [&IntGaugeVec; 3] {
        [&self.pending, &self.refused, &self.held]
    }

    /// Nothing is told of a queue that nobody works on here.
    fn read(&self, told: Option<&Told>) {
        self.gauges().into_iter().for_each(IntGaugeVec::reset);
        self.counters().into_iter().for_each(IntCounterVec::reset);
        let Some((counts, held, evaluated)) = told else { return };
        for (plugin, point, profile, times) in evaluated {
            self.evaluated.with_label_values(&[*point, *plugin, profile.as_str()]).inc_by(*times);
        }
        for (kind, count) in ["nodes", "pods", "assumed_pods"].into_iter().zip(held) {
            self.held.with_label_values(&[kind]).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        for ((plugin, profile), pods) in &counts.refused {
            self.refused.with_label_values(&[plugin, profile.as_str()]).set(*pods);
        }
        for (queue, waiting) in counts.waiting {
            self.pending.with_label_values(&[queue]).set(waiting);
        }
        for ((queue, event), came) in &counts.came {
            self.incoming.with_label_values(&[event, queue]).inc_by(*came);
        }
    }
}

struct Shown(Arc<Queue>);

impl Collector for Shown {
    fn desc(&self) -> Vec<&Desc> {
        let counters = self.0.counters().into_iter().flat_map(Collector::desc);
        let mut all: Vec<&Desc> = counters.collect();
        all.extend(self.0.gauges().into_iter().flat_map(Collector::desc));
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Held to the end: of two that read at once, each would add what the other one has added.
        let shared = self.0.shared.lock();
        let told = shared.upgrade().map(|shared| {
            let evaluated = shared.config.profiles.iter().flat_map(|profile| {
                let evaluated = profile.evaluated().into_iter();
                evaluated.map(move |(plugin, point, times)| (plugin, point, profile.name.clone(), times))
            });
            let evaluated = evaluated.collect();
            let state = shared.state.lock();
            let held = [state.cluster.len(), state.cluster.pods(), state.assumed.len()];
            (state.queue.counts(), held, evaluated)
        });
        self.0.read(told.as_ref());
        let mut all: Vec<MetricFamily> = self.0.counters().into_iter().flat_map(Collector::collect).collect();
        all.extend(self.0.gauges().into_iter().flat_map(Collector::collect));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_under_upstreams_names() {
        let (metrics, registry) = (Metrics::new().unwrap(), Registry::new());
        metrics.register(&registry).unwrap();
        metrics.attempted("default-scheduler", Outcome::Scheduled, Duration::from_millis(3));
        metrics.attempted("default-scheduler", Outcome::Unschedulable, Duration::ZERO);
        metrics.scheduled(2, Duration::from_secs(1));
        metrics.scheduled(20, Duration::from_secs(1));
        metrics.ran("Bind", "default-scheduler", "Success", Duration::from_millis(1));
        metrics.preempted(Some(3));
        metrics.preempted(None);
        let mut counts = Counts {
            waiting: [("active", 1), ("backoff", 0), ("unschedulable", 2), ("gated", 0)],
            ..Counts::default()
        };
        counts.came.insert(("active", "PodAdd"), 3);
        counts.refused.insert(("NodeResourcesFit", "default-scheduler".to_owned()), 2);
        metrics.decided(Duration::from_millis(3));
        metrics.plugins().took("NodePorts", "PreFilter", "Skip", Duration::from_micros(12));
        let binding = metrics.working(Work::Binding);
        drop(metrics.working(Work::Prioritizing));
        let evaluated = vec![("NodePorts", "Filter", "default-scheduler".to_owned(), 7)];
        metrics.queue.read(Some(&(counts, [3, 5, 1], evaluated)));
        let asked = ["Filter", "NodePorts", "default-scheduler"];
        assert_eq!(metrics.queue.evaluated.with_label_values(&asked).get(), 7);
        assert_eq!(
            metrics.queue.refused.with_label_values(&["NodeResourcesFit", "default-scheduler"]).get(),
            2
        );
        assert_eq!(metrics.queue.held.with_label_values(&["assumed_pods"]).get(), 1);
        assert_eq!(metrics.queue.pending.with_label_values(&["unschedulable"]).get(), 2);
        assert_eq!(metrics.queue.incoming.with_label_values(&["PodAdd", "active"]).get(), 3);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"scheduler_schedule_attempts_total{profile="default-scheduler",result="scheduled"} 1"#,
            r#"scheduler_scheduling_attempt_duration_seconds_bucket{profile="default-scheduler",result="scheduled",le="0.004"} 1"#,
            r#"scheduler_pod_scheduling_sli_duration_seconds_count{attempts="2"} 1"#,
            r#"scheduler_pod_scheduling_sli_duration_seconds_count{attempts="15+"} 1"#,
            "scheduler_pod_scheduling_attempts_sum 22",
            r#"scheduler_scheduling_algorithm_duration_seconds_bucket{le="0.004"} 1"#,
            r#"scheduler_framework_extension_point_duration_seconds_count{extension_point="Bind",profile="default-scheduler",status="Success"} 1"#,
            "scheduler_preemption_attempts_total 2",
            "scheduler_preemption_victims_sum 3",
            r#"scheduler_plugin_execution_duration_seconds_count{extension_point="PreFilter",plugin="NodePorts",status="Skip"} 1"#,
            r#"scheduler_goroutines{operation="binding"} 1"#,
            r#"scheduler_goroutines{operation="prioritizing_extender"} 0"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in {text}");
        }
        drop(binding);
        // No scheduler runs.
        assert!(!text.contains("scheduler_pending_pods{"), "{text}");
    }
}
