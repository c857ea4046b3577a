//! Admission policies: expressions that refuse requests (ValidatingAdmissionPolicy) or change objects
//! (MutatingAdmissionPolicy) where bindings put them to work. Policies are compiled when they change and kept; a request
//! that none of them means costs a look at two revisions. Source: `admission/plugin/policy`, KEP-3488, KEP-3962.

mod mutating;
mod parameters;
mod registry;
mod validating;

pub use mutating::MutatingPolicies;
pub use validating::ValidatingPolicies;

use api::cel::{Composition, Program};
use serde_json::Value;

use super::conditions::Conditions;
use super::rules::Selection;
use super::{Review, World};
use crate::tree;
use parameters::{ParamKind, ParamRef};

/// The variables of policies; `params` is added where there is a `paramKind`.
const VARIABLES: [&str; 7] =
    ["object", "oldObject", "request", "namespaceObject", "authorizer", "variables", "params"];

/// What both sorts of policies have; `B` is the body of one sort.
#[derive(Debug)]
struct Policy<B> {
    name: String,
    /// The failure is a selector that cannot be read.
    selection: Result<Selection, String>,
    /// Whether what goes wrong refuses the request.
    fails: bool,
    param_kind: Option<ParamKind>,
    conditions: Conditions,
    composition: Composition,
    body: B,
}

impl<B> Policy<B> {
    fn compile(object: &Value, body: fn(&Value, &[&str]) -> B) -> Self {
        let spec = tree::at(object, &["spec"]);
        let param_kind = ParamKind::read(tree::at(spec, &["paramKind"]));
        let known = if param_kind.is_some() { &VARIABLES[..] } else { &VARIABLES[..VARIABLES.len() - 1] };
        let mut composition = Composition::default();
        for variable in tree::items(spec, &["variables"]) {
            let program = Program::compile(tree::text(variable, &["expression"]).trim(), known);
            composition.add(tree::text(variable, &["name"]), program);
        }
        Self {
            name: tree::text(object, &["metadata", "name"]).to_owned(),
            selection: Selection::of_policy(tree::at(spec, &["matchConstraints"])),
            fails: tree::text(spec, &["failurePolicy"]) != "Ignore",
            param_kind,
            conditions: Conditions::compile(spec, known),
            composition,
            body: body(spec, known),
        }
    }
}

/// Where a policy holds.
#[derive(Debug)]
struct Binding {
    name: String,
    /// The policy's name.
    policy: String,
    /// None: wherever the policy holds.
    selection: Option<Result<Selection, String>>,
    param_ref: Option<ParamRef>,
    /// `validationActions`.
    actions: Vec<String>,
}

impl Binding {
    fn read(object: &Value) -> Self {
        let spec = tree::at(object, &["spec"]);
        let resources = spec.get("matchResources").filter(|resources| resources.is_object());
        let actions = tree::items(spec, &["validationActions"]).iter();
        Self {
            name: tree::text(object, &["metadata", "name"]).to_owned(),
            policy: tree::text(spec, &["policyName"]).to_owned(),
            selection: resources.map(Selection::of_policy),
            param_ref: ParamRef::read(tree::at(spec, &["paramRef"])),
            actions: actions.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }
}

/// Whether a binding means a request.
async fn binds(
    binding: &Binding,
    review: &Review<'_>,
    object: Option<&Value>,
    world: &dyn World,
) -> Result<bool, String> {
    match &binding.selection {
        None => Ok(true),
        Some(Err(problem)) => Err(problem.clone()),
        Some(Ok(selection)) => match selection.matches(review, object, world).await {
            Ok(matched) => Ok(matched.is_some()),
            Err(status) => Err(status.message),
        },
    }
}
