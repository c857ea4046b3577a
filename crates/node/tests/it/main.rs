//! The node agent as a whole, against an API server and a runtime that live in memory.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod api_server;
mod images;
mod pods;
mod runtime;
mod static_pods;
mod streams;
mod world;
