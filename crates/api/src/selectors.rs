//! Label and field selectors, parsed from query strings or from `LabelSelector` objects, and matched.
//! Source: `k8s.io/apimachinery/pkg/{labels,fields}`.

mod grammar;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Reason, Status};

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What has to hold.
    pub condition: Condition,
}

/// What has to hold of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It is one of these.
    In(Vec<String>),
    /// It is absent, or none of these.
    NotIn(Vec<String>),
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
    /// It is an integer above this.
    GreaterThan(i64),
    /// It is an integer below this.
    LessThan(i64),
}

/// A conjunction of requirements; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

/// `meta/v1.LabelSelector`, as objects carry it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelectorSpec {
    /// Labels that must have these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// More requirements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<MatchExpression>,
}

/// `meta/v1.LabelSelectorRequirement`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchExpression {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist` (`Gt` and `Lt` in node affinity).
    pub operator: String,
    /// Operands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl Requirement {
    /// A requirement from an object's expression; the message names what is wrong.
    pub fn from_expression(expression: &MatchExpression) -> Result<Self, String> {
        let values = || expression.values.clone();
        let number = || -> Result<i64, String> {
            let [value] = expression.values.as_slice() else {
                return Err(format!("for '{}' operator, exactly one value is required", expression.operator));
            };
            value
                .parse()
                .map_err(|_| format!("for '{}' operator, the value must be an integer", expression.operator))
        };
        let condition = match expression.operator.as_str() {
            "In" if !expression.values.is_empty() => Condition::In(values()),
            "NotIn" if !expression.values.is_empty() => Condition::NotIn(values()),
            "In" | "NotIn" => return Err("for 'in', 'notin' operators, values set can't be empty".into()),
            "Exists" if expression.values.is_empty() => Condition::Exists,
            "DoesNotExist" if expression.values.is_empty() => Condition::DoesNotExist,
            "Exists" | "DoesNotExist" => {
                return Err("values set must be empty for exists and does not exist".into());
            }
            "Gt" => Condition::GreaterThan(number()?),
            "Lt" => Condition::LessThan(number()?),
            other => return Err(format!("\"{other}\" is not a valid label selector operator")),
        };
        Ok(Self { key: expression.key.clone(), condition })
    }

    /// Whether a set of labels meets it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.condition {
            Condition::In(values) => value.is_some_and(|value| values.contains(value)),
            Condition::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
            Condition::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
            Condition::LessThan(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h,!i`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match grammar::parse(text) {
            Ok(requirements) => Ok(Self { requirements }),
            Err(cause) => Err(Status::new(Reason::BadRequest, cause)),
        }
    }

    /// From an object's selector. Nothing in it matches everything; whoever wants nothing asks before.
    pub fn from_spec(spec: &LabelSelectorSpec) -> Result<Self, String> {
        let mut requirements = Self::from_labels(&spec.match_labels).requirements;
        for expression in &spec.match_expressions {
            requirements.push(Requirement::from_expression(expression)?);
        }
        Ok(Self { requirements })
    }

    /// All of these labels.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            condition: Condition::In(vec![value.clone()]),
        };
        Self { requirements: labels.iter().map(equals).collect() }
    }

    /// Whether it has no requirement.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether a set of labels meets every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }
}

/// A conjunction of exact field conditions: `metadata.name=x,status.phase!=Running`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Path, value, and whether equality is wanted.
    pub terms: Vec<FieldTerm>,
}

/// One condition of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// The field's path, as `spec.nodeName`.
    pub path: String,
    /// The value compared with.
    pub value: String,
    /// Equal, or not equal.
    pub equal: bool,
}

impl FieldSelector {
    /// Parses `a=b,c!=d`; a backslash escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split_unescaped(text, ',').into_iter().filter(|part| !part.is_empty()) {
            let term = [("!=", false), ("==", true), ("=", true)].iter().find_map(|(operator, equal)| {
                let (path, value) = part.split_once(operator)?;
                Some(FieldTerm { path: path.trim().to_owned(), value: unescape(value), equal: *equal })
            });
            terms.push(term.ok_or_else(|| {
                Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })?);
        }
        Ok(Self { terms })
    }

    /// Whether it has no condition.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a path must equal, if there is such a term.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.path == path).map(|term| term.value.as_str())
    }

    /// Whether an object, read through `field` (absent fields are empty), meets every condition.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|term| (field(&term.path) == term.value) == term.equal)
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let (mut start, mut escaped, mut parts) = (0, false, Vec::new());
    for (at, c) in text.char_indices() {
        if c == separator && !escaped {
            parts.push(&text[start..at]);
            start = at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(c);
            escaped = false;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
        LabelSelector::parse(selector).unwrap().matches(&labels(pairs))
    }

    #[test]
    fn label_selectors_match_as_documented() {
        let set = [("app", "web"), ("tier", "front"), ("n", "5")];
        for selector in [
            "",
            "app=web",
            "app==web,tier!=back",
            "app in (web, api)",
            "app",
            "!gone",
            "gone!=x",
            "x notin (y)",
            "n>4",
            "n<6",
        ] {
            assert!(matches(selector, &set), "{selector}");
        }
        for selector in ["app=api", "app notin (web)", "!app", "gone", "n>5", "tier in (,back)", "app=", "in"]
        {
            assert!(!matches(selector, &set), "{selector}");
        }
        for selector in ["x notin (a,,b)", "in in (notin),notin=in"] {
            assert!(matches(selector, &[("in", "notin"), ("notin", "in")]), "{selector}");
        }
    }

    #[test]
    fn malformed_selectors_are_refused_in_upstreams_words() {
        let name = names::qualified_name_problems("-a").join("; ");
        let value = names::label_value_problems("-b").join("; ");
        for (selector, said) in [
            ("a=b=c", "found '=', expected: ',' or 'end of string'".to_owned()),
            ("!a=b", "found '=', expected: ',' or 'end of string'".to_owned()),
            (",", "found ',', expected: !, identifier, or 'end of string'".to_owned()),
            ("=x", "found '=', expected: !, identifier, or 'end of string'".to_owned()),
            ("a,,b", "found ',', expected: identifier after ','".to_owned()),
            ("a=b c", "found 'c', expected: ',' or 'end of string'".to_owned()),
            ("a in b", "unable to parse requirement: found 'b' expected: '('".to_owned()),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'".to_owned()),
            ("a in (b c)", "unable to parse requirement: found 'c', expected: ',' or ')'".to_owned()),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set \
                 can't be empty"
                    .to_owned(),
            ),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt".to_owned()),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value \
                 must be an integer"
                    .to_owned(),
            ),
            ("-a=b", format!("unable to parse requirement: <nil>: Invalid value: \"-a\": {name}")),
            ("a=-b", format!("unable to parse requirement: values[0][a]: Invalid value: \"-b\": {value}")),
            ("a in (-b)", format!("unable to parse requirement: values[0][a]: Invalid value: \"-b\": {value}")),
        ] {
            let status = LabelSelector::parse(selector).unwrap_err();
            assert_eq!((status.code, status.message), (400, said), "{selector}");
        }
        assert!(FieldSelector::parse("nonsense").is_err());
    }

    #[test]
    fn object_selectors_say_what_is_wrong() {
        let expression = |operator: &str, values: &[&str]| MatchExpression {
            key: "a".into(),
            operator: operator.into(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        assert!(Requirement::from_expression(&expression("In", &[])).is_err());
        assert!(Requirement::from_expression(&expression("Exists", &["x"])).is_err());
        assert!(Requirement::from_expression(&expression("Like", &["x"])).is_err());
        assert!(Requirement::from_expression(&expression("NotIn", &["x"])).unwrap().matches(&labels(&[])));
    }

    #[test]
    fn field_selectors_compare_exactly() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running").unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        let field =
            |path: &str| if path == "metadata.name" { "a,b".to_owned() } else { "Pending".to_owned() };
        assert!(selector.matches(field));
    }
}
