//! Probes: timers that ask running containers how they are, thresholds that turn answers into verdicts.

pub(crate) mod check;
mod grpc;
mod insecure;
pub(crate) mod listening;
mod prober;

pub(crate) use prober::{ProbeReport, ProbeTarget, Prober};

/// Which question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ProbeType {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeType {
    /// As events spell it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}
