//! Rights that a write needs beyond its verb: nobody gives away what he does not hold (roles, bindings), and some things
//! are only for namespaces with a label.
//! Source: `pkg/registry/rbac/*/policybased`, `pkg/registry/resource/utils.go`.

use api::{Reason, Status};
use serde_json::Value;

use super::{Asked, Pipeline, meta};
use crate::admission::{World, decoded};
use crate::authn::{in_group, names};
use crate::authz::rbac::{GROUP, Missing, Rule, missing};
use crate::authz::{Attributes, Decision, everything};
use crate::field::{FieldError, FieldErrors};
use crate::strategy::LabelNeeded;
use crate::tree;

impl Pipeline {
    /// Refuses a write that would give more than its writer holds. `old` is absent where the object is new.
    pub(super) async fn check_privileges(
        &self,
        asked: &Asked<'_>,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if in_group(asked.user, names::MASTERS) {
            return Ok(());
        }
        match (asked.stored.group.as_ref(), asked.stored.plural.as_ref()) {
            (GROUP, "roles" | "clusterroles") => self.check_role(asked, new, old).await,
            (GROUP, "rolebindings" | "clusterrolebindings") => self.check_binding(asked, new, old).await,
            _ => Ok(()),
        }
    }

    /// What is wrong with a write that only a namespace with a label may have. The namespace is read from the store: a
    /// label that another server took away grants nothing here either.
    pub(super) async fn check_label(
        &self,
        asked: &Asked<'_>,
        new: &Value,
        old: Option<&Value>,
    ) -> FieldErrors {
        let Some(needed) = asked.strategy.label_needed(asked.subresource, new, old) else {
            return Vec::new();
        };
        let name = asked.namespace;
        let found = match self.read("", "namespaces", "", name).await {
            Ok(Some(found)) => decoded(&found).map_err(|status| status.message),
            Ok(None) => Err(Status::not_found("", "namespaces", name).message),
            Err(status) => Err(status.message),
        };
        lacking(&needed, found.as_ref()).into_iter().collect()
    }

    async fn check_role(&self, asked: &Asked<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        if old.is_some_and(|old| only_collected(new, old))
            || self.holds(asked, "escalate", &asked.stored.plural, new).await
        {
            return Ok(());
        }
        self.check_rules(asked, new, &rules_of(new))?;
        let aggregates = |role: &Value| !tree::at(role, &["aggregationRule"]).is_null();
        if aggregates(new) || old.is_some_and(aggregates) {
            // It can gather anything, and a role that gathers no more may have kept somebody from something.
            let why = "must have cluster-admin privileges to use the aggregationRule";
            self.check_rules(asked, new, &everything()).map_err(|_| forbidden(asked, new, why))?;
        }
        Ok(())
    }

    async fn check_binding(&self, asked: &Asked<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        if old.is_some_and(|old| only_collected(new, old)) {
            return Ok(());
        }
        let role = tree::at(new, &["roleRef"]);
        let (resource, place, word) = match tree::text(role, &["kind"]) {
            "ClusterRole" => ("clusterroles", "", "clusterrole"),
            "Role" => ("roles", asked.namespace, "role"),
            // Validation refuses it.
            _ => return Ok(()),
        };
        if self.holds(asked, "bind", resource, role).await {
            return Ok(());
        }
        let name = tree::text(role, &["name"]);
        let Some(found) = self.find(GROUP, resource, place, name).await? else {
            return Err(Status::not_found(GROUP, word, name));
        };
        let role: Value = found.decode().map_err(|error| Status::internal(error.to_string()))?;
        self.check_rules(asked, new, &rules_of(&role))
    }

    /// Whether the writer may do `verb` with the role that `named` (by `name`, or its own metadata) is.
    async fn holds(&self, asked: &Asked<'_>, verb: &str, resource: &str, named: &Value) -> bool {
        let own = tree::text(named, &["metadata", "name"]);
        let name = if own.is_empty() { tree::text(named, &["name"]) } else { own };
        let attributes = Attributes {
            user: asked.user.clone(),
            verb: verb.into(),
            namespace: asked.namespace.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: resource.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        matches!(self.decide(&attributes).await, Decision::Allow { .. })
    }

    fn check_rules(&self, asked: &Asked<'_>, new: &Value, wanted: &[Rule]) -> Result<(), Status> {
        let held = self.parts.authorizer.rules(asked.user, asked.namespace, self);
        let lines = match missing(&held.rules, wanted) {
            Missing::Nothing => return Ok(()),
            Missing::TooLarge(rights) => {
                let why = format!("its rules stand for {rights} rights, too many to compare with yours");
                return Err(forbidden(asked, new, &why));
            }
            Missing::Rights(lines) => lines.join("\n"),
        };
        let groups: Vec<String> = asked.user.groups.iter().map(|group| format!("{group:?}")).collect();
        let (name, groups) = (&asked.user.name, groups.join(" "));
        let mut why = format!(
            "user {name:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{lines}"
        );
        if !held.error.is_empty() {
            why.push_str(&format!("; resolution errors: [{}]", held.error));
        }
        Err(forbidden(asked, new, &why))
    }
}

/// What is wrong where a namespace (or why it is not known) does not have the label that is needed.
fn lacking(needed: &LabelNeeded, namespace: Result<&Value, &String>) -> Option<FieldError> {
    let LabelNeeded { field, label: (key, value), what, on } = needed;
    match namespace {
        Ok(namespace) if tree::text(namespace, &["metadata", "labels", key]) == *value => None,
        Ok(_) => {
            let detail =
                format!("{what} to {on} requires the `{key}: {value}` label on the containing namespace");
            Some(FieldError::forbidden(field.as_str(), &detail))
        }
        Err(why) => {
            let detail = format!("could not retrieve namespace to verify {what}: {why}");
            Some(FieldError::internal(field.as_str(), &detail))
        }
    }
}

fn forbidden(asked: &Asked<'_>, new: &Value, why: &str) -> Status {
    let name = tree::text(new, &["metadata", "name"]);
    let (group, resource) = (&asked.stored.group, &asked.stored.plural);
    let what = api::status::qualified(group, resource);
    Status::new(Reason::Forbidden, format!("{what} {name:?} is forbidden: {why}"))
        .about(group, resource, name)
}

fn rules_of(role: &Value) -> Vec<Rule> {
    serde_json::from_value(tree::at(role, &["rules"]).clone()).unwrap_or_default()
}

/// Whether a write changes nothing but what garbage collection needs to let an object go.
/// Source: `pkg/registry/rbac/helpers.go`.
fn only_collected(new: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        let metadata = tree::metadata(&mut object);
        for field in ["ownerReferences", "finalizers", "managedFields"] {
            metadata.remove(field);
        }
        object
    };
    meta::same(&without(new), &without(old))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_label_grants_by_its_very_value() {
        let needed = LabelNeeded {
            field: "spec.a".into(),
            label: ("example.com/b", "true"),
            what: "use",
            on: "things",
        };
        let said = |namespace: Result<&Value, &String>| {
            lacking(&needed, namespace).map(|error| (error.reason.into_owned(), error.message))
        };
        let labelled = |value: &str| json!({ "metadata": { "labels": { "example.com/b": value } } });
        assert_eq!(said(Ok(&labelled("true"))), None);
        let refused =
            "Forbidden: use to things requires the `example.com/b: true` label on the containing namespace";
        let refused = Some(("FieldValueForbidden".to_owned(), refused.to_owned()));
        for namespace in [labelled("True"), labelled(""), json!({ "metadata": {} })] {
            assert_eq!(said(Ok(&namespace)), refused, "{namespace}");
        }
        let unknown = "Internal error: could not retrieve namespace to verify use: gone";
        assert_eq!(said(Err(&"gone".to_owned())), Some(("InternalError".to_owned(), unknown.to_owned())));
    }

    #[test]
    fn letting_go_is_no_escalation() {
        let role = |owners: Value, verbs: Value| json!({ "metadata": { "name": "r", "ownerReferences": owners, "finalizers": owners }, "rules": verbs });
        let old = role(json!([{ "name": "x" }]), json!(["get"]));
        assert!(only_collected(&role(json!([]), json!(["get"])), &old));
        assert!(!only_collected(&role(json!([]), json!(["*"])), &old));
    }
}
