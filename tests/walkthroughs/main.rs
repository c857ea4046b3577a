//! Users' walkthroughs on testbed hosts, with the real clients. They need root, a built `skiff`, `scripts/setup` and
//! the base images of `scripts/base-image`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod docker_client;
mod first_hour;
mod first_minutes;
mod instance;
mod pressure;
mod published_ports;
mod releases;
mod sentiment;
mod soak;
mod storage;
mod terminal;
mod web;
mod workloads;
mod zero_downtime;
