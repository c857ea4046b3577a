//! What a namespace's labels ask of its pods. Source: `k8s.io/pod-security-admission/api`.

use std::fmt;

use serde_json::{Map, Value};

use crate::field::{FieldError, FieldErrors};
use crate::tree;

/// What every label and audit annotation of the plugin begins with.
pub(super) const PREFIX: &str = "pod-security.kubernetes.io/";

/// How strict, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Of which release the checks are, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// 1.x
    Minor(u32),
    /// The newest.
    Latest,
}

/// `restricted:v1.30`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// The standard of each mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: Standard,
    pub(super) audit: Standard,
    pub(super) warn: Standard,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

impl Policy {
    /// Whether no mode asks for anything.
    pub(super) fn asks_nothing(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }

    /// The policy of a namespace, which is another than this one where its labels say so, with what is wrong with them: what cannot be read is enforced as the strictest,
    /// and neither audited nor warned of.
    pub(super) fn of(mut policy: Self, namespace: &Value) -> (Self, FieldErrors) {
        let mut errors = FieldErrors::new();
        let Some(labels) = tree::at(namespace, &["metadata", "labels"]).as_object() else {
            return (policy, errors);
        };
        let mut read = |mode: &str, standard: &mut Standard, otherwise: Level| {
            let before = errors.len();
            if let Some(text) = label(labels, mode) {
                standard.level = level(text).unwrap_or_else(|why| {
                    errors.push(invalid(mode, text, why));
                    otherwise
                });
            }
            let named = errors.len() == before;
            let mode = format!("{mode}-version");
            if let Some(text) = label(labels, &mode) {
                standard.version = version(text).unwrap_or_else(|why| {
                    errors.push(invalid(&mode, text, why));
                    Version::Latest
                });
            }
            named
        };
        let legible = read("enforce", &mut policy.enforce, Level::Restricted);
        read("audit", &mut policy.audit, Level::Privileged);
        read("warn", &mut policy.warn, Level::Privileged);
        // Who is told no is told so beforehand.
        let enforces = legible && label(labels, "enforce").is_some();
        if label(labels, "warn").is_none() && enforces && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label(labels, "warn-version").is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }
}

fn label<'a>(labels: &'a Map<String, Value>, mode: &str) -> Option<&'a str> {
    labels.get(&format!("{PREFIX}{mode}"))?.as_str()
}

fn invalid(mode: &str, text: &str, why: &str) -> FieldError {
    FieldError::invalid(format!("metadata.labels[{PREFIX}{mode}]"), &text.into(), why)
}

pub(super) fn level(text: &str) -> Result<Level, &'static str> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted"),
    }
}

pub(super) fn version(text: &str) -> Result<Version, &'static str> {
    let wrong = "must be \"latest\" or \"v1.x\"";
    if text == "latest" {
        return Ok(Version::Latest);
    }
    let digits = text.strip_prefix("v1.").ok_or(wrong)?;
    let canonical = digits == "0" || !digits.starts_with('0');
    let digits = Some(digits).filter(|digits| canonical && digits.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).map(Version::Minor).ok_or(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::settings::Settings;
    use super::*;

    fn policy(labels: &[(&str, &str)]) -> (String, Vec<String>) {
        let labels: Map<String, Value> =
            labels.iter().map(|(mode, text)| (format!("{PREFIX}{mode}"), json!(text))).collect();
        let (policy, errors) =
            Policy::of(Settings::default().policy(), &json!({ "metadata": { "labels": labels } }));
        let shown = format!("{} {} {}", policy.enforce, policy.audit, policy.warn);
        (shown, errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect())
    }

    #[test]
    fn labels_are_read_as_upstream_reads_them() {
        let rows: [(&[(&str, &str)], &str); 6] = [
            (&[], "privileged:latest privileged:latest privileged:latest"),
            (&[("enforce", "baseline")], "baseline:latest privileged:latest baseline:latest"),
            (
                &[("enforce", "restricted"), ("enforce-version", "v1.30"), ("warn-version", "v1.0")],
                "restricted:v1.30 privileged:latest restricted:v1.0",
            ),
            (
                &[("enforce", "baseline"), ("warn", "privileged"), ("audit", "restricted")],
                "baseline:latest restricted:latest privileged:latest",
            ),
            (&[("enforce", "x")], "restricted:latest privileged:latest privileged:latest"),
            (&[("warn", "x"), ("audit", "y")], "privileged:latest privileged:latest privileged:latest"),
        ];
        for (labels, expected) in rows {
            assert_eq!(policy(labels).0, expected, "{labels:?}");
        }
    }

    #[test]
    fn wrong_labels_are_named() {
        assert_eq!(
            policy(&[("enforce", "x"), ("audit-version", "v1.01")]).1,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of \
                 privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"v1.01\": must be \
                 \"latest\" or \"v1.x\"",
            ]
        );
        for text in ["v1.", "1.5", "v2.0", "v1.+1", "v1.99999999999"] {
            assert!(version(text).is_err(), "{text}");
        }
    }
}
