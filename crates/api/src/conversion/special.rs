//! Differences that no table says: a function each way, and defaults that depend on other fields.

use serde_json::{Map, Value, json};

/// Old workloads take their labels and their selector from the template, where they have none.
pub(super) fn labels_and_selector(object: &mut Value) {
    let labels =
        object.pointer("/spec/template/metadata/labels").filter(|labels| labels.is_object()).cloned();
    let Some(labels) = labels else { return };
    if object.pointer("/metadata/labels").and_then(Value::as_object).is_none_or(Map::is_empty)
        && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("labels".into(), labels.clone());
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("selector").is_none_or(Value::is_null)
    {
        spec.insert("selector".into(), json!({ "matchLabels": labels }));
    }
}

/// A place for the limits of rolling updates, which the schema's defaults fill. `unsaid`: a strategy that is not said is
/// one of rolling updates.
pub(super) fn rolling_update(object: &mut Value, field: &str, unsaid: bool) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let strategy = spec.entry(field).or_insert(Value::Null);
    if strategy.is_null() {
        *strategy = json!({});
    }
    let Some(strategy) = strategy.as_object_mut() else { return };
    let rolls = match strategy.get("type") {
        None | Some(Value::Null) => unsaid,
        Some(said) => said == "RollingUpdate",
    };
    if rolls && strategy.get("rollingUpdate").is_none_or(Value::is_null) {
        strategy.insert("rollingUpdate".into(), json!({}));
    }
}

/// `serviceName` and `servicePort` become `service`.
pub(super) fn backend_to_stored(backend: &mut Value) {
    let Some(fields) = backend.as_object_mut() else { return };
    let (name, port) = (fields.remove("serviceName"), fields.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let mut service = json!({"name": name.unwrap_or(json!(""))});
    match port {
        Some(Value::String(port)) => service["port"] = json!({"name": port}),
        Some(Value::Number(port)) => service["port"] = json!({"number": port}),
        _ => {}
    }
    fields.insert("service".into(), service);
}

/// `service` becomes `serviceName` and `servicePort`.
pub(super) fn backend_from_stored(backend: &mut Value) {
    let Some(fields) = backend.as_object_mut() else { return };
    let Some(service) = fields.remove("service") else { return };
    if service["name"] != "" {
        fields.insert("serviceName".into(), service["name"].clone());
    }
    let port = &service["port"];
    let port = if port["number"].is_null() { &port["name"] } else { &port["number"] };
    if !port.is_null() {
        fields.insert("servicePort".into(), port.clone());
    }
}

/// The label that tells an empty selector of one version in another. Source: `pkg/apis/policy/helper.go`.
const EMPTY_SELECTOR: &str = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";

fn budget_selector(operator: &str) -> Value {
    json!({"matchExpressions": [{"key": EMPTY_SELECTOR, "operator": operator}]})
}

/// An empty selector selects nothing in `policy/v1beta1`, and everything in `policy/v1`.
pub(super) fn budget_selector_to_stored(selector: &mut Value) {
    if *selector == json!({}) {
        *selector = budget_selector("Exists");
    } else if *selector == budget_selector("DoesNotExist") {
        *selector = json!({});
    }
}

/// The way back.
pub(super) fn budget_selector_from_stored(selector: &mut Value) {
    if *selector == json!({}) {
        *selector = budget_selector("DoesNotExist");
    } else if *selector == budget_selector("Exists") {
        *selector = json!({});
    }
}

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

/// The zone is a field of its own, and a host that is the node's name goes without saying.
pub(super) fn topology_to_stored(endpoint: &mut Value) {
    let Some(fields) = endpoint.as_object_mut() else { return };
    let Some(Value::Object(mut topology)) = fields.remove("topology") else { return };
    if let Some(zone) = topology.remove(ZONE) {
        fields.insert("zone".into(), zone);
    }
    if topology.get(HOST).is_some_and(|host| fields.get("nodeName") == Some(host)) {
        topology.remove(HOST);
    }
    if !topology.is_empty() {
        fields.insert("deprecatedTopology".into(), Value::Object(topology));
    }
}

/// The way back.
pub(super) fn topology_from_stored(endpoint: &mut Value) {
    let Some(fields) = endpoint.as_object_mut() else { return };
    let mut topology = match fields.remove("deprecatedTopology") {
        Some(Value::Object(topology)) => topology,
        _ => Map::new(),
    };
    if let Some(zone) = fields.remove("zone") {
        topology.insert(ZONE.into(), zone);
    }
    if let Some(node) = fields.get("nodeName").filter(|node| !node.is_null()) {
        topology.entry(HOST).or_insert_with(|| node.clone());
    }
    if !topology.is_empty() {
        fields.insert("topology".into(), Value::Object(topology));
    }
}

/// An event that nobody reports has texts that say so in the core group alone.
pub(super) fn unsigned(event: &mut Value) {
    let Some(event) = event.as_object_mut() else { return };
    for field in ["reportingComponent", "reportingController", "reportingInstance"] {
        if event.get(field).is_some_and(|text| text == "") {
            event.remove(field);
        }
    }
}
