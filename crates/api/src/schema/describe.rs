//! Descriptions of definitions and fields, opened on demand from the compressed text that the build script made of the
//! k8s-openapi dependency's documentation. Held only while a document is being made.

use std::collections::HashMap;
use std::io::Read as _;

static COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));

/// So often a definition is like one that is like another, at most.
const LIKE_MAX: usize = 8;

/// Prose by definition and field.
#[derive(Debug, Default)]
pub struct Descriptions {
    definitions: HashMap<String, Described>,
}

#[derive(Debug, Default)]
struct Described {
    own: String,
    /// The definition that has the descriptions of this one.
    like: Option<String>,
    fields: HashMap<String, String>,
}

impl Descriptions {
    /// Opens the descriptions of the built-in API.
    pub fn open() -> Self {
        let mut text = String::new();
        // The bytes are part of the program; were they broken, documents would lack prose and nothing else.
        let _ = flate2::read::GzDecoder::new(COMPRESSED).read_to_string(&mut text);
        let mut definitions: HashMap<String, Described> = HashMap::new();
        let mut current = String::new();
        for line in text.lines() {
            match line.strip_prefix('\t').and_then(|field| field.split_once('\t')) {
                Some((field, prose)) => {
                    let described = definitions.entry(current.clone()).or_default();
                    described.fields.insert(field.to_owned(), unescape(prose));
                }
                None => {
                    let (name, prose) = line.split_once('\t').unwrap_or((line, ""));
                    name.clone_into(&mut current);
                    let described = definitions.entry(current.clone()).or_default();
                    match prose.strip_prefix('\t') {
                        Some(like) => described.like = Some(like.to_owned()),
                        None => described.own = unescape(prose),
                    }
                }
            }
        }
        Self { definitions }
    }

    /// What is told of a definition, or of the one that it is like.
    fn of(&self, name: &str) -> Option<&Described> {
        let mut described = self.definitions.get(name)?;
        // One retired version may be like another; a table that led in a circle would end here, too.
        for _ in 0..LIKE_MAX {
            let Some(like) = &described.like else { break };
            described = self.definitions.get(like)?;
        }
        Some(described)
    }

    /// What a definition is.
    pub fn definition(&self, name: &str) -> Option<&str> {
        self.of(name).map(|described| described.own.as_str()).filter(|own| !own.is_empty())
    }

    /// What a field is. `apiVersion` and `kind`, which the sources leave out, have a sentence of their own.
    pub fn field(&self, definition: &str, field: &str) -> Option<&str> {
        let described = self.of(definition).and_then(|described| described.fields.get(field));
        described.map(String::as_str).or(match field {
            "apiVersion" => Some("The group and version in which this object is written."),
            "kind" => Some("The kind of this object, in CamelCase."),
            "metadata" => Some("Standard metadata."),
            "items" => Some("The objects of the list."),
            _ => None,
        })
    }
}

fn unescape(prose: &str) -> String {
    let mut out = String::with_capacity(prose.len());
    let mut letters = prose.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '\\') {
            (_, true) => match letters.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => {}
            },
            (letter, false) => out.push(letter),
        }
    }
    out
}
