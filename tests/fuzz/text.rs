//! Short texts with a grammar of their own: selectors, quantities, paths, schedules, expressions.

use std::collections::BTreeMap;

use api::cel::{Budget, Program, Variables};
use api::cron::Schedule;
use api::custom::JsonPath;
use api::quantity::Quantity;
use api::selectors::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

use crate::halves;

/// Upstream's limit of one expression.
const CEL_COST: u64 = 100_000;

/// A selector of labels or of fields.
pub(crate) fn selectors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let labels: BTreeMap<String, String> = [("a", "b"), ("example.com/c", "")]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Ok(selector) = LabelSelector::parse(text) {
        selector.matches(&labels);
        assert!(!selector.is_empty() || selector.matches(&BTreeMap::new()), "an empty selector selects all");
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        selector.matches(|field| field.to_owned());
        selector.exact("metadata.name");
    }
}

/// A quantity, a schedule, a printer column's path.
pub(crate) fn scalars(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(quantity) = text.parse::<Quantity>() {
        let written = quantity.to_string();
        let again: Quantity = written.parse().expect("what was written is read");
        assert_eq!(written, again.to_string(), "a quantity has one canonical form");
        quantity.plus(again).minus(again).milli_value();
    }
    let _ = Schedule::parse(text);
    if let Ok(path) = JsonPath::parse(text) {
        path.find(&json!({ "a": [{ "b": 1 }, { "b": { "c": "d" } }], "x.y/z": true }));
        path.fields();
    }
}

/// An expression and, after a zero, the object that it is about.
pub(crate) fn cel(data: &[u8]) {
    let (source, object) = halves(data);
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(program) = Program::compile(source, &["self", "oldSelf"]) else { return };
    let object = serde_json::from_slice::<Value>(object)
        .unwrap_or_else(|_| json!({ "a": [1, 2.5, "x", null, true], "b": { "c": "2026-01-01T00:00:00Z" } }));
    let variables = Variables::default().json("self", &object).json("oldSelf", &object);
    let _ = program.run(&variables, &mut Budget::new(CEL_COST));
}
