//! Which of its names a definition gets, and the conditions that say so. Pure.
//! Source: `apiextensions-apiserver/pkg/controller/status/naming_controller.go`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::approval::{self, Approval};
use crate::tree;

/// A definition's names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Names {
    plural: String,
    singular: String,
    short: Vec<String>,
    kind: String,
    list_kind: String,
    categories: Vec<String>,
}

/// The names that other definitions of the group have.
#[derive(Debug, Default)]
pub(super) struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Taken {
    pub(super) fn of<'n>(names: impl Iterator<Item = &'n Names>) -> Self {
        let mut taken = Self::default();
        for names in names {
            taken.resources.extend([&names.plural, &names.singular].into_iter().chain(&names.short).cloned());
            taken.kinds.extend([&names.kind, &names.list_kind].map(Clone::clone));
        }
        // What has no name takes none.
        taken.resources.remove("");
        taken.kinds.remove("");
        taken
    }
}

impl Names {
    fn read(names: &Value) -> Self {
        let text = |field: &str| tree::text(names, &[field]).to_owned();
        let texts = |field: &str| {
            tree::items(names, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            plural: text("plural"),
            singular: text("singular"),
            short: texts("shortNames"),
            kind: text("kind"),
            list_kind: text("listKind"),
            categories: texts("categories"),
        }
    }

    /// The names that a definition has.
    pub(super) fn accepted(crd: &Value) -> Self {
        Self::read(tree::at(crd, &["status", "acceptedNames"]))
    }

    /// The names that a definition asks for.
    pub(super) fn wanted(crd: &Value) -> Self {
        Self::read(tree::at(crd, &["spec", "names"]))
    }

    /// Whether all of what is wanted is there.
    pub(super) fn has_all(&self, wanted: &Self) -> bool {
        self == wanted
    }

    /// Whether one of these names is not among the later ones.
    pub(super) fn gives_back(&self, later: &Self) -> bool {
        let (before, after) = (Taken::of([self].into_iter()), Taken::of([later].into_iter()));
        !before.resources.is_subset(&after.resources) || !before.kinds.is_subset(&after.kinds)
    }

    fn to_json(&self) -> Value {
        let mut names = json!({"plural": self.plural, "kind": self.kind});
        for (field, text) in [("singular", &self.singular), ("listKind", &self.list_kind)] {
            if !text.is_empty() {
                names[field] = text.as_str().into();
            }
        }
        for (field, texts) in [("shortNames", &self.short), ("categories", &self.categories)] {
            if !texts.is_empty() {
                names[field] = json!(texts);
            }
        }
        names
    }
}

/// Whether a condition of a definition is true.
pub(super) fn holds(crd: &Value, condition: &str) -> bool {
    find(crd, condition).is_some_and(|condition| condition["status"] == "True")
}

fn find<'c>(crd: &'c Value, condition: &str) -> Option<&'c Value> {
    tree::items(crd, &["status", "conditions"]).iter().find(|one| one["type"] == condition)
}

/// Tells by a condition what keeps a definition's schemas from being structural; whether anything changed.
/// Source: `pkg/controller/nonstructuralschema`.
pub(super) fn tell_structure(crd: &Value, status: &mut Value, now: &str) -> bool {
    const CONDITION: &str = "NonStructuralSchema";
    let told = find(crd, CONDITION).map(|condition| tree::text(condition, &["message"]));
    let violations = violations(tree::at(crd, &["spec"]));
    match (&violations, told) {
        (None, None) => false,
        (Some(violations), Some(told)) if violations == told => false,
        (Some(violations), _) => {
            set(status, CONDITION, true, "Violations", violations, now);
            true
        }
        (None, Some(_)) => {
            if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
                conditions.retain(|one| one["type"] != CONDITION);
            }
            true
        }
    }
}

/// What is not structural of a definition, as upstream's errors are told together.
fn violations(spec: &Value) -> Option<String> {
    let preserves = spec["preserveUnknownFields"] == true;
    let mut all: Vec<String> = Vec::new();
    if preserves {
        all.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_owned());
    }
    // Only such definitions were let in without being structural.
    for (index, version) in tree::items(spec, &["versions"]).iter().enumerate().filter(|_| preserves) {
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        let schema = tree::at(version, &["schema", "openAPIV3Schema"]);
        let causes = if schema.is_null() { Vec::new() } else { api::custom::check_structure(&path, schema) };
        for cause in causes {
            let text = format!("{}: {}", cause.field, cause.message);
            if !all.contains(&text) {
                all.push(text);
            }
        }
    }
    match all.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("[{}]", several.join(", "))),
    }
}

/// The status of a definition, if it has to become another one.
pub(super) fn decide(crd: &Value, taken: &Taken, now: &str) -> Option<Value> {
    let (wanted, accepted) = (Names::wanted(crd), Names::accepted(crd));
    let mut names = accepted.clone();
    let mut conflict: Option<(&str, String)> = None;
    let mut claim = |wanted: &String, has: &String, taken: &HashSet<String>, reason: &'static str| {
        let free = wanted == has || !taken.contains(wanted);
        if !free {
            conflict = Some((reason, format!("{wanted:?} is already in use")));
        }
        free
    };
    if claim(&wanted.plural, &accepted.plural, &taken.resources, "PluralConflict") {
        names.plural.clone_from(&wanted.plural);
    }
    if claim(&wanted.singular, &accepted.singular, &taken.resources, "SingularConflict") {
        names.singular.clone_from(&wanted.singular);
    }
    let in_use: Vec<String> = wanted
        .short
        .iter()
        .filter(|short| !accepted.short.contains(short) && taken.resources.contains(*short))
        .map(|short| format!("{short:?} is already in use"))
        .collect();
    if in_use.is_empty() {
        names.short.clone_from(&wanted.short);
    }
    if claim(&wanted.kind, &accepted.kind, &taken.kinds, "KindConflict") {
        names.kind.clone_from(&wanted.kind);
    }
    if claim(&wanted.list_kind, &accepted.list_kind, &taken.kinds, "ListKindConflict") {
        names.list_kind.clone_from(&wanted.list_kind);
    }
    names.categories = wanted.categories;
    if conflict.is_none() && !in_use.is_empty() {
        let all =
            if let [one] = in_use.as_slice() { one.clone() } else { format!("[{}]", in_use.join(", ")) };
        conflict = Some(("ShortNamesConflict", all));
    }
    let mut status = tree::at(crd, &["status"]).clone();
    let before = status.clone();
    tree::members(&mut status).insert("acceptedNames".into(), names.to_json());
    let established = holds(crd, "Established");
    match &conflict {
        Some((reason, message)) => set(&mut status, "NamesAccepted", false, reason, message, now),
        None => set(&mut status, "NamesAccepted", true, "NoConflicts", "no conflicts found", now),
    }
    match (&conflict, established) {
        (_, true) => {}
        (None, false) => {
            let message = "the initial names have been accepted";
            set(&mut status, "Established", true, "InitialNamesAccepted", message, now);
        }
        (Some(_), false) => {
            set(&mut status, "Established", false, "NotAccepted", "not all names are accepted", now);
        }
    }
    if let Some(approval) = Approval::of(crd) {
        let (holds, reason) = approval.condition();
        set(&mut status, approval::CONDITION, holds, reason, &approval.message(), now);
    }
    (status != before).then_some(status)
}

/// Sets a condition; its time moves only where its status does.
pub(super) fn set(status: &mut Value, kind: &str, holds: bool, reason: &str, message: &str, now: &str) {
    let holds = if holds { "True" } else { "False" };
    let conditions = tree::member(status, "conditions");
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Value::Array(conditions) = conditions else { return };
    let fresh = json!({"type": kind, "status": holds, "lastTransitionTime": now, "reason": reason, "message": message});
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(condition) => {
            let since = if condition["status"] == holds {
                condition["lastTransitionTime"].clone()
            } else {
                now.into()
            };
            *condition = fresh;
            condition["lastTransitionTime"] = since;
        }
        None => conditions.push(fresh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(kind: &str, plural: &str, short: &[&str]) -> Value {
        json!({"spec": {"group": "g", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    #[test]
    fn names_are_accepted_once() {
        let mut first = crd("Widget", "widgets", &["w"]);
        first["status"] = decide(&first, &Taken::default(), "t").expect("a status");
        assert!(holds(&first, "NamesAccepted") && holds(&first, "Established"));
        assert_eq!(first["status"]["acceptedNames"]["shortNames"], json!(["w"]));
        let names = Names::accepted(&first);
        assert!(names.has_all(&Names::wanted(&first)));
        let taken = Taken::of([&names].into_iter());
        assert_eq!(decide(&first, &Taken::default(), "later"), None);

        for (other, reason, message) in [
            (crd("Widget", "others", &[]), "KindConflict", "\"WidgetList\" is already in use"),
            (crd("Other", "others", &["w"]), "ShortNamesConflict", "\"w\" is already in use"),
        ] {
            let status = decide(&other, &taken, "t").expect("a status");
            let condition = &status["conditions"][0];
            assert_eq!(condition["status"], "False");
            assert!(reason == condition["reason"] || condition["reason"] == "ListKindConflict");
            assert_eq!(condition["message"], message);
            assert_eq!(status["conditions"][1]["reason"], "NotAccepted");
            let mut freed = other.clone();
            freed["status"] = status;
            let status = decide(&freed, &Taken::default(), "t2").expect("a status");
            assert_eq!(
                (&status["conditions"][1]["status"], &status["conditions"][1]["lastTransitionTime"]),
                (&json!("True"), &json!("t2"))
            );
        }
        assert!(names.gives_back(&Names::default()) && !Names::default().gives_back(&names));
    }
}
