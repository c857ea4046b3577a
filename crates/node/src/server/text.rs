//! The text format of Prometheus. Source: its "Exposition formats", version 0.0.4.

use std::fmt::{Display, Write as _};

use jiff::Timestamp;

/// The head of a metric.
pub(super) fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A line of a metric.
pub(super) fn sample<V: AsRef<str>>(
    text: &mut String,
    name: &str,
    labels: &[(&str, V)],
    value: impl Display,
    at: Option<Timestamp>,
) {
    text.push_str(name);
    for (index, (label, value)) in labels.iter().enumerate() {
        text.push(if index == 0 { '{' } else { ',' });
        text.push_str(label);
        text.push_str("=\"");
        escape(text, value.as_ref());
        text.push('"');
    }
    if !labels.is_empty() {
        text.push('}');
    }
    let _ = write!(text, " {value}");
    if let Some(at) = at {
        let _ = write!(text, " {}", at.as_millisecond());
    }
    text.push('\n');
}

/// Names of interfaces are what a container with the right to make some wants them to be.
fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_lines_whatever_their_labels_hold() {
        let mut text = String::new();
        family(&mut text, "a", "gauge", "Help.");
        sample(&mut text, "a", &[("b", "x\"y"), ("c", "\\\n")], 1.5, Some(Timestamp::UNIX_EPOCH));
        sample::<&str>(&mut text, "a", &[], 2, None);
        let wanted = "# HELP a Help.\n# TYPE a gauge\na{b=\"x\\\"y\",c=\"\\\\\\n\"} 1.5 0\na 2\n";
        assert_eq!(text, wanted);
    }
}
