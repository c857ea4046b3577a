//! From the bytes of claims, slices, classes and rules to what is kept of them.

use std::collections::BTreeMap;

use api::cel::devices::Attribute;
use api::quantity::Quantity;
use api::{Object, ObjectMeta};
use base::BoxError;
use jiff::Timestamp;
use reconcile::node_affinity::NodeSelector;
use serde::Deserialize;
use serde_json::Value;

use super::extended::ANNOTATION;
use super::types::{
    Allocated, Allocation, Amounts, Ask, Capacity, Claim, Class, Configuration, Constraint, Device, DeviceId,
    Place, Policy, Range, Request, Slice, Taint, TaintRule, Told, Toleration, amount, amounts,
};
use crate::storage::types::Version;

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClaimBody {
    metadata: ObjectMeta,
    spec: ClaimSpec,
    status: ClaimStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClaimSpec {
    devices: DeviceClaim,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DeviceClaim {
    requests: Vec<RequestBody>,
    constraints: Vec<Constraint>,
    config: Vec<Configuration>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RequestBody {
    name: String,
    exactly: Option<AskBody>,
    first_available: Vec<AskBody>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AskBody {
    name: String,
    device_class_name: String,
    selectors: Vec<SelectorBody>,
    allocation_mode: String,
    count: i64,
    admin_access: bool,
    tolerations: Vec<Toleration>,
    capacity: CapacityRequirements,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CapacityRequirements {
    #[serde(deserialize_with = "amounts")]
    requests: Amounts,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SelectorBody {
    cel: Expression,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Expression {
    expression: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<Value>,
    reserved_for: Vec<Value>,
    devices: Vec<Told>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AllocationBody {
    devices: Results,
    node_selector: Option<NodeSelector>,
    allocation_timestamp: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Results {
    results: Vec<Allocated>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SliceBody {
    metadata: ObjectMeta,
    spec: SliceSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SliceSpec {
    driver: String,
    pool: PoolBody,
    node_name: String,
    node_selector: Option<Value>,
    all_nodes: bool,
    per_device_node_selection: bool,
    devices: Vec<DeviceBody>,
    shared_counters: Vec<CounterSet>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PoolBody {
    name: String,
    generation: i64,
    resource_slice_count: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CounterSet {
    name: String,
    counter_set: String,
    counters: BTreeMap<String, Counter>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Counter {
    value: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceBody {
    name: String,
    attributes: BTreeMap<String, AttributeBody>,
    capacity: BTreeMap<String, CapacityBody>,
    consumes_counters: Vec<CounterSet>,
    node_name: String,
    node_selector: Option<Value>,
    all_nodes: bool,
    taints: Vec<Taint>,
    binds_to_node: bool,
    binding_conditions: Vec<String>,
    binding_failure_conditions: Vec<String>,
    allow_multiple_allocations: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttributeBody {
    int: Option<i64>,
    bool: Option<bool>,
    string: Option<String>,
    version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CapacityBody {
    value: Value,
    request_policy: Option<PolicyBody>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PolicyBody {
    default: Option<Value>,
    valid_values: Vec<Value>,
    valid_range: Option<RangeBody>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RangeBody {
    min: Option<Value>,
    max: Option<Value>,
    step: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClassBody {
    metadata: ObjectMeta,
    spec: ClassSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClassSpec {
    extended_resource_name: Option<String>,
    selectors: Vec<SelectorBody>,
    config: Vec<Configuration>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RuleBody {
    spec: TaintRule,
}

impl AskBody {
    fn read(self) -> Ask {
        Ask {
            name: self.name,
            class: self.device_class_name,
            selectors: selectors(self.selectors),
            mode: self.allocation_mode,
            count: self.count,
            admin: self.admin_access,
            tolerations: self.tolerations,
            capacity: self.capacity.requests,
        }
    }
}

fn selectors(bodies: Vec<SelectorBody>) -> Vec<super::types::Selector> {
    bodies.into_iter().map(|body| body.cel.expression.into()).collect()
}

impl RequestBody {
    fn read(self) -> Request {
        let ordered = self.exactly.is_none();
        let mut asks: Vec<Ask> =
            self.exactly.into_iter().chain(self.first_available).map(AskBody::read).collect();
        if !ordered {
            asks.truncate(1);
            asks.iter_mut().for_each(|ask| ask.name.clone_from(&self.name));
        }
        Request { name: self.name, ordered, asks }
    }
}

impl Allocation {
    /// Reads what a claim got.
    pub fn read(raw: Value) -> Result<Self, serde_json::Error> {
        let body = AllocationBody::deserialize(&raw)?;
        let (nodes, since) = (body.node_selector, body.allocation_timestamp);
        Ok(Self { devices: body.devices.results, nodes, since, raw })
    }
}

impl Claim {
    /// Decodes a claim.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: ClaimBody =
            object.decode().map_err(|error| format!("cannot read claim {}: {error}", object.key()))?;
        let (meta, devices, status) = (body.metadata, body.spec.devices, body.status);
        Ok(Self {
            version: Version { key: object.key(), uid: meta.uid.clone(), revision: object.revision() },
            terminating: meta.is_terminating(),
            special: meta.annotations.get(ANNOTATION).is_some_and(|value| value == "true")
                && meta.controller().is_some_and(|owner| owner.kind == "Pod"),
            owner: meta.controller().map(|owner| owner.uid.clone()).unwrap_or_default(),
            finalizers: meta.finalizers,
            requests: devices.requests.into_iter().map(RequestBody::read).collect(),
            constraints: devices.constraints,
            config: devices.config,
            allocation: status.allocation.map(Allocation::read).transpose()?,
            reserved: status.reserved_for,
            told: status.devices,
        })
    }
}

fn place(node: String, everywhere: bool, selector: Option<Value>) -> Place {
    match selector {
        _ if !node.is_empty() => Place::Node(node),
        _ if everywhere => Place::Everywhere,
        // A selector that makes no sense selects nothing.
        Some(raw) => Place::Selected(NodeSelector::deserialize(&raw).unwrap_or_default(), raw),
        None => Place::Unknown,
    }
}

impl CounterSet {
    fn read(self) -> (String, Amounts) {
        let name = if self.name.is_empty() { self.counter_set } else { self.name };
        let counters = self.counters.into_iter();
        (name, counters.map(|(name, counter)| (name, amount(&counter.value))).collect())
    }
}

impl AttributeBody {
    fn read(self) -> Option<Attribute> {
        let number = self.int.map(Attribute::Int).or(self.bool.map(Attribute::Bool));
        number.or(self.string.map(Attribute::Text)).or(self.version.map(Attribute::Version))
    }
}

impl CapacityBody {
    fn read(self) -> Capacity {
        let read = |value: Option<Value>| -> Option<Quantity> { value.as_ref().map(amount) };
        let policy = self.request_policy.map(|policy| Policy {
            default: read(policy.default),
            values: policy.valid_values.iter().map(amount).collect(),
            range: policy.valid_range.map(|range| Range {
                min: read(range.min),
                max: read(range.max),
                step: read(range.step),
            }),
        });
        Capacity { value: amount(&self.value), policy }
    }
}

impl DeviceBody {
    fn read(self, driver: &str, pool: &str) -> Device {
        let named = |(name, body): (String, AttributeBody)| Some((name, body.read()?));
        Device {
            id: DeviceId { driver: driver.to_owned(), pool: pool.to_owned(), device: self.name },
            place: place(self.node_name, self.all_nodes, self.node_selector),
            attributes: self.attributes.into_iter().filter_map(named).collect(),
            capacity: self.capacity.into_iter().map(|(name, body)| (name, body.read())).collect(),
            consumes: self.consumes_counters.into_iter().map(CounterSet::read).collect(),
            taints: self.taints,
            binds_to_node: self.binds_to_node,
            binding_conditions: self.binding_conditions,
            binding_failure_conditions: self.binding_failure_conditions,
            shared: self.allow_multiple_allocations,
            ..Device::default()
        }
    }
}

impl Slice {
    /// Decodes a slice.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: SliceBody =
            object.decode().map_err(|error| format!("cannot read slice {}: {error}", object.key()))?;
        let spec = body.spec;
        let own = place(spec.node_name, spec.all_nodes, spec.node_selector);
        let place =
            if own == Place::Unknown && spec.per_device_node_selection { Place::PerDevice } else { own };
        let (driver, pool) = (spec.driver, spec.pool.name);
        let devices: Vec<Device> =
            spec.devices.into_iter().map(|device| device.read(&driver, &pool)).collect();
        Ok(Self {
            name: body.metadata.name,
            generation: spec.pool.generation,
            count: spec.pool.resource_slice_count,
            place,
            waits: devices.iter().any(|device| !device.binding_conditions.is_empty()),
            devices,
            counters: spec.shared_counters.into_iter().map(CounterSet::read).collect(),
            driver,
            pool,
        })
    }
}

impl Class {
    /// Decodes a class.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: ClassBody =
            object.decode().map_err(|error| format!("cannot read class {}: {error}", object.key()))?;
        Ok(Self {
            name: object.meta().name.clone(),
            selectors: selectors(body.spec.selectors),
            config: body.spec.config,
            extended: body.spec.extended_resource_name.filter(|name| !name.is_empty()),
            created: body.metadata.creation_timestamp,
        })
    }
}

impl TaintRule {
    /// Decodes a rule.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: RuleBody =
            object.decode().map_err(|error| format!("cannot read taint rule {}: {error}", object.key()))?;
        Ok(body.spec)
    }
}
