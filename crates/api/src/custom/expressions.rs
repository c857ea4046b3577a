//! The rules of a schema, as a definition is written: their expressions are compiled and their types checked against the
//! schema. Source: `apis/apiextensions/validation.ValidateCustomResourceDefinitionOpenAPISchema`,
//! `apiextensions-apiserver/pkg/apiserver/schema/cel/compilation.go`.

use std::sync::Arc;

use serde_json::json;

use super::causes;
use super::props::{Props, Rule};
use super::rules;
use crate::cel::{Environment, Program, Type, cost, declared};
use crate::status::Cause;

/// What one expression may cost by its estimate, for all values that it is run on. Source: `StaticEstimatedCostLimit`.
const RULE_COST_MAX: u64 = 10_000_000;
/// What all of a schema may cost. Source: `StaticEstimatedCRDCostLimit`.
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// How many of the most expensive rules are told.
const EXPENSIVE_TOLD: usize = 4;

/// What is wrong with the rules of a schema that is valid apart from them; `path` is its own.
pub(super) fn check(schema: &Props, path: &str) -> Vec<Cause> {
    let mut rules = Rules::default();
    rules.visit(schema, path, Place { root: true, apart: None, count: Some(1) });
    if rules.total > SCHEMA_COST_MAX {
        rules.expensive.sort_by(|(_, one), (_, other)| other.cmp(one));
        for (path, _) in rules.expensive.iter().take(EXPENSIVE_TOLD) {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            rules.causes.push(causes::forbidden(path, detail));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        rules.causes.push(causes::forbidden(path, over_budget(what, rules.total, SCHEMA_COST_MAX)));
    }
    rules.causes
}

/// Source: `getCostErrorMessage`.
fn over_budget(what: &str, cost: u64, max: u64) -> String {
    let factor = cost as f64 / max as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Place<'p> {
    root: bool,
    /// The path of the schema within which old and new values do not belong together.
    apart: Option<&'p str>,
    /// How many values of it there are at most, where that is bounded.
    count: Option<u64>,
}

#[derive(Default)]
struct Rules {
    causes: Vec<Cause>,
    total: u64,
    /// What counts in the total, and its cost.
    expensive: Vec<(String, u64)>,
}

impl Rules {
    fn visit(&mut self, schema: &Props, path: &str, place: Place<'_>) {
        // The type takes as long to make as the schema is large.
        let ty = (!schema.rules.is_empty()).then(|| declared::of_rule(schema, place.root));
        for (index, rule) in schema.rules.iter().enumerate() {
            let ty = ty.clone().unwrap_or(Type::Dyn);
            self.rule(rule, ty, schema, &format!("{path}.x-kubernetes-validations[{index}]"), place);
        }
        let atomic_map = schema.map_type.as_deref() == Some("atomic");
        let apart = place.apart.or(atomic_map.then_some(path));
        for (name, below) in &schema.properties {
            let inner = Place { root: false, apart, count: place.count };
            self.visit(below, &format!("{path}.properties[{name}]"), inner);
        }
        let times = |most: Option<u64>| Some(place.count?.saturating_mul(most?));
        if let Some(below) = schema.additional() {
            let inner = Place { root: false, apart, count: times(schema.max_properties) };
            self.visit(below, &format!("{path}.additionalProperties"), inner);
        }
        if let Some(item) = schema.item() {
            let apart = place.apart.or((!schema.is_keyed()).then_some(path));
            let inner = Place { root: false, apart, count: times(schema.max_items) };
            self.visit(item, &format!("{path}.items"), inner);
        }
    }

    fn rule(&mut self, rule: &Rule, ty: Type, schema: &Props, path: &str, place: Place<'_>) {
        let old = match rule.optional_old_self {
            Some(true) => Type::Optional(Arc::new(ty.clone())),
            _ => ty.clone(),
        };
        let environment = Environment::default().with(rules::SELF, ty).with(rules::OLD_SELF, old);
        let checks = [
            ("rule", &rule.rule, Type::Bool, "cel expression must evaluate to a bool"),
            (
                "messageExpression",
                &rule.message_expression,
                Type::Text,
                "messageExpression must evaluate to a string",
            ),
        ];
        for (field, source, wanted, otherwise) in checks {
            if source.trim().is_empty() {
                continue;
            }
            let at = format!("{path}.{field}");
            match environment.check(source) {
                Ok(ty) if ty.is(&wanted) => {}
                Ok(_) => self.causes.push(causes::invalid(&at, &json!(source), otherwise)),
                Err(problem) => {
                    let detail = format!("compilation failed: {problem}");
                    self.causes.push(causes::invalid(&at, &json!(source), detail));
                    continue;
                }
            }
            let Ok(program) = Program::compile(source, &[rules::SELF, rules::OLD_SELF]) else { continue };
            self.pay(field, at, &program, schema, place);
            if field == "rule" {
                self.compares(&program, rule, path, place);
            }
        }
    }

    /// Estimates what an expression costs; that of a message is run once.
    fn pay(&mut self, field: &str, at: String, program: &Program, schema: &Props, place: Place<'_>) {
        let once = cost::max_cost(program, schema);
        let (what, cost) = match field {
            "rule" => {
                let count = place.count.unwrap_or_else(|| cost::max_count(schema));
                ("estimated rule cost", once.saturating_mul(count))
            }
            _ => ("estimated messageExpression cost", once),
        };
        if cost > RULE_COST_MAX {
            self.causes.push(causes::forbidden(&at, over_budget(what, cost, RULE_COST_MAX)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_COST_MAX / 100 {
            self.expensive.push((at, cost));
        }
    }

    fn compares(&mut self, program: &Program, rule: &Rule, path: &str, place: Place<'_>) {
        match (program.uses(rules::OLD_SELF), place.apart, rule.optional_old_self) {
            (true, Some(apart), _) => {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {apart}"
                );
                self.causes.push(causes::invalid(&format!("{path}.rule"), &json!(rule.rule), detail));
            }
            (false, _, Some(set)) => {
                let detail = "may not be set if oldSelf is not used in rule";
                self.causes.push(causes::invalid(&format!("{path}.optionalOldSelf"), &json!(set), detail));
            }
            _ => {}
        }
    }
}

/// Whether a rule's `fieldPath` (`.spec.a`, `.spec['a']`) leads to a field of the schema.
pub(super) fn is_path(schema: &Props, path: &str) -> bool {
    let mut at = schema;
    let mut rest = path.trim();
    while !rest.is_empty() {
        let (name, after) = if let Some(quoted) = rest.strip_prefix("['") {
            match quoted.split_once("']") {
                Some(found) => found,
                None => return false,
            }
        } else if let Some(plain) = rest.strip_prefix('.') {
            plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
        } else {
            return false;
        };
        match at.child(name) {
            Some(below) if !name.is_empty() => at = below,
            _ => return false,
        }
        rest = after;
    }
    !path.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(rule: serde_json::Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "x-kubernetes-validations": [rule.clone()], "properties": {
                "replicas": {"type": "integer"}, "name": {"type": "string"}, "at": {"type": "string", "format": "date-time"},
                "any": {"x-kubernetes-int-or-string": true}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "tags": {"type": "object", "additionalProperties": {"type": "string"}},
                "a-b": {"type": "string"},
                "list": {"type": "array", "maxItems": 9, "items": {"type": "object", "properties": {"x": {"type": "integer"}}}}}}}});
        let schema = Props::read(&schema).unwrap();
        check(&schema, "p").iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn rules_are_of_the_types_of_their_schema() {
        for rule in [
            "self.replicas > 1 && self.name.size() < 5 && self.list.all(i, i.x > 0)",
            "self == oldSelf || has(self.tags) && self.tags['a'] == 'b'",
            "self.any == 1 || self.any == '1' || self.free.deep.down == 2",
            "self.at < timestamp('2026-01-01T00:00:00Z') && self.a__dash__b == ''",
            "self.list.map(i, i.x).sum() <= self.replicas && self.list.exists_one(i, i.x == 1)",
        ] {
            assert_eq!(said(json!({"rule": rule})), [""; 0], "{rule}");
        }
        for (rule, wanted) in [
            (
                json!({"rule": "self.replicas"}),
                "rule: Invalid value: \"self.replicas\": cel expression must evaluate to a bool",
            ),
            (
                json!({"rule": "self.missing > 1"}),
                "compilation failed: ERROR: <input>:1:5: undefined field 'missing'",
            ),
            (
                json!({"rule": "self.name > 1"}),
                "found no matching overload for '_>_' applied to '(string, int)'",
            ),
            (
                json!({"rule": "true", "messageExpression": "1"}),
                "messageExpression: Invalid value: \"1\": messageExpression must evaluate to a string",
            ),
            (
                json!({"rule": "true", "optionalOldSelf": true}),
                "may not be set if oldSelf is not used in rule",
            ),
            (
                json!({"rule": "oldSelf.replicas.hasValue()", "optionalOldSelf": false}),
                "no matching overload",
            ),
        ] {
            let said = said(rule);
            assert!(said.len() == 1 && said[0].contains(wanted), "{said:?}");
        }
        assert_eq!(
            said(json!({"rule": "oldSelf.hasValue() && oldSelf.value() == self", "optionalOldSelf": true})),
            [""; 0]
        );
    }

    #[test]
    fn what_may_cost_too_much_is_refused() {
        let schema = |bounds: serde_json::Value, rule: &str| {
            let mut list = json!({"type": "array", "items": {"type": "string", "maxLength": 20}});
            list.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
            let schema = json!({"type": "object", "properties": {"l": list}, "x-kubernetes-validations": [{"rule": rule}]});
            check(&Props::read(&schema).unwrap(), "p")
        };
        let nested = "self.l.all(a, self.l.exists_one(b, a == b))";
        assert_eq!(schema(json!({"maxItems": 100}), nested), []);
        assert_eq!(schema(json!({}), "self.l.all(a, a.startsWith('x'))"), []);
        let wrong = schema(json!({}), nested);
        let detail = "exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, \
                      and maxLength where arrays, maps, and strings are declared)";
        assert_eq!(wrong[0].field, "p.x-kubernetes-validations[0].rule");
        assert_eq!(wrong[0].message, format!("Forbidden: estimated rule cost {detail}"));
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        // A rule on items counts once an item.
        let items = |max: serde_json::Value| {
            let item =
                json!({"type": "string", "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$')"}]});
            let mut list = json!({"type": "array", "items": item});
            list.as_object_mut().unwrap().extend(max.as_object().unwrap().clone());
            check(&Props::read(&json!({"type": "object", "properties": {"l": list}})).unwrap(), "p").len()
        };
        assert_eq!(items(json!({"maxItems": 5})), 0);
        assert!(items(json!({})) > 0);
    }

    #[test]
    fn idioms_of_wellknown_definitions_are_cheap() {
        for (schema, rule) in [
            (
                json!({"type": "string"}),
                "duration(self) >= duration('1ms') && duration(self).getSeconds() < 60",
            ),
            (json!({"type": "string", "format": "date-time"}), "self > timestamp('2020-01-01T00:00:00Z')"),
            (
                json!({"type": "string", "format": "date-time"}),
                "self - duration('1h') < self && self + duration('1h') > self",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 3}),
                "self.size() <= 3",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 30}),
                "self.all(key, !key.contains('*') && key.matches('^[a-z]+$'))",
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                "type(self) == int ? self >= 0 : (type(self) == string ? self == '25%' : false)",
            ),
        ] {
            let mut schema = schema;
            schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
            let whole = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 64, "items": schema}}});
            assert_eq!(check(&Props::read(&whole).unwrap(), "p"), [], "{rule}");
        }
    }

    #[test]
    fn what_does_not_belong_together_is_not_compared() {
        let schema = |kind: &str| {
            let item = json!({"type": "object", "properties": {"k": {"type": "string", "maxLength": 9}},
                "x-kubernetes-validations": [{"rule": "self.k == oldSelf.k"}]});
            json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": kind, "maxItems": 9,
                "x-kubernetes-list-map-keys": ["k"], "items": item}}})
        };
        assert_eq!(check(&Props::read(&schema("map")).unwrap(), "p"), []);
        let wrong = check(&Props::read(&schema("atomic")).unwrap(), "p");
        let wanted =
            "oldSelf cannot be used on the uncorrelatable portion of the schema within p.properties[l]";
        assert!(wrong.len() == 1 && wrong[0].message.ends_with(wanted), "{wrong:?}");
        let paths = Props::read(&json!({"properties": {"a": {"properties": {"b.c": {}}}}})).unwrap();
        for (path, valid) in
            [(".a", true), (".a['b.c']", true), (".b", false), ("a", false), (".a.", false), ("['a'", false)]
        {
            assert_eq!(is_path(&paths, path), valid, "{path}");
        }
    }
}
