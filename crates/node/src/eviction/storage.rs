//! Pods that hold more of the disk than they may: limits of volumes, of containers and of all of them together. Pure.
//! Source: `localStorageEviction` in `pkg/kubelet/eviction`.

use std::collections::BTreeMap;

use api::resources::Side;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::rank::PodUse;
use crate::pod::quantity::value;
use crate::pod::resources::{limit, sum};

const STORAGE: &str = "ephemeral-storage";

/// Whether there is anything that a pod may not exceed: only then its directories are walked.
pub(super) fn is_limited(spec: &PodSpec) -> bool {
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.empty_dir.as_ref());
    volumes.filter_map(|source| source.size_limit.as_ref()).any(|limit| value(limit) > 0)
        || sum(spec, Side::Limits).contains_key(STORAGE)
}

/// What a pod is told that holds too much. `volumes`: bytes in its `emptyDir`s, by name.
pub(super) fn excess(spec: &PodSpec, used: &PodUse, volumes: &BTreeMap<String, u64>) -> Option<String> {
    let beyond = |used: u64, limit: &Quantity| {
        let limit = value(limit);
        limit > 0 && u64::try_from(limit).is_ok_and(|limit| used > limit)
    };
    for volume in spec.volumes.iter().flatten() {
        let limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
        let (Some(limit), Some(used)) = (limit, volumes.get(&volume.name)) else { continue };
        if beyond(*used, limit) {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, limit.0
            ));
        }
    }
    let of_pod = sum(spec, Side::Limits).get(STORAGE).copied();
    if let Some(limit) = of_pod.filter(|limit| beyond(used.disk, &Quantity(limit.to_string()))) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    for container in &spec.containers {
        let Some(limit) = limit(container, STORAGE) else { continue };
        let used = used.containers.iter().find(|used| used.name == container.name);
        if used.is_some_and(|used| beyond(used.disk, limit)) {
            let name = &container.name;
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {:?}. ",
                limit.0
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::rank::ContainerUse;
    use super::*;

    #[test]
    fn who_holds_too_much_is_told_of_what() {
        let told = |pod: Value, disk: u64, of_container: u64, of_volume: u64| {
            let spec: PodSpec = serde_json::from_value(pod).unwrap();
            let container =
                ContainerUse { name: "a".to_owned(), disk: of_container, ..ContainerUse::default() };
            let used = PodUse { disk, containers: vec![container], ..PodUse::default() };
            let volumes = BTreeMap::from([("scratch".to_owned(), of_volume)]);
            assert!(is_limited(&spec));
            excess(&spec, &used, &volumes)
        };
        let volume = json!({ "containers": [{ "name": "a" }],
            "volumes": [{ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } }] });
        assert_eq!(told(volume.clone(), 0, 0, 1 << 20), None);
        let text = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ";
        assert_eq!(told(volume, 0, 0, (1 << 20) + 1).as_deref(), Some(text));
        let limits = json!({ "limits": { "ephemeral-storage": "1Mi" } });
        let two = json!({ "containers": [{ "name": "a", "resources": limits }, { "name": "b", "resources": limits }] });
        assert_eq!(told(two.clone(), 2 << 20, 1 << 20, 0), None);
        let text = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
        assert_eq!(told(two.clone(), (2 << 20) + 1, 0, 0).as_deref(), Some(text));
        let text = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
        assert_eq!(told(two, 2 << 20, (1 << 20) + 1, 0).as_deref(), Some(text));
        let free: PodSpec = serde_json::from_value(json!({ "containers": [{ "name": "a" }],
            "volumes": [{ "name": "scratch", "emptyDir": {} }] }))
        .unwrap();
        assert!(!is_limited(&free));
    }
}
