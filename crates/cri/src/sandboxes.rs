//! Sandboxes: made, stopped, removed.

use std::sync::Arc;

use engine_api::SandboxState;
use tonic::{Code, Status};

use crate::known::Pod;
use crate::proto::{ContainerEventType, PodSandboxConfig};
use crate::sandbox_spec::{self, HostFacts, SandboxPlan, ports};
use crate::shared::Shared;
use crate::{events, failure, files};

/// The host's own name.
fn own_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Makes a sandbox and connects it; gives its id.
pub(crate) async fn run(
    shared: Arc<Shared>,
    config: PodSandboxConfig,
    handler: &str,
) -> Result<String, Status> {
    let id = base::id::hex64();
    let hostname = own_hostname();
    let handlers = shared.runtime.handlers();
    let host =
        HostFacts { hostname: &hostname, cgroup_root: &shared.config.cgroup_root, handlers: &handlers };
    let plan = sandbox_spec::plan(&config, handler, &id, &host)?;
    let config = Arc::new(config);
    shared.known.reserve_pod(&id, config.clone())?;
    if let Err(status) = bring_up(&shared, &plan, &config).await {
        discard(&shared, &id).await;
        return Err(status);
    }
    shared.tell(&id, &id, ContainerEventType::ContainerCreatedEvent).await;
    shared.tell(&id, &id, ContainerEventType::ContainerStartedEvent).await;
    Ok(id)
}

async fn bring_up(shared: &Shared, plan: &SandboxPlan, config: &PodSandboxConfig) -> Result<(), Status> {
    let id = &plan.spec.id;
    let status = shared.runtime.create_sandbox(plan.spec.clone()).await.map_err(failure::of)?;
    let pod =
        shared.known.pod(status).ok_or_else(|| Status::internal("the engine lost the owner's label"))?;
    let addresses = shared.addresses(&pod).await.map_err(failure::of)?;
    if !plan.ports.is_empty() {
        shared.networks.publish(id, &plan.ports).await.map_err(failure::of)?;
    }
    let address = addresses.first().map(String::as_str);
    files::write(&shared.directory(id), config, &plan.hostname, address).await
}

/// Takes away what there is of a sandbox that could not be made.
async fn discard(shared: &Shared, id: &str) {
    if let Err(status) = clear(shared, id).await {
        tracing::warn!(sandbox = id, %status, "a sandbox that could not be made left something");
        return;
    }
    shared.known.forget_pod(id);
}

async fn clear(shared: &Shared, id: &str) -> Result<(), Status> {
    shared.runtime.stop_sandbox(id).await.map_err(failure::of)?;
    disconnect(shared, id).await?;
    shared.runtime.remove_sandbox(id).await.map_err(failure::of)?;
    match tokio::fs::remove_dir_all(shared.directory(id)).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failure::internal("remove the sandbox's files", &error))
        }
        _ => Ok(()),
    }
}

async fn disconnect(shared: &Shared, id: &str) -> Result<(), Status> {
    shared.networks.detach(id).await.map_err(failure::of)?;
    shared.connected.lock().remove(id);
    Ok(())
}

/// The sandbox, or nothing where it is gone: calls that end sandboxes may be repeated.
async fn find(shared: &Shared, id: &str) -> Result<Option<Pod>, Status> {
    match shared.pod(id).await {
        Ok(pod) => Ok(Some(pod)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// Ends a sandbox with all that runs in it.
pub(crate) async fn stop(shared: Arc<Shared>, id: &str) -> Result<(), Status> {
    let Some(pod) = find(&shared, id).await? else { return Ok(()) };
    let id = &pod.status.spec.id;
    shared.runtime.stop_sandbox(id).await.map_err(failure::of)?;
    disconnect(&shared, id).await?;
    if pod.status.state == SandboxState::Ready {
        shared.tell(id, id, ContainerEventType::ContainerStoppedEvent).await;
    }
    Ok(())
}

/// Removes a sandbox with its containers.
pub(crate) async fn remove(shared: Arc<Shared>, id: &str) -> Result<(), Status> {
    let Some(pod) = find(&shared, id).await? else { return Ok(()) };
    let id = &pod.status.spec.id;
    clear(&shared, id).await?;
    for container in shared.known.forget_pod(id) {
        shared.tell_gone(&container, events::metadata_of(&pod));
    }
    shared.tell_gone(id, events::metadata_of(&pod));
    Ok(())
}

/// Takes back what an earlier process made: names, networks and ports.
pub(crate) async fn take_back(shared: &Shared) -> Result<(), Status> {
    let pods = shared.pods().await?;
    shared.containers().await?;
    for pod in pods.iter().filter(|pod| pod.status.state == SandboxState::Ready) {
        if let Err(status) = reconnect(shared, pod).await {
            tracing::warn!(sandbox = pod.status.spec.id, %status, "a sandbox could not be connected again");
        }
    }
    files::clear_unknown(&shared.config.data_dir, |id| shared.known.has_pod(id)).await;
    Ok(())
}

/// Everything of [`bring_up`] but the sandbox itself: its maker may have been killed half-way.
async fn reconnect(shared: &Shared, pod: &Pod) -> Result<(), Status> {
    let spec = &pod.status.spec;
    let addresses = shared.addresses(pod).await.map_err(failure::of)?;
    let ports = ports(&pod.config.port_mappings)?;
    if !spec.host_network && !ports.is_empty() {
        shared.networks.publish(&spec.id, &ports).await.map_err(failure::of)?;
    }
    let directory = shared.directory(&spec.id);
    if files::are_whole(&directory).await {
        return Ok(());
    }
    let hostname = if spec.hostname.is_empty() { own_hostname() } else { spec.hostname.clone() };
    files::write(&directory, &pod.config, &hostname, addresses.first().map(String::as_str)).await
}
