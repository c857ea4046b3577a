//! An agent with everything around it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use base::clock::VirtualClock;
use base::lifecycle::{Component, Supervisor};
use client::Client;
use engine_api::ImageOrigin;
use jiff::Timestamp;
use node::{Agent, Config, Handles};
use parking_lot::Mutex;
use reconcile::Informers;
use reconcile::ports::{ClusterDns, Drain, PodRef, PublishedPort, SandboxNetworks};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api_server::ApiServer;
use crate::runtime::{Fake, FakeImages};

/// Gives each sandbox the next address.
#[derive(Default)]
struct Networks(Mutex<Vec<String>>);

#[async_trait]
impl SandboxNetworks for Networks {
    async fn attach(&self, sandbox_id: &str, _: &str) -> Result<Vec<IpAddr>, BoxError> {
        let mut known = self.0.lock();
        let index = known.iter().position(|id| id == sandbox_id).unwrap_or_else(|| {
            known.push(sandbox_id.to_owned());
            known.len() - 1
        });
        Ok(vec![format!("10.1.0.{}", index + 1).parse()?])
    }

    async fn publish(&self, _: &str, ports: &[PublishedPort]) -> Result<Vec<PublishedPort>, BoxError> {
        Ok(ports.to_vec())
    }

    async fn detach(&self, _: &str) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Pods with the label `served` are selected by a Service; draining is noted in the runtime's log.
struct Draining(Arc<Fake>, Arc<Mutex<bool>>);

#[async_trait]
impl Drain for Draining {
    fn serves(&self, _: &PodRef) -> bool {
        *self.1.lock()
    }

    async fn released(&self, _: &PodRef, at_most: Duration) {
        self.0.say(format!("drained within {}", at_most.as_millis()));
    }
}

struct Dns;

impl ClusterDns for Dns {
    fn nameservers(&self) -> Vec<IpAddr> {
        vec!["10.96.0.10".parse().unwrap()]
    }

    fn domain(&self) -> String {
        "cluster.local".to_owned()
    }
}

/// Nothing that a test waits for takes this long, also on a loaded machine, unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) api: Arc<ApiServer>,
    pub(crate) runtime: Arc<Fake>,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) clock: VirtualClock,
    pub(crate) served: Arc<Mutex<bool>>,
    pub(crate) directory: tempfile::TempDir,
    /// When pods have to go, from the next start on.
    pub(crate) eviction: node::Eviction,
    /// Who has CPUs for itself, from the next start on, and what is not the pods'.
    pub(crate) cpus: node::CpuSettings,
    pub(crate) reserved: node::Reserved,
    /// How pods end before the machine goes down, from the next start on.
    pub(crate) shutdown: node::ShutdownSettings,
    changed: watch::Sender<u64>,
    networks: Arc<Networks>,
    running: Option<(Arc<Agent>, CancellationToken, JoinHandle<()>)>,
    _addresses: watch::Sender<Vec<IpAddr>>,
}

impl World {
    /// A node that is ready. The image `app:1` is there.
    pub(crate) async fn new() -> Self {
        let clock = VirtualClock::new(Timestamp::from_second(1_800_000_000).unwrap());
        let changed = watch::Sender::new(0);
        let runtime = Fake::new(clock.clone(), changed.clone());
        let images = Arc::new(FakeImages::default());
        images.tags.lock().insert("app:1".to_owned(), ("sha256:app1".to_owned(), ImageOrigin::Local));
        let mut world = Self {
            api: ApiServer::new(clock.clone(), changed.clone()),
            changed,
            runtime,
            images,
            clock,
            served: Arc::default(),
            directory: tempfile::tempdir().unwrap(),
            eviction: node::Eviction::default(),
            cpus: node::CpuSettings::default(),
            reserved: node::Reserved::default(),
            shutdown: node::ShutdownSettings::default(),
            networks: Arc::default(),
            running: None,
            _addresses: watch::Sender::new(vec!["192.0.2.1".parse().unwrap()]),
        };
        world.start().await;
        world
    }

    /// Starts an agent over what is there.
    pub(crate) async fn start(&mut self) {
        let root = self.directory.path();
        let config = Config {
            node_name: "n1".to_owned(),
            hostname: "host1".to_owned(),
            addresses: self._addresses.subscribe(),
            pod_range: None,
            data_dir: root.join("data"),
            shown_as: root.join("data"),
            run_dir: root.join("run"),
            log_dir: root.join("logs"),
            seccomp_dir: root.join("seccomp"),
            resolv_conf: root.join("resolv.conf"),
            kubelet_version: "v1.37.0+skiff.1".to_owned(),
            runtime_version: "skiff://0.1.0".to_owned(),
            max_pods: 110,
            pod_pids_limit: None,
            crash_loop_max: Duration::from_secs(300),
            static_pods: Some(root.join("manifests")),
            images: node::ImagesConfig::default(),
            reserved: self.reserved.clone(),
            eviction: self.eviction.clone(),
            cpus: self.cpus.clone(),
            shutdown: self.shutdown.clone(),
            labels: Vec::new(),
            server: None,
        };
        let client = Client::new(self.api.clone(), "kubelet");
        let clock = Arc::new(self.clock.clone());
        let handles = Handles {
            informers: Informers::new(client.clone(), clock.clone()),
            client,
            clock,
            runtime: self.runtime.clone(),
            images: self.images.clone(),
            networks: self.networks.clone(),
            drain: Arc::new(Draining(self.runtime.clone(), self.served.clone())),
            dns: Arc::new(Dns),
        };
        let agent = Agent::build(config, handles).await.unwrap();
        let mut supervisor = Supervisor::new();
        let component: Arc<dyn Component> = agent.clone();
        supervisor.add(component);
        let readiness = supervisor.readiness();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let tasks = base::lifecycle::Context::detached("test");
        let run = tasks.spawn(async move {
            supervisor.run(stopped, Duration::from_secs(60)).await.unwrap();
        });
        tokio::time::timeout(Duration::from_secs(120), readiness.wait_all()).await.expect("agent ready");
        self.running = Some((agent, stop, run));
    }

    /// Ends the agent; the runtime and the API go on.
    pub(crate) async fn stop(&mut self) {
        let (_, stop, run) = self.running.take().unwrap();
        stop.cancel();
        run.await.unwrap();
    }

    pub(crate) fn agent(&self) -> Arc<Agent> {
        self.running.as_ref().unwrap().0.clone()
    }

    /// Makes a pod `default/<name>` on this node.
    pub(crate) fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": name, "namespace": "default", "generation": 1, "labels": {"app": name}},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}});
        self.api.put("pods", pod);
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.api.get("pods", "default", name).unwrap_or_default()
    }

    /// Waits until the pod is as `wanted` says; `what` is for the failure's message.
    pub(crate) async fn pod_until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until(what, || {
            let pod = self.pod(name);
            wanted(&pod).then_some(pod)
        })
        .await
    }

    /// Waits for the API's objects or the runtime's containers to become so: looks after each of their changes.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(found) = look() {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => {
                panic!("never: {what}\npod: {:#}\nlog: {:#?}", self.pod("web"), self.runtime.log.lock())
            }
        }
    }

    /// Waits for a file of one of the pod's volumes to be as `wanted` says.
    pub(crate) async fn file_until(&self, volume: &Path, file: &str, wanted: impl Fn(&str) -> bool) {
        let watched = inotify::Inotify::init().unwrap();
        watched.watches().add(volume, inotify::WatchMask::CREATE | inotify::WatchMask::MOVED_TO).unwrap();
        let mut events = watched.into_event_stream(vec![0; 4096]).unwrap();
        let found = async {
            while !wanted(&std::fs::read_to_string(volume.join(file)).unwrap()) {
                futures::StreamExt::next(&mut events).await.unwrap().unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{file} never changed"));
    }

    /// Waits until there is something at a path whose directory is there.
    pub(crate) async fn file_there(&self, path: &Path) {
        let watched = inotify::Inotify::init().unwrap();
        watched.watches().add(path.parent().unwrap(), inotify::WatchMask::CREATE).unwrap();
        let mut events = watched.into_event_stream(vec![0; 4096]).unwrap();
        let found = async {
            while !path.exists() {
                futures::StreamExt::next(&mut events).await.unwrap().unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("never: {}", path.display()));
    }

    /// Waits until the pod's worker has decided with everything that happened before this call, and has published what
    /// came of it: a new generation, which the worker reports with the rest. Answers the pod then.
    pub(crate) async fn settled(&self, name: &str) -> Value {
        let mut pod = self.pod(name);
        let generation = pod["metadata"]["generation"].as_i64().unwrap() + 1;
        pod["metadata"]["generation"] = generation.into();
        self.api.put("pods", pod);
        self.pod_until(name, "observed", |pod| pod["status"]["observedGeneration"] == generation).await
    }

    /// The messages of events with a reason.
    pub(crate) fn events(&self, reason: &str) -> Vec<String> {
        let events = self.api.list("events").into_iter().filter(|event| event["reason"] == reason);
        events.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// Whether a condition holds.
pub(crate) fn holds(pod: &Value, kind: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// A pod of one container with the image that is there.
pub(crate) fn one() -> Value {
    json!({"containers": [{"name": "main", "image": "app:1", "imagePullPolicy": "IfNotPresent"}],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30})
}
