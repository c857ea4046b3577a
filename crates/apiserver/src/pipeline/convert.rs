//! Objects between the versions of their kind: built-in kinds are worked on in the version in which they are stored, and
//! shown in the one asked for; custom resources are worked on in the version asked for.

use std::sync::Arc;

use api::custom::Conversion;
use api::{Object, Status};
use serde_json::Value;

use super::{Asked, Pipeline};
use crate::words::Kind;

/// Whether an object is written in a version.
fn is_of(object: &Object, kind: &Kind) -> bool {
    // What is stored begins with its version.
    let head = format!("{{\"apiVersion\":\"{}\"", kind.api_version());
    object.bytes().starts_with(head.as_bytes())
}

/// Converts custom resources to a version of their kind; those that are of it stay what they are.
pub(super) async fn custom(kind: &Kind, objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
    if objects.iter().all(|object| is_of(object, kind)) {
        return Ok(objects);
    }
    let failed = |error: serde_json::Error| Status::internal(error.to_string());
    let mut converted = Vec::with_capacity(objects.len());
    for object in objects {
        if is_of(&object, kind) {
            converted.push(object);
            continue;
        }
        let tree = trees(kind, vec![object.decode().map_err(failed)?]).await?;
        for tree in tree {
            let bytes = serde_json::to_vec(&tree).map_err(failed)?;
            converted.push(Arc::new(Object::parse(bytes.into()).map_err(failed)?));
        }
    }
    Ok(converted)
}

/// [`custom`] for trees.
async fn trees(kind: &Kind, mut objects: Vec<Value>) -> Result<Vec<Value>, Status> {
    let Some(custom) = &kind.custom else { return Ok(objects) };
    match &custom.conversion {
        Conversion::None => {}
        Conversion::Webhook(_) => {
            return Err(Status::internal(format!(
                "conversion webhook for {}, Kind={} failed: it is not called yet",
                kind.api_version(),
                kind.kind
            )));
        }
    }
    for object in &mut objects {
        object["apiVersion"] = kind.api_version().into();
        custom.default(object);
    }
    Ok(objects)
}

impl Pipeline {
    /// An object as the version asked for shows it.
    pub(crate) async fn present(
        &self,
        asked: &Asked<'_>,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        let one = self.present_all(asked, vec![object]).await?;
        one.into_iter().next().ok_or_else(|| Status::internal("a conversion gave nothing"))
    }

    /// [`Pipeline::present`] for many.
    pub(crate) async fn present_all(
        &self,
        asked: &Asked<'_>,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        if asked.kind.custom.is_some() {
            return custom(&asked.kind, objects).await;
        }
        if asked.kind.is_storage_version() {
            return Ok(objects);
        }
        let catalog = &self.parts.catalog;
        objects.iter().map(|object| catalog.convert_object(object, &asked.stored, &asked.kind)).collect()
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
        Ok(trees(&stored, vec![object.clone()]).await?.into_iter().next())
    }

    /// Whether an object lies in the store as it would be written now.
    pub(super) fn is_stored_form(&self, asked: &Asked<'_>, object: &Object) -> bool {
        let Some(stored) = self.parts.catalog.storage_of(&asked.kind.group, &asked.kind.plural) else {
            return true;
        };
        asked.kind.custom.is_none() || is_of(object, &stored)
    }
}
