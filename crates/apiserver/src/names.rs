//! Names, labels and their rules, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation`.

use api::names::{is_label, is_subdomain};
use serde_json::{Value, json};

use crate::field::{FieldError, FieldErrors};
use crate::strategy::NameRule;

pub use api::names::{label_value_problems, qualified_name_problems};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// All annotations together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// What is wrong with a name under a rule: the first of [`name_problems`].
pub fn wrong_name(rule: NameRule, name: &str) -> Option<String> {
    name_problems(rule, name).into_iter().next()
}

/// All that is wrong with a name under a rule.
pub fn name_problems(rule: NameRule, name: &str) -> Vec<String> {
    let (holds, sentence) = match rule {
        NameRule::Subdomain => return api::names::subdomain_problems(name),
        NameRule::Label if is_subdomain(name) && name.contains('.') => (false, "must not contain dots"),
        NameRule::Label => (is_label(name), LABEL),
        NameRule::Label1035 => return api::names::label_1035_problems(name),
        NameRule::PathSegment => return api::names::path_segment_problems(name),
    };
    let long = (name.len() > 63).then(|| "must be no more than 63 characters".to_owned());
    long.into_iter().chain((!holds).then(|| sentence.to_owned())).collect()
}

/// What is wrong with a qualified name: the first of [`qualified_name_problems`].
pub fn wrong_qualified_name(text: &str) -> Option<String> {
    qualified_name_problems(text).into_iter().next()
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
        assert_eq!(wrong_name(NameRule::Label, "a.b").as_deref(), Some("must not contain dots"));
    }
}
