//! Containers and sandboxes behind [`engine_api::Runtime`], images behind [`engine_api::Images`].
//!
//! A sandbox is a process of its own, the shim, which this crate embeds, starts and talks to; see [`Engine`]. What runs
//! in a container is decided by pure functions (`oci`, `user`, `capabilities`, `seccomp`); everything that touches the
//! kernel goes through `sys`.

mod capabilities;
mod cdi;
mod containers;
mod embed;
mod engine;
mod handlers;
mod id_ranges;
mod images;
mod labels;
mod layout;
mod link;
mod mapping;
mod oci;
mod process;
mod records;
mod runtime;
mod sandboxes;
mod seccomp;
mod signals;
mod stops;
mod ungrouped;
mod user;

pub use cdi::CDI_DIRECTORIES;
pub use engine::{Engine, EngineConfig};
pub use images::ImageService;
