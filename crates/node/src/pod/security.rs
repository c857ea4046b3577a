//! `securityContext` of pod and container, merged into what the engine takes.

use std::path::Path;

use engine_api::{AppArmorProfile, RuntimeHandler, SeccompProfile, Security, SelinuxOptions, User};
use k8s_openapi::api::core::v1::{
    Container, PodSecurityContext, PodSpec, SeccompProfile as Wanted, SecurityContext,
};

/// Sysctls that only change the pod's own namespaces and cannot harm others. Source: upstream's safe list.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The sysctls of a pod, or why one of them is refused: it is not known to be the pod's own affair, or the pod has no
/// namespace of its own for it. Source: `pkg/kubelet/sysctl/allowlist.go`.
pub(crate) fn sysctls(spec: &PodSpec) -> Result<Vec<(String, String)>, String> {
    let wanted = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    wanted
        .map(|sysctl| {
            let name = sysctl.name.replace('/', ".");
            match forbidden(spec, &name) {
                None => Ok((name, sysctl.value.clone())),
                Some(why) => Err(format!("forbidden sysctl: \"{name}\" {why}")),
            }
        })
        .collect()
}

fn forbidden(spec: &PodSpec, name: &str) -> Option<&'static str> {
    if !SAFE_SYSCTLS.contains(&name) {
        return Some("not allowlisted");
    }
    let is_net = name.starts_with("net.");
    match (spec.host_network, spec.host_ipc) {
        (Some(true), _) if is_net => Some("not allowed with host net enabled"),
        (_, Some(true)) if !is_net => Some("not allowed with host ipc enabled"),
        _ => None,
    }
}

/// Who runs the container's process.
pub(crate) fn user(spec: &PodSpec, container: &Container) -> User {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let uid = own.run_as_user.or(pod.run_as_user);
    let gid = own.run_as_group.or(pod.run_as_group);
    let groups = pod.supplemental_groups.iter().flatten().chain(&pod.fs_group);
    User {
        spec: match (uid, gid) {
            (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
            (Some(uid), None) => uid.to_string(),
            // The image's user with another group: the engine resolves an empty user part to the image's.
            (None, Some(gid)) => format!(":{gid}"),
            (None, None) => String::new(),
        },
        only_these_groups: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        supplemental_groups: groups.filter_map(|gid| u32::try_from(*gid).ok()).collect(),
        groups: Vec::new(),
        must_not_be_root: own.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false),
    }
}

/// Refuses a pod that wants user ids of its own where its runtime has none to give. Source: `pkg/kubelet/userns`.
pub(crate) fn check_users(spec: &PodSpec, handlers: &[RuntimeHandler], handler: &str) -> Result<(), String> {
    let able = handlers.iter().any(|known| known.name == handler && known.user_namespaces);
    if spec.host_users != Some(false) || able {
        return Ok(());
    }
    let who = match handler {
        "" => "runtime".to_owned(),
        named => format!("RuntimeClass handler {named:?}"),
    };
    Err(format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces"))
}

/// Refuses what would let a pod reach the host: it must not run with less isolation than was asked for.
pub(crate) fn check_isolation(spec: &PodSpec) -> Result<(), String> {
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let unmasked = containers.find(|container| {
        let own = container.security_context.as_ref();
        own.and_then(|context| context.proc_mount.as_deref()) == Some("Unmasked")
    });
    match unmasked {
        Some(container) if spec.host_users != Some(false) => {
            Err(format!("procMount Unmasked of container {:?} demands hostUsers: false", container.name))
        }
        _ => Ok(()),
    }
}

/// Why the node does not take a pod whose containers are to be confined by AppArmor: `enabled` says whether it can do
/// that. Annotations of old are the API server's to turn into fields. Source: `pkg/security/apparmor/validate.go`.
pub(crate) fn refuse_app_armor(spec: &PodSpec, enabled: bool) -> Option<String> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|own| own.security_context.as_ref());
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let contexts = containers.map(|own| own.security_context.as_ref()).chain(ephemeral);
    let own = contexts.filter_map(|context| context?.app_armor_profile.as_ref());
    let asked: Vec<_> =
        of_pod.into_iter().chain(own).filter(|profile| profile.type_ != "Unconfined").collect();
    let nameless = |name: &Option<String>| name.as_deref().unwrap_or_default().trim().is_empty();
    let why = match asked.iter().any(|asked| asked.type_ == "Localhost" && nameless(&asked.localhost_profile))
    {
        _ if asked.is_empty() => return None,
        _ if !enabled => "AppArmor is not enabled on the host",
        true => "invalid empty AppArmor profile name",
        false => return None,
    };
    Some(format!("Cannot enforce AppArmor: {why}"))
}

fn app_armor(pod: Option<&PodSecurityContext>, own: &SecurityContext) -> AppArmorProfile {
    let of_pod = || pod.and_then(|pod| pod.app_armor_profile.as_ref());
    match own.app_armor_profile.as_ref().or_else(of_pod) {
        None => AppArmorProfile::Unset,
        Some(profile) => match profile.type_.as_str() {
            "RuntimeDefault" => AppArmorProfile::RuntimeDefault,
            "Unconfined" => AppArmorProfile::Unconfined,
            _ => AppArmorProfile::Localhost(profile.localhost_profile.clone().unwrap_or_default()),
        },
    }
}

fn selinux(pod: Option<&PodSecurityContext>, own: &SecurityContext) -> Option<SelinuxOptions> {
    let of_pod = || pod.and_then(|pod| pod.se_linux_options.as_ref());
    let options = own.se_linux_options.as_ref().or_else(of_pod)?;
    Some(SelinuxOptions {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        kind: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    })
}

/// What the container's process may do. `profiles`: where `Localhost` seccomp profiles lie.
pub(crate) fn security(spec: &PodSpec, container: &Container, profiles: &Path) -> Result<Security, String> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(Security {
        privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        read_only_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        seccomp: seccomp(pod, &own, privileged, profiles)?,
        unmask_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        app_armor: app_armor(pod, &own),
        selinux: selinux(pod, &own),
        ..Security::default()
    })
}

fn seccomp(
    pod: Option<&PodSecurityContext>,
    own: &SecurityContext,
    privileged: bool,
    profiles: &Path,
) -> Result<SeccompProfile, String> {
    let wanted = own.seccomp_profile.as_ref().or_else(|| pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    if privileged {
        return Ok(SeccompProfile::Unconfined);
    }
    match wanted.map(|profile| (profile.type_.as_str(), profile)) {
        // Nothing asked for: the default profile (upstream's `seccompDefault`).
        None | Some(("RuntimeDefault", _)) => Ok(SeccompProfile::RuntimeDefault),
        Some(("Unconfined", _)) => Ok(SeccompProfile::Unconfined),
        Some(("Localhost", Wanted { localhost_profile: Some(name), .. })) if is_plain(name) => {
            Ok(SeccompProfile::Localhost(profiles.join(name)))
        }
        Some(("Localhost", _)) => {
            Err("localhostProfile must be set if seccompProfile type is Localhost, and must be a relative path without '..'".to_owned())
        }
        Some((other, _)) => Err(format!("unknown seccomp profile type \"{other}\"")),
    }
}

/// Whether a relative path stays below where it starts.
pub(crate) fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_containers_own_context_wins() {
        let spec = pod(serde_json::json!({
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 7, "supplementalGroups": [5],
                "runAsNonRoot": true},
            "containers": [{"name": "a", "securityContext": {"runAsUser": 0, "runAsNonRoot": false}}, {"name": "b"}],
        }));
        assert_eq!(user(&spec, &spec.containers[0]).spec, "0:1000");
        let other = user(&spec, &spec.containers[1]);
        assert_eq!((other.spec.as_str(), other.must_not_be_root), ("1000:1000", true));
        assert_eq!(other.supplemental_groups, [5, 7]);
    }

    #[test]
    fn seccomp_profiles_stay_in_their_directory() {
        let with = |profile: serde_json::Value| {
            let spec = pod(serde_json::json!({
                "containers": [{"name": "a", "securityContext": {"seccompProfile": profile}}]}));
            security(&spec, &spec.containers[0], Path::new("/p")).map(|security| security.seccomp)
        };
        let localhost = |name: &str| serde_json::json!({"type": "Localhost", "localhostProfile": name});
        assert_eq!(with(localhost("x.json")), Ok(SeccompProfile::Localhost("/p/x.json".into())));
        assert!(with(localhost("../x.json")).is_err());
        assert_eq!(with(serde_json::json!({"type": "Unconfined"})), Ok(SeccompProfile::Unconfined));
    }

    #[test]
    fn profiles_and_labels_of_the_container_win() {
        let with = |of_pod: serde_json::Value, own: serde_json::Value| {
            let spec = pod(serde_json::json!({"securityContext": of_pod,
                "containers": [{"name": "a", "securityContext": own}]}));
            let security = security(&spec, &spec.containers[0], Path::new("/p")).unwrap();
            (refuse_app_armor(&spec, false), refuse_app_armor(&spec, true), security)
        };
        let armor =
            |kind: &str| serde_json::json!({"appArmorProfile": {"type": kind, "localhostProfile": "deny"}});
        let none = serde_json::json!({});
        let disabled = Some("Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned());
        for (of_pod, own, refused, profile) in [
            (none.clone(), none.clone(), None, AppArmorProfile::Unset),
            (none.clone(), armor("Unconfined"), None, AppArmorProfile::Unconfined),
            (none.clone(), armor("RuntimeDefault"), disabled.clone(), AppArmorProfile::RuntimeDefault),
            (armor("Localhost"), none.clone(), disabled.clone(), AppArmorProfile::Localhost("deny".into())),
            (armor("Localhost"), armor("Unconfined"), disabled.clone(), AppArmorProfile::Unconfined),
        ] {
            let (off, on, security) = with(of_pod, own);
            assert_eq!((off, on, security.app_armor), (refused, None, profile));
        }
        let nameless = serde_json::json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " "}});
        let (_, on, _) = with(none.clone(), nameless);
        assert_eq!(on.unwrap(), "Cannot enforce AppArmor: invalid empty AppArmor profile name");
        let labelled = serde_json::json!({"seLinuxOptions": {"type": "spc_t"}});
        let (.., security) = with(labelled, none);
        assert_eq!(security.selinux.unwrap().kind, "spc_t");
    }

    #[test]
    fn isolation_that_is_not_there_is_refused() {
        let handlers = [
            RuntimeHandler { user_namespaces: true, ..RuntimeHandler::default() },
            RuntimeHandler { name: "old".to_owned(), ..RuntimeHandler::default() },
        ];
        let users = |host_users: Option<bool>, handler: &str| {
            check_users(&PodSpec { host_users, ..PodSpec::default() }, &handlers, handler)
        };
        assert!(users(None, "old").is_ok() && users(Some(true), "old").is_ok());
        assert_eq!(users(Some(false), ""), Ok(()));
        assert_eq!(
            users(Some(false), "old").unwrap_err(),
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"old\" does not support user namespaces"
        );
        let unmasked = pod(serde_json::json!({"containers":
            [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]}));
        assert!(check_isolation(&PodSpec { host_users: Some(false), ..unmasked.clone() }).is_ok());
        let error = check_isolation(&unmasked).unwrap_err();
        assert_eq!(error, "procMount Unmasked of container \"a\" demands hostUsers: false");
    }

    #[test]
    fn unsafe_sysctls_are_refused_by_name() {
        let with = |name: &str| {
            sysctls(&pod(serde_json::json!({"containers": [],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}})))
        };
        assert!(with("net.ipv4.tcp_syncookies").is_ok());
        assert_eq!(
            with("kernel.msgmax"),
            Err("forbidden sysctl: \"kernel.msgmax\" not allowlisted".to_owned())
        );
        let beside_the_host = |field: &str, name: &str| {
            sysctls(&pod(serde_json::json!({"containers": [], field: true,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}})))
            .err()
        };
        for (field, name, why) in [
            ("hostNetwork", "net.ipv4.tcp_syncookies", Some("not allowed with host net enabled")),
            ("hostNetwork", "kernel.shm_rmid_forced", None),
            ("hostIPC", "kernel.shm_rmid_forced", Some("not allowed with host ipc enabled")),
            ("hostIPC", "net.ipv4.tcp_syncookies", None),
        ] {
            let wanted = why.map(|why| format!("forbidden sysctl: \"{name}\" {why}"));
            assert_eq!(beside_the_host(field, name), wanted, "{field} {name}");
        }
    }
}
