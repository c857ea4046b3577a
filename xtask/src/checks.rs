//! Checks on the repository itself, run as tests: what the reader may rely on is held against the code. Each check gives
//! its complaints, a line each, and says what to do.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

mod conformance;
mod edges;
mod sources;

/// A file of the repository as git knows it.
pub(crate) struct SourceFile {
    /// Path from the repository's root.
    pub path: String,
    pub text: String,
}

/// All files that git tracks and that are text.
pub(crate) fn tracked() -> Result<Vec<SourceFile>> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(workspace::root()).output();
    let output = output.context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let root: PathBuf = workspace::root();
    let files = names.split('\0').filter(|name| !name.is_empty()).filter_map(|name| {
        // What is not text (images, archives) or is deleted in the work tree has nothing to say here.
        let text = fs::read_to_string(root.join(name)).ok()?;
        Some(SourceFile { path: name.to_owned(), text })
    });
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_none(complaints: &[String]) {
        assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    }

    #[test]
    fn crates_depend_only_as_the_table_in_architecture_md_allows() {
        assert_none(&edges::check().expect("the check runs"));
    }

    #[test]
    fn every_dependency_has_its_reason() {
        assert_none(&edges::undocumented().expect("the check runs"));
    }

    #[test]
    fn every_crate_inherits_the_lints() {
        assert_none(&edges::without_lints().expect("the check runs"));
    }

    #[test]
    fn sources_keep_the_rules_of_the_house() {
        let files = tracked().expect("git lists the files");
        assert!(files.len() > 100, "only {} files were found", files.len());
        let complaints: Vec<String> = files.iter().flat_map(sources::check).collect();
        assert_none(&complaints);
    }

    #[test]
    fn the_tests_of_the_conformance_list_are_there() {
        assert_none(&conformance::check(&tracked().expect("git lists the files")));
    }

    #[test]
    fn the_committed_table_of_the_schema_contains_its_overlays() {
        let root = workspace::root().join("crates/api/schema");
        let table = fs::read_to_string(root.join("kubernetes.tsv")).expect("the table");
        for overlay in crate::schema::OVERLAYS {
            let overlay = fs::read_to_string(root.join(overlay)).expect("the overlay");
            assert_none(&crate::schema::stale(&table, &overlay));
        }
    }
}
