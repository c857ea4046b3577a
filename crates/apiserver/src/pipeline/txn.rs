//! The one transaction that a write is: the object and what belongs to it, under the condition that nobody wrote in
//! between.

use std::sync::Arc;
use std::time::Duration;

use api::connect::User;
use api::decode::{NESTING_MAX, nests_within};
use api::{Key, Object, Status, Verb};
use bytes::Bytes;
use serde_json::Value;
use store::{Compare, CompareTarget, Op, OpOutcome, RangeEnd, RangeRequest, Revision, Txn};

use super::context::store_key;
use super::{Asked, Pipeline, meta};
use crate::cache::{Cache, unavailable};
use crate::storage;
use crate::strategy::{Claim, Companions, Content};
use crate::words::{self, Kind, Writer};

/// The field manager of objects that are written beside others.
const MANAGER: &str = "skiff-apiserver";

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

/// An object on its way to the store.
struct Encoded {
    /// In the version asked for.
    shown: Bytes,
    /// In the version that is stored.
    value: Bytes,
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
        let Encoded { shown, value } = self.encoded(asked, object).await?;
        let path = store_key(&asked.stored, key);
        let lease = match asked.strategy.time_to_live() {
            None => 0,
            Some(ttl) => self.expiry.lease(&*self.parts.store, ttl, self.parts.clock.now()).await?,
        };
        let write = Op::Put { key: path.clone().into(), value, lease };
        if expected != 0 {
            self.wait_for_others(asked.strategy.patience(&key.namespace)).await;
        }
        let committed = self.commit(&path, expected, write, companions).await;
        if committed.is_err() && lease != 0 {
            // It may be the lease that is gone: the next write gets another.
            self.expiry.forget(lease).await;
        }
        match committed? {
            Ok(revision) => {
                let object = storage::decode(path.as_bytes(), &shown, revision)
                    .map_err(|error| Status::internal(error.to_string()))?;
                Ok(Outcome::Written(Arc::new(object)))
            }
            Err(outcome) => Ok(outcome),
        }
    }

    /// Waits until the end of the present span of this length: all who wait in one span go on together.
    async fn wait_for_others(&self, span: Duration) {
        if !span.is_zero() {
            tokio::time::sleep(left_of(span, self.started.elapsed())).await;
        }
    }

    /// An object as it is stored; 413 if it is larger, or nests deeper, than what can be read again.
    async fn encoded(&self, asked: &Asked<'_>, object: &Value) -> Result<Encoded, Status> {
        let failed = |error: serde_json::Error| Status::internal(error.to_string());
        let refused = |message| Err(Status::new(api::Reason::RequestEntityTooLarge, message));
        if !nests_within(object, NESTING_MAX) {
            return refused(format!(
                "object nests more than {NESTING_MAX} levels deep, with its managedFields"
            ));
        }
        let shown = storage::encode(object).map_err(failed)?;
        let value = match self.to_storage(asked, object).await? {
            None => shown.clone(),
            Some(stored) => storage::encode(&stored).map_err(failed)?,
        };
        if value.len() > OBJECT_BYTES_MAX {
            return refused(format!(
                "object of {} bytes is over the limit of {OBJECT_BYTES_MAX}",
                value.len()
            ));
        }
        Ok(Encoded { shown, value })
    }

    /// What a dry run shows instead of storing it; refused where to store it would be.
    pub(super) async fn unstored(&self, asked: &Asked<'_>, object: &Value) -> Result<Arc<Object>, Status> {
        self.encoded(asked, object).await?;
        super::write::unsaved(object)
    }

    /// Writes the status that the server itself gives an object, if nobody has written the object since `old`.
    pub(super) async fn put_status(
        &self,
        group: &str,
        resource: &str,
        old: &Object,
        mut new: Value,
    ) -> Result<bool, Status> {
        let missing = || Status::internal(format!("{resource}.{group} is not stored"));
        let kind = self.parts.catalog.storage_of(group, resource).ok_or_else(missing)?;
        let before: Value = old.decode().map_err(|error| Status::internal(error.to_string()))?;
        words::own_changes(&kind, Some(&before), &mut new, &self.server_writer(&kind, "status"));
        let (key, user) = (old.key(), User::default());
        let asked = Asked {
            user: &user,
            verb: Verb::Update,
            resource: kind.resource(),
            strategy: self.parts.strategies.of(group, resource).clone(),
            kind: kind.clone(),
            stored: kind,
            namespace: &key.namespace,
            name: &key.name,
            subresource: "status",
            admitted: false,
            notes: Arc::default(),
        };
        let outcome = self.put(&asked, &key, &new, old.revision(), Companions::default()).await?;
        Ok(matches!(outcome, Outcome::Written(_)))
    }

    /// The server as a writer, for managedFields.
    fn server_writer(&self, kind: &Kind, subresource: &str) -> Writer {
        Writer {
            manager: MANAGER.into(),
            api_version: kind.api_version(),
            subresource: subresource.to_owned(),
            time: meta::rfc3339(self.parts.clock.now()),
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
        let mut compares = vec![compare(path, expected)];
        let mut then = vec![write];
        let mut probes = vec![probe(path)];
        let Companions { claims, released } = companions;
        let mut named = Vec::new();
        for Claim { key, content, taken } in claims {
            compares.push(compare(&key, 0));
            if let Some(status) = taken {
                probes.push(probe(&key));
                named.push(status);
            }
            then.push(Op::Put { key: key.into(), value: self.companion(content)?, lease: 0 });
        }
        then.extend(released.into_iter().map(|key| Op::Delete { key: key.into(), end: RangeEnd::Single }));
        let keys: Vec<Bytes> = compares.iter().map(|compare| compare.key.clone()).collect();
        let txn = Txn { compares, then, or_else: probes };
        let response = self.parts.store.txn(txn).await.map_err(unavailable)?;
        if response.succeeded {
            return Ok(Ok(response.revision));
        }
        let mut found = response.outcomes.iter().map(|outcome| match outcome {
            OpOutcome::Range(range) => range.kvs.first().map_or(0, |kv| kv.mod_revision),
            _ => 0,
        });
        if found.next().unwrap_or(0) != expected {
            return Ok(Err(Outcome::Raced));
        }
        if let Some((status, _)) = named.into_iter().zip(found).find(|(_, revision)| *revision != 0) {
            return Err(status);
        }
        self.catch_up(&keys).await?;
        Ok(Err(Outcome::CompanionTaken))
    }

    /// What a dry run cannot take: the failure of the first key that the client named and another has.
    pub(super) async fn check_claims(&self, companions: Companions) -> Result<(), Status> {
        for Claim { key, taken, .. } in companions.claims {
            let Some(status) = taken else { continue };
            let request = RangeRequest { keys_only: true, ..RangeRequest::key(key) };
            if !self.parts.store.range(request).await.map_err(unavailable)?.kvs.is_empty() {
                return Err(status);
            }
        }
        Ok(())
    }

    /// The bytes of what is written beside an object. Objects are owned by the server, which made them.
    fn companion(&self, content: Content) -> Result<Bytes, Status> {
        let failed = |error: serde_json::Error| Status::internal(error.to_string());
        let (group, resource, mut object) = match content {
            Content::Raw(value) => return serde_json::to_vec(&value).map(Bytes::from).map_err(failed),
            Content::Object { group, resource, object } => (group, resource, object),
        };
        let missing = || Status::internal(format!("{resource}.{group} is not stored"));
        let kind = self.parts.catalog.storage_of(&group, &resource).ok_or_else(missing)?;
        words::own_changes(&kind, None, &mut object, &self.server_writer(&kind, ""));
        storage::encode(&object).map_err(failed)
    }

    /// Waits until the caches of the resources that keys belong to show everything that is committed.
    async fn catch_up(&self, keys: &[Bytes]) -> Result<(), Status> {
        let holds = |cache: &&Arc<Cache>| keys.iter().any(|key| key.starts_with(cache.prefix().as_bytes()));
        let caches: Vec<Arc<Cache>> = self.caches.read().values().filter(holds).cloned().collect();
        for cache in caches {
            cache.make_current().await?;
        }
        Ok(())
    }
}

/// How long it is until the span ends in which one is after so long; spans follow one another.
fn left_of(span: Duration, elapsed: Duration) -> Duration {
    let past = elapsed.as_nanos().checked_rem(span.as_nanos()).and_then(|past| u64::try_from(past).ok());
    span.saturating_sub(Duration::from_nanos(past.unwrap_or(0)))
}

fn compare(key: &str, revision: Revision) -> Compare {
    Compare { key: key.to_owned().into(), target: CompareTarget::ModRevision(revision) }
}

/// Whether a key is there, and since when.
fn probe(key: &str) -> Op {
    Op::Range(RangeRequest { keys_only: true, ..RangeRequest::key(key.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_one_span_goes_on_at_its_end() {
        let ms = Duration::from_millis;
        for (elapsed, end) in [(0, 20), (1, 20), (19, 20), (20, 40), (39, 40), (100_000_007, 100_000_020)] {
            assert_eq!(ms(elapsed) + left_of(ms(20), ms(elapsed)), ms(end));
        }
        assert_eq!(left_of(Duration::ZERO, ms(7)), Duration::ZERO);
    }
}
