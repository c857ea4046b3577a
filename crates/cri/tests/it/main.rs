//! The interface over the real engine, asked by a gRPC client on its socket. Each test has directories and a cgroup of
//! its own. Needs root and Debian's `busybox-static`.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod containers;
mod images;
mod sandboxes;
mod streams;
mod world;
