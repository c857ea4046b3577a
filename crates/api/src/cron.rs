//! Schedules of CronJobs: five fields of the clock, or a name such as `@daily`. Accepts and refuses what
//! `github.com/robfig/cron/v3`'s standard parser does, in its words.

use std::time::Duration;

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
            return duration_of(duration).map(Self::Every).ok_or_else(failed);
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

/// A duration as Go writes it: numbers with units, such as `1h30m` or `1.5s`.
fn duration_of(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|char: char| char.is_ascii_digit() || char == '.').unwrap_or(rest.len());
        total += amount
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // Shorter than a second is a second. Source: `cron.Every`.
    Duration::try_from_secs_f64(total.max(1.0)).ok()
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
        for text in
            ["TZ=", "@every x", "@every 1", "* * * * * 9", "99999999999999999999 * * * *", "-1 * * * *"]
        {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }
}
