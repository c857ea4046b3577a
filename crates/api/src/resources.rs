//! Amounts of resources by name, and what a pod asks for in sum. Admission, quotas and whoever else counts use the same
//! arithmetic. Source: `k8s.io/component-helpers/resource`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by resource name (`cpu`, `memory`, `example.com/gpu`), sorted.
pub type ResourceList = BTreeMap<String, Quantity>;

/// Which side of `resources` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is set aside.
    Requests,
    /// What is allowed at most.
    Limits,
}

impl Side {
    /// The field's name.
    pub fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// What belongs to a pod's sum besides its containers' `resources`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting {
    /// The overhead of its runtime class.
    pub overhead: bool,
    /// What its containers have at present, where that is more: a resize downwards counts once it is done.
    pub status: bool,
}

/// Whether an amount for the pod as a whole takes the place of its containers' sum. Source: KEP-2837.
fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// The amounts of a JSON object; what is no quantity is left out (validation refuses it).
pub fn amounts(value: &Value) -> ResourceList {
    let amount = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    };
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// A list as JSON, in canonical form.
pub fn to_json(list: &ResourceList) -> Value {
    list.iter().map(|(name, amount)| (name.clone(), Value::String(amount.to_string()))).collect()
}

/// Adds every amount of `more`.
pub fn add(list: &mut ResourceList, more: &ResourceList) {
    for (name, amount) in more {
        list.entry(name.clone()).and_modify(|sum| *sum = sum.plus(*amount)).or_insert(*amount);
    }
}

/// Raises every amount to the one in `floor`.
pub fn raise(list: &mut ResourceList, floor: &ResourceList) {
    for (name, amount) in floor {
        let known = list.entry(name.clone()).or_insert(*amount);
        if *known < *amount {
            *known = *amount;
        }
    }
}

/// `left - right`; what only `right` has is below zero.
#[must_use]
pub fn subtract(left: &ResourceList, right: &ResourceList) -> ResourceList {
    let mut difference = left.clone();
    for (name, amount) in right {
        let known = difference.entry(name.clone()).or_insert(Quantity::ZERO);
        *known = known.minus(*amount);
    }
    difference
}

/// Of what a container is counted: what it asks for, what its node has promised it, what it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    Wished,
    Promised,
    Had,
}

/// What a pod asks for: its containers together, or the most that its init containers need on the way there. While it is
/// resized, each figure is added up over all containers first, and the most of the sums counts: one that grows makes up for
/// another that shrinks. Source: `resourcehelper.AggregateContainerRequests`.
pub fn of_pod(pod: &Value, side: Side, counting: Counting) -> ResourceList {
    let spec = &pod["spec"];
    let mut sum = ResourceList::new();
    if !counting.status || !cannot_be_resized(pod) {
        raise(&mut sum, &of_containers(pod, side, Figure::Wished));
    }
    if counting.status {
        raise(&mut sum, &of_containers(pod, side, Figure::Promised));
        raise(&mut sum, &of_containers(pod, side, Figure::Had));
    }
    let whole = amounts(&spec["resources"][side.field()]);
    sum.extend(whole.into_iter().filter(|(name, _)| is_of_pods(name)));
    if counting.overhead {
        let overhead = amounts(&spec["overhead"]);
        match side {
            Side::Requests => add(&mut sum, &overhead),
            // What has no limit has none with overhead either.
            Side::Limits => {
                let limited = overhead.into_iter().filter(|(name, _)| sum.contains_key(name)).collect();
                add(&mut sum, &limited);
            }
        }
    }
    sum
}

fn of_containers(pod: &Value, side: Side, figure: Figure) -> ResourceList {
    let spec = &pod["spec"];
    let mut sum = ResourceList::new();
    for container in items(&spec["containers"]) {
        add(&mut sum, &of_container(pod, "containerStatuses", container, side, figure));
    }
    let (mut sidecars, mut starting) = (ResourceList::new(), ResourceList::new());
    for container in items(&spec["initContainers"]) {
        let own = of_container(pod, "initContainerStatuses", container, side, figure);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut together = own;
            add(&mut together, &sidecars);
            raise(&mut starting, &together);
        }
    }
    raise(&mut sum, &starting);
    sum
}

/// One figure of a container; what it asks for, where nothing is said of the other two. Limits are not promised.
fn of_container(pod: &Value, statuses: &str, container: &Value, side: Side, figure: Figure) -> ResourceList {
    let status = items(&pod["status"][statuses]).iter().find(|status| status["name"] == container["name"]);
    let had = || status.map(|status| amounts(&status["resources"][side.field()]));
    let promised = || match side {
        Side::Requests => status.map(|status| amounts(&status["allocatedResources"])),
        Side::Limits => had(),
    };
    let is_said = |amounts: &ResourceList| !amounts.is_empty();
    let said = match figure {
        Figure::Wished => None,
        Figure::Promised => promised().filter(is_said).or_else(had),
        Figure::Had => had().filter(is_said).or_else(promised),
    };
    said.filter(is_said).unwrap_or_else(|| amounts(&container["resources"][side.field()]))
}

/// Whether the node has said that it will never grant what the spec asks for.
fn cannot_be_resized(pod: &Value) -> bool {
    let conditions = items(&pod["status"]["conditions"]).iter();
    conditions.into_iter().any(|known| known["type"] == "PodResizePending" && known["reason"] == "Infeasible")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(pod: &Value, side: Side, counting: Counting) -> Value {
        to_json(&of_pod(pod, side, counting))
    }

    fn container(cpu: &str) -> Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu }, "limits": { "cpu": cpu } } })
    }

    #[test]
    fn init_containers_raise_and_sidecars_add() {
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = json!({ "spec": {
            "containers": [container("200m"), container("300m")],
            "initContainers": [container("450m"), sidecar, container("550m")],
        }});
        // Containers and sidecar: 600m; the last init container beside the sidecar: 650m.
        assert_eq!(shown(&pod, Side::Requests, Counting::default()), json!({ "cpu": "650m" }));
    }

    #[test]
    fn the_pods_own_amounts_and_its_overhead() {
        let pod = json!({ "spec": {
            "containers": [container("200m")],
            "resources": { "requests": { "cpu": "1", "example.com/x": "3" } },
            "overhead": { "cpu": "10m", "memory": "1Mi" },
        }});
        let counting = Counting { overhead: true, status: false };
        assert_eq!(shown(&pod, Side::Requests, counting), json!({ "cpu": "1010m", "memory": "1Mi" }));
        assert_eq!(shown(&pod, Side::Limits, counting), json!({ "cpu": "210m" }));
        assert_eq!(shown(&pod, Side::Requests, Counting::default()), json!({ "cpu": "1" }));
    }

    #[test]
    fn a_pod_counts_what_it_has_until_it_gave_it_back() {
        let mut pod = json!({
            "spec": { "containers": [container("1")] },
            "status": { "containerStatuses": [{ "name": "c", "resources": { "requests": { "cpu": "2" } } }] },
        });
        let counting = Counting { overhead: false, status: true };
        assert_eq!(shown(&pod, Side::Requests, counting), json!({ "cpu": "2" }));
        pod["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"] = "500m".into();
        assert_eq!(shown(&pod, Side::Requests, counting), json!({ "cpu": "1" }));
        pod["status"]["conditions"] = json!([{ "type": "PodResizePending", "reason": "Infeasible" }]);
        assert_eq!(shown(&pod, Side::Requests, counting), json!({ "cpu": "500m" }));
    }

    #[test]
    fn one_that_grows_makes_up_for_another_that_shrinks() {
        let named =
            |name: &str, cpu: &str| json!({ "name": name, "resources": { "requests": { "cpu": cpu } } });
        let pod = json!({
            "spec": { "containers": [named("a", "1"), named("b", "3")] },
            "status": { "containerStatuses": [named("a", "3"), named("b", "1")] },
        });
        let counting = Counting { overhead: false, status: true };
        assert_eq!(shown(&pod, Side::Requests, counting), json!({ "cpu": "4" }));
    }

    #[test]
    fn differences_go_below_zero() {
        let list = |value: Value| amounts(&value);
        let difference = subtract(&list(json!({ "a": "1", "b": "2" })), &list(json!({ "b": "3", "c": "1" })));
        assert_eq!(to_json(&difference), json!({ "a": "1", "b": "-1", "c": "-1" }));
    }
}
