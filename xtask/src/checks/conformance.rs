//! The tests that `docs/conformance.md` names are there.

use crate::checks::SourceFile;

const DOCUMENT: &str = "docs/conformance.md";

/// The tests that the document names, as `path/file.rs::function` in backticks: those that are not there.
pub(crate) fn check(files: &[SourceFile]) -> Vec<String> {
    let Some(document) = files.iter().find(|file| file.path == DOCUMENT) else {
        return vec![format!("{DOCUMENT} is missing")];
    };
    let named: Vec<(&str, &str)> =
        document.text.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once(".rs::")).collect();
    if named.is_empty() {
        return vec![format!("{DOCUMENT} names no test")];
    }
    let missing = |(stem, function): &(&str, &str)| {
        let path = format!("{stem}.rs");
        let declared = format!("fn {function}(");
        !files.iter().any(|file| file.path == path && file.text.contains(&declared))
    };
    let complaint = |(stem, function)| {
        format!(
            "{DOCUMENT} names {stem}.rs::{function}, which is not there: name the test that checks it now"
        )
    };
    named.into_iter().filter(missing).map(complaint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn tests_that_are_not_there_are_named() {
        let document = file(DOCUMENT, "| a | held | `a/b.rs::is` |\n| c | held | `a/b.rs::was` |\n");
        let tests = file("a/b.rs", "async fn is() {}\nfn was_not() {}");
        let complaints = check(&[document, tests]);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("a/b.rs::was,"), "{complaints:?}");
        assert_eq!(check(&[file(DOCUMENT, "nothing")]), ["docs/conformance.md names no test"]);
    }
}
