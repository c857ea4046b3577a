//! Which failures count, and which successes suffice. Source: `pod_failure_policy.go`, `success_policy.go`.

use super::indexes::Indexes;
use super::types::{ConditionPattern, ExitCodes, FailurePolicy, SuccessPolicy};
use crate::pods::{ContainerStatus, Pod};

/// What the policy makes of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts. So does what no rule applies to.
    Count,
    /// It does not count.
    Ignore,
    /// It counts, and its index has failed.
    FailIndex,
    /// It counts, and the Job has failed: why.
    FailJob(String),
}

impl Verdict {
    /// Whether the failure counts towards the limits.
    pub(super) fn counts(&self) -> bool {
        *self != Self::Ignore
    }
}

/// The actions that are known. After one of the future the next rule may apply.
const ACTIONS: [&str; 4] = ["Ignore", "Count", "FailIndex", "FailJob"];

/// The first rule that applies to a failed pod: its place, its action, and the sentence about why.
fn rule<'p>(policy: Option<&'p FailurePolicy>, pod: &Pod) -> Option<(usize, &'p str, String)> {
    let rules = policy.map_or(&[][..], |policy| &policy.rules).iter().enumerate();
    rules.filter(|(_, rule)| ACTIONS.contains(&rule.action.as_str())).find_map(|(place, rule)| {
        let found = match &rule.on_exit_codes {
            Some(codes) => ended_so(pod, codes),
            None => has_condition(pod, &rule.on_pod_conditions),
        };
        Some((place, rule.action.as_str(), found?))
    })
}

/// What a policy makes of a failed pod.
pub(super) fn judge(policy: Option<&FailurePolicy>, pod: &Pod) -> Verdict {
    match rule(policy, pod) {
        Some((_, "Ignore", _)) => Verdict::Ignore,
        Some((_, "FailIndex", _)) => Verdict::FailIndex,
        Some((place, "FailJob", found)) => {
            Verdict::FailJob(format!("{found} matching FailJob rule at index {place}"))
        }
        _ => Verdict::Count,
    }
}

/// The action of the rule that applies to a failed pod, if one does.
pub(super) fn applied<'p>(policy: Option<&'p FailurePolicy>, pod: &Pod) -> Option<&'p str> {
    rule(policy, pod).map(|(_, action, _)| action)
}

/// The sentence about the first container whose end a rule is about.
fn ended_so(pod: &Pod, codes: &ExitCodes) -> Option<String> {
    let matching = |status: &ContainerStatus| {
        let code = status.state.terminated.as_ref()?.exit_code;
        let named = codes.container_name.as_ref().is_none_or(|name| *name == status.name);
        let listed = codes.values.contains(&code);
        let applies = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (named && code != 0 && applies).then(|| {
            let (name, meta) = (&status.name, &pod.metadata);
            format!("Container {name} for pod {}/{} failed with exit code {code}", meta.namespace, meta.name)
        })
    };
    pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses).find_map(matching)
}

/// The sentence about the first condition that a rule is about.
fn has_condition(pod: &Pod, patterns: &[ConditionPattern]) -> Option<String> {
    let condition = pod.status.conditions.iter().find(|held| {
        patterns.iter().any(|pattern| pattern.r#type == held.r#type && pattern.status == held.status)
    })?;
    let meta = &pod.metadata;
    Some(format!("Pod {}/{} has condition {}", meta.namespace, meta.name, condition.r#type))
}

/// The sentence about the first rule that is met.
pub(super) fn suffices(policy: Option<&SuccessPolicy>, succeeded: &Indexes, bound: i64) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = policy?.rules.iter().position(|rule| match &rule.succeeded_indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, bound);
            let reached = wanted.overlap(succeeded);
            let all = reached == wanted.len();
            !wanted.is_empty() && (all || rule.succeeded_count.is_some_and(|count| reached >= count))
        }
        None => rule.succeeded_count.is_some_and(|count| succeeded.len() >= count),
    })?;
    Some(format!("Matched rules at index {met}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "namespace": "ns", "name": "p" }, "status": status }))
            .unwrap()
    }

    fn exited(main: i64, init: i64) -> Pod {
        let ended = |name: &str, code: i64| json!([{ "name": name, "state": { "terminated": { "exitCode": code } } }]);
        pod(json!({ "containerStatuses": ended("main", main), "initContainerStatuses": ended("init", init) }))
    }

    #[test]
    fn the_first_rule_that_applies_counts() {
        let policy: FailurePolicy = serde_json::from_value(json!({ "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            { "action": "FailJob", "onExitCodes": { "containerName": "main", "operator": "In", "values": [42, 43] } },
            { "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [7] } },
            { "action": "Ignore", "onExitCodes": { "containerName": "init", "operator": "NotIn", "values": [1, 2] } },
            { "action": "FailJob", "onPodConditions": [{ "type": "Bad", "status": "False" }] },
        ] }))
        .unwrap();
        let condition =
            |kind: &str, status: &str| pod(json!({ "conditions": [{ "type": kind, "status": status }] }));
        let fail = |why: &str| Verdict::FailJob(why.to_owned());
        for (pod, verdict) in [
            (condition("DisruptionTarget", "True"), Verdict::Ignore),
            (condition("DisruptionTarget", "False"), Verdict::Count),
            (condition("Bad", "False"), fail("Pod ns/p has condition Bad matching FailJob rule at index 4")),
            (
                exited(42, 0),
                fail("Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1"),
            ),
            (exited(0, 42), Verdict::Ignore),
            (exited(0, 7), Verdict::FailIndex),
            (exited(9, 1), Verdict::Count),
            // Success is no failure, also where it is not listed.
            (exited(1, 0), Verdict::Count),
            (pod(json!({ "containerStatuses": [{ "name": "main" }] })), Verdict::Count),
        ] {
            assert_eq!(judge(Some(&policy), &pod), verdict, "{:?}", pod.status);
        }
        assert_eq!(judge(None, &exited(42, 0)), Verdict::Count);
    }

    #[test]
    fn a_rule_of_success_is_met_by_indexes_or_by_their_number() {
        let met = |rules: Value, succeeded: &str| {
            let policy: SuccessPolicy = serde_json::from_value(json!({ "rules": rules })).unwrap();
            suffices(Some(&policy), &Indexes::parse(succeeded, 10), 10)
        };
        let at = |place: usize| Some(format!("Matched rules at index {place}"));
        let leader = json!({ "succeededIndexes": "0" });
        let some = json!({ "succeededIndexes": "1-4,8", "succeededCount": 2 });
        let many = json!({ "succeededCount": 5 });
        assert_eq!(met(json!([leader]), "0"), at(0));
        assert_eq!(met(json!([leader]), "1-9"), None);
        assert_eq!(met(json!([leader, some]), "4,8"), at(1));
        assert_eq!(met(json!([some]), "4,9"), None);
        assert_eq!(met(json!([some, many]), "5-9"), at(1));
        assert_eq!(met(json!([{ "succeededIndexes": "20" }]), "0-9"), None);
        assert_eq!(met(json!([{ "succeededCount": 0 }]), ""), None);
    }
}
