//! A server of the gRPC health protocol on a host. Source: `grpc.health.v1`.

use std::convert::Infallible;
use std::fs::File;
use std::net::TcpListener;
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sys::ns::Namespace;
use testbed::Host;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// The service that says that it serves; every other one does not.
pub(crate) const SERVES: &str = "serves";

/// Ends when it is dropped.
pub(crate) struct Health {
    pub(crate) port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Health {
    pub(crate) fn on(host: &Host) -> Self {
        let network = File::open(format!("/proc/{}/ns/net", host.pid())).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (bound, listener) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            sys::ns::join(network, Namespace::Network).unwrap();
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            bound.send(listener.local_addr().unwrap().port()).unwrap();
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serve = serve(tokio::net::TcpListener::from_std(listener).unwrap());
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        Self { port: listener.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection after the other: a probe makes one, asks and ends it.
async fn serve(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let connection = http2::Builder::new(TokioExecutor::new());
        let _ = connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible> + use<>>, Infallible> {
    let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    // A message of two bytes: the field `status` is SERVING or NOT_SERVING.
    let status = if asked.ends_with(SERVES.as_bytes()) { 1 } else { 2 };
    let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
    let trailers =
        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(message).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}
