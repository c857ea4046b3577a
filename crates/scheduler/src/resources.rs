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
    restart_policy_rules: Vec<RestartRule>,
    pub(crate) volume_mounts: Vec<Mount>,
    pub(crate) ports: Vec<PortNeeds>,
}

/// `core/v1.ContainerRestartRule`, what is done.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RestartRule {
    action: String,
}

/// `core/v1.VolumeMount`, the part that not every node can do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Mount {
    bind_mount_options: Vec<serde::de::IgnoredAny>,
}

impl Mount {
    /// Whether it has options of its own.
    pub(crate) fn has_options(&self) -> bool {
        !self.bind_mount_options.is_empty()
    }
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

    /// Whether its end may restart all containers of its pod.
    pub(crate) fn restarts_all(&self) -> bool {
        self.restart_policy_rules.iter().any(|rule| rule.action == "RestartAllContainers")
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
    pub(crate) requests: BTreeMap<String, Value>,
}

/// What a node says of a container's resources while they are resized. Shape: `core/v1.ContainerStatus`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerReport {
    name: String,
    resources: Option<Needs>,
    allocated_resources: BTreeMap<String, Value>,
}

impl ContainerReport {
    fn is_silent(&self) -> bool {
        self.had().is_none() && self.allocated_resources.is_empty()
    }

    fn had(&self) -> Option<&BTreeMap<String, Value>> {
        self.resources.as_ref().map(|had| &had.requests).filter(|had| !had.is_empty())
    }
}

/// What a node says of the resources of a pod as a whole. Shape: `core/v1.PodStatus`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodReport<'a> {
    pub(crate) had: &'a BTreeMap<String, Value>,
    pub(crate) promised: &'a BTreeMap<String, Value>,
}

/// Hashes amounts, by which it is seen that a node says something else.
pub(crate) fn hash_amounts<H: std::hash::Hasher>(amounts: &BTreeMap<String, Value>, state: &mut H) {
    use std::hash::Hash;
    amounts.len().hash(state);
    for (name, amount) in amounts {
        (name, amount.to_string()).hash(state);
    }
}

impl std::hash::Hash for ContainerReport {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.resources.is_some().hash(state);
        for amounts in
            self.resources.as_ref().map(|had| &had.requests).into_iter().chain([&self.allocated_resources])
        {
            hash_amounts(amounts, state);
        }
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
    pub(crate) report: Option<PodReport<'a>>,
    /// Its resize cannot be had on its node: what it wishes does not count.
    pub(crate) infeasible: bool,
}

/// What a pod asks for, and the same for comparing nodes, where a container that asks for no cpu or memory counts as a
/// little: `(cpu in thousandths, memory in bytes)`.
pub(crate) struct PodRequests {
    pub(crate) requests: Resources,
    pub(crate) compared: (i128, i128),
}

/// What a container counts with: what it wishes, what it has been promised, what it has.
#[derive(Debug, Clone, Copy)]
enum Figure {
    Wished,
    Promised,
    Had,
}

/// Cpu and memory for a container that does not name them.
type Missing = (Option<i128>, Option<i128>);

/// Whether it can be asked for a pod as a whole. Source: `IsSupportedPodLevelResource`.
fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

impl PodNeeds<'_> {
    /// Its containers together, or any of its init containers (with the sidecars started before it), whichever is more;
    /// what is asked for the pod as a whole wins; plus its overhead. While it is resized, the most of what it wishes, has
    /// been promised and has counts. Source: `resourcehelper.PodRequests`.
    pub(crate) fn total(&self) -> PodRequests {
        let requests = self.sum((None, None));
        let whole = self.pod.map(|pod| &pod.requests);
        let unless_whole = |name: &str, default: i128| {
            let asked = whole.is_some_and(|whole| whole.contains_key(name));
            if asked { None } else { Some(default) }
        };
        let defaults = (unless_whole("cpu", DEFAULT_CPU_MILLI), unless_whole("memory", DEFAULT_MEMORY_BYTES));
        let compared = self.sum(defaults);
        PodRequests { requests, compared: (compared.cpu, compared.memory) }
    }

    fn sum(&self, missing: Missing) -> Resources {
        let mut total = self.of_containers(missing);
        self.apply_whole(&mut total);
        if let Some(overhead) = self.overhead {
            total.add(&Resources::parse(overhead));
        }
        total
    }

    /// The most of the three figures, each added up over all containers first: one that grows makes up for another that
    /// shrinks. Where the node says what the pod has as a whole, that is what it has. Source: `AggregateContainerRequests`.
    fn of_containers(&self, missing: Missing) -> Resources {
        let wished = || self.added(Figure::Wished, missing);
        let whole = self.report.filter(|whole| !whole.had.is_empty() && !whole.promised.is_empty());
        if whole.is_none() && !self.infeasible && self.reports.iter().all(ContainerReport::is_silent) {
            return wished();
        }
        let (mut most, had) = match whole {
            Some(whole) => (Resources::parse(whole.promised), Resources::parse(whole.had)),
            None => (self.added(Figure::Promised, missing), self.added(Figure::Had, missing)),
        };
        most.raise_to(&had);
        if !self.infeasible {
            most.raise_to(&wished());
        }
        most
    }

    fn added(&self, figure: Figure, missing: Missing) -> Resources {
        let mut total = Resources::default();
        for container in self.containers {
            total.add(&self.container(container, figure, missing));
        }
        let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
        for container in self.init_containers {
            let own = self.container(container, figure, missing);
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
        total
    }

    fn container(&self, container: &ContainerNeeds, figure: Figure, missing: Missing) -> Resources {
        let report = self.reports.iter().find(|report| report.name == container.name);
        let promised = || report.map(|report| &report.allocated_resources).filter(|said| !said.is_empty());
        let said = match figure {
            Figure::Wished => None,
            Figure::Promised => promised(),
            Figure::Had => report.and_then(ContainerReport::had).or_else(promised),
        };
        let none = BTreeMap::new();
        let asked = match (said, figure) {
            (Some(said), _) => said,
            (None, Figure::Promised | Figure::Had) if self.infeasible => &none,
            (None, _) => &container.resources.requests,
        };
        let mut amounts = Resources::parse(asked);
        if let (false, Some(default)) = (asked.contains_key("cpu"), missing.0) {
            amounts.cpu = default;
        }
        if let (false, Some(default)) = (asked.contains_key("memory"), missing.1) {
            amounts.memory = default;
        }
        amounts
    }

    /// What is asked for the pod as a whole stands for what its containers ask for; what its node says of it includes its
    /// overhead. Source: `effectivePodLevelResources`.
    fn apply_whole(&self, total: &mut Resources) {
        let Some(asked) = self.pod.map(|pod| &pod.requests) else { return };
        if !asked.keys().any(|name| is_of_pods(name)) {
            return;
        }
        let wished = || Resources::parse(asked);
        let (mut names, mut most): (Vec<&String>, _) = (asked.keys().collect(), Resources::default());
        match &self.report {
            None => most = wished(),
            Some(report) => {
                for said in [report.had, report.promised] {
                    let mut amounts = Resources::parse(said);
                    amounts.subtract(&self.overhead.map(Resources::parse).unwrap_or_default());
                    most.raise_to(&amounts);
                    names.extend(said.keys());
                }
                if !self.infeasible {
                    most.raise_to(&wished());
                }
            }
        }
        for name in names.into_iter().filter(|name| is_of_pods(name)) {
            *total.slot(name) = most.get(name);
        }
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
    fn containers_that_are_resized_against_each_other_count_together() {
        let named = |name: &str, cpu: &str| -> ContainerNeeds {
            let value = json!({ "name": name, "resources": { "requests": { "cpu": cpu } } });
            serde_json::from_value(value).unwrap()
        };
        let report = |name: &str, actual: &str, allocated: &str| -> ContainerReport {
            let value = json!({ "name": name, "resources": { "requests": { "cpu": actual } },
                "allocatedResources": { "cpu": allocated } });
            serde_json::from_value(value).unwrap()
        };
        let containers = [named("a", "1"), named("b", "3")];
        // One has grown already, the other has not shrunk yet: 4 are wished, 4 promised, 6 are had.
        let reports = [report("a", "3", "1"), report("b", "3", "3")];
        let needs = PodNeeds { containers: &containers, reports: &reports, ..PodNeeds::default() };
        assert_eq!(needs.total().requests.cpu, 6000);
        // From 3 and 1 to 1 and 3: 4 at any time, and not the 6 of the larger of each.
        let reports = [report("a", "3", "3"), report("b", "1", "1")];
        let needs = PodNeeds { containers: &containers, reports: &reports, ..PodNeeds::default() };
        assert_eq!(needs.total().requests.cpu, 4000);
        // Init containers that end count with what they have as well.
        let init = [named("i", "1")];
        let reports = [report("i", "7", "2")];
        let needs = PodNeeds {
            containers: &containers,
            init_containers: &init,
            reports: &reports,
            ..PodNeeds::default()
        };
        assert_eq!(needs.total().requests.cpu, 7000);
    }

    #[test]
    fn a_pod_that_is_resized_as_a_whole_counts_with_the_most() {
        let list = |cpu: &str| BTreeMap::from([("cpu".to_owned(), json!(cpu))]);
        let containers = [container("100m", "")];
        let overhead = list("1");
        for (wished, had, promised, infeasible, counts) in [
            // What the node says of the pod includes the overhead of 1.
            ("2", "5", "4", false, 5000),
            ("6", "5", "4", false, 7000),
            ("6", "5", "4", true, 5000),
        ] {
            let whole = Needs { requests: list(wished) };
            let (had, promised) = (list(had), list(promised));
            let needs = PodNeeds {
                containers: &containers,
                pod: Some(&whole),
                overhead: Some(&overhead),
                report: Some(PodReport { had: &had, promised: &promised }),
                infeasible,
                ..PodNeeds::default()
            };
            assert_eq!(needs.total().requests.cpu, counts, "{wished} {had:?} {promised:?}");
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
