//! `"%s has %d".format([…])`: the clauses and what they show. Source: `cel-go/ext/formatting.go`, which Kubernetes asks
//! for by the library's version 2; that one writes `%f` and `%e` as `golang.org/x/text/message` does for people of `en_US`:
//! `1,234.500000` and `1.234500 × 10⁰³`.

use std::fmt::Write as _;

use super::convert::text_of;
use super::{Budget, CelError, Val, told};

type Result<T> = std::result::Result<T, CelError>;

/// Digits after the point where a clause does not say how many.
const PRECISION: usize = 6;
/// No double has more of them.
const FRACTION_DIGITS_MAX: usize = 1074;
/// Upstream keeps in one byte how many zeros may be filled in.
const ZEROS_MODULUS: usize = 256;
/// Stands around the sign of multiplication.
const NARROW_SPACE: char = '\u{202f}';
const SUPERSCRIPTS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];

/// A clause (`%.3f`) without its percent sign.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clause {
    pub(super) verb: char,
    precision: Option<usize>,
}

impl Clause {
    /// Reads a clause; gives it, and what follows.
    pub(super) fn parse(text: &str) -> std::result::Result<(Self, &str), String> {
        let (precision, rest) = match text.strip_prefix('.') {
            None => (None, text),
            Some(text) => precision(text)?,
        };
        let mut letters = rest.chars();
        match letters.next() {
            Some(verb @ ('s' | 'd' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o')) => {
                Ok((Self { verb, precision }, letters.as_str()))
            }
            other => Err(format!("unrecognized formatting clause \"{}\"", other.unwrap_or_default())),
        }
    }

    fn show(self, value: &Val<'_>, out: &mut String, budget: &mut Budget) -> Result<()> {
        let precision = self.precision.unwrap_or(PRECISION);
        match (self.verb, value) {
            ('s', value) => return show(value, out, budget),
            ('d', Val::Int(_) | Val::UInt(_)) => *out += &text_of(value, budget)?.unwrap_or_default(),
            ('f', value) if double(value).is_some() => *out += &fixed(double(value), precision),
            ('e', value) if double(value).is_some() => *out += &scientific(double(value), precision),
            ('b', Val::Bool(value)) => *out += if *value { "1" } else { "0" },
            ('x' | 'X', Val::Text(text)) => self.hex(text.as_bytes(), out, budget)?,
            ('x' | 'X', Val::Bytes(bytes)) => self.hex(bytes, out, budget)?,
            ('b' | 'o' | 'x' | 'X', Val::UInt(value)) => self.whole(*value, out),
            ('b' | 'o' | 'x' | 'X', Val::Int(value)) => {
                *out += if *value < 0 { "-" } else { "" };
                self.whole(value.unsigned_abs(), out);
            }
            _ => return Err(refused(only(self.verb), value)),
        }
        Ok(())
    }

    fn whole(self, value: u64, out: &mut String) {
        // Writing to a text does not fail.
        let _ = match self.verb {
            'b' => write!(out, "{value:b}"),
            'o' => write!(out, "{value:o}"),
            'X' => write!(out, "{value:X}"),
            _ => write!(out, "{value:x}"),
        };
    }

    fn hex(self, bytes: &[u8], out: &mut String, budget: &mut Budget) -> Result<()> {
        budget.spend_on(bytes.len().saturating_mul(2))?;
        for byte in bytes {
            let _ = if self.verb == 'X' { write!(out, "{byte:02X}") } else { write!(out, "{byte:02x}") };
        }
        Ok(())
    }
}

/// What a clause shows, in upstream's words.
pub(super) fn only(verb: char) -> &'static str {
    match verb {
        's' => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and \
             timestamps"
        }
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'o' => "octal clause can only be used on integers",
        _ => "only integers, byte buffers, and strings can be formatted as hex",
    }
}

/// The precision that stands behind a point, and what follows.
fn precision(text: &str) -> std::result::Result<(Option<usize>, &str), String> {
    let rest = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    if rest.is_empty() {
        return Err("error while parsing precision: could not find end of precision specifier".to_owned());
    }
    let digits = &text[..text.len() - rest.len()];
    let number: i64 = digits.parse().map_err(|_| {
        format!(
            "error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing {:?}: \
             invalid syntax",
            told(digits)
        )
    })?;
    Ok((usize::try_from(number).ok(), rest))
}

/// Puts values in the places of clauses.
pub(super) fn format(text: &str, values: &[Val<'_>], budget: &mut Budget) -> Result<String> {
    budget.spend_on(text.len())?;
    let mut out = String::new();
    let mut next = 0;
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out += before;
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let missing = || CelError::fault(format!("index {next} out of range"));
        let value = values.get(next).ok_or_else(missing)?;
        if after.is_empty() {
            return Err(CelError::fault("unexpected end of string"));
        }
        let (clause, after) = Clause::parse(after)
            .map_err(|problem| CelError::fault(format!("could not parse formatting clause: {problem}")))?;
        // What is longer than a number pays for itself.
        budget.spend(20)?;
        if matches!(clause.verb, 'f' | 'e') {
            budget.spend_on(clause.precision.unwrap_or(0).min(FRACTION_DIGITS_MAX))?;
        }
        clause.show(value, &mut out, budget)?;
        next += 1;
        rest = after;
    }
    Ok(out + rest)
}

fn refused(what: &str, value: &Val<'_>) -> CelError {
    CelError::fault(format!("error during formatting: {what}, was given {}", value.type_name()))
}

/// The double that `%f` and `%e` take a value for.
fn double(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Double(value) => Some(*value),
        Val::Text(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// `1,234.500000`
fn fixed(value: Option<f64>, precision: usize) -> String {
    let value = value.unwrap_or(f64::NAN);
    if !value.is_finite() {
        return endless(value).to_owned();
    }
    let digits = format!("{:.*}", precision.min(FRACTION_DIGITS_MAX), value.abs());
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let mut out = sign(value).to_owned();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + &filled(fraction, precision)
}

/// `1.234500 × 10⁰³`
fn scientific(value: Option<f64>, precision: usize) -> String {
    let value = value.unwrap_or(f64::NAN);
    if !value.is_finite() {
        return endless(value).to_owned();
    }
    let digits = format!("{:.*e}", precision.min(FRACTION_DIGITS_MAX), value.abs());
    let (digits, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (minus, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |size| ("⁻", size));
    let mut out = format!("{}{whole}{}", sign(value), filled(fraction, precision));
    let _ = write!(out, "{NARROW_SPACE}×{NARROW_SPACE}10{minus}");
    let digits = format!("{exponent:0>2}");
    out.extend(digits.chars().filter_map(|digit| SUPERSCRIPTS.get(digit.to_digit(10)? as usize)));
    out
}

fn endless(value: f64) -> &'static str {
    match value {
        f64::INFINITY => "∞",
        f64::NEG_INFINITY => "-∞",
        _ => "NaN",
    }
}

/// Zero has none.
fn sign(value: f64) -> &'static str {
    if value < 0.0 { "-" } else { "" }
}

/// The point and the digits behind it, filled up with zeros.
fn filled(fraction: &str, precision: usize) -> String {
    let digits = fraction.trim_end_matches('0');
    let length = digits.len().max(precision % ZEROS_MODULUS);
    if length == 0 { String::new() } else { format!(".{digits:0<length$}") }
}

/// Writes a value as `%s` shows it.
fn show(value: &Val<'_>, out: &mut String, budget: &mut Budget) -> Result<()> {
    budget.spend(1)?;
    match value {
        Val::Null => *out += "null",
        Val::Bool(_)
        | Val::Int(_)
        | Val::UInt(_)
        | Val::Double(_)
        | Val::Text(_)
        | Val::Bytes(_)
        | Val::Type(_)
        | Val::Time(_)
        | Val::Duration(_) => match text_of(value, budget)? {
            Some(text) => *out += &text,
            None => {
                return Err(CelError::fault("error during formatting: could not convert argument to string"));
            }
        },
        _ if value.is_list() => return show_list(value, out, budget),
        _ if value.walk().is_some() => return show_map(value, out, budget),
        _ => return Err(refused(only('s'), value)),
    }
    Ok(())
}

/// Writes what is in a list or a map as an expression would say it.
fn show_inside(value: &Val<'_>, out: &mut String, budget: &mut Budget) -> Result<()> {
    let start = out.len();
    match value {
        Val::Double(value) if value.is_finite() => *out += &format!("{value:.PRECISION$}"),
        Val::Null | Val::Bool(_) | Val::Int(_) | Val::UInt(_) | Val::Type(_) => show(value, out, budget)?,
        Val::Double(_) | Val::Text(_) | Val::Bytes(_) | Val::Time(_) | Val::Duration(_) => {
            show(value, out, budget)?;
            let text = out.split_off(start);
            budget.spend_on(text.len())?;
            let (before, after) = match value {
                Val::Bytes(_) => ("b", ""),
                Val::Time(_) => ("timestamp(", ")"),
                Val::Duration(_) => ("duration(", ")"),
                _ => ("", ""),
            };
            *out += before;
            quote(&text, out);
            *out += after;
        }
        _ if value.walk().is_some() => show(value, out, budget)?,
        _ => {
            let problem =
                format!("error during formatting: no formatting function for {}", value.type_name());
            return Err(CelError::fault(problem));
        }
    }
    Ok(())
}

fn show_list(value: &Val<'_>, out: &mut String, budget: &mut Budget) -> Result<()> {
    out.push('[');
    for (place, (_, part)) in value.walk().into_iter().flatten().enumerate() {
        *out += if place > 0 { ", " } else { "" };
        show_inside(&part.paid(budget)?, out, budget)?;
    }
    out.push(']');
    Ok(())
}

/// Entries stand in the order of their keys as they are shown.
fn show_map(value: &Val<'_>, out: &mut String, budget: &mut Budget) -> Result<()> {
    let mut entries = Vec::new();
    for (key, part) in value.walk().into_iter().flatten() {
        let mut entry = String::new();
        show_inside(&key, &mut entry, budget)?;
        let length = entry.len();
        entry.push(':');
        show_inside(&part.paid(budget)?, &mut entry, budget)?;
        entries.push((length, entry));
    }
    entries.sort_by(|one, other| one.1.get(..one.0).cmp(&other.1.get(..other.0)));
    out.push('{');
    for (place, (_, entry)) in entries.iter().enumerate() {
        *out += if place > 0 { ", " } else { "" };
        *out += entry;
    }
    out.push('}');
    Ok(())
}

/// A text as Go's `%q` writes it.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\u{7}' => *out += "\\a",
            '\u{8}' => *out += "\\b",
            '\u{c}' => *out += "\\f",
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            '\u{b}' => *out += "\\v",
            ' '..='~' => out.push(letter),
            '\0'..='\u{7f}' => drop(write!(out, "\\x{:02x}", u32::from(letter))),
            _ if is_shown(letter) => out.push(letter),
            '\0'..='\u{ffff}' => drop(write!(out, "\\u{:04x}", u32::from(letter))),
            _ => drop(write!(out, "\\U{:08x}", u32::from(letter))),
        }
    }
    out.push('"');
}

/// Whether a letter beyond ASCII can be seen, also where that is only on top of another.
fn is_shown(letter: char) -> bool {
    let mut both = String::from("a");
    both.push(letter);
    both.escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::super::value::Text;
    use super::*;

    fn formatted(text: &str, values: &[Val<'_>]) -> String {
        format(text, values, &mut Budget::new(1_000_000)).unwrap_or_else(|error| error.to_string())
    }

    fn text(text: &'static str) -> Val<'static> {
        Val::Text(Text::from(text))
    }

    #[test]
    fn doubles_are_written_for_people() {
        for (clause, value, shown) in [
            ("%e", 1000.0, "1.000000\u{202f}×\u{202f}10⁰³"),
            ("%.6e", 1052.03291, "1.052033\u{202f}×\u{202f}10⁰³"),
            ("%e", 3.25, "3.250000\u{202f}×\u{202f}10⁰⁰"),
            ("%.2e", -0.001_234, "-1.23\u{202f}×\u{202f}10⁻⁰³"),
            ("%.0e", 2.5, "2\u{202f}×\u{202f}10⁰⁰"),
            ("%.1e", 1e300, "1.0\u{202f}×\u{202f}10³⁰⁰"),
            ("%.1e", 9.96, "1.0\u{202f}×\u{202f}10⁰¹"),
            ("%e", 0.0, "0.000000\u{202f}×\u{202f}10⁰⁰"),
            ("%.3f", 1.2345, "1.234"),
            ("%f", 3.25, "3.250000"),
            ("%.2f", 1_234_567.0, "1,234,567.00"),
            ("%.0f", 999.5, "1,000"),
            ("%.1f", -0.04, "-0.0"),
            ("%.1f", -0.0, "0.0"),
            ("%.1f", 999.0, "999.0"),
            ("%f", f64::NAN, "NaN"),
            ("%f", f64::INFINITY, "∞"),
            ("%e", f64::NEG_INFINITY, "-∞"),
        ] {
            assert_eq!(formatted(clause, &[Val::Double(value)]), shown, "{clause} {value}");
        }
        // A byte holds how many zeros are filled in, and no precision is refused.
        assert_eq!(formatted("%.257f", &[Val::Double(1.0)]), "1.0");
        assert_eq!(formatted("%.9223372036854775807f", &[Val::Double(0.5)]).len(), 2 + 255);
    }

    #[test]
    fn texts_of_doubles_are_doubles() {
        let all = [text("NaN"), text("Infinity"), text("-Infinity"), text("Infinity")];
        assert_eq!(formatted("%f %f %.1f %e", &all), "NaN ∞ -∞ ∞");
        let refused = |verb: &str, value| formatted(verb, &[value]);
        let fixed = "error during formatting: fixed-point clause can only be used on doubles, was given";
        assert_eq!(refused("%f", text("1.0")), format!("{fixed} string"));
        assert_eq!(refused("%f", Val::Int(1)), format!("{fixed} int"));
        assert_eq!(
            refused("%e", Val::UInt(1)),
            "error during formatting: scientific clause can only be used on doubles, was given uint"
        );
        assert_eq!(
            refused("%d", Val::Double(1.0)),
            "error during formatting: decimal clause can only be used on integers, was given double"
        );
    }

    #[test]
    fn integers_have_a_sign_in_every_base() {
        let negative = [Val::Int(-5), Val::Int(-11), Val::Int(-30), Val::Int(-30)];
        assert_eq!(formatted("%b %o %x %X", &negative), "-101 -13 -1e -1E");
        let unsigned = [Val::UInt(64), Val::UInt(65_535), Val::UInt(6000), Val::UInt(64)];
        assert_eq!(formatted("%b %o %X %d", &unsigned), "1000000 177777 1770 64");
        let bytes = Val::Bytes(b"byte string".as_slice().into());
        assert_eq!(formatted("%x %X", &[text("Hi!"), bytes]), "486921 6279746520737472696E67");
        assert_eq!(formatted("%b%%%b", &[Val::Bool(true), Val::Bool(false)]), "1%0");
    }

    #[test]
    fn clauses_that_are_none_are_named() {
        for (clause, problem) in [
            ("%d %d", "index 1 out of range"),
            ("%E", "could not parse formatting clause: unrecognized formatting clause \"E\""),
            ("%3d", "could not parse formatting clause: unrecognized formatting clause \"3\""),
            ("%", "unexpected end of string"),
            (
                "%.3",
                "could not parse formatting clause: error while parsing precision: could not find end of precision \
                 specifier",
            ),
        ] {
            assert_eq!(formatted(clause, &[Val::Int(1)]), problem, "{clause}");
        }
    }

    #[test]
    fn texts_are_quoted_as_go_does() {
        let mut out = String::new();
        quote("a\"\\\n\u{1}\u{7f}ü\u{301}\u{a0}\u{200b}\u{e0001}", &mut out);
        assert_eq!(out, "\"a\\\"\\\\\\n\\x01\\x7fü\u{301}\\u00a0\\u200b\\U000e0001\"");
    }
}
