//! Names, labels and their rules, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation`.

use serde_json::{Value, json};

use crate::field::{FieldError, FieldErrors};
use crate::strategy::NameRule;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
     character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
     '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
     must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
     validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            plain(*first) && plain(*last) && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

fn is_subdomain(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(is_label)
}

fn is_token(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        }
        _ => false,
    }
}

/// What is wrong with a name under a rule.
pub fn wrong_name(rule: NameRule, name: &str) -> Option<String> {
    let (holds, sentence, bytes_max) = match rule {
        NameRule::Subdomain => (is_subdomain(name), SUBDOMAIN, 253),
        NameRule::Label => (is_label(name), LABEL, 63),
        NameRule::Label1035 => {
            let begins = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
            (is_label(name) && begins, LABEL_1035, 63)
        }
        NameRule::PathSegment => {
            return match name {
                "." | ".." => Some(format!("may not be '{name}'")),
                _ => ["/", "%"]
                    .iter()
                    .find(|part| name.contains(**part))
                    .map(|part| format!("may not contain '{part}'")),
            };
        }
    };
    if name.len() > bytes_max {
        return Some(format!("must be no more than {bytes_max} characters"));
    }
    (!holds).then(|| sentence.to_owned())
}

/// What is wrong with a qualified name (`prefix/name`): label and annotation keys, finalizers.
pub fn wrong_qualified_name(text: &str) -> Option<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".into());
        }
        if let Some(wrong) = wrong_name(NameRule::Subdomain, prefix) {
            return Some(format!("prefix part {wrong}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters".into());
    }
    (!is_token(name)).then(|| QUALIFIED.to_owned())
}

/// What is wrong with a label's value.
pub fn wrong_label_value(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!value.is_empty() && !is_token(value)).then(|| LABEL_VALUE.to_owned())
}

/// Checks a map of labels.
pub fn check_labels(labels: &Value, field: &str, errors: &mut FieldErrors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(detail) = wrong_qualified_name(key) {
            errors.push(FieldError::invalid(field, &json!(key), &detail));
        }
        if let Some(detail) = wrong_label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(field, value, &detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_at_their_edges() {
        assert!(wrong_name(NameRule::Subdomain, "a.b-c.1").is_none());
        assert!(wrong_name(NameRule::Subdomain, "a..b").is_some());
        assert!(wrong_name(NameRule::Subdomain, "Big").is_some());
        assert!(wrong_name(NameRule::Label, "a.b").is_some());
        assert!(wrong_name(NameRule::Label, &"a".repeat(64)).is_some());
        assert!(wrong_name(NameRule::Label1035, "1a").is_some());
        assert!(wrong_name(NameRule::PathSegment, "system:node:A").is_none());
        assert!(wrong_qualified_name("example.com/My_name.1").is_none());
        assert!(wrong_qualified_name("/x").is_some());
        assert!(wrong_label_value("").is_none() && wrong_label_value("-x").is_some());
    }
}
