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

/// All annotations together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

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

/// What is wrong with a name under a rule: the first of [`name_problems`].
pub fn wrong_name(rule: NameRule, name: &str) -> Option<String> {
    name_problems(rule, name).into_iter().next()
}

/// All that is wrong with a name under a rule.
pub fn name_problems(rule: NameRule, name: &str) -> Vec<String> {
    let (holds, sentence, bytes_max) = match rule {
        NameRule::Subdomain => (is_subdomain(name), SUBDOMAIN, 253),
        NameRule::Label if is_subdomain(name) && name.contains('.') => (false, "must not contain dots", 63),
        NameRule::Label => (is_label(name), LABEL, 63),
        NameRule::Label1035 => {
            let begins = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
            (is_label(name) && begins, LABEL_1035, 63)
        }
        NameRule::PathSegment if matches!(name, "." | "..") => return vec![format!("may not be '{name}'")],
        NameRule::PathSegment => {
            let parts = ["/", "%"].into_iter().filter(|part| name.contains(part));
            return parts.map(|part| format!("may not contain '{part}'")).collect();
        }
    };
    let long = (name.len() > bytes_max).then(|| format!("must be no more than {bytes_max} characters"));
    long.into_iter().chain((!holds).then(|| sentence.to_owned())).collect()
}

/// What is wrong with a qualified name: the first of [`qualified_name_problems`].
pub fn wrong_qualified_name(text: &str) -> Option<String> {
    qualified_name_problems(text).into_iter().next()
}

/// All that is wrong with a qualified name (`prefix/name`): label and annotation keys, finalizers.
/// Source: `IsLabelKey` in `api/validate/content`.
pub fn qualified_name_problems(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if name.contains('/') {
        let shape = QUALIFIED.trim_start_matches("name part ");
        return vec![format!(
            "a valid label key {shape} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )];
    }
    let mut problems = Vec::new();
    match prefix {
        None => {}
        Some("") => problems.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            let wrong = name_problems(NameRule::Subdomain, prefix);
            problems.extend(wrong.into_iter().map(|problem| format!("prefix part {problem}")));
        }
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".into());
    }
    if !is_token(name) {
        problems.push(QUALIFIED.to_owned());
    }
    problems
}

/// All that is wrong with a label's value.
pub fn label_value_problems(value: &str) -> Vec<String> {
    let long = (value.len() > 63).then(|| "must be no more than 63 bytes".to_owned());
    let token = value.is_empty() || is_token(value);
    long.into_iter().chain((!token).then(|| LABEL_VALUE.to_owned())).collect()
}

/// Checks a map of annotations.
pub fn check_annotations(annotations: &Value, field: &str, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for detail in qualified_name_problems(&key.to_lowercase()) {
            errors.push(FieldError::invalid(field, &json!(key), &detail));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(field, ANNOTATIONS_BYTES_MAX));
    }
}

/// Checks a map of labels.
pub fn check_labels(labels: &Value, field: &str, errors: &mut FieldErrors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for detail in qualified_name_problems(key) {
            errors.push(FieldError::invalid(field, &json!(key), &detail));
        }
        for detail in label_value_problems(value.as_str().unwrap_or_default()) {
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
        assert_eq!(qualified_name_problems("").len(), 2);
        assert!(qualified_name_problems("a/b/c")[0].starts_with("a valid label key must consist of"));
        assert_eq!(wrong_name(NameRule::Label, "a.b").as_deref(), Some("must not contain dots"));
        assert!(label_value_problems("").is_empty() && label_value_problems("-x").len() == 1);
    }
}
