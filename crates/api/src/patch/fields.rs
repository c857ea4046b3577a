//! Sets of fields, as `managedFields` records who owns what. Source: KEP-555, `sigs.k8s.io/structured-merge-diff`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{ListType, Shape, descend, facts};

/// One step of a path. The order is that of the serialised form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// `f:name`: a field of a struct or an entry of a map.
    Field(String),
    /// `k:{…}`: the item of a list by its keys, as canonical JSON.
    Key(String),
    /// `v:…`: the item of a set, as JSON.
    Value(String),
    /// `i:n`: the item of a list by its place.
    Index(usize),
}

impl Step {
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Self::Field(rest.to_owned()),
            // Parsed and printed again: writers may space and order JSON as they like.
            "k" => Self::Key(
                serde_json::from_str::<Map<String, Value>>(rest)
                    .ok()
                    .map(|keys| Value::Object(keys).to_string())?,
            ),
            "v" => Self::Value(serde_json::from_str::<Value>(rest).ok()?.to_string()),
            "i" => Self::Index(rest.parse().ok()?),
            _ => return None,
        })
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Field(name) => write!(f, "f:{name}"),
            Self::Key(keys) => write!(f, "k:{keys}"),
            Self::Value(value) => write!(f, "v:{value}"),
            Self::Index(at) => write!(f, "i:{at}"),
        }
    }
}

/// How much of a set another holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// At least one of its paths.
    pub some: bool,
    /// Each of its paths.
    pub all: bool,
}

/// A set of paths, as a tree. A path is in the set if its last step is a member of its parent's node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<Step>,
    children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Reads `fieldsV1`. Steps that make no sense are left out.
    pub fn from_json(json: &Value) -> Self {
        let mut set = Self::default();
        for (name, below) in json.as_object().into_iter().flatten() {
            let Some(step) = Step::parse(name) else { continue };
            let empty = below.as_object().is_none_or(Map::is_empty);
            if empty || below.get(".").is_some() {
                set.members.insert(step.clone());
            }
            let child = Self::from_json(below);
            if !child.is_empty() {
                set.children.insert(step, child);
            }
        }
        set
    }

    /// Whether all paths are in `fieldsV1` as [`FieldSet::to_json`] writes it, or none.
    pub fn share_of(&self, json: &Value) -> Share {
        let mut share = Share { some: false, all: true };
        self.count_in(Some(json), &mut share);
        share
    }

    fn count_in(&self, json: Option<&Value>, share: &mut Share) {
        let at = |step: &Step| json.and_then(|json| json.get(step.to_string()));
        for step in &self.members {
            let is_member =
                |below: &Value| below.get(".").is_some() || below.as_object().is_none_or(Map::is_empty);
            let found = at(step).is_some_and(is_member);
            share.some |= found;
            share.all &= found;
        }
        for (step, child) in &self.children {
            child.count_in(at(step), share);
        }
    }

    /// Writes `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        for step in &self.members {
            json.insert(step.to_string(), Value::Object(Map::new()));
        }
        for (step, child) in &self.children {
            let mut below = child.to_json();
            if self.members.contains(step) {
                below[".".to_owned()] = Value::Object(Map::new());
            }
            json.insert(step.to_string(), below);
        }
        Value::Object(json)
    }

    /// Every path that a value sets. Parts that are one value (scalars, atomic lists and maps) are one path.
    pub fn of<'s, S: Shape<'s>>(value: &Value, shape: Option<S>) -> Self {
        let mut set = Self::default();
        for (step, item, place, declared) in steps(value, shape) {
            if !is_granular(item, place) {
                set.members.insert(step);
                continue;
            }
            // Entries of maps and items of lists are owned themselves; fields of structs only through what is in them.
            let hollow =
                item.as_object().is_some_and(Map::is_empty) || item.as_array().is_some_and(Vec::is_empty);
            if hollow || !declared {
                set.members.insert(step.clone());
            }
            set.put_child(step, Self::of(item, place));
        }
        set
    }

    fn put_child(&mut self, step: Step, child: Self) {
        if !child.is_empty() {
            self.children.insert(step, child);
        }
    }

    /// Paths in either.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        self.members.extend(other.members);
        for (step, theirs) in other.children {
            let mine = self.children.remove(&step).unwrap_or_default();
            self.children.insert(step, mine.union(theirs));
        }
        self
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut set =
            Self { members: self.members.intersection(&other.members).cloned().collect(), ..Self::default() };
        for (step, child) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                set.put_child(step.clone(), child.intersection(theirs));
            }
        }
        set
    }

    /// Paths in this one only.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        self.members.retain(|member| !other.members.contains(member));
        for (step, theirs) in &other.children {
            if let Some((step, mine)) = self.children.remove_entry(step) {
                self.put_child(step, mine.difference(theirs));
            }
        }
        self
    }

    /// The set below one step; with it whether the step itself is a member.
    pub fn below(&self, step: &Step) -> (bool, Option<&Self>) {
        (self.members.contains(step), self.children.get(step))
    }

    /// Takes a path out, with everything below it.
    pub fn remove(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let step = Step::Field((*first).to_owned());
        if rest.is_empty() {
            self.members.remove(&step);
            self.children.remove(&step);
        } else if let Some(child) = self.children.get_mut(&step) {
            child.remove(rest);
            if child.is_empty() {
                self.children.remove(&step);
            }
        }
    }

    /// Takes a path out, but leaves what is below it.
    pub fn remove_member(&mut self, name: &str) {
        self.members.remove(&Step::Field(name.to_owned()));
    }

    /// The paths in people's form: `.spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths("", &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &str, paths: &mut Vec<String>) {
        let text = |step: &Step| match step {
            Step::Field(name) => format!("{prefix}.{name}"),
            Step::Index(at) => format!("{prefix}[{at}]"),
            Step::Value(value) => format!("{prefix}[={value}]"),
            Step::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("{prefix}[{}]", pairs.join(","))
            }
        };
        paths.extend(self.members.iter().map(text));
        for (step, child) in &self.children {
            child.collect_paths(&text(step), paths);
        }
    }
}

/// Whether a value's parts are owned one by one.
pub(super) fn is_granular<'s, S: Shape<'s>>(value: &Value, shape: Option<S>) -> bool {
    match value {
        Value::Object(_) => !facts(shape).atomic_map,
        Value::Array(_) => facts(shape).list_type != ListType::Atomic,
        _ => false,
    }
}

/// The parts of a granular value: step, part, its place in the schema, and whether it is a declared field of a struct.
pub(super) fn steps<'v, 's, S: Shape<'s>>(
    value: &'v Value,
    shape: Option<S>,
) -> Vec<(Step, &'v Value, Option<S>, bool)> {
    match value {
        Value::Object(map) => {
            let part = |(name, item): (&String, &'v Value)| {
                let declared = shape.is_some_and(|shape| shape.field(name).is_some());
                (Step::Field(name.clone()), item, descend(shape, name), declared)
            };
            map.iter().map(part).collect()
        }
        Value::Array(items) => {
            let element = shape.and_then(Shape::element);
            items.iter().map(|item| (item_step(item, shape, element), item, element, false)).collect()
        }
        _ => Vec::new(),
    }
}

/// What identifies an item of a list that is a set or a map.
pub(super) fn item_step<'s, S: Shape<'s>>(item: &Value, list: Option<S>, element: Option<S>) -> Step {
    match facts(list).list_type {
        ListType::Map(names) => {
            let mut keys = Map::new();
            for name in names {
                let given = item.get(name.as_ref()).cloned();
                let value = given.or_else(|| element.and_then(|element| element.default_of(name)));
                keys.insert(name.to_string(), value.unwrap_or(Value::Null));
            }
            keys.retain(|_, value| !value.is_null());
            Step::Key(Value::Object(keys).to_string())
        }
        _ => Step::Value(item.to_string()),
    }
}

/// What changed from one value to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Paths that are new, containers included.
    pub added: FieldSet,
    /// Paths whose value is another.
    pub modified: FieldSet,
    /// Paths that are gone.
    pub removed: FieldSet,
}

impl Comparison {
    /// Compares two values.
    pub fn of<'s, S: Shape<'s>>(old: &Value, new: &Value, shape: Option<S>) -> Self {
        let mut found = Self::default();
        if let (Value::Object(old), Value::Object(new)) = (old, new) {
            for (name, item) in new {
                let before = old.get(name);
                if before != Some(item) {
                    found.differs(Step::Field(name.clone()), before, item, descend(shape, name));
                }
            }
            for (name, item) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
                found.lost(Step::Field(name.clone()), item, descend(shape, name));
            }
            return found;
        }
        let before: BTreeMap<Step, &Value> =
            steps(old, shape).into_iter().map(|(step, item, ..)| (step, item)).collect();
        let mut seen = BTreeSet::new();
        for (step, item, place, _) in steps(new, shape) {
            let before = before.get(&step).copied();
            if before != Some(item) {
                found.differs(step.clone(), before, item, place);
            }
            seen.insert(step);
        }
        for (step, item, place, _) in steps(old, shape) {
            if !seen.contains(&step) {
                found.lost(step, item, place);
            }
        }
        found
    }

    /// Adds a part that is new or has become another.
    fn differs<'s, S: Shape<'s>>(&mut self, step: Step, old: Option<&Value>, new: &Value, place: Option<S>) {
        match old {
            None => self.added.gain(step, new, place),
            Some(old) if is_granular(old, place) && is_granular(new, place) && same_kind(old, new) => {
                let below = Self::of(old, new, place);
                self.added.put_child(step.clone(), below.added);
                self.modified.put_child(step.clone(), below.modified);
                self.removed.put_child(step, below.removed);
            }
            Some(_) => {
                self.modified.members.insert(step);
            }
        }
    }

    /// Adds a part that is gone.
    fn lost<'s, S: Shape<'s>>(&mut self, step: Step, old: &Value, place: Option<S>) {
        self.removed.put_child(step.clone(), everything(old, place));
        self.removed.members.insert(step);
    }
}

impl FieldSet {
    /// Adds what is new at a step, with everything below. A struct is there even where nothing in it is said: only its
    /// fields can be gained, so that nobody owns a `spec`.
    fn gain<'s, S: Shape<'s>>(&mut self, step: Step, value: &Value, shape: Option<S>) {
        let parts = if is_granular(value, shape) { steps(value, shape) } else { Vec::new() };
        let is_struct = |shape: S| value.is_object() && shape.element().is_none() && is_declared(&step);
        if parts.is_empty() || !shape.is_some_and(is_struct) {
            self.members.insert(step.clone());
        }
        let mut below = Self::default();
        for (step, item, place, _) in parts {
            below.gain(step, item, place);
        }
        self.put_child(step, below);
    }
}

/// Items of lists are owned themselves, whatever they are.
fn is_declared(step: &Step) -> bool {
    matches!(step, Step::Field(_))
}

fn same_kind(one: &Value, other: &Value) -> bool {
    one.is_object() == other.is_object()
}

/// Every path below a value, containers included.
fn everything<'s, S: Shape<'s>>(value: &Value, shape: Option<S>) -> FieldSet {
    let mut set = FieldSet::default();
    if is_granular(value, shape) {
        for (step, item, place, _) in steps(value, shape) {
            set.members.insert(step.clone());
            set.put_child(step, everything(item, place));
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::super::testing::Place;
    use super::*;
    use serde_json::json;

    #[test]
    fn the_set_of_an_object_has_upstreams_form() {
        let object = json!({
            "metadata": {"labels": {"app": "web"}, "finalizers": ["a"]},
            "spec": {"selector": {"app": "web"}, "containers": [{"name": "c", "image": "i", "args": ["x"], "ports": [{"containerPort": 80}]}]},
        });
        let set = FieldSet::of(&object, Some(Place::Object));
        let wanted = json!({
            "f:metadata": {"f:labels": {"f:app": {}}, "f:finalizers": {"v:\"a\"": {}}},
            "f:spec": {"f:selector": {}, "f:containers": {"k:{\"name\":\"c\"}": {
                ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
            }}},
        });
        assert_eq!(set.to_json(), wanted);
        assert_eq!(FieldSet::from_json(&wanted), set);
    }

    #[test]
    fn comparisons_name_what_changed() {
        let old = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        let new = json!({"metadata": {"labels": {"a": "9"}, "annotations": {"x": "y"}}});
        let found = Comparison::of(&old, &new, Some(Place::Object));
        assert_eq!(found.added.to_json(), json!({"f:metadata": {"f:annotations": {".": {}, "f:x": {}}}}));
        assert_eq!(found.modified.to_json(), json!({"f:metadata": {"f:labels": {"f:a": {}}}}));
        assert_eq!(found.removed.to_json(), json!({"f:metadata": {"f:labels": {"f:b": {}}}}));
    }

    #[test]
    fn fields_of_structs_are_gained_and_not_the_structs() {
        let new = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let found = Comparison::of(&json!({}), &new, Some(Place::Object));
        let wanted = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:containers": {".": {}, "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}},
        });
        assert_eq!(found.added.to_json(), wanted);
    }

    #[test]
    fn the_written_form_is_compared_with_as_it_is() {
        let written =
            json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}, "f:d": {"k:{\"name\":\"x\"}": {"f:e": {}}}});
        let share = |set: Value| {
            let share = FieldSet::from_json(&set).share_of(&written);
            (share.some, share.all)
        };
        assert_eq!(share(json!({})), (false, true));
        assert_eq!(share(written.clone()), (true, true));
        assert_eq!(share(json!({"f:b": {"f:c": {}}})), (true, true));
        assert_eq!(share(json!({"f:b": {"f:c": {}, "f:x": {}}})), (true, false));
        // `d` itself is not in the set, only what is in it.
        assert_eq!(share(json!({"f:d": {}})), (false, false));
        assert_eq!(share(json!({"f:d": {"k:{\"name\":\"x\"}": {"f:e": {}}}})), (true, true));
        assert_eq!(share(json!({"f:a": {"f:x": {}}, "f:z": {}})), (false, false));
    }

    #[test]
    fn sets_add_up() {
        let one = FieldSet::from_json(&json!({"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}));
        let two = FieldSet::from_json(&json!({"f:b": {".": {}, "f:c": {}}}));
        assert_eq!(one.intersection(&two).to_json(), json!({"f:b": {"f:c": {}}}));
        assert_eq!(one.clone().difference(&two).to_json(), json!({"f:a": {}, "f:b": {"f:d": {}}}));
        assert_eq!(one.clone().union(two).difference(&one).to_json(), json!({"f:b": {}}));
        assert_eq!(one.paths(), [".a", ".b.c", ".b.d"]);
    }
}
