//! Whether a CustomResourceDefinition's schema is structural and says nothing that a server cannot hold objects to.
//! Source: `apiextensions-apiserver/pkg/apiserver/schema/validation.go`, `complete.go` and `apis/apiextensions/validation`.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Serialize;
use serde_json::{Value, json};

use super::causes::{ADDITIONAL, Gathered, ITEMS, Step, Trail};
use super::expressions::{self, Before};
use super::props::{Additional, Items, Props, Rule};
use super::{causes, fill, prune, rules, validate};
use crate::status::Cause;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What is wrong with a schema apart from its rules; `path` is its own.
pub fn check_schema(path: &str, schema: &Value) -> Vec<Cause> {
    let props = match Props::read(schema) {
        Ok(props) => props,
        Err(error) => return vec![causes::invalid(path, &json!(""), error)],
    };
    let mut check = Check { causes: Gathered::default() };
    let root = &Trail::root(path);
    if props.nullable {
        check.forbidden(root.below(Step::Plain("nullable")), "nullable cannot be true at the root");
    }
    check.structural(&props, Level::Root, root);
    check.open_api(&props, root);
    if check.causes.is_empty() {
        check.defaults(&props, root, false);
    }
    check.causes.told()
}

/// What is wrong with the rules of a schema that is valid apart from them; `version` is the name of the version that has
/// it, `before` how its definition was before an update. Takes up to seconds.
pub fn check_rules(path: &str, schema: &Value, version: &str, before: Option<&Before<'_>>) -> Vec<Cause> {
    let unchanged = before.is_some_and(|before| before.has(version, schema));
    Props::read(schema)
        .map_or_else(|_| Vec::new(), |props| expressions::check(&props, path, before, unchanged))
}

struct Check {
    causes: Gathered,
}

impl Check {
    /// Gathers a failure, which is made only if it is told.
    fn say(&mut self, path: impl Display, cause: impl FnOnce(&str) -> Cause) {
        if !self.causes.is_full() {
            self.causes.push(cause(&path.to_string()));
        }
    }

    fn forbidden(&mut self, path: impl Display, detail: &str) {
        self.say(path, |path| causes::forbidden(path, detail));
    }

    fn required(&mut self, path: impl Display, detail: &str) {
        self.say(path, |path| causes::required(path, detail));
    }

    fn invalid(&mut self, path: impl Display, value: impl Serialize, detail: &str) {
        self.say(path, |path| causes::invalid(path, &json!(value), detail));
    }

    fn not_supported(&mut self, path: impl Display, value: &str, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|one| (*one).to_owned()).collect();
        self.say(path, |path| causes::not_supported(path, &json!(value), &supported));
    }

    fn structural(&mut self, schema: &Props, level: Level, path: &Trail<'_>) {
        if self.causes.is_full() {
            return;
        }
        if schema.ty == "array" && schema.items.is_none() {
            self.required(path.below(Step::Plain("items")), "must be specified");
        }
        if let Some(item) = schema.item() {
            self.structural(item, Level::Item, &path.below(ITEMS));
        }
        for (name, property) in &schema.properties {
            self.structural(property, Level::Field, &path.below(Step::Property(name)));
        }
        if schema.additional_properties.is_some() && level == Level::Root {
            self.forbidden(path.below(Step::Plain("additionalProperties")), "must not be used at the root");
        }
        if let Some(additional) = schema.additional() {
            self.structural(additional, Level::Field, &path.below(ADDITIONAL));
        }
        self.extensions(schema, path);
        self.own_type(schema, level, path);
        self.metadata(schema, level, path);
        self.values(schema, is_int_or_string(&schema.any_of), path);
        for (index, one) in nested(schema) {
            self.complete(one, schema, &path.below(Step::Plain(&index)), path);
        }
    }

    fn extensions(&mut self, schema: &Props, path: &Trail<'_>) {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        if schema.int_or_string && schema.preserve_unknown == Some(true) {
            self.invalid(path.below(Step::Plain("x-kubernetes-preserve-unknown-fields")), true, detail);
        }
        if schema.int_or_string && schema.embedded {
            self.invalid(path.below(Step::Plain("x-kubernetes-embedded-resource")), true, detail);
        }
        if schema.embedded && schema.additional_properties.is_some() {
            let detail = "must not be used if x-kubernetes-embedded-resource is set";
            self.forbidden(path.below(Step::Plain("additionalProperties")), detail);
        }
        if schema.embedded && !schema.preserves() && schema.properties.is_empty() {
            let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                          x-kubernetes-preserve-unknown-fields";
            self.required(path.below(Step::Plain("properties")), detail);
        }
    }

    fn own_type(&mut self, schema: &Props, level: Level, path: &Trail<'_>) {
        let (ty, at) = (schema.ty.as_str(), path.below(Step::Plain("type")));
        if schema.embedded && ty != "object" {
            let detail = "must be object if x-kubernetes-embedded-resource is true";
            if ty.is_empty() { self.required(&at, detail) } else { self.invalid(&at, ty, detail) }
        } else if ty.is_empty() && !schema.int_or_string && schema.preserve_unknown != Some(true) {
            let detail = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.required(&at, detail);
        }
        if level == Level::Root && !ty.is_empty() && ty != "object" {
            self.invalid(&at, ty, "must be object at the root");
        }
    }

    fn metadata(&mut self, schema: &Props, level: Level, path: &Trail<'_>) {
        if level != Level::Root && !schema.embedded {
            return;
        }
        for name in ["kind", "apiVersion"] {
            if let Some(property) = schema.properties.get(name).filter(|property| property.ty != "string") {
                let at = format!("{path}.properties[{name}].type");
                self.invalid(&at, property.ty.as_str(), "must be string");
            }
        }
        let Some(metadata) = schema.properties.get("metadata") else { return };
        let at = path.below(Step::Property("metadata"));
        if metadata.ty != "object" {
            self.invalid(at.below(Step::Plain("type")), metadata.ty.as_str(), "must be object");
        }
        let plain = metadata.properties.keys().all(|name| name == "name" || name == "generateName")
            && metadata.items.is_none()
            && metadata.additional_properties.is_none()
            && metadata.required.is_empty()
            && metadata.rules.is_empty();
        if level == Level::Root && !plain {
            let detail = "must not specify anything other than name and generateName, but metadata is implicitly \
                          specified";
            self.forbidden(&at, detail);
        }
    }

    /// The parts of a schema that only restrict values.
    fn values(&mut self, schema: &Props, skip_any_of: bool, path: &Trail<'_>) {
        if self.causes.is_full() {
            return;
        }
        let skip_all_of = schema.all_of.first().is_some_and(|first| is_int_or_string(&first.any_of));
        for (index, one) in schema.any_of.iter().enumerate().filter(|_| !skip_any_of) {
            self.nested(one, false, &path.below(Step::Plain(&format!("anyOf[{index}]"))));
        }
        for (index, one) in schema.all_of.iter().enumerate() {
            self.nested(one, skip_all_of && index == 0, &path.below(Step::Plain(&format!("allOf[{index}]"))));
        }
        for (index, one) in schema.one_of.iter().enumerate() {
            self.nested(one, false, &path.below(Step::Plain(&format!("oneOf[{index}]"))));
        }
        if let Some(not) = &schema.not {
            self.nested(not, false, &path.below(Step::Plain("not")));
        }
        if !schema.pattern.is_empty()
            && let Err(error) = super::pattern(&schema.pattern)
        {
            let detail = format!("must be a valid regular expression, but isn't: {error}");
            self.invalid(path.below(Step::Plain("pattern")), schema.pattern.as_str(), &detail);
        }
    }

    /// A schema below a junctor: it restricts and declares nothing.
    fn nested(&mut self, schema: &Props, skip_any_of: bool, path: &Trail<'_>) {
        if self.causes.is_full() {
            return;
        }
        self.values(schema, skip_any_of, path);
        if let Some(item) = schema.item() {
            self.nested(item, false, &path.below(ITEMS));
        }
        for (name, property) in &schema.properties {
            self.nested(property, false, &path.below(Step::Property(name)));
        }
        let declared = [
            (!schema.ty.is_empty(), "type", "must be empty to be structural"),
            (
                schema.additional_properties.is_some(),
                "additionalProperties",
                "must be undefined to be structural",
            ),
            (schema.default.is_some(), "default", "must be undefined to be structural"),
            (!schema.title.is_empty(), "title", "must be empty to be structural"),
            (!schema.description.is_empty(), "description", "must be empty to be structural"),
            (schema.nullable, "nullable", "must be false to be structural"),
            (schema.preserves(), "x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
            (schema.embedded, "x-kubernetes-embedded-resource", "must be false to be structural"),
            (schema.int_or_string, "x-kubernetes-int-or-string", "must be false to be structural"),
            (!schema.list_keys.is_empty(), "x-kubernetes-list-map-keys", "must be empty to be structural"),
            (schema.list_type.is_some(), "x-kubernetes-list-type", "must be undefined to be structural"),
            (schema.map_type.is_some(), "x-kubernetes-map-type", "must be undefined to be structural"),
            (!schema.rules.is_empty(), "x-kubernetes-validations", "must be empty to be structural"),
        ];
        for (_, field, detail) in declared.into_iter().filter(|(declared, _, _)| *declared) {
            self.forbidden(path.below(Step::Plain(field)), detail);
        }
        if schema.properties.contains_key("metadata") {
            let detail = "must not be specified in a nested context";
            self.forbidden(path.below(Step::Property("metadata")), detail);
        }
    }

    fn undeclared(&mut self, path: &Trail<'_>, at: &Trail<'_>) {
        self.say(path, |path| causes::required(path, &format!("because it is defined in {at}")));
    }

    /// What a restriction speaks of has to be declared outside of it.
    fn complete(&mut self, part: &Props, schema: &Props, at: &Trail<'_>, path: &Trail<'_>) {
        if self.causes.is_full() {
            return;
        }
        for (name, property) in &part.properties {
            let (at, path) = (at.below(Step::Property(name)), path.below(Step::Property(name)));
            match schema.child(name) {
                Some(declared) => self.complete(property, declared, &at, &path),
                None if schema.preserves() => {}
                None => self.undeclared(&path, &at),
            }
        }
        if let Some(item) = part.item() {
            let (at, path) = (at.below(ITEMS), path.below(ITEMS));
            match schema.item() {
                Some(declared) => self.complete(item, declared, &at, &path),
                None => self.undeclared(&path, &at),
            }
        }
        for (index, one) in nested(part) {
            self.complete(one, schema, &at.below(Step::Plain(&index)), path);
        }
    }

    /// What no schema may have, and what hangs together.
    fn open_api(&mut self, schema: &Props, path: &Trail<'_>) {
        if self.causes.is_full() {
            return;
        }
        let never = [
            (!schema.id.is_empty(), "id", "id is not supported"),
            (schema.additional_items.is_some(), "additionalItems", "additionalItems is not supported"),
            (
                !schema.pattern_properties.is_empty(),
                "patternProperties",
                "patternProperties is not supported",
            ),
            (!schema.definitions.is_empty(), "definitions", "definitions is not supported"),
            (!schema.dependencies.is_empty(), "dependencies", "dependencies is not supported"),
            (schema.reference.is_some(), "$ref", "$ref is not supported"),
            (
                schema.unique_items,
                "uniqueItems",
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ),
        ];
        for (_, field, detail) in never.into_iter().filter(|(used, _, _)| *used) {
            self.forbidden(path.below(Step::Plain(field)), detail);
        }
        if schema.ty == "null" {
            let detail = "type cannot be set to null, use nullable as an alternative";
            self.forbidden(path.below(Step::Plain("type")), detail);
        } else if !schema.ty.is_empty() && !TYPES.contains(&schema.ty.as_str()) {
            self.not_supported(path.below(Step::Plain("type")), &schema.ty, &TYPES);
        }
        if matches!(schema.items, Some(Items::Several(_))) {
            self.forbidden(
                path.below(Step::Plain("items")),
                "items must be a schema object and not an array",
            );
        }
        let closed_or_typed =
            matches!(schema.additional_properties, Some(Additional::Schema(_) | Additional::Allowed(false)));
        if closed_or_typed && !schema.properties.is_empty() {
            let detail = "additionalProperties and properties are mutual exclusive";
            self.forbidden(path.below(Step::Plain("additionalProperties")), detail);
        }
        if schema.preserve_unknown == Some(false) {
            let at = path.below(Step::Plain("x-kubernetes-preserve-unknown-fields"));
            self.invalid(&at, false, "must be true or undefined");
        }
        self.map_type(schema, path);
        self.list_type(schema, path);
        for (index, rule) in schema.rules.iter().enumerate() {
            self.rule(rule, schema, &path.below(Step::Rule(index)));
        }
        let children = schema.properties.iter().map(|(name, one)| (format!("properties[{name}]"), one));
        let children = children.chain(schema.item().map(|item| ("items".to_owned(), item)));
        let children =
            children.chain(schema.additional().map(|one| ("additionalProperties".to_owned(), one)));
        for (name, child) in children.chain(nested(schema)) {
            self.open_api(child, &path.below(Step::Plain(&name)));
        }
    }

    fn rule(&mut self, rule: &Rule, schema: &Props, path: &Trail<'_>) {
        if self.causes.is_full() {
            return;
        }
        let broken = |text: &str| text.contains(['\n', '\r']);
        let blank = |text: &str| !text.is_empty() && text.trim().is_empty();
        let message = path.below(Step::Plain("message"));
        if rule.rule.trim().is_empty() {
            self.required(path.below(Step::Plain("rule")), "rule is not specified");
        } else if blank(&rule.message) {
            self.invalid(&message, rule.message.as_str(), "must be non-empty if specified");
        } else if broken(rule.message.trim()) {
            self.invalid(&message, rule.message.as_str(), "must not contain line breaks");
        } else if broken(rule.rule.trim()) && rule.message.is_empty() {
            self.required(&message, "message must be specified if rule contains line breaks");
        }
        if blank(&rule.message_expression) {
            let detail = "messageExpression must be non-empty if specified";
            self.required(path.below(Step::Plain("messageExpression")), detail);
        }
        if let Some(reason) = rule.reason.as_deref().filter(|reason| !rules::REASONS.contains(reason)) {
            self.not_supported(path.below(Step::Plain("reason")), reason, &rules::REASONS);
        }
        let problem = match rule.field_path.as_str() {
            "" => return,
            text if blank(text) => "must be non-empty if specified",
            text if broken(text) => "must not contain line breaks",
            text if !expressions::is_path(schema, text) => "must be a valid path",
            _ => return,
        };
        self.invalid(path.below(Step::Plain("fieldPath")), rule.field_path.as_str(), problem);
    }

    fn map_type(&mut self, schema: &Props, path: &Trail<'_>) {
        let Some(map_type) = schema.map_type.as_deref() else { return };
        if schema.ty != "object" {
            let (at, detail) =
                (path.below(Step::Plain("type")), "must be object if x-kubernetes-map-type is specified");
            if schema.ty.is_empty() {
                self.required(&at, detail)
            } else {
                self.invalid(&at, schema.ty.as_str(), detail)
            }
        }
        if !["atomic", "granular"].contains(&map_type) {
            let at = path.below(Step::Plain("x-kubernetes-map-type"));
            self.not_supported(at, map_type, &["atomic", "granular"]);
        }
    }

    fn list_type(&mut self, schema: &Props, path: &Trail<'_>) {
        let at = path.below(Step::Plain("x-kubernetes-list-type"));
        let Some(list_type) = schema.list_type.as_deref() else {
            if !schema.list_keys.is_empty() {
                self.required(&at, "must be map if x-kubernetes-list-map-keys is non-empty");
            }
            return;
        };
        if schema.ty != "array" {
            let (at, detail) =
                (path.below(Step::Plain("type")), "must be array if x-kubernetes-list-type is specified");
            if schema.ty.is_empty() {
                self.required(&at, detail)
            } else {
                self.invalid(&at, schema.ty.as_str(), detail)
            }
        } else if let Some(item) = schema.item().filter(|_| list_type == "set") {
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let list = item.list_type.as_deref();
            if item.ty == "array" && list.is_some_and(|list| list != "atomic") {
                self.invalid(path.below(ITEMS).below(Step::Plain("x-kubernetes-list-type")), list, detail);
            }
            if item.ty == "object" && item.map_type.as_deref() != Some("atomic") {
                self.invalid(path.below(ITEMS).below(Step::Plain("x-kubernetes-map-type")), list, detail);
            }
        }
        if !["atomic", "set", "map"].contains(&list_type) {
            self.not_supported(&at, list_type, &["atomic", "set", "map"]);
        }
        if list_type != "map" {
            if !schema.list_keys.is_empty() {
                self.invalid(&at, list_type, "must be map if x-kubernetes-list-map-keys is non-empty");
            }
            return;
        }
        self.list_keys(schema, path);
    }

    fn list_keys(&mut self, schema: &Props, path: &Trail<'_>) {
        let at = path.below(Step::Plain("x-kubernetes-list-map-keys"));
        if schema.list_keys.is_empty() {
            self.required(&at, "must not be empty if x-kubernetes-list-type is map");
        }
        let Some(item) = schema.item() else {
            return self.required(
                path.below(Step::Plain("items")),
                "must have a schema if x-kubernetes-list-type is map",
            );
        };
        if item.ty != "object" {
            let detail = "must be object if parent array's x-kubernetes-list-type is map";
            return self.invalid(path.below(ITEMS).below(Step::Plain("type")), item.ty.as_str(), detail);
        }
        let mut seen = BTreeSet::new();
        for key in &schema.list_keys {
            if self.causes.is_full() {
                return;
            }
            match item.properties.get(key) {
                Some(property) => {
                    let items = path.below(ITEMS);
                    let place = items.below(Step::Property(key));
                    if matches!(property.ty.as_str(), "array" | "object") {
                        let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                        self.invalid(place.below(Step::Plain("type")), property.ty.as_str(), detail);
                    }
                    if property.nullable {
                        self.forbidden(
                            place.below(Step::Plain("nullable")),
                            "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                        );
                    }
                    if property.default.is_none() && !item.required.contains(key) {
                        let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                        self.required(place.below(Step::Plain("default")), detail);
                    }
                }
                None => self.invalid(&at, &schema.list_keys, "entries must all be names of item properties"),
            }
            if !seen.insert(key) {
                self.invalid(&at, &schema.list_keys, "must not contain duplicate entries");
            }
        }
    }

    /// Defaults are values of their schema.
    fn defaults(&mut self, schema: &Props, path: &Trail<'_>, in_metadata: bool) {
        if self.causes.is_full() {
            return;
        }
        if let Some(default) = &schema.default {
            let at = path.below(Step::Plain("default"));
            if in_metadata {
                self.forbidden(&at, "must not be set in top-level metadata");
            }
            let mut value = default.clone();
            if !prune::prune(&mut value, schema).is_empty() {
                self.invalid(&at, default, "must not have unknown fields");
            }
            fill::default(&mut value, schema);
            for cause in validate::validate(&value, None, schema) {
                self.say(&at, |at| {
                    let field = match cause.field.as_str() {
                        "<nil>" => at.to_owned(),
                        below => format!("{at}.{below}"),
                    };
                    Cause { field, ..cause }
                });
            }
        }
        for (name, property) in &schema.properties {
            let below = in_metadata || (name == "metadata" && path.is_root());
            self.defaults(property, &path.below(Step::Property(name)), below);
        }
        if let Some(item) = schema.item() {
            self.defaults(item, &path.below(ITEMS), in_metadata);
        }
        if let Some(additional) = schema.additional() {
            self.defaults(additional, &path.below(ADDITIONAL), in_metadata);
        }
    }
}

/// The schemas below junctors, with their place.
fn nested(schema: &Props) -> impl Iterator<Item = (String, &Props)> {
    let any_of: &[Props] = if is_int_or_string(&schema.any_of) { &[] } else { &schema.any_of };
    let all_of = named("allOf", &schema.all_of).filter(|(_, one)| !is_int_or_string(&one.any_of));
    let not = schema.not.as_deref().map(|not| ("not".to_owned(), not));
    named("anyOf", any_of).chain(all_of).chain(named("oneOf", &schema.one_of)).chain(not)
}

fn named<'p>(name: &'static str, all: &'p [Props]) -> impl Iterator<Item = (String, &'p Props)> {
    all.iter().enumerate().map(move |(index, one)| (format!("{name}[{index}]"), one))
}

/// `anyOf: [{type: integer}, {type: string}]`, which int-or-string fields carry.
fn is_int_or_string(any_of: &[Props]) -> bool {
    matches!(any_of, [one, other] if one.ty == "integer" && other.ty == "string")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(schema: Value) -> Vec<String> {
        let causes = check_schema("s", &schema);
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn schemas_that_are_not_structural() {
        for (schema, wanted) in [
            (json!({}), "s.type: Required value: must not be empty at the root"),
            (json!({"type": "string"}), "s.type: Invalid value: \"string\": must be object at the root"),
            (
                json!({"type": "object", "properties": {"a": {}}}),
                "s.properties[a].type: Required value: must not be empty for specified object fields",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                "s.properties[a].items: Required value: must be specified",
            ),
            (
                json!({"type": "object", "anyOf": [{"properties": {"x": {"minLength": 1}}}]}),
                "s.properties[x]: Required value: because it is defined in s.anyOf[0].properties[x]",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
                "s.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map",
                    "items": {"type": "object"}}}}),
                "s.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if \
                 x-kubernetes-list-type is map",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
                "s.properties[a].default: Invalid value: \"string\":",
            ),
            (json!({"type": "object", "$ref": "x"}), "s.$ref: Forbidden: $ref is not supported"),
            (json!({"type": 3}), "s: Invalid value: \"\":"),
        ] {
            let all = said(schema);
            assert!(all.first().is_some_and(|first| first.starts_with(wanted)), "{wanted}: {all:?}");
        }
        // Below a junctor nothing has rules, whatever the junctor.
        let rules = json!([{"rule": "true"}]);
        let nested = json!({"properties": {"x": {"x-kubernetes-validations": rules}}});
        for (junctor, below, at) in [
            ("allOf", json!([nested]), "allOf[0]"),
            ("anyOf", json!([nested]), "anyOf[0]"),
            ("oneOf", json!([nested]), "oneOf[0]"),
            ("not", nested.clone(), "not"),
        ] {
            let schema = json!({"type": "object", "properties": {"a": {"type": "object",
                "properties": {"x": {"type": "string"}}, junctor: below}}});
            let wanted = format!(
                "s.properties[a].{at}.properties[x].x-kubernetes-validations: Forbidden: must be empty to be structural"
            );
            assert_eq!(said(schema), [wanted]);
        }
        let good = json!({"type": "object", "properties": {
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "metadata": {"type": "object"}, "free": {"x-kubernetes-preserve-unknown-fields": true},
            "one": {"type": "object", "properties": {"x": {"type": "string"}}, "oneOf": [{"required": ["x"]}]},
        }});
        assert!(said(good).is_empty());
    }
}
