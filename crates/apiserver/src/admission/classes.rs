//! Default classes: claims get the default storage class, Ingresses the default ingress class.
//! Source: `plugin/pkg/admission/storage/storageclass/setdefault`, `plugin/pkg/admission/network/defaultingressclass`.

use std::cmp::Reverse;
use std::sync::Arc;

use api::names::DEFAULT_STORAGE_CLASS;
use api::{Object, ObjectMeta, Status};
use async_trait::async_trait;
use serde_json::Value;

use super::lifecycle::is;
use super::{Link, Operation, Review, World, decoded};
use crate::tree;

/// The annotation with which claims named their class before the field.
pub(super) const CLAIM_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The annotation with which Ingresses name their controller's class.
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";
const DEFAULT_INGRESS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];

/// Gives new claims the default storage class.
#[derive(Debug, Default, Clone, Copy)]
pub struct DefaultStorageClass;

#[async_trait]
impl Link for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "persistentvolumeclaims")]
    }

    async fn mutate(&self, review: &Review<'_>, claim: &mut Value, world: &dyn World) -> Result<(), Status> {
        if review.operation == Operation::Create && is(review, "", "persistentvolumeclaims", "") {
            let classes = world.all("storage.k8s.io", "storageclasses", "");
            let default = default_of(&classes, &DEFAULT_STORAGE_CLASS)?;
            name_class(claim, "storageClassName", CLAIM_CLASS, default);
        }
        Ok(())
    }
}

/// Gives new Ingresses the default ingress class.
#[derive(Debug, Default, Clone, Copy)]
pub struct DefaultIngressClass;

#[async_trait]
impl Link for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("networking.k8s.io", "ingresses")]
    }

    async fn mutate(
        &self,
        review: &Review<'_>,
        ingress: &mut Value,
        world: &dyn World,
    ) -> Result<(), Status> {
        if review.operation == Operation::Create && is(review, "networking.k8s.io", "ingresses", "") {
            let classes = world.all("networking.k8s.io", "ingressclasses", "");
            let default = default_of(&classes, &DEFAULT_INGRESS)?;
            name_class(ingress, "ingressClassName", INGRESS_CLASS, default);
        }
        Ok(())
    }
}

/// The newest of those that call themselves the default; of equally new ones the first by name.
fn default_of(classes: &[Arc<Object>], annotations: &[&str]) -> Result<Option<String>, Status> {
    let mut best: Option<&ObjectMeta> = None;
    for class in classes {
        let tree = decoded(class)?;
        let says = |key: &&str| tree::text(&tree, &["metadata", "annotations", key]) == "true";
        let rank = |meta: &ObjectMeta| (Reverse(meta.creation_timestamp), meta.name.clone());
        let better = best.is_none_or(|best| rank(class.meta()) < rank(best));
        if better && annotations.iter().any(says) {
            best = Some(class.meta());
        }
    }
    Ok(best.map(|best| best.name.clone()))
}

/// Names the default class where the object names none. Pure.
fn name_class(object: &mut Value, field: &str, annotation: &str, default: Option<String>) {
    let named = !tree::at(object, &["spec", field]).is_null()
        || !tree::at(object, &["metadata", "annotations", annotation]).is_null();
    if let Some(default) = default.filter(|_| !named) {
        tree::object(object, "spec").insert(field.into(), default.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(name: &str, created: &str, default: &str) -> Arc<Object> {
        let class = json!({ "metadata": {
            "name": name, "creationTimestamp": created, "annotations": { DEFAULT_INGRESS[0]: default },
        }});
        Arc::new(Object::parse(class.to_string().into()).unwrap())
    }

    #[test]
    fn the_newest_default_counts() {
        let classes = [
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("a", "2026-01-02T00:00:00Z", "true"),
            class("none", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(default_of(&classes, &DEFAULT_INGRESS).unwrap().as_deref(), Some("a"));
        assert_eq!(default_of(&classes[3..], &DEFAULT_INGRESS).unwrap(), None);
    }

    #[test]
    fn who_names_a_class_or_none_keeps_it() {
        let named = |mut object: Value| {
            name_class(&mut object, "storageClassName", CLAIM_CLASS, Some("fast".into()));
            object["spec"]["storageClassName"].clone()
        };
        assert_eq!(named(json!({})), "fast");
        assert_eq!(named(json!({ "spec": { "storageClassName": "" } })), "");
        assert!(named(json!({ "metadata": { "annotations": { CLAIM_CLASS: "slow" } } })).is_null());
    }
}
