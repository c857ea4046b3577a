//! The checks that the restricted level has besides: today's best practice of hardening.
//! Source: `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::baseline::{adds, bad_profile, bad_seccomp};
use super::checks::{Judgement, Pod, containers, finding, plural, quoted, security, setters};
use crate::tree;

/// The volumes that hold nothing of the host's and nothing that the pod's author mounts by himself.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
/// The others.
const OTHER_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

pub(super) fn escalation(pod: &Pod<'_>) -> Judgement {
    let names = pod.named(|one| security(one, &["allowPrivilegeEscalation"]).as_bool() != Some(false));
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    if names.is_empty() { None } else { finding("allowPrivilegeEscalation != false", detail) }
}

pub(super) fn capabilities(pod: &Pod<'_>) -> Judgement {
    let keeping = pod.named(|one| {
        let dropped = tree::items(security(one, &["capabilities"]), &["drop"]);
        !dropped.iter().any(|name| name.as_str() == Some("ALL"))
    });
    let mut added = BTreeSet::new();
    let adding = pod.named(|one| adds(one, &["NET_BIND_SERVICE"], &mut added));
    let mut what = Vec::new();
    if !keeping.is_empty() {
        what.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        what.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(&added)
        ));
    }
    if what.is_empty() { None } else { finding("unrestricted capabilities", what.join("; ")) }
}

pub(super) fn volumes(pod: &Pod<'_>) -> Judgement {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in tree::items(pod.spec, &["volumes"]) {
        let is = |kind: &&&str| !tree::at(volume, &[kind]).is_null();
        if VOLUMES.iter().find(is).is_none() {
            names.push(tree::text(volume, &["name"]));
            kinds.insert(*OTHER_VOLUMES.iter().find(is).unwrap_or(&"unknown"));
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(&kinds)
    );
    finding("restricted volume types", detail)
}

pub(super) fn non_root(pod: &Pod<'_>) -> Judgement {
    let said = |holder: &Value| security(holder, &["runAsNonRoot"]).as_bool();
    let by_pod = said(pod.spec);
    let explicit = pod.named(|one| said(one) == Some(false));
    let silent = pod.named(|one| said(one).is_none() && by_pod != Some(true));
    let detail = if by_pod == Some(false) || !explicit.is_empty() {
        let who = setters(by_pod == Some(false), &explicit);
        format!("{who} must not set securityContext.runAsNonRoot=false")
    } else if !silent.is_empty() {
        format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent))
    } else {
        return None;
    };
    finding("runAsNonRoot != true", detail)
}

pub(super) fn user(pod: &Pod<'_>) -> Judgement {
    let root = |holder: &Value| security(holder, &["runAsUser"]).as_i64() == Some(0);
    let (by_pod, names) = (root(pod.spec), pod.named(root));
    if !by_pod && names.is_empty() {
        return None;
    }
    finding("runAsUser=0", format!("{} must not set runAsUser=0", setters(by_pod, &names)))
}

pub(super) fn seccomp(pod: &Pod<'_>) -> Judgement {
    let mut values = BTreeSet::new();
    let mut bad = |holder: &Value| bad_profile(holder, "seccompProfile", &mut values);
    let by_pod = bad(pod.spec);
    let explicit = pod.named(bad);
    let names_one = |holder: &Value| !security(holder, &["seccompProfile"]).is_null();
    let covered = names_one(pod.spec) && !by_pod;
    let silent = pod.named(|one| !names_one(one) && !covered);
    if by_pod || !explicit.is_empty() {
        return finding("seccompProfile", bad_seccomp(by_pod, &explicit, &values));
    }
    if silent.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&silent)
    );
    finding("seccompProfile", detail)
}
