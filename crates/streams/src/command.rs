//! Exec and attach, over whichever protocol the client asks for.

use api::Status;
use api::connect::Body;
use engine_api::{EngineError, Process};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Request;

use crate::process::{self, Wanted};
use crate::{Upgraded, spdy, websocket};

/// Starts the process (or connects to it) once the client's streams are there.
pub type Starter = Box<dyn FnOnce() -> BoxFuture<'static, Result<Process, EngineError>> + Send>;

/// Answers a client's handshake and connects it with the process.
pub fn command(request: &mut Request<Body>, wanted: Wanted, start: Starter) -> Result<Upgraded, Status> {
    wanted.check()?;
    if websocket::is_requested(request.headers()) {
        let (response, upgrade, protocol) = websocket::accept(request, &websocket::COMMAND_PROTOCOLS)?;
        let session = async move {
            let Ok(socket) = websocket::upgraded(upgrade).await else { return };
            let (remote, session) = websocket::command_session(socket, protocol);
            let run = async { process::run(start().await, wanted, remote).await };
            tokio::join!(session, run);
        };
        return Ok((response, session.boxed()));
    }
    let (response, upgrade, protocol) = spdy::accept(request, &spdy::COMMAND_PROTOCOLS)?;
    let session = async move {
        let Ok(io) = upgrade.await else { return };
        spdy::command_session(hyper_util::rt::TokioIo::new(io), protocol, wanted, start).await;
    };
    Ok((response, session.boxed()))
}
