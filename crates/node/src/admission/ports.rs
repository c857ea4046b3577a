//! What the node itself asks of a pod before anything of it is started: pods reach it beside the scheduler too, by
//! `spec.nodeName`. So far: the ports of the host are free. Source: upstream's `pkg/kubelet/lifecycle/predicate.go`.

use std::collections::HashMap;

use crate::pod::{ContainerKind, PodView};

/// `reason` and `message` of a pod that asks for ports which another pod has.
pub(crate) const PORTS_TAKEN: (&str, &str) = (
    "NodePorts",
    "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
);

/// The address that stands for all.
const ANY: &str = "0.0.0.0";

/// A port of the host, told apart as the scheduler tells them apart: what it puts on one node, the node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    address: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    fn collides(&self, other: &Self) -> bool {
        let same_address = self.address == other.address || self.address == ANY || other.address == ANY;
        same_address && self.port == other.port && self.protocol == other.protocol
    }
}

/// The ports that a pod asks for, also those of a pod on the host's own network.
fn asked(pod: &PodView) -> Vec<HostPort> {
    let running = pod.containers().filter(|(kind, _)| *kind != ContainerKind::Init);
    let ports = running.flat_map(|(_, container)| container.ports.iter().flatten());
    let of_host = ports.filter_map(|port| {
        let address = port.host_ip.as_deref().filter(|address| !address.is_empty()).unwrap_or(ANY);
        Some(HostPort {
            address: address.to_owned(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.host_port.filter(|port| *port > 0)?,
        })
    });
    of_host.collect()
}

/// The ports of the host that pods have, by the pods' uids.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    taken: HashMap<String, Vec<HostPort>>,
}

impl HostPorts {
    /// Takes what a pod asks for, whoever else has it: the pod was here before.
    pub(crate) fn keep(&mut self, pod: &PodView) {
        let ports = asked(pod);
        if !ports.is_empty() {
            self.taken.insert(pod.uid().to_owned(), ports);
        }
    }

    /// Takes what a pod asks for; false if another one has some of it that `lives`. Who was told that the other is over
    /// may come before the last of that is done here.
    pub(crate) fn take(&mut self, pod: &PodView, lives: impl Fn(&str) -> bool) -> bool {
        let ports = asked(pod);
        let collides = |taken: &HostPort| ports.iter().any(|port| port.collides(taken));
        let mut others = self.taken.iter().filter(|(uid, _)| *uid != pod.uid());
        let free = !others.any(|(uid, taken)| taken.iter().any(collides) && lives(uid));
        if free && !ports.is_empty() {
            self.taken.insert(pod.uid().to_owned(), ports);
        }
        free
    }

    /// Gives back what a pod has.
    pub(crate) fn free(&mut self, uid: &str) {
        self.taken.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, address: &str, protocol: &str, port: u16) -> PodView {
        let ports = json!([{"containerPort": 80, "hostPort": port, "hostIP": address, "protocol": protocol}]);
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"containers": [{"name": "main", "image": "x", "ports": ports}]}}))
        .unwrap()
    }

    #[test]
    fn a_port_is_one_pods_by_address_protocol_and_number() {
        let mut ports = HostPorts::default();
        let lives = |_: &str| true;
        assert!(ports.take(&pod("first", "", "TCP", 80), lives));
        assert!(ports.take(&pod("first", "", "TCP", 80), lives), "its own");
        for (address, protocol, port, free) in [
            ("", "TCP", 80, false),
            ("0.0.0.0", "TCP", 80, false),
            ("127.0.0.1", "TCP", 80, false),
            ("", "UDP", 80, true),
            ("", "TCP", 81, true),
            ("", "TCP", 0, true),
        ] {
            let other = pod("other", address, protocol, port);
            assert_eq!(ports.take(&other, lives), free, "{address} {protocol} {port}");
            ports.free("other");
        }
        let over = |uid: &str| uid != "first";
        assert!(ports.take(&pod("one", "127.0.0.1", "TCP", 80), over), "who had it is over");
        ports.free("first");
        assert!(ports.take(&pod("two", "127.0.0.2", "TCP", 80), lives));
        assert!(!ports.take(&pod("all", "0.0.0.0", "TCP", 80), lives));
        ports.keep(&pod("before", "0.0.0.0", "TCP", 81));
        assert!(!ports.take(&pod("one more", "127.0.0.1", "TCP", 81), lives), "kept since before");
    }
}
