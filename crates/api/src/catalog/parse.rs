//! Reads the list of built-in kinds (`schema/kinds.txt`, whose head says its form).

use std::sync::Arc;

use super::{ALL_VERBS, Row, Subresource};
use crate::schema::{Name, Schema};

/// Reads the rows; an error names the line.
pub(super) fn kinds(text: &'static str, schema: &Arc<Schema>) -> Result<Vec<Row>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(index, line)| row(line, schema).ok_or_else(|| format!("line {}: bad kind", index + 1)))
        .collect()
}

fn row(line: &'static str, schema: &Arc<Schema>) -> Option<Row> {
    let (head, attributes) = {
        let mut parts = line.splitn(4, ' ');
        ([parts.next()?, parts.next()?, parts.next()?], parts.next().unwrap_or_default())
    };
    let [api_version, kind, plural] = head;
    let (group, version) = split(api_version);
    let mut row = Row {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        plural: plural.into(),
        singular: kind.to_ascii_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: ALL_VERBS.map(Name::Borrowed).to_vec(),
        subresources: Vec::new(),
        storage_group: group.into(),
        storage_version: version.into(),
        deprecation: None,
        selectable_fields: Vec::new(),
        schema: schema.clone(),
        ty: schema.of_kind(group, version, kind)?,
        custom: None,
    };
    for attribute in attributes.split_ascii_whitespace() {
        let (key, value) = attribute.split_once('=')?;
        match key {
            "scope" => row.namespaced = value != "cluster",
            "short" => row.short_names = names(value),
            "categories" => row.categories = names(value),
            "verbs" => row.verbs = names(value),
            "storage" => {
                let (group, version) = split(value);
                (row.storage_group, row.storage_version) = (group.into(), version.into());
            }
            "deprecated" => row.deprecation = Some(deprecation(&row, value)?.into()),
            "fields" => row.selectable_fields = names(value),
            "sub" => {
                let all: Option<Vec<_>> = value.split(';').map(|one| subresource(one, &row)).collect();
                row.subresources = all?;
            }
            _ => return None,
        }
    }
    Some(row)
}

/// `1.8,1.16,apps/v1/Deployment` in upstream's words; the last two may be absent. Source:
/// `k8s.io/apiserver/pkg/endpoints/deprecation`.
fn deprecation(row: &Row, facts: &str) -> Option<String> {
    let mut facts = facts.splitn(3, ',');
    let mut text = format!("{} {} is deprecated in v{}+", row.api_version(), row.kind, facts.next()?);
    if let Some(release) = facts.next().filter(|release| !release.is_empty()) {
        text.push_str(&format!(", unavailable in v{release}+"));
    }
    if let Some(instead) = facts.next() {
        let (api_version, kind) = instead.rsplit_once('/')?;
        text.push_str(&format!("; use {api_version} {kind}"));
    }
    Some(text)
}

fn subresource(text: &'static str, row: &Row) -> Option<Subresource> {
    let mut parts = text.splitn(3, ':');
    let (name, kind, verbs) = (parts.next()?, parts.next()?, parts.next()?);
    let (group, version, kind) = match kind.rsplit_once('/') {
        None => (row.group.clone(), row.version.clone(), row.kind.clone()),
        Some((api_version, kind)) => {
            let (group, version) = split(api_version);
            (group.into(), version.into(), kind.into())
        }
    };
    Some(Subresource { name: name.into(), group, version, kind, verbs: names(verbs) })
}

fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

fn names(list: &'static str) -> Vec<Name> {
    list.split(',').map(Name::Borrowed).collect()
}
