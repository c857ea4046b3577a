//! Makers of pods and records for the tests of this crate.

use engine_api::{ContainerState, Exit};
use jiff::Timestamp;

use super::hash::container_hash;
use super::resources::container_resources;
use super::{ContainerRecord, PodView, SandboxRecord};

/// Memory of the node that pods are on.
pub(crate) const NODE_MEMORY: i64 = 8 << 30;

/// Ten hours after the epoch: room to go back in time.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(36_000 + seconds).unwrap()
}

/// A pod `default/web` with the label `app=web`.
pub(crate) fn pod(spec: serde_json::Value) -> PodView {
    let json = serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1, "labels": {"app": "web"}},
        "spec": spec,
    });
    serde_json::from_value(json).unwrap()
}

pub(crate) fn sandbox(id: &str, attempt: u32, ready: bool) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        pod_uid: "u1".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: "web".to_owned(),
        attempt,
        ready,
        created_at: at(0),
        netns_path: String::new(),
        host_network: false,
        runtime_handler: String::new(),
        grace_seconds: 30,
    }
}

pub(crate) fn record(pod: &PodView, name: &str, attempt: u32, state: ContainerState) -> ContainerRecord {
    let container = pod.container(name).unwrap().1;
    ContainerRecord {
        id: format!("{name}-{attempt}"),
        sandbox_id: "s0".to_owned(),
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        image_id: "sha256:1".to_owned(),
        attempt,
        failures: attempt,
        epoch: 0,
        hash: container_hash(container),
        state,
        created_at: at(i64::from(attempt)),
        log_path: std::path::PathBuf::new(),
        message_file: std::path::PathBuf::new(),
        message_from_logs: false,
        terminal: false,
        resources: container_resources(&pod.spec, container, NODE_MEMORY),
        identity: None,
    }
}

pub(crate) fn running(since: i64) -> ContainerState {
    ContainerState::Running { pid: 7, started_at: at(since) }
}

pub(crate) fn exited(code: i32, since: i64, until: i64) -> ContainerState {
    ContainerState::Exited {
        started_at: Some(at(since)),
        exit: Exit { code, signal: 0, oom_killed: false, finished_at: at(until), message: String::new() },
    }
}
