//! CEL, the language of validation rules and admission policies. The text is read into a tree whose depth is bounded, and
//! every step of a walk over it is paid from a budget, as is all that a step touches or makes, before it does: whoever
//! writes expressions, or objects that they look at, takes neither stack nor time nor memory without end. Values are
//! nested 100 levels deep at most, types have 64 parts, and patterns are paid by the size that they compile to.
//! Kubernetes' libraries for strings, lists, regular expressions, URLs, quantities, addresses, versions and optional
//! values are part of it. Source: the CEL specification, `k8s.io/apiserver/pkg/cel`.

mod actual;
mod ast;
mod authz;
mod check;
mod convert;
pub(crate) mod cost;
pub mod declared;
pub mod devices;
mod eval;
mod format;
mod keyed;
mod kubernetes;
mod lex;
mod library;
mod literals;
mod names;
mod operators;
mod parse;
mod patterns;
mod semver;
pub(crate) mod sizes;
mod types;
mod value;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;

pub use authz::{Answer, Authority, Question, Step};
pub(crate) use check::Checked;
pub use check::Environment;
pub use semver::Semver;
pub use types::{Fields, Type};
pub(crate) use value::has_identifier;
pub use value::{Deep, Key, Listed, Text, Val};

/// What the evaluation of one expression may cost. Source: upstream's `PerCallLimit`.
pub const CALL_COST_MAX: u64 = 1_000_000;
/// How much more work than cost there may be: upstream's cost counts neither all that is done here nor the same.
const WORK_PER_COST: u64 = 2;
/// What is spent within few milliseconds.
const QUICK_COST_MAX: u64 = 50_000;
/// What work one item of a list or a map is that is made: it takes about 8 bytes of memory for each.
const ITEM_COST: u64 = 4;
/// How much of a text a failure tells.
const TOLD_BYTES_MAX: usize = 1024;
/// How long a failure may become, which says of each variable on the way that it failed.
const FAULT_BYTES_MAX: usize = 16 << 10;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CelError {
    /// It was too expensive.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// It went wrong.
    #[error("{0}")]
    Fault(String),
    /// It needs an answer that is not known yet.
    #[error("a question about rights is not answered yet")]
    Unanswered(Box<Question>),
    /// It takes longer than it may where it runs.
    #[error("the evaluation takes long")]
    Long,
}

impl CelError {
    /// Whether it ends the evaluation whatever else the expression says.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Fault(_))
    }

    fn fault(message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(FAULT_BYTES_MAX));
        Self::Fault(message)
    }
}

/// As much of a text as is told: failures are made and kept for no more than a step costs.
fn told(text: &str) -> &str {
    &text[..text.floor_char_boundary(TOLD_BYTES_MAX)]
}

/// What is left to spend, in upstream's units of cost, by which users are refused, and in work, by which time and memory
/// are bounded. A step is work of 1, one on long values as much as they are long. What is made is paid for before it is
/// made, at 8 bytes or less for 1.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    left: u64,
    work: u64,
    /// What there was of both at first.
    given: (u64, u64),
    /// What may be spent before the evaluation gives way.
    quick: Option<u64>,
    patterns: patterns::Patterns,
}

impl Budget {
    /// A budget of so much.
    pub fn new(cost: u64) -> Self {
        let work = cost.saturating_mul(WORK_PER_COST);
        Self { left: cost, work, given: (cost, work), ..Self::default() }
    }

    /// What is left; nothing where no work may be done.
    pub fn left(&self) -> u64 {
        if self.work == 0 { 0 } else { self.left }
    }

    /// What was spent, in units of cost: what upstream says that it costs, or the work that it was if that is more.
    pub fn spent(&self) -> u64 {
        let (cost, work) = (self.given.0.saturating_sub(self.left), self.given.1.saturating_sub(self.work));
        cost.max(work / WORK_PER_COST)
    }

    /// Pays for work.
    fn spend(&mut self, work: u64) -> Result<(), CelError> {
        self.work = self.work.checked_sub(work).ok_or(CelError::Cost)?;
        let Some(quick) = &mut self.quick else { return Ok(()) };
        let left = quick.checked_sub(work);
        *quick = left.unwrap_or(0);
        left.map(drop).ok_or(CelError::Long)
    }

    /// Pays what upstream says that it costs.
    fn charge(&mut self, cost: u64) -> Result<(), CelError> {
        self.left = self.left.checked_sub(cost).ok_or(CelError::Cost)?;
        Ok(())
    }

    /// Runs something within what one call may cost, and pays for it. Where the budget itself is the narrower bound,
    /// nothing is left of it afterwards.
    pub fn call<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, CelError>) -> Result<T, CelError> {
        let may = self.left.min(CALL_COST_MAX);
        let work = self.work.min(CALL_COST_MAX * WORK_PER_COST);
        let patterns = std::mem::take(&mut self.patterns);
        let mut call = Self { left: may, work, given: (may, work), quick: None, patterns };
        let result = run(&mut call);
        if matches!(result, Err(CelError::Cost)) {
            (call.left, call.work) = (0, 0);
        }
        self.left -= may - call.left;
        self.work -= work - call.work;
        self.patterns = call.patterns;
        result
    }

    /// Pays for reading or making a text.
    fn spend_on(&mut self, length: usize) -> Result<(), CelError> {
        self.spend(1 + length as u64 / 5)
    }

    /// Pays for items that are made.
    fn spend_items(&mut self, count: usize) -> Result<(), CelError> {
        self.spend((count as u64).saturating_mul(ITEM_COST))
    }
}

/// How much may be spent, on whatever expressions, before an evaluation gives way ([`CelError::Long`]): what starts
/// where others wait begins anew elsewhere.
#[derive(Debug)]
pub struct Pace(AtomicU64);

impl Default for Pace {
    fn default() -> Self {
        Self(AtomicU64::new(QUICK_COST_MAX))
    }
}

/// An expression that can be run.
#[derive(Debug, Clone)]
pub struct Program {
    tree: ast::Node,
    source: String,
}

/// Named expressions that others speak of as `variables.name`; each may speak of those before it.
#[derive(Debug, Clone, Default)]
pub struct Composition {
    /// The failure is why an expression could not be compiled.
    entries: Vec<(String, Result<Program, String>)>,
    places: HashMap<String, usize>,
}

impl Composition {
    /// Adds an expression.
    pub fn add(&mut self, name: &str, program: Result<Program, String>) {
        self.places.entry(name.to_owned()).or_insert(self.entries.len());
        self.entries.push((name.to_owned(), program));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The variables of expressions; what composed ones evaluate to is remembered here.
#[derive(Debug, Clone, Default)]
pub struct Variables<'v> {
    known: Vec<(&'v str, Val<'v>)>,
    composition: Option<&'v Composition>,
    remembered: RefCell<Vec<Option<Result<Val<'v>, CelError>>>>,
    patch_types: bool,
    pace: Option<&'v Pace>,
}

impl<'v> Variables<'v> {
    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &'v str, value: Val<'v>) -> Self {
        self.known.push((name, value));
        self
    }

    /// Adds a variable that holds JSON.
    #[must_use]
    pub fn json(self, name: &'v str, value: &'v Value) -> Self {
        self.with(name, Val::of_json(value, None))
    }

    /// Adds `variables`.
    #[must_use]
    pub fn composed(mut self, composition: &'v Composition) -> Self {
        self.composition = Some(composition);
        self
    }

    /// Lets expressions make objects (`Object{…}`, `JSONPatch{…}`).
    #[must_use]
    pub fn patching(mut self) -> Self {
        self.patch_types = true;
        self
    }

    /// Bounds what is spent at one go.
    #[must_use]
    pub fn paced(mut self, pace: Option<&'v Pace>) -> Self {
        self.pace = pace;
        self
    }

    fn get(&self, name: &str) -> Option<&Val<'v>> {
        self.known.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl Program {
    /// Compiles an expression in which only these variables are known. The failure is a text for people, as upstream's
    /// (`ERROR: <input>:1:1: …`).
    pub fn compile(source: &str, variables: &[&str]) -> Result<Self, String> {
        let tree = parse::parse(source).map_err(|wrong| parse::pointed(source, &wrong))?;
        names::check(&tree, variables).map_err(|wrong| parse::pointed(source, &wrong))?;
        Ok(Self { tree, source: source.to_owned() })
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.tree.uses(variable)
    }

    /// Its value.
    pub fn run<'v>(&'v self, variables: &Variables<'v>, budget: &mut Budget) -> Result<Val<'v>, CelError> {
        let Some(Pace(pace)) = variables.pace else { return self.evaluate(variables, budget) };
        budget.quick = Some(pace.load(Relaxed));
        let result = self.evaluate(variables, budget);
        pace.store(budget.quick.take().unwrap_or(0), Relaxed);
        result
    }

    fn evaluate<'v>(&'v self, variables: &Variables<'v>, budget: &mut Budget) -> Result<Val<'v>, CelError> {
        let composed = variables.composition.map_or(0, |composition| composition.entries.len());
        let mut evaluation =
            eval::Evaluation { globals: variables, scope: Vec::new(), budget, depth: 0, composed, free: 0 };
        evaluation.value(&self.tree)
    }

    /// Its value, which has to be `true` or `false`.
    pub fn holds<'v>(&'v self, variables: &Variables<'v>, budget: &mut Budget) -> Result<bool, CelError> {
        match self.run(variables, budget)? {
            Val::Bool(holds) => Ok(holds),
            other => Err(CelError::fault(format!("expected a bool, found {}", other.type_name()))),
        }
    }
}
