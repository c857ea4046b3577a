//! Strategic merge patch: merge with lists by key and directives inside the patch.
//! Source: `k8s.io/apimachinery/pkg/util/strategicpatch` and the API conventions' `strategic-merge-patch.md`.

use serde_json::{Map, Value};

use super::shown::{go_type, shown};
use super::{Shape, descend, facts};
use crate::{Reason, Status};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies a patch to an object.
pub fn apply<'s, S: Shape<'s>>(object: Value, patch: Value, shape: Option<S>) -> Result<Value, Status> {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => merge_map(object, patch, shape).map(Value::Object),
        (_, patch) => {
            let found = if patch.is_array() { "array" } else { go_type(&patch) };
            Err(Status::bad_request(format!(
                "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
            )))
        }
    }
}

fn merge_map<'s, S: Shape<'s>>(
    mut object: Map<String, Value>,
    mut patch: Map<String, Value>,
    shape: Option<S>,
) -> Result<Map<String, Value>, Status> {
    match patch.get(PATCH).map(|directive| directive.as_str()) {
        None => {}
        Some(Some("replace")) => return Ok(without_directives(patch)),
        Some(Some("delete")) => return Ok(Map::new()),
        Some(_) => return Err(unknown_directive(patch)),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        let Value::Array(keys) = keys else { return Err(bad_format("retainKeys")) };
        // A null takes a key away, which is what the list is for.
        let sets = |(key, value): (&String, &Value)| {
            !value.is_null() && !key.starts_with('$') && !keys.contains(&Value::from(key.as_str()))
        };
        if patch.iter().any(sets) {
            return Err(bad_format("retainKeys"));
        }
        object.retain(|key, _| keys.contains(&Value::from(key.as_str())));
    }
    let orders = take_prefixed(&mut patch, ELEMENT_ORDER);
    for (field, order) in &orders {
        let key = facts(descend(shape, field)).patch_merge_key;
        check_order(object.get(field), patch.get(field), order, key)?;
    }
    for (field, gone) in take_prefixed(&mut patch, DELETE_FROM) {
        if let (Some(Value::Array(items)), Value::Array(gone)) = (object.get_mut(&field), gone) {
            items.retain(|item| !gone.contains(item));
        }
    }
    for (field, value) in patch {
        let place = descend(shape, &field);
        let merged = match (object.remove(&field), value) {
            (_, Value::Null) => continue,
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_map(old, new, place)?),
            (None, Value::Object(new)) => Value::Object(merge_map(Map::new(), new, place)?),
            (Some(Value::Array(old)), Value::Array(new)) if facts(place).patch_merge => {
                Value::Array(merge_list(old, new, place)?)
            }
            (None, Value::Array(new)) if facts(place).patch_merge => {
                Value::Array(merge_list(Vec::new(), new, place)?)
            }
            (_, new) => new,
        };
        object.insert(field, merged);
    }
    for (field, order) in &orders {
        if let (Some(Value::Array(items)), Value::Array(order)) = (object.get_mut(field), order) {
            let key = facts(descend(shape, field)).patch_merge_key;
            *items = reorder(std::mem::take(items), order, key);
        }
    }
    Ok(object)
}

/// A failure to which upstream gives no status: a fault of the server without a reason.
/// Source: `interpretStrategicMergePatchError` in `handlers/patch.go`.
fn unclassified(message: String) -> Status {
    Status::new(Reason::Unknown, message)
}

/// Source: `ErrBadPatchFormatForRetainKeys` and its siblings in `apimachinery/pkg/util/mergepatch/errors.go`, as those
/// below.
fn bad_format(what: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {what}"))
}

fn unknown_directive(patch: Map<String, Value>) -> Status {
    let directive = patch.get(PATCH).map(shown).unwrap_or_default();
    unclassified(format!("unknown patch type: {directive} in map: {}", shown(&Value::Object(patch))))
}

fn no_merge_key(item: &Value, key: &str) -> Status {
    unclassified(format!("map: {} does not contain declared merge key: {key}", shown(item)))
}

fn wrong_type(wanted: &Value, found: &Value) -> Status {
    unclassified(format!("expected a {}, but received a {}", go_type(wanted), go_type(found)))
}

/// Whether what a patch puts into a list stands in the order that the patch sets, which names it all.
/// Source: `mergePatchIntoOriginal` and `validatePatchWithSetOrderList` in `strategicpatch/patch.go`.
fn check_order(
    old: Option<&Value>,
    new: Option<&Value>,
    order: &Value,
    key: Option<&str>,
) -> Result<(), Status> {
    let wanted = items_of(order)?;
    old.map(items_of).transpose()?;
    let items = new.map(items_of).transpose()?.unwrap_or_default();
    if wanted.is_empty() || items.is_empty() {
        return Ok(());
    }
    let mut rest = wanted.iter();
    for item in items.iter().filter(|item| item.get(PATCH).is_none()) {
        let mut named = false;
        while !named {
            let Some(next) = rest.next() else {
                return Err(unclassified(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    new.map(shown).unwrap_or_default(),
                    shown(order)
                )));
            };
            named = id_of(item, key)? == id_of(next, key)?;
        }
    }
    Ok(())
}

fn items_of(value: &Value) -> Result<&[Value], Status> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(wrong_type(&Value::Array(Vec::new()), other)),
    }
}

/// What an item of a list is told by: its merge key, or all of it.
fn id_of<'v>(item: &'v Value, key: Option<&str>) -> Result<&'v Value, Status> {
    match key {
        None => Ok(item),
        Some(_) if !item.is_object() => Err(wrong_type(&Value::Object(Map::new()), item)),
        Some(key) => item.get(key).ok_or_else(|| no_merge_key(item, key)),
    }
}

fn take_prefixed(patch: &mut Map<String, Value>, prefix: &str) -> Vec<(String, Value)> {
    let names: Vec<String> = patch.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
    names
        .into_iter()
        .filter_map(|name| patch.remove(&name).map(|value| (name[prefix.len()..].to_owned(), value)))
        .collect()
}

/// The value of a patch where nothing was before: what directives would have done to nothing.
fn without_directives(patch: Map<String, Value>) -> Map<String, Value> {
    let plain = |(key, value): (String, Value)| {
        let value = match value {
            Value::Object(map) => Value::Object(without_directives(map)),
            Value::Array(items) => Value::Array(items.into_iter().map(item_without_directives).collect()),
            other => other,
        };
        (key, value)
    };
    patch.into_iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null()).map(plain).collect()
}

fn item_without_directives(item: Value) -> Value {
    match item {
        Value::Object(map) => Value::Object(without_directives(map)),
        other => other,
    }
}

fn merge_list<'s, S: Shape<'s>>(
    old: Vec<Value>,
    new: Vec<Value>,
    place: Option<S>,
) -> Result<Vec<Value>, Status> {
    let Some(key) = facts(place).patch_merge_key else {
        let mut merged = old;
        for item in new {
            if !merged.contains(&item) {
                merged.push(item);
            }
        }
        return Ok(merged);
    };
    if new.iter().any(|item| item.get(PATCH).is_some_and(|directive| directive == "replace")) {
        let rest = new.into_iter().filter(|item| item.get(PATCH).is_none());
        return Ok(rest.map(item_without_directives).collect());
    }
    let element = place.and_then(Shape::element);
    let mut merged = old;
    for item in new {
        let Value::Object(item) = item else {
            return Err(wrong_type(&Value::Object(Map::new()), &item));
        };
        let deletes = match item.get(PATCH).map(|directive| directive.as_str()) {
            None => false,
            Some(Some("delete")) => true,
            Some(Some("merge")) => {
                return Err(unclassified("merging lists cannot yet be specified in the patch".to_owned()));
            }
            Some(_) => return Err(unknown_directive(item)),
        };
        let Some(id) = item.get(key).cloned() else {
            return Err(no_merge_key(&Value::Object(item), key));
        };
        let at = merged.iter().position(|known| known.get(key) == Some(&id));
        match at {
            _ if deletes => merged.retain(|known| known.get(key) != Some(&id)),
            Some(at) => {
                let known = merged[at].as_object().cloned().unwrap_or_default();
                merged[at] = Value::Object(merge_map(known, item, element)?);
            }
            None => merged.push(Value::Object(merge_map(Map::new(), item, element)?)),
        }
    }
    Ok(merged)
}

/// Puts the items that `order` names into its order; items that it does not name (others put them there) keep their
/// place behind the named item that they followed.
fn reorder(items: Vec<Value>, order: &[Value], key: Option<&str>) -> Vec<Value> {
    let id = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
        None => item.clone(),
    };
    let wanted: Vec<Value> = order.iter().map(&id).collect();
    let rank = |item: &Value| wanted.iter().position(|name| *name == id(item));
    let mut named: Vec<(usize, Value, Vec<Value>)> = Vec::new();
    let mut groups: Vec<Value> = Vec::new();
    for item in items {
        match (rank(&item), named.last_mut()) {
            (Some(rank), _) => named.push((rank, item, Vec::new())),
            (None, Some((_, _, followers))) => followers.push(item),
            (None, None) => groups.push(item),
        }
    }
    named.sort_by_key(|(rank, _, _)| *rank);
    for (_, item, followers) in named {
        groups.push(item);
        groups.extend(followers);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::testing::Place;
    use super::*;
    use serde_json::json;

    fn patched(object: Value, patch: Value) -> Value {
        apply(object, patch, Some(Place::Object)).unwrap()
    }

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn lists_by_key_merge_and_plain_lists_are_replaced() {
        let object = pod(json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]));
        let patch = pod(json!([{"name": "a", "args": ["y"]}, {"name": "c", "image": "3"}]));
        let wanted = pod(
            json!([{"name": "a", "image": "1", "args": ["y"]}, {"name": "b", "image": "1"}, {"name": "c", "image": "3"}]),
        );
        assert_eq!(patched(object, patch), wanted);
    }

    #[test]
    fn directives_delete_replace_and_retain() {
        let object = || pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]));
        assert_eq!(
            patched(object(), pod(json!([{"name": "a", "$patch": "delete"}]))),
            pod(json!([{"name": "b", "image": "2"}]))
        );
        let replace = pod(json!([{"$patch": "replace"}, {"name": "z", "image": "9"}]));
        assert_eq!(patched(object(), replace), pod(json!([{"name": "z", "image": "9"}])));
        assert_eq!(
            patched(object(), json!({"spec": {"$patch": "replace", "x": 1}})),
            json!({"spec": {"x": 1}})
        );
        let retain = json!({"spec": {"$retainKeys": ["x"], "x": 1}});
        assert_eq!(patched(object(), retain), json!({"spec": {"x": 1}}));
        // As kubectl sends a volume that gets another source.
        let retain = json!({"spec": {"$retainKeys": ["y"], "containers": null, "y": 1}});
        assert_eq!(patched(object(), retain), json!({"spec": {"y": 1}}));
    }

    /// As upstream answers them: what its own errors do not name is a fault of the server to it.
    #[test]
    fn directives_that_make_no_sense_are_refused() {
        let object = || pod(json!([{"name": "a"}, {"name": "b"}]));
        let said = |patch: Value| {
            let refused = apply(object(), patch, Some(Place::Object)).unwrap_err();
            (refused.code, refused.message)
        };
        let ordered = |order: Value, containers: Value| json!({"spec": {"$setElementOrder/containers": order, "containers": containers}});
        let mismatch = |patch: &str, order: &str| {
            format!("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")
        };
        for (patch, code, message) in [
            (
                json!({"spec": {"$retainKeys": ["y"], "x": 1}}),
                400,
                "invalid patch format of retainKeys".into(),
            ),
            (json!({"spec": {"$retainKeys": "y"}}), 400, "invalid patch format of retainKeys".into()),
            (
                json!({"spec": {"$patch": "what"}}),
                500,
                "unknown patch type: what in map: map[$patch:what]".into(),
            ),
            (
                pod(json!([{"name": "a", "$patch": "what"}])),
                500,
                "unknown patch type: what in map: map[$patch:what name:a]".into(),
            ),
            (
                pod(json!([{"image": "x"}])),
                500,
                "map: map[image:x] does not contain declared merge key: name".into(),
            ),
            (pod(json!(["a"])), 500, "expected a map[string]interface {}, but received a string".into()),
            // An item that the order does not name, and two in another order.
            (
                ordered(json!([{"name": "a"}]), json!([{"name": "c", "image": "2"}])),
                500,
                mismatch("[map[image:2 name:c]]", "[map[name:a]]"),
            ),
            (
                ordered(json!([{"name": "a"}, {"name": "b"}]), json!([{"name": "b"}, {"name": "a"}])),
                500,
                mismatch("[map[name:b] map[name:a]]", "[map[name:a] map[name:b]]"),
            ),
            (
                ordered(json!("a"), json!([{"name": "a"}])),
                500,
                "expected a []interface {}, but received a string".into(),
            ),
        ] {
            assert_eq!(said(patch.clone()), (code, message), "{patch}");
        }
        // What is deleted needs no place in the order.
        let patch = ordered(
            json!([{"name": "b"}]),
            json!([{"name": "a", "$patch": "delete"}, {"name": "b", "image": "2"}]),
        );
        assert_eq!(patched(object(), patch), pod(json!([{"name": "b", "image": "2"}])));
    }

    #[test]
    fn primitive_lists_take_and_give() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch =
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"]}});
        assert_eq!(patched(object, patch), json!({"metadata": {"finalizers": ["b", "c"]}}));
    }

    #[test]
    fn the_order_of_elements_is_set_and_foreign_items_stay_behind_their_neighbour() {
        let object = pod(json!([{"name": "a"}, {"name": "side"}, {"name": "b"}]));
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "2"}]}});
        assert_eq!(
            patched(object, patch),
            pod(json!([{"name": "b", "image": "2"}, {"name": "a"}, {"name": "side"}]))
        );
    }

    #[test]
    fn null_removes_and_new_parts_lose_their_directives() {
        let object = json!({"metadata": {"labels": {"a": "1"}}});
        let patch = json!({"metadata": {"labels": {"a": null, "b": "2"}, "annotations": {"$patch": "replace", "x": "y", "z": null}}});
        assert_eq!(
            patched(object, patch),
            json!({"metadata": {"labels": {"b": "2"}, "annotations": {"x": "y"}}})
        );
    }
}
