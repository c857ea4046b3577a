//! The data path for real: pods, a host and the world outside as network namespaces of this process's threads. Needs
//! root; touches nothing outside the namespaces that it makes, which end with their threads.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod agents;
mod api_server;
mod data_path;
mod drain;
mod namespaces;
mod published;
mod scale;
mod world;
