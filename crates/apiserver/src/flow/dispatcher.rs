//! All priority levels together: their limits, and who of their waiting requests begins. Pure: time is what the caller says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::config::Level;
use super::queues::{Arrival, Held, Place, Queues};
use super::seats::{self, Limits, Wish};

/// How often seats are shared anew by demand. Source: `borrowingAdjustmentPeriod`.
const ADJUST_EVERY: Duration = Duration::from_secs(10);
/// How much of its level a single request takes at most. Source: `priorityLevelMaxSeatsPercent`.
const WIDEST_PERCENT: u32 = 15;

struct LevelState<T> {
    queues: Queues<T>,
    limits: Limits,
    exempt: bool,
    /// Not configured any more: it goes when the last of its requests has ended.
    retired: bool,
}

/// A level's state as figures.
pub(super) struct LevelFigures {
    pub(super) name: Arc<str>,
    /// Nominal, lower, upper, current.
    pub(super) limits: [u32; 4],
    /// High watermark, average, deviation, smoothed.
    pub(super) demands: [f64; 4],
}

/// The levels; `T` is who is told that a request begins.
pub(super) struct Dispatcher<T> {
    total: u32,
    levels: HashMap<Arc<str>, LevelState<T>>,
    adjusted: Duration,
}

/// Who begins now.
pub(super) type Begun<T> = Vec<(T, Held)>;

impl<T> Dispatcher<T> {
    /// A server of `total` seats.
    pub(super) fn new(total: u32) -> Self {
        Self { total, levels: HashMap::new(), adjusted: Duration::ZERO }
    }

    /// Takes over a configuration. Requests that are there stay and follow the new rules.
    pub(super) fn configure(&mut self, now: Duration, levels: &[Level]) -> Begun<T> {
        for state in self.levels.values_mut() {
            state.retired = true;
        }
        let shares: Vec<_> = levels.iter().map(|level| level.share).collect();
        let limits = seats::limits(self.total, &shares);
        let mut begun = Vec::new();
        for (level, limits) in levels.iter().zip(limits) {
            let limit = (!level.exempt).then_some(limits.nominal);
            let state = self.levels.entry(level.name.clone()).or_insert_with(|| LevelState {
                queues: Queues::new(level.queuing, limit, now),
                limits,
                exempt: level.exempt,
                retired: false,
            });
            (state.limits, state.exempt, state.retired) = (limits, level.exempt, false);
            state.queues.queue_by(level.queuing);
            begun.extend(state.queues.limit_to(now, limit));
        }
        self.levels.retain(|_, state| !state.retired || !state.queues.is_idle());
        begun
    }

    /// Shares the seats anew if it is time. No timer is needed: where nothing arrives nothing is to be shared.
    pub(super) fn adjust_if_due(&mut self, now: Duration) -> Begun<T> {
        if now.saturating_sub(self.adjusted) < ADJUST_EVERY {
            return Vec::new();
        }
        self.adjusted = now;
        let mut states: Vec<&mut LevelState<T>> =
            self.levels.values_mut().filter(|state| !state.retired).collect();
        let wishes: Vec<Wish> = states
            .iter_mut()
            .map(|state| {
                state.queues.demand.settle(now);
                let demand = &state.queues.demand;
                let (limits, exempt) = (state.limits, state.exempt);
                Wish { limits, high: demand.high, smoothed: demand.smoothed, exempt }
            })
            .collect();
        let mut begun = Vec::new();
        for (state, seats) in states.into_iter().zip(seats::adjust(&wishes)) {
            if !state.exempt {
                begun.extend(state.queues.limit_to(now, Some(seats)));
            }
        }
        begun
    }

    /// The widest that a request of a level may be.
    pub(super) fn widest(&self, level: &str) -> u32 {
        let nominal = self.levels.get(level).map_or(1, |state| state.limits.nominal);
        (nominal.saturating_mul(WIDEST_PERCENT)).div_ceil(100).max(1)
    }

    /// A request arrives at a level; `None` if there is no such level.
    pub(super) fn arrive(
        &mut self,
        now: Duration,
        level: &str,
        hash: u64,
        seats: u32,
        who: impl FnOnce() -> T,
    ) -> Option<Arrival> {
        Some(self.levels.get_mut(level)?.queues.arrive(now, hash, seats, who))
    }

    /// A request of a level ended.
    pub(super) fn leave(&mut self, now: Duration, level: &str, held: &Held) -> Begun<T> {
        let Some(state) = self.levels.get_mut(level) else { return Vec::new() };
        let begun = state.queues.leave(now, held);
        if state.retired && state.queues.is_idle() {
            self.levels.remove(level);
        }
        begun
    }

    /// A request of a level waits no longer. `None`: it runs.
    pub(super) fn give_up(&mut self, now: Duration, level: &str, place: Place) -> Option<Begun<T>> {
        let state = self.levels.get_mut(level)?;
        let begun = state.queues.give_up(now, place);
        if state.retired && state.queues.is_idle() {
            self.levels.remove(level);
        }
        begun
    }

    /// Every level's queues by its name, and whether it is configured no more.
    pub(super) fn queues(&self) -> Vec<(&Arc<str>, &Queues<T>, bool)> {
        let mut all: Vec<_> =
            self.levels.iter().map(|(name, state)| (name, &state.queues, state.retired)).collect();
        all.sort_by_key(|(name, ..)| (*name).clone());
        all
    }

    /// All levels as figures.
    pub(super) fn figures(&self) -> Vec<LevelFigures> {
        let figures = |(name, state): (&Arc<str>, &LevelState<T>)| {
            let (limits, demand) = (state.limits, &state.queues.demand);
            let current = state.queues.limit().unwrap_or_else(|| state.queues.seats());
            LevelFigures {
                name: name.clone(),
                limits: [limits.nominal, limits.lower, limits.upper, current],
                demands: [f64::from(demand.high), demand.average, demand.deviation, demand.smoothed],
            }
        };
        self.levels.iter().filter(|(_, state)| !state.retired).map(figures).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::queues::{Queuing, Refusal};
    use super::super::seats::Share;
    use super::*;

    fn level(name: &str, shares: u32, exempt: bool) -> Level {
        Level {
            name: name.into(),
            uid: String::new(),
            exempt,
            share: Share { shares, lendable: 50, borrowing: None },
            queuing: Some(Queuing { queues: 4, hand: 1, length: 2 }),
        }
    }

    #[test]
    fn levels_are_apart_borrow_over_time_and_end_with_their_requests() {
        let at = Duration::from_secs;
        let mut all: Dispatcher<u32> = Dispatcher::new(8);
        all.configure(at(0), &[level("a", 1, false), level("b", 1, false), level("exempt", 0, true)]);
        let arrive =
            |all: &mut Dispatcher<u32>, now, level, id| all.arrive(at(now), level, 0, 1, || id).unwrap();
        let mut held: Vec<Held> = Vec::new();
        for id in 0..4 {
            let Arrival::Run(one) = arrive(&mut all, 0, "a", id) else { panic!("{id} does not run") };
            held.push(one);
        }
        assert!(matches!(arrive(&mut all, 0, "a", 4), Arrival::Wait(_)));
        assert!(matches!(arrive(&mut all, 0, "a", 5), Arrival::Wait(_)));
        assert_eq!(arrive(&mut all, 0, "a", 6), Arrival::Refuse(Refusal::QueueFull));
        // What happens to one level is nothing to the others.
        let Arrival::Run(other) = arrive(&mut all, 0, "b", 9) else { panic!("b is free") };
        assert!(all.leave(at(0), "b", &other).is_empty());
        for id in 20..40 {
            assert!(matches!(arrive(&mut all, 0, "exempt", id), Arrival::Run(_)));
        }
        assert!(all.adjust_if_due(at(9)).is_empty());
        all.configure(at(9), &[level("a", 1, false), level("b", 1, false)]);
        let begun: Vec<u32> = all.adjust_if_due(at(10)).into_iter().map(|(who, _)| who).collect();
        assert_eq!(begun, [4, 5], "a borrows of b, which wants nothing");
        // A level that is configured no more lasts as long as its requests.
        all.configure(at(11), &[level("b", 1, false)]);
        assert_eq!(all.figures().len(), 1);
        for one in &held {
            all.leave(at(11), "a", one);
        }
        assert!(all.levels.contains_key("a"), "two more run");
        assert!(all.arrive(at(11), "nowhere", 0, 1, || 1).is_none());
    }
}
