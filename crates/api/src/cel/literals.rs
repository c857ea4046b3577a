//! Literals that cannot be right where they stand: durations, times, patterns, what `format` is told, and lists and maps
//! of several types. Said when an expression is written, where its types are right. Source: the validators of
//! `cel-go/cel/validator.go` and `cel-go/ext/formatting.go` that `k8s.io/apiserver/pkg/cel/environment` asks for.

use super::Budget;
use super::ast::{Kind, Literal, Node};
use super::check::Notes;
use super::convert::convert;
use super::eval::constant;
use super::format::{Clause, only};
use super::lex::Wrong;
use super::patterns::is_pattern;
use super::types::Type;

/// What reading one literal may cost; more than any of these does that is valid.
const READ_COST_MAX: u64 = 100_000;

/// What is wrong with the literals of an expression.
pub(super) fn check(tree: &Node, notes: &Notes) -> Vec<Wrong> {
    let mut literals = Literals { notes, wrong: Vec::new() };
    literals.visit(tree, false);
    literals.wrong
}

struct Literals<'n> {
    notes: &'n Notes,
    wrong: Vec<Wrong>,
}

impl Literals<'_> {
    /// `mixed`: lists and maps may hold values of several types, as what is below a call of `format` may.
    fn visit(&mut self, node: &Node, mut mixed: bool) {
        match &node.kind {
            Kind::Call { name, target, arguments } => {
                self.call(node.at, name, target.as_deref(), arguments);
                mixed = mixed || **name == *"format";
            }
            Kind::List(items) if !mixed => {
                self.alike(items.iter().map(|(item, optional)| (item, *optional)), true);
            }
            Kind::Map(entries) if !mixed => {
                self.alike(entries.iter().map(|(key, _, _)| (key, false)), false);
                self.alike(entries.iter().map(|(_, value, optional)| (value, *optional)), false);
            }
            _ => {}
        }
        node.each(&mut |below| self.visit(below, mixed));
    }

    fn call(&mut self, at: usize, name: &str, target: Option<&Node>, arguments: &[Node]) {
        let Some(first) = arguments.first() else { return };
        match (name, &first.kind) {
            ("duration" | "timestamp", Kind::Literal(literal)) if target.is_none() => {
                let read = convert(name, &constant(literal), &mut Budget::new(READ_COST_MAX));
                if read.is_err() {
                    self.wrong.push((first.at, format!("invalid {name} argument")));
                }
            }
            ("matches", Kind::Literal(Literal::Text(pattern))) if !is_pattern(pattern) => {
                self.wrong.push((first.at, "invalid matches argument".to_owned()));
            }
            ("format", Kind::List(items)) => {
                let Some(Node { kind: Kind::Literal(Literal::Text(text)), .. }) = target else { return };
                let items: Vec<&Node> = items.iter().map(|(item, _)| item).collect();
                if let Err((place, problem)) = self.format(text, &items) {
                    self.wrong.push((place.unwrap_or(at), problem));
                }
            }
            _ => {}
        }
    }

    /// Whether all of these are of one type; the first that is not is told, or all of them.
    fn alike<'n>(&mut self, nodes: impl Iterator<Item = (&'n Node, bool)>, once: bool) {
        let mut known: Option<Type> = None;
        for (node, optional) in nodes {
            let ty = match self.notes.ty(node) {
                Type::Optional(inner) if optional => (*inner).clone(),
                ty => ty,
            };
            let Some(known) = &known else {
                known = Some(ty);
                continue;
            };
            if !equivalent(known, &ty) {
                self.wrong.push((node.at, format!("expected type '{known}' but found '{ty}'")));
                if once {
                    return;
                }
            }
        }
    }

    /// Whether each clause of a format has an argument that it can show; the failure is of an argument or of the call.
    fn format(&self, text: &str, items: &[&Node]) -> Result<(), (Option<usize>, String)> {
        let mut next = 0;
        let mut rest = text;
        while let Some((_, clause)) = rest.split_once('%') {
            if let Some(after) = clause.strip_prefix('%') {
                rest = after;
                continue;
            }
            if clause.is_empty() {
                return Err((None, "unexpected end of string".to_owned()));
            }
            let Some(item) = items.get(next) else {
                return Err((None, format!("index {next} out of range")));
            };
            let (clause, after) = Clause::parse(clause)
                .map_err(|problem| (None, format!("could not parse formatting clause: {problem}")))?;
            self.shows(clause.verb, item)
                .map_err(|(at, problem)| (Some(at), format!("error during formatting: {problem}")))?;
            next += 1;
            rest = after;
        }
        if items.len() > next {
            let problem = format!(
                "too many arguments supplied to string.format (expected {next}, got {})",
                items.len()
            );
            return Err((None, problem));
        }
        Ok(())
    }

    fn shows(&self, verb: char, item: &Node) -> Result<(), Wrong> {
        let ty = self.notes.ty(item);
        let whole = matches!(ty, Type::Int | Type::UInt | Type::Dyn);
        let fits = match verb {
            's' => return self.shows_text(item),
            'd' | 'o' => whole,
            'f' | 'e' => matches!(ty, Type::Double | Type::Text | Type::Dyn),
            'b' => whole || matches!(ty, Type::Bool),
            _ => whole || matches!(ty, Type::Text | Type::Bytes),
        };
        if fits { Ok(()) } else { Err((item.at, format!("{}, was given {}", only(verb), ty.plain_name()))) }
    }

    /// What `%s` shows: everything that has a text, also inside of lists and maps.
    fn shows_text(&self, item: &Node) -> Result<(), Wrong> {
        let ty = self.notes.ty(item);
        if matches!(ty, Type::Optional(_) | Type::Named(_) | Type::Object(_)) {
            return Err((item.at, format!("{}, was given {}", only('s'), ty.plain_name())));
        }
        match &item.kind {
            Kind::List(items) => items.iter().try_for_each(|(item, _)| self.shows_text(item)),
            Kind::Map(entries) => entries.iter().try_for_each(|(key, value, _)| {
                self.shows_text(key)?;
                self.shows_text(value)
            }),
            _ => Ok(()),
        }
    }
}

/// Whether two types are the same; what an empty list or map holds is not known and fits.
fn equivalent(one: &Type, other: &Type) -> bool {
    let inside = |one: &Type, other: &Type| {
        matches!(one, Type::Dyn) || matches!(other, Type::Dyn) || equivalent(one, other)
    };
    match (one, other) {
        (Type::List(one), Type::List(other)) | (Type::Optional(one), Type::Optional(other)) => {
            inside(one, other)
        }
        (Type::Map(key, value), Type::Map(other_key, other_value)) => {
            inside(key, other_key) && inside(value, other_value)
        }
        (one, other) => one.is(other),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Environment;
    use super::*;

    fn said(source: &str) -> String {
        let environment = Environment::default().with("any", Type::Dyn).with("name", Type::Text);
        environment.check(source).err().unwrap_or_default()
    }

    #[test]
    fn literals_are_read_where_they_are_written() {
        for right in [
            "'a'.matches('^[a-z]+$') && 'a'.matches(name) && duration('1h30m') > duration(name)",
            "timestamp('2026-01-01T00:00:00Z') < timestamp(name) && duration(any) == duration('0')",
            "'%s %d %.3f %x %% %b'.format([name, 1, 1.5, 'a', true]) == ''",
            "'%s %s'.format([any, {'a': [1, name]}]) == '' && name.format([1]) == '' && '%d'.format(any.list) == ''",
            "[any, any.b] == [] && {'a': any, 'b': any.c} == {} && [[], [1]].size() == 2",
        ] {
            assert_eq!(said(right), "", "{right}");
        }
        for (source, wanted) in [
            ("'a'.matches('(')", "ERROR: <input>:1:13: invalid matches argument"),
            ("'a'.matches('(?=x)')", "ERROR: <input>:1:13: invalid matches argument"),
            ("duration('xx') == duration('1s')", "ERROR: <input>:1:10: invalid duration argument"),
            ("timestamp('xx') == timestamp(name)", "ERROR: <input>:1:11: invalid timestamp argument"),
            ("[name, any] == []", "ERROR: <input>:1:8: expected type 'string' but found 'dyn'"),
            ("{'a': any, 'b': name} == {}", "ERROR: <input>:1:17: expected type 'dyn' but found 'string'"),
            (
                "'%d'.format([name])",
                "ERROR: <input>:1:14: error during formatting: decimal clause can only be used on integers, was given \
                 string",
            ),
            (
                "'%f'.format([1])",
                "error during formatting: fixed-point clause can only be used on doubles, was given int",
            ),
            ("'%s'.format([optional.of(1)])", "and timestamps, was given optional_type"),
            ("'%s %s'.format([1])", "ERROR: <input>:1:15: index 1 out of range"),
            ("'%s'.format([1, 2])", "too many arguments supplied to string.format (expected 1, got 2)"),
            ("'%z'.format([1])", "could not parse formatting clause: unrecognized formatting clause \"z\""),
            ("'%'.format([1])", "unexpected end of string"),
        ] {
            assert!(said(source).contains(wanted), "{source}: {}", said(source));
        }
    }

    #[test]
    fn new_expressions_know_what_an_older_server_knows() {
        let environment = Environment::default().with("l", Type::list(Type::Text));
        for unknown in [
            "l.includes('a')",
            "'abc'.reverse() == ''",
            "math.greatest(1, 2) == 2",
            "base64.encode(b'a') == ''",
            "cel.bind(x, 1, x == 1)",
            "jsonpatch.escapeKey('a') == 'a'",
            "[[1]].sort() == []",
            "['a'].sum() == 'a'",
            "l.sortBy(x, [x]) == l",
        ] {
            assert!(environment.check(unknown).is_err(), "{unknown}");
        }
        assert!(environment.clone().stored().check("l.includes('a') || 'a'.includes('a')").is_ok());
        for (known, ty) in [
            ("l.sortBy(x, x.size())", "list(string)"),
            ("l.reverse().distinct().sort().slice(0, 1)", "list(string)"),
            ("[optional.of('a'), optional.none()].unwrapOpt()", "list(string)"),
            ("optional.unwrap([optional.of(1)])", "list(int)"),
            ("[[1], [2]].flatten()", "list(int)"),
            ("lists.range(3).first().orValue(9)", "int"),
        ] {
            assert_eq!(environment.check(known).map(|ty| ty.to_string()).as_deref(), Ok(ty), "{known}");
        }
    }
}
