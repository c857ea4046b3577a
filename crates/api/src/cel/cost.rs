//! What a rule of a custom resource may cost at most, before any object is seen: from the tree of its expression and
//! from how large the schema lets values become. Source: `cel-go/checker/cost.go`,
//! `k8s.io/apiserver/pkg/cel/{library/cost.go,common/schemas.go,limits.go}`.

use super::Program;
use super::ast::{Kind, Literal, Macro, Node, What};
use super::library::PACKAGES;
use super::value::unescape;
use crate::custom::Props;

/// The largest object that a request brings, in bytes. Source: `DefaultMaxRequestSizeBytes`.
const REQUEST_BYTES_MAX: u64 = 3 << 20;
/// The cost of looking at one byte of a text, as a divisor. Source: `StringTraversalCostFactor`.
const BYTES_PER_COST: u64 = 10;
/// The cost of one letter of a regular expression, as a divisor. Source: `RegexStringLengthCostFactor`.
const PATTERN_PER_COST: u64 = 4;
const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const STRUCT_COST: u64 = 40;

/// The highest cost of an expression of `self` and `oldSelf`, which are of a schema.
pub(crate) fn max_cost(program: &Program, schema: &Props) -> u64 {
    let own = || Value { shape: Shape::Of(schema), size: size_of(schema) };
    let mut estimate = Estimate { scope: vec![("self", own()), ("oldSelf", own())] };
    estimate.of(&program.tree).0
}

/// How many values of a schema fit into one request, where nothing else bounds them.
pub(crate) fn max_count(schema: &Props) -> u64 {
    REQUEST_BYTES_MAX / (min_bytes(schema) + 1)
}

/// What is known of a value: what it looks like, and how large it is at most.
#[derive(Debug, Clone)]
struct Value<'p> {
    shape: Shape<'p>,
    size: u64,
}

#[derive(Debug, Clone)]
enum Shape<'p> {
    Of(&'p Props),
    /// A list whose items are these, or a map whose values are.
    Many(Box<Value<'p>>),
    Unknown,
}

const UNKNOWN: u64 = u64::MAX;

impl Value<'_> {
    fn scalar() -> Self {
        Self { shape: Shape::Unknown, size: 1 }
    }

    fn sized(size: u64) -> Self {
        Self { shape: Shape::Unknown, size }
    }
}

struct Estimate<'n, 'p> {
    scope: Vec<(&'n str, Value<'p>)>,
}

/// A cost, and the value that is had for it.
type Costed<'p> = (u64, Value<'p>);

impl<'n, 'p> Estimate<'n, 'p> {
    fn of(&mut self, node: &'n Node) -> Costed<'p> {
        match &node.kind {
            Kind::Literal(literal) => (0, Value::sized(size_of_literal(literal))),
            Kind::Name(name) => {
                let known = self.scope.iter().rev().find(|(known, _)| *known == &**name);
                (1, known.map_or_else(|| Value::sized(UNKNOWN), |(_, value)| value.clone()))
            }
            Kind::Select { of, field, test, .. } => {
                let (cost, value) = self.of(of);
                let below = if *test { Value::scalar() } else { field_of(&value, field) };
                (cost.saturating_add(1), below)
            }
            Kind::Index { of, index, .. } => {
                let ((cost, value), (more, _)) = (self.of(of), self.of(index));
                (cost.saturating_add(more).saturating_add(1), item_of(&value))
            }
            Kind::And(parts) | Kind::Or(parts) => (self.sum(parts.iter()), Value::scalar()),
            Kind::Condition(parts) => {
                let [condition, yes, no] = &**parts;
                let (cost, (yes, value), (no, other)) = (self.of(condition).0, self.of(yes), self.of(no));
                let size = value.size.max(other.size);
                (cost.saturating_add(yes.max(no)), Value { size, ..value })
            }
            Kind::List(items) => {
                let mut item = None;
                let mut cost = LIST_COST;
                for (node, _) in items {
                    let (more, value) = self.of(node);
                    cost = cost.saturating_add(more);
                    item = Some(larger(item, value));
                }
                (cost, many(item.unwrap_or_else(Value::scalar), items.len() as u64))
            }
            Kind::Map(entries) => {
                let cost = self.sum(entries.iter().flat_map(|(key, value, _)| [key, value]));
                (cost.saturating_add(MAP_COST), many(Value::sized(UNKNOWN), entries.len() as u64))
            }
            Kind::Struct { fields, .. } => {
                let cost = self.sum(fields.iter().map(|(_, value, _)| value));
                (cost.saturating_add(STRUCT_COST), Value::sized(fields.len() as u64))
            }
            Kind::Call { name, target, arguments } => {
                let package = match target.as_ref().map(|target| &target.kind) {
                    Some(Kind::Name(package)) if PACKAGES.contains(&&**package) => Some(&**package),
                    _ => None,
                };
                let receiver = target.as_deref().filter(|_| package.is_none());
                let mut cost: u64 = 0;
                let mut values = Vec::with_capacity(arguments.len() + 1);
                for node in receiver.into_iter().chain(arguments) {
                    let (more, value) = self.of(node);
                    cost = cost.saturating_add(more);
                    values.push(value);
                }
                let (own, value) = match package {
                    Some("sets") => sets(&values),
                    Some("optional") => (1, values.pop().unwrap_or_else(Value::scalar)),
                    _ => call(name, &values),
                };
                (cost.saturating_add(own), value)
            }
            Kind::Macro(made) => self.of_macro(made),
        }
    }

    fn sum(&mut self, nodes: impl Iterator<Item = &'n Node>) -> u64 {
        nodes.fold(0, |cost: u64, node| cost.saturating_add(self.of(node).0))
    }

    fn of_macro(&mut self, made: &'n Macro) -> Costed<'p> {
        let (cost, range) = self.of(&made.range);
        let is_map = matches!(&range.shape, Shape::Of(schema) if schema.ty == "object");
        // Upstream's declaration of keys says nothing of their length, which counts as none (`@keys`).
        let key = || if is_map { Value::sized(0) } else { Value::scalar() };
        let bound: Vec<Value<'p>> = match (made.what, made.names.len()) {
            (What::Bind | What::OptMap | What::OptFlatMap, _) => vec![range.clone()],
            (_, 2) => vec![key(), item_of(&range)],
            _ if is_map => vec![key()],
            _ => vec![item_of(&range)],
        };
        let before = self.scope.len();
        self.scope.extend(made.names.iter().map(|name| &**name).zip(bound.clone()));
        let (mut each, mut last) = (0_u64, Value::scalar());
        for body in &made.bodies {
            let (more, value) = self.of(body);
            each = each.saturating_add(more);
            last = value;
        }
        self.scope.truncate(before);
        // What is collected, and the look at whether to go on, each cost a little with every round.
        let round = match made.what {
            What::Bind | What::OptMap | What::OptFlatMap => {
                return (cost.saturating_add(each).saturating_add(1), last);
            }
            What::All | What::ExistsOne => 3,
            What::Exists => 4,
            _ => 2 + LIST_COST,
        };
        let total =
            range.size.saturating_mul(each.saturating_add(round)).saturating_add(cost).saturating_add(1);
        let value = match made.what {
            What::All | What::Exists | What::ExistsOne => Value::scalar(),
            What::Filter => Value { shape: Shape::Many(Box::new(bound[0].clone())), size: range.size },
            _ => many(last, range.size),
        };
        (total, value)
    }
}

fn many(item: Value<'_>, size: u64) -> Value<'_> {
    Value { shape: Shape::Many(Box::new(item)), size }
}

fn larger<'p>(known: Option<Value<'p>>, value: Value<'p>) -> Value<'p> {
    let Some(known) = known else { return value };
    let size = known.size.max(value.size);
    Value { size, ..value }
}

fn field_of<'p>(value: &Value<'p>, field: &str) -> Value<'p> {
    let Shape::Of(schema) = &value.shape else { return item_of(value) };
    match schema.properties.get(&*unescape(field)).or_else(|| schema.child(field)) {
        Some(below) => Value { shape: Shape::Of(below), size: size_of(below) },
        None => Value::sized(REQUEST_BYTES_MAX - 2),
    }
}

fn item_of<'p>(value: &Value<'p>) -> Value<'p> {
    match &value.shape {
        Shape::Of(schema) => match schema.item().or_else(|| schema.additional()) {
            Some(below) => Value { shape: Shape::Of(below), size: size_of(below) },
            None => Value::sized(UNKNOWN),
        },
        Shape::Many(item) => (**item).clone(),
        Shape::Unknown => Value::sized(UNKNOWN),
    }
}

fn size_of_literal(literal: &Literal) -> u64 {
    match literal {
        Literal::Text(text) => text.len() as u64,
        Literal::Bytes(bytes) => bytes.len() as u64,
        _ => 1,
    }
}

/// How large a value of a schema may be: letters of a text in bytes, items of a list, entries of a map.
fn size_of(schema: &Props) -> u64 {
    let any = REQUEST_BYTES_MAX - 2;
    if schema.int_or_string {
        return schema.max_length.map_or(any, |length| length.saturating_mul(4));
    }
    match schema.ty.as_str() {
        "array" => schema.max_items.unwrap_or_else(|| any / (schema.item().map_or(2, min_bytes) + 1)),
        "object" => match schema.additional() {
            Some(below) => schema.max_properties.unwrap_or_else(|| any / (min_bytes(below) + 6)),
            None => 1,
        },
        "string" => match schema.format.as_str() {
            "duration" | "date-time" | "datetime" => 32,
            "date" => 12,
            "byte" => schema.max_length.unwrap_or(any),
            _ => match (schema.max_length, &schema.values) {
                (Some(length), _) => length.saturating_mul(4),
                (None, Some(values)) if !values.is_empty() => {
                    let lengths = values.iter().filter_map(|value| value.as_str().map(str::len));
                    lengths.max().unwrap_or(0) as u64
                }
                _ => any,
            },
        },
        "boolean" | "number" | "integer" => 1,
        _ => any,
    }
}

/// How few bytes of JSON a value of a schema may take.
fn min_bytes(schema: &Props) -> u64 {
    match (schema.ty.as_str(), schema.format.as_str()) {
        ("boolean", _) => 4,
        ("integer" | "number", _) => 1,
        ("string", "duration") => 3,
        ("string", "date") => 12,
        ("string", "date-time" | "datetime") => 21,
        ("object", _) if schema.additional().is_none() => {
            let needed = schema
                .properties
                .iter()
                .filter(|(name, below)| schema.required.contains(name) && below.default.is_none());
            needed.fold(2, |bytes, (name, below)| bytes + name.len() as u64 + min_bytes(below) + 4)
        }
        _ => 2,
    }
}

/// Every item of one is looked for in the other.
fn sets<'p>(values: &[Value<'p>]) -> Costed<'p> {
    let pairs = values.iter().fold(1, |pairs: u64, value| pairs.saturating_mul(value.size));
    (pairs.saturating_add(1), Value::scalar())
}

fn part(size: u64, of: u64) -> u64 {
    size.div_ceil(of)
}

/// What a function costs with such arguments, a receiver first, besides these.
fn call<'p>(name: &str, values: &[Value<'p>]) -> Costed<'p> {
    let size = |at: usize| values.get(at).map_or(0, |value| value.size);
    let read = |at: usize| part(size(at), BYTES_PER_COST);
    let whole = || Value::sized(size(0));
    match name {
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => {
            (part(size(0).min(size(1)), BYTES_PER_COST).max(1), Value::scalar())
        }
        "_+_" => {
            let size = size(0).saturating_add(size(1));
            let shape = values.first().map_or(Shape::Unknown, |value| value.shape.clone());
            (part(size, BYTES_PER_COST).max(1), Value { shape, size })
        }
        "_-_" | "_*_" | "_/_" | "_%_" | "-_" | "!_" => (1, Value::scalar()),
        "getHost" | "getHostname" | "getPort" | "getScheme" | "getEscapedPath" => (1, whole()),
        "@in" => {
            let is_map = matches!(values.get(1).map(|value| &value.shape), Some(Shape::Of(schema)) if schema.ty == "object");
            (if is_map { 1 } else { size(1).max(1) }, Value::scalar())
        }
        "startsWith" | "endsWith" => (read(1).max(1), Value::scalar()),
        "contains" => (read(0).saturating_mul(read(1)).max(1), Value::scalar()),
        "matches" => {
            let pattern = part(size(1), PATTERN_PER_COST);
            (part(size(0).saturating_add(1), BYTES_PER_COST).saturating_mul(pattern), Value::scalar())
        }
        "find" | "findAll" => {
            let pattern = part(size(1), PATTERN_PER_COST);
            (part(size(0).saturating_add(1), BYTES_PER_COST).saturating_mul(pattern), whole())
        }
        "validate" => {
            (part(size(1).saturating_add(1), BYTES_PER_COST).saturating_mul(32), many(Value::sized(128), 1))
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => match values.first() {
            Some(value) if matches!(value.shape, Shape::Many(_)) || is_list(value) => {
                let item = item_of(value);
                (value.size.saturating_mul(1 + part(item.size, BYTES_PER_COST)), Value::scalar())
            }
            _ => (read(0), Value::scalar()),
        },
        "lowerAscii" | "upperAscii" | "substring" | "trim" | "url" | "ip" | "cidr" | "quantity"
        | "semver" | "bytes" | "reverse" => (read(0).max(1), whole()),
        "isIP" | "isCIDR" | "isQuantity" | "isSemver" | "isURL" => (read(0).max(1), Value::scalar()),
        "replace" => {
            let longest = if size(1) == 0 { size(0).saturating_add(1) } else { size(0) };
            let size = size(0).saturating_add(longest.saturating_mul(size(2)));
            (read(0).saturating_mul(2).max(1), Value::sized(size))
        }
        "split" => (read(0).saturating_mul(2).max(1), many(whole(), size(0))),
        "join" => {
            let item = values.first().map_or(0, |value| item_of(value).size);
            let size = size(0).saturating_mul(item.saturating_add(size(1)));
            (part(size, BYTES_PER_COST).saturating_mul(2).max(1), Value::sized(size))
        }
        "size" | "hasValue" | "int" | "uint" | "double" | "bool" | "duration" | "timestamp" | "type"
        | "getFullYear" | "getMonth" | "getDate" | "getDayOfMonth" | "getDayOfWeek" | "getDayOfYear"
        | "getHours" | "getMinutes" | "getSeconds" | "getMilliseconds" => (1, Value::scalar()),
        "or" | "orValue" | "value" | "dyn" => (
            1,
            values
                .iter()
                .cloned()
                .reduce(|known, value| larger(Some(value), known))
                .unwrap_or_else(Value::scalar),
        ),
        "string" => (read(0).max(1), Value::sized(size(0).max(64))),
        _ => (1, Value::sized(UNKNOWN)),
    }
}

fn is_list(value: &Value<'_>) -> bool {
    matches!(&value.shape, Shape::Of(schema) if schema.ty == "array")
}
