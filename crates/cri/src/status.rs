//! Sandboxes and containers as the interface tells them.

use std::collections::HashMap;

use engine_api::{ContainerState, Exit, Image, SandboxState};
use jiff::Timestamp;
use serde_json::json;

use crate::container_spec::image_name;
use crate::known::{Kept, Pod};
use crate::{proto, resources, sandbox_spec, signals};

/// Nanoseconds since 1970.
pub(crate) fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

pub(crate) fn pod_state(pod: &Pod) -> proto::PodSandboxState {
    match pod.status.state {
        SandboxState::Ready => proto::PodSandboxState::SandboxReady,
        SandboxState::NotReady => proto::PodSandboxState::SandboxNotready,
    }
}

pub(crate) fn pod(pod: &Pod) -> proto::PodSandbox {
    let config = &pod.config;
    proto::PodSandbox {
        id: pod.status.spec.id.clone(),
        metadata: config.metadata.clone(),
        state: pod_state(pod) as i32,
        created_at: nanos(pod.status.created_at),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: pod.status.spec.runtime_handler.clone(),
    }
}

/// A sandbox in full, with its addresses, the preferred one first.
pub(crate) fn pod_status(pod: &Pod, addresses: &[String]) -> proto::PodSandboxStatus {
    let config = &pod.config;
    let (ip, more) =
        addresses.split_first().map_or((String::new(), &[][..]), |(ip, more)| (ip.clone(), more));
    let additional_ips = more.iter().map(|ip| proto::PodIp { ip: ip.clone() }).collect();
    let namespaces = proto::Namespace { options: Some(sandbox_spec::namespaces(config)) };
    proto::PodSandboxStatus {
        id: pod.status.spec.id.clone(),
        metadata: config.metadata.clone(),
        state: pod_state(pod) as i32,
        created_at: nanos(pod.status.created_at),
        network: Some(proto::PodSandboxNetworkStatus { ip, additional_ips }),
        linux: Some(proto::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: pod.status.spec.runtime_handler.clone(),
    }
}

/// What a verbose answer adds, in one JSON document as clients expect it.
pub(crate) fn pod_info(pod: &Pod) -> HashMap<String, String> {
    let spec = &pod.status.spec;
    let document = json!({
        "runtimeHandler": spec.runtime_handler, "runtimeType": "skiff", "cgroupParent": spec.cgroup_parent,
        "networkNamespace": pod.status.netns_path, "hostNetwork": spec.host_network,
    });
    HashMap::from([("info".to_owned(), document.to_string())])
}

pub(crate) fn state(container: &Kept) -> proto::ContainerState {
    match container.status.state {
        ContainerState::Created => proto::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => proto::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => proto::ContainerState::ContainerExited,
    }
}

pub(crate) fn container(container: &Kept) -> proto::Container {
    let (spec, config) = (&container.status.spec, &container.config);
    proto::Container {
        id: spec.id.clone(),
        pod_sandbox_id: spec.sandbox_id.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: spec.image_id.clone(),
        state: state(container) as i32,
        created_at: nanos(container.status.created_at),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: spec.image_id.clone(),
    }
}

/// A container in full. `image` is what it runs, if that is still there.
pub(crate) fn container_status(container: &Kept, image: Option<&Image>) -> proto::ContainerStatus {
    let (spec, config) = (&container.status.spec, &container.config);
    let (started_at, exit) = match &container.status.state {
        ContainerState::Created => (None, None),
        ContainerState::Running { started_at, .. } => (Some(*started_at), None),
        ContainerState::Exited { started_at, exit } => (*started_at, Some(exit)),
    };
    let linux = resources::shown(&spec.resources);
    let stop_signal = match (&spec.stop_signal, image) {
        (own, Some(image)) if own.is_empty() => signals::of_name(&image.config.stop_signal),
        (own, _) => signals::of_name(own),
    };
    proto::ContainerStatus {
        id: spec.id.clone(),
        metadata: config.metadata.clone(),
        state: state(container) as i32,
        created_at: nanos(container.status.created_at),
        started_at: started_at.map_or(0, nanos),
        finished_at: exit.map_or(0, |exit| nanos(exit.finished_at)),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(proto::ImageSpec {
            image: shown_name(container, image),
            ..config.image.clone().unwrap_or_default()
        }),
        image_ref: image
            .and_then(|image| image.repo_digests.first().cloned())
            .unwrap_or_else(|| spec.image_id.clone()),
        reason: exit.map(|exit| reason(exit, started_at).to_owned()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: log_path(container),
        resources: Some(proto::ContainerResources { linux: Some(linux), windows: None }),
        image_id: spec.image_id.clone(),
        user: container.status.identity.as_ref().map(user),
        stop_signal: stop_signal as i32,
    }
}

/// Who the first process was started as.
fn user(identity: &engine_api::Identity) -> proto::ContainerUser {
    let supplemental_groups = identity.groups.iter().copied().map(i64::from).collect();
    let (uid, gid) = (i64::from(identity.uid), i64::from(identity.gid));
    proto::ContainerUser { linux: Some(proto::LinuxContainerUser { uid, gid, supplemental_groups }) }
}

/// The image's name: the user's where it is one of its tags, else one of its tags, else what the user said.
fn shown_name(container: &Kept, image: Option<&Image>) -> String {
    let asked = image_name(&container.config);
    let Some(image) = image else { return asked };
    if image.tags.contains_key(&asked) {
        return asked;
    }
    let known = image.tags.keys().next().or_else(|| image.repo_digests.first());
    known.cloned().unwrap_or(asked)
}

/// A log is where the caller wanted it; without a wish there is none to be read.
fn log_path(container: &Kept) -> String {
    if container.config.log_path.is_empty() {
        return String::new();
    }
    container.status.log_path.to_string_lossy().into_owned()
}

/// Why a container ended, in the words of container runtimes.
fn reason(exit: &Exit, started_at: Option<Timestamp>) -> &'static str {
    match exit {
        Exit { oom_killed: true, .. } => "OOMKilled",
        Exit { code: 0, .. } => "Completed",
        _ if started_at.is_none() => "StartError",
        _ => "Error",
    }
}

/// What a verbose answer adds.
pub(crate) fn container_info(container: &Kept) -> HashMap<String, String> {
    let spec = &container.status.spec;
    let pid = match container.status.state {
        ContainerState::Running { pid, .. } => pid,
        _ => 0,
    };
    let document = json!({
        "sandboxID": spec.sandbox_id, "pid": pid, "runtimeType": "skiff", "privileged": spec.security.privileged,
        "args": spec.entrypoint.iter().chain(&spec.args).collect::<Vec<_>>(), "tty": spec.terminal,
    });
    HashMap::from([("info".to_owned(), document.to_string())])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine_api::{ContainerSpec, ContainerStatus};

    use super::*;

    fn kept(state: ContainerState) -> Kept {
        let config = proto::ContainerConfig { log_path: "c/0.log".into(), ..Default::default() };
        let status = ContainerStatus {
            spec: ContainerSpec { id: "c".into(), image_id: "sha256:1".into(), ..ContainerSpec::default() },
            state,
            created_at: Timestamp::UNIX_EPOCH,
            log_path: "/l/c/0.log".into(),
            identity: None,
        };
        Kept { status, config: Arc::new(config) }
    }

    fn exited(code: i32, oom_killed: bool, started_at: Option<Timestamp>) -> proto::ContainerStatus {
        let finished_at = Timestamp::from_nanosecond(5).unwrap();
        let exit = Exit { code, signal: 0, oom_killed, finished_at, message: "why".into() };
        container_status(&kept(ContainerState::Exited { started_at, exit }), None)
    }

    #[test]
    fn ends_have_their_reasons() {
        let at = Some(Timestamp::UNIX_EPOCH);
        assert_eq!(exited(0, false, at).reason, "Completed");
        assert_eq!(exited(3, false, at).reason, "Error");
        assert_eq!(exited(137, true, at).reason, "OOMKilled");
        let never = exited(127, false, None);
        assert_eq!(
            (never.reason.as_str(), never.finished_at, never.message.as_str()),
            ("StartError", 5, "why")
        );
        let created = container_status(&kept(ContainerState::Created), None);
        assert_eq!(
            (created.started_at, created.finished_at, created.log_path.as_str()),
            (0, 0, "/l/c/0.log")
        );
    }
}
