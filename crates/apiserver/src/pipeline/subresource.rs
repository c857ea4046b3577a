//! Subresources other than `status`: scale, binding, eviction, finalize, token.

use api::connect::User;
use api::{Call, DeleteOptions, Key, Object, PatchType, Response, Status, WriteOptions};
use serde_json::{Value, json};

use super::write::{Change, Ownership, unsaved};
use super::{Asked, Pipeline};
use crate::tree;
use crate::words::{self, Writer};

impl Pipeline {
    pub(super) async fn subresource(&self, asked: &Asked<'_>, call: Call) -> Result<Response, Status> {
        let resource = (asked.stored.group.as_ref(), asked.stored.plural.as_ref());
        match (resource, asked.subresource, call) {
            (_, name, _) if asked.kind.subresource(name).is_none() => {
                Err(Status::new(api::Reason::NotFound, "the server could not find the requested resource"))
            }
            (_, "scale", call) => self.scale(asked, call).await,
            (("", "pods"), "binding", Call::Create { body, options }) => {
                self.bind(asked, &body, &options).await
            }
            (("", "pods"), "eviction", Call::Create { body, options }) => {
                self.evict(asked, &body, options.dry_run).await
            }
            (("", "namespaces"), "finalize", Call::Update { body, options }) => {
                let body = parse(&body)?;
                let finalizers = tree::at(&body, &["spec", "finalizers"]).clone();
                let change = move |live: &Value| {
                    let mut new = live.clone();
                    tree::object(&mut new, "spec").insert("finalizers".into(), finalizers.clone());
                    Ok((new, Vec::new()))
                };
                self.system_change(asked, &change, &options).await
            }
            (("", "serviceaccounts"), "token", Call::Create { body, .. }) => {
                self.request_token(asked, &body).await
            }
            (_, name, _) => Err(Status::new(
                api::Reason::MethodNotAllowed,
                format!("the server does not allow this method on {}/{name}", asked.kind.plural),
            )),
        }
    }

    async fn system_change(
        &self,
        asked: &Asked<'_>,
        change: &Change<'_>,
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        let owned = self.writer(options, asked).map(|writer: Writer| (writer, Ownership::FromChange));
        self.change(asked, change, options.dry_run, owned).await
    }

    async fn scale(&self, asked: &Asked<'_>, call: Call) -> Result<Response, Status> {
        let key = Key::new(asked.namespace, asked.name);
        let (kind, body, options) = match call {
            Call::Get { .. } => {
                let live = self.read_stored(&asked.stored, &key).await?.ok_or_else(|| asked.not_found())?;
                return scale_response(&live, &[]);
            }
            Call::Update { body, options } => (None, body, options),
            Call::Patch { kind, body, options } => (Some(kind), body, options),
            _ => {
                let message = "the server does not allow this method on scale";
                return Err(Status::new(api::Reason::MethodNotAllowed, message));
            }
        };
        let patch = match kind {
            // A Scale has no lists: the two merge patches are the same for it.
            Some(PatchType::StrategicMerge) => Some(words::Patch::parse(PatchType::Merge, &body)?),
            Some(PatchType::Apply) => {
                return Err(Status::new(
                    api::Reason::UnsupportedMediaType,
                    "apply patches of scale are not supported: use a merge patch",
                ));
            }
            Some(kind) => Some(words::Patch::parse(kind, &body)?),
            None => None,
        };
        let change = |live: &Value| {
            let present = scale_of(live);
            let wanted = match &patch {
                Some(patch) => words::patch(&asked.kind, &present, patch)?,
                None => parse(&body)?,
            };
            let replicas = tree::at(&wanted, &["spec", "replicas"]).as_i64().unwrap_or(0);
            if !(0..=i64::from(i32::MAX)).contains(&replicas) {
                let errors = [crate::field::FieldError::invalid(
                    "spec.replicas",
                    &json!(replicas),
                    "must be greater than or equal to 0",
                )];
                crate::field::check("autoscaling", "Scale", asked.name, &errors)?;
            }
            let mut new = live.clone();
            tree::object(&mut new, "spec").insert("replicas".into(), replicas.into());
            tree::copy(
                tree::at(&wanted, &["metadata"]),
                tree::member(&mut new, "metadata"),
                "resourceVersion",
            );
            Ok((new, Vec::new()))
        };
        match self.system_change(asked, &change, &options).await? {
            Response::Object { object, warnings, .. } => scale_response(&object, &warnings),
            other => Ok(other),
        }
    }

    async fn bind(&self, asked: &Asked<'_>, body: &[u8], options: &WriteOptions) -> Result<Response, Status> {
        let binding = parse(body)?;
        let node = tree::text(&binding, &["target", "name"]).to_owned();
        if node.is_empty() {
            let errors = [crate::field::FieldError::required("target.name", "")];
            crate::field::check("", "Binding", asked.name, &errors)?;
        }
        let uid = tree::text(&binding, &["metadata", "uid"]).to_owned();
        let annotations = tree::at(&binding, &["metadata", "annotations"]).clone();
        let now = super::meta::rfc3339(self.parts.clock.now());
        let change = |live: &Value| {
            if !uid.is_empty() && uid != tree::text(live, &["metadata", "uid"]) {
                return Err(asked.conflict("the pod is another one than the binding names (uid)"));
            }
            if super::meta::terminating(live) {
                let message = format!("pod {} is being deleted, cannot be assigned to a host", asked.name);
                return Err(asked.conflict(&message));
            }
            let present = tree::text(live, &["spec", "nodeName"]);
            if !present.is_empty() {
                let message = format!("pod {} is already assigned to node \"{present}\"", asked.name);
                return Err(asked.conflict(&message));
            }
            let mut new = live.clone();
            tree::object(&mut new, "spec").insert("nodeName".into(), node.clone().into());
            for (name, value) in annotations.as_object().into_iter().flatten() {
                let metadata = tree::member(&mut new, "metadata");
                tree::object(metadata, "annotations").insert(name.clone(), value.clone());
            }
            set_scheduled(&mut new, &now);
            Ok((new, Vec::new()))
        };
        self.system_change(asked, &change, options).await?;
        let status =
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
        Ok(Response::Object { object: unsaved(&status)?, created: true, warnings: Vec::new() })
    }

    async fn evict(&self, asked: &Asked<'_>, body: &[u8], dry_run: bool) -> Result<Response, Status> {
        let eviction = parse(body)?;
        let options = tree::at(&eviction, &["deleteOptions"]);
        let text = |path: &[&str]| tree::at(options, path).as_str().map(str::to_owned);
        let options = DeleteOptions {
            dry_run: dry_run || !tree::items(options, &["dryRun"]).is_empty(),
            grace_period_seconds: tree::at(options, &["gracePeriodSeconds"]).as_i64(),
            propagation: None,
            precondition_uid: text(&["preconditions", "uid"]),
            precondition_resource_version: text(&["preconditions", "resourceVersion"]),
        };
        let whole = Asked {
            user: asked.user,
            kind: asked.kind.clone(),
            stored: asked.stored.clone(),
            resource: asked.resource.clone(),
            strategy: asked.strategy.clone(),
            namespace: asked.namespace,
            name: asked.name,
            subresource: "",
        };
        self.delete(&whole, &options).await?;
        let status =
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
        Ok(Response::Object { object: unsaved(&status)?, created: true, warnings: Vec::new() })
    }
}

pub(super) fn parse(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("the body of the request is not valid JSON: {error}")))
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

/// An object's `autoscaling/v1` Scale.
fn scale_of(object: &Value) -> Value {
    let metadata = tree::at(object, &["metadata"]);
    let mut kept = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept.insert(field.to_owned(), value.clone());
        }
    }
    let mut status = json!({ "replicas": tree::at(object, &["status", "replicas"]).as_i64().unwrap_or(0) });
    let selector = words::selector_text(tree::at(object, &["spec", "selector"]));
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": { "replicas": tree::at(object, &["spec", "replicas"]).as_i64().unwrap_or(0) }, "status": status,
    })
}

fn scale_response(object: &Object, warnings: &[String]) -> Result<Response, Status> {
    let tree: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::Object { object: unsaved(&scale_of(&tree))?, created: false, warnings: warnings.to_vec() })
}

/// The node that a user is, if it is one.
pub(super) fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix(crate::authn::names::NODE_PREFIX)
}
