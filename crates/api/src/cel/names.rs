//! Whether an expression speaks only of what is known.

use super::ast::{Kind, Node};
use super::lex::Wrong;
use super::library::PACKAGES;

/// Names of types; `google` begins those of time.
const TYPES: [&str; 12] = [
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
    "optional_type",
    "google",
];

/// The first name that is no variable, and where.
pub(super) fn check(tree: &Node, variables: &[&str]) -> Result<(), Wrong> {
    visit(tree, &mut variables.to_vec())
}

fn visit<'n>(node: &'n Node, bound: &mut Vec<&'n str>) -> Result<(), Wrong> {
    match &node.kind {
        Kind::Name(name) if !bound.contains(&&**name) && !TYPES.contains(&&**name) => {
            return Err((node.at, format!("undeclared reference to '{name}' (in container '')")));
        }
        Kind::Call { target: Some(target), arguments, .. } => {
            let package = matches!(&target.kind, Kind::Name(name) if PACKAGES.contains(&&**name));
            if !package {
                visit(target, bound)?;
            }
            return arguments.iter().try_for_each(|argument| visit(argument, bound));
        }
        Kind::Macro(made) => {
            visit(&made.range, bound)?;
            let before = bound.len();
            bound.extend(made.names.iter().map(|name| &**name));
            let found = made.bodies.iter().try_for_each(|body| visit(body, bound));
            bound.truncate(before);
            return found;
        }
        _ => {}
    }
    let mut found = Ok(());
    node.each(&mut |below| {
        if found.is_ok() {
            found = visit(below, bound);
        }
    });
    found
}
