//! What is special about a kind: the hooks that the pipeline calls. Every hook has the behaviour of an ordinary kind as
//! its default, so that a strategy holds only what differs.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::connect::User;
use api::{DeleteOptions, Object, Status};
use foldhash::HashMap;
use serde_json::Value;

use crate::field::{FieldError, FieldErrors};
use crate::{storage, tree};

/// Which names a kind allows. Source: `k8s.io/apimachinery/pkg/api/validation/name.go`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters.
    #[default]
    Subdomain,
    /// RFC 1123 label, at most 63 characters.
    Label,
    /// RFC 1035 label: begins with a letter.
    Label1035,
    /// Anything that fits a path segment.
    PathSegment,
}

/// Keys that are written in the same transaction as the object.
#[derive(Debug, Default, Clone)]
pub struct Companions {
    pub(crate) claims: Vec<Claim>,
    pub(crate) released: Vec<String>,
}

/// A key that must be free.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) key: String,
    pub(crate) content: Content,
    /// The failure to report where another has the key: the client named it. `None`: the strategy chose it, and chooses
    /// another.
    pub(crate) taken: Option<Status>,
}

/// What is written under a claimed key.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A value of the strategy's own.
    Raw(Value),
    /// An object of a stored resource.
    Object { group: String, resource: String, object: Value },
}

impl Companions {
    /// Takes a raw key that must be free. `taken` is what the client is told if it named the key and another has it;
    /// `None`: the strategy chose it, and is asked again.
    pub fn claim(&mut self, key: String, value: Value, taken: Option<Status>) {
        self.claims.push(Claim { key, content: Content::Raw(value), taken });
    }

    /// Gives a raw key back.
    pub fn release(&mut self, key: String) {
        self.released.push(key);
    }

    /// Creates an object of a stored resource, which must not exist; `taken` as in [`Companions::claim`].
    pub fn create(&mut self, group: &str, resource: &str, object: Value, taken: Option<Status>) {
        let name = tree::text(&object, &["metadata", "name"]);
        let suffix = storage::suffix(tree::text(&object, &["metadata", "namespace"]), name);
        let key = storage::prefix(group, resource) + &suffix;
        let content = Content::Object { group: group.into(), resource: resource.into(), object };
        self.claims.push(Claim { key, content, taken });
    }

    /// Deletes an object of a stored resource.
    pub fn delete(&mut self, group: &str, resource: &str, namespace: &str, name: &str) {
        self.release(storage::prefix(group, resource) + &storage::suffix(namespace, name));
    }
}

/// Something that may be written only in namespaces with a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelNeeded {
    /// The field that asks for it.
    pub field: String,
    /// The label that grants it: key and value.
    pub label: (&'static str, &'static str),
    /// What it is, as messages call it.
    pub what: &'static str,
    /// On what, as messages call it.
    pub on: &'static str,
}

/// What a strategy may look at while it decides.
pub trait View: Send + Sync {
    /// An object of a stored resource (`group`, `resource`), as the cache knows it.
    fn peek(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>>;
    /// All objects of a stored resource, as the cache knows them.
    fn objects(&self, group: &str, resource: &str) -> Vec<Arc<Object>>;
    /// The present moment.
    fn now(&self) -> jiff::Timestamp;
    /// What strategies need to know of the cluster.
    fn settings(&self) -> &Settings;
}

/// What strategies need to know of the cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service ranges: address and prefix length, IPv4 first.
    pub service_ranges: Vec<(IpAddr, u8)>,
    /// The range of node ports, both inclusive.
    pub node_ports: (u16, u16),
}

/// The hooks of one kind. Objects are trees in the storage version.
pub trait Strategy: Send + Sync + 'static {
    /// Which names are allowed.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// Defaults that depend on other fields; the schema's constant defaults are in place.
    fn default(&self, _object: &mut Value) {}

    /// Moments that are the present one where nobody names another. `old` is what the object was before a change; it is
    /// absent where the object is new, and where only what lacks a moment gets one.
    fn date(&self, _object: &mut Value, _old: Option<&Value>, _now: jiff::Timestamp) {}

    /// Before creation: writes down who asks, where the kind says so.
    fn signed(&self, _user: &User, _object: &mut Value) {}

    /// Before creation, and before a name is tried: fields that follow from others. It is called once, where
    /// [`Self::prepare_create`] is called for each name that is generated.
    fn complete(&self, _object: &mut Value) {}

    /// Whether a new object has the status that it comes with; that of others begins empty.
    fn created_with_status(&self) -> bool {
        false
    }

    /// Before creation: fields that clients may not set are cleared. `status` is cleared by the pipeline, where
    /// [`created_with_status`](Self::created_with_status) does not say otherwise.
    fn prepare_create(&self, _object: &mut Value) {}

    /// Before an update: fields that clients may not change are put back. `status` is put back by the pipeline.
    fn prepare_update(&self, _new: &mut Value, _old: &Value) {}

    /// Before an update of `status`: fields of the status that clients may not change are put back.
    fn prepare_status(&self, _new: &mut Value, _old: &Value) {}

    /// What is wrong with an object.
    fn validate(&self, _object: &Value, _errors: &mut FieldErrors) {}

    /// What is wrong with a new object, besides.
    fn validate_create(&self, _object: &Value, _errors: &mut FieldErrors) {}

    /// What is wrong with a change, besides.
    fn validate_update(&self, _new: &Value, _old: &Value, _errors: &mut FieldErrors) {}

    /// What is wrong with an object (`old`: what it was before a change) besides, unless the server itself writes it.
    fn validate_foreign(&self, _object: &Value, _old: Option<&Value>, _errors: &mut FieldErrors) {}

    /// What is wrong with an object (`old`: what it was before a change) besides, to those who speak of the kind in a
    /// group: an object that is seen through two groups may be asked more by one.
    fn validate_spoken(
        &self,
        _group: &str,
        _object: &Value,
        _old: Option<&Value>,
        _errors: &mut FieldErrors,
    ) {
    }

    /// Whether what is wrong with an object may take long to find out, so that others should not wait for the thread.
    fn validation_is_lengthy(&self) -> bool {
        false
    }

    /// Whether an error of an object is none to those who speak this version of the kind, in which it was allowed.
    fn forgives(&self, _version: &str, _error: &FieldError) -> bool {
        false
    }

    /// What is wrong with a change of `status`.
    fn validate_status(&self, _new: &Value, _old: &Value, _errors: &mut FieldErrors) {}

    /// What a request to `approval`, `finalize`, `ephemeralcontainers` or `resize` may change: the part that `wanted`
    /// has is put into `new`, which is the present object.
    fn take_part(&self, subresource: &str, wanted: &Value, new: &mut Value) {
        let (parent, field) = match subresource {
            "approval" => ("status", "conditions"),
            "finalize" => ("spec", "finalizers"),
            _ => return,
        };
        tree::copy(tree::at(wanted, &[parent]), tree::member(new, parent), field);
    }

    /// What is wrong with a change through such a request (or through binding and scale).
    fn validate_part(&self, _subresource: &str, _new: &Value, _old: &Value, _errors: &mut FieldErrors) {}

    /// The label that the namespace must have for a write to the object, or to one of its subresources. `old` is absent
    /// where the object is new.
    fn label_needed(&self, _subresource: &str, _new: &Value, _old: Option<&Value>) -> Option<LabelNeeded> {
        None
    }

    /// What the writer should know.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether an update of something absent creates it.
    fn create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without resourceVersion overwrites whatever is there.
    fn unconditional_update(&self) -> bool {
        true
    }

    /// After what time objects end by themselves, counted from their last write; `None`: never.
    fn time_to_live(&self) -> Option<Duration> {
        None
    }

    /// For how long, at most, a change waits for others in this namespace, so that one wait for the disk serves them all.
    /// Zero where somebody waits for the answer.
    fn patience(&self, _namespace: &str) -> Duration {
        Duration::ZERO
    }

    /// Whether `metadata.generation` counts changes of everything but metadata and status.
    fn generation(&self) -> bool {
        true
    }

    /// The grace of a deletion in seconds; `None`: the kind knows no grace.
    fn grace_seconds(&self, _object: &Value, _options: &DeleteOptions) -> Option<i64> {
        None
    }

    /// When a deletion begins but does not end yet: what changes in the object.
    fn deletion_began(&self, _object: &mut Value) {}

    /// Whether something besides finalizers and grace keeps a deleted object (a Namespace's own finalizers).
    fn keeps(&self, _object: &Value) -> bool {
        false
    }

    /// Whether deletion leaves dependents in place unless told otherwise (the legacy default of some versions).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Allocations that belong to the object, from `old` (absent: creation) to `new` (absent: deletion). `attempt` counts
    /// repetitions after another writer took what was chosen; the caches then show what it took.
    fn companions(
        &self,
        _view: &dyn View,
        _old: Option<&Value>,
        _new: Option<&mut Value>,
        _attempt: u32,
    ) -> Result<Companions, Status> {
        Ok(Companions::default())
    }
}

/// An ordinary kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Ordinary;

impl Strategy for Ordinary {}

/// A group, and the strategy of one of its resources.
type OfGroup = (String, Arc<dyn Strategy>);

/// The strategies by group and resource of the storage version.
#[derive(Clone)]
pub struct Strategies {
    /// By plural name; nearly every name is of one group alone.
    known: HashMap<String, Vec<OfGroup>>,
    ordinary: Arc<dyn Strategy>,
}

impl Default for Strategies {
    fn default() -> Self {
        Self { known: HashMap::default(), ordinary: Arc::new(Ordinary) }
    }
}

impl Strategies {
    /// Adds a kind's strategy.
    pub fn add(&mut self, group: &str, resource: &str, strategy: impl Strategy) {
        let of_name = self.known.entry(resource.to_owned()).or_default();
        of_name.retain(|(known, _)| known != group);
        of_name.push((group.to_owned(), Arc::new(strategy)));
    }

    /// Whether a kind has a strategy of its own.
    pub fn has(&self, group: &str, resource: &str) -> bool {
        self.own(group, resource).is_some()
    }

    /// A kind's strategy.
    pub fn of(&self, group: &str, resource: &str) -> &Arc<dyn Strategy> {
        self.own(group, resource).unwrap_or(&self.ordinary)
    }

    fn own(&self, group: &str, resource: &str) -> Option<&Arc<dyn Strategy>> {
        self.known.get(resource)?.iter().find(|(known, _)| known == group).map(|(_, strategy)| strategy)
    }
}
