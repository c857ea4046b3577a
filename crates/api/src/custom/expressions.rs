//! The rules of a schema, as a definition is written: their expressions are compiled and their types checked against the
//! schema. Source: `apis/apiextensions/validation.ValidateCustomResourceDefinitionOpenAPISchema`,
//! `apiextensions-apiserver/pkg/apiserver/schema/cel/compilation.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::causes::{self, ADDITIONAL, Gathered, ITEMS, Step, Trail};
use super::props::{Props, Rule};
use super::rules;
use crate::cel::sizes::{self, Decl};
use crate::cel::{Checked, Environment, Program, Type, cost, declared, has_identifier};
use crate::status::Cause;

/// What one expression may cost by its estimate, for all values that it is run on. Source: `StaticEstimatedCostLimit`.
const RULE_COST_MAX: u64 = 10_000_000;
/// What all of a schema may cost. Source: `StaticEstimatedCRDCostLimit`.
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// How many of the most expensive rules are told.
const EXPENSIVE_TOLD: usize = 4;

/// A definition as it was before an update: what it had may stay, though new servers would not take it.
/// Source: `preexistingExpressions`, `findVersionsWithUnchangedSchemas`.
#[derive(Debug, Default)]
pub struct Before<'v> {
    rules: BTreeSet<&'v str>,
    messages: BTreeSet<&'v str>,
    schemas: BTreeMap<&'v str, &'v Value>,
}

impl<'v> Before<'v> {
    /// Reads a definition.
    pub fn of(definition: &'v Value) -> Self {
        let mut before = Self::default();
        let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        for version in versions {
            let schema = &version["schema"]["openAPIV3Schema"];
            before.schemas.insert(version["name"].as_str().unwrap_or_default(), schema);
            before.read(schema);
        }
        before
    }

    fn read(&mut self, schema: &'v Value) {
        let rules = schema["x-kubernetes-validations"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.rules.extend(rules.iter().filter_map(|rule| rule["rule"].as_str()));
        self.messages.extend(rules.iter().filter_map(|rule| rule["messageExpression"].as_str()));
        for (_, below) in schema["properties"].as_object().into_iter().flatten() {
            self.read(below);
        }
        for below in ["items", "additionalProperties"] {
            if schema[below].is_object() {
                self.read(&schema[below]);
            }
        }
    }

    /// Whether a version had this very schema.
    pub(super) fn has(&self, version: &str, schema: &Value) -> bool {
        self.schemas.get(version) == Some(&schema)
    }
}

/// What is wrong with the rules of a schema that is valid apart from them; `path` is its own. One that is as it was
/// (`unchanged`) may have expressions that cost too much. Above what is wrong otherwise (`wrong`) rules are not looked at.
pub(super) fn check(
    schema: &Props,
    path: &str,
    before: Option<&Before<'_>>,
    unchanged: bool,
    wrong: &BTreeSet<String>,
) -> Vec<Cause> {
    let causes = Gathered::default();
    let mut rules = Rules { before, unchanged, wrong, causes, total: 0, expensive: Vec::new() };
    rules.visit(schema, &Trail::root(path), Place { root: true, apart: None, count: Some(1), hidden: false });
    if rules.total > SCHEMA_COST_MAX {
        for (path, _) in &rules.expensive {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            rules.causes.push(causes::forbidden(path, detail));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        rules.causes.push(causes::forbidden(path, over_budget(what, rules.total, SCHEMA_COST_MAX)));
    }
    rules.causes.told()
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
    apart: Option<&'p Trail<'p>>,
    /// How many values of it there are at most, where that is bounded.
    count: Option<u64>,
    /// Whether it is below what expressions do not see.
    hidden: bool,
}

struct Rules<'b> {
    before: Option<&'b Before<'b>>,
    unchanged: bool,
    wrong: &'b BTreeSet<String>,
    causes: Gathered,
    total: u64,
    /// What counts most in the total, and its cost, the dearest first.
    expensive: Vec<(String, u64)>,
}

impl Rules<'_> {
    fn visit(&mut self, schema: &Props, path: &Trail<'_>, place: Place<'_>) {
        // The type takes as long to make as the schema is large.
        let checked = !schema.rules.is_empty() && !self.is_above_wrong(path);
        let ty = (checked && !place.hidden).then(|| declared::of_rule(schema, place.root)).flatten();
        if ty.is_none() && checked && !self.causes.is_full() {
            let detail = "internal error: failed to retrieve type information for x-kubernetes-validations";
            self.causes.push(causes::internal(&format!("{path}.x-kubernetes-validations"), detail));
        }
        for (index, rule) in schema.rules.iter().enumerate() {
            let Some(ty) = ty.clone().filter(|_| !self.causes.is_full()) else { break };
            self.rule(rule, ty, schema, &path.below(Step::Rule(index)), place);
        }
        // That a map is atomic says nothing of entries without names of their own, as upstream has it.
        let atomic_map = schema.map_type.as_deref() == Some("atomic");
        let apart = place.apart.or(atomic_map.then_some(path));
        let times = |most: Option<u64>| Some(place.count?.saturating_mul(most?));
        let count = match schema.additional_properties {
            Some(_) => times(schema.max_properties),
            None => place.count,
        };
        let hidden = place.hidden || !sizes::seen(schema);
        for (name, below) in &schema.properties {
            let hidden = hidden || !has_identifier(name);
            self.visit(below, &path.below(Step::Property(name)), Place { root: false, apart, count, hidden });
        }
        if let Some(below) = schema.additional() {
            self.visit(
                below,
                &path.below(ADDITIONAL),
                Place { root: false, apart: place.apart, count, hidden },
            );
        }
        if let Some(item) = schema.item() {
            let apart = place.apart.or((!schema.is_keyed()).then_some(path));
            let inner = Place { root: false, apart, count: times(schema.max_items), hidden };
            self.visit(item, &path.below(ITEMS), inner);
        }
    }

    /// Whether something else is wrong with a schema, or with what it holds.
    fn is_above_wrong(&self, path: &Trail<'_>) -> bool {
        if self.wrong.is_empty() {
            return false;
        }
        let below = format!("{path}.");
        self.wrong.range(below.clone()..).next().is_some_and(|field| field.starts_with(&below))
    }

    fn rule(&mut self, rule: &Rule, ty: Type, schema: &Props, path: &Trail<'_>, place: Place<'_>) {
        let old = match rule.optional_old_self {
            Some(true) => Type::Optional(Arc::new(ty.clone())),
            _ => ty.clone(),
        };
        let environment = Environment::default().with(rules::SELF, ty).with(rules::OLD_SELF, old);
        let was_rule = self.before.is_some_and(|before| before.rules.contains(rule.rule.as_str()));
        let message = rule.message_expression.as_str();
        let was_message = self.before.is_some_and(|before| before.messages.contains(message));
        let found = typed(&environment, &rule.rule, was_rule, &Type::Bool);
        let at = path.below(Step::Plain("rule"));
        let checked = match found {
            Err(detail) => {
                let detail = detail.unwrap_or_else(|| "cel expression must evaluate to a bool".to_owned());
                self.causes.push(causes::invalid_shown(&at.to_string(), &shown(rule), detail));
                return;
            }
            Ok(checked) => checked,
        };
        self.pay("estimated rule cost", &at, &checked, schema, place, true);
        if let Ok(program) = Program::compile(&rule.rule, &[rules::SELF, rules::OLD_SELF]) {
            self.compares(&program, rule, path, place);
        }
        if rule.message_expression.trim().is_empty() {
            return;
        }
        let at = path.below(Step::Plain("messageExpression"));
        match typed(&environment, &rule.message_expression, was_message, &Type::Text) {
            Err(detail) => {
                let detail = detail.map(|detail| format!("messageExpression {detail}"));
                let detail =
                    detail.unwrap_or_else(|| "messageExpression must evaluate to a string".to_owned());
                self.causes.push(causes::invalid_shown(&at.to_string(), &shown(rule), detail));
            }
            Ok(checked) => self.pay("estimated messageExpression cost", &at, &checked, schema, place, false),
        }
    }

    /// Estimates what an expression costs, once or for each value that there may be.
    fn pay(
        &mut self,
        what: &str,
        at: &Trail<'_>,
        checked: &Checked,
        schema: &Props,
        place: Place<'_>,
        each: bool,
    ) {
        let whole = place.root || schema.embedded;
        let once = cost::max_cost(checked, Decl::Schema(schema, whole));
        let count = if each { place.count.unwrap_or_else(|| sizes::max_count(schema)) } else { 1 };
        let cost = once.saturating_mul(count);
        if cost > RULE_COST_MAX && !self.unchanged {
            self.causes.push(causes::forbidden(&at.to_string(), over_budget(what, cost, RULE_COST_MAX)));
        }
        self.total = self.total.saturating_add(cost);
        let place = self.expensive.partition_point(|(_, known)| *known >= cost);
        if cost >= SCHEMA_COST_MAX / 100 && place < EXPENSIVE_TOLD {
            self.expensive.insert(place, (at.to_string(), cost));
            self.expensive.truncate(EXPENSIVE_TOLD);
        }
    }

    fn compares(&mut self, program: &Program, rule: &Rule, path: &Trail<'_>, place: Place<'_>) {
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

/// An expression of a type; the failure is why it does not compile, or nothing where it is of another type.
fn typed(
    environment: &Environment,
    source: &str,
    stored: bool,
    ty: &Type,
) -> Result<Checked, Option<String>> {
    let checked =
        if stored { environment.clone().stored().checked(source) } else { environment.checked(source) };
    match checked {
        Ok(checked) if checked.ty.is(ty) => Ok(checked),
        Ok(_) => Err(None),
        Err(problem) => Err(Some(format!("compilation failed: {problem}"))),
    }
}

/// A rule as upstream shows it in failures: as JSON, by the names that it has in the program.
fn shown(rule: &Rule) -> String {
    let text = |text: &str| go_json(&json!(text));
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        text(&rule.rule),
        text(&rule.message),
        text(&rule.message_expression),
        go_json(&json!(rule.reason)),
        text(&rule.field_path),
        json!(rule.optional_old_self),
    )
}

/// JSON as Go writes it, safe in HTML.
fn go_json(value: &Value) -> String {
    let mut out = String::new();
    for char in value.to_string().chars() {
        match char {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            other => out.push(other),
        }
    }
    out
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
                "a-b": {"type": "string"}, "datetime": {"type": "string", "format": "datetime"},
                "untyped": {"x-kubernetes-preserve-unknown-fields": true},
                "untypeds": {"type": "array", "items": {"x-kubernetes-preserve-unknown-fields": true}},
                "list": {"type": "array", "maxItems": 9, "items": {"type": "object", "properties": {"x": {"type": "integer"}}}}}}}});
        let schema = Props::read(&schema).unwrap();
        check(&schema, "p", None, false, &BTreeSet::new())
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn rules_are_of_the_types_of_their_schema() {
        for rule in [
            "self.replicas > 1 && self.name.size() < 5 && self.list.all(i, i.x > 0)",
            "self == oldSelf || has(self.tags) && self.tags['a'] == 'b'",
            "self.any == 1 || self.any == '1' || self.free == oldSelf.free",
            "self.at < timestamp('2026-01-01T00:00:00Z') && self.a__dash__b == ''",
            "self.list.map(i, i.x).sum() <= self.replicas && self.list.exists_one(i, i.x == 1)",
        ] {
            assert_eq!(said(json!({"rule": rule})), [""; 0], "{rule}");
        }
        for (rule, wanted) in [
            (
                json!({"rule": "self.replicas"}),
                "rule: Invalid value: {\"Rule\":\"self.replicas\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\
                 \"FieldPath\":\"\",\"OptionalOldSelf\":null}: cel expression must evaluate to a bool",
            ),
            (json!({"rule": "1 < 2 && 'a'"}), "{\"Rule\":\"1 \\u003c 2 \\u0026\\u0026 'a'\","),
            (
                json!({"rule": "self.missing > 1"}),
                "compilation failed: ERROR: <input>:1:5: undefined field 'missing'",
            ),
            (json!({"rule": "self.free.deep == 2"}), "1:10: undefined field 'deep'"),
            (json!({"rule": "has(self.untyped)"}), "undefined field 'untyped'"),
            (json!({"rule": "self.untypeds.size() == 1"}), "undefined field 'untypeds'"),
            (json!({"rule": "self.datetime < timestamp('2026-01-01T00:00:00Z')"}), "'(string, timestamp)'"),
            (
                json!({"rule": "self.name > 1"}),
                "found no matching overload for '_>_' applied to '(string, int)'",
            ),
            (
                json!({"rule": "true", "messageExpression": "1"}),
                ": messageExpression must evaluate to a string",
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
            check(&Props::read(&schema).unwrap(), "p", None, false, &BTreeSet::new())
        };
        let nested = "self.l.all(a, self.l.exists_one(b, a == b))";
        assert_eq!(schema(json!({"maxItems": 100}), nested), []);
        assert_eq!(schema(json!({}), "self.l.all(a, a.startsWith('x'))"), []);
        let wrong = schema(json!({}), nested);
        let detail = "exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, \
                      and maxLength where arrays, maps, and strings are declared)";
        assert_eq!(wrong[2].field, "p.x-kubernetes-validations[0].rule");
        assert_eq!(wrong[2].message, format!("Forbidden: estimated rule cost {detail}"));
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        // A rule on items counts once an item.
        let items = |max: serde_json::Value| {
            let item =
                json!({"type": "string", "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$')"}]});
            let mut list = json!({"type": "array", "items": item});
            list.as_object_mut().unwrap().extend(max.as_object().unwrap().clone());
            check(
                &Props::read(&json!({"type": "object", "properties": {"l": list}})).unwrap(),
                "p",
                None,
                false,
                &BTreeSet::new(),
            )
            .len()
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
                json!({"type": "object", "properties": {"s": {"x-kubernetes-int-or-string": true}}}),
                "type(self.s) == int ? self.s >= 0 : (type(self.s) == string ? self.s == '25%' : false)",
            ),
        ] {
            let mut schema = schema;
            schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
            let whole = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 64, "items": schema}}});
            assert_eq!(
                check(&Props::read(&whole).unwrap(), "p", None, false, &BTreeSet::new()),
                [],
                "{rule}"
            );
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
        assert_eq!(check(&Props::read(&schema("map")).unwrap(), "p", None, false, &BTreeSet::new()), []);
        let wrong = check(&Props::read(&schema("atomic")).unwrap(), "p", None, false, &BTreeSet::new());
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

    /// The highest cost of a rule on a schema.
    fn cost_of(schema: serde_json::Value, rule: &str) -> u64 {
        let schema = Props::read(&schema).unwrap();
        let ty = declared::of_rule(&schema, false).unwrap();
        let environment = Environment::default().with(rules::SELF, ty.clone()).with(rules::OLD_SELF, ty);
        let checked = environment.checked(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        cost::max_cost(&checked, Decl::Schema(&schema, false))
    }

    fn scalar(ty: &str) -> serde_json::Value {
        match ty {
            "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
            "duration" | "date" | "date-time" | "byte" => json!({"type": "string", "format": ty}),
            ty => json!({"type": ty}),
        }
    }

    fn with(mut schema: serde_json::Value, bound: &str, most: Option<u64>) -> serde_json::Value {
        if let Some(most) = most {
            schema[bound] = json!(most);
        }
        schema
    }

    /// Upstream's numbers: without bounds, and with one. Source: `TestCostEstimation`.
    #[test]
    fn costs_of_lists_and_maps_are_upstreams() {
        let object = json!({"type": "object", "required": ["required"],
            "properties": {"required": {"type": "string"}, "optional": {"type": "string"}}});
        let list_of_numbers = json!({"type": "array", "items": {"type": "number"}});
        let map_of_numbers = json!({"type": "object", "additionalProperties": {"type": "number"}});
        for (item, rule, unbounded, most, bounded) in [
            (scalar("number"), "self.all(x, true)", 4_718_591, 10, 32),
            (scalar("string"), "self.all(x, true)", 3_145_727, 20, 62),
            (scalar("boolean"), "self.all(x, true)", 1_887_437, 5, 17),
            (list_of_numbers.clone(), "self.all(x, true)", 3_145_727, 100, 302),
            (scalar("number"), "self[1] == 0.0", 2, 5_000, 2),
            (scalar("string"), "self[1] == self[1]", 314_577, 8, 314_577),
            (scalar("number"), "self.all(x, x == 0.0)", 6_291_454, 3 * 1024 * 2048, 25_165_826),
            (scalar("int-or-string"), "self.all(x, true)", 4_718_591, 10, 32),
            (scalar("int-or-string"), "self[0] == 5", 3, 10, 3),
            (scalar("boolean"), "self[0] == false", 2, 25, 2),
            (object.clone(), "self[0] == null", 2, 422, 2),
            (list_of_numbers.clone(), "self[0][0] == -1.0", 3, 51, 3),
            (map_of_numbers.clone(), "self.all(x, x.y == 25.2)", 6_291_452, 12, 74),
            (map_of_numbers.clone(), "self[0].x > 2.0", 4, 3_000, 4),
            (scalar("duration"), "self.all(x, true)", 2_359_295, 5, 17),
            (scalar("duration"), "self[0].getHours() == 2", 4, 525, 4),
            (scalar("date"), "self.all(x, true)", 725_936, 15, 47),
            (scalar("date"), "self[2].getDayOfMonth() == 13", 4, 42, 4),
            (scalar("date-time"), "self.all(x, true)", 428_963, 25, 77),
        ] {
            for (most, wanted) in [(None, unbounded), (Some(most), bounded)] {
                let list = with(json!({"type": "array", "items": item}), "maxItems", most);
                assert_eq!(cost_of(list, rule), wanted, "{item} {rule} {most:?}");
            }
        }
        let nested = "self.all(x, self.all(y, true))";
        let list = json!({"type": "array", "items": {"type": "number"}});
        assert_eq!(cost_of(with(list.clone(), "maxItems", Some(10)), nested), 352);
        assert_eq!(
            cost_of(with(list.clone(), "maxItems", Some(10)), "self.all(x, self.all(y, self.all(z, true)))"),
            3552
        );
        assert!(cost_of(list, nested) > RULE_COST_MAX);
        for (value, rule, unbounded, most, bounded) in [
            (scalar("number"), "self.all(x, true)", 1_348_169, 10, 32),
            (scalar("string"), "self.all(x, true)", 1_179_647, 3, 11),
            (scalar("boolean"), "self.all(x, true)", 943_718, 100, 302),
            (scalar("number"), "self[\"x\"] == 0.0", 2, 0, 2),
            (scalar("int-or-string"), "self.all(x, true)", 1_348_169, 15, 47),
            (map_of_numbers, "self.all(x, true)", 1_179_647, 10, 32),
            (list_of_numbers, "self.all(x, true)", 1_179_647, 25, 77),
            (scalar("duration"), "self.all(x, true)", 1_048_577, 5, 17),
            (scalar("date"), "self.all(x, true)", 524_288, 10, 32),
            (scalar("date-time"), "self.all(x, true)", 349_526, 25, 77),
            (scalar("integer"), "oldSelf.size() == self.size()", 5, 10, 5),
            (scalar("date-time"), "self[\"a\"] == self[\"b\"]", 8, 7, 8),
            (scalar("duration"), "self[\"c\"] == self[\"d\"]", 8, 42, 8),
        ] {
            for (most, wanted) in [(None, unbounded), (Some(most), bounded)] {
                let map =
                    with(json!({"type": "object", "additionalProperties": value}), "maxProperties", most);
                assert_eq!(cost_of(map, rule), wanted, "{value} {rule} {most:?}");
            }
        }
    }

    #[test]
    fn costs_of_texts_are_upstreams() {
        for (rule, unbounded, most, bounded) in [
            ("self.contains('test')", 314_574, 10, 5),
            ("self.startsWith('test')", 2, 15, 2),
            ("self.endsWith('test')", 2, 30, 2),
            ("size(self + \"hello\") > size(\"hello\")", 314_578, 4, 7),
            ("self.matches(\"x\")", 314_574, 50, 22),
            ("\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 10, 7),
            ("self.matches(\"\")", 1, 100, 1),
            ("self == \"x\"", 2, 0, 1),
            ("self.find('[0-9]+') == ''", 629_147, 10, 11),
            ("self.lowerAscii() == 'lower!'", 314_575, 10, 6),
        ] {
            for (most, wanted) in [(None, unbounded), (Some(most), bounded)] {
                assert_eq!(
                    cost_of(with(scalar("string"), "maxLength", most), rule),
                    wanted,
                    "{rule} {most:?}"
                );
            }
        }
        let text = |most: Option<u64>| with(scalar("string"), "maxLength", most);
        let list = |most: Option<u64>| with(json!({"type": "array", "items": text(most)}), "maxItems", most);
        let object = |most: Option<u64>| {
            json!({"type": "object", "properties": {"str": text(most), "separator": text(most),
                "before": text(Some(2)), "after": text(Some(4))}})
        };
        let values = |most: Option<u64>| {
            with(json!({"type": "string", "enum": ["A", "B", "C", "LongValue"]}), "maxLength", most)
        };
        let any = |most: Option<u64>| with(scalar("int-or-string"), "maxLength", most);
        type Made<'m> = &'m dyn Fn(Option<u64>) -> serde_json::Value;
        let made: [(Made<'_>, &str, u64, u64, u64); 6] = [
            (&list, "self.join(' ') == 'aa bb'", 329_853_068_905, 10, 43),
            (&list, "self.isSorted() == true", 329_854_432_052, 10, 52),
            (&object, "self.str.replace(self.before, self.after) == 'does not matter'", 629_154, 4, 12),
            (&object, "self.str.split(self.separator) == []", 629_160, 10, 22),
            (&values, "self.contains('A')", 2, 1_000, 401),
            (&any, "isQuantity(self)", 314_574, 20, 9),
        ];
        for (schema, rule, unbounded, most, bounded) in made {
            assert_eq!(cost_of(schema(None), rule), unbounded, "{rule}");
            assert_eq!(cost_of(schema(Some(most)), rule), bounded, "{rule} {most}");
        }
        let bytes = |most: Option<u64>| cost_of(with(scalar("byte"), "maxLength", most), "self == b\"x\"");
        assert_eq!((bytes(None), bytes(Some(0))), (2, 1));
    }

    /// Source: `library/cost_test.go`.
    #[test]
    fn costs_of_library_functions_are_upstreams() {
        for (source, wanted) in [
            ("[1, 2, 3, 4, 5].sum() == 0", 16),
            ("[uint(1), uint(2), uint(3), uint(4), uint(5)].max() == uint(1)", 22),
            ("[duration('1s'), duration('2s')].isSorted()", 14),
            ("[1, 2, 3, 4, 5].indexOf(3) == 0", 16),
            ("'01234567890123456789012345678901234567890123456789'.indexOf('123') == 0", 6),
            ("url('https:://kubernetes.io/').getHost() == ''", 4),
            ("url('https:://kubernetes.io/') == url('https:://kubernetes.io/')", 9),
            ("url('https:://kubernetes.io/') == url('http://x.b')", 5),
            ("ip('192.168.0.1').family() == 4", 4),
            ("ip('2001:db8:3333:4444:5555:6666:7777:8888').isLoopback()", 5),
            ("ip('192.168.0.1') == ip('192.168.0.1')", 5),
            ("ip.isCanonical('2001:db8:3333:4444:5555:6666:7777:8888')", 8),
            ("cidr('192.168.0.0/16').ip() == ip('192.168.0.1')", 6),
            ("cidr('192.168.0.0/16').containsCIDR(cidr('192.0.0.0/30'))", 11),
            ("cidr('192.168.0.0/16').containsIP('192.0.0.1')", 7),
            ("'ABCDEFGHIJ abcdefghij'.lowerAscii() == 'abcdefghij ABCDEFGHIJ'.lowerAscii()", 9),
            ("strings.quote('ABCDEFGHIJ abcdefghij') == strings.quote('ABCDEFGHIJ abcdefghij')", 11),
            ("'abc 123 def 123'.replace('', 'x') == ''", 3),
            ("'abc 123 def 123'.split(' ') == []", 13),
            ("quantity('200M') == quantity('0.2G') && quantity('0.2G') == quantity('200M')", 6),
            ("quantity('50k').add(20).sub(quantity('100k')).sub(-50000).asInteger() > 0", 7),
            ("format.named('dns1123Label').value().validate('my-name').hasValue()", 35),
            ("format.named('dns1123Label').value() == format.named('dns1123Label').value()", 11),
            ("sets.contains([1, 2, 3, 4], [2, 3])", 29),
            ("!sets.equivalent([1, 2], [2, 2, 2])", 34),
            ("sets.intersects([[1], [2, 3]], [[1, 2], [2, 3]])", 65),
            ("semver('1.0.0').isLessThan(semver('1.1.0'))", 3),
            ("{'a': 1, 'b': 2}.all(k, v, v > 0)", 41),
            ("{'a': 1, 'b': 2}.exists(k, v, v > 0)", 43),
            ("{'a': 1, 'b': 2}.existsOne(k, v, v > 0)", 40),
            ("{'a': 1, 'b': 2}.transformMap(k, v, v + 1).size() == 2", 73),
            ("{'a': 1, 'b': 2}.transformMap(k, v, v < 5, v + 1).size() == 2", 77),
            ("{'a': 1, 'b': 2}.transformMapEntry(k, v, {k: v + 1}).size() == 2", 133),
            ("[1, 2].transformList(i, v, v + 1).size() == 2", 51),
            ("[1, 2].transformList(i, v, v < 5, v + 1).size() == 2", 55),
        ] {
            assert_eq!(cost_of(json!({"type": "boolean"}), source), wanted, "{source}");
        }
    }

    #[test]
    fn what_an_optional_gives_is_as_large_as_its_type() {
        let number = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
        for (source, wanted) in [
            ("self.?n.optMap(x, x + 1) == optional.of(1)", 21),
            ("self.?n.optFlatMap(x, optional.of(x + 1)) == optional.of(1)", 21),
            ("self.?n.optMap(x, x > 1).orValue(true)", 20),
        ] {
            assert_eq!(cost_of(number.clone(), source), wanted, "{source}");
        }
        let text = json!({"type": "object", "properties": {"t": {"type": "string", "maxLength": 5}}});
        assert!(cost_of(text, "self.?t.optMap(x, x + 'a') == optional.of('b')") > 1 << 60);
    }

    /// A limit below 0 is none for `split`; other numbers below 0 count as 0.
    #[test]
    fn costs_of_numbers_below_0_are_upstreams() {
        for (source, wanted) in [
            ("self.split(',', 2).all(x, true)", 10),
            ("self.split(',', -1).all(x, true)", u64::MAX),
            ("[1, 2, 3].slice(-1, 2).all(x, true)", 30),
            ("[[1], [2]].flatten(-1).all(x, true)", 48),
            ("lists.range(-1).all(x, true)", 12),
        ] {
            assert_eq!(cost_of(with(scalar("string"), "maxLength", Some(2)), source), wanted, "{source}");
        }
    }

    #[test]
    fn what_expressions_do_not_see_has_no_rules() {
        let ruled = |mut schema: serde_json::Value| {
            schema["x-kubernetes-validations"] = json!([{"rule": "true"}]);
            schema
        };
        for (name, schema, at) in [
            ("any", ruled(json!({"x-kubernetes-preserve-unknown-fields": true})), "p.properties[any]"),
            ("a:b", ruled(json!({"type": "string"})), "p.properties[a:b]"),
            (
                "any",
                json!({"x-kubernetes-preserve-unknown-fields": true, "properties": {"a": ruled(json!({"type": "string"}))}}),
                "p.properties[any].properties[a]",
            ),
        ] {
            let schema = Props::read(&json!({"type": "object", "properties": {name: schema}})).unwrap();
            let causes = check(&schema, "p", None, false, &BTreeSet::new());
            assert_eq!(causes.len(), 1);
            assert_eq!(causes[0].field, format!("{at}.x-kubernetes-validations"));
            let wanted = "Internal error: internal error: failed to retrieve type information for x-kubernetes-validations";
            assert_eq!(causes[0].message, wanted);
        }
        let free = ruled(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(
            check(
                &Props::read(&json!({"type": "object", "properties": {"f": free}})).unwrap(),
                "p",
                None,
                false,
                &BTreeSet::new()
            ),
            []
        );
    }

    #[test]
    fn no_more_is_gathered_than_is_told() {
        let long = "n".repeat(100_000);
        let many = |count: usize, rule: &str| {
            let ruled = json!({"type": "string", "x-kubernetes-validations": [{"rule": rule}]});
            let fields: serde_json::Map<_, _> =
                (0..count).map(|one| (format!("f{one}"), ruled.clone())).collect();
            json!({"type": "object", "properties": {&long: {"type": "object", "properties": fields}}})
        };
        let size =
            |causes: &[Cause]| causes.iter().map(|one| one.field.len() + one.message.len()).sum::<usize>();
        let causes = check(&Props::read(&many(300, "nothing")).unwrap(), "p", None, false, &BTreeSet::new());
        assert!(causes.len() <= 11 && size(&causes) < 1_200_000, "{}", causes.len());
        // All of the schema costs too much, and the four dearest of its rules are told.
        let dear = Props::read(&many(300, "self.contains('abcdefghijk')")).unwrap();
        let wrong = BTreeSet::new();
        let mut rules = Rules {
            wrong: &wrong,
            before: None,
            unchanged: true,
            causes: Gathered::default(),
            total: 0,
            expensive: Vec::new(),
        };
        rules.visit(
            &dear,
            &Trail::root("p"),
            Place { root: true, apart: None, count: Some(1), hidden: false },
        );
        assert_eq!((rules.total, rules.expensive.len()), (300 * 629_147, 0));
        let dearer =
            Props::read(&many(300, "self.contains('abcdefghijklmnopqrstuvwxyz0123456789')")).unwrap();
        rules.visit(
            &dearer,
            &Trail::root("p"),
            Place { root: true, apart: None, count: Some(1), hidden: false },
        );
        assert_eq!(rules.expensive.len(), EXPENSIVE_TOLD);
        let causes = super::super::check_schema("p", &many(300, " "), false, true);
        assert!(causes.len() <= 11 && size(&causes) < 1_200_000, "{}", causes.len());
    }

    #[test]
    fn maps_with_properties_count_as_maps() {
        let schema = |bounds: serde_json::Value| {
            let mut map = json!({"type": "object", "additionalProperties": true, "properties": {"a": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self.contains('abcdefghijk')"}]}}});
            map.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
            let whole = json!({"type": "object", "properties": {"m": map}});
            check(&Props::read(&whole).unwrap(), "p", None, false, &BTreeSet::new()).len()
        };
        assert!(schema(json!({})) > 0);
        assert_eq!(
            (schema(json!({"maxProperties": 2})), schema(json!({"maxProperties": 2_000})) > 0),
            (0, true)
        );
    }

    #[test]
    fn fields_of_an_atomic_map_are_not_compared() {
        let ruled = json!({"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]});
        let said = |map: serde_json::Value| {
            let whole = json!({"type": "object", "properties": {"m": map}});
            check(&Props::read(&whole).unwrap(), "p", None, false, &BTreeSet::new()).len()
        };
        let atomic = |below: &str, inside: serde_json::Value| {
            let mut map = json!({"type": "object", "x-kubernetes-map-type": "atomic", "maxProperties": 3});
            map[below] = inside;
            map
        };
        assert_eq!(said(atomic("properties", json!({"a": ruled}))), 1);
        assert_eq!(said(atomic("additionalProperties", ruled)), 0);
    }

    #[test]
    fn names_of_objects_are_short() {
        let schema = json!({"type": "object", "x-kubernetes-validations": [
            {"rule": "self.metadata.name.contains('x')"}, {"rule": "self.metadata.generateName.matches('^[a-z]+$')"}]});
        assert_eq!(check(&Props::read(&schema).unwrap(), "p", None, false, &BTreeSet::new()), []);
        let schema = Props::read(&json!({"type": "object"})).unwrap();
        let environment = Environment::default().with(rules::SELF, declared::of_rule(&schema, true).unwrap());
        let checked = environment.checked("self.metadata.name.contains('x')").unwrap();
        assert_eq!(cost::max_cost(&checked, Decl::Schema(&schema, true)), 3 + 102);
    }

    #[test]
    fn what_was_stored_may_stay() {
        let definition = |rule: &str, message: &str, more: &str, items: u64| {
            let schema = json!({"type": "object", "properties": {
                "l": {"type": "array", "items": {"type": "string", "maxLength": 100_000}, "maxItems": items,
                    "x-kubernetes-validations": [{"rule": rule, "messageExpression": message}]},
                "more": {"type": "string", "description": more}}});
            json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}})
        };
        let said = |new: &Value, old: Option<&Value>| -> Vec<String> {
            let before = old.map(Before::of);
            let schema = &new["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let causes = super::super::check_rules("p", schema, "v1", before.as_ref(), false);
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
        };
        // What an older server does not know is refused where it is new.
        let newer = definition("self.includes('a')", "'x'", "", 9);
        assert_eq!(said(&newer, None).len(), 1);
        assert_eq!(said(&newer, Some(&newer)), [""; 0]);
        assert_eq!(said(&definition("self.includes('a')", "'y'", "z", 9), Some(&newer)), [""; 0]);
        assert_eq!(said(&definition("self.includes('b')", "'x'", "", 9), Some(&newer)).len(), 1);
        // One that cannot be right stays wrong.
        let wrong = definition("self.nothing('a')", "'x'", "", 9);
        assert_eq!(said(&wrong, Some(&wrong)).len(), 1);
        // What costs too much stays where the whole schema does, as long as all of it together is not too much.
        let rule = "self.all(x, x.contains('0123456789012'))";
        let dear = definition(rule, "'x'", "", 500);
        assert!(said(&dear, None)[0].contains("estimated rule cost exceeds budget by factor of 4.0x"));
        assert_eq!(said(&dear, Some(&dear)), [""; 0]);
        assert!(!said(&dear, Some(&definition(rule, "'x'", "before", 500))).is_empty());
        let dearest = definition(rule, "'x'", "", 5_000);
        assert!(!said(&dearest, Some(&dearest)).is_empty());
    }
}
