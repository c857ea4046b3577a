//! HorizontalPodAutoscalers: `v2` is stored; `v2beta1` says the same of metrics in flat fields; `v1` knows only the
//! processors' share and keeps everything else in annotations. Sources: `pkg/apis/autoscaling/v1/conversion.go`,
//! `v2beta1/conversion.go` of v1.24.

use serde_json::{Map, Value, json};

use super::{annotations, forget};

/// The annotation of older versions that holds `spec.behavior`.
pub(super) const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// A flat field, and the path of it in `v2`.
type Moves = &'static [(&'static str, [&'static str; 2])];

/// The sources of metrics: their name in a metric, and what stands elsewhere in their specification and their status.
const SOURCES: [(&str, Moves, Moves); 5] = [
    ("object", OBJECT.0, OBJECT.1),
    ("pods", PODS.0, PODS.1),
    ("resource", RESOURCE.0, RESOURCE.1),
    ("containerResource", RESOURCE.0, RESOURCE.1),
    ("external", EXTERNAL.0, EXTERNAL.1),
];
const OBJECT: (Moves, Moves) = (
    &[
        ("target", ["describedObject", ""]),
        ("metricName", ["metric", "name"]),
        ("selector", ["metric", "selector"]),
        ("targetValue", ["target", "value"]),
        ("averageValue", ["target", "averageValue"]),
    ],
    &[
        ("target", ["describedObject", ""]),
        ("metricName", ["metric", "name"]),
        ("selector", ["metric", "selector"]),
        ("currentValue", ["current", "value"]),
        ("averageValue", ["current", "averageValue"]),
    ],
);
const PODS: (Moves, Moves) = (
    &[
        ("metricName", ["metric", "name"]),
        ("selector", ["metric", "selector"]),
        ("targetAverageValue", ["target", "averageValue"]),
    ],
    &[
        ("metricName", ["metric", "name"]),
        ("selector", ["metric", "selector"]),
        ("currentAverageValue", ["current", "averageValue"]),
    ],
);
const RESOURCE: (Moves, Moves) = (
    &[
        ("targetAverageUtilization", ["target", "averageUtilization"]),
        ("targetAverageValue", ["target", "averageValue"]),
    ],
    &[
        ("currentAverageUtilization", ["current", "averageUtilization"]),
        ("currentAverageValue", ["current", "averageValue"]),
    ],
);
const EXTERNAL: (Moves, Moves) = (
    &[
        ("metricName", ["metric", "name"]),
        ("metricSelector", ["metric", "selector"]),
        ("targetValue", ["target", "value"]),
        ("targetAverageValue", ["target", "averageValue"]),
    ],
    &[
        ("metricName", ["metric", "name"]),
        ("metricSelector", ["metric", "selector"]),
        ("currentValue", ["current", "value"]),
        ("currentAverageValue", ["current", "averageValue"]),
    ],
);

/// A flat metric becomes one of `v2`.
pub(super) fn spec_to_stored(metric: &mut Value) {
    for (name, moves, _) in SOURCES {
        let Some(source) = metric.get_mut(name).and_then(Value::as_object_mut) else { continue };
        // Go writes a zero where an object's metric is compared by its average.
        if source.contains_key("averageValue") && source.get("targetValue").is_some_and(|value| *value == "0")
        {
            source.remove("targetValue");
        }
        deepen(source, moves);
        let Some(target) = source.entry("target").or_insert_with(|| json!({})).as_object_mut() else {
            continue;
        };
        let said = |field: &str| target.get(field).is_some_and(|value| !value.is_null());
        let kind = match () {
            () if said("averageUtilization") => "Utilization",
            () if said("averageValue") && !(name == "external" && said("value")) => "AverageValue",
            () if matches!(name, "object" | "external") && said("value") => "Value",
            () => "AverageValue",
        };
        target.insert("type".into(), json!(kind));
    }
}

/// The way back.
pub(super) fn spec_from_stored(metric: &mut Value) {
    for (name, moves, _) in SOURCES {
        let Some(source) = metric.get_mut(name).and_then(Value::as_object_mut) else { continue };
        if let Some(target) = source.get_mut("target").and_then(Value::as_object_mut) {
            target.remove("type");
        }
        flatten(source, moves);
    }
}

/// A flat status of a metric becomes one of `v2`.
pub(super) fn status_to_stored(metric: &mut Value) {
    for (name, _, moves) in SOURCES {
        if let Some(source) = metric.get_mut(name).and_then(Value::as_object_mut) {
            deepen(source, moves);
            source.entry("current").or_insert_with(|| json!({}));
        }
    }
}

/// The way back.
pub(super) fn status_from_stored(metric: &mut Value) {
    for (name, _, moves) in SOURCES {
        if let Some(source) = metric.get_mut(name).and_then(Value::as_object_mut) {
            flatten(source, moves);
        }
    }
}

fn deepen(source: &mut Map<String, Value>, moves: Moves) {
    let taken: Vec<_> = moves.iter().filter_map(|(flat, path)| Some((path, source.remove(*flat)?))).collect();
    for ([outer, inner], value) in taken {
        if inner.is_empty() {
            source.insert((*outer).to_owned(), value);
        } else if let Some(place) = source.entry(*outer).or_insert_with(|| json!({})).as_object_mut() {
            place.insert((*inner).to_owned(), value);
        }
    }
}

fn flatten(source: &mut Map<String, Value>, moves: Moves) {
    let take = |source: &mut Map<String, Value>, [outer, inner]: [&str; 2]| match inner {
        "" => source.remove(outer),
        _ => source.get_mut(outer)?.as_object_mut()?.remove(inner),
    };
    let taken: Vec<_> = moves.iter().filter_map(|(flat, path)| Some((*flat, take(source, *path)?))).collect();
    for outer in ["target", "current", "metric"] {
        if source.get(outer).and_then(Value::as_object).is_some_and(Map::is_empty) {
            source.remove(outer);
        }
    }
    for (flat, value) in taken {
        source.insert(flat.to_owned(), value);
    }
}

/// Whether a metric is the one that `v1` has a field for.
fn is_share(metric: &Value, value: &str) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"][value]["averageUtilization"].is_number()
}

/// Metrics, behaviour and conditions come from the annotations; the processors' share stands last.
pub(super) fn v1_to_stored(object: &mut Value) {
    let list = |text: Option<String>| -> Option<Vec<Value>> { serde_json::from_str(&text?).ok() };
    let mut metrics = list(forget(object, METRICS)).unwrap_or_default();
    metrics.iter_mut().for_each(spec_to_stored);
    let current = list(forget(object, CURRENT_METRICS));
    let behavior: Option<Value> = forget(object, BEHAVIOR).and_then(|text| serde_json::from_str(&text).ok());
    let conditions = list(forget(object, CONDITIONS));
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(share) = spec.remove("targetCPUUtilizationPercentage").filter(Value::is_number) {
            let target = json!({"type": "Utilization", "averageUtilization": share});
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), Value::Array(metrics));
        }
        if let Some(behavior) = behavior.filter(Value::is_object) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if object.get("status").is_none() && (current.is_some() || conditions.is_some()) {
        object["status"] = json!({});
    }
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else { return };
    let share = status.remove("currentCPUUtilizationPercentage").filter(Value::is_number);
    let from_share = |share: Value| {
        let current = json!({"averageUtilization": share});
        vec![json!({"type": "Resource", "resource": {"name": "cpu", "current": current}})]
    };
    let current = match current {
        Some(mut current) => {
            current.iter_mut().for_each(status_to_stored);
            Some(current)
        }
        None => share.map(from_share),
    };
    if let Some(current) = current {
        status.insert("currentMetrics".into(), Value::Array(current));
    }
    if let Some(conditions) = conditions {
        status.insert("conditions".into(), Value::Array(conditions));
    }
}

/// The way back. One metric of the processors' share has a field; a second one goes with the others.
pub(super) fn v1_from_stored(object: &mut Value) {
    let mut kept: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(Value::Array(mut metrics)) = spec.remove("metrics") {
            if let Some(index) = metrics.iter().position(|metric| is_share(metric, "target")) {
                let share = metrics.remove(index)["resource"]["target"]["averageUtilization"].take();
                spec.insert("targetCPUUtilizationPercentage".into(), share);
            }
            metrics.iter_mut().for_each(spec_from_stored);
            if !metrics.is_empty() {
                kept.push((METRICS, Value::Array(metrics)));
            }
        }
        kept.extend(spec.remove("behavior").filter(Value::is_object).map(|value| (BEHAVIOR, value)));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(Value::Array(mut current)) = status.remove("currentMetrics") {
            if let Some(metric) = current.iter().find(|metric| is_share(metric, "current")) {
                let share = metric["resource"]["current"]["averageUtilization"].clone();
                status.insert("currentCPUUtilizationPercentage".into(), share);
            }
            current.iter_mut().for_each(status_from_stored);
            if !current.is_empty() {
                kept.push((CURRENT_METRICS, Value::Array(current)));
            }
        }
        let conditions =
            status.remove("conditions").filter(|value| value.as_array().is_some_and(|all| !all.is_empty()));
        kept.extend(conditions.map(|value| (CONDITIONS, value)));
    }
    if !kept.is_empty()
        && let Some(annotations) = annotations(object)
    {
        annotations.extend(kept.into_iter().map(|(name, value)| (name.to_owned(), json!(value.to_string()))));
    }
}
