//! The real pipeline over a store in memory, with the strategies and the admission chain of every cluster.

// What cannot fail in a test fails the test.
#![allow(clippy::unwrap_used)]

mod cluster;
mod http_front;
mod lifecycle;
mod services;
mod watching;
mod writes;
