//! Leases: what they hold, when they end, and the one timer that ends them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{LeaseId, StoreError};

/// The longest time to live, as etcd's: some 285 years, which no clock overflows on.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(9_000_000_000);

/// A lease.
#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: BTreeSet<Bytes>,
    /// Its end is decided, though not yet durable.
    ending: bool,
}

/// All leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: HashMap<LeaseId, Lease>,
}

impl Leases {
    /// Adds a lease, or gives an existing one its time anew.
    pub(crate) fn grant(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let keys = self.leases.remove(&id).map(|lease| lease.keys).unwrap_or_default();
        self.leases.insert(id, Lease { ttl, deadline: now + ttl, keys, ending: false });
    }

    /// An id that no lease has.
    pub(crate) fn fresh_id(&self) -> LeaseId {
        loop {
            let id = (uuid::Uuid::new_v4().as_u64_pair().0 >> 1).cast_signed();
            if id != 0 && !self.leases.contains_key(&id) {
                return id;
            }
        }
    }

    /// Refuses a lease that does not exist or is about to end.
    pub(crate) fn check(&self, id: LeaseId) -> Result<(), StoreError> {
        match self.leases.get(&id) {
            Some(lease) if !lease.ending => Ok(()),
            _ => Err(StoreError::LeaseNotFound(id)),
        }
    }

    /// Moves a key from one lease to another; 0 is none.
    pub(crate) fn attach(&mut self, key: &Bytes, from: LeaseId, to: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }

    /// Starts a lease's time anew.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Result<(), StoreError> {
        self.check(id)?;
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.deadline = now + lease.ttl;
        }
        Ok(())
    }

    /// Decides a lease's end: no key can be attached from here on. Returns those that it holds, in order.
    pub(crate) fn begin_end(&mut self, id: LeaseId) -> Result<Vec<Bytes>, StoreError> {
        self.check(id)?;
        let Some(lease) = self.leases.get_mut(&id) else { return Err(StoreError::LeaseNotFound(id)) };
        lease.ending = true;
        Ok(lease.keys.iter().cloned().collect())
    }

    /// Forgets a lease.
    pub(crate) fn end(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }

    /// Gives every lease its full time, as etcd does after a restart: nobody could renew while the store was down.
    pub(crate) fn rearm(&mut self, now: Instant) {
        for lease in self.leases.values_mut() {
            lease.deadline = now + lease.ttl;
        }
    }

    /// When the next lease ends.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.leases.values().filter(|lease| !lease.ending).map(|lease| lease.deadline).min()
    }

    /// The leases whose time is over.
    pub(crate) fn expired(&self, now: Instant) -> Vec<LeaseId> {
        self.leases
            .iter()
            .filter(|(_, lease)| !lease.ending && lease.deadline <= now)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether a lease's time is over.
    pub(crate) fn is_expired(&self, id: LeaseId, now: Instant) -> bool {
        self.leases.get(&id).is_some_and(|lease| lease.deadline <= now)
    }

    /// Every lease that is not forgotten, with its time to live in milliseconds.
    pub(crate) fn all(&self) -> Vec<(LeaseId, u64)> {
        self.leases.iter().map(|(id, lease)| (*id, millis(lease.ttl))).collect()
    }
}

/// A time to live in whole milliseconds; [`TTL_MAX`] fits by far.
pub(crate) fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}
