//! What has to be set so that a pod's groups have what it was granted, and in which order: a group is never narrower than
//! what is in it. Pure. Source: `doPodResizeAction` in `pkg/kubelet/kuberuntime`.

use engine_api::Resources;
use k8s_openapi::api::core::v1::Container;

use crate::cpus::limits::{container_resources, pod_resources};
use crate::pod::plan::latest;
use crate::pod::spec::NodeFacts;
use crate::pod::{ContainerRecord, PodView};

/// One container that gets something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) id: String,
    pub(crate) name: String,
    /// What is set; a limit that is to go is said so.
    pub(crate) resources: Resources,
    /// The new limit of its memory, where that is less than before.
    pub(crate) memory_shrinks_to: Option<i64>,
}

/// What has to be done for a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Containers that have to begin anew, by name and id, since they asked for that.
    pub(crate) restart: Vec<(String, String)>,
    /// What the pod's group is given first: room for what containers had and will have.
    pub(crate) room: Resources,
    /// Those whose limits shrink come first.
    pub(crate) changes: Vec<Change>,
    /// What the pod's group has then: what it was granted, or that room while somebody has to begin anew.
    pub(crate) pod: Resources,
}

/// The limits of a pod's group; one that it has not is said so.
pub(crate) fn group_limits(pod: &PodView, facts: &NodeFacts) -> Resources {
    let limits = pod_resources(pod, facts.pod_pids_limit);
    Resources {
        cpu_quota_us: limits.cpu_quota_us.or(Some(-1)),
        memory_limit_bytes: limits.memory_limit_bytes.or(Some(-1)),
        ..limits
    }
}

/// Compares what containers that run have with what the pod was granted.
pub(crate) fn steps(pod: &PodView, records: &[ContainerRecord], facts: &NodeFacts) -> Steps {
    let mut steps = Steps { pod: group_limits(pod, facts), ..Steps::default() };
    // Ephemeral ones as well: they ask for nothing, but have the limits of a pod that has its own.
    for (_, container) in pod.containers() {
        let Some(record) = latest(records, &container.name).filter(|record| record.is_running()) else {
            continue;
        };
        let wanted = container_resources(pod, container, facts.memory_bytes);
        let had = &record.resources;
        let (cpu, memory) = (cpu_of(had) != cpu_of(&wanted), memory_of(had) != memory_of(&wanted));
        if cpu && restarts_for(container, "cpu") || memory && restarts_for(container, "memory") {
            steps.restart.push((container.name.clone(), record.id.clone()));
        } else if cpu || memory {
            steps.changes.push(change(container, record, wanted));
        }
    }
    steps.changes.sort_by_key(|change| change.memory_shrinks_to.is_none());
    steps.room = match steps.changes.is_empty() && steps.restart.is_empty() {
        true => steps.pod.clone(),
        false => room(&steps.pod, records),
    };
    if !steps.restart.is_empty() {
        steps.pod.clone_from(&steps.room);
    }
    steps
}

fn change(container: &Container, record: &ContainerRecord, wanted: Resources) -> Change {
    let (before, after) = (memory_of(&record.resources), memory_of(&wanted));
    let shrinks = after.filter(|after| before.is_none_or(|before| *after < before));
    let mut resources = wanted;
    // A limit that is left out is left as it is.
    resources.cpu_quota_us = resources.cpu_quota_us.or(record.resources.cpu_quota_us.map(|_| -1));
    resources.memory_limit_bytes =
        resources.memory_limit_bytes.or(record.resources.memory_limit_bytes.map(|_| -1));
    Change { id: record.id.clone(), name: container.name.clone(), resources, memory_shrinks_to: shrinks }
}

/// Shares, quota and period.
fn cpu_of(resources: &Resources) -> (Option<u64>, Option<(i64, Option<u64>)>) {
    let quota = resources.cpu_quota_us.filter(|quota| *quota > 0);
    (resources.cpu_shares, quota.map(|quota| (quota, resources.cpu_period_us)))
}

fn memory_of(resources: &Resources) -> Option<i64> {
    resources.memory_limit_bytes.filter(|bytes| *bytes > 0)
}

/// Whether a container wants to begin anew where it gets more or less of a resource. Source: `resizePolicy`, KEP-1287.
fn restarts_for(container: &Container, resource: &str) -> bool {
    let mut policies = container.resize_policy.iter().flatten();
    policies.any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
}

/// The limits of a pod while its containers have some of the old and some of the new: at least those that it is to have,
/// and none where it is not known how much that is.
fn room(wanted: &Resources, records: &[ContainerRecord]) -> Resources {
    let had = |of: fn(&Resources) -> Option<i64>| -> Option<i64> {
        let running = records.iter().filter(|record| record.is_running());
        running
            .map(|record| of(&record.resources))
            .try_fold(0_i64, |sum, amount| Some(sum.saturating_add(amount?)))
    };
    let larger = |wanted: Option<i64>, had: Option<i64>| {
        wanted.zip(had).map_or(-1, |(wanted, had)| wanted.saturating_add(had))
    };
    let quota = |resources: &Resources| resources.cpu_quota_us.filter(|quota| *quota > 0);
    Resources {
        cpu_quota_us: Some(larger(quota(wanted), had(quota))),
        memory_limit_bytes: Some(larger(memory_of(wanted), had(memory_of))),
        ..wanted.clone()
    }
}

/// Why limits of memory cannot shrink: somebody uses more. `used`: what each container that is to change uses, and what
/// all of the pod does. Source: `validateMemoryResizeAction`.
pub(crate) fn memory_refusal(
    steps: &Steps,
    used: impl Fn(&str) -> Option<u64>,
    used_by_pod: u64,
) -> Option<String> {
    let shrinking = || steps.changes.iter().filter_map(|change| Some((change, change.memory_shrinks_to?)));
    let below = |limit: i64, used: u64| u64::try_from(limit).is_ok_and(|limit| limit < used);
    let of_pod =
        memory_of(&steps.pod).filter(|limit| shrinking().next().is_some() && below(*limit, used_by_pod));
    let of_pod = of_pod.map(|limit| {
        format!("attempting to set pod memory limit ({limit}) below current usage ({used_by_pod})")
    });
    let of_containers = shrinking().filter_map(|(change, limit)| {
        let used = used(&change.id).filter(|used| below(limit, *used))?;
        Some(format!(
            "attempting to set container \"{}\" memory limit ({limit}) below current usage ({used})",
            change.name
        ))
    });
    let refusals: Vec<String> = of_pod.into_iter().chain(of_containers).collect();
    match refusals.as_slice() {
        [] => None,
        [one] => Some(format!("cannot decrease memory limits: {one}")),
        several => Some(format!("cannot decrease memory limits: [{}]", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::{NODE_MEMORY, pod, record, running};

    fn facts() -> NodeFacts {
        NodeFacts {
            memory_bytes: NODE_MEMORY,
            pod_pids_limit: None,
            seccomp_profiles: "/p".into(),
            log_root: "/l".into(),
        }
    }

    fn sized(cpu: &str, memory: &str) -> Value {
        let amounts = json!({ "cpu": cpu, "memory": memory });
        json!({ "requests": amounts, "limits": amounts })
    }

    fn two(a: Value, b: Value) -> PodView {
        let policy = json!([{ "resourceName": "cpu", "restartPolicy": "NotRequired" },
            { "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
        pod(
            json!({ "containers": [{ "name": "a", "resources": a }, { "name": "b", "resources": b, "resizePolicy": policy }] }),
        )
    }

    #[test]
    fn nothing_is_done_where_all_have_what_was_granted() {
        let pod = two(sized("1", "64Mi"), json!({}));
        let records = [record(&pod, "a", 0, running(0)), record(&pod, "b", 0, running(0))];
        let steps = steps(&pod, &records, &facts());
        assert!(steps.changes.is_empty() && steps.restart.is_empty() && steps.room == steps.pod);
    }

    #[test]
    fn who_shrinks_comes_first_within_room_for_all() {
        let before = two(sized("1", "64Mi"), sized("1", "64Mi"));
        let records = [record(&before, "a", 0, running(0)), record(&before, "b", 0, running(0))];
        let steps = steps(&two(sized("2", "32Mi"), sized("500m", "64Mi")), &records, &facts());
        assert_eq!(steps.restart, []);
        let changes: Vec<_> = steps
            .changes
            .iter()
            .map(|change| (change.name.as_str(), change.resources.cpu_quota_us, change.memory_shrinks_to))
            .collect();
        assert_eq!(changes, [("a", Some(200_000), Some(32 << 20)), ("b", Some(50_000), None)]);
        assert_eq!((steps.pod.cpu_quota_us, steps.pod.memory_limit_bytes), (Some(250_000), Some(96 << 20)));
        assert!(steps.room.cpu_quota_us >= Some(250_000) && steps.room.memory_limit_bytes >= Some(128 << 20));
    }

    #[test]
    fn whoever_has_the_limits_of_the_pod_shrinks_with_it() {
        let sized = |cpu: &str| {
            pod(json!({ "containers": [{ "name": "a" }], "ephemeralContainers": [{ "name": "debugger" }],
                "resources": sized(cpu, "64Mi") }))
        };
        let before = sized("1");
        let records = ["a", "debugger"].map(|name| record(&before, name, 0, running(0)));
        let steps = steps(&sized("500m"), &records, &facts());
        let changes =
            steps.changes.iter().map(|change| (change.name.as_str(), change.resources.cpu_quota_us));
        assert_eq!(changes.collect::<Vec<_>>(), [("a", Some(50_000)), ("debugger", Some(50_000))]);
        assert_eq!(steps.pod.cpu_quota_us, Some(50_000));
    }

    #[test]
    fn who_asked_for_it_begins_anew() {
        let before = two(json!({}), sized("1", "64Mi"));
        let records = [record(&before, "b", 0, running(0))];
        let of = |cpu: &str, memory: &str| steps(&two(json!({}), sized(cpu, memory)), &records, &facts());
        assert_eq!((of("2", "64Mi").restart.len(), of("2", "64Mi").changes.len()), (0, 1));
        assert_eq!(
            (of("1", "32Mi").restart, of("1", "32Mi").changes.len()),
            (vec![("b".to_owned(), "b-0".to_owned())], 0)
        );
    }

    #[test]
    fn a_limit_that_goes_is_said_to() {
        let before = two(sized("1", "64Mi"), json!({}));
        let records = [record(&before, "a", 0, running(0))];
        let steps = steps(&two(json!({ "requests": { "cpu": "1" } }), json!({})), &records, &facts());
        let set = &steps.changes[0].resources;
        assert_eq!((set.cpu_quota_us, set.memory_limit_bytes), (Some(-1), Some(-1)));
        assert_eq!((steps.room.cpu_quota_us, steps.room.memory_limit_bytes), (Some(-1), Some(-1)));
    }

    #[test]
    fn memory_in_use_is_not_taken_away() {
        let before = two(sized("1", "64Mi"), json!({}));
        let records = [record(&before, "a", 0, running(0))];
        let steps = steps(&two(sized("1", "32Mi"), json!({})), &records, &facts());
        let refusal = |used: u64| memory_refusal(&steps, |_| Some(used), used);
        assert_eq!(refusal(32 << 20), None);
        let (limit, used) = (32 << 20, 40 << 20);
        let container =
            format!("attempting to set container \"a\" memory limit ({limit}) below current usage ({used})");
        assert_eq!(refusal(used), Some(format!("cannot decrease memory limits: {container}")));
        let whole = two(sized("1", "32Mi"), sized("1", "1Mi"));
        let both = memory_refusal(&super::steps(&whole, &records, &facts()), |_| Some(used), used).unwrap();
        assert!(
            both.starts_with(
                "cannot decrease memory limits: [attempting to set pod memory limit (34603008) below"
            ),
            "{both}"
        );
    }
}
