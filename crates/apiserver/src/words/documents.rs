//! Discovery documents. Source: `metav1.APIGroupList`, `apidiscovery.k8s.io/v2`, KEP-3352.

use serde_json::{Value, json};

use super::{Catalog, Kind};

/// The version of aggregated discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryForm {
    /// `v2`
    V2,
    /// `v2beta1`
    V2Beta1,
}

impl DiscoveryForm {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// The groups and their versions, preferred first, in the order of the rows.
fn groups_of(catalog: &Catalog) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in catalog.kinds() {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if versions.contains(&kind.version.as_str()) => {}
            Some((_, versions)) => versions.push(&kind.version),
            None => groups.push((&kind.group, vec![&kind.version])),
        }
    }
    groups
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `/`
pub fn root(catalog: &Catalog) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups_of(catalog).into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from),
    );
    json!({ "paths": paths })
}

/// `/api`
pub fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

fn group_document(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &str| json!({ "groupVersion": api_version(group, version), "version": version });
    let versions: Vec<Value> = versions.iter().map(|version| entry(version)).collect();
    json!({ "name": group, "versions": versions, "preferredVersion": versions.first() })
}

/// `/apis`
pub fn groups(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = groups_of(catalog)
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_document(group, &versions))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/<group>`
pub fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let (group, versions) =
        groups_of(catalog).into_iter().find(|(group, _)| *group == name && !name.is_empty())?;
    let mut document = group_document(group, &versions);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

/// `/apis/<group>/<version>`
pub fn resources(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in catalog.kinds().iter().filter(|kind| kind.group == group && kind.version == version) {
        let mut resource = json!({
            "name": kind.resource, "singularName": kind.singular(), "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": kind.verbs(),
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories().is_empty() {
            resource["categories"] = json!(kind.categories());
        }
        resources.push(resource);
        for subresource in &kind.subresources {
            let shape = subresource_kind(kind, subresource);
            let mut entry = json!({
                "name": format!("{}/{subresource}", kind.resource), "singularName": "",
                "namespaced": kind.namespaced, "kind": shape.2, "verbs": subresource_verbs(subresource),
            });
            if (shape.0, shape.1) != (kind.group.as_str(), kind.version.as_str()) {
                entry["group"] = shape.0.into();
                entry["version"] = shape.1.into();
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

fn subresource_kind<'a>(kind: &'a Kind, subresource: &str) -> (&'a str, &'a str, &'a str) {
    match subresource {
        "scale" => ("autoscaling", "v1", "Scale"),
        "binding" => ("", "v1", "Binding"),
        "eviction" => ("policy", "v1", "Eviction"),
        "token" => ("authentication.k8s.io", "v1", "TokenRequest"),
        "exec" => ("", "v1", "PodExecOptions"),
        "attach" => ("", "v1", "PodAttachOptions"),
        "portforward" => ("", "v1", "PodPortForwardOptions"),
        "proxy" => ("", "v1", "NodeProxyOptions"),
        _ => (&kind.group, &kind.version, &kind.kind),
    }
}

fn subresource_verbs(subresource: &str) -> &'static [&'static str] {
    match subresource {
        "status" | "scale" => &["get", "patch", "update"],
        "finalize" => &["update"],
        "log" => &["get"],
        "exec" | "attach" | "portforward" => &["create", "get"],
        "proxy" => &["create", "delete", "get", "patch", "update"],
        _ => &["create"],
    }
}

/// `/api` and `/apis` in their aggregated form.
pub fn aggregated(catalog: &Catalog, core: bool, form: DiscoveryForm) -> Value {
    let items: Vec<Value> = groups_of(catalog)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = catalog
                        .kinds()
                        .iter()
                        .filter(|kind| kind.group == group && kind.version == *version)
                        .map(|kind| aggregated_resource(kind))
                        .collect();
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
    let version = match form {
        DiscoveryForm::V2 => "v2",
        DiscoveryForm::V2Beta1 => "v2beta1",
    };
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response = json!({ "group": kind.group, "version": kind.version, "kind": kind.kind });
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let mut resource = json!({
        "resource": kind.resource, "responseKind": response, "scope": scope, "singularResource": kind.singular(),
        "verbs": kind.verbs(),
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories().is_empty() {
        resource["categories"] = json!(kind.categories());
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|name| {
            let (group, version, shape) = subresource_kind(kind, name);
            json!({
                "subresource": name, "verbs": subresource_verbs(name),
                "responseKind": { "group": group, "version": version, "kind": shape },
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

/// `/openapi/v2`
pub fn openapi_v2(_catalog: &Catalog) -> Value {
    json!({ "swagger": "2.0", "info": { "title": "Kubernetes", "version": "v1.37.0" }, "paths": {} })
}

/// `/openapi/v3`
pub fn openapi_v3_index(_catalog: &Catalog) -> Value {
    json!({ "paths": {} })
}

/// `/openapi/v3/<path>`
pub fn openapi_v3(_catalog: &Catalog, _path: &str) -> Option<Value> {
    None
}
