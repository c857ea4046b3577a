//! The port through which the API server reaches a node: logs, exec, attach, port-forward and node proxying.

use std::net::IpAddr;

use async_trait::async_trait;
use base::BoxError;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

use crate::Status;

/// A body of unknown length that streams.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Who asks, as authentication established it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// `system:admin`, `system:serviceaccount:ns:name`, ….
    pub name: String,
    /// Unique over time, where known.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More attributes (`authentication.kubernetes.io/pod-name`, …).
    pub extra: Vec<(String, Vec<String>)>,
}

/// Reaches nodes' own servers: HTTPS to the node's authenticated server, with in-process as its short cut.
///
/// The request carries the kubelet's path and query (`/containerLogs/ns/pod/container?follow=true`,
/// `/exec/ns/pod/container?command=…`, `/attach/…`, `/portForward/ns/pod`). Upgrades (WebSocket, SPDY) travel in
/// the request's hyper upgrade extension: the implementation answers 101 and takes the client's upgraded stream over
/// itself.
#[async_trait]
pub trait NodeConnector: Send + Sync + 'static {
    /// Sends a request to a node's server and gives its answer.
    async fn request(
        &self,
        node: &NodeAddress,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status>;
}

/// Where a node's server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node's name: the certificate's name is `system:node:<name>`.
    pub name: String,
    /// Its internal address.
    pub address: IpAddr,
    /// Port of its server (`status.daemonEndpoints.kubeletEndpoint.Port`).
    pub port: u16,
}
