//! From the bytes of a pod to what is kept of it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use api::selectors::LabelSelectorSpec;
use api::{Object, ObjectMeta};
use base::BoxError;
use jiff::Timestamp;
use reconcile::node_affinity::NodeSelector;
use reconcile::taints::Toleration;
use serde::Deserialize;
use serde_json::Value;

use super::node::{NodeAffinity, PreferredTerm};
use super::{
    Asking, DeviceClaim, HostPort, Labels, Matcher, Owner, Pod, SCHEDULER_NAME, Selector, Spec,
    SpreadConstraint, Term, volume,
};
use crate::resources::{ContainerNeeds, ContainerReport, Mount, Needs, PodNeeds, PodReport, hash_amounts};

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodBody {
    metadata: ObjectMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    scheduler_name: String,
    scheduling_gates: Vec<Gate>,
    priority: i64,
    preemption_policy: String,
    containers: Vec<ContainerNeeds>,
    init_containers: Vec<ContainerNeeds>,
    ephemeral_containers: Vec<EphemeralContainer>,
    host_network: bool,
    host_users: Option<bool>,
    resources: Option<Needs>,
    overhead: Option<BTreeMap<String, Value>>,
    node_selector: Labels,
    affinity: Option<Affinity>,
    tolerations: Vec<Toleration>,
    topology_spread_constraints: Vec<SpreadSource>,
    volumes: Vec<volume::Source>,
    resource_claims: Vec<ClaimSource>,
}

/// `core/v1.EphemeralContainer`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EphemeralContainer {
    volume_mounts: Vec<Mount>,
}

/// `core/v1.PodResourceClaim`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSource {
    name: String,
    resource_claim_name: Option<String>,
    resource_claim_template_name: Option<String>,
}

/// `core/v1.PodResourceClaimStatus`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimMade {
    name: String,
    resource_claim_name: Option<String>,
}

impl ClaimSource {
    /// Source: `resourceclaim.Name`.
    fn read(self, made: &[ClaimMade]) -> DeviceClaim {
        if let Some(name) = self.resource_claim_name {
            return DeviceClaim::Named(name);
        }
        if self.resource_claim_template_name.is_none() {
            return DeviceClaim::Unknown(self.name);
        }
        let made = made.iter().find(|made| made.name == self.name);
        made.map_or(DeviceClaim::Awaited, |made| DeviceClaim::Made(made.resource_claim_name.clone()))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Gate {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Affinity {
    node_affinity: Option<NodeAffinityBody>,
    pod_affinity: Option<PodAffinity>,
    pod_anti_affinity: Option<PodAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeAffinityBody {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<NodeSelector>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    preferred: Vec<PreferredTerm>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Vec<TermSource>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    preferred: Vec<WeightedSource>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WeightedSource {
    weight: i64,
    pod_affinity_term: TermSource,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TermSource {
    label_selector: Option<LabelSelectorSpec>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelectorSpec>,
    topology_key: String,
    match_label_keys: Vec<String>,
    mismatch_label_keys: Vec<String>,
}

/// `core/v1.TopologySpreadConstraint`, as pods and the default constraints of a configuration have it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SpreadSource {
    pub(crate) max_skew: i64,
    pub(crate) topology_key: String,
    pub(crate) when_unsatisfiable: String,
    pub(crate) label_selector: Option<LabelSelectorSpec>,
    pub(crate) min_domains: Option<i64>,
    pub(crate) node_affinity_policy: Option<String>,
    pub(crate) node_taints_policy: Option<String>,
    pub(crate) match_label_keys: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    nominated_node_name: String,
    start_time: Option<Timestamp>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerReport>,
    init_container_statuses: Vec<ContainerReport>,
    resources: Option<Needs>,
    allocated_resources: BTreeMap<String, Value>,
    resource_claim_statuses: Vec<ClaimMade>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
}

/// What of a status counts for a pod that has its node.
#[derive(PartialEq, Eq)]
struct Counted {
    finished: bool,
    preempted: bool,
    started: Option<Timestamp>,
    reported: u64,
}

impl PodStatus {
    fn infeasible(&self) -> bool {
        self.conditions.iter().any(|held| held.r#type == "PodResizePending" && held.reason == "Infeasible")
    }

    fn had(&self) -> &BTreeMap<String, Value> {
        static NONE: BTreeMap<String, Value> = BTreeMap::new();
        self.resources.as_ref().map_or(&NONE, |had| &had.requests)
    }

    /// What the node says of the pod as a whole, if anything.
    fn whole(&self) -> Option<PodReport<'_>> {
        let said = self.resources.is_some() || !self.allocated_resources.is_empty();
        said.then(|| PodReport { had: self.had(), promised: &self.allocated_resources })
    }

    fn counted(&self) -> Counted {
        let preempted = |held: &Condition| {
            held.r#type == "DisruptionTarget"
                && held.status == "True"
                && held.reason == "PreemptionByScheduler"
        };
        let mut hasher = DefaultHasher::new();
        let reports = [&self.container_statuses, &self.init_container_statuses];
        (reports, self.infeasible(), self.resources.is_some()).hash(&mut hasher);
        hash_amounts(self.had(), &mut hasher);
        hash_amounts(&self.allocated_resources, &mut hasher);
        Counted {
            finished: matches!(self.phase.as_str(), "Succeeded" | "Failed"),
            preempted: self.conditions.iter().any(preempted),
            started: self.start_time,
            reported: hasher.finish(),
        }
    }
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

impl TermSource {
    /// A term of a pod in this namespace with these labels: without namespaces it means its own, and the values of
    /// `matchLabelKeys` are its own. (Upstream's API server writes the latter into the selector already.)
    fn read(self, namespace: &str, labels: &Labels) -> Arc<Term> {
        let mut selector = Selector::new(self.label_selector);
        for (keys, operator) in [(self.match_label_keys, "In"), (self.mismatch_label_keys, "NotIn")] {
            for (key, value) in keys.iter().filter_map(|key| Some((key, labels.get(key)?))) {
                selector = selector.and(key, operator, value);
            }
        }
        let mut namespaces = self.namespaces;
        if namespaces.is_empty() && self.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        namespaces.sort();
        let namespace_selector = self.namespace_selector.map(|spec| Selector::new(Some(spec)));
        let pods = Matcher { namespaces, namespace_selector, selector };
        Arc::new(Term { pods, topology_key: self.topology_key })
    }
}

impl SpreadSource {
    /// The constraint for a pod with these labels. Source: `filterTopologySpreadConstraints`.
    pub(crate) fn read(self, labels: &Labels) -> SpreadConstraint {
        let mut selector = Selector::new(self.label_selector);
        for (key, value) in self.match_label_keys.iter().filter_map(|key| Some((key, labels.get(key)?))) {
            selector = selector.and(key, "In", value);
        }
        let honors = |policy: Option<String>, default: bool| policy.map_or(default, |said| said == "Honor");
        SpreadConstraint {
            max_skew: self.max_skew,
            topology_key: self.topology_key,
            hard: self.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: self.min_domains.and_then(|domains| usize::try_from(domains).ok()).unwrap_or(1),
            honors_affinity: honors(self.node_affinity_policy, true),
            honors_taints: honors(self.node_taints_policy, false),
        }
    }
}

/// The name under which nodes report an image. Source: `normalizedImageName`.
fn normalized_image(name: &str) -> String {
    let tagged = name.rfind(':').is_some_and(|colon| name.rfind('/').is_none_or(|slash| slash < colon));
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}

fn host_ports(containers: &[ContainerNeeds], init_containers: &[ContainerNeeds]) -> Vec<HostPort> {
    let sidecars = init_containers.iter().filter(|container| container.is_sidecar());
    let ports = containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    ports
        .filter_map(|port| Some((u16::try_from(port.host_port).ok().filter(|port| *port > 0)?, port)))
        .map(|(number, port)| HostPort {
            address: or(port.host_ip.clone(), "0.0.0.0").into(),
            protocol: or(port.protocol.clone(), "TCP").into(),
            port: number,
        })
        .collect()
}

/// The containers that ask for resources which may be had as devices.
fn asking(containers: &[ContainerNeeds], init_containers: &[ContainerNeeds]) -> Vec<Asking> {
    let early = init_containers.iter().map(|container| (container, !container.is_sidecar()));
    let all = early.chain(containers.iter().map(|container| (container, false))).enumerate();
    let ask = all.map(|(place, (container, brief))| {
        let resources = container.asked_of_devices();
        Asking { place, name: container.name.clone(), brief, resources }
    });
    ask.filter(|asking| !asking.resources.is_empty()).collect()
}

impl PodSpec {
    /// What its node has to be able to do, by upstream's names. Source: `nodedeclaredfeatures.InferForPodScheduling`.
    fn features(&self) -> Vec<&'static str> {
        let containers = || self.containers.iter().chain(&self.init_containers);
        let ephemeral = self.ephemeral_containers.iter().flat_map(|container| &container.volume_mounts);
        let mut mounts = containers().flat_map(|container| &container.volume_mounts).chain(ephemeral);
        [
            ("RestartAllContainersOnContainerExits", containers().any(ContainerNeeds::restarts_all)),
            ("UserNamespacesHostNetworkSupport", self.host_network && self.host_users == Some(false)),
            ("VolumeBindMountOptions", mounts.any(Mount::has_options)),
        ]
        .into_iter()
        .filter_map(|(feature, needed)| needed.then_some(feature))
        .collect()
    }

    fn read(self, namespace: &str, meta: &ObjectMeta, status: &PodStatus) -> Spec {
        let reports: Vec<ContainerReport> =
            status.container_statuses.iter().chain(&status.init_container_statuses).cloned().collect();
        let needs = PodNeeds {
            containers: &self.containers,
            init_containers: &self.init_containers,
            pod: self.resources.as_ref(),
            overhead: self.overhead.as_ref(),
            reports: &reports,
            report: status.whole(),
            infeasible: status.infeasible(),
        };
        let (total, features) = (needs.total(), self.features());
        let affinity = self.affinity.unwrap_or_default();
        let terms = |terms: Vec<TermSource>| -> Vec<Arc<Term>> {
            terms.into_iter().map(|term| term.read(namespace, &meta.labels)).collect()
        };
        let weighted = |terms: Vec<WeightedSource>, sign: i64| {
            let read = |term: WeightedSource| {
                (term.weight * sign, term.pod_affinity_term.read(namespace, &meta.labels))
            };
            terms.into_iter().map(read).collect::<Vec<_>>()
        };
        let with = affinity.pod_affinity.unwrap_or_default();
        let without = affinity.pod_anti_affinity.unwrap_or_default();
        let images = self.init_containers.iter().chain(&self.containers).map(|container| &container.image);
        let mounted = self.volumes.iter().filter_map(|volume| Some(&volume.image.as_ref()?.reference));
        let node_affinity = affinity.node_affinity.unwrap_or_default();
        Spec {
            priority: self.priority,
            never_preempts: self.preemption_policy == "Never",
            owner: meta.controller().map(|owner| Owner {
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            }),
            requests: total.requests,
            extended: asking(&self.containers, &self.init_containers),
            compared: total.compared,
            ports: host_ports(&self.containers, &self.init_containers),
            images: images.chain(mounted).map(|image| normalized_image(image)).collect(),
            volumes: self.volumes.into_iter().filter_map(volume::Source::read).collect(),
            features,
            scheduler_name: or(self.scheduler_name, SCHEDULER_NAME),
            node_selector: self.node_selector,
            node_affinity: NodeAffinity {
                required: node_affinity.required,
                preferred: node_affinity.preferred,
            },
            tolerations: self.tolerations,
            affinity: terms(with.required),
            anti_affinity: terms(without.required),
            preferred: [weighted(with.preferred, 1), weighted(without.preferred, -1)].concat(),
            spread: self
                .topology_spread_constraints
                .into_iter()
                .map(|constraint| constraint.read(&meta.labels))
                .collect(),
        }
    }
}

impl Pod {
    /// Who a pod is that cannot be decoded.
    pub fn unreadable(object: &Object) -> Self {
        Self {
            key: object.key(),
            uid: object.meta().uid.as_str().into(),
            generation: object.meta().generation,
            ..Self::default()
        }
    }

    /// Whether nothing that counts has changed between two versions of a pod that has its node, of which this is the one
    /// before. Only the status is read: most versions of a pod are what its node says of its containers.
    pub fn is_still(&self, old: &Object, new: &Object) -> bool {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct StatusOnly {
            status: PodStatus,
        }
        let (before, after) = (old.meta(), new.meta());
        before.generation > 0
            && before.generation == after.generation
            && before.labels == after.labels
            && before.is_terminating() == after.is_terminating()
            && new.node_name().is_some_and(|node| *node == *self.node)
            && new.decode::<StatusOnly>().is_ok_and(|read| {
                let (finished, preempted) = (self.finished, self.preempted);
                read.status.counted()
                    == Counted { finished, preempted, started: self.started, reported: self.reported }
            })
    }

    /// Decodes a pod.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: PodBody =
            object.decode().map_err(|error| format!("cannot read pod {}: {error}", object.key()))?;
        let (meta, mut spec, status) = (body.metadata, body.spec, body.status);
        let counted = status.counted();
        let node = std::mem::take(&mut spec.node_name);
        let gates = std::mem::take(&mut spec.scheduling_gates);
        let claims = std::mem::take(&mut spec.resource_claims).into_iter();
        let devices = claims.map(|claim| claim.read(&status.resource_claim_statuses)).collect();
        Ok(Self {
            key: object.key(),
            generation: meta.generation,
            terminating: meta.is_terminating(),
            preempted: counted.preempted,
            finished: counted.finished,
            reported: counted.reported,
            gates: gates.into_iter().map(|gate| gate.name).collect(),
            devices,
            started: counted.started,
            spec: Arc::new(spec.read(&meta.namespace, &meta, &status)),
            nominated: status.nominated_node_name.into(),
            node: node.into(),
            uid: meta.uid.into(),
            labels: Arc::new(meta.labels),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: &Value) -> Pod {
        Pod::decode(&Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_is_still_while_its_node_tells_of_containers_alone() {
        let version = |change: &dyn Fn(&mut Value)| {
            let mut value = json!({ "metadata": { "name": "p", "generation": 2, "labels": { "app": "a" } },
                "spec": { "nodeName": "n", "containers": [{ "name": "c" }] },
                "status": { "phase": "Pending", "startTime": "2026-01-01T00:00:00Z" } });
            change(&mut value);
            Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap()
        };
        let old = version(&|_| ());
        let held = Pod::decode(&old).unwrap();
        let still = |change: &dyn Fn(&mut Value)| held.is_still(&old, &version(change));
        assert!(still(&|_| ()) && still(&|pod| pod["status"]["phase"] = "Running".into()));
        assert!(still(&|pod| pod["status"]["containerStatuses"] = json!([])));
        assert!(!still(&|pod| pod["status"]["phase"] = "Failed".into()));
        assert!(!still(&|pod| pod["metadata"]["generation"] = 3.into()));
        assert!(!still(&|pod| pod["metadata"]["labels"]["app"] = "b".into()));
        assert!(!still(&|pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()));
        assert!(!still(&|pod| pod["spec"]["nodeName"] = "m".into()));
        assert!(!still(&|pod| pod["status"]["startTime"] = "2026-01-01T00:00:01Z".into()));
        let resized = json!([{ "name": "c", "resources": { "requests": { "cpu": "2" } } }]);
        assert!(!still(&|pod| pod["status"]["containerStatuses"] = resized.clone()));
        let other = json!([{ "name": "c", "allocatedResources": { "cpu": "2" } }]);
        assert!(!still(&|pod| pod["status"]["containerStatuses"] = other.clone()));
    }

    #[test]
    fn images_have_the_names_that_nodes_report() {
        for (given, normalized) in [
            ("a", "a:latest"),
            ("a:1", "a:1"),
            ("host:5000/a", "host:5000/a:latest"),
            ("host:5000/a:2", "host:5000/a:2"),
        ] {
            assert_eq!(normalized_image(given), normalized);
        }
    }

    #[test]
    fn terms_mean_the_pods_own_namespace_and_labels() {
        let term = json!({ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": "a" } },
            "matchLabelKeys": ["hash", "absent"], "mismatchLabelKeys": ["tenant"] });
        let all = json!({ "topologyKey": "zone", "namespaceSelector": {}, "labelSelector": {} });
        let read = pod(&json!({
            "metadata": { "name": "p", "namespace": "ns", "labels": { "hash": "1", "tenant": "t" } },
            "spec": { "affinity": {
                "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] },
                "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution":
                    [{ "weight": 7, "podAffinityTerm": all }] } } },
        }));
        let labels = |app: &str, hash: &str, tenant: &str| {
            [("app", app), ("hash", hash), ("tenant", tenant)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        };
        let own = &read.spec.affinity[0].pods;
        assert!(own.matches("ns", None, &labels("a", "1", "u")));
        assert!(!own.matches("other", None, &labels("a", "1", "u")));
        assert!(!own.matches("ns", None, &labels("a", "2", "u")));
        assert!(!own.matches("ns", None, &labels("a", "1", "t")));
        let (weight, everywhere) = &read.spec.preferred[0];
        assert!(*weight == -7 && everywhere.pods.matches("other", None, &labels("b", "2", "t")));
    }

    #[test]
    fn constraints_have_upstreams_defaults() {
        let read =
            pod(&json!({ "metadata": { "labels": { "v": "1" } }, "spec": { "topologySpreadConstraints": [
            { "maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
              "labelSelector": {}, "matchLabelKeys": ["v"] },
            { "maxSkew": 1, "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 3,
              "nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor" },
        ] } }));
        let [zone, host] = &read.spec.spread[..] else { panic!("two constraints") };
        assert!(zone.hard && zone.honors_affinity && !zone.honors_taints && zone.min_domains == 1);
        assert!(zone.selector.matches(&Labels::from([("v".into(), "1".into())])));
        assert!(!zone.selector.matches(&Labels::new()));
        assert!(!host.hard && !host.honors_affinity && host.honors_taints && host.min_domains == 3);
    }
}
