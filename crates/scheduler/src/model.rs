//! The scheduler's state against a small API server that it sees late: random sequences of pods, nodes, bindings that
//! fail, evictions and restarts, with a virtual clock. No node is ever overcommitted, nobody who fits waits for ever, and
//! where nothing happens nothing is tried.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, Request, Response, Status};
use async_trait::async_trait;
use base::clock::{SharedClock, VirtualClock};
use client::{Client, Transport};
use jiff::Timestamp;
use reconcile::{Change, Informers};
use serde_json::json;

use crate::bind::{Fate, told_to_go, undo};
use crate::framework::Preemption;
use crate::types::Pod;
use crate::{Next, Scheduler, Shared};

/// Nobody answers: what is written is the model's own.
struct Nobody;

#[async_trait]
impl Transport for Nobody {
    async fn send(&self, _request: Request) -> Result<Response, Status> {
        Err(Status::internal("nobody answers"))
    }
}

#[derive(Clone, PartialEq)]
struct ModelPod {
    cpu: u64,
    priority: u64,
    gated: bool,
    node: Option<String>,
}

/// The API server: what there is, and what its watchers have not been told yet.
#[derive(Default)]
struct Server {
    pods: BTreeMap<String, ModelPod>,
    nodes: BTreeMap<String, u64>,
    untold: VecDeque<(bool, Change)>,
    made: u64,
}

impl Server {
    fn pod_object(&self, name: &str) -> Option<Arc<Object>> {
        let pod = self.pods.get(name)?;
        let mut value = json!({
            "metadata": { "name": name, "namespace": "ns", "uid": name, "generation": 1 },
            "spec": { "priority": pod.priority,
                "containers": [{ "name": "c", "resources": { "requests": { "cpu": pod.cpu.to_string() } } }] },
        });
        if let Some(node) = &pod.node {
            value["spec"]["nodeName"] = node.as_str().into();
        }
        if pod.gated {
            value["spec"]["schedulingGates"] = json!([{ "name": "g" }]);
        }
        Some(Arc::new(Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap()))
    }

    fn node_object(&self, name: &str) -> Option<Arc<Object>> {
        let value = json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": { "allocatable": { "cpu": self.nodes.get(name)?.to_string(), "memory": "1Gi", "pods": "50" } } });
        Some(Arc::new(Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap()))
    }

    fn change_pod(&mut self, name: &str, new: Option<ModelPod>) {
        let old = self.pod_object(name);
        match new {
            Some(pod) => drop(self.pods.insert(name.to_owned(), pod)),
            None => drop(self.pods.remove(name)),
        }
        let new = self.pod_object(name);
        self.untold.push_back((true, Change { key: Key::new("ns", name), old, new }));
    }

    fn change_node(&mut self, name: &str, cpu: u64) {
        let old = self.node_object(name);
        self.nodes.insert(name.to_owned(), cpu);
        let new = self.node_object(name);
        self.untold.push_back((false, Change { key: Key::new("", name), old, new }));
    }

    fn used(&self, node: &str, above: u64) -> u64 {
        let on = self.pods.values().filter(|pod| pod.node.as_deref() == Some(node));
        on.filter(|pod| pod.priority >= above).map(|pod| pod.cpu).sum()
    }

    /// Whether a pod would fit somewhere if all less important ones went.
    fn fits(&self, pod: &ModelPod) -> bool {
        self.nodes.iter().any(|(name, cpu)| self.used(name, pod.priority) + pod.cpu <= *cpu)
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

struct Model {
    server: Server,
    scheduler: Scheduler,
    shared: Shared,
    clock: VirtualClock,
    binding: Vec<Arc<Pod>>,
    evicting: Vec<(Arc<Pod>, Preemption)>,
    decisions: u64,
    preempted: u64,
}

impl Model {
    fn new() -> Self {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let shared_clock: SharedClock = Arc::new(clock.clone());
        let client = Client::new(Arc::new(Nobody), "model");
        let informers = Informers::new(client.clone(), shared_clock.clone());
        let scheduler = Scheduler::new(&client, &informers, &shared_clock);
        Self {
            server: Server::default(),
            shared: Shared::new(&scheduler),
            scheduler,
            clock,
            binding: Vec::new(),
            evicting: Vec::new(),
            decisions: 0,
            preempted: 0,
        }
    }

    fn step(&mut self, random: &mut Random) {
        match random.below(20) {
            0..=4 => {
                self.server.made += 1;
                let name = format!("p{}", self.server.made);
                let (cpu, priority) = (1 + random.below(3), 10 * random.below(2));
                let pod = ModelPod { cpu, priority, gated: random.below(6) == 0, node: None };
                self.server.change_pod(&name, Some(pod));
            }
            5..=6 if !self.server.pods.is_empty() => {
                let at = random.index(self.server.pods.len());
                let name = self.server.pods.keys().nth(at).unwrap().clone();
                self.server.change_pod(&name, None);
            }
            7 => {
                let name = format!("n{}", random.below(4));
                // Nodes only grow, so that what fitted once fits still.
                let cpu = self.server.nodes.get(&name).map_or(2, |cpu| (cpu + 1).min(6));
                self.server.change_node(&name, cpu);
            }
            8 => {
                let gated = self.server.pods.iter().find(|(_, pod)| pod.gated);
                if let Some((name, pod)) = gated.map(|(name, pod)| (name.clone(), pod.clone())) {
                    self.server.change_pod(&name, Some(ModelPod { gated: false, ..pod }));
                }
            }
            9..=12 => self.tell(1 + random.below(3)),
            13..=14 if !self.binding.is_empty() => {
                let pod = self.binding.swap_remove(random.index(self.binding.len()));
                self.bind(&pod, random.below(6) == 0);
            }
            15 if !self.evicting.is_empty() => {
                let (pod, preemption) = self.evicting.swap_remove(random.index(self.evicting.len()));
                self.evict(&pod, &preemption, random.below(6) == 0);
            }
            16 => self.clock.advance(Duration::from_millis(random.below(3000))),
            17 if random.below(15) == 0 => self.restart(),
            _ => drop(self.decide()),
        }
    }

    /// Tells the scheduler the next changes.
    fn tell(&mut self, count: u64) {
        for _ in 0..count {
            let Some((is_pod, change)) = self.server.untold.pop_front() else { return };
            match is_pod {
                true => self.shared.pod_changed(&change),
                false => self.shared.node_changed(&change),
            }
        }
    }

    /// One decision; whether there was one to make.
    fn decide(&mut self) -> bool {
        match self.shared.next() {
            Next::Wait(_) => return false,
            Next::Bind(pod, _) => {
                assert!(self.binding.iter().all(|held| held.uid != pod.uid), "bound twice at once");
                self.binding.push(pod);
            }
            Next::Prepare(pod, ..) | Next::Ask(pod) => {
                panic!("{} has neither volumes nor extenders", pod.key)
            }
            Next::Preempt(pod, _, preemption) => self.evicting.push((pod, preemption)),
            Next::Refuse(_, told) => assert!(
                told.message.contains("nodes are available") || told.message.contains("no nodes"),
                "{}",
                told.message
            ),
        }
        self.decisions += 1;
        true
    }

    /// The binding arrives at the server, which may refuse it.
    fn bind(&mut self, pod: &Arc<Pod>, refused: bool) {
        let name = pod.key.name.clone();
        let Some(held) = self.server.pods.get(&name).cloned() else {
            // The server says that there is none; the informer has told of it or will.
            return undo(&self.shared, pod, Fate::Waits);
        };
        if refused {
            return undo(&self.shared, pod, Fate::Waits);
        }
        assert!(held.node.is_none(), "{name} is bound already");
        assert!(!held.gated, "{name} is held back");
        let node = pod.node.to_string();
        let (used, offered) = (self.server.used(&node, 0), self.server.nodes[&node]);
        assert!(used + held.cpu <= offered, "{name} does not fit on {node}: {used} of {offered}");
        self.server.change_pod(&name, Some(ModelPod { node: Some(node), ..held }));
        self.shared.state.lock().queue.remove(&pod.uid);
    }

    /// The others are told to go; the first of them may refuse.
    fn evict(&mut self, pod: &Arc<Pod>, preemption: &Preemption, refused: bool) {
        self.preempted += 1;
        for victim in preemption.victims.iter().filter(|_| !refused) {
            let name = &victim.key.name;
            let held = self.server.pods.get(name);
            if let Some(held) = held {
                assert!(held.priority < u64::try_from(pod.priority()).unwrap(), "{name} is as important");
                self.server.change_pod(name, None);
            }
        }
        told_to_go(&self.shared, pod, !refused);
    }

    /// The process ends with what it knew; what it had sent arrives. The next one lists.
    fn restart(&mut self) {
        for pod in std::mem::take(&mut self.binding) {
            self.bind(&pod, false);
        }
        self.evicting.clear();
        self.server.untold.clear();
        self.shared = Shared::new(&self.scheduler);
        for name in self.server.nodes.keys() {
            let new = self.server.node_object(name);
            self.shared.node_changed(&Change { key: Key::new("", name), old: None, new });
        }
        for name in self.server.pods.keys() {
            let new = self.server.pod_object(name);
            self.shared.pod_changed(&Change { key: Key::new("ns", name), old: None, new });
        }
    }

    /// Everything arrives, and time passes.
    fn settle(&mut self) {
        // Less than the five minutes after which everybody is tried again.
        for _ in 0..20 {
            loop {
                self.tell(u64::MAX);
                for pod in std::mem::take(&mut self.binding) {
                    self.bind(&pod, false);
                }
                for (pod, preemption) in std::mem::take(&mut self.evicting) {
                    self.evict(&pod, &preemption, false);
                }
                if !self.decide() && self.server.untold.is_empty() {
                    break;
                }
            }
            self.clock.advance(Duration::from_secs(11));
        }
        for (name, pod) in &self.server.pods {
            let waits = pod.node.is_none() && !pod.gated;
            assert!(!waits || !self.server.fits(pod), "{name} fits and waits");
        }
        let state = self.shared.state.lock();
        assert!(state.assumed.is_empty() && state.preempting.is_empty(), "something is left over");
    }
}

#[tokio::test]
async fn nobody_is_overcommitted_forgotten_or_tried_in_vain() {
    let (mut preempted, mut bound) = (0, 0);
    for seed in 0..30 {
        let (mut random, mut model) = (Random(seed), Model::new());
        for _ in 0..400 {
            model.step(&mut random);
        }
        model.settle();
        assert!(model.decisions < 2000, "seed {seed}: {} decisions", model.decisions);
        // Who fits nowhere is not tried while nothing happens, but for once in five minutes.
        let (before, waiting) = (model.decisions, model.server.pods.len() as u64);
        for _ in 0..10 {
            model.clock.advance(Duration::from_secs(29));
            while model.decide() {}
        }
        assert!(model.decisions - before <= waiting, "seed {seed}: tried in vain");
        preempted += model.preempted;
        bound += model.server.pods.values().filter(|pod| pod.node.is_some()).count();
    }
    assert!(preempted > 50 && bound > 100, "the test must reach what it is about: {preempted}, {bound}");
}

#[tokio::test]
async fn whom_room_was_left_to_for_nothing_does_not_keep_others_waiting() {
    for end in ["cleared", "gone", "elsewhere"] {
        let mut model = Model::new();
        model.server.change_node("n1", 2);
        let important = ModelPod { cpu: 2, priority: 10, gated: false, node: None };
        model
            .server
            .change_pod("low", Some(ModelPod { node: Some("n1".into()), priority: 0, ..important.clone() }));
        model.server.change_pod("high", Some(important.clone()));
        model.tell(u64::MAX);
        assert!(model.decide());
        // Who was in the way goes; the room is left to the important pod, which somebody holds back meanwhile.
        let (pod, preemption) = model.evicting.pop().unwrap();
        assert_eq!(preemption.node, "n1");
        let nominated = |model: &Model, node: &str| {
            let mut value: serde_json::Value = model.server.pod_object("high").unwrap().decode().unwrap();
            value["status"]["nominatedNodeName"] = node.into();
            value["spec"]["schedulingGates"] = json!([{ "name": "g" }]);
            Arc::new(Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap())
        };
        let key = Key::new("ns", "high");
        let told = nominated(&model, "n1");
        let change = |old: &Arc<Object>, new| Change { key: key.clone(), old: Some(old.clone()), new };
        model.shared.pod_changed(&change(&told, Some(told.clone())));
        model.server.change_pod("low", None);
        model.server.change_pod("other", Some(ModelPod { priority: 0, ..important.clone() }));
        model.tell(u64::MAX);
        told_to_go(&model.shared, &pod, true);
        model.shared.state.lock().queue.remove("high");
        model.shared.pod_changed(&change(&told, Some(told.clone())));
        while model.decide() {}
        assert!(model.binding.is_empty(), "{end}: the room is left to another");
        match end {
            "cleared" => model.shared.pod_changed(&change(&told, Some(nominated(&model, "")))),
            "gone" => model.shared.pod_changed(&change(&told, None)),
            _ => {
                model
                    .server
                    .pods
                    .insert("high".into(), ModelPod { node: Some("n2".into()), ..important.clone() });
                model.shared.pod_changed(&change(&told, model.server.pod_object("high")));
            }
        }
        model.clock.advance(Duration::from_secs(11));
        while model.decide() {}
        let bound: Vec<&str> = model.binding.iter().map(|pod| pod.key.name.as_str()).collect();
        assert_eq!(bound, ["other"], "{end}");
    }
}
