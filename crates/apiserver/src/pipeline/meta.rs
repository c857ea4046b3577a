//! The system's part of metadata: what is set at creation, kept at updates, and checked on every write. Pure.

use api::{Key, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Asked;
use crate::field::{FieldError, FieldErrors};
use crate::strategy::NameRule;
use crate::tree;

/// Fields of metadata that only the system writes.
const SYSTEM: [&str; 6] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"];
/// How long generated names may be before their suffix. Source: `apiserver/pkg/storage/names`.
const GENERATED_PREFIX_MAX: usize = 58;
const GENERATED_SUFFIX: usize = 5;

/// A time as metadata carries it: seconds, UTC.
pub fn rfc3339(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Namespace and name of the body agree with those of the request; what is missing is filled in.
pub(super) fn fit_to_request(asked: &Asked<'_>, object: &mut Value) -> Result<(), Status> {
    let metadata = tree::metadata(object);
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if asked.kind.namespaced {
        if !namespace.is_empty() && namespace != asked.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.insert("namespace".into(), asked.namespace.into());
    } else if namespace.is_empty() {
        metadata.remove("namespace");
    }
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if !asked.name.is_empty() {
        if !name.is_empty() && name != asked.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                asked.name
            )));
        }
        metadata.insert("name".into(), asked.name.into());
    }
    Ok(())
}

/// As [`fit_to_request`], of an object that is there: it says its name. Source: `handlers/rest.go`, `checkName`.
pub(super) fn same_object(asked: &Asked<'_>, object: &mut Value) -> Result<(), Status> {
    if tree::text(object, &["metadata", "name"]).is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            asked.name
        )));
    }
    fit_to_request(asked, object)
}

/// Takes away what only the system says of a new object.
pub(super) fn wipe(object: &mut Value) {
    let metadata = tree::metadata(object);
    for field in SYSTEM {
        metadata.remove(field);
    }
    metadata.remove("resourceVersion");
}

/// What the system sets on a new object. A name is generated where only its prefix is given.
pub(super) fn begin(object: &mut Value, now: Timestamp, generation: bool) {
    wipe(object);
    let metadata = tree::metadata(object);
    metadata.insert("uid".into(), base::id::uuid().into());
    metadata.insert("creationTimestamp".into(), rfc3339(now).into());
    if generation {
        metadata.insert("generation".into(), 1.into());
    }
    generate_name(object);
}

/// Gives an object without a name one from its `generateName`.
pub(super) fn generate_name(object: &mut Value) {
    let metadata = tree::metadata(object);
    let named = metadata.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if !named && !prefix.is_empty() {
        let cut = prefix.char_indices().nth(GENERATED_PREFIX_MAX).map_or(prefix.len(), |(at, _)| at);
        let name = format!("{}{}", &prefix[..cut], base::id::suffix(GENERATED_SUFFIX));
        metadata.insert("name".into(), name.into());
    }
}

/// The system's fields stay what they were; generation grows if `changed`.
pub(super) fn keep(new: &mut Value, old: &Value, changed: bool) {
    let before = tree::at(old, &["metadata"]);
    let metadata = tree::member(new, "metadata");
    for field in SYSTEM {
        tree::copy(before, metadata, field);
    }
    tree::copy(before, metadata, "generateName");
    if changed {
        let generation = before.get("generation").and_then(Value::as_i64).unwrap_or(0) + 1;
        tree::members(metadata).insert("generation".into(), generation.into());
    }
}

/// Whether anything but metadata, and the status where it is `apart`, differs.
pub(super) fn spec_differs(new: &Value, old: &Value, apart: bool) -> bool {
    !same_but(new, old, |name| match name {
        "metadata" | "apiVersion" | "kind" => true,
        "status" => apart,
        _ => false,
    })
}

/// Whether two versions of an object say the same, times of managedFields and the version itself apart.
pub(super) fn same(new: &Value, old: &Value) -> bool {
    let [one, other] = [new, old].map(|value| tree::at(value, &["metadata"]).get("managedFields"));
    same_content(new, old) && same_owners(one, other)
}

/// The same without managedFields.
pub(super) fn same_content(new: &Value, old: &Value) -> bool {
    let [one, other] = [new, old].map(|value| tree::at(value, &["metadata"]));
    same_but(new, old, |name| name == "metadata")
        && same_but(one, other, |name| matches!(name, "resourceVersion" | "managedFields"))
}

/// Whether entries of managedFields, where there are any, are the same but for their times.
pub(super) fn same_owners(one: Option<&Value>, other: Option<&Value>) -> bool {
    match [one, other].map(|entries| entries.and_then(Value::as_array)) {
        [Some(one), Some(other)] => {
            let same = |(one, other)| same_but(one, other, |name| name == "time");
            one.len() == other.len() && one.iter().zip(other).all(same)
        }
        _ => one == other,
    }
}

/// Whether the members of two objects are the same but for those that do not count; anything else counts as an empty
/// object.
fn same_but(one: &Value, other: &Value, ignored: impl Fn(&str) -> bool) -> bool {
    let [one, other] = [one, other].map(Value::as_object);
    let counted = |fields: Option<&serde_json::Map<String, Value>>| {
        fields.map_or(0, |fields| fields.keys().filter(|name| !ignored(name)).count())
    };
    counted(one) == counted(other)
        && one
            .into_iter()
            .flatten()
            .filter(|(name, _)| !ignored(name))
            .all(|(name, value)| other.and_then(|other| other.get(name)) == Some(value))
}

/// The object's key.
pub(crate) fn key_of(object: &Value) -> Key {
    Key::new(tree::text(object, &["metadata", "namespace"]), tree::text(object, &["metadata", "name"]))
}

/// Whether a deletion has begun.
pub(super) fn terminating(object: &Value) -> bool {
    !tree::at(object, &["metadata", "deletionTimestamp"]).is_null()
}

/// The object's finalizers.
pub(super) fn finalizers(object: &Value) -> Vec<String> {
    tree::items(object, &["metadata", "finalizers"])
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

/// What is wrong with metadata. Source: `apimachinery/pkg/api/validation/objectmeta.go`.
pub(super) fn validate(object: &Value, asked: &Asked<'_>, errors: &mut FieldErrors) {
    let (namespaced, rule) = (asked.kind.namespaced, asked.strategy.name_rule());
    // Definitions and custom resources take any qualified name.
    let any_finalizer = asked.kind.custom.is_some() || asked.kind.group == crate::definitions::GROUP;
    let metadata = tree::at(object, &["metadata"]);
    let name = tree::text(metadata, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        for detail in crate::names::name_problems(rule, name) {
            errors.push(FieldError::invalid("metadata.name", &json!(name), &detail));
        }
    }
    let namespace = tree::text(metadata, &["namespace"]);
    if !namespaced && !namespace.is_empty() {
        errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    } else if namespaced && let Some(detail) = crate::names::wrong_name(NameRule::Label, namespace) {
        errors.push(FieldError::invalid("metadata.namespace", &json!(namespace), &detail));
    }
    crate::names::check_labels(tree::at(metadata, &["labels"]), "metadata.labels", errors);
    crate::names::check_annotations(tree::at(metadata, &["annotations"]), "metadata.annotations", errors);
    validate_owners(tree::items(metadata, &["ownerReferences"]), errors);
    for (index, finalizer) in tree::items(metadata, &["finalizers"]).iter().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        let field = format!("metadata.finalizers[{index}]");
        if let Some(detail) = crate::names::wrong_qualified_name(text) {
            errors.push(FieldError::invalid(field, finalizer, &detail));
        } else if !any_finalizer
            && !text.contains('/')
            && !matches!(text, "orphan" | "foregroundDeletion" | "kubernetes")
        {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(field, finalizer, detail));
        }
    }
}

fn validate_owners(owners: &[Value], errors: &mut FieldErrors) {
    let mut controllers = 0;
    for (index, owner) in owners.iter().enumerate() {
        let field = format!("metadata.ownerReferences[{index}]");
        for part in ["apiVersion", "kind", "name", "uid"] {
            if tree::text(owner, &[part]).is_empty() {
                errors.push(FieldError::required(format!("{field}.{part}"), "must not be empty"));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true. Found \"true\" in references";
        errors.push(FieldError::invalid("metadata.ownerReferences", &json!(owners), detail));
    }
}

/// What is wrong with a change of metadata.
pub(super) fn validate_change(new: &Value, old: &Value, errors: &mut FieldErrors) {
    for field in ["name", "namespace", "uid"] {
        let (after, before) = (tree::at(new, &["metadata", field]), tree::at(old, &["metadata", field]));
        if after != before {
            errors.push(FieldError::invalid(format!("metadata.{field}"), after, "field is immutable"));
        }
    }
    if terminating(old) {
        let before = finalizers(old);
        let added: Vec<_> = finalizers(new).into_iter().filter(|name| !before.contains(name)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", &detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_versions_make_no_difference_and_all_else_does() {
        let object = |version: &str, time: &str, manager: &str, data: &str| {
            json!({
                "metadata": {
                    "name": "a", "resourceVersion": version, "managedFields": [{ "manager": manager, "time": time }],
                },
                "data": { "k": data },
            })
        };
        let old = object("1", "then", "m", "v");
        assert!(same(&object("2", "now", "m", "v"), &old));
        assert!(!same(&object("1", "then", "other", "v"), &old));
        assert!(!same(&object("1", "then", "m", "w"), &old));
        let mut more = old.clone();
        more["metadata"]["labels"] = json!({ "a": "b" });
        assert!(!same(&more, &old) && !same(&old, &more));
        more = old.clone();
        tree::metadata(&mut more).remove("managedFields");
        assert!(!same(&more, &old) && !same(&old, &more));
        more = old.clone();
        more["status"] = json!({});
        assert!(!same(&more, &old) && !same(&old, &more));
    }

    #[test]
    fn the_status_counts_where_it_is_not_apart() {
        let old = json!({ "metadata": { "name": "a" }, "spec": { "a": 1 }, "status": { "b": 1 } });
        let mut new = old.clone();
        new["status"]["b"] = 2.into();
        new["metadata"]["name"] = "b".into();
        assert!(!spec_differs(&new, &old, true) && spec_differs(&new, &old, false));
        new["spec"]["a"] = 2.into();
        assert!(spec_differs(&new, &old, true));
    }
}
