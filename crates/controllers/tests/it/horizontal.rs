//! Autoscaling on figures that this test serves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use api::{Call, Key, List, Object, Request, Response, Status};
use async_trait::async_trait;
use base::clock::VirtualClock;
use base::lifecycle::Component;
use client::{Client, Transport};
use controllers::Ctx;
use controllers::horizontal::Autoscalers;
use parking_lot::Mutex;
use prometheus::Registry;
use reconcile::kinds::{self, Catalog};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{condition, hurry, play, web};

/// The API server, but for the metrics APIs, which answer what the test puts in.
struct Metered {
    inner: Client,
    /// What is asked for, by resource, name and subresource, with the objects that answer it.
    figures: Figures,
    /// So many times more somebody else has written what is to be scaled.
    conflicts: AtomicU32,
}

type Figures = Arc<Mutex<HashMap<String, Vec<Value>>>>;

#[async_trait]
impl Transport for Metered {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        if request.subresource == "scale" && matches!(request.call, Call::Update { .. }) {
            let less = |left: u32| left.checked_sub(1);
            if self.conflicts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                return Err(Status::conflict(
                    "apps",
                    "deployments",
                    &request.name,
                    "it was written meanwhile",
                ));
            }
        }
        if !request.resource.group.ends_with("metrics.k8s.io") {
            return self.inner.send(request).await;
        }
        assert!(matches!(request.call, Call::List(_)), "figures are listed");
        let resource = &request.resource;
        let asked =
            format!("{}/{}/{}/{}", resource.group, resource.resource, request.name, request.subresource);
        let items = self.figures.lock().get(&asked).cloned();
        let Some(items) = items else { return Err(Status::not_found(&resource.group, &asked, "figure")) };
        let item = |item: Value| Arc::new(Object::parse(item.to_string().into()).unwrap());
        Ok(Response::List(List { items: items.into_iter().map(item).collect(), ..List::default() }))
    }
}

fn autoscaler(metrics: Value, behavior: Value) -> Value {
    json!({ "metadata": { "name": "web" }, "spec": {
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
        "minReplicas": 1, "maxReplicas": 6, "metrics": metrics, "behavior": behavior } })
}

/// A cluster whose autoscaler goes by a clock and figures of its own, and what is counted of it.
async fn start() -> (Cluster, VirtualClock, Figures, Registry) {
    let (clock, figures) = (VirtualClock::new(jiff::Timestamp::now()), Figures::default());
    let registry = Registry::new();
    let counted = Some(Arc::new(controllers::figures::Figures::new(&registry).unwrap()));
    let (own, served) = (clock.clone(), figures.clone());
    let cluster = Cluster::start(move |cluster| {
        let ctx = Ctx {
            client: cluster.client.clone(),
            informers: cluster.informers.clone(),
            clock: cluster.clock.clone(),
            catalog: Catalog::new(Arc::new(api::catalog::Catalog::builtin())),
            queues: cluster.queues.clone(),
            figures: None,
            root_ca_pem: cluster.root_ca_pem.subscribe(),
        };
        let conflicts = AtomicU32::new(2);
        let metered = Metered { inner: cluster.client.clone(), figures: served, conflicts };
        let scaling = Ctx {
            client: Client::new(Arc::new(metered), "test"),
            clock: Arc::new(own),
            figures: counted,
            ..ctx.clone()
        };
        let mut all = controllers::all(&ctx);
        // The other one would have no figures.
        all.retain(|component| component.name() != Autoscalers::new(&ctx).name());
        all.push(Arc::new(Autoscalers::new(&scaling)));
        all
    })
    .await;
    play(&cluster).await;
    (cluster, clock, figures, registry)
}

fn key() -> Key {
    Key::new("default", "web")
}

fn size(count: u64) -> impl Fn(&Value) -> bool {
    move |held: &Value| held["spec"]["replicas"] == count && held["status"]["readyReplicas"] == count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_follows_its_figures() {
    let (cluster, clock, figures, _) = start().await;
    cluster.create(&kinds::DEPLOYMENTS, "default", web(1, "web:1")).await;
    cluster.until(kinds::DEPLOYMENTS, &key(), size(1)).await;
    let external = json!([{ "type": "External", "external": {
        "metric": { "name": "queue", "selector": { "matchLabels": { "q": "a" } } },
        "target": { "type": "AverageValue", "averageValue": "10" } } }]);
    let behavior = json!({
        "scaleUp": { "policies": [{ "type": "Pods", "value": 2, "periodSeconds": 60 }] },
        "scaleDown": { "stabilizationWindowSeconds": 60 },
    });
    let autoscalers = kinds::HORIZONTAL_POD_AUTOSCALERS;
    cluster.create(&autoscalers, "default", autoscaler(external, behavior)).await;

    let failed = cluster
        .until(autoscalers, &key(), |held| {
            condition(held, "ScalingActive")["reason"] == "FailedGetExternalMetric"
        })
        .await;
    assert_eq!(condition(&failed, "AbleToScale")["reason"], "SucceededGetScale");
    assert_eq!(failed["status"]["currentReplicas"], 1);

    let queue = |length: u32| {
        let value = json!({ "metricName": "queue", "timestamp": "2026-01-01T00:00:00Z", "value": length.to_string() });
        figures.lock().insert("external.metrics.k8s.io/queue//".into(), vec![value]);
    };
    queue(45);
    // Five are asked for, two more are allowed in a minute: the events tell of three on the way.
    hurry(&clock, cluster.until(kinds::DEPLOYMENTS, &key(), size(5))).await;
    let calm = hurry(
        &clock,
        cluster.until(autoscalers, &key(), |held| {
            // The pods that are there are counted a moment later than those that are wanted.
            held["status"]["currentMetrics"][0]["external"]["current"]["averageValue"] == "9"
                && condition(held, "ScalingLimited")["reason"] == "DesiredWithinRange"
        }),
    )
    .await;
    assert_eq!(condition(&calm, "ScalingActive")["reason"], "ValidMetricFound");
    let generation = &calm["metadata"]["generation"];
    assert_eq!((&calm["status"]["observedGeneration"], generation), (generation, &json!(1)));
    assert_eq!(&condition(&calm, "ScalingActive")["observedGeneration"], generation);
    assert!(calm["status"]["lastScaleTime"].is_string());
    queue(900);
    let full = hurry(
        &clock,
        cluster.until(autoscalers, &key(), |held| {
            held["status"]["currentReplicas"] == 6 && condition(held, "ScalingLimited")["status"] == "True"
        }),
    )
    .await;
    assert_eq!(condition(&full, "ScalingLimited")["reason"], "TooManyReplicas");
    queue(0);
    hurry(&clock, cluster.until(kinds::DEPLOYMENTS, &key(), size(1))).await;
    let reasons = |events: &[Arc<Object>]| {
        let said =
            |event: &Arc<Object>| event.decode::<Value>().unwrap()["message"].as_str().unwrap().to_owned();
        let said: Vec<String> = events.iter().map(said).collect();
        let up = "New size: 3; reason: external metric queue(&LabelSelector{MatchLabels:map[string]string{q: a,},\
                  MatchExpressions:[]LabelSelectorRequirement{},}) above target";
        // Somebody else's writes between its own are nothing to complain of.
        assert!(!said.iter().any(|text| text.contains("error: ")), "{said:?}");
        said.iter().any(|text| text == up)
            && said.iter().any(|text| text == "New size: 1; reason: All metrics below target")
    };
    cluster.until_all(kinds::EVENTS, "default", reasons).await;

    // Nothing is scaled that somebody switched off.
    cluster.merge(&kinds::DEPLOYMENTS, &key(), json!({ "spec": { "replicas": 0 } })).await;
    queue(900);
    let off = |held: &Value| condition(held, "ScalingActive")["reason"] == "ScalingDisabled";
    hurry(&clock, cluster.until(autoscalers, &key(), off)).await;
    cluster.until(kinds::DEPLOYMENTS, &key(), |held| held["spec"]["replicas"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pods_use_and_what_objects_tell_decide_together() {
    let (cluster, clock, figures, _) = start().await;
    let mut deployment = web(2, "web:1");
    deployment["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "memory": "100Mi" } });
    cluster.create(&kinds::DEPLOYMENTS, "default", deployment).await;
    cluster.until(kinds::DEPLOYMENTS, &key(), size(2)).await;
    let metrics = json!([
        { "type": "Resource", "resource": { "name": "memory", "target": {
            "type": "Utilization", "averageUtilization": 50 } } },
        { "type": "Object", "object": { "metric": { "name": "rate" },
            "describedObject": { "apiVersion": "v1", "kind": "Service", "name": "web" },
            "target": { "type": "Value", "value": "10" } } },
    ]);
    let autoscalers = kinds::HORIZONTAL_POD_AUTOSCALERS;
    let pods = cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 2).await;
    let used = |pod: &Arc<Object>| {
        json!({
            "metadata": { "name": pod.meta().name, "namespace": "default" }, "window": "1m0s",
            "timestamp": "2026-01-01T00:00:00Z",
            "containers": [{ "name": "web", "usage": { "memory": "50Mi", "cpu": "1m" } }],
        })
    };
    figures.lock().insert("metrics.k8s.io/pods//".into(), pods.iter().map(used).collect());
    cluster.create(&autoscalers, "default", autoscaler(metrics, Value::Null)).await;
    // One figure is missing: the number stays, and that is said in an event.
    let partly =
        cluster.until(autoscalers, &key(), |held| condition(held, "ScalingActive")["status"] == "True").await;
    let resource = &partly["status"]["currentMetrics"][0]["resource"]["current"];
    assert_eq!((&resource["averageUtilization"], &resource["averageValue"]), (&json!(50), &json!("50Mi")));
    let rate = json!({ "metric": { "name": "rate" }, "timestamp": "2026-01-01T00:00:00Z", "value": "20",
        "describedObject": { "kind": "Service", "name": "web" } });
    figures.lock().insert("custom.metrics.k8s.io/services/web/rate".into(), vec![rate]);
    // Twice as much as there should be, however many there are: as many as are allowed.
    hurry(&clock, cluster.until(kinds::DEPLOYMENTS, &key(), |held| held["spec"]["replicas"] == 6)).await;
    let events = cluster.until_all(kinds::EVENTS, "default", |events| {
        let said = |event: &Arc<Object>| event.decode::<Value>().unwrap();
        let reasons: Vec<Value> = events.iter().map(said).collect();
        let missed = "unable to get metric rate on Service default/web: unable to fetch metrics from custom";
        let missed = |event: &Value| event["message"].as_str().is_some_and(|text| text.starts_with(missed));
        reasons.iter().any(|event| event["reason"] == "FailedGetObjectMetric" && missed(event))
            && reasons
                .iter()
                .any(|event| event["message"] == "New size: 4; reason: Service metric rate above target")
    });
    events.await;
    // Two that scale the same pods are not obeyed.
    let mut rival = autoscaler(json!([]), Value::Null);
    rival["metadata"]["name"] = "rival".into();
    rival["spec"]["metrics"] = Value::Null;
    cluster.create(&autoscalers, "default", rival).await;
    let ambiguous = |held: &Value| condition(held, "ScalingActive")["reason"] == "AmbiguousSelector";
    let held = hurry(&clock, cluster.until(autoscalers, &key(), ambiguous)).await;
    assert_eq!(
        condition(&held, "ScalingActive")["message"],
        "pods by selector app=web are controlled by multiple HPAs: [default/rival default/web]"
    );
    let rival = Key::new("default", "rival");
    hurry(&clock, cluster.until(autoscalers, &rival, ambiguous)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_without_work_sleeps_until_there_is_some() {
    let (cluster, clock, figures, registry) = start().await;
    cluster.create(&kinds::DEPLOYMENTS, "default", web(1, "web:1")).await;
    cluster.until(kinds::DEPLOYMENTS, &key(), size(1)).await;
    let queue = |length: u32| {
        let value = json!({ "metricName": "queue", "timestamp": "2026-01-01T00:00:00Z", "value": length.to_string() });
        figures.lock().insert("external.metrics.k8s.io/queue//".into(), vec![value]);
    };
    queue(0);
    let external = json!([{ "type": "External", "external": {
        "metric": { "name": "queue" }, "target": { "type": "AverageValue", "averageValue": "10" } } }]);
    let mut sleeper = autoscaler(external, Value::Null);
    sleeper["spec"]["minReplicas"] = 0.into();
    let autoscalers = kinds::HORIZONTAL_POD_AUTOSCALERS;
    cluster.create(&autoscalers, "default", sleeper).await;
    let nothing = |held: &Value| held["spec"]["replicas"] == 0;
    hurry(&clock, cluster.until(kinds::DEPLOYMENTS, &key(), nothing)).await;
    let asleep = |held: &Value| condition(held, "ScaledToZero")["status"] == "True";
    let held = hurry(&clock, cluster.until(autoscalers, &key(), asleep)).await;
    let said = condition(&held, "ScaledToZero");
    assert_eq!(said["reason"], "ScaledToZero");
    assert_eq!(said["message"], "the HPA controller scaled the workload to zero");
    queue(25);
    hurry(&clock, cluster.until(kinds::DEPLOYMENTS, &key(), size(3))).await;
    let awake = |held: &Value| condition(held, "ScaledToZero")["reason"] == "NotScaledToZero";
    let held = hurry(&clock, cluster.until(autoscalers, &key(), awake)).await;
    assert_eq!(condition(&held, "ScaledToZero")["status"], "False");
    let told = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        r#"reconciliations_total{action="scale_down",error="none"} 1"#,
        r#"reconciliations_total{action="scale_up",error="none"} 1"#,
    ] {
        let line = format!("horizontal_pod_autoscaler_controller_{line}");
        assert!(told.lines().any(|known| known == line), "{line} is not in {told}");
    }

    // What somebody else switches off stays off.
    cluster.merge(&kinds::DEPLOYMENTS, &key(), json!({ "spec": { "replicas": 0 } })).await;
    let off = |held: &Value| condition(held, "ScalingActive")["reason"] == "ScalingDisabled";
    hurry(&clock, cluster.until(autoscalers, &key(), off)).await;
    cluster.until(kinds::DEPLOYMENTS, &key(), nothing).await;
}
