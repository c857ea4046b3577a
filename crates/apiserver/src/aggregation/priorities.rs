//! In which order groups and versions are listed. Source: upstream's `DefaultGenericAPIServicePriorities`, the API server's
//! own additions to it, and `crdregistration`.

/// Groups in their order, with `groupPriorityMinimum`.
const GROUPS: &[(&str, i64)] = &[
    ("", 18_000),
    // Upstream's aggregator puts its own group in front of all others.
    ("apiregistration.k8s.io", 17_900),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("extensions", 17_150),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("internal.apiserver.k8s.io", 16_000),
    ("resource.k8s.io", 15_900),
    ("storagemigration.k8s.io", 15_800),
    ("metrics.k8s.io", METRICS),
];
/// metrics-server's own.
const METRICS: i64 = 100;
/// Groups of CustomResourceDefinitions.
const CUSTOM_GROUP: i64 = 1000;
/// Versions of CustomResourceDefinitions: one as good as the other, so that their names decide.
const CUSTOM_VERSION: i64 = 100;

/// Versions that differ from the rule.
const VERSIONS: &[(&str, &str, i64)] = &[
    ("", "v1", 1),
    ("events.k8s.io", "v1beta1", 5),
    ("autoscaling", "v2", 30),
    ("autoscaling", "v2beta2", 1),
    ("admissionregistration.k8s.io", "v1beta1", 12),
    ("coordination.k8s.io", "v1beta1", 13),
    ("discovery.k8s.io", "v1beta1", 12),
    ("flowcontrol.apiserver.k8s.io", "v1", 21),
    ("flowcontrol.apiserver.k8s.io", "v1beta3", 18),
    ("flowcontrol.apiserver.k8s.io", "v1beta2", 15),
    ("flowcontrol.apiserver.k8s.io", "v1beta1", 12),
    ("metrics.k8s.io", "v1beta1", 100),
];

/// `groupPriorityMinimum` of a group that is served here.
pub(crate) fn group_priority(group: &str) -> i64 {
    let known = GROUPS.iter().find(|(name, _)| *name == group);
    known.map_or(CUSTOM_GROUP, |(_, priority)| *priority)
}

/// `versionPriority` of a version that is served here.
pub(super) fn version_priority(group: &str, version: &str, custom: bool) -> i64 {
    if custom {
        return CUSTOM_VERSION;
    }
    let known = VERSIONS.iter().find(|(of, name, _)| *of == group && *name == version);
    let by_stage = match version {
        version if version.contains("alpha") => 1,
        version if version.contains("beta") => 9,
        _ => 15,
    };
    known.map_or(by_stage, |(_, _, priority)| *priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_upstreams() {
        assert_eq!((group_priority(""), version_priority("", "v1", false)), (18_000, 1));
        assert_eq!((group_priority("apps"), version_priority("apps", "v1", false)), (17_800, 15));
        assert!(version_priority("autoscaling", "v2", false) > version_priority("autoscaling", "v1", false));
        assert_eq!((group_priority("example.com"), version_priority("example.com", "v1", true)), (1000, 100));
    }

    #[test]
    fn every_group_that_is_built_in_has_its_place() {
        for group in api::catalog::Catalog::builtin().groups() {
            let known = GROUPS.iter().any(|(name, _)| *name == group.name);
            assert!(known, "{}", group.name);
        }
    }
}
