//! Reads the generated sources of k8s-openapi: definitions, their fields and their prose. Used by `api`'s build script
//! (descriptions) and by `cargo xtask generate schema` (structure of what a newer release added).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A definition (`io.k8s.api.core.v1.Pod`) as its source file says it.
#[allow(dead_code, reason = "each of the two users looks at its own half")]
pub struct Definition {
    pub name: String,
    pub doc: String,
    /// Group, version, kind, where it is a kind.
    pub kind: Option<[String; 3]>,
    pub fields: Vec<Field>,
}

/// A field of a definition.
#[allow(dead_code, reason = "each of the two users looks at its own half")]
pub struct Field {
    /// Its name in JSON.
    pub json: String,
    pub doc: String,
    /// The Rust type, without a surrounding `Option`.
    pub rust_type: String,
    pub required: bool,
    /// `set`, `map:key,key` or `atomic`, for lists.
    pub list: Option<String>,
}

/// The newest release that the crate's sources hold: `src/v1_37` for example.
pub fn newest_release(crate_root: &Path) -> Option<PathBuf> {
    let releases = fs::read_dir(crate_root.join("src")).ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        let minor: u32 = path.file_name()?.to_str()?.strip_prefix("v1_")?.parse().ok()?;
        Some((minor, path))
    });
    releases.max().map(|(_, path)| path)
}

/// All definitions below a directory, by name.
pub fn read(directory: &Path) -> std::io::Result<BTreeMap<String, Definition>> {
    let mut definitions = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && let Some(definition) = parse(&fs::read_to_string(&path)?)
            {
                definitions.insert(definition.name.clone(), definition);
            }
        }
    }
    Ok(definitions)
}

fn parse(text: &str) -> Option<Definition> {
    let name = text.lines().next()?.strip_prefix("// Generated from definition ")?.trim().to_owned();
    let mut doc = Vec::new();
    let mut lines = text.lines().skip(1);
    let mut fields = Vec::new();
    for line in lines.by_ref() {
        if let Some(prose) = line.strip_prefix("///") {
            doc.push(prose.trim());
        } else if line.starts_with("pub struct ") && line.ends_with('{') {
            fields = parse_fields(lines, text);
            break;
        } else if line.starts_with("pub ") {
            break;
        }
    }
    let constant = |name: &str| {
        let (_, rest) = text.split_once(&format!("const {name}: &'static str = \""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let kind = (|| Some([constant("GROUP")?, constant("VERSION")?, constant("KIND")?]))();
    Some(Definition { name, doc: doc.join("\n"), kind, fields })
}

fn parse_fields<'t>(lines: impl Iterator<Item = &'t str>, text: &str) -> Vec<Field> {
    let names = json_names(text);
    let mut fields = Vec::new();
    let mut doc = Vec::new();
    for line in lines.take_while(|line| *line != "}").map(str::trim) {
        if let Some(prose) = line.strip_prefix("///") {
            doc.push(prose.trim());
        } else if let Some((rust, ty)) =
            line.strip_prefix("pub ").and_then(|rest| rest.trim_end_matches(',').split_once(": "))
        {
            let optional = ty.strip_prefix("Option<").and_then(|inner| inner.strip_suffix('>'));
            fields.push(Field {
                json: names.get(rust).copied().unwrap_or(rust).to_owned(),
                doc: std::mem::take(&mut doc).join("\n"),
                rust_type: optional.unwrap_or(ty).to_owned(),
                required: optional.is_none(),
                list: list_type(text, rust, &names),
            });
        }
    }
    fields
}

/// Rust names to JSON names, from the deserializer's own table.
fn json_names(text: &str) -> BTreeMap<&str, &str> {
    let pairs = text.lines().filter_map(|line| {
        let (json, rust) = line.trim().split_once(" => Field::Key_")?;
        Some((rust.trim_end_matches(','), json.trim_matches('"')))
    });
    pairs.collect()
}

/// The list type, from how the deep merge of the field is written.
fn list_type(text: &str, rust: &str, names: &BTreeMap<&str, &str>) -> Option<String> {
    let place = text.find(&format!("(&mut self.{rust}, ")).or_else(|| {
        let place = text.find(&format!("&mut self.{rust},\n"))?;
        text[..place].rfind('(')
    })?;
    let (_, strategy) = text[..place].rsplit_once("::list::")?;
    match strategy {
        "set" | "atomic" => Some(strategy.to_owned()),
        "map" => {
            let keys = text[place..].split_once("&[|lhs, rhs| ")?.1.split_once(']')?.0;
            let keys = keys.split("&&").filter_map(|part| {
                let (rust, _) = part.trim().strip_prefix("lhs.")?.split_once(' ')?;
                Some(names.get(rust).copied().unwrap_or(rust))
            });
            // The keys are those of an item, whose names its own file knows; camel case is the rule.
            Some(format!("map:{}", keys.map(camel).collect::<Vec<_>>().join(",")))
        }
        _ => None,
    }
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let mut letters = part.chars();
        let initial = letters.next().map(|letter| letter.to_ascii_uppercase());
        name + &initial.into_iter().chain(letters).collect::<String>()
    })
}
