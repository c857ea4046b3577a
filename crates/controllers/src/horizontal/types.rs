//! What is used of HorizontalPodAutoscalers, and of the pods that they count.

use std::collections::BTreeMap;

use api::ObjectMeta;
use api::quantity::Quantity;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pods::Condition as PodCondition;
use crate::selector::LabelSelector;

/// A projection of `autoscaling/v2.HorizontalPodAutoscaler`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Autoscaler {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: Spec,
    /// What was seen.
    pub status: Status,
}

/// `autoscaling/v2.HorizontalPodAutoscalerSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// What is scaled.
    pub scale_target_ref: Reference,
    /// At least so many; 1 if absent.
    pub min_replicas: Option<i32>,
    /// At most so many.
    pub max_replicas: i32,
    /// By what.
    pub metrics: Vec<MetricSpec>,
    /// How fast.
    pub behavior: Option<Behavior>,
}

/// `autoscaling/v2.CrossVersionObjectReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    /// Kind.
    pub kind: String,
    /// Name, in the namespace of the autoscaler.
    pub name: String,
    /// Group and version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
}

/// `autoscaling/v2.MetricSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricSpec {
    /// Which of the others is set.
    pub r#type: String,
    /// A figure of another object.
    pub object: ObjectSource,
    /// A figure of each pod.
    pub pods: PodsSource,
    /// What the pods use.
    pub resource: ResourceSource,
    /// What one container of each pod uses.
    pub container_resource: ResourceSource,
    /// A figure from outside.
    pub external: PodsSource,
}

/// `autoscaling/v2.ObjectMetricSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectSource {
    /// Whose figure.
    pub described_object: Reference,
    /// Which figure.
    pub metric: Identifier,
    /// What it should be.
    pub target: Target,
}

/// `autoscaling/v2.PodsMetricSource`, and `ExternalMetricSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodsSource {
    /// Which figure.
    pub metric: Identifier,
    /// What it should be.
    pub target: Target,
}

/// `autoscaling/v2.ResourceMetricSource`, and `ContainerResourceMetricSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceSource {
    /// `cpu`, `memory`.
    pub name: String,
    /// Which container; empty: the whole pod.
    pub container: String,
    /// What it should be.
    pub target: Target,
}

/// `autoscaling/v2.MetricIdentifier`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Identifier {
    /// Name.
    pub name: String,
    /// Which series of that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// `autoscaling/v2.MetricTarget`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Target {
    /// `Utilization`, `Value` or `AverageValue`.
    pub r#type: String,
    /// As a whole.
    pub value: Option<String>,
    /// For each pod.
    pub average_value: Option<String>,
    /// In percent of what the pods request.
    pub average_utilization: Option<i32>,
}

/// A quantity in thousandths; validation has read it before.
pub(super) fn milli(text: &str) -> i64 {
    text.parse::<Quantity>().map_or(0, |quantity| quantity.milli_value())
}

/// `autoscaling/v2.HorizontalPodAutoscalerBehavior`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Behavior {
    /// Upwards.
    pub scale_up: Option<Rules>,
    /// Downwards.
    pub scale_down: Option<Rules>,
}

/// `autoscaling/v2.HPAScalingRules`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rules {
    /// For how long past recommendations count.
    pub stabilization_window_seconds: Option<i32>,
    /// `Max`, `Min` or `Disabled`.
    pub select_policy: String,
    /// How much in which time.
    pub policies: Vec<Policy>,
    /// Which part of the target does not matter.
    pub tolerance: Option<String>,
}

/// `autoscaling/v2.HPAScalingPolicy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// `Pods` or `Percent`.
    pub r#type: String,
    /// So many.
    pub value: i32,
    /// In this time.
    pub period_seconds: i32,
}

/// `autoscaling/v2.HorizontalPodAutoscalerStatus`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The generation that the numbers are about.
    pub observed_generation: i64,
    /// When the number of pods was changed last.
    pub last_scale_time: Option<Timestamp>,
    /// How many there were.
    pub current_replicas: i32,
    /// How many there should be.
    pub desired_replicas: i32,
    /// The figures, in the order of the spec.
    #[serde(deserialize_with = "nullable")]
    pub current_metrics: Vec<Value>,
    /// `AbleToScale`, `ScalingActive`, `ScalingLimited`, `ScaledToZero`.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

/// Go writes lists without elements as null.
fn nullable<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `autoscaling/v2.HorizontalPodAutoscalerCondition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The generation that it is about; objects of earlier versions do not say it.
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// When the status changed last.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_transition_time: Option<Timestamp>,
    /// Machine-readable.
    pub reason: String,
    /// For people.
    pub message: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field by reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// What a condition says.
pub(super) type Said<'a> = (&'a str, &'a str, String);

impl Status {
    /// Sets a condition to status, reason and message; its moment stays where its status does.
    /// Source: `setConditionInList`.
    pub(super) fn set(
        &mut self,
        kind: &str,
        (status, reason, message): Said<'_>,
        generation: i64,
        now: Timestamp,
    ) {
        let at = self.conditions.iter().position(|held| held.r#type == kind).unwrap_or_else(|| {
            self.conditions.push(Condition { r#type: kind.into(), ..Condition::default() });
            self.conditions.len() - 1
        });
        let held = &mut self.conditions[at];
        if held.status != status {
            held.last_transition_time = Some(now);
        }
        held.status = status.into();
        held.observed_generation = generation;
        held.reason = reason.into();
        held.message = message;
    }

    /// Whether a condition is there and holds.
    pub(super) fn holds(&self, kind: &str) -> bool {
        self.conditions.iter().any(|held| held.r#type == kind && held.status == "True")
    }
}

impl Autoscaler {
    /// Whether the version of what it scales can be one.
    pub(super) fn names_a_version(&self) -> bool {
        self.spec.scale_target_ref.api_version.matches('/').count() <= 1
    }
}

impl Spec {
    pub(super) fn least(&self) -> i32 {
        self.min_replicas.unwrap_or(1)
    }

    /// Whether a figure is there also while there are no pods. Source: `hasObjectOrExternalMetrics`.
    pub(super) fn measures_without_pods(&self) -> bool {
        self.metrics.iter().any(|metric| matches!(metric.r#type.as_str(), "Object" | "External"))
    }
}

/// What autoscaling looks at in a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) containers: Vec<Container>,
    pub(super) init_containers: Vec<Container>,
    pub(super) resources: Resources,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) restart_policy: String,
    pub(super) resources: Resources,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    pub(super) requests: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    pub(super) phase: String,
    pub(super) start_time: Option<Timestamp>,
    pub(super) conditions: Vec<PodCondition>,
}

impl Pod {
    pub(super) fn readiness(&self) -> Option<&PodCondition> {
        self.status.conditions.iter().find(|held| held.r#type == "Ready")
    }
}
