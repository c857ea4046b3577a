//! Volumes of drivers against drivers that are servers of the tests' own: good ones, and such that hang, fail and lie.

use std::sync::atomic::{AtomicBool, Ordering};

use base::lifecycle::Context;
use protos::csi::v1::node_server::{Node, NodeServer};
use protos::csi::v1::*;
use serde_json::Value;
use tonic::{Request, Response, Status};

use super::super::claim::Claims;
use super::super::tear_down;
use super::super::{mounts, set_up, stats};
use super::*;
use crate::pod::tests::pod;

type Log = Arc<Mutex<Vec<String>>>;
type Answer<T> = Result<Response<T>, Status>;

/// A node of which only drivers and what they are told are there.
#[derive(Default)]
pub(crate) struct Alone {
    drivers: HashMap<String, Arc<Driver>>,
    mounted: Mounted,
    log: Log,
}

#[async_trait]
impl Around for Alone {
    fn driver(&self, name: &str) -> Option<Arc<Driver>> {
        self.drivers.get(name).cloned()
    }

    fn told(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    fn mounted(&self) -> &Mounted {
        &self.mounted
    }

    async fn secret(&self, secret: &SecretRef) -> Result<Texts, String> {
        Ok([("of".to_owned(), secret.name.clone())].into())
    }

    async fn tokens(&self, _: &PodView, requests: &[TokenRequest]) -> Result<String, String> {
        Ok(tokens_of(&[(requests[0].audience.clone(), "t".to_owned(), "then".to_owned())]))
    }

    async fn in_use(&self, name: &str) -> Result<(), String> {
        self.log.lock().push(format!("in use {name}"));
        Ok(())
    }

    async fn grown(&self, _: &PodView, growth: &Growth, _: &str) -> Result<(), String> {
        self.log.lock().push(format!("{} has {}", growth.claim, growth.size));
        Ok(())
    }

    fn not_grown(&self, _: &PodView, message: String) {
        self.log.lock().push(message);
    }

    fn not_in_use(&self, name: &str) {
        self.log.lock().push(format!("not in use {name}"));
    }

    async fn attached(&self, name: &str, _: &str) -> Result<Texts, String> {
        self.log.lock().push(format!("attached {name}"));
        Ok([("device".to_owned(), "vdb".to_owned())].into())
    }
}

/// A driver whose volume is a directory, which it binds to where it is asked to.
#[derive(Default)]
struct Fake {
    backing: PathBuf,
    /// What it brings where a device is asked for.
    device: Mutex<PathBuf>,
    log: Log,
    /// The last requests.
    staged: Mutex<Option<NodeStageVolumeRequest>>,
    published: Mutex<Option<NodePublishVolumeRequest>>,
    hangs: AtomicBool,
    fails_to_publish: AtomicBool,
    fails_to_grow: AtomicBool,
    refuses_to_grow: AtomicBool,
    /// It gives volumes to groups itself.
    gives: AtomicBool,
    /// What it tells of its volume, if it can.
    told: Mutex<Option<NodeGetVolumeStatsResponse>>,
    /// Instead of a mount it leaves nothing, or this.
    lies: Mutex<Option<Lie>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Lie {
    Nothing,
    Link,
    Endless,
    LeavesMounts,
}

impl Fake {
    async fn say(&self, what: &str) {
        self.log.lock().push(what.to_owned());
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    fn lie(&self) -> Option<Lie> {
        *self.lies.lock()
    }

    fn undo(&self, target: &str) {
        if self.lie() != Some(Lie::LeavesMounts) {
            let _ = sys::mount::unmount(Path::new(target));
            let _ = std::fs::remove_dir(target).or_else(|_| std::fs::remove_file(target));
        }
    }
}

/// The server's view of it.
struct Served(Arc<Fake>);

#[tonic::async_trait]
impl Node for Served {
    async fn node_stage_volume(
        &self,
        asked: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        self.0.say("stage").await;
        let asked = asked.into_inner();
        sys::mount::bind(&self.0.backing, Path::new(&asked.staging_target_path)).unwrap();
        *self.0.staged.lock() = Some(asked);
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        asked: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        self.0.say("unstage").await;
        self.0.undo(&asked.into_inner().staging_target_path);
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        asked: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        self.0.say("publish").await;
        let asked = asked.into_inner();
        if self.0.fails_to_publish.load(Ordering::SeqCst) {
            return Err(Status::internal("no such disk"));
        }
        let target = Path::new(&asked.target_path);
        let capability = asked.volume_capability.clone().unwrap().access_type;
        match self.0.lie() {
            Some(Lie::Nothing) => {}
            None if matches!(capability, Some(AccessType::Block(_))) => {
                std::fs::write(target, "").unwrap();
                sys::mount::bind(&self.0.device.lock(), target).unwrap();
            }
            Some(Lie::Link) => std::os::unix::fs::symlink("/etc", target).unwrap(),
            _ => {
                std::fs::create_dir_all(target).unwrap();
                sys::mount::bind(&self.0.backing, target).unwrap();
            }
        }
        *self.0.published.lock() = Some(asked);
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        asked: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        self.0.say("unpublish").await;
        self.0.undo(&asked.into_inner().target_path);
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        asked: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let asked = asked.into_inner();
        self.0
            .say(&format!(
                "stats of {}, a mount: {}",
                asked.volume_id,
                Path::new(&asked.volume_path).is_dir()
            ))
            .await;
        self.0.told.lock().clone().map(Response::new).ok_or_else(|| Status::unimplemented(""))
    }

    async fn node_expand_volume(
        &self,
        asked: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        let asked = asked.into_inner();
        let wanted = asked.capacity_range.unwrap().required_bytes;
        let staged = asked.volume_path == asked.staging_target_path;
        self.0.say(&format!("grow to {wanted}, staged: {staged}")).await;
        if self.0.refuses_to_grow.load(Ordering::SeqCst) {
            return Err(Status::failed_precondition("in use"));
        }
        if self.0.fails_to_grow.load(Ordering::SeqCst) {
            return Err(Status::internal("no room"));
        }
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: wanted }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let many = if self.0.lie() == Some(Lie::Endless) { 3 << 20 } else { 1 };
        let can = |kind: node_service_capability::rpc::Type| {
            let rpc = node_service_capability::Rpc { r#type: kind.into() };
            NodeServiceCapability { r#type: Some(node_service_capability::Type::Rpc(rpc)) }
        };
        let mut capabilities = vec![can(node_service_capability::rpc::Type::StageUnstageVolume); many];
        capabilities.push(can(node_service_capability::rpc::Type::ExpandVolume));
        if self.0.told.lock().is_some() {
            capabilities.push(can(node_service_capability::rpc::Type::GetVolumeStats));
        }
        if self.0.gives.load(Ordering::SeqCst) {
            capabilities.push(can(node_service_capability::rpc::Type::VolumeMountGroup));
        }
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        Err(Status::unimplemented(""))
    }
}

/// Mounts and servers that are gone with the test, also a failed one.
struct World {
    dir: tempfile::TempDir,
    around: Arc<Alone>,
    fake: Arc<Fake>,
    threads: Threads,
    tasks: Context,
}

impl Drop for World {
    fn drop(&mut self) {
        for mounted in sys::mount::MountTable::own().unwrap().below(self.dir.path()) {
            let _ = sys::mount::unmount(&mounted);
        }
    }
}

impl World {
    /// A node with the driver `d`, whose calls have `limit`.
    fn new(limit: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, backing) = (Log::default(), dir.path().join("disk"));
        std::fs::create_dir(&backing).unwrap();
        std::fs::write(backing.join("db"), "kept").unwrap();
        let fake = Arc::new(Fake { backing, log: log.clone(), ..Fake::default() });
        let tasks = Context::detached("test");
        let socket = dir.path().join("csi.sock");
        let incoming =
            tokio_stream::wrappers::UnixListenerStream::new(tokio::net::UnixListener::bind(&socket).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(NodeServer::new(Served(fake.clone())))
            .serve_with_incoming(incoming);
        tasks.spawn(async move { server.await.unwrap() });
        let mut world = Self { dir, around: Arc::default(), fake, threads: Threads::default(), tasks };
        world.restart(limit);
        world
    }

    /// The node's process begins anew: what it only remembered is gone.
    fn restart(&mut self, limit: Duration) {
        let driver = Driver::with_limit("d", &self.dir.path().join("csi.sock"), limit);
        let drivers = HashMap::from([("d".to_owned(), Arc::new(driver))]);
        self.around = Arc::new(Alone { drivers, log: self.fake.log.clone(), ..Alone::default() });
    }

    fn directories(&self, uid: &str) -> PodDirectories {
        PodDirectories::new(&self.dir.path().join("data"), &self.dir.path().join("run"), uid)
    }

    fn pod(&self, uid: &str, spec: Value) -> Arc<PodView> {
        let mut pod = pod(spec);
        pod.metadata.uid = uid.to_owned();
        Arc::new(pod)
    }

    async fn set_up(&self, pod: &Arc<PodView>, claims: Claims) -> Result<(), String> {
        let mut setup = Setup::of(pod.clone(), self.directories(pod.uid()));
        setup.claims = claims;
        setup.around = self.around.clone();
        set_up::set_up(Arc::new(setup), &self.threads).await.map_err(|error| error.to_string())
    }

    async fn tear_down(&self, uid: &str) -> Result<(), String> {
        let directories = self.directories(uid);
        tear_down(&*self.around, &self.threads, &directories, uid).await?;
        tear_down::tear_down(&directories).map_err(|error| error.to_string())
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.log.lock())
    }

    /// What is mounted, and what was staged.
    fn left(&self) -> (Vec<PathBuf>, Vec<Noted>) {
        let mounted = sys::mount::MountTable::own().unwrap().below(self.dir.path());
        (mounted, staged::staged(&self.dir.path().join("data")).0)
    }
}

const LONG: Duration = Duration::from_secs(60);
const NAME: &str = "kubernetes.io/csi/d^h";

fn claimed() -> Value {
    json!({ "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
        "containers": [{"name": "main", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}] })
}

/// Claim `c`, its volume of the driver `d`, and what the cluster knows of that.
fn claims(driver: Value) -> Claims {
    let claim = json!({ "metadata": { "name": "c", "namespace": "default", "uid": "cu" },
        "spec": { "volumeName": "pv" }, "status": { "phase": "Bound" } });
    let volume = json!({ "metadata": { "name": "pv" }, "spec": { "claimRef": { "uid": "cu" },
        "accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"],
        "csi": { "driver": "d", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": { "size": "5" },
            "nodeStageSecretRef": { "name": "s1", "namespace": "n" },
            "nodePublishSecretRef": { "name": "s2", "namespace": "n" } } } });
    Claims {
        claims: [("c".to_owned(), serde_json::from_value(claim).unwrap())].into(),
        volumes: [("pv".to_owned(), serde_json::from_value(volume).unwrap())].into(),
        drivers: [("d".to_owned(), serde_json::from_value(json!({ "spec": driver })).unwrap())].into(),
    }
}

#[tokio::test]
async fn a_volume_is_staged_once_and_unstaged_when_nobody_has_it() {
    let world = World::new(LONG);
    let (first, second) = (world.pod("u1", claimed()), world.pod("u2", claimed()));
    world.set_up(&first, claims(json!({}))).await.unwrap();
    let in_use = [format!("in use {NAME}"), format!("attached {NAME}")];
    assert_eq!(world.log(), [&in_use[..], &["stage".into(), "publish".into()]].concat());
    let staged = world.fake.staged.lock().take().unwrap();
    assert_eq!((staged.volume_id.as_str(), &*staged.secrets["of"]), ("h", "s1"));
    assert_eq!((&*staged.publish_context["device"], &*staged.volume_context["size"]), ("vdb", "5"));
    let published = world.fake.published.lock().take().unwrap();
    assert_eq!(published.staging_target_path, staged.staging_target_path);
    assert_eq!(&*published.secrets["of"], "s2");
    let Some(volume_capability::AccessType::Mount(mount)) = published.volume_capability.unwrap().access_type
    else {
        panic!("no file system")
    };
    assert_eq!((mount.fs_type.as_str(), mount.mount_flags.as_slice()), ("ext4", &["noatime".to_owned()][..]));
    // Containers see what the driver has mounted; a refresh asks for nothing.
    let directories = world.directories("u1");
    let made =
        mounts::container_mounts(&first, &directories, &first.spec.containers[0], 0, &|_| None).unwrap();
    let engine_api::MountSource::Bind(source) = &made[0].source else { panic!("no bind") };
    assert_eq!(std::fs::read_to_string(source.join("db")).unwrap(), "kept");
    world.set_up(&first, claims(json!({}))).await.unwrap();
    assert_eq!(world.log(), Vec::<String>::new());

    world.set_up(&second, claims(json!({}))).await.unwrap();
    assert_eq!(world.log(), [&in_use[..], &["publish".into()]].concat());
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.log(), ["unpublish"]);
    world.tear_down("u2").await.unwrap();
    assert_eq!(world.log(), ["unpublish".to_owned(), "unstage".to_owned(), format!("not in use {NAME}")]);
    assert_eq!(world.left(), (Vec::new(), Vec::new()));
    assert_eq!(std::fs::read_to_string(world.fake.backing.join("db")).unwrap(), "kept");
    // Repeated, there is nothing to undo.
    world.tear_down("u2").await.unwrap();
    assert_eq!(world.log(), Vec::<String>::new());
}

#[tokio::test]
async fn a_volume_that_has_grown_grows_where_it_is_mounted() {
    let world = World::new(LONG);
    let pod = world.pod("u1", claimed());
    let sized = |claim: &str, volume: &str| {
        let mut around = claims(json!({"attachRequired": false}));
        let claim = json!({ "metadata": { "name": "c", "namespace": "default", "uid": "cu" },
            "spec": { "volumeName": "pv" },
            "status": { "phase": "Bound", "capacity": { "storage": claim } } });
        let volume = json!({ "metadata": { "name": "pv" }, "spec": { "claimRef": { "uid": "cu" },
            "capacity": { "storage": volume }, "csi": { "driver": "d", "volumeHandle": "h" } } });
        around.claims.insert("c".to_owned(), serde_json::from_value(claim).unwrap());
        around.volumes.insert("pv".to_owned(), serde_json::from_value(volume).unwrap());
        around
    };
    world.set_up(&pod, sized("1Ki", "1Ki")).await.unwrap();
    assert_eq!(world.log(), ["stage", "publish"]);
    world.set_up(&pod, sized("1Ki", "2Ki")).await.unwrap();
    assert_eq!(world.log(), ["grow to 2048, staged: true", "c has 2Ki"]);
    world.tear_down("u1").await.unwrap();
    world.log();
    world.set_up(&pod, sized("2Ki", "3Ki")).await.unwrap();
    assert_eq!(world.log(), ["stage", "publish", "grow to 3072, staged: true", "c has 3Ki"]);
    // Whoever uses it goes on with what there is.
    world.fake.fails_to_grow.store(true, Ordering::SeqCst);
    let mut setup = Setup::of(pod.clone(), world.directories("u1"));
    (setup.claims, setup.around) = (sized("3Ki", "4Ki"), world.around.clone());
    let error = set_up::set_up(Arc::new(setup), &world.threads).await.unwrap_err();
    let said = "NodeExpandVolume.NodeExpandVolume failed for volume \"pv\" : rpc error: code = Internal desc = no room";
    assert_eq!((error.reason(), &*error.to_string()), ("VolumeResizeFailed", said));
    // A driver that does not do it while the volume is in use is asked once, and keeps nobody from it.
    world.fake.refuses_to_grow.store(true, Ordering::SeqCst);
    world.log();
    world.set_up(&pod, sized("3Ki", "4Ki")).await.unwrap();
    let refused = "MountVolume.NodeExpandVolume failed for volume \"pv\" rpc error: code = FailedPrecondition desc = in use";
    assert_eq!(world.log(), ["grow to 4096, staged: true", refused]);
    world.set_up(&pod, sized("3Ki", "4Ki")).await.unwrap();
    assert_eq!(world.log(), Vec::<String>::new());
    // What is only read does not grow, which is said once.
    let mut reading = claimed();
    reading["volumes"][0]["persistentVolumeClaim"]["readOnly"] = true.into();
    let reader = world.pod("u2", reading);
    world.log();
    for log in [2, 0] {
        world.set_up(&reader, sized("3Ki", "4Ki")).await.unwrap();
        assert_eq!(world.log().len(), log);
    }
}

#[tokio::test]
async fn a_driver_that_asks_for_it_publishes_again() {
    let world = World::new(LONG);
    let pod = world.pod("u1", claimed());
    let driver = json!({"attachRequired": false, "requiresRepublish": true});
    for wanted in [&["stage", "publish"][..], &["publish"]] {
        assert!(claims(driver.clone()).republishes());
        world.set_up(&pod, claims(driver.clone())).await.unwrap();
        assert_eq!(world.log(), wanted);
    }
    assert!(!claims(json!({})).republishes());
}

#[tokio::test]
async fn a_device_is_asked_for_as_one_and_has_to_be_one() {
    let world = World::new(LONG);
    let spec = json!({ "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
        "containers": [{"name": "main", "volumeDevices": [{"name": "data", "devicePath": "/dev/xda"}]}] });
    let pod = world.pod("u1", spec);
    let block = || {
        let mut around = claims(json!({"attachRequired": false}));
        let volume = json!({ "metadata": { "name": "pv" }, "spec": { "claimRef": { "uid": "cu" },
            "volumeMode": "Block", "csi": { "driver": "d", "volumeHandle": "h" } } });
        around.volumes.insert("pv".to_owned(), serde_json::from_value(volume).unwrap());
        around
    };
    // A driver that brings a plain file: a container would be given no device.
    let (plain, device) = (world.dir.path().join("plain"), world.dir.path().join("device"));
    std::fs::write(&plain, "").unwrap();
    *world.fake.device.lock() = plain;
    let error = world.set_up(&pod, block()).await.unwrap_err();
    let wanted =
        "MapVolume.MapPodDevice failed for volume \"pv\" : the driver has put something else than a device";
    assert!(error.starts_with(wanted), "{error}");
    world.tear_down("u1").await.unwrap();
    let number = rustix::fs::makedev(7, 0);
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &device, rustix::fs::FileType::BlockDevice, mode, number).unwrap();
    *world.fake.device.lock() = device;
    world.set_up(&pod, block()).await.unwrap();
    let given = mounts::container_devices(&world.directories("u1"), &pod.spec.containers[0]).unwrap();
    assert_eq!((given[0].path.as_path(), given[0].access.as_str()), (Path::new("/dev/xda"), "rwm"));
    assert!(given[0].host.ends_with("pods/u1/volumeDevices/kubernetes.io~csi/pv"), "{:?}", given[0].host);
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.left(), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn what_a_killed_node_has_begun_is_undone() {
    let mut world = World::new(LONG);
    let pod = world.pod("u1", claimed());
    world.fake.fails_to_publish.store(true, Ordering::SeqCst);
    let error = world.set_up(&pod, claims(json!({"attachRequired": false}))).await.unwrap_err();
    let wanted =
        "MountVolume.SetUp failed for volume \"pv\" : rpc error: code = Internal desc = no such disk";
    assert_eq!(error, wanted);
    assert_eq!(world.log(), ["stage", "publish"], "it need not be attached");
    world.restart(LONG);
    let (mounted, staged) = world.left();
    assert_eq!((mounted.len(), staged.len()), (1, 1));
    assert_eq!(staged[0].staging.as_deref(), Some(mounted[0].as_path()));
    // Nothing is known of it but what was noted, and the driver is asked to undo also what it did not do.
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.log(), ["unpublish", "unstage"]);
    assert_eq!(world.left(), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_driver_that_never_came_holds_up_no_other_volume_and_no_end() {
    let world = World::new(LONG);
    let mut spec = claimed();
    spec["volumes"].as_array_mut().unwrap().push(json!({"name": "other", "csi": {"driver": "away"}}));
    let pod = world.pod("u1", spec);
    let mut around = claims(json!({"attachRequired": false}));
    let inline = json!({ "spec": { "volumeLifecycleModes": ["Ephemeral"] } });
    around.drivers.insert("away".to_owned(), serde_json::from_value(inline).unwrap());
    let error = world.set_up(&pod, around).await.unwrap_err();
    assert!(error.contains("driver name away not found in the list of registered CSI drivers"), "{error}");
    assert_eq!(world.log(), ["stage", "publish"], "the other volume is there");
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.log(), ["unpublish", "unstage"]);
    assert_eq!(world.left(), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_driver_that_has_left_is_waited_for_by_whom_it_has_served() {
    let mut world = World::new(LONG);
    let (served, waiting) = (world.pod("u1", claimed()), world.pod("u2", claimed()));
    world.set_up(&served, claims(json!({}))).await.unwrap();
    world.log();
    world.around = Arc::new(Alone { log: world.fake.log.clone(), ..Alone::default() });
    assert!(world.set_up(&waiting, claims(json!({}))).await.unwrap_err().contains("not found in the list"));
    world.tear_down("u2").await.unwrap();
    assert_eq!(world.log(), Vec::<String>::new(), "the volume is the other pod's still");
    let error = world.tear_down("u1").await.unwrap_err();
    assert!(error.starts_with("UnmountVolume.TearDown failed for volume \"pv\""), "{error}");
    world.restart(LONG);
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.log(), ["unpublish".to_owned(), "unstage".to_owned(), format!("not in use {NAME}")]);
    // Noted by an earlier run of the node, and mounted by none.
    world.around = Arc::new(Alone { log: world.fake.log.clone(), ..Alone::default() });
    assert!(world.set_up(&waiting, claims(json!({}))).await.is_err());
    world.tear_down("u2").await.unwrap();
    assert_eq!(world.log(), [format!("not in use {NAME}")]);
}

#[tokio::test]
async fn a_driver_that_hangs_is_left_after_a_while() {
    let mut world = World::new(LONG);
    // Whom the node is connected to and knows, so that only what hangs takes its time.
    world.around.drivers["d"].capabilities().await.unwrap();
    let hasty = Arc::new(world.around.drivers["d"].within(Duration::from_secs(2)));
    let drivers = HashMap::from([("d".to_owned(), hasty)]);
    world.around = Arc::new(Alone { drivers, log: world.fake.log.clone(), ..Alone::default() });
    world.fake.hangs.store(true, Ordering::SeqCst);
    let pod = world.pod("u1", claimed());
    let error = world.set_up(&pod, claims(json!({"attachRequired": false}))).await.unwrap_err();
    let wanted = "MountVolume.MountDevice failed for volume \"pv\" : rpc error: code = DeadlineExceeded desc = context deadline exceeded";
    assert_eq!(error, wanted);
    assert_eq!(world.log(), ["stage"]);
    assert!(world.tear_down("u1").await.unwrap_err().contains("DeadlineExceeded"));
    assert_eq!(world.left().1.len(), 1, "what may be staged is not forgotten");
}

#[tokio::test]
async fn lies_of_drivers_cost_their_own_volume_alone() {
    let world = World::new(LONG);
    let pod = world.pod("u1", claimed());
    let not_attached = || claims(json!({"attachRequired": false}));
    let says = async |lie: Lie| {
        *world.fake.lies.lock() = Some(lie);
        world.set_up(&pod, not_attached()).await
    };
    let endless = says(Lie::Endless).await.unwrap_err();
    assert!(endless.contains("rpc error: code = OutOfRange"), "{endless}");
    assert!(says(Lie::Nothing).await.unwrap_err().contains("and it is not there"));
    assert!(says(Lie::Link).await.unwrap_err().contains("something else than a directory"));
    world.tear_down("u1").await.unwrap();
    assert!(Path::new("/etc/passwd").exists());
    says(Lie::LeavesMounts).await.unwrap();
    assert_eq!(world.left().0.len(), 2);
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.left(), (Vec::new(), Vec::new()));
    assert_eq!(std::fs::read_to_string(world.fake.backing.join("db")).unwrap(), "kept");
    drop(world.tasks.clone());
}

#[tokio::test]
async fn a_volume_of_a_pods_own_is_told_whose_it_is() {
    let world = World::new(LONG);
    let spec = json!({ "volumes": [{"name": "own", "csi": {"driver": "d", "readOnly": true,
            "volumeAttributes": {"a": "b"}, "nodePublishSecretRef": {"name": "s"}}}],
        "serviceAccountName": "robot", "containers": [] });
    let pod = world.pod("u1", spec);
    let with = |spec: Value| Claims {
        drivers: [("d".to_owned(), serde_json::from_value(json!({ "spec": spec })).unwrap())].into(),
        ..Claims::default()
    };
    let error = world.set_up(&pod, Claims::default()).await.unwrap_err();
    let wanted = "volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)";
    assert!(error.contains(wanted), "{error}");
    let error = world.set_up(&pod, with(json!({"volumeLifecycleModes": ["Persistent"]}))).await.unwrap_err();
    assert!(error.ends_with("(only supports [\"Persistent\"])"), "{error}");
    let driver = json!({"volumeLifecycleModes": ["Ephemeral"], "podInfoOnMount": true,
        "tokenRequests": [{"audience": "vault"}]});
    world.set_up(&pod, with(driver)).await.unwrap();
    assert_eq!(world.log(), ["publish"], "neither attached nor staged");
    let asked = world.fake.published.lock().take().unwrap();
    assert!(asked.readonly && asked.staging_target_path.is_empty() && asked.volume_id.starts_with("csi-"));
    assert!(
        asked.target_path.ends_with("/pods/u1/volumes/kubernetes.io~csi/own/mount"),
        "{}",
        asked.target_path
    );
    let told = |key: &str| asked.volume_context[&format!("csi.storage.k8s.io/{key}")].as_str();
    assert_eq!((told("pod.name"), told("pod.uid"), told("ephemeral")), ("web", "u1", "true"));
    assert_eq!(told("serviceAccount.name"), "robot");
    assert_eq!(told("serviceAccount.tokens"), r#"{"vault":{"expirationTimestamp":"then","token":"t"}}"#);
    assert_eq!((&*asked.volume_context["a"], &*asked.secrets["of"]), ("b", "s"));
    world.tear_down("u1").await.unwrap();
    assert_eq!(world.left(), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_driver_that_gives_volumes_to_groups_is_told_the_group() {
    let world = World::new(LONG);
    world.fake.gives.store(true, Ordering::SeqCst);
    let mut spec = claimed();
    spec["securityContext"] = json!({"fsGroup": 4321});
    let pod = world.pod("u1", spec);
    world.set_up(&pod, claims(json!({"attachRequired": false, "fsGroupPolicy": "None"}))).await.unwrap();
    let published = world.fake.published.lock().take().unwrap();
    let staged = world.fake.staged.lock().take().unwrap();
    for capability in [published.volume_capability, staged.volume_capability] {
        let Some(AccessType::Mount(mount)) = capability.unwrap().access_type else {
            panic!("no file system")
        };
        assert_eq!(mount.volume_mount_group, "4321");
    }
    world.tear_down("u1").await.unwrap();
}

#[test]
fn groups_are_given_what_the_driver_allows() {
    let mounting = |policy: &str, fs_type: &str, mode: &str| {
        let object: DriverView = serde_json::from_value(json!({"spec": {"fsGroupPolicy": policy}})).unwrap();
        let source = CsiSource { fs_type: fs_type.to_owned(), ..CsiSource::default() };
        Mounting { source, access_modes: vec![mode.to_owned()], object, ..Mounting::default() }
    };
    assert!(mounting("ReadWriteOnceWithFSType", "ext4", "ReadWriteOnce").is_given());
    assert!(mounting("ReadWriteOnceWithFSType", "ext4", "ReadWriteOncePod").is_given());
    assert!(!mounting("ReadWriteOnceWithFSType", "", "ReadWriteOnce").is_given());
    assert!(!mounting("ReadWriteOnceWithFSType", "ext4", "ReadWriteMany").is_given());
    assert!(mounting("File", "", "ReadWriteMany").is_given());
    assert!(!mounting("None", "ext4", "ReadWriteOnce").is_given());
    let mut read = mounting("File", "ext4", "ReadWriteOnce");
    read.only_read(true);
    assert!(!read.is_given());
    // One that lives with its pod is that pod's alone.
    let object = serde_json::from_value(json!({"spec": {"volumeLifecycleModes": ["Ephemeral"]}})).unwrap();
    let own = |fs_type: &str| {
        let source = CSIVolumeSource { fs_type: Some(fs_type.to_owned()), ..CSIVolumeSource::default() };
        Mounting::ephemeral(&pod(json!({})), "own", &source, Some(&object)).unwrap()
    };
    assert!(own("ext4").is_given() && !own("").is_given());
}

#[test]
fn access_modes_are_those_that_the_driver_knows() {
    let (old, new) =
        (Capabilities::default(), Capabilities { single_node_multi_writer: true, ..Capabilities::default() });
    for (mode, before, after) in [
        ("ReadWriteOnce", Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
        ("ReadWriteOncePod", Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
        ("ReadOnlyMany", Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
        ("ReadWriteMany", Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
    ] {
        assert_eq!((access_mode(mode, old), access_mode(mode, new)), (before, after), "{mode}");
    }
}

#[tokio::test]
async fn a_driver_tells_what_is_in_its_volume_where_it_can() {
    let mut world = World::new(LONG);
    let pod = world.pod("u1", claimed());
    world.set_up(&pod, claims(json!({}))).await.unwrap();
    let asked = stats::questions(&pod, &world.directories("u1"));
    assert_eq!((asked.len(), asked[0].claim.as_deref()), (1, Some("c")));
    let told = async |world: &World| {
        stats::ask(&*world.around, &world.threads, ("u1".into(), "data".into()), &asked[0].teller).await
    };
    world.log();
    assert_eq!(told(&world).await, None);
    assert!(world.log().is_empty(), "it does not say that it can");
    let bytes = VolumeUsage { total: 5, used: 2, available: 3, unit: volume_usage::Unit::Bytes.into() };
    *world.fake.told.lock() = Some(NodeGetVolumeStatsResponse { usage: vec![bytes], volume_condition: None });
    world.restart(LONG);
    assert_eq!(told(&world).await.unwrap().bytes.used, Some(2));
    assert_eq!(world.log(), ["stats of h, a mount: true"]);
    // Whom the node is connected to and knows, so that only what hangs takes its time.
    let hasty = Arc::new(world.around.drivers["d"].within(Duration::from_secs(2)));
    let drivers = HashMap::from([("d".to_owned(), hasty)]);
    world.around = Arc::new(Alone { drivers, log: world.fake.log.clone(), ..Alone::default() });
    world.fake.hangs.store(true, Ordering::SeqCst);
    assert_eq!(told(&world).await, None);
}
