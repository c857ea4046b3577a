//! Resources that are computed when they are asked for and never stored: the health of the control plane's components
//! here, what nodes and pods use in [`super::metrics`].
//! Source: `pkg/registry/core/componentstatus`.

use std::sync::Arc;

use api::{Call, List, Object, Request, Response, Status};
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Pipeline;
use super::write::unsaved;
use crate::strategy::View as _;
use crate::tree;
use crate::words::{Kind, Selectors};

/// The components by upstream's names, and the Lease under which each runs where several servers are.
const ELECTED: [(&str, &str); 2] =
    [("controller-manager", "kube-controller-manager"), ("scheduler", "kube-scheduler")];

impl Pipeline {
    /// Answers a request for something computed; `None` if the request is for none.
    pub(super) async fn computed(&self, kind: &Kind, request: &Request) -> Option<Result<Response, Status>> {
        match (kind.group.as_ref(), kind.plural.as_ref()) {
            ("", "componentstatuses") => Some(self.component_statuses(kind, request).boxed().await),
            (super::metrics::GROUP, _) => Some(self.usage(kind, request).boxed().await),
            _ => None,
        }
    }

    async fn component_statuses(&self, kind: &Kind, request: &Request) -> Result<Response, Status> {
        let found = self.components().await?;
        match &request.call {
            Call::Get { .. } => {
                let named = found.into_iter().find(|object| object.meta().name == request.name);
                let object = named.ok_or_else(|| Status::not_found("", &kind.plural, &request.name))?;
                Ok(Response::Object { object, created: false, warnings: Vec::new() })
            }
            Call::List(options) => {
                let selectors = Selectors::parse(kind, &options.label_selector, &options.field_selector)?;
                let items = found.into_iter().filter(|object| selectors.matches(object)).collect();
                Ok(Response::List(List {
                    items,
                    revision: 0,
                    continue_token: String::new(),
                    remaining: None,
                }))
            }
            _ => Err(Status::internal("component statuses are only read")),
        }
    }

    async fn components(&self) -> Result<Vec<Arc<Object>>, Status> {
        let now = self.now();
        let mut found = Vec::new();
        for (name, lease) in ELECTED {
            let lease = self.peek("coordination.k8s.io", "leases", "kube-system", lease);
            let lease: Option<Value> = lease.and_then(|lease| lease.decode().ok());
            found.push((name, lease.and_then(|lease| expired(&lease, now))));
        }
        let store = self.store().current_revision().await;
        found.push(("etcd-0", store.err().map(|error| error.to_string())));
        found.iter().map(|(name, wrong)| unsaved(&status(name, wrong.as_deref()))).collect()
    }
}

/// Why the holder of a Lease does not run; `None`: it does. A component without a Lease runs in this process.
fn expired(lease: &Value, now: Timestamp) -> Option<String> {
    let renewed: Timestamp = tree::text(lease, &["spec", "renewTime"]).parse().ok()?;
    let seconds = tree::at(lease, &["spec", "leaseDurationSeconds"]).as_i64()?;
    let end = renewed.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    let holder = tree::text(lease, &["spec", "holderIdentity"]);
    (end < now).then(|| format!("the lease of \"{holder}\" ended at {end} and nobody took it"))
}

fn status(name: &str, wrong: Option<&str>) -> Value {
    let mut condition = json!({"type": "Healthy", "status": "True", "message": "ok"});
    if let Some(why) = wrong {
        condition = json!({"type": "Healthy", "status": "False", "message": why});
    }
    json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_nobody_renews_is_told() {
        let lease = json!({"spec": {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 15}});
        let at = |time: &str| expired(&lease, time.parse().expect("a time"));
        assert_eq!(at("2026-01-01T00:00:10Z"), None);
        assert!(at("2026-01-01T00:00:20Z").is_some_and(|why| why.contains("\"a\"")));
        assert_eq!(expired(&json!({"spec": {}}), Timestamp::UNIX_EPOCH), None);
        assert_eq!(status("x", Some("y"))["conditions"][0]["status"], "False");
    }
}
