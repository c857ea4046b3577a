//! Claims and volumes: which claims may grow, and the finalizers that keep what is in use.
//! Source: `plugin/pkg/admission/storage/{persistentvolume/resize,storageobjectinuseprotection}`.

use api::Status;
use api::quantity::Quantity;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::classes::CLAIM_CLASS;
use super::lifecycle::{forbidden, is};
use super::{Link, Operation, Review, World, decoded};
use crate::tree;

/// Claims grow only if they are bound and their class allows it.
#[derive(Debug, Default, Clone, Copy)]
pub struct PersistentVolumeClaimResize;

#[async_trait]
impl Link for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "persistentvolumeclaims")]
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let (Some(claim), Some(old)) = (object, review.old) else { return Ok(()) };
        if !is(review, "", "persistentvolumeclaims", "") || size(claim) <= size(old) {
            return Ok(());
        }
        if tree::text(old, &["status", "phase"]) != "Bound" {
            return Err(forbidden(review, "Only bound persistent volume claims can be expanded"));
        }
        let (name, before) = (class_name(claim), class_name(old));
        let class = match name.filter(|name| !name.is_empty() && before == Some(*name)) {
            Some(name) => world.find("storage.k8s.io", "storageclasses", "", name).await?,
            None => None,
        };
        let class = class.map(|class| decoded(&class)).transpose()?.unwrap_or_default();
        if tree::at(&class, &["allowVolumeExpansion"]).as_bool() == Some(true) {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                   support resize";
        Err(forbidden(review, why))
    }
}

fn size(claim: &Value) -> Quantity {
    let text = tree::text(claim, &["spec", "resources", "requests", "storage"]);
    text.parse().unwrap_or(Quantity::ZERO)
}

/// The class of a claim. Source: `GetPersistentVolumeClaimClass`.
fn class_name(claim: &Value) -> Option<&str> {
    let annotated = tree::at(claim, &["metadata", "annotations", CLAIM_CLASS]).as_str();
    annotated.or_else(|| tree::at(claim, &["spec", "storageClassName"]).as_str())
}

/// What is kept while it is in use, and by which finalizer; controllers take it away.
const PROTECTED: [(&str, &str, &str); 3] = [
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
];

/// Gives new claims, volumes and volume attributes classes their finalizer.
#[derive(Debug, Default, Clone, Copy)]
pub struct StorageObjectInUseProtection;

#[async_trait]
impl Link for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "persistentvolumeclaims"), ("", "persistentvolumes")]
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value, _: &dyn World) -> Result<(), Status> {
        let known = PROTECTED.iter().find(|(group, resource, _)| is(review, group, resource, ""));
        if let Some((_, _, finalizer)) = known.filter(|_| review.operation == Operation::Create) {
            protect(object, finalizer);
        }
        Ok(())
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    let list = tree::metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut().filter(|list| !list.iter().any(|known| known == finalizer)) {
        list.push(finalizer.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finalizer_is_given_once() {
        let mut claim = json!({ "metadata": { "finalizers": ["x"] } });
        protect(&mut claim, PROTECTED[1].2);
        protect(&mut claim, PROTECTED[1].2);
        assert_eq!(claim["metadata"]["finalizers"], json!(["x", "kubernetes.io/pvc-protection"]));
        let mut bare = json!({});
        protect(&mut bare, "f");
        assert_eq!(bare["metadata"]["finalizers"], json!(["f"]));
    }
}
