//! What the runtime holds for pods, kept current by its events and by the answers to the node's own calls, so that no
//! worker ever lists.

use std::collections::HashMap;

use engine_api::{ContainerState, ContainerStatus, EngineError, ErrorKind, Runtime, SandboxStatus};
use parking_lot::Mutex;

use crate::pod::{ContainerRecord, SandboxRecord};

/// Sandboxes and containers of all pods.
#[derive(Default)]
pub(crate) struct RuntimeState {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sandboxes: HashMap<String, SandboxRecord>,
    containers: HashMap<String, ContainerRecord>,
}

/// What the runtime holds for one pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodRuntime {
    pub(crate) sandboxes: Vec<SandboxRecord>,
    pub(crate) containers: Vec<ContainerRecord>,
}

impl RuntimeState {
    /// Lists everything anew.
    pub(crate) async fn refresh(&self, runtime: &dyn Runtime) -> Result<(), EngineError> {
        let sandboxes = runtime.sandboxes().await?;
        let containers = runtime.containers().await?;
        let mut inner = self.inner.lock();
        inner.sandboxes = sandboxes
            .iter()
            .filter_map(SandboxRecord::from_status)
            .map(|record| (record.id.clone(), record))
            .collect();
        inner.containers = containers
            .iter()
            .filter_map(ContainerRecord::from_status)
            .map(|record| (record.id.clone(), record))
            .collect();
        Ok(())
    }

    /// Looks one container up; one that is gone is forgotten.
    pub(crate) async fn refresh_container(&self, runtime: &dyn Runtime, id: &str) {
        match runtime.container(id).await {
            Ok(status) => self.put_container(&status),
            Err(error) if error.kind == ErrorKind::NotFound => self.forget_container(id),
            Err(error) => tracing::warn!(container = id, %error, "container status not readable"),
        }
    }

    pub(crate) fn put_sandbox(&self, status: &SandboxStatus) {
        if let Some(record) = SandboxRecord::from_status(status) {
            self.inner.lock().sandboxes.insert(record.id.clone(), record);
        }
    }

    pub(crate) fn put_container(&self, status: &ContainerStatus) {
        if let Some(record) = ContainerRecord::from_status(status) {
            let mut inner = self.inner.lock();
            // Answers may overtake each other: an end is final.
            if inner.containers.get(&record.id).is_some_and(|known| known.exit().is_some()) {
                return;
            }
            inner.containers.insert(record.id.clone(), record);
        }
    }

    /// A sandbox's shim has died, or it was stopped.
    pub(crate) fn sandbox_ended(&self, id: &str) {
        if let Some(sandbox) = self.inner.lock().sandboxes.get_mut(id) {
            sandbox.ready = false;
        }
    }

    pub(crate) fn forget_container(&self, id: &str) {
        self.inner.lock().containers.remove(id);
    }

    pub(crate) fn forget_sandbox(&self, id: &str) {
        let mut inner = self.inner.lock();
        inner.sandboxes.remove(id);
        inner.containers.retain(|_, container| container.sandbox_id != id);
    }

    /// What there is of a pod.
    pub(crate) fn pod(&self, uid: &str) -> PodRuntime {
        let inner = self.inner.lock();
        let sandboxes: Vec<_> =
            inner.sandboxes.values().filter(|sandbox| sandbox.pod_uid == uid).cloned().collect();
        let containers = inner
            .containers
            .values()
            .filter(|container| sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox_id))
            .cloned()
            .collect();
        PodRuntime { sandboxes, containers }
    }

    /// The pod of a sandbox.
    pub(crate) fn pod_of(&self, sandbox_id: &str) -> Option<String> {
        self.inner.lock().sandboxes.get(sandbox_id).map(|sandbox| sandbox.pod_uid.clone())
    }

    /// The containers that run, with their pods' uids.
    pub(crate) fn running(&self) -> Vec<(String, ContainerRecord)> {
        let inner = self.inner.lock();
        let running = inner.containers.values().filter(|container| container.is_running());
        let of_pods = running.filter_map(|container| {
            let sandbox = inner.sandboxes.get(&container.sandbox_id)?;
            Some((sandbox.pod_uid.clone(), container.clone()))
        });
        of_pods.collect()
    }

    /// The containers of a sandbox.
    pub(crate) fn containers_of(&self, sandbox_id: &str) -> Vec<String> {
        let inner = self.inner.lock();
        let inside = inner.containers.values().filter(|container| container.sandbox_id == sandbox_id);
        inside.map(|container| container.id.clone()).collect()
    }

    /// How many sandboxes run, and how many containers are made, have ended, and run.
    pub(crate) fn counts(&self) -> (usize, [usize; 3]) {
        let inner = self.inner.lock();
        let mut states = [0; 3];
        for container in inner.containers.values() {
            let state = match container.state {
                ContainerState::Created => 0,
                ContainerState::Exited { .. } => 1,
                ContainerState::Running { .. } => 2,
            };
            states[state] += 1;
        }
        (inner.sandboxes.values().filter(|sandbox| sandbox.ready).count(), states)
    }

    /// One container.
    pub(crate) fn container(&self, id: &str) -> Option<ContainerRecord> {
        self.inner.lock().containers.get(id).cloned()
    }

    /// One sandbox per pod that has any.
    pub(crate) fn pods(&self) -> Vec<SandboxRecord> {
        let mut by_uid: HashMap<String, SandboxRecord> = HashMap::new();
        for sandbox in self.inner.lock().sandboxes.values() {
            by_uid.insert(sandbox.pod_uid.clone(), sandbox.clone());
        }
        by_uid.into_values().collect()
    }
}
