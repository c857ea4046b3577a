//! What a CDI file says: read strictly, and checked as a whole before anything of it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Versions of the specification that there are, oldest first.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// What a mount, an environment or a list of arguments may have; more is no device.
const LIST_MAX: usize = 4096;
/// Hooks that a runtime knows. Source: OCI runtime-spec, `config.md`, "POSIX-platform Hooks".
pub(super) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, IgnoredAny>,
    pub(super) devices: Vec<DeviceEntry>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// A device of a file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceEntry {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, IgnoredAny>,
    pub(super) container_edits: Edits,
}

/// What a container gets.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

/// A node of a device.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// An interface of the host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    name: String,
}

/// Something that the container sees.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// A program of the host that runs when the container begins.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

impl Spec {
    /// Reads a file: YAML, of which JSON is a part. Source: `cdi.ParseSpec`, `Spec.validate`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let read = serde_saphyr::from_str::<Self>(text).map_err(|error| {
            // A picture of the source follows the first line.
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default();
            format!("failed to unmarshal CDI Spec: {}", line.trim_start_matches("error: "))
        })?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let known = VERSIONS.iter().position(|known| *known == version);
        let known = known.ok_or_else(|| format!("invalid version {:?}", self.cdi_version))?;
        let least = self.least_version();
        if known < VERSIONS.iter().position(|version| *version == least).unwrap_or_default() {
            return Err(format!("the spec version must be at least v{least}"));
        }
        let (vendor, class) = self.kind.split_once('/').unwrap_or(("", &self.kind));
        check_kind("vendor", vendor)?;
        check_kind("class", class)?;
        self.container_edits.check()?;
        let mut names = BTreeSet::new();
        for device in &self.devices {
            let failed = |why: String| format!("failed add device {:?}: {why}", device.name);
            check_device(&device.name).map_err(failed)?;
            device.container_edits.check().map_err(failed)?;
            if device.container_edits.is_empty() {
                return Err(failed("invalid device, empty device edits".to_owned()));
            }
            if !names.insert(&device.name) {
                return Err(format!("invalid spec, multiple device {:?}", device.name));
            }
        }
        if names.is_empty() { Err("invalid spec, no devices".to_owned()) } else { Ok(()) }
    }

    /// The first version that has all that the file uses. Source: `specs.MinimumRequiredVersion`.
    fn least_version(&self) -> &'static str {
        let all = || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let any = |uses: fn(&Edits) -> bool| all().any(uses);
        let newest = |edits: &Edits| {
            let schemata = |rdt: &serde_json::Map<_, _>| {
                rdt.contains_key("schemata") || rdt.contains_key("enableMonitoring")
            };
            !edits.net_devices.is_empty() || edits.intel_rdt.as_ref().is_some_and(schemata)
        };
        let digit = |device: &DeviceEntry| device.name.starts_with(|first: char| first.is_ascii_digit());
        let annotated = |device: &DeviceEntry| !device.annotations.is_empty();
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        if any(newest) {
            "1.1.0"
        } else if any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
            "0.7.0"
        } else if !self.annotations.is_empty() || self.devices.iter().any(annotated) || class.contains('.') {
            "0.6.0"
        } else if any(|edits| edits.device_nodes.iter().any(|node| !node.host_path.is_empty()))
            || self.devices.iter().any(digit)
        {
            "0.5.0"
        } else if any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())) {
            "0.4.0"
        } else {
            "0.3.0"
        }
    }
}

impl Edits {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.net_devices.is_empty()
            && self.hooks.is_empty()
            && self.mounts.is_empty()
            && self.intel_rdt.is_none()
            && self.additional_gids.is_empty()
    }

    /// Source: `ContainerEdits.Validate`.
    fn check(&self) -> Result<(), String> {
        let lengths = [
            self.env.len(),
            self.device_nodes.len(),
            self.hooks.len(),
            self.mounts.len(),
            self.additional_gids.len(),
        ];
        if lengths.iter().any(|length| *length > LIST_MAX) {
            return Err(format!("invalid container edits: a list has more than {LIST_MAX} entries"));
        }
        check_env(&self.env).map_err(|why| format!("invalid container edits: {why}"))?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.hooks.iter().try_for_each(Hook::check)?;
        self.mounts.iter().try_for_each(Mount::check)
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        let Self { path, kind, permissions, .. } = self;
        if path.is_empty() {
            return Err("invalid (empty) device path".to_owned());
        }
        check_path("device", path)?;
        if !self.host_path.is_empty() {
            check_path("device", &self.host_path)?;
        }
        if !["", "b", "c", "u", "p"].contains(&kind.as_str()) {
            return Err(format!("device {path:?}: invalid type {kind:?}"));
        }
        if permissions != "none" && permissions.chars().any(|access| !"rwm".contains(access)) {
            return Err(format!("device {path:?}: invalid permissions {permissions:?}"));
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        let Self { hook_name: name, path, env, .. } = self;
        if !HOOKS.contains(&name.as_str()) {
            return Err(format!("invalid hook name {name:?}"));
        }
        if path.is_empty() {
            return Err(format!("invalid hook {name:?} with empty path"));
        }
        check_path("hook", path)?;
        check_env(env).map_err(|why| format!("invalid hook {name:?}: {why}"))
    }
}

impl Mount {
    fn check(&self) -> Result<(), String> {
        if self.host_path.is_empty() {
            return Err("invalid mount, empty host path".to_owned());
        }
        if self.container_path.is_empty() {
            return Err("invalid mount, empty container path".to_owned());
        }
        check_path("mount", &self.container_path)?;
        // Of a tmpfs it is a name.
        if self.kind == "tmpfs" { Ok(()) } else { check_path("mount", &self.host_path) }
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    let odd = |line: &&String| line.find('=').is_none_or(|at| at == 0) || line.contains('\0');
    match env.iter().find(odd) {
        Some(line) => Err(format!("invalid environment variable {line:?}")),
        None => Ok(()),
    }
}

fn check_path(what: &str, path: &str) -> Result<(), String> {
    let plain = Path::new(path).components().all(|part| part != Component::ParentDir);
    if path.starts_with('/') && plain && !path.contains('\0') {
        return Ok(());
    }
    Err(format!("invalid {what}, {path:?} is not absolute, or contains '..'"))
}

/// Source: `parser.ValidateVendorName`, `ValidateClassName`.
fn check_kind(what: &str, name: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let bytes = name.as_bytes();
    let ends = bytes.last().is_some_and(u8::is_ascii_alphanumeric);
    match bytes.first() {
        None => Err(format!("invalid {what}. empty name")),
        Some(first) if !first.is_ascii_alphabetic() => {
            Err(format!("invalid {what}. {name:?}, should start with letter"))
        }
        Some(_) if ends && bytes.iter().all(|byte| inner(*byte)) => Ok(()),
        Some(_) => {
            Err(format!("invalid {what}. {name:?} has other than letters, digits, '_', '-' and '.' within"))
        }
    }
}

/// Source: `parser.ValidateDeviceName`.
fn check_device(name: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    let bytes = name.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    if ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|byte| inner(*byte)) {
        return Ok(());
    }
    Err(format!("invalid device name {name:?}"))
}

/// Whether a name is `vendor/class=device`. Source: `parser.ParseQualifiedName`.
pub(super) fn check_qualified(name: &str) -> Result<(), String> {
    let (kind, device) =
        name.split_once('=').ok_or_else(|| format!("unqualified device {name:?}, missing vendor"))?;
    let (vendor, class) =
        kind.split_once('/').ok_or_else(|| format!("unqualified device {name:?}, missing vendor"))?;
    let checked = check_kind("vendor", vendor).and_then(|()| check_kind("class", class));
    checked.and_then(|()| check_device(device)).map_err(|why| format!("invalid device {name:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Spec, String> {
        Spec::parse(text.as_bytes())
    }

    fn with(device: &str, version: &str) -> Result<Spec, String> {
        parsed(&format!(
            r#"{{"cdiVersion":"{version}","kind":"example.com/gpu","devices":[{{"name":"a","containerEdits":{device}}}]}}"#
        ))
    }

    #[test]
    fn yaml_and_json_are_read() {
        let text = "cdiVersion: \"0.5.0\"\nkind: example.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [A=1]\n    deviceNodes:\n    - path: /dev/gpu0\n      hostPath: /dev/null\n      permissions: rw\ncontainerEdits:\n  mounts:\n  - {hostPath: /opt/gpu, containerPath: /usr/gpu, options: [ro, rbind]}\n";
        let spec = parsed(text).unwrap();
        assert_eq!(spec.devices[0].container_edits.device_nodes[0].host_path, "/dev/null");
        assert_eq!(spec.container_edits.mounts[0].options, ["ro", "rbind"]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (edits, version, why) in [
            (r#"{"env":["A=1"]}"#, "2.0.0", "invalid version"),
            (r#"{"env":["A=1"]}"#, "0.2.0", "at least v0.3.0"),
            (r#"{"env":["A"]}"#, "0.3.0", "invalid environment variable"),
            (r#"{"env":["A=1"],"x":1}"#, "0.3.0", "unmarshal"),
            (r#"{}"#, "0.3.0", "empty device edits"),
            (r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]}"#, "0.4.0", "at least v0.5.0"),
            (r#"{"additionalGids":[5]}"#, "0.6.0", "at least v0.7.0"),
            (r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#, "1.0.0", "at least v1.1.0"),
            (r#"{"deviceNodes":[{"path":"/dev/a","type":"x"}]}"#, "0.3.0", "invalid type"),
            (r#"{"deviceNodes":[{"path":"/dev/../a"}]}"#, "0.3.0", "contains '..'"),
            (r#"{"deviceNodes":[{"path":"/dev/a","permissions":"rx"}]}"#, "0.3.0", "invalid permissions"),
            (r#"{"mounts":[{"hostPath":"","containerPath":"/x"}]}"#, "0.3.0", "empty host path"),
            (r#"{"mounts":[{"hostPath":"/x","containerPath":"x"}]}"#, "0.3.0", "is not absolute"),
            (r#"{"hooks":[{"hookName":"later","path":"/x"}]}"#, "0.3.0", "invalid hook name"),
        ] {
            let said = with(edits, version).unwrap_err();
            assert!(said.contains(why), "{edits}: {said}");
        }
        let twice = r#"{"cdiVersion":"0.3.0","kind":"e/x","devices":[{"name":"a","containerEdits":{"env":["A=1"]}},{"name":"a","containerEdits":{"env":["A=1"]}}]}"#;
        assert!(parsed(twice).unwrap_err().contains("multiple device"));
        assert!(parsed(r#"{"cdiVersion":"0.3.0","kind":"x","devices":[]}"#).unwrap_err().contains("vendor"));
        assert!(
            parsed(r#"{"cdiVersion":"0.3.0","kind":"e/x","devices":[]}"#).unwrap_err().contains("no devices")
        );
    }

    #[test]
    fn qualified_names_have_three_parts() {
        for good in ["example.com/gpu=0", "a/b=c", "vendor.com/net-1=card_0:2"] {
            check_qualified(good).unwrap();
        }
        for bad in ["", "gpu", "a/b", "a=b", "/b=c", "a/=c", "a/b=", "1/b=c", "a/b=c/d", "a/b-=c"] {
            assert!(check_qualified(bad).is_err(), "{bad}");
        }
    }
}
