//! What extenders are asked and what they answer. Go writes the fields of these types by their Go names, and reads them in
//! any letters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `ExtenderArgs`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Question<'a> {
    pub(super) pod: &'a Value,
    pub(super) nodes: Option<Value>,
    pub(super) node_names: Option<Vec<&'a str>>,
}

/// `ExtenderFilterResult`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase", default)]
pub(super) struct Filtered {
    #[serde(deserialize_with = "or_default")]
    nodes: Option<NodeList>,
    nodenames: Option<Vec<String>>,
    #[serde(rename = "failednodes", deserialize_with = "or_default")]
    pub(super) failed: BTreeMap<String, String>,
    #[serde(rename = "failedandunresolvablenodes", deserialize_with = "or_default")]
    pub(super) lasting: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) error: String,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeList {
    #[serde(deserialize_with = "or_default")]
    items: Vec<NodeItem>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeItem {
    metadata: NodeMeta,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeMeta {
    name: String,
}

fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Filtered {
    /// The nodes that will do. Only of one that knows the nodes names count.
    pub(super) fn names(&self, knows_nodes: bool) -> Vec<&str> {
        match (&self.nodenames, &self.nodes) {
            (Some(names), _) if knows_nodes => names.iter().map(String::as_str).collect(),
            (_, Some(nodes)) => nodes.items.iter().map(|node| node.metadata.name.as_str()).collect(),
            _ => Vec::new(),
        }
    }
}

/// `HostPriority`.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Score {
    pub(super) host: String,
    pub(super) score: i64,
}

/// `ExtenderBindingArgs`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Binding<'a> {
    pub(super) pod_name: &'a str,
    pub(super) pod_namespace: &'a str,
    #[serde(rename = "PodUID")]
    pub(super) pod_uid: &'a str,
    pub(super) node: &'a str,
}

/// `ExtenderBindingResult`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Bound {
    #[serde(deserialize_with = "or_default")]
    pub(super) error: String,
}

/// `ExtenderPreemptionArgs`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Displace<'a> {
    pub(super) pod: &'a Value,
    pub(super) node_name_to_victims: Option<Value>,
    pub(super) node_name_to_meta_victims: Option<Value>,
}

/// `MetaVictims`: who is to go from a node, and how many of them no budget lets go.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Displaced {
    pub(super) uids: Vec<String>,
    pub(super) violations: usize,
}

/// `ExtenderPreemptionResult`, by node.
pub(super) fn displaced(answer: Value) -> BTreeMap<String, Displaced> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Result {
        #[serde(rename = "nodenametometavictims", deserialize_with = "or_default")]
        nodes: BTreeMap<String, Value>,
    }
    let nodes: Result = serde_json::from_value(lowered(answer)).unwrap_or_default();
    let read = |victims: Value| -> Displaced {
        let Value::Object(victims) = lowered(victims) else { return Displaced::default() };
        let pods = victims.get("pods").and_then(Value::as_array).into_iter().flatten();
        let uid = |pod: &Value| lowered(pod.clone())["uid"].as_str().map(str::to_owned);
        let violations = victims.get("numpdbviolations").and_then(Value::as_u64);
        let violations = violations.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        Displaced { uids: pods.filter_map(uid).collect(), violations }
    };
    nodes.nodes.into_iter().map(|(node, victims)| (node, read(victims))).collect()
}

/// The same with the names of its fields in small letters.
pub(super) fn lowered(answer: Value) -> Value {
    match answer {
        Value::Object(fields) => Value::Object(
            fields.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect::<Map<_, _>>(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(lowered).collect()),
        other => other,
    }
}
