//! `meta/v1.Table`: what `kubectl get` shows, computed at the server. Columns are data: a name, a type, a priority (0 is
//! shown always, 1 with `-o wide`) and where the cell comes from. Source: `pkg/printers/internalversion`.

mod access;
mod admission;
mod cluster;
mod core;
mod devices;
mod metrics;
mod network;
mod pod;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

/// The columns of a family's kinds, by group and kind.
pub(crate) type Family = &'static [(&'static str, &'static str, &'static [Column])];

/// A file each.
const FAMILIES: [Family; 9] = [
    core::KINDS,
    workloads::KINDS,
    network::KINDS,
    storage::KINDS,
    access::KINDS,
    cluster::KINDS,
    admission::KINDS,
    devices::KINDS,
    metrics::KINDS,
];

pub(crate) const NAME: Column = column("Name", "string", Cell::Name);
pub(crate) const AGE: Column = column("Age", "string", Cell::Age);

/// Kinds that upstream has no printer for.
pub(crate) const CREATED: &[Column] =
    &[NAME, column("Created At", "date", Cell::Text(&["metadata", "creationTimestamp"]))];

/// The columns of a kind in the group in which it is stored; name and age where nothing else is known.
pub fn columns_of(group: &str, kind: &str) -> &'static [Column] {
    let rows = FAMILIES.iter().flat_map(|family| family.iter());
    let row = rows.into_iter().find(|(of_group, of_kind, _)| (*of_group, *of_kind) == (group, kind));
    row.map_or(&[NAME, AGE], |(_, _, columns)| columns)
}

/// Where a cell comes from.
#[derive(Clone, Copy)]
pub enum Cell {
    /// `metadata.name`.
    Name,
    /// The value under a path of field names; `<none>` where there is none.
    Path(&'static [&'static str]),
    /// The text under a path; empty where there is none.
    Text(&'static [&'static str]),
    /// The value under a path; `<unset>` where there is none.
    Optional(&'static [&'static str]),
    /// The truth value under a path; false where there is none.
    Flag(&'static [&'static str]),
    /// The number of entries of a list or map.
    Count(&'static [&'static str]),
    /// Time since `metadata.creationTimestamp`.
    Age,
    /// Computed from the object and the present moment.
    Of(fn(&Value, Timestamp) -> Value),
}

/// A column.
#[derive(Clone, Copy)]
pub struct Column {
    /// Its header.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// 0: always; 1: wide only.
    pub priority: u8,
    /// Its cells.
    pub cell: Cell,
}

/// A column that is always shown.
pub(crate) const fn column(name: &'static str, kind: &'static str, cell: Cell) -> Column {
    Column { name, kind, priority: 0, cell }
}

/// A column of the wide form.
pub(crate) const fn wide(name: &'static str, kind: &'static str, cell: Cell) -> Column {
    Column { name, kind, priority: 1, cell }
}

/// The `columnDefinitions` of a table.
pub fn definitions(columns: &[Column]) -> Value {
    let definition = |column: &Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        json!({
            "name": column.name, "type": column.kind, "format": format, "description": column.name,
            "priority": column.priority,
        })
    };
    Value::Array(columns.iter().map(definition).collect())
}

/// The cells of an object's row.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    columns.iter().map(|column| cell(column, object, now)).collect()
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    match column.cell {
        Cell::Name => at(object, &["metadata", "name"]).clone(),
        Cell::Path(path) => match at(object, path) {
            Value::Null => {
                if column.kind == "integer" {
                    json!(0)
                } else {
                    json!("<none>")
                }
            }
            Value::String(text) if text.is_empty() => json!("<none>"),
            other => other.clone(),
        },
        Cell::Text(path) => json!(text(object, path)),
        Cell::Optional(path) => match at(object, path) {
            Value::Null => json!("<unset>"),
            other => other.clone(),
        },
        Cell::Flag(path) => json!(at(object, path) == true),
        Cell::Count(path) => match at(object, path) {
            Value::Array(items) => json!(items.len()),
            Value::Object(entries) => json!(entries.len()),
            _ => json!(0),
        },
        Cell::Age => json!(age(at(object, &["metadata", "creationTimestamp"]), now)),
        Cell::Of(compute) => compute(object, now),
    }
}

/// The value under a path; null where a part is absent.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    const NULL: &Value = &Value::Null;
    path.iter().fold(value, |value, name| value.get(name).unwrap_or(NULL))
}

/// The text under a path; empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The items under a path.
pub(crate) fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The integer under a path; 0 where there is none.
pub(crate) fn number(value: &Value, path: &[&str]) -> i64 {
    at(value, path).as_i64().unwrap_or(0)
}

/// The texts of a list, joined.
pub(crate) fn joined(values: &[Value], separator: &str) -> String {
    values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(separator)
}

/// At most so many words, then how many more.
pub(crate) fn shortened(words: &[String], most: usize, separator: &str) -> String {
    match words.len().checked_sub(most) {
        None | Some(0) => words.join(separator),
        Some(more) => format!("{} + {more} more...", words[..most].join(separator)),
    }
}

/// The condition of a type.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, &["status", "conditions"]).iter().find(|condition| text(condition, &["type"]) == kind)
}

/// Whether the condition of a type is true.
pub(crate) fn has(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| text(condition, &["status"]) == "True")
}

/// `<none>` in place of nothing.
pub(crate) fn or_none(text: String) -> Value {
    if text.is_empty() { json!("<none>") } else { json!(text) }
}

/// Labels or a selector's labels as `a=b,c=d`.
pub(crate) fn labels(value: &Value) -> Value {
    let pairs = value.as_object().into_iter().flatten();
    or_none(
        pairs
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(","),
    )
}

/// A `LabelSelector` object as text.
pub(crate) fn selector(value: &Value) -> Value {
    let mut parts: Vec<String> = Vec::new();
    for (key, wanted) in value["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", wanted.as_str().unwrap_or_default()));
    }
    for expression in items(value, &["matchExpressions"]) {
        let key = text(expression, &["key"]);
        let values: Vec<&str> = items(expression, &["values"]).iter().filter_map(Value::as_str).collect();
        parts.push(match text(expression, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    or_none(parts.join(","))
}

/// How long ago a time stamp was, in upstream's short form; `<unknown>` where there is none.
pub fn age(since: &Value, now: Timestamp) -> String {
    match since.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(since) => human_duration(now.duration_since(since).as_secs()),
        None => "<unknown>".into(),
    }
}

/// A duration as people read it: two units while it is young, one later. Source: `duration.HumanDuration`.
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        i64::MIN..=-2 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_upstreams() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (700, "11m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (100_000, "27h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (70_000_000, "2y80d"),
            (-5, "<invalid>"),
        ];
        for (seconds, wanted) in cases {
            assert_eq!(human_duration(seconds), wanted);
        }
    }

    #[test]
    fn every_kind_has_columns_and_any_object_cells() {
        let schema = crate::schema::Schema::builtin();
        for row in crate::catalog::Catalog::builtin().rows() {
            assert_eq!(
                row.columns().iter().filter(|column| column.name == "Name").count(),
                1,
                "{}",
                row.kind
            );
            let stored = schema.of_kind(&row.storage_group, &row.storage_version, &row.kind);
            let ty = schema.typed(stored.expect("the type of what is stored"));
            for seed in 0..4 {
                let object = crate::generate::Generator::new(seed).object(ty, &row.api_version(), &row.kind);
                let cells = cells(row.columns(), &object, Timestamp::UNIX_EPOCH);
                for (cell, column) in cells.iter().zip(row.columns()) {
                    assert!(!cell.is_null() && !cell.is_object(), "{} {}: {cell}", row.kind, column.name);
                }
                assert!(super::cells(row.columns(), &json!({}), Timestamp::UNIX_EPOCH).len() == cells.len());
            }
        }
    }

    #[test]
    fn a_table_of_an_unknown_kind_has_name_and_age() {
        let columns = columns_of("example.com", "Widget");
        let object = json!({"metadata": {"name": "w", "creationTimestamp": "1970-01-01T00:00:00Z"}});
        assert_eq!(cells(columns, &object, Timestamp::UNIX_EPOCH), [json!("w"), json!("0s")]);
        assert_eq!(definitions(columns)[0]["format"], "name");
    }
}
