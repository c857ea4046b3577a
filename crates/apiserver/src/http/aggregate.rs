//! Requests for what extension API servers serve: authorized here, then passed on with the user in headers.
//! Source: `kube-aggregator/pkg/apiserver/handler_proxy.go`.

use std::sync::Arc;
use std::time::Duration;

use api::Status;
use api::connect::{Body, User};
use base::BoxError;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;

use super::Front;
use super::guard::{self, Asks, Remote as Client};
use super::path::Target;
use super::respond::typed_response;
use crate::admission::Notes;
use crate::aggregation::Remote;
use crate::authn::front_proxy;
use crate::authz::Attributes;
use crate::proxy::rewrite;

impl Front {
    /// The extension API server that a path belongs to, if it is one's.
    pub(super) fn remote(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.aggregator.remotes();
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let documents = path.strip_prefix("/openapi/v3");
        if documents.is_some() {
            segments.by_ref().take(2).for_each(drop);
        }
        match (segments.next()?, segments.next()?, segments.next()) {
            ("apis", group, Some(version)) => remotes.get(group, version).cloned(),
            _ => None,
        }
    }

    /// Passes a request on.
    pub(super) async fn aggregate<B>(
        &self,
        user: &User,
        remote: &Remote,
        asks: &Asks<'_>,
        request: Request<B>,
        notes: &Arc<Notes>,
    ) -> Result<Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        self.pipeline.authorize_noted(&attributes(user, asks), notes).await?;
        if !remote.is_available() {
            return Ok(unavailable("service unavailable"));
        }
        let open_ended = asks.long_running || rewrite::is_upgrade(request.headers());
        let path = forwarded(asks.path, asks.target)?;
        let request = outgoing(user, remote, &path, request)?;
        let answer = remote.send(&self.pipeline, &self.aggregator.outbound, request);
        let answer = if open_ended { answer.await } else { in_time(asks.deadline, answer).await? };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(crate::aggregation::Unanswered::NoEndpoint) => return Ok(unavailable("service unavailable")),
            Err(crate::aggregation::Unanswered::Failed(cause)) => {
                return Ok(unavailable(&format!("error trying to reach service: {cause}")));
            }
        };
        if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
            let text = "the backend attempted to redirect this request, which is not permitted";
            return Ok(plain(StatusCode::BAD_GATEWAY, text));
        }
        let upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        rewrite::answer(answer.headers_mut(), "", ["", ""], upgraded);
        Ok(answer)
    }
}

async fn in_time<T>(deadline: Duration, answer: impl Future<Output = T>) -> Result<T, Status> {
    tokio::time::timeout(deadline, answer).await.map_err(|_| guard::timed_out())
}

/// An answer in plain text, as Go's `http.Error` gives it.
fn plain(code: StatusCode, text: &str) -> Response<Body> {
    typed_response(code, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn unavailable(text: &str) -> Response<Body> {
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// What authorization is asked.
fn attributes(user: &User, asks: &Asks<'_>) -> Attributes {
    let bare = Attributes { user: user.clone(), verb: asks.verb.to_owned(), ..Attributes::default() };
    let Target::Resource(path) = asks.target else {
        return Attributes { path: asks.path.to_owned(), ..bare };
    };
    let selector = |name: &str| asks.query.get(name).unwrap_or_default().to_owned();
    Attributes {
        namespace: path.namespace.clone(),
        group: path.group.clone(),
        version: path.version.clone(),
        resource: path.resource.clone(),
        subresource: path.subresource.clone(),
        name: path.name.clone(),
        is_resource: true,
        field_selector: selector("fieldSelector"),
        label_selector: selector("labelSelector"),
        ..bare
    }
}

/// The path as the extension API server gets it: the segments that were authorized, each as it was sent, and what follows
/// a subresource. What another server may read as other segments than those is refused: upstream decodes a path before it
/// looks at it, so that there a slash is a slash however it is spelled.
fn forwarded(path: &str, target: &Target) -> Result<String, Status> {
    let refused = || Status::bad_request("the path cannot be sent on: it hides a slash, or leads upwards");
    let rest = match target {
        Target::Resource(resource) => resource.rest.as_str(),
        Target::Other => "",
    };
    let head = path.strip_suffix(rest).unwrap_or(path);
    let mut out = String::with_capacity(path.len());
    for segment in head.split('/').filter(|segment| !segment.is_empty()) {
        if percent_decode_str(segment).any(|byte| byte == b'/') {
            return Err(refused());
        }
        out.push('/');
        out.push_str(segment);
    }
    if head.ends_with('/') {
        out.push('/');
    }
    out.push_str(rest);
    let decoded: Vec<u8> = percent_decode_str(&out).collect();
    if decoded.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b"..")) {
        return Err(refused());
    }
    Ok(out)
}

/// The request as the extension API server gets it, at a path.
fn outgoing<B>(user: &User, remote: &Remote, path: &str, request: Request<B>) -> Result<Request<Body>, Status>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let (mut head, body) = request.into_parts();
    let target = head.uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    head.uri = target.parse().map_err(|_| Status::bad_request("the path cannot be sent on"))?;
    head.version = Version::HTTP_11;
    let client = head.extensions.get::<Client>().map(|client| client.0.ip());
    rewrite::request(&mut head.headers, client);
    rewrite::forwarded_uri(&mut head.headers, "", path);
    front_proxy::name(&mut head.headers, user);
    let host = HeaderValue::from_str(&remote.host());
    let host = host.map_err(|_| Status::internal("the Service's name is no host"))?;
    head.headers.insert(header::HOST, host);
    Ok(Request::from_parts(head, body.map_err(Into::into).boxed_unsync()))
}

#[cfg(test)]
mod tests {
    use super::super::path::parse;
    use super::*;

    #[test]
    fn what_was_authorized_is_what_is_asked_for() {
        let sent = |path: &str| forwarded(path, &parse(path).unwrap()).map_err(|status| status.code);
        for path in [
            "/apis/g/v1",
            "/apis/g/v1/",
            "/apis/g/v1/namespaces/a/flunders/x%2dy/status",
            "/apis/g/v1/namespaces/a/flunders/x/proxy/a%2Fb//c/",
            "/openapi/v3/apis/g/v1",
        ] {
            assert_eq!(sent(path).as_deref(), Ok(path));
        }
        assert_eq!(sent("//apis/g//v1/flunders").as_deref(), Ok("/apis/g/v1/flunders"));
        for path in [
            "/apis/g/v1/namespaces/a/flunders/x%2Fstatus",
            "/apis/g/v1/namespaces/a%2fsecrets/flunders",
            "/apis/g/v1/namespaces/a/flunders/..",
            "/apis/g/v1/namespaces/a/flunders/%2e%2E/secrets",
            "/apis/g/v1/namespaces/a/flunders/x/proxy/../../../secrets",
            "/apis/g/v1/namespaces/a/flunders/x/proxy/..%2f..%2fy",
            "/openapi/v3/apis/g/v1/../secrets",
        ] {
            assert_eq!(sent(path), Err(400), "{path}");
        }
    }
}
