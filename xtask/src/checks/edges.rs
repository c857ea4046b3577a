//! The table of allowed edges in ARCHITECTURE.md, and what every manifest has to say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace;

/// Edges that the table does not allow, and crates that it does not know. Dependencies of tests are free.
pub(super) fn check() -> Result<Vec<String>> {
    let document = fs::read_to_string(workspace::root().join("ARCHITECTURE.md"))?;
    let allowed = table(&document);
    ensure!(allowed.len() > 10, "ARCHITECTURE.md has no table of crates");
    let mut complaints = Vec::new();
    let edges = edges()?;
    for (from, targets) in &edges {
        let Some(row) = allowed.get(from.as_str()) else {
            complaints.push(format!("{from}: not in the table of ARCHITECTURE.md"));
            continue;
        };
        for to in targets.iter().filter(|to| !row.contains("all") && !row.contains(to.as_str())) {
            complaints.push(format!("{from} -> {to}: the table of ARCHITECTURE.md does not allow this edge"));
        }
    }
    for row in allowed.keys().filter(|row| !edges.contains_key(**row)) {
        complaints.push(format!("{row}: in the table of ARCHITECTURE.md, but no such crate"));
    }
    Ok(complaints)
}

/// Rows `| band | `crate` | what | may use |` of the document's table.
fn table(document: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let rows = document.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [_, name, _, uses, _] = cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        Some((name, uses.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()))
    });
    rows.collect()
}

/// What each crate of the workspace depends on within it, to build.
fn edges() -> Result<BTreeMap<String, Vec<String>>> {
    let metadata = workspace::metadata(&["--no-deps", "--offline"])?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let edges = packages.iter().map(|package| {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let within = dependencies.filter(|one| one["path"].is_string() && one["kind"] != "dev");
        let names = within.filter_map(|one| one["name"].as_str().map(str::to_owned));
        (package["name"].as_str().unwrap_or_default().to_owned(), names.collect())
    });
    Ok(edges.collect())
}

/// Dependencies that docs/dependencies.md gives no reason for.
pub(super) fn undocumented() -> Result<Vec<String>> {
    let document = fs::read_to_string(workspace::root().join("docs/dependencies.md"))?;
    let entries = document.lines().filter_map(|line| {
        let (entry, reason) = line.strip_prefix("- **")?.split_once(':')?;
        (!reason.trim().is_empty()).then_some(entry)
    });
    let named: BTreeSet<&str> = entries
        .flat_map(|entry| {
            entry.split(|letter: char| !(letter.is_ascii_alphanumeric() || "-_".contains(letter)))
        })
        .collect();
    let metadata = workspace::metadata(&["--no-deps", "--offline"])?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let outside = |one: &&Value| !one["path"].is_string();
    let used: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| package["dependencies"].as_array().into_iter().flatten())
        .filter(outside)
        .filter_map(|one| one["name"].as_str())
        .collect();
    let missing = used.into_iter().filter(|name| !named.contains(name));
    Ok(missing.map(|name| format!("{name}: docs/dependencies.md gives no reason for it")).collect())
}

/// Crates that do not inherit the workspace's lints. `sys` states them itself: it is where `unsafe` may stand.
pub(super) fn without_lints() -> Result<Vec<String>> {
    let root = fs::read_to_string(workspace::root().join("Cargo.toml"))?;
    ensure!(
        root.contains("unsafe_code = \"forbid\""),
        "Cargo.toml: the workspace does not forbid unsafe code"
    );
    let metadata = workspace::metadata(&["--no-deps", "--offline"])?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut complaints = Vec::new();
    for package in packages.iter().filter(|package| package["name"] != "sys") {
        let path = package["manifest_path"].as_str().context("a package has a manifest")?;
        if !fs::read_to_string(path)?.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{path}: does not inherit the workspace's lints"));
        }
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_by_its_rows() {
        let document = "| band | crate | what | may use |\n|---|---|---|---|\n| base | `sys` | x | base, api |\n| b | `base` | y | |\n";
        let table = table(document);
        assert_eq!(table["sys"], BTreeSet::from(["api", "base"]));
        assert!(table["base"].is_empty() && table.len() == 2);
    }
}
