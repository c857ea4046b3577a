//! The parameters of a binding: objects of any kind, by name or by selector. Source: `policy/generic.CollectParams`.

use api::selectors::{LabelSelector, LabelSelectorSpec};
use serde_json::Value;

use super::super::{Review, World};
use crate::tree;
use crate::words::Kind;

/// The kind of a policy's parameters.
#[derive(Debug, Clone)]
pub(super) struct ParamKind {
    api_version: String,
    kind: String,
}

/// Which objects of it a binding means.
#[derive(Debug, Clone)]
pub(super) struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Result<LabelSelector, String>>,
    /// Whether nothing found refuses the request.
    denies_nothing: bool,
}

impl ParamKind {
    pub(super) fn read(value: &Value) -> Option<Self> {
        let text = |field: &str| tree::text(value, &[field]).to_owned();
        value.is_object().then(|| Self { api_version: text("apiVersion"), kind: text("kind") })
    }
}

impl ParamRef {
    pub(super) fn read(value: &Value) -> Option<Self> {
        let selector = value.get("selector").filter(|selector| selector.is_object()).map(|selector| {
            let spec = serde_json::from_value::<LabelSelectorSpec>(selector.clone());
            spec.map_err(|error| error.to_string()).and_then(|spec| LabelSelector::from_spec(&spec))
        });
        value.is_object().then(|| Self {
            name: tree::text(value, &["name"]).to_owned(),
            namespace: tree::text(value, &["namespace"]).to_owned(),
            selector,
            denies_nothing: tree::text(value, &["parameterNotFoundAction"]) == "Deny",
        })
    }
}

/// What is wrong with a binding's parameters.
#[derive(Debug)]
pub(super) enum Wrong {
    /// With the policy.
    Policy(String),
    /// With the binding, or with what it refers to.
    Binding(String),
}

/// The parameters with which a policy is evaluated, once each; one of null where there are none to be had.
pub(super) async fn collect(
    kind: Option<&ParamKind>,
    reference: Option<&ParamRef>,
    review: &Review<'_>,
    world: &dyn World,
) -> Result<Vec<Value>, Wrong> {
    let Some(kind) = kind else { return Ok(vec![Value::Null]) };
    let catalog = world.catalog().rows();
    let row = catalog.by_api_version(&kind.api_version, &kind.kind).ok_or_else(|| {
        Wrong::Policy(format!(
            "failed to find resource referenced by paramKind: '{}, Kind={}'",
            kind.api_version, kind.kind
        ))
    })?;
    let Some(reference) = reference else { return Ok(vec![Value::Null]) };
    let found = find(row, reference, review, world).await.map_err(Wrong::Binding)?;
    if found.is_empty() && reference.denies_nothing {
        let problem = "no params found for policy binding with `Deny` parameterNotFoundAction";
        return Err(Wrong::Binding(problem.to_owned()));
    }
    Ok(found)
}

async fn find(
    row: &Kind,
    reference: &ParamRef,
    review: &Review<'_>,
    world: &dyn World,
) -> Result<Vec<Value>, String> {
    let namespace = match (row.namespaced, reference.namespace.as_str()) {
        (true, "") if review.namespace.is_empty() => {
            let problem =
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(problem.to_owned());
        }
        (true, "") => review.namespace,
        (true, named) => named,
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
    };
    let objects = match (reference.name.as_str(), &reference.selector) {
        ("", None) => return Err("one of name or selector must be provided".to_owned()),
        ("", Some(selector)) => {
            let selector = selector.as_ref().map_err(Clone::clone)?;
            let mut all = world.all(&row.storage_group, &row.plural, namespace);
            all.retain(|object| selector.matches(&object.meta().labels));
            all
        }
        (_, Some(_)) => return Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned()),
        (name, None) => {
            let found = world.find(&row.storage_group, &row.plural, namespace, name).await;
            found.map_err(|status| status.message)?.into_iter().collect()
        }
    };
    let stored = world.catalog().storage_of(&row.storage_group, &row.plural);
    let mut trees = Vec::with_capacity(objects.len());
    for object in objects {
        let tree: Value = object.decode().map_err(|error| error.to_string())?;
        trees.push(match &stored {
            Some(stored) if stored.resource() != row.resource() => {
                world.convert(tree, stored, row).await.map_err(|status| status.message)?
            }
            _ => tree,
        });
    }
    Ok(trees)
}
