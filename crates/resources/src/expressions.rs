//! The expressions of webhooks and policies, compiled as they are written: what cannot be right is refused.
//! Source: `admissionregistration/validation/validation.go`, `admission/plugin/cel/compile.go`.

use std::collections::BTreeSet;

use api::cel::{Environment, Type, declared};
use apiserver::field::{FieldError, FieldErrors};
use serde_json::json;

use crate::at::At;

/// The longest expression that selects devices. Source: `CELSelectorExpressionMaxLength`.
const SELECTOR_BYTES_MAX: usize = 10 * 1024;

/// What such an expression may cost. Source: `CELSelectorExpressionMaxCost`.
const SELECTOR_COST_MAX: u64 = 1_000_000;

/// What match conditions of webhooks know.
pub(crate) fn of_webhook() -> Environment {
    declared::admission(false, true)
}

/// What a policy's expressions know, with rights or, for what only tells, without.
pub(crate) fn of_policy(spec: &At<'_>, authorizer: bool) -> Environment {
    let variables: Vec<_> = spec.each("variables").collect();
    let sources = variables.iter().map(|one| (one.get("name").text(), one.get("expression").text()));
    declared::admission(spec.has("paramKind"), authorizer).composed(sources)
}

/// The variables of a policy: their names, and each expression with those before it.
pub(crate) fn check_variables(spec: &At<'_>, errors: &mut FieldErrors) {
    let mut environment = declared::admission(spec.has("paramKind"), true).composed([]);
    let mut before = BTreeSet::new();
    for variable in spec.each("variables") {
        let (name, expression) = (variable.get("name"), variable.get("expression"));
        if name.present("name is not specified", errors) && !is_identifier(name.text()) {
            errors.push(name.invalid("name is not a valid CEL identifier"));
        }
        if !before.insert(name.text()) {
            errors.push(name.duplicate());
        }
        check(&expression, "expression is not specified", &environment, &[], errors);
        // What is wrong with it is said above.
        let _ = environment.compose(name.text(), expression.text());
    }
}

fn is_identifier(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// An expression has to be there, to compile, and to be of one of some types (none: of any).
pub(crate) fn check(
    expression: &At<'_>,
    missing: &str,
    environment: &Environment,
    wanted: &[Type],
    errors: &mut FieldErrors,
) {
    let source = expression.text().trim();
    if source.is_empty() {
        errors.push(expression.required(missing));
        return;
    }
    let problem = match environment.check(source) {
        Err(problem) => format!("compilation failed: {problem}"),
        Ok(ty) if wanted.is_empty() || wanted.iter().any(|wanted| wanted.is(&ty)) => return,
        Ok(ty) => match wanted {
            [one] => format!("must evaluate to {} but got {}", one.full_name(), ty.full_name()),
            several => {
                let several: Vec<String> = several.iter().map(Type::full_name).collect();
                format!("must evaluate to one of [{}] but got {}", several.join(" "), ty.full_name())
            }
        },
    };
    errors.push(FieldError::invalid(expression.path.clone(), &json!(source), &problem));
}

/// Forgives expressions that an update leaves as they were and that only newer servers know: those who are older take
/// none that is new. Source: `preexistingExpressions` of `admissionregistration/validation`.
pub(crate) fn forgive_stored(new: &At<'_>, old: &At<'_>, known: &Environment, errors: &mut FieldErrors) {
    let is_of_compiler = |error: &FieldError| error.message.contains(": compilation failed: ");
    if !errors.iter().any(is_of_compiler) {
        return;
    }
    let (mut after, mut before) = (Vec::new(), Vec::new());
    collect(new, &mut after);
    collect(old, &mut before);
    let before: BTreeSet<&str> = before.into_iter().map(|(_, source)| source).collect();
    let known = known.clone().stored();
    let stored = |error: &FieldError| {
        let source = after.iter().find(|(path, _)| *path == error.field).map(|(_, source)| *source);
        source.is_some_and(|source| before.contains(source) && known.check(source.trim()).is_ok())
    };
    errors.retain(|error| !is_of_compiler(error) || !stored(error));
}

/// All expressions of an object, with their paths.
fn collect<'v>(at: &At<'v>, found: &mut Vec<(String, &'v str)>) {
    for (key, value) in at.value.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(source) if key.ends_with("xpression") => found.push((at.child(key), source)),
            _ => collect(&At::new(value, at.child(key)), found),
        }
    }
    at.items().for_each(|item| collect(&item, found));
}

/// An expression that selects devices: a yes or no, or what is only known at run time.
/// Source: `CompileCELExpression` in `k8s.io/dynamic-resource-allocation/cel`, `validateCELExpression`.
pub(crate) fn check_selector(expression: &At<'_>, errors: &mut FieldErrors) {
    let source = expression.text();
    if source.len() > SELECTOR_BYTES_MAX {
        errors.push(expression.too_long(SELECTOR_BYTES_MAX));
        return;
    }
    let problem = match declared::device_selector(source) {
        Ok((Type::Bool | Type::Dyn, cost)) => {
            if cost > SELECTOR_COST_MAX {
                errors.push(expression.forbidden("too complex, exceeds cost limit"));
            }
            return;
        }
        Ok((ty, _)) => format!("must evaluate to bool or the unknown type, not {}", ty.full_name()),
        Err(problem) => format!("compilation failed: {problem}"),
    };
    errors.push(expression.invalid(&problem));
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::at::said;

    fn problems(spec: serde_json::Value, expression: &str, wanted: &[Type]) -> Vec<String> {
        let spec = At::new(&spec, "spec");
        let value = json!(expression);
        let mut errors = Vec::new();
        check_variables(&spec, &mut errors);
        check(&At::new(&value, "e"), "missing", &of_policy(&spec, true), wanted, &mut errors);
        said(&errors)
    }

    #[test]
    fn expressions_compile_or_are_refused_in_upstreams_words() {
        let spec = json!({"variables": [{"name": "n", "expression": "object.spec.n"}, {"name": "m", "expression": "1 + 1"}]});
        assert_eq!(
            problems(
                spec.clone(),
                "variables.n > variables.m && authorizer.path('/').check('get').allowed()",
                &[Type::Bool]
            ),
            [""; 0]
        );
        for (source, wanted) in [
            ("variables.m", "must evaluate to bool but got int"),
            ("object.spec.enabled", "must evaluate to bool but got dyn"),
            (
                "params.x == 1",
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')",
            ),
            (
                "1 + ",
                "compilation failed: ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting",
            ),
            (" ", "Required value: missing"),
        ] {
            let said = problems(spec.clone(), source, &[Type::Bool]);
            assert!(said.len() == 1 && said[0].contains(wanted), "{source}: {said:?}");
        }
        let said = problems(json!({}), "1", &[Type::Text, Type::Null]);
        assert!(said[0].ends_with("must evaluate to one of [string null_type] but got int"), "{said:?}");
        let twice = json!({"paramKind": {}, "variables": [{"name": "a", "expression": "params.x"}, {"name": "a", "expression": "1"}, {"name": "1", "expression": "variables.b"}]});
        let said = problems(twice, "true", &[Type::Bool]);
        assert_eq!(said.len(), 3, "{said:?}");
    }

    #[test]
    fn what_was_stored_may_stay_though_it_is_too_new() {
        let policy = |first: &str, second: &str| json!({"spec": {"validations": [{"expression": first}, {"expression": second}]}});
        let changes = |old: &Value, new: &Value| {
            let (old, new, mut errors) = (At::object(old), At::object(new), Vec::new());
            for one in new.down(&["spec", "validations"]).items() {
                check(
                    &one.get("expression"),
                    "",
                    &of_policy(&new.get("spec"), true),
                    &[Type::Bool],
                    &mut errors,
                );
            }
            forgive_stored(&new, &old, &of_policy(&new.get("spec"), true), &mut errors);
            said(&errors).len()
        };
        let newer = "['a'].includes(object.b)";
        assert_eq!(changes(&policy("true", "true"), &policy("true", newer)), 1);
        assert_eq!(changes(&policy("true", newer), &policy("false", newer)), 0);
        assert_eq!(changes(&policy(newer, "true"), &policy("true", newer)), 0);
        // What no server knows stays wrong, as does what is of another type.
        assert_eq!(changes(&policy("nothing", "1"), &policy("nothing", "1")), 2);
    }

    #[test]
    fn devices_are_selected_by_what_is_known_of_them() {
        let wrong = |source: &str| {
            let (source, mut errors) = (json!(source), Vec::new());
            check_selector(&At::new(&source, "e"), &mut errors);
            said(&errors).join("; ")
        };
        for right in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['gpu.example.com'].model == 'a' && device.attributes['gpu.example.com'].cores > 4",
            "device.attributes['gpu.example.com'].fast",
            "device.capacity['gpu.example.com'].memory.compareTo(quantity('1Gi')) >= 0",
            "device.attributes['gpu.example.com'].version.isGreaterThan(semver('1.0.0'))",
            "cel.bind(gpu, device.attributes['gpu.example.com'], gpu.a && gpu.b)",
            "device.driver in ['a', 'b'] && !device.allowMultipleAllocations",
        ] {
            assert_eq!(wrong(right), "", "{right}");
        }
        for (source, problem) in [
            ("device.driver(", "compilation failed: ERROR: <input>:1:"),
            ("foo", "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo'"),
            ("device.vendor == 'a'", "compilation failed: ERROR: <input>:1:7: undefined field 'vendor'"),
            ("1", "e: Invalid value: \"1\": must evaluate to bool or the unknown type, not int"),
            ("device.capacity", "must evaluate to bool or the unknown type, not map(string, map(string,"),
        ] {
            assert!(wrong(source).contains(problem), "{source}: {}", wrong(source));
        }
        let dear = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a != b))))";
        assert_eq!(wrong(dear), "e: Forbidden: too complex, exceeds cost limit");
        let long = format!("'{}' == ''", "a".repeat(SELECTOR_BYTES_MAX));
        assert_eq!(wrong(&long), "e: Too long: may not be more than 10240 bytes");
    }
}
