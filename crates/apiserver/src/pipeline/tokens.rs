//! Service account tokens: TokenRequest, and the check of a token against the objects that it is bound to.

use api::connect::User;
use api::{Key, Object, Reason, Response, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::write::unsaved;
use super::{Asked, Pipeline, bootstrap_tokens, meta};
use crate::admission::{self, World};
use crate::authn;
use crate::authn::token::{Bound, Claims, Reference};
use crate::authz::Attributes;
use crate::field::{self, FieldError};
use crate::tree;

const LIFE_DEFAULT_SECONDS: i64 = 3600;
const LIFE_MIN_SECONDS: i64 = 600;
const LIFE_MAX_SECONDS: i64 = 1 << 32;
/// A token outlives the end of its pod's grace by so long.
const AFTER_DELETION_SECONDS: i64 = 60;

impl Pipeline {
    /// Makes a token. Nothing is stored, so that, as upstream, a dry run is answered like any other.
    pub(super) async fn request_token(
        &self,
        asked: &Asked<'_>,
        mut request: Value,
        warnings: Vec<String>,
    ) -> Result<Response, Status> {
        meta::fit_to_request(asked, &mut request)?;
        let key = Key::new(asked.namespace, asked.name);
        let account = self.read_stored(&asked.stored, &key).await?.ok_or_else(|| asked.not_found())?;
        let life =
            tree::at(&request, &["spec", "expirationSeconds"]).as_i64().unwrap_or(LIFE_DEFAULT_SECONDS);
        check_life(asked, life)?;
        let bound = self.bound_objects(asked, &request, &account).await?;
        let mut audiences: Vec<String> = tree::items(&request, &["spec", "audiences"])
            .iter()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() {
            audiences.push(self.parts.tokens.issuer().to_owned());
        }
        let now = self.parts.clock.now();
        let user = authn::service_account(asked.namespace, asked.name, "");
        let claims = Claims {
            aud: audiences.clone(),
            exp: now.as_second() + life,
            iat: now.as_second(),
            iss: self.parts.tokens.issuer().to_owned(),
            jti: base::id::uuid(),
            bound,
            nbf: now.as_second(),
            sub: user.name,
        };
        let token = self.parts.tokens.sign(&claims).map_err(|error| Status::internal(error.to_string()))?;
        let until = Timestamp::from_second(claims.exp).unwrap_or(now);
        let spec = tree::object(&mut request, "spec");
        spec.insert("audiences".into(), audiences.into());
        spec.insert("expirationSeconds".into(), life.into());
        let metadata = tree::metadata(&mut request);
        metadata.insert("name".into(), asked.name.into());
        metadata.insert("namespace".into(), asked.namespace.into());
        metadata.insert("creationTimestamp".into(), meta::rfc3339(now).into());
        let fields = tree::members(&mut request);
        fields.insert("kind".into(), "TokenRequest".into());
        fields.insert("apiVersion".into(), "authentication.k8s.io/v1".into());
        fields
            .insert("status".into(), json!({ "token": token, "expirationTimestamp": meta::rfc3339(until) }));
        Ok(Response::Object { object: unsaved(&request)?, created: true, warnings })
    }

    async fn bound_objects(
        &self,
        asked: &Asked<'_>,
        request: &Value,
        account: &Object,
    ) -> Result<Bound, Status> {
        let mut bound = Bound {
            namespace: asked.namespace.into(),
            serviceaccount: Reference { name: asked.name.into(), uid: account.meta().uid.clone() },
            ..Bound::default()
        };
        let reference = tree::at(request, &["spec", "boundObjectRef"]);
        let (kind, name) = (tree::text(reference, &["kind"]), tree::text(reference, &["name"]));
        let resource = match kind {
            "" => "",
            "Pod" => "pods",
            "Secret" => "secrets",
            "Node" => "nodes",
            other => {
                let message = format!("cannot bind token to object of type {other}");
                return Err(Status::bad_request(message));
            }
        };
        let (mut on_node, mut of_pod) = (None, None);
        if !resource.is_empty() {
            let object = self
                .find("", resource, if resource == "nodes" { "" } else { asked.namespace }, name)
                .await?
                .ok_or_else(|| Status::not_found("", resource, name))?;
            let uid = tree::text(reference, &["uid"]);
            if !uid.is_empty() && uid != object.meta().uid {
                let why =
                    format!("the UID in the bound object reference ({uid}) does not match the UID in record");
                return Err(Status::conflict("", resource, name, &why));
            }
            let found = Some(Reference { name: name.into(), uid: object.meta().uid.clone() });
            if resource == "pods" {
                check_account(&object, asked)?;
                on_node = object.node_name().map(str::to_owned);
                bound.pod = found;
                of_pod = Some(object);
            } else if resource == "nodes" {
                bound.node = found;
            } else {
                bound.secret = found;
            }
        }
        if let Some(node) = authn::node_of(asked.user)
            && on_node.as_deref() != Some(node)
        {
            let why = match on_node {
                None => "node requested token not bound to a pod",
                Some(_) => "node requested token bound to a pod scheduled on a different node",
            };
            let message = format!("serviceaccounts \"{}\" is forbidden: {why}", asked.name);
            return Err(Status::new(Reason::Forbidden, message).about("", "serviceaccounts", asked.name));
        }
        if let Some(pod) = of_pod.filter(|_| authn::node_of(asked.user).is_some()) {
            self.check_audience(asked, request, &pod).await?;
        }
        if let Some(node) = on_node {
            let uid = self.find("", "nodes", "", &node).await?.map(|node| node.meta().uid.clone());
            bound.node = Some(Reference { name: node, uid: uid.unwrap_or_default() });
        }
        Ok(bound)
    }

    /// A node asks for tokens for those alone whom the pod's volumes name, or whom a role lets it ask for.
    /// Source: `plugin/pkg/admission/noderestriction`, `validateNodeServiceAccountAudience`.
    async fn check_audience(&self, asked: &Asked<'_>, request: &Value, pod: &Object) -> Result<(), Status> {
        let refuse = |why: String| {
            let message = format!("serviceaccounts \"{}\" is forbidden: {why}", asked.name);
            Err(Status::new(Reason::Forbidden, message).about("", "serviceaccounts", asked.name))
        };
        let audience = match tree::items(request, &["spec", "audiences"]) {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return refuse("node may only request 0 or 1 audiences".to_owned()),
        };
        let pod = admission::decoded(pod)?;
        let named = admission::projects(&pod, "serviceAccountToken")
            .any(|token| tree::text(token, &["audience"]) == audience);
        let attributes = Attributes {
            user: asked.user.clone(),
            verb: "request-serviceaccounts-token-audience".into(),
            namespace: asked.namespace.into(),
            version: "v1".into(),
            resource: audience.into(),
            name: asked.name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        if named || self.allows(&attributes).await {
            return Ok(());
        }
        let user = &asked.user.name;
        refuse(format!(
            "audience \"{audience}\" not found in pod spec volume, {user} is not authorized to request tokens for this \
             audience"
        ))
    }

    /// The user of a bearer token that holds for one of `audiences` (empty: the API server's own), with the audiences
    /// that it holds for.
    pub async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(User, Vec<String>)>, Status> {
        let own = [self.parts.tokens.issuer().to_owned()];
        let audiences = if audiences.is_empty() { &own[..] } else { audiences };
        if let Some((id, secret)) = bootstrap_tokens::parts(token).filter(|_| audiences.contains(&own[0]))
            && let Some(user) = self.bootstrap_user(id, secret).await?
        {
            return Ok(Some((user, own.to_vec())));
        }
        if let Some(found) = self.account_of_token(token, audiences).await? {
            return Ok(Some(found));
        }
        // A token that names no audience is the API server's own alone.
        if audiences.contains(&own[0])
            && let Some(user) = self.account_of_secret(token).await?
        {
            return Ok(Some((user, own.to_vec())));
        }
        for authenticator in &self.parts.authenticators {
            match authenticator.authenticate(token, audiences).await {
                Ok(Some(identity)) => return Ok(Some((identity.user, identity.audiences))),
                Ok(None) => {}
                Err(error) => tracing::debug!(error, "a token is not judged"),
            }
        }
        Ok(None)
    }

    /// The service account of a token that this server signed, while what it is bound to lives.
    async fn account_of_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(User, Vec<String>)>, Status> {
        let Some(claims) = self.parts.tokens.verify(token, audiences) else { return Ok(None) };
        let bound = &claims.bound;
        let account = &bound.serviceaccount;
        if !self.lives("serviceaccounts", &bound.namespace, account).await? {
            return Ok(None);
        }
        // The node of a pod is told and not checked: the pod ends with it.
        let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
        let namespace = bound.namespace.as_str();
        let named = [
            ("pods", namespace, bound.pod.as_ref()),
            ("secrets", namespace, bound.secret.as_ref()),
            ("nodes", "", node),
        ];
        for (resource, namespace, reference) in named {
            if let Some(reference) = reference
                && !self.lives(resource, namespace, reference).await?
            {
                return Ok(None);
            }
        }
        let mut user = authn::service_account(&bound.namespace, &account.name, &account.uid);
        let mut extra = |name: &str, value: &str| {
            user.extra.push((format!("authentication.kubernetes.io/{name}"), vec![value.to_owned()]));
        };
        extra("credential-id", &format!("JTI={}", claims.jti));
        for (kind, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
            if let Some(reference) = reference {
                extra(&format!("{kind}-name"), &reference.name);
                extra(&format!("{kind}-uid"), &reference.uid);
            }
        }
        let held = claims.aud.into_iter().filter(|audience| audiences.contains(audience)).collect();
        Ok(Some((user, held)))
    }

    /// Whether an object that a token names is still the same one and not long deleted.
    async fn lives(&self, resource: &str, namespace: &str, reference: &Reference) -> Result<bool, Status> {
        let Some(object) = self.find("", resource, namespace, &reference.name).await? else {
            return Ok(false);
        };
        let now = self.parts.clock.now().as_second();
        let over = object
            .meta()
            .deletion_timestamp
            .is_some_and(|end| end.as_second() + AFTER_DELETION_SECONDS < now);
        Ok(object.meta().uid == reference.uid && !over)
    }
}

fn check_life(asked: &Asked<'_>, life: i64) -> Result<(), Status> {
    let detail = if life < LIFE_MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if life > LIFE_MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let errors = [FieldError::invalid("spec.expirationSeconds", &json!(life), detail)];
    field::check("authentication.k8s.io", "TokenRequest", asked.name, &errors)
}

/// A token bound to a pod is of the pod's own account.
fn check_account(pod: &Object, asked: &Asked<'_>) -> Result<(), Status> {
    let tree: Value = pod.decode().map_err(|error| Status::internal(error.to_string()))?;
    let used = tree::text(&tree, &["spec", "serviceAccountName"]);
    if used == asked.name {
        return Ok(());
    }
    let message = format!(
        "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
        asked.name
    );
    Err(Status::bad_request(message))
}
