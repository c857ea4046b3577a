//! Kinds whose strategy is data: rules for the name, for writes without a version and for the generation, fields that
//! stay, and checks.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{LabelNeeded, NameRule, Strategy};
use apiserver::tree;
use jiff::Timestamp;
use serde_json::Value;

use crate::at::At;

/// Checks of one object.
pub(crate) type Check = fn(&At<'_>, &mut FieldErrors);
/// Checks of a change: the object after and before it.
pub(crate) type Compare = fn(&At<'_>, &At<'_>, &mut FieldErrors);

/// A strategy as a row.
#[derive(Clone, Copy)]
pub(crate) struct Simple {
    pub(crate) names: NameRule,
    pub(crate) generation: bool,
    pub(crate) create_on_update: bool,
    pub(crate) unconditional_update: bool,
    /// Defaults that depend on other fields.
    pub(crate) default: fn(&mut Value),
    /// Moments that are the present one, given the object before a change.
    pub(crate) date: fn(&mut Value, Option<&Value>, Timestamp),
    /// What is wrong with an object.
    pub(crate) check: Check,
    /// What is wrong with a spec that is new: one that was stored when more was allowed may stay as it is.
    pub(crate) fresh: Check,
    /// What is wrong with a change.
    pub(crate) compare: Compare,
    /// Before a change of the status: what it leaves behind goes.
    pub(crate) prepare_status: fn(&mut Value, &Value),
    /// What is wrong with a change of the status.
    pub(crate) status: Compare,
    /// The label that a namespace must have for what is written to a subresource (or the object itself), and was there
    /// before or not.
    pub(crate) label_needed: fn(&str, &At<'_>, Option<&At<'_>>) -> Option<LabelNeeded>,
    /// Fields that an update leaves as they were: paths from the object.
    pub(crate) frozen: &'static [&'static [&'static str]],
    /// Whether its checks may take long.
    pub(crate) lengthy: bool,
    pub(crate) warnings: fn(&At<'_>) -> Vec<String>,
    /// Whether what is wrong was allowed in a version.
    pub(crate) forgives: fn(&str, &FieldError) -> bool,
}

impl Simple {
    /// No generation and nothing of its own.
    pub(crate) const PLAIN: Self = Self {
        names: NameRule::Subdomain,
        generation: false,
        create_on_update: false,
        unconditional_update: true,
        default: |_| {},
        date: |_, _, _| {},
        check: |_, _| {},
        fresh: |_, _| {},
        compare: |_, _, _| {},
        prepare_status: |_, _| {},
        status: |_, _, _| {},
        label_needed: |_, _, _| None,
        frozen: &[],
        lengthy: false,
        warnings: |_| Vec::new(),
        forgives: |_, _| false,
    };
    /// A generation and nothing else.
    pub(crate) const COUNTED: Self = Self { generation: true, ..Self::PLAIN };
    /// As [`Simple::COUNTED`], and an update names the version that it changes.
    pub(crate) const VERSIONED: Self = Self { unconditional_update: false, ..Self::COUNTED };
}

impl Strategy for Simple {
    fn name_rule(&self) -> NameRule {
        self.names
    }

    fn generation(&self) -> bool {
        self.generation
    }

    fn create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn date(&self, object: &mut Value, old: Option<&Value>, now: Timestamp) {
        (self.date)(object, old, now);
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        (self.check)(&At::object(object), errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        (self.fresh)(&At::object(object), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (after, before) = (At::object(new), At::object(old));
        if after.get("spec").value != before.get("spec").value {
            (self.fresh)(&after, errors);
        }
        for path in self.frozen {
            after.down(path).unchanged(&before.down(path), errors);
        }
        (self.compare)(&after, &before, errors);
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        (self.prepare_status)(new, old);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        (self.status)(&At::object(new), &At::object(old), errors);
    }

    fn label_needed(&self, subresource: &str, new: &Value, old: Option<&Value>) -> Option<LabelNeeded> {
        let old = old.map(At::object);
        (self.label_needed)(subresource, &At::object(new), old.as_ref())
    }

    fn validation_is_lengthy(&self) -> bool {
        self.lengthy
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        (self.warnings)(&At::object(object))
    }

    fn forgives(&self, version: &str, error: &FieldError) -> bool {
        (self.forgives)(version, error)
    }
}

/// A kind with a generation whose parts may stay as they were stored when more was allowed: its checks see what was there
/// before a change.
#[derive(Clone, Copy)]
pub(crate) struct Ratcheting {
    /// Moments that are the present one where there are none.
    pub(crate) date: fn(&mut Value, Timestamp),
    /// What is wrong with an object, which was another one before (absent: it is new).
    pub(crate) check: fn(&At<'_>, Option<&At<'_>>, &mut FieldErrors),
    /// Fields that an update leaves as they were: paths from the object.
    pub(crate) frozen: &'static [&'static [&'static str]],
    /// Whether its checks may take long.
    pub(crate) lengthy: bool,
}

impl Strategy for Ratcheting {
    fn date(&self, object: &mut Value, _old: Option<&Value>, now: Timestamp) {
        (self.date)(object, now);
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        (self.check)(&At::object(object), None, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (after, before) = (At::object(new), At::object(old));
        (self.check)(&after, Some(&before), errors);
        for path in self.frozen {
            after.down(path).unchanged(&before.down(path), errors);
        }
    }

    fn validation_is_lengthy(&self) -> bool {
        self.lengthy
    }
}

/// Puts a default in every item of a list under `path`.
pub(crate) fn each_mut<'v>(value: &'v mut Value, path: &[&str]) -> impl Iterator<Item = &'v mut Value> {
    let list = path.iter().try_fold(value, |value, key| value.get_mut(*key));
    list.and_then(Value::as_array_mut).into_iter().flatten().filter(|item| item.is_object())
}

/// Sets a member that is absent, null or Go's zero.
pub(crate) fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    let slot = tree::member(value, key);
    if slot.is_null() || *slot == 0 || *slot == "" {
        *slot = default.into();
    }
}
