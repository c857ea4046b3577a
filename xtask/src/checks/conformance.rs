//! The tests that `docs/conformance.md` names are there, and what it says to hold has one.

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
    let unshown = unshown(&document.text).map(|behaviour| {
        format!("{DOCUMENT} says that this holds and names no test: {behaviour}; name one, or say `open`")
    });
    named.into_iter().filter(missing).map(complaint).chain(unshown).collect()
}

/// Rows `| behaviour | held | test |` without a test.
fn unshown(document: &str) -> impl Iterator<Item = &str> {
    document.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim);
        let row = [cells.next()?, cells.next()?, cells.next()?];
        (cells.next().is_none() && row[1] == "held" && !row[2].contains(".rs::")).then_some(row[0])
    })
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
        let document =
            file(DOCUMENT, "| a | held | `a/b.rs::is` |\n| c | held | by hand |\n| d | open | |\n");
        let complaints = check(&[document, file("a/b.rs", "fn is() {}")]);
        assert!(complaints.len() == 1 && complaints[0].contains("no test: c;"), "{complaints:?}");
        assert_eq!(check(&[file(DOCUMENT, "nothing")]), ["docs/conformance.md names no test"]);
    }
}
