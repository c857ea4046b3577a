//! Parameters of a request's address.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::answer::Failure;

/// The parameters after `?`.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// A parameter, or the empty text.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// Every value of a parameter.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// Docker's notion of a flag.
    pub(crate) fn flag(&self, name: &str) -> bool {
        !matches!(self.text(name).to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A JSON object of texts; `null` values are left out.
    pub(crate) fn map(&self, name: &str) -> Result<BTreeMap<String, String>, Failure> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(BTreeMap::new());
        }
        let values: BTreeMap<String, Option<String>> = serde_json::from_str(text).map_err(|error| {
            Failure::bad_request(format!("parameter {name} is not an object of strings: {error}"))
        })?;
        Ok(values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }

    /// `filters`: `{"label": {"a=b": true}}`, or lists in place of the inner objects.
    pub(crate) fn filters(&self) -> Result<BTreeMap<String, Vec<String>>, Failure> {
        let text = self.text("filters");
        if text.is_empty() {
            return Ok(BTreeMap::new());
        }
        let parsed: BTreeMap<String, Value> = serde_json::from_str(text)
            .map_err(|error| Failure::bad_request(format!("invalid filters: {error}")))?;
        let values = |value: Value| match value {
            Value::Object(map) => {
                map.into_iter().filter(|(_, on)| on != &Value::Bool(false)).map(|(key, _)| key).collect()
            }
            Value::Array(list) => {
                list.into_iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        Ok(parsed.into_iter().map(|(key, value)| (key, values(value))).collect())
    }
}

/// Whether labels satisfy every `key` or `key=value`.
pub(crate) fn labels_match(labels: &BTreeMap<String, String>, wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    })
}

/// A name without Docker's default registry and namespace.
pub(crate) fn familiar(name: &str) -> String {
    match name.strip_prefix("docker.io/") {
        None => name.to_owned(),
        Some(rest) => match rest.strip_prefix("library/") {
            Some(plain) if !plain.contains('/') => plain.to_owned(),
            _ => rest.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read() {
        let query =
            Query::parse("a=1&b=x%2Fy&b=z&off=0&filters=%7B%22label%22%3A%7B%22x%3Dy%22%3Atrue%7D%7D");
        assert!(query.flag("a") && !query.flag("off") && !query.flag("none"));
        assert_eq!(query.all("b"), ["x/y", "z"]);
        assert_eq!(query.filters().unwrap()["label"], ["x=y"]);
        assert!(Query::parse("filters=x").filters().is_err());
        let map =
            Query::parse("buildargs=%7B%22V%22%3A%222%22%2C%22W%22%3Anull%7D").map("buildargs").unwrap();
        assert_eq!(map, BTreeMap::from([("V".to_owned(), "2".to_owned())]));
    }

    #[test]
    fn labels_and_names() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let matches = |wanted: &[&str]| {
            labels_match(&labels, &wanted.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
        };
        assert!(matches(&["a", "a=b"]) && !matches(&["a=c"]) && !matches(&["c"]) && matches(&[]));
        assert_eq!(familiar("docker.io/library/a:b"), "a:b");
        assert_eq!(familiar("docker.io/a/b"), "a/b");
        assert_eq!(familiar("quay.io/library/a"), "quay.io/library/a");
    }
}
