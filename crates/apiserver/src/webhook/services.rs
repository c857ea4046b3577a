//! From a Service to one of its ready endpoints: a webhook is reached without the service proxy, which need not run
//! where the API server does. Source: `apiserver/pkg/util/proxy.ResolveEndpoint`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::cache::Cache;
use crate::proxy::Egress;
use crate::proxy::locate::is_proxyable;
use crate::tree;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service that leads nowhere, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unresolved(String);

/// The Services and where their endpoints are.
pub(crate) struct Services {
    services: Arc<Cache>,
    slices: Arc<Cache>,
    egress: Arc<dyn Egress>,
    /// Counts the questions, so that endpoints take turns.
    turns: AtomicUsize,
}

impl Services {
    /// Services and EndpointSlices as these caches know them.
    pub(crate) fn new(services: Arc<Cache>, slices: Arc<Cache>, egress: Arc<dyn Egress>) -> Self {
        Self { services, slices, egress, turns: AtomicUsize::new(0) }
    }

    /// Where an endpoint's connections go.
    pub(super) fn stands_at(&self, endpoint: SocketAddr) -> SocketAddr {
        self.egress.stands_at(endpoint)
    }

    /// A ready endpoint behind a Service's port. What the caches do not know may have been written a moment ago: then they
    /// are brought up to date before they are believed.
    pub(crate) async fn endpoint(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, Unresolved> {
        if let Ok(known) = self.known(namespace, name, port) {
            return Ok(known);
        }
        for cache in [&self.services, &self.slices] {
            if let Err(error) = cache.make_current().await {
                tracing::debug!(%error, "a webhook's Service is looked up in what is known");
            }
        }
        self.known(namespace, name, port)
    }

    fn known(&self, namespace: &str, name: &str, port: u16) -> Result<SocketAddr, Unresolved> {
        let missing = || Unresolved(format!("service \"{name}\" not found"));
        let service = self.services.peek(namespace, name).ok_or_else(missing)?;
        let service: Value = service.decode().map_err(|error| Unresolved(error.to_string()))?;
        let is_its = |slice: &api::Object| slice.meta().labels.get(SERVICE_NAME).is_some_and(|of| of == name);
        let slices: Vec<Value> = self
            .slices
            .list(namespace, 0, is_its)
            .items
            .iter()
            .filter_map(|slice| slice.decode().ok())
            .collect();
        choose(&service, &slices, port, self.turns.fetch_add(1, Ordering::Relaxed))
    }
}

/// The endpoint whose turn it is, of the Service's first family of addresses if it has any. Pure.
fn choose(service: &Value, slices: &[Value], port: u16, turn: usize) -> Result<SocketAddr, Unresolved> {
    let name = tree::text(service, &["metadata", "name"]);
    let kind = tree::text(service, &["spec", "type"]);
    if !matches!(kind, "" | "ClusterIP" | "NodePort" | "LoadBalancer") {
        return Err(Unresolved(format!("unsupported service type \"{kind}\"")));
    }
    let ports = tree::items(service, &["spec", "ports"]);
    let known = ports.iter().find(|one| one["port"].as_u64() == Some(u64::from(port)));
    let known =
        known.ok_or_else(|| Unresolved(format!("no service port {port} found for service \"{name}\"")))?;
    let mut ready: Vec<SocketAddr> =
        slices.iter().flat_map(|slice| endpoints(slice, tree::text(known, &["name"]))).collect();
    let families = tree::items(service, &["spec", "ipFamilies"]);
    let preferred = families.first().and_then(Value::as_str);
    let is_preferred = |address: &SocketAddr| match preferred {
        Some("IPv4") => address.is_ipv4(),
        Some("IPv6") => address.is_ipv6(),
        _ => true,
    };
    if ready.iter().any(is_preferred) {
        ready.retain(is_preferred);
    }
    let none = || Unresolved(format!("no endpoints available for service \"{name}\""));
    ready.get(turn % ready.len().max(1)).copied().ok_or_else(none)
}

/// The ready endpoints of a slice behind the port of a name.
fn endpoints(slice: &Value, port: &str) -> Vec<SocketAddr> {
    let ports = tree::items(slice, &["ports"]);
    let found = ports.iter().find(|one| tree::text(one, &["name"]) == port);
    let number = found.and_then(|found| u16::try_from(found["port"].as_u64()?).ok());
    let Some(number) = number else { return Vec::new() };
    let ready = |endpoint: &&Value| tree::at(endpoint, &["conditions", "ready"]).as_bool() != Some(false);
    let address = |endpoint: &Value| {
        let address = tree::items(endpoint, &["addresses"]).first()?;
        let address = address.as_str()?.parse::<IpAddr>().ok();
        // Whoever writes endpoints does not make this server speak to its own host.
        address.filter(|address| is_proxyable(*address)).map(|address| SocketAddr::new(address, number))
    };
    tree::items(slice, &["endpoints"]).iter().filter(ready).filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_endpoints_take_turns() {
        let service = json!({ "metadata": { "name": "hook" }, "spec": {
            "type": "ClusterIP", "ports": [{ "name": "web", "port": 443 }], "ipFamilies": ["IPv4"] } });
        let slices = [
            json!({ "ports": [{ "name": "web", "port": 8443 }], "endpoints": [
                { "addresses": ["10.0.0.1"] },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
                { "addresses": ["10.0.0.3"], "conditions": { "ready": true } } ] }),
            json!({ "ports": [{ "name": "web", "port": 8443 }], "endpoints": [{ "addresses": ["fd00::1"] }] }),
            json!({ "ports": [{ "name": "other", "port": 1 }], "endpoints": [{ "addresses": ["10.0.0.4"] }] }),
            json!({ "ports": [{ "name": "web", "port": 6443 }], "endpoints": [
                { "addresses": ["127.0.0.1"] }, { "addresses": ["169.254.169.254"] } ] }),
        ];
        let chosen = |turn| choose(&service, &slices, 443, turn).unwrap().to_string();
        assert_eq!([chosen(0), chosen(1), chosen(2)], ["10.0.0.1:8443", "10.0.0.3:8443", "10.0.0.1:8443"]);
        let said = |service: &Value, slices: &[Value], port| {
            choose(service, slices, port, 0).unwrap_err().to_string()
        };
        assert_eq!(said(&service, &slices, 80), "no service port 80 found for service \"hook\"");
        assert_eq!(said(&service, &slices[2..], 443), "no endpoints available for service \"hook\"");
        let outside = json!({ "spec": { "type": "ExternalName" } });
        assert_eq!(said(&outside, &[], 443), "unsupported service type \"ExternalName\"");
    }
}
