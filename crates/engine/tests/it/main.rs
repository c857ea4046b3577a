//! The contract of `engine-api` on real containers, and what outlives whom. Each test has directories and a cgroup of
//! its own. Needs root and Debian's `busybox-static` and `runc`.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod cdi;
mod contract;
mod escape;
mod mounts;
mod other_runtime;
mod propagation;
mod support;
mod survival;
mod users;
