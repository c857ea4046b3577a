//! A bare API server on a loopback port, for trying requests by hand:
//! `cargo run -p resources --example serve -- DIRECTORY PORT`. Prints nothing; `DIRECTORY/kubeconfig` is the way in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use api::connect::{Body, NodeAddress, NodeConnector};
use apiserver::pki::{KubeconfigEntry, LEAF_LIFE, kubeconfig};
use apiserver::{Config, Server};
use async_trait::async_trait;
use base::lifecycle::Supervisor;
use store::memory::Memory;
use store::{Embedded, EmbeddedConfig};
use tokio_util::sync::CancellationToken;

struct NoNodes;

#[async_trait]
impl NodeConnector for NoNodes {
    async fn request(
        &self,
        node: &NodeAddress,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        Err(Status::internal(format!("node {} is out of reach: this server runs alone", node.name)))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_else(|| "apiserver-data".into()));
    let port: u16 = args.next().unwrap_or_else(|| "6443".into()).parse()?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let store = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD)?;
    let config = Config {
        listen: SocketAddr::new(loopback, port),
        addresses: vec![loopback],
        pki_dir: dir.join("pki"),
        service_ranges: vec![("10.96.0.0".parse()?, 12)],
        node_ports: (30_000, 32_767),
        dns_address: Some("10.96.0.10".parse()?),
        git_version: "v1.37.0+skiff.1".into(),
        clock: Arc::new(base::clock::SystemClock),
        shared: false,
        readiness: None,
        access: apiserver::Access::default(),
        protection: apiserver::Protection::default(),
        authorizer: None,
        egress: None,
        admission: apiserver::admission::standard(),
    };
    let (_pipeline, server) =
        Server::build(config, store, resources::strategies(), Arc::new(NoNodes)).await?;
    let admin = server.pki().issue_client("kubernetes-admin", &["system:masters"], LEAF_LIFE)?;
    let url = format!("https://{}", server.local_addr()?);
    let ca_pem = server.pki().ca_pem();
    let entry = KubeconfigEntry { name: "skiff", server: &url, ca_pem: &ca_pem };
    std::fs::write(dir.join("kubeconfig"), kubeconfig(&entry, &admin).to_string())?;
    let mut supervisor = Supervisor::new();
    supervisor.add(Arc::new(server));
    let stop = CancellationToken::new();
    let (result, ()) = tokio::join!(supervisor.run(stop.clone(), Duration::from_secs(5)), async {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    result.map_err(|error| anyhow::anyhow!("{error}"))
}
