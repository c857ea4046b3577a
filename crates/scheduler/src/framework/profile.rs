//! A set of plugins under a scheduler's name.

use std::collections::HashSet;
use std::sync::Arc;

use super::tally::{Evaluated, Lap, Times, point, status};
use super::{Event, Plugin, Point, PreemptionSettings, Preparation, Refusal, Relief};
use crate::cluster::Cluster;
use crate::types::Pod;

/// A plugin with the weight of its score.
pub type Weighed = (Arc<dyn Plugin>, i64);

/// The plugins that place the pods which ask for one scheduler, in the order in which they are asked.
pub struct Profile {
    /// The scheduler's name.
    pub name: String,
    /// How many of the nodes, in hundredths, have to be found before the search ends; 0: by the number of nodes.
    pub percentage: i64,
    /// Whether nodes are compared by extenders as well, so that more than one has to be found.
    pub extended: bool,
    pub(super) gates: Vec<Arc<dyn Plugin>>,
    pub(super) pre_filters: HashSet<&'static str>,
    pub(super) filters: Vec<Arc<dyn Plugin>>,
    pub(super) pre_scores: HashSet<&'static str>,
    pub(super) scores: Vec<Weighed>,
    /// How often filters and scores were asked.
    pub(super) evaluated: Evaluated,
    /// Those that filter or score, each once.
    pub(super) preparing: Vec<Arc<dyn Plugin>>,
    post_filters: Vec<Arc<dyn Plugin>>,
    reserves: Vec<Arc<dyn Plugin>>,
    all: Vec<Arc<dyn Plugin>>,
}

impl Profile {
    /// A profile; `enabled` are the plugins of each point, with weights for scores.
    pub fn new(name: &str, percentage: i64, enabled: &[(Point, Vec<Weighed>)]) -> Self {
        let at = |point: Point| -> Vec<Weighed> {
            enabled
                .iter()
                .filter(|(held, _)| *held == point)
                .flat_map(|(_, plugins)| plugins.clone())
                .collect()
        };
        let plain = |point: Point| at(point).into_iter().map(|(plugin, _)| plugin).collect::<Vec<_>>();
        let mut all: Vec<Arc<dyn Plugin>> = Vec::new();
        for (plugin, _) in enabled.iter().flat_map(|(_, plugins)| plugins) {
            if all.iter().all(|held| held.name() != plugin.name()) {
                all.push(plugin.clone());
            }
        }
        let mut preparing = plain(Point::Filter);
        for plugin in plain(Point::Score) {
            if preparing.iter().all(|held| held.name() != plugin.name()) {
                preparing.push(plugin);
            }
        }
        let names = |point: Point| plain(point).iter().map(|plugin| plugin.name()).collect::<HashSet<_>>();
        let (pre_filters, pre_scores) = (names(Point::PreFilter), names(Point::PreScore));
        let told = |point: Point, before: &HashSet<&'static str>| {
            let plugins = plain(point).into_iter().map(|plugin| plugin.name());
            plugins.map(|name| (name, before.contains(name))).collect()
        };
        let evaluated = Evaluated::new(told(Point::Filter, &pre_filters), told(Point::Score, &pre_scores));
        Self {
            name: name.to_owned(),
            percentage,
            extended: false,
            gates: plain(Point::PreEnqueue),
            pre_filters,
            filters: plain(Point::Filter),
            pre_scores,
            scores: at(Point::Score),
            evaluated,
            preparing,
            post_filters: plain(Point::PostFilter),
            reserves: plain(Point::Reserve),
            all,
        }
    }

    /// The plugin that holds a pod back, and what it says.
    pub fn gate(&self, pod: &Pod, cluster: &Cluster) -> Option<(&'static str, String)> {
        self.gates.iter().find_map(|plugin| Some((plugin.name(), plugin.gate(pod, cluster)?)))
    }

    /// Takes what a pod needs beside room on the node that was chosen; what has to be done for it before it is bound. How
    /// long that takes is put into `times`.
    pub fn reserve(
        &self,
        pod: &Pod,
        node: &str,
        cluster: &mut Cluster,
        times: Option<&Times>,
    ) -> Vec<Preparation> {
        let mut lap = times.map(Lap::new);
        let reserved = self.reserves.iter().filter_map(|plugin| {
            let preparation = plugin.reserve(pod, node, cluster);
            if let Some(lap) = &mut lap {
                lap.took(plugin.name(), point::RESERVE, status::SUCCESS);
            }
            preparation
        });
        reserved.collect()
    }

    /// Plugin, point and count of how often plugins were asked about pods, and about nodes for them.
    pub(crate) fn evaluated(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.evaluated.told()
    }

    /// How room is made, if it is.
    pub(super) fn preemption(&self) -> Option<&PreemptionSettings> {
        self.post_filters.iter().find_map(|plugin| plugin.preemption())
    }

    /// What is done for a pod that fits nowhere, beside making room; `done` is what the filter of a plugin does.
    pub(super) fn relief(&self, done: impl Fn(&str) -> Option<Relief>) -> Option<Relief> {
        let plugin = self.post_filters.iter().find(|plugin| plugin.relieves())?;
        done(plugin.name())
    }

    /// Whether a plugin that relieves pods has been asked before another one refused a pod for good.
    pub(super) fn is_ready_for_relief(&self, refused_by: &str, refusal: &Refusal) -> bool {
        let relieves =
            |name: &str| self.post_filters.iter().any(|plugin| plugin.name() == name && plugin.relieves());
        let mut before = self.filters.iter().take_while(|plugin| plugin.name() != refused_by);
        refusal.resolvable
            || relieves(refused_by)
            || before.any(|plugin| relieves(plugin.name()))
            || !self.post_filters.iter().any(|plugin| plugin.relieves())
    }

    /// Whether an event may let a pod fit that `by` refused. No refusals at all (there was no node) means that anything
    /// may, and so does what plugins cannot know.
    pub fn may_help(&self, pod: &Pod, by: &HashSet<&'static str>, event: &Event, cluster: &Cluster) -> bool {
        by.is_empty()
            || by.iter().any(|name| match self.all.iter().find(|plugin| plugin.name() == *name) {
                Some(plugin) => plugin.may_help_in(pod, event, cluster),
                None => true,
            })
    }

    /// Whether changes of this kind may end refusals of a plugin at all. What nobody knows may be ended by any.
    pub fn heeds(&self, plugin: &str, event: &Event) -> bool {
        self.all.iter().find(|held| held.name() == plugin).is_none_or(|held| held.heeds(event))
    }

    /// The plugins that score, with their weights.
    pub fn score_weights(&self) -> Vec<(&'static str, i64)> {
        self.scores.iter().map(|(plugin, weight)| (plugin.name(), *weight)).collect()
    }

    /// The plugins that filter.
    pub fn filter_names(&self) -> Vec<&'static str> {
        self.filters.iter().map(|plugin| plugin.name()).collect()
    }
}
