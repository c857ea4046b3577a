//! The keyed work queue: a key waits at most once, is worked on by one worker at a time, comes back after a back-off
//! when its work failed, and can be set for later. Keys are served in the order in which they became due.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::backoff::{Backoff, Policy};
use base::clock::SharedClock;
use base::lifecycle::Tasks;
use base::queues::{Counted, Durations, Figures, Queues};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How fast failed keys come back. Source: client-go's default per-item limiter begins at 5 ms and ends at 1000 s;
/// five minutes are enough here.
pub const RETRY: Policy = Policy { first: Duration::from_millis(5), max: Duration::from_secs(300) };

/// For how long the changes of objects are gathered that a pass looks at all.
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    /// For each object.
    pub each: Duration,
    /// Passes that look at fewer objects come at once.
    pub from: usize,
}

/// Where a pass compares what is known of the objects: some ten times as long as that takes.
pub const LOOKED_AT: Gather = Gather { each: Duration::from_micros(5), from: 200 };
/// The same where it decodes them.
pub const DECODED: Gather = Gather { each: Duration::from_micros(100), from: 200 };
/// Nobody waits for longer until changes are looked at that are gathered.
const GATHER_MAX: Duration = Duration::from_secs(1);

/// A clock that goes back by less was read by two at once, or is corrected: nobody waits much longer for that.
const BACK_MIN: SignedDuration = SignedDuration::from_secs(1);

/// What can be a key.
pub trait QueueKey: Clone + Eq + Hash + Ord + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Ord + Send + Sync + 'static> QueueKey for K {}

/// The queue. Cheap to clone; every clone is the same queue. Made within a tokio runtime, for its one timer.
pub struct Queue<K: QueueKey> {
    shared: Arc<Shared<K>>,
    _timer: Arc<Tasks>,
}

impl<K: QueueKey> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _timer: self._timer.clone() }
    }
}

struct Shared<K> {
    clock: SharedClock,
    state: Mutex<State<K>>,
    /// Keys became ready; workers wait here.
    ready: Notify,
    /// The earliest deadline changed.
    rescheduled: Notify,
    /// Nothing is worked on any more after shutdown.
    idle: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// The keys in `ready`, and those that were added while they are worked on; since when.
    dirty: HashMap<K, Instant>,
    /// Since when they are worked on.
    working: HashMap<K, Instant>,
    later: BTreeSet<(Timestamp, K)>,
    deadlines: HashMap<K, Timestamp>,
    backoff: Backoff<K>,
    /// What the clock showed last.
    seen: Timestamp,
    closed: bool,
    adds: u64,
    retries: u64,
    waited: Durations,
    worked: Durations,
}

impl<K: QueueKey> State<K> {
    /// Marks a key as due; tells whether a worker has to be woken.
    fn add(&mut self, key: K) -> bool {
        if self.closed || self.dirty.contains_key(&key) {
            return false;
        }
        self.adds += 1;
        self.dirty.insert(key.clone(), Instant::now());
        let free = !self.working.contains_key(&key);
        if free {
            self.ready.push_back(key);
        }
        free
    }

    /// Takes the next key to work on it.
    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        let now = Instant::now();
        if let Some(since) = self.dirty.remove(&key) {
            self.waited.add(now - since);
        }
        self.working.insert(key.clone(), now);
        Some(key)
    }

    /// Work on a key has ended; tells whether the key is due again.
    fn give_back(&mut self, key: &K) -> bool {
        if let Some(since) = self.working.remove(key) {
            self.worked.add(since.elapsed());
        }
        self.dirty.contains_key(key)
    }

    /// Where the clock has gone back, what was set for later stays as far away as it was: else it would come when the clock
    /// is where it was, and a failed key meanwhile not at all.
    /// Tells whether it has.
    fn follow(&mut self, now: Timestamp) -> bool {
        let back = self.seen.duration_since(now);
        if back < BACK_MIN {
            self.seen = self.seen.max(now);
            return false;
        }
        self.seen = now;
        self.deadlines.values_mut().for_each(|at| *at = at.saturating_sub(back).unwrap_or(*at));
        self.later = self.deadlines.iter().map(|(key, at)| (*at, key.clone())).collect();
        true
    }

    /// Sets a key for `deadline` unless it is set for an earlier one; tells whether it is the new earliest of all.
    fn add_at(&mut self, key: K, deadline: Timestamp) -> bool {
        if self.closed {
            return false;
        }
        if let Some(held) = self.deadlines.get(&key) {
            if *held <= deadline {
                return false;
            }
            self.later.remove(&(*held, key.clone()));
        }
        self.deadlines.insert(key.clone(), deadline);
        self.later.insert((deadline, key.clone()));
        self.later.first() == Some(&(deadline, key))
    }

    /// Moves every key whose time has come; gives how many workers to wake and the next deadline.
    fn take_due(&mut self, now: Timestamp) -> (usize, Option<Timestamp>) {
        self.follow(now);
        let mut woken = 0;
        while let Some((deadline, _)) = self.later.first() {
            if *deadline > now {
                return (woken, Some(*deadline));
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.deadlines.remove(&key);
                woken += usize::from(self.add(key));
            }
        }
        (woken, None)
    }
}

impl<K: QueueKey> Queue<K> {
    /// An empty queue with the default back-off.
    pub fn new(clock: SharedClock) -> Self {
        Self::with_backoff(clock, RETRY)
    }

    /// An empty queue whose failed keys come back as `policy` says.
    pub fn with_backoff(clock: SharedClock, policy: Policy) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            working: HashMap::new(),
            later: BTreeSet::new(),
            deadlines: HashMap::new(),
            backoff: Backoff::new(policy),
            seen: clock.now(),
            closed: false,
            adds: 0,
            retries: 0,
            waited: Durations::default(),
            worked: Durations::default(),
        };
        let shared = Arc::new(Shared {
            clock,
            state: Mutex::new(state),
            ready: Notify::new(),
            rescheduled: Notify::new(),
            idle: Notify::new(),
        });
        let timer = Tasks::default();
        timer.spawn(keep_time(shared.clone()));
        Self { shared, _timer: Arc::new(timer) }
    }

    /// The queue, told of under a name.
    pub fn named(self, name: &'static str, queues: &Queues) -> Self {
        let shared: Arc<dyn Counted> = self.shared.clone();
        queues.tell_of(name, Arc::downgrade(&shared));
        self
    }

    /// Adds a key that is due now. Does nothing if it waits already; if it is being worked on, it comes once more.
    pub fn add(&self, key: K) {
        let woken = self.shared.state.lock().add(key);
        if woken {
            self.shared.ready.notify_one();
        }
    }

    /// Adds a key that is due in `delay`; the earliest of several such calls counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        let mut state = self.shared.state.lock();
        // Read under the lock: what another one reads meanwhile is no clock that went back.
        let now = self.shared.clock.now();
        let deadline = now.saturating_add(delay).unwrap_or(Timestamp::MAX);
        if state.follow(now) {
            self.shared.rescheduled.notify_one();
        }
        state.retries += u64::from(!state.closed);
        if delay.is_zero() {
            if state.add(key) {
                self.shared.ready.notify_one();
            }
        } else if state.add_at(key, deadline) {
            self.shared.rescheduled.notify_one();
        }
    }

    /// Adds a key because one of the objects changed that its pass looks at all. Where they are many, their changes are
    /// gathered for as long as takes the number of passes times their length to stay in proportion to the number of
    /// changes: if each change of n objects cost a look at n of them, all of them would cost n².
    pub fn add_gathered(&self, key: K, objects: usize, gather: Gather) {
        if objects < gather.from {
            self.add(key);
        } else {
            let gathering = gather.each.saturating_mul(u32::try_from(objects).unwrap_or(u32::MAX));
            self.add_after(key, gathering.min(GATHER_MAX));
        }
    }

    /// Adds a key whose work failed: it comes back after its back-off, which grows. Gives the delay.
    pub fn retry(&self, key: K) -> Duration {
        let delay = self.shared.state.lock().backoff.failed(key.clone());
        self.add_after(key, delay);
        delay
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().backoff.succeeded(key);
    }

    /// How many failures in a row a key has.
    pub fn failures(&self, key: &K) -> u32 {
        self.shared.state.lock().backoff.failures(key)
    }

    /// How many keys are due and wait for a worker.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key is due.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key that is due, which nobody else gets until the claim is dropped. `None` once the queue is closed
    /// and empty. Cancel safe.
    pub async fn next(&self) -> Option<Claim<K>> {
        loop {
            {
                let mut state = self.shared.state.lock();
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        // Wake-ups that met no waiter are one; whoever got it passes it on.
                        self.shared.ready.notify_one();
                    }
                    return Some(Claim { key, shared: self.shared.clone() });
                }
                if state.closed {
                    // One closing wakes one waiter; each wakes the next.
                    self.shared.ready.notify_one();
                    return None;
                }
            }
            self.shared.ready.notified().await;
        }
    }

    /// Takes no more keys; those that are due are still handed out, those set for later are dropped.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.later.clear();
        state.deadlines.clear();
        self.shared.ready.notify_one();
        self.shared.idle.notify_waiters();
    }

    /// Closes the queue and returns when everything that was due has been worked on.
    pub async fn drain(&self) {
        self.close();
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            {
                let state = self.shared.state.lock();
                if state.ready.is_empty() && state.working.is_empty() {
                    return;
                }
            }
            idle.await;
        }
    }
}

/// A key that is being worked on.
pub struct Claim<K: QueueKey> {
    key: K,
    shared: Arc<Shared<K>>,
}

impl<K: QueueKey> Claim<K> {
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: QueueKey> Drop for Claim<K> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.give_back(&self.key) {
            state.ready.push_back(self.key.clone());
            self.shared.ready.notify_one();
        } else if state.working.is_empty() && state.ready.is_empty() {
            self.shared.idle.notify_waiters();
        }
    }
}

impl<K: QueueKey> Counted for Shared<K> {
    fn figures(&self) -> Figures {
        let state = self.state.lock();
        let now = Instant::now();
        let running = || state.working.values().map(|since| now - *since);
        Figures {
            // As upstream's, which goes up with each key that is added.
            depth: state.dirty.len() as u64,
            adds: state.adds,
            retries: state.retries,
            waited: state.waited,
            worked: state.worked,
            unfinished: running().sum(),
            longest: running().max().unwrap_or_default(),
        }
    }
}

/// The queue's one timer. Ends with the queue: its task set is dropped with the last clone.
async fn keep_time<K: QueueKey>(shared: Arc<Shared<K>>) {
    loop {
        let (woken, next) = {
            let mut state = shared.state.lock();
            let now = shared.clock.now();
            state.take_due(now)
        };
        for _ in 0..woken {
            shared.ready.notify_one();
        }
        match next {
            None => shared.rescheduled.notified().await,
            Some(deadline) => tokio::select! {
                () = shared.rescheduled.notified() => {}
                // Whatever the clock shows now, so much time has passed.
                () = shared.clock.sleep_until(deadline) => {
                    let mut state = shared.state.lock();
                    state.seen = state.seen.max(deadline);
                }
            },
        }
    }
}
