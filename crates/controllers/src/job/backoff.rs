//! How long new pods wait after failures. Source: `backoff_utils.go`.

use std::time::Duration;

use base::backoff::Policy;
use jiff::{SignedDuration, Timestamp};

use super::types::failures_before;
use crate::pods::Pod;

/// Source: `DefaultJobPodFailureBackOff`, `MaxJobPodFailureBackOff`.
const PAUSE: Policy = Policy { first: Duration::from_secs(10), max: Duration::from_secs(600) };

/// The failures of a Job since its last success. It is not kept over a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Record {
    failures: u32,
    last: Option<Timestamp>,
}

impl Record {
    /// The record after more pods have ended. Failures before the newest success are forgiven.
    pub(super) fn after(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let success = succeeded.iter().map(|pod| finished_at(pod)).max();
        let before = if success.is_some() { Self::default() } else { self };
        let new = failed
            .iter()
            .map(|pod| finished_at(pod))
            .filter(|at| success.is_none_or(|success| *at > success));
        new.fold(before, |record, at| Self {
            failures: record.failures.saturating_add(1),
            last: record.last.max(Some(at)),
        })
    }

    /// The same as it is kept: a failure in the future, by a clock that has gone back since or by a node's that is ahead,
    /// happened now. Else the next pod would wait until the clock is there.
    pub(super) fn kept(self, now: Timestamp) -> Self {
        Self { last: self.last.map(|last| last.min(now)), ..self }
    }

    /// How long the next pod has to wait.
    pub(super) fn remaining(&self, now: Timestamp) -> Duration {
        self.last.map_or(Duration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How long the successor of a failed pod has to wait, by what that one says about its index.
pub(super) fn remaining_of_index(failed: &Pod, now: Timestamp) -> Duration {
    let (counted, ignored) = failures_before(failed);
    let failures = u32::try_from(counted + ignored + 1).unwrap_or(u32::MAX);
    let at = finished_at(failed);
    // Nobody keeps when it was first seen. One that is further ahead than any pause is of a clock that has gone back.
    if at > now.saturating_add(PAUSE.max).unwrap_or(Timestamp::MAX) {
        return Duration::ZERO;
    }
    remaining(failures, at, now)
}

fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> Duration {
    // A failure in the future is one of a clock that is ahead, or of ours that was: it is as if it happened now.
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    PAUSE.delay(failures).saturating_sub(passed)
}

/// When a pod ended: when its last container did; else when it was no longer ready; else when it was told to; else, if
/// nobody says anything about it, when it was made. Source: `getFinishedTime`.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let unready = || {
        let condition = pod.status.conditions.iter().find(|held| held.r#type == "Ready")?;
        condition.last_transition_time.filter(|_| condition.status == "False")
    };
    let told = || {
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        pod.metadata.deletion_timestamp?.saturating_sub(grace).ok()
    };
    let at = last_container_end(pod).or_else(unready).or_else(told).or(pod.metadata.creation_timestamp);
    at.unwrap_or(Timestamp::UNIX_EPOCH)
}

/// When the last container ended, if all have; those of the init containers that run beside the others count too.
fn last_container_end(pod: &Pod) -> Option<Timestamp> {
    let beside = |name: &str| {
        pod.spec.init_containers.iter().any(|init| init.name == name && init.restart_policy == "Always")
    };
    let sidecars = pod.status.init_container_statuses.iter().filter(|status| beside(&status.name));
    let ends: Option<Vec<Timestamp>> = pod
        .status
        .container_statuses
        .iter()
        .chain(sidecars)
        .map(|status| status.state.terminated.as_ref().and_then(|end| end.finished_at))
        .collect();
    ends?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2024-01-01T01:00:00Z";

    fn ended(at: &str) -> Pod {
        of(
            json!({ "status": { "containerStatuses": [{ "state": { "terminated": { "finishedAt": at } } }] } }),
        )
    }

    fn of(pod: Value) -> Pod {
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn failures_since_the_last_success_double_the_pause() {
        let now: Timestamp = NOW.parse().unwrap();
        let (early, late) = (ended("2024-01-01T00:59:00Z"), ended("2024-01-01T00:59:58Z"));
        let wait = |record: Record| record.remaining(now).as_secs();
        let one = Record::default().after(&[], &[&late]);
        assert_eq!((wait(Record::default()), wait(one)), (0, 8));
        let three = one.after(&[], &[&early, &late]);
        assert_eq!((three.failures, wait(three)), (3, 38));
        assert_eq!(three.after(&[], &[]), three);
        assert_eq!(three.after(&[&early], &[]), Record::default());
        assert_eq!(three.after(&[&early], &[&early, &late]), one);
        assert_eq!(three.after(&[&late], &[&early]), Record::default());
        let many = (0..40).fold(Record::default(), |record, _| record.after(&[], &[&late]));
        assert_eq!(wait(many), 598);
        // The node's clock is an hour ahead.
        let ahead = Record::default().after(&[], &[&ended("2024-01-01T02:00:00Z")]);
        assert_eq!(wait(ahead), 10);
        let seen = ahead.kept(now);
        let later = now + Duration::from_secs(10);
        assert_eq!((seen.kept(later), seen.remaining(later)), (seen, Duration::ZERO));
    }

    #[test]
    fn the_failures_of_an_index_stand_at_its_pods() {
        let mut failed = ended("2024-01-01T00:59:55Z");
        let wait = |pod: &Pod| remaining_of_index(pod, NOW.parse().unwrap()).as_secs();
        assert_eq!(wait(&failed), 5);
        failed.metadata.annotations.insert(super::super::types::FAILURES.into(), "2".into());
        assert_eq!(wait(&failed), 35);
        failed.metadata.annotations.insert(super::super::types::IGNORED_FAILURES.into(), "-7".into());
        assert_eq!(wait(&failed), 35);
        failed.metadata.annotations.insert(super::super::types::IGNORED_FAILURES.into(), "1".into());
        assert_eq!(wait(&failed), 75);
        assert_eq!(wait(&ended("2024-01-01T03:00:00Z")), 0);
    }

    #[test]
    fn the_end_of_a_pod_is_what_is_known_best() {
        let (made, told) = ("2024-01-01T00:00:00Z", "2024-01-01T00:10:00Z");
        let (unready, end) = ("2024-01-01T00:05:00Z", "2024-01-01T00:06:00Z");
        let mut pod = json!({ "metadata": { "creationTimestamp": made }, "spec": { "initContainers": [
            { "name": "side", "restartPolicy": "Always" }, { "name": "first" }] }, "status": {} });
        let at = |pod: &Value| finished_at(&of(pod.clone())).to_string();
        assert_eq!(at(&pod), made);
        pod["metadata"]["deletionTimestamp"] = told.into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 60.into();
        assert_eq!(at(&pod), "2024-01-01T00:09:00Z");
        pod["status"]["conditions"] =
            json!([{ "type": "Ready", "status": "False", "lastTransitionTime": unready }]);
        assert_eq!(at(&pod), unready);
        let ended =
            |name: &str, at: &str| json!({ "name": name, "state": { "terminated": { "finishedAt": at } } });
        pod["status"]["containerStatuses"] = json!([ended("main", end), { "name": "other" }]);
        assert_eq!(at(&pod), unready);
        pod["status"]["containerStatuses"] = json!([ended("main", end)]);
        assert_eq!(at(&pod), end);
        pod["status"]["initContainerStatuses"] =
            json!([ended("first", told), ended("side", "2024-01-01T00:07:00Z")]);
        assert_eq!(at(&pod), "2024-01-01T00:07:00Z");
    }
}
