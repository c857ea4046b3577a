//! What is programmed, and the elements that a change adds and removes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use api::Key;
use ipnet::Ipv4Net;
use sys::net::nft::{Element, ElementValue, Op};

use super::desired::{Frontend, Group, IfEmpty};
use super::table::{Class, ENDPOINTS, EXTERNAL, FRONTENDS, HAIRPIN, KEPT};

/// Elements that one transaction removes and adds. What is removed goes first, so that a key can change its value.
#[derive(Debug, Default)]
pub struct Batch {
    chains: Vec<Op>,
    removed: BTreeMap<&'static str, Vec<Element>>,
    added: BTreeMap<&'static str, Vec<Element>>,
}

impl Batch {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.removed.is_empty() && self.added.is_empty()
    }

    /// The operations, in the order in which they have to happen.
    pub fn into_ops(self) -> Vec<Op> {
        let named = |(set, elements): (&'static str, Vec<Element>)| (set.to_owned(), elements);
        let removed =
            self.removed.into_iter().map(named).map(|(set, elements)| Op::DeleteElements(set, elements));
        let added = self.added.into_iter().map(named).map(|(set, elements)| Op::AddElements(set, elements));
        self.chains.into_iter().chain(removed).chain(added).collect()
    }

    fn remove(&mut self, set: &'static str, key: Vec<u8>) {
        self.removed.entry(set).or_default().push(Element { key, value: ElementValue::None });
    }

    fn add(&mut self, set: &'static str, key: Vec<u8>, data: Option<Vec<u8>>) {
        let value = data.map_or(ElementValue::None, ElementValue::Data);
        self.added.entry(set).or_default().push(Element { key, value });
    }
}

#[derive(Debug, Default)]
struct Programmed {
    groups: HashMap<String, Balanced>,
    /// Number and class of each frontend.
    frontends: HashMap<Frontend, (u32, u32)>,
}

#[derive(Debug, Default)]
struct Balanced {
    number: u32,
    /// By index.
    endpoints: Vec<SocketAddrV4>,
    /// Those of them that terminate.
    leaving: BTreeSet<SocketAddrV4>,
    kept: bool,
}

/// Everything that is programmed.
#[derive(Debug)]
pub struct State {
    node_pods: Ipv4Net,
    services: HashMap<Key, Programmed>,
    /// Numbers are never used twice: a client's remembered endpoint of one Service must not be found for another.
    next_number: u32,
    classes: BTreeMap<Class, u32>,
    owners: HashMap<Frontend, Key>,
    /// Services that want a frontend which another has.
    waiting: BTreeSet<Key>,
    /// How many groups use an address of this node's pods.
    hairpin: HashMap<Ipv4Addr, usize>,
    /// How many endpoints with this address get new connections and do not terminate.
    in_use: HashMap<Ipv4Addr, usize>,
}

impl State {
    /// Nothing is programmed but the fixed part of the table.
    pub fn new(node_pods: Ipv4Net) -> Self {
        Self {
            node_pods,
            services: HashMap::new(),
            next_number: 0,
            classes: BTreeMap::new(),
            owners: HashMap::new(),
            waiting: BTreeSet::new(),
            hairpin: HashMap::new(),
            in_use: HashMap::new(),
        }
    }

    /// Whether new connections are sent to this address by right: not only because it is the last that serves, and
    /// terminates.
    pub fn sends_to(&self, address: Ipv4Addr) -> bool {
        self.in_use.contains_key(&address)
    }

    /// The Services that wait for a frontend: to be looked at again when another has changed.
    pub fn waiting(&self) -> Vec<Key> {
        self.waiting.iter().cloned().collect()
    }

    /// Makes a Service be what `desired` says; nothing removes it. Gives the UDP frontends whose connections have to be
    /// looked at anew, because an endpoint of theirs is gone.
    pub fn change(&mut self, key: &Key, desired: &[Group], batch: &mut Batch) -> Vec<Stale> {
        let mut old = self.services.remove(key).unwrap_or_default();
        for frontend in old.frontends.keys() {
            self.owners.remove(frontend);
        }
        let mut new = Programmed::default();
        let mut stale = Vec::new();
        let waited = self.waiting.remove(key);
        for group in desired {
            let before = old
                .groups
                .remove(&group.name)
                .unwrap_or_else(|| Balanced { number: self.number(), ..Balanced::default() });
            let number = before.number;
            stale.extend(stale_flows(group.frontends.iter(), &before.endpoints, &group.endpoints));
            let now = Balanced {
                number,
                endpoints: ordered(&before.endpoints, &group.endpoints),
                leaving: group.leaving.clone(),
                kept: group.affinity_s.is_some(),
            };
            self.diff_endpoints(&before, &now, batch);
            for frontend in &group.frontends {
                if self.owners.contains_key(frontend) {
                    if !waited {
                        tracing::warn!(service = %key, ?frontend, "another Service has this address and port");
                    }
                    self.waiting.insert(key.clone());
                    continue;
                }
                self.owners.insert(*frontend, key.clone());
                let class = self.class(class_of(group, frontend), batch);
                new.frontends.insert(*frontend, (number, class));
            }
            new.groups.insert(group.name.clone(), now);
        }
        for (_, gone) in old.groups.drain() {
            let frontends = old.frontends.iter().filter(|(_, (number, _))| *number == gone.number);
            stale.extend(stale_flows(frontends.map(|(frontend, _)| frontend), &gone.endpoints, &[]));
            self.diff_endpoints(&gone, &Balanced { number: gone.number, ..Balanced::default() }, batch);
        }
        diff_frontends(&old.frontends, &new.frontends, batch);
        if !new.groups.is_empty() {
            self.services.insert(key.clone(), new);
        }
        stale
    }

    fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    fn class(&mut self, class: Class, batch: &mut Batch) -> u32 {
        let next = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        *self.classes.entry(class).or_insert_with(|| {
            batch.chains.extend(class.ops(next));
            next
        })
    }

    fn diff_endpoints(&mut self, before: &Balanced, now: &Balanced, batch: &mut Batch) {
        for index in 0..before.endpoints.len().max(now.endpoints.len()) {
            let (old, new) = (before.endpoints.get(index), now.endpoints.get(index));
            if old == new {
                continue;
            }
            let key = [now.number, u32::try_from(index).unwrap_or(u32::MAX)].map(u32::to_ne_bytes).concat();
            if old.is_some() {
                batch.remove(ENDPOINTS, key.clone());
            }
            if let Some(new) = new {
                batch.add(ENDPOINTS, key, Some(endpoint(new)));
            }
        }
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (before.endpoints.iter().collect(), now.endpoints.iter().collect());
        let (stayed, stay): (BTreeSet<_>, BTreeSet<_>) =
            (before.staying().collect(), now.staying().collect());
        for gone in stayed.difference(&stay) {
            count_down(&mut self.in_use, *gone.ip());
        }
        for fresh in stay.difference(&stayed) {
            *self.in_use.entry(*fresh.ip()).or_insert(0) += 1;
        }
        let kept = |at: &SocketAddrV4| [&now.number.to_ne_bytes()[..], &endpoint(at)].concat();
        for gone in &old {
            if before.kept && !(now.kept && new.contains(gone)) {
                batch.remove(KEPT, kept(gone));
            }
            if !new.contains(gone) {
                self.unuse(*gone.ip(), batch);
            }
        }
        for fresh in &new {
            if now.kept && !(before.kept && old.contains(fresh)) {
                batch.add(KEPT, kept(fresh), None);
            }
            if !old.contains(fresh) {
                self.used(*fresh.ip(), batch);
            }
        }
    }

    fn used(&mut self, address: Ipv4Addr, batch: &mut Batch) {
        if self.node_pods.contains(&address) {
            let count = self.hairpin.entry(address).or_insert(0);
            *count += 1;
            if *count == 1 {
                batch.add(HAIRPIN, [address.octets(), address.octets()].concat(), None);
            }
        }
    }

    fn unuse(&mut self, address: Ipv4Addr, batch: &mut Batch) {
        if self.node_pods.contains(&address) && count_down(&mut self.hairpin, address) {
            batch.remove(HAIRPIN, [address.octets(), address.octets()].concat());
        }
    }
}

impl Balanced {
    /// The endpoints that do not terminate.
    fn staying(&self) -> impl Iterator<Item = &SocketAddrV4> {
        self.endpoints.iter().filter(|at| !self.leaving.contains(at))
    }
}

/// Whether the count is at zero now, and gone.
fn count_down(counts: &mut HashMap<Ipv4Addr, usize>, address: Ipv4Addr) -> bool {
    let Some(count) = counts.get_mut(&address) else { return false };
    *count -= 1;
    *count == 0 && counts.remove(&address).is_some()
}

/// Connections of a UDP frontend that still go to an endpoint which is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stale {
    /// The frontend.
    pub frontend: Frontend,
    /// The endpoint that is gone.
    pub endpoint: SocketAddrV4,
}

const UDP: u8 = 17;

fn stale_flows<'a>(
    frontends: impl Iterator<Item = &'a Frontend>,
    before: &[SocketAddrV4],
    now: &[SocketAddrV4],
) -> Vec<Stale> {
    frontends
        .filter(|frontend| frontend.protocol == UDP)
        .flat_map(|frontend| {
            let gone = before.iter().filter(|endpoint| !now.contains(endpoint));
            gone.map(|endpoint| Stale { frontend: *frontend, endpoint: *endpoint })
        })
        .collect()
}

/// The endpoints by index: those that stay keep theirs as far as possible, so that little changes.
fn ordered(before: &[SocketAddrV4], wanted: &[SocketAddrV4]) -> Vec<SocketAddrV4> {
    let wanted: BTreeSet<_> = wanted.iter().copied().collect();
    let mut order = before.to_vec();
    let mut index = 0;
    while index < order.len() {
        if wanted.contains(&order[index]) {
            index += 1;
        } else {
            order.swap_remove(index);
        }
    }
    let held: BTreeSet<_> = order.iter().copied().collect();
    order.extend(wanted.difference(&held));
    order
}

fn class_of(group: &Group, frontend: &Frontend) -> Class {
    match (group.endpoints.len(), group.if_empty) {
        (0, IfEmpty::Reject) => Class::Reject,
        (0, IfEmpty::Drop) => Class::Drop,
        (count, _) => Class::Balance {
            external: frontend.external,
            node_port: frontend.address.is_none(),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            affinity_s: group.affinity_s,
        },
    }
}

fn diff_frontends(
    old: &HashMap<Frontend, (u32, u32)>,
    new: &HashMap<Frontend, (u32, u32)>,
    batch: &mut Batch,
) {
    for (frontend, value) in old {
        if new.get(frontend) != Some(value) {
            batch.remove(map_of(frontend), frontend_key(frontend));
        }
    }
    for (frontend, (number, class)) in new {
        if old.get(frontend) != Some(&(*number, *class)) {
            let data = [number.to_ne_bytes(), class.to_ne_bytes()].concat();
            batch.add(map_of(frontend), frontend_key(frontend), Some(data));
        }
    }
}

fn map_of(frontend: &Frontend) -> &'static str {
    if frontend.external { EXTERNAL } else { FRONTENDS }
}

fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let address = frontend.address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
    [&address[..], &[frontend.protocol, 0, 0, 0], &padded(frontend.port)].concat()
}

fn endpoint(at: &SocketAddrV4) -> Vec<u8> {
    [&at.ip().octets()[..], &padded(at.port())].concat()
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
