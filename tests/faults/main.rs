//! What goes wrong, on testbed hosts, with the real clients. They need root, a built `skiff`, `scripts/setup` and the
//! base images of `scripts/base-image`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod address;
mod bad_input;
mod churn;
mod disk;
mod exhausted;
mod hangs;
mod kill;
mod linearizable;
mod pods;
mod reboot;
mod rootless;
mod second_host;
mod several_servers;
mod support;
mod upgrade;
