//! One decision: which nodes will do for a pod, and which of them is best. Source: `schedule_one.go`.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::local::LocalHistogram;

use super::preemption::{self, Preemption};
use super::tally::{self, Counts, Lap, Times, point, status};
use super::verdict::{Reasons, Refused, refused_before};
use super::{Check, PreFilter, Profile, Rate, Refusal, Relief};
use crate::cluster::groups::Slot;
use crate::cluster::{Cluster, NodeState};
use crate::types::Pod;

/// So many nodes that will do are always looked for. Source: `minFeasibleNodesToFind`.
const FOUND_MIN: usize = 100;
/// The least part of the nodes, in hundredths. Source: `minFeasibleNodesPercentageToFind`.
const PERCENTAGE_MIN: usize = 5;

/// Who refused a node that the filters left: nobody knows what would help.
const EXTENDER: &str = "extender";

/// What passes from decision to decision: where the search begins, and chance.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// Where among the nodes the next search begins.
    start: usize,
    chance: u64,
    /// How long the last decision filtered and scored; nothing follows from it.
    pub took: [Duration; 2],
    /// Where is put how long plugins take.
    times: Option<Times>,
    /// Which decisions are timed is left to a chance of its own: those that are not are made alike.
    sampling: u64,
    /// The same for the last decision, if it was one of those that are timed.
    sampled: Option<Times>,
}

/// The next of numbers without an evident order.
fn next_chance(chance: u64) -> u64 {
    chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

impl Turn {
    /// One whose decisions are timed now and then.
    pub(crate) fn timed(times: Option<Times>) -> Self {
        Self { times, ..Self::default() }
    }

    /// A number below `bound`, which is above 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.chance = next_chance(self.chance);
        usize::try_from(self.chance >> 33).unwrap_or(0) % bound.max(1)
    }

    /// A decision begins: where is put how long its plugins take, if it is timed.
    fn sample(&mut self) -> Option<Times> {
        self.sampling = next_chance(self.sampling);
        let is_timed = (self.sampling >> 33).is_multiple_of(tally::SAMPLED);
        self.sampled = self.times.as_ref().filter(|_| is_timed).cloned();
        self.sampled.clone()
    }

    /// Where is put how long plugins take for the pod of the last decision, if that is timed.
    pub(crate) fn sampled(&self) -> Option<&Times> {
        self.sampled.as_ref()
    }
}

/// Where a pod goes, or why it goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To this node.
    Node(String),
    /// Nowhere for now.
    Refused(Refused),
    /// Nowhere yet: others have to go first.
    Preempt(Refused, Preemption),
    /// It could not be found out: this went wrong.
    Failed(String),
}

/// The nodes that will do for a pod.
pub struct Shortlist {
    /// They.
    pub nodes: Vec<Slot>,
    /// How many were looked at that will not do.
    refused: Vec<(Slot, Refusal)>,
}

/// What the filters say of a pod.
pub enum Choice {
    /// These nodes will do.
    Among(Shortlist),
    /// None will.
    None(Box<Decision>),
}

/// The filters of one pod.
pub(super) struct Filters<'a> {
    pub(super) pod: &'a Pod,
    pub(super) cluster: &'a Cluster,
    checks: Vec<Held<'a>>,
    /// Where is put how long they take, if they are timed.
    times: Option<&'a Times>,
    /// The only nodes that can be meant, and the plugins that said so.
    only: Option<BTreeSet<String>>,
    narrowed_by: BTreeSet<&'static str>,
}

/// The filter of a plugin for one pod.
struct Held<'a> {
    plugin: &'static str,
    check: Box<dyn Check + 'a>,
    /// Where is counted how many nodes it looked at, when it goes.
    counts: &'a Counts,
    looked_at: Cell<u64>,
    /// How long it took where it refused nothing, if it is timed.
    passed: OnceCell<LocalHistogram>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.counts.add(self.looked_at.get());
    }
}

impl Held<'_> {
    fn refusal(&self, state: &NodeState) -> Option<(&'static str, Refusal)> {
        self.looked_at.set(self.looked_at.get() + 1);
        Some((self.plugin, self.check.refusal(state)?))
    }

    fn timed_refusal(&self, state: &NodeState, lap: &mut Lap<'_>) -> Option<(&'static str, Refusal)> {
        let refusal = self.refusal(state);
        let took = lap.next();
        match &refusal {
            None => {
                let often = || lap.times.often(self.plugin, point::FILTER, status::SUCCESS);
                self.passed.get_or_init(often).observe(took.as_secs_f64());
            }
            Some((plugin, refusal)) => {
                let failed = self.check.failure().is_some();
                let status = if failed { status::ERROR } else { tally::refused(refusal) };
                lap.times.took(plugin, point::FILTER, status, took);
            }
        }
        refusal
    }
}

impl<'a> Filters<'a> {
    /// The filters, or the plugin that refuses every node. How long they take is put into `times`.
    pub(super) fn new(
        profile: &'a Profile,
        pod: &'a Pod,
        cluster: &'a Cluster,
        times: Option<&'a Times>,
    ) -> Result<Self, (&'static str, Refusal)> {
        let (only, narrowed_by) = (None, BTreeSet::new());
        let mut filters = Self { pod, cluster, checks: Vec::new(), times, only, narrowed_by };
        let mut lap = times.map(Lap::new);
        for (plugin, counts) in profile.filters.iter().zip(&profile.evaluated.filters) {
            let before = profile.pre_filters.contains(plugin.name());
            let said = plugin.filter(pod, cluster);
            if let Some(lap) = &mut lap {
                lap.took_if(before, plugin.name(), point::PRE_FILTER, said.status());
            }
            match said {
                PreFilter::Skip => {}
                PreFilter::Check(check) => filters.hold(plugin.name(), check, counts),
                PreFilter::Only(names, check) => {
                    filters.hold(plugin.name(), check, counts);
                    if before {
                        filters.narrow(plugin.name(), names)?;
                    }
                }
                PreFilter::Refuse(refusal) => {
                    counts.add(0);
                    return Err((plugin.name(), refusal));
                }
            }
        }
        Ok(filters)
    }

    fn hold(&mut self, plugin: &'static str, check: Box<dyn Check + 'a>, counts: &'a Counts) {
        let (looked_at, passed) = (Cell::new(0), OnceCell::new());
        self.checks.push(Held { plugin, check, counts, looked_at, passed });
    }

    fn narrow(&mut self, by: &'static str, names: BTreeSet<String>) -> Result<(), (&'static str, Refusal)> {
        self.narrowed_by.insert(by);
        let names = match self.only.take() {
            Some(held) => held.intersection(&names).cloned().collect(),
            None => names,
        };
        if names.is_empty() {
            let names: Vec<&str> = self.narrowed_by.iter().copied().collect();
            let reason = match names.as_slice() {
                [one] => format!("node(s) didn't satisfy plugin {one}"),
                several => {
                    format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", several.join(" "))
                }
            };
            return Err((by, Refusal::lasting(reason)));
        }
        self.only = Some(names);
        Ok(())
    }

    /// The first plugin that refuses a node speaks for it.
    pub(super) fn refusal(&self, state: &NodeState) -> Option<(&'static str, Refusal)> {
        let Some(times) = self.times else {
            return self.checks.iter().find_map(|held| held.refusal(state));
        };
        let mut lap = Lap::new(times);
        self.checks.iter().find_map(|held| held.timed_refusal(state, &mut lap))
    }

    /// What went wrong in a filter. Source: `RunFilterPlugins`.
    fn failure(&self) -> Option<String> {
        let failed = |held: &Held<'a>| {
            Some(format!("running {:?} filter plugin: {}", held.plugin, held.check.failure()?))
        };
        self.checks.iter().find_map(failed)
    }

    /// What the filter of a plugin does for a pod that none of the nodes takes.
    fn relief(&self, plugin: &str) -> Option<Relief> {
        self.checks.iter().find(|held| held.plugin == plugin)?.check.relief()
    }

    pub(super) fn add(&mut self, pod: &Arc<Pod>, state: &mut NodeState) {
        state.add(pod);
        for held in &mut self.checks {
            held.check.add(pod, state);
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod, state: &mut NodeState) {
        state.remove(&pod.uid);
        for held in &mut self.checks {
            held.check.remove(pod, state);
        }
    }

    /// The same with the pods in mind that wait for room on the node and are no less important: the pod has to fit beside
    /// them, and without them, since they may go elsewhere. Source: `RunFilterPluginsWithNominatedPods`.
    pub(super) fn refusal_beside_nominated(&mut self, state: &NodeState) -> Option<(&'static str, Refusal)> {
        let nominated = self.cluster.nominated.on(&state.node().name);
        if !nominated.is_empty() {
            let pod = self.pod;
            let before: Vec<&Arc<Pod>> = nominated
                .iter()
                .filter(|other| other.priority() >= pod.priority() && other.uid != pod.uid)
                .collect();
            if !before.is_empty() {
                let mut imagined = state.clone();
                for other in &before {
                    self.add(other, &mut imagined);
                }
                let refusal = self.refusal(&imagined);
                for other in before {
                    self.remove(other, &mut imagined);
                }
                if refusal.is_some() {
                    return refusal;
                }
            }
        }
        self.refusal(state)
    }
}

impl Profile {
    /// Decides for one pod.
    pub fn decide(&self, pod: &Arc<Pod>, cluster: &mut Cluster, turn: &mut Turn) -> Decision {
        let begun = Instant::now();
        let choice = self.shortlist(pod, cluster, turn, &|_| None);
        turn.took = [begun.elapsed(), Duration::ZERO];
        match choice {
            Choice::None(decision) => *decision,
            Choice::Among(list) => {
                let begun = Instant::now();
                let best = self.best(pod, cluster, &list.nodes, turn, |_| 0);
                turn.took[1] = begun.elapsed();
                best.map_or_else(|| Decision::Refused(Refused::default()), Decision::Node)
            }
        }
    }

    /// The nodes that will do for a pod. `besides` is asked of those that the filters leave.
    pub fn shortlist(
        &self,
        pod: &Arc<Pod>,
        cluster: &mut Cluster,
        turn: &mut Turn,
        besides: &dyn Fn(&NodeState) -> Option<Refusal>,
    ) -> Choice {
        if cluster.is_empty() {
            let message = "no nodes available to schedule pods".to_owned();
            let nominated = Some(String::new());
            let refused = Refused { message, nominated, ..Refused::default() };
            return Choice::None(Box::new(Decision::Refused(refused)));
        }
        cluster.begin();
        for plugin in &self.preparing {
            plugin.prepare(pod, cluster);
        }
        let (cluster, times) = (&*cluster, turn.sample());
        let mut filters = match Filters::new(self, pod, cluster, times.as_ref()) {
            Ok(filters) => filters,
            Err((plugin, refusal)) => {
                return Choice::None(Box::new(self.refused_at_once(pod, cluster, plugin, &refusal)));
            }
        };
        if let Some(nodes) = room_made(&mut filters, besides) {
            return Choice::Among(Shortlist { nodes, refused: Vec::new() });
        }
        let named: Vec<Slot>;
        let candidates = match &filters.only {
            None => cluster.slots(),
            Some(names) => {
                named = names.iter().filter_map(|name| Some(cluster.named(name)?.slot)).collect();
                &named
            }
        };
        let enough = self.enough(candidates.len());
        let mut list = Shortlist { nodes: Vec::with_capacity(enough), refused: Vec::new() };
        let mut by = HashSet::new();
        let mut looked_at = 0;
        for at in 0..candidates.len() {
            let slot = candidates[(turn.start + at) % candidates.len()];
            looked_at += 1;
            let refusal = filters.refusal_beside_nominated(cluster.state(slot));
            match refusal.or_else(|| Some((EXTENDER, besides(cluster.state(slot))?))) {
                None => list.nodes.push(slot),
                Some((plugin, refusal)) => {
                    if let Some(failure) = filters.failure() {
                        return Choice::None(Box::new(Decision::Failed(failure)));
                    }
                    by.insert(plugin);
                    list.refused.push((slot, refusal));
                }
            }
            if list.nodes.len() >= enough {
                break;
            }
        }
        turn.start = (turn.start + looked_at) % cluster.len();
        if !list.nodes.is_empty() {
            return Choice::Among(list);
        }
        by.extend(&filters.narrowed_by);
        Choice::None(Box::new(self.none_will_do(filters, &list.refused, by, turn)))
    }

    /// After so many nodes that will do the search ends. Source: `numFeasibleNodesToFind`.
    fn enough(&self, nodes: usize) -> usize {
        if self.scores.is_empty() && !self.extended {
            return 1;
        }
        if nodes < FOUND_MIN {
            return nodes;
        }
        let percentage = match usize::try_from(self.percentage) {
            Ok(0) | Err(_) => 50_usize.saturating_sub(nodes / 125).max(PERCENTAGE_MIN),
            Ok(percentage) => percentage,
        };
        (nodes * percentage / 100).max(FOUND_MIN)
    }

    fn refused_at_once(
        &self,
        pod: &Pod,
        cluster: &Cluster,
        plugin: &'static str,
        refusal: &Refusal,
    ) -> Decision {
        let by = HashSet::from([plugin]);
        let mut said = vec![refused_before(cluster.len(), refusal)];
        if !self.is_ready_for_relief(plugin, refusal) {
            // Upstream finds no state of the plugin whose turn has not come: nobody is asked any more.
            let message = format!("{} not found", said.concat());
            return Decision::Refused(Refused { message, by, ..Refused::default() });
        }
        let mut nominated = Some(String::new());
        if self.preemption().is_some() {
            // No filter can be run without what was to be found out before; so nobody's going is imagined.
            let no_help = preemption::not_helpful(pod, cluster.len());
            said.push(format!("preemption: {no_help}"));
            nominated = nominated.filter(|_| !pod.spec.never_preempts);
        }
        Decision::Refused(Refused { message: after_filters(&said), by, nominated, frees: None })
    }

    fn none_will_do(
        &self,
        filters: Filters<'_>,
        refused: &[(Slot, Refusal)],
        by: HashSet<&'static str>,
        turn: &mut Turn,
    ) -> Decision {
        let nodes = filters.cluster.len();
        let mut reasons = Reasons::default();
        for (_, refusal) in refused {
            reasons.node(refusal);
        }
        if filters.only.is_some() {
            let plugins: Vec<&str> = filters.narrowed_by.iter().copied().collect();
            let elsewhere = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
            reasons.nodes(&Refusal::lasting(elsewhere), nodes.saturating_sub(refused.len()));
        }
        let relief = self.relief(|plugin| filters.relief(plugin)).unwrap_or_default();
        let (reasons, frees) = (reasons.message(nodes), relief.frees);
        let mut said = vec![reasons.clone()];
        said.extend((!relief.said.is_empty()).then(|| relief.said.to_owned()));
        let Some(settings) = self.preemption() else {
            let message = after_filters(&said);
            return Decision::Refused(Refused { message, by, nominated: Some(String::new()), frees });
        };
        let mut lap = filters.times.map(Lap::new);
        let found = preemption::find(settings, filters, refused, turn);
        if let Some(lap) = &mut lap {
            let status = if found.is_ok() { status::SUCCESS } else { status::UNSCHEDULABLE };
            lap.took(tally::PREEMPTION, point::POST_FILTER, status);
        }
        match found {
            Ok(preemption) => {
                let nominated = Some(preemption.node.clone());
                Decision::Preempt(Refused { message: reasons, by, nominated, frees }, preemption)
            }
            Err(none) => {
                said.push(format!("preemption: {}", none.message));
                let nominated = none.ends_nomination.then(String::new);
                Decision::Refused(Refused { message: after_filters(&said), by, nominated, frees })
            }
        }
    }

    /// The best of some nodes. `more` is added to each node's score.
    pub fn best(
        &self,
        pod: &Pod,
        cluster: &Cluster,
        nodes: &[Slot],
        turn: &mut Turn,
        more: impl Fn(&str) -> i64,
    ) -> Option<String> {
        if let [one] = nodes {
            return Some(cluster.state(*one).node().name.clone());
        }
        let states: Vec<&NodeState> = nodes.iter().map(|slot| cluster.state(*slot)).collect();
        let mut totals: Vec<i64> = states.iter().map(|state| more(&state.node().name)).collect();
        for (total, score) in totals.iter_mut().zip(self.totals(pod, cluster, &states, turn.sampled())) {
            *total = total.saturating_add(score);
        }
        let best = *totals.iter().max()?;
        let equals: Vec<usize> = (0..states.len()).filter(|at| totals[*at] == best).collect();
        let chosen = equals[turn.below(equals.len())];
        Some(states[chosen].node().name.clone())
    }

    /// The weighted sum of every plugin's score, by node.
    pub(super) fn totals(
        &self,
        pod: &Pod,
        cluster: &Cluster,
        states: &[&NodeState],
        times: Option<&Times>,
    ) -> Vec<i64> {
        let mut totals = vec![0_i64; states.len()];
        let mut scores = Vec::with_capacity(states.len());
        let mut lap = times.map(Lap::new);
        for ((plugin, weight), counts) in self.scores.iter().zip(&self.evaluated.scores) {
            let rate = plugin.rate(pod, cluster, states);
            if let Some(lap) = &mut lap {
                let before = self.pre_scores.contains(plugin.name());
                let status = if rate.is_some() { status::SUCCESS } else { status::SKIP };
                lap.took_if(before, plugin.name(), point::PRE_SCORE, status);
            }
            let Some(rate) = rate else { continue };
            counts.add(u64::try_from(states.len()).unwrap_or(u64::MAX));
            scores.clear();
            match &mut lap {
                None => scores.extend(states.iter().map(|state| rate.score(state))),
                Some(lap) => timed_scores(plugin.name(), &*rate, states, lap, &mut scores),
            }
            rate.normalize(&mut scores, states);
            if let Some(lap) = &mut lap {
                lap.took(plugin.name(), point::NORMALIZE, status::SUCCESS);
            }
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total = total.saturating_add(score * weight);
            }
        }
        totals
    }
}

fn timed_scores(
    plugin: &str,
    rate: &dyn Rate,
    states: &[&NodeState],
    lap: &mut Lap<'_>,
    scores: &mut Vec<i64>,
) {
    let took = lap.times.often(plugin, point::SCORE, status::SUCCESS);
    for state in states {
        scores.push(rate.score(state));
        took.observe(lap.next().as_secs_f64());
    }
}

/// What the filters say, and after it what was done about it. Source: `FitError.Error`, `RunPostFilterPlugins`.
fn after_filters(said: &[String]) -> String {
    match said {
        [reasons] => reasons.clone(),
        [reasons, more @ ..] => format!("{reasons} {}", more.join(", ")),
        [] => String::new(),
    }
}

/// The node on which room was made for the pod, if it will do now: it is likely the only one.
fn room_made(
    filters: &mut Filters<'_>,
    besides: &dyn Fn(&NodeState) -> Option<Refusal>,
) -> Option<Vec<Slot>> {
    let (cluster, pod) = (filters.cluster, filters.pod);
    let node = cluster.nominated.node_of(&pod.uid).unwrap_or(&pod.nominated);
    if node.is_empty() || filters.only.as_ref().is_some_and(|only| !only.contains(node)) {
        return None;
    }
    let state = cluster.named(node)?;
    let refused = filters.refusal_beside_nominated(state).is_some() || besides(state).is_some();
    (!refused).then(|| vec![state.slot])
}
