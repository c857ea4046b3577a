//! Published ports: what a create request asks for, and how Docker shows what is published.

use std::collections::BTreeMap;

use engine_api::{Protocol, PublishedPort};
use serde_json::{Map, Value, json};

use crate::answer::Failure;
use crate::container_spec::{CreateRequest, is_connected};

/// The ports that a request asks for: `-p`, and with `-P` a free port for each one that the image or the request
/// exposes. A container without a network of its own publishes none, as Docker has it.
pub(crate) fn asked(request: &CreateRequest, exposed: &[String]) -> Result<Vec<PublishedPort>, Failure> {
    let host = &request.host_config;
    let mut ports = Vec::new();
    if !is_connected(host) {
        return Ok(ports);
    }
    for (inside, bindings) in &host.port_bindings {
        let (port, protocol) = exposed_port(inside)?;
        for binding in bindings.as_array().into_iter().flatten() {
            ports.push(binding_of(binding, port, protocol)?);
        }
    }
    if host.publish_all_ports {
        let own = request.exposed_ports.keys();
        for inside in exposed.iter().chain(own) {
            let (port, protocol) = exposed_port(inside)?;
            if !ports.iter().any(|known| (known.port, known.protocol) == (port, protocol)) {
                ports.push(PublishedPort { host_ip: None, host_port: 0, port, protocol });
            }
        }
    }
    Ok(ports)
}

/// `80/tcp`, `80`.
fn exposed_port(text: &str) -> Result<(u16, Protocol), Failure> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    match (port.parse(), protocol.parse()) {
        (Ok(port), Ok(protocol)) if port > 0 => Ok((port, protocol)),
        _ => Err(Failure::bad_request(format!("invalid port {text:?}: use 80 or 80/udp"))),
    }
}

fn binding_of(binding: &Value, port: u16, protocol: Protocol) -> Result<PublishedPort, Failure> {
    let text = |name: &str| binding[name].as_str().unwrap_or_default();
    let invalid =
        |what: &str, text: &str| Failure::bad_request(format!("invalid {what} {text:?} to publish"));
    let host_port = match text("HostPort") {
        "" => 0,
        text => text.parse().map_err(|_| invalid("host port", text))?,
    };
    let host_ip = match text("HostIp") {
        "" | "0.0.0.0" | "::" => None,
        text => Some(text.parse().map_err(|_| invalid("host address (IPv4)", text))?),
    };
    Ok(PublishedPort { host_ip, host_port, port, protocol })
}

fn host_ip(port: &PublishedPort) -> String {
    port.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string())
}

/// As the list of containers shows them.
pub(crate) fn summary(ports: &[PublishedPort]) -> Value {
    let entry = |port: &PublishedPort| {
        json!({
            "IP": host_ip(port), "PrivatePort": port.port, "PublicPort": port.host_port,
            "Type": port.protocol.to_string(),
        })
    };
    ports.iter().map(entry).collect()
}

/// As `NetworkSettings.Ports` shows them.
pub(crate) fn map(ports: &[PublishedPort]) -> Value {
    let mut by_port: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in ports {
        let binding = json!({ "HostIp": host_ip(port), "HostPort": port.host_port.to_string() });
        by_port.entry(format!("{}/{}", port.port, port.protocol)).or_default().push(binding);
    }
    Value::Object(by_port.into_iter().map(|(port, bindings)| (port, bindings.into())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: Value) -> Result<Vec<String>, Failure> {
        let request = json!({"Image": "x", "ExposedPorts": {"81/tcp": {}}, "HostConfig": host});
        let request: CreateRequest = serde_json::from_value(request).unwrap();
        let ports = asked(&request, &["80/tcp".to_owned(), "53/udp".to_owned()])?;
        Ok(ports.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn bindings_are_read_as_the_real_client_writes_them() {
        let bindings =
            json!({"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": ""}]});
        assert_eq!(
            of(json!({"PortBindings": bindings})).unwrap(),
            ["0.0.0.0:8080 80/tcp", "127.0.0.1:0 80/tcp"]
        );
        let all = json!({"PublishAllPorts": true, "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}});
        assert_eq!(of(all).unwrap(), ["0.0.0.0:8080 80/tcp", "0.0.0.0:0 53/udp", "0.0.0.0:0 81/tcp"]);
        assert!(of(json!({"NetworkMode": "host", "PortBindings": bindings})).unwrap().is_empty());
        for (inside, binding) in [
            ("http", json!({})),
            ("80/icmp", json!({})),
            ("80/tcp", json!({"HostPort": "http"})),
            ("80/tcp", json!({"HostPort": "80-90"})),
            ("80/tcp", json!({"HostIp": "::1"})),
        ] {
            assert!(of(json!({"PortBindings": {inside: [binding]}})).is_err(), "{inside} {binding}");
        }
    }

    #[test]
    fn ports_are_shown_as_docker_shows_them() {
        let ports = ["0.0.0.0:8080 80/tcp".parse().unwrap(), "127.0.0.1:8081 80/tcp".parse().unwrap()];
        assert_eq!(map(&ports)["80/tcp"][1], json!({"HostIp": "127.0.0.1", "HostPort": "8081"}));
        assert_eq!(summary(&ports)[0]["PublicPort"], 8080);
    }
}
