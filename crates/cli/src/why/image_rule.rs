//! Which rule of `imagePullPolicy` applies to a container's image: the local one, or a registry is asked.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;
use serde::Serialize;

/// Who last wrote a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// `build`, `load`, `import`, `tag` or `commit` on this machine.
    Local,
    /// A registry.
    Registry,
}

/// How this machine's store knows a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It has it.
    Here(Origin),
    /// It has not.
    Absent,
}

/// The rule that applies to a container's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ImageRule {
    pub(super) container: String,
    pub(super) image: String,
    pub(super) rule: String,
}

/// The rule for a container. An image that is not in `places` lies on another node, whose store cannot be seen here.
pub(super) fn of(container: &Container, places: &BTreeMap<String, Place>) -> ImageRule {
    let image = container.image.clone().unwrap_or_default();
    let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let rule = rule(policy, places.get(&image).copied(), image.contains('@'));
    ImageRule { container: container.name.clone(), image, rule: format!("imagePullPolicy {policy}: {rule}") }
}

fn rule(policy: &str, place: Option<Place>, pinned: bool) -> &'static str {
    match (policy, place) {
        ("Never", Some(Place::Absent)) => {
            "it is not in Skiff's store, and no registry may be asked: it cannot start"
        }
        ("Never", _) => "the image in Skiff's store is used, no registry is asked",
        ("Always", Some(Place::Here(Origin::Local))) => {
            "the tag was built or loaded here, so its newest local version is used and no registry is asked"
        }
        (_, Some(Place::Here(Origin::Local))) => {
            "the tag was built or loaded here and is used, no registry is asked"
        }
        ("Always", Some(Place::Here(Origin::Registry))) if pinned => {
            "it is pinned by digest and in Skiff's store, so no registry is asked"
        }
        ("Always", Some(Place::Here(Origin::Registry))) => {
            "the tag came from a registry, which is asked for a newer version at each start"
        }
        (_, Some(Place::Here(Origin::Registry))) => {
            "the tag came from a registry, is in Skiff's store and is used as it is"
        }
        (_, Some(Place::Absent)) => "it is not in Skiff's store, so its registry is asked",
        ("Always", None) => "a registry is asked, unless the node built or loaded the tag itself",
        (_, None) => "a registry is asked only if the node's store does not have it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_says_whether_a_registry_is_asked() {
        let (local, registry) = (Some(Place::Here(Origin::Local)), Some(Place::Here(Origin::Registry)));
        for (policy, place, pinned, says) in [
            ("Always", local, false, "no registry is asked"),
            ("IfNotPresent", local, false, "no registry is asked"),
            ("Never", local, false, "no registry is asked"),
            ("Never", Some(Place::Absent), false, "cannot start"),
            ("Always", registry, false, "asked for a newer version"),
            ("Always", registry, true, "pinned by digest"),
            ("IfNotPresent", registry, false, "used as it is"),
            ("IfNotPresent", Some(Place::Absent), false, "its registry is asked"),
            ("Always", Some(Place::Absent), false, "its registry is asked"),
            ("Always", None, false, "unless the node built"),
        ] {
            let rule = rule(policy, place, pinned);
            assert!(rule.contains(says), "{policy} {place:?} {pinned}: {rule}");
        }
    }
}
