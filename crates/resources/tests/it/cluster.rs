//! A pipeline for tests: built and run as the server is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::connect::{Body, NodeAddress, NodeConnector, User};
use api::{
    Call, DeleteOptions, GroupVersionResource, ListOptions, PatchType, Request, Response, Status,
    WriteOptions,
};
use apiserver::http::Front;
use apiserver::pki::Pki;
use apiserver::proxy::Egress;
use apiserver::{Config, Pipeline, Server};
use async_trait::async_trait;
use base::lifecycle::{Readiness, Supervisor, Tasks};
use futures::StreamExt;
use serde_json::{Value, json};
use store::memory::Memory;
use store::{Embedded, EmbeddedConfig, Store};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Nothing here takes that long, whatever else the machine does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

struct NoNodes;

#[async_trait]
impl NodeConnector for NoNodes {
    async fn request(&self, _: &NodeAddress, _: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        Err(Status::internal("no nodes"))
    }
}

/// An address of the cluster that Services may lead to; its ports are those of loopback, to which nobody is led.
pub(crate) const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

struct Elsewhere;

#[async_trait]
impl Egress for Elsewhere {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.stands_at(address)).await
    }

    fn stands_at(&self, address: SocketAddr) -> SocketAddr {
        let ip = if address.ip() == ELSEWHERE { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
        SocketAddr::new(ip, address.port())
    }
}

/// A running API server.
pub(crate) struct Cluster {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) user: User,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) front: Arc<Front>,
    /// Which of its components are ready.
    pub(crate) readiness: Readiness,
    /// Where it listens, and its authority.
    pub(crate) address: SocketAddr,
    pub(crate) pki: Arc<Pki>,
    stop: CancellationToken,
    _tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn resource(group: &str, version: &str, plural: &str) -> GroupVersionResource {
    GroupVersionResource::new(group, version, plural)
}

/// A request for a certificate of `jane`, made once by openssl, as a CertificateSigningRequest has it.
pub(crate) fn signing_request() -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, include_str!("jane.csr"))
}

/// What a cluster is made of besides the ordinary.
pub(crate) struct Made {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) access: apiserver::Access,
    pub(crate) protection: apiserver::Protection,
    pub(crate) nodes: Arc<dyn NodeConnector>,
    pub(crate) egress: Option<Arc<dyn Egress>>,
}

impl Default for Made {
    fn default() -> Self {
        let store = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap();
        Self {
            store,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
            nodes: Arc::new(NoNodes),
            egress: Some(Arc::new(Elsewhere)),
        }
    }
}

impl Cluster {
    /// Starts a server on a free loopback port and waits until its bootstrap objects are there.
    pub(crate) async fn start() -> Self {
        Self::make(Made::default()).await
    }

    /// The same over a store that may hold something already.
    pub(crate) async fn start_over(store: Arc<dyn Store>) -> Self {
        Self::make(Made { store, ..Made::default() }).await
    }

    /// The same, believing others too.
    pub(crate) async fn start_believing(access: apiserver::Access) -> Self {
        Self::make(Made { access, ..Made::default() }).await
    }

    /// The same over a store, protected.
    pub(crate) async fn start_protected(store: Arc<dyn Store>, protection: apiserver::Protection) -> Self {
        Self::make(Made { store, protection, ..Made::default() }).await
    }

    /// Starts a server that is made so.
    pub(crate) async fn make(made: Made) -> Self {
        let Made { store, access, protection, nodes, egress } = made;
        let dir = tempfile::tempdir().unwrap();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let config = Config {
            listen: SocketAddr::new(loopback, 0),
            addresses: vec![loopback],
            pki_dir: dir.path().join("pki"),
            service_ranges: vec![("10.96.0.0".parse().unwrap(), 24)],
            node_ports: (30_000, 30_010),
            dns_address: Some("10.96.0.10".parse().unwrap()),
            git_version: "v1.37.0+skiff.1".into(),
            clock: Arc::new(base::clock::SystemClock),
            shared: false,
            readiness: None,
            access,
            protection,
            authorizer: None,
            egress,
            admission: apiserver::admission::standard(),
        };
        let (pipeline, server) =
            Server::build(config, store.clone(), resources::strategies(), nodes).await.unwrap();
        let user = User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() };
        let front = server.front().clone();
        let (address, pki) = (server.local_addr().unwrap(), server.pki().clone());
        let mut supervisor = Supervisor::new();
        let (readiness, stop, tasks) = (supervisor.readiness(), CancellationToken::new(), Tasks::default());
        let start = server.start();
        supervisor.add(Arc::new(server));
        supervisor.add(Arc::new(start));
        let running = stop.clone();
        tasks.spawn(async move {
            supervisor.run(running, Duration::from_secs(60)).await.unwrap();
        });
        let ready = tokio::time::timeout(PATIENCE, readiness.wait_for(&["apiserver"])).await;
        assert!(ready.is_ok(), "not ready: {:?}", readiness.missing());
        Self { pipeline, user, store, front, readiness, address, pki, stop, _tasks: tasks, _dir: dir }
    }

    /// Waits until something holds that follows from objects of these resources: looks again whenever one changes.
    pub(crate) async fn until(
        &self,
        resources: &[GroupVersionResource],
        what: &str,
        mut holds: impl AsyncFnMut() -> bool,
    ) {
        let mut streams = Vec::new();
        for resource in resources {
            match self.call(resource, "", "", "", Call::Watch(ListOptions::default())).await.unwrap() {
                Response::Watch(stream) => streams.push(stream),
                _ => panic!("not a watch"),
            }
        }
        let mut changes = futures::stream::select_all(streams);
        let wait = async {
            while !holds().await {
                changes.next().await.unwrap().unwrap();
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never {what}");
    }

    pub(crate) async fn call(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        name: &str,
        subresource: &str,
        call: Call,
    ) -> Result<Response, Status> {
        let request = Request {
            resource: resource.clone(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
            call,
        };
        self.pipeline.call(&self.user, request).await
    }

    async fn object(
        &self,
        resource: &GroupVersionResource,
        place: (&str, &str, &str),
        call: Call,
    ) -> Result<Value, Status> {
        match self.call(resource, place.0, place.1, place.2, call).await? {
            Response::Object { object, .. } => Ok(object.decode().unwrap()),
            Response::Deleted { uid, .. } => Ok(json!({ "deleted": uid })),
            _ => panic!("neither an object nor a deletion"),
        }
    }

    pub(crate) async fn create(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status> {
        let call = Call::Create { body: object.to_string().into(), options: options() };
        self.object(resource, (namespace, "", ""), call).await
    }

    /// Creates as the server itself does, which may name loopback addresses as endpoints.
    pub(crate) async fn create_as_server(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        object: Value,
    ) -> Result<Response, Status> {
        let groups = self.user.groups.clone();
        let server = User { name: "system:apiserver".into(), groups, ..User::default() };
        let call = Call::Create { body: object.to_string().into(), options: options() };
        let request = Request {
            resource: resource.clone(),
            namespace: namespace.into(),
            name: String::new(),
            subresource: String::new(),
            call,
        };
        self.pipeline.call(&server, request).await
    }

    pub(crate) async fn get(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        name: &str,
    ) -> Result<Value, Status> {
        self.object(resource, (namespace, name, ""), Call::Get { resource_version: String::new() }).await
    }

    pub(crate) async fn update(
        &self,
        resource: &GroupVersionResource,
        place: (&str, &str, &str),
        object: &Value,
    ) -> Result<Value, Status> {
        let call = Call::Update { body: object.to_string().into(), options: options() };
        self.object(resource, place, call).await
    }

    pub(crate) async fn patch(
        &self,
        resource: &GroupVersionResource,
        place: (&str, &str, &str),
        kind: PatchType,
        patch: Value,
        options: WriteOptions,
    ) -> Result<Value, Status> {
        let call = Call::Patch { kind, body: patch.to_string().into(), options };
        self.object(resource, place, call).await
    }

    pub(crate) async fn delete(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Value, Status> {
        self.object(resource, (namespace, name, ""), Call::Delete(options)).await
    }
}

pub(crate) fn options() -> WriteOptions {
    WriteOptions { field_manager: "test".into(), ..WriteOptions::default() }
}
