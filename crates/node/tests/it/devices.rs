//! A plugin of devices beside a whole node: it registers, its devices are counted and given, and it goes.

use std::path::Path;
use std::sync::Arc;

use base::lifecycle::Context;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use protos::devices::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use protos::devices::v1beta1::registration_client::RegistrationClient;
use protos::devices::v1beta1::*;
use protos::pod_resources::v1 as listed;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use crate::world::{World, one};

type Answer<T> = Result<Response<T>, Status>;
type Lists = mpsc::Sender<Result<ListAndWatchResponse, Status>>;

const GPU: &str = "example.com/gpu";

#[derive(Default)]
struct Plugin {
    /// Who follows the devices.
    lists: Mutex<Option<Lists>>,
    asked: Mutex<Vec<Vec<String>>>,
    /// With which devices containers start.
    prepared: Mutex<Vec<Vec<String>>>,
    fails: Mutex<bool>,
}

struct Served(Arc<Plugin>);

fn devices(list: &[(&str, &str)]) -> ListAndWatchResponse {
    let device = |(id, health): &(&str, &str)| Device {
        id: (*id).to_owned(),
        health: (*health).to_owned(),
        topology: None,
    };
    ListAndWatchResponse { devices: list.iter().map(device).collect() }
}

#[tonic::async_trait]
impl DevicePlugin for Served {
    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let (sender, receiver) = mpsc::channel(4);
        sender.try_send(Ok(devices(&[("a", "Healthy"), ("b", "Healthy")]))).unwrap();
        *self.0.lists.lock() = Some(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_preferred_allocation(
        &self,
        asked: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let asked = asked.into_inner().container_requests.remove(0);
        let last = asked.available_device_i_ds.last().cloned();
        let answer = ContainerPreferredAllocationResponse { device_i_ds: last.into_iter().collect() };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![answer] }))
    }

    async fn allocate(&self, asked: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let ids = asked.into_inner().container_requests.remove(0).devices_ids;
        self.0.asked.lock().push(ids.clone());
        if *self.0.fails.lock() {
            return Err(Status::internal("on fire"));
        }
        let mount = protos::devices::v1beta1::Mount {
            container_path: "/usr/lib/gpu".to_owned(),
            host_path: "/opt/gpu".to_owned(),
            read_only: true,
        };
        let answer = ContainerAllocateResponse {
            envs: [("GPUS".to_owned(), ids.join(","))].into(),
            mounts: vec![mount],
            cdi_devices: vec![CdiDevice { name: format!("example.com/gpu={}", ids.join("-")) }],
            ..ContainerAllocateResponse::default()
        };
        Ok(Response::new(AllocateResponse { container_responses: vec![answer] }))
    }

    async fn pre_start_container(
        &self,
        asked: Request<PreStartContainerRequest>,
    ) -> Answer<PreStartContainerResponse> {
        self.0.prepared.lock().push(asked.into_inner().devices_ids);
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// Serves a plugin until `away`, and registers it.
async fn serve(world: &World, tasks: &Context, away: CancellationToken) -> Arc<Plugin> {
    let plugin = Arc::new(Plugin::default());
    let directory = world.directory.path().join("data/device-plugins");
    let listener = tokio::net::UnixListener::bind(directory.join("gpu.sock")).unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(DevicePluginServer::new(Served(plugin.clone())))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tasks.spawn(async move {
        tokio::select! {
            ended = server => ended.unwrap(),
            () = away.cancelled() => {}
        }
    });
    register(&directory).await;
    plugin
}

async fn register(directory: &Path) {
    let socket = directory.join("kubelet.sock");
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
    let options = DevicePluginOptions { get_preferred_allocation_available: true, pre_start_required: true };
    let request = RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: "gpu.sock".to_owned(),
        resource_name: GPU.to_owned(),
        options: Some(options),
    };
    RegistrationClient::new(channel).register(request).await.unwrap();
}

/// What the node says that it has, and has that works.
async fn amounts_until(world: &World, wanted: (&str, &str)) {
    let look = || {
        let node = world.api.get("nodes", "", "n1").unwrap_or_default();
        let amount = |list: &str| node["status"][list][GPU].clone();
        (amount("capacity") == wanted.0 && amount("allocatable") == wanted.1).then_some(())
    };
    world.until(&format!("{wanted:?} devices"), look).await;
}

fn with_devices(count: &str) -> Value {
    let mut spec = one();
    spec["containers"][0]["resources"] = json!({ "limits": { GPU: count }, "requests": { GPU: count } });
    spec
}

async fn running(world: &World, name: &str) {
    world.pod_until(name, "running", |pod| pod["status"]["phase"] == "Running").await;
}

#[tokio::test]
async fn devices_are_counted_given_and_kept() {
    let mut world = World::new().await;
    let tasks = Context::detached("test");
    let socket = world.directory.path().join("data/device-plugins/kubelet.sock");
    world.file_there(&socket).await;
    let away = CancellationToken::new();
    let plugin = serve(&world, &tasks, away.clone()).await;
    amounts_until(&world, ("2", "2")).await;

    world.create("web", with_devices("1"));
    running(&world, "web").await;
    assert_eq!(*plugin.asked.lock(), [["b"]], "the plugin's own choice");
    assert_eq!(*plugin.prepared.lock(), [["b"]], "before the container has started");
    let spec = world.runtime.newest("main").unwrap().spec;
    assert!(spec.env.contains(&"GPUS=b".to_owned()), "{:?}", spec.env);
    let mount = spec.mounts.iter().find(|mount| mount.target == Path::new("/usr/lib/gpu")).unwrap();
    assert!(mount.read_only);
    assert_eq!(spec.cdi_devices, ["example.com/gpu=b"]);
    let pod = world.pod("web");
    let wanted = json!([{ "name": GPU, "resources": [{ "resourceID": "b", "health": "Healthy" }] }]);
    assert_eq!(pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"], wanted);

    // The plugin fails: the pod is refused, with upstream's reason, and its device is free again.
    *plugin.fails.lock() = true;
    world.create("failing", with_devices("1"));
    let failed = world.pod_until("failing", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(failed["status"]["reason"], "UnexpectedAdmissionError");
    let message = failed["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("Allocate failed due to rpc error: code = Internal desc = on fire"),
        "{message}"
    );
    *plugin.fails.lock() = false;

    let lists = plugin.lists.lock().clone().unwrap();
    lists.send(Ok(devices(&[("a", "Unhealthy"), ("b", "Healthy")]))).await.unwrap();
    amounts_until(&world, ("2", "1")).await;
    let mut lister = crate::dra::lister(&world).await;
    let free = lister.get_allocatable_resources(listed::AllocatableResourcesRequest {}).await.unwrap();
    let works = listed::ContainerDevices {
        resource_name: GPU.to_owned(),
        device_ids: vec!["b".to_owned()],
        topology: None,
    };
    assert_eq!(free.into_inner().devices, std::slice::from_ref(&works));
    let web = listed::GetPodResourcesRequest { pod_name: "web".into(), pod_namespace: "default".into() };
    let web = lister.get(web).await.unwrap().into_inner().pod_resources.unwrap();
    assert_eq!(web.containers[0].devices, [works]);

    // The node begins anew: it knows who has what, and waits for the plugin.
    world.stop().await;
    away.cancel();
    world.start().await;
    amounts_until(&world, ("0", "0")).await;
    // Nobody prepares its devices for a container that starts again: it does not.
    let made = world.runtime.newest("main").unwrap().spec.id;
    world.runtime.end(&made, 1);
    let waits = |pod: &Value| {
        let message = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
        message.as_str().is_some_and(|text| {
            text.contains("endpoint not found in cache for a registered resource: example.com/gpu")
        })
    };
    world.pod_until("web", "waiting for its devices", waits).await;
    assert_eq!(world.runtime.newest("main").unwrap().spec.id, made);
    world.file_there(&socket).await;
    let plugin = serve(&world, &tasks, CancellationToken::new()).await;
    amounts_until(&world, ("2", "2")).await;
    world.create("second", with_devices("1"));
    running(&world, "second").await;
    assert_eq!(*plugin.asked.lock(), [["a"]], "the other is the first pod's");
}
