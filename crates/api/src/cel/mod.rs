//! CEL, the language of validation rules and admission policies: the `cel` crate parses, and the walk over its tree is our
//! own, since every step of it is paid from a budget. Kubernetes' libraries for strings, lists, regular expressions, URLs,
//! quantities, addresses and optional values are part of it. Source: the CEL specification, `k8s.io/apiserver/pkg/cel`.
//!
//! Types are checked where an expression runs, and not before: an expression of wrong types is an error of its run.

mod convert;
mod eval;
mod guard;
mod kubernetes;
mod library;
mod names;
mod operators;
mod value;

#[cfg(test)]
mod tests;

use cel::common::ast::IdedExpr;
use serde_json::Value;

pub use value::Val;

/// What the evaluation of one expression may cost. Source: upstream's `PerCallLimit`.
pub const CALL_COST_MAX: u64 = 1_000_000;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CelError {
    /// It was too expensive.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// It went wrong.
    #[error("{0}")]
    Fault(String),
}

impl CelError {
    fn fault(message: impl Into<String>) -> Self {
        Self::Fault(message.into())
    }
}

/// What is left to spend. A step costs 1, work on long values as much as they are long.
#[derive(Debug, Clone)]
pub struct Budget {
    left: u64,
}

impl Budget {
    /// A budget of so much.
    pub fn new(cost: u64) -> Self {
        Self { left: cost }
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Pays.
    fn spend(&mut self, cost: u64) -> Result<(), CelError> {
        self.left = self.left.checked_sub(cost).ok_or(CelError::Cost)?;
        Ok(())
    }

    /// Pays for work on something long.
    fn spend_on(&mut self, length: usize) -> Result<(), CelError> {
        self.spend(1 + length as u64 / 10)
    }
}

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Program {
    expression: IdedExpr,
    source: String,
}

/// The variables of an expression.
#[derive(Debug, Clone, Default)]
pub struct Variables<'v>(Vec<(&'v str, Val<'v>)>);

impl<'v> Variables<'v> {
    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &'v str, value: Val<'v>) -> Self {
        self.0.push((name, value));
        self
    }

    /// Adds a variable that holds JSON.
    #[must_use]
    pub fn json(self, name: &'v str, value: &'v Value) -> Self {
        self.with(name, Val::of_json(value, None))
    }
}

impl Program {
    /// Parses an expression in which only these variables are known. The failure is a text for people, as upstream's
    /// (`ERROR: <input>:1:1: …`).
    pub fn compile(source: &str, variables: &[&str]) -> Result<Self, String> {
        guard::check(source)?;
        let expression = parse(source)?;
        names::check(&expression, variables).map_err(|unknown| {
            format!("ERROR: <input>:1:1: undeclared reference to '{unknown}' (in container '')")
        })?;
        Ok(Self { expression, source: source.to_owned() })
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        names::uses(&self.expression, variable)
    }

    /// Its value.
    pub fn run<'v>(&'v self, variables: &Variables<'v>, budget: &mut Budget) -> Result<Val<'v>, CelError> {
        let mut evaluation = eval::Evaluation { scope: variables.0.clone(), budget };
        evaluation.value(&self.expression)
    }

    /// Its value, which has to be `true` or `false`.
    pub fn holds<'v>(&'v self, variables: &Variables<'v>, budget: &mut Budget) -> Result<bool, CelError> {
        match self.run(variables, budget)? {
            Val::Bool(holds) => Ok(holds),
            other => Err(CelError::fault(format!("expected a bool, found {}", other.type_name()))),
        }
    }
}

/// The stack on which an expression is parsed: the grammar recurses through every level of precedence.
const PARSE_STACK_BYTES: usize = 16 << 20;

#[allow(
    clippy::disallowed_methods,
    reason = "a thread for its stack alone: this call owns it and waits for it"
)]
fn parse(source: &str) -> Result<IdedExpr, String> {
    let parsed = || {
        let parser = cel::parser::Parser::new().enable_optional_syntax(true);
        parser.parse(source).map_err(|errors| errors.to_string())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSE_STACK_BYTES).spawn_scoped(scope, parsed);
        let failed = |_| "ERROR: <input>:1:1: the expression cannot be parsed".to_owned();
        thread.map_err(|error| error.to_string())?.join().map_err(failed)?
    })
}
