//! ResourceQuota: what a namespace's objects use together. The last link: what it lets pass is charged at once, in the
//! quota's status, so that two that fit only one by one do not both pass.
//! Source: `k8s.io/apiserver/pkg/admission/plugin/resourcequota`.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use api::quota::{Around, Counted, is_terminating, masked, unnamed};
use api::resources::{ResourceList, add, amounts, subtract, to_json};
use api::{Object, Reason, Status};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::lifecycle::forbidden;
use super::{Link, Operation, Review, World, decoded};
use crate::tree;

/// How often a charge is repeated after another writer changed the quota.
const ATTEMPTS_MAX: u32 = 8;
/// Writers of one namespace wait for each other here and not at the store; a power of two is not needed.
const LANES: usize = 64;

/// The link.
#[derive(Debug)]
pub struct ResourceQuota {
    lanes: Vec<Mutex<()>>,
    limited: Vec<Limited>,
}

impl Default for ResourceQuota {
    fn default() -> Self {
        Self::limiting(Vec::new())
    }
}

/// What nobody uses but under a quota that covers it: a LimitedResource of a ResourceQuotaConfiguration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Limited {
    #[serde(default)]
    api_group: String,
    resource: String,
    /// Amounts whose names contain one of these.
    #[serde(default)]
    match_contains: Vec<String>,
    /// Objects that one of these selects.
    #[serde(default)]
    match_scopes: Vec<Scope>,
}

/// A ScopedResourceSelectorRequirement.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scope {
    scope_name: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl ResourceQuota {
    /// The link with a configuration.
    pub(super) fn limiting(limited: Vec<Limited>) -> Self {
        Self { lanes: (0..LANES).map(|_| Mutex::default()).collect(), limited }
    }

    /// Refuses what is limited and no quota of the namespace covers.
    fn check_covered(
        &self,
        review: &Review<'_>,
        object: &Value,
        quotas: &[Arc<Object>],
        now: Timestamp,
        around: &Around<'_>,
    ) -> Result<(), Status> {
        let counted = Counted { group: &review.resource.group, resource: &review.resource.resource };
        let concerned = |limited: &&Limited| {
            (limited.api_group.as_str(), limited.resource.as_str()) == (counted.group, counted.resource)
        };
        let limited: Vec<&Limited> = self.limited.iter().filter(concerned).collect();
        if limited.is_empty() {
            return Ok(());
        }
        let quotas = quotas.iter().map(|quota| decoded(quota)).collect::<Result<Vec<_>, _>>()?;
        match uncovered(&limited, &counted, object, &quotas, now, around) {
            None => Ok(()),
            Some(Uncovered::Amounts(names)) => {
                Err(forbidden(review, &format!("insufficient quota to consume: {names}")))
            }
            Some(Uncovered::Scopes(scopes)) => Err(no_quota_for(&scopes)),
        }
    }
}

/// Upstream's plain error, which no reason goes with: the server answers it as a fault of its own.
fn no_quota_for(scopes: &str) -> Status {
    Status::new(Reason::Unknown, format!("insufficient quota to match these scopes: [{scopes}]"))
}

/// What is limited and not covered.
#[derive(Debug, PartialEq)]
enum Uncovered {
    /// `cpu,memory`
    Amounts(String),
    /// `{PriorityClass In [a b]}`
    Scopes(String),
}

/// What of an object no quota covers that has to be. Pure.
fn uncovered(
    limited: &[&Limited],
    counted: &Counted<'_>,
    object: &Value,
    quotas: &[Value],
    now: Timestamp,
    around: &Around<'_>,
) -> Option<Uncovered> {
    let covering: Vec<&Value> = quotas.iter().filter(|quota| counted.is_in_scope(quota, object)).collect();
    let is_covered =
        |name: &str| covering.iter().any(|quota| !tree::at(quota, &["status", "hard", name]).is_null());
    let used = counted.usage_among(object, now, around);
    let is_limited =
        |name: &str| limited.iter().flat_map(|one| &one.match_contains).any(|part| name.contains(part));
    let amounts: Vec<&str> =
        used.keys().map(String::as_str).filter(|name| is_limited(name) && !is_covered(name)).collect();
    if !amounts.is_empty() {
        return Some(Uncovered::Amounts(amounts.join(",")));
    }
    let selects = |scope: &&Scope| {
        let alone = json!({ "spec": { "scopeSelector": { "matchExpressions": [scope] } } });
        counted.is_in_scope(&alone, object)
    };
    let names = |quota: &Value, name: &str| {
        let expressions = tree::items(quota, &["spec", "scopeSelector", "matchExpressions"]);
        tree::items(quota, &["spec", "scopes"]).iter().any(|scope| scope == name)
            || expressions.iter().any(|expression| expression["scopeName"] == name)
    };
    let is_free = |scope: &&Scope| !covering.iter().any(|quota| names(quota, &scope.scope_name));
    let scopes = limited.iter().flat_map(|one| &one.match_scopes).filter(selects).filter(is_free);
    let scopes: Vec<String> = scopes
        .map(|scope| format!("{{{} {} [{}]}}", scope.scope_name, scope.operator, scope.values.join(" ")))
        .collect();
    (!scopes.is_empty()).then(|| Uncovered::Scopes(scopes.join(" ")))
}

#[async_trait]
impl Link for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|object| is_charged(review, object)) else { return Ok(()) };
        let classes = || world.all("resource.k8s.io", "deviceclasses", "");
        let claims = || world.all("resource.k8s.io", "resourceclaims", review.namespace);
        let pod = |name: &str| {
            world.all("", "pods", review.namespace).into_iter().find(|pod| pod.meta().name == name)
        };
        let around = Around::new(&classes, &pod, &claims);
        let mut quotas = world.all("", "resourcequotas", review.namespace);
        self.check_covered(review, object, &quotas, world.moment(), &around)?;
        if quotas.is_empty() {
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        review.namespace.hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0);
        let _turn = self.lanes[lane].lock().await;
        for _ in 0..ATTEMPTS_MAX {
            quotas = charge_all(review, object, &quotas, world, &around).await?;
            if quotas.is_empty() {
                return Ok(());
            }
        }
        let name = quotas.first().map(|quota| quota.meta().name.clone()).unwrap_or_default();
        Err(Status::conflict("", "resourcequotas", &name, crate::pipeline::MODIFIED))
    }
}

/// Charges an object to every quota that it counts for, once it fits all of them; the quotas that others changed in
/// between, as they are now.
async fn charge_all(
    review: &Review<'_>,
    object: &Value,
    quotas: &[Arc<Object>],
    world: &dyn World,
    around: &Around<'_>,
) -> Result<Vec<Arc<Object>>, Status> {
    let change = Change {
        counted: Counted { group: &review.resource.group, resource: &review.resource.resource },
        object,
        old: review.old,
        limited: review.subresource != "status",
        around,
    };
    let mut charges = Vec::new();
    for quota in quotas {
        let mut tree = decoded(quota)?;
        let used = change.charge(&tree, world.moment()).map_err(|why| forbidden(review, &why))?;
        if let Some(used) = used {
            tree::object(&mut tree, "status").insert("used".into(), to_json(&used));
            charges.push((quota, tree));
        }
    }
    if review.options.dry_run() {
        return Ok(Vec::new());
    }
    let mut changed = Vec::new();
    for (quota, tree) in charges {
        if !world.write_status("", "resourcequotas", quota, tree).await? {
            changed.extend(world.read("", "resourcequotas", review.namespace, &quota.meta().name).await?);
        }
    }
    Ok(changed)
}

/// Whether a write may change what an object uses. Source: the evaluators' `Handles`.
fn is_charged(review: &Review<'_>, object: &Value) -> bool {
    let kind = (review.resource.group.as_str(), review.resource.resource.as_str());
    if review.namespace.is_empty() || matches!(kind, ("", "namespaces" | "events")) {
        return false;
    }
    match (kind, review.subresource, review.operation) {
        (_, "", Operation::Create) => true,
        (("", "pods"), "", Operation::Update) => {
            review.old.is_some_and(|old| is_terminating(old) != is_terminating(object))
        }
        (("", "services" | "persistentvolumeclaims"), "", Operation::Update)
        | (("resource.k8s.io", "resourceclaims"), "", Operation::Update)
        | (("", "pods"), "resize", Operation::Update)
        | (("", "persistentvolumeclaims"), "status", Operation::Update) => true,
        _ => false,
    }
}

/// A write of something that is counted.
struct Change<'a> {
    counted: Counted<'a>,
    object: &'a Value,
    old: Option<&'a Value>,
    /// Whether it may be refused: what a controller tells is so, whatever a quota says.
    limited: bool,
    around: &'a Around<'a>,
}

impl Change<'_> {
    /// What a quota's `used` becomes; `None` if it stays. Pure.
    fn charge(&self, quota: &Value, now: Timestamp) -> Result<Option<ResourceList>, String> {
        let name = tree::text(quota, &["metadata", "name"]);
        let hard = amounts(tree::at(quota, &["status", "hard"]));
        let used = amounts(tree::at(quota, &["status", "used"]));
        let restricted: Vec<&str> = hard
            .keys()
            .map(String::as_str)
            .filter(|name| self.counted.is_tracked_among(name, self.around))
            .collect();
        if restricted.is_empty() || !self.counted.is_in_scope(quota, self.object) {
            return Ok(None);
        }
        if (self.counted.group, self.counted.resource) == ("", "pods")
            && let Some(missing) = unnamed(self.object, restricted.iter().copied())
        {
            return Err(format!("failed quota: {name}: {missing}"));
        }
        if restricted.iter().any(|resource| !used.contains_key(*resource)) {
            return Err(format!("status unknown for quota: {name}, resources: {}", restricted.join(",")));
        }
        let asked = self.counted.usage_among(self.object, now, self.around);
        let negative: Vec<&str> =
            asked.iter().filter(|(_, amount)| amount.is_negative()).map(|(name, _)| name.as_str()).collect();
        if !negative.is_empty() {
            return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
        }
        let before = self.old.filter(|old| self.counted.is_in_scope(quota, old));
        let before = before.map(|old| self.counted.usage_among(old, now, self.around)).unwrap_or_default();
        let mut more = subtract(&asked, &before);
        more.retain(|name, amount| hard.contains_key(name) && !amount.is_zero() && !amount.is_negative());
        if more.is_empty() {
            return Ok(None);
        }
        let mut after = used.clone();
        add(&mut after, &more);
        let exceeded = |name: &str| {
            more.contains_key(name)
                && after.get(name).zip(hard.get(name)).is_some_and(|(sum, most)| sum > most)
        };
        if self.limited && more.keys().any(|name| exceeded(name)) {
            let part = |list: &ResourceList| shown(&masked(list, exceeded));
            return Err(format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                part(&more),
                part(&used),
                part(&hard)
            ));
        }
        Ok(Some(after))
    }
}

/// `cpu=1,pods=2`
fn shown(list: &ResourceList) -> String {
    list.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(hard: Value, used: Value) -> Value {
        json!({ "metadata": { "name": "q" }, "status": { "hard": hard, "used": used } })
    }

    fn charged(
        resource: &str,
        quota: &Value,
        object: Value,
        old: Option<Value>,
    ) -> Result<Option<Value>, String> {
        let counted = Counted { group: "", resource };
        let around = Around::new(&Vec::new, &|_| None, &Vec::new);
        let change = Change { counted, object: &object, old: old.as_ref(), limited: true, around: &around };
        change.charge(quota, Timestamp::UNIX_EPOCH).map(|used| used.map(|used| to_json(&used)))
    }

    fn pod(cpu: &str) -> Value {
        json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] } })
    }

    #[test]
    fn what_fits_is_charged_and_what_does_not_is_told_why() {
        let quota = quota(
            json!({ "pods": "2", "requests.cpu": "1" }),
            json!({ "pods": "1", "requests.cpu": "600m" }),
        );
        assert_eq!(
            charged("pods", &quota, pod("400m"), None),
            Ok(Some(json!({ "pods": "2", "requests.cpu": "1" })))
        );
        assert_eq!(
            charged("pods", &quota, pod("500m"), None).unwrap_err(),
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
        assert_eq!(charged("secrets", &quota, json!({}), None), Ok(None));
    }

    #[test]
    fn a_pod_names_what_is_limited() {
        let quota = quota(json!({ "limits.cpu": "1" }), json!({ "limits.cpu": "0" }));
        assert_eq!(
            charged("pods", &quota, pod("1"), None).unwrap_err(),
            "failed quota: q: must specify limits.cpu for: c"
        );
    }

    #[test]
    fn what_is_limited_needs_a_quota() {
        let limited: Limited = serde_json::from_value(json!({
            "resource": "pods", "matchContains": ["cpu"],
            "matchScopes": [{ "scopeName": "PriorityClass", "operator": "In", "values": ["a", "b"] }],
        }))
        .unwrap();
        let counted = Counted { group: "", resource: "pods" };
        let of = |pod: &Value, quotas: &[Value]| {
            let around = Around::new(&Vec::new, &|_| None, &Vec::new);
            uncovered(&[&limited], &counted, pod, quotas, Timestamp::UNIX_EPOCH, &around)
        };
        let amounts = Uncovered::Amounts("cpu,requests.cpu".into());
        assert_eq!(of(&pod("1"), &[]), Some(amounts));
        let all = quota(json!({ "cpu": "1", "requests.cpu": "1" }), json!({}));
        assert_eq!(of(&pod("1"), std::slice::from_ref(&all)), None);
        let mut high = pod("1");
        high["spec"]["priorityClassName"] = "b".into();
        let scopes = Uncovered::Scopes("{PriorityClass In [a b]}".into());
        assert_eq!(of(&high, std::slice::from_ref(&all)), Some(scopes));
        let status = no_quota_for("{PriorityClass In [a b]}").to_json();
        assert_eq!((&status["code"], &status["reason"]), (&json!(500), &Value::Null));
        assert_eq!(status["message"], "insufficient quota to match these scopes: [{PriorityClass In [a b]}]");
        assert_eq!(status["details"], json!({}));
        let mut of_class = all.clone();
        of_class["spec"] = json!({ "scopeSelector": { "matchExpressions": [
            { "scopeName": "PriorityClass", "operator": "Exists" }] } });
        assert_eq!(of(&high, &[of_class]), None);
    }

    #[test]
    fn nothing_passes_before_it_is_counted() {
        let fresh = quota(json!({ "pods": "1", "count/pods": "1" }), json!({ "pods": "0" }));
        assert_eq!(
            charged("pods", &fresh, pod("1"), None).unwrap_err(),
            "status unknown for quota: q, resources: count/pods,pods"
        );
        assert_eq!(
            charged("pods", &json!({ "spec": { "hard": { "pods": "0" } } }), pod("1"), None),
            Ok(None)
        );
    }

    #[test]
    fn an_update_is_charged_what_it_adds() {
        let quota = quota(json!({ "services.nodeports": "1" }), json!({ "services.nodeports": "0" }));
        let service = |kind: &str| json!({ "spec": { "type": kind, "ports": [{ "port": 1 }] } });
        let charged = |new, old| charged("services", &quota, service(new), Some(service(old)));
        assert_eq!(charged("NodePort", "ClusterIP"), Ok(Some(json!({ "services.nodeports": "1" }))));
        assert_eq!(charged("ClusterIP", "NodePort"), Ok(None));
        assert_eq!(charged("NodePort", "NodePort"), Ok(None));
    }
}
