//! Remote commands and port-forwarding as the clients of Kubernetes speak them: over WebSocket and over SPDY/3.1. Who
//! serves them (a node's server, the runtime interface) says which process or sandbox is meant; the bytes move here.
//!
//! Source: `k8s.io/streaming` and `k8s.io/apimachinery/pkg/util/httpstream`, and KEP-4006.

mod command;
mod port_forward;
mod process;
mod reader;
mod spdy;
mod websocket;

pub use command::{Starter, command};
pub use port_forward::port_forward;
pub use process::Wanted;
pub use reader::{is_websocket, read};

use api::connect::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::Response;
use http_body_util::{BodyExt as _, Full};

/// The answer to a handshake, and what moves the bytes once it is sent: to be spawned by whoever answers.
pub type Upgraded = (Response<Body>, BoxFuture<'static, ()>);

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
