//! What the pipeline needs to know of kinds, in one place: the catalog's rows and the operations that the schema drives.

pub mod documents;

use std::sync::Arc;

use api::catalog::Subresource;
use api::decode::Mode;
use api::patch::apply;
pub use api::patch::apply::Writer;
use api::schema::{Schema, Typed};
use api::selectors::{FieldSelector, LabelSelector};
use api::{FieldValidation, GroupVersionResource, Object, PatchType, Reason, Status};
use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::field::{FieldError, FieldErrors};
use crate::{lengthy, tree};

/// A kind in one version: a row of the catalog.
pub use api::catalog::Row as Kind;

/// The kinds that a server serves: a table that changes while it runs.
#[derive(Debug)]
pub struct Catalog {
    /// The present table. A change makes another one, so that who reads keeps one that agrees with itself.
    rows: RwLock<Arc<api::catalog::Catalog>>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

impl Catalog {
    /// The built-in kinds.
    pub fn builtin() -> Arc<Self> {
        let rows = RwLock::new(Arc::new(api::catalog::Catalog::builtin()));
        Arc::new(Self { rows, changes: watch::Sender::new(0) })
    }

    /// The table as it is now.
    pub fn rows(&self) -> Arc<api::catalog::Catalog> {
        self.rows.read().clone()
    }

    /// Adds or replaces a row.
    pub(crate) fn insert(&self, row: Kind) {
        Arc::make_mut(&mut *self.rows.write()).insert(row);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Removes a row.
    pub(crate) fn remove(&self, resource: &GroupVersionResource) {
        Arc::make_mut(&mut *self.rows.write()).remove(resource);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells that the table has become another.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The kinds that are stored, in their storage versions.
    pub fn stored(&self) -> Vec<Arc<Kind>> {
        self.rows().rows().filter(|row| row.is_stored() && row.is_storage_version()).cloned().collect()
    }

    /// A kind by its resource.
    pub fn find(&self, resource: &GroupVersionResource) -> Option<Arc<Kind>> {
        self.rows.read().get(resource).cloned()
    }

    /// The storage version of a kind.
    pub fn stored_kind(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        if kind.is_storage_version() {
            return kind.clone();
        }
        self.rows.read().get(&kind.storage_resource()).unwrap_or(kind).clone()
    }

    /// The storage version of a resource.
    pub fn storage_of(&self, group: &str, resource: &str) -> Option<Arc<Kind>> {
        self.rows.read().storage_of(group, resource).cloned()
    }

    /// Converts a tree between versions of a kind.
    pub fn convert(&self, object: Value, from: &Kind, to: &Kind) -> Value {
        api::conversion::convert(object, &from.kind, &from.api_version(), &to.api_version())
    }

    /// Converts an object between versions of a kind.
    pub fn convert_object(
        &self,
        object: &Arc<Object>,
        from: &Kind,
        to: &Kind,
    ) -> Result<Arc<Object>, Status> {
        let failed = |error: serde_json::Error| Status::internal(error.to_string());
        let converted = self.convert(object.decode().map_err(failed)?, from, to);
        let bytes = serde_json::to_vec(&converted).map_err(failed)?;
        Object::parse(bytes.into()).map(Arc::new).map_err(failed)
    }
}

/// Decodes a body as an object of a kind, with warnings.
pub fn decode(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    api::decode::object(kind, body, validation, Mode::Object)
}

/// [`decode`] for what a patch has made of an object.
pub fn decode_tree(
    kind: &Kind,
    tree: Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    api::decode::tree(kind, tree, validation, Mode::Object)
}

/// Decodes the body of a request to a subresource, as the kind that the row names for it.
pub fn decode_subresource(
    kind: &Kind,
    subresource: &str,
    body: &[u8],
    validation: FieldValidation,
    mode: Mode,
) -> Result<(Value, Vec<String>), Status> {
    let (taken, ty) = kind_of_subresource(kind, subresource)?;
    api::decode::kind(ty, &taken.api_version(), &taken.kind, body, validation, mode)
}

/// The kind that a subresource of a row takes and gives, with its type. All of them are built in.
pub fn kind_of_subresource<'k>(
    kind: &'k Kind,
    subresource: &str,
) -> Result<(&'k Subresource, Typed<'static>), Status> {
    let missing = || Status::internal(format!("the kind of {}/{subresource} is not known", kind.plural));
    let taken = kind.subresource(subresource).ok_or_else(missing)?;
    let schema = Schema::builtin();
    let ty = schema.of_kind(&taken.group, &taken.version, &taken.kind).ok_or_else(missing)?;
    Ok((taken, schema.typed(ty)))
}

/// Whether the requests of a subresource carry the object's status.
fn carries_status(subresource: &str) -> bool {
    matches!(subresource, "status" | "approval")
}

/// Decodes the intent of an apply: what it says empty counts as said. Source: `Apply` in
/// `apimachinery/pkg/util/managedfields/internal/structuredmerge.go`.
pub fn decode_intent(
    kind: &Kind,
    subresource: &str,
    intent: &Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let (said, wanted) = (tree::text(intent, &["apiVersion"]), kind.api_version());
    if said != wanted {
        // A group and version without either is a slash to Go.
        let said = if said.is_empty() { "/" } else { said };
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {said}, expected: {wanted}"
        )));
    }
    if let Err(cause) = api::patch::typed::check(intent, kind.typed()) {
        let part = |field| tree::text(intent, &["metadata", field]);
        let about = format!("{}/{}; {}", part("namespace"), part("name"), go_kind(kind));
        let message = format!("failed to create typed patch object ({about}): {cause}");
        return Err(Status::new(Reason::Unknown, message));
    }
    let (mut intent, warnings) = api::decode::tree(kind, intent.clone(), validation, Mode::Configuration)?;
    let said = tree::members(&mut intent);
    // What the request cannot change is not owned by whoever says it. Source: the strategies' `GetResetFields`.
    if carries_status(subresource) {
        said.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
    } else if kind.subresource("status").is_some() {
        said.remove("status");
    }
    Ok((intent, warnings))
}

/// Group, version and kind as Go prints them: `apps/v1, Kind=Deployment`.
fn go_kind(kind: &Kind) -> String {
    format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind)
}

/// Schema defaults, after those of a retired version.
pub fn default(kind: &Kind, object: &mut Value) {
    if let Some(custom) = &kind.custom {
        return custom.default(object);
    }
    api::conversion::default(&kind.group, &kind.version, &kind.kind, object);
    api::defaults::apply(object, kind.typed());
}

/// Required fields and values of the schema; `old` is what the object was before an update.
pub fn validate(kind: &Kind, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    if let Some(custom) = &kind.custom {
        let causes = custom.validate_quickly(object, old);
        let causes = causes.unwrap_or_else(|| lengthy::run(|| custom.validate(object, old)));
        return errors.extend(causes.into_iter().map(FieldError::from));
    }
    errors.extend(api::validate::object(object, kind.typed()).into_iter().map(FieldError::from));
}

/// Immutable fields of the schema.
pub fn validate_change(kind: &Kind, new: &Value, old: &Value, errors: &mut FieldErrors) {
    errors.extend(api::validate::change(old, new, kind.typed()).into_iter().map(FieldError::from));
}

/// A parsed patch.
pub enum Patch {
    /// RFC 6902.
    Json(Bytes),
    /// RFC 7386.
    Merge(Bytes),
    /// Strategic merge.
    Strategic(Value),
    /// An apply intent.
    Apply(Value),
}

impl Patch {
    /// Parses a patch.
    pub fn parse(kind: PatchType, body: &Bytes) -> Result<Self, Status> {
        let tree = || {
            serde_json::from_slice(body)
                .map_err(|error| Status::bad_request(format!("the patch is not valid JSON: {error}")))
        };
        Ok(match kind {
            PatchType::Json => Self::Json(body.clone()),
            PatchType::Merge => Self::Merge(body.clone()),
            PatchType::StrategicMerge => Self::Strategic(tree()?),
            PatchType::Apply => Self::Apply(tree()?),
        })
    }
}

/// Applies a patch other than an apply.
pub fn patch(kind: &Kind, live: &Value, patch: &Patch) -> Result<Value, Status> {
    let mut new = live.clone();
    match patch {
        Patch::Json(patch) => api::patch::json_patch(&mut new, patch)?,
        Patch::Merge(patch) => api::patch::merge_patch(&mut new, patch)?,
        Patch::Strategic(patch) => {
            return api::patch::strategic::apply(new, patch.clone(), shape(kind));
        }
        Patch::Apply(_) => return Err(Status::internal("an apply is not a patch of fields")),
    }
    Ok(new)
}

/// Records what a writer changed. Who writes an object and not its status changes nothing of the status; its bare place,
/// which a new object gets by default, is nobody's.
pub fn own_changes(kind: &Kind, old: Option<&Value>, new: &mut Value, writer: &Writer) {
    // The paths are those of the version that is stored, whatever the request spoke.
    let writer = &Writer { api_version: kind.api_version(), ..writer.clone() };
    let apart = !carries_status(&writer.subresource) && kind.subresource("status").is_some();
    let status = if apart { tree::members(new).remove("status") } else { None };
    let without = old.filter(|_| apart).map(|old| {
        let mut old = old.clone();
        tree::members(&mut old).remove("status");
        old
    });
    apply::record_update(without.as_ref().or(old), new, shape(kind), writer);
    if let Some(status) = status {
        tree::members(new).insert("status".into(), status);
    }
}

/// Server-side apply: the live object (in the version asked for) with the intent applied and recorded.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    intent: &Value,
    writer: &Writer,
    force: bool,
) -> Result<Value, Status> {
    apply::apply(live.unwrap_or(&Value::Null), intent.clone(), shape(kind), writer, force)
}

/// Merges what a mutating policy wants to be so into an object, in a version of its kind.
pub fn merge_unowned(kind: &Kind, live: Value, config: Value) -> Result<Value, String> {
    apply::merge_unowned(live, config, shape(kind))
}

/// Where patches begin in a kind's schema.
fn shape(kind: &Kind) -> Option<api::schema::Place<'_>> {
    kind.typed().place()
}

/// How much of the object the rows of a table carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "upstream's names: metav1.IncludeObjectPolicy")]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// Why a field cannot be selected by: kinds with fields of their own say it in other words than those with none.
fn not_selectable(kind: &Kind, path: &str) -> Status {
    Status::bad_request(if kind.selectable_fields.is_empty() && kind.custom.is_none() {
        format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {path}")
    })
}

/// Whether these are the Scale of an object of a kind, which is printed in columns of its own.
fn is_scale(kind: &Kind, objects: &[&Object]) -> bool {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(default)]
        kind: String,
    }
    match objects {
        [object] if kind.subresource("scale").is_some() => {
            object.decode().is_ok_and(|head: Head| head.kind == "Scale")
        }
        _ => false,
    }
}

/// A Table of objects of a version of `meta.k8s.io`, as JSON; `columns` says whether the definitions of its columns are
/// wanted too. Written row by row: of each object there is a tree only while its cells are read.
pub fn table(
    kind: &Kind,
    objects: &[&Object],
    include: Include,
    columns: bool,
    (api_version, metadata): (&str, &Value),
) -> Result<Vec<u8>, Status> {
    let scale = is_scale(kind, objects);
    let definitions = if scale { api::table::columns_of("autoscaling", "Scale") } else { kind.columns() };
    let printed = kind.custom.as_ref().filter(|_| !scale).map(|custom| custom.columns.as_slice());
    let shown = match printed {
        _ if !columns => Value::Null,
        Some(columns) => api::custom::definitions(columns),
        None => api::table::definitions(definitions),
    };
    let now = jiff::Timestamp::now();
    let mut out = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"columnDefinitions\":{shown},\"rows\":["
    )
    .into_bytes();
    for (place, object) in objects.iter().enumerate() {
        let tree: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
        // Columns read the stored version, whatever the rows carry.
        let cells = if let Some(columns) = printed {
            api::custom::cells(columns, &tree, now)
        } else if scale || kind.is_storage_version() {
            api::table::cells(definitions, &tree, now)
        } else {
            let (from, to) = (kind.api_version(), kind.storage_api_version());
            api::table::cells(definitions, &api::conversion::convert(tree, &kind.kind, &from, &to), now)
        };
        out.extend_from_slice(if place == 0 { b"{\"cells\":" } else { b",{\"cells\":" });
        serde_json::to_writer(&mut out, &cells).map_err(|error| Status::internal(error.to_string()))?;
        if include != Include::None {
            out.extend_from_slice(b",\"object\":");
        }
        match include {
            Include::None => {}
            Include::Object => out.extend_from_slice(object.bytes()),
            Include::Metadata => write_metadata(object, "meta.k8s.io/v1", &mut out)?,
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// Writes an object's `PartialObjectMetadata` of an `apiVersion`: its metadata as its bytes have them.
pub fn write_metadata(object: &Object, api_version: &str, out: &mut Vec<u8>) -> Result<(), Status> {
    #[derive(serde::Deserialize)]
    struct Head<'a> {
        #[serde(default, borrow)]
        metadata: Option<&'a RawValue>,
    }
    let head: Head<'_> =
        serde_json::from_slice(object.bytes()).map_err(|error| Status::internal(error.to_string()))?;
    let metadata = head.metadata.map_or("{}", RawValue::get);
    let begin =
        format!("{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"{api_version}\",\"metadata\":");
    for part in [begin.as_str(), metadata, "}"] {
        out.extend_from_slice(part.as_bytes());
    }
    Ok(())
}

/// An object's selector (a `LabelSelector`, or the plain map of older kinds) as text.
pub fn selector_text(selector: &Value) -> String {
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let mut parts: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| value.as_str().map(|value| format!("{key}={value}")))
        .collect();
    for expression in tree::items(selector, &["matchExpressions"]) {
        let key = tree::text(expression, &["key"]);
        let values: Vec<&str> =
            tree::items(expression, &["values"]).iter().filter_map(Value::as_str).collect();
        parts.push(match tree::text(expression, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

/// The field that selects dependents: Skiff's own, on every kind, as controllers watch what they made by it.
const OWNER: &str = "metadata.ownerReferences.uid";

/// Label and field selectors, and a name that the path gave.
#[derive(Debug, Clone, Default)]
pub struct Selectors {
    labels: LabelSelector,
    fields: FieldSelector,
    /// An object has any number of owners, of which one must be this.
    owner: Option<String>,
    /// Whether terms besides those on the head's fields need the whole object.
    deep: bool,
    /// Whether the objects are custom ones, whose fields have no zero values: what is absent reads as the empty text.
    custom: bool,
}

impl Selectors {
    /// Parses both, as the kind in the version asked for spells them, for objects of the stored version; a field that
    /// the kind does not offer is refused.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = LabelSelector::parse(labels)?;
        let mut fields = FieldSelector::parse(fields)?;
        for term in &mut fields.terms {
            // Custom resources without namespaces are not selected by them; upstream takes that for its own kinds.
            let in_namespaces = kind.namespaced || kind.custom.is_none();
            let offered = term.path == "metadata.name"
                || (term.path == "metadata.namespace" && in_namespaces)
                || (term.path == OWNER && term.equal)
                || kind.selectable_fields.iter().any(|field| *field == term.path);
            if !offered {
                return Err(not_selectable(kind, &term.path));
            }
            term.path = api::conversion::selectable_path(&kind.group, &kind.kind, &term.path).into_owned();
        }
        let mut owner = None;
        fields.terms.retain(|term| {
            if term.path == OWNER {
                owner = Some(term.value.clone());
            }
            term.path != OWNER
        });
        let head = |path: &str| matches!(path, "metadata.name" | "metadata.namespace" | "spec.nodeName");
        let deep = fields.terms.iter().any(|term| !head(&term.path));
        Ok(Self { labels, fields, owner, deep, custom: kind.custom.is_some() })
    }

    /// Only the object with a name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        let path = "metadata.name".to_owned();
        self.fields.terms.push(api::selectors::FieldTerm { path, value: name.to_owned(), equal: true });
        self
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.owner.is_none()
    }

    /// Whether an object matches.
    pub fn matches(&self, object: &Object) -> bool {
        let owners = &object.meta().owner_references;
        let owned = self.owner.as_ref().is_none_or(|uid| owners.iter().any(|owner| owner.uid == *uid));
        if !owned || !self.labels.matches(&object.meta().labels) {
            return false;
        }
        if !self.deep {
            return self.fields.matches(|path| head_field(object, path));
        }
        // Few selectors look deeper than the head, so that few objects are decoded for it.
        let tree: Value = object.decode().unwrap_or(Value::Null);
        self.fields.matches(|path| {
            let parts: Vec<&str> = path.split('.').collect();
            match tree::at(&tree, &parts) {
                Value::String(text) => text.clone(),
                Value::Null if self.custom => String::new(),
                Value::Null => default_of_selectable(path).to_owned(),
                other => other.to_string(),
            }
        })
    }

    /// The one name selected.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }

    /// The uid of the one owner selected.
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The one node selected.
    pub fn node_name(&self) -> Option<&str> {
        self.fields.exact("spec.nodeName").filter(|node| !node.is_empty())
    }
}

fn head_field(object: &Object, path: &str) -> String {
    match path {
        "metadata.name" => object.meta().name.clone(),
        "metadata.namespace" => object.meta().namespace.clone(),
        _ => object.node_name().unwrap_or_default().to_owned(),
    }
}

/// Booleans and counts read as their zero where they are absent.
fn default_of_selectable(path: &str) -> &'static str {
    match path {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" => "0",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_of_another_version_shows_the_same() {
        let kind =
            Catalog::builtin().find(&GroupVersionResource::new("events.k8s.io", "v1", "events")).unwrap();
        let event = json!({ "metadata": { "name": "e" }, "regarding": { "kind": "Pod", "name": "p" }, "note": "hello" });
        let object = Object::parse(event.to_string().into()).unwrap();
        let head = ("meta.k8s.io/v1", &json!({}));
        let table = table(&kind, &[&object], Include::Object, true, head).unwrap();
        let table: Value = serde_json::from_slice(&table).unwrap();
        let names: Vec<&str> = table["columnDefinitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| column["name"].as_str().unwrap())
            .collect();
        let cell =
            |name: &str| &table["rows"][0]["cells"][names.iter().position(|known| *known == name).unwrap()];
        assert_eq!((cell("Message"), cell("Object")), (&json!("hello"), &json!("pod/p")));
        assert_eq!(table["rows"][0]["object"]["note"], "hello");
    }
}
