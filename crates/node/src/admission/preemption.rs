//! Who has to go so that a critical pod can come: a pure function. Guaranteed pods are spared most, then burstable ones;
//! of one class as few as possible go, and those that ask for least.
//! Source: `pkg/kubelet/preemption/preemption.go`, `kubetypes.Preemptable`.

use super::asked::Asked;

/// `status.reason` of a pod that has to go, and its event's.
pub(crate) const PREEMPTING: &str = "Preempting";
/// What its users are told.
pub(crate) const PREEMPTED: &str = "Preempted in order to admit critical pod";

/// Too little of a resource for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) resource: String,
    pub(super) requested: i128,
    pub(super) used: i128,
    pub(super) capacity: i128,
}

/// So much of a resource has to become free.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Need {
    resource: String,
    amount: i128,
}

type Pod<'a> = (&'a str, &'a Asked);

/// The uids of the pods that have to go; an error in upstream's words if no set of them is enough.
pub(super) fn victims(
    asked: &Asked,
    others: &[Pod<'_>],
    shortages: &[Shortage],
) -> Result<Vec<String>, String> {
    let needs: Vec<Need> = shortages
        .iter()
        .map(|short| Need {
            resource: short.resource.clone(),
            amount: short.requested - (short.capacity - short.used),
        })
        .collect();
    let of = |class: &str| -> Vec<Pod<'_>> {
        others.iter().filter(|(_, other)| yields(other, asked) && other.qos == class).copied().collect()
    };
    let (best_effort, burstable, guaranteed) = (of("BestEffort"), of("Burstable"), of("Guaranteed"));
    let without = |gone: &[&[Pod<'_>]]| still(&needs, &gone.concat());
    let unmet = without(&[&best_effort, &burstable, &guaranteed]);
    if !unmet.is_empty() {
        return Err(not_enough(&unmet));
    }
    // What would be needed of each class if everything below it were gone, and of those below what is left then.
    let guaranteed = nearest(guaranteed, without(&[&best_effort, &burstable]))?;
    let burstable = nearest(burstable, without(&[&best_effort, &guaranteed]))?;
    let best_effort = nearest(best_effort, without(&[&burstable, &guaranteed]))?;
    let all = best_effort.iter().chain(&burstable).chain(&guaranteed);
    Ok(all.map(|(uid, _)| (*uid).to_owned()).collect())
}

/// Whether a pod has to make room for another.
fn yields(pod: &Asked, to: &Asked) -> bool {
    to.critical && !pod.critical
        || pod.priority.zip(to.priority).is_some_and(|(of_pod, of_other)| of_other > of_pod)
}

/// What is still needed once these are gone.
fn still(needs: &[Need], gone: &[Pod<'_>]) -> Vec<Need> {
    let left = |need: &Need| {
        let freed: i128 = gone.iter().map(|(_, pod)| pod.request(&need.resource)).sum();
        let amount = need.amount - freed;
        (amount > 0).then(|| Need { resource: need.resource.clone(), amount })
    };
    needs.iter().filter_map(left).collect()
}

/// Pods that together free what is needed: again and again the one that comes nearest to it.
fn nearest<'a>(mut pods: Vec<Pod<'a>>, mut needs: Vec<Need>) -> Result<Vec<Pod<'a>>, String> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let rank = |(_, pod): &Pod<'_>| (distance(pod, &needs), pod.request("memory"), pod.request("cpu"));
        let order = |one: &(usize, Pod<'_>), other: &(usize, Pod<'_>)| {
            let ((near, memory, cpu), (other_near, other_memory, other_cpu)) = (rank(&one.1), rank(&other.1));
            near.total_cmp(&other_near).then((memory, cpu).cmp(&(other_memory, other_cpu)))
        };
        let Some((at, pod)) = pods.iter().copied().enumerate().min_by(order) else {
            return Err(not_enough(&needs));
        };
        pods.swap_remove(at);
        needs = still(&needs, &[pod]);
        chosen.push(pod);
    }
    Ok(chosen)
}

/// How far a pod is from freeing what is needed: each resource weighs the same.
fn distance(pod: &Asked, needs: &[Need]) -> f64 {
    let of = |need: &Need| {
        let missing = (need.amount - pod.request(&need.resource)).max(0);
        (missing as f64 / need.amount as f64).powi(2)
    };
    needs.iter().map(of).sum()
}

fn not_enough(needs: &[Need]) -> String {
    let needs: String =
        needs.iter().map(|Need { resource, amount }| format!("(res: {resource}, q: {amount}), ")).collect();
    format!(
        "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: \
         [{needs}]"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::admission::tests::asked;

    /// A pod by its name, its class, its cores in thousandths and its memory in MiB.
    fn pod(name: &str, class: &str, cpu: i64, memory: i64) -> (String, Asked) {
        let amounts = json!({ "cpu": format!("{cpu}m"), "memory": format!("{memory}Mi") });
        let resources: Value = match class {
            "BestEffort" => json!({}),
            "Burstable" => json!({ "requests": amounts }),
            _ => json!({ "requests": amounts, "limits": amounts }),
        };
        let spec =
            json!({ "priority": 0, "containers": [{ "name": "c", "image": "x", "resources": resources }] });
        (name.to_owned(), asked(name, spec))
    }

    fn chosen(pods: &[(String, Asked)], needs: &[(&str, i128)]) -> Result<Vec<String>, String> {
        let critical = Asked { critical: true, priority: Some(2_000_000_000), ..Asked::default() };
        let others: Vec<Pod<'_>> = pods.iter().map(|(name, asked)| (name.as_str(), asked)).collect();
        let short = |(resource, amount): &(&str, i128)| Shortage {
            resource: (*resource).to_owned(),
            requested: *amount,
            used: 0,
            capacity: 0,
        };
        victims(&critical, &others, &needs.iter().map(short).collect::<Vec<_>>())
    }

    /// Upstream's cases of `TestEvictPodsToFreeRequests` and `TestGetPodsToPreempt`.
    #[test]
    fn as_few_and_as_small_pods_go_as_possible() {
        let best = || pod("best", "BestEffort", 0, 0);
        let burst = || pod("burst", "Burstable", 100, 100);
        let high = || pod("high-burst", "Burstable", 300, 300);
        let sure = || pod("sure", "Guaranteed", 100, 100);
        let sure_high = || pod("high-sure", "Guaranteed", 300, 300);
        const MI: i128 = 1 << 20;
        let all = || [best(), burst(), high(), sure(), sure_high()];
        type Case<'a> = (Vec<(String, Asked)>, &'a [(&'a str, i128)], &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            (all().into(), &[("cpu", 100)], &["burst"]),
            (all().into(), &[("cpu", 300)], &["high-burst"]),
            (all().into(), &[("cpu", 400)], &["high-burst", "burst"]),
            (all().into(), &[("cpu", 500)], &["high-burst", "burst", "sure"]),
            (all().into(), &[("pods", 1)], &["best"]),
            (all().into(), &[("cpu", 100), ("pods", 2)], &["best", "burst"]),
            (all().into(), &[("cpu", 100), ("memory", 200 * MI)], &["high-burst"]),
            (vec![sure(), sure_high()], &[("memory", 200 * MI)], &["high-sure"]),
        ];
        for (pods, needs, wanted) in cases {
            let (mut found, mut wanted) = (chosen(&pods, needs).unwrap(), wanted.to_vec());
            found.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(found, wanted, "{needs:?}");
        }
        let why = chosen(&[best(), burst()], &[("cpu", 150)]).unwrap_err();
        assert!(why.ends_with("to reclaim resources: [(res: cpu, q: 50), ]"), "{why}");
    }

    #[test]
    fn who_is_critical_yields_to_higher_priorities_alone() {
        let with = |critical, priority| Asked { critical, priority, ..Asked::default() };
        for (pod, to, goes) in [
            (with(false, None), with(true, None), true),
            (with(true, None), with(true, None), false),
            (with(false, Some(5)), with(false, Some(5)), false),
            (with(false, Some(5)), with(false, Some(6)), true),
            (with(true, Some(2_000_000_000)), with(true, Some(2_000_001_000)), true),
            (with(true, Some(2_000_001_000)), with(true, Some(2_000_000_000)), false),
        ] {
            assert_eq!(yields(&pod, &to), goes, "{pod:?} to {to:?}");
        }
    }
}
