//! What is counted of values at rest, under upstream's names. Source: `apiserver/pkg/storage/value/metrics.go`.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, exponential_buckets};

/// Figures of what is encrypted and decrypted.
#[derive(Clone)]
pub(crate) struct Metrics {
    seconds: HistogramVec,
    operations: IntCounterVec,
}

/// Which way a value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    FromStorage,
    ToStorage,
}

impl Way {
    fn as_str(self) -> &'static str {
        match self {
            Self::FromStorage => "from_storage",
            Self::ToStorage => "to_storage",
        }
    }
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["transformation_type", "transformer_prefix"];
        let seconds = HistogramOpts::new(
            "apiserver_storage_transformation_duration_seconds",
            "How long values took to be encrypted and decrypted.",
        );
        let seconds = seconds.buckets(exponential_buckets(5e-6, 2.0, 25)?);
        let seconds = HistogramVec::new(seconds, &labels)?;
        let operations =
            Opts::new("apiserver_storage_transformation_operations_total", "Values encrypted and decrypted.");
        let operations = IntCounterVec::new(operations, &[labels[0], labels[1], "status"])?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(operations.clone()))?;
        Ok(Self { seconds, operations })
    }

    /// A value went through; `provider` is what those of its provider begin with, empty where none is known.
    pub(super) fn went(&self, way: Way, provider: &str, took: Duration, done: bool) {
        let status = if done { "OK" } else { "unknown-non-grpc" };
        self.operations.with_label_values(&[way.as_str(), provider, status]).inc();
        if done {
            self.seconds.with_label_values(&[way.as_str(), provider]).observe(took.as_secs_f64());
        }
    }
}
