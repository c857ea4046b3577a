//! Label selectors: the two ways to write one agree, and the negation of a requirement selects the others.

use std::collections::BTreeMap;

use api::selectors::{LabelSelector, LabelSelectorSpec};
use serde_json::{Value, json};

use crate::Random;

const KEYS: [&str; 3] = ["a", "example.com/b", "c"];
const VALUES: [&str; 4] = ["1", "two", "", "x-y_z.0"];

fn labels(random: &mut Random) -> BTreeMap<String, String> {
    let chosen = random.some(&KEYS);
    chosen.into_iter().map(|key| (key.to_owned(), (*random.pick(&VALUES)).to_owned())).collect()
}

/// A requirement as text, as an expression, and its negation as text.
fn requirement(random: &mut Random) -> (String, Value, String) {
    let key = *random.pick(&KEYS);
    let mut values = random.some(&VALUES);
    if values.is_empty() {
        values.push("1");
    }
    // Nothing between the brackets is no value at all; a comma has an empty one at either side.
    let set = if values == [""] { ",".to_owned() } else { values.join(",") };
    let (within, without) = (format!("{key} in ({set})"), format!("{key} notin ({set})"));
    let expression =
        |operator: &str, values: &[&str]| json!({ "key": key, "operator": operator, "values": values });
    match random.below(4) {
        0 => (within, expression("In", &values), without),
        1 => (without, expression("NotIn", &values), within),
        2 => (key.to_owned(), expression("Exists", &[]), format!("!{key}")),
        _ => (format!("!{key}"), expression("DoesNotExist", &[]), key.to_owned()),
    }
}

#[test]
fn text_and_expressions_select_the_same_and_negations_the_others() {
    for seed in 0..2000 {
        let mut random = Random::new(seed);
        let (text, expression, negated) = requirement(&mut random);
        let (more, second, _) = requirement(&mut random);
        let spec: LabelSelectorSpec =
            serde_json::from_value(json!({ "matchExpressions": [expression, second] })).unwrap();
        let spec = LabelSelector::from_spec(&spec).unwrap();
        let parse =
            |text: &str| LabelSelector::parse(text).unwrap_or_else(|status| panic!("{text}: {status}"));
        let (one, other, both) = (parse(&text), parse(&negated), parse(&format!("{text}, {more}")));
        for _ in 0..8 {
            let labels = labels(&mut random);
            assert_ne!(one.matches(&labels), other.matches(&labels), "{text}: {labels:?}");
            assert_eq!(
                both.matches(&labels),
                one.matches(&labels) && parse(&more).matches(&labels),
                "{text}, {more}"
            );
            assert_eq!(both.matches(&labels), spec.matches(&labels), "{text}, {more}: {labels:?}");
            assert!(LabelSelector::from_labels(&labels).matches(&labels));
        }
    }
}
