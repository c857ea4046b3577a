//! Rights that a write to the status of a ResourceClaim needs beyond its verb: who allocates needs one on
//! `resourceclaims/binding`, a driver that tells of its devices one on `resourceclaims/driver` under its own name.
//! Source: `pkg/registry/resource/utils.go`, KEP-4817 (DRAResourceClaimGranularStatusAuthorization).

use std::collections::{BTreeSet, HashMap, HashSet};

use api::connect::User;
use serde_json::Value;

use super::{Asked, Pipeline};
use crate::authn::names::SERVICE_ACCOUNT_PREFIX;
use crate::authz::Attributes;
use crate::field::{FieldError, FieldErrors};
use crate::names::wrong_name;
use crate::strategy::NameRule;
use crate::tree;

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const STATUS: &str = "status";
const DEVICES: &str = "status.devices";

impl Pipeline {
    /// What of a claim's status its writer may not change.
    pub(super) async fn check_claim_rights(
        &self,
        asked: &Asked<'_>,
        new: &Value,
        old: &Value,
    ) -> FieldErrors {
        let of_claims = asked.stored.group == "resource.k8s.io" && asked.stored.plural == "resourceclaims";
        if !of_claims || asked.subresource != STATUS {
            return Vec::new();
        }
        let verb = asked.verb.as_str();
        let mut errors = Vec::new();
        if binds(new, old)
            && let Err(refused) = self.authorize(&attributes(asked, verb, "binding", ["", ""])).await
        {
            let detail = format!(
                "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", \
                 verb=\"{verb}\" permission: {}",
                refused.message
            );
            errors.push(FieldError::forbidden(STATUS, &detail));
        }
        let verbs = driver_verbs(asked.user, new, verb);
        for driver in changed_drivers(new, old) {
            if let Some(refused) = self.driver_refused(asked, &verbs, driver).await {
                let detail = format!(
                    "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: \
                     {refused}",
                    verbs.join(" ")
                );
                errors.push(FieldError::forbidden(DEVICES, &detail));
            }
        }
        errors
    }

    /// Why none of the verbs is allowed: what is said to the first.
    async fn driver_refused(&self, asked: &Asked<'_>, verbs: &[String], driver: &str) -> Option<String> {
        let mut first = None;
        for verb in verbs {
            let attributes = attributes(asked, verb, "driver", [asked.namespace, driver]);
            match self.authorize(&attributes).await {
                Ok(()) => return None,
                Err(refused) => first = first.or(Some(refused.message)),
            }
        }
        first
    }
}

fn attributes(asked: &Asked<'_>, verb: &str, subresource: &str, [namespace, name]: [&str; 2]) -> Attributes {
    Attributes {
        user: asked.user.clone(),
        verb: verb.into(),
        namespace: namespace.into(),
        group: asked.kind.group.to_string(),
        version: asked.kind.version.to_string(),
        resource: asked.kind.plural.to_string(),
        subresource: subresource.into(),
        name: name.into(),
        is_resource: true,
        ..Attributes::default()
    }
}

/// Whether what was allocated, or for whom, changes.
fn binds(new: &Value, old: &Value) -> bool {
    let part = |claim: &Value| tree::at(claim, &[STATUS, "allocation"]).clone();
    let users = |claim: &Value| tree::items(claim, &[STATUS, "reservedFor"]).to_vec();
    part(new) != part(old) || users(new) != users(old)
}

/// The drivers that something else is said of than before, in order. What is said of devices that the claim loses goes
/// with them: whoever may take them away speaks for no driver.
fn changed_drivers<'v>(new: &'v Value, old: &'v Value) -> BTreeSet<&'v str> {
    let id =
        |device: &'v Value| ["driver", "pool", "device", "shareID"].map(|field| tree::text(device, &[field]));
    let allocated = |claim: &'v Value| -> HashSet<[&'v str; 4]> {
        tree::items(claim, &[STATUS, "allocation", "devices", "results"]).iter().map(id).collect()
    };
    let (held, holds) = (allocated(old), allocated(new));
    let devices = |claim: &'v Value| tree::items(claim, &[STATUS, "devices"]).iter();
    let mut before: HashMap<[&str; 4], &Value> = devices(old).map(|device| (id(device), device)).collect();
    let mut changed = BTreeSet::new();
    for device in devices(new) {
        if before.remove(&id(device)) != Some(device) {
            changed.insert(tree::text(device, &["driver"]));
        }
    }
    let lost = |id: &[&str; 4]| held.contains(id) && !holds.contains(id);
    changed.extend(before.keys().filter(|id| !lost(id)).map(|[driver, ..]| driver));
    changed
}

/// The verbs of which a driver needs one: on the node of the devices another than elsewhere.
fn driver_verbs(user: &User, claim: &Value, verb: &str) -> Vec<String> {
    let elsewhere = format!("arbitrary-node:{verb}");
    if stands_at(user, allocated_node(claim)) {
        vec![format!("associated-node:{verb}"), elsewhere]
    } else {
        vec![elsewhere]
    }
}

/// The one node whose devices a claim got; empty where it is not a node alone.
fn allocated_node(claim: &Value) -> &str {
    let [term] = tree::items(claim, &[STATUS, "allocation", "nodeSelector", "nodeSelectorTerms"]) else {
        return "";
    };
    let ([], [field]) = (tree::items(term, &["matchExpressions"]), tree::items(term, &["matchFields"]))
    else {
        return "";
    };
    match tree::items(field, &["values"]) {
        [node] if field["key"] == "metadata.name" && field["operator"] == "In" => {
            node.as_str().unwrap_or_default()
        }
        _ => "",
    }
}

/// Whether a user is a service account whose token is bound to a node.
fn stands_at(user: &User, node: &str) -> bool {
    let is_account = user.name.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let is_account = is_account.is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let mut nodes = user.extra.iter().filter(|(key, _)| key == NODE_NAME).flat_map(|(_, values)| values);
    let alone = (nodes.next(), nodes.next());
    is_account
        && matches!(alone, (Some(own), None) if own == node)
        && wrong_name(NameRule::Subdomain, node).is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn allocated(node: Value) -> Value {
        let field = json!({ "key": "metadata.name", "operator": "In", "values": node });
        json!({ "status": { "allocation": { "nodeSelector": { "nodeSelectorTerms": [{ "matchFields": [field] }] } } } })
    }

    #[test]
    fn a_driver_at_its_node_has_a_verb_of_its_own() {
        let account = "system:serviceaccount:a:b";
        for (name, nodes, claim, own) in [
            (account, vec!["n"], allocated(json!(["n"])), true),
            (account, vec!["m"], allocated(json!(["n"])), false),
            (account, vec![], allocated(json!(["n"])), false),
            (account, vec!["n", "m"], allocated(json!(["n"])), false),
            (account, vec!["n"], allocated(json!(["n", "m"])), false),
            (account, vec!["n"], json!({}), false),
            ("somebody", vec!["n"], allocated(json!(["n"])), false),
        ] {
            let extra = vec![(NODE_NAME.to_owned(), nodes.iter().map(|node| (*node).to_owned()).collect())];
            let user = User { name: name.into(), extra, ..User::default() };
            let elsewhere = "arbitrary-node:patch".to_owned();
            let wanted =
                if own { vec!["associated-node:patch".to_owned(), elsewhere] } else { vec![elsewhere] };
            assert_eq!(driver_verbs(&user, &claim, "patch"), wanted, "{name} {nodes:?}");
        }
    }

    #[test]
    fn what_changed_is_told_by_driver() {
        let claim = |devices: Value| json!({ "status": { "devices": devices } });
        let device = |driver: &str, device: &str, data: i64| json!({ "driver": driver, "pool": "p", "device": device, "data": { "x": data } });
        let old = claim(json!([device("a", "x", 1), device("b", "x", 1), device("c", "x", 1)]));
        let new = claim(json!([device("a", "x", 1), device("b", "x", 2), device("d", "x", 1)]));
        assert_eq!(changed_drivers(&new, &old).into_iter().collect::<Vec<_>>(), ["b", "c", "d"]);
        assert!(changed_drivers(&old, &old).is_empty());
        let holding = |devices: &[&str]| {
            let results: Vec<Value> = devices.iter().map(|name| device("a", name, 0)).collect();
            json!({ "devices": { "results": results } })
        };
        for (before, after, left, drivers) in [
            (json!(["x"]), Value::Null, json!([]), vec![]),
            (json!(["x", "y"]), json!(["y"]), json!([device("a", "y", 1)]), vec![]),
            (json!(["x", "y"]), json!(["y"]), json!([]), vec!["a"]),
            (json!(["x", "y"]), json!(["x", "y"]), json!([]), vec!["a"]),
            (json!(["x"]), Value::Null, json!([device("a", "x", 2)]), vec!["a"]),
        ] {
            let names = |list: &Value| -> Vec<String> {
                list.as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|name| Some(name.as_str()?.to_owned()))
                    .collect()
            };
            let of = |list: &Value, devices: Value| {
                let names = names(list);
                let allocation = holding(&names.iter().map(String::as_str).collect::<Vec<_>>());
                json!({ "status": { "allocation": if list.is_null() { Value::Null } else { allocation }, "devices": devices } })
            };
            let said: Vec<Value> = names(&before).iter().map(|name| device("a", name, 1)).collect();
            let (old, new) = (of(&before, said.into()), of(&after, left));
            assert_eq!(changed_drivers(&new, &old).into_iter().collect::<Vec<_>>(), drivers, "{new}");
        }
        assert!(!binds(&new, &old));
        assert!(!binds(&json!({ "status": { "reservedFor": [] } }), &json!({})));
        assert!(binds(&json!({ "status": { "reservedFor": [{ "name": "p" }] } }), &json!({})));
    }
}
