//! What nodes and pods use. Source: metrics-server's table of both.

use serde_json::{Value, json};

use super::{Cell, Column, Family, NAME, column, items, text};
use crate::quantity::Quantity;

pub(super) const KINDS: Family =
    &[("metrics.k8s.io", "NodeMetrics", NODE), ("metrics.k8s.io", "PodMetrics", POD)];

const NODE: &[Column] = &[
    NAME,
    column("CPU", "string", Cell::Text(&["usage", "cpu"])),
    column("Memory", "string", Cell::Text(&["usage", "memory"])),
    WINDOW,
];
const POD: &[Column] = &[
    NAME,
    column("CPU", "string", Cell::Of(|object, _| sum(object, "cpu"))),
    column("Memory", "string", Cell::Of(|object, _| sum(object, "memory"))),
    WINDOW,
];
const WINDOW: Column = column("Window", "string", Cell::Text(&["window"]));

/// What all containers of a pod use.
fn sum(object: &Value, resource: &str) -> Value {
    let used = items(object, &["containers"])
        .iter()
        .filter_map(|container| text(container, &["usage", resource]).parse::<Quantity>().ok());
    json!(used.reduce(Quantity::plus).map_or_else(|| "0".to_owned(), |sum| sum.to_string()))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_pod_uses_what_its_containers_use() {
        let pod = json!({ "metadata": { "name": "p" }, "window": "15s", "containers": [
            { "usage": { "cpu": "1500n", "memory": "1Mi" } }, { "usage": { "cpu": "2u", "memory": "512Ki" } } ] });
        let cells = super::super::cells(POD, &pod, Timestamp::UNIX_EPOCH);
        assert_eq!(cells, ["p", "3500n", "1536Ki", "15s"]);
        let none = super::super::cells(POD, &json!({}), Timestamp::UNIX_EPOCH);
        assert_eq!(none[1..3], ["0", "0"]);
    }
}
