//! The tree of an expression. Macros are nodes of their own, and conjunctions are flat, so that trees stay shallow.

use std::sync::Arc;

/// A part of an expression.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where it stands, in bytes: an operator, a dot or a bracket for what these make, as errors point at them.
    pub(super) at: usize,
    /// How many levels of nodes it has.
    pub(super) depth: usize,
    /// Whether its value is known before any run.
    pub(super) constant: bool,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Literal(Literal),
    Name(Box<str>),
    Select {
        of: Box<Node>,
        field: Box<str>,
        test: bool,
        optional: bool,
    },
    Index {
        of: Box<Node>,
        index: Box<Node>,
        optional: bool,
    },
    /// Also every operator but those below, under CEL's name for it (`_+_`).
    Call {
        name: Box<str>,
        target: Option<Box<Node>>,
        arguments: Vec<Node>,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
    Condition(Box<[Node; 3]>),
    /// Items, and whether each is left out if it is an optional without value.
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Struct {
        name: Box<str>,
        fields: Vec<(Box<str>, Node, bool)>,
    },
    Macro(Box<Macro>),
}

#[derive(Debug, Clone)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Arc<[u8]>),
}

/// A macro: names that stand for what is in a range, and expressions in which they are known.
#[derive(Debug, Clone)]
pub(super) struct Macro {
    pub(super) what: What,
    pub(super) range: Node,
    pub(super) names: Vec<Box<str>>,
    pub(super) bodies: Vec<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    All,
    Exists,
    ExistsOne,
    /// Also `transformList`; with a condition where there are two bodies.
    List,
    Filter,
    /// `transformMap`.
    Map,
    /// `transformMapEntry`.
    Entry,
    /// `sortBy`: a list in the order of what its items evaluate to.
    SortBy,
    OptMap,
    OptFlatMap,
    /// `cel.bind`: the range is the value.
    Bind,
}

impl What {
    /// The macro of a method with so many arguments, and how many of them are names.
    pub(super) fn of(name: &str, arguments: usize) -> Option<(Self, usize)> {
        Some(match (name, arguments) {
            ("all", 2) => (Self::All, 1),
            ("exists", 2) => (Self::Exists, 1),
            ("exists_one" | "existsOne", 2) => (Self::ExistsOne, 1),
            ("map", 2 | 3) => (Self::List, 1),
            ("filter", 2) => (Self::Filter, 1),
            ("all", 3) => (Self::All, 2),
            ("exists", 3) => (Self::Exists, 2),
            ("exists_one" | "existsOne", 3) => (Self::ExistsOne, 2),
            ("transformList", 3 | 4) => (Self::List, 2),
            ("transformMap", 3 | 4) => (Self::Map, 2),
            ("transformMapEntry", 3 | 4) => (Self::Entry, 2),
            ("sortBy", 2) => (Self::SortBy, 1),
            ("optMap", 2) => (Self::OptMap, 1),
            ("optFlatMap", 2) => (Self::OptFlatMap, 1),
            _ => return None,
        })
    }
}

impl Kind {
    /// Whether it is a literal, or made of literals alone. Source: `decOptimize` in `cel-go/interpreter`.
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Self::Literal(_) => true,
            Self::List(items) => items.iter().all(|(item, optional)| item.constant && !optional),
            Self::Map(entries) => {
                entries.iter().all(|(key, value, optional)| key.constant && value.constant && !optional)
            }
            Self::Call { name, target: None, arguments } => {
                let converts = ["int", "uint", "double", "bool", "string", "bytes", "duration", "timestamp"];
                converts.contains(&&**name) && matches!(arguments.as_slice(), [one] if one.constant)
            }
            _ => false,
        }
    }
}

impl Node {
    /// Shows each part that stands right below.
    pub(super) fn each<'n>(&'n self, see: &mut dyn FnMut(&'n Node)) {
        match &self.kind {
            Kind::Literal(_) | Kind::Name(_) => {}
            Kind::Select { of, .. } => see(of),
            Kind::Index { of, index, .. } => {
                see(of);
                see(index);
            }
            Kind::Call { target, arguments, .. } => {
                target.iter().for_each(|target| see(target));
                arguments.iter().for_each(see);
            }
            Kind::And(parts) | Kind::Or(parts) => parts.iter().for_each(see),
            Kind::Condition(parts) => parts.iter().for_each(see),
            Kind::List(items) => items.iter().for_each(|(item, _)| see(item)),
            Kind::Map(entries) => entries.iter().for_each(|(key, value, _)| {
                see(key);
                see(value);
            }),
            Kind::Struct { fields, .. } => fields.iter().for_each(|(_, value, _)| see(value)),
            Kind::Macro(made) => {
                see(&made.range);
                made.bodies.iter().for_each(see);
            }
        }
    }

    /// Whether a variable is spoken of.
    pub(super) fn uses(&self, variable: &str) -> bool {
        match &self.kind {
            Kind::Name(name) => return **name == *variable,
            Kind::Macro(made) if made.names.iter().any(|name| **name == *variable) => {
                return made.range.uses(variable);
            }
            _ => {}
        }
        let mut found = false;
        self.each(&mut |below| found = found || below.uses(variable));
        found
    }
}
