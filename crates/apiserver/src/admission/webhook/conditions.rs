//! Match conditions of webhooks: expressions over `object`, `oldObject` and `request`.
//! Source: `admission/plugin/webhook/matchconditions`.

use api::cel::{Budget, Program, Variables};
use serde_json::Value;

use crate::tree;

/// What all conditions of one webhook may cost. Source: `RuntimeCELCostBudgetMatchConditions`.
const COST_MAX: u64 = 2_500_000;
const VARIABLES: [&str; 3] = ["object", "oldObject", "request"];

/// `matchConditions`, compiled; or why one cannot be.
#[derive(Debug)]
pub(super) struct Conditions(Vec<Result<Program, String>>);

impl Conditions {
    /// Those of a webhook.
    pub(super) fn of(hook: &Value) -> Self {
        let conditions = tree::items(hook, &["matchConditions"]).iter();
        let compile = |condition: &Value| {
            Program::compile(tree::text(condition, &["expression"]), &VARIABLES)
                .map_err(|error| format!("compilation error: compilation failed: {error}"))
        };
        Self(conditions.map(compile).collect())
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not decides, whatever goes wrong with others.
    pub(super) fn hold(&self, [object, old]: [&Value; 2], request: &Value) -> Result<bool, String> {
        let variables =
            Variables::default().json("object", object).json("oldObject", old).json("request", request);
        let mut budget = Budget::new(COST_MAX);
        let mut errors = Vec::new();
        for condition in &self.0 {
            let held = condition.as_ref().map_err(Clone::clone).and_then(|program| {
                let about = |error| format!("expression '{}' resulted in error: {error}", program.source());
                program.holds(&variables, &mut budget).map_err(about)
            });
            match held {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => errors.push(error),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_that_does_not_hold_decides() {
        let hold = |expressions: &[&str]| {
            let all: Vec<Value> = expressions.iter().map(|text| json!({ "expression": text })).collect();
            let request = json!({ "operation": "CREATE", "userInfo": { "username": "jane" } });
            let object = json!({ "metadata": { "name": "a" } });
            Conditions::of(&json!({ "matchConditions": all })).hold([&object, &Value::Null], &request)
        };
        let yes = "request.userInfo.username != 'bob' && oldObject == null";
        assert_eq!(hold(&[yes, "object.metadata.name == 'a'"]), Ok(true));
        assert_eq!(hold(&["object.spec.x == 1", "object.metadata.name == 'b'"]), Ok(false));
        let wrong = hold(&[yes, "object.spec.x == 1"]).unwrap_err();
        assert!(wrong.starts_with("expression 'object.spec.x == 1' resulted in error: "), "{wrong}");
        assert!(hold(&["params.x"]).unwrap_err().starts_with("compilation error: "));
    }
}
