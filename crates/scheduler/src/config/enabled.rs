//! Which plugins take part where: the defaults, what a profile adds and takes away, for all points or for one.
//! Source: `mergePlugins`, `expandMultiPointPlugins`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::args::Args;
use super::check::Problems;
use crate::framework::profile::Weighed;
use crate::framework::{Plugin, Point};
use crate::plugins;

/// `Plugins`: sets by point.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Plugins {
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
    multi_point: PluginSet,
    // What concerns groups of pods is upstream's, but off.
    #[serde(rename = "placementGenerate")]
    _placement_generate: PluginSet,
    #[serde(rename = "placementScore")]
    _placement_score: PluginSet,
    #[serde(rename = "podGroupPostFilter")]
    _pod_group_post_filter: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct PluginSet {
    enabled: Vec<Named>,
    disabled: Vec<Named>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Named {
    name: String,
    weight: i32,
}

/// Plugins that no version has any more. Source: `invalidPluginsByVersion`.
const RETIRED: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

/// What is said of one of them, wherever it is named.
pub(super) fn check_retired(at: &str, name: &str, problems: &mut Problems) {
    if RETIRED.contains(&name) {
        let why = format!(
            "was invalid in version \"v1\" (KubeSchedulerConfiguration is version {:?})",
            super::VERSION
        );
        problems.invalid(at, &format!("{name:?}"), &why);
    }
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|held| held.name == "*" || held.name == name)
    }

    /// The defaults with what this set changes in place, then what it adds.
    fn over_defaults(&self) -> Vec<Named> {
        let default = plugins::DEFAULTS.into_iter().filter(|(name, _)| !self.disables(name));
        let mut merged: Vec<Named> = default
            .map(|(name, weight)| {
                let own = self.enabled.iter().find(|own| own.name == name).cloned();
                own.unwrap_or_else(|| Named { name: name.to_owned(), weight })
            })
            .collect();
        let known = merged.len();
        let added = |own: &&Named| merged[..known].iter().all(|held| held.name != own.name);
        let added: Vec<Named> = self.enabled.iter().filter(added).cloned().collect();
        merged.extend(added);
        merged
    }
}

/// The plugins of a point, in order, with the weights of their scores.
type Enabled = Vec<(Point, Vec<Weighed>)>;

impl Plugins {
    fn at(&self, point: Point) -> &PluginSet {
        match point {
            Point::PreEnqueue => &self.pre_enqueue,
            Point::QueueSort => &self.queue_sort,
            Point::PreFilter => &self.pre_filter,
            Point::Filter => &self.filter,
            Point::PostFilter => &self.post_filter,
            Point::PreScore => &self.pre_score,
            Point::Score => &self.score,
            Point::Reserve => &self.reserve,
            Point::Permit => &self.permit,
            Point::PreBind => &self.pre_bind,
            Point::Bind => &self.bind,
            Point::PostBind => &self.post_bind,
        }
    }

    /// What takes part where.
    pub(super) fn enabled(&self, args: &Args, problems: &mut Problems) -> Enabled {
        let everywhere = self.multi_point.over_defaults();
        let mut made: BTreeMap<String, Arc<dyn Plugin>> = BTreeMap::new();
        let own = Point::ALL.iter().flat_map(|point| &self.at(*point).enabled);
        let own_names: BTreeSet<&str> = own.clone().map(|named| named.name.as_str()).collect();
        for named in everywhere.iter().chain(own) {
            if made.contains_key(&named.name) {
                continue;
            }
            match plugins::named(&named.name, args) {
                Some(plugin) => drop(made.insert(named.name.clone(), plugin)),
                None if plugins::UPSTREAMS.contains(&named.name.as_str()) => {
                    tracing::warn!(plugin = named.name, "the scheduler has no such plugin: it has no effect");
                }
                // What is said of these is said beside their point.
                None if own_names.contains(named.name.as_str()) && RETIRED.contains(&named.name.as_str()) => {
                }
                None => problems.add("plugins", &format!("Plugin {:?} does not exist", named.name)),
            }
        }
        for (at, named) in everywhere.iter().enumerate() {
            if everywhere[..at].iter().any(|before| before.name == named.name) {
                problems.add("plugins.multiPoint", &format!("plugin {:?} already registered", named.name));
            }
        }
        let enabled: Enabled = Point::ALL
            .iter()
            .map(|point| (*point, self.of_point(*point, &everywhere, &made, problems)))
            .collect();
        for (point, says) in [
            (Point::QueueSort, "only one queue sort plugin required for profile"),
            (Point::Bind, "at least one bind plugin is needed for profile"),
        ] {
            let count =
                enabled.iter().filter(|(held, _)| *held == point).map(|(_, plugins)| plugins.len()).sum();
            let right = match point {
                Point::QueueSort => 1..=1_usize,
                _ => 1..=usize::MAX,
            };
            if !right.contains(&count) {
                problems.add(&format!("plugins.{}", point.name()), says);
            }
        }
        enabled
    }

    /// First those that are named for all points and for this one, then those that are named for all, then the others.
    fn of_point(
        &self,
        point: Point,
        everywhere: &[Named],
        made: &BTreeMap<String, Arc<dyn Plugin>>,
        problems: &mut Problems,
    ) -> Vec<Weighed> {
        let set = self.at(point);
        for (at, named) in set.enabled.iter().enumerate() {
            let at_point = format!("plugins.{}", point.name());
            check_retired(&format!("{at_point}.enabled[{at}]"), &named.name, problems);
            let extends = made.get(&named.name).is_none_or(|plugin| plugin.points().contains(&point));
            if !extends {
                let says = format!("plugin {:?} does not extend {} plugin", named.name, point.name());
                problems.add(&format!("plugins.{}", point.name()), &says);
            }
            if set.enabled[..at].iter().any(|before| before.name == named.name) {
                let says = format!("plugin {:?} already registered as {:?}", named.name, point.name());
                problems.add(&format!("plugins.{}", point.name()), &says);
            }
        }
        let own = |name: &str| set.enabled.iter().any(|own| own.name == name);
        let in_all = |name: &str| {
            let extends = made.get(name).is_some_and(|plugin| plugin.points().contains(&point));
            extends && !set.disables(name) && everywhere.iter().any(|held| held.name == name)
        };
        let overriding = set.enabled.iter().filter(|named| in_all(&named.name));
        let from_all = everywhere.iter().filter(|named| in_all(&named.name) && !own(&named.name));
        let others = set.enabled.iter().filter(|named| !in_all(&named.name));
        let weighed = |named: &Named| {
            let weight = if named.weight == 0 { 1 } else { i64::from(named.weight) };
            Some((made.get(&named.name)?.clone(), weight))
        };
        overriding.chain(from_all).chain(others).filter_map(weighed).collect()
    }
}
