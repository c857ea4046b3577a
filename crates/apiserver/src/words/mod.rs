//! What the pipeline needs to know of kinds, in one place: the catalog's rows and the operations that the schema drives.

pub mod documents;

use std::collections::HashMap;
use std::sync::Arc;

use api::patch::apply;
pub use api::patch::apply::Writer;
use api::selectors::{FieldSelector, LabelSelector};
use api::{FieldValidation, GroupVersionResource, Object, PatchType, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::field::FieldErrors;
use crate::tree;

/// A kind in one version.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // The names are those of discovery.
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub resource: String,
    pub namespaced: bool,
    pub short_names: Vec<&'static str>,
    pub subresources: Vec<&'static str>,
    pub resource_id: GroupVersionResource,
}

impl Kind {
    /// `apps/v1`.
    pub fn api_version(&self) -> String {
        self.resource_id.api_version()
    }

    /// The singular of the resource's name.
    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }

    /// Whether objects are questions that nobody stores.
    pub fn is_review(&self) -> bool {
        matches!(self.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
    }

    /// The verbs of discovery.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.is_review() {
            &["create"]
        } else {
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        }
    }

    /// The categories (`kubectl get all`).
    pub fn categories(&self) -> &'static [&'static str] {
        match self.resource.as_str() {
            "pods" | "services" | "deployments" | "replicasets" | "replicationcontrollers" => &["all"],
            _ => &[],
        }
    }

    /// The fields that field selectors may name besides name and namespace.
    pub fn selectable_fields(&self) -> &'static [&'static str] {
        match (self.group.as_str(), self.resource.as_str()) {
            ("", "pods") => &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "spec.hostNetwork",
                "status.phase",
                "status.podIP",
                "status.nominatedNodeName",
            ],
            ("" | "events.k8s.io", "events") => &[
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "involvedObject.resourceVersion",
                "involvedObject.fieldPath",
                "reason",
                "reportingComponent",
                "source",
                "type",
            ],
            ("", "secrets") => &["type"],
            ("", "namespaces") => &["status.phase"],
            ("", "nodes") => &["spec.unschedulable"],
            ("", "services") => &["spec.clusterIP", "spec.type"],
            ("" | "apps", "replicationcontrollers" | "replicasets") => &["status.replicas"],
            _ => &[],
        }
    }

    /// Whether the kind has a subresource.
    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.contains(&name)
    }
}

/// The kinds.
#[derive(Debug, Default)]
pub struct Catalog {
    kinds: Vec<Arc<Kind>>,
    by_id: HashMap<GroupVersionResource, Arc<Kind>>,
}

impl Catalog {
    /// The built-in kinds.
    pub fn builtin() -> Arc<Self> {
        let mut catalog = Self::default();
        for (group, version, kind, resource, namespaced, short_names, subresources) in ROWS {
            let row = Arc::new(Kind {
                group: (*group).into(),
                version: (*version).into(),
                kind: (*kind).into(),
                resource: (*resource).into(),
                namespaced: *namespaced,
                short_names: short_names.to_vec(),
                subresources: subresources.to_vec(),
                resource_id: GroupVersionResource::new(group, version, resource),
            });
            catalog.by_id.insert(row.resource_id.clone(), row.clone());
            catalog.kinds.push(row);
        }
        Arc::new(catalog)
    }

    /// All rows.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// The kinds that are stored, in their storage versions.
    pub fn stored(&self) -> Vec<Arc<Kind>> {
        self.kinds.iter().filter(|kind| !kind.is_review()).cloned().collect()
    }

    /// A kind by its resource.
    pub fn find(&self, resource: &GroupVersionResource) -> Option<Arc<Kind>> {
        self.by_id.get(resource).cloned()
    }

    /// The storage version of a kind.
    pub fn stored_kind(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        kind.clone()
    }

    /// The storage version of a resource.
    pub fn storage_of(&self, group: &str, resource: &str) -> Option<Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.group == group && kind.resource == resource).cloned()
    }

    /// Converts between versions.
    pub fn convert(&self, object: Value, _from: &Kind, _to: &Kind) -> Result<Value, Status> {
        Ok(object)
    }

    /// Converts between versions.
    pub fn convert_object(&self, object: &Arc<Object>, _: &Kind, _: &Kind) -> Result<Arc<Object>, Status> {
        Ok(object.clone())
    }
}

/// Group, version, kind, resource, namespaced, short names, subresources.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    bool,
    &'static [&'static str],
    &'static [&'static str],
);

const STATUS: &[&str] = &["status"];
const SCALED: &[&str] = &["scale", "status"];
const POD: &[&str] = &["attach", "binding", "eviction", "exec", "log", "portforward", "status"];
const ROWS: &[Row] = &[
    ("", "v1", "ConfigMap", "configmaps", true, &["cm"], &[]),
    ("", "v1", "Endpoints", "endpoints", true, &["ep"], &[]),
    ("", "v1", "Event", "events", true, &["ev"], &[]),
    ("", "v1", "Namespace", "namespaces", false, &["ns"], &["finalize", "status"]),
    ("", "v1", "Node", "nodes", false, &["no"], &["proxy", "status"]),
    ("", "v1", "Pod", "pods", true, &["po"], POD),
    ("", "v1", "ReplicationController", "replicationcontrollers", true, &["rc"], SCALED),
    ("", "v1", "Secret", "secrets", true, &[], &[]),
    ("", "v1", "Service", "services", true, &["svc"], STATUS),
    ("", "v1", "ServiceAccount", "serviceaccounts", true, &["sa"], &["token"]),
    ("apps", "v1", "ControllerRevision", "controllerrevisions", true, &[], &[]),
    ("apps", "v1", "Deployment", "deployments", true, &["deploy"], SCALED),
    ("apps", "v1", "ReplicaSet", "replicasets", true, &["rs"], SCALED),
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", false, &[], &[]),
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", false, &[], &[]),
    ("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", true, &[], &[]),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false, &[], &[]),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false, &[], &[]),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", false, &[], &[]),
    ("coordination.k8s.io", "v1", "Lease", "leases", true, &[], &[]),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, &[], &[]),
    ("networking.k8s.io", "v1", "IPAddress", "ipaddresses", false, &["ip"], &[]),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", true, &["ing"], STATUS),
    ("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", false, &[], STATUS),
    ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false, &["pc"], &[]),
];

/// Decodes a body.
pub fn decode(
    kind: &Kind,
    body: &[u8],
    _validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let mut object: Value = serde_json::from_slice(body).map_err(|error| {
        Status::bad_request(format!("the body of the request is not valid JSON: {error}"))
    })?;
    let fields = tree::members(&mut object);
    fields.insert("apiVersion".into(), kind.api_version().into());
    fields.insert("kind".into(), kind.kind.clone().into());
    Ok((object, Vec::new()))
}

/// Schema defaults.
pub fn default(_kind: &Kind, _object: &mut Value) {}

/// Schema validation.
pub fn validate(_kind: &Kind, _object: &Value, _errors: &mut FieldErrors) {}

/// Immutable fields of the schema.
pub fn validate_change(_kind: &Kind, _new: &Value, _old: &Value, _errors: &mut FieldErrors) {}

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

/// Records what a writer changed.
pub fn own_changes(kind: &Kind, old: Option<&Value>, new: &mut Value, writer: &Writer) {
    apply::record_update(old, new, shape(kind), writer);
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

#[derive(Clone, Copy)]
struct Place;

impl<'s> api::patch::Shape<'s> for Place {
    fn field(self, _: &str) -> Option<Self> {
        None
    }
    fn element(self) -> Option<Self> {
        None
    }
    fn facts(self) -> api::patch::Facts<'s> {
        api::patch::Facts::UNKNOWN
    }
    fn default_of(self, _: &str) -> Option<Value> {
        None
    }
}

fn shape(_kind: &Kind) -> Option<Place> {
    None
}

/// How much of the object the rows of a table carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // metav1.IncludeObjectPolicy
pub enum Include {
    None,
    Metadata,
    Object,
}

/// A Table of objects; `columns` says whether the definitions of its columns are wanted too.
pub fn table(kind: &Kind, objects: &[&Object], include: Include, columns: bool) -> Result<Value, Status> {
    let definitions = api::table::columns_of(&kind.group, &kind.kind);
    let now = jiff::Timestamp::now();
    let mut rows = Vec::with_capacity(objects.len());
    for object in objects {
        let tree: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
        let mut row = json!({ "cells": api::table::cells(definitions, &tree, now) });
        match include {
            Include::None => {}
            Include::Object => row["object"] = tree,
            Include::Metadata => {
                row["object"] = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": tree["metadata"],
                });
            }
        }
        rows.push(row);
    }
    let mut table = json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "rows": rows });
    table["columnDefinitions"] = if columns { api::table::definitions(definitions) } else { Value::Null };
    if let [object] = objects {
        table["metadata"]["resourceVersion"] = object.meta().resource_version.clone().into();
    }
    Ok(table)
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

/// Label and field selectors, and a name that the path gave.
#[derive(Debug, Clone, Default)]
pub struct Selectors {
    labels: LabelSelector,
    fields: FieldSelector,
    /// Whether terms besides those on the head's fields need the whole object.
    deep: bool,
}

impl Selectors {
    /// Parses both; a field that the kind does not offer is refused.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Status> {
        let selectors = Self {
            labels: LabelSelector::parse(labels)?,
            fields: FieldSelector::parse(fields)?,
            deep: false,
        };
        let head = |path: &str| matches!(path, "metadata.name" | "metadata.namespace" | "spec.nodeName");
        for term in &selectors.fields.terms {
            let offered = matches!(term.path.as_str(), "metadata.name" | "metadata.namespace")
                || kind.selectable_fields().contains(&term.path.as_str());
            if !offered {
                return Err(Status::bad_request(format!(
                    "Unable to find \"{}\" that match label selector \"{labels}\", field selector \"{fields}\": field \
                     label not supported: {}",
                    kind.resource_id, term.path
                )));
            }
        }
        let deep = selectors.fields.terms.iter().any(|term| !head(&term.path));
        Ok(Self { deep, ..selectors })
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
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object matches.
    pub fn matches(&self, object: &Object) -> bool {
        if !self.labels.matches(&object.meta().labels) {
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
                Value::Null => default_of_selectable(path).to_owned(),
                other => other.to_string(),
            }
        })
    }

    /// The one name selected.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
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
