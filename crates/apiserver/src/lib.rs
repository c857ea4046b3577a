//! One pipeline for every kind: authentication, authorization, admission, watch cache, discovery, OpenAPI.

pub mod admission;
mod audit;
pub mod authn;
pub mod authz;
mod bootstrap;
mod build;
pub mod cache;
pub mod definitions;
mod encryption;
mod expiring;
pub mod field;
mod flow;
pub mod http;
pub mod names;
pub mod net;
pub mod nodes;
pub mod options;
mod peers;
pub mod pipeline;
pub mod pki;
mod protection;
mod remote;
mod selection;
mod server;
pub mod storage;
pub mod strategy;
pub mod tree;
mod watched;
mod webhook;
pub mod words;

pub use authn::Access;
pub use build::{BuildError, Config};
pub use pipeline::{Parts, Pipeline, rfc3339};
pub use protection::{Audit, Protection};
pub use remote::FileError;
pub use server::Server;
