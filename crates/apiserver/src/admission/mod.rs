//! Admission: ordered links that may change or refuse a write. One link, one reason.

mod lifecycle;
mod node;
mod pods;
mod requestor;

pub use lifecycle::NamespaceLifecycle;
pub use node::NodeRestriction;
pub use pods::{DefaultTolerationSeconds, Priority, ServiceAccounts};
pub use requestor::Requestor;

use std::sync::Arc;

use api::connect::User;
use api::{GroupVersionResource, Object, Status};
use async_trait::async_trait;
use serde_json::Value;

use crate::cache::Changes;

/// What a link may look at besides the object.
#[async_trait]
pub trait World: Send + Sync {
    /// An object of a stored resource: from the cache, or from the store where the cache does not know it.
    async fn find(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status>;
    /// All objects of a stored resource in a namespace (empty: all), from the cache.
    fn all(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Object>>;
    /// What happened to a stored resource after a revision (0: everything), as the cache knows it.
    fn changes(&self, group: &str, resource: &str, _revision: i64) -> Changes {
        Changes::All(self.all(group, resource, ""), 0)
    }
}

/// What is done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "upstream's names: admission/v1 Operation")]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// A write as admission sees it; resource and objects are of the storage version.
pub struct Review<'a> {
    /// Who writes.
    pub user: &'a User,
    /// What.
    pub operation: Operation,
    /// The resource.
    pub resource: &'a GroupVersionResource,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The name; empty where it is to be generated.
    pub name: &'a str,
    /// The object before.
    pub old: Option<&'a Value>,
    /// Whether nothing will be stored.
    pub dry_run: bool,
}

/// One link of the chain.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &'static str;
    /// May change the object.
    async fn mutate(&self, _: &Review<'_>, _object: &mut Value, _world: &dyn World) -> Result<(), Status> {
        Ok(())
    }
    /// May refuse the write; `object` is absent for deletions.
    async fn validate(
        &self,
        _: &Review<'_>,
        _object: Option<&Value>,
        _world: &dyn World,
    ) -> Result<(), Status> {
        Ok(())
    }
}

/// The chain, in order.
pub type Chain = Vec<Arc<dyn Link>>;

/// The chain that every cluster has, in upstream's order.
pub fn standard() -> Chain {
    vec![
        Arc::new(NamespaceLifecycle),
        Arc::new(ServiceAccounts),
        Arc::new(NodeRestriction),
        Arc::new(Priority),
        Arc::new(DefaultTolerationSeconds),
        Arc::new(Requestor),
    ]
}
