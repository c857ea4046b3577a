//! Whether a container runs again after its end, by its own rules, its own policy or its pod's.
//! Source: KEP-5307, KEP-5532, `ContainerShouldRestart` in `pkg/api/v1/pod`.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

use super::{ContainerRecord, PodView, RestartPolicy};

const RESTART: &str = "Restart";
/// The pod begins anew, in its place.
const RESTART_ALL: &str = "RestartAllContainers";

/// Whether a container that has ended with `code` is to run again. Rules count only for who has a policy of its own, as
/// the API demands; the first that speaks of the code decides.
pub(crate) fn restarts(pod: &PodView, container: &Container, code: i32) -> bool {
    if matches!(action(container, code), Some(RESTART | RESTART_ALL)) {
        return true;
    }
    let own = container.restart_policy.as_deref();
    match own.and_then(RestartPolicy::named).unwrap_or_else(|| pod.restart_policy()) {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

/// What the container's rules say of an exit code.
fn action(container: &Container, code: i32) -> Option<&str> {
    container.restart_policy.as_ref()?;
    let mut rules = container.restart_policy_rules.iter().flatten();
    rules.find(|rule| speaks_of(rule, code)).map(|rule| rule.action.as_str())
}

/// Whether an end of a container asks all of the pod to begin anew.
fn restarts_all(pod: &PodView, record: &ContainerRecord) -> bool {
    let (Some(exit), Some((_, container))) = (record.exit(), pod.container(&record.name)) else {
        return false;
    };
    action(container, exit.code) == Some(RESTART_ALL)
}

/// How often the pod was asked to begin anew, as far as the runtime remembers. Runs carry the number under which they were
/// made: no clock is asked which came first.
pub(crate) fn epoch(pod: &PodView, containers: &[ContainerRecord]) -> u32 {
    let epochs =
        containers.iter().map(|record| record.epoch.saturating_add(restarts_all(pod, record).into()));
    epochs.max().unwrap_or(0)
}

/// Whether a run was ended because another one's end has asked the pod to begin anew. `now`: the pod's [`epoch`].
pub(crate) fn ended_for_anew(pod: &PodView, record: &ContainerRecord, now: u32) -> bool {
    record.epoch < now && record.exit().is_some_and(|exit| exit.code != 0) && !restarts_all(pod, record)
}

fn speaks_of(rule: &ContainerRestartRule, code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else { return false };
    let listed = codes.values.iter().flatten().any(|value| *value == code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn rules_come_before_the_containers_policy_and_that_before_the_pods() {
        let rule = |operator: &str, values: Value| json!({"action": "Restart", "exitCodes": {"operator": operator, "values": values}});
        for (of_pod, own, rules, again, never) in [
            ("Always", json!(null), json!(null), vec![0, 1], vec![]),
            ("OnFailure", json!(null), json!(null), vec![1], vec![0]),
            ("Always", json!("Never"), json!(null), vec![], vec![0, 1]),
            ("Never", json!("Always"), json!(null), vec![0, 1], vec![]),
            ("Never", json!("OnFailure"), json!(null), vec![1, 137], vec![0]),
            ("Never", json!("Never"), json!([rule("In", json!([42, 43]))]), vec![42, 43], vec![0, 1]),
            ("Always", json!("Never"), json!([rule("NotIn", json!([0]))]), vec![1, 42], vec![0]),
            (
                "Never",
                json!("Never"),
                json!([rule("In", json!([1])), rule("In", json!([2]))]),
                vec![1, 2],
                vec![3],
            ),
            ("Never", json!("OnFailure"), json!([rule("In", json!([0]))]), vec![0, 1], vec![]),
            ("Never", json!("Never"), json!([rule("Like", json!([1]))]), vec![], vec![1]),
            (
                "Never",
                json!("Never"),
                json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [5]}}]),
                vec![5],
                vec![0, 1],
            ),
        ] {
            let pod = pod(json!({"restartPolicy": of_pod,
                "containers": [{"name": "a", "restartPolicy": own, "restartPolicyRules": rules}]}));
            let restarts = |code: &i32| restarts(&pod, &pod.spec.containers[0], *code);
            assert!(again.iter().all(restarts), "{of_pod} {own} {rules} {again:?}");
            assert!(!never.iter().any(restarts), "{of_pod} {own} {rules} {never:?}");
        }
    }
}
