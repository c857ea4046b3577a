//! CustomResourceDefinitions of `apiextensions.k8s.io/v1beta1`: what all versions have in common stands beside them.
//! Source: `apiextensions-apiserver/pkg/apis/apiextensions/v1/conversion.go`.

use serde_json::{Map, Value, json};

/// A field of the definition, and of each version.
const COMMON: [(&str, &str); 4] = [
    ("validation", "schema"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
    ("selectableFields", "selectableFields"),
];

/// A definition that names its one version has it listed, and the other way round.
pub(super) fn versions(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let first =
        spec.get("versions").and_then(|versions| versions.get(0)).map(|version| version["name"].clone());
    match (first, spec.get("version").cloned()) {
        (None, Some(name)) if name.is_string() => {
            spec.insert("versions".into(), json!([{"name": name, "served": true, "storage": true}]));
        }
        (Some(name), None | Some(Value::Null)) => drop(spec.insert("version".into(), name)),
        _ => {}
    }
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut)
        && conversion.get("strategy").is_some_and(|strategy| *strategy == "Webhook")
        && conversion.get("conversionReviewVersions").is_none_or(Value::is_null)
    {
        conversion.insert("conversionReviewVersions".into(), json!(["v1beta1"]));
    }
}

/// What stands beside the versions goes to each of them.
pub(super) fn to_stored(spec: &mut Value) {
    let Some(fields) = spec.as_object_mut() else { return };
    let name = fields.remove("version");
    if fields.get("versions").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(name) = name.filter(Value::is_string)
    {
        fields.insert("versions".into(), json!([{"name": name, "served": true, "storage": true}]));
    }
    for (common, own) in COMMON {
        let Some(value) = fields.remove(common).filter(|value| !value.is_null()) else { continue };
        each_version(fields, |version| drop(version.insert(own.to_owned(), value.clone())));
    }
    // What goes without saying in the stored version is not said there.
    if fields.get("preserveUnknownFields").is_some_and(|preserve| *preserve == false) {
        fields.remove("preserveUnknownFields");
    }
}

/// What is equal in all versions goes beside them.
pub(super) fn from_stored(spec: &mut Value) {
    let Some(fields) = spec.as_object_mut() else { return };
    let Some(versions) = fields.get("versions").and_then(Value::as_array).filter(|all| !all.is_empty())
    else {
        return;
    };
    let name = versions[0]["name"].clone();
    let common: Vec<_> = COMMON
        .iter()
        .filter_map(|(common, own)| {
            let first = versions[0].get(own).filter(|value| !value.is_null())?;
            versions
                .iter()
                .all(|version| version.get(own) == Some(first))
                .then(|| (*common, *own, first.clone()))
        })
        .collect();
    for (common, own, value) in common {
        each_version(fields, |version| drop(version.remove(own)));
        fields.insert(common.to_owned(), value);
    }
    fields.entry("preserveUnknownFields").or_insert_with(|| json!(false));
    if name.is_string() {
        fields.insert("version".into(), name);
    }
}

fn each_version(spec: &mut Map<String, Value>, change: impl Fn(&mut Map<String, Value>)) {
    let versions = spec.get_mut("versions").and_then(Value::as_array_mut);
    versions.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
}
