//! API priority and fairness: which requests run at once, who waits for whom, and who is turned away.
//! Source: KEP-1040, `apiserver/pkg/util/flowcontrol`, `apiserver/pkg/server/filters/priority-and-fairness.go`.
//!
//! A request is classified by the first FlowSchema that it matches ([`config`]), takes seats of that schema's priority
//! level by the work that it is thought to be, and waits in a queue of its flow where there are none ([`queues`],
//! [`dispatcher`], both pure). The configuration is read off the watch caches by whoever asks, and seats are shared anew
//! by whoever arrives after ten seconds: nothing runs where nothing asks. Callers in this process do not pass here.

mod config;
mod defaults;
mod demand;
mod dispatcher;
mod dump;
mod keep;
mod metrics;
mod queues;
mod running;
mod seats;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::admission::World;
use crate::cache::Changes;
use config::Config;
use dispatcher::{Begun, Dispatcher};
use queues::{Arrival, Held, Place};
use running::{About, Register, Running};

pub(crate) use config::{Digest, Named, Schema};
pub(crate) use keep::{ensure, keep};
pub(crate) use metrics::Metrics;
pub(crate) use queues::Refusal;

/// Seats of the server: upstream's `--max-requests-inflight` and `--max-mutating-requests-inflight` together.
pub(crate) const SEATS: u32 = 600;
/// The most seats that a list takes. Source: `maximumListSeatsLimit`.
const LIST_SEATS_MAX: u32 = 10;
/// Objects that a list goes through for one seat. Source: `objectsPerSeat`.
const OBJECTS_PER_SEAT: usize = 100;
/// The longest advice to wait, in seconds. Source: `maxRetryAfter`.
const RETRY_SECONDS_MAX: u64 = 32;

/// Who is told that its request begins, and at which level it waits; the rest is for those who look on.
struct Waker {
    told: oneshot::Sender<Held>,
    level: Arc<str>,
    schema: Arc<Schema>,
    about: About,
    arrived: Instant,
}

/// What a list or watch goes through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scan {
    /// Objects of the resource.
    pub(crate) objects: usize,
    /// The most that are asked for; 0: all.
    pub(crate) limit: usize,
    /// Whether one name is asked for.
    pub(crate) named: bool,
}

impl Scan {
    /// The seats that it takes. All lists are read from memory. Source: `list_work_estimator.go`.
    fn seats(self) -> u32 {
        let objects = match self {
            Self { named: true, .. } => 1,
            Self { limit, objects, .. } if limit > 0 => objects.min(limit.saturating_mul(2)),
            Self { objects, .. } => objects,
        };
        u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, LIST_SEATS_MAX)
    }
}

/// The configuration, and the revisions of schemas and levels that it was read at.
struct Current {
    seen: [i64; 2],
    config: Arc<Config>,
}

/// How long those who are turned away are told to wait: longer as more are.
#[derive(Debug)]
struct Retry {
    seconds: u64,
    /// The second in which this began to count.
    since: u64,
    refused: u64,
}

/// Priority and fairness of one server.
pub(crate) struct Flow {
    state: Mutex<Dispatcher<Waker>>,
    current: RwLock<Current>,
    retries: Mutex<HashMap<Arc<str>, Retry>>,
    /// Who runs, for those who look on.
    running: Mutex<Register>,
    begun: Instant,
    /// The moment of `begun`.
    born: Timestamp,
    /// Flows are hashed with a key of this process, so that nobody can choose a flow that meets another's queues.
    hashes: RandomState,
    metrics: Metrics,
}

/// A request that is let in: its seats are free again when this is dropped.
pub(crate) struct Seat {
    flow: Arc<Flow>,
    schema: Arc<Schema>,
    held: Option<Held>,
    /// What it is registered by.
    id: u64,
    seats: u32,
    watch: bool,
    since: Instant,
}

/// A request that is turned away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) why: Refusal,
    /// When to come again, in seconds.
    pub(crate) retry_after: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.flow.running.lock().end(self.id);
        self.schema.counted.ended(self.seats, self.since.elapsed().as_secs_f64(), self.watch);
        if let Some(held) = self.held.take() {
            self.flow.leave(&self.schema.level, &held);
        }
    }
}

/// A request that waits; one whose client went waits no longer.
struct Waits<'a> {
    flow: &'a Arc<Flow>,
    schema: &'a Arc<Schema>,
    place: Option<Place>,
    told: oneshot::Receiver<Held>,
    seats: u32,
    since: Instant,
}

impl Waits<'_> {
    /// Gives the place up, or back what was given for it in the same moment.
    fn give_up(&mut self) {
        let Some(place) = self.place.take() else { return };
        let gone = self.flow.act(|state, now| state.give_up(now, &self.schema.level, place));
        // From here on who tells it finds nobody, and gives the seats back; what was told before is given back here.
        self.told.close();
        match gone {
            Some(begun) => self.flow.tell(begun),
            None => {
                if let Ok(held) = self.told.try_recv() {
                    self.flow.leave(&self.schema.level, &held);
                }
            }
        }
        self.schema.counted.unqueued(self.seats, self.since.elapsed().as_secs_f64(), false);
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.schema.counted.refused(Refusal::Cancelled);
        }
        self.give_up();
    }
}

impl Flow {
    /// A server of [`SEATS`] seats.
    pub(crate) fn new(metrics: Metrics) -> Arc<Self> {
        let config = Arc::new(Config::read(&[], &[], |level, schema| metrics.counted(level, schema)));
        let mut state = Dispatcher::new(SEATS);
        state.configure(Duration::ZERO, &config.levels);
        Arc::new(Self {
            state: Mutex::new(state),
            current: RwLock::new(Current { seen: [-1; 2], config }),
            retries: Mutex::default(),
            running: Mutex::default(),
            begun: Instant::now(),
            born: Timestamp::now(),
            hashes: RandomState::new(),
            metrics,
        })
    }

    /// The schema that a request belongs to.
    pub(crate) fn classify(&self, digest: &Digest<'_>, world: &dyn World) -> Option<Arc<Schema>> {
        self.config(world).classify(digest).cloned()
    }

    /// The configuration as of everything that the caches know.
    fn config(&self, world: &dyn World) -> Arc<Config> {
        let resources = [defaults::LEVELS, defaults::SCHEMAS];
        let changed = |seen: &[i64; 2]| {
            let same = |(resource, seen): (&&str, &i64)| {
                matches!(world.changes(defaults::GROUP, resource, *seen), Changes::None)
            };
            !resources.iter().zip(seen).all(same)
        };
        {
            let current = self.current.read();
            if !changed(&current.seen) {
                return current.config.clone();
            }
        }
        let mut current = self.current.write();
        // Another request may have brought it up to date in between.
        if changed(&current.seen) {
            // All there is, and the revision at which it was: a change that comes in between is seen again.
            let all = resources.map(|resource| match world.changes(defaults::GROUP, resource, 0) {
                Changes::All(objects, revision) => (objects, revision),
                Changes::None | Changes::Some(_) => (world.all(defaults::GROUP, resource, ""), 0),
            });
            let counted = |level: &str, schema: &str| self.metrics.counted(level, schema);
            let config = Arc::new(Config::read(&all[0].0, &all[1].0, counted));
            let begun = self.act(|state, now| state.configure(now, &config.levels));
            self.tell(begun);
            *current = Current { seen: [all[0].1, all[1].1], config };
        }
        current.config.clone()
    }

    /// Lets a request in, at once or when it is its turn, or turns it away; `patience` is how long it waits at most.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        schema: &Arc<Schema>,
        digest: &Digest<'_>,
        scan: Option<Scan>,
        patience: Duration,
    ) -> Result<Seat, Refused> {
        let watch = digest.verb == "watch";
        let since = Instant::now();
        let mut told = None;
        let waker = || {
            let (sender, receiver) = oneshot::channel();
            told = Some(receiver);
            Waker {
                told: sender,
                level: schema.level.clone(),
                schema: schema.clone(),
                about: About::of(digest, schema),
                arrived: since,
            }
        };
        let flow = (schema.name.as_ref(), schema.distinguisher(digest));
        let hash = self.hashes.hash_one(flow);
        let (begun, arrival, seats) = self.act(|state, now| {
            let begun = state.adjust_if_due(now);
            let seats = scan.map_or(1, |scan| scan.seats().min(state.widest(&schema.level)));
            (begun, state.arrive(now, &schema.level, hash, seats, waker), seats)
        });
        self.tell(begun);
        let held = match (arrival, told) {
            (Some(Arrival::Refuse(why)), _) => return Err(self.refuse(schema, why)),
            (Some(Arrival::Run(held)), _) => Some(held),
            (Some(Arrival::Wait(place)), Some(told)) => {
                schema.counted.queued(seats);
                let mut waits = Waits { flow: self, schema, place: Some(place), told, seats, since };
                match tokio::time::timeout(patience, &mut waits.told).await {
                    Ok(Ok(held)) => {
                        waits.place = None;
                        schema.counted.unqueued(seats, since.elapsed().as_secs_f64(), true);
                        Some(held)
                    }
                    Ok(Err(_)) | Err(_) => {
                        waits.give_up();
                        return Err(self.refuse(schema, Refusal::TimeOut));
                    }
                }
            }
            // Its level went in this moment.
            (Some(Arrival::Wait(_)) | None, _) => None,
        };
        schema.counted.began(seats);
        let began = Instant::now();
        let id = self.running.lock().begin(Running {
            schema: schema.clone(),
            about: About::of(digest, schema),
            queue: held.as_ref().and_then(Held::queue),
            seats,
            arrived: since,
            began,
        });
        let (flow, schema) = (self.clone(), schema.clone());
        Ok(Seat { flow, schema, held, id, seats, watch, since: began })
    }

    fn act<R>(&self, act: impl FnOnce(&mut Dispatcher<Waker>, Duration) -> R) -> R {
        let mut state = self.state.lock();
        act(&mut state, self.begun.elapsed())
    }

    fn leave(&self, level: &Arc<str>, held: &Held) {
        let begun = self.act(|state, now| state.leave(now, level, held));
        self.tell(begun);
    }

    /// Tells those whose turn it is. The seats of who went in this moment are given back, and others follow.
    fn tell(&self, begun: Begun<Waker>) {
        let mut next = begun;
        while let Some((Waker { told, level, .. }, held)) = next.pop() {
            if let Err(held) = told.send(held) {
                next.extend(self.act(|state, now| state.leave(now, &level, &held)));
            }
        }
    }

    /// Counts a refusal, and says when to come again: a second at first, twice as long where many are refused, and a
    /// second less where few are. Source: `dropped_requests_tracker.go`.
    fn refuse(&self, schema: &Schema, why: Refusal) -> Refused {
        schema.counted.refused(why);
        let now = self.begun.elapsed().as_secs();
        let mut retries = self.retries.lock();
        let own = retries.entry(schema.level.clone()).or_insert(Retry { seconds: 1, since: now, refused: 0 });
        own.refused += 1;
        let passed = now.saturating_sub(own.since);
        if passed >= own.seconds {
            if own.refused >= 3 * own.seconds && passed < 2 * own.seconds + 1 {
                own.seconds = (own.seconds * 2).min(RETRY_SECONDS_MAX);
            } else if own.refused < own.seconds {
                own.seconds -= 1;
            }
            (own.since, own.refused) = (now, 0);
        }
        Refused { why, retry_after: own.seconds.max(1) }
    }

    /// Brings the figures of the levels up to date, which are read seldom.
    pub(crate) fn gather(&self) {
        for gauge in &self.metrics.limits {
            gauge.reset();
        }
        for level in self.act(|state, _| state.figures()) {
            let name = [level.name.as_ref()];
            for (gauge, limit) in self.metrics.limits.iter().zip(level.limits) {
                gauge.with_label_values(&name).set(limit.into());
            }
            for (gauge, demand) in self.metrics.demands.iter().zip(level.demands) {
                gauge.with_label_values(&name).set(demand);
            }
        }
    }
}
