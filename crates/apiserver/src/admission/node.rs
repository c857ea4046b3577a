//! NodeRestriction: a node changes only its own Node and the pods that are bound to it.
//! Source: `plugin/pkg/admission/noderestriction`.

use api::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::lifecycle::forbidden;
use super::{Link, Operation, Review, World};
use crate::authn::names;
use crate::tree;

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct NodeRestriction;

#[async_trait]
impl Link for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        _: &dyn World,
    ) -> Result<(), Status> {
        let in_group = review.user.groups.iter().any(|group| group == names::NODES);
        let Some(node) = review.user.name.strip_prefix(names::NODE_PREFIX).filter(|_| in_group) else {
            return Ok(());
        };
        let subject = review.old.or(object);
        let bound = subject.map(|pod| tree::text(pod, &["spec", "nodeName"])).unwrap_or_default();
        match (review.resource.resource.as_str(), review.operation) {
            ("pods", Operation::Create) if review.subresource.is_empty() => {
                let mirror = "kubernetes.io/config.mirror";
                let is_mirror =
                    subject.is_some_and(|pod| !tree::at(pod, &["metadata", "annotations", mirror]).is_null());
                if !is_mirror {
                    return Err(forbidden(review, "a node can create only mirror pods"));
                }
            }
            ("pods", Operation::Update | Operation::Delete) if bound != node => {
                let why = format!("node \"{node}\" can only change pods with spec.nodeName set to itself");
                return Err(forbidden(review, &why));
            }
            ("nodes", Operation::Create) => {
                let name = subject.map(|node| tree::text(node, &["metadata", "name"])).unwrap_or_default();
                if name != node {
                    let why = format!("node \"{node}\" is not allowed to create node \"{name}\"");
                    return Err(forbidden(review, &why));
                }
            }
            ("leases", Operation::Create) => {
                let name = subject.map(|lease| tree::text(lease, &["metadata", "name"])).unwrap_or_default();
                if name != node {
                    let why = format!("node \"{node}\" is not allowed to create lease \"{name}\"");
                    return Err(forbidden(review, &why));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
