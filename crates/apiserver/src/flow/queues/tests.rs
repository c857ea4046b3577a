//! Fairness, bounds and order, in virtual time: seconds pass in microseconds and always alike.

use std::collections::BTreeMap;

use super::*;

const QUEUING: Queuing = Queuing { queues: 64, hand: 6, length: 50 };

/// Numbers that look random and are always the same (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

fn hash_of(flow: u64) -> u64 {
    Numbers(flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).next()
}

/// A server in virtual time: every request of a flow takes `takes` and `seats`.
struct World {
    queues: Queues<(u64, u64)>,
    now: Duration,
    running: Vec<(Duration, u64, Held)>,
    seconds: BTreeMap<u64, f64>,
    /// Flow: seats, milliseconds.
    costs: BTreeMap<u64, (u32, u64)>,
}

impl World {
    fn new(queuing: Option<Queuing>, limit: u32) -> Self {
        let queues = Queues::new(queuing, Some(limit), Duration::ZERO);
        Self {
            queues,
            now: Duration::ZERO,
            running: Vec::new(),
            seconds: BTreeMap::new(),
            costs: BTreeMap::new(),
        }
    }

    fn arrive(&mut self, flow: u64, id: u64) -> Option<Refusal> {
        let seats = self.costs[&flow].0;
        match self.queues.arrive(self.now, hash_of(flow), seats, || (flow, id)) {
            Arrival::Run(held) => self.began(flow, held),
            Arrival::Wait(_) => {}
            Arrival::Refuse(why) => return Some(why),
        }
        None
    }

    fn began(&mut self, flow: u64, held: Held) {
        let (seats, millis) = self.costs[&flow];
        *self.seconds.entry(flow).or_default() += f64::from(seats) * millis as f64 / 1000.0;
        self.running.push((self.now + Duration::from_millis(millis), flow, held));
    }

    /// Until `end`, whatever runs comes to its end and others follow.
    fn run_until(&mut self, end: Duration) {
        while let Some(at) = (0..self.running.len()).min_by_key(|at| self.running[*at].0) {
            if self.running[at].0 > end {
                break;
            }
            let (when, _, held) = self.running.swap_remove(at);
            self.now = when;
            for ((flow, _), held) in self.queues.leave(when, &held) {
                self.began(flow, held);
            }
        }
        self.now = end;
    }
}

#[test]
fn a_hand_has_different_cards_and_every_card_is_dealt() {
    let mut seen = [false; 64];
    for flow in 0..1000 {
        let mut cards = deal(hash_of(flow), 64, 6);
        assert_eq!(cards.len(), 6);
        cards.iter().for_each(|card| seen[*card] = true);
        cards.sort_unstable();
        cards.dedup();
        assert_eq!(cards.len(), 6, "flow {flow}");
    }
    assert!(seen.iter().all(|seen| *seen));
    assert_eq!(deal(7, 1, 1), [0]);
    let all: Vec<usize> = {
        let mut cards = deal(12345, 5, 5);
        cards.sort_unstable();
        cards
    };
    assert_eq!(all, [0, 1, 2, 3, 4]);
}

#[test]
fn a_flood_leaves_others_their_share() {
    let mut world = World::new(Some(QUEUING), 4);
    // One flow has ten times as many requests under way as it gets; the others ask now and then.
    for flow in 0..5 {
        world.costs.insert(flow, (1, 10));
    }
    let mut refused = BTreeMap::<u64, u32>::new();
    for step in 0..2000 {
        for id in 0..20 {
            if world.arrive(0, step * 100 + id).is_some() {
                *refused.entry(0).or_default() += 1;
            }
        }
        if step % 5 == 0 {
            for flow in 1..5 {
                if world.arrive(flow, step).is_some() {
                    *refused.entry(flow).or_default() += 1;
                }
            }
        }
        world.run_until(world.now + Duration::from_millis(10));
    }
    world.run_until(world.now + Duration::from_secs(60));
    assert!(refused[&0] > 1000, "the flood is cut: {refused:?}");
    for flow in 1..5 {
        assert_eq!(refused.get(&flow), None, "flow {flow} is not refused anything");
        assert!((world.seconds[&flow] - 4.0).abs() < 1e-9, "flow {flow}: {:?}", world.seconds);
    }
}

#[test]
fn flows_that_always_ask_get_equal_seats_whatever_their_requests_cost() {
    // Each flow has a queue of its own, so that queues are flows.
    let mut world = World::new(Some(Queuing { queues: 512, hand: 1, length: 50 }), 8);
    let costs = [(1, 5), (1, 50), (3, 20), (2, 100)];
    for (flow, cost) in (0..).zip(costs) {
        world.costs.insert(flow, cost);
    }
    for step in 0..20_000_u64 {
        for flow in 0..4 {
            let _ = world.arrive(flow, step);
        }
        world.run_until(world.now + Duration::from_millis(2));
    }
    let seconds: Vec<f64> = world.seconds.values().copied().collect();
    let mean = seconds.iter().sum::<f64>() / 4.0;
    assert!(mean > 60.0, "the server is busy: {seconds:?}");
    for one in &seconds {
        assert!((one - mean).abs() < mean * 0.1, "{seconds:?}");
    }
}

#[test]
fn whatever_comes_bounds_hold_and_nobody_starves() {
    for seed in 1..40 {
        let mut numbers = Numbers(seed);
        let limit = u32::try_from(numbers.below(10) + 1).unwrap();
        let queuing = Queuing { queues: 8, hand: 3, length: 4 };
        let mut queues = Queues::new(Some(queuing), Some(limit), Duration::ZERO);
        let (mut now, mut running, mut waiting) = (Duration::ZERO, Vec::new(), BTreeMap::new());
        let (mut accepted, mut done) = (0, 0);
        for id in 0..2000_u64 {
            now += Duration::from_micros(numbers.below(5000));
            match numbers.below(4) {
                0 | 1 => {
                    let seats = u32::try_from(numbers.below(12) + 1).unwrap();
                    match queues.arrive(now, hash_of(numbers.below(9)), seats, || id) {
                        Arrival::Run(held) => {
                            accepted += 1;
                            running.push(held);
                        }
                        Arrival::Wait(place) => {
                            accepted += 1;
                            waiting.insert(id, place);
                        }
                        Arrival::Refuse(why) => assert_eq!(why, Refusal::QueueFull),
                    }
                }
                2 if !running.is_empty() => {
                    let at = usize::try_from(numbers.below(running.len() as u64)).unwrap();
                    let held: Held = running.swap_remove(at);
                    done += 1;
                    for (id, held) in queues.leave(now, &held) {
                        assert!(waiting.remove(&id).is_some(), "who begins was waiting");
                        running.push(held);
                    }
                }
                _ => {
                    let Some((id, place)) = waiting.pop_first() else { continue };
                    let begun = queues.give_up(now, place).unwrap_or_else(|| panic!("{id} was waiting"));
                    for (id, held) in begun {
                        assert!(waiting.remove(&id).is_some(), "who begins was waiting");
                        running.push(held);
                    }
                    assert!(queues.give_up(now, place).is_none(), "and does so no longer");
                    done += 1;
                }
            }
            let seats: u32 = running.iter().map(|held| held.seats).sum();
            assert_eq!(queues.seats(), seats);
            assert!(seats <= limit || running.len() == 1, "{seats} of {limit}");
            assert!(queues.queues.iter().all(|queue| queue.waiting.len() <= 4));
            assert_eq!(queues.waiting, waiting.len());
            let active = queues.queues.iter().filter(|queue| !queue.is_idle()).count();
            assert_eq!(queues.active as usize, active);
            // Where somebody waits, all that runs keeps it from beginning.
            assert!(waiting.is_empty() || !running.is_empty(), "seed {seed}: somebody waits for nothing");
        }
        while let Some(held) = running.pop() {
            now += Duration::from_millis(1);
            done += 1;
            for (id, held) in queues.leave(now, &held) {
                waiting.remove(&id);
                running.push(held);
            }
        }
        assert!(waiting.is_empty() && queues.is_idle() && accepted == done, "seed {seed}");
    }
}

#[test]
fn a_level_that_rejects_has_no_queue() {
    let mut world = World::new(None, 2);
    world.costs.insert(0, (1, 10));
    assert_eq!([world.arrive(0, 0), world.arrive(0, 1)], [None, None]);
    assert_eq!(world.arrive(0, 2), Some(Refusal::ConcurrencyLimit));
    world.run_until(Duration::from_millis(10));
    assert_eq!(world.arrive(0, 3), None);
}

#[test]
fn more_seats_let_in_who_waits() {
    let mut queues = Queues::new(Some(QUEUING), Some(1), Duration::ZERO);
    assert!(matches!(queues.arrive(Duration::ZERO, 1, 1, || 1), Arrival::Run(_)));
    for id in 2..5 {
        assert!(matches!(queues.arrive(Duration::ZERO, 1, 1, || id), Arrival::Wait(_)));
    }
    let begun: Vec<i32> = queues.limit_to(Duration::ZERO, Some(3)).into_iter().map(|(who, _)| who).collect();
    assert_eq!(begun, [2, 3]);
    queues.queue_by(Some(Queuing { queues: 1, hand: 1, length: 50 }));
    assert_eq!(queues.limit_to(Duration::ZERO, None).len(), 1);
}
