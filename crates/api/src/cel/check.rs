//! Types are checked before an expression runs. What is not known passes; what cannot be right is said where it stands,
//! in upstream's words. Source: `cel-go/checker`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ast::{Kind, Literal, Macro, Node, What};
use super::eval::is_patch_type;
use super::lex::Wrong;
use super::library::PACKAGES;
use super::names::{PACKAGE_OF_TIMES, type_named, type_path};
use super::types::{Overload, Type, overloads};
use super::{literals, parse};

/// How many problems are told.
const PROBLEMS_MAX: usize = 100;

/// How much of one is told.
const PROBLEM_BYTES_MAX: usize = 4096;

/// The variables that an expression knows, and whether it may make objects.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
    /// What `variables` has.
    composed: Option<BTreeMap<String, Type>>,
    patch_types: bool,
    bindings: bool,
    stored: bool,
}

/// What is known of each node of a tree, by where the node lies.
#[derive(Debug, Default)]
pub(super) struct Notes(HashMap<usize, Note>);

#[derive(Debug)]
struct Note {
    ty: Type,
    overloads: Vec<&'static Overload>,
}

impl Notes {
    /// The type of a node.
    pub(super) fn ty(&self, node: &Node) -> Type {
        self.0.get(&place_of(node)).map_or(Type::Dyn, |note| note.ty.clone())
    }

    /// The overloads that a call may mean; none for operators and macros that have nodes of their own.
    pub(super) fn overloads(&self, node: &Node) -> &[&'static Overload] {
        self.0.get(&place_of(node)).map(|note| note.overloads.as_slice()).unwrap_or_default()
    }
}

fn place_of(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

/// An expression whose types are right.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(super) tree: Box<Node>,
    pub(super) notes: Notes,
    /// The type of its value.
    pub(crate) ty: Type,
}

impl Environment {
    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), ty));
        self
    }

    /// Adds `variables`, with those of a policy, each of which knows those before it: names and expressions. One that
    /// cannot be compiled may be anything.
    #[must_use]
    pub fn composed<'s>(mut self, variables: impl IntoIterator<Item = (&'s str, &'s str)>) -> Self {
        self.composed.get_or_insert_default();
        for (name, source) in variables {
            let _ = self.compose(name, source);
        }
        self
    }

    /// Adds one composed variable; the failure is of its expression.
    pub fn compose(&mut self, name: &str, source: &str) -> Result<(), String> {
        let checked = self.check(source.trim());
        let ty = checked.as_ref().map_or(Type::Dyn, Clone::clone);
        self.composed.get_or_insert_default().insert(name.to_owned(), ty);
        checked.map(drop)
    }

    /// Lets expressions make objects (`Object{…}`, `JSONPatch{…}`).
    #[must_use]
    pub fn patching(mut self) -> Self {
        self.patch_types = true;
        self
    }

    /// Lets expressions name values (`cel.bind`), which only selectors of devices may.
    #[must_use]
    pub fn binding(mut self) -> Self {
        self.bindings = true;
        self
    }

    /// Knows also what only expressions may use that were stored before. Source: `environment.StoredExpressions`.
    #[must_use]
    pub fn stored(mut self) -> Self {
        self.stored = true;
        self
    }

    /// The type of an expression; the failure is a text for people, as upstream's (`ERROR: <input>:1:1: …`).
    pub fn check(&self, source: &str) -> Result<Type, String> {
        self.checked(source).map(|checked| checked.ty)
    }

    /// The same, with all that is known of its parts.
    pub(crate) fn checked(&self, source: &str) -> Result<Checked, String> {
        let tree = parse::parse(source).map_err(|wrong| parse::pointed(source, &wrong))?;
        let tree = Box::new(tree);
        let mut checker = Checker {
            environment: self,
            scope: Vec::new(),
            problems: Vec::new(),
            notes: Notes::default(),
            meant: Vec::new(),
        };
        let ty = checker.of(&tree);
        let (notes, mut problems) = (checker.notes, checker.problems);
        if problems.is_empty() {
            problems = literals::check(&tree, &notes);
        }
        if problems.is_empty() {
            return Ok(Checked { tree, notes, ty });
        }
        problems.sort_by_key(|(at, _)| *at);
        let shown: Vec<String> = problems.iter().map(|wrong| parse::pointed(source, wrong)).collect();
        Err(shown.join("\n"))
    }
}

struct Checker<'e, 'n> {
    environment: &'e Environment,
    /// The names that macros bind, innermost last.
    scope: Vec<(&'n str, Type)>,
    problems: Vec<Wrong>,
    notes: Notes,
    /// The overloads that the call at hand may mean.
    meant: Vec<&'static Overload>,
}

impl<'n> Checker<'_, 'n> {
    /// The type of a node, bounded however the expression combines others, so that neither time nor stack grow with it.
    fn of(&mut self, node: &'n Node) -> Type {
        let ty = self.combined(node).bounded();
        let overloads = std::mem::take(&mut self.meant);
        self.notes.0.insert(place_of(node), Note { ty: ty.clone(), overloads });
        ty
    }

    fn combined(&mut self, node: &'n Node) -> Type {
        match &node.kind {
            Kind::Literal(literal) => of_literal(literal),
            Kind::Name(name) => self.of_name(node.at, name),
            Kind::Select { of, field, test, optional } => {
                let ty = self.of_select(node.at, of, field);
                match (test, optional, ty) {
                    (true, ..) => Type::Bool,
                    (_, true, already @ Type::Optional(_)) => already,
                    (_, true, ty) => Type::Optional(Arc::new(ty)),
                    (_, _, ty) => ty,
                }
            }
            Kind::Index { of, index, optional } => {
                let (of, index) = (self.of(of), self.of(index));
                let ty = self.of_index(node.at, &of, &index);
                match ty {
                    already @ Type::Optional(_) if *optional => already,
                    ty if *optional => Type::Optional(Arc::new(ty)),
                    ty => ty,
                }
            }
            Kind::Call { name, target, arguments } => {
                self.of_call(node.at, name, target.as_deref(), arguments)
            }
            Kind::And(parts) => self.of_decision(node.at, "_&&_", parts),
            Kind::Or(parts) => self.of_decision(node.at, "_||_", parts),
            Kind::Condition(parts) => {
                let [condition, yes, no] = &**parts;
                let types = [self.of(condition), self.of(yes), self.of(no)];
                self.one_of_two(node.at, types)
            }
            Kind::List(items) => {
                let mut joined = None;
                for (item, optional) in items {
                    let ty = self.of(item);
                    let ty = if *optional { held(ty) } else { ty };
                    Self::join(&mut joined, ty);
                }
                Type::list(joined.unwrap_or(Type::Dyn))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let (key_type, ty) = (self.of(key), self.of(value));
                    Self::join(&mut keys, key_type);
                    Self::join(&mut values, if *optional { held(ty) } else { ty });
                }
                let keys = keys.filter(Type::is_key).unwrap_or(Type::Dyn);
                Type::Map(Arc::new(keys), Arc::new(values.unwrap_or(Type::Dyn)))
            }
            Kind::Struct { name, fields } => {
                for (_, value, _) in fields {
                    self.of(value);
                }
                if self.environment.patch_types && is_patch_type(name) {
                    return Type::named(name);
                }
                self.wrong(node.at, format!("undeclared reference to '{name}' (in container '')"))
            }
            Kind::Macro(made) => self.of_macro(node.at, made),
        }
    }

    fn wrong(&mut self, at: usize, mut problem: String) -> Type {
        problem.truncate(problem.floor_char_boundary(PROBLEM_BYTES_MAX));
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((at, problem));
        }
        Type::Dyn
    }

    fn known(&self, name: &str) -> Option<Type> {
        let bound = self.scope.iter().rev().find(|(known, _)| *known == name).map(|(_, ty)| ty.clone());
        let declared = || self.environment.variables.iter().find(|(known, _)| known == name);
        bound.or_else(|| declared().map(|(_, ty)| ty.clone()))
    }

    fn of_name(&mut self, at: usize, name: &str) -> Type {
        match self.known(name) {
            Some(ty) => ty,
            None if type_named(name).is_some() => Type::TypeOf,
            None if name == "variables" && self.environment.composed.is_some() => {
                Type::named("kubernetes.variables")
            }
            None => self.wrong(at, format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn of_select(&mut self, at: usize, of: &'n Node, field: &str) -> Type {
        if type_path(of, field).is_some() && self.known(PACKAGE_OF_TIMES).is_none() {
            return Type::TypeOf;
        }
        if let (Kind::Name(name), Some(composed)) = (&of.kind, &self.environment.composed)
            && **name == *"variables"
            && self.known(name).is_none()
        {
            return match composed.get(field) {
                Some(ty) => ty.clone(),
                None => self.wrong(at, format!("undefined field '{field}'")),
            };
        }
        let ty = self.of(of);
        self.field_of(at, &ty, field)
    }

    fn field_of(&mut self, at: usize, ty: &Type, field: &str) -> Type {
        match ty {
            Type::Dyn | Type::Letter(_) => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Optional(inner) => match self.field_of(at, inner, field) {
                already @ Type::Optional(_) => already,
                ty => Type::Optional(Arc::new(ty)),
            },
            Type::Object(fields) => match fields.field(field) {
                Some(ty) => ty,
                None => self.wrong(at, format!("undefined field '{field}'")),
            },
            Type::Named(name)
                if **name == *"kubernetes.authorization.Authorizer" && field == "requestResource" =>
            {
                Type::named("kubernetes.authorization.ResourceCheck")
            }
            Type::Named(name) if is_patch_type(name) => Type::Dyn,
            other => self.wrong(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn of_index(&mut self, at: usize, of: &Type, index: &Type) -> Type {
        let is_number = matches!(index, Type::Int | Type::UInt | Type::Double | Type::Dyn);
        match of {
            Type::Dyn => return Type::Dyn,
            Type::List(item) if is_number => return (**item).clone(),
            Type::Map(key, value) if fits(key, index, &mut HashMap::new()) => return (**value).clone(),
            Type::Optional(inner) => {
                return match self.of_index(at, inner, index) {
                    already @ Type::Optional(_) => already,
                    ty => Type::Optional(Arc::new(ty)),
                };
            }
            _ => {}
        }
        self.no_overload(at, "_[_]", &[of.clone(), index.clone()])
    }

    fn no_overload(&mut self, at: usize, name: &str, arguments: &[Type]) -> Type {
        let shown: Vec<String> = arguments.iter().map(Type::to_string).collect();
        self.wrong(at, format!("found no matching overload for '{name}' applied to '({})'", shown.join(", ")))
    }

    fn of_decision(&mut self, at: usize, name: &str, parts: &'n [Node]) -> Type {
        for part in parts {
            let ty = self.of(part);
            if !matches!(ty, Type::Bool | Type::Dyn) {
                self.no_overload(at, name, &[Type::Bool, ty]);
            }
        }
        Type::Bool
    }

    fn one_of_two(&mut self, at: usize, types: [Type; 3]) -> Type {
        let [condition, yes, no] = &types;
        let decides = matches!(condition, Type::Bool | Type::Dyn);
        if decides && fits(yes, no, &mut HashMap::new()) {
            return if matches!(yes, Type::Dyn | Type::Null) { no.clone() } else { yes.clone() };
        }
        if decides && fits(no, yes, &mut HashMap::new()) {
            return no.clone();
        }
        self.no_overload(at, "_?_:_", &types)
    }

    /// The type that all items of a literal have; that of several types is said where literals are checked.
    fn join(joined: &mut Option<Type>, ty: Type) {
        match joined {
            None => *joined = Some(ty),
            Some(known) if fits(known, &ty, &mut HashMap::new()) => {
                if matches!(known, Type::Null) {
                    *joined = Some(ty);
                }
            }
            Some(_) => *joined = Some(Type::Dyn),
        }
    }

    fn of_call(&mut self, at: usize, name: &str, target: Option<&'n Node>, arguments: &'n [Node]) -> Type {
        let package = match target.map(|target| &target.kind) {
            Some(Kind::Name(package)) if PACKAGES.contains(&&**package) && self.known(package).is_none() => {
                Some(&**package)
            }
            _ => None,
        };
        let full = package.map_or_else(|| name.to_owned(), |package| format!("{package}.{name}"));
        let receiver = target.filter(|_| package.is_none());
        let types: Vec<Type> = receiver.into_iter().chain(arguments).map(|node| self.of(node)).collect();
        let environment = self.environment;
        let is_known = |overload: &&Overload| environment.stored || !overload.stored;
        let known: Vec<&'static Overload> = overloads(&full).iter().filter(is_known).collect();
        let hidden = full == "jsonpatch.escapeKey" && !environment.patch_types;
        if (known.is_empty() && !is_order(&full)) || hidden {
            return self.wrong(at, format!("undeclared reference to '{full}' (in container '')"));
        }
        if is_order(&full) {
            return if ordered(&types) { Type::Bool } else { self.no_overload(at, &full, &types) };
        }
        if let [Type::Dyn, ..] = types.as_slice()
            && receiver.is_some()
            && known.iter().any(|known| known.method && known.parameters.len() == types.len())
        {
            let meant = |overload: &&Overload| overload.method && overload.parameters.len() == types.len();
            self.meant = known.into_iter().filter(meant).collect();
            return result_of_any(&self.meant);
        }
        let mut meant = Vec::new();
        let mut results: Vec<Type> = Vec::new();
        for overload in known {
            if overload.method != receiver.is_some() || overload.parameters.len() != types.len() {
                continue;
            }
            let mut letters = HashMap::new();
            if overload.parameters.iter().zip(&types).all(|(wanted, ty)| fits(wanted, ty, &mut letters)) {
                results.push(filled(&overload.result, &letters));
                meant.push(overload);
            }
        }
        self.meant = meant;
        match results.as_slice() {
            [] => {
                let shown: Vec<String> = types.iter().map(Type::to_string).collect();
                let applied = match (receiver, shown.split_first()) {
                    (Some(_), Some((first, rest))) => format!("{first}.({})", rest.join(", ")),
                    _ => format!("({})", shown.join(", ")),
                };
                self.wrong(at, format!("found no matching overload for '{full}' applied to '{applied}'"))
            }
            [first, rest @ ..] if rest.iter().all(|other| other.is(first)) => first.clone(),
            _ => Type::Dyn,
        }
    }

    fn of_macro(&mut self, at: usize, made: &'n Macro) -> Type {
        if made.what == What::Bind && !self.environment.bindings {
            return self.wrong(at, "undeclared reference to 'bind' (in container '')".to_owned());
        }
        let range = self.of(&made.range);
        let (first, second) = match (&range, made.what) {
            (_, What::Bind) => (range.clone(), Type::Dyn),
            (Type::Optional(inner), What::OptMap | What::OptFlatMap) => ((**inner).clone(), Type::Dyn),
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (Type::List(item), _) if made.names.len() == 2 => (Type::Int, (**item).clone()),
            (Type::List(item), _) => ((**item).clone(), Type::Dyn),
            (Type::Map(key, value), _) => ((**key).clone(), (**value).clone()),
            (other, _) => {
                let problem = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                (self.wrong(made.range.at, problem), Type::Dyn)
            }
        };
        let before = self.scope.len();
        let types = [first.clone(), second];
        self.scope.extend(made.names.iter().map(|name| &**name).zip(types));
        let bodies: Vec<Type> = made.bodies.iter().map(|body| self.of(body)).collect();
        self.scope.truncate(before);
        let body = bodies.last().cloned().unwrap_or(Type::Dyn);
        let condition = match made.what {
            What::All | What::Exists | What::ExistsOne | What::Filter => Some(&body),
            _ if bodies.len() == 2 => bodies.first(),
            _ => None,
        };
        if let Some(ty) = condition.filter(|ty| !matches!(ty, Type::Bool | Type::Dyn)) {
            let name = match made.what {
                What::All => "_&&_",
                What::Exists => "_||_",
                _ => "_?_:_",
            };
            self.no_overload(at, name, &[Type::Bool, ty.clone()]);
        }
        match made.what {
            What::All | What::Exists | What::ExistsOne => Type::Bool,
            What::Filter => Type::list(first),
            What::List => Type::list(body),
            What::SortBy => self.of_sort(at, range, body),
            What::Map => {
                let key = if first.is_key() { first } else { Type::Dyn };
                Type::Map(Arc::new(key), Arc::new(body))
            }
            What::Entry | What::Bind | What::OptFlatMap => body,
            What::OptMap => Type::Optional(Arc::new(body)),
        }
    }

    /// A list in the order of keys.
    fn of_sort(&mut self, at: usize, range: Type, key: Type) -> Type {
        let ordered = matches!(key, Type::Dyn) || key.is_comparable();
        match range {
            Type::List(_) if ordered => range,
            Type::Dyn if ordered => Type::list(Type::Dyn),
            other => {
                let applied = format!("{other}.({})", Type::list(key));
                let name = "@sortByAssociatedKeys";
                self.wrong(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
            }
        }
    }
}

fn of_literal(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::UInt(_) => Type::UInt,
        Literal::Double(_) => Type::Double,
        Literal::Text(_) => Type::Text,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// What an optional item of a literal adds to it.
fn held(ty: Type) -> Type {
    match ty {
        Type::Optional(inner) => (*inner).clone(),
        _ => Type::Dyn,
    }
}

fn is_order(name: &str) -> bool {
    matches!(name, "_<_" | "_<=_" | "_>_" | "_>=_")
}

/// Numbers are in order across their types, others among themselves.
fn ordered(types: &[Type]) -> bool {
    let number = |ty: &Type| matches!(ty, Type::Int | Type::UInt | Type::Double);
    let scalar = |ty: &Type| {
        matches!(ty, Type::Bool | Type::Text | Type::Bytes | Type::Duration | Type::Time) || number(ty)
    };
    match types {
        [Type::Dyn, Type::Dyn] => true,
        [Type::Dyn, other] | [other, Type::Dyn] => scalar(other),
        [one, other] => scalar(one) && ((number(one) && number(other)) || one.is(other)),
        _ => false,
    }
}

/// What a method gives where its receiver is not known.
fn result_of_any(known: &[&Overload]) -> Type {
    let mut results = known.iter().map(|overload| filled(&overload.result, &HashMap::new()));
    let Some(first) = results.next() else { return Type::Dyn };
    if results.all(|other| other.is(&first)) { first } else { Type::Dyn }
}

/// Whether a value of a type may stand where another is wanted; letters are bound on the way.
fn fits(wanted: &Type, ty: &Type, letters: &mut HashMap<u8, Type>) -> bool {
    match (wanted, ty) {
        (Type::Letter(b'C'), ty) if !ty.is_comparable() && !matches!(ty, Type::Dyn) => false,
        (Type::Letter(b'S'), ty) if !ty.is_summable() && !matches!(ty, Type::Dyn) => false,
        (Type::Letter(letter), ty) => match letters.get(letter).cloned() {
            None => {
                letters.insert(*letter, ty.clone());
                true
            }
            Some(bound) if fits(&bound, ty, letters) => {
                if matches!(bound, Type::Null) {
                    letters.insert(*letter, ty.clone());
                }
                true
            }
            Some(_) => false,
        },
        (Type::Dyn, _) | (_, Type::Dyn) => true,
        (Type::List(wanted), Type::List(ty)) | (Type::Optional(wanted), Type::Optional(ty)) => {
            fits(wanted, ty, letters)
        }
        (Type::Map(key, value), Type::Map(other_key, other_value)) => {
            fits(key, other_key, letters) && fits(value, other_value, letters)
        }
        // Whatever may be absent may be null.
        (Type::Null, Type::Object(_) | Type::Named(_) | Type::Duration | Type::Time | Type::Optional(_))
        | (Type::Object(_) | Type::Named(_) | Type::Duration | Type::Time | Type::Optional(_), Type::Null) => {
            true
        }
        (wanted, ty) => wanted.is(ty),
    }
}

/// A result with its letters filled in.
fn filled(result: &Type, letters: &HashMap<u8, Type>) -> Type {
    match result {
        Type::Letter(letter) => letters.get(letter).cloned().unwrap_or(Type::Dyn),
        Type::List(item) => Type::list(filled(item, letters)),
        Type::Optional(inner) => Type::Optional(Arc::new(filled(inner, letters))),
        Type::Map(key, value) => Type::Map(Arc::new(filled(key, letters)), Arc::new(filled(value, letters))),
        other => other.clone(),
    }
}
