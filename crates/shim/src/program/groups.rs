//! The cgroups of a container, which a launcher enters before it calls the runtime library: what it makes is born in them.
//!
//! By the library, each process would be moved there by its number, for which the kernel waits for a grace period; a process
//! of one thread goes by itself without one (`sys::cgroup`). Crate `libcgroups` of this workspace leaves the library nothing
//! to be done.

use std::io;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, Spec};
use sys::cgroup::CgroupHost;

use super::launch::Launch;

/// What every container may use, in the words of version 1's controller: null, zero, full, random, urandom, tty, console,
/// ptmx, pseudo-terminals and tunnels; and make any node, which alone opens nothing. Source: OCI runtime specification,
/// "Default Devices", and what runc adds to them.
const DEVICES: [&str; 12] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 10:200 rwm",
    "c 136:* rwm",
];

/// Enters the cgroups of the container; for its first process with the rules of its devices set.
pub(crate) fn enter(launch: &Launch) -> io::Result<()> {
    let first = launch.exec.is_none();
    let spec: Option<Spec> = (first || launch.cgroup_entrances.is_empty())
        .then(|| shim::decode(&std::fs::read(launch.bundle.join("config.json"))?))
        .transpose()?;
    let found = match &spec {
        Some(spec) if launch.cgroup_entrances.is_empty() => entrances_of(spec)?,
        _ => launch.cgroup_entrances.clone(),
    };
    if let Some(spec) = spec.filter(|_| first) {
        set_device_rules(&spec, &found)?;
    }
    found.iter().try_for_each(|entrance| std::fs::write(entrance, "0").map_err(naming(entrance)))
}

/// For a daemon that does not tell them.
fn entrances_of(spec: &Spec) -> io::Result<Vec<PathBuf>> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let path = path.ok_or_else(|| io::Error::other("the container's document names no cgroup"))?;
    Ok(CgroupHost::detect()?.group(&path.to_string_lossy()).entrances_to_limits())
}

fn set_device_rules(spec: &Spec, entrances: &[PathBuf]) -> io::Result<()> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let Some(rules) = resources.and_then(|resources| resources.devices().as_ref()) else { return Ok(()) };
    let group = entrances.iter().filter_map(|entrance| entrance.parent());
    let group = group.into_iter().find(|group| group.join("devices.allow").exists());
    let group = group.ok_or_else(|| io::Error::other("there is no cgroup that holds rules of devices"))?;
    writes(rules).into_iter().try_for_each(|(file, rule)| {
        let file = group.join(file);
        std::fs::write(&file, rule).map_err(naming(&file))
    })
}

/// The writes that set rules: those of the document, then what everybody may.
fn writes(rules: &[LinuxDeviceCgroup]) -> Vec<(&'static str, String)> {
    let file = |allow: bool| if allow { "devices.allow" } else { "devices.deny" };
    let asked = rules.iter().map(|rule| (file(rule.allow()), rule.to_string()));
    asked.chain(DEVICES.iter().map(|rule| (file(true), (*rule).to_owned()))).collect()
}

fn naming(file: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_closed_before_some_are_opened() {
        let rules = r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#;
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).unwrap();
        let writes = writes(&rules);
        assert_eq!(writes[0], ("devices.deny", "a *:* rwm".to_owned()));
        assert_eq!(writes[1], ("devices.allow", "c 10:229 rw".to_owned()));
        assert!(writes.contains(&("devices.allow", "c 1:3 rwm".to_owned())));
    }

    #[test]
    fn a_document_without_a_group_is_refused() {
        assert!(entrances_of(&Spec::default().set_linux(None).clone()).is_err());
    }
}
