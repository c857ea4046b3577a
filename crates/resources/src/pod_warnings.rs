//! What the writer of a pod or of a template should know though it is accepted. Source: `pkg/api/pod/warnings.go`.

use std::collections::HashSet;

use crate::at::At;

/// Volumes of a kind that went, and what upstream says of each.
const VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
/// Labels of nodes that were renamed. Source: `pkg/api/node/util.go`.
const NODE_LABELS: [(&str, &str); 5] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
];

/// The warnings about a pod's spec and metadata.
pub(crate) fn warnings(spec: &At<'_>, metadata: &At<'_>) -> Vec<String> {
    let mut all = Vec::new();
    let known = |key: &str| NODE_LABELS.iter().find(|(label, _)| *label == key).map(|(_, text)| *text);
    for (key, at) in spec.get("nodeSelector").entries() {
        all.extend(known(key).map(|text| format!("{}: {text}", at.path)));
    }
    for constraint in spec.each("topologySpreadConstraints") {
        let key = constraint.get("topologyKey");
        all.extend(known(key.text()).map(|text| format!("{}: {} is {text}", key.path, key.text())));
        if !constraint.has("labelSelector") {
            let path = constraint.child("labelSelector");
            all.push(format!("{path}: a null labelSelector results in matching no pod"));
        }
    }
    for (key, text) in ANNOTATIONS {
        if metadata.down(&["annotations", key]).is_set() {
            all.push(format!("{}[{key}]: {text}", metadata.child("annotations")));
        }
    }
    for volume in spec.each("volumes") {
        for (kind, text) in VOLUMES.iter().filter(|(kind, _)| volume.has(kind)) {
            all.push(format!("{}: {text}", volume.child(kind)));
        }
    }
    repeated(spec, "hostAliases", "ip", &mut all);
    repeated(spec, "imagePullSecrets", "name", &mut all);
    for secret in spec.each("imagePullSecrets").filter(|secret| secret.get("name").text().is_empty()) {
        all.push(format!("{}: invalid empty name \"\"", secret.child("name")));
    }
    for list in ["initContainers", "containers"] {
        spec.each(list).for_each(|container| of_container(&container, &mut all));
    }
    if spec.get("terminationGracePeriodSeconds").number() < 0 {
        let path = spec.child("terminationGracePeriodSeconds");
        all.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    all
}

fn repeated(spec: &At<'_>, list: &str, field: &str, all: &mut Vec<String>) {
    let mut seen: HashSet<&str> = HashSet::new();
    for item in spec.each(list).map(|item| item.get(field)) {
        if seen.contains(&item.text()) {
            all.push(format!("{}: duplicate {field} {:?}", item.path, item.text()));
        }
        seen.insert(item.text());
    }
}

fn of_container(container: &At<'_>, all: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        for resource in ["memory", "ephemeral-storage"] {
            let amount = container.down(&["resources", list, resource]);
            if let Some(quantity) = amount.quantity().filter(|quantity| quantity.milli_value() % 1000 != 0) {
                let field = format!("{}.{list}[{resource}]", container.child("resources"));
                let shown = quantity.to_string();
                all.push(format!("{field}: fractional byte value {shown:?} is invalid, must be an integer"));
            }
        }
    }
    let mut names: HashSet<&str> = HashSet::new();
    for variable in container.each("env") {
        let (name, value) = (variable.get("name").text(), variable.get("value").text());
        let itself = format!("$({name})");
        let extends = !variable.has("valueFrom") && value != itself && value.contains(&itself);
        if names.contains(&name) && !extends {
            let path = &variable.path;
            all.push(format!(
                "{path}: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
        names.insert(name);
    }
    let mut ports: Vec<At<'_>> = Vec::new();
    for port in container.each("ports") {
        let same = |other: &&At<'_>| {
            ["containerPort", "protocol"].iter().all(|part| other.get(part).value == port.get(part).value)
        };
        for other in ports.iter().filter(same) {
            let host = |at: &At<'_>| (at.get("hostIP").text().to_owned(), at.get("hostPort").number());
            if host(other) == host(&port) {
                all.push(format!("{}: duplicate port definition with {}", port.path, other.path));
            } else if host(other).1 == 0 || host(&port).1 == 0 {
                all.push(format!("{}: overlapping port definition with {}", port.path, other.path));
            }
        }
        ports.push(port);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_warns_under_its_path() {
        let spec = json!({ "nodeSelector": { "beta.kubernetes.io/os": "linux" }, "containers": [{ "name": "a",
            "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": "$(A):2" }, { "name": "A", "value": "3" }],
            "resources": { "limits": { "memory": "100m" } } }] });
        assert_eq!(
            warnings(&At::new(&spec, "spec.template.spec"), &At::new(&json!({}), "spec.template.metadata")),
            [
                "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" \
                 instead",
                "spec.template.spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, \
                 must be an integer",
                "spec.template.spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when \
                 using apply",
            ]
        );
    }
}
