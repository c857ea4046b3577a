//! From words to a tree, by precedence. How deep a tree may become is bounded here, so that every walk over it may
//! recurse. Source: the CEL specification, section "Syntax"; `cel-go/parser` for the words of failures.

use super::ast::{Kind, Literal, Macro, Node, What};
use super::lex::{self, Token, Word, Wrong};

/// The longest expression, in code points. Source: `cel-go`'s `expressionSizeCodePointLimit`.
const CODE_POINTS_MAX: usize = 100_000;
/// How deep a tree may become.
const DEPTH_MAX: usize = 100;
/// How deep brackets, signs and conditions may nest while it is read.
const NESTING_MAX: usize = 50;

/// Words that no variable may have as name.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// Names that are no names.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

type Result<T> = std::result::Result<T, Wrong>;

/// Reads an expression. The failure says where it is, in bytes.
pub(super) fn parse(source: &str) -> Result<Node> {
    let length = source.chars().count();
    if length > CODE_POINTS_MAX {
        let problem =
            format!("expression code point size exceeds limit: size: {length}, limit {CODE_POINTS_MAX}");
        return Err((0, problem));
    }
    let tokens = lex::words(source)?;
    let mut parser = Parser { source, tokens, next: 0, nesting: 0 };
    let tree = parser.expression()?;
    match &parser.peek().word {
        Word::End => Ok(tree),
        _ => Err(parser.unexpected("extraneous", "expecting <EOF>")),
    }
}

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Token>,
    next: usize,
    nesting: usize,
}

/// A node over others.
fn node(at: usize, kind: Kind) -> Result<Node> {
    let mut made = Node { at, depth: 1, constant: kind.is_constant(), kind };
    let mut below = 0;
    made.each(&mut |node| below = below.max(node.depth));
    made.depth += below;
    if made.depth > DEPTH_MAX {
        return Err((at, format!("expression recursion limit exceeded: {DEPTH_MAX}")));
    }
    Ok(made)
}

fn call(at: usize, name: &str, arguments: Vec<Node>) -> Result<Node> {
    node(at, Kind::Call { name: name.into(), target: None, arguments })
}

/// Binary operators below the conjunctions: CEL's name, and how tight they bind.
fn binary(word: &Word) -> Option<(&'static str, u8)> {
    Some(match word {
        Word::Name(name) if name == "in" => ("@in", 1),
        Word::Sign(sign) => match *sign {
            "==" => ("_==_", 1),
            "!=" => ("_!=_", 1),
            "<" => ("_<_", 1),
            "<=" => ("_<=_", 1),
            ">" => ("_>_", 1),
            ">=" => ("_>=_", 1),
            "+" => ("_+_", 2),
            "-" => ("_-_", 2),
            "*" => ("_*_", 3),
            "/" => ("_/_", 3),
            "%" => ("_%_", 3),
            _ => return None,
        },
        _ => return None,
    })
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        // The last token is the end, which is never passed.
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn is(&self, sign: &str) -> bool {
        matches!(&self.peek().word, Word::Sign(found) if *found == sign)
    }

    /// Passes a sign if it is next; where it stood.
    fn eat(&mut self, sign: &str) -> Option<usize> {
        self.is(sign).then(|| self.take().at)
    }

    fn expect(&mut self, sign: &str) -> Result<usize> {
        self.eat(sign).ok_or_else(|| self.unexpected("mismatched", &format!("expecting '{sign}'")))
    }

    fn unexpected(&self, how: &str, wanted: &str) -> Wrong {
        let token = self.peek();
        let shown = match token.word {
            Word::End => "<EOF>",
            _ => self.source.get(token.at..token.end).unwrap_or_default(),
        };
        (token.at, format!("Syntax error: {how} input '{shown}' {wanted}").trim_end().to_owned())
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting >= NESTING_MAX {
            return Err((self.peek().at, format!("expression recursion limit exceeded: {NESTING_MAX}")));
        }
        self.nesting += 1;
        let read = read(self);
        self.nesting -= 1;
        read
    }

    fn expression(&mut self) -> Result<Node> {
        self.nested(|parser| {
            let condition = parser.or()?;
            let Some(at) = parser.eat("?") else { return Ok(condition) };
            let yes = parser.or()?;
            parser.expect(":")?;
            let no = parser.expression()?;
            node(at, Kind::Condition(Box::new([condition, yes, no])))
        })
    }

    fn or(&mut self) -> Result<Node> {
        let first = self.and()?;
        if !self.is("||") {
            return Ok(first);
        }
        let (at, mut parts) = (self.peek().at, vec![first]);
        while self.eat("||").is_some() {
            parts.push(self.and()?);
        }
        node(at, Kind::Or(parts))
    }

    fn and(&mut self) -> Result<Node> {
        let first = self.operation(1)?;
        if !self.is("&&") {
            return Ok(first);
        }
        let (at, mut parts) = (self.peek().at, vec![first]);
        while self.eat("&&").is_some() {
            parts.push(self.operation(1)?);
        }
        node(at, Kind::And(parts))
    }

    fn operation(&mut self, least: u8) -> Result<Node> {
        let mut left = self.unary()?;
        while let Some((name, tightness)) = binary(&self.peek().word).filter(|(_, found)| *found >= least) {
            let at = self.take().at;
            let right = self.operation(tightness + 1)?;
            left = call(at, name, vec![left, right])?;
        }
        Ok(left)
    }

    /// Signs before an operand; two of a kind cancel each other.
    fn unary(&mut self) -> Result<Node> {
        let at = self.peek().at;
        for (sign, name) in [("!", "!_"), ("-", "-_")] {
            let mut count = 0_usize;
            let begin = self.next;
            while self.eat(sign).is_some() {
                count += 1;
            }
            if count == 0 {
                continue;
            }
            if name == "-_" && count == 1 && self.is_number() {
                let number = self.number(true)?;
                return self.members(number);
            }
            if self.is("!") || self.is("-") {
                self.next = begin + count;
                return Err(self.unexpected("extraneous", ""));
            }
            let operand = self.member()?;
            return if count.is_multiple_of(2) { Ok(operand) } else { call(at, name, vec![operand]) };
        }
        self.member()
    }

    fn is_number(&self) -> bool {
        matches!(self.peek().word, Word::Int(_) | Word::Double(_))
    }

    fn number(&mut self, negative: bool) -> Result<Node> {
        let token = self.take();
        let sign = if negative { "-" } else { "" };
        let literal = match &token.word {
            Word::Int(digits) => {
                let (radix, plain) = radix_of(digits);
                let value = i64::from_str_radix(&format!("{sign}{plain}"), radix);
                Literal::Int(value.map_err(|_| (token.at, "invalid int literal".to_owned()))?)
            }
            Word::Double(value) => Literal::Double(if negative { -value } else { *value }),
            _ => return Err((token.at, "invalid number".to_owned())),
        };
        node(token.at, Kind::Literal(literal))
    }

    fn member(&mut self) -> Result<Node> {
        let first = self.primary()?;
        self.members(first)
    }

    /// Selections, calls and indexes behind an operand.
    fn members(&mut self, mut of: Node) -> Result<Node> {
        loop {
            if let Some(at) = self.eat(".") {
                let optional = self.eat("?").is_some();
                let field = match self.take() {
                    Token { word: Word::Name(name), .. } if !LITERALS.contains(&name.as_str()) => name,
                    Token { word: Word::Quoted(name), .. } => name,
                    _ => {
                        self.next -= 1;
                        return Err(self.unexpected("mismatched", "expecting IDENTIFIER"));
                    }
                };
                of = match self.peek().word {
                    Word::Sign("(") if !optional => self.method(of, &field)?,
                    _ => node(
                        at,
                        Kind::Select { of: Box::new(of), field: field.into(), test: false, optional },
                    )?,
                };
            } else if let Some(at) = self.eat("[") {
                let optional = self.eat("?").is_some();
                let index = Box::new(self.expression()?);
                self.expect("]")?;
                of = node(at, Kind::Index { of: Box::new(of), index, optional })?;
            } else if let (true, Some(name)) = (self.is("{"), dotted(&of)) {
                of = self.structure(name)?;
            } else {
                return Ok(of);
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Result<Vec<Node>> {
        let mut arguments = Vec::new();
        while !self.is(close) {
            arguments.push(self.expression()?);
            if self.eat(",").is_none() {
                break;
            }
        }
        self.expect(close)?;
        Ok(arguments)
    }

    fn method(&mut self, of: Node, name: &str) -> Result<Node> {
        let at = self.expect("(")?;
        let mut arguments = self.arguments(")")?;
        if let (Kind::Name(package), "bind", 3) = (&of.kind, name, arguments.len())
            && **package == *"cel"
        {
            let bodies = arguments.split_off(2);
            let range = arguments.remove(1);
            return macro_of(at, What::Bind, range, arguments, bodies);
        }
        if let Some((what, names)) = What::of(name, arguments.len()) {
            let bodies = arguments.split_off(names);
            return macro_of(at, what, of, arguments, bodies);
        }
        node(at, Kind::Call { name: name.into(), target: Some(Box::new(of)), arguments })
    }

    fn primary(&mut self) -> Result<Node> {
        if self.is_number() {
            return self.number(false);
        }
        let token = self.take();
        let literal = |literal| node(token.at, Kind::Literal(literal));
        match token.word {
            Word::Text(text) => literal(Literal::Text(text.into())),
            Word::Bytes(bytes) => literal(Literal::Bytes(bytes.into())),
            Word::UInt(digits) => {
                let (radix, plain) = radix_of(&digits);
                let value = u64::from_str_radix(plain, radix);
                literal(Literal::UInt(value.map_err(|_| (token.at, "invalid uint literal".to_owned()))?))
            }
            Word::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Word::Sign("[") => self.list(token.at),
            Word::Sign("{") => self.map(token.at),
            // A leading dot names what is known in no container, which is where everything is.
            Word::Sign(".") => match self.take() {
                Token { word: Word::Name(name), at, .. } => self.name(at, &name),
                _ => {
                    self.next -= 1;
                    Err(self.unexpected("mismatched", "expecting IDENTIFIER"))
                }
            },
            Word::Name(name) => match name.as_str() {
                "true" => literal(Literal::Bool(true)),
                "false" => literal(Literal::Bool(false)),
                "null" => literal(Literal::Null),
                _ => self.name(token.at, &name),
            },
            _ => {
                self.next -= 1;
                Err(self.unexpected(
                    "mismatched",
                    "expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                     STRING, BYTES, IDENTIFIER}",
                ))
            }
        }
    }

    fn name(&mut self, at: usize, name: &str) -> Result<Node> {
        if LITERALS.contains(&name) {
            self.next -= 1;
            return Err(self.unexpected("mismatched", "expecting IDENTIFIER"));
        }
        if RESERVED.contains(&name) {
            return Err((at, format!("reserved identifier: {name}")));
        }
        let Some(open) = self.eat("(") else { return node(at, Kind::Name(name.into())) };
        let mut arguments = self.arguments(")")?;
        if name != "has" || arguments.len() != 1 {
            return call(open, name, arguments);
        }
        match arguments.remove(0) {
            Node { at, kind: Kind::Select { of, field, optional: false, .. }, .. } => {
                node(at, Kind::Select { of, field, test: true, optional: false })
            }
            other => Err((other.at, "invalid argument to has() macro".to_owned())),
        }
    }

    fn list(&mut self, at: usize) -> Result<Node> {
        let mut items = Vec::new();
        while !self.is("]") {
            let optional = self.eat("?").is_some();
            items.push((self.expression()?, optional));
            if self.eat(",").is_none() {
                break;
            }
        }
        self.expect("]")?;
        node(at, Kind::List(items))
    }

    fn map(&mut self, at: usize) -> Result<Node> {
        let mut entries = Vec::new();
        while !self.is("}") {
            let optional = self.eat("?").is_some();
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?, optional));
            if self.eat(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        node(at, Kind::Map(entries))
    }

    fn structure(&mut self, name: String) -> Result<Node> {
        let at = self.expect("{")?;
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.eat("?").is_some();
            let field = match self.take().word {
                Word::Name(name) | Word::Quoted(name) => name,
                _ => {
                    self.next -= 1;
                    return Err(self.unexpected("mismatched", "expecting IDENTIFIER"));
                }
            };
            self.expect(":")?;
            fields.push((field.into(), self.expression()?, optional));
            if self.eat(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        node(at, Kind::Struct { name: name.into(), fields })
    }
}

fn radix_of(digits: &str) -> (u32, &str) {
    match digits.strip_prefix("0x") {
        Some(digits) => (16, digits),
        None => (10, digits),
    }
}

/// The dotted name that a chain of selections spells.
fn dotted(of: &Node) -> Option<String> {
    match &of.kind {
        Kind::Name(name) => Some(name.to_string()),
        Kind::Select { of, field, test: false, optional: false } => Some(format!("{}.{field}", dotted(of)?)),
        _ => None,
    }
}

fn macro_of(at: usize, what: What, range: Node, names: Vec<Node>, bodies: Vec<Node>) -> Result<Node> {
    let mut known: Vec<Box<str>> = Vec::new();
    for name in names {
        match name.kind {
            Kind::Name(name) if known.contains(&name) => {
                return Err((at, "iteration variables must have different names".to_owned()));
            }
            Kind::Name(name) => known.push(name),
            _ => return Err((name.at, "argument must be a simple name".to_owned())),
        }
    }
    node(at, Kind::Macro(Box::new(Macro { what, range, names: known, bodies })))
}

/// Points at a failure as upstream does: position, the line, and a mark below it.
pub(super) fn pointed(source: &str, (at, problem): &Wrong) -> String {
    let before = source.get(..(*at).min(source.len())).unwrap_or(source);
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
    let text = source.split('\n').nth(line).unwrap_or_default();
    let mut shown = format!("ERROR: <input>:{}:{}: {problem}", line + 1, column + 1);
    if text.chars().count() <= 1000 {
        shown += &format!("\n | {}\n | {}^", text.replace('\t', " "), ".".repeat(column));
    }
    shown
}
