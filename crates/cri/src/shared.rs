//! What every call may use, and the questions that many of them ask.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use base::lifecycle::Tasks;
use engine_api::{
    EngineError, EventsLost, Image, Images, Runtime, SandboxNetwork, SandboxNetworks, SandboxState,
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, oneshot};
use tonic::Status;

use crate::known::{Kept, Known, Pod};
use crate::proto::ContainerEventResponse;
use crate::server::Config;
use crate::stats::Samples;
use crate::streaming::Stream;
use crate::tokens::Tokens;
use crate::{failure, filters, proto};

pub(crate) struct Shared {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) networks: Arc<dyn SandboxNetworks>,
    pub(crate) config: Config,
    pub(crate) known: Known,
    /// What the connected sandboxes got.
    pub(crate) connected: Mutex<HashMap<String, SandboxNetwork>>,
    pub(crate) events: broadcast::Sender<Result<ContainerEventResponse, EventsLost>>,
    pub(crate) tokens: Tokens<Stream>,
    /// Where streams are served: `http://127.0.0.1:port`.
    pub(crate) streams_at: String,
    pub(crate) samples: Mutex<Samples>,
    pub(crate) image_files: Mutex<Option<crate::images::Counted>>,
    pub(crate) tasks: Tasks,
}

impl Shared {
    /// Does work to its end, also where the caller goes away meanwhile: nothing is left half made.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let (sender, receiver) = oneshot::channel();
        self.tasks.spawn(async move {
            // The caller may be gone.
            let _ = sender.send(work.await);
        });
        receiver.await.unwrap_or_else(|_| Err(Status::unavailable("the runtime is closing: ask again")))
    }

    /// Every sandbox of this interface.
    pub(crate) async fn pods(&self) -> Result<Vec<Pod>, Status> {
        let all = self.runtime.sandboxes().await.map_err(failure::of)?;
        Ok(all.into_iter().filter_map(|status| self.known.pod(status)).collect())
    }

    /// Sandboxes that a filter lets through, the youngest first.
    pub(crate) async fn pods_like(&self, filter: &proto::PodSandboxFilter) -> Result<Vec<Pod>, Status> {
        let mut pods = self.pods().await?;
        pods.retain(|pod| filters::pod(pod, filter));
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.status.created_at));
        Ok(pods)
    }

    /// Every container of this interface.
    pub(crate) async fn containers(&self) -> Result<Vec<Kept>, Status> {
        let all = self.runtime.containers().await.map_err(failure::of)?;
        Ok(all.into_iter().filter_map(|status| self.known.container(status)).collect())
    }

    /// Containers that a filter lets through, the youngest first.
    pub(crate) async fn containers_like(&self, filter: &proto::ContainerFilter) -> Result<Vec<Kept>, Status> {
        let mut containers = self.containers().await?;
        containers.retain(|container| filters::container(container, filter));
        containers.sort_by_key(|container| std::cmp::Reverse(container.status.created_at));
        Ok(containers)
    }

    /// The sandbox of an id or of the beginning of only one.
    pub(crate) async fn pod(&self, id: &str) -> Result<Pod, Status> {
        let pods = self.pods().await?;
        let found = only(pods, id, |pod| &pod.status.spec.id)?;
        found.ok_or_else(|| Status::not_found(format!("pod sandbox {id:?} is not there")))
    }

    /// The container of an id or of the beginning of only one.
    pub(crate) async fn container(&self, id: &str) -> Result<Kept, Status> {
        if self.known.has_container(id)
            && let Ok(status) = self.runtime.container(id).await
            && let Some(container) = self.known.container(status)
        {
            return Ok(container);
        }
        let containers = self.containers().await?;
        let found = only(containers, id, |container| &container.status.spec.id)?;
        found.ok_or_else(|| Status::not_found(format!("container {id:?} is not there")))
    }

    /// The addresses of a sandbox. One that is alive and was not connected (its maker was killed before) is now.
    pub(crate) async fn addresses(&self, pod: &Pod) -> Result<Vec<String>, EngineError> {
        let network = self.network(pod).await?;
        let addresses = network.map(|network| network.addresses).unwrap_or_default();
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    /// What a living sandbox with a network of its own is connected by.
    pub(crate) async fn network(&self, pod: &Pod) -> Result<Option<SandboxNetwork>, EngineError> {
        let spec = &pod.status.spec;
        if spec.host_network || pod.status.state != SandboxState::Ready {
            return Ok(None);
        }
        let known = self.connected.lock().get(&spec.id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let network = self.networks.attach(&spec.id, &pod.status.netns_path).await?;
        self.connected.lock().insert(spec.id.clone(), network.clone());
        Ok(Some(network))
    }

    /// What a container runs, if that is still there.
    pub(crate) async fn image_of(&self, container: &Kept) -> Option<Image> {
        let id = &container.status.spec.image_id;
        self.images.resolve(id).await.ok().map(|found| found.image)
    }

    /// Where a sandbox's files are.
    pub(crate) fn directory(&self, sandbox_id: &str) -> PathBuf {
        self.config.data_dir.join(sandbox_id)
    }
}

/// The one with this id, or whose id alone begins so.
fn only<T>(all: Vec<T>, id: &str, id_of: impl Fn(&T) -> &String) -> Result<Option<T>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let mut found: Vec<T> = all.into_iter().filter(|one| id_of(one).starts_with(id)).collect();
    if found.len() > 1 {
        return Err(Status::invalid_argument(format!(
            "{id:?} is the beginning of several ids: give more of it"
        )));
    }
    Ok(found.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_ids_name_one_or_none() {
        let all = || vec!["abc".to_owned(), "abd".to_owned(), "x".to_owned()];
        let find = |id: &str| only(all(), id, |one| one).map_err(|status| status.code());
        assert_eq!(find("abc"), Ok(Some("abc".to_owned())));
        assert_eq!(find("x"), Ok(Some("x".to_owned())));
        assert_eq!(find("ab"), Err(tonic::Code::InvalidArgument));
        assert_eq!((find("q"), find("")), (Ok(None), Ok(None)));
    }
}
