//! `skiff unit`: a systemd unit that runs an instance.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::settings::Settings;

/// Whose systemd it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manager {
    System,
    User,
}

impl Manager {
    /// What wants the unit. Source: systemd.special(7).
    fn target(self) -> &'static str {
        match self {
            Self::System => "multi-user.target",
            Self::User => "default.target",
        }
    }
}

/// A unit for these settings: containers outlive its stop, its cgroups are its own, and it stays down after
/// `skiff down`. The settings are written out, so that `skiff up` beside it finds them equal; `home` is for what the
/// daemon looks up in its user's home directory.
///
/// # Errors
/// If a path is no UTF-8, which a unit has to be.
pub(crate) fn text(
    settings: &Settings,
    program: &Path,
    home: Option<&Path>,
    manager: Manager,
) -> Result<String> {
    let utf8 =
        |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{path:?} is not UTF-8"));
    let mut start = quoted(&utf8(program)?);
    for argument in crate::up::arguments(settings) {
        // The program itself is not looked at for variables.
        let _ = write!(start, " {}", quoted(&utf8(Path::new(&argument))?).replace('$', "$$"));
    }
    let environment = match home {
        Some(home) => format!("Environment={}\n", quoted(&format!("HOME={}", utf8(home)?))),
        None => String::new(),
    };
    Ok(format!(
        "[Unit]\nDescription=Skiff ({name})\nAfter=network-online.target\nWants=network-online.target\n\n[Service]\n\
         Type=exec\n{environment}ExecStart={start} --foreground\n\
         KillMode=process\nDelegate=yes\nRestart=on-failure\nRestartSec=1\nLimitNOFILE=1048576\nTasksMax=infinity\n\n\
         [Install]\nWantedBy={target}\n",
        name = settings.instance.name,
        target = manager.target(),
    ))
}

/// One word of a unit's setting. Source: systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers".
fn quoted(word: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '%' => quoted.push_str("%%"),
            letter if letter.is_ascii_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use cli::instance::Instance;

    use super::*;

    fn settings(kubeconfig: Option<&str>) -> Settings {
        Settings {
            etcd: None,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
            scheduler_config: None,
            static_pod_path: None,
            max_container_restart_period: None,
            oci_runtimes: Default::default(),
            images: crate::image_settings::Images::default(),
            node_config: None,
            kubelet: node::KubeletConfiguration::default(),
            instance: Instance {
                name: "demo".into(),
                data_dir: "/d/50% of \"it\"".into(),
                run_dir: "/r/$x".into(),
            },
            kubeconfig: kubeconfig.map(Into::into),
            address: None,
            node_name: "n1".into(),
            api_port: 7000,
            node_port: 7001,
        }
    }

    #[test]
    fn every_setting_is_said_and_quoted() {
        let text = text(
            &settings(Some("/root/k")),
            Path::new("/opt/a b/skiff"),
            Some(Path::new("/root")),
            Manager::System,
        )
        .unwrap();
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
        assert_eq!(
            line("ExecStart="),
            "\"/opt/a b/skiff\" \"up\" \"--name\" \"demo\" \"--api-port\" \"7000\" \
             \"--data-dir\" \"/d/50%% of \\\"it\\\"\" \"--kubeconfig\" \"/root/k\" \"--node-name\" \"n1\" \
             \"--node-port\" \"7001\" \"--run-dir\" \"/r/$$x\" --foreground"
        );
        assert_eq!(line("Environment="), "\"HOME=/root\"");
        assert_eq!(line("Restart="), "on-failure", "skiff down has the last word");
        assert_eq!((line("KillMode="), line("Delegate=")), ("process".into(), "yes".into()));
    }

    #[test]
    fn no_kubeconfig_is_said_too() {
        let text = text(&settings(None), Path::new("/skiff"), None, Manager::User).unwrap();
        assert!(text.ends_with("\nWantedBy=default.target\n"), "{text}");
        assert!(text.contains("\"--kubeconfig\" \"\"") && !text.contains("Environment="), "{text}");
    }

    #[test]
    fn systemd_takes_the_unit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("skiff-test.service");
        let program = std::env::current_exe().unwrap();
        std::fs::write(
            &path,
            text(&settings(Some("/root/k")), &program, Some(Path::new("/root")), Manager::System).unwrap(),
        )
        .unwrap();
        // A machine without systemd has nobody to ask.
        let Ok(said) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output()
        else {
            return;
        };
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("skiff-test.service"), "{said}");
    }
}
