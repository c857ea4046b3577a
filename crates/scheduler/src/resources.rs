//! Amounts of resources: what pods ask for and nodes offer, as integers.

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};
use serde::Deserialize;
use serde_json::Value;

use crate::devices::extended::is_had_by_devices;
use crate::types::Asked;

/// What a container without a request counts as when nodes are compared. Source: `schedutil.DefaultMilliCPURequest`.
const DEFAULT_CPU_MILLI: i128 = 100;
/// The same for memory, in bytes.
const DEFAULT_MEMORY_BYTES: i128 = 200 << 20;

/// Amounts: thousandths of cores for `cpu`, whole units (bytes) for all others.
///
/// Each container may ask for as much as an `i64` holds. Sums are wider, so that they never overflow, and what a pod added
/// is exactly what is taken away when it goes: a saturated sum would forget the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of cores.
    pub cpu: i128,
    /// Bytes.
    pub memory: i128,
    /// Bytes.
    pub ephemeral_storage: i128,
    /// All others, sorted by name.
    scalars: Vec<(Box<str>, i128)>,
}

impl Resources {
    /// From a resource list. A malformed amount counts as 0: the API server has refused it before.
    pub fn parse(list: &BTreeMap<String, Value>) -> Self {
        let mut read = Self::default();
        for (name, value) in list {
            let quantity = quantity(value);
            *read.slot(name) =
                i128::from(if name == "cpu" { quantity.milli_value() } else { quantity.value() });
        }
        read
    }

    fn slot(&mut self, name: &str) -> &mut i128 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral_storage,
            _ => {
                let at = match self.scalars.binary_search_by(|(held, _)| (**held).cmp(name)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.scalars.insert(at, (name.into(), 0));
                        at
                    }
                };
                &mut self.scalars[at].1
            }
        }
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i128 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            _ => self.scalar(name).unwrap_or(0),
        }
    }

    /// The amount of a resource that is none of the three; `None` if it is not named at all.
    pub fn scalar(&self, name: &str) -> Option<i128> {
        let at = self.scalars.binary_search_by(|(held, _)| (**held).cmp(name)).ok()?;
        Some(self.scalars[at].1)
    }

    /// The other resources, by name.
    pub fn scalars(&self) -> impl Iterator<Item = (&str, i128)> {
        self.scalars.iter().map(|(name, amount)| (&**name, *amount))
    }

    /// Every resource that is more than nothing, or named.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i128)> {
        let fixed =
            [("cpu", self.cpu), ("memory", self.memory), ("ephemeral-storage", self.ephemeral_storage)];
        fixed.into_iter().filter(|(_, amount)| *amount != 0).chain(self.scalars())
    }

    /// Adds amounts.
    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, amount) in other.scalars().filter(|(_, amount)| *amount != 0) {
            *self.slot(name) += amount;
        }
    }

    /// Takes amounts away. A name of which nothing is left is forgotten: pods may have thought of any.
    pub fn subtract(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        let mut ended = false;
        for (name, amount) in other.scalars().filter(|(_, amount)| *amount != 0) {
            let held = self.slot(name);
            *held -= amount;
            ended |= *held == 0;
        }
        if ended {
            self.scalars.retain(|(_, amount)| *amount != 0);
        }
    }

    /// Raises each amount to at least the other's.
    fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in other.scalars() {
            let held = self.slot(name);
            *held = (*held).max(amount);
        }
    }
}

/// An amount; a malformed one is nothing.
fn quantity(value: &Value) -> Quantity {
    match value {
        Value::String(text) => text.parse(),
        other => other.to_string().parse(),
    }
    .unwrap_or(Quantity::ZERO)
}

/// Whether a name is that of an extended resource. Source: `v1helper.IsExtendedResourceName`.
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// The part of a container that says what it needs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerNeeds {
    pub(crate) name: String,
    pub(crate) image: String,
    resources: Needs,
    restart_policy: String,
    pub(crate) ports: Vec<PortNeeds>,
}

impl ContainerNeeds {
    /// What it asks for of resources that may be had as devices: whole numbers above 0.
    pub(crate) fn asked_of_devices(&self) -> Vec<Asked> {
        let requests = self.resources.requests.iter().enumerate();
        let may_be = requests.filter(|(_, (name, _))| is_had_by_devices(name));
        let asked = may_be.filter_map(|(place, (name, amount))| {
            let amount = quantity(amount);
            let whole = Quantity::from_units(amount.value(), Format::DecimalSi) == amount;
            let count = amount.value();
            (whole && count > 0).then(|| Asked { resource: name.clone(), place, count })
        });
        asked.collect()
    }

    pub(crate) fn is_sidecar(&self) -> bool {
        self.restart_policy == "Always"
    }
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

/// What a node says of a container's resources while they are resized. Shape: `core/v1.ContainerStatus`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerReport {
    name: String,
    resources: Option<Needs>,
    allocated_resources: BTreeMap<String, Value>,
}

impl std::hash::Hash for ContainerReport {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let actual = self.resources.as_ref().map(|actual| &actual.requests);
        self.name.hash(state);
        for (name, amount) in actual.into_iter().chain([&self.allocated_resources]).flatten() {
            (name, amount.to_string()).hash(state);
        }
        actual.is_some().hash(state);
    }
}

/// Everything that says how much a pod asks for.
#[derive(Debug, Default)]
pub(crate) struct PodNeeds<'a> {
    pub(crate) containers: &'a [ContainerNeeds],
    pub(crate) init_containers: &'a [ContainerNeeds],
    /// For the pod as a whole.
    pub(crate) pod: Option<&'a Needs>,
    pub(crate) overhead: Option<&'a BTreeMap<String, Value>>,
    pub(crate) reports: &'a [ContainerReport],
    /// Its resize cannot be had on its node: what it wishes does not count.
    pub(crate) infeasible: bool,
}

/// What a pod asks for, and the same for comparing nodes, where a container that asks for no cpu or memory counts as a
/// little: `(cpu in thousandths, memory in bytes)`.
pub(crate) struct PodRequests {
    pub(crate) requests: Resources,
    pub(crate) compared: (i128, i128),
}

impl PodNeeds<'_> {
    /// Its containers together, or any of its init containers (with the sidecars started before it), whichever is more;
    /// what is asked for the pod as a whole wins; plus its overhead. While a container is resized it counts with the most
    /// of what it wishes, has been promised and has. Source: `resourcehelper.PodRequests`.
    pub(crate) fn total(&self) -> PodRequests {
        let requests = self.sum(&Default::default());
        let whole = self.pod.map(|pod| &pod.requests);
        let unless_whole = |name: &str, default: i128| {
            let asked = whole.is_some_and(|whole| whole.contains_key(name));
            if asked { None } else { Some(default) }
        };
        let defaults = (unless_whole("cpu", DEFAULT_CPU_MILLI), unless_whole("memory", DEFAULT_MEMORY_BYTES));
        let compared = self.sum(&defaults);
        PodRequests { requests, compared: (compared.cpu, compared.memory) }
    }

    fn sum(&self, missing: &(Option<i128>, Option<i128>)) -> Resources {
        let mut total = Resources::default();
        for container in self.containers {
            total.add(&self.container(container, true, missing));
        }
        let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
        for container in self.init_containers {
            let own = self.container(container, container.is_sidecar(), missing);
            if container.is_sidecar() {
                sidecars.add(&own);
                peak.raise_to(&sidecars);
            } else {
                let mut during = sidecars.clone();
                during.add(&own);
                peak.raise_to(&during);
            }
        }
        total.add(&sidecars);
        total.raise_to(&peak);
        for (name, amount) in self.pod.map(|pod| Resources::parse(&pod.requests)).unwrap_or_default().iter() {
            *total.slot(name) = amount;
        }
        if let Some(overhead) = self.overhead {
            total.add(&Resources::parse(overhead));
        }
        total
    }

    fn container(
        &self,
        container: &ContainerNeeds,
        resizable: bool,
        missing: &(Option<i128>, Option<i128>),
    ) -> Resources {
        let mut asked = Resources::parse(&container.resources.requests);
        let report = self.reports.iter().find(|report| resizable && report.name == container.name);
        if let Some(ContainerReport { resources: Some(actual), allocated_resources, .. }) = report {
            if self.infeasible {
                asked = Resources::default();
            }
            asked.raise_to(&Resources::parse(&actual.requests));
            asked.raise_to(&Resources::parse(allocated_resources));
        }
        let named = |name: &str| container.resources.requests.contains_key(name);
        if let (false, Some(default)) = (named("cpu"), missing.0) {
            asked.cpu = asked.cpu.max(default);
        }
        if let (false, Some(default)) = (named("memory"), missing.1) {
            asked.memory = asked.memory.max(default);
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(cpu: &str, policy: &str) -> ContainerNeeds {
        let requests = json!({ "cpu": cpu, "memory": "1Mi" });
        let value = json!({ "name": "c", "restartPolicy": policy, "resources": { "requests": requests } });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn init_containers_count_where_they_need_more() {
        let needs = PodNeeds {
            containers: &[container("100m", ""), container("200m", "")],
            init_containers: &[container("250m", "")],
            ..PodNeeds::default()
        };
        let plain = needs.total().requests;
        assert_eq!((plain.get("cpu"), plain.get("memory")), (300, 2 << 20));
        let sidecar = [container("100m", "Always"), container("1", "")];
        let one = [container("100m", "")];
        let needs = PodNeeds { containers: &one, init_containers: &sidecar, ..PodNeeds::default() };
        assert_eq!(needs.total().requests.cpu, 1100);
        let whole: Needs = serde_json::from_value(json!({ "requests": { "cpu": 2 } })).unwrap();
        let overhead = BTreeMap::from([("cpu".to_owned(), json!("50m"))]);
        let needs = PodNeeds {
            containers: &one,
            pod: Some(&whole),
            overhead: Some(&overhead),
            ..PodNeeds::default()
        };
        assert_eq!(needs.total().requests.cpu, 2050);
    }

    #[test]
    fn a_resize_counts_with_the_most_of_its_three_figures() {
        let report = |actual: &str, allocated: &str| -> [ContainerReport; 1] {
            let value = json!([{ "name": "c", "resources": { "requests": { "cpu": actual } },
                "allocatedResources": { "cpu": allocated } }]);
            serde_json::from_value(value).unwrap()
        };
        for (wished, actual, allocated, infeasible, counts) in [
            ("1", "2", "3", false, 3000),
            ("1", "2", "500m", false, 2000),
            ("4", "2", "3", false, 4000),
            ("4", "2", "3", true, 3000),
        ] {
            let (own, reports) = ([container(wished, "")], report(actual, allocated));
            let needs = PodNeeds { containers: &own, reports: &reports, infeasible, ..PodNeeds::default() };
            assert_eq!(needs.total().requests.cpu, counts, "{wished} {actual} {allocated}");
        }
    }

    #[test]
    fn nothing_asked_counts_a_little_for_each_container_when_nodes_are_compared() {
        let none = ContainerNeeds::default();
        let containers = [none.clone(), none, container("1", "")];
        let needs = PodNeeds { containers: &containers, ..PodNeeds::default() };
        let total = needs.total();
        assert_eq!(total.compared, (1200, (400 << 20) + (1 << 20)));
        assert_eq!((total.requests.cpu, total.requests.memory), (1000, 1 << 20));
        let whole: Needs = serde_json::from_value(json!({ "requests": { "cpu": "50m" } })).unwrap();
        let needs = PodNeeds { containers: &containers[..1], pod: Some(&whole), ..PodNeeds::default() };
        assert_eq!(needs.total().compared, (50, 200 << 20));
    }

    #[test]
    fn names_of_which_nothing_is_asked_are_not_kept() {
        let named =
            |name: &str, amount: &str| Resources::parse(&BTreeMap::from([(name.to_owned(), json!(amount))]));
        let mut used = Resources::default();
        used.add(&named("example.com/none", "0"));
        used.add(&named("example.com/gpu", "2"));
        used.add(&named("example.com/gpu", "1"));
        assert_eq!(used.scalars().collect::<Vec<_>>(), [("example.com/gpu", 3)]);
        used.subtract(&named("example.com/gpu", "2"));
        used.subtract(&named("example.com/none", "0"));
        assert_eq!(used.get("example.com/gpu"), 1);
        used.subtract(&named("example.com/gpu", "1"));
        assert_eq!(used, Resources::default());
    }

    #[test]
    fn extended_resources_are_those_of_other_domains() {
        for (name, extended) in [
            ("nvidia.com/gpu", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("kubernetes.io/x", false),
            ("requests.nvidia.com/gpu", false),
        ] {
            assert_eq!(is_extended(name), extended, "{name}");
        }
    }
}
