//! `x-kubernetes-validations`: CEL rules over custom resources, with transition rules, and rules of what an update leaves
//! as it was let pass. Source: `apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go`, KEP-2876.

use serde_json::{Value, json};

use super::causes;
use super::props::{Props, Rule};
use super::validate::before;
use crate::cel::{Budget, CelError, Pace, Program, Val, Variables};
use crate::status::Cause;

/// What all rules of one object may cost. Source: upstream's `RuntimeCELCostBudget`.
const OBJECT_COST_MAX: u64 = 10_000_000;
pub(super) const SELF: &str = "self";
pub(super) const OLD_SELF: &str = "oldSelf";
/// Where upstream has no path.
const NOWHERE: &str = "<nil>";
/// The reasons that a rule may name.
pub(super) const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// A rule that can be run.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    rule: Rule,
    program: Program,
    message: Option<Program>,
    /// Whether it compares with what was.
    transition: bool,
}

/// Compiles a rule; what is wrong with one is said where its definition is written.
pub(super) fn compile(rule: &Rule) -> Result<Compiled, String> {
    let variables = [SELF, OLD_SELF];
    let program = Program::compile(&rule.rule, &variables)?;
    let message = match rule.message_expression.trim() {
        "" => None,
        text => Some(Program::compile(text, &variables)?),
    };
    let transition = program.uses(OLD_SELF);
    Ok(Compiled { rule: rule.clone(), program, message, transition })
}

/// What rules have against a value; `None`: finding out takes longer than the pace allows.
pub(super) fn check(
    value: &Value,
    old: Option<&Value>,
    schema: &Props,
    pace: Option<&Pace>,
) -> Option<Vec<Cause>> {
    let mut budget = object_budget();
    let mut walk = Walk { causes: Vec::new(), budget: &mut budget, over: false, pace, long: false };
    walk.value(value, old, schema, "");
    (!walk.long).then_some(walk.causes)
}

/// What the rules of one object may spend, or those of all defaults of one schema.
pub(super) fn object_budget() -> Budget {
    Budget::new(OBJECT_COST_MAX)
}

/// What rules have against a default, within what all defaults of a schema may spend: as a new value, and as one that
/// stays as it was. Source: `schema/defaulting.validate`.
pub(super) fn check_default(default: &Value, schema: &Props, budget: &mut Budget) -> Vec<Cause> {
    let mut walk = Walk { causes: Vec::new(), budget, over: false, pace: None, long: false };
    walk.value(default, Some(default), schema, "");
    if walk.causes.is_empty() {
        walk.value(default, None, schema, "");
    }
    if walk.over {
        // What was too dear once ends all of it.
        *walk.budget = Budget::new(0);
    }
    walk.causes
}

struct Walk<'p> {
    causes: Vec<Cause>,
    budget: &'p mut Budget,
    /// Nothing more is run.
    over: bool,
    pace: Option<&'p Pace>,
    /// An expression gave way.
    long: bool,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value, old: Option<&Value>, schema: &Props, path: &str) {
        if self.over || (value.is_null() && schema.nullable) {
            return;
        }
        for rule in schema.compiled_rules.iter() {
            self.rule(rule, value, old, schema, path);
        }
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let Some(below) = schema.child(name).filter(|below| below.with_rules) else { continue };
                    let dot = if path.is_empty() { "" } else { "." };
                    let at = if schema.properties.contains_key(name) {
                        format!("{path}{dot}{name}")
                    } else {
                        format!("{path}[{name}]")
                    };
                    self.value(field, old.and_then(|old| old.get(name)), below, &at);
                }
            }
            Value::Array(items) => {
                let Some(below) = schema.item().filter(|below| below.with_rules) else { return };
                for (index, item) in items.iter().enumerate() {
                    self.value(item, before(schema, item, old), below, &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }

    fn rule(&mut self, compiled: &Compiled, value: &Value, old: Option<&Value>, schema: &Props, path: &str) {
        let rule = &compiled.rule;
        let may_lack_old = rule.optional_old_self == Some(true);
        if self.over || (compiled.transition && old.is_none() && !may_lack_old) {
            return;
        }
        // What stays as it was is not held against the writer; a transition rule speaks of the change itself.
        if !compiled.transition && old == Some(value) {
            return;
        }
        let mut variables =
            Variables::default().paced(self.pace).with(SELF, Val::of_json(value, Some(schema)));
        if may_lack_old {
            variables = variables.with(OLD_SELF, Val::optional_json(old, Some(schema)));
        } else if let Some(old) = old {
            variables = variables.with(OLD_SELF, Val::of_json(old, Some(schema)));
        }
        let has_parts = matches!(value, Value::Object(_) | Value::Array(_));
        let place = if path.is_empty() { NOWHERE } else { path };
        match self.budget.call(|budget| compiled.program.holds(&variables, budget)) {
            Ok(true) => {}
            Ok(false) => {
                let detail = self.detail(compiled, &variables);
                let place = field_of(path, &rule.field_path);
                self.causes.push(match rule.reason.as_deref() {
                    Some("FieldValueForbidden") => causes::forbidden(&place, detail),
                    Some("FieldValueRequired") => causes::required(&place, &detail),
                    Some("FieldValueDuplicate") if has_parts => causes::duplicate_one(&place),
                    Some("FieldValueDuplicate") => causes::duplicate(&place, value),
                    _ if has_parts => causes::invalid_one(&place, detail),
                    _ => causes::invalid(&place, value, detail),
                });
            }
            Err(CelError::Cost) => {
                self.over = true;
                let detail = if self.budget.left() == 0 {
                    "validation failed due to running out of cost budget, no further validation rules will be run"
                        .to_owned()
                } else {
                    format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        CelError::Cost,
                        name_of(rule)
                    )
                };
                self.causes.push(causes::invalid(place, &json!(schema.ty), detail));
            }
            Err(CelError::Long) => (self.over, self.long) = (true, true),
            Err(CelError::Unanswered(_)) => {}
            Err(CelError::Fault(error)) => {
                let detail = if error.contains("overload") {
                    format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for \
                         rule: {}",
                        name_of(rule)
                    )
                } else {
                    format!("{error} evaluating rule: {}", name_of(rule))
                };
                self.causes.push(causes::invalid(place, &json!(schema.ty), detail));
            }
        }
    }

    /// What a rule that does not hold says.
    fn detail<'v>(&mut self, compiled: &'v Compiled, variables: &Variables<'v>) -> String {
        let told = compiled.message.as_ref();
        let told = told.map(|message| self.budget.call(|budget| message.run(variables, budget)));
        if matches!(told, Some(Err(CelError::Long))) {
            (self.over, self.long) = (true, true);
        }
        if let Some(Ok(Val::Text(text))) = told {
            let text = text.trim();
            if !text.is_empty() && !text.contains(['\n', '\r']) && text.len() <= 5 * 1024 {
                return text.to_owned();
            }
        }
        match compiled.rule.message.trim() {
            "" => format!("failed rule: {}", name_of(&compiled.rule)),
            message => message.to_owned(),
        }
    }
}

/// A rule as errors name it: by its message, or by itself.
fn name_of(rule: &Rule) -> &str {
    match rule.message.trim() {
        "" => rule.rule.trim(),
        message => message,
    }
}

/// The field that a rule's `fieldPath` (`.spec.a`, `.spec['a']`) names below a path.
fn field_of(path: &str, below: &str) -> String {
    let mut named = below.replace("['", ".").replace("']", "");
    if path.is_empty() {
        named = named.trim_start_matches('.').to_owned();
    }
    match (path, named.as_str()) {
        ("", "") => NOWHERE.to_owned(),
        (path, named) => format!("{path}{named}"),
    }
}

/// The failure that stands for all rules where the object itself is not valid.
pub(super) fn unchecked() -> Cause {
    let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                  complete validation";
    causes::invalid(NOWHERE, &Value::Null, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(rules: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules,
        "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
            "ratio": {"type": "number"}, "since": {"type": "string", "format": "date-time"},
            "list": {"type": "array", "items": {"type": "string"}},
            "fixed": {"type": "string", "x-kubernetes-validations": [
                {"rule": "self == oldSelf", "message": "fixed is immutable"}]},
        }}}});
        let mut props = Props::read(&schema).unwrap();
        props.compile_rules();
        let causes = check(&value, old.as_ref(), &props, None).unwrap();
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn defaults_are_held_to_rules_within_one_budget() {
        let judged = |schema: Value, budget: &mut Budget| {
            let mut props = Props::read(&schema).unwrap();
            props.compile_rules();
            let causes = check_default(&schema["default"], &props, budget);
            causes.into_iter().map(|cause| cause.message).collect::<Vec<_>>()
        };
        let of = |rule: &str| {
            json!({"type": "array", "maxItems": 100, "items": {"type": "integer"}, "default": vec![1; 100],
                "x-kubernetes-validations": [{"rule": rule}]})
        };
        let mut budget = object_budget();
        assert_eq!(judged(of("self.size() == 100"), &mut budget), [""; 0]);
        // Also to those that compare with what was: a default may stay as it is.
        let same = "Invalid value: failed rule: self != oldSelf";
        assert_eq!(judged(of("self != oldSelf"), &mut budget), [same]);
        // What is too dear once ends all of it, and nothing is run for long.
        let dear = of("self.all(a, self.all(b, self.all(c, a + b + c > 0)))");
        let over = judged(dear.clone(), &mut budget);
        assert!(over.len() == 1 && over[0].contains("no further validation rules will be run"), "{over:?}");
        assert_eq!(budget.left(), 0);
    }

    #[test]
    fn rules_hold_or_say_why_not() {
        let wrong = json!({"spec": {"min": 3, "max": 2, "name": "x"}});
        for (rule, wanted) in [
            (
                json!({"rule": "self.min <= self.max"}),
                "spec: Invalid value: failed rule: self.min <= self.max",
            ),
            (
                json!({"rule": "self.min <= self.max", "message": "min over max", "fieldPath": ".min"}),
                "spec.min: Invalid value: min over max",
            ),
            (
                json!({"rule": "self.min <= self.max", "messageExpression": "'%d > %d'.format([self.min, self.max])",
                    "reason": "FieldValueForbidden"}),
                "spec: Forbidden: 3 > 2",
            ),
            (
                json!({"rule": "self.ratio > 0.5"}),
                "spec: Invalid value: \"object\": no such key: ratio evaluating rule: self.ratio > 0.5",
            ),
        ] {
            assert_eq!(said(json!([rule]), wrong.clone(), None), [wanted]);
        }
        let right = json!({"spec": {"ratio": 1, "since": "2026-01-01T00:00:00Z", "list": ["a", "b"]}});
        for rule in [
            "self.ratio * 2.0 == 2.0",
            "self.since < timestamp('2027-01-01T00:00:00Z')",
            "!has(self.min) || self.min > 3",
            "self.list.all(x, x.matches('^[a-z]$')) && size(self.list) == 2",
        ] {
            assert!(said(json!([{"rule": rule}]), right.clone(), None).is_empty(), "{rule}");
        }
    }

    #[test]
    fn transitions_and_what_stays() {
        let value = |fixed: &str| json!({"spec": {"fixed": fixed, "min": 9}});
        assert!(said(json!([]), value("a"), None).is_empty());
        assert_eq!(
            said(json!([]), value("b"), Some(value("a"))),
            ["spec.fixed: Invalid value: \"b\": fixed is immutable"]
        );
        let bound = json!([{"rule": "self.min < 5"}]);
        assert!(said(bound.clone(), value("a"), Some(value("a"))).is_empty());
        assert_eq!(said(bound, value("a"), Some(json!({"spec": {"min": 1}}))).len(), 1);
        let first = json!([{"rule": "oldSelf.hasValue() || self.min == 9", "optionalOldSelf": true}]);
        assert!(said(first, value("a"), None).is_empty());
    }

    #[test]
    fn no_rule_takes_the_server_down() {
        let list: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
        let value = json!({"spec": {"list": list}});
        let rule =
            "self.list.all(a, self.list.all(b, self.list.all(c, a != b || b != c || a + b + c != '')))";
        let said = said(json!([{"rule": rule}, {"rule": "true"}]), value, None);
        assert_eq!(said.len(), 1);
        assert!(
            said[0].contains("no further validation rules will be run due to call cost exceeds limit"),
            "{said:?}"
        );
    }
}
