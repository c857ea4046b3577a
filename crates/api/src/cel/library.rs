//! The functions: CEL's own, and those for strings, lists, sets, regular expressions and optional values.
//! Source: `cel-go/ext`, `k8s.io/apiserver/pkg/cel/library`.

use std::sync::Arc;

use base64::Engine as _;
use jiff::tz::TimeZone;

use super::convert::{convert, text_of};
use super::eval::no_overload;
use super::operators::{compare, contains, equal};
use super::{Budget, CelError, Val, kubernetes};
use crate::custom::pattern;

type Result<T> = std::result::Result<T, CelError>;

/// Libraries whose functions are called through their name.
pub(super) const PACKAGES: [&str; 9] =
    ["optional", "sets", "base64", "format", "math", "strings", "ip", "jsonpatch", "lists"];

/// The longest text that a function makes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// A function without a receiver.
pub(super) fn function<'v>(name: &str, arguments: &[Val<'v>], budget: &mut Budget) -> Result<Val<'v>> {
    if let [value] = arguments {
        if let Val::Text(text) = value {
            budget.spend_on(text.len())?;
        }
        if let Some(converted) = convert(name, value)? {
            return Ok(converted);
        }
    }
    match (name, arguments) {
        ("size", [value]) => return size(value, budget),
        ("matches", [Val::Text(text), Val::Text(regex)]) => return matches(text, regex, budget),
        ("optional.of", [value]) => return Ok(Val::some(value.clone())),
        ("optional.none", []) => return Ok(Val::Optional(None)),
        ("optional.ofNonZeroValue", [value]) => {
            return Ok(if is_zero(value, budget)? { Val::Optional(None) } else { Val::some(value.clone()) });
        }
        ("base64.encode", [Val::Bytes(bytes)]) => {
            return Ok(Val::text(&base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
        ("base64.decode", [Val::Text(text)]) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(&**text);
            return bytes
                .map(|bytes| Val::Bytes(bytes.into()))
                .map_err(|error| CelError::fault(error.to_string()));
        }
        ("lists.range", [Val::Int(count)]) => {
            budget.spend(u64::try_from(*count).unwrap_or(0))?;
            return Ok(Val::list((0..*count).map(Val::Int).collect()));
        }
        ("strings.quote", [Val::Text(text)]) => return Ok(Val::text(&format!("{text:?}"))),
        ("math.greatest" | "math.least", values) if !values.is_empty() => {
            let values = match values {
                [one] => one.items(budget)?.unwrap_or_else(|| Arc::new(vec![one.clone()])),
                several => Arc::new(several.to_vec()),
            };
            return extreme(name, &values, name == "math.greatest");
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
        Val::Optional(held) => optional_method(name, held.as_deref(), arguments)?,
        Val::Time(_) | Val::Duration(_) => time_method(name, value, arguments)?,
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    if name == "size" && arguments.is_empty() {
        return size(value, budget);
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
        Val::List(items) => items.len(),
        Val::Map(entries) => entries.len(),
        Val::Json(serde_json::Value::Array(items), _) => items.len(),
        Val::Json(serde_json::Value::Object(fields), _) => fields.len(),
        other => return Err(no_overload("size", std::slice::from_ref(other))),
    }))
}

/// Whether a value is its type's zero.
fn is_zero(value: &Val<'_>, budget: &mut Budget) -> Result<bool> {
    Ok(match value {
        Val::Null => true,
        Val::Bool(value) => !value,
        Val::Int(value) | Val::Duration(value) => *value == 0,
        Val::UInt(value) => *value == 0,
        Val::Double(value) => *value == 0.0,
        Val::Text(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_) | Val::Json(..) => {
            matches!(size(value, budget)?, Val::Int(0))
        }
        _ => false,
    })
}

/// A regular expression is compiled where it is used; its size is bounded, and its run is linear.
fn regex(text: &str, source: &str, budget: &mut Budget) -> Result<regex::Regex> {
    // Source: upstream's estimate, the length of the text by a quarter of the pattern's.
    budget.spend((1 + text.len() as u64 / 10) * (1 + source.len() as u64 / 4) + 50)?;
    pattern(source).map_err(|error| CelError::fault(format!("error parsing regexp: {error}")))
}

fn matches<'v>(text: &str, source: &str, budget: &mut Budget) -> Result<Val<'v>> {
    Ok(Val::Bool(regex(text, source, budget)?.is_match(text)))
}

fn text_method<'v>(
    name: &str,
    text: &Arc<str>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    budget.spend_on(text.len())?;
    let value = match (name, arguments) {
        ("startsWith", [Val::Text(part)]) => Val::Bool(text.starts_with(&**part)),
        ("endsWith", [Val::Text(part)]) => Val::Bool(text.ends_with(&**part)),
        ("contains", [Val::Text(part)]) => {
            budget.spend_on(part.len())?;
            Val::Bool(text.contains(&**part))
        }
        ("matches", [Val::Text(source)]) => matches(text, source, budget)?,
        ("find", [Val::Text(source)]) => {
            Val::text(regex(text, source, budget)?.find(text).map_or("", |found| found.as_str()))
        }
        ("findAll", [Val::Text(source), rest @ ..]) => {
            let limit = match rest {
                [Val::Int(limit)] if *limit >= 0 => usize::try_from(*limit).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            let regex = regex(text, source, budget)?;
            Val::list(regex.find_iter(text).take(limit).map(|found| Val::text(found.as_str())).collect())
        }
        ("charAt", [Val::Int(at)]) => {
            let letters: Vec<char> = text.chars().collect();
            match usize::try_from(*at).ok().filter(|at| *at <= letters.len()) {
                Some(at) => Val::text(&letters.get(at).map(char::to_string).unwrap_or_default()),
                None => return Err(CelError::fault(format!("index out of range: {at}"))),
            }
        }
        ("indexOf" | "lastIndexOf", [Val::Text(part), ..]) => index_of(name, text, part, arguments.get(1))?,
        ("lowerAscii", []) => Val::text(&text.to_ascii_lowercase()),
        ("upperAscii", []) => Val::text(&text.to_ascii_uppercase()),
        ("trim", []) => Val::text(text.trim()),
        ("reverse", []) => Val::text(&text.chars().rev().collect::<String>()),
        ("replace", [Val::Text(from), Val::Text(to), rest @ ..]) => {
            let times = match rest {
                [Val::Int(times)] => usize::try_from(*times).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            let found =
                if from.is_empty() { text.chars().count() + 1 } else { text.matches(&**from).count() };
            made(text.len() + found.min(times).saturating_mul(to.len()), budget)?;
            Val::text(&text.replacen(&**from, to, times))
        }
        ("split", [Val::Text(by), rest @ ..]) => {
            let limit = match rest {
                [Val::Int(limit)] => *limit,
                _ => -1,
            };
            Val::list(split(text, by, limit))
        }
        ("substring", [Val::Int(from), rest @ ..]) => {
            let letters: Vec<char> = text.chars().collect();
            let to = match rest {
                [Val::Int(to)] => *to,
                _ => letters.len() as i64,
            };
            let part = usize::try_from(*from).ok().zip(usize::try_from(to).ok());
            let part = part.and_then(|(from, to)| letters.get(from..to));
            let part = part.ok_or_else(|| CelError::fault(format!("index out of range: {from}")))?;
            Val::text(&part.iter().collect::<String>())
        }
        ("format", [list]) => {
            let Some(values) = list.items(budget)? else { return Ok(None) };
            Val::text(&format(text, &values, budget)?)
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// Pays for a text to be made, and refuses one that is too long.
fn made(bytes: usize, budget: &mut Budget) -> Result<()> {
    budget.spend_on(bytes)?;
    if bytes > TEXT_BYTES_MAX { Err(CelError::Cost) } else { Ok(()) }
}

fn index_of<'v>(name: &str, text: &str, part: &str, from: Option<&Val<'v>>) -> Result<Val<'v>> {
    let letters: Vec<char> = text.chars().collect();
    let wanted: Vec<char> = part.chars().collect();
    let last = letters.len().saturating_sub(wanted.len());
    let at = |at: usize| letters.get(at..at + wanted.len()) == Some(&wanted[..]);
    let from = match from {
        None => None,
        Some(Val::Int(from)) => {
            let from = usize::try_from(*from).ok().filter(|from| *from <= letters.len());
            Some(from.ok_or_else(|| CelError::fault("index out of range"))?)
        }
        Some(other) => return Err(no_overload(name, std::slice::from_ref(other))),
    };
    let found = if name == "indexOf" {
        (from.unwrap_or(0)..=last).find(|place| at(*place))
    } else {
        (0..=from.unwrap_or(last).min(last)).rev().find(|place| at(*place))
    };
    Ok(found.map_or(Val::Int(-1), count))
}

fn split<'v>(text: &str, by: &str, limit: i64) -> Vec<Val<'v>> {
    let limit = match limit {
        0 => return Vec::new(),
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    if by.is_empty() {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let cut = limit.saturating_sub(1).min(letters.len());
        let mut parts: Vec<Val<'v>> = letters[..cut].iter().map(|letter| Val::text(letter)).collect();
        if cut < letters.len() {
            parts.push(Val::text(&letters[cut..].concat()));
        }
        return parts;
    }
    text.splitn(limit, by).map(Val::text).collect()
}

/// `"%s has %d".format([…])`.
fn format(text: &str, values: &[Val<'_>], budget: &mut Budget) -> Result<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut precision = String::new();
        let verb = loop {
            match letters.next() {
                Some(letter) if letter == '.' || letter.is_ascii_digit() => precision.push(letter),
                Some(letter) => break letter,
                None => return Err(CelError::fault("unexpected end of format string")),
            }
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value =
            values.next().ok_or_else(|| CelError::fault("index out of range: not enough arguments"))?;
        let digits = precision.trim_start_matches('.').parse().unwrap_or(6_usize).min(100);
        let wrong = || CelError::fault(format!("could not format {} with %{verb}", value.type_name()));
        let part = match (verb, value) {
            ('s', value) => shown(value, budget)?,
            ('d', Val::Int(_) | Val::UInt(_)) => text_of(value).ok_or_else(wrong)?,
            ('f', Val::Double(value)) => format!("{value:.digits$}"),
            ('f', Val::Int(value)) => format!("{:.digits$}", *value as f64),
            ('e', Val::Double(value)) => format!("{value:.digits$e}"),
            ('x', Val::Int(value)) => format!("{value:x}"),
            ('X', Val::Int(value)) => format!("{value:X}"),
            ('x' | 'X', Val::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('o', Val::Int(value)) => format!("{value:o}"),
            ('b', Val::Int(value)) => format!("{value:b}"),
            ('b', Val::Bool(value)) => u8::from(*value).to_string(),
            _ => return Err(wrong()),
        };
        out.push_str(&part);
        made(out.len(), budget)?;
    }
    Ok(out)
}

/// A value as `%s` shows it.
fn shown(value: &Val<'_>, budget: &mut Budget) -> Result<String> {
    budget.spend(1)?;
    if let Some(items) = value.items(budget)? {
        let items: Vec<String> = items.iter().map(|item| shown(item, budget)).collect::<Result<_>>()?;
        return Ok(format!("[{}]", items.join(", ")));
    }
    if let Some(keys) = value.keys(budget)? {
        let mut entries = Vec::new();
        for key in &keys {
            let below = value.at(key)?.unwrap_or(Val::Null);
            entries.push(format!("{}: {}", shown(key, budget)?, shown(&below, budget)?));
        }
        return Ok(format!("{{{}}}", entries.join(", ")));
    }
    Ok(text_of(value)
        .unwrap_or_else(|| if matches!(value, Val::Null) { "null".into() } else { value.type_name().into() }))
}

fn list_method<'v>(
    name: &str,
    value: &Val<'v>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    let Some(items) = value.items(budget)? else { return Ok(None) };
    let value = match (name, arguments) {
        ("join", rest) => {
            let by = match rest {
                [Val::Text(by)] => by.clone(),
                _ => "".into(),
            };
            let mut parts = Vec::with_capacity(items.len());
            for item in items.iter() {
                let Val::Text(text) = item else { return Err(no_overload(name, std::slice::from_ref(item))) };
                budget.spend_on(text.len() + by.len())?;
                parts.push(&**text);
            }
            Val::text(&parts.join(&*by))
        }
        ("isSorted", []) => {
            let ordered = |pair: &[Val<'v>]| compare(&pair[0], &pair[1]).map(|order| order.is_le());
            let ordered: Option<Vec<bool>> = items.windows(2).map(ordered).collect();
            Val::Bool(ordered.ok_or_else(|| no_overload(name, &[]))?.into_iter().all(|ordered| ordered))
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
            extreme(name, &items, name == "max")?
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
        ("flatten", []) => Val::list(flat(&items, 1, budget)?),
        ("flatten", [Val::Int(depth)]) if *depth >= 0 => Val::list(flat(&items, *depth, budget)?),
        ("flatten", [Val::Int(_)]) => return Err(CelError::fault("level must be non-negative")),
        ("includes", [item]) => Val::Bool(contains(value, item, budget)?),
        ("first", []) => items.first().cloned().map_or(Val::Optional(None), Val::some),
        ("last", []) => items.last().cloned().map_or(Val::Optional(None), Val::some),
        ("slice", [Val::Int(from), Val::Int(to)]) => {
            let part = usize::try_from(*from).ok().zip(usize::try_from(*to).ok());
            let part = part.and_then(|(from, to)| items.get(from..to));
            let wrong =
                || CelError::fault(format!("cannot slice({from}, {to}), list is length {}", items.len()));
            Val::list(part.ok_or_else(wrong)?.to_vec())
        }
        ("reverse", []) => Val::list(items.iter().rev().cloned().collect()),
        ("distinct", []) => {
            let mut kept: Vec<Val<'v>> = Vec::new();
            for item in items.iter() {
                let mut known = false;
                for one in &kept {
                    known = known || equal(one, item, budget)?;
                }
                if !known {
                    kept.push(item.clone());
                }
            }
            Val::list(kept)
        }
        ("sort", []) => {
            budget.spend(items.len() as u64 * 4)?;
            let kind = items.first().map(std::mem::discriminant);
            let ordered =
                |item: &Val<'v>| Some(std::mem::discriminant(item)) == kind && compare(item, item).is_some();
            // Values without an order among them make no sorted list.
            if !items.iter().all(ordered) {
                return Err(CelError::fault("list elements must have the same type"));
            }
            let mut sorted = items.to_vec();
            sorted.sort_by(|one, other| compare(one, other).unwrap_or(std::cmp::Ordering::Equal));
            Val::list(sorted)
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// A list with the lists in it opened, so many levels deep.
fn flat<'v>(items: &[Val<'v>], depth: i64, budget: &mut Budget) -> Result<Vec<Val<'v>>> {
    let mut out = Vec::new();
    for item in items {
        match item.items(budget)? {
            // The depth of what can be opened is that of the expression and of JSON, both of which are bounded.
            Some(inner) if depth > 0 => out.extend(flat(&inner, depth - 1, budget)?),
            _ => out.push(item.clone()),
        }
    }
    Ok(out)
}

fn extreme<'v>(name: &str, items: &[Val<'v>], most: bool) -> Result<Val<'v>> {
    let mut best: Option<&Val<'v>> = None;
    for item in items {
        let order = match best {
            None => None,
            Some(best) => {
                Some(compare(item, best).ok_or_else(|| no_overload(name, &[item.clone(), best.clone()]))?)
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

fn time_method<'v>(name: &str, value: &Val<'v>, arguments: &[Val<'v>]) -> Result<Option<Val<'v>>> {
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
            TimeZone::get(name).map_err(|_| CelError::fault(format!("unknown time zone {name}")))?
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
