//! The Docker Engine API on a unix socket: thin HTTP over the engine's traits.
//!
//! Versions 1.41 to 1.50, as far as images, builds and single containers go; the classic builder. Each container of
//! `docker run` is a sandbox with one container, kept by the engine; what only Docker knows about it (the request that
//! made it) stands in the sandbox's labels, so that nothing is lost with this process. Containers of Kubernetes pods
//! are not listed unless a filter asks for their labels, and cannot be changed here.
//!
//! Source: Docker Engine API reference.

mod answer;
mod build;
mod container_spec;
mod containers;
mod events;
mod exec;
mod hijack;
mod images;
mod inspect;
mod locks;
mod logs;
mod mounts;
mod ports;
mod query;
mod server;
mod system;
mod unsupported;
mod upload;

pub use server::{Config, Server};
