//! What is written of a solution: `AllocationResult`, with what class and claim say to drivers.

use std::collections::BTreeSet;

use api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::allocate::{Chosen, Solution};
use super::types::{Allocation, Claim, Configuration, Place, Request};
use crate::types::Node;

/// What a claim gets on a node.
pub fn allocation(claim: &Claim, solution: &Solution<'_>, node: &Node) -> Result<Allocation, String> {
    let results: Vec<Value> = solution.devices.iter().map(|chosen| result(claim, chosen)).collect();
    let mut devices = json!({ "results": results });
    let config = configurations(claim, solution);
    if !config.is_empty() {
        devices["config"] = config.into();
    }
    let mut raw = json!({ "devices": devices });
    if let Some(nodes) = node_selector(&solution.devices, node)? {
        raw["nodeSelector"] = nodes;
    }
    Allocation::read(raw).map_err(|error| error.to_string())
}

/// `DeviceRequestAllocationResult`.
fn result(claim: &Claim, chosen: &Chosen<'_>) -> Value {
    let (device, ask) = (chosen.device, chosen.ask);
    let request = claim.requests.get(chosen.request).map(|request| request.full_name(ask));
    let mut result = json!({ "request": request, "driver": device.id.driver, "pool": device.id.pool, "device": device.id.device });
    if ask.admin {
        result["adminAccess"] = true.into();
    }
    if !ask.tolerations.is_empty() {
        result["tolerations"] = json!(ask.tolerations);
    }
    if let Some(consumed) = &chosen.consumed {
        let text = |(name, amount): (&String, &Quantity)| (name.clone(), Value::from(amount.to_string()));
        result["shareID"] = base::id::uuid().into();
        if !consumed.is_empty() {
            result["consumedCapacity"] = consumed.iter().map(text).collect::<Map<_, _>>().into();
        }
    }
    let conditions = [
        ("bindingConditions", &device.binding_conditions),
        ("bindingFailureConditions", &device.binding_failure_conditions),
    ];
    for (name, conditions) in conditions.into_iter().filter(|(_, conditions)| !conditions.is_empty()) {
        result[name] = json!(conditions);
    }
    result
}

/// Something that is said to drivers, and the requests that it is about; none: all.
struct Said<'a> {
    source: &'static str,
    requests: Vec<String>,
    of: &'a Configuration,
}

/// `DeviceAllocationConfiguration`: that of the classes, each once, then that of the claim for what was chosen.
fn configurations(claim: &Claim, solution: &Solution<'_>) -> Vec<Value> {
    let chosen: Vec<(&Request, String)> = claim
        .requests
        .iter()
        .zip(&solution.asks)
        .map(|(request, (ask, _))| (request, request.full_name(ask)))
        .collect();
    let mut said: Vec<Said<'_>> = Vec::new();
    let mut classes: Vec<(&str, std::ops::Range<usize>)> = Vec::new();
    for ((_, full), (_, class)) in chosen.iter().zip(&solution.asks) {
        if let Some((_, range)) = classes.iter().find(|(name, _)| *name == class.name) {
            said[range.clone()].iter_mut().for_each(|said| said.requests.push(full.clone()));
            continue;
        }
        let start = said.len();
        let of_class = |of| Said { source: "FromClass", requests: vec![full.clone()], of };
        said.extend(class.config.iter().map(of_class));
        classes.push((&class.name, start..said.len()));
    }
    let names = |requests: &[String], (request, full): &(&Request, String)| {
        requests.iter().any(|named| *named == request.name || named == full)
    };
    let of_claim = claim.config.iter().filter(|config| {
        config.requests.is_empty() || chosen.iter().any(|chosen| names(&config.requests, chosen))
    });
    said.extend(of_claim.map(|of| Said { source: "FromClaim", requests: of.requests.clone(), of }));
    said.into_iter()
        .map(|said| {
            let mut value = json!({ "source": said.source });
            // What is about all requests names none.
            if !said.requests.is_empty() && !chosen.iter().all(|chosen| names(&said.requests, chosen)) {
                value["requests"] = json!(said.requests);
            }
            if let Some(opaque) = &said.of.opaque {
                value["opaque"] = opaque.clone();
            }
            value
        })
        .collect()
}

/// The nodes on which all of the devices can be used; `None`: all nodes. Source: `createNodeSelector`.
fn node_selector(devices: &[Chosen<'_>], node: &Node) -> Result<Option<Value>, String> {
    let mut parts: [Vec<Value>; 2] = Default::default();
    for chosen in devices {
        let place = match &chosen.slice.place {
            Place::PerDevice => &chosen.device.place,
            place => place,
        };
        if chosen.device.binds_to_node || matches!(place, Place::Node(_)) {
            let name = json!({ "key": "metadata.name", "operator": "In", "values": [node.name] });
            return Ok(Some(json!({ "nodeSelectorTerms": [{ "matchFields": [name] }] })));
        }
        let Place::Selected(_, raw) = place else { continue };
        let terms = raw["nodeSelectorTerms"].as_array().map_or(&[][..], Vec::as_slice);
        let term = match terms {
            [] => continue,
            [term] => term,
            several => {
                return Err(format!("unsupported ResourceSlice.NodeSelector with {} terms", several.len()));
            }
        };
        for (part, field) in parts.iter_mut().zip(["matchFields", "matchExpressions"]) {
            for requirement in term[field].as_array().into_iter().flatten() {
                if !part.iter().any(|held| same_requirement(held, requirement)) {
                    part.push(requirement.clone());
                }
            }
        }
    }
    let [fields, expressions] = parts;
    let mut term = Map::new();
    for (name, part) in [("matchFields", fields), ("matchExpressions", expressions)] {
        if !part.is_empty() {
            term.insert(name.to_owned(), part.into());
        }
    }
    Ok((!term.is_empty()).then(|| json!({ "nodeSelectorTerms": [term] })))
}

fn same_requirement(one: &Value, other: &Value) -> bool {
    let values = |requirement: &Value| -> BTreeSet<String> {
        let values = requirement["values"].as_array().into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
    };
    one["key"] == other["key"] && one["operator"] == other["operator"] && values(one) == values(other)
}
