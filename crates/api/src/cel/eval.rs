//! The walk over an expression's tree.

use std::collections::BTreeMap;

use super::ast::{Kind, Literal, Macro, Node, What};
use super::cost::{LIST_COST, MAP_COST, STRUCT_COST};
use super::names::{PACKAGE_OF_TIMES, type_named, type_path};
use super::value::{Key, Text, Walk};
use super::{Budget, CelError, Val, Variables, actual, library, operators, told};

type Result<T> = std::result::Result<T, CelError>;

/// How deep an evaluation may go, from variable to variable: a tree is at most 100 deep, and 50 macros.
const DEPTH_MAX: usize = 250;
/// As how many levels a macro counts, by the stack that it takes.
const MACRO_DEPTH: usize = 4;

/// One evaluation: the names that macros bind, innermost last, and what is left to spend.
pub(super) struct Evaluation<'v, 'b> {
    pub(super) globals: &'b Variables<'v>,
    pub(super) scope: Vec<(&'v str, Val<'v>)>,
    pub(super) budget: &'b mut Budget,
    pub(super) depth: usize,
    /// How many of the composed variables are known here.
    pub(super) composed: usize,
    /// Within how many parts nothing has a cost.
    pub(super) free: usize,
}

impl<'v> Evaluation<'v, '_> {
    pub(super) fn value(&mut self, node: &'v Node) -> Result<Val<'v>> {
        self.budget.spend(1)?;
        let levels = if matches!(node.kind, Kind::Macro(_)) { MACRO_DEPTH } else { 1 };
        if self.depth + levels > DEPTH_MAX {
            return Err(CelError::fault("variables lean on each other too deeply"));
        }
        self.depth += levels;
        let free = usize::from(node.constant);
        self.free += free;
        let value = self.part(node);
        self.free -= free;
        self.depth -= levels;
        value
    }

    /// Pays what upstream says that a step costs.
    fn charge(&mut self, cost: u64) -> Result<()> {
        if self.free == 0 { self.budget.charge(cost) } else { Ok(()) }
    }

    /// Pays for a call that has its value.
    fn charged(
        &mut self,
        name: &str,
        method: bool,
        arguments: &[Val<'v>],
        value: Val<'v>,
    ) -> Result<Val<'v>> {
        let cost = actual::call(name, method, arguments, &value, self.budget)?;
        self.charge(cost)?;
        Ok(value)
    }

    /// A part of a value, after a look at what it is part of: upstream counts a step more where that is no variable.
    fn step(&mut self, of: &'v Node) -> Result<()> {
        let way = matches!(of.kind, Kind::Name(_) | Kind::Select { test: false, .. } | Kind::Index { .. });
        self.charge(if way { 1 } else { 2 })
    }

    /// What a condition decides for: upstream does not count the variable where the value is one of its parts.
    fn branch(&mut self, node: &'v Node) -> Result<Val<'v>> {
        let value = self.value(node)?;
        if self.free == 0 && self.is_variable(node) {
            self.budget.left += 1;
        }
        Ok(value)
    }

    /// Whether a node is a variable or a part of one.
    fn is_variable(&self, node: &Node) -> bool {
        match &node.kind {
            Kind::Name(name) => self.bound(name).is_some() || **name == *"variables",
            Kind::Select { of, test: false, .. } | Kind::Index { of, .. } => self.is_variable(of),
            _ => false,
        }
    }

    /// What stands between brackets: a variable costs nothing there.
    fn place(&mut self, index: &'v Node) -> Result<Val<'v>> {
        let free = usize::from(self.is_variable(index));
        self.free += free;
        let value = self.value(index);
        self.free -= free;
        value
    }

    fn part(&mut self, node: &'v Node) -> Result<Val<'v>> {
        match &node.kind {
            Kind::Literal(literal) => Ok(constant(literal)),
            Kind::Name(name) => self.name(name),
            Kind::Select { of, field, test, optional } => self.select(of, field, *test, *optional),
            Kind::Index { of, index, optional: true } => {
                let (value, index) = (self.value(of)?, self.place(index)?);
                self.step(of)?;
                optional_of(value.at(&index, self.budget)?)
            }
            Kind::Index { of, index, .. } => {
                let (value, index) = (self.value(of)?, self.place(index)?);
                self.step(of)?;
                operators::index(&value, &index, self.budget)
            }
            Kind::Call { name, target: None, arguments } => {
                let known = matches!(arguments.as_slice(), [_, list] if **name == *"@in" && list.constant);
                let arguments = self.all(arguments)?;
                let value = match operators::apply(name, &arguments, self.budget)? {
                    Some(value) => value,
                    None => library::function(name, &arguments, self.budget)?,
                };
                // Upstream looks into a literal as into a set.
                if known { Ok(value) } else { self.charged(name, false, &arguments, value) }
            }
            Kind::Call { name, target: Some(target), arguments } => self.method(name, target, arguments),
            Kind::And(parts) => self.decided(parts, false),
            Kind::Or(parts) => self.decided(parts, true),
            Kind::Condition(parts) => {
                let [condition, yes, no] = &**parts;
                match self.value(condition)? {
                    Val::Bool(true) => self.branch(yes),
                    Val::Bool(false) => self.branch(no),
                    other => Err(no_overload("_?_:_", &[other])),
                }
            }
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.structure(name, fields),
            Kind::Macro(made) => self.macro_value(made),
        }
    }

    fn bound(&self, name: &str) -> Option<&Val<'v>> {
        let found = self.scope.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value);
        found.or_else(|| self.globals.get(name))
    }

    fn name(&mut self, name: &str) -> Result<Val<'v>> {
        if let Some(value) = self.bound(name) {
            let value = value.clone();
            self.charge(1)?;
            return Ok(value);
        }
        type_named(name)
            .map(Val::Type)
            .ok_or_else(|| CelError::fault(format!("no such attribute(s): {name}")))
    }

    fn select(&mut self, of: &'v Node, field: &'v str, test: bool, optional: bool) -> Result<Val<'v>> {
        if let Some(name) = type_path(of, field)
            && self.bound(PACKAGE_OF_TIMES).is_none()
        {
            return Ok(Val::Type(name));
        }
        let found = match self.composed_variable(of, field) {
            Some(value) => {
                self.charge(2)?;
                Some(value?)
            }
            None => {
                let value = self.value(of)?;
                if !test {
                    self.step(of)?;
                }
                value.field(field, self.budget)?
            }
        };
        if optional {
            return optional_of(found);
        }
        if test {
            return Ok(Val::Bool(!matches!(found, None | Some(Val::Optional(None)))));
        }
        found.ok_or_else(|| CelError::fault(format!("no such key: {}", told(field))))
    }

    /// `variables.name`: evaluated where it is first asked for, among those that stand before it.
    fn composed_variable(&mut self, of: &'v Node, field: &str) -> Option<Result<Val<'v>>> {
        let composition = self.globals.composition?;
        if !matches!(&of.kind, Kind::Name(name) if **name == *"variables")
            || self.bound("variables").is_some()
        {
            return None;
        }
        let place = composition.places.get(field).copied().filter(|place| *place < self.composed)?;
        if let Some(known) = self.globals.remembered.borrow().get(place).and_then(Clone::clone) {
            return Some(known);
        }
        let (name, program) = composition.entries.get(place)?;
        let value = match program {
            Err(error) => {
                let (name, error) = (told(name), told(error));
                Err(CelError::fault(format!("composited variable {name:?} fails to compile: {error}")))
            }
            Ok(program) => {
                let scope = std::mem::take(&mut self.scope);
                let composed = std::mem::replace(&mut self.composed, place);
                let free = std::mem::take(&mut self.free);
                let value = self.value(&program.tree);
                (self.scope, self.composed, self.free) = (scope, composed, free);
                value.map_err(|error| match error {
                    CelError::Fault(error) => {
                        let name = told(name);
                        CelError::fault(format!("composited variable {name:?} fails to evaluate: {error}"))
                    }
                    other => other,
                })
            }
        };
        let mut remembered = self.globals.remembered.borrow_mut();
        remembered.resize(composition.entries.len(), None);
        if !value.as_ref().is_err_and(CelError::is_final) {
            remembered[place] = Some(value.clone());
        }
        Some(value)
    }

    fn method(&mut self, name: &'v str, target: &'v Node, arguments: &'v [Node]) -> Result<Val<'v>> {
        if let Kind::Name(package) = &target.kind
            && library::PACKAGES.contains(&&**package)
            && self.bound(package).is_none()
        {
            let arguments = self.all(arguments)?;
            let name = format!("{package}.{name}");
            let value = library::function(&name, &arguments, self.budget)?;
            return self.charged(&name, false, &arguments, value);
        }
        let receiver = self.value(target)?;
        // `or` and `orValue` look at their argument only where there is nothing.
        if let (Val::Optional(held), "or" | "orValue", [otherwise]) = (&receiver, name, arguments) {
            return match held {
                Some(_) if name == "or" => Ok(receiver),
                Some(held) => Ok(Val::clone(held)),
                None => self.value(otherwise),
            };
        }
        let mut arguments = self.all(arguments)?;
        let value = library::method(name, &receiver, &arguments, self.budget)?;
        arguments.insert(0, receiver);
        self.charged(name, true, &arguments, value)
    }

    fn all(&mut self, nodes: &'v [Node]) -> Result<Vec<Val<'v>>> {
        nodes.iter().map(|node| self.value(node)).collect()
    }

    /// `&&` and `||`: one decisive part is enough, also where others are errors.
    fn decided(&mut self, parts: &'v [Node], decisive: bool) -> Result<Val<'v>> {
        let mut failed = None;
        for part in parts {
            match self.value(part) {
                Ok(Val::Bool(value)) if value == decisive => return Ok(Val::Bool(value)),
                Ok(Val::Bool(_)) => {}
                Ok(other) => {
                    let name = if decisive { "_||_" } else { "_&&_" };
                    failed = failed.or(Some(no_overload(name, &[other, Val::Bool(!decisive)])));
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Val::Bool(!decisive)), Err)
    }

    fn list(&mut self, nodes: &'v [(Node, bool)]) -> Result<Val<'v>> {
        let mut items = Vec::with_capacity(nodes.len());
        self.charge(LIST_COST)?;
        for (node, optional) in nodes {
            let value = self.value(node)?;
            items.extend(unwrapped(value, *optional));
        }
        Val::list(items)
    }

    fn map(&mut self, nodes: &'v [(Node, Node, bool)]) -> Result<Val<'v>> {
        let mut entries = BTreeMap::new();
        self.charge(MAP_COST)?;
        for (key, value, optional) in nodes {
            let key = Key::of(&self.value(key)?)?;
            let value = self.value(value)?;
            if let Some(value) = unwrapped(value, *optional)
                && entries.insert(key, value).is_some()
            {
                return Err(CelError::fault("Failed with repeated key"));
            }
        }
        Val::map(entries)
    }

    fn structure(&mut self, name: &'v str, fields: &'v [(Box<str>, Node, bool)]) -> Result<Val<'v>> {
        if !self.globals.patch_types || !is_patch_type(name) {
            return Err(CelError::fault(format!("undeclared type '{name}'")));
        }
        let mut made = BTreeMap::new();
        self.charge(STRUCT_COST)?;
        for (field, value, optional) in fields {
            let value = self.value(value)?;
            if let Some(value) = unwrapped(value, *optional) {
                made.insert(&**field, value);
            }
        }
        Val::made(name, made)
    }

    fn macro_value(&mut self, made: &'v Macro) -> Result<Val<'v>> {
        let left = self.budget.left;
        let range = self.value(&made.range)?;
        let paid = left.saturating_sub(self.budget.left);
        let [name, ..] = made.names.as_slice() else { return Err(CelError::fault("a macro without a name")) };
        let [body, ..] = made.bodies.as_slice() else {
            return Err(CelError::fault("a macro without a body"));
        };
        match made.what {
            What::Bind => return self.with(&[(name, range)], body),
            What::OptMap | What::OptFlatMap => {
                let Val::Optional(held) = range else { return Err(no_overload("optMap", &[range])) };
                // Asked whether there is a value; then upstream evaluates the range once more.
                self.charge(2)?;
                let Some(held) = held else { return Ok(Val::Optional(None)) };
                self.charge(paid)?;
                let value = self.with(&[(name, Val::clone(&held))], body)?;
                if made.what == What::OptFlatMap {
                    return Ok(value);
                }
                self.charge(1)?;
                return Val::some(value);
            }
            _ => {}
        }
        let Some(walk) = range.walk() else {
            return Err(CelError::fault(format!(
                "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                range.type_name()
            )));
        };
        let rounds = Rounds { walk, items: range.is_list() && made.names.len() < 2 };
        // The loops that upstream writes for macros end with a look at what was gathered.
        self.charge(if made.what == What::ExistsOne { 2 } else { 1 })?;
        match made.what {
            What::SortBy => self.sorted_by(made, rounds),
            What::All => self.quantified(made, rounds, false),
            What::Exists => self.quantified(made, rounds, true),
            What::ExistsOne => {
                let mut count = 0;
                for pair in rounds {
                    if self.holds(made, &pair, body)? {
                        self.charge(2)?;
                        count += 1;
                    }
                }
                Ok(Val::Bool(count == 1))
            }
            What::Filter => {
                let mut items = Vec::new();
                for pair in rounds {
                    if self.holds(made, &pair, body)? {
                        self.charge(LIST_COST + 3)?;
                        self.budget.spend_items(1)?;
                        let [item, _] = pair;
                        items.push(item);
                    }
                }
                Val::list(items)
            }
            _ => self.collected(made, rounds),
        }
    }

    /// `all` and `exists`: an error of one item counts only if no other decides.
    fn quantified(&mut self, made: &'v Macro, mut rounds: Rounds<'_, 'v>, decisive: bool) -> Result<Val<'v>> {
        let mut failed = None;
        // Whether to go on is asked before each round, also before the one that there is no need for.
        let look = if decisive { 3 } else { 2 };
        while let Some(pair) = rounds.next() {
            self.charge(look + 1)?;
            match self.holds(made, &pair, &made.bodies[0]) {
                Ok(value) if value == decisive => {
                    self.charge(if rounds.next().is_some() { look } else { 0 })?;
                    return Ok(Val::Bool(value));
                }
                Ok(_) => {}
                Err(error) if error.is_final() => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Val::Bool(!decisive)), Err)
    }

    /// `map`, `transformList`, `transformMap` and `transformMapEntry`, each with or without a condition.
    fn collected(&mut self, made: &'v Macro, rounds: Rounds<'_, 'v>) -> Result<Val<'v>> {
        let (mut list, mut map) = (Vec::new(), BTreeMap::new());
        let (condition, body) = match made.bodies.as_slice() {
            [condition, body] => (Some(condition), body),
            [body, ..] => (None, body),
            [] => return Err(CelError::fault("a macro without a body")),
        };
        for pair in rounds {
            if let Some(condition) = condition
                && !self.holds(made, &pair, condition)?
            {
                continue;
            }
            let value = self.with_pair(made, &pair, body)?;
            self.budget.spend_items(1)?;
            self.charge(match made.what {
                What::Map => 3,
                What::Entry => 2,
                _ => LIST_COST + 2,
            })?;
            match made.what {
                What::Map => {
                    map.insert(Key::of(&pair[0])?, value);
                }
                What::Entry => {
                    let entries = value.walk().filter(|_| !value.is_list());
                    for (key, entry) in entries
                        .ok_or_else(|| no_overload("transformMapEntry", std::slice::from_ref(&value)))?
                    {
                        self.budget.spend_items(2)?;
                        if map.insert(Key::of(&key)?, entry.paid(self.budget)?).is_some() {
                            return Err(CelError::fault("insert failed: key already exists"));
                        }
                    }
                }
                _ => list.push(value),
            }
        }
        if matches!(made.what, What::Map | What::Entry) { Val::map(map) } else { Val::list(list) }
    }

    /// `sortBy`: the items in the order of their keys.
    fn sorted_by(&mut self, made: &'v Macro, rounds: Rounds<'_, 'v>) -> Result<Val<'v>> {
        if !rounds.items {
            return Err(CelError::fault("no such overload: @sortByAssociatedKeys"));
        }
        let (mut items, mut keys) = (Vec::new(), Vec::new());
        for pair in rounds {
            keys.push(self.with_pair(made, &pair, &made.bodies[0])?);
            self.charge(LIST_COST + 2)?;
            self.budget.spend_items(2)?;
            let [item, _] = pair;
            items.push(item);
        }
        self.charge(2 + actual::sorting(keys.len() as u64, keys.first()))?;
        library::sorted(&items, &keys, self.budget)
    }

    fn holds(&mut self, made: &'v Macro, pair: &[Val<'v>; 2], body: &'v Node) -> Result<bool> {
        match self.with_pair(made, pair, body)? {
            Val::Bool(holds) => Ok(holds),
            other => Err(no_overload("_?_:_", &[other])),
        }
    }

    /// One round, which costs a step besides its expression.
    fn with_pair(&mut self, made: &'v Macro, pair: &[Val<'v>; 2], body: &'v Node) -> Result<Val<'v>> {
        self.budget.spend(1)?;
        match made.names.as_slice() {
            [one] => self.with(&[(one, pair[0].clone())], body),
            [one, two, ..] => self.with(&[(one, pair[0].clone()), (two, pair[1].clone())], body),
            [] => Err(CelError::fault("a macro without a name")),
        }
    }

    fn with(&mut self, bound: &[(&'v str, Val<'v>)], body: &'v Node) -> Result<Val<'v>> {
        let before = self.scope.len();
        self.scope.extend(bound.iter().cloned());
        let value = self.value(body);
        self.scope.truncate(before);
        value
    }
}

/// What a macro goes through: items of lists, keys of maps; with two names places and items, keys and values.
struct Rounds<'r, 'v> {
    walk: Walk<'r, 'v>,
    /// Whether it is the items that come first.
    items: bool,
}

impl<'v> Iterator for Rounds<'_, 'v> {
    type Item = [Val<'v>; 2];

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.walk.next()?;
        Some(if self.items { [value, Val::Null] } else { [key, value] })
    }
}

/// The types of objects that mutations make: `Object`, what is in it by its path (`Object.spec`), and `JSONPatch`.
pub(super) fn is_patch_type(name: &str) -> bool {
    name == "Object" || name.starts_with("Object.") || name == "JSONPatch"
}

/// An item that may be left out: `None` if it is an optional without value.
fn unwrapped(value: Val<'_>, optional: bool) -> Option<Val<'_>> {
    match value {
        Val::Optional(held) if optional => held.map(|held| Val::clone(&held)),
        value => Some(value),
    }
}

fn optional_of(found: Option<Val<'_>>) -> Result<Val<'_>> {
    match found {
        None => Ok(Val::Optional(None)),
        Some(already @ Val::Optional(_)) => Ok(already),
        Some(value) => Val::some(value),
    }
}

pub(super) fn constant(literal: &Literal) -> Val<'_> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(value) => Val::Bool(*value),
        Literal::Int(value) => Val::Int(*value),
        Literal::UInt(value) => Val::UInt(*value),
        Literal::Double(value) => Val::Double(*value),
        Literal::Text(text) => Val::Text(Text::Given(text)),
        Literal::Bytes(bytes) => Val::Bytes(bytes.clone()),
    }
}

/// CEL's word for a function of other types.
pub(super) fn no_overload(name: &str, arguments: &[Val<'_>]) -> CelError {
    let types: Vec<&str> = arguments.iter().map(Val::type_name).collect();
    CelError::fault(format!("found no matching overload for '{name}' applied to '({})'", types.join(", ")))
}
