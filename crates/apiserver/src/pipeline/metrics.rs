//! `metrics.k8s.io`: what nodes and pods use, made from what the nodes tell when it is asked for ([`crate::usage`]).
//! Source: `kubernetes-sigs/metrics-server/pkg/api`, `k8s.io/metrics/pkg/apis/metrics/v1beta1`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::connect::NodeAddress;
use api::quantity::{Format, Quantity};
use api::{Call, List, Object, Request, Response, Status};
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Pipeline;
use super::write::unsaved;
use crate::admission::World;
use crate::nodes::address_of;
use crate::tree;
use crate::usage::{Used, Window};
use crate::words::{Kind, Selectors};

pub(super) const GROUP: &str = "metrics.k8s.io";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";
/// So many nodes are asked at once.
const NODES_AT_ONCE: usize = 32;

impl Pipeline {
    /// Answers a request for figures.
    pub(super) async fn usage(&self, kind: &Kind, request: &Request) -> Result<Response, Status> {
        match &request.call {
            Call::Get { .. } => {
                let object = if kind.plural == "nodes" {
                    self.usage_of_node(&request.name).await?
                } else {
                    self.usage_of_pod(&request.namespace, &request.name).await?
                };
                Ok(Response::Object { object, created: false, warnings: Vec::new() })
            }
            Call::List(options) => {
                let selectors = Selectors::parse(kind, &options.label_selector, &options.field_selector)?;
                let items = if kind.plural == "nodes" {
                    self.usage_of_nodes(&selectors).await?
                } else {
                    self.usage_of_pods(&request.namespace, &selectors).await?
                };
                Ok(Response::List(List {
                    items,
                    revision: 0,
                    continue_token: String::new(),
                    remaining: None,
                }))
            }
            _ => Err(Status::internal("figures are only read")),
        }
    }

    async fn usage_of_node(&self, name: &str) -> Result<Arc<Object>, Status> {
        let missing = || Status::not_found(GROUP, "nodes", name);
        let node = self.find("", "nodes", "", name).await?.ok_or_else(missing)?;
        let windows = self.windows(std::slice::from_ref(&node)).await;
        let window = windows.get(name).ok_or_else(missing)?;
        unsaved(&node_metrics(&node, window, self.parts.clock.now()))
    }

    async fn usage_of_nodes(&self, selectors: &Selectors) -> Result<Vec<Arc<Object>>, Status> {
        let all = self.all("", "nodes", "");
        self.parts.usage.retain(&all.iter().map(|node| node.meta().name.as_str()).collect());
        let nodes: Vec<_> = all.iter().filter(|node| selectors.matches(node)).cloned().collect();
        let windows = self.windows(&nodes).await;
        let now = self.parts.clock.now();
        let metrics = nodes.iter().filter_map(|node| {
            windows.get(&node.meta().name).map(|window| unsaved(&node_metrics(node, window, now)))
        });
        metrics.collect()
    }

    async fn usage_of_pod(&self, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        let missing = || Status::not_found(GROUP, "pods", &format!("{namespace}/{name}"));
        let pod = self.find("", "pods", namespace, name).await?.ok_or_else(missing)?;
        self.pods_metrics(vec![pod]).await?.pop().ok_or_else(missing)
    }

    async fn usage_of_pods(
        &self,
        namespace: &str,
        selectors: &Selectors,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let mut pods = self.all("", "pods", namespace);
        pods.retain(|pod| selectors.matches(pod));
        self.pods_metrics(pods).await
    }

    /// The figures of pods; those that do not run have none.
    async fn pods_metrics(&self, pods: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
        let nodes = {
            let wanted: HashSet<&str> = pods.iter().filter_map(|pod| pod.node_name()).collect();
            let mut nodes = self.all("", "nodes", "");
            nodes.retain(|node| wanted.contains(node.meta().name.as_str()));
            nodes
        };
        let windows = self.windows(&nodes).await;
        let now = self.parts.clock.now();
        let metrics = pods.iter().filter_map(|pod| {
            let window = windows.get(pod.node_name()?)?;
            let key = (pod.meta().namespace.clone(), pod.meta().name.clone());
            Some(unsaved(&pod_metrics(pod, window.pods.get(&key)?, window, now)))
        });
        metrics.collect()
    }

    /// What nodes tell; those that are not ready, or do not answer, are left out.
    async fn windows(&self, nodes: &[Arc<Object>]) -> HashMap<String, Arc<Window>> {
        let addresses = nodes.iter().filter_map(|node| {
            let tree: Value = node.decode().ok()?;
            is_ready(&tree).then(|| address_of(&tree, &node.meta().name).ok())?
        });
        let asked: Vec<_> = addresses.map(|address| self.window(address).boxed()).collect();
        let told: Vec<_> = futures::stream::iter(asked).buffer_unordered(NODES_AT_ONCE).collect().await;
        told.into_iter().flatten().collect()
    }

    async fn window(&self, node: NodeAddress) -> Option<(String, Arc<Window>)> {
        match self.parts.usage.of(&node).await {
            Ok(window) => Some((node.name, window)),
            Err(error) => {
                tracing::debug!(%error, "a node's figures are left out");
                None
            }
        }
    }
}

fn is_ready(node: &Value) -> bool {
    tree::items(node, &["status", "conditions"])
        .iter()
        .any(|one| tree::text(one, &["type"]) == "Ready" && tree::text(one, &["status"]) == "True")
}

fn node_metrics(node: &Object, window: &Window, now: Timestamp) -> Value {
    let mut object = head("NodeMetrics", node, window, now);
    object["usage"] = usage(&window.node);
    object
}

fn pod_metrics(pod: &Object, used: &BTreeMap<String, Used>, window: &Window, now: Timestamp) -> Value {
    let mut object = head("PodMetrics", pod, window, now);
    object["metadata"]["namespace"] = pod.meta().namespace.clone().into();
    let containers = used.iter().map(|(name, used)| json!({ "name": name, "usage": usage(used) }));
    object["containers"] = containers.collect();
    object
}

fn head(kind: &str, about: &Object, window: &Window, now: Timestamp) -> Value {
    let mut metadata = json!({ "name": about.meta().name, "creationTimestamp": super::rfc3339(now) });
    if !about.meta().labels.is_empty() {
        metadata["labels"] = json!(about.meta().labels);
    }
    json!({
        "kind": kind, "apiVersion": API_VERSION, "metadata": metadata,
        "timestamp": super::rfc3339(window.end), "window": written(window.length),
    })
}

fn usage(used: &Used) -> Value {
    let cpu = format!("{}n", used.cpu_nanocores);
    let cpu = cpu.parse::<Quantity>().map_or(cpu, |quantity| quantity.to_string());
    let bytes = i64::try_from(used.memory_bytes).unwrap_or(i64::MAX);
    json!({ "cpu": cpu, "memory": Quantity::from_units(bytes, Format::BinarySi).to_string() })
}

/// How long a window is, to the millisecond.
fn written(length: SignedDuration) -> String {
    let millis = u64::try_from(length.as_millis()).unwrap_or(0);
    base::go_duration::show(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_upstream_writes_them() {
        let used = Used { cpu_nanocores: 1_253_289, memory_bytes: 20 << 20 };
        assert_eq!(usage(&used), json!({ "cpu": "1253289n", "memory": "20Mi" }));
        assert_eq!(usage(&Used::default()), json!({ "cpu": "0", "memory": "0" }));
        let shown = [15_034, 1000, 60_500].map(|millis| written(SignedDuration::from_millis(millis)));
        assert_eq!(shown, ["15.034s", "1s", "1m0.5s"]);
    }
}
