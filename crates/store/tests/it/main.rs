//! The store's integration tests: one contract for every implementation, and what only the embedded one has.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod contract;
mod embedded;
mod etcd;
