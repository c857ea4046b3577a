//! `cargo xtask generate schema`: merges what knows the facts of the Kubernetes API into one table without prose, a
//! line per field. Sources: upstream's OpenAPI description (structure, list types, merge keys), the sources of
//! k8s-openapi (what a newer release added and removed), overlays in the table's own format (constant defaults,
//! immutability, enumerations; retired versions), which win, and what upstream's Go types say of protobuf
//! (`generate protobuf` reads those).

mod gotypes;
mod newer;
mod swagger;
mod table;

#[allow(unreachable_pub, reason = "shared with a build script, where it is a module of its own")]
#[path = "../../../crates/api/build/source.rs"]
mod source;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::workspace::crate_root;
use table::Table;

pub(crate) use gotypes::generate as protobuf;

/// The overlays, in the order in which they apply.
pub(crate) const OVERLAYS: [&str; 4] = ["overlay.tsv", "retired.tsv", "metrics.tsv", "discovery.tsv"];

/// The table as text; `tables` is where the overlays and `protobuf.tsv` are.
pub(crate) fn generate(swagger: &Path, tables: &Path) -> Result<String> {
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let mut table: Table = swagger::read(&read(swagger)?)?;
    let release =
        source::newest_release(&crate_root("k8s-openapi")?).context("k8s-openapi holds no release")?;
    newer::merge(&mut table, &source::read(&release)?, &release_name(&release));
    let protobuf = read(&tables.join("protobuf.tsv"))?;
    // Before, so that copies have numbers, and after, as the overlays add definitions.
    gotypes::merge(&mut table, &protobuf)?;
    for overlay in OVERLAYS {
        table.overlay(&read(&tables.join(overlay))?).with_context(|| overlay.to_owned())?;
    }
    gotypes::merge(&mut table, &protobuf)?;
    Ok(table.print(&release_name(&release)))
}

/// `src/v1_37` is release `1.37`.
fn release_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.trim_start_matches('v').replace('_', ".")
}

/// Facts of the overlay that the committed table lacks: somebody changed one without making the other anew.
#[cfg(test)]
pub(crate) fn stale(table: &str, overlay: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut definition = "";
    let mut known: std::collections::HashMap<(&str, &str), &str> = std::collections::HashMap::new();
    for line in table.lines() {
        match line.strip_prefix('\t').and_then(|line| line.split_once('\t')) {
            Some((field, facts)) => drop(known.insert((definition, field), facts)),
            None => definition = line.split('\t').next().unwrap_or_default(),
        }
    }
    for line in overlay.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let Some((field, facts)) = line.strip_prefix('\t').and_then(|line| line.split_once('\t')) else {
            definition = line.split('\t').next().unwrap_or_default();
            continue;
        };
        let there: Vec<&str> =
            known.get(&(definition, field)).map(|facts| facts.split('\t').collect()).unwrap_or_default();
        let missing = facts.split('\t').filter(|fact| !matches!(*fact, "-" | "!") && !there.contains(fact));
        complaints.extend(missing.map(|fact| {
            format!("{definition}.{field}: the table lacks {fact}: run `cargo xtask generate schema`")
        }));
    }
    complaints
}
