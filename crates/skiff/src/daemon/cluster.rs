//! What every node has to know of the cluster, as a ConfigMap that nodes may read: the control plane keeps it, joining
//! hosts read it once. (kubeadm keeps such a one, too.)

use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use client::Client;
use network::ranges::Ranges;
use reconcile::kinds;
use serde::Deserialize;
use serde_json::json;

use apiserver::authn::names::CLUSTER_CONFIG;

/// The key of the ranges within the ConfigMap.
const RANGES: &str = "ranges.json";

/// Keeps the ConfigMap.
pub(crate) struct ClusterConfig {
    client: Client,
    ranges: Ranges,
}

impl ClusterConfig {
    /// The cluster's ranges, written through `client`.
    pub(crate) fn new(client: &Client, ranges: Ranges) -> Self {
        Self { client: client.for_manager("skiff-cluster"), ranges }
    }
}

#[async_trait]
impl Component for ClusterConfig {
    fn name(&self) -> &'static str {
        "cluster-config"
    }

    fn after(&self) -> &'static [&'static str] {
        &["apiserver"]
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let (namespace, name) = CLUSTER_CONFIG;
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": namespace },
            "data": { RANGES: serde_json::to_string(&self.ranges)? },
        });
        let key = api::Key::new(namespace, name);
        let gvr = kinds::CONFIG_MAPS.gvr();
        self.client.patch(&gvr, &key, "", api::PatchType::Apply, &object).await?;
        ctx.ready();
        ctx.cancelled().await;
        Ok(())
    }
}

#[derive(Deserialize)]
struct ConfigMapView {
    data: std::collections::BTreeMap<String, String>,
}

/// Reads the cluster's ranges.
pub(crate) async fn read(client: &Client) -> Result<Ranges, BoxError> {
    let (namespace, name) = CLUSTER_CONFIG;
    let object = client.get(&kinds::CONFIG_MAPS.gvr(), &api::Key::new(namespace, name)).await?;
    let view: ConfigMapView = object.decode()?;
    let text =
        view.data.get(RANGES).ok_or_else(|| format!("ConfigMap {namespace}/{name} has no {RANGES}"))?;
    Ok(serde_json::from_str(text)?)
}
