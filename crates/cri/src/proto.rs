//! The interface's messages and services, generated from `proto/api.proto`. Source: `k8s.io/cri-api`, v1.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated; upstream's comments stand in the definition"
)]

tonic::include_proto!("runtime.v1");

impl std::fmt::Debug for AuthConfig {
    /// Without what is secret in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}
