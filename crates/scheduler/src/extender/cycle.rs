//! A decision in which extenders take part: the filters, then the extenders over the nodes that are left, then the best of
//! them. While they are asked nothing is locked; so the filters look once more at what they left.
//! Source: `findNodesThatPassExtenders`, `prioritizeNodes`, `callExtenders`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reconcile::kinds;
use serde_json::{Value, json};

use super::Extender;
use super::messages::{Binding, Bound, Displace, Displaced, Filtered, Question, Score, displaced, lowered};
use crate::bind::Told;
use crate::cluster::NodeState;
use crate::framework::{
    Choice, Decision, MAX_SCORE, Preemption, Profile, Refusal, Refused, Room, choose_room,
};
use crate::metrics::{Outcome, Work};
use crate::types::Pod;
use crate::{Next, SCHEDULER_ERROR, Shared};

/// Scores of extenders end there. Source: `MaxExtenderPriority`.
const EXTENDER_SCORE_MAX: i64 = 10;

/// What is said where extenders leave no node on which room can be made. Source: `Evaluator.Preempt`.
const NO_CANDIDATE: &str = "no candidate node for preemption";

/// What extenders have said of nodes.
#[derive(Debug, Default)]
struct Said {
    /// The nodes that all of them leave.
    left: BTreeSet<String>,
    refused: BTreeMap<String, Refusal>,
    scores: HashMap<String, i64>,
}

impl Said {
    /// Several extenders may refuse a node; the last says whether room would help.
    fn refuse(&mut self, node: &str, why: String, resolvable: bool) {
        let held = self.refused.entry(node.to_owned()).or_insert(Refusal { resolvable, reasons: Vec::new() });
        held.resolvable = resolvable;
        held.reasons.push(why.into());
    }

    /// Why a node that the filters leave will not do. Of one that they were not asked about nothing is told.
    fn refusal(&self, node: &str) -> Option<Refusal> {
        if self.left.contains(node) {
            return None;
        }
        let unasked = || Refusal { resolvable: false, reasons: Vec::new() };
        Some(self.refused.get(node).cloned().unwrap_or_else(unasked))
    }

    fn take(&mut self, filtered: &Filtered) {
        for (node, why) in &filtered.lasting {
            self.refuse(node, why.clone(), false);
        }
        for (node, why) in filtered.failed.iter().filter(|(node, _)| !filtered.lasting.contains_key(*node)) {
            self.refuse(node, why.clone(), true);
        }
    }
}

impl Shared {
    /// The extenders that see to a pod.
    fn extenders<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Extender> {
        self.config.extenders.iter().filter(|extender| extender.sees(pod))
    }

    /// Whether extenders take part in placing a pod.
    pub(crate) fn is_extended(&self, pod: &Pod) -> bool {
        let verbs = self.extenders(pod).flat_map(|asked| [&asked.filter, &asked.prioritize, &asked.preempt]);
        verbs.into_iter().any(|verb| !verb.is_empty())
    }

    /// Decides for a pod together with extenders.
    pub(crate) async fn decide_extended(&self, pod: Arc<Pod>) -> Next {
        let Some(profile) = self.profile(&pod) else { return Next::Wait(None) };
        let begun = Instant::now();
        let decision = match self.nodes_for(profile, &pod) {
            Err(decision) => *decision,
            Ok(nodes) => match self.asked(&pod, nodes).await {
                Ok(said) => self.decide_besides(profile, &pod, &said),
                Err(why) => return self.failed(pod, why, begun),
            },
        };
        let decision = match decision {
            Decision::Preempt(refused, preemption) => match self.displaced(&pod, preemption).await {
                Ok(preemption) => Decision::Preempt(refused, preemption),
                // Nobody goes, so that no room is made anywhere; room that was made before stays.
                Err(why) => {
                    let message = format!("{} preemption: {why}", refused.message);
                    Decision::Refused(Refused { message, nominated: None, ..refused })
                }
            },
            other => other,
        };
        let state = &mut *self.state.lock();
        // It may have been bound or have gone while the extenders were asked.
        if !state.queue.contains(&pod.uid) {
            return Next::Wait(Some(self.clock.now()));
        }
        self.decided(profile, &decision, state.turn.took, begun);
        self.carry_out(state, pod, profile, decision, begun)
    }

    fn nodes_for(&self, profile: &Profile, pod: &Arc<Pod>) -> Result<Vec<String>, Box<Decision>> {
        let state = &mut *self.state.lock();
        state.cluster.devices.now = self.clock.now();
        let begun = Instant::now();
        let choice = profile.shortlist(pod, &mut state.cluster, &mut state.turn, &|_| None);
        state.turn.took = [begun.elapsed(), Duration::ZERO];
        match choice {
            Choice::None(decision) => Err(decision),
            Choice::Among(list) => {
                let name = |slot: &u32| state.cluster.state(*slot).node().name.clone();
                Ok(list.nodes.iter().map(name).collect())
            }
        }
    }

    /// The best of the nodes that filters and extenders leave.
    fn decide_besides(&self, profile: &Profile, pod: &Arc<Pod>, said: &Said) -> Decision {
        let state = &mut *self.state.lock();
        let refused = |node: &NodeState| said.refusal(&node.node().name);
        let begun = Instant::now();
        let choice = profile.shortlist(pod, &mut state.cluster, &mut state.turn, &refused);
        state.turn.took[0] += begun.elapsed();
        match choice {
            Choice::None(decision) => *decision,
            Choice::Among(list) => {
                let more = |node: &str| said.scores.get(node).copied().unwrap_or(0);
                let begun = Instant::now();
                let best = profile.best(pod, &state.cluster, &list.nodes, &mut state.turn, more);
                state.turn.took[1] = begun.elapsed();
                best.map_or_else(|| Decision::Refused(Refused::default()), Decision::Node)
            }
        }
    }

    /// The attempt failed with the extender: the pod is tried again after its back-off.
    fn failed(&self, pod: Arc<Pod>, message: String, begun: Instant) -> Next {
        let state = &mut *self.state.lock();
        let now = self.clock.now();
        // It may have been bound or have gone while the extenders were asked.
        if !state.queue.contains(&pod.uid) {
            return Next::Wait(Some(now));
        }
        self.attempted(&pod.spec.scheduler_name, Outcome::Error, begun);
        state.queue.failed(&pod.uid, now);
        let nominated = state.cluster.nominated.node_of(&pod.uid).map(str::to_owned);
        state.cluster.nominated.remove(&pod.uid);
        if let Some(node) = nominated {
            self.room_is_free(state, &pod, &node);
        }
        Next::Refuse(
            pod,
            Told { reason: SCHEDULER_ERROR, message, nominated: Some(String::new()), frees: None },
        )
    }

    /// What the extenders say, one after the other, of the nodes that those before them left.
    async fn asked(&self, pod: &Pod, mut nodes: Vec<String>) -> Result<Said, String> {
        let mut said = Said::default();
        let object = self.pod_object(pod);
        for extender in self.extenders(pod).filter(|extender| !extender.filter.is_empty()) {
            if nodes.is_empty() {
                break;
            }
            let answer = extender.ask(&extender.filter, &self.question(extender, &object, &nodes)).await;
            let filtered = answer.and_then(|answer| {
                let filtered: Filtered =
                    serde_json::from_value(lowered(answer)).map_err(|error| error.to_string())?;
                if filtered.error.is_empty() { Ok(filtered) } else { Err(filtered.error) }
            });
            let filtered = match filtered {
                Ok(filtered) => filtered,
                Err(error) if extender.ignorable => {
                    tracing::info!(extender = extender.url, error, "extender left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            said.take(&filtered);
            let left: BTreeSet<&str> = filtered.names(extender.knows_nodes).into_iter().collect();
            if let Some(node) = left.iter().find(|node| !nodes.iter().any(|held| held == **node)) {
                let url = &extender.url;
                return Err(format!(
                    "extender {url:?} claims a filtered node {node:?} which is not found in the input node list"
                ));
            }
            nodes.retain(|node| left.contains(node.as_str()));
        }
        if nodes.len() > 1 {
            self.scores(pod, &object, &nodes, &mut said).await;
        }
        said.left = nodes.into_iter().collect();
        Ok(said)
    }

    /// Extenders that cannot say how good nodes are leave it to others.
    async fn scores(&self, pod: &Pod, object: &Value, nodes: &[String], said: &mut Said) {
        for extender in self.extenders(pod).filter(|extender| !extender.prioritize.is_empty()) {
            let working = self.working(Work::Prioritizing);
            let answer = extender.ask(&extender.prioritize, &self.question(extender, object, nodes)).await;
            drop(working);
            let scores = answer.and_then(|answer| {
                serde_json::from_value::<Option<Vec<Score>>>(lowered(answer))
                    .map_err(|error| error.to_string())
            });
            match scores {
                Ok(scores) => {
                    for Score { host, score } in scores.into_iter().flatten() {
                        let held = said.scores.entry(host).or_default();
                        let scale = extender.weight.saturating_mul(MAX_SCORE / EXTENDER_SCORE_MAX);
                        *held = held.saturating_add(score.saturating_mul(scale));
                    }
                }
                Err(error) => tracing::info!(extender = extender.url, error, "no scores of an extender"),
            }
        }
    }

    /// The pod as the API server has it.
    fn pod_object(&self, pod: &Pod) -> Value {
        let held = self.sources.pods.get(&pod.key);
        held.and_then(|held| held.decode().ok()).unwrap_or_else(|| {
            json!({ "metadata": { "namespace": pod.key.namespace, "name": pod.key.name, "uid": &*pod.uid } })
        })
    }

    fn question<'a>(&self, extender: &Extender, pod: &'a Value, nodes: &'a [String]) -> Question<'a> {
        if extender.knows_nodes {
            let names = nodes.iter().map(String::as_str).collect();
            return Question { pod, nodes: None, node_names: Some(names) };
        }
        let object = |name: &String| {
            let held = self.sources.nodes.get(&api::Key::new("", name.as_str()))?;
            held.decode::<Value>().ok()
        };
        let items: Vec<Value> = nodes.iter().filter_map(object).collect();
        let nodes = json!({ "kind": kinds::NODES.kind.to_owned() + "List", "apiVersion": "v1", "metadata": {}, "items": items });
        Question { pod, nodes: Some(nodes), node_names: None }
    }

    /// What extenders make of pods that are to go: on fewer nodes, others, or nobody; why nobody. Each is asked of all nodes
    /// that those before it left, and the best that is left is taken. Source: `callExtenders`.
    async fn displaced(&self, pod: &Pod, preemption: Preemption) -> Result<Preemption, String> {
        if !self.extenders(pod).any(|extender| !extender.preempt.is_empty()) {
            return Ok(preemption);
        }
        let (object, mut rooms) = (self.pod_object(pod), preemption.rooms);
        for extender in self.extenders(pod).filter(|extender| !extender.preempt.is_empty()) {
            let question = self.displacing(extender, &object, &rooms);
            match extender.ask(&extender.preempt, &question).await {
                Ok(answer) => rooms = self.rooms_left(extender, displaced(answer))?,
                Err(error) if extender.ignorable => {
                    tracing::info!(extender = extender.url, error, "extender left out");
                }
                Err(error) => return Err(error),
            }
            if rooms.is_empty() {
                break;
            }
        }
        let state = self.state.lock();
        choose_room(rooms, pod, &state.cluster).ok_or_else(|| NO_CANDIDATE.to_owned())
    }

    fn displacing<'a>(&self, extender: &Extender, pod: &'a Value, rooms: &[Room]) -> Displace<'a> {
        let named = |of: &dyn Fn(&Pod) -> Value| -> Option<Value> {
            let victims = |room: &Room| -> (String, Value) {
                let pods: Vec<Value> = room.victims.iter().map(|victim| of(victim)).collect();
                (room.node.clone(), json!({ "Pods": pods, "NumPDBViolations": room.violations }))
            };
            Some(Value::Object(rooms.iter().map(victims).collect()))
        };
        let (whole, meta) = if extender.knows_nodes {
            (None, named(&|victim| json!({ "UID": &*victim.uid })))
        } else {
            (named(&|victim| self.pod_object(victim)), None)
        };
        Displace { pod, node_name_to_victims: whole, node_name_to_meta_victims: meta }
    }

    /// The nodes that an extender leaves. Who is not there cannot go; without anybody going nothing is won.
    fn rooms_left(
        &self,
        extender: &Extender,
        left: BTreeMap<String, Displaced>,
    ) -> Result<Vec<Room>, String> {
        let state = self.state.lock();
        let mut rooms = Vec::new();
        for (node, displaced) in left {
            if displaced.uids.is_empty() {
                if extender.ignorable {
                    continue;
                }
                return Err(format!("expected at least one victim pod on node {node:?}"));
            }
            let there = |uid: &String| state.cluster.pod(uid).filter(|pod| *pod.node == node).cloned();
            let victims: Option<Vec<Arc<Pod>>> = displaced.uids.iter().map(there).collect();
            let room = |victims| Room { node, victims, violations: displaced.violations };
            rooms.extend(victims.map(room));
        }
        Ok(rooms)
    }

    /// Has an extender bind a pod, if one does; whether that went well.
    pub(crate) async fn bound_elsewhere(&self, pod: &Pod) -> Option<Result<(), String>> {
        let extender = self.config.extenders.iter().find(|extender| extender.binds(pod))?;
        let binding = Binding {
            pod_name: &pod.key.name,
            pod_namespace: &pod.key.namespace,
            pod_uid: &pod.uid,
            node: &pod.node,
        };
        let answer = extender.ask(&extender.bind, &binding).await.and_then(|answer| {
            let bound: Bound = serde_json::from_value(lowered(answer)).map_err(|error| error.to_string())?;
            if bound.error.is_empty() { Ok(()) } else { Err(bound.error) }
        });
        if let Err(error) = &answer
            && extender.ignorable
        {
            // The pod is bound as if there were none. Source: `extendersBinding`.
            tracing::info!(pod = %pod.key, error, "an extender that may be left out does not bind");
            return None;
        }
        Some(answer)
    }
}
