//! Formats of strings. Source: `apiextensions-apiserver/pkg/apiserver/validation/formats.go`, `kube-openapi/pkg/validation/strfmt`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr as _;

use base64::Engine as _;

/// The formats that are checked; others say nothing.
const KNOWN: [&str; 32] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
    "int32",
    "int64",
    "float",
    "double",
    "",
    "intorstring",
];

/// Whether a format is one that upstream knows.
pub fn is_known(format: &str) -> bool {
    KNOWN.contains(&format.replace('-', "").as_str())
}

/// Whether a text is of a format.
pub(crate) fn fits(format: &str, text: &str) -> bool {
    if format.is_empty() {
        return true;
    }
    match format.replace('-', "").as_str() {
        "datetime" => is_time(text),
        "date" => jiff::civil::Date::from_str(text).is_ok() && text.len() == 10,
        "duration" => duration(text).is_some(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "uri" => text.starts_with('/') || text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)),
        "email" => text.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !host.contains('@') && !text.contains(char::is_whitespace)
        }),
        "hostname" => is_hostname(text),
        "ipv4" => Ipv4Addr::from_str(text).is_ok(),
        "ipv6" => Ipv6Addr::from_str(text).is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some(b'3')),
        "uuid4" => is_uuid(text, Some(b'4')),
        "uuid5" => is_uuid(text, Some(b'5')),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        }
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "k8sshortname" => is_name(text, 63) && !text.contains('.'),
        "k8slongname" => text.len() <= 253 && text.split('.').all(|part| is_name(part, 253)),
        _ => true,
    }
}

/// RFC 3339, with a zone.
pub(crate) fn is_time(text: &str) -> bool {
    jiff::Timestamp::from_str(text).is_ok()
}

/// A duration in nanoseconds: as Go spells it (`1h30m`, `300ms`), or in the longer words of definitions (`3 days`).
/// Source: `kube-openapi/pkg/validation/strfmt/duration.go`.
pub(crate) fn duration(text: &str) -> Option<i64> {
    base::go_duration::parse(text).or_else(|| worded(text))
}

/// Any number of counts with a unit each, wherever they stand; of a word only its beginning is looked at.
fn worded(text: &str) -> Option<i64> {
    const SECOND: i64 = 1_000_000_000;
    const UNITS: [(&[&str], &str, i64); 8] = [
        (&["ns"], "nano", 1),
        (&["us", "µs"], "micro", 1_000),
        (&["ms"], "milli", 1_000_000),
        (&["s"], "sec", SECOND),
        (&["m"], "min", 60 * SECOND),
        (&["h", "hr"], "hour", 3_600 * SECOND),
        (&["d"], "day", 86_400 * SECOND),
        (&["w", "wk"], "week", 604_800 * SECOND),
    ];
    let (mut total, mut rest) = (None, text);
    while let Some(begin) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (count, after) = split_at(&rest[begin..], |letter| letter.is_ascii_digit());
        let (unit, after) =
            split_at(after.trim_start(), |letter| letter.is_ascii_alphabetic() || letter == 'µ');
        rest = after;
        let unit = unit.to_lowercase();
        let known =
            |(short, long, _): &&(&[&str], &str, i64)| short.contains(&&*unit) || unit.starts_with(long);
        if let Some((_, _, nanos)) = UNITS.iter().find(known) {
            let part = count.parse::<i64>().ok()?.checked_mul(*nanos)?;
            total = Some(total.unwrap_or(0_i64).checked_add(part)?);
        }
    }
    total
}

fn split_at(text: &str, goes_on: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|letter| !goes_on(letter)).unwrap_or(text.len()))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

fn is_hostname(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.chars().all(|letter| letter.is_alphanumeric() || letter == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 255 && text.split('.').all(part)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let bits = match std::net::IpAddr::from_str(address) {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.bytes().all(|digit| digit.is_ascii_digit())
        && length.parse::<u8>().is_ok_and(|length| length <= bits)
}

fn is_mac(text: &str) -> bool {
    let byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    [':', '-'].iter().any(|separator| {
        let parts: Vec<&str> = text.split(*separator).collect();
        matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|part| byte(part))
    })
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let version_fits = version.is_none_or(|version| digits.get(12) == Some(&version));
    digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit) && version_fits
}

fn is_name(text: &str, max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=max).contains(&text.len())
        && text.bytes().all(|byte| plain(byte) || byte == b'-' || (max > 63 && byte == b'.'))
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_formats() {
        for (format, good, bad) in [
            ("date-time", "2026-01-01T00:00:00Z", "2026-01-01"),
            ("date", "2026-01-31", "2026-02-31"),
            ("duration", "1h30m", "1 fortnight"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            ("uri", "https://example.com/x", "example"),
            ("byte", "aGk=", "a"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("k8s-short-name", "a-1", "A"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("anything", "x") && !is_known("anything") && is_known("date-time"));
        let seconds = ["1.5s", "3 days", "1 d 2 hours", "2wk", "1 fortnight", "day"]
            .map(|text| duration(text).map(|nanos| nanos / 100_000_000));
        assert_eq!(seconds, [Some(15), Some(2_592_000), Some(936_000), Some(12_096_000), None, None]);
    }
}
