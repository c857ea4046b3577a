//! The checks of the baseline: known ways out of a container. Source: `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::checks::{Judgement, Pod, containers, finding, plural, quoted, security, setters, unless_mapped};
use crate::tree;

/// What container runtimes grant by default.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
/// Kernel parameters that concern the pod alone, with the 1.x since which they count as such.
const SYSCTLS: [(&str, u32); 14] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
    ("net.ipv4.tcp_slow_start_after_idle", 37),
    ("net.ipv4.tcp_notsent_lowat", 37),
];
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Whether a profile's type keeps containers in what the runtime or the administrator allows.
pub(super) fn is_profile(value: &Value) -> bool {
    matches!(value.as_str(), Some("RuntimeDefault" | "Localhost"))
}

fn annotations<'a>(pod: &Pod<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let all = tree::at(pod.metadata, &["annotations"]).as_object();
    all.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

pub(super) fn app_armor(pod: &Pod<'_>) -> Judgement {
    let mut values = BTreeSet::new();
    let mut bad = |holder: &Value| bad_profile(holder, "appArmorProfile", &mut values);
    let by_pod = bad(pod.spec);
    let names = pod.named(bad);
    let mut setters: Vec<String> = Vec::new();
    if by_pod {
        setters.push("pod".into());
    }
    if !names.is_empty() {
        setters.push(containers(&names));
    }
    let allowed = |value: &str| matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
    let mut annotated: Vec<String> = annotations(pod)
        .filter(|(key, value)| key.starts_with(APP_ARMOR) && !allowed(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotated.sort_unstable();
    let mut values: Vec<String> = values.into_iter().collect();
    if !annotated.is_empty() {
        setters.push(plural("annotation", "annotations", annotated.len()).into());
        values.extend(annotated);
    }
    if setters.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let detail =
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(values));
    finding(reason, detail)
}

/// Whether a holder of a security context names a profile that is not allowed; its type goes into `values`.
pub(super) fn bad_profile(holder: &Value, field: &str, values: &mut BTreeSet<String>) -> bool {
    let profile = security(holder, &[field]);
    let kind = tree::at(profile, &["type"]);
    let bad = !profile.is_null() && !is_profile(kind);
    if bad {
        values.insert(kind.as_str().unwrap_or_default().to_owned());
    }
    bad
}

pub(super) fn capabilities(pod: &Pod<'_>) -> Judgement {
    let mut added = BTreeSet::new();
    let names = pod.named(|one| adds(one, &CAPABILITIES, &mut added));
    let detail = format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&names),
        quoted(&added)
    );
    if names.is_empty() { None } else { finding("non-default capabilities", detail) }
}

/// Whether a container adds other capabilities than those; they go into `added`.
pub(super) fn adds(container: &Value, allowed: &[&str], added: &mut BTreeSet<String>) -> bool {
    let list = tree::items(security(container, &["capabilities"]), &["add"]);
    let other: Vec<&str> =
        list.iter().filter_map(Value::as_str).filter(|name| !allowed.contains(name)).collect();
    added.extend(other.iter().map(|name| (*name).to_owned()));
    !other.is_empty()
}

pub(super) fn host_namespaces(pod: &Pod<'_>) -> Judgement {
    let shares = |field: &&str| tree::at(pod.spec, &[field]).as_bool() == Some(true);
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| shares(field))
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() { None } else { finding("host namespaces", shared.join(", ")) }
}

pub(super) fn host_paths(pod: &Pod<'_>) -> Judgement {
    let volumes = tree::items(pod.spec, &["volumes"]).iter();
    let names: Vec<&str> = volumes
        .filter(|volume| !tree::at(volume, &["hostPath"]).is_null())
        .map(|volume| tree::text(volume, &["name"]))
        .collect();
    let detail = format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    if names.is_empty() { None } else { finding("hostPath volumes", detail) }
}

pub(super) fn host_ports(pod: &Pod<'_>) -> Judgement {
    let mut ports = BTreeSet::new();
    let names = pod.named(|one| {
        let bound = tree::items(one, &["ports"]).iter();
        let bound: Vec<i64> =
            bound.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0).collect();
        ports.extend(bound.iter().map(i64::to_string));
        !bound.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let (uses, word) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    finding("hostPort", format!("{} {uses} {word} {}", containers(&names), ports.join(", ")))
}

pub(super) fn probe_hosts(pod: &Pod<'_>) -> Judgement {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let mut hosts = BTreeSet::new();
    let names: BTreeSet<&str> = pod
        .named(|one| {
            let handlers = HANDLERS.iter().map(|path| tree::at(one, path));
            let named: Vec<&str> = handlers
                .flat_map(|handler| ["httpGet", "tcpSocket"].map(|way| tree::text(handler, &[way, "host"])))
                .filter(|host| !host.is_empty())
                .collect();
            hosts.extend(named.iter().map(|host| (*host).to_owned()));
            !named.is_empty()
        })
        .into_iter()
        .collect();
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let uses = plural("uses", "use", names.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    finding("probe or lifecycle host", format!("{} {uses} {word} {}", containers(&names), quoted(&hosts)))
}

pub(super) fn privileged(pod: &Pod<'_>) -> Judgement {
    let names = pod.named(|one| security(one, &["privileged"]).as_bool() == Some(true));
    let detail = format!("{} must not set securityContext.privileged=true", containers(&names));
    if names.is_empty() { None } else { finding("privileged", detail) }
}

pub(super) fn proc_mount(pod: &Pod<'_>) -> Judgement {
    let mut kinds = BTreeSet::new();
    let names = pod.named(|one| {
        let kind = security(one, &["procMount"]).as_str().filter(|kind| *kind != "Default");
        kinds.extend(kind.map(str::to_owned));
        kind.is_some()
    });
    let detail =
        format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&kinds));
    if names.is_empty() { None } else { finding("procMount", detail) }
}

pub(super) fn proc_mount_35(pod: &Pod<'_>) -> Judgement {
    unless_mapped(pod, proc_mount)
}

pub(super) fn selinux(pod: &Pod<'_>) -> Judgement {
    judge_selinux(pod, &SELINUX_TYPES[..4])
}

pub(super) fn selinux_31(pod: &Pod<'_>) -> Judgement {
    judge_selinux(pod, &SELINUX_TYPES)
}

fn judge_selinux(pod: &Pod<'_>, types: &[&str]) -> Judgement {
    let (mut bad_types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |holder: &Value| {
        let options = security(holder, &["seLinuxOptions"]);
        let text = |field| tree::text(options, &[field]);
        let wrong = !types.contains(&text("type"));
        if wrong {
            bad_types.insert(text("type").to_owned());
        }
        let (sets_user, sets_role) = (!text("user").is_empty(), !text("role").is_empty());
        user |= sets_user;
        role |= sets_role;
        wrong || sets_user || sets_role
    };
    let by_pod = bad(pod.spec);
    let names = pod.named(bad);
    if !by_pod && names.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    if !bad_types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", bad_types.len()), quoted(&bad_types)));
    }
    what.extend(user.then(|| "user may not be set".to_owned()));
    what.extend(role.then(|| "role may not be set".to_owned()));
    let who = setters(by_pod, &names);
    finding(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")),
    )
}

pub(super) fn seccomp_annotations(pod: &Pod<'_>) -> Judgement {
    let allowed = |value: &str| {
        matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/")
    };
    let keys: BTreeSet<String> = pod
        .containers()
        .map(|one| format!("{SECCOMP_CONTAINER}{}", tree::text(one, &["name"])))
        .chain([SECCOMP_POD.to_owned()])
        .collect();
    let forbidden: BTreeSet<String> = annotations(pod)
        .filter(|(key, value)| keys.contains(*key) && !allowed(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", forbidden.len());
    let forbidden: Vec<String> = forbidden.into_iter().collect();
    finding("seccompProfile", format!("forbidden {word} {}", forbidden.join(", ")))
}

pub(super) fn seccomp(pod: &Pod<'_>) -> Judgement {
    let mut values = BTreeSet::new();
    let mut bad = |holder: &Value| bad_profile(holder, "seccompProfile", &mut values);
    let by_pod = bad(pod.spec);
    let names = pod.named(bad);
    if !by_pod && names.is_empty() {
        return None;
    }
    finding("seccompProfile", bad_seccomp(by_pod, &names, &values))
}

pub(super) fn bad_seccomp(by_pod: bool, names: &[&str], values: &BTreeSet<String>) -> String {
    format!(
        "{} must not set securityContext.seccompProfile.type to {}",
        setters(by_pod, names),
        quoted(values)
    )
}

/// As of 1.`minor`.
pub(super) fn sysctls(pod: &Pod<'_>, minor: u32) -> Judgement {
    let safe = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && *since <= minor);
    let set = tree::items(security(pod.spec, &["sysctls"]), &[]).iter();
    let forbidden: Vec<&str> =
        set.map(|sysctl| tree::text(sysctl, &["name"])).filter(|name| !safe(name)).collect();
    if forbidden.is_empty() { None } else { finding("forbidden sysctls", forbidden.join(", ")) }
}

pub(super) fn windows_host_process(pod: &Pod<'_>) -> Judgement {
    let bad = |holder: &Value| security(holder, &["windowsOptions", "hostProcess"]).as_bool() == Some(true);
    let (by_pod, names) = (bad(pod.spec), pod.named(bad));
    if !by_pod && names.is_empty() {
        return None;
    }
    let who = setters(by_pod, &names);
    finding("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
