//! Quantities: exact decimal and binary amounts such as `100m`, `1.5Gi`, `1e3`.
//! Source: `k8s.io/apimachinery/pkg/api/resource`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The scale that values are kept in: upstream caps precision at nano.
const NANO: i128 = 1_000_000_000;
/// The largest amount that is read: more than 2^63 - 1 units become that many, as upstream.
const NANOS_MAX: i128 = i64::MAX as i128 * NANO;

/// How a quantity is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `k`, `M`, `m`, ….
    DecimalSi,
    /// `Ki`, `Mi`, ….
    BinarySi,
    /// `e3`, ….
    DecimalExponent,
}

/// An amount in billionths, with the format that it was written in.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity; the message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

/// Decimal suffixes with their power of ten.
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// Binary suffixes with their power of 1024.
const BINARY: [(&str, u32); 6] = [("Ki", 1), ("Mi", 2), ("Gi", 3), ("Ti", 4), ("Pi", 5), ("Ei", 6)];

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };
    /// One unit.
    pub const ONE: Self = Self { nanos: NANO, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    /// A number of thousandths: `1500` is `1500m`.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// The amount in whole units, rounded up (away from zero), as upstream's `Value`.
    pub fn value(&self) -> i64 {
        clamp(round_away(self.nanos, NANO))
    }

    /// The same, however large it is.
    pub fn whole(&self) -> i128 {
        round_away(self.nanos, NANO)
    }

    /// The amount in thousandths, rounded up (away from zero), as upstream's `MilliValue`.
    pub fn milli_value(&self) -> i64 {
        clamp(round_away(self.nanos, NANO / 1000))
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The sum, in this quantity's format; nothing takes the other's.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), format: self.format_with(other) }
    }

    /// The difference, in this quantity's format; nothing takes the other's.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), format: self.format_with(other) }
    }

    fn format_with(self, other: Self) -> Format {
        if self.is_zero() { other.format } else { self.format }
    }

    /// Whether it is more than `factor` times `other`, by magnitude.
    pub fn exceeds(self, other: Self, factor: Self) -> bool {
        let (own, other) = (self.nanos.unsigned_abs(), other.nanos.unsigned_abs());
        let factor = factor.nanos.unsigned_abs();
        match (own.checked_mul(NANO.unsigned_abs()), other.checked_mul(factor)) {
            (Some(own), Some(product)) => own > product,
            // Too large to be told apart to the last digit.
            _ => own as f64 > other as f64 * (factor as f64 / NANO as f64),
        }
    }

    /// How often `other`, which is not zero, goes into it, by magnitude.
    pub fn ratio(self, other: Self) -> f64 {
        self.nanos.unsigned_abs() as f64 / other.nanos.unsigned_abs() as f64
    }
}

fn round_away(nanos: i128, unit: i128) -> i128 {
    let whole = nanos / unit;
    if nanos % unit == 0 { whole } else { whole + nanos.signum() }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, suffix) = rest.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError);
        }
        let (scale, format) = suffix_scale(suffix)?;
        let nanos = scaled(whole, 0, scale).saturating_add(scaled(fraction, fraction.len(), scale));
        let mut nanos = nanos.min(NANOS_MAX);
        if negative {
            nanos = -nanos;
        }
        Ok(Self { nanos, format })
    }
}

/// What a suffix multiplies by.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Kibi(u32),
}

fn suffix_scale(suffix: &str) -> Result<(Scale, Format), ParseError> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Scale::Kibi(*power), Format::BinarySi));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Scale::Ten(*power), Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let power: i32 = exponent.parse().map_err(|_| ParseError)?;
    Ok((Scale::Ten(power), Format::DecimalExponent))
}

/// `digits` with the last `places` behind the point, times the scale, in billionths; rounded up, saturating.
fn scaled(digits: &str, places: usize, scale: Scale) -> i128 {
    let Some(digits) = Some(digits.trim_start_matches('0')).filter(|digits| !digits.is_empty()) else {
        return 0;
    };
    // Whatever has more digits than i128 holds is beyond any amount: saturate.
    let (value, places) = match digits.parse::<i128>() {
        Ok(value) => (value, places),
        Err(_) if places == 0 => return i128::MAX / 2,
        Err(_) => (digits[..30].parse().unwrap_or(0), places.saturating_sub(digits.len() - 30)),
    };
    let places = i32::try_from(places).unwrap_or(i32::MAX);
    let (value, power) = match scale {
        Scale::Ten(power) => (value, power.saturating_add(9).saturating_sub(places)),
        Scale::Kibi(power) => (value.saturating_mul(1024_i128.pow(power)), 9_i32.saturating_sub(places)),
    };
    match u32::try_from(power) {
        Ok(up) => 10_i128
            .checked_pow(up)
            .map_or(i128::MAX / 2, |factor| value.saturating_mul(factor).min(i128::MAX / 2)),
        Err(_) => match 10_i128.checked_pow(power.unsigned_abs()) {
            Some(divisor) => round_away(value, divisor),
            None => 1,
        },
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary =
            self.format == Format::BinarySi && self.nanos % NANO == 0 && (self.nanos / NANO).abs() >= 1024;
        if binary {
            let units = self.nanos / NANO;
            for (name, power) in BINARY.iter().rev() {
                let factor = 1024_i128.pow(*power);
                if units % factor == 0 {
                    return write!(f, "{}{name}", units / factor);
                }
            }
            return write!(f, "{units}");
        }
        for (name, power) in DECIMAL.iter().rev() {
            let factor = 10_i128.pow(u32::try_from(power + 9).unwrap_or(0));
            if self.nanos % factor == 0 {
                let amount = self.nanos / factor;
                return match (self.format, power) {
                    (Format::DecimalExponent, 0) => write!(f, "{amount}"),
                    (Format::DecimalExponent, power) => write!(f, "{amount}e{power}"),
                    _ => write!(f, "{amount}{name}"),
                };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn canonical_forms_are_upstreams() {
        for (given, wanted) in [
            ("0", "0"),
            ("100m", "100m"),
            ("0.5", "500m"),
            ("1.0", "1"),
            ("1000", "1k"),
            ("1024Ki", "1Mi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1e3"),
            ("0.1n", "1n"),
            ("128974848", "128974848"),
            ("2000m", "2"),
            ("-5", "-5"),
            ("100Mi", "100Mi"),
            ("1Ki", "1Ki"),
            ("512Ki", "512Ki"),
            ("1000Ki", "1000Ki"),
        ] {
            assert_eq!(canonical(given), wanted, "{given}");
        }
    }

    #[test]
    fn values_round_up() {
        let quantity: Quantity = "100m".parse().unwrap();
        assert_eq!((quantity.value(), quantity.milli_value()), (1, 100));
        assert_eq!("1Gi".parse::<Quantity>().unwrap().value(), 1 << 30);
        assert_eq!("1u".parse::<Quantity>().unwrap().milli_value(), 1);
        assert!("1500m".parse::<Quantity>().unwrap() > "1".parse().unwrap());
    }

    #[test]
    fn products_and_ratios_are_exact_where_they_fit() {
        let quantity = |text: &str| text.parse::<Quantity>().unwrap();
        assert!(!quantity("400m").exceeds(quantity("200m"), quantity("2")));
        assert!(quantity("401m").exceeds(quantity("200m"), quantity("2")));
        assert!(!quantity("8Ei").exceeds(quantity("4Ei"), quantity("3")));
        assert!((quantity("1Gi").ratio(quantity("512Mi")) - 2.0).abs() < f64::EPSILON);
        assert_eq!(Quantity::ZERO.plus(quantity("1Gi")).to_string(), "1Gi");
    }

    #[test]
    fn nonsense_and_giants_are_survived() {
        for text in ["", "-", "1.2.3", "abc", "1Zi", "1e", "é", "1 Gi", "."] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        assert_eq!("9".repeat(500).parse::<Quantity>().unwrap().value(), i64::MAX);
        assert_eq!("1e99999".parse::<Quantity>().unwrap().value(), i64::MAX);
        assert_eq!(canonical("2.15e44"), i64::MAX.to_string());
        assert_eq!("1e-99999".parse::<Quantity>().unwrap().value(), 1);
        assert!(format!("0.{}", "1".repeat(500)).parse::<Quantity>().is_ok());
    }
}
