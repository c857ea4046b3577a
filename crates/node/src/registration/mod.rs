//! The Node object: made once, kept current, with a heartbeat that costs the API server almost nothing.

pub(crate) mod allocatable;
pub(crate) mod facts;
mod heartbeat;
pub(crate) mod object;

pub(crate) use heartbeat::{LEASE_PERIOD, LEASE_SECONDS, STATUS_PERIOD, keep_lease, keep_status, register};
