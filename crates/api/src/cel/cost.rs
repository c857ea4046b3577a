//! What an expression costs at most, in upstream's numbers: from its tree, the types in it, and how large the values are
//! that it sees. Upstream refuses definitions by these, so they are the same to the unit, also where they surprise: what
//! has no path from a variable counts by its type alone, and what a macro binds from such a value as the whole object (not so
//! for devices).
//! Source: `cel-go/checker/cost.go`, `cel-go/ext/{lists,sets}.go`, `k8s.io/apiserver/pkg/cel/library/cost.go`.

use super::ast::{Kind, Literal, Macro, Node, What};
use super::check::{Checked, Notes};
use super::library::PACKAGES;
use super::names::{PACKAGE_OF_TIMES, type_path};
use super::sizes::Decl;
use super::types::{Overload, Type};

/// What one unit of a text costs. Source: `StringTraversalCostFactor`.
pub(super) const PER_BYTE: f64 = 0.1;
/// What one letter of a pattern costs. Source: `RegexStringLengthCostFactor`.
pub(super) const PER_PATTERN_BYTE: f64 = 0.25;
pub(super) const LIST_COST: u64 = 10;
pub(super) const MAP_COST: u64 = 30;
pub(super) const STRUCT_COST: u64 = 40;
/// A question about rights.
const QUESTION_COST: u64 = 350_000;
/// Source: `MaxFormatSize`, `MaxNameFormatRegexSize`.
const FORMAT_SIZE: u64 = 64;
const FORMAT_PATTERN_SIZE: f64 = 128.0;

/// The highest cost of an expression; `root` declares each of its variables.
pub(crate) fn max_cost(checked: &Checked, root: Decl<'_>) -> u64 {
    let mut estimate = Estimate { notes: &checked.notes, root, scope: Vec::new() };
    estimate.of(&checked.tree).cost
}

/// How large a value is, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    least: u64,
    most: u64,
}

const UNKNOWN: Size = Size { least: 0, most: u64::MAX };

impl Size {
    const fn exact(size: u64) -> Self {
        Self { least: size, most: size }
    }

    fn plus(self, other: Self) -> Self {
        Self { least: self.least.saturating_add(other.least), most: self.most.saturating_add(other.most) }
    }

    fn times(self, other: Self) -> Self {
        Self { least: self.least.saturating_mul(other.least), most: self.most.saturating_mul(other.most) }
    }

    fn or(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }

    fn at(self, per: f64) -> u64 {
        scaled(self.most, per)
    }
}

/// So many times as much, rounded up.
pub(super) fn scaled(size: u64, factor: f64) -> u64 {
    // Saturates, as upstream's does.
    (size as f64 * factor).ceil() as u64
}

/// How a value is reached from a variable.
#[derive(Debug, Clone, Copy)]
enum Path<'p> {
    /// Not at all.
    None,
    /// By a way that the declarations do not know.
    Lost,
    Known(Decl<'p>),
}

/// The sizes of what is in a list or a map that the expression made.
#[derive(Debug, Clone, Copy)]
struct Entry {
    is_list: bool,
    key: Size,
    value: Size,
}

/// A cost, and what is known of the value that is had for it.
#[derive(Debug, Clone, Copy)]
struct Known<'p> {
    cost: u64,
    path: Path<'p>,
    size: Option<Size>,
    entry: Option<Entry>,
}

impl Known<'_> {
    /// What follows from an expression and nothing else.
    fn made(cost: u64, size: Option<Size>) -> Self {
        Self { cost, path: Path::None, size, entry: None }
    }

    fn size(&self) -> Size {
        self.size.unwrap_or(UNKNOWN)
    }
}

struct Estimate<'n, 'p> {
    notes: &'n Notes,
    root: Decl<'p>,
    /// What macros bind, innermost last.
    scope: Vec<(&'n str, Known<'p>)>,
}

impl<'n, 'p> Estimate<'n, 'p> {
    fn of(&mut self, node: &'n Node) -> Known<'p> {
        match &node.kind {
            Kind::Literal(literal) => Known::made(0, Some(Size::exact(size_of_literal(literal)))),
            Kind::Name(name) => self.of_name(node, name),
            Kind::Select { of, field, test, optional } => self.of_select(node, of, field, *test, *optional),
            Kind::Index { of, index, optional } => self.of_index(node, of, index, *optional),
            Kind::And(parts) | Kind::Or(parts) => Known::made(self.sum(parts.iter()), Some(Size::exact(1))),
            Kind::Condition(parts) => {
                let [condition, yes, no] = &**parts;
                let (condition, yes, no) = (self.of(condition), self.of(yes), self.of(no));
                let cost = condition.cost.saturating_add(yes.cost.max(no.cost));
                let entry = both(yes.entry, no.entry);
                Known { entry, ..Known::made(cost, Some(yes.size().or(no.size()))) }
            }
            Kind::List(items) => {
                let all: Vec<_> = items.iter().map(|(item, _)| self.of(item)).collect();
                let entry = Entry { is_list: true, key: Size::exact(1), value: union(&all) };
                self.literal(LIST_COST, &all, items.len(), Some(entry))
            }
            Kind::Map(entries) => {
                let keys: Vec<_> = entries.iter().map(|(key, _, _)| self.of(key)).collect();
                let values: Vec<_> = entries.iter().map(|(_, value, _)| self.of(value)).collect();
                let entry = Entry { is_list: false, key: union(&keys), value: union(&values) };
                let cost = keys.iter().fold(MAP_COST, |cost, key| cost.saturating_add(key.cost));
                self.literal(cost, &values, entries.len(), Some(entry))
            }
            Kind::Struct { fields, .. } => {
                let cost = self.sum(fields.iter().map(|(_, value, _)| value));
                Known::made(cost.saturating_add(STRUCT_COST), None)
            }
            Kind::Call { name, target, arguments } => self.of_call(node, name, target.as_deref(), arguments),
            Kind::Macro(made) => self.of_macro(node, made),
        }
    }

    fn sum(&mut self, nodes: impl Iterator<Item = &'n Node>) -> u64 {
        nodes.fold(0, |cost: u64, node| cost.saturating_add(self.of(node).cost))
    }

    fn literal(&self, own: u64, parts: &[Known<'p>], count: usize, entry: Option<Entry>) -> Known<'p> {
        let cost = parts.iter().fold(own, |cost, part| cost.saturating_add(part.cost));
        Known { entry, ..Known::made(cost, Some(Size::exact(count as u64))) }
    }

    /// The size of a value that declarations or its type tell.
    fn told(&self, path: Path<'p>, ty: &Type) -> Option<Size> {
        match path {
            Path::Known(decl) => Some(Size { least: 0, most: decl.size() }),
            Path::None | Path::Lost => is_scalar(ty).then_some(Size::exact(1)),
        }
    }

    /// Where the path begins that has this name, or none.
    fn begin(&self, name: Option<&str>) -> Path<'p> {
        if self.root.begins(name) { Path::Known(self.root) } else { Path::Lost }
    }

    /// Where a path leads on.
    fn below(&self, path: Path<'p>, step: impl Fn(Decl<'p>) -> Option<Decl<'p>>) -> Path<'p> {
        match path {
            Path::None => self.begin(None),
            Path::Lost => Path::Lost,
            Path::Known(decl) => step(decl).map_or(Path::Lost, Path::Known),
        }
    }

    fn of_name(&mut self, node: &Node, name: &str) -> Known<'p> {
        let ty = self.notes.ty(node);
        let bound = self.scope.iter().rev().find(|(known, _)| *known == name).map(|(_, known)| *known);
        let Some(bound) = bound else {
            let path = self.begin(Some(name));
            return Known { cost: 1, path, size: self.told(path, &ty), entry: None };
        };
        Known { cost: 1, size: self.told(bound.path, &ty).or(bound.size), ..bound }
    }

    fn of_select(&mut self, node: &Node, of: &'n Node, field: &str, test: bool, optional: bool) -> Known<'p> {
        let ty = self.notes.ty(node);
        if type_path(of, field).is_some() && matches!(ty, Type::TypeOf) {
            return Known::made(1, self.told(self.begin(Some(PACKAGE_OF_TIMES)), &ty));
        }
        let operand = self.of(of);
        if test {
            return Known::made(operand.cost, Some(Size::exact(1)));
        }
        if optional {
            return Known::made(operand.cost.saturating_add(1), self.told(Path::None, &ty));
        }
        let by_field = matches!(self.notes.ty(of), Type::Map(..) | Type::Object(_) | Type::Named(_));
        let path = self.below(operand.path, |decl| decl.field(field));
        let cost = operand.cost.saturating_add(u64::from(by_field));
        Known { cost, path, size: self.told(path, &ty), entry: None }
    }

    fn of_index(&mut self, node: &Node, of: &'n Node, index: &'n Node, optional: bool) -> Known<'p> {
        let ty = self.notes.ty(node);
        let (operand, index) = (self.of(of), self.of(index));
        let cost = operand.cost.saturating_add(index.cost).saturating_add(1);
        if optional || matches!(self.notes.ty(of), Type::Optional(_)) {
            return Known::made(cost, self.told(Path::None, &ty));
        }
        let path = self.below(operand.path, Decl::item);
        let size = operand.entry.map(|entry| entry.value).or_else(|| self.told(path, &ty));
        Known { cost, path, size, entry: None }
    }

    fn of_call(
        &mut self,
        node: &'n Node,
        name: &str,
        target: Option<&'n Node>,
        arguments: &'n [Node],
    ) -> Known<'p> {
        let package = match target.map(|target| &target.kind) {
            Some(Kind::Name(package))
                if PACKAGES.contains(&&**package)
                    && !self.scope.iter().any(|(known, _)| **known == **package) =>
            {
                Some(&**package)
            }
            _ => None,
        };
        let receiver = target.filter(|_| package.is_none());
        let nodes: Vec<&'n Node> = receiver.into_iter().chain(arguments).collect();
        let values: Vec<Known<'p>> = nodes.iter().map(|node| self.of(node)).collect();
        let types: Vec<Type> = nodes.iter().map(|node| self.notes.ty(node)).collect();
        let cost = values.iter().fold(0, |cost: u64, value| cost.saturating_add(value.cost));
        if let ("dyn", [value]) = (name, values.as_slice()) {
            return Known { cost: cost.saturating_add(1), path: Path::None, ..*value };
        }
        let full = package.map_or_else(|| name.to_owned(), |package| format!("{package}.{name}"));
        let call = Call {
            name: &full,
            method: receiver.is_some(),
            overloads: self.notes.overloads(node),
            nodes: &nodes,
            values: &values,
            types: &types,
            item: self.item_size(values.first(), types.first()),
        };
        let (own, size) = call.special().unwrap_or_else(|| call.standard());
        let size = size.or_else(|| self.told(Path::None, &self.notes.ty(node)));
        let entry = match values.as_slice() {
            [one, other] if name == "_+_" => both(one.entry, other.entry),
            _ => None,
        };
        Known { entry, ..Known::made(cost.saturating_add(own), size) }
    }

    /// How large an item of a list is, if the type says that it is one.
    fn item_size(&self, list: Option<&Known<'p>>, ty: Option<&Type>) -> Option<(Type, Size)> {
        let (Type::List(item) | Type::Map(item, _) | Type::Optional(item)) = ty? else { return None };
        let size = match list?.path {
            Path::None => None,
            path => match self.below(path, Decl::item) {
                Path::Known(decl) => Some(Size { least: 0, most: decl.size() }),
                _ => None,
            },
        };
        Some(((**item).clone(), size.unwrap_or(UNKNOWN)))
    }

    /// What a macro binds, from the range that it goes through: keys or places, and values.
    fn bound(&self, made: &Macro, range: &Known<'p>) -> Vec<Known<'p>> {
        let is_list = match range.entry {
            Some(entry) => entry.is_list,
            None => matches!(self.notes.ty(&made.range), Type::List(_)),
        };
        let entry = range.entry;
        let key = Known {
            path: self.below(range.path, |decl| if is_list { None } else { decl.key() }),
            ..Known::made(1, entry.map(|entry| entry.key))
        };
        let value = Known {
            path: self.below(range.path, Decl::item),
            ..Known::made(1, entry.map(|entry| entry.value))
        };
        match made.names.len() {
            2 => vec![key, value],
            _ if is_list => vec![value],
            _ => vec![key],
        }
    }

    fn of_macro(&mut self, node: &Node, made: &'n Macro) -> Known<'p> {
        let range = self.of(&made.range);
        let bound = match made.what {
            What::Bind => vec![range],
            What::OptMap | What::OptFlatMap => {
                let held = match self.notes.ty(&made.range) {
                    Type::Optional(inner) => (*inner).clone(),
                    _ => Type::Dyn,
                };
                vec![Known::made(1, self.told(Path::None, &held))]
            }
            _ => self.bound(made, &range),
        };
        let before = self.scope.len();
        self.scope.extend(made.names.iter().map(|name| &**name).zip(bound));
        let bodies: Vec<Known<'p>> = made.bodies.iter().map(|body| self.of(body)).collect();
        self.scope.truncate(before);
        let Some(body) = bodies.last().copied() else { return range };
        let condition = if bodies.len() == 2 { bodies[0].cost } else { 0 };
        let count = range.size();
        let rounds = |fixed: u64, each: u64| {
            let each = each.saturating_add(condition);
            range.cost.saturating_add(fixed).saturating_add(count.most.saturating_mul(each))
        };
        let each = |own: u64| body.cost.saturating_add(own);
        let list =
            |item: Size| Some(Entry { is_list: true, key: Size::exact(1), value: Size { least: 0, ..item } });
        // Upstream writes macros as loops: what begins, each look at whether to go on, and each step has its cost.
        match made.what {
            What::All => Known::made(rounds(1, each(3)), Some(Size::exact(1))),
            What::Exists => Known::made(rounds(1, each(4)), Some(Size::exact(1))),
            What::ExistsOne => Known::made(rounds(2, each(2)), Some(Size::exact(1))),
            What::Filter => {
                let item = self.bound(made, &range);
                let ty = match self.notes.ty(node) {
                    Type::List(item) => (*item).clone(),
                    _ => Type::Dyn,
                };
                let item = item.first().and_then(|item| self.told(item.path, &ty).or(item.size));
                let entry = list(item.unwrap_or(UNKNOWN));
                Known { entry, ..Known::made(rounds(LIST_COST + 1, each(LIST_COST + 3)), Some(count)) }
            }
            What::List => {
                let cost = rounds(LIST_COST + 1, each(LIST_COST + 2));
                Known { entry: list(body.size()), ..Known::made(cost, Some(count)) }
            }
            What::Map => Known::made(rounds(MAP_COST + 1, each(3)), Some(count)),
            What::Entry => Known::made(rounds(MAP_COST + 1, each(2)), Some(count)),
            What::SortBy => {
                let keys = rounds(2 * LIST_COST + 3, each(LIST_COST + 2));
                let (own, size) = sorting(count, &self.notes.ty(&made.bodies[0]));
                Known::made(keys.saturating_add(own), Some(size))
            }
            What::Bind => Known {
                cost: range.cost.saturating_add(body.cost).saturating_add(LIST_COST),
                path: Path::None,
                ..body
            },
            What::OptMap | What::OptFlatMap => {
                let of = u64::from(made.what == What::OptMap);
                let ask = range.cost.saturating_add(1);
                let cost = ask.saturating_mul(2).saturating_add(LIST_COST + of).saturating_add(body.cost);
                // What is there, or nothing: a size that counts for all that a condition may give.
                let nothing = self.told(Path::None, &self.notes.ty(node)).unwrap_or(UNKNOWN);
                let size = if made.what == What::OptMap { nothing } else { nothing.or(body.size()) };
                Known::made(cost, Some(size))
            }
        }
    }
}

/// A call, receiver first.
struct Call<'c, 'n, 'p> {
    name: &'c str,
    method: bool,
    overloads: &'c [&'static Overload],
    nodes: &'c [&'n Node],
    values: &'c [Known<'p>],
    types: &'c [Type],
    /// The items of the first value, where it is a list.
    item: Option<(Type, Size)>,
}

/// What a call costs besides its arguments, and how large its result is where that is known.
type Costed = (u64, Option<Size>);

impl Call<'_, '_, '_> {
    fn size(&self, at: usize) -> Size {
        self.values.get(at).map_or(UNKNOWN, Known::size)
    }

    /// What upstream's Kubernetes libraries say of their functions, and extensions of theirs.
    fn special(&self) -> Option<Costed> {
        let first = self.size(0);
        let read = |times: f64| (first.at(times * PER_BYTE), None);
        Some(match self.name {
            "check" => (QUESTION_COST, None),
            "fieldSelector" | "labelSelector" => (selector_cost(self.size(1).most), None),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
                (self.looked_through(first), None)
            }
            "url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                (first.at(PER_BYTE), Some(first))
            }
            "replace" => (first.at(2.0 * PER_BYTE), Some(replaced(first, self.size(1), self.size(2)))),
            "split" => {
                // A limit below 0 is none, which upstream reads as the largest number.
                let most = self.literal(2).map_or(first.most, |limit| limit as u64);
                (first.at(2.0 * PER_BYTE), Some(Size { least: 0, most }))
            }
            "join" => {
                let size = self.joined(first);
                (size.at(PER_BYTE), Some(size))
            }
            "find" | "findAll" => {
                (self.matched(first, self.size(1)), Some(Size { least: 0, most: first.most }))
            }
            "ip" if self.method => (1, None),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                read(1.0)
            }
            "ip.isCanonical" => read(2.0),
            "containsIP" => (self.contained(0), None),
            "containsCIDR" => (self.contained(3), None),
            "validate" => {
                let text = self.size(1).at(PER_BYTE);
                (scaled(text, FORMAT_PATTERN_SIZE * PER_PATTERN_BYTE), None)
            }
            "_==_" => return self.equal_of_kubernetes(),
            "sets.contains" | "sets.intersects" => (first.times(self.size(1)).most.saturating_add(1), None),
            "sets.equivalent" => (first.times(self.size(1)).at(2.0).saturating_add(1), None),
            "slice" => {
                let (from, to) = (self.number(1).unwrap_or(0), self.number(2).unwrap_or(first.most));
                allocating(1.0, Size::exact(to.wrapping_sub(from)))
            }
            "lists.range" => allocating(1.0, Size::exact(self.number(0).unwrap_or(u64::MAX))),
            "reverse" => allocating(1.0, first),
            "flatten" => match self.nodes.len() {
                1 => allocating(1.0, first),
                _ => allocating(self.number(1).unwrap_or(u64::MAX) as f64, first),
            },
            "distinct" => allocating(2.0, first.times(first)),
            "sort" => {
                let item = self.item.as_ref().map_or(Type::Dyn, |(ty, _)| ty.clone());
                let (cost, size) = sorting(first, &item);
                (cost, Some(size))
            }
            _ => return None,
        })
    }

    /// A number that is written where an argument stands.
    fn literal(&self, at: usize) -> Option<i64> {
        match self.nodes.get(at).map(|node| &node.kind) {
            Some(Kind::Literal(Literal::Int(number))) => Some(*number),
            _ => None,
        }
    }

    /// The same, where one below 0 counts as 0.
    fn number(&self, at: usize) -> Option<u64> {
        self.literal(at).map(|number| u64::try_from(number).unwrap_or(0))
    }

    /// Each item costs 1, and those that are texts as much as they are long.
    fn looked_through(&self, list: Size) -> u64 {
        match &self.item {
            Some((Type::Text | Type::Bytes, size)) => {
                list.most.saturating_mul(size.at(PER_BYTE).saturating_add(1))
            }
            Some(_) => list.most,
            None if self.name == "includes" => list.most,
            None => list.at(PER_BYTE),
        }
    }

    fn joined(&self, list: Size) -> Size {
        let items = self.item.as_ref().map_or(Size::exact(0), |(_, size)| list.times(*size));
        if self.values.len() < 2 {
            return items;
        }
        let between = Size { least: list.least.saturating_sub(1), most: list.most.saturating_sub(1) };
        items.plus(self.size(1).times(between))
    }

    fn matched(&self, text: Size, pattern: Size) -> u64 {
        text.plus(Size::exact(1)).at(PER_BYTE).saturating_mul(pattern.at(PER_PATTERN_BYTE))
    }

    /// Addresses have 16 bytes; a text is read first.
    fn contained(&self, more: u64) -> u64 {
        let parsed = match self.types.get(1) {
            Some(Type::Named(_)) => 0,
            _ => self.size(1).at(PER_BYTE),
        };
        scaled(32, PER_BYTE).saturating_add(more).saturating_add(parsed)
    }

    /// Equality of the types of Kubernetes' libraries, most of which are of one size.
    fn equal_of_kubernetes(&self) -> Option<Costed> {
        let [one, other] = self.types else { return None };
        let (Type::Named(name), true) = (one, one.is(other)) else { return None };
        Some(match &**name {
            "kubernetes.NamedFormat" => (scaled(FORMAT_SIZE, PER_BYTE), None),
            "kubernetes.URL" => (self.values[1].size.map_or(1, |size| size.at(PER_BYTE)), None),
            _ => (1, None),
        })
    }

    /// CEL's own functions: of all overloads that may be meant the most expensive.
    fn standard(&self) -> Costed {
        if matches!(self.name, "_==_" | "_!=_") {
            return (self.compared(), None);
        }
        if matches!(self.name, "_<_" | "_<=_" | "_>_" | "_>=_") {
            let any = |one: &Type| matches!(one, Type::Dyn);
            let texts = self.types.iter().any(|ty| matches!(ty, Type::Text | Type::Bytes));
            return match self.types {
                [one, other] if any(one) && any(other) => (self.compared().max(1), None),
                _ if texts => (self.compared(), None),
                _ => (1, None),
            };
        }
        let costs = self.overloads.iter().map(|overload| self.overload(overload));
        let one = |size: Option<Size>, other: Option<Size>| match (size, other) {
            (Some(size), Some(other)) => Some(size.or(other)),
            (size, other) => size.or(other),
        };
        costs.reduce(|(cost, size), (more, other)| (cost.max(more), one(size, other))).unwrap_or((1, None))
    }

    /// As much as the smaller one is large.
    fn compared(&self) -> u64 {
        scaled(self.size(0).most.min(self.size(1).most), PER_BYTE)
    }

    fn overload(&self, overload: &Overload) -> Costed {
        let (first, second) = (self.size(0), self.size(1));
        match (self.name, overload.parameters.as_slice()) {
            ("_+_", [Type::Text | Type::Bytes, _]) => {
                (first.plus(second).at(PER_BYTE), Some(first.plus(second)))
            }
            ("_+_", [Type::List(_), _]) => (1, Some(first.plus(second))),
            ("format" | "strings.quote", [Type::Text, ..]) => {
                let quoted = Size {
                    least: first.least.saturating_add(2),
                    most: first.most.saturating_mul(2).saturating_add(2),
                };
                (first.at(PER_BYTE), (self.name != "format").then_some(quoted))
            }
            ("bytes", [Type::Text]) => {
                (first.at(PER_BYTE), Some(Size { most: first.most.saturating_mul(4), ..first }))
            }
            ("string", [Type::Bytes]) => (first.at(PER_BYTE), Some(Size { least: first.least / 4, ..first })),
            ("startsWith" | "endsWith", _) => (second.at(PER_BYTE), None),
            ("@in", [_, Type::List(_)]) => (second.most, None),
            ("matches", _) if self.method => (self.matched(first, second), None),
            ("contains", _) => (first.at(PER_BYTE).saturating_mul(second.at(PER_BYTE)), None),
            _ => (1, None),
        }
    }
}

/// A selector becomes a list of requirements, one for every two letters at most.
pub(super) fn selector_cost(length: u64) -> u64 {
    let requirements = scaled(scaled(length, 0.5), (LIST_COST + STRUCT_COST) as f64);
    LIST_COST.saturating_add(scaled(length, PER_BYTE)).saturating_add(requirements)
}

/// A call that makes a list.
fn allocating(factor: f64, size: Size) -> Costed {
    (size.at(factor).saturating_add(1 + LIST_COST), Some(size))
}

/// Every key is compared with every other.
fn sorting(keys: Size, key: &Type) -> (u64, Size) {
    let factor = if matches!(key, Type::Text | Type::Bytes | Type::Dyn) { 2.0 + PER_BYTE } else { 2.0 };
    let pairs = keys.times(keys);
    (allocating(factor, pairs).0, pairs)
}

/// How long a text is where parts of it are replaced.
fn replaced(text: Size, part: Size, with: Size) -> Size {
    let times = |text: u64, part: u64| (text as f64 / part as f64).ceil() as u64;
    let (most, kept_most) = if part.least == 0 {
        (text.most.saturating_add(1), text.most)
    } else if with.most <= part.least {
        (0, text.most)
    } else {
        (times(text.most, part.least), 0)
    };
    let (least, kept_least) = if part.most == 0 {
        (text.least.saturating_add(1), text.least)
    } else if part.most <= with.least {
        (0, text.least)
    } else {
        (times(text.least, part.most), 0)
    };
    Size { least, most }.times(with).plus(Size { least: kept_least, most: kept_most })
}

/// What two lists or maps hold, where that is known of both.
fn both(one: Option<Entry>, other: Option<Entry>) -> Option<Entry> {
    let (one, other) = (one?, other?);
    Some(Entry { key: one.key.or(other.key), value: one.value.or(other.value), ..one })
}

fn union(values: &[Known<'_>]) -> Size {
    values.iter().map(Known::size).reduce(Size::or).unwrap_or(Size::exact(0))
}

/// Whether all values of a type are of one size.
fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Time | Type::UInt => true,
        Type::Optional(inner) => is_scalar(inner),
        _ => false,
    }
}

fn size_of_literal(literal: &Literal) -> u64 {
    match literal {
        Literal::Text(text) => text.chars().count() as u64,
        Literal::Bytes(bytes) => bytes.len() as u64,
        _ => 1,
    }
}
