//! Which requests a configured plugin means: its rules, the selectors beside them, and the versions of a kind that count
//! as equivalent. Webhooks and admission policies share it. Source: `admission/plugin/webhook/predicates`,
//! `admission/plugin/policy/matching`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::selectors::{LabelSelector, LabelSelectorSpec};
use api::{GroupVersionResource, Status};
use serde_json::Value;

use super::{Operation, Review, World};
use crate::tree;
use crate::words::Kind;

/// The group of what configures admission.
pub const GROUP: &str = "admissionregistration.k8s.io";
/// The kinds by which nobody can lock himself out of changing them. Source: `IsExemptAdmissionConfigurationResource`.
const EXEMPT: [&str; 6] = [
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

/// Whether a request is of the objects that configure admission, which webhooks and policies do not see.
pub fn is_exempt(review: &Review<'_>) -> bool {
    review.resource.group == GROUP && EXEMPT.contains(&review.kind.kind.as_ref())
}

/// A `RuleWithOperations`, or a `NamedRuleWithOperations`.
#[derive(Debug, Clone)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    scope: Scope,
    /// The objects meant; empty for all.
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    Cluster,
    Namespaced,
    None,
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let texts = |field: &str| {
            let items = tree::items(rule, &[field]).iter();
            items.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, part)) => (resource.to_owned(), part.to_owned()),
            None => (resource, String::new()),
        };
        Self {
            operations: texts("operations"),
            groups: texts("apiGroups"),
            versions: texts("apiVersions"),
            resources: texts("resources").into_iter().map(split).collect(),
            scope: match tree::text(rule, &["scope"]) {
                "" | "*" => Scope::All,
                "Cluster" => Scope::Cluster,
                "Namespaced" => Scope::Namespaced,
                _ => Scope::None,
            },
            names: texts("resourceNames"),
        }
    }

    /// Whether it means a request, taken as one for `resource`.
    fn matches(&self, review: &Review<'_>, resource: &GroupVersionResource) -> bool {
        let is = |list: &[String], asked: &str| list.iter().any(|known| known == "*" || known == asked);
        let is_resource = |(known, part): &(String, String)| {
            (known == "*" || *known == resource.resource) && (part == "*" || *part == review.subresource)
        };
        self.reaches(review, resource)
            && is(&self.operations, review.operation.as_str())
            && is(&self.groups, &resource.group)
            && is(&self.versions, &resource.version)
            && self.resources.iter().any(is_resource)
            && (self.names.is_empty() || self.names.iter().any(|name| name == review.name))
    }

    fn reaches(&self, review: &Review<'_>, resource: &GroupVersionResource) -> bool {
        let cluster = review.namespace.is_empty() || is_namespaces(resource);
        match self.scope {
            Scope::All => true,
            Scope::Cluster => cluster,
            Scope::Namespaced => !cluster,
            Scope::None => false,
        }
    }
}

fn is_namespaces(resource: &GroupVersionResource) -> bool {
    resource.group.is_empty() && resource.resource == "namespaces"
}

/// What a webhook or a policy is for.
#[derive(Debug, Clone)]
pub struct Selection {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Whether no rule at all means everything.
    all_without_rules: bool,
    /// Whether other versions of what the rules name are meant too.
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

/// How a request is matched: as the version of its kind that a rule names.
#[derive(Debug, Clone)]
pub struct Matched {
    /// The row of that version.
    pub kind: Arc<Kind>,
    /// Its resource.
    pub resource: GroupVersionResource,
}

impl Selection {
    /// Of a webhook (`rules`, `namespaceSelector`, `objectSelector`, `matchPolicy`); the failure names the selector that
    /// cannot be read.
    pub fn of_webhook(webhook: &Value) -> Result<Self, String> {
        Self::read(webhook, "rules", false)
    }

    /// Of a policy or a binding: `matchConstraints` or `matchResources`.
    pub fn of_policy(resources: &Value) -> Result<Self, String> {
        Self::read(resources, "resourceRules", true)
    }

    fn read(from: &Value, rules: &str, all_without_rules: bool) -> Result<Self, String> {
        let list = |field: &str| tree::items(from, &[field]).iter().map(Rule::read).collect();
        let selector = |field: &str| match tree::at(from, &[field]) {
            Value::Null => Ok(LabelSelector::default()),
            given => serde_json::from_value::<LabelSelectorSpec>(given.clone())
                .map_err(|error| error.to_string())
                .and_then(|spec| LabelSelector::from_spec(&spec))
                .map_err(|error| format!("{field}: {error}")),
        };
        Ok(Self {
            rules: list(rules),
            excluded: list("excludeResourceRules"),
            all_without_rules,
            equivalent: tree::text(from, &["matchPolicy"]) != "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
        })
    }

    /// Whether, and as what, a request is meant. `object` is the one that is to be written. Rules come before selectors:
    /// they decide for most requests, and look at nothing but the request.
    pub async fn matches(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<Option<Matched>, Status> {
        let Some(matched) = self.by_rules(review, world) else { return Ok(None) };
        let may = self.by_object(review, object) && self.by_namespace(review, object, world).await?;
        Ok(may.then_some(matched))
    }

    fn by_rules(&self, review: &Review<'_>, world: &dyn World) -> Option<Matched> {
        if !self.excluded.is_empty() && self.named(&self.excluded, review, world).is_some() {
            return None;
        }
        if self.rules.is_empty() && self.all_without_rules {
            let asked = review.asked.resource();
            return world.catalog().find(&asked).map(|kind| Matched { kind, resource: asked });
        }
        self.named(&self.rules, review, world)
    }

    /// The version of the request's kind that a list of rules names: the one asked for before others.
    fn named(&self, rules: &[Rule], review: &Review<'_>, world: &dyn World) -> Option<Matched> {
        let asked = review.asked.resource();
        if rules.iter().any(|rule| rule.matches(review, &asked)) {
            return world.catalog().find(&asked).map(|kind| Matched { kind, resource: asked });
        }
        // Most rules are of another kind altogether, which is seen without looking at the catalog.
        let plausible = |rule: &Rule| {
            rule.resources.iter().any(|(name, _)| name == "*" || *name == asked.resource)
                && rule.operations.iter().any(|name| name == "*" || name == review.operation.as_str())
        };
        if !self.equivalent || !rules.iter().any(plausible) {
            return None;
        }
        let stored = review.asked.storage_resource();
        let rows = world.catalog().rows();
        let equivalents: Vec<&Arc<Kind>> = rows
            .rows()
            .filter(|row| row.plural == asked.resource.as_str() && row.resource() != asked)
            .filter(|row| is_equivalent(row, review.asked, &stored))
            .collect();
        for rule in rules {
            for row in &equivalents {
                let resource = row.resource();
                if rule.matches(review, &resource) {
                    return Some(Matched { kind: (*row).clone(), resource });
                }
            }
        }
        None
    }

    fn by_object(&self, review: &Review<'_>, object: Option<&Value>) -> bool {
        let fits =
            |object: Option<&Value>| object.is_some_and(|object| self.objects.matches(&labels(object)));
        self.objects.is_empty() || fits(object) || fits(review.old)
    }

    async fn by_namespace(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<bool, Status> {
        let of_namespaces = is_namespaces(review.resource);
        if self.namespaces.is_empty() || (review.namespace.is_empty() && !of_namespaces) {
            return Ok(true);
        }
        let written = matches!(review.operation, Operation::Create | Operation::Update);
        if let Some(object) = object.filter(|_| of_namespaces && written && review.subresource.is_empty()) {
            return Ok(self.namespaces.matches(&labels(object)));
        }
        let name = if of_namespaces { review.name } else { review.namespace };
        let found = world.find("", "namespaces", "", name).await?;
        let namespace = found.ok_or_else(|| Status::not_found("", "namespaces", name))?;
        Ok(self.namespaces.matches(&namespace.meta().labels))
    }
}

/// Whether a row is another version of a kind, in its group or in one that has taken its place.
fn is_equivalent(row: &Kind, asked: &Kind, stored: &GroupVersionResource) -> bool {
    if row.custom.is_some() || asked.custom.is_some() {
        return row.group == asked.group && row.kind == asked.kind;
    }
    row.storage_resource() == *stored
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = tree::at(object, &["metadata", "labels"]).as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}
