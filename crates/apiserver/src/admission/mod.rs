//! Admission: ordered links that may change or refuse a write. One link, one reason.

mod certificates;
mod classes;
pub mod conditions;
mod config;
mod lifecycle;
mod limits;
mod metrics;
mod node;
mod nodes;
mod notes;
mod pod_security;
mod policy;
mod priority;
mod quota;
mod rounds;
pub mod rules;
mod runtime_class;
mod service_accounts;
mod services;
mod storage;
mod tolerations;
mod webhook;

pub use certificates::{
    CertificateApproval, CertificateSigning, CertificateSubjectRestriction, ClusterTrustBundleAttest,
};
pub use classes::{DefaultIngressClass, DefaultStorageClass};
pub(crate) use config::configured;
pub use lifecycle::NamespaceLifecycle;
pub use limits::LimitRanger;
pub use metrics::Metrics;
use metrics::{Step, StopWatch};
pub use node::NodeRestriction;
pub(crate) use node::projects;
pub use nodes::{PodTopologyLabels, TaintNodesByCondition};
pub use notes::Notes;
pub use pod_security::PodSecurity;
pub use policy::{MutatingPolicies, ValidatingPolicies};
pub use priority::Priority;
pub use quota::ResourceQuota;
pub use rounds::Rounds;
pub use runtime_class::RuntimeClass;
pub use service_accounts::ServiceAccounts;
pub use services::DenyServiceExternalIps;
pub use storage::{PersistentVolumeClaimResize, StorageObjectInUseProtection};
pub use tolerations::DefaultTolerationSeconds;
pub use webhook::{MutatingWebhooks, ValidatingWebhooks};

use std::sync::Arc;
use std::time::Duration;

use api::connect::User;
use api::{DeleteOptions, GroupVersionResource, Object, Propagation, Status, WriteOptions};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::authz::{Attributes, Decision};
use crate::cache::Changes;
pub use crate::webhook::{Unanswered, Users};
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
    /// An object of a stored resource, from the store itself.
    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        self.find(group, resource, namespace, name).await
    }
    /// Writes an object's status, if nobody has written the object since `old`; whether it is written.
    async fn write_status(
        &self,
        _: &str,
        resource: &str,
        _old: &Object,
        _new: Value,
    ) -> Result<bool, Status> {
        Err(Status::internal(format!("{resource} cannot be written from here")))
    }
    /// Whether somebody may do something.
    async fn allows(&self, attributes: &Attributes) -> bool {
        matches!(self.decide(attributes).await, Decision::Allow { .. })
    }
    /// The present moment.
    fn moment(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }
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
    /// What the webhook that a `clientConfig` names answers to a review within a time. It is asked as one of these users.
    async fn ask(
        &self,
        _client: (&Value, Option<&Users>),
        _review: &Value,
        _within: Duration,
    ) -> Result<Value, Unanswered> {
        Err(Unanswered::new(500, "nobody is asked here"))
    }
    /// Where it is counted what webhooks and policies say, if anywhere.
    fn figures(&self) -> Option<&Metrics> {
        None
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

/// The options of the request. An update or a patch may end as a creation: what counts is the operation.
#[derive(Debug, Clone, Copy)]
pub enum Options<'a> {
    /// Of a create, an update or a patch.
    Write(&'a WriteOptions),
    /// Of a deletion.
    Delete(&'a DeleteOptions),
    /// Connections have none.
    Connect,
}

impl Options<'_> {
    /// Whether nothing will be stored.
    pub fn dry_run(&self) -> bool {
        match self {
            Self::Write(options) => options.dry_run,
            Self::Delete(options) => options.dry_run,
            Self::Connect => false,
        }
    }

    /// `CreateOptions` and its siblings of `meta.k8s.io/v1`, as AdmissionReview carries them; null for connections. There
    /// is no operation of patches: they are shown as the creation or the update that they are.
    /// Source: `handlers/patch.go`, `patchToCreateOptions`, `patchToUpdateOptions`.
    pub fn to_json(&self, operation: Operation) -> Value {
        match self {
            Self::Write(options) if operation == Operation::Create => write_options("CreateOptions", options),
            Self::Write(options) => write_options("UpdateOptions", options),
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
    /// The name; empty where it is to be generated, which happens between mutation and validation.
    pub name: &'a str,
    /// With what a generated name will begin; empty where nothing is generated.
    pub prefix: &'a str,
    /// The object before.
    pub old: Option<&'a Value>,
    /// What is to be told besides yes and no.
    pub notes: &'a Notes,
    /// How often the chain has changed the object, and who wants to see it again.
    pub rounds: Rounds,
}

impl Review<'_> {
    /// What messages call the object. Source: `admission/errors.go`, `extractResourceName`.
    pub fn called(&self) -> &str {
        [self.name, self.prefix].into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown")
    }

    /// Whether it is about one of some resources, or of all where none is named.
    fn is_about(&self, resources: &[(&str, &str)]) -> bool {
        let same = |(group, resource): &(&str, &str)| {
            *resource == self.resource.resource && *group == self.resource.group
        };
        resources.is_empty() || resources.iter().any(same)
    }

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
    /// The resources that it is about, as group and plural, where they are few: it is not asked about others.
    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
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
    let mut watch = StopWatch::start(world.figures(), Step::Admit, review.operation);
    loop {
        for link in chain {
            if !review.is_about(link.about()) {
                watch.skip(link.name());
                continue;
            }
            let said = link.mutate(review, object, world).await;
            watch.lap(link.name(), said.is_err());
            said?;
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
    let mut watch = StopWatch::start(world.figures(), Step::Validate, review.operation);
    for link in chain {
        if !review.is_about(link.about()) {
            watch.skip(link.name());
            continue;
        }
        let said = link.validate(review, object, world).await;
        watch.lap(link.name(), said.is_err());
        said?;
    }
    Ok(())
}

/// The chain that every cluster has, in upstream's order.
pub fn standard() -> Chain {
    vec![
        Arc::new(NamespaceLifecycle),
        Arc::new(LimitRanger),
        Arc::new(ServiceAccounts),
        Arc::new(NodeRestriction),
        Arc::new(TaintNodesByCondition),
        Arc::new(PodSecurity::default()),
        Arc::new(Priority),
        Arc::new(DefaultTolerationSeconds),
        Arc::new(DefaultStorageClass),
        Arc::new(StorageObjectInUseProtection),
        Arc::new(PersistentVolumeClaimResize),
        Arc::new(RuntimeClass),
        Arc::new(CertificateApproval),
        Arc::new(CertificateSigning),
        Arc::new(ClusterTrustBundleAttest),
        Arc::new(CertificateSubjectRestriction),
        Arc::new(DefaultIngressClass),
        Arc::new(PodTopologyLabels),
        Arc::new(MutatingPolicies::default()),
        Arc::new(MutatingWebhooks::default()),
        Arc::new(ValidatingPolicies::default()),
        Arc::new(ValidatingWebhooks::default()),
        Arc::new(ResourceQuota::default()),
    ]
}

/// What links read off the caches: who has been told that such an object is written finds it in effect.
pub(crate) const CONSULTED: [(&str, &str); 8] = [
    ("", "limitranges"),
    ("", "namespaces"),
    ("", "resourcequotas"),
    ("networking.k8s.io", "ingressclasses"),
    ("node.k8s.io", "runtimeclasses"),
    ("resource.k8s.io", "deviceclasses"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("storage.k8s.io", "storageclasses"),
];

/// An object as a tree.
pub(crate) fn decoded(object: &Object) -> Result<Value, Status> {
    object.decode().map_err(|error| Status::internal(error.to_string()))
}

/// Several reasons as one, each said once; `None` where there is none. Source: `util/errors`, `NewAggregate`.
pub(crate) fn aggregate(reasons: Vec<String>) -> Option<String> {
    let mut said: Vec<String> = Vec::new();
    for reason in reasons {
        if !said.contains(&reason) {
            said.push(reason);
        }
    }
    match said.len() {
        0 | 1 => said.pop(),
        _ => Some(format!("[{}]", said.join(", "))),
    }
}
