//! The plugins, one module each.

mod affinity;
mod balanced;
mod dynamic_resources;
mod features;
mod fit;
mod gates;
mod images;
mod inter_pod;
mod node;
mod others;
mod ports;
mod spread;
mod taints;
mod volume_binding;
mod volume_limits;
mod volume_restrictions;
mod volume_zone;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod volume_tests;

use std::sync::Arc;

use crate::config::args::Args;
use crate::framework::Plugin;

pub(crate) use fit::{Shape, Strategy};

/// Upstream's default plugins with the weights of their scores, in upstream's order.
pub(crate) const DEFAULTS: [(&str, i32); 20] = [
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 2),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
    ("NodeDeclaredFeatures", 0),
];

/// Plugins of upstream. One of these that is not here is accepted in configurations, with a warning, and does nothing.
pub(crate) const UPSTREAMS: [&str; 24] = [
    "DefaultBinder",
    "DefaultPreemption",
    "DeferredPodScheduling",
    "DynamicResources",
    "GangScheduling",
    "ImageLocality",
    "InterPodAffinity",
    "NodeAffinity",
    "NodeDeclaredFeatures",
    "NodeName",
    "NodePorts",
    "NodeResourcesBalancedAllocation",
    "NodeResourcesFit",
    "NodeUnschedulable",
    "NodeVolumeLimits",
    "PodGroupPodsCount",
    "PodTopologySpread",
    "PrioritySort",
    "SchedulingGates",
    "TaintToleration",
    "TopologyPlacementGenerator",
    "VolumeBinding",
    "VolumeRestrictions",
    "VolumeZone",
];

/// A plugin by its name; `None` if there is none.
pub(crate) fn named(name: &str, args: &Args) -> Option<Arc<dyn Plugin>> {
    Some(match name {
        "SchedulingGates" => Arc::new(gates::Gates),
        "PrioritySort" => Arc::new(others::PrioritySort),
        "NodeUnschedulable" => Arc::new(node::Unschedulable),
        "NodeName" => Arc::new(node::Name),
        "TaintToleration" => Arc::new(taints::TaintToleration),
        "NodeAffinity" => Arc::new(affinity::Affinity::new(args.node_affinity.added_affinity.clone())),
        "NodePorts" => Arc::new(ports::Ports),
        "NodeResourcesFit" => Arc::new(fit::Fit::new(&args.fit)),
        "VolumeRestrictions" => Arc::new(volume_restrictions::VolumeRestrictions),
        "NodeVolumeLimits" => Arc::new(volume_limits::VolumeLimits),
        "VolumeZone" => Arc::new(volume_zone::VolumeZone),
        "VolumeBinding" => Arc::new(volume_binding::VolumeBinding::new(&args.volumes)),
        "PodTopologySpread" => Arc::new(spread::Spread::new(&args.spread)),
        "InterPodAffinity" => Arc::new(inter_pod::InterPod::new(&args.inter_pod)),
        "DynamicResources" => Arc::new(dynamic_resources::DynamicResources::new(&args.devices)),
        "DefaultPreemption" => Arc::new(others::DefaultPreemption::new(&args.preemption)),
        "NodeResourcesBalancedAllocation" => Arc::new(balanced::Balanced::new(&args.balanced)),
        "ImageLocality" => Arc::new(images::Images),
        "DefaultBinder" => Arc::new(others::DefaultBinder),
        "NodeDeclaredFeatures" => Arc::new(features::DeclaredFeatures),
        _ => return None,
    })
}
