//! Server-side apply and the record of who owns which field. Source: KEP-555.
//!
//! Every write is recorded: an update owns what it added or changed, an apply owns what its configuration says. An
//! apply removes what it said before and says no more, unless somebody else owns it; it fails where it would change
//! what somebody else owns, unless forced.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::{Comparison, FieldSet, Step, is_granular, item_step, steps};
use super::{ListType, Shape, descend, facts};
use crate::{Cause, Reason, Status};

/// Upstream's bound on recorded updaters; the oldest are merged beyond it.
const UPDATERS_MAX: usize = 10;

/// Who stands for merged updaters.
const ANCIENT: &str = "ancient-changes";

/// Metadata that the server itself owns. Source: `fieldmanager/stripmeta.go`.
const SERVER_OWNED: [&str; 8] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Who writes.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The field manager's name.
    pub manager: String,
    /// `group/version` of the request.
    pub api_version: String,
    /// The subresource written, or empty.
    pub subresource: String,
    /// Now, in RFC 3339.
    pub time: String,
}

/// What identifies an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    apply: bool,
    manager: String,
    api_version: String,
    subresource: String,
}

impl Owner {
    fn of(writer: &Writer, apply: bool) -> Self {
        Self {
            apply,
            manager: writer.manager.clone(),
            api_version: writer.api_version.clone(),
            subresource: writer.subresource.clone(),
        }
    }

    fn of_entry(entry: &Value) -> Self {
        Self {
            apply: entry["operation"] == "Apply",
            manager: text(entry, "manager"),
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
        }
    }

    /// The owner in messages, as upstream prints it.
    fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if !self.apply {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

#[derive(Debug, Clone)]
struct Entry {
    set: FieldSet,
    time: String,
}

type Owners = BTreeMap<Owner, Entry>;

/// Records an update (or a create, or a patch other than apply): the writer owns what it added or changed.
///
/// `new` brings its `managedFields` along, or else those of `old` are taken; a list of one empty entry starts anew.
/// Source: `managedfields/internal/fieldmanager.go`, `decodeLiveOrNew`.
pub fn record_update<'s, S: Shape<'s>>(
    old: Option<&Value>,
    new: &mut Value,
    shape: Option<S>,
    writer: &Writer,
) {
    let none = Value::Object(Map::new());
    let before = old.unwrap_or(&none);
    let known = before["metadata"].get("managedFields");
    let recorded = match new["metadata"].get("managedFields") {
        _ if !writer.subresource.is_empty() => known,
        Some(list) if is_reset(list) => None,
        Some(list) if !is_empty(list) && check_record(list).is_ok() => Some(list),
        _ => known,
    };
    let change = Comparison::of(before, new, shape);
    let gained = stripped(change.added.union(change.modified));
    let me = Owner::of(writer, false);
    if recorded == known && stripped(change.removed.clone()).is_empty() && is_recorded(known, &me, &gained) {
        // Nothing of the record changes, so that it need not be read.
        if let (Some(known), Some(metadata)) = (known, new.get_mut("metadata").and_then(Value::as_object_mut))
        {
            metadata.insert("managedFields".into(), known.clone());
        }
        return;
    }
    let mut owners = read(recorded);
    take_away(&mut owners, &me, &[&gained, &change.removed]);
    let mine = owners.remove(&me);
    let set = mine.as_ref().map(|entry| entry.set.clone()).unwrap_or_default();
    let set = set.union(gained).difference(&change.removed);
    put(&mut owners, me, set, mine, writer);
    write(new, merge_ancient(owners));
}

/// Applies a configuration to the live object (null: there is none) and records it.
pub fn apply<'s, S: Shape<'s>>(
    live: &Value,
    mut config: Value,
    shape: Option<S>,
    writer: &Writer,
    force: bool,
) -> Result<Value, Status> {
    if !config.is_object() {
        return Err(Status::bad_request(
            "error decoding patch: a configuration that is applied is an object",
        ));
    }
    if config["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let mut owners = read(live["metadata"].get("managedFields"));
    let me = Owner::of(writer, true);
    // Who applies in another version than before is still the same applier.
    let before =
        owners.keys().find(|owner| Owner { api_version: me.api_version.clone(), ..(*owner).clone() } == me);
    let last = before.cloned().and_then(|before| owners.remove(&before));
    let said = stripped(FieldSet::of(&config, shape));
    let mut merged = merge(live.clone(), config, shape);
    if let Some(last) = &last {
        let kept = owners.values().fold(said.clone(), |kept, entry| kept.union(entry.set.clone()));
        prune(&mut merged, &last.set.clone().difference(&said), &kept, shape);
    }
    let change = Comparison::of(live, &merged, shape);
    let changed = stripped(change.added.union(change.modified));
    let conflicts: Vec<(Owner, FieldSet)> = owners
        .iter()
        .map(|(owner, entry)| (owner.clone(), entry.set.intersection(&changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflict(conflicts));
    }
    take_away(&mut owners, &me, &[&changed, &change.removed]);
    put(&mut owners, me, said, last, writer);
    write(&mut merged, owners);
    Ok(merged)
}

/// Merges a configuration into an object without any ownership, as MutatingAdmissionPolicy does. The failure names lists,
/// maps and structs that are one value: they are not for merging. Source: `policy/mutating/patch/smd.go`.
pub fn merge_unowned<'s, S: Shape<'s>>(
    live: Value,
    config: Value,
    shape: Option<S>,
) -> Result<Value, String> {
    let mut atomics = Vec::new();
    find_atomics(&config, shape, "", &mut atomics);
    if !atomics.is_empty() {
        let problem = "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs";
        return Err(format!("{problem}: {}", atomics.join(", ")));
    }
    Ok(merge(live, config, shape))
}

fn find_atomics<'s, S: Shape<'s>>(config: &Value, shape: Option<S>, path: &str, found: &mut Vec<String>) {
    let Some(known) = shape else { return };
    match config {
        Value::Object(fields) => {
            if known.facts().atomic_map {
                found.push(path.to_owned());
            }
            for (name, value) in fields {
                find_atomics(value, descend(shape, name), &format!("{path}.{name}"), found);
            }
        }
        Value::Array(items) => {
            if known.facts().list_type == ListType::Atomic {
                found.push(path.to_owned());
            }
            for (place, item) in items.iter().enumerate() {
                find_atomics(item, known.element(), &format!("{path}[{place}]"), found);
            }
        }
        _ => {}
    }
}

/// Whether a record says already that these paths are the writer's and nobody else's.
fn is_recorded(record: Option<&Value>, me: &Owner, set: &FieldSet) -> bool {
    let Some(entries) = record.and_then(Value::as_array) else { return false };
    let mine = |entry: &Value| Owner::of_entry(entry) == *me;
    let fits = |entry: &Value| {
        let share = set.share_of(&entry["fieldsV1"]);
        if mine(entry) { share.all } else { !share.some }
    };
    entries.iter().all(fits) && (set.is_empty() || entries.iter().any(mine))
}

/// Removes paths from every other owner.
fn take_away(owners: &mut Owners, me: &Owner, sets: &[&FieldSet]) {
    for (_, entry) in owners.iter_mut().filter(|(owner, _)| *owner != me) {
        entry.set = sets.iter().fold(std::mem::take(&mut entry.set), |left, set| left.difference(set));
    }
    owners.retain(|_, entry| !entry.set.is_empty());
}

/// Puts the writer's entry back; its time changes only with its set.
fn put(owners: &mut Owners, me: Owner, set: FieldSet, before: Option<Entry>, writer: &Writer) {
    let time = match before {
        Some(entry) if entry.set == set => entry.time,
        _ => writer.time.clone(),
    };
    if !set.is_empty() {
        owners.insert(me, Entry { set, time });
    }
}

fn stripped(mut set: FieldSet) -> FieldSet {
    for name in ["apiVersion", "kind"] {
        set.remove(&[name]);
    }
    set.remove_member("metadata");
    for name in SERVER_OWNED {
        set.remove(&["metadata", name]);
    }
    set
}

/// What is wrong with a record that others wrote: null and an empty one are none.
/// Source: `managedfields/internal/managedfields.go`, `DecodeManagedFields`.
pub fn check_record(list: &Value) -> Result<(), String> {
    for (place, entry) in list.as_array().into_iter().flatten().enumerate() {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        if !matches!(text("operation"), "Apply" | "Update") {
            return Err("operation must be `Apply` or `Update`".into());
        }
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".into());
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {place}")),
            other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {place}")),
        }
    }
    Ok(())
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

/// Whether a record is the one that takes all fields from all owners: a single entry that says nothing.
fn is_reset(list: &Value) -> bool {
    let says = |entry: &Value| match entry {
        Value::Object(fields) => fields.values().any(|value| !value.is_null() && value != ""),
        _ => true,
    };
    list.as_array().is_some_and(|entries| matches!(entries.as_slice(), [entry] if !says(entry)))
}

fn text(entry: &Value, field: &str) -> String {
    entry[field].as_str().unwrap_or_default().to_owned()
}

fn read(list: Option<&Value>) -> Owners {
    let mut owners = Owners::new();
    for entry in list.and_then(Value::as_array).into_iter().flatten() {
        let (set, time) = (FieldSet::from_json(&entry["fieldsV1"]), text(entry, "time"));
        owners.insert(Owner::of_entry(entry), Entry { set, time });
    }
    owners
}

/// Writes the entries: applies first, then by time and name, as upstream sorts them.
fn write(object: &mut Value, owners: Owners) {
    let mut entries: Vec<(Owner, Entry)> = owners.into_iter().collect();
    entries.sort_by(|(a, x), (b, y)| {
        b.apply
            .cmp(&a.apply)
            .then_with(|| x.time.cmp(&y.time))
            .then_with(|| a.manager.cmp(&b.manager))
            .then_with(|| a.cmp(b))
    });
    let list: Vec<Value> = entries
        .into_iter()
        .map(|(owner, entry)| {
            let mut json = json!({
                "manager": owner.manager, "operation": if owner.apply { "Apply" } else { "Update" },
                "apiVersion": owner.api_version, "fieldsType": "FieldsV1", "fieldsV1": entry.set.to_json(),
            });
            for (name, value) in [("time", entry.time), ("subresource", owner.subresource)] {
                if !value.is_empty() {
                    json[name] = Value::from(value);
                }
            }
            json
        })
        .collect();
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if !list.is_empty() {
            metadata.insert("managedFields".into(), Value::Array(list));
        }
    }
}

/// Merges the oldest updaters into one, so that the record stays bounded whoever writes.
fn merge_ancient(mut owners: Owners) -> Owners {
    let updaters =
        |owners: &Owners| owners.keys().filter(|owner| !owner.apply && owner.manager != ANCIENT).count();
    while updaters(&owners) > UPDATERS_MAX {
        let oldest = owners
            .iter()
            .filter(|(owner, _)| !owner.apply && owner.manager != ANCIENT)
            .min_by(|(_, x), (_, y)| x.time.cmp(&y.time))
            .map(|(owner, _)| owner.clone());
        let Some((owner, entry)) = oldest.and_then(|owner| owners.remove_entry(&owner)) else { break };
        let ancient = Owner { manager: ANCIENT.into(), subresource: String::new(), ..owner };
        let merged = match owners.remove(&ancient) {
            Some(known) => Entry { set: known.set.union(entry.set), time: known.time.max(entry.time) },
            None => entry,
        };
        owners.insert(ancient, merged);
    }
    owners
}

/// Managers are told in the order of upstream's identifiers, which begin with the name.
/// Source: `fieldmanager`, `getConflictMessage`.
fn conflict(mut conflicts: Vec<(Owner, FieldSet)>) -> Status {
    conflicts.sort_by(|(a, _), (b, _)| {
        let key = |owner: &Owner| (owner.manager.clone(), !owner.apply, owner.api_version.clone());
        key(a).cmp(&key(b)).then_with(|| a.subresource.cmp(&b.subresource))
    });
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for (owner, set) in &conflicts {
        lines.push(format!("conflicts with {}:", owner.describe()));
        for path in set.paths() {
            lines.push(format!("- {path}"));
            causes.push(Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {}", owner.describe()),
                field: path,
            });
        }
    }
    let message = match causes.as_slice() {
        [only] => format!("Apply failed with 1 conflict: {}: {}", only.message, only.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    let mut status = Status::new(Reason::Conflict, message);
    status.details.causes = causes;
    status
}

/// The configuration over the live object: maps and lists by key merge, everything else is replaced.
fn merge<'s, S: Shape<'s>>(live: Value, config: Value, shape: Option<S>) -> Value {
    match (live, config) {
        (Value::Object(mut live), Value::Object(config)) if !facts(shape).atomic_map => {
            for (name, value) in config {
                let place = descend(shape, &name);
                let old = live.remove(&name).unwrap_or(Value::Null);
                live.insert(name, merge(old, value, place));
            }
            Value::Object(live)
        }
        (Value::Array(live), Value::Array(config)) if facts(shape).list_type != ListType::Atomic => {
            Value::Array(merge_items(live, config, shape))
        }
        (_, config) => config,
    }
}

/// Items of the live list keep their place; where the configuration names them all, its order is taken.
fn merge_items<'s, S: Shape<'s>>(live: Vec<Value>, config: Vec<Value>, list: Option<S>) -> Vec<Value> {
    let element = list.and_then(Shape::element);
    let id = |item: &Value| item_step(item, list, element);
    let mut left: Vec<Option<Value>> = live.into_iter().map(Some).collect();
    let mut merged: Vec<(usize, Value)> = Vec::new();
    for item in config {
        let wanted = id(&item);
        let at = left.iter().position(|known| known.as_ref().is_some_and(|known| id(known) == wanted));
        match at {
            Some(at) => {
                let known = left[at].take().unwrap_or(Value::Null);
                merged.push((at, merge(known, item, element)));
            }
            None => merged.push((usize::MAX, item)),
        }
    }
    if left.iter().any(Option::is_some) {
        merged.extend(left.into_iter().enumerate().filter_map(|(at, item)| item.map(|item| (at, item))));
        merged.sort_by_key(|(at, _)| *at);
    }
    merged.into_iter().map(|(_, item)| item).collect()
}

/// Removes the paths of `gone` unless `kept` has them or something below them; containers that this empties go too.
fn prune<'s, S: Shape<'s>>(value: &mut Value, gone: &FieldSet, kept: &FieldSet, shape: Option<S>) {
    let parts: Vec<(Step, Option<S>, bool)> = steps(value, shape)
        .into_iter()
        .map(|(step, item, place, _)| (step, place, is_granular(item, place)))
        .collect();
    let mut drop = vec![false; parts.len()];
    for (at, (step, place, granular)) in parts.iter().enumerate() {
        let (itself, below) = gone.below(step);
        let (kept_itself, kept_below) = kept.below(step);
        if (itself || below.is_some()) && !kept_itself && kept_below.is_none() {
            // Nobody owns it or anything in it. Where only parts of it were owned, what nobody owned may stay.
            drop[at] = itself || emptied(part_mut(value, at), below, *place, *granular);
        } else if let Some(below) = below {
            let nothing = FieldSet::default();
            if let Some(part) = part_mut(value, at) {
                prune(part, below, kept_below.unwrap_or(&nothing), *place);
            }
        }
    }
    let mut at = 0;
    let mut stays = || {
        at += 1;
        !drop[at - 1]
    };
    match value {
        Value::Object(map) => map.retain(|_, _| stays()),
        Value::Array(items) => items.retain(|_| stays()),
        _ => {}
    }
}

/// Prunes a part and tells whether that left it empty.
fn emptied<'s, S: Shape<'s>>(
    part: Option<&mut Value>,
    gone: Option<&FieldSet>,
    place: Option<S>,
    granular: bool,
) -> bool {
    let (Some(part), Some(gone), true) = (part, gone, granular) else { return false };
    prune(part, gone, &FieldSet::default(), place);
    part.as_object().is_some_and(Map::is_empty) || part.as_array().is_some_and(Vec::is_empty)
}

/// The part at a place in the order of [`steps`].
fn part_mut(value: &mut Value, at: usize) -> Option<&mut Value> {
    match value {
        Value::Object(map) => map.iter_mut().nth(at).map(|(_, part)| part),
        Value::Array(items) => items.get_mut(at),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Place;
    use super::*;

    fn writer(manager: &str) -> Writer {
        Writer {
            manager: manager.into(),
            api_version: "v1".into(),
            subresource: String::new(),
            time: "2026-01-01T00:00:00Z".into(),
        }
    }

    fn applied(live: &Value, config: Value, manager: &str) -> Result<Value, Status> {
        apply(live, config, Some(Place::Object), &writer(manager), false)
    }

    fn without_record(mut object: Value) -> Value {
        object["metadata"].as_object_mut().unwrap().remove("managedFields");
        object
    }

    fn labelled(labels: Value) -> Value {
        json!({"metadata": {"name": "x", "labels": labels}})
    }

    #[test]
    fn an_apply_owns_what_it_says_and_removes_what_it_says_no_more() {
        let first = applied(&Value::Null, labelled(json!({"a": "1", "b": "2"})), "me").unwrap();
        assert_eq!(
            first["metadata"]["managedFields"][0]["fieldsV1"],
            json!({"f:metadata": {"f:labels": {"f:a": {}, "f:b": {}}}})
        );
        let second = applied(&first, labelled(json!({"a": "1"})), "me").unwrap();
        assert_eq!(without_record(second.clone()), labelled(json!({"a": "1"})));
        let third = applied(&second, json!({"metadata": {"name": "x"}}), "me").unwrap();
        assert_eq!(third, json!({"metadata": {"name": "x"}}));
    }

    #[test]
    fn what_is_no_object_is_not_applied() {
        for config in [json!(2), json!(null), json!([])] {
            assert_eq!(applied(&json!({}), config, "a").unwrap_err().code, 400);
        }
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let config = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1}]}]}});
        let once = applied(&Value::Null, config.clone(), "me").unwrap();
        assert_eq!(applied(&once, config, "me").unwrap(), once);
    }

    #[test]
    fn a_foreign_change_conflicts_and_force_takes_over() {
        let first = applied(&Value::Null, labelled(json!({"a": "1"})), "me").unwrap();
        let error = applied(&first, labelled(json!({"a": "2"})), "you").unwrap_err();
        assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"me\": .metadata.labels.a");
        assert_eq!((error.code, error.details.causes[0].reason.as_str()), (409, "FieldManagerConflict"));
        let forced =
            apply(&first, labelled(json!({"a": "2"})), Some(Place::Object), &writer("you"), true).unwrap();
        assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
        assert_eq!(forced["metadata"]["managedFields"][0]["manager"], "you");
    }

    #[test]
    fn conflicts_are_told_by_the_names_of_managers() {
        let mut live = labelled(json!({"a": "1", "b": "1"}));
        record_update(None, &mut live, Some(Place::Object), &writer("b-updates"));
        let live = applied(&live, labelled(json!({"b": "1"})), "a-applies").unwrap();
        let error = applied(&live, labelled(json!({"a": "2", "b": "2"})), "you").unwrap_err();
        assert_eq!(
            error.message,
            "Apply failed with 3 conflicts: conflicts with \"a-applies\":\n- .metadata.labels.b\nconflicts with \
             \"b-updates\" using v1:\n- .metadata.labels.a\n- .metadata.labels.b"
        );
    }

    #[test]
    fn a_record_that_is_nonsense_counts_for_nothing() {
        let entry = |field: &str, value: &str| {
            let mut entry = json!({
                "manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {},
            });
            entry[field] = value.into();
            json!([entry])
        };
        for (field, value, wanted) in [
            ("manager", "", Ok(())),
            ("operation", "Steal", Err("operation must be `Apply` or `Update`")),
            ("apiVersion", "", Err("apiVersion must not be empty")),
            ("fieldsType", "", Err("missing fieldsType in managed fields entry 0")),
            ("fieldsType", "V2", Err("invalid fieldsType \"V2\" in managed fields entry 0")),
        ] {
            assert_eq!(check_record(&entry(field, value)), wanted.map_err(str::to_owned), "{field} {value}");
        }
        let first = applied(&Value::Null, labelled(json!({"a": "1"})), "me").unwrap();
        let mut second = first.clone();
        second["metadata"]["managedFields"] = entry("operation", "Steal");
        record_update(Some(&first), &mut second, Some(Place::Object), &writer("you"));
        assert_eq!(second, first);
    }

    #[test]
    fn equal_values_are_shared_and_survive_one_owner() {
        let first = applied(&Value::Null, labelled(json!({"a": "1"})), "me").unwrap();
        let shared = applied(&first, labelled(json!({"a": "1"})), "you").unwrap();
        assert_eq!(shared["metadata"]["managedFields"].as_array().unwrap().len(), 2);
        let left = applied(&shared, json!({"metadata": {"name": "x"}}), "me").unwrap();
        assert_eq!(without_record(left), labelled(json!({"a": "1"})));
    }

    #[test]
    fn an_update_owns_its_change_and_defaulted_parts_go_with_their_item() {
        let config = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
        let mut live = applied(&Value::Null, config, "me").unwrap();
        // Defaults appear without an owner; a controller sets a label.
        live["spec"]["containers"][1]["pull"] = json!("Always");
        let mut updated = live.clone();
        updated["metadata"]["labels"] = json!({"x": "y"});
        record_update(Some(&live), &mut updated, Some(Place::Object), &writer("controller"));
        let entries = updated["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries[1]["operation"], "Update");
        assert_eq!(entries[1]["fieldsV1"], json!({"f:metadata": {"f:labels": {".": {}, "f:x": {}}}}));
        let config =
            json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "a", "image": "2"}]}});
        let after = without_record(applied(&updated, config, "me").unwrap());
        let wanted = json!({"metadata": {"name": "x", "labels": {"x": "y"}}, "spec": {"containers": [{"name": "a", "image": "2"}]}});
        assert_eq!(after, wanted);
    }

    #[test]
    fn a_record_that_says_it_already_stays_as_it_is() {
        let mut first = labelled(json!({"a": "1", "b": "1"}));
        record_update(None, &mut first, Some(Place::Object), &writer("me"));
        let later = |manager: &str| Writer { time: "2026-02-02T00:00:00Z".into(), ..writer(manager) };
        let update = |labels: Value, manager: &str| {
            let mut next = labelled(labels);
            record_update(Some(&first), &mut next, Some(Place::Object), &later(manager));
            next["metadata"]["managedFields"].take()
        };
        let before = first["metadata"]["managedFields"].clone();
        assert_eq!(update(json!({"a": "2", "b": "1"}), "me"), before);
        // Another writer, another field, or one field less make it another record.
        assert_eq!(update(json!({"a": "2", "b": "1"}), "you").as_array().unwrap().len(), 2);
        let more = update(json!({"a": "1", "b": "1", "c": "1"}), "me");
        assert_eq!(more[0]["fieldsV1"]["f:metadata"]["f:labels"]["f:c"], json!({}));
        let less = update(json!({"a": "1"}), "me");
        assert_eq!(less[0]["fieldsV1"]["f:metadata"]["f:labels"].get("f:b"), None);
    }

    #[test]
    fn the_record_stays_bounded() {
        let mut live = json!({"metadata": {"name": "x", "labels": {}}});
        for number in 0..30 {
            let mut next = live.clone();
            next["metadata"]["labels"][format!("l{number}")] = json!("1");
            let mut by = writer(&format!("m{number}"));
            by.time = format!("2026-01-01T00:00:{number:02}Z");
            record_update(Some(&live), &mut next, Some(Place::Object), &by);
            live = next;
        }
        let entries = live["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries.len(), UPDATERS_MAX + 1);
        assert!(entries.iter().any(|entry| entry["manager"] == ANCIENT));
    }
}
