//! Who may use the node's HTTPS server: the API server and admins by client certificate, others by what TokenReview and
//! SubjectAccessReview say of them.

use api::{GroupVersionResource, Reason, Status};
use http::{HeaderMap, Method, header};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::json;

use super::route::Route;
use crate::deps::Deps;

/// Everything is allowed to them.
const MASTERS: &str = "system:masters";

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

/// The identity in a client certificate that the handshake has verified: common name and organizations.
pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|entry| entry.as_str().ok().map(str::to_owned));
    Some(Identity { name, groups: groups.collect() })
}

#[derive(Deserialize)]
struct TokenReview {
    status: TokenStatus,
}

#[derive(Deserialize)]
struct TokenStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: TokenUser,
}

#[derive(Deserialize, Default)]
struct TokenUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    groups: Vec<String>,
}

/// Establishes who asks: by certificate, else by bearer token.
pub(super) async fn authenticate(
    deps: &Deps,
    certificate: Option<Identity>,
    headers: &HeaderMap,
) -> Result<Identity, Status> {
    if let Some(identity) = certificate {
        return Ok(identity);
    }
    let unauthorized = || Status::new(Reason::Unauthorized, "Unauthorized");
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(unauthorized)?;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "metadata": {}, "spec": { "token": token },
    });
    let gvr = GroupVersionResource::new("authentication.k8s.io", "v1", "tokenreviews");
    let answer = deps.client.create(&gvr, "", &review).await.map_err(|_| unauthorized())?;
    let answer: TokenReview = answer.decode().map_err(|_| unauthorized())?;
    if !answer.status.authenticated {
        return Err(unauthorized());
    }
    let TokenUser { username, groups } = answer.status.user;
    Ok(Identity { name: username, groups })
}

#[derive(Deserialize)]
struct AccessReview {
    status: AccessStatus,
}

#[derive(Deserialize)]
struct AccessStatus {
    #[serde(default)]
    allowed: bool,
}

/// Whether an identity needs no review.
fn is_trusted(identity: &Identity, api_server: &str) -> bool {
    (!api_server.is_empty() && identity.name == api_server)
        || identity.groups.iter().any(|group| group == MASTERS)
}

/// Refuses who may not use the node's server in this way.
pub(super) async fn authorize(
    deps: &Deps,
    api_server: &str,
    identity: &Identity,
    method: &Method,
    route: &Route,
) -> Result<(), Status> {
    if is_trusted(identity, api_server) {
        return Ok(());
    }
    if *route == Route::ApiServer {
        // No right that can be given away covers this.
        return Err(Status::new(Reason::Forbidden, "only the API server says where it is"));
    }
    let verb = if method == Method::GET { "get" } else { "create" };
    let subresource = route.subresource();
    let node = &deps.config.node_name;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {
            "user": identity.name, "groups": identity.groups,
            "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": node,
            },
        },
    });
    let gvr = GroupVersionResource::new("authorization.k8s.io", "v1", "subjectaccessreviews");
    let answer = deps.client.create(&gvr, "", &review).await;
    let allowed = answer.ok().and_then(|answer| answer.decode::<AccessReview>().ok());
    if allowed.is_some_and(|review| review.status.allowed) {
        return Ok(());
    }
    let text = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource={subresource}, name={node})",
        identity.name
    );
    Err(Status::new(Reason::Forbidden, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_server_and_masters_need_no_review() {
        let identity = |name: &str, groups: &[&str]| Identity {
            name: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        };
        assert!(is_trusted(&identity("skiff-apiserver", &[]), "skiff-apiserver"));
        assert!(is_trusted(&identity("admin", &["system:masters"]), "skiff-apiserver"));
        assert!(!is_trusted(&identity("system:node:other", &["system:nodes"]), "skiff-apiserver"));
        assert!(!is_trusted(&identity("", &[]), ""));
    }
}
