//! The servers that answer over one store, each under a lease: the endpoints of Service `default/kubernetes`.
//! Source: upstream's lease endpoint reconciler.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base::BoxError;
use base::backoff::Policy;
use futures::StreamExt;
use parking_lot::Mutex;
use store::{LeaseId, Op, RangeEnd, RangeRequest, Store, StoreError, Txn, WatchRequest};

use crate::bootstrap::Bootstrap;
use crate::pipeline::Pipeline;

/// Servers by a random id; the values are their addresses.
const PREFIX: &str = "/skiff/apiservers/";
/// How long a server that has fallen silent stays an endpoint. Source: `DefaultEndpointReconcilerTTL`.
const LIFE: Duration = Duration::from_secs(15);
/// How often a server says that it is there.
const RENEWAL: Duration = Duration::from_secs(5);
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(10) };

/// Says that this server is there, and keeps the endpoints equal to the servers that say so.
pub(crate) async fn keep(pipeline: Arc<Pipeline>, bootstrap: Arc<Mutex<Bootstrap>>) {
    let own = Own { key: format!("{PREFIX}{}", base::id::uuid()), lease: Mutex::new(None) };
    let mut failures = 0;
    loop {
        // It returns by failure only.
        if let Err(error) = own.follow(&pipeline, &bootstrap).await {
            failures += 1;
            tracing::warn!(error = %base::error::chain(&*error), "the servers of the cluster are not followed; trying again");
        }
        tokio::time::sleep(RETRY.delay(failures)).await;
    }
}

/// This server's own entry.
struct Own {
    key: String,
    /// The lease that it hangs on, and the address that it says.
    lease: Mutex<Option<(LeaseId, IpAddr)>>,
}

impl Own {
    async fn follow(&self, pipeline: &Pipeline, bootstrap: &Mutex<Bootstrap>) -> Result<(), BoxError> {
        let store = pipeline.store();
        let mut renewals = tokio::time::interval(RENEWAL);
        self.renew(store, bootstrap).await?;
        let known = store.range(RangeRequest::prefix(PREFIX)).await?;
        let request = WatchRequest {
            key: PREFIX.into(),
            end: RangeEnd::Prefix,
            start_revision: known.revision + 1,
            prev_kv: false,
            progress: false,
        };
        let mut changes = store.watch(request).await?;
        apply(pipeline, bootstrap).await?;
        loop {
            tokio::select! {
                _ = renewals.tick() => self.renew(store, bootstrap).await?,
                batch = changes.next() => {
                    let batch = batch.ok_or("the watch of the servers ended")??;
                    if !batch.events.is_empty() {
                        apply(pipeline, bootstrap).await?;
                    }
                }
            }
        }
    }

    /// Keeps the lease, or writes the entry anew where it ended or the address changed.
    async fn renew(&self, store: &Arc<dyn Store>, bootstrap: &Mutex<Bootstrap>) -> Result<(), StoreError> {
        let Some(address) = bootstrap.lock().own_endpoint() else { return Ok(()) };
        let held = *self.lease.lock();
        if let Some((lease, said)) = held {
            match store.lease_keep_alive(lease).await {
                Ok(()) if said == address => return Ok(()),
                Ok(()) | Err(StoreError::LeaseNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let lease = store.lease_grant(LIFE).await?;
        let put = Op::Put { key: self.key.clone().into(), value: address.to_string().into(), lease };
        store.txn(Txn { then: vec![put], ..Txn::default() }).await?;
        *self.lease.lock() = Some((lease, address));
        Ok(())
    }
}

/// Writes the endpoints for the servers that are there.
async fn apply(pipeline: &Pipeline, bootstrap: &Mutex<Bootstrap>) -> Result<(), BoxError> {
    let known = pipeline.store().range(RangeRequest::prefix(PREFIX)).await?;
    let addresses = known.kvs.iter().filter_map(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok());
    let servers: BTreeSet<IpAddr> = addresses.collect();
    {
        let mut held = bootstrap.lock();
        if held.servers.as_ref() == Some(&servers) {
            return Ok(());
        }
        held.servers = Some(servers);
    }
    let applied = Bootstrap::apply(bootstrap, pipeline).await;
    if applied.is_err() {
        // What is not written yet is not known yet: the next round writes it.
        bootstrap.lock().servers = Some(BTreeSet::new());
    }
    applied
}
