//! Containers: made, started, stopped, changed, removed.

use std::sync::Arc;
use std::time::Duration;

use engine_api::{ContainerState, Mount, MountSource, SandboxState};
use tonic::{Code, Status};

use crate::known::{Kept, Pod};
use crate::proto::{ContainerConfig, ContainerEventType, LinuxContainerResources};
use crate::shared::Shared;
use crate::{container_spec, failure, resources, status};

/// Makes a container; gives its id.
pub(crate) async fn create(
    shared: Arc<Shared>,
    sandbox_id: &str,
    config: ContainerConfig,
) -> Result<String, Status> {
    let pod = shared.pod(sandbox_id).await?;
    let sandbox_id = pod.status.spec.id.clone();
    if pod.status.state != SandboxState::Ready {
        return Err(Status::failed_precondition(format!(
            "sandbox {sandbox_id} is not ready: make another one"
        )));
    }
    let asked = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    if asked.is_empty() {
        return Err(Status::invalid_argument("the container's configuration names no image"));
    }
    let image = shared.images.resolve(asked).await.map_err(failure::of)?.image;
    let id = base::id::hex64();
    let spec = container_spec::plan(&config, &pod, &image, &id, &shared.directory(&sandbox_id))?;
    make_sources(&spec.mounts).await?;
    shared.known.reserve_container(&id, &sandbox_id, Arc::new(config))?;
    if let Err(error) = shared.runtime.create_container(spec).await {
        shared.known.forget_container(&id);
        return Err(failure::of(error));
    }
    Ok(id)
}

/// Directories of the host that are mounted and not there are made, as other runtimes do.
async fn make_sources(mounts: &[Mount]) -> Result<(), Status> {
    for mount in mounts {
        let MountSource::Bind(path) = &mount.source else { continue };
        if tokio::fs::metadata(path).await.is_ok() {
            continue;
        }
        let made = tokio::fs::create_dir_all(path).await;
        made.map_err(|error| {
            Status::invalid_argument(format!("mount source {} cannot be made: {error}", path.display()))
        })?;
    }
    Ok(())
}

/// Runs a container that was made and never started.
pub(crate) async fn start(shared: Arc<Shared>, id: &str) -> Result<(), Status> {
    let container = shared.container(id).await?;
    if container.status.state != ContainerState::Created {
        return Err(wrong_state(&container, "only one that was made and never started can be started"));
    }
    let id = &container.status.spec.id;
    shared.runtime.start_container(id).await.map(drop).map_err(failure::of)
}

fn wrong_state(container: &Kept, why: &str) -> Status {
    let state = status::state(container).as_str_name();
    Status::failed_precondition(format!("container {} is in state {state}: {why}", container.status.spec.id))
}

/// The container, which has to run.
pub(crate) async fn running(shared: &Shared, id: &str) -> Result<Kept, Status> {
    let container = shared.container(id).await?;
    match container.status.state {
        ContainerState::Running { .. } => Ok(container),
        _ => Err(wrong_state(&container, "it has to run for this")),
    }
}

/// The container, or nothing where it is gone: calls that end containers may be repeated.
async fn find(shared: &Shared, id: &str) -> Result<Option<Kept>, Status> {
    match shared.container(id).await {
        Ok(container) => Ok(Some(container)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// Asks a container to end, and kills it after `seconds`.
pub(crate) async fn stop(shared: Arc<Shared>, id: &str, seconds: i64) -> Result<(), Status> {
    let Some(container) = find(&shared, id).await? else { return Ok(()) };
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let id = &container.status.spec.id;
    shared.runtime.stop_container(id, grace).await.map(drop).map_err(failure::of)
}

/// Removes a container, also one that runs.
pub(crate) async fn remove(shared: Arc<Shared>, id: &str) -> Result<(), Status> {
    let Some(container) = find(&shared, id).await? else { return Ok(()) };
    let spec = &container.status.spec;
    shared.runtime.remove_container(&spec.id, true).await.map_err(failure::of)?;
    if shared.known.forget_container(&spec.id) {
        shared.tell(&spec.sandbox_id, &spec.id, ContainerEventType::ContainerDeletedEvent).await;
    }
    Ok(())
}

/// Changes limits. What ended keeps those that it had.
pub(crate) async fn update(
    shared: Arc<Shared>,
    id: &str,
    asked: Option<LinuxContainerResources>,
) -> Result<(), Status> {
    let container = shared.container(id).await?;
    if matches!(container.status.state, ContainerState::Exited { .. }) {
        return Err(wrong_state(&container, "its limits cannot be changed any more"));
    }
    let Some(asked) = asked else { return Ok(()) };
    let spec = &container.status.spec;
    let changed = resources::changed(&spec.resources, &asked)?;
    shared.runtime.update_resources(&spec.id, changed).await.map_err(failure::of)
}

/// Opens a container's log anew, after it was moved.
pub(crate) async fn reopen_log(shared: &Shared, id: &str) -> Result<(), Status> {
    let container = running(shared, id).await?;
    shared.runtime.log_path(&container.status.spec.id).await.map(drop).map_err(failure::of)
}

/// Containers of a sandbox in full.
pub(crate) async fn of_pod(shared: &Shared, pod: &Pod) -> Result<Vec<crate::proto::ContainerStatus>, Status> {
    let filter = crate::proto::ContainerFilter {
        pod_sandbox_id: pod.status.spec.id.clone(),
        ..crate::proto::ContainerFilter::default()
    };
    let mut statuses = Vec::new();
    for container in shared.containers_like(&filter).await? {
        let image = shared.image_of(&container).await;
        statuses.push(status::container_status(&container, image.as_ref()));
    }
    Ok(statuses)
}
