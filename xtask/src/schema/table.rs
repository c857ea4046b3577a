//! The table while it is being made, and its text form (which `api::schema` reads).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

/// All definitions, by name.
#[derive(Default)]
pub(crate) struct Table {
    pub definitions: BTreeMap<String, Definition>,
}

/// A definition: attributes (`kind=group/version/Kind`, `alias=quantity`, `map=atomic`, …) and fields by name.
#[derive(Default, Clone)]
pub(crate) struct Definition {
    pub attributes: Attributes,
    pub fields: BTreeMap<String, Field>,
}

/// A field: its type, its protobuf number (0: none known) and attributes (`required`, `list=map:a,b`, …).
#[derive(Default, Clone)]
pub(crate) struct Field {
    pub ty: String,
    pub number: u32,
    pub attributes: Attributes,
}

/// Attributes by name; a flag has an empty value.
pub(crate) type Attributes = BTreeMap<String, String>;

impl Table {
    /// Applies an overlay: a definition that is not there is added, a field's attributes are added to what is there.
    /// `-` as a type keeps the field's type and number, `!` takes the field away. `like=DEFINITION` begins with a copy of
    /// another definition; a kind gets a list like the other's. `-` as the number of a new type keeps number and attributes.
    pub(crate) fn overlay(&mut self, text: &str) -> Result<()> {
        let mut current = String::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix('\t') {
                let definition = self.definitions.get_mut(&current);
                let definition =
                    definition.with_context(|| format!("overlay:{line_number}: no definition"))?;
                overlay_field(definition, rest).with_context(|| format!("overlay:{line_number}"))?;
            } else {
                let mut parts = line.split('\t');
                current = parts.next().unwrap_or_default().to_owned();
                let mut attributes: Attributes = parts.map(attribute).collect();
                if let Some(model) = attributes.remove("like") {
                    self.copy(&model, &current, &attributes)
                        .with_context(|| format!("overlay:{line_number}"))?;
                }
                self.definitions.entry(current.clone()).or_default().attributes.extend(attributes);
            }
        }
        Ok(())
    }

    /// Adds a definition with the fields of another, and the list of it where it is a kind.
    fn copy(&mut self, model: &str, name: &str, attributes: &Attributes) -> Result<()> {
        let known = |table: &Self, name: &str| {
            let found = table.definitions.get(name).cloned();
            found.with_context(|| format!("there is no definition {name}"))
        };
        let mut copy = known(self, model)?;
        copy.attributes.retain(|name, _| name != "kind" && name != "since");
        self.definitions.insert(name.to_owned(), copy);
        if let Some(kind) = attributes.get("kind") {
            let mut list = known(self, &format!("{model}List"))?;
            list.attributes.insert("kind".into(), format!("{kind}List"));
            let items = list.fields.get_mut("items").context("a list has items")?;
            items.ty = format!("[]{name}");
            self.definitions.insert(format!("{name}List"), list);
        }
        Ok(())
    }

    /// The text form.
    pub(crate) fn print(&self, release: &str) -> String {
        let mut out = format!(
            "# Kubernetes {release}: definitions and, below each, its fields. Made by `cargo xtask generate schema`.\n\
             # definition TAB attributes; TAB field TAB type TAB protobuf number TAB attributes\n"
        );
        for (name, definition) in &self.definitions {
            out.push_str(name);
            print_attributes(&mut out, &definition.attributes);
            for (name, field) in &definition.fields {
                let _ = write!(out, "\t{name}\t{}\t{}", field.ty, field.number);
                print_attributes(&mut out, &field.attributes);
            }
        }
        out
    }
}

fn overlay_field(definition: &mut Definition, line: &str) -> Result<()> {
    let mut parts = line.split('\t');
    let name = parts.next().context("a field has a name")?;
    let ty = parts.next().context("a field has a type, `-` or `!`")?;
    if ty == "!" {
        definition.fields.remove(name).with_context(|| format!("there is no field {name}"))?;
        return Ok(());
    }
    if ty != "-" {
        let number = parts.next().context("a new field has a protobuf number or `-`")?;
        if number == "-" {
            let field =
                definition.fields.get_mut(name).with_context(|| format!("there is no field {name}"))?;
            ty.clone_into(&mut field.ty);
            field.attributes.extend(parts.map(attribute));
            return Ok(());
        }
        let number = number.parse()?;
        let field = Field { ty: ty.to_owned(), number, attributes: Attributes::new() };
        definition.fields.insert(name.to_owned(), field);
    }
    let Some(field) = definition.fields.get_mut(name) else { bail!("there is no field {name}") };
    field.attributes.extend(parts.map(attribute));
    Ok(())
}

fn attribute(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

fn print_attributes(out: &mut String, attributes: &Attributes) {
    for (name, value) in attributes {
        out.push('\t');
        out.push_str(name);
        if !value.is_empty() {
            out.push('=');
            out.push_str(value);
        }
    }
    out.push('\n');
}
