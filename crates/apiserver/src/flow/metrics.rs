//! What priority and fairness counts, under upstream's names. A schema's figures are found once, when its configuration is
//! read, so that a request only adds to them. Source: `apiserver/pkg/util/flowcontrol/metrics`.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::queues::Refusal;

/// Upper bounds of the classes of durations, in seconds, as upstream has them.
const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const SEATS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
const FLOW: [&str; 2] = ["priority_level", "flow_schema"];

/// The figures of all levels and schemas.
#[derive(Clone)]
pub(crate) struct Metrics {
    rejected: IntCounterVec,
    dispatched: IntCounterVec,
    in_queue: IntGaugeVec,
    in_queue_seats: IntGaugeVec,
    executing: IntGaugeVec,
    executing_seats: IntGaugeVec,
    waited: HistogramVec,
    executed: HistogramVec,
    estimated: HistogramVec,
    /// By level: nominal, lower, upper, current.
    pub(super) limits: [IntGaugeVec; 4],
    /// By level: high watermark, average, deviation, smoothed.
    pub(super) demands: [GaugeVec; 4],
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let name = |name: &str| format!("apiserver_flowcontrol_{name}");
        let counter = |suffix: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name(suffix), help), labels)?)
        };
        let gauge = |suffix: &str, help: &str, labels: &[&str]| {
            registered(registry, IntGaugeVec::new(Opts::new(name(suffix), help), labels)?)
        };
        let level = |suffix: &str, help: &str| gauge(suffix, help, &FLOW[..1]);
        let demand = |suffix: &str, help: &str| {
            registered(registry, GaugeVec::new(Opts::new(name(suffix), help), &FLOW[..1])?)
        };
        let histogram = |suffix: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name(suffix), help).buckets(buckets.to_vec());
            registered(registry, HistogramVec::new(options, labels)?)
        };
        let with = |label: &'static str| [FLOW[0], FLOW[1], label];
        Ok(Self {
            rejected: counter("rejected_requests_total", "Requests that were turned away.", &with("reason"))?,
            dispatched: counter("dispatched_requests_total", "Requests that were let in.", &FLOW)?,
            in_queue: gauge("current_inqueue_requests", "Requests that wait.", &FLOW)?,
            in_queue_seats: gauge("current_inqueue_seats", "Seats that are waited for.", &FLOW)?,
            executing: gauge(
                "current_executing_requests",
                "Requests that run; watches as they begin.",
                &FLOW,
            )?,
            executing_seats: gauge("current_executing_seats", "Seats in use.", &FLOW)?,
            waited: histogram(
                "request_wait_duration_seconds",
                "How long requests waited.",
                &SECONDS,
                &with("execute"),
            )?,
            executed: histogram(
                "request_execution_seconds",
                "How long requests ran; watches until they had begun.",
                &SECONDS,
                &with("type"),
            )?,
            estimated: histogram("work_estimated_seats", "How many seats requests took.", &SEATS, &FLOW)?,
            limits: [
                level("nominal_limit_seats", "A level's part of the server's seats.")?,
                level("lower_limit_seats", "The seats that a level does not lend.")?,
                level("upper_limit_seats", "The seats up to which a level borrows.")?,
                level("current_limit_seats", "The seats that a level has now.")?,
            ],
            demands: [
                demand("demand_seats_high_watermark", "The most seats wanted before the last adjustment.")?,
                demand("demand_seats_average", "The seats wanted on average before the last adjustment.")?,
                demand(
                    "demand_seats_stdev",
                    "The deviation of the seats wanted before the last adjustment.",
                )?,
                demand("demand_seats_smoothed", "The seats that adjustments aim for.")?,
            ],
        })
    }

    /// The figures of a level and a schema.
    pub(super) fn counted(&self, level: &str, schema: &str) -> Counted {
        let flow = [level, schema];
        let waited = |execute| self.waited.with_label_values(&[level, schema, execute]);
        let executed = |kind| self.executed.with_label_values(&[level, schema, kind]);
        let refused = |why: Refusal| self.rejected.with_label_values(&[level, schema, why.reason()]);
        Counted(Some(Handles {
            refused: [Refusal::ConcurrencyLimit, Refusal::QueueFull, Refusal::TimeOut, Refusal::Cancelled]
                .map(|why| (why, refused(why))),
            dispatched: self.dispatched.with_label_values(&flow),
            in_queue: self.in_queue.with_label_values(&flow),
            in_queue_seats: self.in_queue_seats.with_label_values(&flow),
            executing: self.executing.with_label_values(&flow),
            executing_seats: self.executing_seats.with_label_values(&flow),
            waited: [waited("false"), waited("true")],
            executed: [executed("regular"), executed("watch")],
            estimated: self.estimated.with_label_values(&flow),
        }))
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone())).map(|()| collector)
}

struct Handles {
    refused: [(Refusal, IntCounter); 4],
    dispatched: IntCounter,
    in_queue: IntGauge,
    in_queue_seats: IntGauge,
    executing: IntGauge,
    executing_seats: IntGauge,
    waited: [Histogram; 2],
    executed: [Histogram; 2],
    estimated: Histogram,
}

/// The figures of one schema; by default nothing is counted.
#[derive(Default)]
pub(super) struct Counted(Option<Handles>);

impl Counted {
    /// How many requests were let in, turned away, waited too long and went while they waited.
    pub(super) fn totals(&self) -> [u64; 4] {
        let Some(own) = &self.0 else { return [0; 4] };
        let of = |wanted: &[Refusal]| {
            let counted = own.refused.iter().filter(|(why, _)| wanted.contains(why));
            counted.map(|(_, counter)| counter.get()).sum()
        };
        let away = of(&[Refusal::ConcurrencyLimit, Refusal::QueueFull]);
        [own.dispatched.get(), away, of(&[Refusal::TimeOut]), of(&[Refusal::Cancelled])]
    }

    pub(super) fn queued(&self, seats: u32) {
        if let Some(own) = &self.0 {
            own.in_queue.inc();
            own.in_queue_seats.add(seats.into());
        }
    }

    pub(super) fn unqueued(&self, seats: u32, seconds: f64, execute: bool) {
        if let Some(own) = &self.0 {
            own.in_queue.dec();
            own.in_queue_seats.sub(seats.into());
            own.waited[usize::from(execute)].observe(seconds);
        }
    }

    pub(super) fn refused(&self, why: Refusal) {
        let counter = self.0.iter().flat_map(|own| &own.refused).find(|(known, _)| *known == why);
        if let Some((_, counter)) = counter {
            counter.inc();
        }
    }

    pub(super) fn began(&self, seats: u32) {
        if let Some(own) = &self.0 {
            own.dispatched.inc();
            own.executing.inc();
            own.executing_seats.add(seats.into());
            own.estimated.observe(seats.into());
        }
    }

    pub(super) fn ended(&self, seats: u32, seconds: f64, watch: bool) {
        if let Some(own) = &self.0 {
            own.executing.dec();
            own.executing_seats.sub(seats.into());
            own.executed[usize::from(watch)].observe(seconds);
        }
    }
}
