//! Controllers on the real API server and store, under a clock that jumps from one deadline to the next. A seed makes a
//! story: users, kubelets, failing requests, watches that break and controllers that are killed, in random order. What
//! always has to hold is looked at after each single change, in the order of revisions.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod autoscalers;
mod bad_input;
mod budgets;
mod cronjobs;
mod daemonsets;
mod deployments;
mod devices;
mod disruptions;
mod endpoints;
mod faults;
mod garbage;
mod jobs;
mod kubelet;
mod leftovers;
mod namespaces;
mod nodes;
mod owners;
mod quotas;
mod statefulsets;
mod volumes;
mod witness;
mod world;
