//! The one transaction that a write is: the object and what belongs to it, under the condition that nobody wrote in
//! between.

use std::sync::Arc;

use api::{Key, Object, Status};
use serde_json::Value;
use store::{Compare, CompareTarget, Op, OpOutcome, RangeEnd, RangeRequest, Revision, Txn};

use super::context::store_key;
use super::{Asked, Pipeline};
use crate::cache::unavailable;
use crate::storage;
use crate::strategy::Companions;

/// Objects larger than this are refused, as etcd's default does (1.5 MiB per request).
const OBJECT_BYTES_MAX: usize = 1_500_000;

/// What became of a transaction.
pub(super) enum Outcome {
    /// Written; the object as of its new revision.
    Written(Arc<Object>),
    /// Deleted at this revision.
    Deleted(Revision),
    /// Another writer was there.
    Raced,
    /// What the strategy chose besides was taken in the meantime.
    CompanionTaken,
}

impl Pipeline {
    /// Writes an object if its revision is still `expected` (0: absent).
    pub(super) async fn put(
        &self,
        asked: &Asked<'_>,
        key: &Key,
        object: &Value,
        expected: Revision,
        companions: Companions,
    ) -> Result<Outcome, Status> {
        let value = storage::encode(object).map_err(|error| Status::internal(error.to_string()))?;
        if value.len() > OBJECT_BYTES_MAX {
            let message = format!("object of {} bytes is over the limit of {OBJECT_BYTES_MAX}", value.len());
            return Err(Status::new(api::Reason::RequestEntityTooLarge, message));
        }
        let path = store_key(&asked.stored, key);
        let lease = match asked.strategy.time_to_live() {
            None => 0,
            Some(ttl) => self.expiry.lease(&*self.parts.store, ttl, self.parts.clock.now()).await?,
        };
        let write = Op::Put { key: path.clone().into(), value: value.clone(), lease };
        let committed = self.commit(&path, expected, write, companions).await;
        if committed.is_err() && lease != 0 {
            // It may be the lease that is gone: the next write gets another.
            self.expiry.forget(lease).await;
        }
        match committed? {
            Ok(revision) => {
                let object = storage::decode(path.as_bytes(), &value, revision)
                    .map_err(|error| Status::internal(error.to_string()))?;
                Ok(Outcome::Written(Arc::new(object)))
            }
            Err(outcome) => Ok(outcome),
        }
    }

    /// Deletes an object if its revision is still `expected`.
    pub(super) async fn remove(
        &self,
        asked: &Asked<'_>,
        key: &Key,
        expected: Revision,
        companions: Companions,
    ) -> Result<Outcome, Status> {
        let path = store_key(&asked.stored, key);
        let write = Op::Delete { key: path.clone().into(), end: RangeEnd::Single };
        let committed = self.commit(&path, expected, write, companions).await?;
        Ok(committed.map_or_else(|outcome| outcome, Outcome::Deleted))
    }

    async fn commit(
        &self,
        path: &str,
        expected: Revision,
        write: Op,
        companions: Companions,
    ) -> Result<Result<Revision, Outcome>, Status> {
        let mut compares =
            vec![Compare { key: path.to_owned().into(), target: CompareTarget::ModRevision(expected) }];
        compares.extend(companions.compares);
        let mut then = vec![write];
        then.extend(companions.ops);
        let probe = RangeRequest { keys_only: true, ..RangeRequest::key(path.to_owned()) };
        let txn = Txn { compares, then, or_else: vec![Op::Range(probe)] };
        let response = self.parts.store.txn(txn).await.map_err(unavailable)?;
        if response.succeeded {
            return Ok(Ok(response.revision));
        }
        let present = match response.outcomes.first() {
            Some(OpOutcome::Range(range)) => range.kvs.first().map_or(0, |kv| kv.mod_revision),
            _ => 0,
        };
        if present != expected {
            return Ok(Err(Outcome::Raced));
        }
        match companions.fixed {
            Some(status) => Err(status),
            None => Ok(Err(Outcome::CompanionTaken)),
        }
    }
}
