//! Security contexts of pods and containers. Source: `core/validation/validation.go`.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use serde_json::json;

use crate::at::At;
use crate::volume_sources::descending;

const ID_MAX: i64 = i32::MAX as i64;
const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
const SYSCTL: &str = "must have at most 253 characters and match regex \
                      ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const SYSCTL_BYTES_MAX: usize = 253;
/// Of a profile on the node: a path, without the byte that ends it.
const APPARMOR_BYTES_MAX: usize = 4095;

/// What is wrong with a pod's security context; `spec` is the pod's.
pub(crate) fn validate_pod(spec: &At<'_>, errors: &mut FieldErrors) {
    let context = spec.get("securityContext");
    for id in ["fsGroup", "runAsUser", "runAsGroup"] {
        context.get(id).between(0, ID_MAX, errors);
    }
    context.each("supplementalGroups").for_each(|group| group.between(0, ID_MAX, errors));
    let mut seen: HashSet<&str> = HashSet::new();
    for sysctl in context.each("sysctls") {
        let name = sysctl.get("name");
        if name.present("", errors) {
            if !is_sysctl(name.text()) {
                errors.push(name.invalid(SYSCTL));
            } else if seen.contains(&name.text()) {
                errors.push(name.duplicate());
            }
            for (field, prefixes) in [
                ("hostNetwork", &["net."][..]),
                ("hostIPC", &["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]),
            ] {
                if spec.get(field).truth() && prefixes.iter().any(|prefix| name.text().starts_with(prefix)) {
                    errors.push(name.invalid(&format!("may not be specified when '{field}' is true")));
                }
            }
        }
        seen.insert(name.text());
    }
    context.get("fsGroupChangePolicy").one_of_if_set(&["Always", "OnRootMismatch"], errors);
    context.get("supplementalGroupsPolicy").one_of_if_set(&["Merge", "Strict"], errors);
    context.get("seLinuxChangePolicy").one_of_if_set(&["MountOption", "Recursive"], errors);
    profiles(&context, errors);
}

fn is_sysctl(name: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let segment = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && bytes.iter().all(|byte| plain(byte) || matches!(byte, b'-' | b'_'))
    };
    name.len() <= SYSCTL_BYTES_MAX && name.split(['.', '/']).all(segment)
}

/// What is wrong with a container's security context; `host_users`: whether it shares the host's user namespace.
pub(crate) fn validate_container(context: &At<'_>, host_users: bool, errors: &mut FieldErrors) {
    context.get("runAsUser").between(0, ID_MAX, errors);
    context.get("runAsGroup").between(0, ID_MAX, errors);
    let mount = context.get("procMount");
    mount.one_of_if_set(&["Default", "Unmasked"], errors);
    if host_users && mount.text() == "Unmasked" {
        errors.push(mount.invalid("`hostUsers` must be false to use `Unmasked`"));
    }
    if context.get("allowPrivilegeEscalation").value == &serde_json::Value::Bool(false) {
        if context.get("privileged").truth() {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(context.invalid(detail));
        }
        if context.down(&["capabilities", "add"]).texts().contains(&"CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(context.invalid(detail));
        }
    }
    profiles(context, errors);
}

/// A failure of which upstream shows all of the profile, by the names that it has in the program.
fn whole(kind: &At<'_>, local: &At<'_>, detail: &str) -> FieldError {
    let shown = format!("{{\"Type\":{},\"LocalhostProfile\":{}}}", json!(kind.text()), local.value);
    let message = format!("Invalid value: {shown}: {detail}");
    FieldError { reason: "FieldValueInvalid".into(), field: local.path.clone(), message }
}

fn profiles(context: &At<'_>, errors: &mut FieldErrors) {
    for (field, name) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = context.get(field);
        if !profile.is_set() {
            continue;
        }
        let (kind, local) = (profile.get("type"), profile.get("localhostProfile"));
        if kind.present(&format!("type is required when {field} is set"), errors) {
            kind.one_of(&PROFILES, errors);
        }
        let seccomp = name == "seccomp";
        if kind.text() != "Localhost" {
            if local.is_set() {
                let detail = format!("can only be set when {name} type is Localhost");
                errors.push(if seccomp { whole(&kind, &local, &detail) } else { local.invalid(&detail) });
            }
            continue;
        }
        if !local.is_set() || (!seccomp && local.text().is_empty()) {
            errors.push(local.required(&format!("must be set when {name} type is Localhost")));
        } else if seccomp {
            descending(&local, errors);
        } else {
            if local.text().trim() != local.text() {
                errors.push(local.invalid("must not be padded with whitespace"));
            }
            if local.text().len() > APPARMOR_BYTES_MAX {
                errors.push(local.too_long(APPARMOR_BYTES_MAX));
            }
        }
    }
}
