//! The pods that wait: those that can be tried now, those that wait out a back-off, and those that nothing has changed
//! for since they were refused. Source: `backend/queue`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use jiff::Timestamp;

use crate::types::Pod;

/// How long a pod waits before its next attempt.
const BACKOFF: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(10) };
/// After so long a refused pod is tried again even though no event said that it might fit.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

/// The order of attempts: higher priority first, then the older.
type Rank = (std::cmp::Reverse<i64>, Timestamp, u64);

/// A pod that waits.
#[derive(Debug)]
struct Waiting {
    pod: Arc<Pod>,
    attempts: u32,
    place: Place,
    rejected_by: HashSet<&'static str>,
}

/// Where in the queue a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(Rank),
    /// Until then.
    Backoff(Timestamp),
    /// Since then.
    Unschedulable(Timestamp),
    /// Taken by [`PodQueue::pop`]; the count of moves at that time.
    InFlight(u64),
}

/// A pod to be tried.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The pod.
    pub pod: Arc<Pod>,
}

/// The queue; plain state, driven by the scheduler's loop.
#[derive(Debug, Default)]
pub struct PodQueue {
    waiting: HashMap<String, Waiting>,
    active: BTreeMap<Rank, String>,
    backoff: BTreeSet<(Timestamp, String)>,
    sequence: u64,
    /// Counts events that moved or could have moved pods: one that comes while a pod is being tried must not be missed.
    moves: u64,
}

impl PodQueue {
    /// Puts a pod, or its new version. A new version of a refused pod is tried again if `changed` says that it matters.
    pub fn put(&mut self, pod: Arc<Pod>, changed: bool, now: Timestamp) {
        let uid = pod.uid.clone();
        if let Some(held) = self.waiting.get_mut(&uid) {
            held.pod = pod;
            if changed {
                self.moves += 1;
                if matches!(held.place, Place::Unschedulable(_)) {
                    self.activate(&uid, now);
                }
            }
            return;
        }
        let rank = self.rank(&pod, now);
        self.active.insert(rank, uid.clone());
        let waiting = Waiting { pod, attempts: 0, place: Place::Active(rank), rejected_by: HashSet::new() };
        self.waiting.insert(uid, waiting);
    }

    /// Takes a pod out: it is gone, bound, or no longer ours.
    pub fn remove(&mut self, uid: &str) {
        if let Some(held) = self.waiting.remove(uid) {
            self.unplace(uid, held.place);
        }
    }

    /// Whether a pod waits or is being tried.
    pub fn contains(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid)
    }

    /// The next pod to be tried.
    pub fn pop(&mut self) -> Option<Attempt> {
        let (_, uid) = self.active.pop_first()?;
        let held = self.waiting.get_mut(&uid)?;
        held.attempts = held.attempts.saturating_add(1);
        held.place = Place::InFlight(self.moves);
        Some(Attempt { pod: held.pod.clone() })
    }

    /// Gives a pod back that these plugins refused. If something changed meanwhile, it waits out its back-off only.
    pub fn refused(&mut self, uid: &str, rejected_by: HashSet<&'static str>, now: Timestamp) {
        let moves = self.moves;
        let Some(held) = self.waiting.get_mut(uid) else { return };
        let Place::InFlight(since) = held.place else { return };
        held.rejected_by = rejected_by;
        if since == moves {
            held.place = Place::Unschedulable(now);
        } else {
            self.back_off(uid, now);
        }
    }

    /// Gives a pod back whose binding failed: tried again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Timestamp) {
        if self.waiting.get(uid).is_some_and(|held| matches!(held.place, Place::InFlight(_))) {
            self.back_off(uid, now);
        }
    }

    /// Something changed: refused pods for which `may_help` says so come back, after their back-off.
    pub fn event(&mut self, now: Timestamp, may_help: impl Fn(&Pod, &HashSet<&'static str>) -> bool) {
        self.moves += 1;
        let helped: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, held)| matches!(held.place, Place::Unschedulable(_)))
            .filter(|(_, held)| may_help(&held.pod, &held.rejected_by))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in helped {
            self.back_off(&uid, now);
        }
    }

    /// Moves what is due to the active pods; gives when to call again.
    pub fn tick(&mut self, now: Timestamp) -> Option<Timestamp> {
        while let Some((deadline, uid)) = self.backoff.first().cloned() {
            if deadline > now {
                break;
            }
            self.activate(&uid, now);
        }
        let overdue = |held: &Waiting| match held.place {
            Place::Unschedulable(since) => since.saturating_add(UNSCHEDULABLE_MAX).ok(),
            _ => None,
        };
        let late: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, held)| overdue(held).is_some_and(|deadline| deadline <= now))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in late {
            self.activate(&uid, now);
        }
        let leftover = self.waiting.values().filter_map(overdue).min();
        self.backoff.first().map(|(deadline, _)| *deadline).into_iter().chain(leftover).min()
    }

    fn rank(&mut self, pod: &Pod, now: Timestamp) -> Rank {
        self.sequence += 1;
        (std::cmp::Reverse(pod.priority), pod.created.unwrap_or(now), self.sequence)
    }

    fn unplace(&mut self, uid: &str, place: Place) {
        match place {
            Place::Active(rank) => drop(self.active.remove(&rank)),
            Place::Backoff(deadline) => drop(self.backoff.remove(&(deadline, uid.to_owned()))),
            Place::Unschedulable(_) | Place::InFlight(_) => {}
        }
    }

    fn move_to(&mut self, uid: &str, place: Place) {
        let Some(held) = self.waiting.get_mut(uid) else { return };
        let before = std::mem::replace(&mut held.place, place);
        self.unplace(uid, before);
        match place {
            Place::Active(rank) => drop(self.active.insert(rank, uid.to_owned())),
            Place::Backoff(deadline) => drop(self.backoff.insert((deadline, uid.to_owned()))),
            Place::Unschedulable(_) | Place::InFlight(_) => {}
        }
    }

    fn activate(&mut self, uid: &str, now: Timestamp) {
        let Some(pod) = self.waiting.get(uid).map(|held| held.pod.clone()) else { return };
        let rank = self.rank(&pod, now);
        self.move_to(uid, Place::Active(rank));
    }

    /// A refused pod's back-off began when it was refused: what has passed of it counts.
    fn back_off(&mut self, uid: &str, now: Timestamp) {
        let Some(held) = self.waiting.get(uid) else { return };
        let since = if let Place::Unschedulable(since) = held.place { since } else { now };
        match since.saturating_add(BACKOFF.delay(held.attempts)) {
            Ok(deadline) if deadline > now => self.move_to(uid, Place::Backoff(deadline)),
            _ => self.activate(uid, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i64) -> Arc<Pod> {
        Arc::new(Pod { uid: uid.into(), priority, ..Pod::default() })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn popped(queue: &mut PodQueue) -> Option<String> {
        queue.pop().map(|attempt| attempt.pod.uid.clone())
    }

    #[test]
    fn priority_then_age() {
        let mut queue = PodQueue::default();
        for (uid, priority) in [("a", 0), ("b", 0), ("c", 9)] {
            queue.put(pod(uid, priority), true, at(0));
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn refused_pods_wait_for_an_event_that_helps() {
        let mut queue = PodQueue::default();
        queue.put(pod("a", 0), true, at(0));
        popped(&mut queue);
        queue.refused("a", HashSet::from(["NodeResourcesFit"]), at(0));
        assert_eq!(queue.tick(at(0)), Some(at(300)));
        queue.event(at(5), |_, _| false);
        assert_eq!(popped(&mut queue), None);
        queue.event(at(5), |_, by| by.contains("NodeResourcesFit"));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
        // The second attempt's back-off is longer than what has passed.
        queue.refused("a", HashSet::new(), at(5));
        queue.event(at(6), |_, _| true);
        assert_eq!((popped(&mut queue), queue.tick(at(6))), (None, Some(at(7))));
        queue.tick(at(7));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
    }

    #[test]
    fn an_event_during_the_attempt_is_not_missed() {
        let mut queue = PodQueue::default();
        queue.put(pod("a", 0), true, at(0));
        popped(&mut queue);
        queue.event(at(0), |_, _| true);
        queue.refused("a", HashSet::new(), at(0));
        queue.tick(at(1));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
        queue.remove("a");
        queue.failed("a", at(1));
        assert!(!queue.contains("a") && queue.tick(at(1000)).is_none());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut queue = PodQueue::default();
        queue.put(pod("a", 0), true, at(0));
        popped(&mut queue);
        queue.refused("a", HashSet::new(), at(0));
        assert_eq!(queue.tick(at(300)), None);
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
    }
}
