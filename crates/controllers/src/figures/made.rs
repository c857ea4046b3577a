//! How figures are made, under the names that upstream gives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Error, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Makes the figures of a controller, shown with those of a registry.
pub(super) struct Maker<'a> {
    pub(super) registry: &'a Registry,
    /// What all their names begin with; may be empty.
    pub(super) subsystem: &'static str,
}

impl Maker<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        let name =
            if self.subsystem.is_empty() { name.to_owned() } else { format!("{}_{name}", self.subsystem) };
        Opts::new(name, help)
    }

    fn show<C: Collector + Clone + 'static>(&self, figure: C) -> Result<C, Error> {
        self.registry.register(Box::new(figure.clone())).map(|()| figure)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.show(IntCounter::with_opts(self.opts(name, help))?)
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.show(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.show(IntGauge::with_opts(self.opts(name, help))?)
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.show(IntGaugeVec::new(self.opts(name, help), labels)?)
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, Error> {
        self.show(Histogram::with_opts(HistogramOpts::from(self.opts(name, help)).buckets(buckets))?)
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec, Error> {
        self.show(HistogramVec::new(HistogramOpts::from(self.opts(name, help)).buckets(buckets), labels)?)
    }

    pub(super) fn told(&self, name: &str, help: &str, labels: &[&str]) -> Result<Told, Error> {
        let gauges = GaugeVec::new(self.opts(name, help), labels)?;
        self.show(Told(Arc::new(Asked { gauges, teller: Mutex::default() })))
    }
}

/// What there is at present, by the values of the labels.
pub(crate) type Counts = BTreeMap<Vec<String>, f64>;

/// Tells what there is at present.
pub(crate) type Teller = dyn Fn() -> Counts + Send + Sync;

/// Gauges that are told when they are asked for, and not counted before. They show nothing while nobody can tell.
#[derive(Clone)]
pub(crate) struct Told(Arc<Asked>);

struct Asked {
    gauges: GaugeVec,
    teller: Mutex<Option<Weak<Teller>>>,
}

impl Told {
    /// Whoever holds what this gives can tell.
    #[must_use = "nobody tells any more once this is dropped"]
    pub(crate) fn by(&self, teller: impl Fn() -> Counts + Send + Sync + 'static) -> Arc<Teller> {
        let teller: Arc<Teller> = Arc::new(teller);
        *self.0.teller.lock() = Some(Arc::downgrade(&teller));
        teller
    }
}

impl Collector for Told {
    fn desc(&self) -> Vec<&Desc> {
        self.0.gauges.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Held to the end: who asks at the same time is not to see half of it.
        let teller = self.0.teller.lock();
        let counts = teller.as_ref().and_then(Weak::upgrade).map(|tell| tell()).unwrap_or_default();
        self.0.gauges.reset();
        for (labels, count) in counts {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            self.0.gauges.with_label_values(&labels).set(count);
        }
        self.0.gauges.collect()
    }
}

/// One more of these.
pub(crate) fn count_one<const N: usize>(counts: &mut Counts, labels: [&str; N]) {
    *counts.entry(labels.map(str::to_owned).to_vec()).or_default() += 1.0;
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Everything that a registry shows, by lines.
    pub(in crate::figures) fn shown(registry: &Registry) -> Vec<String> {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_told_is_shown_as_long_as_somebody_tells() {
        let registry = Registry::new();
        let told = Maker { registry: &registry, subsystem: "" }.told("things", "Things.", &["kind"]).unwrap();
        let line = |kind: &str| format!("things{{kind=\"{kind}\"}} 2");
        assert!(shown(&registry).is_empty());
        let teller = told.by(|| {
            let mut counts = Counts::new();
            count_one(&mut counts, ["a"]);
            count_one(&mut counts, ["a"]);
            counts
        });
        assert!(shown(&registry).contains(&line("a")));
        let next = told.by(|| Counts::from([(vec!["b".to_owned()], 2.0)]));
        drop(teller);
        assert!(shown(&registry).contains(&line("b")) && !shown(&registry).contains(&line("a")));
        drop(next);
        assert!(shown(&registry).is_empty());
    }
}
