//! From the interface's container to the engine's.

use std::path::{Path, PathBuf};

use engine_api::{ContainerSpec, Device, Image, NamespaceSharing};
use tonic::Status;

use crate::known::{Pod, labels_of};
use crate::proto::{ContainerConfig, KeyValue, LinuxContainerSecurityContext, NamespaceMode};
use crate::{files, mounts, proto, resources, security, signals};

/// The plan of a container of a sandbox.
pub(crate) fn plan(
    config: &ContainerConfig,
    pod: &Pod,
    image: &Image,
    id: &str,
    directory: &Path,
) -> Result<ContainerSpec, Status> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("the container's configuration has no metadata"))?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let own: Vec<_> = config.mounts.iter().map(mounts::of).collect::<Result<_, _>>()?;
    let ours = files::mounts(directory, &own, context.readonly_rootfs);
    Ok(ContainerSpec {
        id: id.to_owned(),
        sandbox_id: pod.status.spec.id.clone(),
        name: metadata.name.clone(),
        labels: labels_of(config),
        image: image_name(config),
        image_id: image.id.clone(),
        entrypoint: config.command.clone(),
        args: config.args.clone(),
        env: config.envs.iter().map(variable).collect::<Result<_, _>>()?,
        working_dir: config.working_dir.clone(),
        user: security::user(&context)?,
        mounts: ours.into_iter().chain(own).collect(),
        devices: config.devices.iter().map(device).collect::<Result<_, _>>()?,
        cdi_devices: config.cdi_devices.iter().map(|device| device.name.clone()).collect(),
        resources: linux.resources.as_ref().map(resources::of).transpose()?.unwrap_or_default(),
        security: security::security(&context)?,
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        stop_signal: signals::name(config.stop_signal()),
        log_path: PathBuf::from(&config.log_path),
        // Logs are rotated by the kubelet, which then asks for them to be opened anew.
        log_max_bytes: u64::MAX,
        namespaces: sharing(&context, pod)?,
        ..ContainerSpec::default()
    })
}

/// The image as the user named it.
pub(crate) fn image_name(config: &ContainerConfig) -> String {
    let image = config.image.clone().unwrap_or_default();
    if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image }
}

/// A device of the host, which is what it is called there where nothing else is said.
fn device(asked: &proto::Device) -> Result<Device, Status> {
    let path = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
    let plain = |path: &str| path.starts_with('/') && !path.split('/').any(|part| part == "..");
    if !plain(&asked.host_path)
        || !plain(path)
        || asked.permissions.chars().any(|access| !"rwm".contains(access))
    {
        let text = format!("devices: {:?} with rights {:?} is no device", asked.host_path, asked.permissions);
        return Err(Status::invalid_argument(text));
    }
    Ok(Device { host: asked.host_path.clone().into(), path: path.into(), access: asked.permissions.clone() })
}

fn variable(pair: &KeyValue) -> Result<String, Status> {
    let value = std::str::from_utf8(&pair.value).map_err(|_| {
        Status::invalid_argument(format!("envs: the value of {:?} is no text in UTF-8", pair.key))
    })?;
    if pair.key.is_empty() || pair.key.contains(['=', '\0']) || value.contains('\0') {
        return Err(Status::invalid_argument(format!("envs: {:?} is no name of a variable", pair.key)));
    }
    Ok(format!("{}={value}", pair.key))
}

/// The PID namespace: the sandbox decides, but for a container that joins another one's.
fn sharing(context: &LinuxContainerSecurityContext, pod: &Pod) -> Result<NamespaceSharing, Status> {
    let Some(options) = &context.namespace_options else { return Ok(NamespaceSharing::default()) };
    security::check_user_namespace(options)?;
    let sandbox = &pod.status.spec;
    let has = match options.pid() {
        NamespaceMode::Target if options.target_id.is_empty() => {
            return Err(Status::invalid_argument("namespace_options: pid is TARGET, but target_id is empty"));
        }
        NamespaceMode::Target => {
            return Ok(NamespaceSharing { pid_of: Some(options.target_id.clone()) });
        }
        NamespaceMode::Pod => sandbox.share_pid,
        NamespaceMode::Container => !sandbox.share_pid && !sandbox.host_pid,
        NamespaceMode::Node => sandbox.host_pid,
    };
    if has {
        return Ok(NamespaceSharing::default());
    }
    Err(Status::invalid_argument(format!(
        "namespace_options: pid is {}, which the sandbox was not made for: give both the same",
        options.pid().as_str_name()
    )))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine_api::{SandboxSpec, SandboxState, SandboxStatus};

    use super::*;
    use crate::proto::{ContainerMetadata, ImageSpec, LinuxContainerConfig, NamespaceOption};

    fn pod() -> Pod {
        let status = SandboxStatus {
            spec: SandboxSpec { id: "s".into(), share_pid: true, ..SandboxSpec::default() },
            state: SandboxState::Ready,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            netns_path: String::new(),
        };
        Pod { status, config: Arc::default() }
    }

    fn image() -> Image {
        Image {
            id: "sha256:1".into(),
            manifest_digest: String::new(),
            tags: Default::default(),
            repo_digests: Vec::new(),
            size_bytes: 0,
            created: None,
            architecture: String::new(),
            config: Default::default(),
            config_json: String::new(),
            diff_ids: Vec::new(),
            layer_bytes: Vec::new(),
        }
    }

    fn config() -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(ImageSpec {
                image: "sha256:1".into(),
                user_specified_image: "a:1".into(),
                ..Default::default()
            }),
            command: vec!["sh".into()],
            envs: vec![KeyValue { key: "A".into(), value: b"b=c".to_vec() }],
            ..ContainerConfig::default()
        }
    }

    fn planned(config: &ContainerConfig) -> Result<ContainerSpec, tonic::Code> {
        plan(config, &pod(), &image(), "1", Path::new("/d")).map_err(|status| status.code())
    }

    #[test]
    fn the_engines_container_is_what_was_asked_for() {
        let device = proto::CdiDevice { name: "example.com/gpu=0".into() };
        let spec = planned(&ContainerConfig { cdi_devices: vec![device], ..config() }).unwrap();
        assert_eq!(spec.cdi_devices, ["example.com/gpu=0"]);
        assert_eq!((spec.image.as_str(), spec.image_id.as_str()), ("a:1", "sha256:1"));
        assert_eq!(spec.env, ["A=b=c"]);
        assert_eq!(spec.mounts.len(), 3);
        assert_eq!(spec.log_max_bytes, u64::MAX);
    }

    #[test]
    fn what_is_wrong_or_impossible_is_refused() {
        let with_pid = |pid: NamespaceMode, target: &str| {
            let options = NamespaceOption { pid: pid as i32, target_id: target.into(), ..Default::default() };
            let context =
                LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
            let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
            planned(&ContainerConfig { linux: Some(linux), ..config() }).map(|spec| spec.namespaces.pid_of)
        };
        assert_eq!(with_pid(NamespaceMode::Pod, ""), Ok(None));
        assert_eq!(with_pid(NamespaceMode::Target, "x"), Ok(Some("x".to_owned())));
        for (mode, target) in
            [(NamespaceMode::Container, ""), (NamespaceMode::Node, ""), (NamespaceMode::Target, "")]
        {
            assert_eq!(with_pid(mode, target), Err(tonic::Code::InvalidArgument));
        }
        let bad = [
            ContainerConfig { metadata: None, ..config() },
            ContainerConfig { devices: vec![proto::Device::default()], ..config() },
            ContainerConfig { envs: vec![KeyValue { key: "A".into(), value: vec![0xff] }], ..config() },
            ContainerConfig { envs: vec![KeyValue { key: "=".into(), value: vec![] }], ..config() },
        ];
        for config in bad {
            assert_eq!(planned(&config).unwrap_err(), tonic::Code::InvalidArgument, "{config:?}");
        }
    }
}
