//! A rollback that the server is asked for (`spec.rollbackTo` of the retired version, kept as an annotation): the template
//! of an earlier revision takes the present one's place. Today's clients write the template themselves.
//! Source: `deployment/rollback.go`.

use reconcile::EventType;
use serde_json::{Value, json};

use super::types::{Deployment, POD_TEMPLATE_HASH, ROLLBACK_TO};
use super::{revision, template};
use crate::replicaset::Set;

/// What is done about the request, which is answered in any case.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rollback {
    /// A JSON patch of the Deployment.
    pub(super) patch: Value,
    pub(super) event_type: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The answer to a rollback that is asked for; `sets` are all sets, in any order. What is no number asks for none.
/// Source: `getRollbackTo`.
pub(super) fn plan(deployment: &Deployment, sets: &[&Set]) -> Option<Rollback> {
    let asked: i64 = deployment.metadata.annotations.get(ROLLBACK_TO)?.parse().ok()?;
    let wanted = match asked {
        0 => last_but_one(sets),
        revision => revision,
    };
    let found = sets.iter().find(|set| wanted > 0 && revision::of(set) == wanted);
    let answered = json!({ "op": "remove", "path": pointer(ROLLBACK_TO) });
    let warning = |reason, message| Rollback {
        patch: json!([answered]),
        event_type: EventType::Warning,
        reason,
        message,
    };
    let Some(set) = found else {
        let message = match wanted {
            0 => "Unable to find last revision.",
            _ => "Unable to find the revision to rollback to.",
        };
        return Some(warning("DeploymentRollbackRevisionNotFound", message.into()));
    };
    if template::equal(&set.spec.template, &deployment.spec.template) {
        let message = format!(
            "The rollback revision contains the same template as current deployment {:?}",
            deployment.metadata.name
        );
        return Some(warning("DeploymentRollbackTemplateUnchanged", message));
    }
    let mut pods = set.spec.template.clone();
    if let Some(labels) = pods.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    let mut patch = vec![json!({ "op": "replace", "path": "/spec/template", "value": pods }), answered];
    // The change-cause of the revision comes back with it.
    for (name, value) in &set.metadata.annotations {
        if !revision::OWN.contains(&name.as_str()) {
            patch.push(json!({ "op": "add", "path": pointer(name), "value": value }));
        }
    }
    let message = format!("Rolled back deployment {:?} to revision {wanted}", deployment.metadata.name);
    let event_type = EventType::Normal;
    Some(Rollback { patch: patch.into(), event_type, reason: "DeploymentRollback", message })
}

/// The revision before the newest; 0 if there is none. Source: `LastRevision`.
fn last_but_one(sets: &[&Set]) -> i64 {
    let mut revisions: Vec<i64> = sets.iter().map(|set| revision::of(set)).collect();
    revisions.sort_unstable();
    revisions.iter().rev().nth(1).copied().unwrap_or(0)
}

/// An annotation's place, as RFC 6901 spells it.
fn pointer(annotation: &str) -> String {
    format!("/metadata/annotations/{}", annotation.replace('~', "~0").replace('/', "~1"))
}
