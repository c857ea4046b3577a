//! The walk over an expression's tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators as op,
};

use super::names::bound_names;
use super::value::Key;
use super::{Budget, CelError, Val, library, operators};

type Result<T> = std::result::Result<T, CelError>;

/// One evaluation: the variables, innermost last, and what is left to spend.
pub(super) struct Evaluation<'v, 'b> {
    pub(super) scope: Vec<(&'v str, Val<'v>)>,
    pub(super) budget: &'b mut Budget,
}

impl<'v> Evaluation<'v, '_> {
    pub(super) fn value(&mut self, expression: &'v IdedExpr) -> Result<Val<'v>> {
        self.budget.spend(1)?;
        match &expression.expr {
            Expr::Literal(literal) => Ok(constant(literal)),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let mut items = Vec::with_capacity(list.elements.len());
                for (index, element) in list.elements.iter().enumerate() {
                    match (self.value(element)?, list.optional_indices.contains(&index)) {
                        (Val::Optional(None), true) => {}
                        (Val::Optional(Some(item)), true) => items.push((*item).clone()),
                        (item, _) => items.push(item),
                    }
                }
                Ok(Val::list(items))
            }
            Expr::Map(map) => {
                let mut entries = BTreeMap::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let key = Key::of(&self.value(&entry.key)?)?;
                    match (self.value(&entry.value)?, entry.optional) {
                        (Val::Optional(None), true) => {}
                        (Val::Optional(Some(value)), true) => {
                            entries.insert(key, (*value).clone());
                        }
                        (value, _) => {
                            entries.insert(key, value);
                        }
                    }
                }
                Ok(Val::Map(Arc::new(entries)))
            }
            Expr::Comprehension(all) => self.comprehension(all),
            Expr::Struct(made) => Err(CelError::fault(format!("undeclared type '{}'", made.type_name))),
            Expr::Unspecified => Err(CelError::fault("an expression without content")),
        }
    }

    fn name(&mut self, name: &str) -> Result<Val<'v>> {
        let found = self.scope.iter().rev().find(|(known, _)| *known == name);
        if let Some((_, value)) = found {
            return Ok(value.clone());
        }
        let types = ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"];
        let known = types.into_iter().find(|known| *known == name);
        known.map(Val::Type).ok_or_else(|| CelError::fault(format!("no such attribute(s): {name}")))
    }

    fn select(&mut self, select: &'v SelectExpr) -> Result<Val<'v>> {
        if let Some(name) = self.type_path(select) {
            return Ok(Val::Type(name));
        }
        let value = self.value(&select.operand)?;
        let field = value.field(&select.field)?;
        if select.test {
            return Ok(Val::Bool(!matches!(field, None | Some(Val::Optional(None)))));
        }
        field.ok_or_else(|| CelError::fault(format!("no such key: {}", select.field)))
    }

    /// `google.protobuf.Timestamp` as a type.
    fn type_path(&self, select: &SelectExpr) -> Option<&'static str> {
        let Expr::Select(package) = &select.operand.expr else { return None };
        let Expr::Ident(root) = &package.operand.expr else { return None };
        match (root.as_str(), package.field.as_str(), select.field.as_str()) {
            ("google", "protobuf", "Timestamp") => Some("google.protobuf.Timestamp"),
            ("google", "protobuf", "Duration") => Some("google.protobuf.Duration"),
            _ => None,
        }
    }

    fn call(&mut self, call: &'v CallExpr) -> Result<Val<'v>> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (op::LOGICAL_AND, [left, right]) => return self.short_circuit(left, right, false),
            (op::LOGICAL_OR, [left, right]) => return self.short_circuit(left, right, true),
            (op::CONDITIONAL, [condition, yes, no]) => {
                return match self.value(condition)? {
                    Val::Bool(true) => self.value(yes),
                    Val::Bool(false) => self.value(no),
                    other => Err(no_overload(name, &[other])),
                };
            }
            (op::NOT_STRICTLY_FALSE, [argument]) => {
                return match self.value(argument) {
                    Ok(Val::Bool(holds)) => Ok(Val::Bool(holds)),
                    Err(CelError::Cost) => Err(CelError::Cost),
                    _ => Ok(Val::Bool(true)),
                };
            }
            (op::ADD, [accumulated, item]) => {
                if let Some(grown) = self.grown(accumulated, item)? {
                    return Ok(grown);
                }
            }
            (op::OPT_SELECT, [operand, field]) => {
                let value = self.value(operand)?;
                let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                    return Err(CelError::fault("an optional selection of no name"));
                };
                let found = value.field(field.inner())?;
                return Ok(optional(found));
            }
            (op::OPT_INDEX, [operand, index]) => {
                let (value, index) = (self.value(operand)?, self.value(index)?);
                return Ok(optional(value.at(&index)?));
            }
            _ => {}
        }
        let Some(target) = &call.target else {
            let arguments = self.arguments(&call.args)?;
            return match operators::apply(name, &arguments, self.budget)? {
                Some(value) => Ok(value),
                None => library::function(name, &arguments, self.budget),
            };
        };
        if let Expr::Ident(package) = &target.expr
            && library::PACKAGES.contains(&package.as_str())
            && !self.scope.iter().any(|(known, _)| known == package)
        {
            let arguments = self.arguments(&call.args)?;
            return library::function(&format!("{package}.{name}"), &arguments, self.budget);
        }
        let receiver = self.value(target)?;
        if bound_names(name, call.args.len()) > 0 {
            return self.macro_call(name, &receiver, &call.args);
        }
        // `or` and `orValue` look at their argument only where there is nothing.
        if let (Val::Optional(held), "or" | "orValue", [otherwise]) = (&receiver, name, call.args.as_slice())
        {
            return match held {
                Some(_) if name == "or" => Ok(receiver),
                Some(held) => Ok((**held).clone()),
                None => self.value(otherwise),
            };
        }
        let arguments = self.arguments(&call.args)?;
        library::method(name, &receiver, &arguments, self.budget)
    }

    fn arguments(&mut self, arguments: &'v [IdedExpr]) -> Result<Vec<Val<'v>>> {
        arguments.iter().map(|argument| self.value(argument)).collect()
    }

    /// `&&` and `||`: one decisive side is enough, also where the other is an error.
    fn short_circuit(&mut self, left: &'v IdedExpr, right: &'v IdedExpr, decisive: bool) -> Result<Val<'v>> {
        let first = self.value(left);
        match &first {
            Ok(Val::Bool(value)) if *value == decisive => return first,
            Err(CelError::Cost) => return first,
            _ => {}
        }
        match (first, self.value(right)) {
            (_, Ok(Val::Bool(value))) if value == decisive => Ok(Val::Bool(value)),
            (_, Err(CelError::Cost)) => Err(CelError::Cost),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Val::Bool(_)), Ok(Val::Bool(value))) => Ok(Val::Bool(value)),
            (Ok(one), Ok(other)) => Err(no_overload(if decisive { "_||_" } else { "_&&_" }, &[one, other])),
        }
    }

    /// The list that a `map` or `filter` collects, with an item more: in place, since nobody else holds it.
    fn grown(&mut self, accumulated: &'v IdedExpr, item: &'v IdedExpr) -> Result<Option<Val<'v>>> {
        let (Expr::Ident(name), Expr::List(list)) = (&accumulated.expr, &item.expr) else { return Ok(None) };
        let ([element], true) = (list.elements.as_slice(), name.starts_with('@')) else { return Ok(None) };
        let element = self.value(element)?;
        let Some((_, slot)) = self.scope.iter_mut().rev().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        let Val::List(mut items) = std::mem::replace(slot, Val::Null) else {
            return Err(CelError::fault("a collection that is no list"));
        };
        Arc::make_mut(&mut items).push(element);
        Ok(Some(Val::List(items)))
    }

    fn comprehension(&mut self, all: &'v ComprehensionExpr) -> Result<Val<'v>> {
        let range = self.value(&all.iter_range)?;
        let items = self.elements(&range)?;
        let accumulated = self.value(&all.accu_init)?;
        let depth = self.scope.len();
        self.scope.push((&all.accu_var, accumulated));
        let mut outcome = Ok(());
        // An error of a step is the result so far: a later item may decide (`exists`), and then it is forgotten.
        let mut failed: Option<CelError> = None;
        for item in items.iter() {
            self.scope.truncate(depth + 1);
            if failed.is_none() && !matches!(self.value(&all.loop_cond), Ok(Val::Bool(true))) {
                break;
            }
            self.scope.push((&all.iter_var, item.clone()));
            match self.value(&all.loop_step) {
                Ok(value) => {
                    let decided = matches!(&value, Val::Bool(_));
                    if failed.is_none() || decided_by(all, &value) {
                        failed = None;
                        self.scope[depth].1 = value;
                    } else if !decided {
                        break;
                    }
                }
                Err(CelError::Cost) => {
                    outcome = Err(CelError::Cost);
                    break;
                }
                Err(error) if is_quantifier(all) => failed = failed.or(Some(error)),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.scope.truncate(depth + 1);
        let result = match (outcome, failed) {
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => self.value(&all.result),
        };
        self.scope.truncate(depth);
        result
    }

    /// What a comprehension goes through: items of lists, keys of maps.
    fn elements(&mut self, range: &Val<'v>) -> Result<Arc<Vec<Val<'v>>>> {
        if let Some(items) = range.items(self.budget)? {
            return Ok(items);
        }
        match range.keys(self.budget)? {
            Some(keys) => Ok(Arc::new(keys)),
            None => Err(CelError::fault(format!(
                "expression of type '{}' cannot be range of a comprehension",
                range.type_name()
            ))),
        }
    }

    /// The macros that the parser leaves alone: of optional values, and with two variables.
    fn macro_call(&mut self, name: &str, receiver: &Val<'v>, arguments: &'v [IdedExpr]) -> Result<Val<'v>> {
        let names: Vec<&'v str> = arguments
            .iter()
            .take(bound_names(name, arguments.len()))
            .map(|argument| match &argument.expr {
                Expr::Ident(name) => Ok(name.as_str()),
                _ => Err(CelError::fault("argument must be a simple name")),
            })
            .collect::<Result<_>>()?;
        let bodies = arguments.get(names.len()..).unwrap_or_default();
        if let ([name_of, ..], "optMap" | "optFlatMap", [body]) = (names.as_slice(), name, bodies) {
            let Val::Optional(Some(held)) = receiver else { return Ok(Val::Optional(None)) };
            let value = self.with(&[(name_of, (**held).clone())], body)?;
            return Ok(if name == "optMap" { Val::some(value) } else { value });
        }
        let [first, second] = names[..] else { return Err(CelError::fault("two variables are needed")) };
        let pairs = self.pairs(receiver)?;
        let (mut list, mut map, mut count) = (Vec::new(), BTreeMap::new(), 0_usize);
        for (key, value) in &pairs {
            let bound = [(first, key.clone()), (second, value.clone())];
            let (condition, body) = match bodies {
                [body] => (None, body),
                [condition, body] => (Some(condition), body),
                _ => return Err(CelError::fault("wrong number of arguments")),
            };
            if let Some(condition) = condition
                && !matches!(self.with(&bound, condition)?, Val::Bool(true))
            {
                continue;
            }
            let value = self.with(&bound, body)?;
            match (name, &value) {
                ("transformList", _) => list.push(value),
                ("transformMap", _) => {
                    map.insert(Key::of(key)?, value);
                }
                (_, Val::Bool(true)) => count += 1,
                (_, Val::Bool(false)) => {}
                _ => return Err(no_overload(name, &[value])),
            }
        }
        Ok(match name {
            "transformList" => Val::list(list),
            "transformMap" => Val::Map(Arc::new(map)),
            "all" => Val::Bool(count == pairs.len()),
            "exists" => Val::Bool(count > 0),
            _ => Val::Bool(count == 1),
        })
    }

    fn pairs(&mut self, receiver: &Val<'v>) -> Result<Vec<(Val<'v>, Val<'v>)>> {
        if let Some(items) = receiver.items(self.budget)? {
            return Ok(items
                .iter()
                .enumerate()
                .map(|(at, item)| (Val::Int(at as i64), item.clone()))
                .collect());
        }
        let keys = self.elements(receiver)?;
        keys.iter().map(|key| Ok((key.clone(), receiver.at(key)?.unwrap_or(Val::Null)))).collect()
    }

    fn with(&mut self, bound: &[(&'v str, Val<'v>)], body: &'v IdedExpr) -> Result<Val<'v>> {
        let depth = self.scope.len();
        self.scope.extend(bound.iter().cloned());
        let value = self.value(body);
        self.scope.truncate(depth);
        value
    }
}

fn optional(found: Option<Val<'_>>) -> Val<'_> {
    match found {
        None => Val::Optional(None),
        Some(already @ Val::Optional(_)) => already,
        Some(value) => Val::some(value),
    }
}

/// Whether a comprehension is `all` or `exists`.
fn is_quantifier(all: &ComprehensionExpr) -> bool {
    matches!(&all.loop_step.expr, Expr::Call(call) if [op::LOGICAL_AND, op::LOGICAL_OR].contains(&call.func_name.as_str()))
}

/// Whether a value decides a quantifier: false for `all`, true for `exists`.
fn decided_by(all: &ComprehensionExpr, value: &Val<'_>) -> bool {
    let exists = matches!(&all.loop_step.expr, Expr::Call(call) if call.func_name == op::LOGICAL_OR);
    matches!(value, Val::Bool(value) if *value == exists)
}

fn constant<'v>(literal: &LiteralValue) -> Val<'v> {
    match literal {
        LiteralValue::Boolean(value) => Val::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Val::Bytes(value.inner().into()),
        LiteralValue::Double(value) => Val::Double(*value.inner()),
        LiteralValue::Int(value) => Val::Int(*value.inner()),
        LiteralValue::Null => Val::Null,
        LiteralValue::String(value) => Val::text(value.inner()),
        LiteralValue::UInt(value) => Val::UInt(*value.inner()),
    }
}

/// CEL's word for a function of other types.
pub(super) fn no_overload(name: &str, arguments: &[Val<'_>]) -> CelError {
    let types: Vec<&str> = arguments.iter().map(Val::type_name).collect();
    CelError::fault(format!("found no matching overload for '{name}' applied to '({})'", types.join(", ")))
}
