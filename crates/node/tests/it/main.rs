//! The node agent as a whole, against an API server and a runtime that live in memory.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect has failed.

mod api_server;
mod pods;
mod runtime;
mod streams;
mod world;
