//! A pod as the node looks at it, and the pure decisions about it: what to do next, what to report, what its
//! containers are made of. Nothing here does I/O.

pub(crate) mod dns;
pub(crate) mod env;
pub(crate) mod env_file;
pub(crate) mod fields;
pub(crate) mod hash;
pub(crate) mod non_root;
pub(crate) mod phase;
pub(crate) mod plan;
pub(crate) mod quantity;
pub(crate) mod record;
pub(crate) mod recursion;
pub(crate) mod resources;
pub(crate) mod restart;
pub(crate) mod security;
pub(crate) mod spec;
pub(crate) mod status;
pub(crate) mod view;

pub(crate) use record::{ContainerRecord, SandboxRecord};
pub(crate) use view::{ContainerKind, PodView, RestartPolicy};

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod status_tests;
#[cfg(test)]
pub(crate) mod tests;
