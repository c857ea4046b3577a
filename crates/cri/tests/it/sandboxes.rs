//! Sandboxes, the service itself, and what stays when the server comes and goes.

use cri::proto::*;
use engine_api::{Runtime as _, SandboxSpec};
use tonic::Code;

use crate::world::{Place, World, code, map, script, with};

fn named(id: &str) -> PodSandboxStatusRequest {
    PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true }
}

fn stop(id: &str) -> StopPodSandboxRequest {
    StopPodSandboxRequest { pod_sandbox_id: id.into() }
}

fn remove(id: &str) -> RemovePodSandboxRequest {
    RemovePodSandboxRequest { pod_sandbox_id: id.into() }
}

#[tokio::test]
async fn the_service_tells_what_it_is() {
    with(async |mut world: World| {
        let version = world.runtime.version(VersionRequest::default()).await.unwrap().into_inner();
        assert_eq!((version.runtime_name.as_str(), version.runtime_version.as_str()), ("skiff", "1.2.3"));
        assert_eq!(version.runtime_api_version, "v1");
        let status = world.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        let conditions = status.status.unwrap().conditions;
        assert!(conditions.len() == 2 && conditions.iter().all(|one| one.status));
        assert!(!status.info.is_empty() && status.runtime_handlers.len() == 1);
        let config = world.runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
        assert_eq!(config.linux.unwrap().cgroup_driver(), CgroupDriver::Cgroupfs);
        world.runtime.update_runtime_config(UpdateRuntimeConfigRequest::default()).await.unwrap();
        let told = world.runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await.unwrap();
        let names: Vec<String> = told.into_inner().descriptors.into_iter().map(|told| told.name).collect();
        assert!(names.contains(&"container_cpu_usage_seconds_total".to_owned()), "{names:?}");
        let none = world.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
        assert!(none.into_inner().pod_metrics.is_empty());
        let refused = world.runtime.checkpoint_container(CheckpointContainerRequest::default()).await;
        assert_eq!(code(refused), Code::Unimplemented);
        assert_eq!(
            code(world.runtime.checkpoint_pod(CheckpointPodRequest::default()).await),
            Code::Unimplemented
        );
        assert_eq!(code(world.runtime.restore_pod(RestorePodRequest::default()).await), Code::Unimplemented);
        world
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_is_made_told_stopped_and_removed() {
    with(async |mut world: World| {
        let mut config = world.pod("a");
        config.port_mappings =
            vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        let id = world.run_pod(config.clone()).await;
        let answer = world.runtime.pod_sandbox_status(named(&id)).await.unwrap().into_inner();
        let status = answer.status.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert_eq!(
            (status.metadata.clone(), status.labels.clone()),
            (config.metadata.clone(), config.labels.clone())
        );
        assert_eq!(status.annotations, config.annotations);
        assert_eq!(status.network.unwrap().ip, "10.9.0.2");
        assert_eq!(
            status.linux.unwrap().namespaces.unwrap().options.unwrap().pid(),
            NamespaceMode::Container
        );
        assert!(!answer.info.is_empty());
        assert_eq!(world.networks.published.lock()[&id].len(), 1);
        // By the beginning of its id as well.
        assert!(world.runtime.pod_sandbox_status(named(&id[..12])).await.is_ok());

        let again = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        assert_eq!(code(world.runtime.run_pod_sandbox(again.clone()).await), Code::AlreadyExists);
        world.runtime.stop_pod_sandbox(stop(&id)).await.unwrap();
        world.runtime.stop_pod_sandbox(stop(&id)).await.unwrap();
        let status = world.runtime.pod_sandbox_status(named(&id)).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        assert!(world.networks.attached.lock().is_empty() && world.networks.published.lock().is_empty());
        assert_eq!(code(world.create(&id, script("c", "true")).await), Code::FailedPrecondition);
        let forward = PortForwardRequest { pod_sandbox_id: id.clone(), port: vec![80] };
        assert_eq!(code(world.runtime.port_forward(forward).await), Code::FailedPrecondition);
        world.runtime.remove_pod_sandbox(remove(&id)).await.unwrap();
        world.runtime.remove_pod_sandbox(remove(&id)).await.unwrap();
        assert_eq!(code(world.runtime.pod_sandbox_status(named(&id)).await), Code::NotFound);
        // Its name is free again; one that runs is removed without being stopped before.
        let next = world.runtime.run_pod_sandbox(again).await.unwrap().into_inner().pod_sandbox_id;
        world.runtime.remove_pod_sandbox(remove(&next)).await.unwrap();
        world.runtime.stop_pod_sandbox(stop("never-was")).await.unwrap();
        world
    })
    .await;
}

#[tokio::test]
async fn lists_are_filtered() {
    with(async |mut world: World| {
        let a = world.run_pod(world.pod("a")).await;
        let b = world.run_pod(world.pod("b")).await;
        world.runtime.stop_pod_sandbox(stop(&b)).await.unwrap();
        let mut ids = async |filter: Option<PodSandboxFilter>| {
            let listed =
                world.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: filter.clone() }).await;
            let items = listed.unwrap().into_inner().items;
            let streamed = world.runtime.stream_pod_sandboxes(StreamPodSandboxesRequest { filter }).await;
            let mut streamed = streamed.unwrap().into_inner();
            let mut pieces = Vec::new();
            while let Some(piece) = streamed.message().await.unwrap() {
                pieces.extend(piece.pod_sandboxes);
            }
            assert_eq!(pieces, items);
            items.into_iter().map(|item| item.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(None).await, [b.clone(), a.clone()]);
        let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady as i32 });
        let ready = PodSandboxFilter { state, ..PodSandboxFilter::default() };
        assert_eq!(ids(Some(ready)).await, [a.as_str()]);
        let labelled = PodSandboxFilter { label_selector: map(&[("app", "b")]), ..Default::default() };
        assert_eq!(ids(Some(labelled)).await, [b.as_str()]);
        let by_id = PodSandboxFilter { id: a[..10].to_owned(), ..PodSandboxFilter::default() };
        assert_eq!(ids(Some(by_id)).await, [a]);
        world
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    with(async |mut world: World| {
        let run = |config| RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let handler = RunPodSandboxRequest { runtime_handler: "kata".into(), ..run(world.pod("a")) };
        assert_eq!(code(world.runtime.run_pod_sandbox(handler).await), Code::InvalidArgument);
        let mut sysctl = world.pod("a");
        sysctl.linux.as_mut().unwrap().sysctls = map(&[("kernel.core_pattern", "x")]);
        assert_eq!(code(world.runtime.run_pod_sandbox(run(sysctl)).await), Code::InvalidArgument);
        assert_eq!(
            code(world.runtime.run_pod_sandbox(run(PodSandboxConfig::default())).await),
            Code::InvalidArgument
        );
        let listed = world.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        assert!(listed.into_inner().items.is_empty() && world.networks.attached.lock().is_empty());
        world.run_pod(world.pod("a")).await;
        world
    })
    .await;
}

#[tokio::test]
async fn others_sandboxes_are_neither_seen_nor_touched() {
    with(async |mut world: World| {
        let labels = [("io.kubernetes.pod.uid", "1"), ("io.kubernetes.pod.name", "p")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let id = base::id::hex64();
        let theirs = SandboxSpec { id: id.clone(), labels, hostname: "p".into(), ..SandboxSpec::default() };
        world.engine.create_sandbox(theirs).await.unwrap();
        let listed = world.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        assert!(listed.into_inner().items.is_empty());
        assert_eq!(code(world.runtime.pod_sandbox_status(named(&id)).await), Code::NotFound);
        world.runtime.remove_pod_sandbox(remove(&id)).await.unwrap();
        assert_eq!(world.engine.sandboxes().await.unwrap().len(), 1);
        world
    })
    .await;
}

#[test]
fn what_was_made_is_there_after_a_restart() {
    let place = Place::new();
    // Each server with all of its tasks ends with its runtime, as a process would.
    let made = tokio::runtime::Runtime::new().unwrap().block_on(make_what_stays(&place));
    std::fs::create_dir_all(place.path().join("cri/left-over")).unwrap();
    // As if the maker had been killed before it wrote them.
    std::fs::remove_dir_all(place.path().join("cri").join(&made.pod)).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(find_what_stayed(&place, made));
    assert!(!place.path().join("cri/left-over").exists());
}

struct Made {
    pod: String,
    config: PodSandboxConfig,
    running: ContainerStatus,
    created: String,
}

async fn make_what_stays(place: &Place) -> Made {
    let mut world = World::open(place).await;
    let mut config = world.pod("a");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
    let pod = world.run_pod(config.clone()).await;
    let running = world.start(&pod, script("c", "sleep 1000")).await;
    let created = world.create(&pod, script("d", "true")).await.unwrap();
    Made { running: world.status(&running).await, pod, config, created }
}

async fn find_what_stayed(place: &Place, made: Made) {
    let Made { pod, config, running, created } = made;
    let mut world = World::open(place).await;
    let listed = world.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    let item = listed.into_inner().items.remove(0);
    assert_eq!((&item.id, &item.metadata, &item.labels), (&pod, &config.metadata, &config.labels));
    let hosts = std::fs::read_to_string(place.path().join("cri").join(&pod).join("hosts")).unwrap();
    assert!(hosts.contains("\ta\n"), "{hosts}");
    assert_eq!(world.status(&running.id).await, running);
    assert_eq!(world.status(&created).await.state(), ContainerState::ContainerCreated);
    assert_eq!(world.networks.published.lock()[&pod].len(), 1, "its ports lead to it again");
    let again = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    assert_eq!(code(world.runtime.run_pod_sandbox(again).await), Code::AlreadyExists);
    assert_eq!(world.exec(&running.id, "echo still").await.stdout, b"still\n");
    world.runtime.start_container(StartContainerRequest { container_id: created.clone() }).await.unwrap();
    assert_eq!(world.ended(&created).await.reason, "Completed");
    world.engine.purge().await.unwrap();
}
