//! Objects that end by themselves, as Events do: their keys hang on leases of the store, each shared by the writes of a
//! minute. Source: upstream's `storage/etcd3/lease_manager.go`.

use std::time::Duration;

use api::Status;
use jiff::Timestamp;
use store::{LeaseId, Store};
use tokio::sync::Mutex;

use crate::cache::unavailable;

/// How long one lease takes further keys. It lasts so much longer, that the first of them lives its whole time.
const SHARED_FOR: Duration = Duration::from_secs(60);

/// The lease that is handed out at present.
#[derive(Default)]
pub(super) struct Expiry {
    present: Mutex<Option<Shared>>,
}

#[derive(Debug, Clone, Copy)]
struct Shared {
    lease: LeaseId,
    ttl: Duration,
    until: Timestamp,
}

impl Expiry {
    /// A lease that ends `ttl` from `now`, or a little later.
    pub(super) async fn lease(
        &self,
        store: &dyn Store,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<LeaseId, Status> {
        let mut present = self.present.lock().await;
        if let Some(shared) = present.filter(|shared| shared.ttl == ttl && now < shared.until) {
            return Ok(shared.lease);
        }
        let lease = store.lease_grant(ttl + SHARED_FOR).await.map_err(unavailable)?;
        let until = now.saturating_add(SHARED_FOR).unwrap_or(now);
        *present = Some(Shared { lease, ttl, until });
        Ok(lease)
    }

    /// The store does not know the lease any more.
    pub(super) async fn forget(&self, lease: LeaseId) {
        let mut present = self.present.lock().await;
        if present.is_some_and(|shared| shared.lease == lease) {
            *present = None;
        }
    }
}
