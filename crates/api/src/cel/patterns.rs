//! Regular expressions of expressions. The run of one is linear in the text, but each letter may take as long as the
//! pattern is large, and a short pattern may be large (`(\\pL{9}){99}`): so both compiling one and running it are paid by
//! its size. One that an evaluation has paid for it keeps for as long as it lasts; small ones are remembered for others.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use regex::Regex;

use super::{Budget, CelError, told};
use crate::regexps::{Failed, compile};

/// The longest pattern in bytes: what is made of it before its size is known is some hundred times as long.
const SOURCE_BYTES_MAX: usize = 16 << 10;
/// How large a pattern may become, in steps: bytes, what compiling one of the size costs, and how many times as much as
/// upstream says a run of it costs.
const SIZES: [(usize, u64, u64); 3] = [(32 << 10, 300, 1), (256 << 10, 2_500, 8), (2 << 20, 20_000, 64)];
/// How much memory the patterns of one evaluation take.
const HELD_BYTES_MAX: usize = 4 << 20;
/// How many small patterns are remembered.
const REMEMBERED_MAX: usize = 256;

/// The patterns of one evaluation.
#[derive(Debug, Clone, Default)]
pub(super) struct Patterns {
    /// With the step of [`SIZES`].
    held: HashMap<Box<str>, (Regex, usize)>,
    bytes: usize,
}

/// A pattern, to be run on a text, both of which is paid. Source of the cost: cel-go's `MatchesString`, a tenth of the
/// text's length by a quarter of the pattern's.
pub(super) fn pattern(text: &str, source: &str, budget: &mut Budget) -> Result<Regex, CelError> {
    let run = (text.len() as u64 + 1).div_ceil(10) * (source.len() as u64).div_ceil(4).max(1);
    if let Some((regex, size)) = budget.patterns.held.get(source) {
        let (regex, times) = (regex.clone(), SIZES[*size].2);
        budget.spend(run.saturating_mul(times))?;
        return Ok(regex);
    }
    let (regex, size) = compiled(source, budget)?;
    budget.spend(run.saturating_mul(SIZES[size].2))?;
    let held = &mut budget.patterns;
    if held.bytes + SIZES[size].0 > HELD_BYTES_MAX {
        *held = Patterns::default();
    }
    held.bytes += SIZES[size].0;
    held.held.insert(source.into(), (regex.clone(), size));
    Ok(regex)
}

/// Small patterns that were used before, by their text.
fn remembered() -> MutexGuard<'static, HashMap<Box<str>, Regex>> {
    static REMEMBERED: LazyLock<Mutex<HashMap<Box<str>, Regex>>> = LazyLock::new(Mutex::default);
    REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compiles a pattern, each time as large as was paid for.
fn compiled(source: &str, budget: &mut Budget) -> Result<(Regex, usize), CelError> {
    let too_large = || CelError::fault("error parsing regexp: expression too large");
    if source.len() > SOURCE_BYTES_MAX {
        return Err(too_large());
    }
    budget.spend(source.len() as u64)?;
    for (size, (bytes, cost, _)) in SIZES.into_iter().enumerate() {
        budget.spend(cost)?;
        if size == 0
            && let Some(regex) = remembered().get(source)
        {
            return Ok((regex.clone(), size));
        }
        match compile(source, bytes) {
            Ok(regex) => {
                if size == 0 {
                    let mut remembered = remembered();
                    if remembered.len() >= REMEMBERED_MAX {
                        remembered.clear();
                    }
                    remembered.insert(source.into(), regex.clone());
                }
                return Ok((regex, size));
            }
            Err(Failed::TooLarge) => {}
            Err(Failed::Wrong(problem)) => return Err(CelError::fault(told(&problem))),
        }
    }
    Err(too_large())
}

/// Whether a text is a pattern, however large it becomes.
pub(super) fn is_pattern(source: &str) -> bool {
    source.len() <= SOURCE_BYTES_MAX && !matches!(compile(source, SIZES[0].0), Err(Failed::Wrong(_)))
}
