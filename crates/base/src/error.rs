//! The error type that crosses crate edges where no typed error is worth its name.

/// A boxed error. Typed errors are the rule; this one is for component results and foreign traits.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error's message followed by those of its causes, separated by `: `, for one line on a terminal or in a log.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Many errors already print their source; saying it twice helps nobody.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_names_each_cause_once() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer: inner");
    }
}
