//! A driver of volumes beside a whole node: it registers, its volumes reach pods, and it goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::lifecycle::Context;
use parking_lot::Mutex;
use protos::csi::v1::node_server::{Node, NodeServer};
use protos::csi::v1::*;
use protos::registration::v1::registration_server::{Registration, RegistrationServer};
use protos::registration::v1::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::api_server::ApiServer;
use crate::pods::{all_cores, asking, running};
use crate::world::World;

type Answer<T> = Result<Response<T>, Status>;

const NAME: &str = "kubernetes.io/csi/d.example^h";

/// A driver that makes a directory where a volume is to be. It knows the API, to see what is written before it is asked.
struct Driver {
    api: Arc<ApiServer>,
    endpoint: String,
    log: watch::Sender<Vec<String>>,
    /// What it does not answer.
    hangs: Mutex<&'static str>,
    statuses: watch::Sender<Vec<RegistrationStatus>>,
}

impl Driver {
    async fn say(&self, what: &str) {
        let node = self.api.get("nodes", "", "n1").unwrap_or_default();
        let in_use = node["status"]["volumesInUse"].as_array().cloned().unwrap_or_default();
        let line = format!("{what}, in use: {}", in_use.contains(&json!(NAME)));
        self.log.send_modify(|log| log.push(line));
        let hangs = *self.hangs.lock() == what;
        if hangs {
            std::future::pending::<()>().await;
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    /// Waits until it was asked for so many things.
    async fn asked(&self, count: usize) {
        let mut log = self.log.subscribe();
        let asked = log.wait_for(|log| log.len() >= count);
        let asked = tokio::time::timeout(crate::world::PATIENCE, asked).await;
        assert!(asked.is_ok(), "asked for {count} things: {:?}", self.log());
    }
}

struct Served(Arc<Driver>);

#[tonic::async_trait]
impl Registration for Served {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: "d.example".to_owned(),
            endpoint: self.0.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        self.0.statuses.send_modify(|statuses| statuses.push(status.into_inner()));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Served {
    async fn node_stage_volume(&self, _: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        self.0.say("stage").await;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        self.0.say("unstage").await;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        asked: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let asked = asked.into_inner();
        self.0.say(&format!("publish {}", asked.publish_context["device"])).await;
        std::fs::create_dir_all(asked.target_path).unwrap();
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        asked: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        self.0.say("unpublish").await;
        std::fs::remove_dir(asked.into_inner().target_path).unwrap();
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        Err(Status::unimplemented(""))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let kind = node_service_capability::rpc::Type::StageUnstageVolume.into();
        let rpc = node_service_capability::Type::Rpc(node_service_capability::Rpc { r#type: kind });
        let capabilities = vec![NodeServiceCapability { r#type: Some(rpc) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        let segments = [("topology.example/rack".to_owned(), "7".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "i-1".to_owned(),
            max_volumes_per_node: 3,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

/// Serves a driver at a socket in the directory where the node looks for plugins, and at one of its own.
fn serve(world: &World, tasks: &Context) -> (Arc<Driver>, PathBuf) {
    let own = world.directory.path().join("csi.sock");
    let driver = Arc::new(Driver {
        api: world.api.clone(),
        endpoint: own.display().to_string(),
        log: watch::Sender::default(),
        hangs: Mutex::default(),
        statuses: watch::Sender::default(),
    });
    let listen = |path: &Path| UnixListenerStream::new(tokio::net::UnixListener::bind(path).unwrap());
    let node = tonic::transport::Server::builder()
        .add_service(NodeServer::new(Served(driver.clone())))
        .serve_with_incoming(listen(&own));
    let registration = world.directory.path().join("data/plugins_registry/d.example-reg.sock");
    let at_node = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(Served(driver.clone())))
        .serve_with_incoming(listen(&registration));
    tasks.spawn(async move { node.await.unwrap() });
    tasks.spawn(async move { at_node.await.unwrap() });
    (driver, registration)
}

/// A claim, its volume of the driver and the attachment of that.
fn put_volume(world: &World) {
    world.api.put("csidrivers", json!({ "metadata": { "name": "d.example" }, "spec": {} }));
    let claim = world.api.put(
        "persistentvolumeclaims",
        json!({ "metadata": { "name": "c", "namespace": "default" },
            "spec": { "volumeName": "pv" }, "status": { "phase": "Bound" } }),
    );
    world.api.put(
        "persistentvolumes",
        json!({ "metadata": { "name": "pv" }, "spec": { "accessModes": ["ReadWriteOnce"],
            "claimRef": { "uid": claim.meta().uid }, "csi": { "driver": "d.example", "volumeHandle": "h" } } }),
    );
    world.api.put(
        "volumeattachments",
        json!({ "metadata": { "name": "csi-e454859dd4276370791d83835a554a1c35250abcee0bdcbcb3aafd02f429da02" },
            "status": { "attached": true, "attachmentMetadata": { "device": "vdb" } } }),
    );
}

/// What the controller does once the volume is attached, seen by its name.
fn attach(world: &World) {
    let mut node = world.api.get("nodes", "", "n1").unwrap();
    node["status"]["volumesAttached"] = json!([{ "name": NAME, "devicePath": "" }]);
    world.api.put("nodes", node);
}

/// A pod with that claim.
fn claiming(mut spec: Value) -> Value {
    spec["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "c" } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    spec
}

/// A driver that has registered, its volume attached, and the pod `web` that runs with it.
async fn with_volume(spec: Value) -> (World, Arc<Driver>) {
    let world = World::new().await;
    let (driver, _) = serve(&world, &Context::detached("test"));
    world.until("the driver is in the CSINode", || drivers(&world).first().cloned()).await;
    put_volume(&world);
    attach(&world);
    world.create("web", claiming(spec));
    world.pod_until("web", "running", running).await;
    driver.asked(2).await;
    (world, driver)
}

fn drivers(world: &World) -> Vec<Value> {
    let object = world.api.get("csinodes", "", "n1").unwrap_or_default();
    object["spec"]["drivers"].as_array().cloned().unwrap_or_default()
}

fn in_use(world: &World) -> bool {
    let node = world.api.get("nodes", "", "n1").unwrap_or_default();
    node["status"]["volumesInUse"].as_array().is_some_and(|list| list.contains(&json!(NAME)))
}

#[tokio::test]
async fn a_driver_registers_serves_its_volumes_and_goes() {
    let world = World::new().await;
    let tasks = Context::detached("test");
    let (driver, socket) = serve(&world, &tasks);
    let entry = world.until("the driver is in the CSINode", || drivers(&world).first().cloned()).await;
    let wanted = json!({ "name": "d.example", "nodeID": "i-1", "topologyKeys": ["topology.example/rack"],
        "allocatable": { "count": 3 } });
    assert_eq!(entry, wanted);
    let node = world.api.get("nodes", "", "n1").unwrap();
    assert_eq!(node["metadata"]["labels"]["topology.example/rack"], "7");
    assert_eq!(node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"], r#"{"d.example":"i-1"}"#);
    let mut statuses = driver.statuses.subscribe();
    let told = statuses.wait_for(|statuses| !statuses.is_empty()).await.unwrap()[0].clone();
    assert!(told.plugin_registered && told.error.is_empty());

    put_volume(&world);
    world.create("web", claiming(crate::world::one()));
    world.until("the volume is in use before it is attached", || in_use(&world).then_some(())).await;
    assert!(driver.log().is_empty(), "nothing is mounted that is not attached");
    attach(&world);
    world.pod_until("web", "running", |pod| pod["status"]["phase"] == "Running").await;
    assert_eq!(driver.log(), ["stage, in use: true", "publish vdb, in use: true"]);

    world.api.delete_pod("web", 0);
    world.until("nobody uses the volume", || (!in_use(&world)).then_some(())).await;
    assert_eq!(driver.log()[2..], ["unpublish, in use: true", "unstage, in use: true"]);

    std::fs::remove_file(socket).unwrap();
    world.until("the driver is gone from the CSINode", || drivers(&world).is_empty().then_some(())).await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    assert!(node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].is_null());
}

#[tokio::test]
async fn nobody_waits_for_a_driver_who_waits_for_the_pods_place() {
    let world = World::new().await;
    let cores = all_cores(&world);
    drop(world);
    let (world, driver) = with_volume(asking(cores)).await;
    *driver.hangs.lock() = "unpublish";
    let mut critical = asking(1);
    critical["priority"] = 2_000_000_000.into();
    world.create("critical", critical);
    world.pod_until("critical", "running beside a driver that hangs", running).await;
    assert!(in_use(&world));
}

/// The driver has its volumes published whenever a pod's volumes are brought up to date.
fn republish(world: &World) {
    let spec = json!({ "requiresRepublish": true });
    world.api.put("csidrivers", json!({ "metadata": { "name": "d.example" }, "spec": spec }));
}

/// Something that volumes may show of a pod has changed.
fn label(world: &World, text: &str) {
    let mut pod = world.pod("web");
    pod["metadata"]["labels"]["at"] = text.into();
    world.api.put("pods", pod);
}

fn once() -> Value {
    let mut spec = crate::world::one();
    spec["restartPolicy"] = "Never".into();
    spec
}

#[tokio::test]
async fn volumes_of_a_pod_that_has_ended_are_not_published_again() {
    let (world, driver) = with_volume(once()).await;
    republish(&world);
    label(&world, "1");
    driver.asked(3).await;
    world.runtime.end(&world.runtime.newest("main").unwrap().spec.id, 0);
    driver.asked(5).await;
    world.until("nobody uses the volume", || (!in_use(&world)).then_some(())).await;
    for text in ["2", "3", "4"] {
        label(&world, text);
        world.settled("web").await;
    }
    let (publish, unpublish) = ("publish vdb, in use: true", "unpublish, in use: true");
    let wanted = ["stage, in use: true", publish, publish, unpublish, "unstage, in use: true"];
    assert_eq!(driver.log(), wanted);
    assert!(!in_use(&world));
}

#[tokio::test]
async fn a_volume_that_is_being_published_is_let_go_when_its_pod_ends() {
    let (world, driver) = with_volume(once()).await;
    republish(&world);
    *driver.hangs.lock() = "publish vdb";
    label(&world, "1");
    driver.asked(3).await;
    world.runtime.end(&world.runtime.newest("main").unwrap().spec.id, 0);
    driver.asked(5).await;
    world.until("nobody uses the volume", || (!in_use(&world)).then_some(())).await;
    assert_eq!(driver.log()[3..], ["unpublish, in use: true", "unstage, in use: true"]);
}

#[tokio::test]
async fn a_node_begins_beside_what_it_cannot_read() {
    const OTHER: &str = "kubernetes.io/csi/d.example^other";
    let (mut world, _driver) = with_volume(once()).await;
    world.stop().await;
    let lost = world.directory.path().join("data/pods/lost");
    std::fs::create_dir(&lost).unwrap();
    std::fs::write(lost.join("volumes.json"), "{").unwrap();
    let mut node = world.api.get("nodes", "", "n1").unwrap();
    node["status"]["volumesInUse"] = json!([OTHER]);
    world.api.put("nodes", node);
    world.start().await;
    world.until("what can be read is in use", || in_use(&world).then_some(())).await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    assert!(node["status"]["volumesInUse"].as_array().unwrap().contains(&json!(OTHER)), "{node:#}");
}

#[tokio::test]
async fn a_node_that_was_made_anew_is_told_of_its_drivers() {
    let world = World::new().await;
    let (_driver, _) = serve(&world, &Context::detached("test"));
    world.until("the driver is in the CSINode", || drivers(&world).first().cloned()).await;
    let mut node = world.api.get("nodes", "", "n1").unwrap();
    world.api.remove("nodes", "", "n1");
    let metadata = node["metadata"].as_object_mut().unwrap();
    metadata.retain(|field, _| field == "name");
    let uid = world.api.put("nodes", node).meta().uid.clone();
    let told = || {
        let node = world.api.get("nodes", "", "n1").unwrap_or_default();
        let object = world.api.get("csinodes", "", "n1").unwrap_or_default();
        let ids = &node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"];
        let owner = &object["metadata"]["ownerReferences"][0]["uid"];
        (*ids == r#"{"d.example":"i-1"}"# && *owner == uid.as_str()).then_some(())
    };
    world.until("the driver is in the new Node, which has the CSINode", told).await;
    assert_eq!(drivers(&world).len(), 1);
}
