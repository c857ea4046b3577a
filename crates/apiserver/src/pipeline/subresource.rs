//! Subresources other than `status` and `scale`: binding, eviction, finalize, token, approval.

use api::{Call, DeleteOptions, PatchType, Response, Status, WriteOptions};
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
            (("certificates.k8s.io", "certificatesigningrequests"), "approval", call) => {
                self.approve(asked, call).await
            }
            (_, name, _) => Err(Status::new(
                api::Reason::MethodNotAllowed,
                format!("the server does not allow this method on {}/{name}", asked.kind.plural),
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
        self.change(asked, change, options.dry_run, owned).await
    }

    /// A decision on a certificate signing request: its conditions change, and nothing else.
    async fn approve(&self, asked: &Asked<'_>, call: Call) -> Result<Response, Status> {
        let (kind, body, options) = match call {
            Call::Get { resource_version } => return self.get(asked, &resource_version).await,
            Call::Update { body, options } => (None, body, options),
            Call::Patch { kind, body, options } if kind != PatchType::Apply => (Some(kind), body, options),
            _ => {
                let message = "the server does not allow this method on approval";
                return Err(Status::new(api::Reason::MethodNotAllowed, message));
            }
        };
        let patch = kind.map(|kind| words::Patch::parse(kind, &body)).transpose()?;
        let change = |live: &Value| {
            let mut wanted = match &patch {
                Some(patch) => words::patch(&asked.kind, live, patch)?,
                None => parse(&body)?,
            };
            let mut new = live.clone();
            let conditions = tree::member(&mut wanted, "status");
            tree::copy(conditions, tree::member(&mut new, "status"), "conditions");
            let metadata = tree::at(&wanted, &["metadata"]);
            tree::copy(metadata, tree::member(&mut new, "metadata"), "resourceVersion");
            Ok((new, Vec::new()))
        };
        self.system_change(asked, &change, &options).await
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
                let text = value.as_str().unwrap_or_default();
                tree::object(metadata, "annotations").insert(name.clone(), text.into());
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
