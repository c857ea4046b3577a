//! Types, as far as they are known before an expression runs, and the functions that there are, with theirs.
//! Source: `cel-go/checker`, `cel-go/ext`, `k8s.io/apiserver/pkg/cel/library`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// How many parts a type may have.
const PARTS_MAX: usize = 64;

/// A type.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "CEL's and Kubernetes' types")]
pub enum Type {
    /// Known only at run time.
    Dyn,
    Null,
    Bool,
    Int,
    UInt,
    Double,
    Text,
    Bytes,
    Duration,
    Time,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    TypeOf,
    /// One that only functions work on (`kubernetes.URL`), or an object that an expression makes (`Object.spec`).
    Named(Arc<str>),
    /// One with fields.
    Object(Arc<dyn Fields>),
    /// Any type, the same wherever the letter stands.
    Letter(u8),
}

/// The fields of a type.
pub trait Fields: fmt::Debug + Send + Sync {
    /// The type's name in messages.
    fn name(&self) -> String;
    /// The type of a field, by the name that expressions use.
    fn field(&self, name: &str) -> Option<Type>;
}

impl Type {
    /// A list.
    pub fn list(item: Self) -> Self {
        Self::List(Arc::new(item))
    }

    /// A map from texts.
    pub fn map(value: Self) -> Self {
        Self::Map(Arc::new(Self::Text), Arc::new(value))
    }

    /// A type that has only a name.
    pub fn named(name: &str) -> Self {
        Self::Named(name.into())
    }

    /// The type, if it is of no more than a bounded number of parts, so that whoever looks at types does so in bounded
    /// time; or else any type.
    pub(super) fn bounded(self) -> Self {
        fn fits(ty: &Type, left: &mut usize) -> bool {
            let Some(less) = left.checked_sub(1) else { return false };
            *left = less;
            match ty {
                Type::List(inner) | Type::Optional(inner) => fits(inner, left),
                Type::Map(key, value) => fits(key, left) && fits(value, left),
                _ => true,
            }
        }
        if fits(&self, &mut { PARTS_MAX }) { self } else { Self::Dyn }
    }

    /// Whether it may be the key of a map.
    pub(super) fn is_key(&self) -> bool {
        matches!(self, Self::Bool | Self::Int | Self::UInt | Self::Text)
    }

    /// Whether its values have an order.
    pub(super) fn is_comparable(&self) -> bool {
        let texts = matches!(self, Self::Text | Self::Bytes | Self::Bool);
        texts || self.is_summable() || matches!(self, Self::Time)
    }

    /// Whether a list of it can be added up.
    pub(super) fn is_summable(&self) -> bool {
        matches!(self, Self::Int | Self::UInt | Self::Double | Self::Duration)
    }

    /// The name that its values have at run time.
    pub(super) fn plain_name(&self) -> String {
        match self {
            Self::List(_) => "list".to_owned(),
            Self::Map(..) => "map".to_owned(),
            Self::Optional(_) => "optional_type".to_owned(),
            other => other.full_name(),
        }
    }

    /// The same, with what is in it.
    pub fn full_name(&self) -> String {
        match self {
            Self::Null => "null_type".to_owned(),
            Self::Time => "google.protobuf.Timestamp".to_owned(),
            Self::Duration => "google.protobuf.Duration".to_owned(),
            Self::List(item) => format!("list({})", item.full_name()),
            Self::Map(key, value) => format!("map({}, {})", key.full_name(), value.full_name()),
            Self::Optional(inner) => format!("optional_type({})", inner.full_name()),
            other => other.to_string(),
        }
    }

    /// Whether it is this very type.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(one), Self::List(other)) | (Self::Optional(one), Self::Optional(other)) => {
                one.is(other)
            }
            (Self::Map(key, value), Self::Map(other_key, other_value)) => {
                key.is(other_key) && value.is(other_value)
            }
            (Self::Named(one), Self::Named(other)) => one == other,
            (Self::Object(one), Self::Object(other)) => one.name() == other.name(),
            (Self::Letter(one), Self::Letter(other)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => out.write_str("dyn"),
            Self::Null => out.write_str("null"),
            Self::Bool => out.write_str("bool"),
            Self::Int => out.write_str("int"),
            Self::UInt => out.write_str("uint"),
            Self::Double => out.write_str("double"),
            Self::Text => out.write_str("string"),
            Self::Bytes => out.write_str("bytes"),
            Self::Duration => out.write_str("duration"),
            Self::Time => out.write_str("timestamp"),
            Self::List(item) => write!(out, "list({item})"),
            Self::Map(key, value) => write!(out, "map({key}, {value})"),
            Self::Optional(inner) => write!(out, "optional_type({inner})"),
            Self::TypeOf => out.write_str("type"),
            Self::Named(name) => out.write_str(name),
            Self::Object(fields) => out.write_str(&fields.name()),
            Self::Letter(letter) => write!(out, "{}", char::from(*letter)),
        }
    }
}

/// What a function takes and gives; a method's receiver is its first parameter.
#[derive(Debug)]
pub(super) struct Overload {
    pub(super) method: bool,
    pub(super) parameters: Vec<Type>,
    pub(super) result: Type,
    /// Whether only expressions know it that were stored before.
    pub(super) stored: bool,
}

/// The overloads of a function.
pub(super) fn overloads(name: &str) -> &'static [Overload] {
    static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
        let mut functions: HashMap<&'static str, Vec<Overload>> = HashMap::new();
        for line in include_str!("functions.txt").lines() {
            if let Some((name, overload)) = overload(line) {
                functions.entry(name).or_default().push(overload);
            }
        }
        functions
    });
    FUNCTIONS.get(name).map(Vec::as_slice).unwrap_or_default()
}

/// `size(list<A>) int`, or for a method `string size() int`; `None` for comments and blank lines.
fn overload(line: &'static str) -> Option<(&'static str, Overload)> {
    let (stored, line) = match line.strip_prefix("stored ") {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (head, rest) = line.split_once('(').filter(|_| !line.starts_with('#'))?;
    let (inside, result) = rest.rsplit_once(") ")?;
    // A receiver may have spaces of its own: `map<A, B> size`.
    let (receiver, name) = match head.rsplit_once(' ') {
        Some((receiver, name)) => (Some(receiver), name),
        None => (None, head),
    };
    let parameters = split(inside).filter(|part| !part.is_empty());
    let parameters = receiver.into_iter().chain(parameters).map(read).collect();
    Some((name, Overload { method: receiver.is_some(), parameters, result: read(result), stored }))
}

/// Splits at commas outside angle brackets.
fn split(text: &'static str) -> impl Iterator<Item = &'static str> {
    let mut depth = 0_i32;
    text.split(move |letter| {
        depth += i32::from(letter == '<') - i32::from(letter == '>');
        letter == ',' && depth == 0
    })
    .map(str::trim)
}

fn read(name: &'static str) -> Type {
    let inner = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>'));
    if let Some(item) = inner("list<") {
        return Type::list(read(item));
    }
    if let Some(held) = inner("optional<") {
        return Type::Optional(Arc::new(read(held)));
    }
    if let Some(entry) = inner("map<") {
        let mut parts = split(entry);
        let mut next = || Arc::new(parts.next().map_or(Type::Dyn, read));
        return Type::Map(next(), next());
    }
    match name {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::UInt,
        "double" => Type::Double,
        "string" => Type::Text,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Time,
        "type" => Type::TypeOf,
        "A" => Type::Letter(b'A'),
        "B" => Type::Letter(b'B'),
        "C" => Type::Letter(b'C'),
        "S" => Type::Letter(b'S'),
        other => Type::named(other),
    }
}
