//! Names of types, and whether an expression speaks only of what is known.

use super::ast::{Kind, Node};
use super::lex::Wrong;
use super::library::PACKAGES;

/// Types that have no other name than this. Those of time are [`type_path`]'s.
const TYPES: [&str; 11] =
    ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type", "optional_type"];
/// With what the names of the types of time begin.
pub(super) const PACKAGE_OF_TIMES: &str = "google";

/// The type that has a name.
pub(super) fn type_named(name: &str) -> Option<&'static str> {
    TYPES.into_iter().find(|known| *known == name)
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration` as types.
pub(super) fn type_path(of: &Node, field: &str) -> Option<&'static str> {
    let Kind::Select { of, field: package, .. } = &of.kind else { return None };
    let Kind::Name(root) = &of.kind else { return None };
    match (&**root, &**package, field) {
        (PACKAGE_OF_TIMES, "protobuf", "Timestamp") => Some("google.protobuf.Timestamp"),
        (PACKAGE_OF_TIMES, "protobuf", "Duration") => Some("google.protobuf.Duration"),
        _ => None,
    }
}

/// The first name that is no variable, and where.
pub(super) fn check(tree: &Node, variables: &[&str]) -> Result<(), Wrong> {
    visit(tree, &mut variables.to_vec())
}

fn visit<'n>(node: &'n Node, bound: &mut Vec<&'n str>) -> Result<(), Wrong> {
    match &node.kind {
        Kind::Name(name)
            if !bound.contains(&&**name) && type_named(name).is_none() && **name != *PACKAGE_OF_TIMES =>
        {
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
