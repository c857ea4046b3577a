//! What components of this process read of extension API servers: they ask the pipeline as for anything else, and have the
//! answer in the shape that the pipeline gives.

use std::fmt::Write as _;
use std::sync::Arc;

use api::connect::User;
use api::{Call, List, ListOptions, Object, Reason, Request, Response, Status};
use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Aggregator, Remote};
use crate::authn::{in_group, names};
use crate::pipeline::Pipeline;

/// A list may be so long.
const BYTES_MAX: usize = 32 << 20;
/// Everything but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Whom extension API servers take this process's components for: their rights there are given to upstream's name for
/// the only one that asks them. Source: `system:controller:horizontal-pod-autoscaler`.
const NAME: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
const GROUPS: [&str; 3] =
    ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];

impl Aggregator {
    /// Answers a request that was authorized, if an extension API server serves what it is about.
    pub(crate) async fn read(
        &self,
        pipeline: &Pipeline,
        user: &User,
        request: &Request,
    ) -> Option<Result<Response, Status>> {
        let remote = self.remotes().get(&request.resource.group, &request.resource.version)?.clone();
        Some(self.read_from(&remote, pipeline, user, request).await)
    }

    async fn read_from(
        &self,
        remote: &Remote,
        pipeline: &Pipeline,
        user: &User,
        request: &Request,
    ) -> Result<Response, Status> {
        let path = match &request.call {
            Call::Get { .. } => path(request, &ListOptions::default()),
            Call::List(options) => path(request, options),
            _ => {
                return Err(Status::new(
                    Reason::MethodNotAllowed,
                    "extension API servers are only read here",
                ));
            }
        };
        let user = if in_group(user, names::COMPONENTS) { component() } else { user.clone() };
        let unreached = |cause: String| {
            let message = format!("error trying to reach service: {cause}");
            Status::new(Reason::ServiceUnavailable, message)
        };
        let asked = remote.read(pipeline, &self.outbound, &user, &path, BYTES_MAX).await;
        let (code, body) = asked.map_err(unreached)?;
        if !code.is_success() {
            return Err(failure(code, &body));
        }
        if matches!(request.call, Call::List(_)) { list(&body) } else { object(&body) }
    }
}

fn component() -> User {
    User { name: NAME.into(), groups: GROUPS.map(str::to_owned).to_vec(), ..User::default() }
}

/// The path and query of a request.
fn path(request: &Request, options: &ListOptions) -> String {
    let resource = &request.resource;
    let mut path = format!("/apis/{}/{}", resource.group, resource.version);
    let parts = [
        ("/namespaces/", &request.namespace),
        ("/", &resource.resource),
        ("/", &request.name),
        ("/", &request.subresource),
    ];
    for (before, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
        // Writing to a string cannot fail.
        let _ = write!(path, "{before}{}", utf8_percent_encode(part, ESCAPED));
    }
    let queries =
        [("labelSelector", &options.label_selector), ("metricLabelSelector", &options.metric_label_selector)];
    let mut before = '?';
    for (name, value) in queries.into_iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(path, "{before}{name}={}", utf8_percent_encode(value, ESCAPED));
        before = '&';
    }
    path
}

#[derive(Deserialize)]
struct ListBody<'a> {
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

fn list(body: &[u8]) -> Result<Response, Status> {
    let list: ListBody<'_> = serde_json::from_slice(body).map_err(garbled)?;
    let items = list.items.into_iter().map(|item| parsed(item.get().as_bytes()));
    Ok(Response::List(List { items: items.collect::<Result<_, _>>()?, ..List::default() }))
}

fn object(body: &[u8]) -> Result<Response, Status> {
    Ok(Response::Object { object: parsed(body)?, created: false, warnings: Vec::new() })
}

fn parsed(bytes: &[u8]) -> Result<Arc<Object>, Status> {
    Object::parse(bytes.to_vec().into()).map(Arc::new).map_err(garbled)
}

fn garbled(error: serde_json::Error) -> Status {
    Status::internal(format!("the extension API server's answer cannot be read: {error}"))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    reason: Option<Reason>,
    message: String,
}

/// What it refused, in its own words.
fn failure(code: StatusCode, body: &[u8]) -> Status {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let reason = refusal.reason.unwrap_or(match code.as_u16() {
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        429 => Reason::TooManyRequests,
        503 => Reason::ServiceUnavailable,
        _ => Reason::InternalError,
    });
    let message = if refusal.message.is_empty() {
        format!("the extension API server answered {code}")
    } else {
        refusal.message
    };
    Status { code: code.as_u16(), ..Status::new(reason, message) }
}

#[cfg(test)]
mod tests {
    use api::GroupVersionResource;

    use super::*;

    #[test]
    fn paths_are_those_of_the_metrics_apis() {
        let request = |resource: &str, name: &str, subresource: &str| Request {
            resource: GroupVersionResource::new("custom.metrics.k8s.io", "v1beta2", resource),
            namespace: "ns".into(),
            name: name.into(),
            subresource: subresource.into(),
            call: Call::Get { resource_version: String::new() },
        };
        let options = ListOptions {
            label_selector: "a=b".into(),
            metric_label_selector: "c in (d,e)".into(),
            ..ListOptions::default()
        };
        let base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns";
        assert_eq!(
            path(&request("pods", "*", "rate"), &options),
            format!("{base}/pods/%2A/rate?labelSelector=a%3Db&metricLabelSelector=c%20in%20%28d%2Ce%29")
        );
        assert_eq!(
            path(&request("metrics", "rate", ""), &ListOptions::default()),
            format!("{base}/metrics/rate")
        );
    }

    #[test]
    fn refusals_keep_their_words() {
        let refused = failure(StatusCode::NOT_FOUND, br#"{"reason":"NotFound","message":"no such metric"}"#);
        assert_eq!((refused.reason, refused.message.as_str()), (Reason::NotFound, "no such metric"));
        assert_eq!(failure(StatusCode::BAD_GATEWAY, b"what").code, 502);
    }
}
