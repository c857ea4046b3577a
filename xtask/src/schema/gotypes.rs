//! What upstream's Go types say and OpenAPI does not, as a table of its own (`cargo xtask generate protobuf`): protobuf
//! numbers, messages that a type embeds, and the fields whose zero JSON shows. Source: the tags in `types.go`.
//!
//! A definition a line; below it `TAB field TAB number TAB attributes`:
//! - `in=2` or `in=2.2`: the numbers of the messages, from the outside in, that the Go type embeds and JSON does not show;
//! - `zero`: JSON shows the field also where its value is zero (a pointer, or a field without `omitempty`);
//! - `wire=…`: a union of JSON forms that protobuf spells out (`JSONSchemaPropsOrBool` and its kin).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::table::{Field as TableField, Table};

/// Upstream's modules that hold types of the API, as `staging/src/k8s.io` lays them out.
const MODULES: [&str; 4] = ["api", "apimachinery/pkg", "apiextensions-apiserver/pkg", "kube-aggregator/pkg"];
/// Go types that are one of several JSON forms.
const UNIONS: [(&str, &str); 3] = [
    ("JSONSchemaPropsOrArray", "schemaOrArray"),
    ("JSONSchemaPropsOrBool", "schemaOrBool"),
    ("JSONSchemaDependencies", "schemaOrStrings"),
];
/// Scalars are told apart from structs, lists and maps by name: a type that is none of these is a text of its own.
const SCALARS: [&str; 9] = ["bool", "int", "int8", "int16", "int32", "int64", "string", "float32", "float64"];

/// A field of a Go struct.
#[derive(Debug, Clone, Default)]
struct GoField {
    json: String,
    number: u32,
    /// Without `*`, `[]` and package.
    ty: String,
    pointer: bool,
    omits_zero: bool,
    /// Its fields stand among those of the struct.
    inline: bool,
}

/// What the types of one package say.
#[derive(Default)]
struct Package {
    structs: BTreeMap<String, Vec<GoField>>,
    /// `type Phase string`: named scalars.
    scalars: Vec<String>,
    /// `type Verbs []string`: named lists, which are messages whose first field repeats.
    lists: Vec<String>,
}

/// The table of all packages below `staging`.
pub(crate) fn generate(staging: &Path) -> Result<String> {
    let mut out = String::from(
        "# What upstream's Go types say of protobuf. Made by `cargo xtask generate protobuf`.\n\
         # definition; TAB field TAB number TAB attributes: in=embedding messages, zero=shown though zero, wire=union\n",
    );
    for module in MODULES {
        for directory in packages(&staging.join(module))? {
            let relative = directory.strip_prefix(staging).unwrap_or(&directory);
            let dotted = relative.to_string_lossy().replace('/', ".");
            print(&mut out, &format!("io.k8s.{dotted}"), &read(&directory)?);
        }
    }
    Ok(out)
}

/// Directories with protobuf messages, in order. Alpha versions are not served.
fn packages(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(root)
        .with_context(|| format!("cannot read {}", root.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    if root.join("generated.proto").exists() {
        found.push(root.to_owned());
    }
    for entry in entries {
        let alpha = entry.file_name().is_some_and(|name| name.to_string_lossy().contains("alpha"));
        if entry.is_dir() && !alpha {
            found.extend(packages(&entry)?);
        }
    }
    Ok(found)
}

fn read(directory: &Path) -> Result<Package> {
    let mut package = Package::default();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let generated =
            name.starts_with("generated") || name.starts_with("zz_") || name.ends_with("_test.go");
        if name.ends_with(".go") && !generated {
            read_file(&fs::read_to_string(&path)?, &mut package);
        }
    }
    Ok(package)
}

fn read_file(text: &str, package: &mut Package) {
    let mut current: Option<(String, Vec<GoField>)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("type ") {
            match rest.split_whitespace().collect::<Vec<_>>()[..] {
                [name, "struct", "{", ..] => current = Some((name.to_owned(), Vec::new())),
                [name, scalar, ..] if SCALARS.contains(&scalar) => package.scalars.push(name.to_owned()),
                [name, list, ..] if list.starts_with("[]") => package.lists.push(name.to_owned()),
                _ => {}
            }
        } else if line == "}" {
            package.structs.extend(current.take());
        } else if let Some((_, fields)) = &mut current {
            fields.extend(field(line));
        }
    }
}

/// Reads a field's line: its name (none: embedded), its type and its tags.
fn field(line: &str) -> Option<GoField> {
    let line = line.trim();
    if line.starts_with("//") {
        return None;
    }
    let (declared, rest) = line.split_once('`')?;
    let tags = rest.split('`').next()?;
    let mut json = tag(tags, "json")?.split(',');
    let name = json.next().unwrap_or_default();
    let options: Vec<&str> = json.collect();
    let number = tag(tags, "protobuf").and_then(|tag| tag.split(',').nth(1)?.parse().ok()).unwrap_or(0);
    let ty = declared.split_whitespace().last()?;
    Some(GoField {
        json: name.to_owned(),
        number,
        ty: ty.trim_start_matches('*').rsplit('.').next()?.to_owned(),
        pointer: ty.starts_with('*'),
        omits_zero: options.iter().any(|option| matches!(*option, "omitempty" | "omitzero")),
        inline: name.is_empty(),
    })
}

fn tag<'t>(tags: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = tags.split_once(&format!("{name}:\""))?;
    rest.split('"').next()
}

fn print(out: &mut String, prefix: &str, package: &Package) {
    for name in package.structs.keys() {
        let mut lines = BTreeMap::new();
        collect(package, name, &[], &mut lines);
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(out, "{prefix}.{name}");
        for (field, facts) in lines {
            let _ = writeln!(out, "\t{field}\t{facts}");
        }
    }
}

/// The facts of a struct's fields, with those of the structs that it embeds.
fn collect(package: &Package, name: &str, within: &[u32], lines: &mut BTreeMap<String, String>) {
    for field in package.structs.get(name).into_iter().flatten() {
        if field.inline && field.number > 0 {
            collect(package, &field.ty, &[within, &[field.number]].concat(), lines);
        } else if field.number > 0 && field.json != "-" {
            lines.insert(field.json.clone(), facts(package, field, within));
        }
    }
}

fn facts(package: &Package, field: &GoField, within: &[u32]) -> String {
    let list = package.lists.contains(&field.ty);
    let within = if list { [within, &[field.number]].concat() } else { within.to_vec() };
    let mut facts = if list { "1".to_owned() } else { field.number.to_string() };
    if !within.is_empty() {
        let path: Vec<String> = within.iter().map(u32::to_string).collect();
        let _ = write!(facts, "\tin={}", path.join("."));
    }
    if let Some((_, wire)) = UNIONS.iter().find(|(union, _)| *union == field.ty) {
        let _ = write!(facts, "\twire={wire}");
    }
    // Types of other packages may be texts (`types.UID`) or structs: the merge, which knows, tells them apart.
    let container = list || field.ty.starts_with("[]") || field.ty.starts_with("map[");
    let scalar = SCALARS.contains(&field.ty.as_str()) || package.scalars.contains(&field.ty);
    let foreign = !package.structs.contains_key(&field.ty);
    if !container && (scalar || foreign) && (field.pointer || !field.omits_zero) {
        facts.push_str("\tzero");
    }
    facts
}

/// Brings the facts into the schema's table.
pub(crate) fn merge(table: &mut Table, text: &str) -> Result<()> {
    // The zero of an object says nothing: JSON shows it in any case.
    let objects: Vec<String> = table
        .definitions
        .iter()
        .filter(|(_, definition)| !definition.attributes.contains_key("alias"))
        .map(|(name, _)| name.clone())
        .collect();
    let mut current = None;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let Some(rest) = line.strip_prefix('\t') else {
            current = table.definitions.get_mut(line);
            continue;
        };
        let Some(definition) = &mut current else { continue };
        let mut parts = rest.split('\t');
        let (Some(name), Some(number)) = (parts.next(), parts.next()) else {
            bail!("protobuf.tsv:{}: a field has a name and a number", index + 1);
        };
        let Some(field) = definition.fields.get_mut(name) else { continue };
        field.number = number.parse().with_context(|| format!("protobuf.tsv:{}", index + 1))?;
        let object = objects.binary_search(&field.ty).is_ok();
        mark(field, parts.filter(|fact| !(object && *fact == "zero")));
    }
    Ok(())
}

fn mark<'t>(field: &mut TableField, attributes: impl Iterator<Item = &'t str>) {
    for attribute in attributes {
        let (key, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        field.attributes.insert(key.to_owned(), value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_structs_and_zeros_are_read_from_tags() {
        let mut package = Package::default();
        let source = "type Named struct {\n\
            \t// Name.\n\
            \tResourceNames []string `json:\"resourceNames,omitempty\" protobuf:\"bytes,1,rep,name=resourceNames\"`\n\
            \tRuled `json:\",inline\" protobuf:\"bytes,2,opt,name=ruled\"`\n\
            }\n\
            type Ruled struct {\n\
            \tRule `json:\",inline\" protobuf:\"bytes,2,opt,name=rule\"`\n\
            }\n\
            type Rule struct {\n\
            \tScope *ScopeType `json:\"scope,omitempty\" protobuf:\"bytes,4,opt,name=scope\"`\n\
            \tKey string `json:\"key\" protobuf:\"bytes,5,opt,name=key\"`\n\
            \tNote string `json:\"note,omitempty\" protobuf:\"bytes,6,opt,name=note\"`\n\
            \tVerbs Verbs `json:\"verbs\" protobuf:\"bytes,7,opt,name=verbs\"`\n\
            }\n\
            type Verbs []string\n\
            type ScopeType string\n";
        read_file(source, &mut package);
        let mut out = String::new();
        print(&mut out, "p", &package);
        let named = "p.Named\n\tkey\t5\tin=2.2\tzero\n\tnote\t6\tin=2.2\n\tresourceNames\t1\n\tscope\t4\tin=2.2\tzero\n\
            \tverbs\t1\tin=2.2.7\n";
        assert!(out.starts_with(named), "{out}");
    }
}
