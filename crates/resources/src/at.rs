//! A value with the path that leads to it, and the checks that many kinds ask of one field, in upstream's words.
//! Source: `core/validation/validation.go`, `apps/validation/validation.go`, `meta/v1/validation`.

use std::collections::HashSet;

use api::quantity::Quantity;
use api::selectors::{LabelSelector, LabelSelectorSpec};
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

pub(crate) const IMMUTABLE: &str = "field is immutable";
pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const POSITIVE: &str = "must be greater than 0";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                       regex used for validation is '[0-9]+%')";

/// A value under a path. Absent values are null; numbers and texts that are absent read as Go's zero values.
#[derive(Debug, Clone)]
pub(crate) struct At<'v> {
    pub(crate) value: &'v Value,
    pub(crate) path: String,
}

impl<'v> At<'v> {
    /// A whole object: its fields have no prefix.
    pub(crate) fn object(value: &'v Value) -> Self {
        Self { value, path: String::new() }
    }

    pub(crate) fn new(value: &'v Value, path: impl Into<String>) -> Self {
        Self { value, path: path.into() }
    }

    /// A member.
    pub(crate) fn get(&self, key: &str) -> Self {
        Self { value: tree::at(self.value, &[key]), path: self.child(key) }
    }

    /// A member's member, and so on.
    pub(crate) fn down(&self, keys: &[&str]) -> Self {
        keys.iter().fold(self.clone(), |at, key| at.get(key))
    }

    /// The path of a member.
    pub(crate) fn child(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> impl ExactSizeIterator<Item = Self> + use<'v> {
        let path = self.path.clone();
        let list = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(move |(index, value)| Self { value, path: format!("{path}[{index}]") })
    }

    /// The items of a member.
    pub(crate) fn each(&self, key: &str) -> impl ExactSizeIterator<Item = Self> + use<'v> {
        self.get(key).items()
    }

    /// The entries of a map: `path[key]`.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'v str, Self)> + use<'v> {
        let path = self.path.clone();
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| (key.as_str(), Self { value, path: format!("{path}[{key}]") }))
    }

    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether a member is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_set()
    }

    pub(crate) fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    pub(crate) fn number(&self) -> i64 {
        self.value.as_i64().unwrap_or(0)
    }

    pub(crate) fn truth(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    /// How many items or entries.
    pub(crate) fn len(&self) -> usize {
        self.value.as_array().map_or(0, Vec::len).max(self.value.as_object().map_or(0, serde_json::Map::len))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts of a list.
    pub(crate) fn texts(&self) -> Vec<&'v str> {
        self.value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub(crate) fn quantity(&self) -> Option<Quantity> {
        match self.value {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.to_string().parse().ok(),
            _ => None,
        }
    }

    // What is wrong with it.

    pub(crate) fn required(&self, detail: &str) -> FieldError {
        FieldError::required(self.path.clone(), detail)
    }

    pub(crate) fn invalid(&self, detail: &str) -> FieldError {
        FieldError::invalid(self.path.clone(), self.value, detail)
    }

    /// As [`At::invalid`], but a text that is absent shows as the empty one.
    pub(crate) fn invalid_text(&self, detail: &str) -> FieldError {
        FieldError::invalid(self.path.clone(), &json!(self.text()), detail)
    }

    pub(crate) fn invalid_number(&self, detail: &str) -> FieldError {
        FieldError::invalid(self.path.clone(), &json!(self.number()), detail)
    }

    /// `Invalid value: detail`, where upstream leaves the value out.
    pub(crate) fn wrong(&self, detail: &str) -> FieldError {
        FieldError::invalid_unshown(self.path.clone(), detail)
    }

    pub(crate) fn forbidden(&self, detail: &str) -> FieldError {
        FieldError::forbidden(self.path.clone(), detail)
    }

    pub(crate) fn duplicate(&self) -> FieldError {
        FieldError::duplicate(self.path.clone(), self.value)
    }

    pub(crate) fn too_many(&self, most: usize) -> FieldError {
        FieldError::too_many(self.path.clone(), self.len(), most)
    }

    pub(crate) fn too_long(&self, bytes_max: usize) -> FieldError {
        FieldError::too_long(self.path.clone(), bytes_max)
    }

    pub(crate) fn not_supported(&self, known: &[&str]) -> FieldError {
        let shown = if self.is_set() { self.value.clone() } else { json!("") };
        FieldError::not_supported(self.path.clone(), &shown, known)
    }

    // Checks.

    /// Zero or more, if set.
    pub(crate) fn not_negative(&self, errors: &mut FieldErrors) {
        if self.number() < 0 {
            errors.push(self.invalid(NOT_NEGATIVE));
        }
    }

    /// Within a range, if set.
    pub(crate) fn between(&self, least: i64, most: i64, errors: &mut FieldErrors) {
        if self.value.as_i64().is_some_and(|number| !(least..=most).contains(&number)) {
            errors.push(self.invalid(&in_range(least, most)));
        }
    }

    /// A port's number.
    pub(crate) fn port(&self, errors: &mut FieldErrors) {
        if !(1..=65535).contains(&self.number()) {
            errors.push(self.invalid_number(&in_range(1, 65535)));
        }
    }

    /// One of the known values; whatever else, also nothing, is unsupported.
    pub(crate) fn one_of(&self, known: &[&str], errors: &mut FieldErrors) {
        if !known.contains(&self.text()) {
            errors.push(self.not_supported(known));
        }
    }

    /// One of the known values, if set.
    pub(crate) fn one_of_if_set(&self, known: &[&str], errors: &mut FieldErrors) {
        if self.is_set() {
            self.one_of(known, errors);
        }
    }

    /// A text that is there.
    pub(crate) fn present(&self, detail: &str, errors: &mut FieldErrors) -> bool {
        let there = !self.text().is_empty();
        if !there {
            errors.push(self.required(detail));
        }
        there
    }

    /// A name under a rule.
    pub(crate) fn name(&self, rule: NameRule, errors: &mut FieldErrors) {
        for detail in names::name_problems(rule, self.text()) {
            errors.push(self.invalid_text(&detail));
        }
    }

    /// A name under a rule, if there is one.
    pub(crate) fn name_if_set(&self, rule: NameRule, errors: &mut FieldErrors) {
        if !self.text().is_empty() {
            self.name(rule, errors);
        }
    }

    /// A name under a rule that must be there.
    pub(crate) fn named(&self, rule: NameRule, errors: &mut FieldErrors) {
        if self.present("", errors) {
            self.name(rule, errors);
        }
    }

    /// A label's key.
    pub(crate) fn label_key(&self, errors: &mut FieldErrors) {
        for detail in names::qualified_name_problems(self.text()) {
            errors.push(self.invalid_text(&detail));
        }
    }

    /// A label's value.
    pub(crate) fn label_value(&self, errors: &mut FieldErrors) {
        for detail in names::label_value_problems(self.text()) {
            errors.push(self.invalid_text(&detail));
        }
    }

    /// `example.com/path`, as `IsDomainPrefixedPath`.
    pub(crate) fn domain_path(&self, errors: &mut FieldErrors) {
        if !self.present("", errors) {
            return;
        }
        let (host, path) = self.text().split_once('/').unwrap_or_default();
        if host.is_empty() || path.is_empty() {
            errors.push(self.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
            return;
        }
        At::new(&json!(host), self.path.clone()).name(NameRule::Subdomain, errors);
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
        if !path.bytes().all(fits) {
            let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
            errors.push(FieldError::invalid(self.path.clone(), &json!(path), detail));
        }
    }

    /// The keys and values of labels.
    pub(crate) fn labels(&self, errors: &mut FieldErrors) {
        names::check_labels(self.value, &self.path, errors);
    }

    /// A label selector, if set.
    pub(crate) fn selector(&self, errors: &mut FieldErrors) {
        self.get("matchLabels").labels(errors);
        for expression in self.each("matchExpressions") {
            let values = expression.get("values");
            match expression.get("operator").text() {
                "In" | "NotIn" if values.is_empty() => {
                    errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(values.forbidden(detail));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                _ => {
                    let detail = "not a valid selector operator";
                    errors.push(expression.get("operator").invalid_text(detail));
                }
            }
            expression.get("key").label_key(errors);
            values.items().for_each(|value| value.label_value(errors));
        }
    }

    /// Whether a selector says nothing.
    pub(crate) fn selects_all(&self) -> bool {
        self.get("matchLabels").is_empty() && self.get("matchExpressions").is_empty()
    }

    /// The selector; nothing where it cannot be understood. One that is absent matches nothing.
    pub(crate) fn parsed_selector(&self) -> Option<LabelSelector> {
        let spec: LabelSelectorSpec = serde_json::from_value(self.value.clone()).ok()?;
        LabelSelector::from_spec(&spec).ok()
    }

    /// A number that is not negative, or a percentage.
    pub(crate) fn int_or_percent(&self, errors: &mut FieldErrors) {
        match self.value {
            Value::String(_) if self.percent().is_none() => errors.push(self.invalid(PERCENT)),
            Value::String(_) => {}
            _ => self.not_negative(errors),
        }
    }

    /// `n` of `n%`.
    pub(crate) fn percent(&self) -> Option<u64> {
        let digits = self.value.as_str()?.strip_suffix('%')?;
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        whole.then(|| digits.parse().unwrap_or(u64::MAX))
    }

    /// The number or the percentage.
    pub(crate) fn amount(&self) -> u64 {
        self.percent().unwrap_or_else(|| self.number().max(0).unsigned_abs())
    }

    /// A percentage is of the whole at most.
    pub(crate) fn at_most_all(&self, errors: &mut FieldErrors) {
        if self.percent().is_some_and(|percent| percent > 100) {
            errors.push(self.invalid("must not be greater than 100%"));
        }
    }

    /// A quantity that is not negative, if set.
    pub(crate) fn not_negative_quantity(&self, errors: &mut FieldErrors) {
        if self.quantity().is_some_and(|quantity| quantity.is_negative()) {
            errors.push(self.invalid(NOT_NEGATIVE));
        }
    }

    /// The same as before.
    pub(crate) fn unchanged(&self, before: &Self, errors: &mut FieldErrors) {
        if self.value != before.value {
            errors.push(self.invalid(IMMUTABLE));
        }
    }

    /// The members of these names are the same as before.
    pub(crate) fn keeps(&self, before: &Self, names: &[&str], errors: &mut FieldErrors) {
        for name in names {
            self.get(name).unchanged(&before.get(name), errors);
        }
    }

    /// `metav1.Condition`s.
    pub(crate) fn conditions(&self, errors: &mut FieldErrors) {
        let mut seen: HashSet<&str> = HashSet::new();
        for condition in self.items() {
            let kind = condition.get("type").text();
            if seen.contains(&kind) {
                errors.push(FieldError::duplicate(condition.path.clone(), &json!(kind)));
            }
            seen.insert(kind);
            if condition.get("type").present("is required", errors) {
                condition.get("type").label_key(errors);
            }
            let status = condition.get("status");
            if status.present("", errors) {
                status.one_of(&["False", "True", "Unknown"], errors);
            }
            if condition.get("observedGeneration").number() < 0 {
                let detail = "must be greater than or equal to zero";
                errors.push(condition.get("observedGeneration").invalid(detail));
            }
            if !condition.has("lastTransitionTime") {
                errors.push(condition.get("lastTransitionTime").required(""));
            }
            condition.get("reason").present("", errors);
        }
    }
}

/// `must be between n and m, inclusive`
pub(crate) fn in_range(least: i64, most: i64) -> String {
    format!("must be between {least} and {most}, inclusive")
}

/// Runs a check over an object and says what it found, `field: message` each, for tests.
#[cfg(test)]
pub(crate) fn said(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
}
