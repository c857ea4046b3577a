//! CustomResourceDefinitions. Source: `apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go`, `validation` and
//! `pkg/registry/customresourcedefinition`.

use std::collections::BTreeSet;

use api::custom::{Before, JsonPath, check_rules, check_schema, is_known_format};
use apiserver::definitions::{APPROVED, Approval, FINALIZER};
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::wrong_name;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 9] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "name", "password"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
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
        check_conversion(tree::at(spec, &["conversion"]), errors);
        check_stored_versions(object, errors);
        if spec["preserveUnknownFields"] == true {
            let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                          spec.versions[*].schema instead";
            errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), detail));
        }
        check_approval(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let approval = ["metadata", "annotations", APPROVED];
        if tree::at(new, &approval) == tree::at(old, &approval) {
            errors.retain(|error| !is_of_approval(error));
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
            if errors.iter().any(|error| error.field.starts_with(&path)) {
                continue;
            }
            let schema = tree::at(version, &["schema", "openAPIV3Schema"]);
            let causes = check_rules(&path, schema, tree::text(version, &["name"]), before.as_ref());
            errors.extend(causes.into_iter().map(FieldError::from));
        }
    }

    fn validation_is_lengthy(&self) -> bool {
        true
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        check_stored_versions(new, errors);
    }

    fn forgives(&self, version: &str, error: &FieldError) -> bool {
        version == "v1beta1" && is_of_approval(error)
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

/// Checks what versions may share, as far as it is told here.
fn check_parts(version: &Value, path: &str, is_here: impl Fn(&str) -> bool, errors: &mut FieldErrors) {
    let schema = tree::at(version, &["schema", "openAPIV3Schema"]);
    if is_here("schema") && !schema.is_null() {
        errors.extend(check_schema(&schema_path(path), schema).into_iter().map(FieldError::from));
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

fn check_versions(spec: &Value, errors: &mut FieldErrors) {
    let versions = tree::items(spec, &["versions"]);
    let mut names = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = tree::text(version, &["name"]);
        if let Some(detail) = wrong_name(NameRule::Label1035, name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &json!(name), &detail));
        }
        names.insert(name);
        if tree::at(version, &["schema", "openAPIV3Schema"]).is_null() {
            errors.push(FieldError::required(format!("{path}.schema.openAPIV3Schema"), ""));
        }
        check_deprecation(version, &path, errors);
        check_parts(version, &path, |part| !is_shared(versions, part), errors);
    }
    if let Some(first) = versions.first() {
        check_parts(first, "spec", |part| is_shared(versions, part), errors);
    }
    let shown = json!(versions);
    if names.len() != versions.len() {
        errors.push(FieldError::invalid("spec.versions", &shown, "must contain unique version names"));
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &shown, detail));
    }
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
    if text.is_empty() {
        wrong("must not be an empty string");
    }
    if text.len() > 256 {
        wrong("must be <= 256 characters long");
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
        let plain = JsonPath::parse(text).ok().and_then(|path| path.fields()).is_some();
        if !plain || !text.starts_with('.') {
            let detail = "should be a json path under the object's own fields, without arrays";
            errors.push(FieldError::invalid(at, &json!(text), detail));
        } else if !under.iter().any(|under| text.starts_with(under)) {
            let under: Vec<&str> = under.iter().map(|under| under.trim_end_matches('.')).collect();
            let detail = format!("should be a json path under {}", under.join(" or "));
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
            let detail = "must be a simple json path starting with .";
            errors.push(FieldError::invalid(at("JSONPath"), &json!(json_path), detail));
        } else if let Err(error) = JsonPath::parse(json_path) {
            errors.push(FieldError::invalid(
                at("JSONPath"),
                &json!(json_path),
                &format!("is an invalid json path: {error}"),
            ));
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
            errors.push(FieldError::invalid(
                at.clone(),
                json_path,
                "is an invalid path: does not refer to a valid field",
            ));
        } else if !["string", "boolean", "integer"].contains(&tree::text(leaf, &["type"])) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                          formats are allowed.";
            errors.push(FieldError::invalid(at.clone(), json_path, detail));
        }
        if names.first().is_some_and(|first| first == "metadata") {
            errors.push(FieldError::invalid(at.clone(), json_path, "must not point to fields in metadata"));
        }
        if !seen.insert(text) {
            errors.push(FieldError::duplicate(at, json_path));
        }
    }
    if seen.len() > SELECTABLE_MAX {
        let message = format!("Too many: {}: must have at most {SELECTABLE_MAX} items", seen.len());
        let field = format!("{path}.selectableFields");
        errors.push(api::Cause { reason: "FieldValueTooMany".into(), message, field }.into());
    }
}

fn check_names(names: &Value, errors: &mut FieldErrors) {
    let text = |field: &str| tree::text(names, &[field]);
    for field in ["plural", "singular", "kind", "listKind"] {
        let (at, name) = (format!("spec.names.{field}"), text(field));
        let mixed = field.ends_with("ind");
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if let Some(wrong) =
            wrong_name(NameRule::Label1035, &if mixed { name.to_lowercase() } else { name.into() })
        {
            let hint = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(FieldError::invalid(at, &json!(name), &format!("{hint}{wrong}")));
        }
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in tree::items(names, &[field]).iter().enumerate() {
            if let Some(wrong) = wrong_name(NameRule::Label1035, name.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("spec.names.{field}[{index}]"), name, &wrong));
            }
        }
    }
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid("spec.names.listKind", &json!(text("listKind")), detail));
    }
}

fn check_conversion(conversion: &Value, errors: &mut FieldErrors) {
    let (strategy, webhook) = (tree::text(conversion, &["strategy"]), tree::at(conversion, &["webhook"]));
    let client = tree::at(webhook, &["clientConfig"]);
    let versions = tree::items(webhook, &["conversionReviewVersions"]);
    match strategy {
        "" => errors.push(FieldError::required("spec.conversion.strategy", "")),
        "None" => {
            let detail = "should not be set when strategy is not set to Webhook";
            if !client.is_null() {
                errors.push(FieldError::forbidden("spec.conversion.webhookClientConfig", detail));
            }
            if !versions.is_empty() {
                errors.push(FieldError::forbidden("spec.conversion.conversionReviewVersions", detail));
            }
        }
        "Webhook" => {
            let at = "spec.conversion.webhookClientConfig";
            if client.is_null() {
                errors.push(FieldError::required(at, "required when strategy is set to Webhook"));
            } else if client["url"].is_null() == client["service"].is_null() {
                errors.push(FieldError::required(at, "exactly one of url or service is required"));
            } else if client["url"].as_str().is_some_and(|url| !url.starts_with("https://")) {
                let scheme = client["url"]
                    .as_str()
                    .and_then(|url| url.split_once("://"))
                    .map_or("", |(scheme, _)| scheme);
                let detail = "'https' is the only allowed URL scheme";
                errors.push(FieldError::invalid(format!("{at}.url"), &json!(scheme), detail));
            }
            let at = "spec.conversion.conversionReviewVersions";
            if versions.is_empty() {
                errors.push(FieldError::required(at, ""));
            } else if !versions.iter().any(|version| REVIEW_VERSIONS.iter().any(|known| version == known)) {
                let detail = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
                errors.push(FieldError::invalid(at, &json!(versions), &detail));
            }
        }
        other => {
            let at = "spec.conversion.strategy";
            errors.push(FieldError::not_supported(at, &json!(other), &["None", "Webhook"]));
        }
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
