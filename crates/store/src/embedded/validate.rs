//! What a request may look like, checked before it is queued. The limits are etcd's, so that what one backend takes
//! the other takes too.

use std::collections::HashSet;

use bytes::Bytes;

use super::index::Range;
use crate::{Op, RangeEnd, StoreError, Txn};

/// The most operations or compares in one list of a transaction (etcd's `--max-txn-ops`).
pub const TXN_OPS_MAX: usize = 128;

/// The most bytes of keys and values in one transaction (etcd's `--max-request-bytes`).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;

/// Refuses a transaction that etcd would refuse whatever it holds.
pub(crate) fn txn(txn: &Txn) -> Result<(), StoreError> {
    for (what, len) in
        [("compares", txn.compares.len()), ("then", txn.then.len()), ("or_else", txn.or_else.len())]
    {
        if len > TXN_OPS_MAX {
            return Err(StoreError::TooLarge(format!(
                "{len} entries in {what}: at most {TXN_OPS_MAX} are allowed"
            )));
        }
    }
    let bytes: usize = txn.then.iter().chain(&txn.or_else).map(op_bytes).sum();
    if bytes > REQUEST_BYTES_MAX {
        return Err(StoreError::TooLarge(format!("{bytes} bytes: at most {REQUEST_BYTES_MAX} are allowed")));
    }
    if txn.compares.iter().any(|compare| compare.key.is_empty()) {
        return Err(empty_key());
    }
    ops(&txn.then)?;
    ops(&txn.or_else)
}

/// Refuses a range without a start, unless it is that of all keys.
pub(crate) fn range(key: &Bytes, end: &RangeEnd) -> Result<(), StoreError> {
    if key.is_empty() && *end != RangeEnd::Prefix { Err(empty_key()) } else { Ok(()) }
}

fn op_bytes(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key, .. } => key.len(),
        Op::Range(request) => request.key.len(),
    }
}

/// Within one list a key changes at most once, so that a revision holds one version of it.
fn ops(ops: &[Op]) -> Result<(), StoreError> {
    let mut put = HashSet::new();
    let mut deleted = Vec::new();
    for op in ops {
        match op {
            Op::Put { key, .. } if key.is_empty() => return Err(empty_key()),
            Op::Put { key, .. } => {
                if !put.insert(key) {
                    return Err(twice(key));
                }
            }
            Op::Delete { key, end } => {
                range(key, end)?;
                deleted.push(Range::new(key.clone(), end.clone()));
            }
            Op::Range(request) => range(&request.key, &request.end)?,
        }
    }
    match put.into_iter().find(|key| deleted.iter().any(|range| range.contains(key))) {
        Some(key) => Err(twice(key)),
        None => Ok(()),
    }
}

fn twice(key: &[u8]) -> StoreError {
    StoreError::Invalid(format!("key {} is changed twice in one transaction", key.escape_ascii()))
}

fn empty_key() -> StoreError {
    StoreError::Invalid("the key is empty".to_owned())
}
