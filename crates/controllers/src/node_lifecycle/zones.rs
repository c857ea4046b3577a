//! How fast nodes that are not ready may be told to let their pods go: zone by zone, the more slowly the more of a zone is
//! gone, and not at all where no node of the whole cluster answers, since then it is rather this side that is cut off.
//! Source: `handleDisruption`, `ComputeZoneState`, `RateLimitedTimedQueue`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

/// One node of a zone in so long. Source: `--node-eviction-rate` (0.1 a second).
const PAUSE: Duration = Duration::from_secs(10);
/// The same where a part of a large zone is gone. Source: `--secondary-node-eviction-rate` (0.01 a second).
const PAUSE_DISRUPTED: Duration = Duration::from_secs(100);
/// Zones with more nodes are large; in others nothing is evicted while a part of them is gone.
/// Source: `--large-cluster-size-threshold`.
const LARGE: usize = 50;
/// A part of a zone is gone if so many of a hundred nodes are, and more than two. Source: `--unhealthy-zone-threshold`.
const UNHEALTHY_PERCENT: usize = 55;

/// How a zone is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Normal,
    Partial,
    Full,
}

impl State {
    /// Source: `ComputeZoneState`.
    fn of(size: usize, unhealthy: usize) -> Self {
        if size > 0 && unhealthy == size {
            Self::Full
        } else if unhealthy > 2 && unhealthy * 100 >= size * UNHEALTHY_PERCENT {
            Self::Partial
        } else {
            Self::Normal
        }
    }
}

#[derive(Debug, Default)]
struct Zone {
    size: usize,
    unhealthy: usize,
    state: State,
    /// The pause by which those that wait were told when to ask again.
    told: Option<Duration>,
    /// When a node was admitted last.
    admitted: Option<Timestamp>,
    /// Those that wait, by their turn.
    waiting: BTreeMap<u64, String>,
}

impl Zone {
    /// How far apart nodes are admitted; `None`: not at all.
    fn pause(&self) -> Option<Duration> {
        match self.state {
            State::Normal | State::Full => Some(PAUSE),
            State::Partial => (self.size > LARGE).then_some(PAUSE_DISRUPTED),
        }
    }
}

/// A node as it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    zone: String,
    ready: bool,
}

/// What a change of a node means for others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing.
    Same,
    /// These may be admitted at another time than they were told.
    Look(Vec<String>),
    /// No node of the cluster is ready any more: no node's pods go, also where that was said already.
    Stopped,
    /// A node is ready again: from now on silence counts anew.
    Resumed,
}

/// Whether a node may be told now that its pods go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may, and this one is the next after so long.
    Now(Option<(String, Duration)>),
    /// Not before this has passed.
    After(Duration),
    /// When another one has been admitted, or the zone is better.
    Waits,
    /// The whole cluster is disrupted.
    Stopped,
}

/// The zones.
#[derive(Debug, Default)]
pub(super) struct Zones {
    nodes: HashMap<String, Member>,
    zones: BTreeMap<String, Zone>,
    /// The turn of each that waits.
    turns: HashMap<String, (String, u64)>,
    next_turn: u64,
    stopped: bool,
}

impl Zones {
    /// Counts a node in a zone, as ready or not; one that is gone, or that says nothing about its zone, in none.
    pub(super) fn see(&mut self, node: &str, zone: Option<String>, ready: bool) -> Turn {
        let member = zone.map(|zone| Member { zone, ready });
        if self.nodes.get(node) == member.as_ref() {
            return Turn::Same;
        }
        let next = match self.turns.get(node) {
            Some((zone, _)) if ready || member.as_ref().is_none_or(|member| member.zone != *zone) => {
                self.leave(node)
            }
            _ => None,
        };
        if let Some(held) = self.nodes.remove(node) {
            self.count(&held, |count| count.saturating_sub(1));
        }
        if let Some(member) = member {
            self.count(&member, |count| count + 1);
            self.nodes.insert(node.to_owned(), member);
        }
        self.zones.retain(|_, zone| zone.size > 0 || !zone.waiting.is_empty());
        self.settle(next)
    }

    fn count(&mut self, member: &Member, change: impl Fn(usize) -> usize) {
        let zone = self.zones.entry(member.zone.clone()).or_default();
        zone.size = change(zone.size);
        if !member.ready {
            zone.unhealthy = change(zone.unhealthy);
        }
    }

    /// Brings the zones' states up to date. `next` is to be looked at in any case.
    fn settle(&mut self, next: Option<String>) -> Turn {
        let mut changed: Vec<String> = next.into_iter().collect();
        for zone in self.zones.values_mut() {
            zone.state = State::of(zone.size, zone.unhealthy);
            let pause = zone.pause();
            if std::mem::replace(&mut zone.told, pause) != pause {
                // The first that waits brings the others.
                changed.extend(zone.waiting.values().next().cloned());
            }
        }
        let counted = || self.zones.values().filter(|zone| zone.size > 0);
        let stopped = counted().next().is_some() && counted().all(|zone| zone.state == State::Full);
        match (std::mem::replace(&mut self.stopped, stopped), stopped) {
            (false, true) => Turn::Stopped,
            (true, false) => Turn::Resumed,
            _ if changed.is_empty() => Turn::Same,
            _ => Turn::Look(changed),
        }
    }

    /// Whether no node of the cluster is ready.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Asks for a node of a zone; it keeps its turn until it is admitted or has no need any more.
    pub(super) fn admit(&mut self, node: &str, zone: &str, now: Timestamp) -> Admission {
        if self.stopped {
            return Admission::Stopped;
        }
        let turn = self.turn(node, zone);
        let Some(held) = self.zones.get_mut(zone) else { return Admission::Waits };
        let Some(pause) = held.pause() else { return Admission::Waits };
        if held.waiting.first_key_value().is_some_and(|(first, _)| *first != turn) {
            return Admission::Waits;
        }
        let since = held.admitted.map(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        let left = pause.saturating_sub(since.unwrap_or(pause));
        if !left.is_zero() {
            return Admission::After(left);
        }
        held.admitted = Some(now);
        Admission::Now(self.leave(node).map(|next| (next, pause)))
    }

    fn turn(&mut self, node: &str, zone: &str) -> u64 {
        match self.turns.get(node) {
            Some((held, turn)) if held == zone => return *turn,
            Some(_) => drop(self.leave(node)),
            None => {}
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.insert(node.to_owned(), (zone.to_owned(), turn));
        self.zones.entry(zone.to_owned()).or_default().waiting.insert(turn, node.to_owned());
        turn
    }

    /// A node needs no turn any more; gives who is the first of its zone now.
    pub(super) fn leave(&mut self, node: &str) -> Option<String> {
        let (zone, turn) = self.turns.remove(node)?;
        let zone = self.zones.get_mut(&zone)?;
        let was_first = zone.waiting.first_key_value().is_some_and(|(first, _)| *first == turn);
        zone.waiting.remove(&turn);
        zone.waiting.values().next().filter(|_| was_first).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: &str = "z";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn zones(ready: usize, lost: usize) -> Zones {
        let mut zones = Zones::default();
        for (range, is_ready) in [(0..ready, true), (ready..ready + lost, false)] {
            range.for_each(|node| drop(zones.see(&format!("n{node}"), Some(ZONE.into()), is_ready)));
        }
        zones
    }

    #[test]
    fn a_zone_is_as_its_nodes_are() {
        let state = |ready: usize, lost: usize| State::of(ready + lost, lost);
        assert_eq!([state(0, 0), state(1, 0), state(2, 2)], [State::Normal; 3]);
        assert_eq!([state(0, 1), state(0, 9)], [State::Full; 2]);
        // 55 of 100, and not of a handful.
        assert_eq!([state(45, 55), state(46, 54)], [State::Partial, State::Normal]);
        assert_eq!([state(1, 2), state(1, 3)], [State::Normal, State::Partial]);
    }

    #[test]
    fn one_node_goes_in_ten_seconds_in_the_order_in_which_they_asked() {
        let mut zones = zones(10, 3);
        let pause = Duration::from_secs(10);
        assert_eq!(zones.admit("n10", ZONE, at(0)), Admission::Now(None));
        assert_eq!(zones.admit("n11", ZONE, at(4)), Admission::After(Duration::from_secs(6)));
        assert_eq!(zones.admit("n12", ZONE, at(20)), Admission::Waits);
        assert_eq!(zones.admit("n11", ZONE, at(20)), Admission::Now(Some(("n12".into(), pause))));
        assert_eq!(zones.admit("n12", ZONE, at(29)), Admission::After(Duration::from_secs(1)));
        // One that is back makes way for the next.
        zones.admit("n10", ZONE, at(29));
        assert_eq!(zones.see("n12", Some(ZONE.into()), true), Turn::Look(vec!["n10".into()]));
        assert_eq!(zones.admit("n10", ZONE, at(30)), Admission::Now(None));
    }

    #[test]
    fn zones_do_not_wait_for_each_other() {
        let mut zones = zones(10, 1);
        zones.see("other", Some("y".into()), false);
        assert_eq!(zones.admit("n10", ZONE, at(0)), Admission::Now(None));
        assert_eq!(zones.admit("other", "y", at(0)), Admission::Now(None));
    }

    #[test]
    fn where_much_is_gone_less_goes() {
        let mut small = zones(4, 6);
        assert_eq!(small.admit("n9", ZONE, at(0)), Admission::Waits);
        // With one more that is back it is not so many any more.
        assert_eq!(small.see("n8", Some(ZONE.into()), true), Turn::Look(vec!["n9".into()]));
        assert_eq!(small.admit("n9", ZONE, at(0)), Admission::Now(None));
        let mut large = zones(20, 40);
        assert_eq!(large.admit("n50", ZONE, at(0)), Admission::Now(None));
        assert_eq!(large.admit("n51", ZONE, at(10)), Admission::After(Duration::from_secs(90)));
    }

    #[test]
    fn where_nothing_answers_nothing_goes() {
        let mut zones = zones(2, 0);
        zones.see("n1", Some(ZONE.into()), false);
        assert_eq!(zones.admit("n1", ZONE, at(0)), Admission::Now(None));
        assert_eq!(zones.see("n0", Some(ZONE.into()), false), Turn::Stopped);
        assert_eq!(zones.admit("n0", ZONE, at(60)), Admission::Stopped);
        // Who does not say anything counts for nothing.
        assert_eq!(zones.see("n2", None, true), Turn::Same);
        assert_eq!(zones.see("n1", Some(ZONE.into()), true), Turn::Resumed);
        assert_eq!(zones.admit("n0", ZONE, at(60)), Admission::Now(None));
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let mut zones = zones(1, 2);
        zones.admit("n1", ZONE, at(0));
        zones.admit("n2", ZONE, at(0));
        for node in ["n0", "n1", "n2"] {
            zones.see(node, None, false);
        }
        assert!(zones.nodes.is_empty() && zones.zones.is_empty() && zones.turns.is_empty());
        assert!(!zones.is_stopped());
    }
}
