//! What list requests select by: ids and their unique beginnings, states, labels.

use std::collections::HashMap;

use crate::known::{Kept, Pod};
use crate::proto;
use crate::status;

/// Whether labels bear everything that is asked for.
fn labels(own: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| own.get(name) == Some(value))
}

/// An id, or the beginning of one; nothing selects everything.
fn id(own: &str, wanted: &str) -> bool {
    own.starts_with(wanted)
}

pub(crate) fn pod(pod: &Pod, filter: &proto::PodSandboxFilter) -> bool {
    id(&pod.status.spec.id, &filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == status::pod_state(pod) as i32)
        && labels(&pod.config.labels, &filter.label_selector)
}

pub(crate) fn container(container: &Kept, filter: &proto::ContainerFilter) -> bool {
    let spec = &container.status.spec;
    id(&spec.id, &filter.id)
        && id(&spec.sandbox_id, &filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == status::state(container) as i32)
        && labels(&container.config.labels, &filter.label_selector)
}

/// The filter of statistics in the words of lists.
pub(crate) fn of_stats(filter: proto::ContainerStatsFilter) -> proto::ContainerFilter {
    proto::ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    }
}

/// The filter of pods' statistics in the words of lists.
pub(crate) fn of_pod_stats(filter: proto::PodSandboxStatsFilter) -> proto::PodSandboxFilter {
    proto::PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state: None }
}
