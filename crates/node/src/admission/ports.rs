//! Ports of the host that pods ask for.

use crate::pod::{ContainerKind, PodView};

/// The address that stands for all.
const ANY: &str = "0.0.0.0";

/// A port of the host, told apart as the scheduler tells them apart: what it puts on one node, the node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPort {
    address: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    pub(super) fn collides(&self, other: &Self) -> bool {
        let same_address = self.address == other.address || self.address == ANY || other.address == ANY;
        same_address && self.port == other.port && self.protocol == other.protocol
    }
}

/// The ports that a pod asks for, also those of a pod on the host's own network.
pub(super) fn of_host(pod: &PodView) -> Vec<HostPort> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ports(address: &str, protocol: &str, port: u16) -> Vec<HostPort> {
        let ports = json!([{"containerPort": 80, "hostPort": port, "hostIP": address, "protocol": protocol}]);
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p"},
            "spec": {"containers": [{"name": "main", "image": "x", "ports": ports}]}});
        of_host(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_port_is_told_apart_by_address_protocol_and_number() {
        let taken = ports("", "TCP", 80);
        for (address, protocol, port, free) in [
            ("", "TCP", 80, false),
            ("0.0.0.0", "TCP", 80, false),
            ("127.0.0.1", "TCP", 80, false),
            ("", "UDP", 80, true),
            ("", "TCP", 81, true),
            ("", "TCP", 0, true),
        ] {
            let asked = ports(address, protocol, port);
            let collides = asked.iter().any(|asked| asked.collides(&taken[0]));
            assert_eq!(!collides, free, "{address} {protocol} {port}");
        }
        let one = ports("127.0.0.1", "TCP", 80);
        assert!(!ports("127.0.0.2", "TCP", 80)[0].collides(&one[0]));
        assert!(ports("0.0.0.0", "TCP", 80)[0].collides(&one[0]));
    }
}
