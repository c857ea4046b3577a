//! ValidatingAdmissionPolicy. What a policy thinks of a request is a pure function of what its expressions see.
//! Source: `admission/plugin/policy/validating/{dispatcher,validator}.go`.

use std::collections::BTreeMap;
use std::time::Instant;

use api::cel::{Budget, Val, Variables};
use api::status::Cause;
use api::{Reason, Status};
use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::super::conditions::{Answers, Expression, Met, OUT_OF_BUDGET, Pause, Scene, Stop, answered};
use super::super::lifecycle::forbidden;
use super::super::rules::{self, Matched};
use super::super::{Link, Metrics, Review, World};
use super::parameters::{self, Wrong};
use super::registry::Registry;
use super::{Binding, Policy};
use crate::tree;

/// What one evaluation of a policy may cost. Source: `RuntimeCELCostBudget`.
const POLICY_COST_MAX: u64 = 10_000_000;
/// Source: `MaxEvaluatedMessageExpressionSizeBytes`.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// Source: `maxAuditAnnotationValueLength`.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;
/// Source: `maxValidationFailures`.
const FAILURES_MAX: usize = 50;
/// The audit annotation that lists what was found and let pass.
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

/// The link.
#[derive(Debug)]
pub struct ValidatingPolicies(Registry<Body>);

impl Default for ValidatingPolicies {
    fn default() -> Self {
        let resources = ["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
        Self(Registry::new(resources, Body::compile))
    }
}

/// What such a policy has of its own.
#[derive(Debug)]
struct Body {
    validations: Vec<Validation>,
    /// Key and expression.
    annotations: Vec<(String, Expression)>,
}

#[derive(Debug)]
struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: Reason,
}

impl Body {
    fn compile(spec: &Value, variables: &[&str]) -> Self {
        // Messages and annotations know no `authorizer`.
        let telling: Vec<&str> = variables.iter().copied().filter(|name| *name != "authorizer").collect();
        let validation = |value: &Value| {
            let text = |field: &str| tree::text(value, &[field]);
            let telling = Some(text("messageExpression"))
                .filter(|source| !source.trim().is_empty())
                .map(|source| Expression::compile(source, &telling));
            Validation {
                expression: Expression::compile(text("expression"), variables),
                message: text("message").trim().to_owned(),
                message_expression: telling,
                reason: match text("reason") {
                    "Unauthorized" => Reason::Unauthorized,
                    "Forbidden" => Reason::Forbidden,
                    "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
                    _ => Reason::Invalid,
                },
            }
        };
        let annotation = |value: &Value| {
            let expression = Expression::compile(tree::text(value, &["valueExpression"]), &telling);
            (tree::text(value, &["key"]).to_owned(), expression)
        };
        Self {
            validations: tree::items(spec, &["validations"]).iter().map(validation).collect(),
            annotations: tree::items(spec, &["auditAnnotations"]).iter().map(annotation).collect(),
        }
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq)]
struct Denial {
    message: String,
    reason: Reason,
    /// What went wrong, in upstream's word in figures; `no_error` where a validation just does not hold.
    error: &'static str,
}

/// What kind of failure a message tells of. Source: `validating/metrics/errors.go`.
fn error_type(message: &str) -> &'static str {
    if message.contains(OUT_OF_BUDGET) {
        "out_of_budget"
    } else if message.starts_with("compilation") {
        "compile_error"
    } else {
        "invalid_error"
    }
}

impl Denial {
    fn invalid(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { error: error_type(&message), message, reason: Reason::Invalid }
    }
}

/// What a policy thinks of a request.
#[derive(Debug, Default, PartialEq)]
struct Judgement {
    /// What its validations refuse, each with its place; what is done about it is the binding's to say.
    denials: Vec<(usize, Denial)>,
    /// What could not be evaluated and is let pass, in upstream's words in figures.
    ignored: Vec<&'static str>,
    /// What goes wrong beside them and refuses whatever the binding says.
    errors: Vec<Denial>,
    annotations: Vec<(String, String)>,
}

/// The judgement of one policy with one parameter.
fn judge(
    policy: &Policy<Body>,
    scene: &Scene<'_>,
    params: &Value,
    answers: &Answers,
) -> Result<Judgement, Pause> {
    let params = policy.param_kind.as_ref().map(|_| params);
    let variables = scene.variables(params, answers).composed(&policy.composition);
    // A failure of the whole is one of its first validation.
    let failed = |message: String| Judgement {
        denials: policy.fails.then(|| (0, Denial::invalid(message))).into_iter().collect(),
        ..Judgement::default()
    };
    match policy.conditions.met(&variables)? {
        Met::Yes => {}
        Met::No(_) => return Ok(Judgement::default()),
        Met::Failed(_) if !policy.fails => return Ok(Judgement::default()),
        Met::Failed(error) => return Ok(failed(error)),
    }
    let mut budget = Budget::new(POLICY_COST_MAX);
    let mut results = Vec::with_capacity(policy.body.validations.len());
    for validation in &policy.body.validations {
        match validation.expression.run(&variables, &mut budget) {
            // What it is besides true or not is not kept: it may be large.
            Ok(result) => results.push(result.map(|value| matches!(value, Val::Bool(true)))),
            Err(Stop::Pause(pause)) => return Err(pause),
            Err(Stop::Budget) => return Ok(failed(OUT_OF_BUDGET.to_owned())),
        }
    }
    let mut judgement = Judgement::default();
    for (place, (validation, result)) in policy.body.validations.iter().zip(results).enumerate() {
        let denial = match result {
            Ok(true) => continue,
            Err(error) if !policy.fails => {
                judgement.ignored.push(error_type(&error));
                continue;
            }
            Err(error) => Denial::invalid(error),
            Ok(false) => {
                let message = message_of(validation, &variables, &mut budget)?;
                Denial { message, reason: validation.reason, error: "no_error" }
            }
        };
        judgement.denials.push((place, denial));
    }
    annotate(policy, &variables, &mut judgement)?;
    Ok(judgement)
}

/// What a validation that does not hold says.
fn message_of<'v>(
    validation: &'v Validation,
    variables: &Variables<'v>,
    budget: &mut Budget,
) -> Result<String, Pause> {
    if let Some(expression) = &validation.message_expression {
        match expression.run(variables, budget) {
            Ok(Ok(Val::Text(text))) => {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') {
                    return Ok(text.to_owned());
                }
            }
            Err(Stop::Pause(pause)) => return Err(pause),
            Err(Stop::Budget) => return Ok(format!("failed messageExpression: {OUT_OF_BUDGET}")),
            Ok(_) => {}
        }
    }
    Ok(match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.expression.source().trim()),
        message => message.to_owned(),
    })
}

/// The audit annotations of a policy.
fn annotate<'v>(
    policy: &'v Policy<Body>,
    variables: &Variables<'v>,
    judgement: &mut Judgement,
) -> Result<(), Pause> {
    let mut budget = Budget::new(POLICY_COST_MAX);
    for (key, expression) in &policy.body.annotations {
        let value = match expression.run(variables, &mut budget) {
            Ok(value) => value,
            Err(Stop::Pause(pause)) => return Err(pause),
            Err(Stop::Budget) => Err(OUT_OF_BUDGET.to_owned()),
        };
        match value {
            Ok(Val::Text(text)) if text.trim().is_empty() => {}
            Ok(Val::Text(text)) => judgement.annotations.push((key.clone(), shortened(text.trim()))),
            Ok(Val::Null) => {}
            Ok(other) => judgement.errors.push(Denial::invalid(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                expression.source(),
                other.type_name()
            ))),
            Err(error) if policy.fails => judgement.errors.push(Denial::invalid(error)),
            Err(_) => {}
        }
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(ANNOTATION_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// An entry of the audit annotation of what was let pass. Source: `ValidationFailureValue`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    message: String,
    policy: String,
    binding: String,
    expression_index: usize,
    validation_actions: Vec<String>,
}

/// What all policies together found.
#[derive(Debug, Default)]
struct Findings {
    /// The policy, the binding if one is concerned, and why.
    denials: Vec<(String, Option<String>, Denial)>,
    failures: Vec<Failure>,
}

impl Findings {
    /// Something is wrong with the configuration.
    fn misconfigured(&mut self, policy: &Policy<Body>, binding: Option<&Binding>, problem: &str) {
        if !policy.fails {
            return;
        }
        let what = if binding.is_some() { "binding" } else { "policy" };
        let denial = Denial::invalid(format!("failed to configure {what}: {problem}"));
        self.denials.push((policy.name.clone(), binding.map(|binding| binding.name.clone()), denial));
    }

    /// Does with a judgement what the binding says.
    fn act(&mut self, policy: &Policy<Body>, binding: &Binding, judgement: &Judgement, review: &Review<'_>) {
        let deny = |denial: &Denial| (policy.name.clone(), Some(binding.name.clone()), denial.clone());
        for (place, denial) in &judgement.denials {
            for action in &binding.actions {
                match action.as_str() {
                    "Deny" => self.denials.push(deny(denial)),
                    "Warn" => review.notes.warn(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                        policy.name, binding.name, denial.message
                    )),
                    "Audit" => self.failures.push(Failure {
                        message: denial.message.clone(),
                        policy: policy.name.clone(),
                        binding: binding.name.clone(),
                        expression_index: *place,
                        validation_actions: binding.actions.clone(),
                    }),
                    _ => {}
                }
            }
        }
        self.denials.extend(judgement.errors.iter().map(deny));
    }

    fn answer(mut self, review: &Review<'_>) -> Result<(), Status> {
        self.failures.truncate(FAILURES_MAX);
        if !self.failures.is_empty()
            && let Ok(list) = serde_json::to_string(&self.failures)
        {
            review.notes.annotate(FAILURES, list);
        }
        let Some((policy, binding, denial)) = self.denials.into_iter().next() else { return Ok(()) };
        let with = binding.map_or_else(String::new, |binding| format!(" with binding '{binding}'"));
        let message =
            format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {}", denial.message);
        let mut status = forbidden(review, &message);
        status.reason = denial.reason;
        status.code = denial.reason.code();
        status.details.causes.push(Cause { message, ..Cause::default() });
        Err(status)
    }
}

#[async_trait]
impl Link for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let active = self.0.active(world);
        if active.is_empty() || rules::is_exempt(review) {
            return Ok(());
        }
        let mut findings = Findings::default();
        let mut answers = Answers::default();
        for active in active.iter() {
            let policy = &active.policy;
            let selection = match &policy.selection {
                Ok(selection) => selection,
                Err(problem) => {
                    findings.misconfigured(policy, None, problem);
                    continue;
                }
            };
            let matched = match selection.matches(review, object, world).await {
                Ok(Some(matched)) => matched,
                Ok(None) => continue,
                Err(status) => {
                    findings.misconfigured(policy, None, &status.message);
                    continue;
                }
            };
            let seen = Seen { review, object, matched, world };
            apply(policy, &active.bindings, &seen, &mut answers, &mut findings).await?;
        }
        findings.answer(review)
    }
}

/// Counts what a judgement says.
fn count(
    figures: &Metrics,
    names: [&str; 2],
    binding: &Binding,
    judgement: &Judgement,
    took: std::time::Duration,
) {
    for error in &judgement.ignored {
        figures.policy(names, error, "allow", took);
    }
    for (_, denial) in &judgement.denials {
        for action in binding.actions.iter().map(|action| action.to_ascii_lowercase()) {
            figures.policy(names, denial.error, &action, took);
        }
    }
}

/// A request as a policy means it.
struct Seen<'s> {
    review: &'s Review<'s>,
    object: Option<&'s Value>,
    matched: Matched,
    world: &'s dyn World,
}

/// Judges by one policy, for each binding that means the request, with each of its parameters.
async fn apply(
    policy: &Policy<Body>,
    bindings: &[std::sync::Arc<Binding>],
    seen: &Seen<'_>,
    answers: &mut Answers,
    findings: &mut Findings,
) -> Result<(), Status> {
    let Seen { review, object, matched, world } = seen;
    let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut scene = None;
    for binding in bindings {
        match super::binds(binding, review, *object, *world).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(problem) => {
                findings.misconfigured(policy, Some(binding), &problem);
                continue;
            }
        }
        let kind = policy.param_kind.as_ref();
        let all = match parameters::collect(kind, binding.param_ref.as_ref(), review, *world).await {
            Ok(all) => all,
            Err(Wrong::Policy(problem)) => {
                findings.misconfigured(policy, None, &problem);
                break;
            }
            Err(Wrong::Binding(problem)) => {
                findings.misconfigured(policy, Some(binding), &problem);
                continue;
            }
        };
        if scene.is_none() && !all.is_empty() {
            let bare = Scene::new(review, *object, matched, *world).await?;
            scene = Some(bare.with_namespace(review, *world).await?);
        }
        let Some(scene) = &scene else { continue };
        for params in &all {
            let evaluate = |answers: &Answers| judge(policy, scene, params, answers);
            let since = Instant::now();
            let judgement = answered(review.user, *world, answers, evaluate).await;
            if let Some(figures) = world.figures() {
                count(figures, [&policy.name, &binding.name], binding, &judgement, since.elapsed());
            }
            findings.act(policy, binding, &judgement, review);
            for (key, value) in judgement.annotations {
                let values = annotations.entry(key).or_default();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
    }
    for (key, values) in annotations {
        review.notes.annotate(format!("{}/{key}", policy.name), values.join(", "));
    }
    Ok(())
}
