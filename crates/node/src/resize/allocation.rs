//! Requests and limits that a pod was granted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use serde::{Deserialize, Serialize};

use crate::pod::PodView;

/// The amounts of a pod and of its containers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Allocation {
    /// By container name.
    containers: BTreeMap<String, ResourceRequirements>,
    /// Of the pod as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<ResourceRequirements>,
}

impl Allocation {
    /// What a pod asks for.
    pub(crate) fn of(pod: &PodView) -> Self {
        let spec = &pod.spec;
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let asked = |container: &Container| Some((container.name.clone(), container.resources.clone()?));
        Self { containers: containers.filter_map(asked).collect(), pod: spec.resources.clone() }
    }

    /// Puts what was granted in the place of what is asked for.
    pub(crate) fn apply(&self, spec: &mut PodSpec) {
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            container.resources = self.containers.get(&container.name).cloned();
        }
        spec.resources.clone_from(&self.pod);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn what_was_granted_takes_the_place_of_what_is_asked_for() {
        let of = |cpu: &str| {
            let sized = |name: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
            pod(json!({"containers": [sized("a"), {"name": "b"}], "initContainers": [sized("i")],
                "resources": {"limits": {"cpu": cpu}}}))
        };
        let (granted, mut wished) = (Allocation::of(&of("1")), of("2"));
        assert_ne!(granted, Allocation::of(&wished));
        granted.apply(&mut wished.spec);
        assert_eq!(wished.spec, of("1").spec);
    }
}
