//! Limits and classes: from requests and limits to the kernel's units. The arithmetic is upstream's
//! (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`, `pkg/apis/core/v1/helper/qos`).

use std::collections::BTreeMap;

use api::resources::{Counting, ResourceList, Side, of_pod};
use engine_api::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::ContainerKind;
use super::quantity::{milli, value};
use super::view::init_kind;

const PERIOD_US: i64 = 100_000;
const MIN_QUOTA_US: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// `priority` at and above which a pod is critical to its node.
pub(crate) const SYSTEM_CRITICAL: i32 = 2_000_000_000;
/// The class of pods that the kernel kills last. Source: `scheduling.SystemNodeCritical`.
const NODE_CRITICAL: &str = "system-node-critical";
/// OOM scores of guaranteed and of best-effort containers; all others are between.
const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1000;
const HUGE_PAGES: &str = "hugepages-";

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

/// The containers that a pod begins with.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The amounts for the pod as a whole, if it has any that count. Source: `resourcehelper.IsPodLevelResourcesSet`, KEP-2837.
fn of_whole(spec: &PodSpec) -> Option<&ResourceRequirements> {
    let counts = |amounts: &Option<Amounts>| {
        let mut names = amounts.iter().flatten().map(|(name, _)| name.as_str());
        names.any(|name| matches!(name, "cpu" | "memory") || name.starts_with(HUGE_PAGES))
    };
    spec.resources.as_ref().filter(|whole| counts(&whole.limits) || counts(&whole.requests))
}

/// Whether a pod has amounts as a whole.
pub(crate) fn has_whole_amounts(spec: &PodSpec) -> bool {
    of_whole(spec).is_some()
}

/// The limit that holds for a container: its own, or else the one of its pod. Source: `getCPULimit`, `getMemoryLimit` in
/// `pkg/kubelet/kuberuntime`.
fn limit_within<'a>(spec: &'a PodSpec, container: &'a Container, name: &str) -> Option<&'a Quantity> {
    limit(container, name).or_else(|| of_whole(spec)?.limits.as_ref()?.get(name))
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Source: `ComputePodQOS`.
pub(crate) fn qos_class(spec: &PodSpec) -> &'static str {
    let compute = |amounts: Option<&Amounts>, name: &str| {
        amounts.and_then(|amounts| amounts.get(name)).map(milli).filter(|amount| *amount > 0)
    };
    let whole = of_whole(spec);
    let of_containers =
        containers(spec).filter(|_| whole.is_none()).map(|container| container.resources.as_ref());
    let mut any = false;
    let mut guaranteed = true;
    for resources in whole.map(Some).into_iter().chain(of_containers) {
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

/// What a pod asks for in sum, with its overhead: its containers and sidecars together, or the most that its init
/// containers need on the way there, unless the pod as a whole has an amount of its own.
pub(crate) fn sum(spec: &PodSpec, side: Side) -> ResourceList {
    let of = |containers: Option<&[Container]>| -> Value {
        let containers = containers.unwrap_or_default().iter();
        let seen = containers.map(|container| {
            // A limit alone is a request too, as the API's defaults have it; pods of files have none.
            let resources = container.resources.as_ref();
            let limits = resources.and_then(|resources| resources.limits.as_ref());
            let requests = limits.into_iter().flatten().chain(resources.and_then(|resources| resources.requests.as_ref()).into_iter().flatten());
            let requests: BTreeMap<&String, &Quantity> = requests.collect();
            json!({ "restartPolicy": container.restart_policy, "resources": { "requests": requests, "limits": limits } })
        });
        seen.collect()
    };
    let pod = json!({ "spec": {
        "containers": of(Some(&spec.containers)),
        "initContainers": of(spec.init_containers.as_deref()),
        "resources": spec.resources,
        "overhead": spec.overhead,
    }});
    of_pod(&pod, side, Counting { overhead: true, status: false })
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
    let cpu_limit = limit_within(spec, container, "cpu").map(milli).filter(|amount| *amount > 0);
    let memory_limit = limit_within(spec, container, "memory").map(value).filter(|bytes| *bytes > 0);
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let pages = limits.into_iter().flatten().map(|(name, amount)| (name.as_str(), value(amount)));
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota_us: cpu_limit.map(quota_us),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US.unsigned_abs()),
        memory_limit_bytes: memory_limit,
        // Upstream's `NoSwap`, the default: a limit of the memory would not hold else.
        swap_limit_bytes: Some(0),
        pids_limit: None,
        cpuset_cpus: None,
        hugepages: huge_pages(pages),
        oom_score_adj: Some(oom_score_adj(spec, container, node_memory_bytes)),
    }
}

/// Limits of huge pages in bytes, by the size of a page in bytes.
fn huge_pages<'a>(amounts: impl Iterator<Item = (&'a str, i64)>) -> BTreeMap<u64, u64> {
    let pages = amounts.filter_map(|(name, bytes)| {
        let size: api::quantity::Quantity = name.strip_prefix(HUGE_PAGES)?.parse().ok()?;
        Some((u64::try_from(size.value()).ok()?, u64::try_from(bytes).ok()?))
    });
    pages.collect()
}

/// The limits of the whole pod: a sum only where every container has one. Source: `ResourceConfigForPod`.
pub(crate) fn pod_resources(spec: &PodSpec, pids_limit: Option<i64>) -> Resources {
    let (requests, limits) = (sum(spec, Side::Requests), sum(spec, Side::Limits));
    let amount = |list: &ResourceList, name: &str| list.get(name).copied();
    let is_limited = |name: &str| {
        let whole = of_whole(spec).and_then(|whole| whole.limits.as_ref()?.get(name));
        let each = |container: &Container| limit(container, name).is_some_and(|amount| milli(amount) > 0);
        whole.is_some() || containers(spec).all(each)
    };
    let cpu = amount(&requests, "cpu").map_or(0, |cpu| cpu.milli_value());
    let cpu_limit = amount(&limits, "cpu").filter(|_| is_limited("cpu")).map(|cpu| cpu.milli_value());
    let memory_limit =
        amount(&limits, "memory").filter(|_| is_limited("memory")).map(|memory| memory.value());
    Resources {
        cpu_shares: Some(shares(cpu)),
        cpu_quota_us: cpu_limit.map(quota_us),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US.unsigned_abs()),
        memory_limit_bytes: memory_limit,
        swap_limit_bytes: None,
        pids_limit,
        cpuset_cpus: None,
        hugepages: huge_pages(limits.iter().map(|(name, amount)| (name.as_str(), amount.value()))),
        oom_score_adj: None,
    }
}

/// How willingly the kernel kills the container when memory is short. Source: `GetContainerOOMScoreAdjust`.
fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> i32 {
    let class = if spec.priority_class_name.as_deref() == Some(NODE_CRITICAL) {
        "Guaranteed"
    } else {
        qos_class(spec)
    };
    let score = match class {
        "Guaranteed" => OOM_GUARANTEED,
        "BestEffort" => OOM_BEST_EFFORT,
        _ => {
            let unclaimed = unclaimed_memory(spec);
            let of = |container: &Container| {
                let memory = request(container, "memory").map_or(0, value).saturating_add(unclaimed);
                let share = i128::from(memory) * 1000 / i128::from(node_memory_bytes.max(1));
                i64::try_from(1000 - share).unwrap_or(0)
            };
            let own = of(container);
            // A sidecar does not go before those that it serves.
            let is_sidecar = spec
                .init_containers
                .iter()
                .flatten()
                .any(|init| init.name == container.name && init_kind(init) == ContainerKind::Sidecar);
            let served = spec.containers.iter().map(of).max().filter(|_| is_sidecar);
            // Between what is guaranteed and what is best effort.
            served.map_or(own, |served| own.min(served)).clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
        }
    };
    i32::try_from(score).unwrap_or(0)
}

/// What a pod as a whole asks for beyond its containers' requests, as each of them counts for it.
/// Source: `remainingPodMemReqPerContainer`.
fn unclaimed_memory(spec: &PodSpec) -> i64 {
    let whole = of_whole(spec).and_then(|whole| whole.requests.as_ref()?.get("memory")).map_or(0, value);
    if whole == 0 {
        return 0;
    }
    let claimed = PodSpec { resources: None, overhead: None, ..spec.clone() };
    let claimed = sum(&claimed, Side::Requests).get("memory").map_or(0, |memory| memory.value());
    let count = i64::try_from(containers(spec).count()).unwrap_or(i64::MAX);
    (whole - claimed) / count.max(1)
}

/// The group of all pods, below the engine's own, and those of the classes that have one in it. A pod's own is named after its uid.
pub(crate) const ALL_PODS: &str = "kubepods";

/// The group of a pod, by its class as upstream's cgroupfs driver names it.
pub(crate) fn pod_group(class: &str, uid: &str) -> String {
    match class {
        "Guaranteed" => format!("{ALL_PODS}/pod{uid}"),
        class => format!("{ALL_PODS}/{}/pod{uid}", class.to_lowercase()),
    }
}

/// The group of all pods, with what they may have together. Source: `enforceNodeAllocatableCgroups`.
pub(crate) fn all_pods(milli_cpu: i64, memory_bytes: i64) -> (String, Resources) {
    let limits = Resources {
        cpu_shares: Some(shares(milli_cpu)),
        memory_limit_bytes: Some(memory_bytes).filter(|bytes| *bytes > 0),
        ..Resources::default()
    };
    (ALL_PODS.to_owned(), limits)
}

/// The groups of the classes with their shares: what burstable pods ask for in sum, and the least for best effort.
/// Source: `setCPUCgroupConfig` in `pkg/kubelet/cm/qos_container_manager_linux.go`.
pub(crate) fn class_groups(burstable_milli_cpu: i64) -> [(String, Resources); 2] {
    let with = |class: &str, milli_cpu: i64| {
        let limits = Resources { cpu_shares: Some(shares(milli_cpu)), ..Resources::default() };
        (format!("{ALL_PODS}/{class}"), limits)
    };
    [with("burstable", burstable_milli_cpu), with("besteffort", 0)]
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

    fn whole(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pod_as_a_whole_has_limits_and_a_class_of_its_own() {
        let amounts = json!({ "cpu": "1", "memory": "1Gi" });
        let pod = whole(json!({
            "containers": [{ "name": "a" }, { "name": "b", "resources": { "requests": { "memory": "512Mi" }, "limits": { "cpu": "250m" } } }],
            "resources": { "requests": amounts, "limits": amounts } }));
        assert_eq!(qos_class(&pod), "Guaranteed");
        let limits = pod_resources(&pod, None);
        assert_eq!(
            (limits.cpu_shares, limits.cpu_quota_us, limits.memory_limit_bytes),
            (Some(1024), Some(100_000), Some(1 << 30))
        );
        // A container without a limit of its own has its pod's.
        let [one, other] = [0, 1].map(|index| container_resources(&pod, &pod.containers[index], 8 << 30));
        assert_eq!((one.cpu_quota_us, one.memory_limit_bytes), (Some(100_000), Some(1 << 30)));
        assert_eq!((other.cpu_quota_us, other.memory_limit_bytes), (Some(25_000), Some(1 << 30)));
        let asking = whole(
            json!({ "containers": [{ "name": "a" }], "resources": { "requests": { "memory": "1Gi" } } }),
        );
        assert_eq!(qos_class(&asking), "Burstable");
        assert_eq!(pod_resources(&asking, None).memory_limit_bytes, None);
        let other = whole(
            json!({ "containers": [{ "name": "a" }], "resources": { "requests": { "example.com/x": "1" } } }),
        );
        assert_eq!(qos_class(&other), "BestEffort");
    }

    #[test]
    fn init_containers_count_at_their_most_and_overhead_is_added() {
        let sized = |name: &str, cpu: &str| json!({ "name": name, "resources": { "limits": { "cpu": cpu, "memory": "1Gi" } } });
        let mut sidecar = sized("s", "100m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = whole(json!({
            "containers": [sized("a", "200m")], "initContainers": [sidecar, sized("i", "1")],
            "overhead": { "cpu": "50m", "memory": "1Mi" } }));
        let limits = pod_resources(&pod, Some(100));
        assert_eq!((limits.cpu_quota_us, limits.cpu_shares), (Some(115_000), Some(1177)));
        assert_eq!(limits.memory_limit_bytes, Some((2 << 30) + (1 << 20)));
        assert_eq!(limits.pids_limit, Some(100));
    }

    #[test]
    fn huge_pages_are_limited_by_their_size() {
        let pod = whole(
            json!({ "containers": [{ "name": "a", "resources": { "limits": { "hugepages-2Mi": "4Mi", "cpu": "1" } } }] }),
        );
        let pages = BTreeMap::from([(2 << 20, 4 << 20)]);
        assert_eq!(container_resources(&pod, &pod.containers[0], 1).hugepages, pages);
        assert_eq!(pod_resources(&pod, None).hugepages, pages);
    }

    /// Upstream's cases of `TestGetContainerOOMScoreAdjust`, over a node of 8 GB.
    #[test]
    fn oom_scores_are_upstreams() {
        let asking = |memory: &str| json!({ "requests": { "memory": memory } });
        let named = |name: &str, resources: Value| json!({ "name": name, "resources": resources });
        let mut sidecar = named("s", asking("1Gi"));
        sidecar["restartPolicy"] = "Always".into();
        let score = |spec: Value, name: &str| {
            let spec = whole(spec);
            let container = containers(&spec).find(|container| container.name == name).unwrap();
            oom_score_adj(&spec, container, 8 << 30)
        };
        let served = json!({ "containers": [named("a", asking("4Gi")), named("b", asking("2Gi"))], "initContainers": [sidecar] });
        assert_eq!(
            [score(served.clone(), "a"), score(served.clone(), "b"), score(served.clone(), "s")],
            [500, 750, 750]
        );
        let all = json!({ "containers": [named("a", asking("8Gi")), named("b", json!({}))] });
        assert_eq!([score(all.clone(), "a"), score(all, "b")], [3, 999]);
        assert_eq!(score(json!({ "containers": [named("a", json!({}))] }), "a"), 1000);
        // What the pod asks for beyond its containers is shared by them.
        let shared = json!({ "containers": [named("a", asking("1Gi")), named("b", json!({}))], "resources": asking("5Gi") });
        assert_eq!([score(shared.clone(), "a"), score(shared, "b")], [625, 750]);
        let critical = |class: &str| json!({ "containers": [named("a", asking("4Gi"))], "priority": SYSTEM_CRITICAL, "priorityClassName": class });
        assert_eq!(score(critical("system-node-critical"), "a"), -997);
        assert_eq!(score(critical("system-cluster-critical"), "a"), 500);
    }

    #[test]
    fn groups_are_named_as_upstreams_and_classes_share() {
        assert_eq!(pod_group("Guaranteed", "u"), "kubepods/podu");
        let (group, limits) = all_pods(2000, 1 << 30);
        assert_eq!(
            (group.as_str(), limits.cpu_shares, limits.memory_limit_bytes),
            ("kubepods", Some(2048), Some(1 << 30))
        );
        assert_eq!(pod_group("BestEffort", "u"), "kubepods/besteffort/podu");
        let shares = class_groups(1500).map(|(group, limits)| (group, limits.cpu_shares));
        let wanted = [("kubepods/burstable", 1536), ("kubepods/besteffort", 2)];
        assert_eq!(shares, wanted.map(|(group, shares)| (group.to_owned(), Some(shares))));
    }
}
