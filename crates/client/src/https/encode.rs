//! Requests as HTTP.

use api::{Call, PatchType, Request, Status, wire};
use bytes::Bytes;
use http::{Method, header};
use http_body_util::Full;

/// The request as the server's HTTP front takes it.
pub(super) fn http_request(request: &Request) -> Result<http::Request<Full<Bytes>>, Status> {
    let (method, media) = match &request.call {
        Call::Get { .. } | Call::List(_) | Call::Watch(_) => (Method::GET, JSON),
        Call::Create { .. } => (Method::POST, JSON),
        Call::Update { .. } => (Method::PUT, JSON),
        Call::Patch { kind, .. } => (Method::PATCH, media_type(*kind)),
        Call::Delete(_) | Call::DeleteCollection(..) => (Method::DELETE, JSON),
    };
    http::Request::builder()
        .method(method)
        .uri(wire::path_and_query(request))
        .header(header::ACCEPT, JSON)
        .header(header::CONTENT_TYPE, media)
        .body(Full::new(wire::body(&request.call)))
        .map_err(|error| Status::bad_request(format!("cannot send {}: {error}", request.resource)))
}

const JSON: &str = "application/json";

fn media_type(kind: PatchType) -> &'static str {
    match kind {
        PatchType::Json => "application/json-patch+json",
        PatchType::Merge => "application/merge-patch+json",
        PatchType::StrategicMerge => "application/strategic-merge-patch+json",
        PatchType::Apply => "application/apply-patch+yaml",
    }
}
