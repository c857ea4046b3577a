//! Whether an extension API server can be used: the condition `Available` of its APIService. Pure.
//! Source: `kube-aggregator/pkg/controllers/status` (reasons and messages).

use serde_json::{Value, json};

use super::remote::ServiceRef;
use crate::proxy::locate::Endpoint;
use crate::tree;

/// The condition `Available`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) available: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    /// Served by this very server.
    pub(super) fn local() -> Self {
        Self { available: true, reason: "Local", message: "Local APIServices are always available".into() }
    }

    /// Of a group that is this server's own: whoever else says to serve it is not asked.
    pub(super) fn own(group: &str) -> Self {
        let message = format!(
            "group {group:?} is this API server's own: its requests are not passed on; remove spec.service"
        );
        Self::missing("GroupIsLocal", message)
    }

    /// Everything is as it should be.
    pub(super) fn passed() -> Self {
        Self { available: true, reason: "Passed", message: "all checks passed".into() }
    }

    /// Its discovery cannot be read.
    pub(super) fn failed(message: String) -> Self {
        Self { available: false, reason: "FailedDiscoveryCheck", message }
    }

    fn missing(reason: &'static str, message: String) -> Self {
        Self { available: false, reason, message }
    }

    /// The conditions with this one among them; `None` if it says nothing new.
    pub(super) fn among(&self, present: &[Value], now: &str) -> Option<Value> {
        let status = if self.available { "True" } else { "False" };
        let before = present.iter().find(|one| tree::text(one, &["type"]) == "Available");
        let same = |field: &str, value: &str| before.is_some_and(|one| tree::text(one, &[field]) == value);
        if same("status", status) && same("reason", self.reason) && same("message", &self.message) {
            return None;
        }
        let since = before.filter(|_| same("status", status));
        let since = since.map_or(now, |one| tree::text(one, &["lastTransitionTime"]));
        let condition = json!({
            "type": "Available", "status": status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": since,
        });
        let others = present.iter().filter(|one| tree::text(one, &["type"]) != "Available").cloned();
        Some(others.chain([condition]).collect())
    }
}

/// What is wrong with a Service before anybody asks it; `endpoints` are those of its port of a name.
pub(super) fn of_service(
    service: Option<&Value>,
    at: &ServiceRef,
    endpoints: impl FnOnce(&str) -> Vec<Endpoint>,
) -> Result<Vec<Endpoint>, Condition> {
    let (namespace, name) = (&at.namespace, &at.name);
    let Some(service) = service else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Err(Condition::missing("ServiceNotFound", message));
    };
    let ports = tree::items(service, &["spec", "ports"]);
    let port = ports.iter().find(|port| tree::at(port, &["port"]).as_i64() == Some(at.port));
    let Some(port) = port else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {}", at.port);
        return Err(Condition::missing("ServicePortError", message));
    };
    let port = tree::text(port, &["name"]);
    let found = endpoints(port);
    if found.is_empty() {
        let message = format!(
            "endpoints for service/{name} in {namespace:?} have no addresses with port name {port:?}"
        );
        return Err(Condition::missing("MissingEndpoints", message));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> ServiceRef {
        ServiceRef { namespace: "n".into(), name: "s".into(), port: 443 }
    }

    fn reason(service: Option<&Value>, endpoints: Vec<Endpoint>) -> (&'static str, String) {
        let wrong = of_service(service, &at(), |_| endpoints).unwrap_err();
        (wrong.reason, wrong.message)
    }

    #[test]
    fn what_is_missing_is_named_in_upstreams_words() {
        assert_eq!(reason(None, vec![]), ("ServiceNotFound", "service/s in \"n\" is not present".into()));
        let other = json!({ "spec": { "ports": [{ "port": 80 }] } });
        assert_eq!(reason(Some(&other), vec![]).0, "ServicePortError");
        let right = json!({ "spec": { "ports": [{ "port": 443, "name": "https" }] } });
        let message = "endpoints for service/s in \"n\" have no addresses with port name \"https\"";
        assert_eq!(reason(Some(&right), vec![]), ("MissingEndpoints", message.into()));
        let endpoint = Endpoint { address: "10.0.0.1:1".parse().unwrap(), pod: None };
        let asked = |port: &str| if port == "https" { vec![endpoint.clone()] } else { vec![] };
        assert_eq!(of_service(Some(&right), &at(), asked), Ok(vec![endpoint.clone()]));
    }

    #[test]
    fn a_condition_is_written_when_it_says_something_new() {
        let first = Condition::passed().among(&[], "t1").unwrap();
        let present = first.as_array().unwrap();
        assert_eq!(
            (&present[0]["status"], &present[0]["lastTransitionTime"]),
            (&json!("True"), &json!("t1"))
        );
        assert_eq!(Condition::passed().among(present, "t2"), None);
        let local = Condition::local().among(present, "t2").unwrap();
        assert_eq!(local[0]["lastTransitionTime"], "t1", "the status is the same");
        let failed = Condition::failed("x".into()).among(present, "t3").unwrap();
        assert_eq!((&failed[0]["status"], &failed[0]["lastTransitionTime"]), (&json!("False"), &json!("t3")));
    }
}
