//! From a CustomResourceDefinition to rows of the catalog: one for each version.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::{Value, json};

use super::props::Props;
use super::{Conversion, Custom, Published, Webhook, check_structure, columns, openapi, shape};
use crate::catalog::{ALL_VERBS, Row, Subresource};
use crate::schema::{Name, Schema};

/// Where the numbers of the `scale` subresource stand in an object.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalePaths {
    /// The number that is wanted.
    pub spec: Vec<String>,
    /// The number that there is.
    pub status: Vec<String>,
    /// The selector, as text.
    pub selector: Option<Vec<String>>,
}

/// What is still served of a kind that is being removed: whoever holds objects by a finalizer has to let go of them.
const TERMINATING_VERBS: [&str; 7] =
    ["delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];
/// Where documents of OpenAPI version 2 have their definitions.
const V2: &str = "#/definitions/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The rows of a definition with names that were accepted: of each served version, and of the stored one without verbs if
/// it is not served. A definition that was stored and has no valid schema any more has no rows.
pub fn rows(crd: &Value) -> Result<Vec<Row>, String> {
    let (spec, names) = (&crd["spec"], &crd["status"]["acceptedNames"]);
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let stored = versions.iter().find(|version| version["storage"] == true).ok_or("no version is stored")?;
    let ending = !crd["metadata"]["deletionTimestamp"].is_null();
    versions
        .iter()
        .filter(|version| version["served"] == true || version["storage"] == true)
        .map(|version| row(spec, names, version, &text(stored, "name"), ending))
        .collect()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value, field: &str) -> Vec<Name> {
    let items = value[field].as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(|item| Name::Owned(item.to_owned())).collect()
}

fn row(spec: &Value, names: &Value, version: &Value, stored: &str, ending: bool) -> Result<Row, String> {
    let [group, kind, list_kind] = [text(spec, "group"), text(names, "kind"), text(names, "listKind")];
    let name = text(version, "name");
    let open = match &version["schema"]["openAPIV3Schema"] {
        Value::Null => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        open => open.clone(),
    };
    let mut props = Props::read(&open)?;
    let preserves = spec["preserveUnknownFields"] == true;
    if preserves {
        props.preserve_unknown = Some(true);
    }
    props.compile_rules();
    let structural = !preserves || check_structure("", &open).is_empty();
    let mut schema = Schema::default();
    let names_of = |kind: &str| [group.clone(), name.clone(), kind.to_owned()].map(Name::Owned);
    let definition = openapi::name(&group, &name, &kind);
    // What is not structural says nothing of which fields there are: they are taken as they come.
    let untyped = Props { ty: "object".into(), preserve_unknown: Some(true), ..Props::default() };
    let shown = if structural { &props } else { &untyped };
    let types = shape::build(&mut schema, shown, definition, names_of(&kind));
    let selectable: Vec<&str> = version["selectableFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|field| field["jsonPath"].as_str())
        .map(|path| path.strip_prefix('.').unwrap_or(path))
        .collect();
    let published = [V2, "#/components/schemas/"]
        .map(|place| {
            let told = structural && !(preserves && place == V2);
            publish(told.then_some(&open), place, [group.as_str(), &name, &kind], &list_kind)
        })
        .map(|published| published.selectable_by(&selectable));
    let mut digest = DefaultHasher::new();
    published[1].kind.to_string().hash(&mut digest);
    let custom = Custom {
        columns: columns::read(version),
        scale: scale(&version["subresources"]["scale"]),
        deprecation: deprecation(version, &group, &kind),
        conversion: conversion(&spec["conversion"]),
        published,
        digest: digest.finish(),
        has_defaults: props.has_defaults(),
        preserves,
        schema: props,
        envelope: types.envelope,
    };
    let verbs: &[&'static str] = match (version["served"] == true, ending) {
        (false, _) => &[],
        (true, true) => &TERMINATING_VERBS,
        (true, false) => &ALL_VERBS,
    };
    Ok(Row {
        subresources: subresources(version, [&group, &name, &kind]),
        group: group.clone().into(),
        version: name.into(),
        list_kind: list_kind.into(),
        kind: kind.into(),
        plural: text(names, "plural").into(),
        singular: text(names, "singular").into(),
        short_names: texts(names, "shortNames"),
        categories: texts(names, "categories"),
        namespaced: spec["scope"] == "Namespaced",
        verbs: verbs.iter().map(|verb| Name::Borrowed(verb)).collect(),
        storage_group: group.into(),
        storage_version: stored.to_owned().into(),
        deprecation: None,
        selectable_fields: selectable.into_iter().map(|path| Name::Owned(path.to_owned())).collect(),
        schema: Arc::new(schema),
        ty: types.root,
        custom: Some(Arc::new(custom)),
    })
}

/// What documents say of a kind; `open`: its schema, where it is told. Source: `builder.buildKubeNative`.
fn publish(open: Option<&Value>, place: &str, kind: [&str; 3], list_kind: &str) -> Published {
    let [group, version, name] = kind;
    let v2 = place == V2;
    let refer = |to: String| {
        let reference = json!({"$ref": format!("{place}{to}")});
        if v2 { reference } else { json!({"allOf": [reference]}) }
    };
    let item = json!({"$ref": format!("{place}{}", openapi::name(group, version, name))});
    let metadata = || refer(format!("{META}.ObjectMeta"));
    Published {
        kind: match open {
            Some(open) if v2 => openapi::kind(openapi::v2(open), metadata(), kind),
            Some(open) => openapi::kind(openapi::v3(open), metadata(), kind),
            None => openapi::untold(kind),
        },
        list: openapi::list(item, refer(format!("{META}.ListMeta")), [group, version, list_kind]),
    }
}

impl Published {
    /// The same, saying by which fields objects can be selected. Source: `buildSelectableFields` in
    /// `apiextensions-apiserver/pkg/controller/openapi/builder`.
    fn selectable_by(mut self, fields: &[&str]) -> Self {
        if !fields.is_empty() {
            let said: Value = fields.iter().map(|field| json!({"fieldPath": field})).collect();
            for definition in [&mut self.kind, &mut self.list].into_iter().filter_map(Value::as_object_mut) {
                definition.insert("x-kubernetes-selectable-fields".into(), said.clone());
            }
        }
        self
    }
}

fn subresources(version: &Value, [group, name, kind]: [&str; 3]) -> Vec<Subresource> {
    let declared = &version["subresources"];
    let verbs = || PART_VERBS.map(Name::Borrowed).to_vec();
    let mut all = Vec::new();
    if !declared["scale"].is_null() {
        all.push(Subresource {
            name: "scale".into(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            verbs: verbs(),
        });
    }
    if !declared["status"].is_null() {
        all.push(Subresource {
            name: "status".into(),
            group: group.to_owned().into(),
            version: name.to_owned().into(),
            kind: kind.to_owned().into(),
            verbs: verbs(),
        });
    }
    all
}

fn scale(declared: &Value) -> Option<ScalePaths> {
    let path = |field: &str| -> Option<Vec<String>> {
        // Names between dots, whatever else they are made of.
        let text = declared[field].as_str().filter(|text| !text.is_empty())?;
        Some(text.strip_prefix('.').unwrap_or(text).split('.').map(str::to_owned).collect())
    };
    Some(ScalePaths {
        spec: path("specReplicasPath")?,
        status: path("statusReplicasPath")?,
        selector: path("labelSelectorPath").filter(|path| !path.is_empty()),
    })
}

fn deprecation(version: &Value, group: &str, kind: &str) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let declared = version["deprecationWarning"].as_str().map(str::to_owned);
    Some(declared.unwrap_or_else(|| format!("{group}/{} {kind} is deprecated", text(version, "name"))))
}

fn conversion(declared: &Value) -> Conversion {
    if declared["strategy"] != "Webhook" {
        return Conversion::None;
    }
    let webhook = &declared["webhook"];
    let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    Conversion::Webhook(Box::new(Webhook {
        client: webhook["clientConfig"].clone(),
        review_versions: versions.filter_map(Value::as_str).map(str::to_owned).collect(),
    }))
}
