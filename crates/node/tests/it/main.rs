//! The node agent as a whole, against an API server and a runtime that live in memory.

mod api_server;
mod pods;
mod runtime;
mod streams;
mod world;
