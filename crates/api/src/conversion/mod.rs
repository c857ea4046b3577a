//! Versions other than the stored one (retired ones, and the second group of Events), converted on the way in and back
//! on the way out. Nothing is lost in between: what the other version cannot say is kept in annotations.
//!
//! What differs between two versions is data (`rules`). A version without a rule has the stored version's shape and only
//! says another `apiVersion`.

mod autoscaling;
mod definitions;
mod rules;
mod special;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use rules::{Kept, Rule, Side, Step};

/// Defaults of a version that depend on other fields; its constants are in the schema. For objects as clients send them,
/// before the schema's defaults and before conversion.
pub fn default(group: &str, version: &str, kind: &str, object: &mut Value) {
    let api_version = crate::catalog::group_version(group, version);
    for default in rules::of(&api_version, kind).into_iter().flat_map(|rule| rule.defaults) {
        default(object);
    }
}

/// Converts an object between two versions of a kind, given as `group/version`. One of them is the stored one, or they
/// are equal in shape.
pub fn convert(mut object: Value, kind: &str, from: &str, to: &str) -> Value {
    if from == to || !object.is_object() {
        return object;
    }
    object["apiVersion"] = json!(to);
    if let Some(rule) = rules::of(from, kind) {
        to_stored(&mut object, rule);
    }
    if let Some(rule) = rules::of(to, kind) {
        from_stored(&mut object, rule);
    }
    object
}

/// The path in the stored version of a field that selectors of a version name.
pub fn selectable_path<'a>(group: &str, kind: &str, path: &'a str) -> Cow<'a, str> {
    match (group, kind, path) {
        ("events.k8s.io", "Event", "reportingController") => Cow::Borrowed("reportingComponent"),
        ("events.k8s.io", "Event", _) => match path.strip_prefix("regarding.") {
            Some(rest) => Cow::Owned(format!("involvedObject.{rest}")),
            None => Cow::Borrowed(path),
        },
        // The field is a structure, and the selector means the component in it.
        ("", "Event", "source") => Cow::Borrowed("source.component"),
        _ => Cow::Borrowed(path),
    }
}

fn to_stored(object: &mut Value, rule: &Rule) {
    for step in rule.steps {
        match step {
            Step::Rename { at, old, stored } => each(object, at, &mut |value| rename(value, old, stored)),
            Step::Gather { at, into, fields } => each(object, at, &mut |value| gather(value, into, fields)),
            Step::Scatter { at, from, .. } => each(object, at, &mut |value| scatter(value, from)),
            Step::Keep(kept) if kept.side == Side::Old => put_away(object, kept),
            Step::Keep(kept) => bring_back(object, kept),
            Step::Own { at, to_stored, .. } => each(object, at, &mut |value| to_stored(value)),
        }
    }
}

fn from_stored(object: &mut Value, rule: &Rule) {
    for step in rule.steps.iter().rev() {
        match step {
            Step::Rename { at, old, stored } => each(object, at, &mut |value| rename(value, stored, old)),
            Step::Gather { at, into, .. } => each(object, at, &mut |value| scatter(value, into)),
            Step::Scatter { at, from, stays } => {
                each(object, at, &mut |value| gather_but(value, from, stays))
            }
            Step::Keep(kept) if kept.side == Side::Old => bring_back(object, kept),
            Step::Keep(kept) => put_away(object, kept),
            Step::Own { at, from_stored, .. } => each(object, at, &mut |value| from_stored(value)),
        }
    }
}

/// Calls a function for every value under a path of names; a name that ends in `[]` is that of a list, of which every
/// item is meant. The empty path is the object itself.
fn each(value: &mut Value, path: &str, call: &mut dyn FnMut(&mut Value)) {
    if path.is_empty() {
        return call(value);
    }
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let (name, is_list) = name.strip_suffix("[]").map_or((name, false), |name| (name, true));
    match value.get_mut(name) {
        Some(Value::Array(items)) if is_list => items.iter_mut().for_each(|item| each(item, rest, call)),
        Some(below) if !is_list && !below.is_null() => each(below, rest, call),
        _ => {}
    }
}

fn rename(value: &mut Value, from: &str, to: &str) {
    let Some(fields) = value.as_object_mut() else { return };
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

/// Moves some fields into an object of their own, if there are any.
fn gather(value: &mut Value, into: &str, names: &[&str]) {
    let Some(fields) = value.as_object_mut() else { return };
    let taken: Map<String, Value> = names
        .iter()
        .filter_map(|name| fields.remove_entry(*name))
        .filter(|(_, value)| !value.is_null())
        .collect();
    if !taken.is_empty() {
        fields.insert(into.to_owned(), Value::Object(taken));
    }
}

/// Moves all fields but some into an object of their own.
fn gather_but(value: &mut Value, into: &str, stay: &[&str]) {
    let Some(fields) = value.as_object_mut() else { return };
    let (stays, taken): (Map<_, _>, Map<_, _>) =
        std::mem::take(fields).into_iter().partition(|(name, _)| stay.contains(&name.as_str()));
    *fields = stays;
    fields.insert(into.to_owned(), Value::Object(taken));
}

/// Moves the fields of an object to the one around it.
fn scatter(value: &mut Value, from: &str) {
    let Some(fields) = value.as_object_mut() else { return };
    match fields.remove(from) {
        Some(Value::Object(inner)) => fields.extend(inner),
        Some(Value::Null) | None => {}
        Some(other) => drop(fields.insert(from.to_owned(), other)),
    }
}

/// Takes a field out of an object and writes it into an annotation.
fn put_away(object: &mut Value, kept: &Kept) {
    let (parent, name) = kept.path.rsplit_once('.').unwrap_or(("", kept.path));
    let mut taken = None;
    each(object, parent, &mut |value| taken = value.as_object_mut().and_then(|fields| fields.remove(name)));
    let Some(text) = taken.filter(|value| !value.is_null()).and_then(|value| (kept.write)(&value)) else {
        return;
    };
    if let Some(annotations) = annotations(object) {
        annotations.insert(kept.annotation.to_owned(), json!(text));
    }
}

/// Takes a field from its annotation, where the object has a place for it. A text that is no value of the field stays.
fn bring_back(object: &mut Value, kept: &Kept) {
    let text =
        object.pointer("/metadata/annotations").and_then(|annotations| annotations.get(kept.annotation));
    let Some(value) = text.and_then(Value::as_str).and_then(kept.read) else { return };
    let (parent, name) = kept.path.rsplit_once('.').unwrap_or(("", kept.path));
    each(object, parent, &mut |place| {
        if let Some(fields) = place.as_object_mut() {
            fields.insert(name.to_owned(), value.clone());
        }
    });
    forget(object, kept.annotation);
}

/// The annotations of an object, made if there are none.
fn annotations(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = object.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()?;
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations.as_object_mut()
}

/// Removes an annotation, and the map of them when it was the last.
fn forget(object: &mut Value, annotation: &str) -> Option<String> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(annotation);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    text?.as_str().map(str::to_owned)
}
