//! Subresources that carry something else than the object: binding here, the others in files of their own.

use std::sync::Arc;

use api::connect::User;
use api::decode::Mode;
use api::{Call, Request, Response, Status, WriteOptions};
use serde_json::{Value, json};

use super::write::{Change, Ownership, unsaved};
use super::{Asked, Pipeline};
use crate::admission::{Notes, Options};
use crate::tree;
use crate::words::{self, Kind, Writer};

impl Pipeline {
    /// Subresources that carry something else than the object; the row has them and serves the verb.
    pub(super) async fn subresource(&self, asked: &Asked<'_>, call: Call) -> Result<Response, Status> {
        let resource = (asked.stored.group.as_ref(), asked.stored.plural.as_ref());
        match (resource, asked.subresource, call) {
            (_, "scale", call) => self.scale(asked, call).await,
            (("", "pods"), "binding", Call::Create { body, options }) => {
                let (binding, warnings) = decode(asked, &body, &options)?;
                let binding = self.admit_part(asked, binding, &options).await?;
                self.bind(asked, &binding, warnings, &options).await
            }
            (("", "pods"), "eviction", Call::Create { body, options }) => {
                let (eviction, warnings) = decode(asked, &of_today(&body), &options)?;
                let eviction = self.admit_part(asked, eviction, &options).await?;
                self.evict(asked, &eviction, warnings, &options).await
            }
            (("", "serviceaccounts"), "token", Call::Create { body, options }) => {
                let (request, warnings) = decode(asked, &body, &options)?;
                let request = self.admit_part(asked, request, &options).await?;
                self.request_token(asked, request, warnings).await
            }
            (_, name, _) => Err(Status::new(
                api::Reason::MethodNotAllowed,
                format!("{}/{name} is a connection, which this way does not carry", asked.kind.plural),
            )),
        }
    }

    pub(super) async fn system_change(
        &self,
        asked: &Asked<'_>,
        change: &Change<'_>,
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        let owned = self.writer(options, asked).map(|writer: Writer| (writer, Ownership::FromChange));
        self.change(asked, change, Options::Write(options), owned).await
    }

    /// A Binding that is posted to its own collection: it names the pod itself.
    /// Source: `pkg/registry/core/pod/storage`, `LegacyBindingREST`.
    pub(super) async fn bind_named(
        &self,
        user: &User,
        kind: &Kind,
        request: &Request,
        notes: &Arc<Notes>,
    ) -> Result<Response, Status> {
        let Call::Create { body, options } = &request.call else {
            return Err(Status::internal("a binding is created and nothing else"));
        };
        let (binding, warnings) = words::decode(kind, body, options.field_validation)?;
        let name = tree::text(&binding, &["metadata", "name"]).to_owned();
        if name.is_empty() {
            return Err(Status::bad_request("name is required"));
        }
        let pods = self
            .parts
            .catalog
            .storage_of("", "pods")
            .ok_or_else(|| Status::internal("the catalog has no pods"))?;
        let asked = Asked {
            user,
            verb: request.call.verb(),
            resource: pods.resource(),
            strategy: self.parts.strategies.of(&pods.group, &pods.plural).clone(),
            kind: pods.clone(),
            stored: pods,
            namespace: &request.namespace,
            name: &name,
            subresource: "binding",
            admitted: false,
            notes: notes.clone(),
        };
        asked.check_scope(&request.call)?;
        let binding = self.admit_part(&asked, binding, options).await?;
        self.bind(&asked, &binding, warnings, options).await
    }

    async fn bind(
        &self,
        asked: &Asked<'_>,
        binding: &Value,
        warnings: Vec<String>,
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        super::meta::fit_to_request(asked, &mut binding.clone())?;
        let node = tree::text(binding, &["target", "name"]).to_owned();
        if node.is_empty() {
            let errors = [crate::field::FieldError::required("target.name", "")];
            crate::field::check("", "Binding", asked.name, &errors)?;
        }
        let uid = tree::text(binding, &["metadata", "uid"]).to_owned();
        let version = tree::text(binding, &["metadata", "resourceVersion"]).to_owned();
        let given =
            ["annotations", "labels"].map(|part| (part, tree::at(binding, &["metadata", part]).clone()));
        let now = super::meta::rfc3339(self.parts.clock.now());
        let change = |live: &Value| {
            if !uid.is_empty() && uid != tree::text(live, &["metadata", "uid"]) {
                return Err(asked.conflict("the pod is another one than the binding names (uid)"));
            }
            if !version.is_empty() && version != tree::text(live, &["metadata", "resourceVersion"]) {
                return Err(asked.conflict("the pod is of another version than the binding names"));
            }
            if let Some(why) = unbindable(live, asked.name) {
                return Err(Status::conflict("", "pods/binding", asked.name, &why));
            }
            let mut new = live.clone();
            tree::object(&mut new, "spec").insert("nodeName".into(), node.clone().into());
            for (part, values) in &given {
                for (name, value) in values.as_object().into_iter().flatten() {
                    let metadata = tree::member(&mut new, "metadata");
                    let text = value.as_str().unwrap_or_default();
                    tree::object(metadata, part).insert(name.clone(), text.into());
                }
            }
            // Room that is made elsewhere is not waited for any more.
            tree::object(&mut new, "status").remove("nominatedNodeName");
            set_scheduled(&mut new, &now);
            Ok((new, Vec::new()))
        };
        let admitted = asked.part("binding", asked.user);
        self.system_change(&admitted, &change, options).await?;
        done(warnings)
    }
}

/// The body of a request to a subresource, as the kind that it takes.
fn decode(asked: &Asked<'_>, body: &[u8], options: &WriteOptions) -> Result<(Value, Vec<String>), Status> {
    let validation = options.field_validation;
    words::decode_subresource(&asked.kind, asked.subresource, body, validation, Mode::Object)
}

/// The Eviction of policy/v1beta1, which old clients send, is the one of policy/v1.
fn of_today(body: &bytes::Bytes) -> bytes::Bytes {
    let Ok(mut eviction) = serde_json::from_slice::<Value>(body) else { return body.clone() };
    if eviction.get("apiVersion").is_none_or(|version| version != "policy/v1beta1") {
        return body.clone();
    }
    tree::members(&mut eviction).insert("apiVersion".into(), "policy/v1".into());
    eviction.to_string().into()
}

/// The answer of a command that has nothing to show.
pub(super) fn done(warnings: Vec<String>) -> Result<Response, Status> {
    let status =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(Response::Object { object: unsaved(&status)?, created: true, warnings })
}

/// Why a pod cannot be bound. Source: `pkg/registry/core/pod/storage`, `setPodNodeAndMetadata`.
fn unbindable(pod: &Value, name: &str) -> Option<String> {
    let node = tree::text(pod, &["spec", "nodeName"]);
    if super::meta::terminating(pod) {
        Some(format!("pod {name} is being deleted, cannot be assigned to a host"))
    } else if !node.is_empty() {
        Some(format!("pod {name} is already assigned to node {node:?}"))
    } else if !tree::items(pod, &["spec", "schedulingGates"]).is_empty() {
        Some(format!("pod {name} has non-empty .spec.schedulingGates"))
    } else {
        None
    }
}

/// The condition that tells that a pod has its node.
fn set_scheduled(pod: &mut Value, now: &str) {
    let status = tree::object(pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|known| tree::text(known, &["type"]) != "PodScheduled");
        list.push(condition);
    }
}
