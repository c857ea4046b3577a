//! Operators: arithmetic that does not wrap, comparison across numbers, equality of everything.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};

use super::eval::no_overload;
use super::keyed::Listing;
use super::value::Key;
use super::{Budget, CelError, Val, told};

type Result<T> = std::result::Result<T, CelError>;

/// CEL's names of operators.
pub(super) mod op {
    pub(in crate::cel) const EQUALS: &str = "_==_";
    pub(in crate::cel) const NOT_EQUALS: &str = "_!=_";
    pub(in crate::cel) const LESS: &str = "_<_";
    pub(in crate::cel) const LESS_EQUALS: &str = "_<=_";
    pub(in crate::cel) const GREATER: &str = "_>_";
    pub(in crate::cel) const GREATER_EQUALS: &str = "_>=_";
    pub(in crate::cel) const ADD: &str = "_+_";
    pub(in crate::cel) const SUBSTRACT: &str = "_-_";
    pub(in crate::cel) const MULTIPLY: &str = "_*_";
    pub(in crate::cel) const DIVIDE: &str = "_/_";
    pub(in crate::cel) const MODULO: &str = "_%_";
    pub(in crate::cel) const LOGICAL_NOT: &str = "!_";
    pub(in crate::cel) const NEGATE: &str = "-_";
    pub(in crate::cel) const IN: &str = "@in";
}

/// The value of an operator; `None`: the name is no operator's.
pub(super) fn apply<'v>(name: &str, arguments: &[Val<'v>], budget: &mut Budget) -> Result<Option<Val<'v>>> {
    let value = match (name, arguments) {
        (op::EQUALS, [one, other]) => Val::Bool(equal(one, other, budget)?),
        (op::NOT_EQUALS, [one, other]) => Val::Bool(!equal(one, other, budget)?),
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [one, other]) => {
            let order = ordered(one, other, budget)?.ok_or_else(|| no_overload(name, arguments))?;
            Val::Bool(match name {
                op::LESS => order.is_lt(),
                op::LESS_EQUALS => order.is_le(),
                op::GREATER => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [one, other]) => {
            arithmetic(name, one, other, budget)?
        }
        (op::LOGICAL_NOT, [Val::Bool(value)]) => Val::Bool(!value),
        (op::NEGATE, [Val::Int(value)]) => Val::Int(value.checked_neg().ok_or_else(overflow)?),
        (op::NEGATE, [Val::Double(value)]) => Val::Double(-value),
        (op::NEGATE, [Val::Duration(value)]) => Val::Duration(value.checked_neg().ok_or_else(overflow)?),
        (op::IN, [item, range]) => Val::Bool(contains(range, item, budget)?),
        (op::LOGICAL_NOT | op::NEGATE, _) => return Err(no_overload(name, arguments)),
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// `value[index]`.
pub(super) fn index<'v>(value: &Val<'v>, index: &Val<'v>, budget: &mut Budget) -> Result<Val<'v>> {
    let missing = || match index {
        Val::Text(key) => CelError::fault(format!("no such key: {}", told(key))),
        Val::Int(at) => CelError::fault(format!("index out of bounds: {at}")),
        _ => CelError::fault("no such key"),
    };
    value.at(index, budget)?.ok_or_else(missing)
}

fn overflow() -> CelError {
    CelError::fault("return error for overflow")
}

/// Whether a list has an item or a map a key.
pub(super) fn contains<'v>(range: &Val<'v>, item: &Val<'v>, budget: &mut Budget) -> Result<bool> {
    if range.is_list() {
        for (_, one) in range.walk().into_iter().flatten() {
            if equal(&one.paid(budget)?, item, budget)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    match range {
        // What is under every other key is in no map.
        Val::Map(entries) => range.at(item, budget).and_then(|_| Ok(entries.contains_key(&Key::of(item)?))),
        Val::Json(..) => Ok(range.at(item, budget)?.is_some()),
        _ => Err(no_overload(op::IN, &[item.clone(), range.clone()])),
    }
}

/// Equality of lists and of maps, by what is in them.
fn equal_inside<'v>(one: &Val<'v>, other: &Val<'v>, budget: &mut Budget) -> Result<bool> {
    if let Some(listing) = Listing::of(one) {
        return listing.equal(one, other, budget);
    }
    if let (Val::Json(one, schema), Val::Json(other, same)) = (one, other)
        && std::ptr::eq(*one, *other)
        && schema.map(std::ptr::from_ref) == same.map(std::ptr::from_ref)
    {
        return Ok(true);
    }
    if one.len() != other.len() {
        return Ok(false);
    }
    for (key, value) in one.walk().into_iter().flatten() {
        let same = match other.at(&key, budget)? {
            Some(other) => equal(&value.paid(budget)?, &other, budget)?,
            None => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Equality: numbers across their types, lists and maps by what is in them; other types differ.
pub(super) fn equal<'v>(one: &Val<'v>, other: &Val<'v>, budget: &mut Budget) -> Result<bool> {
    budget.spend(1)?;
    if let (Some(_), Some(_)) = (one.len(), other.len()) {
        return if one.is_list() == other.is_list() { equal_inside(one, other, budget) } else { Ok(false) };
    }
    Ok(match (one, other) {
        (Val::Null, Val::Null) | (Val::Optional(None), Val::Optional(None)) => true,
        (Val::Bool(one), Val::Bool(other)) => one == other,
        (Val::Type(one), Val::Type(other)) => one == other,
        (Val::Url(one), Val::Url(other)) => {
            budget.spend_on(one.len().min(other.len()))?;
            one == other
        }
        (Val::Ip(one), Val::Ip(other)) => one == other,
        (Val::Cidr(one, length), Val::Cidr(other, other_length)) => one == other && length == other_length,
        (Val::Optional(Some(one)), Val::Optional(Some(other))) => equal(one, other, budget)?,
        (Val::Made(name, fields), Val::Made(other, others)) => {
            if name != other || fields.len() != others.len() {
                return Ok(false);
            }
            for ((name, one), (other_name, other)) in fields.iter().zip(others.iter()) {
                if name != other_name || !equal(one, other, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Val::Bool(_), _) => false,
        _ => ordered(one, other, budget)? == Some(Ordering::Equal),
    })
}

/// The order of two values, where there is one, as long as they are.
pub(super) fn ordered(one: &Val<'_>, other: &Val<'_>, budget: &mut Budget) -> Result<Option<Ordering>> {
    budget.spend(length(one).min(length(other)) as u64 / 10)?;
    Ok(compare(one, other))
}

/// How long it takes to look at a value that has no parts.
pub(super) fn length(value: &Val<'_>) -> usize {
    match value {
        Val::Text(text) | Val::Url(text) => text.len(),
        Val::Bytes(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The order of two values, where there is one.
pub(super) fn compare(one: &Val<'_>, other: &Val<'_>) -> Option<Ordering> {
    Some(match (one, other) {
        (Val::Int(one), Val::Int(other)) => one.cmp(other),
        (Val::UInt(one), Val::UInt(other)) => one.cmp(other),
        (Val::Int(one), Val::UInt(other)) => i128::from(*one).cmp(&i128::from(*other)),
        (Val::UInt(one), Val::Int(other)) => i128::from(*one).cmp(&i128::from(*other)),
        (Val::Double(_) | Val::Int(_) | Val::UInt(_), Val::Double(_) | Val::Int(_) | Val::UInt(_)) => {
            return number(one)?.partial_cmp(&number(other)?);
        }
        (Val::Text(one), Val::Text(other)) => one.cmp(other),
        (Val::Bytes(one), Val::Bytes(other)) => one.cmp(other),
        (Val::Bool(one), Val::Bool(other)) => one.cmp(other),
        (Val::Duration(one), Val::Duration(other)) => one.cmp(other),
        (Val::Time(one), Val::Time(other)) => one.cmp(other),
        (Val::Quantity(one), Val::Quantity(other)) => one.cmp(other),
        (Val::Semver(one), Val::Semver(other)) => one.order(other),
        _ => return None,
    })
}

fn number(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Int(value) => Some(*value as f64),
        Val::UInt(value) => Some(*value as f64),
        Val::Double(value) => Some(*value),
        _ => None,
    }
}

fn arithmetic<'v>(name: &str, one: &Val<'v>, other: &Val<'v>, budget: &mut Budget) -> Result<Val<'v>> {
    let wrong = || no_overload(name, &[one.clone(), other.clone()]);
    match (one, other) {
        (Val::Int(one), Val::Int(other)) => integer(name, *one, *other),
        (Val::UInt(one), Val::UInt(other)) => match name {
            op::ADD => one.checked_add(*other),
            op::SUBSTRACT => one.checked_sub(*other),
            op::MULTIPLY => one.checked_mul(*other),
            _ if *other == 0 => return Err(zero(name)),
            op::DIVIDE => one.checked_div(*other),
            _ => one.checked_rem(*other),
        }
        .map(Val::UInt)
        .ok_or_else(overflow),
        (Val::Double(_), Val::Int(_) | Val::Double(_)) | (Val::Int(_), Val::Double(_)) => {
            let (Some(one), Some(other)) = (number(one), number(other)) else { return Err(wrong()) };
            match name {
                op::ADD => Ok(Val::Double(one + other)),
                op::SUBSTRACT => Ok(Val::Double(one - other)),
                op::MULTIPLY => Ok(Val::Double(one * other)),
                op::DIVIDE => Ok(Val::Double(one / other)),
                _ => Err(wrong()),
            }
        }
        (Val::Text(one), Val::Text(other)) if name == op::ADD => {
            budget.spend_on(one.len() + other.len())?;
            Ok(Val::Text([&**one, other].concat().into()))
        }
        (Val::Bytes(one), Val::Bytes(other)) if name == op::ADD => {
            budget.spend_on(one.len() + other.len())?;
            Ok(Val::Bytes([&one[..], &other[..]].concat().into()))
        }
        (Val::Duration(one), Val::Duration(other)) => match name {
            op::ADD => one.checked_add(*other),
            op::SUBSTRACT => one.checked_sub(*other),
            _ => return Err(wrong()),
        }
        .map(Val::Duration)
        .ok_or_else(overflow),
        (Val::Time(time), Val::Duration(by)) if name == op::ADD => moved(*time, *by),
        (Val::Duration(by), Val::Time(time)) if name == op::ADD => moved(*time, *by),
        (Val::Time(time), Val::Duration(by)) if name == op::SUBSTRACT => moved(*time, by.saturating_neg()),
        (Val::Time(one), Val::Time(other)) if name == op::SUBSTRACT => {
            let between = one.duration_since(*other).as_nanos();
            i64::try_from(between).map(Val::Duration).map_err(|_| overflow())
        }
        _ => {
            if name != op::ADD || !one.is_list() || !other.is_list() {
                return Err(wrong());
            }
            if let Some(listing) = Listing::of(one) {
                return listing.joined(one, other, budget);
            }
            let mut items = Vec::new();
            for list in [one, other] {
                budget.spend_items(list.len().unwrap_or_default())?;
                for (_, item) in list.walk().into_iter().flatten() {
                    items.push(item.paid(budget)?);
                }
            }
            Val::list(items)
        }
    }
}

fn integer<'v>(name: &str, one: i64, other: i64) -> Result<Val<'v>> {
    match name {
        op::ADD => one.checked_add(other),
        op::SUBSTRACT => one.checked_sub(other),
        op::MULTIPLY => one.checked_mul(other),
        _ if other == 0 => return Err(zero(name)),
        op::DIVIDE => one.checked_div(other),
        _ => one.checked_rem(other),
    }
    .map(Val::Int)
    .ok_or_else(overflow)
}

fn zero(name: &str) -> CelError {
    CelError::fault(if name == op::DIVIDE { "division by zero" } else { "modulus by zero" })
}

fn moved<'v>(time: Timestamp, by: i64) -> Result<Val<'v>> {
    time.checked_add(SignedDuration::from_nanos(by)).map(Val::Time).map_err(|_| overflow())
}
