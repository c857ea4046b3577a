//! Gathers the rules of aggregated ClusterRoles: the union of those of all roles that their selectors match.
//! Source: `k8s.io/kubernetes/pkg/controller/clusterroleaggregation`.

use std::sync::Arc;

use api::{Key, ObjectMeta, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, ready};
use crate::selector::{LabelSelector, Select};

const NAME: &str = "clusterrole-aggregation-controller";

/// The controller.
pub struct RoleAggregation {
    ctx: Ctx,
}

impl RoleAggregation {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// The fields of a ClusterRole that count.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClusterRole {
    metadata: ObjectMeta,
    aggregation_rule: Option<AggregationRule>,
    /// As they stand: nothing of them is lost.
    rules: Option<Vec<Value>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AggregationRule {
    cluster_role_selectors: Vec<LabelSelector>,
}

/// The rules that an aggregated role should have and has not. Each comes once, in the order of selectors and names.
fn plan(role: &ClusterRole, all: &[ClusterRole]) -> Option<Vec<Value>> {
    let rule = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in &rule.cluster_role_selectors {
        let is_chosen = |other: &&ClusterRole| {
            other.metadata.name != role.metadata.name && selector.matches(&other.metadata.labels)
        };
        let mut chosen: Vec<&ClusterRole> = all.iter().filter(is_chosen).collect();
        chosen.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        for rule in chosen.into_iter().flat_map(|other| other.rules.as_deref().unwrap_or_default()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[async_trait]
impl Component for RoleAggregation {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let roles = self.ctx.informers.get(kinds::CLUSTER_ROLES);
        let queue: Queue<Key> = self.ctx.queue("ClusterRoleAggregator");
        if !ready(&ctx, &[&roles]).await {
            return Ok(());
        }
        // Any role may be part of any aggregated one: one round looks at all, however many changes led to it.
        let listener = queue.clone();
        let _registration = roles.on_change(move |_| listener.add(Key::new("", "")));
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), roles });
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    roles: Informer,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, _: &Key) -> Result<Action, BoxError> {
        // One that cannot be read gives nothing, and gets nothing.
        let roles: Vec<ClusterRole> =
            self.roles.list().iter().map(|role| decode(role).unwrap_or_default()).collect();
        let resource = kinds::CLUSTER_ROLES.gvr();
        for role in &roles {
            let Some(rules) = plan(role, &roles) else { continue };
            // The version says that the role is still the one that was looked at.
            let version = &role.metadata.resource_version;
            let patch = json!({ "metadata": { "resourceVersion": version }, "rules": rules });
            let key = Key::new("", role.metadata.name.as_str());
            let written = self.ctx.client.patch(&resource, &key, "", PatchType::Merge, &patch).await;
            if let Some(written) = ignore_missing(written)? {
                self.ctx.caught_up(&self.roles, written.revision()).await;
            }
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, rules: &[&str]) -> ClusterRole {
        let rules: Vec<Value> = rules.iter().map(|verb| json!({ "verbs": [verb] })).collect();
        let role = json!({ "metadata": { "name": name, "labels": { label: "true" } }, "rules": rules });
        serde_json::from_value(role).unwrap()
    }

    #[test]
    fn an_aggregated_role_has_the_rules_of_all_that_match_each_once() {
        let all = [
            role("c", "to-view", &["watch", "get"]),
            role("b", "to-view", &["get", "list"]),
            role("d", "to-edit", &["update"]),
            role("view", "to-view", &["self"]),
        ];
        let view = |rules: &[&str]| {
            let rules: Vec<Value> = rules.iter().map(|verb| json!({ "verbs": [verb] })).collect();
            let selectors = json!([{ "matchLabels": { "to-view": "true" } }]);
            serde_json::from_value::<ClusterRole>(json!({
                "metadata": { "name": "view" }, "aggregationRule": { "clusterRoleSelectors": selectors }, "rules": rules,
            }))
            .unwrap()
        };
        let wanted = ["get", "list", "watch"];
        let verbs = plan(&view(&["self"]), &all).unwrap();
        assert_eq!(verbs, wanted.map(|verb| json!({ "verbs": [verb] })));
        assert_eq!(plan(&view(&wanted), &all), None);
        assert_eq!(plan(&view(&["x"]), &[]), Some(Vec::new()));
        assert_eq!(plan(&ClusterRole::default(), &all), None);
    }
}
