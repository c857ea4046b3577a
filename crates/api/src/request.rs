//! Requests to the API server at the level of verb, resource, key and options: what an HTTP request is decoded into,
//! and what in-process components send directly. Never HTTP-shaped.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{Object, Status};

/// Group, version and plural name of a resource. The core group is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionResource {
    /// `apps`; empty for core.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `deployments`.
    pub resource: String,
}

impl GroupVersionResource {
    /// A resource by its parts.
    pub fn new(group: &str, version: &str, resource: &str) -> Self {
        Self { group: group.into(), version: version.into(), resource: resource.into() }
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl fmt::Display for GroupVersionResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.resource)
    }
}

/// What is asked. Names are upstream's RBAC verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "upstream's names")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb as authorization spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// The four kinds of patch, by media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    StrategicMerge,
    /// `application/apply-patch+yaml`: server-side apply.
    Apply,
}

/// What happens to fields that the schema does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped, with a warning each. The default.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

impl FieldValidation {
    /// As requests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "Ignore",
            Self::Warn => "Warn",
            Self::Strict => "Strict",
        }
    }
}

/// Options of create, update and patch. Source: `metav1.{Create,Update,Patch}Options`.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Run everything, store nothing.
    pub dry_run: bool,
    /// Who writes, for managedFields; empty: derived from the user agent.
    pub field_manager: String,
    /// Unknown fields.
    pub field_validation: FieldValidation,
    /// Server-side apply: take over fields that others own.
    pub force: bool,
}

/// Options of list and watch. Source: `metav1.ListOptions`.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Label selector, unparsed.
    pub label_selector: String,
    /// Field selector, unparsed.
    pub field_selector: String,
    /// Of custom metrics: which series of a metric, unparsed. Source: `custom_metrics.MetricListOptions`.
    pub metric_label_selector: String,
    /// At most so many; 0 sets no limit.
    pub limit: u64,
    /// Where the last page ended.
    pub continue_token: String,
    /// The version asked for; empty: the newest, read consistently. `0`: whatever is at hand.
    pub resource_version: String,
    /// `Exact`, `NotOlderThan` or empty.
    pub resource_version_match: String,
    /// Ends a watch (or bounds a list) after so many seconds.
    pub timeout_seconds: Option<u64>,
    /// Bookmarks are welcome.
    pub allow_watch_bookmarks: bool,
    /// Begin a watch with what is there, then a bookmark that says so. KEP-3157.
    pub send_initial_events: Option<bool>,
}

/// What happens to dependents of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They stay, without this owner.
    Orphan,
    /// They go afterwards.
    Background,
    /// They go first.
    Foreground,
}

/// Options of delete. Source: `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Run everything, delete nothing.
    pub dry_run: bool,
    /// Seconds; `None`: the kind's own.
    pub grace_period_seconds: Option<i64>,
    /// Dependents; `None`: the kind's own.
    pub propagation: Option<Propagation>,
    /// Only the object with this uid.
    pub precondition_uid: Option<String>,
    /// Only this version.
    pub precondition_resource_version: Option<String>,
    /// Remove what cannot be read, and nothing else.
    pub ignore_read_error: bool,
    /// Answer with 202 if the object stays for now: what `orphanDependents: false` asks for.
    pub pending_is_accepted: bool,
}

/// The part of a request that depends on the verb. Bodies are JSON (apply patches too, converted from YAML before).
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each variant is its verb; the fields are explained at their types")]
pub enum Call {
    /// `resource_version`: empty or a lower bound, as in lists.
    Get {
        resource_version: String,
    },
    List(ListOptions),
    Watch(ListOptions),
    Create {
        body: Bytes,
        options: WriteOptions,
    },
    Update {
        body: Bytes,
        options: WriteOptions,
    },
    Patch {
        kind: PatchType,
        body: Bytes,
        options: WriteOptions,
    },
    Delete(DeleteOptions),
    DeleteCollection(DeleteOptions, ListOptions),
}

impl Call {
    /// The verb of the call.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Get { .. } => Verb::Get,
            Self::List(_) => Verb::List,
            Self::Watch(_) => Verb::Watch,
            Self::Create { .. } => Verb::Create,
            Self::Update { .. } => Verb::Update,
            Self::Patch { .. } => Verb::Patch,
            Self::Delete(_) => Verb::Delete,
            Self::DeleteCollection(..) => Verb::DeleteCollection,
        }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The resource.
    pub resource: GroupVersionResource,
    /// The namespace; empty: cluster scope, or all namespaces.
    pub namespace: String,
    /// The object's name; empty for collections and creates.
    pub name: String,
    /// `status`, `scale`, `binding`, `token`, …; empty: the object itself.
    pub subresource: String,
    /// What is asked.
    pub call: Call,
}

/// A list at one revision.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The objects, in key order.
    pub items: Vec<Arc<Object>>,
    /// The revision of the list.
    pub revision: i64,
    /// Where the next page begins; empty: nowhere.
    pub continue_token: String,
    /// How many are left, where known.
    pub remaining: Option<u64>,
}

/// What happened, in a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchEventKind {
    /// New, or newly matching the selector.
    Added,
    /// Changed.
    Modified,
    /// Gone, or no longer matching; the object is its last matching state with the revision of the deletion.
    Deleted,
    /// No change; the object carries a revision only.
    Bookmark,
}

/// One event of a watch.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// What happened.
    pub kind: WatchEventKind,
    /// The object; for bookmarks the kind's empty object with a resourceVersion.
    pub object: Arc<Object>,
    /// For bookmarks: the initial events are complete (annotation `k8s.io/initial-events-end`).
    pub initial_events_end: bool,
}

/// Events in order; batched per wake-up. A failure (410 Expired) ends it.
pub type WatchStream = BoxStream<'static, Result<Vec<WatchEvent>, Status>>;

/// The answer to a request.
pub enum Response {
    /// One object: get, create, update, patch, a delete that is not finished yet, and subresources.
    Object {
        /// The object.
        object: Arc<Object>,
        /// Whether this request created it (201).
        created: bool,
        /// `Warning` headers.
        warnings: Vec<String>,
    },
    /// A list.
    List(List),
    /// A watch.
    Watch(WatchStream),
    /// A finished delete: `Status` Success with these details, or the object.
    Deleted {
        /// The uid of what went.
        uid: String,
        /// What went, where deletions of its kind answer with it.
        object: Option<Arc<Object>>,
        /// `Warning` headers.
        warnings: Vec<String>,
    },
}
