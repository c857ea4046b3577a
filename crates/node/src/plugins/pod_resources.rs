//! Which devices and CPUs containers have, told to whoever watches the node (exporters of figures, operators of devices) at a socket
//! in its directory. Source: `pkg/kubelet/apis/podresources`, KEP-606, KEP-2043, KEP-3695.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Key;
use base::backoff::Policy;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use parking_lot::Mutex;
use protos::pod_resources::v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use protos::pod_resources::v1::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
    ContainerResources, DynamicResource, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::dra;
use crate::cpus::CpuSet;
use crate::deps::{Deps, blocking};
use crate::pod::{ContainerKind, PodView};

/// In the node's directory.
const DIRECTORY: &str = "pod-resources";
const SOCKET: &str = "kubelet.sock";
const REQUEST_BYTES_MAX: usize = 64 << 10;
const REQUEST_MAX: Duration = Duration::from_secs(10);
const AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(120) };
/// So many answers a second, and so many at once. Source: `grpc.DefaultQPS`, `DefaultBurstTokens`.
const PER_SECOND: u32 = 100;
const AT_ONCE: u32 = 10;

/// Lets no more through than so many a second.
#[derive(Default)]
struct Limit(Mutex<Option<Instant>>);

impl Limit {
    /// Whether one more may pass at a moment.
    fn passes(&self, now: Instant) -> bool {
        let each = Duration::from_secs(1) / PER_SECOND;
        let mut next = self.0.lock();
        let due = next.map_or(now, |next| next.max(now));
        let passes = due.saturating_duration_since(now) <= each * (AT_ONCE - 1);
        if passes {
            *next = Some(due + each);
        }
        passes
    }
}

/// The service.
struct Lister {
    deps: Arc<Deps>,
    limit: Limit,
}

impl Lister {
    fn counted(&self, method: &'static str) -> Result<(), Status> {
        self.deps.figures.dra.asked(method);
        match self.limit.passes(Instant::now()) {
            true => Ok(()),
            false => Err(Status::resource_exhausted("rejected by rate limit")),
        }
    }

    /// What a container has.
    fn container(&self, pod: &PodView, container: &Container) -> ContainerResources {
        let deps = &*self.deps;
        let devices = deps.plugins.devices.of_container(&deps.runs_as(pod), &container.name);
        let each = |(resource_name, id): (String, String)| ContainerDevices {
            resource_name,
            device_ids: vec![id],
            topology: None,
        };
        ContainerResources {
            name: container.name.clone(),
            devices: devices.into_iter().map(each).collect(),
            cpu_ids: numbers(&deps.cpus.own(&deps.runs_as(pod), &container.name)),
            // Nobody has memory of his own.
            memory: Vec::new(),
            dynamic_resources: claimed(deps, pod, container),
        }
    }

    fn pod(&self, pod: &PodView) -> PodResources {
        let own =
            pod.containers().filter(|(kind, _)| matches!(kind, ContainerKind::Sidecar | ContainerKind::App));
        PodResources {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            containers: own.map(|(_, container)| self.container(pod, container)).collect(),
            cpu_ids: Vec::new(),
            memory: Vec::new(),
        }
    }
}

fn numbers(cpus: &CpuSet) -> Vec<i64> {
    cpus.iter().map(i64::from).collect()
}

/// The claims of a container with all of their devices.
fn claimed(deps: &Deps, pod: &PodView, container: &Container) -> Vec<DynamicResource> {
    let claims = dra::claims_of(deps, pod, container).into_iter().map(|claim| {
        let devices = claim.drivers.into_iter().flat_map(|(driver, devices)| {
            devices.into_iter().map(move |given| ClaimResource {
                cdi_devices: given.cdi.into_iter().map(|name| CdiDevice { name }).collect(),
                driver_name: driver.clone(),
                pool_name: given.pool,
                device_name: given.device,
                share_id: given.share,
            })
        });
        DynamicResource {
            claim_name: claim.name,
            claim_namespace: claim.namespace,
            claim_resources: devices.collect(),
        }
    });
    claims.collect()
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.counted("list")?;
        let objects = self.deps.caches.pods.list();
        let pods = objects.iter().filter_map(|object| PodView::decode(object).ok());
        let pods = pods.filter(|pod| !pod.is_terminal()).map(|pod| self.pod(&pod));
        Ok(Response::new(ListPodResourcesResponse { pod_resources: pods.collect() }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.counted("get_allocatable")?;
        let devices = self.deps.plugins.devices.healthy().into_iter().map(|(resource_name, id)| {
            ContainerDevices { resource_name, device_ids: vec![id], topology: None }
        });
        let answer = AllocatableResourcesResponse {
            devices: devices.collect(),
            cpu_ids: numbers(&self.deps.cpus.allocatable()),
            memory: Vec::new(),
        };
        Ok(Response::new(answer))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.counted("get")?;
        let GetPodResourcesRequest { pod_name: name, pod_namespace: namespace } = request.into_inner();
        let found = self.deps.caches.pods.get(&Key::new(namespace.clone(), name.clone()));
        let pod = found.and_then(|object| PodView::decode(&object).ok());
        let pod =
            pod.ok_or_else(|| Status::unknown(format!("pod {name} in namespace {namespace} not found")))?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(self.pod(&pod)) }))
    }
}

/// Makes the socket, which only root and its group may use. Blocks.
fn bind(directory: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>) {
    let directory = deps.config.data_dir.join(DIRECTORY);
    let mut failures = 0;
    loop {
        if let Err(error) = serve(&deps, &directory).await {
            tracing::error!(directory = %directory.display(), %error, "nobody is told which devices pods have");
        }
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
    }
}

async fn serve(deps: &Arc<Deps>, directory: &Path) -> Result<(), base::BoxError> {
    let place = directory.to_owned();
    let listener = UnixListener::from_std(blocking(move || bind(&place)).await??)?;
    let lister = Lister { deps: deps.clone(), limit: Limit::default() };
    let service = PodResourcesListerServer::new(lister).max_decoding_message_size(REQUEST_BYTES_MAX);
    let server = tonic::transport::Server::builder()
        .timeout(REQUEST_MAX)
        .concurrency_limit_per_connection(4)
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener));
    Ok(server.await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_pass_at_once_and_later_more() {
        let (limit, begin) = (Limit::default(), Instant::now());
        let passed = (0..50).filter(|_| limit.passes(begin)).count();
        assert_eq!(passed, AT_ONCE as usize);
        assert!(limit.passes(begin + Duration::from_millis(10)));
        assert!(!limit.passes(begin + Duration::from_millis(10)));
        let later = begin + Duration::from_secs(5);
        assert_eq!((0..50).filter(|_| limit.passes(later)).count(), AT_ONCE as usize);
    }

    #[test]
    fn the_socket_is_roots_and_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let _listener = bind(dir.path()).unwrap();
            let mode = std::fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
        }
    }
}
