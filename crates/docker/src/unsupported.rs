//! Refuses what a create request asks for and Skiff does not do, by name: a container that silently is less than was
//! asked for is worse than none.

use serde_json::{Value, json};

use crate::answer::Failure;
use crate::container_spec::{CreateRequest, MountRequest};

/// Fields by the option that sets them. Those that are not here are named as they are.
const OPTIONS: [(&str, &str); 28] = [
    ("Domainname", "--domainname"),
    ("Healthcheck", "--health-cmd"),
    ("MacAddress", "--mac-address"),
    ("NetworkingConfig", "a network's --ip, --network-alias, --link or --mac-address"),
    ("HostConfig.BlkioWeight", "--blkio-weight"),
    ("HostConfig.CgroupParent", "--cgroup-parent"),
    ("HostConfig.CgroupnsMode", "--cgroupns"),
    ("HostConfig.CpuRealtimePeriod", "--cpu-rt-period"),
    ("HostConfig.CpuRealtimeRuntime", "--cpu-rt-runtime"),
    ("HostConfig.CpusetMems", "--cpuset-mems"),
    ("HostConfig.DeviceCgroupRules", "--device-cgroup-rule"),
    ("HostConfig.DeviceRequests", "--gpus"),
    ("HostConfig.Devices", "--device"),
    ("HostConfig.Isolation", "--isolation"),
    ("HostConfig.KernelMemory", "--kernel-memory"),
    ("HostConfig.Links", "--link"),
    ("HostConfig.LogConfig", "--log-driver or --log-opt"),
    ("HostConfig.MemoryReservation", "--memory-reservation"),
    ("HostConfig.MemorySwappiness", "--memory-swappiness"),
    ("HostConfig.OomKillDisable", "--oom-kill-disable"),
    ("HostConfig.Runtime", "--runtime"),
    ("HostConfig.StorageOpt", "--storage-opt"),
    ("HostConfig.UTSMode", "--uts"),
    ("HostConfig.UsernsMode", "--userns"),
    ("HostConfig.VolumeDriver", "--volume-driver"),
    ("HostConfig.VolumesFrom", "--volumes-from"),
    ("HostConfig.Annotations", "--annotation"),
    ("Shell", "Shell"),
];

/// Fields that concern the client alone.
const OF_CLIENT: [&str; 6] = [
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "ArgsEscaped",
    "HostConfig.ContainerIDFile",
    "HostConfig.RestartPolicy.MaximumRetryCount",
];

/// Refuses the first field of the request that neither Skiff knows nor is at its default.
pub(crate) fn refuse(raw: &Value) -> Result<(), Failure> {
    let known = serde_json::to_value(CreateRequest::default()).unwrap_or_default();
    walk(raw, &known, "")?;
    let known = serde_json::to_value(MountRequest::default()).unwrap_or_default();
    for mount in raw["HostConfig"]["Mounts"].as_array().into_iter().flatten() {
        walk(mount, &known, "HostConfig.Mounts")?;
    }
    Ok(())
}

fn walk(raw: &Value, known: &Value, path: &str) -> Result<(), Failure> {
    let (Value::Object(raw), Value::Object(known)) = (raw, known) else { return Ok(()) };
    for (name, value) in raw {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match known.get(name) {
            // What is a map in the request has no fields of its own.
            Some(Value::Object(fields)) if !fields.is_empty() => walk(value, &known[name], &path)?,
            Some(_) => {}
            None if OF_CLIENT.contains(&path.as_str()) || is_default(value) || is_ours(&path, value) => {}
            None => {
                let option = OPTIONS.iter().find(|(field, _)| *field == path).map(|(_, option)| *option);
                return Err(Failure::bad_request(format!(
                    "{} is not supported yet by skiff's engine",
                    option.unwrap_or(&path)
                )));
            }
        }
    }
    Ok(())
}

/// Whether a value asks for nothing.
pub(crate) fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "default",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_default),
    }
}

/// Whether a value, though no default, says what Skiff does anyway.
fn is_ours(path: &str, value: &Value) -> bool {
    match path {
        "HostConfig.CgroupnsMode" => value == "private",
        "HostConfig.UsernsMode" => value == "host",
        // The kernel's own.
        "HostConfig.MemorySwappiness" => *value == json!(-1),
        "HostConfig.LogConfig" => value["Type"] == "json-file" && value.get("Config").is_none_or(is_default),
        "HostConfig.Mounts.Consistency" => true,
        // Health checks are not run.
        "Healthcheck" => value["Test"] == json!(["NONE"]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Docker's client 28 sends for `docker run busybox`.
    fn plain() -> Value {
        let text = r#"{
            "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": true, "AttachStderr": true,
            "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null, "Image": "busybox",
            "Volumes": {}, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": {},
            "HostConfig": {
                "Binds": null, "ContainerIDFile": "/tmp/id", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
                "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": false,
                "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [0, 0], "CapAdd": null, "CapDrop": null,
                "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": null, "GroupAdd": null,
                "IpcMode": "", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "", "Privileged": false,
                "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "", "UsernsMode": "",
                "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
                "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "CpuPeriod": 0, "CpuQuota": 0,
                "CpuRealtimePeriod": 0, "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": null,
                "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1,
                "OomKillDisable": false, "PidsLimit": 0, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0,
                "IOMaximumBandwidth": 0, "MaskedPaths": null, "ReadonlyPaths": null
            },
            "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": null, "Links": null, "Aliases": null,
                "MacAddress": "", "DriverOpts": null, "GwPriority": 0, "IPPrefixLen": 0}}}
        }"#;
        serde_json::from_str(text).unwrap()
    }

    fn refusal(change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut raw = plain();
        change(&mut raw);
        refuse(&raw).err().map(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_plain_request_asks_for_nothing_special() {
        assert_eq!(refusal(|_| {}), None);
        let same = |raw: &mut Value| {
            raw["HostConfig"]["LogConfig"] = json!({"Type": "json-file", "Config": {}});
            raw["HostConfig"]["CgroupnsMode"] = json!("private");
            raw["HostConfig"]["MemorySwap"] = json!(-1);
            raw["HostConfig"]["Mounts"] = json!([{"Type": "bind", "Source": "/a", "Target": "/a", "ReadOnly": true,
                "BindOptions": {"Propagation": "rslave"}, "Consistency": "cached"}]);
            raw["Healthcheck"] = json!({"Test": ["NONE"]});
            raw["Labels"] = json!({"any": "thing"});
            raw["StopTimeout"] = json!(5);
        };
        assert_eq!(refusal(same), None);
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_option() {
        let device = json!([{"PathOnHost": "/dev/fuse"}]);
        let aliases = json!({"EndpointsConfig": {"default": {"Aliases": ["a"]}}});
        for (pointer, value, option) in [
            ("/HostConfig/Devices", device, "--device"),
            ("/HostConfig/DeviceRequests", json!([{"Count": -1}]), "--gpus"),
            ("/HostConfig/VolumesFrom", json!(["x"]), "--volumes-from"),
            ("/HostConfig/MemoryReservation", json!(5), "--memory-reservation"),
            ("/HostConfig/UsernsMode", json!("private"), "--userns"),
            ("/HostConfig/UTSMode", json!("host"), "--uts"),
            ("/HostConfig/CgroupParent", json!("/x"), "--cgroup-parent"),
            ("/HostConfig/LogConfig", json!({"Type": "syslog", "Config": {}}), "--log-driver"),
            ("/HostConfig/LogConfig", json!({"Type": "", "Config": {"max-size": "1m"}}), "--log-driver"),
            ("/HostConfig/Links", json!(["a:b"]), "--link"),
            ("/HostConfig/BlkioDeviceReadBps", json!([{}]), "HostConfig.BlkioDeviceReadBps"),
            ("/NetworkingConfig", aliases, "--network-alias"),
            ("/Domainname", json!("x"), "--domainname"),
            ("/OnBuild", json!(["x"]), "OnBuild"),
        ] {
            let said = refusal(|raw| *raw.pointer_mut(pointer).unwrap() = value.clone());
            assert!(said.as_ref().is_some_and(|said| said.contains(option)), "{pointer} {value}: {said:?}");
        }
        for (name, value, option) in [
            ("Healthcheck", json!({"Test": ["CMD-SHELL", "true"]}), "--health-cmd"),
            ("MacAddress", json!("02:00:00:00:00:01"), "--mac-address"),
            ("SomethingNew", json!(true), "SomethingNew"),
        ] {
            let said = refusal(|raw| raw[name] = value.clone());
            assert!(said.as_ref().is_some_and(|said| said.contains(option)), "{name}: {said:?}");
        }
        let subpath = json!([{"Type": "volume", "Target": "/a", "VolumeOptions": {"Subpath": "x"}}]);
        let said = refusal(|raw| raw["HostConfig"]["Mounts"] = subpath);
        assert!(said.is_some_and(|said| said.contains("HostConfig.Mounts.VolumeOptions")));
    }
}
