//! What each metric of an autoscaler asks for, and what that comes to.

use api::Key;
use api::quantity::{Format, Quantity};
use serde_json::{Value, json};

use super::apply::Pass;
use super::replicas::{Asked, Counted, Goal};
use super::types::{Identifier, MetricSpec, ResourceSource, Target, milli};
use crate::scale::Scale;
use crate::selector::go_text;

/// The reason where nobody knows a metric's type.
pub(super) const UNKNOWN_TYPE: &str = "InvalidMetricSourceType";

/// What one metric asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// The metric, for people.
    pub(super) name: String,
    /// Its entry in `status.currentMetrics`.
    pub(super) figure: Value,
}

/// Why one metric asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The reason of the event and of the condition.
    pub(super) reason: &'static str,
    /// What they say.
    pub(super) said: String,
    /// What is said of it among others.
    pub(super) told: String,
}

/// What all metrics together ask for.
#[derive(Debug)]
pub(super) struct Measured {
    /// How many pods, and by which metric.
    pub(super) asked: Result<(i32, String), String>,
    /// What went wrong although the others decided.
    pub(super) partly: Result<(), String>,
    /// `status.currentMetrics`.
    pub(super) figures: Vec<Value>,
}

/// The verdict on `ScalingActive`.
type Active = (bool, &'static str, String);

/// The greatest number that any metric asks for. Where one of them is not known, the number does not shrink: that one
/// could have asked for more. Source: `computeReplicasForMetrics`.
pub(super) fn combine(answers: Vec<Result<Proposal, Failure>>, current: i32) -> (Measured, Active) {
    let total = answers.len();
    let (mut replicas, mut metric) = (0, String::new());
    let mut failures: Vec<&Failure> = Vec::new();
    let mut figures = Vec::with_capacity(total);
    for answer in &answers {
        match answer {
            Err(failure) => {
                failures.push(failure);
                figures.push(json!({ "type": "" }));
            }
            Ok(proposal) => {
                figures.push(proposal.figure.clone());
                if replicas == 0 || proposal.replicas > replicas {
                    (replicas, metric) = (proposal.replicas, proposal.name.clone());
                }
            }
        }
    }
    let failed = failures.len();
    let Some(first) = failures.first().filter(|_| failed > 0) else {
        let message = valid(&metric);
        let measured = Measured { asked: Ok((replicas, metric)), partly: Ok(()), figures };
        return (measured, (true, "ValidMetricFound", message));
    };
    let why = format!("invalid metrics ({failed} invalid out of {total}), first error is: {}", first.told);
    if failed >= total || replicas < current {
        let message = format!("the HPA was unable to compute the replica count: {}", first.said);
        let reason = first.reason;
        return (Measured { asked: Err(why), partly: Ok(()), figures }, (false, reason, message));
    }
    let message = valid(&metric);
    (
        Measured { asked: Ok((replicas, metric)), partly: Err(why), figures },
        (true, "ValidMetricFound", message),
    )
}

fn valid(metric: &str) -> String {
    format!("the HPA was able to successfully calculate a replica count from {metric}")
}

fn quantity(value: i64) -> String {
    Quantity::from_milli(value).to_string()
}

/// The part of a figure's entry that both kinds of resource metrics have: memory in units of 1024, as it is measured.
/// Source: `buildQuantity`.
pub(super) fn resource_value(resource: &str, asked: Asked) -> Value {
    let value = match asked.value {
        bytes if resource == "memory" && bytes % 1000 == 0 => {
            Quantity::from_units(bytes / 1000, Format::BinarySi).to_string()
        }
        other => quantity(other),
    };
    match asked.utilization {
        Some(percent) => json!({ "averageUtilization": percent, "averageValue": value }),
        None => json!({ "averageValue": value }),
    }
}

impl Pass<'_> {
    /// What one metric asks for. Source: `computeReplicasForMetric`.
    pub(super) async fn ask(
        &self,
        key: &Key,
        metric: &MetricSpec,
        counted: &Counted<'_>,
        scale: &Scale,
    ) -> Result<Proposal, Failure> {
        match metric.r#type.as_str() {
            "Resource" => {
                let source = &metric.resource;
                let told = |why: &str| format!("failed to get {} resource metric value: {why}", source.name);
                let answer = self.of_resource(key, source, counted, scale).await;
                let (asked, name) =
                    answer.map_err(|why| failure("FailedGetResourceMetric", &why, told(&why)))?;
                let figure = json!({ "type": "Resource", "resource": {
                    "name": source.name, "current": resource_value(&source.name, asked) } });
                Ok(Proposal { replicas: asked.replicas, name, figure })
            }
            "ContainerResource" => {
                let source = &metric.container_resource;
                let told =
                    |why: &str| format!("failed to get {} container metric value: {why}", source.container);
                let answer = self.of_resource(key, source, counted, scale).await;
                let reason = "FailedGetContainerResourceMetric";
                let (asked, name) = answer.map_err(|why| failure(reason, &why, told(&why)))?;
                let figure = json!({ "type": "ContainerResource", "containerResource": {
                    "name": source.name, "container": source.container,
                    "current": resource_value(&source.name, asked) } });
                Ok(Proposal { replicas: asked.replicas, name, figure })
            }
            "Pods" => self.of_pods(key, metric, counted, scale).await,
            "Object" => self.of_object(key, metric, counted, scale).await,
            "External" => self.external(key, metric, counted, scale).await,
            other => {
                let why = format!("unknown metric source type {other:?}");
                Err(failure(UNKNOWN_TYPE, &why, why.clone()))
            }
        }
    }

    /// Source: `computeStatusForResourceMetricGeneric`.
    async fn of_resource(
        &self,
        key: &Key,
        source: &ResourceSource,
        counted: &Counted<'_>,
        scale: &Scale,
    ) -> Result<(Asked, String), String> {
        let ResourceSource { name, container, target } = source;
        let (goal, what) = match (&target.average_value, target.average_utilization) {
            (Some(value), _) => (Goal::Average(milli(value)), "usage"),
            (None, Some(percent)) => (Goal::Utilization(percent), "utilization"),
            (None, None) => {
                return Err(
                    "invalid resource metric source: neither an average utilization target nor an average \
                            value (usage) target was set"
                        .into(),
                );
            }
        };
        let failed = |why: String| format!("failed to get {name} {what}: {why}");
        let selector = &scale.status.selector;
        let figures = self.worker.metrics.of_resource(&key.namespace, selector, name, container).await;
        let asked = counted.by_pods(figures.map_err(failed)?, goal, name, container).map_err(failed)?;
        let text = match goal {
            Goal::Average(_) => format!("{name} resource"),
            Goal::Utilization(_) if container.is_empty() => {
                format!("{name} resource utilization (percentage of request)")
            }
            Goal::Utilization(_) => format!("{name} container resource utilization (percentage of request)"),
        };
        Ok((asked, text))
    }

    async fn of_pods(
        &self,
        key: &Key,
        metric: &MetricSpec,
        counted: &Counted<'_>,
        scale: &Scale,
    ) -> Result<Proposal, Failure> {
        let source = &metric.pods;
        let failed = |why: String| {
            failure("FailedGetPodsMetric", &why, format!("failed to get pods metric value: {why}"))
        };
        let goal = Goal::Average(source.target.average_value.as_deref().map_or(0, milli));
        let figures =
            self.worker.metrics.of_pods(&key.namespace, &scale.status.selector, &source.metric).await;
        let asked = counted.by_pods(figures.map_err(failed)?, goal, "", "").map_err(failed)?;
        let figure = json!({ "type": "Pods", "pods": {
            "metric": source.metric, "current": { "averageValue": quantity(asked.value) } } });
        Ok(Proposal { replicas: asked.replicas, name: format!("pods metric {}", source.metric.name), figure })
    }

    async fn of_object(
        &self,
        key: &Key,
        metric: &MetricSpec,
        counted: &Counted<'_>,
        scale: &Scale,
    ) -> Result<Proposal, Failure> {
        let source = &metric.object;
        let failed = |why: String, told: String| {
            failure("FailedGetObjectMetric", &why, format!("failed to get object metric value: {told}"))
        };
        let (goal, each) = whole_or_share(&source.target).ok_or_else(|| {
            let why =
                "invalid object metric source: neither a value target nor an average value target was set";
            failed(why.into(), why.into())
        })?;
        let name = &source.metric.name;
        let told = |why: String| {
            let told = if each { format!("failed to get {name} object metric: {why}") } else { why.clone() };
            failed(why, told)
        };
        let value =
            self.worker.metrics.of_object(&key.namespace, &source.described_object, &source.metric).await;
        let value = value.map_err(told)?;
        if each {
            let asked = counted.by_share(value, goal, scale.status.replicas);
            let figure = json!({ "type": "Object", "object": {
                "describedObject": { "kind": "", "name": "" },
                "metric": source.metric, "current": { "averageValue": quantity(asked.value) } } });
            return Ok(Proposal { replicas: asked.replicas, name: series(&source.metric), figure });
        }
        let asked = counted.by_whole(value, goal).map_err(told)?;
        let figure = json!({ "type": "Object", "object": {
            "describedObject": source.described_object, "metric": source.metric,
            "current": { "value": quantity(asked.value) } } });
        let name = format!("{} metric {name}", source.described_object.kind);
        Ok(Proposal { replicas: asked.replicas, name, figure })
    }

    async fn external(
        &self,
        key: &Key,
        metric: &MetricSpec,
        counted: &Counted<'_>,
        scale: &Scale,
    ) -> Result<Proposal, Failure> {
        let source = &metric.external;
        let name = &source.metric.name;
        let failed = |why: String, told: String| {
            failure(
                "FailedGetExternalMetric",
                &why,
                format!("failed to get {name} external metric value: {told}"),
            )
        };
        let target = &source.target;
        // Here the average goes first, whatever the type says.
        let (goal, each) = match (&target.average_value, &target.value) {
            (Some(share), _) => (milli(share), true),
            (None, Some(whole)) => (milli(whole), false),
            (None, None) => {
                let why = "invalid external metric source: neither a value target nor an average value target was set";
                return Err(failed(why.into(), why.into()));
            }
        };
        let told = |why: String| {
            let told = if each {
                format!("failed to get {name} external metric: {why}")
            } else {
                format!("failed to get external metric {name}: {why}")
            };
            failed(why, told)
        };
        let value = self.worker.metrics.external(&key.namespace, &source.metric).await.map_err(told)?;
        let (asked, current) = if each {
            let asked = counted.by_share(value, goal, scale.status.replicas);
            (asked, json!({ "averageValue": quantity(asked.value) }))
        } else {
            let asked = counted.by_whole(value, goal).map_err(told)?;
            (asked, json!({ "value": quantity(asked.value) }))
        };
        let figure =
            json!({ "type": "External", "external": { "metric": source.metric, "current": current } });
        Ok(Proposal { replicas: asked.replicas, name: series(&source.metric), figure })
    }
}

fn failure(reason: &'static str, said: &str, told: String) -> Failure {
    Failure { reason, said: said.to_owned(), told }
}

/// The target of an object's metric: of the whole, or (true) for each pod.
fn whole_or_share(target: &Target) -> Option<(i64, bool)> {
    match target.r#type.as_str() {
        "Value" => Some((milli(target.value.as_deref()?), false)),
        "AverageValue" => Some((milli(target.average_value.as_deref()?), true)),
        _ => None,
    }
}

/// A metric with its selector, as upstream prints it.
fn series(metric: &Identifier) -> String {
    format!("external metric {}({})", metric.name, go_text(metric.selector.as_ref()))
}
