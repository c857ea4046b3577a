//! The scale subresource of whatever has one: how many replicas an object wants, without knowing its kind.
//! Source: `k8s.io/client-go/scale`.

use std::sync::Arc;

use api::{Call, GroupVersionResource, Key, Object, ObjectMeta, Reason, Request, Response, Status};
use serde::Deserialize;
use serde_json::Value;

use crate::context::Ctx;

/// So often a scale is tried to be set where somebody else writes the object meanwhile. Source: `retry.DefaultRetry`.
const ATTEMPTS_MAX: u32 = 5;

/// A projection of `autoscaling/v1.Scale`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Scale {
    /// Metadata of the object that is scaled.
    pub(crate) metadata: ObjectMeta,
    /// What is wanted.
    pub(crate) spec: Replicas,
    /// What there is.
    pub(crate) status: ScaleStatus,
}

/// A number of replicas.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Replicas {
    /// So many.
    pub(crate) replicas: i32,
}

/// `autoscaling/v1.ScaleStatus`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ScaleStatus {
    /// So many.
    pub(crate) replicas: i32,
    /// The pods, as text.
    pub(crate) selector: String,
}

/// The group of an `apiVersion`.
pub(crate) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The resource whose objects are of a kind, if it is served.
pub(crate) fn resource_of(ctx: &Ctx, group: &str, kind: &str) -> Option<GroupVersionResource> {
    let served = ctx.catalog.served();
    let found = served.iter().find(|row| row.resource.group == group && row.kind == kind);
    found.map(|row| row.resource.clone())
}

/// An object's scale as it is sent back, and what is read of it.
pub(crate) async fn get(
    ctx: &Ctx,
    resource: &GroupVersionResource,
    key: &Key,
) -> Result<(Arc<Object>, Scale), Status> {
    let request = Request {
        resource: resource.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        subresource: "scale".into(),
        call: Call::Get { resource_version: String::new() },
    };
    let Response::Object { object, .. } = ctx.client.send(request).await? else {
        return Err(Status::internal("the API server answered something else than a scale"));
    };
    let scale = object.decode().map_err(unreadable)?;
    Ok((object, scale))
}

/// Sets how many replicas are wanted. Whoever writes the status of an object that is scaled does so often: a scale that is
/// of another version by then is read anew and set at once. Source: `reconcileAutoscaler`.
pub(crate) async fn set(
    ctx: &Ctx,
    resource: &GroupVersionResource,
    scale: &Arc<Object>,
    replicas: i32,
) -> Result<(), Status> {
    let mut scale = scale.clone();
    let mut attempts = 1;
    loop {
        match write(ctx, resource, &scale, replicas).await {
            Err(status) if status.reason == Reason::Conflict && attempts < ATTEMPTS_MAX => {}
            written => return written,
        }
        attempts += 1;
        (scale, _) = get(ctx, resource, &scale.key()).await?;
    }
}

async fn write(
    ctx: &Ctx,
    resource: &GroupVersionResource,
    scale: &Object,
    replicas: i32,
) -> Result<(), Status> {
    let mut body: Value = scale.decode().map_err(unreadable)?;
    body["spec"]["replicas"] = replicas.into();
    ctx.client.update(resource, &scale.key(), "scale", &body).await.map(drop)
}

fn unreadable(error: serde_json::Error) -> Status {
    Status::internal(format!("cannot read a scale: {error}"))
}

/// Whether an object is there although it has no scale: then its resource has none. Only asked after a scale was not
/// found.
pub(crate) async fn exists(ctx: &Ctx, resource: &GroupVersionResource, key: &Key) -> Result<bool, Status> {
    match ctx.client.get(resource, key).await {
        Ok(_) => Ok(true),
        Err(status) if status.reason == Reason::NotFound => Ok(false),
        Err(status) => Err(status),
    }
}
