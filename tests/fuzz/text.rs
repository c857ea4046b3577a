//! Short texts with a grammar of their own: selectors, quantities, paths, schedules, expressions.

use std::collections::BTreeMap;

use api::cel::{Budget, Composition, Environment, Program, Type, Variables};
use api::cron::Schedule;
use api::custom::JsonPath;
use api::quantity::Quantity;
use api::selectors::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

use crate::halves;

/// A tenth of upstream's limit of one expression: it is run without optimization.
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

/// Expressions and, after a zero, the object that they are about. A line with nothing but `;` ends one; all but the last
/// are variables `v0`, `v1`, … of those behind them.
pub(crate) fn cel(data: &[u8]) {
    let (sources, object) = halves(data);
    let Ok(sources) = std::str::from_utf8(sources) else { return };
    let object = serde_json::from_slice::<Value>(object)
        .unwrap_or_else(|_| json!({ "a": [1, 2.5, "x", null, true], "b": { "c": "2026-01-01T00:00:00Z" } }));
    let mut environment = Environment::default()
        .with("self", Type::Dyn)
        .with("oldSelf", Type::Dyn)
        .composed([])
        .patching()
        .binding();
    let mut composition = Composition::default();
    let mut budget = Budget::new(CEL_COST);
    for (place, source) in sources.split("\n;\n").enumerate() {
        let name = format!("v{place}");
        let checked = environment.compose(&name, source);
        let program = Program::compile(source, &["self", "oldSelf", "variables"]);
        if let (Ok(program), Ok(())) = (&program, checked) {
            let variables = Variables::default().json("self", &object).json("oldSelf", &object);
            let variables = variables.composed(&composition).patching();
            if let Ok(value) = budget.call(|budget| program.run(&variables, budget)) {
                let _ = value.check_made("Object", &mut budget);
                let _ = value.to_json(&mut budget);
            }
        }
        composition.add(&name, program);
    }
}
