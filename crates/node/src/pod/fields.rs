//! `fieldRef` and `resourceFieldRef`: values of the pod itself, for environment variables and downward API files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::PodView;
use super::quantity::milli;
use super::resources::{limit, request};

/// What a field may refer to beside the pod's object.
#[derive(Debug, Clone, Default)]
pub(crate) struct FieldContext {
    pub(crate) pod_addresses: Vec<IpAddr>,
    pub(crate) host_addresses: Vec<IpAddr>,
    /// Limits that are not set default to what the node has for pods. Source: `defaultPodLimitsForDownwardAPI`.
    pub(crate) node_milli_cpu: i64,
    pub(crate) node_memory_bytes: i64,
    pub(crate) node_disk_bytes: i64,
}

/// The value of a `fieldRef`.
pub(crate) fn field(pod: &PodView, context: &FieldContext, path: &str) -> Result<String, String> {
    let join = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |list: &[IpAddr]| list.first().map(ToString::to_string).unwrap_or_default();
    let pod_addresses = if pod.host_network() { &context.host_addresses } else { &context.pod_addresses };
    Ok(match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "metadata.labels" => format_map(&pod.metadata.labels),
        "metadata.annotations" => format_map(&pod.metadata.annotations),
        "spec.nodeName" => pod.spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&context.host_addresses),
        "status.hostIPs" => join(&context.host_addresses),
        "status.podIP" => first(pod_addresses),
        "status.podIPs" => join(pod_addresses),
        _ => return subscript(pod, path).ok_or_else(|| format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']`, `metadata.annotations['key']`.
fn subscript(pod: &PodView, path: &str) -> Option<String> {
    let (map, rest) = path.split_once("['")?;
    let key = rest.strip_suffix("']")?;
    let values = match map {
        "metadata.labels" => &pod.metadata.labels,
        "metadata.annotations" => &pod.metadata.annotations,
        _ => return None,
    };
    Some(values.get(key).cloned().unwrap_or_default())
}

/// `key="value"` a line, sorted, as upstream writes it.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in map {
        if !text.is_empty() {
            text.push('\n');
        }
        // Go's %q and Rust's Debug agree for what labels and annotations commonly hold.
        let _ = write!(text, "{key}={value:?}");
    }
    text
}

/// The value of a `resourceFieldRef`; `own` is the container in which it stands (`None` in a volume).
pub(crate) fn resource_field(
    pod: &PodView,
    context: &FieldContext,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let container = match (selector.container_name.as_deref().filter(|name| !name.is_empty()), own) {
        (Some(name), _) => pod
            .container(name)
            .map(|(_, container)| container)
            .ok_or_else(|| format!("container {name} not found"))?,
        (None, Some(own)) => own,
        (None, None) => return Err("resourceFieldRef in a volume needs containerName".to_owned()),
    };
    let (side, resource) = selector.resource.split_once('.').unwrap_or(("", ""));
    let node = match resource {
        "cpu" => context.node_milli_cpu,
        "memory" => context.node_memory_bytes.saturating_mul(1000),
        "ephemeral-storage" => context.node_disk_bytes.saturating_mul(1000),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let thousandths = match side {
        "limits" => limit(container, resource).map(milli).filter(|amount| *amount > 0).unwrap_or(node),
        "requests" => request(container, resource).map_or(0, milli),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let divisor = divisor_milli(selector.divisor.as_ref());
    Ok((thousandths.saturating_add(divisor - 1) / divisor).to_string())
}

fn divisor_milli(divisor: Option<&Quantity>) -> i64 {
    match divisor.map(milli) {
        None | Some(..=0) => 1000,
        Some(milli) => milli,
    }
}
