//! Amounts of resources: what pods ask for and nodes offer, as integers.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde::Deserialize;
use serde_json::Value;

/// What a pod without a request counts as when nodes are compared. Source: `schedutil.DefaultMilliCPURequest`.
const DEFAULT_CPU_MILLI: i128 = 100;
/// The same for memory, in bytes.
const DEFAULT_MEMORY_BYTES: i128 = 200 << 20;

/// Amounts by resource name: thousandths of cores for `cpu`, whole units (bytes) for all others.
///
/// Each pod may ask for as much as an `i64` holds. Sums are wider, so that they never overflow, and what a pod added is
/// exactly what is taken away when it goes: a saturated sum would forget the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i128>);

impl Resources {
    /// From a resource list. A malformed amount counts as 0: the API server has refused it before.
    pub fn parse(list: &BTreeMap<String, Value>) -> Self {
        let amount = |name: &str, value: &Value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let quantity: Quantity = text.parse().unwrap_or_else(|_| Quantity::from_milli(0));
            i128::from(if name == "cpu" { quantity.milli_value() } else { quantity.value() })
        };
        Self(list.iter().map(|(name, value)| (name.clone(), amount(name, value))).collect())
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i128 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every resource with its amount.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i128)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Adds amounts.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_insert(0) += amount;
        }
    }

    /// Takes amounts away.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            if let Some(held) = self.0.get_mut(name) {
                *held -= amount;
            }
        }
    }

    /// Raises each amount to at least the other's.
    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let held = self.0.entry(name.clone()).or_insert(0);
            *held = (*held).max(*amount);
        }
    }

    /// `(cpu in thousandths, memory in bytes)` for comparing nodes: nothing asked counts as a little.
    pub fn for_scoring(&self) -> (i128, i128) {
        let or = |amount: i128, default: i128| if amount == 0 { default } else { amount };
        (or(self.get("cpu"), DEFAULT_CPU_MILLI), or(self.get("memory"), DEFAULT_MEMORY_BYTES))
    }
}

/// The part of a container that says what it needs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerNeeds {
    resources: Needs,
    restart_policy: String,
    pub(crate) ports: Vec<PortNeeds>,
}

/// The part of a port that a node can run out of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PortNeeds {
    pub(crate) host_port: i64,
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: String,
    pub(crate) protocol: String,
}

/// `core/v1.ResourceRequirements`, its requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Needs {
    requests: BTreeMap<String, Value>,
}

/// What a pod asks for: its containers together, or any of its init containers (with the sidecars started before it),
/// whichever is more; what is asked for the pod as a whole wins; plus its overhead. Source: `resourcehelper.PodRequests`.
pub(crate) fn pod_requests(
    containers: &[ContainerNeeds],
    init_containers: &[ContainerNeeds],
    pod: Option<&Needs>,
    overhead: &BTreeMap<String, Value>,
) -> Resources {
    let requests = |container: &ContainerNeeds| Resources::parse(&container.resources.requests);
    let mut total = Resources::default();
    for container in containers {
        total.add(&requests(container));
    }
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in init_containers {
        if container.restart_policy == "Always" {
            sidecars.add(&requests(container));
            peak.raise_to(&sidecars);
        } else {
            let mut during = sidecars.clone();
            during.add(&requests(container));
            peak.raise_to(&during);
        }
    }
    total.add(&sidecars);
    total.raise_to(&peak);
    if let Some(pod) = pod {
        total.0.extend(Resources::parse(&pod.requests).0);
    }
    total.add(&Resources::parse(overhead));
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn init_containers_count_where_they_need_more() {
        let container = |cpu: &str, policy: &str| -> ContainerNeeds {
            serde_json::from_value(json!({ "restartPolicy": policy, "resources": { "requests": { "cpu": cpu, "memory": "1Mi" } } })).unwrap()
        };
        let none = BTreeMap::new();
        let plain = pod_requests(
            &[container("100m", ""), container("200m", "")],
            &[container("250m", "")],
            None,
            &none,
        );
        assert_eq!((plain.get("cpu"), plain.get("memory")), (300, 2 << 20));
        let sidecar = [container("100m", "Always"), container("1", "")];
        assert_eq!(pod_requests(&[container("100m", "")], &sidecar, None, &none).get("cpu"), 1100);
        let whole: Needs = serde_json::from_value(json!({ "requests": { "cpu": 2 } })).unwrap();
        let overhead = BTreeMap::from([("cpu".to_owned(), json!("50m"))]);
        assert_eq!(pod_requests(&[container("100m", "")], &[], Some(&whole), &overhead).get("cpu"), 2050);
    }
}
