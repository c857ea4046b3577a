//! The limits of pods, some of whose containers have CPUs for themselves: those have them whole, without a share of time.
//! Source: `DisableCPUQuotaWithExclusiveCPUs`, `pkg/kubelet/cm/container_manager_linux.go`.

use engine_api::Resources;
use k8s_openapi::api::core::v1::Container;

use crate::pod::PodView;
use crate::pod::resources;

/// The limits of one container. `node_memory_bytes` scales the OOM score.
pub(crate) fn container_resources(pod: &PodView, container: &Container, node_memory_bytes: i64) -> Resources {
    let limits = resources::container_resources(&pod.spec, container, node_memory_bytes);
    if pod.own_cpus.contains(&container.name) { without_quota(limits) } else { limits }
}

/// The limits of the whole pod.
pub(crate) fn pod_resources(pod: &PodView, pids_limit: Option<i64>) -> Resources {
    let limits = resources::pod_resources(&pod.spec, pids_limit);
    if pod.own_cpus.is_empty() { limits } else { without_quota(limits) }
}

fn without_quota(limits: Resources) -> Resources {
    Resources { cpu_quota_us: None, cpu_period_us: None, ..limits }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn who_has_cpus_for_itself_has_them_whole() {
        let sized =
            |name: &str| json!({ "name": name, "resources": { "limits": { "cpu": "1", "memory": "1Mi" } } });
        let mut pod = pod(json!({ "containers": [sized("own"), sized("other")] }));
        let quotas = |pod: &PodView| {
            let of = |at: usize| container_resources(pod, &pod.spec.containers[at], 1).cpu_quota_us;
            [of(0), of(1), pod_resources(pod, None).cpu_quota_us]
        };
        assert_eq!(quotas(&pod), [Some(100_000), Some(100_000), Some(200_000)]);
        pod.own_cpus.insert("own".to_owned());
        assert_eq!(quotas(&pod), [None, Some(100_000), None]);
    }
}
