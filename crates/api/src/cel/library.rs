//! The functions: CEL's own, and those for strings, lists, sets, regular expressions and optional values.
//! Source: `cel-go/ext`, `k8s.io/apiserver/pkg/cel/library`.

use base64::Engine as _;
use jiff::tz::TimeZone;

use super::convert::convert;
use super::eval::no_overload;
use super::operators::{compare, contains, equal, length, ordered};
use super::patterns::pattern;
use super::value::Text;
use super::{Budget, CelError, Val, kubernetes, told};

type Result<T> = std::result::Result<T, CelError>;

/// Libraries whose functions are called through their name.
pub(super) const PACKAGES: [&str; 9] =
    ["optional", "sets", "base64", "format", "math", "strings", "ip", "jsonpatch", "lists"];

/// A function without a receiver.
pub(super) fn function<'v>(name: &str, arguments: &[Val<'v>], budget: &mut Budget) -> Result<Val<'v>> {
    if let [value] = arguments
        && let Some(converted) = convert(name, value, budget)?
    {
        return Ok(converted);
    }
    match (name, arguments) {
        ("size", [value]) => return size(value, budget),
        ("matches", [Val::Text(text), Val::Text(regex)]) => return matches(text, regex, budget),
        ("optional.of", [value]) => return Val::some(value.clone()),
        ("optional.unwrap", [list]) => {
            if let Some(items) = list.items(budget)? {
                return unwrapped(&items, budget);
            }
        }
        ("optional.none", []) => return Ok(Val::Optional(None)),
        ("optional.ofNonZeroValue", [value]) => {
            return if is_zero(value) { Ok(Val::Optional(None)) } else { Val::some(value.clone()) };
        }
        ("base64.encode", [Val::Bytes(bytes)]) => {
            budget.spend_on(bytes.len().saturating_mul(4) / 3)?;
            return Ok(Val::text(&base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
        ("base64.decode", [Val::Text(text)]) => {
            budget.spend_on(text.len())?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(&**text);
            return bytes
                .map(|bytes| Val::Bytes(bytes.into()))
                .map_err(|error| CelError::fault(error.to_string()));
        }
        ("lists.range", [Val::Int(count)]) => {
            budget.spend_items(usize::try_from(*count).unwrap_or(0))?;
            return Val::list((0..*count).map(Val::Int).collect());
        }
        ("strings.quote", [Val::Text(text)]) => {
            budget.spend_on(text.len())?;
            budget.spend_on(text.escape_debug().count())?;
            return Ok(Val::Text(format!("{:?}", &**text).into()));
        }
        ("math.greatest" | "math.least", values) if !values.is_empty() => {
            let items = match values {
                [one] => one.items(budget)?.unwrap_or(values.into()),
                several => several.into(),
            };
            return extreme(name, &items, name == "math.greatest", budget);
        }
        _ => {}
    }
    if let (Some(name), [one, other]) = (name.strip_prefix("sets."), arguments) {
        return sets(name, one, other, budget);
    }
    match kubernetes::function(name, arguments, budget)? {
        Some(value) => Ok(value),
        None => Err(no_overload(name, arguments)),
    }
}

/// A function of a receiver.
pub(super) fn method<'v>(
    name: &str,
    value: &Val<'v>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Val<'v>> {
    let found = match value {
        Val::Text(text) => text_method(name, text, arguments, budget)?,
        Val::List(_) | Val::Json(serde_json::Value::Array(_), _) => {
            list_method(name, value, arguments, budget)?
        }
        Val::Optional(held) => optional_method(name, held.as_ref().map(|held| &***held), arguments)?,
        Val::Time(_) | Val::Duration(_) => time_method(name, value, arguments, budget)?,
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    match (name, arguments) {
        ("size", []) => return size(value, budget),
        // What is no list includes what it is.
        ("includes", [other]) => return equal(value, other, budget).map(Val::Bool),
        _ => {}
    }
    match kubernetes::method(name, value, arguments, budget)? {
        Some(value) => Ok(value),
        None => {
            let all: Vec<Val<'v>> = std::iter::once(value.clone()).chain(arguments.iter().cloned()).collect();
            Err(no_overload(name, &all))
        }
    }
}

fn count<'v>(length: usize) -> Val<'v> {
    Val::Int(i64::try_from(length).unwrap_or(i64::MAX))
}

fn size<'v>(value: &Val<'v>, budget: &mut Budget) -> Result<Val<'v>> {
    Ok(count(match value {
        Val::Text(text) => {
            budget.spend_on(text.len())?;
            text.chars().count()
        }
        Val::Bytes(bytes) => bytes.len(),
        other => other.len().ok_or_else(|| no_overload("size", std::slice::from_ref(other)))?,
    }))
}

/// Whether a value is its type's zero.
fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null => true,
        Val::Bool(value) => !value,
        Val::Int(value) | Val::Duration(value) => *value == 0,
        Val::UInt(value) => *value == 0,
        Val::Double(value) => *value == 0.0,
        Val::Text(_) | Val::Bytes(_) => length(value) == 0,
        _ => value.len() == Some(0),
    }
}

fn matches<'v>(text: &str, source: &str, budget: &mut Budget) -> Result<Val<'v>> {
    Ok(Val::Bool(pattern(text, source, budget)?.is_match(text)))
}

fn text_method<'v>(
    name: &str,
    text: &Text<'v>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    let value = match (name, arguments) {
        ("matches", [Val::Text(source)]) => return matches(text, source, budget).map(Some),
        // Source: cel-go looks at as many letters as the part has.
        ("startsWith" | "endsWith", [Val::Text(part)]) => {
            budget.spend_on(part.len())?;
            Val::Bool(if name == "startsWith" { text.starts_with(&**part) } else { text.ends_with(&**part) })
        }
        ("find", [Val::Text(source)]) => {
            let found = pattern(text, source, budget)?.find(text).map_or("", |found| found.as_str());
            budget.spend_on(found.len())?;
            Val::text(found)
        }
        ("findAll", [Val::Text(source), rest @ ..]) => {
            let mut found = Vec::new();
            for part in pattern(text, source, budget)?.find_iter(text).take(limit(rest)) {
                budget.spend_items(1)?;
                budget.spend_on(part.len())?;
                found.push(Val::text(part.as_str()));
            }
            Val::list(found)?
        }
        ("indexOf" | "lastIndexOf", [Val::Text(part), from @ ..]) => {
            budget.spend_on(text.len())?;
            budget.spend_on(part.len())?;
            index_of(name, text, part, from)?
        }
        ("contains", [Val::Text(part)]) => {
            budget.spend_on(text.len())?;
            budget.spend_on(part.len())?;
            Val::Bool(text.contains(&**part))
        }
        ("split", [Val::Text(by), rest @ ..]) => split(text, by, limit(rest), budget)?,
        ("replace", [Val::Text(from), Val::Text(to), rest @ ..]) => {
            budget.spend_on(text.len())?;
            let found =
                if from.is_empty() { text.chars().count() + 1 } else { text.matches(&**from).count() };
            let times = limit(rest);
            budget.spend_on(text.len().saturating_add(found.min(times).saturating_mul(to.len())))?;
            Val::Text(text.replacen(&**from, to, times).into())
        }
        ("format", [list]) => {
            let Some(values) = list.items(budget)? else { return Ok(None) };
            Val::Text(super::format::format(text, &values, budget)?.into())
        }
        ("charAt" | "lowerAscii" | "upperAscii" | "trim" | "reverse" | "substring", arguments) => {
            budget.spend_on(text.len())?;
            return part_of(name, text, arguments);
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// How many there may be at most: all, where nothing or less than nothing is said.
fn limit(said: &[Val<'_>]) -> usize {
    match said {
        [Val::Int(limit)] => usize::try_from(*limit).unwrap_or(usize::MAX),
        _ => usize::MAX,
    }
}

/// Functions that make a text of at most the same length.
fn part_of<'v>(name: &str, text: &str, arguments: &[Val<'v>]) -> Result<Option<Val<'v>>> {
    let wrong = |at: i64| CelError::fault(format!("index out of range: {at}"));
    Ok(Some(match (name, arguments) {
        ("charAt", [Val::Int(at)]) => {
            let from = byte_of(text, *at).ok_or_else(|| wrong(*at))?;
            Val::Text(text[from..].chars().next().map(String::from).unwrap_or_default().into())
        }
        ("lowerAscii", []) => Val::Text(text.to_ascii_lowercase().into()),
        ("upperAscii", []) => Val::Text(text.to_ascii_uppercase().into()),
        ("trim", []) => Val::text(text.trim()),
        ("reverse", []) => Val::Text(text.chars().rev().collect::<String>().into()),
        ("substring", [Val::Int(from), rest @ ..]) => {
            let to = match rest {
                [Val::Int(to)] => byte_of(text, *to),
                _ => Some(text.len()),
            };
            let part = byte_of(text, *from).zip(to).and_then(|(from, to)| text.get(from..to));
            Val::text(part.ok_or_else(|| wrong(*from))?)
        }
        _ => return Ok(None),
    }))
}

/// Where a letter begins, or the text ends.
fn byte_of(text: &str, letter: i64) -> Option<usize> {
    let letter = usize::try_from(letter).ok()?;
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(letter)
}

fn index_of<'v>(name: &str, text: &str, part: &str, from: &[Val<'v>]) -> Result<Val<'v>> {
    let from = match from {
        [] => None,
        [Val::Int(from)] => {
            Some(byte_of(text, *from).ok_or_else(|| CelError::fault(format!("index out of range: {from}")))?)
        }
        other => return Err(no_overload(name, other)),
    };
    let found = if name == "indexOf" {
        let from = from.unwrap_or(0);
        text[from..].find(part).map(|at| from + at)
    } else {
        // The last that begins no later.
        let end = from.map_or(text.len(), |from| text.floor_char_boundary(from.saturating_add(part.len())));
        text[..end].rfind(part)
    };
    Ok(found.map_or(Val::Int(-1), |at| count(text[..at].chars().count())))
}

fn split<'v>(text: &str, by: &str, limit: usize, budget: &mut Budget) -> Result<Val<'v>> {
    budget.spend_on(text.len())?;
    let mut parts = Vec::new();
    if limit == 0 {
        return Val::list(parts);
    }
    let mut rest = text;
    loop {
        let last = parts.len() + 1 == limit;
        let found = match rest.chars().next() {
            _ if last => None,
            // Without a separator each letter is a part.
            Some(letter) if by.is_empty() && letter.len_utf8() < rest.len() => Some(letter.len_utf8()),
            _ if by.is_empty() => None,
            _ => rest.find(by),
        };
        let (part, after) = match found {
            Some(at) => (&rest[..at], Some(&rest[at + by.len()..])),
            None => (rest, None),
        };
        if part.is_empty() && by.is_empty() {
            break;
        }
        budget.spend_items(1)?;
        budget.spend_on(part.len())?;
        parts.push(Val::text(part));
        match after {
            Some(after) => rest = after,
            None => break,
        }
    }
    Val::list(parts)
}

fn list_method<'v>(
    name: &str,
    value: &Val<'v>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    // Two look at one item only.
    let one = match (name, arguments) {
        ("first", []) => Some(Val::Int(0)),
        ("last", []) => Some(count(value.len().unwrap_or(0).wrapping_sub(1))),
        ("size", []) => return Ok(None),
        _ => None,
    };
    if let Some(place) = one {
        return value.at(&place, budget)?.map_or(Ok(Val::Optional(None)), Val::some).map(Some);
    }
    let Some(items) = value.items(budget)? else { return Ok(None) };
    budget.spend(items.len() as u64)?;
    let value = match (name, arguments) {
        ("join", rest) => joined(&items, rest, budget)?,
        ("isSorted", []) => {
            let mut sorted = true;
            for pair in items.windows(2) {
                let order = ordered(&pair[0], &pair[1], budget)?.ok_or_else(|| no_overload(name, &[]))?;
                sorted = sorted && order.is_le();
            }
            Val::Bool(sorted)
        }
        ("sum", []) => {
            let mut total = items.first().cloned().unwrap_or(Val::Int(0));
            for item in items.iter().skip(1) {
                let pair = [total, item.clone()];
                let sum = super::operators::apply(super::operators::op::ADD, &pair, budget)?;
                total = sum.ok_or_else(|| no_overload(name, &pair))?;
            }
            total
        }
        ("min" | "max", []) => {
            if items.is_empty() {
                return Err(CelError::fault(format!("{name} called on empty list")));
            }
            extreme(name, &items, name == "max", budget)?
        }
        ("indexOf" | "lastIndexOf", [wanted]) => {
            let mut found = Val::Int(-1);
            for (at, item) in items.iter().enumerate() {
                if equal(item, wanted, budget)? {
                    found = count(at);
                    if name == "indexOf" {
                        break;
                    }
                }
            }
            found
        }
        ("flatten", []) => flattened(&items, 1, budget)?,
        ("flatten", [Val::Int(depth)]) if *depth >= 0 => flattened(&items, *depth, budget)?,
        ("flatten", [Val::Int(_)]) => return Err(CelError::fault("level must be non-negative")),
        ("includes", [item]) => Val::Bool(contains(value, item, budget)?),
        ("slice", [Val::Int(from), Val::Int(to)]) => {
            let part = usize::try_from(*from).ok().zip(usize::try_from(*to).ok());
            let part = part.and_then(|(from, to)| items.get(from..to));
            let wrong =
                || CelError::fault(format!("cannot slice({from}, {to}), list is length {}", items.len()));
            let part = part.ok_or_else(wrong)?;
            budget.spend_items(part.len())?;
            Val::list(part.to_vec())?
        }
        ("reverse", []) => {
            budget.spend_items(items.len())?;
            Val::list(items.iter().rev().cloned().collect())?
        }
        ("distinct", []) => {
            let mut kept: Vec<Val<'v>> = Vec::new();
            for item in items.iter() {
                let mut known = false;
                for one in &kept {
                    known = known || equal(one, item, budget)?;
                }
                if !known {
                    budget.spend_items(1)?;
                    kept.push(item.clone());
                }
            }
            Val::list(kept)?
        }
        ("sort", []) => sorted(&items, &items, budget)?,
        ("unwrapOpt", []) => unwrapped(&items, budget)?,
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn joined<'v>(items: &[Val<'v>], by: &[Val<'v>], budget: &mut Budget) -> Result<Val<'v>> {
    let by = match by {
        [Val::Text(by)] => &**by,
        _ => "",
    };
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let Val::Text(text) = item else { return Err(no_overload("join", std::slice::from_ref(item))) };
        budget.spend_on(text.len() + by.len())?;
        parts.push(&**text);
    }
    Ok(Val::Text(parts.join(by).into()))
}

/// What the optionals of a list hold.
fn unwrapped<'v>(items: &[Val<'v>], budget: &mut Budget) -> Result<Val<'v>> {
    budget.spend_items(items.len())?;
    let mut held = Vec::new();
    for item in items {
        let Val::Optional(inside) = item else {
            return Err(CelError::fault(format!("value of type {} is not optional", item.type_name())));
        };
        held.extend(inside.as_ref().map(|inside| Val::clone(inside)));
    }
    Val::list(held)
}

/// Items in the order of their keys. Each key is compared with about as many others as the list has binary digits in its
/// length.
pub(super) fn sorted<'v>(items: &[Val<'v>], keys: &[Val<'v>], budget: &mut Budget) -> Result<Val<'v>> {
    budget.spend_items(items.len())?;
    let each = u64::from(keys.len().max(1).ilog2()) + 1;
    let long: u64 = keys.iter().map(|key| 1 + length(key) as u64 / 10).sum();
    budget.spend(long.saturating_mul(each))?;
    let Some(first) = keys.first() else { return Val::list(items.to_vec()) };
    if compare(first, first).is_none() {
        return Err(CelError::fault("list elements must be comparable"));
    }
    let kind = std::mem::discriminant(first);
    // Values without an order among them make no sorted list.
    if !keys.iter().all(|key| std::mem::discriminant(key) == kind && compare(key, key).is_some()) {
        return Err(CelError::fault("list elements must have the same type"));
    }
    let mut order: Vec<(&Val<'v>, &Val<'v>)> = keys.iter().zip(items).collect();
    order.sort_by(|(one, _), (other, _)| compare(one, other).unwrap_or(std::cmp::Ordering::Equal));
    Val::list(order.into_iter().map(|(_, item)| item.clone()).collect())
}

/// A list with the lists in it opened, so many levels deep.
fn flattened<'v>(items: &[Val<'v>], depth: i64, budget: &mut Budget) -> Result<Val<'v>> {
    let mut out = Vec::new();
    for item in items {
        flatten(item.clone(), depth, &mut out, budget)?;
    }
    Val::list(out)
}

/// Recurses as deep as a value is nested, which is bounded for what was made and for JSON.
fn flatten<'v>(item: Val<'v>, depth: i64, out: &mut Vec<Val<'v>>, budget: &mut Budget) -> Result<()> {
    if depth <= 0 || !item.is_list() {
        budget.spend_items(1)?;
        out.push(item);
        return Ok(());
    }
    budget.spend(1)?;
    item.walk()
        .into_iter()
        .flatten()
        .try_for_each(|(_, inner)| flatten(inner.paid(budget)?, depth - 1, out, budget))
}

fn extreme<'v>(name: &str, items: &[Val<'v>], most: bool, budget: &mut Budget) -> Result<Val<'v>> {
    let mut best: Option<&Val<'v>> = None;
    for item in items {
        budget.spend(1)?;
        let order = match best {
            None => None,
            Some(best) => {
                let order = ordered(item, best, budget)?;
                Some(order.ok_or_else(|| no_overload(name, &[item.clone(), best.clone()]))?)
            }
        };
        if order.is_none_or(|order| if most { order.is_gt() } else { order.is_lt() }) {
            best = Some(item);
        }
    }
    best.cloned().ok_or_else(|| no_overload(name, &[]))
}

fn sets<'v>(name: &str, one: &Val<'v>, other: &Val<'v>, budget: &mut Budget) -> Result<Val<'v>> {
    let (Some(items), Some(others)) = (one.items(budget)?, other.items(budget)?) else {
        return Err(no_overload(&format!("sets.{name}"), &[one.clone(), other.clone()]));
    };
    let mut all = |items: &[Val<'v>], range: &Val<'v>| -> Result<usize> {
        let mut held = 0;
        for item in items {
            held += usize::from(contains(range, item, budget)?);
        }
        Ok(held)
    };
    Ok(Val::Bool(match name {
        "contains" => all(&others, one)? == others.len(),
        "intersects" => all(&others, one)? > 0,
        "equivalent" => all(&others, one)? == others.len() && all(&items, other)? == items.len(),
        _ => return Err(no_overload(&format!("sets.{name}"), &[one.clone(), other.clone()])),
    }))
}

fn optional_method<'v>(name: &str, held: Option<&Val<'v>>, arguments: &[Val<'v>]) -> Result<Option<Val<'v>>> {
    Ok(Some(match (name, arguments, held) {
        ("hasValue", [], held) => Val::Bool(held.is_some()),
        ("value", [], Some(held)) => held.clone(),
        ("value", [], None) => return Err(CelError::fault("optional.none() dereference")),
        _ => return Ok(None),
    }))
}

/// What it costs to look for a time zone.
const ZONE_COST: u64 = 50;

fn time_method<'v>(
    name: &str,
    value: &Val<'v>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    if let Val::Duration(nanoseconds) = value {
        let unit = match name {
            "getHours" => 3_600_000_000_000,
            "getMinutes" => 60_000_000_000,
            "getSeconds" => 1_000_000_000,
            "getMilliseconds" => 1_000_000,
            _ => return Ok(None),
        };
        return Ok(Some(Val::Int(nanoseconds / unit)));
    }
    let Val::Time(time) = value else { return Ok(None) };
    let zone = match arguments {
        [] => TimeZone::UTC,
        [Val::Text(name)] => {
            budget.spend(ZONE_COST + name.len() as u64 / 10)?;
            TimeZone::get(name).map_err(|_| CelError::fault(format!("unknown time zone {}", told(name))))?
        }
        _ => return Ok(None),
    };
    let local = time.to_zoned(zone);
    let value = match name {
        "getFullYear" => i64::from(local.year()),
        "getMonth" => i64::from(local.month()) - 1,
        "getDate" => i64::from(local.day()),
        "getDayOfMonth" => i64::from(local.day()) - 1,
        "getDayOfYear" => i64::from(local.day_of_year()) - 1,
        "getDayOfWeek" => i64::from(local.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(local.hour()),
        "getMinutes" => i64::from(local.minute()),
        "getSeconds" => i64::from(local.second()),
        "getMilliseconds" => i64::from(local.millisecond()),
        _ => return Ok(None),
    };
    Ok(Some(Val::Int(value)))
}
