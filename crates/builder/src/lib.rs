//! Builds images from Dockerfiles: parser, build graph, cache and execution.
//!
//! The text becomes instructions ([`parser`]), grouped into stages of which only the needed ones are built ([`plan`]).
//! Each instruction makes an image: its file system changes, if any, are one layer, and a later build finds it by what
//! it was made from (parent, instruction, content of copied files, used arguments). RUN executes in a sandbox of
//! [`engine_api::Runtime`]; files are copied inside the image's root, which the kernel enforces.
//!
//! Source: the Dockerfile reference; output as Docker's classic builder prints it.

mod add;
mod commit;
mod config;
mod copy;
mod dispatch;
mod error;
mod expand;
mod parser;
mod plan;
mod run;
mod service;
mod tree;

pub use error::Error;
pub use service::{Builder, Host};
