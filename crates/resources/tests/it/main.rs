//! The real pipeline over a store in memory, with the strategies and the admission chain of every cluster.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod access;
mod admission;
mod admitted;
mod aggregation;
mod bad_input;
mod boundaries;
mod catalog;
mod cluster;
mod conformance;
mod converted;
mod definitions;
mod devices;
mod documents;
mod encodings;
mod flow;
mod hook_server;
mod hooks;
mod http_front;
mod lifecycle;
mod parts;
mod policies;
mod protection;
mod proxy;
mod quotas;
mod refusals;
mod retired;
mod rules;
mod services;
mod slow;
mod subresources;
mod watching;
mod writes;
