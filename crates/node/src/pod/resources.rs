//! Limits and classes: from requests and limits to the kernel's units. The arithmetic is upstream's
//! (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`).

use std::collections::BTreeMap;

use engine_api::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity::{milli, value};

const PERIOD_US: i64 = 100_000;
const MIN_QUOTA_US: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// `priority` at and above which a pod is critical to its node.
pub(crate) const SYSTEM_CRITICAL: i32 = 2_000_000_000;

type Amounts = BTreeMap<String, Quantity>;

/// A container's limit of a resource.
pub(crate) fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(name)
}

/// A container's request of a resource; a limit alone is a request too.
pub(crate) fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.and_then(|requests| requests.get(name)).or_else(|| limit(container, name))
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn qos_class(spec: &PodSpec) -> &'static str {
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let compute = |amounts: Option<&Amounts>, name: &str| {
        amounts.and_then(|amounts| amounts.get(name)).map(milli).filter(|amount| *amount > 0)
    };
    let mut any = false;
    let mut guaranteed = true;
    for container in containers() {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let limit = compute(resources.and_then(|resources| resources.limits.as_ref()), name);
            let request =
                compute(resources.and_then(|resources| resources.requests.as_ref()), name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// CPU shares of a request in thousandths of a core.
pub(crate) fn shares(milli_cpu: i64) -> u64 {
    let shares = milli_cpu.saturating_mul(1024) / 1000;
    u64::try_from(shares.clamp(MIN_SHARES, MAX_SHARES)).unwrap_or(2)
}

/// CPU quota per period of a limit in thousandths of a core.
pub(crate) fn quota_us(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(PERIOD_US) / 1000).max(MIN_QUOTA_US)
}

/// The limits of one container. `node_memory_bytes` scales the OOM score.
pub(crate) fn container_resources(
    spec: &PodSpec,
    container: &Container,
    node_memory_bytes: i64,
) -> Resources {
    let cpu_request = request(container, "cpu").map_or(0, milli);
    let cpu_limit = limit(container, "cpu").map(milli).filter(|amount| *amount > 0);
    let memory_limit = limit(container, "memory").map(value).filter(|bytes| *bytes > 0);
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota_us: cpu_limit.map(quota_us),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US.unsigned_abs()),
        memory_limit_bytes: memory_limit,
        // Upstream's `NoSwap`, the default: a limit of the memory would not hold else.
        swap_limit_bytes: Some(0),
        pids_limit: None,
        cpuset_cpus: None,
        oom_score_adj: Some(oom_score_adj(spec, container, node_memory_bytes)),
    }
}

/// The limits of the whole pod: a sum only where every container has one.
pub(crate) fn pod_resources(spec: &PodSpec, pids_limit: Option<i64>) -> Resources {
    let total = |name: &str, of: fn(&Quantity) -> i64| -> Option<i64> {
        let amounts: Option<Vec<i64>> = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .map(|container| limit(container, name).map(of).filter(|amount| *amount > 0))
            .collect();
        // Init containers run before the others: the larger of the two sums bounds both, so the plain sum is safe.
        amounts.map(|amounts| amounts.into_iter().fold(0, i64::saturating_add))
    };
    let requests = spec.containers.iter().map(|container| request(container, "cpu").map_or(0, milli));
    let cpu_limit = total("cpu", milli);
    Resources {
        cpu_shares: Some(shares(requests.fold(0, i64::saturating_add))),
        cpu_quota_us: cpu_limit.map(quota_us),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US.unsigned_abs()),
        memory_limit_bytes: total("memory", value),
        swap_limit_bytes: None,
        pids_limit,
        cpuset_cpus: None,
        oom_score_adj: None,
    }
}

/// How willingly the kernel kills the container when memory is short.
fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> i32 {
    if spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL) {
        return -997;
    }
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let memory = request(container, "memory").map_or(0, value);
            let share = i128::from(memory) * 1000 / i128::from(node_memory_bytes.max(1));
            // Between what is guaranteed and what is best effort.
            i32::try_from(1000 - share).unwrap_or(2).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(serde_json::json!({ "containers": json })).unwrap()
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        let class = |resources: serde_json::Value| {
            qos_class(&spec(serde_json::json!([{ "name": "a", "resources": resources }])))
        };
        assert_eq!(class(serde_json::json!({})), "BestEffort");
        assert_eq!(class(serde_json::json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(
            class(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})),
            "Burstable"
        );
        let two = serde_json::json!([
            { "name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}} }, { "name": "b" }
        ]);
        assert_eq!(qos_class(&spec(two)), "Burstable");
    }

    #[test]
    fn cpu_and_memory_reach_the_kernels_units() {
        let pod = spec(serde_json::json!([{ "name": "a", "resources": {
            "requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1500m", "memory": "2Gi"} } }]));
        let resources = container_resources(&pod, &pod.containers[0], 8 << 30);
        assert_eq!(resources.cpu_shares, Some(256));
        assert_eq!(resources.cpu_quota_us, Some(150_000));
        assert_eq!(resources.memory_limit_bytes, Some(2 << 30));
        assert_eq!(resources.swap_limit_bytes, Some(0));
        assert_eq!(resources.oom_score_adj, Some(875));
        assert_eq!(shares(0), 2);
        assert_eq!(quota_us(1), 1000);
    }

    #[test]
    fn a_pod_limit_needs_every_containers_limit() {
        let partly = spec(serde_json::json!([
            { "name": "a", "resources": {"limits": {"memory": "1Gi"}} }, { "name": "b" }]));
        assert_eq!(pod_resources(&partly, None).memory_limit_bytes, None);
        let wholly = spec(serde_json::json!([
            { "name": "a", "resources": {"limits": {"memory": "1Gi"}} },
            { "name": "b", "resources": {"limits": {"memory": "1Gi"}} }]));
        assert_eq!(pod_resources(&wholly, Some(100)).memory_limit_bytes, Some(2 << 30));
    }
}
