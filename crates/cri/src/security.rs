//! Who runs a container's process and what it may do, from the interface's words.

use std::path::PathBuf;

use engine_api::{AppArmorProfile, SeccompProfile, Security, SelinuxOptions, User};
use tonic::Status;

use crate::proto::security_profile::ProfileType;
use crate::proto::{
    Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, SecurityProfile,
    SupplementalGroupsPolicy,
};

/// The process's user and groups. Source: the comments of `LinuxContainerSecurityContext`.
pub(crate) fn user(asked: &LinuxContainerSecurityContext) -> Result<User, Status> {
    let uid = asked.run_as_user.as_ref().map(|uid| number(uid, "run_as_user")).transpose()?;
    let gid = asked.run_as_group.as_ref().map(|gid| number(gid, "run_as_group")).transpose()?;
    let name = Some(&asked.run_as_username).filter(|name| !name.is_empty());
    if name.is_some_and(|name| name.contains(':')) {
        return Err(Status::invalid_argument("run_as_username: a name is expected, without a group"));
    }
    let spec = match (uid.map(|uid| uid.to_string()).as_ref().or(name), gid) {
        (Some(user), Some(gid)) => format!("{user}:{gid}"),
        (Some(user), None) => user.clone(),
        (None, None) => String::new(),
        (None, Some(_)) => {
            return Err(Status::invalid_argument(
                "run_as_group is given without run_as_user or run_as_username: give one of them",
            ));
        }
    };
    let groups = asked.supplemental_groups.iter().map(|gid| id(*gid, "supplemental_groups"));
    Ok(User {
        spec,
        supplemental_groups: groups.collect::<Result<_, _>>()?,
        only_these_groups: asked.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
        ..User::default()
    })
}

fn number(value: &Int64Value, what: &str) -> Result<u32, Status> {
    id(value.value, what)
}

fn id(value: i64, what: &str) -> Result<u32, Status> {
    u32::try_from(value)
        .map_err(|_| Status::invalid_argument(format!("{what}: {value} is no id of a user or group")))
}

/// What the process may do.
pub(crate) fn security(asked: &LinuxContainerSecurityContext) -> Result<Security, Status> {
    let capabilities = asked.capabilities.clone().unwrap_or_default();
    if !capabilities.add_ambient_capabilities.is_empty() {
        return Err(Status::unimplemented(
            "ambient capabilities are not given: add them as plain ones and run as uid 0",
        ));
    }
    Ok(Security {
        privileged: asked.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        no_new_privileges: asked.no_new_privs,
        read_only_rootfs: asked.readonly_rootfs,
        seccomp: seccomp(asked)?,
        app_armor: app_armor(asked),
        selinux: asked.selinux_options.as_ref().map(|options| SelinuxOptions {
            user: options.user.clone(),
            role: options.role.clone(),
            kind: options.r#type.clone(),
            level: options.level.clone(),
        }),
        masked_paths: absolute(&asked.masked_paths, "masked_paths")?,
        read_only_paths: absolute(&asked.readonly_paths, "readonly_paths")?,
        ..Security::default()
    })
}

fn absolute(paths: &[String], what: &str) -> Result<Vec<String>, Status> {
    match paths.iter().find(|path| !path.starts_with('/')) {
        Some(path) => Err(Status::invalid_argument(format!("{what}: {path:?} is no absolute path"))),
        None => Ok(paths.to_vec()),
    }
}

/// The engine refuses a named profile where the kernel has no AppArmor; its default is one where there is one.
fn app_armor(asked: &LinuxContainerSecurityContext) -> AppArmorProfile {
    #[allow(deprecated, reason = "older kubelets still send it")]
    let old = asked.apparmor_profile.as_str();
    let named =
        |name: &str| AppArmorProfile::Localhost(name.strip_prefix("localhost/").unwrap_or(name).to_owned());
    match &asked.apparmor {
        Some(profile) => match profile.profile_type() {
            ProfileType::RuntimeDefault => AppArmorProfile::Unset,
            ProfileType::Unconfined => AppArmorProfile::Unconfined,
            ProfileType::Localhost => named(&profile.localhost_ref),
        },
        None if old == "unconfined" => AppArmorProfile::Unconfined,
        None if old.starts_with("localhost/") => named(old),
        None => AppArmorProfile::Unset,
    }
}

/// The filter of system calls; nothing said is no filter, as with containerd.
fn seccomp(asked: &LinuxContainerSecurityContext) -> Result<SeccompProfile, Status> {
    #[allow(deprecated, reason = "older kubelets still send it")]
    let old = asked.seccomp_profile_path.as_str();
    match (&asked.seccomp, old) {
        (Some(profile), _) => profile_of(profile),
        (None, "" | "unconfined") => Ok(SeccompProfile::Unconfined),
        (None, "runtime/default" | "docker/default") => Ok(SeccompProfile::RuntimeDefault),
        (None, path) => {
            let path = path.strip_prefix("localhost/").unwrap_or(path);
            localhost(path)
        }
    }
}

fn profile_of(profile: &SecurityProfile) -> Result<SeccompProfile, Status> {
    match profile.profile_type() {
        ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
        // Some clients write the old form here as well.
        ProfileType::Localhost => {
            localhost(profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref))
        }
    }
}

fn localhost(path: &str) -> Result<SeccompProfile, Status> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(Status::invalid_argument(format!(
            "seccomp profile {:?}: the absolute path of a profile on this host is expected",
            path.display()
        )));
    }
    Ok(SeccompProfile::Localhost(path))
}

/// User namespaces are not made for this interface, and its status says so.
pub(crate) fn check_user_namespace(options: &NamespaceOption) -> Result<(), Status> {
    let mode = options.userns_options.as_ref().map(crate::proto::UserNamespace::mode);
    match mode {
        None | Some(NamespaceMode::Node) => Ok(()),
        Some(mode) => Err(Status::invalid_argument(format!(
            "user namespace mode {} is not supported: use NODE",
            mode.as_str_name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Capability;

    #[test]
    fn a_group_needs_a_user() {
        let value = |value| Some(Int64Value { value });
        let of = |run_as_user, run_as_username: &str, run_as_group| {
            user(&LinuxContainerSecurityContext {
                run_as_user,
                run_as_username: run_as_username.to_owned(),
                run_as_group,
                ..LinuxContainerSecurityContext::default()
            })
            .map(|user| user.spec)
            .map_err(|status| status.code())
        };
        assert_eq!(of(value(5), "", None), Ok("5".into()));
        assert_eq!(of(value(5), "", value(6)), Ok("5:6".into()));
        assert_eq!(of(None, "app", value(6)), Ok("app:6".into()));
        assert_eq!(of(None, "", None), Ok(String::new()));
        for (uid, name, gid) in [(None, "", value(6)), (value(-1), "", None), (None, "a:b", None)] {
            assert_eq!(of(uid, name, gid), Err(tonic::Code::InvalidArgument));
        }
    }

    #[test]
    fn profiles_and_capabilities_are_read() {
        let with = |seccomp: Option<SecurityProfile>| {
            security(&LinuxContainerSecurityContext { seccomp, ..LinuxContainerSecurityContext::default() })
        };
        let profile = |kind: ProfileType, path: &str| {
            Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() })
        };
        assert_eq!(with(None).unwrap().seccomp, SeccompProfile::Unconfined);
        let default = with(profile(ProfileType::RuntimeDefault, "")).unwrap();
        assert_eq!(default.seccomp, SeccompProfile::RuntimeDefault);
        let local = with(profile(ProfileType::Localhost, "localhost//p.json")).unwrap();
        assert_eq!(local.seccomp, SeccompProfile::Localhost("/p.json".into()));
        assert!(with(profile(ProfileType::Localhost, "p.json")).is_err());
        let ambient =
            Capability { add_ambient_capabilities: vec!["NET_RAW".into()], ..Capability::default() };
        let asked = LinuxContainerSecurityContext { capabilities: Some(ambient), ..Default::default() };
        assert_eq!(security(&asked).unwrap_err().code(), tonic::Code::Unimplemented);
        let relative = LinuxContainerSecurityContext { masked_paths: vec!["x".into()], ..Default::default() };
        assert!(security(&relative).is_err());
    }
}
