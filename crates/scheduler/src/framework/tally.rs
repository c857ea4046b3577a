//! What the plugins of a profile do and how long they take, for figures. Counting is an addition to a number that nobody
//! else writes, once for a decision to one that is read; only decisions that are sampled are timed.
//! Source: `runtime/instrumented_plugins.go`, `metrics/metric_recorder.go`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::HistogramVec;
use prometheus::local::LocalHistogram;

use super::Refusal;

/// One of so many decisions is timed. Source: `pluginMetricsSamplePercent`.
pub(super) const SAMPLED: u64 = 10;

/// The plugin that makes room.
pub(super) const PREEMPTION: &str = "DefaultPreemption";

/// Points of plugins as figures name them. Source: `pkg/scheduler/metrics`.
pub(crate) mod point {
    pub(crate) const PRE_FILTER: &str = "PreFilter";
    pub(crate) const FILTER: &str = "Filter";
    pub(crate) const POST_FILTER: &str = "PostFilter";
    pub(crate) const PRE_SCORE: &str = "PreScore";
    pub(crate) const SCORE: &str = "Score";
    pub(crate) const NORMALIZE: &str = "ScoreExtensionNormalize";
    pub(crate) const RESERVE: &str = "Reserve";
    pub(crate) const PRE_BIND: &str = "PreBind";
    pub(crate) const BIND: &str = "Bind";
}

/// Ends of plugins as figures name them. Source: `fwk.Code`.
pub(crate) mod status {
    pub(crate) const SUCCESS: &str = "Success";
    pub(crate) const ERROR: &str = "Error";
    pub(crate) const SKIP: &str = "Skip";
    pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
    pub(crate) const UNRESOLVABLE: &str = "UnschedulableAndUnresolvable";
}

/// How a refusal is named.
pub(super) fn refused(refusal: &Refusal) -> &'static str {
    if refusal.resolvable { status::UNSCHEDULABLE } else { status::UNRESOLVABLE }
}

/// How often a plugin took part: for pods, and for nodes of pods.
#[derive(Debug)]
pub(super) struct Counts {
    plugin: &'static str,
    /// Whether it takes part before nodes are looked at.
    has_before: bool,
    before: AtomicU64,
    nodes: AtomicU64,
}

impl Counts {
    /// It had something to say of a pod, and of so many nodes.
    pub(super) fn add(&self, nodes: u64) {
        if self.has_before {
            self.before.fetch_add(1, Ordering::Relaxed);
        }
        self.nodes.fetch_add(nodes, Ordering::Relaxed);
    }
}

/// How often the plugins of a profile took part, in the order in which they are asked.
#[derive(Debug, Default)]
pub(super) struct Evaluated {
    pub(super) filters: Vec<Counts>,
    pub(super) scores: Vec<Counts>,
}

impl Evaluated {
    /// Nothing yet; `true` stands for a plugin that takes part before nodes are looked at.
    pub(super) fn new(filters: Vec<(&'static str, bool)>, scores: Vec<(&'static str, bool)>) -> Self {
        let counts = |plugins: Vec<(&'static str, bool)>| {
            let none = |(plugin, has_before)| Counts {
                plugin,
                has_before,
                before: AtomicU64::new(0),
                nodes: AtomicU64::new(0),
            };
            plugins.into_iter().map(none).collect()
        };
        Self { filters: counts(filters), scores: counts(scores) }
    }

    /// Plugin, point and count of what there was.
    pub(super) fn told(&self) -> Vec<(&'static str, &'static str, u64)> {
        let of = |held: &Counts, [before, nodes]: [&'static str; 2]| {
            let count = |held: &AtomicU64| held.load(Ordering::Relaxed);
            [(held.plugin, before, count(&held.before)), (held.plugin, nodes, count(&held.nodes))]
        };
        let filters = self.filters.iter().flat_map(|held| of(held, [point::PRE_FILTER, point::FILTER]));
        let scores = self.scores.iter().flat_map(|held| of(held, [point::PRE_SCORE, point::SCORE]));
        filters.chain(scores).filter(|(.., count)| *count > 0).collect()
    }
}

/// How long plugins take, by plugin, point and end.
#[derive(Debug, Clone)]
pub struct Times(HistogramVec);

impl Times {
    /// Times that are put there; its labels are plugin, extension point and status, in the order of their names.
    pub(crate) fn new(seconds: HistogramVec) -> Self {
        Self(seconds)
    }

    /// A plugin took so long.
    pub(crate) fn took(&self, plugin: &str, point: &str, status: &str, took: Duration) {
        self.0.with_label_values(&[point, plugin, status]).observe(took.as_secs_f64());
    }

    /// The same for what a decision does often: it is put there when this is dropped.
    pub(super) fn often(&self, plugin: &str, point: &str, status: &str) -> LocalHistogram {
        self.0.with_label_values(&[point, plugin, status]).local()
    }
}

/// Times one thing after the other, of a decision that is sampled.
pub(super) struct Lap<'a> {
    /// Where times are put.
    pub(super) times: &'a Times,
    since: Instant,
}

impl<'a> Lap<'a> {
    pub(super) fn new(times: &'a Times) -> Self {
        Self { times, since: Instant::now() }
    }

    /// How long it is since the last time.
    pub(super) fn next(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.since, now))
    }

    pub(super) fn took(&mut self, plugin: &str, point: &str, status: &str) {
        self.took_if(true, plugin, point, status);
    }

    /// The same for a plugin that may not take part at the point: then its time is nobody's.
    pub(super) fn took_if(&mut self, takes_part: bool, plugin: &str, point: &str, status: &str) {
        let took = self.next();
        if takes_part {
            self.times.took(plugin, point, status, took);
        }
    }
}
