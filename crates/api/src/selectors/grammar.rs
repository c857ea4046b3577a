//! The grammar of label selectors in query strings (`a=b,c!=d,e in (f,g),h,!i`), with upstream's words for what does not
//! fit it. Source: `Lexer` and `Parser` of `k8s.io/apimachinery/pkg/labels/selector.go`.

use std::collections::BTreeSet;

use super::{Condition, Requirement};
use crate::names;

const SPECIAL: &str = "=!(),><";
const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];
const INTEGER: &str = "for 'Gt', 'Lt' operators, the value must be an integer";

/// A token, and how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'t> {
    Word(&'t str),
    Symbol(&'t str),
    End,
}

impl<'t> Token<'t> {
    fn text(self) -> &'t str {
        match self {
            Self::Word(text) | Self::Symbol(text) => text,
            Self::End => "",
        }
    }

    fn begins_requirement(self) -> bool {
        matches!(self, Self::Word(_) | Self::Symbol("!"))
    }

    fn is_symbol(self, symbol: &str) -> bool {
        self == Token::Symbol(symbol)
    }
}

/// Reads a selector; the failure is upstream's sentence.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    let mut reader = Reader { rest: text };
    let mut requirements = Vec::new();
    if reader.peek() == Token::End {
        return Ok(requirements);
    }
    if !reader.peek().begins_requirement() {
        let found = reader.peek().text();
        return Err(format!("found '{found}', expected: !, identifier, or 'end of string'"));
    }
    loop {
        let requirement = reader.requirement();
        requirements.push(requirement.map_err(|cause| format!("unable to parse requirement: {cause}"))?);
        match reader.next() {
            Token::End => return Ok(requirements),
            Token::Symbol(",") if reader.peek().begins_requirement() => {}
            Token::Symbol(",") => {
                return Err(format!("found '{}', expected: identifier after ','", reader.peek().text()));
            }
            found => return Err(format!("found '{}', expected: ',' or 'end of string'", found.text())),
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Token<'t> {
        let text = self.rest.trim_start_matches(BLANK);
        let Some(first) = text.chars().next() else {
            self.rest = text;
            return Token::End;
        };
        let is_special = SPECIAL.contains(first);
        let length = match is_special {
            true if text.starts_with("==") || text.starts_with("!=") => 2,
            true => 1,
            false => text.find(|c| SPECIAL.contains(c) || BLANK.contains(&c)).unwrap_or(text.len()),
        };
        let (token, rest) = text.split_at(length);
        self.rest = rest;
        if is_special { Token::Symbol(token) } else { Token::Word(token) }
    }

    fn peek(&self) -> Token<'t> {
        let mut ahead = *self;
        ahead.next()
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek().is_symbol("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            found => return Err(format!("found '{}', expected: identifier", found.text())),
        };
        check("<nil>", key, names::qualified_name_problems(key))?;
        let condition = if absent {
            Condition::DoesNotExist
        } else if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            Condition::Exists
        } else {
            self.condition(key)?
        };
        Ok(Requirement { key: key.to_owned(), condition })
    }

    fn condition(&mut self, key: &str) -> Result<Condition, String> {
        let operator = self.next().text();
        let make: fn(Vec<String>) -> Condition = match operator {
            "in" | "=" | "==" => Condition::In,
            "notin" | "!=" => Condition::NotIn,
            ">" | "<" => return self.bound(key, operator),
            found => return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = if matches!(operator, "in" | "notin") { self.set()? } else { [self.value()?].into() };
        if values.is_empty() {
            return Err(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into()
            );
        }
        for (at, value) in values.iter().enumerate() {
            check(&format!("values[{at}][{key}]"), value, names::label_value_problems(value))?;
        }
        Ok(make(values.into_iter().map(str::to_owned).collect()))
    }

    fn bound(&mut self, key: &str, operator: &str) -> Result<Condition, String> {
        let value = self.value()?;
        let bound = value.parse().map_err(|_| format!("values[0]: Invalid value: {value:?}: {INTEGER}"));
        let wrong = check(&format!("values[0][{key}]"), value, names::label_value_problems(value));
        match (bound, wrong) {
            (Ok(bound), Ok(())) if operator == ">" => Ok(Condition::GreaterThan(bound)),
            (Ok(bound), Ok(())) => Ok(Condition::LessThan(bound)),
            (Err(one), Err(other)) => Err(format!("[{one}, {other}]")),
            (Err(wrong), Ok(())) | (Ok(_), Err(wrong)) => Err(wrong),
        }
    }

    /// The one value after `=`; what ends there has the empty one.
    fn value(&mut self) -> Result<&'t str, String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok("");
        }
        match self.next() {
            Token::Word(value) => Ok(value),
            found => Err(format!("found '{}', expected: identifier", found.text())),
        }
    }

    /// `(a,b)`; commas with nothing between them stand for the empty value.
    fn set(&mut self) -> Result<BTreeSet<&'t str>, String> {
        let open = self.next();
        if !open.is_symbol("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = BTreeSet::new();
        match self.peek() {
            Token::Symbol(")") => {
                self.next();
                return Ok(values);
            }
            Token::Word(_) | Token::Symbol(",") => {}
            found => return Err(format!("found '{}', expected: ',', ')' or identifier", found.text())),
        }
        loop {
            match (self.next(), self.peek()) {
                (Token::Word(value), Token::Symbol("," | ")")) => _ = values.insert(value),
                (Token::Word(_), found) => {
                    return Err(format!("found '{}', expected: ',' or ')'", found.text()));
                }
                (Token::Symbol(","), after) => {
                    if values.is_empty() || matches!(after, Token::Symbol("," | ")")) {
                        values.insert("");
                    }
                }
                (found, _) => return Err(format!("found '{}', expected: ',', or identifier", found.text())),
            }
            if self.peek().is_symbol(")") {
                self.next();
                return Ok(values);
            }
        }
    }
}

fn check(field: &str, value: &str, problems: Vec<String>) -> Result<(), String> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(format!("{field}: Invalid value: {value:?}: {}", problems.join("; "))),
    }
}
