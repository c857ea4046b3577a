//! Sandboxes and containers as the node recognises them in the runtime: everything that it needs to go on after its own
//! restart stands in their labels.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use engine_api::{
    ContainerState, ContainerStatus, Identity, OWNER_LABEL, Resources, SandboxSpec, SandboxState,
    SandboxStatus,
};
use jiff::Timestamp;

/// Label keys. The first four are CRI's own.
pub(crate) mod label {
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// `status.restartCount` of the container; the sandbox's attempt.
    pub(crate) const ATTEMPT: &str = "skiff.dev/attempt";
    /// Hash of the parts of the container's spec whose change restarts it.
    pub(crate) const HASH: &str = "skiff.dev/container-hash";
    /// How many restarts in a row earned back-off before this one.
    pub(crate) const FAILURES: &str = "skiff.dev/restarts-in-row";
    /// How often the pod had been asked to begin anew when the container was made; absent for never.
    pub(crate) const EPOCH: &str = "skiff.dev/pod-epoch";
    /// Grace in seconds, for pods that vanished from the API while the node was away.
    pub(crate) const GRACE: &str = "skiff.dev/termination-grace-seconds";
    /// What a `preStop` hook needs where the pod is not at hand, as JSON; absent without one.
    pub(crate) const PRE_STOP: &str = "skiff.dev/pre-stop";
    /// Host path of the termination message.
    pub(crate) const MESSAGE_FILE: &str = "skiff.dev/termination-message-file";
    /// `File` or `FallbackToLogsOnError`.
    pub(crate) const MESSAGE_POLICY: &str = "skiff.dev/termination-message-policy";
}

/// A sandbox of a pod.
#[derive(Debug, Clone)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) pod_uid: String,
    pub(crate) pod_namespace: String,
    pub(crate) pod_name: String,
    pub(crate) attempt: u32,
    pub(crate) ready: bool,
    pub(crate) created_at: Timestamp,
    pub(crate) netns_path: String,
    pub(crate) host_network: bool,
    /// The OCI runtime of its containers; empty: the built-in one.
    pub(crate) runtime_handler: String,
    pub(crate) grace_seconds: i64,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    /// How often the pod had been asked to begin anew before.
    pub(crate) epoch: u32,
    pub(crate) hash: String,
    pub(crate) state: ContainerState,
    pub(crate) created_at: Timestamp,
    pub(crate) log_path: PathBuf,
    pub(crate) message_file: PathBuf,
    pub(crate) message_from_logs: bool,
    pub(crate) terminal: bool,
    /// What its control group was given.
    pub(crate) resources: Resources,
    /// Who its first process was started as.
    pub(crate) identity: Option<Identity>,
}

/// How long the containers of a pod's sandbox may take to end; `None` for sandboxes that are no pod's.
pub fn termination_grace(spec: &SandboxSpec) -> Option<Duration> {
    let seconds = spec.labels.get(label::GRACE)?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

impl SandboxRecord {
    /// Reads the labels; `None` for sandboxes that are no pod's (a `run` container's), or another's: an upstream kubelet's
    /// bear the same labels.
    pub(crate) fn from_status(status: &SandboxStatus) -> Option<Self> {
        let labels = own(&status.spec.labels)?;
        Some(Self {
            id: status.spec.id.clone(),
            pod_uid: labels.get(label::POD_UID)?.clone(),
            pod_namespace: labels.get(label::POD_NAMESPACE)?.clone(),
            pod_name: labels.get(label::POD_NAME)?.clone(),
            attempt: number(labels, label::ATTEMPT),
            ready: status.state == SandboxState::Ready,
            created_at: status.created_at,
            netns_path: status.netns_path.clone(),
            host_network: status.spec.host_network,
            runtime_handler: status.spec.runtime_handler.clone(),
            grace_seconds: labels.get(label::GRACE).and_then(|text| text.parse().ok()).unwrap_or(30),
        })
    }
}

impl ContainerRecord {
    /// Reads the labels; `None` for containers that are no pod's, or another's.
    pub(crate) fn from_status(status: &ContainerStatus) -> Option<Self> {
        let labels = own(&status.spec.labels)?;
        labels.get(label::POD_UID)?;
        Some(Self {
            id: status.spec.id.clone(),
            sandbox_id: status.spec.sandbox_id.clone(),
            name: labels.get(label::CONTAINER_NAME)?.clone(),
            image: status.spec.image.clone(),
            image_id: status.spec.image_id.clone(),
            attempt: number(labels, label::ATTEMPT),
            failures: number(labels, label::FAILURES),
            epoch: number(labels, label::EPOCH),
            hash: labels.get(label::HASH).cloned().unwrap_or_default(),
            state: status.state.clone(),
            created_at: status.created_at,
            log_path: status.log_path.clone(),
            message_file: labels.get(label::MESSAGE_FILE).map(PathBuf::from).unwrap_or_default(),
            message_from_logs: labels
                .get(label::MESSAGE_POLICY)
                .is_some_and(|policy| policy == "FallbackToLogsOnError"),
            terminal: status.spec.terminal,
            resources: status.spec.resources.clone(),
            identity: status.identity.clone(),
        })
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    pub(crate) fn exit(&self) -> Option<&engine_api::Exit> {
        match &self.state {
            ContainerState::Exited { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// When its first process started.
    pub(crate) fn started_at(&self) -> Option<Timestamp> {
        match &self.state {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Exited { started_at, .. } => *started_at,
            ContainerState::Created => None,
        }
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.exit().is_some_and(|exit| exit.code == 0)
    }
}

/// Labels of what the node may have made: other users of the engine say whose theirs are.
fn own(labels: &BTreeMap<String, String>) -> Option<&BTreeMap<String, String>> {
    (!labels.contains_key(OWNER_LABEL)).then_some(labels)
}

fn number(labels: &BTreeMap<String, String>, key: &str) -> u32 {
    labels.get(key).and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bears_another_owner_is_no_pod_of_the_nodes() {
        let labels = [(label::POD_UID, "1"), (label::POD_NAMESPACE, "n"), (label::POD_NAME, "p")];
        let mut labels: BTreeMap<String, String> =
            labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let found = |labels: &BTreeMap<String, String>| {
            SandboxRecord::from_status(&SandboxStatus {
                spec: SandboxSpec { labels: labels.clone(), ..SandboxSpec::default() },
                state: SandboxState::Ready,
                created_at: Timestamp::UNIX_EPOCH,
                netns_path: String::new(),
            })
        };
        assert_eq!(found(&labels).unwrap().pod_uid, "1");
        labels.insert(OWNER_LABEL.to_owned(), "cri".to_owned());
        assert!(found(&labels).is_none());
    }
}
