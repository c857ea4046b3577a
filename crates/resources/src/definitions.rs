//! CustomResourceDefinitions. Source: `apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go`, `validation` and
//! `pkg/registry/customresourcedefinition`.

use std::collections::BTreeSet;

use api::custom::{Before, JsonPath, check_rules, check_schema, is_known_format, needs_structure};
use apiserver::definitions::{APPROVED, Approval, FINALIZER};
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::wrong_name;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::webhooks;

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 9] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "name", "password"];
const PRESERVE: &str = "spec.preserveUnknownFields";
const NOT_TRUE: &str =
    "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
/// What is wrong with a path that does not begin with a dot; what follows is taken as it comes.
/// Source: `validateSimpleJSONPath`.
const NO_PATH: &str = "must be a simple json path starting with .";
/// The most fields that selectors may name. Source: `validation.MaxSelectableFields`.
const SELECTABLE_MAX: usize = 8;

/// Definitions: names and status are completed by the server.
pub(crate) struct Definitions;

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        let kind = tree::text(object, &["spec", "names", "kind"]).to_owned();
        let spec = tree::member(object, "spec");
        let names = tree::member(spec, "names");
        if !kind.is_empty() {
            fill(names, "singular", &kind.to_lowercase());
            fill(names, "listKind", &format!("{kind}List"));
        }
        tree::set_default(spec, "conversion", json!({"strategy": "None"}));
        if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service")
            && service.is_object()
        {
            tree::set_default(service, "port", 443);
        }
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn prepare_create(&self, object: &mut Value) {
        let stored: Vec<Value> = stored_version(object).into_iter().map(Value::from).collect();
        let status =
            json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored});
        tree::members(object).insert("status".into(), status);
    }

    fn prepare_update(&self, new: &mut Value, _: &Value) {
        let Some(stored) = stored_version(new) else { return };
        let versions = tree::member(tree::member(new, "status"), "storedVersions");
        match versions {
            Value::Array(versions) if versions.iter().any(|version| *version == stored) => {}
            Value::Array(versions) => versions.push(stored.into()),
            other => *other = json!([stored]),
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = tree::at(object, &["spec"]);
        check_name(object, errors);
        check_group(spec, errors);
        check_versions(spec, errors);
        check_names(tree::at(spec, &["names"]), errors);
        check_shared(spec, errors);
        check_conversion(spec, errors);
        check_status(object, errors);
        check_stored_versions(object, errors);
        check_approval(object, errors);
        if preserves(spec) {
            errors.push(FieldError::invalid(PRESERVE, &json!(true), NOT_TRUE));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let approval = ["metadata", "annotations", APPROVED];
        if tree::at(new, &approval) == tree::at(old, &approval) {
            errors.retain(|error| !is_of_approval(error));
        }
        if preserves(tree::at(old, &["spec"])) {
            errors.retain(|error| !is_of_preserving(error));
        }
        // What an earlier version took stays: its finalizers and labels can be changed, and it can be deleted.
        if tree::at(new, &["spec"]) == tree::at(old, &["spec"]) {
            errors.retain(|error| !error.field.starts_with("spec."));
        }
        let mut same = |path: &[&str]| {
            let (after, before) = (tree::at(new, path), tree::at(old, path));
            if after != before {
                errors.push(FieldError::invalid(path.join("."), after, "field is immutable"));
            }
        };
        same(&["spec", "group"]);
        same(&["spec", "names", "plural"]);
        let conditions = tree::items(old, &["status", "conditions"]);
        if conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True") {
            same(&["spec", "scope"]);
            same(&["spec", "names", "kind"]);
        }
    }

    /// The rules of schemas: those that were stored before may stay.
    fn validate_foreign(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let before = old.map(Before::of);
        for (path, version) in schemas(tree::items(object, &["spec", "versions"])) {
            let faulty = errors.iter().any(|error| error.field.starts_with(&path));
            let schema = tree::at(version, &["schema", "openAPIV3Schema"]);
            let causes = check_rules(&path, schema, tree::text(version, &["name"]), before.as_ref(), faulty);
            errors.extend(causes.into_iter().map(FieldError::from));
        }
    }

    fn validation_is_lengthy(&self) -> bool {
        true
    }

    /// What was stored is looked at when the definition itself is written.
    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        check_status(new, errors);
    }

    fn forgives(&self, version: &str, error: &FieldError) -> bool {
        version == "v1beta1" && (is_of_approval(error) || is_of_preserving(error))
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut formats = BTreeSet::new();
        for version in tree::items(object, &["spec", "versions"]) {
            unknown_formats(tree::at(version, &["schema", "openAPIV3Schema"]), &mut formats);
        }
        formats.iter().map(|format| format!("unrecognized format {format:?}")).collect()
    }

    fn deletion_began(&self, object: &mut Value) {
        let metadata = tree::member(object, "metadata");
        let began = tree::at(metadata, &["deletionTimestamp"]).clone();
        let finalizers = tree::member(metadata, "finalizers");
        match finalizers {
            Value::Array(held) if held.iter().any(|held| held == FINALIZER) => {}
            Value::Array(held) => held.push(FINALIZER.into()),
            other => *other = json!([FINALIZER]),
        }
        let conditions = tree::member(tree::member(object, "status"), "conditions");
        let condition = json!({
            "type": "Terminating", "status": "True", "lastTransitionTime": began, "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        });
        match conditions {
            Value::Array(conditions) => {
                conditions.retain(|one| one["type"] != "Terminating");
                conditions.push(condition);
            }
            other => *other = json!([condition]),
        }
    }
}

fn fill(names: &mut Value, field: &str, text: &str) {
    if tree::text(names, &[field]).is_empty() {
        tree::members(names).insert(field.into(), text.into());
    }
}

fn stored_version(object: &Value) -> Option<String> {
    let versions = tree::items(object, &["spec", "versions"]);
    let stored = versions.iter().find(|version| version["storage"] == true)?;
    stored["name"].as_str().map(str::to_owned)
}

fn check_name(object: &Value, errors: &mut FieldErrors) {
    let name = tree::at(object, &["metadata", "name"]);
    let (plural, group) =
        (tree::text(object, &["spec", "names", "plural"]), tree::text(object, &["spec", "group"]));
    let wanted = format!("{plural}.{group}");
    if name.as_str() != Some(&wanted) {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
}

fn check_group(spec: &Value, errors: &mut FieldErrors) {
    let group = tree::text(spec, &["group"]);
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if let Some(detail) = wrong_name(NameRule::Subdomain, group) {
        errors.push(FieldError::invalid("spec.group", &json!(group), &detail));
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", &json!(group), detail));
    }
    match tree::text(spec, &["scope"]) {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => {
            errors.push(FieldError::not_supported("spec.scope", &json!(other), &["Cluster", "Namespaced"]))
        }
    }
}

/// Whether all versions have the same of something, which upstream reads as the definition's own and tells once.
/// Source: `Convert_v1_CustomResourceDefinitionSpec_To_apiextensions_CustomResourceDefinitionSpec`.
fn is_shared(versions: &[Value], part: &str) -> bool {
    let same = |part: &str| versions.windows(2).all(|pair| pair[0][part] == pair[1][part]);
    // Selectable fields are those of a schema.
    same(part) && (part != "selectableFields" || same("schema"))
}

/// The schemas that are told apart, each with its path and a version that has it.
fn schemas(versions: &[Value]) -> Vec<(String, &Value)> {
    if is_shared(versions, "schema") {
        return versions.first().map(|first| (schema_path("spec"), first)).into_iter().collect();
    }
    let each = versions.iter().enumerate();
    each.map(|(index, version)| (schema_path(&format!("spec.versions[{index}]")), version)).collect()
}

fn schema_path(of: &str) -> String {
    format!("{of}.{}.openAPIV3Schema", if of == "spec" { "validation" } else { "schema" })
}

/// Checks what versions may share, as far as it is told here. Source: `validateCustomResourceDefinitionVersion`.
fn check_parts(
    version: &Value,
    path: &str,
    [with_status, structural]: [bool; 2],
    is_here: impl Fn(&str) -> bool,
    errors: &mut FieldErrors,
) {
    let schema = tree::at(version, &["schema", "openAPIV3Schema"]);
    if is_here("schema") && !schema.is_null() {
        let causes = check_schema(&schema_path(path), schema, with_status, structural);
        errors.extend(causes.into_iter().map(FieldError::from));
    }
    if is_here("subresources") {
        check_scale(tree::at(version, &["subresources", "scale"]), path, errors);
    }
    if is_here("additionalPrinterColumns") {
        check_columns(version, path, errors);
    }
    if is_here("selectableFields") {
        check_selectable(version, path, errors);
    }
}

fn has_status(version: &Value) -> bool {
    !tree::at(version, &["subresources", "status"]).is_null()
}

fn preserves(spec: &Value) -> bool {
    spec["preserveUnknownFields"] == true
}

/// Whether schemas need not be structural: unknown fields are kept, and nothing is said that asks for more.
fn is_lenient(spec: &Value) -> bool {
    let versions = tree::items(spec, &["versions"]);
    preserves(spec)
        && !versions.iter().any(|version| needs_structure(tree::at(version, &["schema", "openAPIV3Schema"])))
}

fn check_versions(spec: &Value, errors: &mut FieldErrors) {
    let versions = tree::items(spec, &["versions"]);
    for (index, version) in versions.iter().enumerate() {
        if tree::at(version, &["schema", "openAPIV3Schema"]).is_null() && !preserves(spec) {
            let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
            errors.push(FieldError::required(path, ""));
        }
    }
    if preserves(spec)
        && versions.iter().any(|version| has_default(tree::at(version, &["schema", "openAPIV3Schema"])))
    {
        let detail = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid(PRESERVE, &json!(true), detail));
    }
    let structural = !is_lenient(spec);
    let mut names = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = tree::text(version, &["name"]);
        if let Some(detail) = wrong_name(NameRule::Label1035, name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &json!(name), &detail));
        }
        names.insert(name);
        check_deprecation(version, &path, errors);
        let about = [has_status(version), structural];
        check_parts(version, &path, about, |part| !is_shared(versions, part), errors);
    }
    let mut wrong = |detail: &str| {
        errors.push(FieldError::invalid("spec.versions", &json!(versions), detail));
    };
    if names.len() != versions.len() {
        wrong("must contain unique version names");
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        wrong("must have exactly one version marked as storage version");
    }
}

/// Checks what all versions have in common.
fn check_shared(spec: &Value, errors: &mut FieldErrors) {
    let versions = tree::items(spec, &["versions"]);
    if let Some(first) = versions.first() {
        let with_status = versions.iter().any(has_status);
        let about = [with_status, !is_lenient(spec)];
        check_parts(first, "spec", about, |part| is_shared(versions, part), errors);
    }
}

/// Whether a default stands anywhere in a schema.
fn has_default(schema: &Value) -> bool {
    let below = |name: &str| {
        let below = tree::at(schema, &[name]);
        let list = below.as_array().into_iter().flatten();
        let map = below.as_object().into_iter().flatten().map(|(_, one)| one);
        list.chain(map).any(has_default)
    };
    let one = |name: &str| {
        let one = tree::at(schema, &[name]);
        one.is_object() && has_default(one)
    };
    !tree::at(schema, &["default"]).is_null()
        || ["properties", "allOf", "anyOf", "oneOf"].into_iter().any(below)
        || ["items", "additionalProperties", "not"].into_iter().any(one)
}

fn check_deprecation(version: &Value, path: &str, errors: &mut FieldErrors) {
    let warning = tree::at(version, &["deprecationWarning"]);
    let Some(text) = warning.as_str() else { return };
    let mut wrong = |detail: &str| {
        errors.push(FieldError::invalid(format!("{path}.deprecationWarning"), warning, detail));
    };
    if version["deprecated"] != true {
        return wrong("can only be set for deprecated versions");
    }
    if text.len() > 256 {
        wrong("must be <= 256 characters long");
    }
    if text.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some(at) = text.find(char::is_control) {
        wrong(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

fn check_scale(scale: &Value, path: &str, errors: &mut FieldErrors) {
    if scale.is_null() {
        return;
    }
    for (field, under, optional) in [
        ("specReplicasPath", &[".spec."][..], false),
        ("statusReplicasPath", &[".status."], false),
        ("labelSelectorPath", &[".status.", ".spec."], true),
    ] {
        let (at, text) = (format!("{path}.subresources.scale.{field}"), tree::text(scale, &[field]));
        if text.is_empty() {
            if !optional {
                errors.push(FieldError::required(at, ""));
            }
            continue;
        }
        if !text.starts_with('.') {
            errors.push(FieldError::invalid(at, &json!(text), NO_PATH));
        } else if !under.iter().any(|under| text.starts_with(under)) {
            let detail = match under {
                [one] => format!("should be a json path under {}", one.trim_end_matches('.')),
                _ => "should be a json path under either .spec or .status".to_owned(),
            };
            errors.push(FieldError::invalid(at, &json!(text), &detail));
        }
    }
}

fn check_columns(version: &Value, path: &str, errors: &mut FieldErrors) {
    for (index, column) in tree::items(version, &["additionalPrinterColumns"]).iter().enumerate() {
        let at = |field: &str| format!("{path}.additionalPrinterColumns[{index}].{field}");
        let text = |field: &str| tree::text(column, &[field]);
        if text("name").is_empty() {
            errors.push(FieldError::required(at("name"), ""));
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match text("type") {
            "" => errors.push(FieldError::required(at("type"), &types)),
            known if COLUMN_TYPES.contains(&known) => {}
            other => errors.push(FieldError::invalid(at("type"), &json!(other), &types)),
        }
        let format = text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(FieldError::invalid(at("format"), &json!(format), &detail));
        }
        let json_path = text("jsonPath");
        if json_path.is_empty() {
            errors.push(FieldError::required(at("JSONPath"), ""));
        } else if !json_path.starts_with('.') {
            errors.push(FieldError::invalid(at("JSONPath"), &json!(json_path), NO_PATH));
        }
    }
}

fn check_selectable(version: &Value, path: &str, errors: &mut FieldErrors) {
    let fields = tree::items(version, &["selectableFields"]);
    let mut seen = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let at = format!("{path}.selectableFields[{index}].jsonPath");
        let json_path = tree::at(field, &["jsonPath"]);
        let text = json_path.as_str().unwrap_or_default();
        if text.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let names = JsonPath::parse(text).ok().and_then(|path| path.fields()).unwrap_or_default();
        let schema = tree::at(version, &["schema", "openAPIV3Schema"]);
        let leaf = names.iter().fold(schema, |schema, name| tree::at(schema, &["properties", name]));
        if names.is_empty() || leaf.is_null() {
            let detail = "is an invalid path: does not refer to a valid field";
            errors.push(FieldError::invalid(at, json_path, detail));
            continue;
        }
        if names.first().is_some_and(|first| first == "metadata") {
            errors.push(FieldError::invalid(at.clone(), json_path, "must not point to fields in metadata"));
        }
        if !["string", "boolean", "integer"].contains(&tree::text(leaf, &["type"])) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                          formats are allowed.";
            errors.push(FieldError::invalid(at.clone(), json_path, detail));
        }
        if !seen.insert(names) {
            errors.push(FieldError::duplicate(at, json_path));
        }
    }
    if seen.len() > SELECTABLE_MAX {
        let message = format!("Too many: {}: must have at most {SELECTABLE_MAX} items", seen.len());
        let field = format!("{path}.selectableFields");
        errors.push(api::Cause { reason: "FieldValueTooMany".into(), message, field }.into());
    }
}

/// What the server fills in from the kind has to be there as well.
fn check_names(names: &Value, errors: &mut FieldErrors) {
    for field in ["plural", "singular", "kind", "listKind"] {
        if tree::text(names, &[field]).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{field}"), ""));
        }
    }
    check_spelling(names, "spec.names", errors);
}

/// Source: `ValidateCustomResourceDefinitionNames`.
fn check_spelling(names: &Value, path: &str, errors: &mut FieldErrors) {
    for (field, mixed) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let name = tree::text(names, &[field]);
        let plain = if mixed { name.to_lowercase() } else { name.to_owned() };
        if let Some(wrong) = wrong_name(NameRule::Label1035, &plain).filter(|_| !name.is_empty()) {
            let hint = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            let detail = format!("{hint}{wrong}");
            errors.push(FieldError::invalid(format!("{path}.{field}"), &json!(name), &detail));
        }
    }
    let mut list = |field: &str| {
        for (index, name) in tree::items(names, &[field]).iter().enumerate() {
            if let Some(wrong) = wrong_name(NameRule::Label1035, name.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("{path}.{field}[{index}]"), name, &wrong));
            }
        }
    };
    list("shortNames");
    list("categories");
    let kind = tree::text(names, &["kind"]);
    if !kind.is_empty() && kind == tree::text(names, &["listKind"]) {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(format!("{path}.listKind"), &json!(kind), detail));
    }
}

fn check_status(object: &Value, errors: &mut FieldErrors) {
    check_spelling(tree::at(object, &["status", "acceptedNames"]), "status.acceptedNames", errors);
}

/// Source: `validateCustomResourceConversion`; the fields have the names of the internal version.
fn check_conversion(spec: &Value, errors: &mut FieldErrors) {
    let conversion = tree::at(spec, &["conversion"]);
    let strategy = tree::at(conversion, &["strategy"]);
    let client =
        At::new(tree::at(conversion, &["webhook", "clientConfig"]), "spec.conversion.webhookClientConfig");
    let versions = At::new(
        tree::at(conversion, &["webhook", "conversionReviewVersions"]),
        "spec.conversion.conversionReviewVersions",
    );
    if preserves(spec) && strategy != "None" {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.push(FieldError::invalid("spec.conversion.strategy", strategy, detail));
    }
    match strategy.as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required("spec.conversion.strategy", "")),
        "None" | "Webhook" => {}
        _ => {
            errors.push(FieldError::not_supported("spec.conversion.strategy", strategy, &["None", "Webhook"]))
        }
    }
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.is_set() {
            errors.push(client.forbidden(detail));
        }
        if !versions.is_empty() {
            errors.push(versions.forbidden(detail));
        }
        return;
    }
    check_client(&client, errors);
    if versions.is_empty() {
        errors.push(versions.required(""));
    } else {
        webhooks::check_versions(&versions, errors);
    }
}

fn check_client(client: &At<'_>, errors: &mut FieldErrors) {
    let (url, service) = (client.get("url"), client.get("service"));
    match (url.is_set(), service.is_set()) {
        _ if !client.is_set() => errors.push(client.required("required when strategy is set to Webhook")),
        (true, false) => webhooks::check_url(&url, errors),
        (false, true) => webhooks::check_service(&service, errors),
        _ => errors.push(client.required("exactly one of url or service is required")),
    }
}

fn check_stored_versions(object: &Value, errors: &mut FieldErrors) {
    let path = "status.storedVersions";
    let stored = tree::items(object, &["status", "storedVersions"]);
    let shown = json!(stored);
    if stored.is_empty() {
        return errors.push(FieldError::invalid(path, &shown, "must have at least one stored version"));
    }
    if let Some(version) = stored_version(object).filter(|version| !stored.iter().any(|one| one == version)) {
        errors.push(FieldError::invalid(path, &shown, &format!("must have the storage version {version}")));
    }
    let versions = tree::items(object, &["spec", "versions"]);
    for (index, version) in stored.iter().enumerate() {
        if !versions.iter().any(|declared| declared["name"] == *version) {
            let name = version.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{path}[{index}]"), version, &detail));
        }
    }
}

/// Whether an error is that a definition keeps unknown fields: new ones do so by their schemas.
fn is_of_preserving(error: &FieldError) -> bool {
    error.field == PRESERVE && error.message.ends_with(NOT_TRUE)
}

/// Whether an error is that a definition is not approved: v1 refuses it, a condition tells it in any version.
fn is_of_approval(error: &FieldError) -> bool {
    error.field == format!("metadata.annotations[{APPROVED}]")
}

/// Upstream's own groups take reviewed definitions only. Source: KEP-1111.
fn check_approval(object: &Value, errors: &mut FieldErrors) {
    let path = format!("metadata.annotations[{APPROVED}]");
    let Some(approval) = Approval::of(object) else { return };
    match approval {
        Approval::Missing => errors.push(FieldError::required(path, &approval.message())),
        Approval::Invalid => {
            let text = tree::at(object, &["metadata", "annotations", APPROVED]);
            errors.push(FieldError::invalid(path, text, &approval.message()));
        }
        Approval::Approved(_) | Approval::Bypassed(_) => {}
    }
}

/// The formats of strings in a schema that nothing is checked by.
fn unknown_formats(schema: &Value, found: &mut BTreeSet<String>) {
    let format = tree::text(schema, &["format"]);
    if matches!(tree::text(schema, &["type"]), "string" | "") && !is_known_format(format) {
        found.insert(format.to_owned());
    }
    let properties = tree::at(schema, &["properties"]).as_object().into_iter().flatten().map(|(_, one)| one);
    let below = [tree::at(schema, &["items"]), tree::at(schema, &["additionalProperties"])];
    properties.chain(below).filter(|below| below.is_object()).for_each(|below| unknown_formats(below, found));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widget() -> Value {
        json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    fn said(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut object = widget();
        change(&mut object);
        Definitions.default(&mut object);
        Definitions.prepare_create(&mut object);
        let mut errors = FieldErrors::new();
        Definitions.validate(&object, &mut errors);
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn a_plain_definition_is_completed_and_valid() {
        assert_eq!(said(|_| {}), Vec::<String>::new());
        let mut object = widget();
        Definitions.default(&mut object);
        Definitions.prepare_create(&mut object);
        assert_eq!(object["spec"]["names"]["singular"], "widget");
        assert_eq!(object["spec"]["names"]["listKind"], "WidgetList");
        assert_eq!(object["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
    }

    #[test]
    fn what_is_wrong_is_said_as_upstream_says_it() {
        for (pointer, value, wanted) in [
            (
                "/metadata/name",
                json!("w"),
                "metadata.name: Invalid value: \"w\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                "/spec/scope",
                json!("World"),
                "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            ("/spec/versions/0/storage", json!(false), "spec.versions: Invalid value: "),
            ("/spec/versions/0/schema", json!({}), "spec.versions[0].schema.openAPIV3Schema: Required value"),
            (
                "/spec/names/kind",
                json!("widget_x"),
                "spec.names.kind: Invalid value: \"widget_x\": may have mixed case",
            ),
        ] {
            let all = said(|object| *object.pointer_mut(pointer).unwrap() = value.clone());
            assert!(all.iter().any(|one| one.starts_with(wanted)), "{wanted}: {all:?}");
        }
        let columns = said(|object| {
            object["spec"]["versions"][0]["additionalPrinterColumns"] =
                json!([{"name": "a", "type": "x", "jsonPath": "a"}]);
            object["spec"]["versions"][0]["subresources"] =
                json!({"scale": {"specReplicasPath": ".status.a", "statusReplicasPath": ".status.b"}});
        });
        assert_eq!(
            columns,
            [
                "spec.subresources.scale.specReplicasPath: Invalid value: \".status.a\": should be a json path under .spec",
                "spec.additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string",
                "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"a\": must be a simple json path starting with .",
            ]
        );
    }

    #[test]
    fn everything_is_told_at_once_in_upstreams_order() {
        let fields: Vec<String> = said(|object| {
            object["spec"]["names"]["listKind"] = "Widget".into();
            object["spec"]["names"]["singular"] = "a b".into();
            object["spec"]["preserveUnknownFields"] = true.into();
            object["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v2", "v2", "V"],
                "clientConfig": {"service": {"name": "a", "path": "x/"}}}});
            object["spec"]["versions"] = json!([
                {"name": "v1", "served": true, "storage": true, "deprecationWarning": "x",
                    "subresources": {"status": {}, "scale": {"specReplicasPath": "spec", "statusReplicasPath": ".status.a[0]",
                        "labelSelectorPath": ".x"}},
                    "schema": {"openAPIV3Schema": {"type": "object", "maxProperties": 1,
                        "properties": {"a": {}, "b": {"type": "string", "default": 1}}}},
                    "selectableFields": [{"jsonPath": ".metadata.name"}, {"jsonPath": ".b"}, {"jsonPath": ".b"}]},
                {"name": "v1", "served": true, "storage": true},
            ]);
        })
        .into_iter()
        .map(|one| one.split(": ").next().unwrap().to_owned())
        .collect();
        assert_eq!(
            fields,
            [
                "spec.preserveUnknownFields",
                "spec.versions[0].deprecationWarning",
                "spec.versions[0].schema.openAPIV3Schema",
                "spec.versions[0].schema.openAPIV3Schema.properties[a].type",
                "spec.versions[0].subresources.scale.specReplicasPath",
                "spec.versions[0].subresources.scale.labelSelectorPath",
                "spec.versions[0].selectableFields[0].jsonPath",
                "spec.versions[0].selectableFields[2].jsonPath",
                "spec.versions",
                "spec.versions",
                "spec.names.singular",
                "spec.names.listKind",
                "spec.conversion.strategy",
                "spec.conversion.webhookClientConfig.service.name",
                "spec.conversion.webhookClientConfig.service.path",
                "spec.conversion.webhookClientConfig.service.path",
                "spec.conversion.conversionReviewVersions[1]",
                "spec.conversion.conversionReviewVersions[2]",
                "spec.conversion.conversionReviewVersions",
                "spec.preserveUnknownFields",
            ]
        );
    }

    #[test]
    fn what_all_versions_share_is_told_once() {
        let versions = |other: &str| {
            said(|object| {
                let versions = object["spec"]["versions"].as_array_mut().unwrap();
                versions.truncate(1);
                versions[0]["schema"] =
                    json!({"openAPIV3Schema": {"type": "object", "properties": {"a": {}}}});
                versions[0]["additionalPrinterColumns"] =
                    json!([{"name": "a", "type": "x", "jsonPath": ".a"}]);
                let mut second = versions[0].clone();
                second["name"] = "v2".into();
                second["storage"] = false.into();
                second["schema"]["openAPIV3Schema"]["description"] = other.into();
                versions[0]["schema"]["openAPIV3Schema"]["description"] = "one".into();
                versions.push(second);
            })
        };
        let fields = |other: &str| -> Vec<String> {
            versions(other).iter().map(|one| one.split(": ").next().unwrap().to_owned()).collect()
        };
        let columns = "spec.additionalPrinterColumns[0].type";
        let below = "openAPIV3Schema.properties[a].type";
        assert_eq!(fields("one"), [&format!("spec.validation.{below}"), columns]);
        assert_eq!(
            fields("other"),
            [
                &format!("spec.versions[0].schema.{below}"),
                &format!("spec.versions[1].schema.{below}"),
                columns
            ]
        );
    }

    #[test]
    fn the_end_waits_for_the_objects() {
        let mut object = widget();
        Definitions.deletion_began(&mut object);
        assert_eq!(object["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(object["status"]["conditions"][0]["type"], "Terminating");
    }
}
