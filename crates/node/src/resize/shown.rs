//! What a container's status says of its resources: what it was granted, but where its control group has something else,
//! that. Source: `convertContainerStatusResources` in `pkg/kubelet/kubelet_pods.go`.

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};
use engine_api::Resources;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

type Amounts = Option<BTreeMap<String, Text>>;

/// `granted`: what the container is to have, in the API's words and, as `wanted`, in the kernel's. `had`: what its group
/// has; `None` while there is none.
pub(crate) fn shown(
    granted: Option<&ResourceRequirements>,
    wanted: &Resources,
    had: Option<&Resources>,
) -> Option<ResourceRequirements> {
    let mut shown = granted.cloned();
    let Some(had) = had else { return shown };
    let cpu = |resources: &Resources| {
        resources.cpu_shares.map(|shares| cores(shares.saturating_mul(1000).div_ceil(1024)))
    };
    if had.cpu_shares != wanted.cpu_shares {
        put(&mut shown.get_or_insert_default().requests, "cpu", cpu(had));
    }
    let quota =
        |resources: &Resources| (resources.cpu_quota_us.filter(|quota| *quota > 0), resources.cpu_period_us);
    if quota(had) != quota(wanted) {
        put(&mut shown.get_or_insert_default().limits, "cpu", limit_of(had));
    }
    let memory = |resources: &Resources| resources.memory_limit_bytes.filter(|bytes| *bytes > 0);
    if memory(had) != memory(wanted) {
        let bytes = memory(had).map(|bytes| Quantity::from_units(bytes, Format::BinarySi));
        put(&mut shown.get_or_insert_default().limits, "memory", bytes);
    }
    shown
}

/// Source: `QuotaToMilliCPU`.
fn limit_of(resources: &Resources) -> Option<Quantity> {
    let quota = u64::try_from(resources.cpu_quota_us.filter(|quota| *quota > 0)?).ok()?;
    let period = resources.cpu_period_us.filter(|period| *period > 0)?;
    Some(cores(quota.saturating_mul(1000) / period))
}

fn cores(milli: u64) -> Quantity {
    Quantity::from_milli(i64::try_from(milli).unwrap_or(i64::MAX))
}

fn put(amounts: &mut Amounts, name: &str, amount: Option<Quantity>) {
    match amount {
        Some(amount) => {
            drop(amounts.get_or_insert_default().insert(name.to_owned(), Text(amount.to_string())))
        }
        None => drop(amounts.as_mut().and_then(|amounts| amounts.remove(name))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_the_group_has_is_shown_until_it_has_what_was_granted() {
        let granted: ResourceRequirements = serde_json::from_value(json!({
            "requests": { "cpu": "500m", "memory": "64Mi" }, "limits": { "cpu": "1", "memory": "128Mi" } }))
        .unwrap();
        let wanted = Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(100_000),
            cpu_period_us: Some(100_000),
            memory_limit_bytes: Some(128 << 20),
            ..Resources::default()
        };
        let told =
            |had: Option<&Resources>| serde_json::to_value(shown(Some(&granted), &wanted, had)).unwrap();
        assert_eq!(told(None), serde_json::to_value(&granted).unwrap());
        assert_eq!(told(Some(&wanted)), serde_json::to_value(&granted).unwrap());
        let before = Resources {
            cpu_shares: Some(204),
            cpu_quota_us: Some(25_000),
            memory_limit_bytes: None,
            ..wanted.clone()
        };
        assert_eq!(
            told(Some(&before)),
            json!({ "requests": { "cpu": "200m", "memory": "64Mi" }, "limits": { "cpu": "250m" } })
        );
        let nothing = shown(None, &Resources::default(), Some(&Resources::default()));
        assert_eq!(serde_json::to_value(nothing).unwrap(), Value::Null);
    }
}
