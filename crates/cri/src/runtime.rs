//! The runtime service: each call in its place.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::proto::runtime_service_server::RuntimeService;
use crate::proto::*;
use crate::shared::Shared;
use crate::{containers, events, exec, failure, metrics, sandboxes, stats, status};

/// Items of a list that is streamed, in one message.
const PIECE_ITEMS: usize = 64;

/// A list in messages that stay small.
pub(crate) type Pieces<M> = BoxStream<'static, Result<M, Status>>;

/// A list in pieces.
pub(crate) fn pieces<T, M>(items: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Response<Pieces<M>>
where
    T: Clone,
    M: Send + 'static,
{
    let messages: Vec<_> = items.chunks(PIECE_ITEMS).map(|piece| Ok(message(piece.to_vec()))).collect();
    Response::new(futures::stream::iter(messages).boxed())
}

/// The runtime over the engine.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

/// What this engine does not do, with what to do in its place.
fn checkpoints() -> Status {
    Status::unimplemented(
        "checkpoints of processes are not made by this runtime: commit the container's files to an image, or keep state in a volume",
    )
}

/// What a runtime can do by this interface, which gives no user namespaces yet.
fn handler(of: engine_api::RuntimeHandler) -> RuntimeHandler {
    let features = RuntimeHandlerFeatures {
        recursive_read_only_mounts: of.recursive_read_only_mounts,
        user_namespaces: false,
    };
    RuntimeHandler { name: of.name, features: Some(features) }
}

fn condition(kind: &str) -> RuntimeCondition {
    RuntimeCondition { r#type: kind.to_owned(), status: true, ..RuntimeCondition::default() }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "skiff".to_owned(),
            runtime_version: self.0.config.version.clone(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let RunPodSandboxRequest { config, runtime_handler } = request.into_inner();
        let config = config.unwrap_or_default();
        let shared = self.0.clone();
        let work = async move { sandboxes::run(shared, config, &runtime_handler).await };
        let pod_sandbox_id = self.0.to_the_end(work).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let (shared, id) = (self.0.clone(), request.into_inner().pod_sandbox_id);
        self.0.to_the_end(async move { sandboxes::stop(shared, &id).await }).await?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let (shared, id) = (self.0.clone(), request.into_inner().pod_sandbox_id);
        self.0.to_the_end(async move { sandboxes::remove(shared, &id).await }).await?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let PodSandboxStatusRequest { pod_sandbox_id, verbose } = request.into_inner();
        let pod = self.0.pod(&pod_sandbox_id).await?;
        let addresses = self.0.addresses(&pod).await.map_err(failure::of)?;
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status::pod_status(&pod, &addresses)),
            info: if verbose { status::pod_info(&pod) } else { Default::default() },
            containers_statuses: containers::of_pod(&self.0, &pod).await?,
            timestamp: status::nanos(jiff::Timestamp::now()),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let pods = self.0.pods_like(&request.into_inner().filter.unwrap_or_default()).await?;
        Ok(Response::new(ListPodSandboxResponse { items: pods.iter().map(status::pod).collect() }))
    }

    type StreamPodSandboxesStream = Pieces<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let pods = self.0.pods_like(&request.into_inner().filter.unwrap_or_default()).await?;
        let items = pods.iter().map(status::pod).collect();
        Ok(pieces(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let CreateContainerRequest { pod_sandbox_id, config, .. } = request.into_inner();
        let (shared, config) = (self.0.clone(), config.unwrap_or_default());
        let work = async move { containers::create(shared, &pod_sandbox_id, config).await };
        let container_id = self.0.to_the_end(work).await?;
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let (shared, id) = (self.0.clone(), request.into_inner().container_id);
        self.0.to_the_end(async move { containers::start(shared, &id).await }).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let StopContainerRequest { container_id, timeout } = request.into_inner();
        let shared = self.0.clone();
        self.0.to_the_end(async move { containers::stop(shared, &container_id, timeout).await }).await?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let (shared, id) = (self.0.clone(), request.into_inner().container_id);
        self.0.to_the_end(async move { containers::remove(shared, &id).await }).await?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let all = self.0.containers_like(&request.into_inner().filter.unwrap_or_default()).await?;
        Ok(Response::new(ListContainersResponse { containers: all.iter().map(status::container).collect() }))
    }

    type StreamContainersStream = Pieces<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let all = self.0.containers_like(&request.into_inner().filter.unwrap_or_default()).await?;
        let items = all.iter().map(status::container).collect();
        Ok(pieces(items, |containers| StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let ContainerStatusRequest { container_id, verbose } = request.into_inner();
        let container = self.0.container(&container_id).await?;
        let image = self.0.image_of(&container).await;
        Ok(Response::new(ContainerStatusResponse {
            status: Some(status::container_status(&container, image.as_ref())),
            info: if verbose { status::container_info(&container) } else { Default::default() },
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let UpdateContainerResourcesRequest { container_id, linux, .. } = request.into_inner();
        let shared = self.0.clone();
        self.0.to_the_end(async move { containers::update(shared, &container_id, linux).await }).await?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        containers::reopen_log(&self.0, &request.into_inner().container_id).await?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        // A caller that goes away wants no answer: the process is killed.
        Ok(Response::new(exec::run(&self.0, request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let url = exec::exec_url(&self.0, request.into_inner()).await?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let url = exec::attach_url(&self.0, request.into_inner()).await?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let url = exec::port_forward_url(&self.0, request.into_inner()).await?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        let container = self.0.container(&request.into_inner().container_id).await?;
        let (stats, _) = stats::container(&self.0, &container).await?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let stats = stats::containers(&self.0, request.into_inner().filter).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Pieces<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let stats = stats::containers(&self.0, request.into_inner().filter).await?;
        Ok(pieces(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        let pod = self.0.pod(&request.into_inner().pod_sandbox_id).await?;
        let stats = stats::pod(&self.0, &pod).await?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let stats = stats::pods(&self.0, request.into_inner().filter).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Pieces<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let stats = stats::pods(&self.0, request.into_inner().filter).await?;
        Ok(pieces(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        // The range of pods is the instance's own: nothing here depends on the kubelet's.
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let config = &self.0.config;
        let info = json!({ "cgroupRoot": config.cgroup_root, "cgroupDriver": "cgroupfs",
            "streamServer": self.0.streams_at, "imageDirectory": config.image_dir });
        let verbose = request.into_inner().verbose;
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            }),
            info: verbose.then(|| ("config".to_owned(), info.to_string())).into_iter().collect(),
            runtime_handlers: self.0.runtime.handlers().into_iter().map(handler).collect(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: false,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        Err(checkpoints())
    }

    async fn checkpoint_pod(
        &self,
        _: Request<CheckpointPodRequest>,
    ) -> Result<Response<CheckpointPodResponse>, Status> {
        Err(checkpoints())
    }

    async fn restore_pod(
        &self,
        _: Request<RestorePodRequest>,
    ) -> Result<Response<RestorePodResponse>, Status> {
        Err(checkpoints())
    }

    type GetContainerEventsStream = Pieces<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(events::stream(self.0.events.subscribe())))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        let stats = stats::pods(&self.0, None).await?;
        let pod_metrics = stats.iter().map(metrics::of).collect();
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Pieces<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let stats = stats::pods(&self.0, None).await?;
        let all = stats.iter().map(metrics::of).collect();
        Ok(pieces(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        // The kubelet has changed the pod's own group before: nothing is left to do.
        self.0.pod(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }
}
