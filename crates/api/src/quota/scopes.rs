//! For which objects a quota is there. Source: `podMatchesScopeFunc`, `pvcMatchesScopeFunc`.

use serde_json::Value;

use super::pods::{is_best_effort, is_terminating};

/// How a scope's values are compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selector<'a> {
    operator: &'a str,
    values: &'a [Value],
}

impl Selector<'_> {
    /// Whether it selects something that has these names; none stands for an object that has no name of the kind.
    fn selects(&self, names: &[&str]) -> bool {
        let listed = names.iter().any(|name| self.values.iter().any(|value| value == name));
        match self.operator {
            "Exists" => !names.is_empty(),
            "DoesNotExist" => names.is_empty(),
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    }
}

/// The scopes of a quota, with their selectors.
pub(super) fn of_quota(quota: &Value) -> impl Iterator<Item = (&str, Selector<'_>)> {
    let spec = &quota["spec"];
    let plain = spec["scopes"].as_array().into_iter().flatten();
    let plain =
        plain.map(|scope| (scope.as_str().unwrap_or_default(), Selector { operator: "Exists", values: &[] }));
    let selected = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    plain.chain(selected.map(|one| {
        let operator = one["operator"].as_str().unwrap_or_default();
        let values = one["values"].as_array().map(Vec::as_slice).unwrap_or_default();
        (one["scopeName"].as_str().unwrap_or_default(), Selector { operator, values })
    }))
}

pub(super) fn of_pod(scope: &str, selector: Selector<'_>, pod: &Value) -> bool {
    match scope {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = pod["spec"]["priorityClassName"].as_str().filter(|class| !class.is_empty());
            selector.selects(class.as_slice())
        }
        "CrossNamespacePodAffinity" => reaches_out(pod),
        _ => false,
    }
}

pub(super) fn of_claim(scope: &str, selector: Selector<'_>, claim: &Value) -> bool {
    let classes = [
        &claim["spec"]["volumeAttributesClassName"],
        &claim["status"]["currentVolumeAttributesClassName"],
        &claim["status"]["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ];
    let classes: Vec<&str> =
        classes.iter().filter_map(|class| class.as_str()).filter(|class| !class.is_empty()).collect();
    scope == "VolumeAttributesClass" && selector.selects(&classes)
}

/// Whether a pod's affinity looks at pods of other namespaces.
fn reaches_out(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    let foreign = |term: &Value| {
        let named = term["namespaces"].as_array().is_some_and(|list| !list.is_empty());
        named || !term["namespaceSelector"].is_null()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let list = |field: &str| affinity[*kind][field].as_array().cloned().unwrap_or_default();
        list("requiredDuringSchedulingIgnoredDuringExecution").iter().any(foreign)
            || list("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| foreign(&weighted["podAffinityTerm"]))
    })
}
