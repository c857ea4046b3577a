//! MutatingAdmissionPolicy: expressions that make a configuration to be merged into the object, or a JSON patch of it.
//! Source: `admission/plugin/policy/mutating`, `admission/plugin/policy/generic/policy_dispatcher.go`.

use std::sync::Arc;

use api::cel::{Budget, CelError, Val};
use api::status::Cause;
use api::{FieldValidation, Reason, Status};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::conditions::{
    Answers, Expression, Met, OUT_OF_BUDGET, Pause, Scene, Stop, answered, is_shown_as,
};
use super::super::lifecycle::forbidden;
use super::super::rules::{self, Matched};
use super::super::{Link, Operation, Review, World};
use super::parameters::{self, Wrong};
use super::registry::{Active, Registry};
use super::{Binding, Policy};
use crate::tree;
use crate::words::{self, Kind};

const PLUGIN: &str = "MutatingAdmissionPolicy";
/// What one mutation may cost. Source: `RuntimeCELCostBudget`.
const MUTATION_COST_MAX: u64 = 10_000_000;

/// The link.
#[derive(Debug)]
pub struct MutatingPolicies(Registry<Body>);

impl Default for MutatingPolicies {
    fn default() -> Self {
        let resources = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];
        Self(Registry::new(resources, Body::compile))
    }
}

/// What such a policy has of its own.
#[derive(Debug)]
struct Body {
    mutations: Vec<Mutation>,
    /// Whether it wants to see what is changed after it.
    again: bool,
}

#[derive(Debug)]
struct Mutation {
    how: How,
    expression: Expression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Apply,
    Patch,
}

impl Body {
    fn compile(spec: &Value, variables: &[&str]) -> Self {
        let mutation = |value: &Value| {
            let (how, field) = match tree::text(value, &["patchType"]) {
                "JSONPatch" => (How::Patch, "jsonPatch"),
                _ => (How::Apply, "applyConfiguration"),
            };
            let expression = Expression::compile(tree::text(value, &[field, "expression"]), variables);
            Mutation { how, expression }
        };
        Self {
            mutations: tree::items(spec, &["mutations"]).iter().map(mutation).collect(),
            again: tree::text(spec, &["reinvocationPolicy"]) == "IfNeeded",
        }
    }
}

/// A policy that means a request by one binding, with one parameter.
struct Invocation {
    policy: Arc<Policy<Body>>,
    binding: Arc<Binding>,
    matched: Matched,
    params: Value,
}

impl Invocation {
    fn key(&self) -> String {
        let text = |part: &str| tree::text(&self.params, &["metadata", part]).to_owned();
        [self.policy.name.clone(), self.binding.name.clone(), text("namespace"), text("name")].join("/")
    }
}

/// What goes wrong, policy by policy; nothing of those that ignore their failures.
#[derive(Default)]
struct Errors(Vec<(String, Option<Reason>)>);

impl Errors {
    fn add(
        &mut self,
        policy: &Policy<Body>,
        binding: Option<&Binding>,
        problem: &str,
        reason: Option<Reason>,
    ) {
        if !policy.fails {
            return;
        }
        let message = match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{}' denied request: {problem}", policy.name, binding.name)
            }
            None => format!("policy {:?} denied request: {problem}", policy.name),
        };
        self.0.push((message, reason));
    }

    fn misconfigured(&mut self, policy: &Policy<Body>, binding: Option<&Binding>, problem: &str) {
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.add(policy, binding, &format!("failed to configure {what}: {problem}"), None);
    }

    fn answer(self, review: &Review<'_>) -> Result<(), Status> {
        let Some((first, reason)) = self.0.first() else { return Ok(()) };
        let mut status = forbidden(review, "admission request denied by policy");
        status.message = first.clone();
        if let Some(reason) = reason {
            status.reason = *reason;
        }
        let cause =
            |(message, _): &(String, Option<Reason>)| Cause { message: message.clone(), ..Cause::default() };
        status.details.causes.extend(self.0.iter().map(cause));
        Err(status)
    }
}

#[async_trait]
impl Link for MutatingPolicies {
    fn name(&self) -> &'static str {
        PLUGIN
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value, world: &dyn World) -> Result<(), Status> {
        let active = self.0.active(world);
        if active.is_empty() || review.operation == Operation::Delete || rules::is_exempt(review) {
            return Ok(());
        }
        let mut errors = Errors::default();
        let mut invocations = Vec::new();
        for active in active.iter() {
            invocations.extend(invocations_of(active, review, object, world, &mut errors).await);
        }
        if !invocations.is_empty() {
            review.rounds.enter(PLUGIN, object);
            let (mut answers, mut written) = (Answers::default(), false);
            for invocation in &invocations {
                written |= invoke(invocation, review, object, world, &mut answers, &mut errors).await?;
            }
            if written {
                review.rounds.wrote(PLUGIN);
            }
            review.rounds.leave(PLUGIN, object);
        }
        errors.answer(review)
    }
}

/// How a policy means a request.
async fn invocations_of(
    active: &Active<Body>,
    review: &Review<'_>,
    object: &Value,
    world: &dyn World,
    errors: &mut Errors,
) -> Vec<Invocation> {
    let policy = &active.policy;
    let matched = match &policy.selection {
        Ok(selection) => {
            selection.matches(review, Some(object), world).await.map_err(|status| status.message)
        }
        Err(problem) => Err(problem.clone()),
    };
    let matched = match matched {
        Ok(Some(matched)) => matched,
        Ok(None) => return Vec::new(),
        Err(problem) => {
            errors.misconfigured(policy, None, &problem);
            return Vec::new();
        }
    };
    let mut invocations = Vec::new();
    for binding in &active.bindings {
        match super::binds(binding, review, Some(object), world).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(problem) => {
                errors.misconfigured(policy, Some(binding), &problem);
                continue;
            }
        }
        let kind = policy.param_kind.as_ref();
        match parameters::collect(kind, binding.param_ref.as_ref(), review, world).await {
            Ok(all) => invocations.extend(all.into_iter().map(|params| Invocation {
                policy: policy.clone(),
                binding: binding.clone(),
                matched: matched.clone(),
                params,
            })),
            Err(Wrong::Policy(problem)) => {
                errors.misconfigured(policy, None, &problem);
                break;
            }
            Err(Wrong::Binding(problem)) => errors.misconfigured(policy, Some(binding), &problem),
        }
    }
    invocations
}

/// Lets a policy change the object, if its conditions are met; whether it wrote it anew, changed or not.
async fn invoke(
    invocation: &Invocation,
    review: &Review<'_>,
    object: &mut Value,
    world: &dyn World,
    answers: &mut Answers,
    errors: &mut Errors,
) -> Result<bool, Status> {
    let Invocation { policy, binding, matched, params } = invocation;
    let key = invocation.key();
    let params = policy.param_kind.as_ref().map(|_| params);
    let met = {
        let scene = Scene::new(review, Some(object), matched, world).await?;
        let evaluate = |answers: &Answers| {
            policy.conditions.met(&scene.variables(params, answers).composed(&policy.composition))
        };
        answered(review.user, world, answers, evaluate).await
    };
    match met {
        Met::Yes => {}
        Met::No(_) => return Ok(false),
        Met::Failed(problem) => {
            errors.add(policy, Some(binding), &problem, Some(Reason::Invalid));
            return Ok(false);
        }
    }
    if !review.rounds.runs(PLUGIN, &key) {
        return Ok(false);
    }
    review.rounds.changes(object);
    let (mut written, mut differs) = (false, false);
    for mutation in &policy.body.mutations {
        let changed = {
            let bare = Scene::new(review, Some(object), matched, world).await?;
            let scene = bare.with_namespace(review, world).await?;
            let evaluate = |answers: &Answers| patch_of(policy, mutation, &scene, params, answers);
            let patch = answered(review.user, world, answers, evaluate).await;
            patch.and_then(|patch| patched(mutation.how, &scene.object, patch, review, matched))
        };
        let changed = match changed {
            Ok(changed) if review.subresource_is_own_kind() || is_shown_as(review, matched) => changed,
            Ok(changed) => world.convert(changed, &matched.kind, review.kind).await?,
            Err(problem) => {
                errors.add(policy, Some(binding), &problem, Some(Reason::Invalid));
                continue;
            }
        };
        (written, differs) = (true, differs || changed != *object);
        *object = changed;
    }
    review.rounds.ran(PLUGIN, &key, differs, policy.body.again);
    Ok(written)
}

/// What a mutation's expression makes, as JSON.
fn patch_of(
    policy: &Policy<Body>,
    mutation: &Mutation,
    scene: &Scene<'_>,
    params: Option<&Value>,
    answers: &Answers,
) -> Result<Result<Value, String>, Pause> {
    let variables = scene.variables(params, answers).composed(&policy.composition).patching();
    let mut budget = Budget::new(MUTATION_COST_MAX);
    let value = match mutation.expression.run(&variables, &mut budget) {
        Ok(Ok(value)) => value,
        Ok(Err(problem)) => return Ok(Err(problem)),
        Err(Stop::Pause(pause)) => return Err(pause),
        Err(Stop::Budget) => return Ok(Err(OUT_OF_BUDGET.to_owned())),
    };
    // What is made of the value is paid as another expression would be.
    Ok(budget
        .call(|budget| match mutation.how {
            How::Apply => configuration(&value, budget),
            How::Patch => operations(&value, budget),
        })
        .map_err(|problem| problem.to_string()))
}

fn configuration(value: &Val<'_>, budget: &mut Budget) -> Result<Value, CelError> {
    match value {
        Val::Made(..) => {
            value.check_made("Object", budget).map_err(mismatch)?;
            value.to_json(budget)
        }
        other => Err(CelError::Fault(format!(
            "unsupported return type from ApplyConfiguration expression: {}",
            other.type_name()
        ))),
    }
}

fn mismatch(problem: CelError) -> CelError {
    match problem {
        CelError::Fault(problem) => CelError::Fault(format!("type mismatch: {problem}")),
        other => other,
    }
}

/// RFC 6902, from a list of `JSONPatch` objects.
fn operations(value: &Val<'_>, budget: &mut Budget) -> Result<Value, CelError> {
    let Val::List(items) = value else {
        let problem = "type mismatch: JSONPatchType.expression should evaluate to array";
        return Err(CelError::Fault(problem.to_owned()));
    };
    let mut operations = Vec::new();
    for item in items.iter() {
        let Val::Made("JSONPatch", fields) = item else {
            return Err(CelError::Fault(format!(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {}",
                item.type_name()
            )));
        };
        if let Some(made @ Val::Made(root, _)) = fields.get("value") {
            made.check_made(root, budget).map_err(mismatch)?;
        }
        let mut operation = item.to_json(budget)?;
        for name in ["op", "path"] {
            tree::set_default(&mut operation, name, "");
        }
        operations.push(operation);
    }
    Ok(Value::Array(operations))
}

/// The object with a patch applied, decoded and defaulted, in the version matched.
fn patched(
    how: How,
    object: &Value,
    mut patch: Value,
    review: &Review<'_>,
    matched: &Matched,
) -> Result<Value, String> {
    let kind = &*matched.kind;
    let mut new = match how {
        How::Apply => {
            for field in ["apiVersion", "kind"] {
                tree::copy(object, &mut patch, field);
            }
            let merged = words::merge_unowned(kind, object.clone(), patch);
            merged.map_err(|problem| format!("error applying patch: {problem}"))?
        }
        How::Patch if !tests_hold(object, &patch) => return Ok(object.clone()),
        How::Patch => {
            let mut new = object.clone();
            api::patch::json_patch(&mut new, patch.to_string().as_bytes())
                .map_err(|refusal| format!("JSON Patch: {refusal}"))?;
            new
        }
    };
    if review.subresource_is_own_kind() {
        return Ok(new);
    }
    new = checked(kind, &new)?;
    words::default(kind, &mut new);
    Ok(new)
}

/// Whether the tests of a JSON patch hold, each after the operations before it: one that does not is no failure, and
/// nothing is changed.
fn tests_hold(object: &Value, patch: &Value) -> bool {
    let all = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    if !all.iter().any(|operation| operation["op"] == "test") {
        return true;
    }
    let mut object = object.clone();
    for operation in all {
        let applied = api::patch::json_patch(&mut object, json!([operation]).to_string().as_bytes());
        if applied.is_err() {
            return operation["op"] != "test";
        }
    }
    true
}

/// What a mutation made has to be an object of the kind, without unknown fields.
fn checked(kind: &Kind, object: &Value) -> Result<Value, String> {
    let decoded = words::decode(kind, object.to_string().as_bytes(), FieldValidation::Strict);
    decoded.map(|(object, _)| object).map_err(|status| status.message)
}
