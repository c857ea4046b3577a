//! What a node may see and change: itself, the pods that are bound to it, and what those refer to.
//! Source: `plugin/pkg/auth/authorizer/node`. Its graph is read off the pods' cache here: a node has few pods, and asks
//! once for each object that it then watches.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use api::Object;
use serde_json::Value;

use super::Attributes;
use super::rbac::Rule;
use crate::admission::World;
use crate::authn::names;
use crate::selection::selected;
use crate::tree;

/// Rules that Skiff's nodes need beyond those of upstream's role `system:node`: every host routes to the pods of the
/// others and balances Services by itself, and its lease says how far its data path has come.
const SKIFFS_OWN: [(&[&str], &str, &[&str]); 7] = [
    // By their names only ([`check`]): a node watches what its pods wait for and asks for nothing again and again.
    (&["list", "watch"], "", &["persistentvolumeclaims", "persistentvolumes"]),
    (&["list", "watch"], "storage.k8s.io", &["volumeattachments"]),
    (&["list", "watch"], "", &["endpoints", "namespaces"]),
    (&["get"], "", &["namespaces"]),
    (READ, "discovery.k8s.io", &["endpointslices"]),
    (&["create", "update", "patch"], "events.k8s.io", &["events"]),
    (&["list", "watch"], "coordination.k8s.io", &["leases"]),
];
const READ: &[&str] = &["get", "list", "watch"];

/// The rules of nodes: those of the role, and Skiff's own.
pub(super) fn rules(role: &[Rule]) -> Vec<Rule> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let own = SKIFFS_OWN.iter().map(|(verbs, group, resources)| Rule {
        verbs: owned(verbs),
        api_groups: owned(&[group]),
        resources: owned(resources),
        ..Rule::default()
    });
    role.iter().cloned().chain(own).collect()
}

/// Whether a request concerns the node `node`; `Err` says why not, in upstream's words where upstream has some. What is
/// not about the guarded resources passes: the rules decide on it.
pub(super) fn check(asked: &Attributes, node: &str, world: &dyn World) -> Result<(), String> {
    if !asked.is_resource {
        return Ok(());
    }
    let reads = READ.contains(&asked.verb.as_str());
    let ask = Ask { asked, node, world };
    match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        ("", "secrets" | "configmaps", "") if reads => ask.referred(),
        ("", "secrets" | "configmaps", "") => Err("can only read resources of this type".to_owned()),
        ("", "secrets" | "configmaps", _) => Err("cannot read subresource".to_owned()),
        ("", "persistentvolumeclaims", "status") if matches!(asked.verb.as_str(), "update" | "patch") => {
            ask.referred()
        }
        ("", "persistentvolumeclaims" | "persistentvolumes", "")
        | ("storage.k8s.io", "volumeattachments", "") => ask.reads_referred(),
        ("resource.k8s.io", "resourceclaims", "") | ("", "serviceaccounts", "") => ask.gets_referred(),
        ("", "serviceaccounts", "token") if asked.verb == "create" => ask.referred(),
        ("", "serviceaccounts", "token") => {
            Err("can only create tokens for individual service accounts".to_owned())
        }
        ("", "pods", "") if reads => ask.pods(),
        // Pods that are created and deleted: admission (NodeRestriction) holds the node to mirrors, and to its own.
        ("", "nodes", _) if !reads && asked.verb != "create" => ask.own("node"),
        ("coordination.k8s.io", "leases", _) if !reads => {
            if asked.namespace != names::NODE_LEASES {
                let place = names::NODE_LEASES;
                return Err(format!("can only access leases in the \"{place}\" system namespace"));
            }
            if asked.verb == "create" { Ok(()) } else { ask.own("node lease") }
        }
        ("storage.k8s.io", "csinodes", "") if asked.verb == "create" => Ok(()),
        ("storage.k8s.io", "csinodes", "") => ask.own("CSINode"),
        ("storage.k8s.io", "csinodes", _) => Err("cannot authorize CSINode subresources".to_owned()),
        ("resource.k8s.io", "resourceslices", "") => ask.slices(),
        // What a node may ask for in the name of a pod is admission's to say (NodeRestriction).
        ("certificates.k8s.io", "podcertificaterequests", "") if asked.verb == "create" => Ok(()),
        ("certificates.k8s.io", "podcertificaterequests", "") => ask.pod_certificates(),
        ("certificates.k8s.io", "podcertificaterequests", _) => {
            Err("cannot authorize PodCertificateRequest subresources".to_owned())
        }
        _ => Ok(()),
    }
}

/// A node's request.
struct Ask<'a> {
    asked: &'a Attributes,
    node: &'a str,
    world: &'a dyn World,
}

impl Ask<'_> {
    /// What is the node's own by its name.
    fn own(&self, what: &str) -> Result<(), String> {
        if self.asked.name == self.node {
            return Ok(());
        }
        Err(format!("can only access {what} with the same name as the requesting node"))
    }

    fn gets_referred(&self) -> Result<(), String> {
        if self.asked.verb != "get" {
            return Err("can only get individual resources of this type".to_owned());
        }
        self.referred()
    }

    /// One object, also in a list or watch that names it.
    fn reads_referred(&self) -> Result<(), String> {
        let Attributes { verb, name, field_selector, .. } = self.asked;
        let follows = matches!(verb.as_str(), "list" | "watch");
        if follows && selected(field_selector, "metadata.name") == Some(name) {
            return self.referred();
        }
        self.gets_referred()
    }

    fn pods(&self) -> Result<(), String> {
        let Self { asked, node, world } = self;
        if asked.verb == "get" {
            let is_own =
                bound(*world, node, &asked.namespace).iter().any(|pod| pod.meta().name == asked.name);
            return if is_own { Ok(()) } else { Err(self.unrelated()) };
        }
        if selected(&asked.field_selector, "spec.nodeName") == Some(*node) {
            return Ok(());
        }
        Err(format!("can only list/watch pods with spec.nodeName field selector '{node}'"))
    }

    fn slices(&self) -> Result<(), String> {
        let Self { asked, node, .. } = self;
        let many = matches!(asked.verb.as_str(), "list" | "watch" | "deletecollection");
        if many && selected(&asked.field_selector, "spec.nodeName") != Some(*node) {
            let verb = &asked.verb;
            return Err(format!("can only {verb} resourceslices with spec.nodeName field selector '{node}'"));
        }
        Ok(())
    }

    /// Requests that name the node: one, or in a list or watch all of them.
    fn pod_certificates(&self) -> Result<(), String> {
        let many = matches!(self.asked.verb.as_str(), "list" | "watch");
        if many && selected(&self.asked.field_selector, "spec.nodeName") == Some(self.node) {
            return Ok(());
        }
        self.reads_referred()
    }

    /// What a pod of the node refers to.
    fn referred(&self) -> Result<(), String> {
        let asked = self.asked;
        let of_cluster = matches!(asked.resource.as_str(), "persistentvolumes" | "volumeattachments");
        if asked.namespace.is_empty() && !of_cluster {
            return Err("can only read namespaced object of this type".to_owned());
        }
        if asked.name.is_empty() {
            return Err("No Object name found".to_owned());
        }
        let everybodys =
            asked.resource == "configmaps" && (&*asked.namespace, &*asked.name) == names::CLUSTER_CONFIG;
        if everybodys || refers(asked, self.node, self.world) { Ok(()) } else { Err(self.unrelated()) }
    }

    fn unrelated(&self) -> String {
        format!("no relationship found between node '{}' and this object", self.node)
    }
}

/// The node's pods in a namespace (empty: in all of them).
fn bound(world: &dyn World, node: &str, namespace: &str) -> Vec<Arc<Object>> {
    let mut pods = world.all("", "pods", namespace);
    pods.retain(|pod| pod.node_name() == Some(node));
    pods
}

fn refers(asked: &Attributes, node: &str, world: &dyn World) -> bool {
    let name = asked.name.as_str();
    let by_pods = |named: &dyn Fn(&Value) -> bool| {
        bound(world, node, &asked.namespace)
            .iter()
            .any(|pod| pod.decode::<Value>().is_ok_and(|pod| named(&pod)))
    };
    match asked.resource.as_str() {
        "secrets" => {
            by_pods(&|pod| secrets(pod).any(|known| known == name))
                || serves_a_volume(world, node, &asked.namespace, name)
        }
        "configmaps" => by_pods(&|pod| config_maps(pod).any(|known| known == name)),
        "serviceaccounts" => by_pods(&|pod| tree::text(pod, &["spec", "serviceAccountName"]) == name),
        "persistentvolumeclaims" => by_pods(&|pod| claims(pod).any(|known| known == name)),
        "resourceclaims" => by_pods(&|pod| resource_claims(pod).any(|known| known == name)),
        "persistentvolumes" => volume_of(world, name).is_some_and(|(namespace, claim)| {
            let of_claim = Attributes {
                resource: "persistentvolumeclaims".into(),
                namespace,
                name: claim,
                ..Attributes::default()
            };
            refers(&of_claim, node, world)
        }),
        "volumeattachments" => named(world, "storage.k8s.io", "volumeattachments", name)
            .is_some_and(|attachment| tree::text(&attachment, &["spec", "nodeName"]) == node),
        "podcertificaterequests" => {
            let requests = world.all("certificates.k8s.io", "podcertificaterequests", &asked.namespace);
            let request = requests.iter().find(|request| request.meta().name == name);
            request.is_some_and(|request| request.node_name() == Some(node))
        }
        _ => false,
    }
}

/// Whether a volume that is claimed by a pod of the node has this Secret for its driver.
/// Source: `VisitPVSecretNames`, what the kubelet may see of it.
fn serves_a_volume(world: &dyn World, node: &str, namespace: &str, name: &str) -> bool {
    let pods = bound(world, node, "");
    let pods =
        pods.iter().filter_map(|pod| Some((pod.meta().namespace.clone(), pod.decode::<Value>().ok()?)));
    let mut claimed = BTreeSet::new();
    for (of, pod) in pods {
        claimed.extend(claims(&pod).map(|claim| (of.clone(), claim.into_owned())));
    }
    claimed.iter().any(|(of, claim)| {
        let Some(volume) = bound_volume(world, of, claim) else { return false };
        volume_secrets(&volume).any(|(place, known)| {
            let place = if place.is_empty() { of.as_str() } else { place };
            known == name && place == namespace
        })
    })
}

/// The volume that a claim names, and that names the claim.
fn bound_volume(world: &dyn World, namespace: &str, name: &str) -> Option<Value> {
    let claims = world.all("", "persistentvolumeclaims", namespace);
    let claim: Value = claims.iter().find(|claim| claim.meta().name == name)?.decode().ok()?;
    let volume = named(world, "", "persistentvolumes", tree::text(&claim, &["spec", "volumeName"]))?;
    let held = tree::at(&volume, &["spec", "claimRef"]);
    (tree::text(held, &["namespace"]) == namespace && tree::text(held, &["name"]) == name).then_some(volume)
}

/// Namespaces (empty: the claim's) and names of the Secrets that a volume's driver is given on a node.
fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    let references = VOLUME_SECRETS.iter().map(|path| tree::at(tree::at(volume, &["spec"]), path));
    let named = references.map(|held| (tree::text(held, &["namespace"]), tree::text(held, &["name"])));
    let azure = tree::at(volume, &["spec", "azureFile"]);
    let azure = (tree::text(azure, &["secretNamespace"]), tree::text(azure, &["secretName"]));
    named.chain([azure]).filter(|(_, name)| !name.is_empty())
}

/// Where a volume's specification refers to Secrets for a node; those of a driver's controller are none of its business.
const VOLUME_SECRETS: [&[&str]; 10] = [
    &["csi", "nodePublishSecretRef"],
    &["csi", "nodeStageSecretRef"],
    &["csi", "nodeExpandSecretRef"],
    &["cephfs", "secretRef"],
    &["cinder", "secretRef"],
    &["flexVolume", "secretRef"],
    &["iscsi", "secretRef"],
    &["rbd", "secretRef"],
    &["scaleIO", "secretRef"],
    &["storageos", "secretRef"],
];

/// Namespace and name of the claim that a volume is bound to.
fn volume_of(world: &dyn World, name: &str) -> Option<(String, String)> {
    let volume = named(world, "", "persistentvolumes", name)?;
    let claim = tree::at(&volume, &["spec", "claimRef"]);
    let part = |field: &str| tree::text(claim, &[field]).to_owned();
    Some((part("namespace"), part("name")))
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
}

/// An object of a resource without namespaces.
fn named(world: &dyn World, group: &str, resource: &str, name: &str) -> Option<Value> {
    world.all(group, resource, "").iter().find(|object| object.meta().name == name)?.decode().ok()
}

/// The claims of a pod's volumes; those of ephemeral volumes have names of pod and volume.
pub(crate) fn claims(pod: &Value) -> impl Iterator<Item = Cow<'_, str>> {
    let pod_name = tree::text(pod, &["metadata", "name"]);
    tree::items(pod, &["spec", "volumes"]).iter().filter_map(move |volume| {
        let claim = tree::text(volume, &["persistentVolumeClaim", "claimName"]);
        if !claim.is_empty() {
            return Some(Cow::Borrowed(claim));
        }
        let ephemeral = !tree::at(volume, &["ephemeral"]).is_null();
        ephemeral.then(|| Cow::Owned(format!("{pod_name}-{}", tree::text(volume, &["name"]))))
    })
}

pub(crate) fn resource_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let named = tree::items(pod, &["spec", "resourceClaims"]).iter();
    let made = tree::items(pod, &["status", "resourceClaimStatuses"]).iter();
    let extended = tree::at(pod, &["status", "extendedResourceClaimStatus"]);
    names_at(named.chain(made).chain([extended]), &[&["resourceClaimName"]])
}

/// The sources of a pod's volumes: the volumes themselves, and the parts of projected ones.
pub(crate) fn volume_sources(pod: &Value) -> impl Iterator<Item = &Value> {
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

pub(crate) fn secrets(pod: &Value) -> impl Iterator<Item = &str> {
    let of_volumes = names_at(
        volume_sources(pod),
        &[
            &["secret", "secretName"],
            &["secret", "name"],
            &["csi", "nodePublishSecretRef", "name"],
            &["cephfs", "secretRef", "name"],
            &["cinder", "secretRef", "name"],
            &["flexVolume", "secretRef", "name"],
            &["iscsi", "secretRef", "name"],
            &["rbd", "secretRef", "name"],
            &["scaleIO", "secretRef", "name"],
            &["storageos", "secretRef", "name"],
            &["azureFile", "secretName"],
        ],
    );
    let of_env =
        names_at(containers(pod).flat_map(env_sources), &[&["secretRef", "name"], &["secretKeyRef", "name"]]);
    let of_pulls = names_at(tree::items(pod, &["spec", "imagePullSecrets"]).iter(), &[&["name"]]);
    of_volumes.chain(of_env).chain(of_pulls)
}

pub(crate) fn config_maps(pod: &Value) -> impl Iterator<Item = &str> {
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
                { "name": "d", "csi": { "driver": "d", "nodePublishSecretRef": { "name": "s-driver" } } },
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
        assert_eq!(found, ["s-driver", "s-env", "s-key", "s-projected", "s-pull", "s-volume"]);
        let mut found: Vec<_> = config_maps(&pod).collect();
        found.sort_unstable();
        assert_eq!(found, ["c-env", "c-key", "c-projected", "c-volume"]);
        let pod = json!({
            "spec": { "resourceClaims": [{ "name": "a", "resourceClaimName": "r-named" },
                { "name": "b", "resourceClaimTemplateName": "t" }] },
            "status": { "resourceClaimStatuses": [{ "name": "b", "resourceClaimName": "r-made" }],
                "extendedResourceClaimStatus": { "resourceClaimName": "r-extended" } },
        });
        assert_eq!(resource_claims(&pod).collect::<Vec<_>>(), ["r-named", "r-made", "r-extended"]);
        assert_eq!(resource_claims(&json!({})).count(), 0);
    }
}
