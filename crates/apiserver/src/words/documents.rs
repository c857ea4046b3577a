//! Discovery documents. Source: `metav1.APIGroupList`, `apidiscovery.k8s.io/v2`, KEP-3352.

use serde_json::{Value, json};

use api::catalog::Catalog;

use super::Kind;
use crate::aggregation::{Remotes, discovery};

/// The groups and their versions, preferred first: those served here and those of extension API servers.
fn groups_of(catalog: &Catalog, remotes: &Remotes) -> Vec<(String, Vec<String>)> {
    let groups = catalog.groups().into_iter();
    let local = groups.map(|group| {
        (group.name.into_owned(), group.versions.iter().map(|version| version.to_string()).collect())
    });
    discovery::merged(local.collect(), remotes)
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `/`
pub(crate) fn root(catalog: &Catalog, remotes: &Remotes) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups_of(catalog, remotes).into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from),
    );
    json!({ "paths": paths })
}

/// `/api`; `address` is the server's, for clients of any network.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
    })
}

fn group_document(group: &str, versions: &[String]) -> Value {
    let entry = |version: &str| json!({ "groupVersion": api_version(group, version), "version": version });
    let versions: Vec<Value> = versions.iter().map(|version| entry(version)).collect();
    json!({ "name": group, "versions": versions, "preferredVersion": versions.first() })
}

/// `/apis`
pub(crate) fn groups(catalog: &Catalog, remotes: &Remotes) -> Value {
    let groups: Vec<Value> = groups_of(catalog, remotes)
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_document(&group, &versions))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/<group>`
pub(crate) fn group(catalog: &Catalog, remotes: &Remotes, name: &str) -> Option<Value> {
    let (group, versions) =
        groups_of(catalog, remotes).into_iter().find(|(group, _)| group == name && !name.is_empty())?;
    let mut document = group_document(&group, &versions);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

/// `/apis/<group>/<version>`
pub fn resources(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in rows_of(catalog, group, version) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        resources.push(resource);
        for subresource in &kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, subresource.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": subresource.kind, "verbs": subresource.verbs,
            });
            if (&subresource.group, &subresource.version) != (&kind.group, &kind.version) {
                entry["group"] = subresource.group.as_ref().into();
                entry["version"] = subresource.version.as_ref().into();
            }
            resources.push(entry);
        }
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = api_version(group, version);
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    }))
}

fn rows_of<'a>(catalog: &'a Catalog, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
    catalog.rows().filter(move |row| row.group == group && row.version == version).map(AsRef::as_ref)
}

/// `/api` and `/apis` in their aggregated form.
pub(crate) fn aggregated(catalog: &Catalog, remotes: &Remotes, core: bool) -> Value {
    let items: Vec<Value> = groups_of(catalog, remotes)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    if let Some(remote) = remotes.get(&group, version) {
                        return discovery::version(remote);
                    }
                    let resources: Vec<Value> =
                        rows_of(catalog, &group, version).map(aggregated_resource).collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({ "creationTimestamp": null })
            } else {
                json!({ "name": group, "creationTimestamp": null })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response = json!({ "group": kind.group, "version": kind.version, "kind": kind.kind });
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let mut resource = json!({
        "resource": kind.plural, "responseKind": response, "scope": scope, "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|subresource| {
            json!({
                "subresource": subresource.name, "verbs": subresource.verbs,
                "responseKind": {
                    "group": subresource.group, "version": subresource.version, "kind": subresource.kind,
                },
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}
