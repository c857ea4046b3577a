//! How long pods have to end before the machine goes down, by their priority. Pure.
//! Source: `migrateConfig`, `groupByPriority` in `pkg/kubelet/nodeshutdown`, `pkg/kubelet/apis/config/validation`.

use std::path::PathBuf;
use std::time::Duration;

use base::go_duration::{parse_unsigned, show};
use serde_json::{Map, Value, json};

use crate::kubelet_config::taken;
use crate::pod::resources::SYSTEM_CRITICAL;

/// The fields of a KubeletConfiguration that say it.
const FIELDS: [&str; 3] =
    ["shutdownGracePeriod", "shutdownGracePeriodCriticalPods", "shutdownGracePeriodByPodPriority"];

/// What pods of a priority, and above, have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShutdownPeriod {
    /// The least priority.
    pub priority: i32,
    /// How long they have to end.
    #[serde(rename = "shutdownGracePeriodSeconds")]
    pub seconds: i64,
}

/// How pods end before the machine goes down; by default they are not waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// What all have together, …
    pub grace: Duration,
    /// … and what of that the critical ones have for themselves.
    pub critical: Duration,
    /// In place of both.
    pub by_priority: Vec<ShutdownPeriod>,
    /// The socket of the message bus; `None`: the system's own.
    pub bus: Option<PathBuf>,
}

impl ShutdownSettings {
    /// By priority, the least first; none where nobody is waited for.
    pub(super) fn periods(&self) -> Vec<ShutdownPeriod> {
        let seconds = |of: Duration| i64::try_from(of.as_secs()).unwrap_or(i64::MAX);
        let mut periods = self.by_priority.clone();
        if !self.grace.is_zero() {
            periods = vec![
                ShutdownPeriod { priority: 0, seconds: seconds(self.grace.saturating_sub(self.critical)) },
                ShutdownPeriod { priority: SYSTEM_CRITICAL, seconds: seconds(self.critical) },
            ];
        }
        periods.sort_by_key(|period| period.priority);
        periods
    }
}

/// What all groups have together.
pub(super) fn total(periods: &[ShutdownPeriod]) -> Duration {
    let seconds = periods.iter().fold(0_i64, |sum, period| sum.saturating_add(period.seconds));
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The group of a pod: the last that asks for no more than its priority, or else the first.
pub(super) fn group_of(periods: &[ShutdownPeriod], priority: i32) -> usize {
    periods.partition_point(|period| period.priority <= priority).saturating_sub(1)
}

/// As `/configz` tells them.
pub(crate) fn shown(settings: &ShutdownSettings) -> Value {
    let mut shown = json!({
        FIELDS[0]: show(settings.grace),
        FIELDS[1]: show(settings.critical),
    });
    if !settings.by_priority.is_empty() {
        shown[FIELDS[2]] = json!(settings.by_priority);
    }
    shown
}

/// Reads them.
pub(crate) fn from_fields(fields: &Map<String, Value>) -> Result<ShutdownSettings, String> {
    let period = |name: &str| -> Result<Duration, String> {
        let text: Option<String> = taken(fields, name)?;
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Duration::ZERO) };
        let period = parse_unsigned(&text).ok_or_else(|| format!("{name}: {text:?} is no duration"))?;
        if !period.is_zero() && period < Duration::from_secs(1) {
            return Err(format!(
                "invalid configuration: {name} {{{text}}} must be either zero or otherwise >= 1 sec"
            ));
        }
        Ok(period)
    };
    let [grace, critical, _] = FIELDS;
    let (grace, critical) = (period(grace)?, period(critical)?);
    if critical > grace {
        return Err(format!(
            "invalid configuration: shutdownGracePeriodCriticalPods {{{}}} must be <= shutdownGracePeriod {{{}}}",
            show(critical),
            show(grace)
        ));
    }
    let by_priority: Vec<ShutdownPeriod> = taken(fields, FIELDS[2])?.unwrap_or_default();
    if !by_priority.is_empty() && !grace.is_zero() {
        return Err("invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod \
                    at the same time"
            .to_owned());
    }
    if let Some(wrong) = by_priority.iter().find(|period| period.seconds < 0) {
        return Err(format!(
            "shutdownGracePeriodByPodPriority: shutdownGracePeriodSeconds of priority {} must not be negative",
            wrong.priority
        ));
    }
    let mut priorities: Vec<i32> = by_priority.iter().map(|period| period.priority).collect();
    priorities.sort_unstable();
    if let Some(twice) = priorities.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("shutdownGracePeriodByPodPriority: priority {} stands there twice", twice[0]));
    }
    Ok(ShutdownSettings { grace, critical, by_priority, bus: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: Value) -> Result<ShutdownSettings, String> {
        from_fields(fields.as_object().unwrap())
    }

    fn shown(periods: &[ShutdownPeriod]) -> Vec<(i32, i64)> {
        periods.iter().map(|period| (period.priority, period.seconds)).collect()
    }

    #[test]
    fn critical_pods_have_a_part_of_the_time_for_themselves() {
        let settings =
            read(json!({ "shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s" }));
        let periods = settings.unwrap().periods();
        assert_eq!(shown(&periods), [(0, 20), (SYSTEM_CRITICAL, 10)]);
        assert_eq!(total(&periods), Duration::from_secs(30));
        assert_eq!(read(json!({})).unwrap().periods(), []);
    }

    /// Upstream's cases of `Test_groupByPriority`.
    #[test]
    fn pods_go_with_the_next_lower_group() {
        let period = |priority: i32| json!({ "priority": priority, "shutdownGracePeriodSeconds": 10 });
        let by = json!({ "shutdownGracePeriodByPodPriority": [period(2), period(1), period(4), period(3)] });
        let periods = read(by).unwrap().periods();
        let groups = [-1, 0, 1, 2, 3, 4, 5].map(|priority| periods[group_of(&periods, priority)].priority);
        assert_eq!(groups, [1, 1, 1, 2, 3, 4, 4]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let one = json!({ "priority": 1, "shutdownGracePeriodSeconds": 1 });
        for (fields, told) in [
            (
                json!({ "shutdownGracePeriod": "10s", "shutdownGracePeriodCriticalPods": "90s" }),
                "invalid configuration: shutdownGracePeriodCriticalPods {1m30s} must be <= shutdownGracePeriod {10s}",
            ),
            (
                json!({ "shutdownGracePeriod": "500ms" }),
                "invalid configuration: shutdownGracePeriod {500ms} must be either zero or otherwise >= 1 sec",
            ),
            (json!({ "shutdownGracePeriod": "soon" }), "shutdownGracePeriod: \"soon\" is no duration"),
            (
                json!({ "shutdownGracePeriod": "10s", "shutdownGracePeriodByPodPriority": [one] }),
                "invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at \
                 the same time",
            ),
            (
                json!({ "shutdownGracePeriodByPodPriority": [one, one] }),
                "shutdownGracePeriodByPodPriority: priority 1 stands there twice",
            ),
        ] {
            assert_eq!(read(fields), Err(told.to_owned()));
        }
    }
}
