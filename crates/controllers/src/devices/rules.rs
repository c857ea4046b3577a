//! What the status of a DeviceTaintRule says of the pods that have to leave because of it. Pure.
//! Source: `maybeUpdateRuleStatus`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::taints::{NO_EXECUTE, Rule, RuleCondition};

/// Source: `DeviceTaintConditionEvictionInProgress`.
const IN_PROGRESS: &str = "EvictionInProgress";
/// How long the status stands before it is written again. Source: `ruleStatusPeriod`.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// What is counted for a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Devices in slices that it covers.
    pub(super) published: usize,
    /// Devices of claims that it covers.
    pub(super) allocated: usize,
    /// Pods that have to leave, or would have to.
    pub(super) pods: usize,
    /// The namespaces of these.
    pub(super) namespaces: usize,
    /// Pods that left because of it since this process began.
    pub(super) evicted: u64,
}

/// How long the present status is to stand yet; nothing if it may be written.
pub(super) fn stands(rule: &Rule, now: Timestamp) -> Option<Duration> {
    let known = known(rule)?;
    let since = Duration::try_from(now.duration_since(known.last_transition_time?)).unwrap_or_default();
    let left = PERIOD.checked_sub(since).filter(|left| !left.is_zero());
    left.filter(|_| known.observed_generation == rule.metadata.generation)
}

fn known(rule: &Rule) -> Option<&RuleCondition> {
    rule.status.conditions.iter().find(|held| held.r#type == IN_PROGRESS)
}

/// Whether pods have to be counted to say how a rule does.
pub(super) fn counts_pods(rule: &Rule) -> bool {
    rule.is_evicting() || is_trial(rule)
}

/// Whether a rule only asks what would happen.
pub(super) fn is_trial(rule: &Rule) -> bool {
    rule.spec.taint.effect == "None"
}

/// The condition that a rule is to have, if it has another.
pub(super) fn condition(rule: &Rule, counts: Counts, now: Timestamp) -> Option<Value> {
    let (status, reason, mut message) = match rule.spec.taint.effect.as_str() {
        NO_EXECUTE if counts.pods > 0 => ("True", "PodsPendingEviction", pending(counts)),
        NO_EXECUTE if counts.evicted > 0 => ("False", "Completed", String::new()),
        NO_EXECUTE => ("False", "NotStarted", String::new()),
        "None" => ("False", "NoEffect", trial(counts)),
        _ => ("False", "OtherEffect", "Eviction only happens for the NoExecute effect.".to_owned()),
    };
    if counts.evicted > 0 {
        if !message.is_empty() {
            message.push(' ');
        }
        let pods = if counts.evicted == 1 { "pod" } else { "pods" };
        message.push_str(&format!("{} {pods} evicted since starting the controller.", counts.evicted));
    }
    let same = known(rule).is_some_and(|known| {
        known.status == status
            && known.reason == reason
            && known.message == message
            && known.observed_generation == rule.metadata.generation
    });
    (!same).then(|| {
        json!({
            "type": IN_PROGRESS, "status": status, "reason": reason, "message": message,
            "observedGeneration": rule.metadata.generation,
            "lastTransitionTime": reconcile::time::seconds(now),
        })
    })
}

fn namespaces(count: usize) -> String {
    if count == 1 { "1 namespace".to_owned() } else { format!("{count} different namespaces") }
}

fn pending(counts: Counts) -> String {
    let pods = if counts.pods == 1 { "1 pod needs".to_owned() } else { format!("{} pods need", counts.pods) };
    format!("{pods} to be evicted in {}.", namespaces(counts.namespaces))
}

fn trial(counts: Counts) -> String {
    let devices = |count: usize| if count == 1 { "device" } else { "devices" };
    let pods = if counts.pods == 1 { "pod" } else { "pods" };
    format!(
        "{} published {} selected. {} allocated {} selected. {} {pods} would be evicted in {} if the effect was \
         NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
        counts.published,
        devices(counts.published),
        counts.allocated,
        devices(counts.allocated),
        counts.pods,
        namespaces(counts.namespaces),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(effect: &str) -> Rule {
        serde_json::from_value(
            json!({ "metadata": { "generation": 2 }, "spec": { "taint": { "effect": effect } } }),
        )
        .unwrap()
    }

    #[test]
    fn the_condition_tells_how_far_eviction_is() {
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let said = |effect: &str, counts: Counts| {
            let condition = condition(&rule(effect), counts, now).unwrap();
            let field = |name: &str| condition[name].as_str().unwrap().to_owned();
            [field("status"), field("reason"), field("message")]
        };
        assert_eq!(said("NoExecute", Counts::default()), ["False", "NotStarted", ""]);
        assert_eq!(
            said("NoExecute", Counts { pods: 2, namespaces: 1, evicted: 1, ..Counts::default() }),
            [
                "True",
                "PodsPendingEviction",
                "2 pods need to be evicted in 1 namespace. 1 pod evicted since starting the controller."
            ]
        );
        assert_eq!(
            said("NoExecute", Counts { evicted: 3, ..Counts::default() }),
            ["False", "Completed", "3 pods evicted since starting the controller."]
        );
        let trial = said("None", Counts { published: 1, allocated: 2, pods: 1, namespaces: 0, evicted: 0 });
        assert_eq!(trial[1], "NoEffect");
        assert!(
            trial[2].starts_with(
                "1 published device selected. 2 allocated devices selected. 1 pod would be evicted in 0 different \
                 namespaces if"
            ),
            "{}",
            trial[2]
        );
        assert_eq!(said("NoSchedule", Counts::default())[1], "OtherEffect");
    }

    #[test]
    fn the_status_is_written_where_it_differs_and_not_all_the_time() {
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let mut held = rule("NoExecute");
        assert_eq!(stands(&held, now), None);
        let written = condition(&held, Counts::default(), now).unwrap();
        held.status.conditions.push(serde_json::from_value(written).unwrap());
        assert_eq!(condition(&held, Counts::default(), now), None);
        assert_eq!(stands(&held, now + Duration::from_secs(4)), Some(Duration::from_secs(6)));
        assert_eq!(stands(&held, now + PERIOD), None);
        held.metadata.generation = 3;
        assert_eq!(stands(&held, now), None);
    }
}
