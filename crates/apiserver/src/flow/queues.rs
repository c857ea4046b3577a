//! One priority level's queues: shuffle sharding, fair queuing by seats in virtual time. Pure: time is what the caller says.
//!
//! A flow is dealt a hand of queues by its hash and waits in the least loaded of them, so that a flow that floods its
//! own hand leaves others a queue that it is not in. Among queues the one whose next request would end first in virtual
//! time goes first: virtual time runs as fast as each busy queue is entitled to, so that queues get equal shares whatever
//! their requests cost. Source: KEP-1040, `apiserver/pkg/util/flowcontrol/fairqueuing/queueset`.

use std::collections::VecDeque;
use std::time::Duration;

use super::demand::Demand;

/// What a request is thought to take before it ends and tells. Source: `estimatedServiceDuration`.
const GUESS: Duration = Duration::from_millis(3);

/// How a level queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queuing {
    /// How many queues there are.
    pub(super) queues: usize,
    /// How many of them a flow is dealt.
    pub(super) hand: usize,
    /// How many requests wait in one at most.
    pub(super) length: usize,
}

/// A queue as figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct QueueFigures {
    pub(super) waiting: usize,
    pub(super) executing: u32,
    pub(super) seats: u32,
    pub(super) next: f64,
    pub(super) waiting_seats: u32,
    /// The widest of those that wait.
    pub(super) widest: u32,
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The level rejects what it has no seats for.
    ConcurrencyLimit,
    /// The queue is full.
    QueueFull,
    /// It waited too long.
    TimeOut,
    /// Its client went while it waited.
    Cancelled,
}

impl Refusal {
    /// Upstream's word in figures.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Seats that a request holds; given back to [`Queues::leave`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    queue: Option<usize>,
    seats: u32,
    since: Duration,
}

impl Held {
    /// The queue that it is counted in, if there are some.
    pub(super) fn queue(&self) -> Option<usize> {
        self.queue
    }
}

/// Where a request waits; given back to [`Queues::give_up`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    queue: usize,
    id: u64,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It runs.
    Run(Held),
    /// It waits.
    Wait(Place),
    /// It is turned away.
    Refuse(Refusal),
}

struct Waiting<T> {
    id: u64,
    seats: u32,
    who: T,
}

struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    waiting_seats: u32,
    executing: u32,
    seats: u32,
    /// The virtual time at which its next request would begin, in seat-seconds.
    next: f64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), waiting_seats: 0, executing: 0, seats: 0, next: 0.0 }
    }
}

impl<T> Queue<T> {
    fn figures(&self) -> QueueFigures {
        QueueFigures {
            waiting: self.waiting.len(),
            executing: self.executing,
            seats: self.seats,
            next: self.next,
            waiting_seats: self.waiting_seats,
            widest: self.waiting.iter().map(|one| one.seats).max().unwrap_or_default(),
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.executing == 0
    }
}

/// A level's queues and seats.
pub(super) struct Queues<T> {
    queuing: Option<Queuing>,
    /// Seats that may be in use; absent: any number (the exempt level).
    limit: Option<u32>,
    queues: Vec<Queue<T>>,
    seats: u32,
    waiting: usize,
    waiting_seats: u32,
    /// Queues that are not idle.
    active: u32,
    /// Virtual time: seat-seconds that each busy queue has been entitled to.
    virtual_now: f64,
    now: Duration,
    ids: u64,
    pub(super) demand: Demand,
}

impl<T> Queues<T> {
    /// Nothing waits and nothing runs.
    pub(super) fn new(queuing: Option<Queuing>, limit: Option<u32>, now: Duration) -> Self {
        let mut queues = Self {
            queuing,
            limit,
            queues: Vec::new(),
            seats: 0,
            waiting: 0,
            waiting_seats: 0,
            active: 0,
            virtual_now: 0.0,
            now,
            ids: 0,
            demand: Demand::new(now),
        };
        queues.grow();
        queues
    }

    /// Changes how it queues. Who waits in a queue that is dealt no more stays there until its turn.
    pub(super) fn queue_by(&mut self, queuing: Option<Queuing>) {
        self.queuing = queuing;
        self.grow();
    }

    fn grow(&mut self) {
        let wanted = self.queuing.map_or(0, |queuing| queuing.queues);
        while self.queues.len() < wanted {
            self.queues.push(Queue::default());
        }
    }

    /// Changes the number of seats; whoever can begin by that is returned.
    pub(super) fn limit_to(&mut self, now: Duration, limit: Option<u32>) -> Vec<(T, Held)> {
        self.advance(now);
        self.limit = limit;
        self.dispatch()
    }

    /// Seats in use.
    pub(super) fn seats(&self) -> u32 {
        self.seats
    }

    /// Each queue as figures, in order.
    pub(super) fn figures(&self) -> Vec<QueueFigures> {
        self.queues.iter().map(Queue::figures).collect()
    }

    /// Who waits: the queue's number, the place in it, the seats wanted.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (usize, usize, u32, &T)> {
        self.queues.iter().enumerate().flat_map(|(number, queue)| {
            let places = queue.waiting.iter().enumerate();
            places.map(move |(place, one)| (number, place, one.seats, &one.who))
        })
    }

    /// The seats that may be in use.
    pub(super) fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Whether nobody waits and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting == 0 && self.seats == 0
    }

    /// A request that needs `seats` (at least one). `who` is asked for only if it has to wait.
    pub(super) fn arrive(
        &mut self,
        now: Duration,
        hash: u64,
        seats: u32,
        who: impl FnOnce() -> T,
    ) -> Arrival {
        self.advance(now);
        let seats = seats.max(1);
        let fits = self.accommodates(seats);
        let Some(queuing) = self.queuing else {
            return if fits {
                Arrival::Run(self.begin(None, seats))
            } else {
                Arrival::Refuse(Refusal::ConcurrencyLimit)
            };
        };
        let at = self.choose(queuing, hash);
        if self.queues[at].is_idle() {
            self.queues[at].next = self.virtual_now;
            self.active += 1;
        }
        // Nobody waits who could begin: whoever comes and fits goes past those only where there are none.
        if fits && self.waiting == 0 {
            return Arrival::Run(self.begin(Some(at), seats));
        }
        let queue = &mut self.queues[at];
        if queue.waiting.len() >= queuing.length {
            return Arrival::Refuse(Refusal::QueueFull);
        }
        self.ids += 1;
        queue.waiting.push_back(Waiting { id: self.ids, seats, who: who() });
        queue.waiting_seats += seats;
        self.waiting += 1;
        self.waiting_seats += seats;
        self.note_demand();
        Arrival::Wait(Place { queue: at, id: self.ids })
    }

    /// A request ended; whoever begins in its stead is returned.
    pub(super) fn leave(&mut self, now: Duration, held: &Held) -> Vec<(T, Held)> {
        self.advance(now);
        self.seats = self.seats.saturating_sub(held.seats);
        if let Some(queue) = held.queue.and_then(|at| self.queues.get_mut(at)) {
            queue.executing -= 1;
            queue.seats = queue.seats.saturating_sub(held.seats);
            // What it really took comes in the place of the guess.
            let took = now.saturating_sub(held.since).as_secs_f64() - GUESS.as_secs_f64();
            queue.next += took * f64::from(held.seats);
            if queue.is_idle() {
                self.became_idle();
            }
        }
        self.note_demand();
        self.dispatch()
    }

    /// A request waits no longer; whoever begins because of that is returned. `None`: it waits no more, it runs.
    pub(super) fn give_up(&mut self, now: Duration, place: Place) -> Option<Vec<(T, Held)>> {
        self.advance(now);
        let queue = &mut self.queues[place.queue];
        let at = queue.waiting.iter().position(|waiting| waiting.id == place.id)?;
        let gone = queue.waiting.remove(at).map_or(0, |waiting| waiting.seats);
        queue.waiting_seats -= gone;
        let idle = queue.is_idle();
        self.waiting -= 1;
        self.waiting_seats -= gone;
        if idle {
            self.became_idle();
        }
        self.note_demand();
        Some(self.dispatch())
    }

    fn became_idle(&mut self) {
        self.active -= 1;
        if self.active == 0 {
            // Nobody compares with the past any more: time begins anew and never grows beyond what it can tell apart.
            self.virtual_now = 0.0;
        }
    }

    /// Moves virtual time on: each busy queue is entitled to an equal part of the seats that are wanted and there.
    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now).as_secs_f64();
        self.now = self.now.max(now);
        if self.active > 0 {
            let wanted = self.seats.saturating_add(self.waiting_seats);
            let rate = f64::from(wanted.min(self.limit.unwrap_or(wanted))) / f64::from(self.active);
            self.virtual_now += rate * passed;
        }
    }

    fn note_demand(&mut self) {
        let wanted = self.seats.saturating_add(self.waiting_seats);
        self.demand.observe(self.now, wanted);
    }

    /// A request wider than the whole level runs alone: it would wait for ever otherwise.
    fn accommodates(&self, seats: u32) -> bool {
        self.seats == 0 || self.limit.is_none_or(|limit| self.seats.saturating_add(seats) <= limit)
    }

    /// The least loaded queue of a flow's hand.
    fn choose(&self, queuing: Queuing, hash: u64) -> usize {
        let load = |at: &usize| {
            let queue = &self.queues[*at];
            queue.waiting_seats + queue.seats
        };
        deal(hash, queuing.queues, queuing.hand).into_iter().min_by_key(load).unwrap_or(0)
    }

    fn begin(&mut self, queue: Option<usize>, seats: u32) -> Held {
        self.seats += seats;
        if let Some(queue) = queue.and_then(|at| self.queues.get_mut(at)) {
            queue.executing += 1;
            queue.seats += seats;
            queue.next += GUESS.as_secs_f64() * f64::from(seats);
        }
        self.note_demand();
        Held { queue, seats, since: self.now }
    }

    /// Begins what fits, the queue whose first request would end first in virtual time before the others. Where that one
    /// does not fit nobody begins: narrow requests never starve a wide one.
    fn dispatch(&mut self) -> Vec<(T, Held)> {
        let mut begun = Vec::new();
        while self.waiting > 0 {
            let ends = |queue: &Queue<T>| {
                let first = queue.waiting.front()?;
                Some(queue.next + GUESS.as_secs_f64() * f64::from(first.seats))
            };
            let ready = self.queues.iter().enumerate().filter_map(|(at, queue)| Some((at, ends(queue)?)));
            let Some((at, _)) = ready.min_by(|one, other| one.1.total_cmp(&other.1)) else { break };
            let first = self.queues[at].waiting.front().map_or(0, |first| first.seats);
            if !self.accommodates(first) {
                break;
            }
            let Some(first) = self.queues[at].waiting.pop_front() else { break };
            self.queues[at].waiting_seats -= first.seats;
            self.waiting -= 1;
            self.waiting_seats -= first.seats;
            begun.push((first.who, self.begin(Some(at), first.seats)));
        }
        begun
    }
}

/// Deals `hand` different cards of a deck by a hash: each is a digit of the hash in the base of the cards that are left,
/// and stands for that card among those not dealt yet. Source: `apiserver/pkg/util/shufflesharding`.
fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    let mut cards = Vec::with_capacity(hand);
    for count in 0..hand.min(deck) {
        let left = (deck - count) as u64;
        let mut card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
        for taken in &dealt {
            card += usize::from(*taken <= card);
        }
        cards.push(card);
        let place = dealt.partition_point(|taken| *taken < card);
        dealt.insert(place, card);
    }
    cards
}

#[cfg(test)]
mod tests;
