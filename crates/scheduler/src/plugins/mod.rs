//! The plugins, one module each.

mod fit;
mod node;
mod spread;
mod taints;

use crate::framework::Plugin;

/// Every plugin, cheap filters first.
pub(crate) fn all() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(node::Unschedulable),
        Box::new(node::Name),
        Box::new(taints::TaintToleration),
        Box::new(node::Affinity),
        Box::new(node::Ports),
        Box::new(fit::Fit),
        Box::new(fit::Balanced),
        Box::new(spread::OwnerSpread),
    ]
}
