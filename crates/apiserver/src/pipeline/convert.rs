//! Objects between the versions of their kind: built-in kinds are worked on in the version in which they are stored, and
//! shown in the one asked for; custom resources are worked on in the version asked for.

use std::sync::Arc;

use api::custom::Conversion;
use api::{Object, Status};
use serde_json::Value;

use super::{Asked, Pipeline};
use crate::webhook::{Webhooks, conversion};
use crate::words::Kind;

/// Whether an object is written in a version.
fn is_of(object: &Object, kind: &Kind) -> bool {
    // What is stored begins with its version.
    let head = format!("{{\"apiVersion\":\"{}\"", kind.api_version());
    object.bytes().starts_with(head.as_bytes())
}

/// Converts custom resources to a version of their kind, all at once; those that are of it stay what they are.
pub(super) async fn custom(
    webhooks: &Webhooks,
    kind: &Kind,
    mut objects: Vec<Arc<Object>>,
) -> Result<Vec<Arc<Object>>, Status> {
    let failed = |error: serde_json::Error| Status::internal(error.to_string());
    let others: Vec<usize> = (0..objects.len()).filter(|index| !is_of(&objects[*index], kind)).collect();
    if others.is_empty() {
        return Ok(objects);
    }
    let decoded = others.iter().map(|index| objects[*index].decode().map_err(failed));
    let converted = trees(webhooks, kind, decoded.collect::<Result<_, _>>()?).await?;
    for (index, tree) in others.into_iter().zip(converted) {
        let bytes = serde_json::to_vec(&tree).map_err(failed)?;
        objects[index] = Arc::new(Object::parse(bytes.into()).map_err(failed)?);
    }
    Ok(objects)
}

/// [`custom`] for trees, all of another version.
pub(crate) async fn trees(
    webhooks: &Webhooks,
    kind: &Kind,
    mut objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let Some(custom) = &kind.custom else { return Ok(objects) };
    match &custom.conversion {
        Conversion::None => {
            objects.iter_mut().for_each(|object| object["apiVersion"] = kind.api_version().into());
        }
        Conversion::Webhook(webhook) => {
            let version = kind.api_version();
            let converted = conversion::convert(webhooks, webhook, &objects, &version).await;
            objects = converted.map_err(Status::internal)?;
            objects.iter_mut().for_each(|object| drop(custom.prune(object)));
        }
    }
    objects.iter_mut().for_each(|object| custom.default(object));
    Ok(objects)
}

impl Pipeline {
    /// An object as the version asked for shows it.
    pub(crate) async fn present(
        &self,
        asked: &Asked<'_>,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        if asked.kind.custom.is_none() {
            return self.shown(asked, object);
        }
        let one = self.present_all(asked, vec![object]).await?;
        one.into_iter().next().ok_or_else(|| Status::internal("a conversion gave nothing"))
    }

    /// An object of a built-in kind in the version asked for.
    fn shown(&self, asked: &Asked<'_>, object: Arc<Object>) -> Result<Arc<Object>, Status> {
        if asked.kind.is_storage_version() {
            return Ok(object);
        }
        self.parts.catalog.convert_object(&object, &asked.stored, &asked.kind)
    }

    /// [`Pipeline::present`] for many.
    pub(crate) async fn present_all(
        &self,
        asked: &Asked<'_>,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        if asked.kind.custom.is_some() {
            // Apart, as all requests would have to hold the room that it takes.
            return Box::pin(custom(&self.webhooks, &asked.kind, objects)).await;
        }
        objects.into_iter().map(|object| self.shown(asked, object)).collect()
    }

    /// A tree as it is stored, if that is another version than the one asked for.
    pub(super) async fn to_storage(
        &self,
        asked: &Asked<'_>,
        object: &Value,
    ) -> Result<Option<Value>, Status> {
        if asked.kind.custom.is_none() || asked.kind.is_storage_version() {
            return Ok(None);
        }
        let Some(stored) = self.parts.catalog.storage_of(&asked.kind.group, &asked.kind.plural) else {
            return Ok(None);
        };
        Ok(Box::pin(trees(&self.webhooks, &stored, vec![object.clone()])).await?.into_iter().next())
    }

    /// Whether an object lies in the store as it would be written now.
    pub(super) fn is_stored_form(&self, asked: &Asked<'_>, object: &Object) -> bool {
        let Some(stored) = self.parts.catalog.storage_of(&asked.kind.group, &asked.kind.plural) else {
            return true;
        };
        asked.kind.custom.is_none() || is_of(object, &stored)
    }
}
