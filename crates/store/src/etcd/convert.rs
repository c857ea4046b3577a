//! Between the store's words and etcd's.

use bytes::Bytes;
use etcd_client as etcd;
use etcd_client::{CompareOp, DeleteOptions, GetOptions, PutOptions, ResponseHeader, TxnOp, TxnOpResponse};

use crate::{
    Compare, CompareTarget, Event, EventKind, KeyValue, Op, OpOutcome, RangeEnd, RangeRequest, RangeResponse,
    Revision, StoreError, Txn, TxnResponse,
};

/// What etcd refused, as far as its error tells.
pub(super) enum Refusal {
    Compacted,
    Future,
    LeaseNotFound,
    Other(StoreError),
}

/// Reads an error. etcd tells its errors apart by their text only: several share each gRPC code. The texts are part of
/// its client API (`api/v3rpc/rpctypes/error.go`).
pub(super) fn refusal(error: etcd::Error) -> Refusal {
    let text = match &error {
        etcd::Error::GRpcStatus(status) => status.message(),
        _ => return Refusal::Other(unavailable(error)),
    };
    match text {
        "etcdserver: mvcc: required revision has been compacted" => Refusal::Compacted,
        "etcdserver: mvcc: required revision is a future revision" => Refusal::Future,
        "etcdserver: requested lease not found" => Refusal::LeaseNotFound,
        "etcdserver: request is too large" | "etcdserver: too many operations in txn request" => {
            Refusal::Other(StoreError::TooLarge(text.to_owned()))
        }
        "etcdserver: duplicate key given in txn request"
        | "etcdserver: key is not provided"
        | "etcdserver: too large lease TTL" => Refusal::Other(StoreError::Invalid(text.to_owned())),
        // The gRPC layer's own limit, above etcd's.
        text if text.contains("received message larger than max") => {
            Refusal::Other(StoreError::TooLarge(text.to_owned()))
        }
        _ => Refusal::Other(unavailable(error)),
    }
}

/// An error that is no refusal: whether the request took effect is unknown.
pub(super) fn unavailable(error: etcd::Error) -> StoreError {
    StoreError::Unavailable(base::error::chain(&error))
}

/// The store's revision when it answered.
pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, ResponseHeader::revision)
}

pub(super) fn get(request: RangeRequest) -> (Vec<u8>, GetOptions) {
    let mut options = GetOptions::new()
        .with_revision(request.revision)
        .with_limit(i64::try_from(request.limit).unwrap_or(i64::MAX));
    if request.keys_only {
        options = options.with_keys_only();
    }
    if request.count_only {
        options = options.with_count_only();
    }
    options = match request.end {
        RangeEnd::Single => options,
        RangeEnd::Prefix => options.with_prefix(),
        RangeEnd::Before(end) => options.with_range(end),
    };
    (request.key.into(), options)
}

pub(super) fn txn(txn: Txn) -> etcd::Txn {
    etcd::Txn::new()
        .when(txn.compares.into_iter().map(compare).collect::<Vec<_>>())
        .and_then(txn.then.into_iter().map(op).collect::<Vec<_>>())
        .or_else(txn.or_else.into_iter().map(op).collect::<Vec<_>>())
}

fn compare(compare: Compare) -> etcd::Compare {
    match compare.target {
        CompareTarget::ModRevision(wanted) => {
            etcd::Compare::mod_revision(compare.key, CompareOp::Equal, wanted)
        }
        CompareTarget::CreateRevision(wanted) => {
            etcd::Compare::create_revision(compare.key, CompareOp::Equal, wanted)
        }
        CompareTarget::Value(wanted) => etcd::Compare::value(compare.key, CompareOp::Equal, wanted),
        CompareTarget::Lease(wanted) => etcd::Compare::lease(compare.key, CompareOp::Equal, wanted),
    }
}

fn op(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))),
        Op::Delete { key, end } => {
            let options = match end {
                RangeEnd::Single => DeleteOptions::new(),
                RangeEnd::Prefix => DeleteOptions::new().with_prefix(),
                RangeEnd::Before(end) => DeleteOptions::new().with_range(end),
            };
            TxnOp::delete(key, Some(options))
        }
        Op::Range(request) => {
            let (key, options) = get(request);
            TxnOp::get(key, Some(options))
        }
    }
}

pub(super) fn txn_response(response: &etcd::TxnResponse) -> TxnResponse {
    let outcomes = response.op_responses().into_iter().map(|outcome| match outcome {
        TxnOpResponse::Put(_) | TxnOpResponse::Txn(_) => OpOutcome::Put,
        TxnOpResponse::Get(found) => OpOutcome::Range(range_response(found)),
        TxnOpResponse::Delete(deleted) => OpOutcome::Delete { deleted: count(deleted.deleted()) },
    });
    let outcomes = outcomes.collect();
    TxnResponse { succeeded: response.succeeded(), revision: revision(response.header()), outcomes }
}

pub(super) fn range_response(mut response: etcd::GetResponse) -> RangeResponse {
    RangeResponse {
        revision: revision(response.header()),
        kvs: response.take_kvs().into_iter().map(key_value).collect(),
        count: count(response.count()),
        more: response.more(),
    }
}

fn count(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Takes a key-value over without copying its bytes.
pub(super) fn key_value(kv: etcd::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (version, lease) = (kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue { key: key.into(), value: value.into(), create_revision, mod_revision, version, lease }
}

pub(super) fn event(event: &etcd::Event) -> Option<Event> {
    let kind = match event.event_type() {
        etcd::EventType::Put => EventKind::Put,
        etcd::EventType::Delete => EventKind::Delete,
    };
    let kv = key_value(event.kv()?.clone());
    // A deletion's other fields are zero already; only the key's memory is shared with nothing.
    let kv = if kind == EventKind::Delete { KeyValue { value: Bytes::new(), ..kv } } else { kv };
    Some(Event { kind, kv, prev: event.prev_kv().cloned().map(key_value) })
}
