//! What the EndpointSlice controller counts. Source: `k8s.io/endpointslice/metrics`.

use std::collections::HashMap;

use api::Key;
use parking_lot::Mutex;
use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

const PREFIX: &str = "endpoint_slice_controller";

/// The figures of EndpointSlices.
pub(crate) struct SliceFigures {
    added: Histogram,
    removed: Histogram,
    endpoints: IntGauge,
    slices: IntGauge,
    ideal: IntGauge,
    changes: IntCounterVec,
    changed: HistogramVec,
    syncs: IntCounterVec,
    distributions: IntGaugeVec,
    /// What each Service adds to the gauges.
    services: Mutex<HashMap<Key, Sizes>>,
}

/// What a Service has, or should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) endpoints: usize,
    pub(crate) slices: usize,
    /// So few slices would do.
    pub(crate) ideal: usize,
    /// Its `trafficDistribution`, where that is one that is known and in force.
    pub(crate) distribution: Option<&'static str>,
}

/// What a look at a Service came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    /// Endpoints that came and went.
    pub(crate) added: usize,
    pub(crate) removed: usize,
    /// Slices that are written or deleted.
    pub(crate) changed: usize,
    /// Whether endpoints are to be shared out among zones.
    pub(crate) by_zones: bool,
    pub(crate) sizes: Sizes,
}

impl SliceFigures {
    /// All at zero, shown with those of a registry.
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("{PREFIX}_{name}"), help);
        let buckets = || exponential_buckets(2.0, 2.0, 15);
        let histogram = |name: &str, help: &str| {
            let opts = HistogramOpts::from(opts(name, help)).buckets(buckets()?);
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone())).map(|()| histogram)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::with_opts(opts(name, help))?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let counter = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(opts(name, help), &[label])?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let changed = "[ALPHA] EndpointSlices that a look at a Service changed.";
        let changed = HistogramVec::new(
            HistogramOpts::from(opts("endpointslices_changed_per_sync", changed)),
            &["topology", "traffic_distribution"],
        )?;
        registry.register(Box::new(changed.clone()))?;
        let distributions = "[BETA] Services by their trafficDistribution.";
        let distributions = IntGaugeVec::new(
            opts("services_count_by_traffic_distribution", distributions),
            &["traffic_distribution"],
        )?;
        registry.register(Box::new(distributions.clone()))?;
        Ok(Self {
            added: histogram("endpoints_added_per_sync", "[BETA] Endpoints that a look at a Service added.")?,
            removed: histogram(
                "endpoints_removed_per_sync",
                "[BETA] Endpoints that a look at a Service removed.",
            )?,
            endpoints: gauge("endpoints_desired", "[BETA] Endpoints that are wanted.")?,
            slices: gauge("num_endpoint_slices", "[BETA] EndpointSlices.")?,
            ideal: gauge("desired_endpoint_slices", "[BETA] How few EndpointSlices would do.")?,
            changes: counter("changes", "[ALPHA] Changes of EndpointSlices.", "operation")?,
            changed,
            syncs: counter("syncs", "[ALPHA] How often Services were looked at.", "result")?,
            distributions,
            services: Mutex::default(),
        })
    }

    /// A Service was looked at.
    pub(crate) fn synced(&self, fine: bool) {
        self.syncs.with_label_values(&[if fine { "success" } else { "error" }]).inc();
    }

    /// A slice was written: `create`, `update` or `delete`.
    pub(crate) fn changed(&self, operation: &str) {
        self.changes.with_label_values(&[operation]).inc();
    }

    /// What a look at a Service came to.
    pub(crate) fn looked(&self, service: &Key, look: Look) {
        self.added.observe(look.added as f64);
        self.removed.observe(look.removed as f64);
        let by_zones = if look.by_zones { "Auto" } else { "Disabled" };
        let distribution = look.sizes.distribution.unwrap_or_default();
        self.changed.with_label_values(&[by_zones, distribution]).observe(look.changed as f64);
        self.weigh(&look.sizes, 1);
        if let Some(before) = self.services.lock().insert(service.clone(), look.sizes) {
            self.weigh(&before, -1);
        }
    }

    /// A Service is gone, or is not this controller's any more.
    pub(crate) fn forget(&self, service: &Key) {
        if let Some(before) = self.services.lock().remove(service) {
            self.weigh(&before, -1);
        }
    }

    fn weigh(&self, sizes: &Sizes, sign: i64) {
        let by = |count: usize| sign * i64::try_from(count).unwrap_or(i64::MAX);
        self.endpoints.add(by(sizes.endpoints));
        self.slices.add(by(sizes.slices));
        self.ideal.add(by(sizes.ideal));
        if let Some(distribution) = sizes.distribution {
            self.distributions.with_label_values(&[distribution]).add(sign);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_follow_what_services_have() {
        let registry = Registry::new();
        let figures = SliceFigures::new(&registry).unwrap();
        let look = |endpoints, distribution| Look {
            added: 3,
            changed: 1,
            sizes: Sizes { endpoints, slices: 2, ideal: 1, distribution },
            ..Look::default()
        };
        let (one, two) = (Key::new("ns", "one"), Key::new("ns", "two"));
        figures.looked(&one, look(7, Some("PreferClose")));
        figures.looked(&two, look(5, Some("PreferClose")));
        figures.looked(&two, look(4, None));
        figures.looked(&Key::new("ns", "gone"), look(9, Some("PreferSameNode")));
        figures.forget(&Key::new("ns", "gone"));
        figures.forget(&Key::new("ns", "never"));
        figures.synced(true);
        figures.synced(false);
        figures.changed("create");
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "endpoints_desired 11",
            "num_endpoint_slices 4",
            "desired_endpoint_slices 2",
            r#"services_count_by_traffic_distribution{traffic_distribution="PreferClose"} 1"#,
            r#"services_count_by_traffic_distribution{traffic_distribution="PreferSameNode"} 0"#,
            r#"endpoints_added_per_sync_bucket{le="4"} 4"#,
            "endpoints_removed_per_sync_sum 0",
            r#"endpointslices_changed_per_sync_count{topology="Disabled",traffic_distribution="PreferClose"} 2"#,
            r#"changes{operation="create"} 1"#,
            r#"syncs{result="error"} 1"#,
        ] {
            let line = format!("{PREFIX}_{line}");
            assert!(text.lines().any(|known| known == line), "{line} is not in {text}");
        }
    }
}
