//! An engine and a server of a test's own, a client of it, and their removal however the test ends.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::lifecycle::Context;
use cri::proto::image_service_client::ImageServiceClient;
use cri::proto::runtime_service_client::RuntimeServiceClient;
use cri::proto::*;
use cri::{Config, Server};
use engine::{Engine, EngineConfig, ImageService};
use engine_api::{EngineError, PublishedPort, SandboxNetwork, SandboxNetworks, contract};
use parking_lot::Mutex;
use sys::cgroup::CgroupHost;
use sys::mount::MountTable;
use tokio::net::UnixListener;
use tonic::transport::{Channel, Endpoint};

/// Networks that remember what was asked of them.
#[derive(Default)]
pub(crate) struct Remembered {
    pub(crate) attached: Mutex<BTreeMap<String, usize>>,
    pub(crate) published: Mutex<BTreeMap<String, Vec<PublishedPort>>>,
}

#[async_trait]
impl SandboxNetworks for Remembered {
    async fn attach(&self, id: &str, _: &str) -> Result<SandboxNetwork, EngineError> {
        let mut attached = self.attached.lock();
        let next = attached.len() + 2;
        let number = *attached.entry(id.to_owned()).or_insert(next);
        let address: IpAddr = format!("10.9.0.{number}").parse().unwrap();
        Ok(SandboxNetwork { addresses: vec![address], host_interface: String::new() })
    }

    async fn publish(&self, id: &str, ports: &[PublishedPort]) -> Result<Vec<PublishedPort>, EngineError> {
        self.published.lock().insert(id.to_owned(), ports.to_vec());
        Ok(ports.to_vec())
    }

    fn published(&self, id: &str) -> Vec<PublishedPort> {
        self.published.lock().get(id).cloned().unwrap_or_default()
    }

    async fn detach(&self, id: &str) -> Result<(), EngineError> {
        self.attached.lock().remove(id);
        self.published.lock().remove(id);
        Ok(())
    }
}

/// A place for an engine: temporary directories and a cgroup name, cleared however the test ends.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    cgroup: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = image::Store::open(&dir.path().join("images")).unwrap();
        store.import(contract::busybox().as_slice(), "busybox:test").unwrap();
        Self { dir, cgroup: format!("skiff-test-{}", base::id::suffix(10)) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let host = CgroupHost::detect().unwrap();
        let group = host.group(&self.cgroup);
        let _ = group.kill(contract::PATIENCE);
        let _ = group.remove();
        for target in MountTable::own().unwrap().below(self.path()) {
            let _ = sys::mount::unmount(&target);
        }
    }
}

/// A served engine with clients of both services.
pub(crate) struct World {
    pub(crate) engine: Arc<Engine>,
    pub(crate) networks: Arc<Remembered>,
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) logs: PathBuf,
    ctx: Context,
    _tasks: base::lifecycle::Tasks,
}

impl World {
    pub(crate) async fn open(place: &Place) -> Self {
        let path = place.path();
        let store = image::Store::open(&path.join("images")).unwrap();
        let config = EngineConfig {
            data_dir: path.join("data"),
            run_dir: path.join("run"),
            cgroup_root: place.cgroup.clone(),
            runtimes: Default::default(),
            cdi_directories: vec![path.join("cdi")],
        };
        let engine = Engine::open(config, store.clone()).await.unwrap();
        let networks = Arc::new(Remembered::default());
        let config = Config {
            version: "1.2.3".into(),
            data_dir: path.join("cri"),
            image_dir: path.join("images"),
            cgroup_root: place.cgroup.clone(),
        };
        let images = Arc::new(ImageService::new(store));
        let server = Server::bind(engine.clone(), images, networks.clone(), config).await.unwrap();
        let socket = path.join("cri.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (ctx, tasks) = (Context::detached("cri"), base::lifecycle::Tasks::default());
        let of_server = ctx.clone();
        tasks.spawn(async move { server.serve(listener, &of_server).await.unwrap() });
        let channel =
            Endpoint::try_from(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap();
        let max = 16 << 20;
        Self {
            engine,
            networks,
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(max),
            images: ImageServiceClient::new(channel),
            logs: path.join("logs"),
            ctx,
            _tasks: tasks,
        }
    }

    /// The daemon is gone, its containers are not.
    pub(crate) async fn close(self) {
        self.ctx.cancel().cancel();
    }

    /// A pod's configuration, with PID namespaces of its containers' own.
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        let options = NamespaceOption { pid: NamespaceMode::Container as i32, ..NamespaceOption::default() };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 1,
            }),
            hostname: name.into(),
            log_directory: self.logs.join(name).to_string_lossy().into_owned(),
            labels: map(&[("io.kubernetes.pod.uid", name), ("app", name)]),
            annotations: map(&[("note", "kept")]),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..PodSandboxConfig::default()
        }
    }

    pub(crate) async fn run_pod(&mut self, config: PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub(crate) async fn create(
        &mut self,
        pod: &str,
        config: ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request =
            CreateContainerRequest { pod_sandbox_id: pod.into(), config: Some(config), sandbox_config: None };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&mut self, pod: &str, config: ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
        id
    }

    pub(crate) async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub(crate) async fn exec(&mut self, id: &str, script: &str) -> ExecSyncResponse {
        let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 60 };
        self.runtime.exec_sync(request).await.unwrap().into_inner()
    }

    /// Waits until a container has ended.
    pub(crate) async fn ended(&mut self, id: &str) -> ContainerStatus {
        use engine_api::Runtime as _;
        self.engine.wait_container(id).await.unwrap();
        self.status(id).await
    }
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A container that runs a shell script.
pub(crate) fn script(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 2 }),
        image: Some(ImageSpec { image: "busybox:test".into(), ..ImageSpec::default() }),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        labels: map(&[("container", name)]),
        annotations: map(&[("note", "kept")]),
        log_path: format!("{name}/0.log"),
        ..ContainerConfig::default()
    }
}

/// Runs a case on a server of its own, of which nothing is left afterwards.
pub(crate) async fn with<F: Future<Output = World>>(case: impl FnOnce(World) -> F) {
    let place = Place::new();
    let world = case(World::open(&place).await).await;
    let engine = world.engine.clone();
    world.close().await;
    engine.purge().await.unwrap();
    let mounts = MountTable::own().unwrap().below(place.path());
    assert!(mounts.is_empty(), "{mounts:?}");
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> tonic::Code {
    answer.unwrap_err().code()
}
