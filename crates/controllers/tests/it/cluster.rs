//! A real API server in the process, with the controllers on it and a stand-in for nodes: it makes bound pods Running and
//! Ready, and ends those that are deleted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api::connect::{Body, NodeAddress, NodeConnector, User};
use api::{DeleteOptions, Key, Object, PatchType, Request, Response, Status};
use apiserver::{Config, Pipeline, Server};
use async_trait::async_trait;
use base::clock::{SharedClock, SystemClock};
use base::lifecycle::{Component, Readiness, Supervisor, Tasks};
use base::queues::Queues;
use client::{Client, Transport};
use reconcile::{Change, Informer, Informers, kinds};
use serde_json::{Value, json};
use store::memory::Memory;
use store::{Embedded, EmbeddedConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);

struct InProcess {
    pipeline: Arc<Pipeline>,
    user: User,
    pods_asked_for: Arc<AtomicU32>,
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        let creates = matches!(request.call, api::Call::Create { .. }) && request.subresource.is_empty();
        if creates && request.resource == kinds::PODS.gvr() {
            self.pods_asked_for.fetch_add(1, Ordering::Relaxed);
        }
        self.pipeline.call(&self.user, request).await
    }
}

struct NoNodes;

#[async_trait]
impl NodeConnector for NoNodes {
    async fn request(
        &self,
        node: &NodeAddress,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        Err(Status::internal(format!("node {} is not simulated that far", node.name)))
    }
}

/// A running cluster. Ends when it is dropped.
#[allow(dead_code, reason = "each test binary that includes this file uses a part of it")]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) informers: Informers,
    pub(crate) clock: SharedClock,
    /// What `/metrics` shows of work queues.
    pub(crate) queues: Queues,
    /// The authority that is published to pods.
    pub(crate) root_ca_pem: watch::Sender<Arc<str>>,
    pub(crate) readiness: Readiness,
    /// How many times somebody has tried to make a pod.
    pub(crate) pods_asked_for: Arc<AtomicU32>,
    pipeline: Arc<Pipeline>,
    stop: CancellationToken,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[allow(dead_code, reason = "each test binary that includes this file uses a part of it")]
impl Cluster {
    /// Starts the API server and what `components` makes of the cluster.
    pub(crate) async fn start(components: impl FnOnce(&Cluster) -> Vec<Arc<dyn Component>>) -> Self {
        // RUST_LOG=debug shows what happened; a second test of the process finds it set up.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let clock: SharedClock = Arc::new(SystemClock);
        let store = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap();
        let config = Config {
            listen: SocketAddr::new(loopback, 0),
            addresses: vec![loopback],
            pki_dir: dir.path().join("pki"),
            service_ranges: vec![("10.96.0.0".parse().unwrap(), 16)],
            node_ports: (30_000, 32_767),
            dns_address: Some("10.96.0.10".parse().unwrap()),
            git_version: "v1.37.0+skiff.1".into(),
            clock: clock.clone(),
            shared: false,
            readiness: None,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
            authorizer: None,
            egress: None,
            admission: apiserver::admission::standard(),
        };
        let (pipeline, server) =
            Server::build(config, store, resources::strategies(), Arc::new(NoNodes)).await.unwrap();
        let root_ca_pem = watch::Sender::new(server.pki().ca_pem().into());
        let user = User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() };
        let pods_asked_for = Arc::new(AtomicU32::new(0));
        let transport =
            InProcess { pipeline: pipeline.clone(), user, pods_asked_for: pods_asked_for.clone() };
        let client = Client::new(Arc::new(transport), "test");
        let mut supervisor = Supervisor::new();
        let cluster = Self {
            informers: Informers::new(client.clone(), clock.clone()),
            client,
            clock,
            queues: server.front().queues().clone(),
            root_ca_pem,
            readiness: supervisor.readiness(),
            pods_asked_for,
            pipeline,
            stop: CancellationToken::new(),
            tasks: Tasks::default(),
            _dir: dir,
        };
        supervisor.add(Arc::new(server));
        for component in components(&cluster) {
            supervisor.add(component);
        }
        let (readiness, stop) = (cluster.readiness.clone(), cluster.stop.clone());
        cluster.tasks.spawn(async move {
            supervisor.run(stop, Duration::from_secs(60)).await.unwrap();
        });
        let ready = tokio::time::timeout(PATIENCE, readiness.wait_all()).await;
        assert!(ready.is_ok(), "not ready: {:?}", readiness.missing());
        cluster
    }

    /// The line of a component of Skiff's in its process: under its own name, and with that no more rights than it has
    /// there.
    pub(crate) fn component(&self, name: &str) -> Client {
        let groups = vec![apiserver::authn::names::COMPONENTS.into()];
        let user = User { name: format!("skiff:{name}"), groups, ..User::default() };
        let transport =
            InProcess { pipeline: self.pipeline.clone(), user, pods_asked_for: self.pods_asked_for.clone() };
        Client::new(Arc::new(transport), name)
    }

    /// What the server serves, custom kinds among it.
    pub(crate) fn rows(&self) -> Arc<api::catalog::Catalog> {
        self.pipeline.catalog().rows()
    }

    /// Creates an object of a kind.
    pub(crate) async fn create(
        &self,
        kind: &reconcile::Kind,
        namespace: &str,
        mut body: Value,
    ) -> Arc<Object> {
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.kind.into();
        self.client.create(&kind.gvr(), namespace, &body).await.unwrap()
    }

    /// Changes an object by a merge patch.
    pub(crate) async fn merge(&self, kind: &reconcile::Kind, key: &Key, patch: Value) -> Arc<Object> {
        self.client.patch(&kind.gvr(), key, "", PatchType::Merge, &patch).await.unwrap()
    }

    /// Waits until a namespace has the account that pods run under, without which there are none.
    pub(crate) async fn takes_pods(&self, namespace: &str) {
        self.until(kinds::SERVICE_ACCOUNTS, &Key::new(namespace, "default"), |held| !held.is_null()).await;
    }

    /// Waits until an object is as wanted.
    pub(crate) async fn until(
        &self,
        kind: reconcile::Kind,
        key: &Key,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let informer = self.informers.get(kind);
        let mut changes = informer.subscribe();
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = informer.get(key).map_or(Value::Null, |object| object.decode().unwrap());
                if holds(&last) {
                    return;
                }
                changes.changed().await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, wait).await;
        assert!(done.is_ok(), "{} {key} did not come to what is wanted: {last:#}", kind.kind);
        last
    }

    /// Waits until the objects of a namespace (empty: all) are as wanted.
    pub(crate) async fn until_all(
        &self,
        kind: reconcile::Kind,
        namespace: &str,
        holds: impl Fn(&[Arc<Object>]) -> bool,
    ) -> Vec<Arc<Object>> {
        let informer = self.informers.get(kind);
        informer.synced().await;
        let mut changes = informer.subscribe();
        let mut last = Vec::new();
        let wait = async {
            loop {
                last = if namespace.is_empty() { informer.list() } else { informer.in_namespace(namespace) };
                if holds(&last) {
                    return;
                }
                changes.changed().await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, wait).await;
        let show = || last.iter().map(|object| format!("{:?}\n", object.meta())).collect::<String>();
        assert!(done.is_ok(), "{} in {namespace:?}:\n{}", kind.kind, show());
        last
    }

    /// Plays the nodes. With `bind`, also the scheduler: every pod goes to the node that it names, else to `n1`.
    pub(crate) fn play_nodes(&self, bind: bool) {
        let (client, pods) = (self.client.for_manager("kubelet"), self.informers.get(kinds::PODS));
        self.tasks.spawn(play(client, pods, bind));
    }
}

async fn play(client: Client, pods: Informer, bind: bool) {
    let addresses = AtomicU32::new(1);
    let mut changes = pods.subscribe();
    loop {
        for change in changes.changed().await {
            if let Err(error) = play_one(&client, &change, bind, &addresses).await {
                // Somebody was faster: the next change says so.
                tracing::debug!(%error, "a pod was not played");
            }
        }
    }
}

/// What a pod says of the node that it is to go to.
#[derive(serde::Deserialize)]
struct Wanted {
    spec: reconcile::node_affinity::NodeNeeds,
}

async fn play_one(client: &Client, change: &Change, bind: bool, addresses: &AtomicU32) -> Result<(), Status> {
    let Some(pod) = &change.new else { return Ok(()) };
    let (resource, key) = (kinds::PODS.gvr(), &change.key);
    let held: Value = pod.decode().unwrap();
    let has_ended = matches!(held["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if pod.meta().is_terminating() {
        // Whoever holds it waits for its end.
        if pod.node_name().is_some() && !has_ended && !pod.meta().finalizers.is_empty() {
            let patch = json!({ "status": { "phase": "Failed" } });
            client.patch(&resource, key, "status", PatchType::StrategicMerge, &patch).await?;
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        return client.delete(&resource, key, options).await;
    }
    if pod.node_name().is_none() {
        if bind && held["spec"]["schedulingGates"].is_null() {
            let wanted: Wanted = pod.decode().unwrap();
            let body = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": { "name": key.name, "namespace": key.namespace },
                "target": { "kind": "Node", "name": wanted.spec.named().unwrap_or("n1") },
            });
            let call = api::Call::Create {
                body: serde_json::to_vec(&body).unwrap().into(),
                options: api::WriteOptions::default(),
            };
            let request = Request {
                resource,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                subresource: "binding".into(),
                call,
            };
            client.send(request).await?;
        }
        return Ok(());
    }
    if has_ended || held["status"]["phase"] == "Running" {
        return Ok(());
    }
    let number = addresses.fetch_add(1, Ordering::Relaxed);
    let ip = format!("10.0.{}.{}", number / 250, number % 250 + 1);
    let now = reconcile::time::seconds(jiff::Timestamp::now());
    let patch = json!({ "status": {
        "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
    }});
    client.patch(&resource, key, "status", PatchType::StrategicMerge, &patch).await.map(drop)
}
