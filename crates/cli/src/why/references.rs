//! The ConfigMaps, Secrets, ServiceAccounts and claims that a pod cannot start without.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodSpec, Volume};
use serde_json::Value;

use super::containers;

/// An object that a pod needs in its namespace, and perhaps a key of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    /// `configmaps`, `secrets`, `serviceaccounts`, `persistentvolumeclaims`.
    pub(super) resource: &'static str,
    pub(super) name: String,
    /// The key that is wanted; empty: the object alone.
    pub(super) key: String,
    /// `volume "config"`, `container "app"`.
    pub(super) user: String,
}

/// Something that a pod needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) reference: Reference,
    /// The object is there, its key is not; holds the keys that it has.
    pub(super) keys: Option<Vec<String>>,
}

/// What a pod cannot start without, each once.
pub(super) fn of(pod: &Pod) -> Vec<Reference> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found = BTreeSet::new();
    if let Some(account) = spec.service_account_name.as_deref().filter(|name| !name.is_empty()) {
        found.insert(reference("serviceaccounts", account, "", "the pod".into()));
    }
    from_volumes(spec, &mut found);
    from_environment(pod, &mut found);
    found.into_iter().collect()
}

fn reference(resource: &'static str, name: &str, key: &str, user: String) -> Reference {
    Reference { resource, name: name.to_owned(), key: key.to_owned(), user }
}

fn from_volumes(spec: &PodSpec, found: &mut BTreeSet<Reference>) {
    for volume in spec.volumes.iter().flatten() {
        let user = format!("volume {:?}", volume.name);
        let mut need = |resource, name: &str, keys: Vec<&str>| {
            let keys = if keys.is_empty() { vec![""] } else { keys };
            found.extend(keys.into_iter().map(|key| reference(resource, name, key, user.clone())));
        };
        plain_volume(volume, &mut need);
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in sources {
            if let Some(map) = source.config_map.as_ref().filter(|map| map.optional != Some(true)) {
                need("configmaps", &map.name, keys_of(map.items.as_deref()));
            }
            if let Some(secret) = source.secret.as_ref().filter(|secret| secret.optional != Some(true)) {
                need("secrets", &secret.name, keys_of(secret.items.as_deref()));
            }
        }
    }
}

fn plain_volume<'a>(volume: &'a Volume, need: &mut impl FnMut(&'static str, &'a str, Vec<&'a str>)) {
    if let Some(map) = volume.config_map.as_ref().filter(|map| map.optional != Some(true)) {
        need("configmaps", &map.name, keys_of(map.items.as_deref()));
    }
    if let Some(secret) = volume.secret.as_ref().filter(|secret| secret.optional != Some(true)) {
        need("secrets", secret.secret_name.as_deref().unwrap_or_default(), keys_of(secret.items.as_deref()));
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        need("persistentvolumeclaims", &claim.claim_name, Vec::new());
    }
}

fn keys_of(items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>) -> Vec<&str> {
    items.unwrap_or_default().iter().map(|item| item.key.as_str()).collect()
}

fn from_environment(pod: &Pod, found: &mut BTreeSet<Reference>) {
    for container in containers(pod) {
        let user = || format!("container {:?}", container.name);
        for source in container.env_from.iter().flatten() {
            if let Some(map) = source.config_map_ref.as_ref().filter(|map| map.optional != Some(true)) {
                found.insert(reference("configmaps", &map.name, "", user()));
            }
            if let Some(secret) = source.secret_ref.as_ref().filter(|secret| secret.optional != Some(true)) {
                found.insert(reference("secrets", &secret.name, "", user()));
            }
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            if let Some(map) = source.config_map_key_ref.as_ref().filter(|map| map.optional != Some(true)) {
                found.insert(reference("configmaps", &map.name, &map.key, user()));
            }
            if let Some(secret) =
                source.secret_key_ref.as_ref().filter(|secret| secret.optional != Some(true))
            {
                found.insert(reference("secrets", &secret.name, &secret.key, user()));
            }
        }
    }
}

/// Whether what was found satisfies the reference.
pub(super) fn check(reference: &Reference, found: Option<&Value>) -> Option<Missing> {
    let Some(found) = found else {
        return Some(Missing { reference: reference.clone(), keys: None });
    };
    if reference.key.is_empty() {
        return None;
    }
    let maps = ["data", "binaryData"].into_iter().filter_map(|field| found[field].as_object());
    let keys: Vec<String> = maps.flat_map(|map| map.keys().cloned()).collect();
    let lacks = !keys.contains(&reference.key);
    lacks.then(|| Missing { reference: reference.clone(), keys: Some(keys) })
}
