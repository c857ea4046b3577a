//! Whether a CustomResourceDefinition's schema is structural and says nothing that a server cannot hold objects to.
//! Source: `apiextensions-apiserver/pkg/apiserver/schema/validation.go`, `complete.go` and `apis/apiextensions/validation`.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Serialize;
use serde_json::{Value, json};

use super::causes::{ADDITIONAL, Gathered, ITEMS, Step, Trail};
use super::expressions::{self, Before};
use super::props::{Additional, Items, Props, Rule};
use super::{causes, prune, rules, validate};
use crate::cel::Budget;
use crate::status::Cause;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What the schema's root may not have where a status is written apart, since a status is held to `properties.status`
/// alone. Source: `allowedFieldsAtRootSchema`.
const ROOT_OF_STATUS: &str = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum \
     MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example \
     XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
const META_FIELDS: [(&str, &str); 3] = [
    ("apiVersion", "must not be set in top-level apiVersion"),
    ("kind", "must not be set in top-level kind"),
    ("metadata", "must not be set in top-level metadata"),
];

/// What is wrong with a schema apart from its rules; `path` is its own. `with_status`: objects have a status that is
/// written apart, `structural`: the schema has to be structural. What is not structural hides what is wrong with defaults,
/// and nothing else. Source: `validateCustomResourceDefinitionValidation`.
pub fn check_schema(path: &str, schema: &Value, with_status: bool, structural: bool) -> Vec<Cause> {
    let props = match Props::read(schema) {
        Ok(props) => props,
        Err(error) => return vec![causes::invalid(path, &json!(""), error)],
    };
    let root = &Trail::root(path);
    let mut causes = of_root(path, schema, &props, with_status);
    let unreadable = unsupported(&props).filter(|_| structural);
    if structural && unreadable.is_none() {
        causes.extend(unfit_for_rules(&props, root));
    }
    causes.extend(Check::told(|check| check.open_api(&props, root, Context::ROOT)));
    match unreadable {
        Some(detail) if causes.is_empty() => vec![causes::invalid(path, &json!(""), detail)],
        _ => causes,
    }
}

/// What is wrong with the rules of a schema; `version` is the name of the version that has it, `before` how its
/// definition was before an update, `faulty` whether [`check_schema`] found something. Rules are looked at where the whole
/// is structural, its defaults are valid, and nothing is wrong where they stand or below. Takes up to seconds.
pub fn check_rules(
    path: &str,
    schema: &Value,
    version: &str,
    before: Option<&Before<'_>>,
    faulty: bool,
) -> Vec<Cause> {
    let Ok(props) = Props::read(schema) else { return Vec::new() };
    let mut wrong = BTreeSet::new();
    if faulty {
        let root = &Trail::root(path);
        if unsupported(&props).is_some() || !unfit_for_rules(&props, root).is_empty() {
            return Vec::new();
        }
        let causes = Check::told(|check| check.open_api(&props, root, Context::ROOT));
        wrong.extend(causes.into_iter().map(|cause| cause.field));
    }
    let unchanged = before.is_some_and(|before| before.has(version, schema));
    expressions::check(&props, path, before, unchanged, &wrong)
}

/// What keeps a schema from being structural, in upstream's words and order; empty: nothing.
/// Source: `schema.ValidateStructural`.
pub fn check_structure(path: &str, schema: &Value) -> Vec<Cause> {
    let Ok(props) = Props::read(schema) else { return Vec::new() };
    Check::told(|check| check.structural(&props, Level::Root, &Trail::root(path)))
}

/// Whether a schema says something that has a meaning in structural ones only.
/// Source: `specHasDefaults`, `specHasKubernetesExtensions`.
pub fn needs_structure(schema: &Value) -> bool {
    fn needs(props: &Props) -> bool {
        let own = props.default.is_some()
            || (props.embedded || props.preserve_unknown.is_some() || props.int_or_string)
            || (props.list_type.is_some() || !props.list_keys.is_empty() || !props.rules.is_empty());
        let several: &[Props] = match &props.items {
            Some(Items::Several(several)) => several,
            _ => &[],
        };
        let junctors =
            props.all_of.iter().chain(&props.any_of).chain(&props.one_of).chain(props.not.as_deref());
        let below = props.item().into_iter().chain(several).chain(props.additional());
        own || below.chain(props.properties.values()).chain(junctors).any(needs)
    }
    Props::read(schema).is_ok_and(|props| needs(&props))
}

/// What is not structural or, where everything is, what is wrong with defaults.
fn unfit_for_rules(props: &Props, root: &Trail<'_>) -> Vec<Cause> {
    let causes = Check::told(|check| check.structural(props, Level::Root, root));
    if !causes.is_empty() {
        return causes;
    }
    let compiled = props.has_rules().then(|| {
        let mut props = props.clone();
        props.compile_rules();
        props
    });
    Check::told(|check| check.defaults(compiled.as_ref().unwrap_or(props), root, false))
}

/// What only the root may not have.
fn of_root(path: &str, schema: &Value, props: &Props, with_status: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    if with_status && props.ty != "object" && !props.ty.is_empty() {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        causes.push(causes::invalid(&format!("{path}.type"), &json!(props.ty), detail));
    } else if with_status && !fits_status(props) {
        causes.push(causes::invalid(path, schema, ROOT_OF_STATUS));
    }
    if props.nullable {
        let detail = "nullable cannot be true at the root";
        causes.push(causes::forbidden(&format!("{path}.nullable"), detail));
    }
    causes
}

fn fits_status(root: &Props) -> bool {
    let others = [
        !root.id.is_empty(),
        !root.schema.is_empty(),
        root.reference.is_some(),
        root.nullable,
        root.default.is_some(),
        root.values.as_ref().is_some_and(|values| !values.is_empty()),
        root.max_properties.is_some() || root.min_properties.is_some(),
        !root.all_of.is_empty() || !root.one_of.is_empty() || !root.any_of.is_empty() || root.not.is_some(),
        root.additional_properties.is_some() || root.additional_items.is_some(),
        !root.pattern_properties.is_empty() || !root.dependencies.is_empty() || !root.definitions.is_empty(),
        root.embedded || root.int_or_string,
        root.list_type.is_some() || !root.list_keys.is_empty() || root.map_type.is_some(),
    ];
    !others.contains(&true)
}

/// Why a schema cannot even be read as a structural one. Source: `schema.NewStructural`.
fn unsupported(schema: &Props) -> Option<String> {
    let fields = [
        (!schema.id.is_empty(), "id"),
        (!schema.schema.is_empty(), "schema"),
        (schema.reference.as_ref().is_some_and(|to| !to.is_empty()), "$ref"),
        (!schema.pattern_properties.is_empty(), "patternProperties"),
        (!schema.dependencies.is_empty(), "dependencies"),
        (schema.additional_items.is_some(), "additionalItems"),
        (!schema.definitions.is_empty(), "definitions"),
    ];
    if let Some((_, field)) = fields.into_iter().find(|(used, _)| *used) {
        return Some(format!("OpenAPIV3Schema '{field}' is not supported"));
    }
    let junctors = schema.not.as_deref().into_iter().chain(&schema.all_of);
    if let Some(detail) = junctors.chain(&schema.any_of).chain(&schema.one_of).find_map(unsupported) {
        return Some(detail);
    }
    if schema.preserve_unknown == Some(false) {
        let detail = "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
        return Some(detail.to_owned());
    }
    if matches!(schema.items, Some(Items::Several(_))) {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    schema
        .item()
        .into_iter()
        .chain(schema.properties.values())
        .chain(schema.additional())
        .find_map(unsupported)
}

/// Where a schema stands beside what every object has.
#[derive(Clone, Copy)]
struct Context {
    root: bool,
    /// Below the metadata, kind or version of an object.
    of_object: bool,
    /// Why there are no defaults.
    no_defaults: Option<&'static str>,
}

impl Context {
    const ROOT: Self = Self { root: true, of_object: false, no_defaults: None };

    /// Of a property of a schema that stands here.
    fn of(self, schema: &Props, property: &str) -> Self {
        let below = Self { root: false, ..self };
        match META_FIELDS.iter().find(|(name, _)| *name == property) {
            Some((_, detail)) if self.root => Self { of_object: true, no_defaults: Some(detail), ..below },
            Some(_) if schema.embedded => Self { of_object: true, ..below },
            _ => below,
        }
    }
}

struct Check {
    causes: Gathered,
    /// What the rules of defaults may still spend, all together.
    budget: Budget,
}

impl Check {
    /// What a look finds, sorted.
    fn told(look: impl FnOnce(&mut Self)) -> Vec<Cause> {
        let mut check = Self { causes: Gathered::default(), budget: rules::object_budget() };
        look(&mut check);
        check.causes.told()
    }

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
        if level == Level::Root && !is_plain(metadata) {
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

    /// What no schema may have, and what hangs together. Source: `ValidateCustomResourceDefinitionOpenAPISchema`.
    fn open_api(&mut self, schema: &Props, path: &Trail<'_>, place: Context) {
        if self.causes.is_full() {
            return;
        }
        self.fields(schema, path, place);
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
        let below = Context { root: false, ..place };
        if let Some(additional) = schema.additional() {
            let reason = "must not be set inside additionalProperties applying to object metadata";
            let no_defaults = if place.of_object { Some(reason) } else { place.no_defaults };
            self.open_api(additional, &path.below(ADDITIONAL), Context { no_defaults, ..below });
        }
        for (name, property) in &schema.properties {
            self.open_api(property, &path.below(Step::Property(name)), place.of(schema, name));
        }
        if let Some(item) = schema.item() {
            self.open_api(item, &path.below(ITEMS), below);
        }
        for (name, child) in nested(schema) {
            self.open_api(child, &path.below(Step::Plain(&name)), below);
        }
    }

    /// The fields that a schema may not have. Source: `specStandardValidatorV3.validate`.
    fn fields(&mut self, schema: &Props, path: &Trail<'_>, place: Context) {
        let ty = schema.ty.as_str();
        if !ty.is_empty() && !TYPES.contains(&ty) {
            self.not_supported(path.below(Step::Plain("type")), ty, &TYPES);
        }
        let array = matches!(schema.items, Some(Items::Several(_)));
        let embedded = "x-kubernetes-embedded-resource";
        let null = "type cannot be set to null, use nullable as an alternative";
        let quadratic = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        let default = place.no_defaults.filter(|_| schema.default.is_some());
        let never = [
            (default.is_some(), "default", default.unwrap_or_default()),
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
            (ty == "null", "type", null),
            (array, "items", "items must be a schema object and not an array"),
            (place.of_object && schema.embedded, embedded, "must not be used inside of resource meta"),
            (schema.unique_items, "uniqueItems", quadratic),
        ];
        for (_, field, detail) in never.into_iter().filter(|(used, _, _)| *used) {
            self.forbidden(path.below(Step::Plain(field)), detail);
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
        let text = rule.field_path.as_str();
        let problems = [
            (blank(text), "must be non-empty if specified"),
            (broken(text), "must not contain line breaks"),
            (!text.is_empty() && !expressions::is_path(schema, text), "must be a valid path"),
        ];
        for (_, problem) in problems.into_iter().filter(|(found, _)| *found) {
            self.invalid(path.below(Step::Plain("fieldPath")), text, problem);
        }
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
        if ["set", "map"].contains(&list_type) && schema.item().is_some_and(|item| item.nullable) {
            let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
            self.forbidden(path.below(ITEMS).below(Step::Plain("nullable")), &detail);
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
            // Of several schemas, another failure tells.
            if schema.items.is_none() {
                let detail = "must have a schema if x-kubernetes-list-type is map";
                self.required(path.below(Step::Plain("items")), detail);
            }
            return;
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
                        // The value that upstream shows is the item's.
                        self.invalid(place.below(Step::Plain("type")), item.ty.as_str(), detail);
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

    /// Defaults are values of their schema, for themselves: what they leave out is not filled in. Those of a map's values
    /// are not looked at. Source: `schema/defaulting.ValidateDefaults`.
    fn defaults(&mut self, schema: &Props, path: &Trail<'_>, of_object: bool) {
        if self.causes.is_full() {
            return;
        }
        let of_object = of_object && !schema.embedded;
        if let Some(default) = &schema.default {
            self.default(default, schema, path, of_object);
        }
        if let Some(item) = schema.item() {
            self.defaults(item, &path.below(ITEMS), of_object);
        }
        let is_object = path.is_root() || schema.embedded;
        for (name, property) in &schema.properties {
            let of_object = of_object || (is_object && META_FIELDS.iter().any(|(field, _)| field == name));
            self.defaults(property, &path.below(Step::Property(name)), of_object);
        }
    }

    fn default(&mut self, default: &Value, schema: &Props, path: &Trail<'_>, of_object: bool) {
        let at = path.below(Step::Plain("default"));
        if !of_object && !prune::prune(&mut default.clone(), schema).is_empty() {
            self.invalid(&at, default, "must not have unknown fields");
        }
        let mut problems = validate::validate(default, None, schema);
        if problems.is_empty() && schema.has_rules() && self.budget.left() > 0 {
            problems = rules::check_default(default, schema, &mut self.budget);
        }
        for cause in problems {
            self.say(&at, |at| {
                let field = match cause.field.as_str() {
                    "<nil>" => at.to_owned(),
                    below if below.starts_with('[') => format!("{at}{below}"),
                    below => format!("{at}.{below}"),
                };
                Cause { field, ..cause }
            });
        }
    }
}

/// Whether a schema of metadata says nothing but of its names.
fn is_plain(metadata: &Props) -> bool {
    let numbers = [&metadata.maximum, &metadata.minimum, &metadata.multiple_of];
    let counts = [
        metadata.max_length,
        metadata.min_length,
        metadata.max_items,
        metadata.min_items,
        metadata.max_properties,
        metadata.min_properties,
    ];
    let texts = [&metadata.title, &metadata.description, &metadata.format, &metadata.pattern];
    let flags = [
        metadata.nullable,
        metadata.exclusive_maximum,
        metadata.exclusive_minimum,
        metadata.unique_items,
        metadata.preserve_unknown == Some(true),
        metadata.embedded,
        metadata.int_or_string,
    ];
    metadata.properties.keys().all(|name| name == "name" || name == "generateName")
        && numbers.iter().all(|number| number.is_none())
        && counts.iter().all(Option::is_none)
        && texts.iter().all(|text| text.is_empty())
        && !flags.contains(&true)
        && (metadata.items.is_none() && metadata.additional_properties.is_none() && metadata.not.is_none())
        && (metadata.all_of.is_empty() && metadata.any_of.is_empty() && metadata.one_of.is_empty())
        && (metadata.required.is_empty() && metadata.rules.is_empty() && metadata.list_keys.is_empty())
        && (metadata.values.is_none() && metadata.list_type.is_none() && metadata.map_type.is_none())
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
        let causes = check_schema("s", &schema, false, true);
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn what_is_not_structural_hides_defaults_and_nothing_else() {
        let told = |schema: Value| -> Vec<String> {
            said(schema).iter().map(|one| one.split(": Invalid value").next().unwrap().to_owned()).collect()
        };
        let untyped = json!({});
        let wrong_default = json!({"type": "integer", "default": "x"});
        let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string", "nullable": true}});
        let set_said = "s.properties[c].items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is set";
        let untyped_said =
            "s.properties[a].type: Required value: must not be empty for specified object fields";
        let of = |properties: Value| json!({"type": "object", "properties": properties});
        assert_eq!(told(of(json!({"a": untyped, "b": wrong_default, "c": set}))), [untyped_said, set_said]);
        assert_eq!(told(of(json!({"b": wrong_default, "c": set}))), ["s.properties[b].default", set_said]);
        // What cannot be read as a structural schema is told only where nothing else tells it.
        assert_eq!(
            said(json!({"type": "object", "$schema": "x"})),
            ["s: Invalid value: \"\": OpenAPIV3Schema 'schema' is not supported"]
        );
        assert_eq!(
            said(json!({"properties": {"a": {"$ref": "x"}}})),
            ["s.properties[a].$ref: Forbidden: $ref is not supported"]
        );
        // A default stands for itself, and is held to its rules.
        let default = |default: Value| {
            said(of(json!({"a": {"type": "object", "default": default, "required": ["x"],
                "x-kubernetes-validations": [{"rule": "self.x > 1"}],
                "properties": {"x": {"type": "integer", "default": 2}}}})))
        };
        assert_eq!(default(json!({})), ["s.properties[a].default.x: Required value"]);
        assert_eq!(
            default(json!({"x": 1})),
            ["s.properties[a].default: Invalid value: failed rule: self.x > 1"]
        );
        assert_eq!(default(json!({"x": 2})), Vec::<String>::new());
    }

    #[test]
    fn what_every_object_has_is_not_described() {
        for (schema, wanted) in [
            (
                json!({"type": "object", "properties": {"kind": {"type": "string", "default": "x"}}}),
                "s.properties[kind].default: Forbidden: must not be set in top-level kind",
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "description": "x"}}}),
                "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but \
                 metadata is implicitly specified",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "properties": {"metadata": {"type": "object", "properties": {"b": {"type": "object",
                    "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-embedded-resource": true}}}}}}}),
                "s.properties[a].properties[metadata].properties[b].x-kubernetes-embedded-resource: Forbidden: must not \
                 be used inside of resource meta",
            ),
        ] {
            assert_eq!(said(schema), [wanted]);
        }
        // With a status apart, the root says what holds without it.
        let root = |field: &str, value: Value| {
            let mut schema = json!({"type": "object"});
            schema[field] = value;
            [false, true].map(|status| check_schema("s", &schema, status, true).len())
        };
        assert_eq!(root("oneOf", json!([{"required": []}])), [0, 1]);
        assert_eq!(root("maxProperties", json!(1)), [0, 1]);
        assert_eq!(root("required", json!(["a"])), [0, 0]);
    }

    #[test]
    fn rules_are_looked_at_apart_from_what_is_wrong_elsewhere() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "object", "x-kubernetes-validations": [{"rule": "1"}], "properties": {"x": {"type": "string"}}},
            "b": {"type": "object", "x-kubernetes-validations": [{"rule": "1"}],
                "properties": {"x": {"type": "string", "uniqueItems": true}}},
        }});
        let fields = |schema: &Value| -> Vec<String> {
            check_rules("s", schema, "v1", None, true).into_iter().map(|cause| cause.field).collect()
        };
        assert_eq!(fields(&schema), ["s.properties[a].x-kubernetes-validations[0].rule"]);
        let mut untyped = schema.clone();
        untyped["properties"]["c"] = json!({});
        assert_eq!(fields(&untyped), Vec::<String>::new());
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
