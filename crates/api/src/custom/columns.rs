//! Printer columns of custom resources. Source: `apiserver/pkg/registry/rest` and `apiextensions-apiserver`'s
//! `tableconvertor`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::jsonpath::JsonPath;
use crate::table::age;

/// A column that a definition declares.
#[derive(Debug, Clone)]
pub struct PrinterColumn {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: JsonPath,
}

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may \
     allow a client to request the generation of an appropriate name automatically. Name is primarily intended for \
     creation idempotence and configuration definition. Cannot be updated. More info: \
     https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// The columns of a version: its own, or the age.
pub(super) fn read(version: &Value) -> Vec<PrinterColumn> {
    let declared = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    if declared.is_empty() {
        return column(&json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": "The moment of the object's creation."}))
        .into_iter()
        .collect();
    }
    declared.iter().filter_map(column).collect()
}

fn column(declared: &Value) -> Option<PrinterColumn> {
    let text = |field: &str| declared[field].as_str().unwrap_or_default().to_owned();
    Some(PrinterColumn {
        name: text("name"),
        kind: text("type"),
        format: text("format"),
        description: text("description"),
        priority: declared["priority"].as_i64().unwrap_or(0),
        path: JsonPath::parse(&text("jsonPath")).ok()?,
    })
}

/// The `columnDefinitions` of a table.
pub fn definitions(columns: &[PrinterColumn]) -> Value {
    let name =
        json!({"name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0});
    let declared = columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    std::iter::once(name).chain(declared).collect()
}

/// The cells of an object's row.
pub fn cells(columns: &[PrinterColumn], object: &Value, now: Timestamp) -> Vec<Value> {
    let declared = columns.iter().map(|column| match column.path.find(object).first() {
        Some(value) => cell(&column.kind, value, now),
        None => Value::Null,
    });
    std::iter::once(object["metadata"]["name"].clone()).chain(declared).collect()
}

fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        (_, Value::Null) if kind != "string" => Value::Null,
        ("integer", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            // As Go converts it: towards zero, at the ends of the range at most.
            (None, Some(number)) => (number as i64).into(),
            (None, None) => Value::Null,
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) if text.parse::<Timestamp>().is_ok() => age(value, now).into(),
        ("date", Value::String(_)) => "<invalid>".into(),
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Null) => "<nil>".into(),
        ("string", other) => other.to_string().into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_take_the_form_of_their_column() {
        let columns = read(&json!({"additionalPrinterColumns": [
            {"name": "Spec", "type": "string", "jsonPath": ".spec.text"},
            {"name": "Count", "type": "integer", "jsonPath": ".spec.count"},
            {"name": "Map", "type": "string", "jsonPath": ".spec.map", "priority": 1},
            {"name": "None", "type": "integer", "jsonPath": ".spec.none"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ]}));
        let object = json!({"metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"text": "x", "count": 3, "map": {"a": 1}}});
        assert_eq!(
            cells(&columns, &object, Timestamp::UNIX_EPOCH),
            [json!("n"), json!("x"), json!(3), json!("{\"a\":1}"), Value::Null, json!("0s")]
        );
        let definitions = definitions(&columns);
        assert_eq!((&definitions[0]["format"], &definitions[3]["priority"]), (&json!("name"), &json!(1)));
        assert_eq!(cells(&read(&json!({})), &object, Timestamp::UNIX_EPOCH), [json!("n"), json!("0s")]);
    }
}
