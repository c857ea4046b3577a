//! What is programmed, and the elements that a change adds and removes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use api::Key;
use ipnet::Ipv4Net;
use sys::net::nft::{Element, ElementValue, Op};

use super::balance::{Keep, Kind, Target, endpoint_element, endpoint_key, frontend_key};
use super::desired::{Frontend, Group, IfEmpty};
use super::table::HAIRPIN;

/// TCP's number in IP headers.
const TCP: u8 = 6;

/// What one transaction changes. What is removed goes before what is added, so that a key can change its value; chains
/// are made before anything leads to them, and removed after nothing does.
#[derive(Debug, Default)]
pub struct Batch {
    chains: Vec<Op>,
    removed: BTreeMap<&'static str, Vec<Element>>,
    added: BTreeMap<&'static str, Vec<Element>>,
    unused: Vec<Op>,
}

impl Batch {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.removed.is_empty() && self.added.is_empty() && self.unused.is_empty()
    }

    /// The operations, in the order in which they have to happen.
    pub fn into_ops(self) -> Vec<Op> {
        let named = |(set, elements): (&'static str, Vec<Element>)| (set.to_owned(), elements);
        let removed =
            self.removed.into_iter().map(named).map(|(set, elements)| Op::DeleteElements(set, elements));
        let added = self.added.into_iter().map(named).map(|(set, elements)| Op::AddElements(set, elements));
        self.chains.into_iter().chain(removed).chain(added).chain(self.unused).collect()
    }

    fn remove(&mut self, set: &'static str, key: Vec<u8>) {
        self.removed.entry(set).or_default().push(Element { key, value: ElementValue::None });
    }

    fn add(&mut self, set: &'static str, element: Element) {
        self.added.entry(set).or_default().push(element);
    }
}

/// One group as the kernel has it.
#[derive(Debug)]
struct Programmed {
    number: u32,
    /// Those that no other Service has.
    frontends: BTreeSet<Frontend>,
    /// By index.
    endpoints: Vec<SocketAddrV4>,
    /// Those of them that terminate.
    leaving: BTreeSet<SocketAddrV4>,
    affinity_s: Option<u32>,
    if_empty: IfEmpty,
}

impl Programmed {
    fn nothing(number: u32) -> Self {
        Self {
            number,
            frontends: BTreeSet::new(),
            endpoints: Vec::new(),
            leaving: BTreeSet::new(),
            affinity_s: None,
            if_empty: IfEmpty::Reject,
        }
    }

    /// The endpoints that do not terminate.
    fn staying(&self) -> BTreeSet<SocketAddrV4> {
        self.endpoints.iter().filter(|at| !self.leaving.contains(at)).copied().collect()
    }

    /// Where one of its frontends leads.
    fn target(&self, frontend: &Frontend) -> Option<Target> {
        self.frontends.contains(frontend).then(|| match (self.endpoints.len(), self.if_empty) {
            (0, IfEmpty::Reject) => Target::Reject,
            (0, IfEmpty::Drop) => Target::Drop,
            (_, _) if self.affinity_s.is_some() => Target::Keep(self.number),
            (count, _) => Target::Balance(Kind::of(frontend), count),
        })
    }

    /// What the map of endpoints holds for one of its frontends.
    fn balanced(&self, frontend: &Frontend) -> &[SocketAddrV4] {
        let balanced = matches!(self.target(frontend), Some(Target::Balance(..)));
        if balanced { &self.endpoints } else { &[] }
    }

    /// The chain of its own, if it has one.
    fn keep(&self) -> Option<Keep<'_>> {
        let timeout_s = self.affinity_s.filter(|_| !self.endpoints.is_empty())?;
        Some(Keep { number: self.number, endpoints: &self.endpoints, timeout_s })
    }
}

/// Everything that is programmed.
#[derive(Debug)]
pub struct State {
    node_pods: Ipv4Net,
    /// The groups of each Service, by name.
    services: HashMap<Key, HashMap<String, Programmed>>,
    next_number: u32,
    /// Those with a chain that Services share.
    targets: BTreeSet<Target>,
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
            targets: BTreeSet::new(),
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

    /// The TCP ports at which this host serves, with the address where only one does: node ports and published ports,
    /// whose keys have no namespace.
    pub fn host_ports(&self) -> BTreeSet<(Option<Ipv4Addr>, u16)> {
        let of_host = |(frontend, key): &(&Frontend, &Key)| {
            frontend.protocol == TCP && (frontend.address.is_none() || key.namespace.is_empty())
        };
        let found = self.owners.iter().filter(of_host);
        found.map(|(frontend, _)| (frontend.address, frontend.port)).collect()
    }

    /// The Services that wait for a frontend: to be looked at again when another has changed.
    pub fn waiting(&self) -> Vec<Key> {
        self.waiting.iter().cloned().collect()
    }

    /// Makes a Service be what `desired` says; nothing removes it. Gives the UDP frontends whose connections have to be
    /// looked at anew, because an endpoint of theirs is gone.
    pub fn change(&mut self, key: &Key, desired: &[Group], batch: &mut Batch) -> Vec<Stale> {
        let mut old = self.services.remove(key).unwrap_or_default();
        for frontend in old.values().flat_map(|group| &group.frontends) {
            self.owners.remove(frontend);
        }
        let waited = self.waiting.remove(key);
        let mut new = HashMap::new();
        let mut stale = Vec::new();
        for group in desired {
            let before = old.remove(&group.name).unwrap_or_else(|| Programmed::nothing(self.number()));
            let now = Programmed {
                number: before.number,
                frontends: self.owned(key, group, waited),
                endpoints: ordered(&before.endpoints, &group.endpoints),
                leaving: group.leaving.clone(),
                affinity_s: group.affinity_s,
                if_empty: group.if_empty,
            };
            stale.extend(stale_flows(&group.frontends, &before.endpoints, &now.endpoints));
            self.diff(&before, &now, batch);
            new.insert(group.name.clone(), now);
        }
        for gone in old.into_values() {
            stale.extend(stale_flows(&gone.frontends, &gone.endpoints, &[]));
            self.diff(&gone, &Programmed::nothing(gone.number), batch);
        }
        if !new.is_empty() {
            self.services.insert(key.clone(), new);
        }
        stale
    }

    fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    /// The frontends of a group that no other Service has.
    fn owned(&mut self, key: &Key, group: &Group, waited: bool) -> BTreeSet<Frontend> {
        let mut owned = BTreeSet::new();
        for frontend in &group.frontends {
            if self.owners.contains_key(frontend) {
                if !waited {
                    tracing::warn!(service = %key, ?frontend, "another Service has this address and port");
                }
                self.waiting.insert(key.clone());
                continue;
            }
            self.owners.insert(*frontend, key.clone());
            owned.insert(*frontend);
        }
        owned
    }

    fn diff(&mut self, before: &Programmed, now: &Programmed, batch: &mut Batch) {
        for target in now.frontends.iter().filter_map(|frontend| now.target(frontend)) {
            if self.targets.insert(target) {
                batch.chains.extend(target.make_shared());
            }
        }
        if before.keep() != now.keep() {
            batch.chains.extend(now.keep().into_iter().flat_map(|keep| keep.make(before.keep())));
            batch.unused.extend(before.keep().into_iter().flat_map(|keep| keep.remove(now.keep())));
        }
        for frontend in before.frontends.union(&now.frontends) {
            diff_frontend(frontend, before, now, batch);
        }
        self.count_endpoints(before, now, batch);
    }

    fn count_endpoints(&mut self, before: &Programmed, now: &Programmed, batch: &mut Batch) {
        let (stayed, stay) = (before.staying(), now.staying());
        for gone in stayed.difference(&stay) {
            count_down(&mut self.in_use, *gone.ip());
        }
        for fresh in stay.difference(&stayed) {
            *self.in_use.entry(*fresh.ip()).or_insert(0) += 1;
        }
        let of = |group: &Programmed| group.endpoints.iter().copied().collect::<BTreeSet<_>>();
        let (old, new) = (of(before), of(now));
        for gone in old.difference(&new) {
            self.unuse(*gone.ip(), batch);
        }
        for fresh in new.difference(&old) {
            self.used(*fresh.ip(), batch);
        }
    }

    fn used(&mut self, address: Ipv4Addr, batch: &mut Batch) {
        if self.node_pods.contains(&address) {
            let count = self.hairpin.entry(address).or_insert(0);
            *count += 1;
            if *count == 1 {
                batch.add(HAIRPIN, Element { key: twice(address), value: ElementValue::None });
            }
        }
    }

    fn unuse(&mut self, address: Ipv4Addr, batch: &mut Batch) {
        if self.node_pods.contains(&address) && count_down(&mut self.hairpin, address) {
            batch.remove(HAIRPIN, twice(address));
        }
    }
}

fn twice(address: Ipv4Addr) -> Vec<u8> {
    [address.octets(), address.octets()].concat()
}

fn diff_frontend(frontend: &Frontend, before: &Programmed, now: &Programmed, batch: &mut Batch) {
    let kind = Kind::of(frontend);
    let (old, new) = (before.target(frontend), now.target(frontend));
    if old != new {
        if old.is_some() {
            batch.remove(kind.frontends(), frontend_key(frontend));
        }
        if let Some(target) = new {
            batch.add(kind.frontends(), target.element(frontend));
        }
    }
    let (old, new) = (before.balanced(frontend), now.balanced(frontend));
    for index in 0..old.len().max(new.len()) {
        if old.get(index) == new.get(index) {
            continue;
        }
        if index < old.len() {
            batch.remove(kind.endpoints(), endpoint_key(frontend, index));
        }
        if let Some(endpoint) = new.get(index) {
            batch.add(kind.endpoints(), endpoint_element(frontend, index, endpoint));
        }
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
    frontends: impl IntoIterator<Item = &'a Frontend>,
    before: &[SocketAddrV4],
    now: &[SocketAddrV4],
) -> Vec<Stale> {
    frontends
        .into_iter()
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
