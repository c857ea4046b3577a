//! Pods that have to go because their node is short of something, or because they hold more of its disk than they may.
//! What is decided is pure (`state`, `rank`, `storage`); `manager` looks at the host and acts. Source: `pkg/kubelet/eviction`.

mod manager;
mod observe;
pub(crate) mod pressure;
mod rank;
mod state;
mod storage;
mod threshold;

pub(crate) use manager::{Manager, keep};
pub(crate) use state::State;
pub use threshold::{Amount, Eviction, Signal, Threshold};
pub(crate) use threshold::{Texts, Words};

/// `status.reason` of a pod that has to go, and its event's.
pub(crate) const EVICTED: &str = "Evicted";

/// Why and how a pod has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// `status.reason`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// How long it has to end, in seconds.
    pub(crate) grace_seconds: i64,
    /// It goes for the sake of others, which its condition says.
    pub(crate) disrupts: bool,
}
