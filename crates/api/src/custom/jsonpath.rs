//! JSONPath as printer columns use it: fields, indexes, wildcards and filters. Source: `client-go/util/jsonpath`.

use serde_json::Value;

/// The most steps of a path, and the most values that a step leads to.
const STEPS_MAX: usize = 64;
const VALUES_MAX: usize = 10_000;

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    /// Items `from..to`, each `by`.
    Slice(Option<i64>, Option<i64>),
    All,
    /// Everything below, itself included.
    Below,
    Filter(JsonPath, Comparison, Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl JsonPath {
    /// Parses a path as `.spec.replicas`; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.trim();
        rest = rest.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(rest);
        rest = rest.strip_prefix(['$', '@']).unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() == STEPS_MAX {
                return Err(format!("more than {STEPS_MAX} steps"));
            }
            rest = step(rest, &mut steps)?;
        }
        Ok(Self { steps })
    }

    /// The values that the path leads to.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        self.steps.iter().fold(vec![value], |values, step| {
            let mut next: Vec<&Value> = values.into_iter().flat_map(|value| step.from(value)).collect();
            next.truncate(VALUES_MAX);
            next
        })
    }

    /// The names of a path that is nothing but fields (`.spec.replicas`).
    pub fn fields(&self) -> Option<Vec<String>> {
        let name = |step: &Step| match step {
            Step::Field(name) => Some(name.clone()),
            _ => None,
        };
        self.steps.iter().map(name).collect()
    }
}

fn step<'t>(text: &'t str, steps: &mut Vec<Step>) -> Result<&'t str, String> {
    if let Some(rest) = text.strip_prefix('[') {
        let end = closing(rest).ok_or("unterminated array")?;
        steps.push(bracket(rest[..end].trim())?);
        return Ok(&rest[end + 1..]);
    }
    let rest = match text.strip_prefix("..") {
        Some(rest) => {
            steps.push(Step::Below);
            rest
        }
        None => text.strip_prefix('.').unwrap_or(text),
    };
    if rest.is_empty() || rest.starts_with('[') {
        return Ok(rest);
    }
    let mut name = String::new();
    let mut letters = rest.char_indices();
    let mut end = rest.len();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => name.extend(letters.next().map(|(_, letter)| letter)),
            '.' | '[' => {
                end = at;
                break;
            }
            letter if letter.is_whitespace() || "{}()|@".contains(letter) => {
                return Err(format!("unexpected character {letter:?}"));
            }
            letter => name.push(letter),
        }
    }
    steps.push(if name == "*" { Step::All } else { Step::Field(name) });
    Ok(&rest[end..])
}

/// Where a bracket closes, quotes and inner brackets apart.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Result<Step, String> {
    if inner == "*" {
        return Ok(Step::All);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|inner| inner.strip_suffix(')')) {
        return self::filter(filter);
    }
    if let Some(name) = quoted(inner) {
        return Ok(Step::Field(name.to_owned()));
    }
    let number = |text: &str| match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("invalid array index {inner}")),
    };
    match inner.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(number(from)?, number(to)?)),
        None => number(inner)?.map(Step::Index).ok_or_else(|| format!("invalid array index {inner}")),
    }
}

fn filter(text: &str) -> Result<Step, String> {
    let found = COMPARISONS
        .iter()
        .filter_map(|(sign, comparison)| outside_quotes(text, sign).map(|at| (at, *sign, *comparison)))
        .min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())));
    let Some((at, sign, comparison)) = found else {
        return Ok(Step::Filter(JsonPath::parse(text.trim())?, Comparison::Exists, Value::Null));
    };
    let right = text[at + sign.len()..].trim();
    let right = match quoted(right) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(right).map_err(|_| format!("unrecognized operand {right}"))?,
    };
    Ok(Step::Filter(JsonPath::parse(text[..at].trim())?, comparison, right))
}

fn outside_quotes(text: &str, sign: &str) -> Option<usize> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, _) if text[at..].starts_with(sign) => return Some(at),
            _ => {}
        }
    }
    None
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

impl Step {
    fn from<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match self {
            Self::Field(name) => value.get(name.as_str()).into_iter().collect(),
            Self::Index(index) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                position(items.len(), *index).and_then(|at| items.get(at)).into_iter().collect()
            }
            Self::Slice(from, to) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let at = |index: Option<i64>, otherwise| match index {
                    Some(index) => position(items.len(), index).unwrap_or(items.len()).min(items.len()),
                    None => otherwise,
                };
                items.get(at(*from, 0)..at(*to, items.len())).unwrap_or_default().iter().collect()
            }
            Self::All => children(value),
            Self::Below => {
                let mut all = vec![value];
                let mut next = 0;
                while let Some(value) = all.get(next).copied().filter(|_| all.len() < VALUES_MAX) {
                    all.extend(children(value));
                    next += 1;
                }
                all
            }
            Self::Filter(path, comparison, right) => children(value)
                .into_iter()
                .filter(|item| {
                    let found = path.find(item);
                    match comparison {
                        Comparison::Exists => !found.is_empty(),
                        _ => found.first().is_some_and(|left| holds(left, *comparison, right)),
                    }
                })
                .collect(),
        }
    }
}

fn position(length: usize, index: i64) -> Option<usize> {
    let index = if index < 0 { index + i64::try_from(length).ok()? } else { index };
    usize::try_from(index).ok()
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

fn holds(left: &Value, comparison: Comparison, right: &Value) -> bool {
    let order = match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64().partial_cmp(&right.as_f64()),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (left, right) => (left == right).then_some(std::cmp::Ordering::Equal),
    };
    match (comparison, order) {
        (Comparison::NotEqual, order) => order.is_none_or(|order| order.is_ne()),
        (_, None) => false,
        (Comparison::Exists, _) => true,
        (Comparison::Equal, Some(order)) => order.is_eq(),
        (Comparison::Less, Some(order)) => order.is_lt(),
        (Comparison::LessOrEqual, Some(order)) => order.is_le(),
        (Comparison::Greater, Some(order)) => order.is_gt(),
        (Comparison::GreaterOrEqual, Some(order)) => order.is_ge(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_upstreams_do() {
        let object = json!({"spec": {"replicas": 3, "a.b": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "False"}]}});
        for (path, wanted) in [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            (".spec['a.b']", json!([1])),
            (".spec.a\\.b", json!([1])),
            (".spec.list[0].n", json!(["x"])),
            (".spec.list[-1].n", json!(["y"])),
            (".spec.list[*].n", json!(["x", "y"])),
            (".spec.list[0:1].v", json!([1])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='Synced')].status", json!(["False"])),
            (".spec.list[?(@.v>1)].n", json!(["y"])),
            (".spec.absent", json!([])),
            ("..n", json!(["x", "y"])),
        ] {
            assert_eq!(json!(JsonPath::parse(path).unwrap().find(&object)), wanted, "{path}");
        }
        for bad in [".spec[", ".a b", ".x[?(@.y==)]", ".x[y]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(JsonPath::parse(".a.b").unwrap().fields(), Some(vec!["a".into(), "b".into()]));
    }
}
