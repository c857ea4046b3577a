//! LimitRanger: the bounds and defaults of a namespace for single containers, pods and claims.
//! Source: `plugin/pkg/admission/limitranger`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use api::resources::{Counting, ResourceList, Side, amounts, of_pod};
use api::{Object, Status};
use async_trait::async_trait;
use serde_json::{Map, Value};

use super::lifecycle::forbidden;
use super::{Link, Operation, Review, World, aggregate, decoded};
use crate::tree;

/// Where the pod says what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct LimitRanger;

#[async_trait]
impl Link for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "pods"), ("", "persistentvolumeclaims")]
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value, world: &dyn World) -> Result<(), Status> {
        if !concerns(review) || review.resource.resource != "pods" {
            return Ok(());
        }
        for range in ranges(review, world)? {
            give_defaults(object, &range);
        }
        Ok(())
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|_| concerns(review)) else { return Ok(()) };
        let judge = if review.resource.resource == "pods" { of_pods } else { of_claims };
        for range in ranges(review, world)? {
            if let Some(why) = aggregate(judge(&range, object, review.old)) {
                return Err(forbidden(review, &why));
            }
        }
        Ok(())
    }
}

/// New pods, resized pods, and claims that are not on their way out.
fn concerns(review: &Review<'_>) -> bool {
    let ending = |old: &Value| !tree::at(old, &["metadata", "deletionTimestamp"]).is_null();
    if !review.resource.group.is_empty() || review.old.is_some_and(ending) {
        return false;
    }
    match (review.resource.resource.as_str(), review.subresource, review.operation) {
        ("pods", "", Operation::Create) | ("pods", "resize", Operation::Update) => true,
        ("persistentvolumeclaims", "", operation) => {
            matches!(operation, Operation::Create | Operation::Update)
        }
        _ => false,
    }
}

fn ranges(review: &Review<'_>, world: &dyn World) -> Result<Vec<Value>, Status> {
    let found: Vec<Arc<Object>> = world.all("", "limitranges", review.namespace);
    found.iter().map(|range| decoded(range)).collect()
}

fn limits_of<'a>(range: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    tree::items(range, &["spec", "limits"]).iter().filter(move |limit| tree::text(limit, &["type"]) == kind)
}

/// Gives every container the amounts that it does not name, and tells so in an annotation. Pure.
fn give_defaults(pod: &mut Value, range: &Value) {
    let mut defaults: [(&str, &str, Map<String, Value>); 2] =
        [("requests", "request", Map::new()), ("limits", "limit", Map::new())];
    for limit in limits_of(range, "Container") {
        for ((_, _, list), field) in defaults.iter_mut().zip(["defaultRequest", "default"]) {
            list.extend(tree::at(limit, &[field]).as_object().cloned().unwrap_or_default());
        }
    }
    let mut given = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let spec = tree::object(pod, "spec");
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = tree::text(container, &["name"]).to_owned();
            for (field, what, amounts) in &defaults {
                let set = fill(container, field, amounts);
                if !set.is_empty() {
                    given.push(format!("{} {what} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if !given.is_empty() {
        let told = format!("LimitRanger plugin set: {}", given.join("; "));
        let metadata = tree::member(pod, "metadata");
        tree::object(metadata, "annotations").insert(ANNOTATION.into(), told.into());
    }
}

/// Adds the amounts that a container does not name; their names, sorted.
fn fill(container: &mut Value, field: &str, amounts: &Map<String, Value>) -> Vec<String> {
    let known = tree::at(container, &["resources", field]);
    let mut missing: Vec<String> =
        amounts.keys().filter(|name| known.get(name.as_str()).is_none()).cloned().collect();
    if !missing.is_empty() {
        let list = tree::object(tree::member(container, "resources"), field);
        for name in &missing {
            list.insert(name.clone(), amounts[name].clone());
        }
    }
    missing.sort_unstable();
    missing
}

/// What containers, or a pod, ask for.
#[derive(Default)]
struct Asked {
    requests: ResourceList,
    limits: ResourceList,
}

impl Asked {
    fn by_container(container: &Value) -> Self {
        let of = |side: Side| amounts(tree::at(container, &["resources", side.field()]));
        Self { requests: of(Side::Requests), limits: of(Side::Limits) }
    }

    fn by_pod(pod: &Value) -> Self {
        let of = |side| of_pod(pod, side, Counting::default());
        Self { requests: of(Side::Requests), limits: of(Side::Limits) }
    }

    /// Whether both sides of a resource are as they were.
    fn same(&self, old: &Self, name: &str) -> bool {
        self.requests.get(name) == old.requests.get(name) && self.limits.get(name) == old.limits.get(name)
    }
}

/// What a range has against a pod. What a pod has already is not judged again. Pure.
fn of_pods(range: &Value, pod: &Value, old: Option<&Value>) -> Vec<String> {
    let mut problems = Vec::new();
    for limit in limits_of(range, "Container") {
        for list in ["containers", "initContainers"] {
            let before: BTreeMap<&str, &Value> = old
                .map(|old| tree::items(old, &["spec", list]))
                .unwrap_or_default()
                .iter()
                .map(|container| (tree::text(container, &["name"]), container))
                .collect();
            for container in tree::items(pod, &["spec", list]) {
                let before = before.get(tree::text(container, &["name"]));
                let before = before.map(|container| Asked::by_container(container));
                judge(limit, &Asked::by_container(container), before.as_ref(), &mut problems);
            }
        }
    }
    for limit in limits_of(range, "Pod") {
        judge(limit, &Asked::by_pod(pod), old.map(Asked::by_pod).as_ref(), &mut problems);
    }
    problems
}

/// What a range has against a claim. Pure.
fn of_claims(range: &Value, claim: &Value, old: Option<&Value>) -> Vec<String> {
    let requests = |claim| amounts(tree::at(claim, &["spec", "resources", "requests"]));
    let (asked, before) = (requests(claim), old.map(requests).unwrap_or_default());
    let none = ResourceList::new();
    let kind = "PersistentVolumeClaim";
    let mut problems = Vec::new();
    for limit in limits_of(range, kind) {
        let changed = |name: &String| !asked.contains_key(name) || asked.get(name) != before.get(name);
        let bounds = |field| amounts(tree::at(limit, &[field])).into_iter().filter(|(name, _)| changed(name));
        for (name, bound) in bounds("min") {
            problems.extend(below(kind, &name, bound, &asked, &none));
        }
        for (name, bound) in bounds("max") {
            problems.extend(claim_above(kind, &name, bound, &asked));
        }
    }
    problems
}

fn judge(limit: &Value, asked: &Asked, before: Option<&Asked>, problems: &mut Vec<String>) {
    let kind = tree::text(limit, &["type"]);
    let changed = |name: &String| !before.is_some_and(|before| asked.same(before, name));
    let bounds = |field| amounts(tree::at(limit, &[field])).into_iter().filter(|(name, _)| changed(name));
    for (name, bound) in bounds("min") {
        problems.extend(below(kind, &name, bound, &asked.requests, &asked.limits));
    }
    for (name, bound) in bounds("max") {
        problems.extend(above(kind, &name, bound, &asked.requests, &asked.limits));
    }
    for (name, bound) in bounds("maxLimitRequestRatio") {
        problems.extend(ratio(kind, &name, bound, &asked.requests, &asked.limits));
    }
}

type Problem = Option<String>;

fn below(kind: &str, name: &str, bound: Quantity, requests: &ResourceList, limits: &ResourceList) -> Problem {
    let sentence = format!("minimum {name} usage per {kind} is {bound}");
    let Some(request) = requests.get(name) else {
        return Some(format!("{sentence}.  No request is specified"));
    };
    if *request < bound {
        return Some(format!("{sentence}, but request is {request}"));
    }
    let limit = limits.get(name).filter(|limit| **limit < bound)?;
    Some(format!("{sentence}, but limit is {limit}"))
}

fn above(kind: &str, name: &str, bound: Quantity, requests: &ResourceList, limits: &ResourceList) -> Problem {
    let sentence = format!("maximum {name} usage per {kind} is {bound}");
    let Some(limit) = limits.get(name) else { return Some(format!("{sentence}.  No limit is specified")) };
    if *limit > bound {
        return Some(format!("{sentence}, but limit is {limit}"));
    }
    let request = requests.get(name).filter(|request| **request > bound)?;
    Some(format!("{sentence}, but request is {request}"))
}

/// Claims have requests only.
fn claim_above(kind: &str, name: &str, bound: Quantity, requests: &ResourceList) -> Problem {
    let sentence = format!("maximum {name} usage per {kind} is {bound}");
    let Some(request) = requests.get(name) else {
        return Some(format!("{sentence}.  No request is specified"));
    };
    (*request > bound).then(|| format!("{sentence}, but request is {request}"))
}

fn ratio(kind: &str, name: &str, bound: Quantity, requests: &ResourceList, limits: &ResourceList) -> Problem {
    let sentence = format!("{name} max limit to request ratio per {kind} is {bound}");
    let some = |list: &ResourceList| list.get(name).copied().filter(|amount| !amount.is_zero());
    let Some(request) = some(requests) else {
        return Some(format!("{sentence}, but no request is specified or request is 0"));
    };
    let Some(limit) = some(limits) else {
        return Some(format!("{sentence}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.ratio(request);
    limit.exceeds(request, bound).then(|| format!("{sentence}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(limit: Value) -> Value {
        json!({ "spec": { "limits": [limit] } })
    }

    fn pod(resources: Value) -> Value {
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "resources": resources }] } })
    }

    #[test]
    fn containers_get_what_they_do_not_name() {
        let range = range(json!({
            "type": "Container",
            "default": { "cpu": "500m", "memory": "512Mi" },
            "defaultRequest": { "cpu": "100m", "memory": "256Mi" },
        }));
        let mut pod = pod(json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "1" } }));
        pod["spec"]["initContainers"] = json!([{ "name": "i" }]);
        give_defaults(&mut pod, &range);
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"], json!({ "cpu": "1", "memory": "256Mi" }));
        assert_eq!(resources["limits"], json!({ "cpu": "1", "memory": "512Mi" }));
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory request for container c; memory limit for container c; \
             cpu, memory request for init container i; cpu, memory limit for init container i"
        );
        let before = pod.clone();
        give_defaults(&mut pod, &range);
        assert_eq!(pod, before);
    }

    #[test]
    fn every_bound_has_its_sentence() {
        let both = |request: &str, limit: &str| json!({ "requests": { "memory": request }, "limits": { "memory": limit } });
        let rows = [
            (
                json!({ "min": { "memory": "1Gi" } }),
                json!({}),
                "minimum memory usage per Container is 1Gi.  No request is specified",
            ),
            (
                json!({ "min": { "memory": "1Gi" } }),
                both("100Mi", "2Gi"),
                "minimum memory usage per Container is 1Gi, but request is 100Mi",
            ),
            (
                json!({ "max": { "memory": "1Gi" } }),
                both("800Mi", "1536Mi"),
                "maximum memory usage per Container is 1Gi, but limit is 1536Mi",
            ),
            (
                json!({ "max": { "memory": "1Gi" } }),
                json!({ "requests": { "memory": "1Gi" } }),
                "maximum memory usage per Container is 1Gi.  No limit is specified",
            ),
            (
                json!({ "maxLimitRequestRatio": { "memory": "2" } }),
                both("100Mi", "250Mi"),
                "memory max limit to request ratio per Container is 2, but provided ratio is 2.500000",
            ),
            (
                json!({ "maxLimitRequestRatio": { "memory": "2" } }),
                json!({ "requests": { "memory": "0" } }),
                "memory max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
        ];
        for (mut limit, resources, expected) in rows {
            limit["type"] = "Container".into();
            assert_eq!(of_pods(&range(limit), &pod(resources), None), [expected]);
        }
        let fits =
            range(json!({ "type": "Container", "min": { "memory": "100Mi" }, "max": { "memory": "1Gi" } }));
        assert!(of_pods(&fits, &pod(both("100Mi", "1Gi")), None).is_empty());
    }

    #[test]
    fn pods_are_judged_by_their_sum_and_only_where_they_changed() {
        let range = range(json!({ "type": "Pod", "max": { "cpu": "1" } }));
        let container = json!({ "name": "c", "resources": { "requests": { "cpu": "600m" }, "limits": { "cpu": "600m" } } });
        let pod = json!({ "spec": { "containers": [container, container] } });
        assert_eq!(of_pods(&range, &pod, None), ["maximum cpu usage per Pod is 1, but limit is 1200m"]);
        assert!(of_pods(&range, &pod, Some(&pod)).is_empty());
    }

    #[test]
    fn claims_have_bounds_too() {
        let range = range(json!({
            "type": "PersistentVolumeClaim", "min": { "storage": "1Gi" }, "max": { "storage": "5Gi" },
        }));
        let claim = |size: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        let above = "maximum storage usage per PersistentVolumeClaim is 5Gi, but request is 10Gi";
        assert_eq!(of_claims(&range, &claim("10Gi"), None), [above]);
        let below = "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi";
        assert_eq!(of_claims(&range, &claim("500Mi"), Some(&claim("1Gi"))), [below]);
        assert!(of_claims(&range, &claim("10Gi"), Some(&claim("10Gi"))).is_empty());
    }
}
