//! Leader election on a `coordination.k8s.io/v1` Lease: of several servers over one store, one runs the controllers.
//! Source: client-go's `leaderelection`, with its default durations.

use std::time::Duration;

use api::{Key, Reason, Status};
use base::clock::SharedClock;
use client::Client;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::events::{EventRecorder, EventType, Involved};
use crate::kinds;

/// How long a leader that stopped renewing is still respected.
const LEASE: Duration = Duration::from_secs(15);
/// How long a leader tries to renew before it gives up leading.
const RENEW: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_secs(2);

/// A candidacy.
pub struct Election {
    client: Client,
    clock: SharedClock,
    key: Key,
    identity: String,
    /// The uid of the Lease, once it is known.
    uid: Mutex<String>,
    events: Option<EventRecorder>,
}

/// The fields of a Lease that the election uses; everything else in it is kept.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    holder_identity: String,
    lease_duration_seconds: i64,
    #[serde(serialize_with = "crate::time::serialize_micro")]
    acquire_time: Option<Timestamp>,
    #[serde(serialize_with = "crate::time::serialize_micro")]
    renew_time: Option<Timestamp>,
    lease_transitions: i64,
}

/// What was last seen of the lease, and when by the local clock: clocks of different hosts are never compared.
#[derive(Default)]
struct Seen {
    spec: LeaseSpec,
    at: Option<Timestamp>,
}

impl Election {
    /// Stands for the lease `key` as `identity`, which is unique per process.
    pub fn new(client: Client, clock: SharedClock, key: Key, identity: String) -> Self {
        Self { client, clock, key, identity, uid: Mutex::default(), events: None }
    }

    /// The same, which tells by events on the Lease who leads. Source: client-go's `resourcelock`, `RecordEvent`.
    #[must_use]
    pub fn telling(mut self, events: EventRecorder) -> Self {
        self.events = Some(events);
        self
    }

    /// Tells what has become of this candidate.
    pub(crate) fn tell(&self, what: &str) {
        let Some(events) = &self.events else { return };
        let involved = Involved::named(&kinds::LEASES, &self.key, &self.uid.lock());
        events.event(involved, EventType::Normal, "LeaderElection", format!("{} {what}", self.identity));
    }

    /// Returns once this process leads.
    pub async fn won(&self) {
        let mut seen = Seen::default();
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => return self.tell("became leader"),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(lease = %self.key, %error, "cannot take the lease, trying again")
                }
            }
            self.clock.sleep_until(self.clock.now() + RETRY).await;
        }
    }

    /// Renews the lease, and returns when this process no longer leads.
    pub async fn lost(&self) {
        let mut seen = Seen::default();
        let mut renewed = self.clock.now();
        loop {
            self.clock.sleep_until((self.clock.now() + RETRY).min(renewed + RENEW)).await;
            let asked = self.clock.now();
            // A server that does not answer is no better than one that refuses: the others count from the last renewal.
            tokio::select! {
                biased;
                () = self.clock.sleep_until(renewed + RENEW) => {
                    tracing::warn!(lease = %self.key, "lease not renewed in time, no longer leading");
                    return;
                }
                renewal = self.attempt(&mut seen) => match renewal {
                    Ok(true) => renewed = asked,
                    Ok(false) => return,
                    Err(error) => tracing::debug!(lease = %self.key, %error, "cannot renew the lease"),
                },
            }
        }
    }

    /// Takes or renews the lease; tells whether it is held now.
    async fn attempt(&self, seen: &mut Seen) -> Result<bool, Status> {
        let leases = kinds::LEASES.gvr();
        let now = self.clock.now();
        let object = match self.client.get(&leases, &self.key).await {
            Ok(object) => object,
            Err(status) if status.reason == Reason::NotFound => {
                let body = serde_json::json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": { "name": self.key.name, "namespace": self.key.namespace },
                    "spec": first_spec(&self.identity, now),
                });
                let made = self.client.create(&leases, &self.key.namespace, &body).await?;
                *self.uid.lock() = made.meta().uid.clone();
                return Ok(true);
            }
            Err(status) => return Err(status),
        };
        *self.uid.lock() = object.meta().uid.clone();
        let mut body: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
        let held: LeaseSpec = serde_json::from_value(body["spec"].clone()).unwrap_or_default();
        if seen.at.is_none() || seen.spec != held {
            *seen = Seen { spec: held.clone(), at: Some(now) };
        }
        if !may_take(&held, &self.identity, seen.at.unwrap_or(now), now) {
            return Ok(false);
        }
        write_spec(&mut body, &next_spec(&held, &self.identity, now))?;
        // The resourceVersion that was read goes back with it: of two candidates, one gets a conflict.
        self.client.update(&leases, &self.key, "", &body).await?;
        Ok(true)
    }

    /// Gives the lease back, if it is held: the next one takes it without waiting for its end.
    pub async fn give_back(&self) {
        let given = tokio::select! {
            given = self.try_give_back() => given,
            () = self.clock.sleep_until(self.clock.now() + RETRY) => Err(Status::internal("no answer")),
        };
        if let Err(error) = given {
            tracing::debug!(lease = %self.key, %error, "lease not given back; it expires by itself");
        }
    }

    async fn try_give_back(&self) -> Result<(), Status> {
        let leases = kinds::LEASES.gvr();
        let object = self.client.get(&leases, &self.key).await?;
        let mut body: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
        if body["spec"]["holderIdentity"] != self.identity.as_str() {
            return Ok(());
        }
        let held: LeaseSpec = serde_json::from_value(body["spec"].clone()).unwrap_or_default();
        write_spec(&mut body, &given_back(&held, self.clock.now()))?;
        self.client.update(&leases, &self.key, "", &body).await.map(drop)
    }
}

fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// Whether `identity` may take or keep the lease that has not changed since `seen_at`.
fn may_take(held: &LeaseSpec, identity: &str, seen_at: Timestamp, now: Timestamp) -> bool {
    let lasts = Duration::from_secs(u64::try_from(held.lease_duration_seconds).unwrap_or(0));
    held.holder_identity.is_empty() || held.holder_identity == identity || since(seen_at, now) > lasts
}

/// Writes the election's fields into a Lease; those of others stay.
fn write_spec(lease: &mut Value, spec: &LeaseSpec) -> Result<(), Status> {
    let spec = serde_json::to_value(spec).map_err(|error| Status::internal(error.to_string()))?;
    for (name, value) in spec.as_object().into_iter().flatten() {
        lease["spec"][name] = value.clone();
    }
    Ok(())
}

/// A Lease that nobody had before.
fn first_spec(identity: &str, now: Timestamp) -> LeaseSpec {
    LeaseSpec { lease_transitions: 0, ..next_spec(&LeaseSpec::default(), identity, now) }
}

/// A Lease that is nobody's any more. Source: `release`.
fn given_back(held: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: String::new(),
        lease_duration_seconds: 1,
        acquire_time: Some(now),
        renew_time: Some(now),
        lease_transitions: held.lease_transitions,
    }
}

fn next_spec(held: &LeaseSpec, identity: &str, now: Timestamp) -> LeaseSpec {
    let same = held.holder_identity == identity;
    LeaseSpec {
        holder_identity: identity.to_owned(),
        lease_duration_seconds: i64::try_from(LEASE.as_secs()).unwrap_or(i64::MAX),
        acquire_time: if same { held.acquire_time } else { Some(now) },
        renew_time: Some(now),
        // An int32 in the API: a count at its end must not make the lease unwritable.
        lease_transitions: held.lease_transitions.saturating_add(i64::from(!same)).min(i32::MAX.into()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use api::{Call, Object, Request, Response};
    use async_trait::async_trait;
    use base::clock::{Clock, VirtualClock};
    use client::Transport;
    use parking_lot::Mutex;

    use super::*;

    /// A server with one Lease and its versions.
    #[derive(Default)]
    pub(crate) struct Server {
        lease: Mutex<Option<(i64, Value)>>,
    }

    impl Server {
        /// Who leads; empty: nobody.
        pub(crate) fn holder(&self) -> String {
            self.spec().holder_identity
        }

        fn spec(&self) -> LeaseSpec {
            let lease = self.lease.lock();
            lease.as_ref().map(|(_, lease)| serde_json::from_value(lease["spec"].clone()).unwrap()).unwrap()
        }

        fn put(&self, mut lease: Value) -> Response {
            let mut held = self.lease.lock();
            let version = held.as_ref().map_or(1, |(version, _)| version + 1);
            lease["metadata"]["resourceVersion"] = version.to_string().into();
            *held = Some((version, lease.clone()));
            let object = Arc::new(Object::parse(lease.to_string().into()).unwrap());
            Response::Object { object, created: false, warnings: Vec::new() }
        }

        fn answer(&self, call: Call) -> Result<Response, Status> {
            let held = self.lease.lock().clone();
            match (call, held) {
                (Call::Get { .. }, None) => Err(Status::not_found("coordination.k8s.io", "leases", "l")),
                (Call::Get { .. }, Some((_, lease))) => {
                    let object = Arc::new(Object::parse(lease.to_string().into()).unwrap());
                    Ok(Response::Object { object, created: false, warnings: Vec::new() })
                }
                (Call::Create { body, .. }, None) => Ok(self.put(serde_json::from_slice(&body).unwrap())),
                (Call::Create { .. }, Some(_)) => {
                    Err(Status::already_exists("coordination.k8s.io", "leases", "l"))
                }
                (Call::Update { body, .. }, Some((version, _))) => {
                    let lease: Value = serde_json::from_slice(&body).unwrap();
                    let named = lease["metadata"]["resourceVersion"].as_str();
                    if named.and_then(|text| text.parse().ok()) != Some(version) {
                        return Err(Status::conflict("coordination.k8s.io", "leases", "l", "modified"));
                    }
                    Ok(self.put(lease))
                }
                _ => Err(Status::internal("not asked in this test")),
            }
        }
    }

    /// One candidate's way to the server, which can be cut.
    struct Wire {
        server: Arc<Server>,
        cut: Arc<AtomicBool>,
    }

    #[async_trait]
    impl Transport for Wire {
        async fn send(&self, request: Request) -> Result<Response, Status> {
            if self.cut.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            self.server.answer(request.call)
        }
    }

    pub(crate) fn candidate(
        server: &Arc<Server>,
        clock: &VirtualClock,
        name: &str,
    ) -> (Election, Arc<AtomicBool>) {
        let cut = Arc::new(AtomicBool::new(false));
        let wire = Arc::new(Wire { server: server.clone(), cut: cut.clone() });
        let key = Key::new("kube-system", "l");
        (Election::new(Client::new(wire, name), Arc::new(clock.clone()), key, name.to_owned()), cut)
    }

    /// Lets virtual time pass in small steps until `done` is.
    pub(crate) async fn pass<T>(clock: &VirtualClock, done: impl Future<Output = T>) -> T {
        let ticking = async {
            loop {
                clock.advance(Duration::from_millis(250));
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::select! { biased; value = done => value, () = ticking => unreachable!() }
    }

    #[tokio::test]
    async fn one_of_two_leads_and_the_other_follows_when_it_lets_go() {
        let (server, clock) = (Arc::new(Server::default()), VirtualClock::new(Timestamp::UNIX_EPOCH));
        let ((one, _), (two, _)) = (candidate(&server, &clock, "one"), candidate(&server, &clock, "two"));
        pass(&clock, one.won()).await;
        let until = clock.now() + Duration::from_secs(300);
        // However long the second waits: the first renews.
        pass(&clock, async {
            tokio::select! {
                () = one.lost() => panic!("the leader lost its lease to nobody"),
                () = two.won() => panic!("two leaders"),
                () = clock.sleep_until(until) => {}
            }
        })
        .await;
        assert_eq!((server.spec().holder_identity.as_str(), server.spec().lease_transitions), ("one", 0));
        let released = clock.now();
        one.give_back().await;
        pass(&clock, two.won()).await;
        assert_eq!(server.spec().holder_identity, "two");
        assert!(
            since(released, clock.now()) <= RETRY + RETRY,
            "the lease that was given back was waited for"
        );
    }

    #[tokio::test]
    async fn a_leader_without_a_server_stops_before_another_begins() {
        let (server, clock) = (Arc::new(Server::default()), VirtualClock::new(Timestamp::UNIX_EPOCH));
        let ((one, cut), (two, _)) = (candidate(&server, &clock, "one"), candidate(&server, &clock, "two"));
        pass(&clock, one.won()).await;
        cut.store(true, Ordering::SeqCst);
        let lost = async {
            one.lost().await;
            clock.now()
        };
        let won = async {
            two.won().await;
            clock.now()
        };
        let (lost, won) = pass(&clock, async { tokio::join!(lost, won) }).await;
        assert!(lost < won, "lost at {lost}, won at {won}");
        assert_eq!((server.spec().holder_identity.as_str(), server.spec().lease_transitions), ("two", 1));
    }

    #[test]
    fn a_lease_changes_hands_only_when_it_expired_or_was_given_back() {
        let start = Timestamp::UNIX_EPOCH;
        let held = first_spec("a", start);
        assert_eq!((held.lease_transitions, held.acquire_time), (0, Some(start)));
        assert!(may_take(&held, "a", start, start));
        assert!(!may_take(&held, "b", start, start + LEASE));
        let late = start + LEASE + Duration::from_secs(1);
        assert!(may_take(&held, "b", start, late));
        let next = next_spec(&held, "b", late);
        assert_eq!((next.lease_transitions, next.acquire_time), (1, Some(late)));
        let renewed = next_spec(&next, "b", late + RETRY);
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (1, Some(late)));
        // Also one that nobody has any more changes hands.
        let free = given_back(&renewed, late + RETRY);
        assert!(may_take(&free, "a", late, late) && free.renew_time == Some(late + RETRY));
        assert_eq!(next_spec(&free, "a", late + LEASE).lease_transitions, 2);
    }

    #[test]
    fn what_others_say_in_a_lease_stays() {
        let mut lease =
            serde_json::json!({ "spec": { "strategy": "OldestEmulationVersion", "holderIdentity": "b" } });
        write_spec(&mut lease, &first_spec("a", Timestamp::UNIX_EPOCH)).unwrap();
        assert_eq!(lease["spec"]["strategy"], "OldestEmulationVersion");
        assert_eq!(
            (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
            (&"a".into(), &0.into())
        );
    }
}
