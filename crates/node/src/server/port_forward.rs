//! Port-forward: which sandbox a request means.

use std::sync::Arc;

use api::Status;
use api::connect::Body;
use http::{Request, Response};

use super::NodeServer;
use super::query::{self, Query};
use super::route::Target;

/// `/portForward/{namespace}/{pod}`
pub(super) async fn serve(
    server: &Arc<NodeServer>,
    target: &Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let sandbox = query::sandbox(&server.deps, target)?;
    let query = Query::of(&request);
    let ports = [query.all("ports"), query.all("port")].concat();
    let runtime = server.deps.runtime.clone();
    let (response, session) = streams::port_forward(&mut request, runtime, sandbox.id, &ports)?;
    server.sessions.spawn(session);
    Ok(response)
}
