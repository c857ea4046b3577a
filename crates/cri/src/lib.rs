//! The Container Runtime Interface v1 on a unix socket: gRPC over the engine's traits, so that `crictl` and an upstream
//! kubelet can use this engine.
//!
//! What only this interface knows of a sandbox or container (the configuration that made it) stands in the engine's
//! labels, with an owner of its own: it is listed again by the next process, nothing acknowledged is lost, and neither
//! the node's pods nor containers of `docker run` are ever seen or changed here, nor those of this interface by them.
//!
//! Source: `k8s.io/cri-api`, v1; where that leaves a choice, what containerd does.

mod container_spec;
mod containers;
mod events;
mod exec;
mod failure;
mod files;
mod filters;
mod images;
mod known;
mod metrics;
mod mounts;
pub mod proto;
mod resources;
mod runtime;
mod sandbox_spec;
mod sandboxes;
mod security;
mod server;
mod shared;
mod signals;
mod stats;
mod status;
mod streaming;
mod tokens;

pub use server::{Config, Server};
