//! Durations as Go writes and reads them (`1h30m0s`, `300ms`): the form of Kubernetes' flags, files and messages.
//!
//! Source: Go's package `time`, `Duration.String` and `ParseDuration`.

use std::time::Duration;

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// As Go writes it: `1m0.2s`, `1.5s`, `20ms`, `0s`.
pub fn show(of: Duration) -> String {
    let nanos = of.as_nanos();
    let (whole, unit) = match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => return hours(nanos),
    };
    format!("{}{unit}", decimal(nanos, whole))
}

fn hours(nanos: u128) -> String {
    const MINUTE: u128 = 60_000_000_000;
    let seconds = decimal(nanos % MINUTE, 1_000_000_000);
    match (nanos / MINUTE / 60, nanos / MINUTE % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// How many times `whole`, a power of ten, goes into `nanos`, with its fraction and without zeros at its end.
fn decimal(nanos: u128, whole: u128) -> String {
    let fraction = nanos % whole;
    if fraction == 0 {
        return (nanos / whole).to_string();
    }
    let digits = whole.ilog10() as usize;
    let fraction = format!("{fraction:0digits$}");
    format!("{}.{}", nanos / whole, fraction.trim_end_matches('0'))
}

/// What Go reads, in nanoseconds; none where Go refuses it or it does not fit 64 bits.
pub fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i128;
    while let Some(part) = Part::of(rest) {
        total = total.checked_add(part.nanos()?)?;
        rest = part.rest;
        if rest.is_empty() {
            return i64::try_from(sign * total).ok();
        }
    }
    None
}

/// [`parse`] where only what is not negative makes sense.
pub fn parse_unsigned(text: &str) -> Option<Duration> {
    u64::try_from(parse(text)?).ok().map(Duration::from_nanos)
}

/// `1.5h` and what follows it.
struct Part<'t> {
    whole: &'t str,
    fraction: &'t str,
    unit: i128,
    rest: &'t str,
}

impl<'t> Part<'t> {
    fn of(text: &'t str) -> Option<Self> {
        let (whole, mut rest) = digits(text);
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            (fraction, rest) = digits(after);
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = rest.find(|letter: char| letter == '.' || letter.is_ascii_digit()).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (_, unit) = UNITS.into_iter().find(|(unit, _)| *unit == name)?;
        Some(Self { whole, fraction, unit, rest })
    }

    /// What lies below a nanosecond is cut off, as in Go.
    fn nanos(&self) -> Option<i128> {
        let whole: i128 = if self.whole.is_empty() { 0 } else { self.whole.parse().ok()? };
        // More digits than that lie below a nanosecond of an hour.
        let fraction = &self.fraction[..self.fraction.len().min(18)];
        let (mut part, mut scale) = (0_i128, 1_i128);
        for digit in fraction.bytes() {
            part = part * 10 + i128::from(digit - b'0');
            scale *= 10;
        }
        whole.checked_mul(self.unit)?.checked_add(part * self.unit / scale)
    }
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (60_020_000_000, "1m0.02s"),
            (3_601_000_000_000, "1h0m1s"),
            (300_000_000_000, "5m0s"),
        ];
        for (nanos, written) in cases {
            assert_eq!(show(Duration::from_nanos(nanos)), written);
            assert_eq!(parse(written), i64::try_from(nanos).ok(), "{written}");
        }
    }

    #[test]
    fn durations_are_read_as_in_go() {
        let cases = [
            ("0", 0),
            ("-0", 0),
            ("+5s", 5_000_000_000),
            ("-5s", -5_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1.004s", 1_004_000_000),
            ("39h9m14.425s", 140_954_425_000_000),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("10us2μs3µs", 15_000),
            ("9223372036854775807ns", i64::MAX),
        ];
        for (text, nanos) in cases {
            assert_eq!(parse(text), Some(nanos), "{text}");
        }
        for text in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1 s",
            "9223372036854775808ns",
            "3000000h",
            "1.5",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse_unsigned("-1s"), None);
        assert_eq!(parse_unsigned("1m"), Some(Duration::from_secs(60)));
    }
}
