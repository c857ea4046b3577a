//! What this interface has made: which of the engine's sandboxes and containers are its own, and the configurations that
//! they were made from. All of it stands in the engine's labels; here it is kept decoded, and names are given once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine_api::{ContainerStatus, OWNER_LABEL, SandboxStatus};
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;

use crate::proto::{ContainerConfig, PodSandboxConfig};

/// Who owns sandboxes and containers that were made here.
pub(crate) const OWNER: &str = "cri";
/// The configuration, as protobuf in base64.
const CONFIG_LABEL: &str = "skiff.cri.config";

/// A sandbox with what made it.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) status: SandboxStatus,
    pub(crate) config: Arc<PodSandboxConfig>,
}

/// A container with what made it.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) status: ContainerStatus,
    pub(crate) config: Arc<ContainerConfig>,
}

/// The labels that the engine keeps.
pub(crate) fn labels_of(config: &impl Message) -> BTreeMap<String, String> {
    let encoded = STANDARD.encode(config.encode_to_vec());
    BTreeMap::from([(OWNER_LABEL.to_owned(), OWNER.to_owned()), (CONFIG_LABEL.to_owned(), encoded)])
}

fn is_ours(labels: &BTreeMap<String, String>) -> bool {
    labels.get(OWNER_LABEL).is_some_and(|owner| owner == OWNER)
}

/// The configuration in labels; what cannot be read is told and shown empty, since what runs has to be listed.
fn config_in<M: Message + Default>(labels: &BTreeMap<String, String>, id: &str) -> Arc<M> {
    let bytes = labels.get(CONFIG_LABEL).and_then(|text| STANDARD.decode(text).ok());
    match bytes.and_then(|bytes| M::decode(bytes.as_slice()).ok()) {
        Some(config) => Arc::new(config),
        None => {
            tracing::warn!(id, "the configuration that this was made from cannot be read");
            Arc::default()
        }
    }
}

/// So many ids of what was removed are kept, the latest: somebody may still have a list in hand from before.
const GONE_MAX: usize = 1024;

/// What is known, decoded.
#[derive(Default)]
pub(crate) struct Known {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pods: HashMap<String, Arc<PodSandboxConfig>>,
    containers: HashMap<String, (String, Arc<ContainerConfig>)>,
    /// Sandboxes and containers that were removed: their ids are nobody's again.
    gone: VecDeque<String>,
}

impl Inner {
    fn forget(&mut self, id: &str) {
        if self.gone.len() >= GONE_MAX {
            self.gone.pop_front();
        }
        self.gone.push_back(id.to_owned());
    }

    fn is_gone(&self, id: &str) -> bool {
        self.gone.iter().any(|gone| gone == id)
    }
}

impl Known {
    /// The sandbox, if it was made here.
    pub(crate) fn pod(&self, status: SandboxStatus) -> Option<Pod> {
        let spec = &status.spec;
        if !is_ours(&spec.labels) {
            return None;
        }
        let mut inner = self.inner.lock();
        if !inner.pods.contains_key(&spec.id) && inner.is_gone(&spec.id) {
            return None;
        }
        let config =
            inner.pods.entry(spec.id.clone()).or_insert_with(|| config_in(&spec.labels, &spec.id)).clone();
        Some(Pod { status, config })
    }

    /// The container, if it was made here: its sandbox was seen before.
    pub(crate) fn container(&self, status: ContainerStatus) -> Option<Kept> {
        let spec = &status.spec;
        let mut inner = self.inner.lock();
        // A container's labels may be a user's words (`docker run --label`), those of its sandbox are not.
        if !is_ours(&spec.labels) || !inner.pods.contains_key(&spec.sandbox_id) {
            return None;
        }
        if !inner.containers.contains_key(&spec.id) && inner.is_gone(&spec.id) {
            return None;
        }
        let decoded = || (spec.sandbox_id.clone(), config_in(&spec.labels, &spec.id));
        let config = inner.containers.entry(spec.id.clone()).or_insert_with(decoded).1.clone();
        Some(Kept { status, config })
    }

    /// Whether a sandbox was made here and is not removed.
    pub(crate) fn has_pod(&self, id: &str) -> bool {
        self.inner.lock().pods.contains_key(id)
    }

    /// Whether a container was made here and is not removed.
    pub(crate) fn has_container(&self, id: &str) -> bool {
        self.inner.lock().containers.contains_key(id)
    }

    /// Takes a sandbox's name, before the sandbox is made.
    pub(crate) fn reserve_pod(&self, id: &str, config: Arc<PodSandboxConfig>) -> Result<(), Status> {
        let mut inner = self.inner.lock();
        let taken = inner.pods.iter().find(|(_, other)| other.metadata == config.metadata);
        if let Some((other, _)) = taken {
            let name = config.metadata.clone().unwrap_or_default();
            return Err(Status::already_exists(format!(
                "pod sandbox {}/{} (uid {:?}, attempt {}) exists already as {other}: remove it first",
                name.namespace, name.name, name.uid, name.attempt
            )));
        }
        inner.pods.insert(id.to_owned(), config);
        Ok(())
    }

    /// Takes a container's name within its sandbox, before the container is made.
    pub(crate) fn reserve_container(
        &self,
        id: &str,
        sandbox_id: &str,
        config: Arc<ContainerConfig>,
    ) -> Result<(), Status> {
        let mut inner = self.inner.lock();
        let taken = inner
            .containers
            .iter()
            .find(|(_, (sandbox, other))| sandbox == sandbox_id && other.metadata == config.metadata);
        if let Some((other, _)) = taken {
            let name = config.metadata.clone().unwrap_or_default();
            return Err(Status::already_exists(format!(
                "container {} (attempt {}) exists already in sandbox {sandbox_id} as {other}: remove it first",
                name.name, name.attempt
            )));
        }
        inner.containers.insert(id.to_owned(), (sandbox_id.to_owned(), config));
        Ok(())
    }

    /// Forgets a sandbox with its containers, whose ids are given back.
    pub(crate) fn forget_pod(&self, id: &str) -> Vec<String> {
        let mut inner = self.inner.lock();
        if inner.pods.remove(id).is_some() {
            inner.forget(id);
        }
        let of_it = inner.containers.iter().filter(|(_, (sandbox, _))| sandbox == id);
        let gone: Vec<String> = of_it.map(|(container, _)| container.clone()).collect();
        inner.containers.retain(|_, (sandbox, _)| sandbox != id);
        gone.iter().for_each(|container| inner.forget(container));
        gone
    }

    /// Forgets a container; says whether it was known.
    pub(crate) fn forget_container(&self, id: &str) -> bool {
        let mut inner = self.inner.lock();
        let known = inner.containers.remove(id).is_some();
        if known {
            inner.forget(id);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ContainerMetadata, PodSandboxMetadata};

    #[test]
    fn names_are_given_once_and_come_free() {
        let known = Known::default();
        let pod = |attempt| {
            let metadata = PodSandboxMetadata { name: "a".into(), attempt, ..PodSandboxMetadata::default() };
            Arc::new(PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() })
        };
        known.reserve_pod("1", pod(0)).unwrap();
        assert_eq!(known.reserve_pod("2", pod(0)).unwrap_err().code(), tonic::Code::AlreadyExists);
        known.reserve_pod("2", pod(1)).unwrap();
        let container = || {
            let metadata = ContainerMetadata { name: "c".into(), attempt: 0 };
            Arc::new(ContainerConfig { metadata: Some(metadata), ..ContainerConfig::default() })
        };
        known.reserve_container("3", "1", container()).unwrap();
        known.reserve_container("4", "2", container()).unwrap();
        let again = known.reserve_container("5", "1", container()).unwrap_err();
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
        assert_eq!(known.forget_pod("1"), ["3"]);
        assert!(known.has_container("4") && !known.has_container("3") && !known.has_pod("1"));
        known.reserve_pod("6", pod(0)).unwrap();
    }

    #[test]
    fn a_list_of_before_brings_nothing_back() {
        let known = Known::default();
        let status = |id: &str| SandboxStatus {
            spec: engine_api::SandboxSpec {
                id: id.to_owned(),
                labels: labels_of(&PodSandboxConfig::default()),
                ..Default::default()
            },
            state: engine_api::SandboxState::Ready,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            netns_path: String::new(),
        };
        assert!(known.pod(status("1")).is_some() && known.has_pod("1"));
        known.forget_pod("1");
        assert!(known.pod(status("1")).is_none() && !known.has_pod("1"));
        // Who never was removed is found, as after a restart.
        assert!(known.pod(status("2")).is_some());
    }

    #[test]
    fn a_label_alone_makes_no_container_ours() {
        let known = Known::default();
        let of = |sandbox_id: &str| ContainerStatus {
            spec: engine_api::ContainerSpec {
                id: format!("in-{sandbox_id}"),
                sandbox_id: sandbox_id.to_owned(),
                labels: labels_of(&ContainerConfig::default()),
                ..Default::default()
            },
            state: engine_api::ContainerState::Created,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            log_path: Default::default(),
            identity: None,
        };
        known.reserve_pod("1", Arc::default()).unwrap();
        assert!(known.container(of("1")).is_some() && known.container(of("2")).is_none());
    }

    #[test]
    fn configurations_come_back_from_labels() {
        let config = PodSandboxConfig { hostname: "h".into(), ..PodSandboxConfig::default() };
        let labels = labels_of(&config);
        assert!(is_ours(&labels) && !is_ours(&BTreeMap::new()));
        assert_eq!(*config_in::<PodSandboxConfig>(&labels, "1"), config);
    }
}
