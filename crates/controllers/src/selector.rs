//! Label selectors as objects carry them, asked directly.

use std::collections::BTreeMap;

pub use api::selectors::LabelSelectorSpec as LabelSelector;
use api::selectors::Requirement;

/// Questions to an object's selector.
pub trait Select {
    /// Whether it asks for nothing at all, and so selects everything.
    fn is_empty(&self) -> bool;
    /// Whether labels satisfy it. An expression that makes no sense is satisfied by nothing.
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool;
}

impl Select for LabelSelector {
    fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        is_subset(&self.match_labels, labels)
            && self.match_expressions.iter().all(|expression| {
                Requirement::from_expression(expression).is_ok_and(|requirement| requirement.matches(labels))
            })
    }
}

/// Whether `labels` holds every entry of `wanted`.
pub fn is_subset(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A selector as Go prints it in messages: `nil`, or the generated text of `metav1.LabelSelector`.
pub(crate) fn go_text(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".into() };
    let labels: String =
        selector.match_labels.iter().map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions: String = selector
        .match_expressions
        .iter()
        .map(|one| {
            let values = one.values.join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                one.key, one.operator
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

/// A selector as requests carry it; none is empty. Source: `labels.Requirement.String`.
pub(crate) fn query_text(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return String::new() };
    let labels = selector.match_labels.iter().map(|(key, value)| (key, format!("{key}={value}")));
    let expressions = selector.match_expressions.iter().map(|one| {
        let mut values = one.values.clone();
        values.sort_unstable();
        let (key, values) = (&one.key, values.join(","));
        let text = match one.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.clone(),
            _ => format!("!{key}"),
        };
        (key, text)
    });
    let mut terms: Vec<_> = labels.chain(expressions).collect();
    terms.sort_by_key(|(key, _)| *key);
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_read_as_go_prints_them() {
        let selector: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": { "a": "b" },
            "matchExpressions": [{ "key": "k", "operator": "In", "values": ["x", "y"] }],
        }))
        .unwrap();
        let text = "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement\
                    {LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},}";
        assert_eq!(go_text(Some(&selector)), text);
        assert_eq!(go_text(None), "nil");
        assert_eq!((query_text(Some(&selector)).as_str(), query_text(None).as_str()), ("a=b,k in (x,y)", ""));
    }
}
