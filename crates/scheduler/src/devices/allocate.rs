//! Which devices claims get on a node: the first solution of a search over all devices in their order, claim by claim,
//! request by request, device by device. The search keeps its own stack, and both what it looks at and what expressions
//! cost are bounded: who writes claims, slices or classes takes neither stack nor time without end.
//! Source: `structured/internal/incubating/allocator_incubating.go`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use api::cel::Budget;
use api::cel::devices::SELECTOR_COST_MAX;
use api::quantity::Quantity;

use super::constraint::Held;
use super::pools::{Counter, Pool, Problem, consumption};
use super::types::{Amounts, Ask, Claim, Class, Device, DeviceId, Place, Selector, Slice, Taint, TaintRule};
use super::{Devices, capacity};
use crate::types::Node;

/// So many devices a claim gets at most. Source: `AllocationResultsMaxSize`.
const RESULTS_MAX: usize = 32;
/// So many devices are looked at for one node.
const NODE_STEPS_MAX: u64 = 500_000;
/// So many are looked at for one pod.
const STEPS_MAX: u64 = 10_000_000;
/// So much expressions cost for one pod.
const COST_MAX: u64 = 20 * SELECTOR_COST_MAX;
/// So often it is looked whether time is up.
const STEPS_PER_LOOK: u64 = 1024;
/// The same for what expressions cost: it is about a millisecond.
const COST_PER_LOOK: u64 = 10_000;

/// Why claims get nothing on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There are not the devices.
    Cannot,
    /// There are not the devices in pools that make sense, and one does not.
    Invalid,
    /// It takes too long to find out.
    Late,
    /// Something is wrong with a claim or a class, on whatever node.
    Wrong(String),
}

/// A device that a claim gets.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    /// The request, by its place in the claim.
    pub request: usize,
    /// What of it asked for the device.
    pub ask: &'a Ask,
    /// The device.
    pub device: &'a Device,
    /// The slice that it is in.
    pub slice: &'a Arc<Slice>,
    /// What is taken of its capacity, of one that is shared.
    pub consumed: Option<Amounts>,
}

/// What a claim gets.
#[derive(Debug, Clone)]
pub struct Solution<'a> {
    /// The devices.
    pub devices: Vec<Chosen<'a>>,
    /// By request: which of its asks was chosen, with its class.
    pub asks: Vec<(&'a Ask, &'a Arc<Class>)>,
}

/// What a search may take yet, or several for the same pod.
#[derive(Debug, Clone)]
pub struct Purse {
    steps: Rc<Cell<u64>>,
    cost: Rc<Cell<u64>>,
}

impl Default for Purse {
    fn default() -> Self {
        Self { steps: Rc::new(Cell::new(STEPS_MAX)), cost: Rc::new(Cell::new(COST_MAX)) }
    }
}

/// One ask, with its class.
#[derive(Debug)]
struct Asked<'a> {
    claim: usize,
    request: usize,
    /// Which of the request's asks.
    alternative: usize,
    class: &'a Arc<Class>,
    /// The name under which results speak of it.
    full: String,
}

/// The search for one pod, over however many nodes.
#[derive(Debug)]
pub struct Search<'a> {
    devices: &'a Devices,
    claims: Vec<Arc<Claim>>,
    asked: Vec<Asked<'a>>,
    /// By claim and request: which of those are its asks.
    ranges: Vec<Vec<Range<usize>>>,
    rules: Vec<&'a TaintRule>,
    /// Whether an ask's expressions select a device, by the place of the device in memory: they say the same for every node.
    selected: RefCell<HashMap<(usize, usize), bool>>,
    /// What the pod has left of steps, and of what expressions cost.
    pub(super) steps: Rc<Cell<u64>>,
    pub(super) cost: Rc<Cell<u64>>,
}

/// Takes a price from what is left. Who cannot pay it has nothing left, so that nobody tries the same again and again.
fn pay(left: &Cell<u64>, price: u64) -> Result<(), Refused> {
    let rest = left.get().checked_sub(price);
    left.set(rest.unwrap_or(0));
    rest.map(drop).ok_or(Refused::Late)
}

fn in_time(deadline: Option<Instant>) -> Result<(), Refused> {
    match deadline {
        Some(deadline) if Instant::now() >= deadline => Err(Refused::Late),
        _ => Ok(()),
    }
}

impl<'a> Search<'a> {
    /// A search; the failure names a class that is not there, or a request of an unknown kind.
    pub fn new(devices: &'a Devices, claims: Vec<Arc<Claim>>, purse: &Purse) -> Result<Self, String> {
        let mut asked = Vec::new();
        let mut ranges = Vec::with_capacity(claims.len());
        for (at, claim) in claims.iter().enumerate() {
            let mut of_claim = Vec::with_capacity(claim.requests.len());
            for (number, request) in claim.requests.iter().enumerate() {
                let start = asked.len();
                if request.asks.is_empty() {
                    let key = &claim.version.key;
                    return Err(format!(
                        "resource claim {key}, request {}: unknown request type",
                        request.name
                    ));
                }
                for (alternative, ask) in request.asks.iter().enumerate() {
                    let full = request.full_name(ask);
                    let Some(class) = devices.class(&ask.class) else {
                        return Err(format!("request {full}: device class {} does not exist", ask.class));
                    };
                    asked.push(Asked { claim: at, request: number, alternative, class, full });
                }
                of_claim.push(start..asked.len());
            }
            ranges.push(of_claim);
        }
        let Purse { steps, cost } = purse.clone();
        let selected = RefCell::default();
        Ok(Self { devices, claims, asked, ranges, rules: devices.rules().collect(), selected, steps, cost })
    }

    /// The claims.
    pub fn claims(&self) -> &[Arc<Claim>] {
        &self.claims
    }

    fn ask(&self, at: usize) -> &Ask {
        let Asked { claim, request, alternative, .. } = self.asked[at];
        &self.claims[claim].requests[request].asks[alternative]
    }

    /// What the claims get on a node, each in its place. `deadline`: until then, if it has to be before.
    pub fn allocate<'s>(
        &'s self,
        node: &Node,
        deadline: Option<Instant>,
    ) -> Result<Vec<Solution<'s>>, Refused> {
        // Merely to gather what there is on a node takes time, and there may be many nodes.
        if self.steps.get() == 0 || self.cost.get() == 0 {
            return Err(Refused::Late);
        }
        let mut attempt = Attempt::new(self, node, deadline)?;
        if attempt.run()? {
            return Ok(attempt.solutions());
        }
        if attempt.pools.iter().any(|pool| pool.problem == Some(Problem::Invalid)) {
            return Err(Refused::Invalid);
        }
        Err(Refused::Cannot)
    }

    /// Pays for the evaluation of an expression, and looks at the time where that may have taken long.
    pub(super) fn pay_cost(&self, spent: u64, deadline: Option<Instant>) -> Result<(), Refused> {
        let before = self.cost.get();
        pay(&self.cost, spent)?;
        if before / COST_PER_LOOK == self.cost.get() / COST_PER_LOOK { Ok(()) } else { in_time(deadline) }
    }

    /// Whether the expressions of an ask and of its class select a device, if that is known.
    fn known(&self, at: usize, device: &Device) -> Option<bool> {
        self.selected.borrow().get(&(at, std::ptr::from_ref(device).addr())).copied()
    }

    /// Whether the expressions of an ask and of its class select a device.
    fn selects(&self, at: usize, device: &Device, deadline: Option<Instant>) -> Result<bool, Refused> {
        if let Some(known) = self.known(at, device) {
            return Ok(known);
        }
        let (Asked { claim, class, .. }, ask) = (&self.asked[at], self.ask(at));
        let of_class = || format!("class {}", class.name);
        let of_claim = || format!("claim {}", self.claims[*claim].version.key);
        let selected = self.all_select(&class.selectors, device, deadline, &of_class)?
            && self.all_select(&ask.selectors, device, deadline, &of_claim)?;
        self.selected.borrow_mut().insert((at, std::ptr::from_ref(device).addr()), selected);
        Ok(selected)
    }

    fn all_select(
        &self,
        selectors: &[Selector],
        device: &Device,
        deadline: Option<Instant>,
        whose: &dyn Fn() -> String,
    ) -> Result<bool, Refused> {
        for (number, selector) in selectors.iter().enumerate() {
            let wrong = |why: String| Refused::Wrong(format!("{}: selector #{number}{why}", whose()));
            let program =
                selector.read().as_ref().map_err(|why| wrong(format!(": CEL compile error: {why}")))?;
            let failed = |why: &str| wrong(format!(" on device {}: CEL runtime error: {why}", device.id));
            let seen = device.seen().as_ref().map_err(|why| failed(why))?;
            let mut budget = Budget::new(SELECTOR_COST_MAX);
            let matches = program.matches(seen, &mut budget);
            // A step of any kind costs something.
            self.pay_cost(budget.spent().max(1), deadline)?;
            if !matches.map_err(|failure| failed(&failure.to_string()))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A device, with the place of its pool.
type Offer<'a> = (usize, &'a Arc<Slice>, &'a Device);

/// What an ask needs on a node.
#[derive(Debug, Default)]
struct Need<'a> {
    count: usize,
    /// All the devices that are selected, if all are asked for.
    all: Option<Vec<Offer<'a>>>,
}

/// The next device that is looked for.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    claim: usize,
    request: usize,
    /// Which of the request's alternatives, once one is tried.
    alternative: Option<usize>,
    /// The number of the device within the ask.
    number: usize,
    /// The first of the offers that is looked at.
    from: usize,
}

/// A device that was taken, and what for.
#[derive(Debug)]
struct Taken<'a> {
    offer: Offer<'a>,
    counts: bool,
}

/// A decision of the search that can be taken back.
#[derive(Debug)]
enum Frame<'a> {
    /// A claim has all that it asks for.
    Claim,
    /// One of the alternatives of a request is tried; whether those before would have got too many devices.
    Alternative(Position, bool),
    /// A device for an ask.
    Device { at: usize, position: Position, taken: Taken<'a> },
}

/// What the search does next.
enum Turn {
    Forward(Position),
    /// Something else has to be tried; whether because claims would get too many devices.
    Back {
        too_many: bool,
    },
}

/// The search on one node.
struct Attempt<'a, 'n> {
    search: &'a Search<'a>,
    node: &'n Node,
    deadline: Option<Instant>,
    steps: u64,
    pools: Vec<Pool<'a>>,
    /// The devices of all pools that are as they should be.
    offers: Vec<Offer<'a>>,
    needs: Vec<Need<'a>>,
    constraints: Vec<Vec<Held<'a>>>,
    /// Devices that are taken alone, with the claims.
    taken: HashMap<&'a DeviceId, Vec<usize>>,
    /// What is taken of devices that are shared, and by how many.
    shared: HashMap<&'a DeviceId, (usize, Amounts)>,
    /// What of counters the devices before left, by pool.
    left: HashMap<usize, HashMap<Counter<'a>, Quantity>>,
    results: Vec<Vec<Chosen<'a>>>,
    frames: Vec<Frame<'a>>,
}

impl<'a, 'n> Attempt<'a, 'n> {
    fn new(search: &'a Search<'a>, node: &'n Node, deadline: Option<Instant>) -> Result<Self, Refused> {
        pay(&search.steps, search.asked.len() as u64)?;
        let pools = search.devices.pools(node);
        let slices = pools.iter().map(|pool| pool.here.len()).sum::<usize>();
        let usable = pools.iter().enumerate().filter(|(_, pool)| pool.problem.is_none());
        let offers: Vec<Offer<'a>> = usable
            .flat_map(|(at, pool)| pool.devices().map(move |(slice, device)| (at, slice, device)))
            .collect();
        pay(&search.steps, (slices + offers.len()) as u64)?;
        let claims = search.claims.len();
        let mut attempt = Self {
            search,
            node,
            deadline,
            steps: NODE_STEPS_MAX,
            pools,
            offers,
            needs: Vec::with_capacity(search.asked.len()),
            constraints: Vec::with_capacity(claims),
            taken: HashMap::new(),
            shared: HashMap::new(),
            left: HashMap::new(),
            results: vec![Vec::new(); claims],
            frames: Vec::new(),
        };
        for at in 0..search.asked.len() {
            let need = attempt.need(at)?;
            attempt.needs.push(need);
        }
        attempt.check()?;
        Ok(attempt)
    }

    /// Nothing takes longer than it may.
    fn step(&mut self) -> Result<(), Refused> {
        pay(&self.search.steps, 1)?;
        self.steps = self.steps.checked_sub(1).ok_or(Refused::Late)?;
        if self.steps.is_multiple_of(STEPS_PER_LOOK) { in_time(self.deadline) } else { Ok(()) }
    }

    /// What an ask needs. Source: `validateDeviceRequest`.
    fn need(&mut self, at: usize) -> Result<Need<'a>, Refused> {
        let (Asked { claim, .. }, ask) = (&self.search.asked[at], self.search.ask(at));
        let of = |why: String| {
            let key = &self.search.claims[*claim].version.key;
            Refused::Wrong(format!("claim {key}, request {}: {why}", ask.name))
        };
        match ask.mode.as_str() {
            "ExactCount" => match usize::try_from(ask.count) {
                Ok(count) => Ok(Need { count, all: None }),
                Err(_) => Err(of(format!("exact count {} is too large", ask.count))),
            },
            "All" => {
                if let Some(pool) = self.pools.iter().find(|pool| pool.problem.is_some()) {
                    let state = match pool.problem {
                        Some(Problem::Invalid) => "invalid",
                        _ => "being updated",
                    };
                    let pool = pool.id();
                    return Err(of(format!(
                        "asks for all devices, but resource pool {pool} is currently {state}"
                    )));
                }
                let mut all = Vec::new();
                for number in 0..self.offers.len() {
                    self.step()?;
                    let offer = self.offers[number];
                    if self.may_get(at, offer)? {
                        all.push(offer);
                    }
                }
                Ok(Need { count: all.len(), all: Some(all) })
            }
            mode => Err(of(format!("unsupported count mode {mode}"))),
        }
    }

    /// No claim may get too many devices, and all constraints have to be known.
    fn check(&mut self) -> Result<(), Refused> {
        for (claim, ranges) in self.search.claims.iter().zip(&self.search.ranges) {
            let key = &claim.version.key;
            let least = |range: &Range<usize>| self.needs[range.clone()].iter().map(|need| need.count).min();
            let least = ranges.iter().filter_map(least).fold(0_usize, usize::saturating_add);
            if least > RESULTS_MAX {
                return Err(Refused::Wrong(format!(
                    "claim {key}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}"
                )));
            }
            let read = |(number, constraint)| {
                Held::new(constraint).ok_or_else(|| {
                    let what = "empty constraint (unsupported constraint type?)";
                    Refused::Wrong(format!("claim {key}, constraint #{number}: {what}"))
                })
            };
            self.constraints.push(claim.constraints.iter().enumerate().map(read).collect::<Result<_, _>>()?);
        }
        Ok(())
    }

    /// Whether a device can be had for an ask, whoever else has it: it is selected, of the node, and large enough.
    fn may_get(&self, at: usize, (_, slice, device): Offer<'a>) -> Result<bool, Refused> {
        Ok(self.is_here(slice, device)
            && self.search.selects(at, device, self.deadline)?
            && self.suffices(self.search.ask(at), device))
    }

    fn is_here(&self, slice: &Slice, device: &Device) -> bool {
        slice.place != Place::PerDevice || device.place.is_on(self.node)
    }

    fn suffices(&self, ask: &Ask, device: &'a Device) -> bool {
        let used = self.search.devices.use_of(&device.id).map(|held| &held.consumed);
        let taking = self.shared.get(&device.id).map(|(_, amounts)| amounts);
        let of =
            |amounts: Option<&'_ Amounts>, name: &str| amounts.and_then(|amounts| amounts.get(name)).copied();
        let (used, taking) = (|name: &str| of(used, name), |name: &str| of(taking, name));
        capacity::suffices(device, &ask.capacity, used, taking)
    }

    /// Looks for a solution; whether there is one.
    fn run(&mut self) -> Result<bool, Refused> {
        let mut turn = Turn::Forward(Position::default());
        loop {
            let next = match turn {
                Turn::Forward(position) if position.claim >= self.search.claims.len() => return Ok(true),
                Turn::Forward(position) => self.forward(position)?,
                Turn::Back { too_many } => match self.frames.pop() {
                    Some(frame) => self.back(frame, too_many)?,
                    None => return Ok(false),
                },
            };
            turn = next;
        }
    }

    fn forward(&mut self, position: Position) -> Result<Turn, Refused> {
        self.step()?;
        let (claim, request) = (position.claim, position.request);
        let Some(range) = self.search.ranges[claim].get(request) else {
            self.frames.push(Frame::Claim);
            return Ok(Turn::Forward(Position { claim: claim + 1, ..Position::default() }));
        };
        let ordered = self.search.claims[claim].requests[request].ordered;
        let alternative = match position.alternative {
            None if ordered => {
                let first = Position { alternative: Some(0), ..position };
                self.frames.push(Frame::Alternative(first, true));
                return Ok(Turn::Forward(first));
            }
            alternative => alternative.unwrap_or(0),
        };
        let at = range.start + alternative;
        let need = &self.needs[at];
        if need.all.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Turn::Back { too_many: false });
        }
        if position.number >= need.count {
            return Ok(Turn::Forward(Position { claim, request: request + 1, ..Position::default() }));
        }
        let after = (self.results[claim].len() - position.number).saturating_add(need.count);
        if after > RESULTS_MAX {
            return Ok(Turn::Back { too_many: true });
        }
        if position.number == 0 && self.has_too_few(at, position)? {
            return Ok(Turn::Back { too_many: false });
        }
        self.next_device(at, position)
    }

    /// Whether it is known that fewer devices are left for an ask than it still needs: then no choice among them helps,
    /// and to try all choices would take time without end. Where no expression has said yet whether it selects a device,
    /// nothing is known: a search that goes on finds the same, and the same to be wrong, as it would without this.
    fn has_too_few(&mut self, at: usize, position: Position) -> Result<bool, Refused> {
        let need = &self.needs[at];
        let mut needed = need.count.saturating_sub(position.number);
        // A single device is found as quickly as it is counted.
        if need.all.is_some() || needed < 2 {
            return Ok(false);
        }
        for place in position.from..self.offers.len() {
            self.step()?;
            match self.is_left(at, self.offers[place]) {
                None => return Ok(false),
                Some(true) if needed == 1 => return Ok(false),
                Some(left) => needed -= usize::from(left),
            }
        }
        Ok(true)
    }

    /// Whether a device may be taken for an ask, as far as that cannot change while more are taken for it: counters and
    /// constraints are not looked at. `None`: nobody has asked the expressions.
    fn is_left(&self, at: usize, (_, slice, device): Offer<'a>) -> Option<bool> {
        if !self.is_free(at, device) || !self.is_here(slice, device) {
            return Some(false);
        }
        let ask = self.search.ask(at);
        let selected = self.search.known(at, device)?;
        Some(selected && self.suffices(ask, device) && self.bears(ask, device))
    }

    /// Takes a decision back, and makes another one in its place.
    fn back(&mut self, frame: Frame<'a>, too_many: bool) -> Result<Turn, Refused> {
        match frame {
            // A claim before may get other devices, so that this one gets fewer.
            Frame::Claim => Ok(Turn::Back { too_many: false }),
            Frame::Alternative(position, all_too_many) => {
                let all_too_many = all_too_many && too_many;
                let next = position.alternative.unwrap_or(0) + 1;
                if next < self.search.ranges[position.claim][position.request].len() {
                    let position = Position { alternative: Some(next), ..position };
                    self.frames.push(Frame::Alternative(position, all_too_many));
                    return Ok(Turn::Forward(position));
                }
                Ok(Turn::Back { too_many: all_too_many })
            }
            Frame::Device { at, position, taken } => {
                self.give_back(at, &taken);
                // Other devices would be as many.
                if too_many || self.has_too_few(at, position)? {
                    return Ok(Turn::Back { too_many });
                }
                self.next_device(at, position)
            }
        }
    }

    /// Takes the next device that will do for an ask.
    fn next_device(&mut self, at: usize, position: Position) -> Result<Turn, Refused> {
        let number = position.number;
        if let Some(all) = &self.needs[at].all {
            // The order in which all are taken does not matter: each is tried once.
            let offer = all[number];
            let taken = if position.from > 0 { None } else { self.take(at, offer, true)? };
            let Some(taken) = taken else { return Ok(Turn::Back { too_many: false }) };
            self.frames.push(Frame::Device { at, position: Position { from: 1, ..position }, taken });
            return Ok(Turn::Forward(Position { number: number + 1, from: 0, ..position }));
        }
        for place in position.from..self.offers.len() {
            self.step()?;
            let offer = self.offers[place];
            if !self.is_free(at, offer.2) || !self.may_get(at, offer)? {
                continue;
            }
            if let Some(taken) = self.take(at, offer, false)? {
                // The order of the devices of one ask does not matter: none before this one is looked at again.
                let from = place + 1;
                self.frames.push(Frame::Device { at, position: Position { from, ..position }, taken });
                return Ok(Turn::Forward(Position { number: number + 1, from, ..position }));
            }
        }
        Ok(Turn::Back { too_many: false })
    }

    /// Whether nobody has a device who would have to share it. What an administrator looks at is in use by others alone.
    fn is_free(&self, at: usize, device: &Device) -> bool {
        let (Asked { claim, .. }, ask) = (&self.search.asked[at], self.search.ask(at));
        let taking = self.taken.get(&device.id);
        if ask.admin {
            device.shared || taking.is_none_or(|claims| !claims.contains(claim))
        } else {
            let whole = self.search.devices.use_of(&device.id).is_some_and(|held| held.whole > 0);
            !whole && taking.is_none_or(Vec::is_empty)
        }
    }

    fn bears(&self, ask: &Ask, device: &Device) -> bool {
        let rules = self.search.rules.iter().filter(|rule| rule.is_of(&device.id)).map(|rule| &rule.taint);
        let prevents = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
        let mut taints = device.taints.iter().chain(rules).filter(prevents);
        taints.all(|taint| ask.tolerations.iter().any(|toleration| toleration.covers(taint)))
    }

    /// Takes a device for an ask if it can be had. `must`: no other would do, so that it is wrong if constraints of the
    /// claim forbid it. Source: `allocateDevice`.
    fn take(&mut self, at: usize, offer: Offer<'a>, must: bool) -> Result<Option<Taken<'a>>, Refused> {
        let (pool, slice, device) = offer;
        let Asked { claim, request, full, .. } = &self.search.asked[at];
        let (claim, request, ask) = (*claim, *request, self.search.ask(at));
        if !self.is_free(at, device) || !self.bears(ask, device) || !self.suffices(ask, device) {
            return Ok(None);
        }
        // Who shares a device does not take its counters once more.
        let in_use = device.shared
            && (self.search.devices.use_of(&device.id).is_some_and(|held| held.shares > 0)
                || self.shared.contains_key(&device.id));
        let counts = !in_use && !device.consumes.is_empty();
        if counts && !self.count(pool, device) {
            return Ok(None);
        }
        let name = &self.search.claims[claim].requests[request].name;
        let constraints = &mut self.constraints[claim];
        if let Some(held) = constraints.iter_mut().position(|held| !held.add(name, full, device)) {
            constraints[..held].iter_mut().for_each(|held| held.remove(name, full));
            if counts {
                self.count_back(pool, device);
            }
            let key = &self.search.claims[claim].version.key;
            let why = "because a claim constraint would not be satisfied";
            let wrong = format!("claim {key}, request {}: cannot add device {} {why}", ask.name, device.id);
            return if must { Err(Refused::Wrong(wrong)) } else { Ok(None) };
        }
        let consumed = device.shared.then(|| capacity::taken(device, &ask.capacity));
        match &consumed {
            Some(amounts) => {
                let (number, sums) = self.shared.entry(&device.id).or_default();
                *number += 1;
                for (name, amount) in amounts {
                    let sum = sums.entry(name.clone()).or_insert(Quantity::ZERO);
                    *sum = sum.plus(*amount);
                }
            }
            None => self.taken.entry(&device.id).or_default().push(claim),
        }
        self.results[claim].push(Chosen { request, ask, device, slice, consumed });
        Ok(Some(Taken { offer, counts }))
    }

    /// Takes a device back that was the last to be taken.
    fn give_back(&mut self, at: usize, taken: &Taken<'a>) {
        let (pool, _, device) = taken.offer;
        let Asked { claim, request, full, .. } = &self.search.asked[at];
        let name = &self.search.claims[*claim].requests[*request].name;
        self.constraints[*claim].iter_mut().for_each(|held| held.remove(name, full));
        if taken.counts {
            self.count_back(pool, device);
        }
        match self.results[*claim].pop().and_then(|chosen| chosen.consumed) {
            Some(amounts) => {
                let Some((number, sums)) = self.shared.get_mut(&device.id) else { return };
                *number -= 1;
                for (name, amount) in &amounts {
                    sums.entry(name.clone()).and_modify(|sum| *sum = sum.minus(*amount));
                }
                if *number == 0 {
                    self.shared.remove(&device.id);
                }
            }
            None => drop(self.taken.get_mut(&device.id).map(Vec::pop)),
        }
    }

    /// What is left of the counters of a pool. Source: `checkAvailableCounters`.
    fn left(&mut self, at: usize) -> &mut HashMap<Counter<'a>, Quantity> {
        let (pool, devices) = (&self.pools[at], self.search.devices);
        self.left.entry(at).or_insert_with(|| {
            let mut left = pool.counters();
            let used = pool.all_devices().filter(|device| devices.use_of(&device.id).is_some());
            for (counter, amount) in used.flat_map(consumption) {
                left.entry(counter).and_modify(|left| *left = left.minus(amount));
            }
            left
        })
    }

    /// Takes the counters of a device, if there is enough of each.
    fn count(&mut self, pool: usize, device: &'a Device) -> bool {
        let left = self.left(pool);
        for (counter, amount) in consumption(device) {
            left.entry(counter).and_modify(|left| *left = left.minus(amount));
        }
        let enough = consumption(device)
            .all(|(counter, _)| left.get(&counter).is_some_and(|left| !left.is_negative()));
        if !enough {
            self.count_back(pool, device);
        }
        enough
    }

    fn count_back(&mut self, pool: usize, device: &'a Device) {
        let left = self.left(pool);
        for (counter, amount) in consumption(device) {
            left.entry(counter).and_modify(|left| *left = left.plus(amount));
        }
    }

    /// What was found.
    fn solutions(self) -> Vec<Solution<'a>> {
        let search = self.search;
        let mut chosen: HashMap<(usize, usize), usize> = HashMap::new();
        for frame in &self.frames {
            if let Frame::Alternative(position, _) = frame {
                chosen.insert((position.claim, position.request), position.alternative.unwrap_or(0));
            }
        }
        let asks = |claim: usize| {
            let of_request = |(request, range): (usize, &Range<usize>)| {
                let at = range.start + chosen.get(&(claim, request)).copied().unwrap_or(0);
                (search.ask(at), search.asked[at].class)
            };
            search.ranges[claim].iter().enumerate().map(of_request).collect()
        };
        let results = self.results.into_iter().enumerate();
        results.map(|(claim, devices)| Solution { devices, asks: asks(claim) }).collect()
    }
}
