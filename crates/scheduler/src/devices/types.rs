//! What the scheduler keeps of claims of devices, of what drivers offer, and of classes. Shape: `resource.k8s.io/v1`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use api::cel::devices::{self, Attribute};
use api::quantity::Quantity;
use jiff::Timestamp;
use reconcile::node_affinity::NodeSelector;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::storage::types::Version;
use crate::types::Node;

/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// A device, by its driver, its pool and its name there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Driver.
    pub driver: String,
    /// Pool.
    pub pool: String,
    /// Name.
    pub device: String,
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// An expression that selects devices, read when it is first asked for.
#[derive(Debug, Default)]
pub struct Selector {
    source: String,
    read: OnceLock<Result<devices::Selector, String>>,
}

impl Selector {
    /// The expression, or why it cannot be read.
    pub fn read(&self) -> &Result<devices::Selector, String> {
        self.read.get_or_init(|| devices::Selector::compile(&self.source))
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// `DeviceTaint`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// `NoSchedule`, `NoExecute` or `None`.
    pub effect: String,
}

/// `DeviceToleration`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    operator: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether it covers a taint. Source: `resourceclaim.ToleratesTaint`.
    pub fn covers(&self, taint: &Taint) -> bool {
        let is = |own: &String, other: &String| own.is_empty() || own == other;
        is(&self.effect, &taint.effect)
            && is(&self.key, &taint.key)
            && match self.operator.as_str() {
                "" | "Equal" => self.value == taint.value,
                operator => operator == "Exists",
            }
    }
}

/// What one request, or one of its alternatives, asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Ask {
    /// The name of the alternative; of a request without any, its own.
    pub name: String,
    /// The class.
    pub class: String,
    /// All of these have to select a device.
    pub selectors: Vec<Selector>,
    /// `ExactCount` or `All`.
    pub mode: String,
    /// How many devices, with `ExactCount`.
    pub count: i64,
    /// Whether devices may be had that others use.
    pub admin: bool,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// How much of the devices' capacity.
    pub capacity: Amounts,
}

impl Ask {
    /// Whether all devices are asked for that are selected.
    pub fn takes_all(&self) -> bool {
        self.mode == "All"
    }
}

/// `DeviceRequest`.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    /// Name.
    pub name: String,
    /// Whether the asks are alternatives (`firstAvailable`), the best first.
    pub ordered: bool,
    /// What is asked for; nothing: the request is of a kind that is not known.
    pub asks: Vec<Ask>,
}

impl Request {
    /// The name under which results speak of an ask.
    pub fn full_name(&self, ask: &Ask) -> String {
        if self.ordered { format!("{}/{}", self.name, ask.name) } else { self.name.clone() }
    }
}

/// `DeviceConstraint`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Constraint {
    /// The requests; none: all.
    pub requests: Vec<String>,
    /// All their devices have the same value there.
    pub match_attribute: Option<String>,
    /// All their devices have different values there.
    pub distinct_attribute: Option<String>,
}

/// What is said to drivers, for these requests; none: for all.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// The requests.
    pub requests: Vec<String>,
    /// What is said.
    pub opaque: Option<Value>,
}

/// A device that a claim got. Shape: `DeviceRequestAllocationResult`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Allocated {
    driver: String,
    pool: String,
    device: String,
    /// Whether others may have it beside this claim.
    pub admin_access: bool,
    /// This claim's share of it; empty if it is not shared.
    #[serde(rename = "shareID")]
    pub share: String,
    /// How much of it this claim uses.
    #[serde(deserialize_with = "amounts")]
    pub consumed_capacity: Amounts,
    /// What has to be true of it before the pod is bound.
    pub binding_conditions: Vec<String>,
    /// What makes the binding fail if it is true.
    pub binding_failure_conditions: Vec<String>,
}

impl Allocated {
    /// The device.
    pub fn id(&self) -> DeviceId {
        let (driver, pool, device) = (self.driver.clone(), self.pool.clone(), self.device.clone());
        DeviceId { driver, pool, device }
    }
}

/// What a claim got. Shape: `AllocationResult`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allocation {
    /// As it is written.
    pub raw: Value,
    /// The devices.
    pub devices: Vec<Allocated>,
    /// The nodes on which they are; `None`: all.
    pub nodes: Option<NodeSelector>,
    /// When it got them.
    pub since: Option<Timestamp>,
}

/// What a driver tells of a device that was allocated. Shape: `AllocatedDeviceStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    driver: String,
    pool: String,
    device: String,
    #[serde(rename = "shareID")]
    share: String,
    conditions: Vec<Condition>,
}

/// `metav1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    r#type: String,
    status: String,
    /// Why.
    pub reason: String,
    /// More about it.
    pub message: String,
}

impl Told {
    /// Whether it is about this share of a device.
    pub fn is_of(&self, device: &Allocated) -> bool {
        (&self.driver, &self.pool, &self.device, &self.share)
            == (&device.driver, &device.pool, &device.device, &device.share)
    }

    /// A condition that is true.
    pub fn holds(&self, condition: &str) -> Option<&Condition> {
        self.conditions.iter().find(|held| held.r#type == condition && held.status == "True")
    }
}

/// `ResourceClaim`.
#[derive(Debug, Default)]
pub struct Claim {
    /// Which.
    pub version: Version,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// The uid of its controller; empty if it has none.
    pub owner: String,
    /// What holds its deletion back.
    pub finalizers: Vec<String>,
    /// What it asks for.
    pub requests: Vec<Request>,
    /// What its devices have to have in common, or not.
    pub constraints: Vec<Constraint>,
    /// What it says to drivers.
    pub config: Vec<Configuration>,
    /// What it got.
    pub allocation: Option<Allocation>,
    /// Who uses it, as it is written.
    pub reserved: Vec<Value>,
    /// What drivers tell of its devices.
    pub told: Vec<Told>,
    /// Whether the scheduler made it, for the extended resources of the pod that is its controller.
    pub special: bool,
}

impl Claim {
    /// Whether it is reserved for a pod.
    pub fn is_reserved_for(&self, pod: &str) -> bool {
        self.reserved.iter().any(|user| user["uid"] == pod)
    }

    /// Whether nobody else than a pod uses it.
    pub fn is_only_for(&self, pod: &str) -> bool {
        self.reserved.iter().all(|user| user["uid"] == pod) && self.reserved.len() <= 1
    }

    /// Whether there is no such claim yet: it is to be made.
    pub fn is_unmade(&self) -> bool {
        self.version.uid.is_empty()
    }

    /// The same, as if it had devices.
    pub fn with_devices(&self) -> std::sync::Arc<Self> {
        let (version, allocation) = (self.version.clone(), Some(Allocation::default()));
        std::sync::Arc::new(Self { version, allocation, ..Self::default() })
    }

    /// Whether its status says the same.
    pub fn says_the_same(&self, other: &Self) -> bool {
        (&self.allocation, &self.reserved, &self.told) == (&other.allocation, &other.reserved, &other.told)
    }
}

/// The nodes on which something is.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Place {
    /// One node.
    Node(String),
    /// All.
    Everywhere,
    /// Those that are selected; also as it is written.
    Selected(NodeSelector, Value),
    /// Each device says it itself.
    PerDevice,
    /// Nothing is said that is known.
    #[default]
    Unknown,
}

impl Place {
    /// Whether it is on a node. Source: `NodeMatches`.
    pub fn is_on(&self, node: &Node) -> bool {
        match self {
            Self::Node(name) => *name == node.name,
            Self::Everywhere => true,
            Self::Selected(selector, _) => selector.matches(&node.name, &node.labels),
            Self::PerDevice | Self::Unknown => false,
        }
    }
}

/// What may be asked of a capacity. Shape: `CapacityRequestPolicy`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// What is meant if nothing is said.
    pub default: Option<Quantity>,
    /// Only these amounts, in ascending order.
    pub values: Vec<Quantity>,
    /// Only amounts of this range.
    pub range: Option<Range>,
}

/// `CapacityRequestPolicyRange`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Range {
    /// No less.
    pub min: Option<Quantity>,
    /// No more.
    pub max: Option<Quantity>,
    /// Only so many more than the least.
    pub step: Option<Quantity>,
}

/// `DeviceCapacity`.
#[derive(Debug, Clone, PartialEq)]
pub struct Capacity {
    /// How much there is.
    pub value: Quantity,
    /// What may be asked of it.
    pub policy: Option<Policy>,
}

/// A device that a driver offers.
#[derive(Debug, Default)]
pub struct Device {
    /// Which.
    pub id: DeviceId,
    /// Where, if devices say that themselves.
    pub place: Place,
    /// What is said of it.
    pub attributes: BTreeMap<String, Attribute>,
    /// How much it has of what.
    pub capacity: BTreeMap<String, Capacity>,
    /// What it takes of which counters, by set.
    pub consumes: Vec<(String, Amounts)>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it can be used on no other node once it is allocated.
    pub binds_to_node: bool,
    /// What has to be true of it before a pod is bound.
    pub binding_conditions: Vec<String>,
    /// What makes the binding fail if it is true.
    pub binding_failure_conditions: Vec<String>,
    /// Whether several claims may have it.
    pub shared: bool,
    pub(super) seen: OnceLock<Result<devices::Device, String>>,
}

impl Device {
    /// The device as expressions see it, or why they cannot.
    pub fn seen(&self) -> &Result<devices::Device, String> {
        self.seen.get_or_init(|| {
            let capacity = self.capacity.iter().map(|(name, capacity)| (name, capacity.value));
            devices::Device::new(&self.id.driver, self.shared, self.attributes.iter(), capacity)
        })
    }

    /// What is said of it under a full name. Source: `lookupAttribute`.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name).or_else(|| {
            let (domain, id) = name.split_once('/')?;
            (domain == self.id.driver).then(|| self.attributes.get(id))?
        })
    }
}

/// `ResourceSlice`.
#[derive(Debug, Default)]
pub struct Slice {
    /// Name.
    pub name: String,
    /// Driver.
    pub driver: String,
    /// Pool.
    pub pool: String,
    /// Newer ones replace older ones.
    pub generation: i64,
    /// How many slices the pool has.
    pub count: i64,
    /// Where its devices are.
    pub place: Place,
    /// The devices.
    pub devices: Vec<Device>,
    /// What devices of the pool share, by set.
    pub counters: Vec<(String, Amounts)>,
    /// Whether something has to become true of one of its devices before a pod is bound that gets it.
    pub waits: bool,
}

/// `DeviceClass`.
#[derive(Debug, Default, PartialEq)]
pub struct Class {
    /// Name.
    pub name: String,
    /// All of these have to select a device.
    pub selectors: Vec<Selector>,
    /// What is said to drivers.
    pub config: Vec<Configuration>,
    /// The resource that it stands for, beside that of its name.
    pub extended: Option<String>,
    /// When it was made.
    pub created: Option<Timestamp>,
}

/// `DeviceTaintRule`: a taint of devices that somebody else than their driver says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaintRule {
    device_selector: Option<TaintSelector>,
    /// The taint.
    pub taint: Taint,
}

/// `DeviceTaintSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct TaintSelector {
    driver: Option<String>,
    pool: Option<String>,
    device: Option<String>,
}

impl TaintRule {
    /// Whether it is about a device. Without a selector it is about none.
    pub fn is_of(&self, id: &DeviceId) -> bool {
        let is = |own: &Option<String>, other: &String| own.as_ref().is_none_or(|own| own == other);
        self.device_selector.as_ref().is_some_and(|selector| {
            is(&selector.driver, &id.driver)
                && is(&selector.pool, &id.pool)
                && is(&selector.device, &id.device)
        })
    }
}

/// An amount as objects carry it; what makes no sense is nothing.
pub(super) fn amount(value: &Value) -> Quantity {
    match value {
        Value::String(text) => text.parse().unwrap_or(Quantity::ZERO),
        other => other.to_string().parse().unwrap_or(Quantity::ZERO),
    }
}

/// Amounts by name as objects carry them.
pub(super) fn amounts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amounts, D::Error> {
    let read = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(read.into_iter().map(|(name, value)| (name, amount(&value))).collect())
}

impl From<String> for Selector {
    fn from(source: String) -> Self {
        Self { source, read: OnceLock::new() }
    }
}
