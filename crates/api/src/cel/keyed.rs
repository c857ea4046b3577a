//! Lists of which the order says nothing: sets (`x-kubernetes-list-type: set`), and lists whose items are told apart by
//! keys (`map`). What they are equal to and what `+` makes of them is decided by the list that stands on the left, also by
//! one that `+` has made. Source: `k8s.io/apiserver/pkg/cel/common/valuesunstructured.go` and `valuesreflect.go`.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::operators::equal;
use super::value::Text;
use super::{Budget, CelError, Val};
use crate::custom::Props;

type Result<T> = std::result::Result<T, CelError>;

/// What work an entry of an index is, and each further key: they take some tens of bytes.
const ENTRY_COST: u64 = 8;

/// What items are told apart by: values of one type only are the same.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Member<'v> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    /// By its bits.
    Double(u64),
    Text(Text<'v>),
    Bytes(Arc<[u8]>),
    Duration(i64),
    Time(Timestamp),
}

/// What an item is told apart by: itself or its keys; `None`: by nothing, so that it is like no other.
type Mark<'v> = Option<Vec<Member<'v>>>;

/// How the items of a list are told apart.
#[derive(Clone, Copy)]
pub(super) enum Listing<'v> {
    Set,
    Keyed(&'v [String]),
}

impl<'v> Listing<'v> {
    /// That of a list, if its order says nothing.
    pub(super) fn of(list: &Val<'v>) -> Option<Self> {
        let schema: &'v Props = list.list_schema()?;
        match schema.list_type.as_deref() {
            Some("set") => Some(Self::Set),
            Some("map") => Some(Self::Keyed(&schema.list_keys)),
            _ => None,
        }
    }

    fn mark(self, item: &Val<'v>, budget: &mut Budget) -> Result<Mark<'v>> {
        match self {
            Self::Set if item.len().is_some() => {
                Err(CelError::fault("listSet operations are only supported on lists of scalar values"))
            }
            Self::Set => {
                budget.spend(ENTRY_COST)?;
                Ok(member(item, budget)?.map(|member| vec![member]))
            }
            Self::Keyed(keys) => {
                budget.spend(ENTRY_COST * (1 + keys.len() as u64))?;
                if item.is_list() || item.len().is_none() {
                    return Ok(None);
                }
                let key = |key: &'v String| match item.at(&Val::Text(Text::Given(key)), budget)? {
                    None => Ok(Some(Member::Null)),
                    Some(value) => member(&value, budget),
                };
                keys.iter().map(key).collect()
            }
        }
    }

    /// Whether two lists hold the same, in whatever order.
    pub(super) fn equal(self, one: &Val<'v>, other: &Val<'v>, budget: &mut Budget) -> Result<bool> {
        if one.len() != other.len() {
            return Ok(false);
        }
        let (Some(items), Some(others)) = (one.items(budget)?, other.items(budget)?) else {
            return Ok(false);
        };
        // The place of each item, and whether the other list has it too. Of equal ones the last counts.
        let mut index = HashMap::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            if let Some(mark) = self.mark(item, budget)? {
                index.insert(mark, (place, false));
            }
        }
        for other in others.iter() {
            let mark = self.mark(other, budget)?;
            let Some((place, seen)) = mark.and_then(|mark| index.get_mut(&mark)) else { return Ok(false) };
            if matches!(self, Self::Keyed(_)) && !equal(&items[*place], other, budget)? {
                return Ok(false);
            }
            *seen = true;
        }
        Ok(index.values().all(|(_, seen)| *seen))
    }

    /// All of one list in its order, and what only the other has. Items that have the same keys are those of the other.
    pub(super) fn joined(self, one: &Val<'v>, other: &Val<'v>, budget: &mut Budget) -> Result<Val<'v>> {
        let mut index = HashMap::new();
        let mut joined: Vec<Val<'v>> = Vec::new();
        for (place, item) in one.walk().into_iter().flatten().map(|(_, item)| item).enumerate() {
            budget.spend_items(1)?;
            let item = item.paid(budget)?;
            if let Some(mark) = self.mark(&item, budget)? {
                index.insert(mark, place);
            }
            joined.push(item);
        }
        for (_, item) in other.walk().into_iter().flatten() {
            budget.spend_items(1)?;
            let item = item.paid(budget)?;
            let mark = self.mark(&item, budget)?;
            match (mark.as_ref().and_then(|mark| index.get(mark)), self) {
                (Some(_), Self::Set) => {}
                (Some(place), Self::Keyed(_)) => joined[*place] = item,
                (None, _) => {
                    // Those of a map list that are new are not told apart from each other.
                    if let (Some(mark), Self::Set) = (mark, self) {
                        index.insert(mark, joined.len());
                    }
                    joined.push(item);
                }
            }
        }
        Val::listed(joined, one.list_schema())
    }
}

/// A value that items are told apart by, which has to be read for it.
fn member<'v>(value: &Val<'v>, budget: &mut Budget) -> Result<Option<Member<'v>>> {
    budget.spend_on(super::operators::length(value))?;
    Ok(Some(match value {
        Val::Null => Member::Null,
        Val::Bool(value) => Member::Bool(*value),
        Val::Int(value) => Member::Int(*value),
        Val::UInt(value) => Member::UInt(*value),
        // There are two zeros, and they are equal.
        Val::Double(value) => Member::Double((value + 0.0).to_bits()),
        Val::Text(text) => Member::Text(text.clone()),
        Val::Bytes(bytes) => Member::Bytes(bytes.clone()),
        Val::Duration(value) => Member::Duration(*value),
        Val::Time(value) => Member::Time(*value),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::*;
    use crate::custom::Props;

    /// The value of an expression of `self` with a set `s`, a set of objects `o`, a map list `m`, one of two keys `p` and
    /// an ordinary list `l`, and the work that it was.
    fn run(source: &str, object: &Value) -> (Result<bool, CelError>, u64) {
        let port =
            json!({"type": "object", "properties": {"a-b": {"type": "string"}, "n": {"type": "integer"}}});
        let texts = |kind: &str| json!({"type": "array", "x-kubernetes-list-type": kind, "items": {"type": "string"}});
        let keyed = |keys: &[&str]| json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "items": port});
        let schema = json!({"type": "object", "properties": {"s": texts("set"), "t": texts("set"), "l": texts("atomic"),
            "o": {"type": "array", "x-kubernetes-list-type": "set", "items": port},
            "i": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
            "m": keyed(&["a-b"]), "k": keyed(&["a-b"]), "p": keyed(&["a-b", "n"])}});
        let schema = Props::read(&schema).unwrap();
        let program = Program::compile(source, &["self"]).unwrap();
        let variables = Variables::default().with("self", Val::of_json(object, Some(&schema)));
        let mut budget = Budget { left: u64::MAX, work: u64::MAX, ..Budget::default() };
        let holds = program.holds(&variables, &mut budget);
        (holds, u64::MAX - budget.work)
    }

    #[test]
    fn the_order_of_sets_and_map_lists_says_nothing() {
        let object = json!({"s": ["a", "b"], "t": ["b", "a"], "l": ["b", "a"], "i": [1, 2], "o": [{"n": 1}],
            "m": [{"a-b": "x", "n": 1}, {"a-b": "y", "n": 2}], "k": [{"a-b": "y", "n": 2}, {"a-b": "x", "n": 1}],
            "p": [{"a-b": "x", "n": 1}, {"a-b": "x", "n": 2}]});
        for holds in [
            "self.s == self.t && self.t == self.s && !(self.s != self.t)",
            "self.s == self.l && self.l != self.s && self.s == ['b', 'a'] && self.s != ['a', 'c']",
            "self.s != ['a'] && self.s != ['a', 'a'] && self.s != ['a', 'b', 'b']",
            "self.s + ['c', 'a', 'c'] == ['c', 'b', 'a'] && (self.s + ['c', 'a', 'c']).size() == 3",
            "(self.s + ['c', 'a'])[2] == 'c' && (self.s + ['c']) + ['c'] == ['a', 'b', 'c']",
            "(['c', 'a'] + self.s).size() == 4 && ['c'] + self.s == ['c', 'a', 'b']",
            "(self.l + ['a']).size() == 3 && self.l + ['a'] != ['a', 'a', 'b']",
            "self.i == [2, 1] && (self.i + [2, 3]).size() == 3 && {'a': self.s} == {'a': self.t}",
            "self.m == self.k && self.k == self.m && self.m != [{'a-b': 'x', 'n': 1}, {'a-b': 'y', 'n': 3}]",
            "self.m != [{'a-b': 'x', 'n': 1}, {'a-b': 'x', 'n': 1}] && self.m != self.p && self.m != [1, 2]",
            "(self.m + [{'a-b': 'z', 'n': 3}, {'a-b': 'x', 'n': 4}]).map(p, p.n) == [4, 2, 3]",
            "(self.m + self.k).map(p, p.n) == [1, 2] && self.m + self.k == self.m",
            "(self.p + [{'a-b': 'x', 'n': 2}, {'a-b': 'y', 'n': 2}]).map(p, p['a-b']) == ['x', 'x', 'y']",
            "self.m + [] == self.k && (self.m + []) + self.k == self.m",
        ] {
            assert_eq!(run(holds, &object).0, Ok(true), "{holds}");
        }
        let error = run("self.o == self.o", &object).0.unwrap_err();
        assert_eq!(error.to_string(), "listSet operations are only supported on lists of scalar values");
    }

    #[test]
    fn sets_are_compared_in_a_walk_that_is_paid() {
        let texts: Vec<String> = (0..5_000).map(|number| format!("{number:0100}")).collect();
        let back: Vec<&String> = texts.iter().rev().collect();
        let ports: Vec<Value> = texts.iter().map(|text| json!({"a-b": text, "n": 1})).collect();
        let other: Vec<Value> = ports.iter().rev().cloned().collect();
        let object = json!({"s": texts, "t": back, "m": ports, "k": other});
        for source in [
            "self.s == self.t",
            "(self.s + self.t).size() == 5000",
            "self.m == self.k",
            "self.m + self.k == self.k",
        ] {
            let (holds, work) = run(source, &object);
            assert_eq!(holds, Ok(true), "{source}");
            assert!(work > 2 * 5_000 * 28 && work < 5_000 * 300, "{source}: {work}");
        }
    }
}
