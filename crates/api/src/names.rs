//! The shapes of names and labels, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation`.

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
/// The longest DNS subdomain, in bytes.
const SUBDOMAIN_MAX: usize = 253;
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
     character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
     '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
     must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
     validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// The annotations with which a storage class says that it is the default, the newer one first.
/// Source: `storageutil.IsDefaultAnnotation`.
pub const DEFAULT_STORAGE_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// Whether a text is a DNS label, but for its length.
pub fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            plain(*first) && plain(*last) && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

/// Whether a text is labels with dots between them, but for its length.
pub fn is_subdomain(text: &str) -> bool {
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

/// All that is wrong with a DNS subdomain.
pub fn subdomain_problems(text: &str) -> Vec<String> {
    let long =
        (text.len() > SUBDOMAIN_MAX).then(|| format!("must be no more than {SUBDOMAIN_MAX} characters"));
    long.into_iter().chain((!is_subdomain(text)).then(|| SUBDOMAIN.to_owned())).collect()
}

/// All that is wrong with a DNS label that begins with a letter (RFC 1035).
pub fn label_1035_problems(text: &str) -> Vec<String> {
    let begins = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    let long = (text.len() > 63).then(|| "must be no more than 63 characters".to_owned());
    long.into_iter().chain((!begins || !is_label(text)).then(|| LABEL_1035.to_owned())).collect()
}

/// All that is wrong with a part of a path.
pub fn path_segment_problems(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    let parts = ["/", "%"].into_iter().filter(|part| text.contains(part));
    parts.map(|part| format!("may not contain '{part}'")).collect()
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
            let wrong = subdomain_problems(prefix);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_hold_at_their_edges() {
        assert!(qualified_name_problems("example.com/My_name.1").is_empty());
        assert_eq!(qualified_name_problems("/x"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name_problems("").len(), 2);
        assert!(qualified_name_problems("a/b/c")[0].starts_with("a valid label key must consist of"));
        assert!(label_value_problems("").is_empty() && label_value_problems("-x").len() == 1);
    }
}
