//! The real filters and scores against the slow ones, on random clusters that change step by step; and preemption.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object};
use serde_json::{Value, json};

use super::cycle::Filters;
use super::*;
use crate::config::Config;
use crate::devices::types::{Class, Slice};
use crate::reference::{DEVICES, Settings, Strategy, World};
use crate::types::{Labels, Node, Spec, SpreadConstraint};

pub(crate) fn object(value: &Value) -> Object {
    Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()
}

pub(crate) fn pod(value: &Value) -> Arc<Pod> {
    Arc::new(Pod::decode(&object(value)).unwrap())
}

fn default_profile() -> Profile {
    Config::default().profiles.pop().unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()].clone()
    }

    fn rarely(&mut self) -> bool {
        self.below(4) == 0
    }
}

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn random_node(random: &mut Random, name: &str) -> Arc<Node> {
    let mut labels = json!({ "disk": random.of(&["ssd", "hdd"]) });
    if random.below(8) > 0 {
        labels[HOST] = name.into();
    }
    if random.below(5) > 0 {
        labels[ZONE] = random.of(&["z1", "z2", "z3"]).into();
    }
    let effect = random.of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    let taints =
        if random.rarely() { json!([{ "key": "k", "value": "v", "effect": effect }]) } else { json!([]) };
    let images = json!([{ "names": [format!("{}:latest", random.of(&["a", "b"]))],
        "sizeBytes": random.below(4 << 30) }]);
    let allocatable = json!({ "cpu": random.of(&["2", "4", "8"]), "memory": random.of(&["4Gi", "8Gi"]),
        "pods": random.of(&["4", "20"]), "example.com/gpu": random.of(&["0", "2"]),
        "ephemeral-storage": random.of(&["4Gi", "8Gi"]) });
    let mut allocatable = allocatable;
    if random.rarely() {
        allocatable[DEVICES] = random.of(&["0", "1"]).into();
    }
    let value = json!({ "metadata": { "name": name, "labels": labels },
        "spec": { "taints": taints, "unschedulable": random.below(12) == 0 },
        "status": { "allocatable": allocatable, "images": images } });
    Arc::new(Node::decode(&object(&value)).unwrap())
}

fn random_term(random: &mut Random) -> Value {
    let mut term = json!({ "topologyKey": random.of(&[HOST, ZONE]),
        "labelSelector": { "matchLabels": { "app": random.of(&["a", "b", "c"]) } } });
    match random.below(4) {
        0 => term["namespaces"] = json!(["x", "y"]),
        1 => {
            term["namespaceSelector"] = random.of(&[
                json!({}),
                json!({ "matchLabels": { "team": "red" } }),
                json!({ "matchLabels": { "team": "blue" } }),
            ]);
        }
        _ => {}
    }
    term
}

fn random_spec(random: &mut Random) -> Value {
    let requests = json!({ "cpu": random.of(&["0", "100m", "500m"]), "memory": random.of(&["64Mi", "1Gi"]) });
    let mut container =
        json!({ "name": "c", "image": random.of(&["a", "b", "c"]), "resources": { "requests": requests } });
    if random.rarely() {
        container["resources"]["requests"]["example.com/gpu"] = random.of(&["0", "1"]).into();
    }
    if random.rarely() {
        container["resources"]["requests"][DEVICES] = random.of(&["0", "1", "2"]).into();
    }
    if random.rarely() {
        container["resources"]["requests"]["ephemeral-storage"] = random.of(&["1Gi", "3Gi"]).into();
    }
    if random.rarely() {
        container["ports"] = json!([{ "hostPort": random.of(&[80, 81]),
            "hostIP": random.of(&["", "10.0.0.1", "10.0.0.2"]), "protocol": random.of(&["", "TCP", "UDP"]) }]);
    }
    let mut spec = json!({ "containers": [container] });
    if random.rarely() {
        spec["tolerations"] = random.of(&[
            json!([{ "key": "k", "operator": "Exists" }]),
            json!([{ "operator": "Exists", "effect": "NoSchedule" }]),
            json!([{ "key": "k", "value": "v", "effect": "PreferNoSchedule" }, { "key": "k", "value": "w" }]),
        ]);
    }
    if random.rarely() {
        spec["nodeSelector"] = json!({ "disk": "ssd" });
    }
    let mut affinity = json!({});
    if random.rarely() {
        let zones = json!([{ "key": ZONE, "operator": random.of(&["In", "NotIn"]), "values": ["z1"] }]);
        affinity["nodeAffinity"] = json!({ "preferredDuringSchedulingIgnoredDuringExecution":
            [{ "weight": 5, "preference": { "matchExpressions": zones } }] });
    }
    if random.below(6) == 0 {
        let named = json!({ "key": "metadata.name", "operator": random.of(&["In", "NotIn"]),
            "values": [random.of(&["n1", "n2"])] });
        let labelled = json!({ "key": "disk", "operator": random.of(&["Exists", "DoesNotExist"]) });
        let terms = random.of(&[
            json!([{ "matchFields": [named] }]),
            json!([{ "matchFields": [named], "matchExpressions": [labelled] }]),
            json!([{ "matchExpressions": [labelled] }, { "matchFields": [named] }]),
            json!([{}]),
        ]);
        affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": terms });
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if random.below(6) == 0 {
            let mut terms = vec![random_term(random)];
            terms.extend(random.rarely().then(|| random_term(random)));
            affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"] = terms.into();
        }
        if random.rarely() {
            affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"] =
                json!([{ "weight": 1 + random.below(9), "podAffinityTerm": random_term(random) }]);
        }
    }
    spec["affinity"] = affinity;
    if random.rarely() {
        let constraint = |random: &mut Random| {
            json!({ "maxSkew": 1 + random.below(2),
            "topologyKey": random.of(&[HOST, ZONE]),
            "whenUnsatisfiable": random.of(&["DoNotSchedule", "ScheduleAnyway"]),
            "nodeAffinityPolicy": random.of(&["Honor", "Ignore"]), "nodeTaintsPolicy": random.of(&["Honor", "Ignore"]),
            "labelSelector": { "matchLabels": { "app": random.of(&["a", "b"]) } } })
        };
        let mut first = constraint(random);
        if random.rarely() {
            first["matchLabelKeys"] = json!(["tier", "absent"]);
        }
        if first["whenUnsatisfiable"] == "DoNotSchedule" && random.rarely() {
            first["minDomains"] = 3.into();
        }
        spec["topologySpreadConstraints"] = json!([first, constraint(random)]);
    }
    spec
}

fn random_pod(random: &mut Random, uid: &str) -> Arc<Pod> {
    let labels = json!({ "app": random.of(&["a", "b", "c"]), "tier": random.of(&["1", "2"]) });
    let mut value = json!({
        "metadata": { "name": uid, "namespace": random.of(&["x", "y"]), "uid": uid, "labels": labels },
        "spec": random_spec(random),
    });
    if random.below(8) == 0 {
        value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    pod(&value)
}

/// A cluster and the same as plain lists.
#[derive(Default)]
struct Both {
    cluster: Cluster,
    nodes: BTreeMap<String, Arc<Node>>,
    pods: BTreeMap<String, Arc<Pod>>,
    namespaces: BTreeMap<String, Labels>,
    services: Vec<(String, Labels)>,
    /// Pods that wait for room on the node that they carry.
    nominated: Vec<Arc<Pod>>,
    settings: Settings,
    /// How many devices nodes have of the class that stands for a resource, if one does.
    devices: Option<BTreeMap<String, i128>>,
}

/// A class stands for a resource, and these nodes have so many devices of it.
fn offer_devices(cluster: &mut Cluster, devices: &BTreeMap<String, i128>) {
    let class = json!({ "metadata": { "name": "npu" }, "spec": { "extendedResourceName": DEVICES } });
    cluster.devices.put_class("npu", Some(Arc::new(Class::decode(&object(&class)).unwrap())));
    for (node, count) in devices {
        let devices: Vec<Value> = (0..*count).map(|number| json!({ "name": format!("d{number}") })).collect();
        let slice = json!({ "metadata": { "name": node }, "spec": { "driver": "npu.example.com", "nodeName": node,
            "devices": devices, "pool": { "name": node, "generation": 1, "resourceSliceCount": 1 } } });
        cluster.devices.put_slice(node, Some(Arc::new(Slice::decode(&object(&slice)).unwrap())));
    }
}

impl Both {
    fn change(&mut self, random: &mut Random, step: u64) {
        match random.below(12) {
            0..=5 => {
                let node = format!("n{}", random.below(9));
                let pod = (*random_pod(random, &format!("p{step}"))).clone();
                let pod = Arc::new(Pod { node: node.into(), ..pod });
                self.cluster.put_pod(pod.clone());
                self.pods.insert(pod.uid.to_string(), pod);
            }
            6..=8 if self.pods.len() > 5 => {
                let at = usize::try_from(random.below(self.pods.len() as u64)).unwrap();
                let uid = self.pods.keys().nth(at).unwrap().clone();
                self.pods.remove(&uid);
                assert!(self.cluster.remove_pod(&uid).is_some());
            }
            9 => {
                let name = format!("n{}", random.below(9));
                self.nodes.remove(&name);
                self.cluster.remove_node(&name);
            }
            10 => {
                let (name, team) = (random.of(&["x", "y"]), random.of(&["red", "blue"]));
                let labels = Labels::from([("team".to_owned(), team.to_owned())]);
                self.namespaces.insert(name.to_owned(), labels.clone());
                self.cluster.groups.put_namespace(name, Some(labels));
            }
            _ => {
                let name = format!("n{}", random.below(9));
                let node = random_node(random, &name);
                self.nodes.insert(name, node.clone());
                self.cluster.put_node(node);
            }
        }
    }

    fn world(&self) -> World<'_> {
        let there = |pod: &&Arc<Pod>| self.nodes.contains_key(&*pod.node);
        World {
            settings: &self.settings,
            nodes: self.nodes.values().map(|node| &**node).collect(),
            pods: self.pods.values().filter(there).map(|pod| &**pod).collect(),
            namespaces: &self.namespaces,
            services: &self.services,
            devices: self.devices.as_ref(),
        }
    }

    /// Others wait for room from now on.
    fn nominate(&mut self, random: &mut Random, step: u64) {
        for pod in self.nominated.drain(..) {
            self.cluster.nominated.remove(&pod.uid);
        }
        for number in 0..random.below(3) {
            let (node, pod) =
                (format!("n{}", random.below(9)), random_pod(random, &format!("w{step}-{number}")));
            let spec = Arc::new(Spec { priority: random.of(&[0, -5]), ..(*pod.spec).clone() });
            let waits = Arc::new(Pod { spec, ..(*pod).clone() });
            self.cluster.nominated.put(waits.clone(), &node);
            self.nominated.push(Arc::new(Pod { node: node.into(), ..(*waits).clone() }));
        }
    }

    /// The same cluster, of which nothing was asked yet.
    fn anew(&self) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, labels) in &self.namespaces {
            cluster.groups.put_namespace(name, Some(labels.clone()));
        }
        for (number, (namespace, selector)) in self.services.iter().enumerate() {
            cluster.selected.put_service(namespace, &format!("svc{number}"), Some(selector.clone()));
        }
        self.pods.values().for_each(|pod| drop(cluster.put_pod(pod.clone())));
        self.nodes.values().for_each(|node| cluster.put_node(node.clone()));
        for pod in &self.nominated {
            let waits = Arc::new(Pod { node: "".into(), ..(**pod).clone() });
            cluster.nominated.put(waits, &pod.node);
        }
        self.devices.iter().for_each(|devices| offer_devices(&mut cluster, devices));
        cluster
    }

    /// What the slow scheduler says of a pod and a node, with those in mind that wait for room there.
    fn expected(&self, pod: &Pod, node: &Node) -> Vec<String> {
        let mut world = self.world();
        let plain = world.refusal(pod, node);
        let before = |other: &&Arc<Pod>| *other.node == *node.name && other.priority() >= pod.priority();
        world.pods.extend(self.nominated.iter().filter(before).map(|other| &**other));
        let beside = world.refusal(pod, node);
        let mut said = if beside.is_empty() { plain } else { beside };
        said.sort();
        said
    }

    /// Compares what both say of a pod; gives how many nodes would take it.
    fn compare(&self, profile: &Profile, cluster: &Cluster, pod: &Arc<Pod>, step: u64) -> usize {
        let world = self.world();
        let mut filters = match Filters::new(profile, pod, cluster, None) {
            Ok(filters) => filters,
            Err((plugin, refusal)) => {
                let none = world.nodes.iter().all(|node| !self.expected(pod, node).is_empty());
                assert!(none, "{plugin}: {refusal:?}");
                return 0;
            }
        };
        let mut fits = Vec::new();
        for node in &world.nodes {
            let state = cluster.named(&node.name).unwrap();
            let mut said: Vec<String> = filters
                .refusal_beside_nominated(state)
                .map(|(_, refusal)| refusal.reasons.iter().map(ToString::to_string).collect())
                .unwrap_or_default();
            said.sort();
            assert_eq!(said, self.expected(pod, node), "step {step}, node {node:?}, pod {pod:?}");
            if said.is_empty() {
                fits.push(*node);
            }
        }
        let states: Vec<_> = fits.iter().map(|node| cluster.named(&node.name).unwrap()).collect();
        let mut said = profile.totals(pod, cluster, &states, None);
        let mut expected = world.scores(pod, &fits);
        // Scores that are equal for all nodes may be left out.
        for scores in [&mut said, &mut expected] {
            let least = scores.iter().min().copied().unwrap_or(0);
            scores.iter_mut().for_each(|score| *score -= least);
        }
        assert_eq!(said, expected, "step {step}, nodes {fits:?}, pod {pod:?}");
        fits.len()
    }

    /// The pod goes to a node that the slow scheduler finds best, or nowhere if that finds none.
    fn decide(&mut self, profile: &Profile, pod: &Arc<Pod>, turn: &mut Turn) {
        let decision = profile.decide(pod, &mut self.cluster, turn);
        let world = self.world();
        let fits: Vec<&Node> =
            world.nodes.iter().copied().filter(|node| self.expected(pod, node).is_empty()).collect();
        let scores = world.scores(pod, &fits);
        match decision {
            Decision::Node(name) => {
                let at = fits.iter().position(|node| node.name == name).unwrap();
                assert_eq!(Some(scores[at]), scores.iter().max().copied(), "{name} of {fits:?}, pod {pod:?}");
            }
            Decision::Failed(failure) => panic!("{failure}"),
            Decision::Refused(_) | Decision::Preempt(..) => assert!(fits.is_empty(), "pod {pod:?}"),
        }
    }
}

/// Profiles, and the same as plain settings.
fn profiles() -> Vec<(Profile, Settings)> {
    let profile = |text: &str| {
        let head =
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- ";
        Config::parse(&format!("{head}{text}")).unwrap().profiles.pop().unwrap()
    };
    let packing = "pluginConfig:\n  - {name: NodeResourcesFit, args: {ignoredResources: [example.com/gpu],\n    \
        scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 3}, {name: ephemeral-storage},\n    \
        {name: example.com/gpu, weight: 5}]}}}\n  \
        - {name: NodeResourcesBalancedAllocation, args: {resources: [{name: cpu}, {name: memory},\n    \
        {name: ephemeral-storage}, {name: example.com/gpu}]}}\n  \
        - {name: InterPodAffinity, args: {hardPodAffinityWeight: 40}}\n";
    let packed = Settings {
        strategy: Strategy::Most,
        compared: vec![("cpu", 3), ("ephemeral-storage", 1), ("example.com/gpu", 5)],
        balanced: vec!["cpu", "memory", "ephemeral-storage", "example.com/gpu"],
        ignored: vec!["example.com/gpu"],
        hard_weight: 40,
        ..Settings::default()
    };
    let ratio = "plugins: {score: {enabled: [{name: NodeAffinity, weight: 7}]}}\n  pluginConfig:\n  \
        - {name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio,\n    \
        requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 40, score: 10},\n    \
        {utilization: 100, score: 3}]}}}}\n  \
        - {name: InterPodAffinity, args: {ignorePreferredTermsOfExistingPods: true}}\n  \
        - {name: NodeAffinity, args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution:\n    \
        {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: Exists}]}]},\n    \
        preferredDuringSchedulingIgnoredDuringExecution: [{weight: 3,\n    \
        preference: {matchExpressions: [{key: disk, operator: In, values: [ssd]}]}}]}}}\n  \
        - {name: PodTopologySpread, args: {defaultingType: List, defaultConstraints: [\n    \
        {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule},\n    \
        {maxSkew: 2, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}]}}\n";
    let constraint = |topology_key: &str, max_skew, hard| SpreadConstraint {
        max_skew,
        topology_key: topology_key.to_owned(),
        hard,
        min_domains: 1,
        honors_affinity: true,
        ..SpreadConstraint::default()
    };
    let disk = |with: &str| json!({ "matchExpressions": [serde_json::from_str::<Value>(with).unwrap()] });
    let added = json!({ "requiredDuringSchedulingIgnoredDuringExecution":
            { "nodeSelectorTerms": [disk(r#"{ "key": "disk", "operator": "Exists" }"#)] },
        "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 3,
            "preference": disk(r#"{ "key": "disk", "operator": "In", "values": ["ssd"] }"#) }] });
    let by_ratio = Settings {
        weights: [3, 7, 1, 2, 2, 1, 1],
        strategy: Strategy::Ratio(vec![(0, 0), (40, 100), (100, 30)]),
        ignores_others: true,
        spreading: Some(vec![constraint(ZONE, 1, true), constraint(HOST, 2, false)]),
        added: serde_json::from_value(added).unwrap(),
        ..Settings::default()
    };
    vec![(default_profile(), Settings::default()), (profile(packing), packed), (profile(ratio), by_ratio)]
}

#[test]
fn decisions_are_those_of_the_slow_scheduler() {
    for (profile, settings) in profiles() {
        let (mut fitting, mut several, mut by_devices) = (0, 0, 0);
        let mut both = Both { settings, ..Both::default() };
        for seed in 0..4 {
            let (mut random, mut turn) = (Random(seed), Turn::default());
            both = Both { settings: both.settings, ..Both::default() };
            both.services.push(("x".into(), Labels::from([("app".into(), "a".into())])));
            both.cluster.selected.put_service("x", "svc", Some(both.services[0].1.clone()));
            if seed % 2 == 1 {
                let devices = (0..9).map(|number| (format!("n{number}"), i128::from(number % 3)));
                let devices = both.devices.insert(devices.collect());
                offer_devices(&mut both.cluster, devices);
            }
            for step in 0..120 {
                both.change(&mut random, step);
                both.nominate(&mut random, step);
                if both.nodes.is_empty() {
                    continue;
                }
                let pod = random_pod(&mut random, "new");
                both.decide(&profile, &pod, &mut turn);
                let fits = both.compare(&profile, &both.cluster, &pod, step);
                if step % 5 == 0 {
                    // What was followed step by step is what one finds by looking, and so without having been asked.
                    assert_eq!(both.compare(&profile, &both.anew(), &pod, step), fits);
                }
                fitting += usize::from(fits > 0);
                several += usize::from(fits > 1);
                let asks = both.devices.is_some() && pod.spec.requests.get(DEVICES) > 0;
                by_devices += usize::from(fits > 0 && asks);
            }
        }
        assert!(fitting > 120 && several > 60, "the test must find places: {fitting}, {several}");
        assert!(by_devices > 8, "the test must find devices: {by_devices}");
    }
}

#[test]
fn constraints_hold_however_many_labels_pods_speak_of() {
    let mut cluster = Cluster::default();
    cluster.put_node(node("a", "64"));
    cluster.put_node(node("b", "0"));
    cluster.put_pod(placed("like", "a", 0, "1m", "web"));
    for number in 0..600 {
        let key = format!("example.com/rack-{number}");
        let term = json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": "none" } } });
        let uid = format!("speaks{number}");
        let value = json!({ "metadata": { "name": uid, "namespace": "ns", "uid": uid }, "spec": {
            "nodeName": "b", "affinity": { "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term] } } } });
        cluster.put_pod(pod(&value));
    }
    let like = json!({ "matchLabels": { "app": "web" } });
    let constraint = json!({ "maxSkew": 1, "topologyKey": HOST, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": like });
    let soft = json!({ "maxSkew": 1, "topologyKey": "soft", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": like });
    let anti = json!([{ "topologyKey": HOST, "labelSelector": like }]);
    for (spec, says) in [
        (json!({ "topologySpreadConstraints": [constraint, soft] }), "pod topology spread constraints"),
        (
            json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": anti } } }),
            "pod anti-affinity rules",
        ),
    ] {
        let mut spec = spec;
        spec["containers"] = json!([{ "resources": { "requests": { "cpu": "1m" } } }]);
        let wants = pod(&json!({ "metadata": { "name": "new", "namespace": "ns", "uid": "new",
            "labels": { "app": "web" } }, "spec": spec }));
        for _ in 0..3 {
            let (_, _, message) = victims(&mut cluster, &wants);
            assert!(message.contains(says), "{message}");
        }
    }
    // What is gone is forgotten.
    for number in 0..600 {
        assert!(cluster.remove_pod(&format!("speaks{number}")).is_some());
    }
    cluster.begin();
    assert!(cluster.known_labels() < 300);
}

fn node(name: &str, cpu: &str) -> Arc<Node> {
    let value = json!({ "metadata": { "name": name, "labels": { HOST: name } },
        "status": { "allocatable": { "cpu": cpu, "memory": "64Gi", "pods": "50" } } });
    Arc::new(Node::decode(&object(&value)).unwrap())
}

fn placed(name: &str, node: &str, priority: i64, cpu: &str, app: &str) -> Arc<Pod> {
    let started = format!("2026-01-01T00:00:{:02}Z", name.len());
    pod(&json!({ "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": { "app": app } },
        "spec": { "nodeName": node, "priority": priority,
            "containers": [{ "resources": { "requests": { "cpu": cpu } } }] },
        "status": { "startTime": started } }))
}

fn budget(name: &str, app: &str, allowed: i64) -> (Key, Object) {
    let value = json!({ "metadata": { "name": name, "namespace": "ns" },
        "spec": { "selector": { "matchLabels": { "app": app } } }, "status": { "disruptionsAllowed": allowed } });
    (Key::new("ns", name), object(&value))
}

fn victims(cluster: &mut Cluster, pod: &Arc<Pod>) -> (String, Vec<String>, String) {
    match default_profile().decide(pod, cluster, &mut Turn::default()) {
        Decision::Preempt(refused, preemption) => {
            assert_eq!(refused.nominated.as_deref(), Some(&*preemption.node));
            let names = preemption.victims.iter().map(|victim| victim.key.name.clone()).collect();
            (preemption.node, names, refused.message)
        }
        Decision::Refused(refused) => (String::new(), Vec::new(), refused.message),
        Decision::Node(node) | Decision::Failed(node) => panic!("{node}"),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_least_important_go_and_no_more_than_necessary() {
    let mut cluster = Cluster::default();
    for name in ["a", "b"] {
        cluster.put_node(node(name, "4"));
    }
    for (name, node, priority, cpu) in [
        ("low", "a", 1, "1"),
        ("mid", "a", 5, "1"),
        ("high", "a", 9, "2"),
        ("mid2", "b", 5, "2"),
        ("high2", "b", 9, "2"),
    ] {
        cluster.put_pod(placed(name, node, priority, cpu, "x"));
    }
    let wants = placed("new", "", 9, "1", "x");
    let (node, gone, message) = victims(&mut cluster, &wants);
    assert_eq!((node.as_str(), gone), ("a", names(&["low"])));
    assert_eq!(message, "0/2 nodes are available: 2 Insufficient cpu.");
    // Two have to go on one node; on the other, one of the same highest priority.
    let (node, gone, _) = victims(&mut cluster, &placed("new", "", 9, "2", "x"));
    assert_eq!((node.as_str(), gone), ("b", names(&["mid2"])));
    // No node is large enough, whoever goes.
    let (node, _, message) = victims(&mut cluster, &placed("new", "", 100, "8", "x"));
    assert_eq!(node, "");
    assert_eq!(
        message,
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 Preemption is not \
         helpful for scheduling."
    );
}

#[test]
fn who_a_budget_protects_is_spared() {
    let mut cluster = Cluster::default();
    for name in ["a", "b"] {
        cluster.put_node(node(name, "2"));
        cluster.put_pod(placed(&format!("{name}1"), name, 1, "1", name));
        cluster.put_pod(placed(&format!("{name}2"), name, 2, "1", name));
    }
    let (key, protects) = budget("pdb", "a", 0);
    cluster.budgets.put(&key, Some(&protects)).unwrap();
    let wants = placed("new", "", 9, "1", "x");
    let (node, gone, _) = victims(&mut cluster, &wants);
    assert_eq!((node.as_str(), gone), ("b", names(&["b1"])));
    // If both are protected, the less important go all the same.
    let (key, protects) = budget("pdb2", "b", 0);
    cluster.budgets.put(&key, Some(&protects)).unwrap();
    let (_, gone, _) = victims(&mut cluster, &wants);
    assert_eq!(gone.len(), 1);
    cluster.budgets.put(&key, None).unwrap();
    assert_eq!(victims(&mut cluster, &wants).0, "b");
}

#[test]
fn anti_affinity_ends_when_the_other_goes() {
    let mut cluster = Cluster::default();
    cluster.put_node(node("a", "4"));
    cluster.put_pod(placed("low", "a", 1, "1", "db"));
    let wants = pod(&json!({ "metadata": { "name": "new", "namespace": "ns", "uid": "new" }, "spec": {
        "priority": 5, "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
            [{ "topologyKey": HOST, "labelSelector": { "matchLabels": { "app": "db" } } }] } } } }));
    let (node, gone, message) = victims(&mut cluster, &wants);
    assert_eq!((node.as_str(), gone), ("a", names(&["low"])));
    assert_eq!(message, "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.");
}

#[test]
fn room_that_is_made_is_left_to_whom_it_is_made_for() {
    let mut cluster = Cluster::default();
    cluster.put_node(node("a", "2"));
    cluster.put_pod(placed("leaving", "a", 1, "1", "x"));
    let waits = placed("waits", "", 9, "1", "x");
    cluster.nominated.put(waits.clone(), "a");
    let decide =
        |pod: &Arc<Pod>, cluster: &mut Cluster| default_profile().decide(pod, cluster, &mut Turn::default());
    // One cpu is free, and kept for the important pod.
    let (_, _, message) = victims(&mut cluster, &placed("other", "", 1, "1", "x"));
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu. preemption: "), "{message}");
    assert_eq!(decide(&placed("urgent", "", 10, "1", "x"), &mut cluster), Decision::Node("a".into()));
    assert_eq!(decide(&waits, &mut cluster), Decision::Node("a".into()));
    // While who was told to go is going, nobody else is told to.
    let value = json!({ "metadata": { "name": "leaving", "uid": "leaving", "namespace": "ns",
            "deletionTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "nodeName": "a", "priority": 1, "containers": [{ "resources": { "requests": { "cpu": "2" } } }] },
        "status": { "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler" }] } });
    cluster.put_pod(pod(&value));
    let (_, _, message) = victims(&mut cluster, &waits);
    assert_eq!(
        message,
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the \
         nominated node."
    );
}
