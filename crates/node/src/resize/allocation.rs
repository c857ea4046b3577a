//! Requests and limits that a pod was granted.

use std::collections::BTreeMap;
use std::io;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pod::{PodView, quantity};
use crate::volumes::PodDirectories;

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

    /// What an earlier run of the agent has granted; `None` where nothing was noted, or it cannot be read. Blocks.
    pub(crate) fn load(directories: &PodDirectories) -> Option<Self> {
        let text = std::fs::read(directories.allocation()).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(%error, "what a pod was granted is not readable"))
            .ok()
    }

    /// Notes what is granted, before anything goes by it. Blocks. Whoever kills the agent leaves the note; what a lost
    /// machine forgets is granted anew.
    pub(crate) fn save(&self, directories: &PodDirectories) -> io::Result<()> {
        std::fs::create_dir_all(directories.data())?;
        sys::files::write_atomic(&directories.allocation(), &serde_json::to_vec(self)?)
    }

    /// Whether a container has another amount of CPU in `other`.
    pub(crate) fn other_cpus(&self, other: &Self) -> bool {
        let cpu = |of: &Self, name: &str| -> Option<String> {
            let resources = of.containers.get(name)?;
            let amount = |list: &Option<BTreeMap<String, Quantity>>| {
                list.as_ref()?.get("cpu").map(|cpu| cpu.0.clone())
            };
            amount(&resources.requests).or_else(|| amount(&resources.limits))
        };
        let milli = |text: Option<String>| text.map_or(0, |text| quantity::milli(&Quantity(text)));
        let mut names = self.containers.keys().chain(other.containers.keys());
        names.any(|name| milli(cpu(self, name)) != milli(cpu(other, name)))
    }

    /// As [`Allocation::apply`], to a pod as it is written.
    pub(crate) fn apply_to(&self, pod: &mut Value) {
        let spec = &mut pod["spec"];
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                let granted = container["name"].as_str().and_then(|name| self.containers.get(name));
                container["resources"] = json!(granted);
            }
        }
        spec["resources"] = json!(self.pod);
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
        let mut written = json!({ "spec": of("2").spec });
        granted.apply_to(&mut written);
        assert_eq!(serde_json::from_value::<PodSpec>(written["spec"].take()).unwrap(), of("1").spec);
    }

    #[test]
    fn what_was_granted_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(root.path(), root.path(), "u1");
        assert_eq!(Allocation::load(&directories), None);
        let granted = Allocation::of(&pod(
            json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]}),
        ));
        granted.save(&directories).unwrap();
        assert_eq!(Allocation::load(&directories), Some(granted));
        std::fs::write(directories.allocation(), "{").unwrap();
        assert_eq!(Allocation::load(&directories), None);
    }
}
