//! A host with an uplink to the world outside, its network set up, the proxy running, and pods.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use base::clock::SystemClock;
use base::lifecycle::{Component as _, Context, Tasks};
use client::Client;
use ipnet::Ipv4Net;
use network::drain::{DataPath, PAUSE};
use network::host::{Config, Handles};
use network::peers::Peers;
use network::proxy::agent::{Proxy, View};
use network::proxy::table::Fixed;
use network::sandbox::Sandboxes;
use reconcile::Informers;
use serde_json::{Value, json};
use sys::net::{Mac, Route, RouteSocket, Routing as _, Target, VethPair};
use tempfile::TempDir;

use crate::api_server::ApiServer;
use crate::namespaces::Netns;

pub(crate) const HOST: &str = "192.168.77.2";
pub(crate) const OUTSIDE: &str = "192.168.77.1";

pub(crate) struct World {
    pub(crate) outside: Arc<Netns>,
    pub(crate) api: Arc<ApiServer>,
    pub(crate) informers: Informers,
    pub(crate) handles: Handles,
    pub(crate) config: Config,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) view: View,
    pub(crate) fixed: Fixed,
    /// The host, for clients of its own.
    pub(crate) host: Arc<Netns>,
    tasks: Tasks,
    _dir: TempDir,
}

pub(crate) struct Pod {
    pub(crate) ns: Netns,
    pub(crate) address: Ipv4Addr,
}

/// Runs `test` in a fresh world, on a runtime whose threads are all on the host.
pub(crate) fn in_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    assert!(rustix::process::getuid().is_root(), "these tests make network namespaces: run them as root");
    let runner = Arc::new(Netns::new());
    let inside = runner.path().to_owned();
    runner.run(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // A second thread on the host, for blocking clients.
        let host = Netns::new();
        host.run(move || sys::ns::join(File::open(inside).unwrap(), sys::ns::Namespace::Network).unwrap());
        runtime.block_on(async move { test(World::start(Arc::new(host)).await).await });
    });
}

impl World {
    async fn start(host: Arc<Netns>) -> Self {
        let outside = Arc::new(Netns::new());
        uplink(&outside, &host);
        let handles = Handles::open().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let taken = || network::host::taken(&*handles.routing, "test");
        let ranges = network::ranges::load_or_choose(dir.path(), 0, taken).unwrap();
        let config = Config {
            instance: "test".into(),
            dir: dir.path().join("network"),
            ranges,
            node_pods: ranges.node_pods(0).unwrap(),
            node: "n1".into(),
        };
        let fixed = network::host::set_up(&config, &handles).unwrap();
        // Once more changes nothing, as at a restart.
        assert_eq!(network::host::set_up(&config, &handles).unwrap(), fixed);
        let api = ApiServer::new();
        let informers = Informers::new(Client::new(api.clone(), "test"), Arc::new(SystemClock));
        let sandboxes = Sandboxes::open(&config, &handles).unwrap();
        let published = sandboxes.published().clone();
        let proxy = Proxy::new(&informers, handles.clone(), fixed.clone(), published, &config.node);
        let view = proxy.view();
        let tasks = Tasks::default();
        tasks.spawn(async move {
            if let Err(error) = proxy.run(Context::detached("proxy")).await {
                panic!("the proxy failed: {error}");
            }
        });
        let world =
            Self { outside, api, informers, handles, config, sandboxes, view, fixed, host, tasks, _dir: dir };
        world.settled().await;
        world
    }

    pub(crate) fn pod(&self, name: &str) -> Pod {
        let ns = Netns::new();
        let address = self.sandboxes.attach_blocking(name, ns.path()).unwrap();
        Pod { ns, address }
    }

    /// Waits until everything that the API server told is programmed.
    pub(crate) async fn settled(&self) {
        let services =
            self.api.put("services", json!({"metadata": {"name": "sync", "namespace": "sync"}, "spec": {}}));
        self.informers.get(reconcile::kinds::SERVICES).caught_up(services).await;
        let slices =
            self.api.put("endpointslices", json!({"metadata": {"name": "sync", "namespace": "sync"}}));
        self.programmed(slices).await;
    }

    /// Waits until the kernel reflects the endpoint slices up to a revision.
    pub(crate) async fn programmed(&self, slices: i64) {
        let mut revision = self.view.revision();
        let programmed = revision.wait_for(|programmed| *programmed >= slices);
        tokio::time::timeout(std::time::Duration::from_secs(60), programmed).await.unwrap().unwrap();
    }

    pub(crate) async fn service(&self, name: &str, spec: Value, balancer: Option<&str>) {
        let ingress: Vec<_> = balancer.iter().map(|ip| json!({"ip": ip})).collect();
        self.api.put(
            "services",
            json!({
                "metadata": {"name": name, "namespace": "default"}, "spec": spec,
                "status": {"loadBalancer": {"ingress": ingress}},
            }),
        );
        self.settled().await;
    }

    /// The endpoints of a Service: address, port, and whether it is ready or terminating.
    pub(crate) async fn endpoints(&self, service: &str, port: &Value, endpoints: &[(&Pod, bool)]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(pod, ready)| {
                json!({
                    "addresses": [pod.address], "nodeName": "n1",
                    "conditions": {"ready": ready, "serving": true, "terminating": !ready},
                })
            })
            .collect();
        self.raw_endpoints(service, port, json!(endpoints)).await;
    }

    pub(crate) async fn raw_endpoints(&self, service: &str, port: &Value, endpoints: Value) {
        let slice = json!({
            "metadata": {
                "name": format!("{service}-1"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4", "ports": [port], "endpoints": endpoints,
        });
        self.api.put("endpointslices", slice);
        self.settled().await;
    }

    /// The drain of this node.
    pub(crate) fn drain(&self) -> DataPath {
        self.pausing_drain(PAUSE)
    }

    pub(crate) fn pausing_drain(&self, pause: Duration) -> DataPath {
        let peers = Peers::new(&self.informers, &self.config.node, Arc::new(SystemClock));
        DataPath::new(self.view.clone(), self.handles.clone(), peers, self.fixed.clone(), pause).unwrap()
    }

    /// How many packets left by the uplink so far.
    pub(crate) fn left(&self) -> u64 {
        let links = self.handles.routing.links().unwrap();
        links.iter().find(|link| link.name == "uplink").unwrap().tx_packets
    }

    /// Runs a component until the world ends.
    pub(crate) fn run(&self, component: impl base::lifecycle::Component) {
        self.tasks.spawn(async move {
            if let Err(error) = component.run(Context::detached("component")).await {
                panic!("{} failed: {error}", component.name());
            }
        });
    }

    pub(crate) async fn stop_proxy(&self) {
        self.tasks.shutdown().await;
    }
}

/// Connects the host to the outside, with a default route.
fn uplink(outside: &Netns, host: &Arc<Netns>) {
    let host_path = host.path().to_owned();
    outside.run(move || {
        let routing = RouteSocket::open().unwrap();
        let namespace = File::open(host_path).unwrap();
        let (mac, peer_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let peer_netns = namespace.as_fd();
        let pair = VethPair { name: "lan", mac, peer_name: "uplink", peer_mac, peer_netns, mtu: 1500 };
        routing.add_veth(&pair).unwrap();
        let lan = routing.links().unwrap().into_iter().find(|link| link.name == "lan").unwrap().index;
        routing.add_address(lan, format!("{OUTSIDE}/24").parse().unwrap()).unwrap();
        let to_lan = Route {
            destination: "192.168.77.0/24".parse().unwrap(),
            target: Target::Link(lan),
            source: None,
        };
        routing.replace_route(&to_lan).unwrap();
    });
    host.run(|| {
        // IPv6 would announce itself on the uplink and be counted as leaving packets.
        let _ = sys::ns::set_sysctl("net/ipv6/conf/uplink/disable_ipv6", "1");
        let routing = RouteSocket::open().unwrap();
        let link = routing.links().unwrap().into_iter().find(|link| link.name == "uplink").unwrap().index;
        routing.add_address(link, format!("{HOST}/24").parse().unwrap()).unwrap();
        routing.set_up(link).unwrap();
        let to_lan = Route {
            destination: "192.168.77.0/24".parse().unwrap(),
            target: Target::Link(link),
            source: None,
        };
        routing.replace_route(&to_lan).unwrap();
        let gateway: Ipv4Addr = OUTSIDE.parse().unwrap();
        let default =
            Route { destination: Ipv4Net::default(), target: Target::Gateway(gateway, link), source: None };
        routing.replace_route(&default).unwrap();
    });
}
