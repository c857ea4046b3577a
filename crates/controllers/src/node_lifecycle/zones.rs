//! How fast nodes may be told to lose their pods. Where few nodes of a zone fall silent, they are at fault; where most do,
//! it is rather the network between them and the control plane, and the pods run on. Pure: told what is there and when.
//! Source: `handleDisruption`, `ComputeZoneState` and `scheduler.RateLimitedTimedQueue` of `pkg/controller/nodelifecycle`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

/// One node of a zone in so much time. Source: `--node-eviction-rate`.
const EVERY: Duration = Duration::from_secs(10);
/// The same in a large zone of which most is silent. Source: `--secondary-node-eviction-rate`.
const EVERY_SLOWLY: Duration = Duration::from_secs(100);
/// A zone with more nodes is a large one. Source: `--large-cluster-size-threshold`.
const LARGE: usize = 50;
/// From so many percent on most of a zone is silent. Source: `--unhealthy-zone-threshold`.
const UNHEALTHY_PERCENT: usize = 55;
/// A node is tainted no sooner after it fell silent: what happens to all nodes at once is then known of all of them.
/// Upstream taints in the round after the one that notices. Source: `--node-monitor-period`.
const ROUND: Duration = Duration::from_secs(5);

/// How a zone is. Source: `ZoneState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Nothing is known yet.
    #[default]
    Initial,
    Normal,
    /// Most of it is silent.
    Partial,
    /// All of it is.
    Full,
}

/// Lets one through in so much time, or nobody. Source: `flowcontrol.NewTokenBucketRateLimiter` with a burst of one.
#[derive(Debug)]
struct Limiter {
    every: Option<Duration>,
    free_at: Timestamp,
}

impl Limiter {
    /// How long it is until somebody may pass: `None` never.
    fn wait(&mut self, now: Timestamp) -> Option<Duration> {
        let every = self.every?;
        // A clock that goes back makes nobody wait for longer.
        self.free_at = self.free_at.min(later(now, every));
        Some(until(now, self.free_at))
    }

    fn take(&mut self, now: Timestamp) {
        self.free_at = self.every.map_or(now, |every| later(now, every));
    }

    /// Whoever had to wait before waits for the new one's time. Source: `SwapLimiter`.
    fn swap(&mut self, every: Option<Duration>, now: Timestamp) {
        let free = self.wait(now).is_some_and(|wait| wait.is_zero());
        self.every = every;
        self.free_at = every.filter(|_| !free).map_or(now, |every| later(now, every));
    }
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    now.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

#[derive(Debug)]
struct Zone {
    /// Nodes that are there, also those that do not count.
    nodes: usize,
    ready: usize,
    silent: usize,
    state: State,
    limiter: Limiter,
    /// Nodes that are to be tainted, by number, with the moment since which they wait.
    waiting: BTreeMap<u64, (String, Timestamp)>,
}

impl Zone {
    fn new(now: Timestamp) -> Self {
        let limiter = Limiter { every: Some(EVERY), free_at: now };
        let state = State::default();
        Self { nodes: 0, ready: 0, silent: 0, state, limiter, waiting: BTreeMap::new() }
    }

    /// Source: `ComputeZoneState`.
    fn found(&self) -> State {
        match (self.ready, self.silent) {
            (0, 0) => State::Initial,
            (0, _) => State::Full,
            (ready, silent) if silent > 2 && silent * 100 >= UNHEALTHY_PERCENT * (ready + silent) => {
                State::Partial
            }
            _ => State::Normal,
        }
    }

    /// Source: `setLimiterInZone`, `ReducedQPSFunc`.
    fn enter(&mut self, state: State, now: Timestamp) {
        let reduced = (self.ready + self.silent > LARGE).then_some(EVERY_SLOWLY);
        self.limiter.swap(if state == State::Partial { reduced } else { Some(EVERY) }, now);
        self.state = state;
    }

    fn first(&self) -> Option<String> {
        self.waiting.values().next().map(|(name, _)| name.clone())
    }
}

/// What counts of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    /// Its zone.
    pub(super) zone: String,
    /// Whether it says that it is ready.
    pub(super) ready: bool,
    /// Whether it counts for how its zone is.
    pub(super) counts: bool,
}

#[derive(Debug)]
struct Known {
    health: Health,
    /// Its place among those that wait.
    number: Option<u64>,
    /// It may be tainted, and is not yet.
    granted: bool,
}

/// Whether a node may be tainted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// At once.
    Now,
    /// It is worth asking again then.
    In(Duration),
    /// It is told when something has changed.
    Later,
}

/// What follows from how the zones are now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// These nodes have to be looked at.
    pub(super) wake: Vec<String>,
    /// Nothing answered, and something does again: what was silent meanwhile gets its time once more.
    pub(super) resumed: bool,
}

/// All zones.
#[derive(Debug, Default)]
pub(super) struct Zones {
    nodes: HashMap<String, Known>,
    zones: BTreeMap<String, Zone>,
    numbers: u64,
    /// Something that counts has changed since the last turn.
    changed: bool,
    /// No node of any zone is ready: nobody is evicted.
    stopped: bool,
}

impl Zones {
    /// A node is there, or has changed; gives who is the next in a zone that it has left.
    pub(super) fn see(&mut self, name: &str, health: Health, now: Timestamp) -> Option<String> {
        if self.nodes.get(name).is_some_and(|known| known.health == health) {
            return None;
        }
        let left = self.nodes.get(name).map(|known| known.health.zone.clone());
        // Within its zone it keeps its place.
        let kept = self.nodes.remove(name).and_then(|known| {
            let stays = known.health.zone == health.zone;
            if !stays {
                self.dequeue(&known);
            }
            self.count(&known.health, false, now);
            stays.then_some(known)
        });
        self.count(&health, true, now);
        let (number, granted) = kept.map_or((None, false), |known| (known.number, known.granted));
        let left = left.filter(|zone| *zone != health.zone);
        self.nodes.insert(name.to_owned(), Known { health, number, granted });
        self.changed = true;
        self.zones.get(&left?)?.first()
    }

    /// A node is gone; gives who is the next in its zone.
    pub(super) fn forget(&mut self, name: &str, now: Timestamp) -> Option<String> {
        let known = self.nodes.remove(name)?;
        self.dequeue(&known);
        self.count(&known.health, false, now);
        self.changed = true;
        let zone = self.zones.get(&known.health.zone)?;
        let next = zone.first();
        if zone.nodes == 0 {
            self.zones.remove(&known.health.zone);
        }
        next
    }

    fn count(&mut self, health: &Health, more: bool, now: Timestamp) {
        let zone = self.zones.entry(health.zone.clone()).or_insert_with(|| Zone::new(now));
        let change = |count: &mut usize| {
            *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
        };
        change(&mut zone.nodes);
        match health {
            Health { counts: false, .. } => {}
            Health { ready: true, .. } => change(&mut zone.ready),
            Health { ready: false, .. } => change(&mut zone.silent),
        }
    }

    fn dequeue(&mut self, known: &Known) {
        if let (Some(number), Some(zone)) = (known.number, self.zones.get_mut(&known.health.zone)) {
            zone.waiting.remove(&number);
        }
    }

    /// Whether nobody is evicted, since nothing answers.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Draws the conclusions from what has changed. Source: `handleDisruption`.
    pub(super) fn turn(&mut self, now: Timestamp) -> Turn {
        if !std::mem::take(&mut self.changed) {
            return Turn::default();
        }
        self.zones.retain(|_, zone| zone.nodes > 0);
        let found = |zone: &Zone| Some(zone.found()).filter(|state| *state != State::Initial);
        let mut states = self.zones.values().filter_map(found).peekable();
        let stopped = states.peek().is_some() && states.all(|state| state == State::Full);
        let was_stopped = std::mem::replace(&mut self.stopped, stopped);
        if stopped {
            for zone in self.zones.values_mut() {
                zone.limiter.swap(None, now);
                zone.state = zone.found();
            }
            // They lose their taints.
            let wake = if was_stopped { Vec::new() } else { self.nodes.keys().cloned().collect() };
            return Turn { wake, resumed: false };
        }
        let mut wake = Vec::new();
        for zone in self.zones.values_mut() {
            let state = zone.found();
            if was_stopped || zone.state != state {
                zone.enter(state, now);
                wake.extend(zone.first());
            }
        }
        if was_stopped {
            wake = self.nodes.keys().cloned().collect();
        }
        Turn { wake, resumed: was_stopped }
    }

    /// Asks whether a node that has to be tainted may be. Each zone has its row.
    pub(super) fn ask(&mut self, name: &str, now: Timestamp) -> Permit {
        let Some(known) = self.nodes.get_mut(name) else { return Permit::Later };
        if known.granted {
            return Permit::Now;
        }
        let Some(zone) = self.zones.get_mut(&known.health.zone) else { return Permit::Later };
        let number = *known.number.get_or_insert_with(|| {
            self.numbers += 1;
            zone.waiting.insert(self.numbers, (name.to_owned(), now));
            self.numbers
        });
        let Some((_, since)) = zone.waiting.get_mut(&number) else { return Permit::Later };
        *since = (*since).min(now);
        let ripe = until(now, later(*since, ROUND));
        if zone.waiting.keys().next() != Some(&number) {
            return Permit::Later;
        }
        match zone.limiter.wait(now) {
            None => Permit::Later,
            Some(wait) if wait.max(ripe).is_zero() => {
                zone.limiter.take(now);
                zone.waiting.remove(&number);
                known.number = None;
                known.granted = true;
                Permit::Now
            }
            Some(wait) => Permit::In(wait.max(ripe)),
        }
    }

    /// A node need not be tainted, or is; gives who is the next in its zone, if that is another now.
    pub(super) fn leave(&mut self, name: &str) -> Option<String> {
        let known = self.nodes.get_mut(name)?;
        let (number, granted) = (known.number.take(), std::mem::take(&mut known.granted));
        let zone = self.zones.get_mut(&known.health.zone)?;
        let had = number.is_some_and(|number| zone.waiting.remove(&number).is_some());
        (had || granted).then(|| zone.first()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn see(zones: &mut Zones, name: &str, ready: bool, now: Timestamp) {
        let zone = name.chars().take(1).collect();
        zones.see(name, Health { zone, ready, counts: true }, now);
    }

    /// Nodes `a0…` that are ready, and one of zone `z`.
    fn zones(count: usize) -> Zones {
        let mut zones = Zones::default();
        (0..count).for_each(|node| see(&mut zones, &format!("a{node}"), true, at(0)));
        see(&mut zones, "z", true, at(0));
        zones.turn(at(0));
        zones
    }

    fn lose(zones: &mut Zones, nodes: std::ops::Range<usize>, now: Timestamp) -> Turn {
        nodes.for_each(|node| see(zones, &format!("a{node}"), false, now));
        zones.turn(now)
    }

    #[test]
    fn one_node_after_the_other_and_the_next_is_named() {
        let mut zones = zones(9);
        lose(&mut zones, 0..2, at(100));
        assert_eq!(zones.ask("a0", at(100)), Permit::In(ROUND));
        assert_eq!(zones.ask("a1", at(100)), Permit::Later);
        assert_eq!(zones.ask("a0", at(105)), Permit::Now);
        assert_eq!(zones.ask("a0", at(106)), Permit::Now, "a write that failed is tried again");
        assert_eq!(zones.leave("a0"), Some("a1".to_owned()));
        assert_eq!(zones.ask("a1", at(106)), Permit::In(Duration::from_secs(9)));
        assert_eq!(zones.ask("a1", at(115)), Permit::Now);
        // One that answers again leaves its place, and one that is gone too.
        lose(&mut zones, 2..5, at(115));
        let waiting = ["a2", "a3", "a4"].map(|name| zones.ask(name, at(115)));
        assert_eq!(waiting[1..], [Permit::Later, Permit::Later]);
        assert_eq!(zones.leave("a2"), Some("a3".to_owned()));
        assert_eq!(zones.forget("a3", at(116)), Some("a4".to_owned()));
    }

    #[test]
    fn where_most_is_silent_nobody_is_tainted_or_only_slowly() {
        let mut small = zones(6);
        lose(&mut small, 0..3, at(0));
        assert_eq!(small.ask("a0", at(5)), Permit::In(ROUND));
        assert_eq!(lose(&mut small, 3..4, at(8)).wake, ["a0"]);
        assert_eq!(small.ask("a0", at(500)), Permit::Later);
        see(&mut small, "a3", true, at(500));
        assert_eq!(small.turn(at(500)).wake, ["a0"], "most answers again");
        assert_eq!(small.ask("a0", at(500)), Permit::In(EVERY));
        assert_eq!(small.ask("a0", at(510)), Permit::Now);

        let mut large = zones(100);
        lose(&mut large, 0..60, at(0));
        large.ask("a0", at(0));
        assert_eq!(large.ask("a0", at(5)), Permit::Now);
        large.ask("a1", at(5));
        large.leave("a0");
        assert_eq!(large.ask("a1", at(10)), Permit::In(EVERY_SLOWLY - ROUND));
        // A zone of which nothing answers, while others do, is as any other.
        let mut whole = zones(4);
        lose(&mut whole, 0..4, at(0));
        whole.ask("a0", at(0));
        assert_eq!(whole.ask("a0", at(5)), Permit::Now);
    }

    #[test]
    fn where_nothing_answers_all_stops_until_something_does() {
        let mut zones = zones(3);
        lose(&mut zones, 0..3, at(0));
        zones.ask("a0", at(0));
        assert_eq!(zones.ask("a0", at(5)), Permit::Now);
        see(&mut zones, "z", false, at(6));
        let turn = zones.turn(at(6));
        assert!(zones.is_stopped() && turn.wake.len() == 4 && !turn.resumed);
        zones.leave("a0");
        assert_eq!(zones.ask("a0", at(7)), Permit::Later);
        assert_eq!(zones.turn(at(8)), Turn::default());
        see(&mut zones, "z", true, at(100));
        let turn = zones.turn(at(100));
        assert!(!zones.is_stopped() && turn.wake.len() == 4 && turn.resumed);
        assert_eq!(zones.ask("a0", at(100)), Permit::In(EVERY));
        assert_eq!(zones.ask("a0", at(110)), Permit::Now);
    }

    #[test]
    fn who_goes_to_another_zone_holds_up_nobody() {
        let mut zones = zones(9);
        lose(&mut zones, 0..2, at(0));
        zones.ask("a0", at(0));
        assert_eq!(zones.ask("a1", at(0)), Permit::Later);
        let moved = Health { zone: "b".into(), ready: false, counts: true };
        assert_eq!(zones.see("a0", moved.clone(), at(5)), Some("a1".to_owned()));
        assert_eq!(zones.see("a0", moved, at(5)), None);
        assert_eq!(zones.ask("a1", at(5)), Permit::Now);
    }

    #[test]
    fn what_does_not_count_stops_nothing() {
        let mut zones = Zones::default();
        zones.see("a0", Health { zone: String::new(), ready: false, counts: false }, at(0));
        zones.turn(at(0));
        assert!(!zones.is_stopped());
        zones.ask("a0", at(0));
        assert_eq!(zones.ask("a0", at(5)), Permit::Now);
    }

    #[test]
    fn a_clock_that_goes_back_makes_nobody_wait_for_longer() {
        let mut zones = zones(9);
        lose(&mut zones, 0..2, at(10_000));
        zones.ask("a0", at(10_000));
        assert_eq!(zones.ask("a0", at(10_005)), Permit::Now);
        zones.leave("a0");
        zones.ask("a1", at(10_005));
        assert_eq!(zones.ask("a1", at(100)), Permit::In(EVERY));
        assert_eq!(zones.ask("a1", at(110)), Permit::Now);
    }
}
