//! What field selectors demand, where a decision needs to know it.

/// The value that a field selector, as a request spells it, demands of a field.
pub(crate) fn selected<'a>(selector: &'a str, field: &str) -> Option<&'a str> {
    selector.split(',').find_map(|term| {
        let (name, value) = term.split_once('=')?;
        (name.trim() == field).then(|| value.trim_start_matches('=').trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read() {
        assert_eq!(selected("spec.nodeName=n1", "spec.nodeName"), Some("n1"));
        assert_eq!(selected("a=b,metadata.name==x", "metadata.name"), Some("x"));
        assert_eq!(selected("metadata.name!=x", "metadata.name"), None);
        assert_eq!(selected("", "metadata.name"), None);
    }
}
