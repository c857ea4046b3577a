//! Strategic merge patch: merge with lists by key and directives inside the patch.
//! Source: `k8s.io/apimachinery/pkg/util/strategicpatch` and the API conventions' `strategic-merge-patch.md`.

use serde_json::{Map, Value};

use super::{Shape, descend, facts};
use crate::Status;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies a patch to an object.
pub fn apply<'s, S: Shape<'s>>(object: Value, patch: Value, shape: Option<S>) -> Result<Value, Status> {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => merge_map(object, patch, shape).map(Value::Object),
        _ => Err(Status::bad_request(
            "error decoding patch: a strategic merge patch of an object is an object",
        )),
    }
}

fn merge_map<'s, S: Shape<'s>>(
    mut object: Map<String, Value>,
    mut patch: Map<String, Value>,
    shape: Option<S>,
) -> Result<Map<String, Value>, Status> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(without_directives(patch)),
            "delete" => return Ok(Map::new()),
            "merge" => {}
            other => return Err(unknown_directive(other)),
        },
        Some(other) => return Err(unknown_directive(&other.to_string())),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        let keys = keys.as_array().cloned().unwrap_or_default();
        // A null takes a key away, which is what the list is for.
        let sets = |(key, value): &(&String, &Value)| {
            !value.is_null() && !key.starts_with('$') && !keys.contains(&Value::from(key.as_str()))
        };
        if let Some((stray, _)) = patch.iter().find(sets) {
            return Err(Status::bad_request(format!(
                "{RETAIN_KEYS} does not list {stray:?}, which the patch sets"
            )));
        }
        object.retain(|key, _| keys.contains(&Value::from(key.as_str())));
    }
    let orders = take_prefixed(&mut patch, ELEMENT_ORDER);
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

fn unknown_directive(directive: &str) -> Status {
    Status::bad_request(format!("Unknown patch type: {directive}"))
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
    let directive = |item: &Value| item.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    if new.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        let rest = new.into_iter().filter(|item| directive(item).is_none());
        return Ok(rest.map(item_without_directives).collect());
    }
    let element = place.and_then(Shape::element);
    let mut merged = old;
    for item in new {
        let Value::Object(item) = item else {
            return Err(Status::bad_request(format!(
                "the patch of a list by key {key:?} has an item that is no object"
            )));
        };
        let Some(id) = item.get(key).cloned() else {
            return Err(Status::bad_request(format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object(item)
            )));
        };
        let at = merged.iter().position(|known| known.get(key) == Some(&id));
        match (directive(&Value::Object(item.clone())).as_deref(), at) {
            (Some("delete"), _) => merged.retain(|known| known.get(key) != Some(&id)),
            (Some("merge") | None, Some(at)) => {
                let known = merged[at].as_object().cloned().unwrap_or_default();
                merged[at] = Value::Object(merge_map(known, item, element)?);
            }
            (Some("merge") | None, None) => merged.push(Value::Object(merge_map(Map::new(), item, element)?)),
            (Some(other), _) => return Err(unknown_directive(other)),
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
        let stray = json!({"spec": {"$retainKeys": ["y"], "x": 1}});
        assert_eq!(apply(object(), stray, Some(Place::Object)).unwrap_err().code, 400);
        assert_eq!(
            apply(object(), json!({"spec": {"$patch": "what"}}), Some(Place::Object)).unwrap_err().code,
            400
        );
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

    #[test]
    fn an_item_without_its_key_is_refused() {
        let patch = pod(json!([{"image": "x"}]));
        let error = apply(pod(json!([])), patch, Some(Place::Object)).unwrap_err();
        assert!(error.message.contains("merge key: name"), "{}", error.message);
    }
}
