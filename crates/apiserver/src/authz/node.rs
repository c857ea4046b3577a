//! What a node may see: the pods that are bound to it, and the Secrets and ConfigMaps that those refer to.
//! Source: `plugin/pkg/auth/authorizer/node`. Its graph is read off the pods' cache here: a node has few pods, and asks
//! once for each object that it then watches.

use serde_json::Value;

use super::Attributes;
use crate::admission::World;
use crate::authn::names;
use crate::tree;

/// Whether a request of the node `node` is within what it may see; `Err` says why not. What is not about the guarded
/// resources passes: the grants decide on it.
pub(super) fn check(attributes: &Attributes, node: &str, world: &dyn World) -> Result<(), String> {
    if !attributes.is_resource || !attributes.group.is_empty() {
        return lease(attributes, node);
    }
    let reads = matches!(attributes.verb.as_str(), "get" | "list" | "watch");
    match (attributes.resource.as_str(), attributes.subresource.as_str()) {
        ("secrets" | "configmaps", _) => {
            let name = named(attributes);
            let everybodys = attributes.resource == "configmaps"
                && attributes.namespace == names::CLUSTER_CONFIG.0
                && name == names::CLUSTER_CONFIG.1;
            if reads && !name.is_empty() && (everybodys || refers(attributes, node, name, world)) {
                return Ok(());
            }
            Err(format!("no pod of node '{node}' refers to this object"))
        }
        ("pods", "") if attributes.verb == "get" => {
            let is_own =
                bound(world, node, &attributes.namespace).any(|pod| pod.meta().name == attributes.name);
            if is_own { Ok(()) } else { Err(format!("the pod is not bound to node '{node}'")) }
        }
        ("pods", "") if reads => {
            if selected(&attributes.field_selector, "spec.nodeName") == Some(node) {
                return Ok(());
            }
            Err(format!("can only list/watch pods with spec.nodeName field selector '{node}'"))
        }
        _ => Ok(()),
    }
}

/// Nodes read each other's leases, and write their own, which are in one namespace; those elsewhere are elections.
fn lease(attributes: &Attributes, node: &str) -> Result<(), String> {
    let is_lease = attributes.group == "coordination.k8s.io" && attributes.resource == "leases";
    let reads = matches!(attributes.verb.as_str(), "get" | "list" | "watch");
    if is_lease && !reads && attributes.namespace != names::NODE_LEASES {
        return Err(format!("node '{node}' has its lease in {}", names::NODE_LEASES));
    }
    Ok(())
}

/// The name of the one object that is asked for; a list or watch names it in its selector.
fn named(attributes: &Attributes) -> &str {
    if attributes.name.is_empty() {
        selected(&attributes.field_selector, "metadata.name").unwrap_or_default()
    } else {
        &attributes.name
    }
}

/// The value that a field selector demands of a field.
fn selected<'a>(selector: &'a str, field: &str) -> Option<&'a str> {
    selector.split(',').find_map(|term| {
        let (name, value) = term.split_once('=')?;
        (name.trim() == field).then(|| value.trim_start_matches('=').trim())
    })
}

fn bound<'a>(
    world: &dyn World,
    node: &'a str,
    namespace: &str,
) -> impl Iterator<Item = std::sync::Arc<api::Object>> + use<'a> {
    // An empty namespace would mean all of them.
    let pods = if namespace.is_empty() { Vec::new() } else { world.all("", "pods", namespace) };
    pods.into_iter().filter(move |pod| pod.node_name() == Some(node))
}

fn refers(attributes: &Attributes, node: &str, name: &str, world: &dyn World) -> bool {
    bound(world, node, &attributes.namespace).any(|pod| {
        pod.decode::<Value>().is_ok_and(|pod| match attributes.resource.as_str() {
            "secrets" => secrets(&pod).any(|known| known == name),
            _ => config_maps(&pod).any(|known| known == name),
        })
    })
}

/// The sources of a pod's volumes: the volumes themselves, and the parts of projected ones.
fn volume_sources(pod: &Value) -> impl Iterator<Item = &Value> {
    tree::items(pod, &["spec", "volumes"])
        .iter()
        .flat_map(|volume| std::iter::once(volume).chain(tree::items(volume, &["projected", "sources"])))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| tree::items(pod, &["spec", list]))
}

/// The sources of a container's environment: whole objects, and single keys.
fn env_sources(container: &Value) -> impl Iterator<Item = &Value> {
    let single = tree::items(container, &["env"]).iter().map(|variable| tree::at(variable, &["valueFrom"]));
    tree::items(container, &["envFrom"]).iter().chain(single)
}

fn names_at<'a>(
    values: impl Iterator<Item = &'a Value>,
    paths: &'static [&'static [&'static str]],
) -> impl Iterator<Item = &'a str> {
    values
        .flat_map(move |value| paths.iter().map(move |path| tree::text(value, path)))
        .filter(|name| !name.is_empty())
}

fn secrets(pod: &Value) -> impl Iterator<Item = &str> {
    let of_volumes = names_at(volume_sources(pod), &[&["secret", "secretName"], &["secret", "name"]]);
    let of_env =
        names_at(containers(pod).flat_map(env_sources), &[&["secretRef", "name"], &["secretKeyRef", "name"]]);
    let of_pulls = names_at(tree::items(pod, &["spec", "imagePullSecrets"]).iter(), &[&["name"]]);
    of_volumes.chain(of_env).chain(of_pulls)
}

fn config_maps(pod: &Value) -> impl Iterator<Item = &str> {
    let of_volumes = names_at(volume_sources(pod), &[&["configMap", "name"]]);
    let of_env = names_at(
        containers(pod).flat_map(env_sources),
        &[&["configMapRef", "name"], &["configMapKeyRef", "name"]],
    );
    of_volumes.chain(of_env)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_refers_to_an_object_counts() {
        let pod = json!({ "spec": {
            "volumes": [
                { "name": "a", "secret": { "secretName": "s-volume" } },
                { "name": "b", "configMap": { "name": "c-volume" } },
                { "name": "c", "projected": { "sources": [
                    { "secret": { "name": "s-projected" } }, { "configMap": { "name": "c-projected" } },
                ] } },
            ],
            "imagePullSecrets": [{ "name": "s-pull" }],
            "initContainers": [{ "env": [{ "valueFrom": { "secretKeyRef": { "name": "s-key", "key": "k" } } }] }],
            "containers": [{
                "envFrom": [{ "secretRef": { "name": "s-env" } }, { "configMapRef": { "name": "c-env" } }],
                "env": [{ "name": "plain", "value": "x" },
                        { "valueFrom": { "configMapKeyRef": { "name": "c-key", "key": "k" } } }],
            }],
        } });
        let mut found: Vec<_> = secrets(&pod).collect();
        found.sort_unstable();
        assert_eq!(found, ["s-env", "s-key", "s-projected", "s-pull", "s-volume"]);
        let mut found: Vec<_> = config_maps(&pod).collect();
        found.sort_unstable();
        assert_eq!(found, ["c-env", "c-key", "c-projected", "c-volume"]);
    }

    #[test]
    fn selectors_are_read() {
        assert_eq!(selected("spec.nodeName=n1", "spec.nodeName"), Some("n1"));
        assert_eq!(selected("a=b,metadata.name==x", "metadata.name"), Some("x"));
        assert_eq!(selected("metadata.name!=x", "metadata.name"), None);
        assert_eq!(selected("", "metadata.name"), None);
    }
}
