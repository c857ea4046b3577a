//! A CustomResourceDefinition's schema as it is written: `JSONSchemaProps` of `apiextensions.k8s.io/v1`, with its patterns
//! compiled. Pruning, defaulting and validation walk it beside a value.

use std::collections::BTreeMap;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Number, Value};

use super::rules::{self, Compiled};
use crate::regexps::{self, Failed};

/// The largest program that a pattern may compile to: a schema has many patterns.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// The longest text of one: a program is some times as long.
const PATTERN_TEXT_MAX: usize = PATTERN_BYTES_MAX / 8;

/// One node of a schema. Fields have upstream's names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "upstream's names: apiextensions/v1 JSONSchemaProps")]
pub struct Props {
    #[serde(rename = "type")]
    pub ty: String,
    pub title: String,
    pub description: String,
    pub format: String,
    pub nullable: bool,
    pub default: Option<Value>,
    pub maximum: Option<Number>,
    pub exclusive_maximum: bool,
    pub minimum: Option<Number>,
    pub exclusive_minimum: bool,
    pub max_length: Option<u64>,
    pub min_length: Option<u64>,
    pub pattern: String,
    pub max_items: Option<u64>,
    pub min_items: Option<u64>,
    pub unique_items: bool,
    pub multiple_of: Option<Number>,
    #[serde(rename = "enum")]
    pub values: Option<Vec<Value>>,
    pub max_properties: Option<u64>,
    pub min_properties: Option<u64>,
    pub required: Vec<String>,
    pub items: Option<Items>,
    pub additional_items: Option<Value>,
    pub additional_properties: Option<Additional>,
    pub properties: BTreeMap<String, Props>,
    pub pattern_properties: BTreeMap<String, Value>,
    pub definitions: BTreeMap<String, Value>,
    pub dependencies: BTreeMap<String, Value>,
    pub all_of: Vec<Props>,
    pub any_of: Vec<Props>,
    pub one_of: Vec<Props>,
    pub not: Option<Box<Props>>,
    #[serde(rename = "$ref")]
    pub reference: Option<String>,
    pub id: String,
    #[serde(rename = "$schema")]
    pub schema: String,
    #[serde(rename = "x-kubernetes-preserve-unknown-fields")]
    pub preserve_unknown: Option<bool>,
    #[serde(rename = "x-kubernetes-embedded-resource")]
    pub embedded: bool,
    #[serde(rename = "x-kubernetes-int-or-string")]
    pub int_or_string: bool,
    #[serde(rename = "x-kubernetes-list-type")]
    pub list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    pub list_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    pub map_type: Option<String>,
    #[serde(rename = "x-kubernetes-validations")]
    pub rules: Vec<Rule>,
    /// The pattern, where there is one and it is a regular expression.
    #[serde(skip)]
    pub compiled: Option<Regex>,
    /// The rules, where they were compiled.
    #[serde(skip)]
    pub(super) compiled_rules: Vec<Compiled>,
    /// Whether a compiled rule stands here or below.
    #[serde(skip)]
    pub(super) with_rules: bool,
}

/// A CEL rule. Source: apiextensions/v1 `ValidationRule`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "upstream's names")]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: Option<String>,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

/// `items`: one schema, or (which no structural schema has) several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "the names say all there is to say")]
pub enum Items {
    One(Box<Props>),
    Several(Vec<Props>),
}

/// `additionalProperties`: whether there may be any, or what they look like.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "the names say all there is to say")]
pub enum Additional {
    Allowed(bool),
    Schema(Box<Props>),
}

impl Props {
    /// Reads a schema; the error says what of it is no schema.
    pub fn read(schema: &Value) -> Result<Self, String> {
        let mut props = Self::deserialize(schema).map_err(|error| error.to_string())?;
        props.compile();
        Ok(props)
    }

    /// Compiles the patterns; one that is none is left out (and refused where the definition is checked).
    fn compile(&mut self) {
        if !self.pattern.is_empty() {
            self.compiled = pattern(&self.pattern).ok();
        }
        self.children_mut().for_each(Self::compile);
    }

    /// Compiles the rules; one that is none is left out (and refused where the definition is checked).
    pub(super) fn compile_rules(&mut self) {
        self.compiled_rules = self.rules.iter().filter_map(|rule| rules::compile(rule).ok()).collect();
        self.children_mut().for_each(Self::compile_rules);
        self.with_rules =
            !self.compiled_rules.is_empty() || self.children_mut().any(|child| child.with_rules);
    }

    fn children_mut(&mut self) -> impl Iterator<Item = &mut Self> {
        let items = self.items.iter_mut().flat_map(|items| match items {
            Items::One(one) => std::slice::from_mut(&mut **one),
            Items::Several(several) => several.as_mut_slice(),
        });
        let additional = self.additional_properties.iter_mut().filter_map(|additional| match additional {
            Additional::Schema(schema) => Some(&mut **schema),
            Additional::Allowed(_) => None,
        });
        items
            .chain(additional)
            .chain(self.properties.values_mut())
            .chain(&mut self.all_of)
            .chain(&mut self.any_of)
            .chain(&mut self.one_of)
            .chain(self.not.as_deref_mut())
    }

    /// The schema of a list's items.
    pub fn item(&self) -> Option<&Self> {
        match &self.items {
            Some(Items::One(item)) => Some(item),
            _ => None,
        }
    }

    /// The schema of the values of a map.
    pub fn additional(&self) -> Option<&Self> {
        match &self.additional_properties {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// Whether fields that the schema does not name are kept.
    pub fn preserves(&self) -> bool {
        self.preserve_unknown == Some(true)
            || matches!(self.additional_properties, Some(Additional::Allowed(true)))
    }

    /// The schema under a name: a property, or what a map holds.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or_else(|| self.additional())
    }

    /// Whether the list's items are told apart by keys.
    pub fn is_keyed(&self) -> bool {
        self.list_type.as_deref() == Some("map")
    }

    /// The values of an item's keys, an absent one's default in its place.
    pub fn keys_of<'v>(&'v self, item: &'v Value) -> Vec<&'v Value> {
        let default = |key: &str| self.item()?.properties.get(key)?.default.as_ref();
        let keys = self.list_keys.iter();
        keys.map(|key| item.get(key).or_else(|| default(key)).unwrap_or(&Value::Null)).collect()
    }

    /// Whether a rule stands anywhere in it.
    pub(super) fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.properties.values().any(Self::has_rules)
            || self.item().is_some_and(Self::has_rules)
            || self.additional().is_some_and(Self::has_rules)
    }

    /// Whether a default stands anywhere in it.
    pub fn has_defaults(&self) -> bool {
        self.default.is_some()
            || self.properties.values().any(Self::has_defaults)
            || self.item().is_some_and(Self::has_defaults)
            || self.additional().is_some_and(Self::has_defaults)
    }
}

/// A regular expression as schemas have it, bounded in size; the failure is upstream's.
pub fn pattern(text: &str) -> Result<Regex, String> {
    let compiled = match text.len() {
        length if length > PATTERN_TEXT_MAX => Err(Failed::TooLarge),
        _ => regexps::compile(text, PATTERN_BYTES_MAX),
    };
    compiled.map_err(|failed| match failed {
        Failed::TooLarge => "error parsing regexp: expression too large".to_owned(),
        Failed::Wrong(problem) => problem,
    })
}
