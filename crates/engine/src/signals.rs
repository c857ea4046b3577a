//! Signals by name.

use engine_api::EngineError;

/// Linux's signals by number from 1, as on x86 and ARM.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first real-time signal that programs use; the C library keeps two.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`, `RTMAX-1` in any case.
pub(crate) fn parse(text: &str) -> Result<i32, EngineError> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = if let Ok(number) = name.parse::<i32>() {
        Some(number)
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest).map(|offset| RTMIN.saturating_add(offset)).filter(|number| *number >= RTMIN)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest).map(|offset| RTMAX.saturating_add(offset)).filter(|number| *number >= RTMIN)
    } else {
        (1..).zip(NAMES).find(|(_, known)| *known == name).map(|(number, _)| number)
    };
    number.filter(|number| (1..=RTMAX).contains(number) && !(32..RTMIN).contains(number)).ok_or_else(|| {
        EngineError::invalid(format!("`{text}` is no signal: use a name such as SIGTERM or a number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_signals() {
        for (text, number) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SYS", 31)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "SIG", "0", "65", "33", "-1", "NOPE", "RTMIN-1", "RTMAX+1", "RTMIN+99999999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
