//! Where figures come from: metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io, whoever serves them.
//! Source: `podautoscaler/metrics/client.go`, `k8s.io/metrics/pkg/client`.

use std::collections::BTreeMap;
use std::time::Duration;

use api::status::qualified;
use api::{Call, GroupVersionResource, Key, List, ListOptions, Request, Response, Status};
use jiff::Timestamp;
use reconcile::Informer;
use serde::Deserialize;

use super::replicas::{Figure, Figures};
use super::types::{Identifier, Reference, milli};
use crate::context::Ctx;
use crate::scale;
use crate::selector::query_text;

/// The time that a figure stands for where it does not say it. Source: `metricServerDefaultMetricWindow`.
const WINDOW: Duration = Duration::from_secs(60);
const CUSTOM: &str = "custom.metrics.k8s.io";
/// The versions of custom metrics, the better one first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// A projection of `metrics.k8s.io/v1beta1.PodMetrics`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodMetrics {
    metadata: api::ObjectMeta,
    timestamp: Option<Timestamp>,
    window: String,
    containers: Vec<ContainerMetrics>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerMetrics {
    name: String,
    usage: BTreeMap<String, String>,
}

/// A projection of `MetricValue` (custom.metrics.k8s.io) and `ExternalMetricValue`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MetricValue {
    described_object: Reference,
    timestamp: Option<Timestamp>,
    window_seconds: Option<u64>,
    value: String,
}

/// The three APIs.
pub(super) struct Metrics {
    ctx: Ctx,
    /// Which of the APIs there are.
    services: Informer,
}

impl Metrics {
    pub(super) fn new(ctx: &Ctx) -> Self {
        let services = GroupVersionResource::new("apiregistration.k8s.io", "v1", "apiservices");
        Self { ctx: ctx.clone(), services: ctx.informers.get(services) }
    }

    pub(super) fn services(&self) -> &Informer {
        &self.services
    }

    /// What the pods of a selector use of a resource, or what one container of each does.
    pub(super) async fn of_resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: &str,
    ) -> Result<Figures, String> {
        let failed = |why: String| format!("unable to get metrics for resource {resource}: {why}");
        let request = Request {
            resource: GroupVersionResource::new("metrics.k8s.io", "v1beta1", "pods"),
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: String::new(),
            call: Call::List(ListOptions { label_selector: selector.to_owned(), ..ListOptions::default() }),
        };
        let unreachable =
            |status: Status| format!("unable to fetch metrics from resource metrics API: {status}");
        let list = self.list(request).await.map_err(unreachable).map_err(failed)?;
        if list.items.is_empty() {
            return Err(failed("no metrics returned from resource metrics API".into()));
        }
        let pods: Vec<PodMetrics> = decode(&list).map_err(failed)?;
        Ok(if container.is_empty() {
            of_pods(&pods, resource)
        } else {
            of_containers(&pods, resource, container)
        })
    }

    /// A figure of each pod of a selector.
    pub(super) async fn of_pods(
        &self,
        namespace: &str,
        selector: &str,
        metric: &Identifier,
    ) -> Result<Figures, String> {
        let name = &metric.name;
        let failed = |why: String| format!("unable to get metric {name}: {why}");
        let values = self.custom(namespace, "pods", "*", metric, selector).await.map_err(failed)?;
        if values.is_empty() {
            return Err(failed("no metrics returned from custom metrics API".into()));
        }
        let figure = |value: MetricValue| {
            let window = value.window_seconds.map_or(WINDOW, Duration::from_secs);
            let timestamp = value.timestamp.unwrap_or_default();
            (value.described_object.name, Figure { timestamp, window, value: milli(&value.value) })
        };
        Ok(values.into_iter().map(figure).collect())
    }

    /// A figure of one object, in thousandths.
    pub(super) async fn of_object(
        &self,
        namespace: &str,
        object: &Reference,
        metric: &Identifier,
    ) -> Result<i64, String> {
        let failed = |why: String| {
            let Reference { kind, name, .. } = object;
            format!("unable to get metric {} on {kind} {namespace}/{name}: {why}", metric.name)
        };
        let group = scale::group_of(&object.api_version);
        let values = if (group, object.kind.as_str()) == ("", "Namespace") {
            // An autoscaler sees no other namespace than its own, whatever it names.
            self.custom(namespace, "metrics", &metric.name, metric, "").await
        } else {
            match scale::resource_of(&self.ctx, group, &object.kind) {
                None => Err(format!(
                    "unable to fetch metrics from custom metrics API: unable to map kind {}: no matches for kind \
                     {:?} in group {group:?}",
                    qualified(group, &object.kind),
                    object.kind
                )),
                Some(resource) => {
                    let resource = qualified(&resource.group, &resource.resource);
                    self.custom(namespace, &resource, &object.name, metric, "").await
                }
            }
        };
        let values = values.map_err(failed)?;
        let [value] = values.as_slice() else {
            let why = format!(
                "unable to fetch metrics from custom metrics API: the custom metrics API server returned {} results \
                 when we asked for exactly one",
                values.len()
            );
            return Err(failed(why));
        };
        Ok(milli(&value.value))
    }

    /// The values of a figure from outside, added up, in thousandths.
    pub(super) async fn external(&self, namespace: &str, metric: &Identifier) -> Result<i64, String> {
        let failed = |why: &str| {
            let selector = crate::selector::go_text(metric.selector.as_ref());
            format!("unable to get external metric {namespace}/{}/{selector}: {why}", metric.name)
        };
        let selector = query_text(metric.selector.as_ref());
        let request = Request {
            resource: GroupVersionResource::new("external.metrics.k8s.io", "v1beta1", &metric.name),
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: String::new(),
            call: Call::List(ListOptions { label_selector: selector, ..ListOptions::default() }),
        };
        let list = self.list(request).await.map_err(|status| {
            failed(&format!("unable to fetch metrics from external metrics API: {status}"))
        })?;
        if list.items.is_empty() {
            return Err(failed("no metrics returned from external metrics API"));
        }
        let values: Vec<MetricValue> = decode(&list).map_err(|why| failed(&why))?;
        Ok(values.iter().fold(0, |sum: i64, value| sum.saturating_add(milli(&value.value))))
    }

    /// Figures of objects: `*` means all of a selector, and a resource named `metrics` the namespace itself.
    async fn custom(
        &self,
        namespace: &str,
        resource: &str,
        name: &str,
        metric: &Identifier,
        selector: &str,
    ) -> Result<Vec<MetricValue>, String> {
        let served =
            |version: &&&str| self.services.get(&Key::new("", format!("{version}.{CUSTOM}"))).is_some();
        let version = CUSTOM_VERSIONS.iter().find(served).unwrap_or(&CUSTOM_VERSIONS[1]);
        let options = ListOptions {
            label_selector: selector.to_owned(),
            metric_label_selector: query_text(metric.selector.as_ref()),
            ..ListOptions::default()
        };
        let request = Request {
            resource: GroupVersionResource::new(CUSTOM, version, resource),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: if resource == "metrics" { String::new() } else { metric.name.clone() },
            call: Call::List(options),
        };
        let list = self.list(request).await;
        let list =
            list.map_err(|status| format!("unable to fetch metrics from custom metrics API: {status}"))?;
        decode(&list)
    }

    async fn list(&self, request: Request) -> Result<List, Status> {
        match self.ctx.client.send(request).await? {
            Response::List(list) => Ok(list),
            _ => Err(Status::internal("the metrics API answered something else than a list")),
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(list: &List) -> Result<Vec<T>, String> {
    let items = list.items.iter().map(|item| item.decode());
    items.collect::<Result<_, _>>().map_err(|error| format!("the metrics cannot be read: {error}"))
}

fn figure(pod: &PodMetrics, value: i64) -> (String, Figure) {
    let window = base::go_duration::parse_unsigned(&pod.window);
    let (timestamp, window) = (pod.timestamp.unwrap_or_default(), window.unwrap_or_default());
    (pod.metadata.name.clone(), Figure { timestamp, window, value })
}

/// What pods use of a resource; a pod of which a container does not say it is left out.
fn of_pods(pods: &[PodMetrics], resource: &str) -> Figures {
    let sum = |pod: &PodMetrics| -> Option<i64> {
        let used = |held: &ContainerMetrics| held.usage.get(resource).map(|text| milli(text));
        (!pod.containers.is_empty()).then_some(())?;
        pod.containers.iter().map(used).try_fold(0, |sum: i64, used| Some(sum.saturating_add(used?)))
    };
    pods.iter().filter_map(|pod| Some(figure(pod, sum(pod)?))).collect()
}

/// What one container of each pod uses; a pod of which nothing is known about it is left out, as one that has just crashed.
fn of_containers(pods: &[PodMetrics], resource: &str, container: &str) -> Figures {
    let used = |pod: &PodMetrics| {
        let held = pod.containers.iter().find(|held| held.name == container)?;
        Some(figure(pod, milli(held.usage.get(resource)?)))
    };
    pods.iter().filter_map(used).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> Vec<PodMetrics> {
        let pod = |name: &str, window: &str, containers: serde_json::Value| {
            json!({ "metadata": { "name": name, "namespace": "ns" }, "timestamp": "2026-01-01T00:00:00Z",
                "window": window, "containers": containers })
        };
        let two = json!([{ "name": "a", "usage": { "cpu": "250m", "memory": "1Ki" } },
            { "name": "b", "usage": { "cpu": "1" } }]);
        let pods =
            [pod("x", "1m30.5s", two), pod("y", "30s", json!([])), pod("z", "odd", json!([{ "name": "a" }]))];
        serde_json::from_value(json!(pods)).unwrap()
    }

    #[test]
    fn what_pods_use_is_what_all_their_containers_use() {
        let used = of_pods(&pods(), "cpu");
        assert_eq!(used.len(), 1);
        assert_eq!((used["x"].value, used["x"].window), (1250, Duration::from_millis(90_500)));
        // One that does not say it leaves the pod without a figure.
        assert!(of_pods(&pods(), "memory").is_empty());
    }

    #[test]
    fn containers_are_asked_by_name() {
        let figures = |container: &str, resource: &str| of_containers(&pods(), resource, container);
        // Pods without the container are no failure of the others.
        assert_eq!((figures("b", "cpu").len(), figures("b", "cpu")["x"].value), (1, 1000));
        assert!(figures("b", "memory").is_empty() && figures("c", "cpu").is_empty());
    }
}
