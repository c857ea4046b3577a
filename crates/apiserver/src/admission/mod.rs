//! Admission: ordered links that may change or refuse a write. One link, one reason.

pub mod conditions;
mod lifecycle;
mod node;
mod notes;
mod pods;
mod policy;
mod requestor;
mod rounds;
pub mod rules;
mod webhook;

pub use lifecycle::NamespaceLifecycle;
pub use node::NodeRestriction;
pub use notes::Notes;
pub use pods::{DefaultTolerationSeconds, Priority, ServiceAccounts};
pub use policy::{MutatingPolicies, ValidatingPolicies};
pub use requestor::Requestor;
pub use rounds::Rounds;
pub use webhook::{MutatingWebhooks, ValidatingWebhooks};

use std::sync::Arc;
use std::time::Duration;

use api::connect::User;
use api::{DeleteOptions, GroupVersionResource, Object, Propagation, Status, WriteOptions};
use async_trait::async_trait;
use serde_json::{Map, Value, json};

use crate::authz::{Attributes, Decision};
use crate::cache::Changes;
use crate::words::{Catalog, Kind};

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
    /// The kinds.
    fn catalog(&self) -> Arc<Catalog> {
        Catalog::builtin()
    }
    /// Who may do what.
    async fn decide(&self, _: &Attributes) -> Decision {
        Decision::NoOpinion { reason: String::new() }
    }
    /// An object as another version of its kind shows it.
    async fn convert(&self, object: Value, from: &Kind, to: &Kind) -> Result<Value, Status> {
        Ok(self.catalog().convert(object, from, to))
    }
    /// What the webhook that a `clientConfig` names answers to a review within a time; or upstream's sentence on why it
    /// does not.
    async fn ask(&self, _client: &Value, _review: &Value, _within: Duration) -> Result<Value, String> {
        Err("nobody is asked here".to_owned())
    }
}

/// What is done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "upstream's names: admission/v1 Operation")]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As AdmissionReview and rules spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options of the request, by its verb: an update or a patch may end as a creation.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "each variant is its verb")]
pub enum Options<'a> {
    Create(&'a WriteOptions),
    Update(&'a WriteOptions),
    Patch(&'a WriteOptions),
    Delete(&'a DeleteOptions),
    Connect,
}

impl Options<'_> {
    /// Whether nothing will be stored.
    pub fn dry_run(&self) -> bool {
        match self {
            Self::Create(options) | Self::Update(options) | Self::Patch(options) => options.dry_run,
            Self::Delete(options) => options.dry_run,
            Self::Connect => false,
        }
    }

    /// `CreateOptions` and its siblings of `meta.k8s.io/v1`, as AdmissionReview carries them; null for connections.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Create(options) => write_options("CreateOptions", options),
            Self::Update(options) => write_options("UpdateOptions", options),
            Self::Patch(options) => write_options("PatchOptions", options),
            Self::Delete(options) => delete_options(options),
            Self::Connect => Value::Null,
        }
    }
}

fn options_of(kind: &str, dry_run: bool) -> Map<String, Value> {
    let mut options = Map::new();
    options.insert("kind".into(), kind.into());
    options.insert("apiVersion".into(), "meta.k8s.io/v1".into());
    if dry_run {
        options.insert("dryRun".into(), json!(["All"]));
    }
    options
}

fn write_options(kind: &str, given: &WriteOptions) -> Value {
    let mut options = options_of(kind, given.dry_run);
    if given.force {
        options.insert("force".into(), true.into());
    }
    if !given.field_manager.is_empty() {
        options.insert("fieldManager".into(), given.field_manager.clone().into());
    }
    options.insert("fieldValidation".into(), given.field_validation.as_str().into());
    Value::Object(options)
}

fn delete_options(given: &DeleteOptions) -> Value {
    let mut options = options_of("DeleteOptions", given.dry_run);
    if let Some(seconds) = given.grace_period_seconds {
        options.insert("gracePeriodSeconds".into(), seconds.into());
    }
    if let Some(policy) = given.propagation {
        let policy = match policy {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        };
        options.insert("propagationPolicy".into(), policy.into());
    }
    let mut preconditions = Map::new();
    let named = [("uid", &given.precondition_uid), ("resourceVersion", &given.precondition_resource_version)];
    for (name, wanted) in named {
        wanted.iter().for_each(|wanted| drop(preconditions.insert(name.into(), wanted.clone().into())));
    }
    if !preconditions.is_empty() {
        options.insert("preconditions".into(), preconditions.into());
    }
    Value::Object(options)
}

/// A write or connection as admission sees it; resource and objects are of the storage version (custom resources: of the
/// version asked for). The object of a connection is its options (`PodExecOptions` and its siblings).
pub struct Review<'a> {
    /// Who writes.
    pub user: &'a User,
    /// What.
    pub operation: Operation,
    /// With which options.
    pub options: Options<'a>,
    /// The kind in the version asked for; for connections the kind that is connected to.
    pub asked: &'a Kind,
    /// The same kind in the version of `resource`, of `old` and of the object.
    pub kind: &'a Kind,
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
    /// What is to be told besides yes and no.
    pub notes: &'a Notes,
    /// How often the chain has changed the object, and who wants to see it again.
    pub rounds: Rounds,
}

impl Review<'_> {
    /// Whether the object is of the subresource's own kind (Scale, Binding, options of connections).
    pub fn subresource_is_own_kind(&self) -> bool {
        self.kind.subresource(self.subresource).is_some_and(|part| part.kind != self.kind.kind)
    }
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

/// Lets the chain change an object: once, and once more if a configured plugin (webhooks, policies) changed it. Whether
/// one did.
pub(crate) async fn mutate(
    chain: &Chain,
    review: &Review<'_>,
    object: &mut Value,
    world: &dyn World,
) -> Result<bool, Status> {
    loop {
        for link in chain {
            link.mutate(review, object, world).await?;
        }
        if !review.rounds.begin_second() {
            return Ok(review.rounds.is_second());
        }
    }
}

/// Lets the chain refuse.
pub(crate) async fn validate(
    chain: &Chain,
    review: &Review<'_>,
    object: Option<&Value>,
    world: &dyn World,
) -> Result<(), Status> {
    for link in chain {
        link.validate(review, object, world).await?;
    }
    Ok(())
}

/// The chain that every cluster has, in upstream's order.
pub fn standard() -> Chain {
    vec![
        Arc::new(NamespaceLifecycle),
        Arc::new(ServiceAccounts),
        Arc::new(NodeRestriction),
        Arc::new(Priority),
        Arc::new(DefaultTolerationSeconds),
        Arc::new(Requestor),
        Arc::new(MutatingPolicies::default()),
        Arc::new(MutatingWebhooks::default()),
        Arc::new(ValidatingPolicies::default()),
        Arc::new(ValidatingWebhooks::default()),
    ]
}
