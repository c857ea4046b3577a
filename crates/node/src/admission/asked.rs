//! What a pod asks of its node, and what the node has: the inputs of the decision.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use api::resources::{Counting, ResourceList, Side, of_pod};
use api::{Object, ObjectMeta};
use reconcile::node_affinity::NodeNeeds;
use reconcile::taints::{Taint, Toleration};
use serde::Deserialize;
use serde_json::Value;

use super::ports::{HostPort, of_host};
use crate::pod::PodView;
use crate::pod::resources::{SYSTEM_CRITICAL, qos_class};
use crate::resize::Allocation;

/// The label by which a pod can ask for an operating system. Source: `v1.LabelOSStable`.
const OS: &str = "kubernetes.io/os";

/// Amounts by resource: thousandths of cores for `cpu`, whole units for all others. Sums of what pods ask for do not
/// overflow.
pub(super) type Amounts = BTreeMap<String, i128>;

/// What a pod asks of its node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(super) requests: Amounts,
    pub(super) ports: Vec<HostPort>,
    pub(super) priority: Option<i32>,
    /// It is never refused for want of resources: others have to go.
    pub(super) critical: bool,
    /// `Guaranteed`, `Burstable` or `BestEffort`.
    pub(super) qos: String,
    pub(super) nodes: NodeNeeds,
    pub(super) tolerations: Vec<Toleration>,
    /// The operating system by `spec.os`, and by the label.
    pub(super) os: Option<String>,
    pub(super) os_label: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Seen {
    metadata: ObjectMeta,
    spec: SeenSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeenSpec {
    #[serde(flatten)]
    nodes: NodeNeeds,
    tolerations: Vec<Toleration>,
}

impl Asked {
    /// Reads it off a pod, in both of its forms.
    pub(crate) fn of(object: &Object, pod: &PodView) -> Result<Self, serde_json::Error> {
        Self::of_written(object.decode()?, pod)
    }

    /// The same, where the pod was granted something else than what it asks for.
    pub(super) fn granted(
        object: &Object,
        pod: &PodView,
        granted: &Allocation,
    ) -> Result<Self, serde_json::Error> {
        let mut whole: Value = object.decode()?;
        granted.apply_to(&mut whole);
        Self::of_written(whole, pod)
    }

    fn of_written(whole: Value, pod: &PodView) -> Result<Self, serde_json::Error> {
        let Seen { metadata, spec } = Seen::deserialize(&whole)?;
        // What is asked for is granted here at once: the status is this node's own word of it, and later.
        let counting = Counting { overhead: true, status: false };
        let priority = pod.spec.priority;
        let given = pod.status.qos_class.clone().filter(|class| !class.is_empty());
        Ok(Self {
            requests: without_devices(&whole, counted(&of_pod(&whole, Side::Requests, counting))),
            ports: of_host(pod),
            priority,
            // Source: `kubetypes.IsCriticalPod`; the API's copies of pods of files are not asked about.
            critical: pod.is_of_a_file() || priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL),
            qos: given.unwrap_or_else(|| qos_class(&pod.spec).to_owned()),
            nodes: spec.nodes,
            tolerations: spec.tolerations,
            os: pod.spec.os.as_ref().map(|os| os.name.clone()),
            os_label: metadata.labels.get(OS).cloned(),
        })
    }

    /// Whether it says that it bears a node that is short of memory.
    pub(super) fn bears_memory_pressure(&self) -> bool {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        self.tolerations.iter().any(|toleration| toleration.covers(&taint))
    }

    /// How much it asks for of one resource; of the number of pods, it is one. Source: `GetResourceRequest`.
    pub(super) fn request(&self, name: &str) -> i128 {
        if name == "pods" { 1 } else { self.requests.get(name).copied().unwrap_or(0) }
    }
}

/// Leaves out what the pod has been given as devices, by a claim that the scheduler made for it: the node need not have it.
/// Source: KEP-5004, `status.extendedResourceClaimStatus`.
fn without_devices(pod: &Value, mut amounts: Amounts) -> Amounts {
    let given = pod["status"]["extendedResourceClaimStatus"]["requestMappings"].as_array();
    for mapping in given.into_iter().flatten() {
        if let Some(name) = mapping["resourceName"].as_str() {
            amounts.remove(name);
        }
    }
    amounts
}

/// What a node has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) taints: Vec<Taint>,
    pub(super) allocatable: Amounts,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeenNode {
    metadata: ObjectMeta,
    spec: SeenNodeSpec,
    status: SeenNodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeenNodeSpec {
    taints: Vec<Taint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeenNodeStatus {
    allocatable: Value,
}

impl Machine {
    /// Reads it off the Node.
    pub(crate) fn of(node: &Value) -> Result<Self, serde_json::Error> {
        let SeenNode { metadata, spec, status } = SeenNode::deserialize(node)?;
        let allocatable = counted(&api::resources::amounts(&status.allocatable));
        Ok(Self { name: metadata.name, labels: metadata.labels, taints: spec.taints, allocatable })
    }

    /// The same, having what another has if it does not say what it has itself: it was made a moment ago.
    pub(super) fn or_having(self, own: Self) -> Self {
        let allocatable = if self.allocatable.is_empty() { own.allocatable } else { self.allocatable };
        Self { allocatable, ..self }
    }
}

fn counted(list: &ResourceList) -> Amounts {
    let amount = |name: &str, amount: &Quantity| {
        i128::from(if name == "cpu" { amount.milli_value() } else { amount.value() })
    };
    list.iter().map(|(name, held)| (name.clone(), amount(name, held))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_given_as_devices_the_node_need_not_have() {
        let asked = Amounts::from([("example.com/gpu".to_owned(), 2), ("cpu".to_owned(), 100)]);
        let given = json!({ "resourceName": "example.com/gpu", "containerName": "c", "requestName": "r" });
        let pod = json!({ "status": { "extendedResourceClaimStatus": { "requestMappings": [given] } } });
        assert_eq!(without_devices(&pod, asked.clone()), Amounts::from([("cpu".to_owned(), 100)]));
        assert_eq!(without_devices(&json!({}), asked.clone()), asked);
    }
}
