//! Protobuf numbers, from the sources of k8s-pb (`#[prost(…, tag = "3")]` above each field).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::table::{Definition, Field, Table};

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
        for entry in numbers(&text, message) {
            if let Some(field) = field_mut(definition, entry.name) {
                field.number = entry.number;
                continue;
            }
            // JSON shows the fields of a message that the Go type embeds as the definition's own.
            for inner in numbers(&text, entry.ty) {
                let field = field_mut(definition, inner.name);
                if let Some(field) = field.filter(|field| field.number == 0) {
                    field.number = inner.number;
                    field.attributes.insert("in".to_owned(), entry.number.to_string());
                }
            }
        }
    }
    Ok(())
}

fn field_mut<'d>(definition: &'d mut Definition, name: &str) -> Option<&'d mut Field> {
    let wanted = plain(name);
    definition.fields.iter_mut().find(|(name, _)| plain(name) == wanted).map(|(_, field)| field)
}

/// A field of a Rust message: its name, its number, and the last name in its type.
struct Entry<'t> {
    name: &'t str,
    number: u32,
    ty: &'t str,
}

/// The fields of a Rust message.
fn numbers<'t>(text: &'t str, message: &str) -> Vec<Entry<'t>> {
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
        } else if let Some((name, ty)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')) {
            let ty = ty.trim_end_matches(['>', ',']).rsplit([':', '<']).next().unwrap_or_default();
            fields.extend(number.take().map(|number| Entry {
                name: name.trim_start_matches("r#"),
                number,
                ty,
            }));
        }
    }
    fields
}

/// Names without what spelling conventions add: `pod_ips` and `podIPs` agree, and so do `$ref` and `ref`.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}
