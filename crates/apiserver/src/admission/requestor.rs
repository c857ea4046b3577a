//! A certificate signing request says who made it: the API server writes that, whatever the maker wrote.
//! Source: `pkg/registry/certificates/certificates/strategy.go`.

use api::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Link, Operation, Review, World};
use crate::tree;

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct Requestor;

#[async_trait]
impl Link for Requestor {
    fn name(&self) -> &'static str {
        "Requestor"
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value, _: &dyn World) -> Result<(), Status> {
        let (group, resource) = (review.resource.group.as_str(), review.resource.resource.as_str());
        if (group, resource) != ("certificates.k8s.io", "certificatesigningrequests")
            || review.operation != Operation::Create
        {
            return Ok(());
        }
        let spec = tree::object(object, "spec");
        for field in ["username", "uid", "groups", "extra"] {
            spec.remove(field);
        }
        let user = review.user;
        spec.insert("username".into(), user.name.clone().into());
        spec.insert("groups".into(), user.groups.clone().into());
        if !user.uid.is_empty() {
            spec.insert("uid".into(), user.uid.clone().into());
        }
        if !user.extra.is_empty() {
            let extra = user.extra.iter().map(|(name, values)| (name.clone(), json!(values)));
            spec.insert("extra".into(), Value::Object(extra.collect()));
        }
        Ok(())
    }
}
