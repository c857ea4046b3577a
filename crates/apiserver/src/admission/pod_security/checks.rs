//! The table of checks: which holds at which level and since which release. Source:
//! `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::policy::{Level, Standard, Version};
use super::{baseline, restricted};
use crate::tree;

/// What is judged: a pod, or a pod template.
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

/// What a check has against a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// In few words.
    pub(super) reason: String,
    /// Who does what.
    pub(super) detail: String,
}

pub(super) type Judgement = Option<Finding>;

/// A check as of some release.
pub(super) struct Revision {
    /// The first 1.x that has it.
    pub(super) since: u32,
    pub(super) judge: fn(&Pod<'_>) -> Judgement,
}

/// One check.
pub(super) struct Check {
    /// Whether it belongs to both levels or to the restricted one only.
    level: Level,
    id: &'static str,
    /// In rising order.
    revisions: &'static [Revision],
    /// The checks of the baseline that it contains.
    contains: &'static [&'static str],
}

const fn since(since: u32, judge: fn(&Pod<'_>) -> Judgement) -> Revision {
    Revision { since, judge }
}

const fn both(id: &'static str, revisions: &'static [Revision]) -> Check {
    Check { level: Level::Baseline, id, revisions, contains: &[] }
}

const fn strict(
    id: &'static str,
    revisions: &'static [Revision],
    contains: &'static [&'static str],
) -> Check {
    Check { level: Level::Restricted, id, revisions, contains }
}

/// In the order in which findings are told.
const CHECKS: [Check; 19] = [
    both("appArmorProfile", &[since(0, baseline::app_armor)]),
    both("capabilities_baseline", &[since(0, baseline::capabilities)]),
    both("hostNamespaces", &[since(0, baseline::host_namespaces)]),
    both("hostPathVolumes", &[since(0, baseline::host_paths)]),
    both("hostPorts", &[since(0, baseline::host_ports)]),
    both("hostProbesAndHostLifecycle", &[since(34, baseline::probe_hosts)]),
    both("privileged", &[since(0, baseline::privileged)]),
    both("procMount", &[since(0, baseline::proc_mount), since(35, baseline::proc_mount_35)]),
    both("seLinuxOptions", &[since(0, baseline::selinux), since(31, baseline::selinux_31)]),
    both("seccompProfile_baseline", &[since(0, baseline::seccomp_annotations), since(19, baseline::seccomp)]),
    both(
        "sysctls",
        &[
            since(0, |pod| baseline::sysctls(pod, 0)),
            since(27, |pod| baseline::sysctls(pod, 27)),
            since(29, |pod| baseline::sysctls(pod, 29)),
            since(32, |pod| baseline::sysctls(pod, 32)),
            since(37, |pod| baseline::sysctls(pod, 37)),
        ],
    ),
    both("windowsHostProcess", &[since(0, baseline::windows_host_process)]),
    strict(
        "allowPrivilegeEscalation",
        &[since(8, restricted::escalation), since(25, |pod| unless_windows(pod, restricted::escalation))],
        &[],
    ),
    strict(
        "capabilities_restricted",
        &[
            since(22, restricted::capabilities),
            since(25, |pod| unless_windows(pod, restricted::capabilities)),
        ],
        &["capabilities_baseline"],
    ),
    strict("procMount_restricted", &[since(35, baseline::proc_mount)], &["procMount"]),
    strict("restrictedVolumes", &[since(0, restricted::volumes)], &["hostPathVolumes"]),
    strict(
        "runAsNonRoot",
        &[since(0, restricted::non_root), since(35, |pod| unless_mapped(pod, restricted::non_root))],
        &[],
    ),
    strict(
        "runAsUser",
        &[since(23, restricted::user), since(35, |pod| unless_mapped(pod, restricted::user))],
        &[],
    ),
    strict(
        "seccompProfile_restricted",
        &[since(19, restricted::seccomp), since(25, |pod| unless_windows(pod, restricted::seccomp))],
        &["seccompProfile_baseline"],
    ),
];

/// What a standard has against a pod, in the order in which it is told. Pure.
pub(super) fn judge(standard: Standard, pod: &Pod<'_>) -> Vec<Finding> {
    let minor = match standard.version {
        Version::Latest => u32::MAX,
        Version::Minor(minor) => minor,
    };
    let revision = |check: &Check| {
        let mut known = check.revisions.iter().rev();
        known.find(|revision| revision.since <= minor).map(|revision| revision.judge)
    };
    let active: Vec<_> = CHECKS
        .iter()
        .filter(|check| check.level <= standard.level)
        .filter_map(|check| Some((check, revision(check)?)))
        .collect();
    let contained: BTreeSet<&str> =
        active.iter().flat_map(|(check, _)| check.contains.iter().copied()).collect();
    let own = active.iter().filter(|(check, _)| !contained.contains(check.id));
    own.filter_map(|(_, judge)| judge(pod)).collect()
}

/// `host ports, privileged`
pub(super) fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|finding| finding.reason.as_str()).collect::<Vec<_>>().join(", ")
}

/// `hostPort (container "a" uses hostPort 80), privileged (…)`
pub(super) fn details(findings: &[Finding]) -> String {
    let shown = |finding: &Finding| match finding.detail.as_str() {
        "" => finding.reason.clone(),
        detail => format!("{} ({detail})", finding.reason),
    };
    findings.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn unless_windows(pod: &Pod<'_>, judge: fn(&Pod<'_>) -> Judgement) -> Judgement {
    if tree::text(pod.spec, &["os", "name"]) == "windows" { None } else { judge(pod) }
}

/// Root of a user namespace is nobody outside of it. Source: KEP-127.
pub(super) fn unless_mapped(pod: &Pod<'_>, judge: fn(&Pod<'_>) -> Judgement) -> Judgement {
    if tree::at(pod.spec, &["hostUsers"]).as_bool() == Some(false) { None } else { judge(pod) }
}

impl Pod<'_> {
    /// Init containers, containers and ephemeral containers, in this order.
    pub(super) fn containers(&self) -> impl Iterator<Item = &Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| tree::items(self.spec, &[list]))
    }

    /// The names of the containers of which `bad` holds.
    pub(super) fn named(&self, mut bad: impl FnMut(&Value) -> bool) -> Vec<&str> {
        self.containers().filter(|one| bad(one)).map(|one| tree::text(one, &["name"])).collect()
    }
}

/// The field of a security context under `spec` or a container; null where absent.
pub(super) fn security<'a>(holder: &'a Value, path: &[&str]) -> &'a Value {
    tree::at(tree::at(holder, &["securityContext"]), path)
}

pub(super) fn finding(reason: &str, detail: String) -> Judgement {
    Some(Finding { reason: reason.to_owned(), detail })
}

/// `"a", "b"`
pub(super) fn quoted<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{}\"", name.as_ref())).collect();
    quoted.join(", ")
}

/// `one` for one, else `more`.
pub(super) fn plural<'a>(one: &'a str, more: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { more }
}

/// `containers "a", "b"`
pub(super) fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: who sets a field to what it must not be.
pub(super) fn setters(pod: bool, names: &[&str]) -> String {
    match (pod, names) {
        (true, []) => "pod".to_owned(),
        (true, names) => format!("pod and {}", containers(names)),
        (false, names) => containers(names),
    }
}
