//! What a pod may say that names its operating system: each has options that mean nothing to the other.
//! Source: `validateLinux`, `validateWindows` and `validateWindowsHostProcessPod` in `core/validation/validation.go`.

use apiserver::field::FieldErrors;

use crate::at::At;

const NOT_LINUX: &str = "windows options cannot be set for a linux pod";
const NOT_WINDOWS: &str = "cannot be set for a windows pod";
/// What a pod's security context does not say on Windows, before and after what the pod itself does not say.
const POD_CONTEXT: [&str; 2] = ["appArmorProfile", "seLinuxOptions"];
const POD_CONTEXT_MORE: [&str; 4] = ["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls"];
const POD_CONTEXT_LAST: [&str; 5] =
    ["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"];
const CONTAINER_CONTEXT: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// What is wrong with the spec of a pod of a known system.
pub(crate) fn validate(spec: &At<'_>, errors: &mut FieldErrors) {
    match spec.down(&["os", "name"]).text() {
        "linux" => linux(spec, errors),
        "windows" => windows(spec, errors),
        _ => {}
    }
}

fn contexts<'v>(spec: &At<'v>) -> impl Iterator<Item = At<'v>> + use<'v> {
    let each = ["initContainers", "containers", "ephemeralContainers"].map(|list| spec.each(list));
    each.into_iter().flatten().map(|container| container.get("securityContext"))
}

fn linux(spec: &At<'_>, errors: &mut FieldErrors) {
    for context in std::iter::once(spec.get("securityContext")).chain(contexts(spec)) {
        if context.has("windowsOptions") {
            errors.push(context.get("windowsOptions").forbidden(NOT_LINUX));
        }
    }
}

fn windows(spec: &At<'_>, errors: &mut FieldErrors) {
    let forbid = |at: At<'_>, errors: &mut FieldErrors| errors.push(at.forbidden(NOT_WINDOWS));
    let context = spec.get("securityContext");
    let set = |at: &At<'_>| at.is_set() && !(at.value.is_array() && at.is_empty());
    for field in POD_CONTEXT.map(|field| context.get(field)).into_iter().filter(At::is_set) {
        forbid(field, errors);
    }
    if spec.has("hostUsers") {
        forbid(spec.get("hostUsers"), errors);
    }
    for field in ["hostPID", "hostIPC"].map(|field| spec.get(field)).into_iter().filter(At::truth) {
        forbid(field, errors);
    }
    for field in POD_CONTEXT_MORE.map(|field| context.get(field)).into_iter().filter(set) {
        forbid(field, errors);
    }
    if spec.has("shareProcessNamespace") {
        forbid(spec.get("shareProcessNamespace"), errors);
    }
    for field in POD_CONTEXT_LAST.map(|field| context.get(field)).into_iter().filter(At::is_set) {
        forbid(field, errors);
    }
    for context in contexts(spec) {
        for field in CONTAINER_CONTEXT.map(|field| context.get(field)).into_iter().filter(At::is_set) {
            forbid(field, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fields(spec: &Value) -> Vec<String> {
        let mut errors = Vec::new();
        validate(&At::new(spec, "spec"), &mut errors);
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn options_are_those_of_the_system() {
        let mut spec = json!({
            "hostPID": true, "hostIPC": false, "shareProcessNamespace": false,
            "securityContext": { "windowsOptions": {}, "fsGroup": 1, "sysctls": [], "runAsUser": 1 },
            "containers": [{ "securityContext": { "windowsOptions": {}, "privileged": false } }],
            "initContainers": [{ "securityContext": { "capabilities": {} } }],
        });
        assert_eq!(fields(&spec), [""; 0]);
        spec["os"] = json!({ "name": "linux" });
        assert_eq!(
            fields(&spec),
            ["spec.securityContext.windowsOptions", "spec.containers[0].securityContext.windowsOptions"]
        );
        spec["os"] = json!({ "name": "windows" });
        assert_eq!(
            fields(&spec),
            [
                "spec.hostPID",
                "spec.securityContext.fsGroup",
                "spec.shareProcessNamespace",
                "spec.securityContext.runAsUser",
                "spec.initContainers[0].securityContext.capabilities",
                "spec.containers[0].securityContext.privileged",
            ]
        );
    }
}
