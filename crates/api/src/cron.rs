//! Schedules of CronJobs: five fields of the clock, or a name such as `@daily`. Accepts and refuses what
//! `github.com/robfig/cron/v3`'s standard parser does, in its words, and comes due when its schedules do.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// When something happens, without its time zone. Bit `n` of a field is the value `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// At moments of the clock.
    Clock {
        /// Minutes, 0 to 59.
        minute: u64,
        /// Hours, 0 to 23.
        hour: u64,
        /// Days of the month, 1 to 31.
        day: u64,
        /// Months, 1 to 12.
        month: u64,
        /// Days of the week, 0 (Sunday) to 6.
        weekday: u64,
        /// Whether days of the month and days of the week are both restricted: then either suffices.
        either_day: bool,
    },
    /// Again and again after this time (`@every 1h30m`).
    Every(Duration),
}

/// A field: its least and greatest value, and names for values.
struct Field {
    least: u32,
    most: u32,
    names: &'static [&'static str],
    /// The value of the first name.
    first: u32,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Field; 5] = [
    Field { least: 0, most: 59, names: &[], first: 0 },
    Field { least: 0, most: 23, names: &[], first: 0 },
    Field { least: 1, most: 31, names: &[], first: 0 },
    Field { least: 1, most: 12, names: &MONTHS, first: 1 },
    Field { least: 0, most: 6, names: &DAYS, first: 0 },
];
/// Named schedules as their fields.
const NAMED: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
const EVERY: &str = "@every ";

impl Schedule {
    /// Parses a schedule. A leading `TZ=…` or `CRON_TZ=…` is skipped. The error is the sentence that clients see.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let text = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
            None => text,
            Some(zoned) => match zoned.split_once(' ') {
                Some((_, rest)) => rest.trim(),
                None => return Err(format!("provided bad location {zoned}: there is no schedule after it")),
            },
        };
        if let Some(duration) = text.strip_prefix(EVERY) {
            let failed = || format!("failed to parse duration {text}: time: invalid duration \"{duration}\"");
            return every(duration).map(Self::Every).ok_or_else(failed);
        }
        if text.starts_with('@') {
            let named = NAMED.iter().find(|(name, _)| *name == text);
            return match named {
                Some((_, fields)) => Self::clock(fields),
                None => Err(format!("unrecognized descriptor: {text}")),
            };
        }
        Self::clock(text)
    }

    fn clock(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
        };
        let (day, all_days) = bits(day, &FIELDS[2])?;
        let (weekday, all_weekdays) = bits(weekday, &FIELDS[4])?;
        Ok(Self::Clock {
            minute: bits(minute, &FIELDS[0])?.0,
            hour: bits(hour, &FIELDS[1])?.0,
            day,
            month: bits(month, &FIELDS[3])?.0,
            weekday,
            either_day: !all_days && !all_weekdays,
        })
    }
}

/// A schedule that has no moment within so many years has none. Source: `SpecSchedule.Next`.
const YEARS_MAX: i16 = 5;

impl Schedule {
    /// The first moment after `after`; none if there is no such day. Clocks that go forward leave out what they skip,
    /// and clocks that go back meet it twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = Timestamp::from_second(after.as_second()).ok()?;
        match self {
            Self::Every(pause) => start.checked_add(Duration::from_secs(pause.as_secs())).ok(),
            Self::Clock { .. } => self.next_of_clock(next_minute(start)?, zone),
        }
    }

    /// Goes on by days, hours and minutes that really pass, and asks the clock on the wall at each.
    fn next_of_clock(&self, start: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut at = start.to_zoned(zone.clone());
        let last_year = at.year().saturating_add(YEARS_MAX);
        while at.year() <= last_year {
            at = if !self.has_day(&at) {
                at.tomorrow().ok()?.start_of_day().ok()?
            } else if !self.has_hour(&at) {
                // Zones whose offset is not a whole number of hours change on the wall's hours too.
                at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?
            } else if !self.has_minute(&at) {
                at.checked_add(1.minute()).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }

    fn has_day(&self, at: &Zoned) -> bool {
        let Self::Clock { day, month, weekday, either_day, .. } = self else { return false };
        let in_month = has(*day, at.day());
        let in_week = has(*weekday, at.weekday().to_sunday_zero_offset());
        let suits = if *either_day { in_month || in_week } else { in_month && in_week };
        suits && has(*month, at.month())
    }

    fn has_hour(&self, at: &Zoned) -> bool {
        matches!(self, Self::Clock { hour, .. } if has(*hour, at.hour()))
    }

    fn has_minute(&self, at: &Zoned) -> bool {
        matches!(self, Self::Clock { minute, .. } if has(*minute, at.minute()))
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1)
}

/// The first whole minute after a moment.
fn next_minute(at: Timestamp) -> Option<Timestamp> {
    let into = at.as_second().rem_euclid(60);
    at.checked_add(SignedDuration::from_secs(60 - into)).ok()
}

/// The values that a field allows, and whether it was left open with `*`.
fn bits(text: &str, field: &Field) -> Result<(u64, bool), String> {
    let (mut all, mut open) = (0, false);
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (values, star) = range_bits(range, field)?;
        all |= values;
        open |= star;
    }
    Ok((all, open))
}

fn range_bits(text: &str, field: &Field) -> Result<(u64, bool), String> {
    let mut parts = text.split('/');
    let bounds: Vec<&str> = parts.next().unwrap_or_default().split('-').collect();
    let mut open = matches!(bounds[0], "*" | "?");
    let (start, mut end) = match bounds.as_slice() {
        _ if open => (field.least, field.most),
        [one] => {
            let value = value_of(one, field)?;
            (value, value)
        }
        [low, high] => (value_of(low, field)?, value_of(high, field)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let mut step = 1;
    if let Some(given) = parts.next() {
        step = number(given)?;
        if bounds.len() == 1 {
            end = field.most;
        }
        open &= step <= 1;
    }
    if parts.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    if start < field.least {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", field.least));
    }
    if end > field.most {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", field.most));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let stride = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(((start..=end).step_by(stride).fold(0, |bits, value| bits | 1 << value), open))
}

fn value_of(text: &str, field: &Field) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    match field.names.iter().zip(field.first..).find(|(name, _)| **name == lower) {
        Some((_, value)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let failed =
        || format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax");
    let value: i64 = text.parse().map_err(|_| failed())?;
    if value < 0 {
        return Err(format!("negative number ({value}) not allowed: {text}"));
    }
    Ok(u32::try_from(value).unwrap_or(u32::MAX))
}

/// What is shorter, or negative, is so long. Source: `cron.Every`.
const SHORTEST: Duration = Duration::from_secs(1);
/// A duration as Go writes it: `1h30m`, `1.5s`.
fn every(text: &str) -> Option<Duration> {
    let nanos = base::go_duration::parse(text)?;
    Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)).max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_sets_of_values() {
        let clock = |text: &str| match Schedule::parse(text) {
            Ok(Schedule::Clock { minute, hour, day, month, weekday, either_day }) => {
                (minute, hour, day, month, weekday, either_day)
            }
            other => panic!("{text}: {other:?}"),
        };
        let (all_days, all_months, all_weekdays) = ((1_u64 << 32) - 2, (1 << 13) - 2, (1 << 7) - 1);
        assert_eq!(
            clock("*/15 3 * * *"),
            (1 | 1 << 15 | 1 << 30 | 1 << 45, 8, all_days, all_months, all_weekdays, false)
        );
        assert_eq!(clock("0 0 1,15 jan MON-wed"), (1, 1, 2 | 1 << 15, 2, 14, true));
        assert_eq!(clock("@weekly"), clock("0 0 * * sun"));
        assert_eq!(clock("CRON_TZ=UTC 5 4 * * *"), clock("5 4 * * *"));
        assert_eq!(Schedule::parse("@every 1h30m"), Ok(Schedule::Every(Duration::from_secs(5400))));
        for short in ["0", "+0", "-0", "0s", "-1h", "-1.5s", "300ms", ".5s", "1s"] {
            assert_eq!(Schedule::parse(&format!("@every {short}")), Ok(Schedule::Every(SHORTEST)), "{short}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_as_upstream_says_it() {
        for (text, wrong) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(Schedule::parse(text), Err(wrong.to_owned()), "{text}");
        }
        for text in [
            "TZ=",
            "@every x",
            "@every 1",
            "@every -",
            "@every .s",
            "@every 99999999h",
            "* * * * * 9",
            "99999999999999999999 * * * *",
            "-1 * * * *",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }

    fn due(text: &str, zone: &TimeZone, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(text).unwrap();
        let mut at: Timestamp = from.parse().unwrap();
        let mut all = Vec::new();
        for _ in 0..count {
            let Some(next) = schedule.next(at, zone) else { break };
            assert!(next > at, "{text}");
            at = next;
            all.push(at.to_zoned(zone.clone()).strftime("%a %Y-%m-%dT%H:%M:%S%:z").to_string());
        }
        all
    }

    #[test]
    fn schedules_come_due() {
        let utc = TimeZone::UTC;
        let rows: [(&str, &str, &[&str]); 11] = [
            (
                "* * * * *",
                "2024-01-01T00:00:00Z",
                &["Mon 2024-01-01T00:01:00+00:00", "Mon 2024-01-01T00:02:00+00:00"],
            ),
            ("* * * * *", "2024-01-01T00:00:59.9Z", &["Mon 2024-01-01T00:01:00+00:00"]),
            (
                "*/20 22-23 * * *",
                "2024-01-01T23:30:00Z",
                &["Mon 2024-01-01T23:40:00+00:00", "Tue 2024-01-02T22:00:00+00:00"],
            ),
            ("0 0 29 2 *", "2024-03-01T00:00:00Z", &["Tue 2028-02-29T00:00:00+00:00"]),
            (
                "0 0 31 * *",
                "2024-01-31T00:00:00Z",
                &["Sun 2024-03-31T00:00:00+00:00", "Fri 2024-05-31T00:00:00+00:00"],
            ),
            ("59 23 31 2 *", "2024-01-01T00:00:00Z", &[]),
            // Days of the month and of the week: either, but only if both are restricted.
            (
                "0 12 13 * fri",
                "2024-09-07T00:00:00Z",
                &["Fri 2024-09-13T12:00:00+00:00", "Fri 2024-09-20T12:00:00+00:00"],
            ),
            (
                "0 12 * * fri",
                "2024-09-07T00:00:00Z",
                &["Fri 2024-09-13T12:00:00+00:00", "Fri 2024-09-20T12:00:00+00:00"],
            ),
            ("@monthly", "2024-12-15T00:00:00Z", &["Wed 2025-01-01T00:00:00+00:00"]),
            ("0 9 ? * mon-fri", "2024-01-05T09:00:00Z", &["Mon 2024-01-08T09:00:00+00:00"]),
            (
                "@every 90s",
                "2024-01-01T00:00:00.7Z",
                &["Mon 2024-01-01T00:01:30+00:00", "Mon 2024-01-01T00:03:00+00:00"],
            ),
        ];
        for (text, from, expected) in rows {
            assert_eq!(due(text, &utc, from, expected.len().max(1)), expected, "{text}");
        }
    }

    #[test]
    fn clocks_that_change_skip_and_repeat() {
        // New York: 2024-03-10 02:00 is 03:00, 2024-11-03 02:00 is 01:00 again. Berlin: 2024-03-31, 2024-10-27 at 01:00 UTC.
        let new_york = TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap();
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        // Lord Howe goes by half an hour: 02:00 is 02:30 on 2024-10-06, 02:00 is 01:30 on 2024-04-07.
        let lord_howe = TimeZone::posix("<+1030>-10:30<+11>-11,M10.1.0,M4.1.0").unwrap();
        // Havana has no midnight on 2024-03-10.
        let havana = TimeZone::posix("CST5CDT,M3.2.0/0,M11.1.0/1").unwrap();
        let rows: [(&str, &TimeZone, &str, &[&str]); 8] = [
            ("30 2 * * *", &new_york, "2024-03-09T12:00:00Z", &["Mon 2024-03-11T02:30:00-04:00"]),
            ("30 3 * * *", &new_york, "2024-03-10T06:00:00Z", &["Sun 2024-03-10T03:30:00-04:00"]),
            (
                "30 1 * * *",
                &new_york,
                "2024-11-03T04:00:00Z",
                &[
                    "Sun 2024-11-03T01:30:00-04:00",
                    "Sun 2024-11-03T01:30:00-05:00",
                    "Mon 2024-11-04T01:30:00-05:00",
                ],
            ),
            ("0 0 * * *", &new_york, "2024-03-10T05:00:00Z", &["Mon 2024-03-11T00:00:00-04:00"]),
            ("15 2 * * sun", &berlin, "2024-03-30T00:00:00Z", &["Sun 2024-04-07T02:15:00+02:00"]),
            ("0 * * * *", &berlin, "2024-03-31T00:00:00Z", &["Sun 2024-03-31T03:00:00+02:00"]),
            (
                "45 1 * * *",
                &lord_howe,
                "2024-04-06T14:00:00Z",
                &["Sun 2024-04-07T01:45:00+11:00", "Sun 2024-04-07T01:45:00+10:30"],
            ),
            ("0 0 * * *", &havana, "2024-03-09T06:00:00Z", &["Mon 2024-03-11T00:00:00-04:00"]),
        ];
        for (text, zone, from, expected) in rows {
            assert_eq!(due(text, zone, from, expected.len()), expected, "{text}");
        }
    }

    /// Every minute of two years, asked one by one: the slow way that is obviously right.
    #[test]
    fn nothing_is_left_out() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        for text in ["*/7 1-3 * * *", "30 2 29-31 mar,oct *", "0 0 1 * mon", "59 23 * * *", "5 */5 */9 * *"] {
            let schedule = Schedule::parse(text).unwrap();
            let from: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
            let mut expected = Vec::new();
            for minute in 1..(366 * 24 * 60_i64) {
                let at = from + SignedDuration::from_mins(minute);
                let wall = at.to_zoned(berlin.clone());
                if schedule.has_day(&wall) && schedule.has_hour(&wall) && schedule.has_minute(&wall) {
                    expected.push(at);
                }
            }
            let mut at = from;
            for moment in expected {
                at = schedule.next(at, &berlin).unwrap();
                assert_eq!(at, moment, "{text}");
            }
        }
    }
}
