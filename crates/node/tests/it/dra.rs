//! A driver of devices that claims stand for, beside a whole node: it registers, prepares, takes back, hangs, lies and dies.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::lifecycle::Context;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use protos::dra::health_v1alpha1 as health;
use protos::dra::health_v1alpha1::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
use protos::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use protos::dra::v1::*;
use protos::pod_resources::v1 as listed;
use protos::pod_resources::v1::pod_resources_lister_client::PodResourcesListerClient;
use protos::registration::v1::registration_server::{Registration, RegistrationServer};
use protos::registration::v1::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::pods::running;
use crate::world::{PATIENCE, World, one};

type Answer<T> = Result<Response<T>, Status>;
type Lists = mpsc::Sender<Result<health::NodeWatchResourcesResponse, Status>>;

const NAME: &str = "gpu.example.com";

/// What the driver does instead of its work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Works,
    Hangs,
    /// It answers about no claim.
    Skips,
    /// It answers about a claim that nobody asked about.
    Lies,
    Fails,
}

struct Driver {
    endpoint: PathBuf,
    log: watch::Sender<Vec<String>>,
    mood: Mutex<Mood>,
    lists: watch::Sender<Option<Lists>>,
}

impl Driver {
    fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    /// Waits until it was asked for so many things.
    async fn asked(&self, count: usize) -> Vec<String> {
        let mut log = self.log.subscribe();
        let asked = tokio::time::timeout(PATIENCE, log.wait_for(|log| log.len() >= count)).await;
        assert!(asked.is_ok(), "asked for {count} things: {:?}", self.log());
        self.log()
    }

    async fn say(&self, what: &str, claims: &[Claim]) -> Result<Mood, Status> {
        let names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
        let line = format!("{what} {}", names.join(","));
        self.log.send_modify(|log| log.push(line));
        let mood = *self.mood.lock();
        match mood {
            Mood::Hangs => std::future::pending().await,
            Mood::Fails => Err(Status::internal("on fire")),
            _ => Ok(mood),
        }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    async fn tell(&self, device: &str, state: health::HealthStatus) {
        let mut lists = self.lists.subscribe();
        let lists = lists.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let device = health::DeviceHealth {
            device: Some(health::DeviceIdentifier { pool_name: "n1".into(), device_name: device.into() }),
            health: state.into(),
            last_updated_time: 0,
            health_check_timeout_seconds: 60,
            message: "it says".into(),
        };
        lists.send(Ok(health::NodeWatchResourcesResponse { devices: vec![device] })).await.unwrap();
    }
}

struct Served(Arc<Driver>);

#[tonic::async_trait]
impl Registration for Served {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: NAME.to_owned(),
            endpoint: self.0.endpoint.display().to_string(),
            supported_versions: vec!["v1.DRAPlugin".to_owned(), "v1alpha1.DRAResourceHealth".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        let status = status.into_inner();
        assert!(status.plugin_registered, "{}", status.error);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DraPlugin for Served {
    async fn node_prepare_resources(
        &self,
        asked: Request<NodePrepareResourcesRequest>,
    ) -> Answer<NodePrepareResourcesResponse> {
        let claims = asked.into_inner().claims;
        let mood = self.0.say("prepare", &claims).await?;
        let device = |claim: &Claim, request: &str| Device {
            request_names: vec![request.to_owned()],
            pool_name: "n1".to_owned(),
            device_name: format!("{request}-{}", claim.name),
            cdi_device_ids: vec![format!("example.com/gpu={request}-{}", claim.name)],
            share_id: None,
        };
        let devices = |claim: &Claim| vec![device(claim, "big"), device(claim, "small")];
        let uid = |claim: &Claim| if mood == Mood::Lies { "another".to_owned() } else { claim.uid.clone() };
        let about = claims.iter().filter(|_| mood != Mood::Skips);
        let answers = about.map(|claim| {
            (uid(claim), NodePrepareResourceResponse { devices: devices(claim), error: String::new() })
        });
        Ok(Response::new(NodePrepareResourcesResponse { claims: answers.collect() }))
    }

    async fn node_unprepare_resources(
        &self,
        asked: Request<NodeUnprepareResourcesRequest>,
    ) -> Answer<NodeUnprepareResourcesResponse> {
        let claims = asked.into_inner().claims;
        self.0.say("unprepare", &claims).await?;
        let answers =
            claims.iter().map(|claim| (claim.uid.clone(), NodeUnprepareResourceResponse::default()));
        Ok(Response::new(NodeUnprepareResourcesResponse { claims: answers.collect() }))
    }
}

#[tonic::async_trait]
impl DraResourceHealth for Served {
    type NodeWatchResourcesStream = ReceiverStream<Result<health::NodeWatchResourcesResponse, Status>>;

    async fn node_watch_resources(
        &self,
        _: Request<health::NodeWatchResourcesRequest>,
    ) -> Answer<Self::NodeWatchResourcesStream> {
        let (sender, receiver) = mpsc::channel(4);
        self.0.lists.send_replace(Some(sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves a driver until `away`, at a socket in the directory where the node looks for plugins and at one of its own.
fn serve(world: &World, tasks: &Context, away: CancellationToken) -> Arc<Driver> {
    let root = world.directory.path();
    let endpoint = root.join(format!("dra-{}.sock", base::id::suffix(5)));
    let driver = Arc::new(Driver {
        endpoint: endpoint.clone(),
        log: watch::Sender::default(),
        mood: Mutex::new(Mood::Works),
        lists: watch::Sender::new(None),
    });
    let registration = root.join(format!("data/plugins_registry/gpu-{}-reg.sock", base::id::suffix(5)));
    let listen = |path: &Path| UnixListenerStream::new(tokio::net::UnixListener::bind(path).unwrap());
    let own = tonic::transport::Server::builder()
        .add_service(DraPluginServer::new(Served(driver.clone())))
        .add_service(DraResourceHealthServer::new(Served(driver.clone())))
        .serve_with_incoming(listen(&endpoint));
    let at_node = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(Served(driver.clone())))
        .serve_with_incoming(listen(&registration));
    tasks.spawn(async move {
        tokio::select! {
            ended = own => ended.unwrap(),
            ended = at_node => ended.unwrap(),
            () = away.cancelled() => {}
        }
        // As a driver that is asked to end does.
        for path in [registration, endpoint] {
            let _ = std::fs::remove_file(path);
        }
    });
    driver
}

/// Makes a claim that is allocated, and a pod's to use.
fn put_claim(world: &World, name: &str) {
    let results = json!([{ "driver": NAME, "pool": "n1", "device": "0", "request": "big" }]);
    world.api.put(
        "resourceclaims",
        json!({ "metadata": { "name": name, "namespace": "default" }, "spec": {},
            "status": { "allocation": { "devices": { "results": results } } } }),
    );
}

/// What the scheduler does before it binds a pod.
fn reserve(world: &World, claim: &str, uids: &[&str]) {
    let mut object = world.api.get("resourceclaims", "default", claim).unwrap();
    let consumers = uids.iter().map(|uid| json!({ "resource": "pods", "name": "p", "uid": uid }));
    object["status"]["reservedFor"] = consumers.collect();
    world.api.put("resourceclaims", object);
}

/// A pod with a claim, and the uid that it is reserved for.
fn create(world: &World, name: &str, claim: &str, mut spec: Value) {
    spec["nodeName"] = "n1".into();
    spec["resourceClaims"] = json!([{ "name": "gpu", "resourceClaimName": claim }]);
    spec["containers"][0]["resources"] = json!({ "claims": [{ "name": "gpu", "request": "big" }] });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": { "name": name, "namespace": "default", "generation": 1, "uid": format!("uid-{name}") },
        "status": { "phase": "Pending" } });
    world.api.put("pods", pod);
}

async fn gone(world: &World, name: &str) {
    world.until("the pod is gone", || world.pod(name).is_null().then_some(())).await;
}

/// Waits until an event of a failed preparation says so.
async fn told(world: &World, words: &str) {
    let said = || world.events("FailedPrepareDynamicResources").into_iter().find(|said| said.contains(words));
    world.until(words, said).await;
}

async fn lister(world: &World) -> PodResourcesListerClient<Channel> {
    let socket = world.directory.path().join("data/pod-resources/kubelet.sock");
    world.file_there(&socket).await;
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
    PodResourcesListerClient::new(channel)
}

#[tokio::test]
async fn claims_are_prepared_shown_and_taken_back() {
    let world = World::new().await;
    let tasks = Context::detached("test");
    put_claim(&world, "c");
    create(&world, "web", "c", one());
    told(&world, "Failed to prepare dynamic resources: prepare dynamic resources: pod web (uid-web) is not allowed to use ResourceClaim c").await;
    reserve(&world, "c", &["uid-web"]);
    world.clock.advance(Duration::from_secs(2));
    told(&world, "DRA driver gpu.example.com is not registered").await;
    assert!(world.runtime.sandbox_ids().is_empty(), "nothing is made before");

    let driver = serve(&world, &tasks, CancellationToken::new());
    world.pod_until("web", "running", running).await;
    assert_eq!(driver.log(), ["prepare c"]);
    let spec = world.runtime.newest("main").unwrap().spec;
    assert_eq!(spec.cdi_devices, ["example.com/gpu=big-c"], "of the request that the container names");

    let shown = |pod: &Value| pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"][0].clone();
    driver.tell("big-c", health::HealthStatus::Unhealthy).await;
    let is_sick = |pod: &Value| shown(pod)["resources"][0]["health"] == "Unhealthy";
    let pod = world.pod_until("web", "its device is sick", is_sick).await;
    let wanted = json!({ "name": "claim:gpu/big", "resources": [{ "resourceID": "example.com/gpu=big-c",
        "health": "Unhealthy", "message": "it says" }] });
    assert_eq!(shown(&pod), wanted);

    let mut lister = lister(&world).await;
    let request = listed::GetPodResourcesRequest { pod_name: "web".into(), pod_namespace: "default".into() };
    let answer = lister.get(request).await.unwrap().into_inner().pod_resources.unwrap();
    let dynamic = &answer.containers[0].dynamic_resources[0];
    assert_eq!((dynamic.claim_name.as_str(), dynamic.claim_resources.len()), ("c", 2));
    assert_eq!(dynamic.claim_resources[0].cdi_devices[0].name, "example.com/gpu=big-c");
    let all = lister.list(listed::ListPodResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(all.pod_resources, [answer]);
    let unknown = listed::GetPodResourcesRequest { pod_name: "x".into(), pod_namespace: "default".into() };
    let said = lister.get(unknown).await.unwrap_err();
    assert_eq!(said.message(), "pod x in namespace default not found");

    world.api.delete_pod("web", 0);
    gone(&world, "web").await;
    assert_eq!(driver.log(), ["prepare c", "unprepare c"]);
}

#[tokio::test]
async fn a_driver_that_lies_or_hangs_costs_its_own_pods() {
    let world = World::new().await;
    let driver = serve(&world, &Context::detached("test"), CancellationToken::new());
    put_claim(&world, "c");
    reserve(&world, "c", &["uid-web"]);
    driver.set(Mood::Skips);
    create(&world, "web", "c", one());
    told(&world, "NodePrepareResources skipped 1 ResourceClaims").await;
    let mut asked = driver.log().len();
    for (mood, words) in [
        (Mood::Lies, "NodePrepareResources returned result for unknown claim UID another"),
        (Mood::Fails, "NodePrepareResources: rpc error: code = Internal desc = on fire"),
    ] {
        driver.set(mood);
        world.clock.advance(Duration::from_secs(120));
        told(&world, words).await;
        asked = driver.asked(asked + 1).await.len();
    }
    driver.set(Mood::Hangs);
    world.clock.advance(Duration::from_secs(120));
    driver.asked(asked + 1).await;
    // Others are not concerned, and its own pod may go meanwhile.
    world.create("other", one());
    world.pod_until("other", "running beside it", running).await;
    world.api.delete_pod("web", 0);
    let log = driver.asked(asked + 2).await;
    assert_eq!(log.last().unwrap(), "unprepare c", "what was asked for may be there");
    assert!(!world.pod("web").is_null(), "it has not been taken back yet");
}

#[tokio::test]
async fn what_was_asked_of_a_driver_is_taken_back_after_a_crash() {
    let mut world = World::new().await;
    let tasks = Context::detached("test");
    let away = CancellationToken::new();
    let driver = serve(&world, &tasks, away.clone());
    for claim in ["c", "d"] {
        put_claim(&world, claim);
    }
    reserve(&world, "c", &["uid-web"]);
    reserve(&world, "d", &["uid-db"]);
    create(&world, "web", "c", one());
    world.pod_until("web", "running", running).await;
    // The node is killed while the driver is at work for another pod.
    driver.set(Mood::Hangs);
    create(&world, "db", "d", one());
    driver.asked(2).await;
    world.stop().await;
    away.cancel();
    for pod in ["web", "db"] {
        world.api.remove("pods", "default", pod);
    }
    world.start().await;
    let driver = serve(&world, &tasks, CancellationToken::new());
    // Until it has registered the node tries it now and then.
    let asked = async {
        loop {
            tokio::select! {
                log = driver.asked(2) => break log,
                () = world.clock.go_on(Duration::from_secs(60)) => {}
            }
        }
    };
    let mut log = tokio::time::timeout(PATIENCE, asked).await.expect("claims are taken back");
    log.sort();
    assert_eq!(log, ["unprepare c", "unprepare d"]);
    let data = world.directory.path().join("data");
    world.file_until(&data, "skiff_claims", |text| !text.contains("uid-")).await;
}

#[tokio::test]
async fn the_last_pod_of_a_claim_gives_it_back_before_its_end_is_told() {
    let world = World::new().await;
    let driver = serve(&world, &Context::detached("test"), CancellationToken::new());
    put_claim(&world, "c");
    reserve(&world, "c", &["uid-web", "uid-db"]);
    let mut once = one();
    once["restartPolicy"] = "Never".into();
    create(&world, "web", "c", once);
    world.pod_until("web", "running", running).await;
    let first = world.runtime.newest("main").unwrap().spec.id;
    create(&world, "db", "c", one());
    world.pod_until("db", "running", running).await;
    assert_eq!(driver.log(), ["prepare c"], "once for both");
    world.api.delete_pod("db", 0);
    gone(&world, "db").await;
    assert_eq!(driver.log(), ["prepare c"], "the other has it");

    driver.set(Mood::Fails);
    world.runtime.end(&first, 0);
    assert_eq!(driver.asked(2).await, ["prepare c", "unprepare c"]);
    let pod = world.settled("web").await;
    assert_eq!(pod["status"]["phase"], "Running", "whoever hears of its end gives its devices to others");
    driver.set(Mood::Works);
    world.clock.advance(Duration::from_secs(30));
    world.pod_until("web", "over", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(driver.log().len(), 3);
}

#[tokio::test]
async fn what_drivers_say_of_their_devices_goes_with_them() {
    let world = World::new().await;
    let slice = |name: &str, node: &str| {
        let spec = json!({ "driver": NAME, "nodeName": node });
        world.api.put("resourceslices", json!({ "metadata": { "name": name }, "spec": spec }));
    };
    let slices = || {
        let all = world.api.list("resourceslices");
        all.iter().map(|slice| slice["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let away = CancellationToken::new();
    let _driver = serve(&world, &Context::detached("test"), away.clone());
    put_claim(&world, "c");
    reserve(&world, "c", &["uid-web"]);
    create(&world, "web", "c", one());
    world.pod_until("web", "running", running).await;
    slice("own", "n1");
    slice("others", "n2");
    away.cancel();
    let wiped = async {
        while slices().len() > 1 {
            world.clock.go_on(Duration::from_secs(60)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wiped).await.expect("its slices go");
    assert_eq!(slices(), ["others"]);
}
