//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is being deleted; the namespaces that
//! everything rests on stay. Source: `plugin/namespace/lifecycle/admission.go`.

use api::status::Cause;
use api::{Reason, Status, status};
use async_trait::async_trait;
use serde_json::Value;

use super::{Link, Operation, Review, World};
use crate::tree;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct NamespaceLifecycle;

#[async_trait]
impl Link for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, review: &Review<'_>, _: &mut Value, world: &dyn World) -> Result<(), Status> {
        self.check(review, world).await
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        _: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        self.check(review, world).await
    }
}

impl NamespaceLifecycle {
    async fn check(&self, review: &Review<'_>, world: &dyn World) -> Result<(), Status> {
        let of_namespaces = review.resource.group.is_empty() && review.resource.resource == "namespaces";
        if of_namespaces && review.operation == Operation::Delete && IMMORTAL.contains(&review.name) {
            return Err(forbidden(review, "this namespace may not be deleted"));
        }
        // Whether a namespace is there is nothing that a question about rights tells.
        let asks = is(review, "authorization.k8s.io", "localsubjectaccessreviews", "");
        if review.operation != Operation::Create || review.namespace.is_empty() || of_namespaces || asks {
            return Ok(());
        }
        let Some(namespace) = world.find("", "namespaces", "", review.namespace).await? else {
            return Err(Status::not_found("", "namespaces", review.namespace));
        };
        if !namespace.meta().is_terminating() {
            return Ok(());
        }
        let message = format!(
            "unable to create new content in namespace {} because it is being terminated",
            review.namespace
        );
        let mut refused = forbidden(review, &message);
        refused.details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {} is being terminated", review.namespace),
            field: "metadata.namespace".into(),
        });
        Err(refused)
    }
}

/// `pods "x" is forbidden: why`.
pub(super) fn forbidden(review: &Review<'_>, why: &str) -> Status {
    let (group, resource) = (&review.resource.group, &review.resource.resource);
    let (what, name) = (status::qualified(group, resource), review.called());
    let message = format!("{what} \"{name}\" is forbidden: {why}");
    Status::new(Reason::Forbidden, message).about(group, resource, name)
}

/// Whether the review is of a resource, or of one of its subresources.
pub(super) fn is(review: &Review<'_>, group: &str, resource: &str, subresource: &str) -> bool {
    review.resource.group == group
        && review.resource.resource == resource
        && review.subresource == subresource
}

/// Whether the review is of the creation of a pod itself.
pub(super) fn creates_pod(review: &Review<'_>) -> bool {
    review.operation == Operation::Create && is(review, "", "pods", "")
}

/// A pod's text under `spec`.
pub(super) fn spec_text<'a>(pod: &'a Value, field: &str) -> &'a str {
    tree::text(pod, &["spec", field])
}
