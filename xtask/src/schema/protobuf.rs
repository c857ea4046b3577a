//! Protobuf numbers, from the sources of k8s-pb (`#[prost(…, tag = "3")]` above each field).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::table::Table;

/// Fills in the numbers that the crate knows.
pub(crate) fn merge(table: &mut Table, sources: &Path) -> Result<()> {
    for (name, definition) in &mut table.definitions {
        let Some(path) = name.strip_prefix("io.k8s.") else { continue };
        let Some((module, message)) = path.rsplit_once('.') else { continue };
        let file = sources.join(module.replace('-', "_").replace('.', "/")).join("mod.rs");
        if !file.exists() {
            continue;
        }
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (field, number) in numbers(&text, message) {
            let wanted = plain(field);
            if let Some((_, field)) = definition.fields.iter_mut().find(|(name, _)| plain(name) == wanted) {
                field.number = number;
            }
        }
    }
    Ok(())
}

/// Rust field names of a message with their numbers.
fn numbers<'t>(text: &'t str, message: &str) -> Vec<(&'t str, u32)> {
    // The crate spells `PodIP` as `PodIp`.
    let is_message = |line: &&str| {
        let name = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {"));
        name.is_some_and(|name| name.eq_ignore_ascii_case(message))
    };
    let mut lines = text.lines();
    if lines.by_ref().find(is_message).is_none() {
        return Vec::new();
    }
    let mut number = None;
    let mut fields = Vec::new();
    for line in lines.take_while(|line| *line != "}").map(str::trim) {
        if let Some((_, rest)) = line.split_once("tag = \"") {
            number = rest.split_once('"').and_then(|(digits, _)| digits.parse().ok());
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')) {
            fields.extend(number.take().map(|number| (name.trim_start_matches("r#"), number)));
        }
    }
    fields
}

/// Names without what spelling conventions add: `pod_ips` and `podIPs` agree, and so do `$ref` and `ref`.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}
