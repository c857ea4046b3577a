//! Versions as `semver()` reads them. Source: semver.org 2.0.0, `k8s.io/apiserver/pkg/cel/library/semverlib.go`.

use std::cmp::Ordering;
use std::fmt;

/// The longest version; comparing two costs a step.
const BYTES_MAX: usize = 1024;

/// A version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Semver {
    /// Major, minor and patch.
    pub numbers: [u64; 3],
    before: Vec<String>,
    build: Vec<String>,
}

impl Semver {
    /// Reads a version; `normalize` lets a leading `v`, missing parts and leading zeros pass.
    pub fn parse(text: &str, normalize: bool) -> Result<Self, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("Version string longer than {BYTES_MAX} bytes"));
        }
        let normal = if normalize { normalized(text) } else { text.to_owned() };
        let (rest, build) = match normal.split_once('+') {
            Some((rest, build)) => (rest, identifiers(build, false)?),
            None => (normal.as_str(), Vec::new()),
        };
        let (core, before) = match rest.split_once('-') {
            Some((core, before)) => (core, identifiers(before, true)?),
            None => (rest, Vec::new()),
        };
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts[..] else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let mut numbers = [0; 3];
        for (number, (part, name)) in
            numbers.iter_mut().zip([(major, "Major"), (minor, "Minor"), (patch, "Patch")])
        {
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("Invalid character(s) found in {} number {part:?}", name.to_lowercase()));
            }
            if part.len() > 1 && part.starts_with('0') {
                return Err(format!("{name} number must not contain leading zeroes {part:?}"));
            }
            *number = part.parse().map_err(|_| format!("{name} number out of range {part:?}"))?;
        }
        Ok(Self { numbers, before, build })
    }

    /// The order of versions, builds apart.
    pub fn order(&self, other: &Self) -> Ordering {
        let by_release = || match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.before.iter().zip(&other.before);
                let first =
                    pairs.map(|(one, other)| identifier_order(one, other)).find(|order| order.is_ne());
                first.unwrap_or_else(|| self.before.len().cmp(&other.before.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(by_release)
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(out, "{major}.{minor}.{patch}")?;
        for (mark, parts) in [('-', &self.before), ('+', &self.build)] {
            if !parts.is_empty() {
                write!(out, "{mark}{}", parts.join("."))?;
            }
        }
        Ok(())
    }
}

fn identifier_order(one: &str, other: &str) -> Ordering {
    let number = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
    };
    match (number(one), number(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => one.cmp(other),
    }
}

fn identifiers(text: &str, release: bool) -> Result<Vec<String>, String> {
    let what = if release { "Prerelease" } else { "Build meta data" };
    text.split('.')
        .map(|part| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if part.is_empty() {
                return Err(format!("{what} is empty"));
            }
            if !part.bytes().all(fits) {
                return Err(format!("Invalid character(s) found in {} {part:?}", what.to_lowercase()));
            }
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            if release && digits && part.len() > 1 && part.starts_with('0') {
                return Err(format!("Numeric PreRelease version must not contain leading zeroes {part:?}"));
            }
            Ok(part.to_owned())
        })
        .collect()
}

/// Without `v` and leading zeros, and with all three numbers.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut parts: Vec<&str> = core.split('.').collect();
    for part in &mut parts {
        let bare = part.trim_start_matches('0');
        *part = if bare.is_empty() && !part.is_empty() { "0" } else { bare };
    }
    while parts.len() < 3 && rest.is_empty() {
        parts.push("0");
    }
    parts.join(".") + rest
}
