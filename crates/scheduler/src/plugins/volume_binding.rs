//! Volumes: a pod goes where the volumes of its claims are, or can be. Source: `plugins/volumebinding`.

use std::borrow::Cow;

use crate::cluster::{Cluster, NodeState};
use crate::config::args::VolumeArgs;
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Preparation, Rate, Refusal};
use crate::plugins::Shape;
use crate::storage::matching::PodClaims;
use crate::types::Pod;

/// What is asked for beyond what there is counts as all of it. Source: `maxUtilization`.
const FULL: i64 = 100;

/// The claims of a pod have or get volumes that its node reaches.
pub(super) struct VolumeBinding {
    timeout: std::time::Duration,
    /// Scores of how much of the volumes is used.
    shape: Shape,
}

impl VolumeBinding {
    pub(super) fn new(args: &VolumeArgs) -> Self {
        Self { timeout: args.timeout(), shape: args.shape() }
    }
}

struct Reaches<'a>(PodClaims<'a>);

impl Check for Reaches<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let reasons = self.0.find(state.node()).err()?;
        Some(Refusal { resolvable: false, reasons: reasons.into_iter().map(Cow::Borrowed).collect() })
    }
}

/// How well the volumes fit what is asked for.
struct Used<'a>(PodClaims<'a>, &'a Shape);

impl Rate for Used<'_> {
    /// Source: `buildScorerFunction`.
    fn score(&self, state: &NodeState) -> i64 {
        let usage = self.0.usage(state.node());
        let of_class = |(asked, offered): &(i64, i64)| match (*asked, *offered) {
            (_, 0) => FULL,
            (asked, offered) if asked > offered => FULL,
            (asked, offered) => {
                i64::try_from(i128::from(asked) * i128::from(FULL) / i128::from(offered)).unwrap_or(FULL)
            }
        };
        let classes = i64::try_from(usage.len()).unwrap_or(i64::MAX);
        let sum: i64 = usage.iter().map(|usage| self.1.at(of_class(usage))).sum();
        if classes == 0 { 0 } else { (2 * sum + classes) / (2 * classes) }
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn points(&self) -> &'static [Point] {
        use Point::{Filter, PreBind, PreFilter, PreScore, Reserve, Score};
        &[PreFilter, Filter, Reserve, PreBind, PreScore, Score]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        match PodClaims::of(pod, &cluster.storage) {
            Ok(None) => PreFilter::Skip,
            Ok(Some(claims)) => PreFilter::Check(Box::new(Reaches(claims))),
            Err(why) => PreFilter::Refuse(Refusal::lasting(why)),
        }
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let claims = PodClaims::of(pod, &cluster.storage).ok()??;
        // Where all volumes are there already, no node uses more of them than another.
        claims.wait().then(|| Box::new(Used(claims, &self.shape)) as Box<dyn Rate>)
    }

    fn reserve(&self, pod: &Pod, node: &str, cluster: &mut Cluster) -> Option<Preparation> {
        let claims = PodClaims::of(pod, &cluster.storage).ok()??;
        let plan = claims.plan(cluster.named(node)?.node(), self.timeout)?;
        cluster.storage.reserve(&plan, &pod.uid);
        Some(Preparation::Volumes(plan))
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{Capacity, Claim, Class, DriverEased, NodeAdded, NodeChanged, Volume};
        let of_nodes = matches!(event, NodeAdded(_) | NodeChanged(..));
        of_nodes || matches!(event, Claim(..) | Volume(..) | Class(..) | Capacity(..) | DriverEased)
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) | Event::Volume(..) | Event::DriverEased => true,
            Event::NodeChanged(old, new) => old.labels != new.labels,
            Event::Claim(_, claim) => pod.uses(&claim.version.key),
            Event::Class(old, new) => old.as_ref().is_none_or(|old| old.topologies != new.topologies),
            Event::Capacity(old, new) => {
                let old = old.as_ref().and_then(|old| old.most());
                new.most().is_some_and(|new| old.is_none_or(|old| new.value() > old.value()))
            }
            _ => false,
        }
    }
}
