//! A host that has joined a cluster: engine, network and node over HTTPS to the API server, and no control plane.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use api::{Key, Object, Reason};
use apiserver::pki::HotResolver;
use base::clock::SharedClock;
use base::lifecycle::Supervisor;
use client::Client;
use client::https::{Config, Https};
use ipnet::Ipv4Net;
use network::ranges::Ranges;
use network::routes::NodeRoutes;
use reconcile::{Informers, kinds};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::address::HostAddress;
use super::agents::{self, Cluster, Reach};
use super::certificates::NodeCertificates;
use super::cluster;
use super::host::Host;
use super::member_access::MemberAccess;
use super::narrate::Narrator;
use super::net::Net;
use crate::membership::{Certificate, Membership};
use crate::settings::Settings;

/// Builds everything of a member. `None` if it was told to stop while it waited for the API server.
pub(crate) async fn build(
    settings: &Settings,
    membership: Membership,
    clock: SharedClock,
    narrator: &Narrator,
    stop: &CancellationToken,
    supervisor: &mut Supervisor,
) -> Result<Option<Arc<MemberAccess>>> {
    if settings.node_name != membership.facts.node_name {
        bail!(
            "this host joined as node {:?}, not {:?}; leave with skiff down --purge to join under another name",
            membership.facts.node_name,
            settings.node_name
        );
    }
    let host = Host::of(settings)?;
    let issued = membership
        .certificate(Certificate::Client)?
        .context("the membership has no certificate; leave with skiff down --purge and join again")?;
    crate::ports::check(&[(SocketAddr::new(host.any(), settings.node_port), "--node-port")])?;
    let authenticating = Arc::new(HotResolver::new(&issued)?);
    let ca_pem = membership.ca_pem()?;
    let https = connect(&membership, &ca_pem, authenticating.clone())?;
    let client = Client::new(https.clone(), "kubelet");
    let informers = Informers::new(client.clone(), clock.clone());
    let access = Arc::new(MemberAccess::new(settings, membership.clone(), https, host.address)?);

    let net = match Net::kept(settings, &host)? {
        Some(net) => net,
        None => {
            narrator.step("asking the cluster for its network");
            let asked = ask_network(&client, &informers, &settings.node_name);
            let (ranges, node_pods) = tokio::select! {
                asked = asked => asked?,
                () = stop.cancelled() => return Ok(None),
            };
            Net::joined(settings, &host, ranges, node_pods)?
        }
    };
    narrator.step("asking the cluster for the certificate of the node's server");
    let opening = NodeCertificates::open(
        (membership, access.clone()),
        client.clone(),
        informers.clone(),
        clock.clone(),
        authenticating,
    );
    let certificates = tokio::select! {
        opened = opening => opened?,
        () = stop.cancelled() => return Ok(None),
    };
    narrator.step("taking containers and images back");
    let serving = certificates.serving();
    supervisor.add(Arc::new(certificates));

    supervisor.add(Arc::new(NodeRoutes::new(&informers, net.handles.clone(), &net.config)));
    let address = HostAddress::new(
        &settings.instance.name,
        net.handles.routing.clone(),
        (vec![access.clone()], &[]),
        host.address,
    );
    let reach = Reach { addresses: address.watch(), serving, api_server: Some(access.clone()) };
    if settings.address.is_none() {
        supervisor.add(Arc::new(address));
    }
    let cluster = Cluster { client, informers, ca_pem, is_ours: false };
    agents::build(settings, &host, &net, cluster, reach, clock, supervisor).await?;
    Ok(Some(access))
}

/// The node's way to the API server: its certificate may change while it runs.
fn connect(membership: &Membership, ca_pem: &str, authenticating: Arc<HotResolver>) -> Result<Arc<Https>> {
    let tls = apiserver::pki::client_config(ca_pem, authenticating)?;
    let config = Config { server: membership.facts.server.clone(), ..Config::default() };
    Ok(Arc::new(Https::with_tls(&config, tls)?))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeView {
    spec: NodeSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
}

fn pod_range(node: &Object) -> Result<Option<Ipv4Net>> {
    let view: NodeView = node.decode()?;
    if view.spec.pod_cidr.is_empty() {
        return Ok(None);
    }
    let range = view.spec.pod_cidr.parse().with_context(|| format!("podCIDR {:?}", view.spec.pod_cidr))?;
    Ok(Some(range))
}

/// Makes the Node object and waits until it has its range of pods; gives that and the cluster's ranges.
async fn ask_network(client: &Client, informers: &Informers, node: &str) -> Result<(Ranges, Ipv4Net)> {
    let gvr = kinds::NODES.gvr();
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node },
        // Until the node says that it is Ready, nothing is to run there.
        "spec": { "taints": [{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }] },
    });
    match client.create(&gvr, "", &object).await {
        Ok(_) => {}
        Err(status) if status.reason == Reason::AlreadyExists => {}
        Err(status) => return Err(status).context("make the Node object"),
    }
    let informer = informers.object(kinds::NODES, &Key::new("", node));
    let mut changes = informer.subscribe();
    let node_pods = 'found: loop {
        for object in changes.changed().await.into_iter().filter_map(|change| change.new) {
            if let Some(range) = pod_range(&object)? {
                break 'found range;
            }
        }
    };
    let ranges = cluster::read(client).await.map_err(|error| anyhow!("{}", base::error::chain(&*error)))?;
    Ok((ranges, node_pods))
}
