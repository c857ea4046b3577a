//! Whether a container runs again after its end, by its own rules, its own policy or its pod's.
//! Source: KEP-5307, `ContainerShouldRestart` in `pkg/api/v1/pod`.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

use super::{PodView, RestartPolicy};

/// Whether a container that has ended with `code` is to run again. Rules count only for who has a policy of its own, as
/// the API demands; the first that speaks of the code decides.
pub(crate) fn restarts(pod: &PodView, container: &Container, code: i32) -> bool {
    let own = container.restart_policy.as_deref();
    let rules = container.restart_policy_rules.iter().flatten();
    if own.is_some() && rules.into_iter().any(|rule| rule.action == "Restart" && speaks_of(rule, code)) {
        return true;
    }
    match own.and_then(RestartPolicy::named).unwrap_or_else(|| pod.restart_policy()) {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
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
        ] {
            let pod = pod(json!({"restartPolicy": of_pod,
                "containers": [{"name": "a", "restartPolicy": own, "restartPolicyRules": rules}]}));
            let restarts = |code: &i32| restarts(&pod, &pod.spec.containers[0], *code);
            assert!(again.iter().all(restarts), "{of_pod} {own} {rules} {again:?}");
            assert!(!never.iter().any(restarts), "{of_pod} {own} {rules} {never:?}");
        }
    }
}
