//! The pods that wait: those that can be tried now, those that wait out a back-off, those that nothing has changed for
//! since they were refused, and those that somebody holds back. Source: `backend/queue`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use base::backoff::Policy;
use jiff::Timestamp;

use crate::types::Pod;

/// After so long a refused pod is tried again even though no event said that it might fit.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

/// The order of attempts: higher priority first, then who came or was given back first. Source: `PrioritySort`.
type Rank = (std::cmp::Reverse<i64>, u64);
type Uid = Arc<str>;
/// Pods that wait out a back-off: those that end it in the same second are in the order of attempts.
type BackingOff = BTreeSet<(Timestamp, Rank, Uid)>;

/// A pod that waits.
#[derive(Debug)]
struct Waiting {
    pod: Arc<Pod>,
    /// How often it was refused.
    refusals: u32,
    /// How often in a row something failed.
    failures: u32,
    place: Place,
    rejected_by: HashSet<&'static str>,
    /// How often it was tried.
    tries: u32,
    /// When it could be tried first.
    since: Timestamp,
    /// Counts who came or was given back before it. Upstream's `QueuedPodInfo.Timestamp`: neither a back-off that ends nor
    /// an event makes a pod younger.
    queued: u64,
}

impl Waiting {
    fn rank(&self) -> Rank {
        (std::cmp::Reverse(self.pod.priority()), self.queued)
    }
}

/// How long a pod has waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// How often it was tried.
    pub tries: u32,
    /// When it could be tried first.
    pub since: Timestamp,
}

/// What the queue tells of itself, under upstream's names of its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods that wait, by part.
    pub waiting: [(&'static str, i64); 4],
    /// How often pods came to a part, and what brought them there.
    pub came: BTreeMap<(&'static str, &'static str), u64>,
    /// Pods that were refused and have not been tried since, by each plugin that refused them and their scheduler's name.
    pub refused: BTreeMap<(&'static str, String), i64>,
}

const ACTIVE: &str = "active";
const BACKOFF: &str = "backoff";
const REFUSED: &str = "unschedulable";
const HELD_BACK: &str = "gated";
/// What brings pods to a part. Source: `pkg/scheduler/framework/events.go`.
const ADDED: &str = "PodAdd";
const CHANGED: &str = "PodUpdate";
const ATTEMPT_FAILED: &str = "ScheduleAttemptFailure";
const BACKED_OFF: &str = "BackoffComplete";
const FORCED: &str = "ForceActivate";
const WAITED_LONG: &str = "UnschedulableTimeout";
const TAKEN: &str = "PopFromBackoffQ";

/// Where in the queue a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(Rank),
    /// Until then; after a refusal, or after a failure.
    Backoff(Timestamp, Rank, Because),
    /// Since then.
    Unschedulable(Timestamp),
    /// Taken by [`PodQueue::pop`]; the count of moves at that time.
    InFlight(u64),
    /// A plugin does not let it be tried.
    Gated,
}

impl Place {
    /// The part of the queue, if it is one.
    fn part(self) -> Option<&'static str> {
        match self {
            Self::Active(_) => Some(ACTIVE),
            Self::Backoff(..) => Some(BACKOFF),
            Self::Unschedulable(_) => Some(REFUSED),
            Self::Gated => Some(HELD_BACK),
            Self::InFlight(_) => None,
        }
    }
}

/// Why a pod waits out a back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    Refused,
    Failed,
}

/// The queue; plain state, driven by the scheduler's loop.
#[derive(Debug)]
pub struct PodQueue {
    backoff_policy: Policy,
    waiting: HashMap<Uid, Waiting>,
    active: BTreeMap<Rank, Uid>,
    refusals: BackingOff,
    failures: BackingOff,
    unschedulable: BTreeSet<(Timestamp, Uid)>,
    /// The same by each plugin that refused them; those that none did, under an empty name.
    refused_by: HashMap<&'static str, BTreeSet<Uid>>,
    /// The pods that a plugin does not let be tried, by each claim of devices that they name.
    held_back: HashMap<Key, BTreeSet<Uid>>,
    sequence: u64,
    /// Counts events that moved or could have moved pods: one that comes while a pod is being tried must not be missed.
    moves: u64,
    came: BTreeMap<(&'static str, &'static str), u64>,
}

impl PodQueue {
    /// An empty queue; refused pods wait so long before their next attempt.
    pub fn new(backoff: Policy) -> Self {
        Self {
            backoff_policy: backoff,
            waiting: HashMap::new(),
            active: BTreeMap::new(),
            refusals: BTreeSet::new(),
            failures: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            refused_by: HashMap::new(),
            held_back: HashMap::new(),
            sequence: 0,
            moves: 0,
            came: BTreeMap::new(),
        }
    }

    /// Puts a pod, or its new version. `gated` pods are not tried. A new version of a refused pod is tried again if
    /// `helped` says so, given the plugins that refused it.
    pub fn put(
        &mut self,
        pod: Arc<Pod>,
        gated: bool,
        now: Timestamp,
        helped: impl Fn(&Pod, &HashSet<&'static str>) -> bool,
    ) {
        let uid = pod.uid.clone();
        self.sequence += 1;
        let queued = self.sequence;
        let Some(held) = self.waiting.get_mut(&uid) else {
            if gated {
                self.hold_back(&pod, true);
            }
            let waiting = Waiting {
                pod,
                refusals: 0,
                failures: 0,
                place: Place::Gated,
                rejected_by: HashSet::new(),
                tries: 0,
                since: now,
                queued,
            };
            self.waiting.insert(uid.clone(), waiting);
            if gated {
                self.count(Place::Gated, ADDED);
            } else {
                self.activate(&uid, ADDED);
            }
            return;
        };
        let before = std::mem::replace(&mut held.pod, pod);
        match held.place {
            Place::Gated => {
                let pod = held.pod.clone();
                if !gated {
                    held.since = now;
                    self.activate(&uid, CHANGED);
                }
                // The new version may name other claims.
                self.hold_back(&before, false);
                if gated {
                    self.hold_back(&pod, true);
                }
            }
            // Its attempt has not ended: should it be refused, it is tried again, unless only its status is another.
            Place::InFlight(_) if is_another(&before, &held.pod) => self.moves += 1,
            Place::Unschedulable(_) if helped(&before, &held.rejected_by) => {
                self.back_off(&uid, now, CHANGED);
            }
            _ => {}
        }
    }

    /// Takes a pod out: it is gone, bound, or no longer ours.
    pub fn remove(&mut self, uid: &str) {
        if let Some((uid, held)) = self.waiting.remove_entry(uid) {
            self.unplace(&uid, held.place);
            if matches!(held.place, Place::Unschedulable(_)) {
                self.index(&uid, &held.rejected_by, false);
            }
            if held.place == Place::Gated {
                self.hold_back(&held.pod, false);
            }
        }
    }

    /// How long a pod has waited, if it does or is being tried.
    pub fn waited(&self, uid: &str) -> Option<Waited> {
        self.waiting.get(uid).map(|held| Waited { tries: held.tries, since: held.since })
    }

    /// What it tells of itself.
    pub fn counts(&self) -> Counts {
        let gated = self.waiting.values().filter(|held| held.place == Place::Gated).count();
        let parts = [
            (ACTIVE, self.active.len()),
            (BACKOFF, self.refusals.len() + self.failures.len()),
            (REFUSED, self.unschedulable.len()),
            (HELD_BACK, gated),
        ];
        let waiting = parts.map(|(part, pods)| (part, i64::try_from(pods).unwrap_or(i64::MAX)));
        Counts { waiting, came: self.came.clone(), refused: self.refused_pods() }
    }

    /// Source: `metrics.UnschedulableReason`.
    fn refused_pods(&self) -> BTreeMap<(&'static str, String), i64> {
        let mut refused = BTreeMap::new();
        for held in self.waiting.values() {
            let gates =
                (held.place == Place::Gated && !held.pod.gates.is_empty()).then_some("SchedulingGates");
            let tried = matches!(held.place, Place::InFlight(_) | Place::Backoff(_, _, Because::Failed));
            let by = held.rejected_by.iter().copied().filter(|_| !tried);
            for plugin in by.chain(gates) {
                *refused.entry((plugin, held.pod.spec.scheduler_name.clone())).or_default() += 1;
            }
        }
        refused
    }

    /// A pod comes to a place.
    fn count(&mut self, place: Place, event: &'static str) {
        if let Some(part) = place.part() {
            *self.came.entry((part, event)).or_default() += 1;
        }
    }

    /// Whether a pod waits or is being tried.
    pub fn contains(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid)
    }

    /// The pod as it waits.
    pub fn get(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.waiting.get(uid).map(|held| &held.pod)
    }

    /// The pods that name a claim of devices and that a plugin does not let be tried.
    pub fn held_back(&self, claim: &Key) -> impl Iterator<Item = &Arc<Pod>> {
        self.held_back.get(claim).into_iter().flatten().filter_map(|uid| self.get(uid))
    }

    /// Keeps or takes away a pod under the claims that it names. It is kept while its place is [`Place::Gated`].
    fn hold_back(&mut self, pod: &Pod, held: bool) {
        for name in pod.devices.iter().filter_map(|named| named.name()) {
            let claim = Key::new(pod.key.namespace.as_str(), name);
            if held {
                self.held_back.entry(claim).or_default().insert(pod.uid.clone());
            } else if let Some(uids) = self.held_back.get_mut(&claim) {
                uids.remove(&pod.uid);
                if uids.is_empty() {
                    self.held_back.remove(&claim);
                }
            }
        }
    }

    /// The next pod to be tried. If none can be tried now, one that waits out the back-off of a refusal is: nobody would
    /// have to wait for it.
    pub fn pop(&mut self) -> Option<Arc<Pod>> {
        let uid = match self.active.first_key_value() {
            Some((_, uid)) => uid.clone(),
            None => self.refusals.first()?.2.clone(),
        };
        if self.active.is_empty() {
            // Upstream's are active for that moment.
            *self.came.entry((ACTIVE, TAKEN)).or_default() += 1;
        }
        let moves = self.moves;
        self.move_to(&uid, Place::InFlight(moves), "");
        let held = self.waiting.get_mut(&uid)?;
        held.tries = held.tries.saturating_add(1);
        Some(held.pod.clone())
    }

    /// Gives a pod back that these plugins refused. If something changed meanwhile, it waits out its back-off only.
    pub fn refused(&mut self, uid: &str, rejected_by: HashSet<&'static str>, now: Timestamp) {
        let moves = self.moves;
        self.sequence += 1;
        let Some(held) = self.waiting.get_mut(uid) else { return };
        let Place::InFlight(since) = held.place else { return };
        held.queued = self.sequence;
        held.rejected_by = rejected_by;
        held.refusals = held.refusals.saturating_add(1);
        held.failures = 0;
        if since == moves {
            self.move_to(uid, Place::Unschedulable(now), ATTEMPT_FAILED);
        } else {
            // Others had to be asked, or nothing could have changed meanwhile: they are not asked again at once.
            held.failures = 1;
            self.back_off(uid, now, ATTEMPT_FAILED);
        }
    }

    /// Gives a pod back for which something failed: tried again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Timestamp) {
        self.sequence += 1;
        let Some(held) = self.waiting.get_mut(uid) else { return };
        if matches!(held.place, Place::InFlight(_)) {
            held.queued = self.sequence;
            held.failures = held.failures.saturating_add(1);
            self.back_off(uid, now, ATTEMPT_FAILED);
        }
    }

    /// What was done for a pod that waits came to nothing: it is tried again after the back-off of failures, from now on.
    pub fn in_vain(&mut self, uid: &str, now: Timestamp) {
        let Some(held) = self.waiting.get_mut(uid) else { return };
        if !matches!(held.place, Place::Unschedulable(_) | Place::Backoff(..)) {
            return;
        }
        held.failures = held.failures.saturating_add(1);
        let rank = held.rank();
        let deadline = now.saturating_add(self.backoff_policy.delay(held.failures)).map(whole_seconds);
        let deadline = deadline.unwrap_or(Timestamp::MAX);
        self.move_to(uid, Place::Backoff(deadline, rank, Because::Failed), ATTEMPT_FAILED);
    }

    /// Something changed, in upstream's word for it: refused pods for which `may_help` says so come back, after their
    /// back-off. Only those are asked about that a plugin refused which `heeds` such changes at all: most changes concern
    /// few plugins, and many may wait.
    pub fn event(
        &mut self,
        now: Timestamp,
        what: &'static str,
        heeds: impl Fn(&'static str) -> bool,
        may_help: impl Fn(&Pod, &HashSet<&'static str>) -> bool,
    ) {
        self.moves += 1;
        let helps =
            |uid: &&Uid| self.waiting.get(*uid).is_some_and(|held| may_help(&held.pod, &held.rejected_by));
        let heeding = self.refused_by.iter().filter(|(plugin, _)| plugin.is_empty() || heeds(plugin));
        let helped: BTreeSet<Uid> = heeding.flat_map(|(_, uids)| uids).filter(helps).cloned().collect();
        for uid in helped {
            self.back_off(&uid, now, what);
        }
    }

    /// Tries a pod again at once if it was refused.
    pub fn retry(&mut self, uid: &str) {
        self.moves += 1;
        let held = self.waiting.get(uid).map(|held| held.place);
        if matches!(held, Some(Place::Unschedulable(_) | Place::Backoff(..))) {
            self.activate(uid, FORCED);
        }
    }

    /// Moves what is due to the active pods; gives when to call again.
    pub fn tick(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        for because in [Because::Refused, Because::Failed] {
            while let Some((deadline, _, uid)) = self.backing_off(because).first().cloned() {
                if deadline > now {
                    next = Some(next.map_or(deadline, |next| next.min(deadline)));
                    break;
                }
                self.activate(&uid, BACKED_OFF);
            }
        }
        while let Some((since, uid)) = self.unschedulable.first().cloned() {
            let Ok(deadline) = since.saturating_add(UNSCHEDULABLE_MAX) else { break };
            if deadline > now {
                return Some(next.map_or(deadline, |next| next.min(deadline)));
            }
            self.activate(&uid, WAITED_LONG);
        }
        next
    }

    fn backing_off(&mut self, because: Because) -> &mut BackingOff {
        match because {
            Because::Refused => &mut self.refusals,
            Because::Failed => &mut self.failures,
        }
    }

    fn unplace(&mut self, uid: &Uid, place: Place) {
        match place {
            Place::Active(rank) => drop(self.active.remove(&rank)),
            Place::Backoff(deadline, rank, because) => {
                self.backing_off(because).remove(&(deadline, rank, uid.clone()));
            }
            Place::Unschedulable(since) => drop(self.unschedulable.remove(&(since, uid.clone()))),
            Place::InFlight(_) | Place::Gated => {}
        }
    }

    /// Keeps or takes away a refused pod under the plugins that refused it.
    fn index(&mut self, uid: &Uid, by: &HashSet<&'static str>, refused: bool) {
        let none = by.is_empty().then_some("");
        for plugin in by.iter().copied().chain(none) {
            let uids = self.refused_by.entry(plugin).or_default();
            if refused {
                uids.insert(uid.clone());
            } else {
                uids.remove(uid);
            }
        }
    }

    fn move_to(&mut self, uid: &str, place: Place, event: &'static str) {
        let Some((uid, held)) = self.waiting.get_key_value(uid) else { return };
        let (uid, before) = (uid.clone(), held.place);
        self.unplace(&uid, before);
        match place {
            Place::Active(rank) => drop(self.active.insert(rank, uid.clone())),
            Place::Backoff(deadline, rank, because) => {
                self.backing_off(because).insert((deadline, rank, uid.clone()));
            }
            Place::Unschedulable(since) => drop(self.unschedulable.insert((since, uid.clone()))),
            Place::InFlight(_) | Place::Gated => {}
        }
        self.count(place, event);
        let refused = |place: Place| matches!(place, Place::Unschedulable(_));
        let by = match self.waiting.get_mut(&uid) {
            Some(held) if refused(before) || refused(place) => {
                held.place = place;
                held.rejected_by.clone()
            }
            Some(held) => return held.place = place,
            None => return,
        };
        self.index(&uid, &by, refused(place));
    }

    fn activate(&mut self, uid: &str, event: &'static str) {
        let Some(rank) = self.waiting.get(uid).map(Waiting::rank) else { return };
        self.move_to(uid, Place::Active(rank), event);
    }

    /// A refused pod's back-off began when it was refused: what has passed of it counts.
    fn back_off(&mut self, uid: &str, now: Timestamp, event: &'static str) {
        let Some(held) = self.waiting.get(uid) else { return };
        let since = if let Place::Unschedulable(since) = held.place { since } else { now };
        let (count, because) = match held.failures {
            0 => (held.refusals, Because::Refused),
            failures => (failures, Because::Failed),
        };
        let rank = held.rank();
        match since.saturating_add(self.backoff_policy.delay(count)).map(whole_seconds) {
            Ok(deadline) if deadline > now => {
                self.move_to(uid, Place::Backoff(deadline, rank, because), event);
            }
            _ => self.activate(uid, event),
        }
    }
}

/// A back-off ends with its second: of those that end together the more important pod is tried first. (Upstream's ends at
/// the same moment, unless it ended exactly with a second: that one waits for another.) Source:
/// `backoffQOrderingWindowDuration`.
fn whole_seconds(deadline: Timestamp) -> Timestamp {
    let begun = i64::from(deadline.subsec_nanosecond() > 0);
    Timestamp::from_second(deadline.as_second().saturating_add(begun)).unwrap_or(Timestamp::MAX)
}

/// Whether a pod may fit elsewhere than it did before.
pub(crate) fn is_another(before: &Pod, pod: &Pod) -> bool {
    before.spec != pod.spec
        || before.labels != pod.labels
        || before.gates != pod.gates
        || before.devices != pod.devices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeviceClaim, Spec};

    const POLICY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(10) };

    fn pod(uid: &str, priority: i64) -> Arc<Pod> {
        let spec = Arc::new(Spec { priority, ..Spec::default() });
        Arc::new(Pod { uid: uid.into(), spec, ..Pod::default() })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn popped(queue: &mut PodQueue) -> Option<String> {
        queue.pop().map(|pod| pod.uid.to_string())
    }

    fn with(pods: &[(&str, i64)]) -> PodQueue {
        let mut queue = PodQueue::new(POLICY);
        for (uid, priority) in pods {
            queue.put(pod(uid, *priority), false, at(0), |_, _| false);
        }
        queue
    }

    #[test]
    fn the_queue_tells_who_waits_where_and_what_brought_them_there() {
        let mut queue = with(&[("a", 0), ("b", 0)]);
        queue.put(pod("c", 0), true, at(0), |_, _| false);
        popped(&mut queue);
        assert!(queue.counts().refused.is_empty());
        queue.refused("a", HashSet::from(["NodeResourcesFit"]), at(1));
        assert_eq!(queue.counts().waiting, [(ACTIVE, 1), (BACKOFF, 0), (REFUSED, 1), (HELD_BACK, 1)]);
        assert_eq!(queue.counts().refused, BTreeMap::from([(("NodeResourcesFit", String::new()), 1)]));
        queue.event(at(1), "NodeAdd", |_| true, |_, _| true);
        assert_eq!(queue.counts().waiting, [(ACTIVE, 1), (BACKOFF, 1), (REFUSED, 0), (HELD_BACK, 1)]);
        queue.tick(at(3));
        queue.put(pod("c", 0), false, at(4), |_, _| false);
        let came = queue.counts().came;
        let expected = [
            ((ACTIVE, BACKED_OFF), 1),
            ((ACTIVE, ADDED), 2),
            ((ACTIVE, CHANGED), 1),
            ((BACKOFF, "NodeAdd"), 1),
            ((HELD_BACK, ADDED), 1),
            ((REFUSED, ATTEMPT_FAILED), 1),
        ];
        assert_eq!(came.into_iter().collect::<Vec<_>>(), expected);
        // Who is held back does not wait yet.
        assert_eq!(queue.waited("c"), Some(Waited { tries: 0, since: at(4) }));
        assert_eq!(queue.waited("a"), Some(Waited { tries: 1, since: at(0) }));
        // Who waits for its turn was refused all the same; who is being tried is not any more.
        assert_eq!(queue.counts().refused.len(), 1);
        assert_eq!(popped(&mut queue).as_deref(), Some("b"));
        assert_eq!(popped(&mut queue).as_deref(), Some("c"));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
        assert!(queue.counts().refused.is_empty());
    }

    #[test]
    fn priority_then_age() {
        let mut queue = with(&[("a", 0), ("b", 0), ("c", 9)]);
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn who_was_given_back_first_goes_first_whenever_it_may() {
        let mut queue = with(&[("a", 0), ("b", 0)]);
        for (uid, now) in [("a", 0), ("b", 1)] {
            popped(&mut queue);
            queue.refused(uid, HashSet::from(["NodeResourcesFit"]), at(now));
        }
        // One that comes later is behind both, and they are in order though the second was helped first.
        queue.put(pod("c", 0), false, at(2), |_, _| false);
        queue.event(at(20), "NodeAdd", |_| true, |pod, _| &*pod.uid == "b");
        queue.event(at(21), "NodeAdd", |_| true, |_, _| true);
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue)).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }

    #[test]
    fn of_those_whose_back_off_ends_in_one_second_the_more_important_goes_first() {
        let of = |milliseconds: i64| Timestamp::from_millisecond(milliseconds).unwrap();
        let tried = |first: i64, second: i64, end: fn(&mut PodQueue)| -> Vec<String> {
            let mut queue = with(&[("low", 0), ("high", 9)]);
            let (high, low) = (popped(&mut queue).unwrap(), popped(&mut queue).unwrap());
            queue.refused(&low, HashSet::from(["NodeResourcesFit"]), of(first));
            queue.refused(&high, HashSet::from(["NodeResourcesFit"]), of(second));
            queue.event(of(second), "NodeAdd", |_| true, |_, _| true);
            assert_eq!(queue.counts().waiting[1], (BACKOFF, 2));
            end(&mut queue);
            std::iter::from_fn(|| popped(&mut queue)).collect()
        };
        // Before their back-offs end, and when they have ended.
        assert_eq!(tried(100, 900, |_| ()), ["high", "low"]);
        assert_eq!(
            tried(100, 900, |queue| {
                queue.tick(at(4));
            }),
            ["high", "low"]
        );
        assert_eq!(tried(900, 1100, |_| ()), ["low", "high"]);
        assert_eq!(
            tried(900, 1100, |queue| {
                queue.tick(at(2));
            }),
            ["low", "high"]
        );
    }

    #[test]
    fn a_failure_is_found_behind_any_number_of_refusals() {
        let mut queue = with(&[("failed", 0)]);
        popped(&mut queue);
        queue.failed("failed", at(0));
        for number in 0..100 {
            let uid = number.to_string();
            queue.put(pod(&uid, 0), false, at(0), |_, _| false);
            popped(&mut queue);
            queue.refused(&uid, HashSet::new(), at(5));
        }
        queue.event(at(5), "NodeAdd", |_| true, |_, _| true);
        assert_eq!((queue.refusals.len(), queue.failures.len()), (100, 1));
        assert_eq!(queue.tick(at(5)), Some(at(6)));
        assert_eq!((queue.refusals.len(), queue.failures.len(), queue.active.len()), (100, 0, 1));
    }

    #[test]
    fn refused_pods_wait_for_an_event_that_helps() {
        let mut queue = with(&[("a", 0)]);
        popped(&mut queue);
        queue.refused("a", HashSet::from(["NodeResourcesFit"]), at(0));
        assert_eq!(queue.tick(at(0)), Some(at(300)));
        queue.event(at(5), "NodeAdd", |_| true, |_, _| false);
        assert_eq!(popped(&mut queue), None);
        queue.event(at(5), "NodeAdd", |plugin| plugin != "NodeResourcesFit", |_, _| true);
        assert_eq!(popped(&mut queue), None);
        queue.event(at(5), "NodeAdd", |_| true, |_, by| by.contains("NodeResourcesFit"));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
    }

    #[test]
    fn a_back_off_grows_and_gives_way_to_others_only() {
        let mut queue = with(&[("a", 9)]);
        for (now, until) in [(0, 1), (10, 12), (20, 24), (30, 38), (40, 50), (60, 70)] {
            assert_eq!(popped(&mut queue).as_deref(), Some("a"));
            queue.refused("a", HashSet::new(), at(now));
            queue.event(at(now), "NodeAdd", |_| false, |_, _| true);
            assert_eq!(queue.tick(at(now)), Some(at(until)));
            // Another goes first, though it is less important; then nobody is in the way.
            queue.put(pod("b", 0), false, at(now), |_, _| false);
            assert_eq!(popped(&mut queue).as_deref(), Some("b"));
            queue.remove("b");
            if now < 40 {
                queue.tick(at(until));
            }
        }
    }

    #[test]
    fn who_waits_after_a_failure_is_not_tried_early() {
        let mut queue = with(&[("a", 0)]);
        popped(&mut queue);
        queue.failed("a", at(0));
        assert_eq!((popped(&mut queue), queue.tick(at(0))), (None, Some(at(1))));
        queue.tick(at(1));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
        // A refusal ends the row of failures.
        queue.refused("a", HashSet::new(), at(1));
        queue.retry("a");
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
    }

    #[test]
    fn an_event_during_the_attempt_is_not_missed() {
        let mut queue = with(&[("a", 0)]);
        popped(&mut queue);
        queue.event(at(0), "NodeAdd", |_| true, |_, _| true);
        queue.refused("a", HashSet::new(), at(0));
        queue.tick(at(1));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
        queue.remove("a");
        queue.failed("a", at(1));
        assert!(!queue.contains("a") && queue.tick(at(1000)).is_none());
        assert!(queue.refused_by.values().all(BTreeSet::is_empty));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut queue = with(&[("a", 0)]);
        popped(&mut queue);
        queue.refused("a", HashSet::new(), at(0));
        assert_eq!((popped(&mut queue), queue.tick(at(300))), (None, None));
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
    }

    #[test]
    fn who_is_held_back_is_tried_when_the_gate_opens() {
        let mut queue = PodQueue::new(POLICY);
        queue.put(pod("a", 0), true, at(0), |_, _| true);
        queue.event(at(1), "NodeAdd", |_| true, |_, _| true);
        queue.put(pod("a", 0), true, at(2), |_, _| true);
        assert_eq!((popped(&mut queue), queue.tick(at(1000))), (None, None));
        queue.put(pod("a", 0), false, at(1000), |_, _| true);
        assert_eq!(popped(&mut queue).as_deref(), Some("a"));
    }

    #[test]
    fn who_is_held_back_is_found_by_the_claims_that_it_names() {
        let naming = |uid: &str, claims: &[&str]| {
            let devices = claims.iter().map(|name| DeviceClaim::Named((*name).to_owned())).collect();
            Arc::new(Pod { key: Key::new("ns", uid), devices, ..Pod::clone(&pod(uid, 0)) })
        };
        let held = |queue: &PodQueue, claim: &str| -> Vec<String> {
            queue.held_back(&Key::new("ns", claim)).map(|pod| pod.uid.to_string()).collect()
        };
        let mut queue = PodQueue::new(POLICY);
        // A pod may name one claim several times.
        for (pod, gated) in [
            (naming("a", &["x", "x"]), true),
            (naming("b", &["x", "y"]), true),
            (naming("c", &["x"]), false),
            (naming("d", &[]), true),
        ] {
            queue.put(pod, gated, at(0), |_, _| false);
        }
        assert_eq!((held(&queue, "x"), held(&queue, "y")), (vec!["a".into(), "b".into()], vec!["b".into()]));
        assert_eq!(queue.held_back(&Key::new("elsewhere", "x")).count(), 0);
        // One names another claim now, one waits no more.
        queue.put(naming("a", &["z"]), true, at(1), |_, _| false);
        queue.put(naming("b", &["x", "z"]), false, at(1), |_, _| false);
        assert_eq!((held(&queue, "x"), held(&queue, "y")), (vec![], vec![]));
        assert_eq!(held(&queue, "z"), ["a"]);
        // Who has been tried once is never held back again.
        queue.put(naming("b", &["x"]), true, at(2), |_, _| false);
        assert_eq!(held(&queue, "x"), Vec::<String>::new());
        queue.remove("a");
        assert!(queue.held_back.is_empty());
    }

    #[test]
    fn a_refused_pod_comes_back_when_its_own_change_helps() {
        let mut queue = with(&[("a", 0)]);
        popped(&mut queue);
        queue.refused("a", HashSet::from(["NodeAffinity"]), at(0));
        queue.put(pod("a", 1), false, at(1), |_, _| false);
        assert_eq!(popped(&mut queue), None);
        queue.put(pod("a", 2), false, at(2), |before, by| {
            before.priority() == 1 && by.contains("NodeAffinity")
        });
        assert_eq!(queue.pop().map(|pod| pod.priority()), Some(2));
    }
}
