//! What extension API servers serve, among what is served here. Pure. Source: `kube-aggregator/pkg/apiserver`
//! (`handler_apis.go`, `handler_discovery.go`), `apiserver/pkg/endpoints/discovery/aggregated`.

use std::cmp::Ordering;

use api::catalog::version_order;
use serde_json::{Value, json};

use super::{Remote, Remotes, group_priority};
use crate::tree;

/// Groups with their versions, preferred first, as served here, with those of extension API servers in their places.
pub(crate) fn merged(mut local: Vec<(String, Vec<String>)>, remotes: &Remotes) -> Vec<(String, Vec<String>)> {
    for remote in remotes.all() {
        match local.iter_mut().find(|(group, _)| *group == remote.group) {
            Some((_, versions)) if versions.contains(&remote.version) => {}
            Some((_, versions)) => {
                // Those that are served here come first where nothing says otherwise.
                let before = |known: &String| match remotes.get(&remote.group, known) {
                    Some(other) => order(other, remote).is_le(),
                    None => true,
                };
                let at = versions.iter().take_while(|known| before(known)).count();
                versions.insert(at, remote.version.clone());
            }
            None => {
                let priority = priority_of(&remote.group, remotes);
                let at = local
                    .iter()
                    .position(|(group, _)| !group.is_empty() && priority_of(group, remotes) < priority)
                    .unwrap_or(local.len());
                local.insert(at, (remote.group.clone(), vec![remote.version.clone()]));
            }
        }
    }
    local
}

/// Higher priority first, then upstream's order of versions.
pub(super) fn order(one: &Remote, other: &Remote) -> Ordering {
    let by_name = || version_order(&other.version).cmp(&version_order(&one.version));
    other.version_priority.cmp(&one.version_priority).then_with(by_name)
}

/// The highest that anyone gives a group.
fn priority_of(group: &str, remotes: &Remotes) -> i64 {
    let given = remotes.all().filter(|remote| remote.group == group).map(|remote| remote.group_priority);
    given.max().unwrap_or_else(|| group_priority(group))
}

/// The entry of a version in aggregated discovery: what its server last said, stale if it cannot be used now.
pub(crate) fn version(remote: &Remote) -> Value {
    let resources = remote.resources();
    let resources = resources.map_or_else(Vec::new, |list| aggregated(&list, &remote.group, &remote.version));
    let freshness = if remote.is_available() { "Current" } else { "Stale" };
    json!({ "version": remote.version, "resources": resources, "freshness": freshness })
}

/// The resources of an APIResourceList in the form of aggregated discovery: subresources stand with their resource.
fn aggregated(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for resource in tree::items(list, &["resources"]) {
        let name = tree::text(resource, &["name"]);
        let given = |field: &'static str, default: &str| {
            let text = tree::text(resource, &[field]);
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        let kind = json!({
            "group": given("group", group), "version": given("version", version), "kind": given("kind", ""),
        });
        // What is no name would have no form in protobuf, and one server spoil the document of all.
        let names = |field: &'static str| -> Vec<&Value> {
            tree::items(resource, &[field]).iter().filter(|name| name.is_string()).collect()
        };
        let verbs = names("verbs");
        match name.split_once('/') {
            None => {
                let scope = match tree::at(resource, &["namespaced"]).as_bool() {
                    Some(true) => "Namespaced",
                    _ => "Cluster",
                };
                let mut entry = json!({
                    "resource": name, "responseKind": kind, "scope": scope,
                    "singularResource": given("singularName", ""), "verbs": verbs,
                });
                for field in ["shortNames", "categories"] {
                    if !names(field).is_empty() {
                        entry[field] = json!(names(field));
                    }
                }
                all.push(entry);
            }
            Some((of, subresource)) => {
                let entry = json!({ "subresource": subresource, "responseKind": kind, "verbs": verbs });
                let Some(parent) = all.iter_mut().find(|known| known["resource"] == of) else { continue };
                let list = tree::member(parent, "subresources");
                match list.as_array_mut() {
                    Some(list) => list.push(entry),
                    None => *list = json!([entry]),
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subresources_stand_with_their_resource() {
        let list = json!({ "resources": [
            { "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
              "verbs": ["get", 1, "list"], "shortNames": ["fl"], "categories": {} },
            { "name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"] },
            { "name": "none/status", "kind": "X", "verbs": ["get"] },
        ] });
        let kind = json!({ "group": "wardle.example.com", "version": "v1", "kind": "Flunder" });
        let expected = json!([{
            "resource": "flunders", "responseKind": kind, "scope": "Namespaced", "singularResource": "flunder",
            "verbs": ["get", "list"], "shortNames": ["fl"],
            "subresources": [{ "subresource": "status", "responseKind": kind, "verbs": ["get"] }],
        }]);
        assert_eq!(Value::from(aggregated(&list, "wardle.example.com", "v1")), expected);
        assert!(aggregated(&Value::Null, "a", "b").is_empty());
    }
}
