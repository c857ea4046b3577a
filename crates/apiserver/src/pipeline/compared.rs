//! Whether an update changes anything but the times of managedFields, and how long it took to tell, under upstream's name.
//! Source: `endpoints/handlers/fieldmanager/equality.go`, `endpoints/metrics`.

use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};
use serde_json::Value;

use super::meta;
use crate::tree;

const BUCKETS: [f64; 10] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0];

/// How long comparisons took, by the way on which upstream's would have come to its end. There is no `error`: what is
/// compared here are trees, which are never unfit for it.
#[derive(Debug, Clone)]
pub(crate) struct Comparisons {
    unequal_fast: Histogram,
    unequal_slow: Histogram,
    equal: Histogram,
}

impl Comparisons {
    /// All at zero.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let opts = HistogramOpts::new(
            "apiserver_request_timestamp_comparison_time",
            "How long it took to compare objects of updates and patches with what they were.",
        );
        let took = HistogramVec::new(opts.buckets(BUCKETS.to_vec()), &["code_path"])?;
        registry.register(Box::new(took.clone()))?;
        let of = |path: &str| took.with_label_values(&[path]);
        Ok(Self {
            unequal_fast: of("unequal_objects_fast"),
            unequal_slow: of("unequal_objects_slow"),
            equal: of("equal_objects"),
        })
    }

    /// Whether two versions of an object say the same, times of managedFields and the version itself apart.
    pub(super) fn same(&self, new: &Value, old: &Value) -> bool {
        let since = Instant::now();
        let (same, path) = compared(new, old);
        let took = match path {
            Path::UnequalFast => &self.unequal_fast,
            Path::UnequalSlow => &self.unequal_slow,
            Path::Equal => &self.equal,
        };
        took.observe(since.elapsed().as_secs_f64());
        same
    }
}

/// Upstream takes times back where nothing else is new. Where none is, or who owns what has changed, it looks no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    UnequalFast,
    UnequalSlow,
    Equal,
}

fn compared(new: &Value, old: &Value) -> (bool, Path) {
    let [one, other] = [new, old].map(|object| tree::at(object, &["metadata"]).get("managedFields"));
    if !meta::same_owners(one, other) {
        return (false, Path::UnequalFast);
    }
    let same = meta::same_content(new, old);
    // But for times they are equal.
    match (one == other, same) {
        (true, _) => (same, Path::UnequalFast),
        (false, true) => (true, Path::Equal),
        (false, false) => (false, Path::UnequalSlow),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_comparison_is_counted_by_upstreams_way_to_its_end() {
        let object = |owners: Value, data: &str| json!({ "metadata": { "name": "a", "resourceVersion": data, "managedFields": owners }, "data": data });
        let by = |manager: &str, time: &str| json!([{ "manager": manager, "time": time }]);
        let registry = Registry::new();
        let comparisons = Comparisons::new(&registry).unwrap();
        let old = object(by("a", "1"), "x");
        for (new, same, path) in [
            (object(by("a", "1"), "x"), true, Path::UnequalFast),
            (object(by("a", "1"), "y"), false, Path::UnequalFast),
            (object(by("a", "2"), "x"), true, Path::Equal),
            (object(by("a", "2"), "y"), false, Path::UnequalSlow),
            (object(by("b", "2"), "x"), false, Path::UnequalFast),
            (object(json!([]), "x"), false, Path::UnequalFast),
        ] {
            assert_eq!(compared(&new, &old), (same, path), "{new}");
            assert_eq!(comparisons.same(&new, &old), same);
        }
        let none = json!({ "metadata": { "name": "a" } });
        assert_eq!(compared(&none, &none), (true, Path::UnequalFast));
        let counts = [&comparisons.unequal_fast, &comparisons.unequal_slow, &comparisons.equal];
        assert_eq!(counts.map(Histogram::get_sample_count), [4, 1, 1]);
    }
}
