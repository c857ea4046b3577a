//! The cluster's zone as data: what each name and address means, kept up to date object by object.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use api::{Key, Object};
use serde::Deserialize;

/// One record's data; names are relative to the zone unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV: port and target, the target relative to the zone.
    Service(u16, String),
    /// CNAME to an absolute name.
    Alias(String),
    /// PTR to a name relative to the zone.
    Pointer(String),
    /// TXT.
    Text(String),
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing has this name.
    NoName,
    /// The name exists; these are all of its records, whatever their type.
    Records(Vec<Record>),
}

/// A projection of a Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    external_name: String,
    publish_not_ready_addresses: bool,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    protocol: String,
    port: u16,
}

/// A projection of an EndpointSlice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Slice {
    endpoints: Vec<Endpoint>,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    hostname: Option<String>,
    conditions: Conditions,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

impl ServiceSpec {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_ips.iter().filter_map(|ip| ip.parse().ok())
    }

    fn is_headless(&self) -> bool {
        self.kind != "ExternalName" && self.addresses().next().is_none()
    }
}

/// The zone.
#[derive(Debug, Default)]
pub struct Zone {
    services: HashMap<Key, ServiceSpec>,
    slices: HashMap<Key, Slice>,
    slices_of: HashMap<Key, BTreeSet<String>>,
    namespaces: BTreeSet<String>,
    owners: HashMap<IpAddr, Key>,
}

impl Zone {
    /// Whether there is such a namespace.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        if exists {
            self.namespaces.insert(name.to_owned());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// A Service as it is now; `None`: gone. What cannot be read is treated as gone.
    pub fn set_service(&mut self, key: &Key, object: Option<&Object>) {
        if let Some(old) = self.services.remove(key) {
            for ip in old.addresses() {
                self.owners.remove(&ip);
            }
        }
        let Some(service) = object.and_then(|object| object.decode::<Service>().ok()) else { return };
        for ip in service.spec.addresses() {
            self.owners.insert(ip, key.clone());
        }
        self.services.insert(key.clone(), service.spec);
    }

    /// An EndpointSlice of the Service `service` as it is now; `None`: gone.
    pub fn set_slice(&mut self, key: &Key, service: &str, object: Option<&Object>) {
        let service = Key::new(&*key.namespace, service);
        self.slices.remove(key);
        let names = self.slices_of.entry(service.clone()).or_default();
        names.remove(&key.name);
        if let Some(slice) = object.and_then(|object| object.decode::<Slice>().ok()) {
            names.insert(key.name.clone());
            self.slices.insert(key.clone(), slice);
        }
        if self.slices_of.get(&service).is_some_and(BTreeSet::is_empty) {
            self.slices_of.remove(&service);
        }
    }

    /// What a name within the zone means: its labels without the zone's own, lower case, the most specific first.
    pub fn lookup(&self, labels: &[&str]) -> Found {
        match labels {
            [] | ["svc" | "pod"] => Found::Records(Vec::new()),
            ["dns-version"] => Found::Records(vec![Record::Text("1.1.0".into())]),
            [namespace, "svc" | "pod"] => self.namespace(namespace),
            [name, namespace, "svc"] => self.service(&Key::new(*namespace, *name)),
            [host, name, namespace, "svc"] if !host.starts_with('_') => {
                self.host(&Key::new(*namespace, *name), host)
            }
            [protocol, name, namespace, "svc"] => self.protocol(&Key::new(*namespace, *name), protocol),
            [port, protocol, name, namespace, "svc"] => {
                self.port(&Key::new(*namespace, *name), port, protocol)
            }
            [address, namespace, "pod"] => match dashed(address) {
                Some(ip) if self.namespaces.contains(*namespace) => Found::Records(vec![Record::Address(ip)]),
                _ => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    /// What an address is called.
    pub fn reverse(&self, ip: IpAddr) -> Found {
        if let Some(key) = self.owners.get(&ip) {
            return Found::Records(vec![Record::Pointer(format!("{}.{}.svc", key.name, key.namespace))]);
        }
        // Endpoints have names of their own only where they are given one (StatefulSets).
        for (service, names) in &self.slices_of {
            let slices =
                names.iter().filter_map(|name| self.slices.get(&Key::new(&*service.namespace, name)));
            let endpoints = slices.flat_map(|slice| &slice.endpoints);
            for endpoint in endpoints.filter(|endpoint| endpoint.addresses.contains(&ip)) {
                if let Some(host) = &endpoint.hostname {
                    let name = format!("{host}.{}.{}.svc", service.name, service.namespace);
                    return Found::Records(vec![Record::Pointer(name)]);
                }
            }
        }
        Found::NoName
    }

    fn namespace(&self, namespace: &str) -> Found {
        if self.namespaces.contains(namespace) { Found::Records(Vec::new()) } else { Found::NoName }
    }

    fn endpoints<'a>(
        &'a self,
        key: &'a Key,
        service: &'a ServiceSpec,
    ) -> impl Iterator<Item = (&'a Slice, &'a Endpoint)> {
        let names = self.slices_of.get(key).into_iter().flatten();
        let slices = names.filter_map(|name| self.slices.get(&Key::new(&*key.namespace, name)));
        slices.flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint))).filter(
            |(_, endpoint)| service.publish_not_ready_addresses || endpoint.conditions.ready.unwrap_or(true),
        )
    }

    fn service(&self, key: &Key) -> Found {
        let Some(service) = self.services.get(key) else { return Found::NoName };
        if service.kind == "ExternalName" {
            return Found::Records(vec![Record::Alias(service.external_name.clone())]);
        }
        if !service.is_headless() {
            return Found::Records(service.addresses().map(Record::Address).collect());
        }
        let endpoints = self.endpoints(key, service);
        let records: BTreeSet<Record> = endpoints
            .flat_map(|(_, endpoint)| endpoint.addresses.iter().copied().map(Record::Address))
            .collect();
        if records.is_empty() { Found::NoName } else { Found::Records(records.into_iter().collect()) }
    }

    /// One endpoint of a headless Service, by its host name or its address with dashes.
    fn host(&self, key: &Key, host: &str) -> Found {
        let Some(service) = self.services.get(key).filter(|service| service.is_headless()) else {
            return Found::NoName;
        };
        let mut records = Vec::new();
        for (_, endpoint) in self.endpoints(key, service) {
            for ip in &endpoint.addresses {
                if host_of(endpoint, *ip) == host {
                    records.push(Record::Address(*ip));
                }
            }
        }
        if records.is_empty() { Found::NoName } else { Found::Records(records) }
    }

    /// `_tcp.name…` exists where the Service has such a port, and has no records of its own.
    fn protocol(&self, key: &Key, protocol: &str) -> Found {
        let wanted = |port: &Port| is_protocol(port, protocol);
        let known = self.services.get(key).is_some_and(|service| service.ports.iter().any(wanted));
        if known { Found::Records(Vec::new()) } else { Found::NoName }
    }

    fn port(&self, key: &Key, name: &str, protocol: &str) -> Found {
        let Some(service) = self.services.get(key) else { return Found::NoName };
        let Some(name) = name.strip_prefix('_') else { return Found::NoName };
        let wanted = |port: &&Port| port.name.as_deref() == Some(name) && is_protocol(port, protocol);
        let here = format!("{}.{}.svc", key.name, key.namespace);
        let mut records = BTreeSet::new();
        if service.is_headless() {
            for (slice, endpoint) in self.endpoints(key, service) {
                for port in slice.ports.iter().filter(wanted) {
                    let hosts = endpoint.addresses.iter().map(|ip| host_of(endpoint, *ip));
                    records.extend(hosts.map(|host| Record::Service(port.port, format!("{host}.{here}"))));
                }
            }
        } else {
            records.extend(
                service.ports.iter().filter(wanted).map(|port| Record::Service(port.port, here.clone())),
            );
        }
        if records.is_empty() { Found::NoName } else { Found::Records(records.into_iter().collect()) }
    }
}

fn is_protocol(port: &Port, label: &str) -> bool {
    label.strip_prefix('_').is_some_and(|label| port.protocol.eq_ignore_ascii_case(label))
}

fn host_of(endpoint: &Endpoint, ip: IpAddr) -> String {
    match &endpoint.hostname {
        Some(host) => host.to_ascii_lowercase(),
        None => ip.to_string().replace(['.', ':'], "-"),
    }
}

/// `10-1-2-3` as an address; IPv6 addresses have their colons as dashes.
fn dashed(text: &str) -> Option<IpAddr> {
    text.replace('-', ".").parse().ok().or_else(|| text.replace('-', ":").parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(value: Value) -> Object {
        Object::parse(value.to_string().into()).unwrap()
    }

    fn zone() -> Zone {
        let mut zone = Zone::default();
        zone.set_namespace("a", true);
        zone.set_namespace("empty", true);
        let web = object(
            json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"type": "ClusterIP", "clusterIPs": ["10.43.0.9"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}}),
        );
        zone.set_service(&web.key(), Some(&web));
        let db = object(
            json!({"metadata": {"name": "db", "namespace": "a"}, "spec": {"type": "ClusterIP", "clusterIPs": ["None"]}}),
        );
        zone.set_service(&db.key(), Some(&db));
        let slice = object(
            json!({"metadata": {"name": "db-1", "namespace": "a"}, "ports": [{"name": "sql", "protocol": "TCP", "port": 5432}],
            "endpoints": [{"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                          {"addresses": ["10.42.0.6"], "conditions": {"ready": false}}]}),
        );
        zone.set_slice(&slice.key(), "db", Some(&slice));
        let out = object(
            json!({"metadata": {"name": "out", "namespace": "a"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}),
        );
        zone.set_service(&out.key(), Some(&out));
        zone
    }

    fn ip(text: &str) -> Record {
        Record::Address(text.parse().unwrap())
    }

    #[test]
    fn services_have_their_names() {
        let zone = zone();
        assert_eq!(zone.lookup(&["web", "a", "svc"]), Found::Records(vec![ip("10.43.0.9")]));
        assert_eq!(zone.lookup(&["db", "a", "svc"]), Found::Records(vec![ip("10.42.0.5")]));
        assert_eq!(zone.lookup(&["db-0", "db", "a", "svc"]), Found::Records(vec![ip("10.42.0.5")]));
        assert_eq!(
            zone.lookup(&["out", "a", "svc"]),
            Found::Records(vec![Record::Alias("example.com".into())])
        );
        let srv = |port, target: &str| Found::Records(vec![Record::Service(port, target.into())]);
        assert_eq!(zone.lookup(&["_http", "_tcp", "web", "a", "svc"]), srv(80, "web.a.svc"));
        assert_eq!(zone.lookup(&["_sql", "_tcp", "db", "a", "svc"]), srv(5432, "db-0.db.a.svc"));
        assert_eq!(zone.lookup(&["10-42-0-7", "a", "pod"]), Found::Records(vec![ip("10.42.0.7")]));
        assert_eq!(zone.lookup(&["10-42-0-7", "empty", "pod"]), Found::Records(vec![ip("10.42.0.7")]));
        assert_eq!(zone.lookup(&["10-42-0-7", "b", "pod"]), Found::NoName);
        assert_eq!(
            zone.reverse("10.43.0.9".parse().unwrap()),
            Found::Records(vec![Record::Pointer("web.a.svc".into())])
        );
    }

    #[test]
    fn what_is_not_there_has_no_name_and_what_is_empty_has_no_records() {
        let mut zone = zone();
        for labels in [
            &["web", "b", "svc"][..],
            &["x", "web", "a", "svc"],
            &["b", "svc"],
            &["_x", "_tcp", "web", "a", "svc"],
            &["nonsense"],
        ] {
            assert_eq!(zone.lookup(labels), Found::NoName, "{labels:?}");
        }
        assert_eq!(zone.lookup(&["a", "svc"]), Found::Records(vec![]));
        zone.set_service(&Key::new("a", "web"), None);
        assert_eq!(zone.lookup(&["web", "a", "svc"]), Found::NoName);
        assert_eq!(zone.reverse("10.43.0.9".parse().unwrap()), Found::NoName);
    }
}
