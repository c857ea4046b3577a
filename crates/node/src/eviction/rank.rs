//! Which pod goes first, and what it is told. Pure. Source: `pkg/kubelet/eviction/helpers.go`.

use std::cmp::Reverse;

use super::observe::Observations;
use super::threshold::binary;
use super::{Signal, Threshold};

/// What a container uses and asked for, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ContainerUse {
    pub(super) name: String,
    pub(super) memory: u64,
    pub(super) memory_request: u64,
    /// Its writable layer and its logs.
    pub(super) disk: u64,
    pub(super) disk_request: u64,
}

/// What a pod uses and asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PodUse {
    pub(super) uid: String,
    pub(super) priority: i32,
    /// It is never evicted.
    pub(super) critical: bool,
    pub(super) containers: Vec<ContainerUse>,
    pub(super) memory: u64,
    pub(super) memory_request: u64,
    pub(super) disk: u64,
    pub(super) disk_request: u64,
    pub(super) inodes: u64,
    pub(super) processes: u64,
}

/// What pods hold of that of which there is too little, in the words of messages. Source: `signalToResource`.
pub(super) fn resource(signal: Signal) -> &'static str {
    match signal {
        Signal::Memory => "memory",
        Signal::NodeDisk | Signal::ImageDisk => "ephemeral-storage",
        Signal::NodeInodes | Signal::ImageInodes => "inodes",
        Signal::Pids => "pids",
    }
}

/// Pods in the order in which they go: who has more than it asked for, then the less important, then who has the most
/// beyond what it asked for. Process ids nobody asks for. Source: `rankMemoryPressure`, `rankPIDPressure`,
/// `rankDiskPressureFunc`.
pub(super) fn rank(signal: Signal, pods: &mut [PodUse]) {
    let beyond = |pod: &PodUse| -> i128 {
        let (used, asked) = match signal {
            Signal::Memory => (pod.memory, pod.memory_request),
            Signal::NodeDisk | Signal::ImageDisk => (pod.disk, pod.disk_request),
            Signal::NodeInodes | Signal::ImageInodes => (pod.inodes, 0),
            Signal::Pids => (pod.processes, 0),
        };
        i128::from(used) - i128::from(asked)
    };
    pods.sort_by_key(|pod| {
        let within = signal != Signal::Pids && beyond(pod) <= 0;
        (within, pod.priority, Reverse(beyond(pod)))
    });
}

/// What a pod is told that has to go. Source: `evictionMessage`.
pub(super) fn message(threshold: &Threshold, seen: &Observations, pod: &PodUse) -> String {
    let of = resource(threshold.signal);
    let mut text = format!("The node was low on resource: {of}. ");
    if let Some(observed) = seen.get(&threshold.signal) {
        let shown = |amount: u64| match of {
            "memory" | "ephemeral-storage" => binary(amount).to_string(),
            _ => amount.to_string(),
        };
        let (least, available) = (shown(threshold.least.of(observed.capacity)), shown(observed.available));
        text += &format!("Threshold quantity: {least}, available: {available}. ");
    }
    for container in &pod.containers {
        let (used, asked) = match of {
            "memory" => (container.memory, container.memory_request),
            "ephemeral-storage" => (container.disk, container.disk_request),
            _ => continue,
        };
        if used > asked {
            let (name, used, asked) = (&container.name, binary(used), binary(asked));
            text += &format!(
                "Container {name} was using {used}, request is {asked}, has larger consumption of {of}. "
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Amount;
    use crate::eviction::observe::Observed;

    fn pod(uid: &str, priority: i32, used: u64, asked: u64) -> PodUse {
        PodUse {
            uid: uid.to_owned(),
            priority,
            memory: used,
            memory_request: asked,
            disk: used,
            disk_request: asked,
            inodes: used,
            processes: used,
            ..PodUse::default()
        }
    }

    fn order(signal: Signal, pods: &[PodUse]) -> Vec<String> {
        let mut pods = pods.to_vec();
        rank(signal, &mut pods);
        pods.into_iter().map(|pod| pod.uid).collect()
    }

    /// Upstream's cases of `TestOrderedByPriorityMemory` and its neighbours.
    #[test]
    fn who_goes_first() {
        let pods = [
            pod("low-within", -1, 100, 200),
            pod("high-beyond", 5, 500, 100),
            pod("much-beyond", 0, 400, 100),
            pod("little-beyond", 0, 150, 100),
            pod("high-within", 5, 10, 500),
        ];
        let by_request = ["much-beyond", "little-beyond", "high-beyond", "low-within", "high-within"];
        assert_eq!(order(Signal::Memory, &pods), by_request);
        assert_eq!(order(Signal::NodeDisk, &pods), by_request);
        assert_eq!(order(Signal::ImageDisk, &pods), by_request);
        let by_use = ["low-within", "much-beyond", "little-beyond", "high-beyond", "high-within"];
        assert_eq!(order(Signal::NodeInodes, &pods), by_use);
        assert_eq!(order(Signal::Pids, &pods), by_use);
    }

    #[test]
    fn users_are_told_what_was_short_and_who_had_too_much() {
        let least = Amount::Absolute(100 << 20);
        let threshold = Threshold { signal: Signal::Memory, least, grace: None, reclaim: None };
        let observed = Observed { available: 50 << 20, capacity: 1 << 30 };
        let container = |name: &str, memory: u64, memory_request: u64| ContainerUse {
            name: name.to_owned(),
            memory,
            memory_request,
            ..ContainerUse::default()
        };
        let containers =
            vec![container("a", 2 << 20, 1 << 20), container("b", 1 << 20, 1 << 20), container("c", 1024, 0)];
        let pod = PodUse { containers, ..PodUse::default() };
        let told = message(&threshold, &Observations::from([(Signal::Memory, observed)]), &pod);
        assert_eq!(
            told,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 2Mi, request is 1Mi, has larger consumption of memory. \
             Container c was using 1Ki, request is 0, has larger consumption of memory. "
        );
        let pids = Threshold { signal: Signal::Pids, least: Amount::Share(1000), ..threshold };
        let observed = Observed { available: 50, capacity: 1000 };
        let told = message(&pids, &Observations::from([(Signal::Pids, observed)]), &pod);
        assert_eq!(told, "The node was low on resource: pids. Threshold quantity: 100, available: 50. ");
    }
}
