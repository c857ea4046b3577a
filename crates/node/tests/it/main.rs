//! The node agent as a whole, against an API server and a runtime that live in memory.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod api_server;
mod certificates;
mod cpus;
mod devices;
mod dra;
mod eviction;
mod images;
mod logind;
mod plugins;
mod pods;
mod resize;
mod runtime;
mod security;
mod shutdown;
mod static_pods;
mod streams;
mod volumes;
mod world;
