//! Which names an expression speaks of.

use cel::common::ast::{EntryExpr, Expr, IdedExpr};

/// Names of types, and of libraries whose functions are called through them.
const KNOWN: [&str; 18] = [
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional",
    "sets",
    "math",
    "base64",
    "format",
    "strings",
    "google",
    "optional_type",
];
/// Macros that the parser leaves to us: how many of their arguments are names.
pub(super) fn bound_names(function: &str, arguments: usize) -> usize {
    match (function, arguments) {
        ("optMap" | "optFlatMap", 2) => 1,
        ("all" | "exists" | "existsOne" | "exists_one" | "transformList" | "transformMap", 3) => 2,
        ("transformList" | "transformMap", 4) => 2,
        _ => 0,
    }
}

/// The first name that is no variable.
pub(super) fn check(expression: &IdedExpr, variables: &[&str]) -> Result<(), String> {
    let mut bound: Vec<&str> = variables.to_vec();
    let mut unknown = None;
    visit(expression, &mut bound, &mut |name, bound| {
        if !bound.contains(&name) && !KNOWN.contains(&name) && unknown.is_none() {
            unknown = Some(name.to_owned());
        }
    });
    unknown.map_or(Ok(()), Err)
}

/// Whether an expression speaks of a variable.
pub(super) fn uses(expression: &IdedExpr, variable: &str) -> bool {
    let mut found = false;
    visit(expression, &mut Vec::new(), &mut |name, bound| {
        found |= name == variable && !bound.contains(&name);
    });
    found
}

fn visit<'e>(expression: &'e IdedExpr, bound: &mut Vec<&'e str>, see: &mut dyn FnMut(&'e str, &[&'e str])) {
    match &expression.expr {
        Expr::Ident(name) => see(name, bound),
        Expr::Select(select) => visit(&select.operand, bound, see),
        Expr::Call(call) => {
            if let Some(target) = &call.target {
                visit(target, bound, see);
            }
            let names = if call.target.is_some() { bound_names(&call.func_name, call.args.len()) } else { 0 };
            let before = bound.len();
            for name in call.args.iter().take(names) {
                if let Expr::Ident(name) = &name.expr {
                    bound.push(name);
                }
            }
            call.args.iter().skip(names).for_each(|argument| visit(argument, bound, see));
            bound.truncate(before);
        }
        Expr::List(list) => list.elements.iter().for_each(|element| visit(element, bound, see)),
        Expr::Map(map) => map.entries.iter().for_each(|entry| visit_entry(&entry.expr, bound, see)),
        Expr::Struct(made) => made.entries.iter().for_each(|entry| visit_entry(&entry.expr, bound, see)),
        Expr::Comprehension(all) => {
            visit(&all.iter_range, bound, see);
            visit(&all.accu_init, bound, see);
            let before = bound.len();
            bound.push(&all.iter_var);
            bound.push(&all.accu_var);
            bound.extend(all.iter_var2.as_deref());
            [&all.loop_cond, &all.loop_step, &all.result]
                .into_iter()
                .for_each(|part| visit(part, bound, see));
            bound.truncate(before);
        }
        Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn visit_entry<'e>(entry: &'e EntryExpr, bound: &mut Vec<&'e str>, see: &mut dyn FnMut(&'e str, &[&'e str])) {
    match entry {
        EntryExpr::MapEntry(entry) => {
            visit(&entry.key, bound, see);
            visit(&entry.value, bound, see);
        }
        EntryExpr::StructField(field) => visit(&field.value, bound, see),
    }
}
