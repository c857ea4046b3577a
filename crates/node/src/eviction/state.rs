//! What is seen in the course of time: which thresholds are met, for how long, and what the node's conditions say of it.
//! Pure. Source: `managerImpl.synchronize`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::observe::Observations;
use super::pressure::Pressure;
use super::{Eviction, Signal, Threshold};

/// Whether there is less than a threshold wants; `and_more`: or than is to be made free then.
pub(super) fn is_met(threshold: &Threshold, seen: &Observations, and_more: bool) -> bool {
    // File systems without a count of inodes say 0 of 0.
    let Some(observed) = seen.get(&threshold.signal).filter(|observed| observed.capacity > 0) else {
        return false;
    };
    let more = threshold.reclaim.filter(|_| and_more).map_or(0, |more| more.of(observed.capacity));
    observed.available < threshold.least.of(observed.capacity).saturating_add(more)
}

/// When each shortage was last seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shortages {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pids: Option<Timestamp>,
}

impl Shortages {
    /// Notes what is seen now; answers what counts: a condition stays a while after it was last seen, so that pods are not
    /// called back at once.
    fn note(&mut self, now: Timestamp, seen: Pressure, transition: Duration) -> Pressure {
        let count = |last: &mut Option<Timestamp>, is: bool| {
            if is {
                *last = Some(now);
            }
            last.is_some_and(|at| is || now.duration_since(at).unsigned_abs() < transition)
        };
        Pressure {
            memory: count(&mut self.memory, seen.memory),
            disk: count(&mut self.disk, seen.disk),
            pids: count(&mut self.pids, seen.pids),
        }
    }
}

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Since when thresholds are met, by their place in the configuration.
    since: BTreeMap<usize, Timestamp>,
    /// Those for which something was done, which are met until there is more again than they want.
    acted: Vec<usize>,
    shortages: Shortages,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) pressure: Pressure,
    /// Thresholds that are met for longer than their grace: the first is the one to be acted for.
    pub(crate) met: Vec<Threshold>,
}

impl State {
    pub(crate) fn look(&mut self, now: Timestamp, config: &Eviction, seen: &Observations) -> Look {
        let all = || config.thresholds.iter().enumerate();
        let met: Vec<(usize, &Threshold)> =
            all().filter(|(place, threshold)| is_met(threshold, seen, self.acted.contains(place))).collect();
        let before = std::mem::take(&mut self.since);
        self.since =
            met.iter().map(|(place, _)| (*place, before.get(place).copied().unwrap_or(now))).collect();
        let short = |signals: &[Signal]| met.iter().any(|(_, threshold)| signals.contains(&threshold.signal));
        let disk = [Signal::NodeDisk, Signal::NodeInodes, Signal::ImageDisk, Signal::ImageInodes];
        let pressure =
            Pressure { memory: short(&[Signal::Memory]), disk: short(&disk), pids: short(&[Signal::Pids]) };
        let long_enough = |place: &usize, threshold: &Threshold| {
            let since = self.since.get(place).copied().unwrap_or(now);
            threshold.grace.is_none_or(|grace| now.duration_since(since).unsigned_abs() >= grace)
        };
        let mut ripe: Vec<(usize, &Threshold)> =
            met.into_iter().filter(|(place, threshold)| long_enough(place, threshold)).collect();
        self.acted = ripe.iter().map(|(place, _)| *place).collect();
        // Memory first, since the kernel kills where there is none; all others in their order.
        ripe.sort_by_key(|(_, threshold)| (threshold.signal, threshold.grace.is_some()));
        let pressure = self.shortages.note(now, pressure, config.transition);
        Look { pressure, met: ripe.into_iter().map(|(_, threshold)| *threshold).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Amount;
    use crate::eviction::observe::Observed;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn seen(signals: &[(Signal, u64)]) -> Observations {
        let observed = |available: u64| Observed { available, capacity: 1000 };
        signals.iter().map(|(signal, available)| (*signal, observed(*available))).collect()
    }

    fn threshold(signal: Signal, least: u64, grace: Option<u64>) -> Threshold {
        Threshold {
            signal,
            least: Amount::Absolute(least),
            grace: grace.map(Duration::from_secs),
            reclaim: None,
        }
    }

    fn config(thresholds: &[Threshold]) -> Eviction {
        Eviction { thresholds: thresholds.to_vec(), ..Eviction::default() }
    }

    #[test]
    fn a_threshold_is_met_below_it() {
        let half = Threshold { least: Amount::Share(5000), ..threshold(Signal::NodeDisk, 0, None) };
        for (available, met) in [(499, true), (500, false)] {
            assert_eq!(is_met(&half, &seen(&[(Signal::NodeDisk, available)]), false), met);
        }
        assert!(!is_met(&half, &Observations::new(), false), "what is not told is no shortage");
        let uncounted = Observations::from([(Signal::NodeDisk, Observed { available: 0, capacity: 0 })]);
        assert!(!is_met(&half, &uncounted, false));
    }

    #[test]
    fn soft_thresholds_wait_for_their_grace() {
        let config = config(&[threshold(Signal::Memory, 100, Some(60)), threshold(Signal::Memory, 50, None)]);
        let (mut state, low) = (State::default(), seen(&[(Signal::Memory, 80)]));
        assert_eq!(state.look(at(0), &config, &low).met, []);
        assert!(state.look(at(0), &config, &low).pressure.memory, "the condition does not wait");
        assert_eq!(state.look(at(59), &config, &low).met, []);
        assert_eq!(state.look(at(60), &config, &low).met, config.thresholds[..1]);
        // Enough for a moment: the grace begins anew.
        assert_eq!(state.look(at(61), &config, &seen(&[(Signal::Memory, 100)])).met, []);
        assert_eq!(state.look(at(62), &config, &low).met, []);
        let lower = seen(&[(Signal::Memory, 49)]);
        assert_eq!(
            state.look(at(63), &config, &lower).met,
            config.thresholds[1..],
            "a hard one waits for nothing"
        );
    }

    #[test]
    fn memory_goes_before_all_others() {
        let config = config(&[threshold(Signal::NodeDisk, 100, None), threshold(Signal::Memory, 100, None)]);
        let low = seen(&[(Signal::NodeDisk, 1), (Signal::Memory, 1)]);
        let Look { pressure, met } = State::default().look(at(0), &config, &low);
        assert_eq!(met[0].signal, Signal::Memory);
        assert_eq!(pressure, Pressure { memory: true, disk: true, pids: false });
    }

    #[test]
    fn more_is_made_free_than_just_enough() {
        let hard =
            Threshold { reclaim: Some(Amount::Absolute(50)), ..threshold(Signal::NodeDisk, 100, None) };
        let (mut state, config) = (State::default(), config(&[hard]));
        let mut met = |seconds: i64, available: u64| {
            !state.look(at(seconds), &config, &seen(&[(Signal::NodeDisk, available)])).met.is_empty()
        };
        assert!(!met(0, 120) && met(1, 99) && met(2, 149) && !met(3, 150) && !met(4, 120));
    }

    #[test]
    fn a_shortage_counts_for_a_while_after_it_has_passed() {
        let (mut state, config) = (State::default(), config(&[threshold(Signal::Pids, 100, None)]));
        let mut pressure = |seconds: i64, available: u64| {
            state.look(at(seconds), &config, &seen(&[(Signal::Pids, available)])).pressure.pids
        };
        assert!(!pressure(0, 100) && pressure(10, 99) && pressure(309, 100) && !pressure(310, 100));
    }
}
