//! What a call costs once its arguments and its result are known, in upstream's numbers: objects are refused by these, so
//! they are the same. They say little of the work that is done, which is paid apart from them ([`Budget::spend`]).
//! Source: `cel-go/interpreter/runtimecost.go`, `cel-go/ext/{lists,sets}.go`, `CallCost` in
//! `k8s.io/apiserver/pkg/cel/library/cost.go`.

use super::cost::{LIST_COST, PER_BYTE, PER_PATTERN_BYTE, scaled, selector_cost};
use super::kubernetes::format_pattern_size;
use super::{Budget, CelError, Val};

/// The cost of a call, a receiver first among its arguments. Whoever evaluated it has paid for looking at as much of the
/// arguments as this does.
pub(super) fn call(
    name: &str,
    method: bool,
    arguments: &[Val<'_>],
    result: &Val<'_>,
    budget: &mut Budget,
) -> Result<u64, CelError> {
    let of = |at: usize| arguments.get(at).map_or(1, size);
    let read = |at: usize, factor: f64| scaled(of(at), factor * PER_BYTE);
    Ok(match (name, arguments) {
        // Paid for with the question itself.
        ("check", _) => 0,
        ("fieldSelector" | "labelSelector", _) => selector_cost(of(1)),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", [list, ..]) => {
            traversal(list, budget)?
        }
        ("url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey", _) => {
            read(0, 1.0)
        }
        ("replace" | "split", _) => read(0, 2.0),
        ("join", _) => scaled(size(result), 2.0 * PER_BYTE),
        ("find" | "findAll", _) => matched(of(0), of(1)),
        ("matches", _) if method => matched(of(0), of(1)),
        ("ip", _) if method => 1,
        ("ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver", _) => {
            read(0, 1.0)
        }
        ("ip.isCanonical", _) => read(0, 2.0),
        ("containsIP" | "containsCIDR", [_, other]) => {
            let parsed = if matches!(other, Val::Text(_)) { read(1, 1.0) } else { 0 };
            let masked = if name == "containsCIDR" { read(0, 1.0) + 1 } else { 0 };
            read(0, 2.0) + masked + parsed
        }
        ("validate", [Val::Format(format), text]) => {
            let pattern = scaled(format_pattern_size(format), PER_PATTERN_BYTE);
            scaled(size(text).saturating_add(1), PER_BYTE).saturating_mul(pattern)
        }
        ("sets.contains" | "sets.intersects", _) => of(0).saturating_mul(of(1)).saturating_add(1),
        ("sets.equivalent", _) => of(0).saturating_mul(of(1)).saturating_mul(2).saturating_add(1),
        ("slice" | "lists.range", _) => size(result).saturating_add(1 + LIST_COST),
        ("reverse", [list]) if list.is_list() => size(result).saturating_add(1 + LIST_COST),
        ("flatten", _) => {
            let depth = match arguments {
                [_, Val::Int(depth)] => u64::try_from(*depth).unwrap_or(0),
                _ => 1,
            };
            of(0).saturating_mul(depth).saturating_add(1 + LIST_COST)
        }
        ("distinct" | "sort", [list]) => match list.walk().and_then(|mut walk| walk.next()) {
            Some((_, first)) => sorting(of(0), Some(&first)),
            None => sorting(0, None),
        },
        ("_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_", [one, other]) => compared(one, other),
        ("_+_", [Val::Text(_) | Val::Bytes(_), _]) => scaled(of(0).saturating_add(of(1)), PER_BYTE),
        ("startsWith" | "endsWith", _) => read(1, 1.0),
        ("contains", _) => read(0, 1.0).saturating_mul(read(1, 1.0)),
        ("bytes", [Val::Text(_)]) | ("string", [Val::Bytes(_)]) | ("strings.quote" | "format", _) => {
            read(0, 1.0)
        }
        ("@in", [_, list]) if list.is_list() => of(1),
        _ => 1,
    })
}

/// Each key compared with each.
pub(super) fn sorting(count: u64, first: Option<&Val<'_>>) -> u64 {
    let text = matches!(first, Some(Val::Text(_) | Val::Bytes(_)));
    let factor = if text { 2.0 + PER_BYTE } else { 2.0 };
    ((count.saturating_mul(count) as f64 * factor) as u64).saturating_add(1 + LIST_COST)
}

fn matched(text: u64, pattern: u64) -> u64 {
    scaled(text.saturating_add(1), PER_BYTE).saturating_mul(scaled(pattern, PER_PATTERN_BYTE))
}

/// As much as the smaller one is large; of a text that is longer than the other only as much is looked at.
fn compared(one: &Val<'_>, other: &Val<'_>) -> u64 {
    let least = match (one, other) {
        (Val::Text(one), Val::Text(other)) => {
            let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
            let letters = short.chars().count();
            long.chars().take(letters).count().min(letters) as u64
        }
        // What is not of the same type is not looked at.
        (Val::Text(text), other) | (other, Val::Text(text)) => {
            let other = fixed(other);
            text.chars().take(usize::try_from(other).unwrap_or(usize::MAX).min(10)).count() as u64
        }
        (Val::Ip(_) | Val::Cidr(..), _) => 1,
        (one, other) => fixed(one).min(fixed(other)),
    };
    scaled(least, PER_BYTE)
}

/// Source: `actualSize`.
fn size(value: &Val<'_>) -> u64 {
    match value {
        Val::Text(text) => text.chars().count() as u64,
        value => fixed(value),
    }
}

/// The size of what is no text.
fn fixed(value: &Val<'_>) -> u64 {
    match value {
        Val::Bytes(bytes) => bytes.len() as u64,
        Val::Made(_, fields) => fields.len() as u64,
        Val::Ip(address) => {
            if address.is_ipv4() {
                4
            } else {
                16
            }
        }
        Val::Cidr(_, length) => u64::from(*length).div_ceil(8),
        Val::Optional(Some(held)) => fixed(held),
        value => value.len().map_or(1, |length| length as u64),
    }
}

/// All that is in a value, as deep as it goes.
fn traversal(value: &Val<'_>, budget: &mut Budget) -> Result<u64, CelError> {
    budget.spend(1)?;
    Ok(match value {
        Val::Text(text) => (text.len() as f64 * PER_BYTE) as u64,
        Val::Bytes(bytes) => (bytes.len() as f64 * PER_BYTE) as u64,
        value => {
            let Some(parts) = value.walk() else { return Ok(1) };
            let is_list = value.is_list();
            let mut total: u64 = 0;
            for (key, part) in parts {
                let key = if is_list { 0 } else { traversal(&key, budget)? };
                total = total.saturating_add(key).saturating_add(traversal(&part, budget)?);
            }
            total
        }
    })
}
