//! Says in the status of ValidatingAdmissionPolicies what their expressions get wrong about the objects that they are for:
//! they are checked against the types of these, which changes nothing of what the policies do.
//! Source: `k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus`,
//! `k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go`.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::catalog::{Catalog, Row};
use api::cel::{Environment, Type, declared};
use api::{GroupVersionResource, Key, ObjectMeta, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, ready};

const NAME: &str = "validatingadmissionpolicy-status-controller";
/// Source: `--concurrent-validating-admission-policy-status-syncs`.
const WORKERS: usize = 5;
/// Of one rule, so many kinds are looked at. Source: `maxTypesToCheck`.
const KINDS_MAX: usize = 10;

/// The controller.
pub struct PolicyStatus {
    ctx: Ctx,
}

impl PolicyStatus {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for PolicyStatus {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let policies = self.ctx.informers.get(kinds::VALIDATING_ADMISSION_POLICIES);
        let queue: Queue<Key> = self.ctx.queue("validatingadmissionpolicy-status");
        let keys = queue.clone();
        let _registration = policies.on_change(move |change| {
            if change.new.is_some() {
                keys.add(change.key.clone());
            }
        });
        if !ready(&ctx, &[&policies]).await {
            return Ok(());
        }
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), policies });
        run_workers(&ctx, NAME, &queue, WORKERS, worker).await;
        Ok(())
    }
}

/// A projection of `admissionregistration.k8s.io/v1.ValidatingAdmissionPolicy`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Policy {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    param_kind: Option<ParamKind>,
    match_constraints: Constraints,
    validations: Vec<Validation>,
    variables: Vec<Variable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ParamKind {
    api_version: String,
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Constraints {
    resource_rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Validation {
    expression: String,
    message_expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: i64,
}

/// `admissionregistration.k8s.io/v1.ExpressionWarning`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    field_ref: String,
    warning: String,
}

impl Rule {
    /// The resources that it names, each in a fixed order; none where it means all of something. Source: `extractGroups`
    /// and its siblings.
    fn resources(&self) -> Vec<GroupVersionResource> {
        let is_wide = |text: &String| text.contains('*');
        if self.api_groups.iter().any(is_wide) || self.api_versions.iter().any(is_wide) {
            return Vec::new();
        }
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<String>>();
        let mut resources = sorted(&self.resources);
        resources.retain(|name| !name.contains(['*', '/']));
        let mut all = Vec::new();
        for group in sorted(&self.api_groups) {
            for version in sorted(&self.api_versions) {
                let of = |name: &String| GroupVersionResource::new(&group, &version, name);
                all.extend(resources.iter().map(of));
            }
        }
        all
    }
}

/// The kinds that a policy is for, by group, version and kind. Source: `typesToCheck`.
fn kinds_of<'r>(policy: &Policy, rows: &'r Catalog) -> Vec<&'r Row> {
    let mut kinds: Vec<&Row> = Vec::new();
    for rule in &policy.spec.match_constraints.resource_rules {
        let resources = rule.resources();
        let rows: Vec<&Row> =
            resources.iter().filter_map(|name| rows.get(name)).map(Arc::as_ref).take(KINDS_MAX).collect();
        let full = rows.len() == KINDS_MAX;
        kinds.extend(rows);
        if full {
            break;
        }
    }
    kinds.sort_by_key(|row| order(row));
    kinds.dedup_by_key(|row| order(row));
    kinds
}

fn order(row: &Row) -> (String, String, String) {
    (row.group.to_string(), row.version.to_string(), row.kind.to_string())
}

/// The type of a policy's parameters, if it has any and their kind is served.
fn params_of(policy: &Policy, rows: &Catalog) -> Option<Type> {
    let ParamKind { api_version, kind } = policy.spec.param_kind.as_ref()?;
    rows.by_api_version(api_version, kind).map(|row| declared::of_kind(row))
}

/// What is known where the objects are of this kind.
fn environment(policy: &Policy, row: &Row, params: Option<&Type>) -> Environment {
    let object = declared::of_kind(row);
    let mut environment = declared::admission(params.is_some(), true)
        .with("object", object.clone())
        .with("oldObject", object)
        .stored();
    if let Some(params) = params {
        environment = environment.with("params", params.clone());
    }
    let variables = &policy.spec.variables;
    environment.composed(variables.iter().map(|held| (held.name.as_str(), held.expression.as_str())))
}

/// What is wrong with the expressions. Pure. Source: `TypeChecker.Check`.
fn warnings(policy: &Policy, rows: &Catalog) -> Vec<Warning> {
    let params = params_of(policy, rows);
    let environments: Vec<(String, Environment)> = kinds_of(policy, rows)
        .into_iter()
        .map(|row| {
            let kind = format!("{}/{}, Kind={}", row.group, row.version, row.kind);
            (kind, environment(policy, row, params.as_ref()))
        })
        .collect();
    let check = |expression: &str| {
        let wrong = |(kind, environment): &(String, Environment)| {
            environment.check(expression).err().map(|why| format!("{kind}: {why}\n"))
        };
        environments.iter().filter_map(wrong).collect::<Vec<_>>().join("\n")
    };
    let mut warnings = Vec::new();
    for (at, validation) in policy.spec.validations.iter().enumerate() {
        let expressions =
            [("expression", &validation.expression), ("messageExpression", &validation.message_expression)];
        for (field, expression) in expressions {
            if field == "messageExpression" && expression.is_empty() {
                continue;
            }
            let warning = check(expression);
            if !warning.is_empty() {
                let field_ref = format!("spec.validations[{at}].{field}");
                warnings.push(Warning { field_ref, warning });
            }
        }
    }
    warnings
}

/// A merge patch of the status.
fn patch(policy: &Policy, warnings: &[Warning]) -> Value {
    let told = if warnings.is_empty() { Value::Null } else { json!(warnings) };
    json!({
        "metadata": { "uid": policy.metadata.uid },
        "status": {
            "observedGeneration": policy.metadata.generation,
            "typeChecking": { "expressionWarnings": told },
        },
    })
}

struct Worker {
    ctx: Ctx,
    policies: Informer,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.policies.get(key) else { return Ok(Action::Done) };
        let policy: Policy = decode(&object)?;
        if policy.metadata.generation > policy.status.observed_generation {
            let patch = patch(&policy, &warnings(&policy, &self.ctx.catalog.rows()));
            let resource = self.policies.resource();
            ignore_missing(self.ctx.client.patch(resource, key, "status", PatchType::Merge, &patch).await)?;
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: Value, validations: Value) -> Policy {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "uid": "u", "generation": 3 },
            "spec": { "matchConstraints": { "resourceRules": rules }, "validations": validations,
                "variables": [{ "name": "count", "expression": "object.spec.replicas" }] },
        }))
        .unwrap()
    }

    fn rule(groups: &[&str], versions: &[&str], resources: &[&str]) -> Value {
        json!({ "apiGroups": groups, "apiVersions": versions, "resources": resources, "operations": ["*"] })
    }

    fn found(policy: &Policy) -> Vec<(String, String)> {
        let warnings = warnings(policy, &Catalog::builtin());
        warnings.into_iter().map(|held| (held.field_ref, held.warning)).collect()
    }

    #[test]
    fn what_expressions_get_wrong_about_their_kinds_is_said_of_each() {
        let rules = json!([rule(&["apps"], &["v1"], &["statefulsets", "deployments"])]);
        let right = json!([{ "expression": "object.spec.replicas > 1 && variables.count < 5" }]);
        assert_eq!(found(&policy(rules.clone(), right)), []);
        let wrong = json!([
            { "expression": "object.spec.replicas > 1" },
            { "expression": "object.foo > 1", "messageExpression": "variables.count + 'x'" },
        ]);
        let found = found(&policy(rules, wrong));
        let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["spec.validations[1].expression", "spec.validations[1].messageExpression"]);
        let warning = &found[0].1;
        let first = "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'foo'\n";
        assert!(warning.starts_with(first), "{warning}");
        assert!(
            warning.contains("\n\napps/v1, Kind=StatefulSet: ERROR: ") && warning.ends_with('\n'),
            "{warning}"
        );
    }

    #[test]
    fn parameters_are_known_if_their_kind_is() {
        let rules = json!([rule(&[""], &["v1"], &["pods"])]);
        let mut policy = policy(rules, json!([{ "expression": "params.data['a'] == object.metadata.name" }]));
        assert!(found(&policy)[0].1.starts_with("/v1, Kind=Pod: ERROR: "));
        policy.spec.param_kind = Some(ParamKind { api_version: "v1".into(), kind: "ConfigMap".into() });
        assert_eq!(found(&policy), []);
    }

    #[test]
    fn what_means_everything_is_not_looked_at() {
        let rows = Catalog::builtin();
        let names = |rules: Value| -> Vec<String> {
            let policy = policy(rules, json!([]));
            kinds_of(&policy, &rows).iter().map(|row| row.kind.to_string()).collect()
        };
        assert!(names(json!([rule(&["*"], &["v1"], &["pods"])])).is_empty());
        assert!(names(json!([rule(&[""], &["*"], &["pods"])])).is_empty());
        assert!(names(json!([rule(&[""], &["v1"], &["*", "pods/exec", "nothings"])])).is_empty());
        let rules = json!([
            rule(&[""], &["v1"], &["pods", "*"]),
            rule(&["", "apps"], &["v1"], &["pods", "deployments"])
        ]);
        assert_eq!(names(rules), ["Pod", "Deployment"]);
        let all: Vec<String> = rows
            .rows()
            .filter(|row| row.group.is_empty() && row.version == "v1")
            .map(|row| row.plural.to_string())
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(
            names(json!([rule(&[""], &["v1"], &all), rule(&["apps"], &["v1"], &["deployments"])])).len(),
            KINDS_MAX
        );
    }

    #[test]
    fn the_status_says_that_it_was_looked_at_in_any_case() {
        let rules = json!([rule(&[""], &["v1"], &["pods"])]);
        let policy = policy(rules, json!([]));
        let patch = patch(&policy, &warnings(&policy, &Catalog::builtin()));
        assert_eq!(
            patch["status"],
            json!({ "observedGeneration": 3, "typeChecking": { "expressionWarnings": null } })
        );
    }
}
