//! What security modules of the kernel hold a container to: AppArmor profiles and SELinux labels.
//!
//! Profiles and policies are the host's: nothing is loaded here. The words of refusals are containerd's where it has
//! some. Source: `apparmor(7)`, `pkg/cri/server/container_create_linux.go` of containerd.

use std::collections::BTreeSet;
use std::path::Path;

use engine_api::{AppArmorProfile, EngineError, ErrorKind, Security, SelinuxOptions};

/// The default profiles of container engines, of which the first that is loaded is the default here.
const DEFAULTS: [&str; 3] = ["skiff-default", "cri-containerd.apparmor.d", "docker-default"];

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    /// The profiles that are loaded; `None` without AppArmor.
    app_armor: Option<BTreeSet<String>>,
    selinux: bool,
}

/// What a container gets of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) app_armor: Option<String>,
    /// SELinux: of its processes, and of the mounts that are made for it.
    pub(crate) selinux: Option<(String, String)>,
}

impl Modules {
    /// Those of the running kernel.
    pub(crate) fn detect() -> Self {
        let loaded = || std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
        Self {
            app_armor: sys::host::has_app_armor().then(|| profiles(&loaded())),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }

    /// The labels of a container. `built_in`: the built-in runtime executes it, which knows nothing of SELinux.
    pub(crate) fn of(&self, security: &Security, built_in: bool) -> Result<Labels, EngineError> {
        Ok(Labels { app_armor: self.app_armor(security)?, selinux: self.selinux(security, built_in)? })
    }

    fn app_armor(&self, security: &Security) -> Result<Option<String>, EngineError> {
        let default = || {
            let loaded = self.app_armor.as_ref()?;
            DEFAULTS.iter().find(|name| loaded.contains(**name)).map(|name| (*name).to_owned())
        };
        let unsupported = |why: String| Err(EngineError::new(ErrorKind::Unsupported, why));
        match (&security.app_armor, &self.app_armor) {
            (AppArmorProfile::Unconfined, _) => Ok(None),
            (AppArmorProfile::Unset, _) => Ok(default().filter(|_| !security.privileged)),
            (_, None) => unsupported("apparmor is not supported on this host".to_owned()),
            (AppArmorProfile::RuntimeDefault, Some(_)) if security.privileged => Ok(None),
            (AppArmorProfile::RuntimeDefault, Some(_)) => match default() {
                Some(profile) => Ok(Some(profile)),
                None => unsupported(format!("apparmor profile not found {}: load it", DEFAULTS[0])),
            },
            (AppArmorProfile::Localhost(name), Some(loaded)) if loaded.contains(name) => {
                Ok(Some(name.clone()))
            }
            (AppArmorProfile::Localhost(name), Some(_)) => {
                unsupported(format!("apparmor profile not found {name}"))
            }
        }
    }

    /// Options mean nothing to a kernel without SELinux, as upstream has it.
    fn selinux(&self, security: &Security, built_in: bool) -> Result<Option<(String, String)>, EngineError> {
        match &security.selinux {
            Some(options) if self.selinux && built_in => Err(EngineError::new(
                ErrorKind::Unsupported,
                format!(
                    "seLinuxOptions ({}): the built-in runtime sets no labels; use a RuntimeClass whose handler is a program such as runc",
                    process_label(options)
                ),
            )),
            Some(options) if self.selinux => Ok(Some((process_label(options), mount_label(options)))),
            _ => Ok(None),
        }
    }
}

/// The names in the kernel's list of profiles: `name (enforce)`.
fn profiles(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect()
}

/// What is not given is as the reference policy has it for containers.
fn process_label(options: &SelinuxOptions) -> String {
    let or =
        |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
    let SelinuxOptions { user, role, kind, level } = options;
    format!(
        "{}:{}:{}:{}",
        or(user, "system_u"),
        or(role, "system_r"),
        or(kind, "container_t"),
        or(level, "s0")
    )
}

fn mount_label(options: &SelinuxOptions) -> String {
    let level = if options.level.is_empty() { "s0" } else { &options.level };
    format!("system_u:object_r:container_file_t:{level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(modules: &Modules, app_armor: AppArmorProfile, privileged: bool) -> Result<Option<String>, String> {
        let security = Security { app_armor, privileged, ..Security::default() };
        modules.of(&security, true).map(|labels| labels.app_armor).map_err(|error| error.message)
    }

    #[test]
    fn profiles_are_those_that_are_loaded() {
        use AppArmorProfile::*;
        let none = Modules::default();
        let some = Modules {
            app_armor: Some(profiles("docker-default (enforce)\nk8s deny (complain)\n")),
            ..Modules::default()
        };
        let default = || Ok(Some("docker-default".to_owned()));
        assert_eq!(of(&none, Unset, false), Ok(None));
        assert_eq!(of(&none, Unconfined, false), Ok(None));
        for asked in [RuntimeDefault, Localhost("k8s deny".into())] {
            assert_eq!(of(&none, asked, false).unwrap_err(), "apparmor is not supported on this host");
        }
        assert_eq!(of(&some, Unset, false), default());
        assert_eq!(of(&some, RuntimeDefault, false), default());
        assert_eq!(of(&some, RuntimeDefault, true), Ok(None));
        assert_eq!(of(&some, Unconfined, false), Ok(None));
        assert_eq!(of(&some, Localhost("k8s deny".into()), true), Ok(Some("k8s deny".to_owned())));
        assert_eq!(
            of(&some, Localhost("other".into()), false).unwrap_err(),
            "apparmor profile not found other"
        );
        let empty = Modules { app_armor: Some(BTreeSet::new()), ..Modules::default() };
        assert_eq!(of(&empty, Unset, false), Ok(None));
        assert!(of(&empty, RuntimeDefault, false).unwrap_err().starts_with("apparmor profile not found"));
    }

    #[test]
    fn selinux_options_count_where_the_kernel_has_it() {
        let options = SelinuxOptions { kind: "spc_t".into(), level: "s0:c1,c2".into(), ..Default::default() };
        let security = Security { selinux: Some(options), ..Security::default() };
        let labels = |selinux: bool, built_in: bool| {
            Modules { selinux, ..Modules::default() }.of(&security, built_in).map(|labels| labels.selinux)
        };
        assert_eq!(labels(false, true).unwrap(), None);
        let wanted = ("system_u:system_r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(labels(true, false).unwrap(), Some((wanted.0.to_owned(), wanted.1.to_owned())));
        assert!(labels(true, true).unwrap_err().message.contains("RuntimeClass"));
    }
}
