//! Endpoints shared out among zones by their processors, where a Service's annotation asks for it.
//! Source: `k8s.io/endpointslice/topologycache`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use api::{Key, Object, ObjectMeta};
use parking_lot::Mutex;
use reconcile::EventType;
use serde::Deserialize;

use super::plan::Drafts;
use super::types::{Endpoint, Hints, Named, Service, Slice};
use crate::context::decode;
use crate::pods::Condition;

/// How much more than its share of the traffic an endpoint may get.
const OVERLOAD: f64 = 0.2;
/// The annotation, and what it was called first, which counts before it.
const MODES: [&str; 2] =
    ["service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"];
/// Nodes with these labels run no endpoints.
const EXCLUDED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// The zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The zones' shares of the processors; they add up to 1.
pub(super) type Ratios = BTreeMap<String, f64>;
/// A number of endpoints for each zone.
pub(super) type Counts = BTreeMap<String, usize>;

/// Something to say of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) event_type: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Endpoints are shared out from now on.
pub(super) fn enabled(family: &str) -> Note {
    let message = format!("Topology Aware Hints has been enabled, addressType: {family}");
    Note { event_type: EventType::Normal, reason: "TopologyAwareHintsEnabled", message }
}

/// They are not, and why.
pub(super) fn disabled(why: &str, family: &str) -> Note {
    let message = format!("{why}, addressType: {family}");
    Note { event_type: EventType::Warning, reason: "TopologyAwareHintsDisabled", message }
}

/// Whether a Service asks for it.
pub(super) fn is_wanted(service: &Service) -> bool {
    let mode = MODES.iter().find_map(|name| service.metadata.annotations.get(*name));
    mode.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto"))
}

/// The zone of a node, if it says one.
pub(super) fn zone_of(node: &Object) -> Option<String> {
    node.meta().labels.get(ZONE).filter(|zone| !zone.is_empty()).cloned()
}

/// A projection of `core/v1.Node`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    metadata: ObjectMeta,
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    allocatable: BTreeMap<String, String>,
    conditions: Vec<Condition>,
}

/// What a node brings to its zone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) zone: Option<String>,
    pub(super) ready: bool,
    pub(super) excluded: bool,
    /// Thousandths of processors.
    pub(super) milli_cpu: i64,
}

impl Facts {
    fn of(node: &Object) -> Option<Self> {
        let decoded: Node = decode(node).ok()?;
        let cpu = decoded.status.allocatable.get("cpu").and_then(|cpu| cpu.parse::<Quantity>().ok());
        let ready = |held: &Condition| held.r#type == "Ready" && held.status == "True";
        Some(Self {
            zone: zone_of(node),
            ready: decoded.status.conditions.iter().any(ready),
            excluded: EXCLUDED.iter().any(|label| decoded.metadata.labels.contains_key(*label)),
            milli_cpu: cpu.map_or(0, |cpu| cpu.milli_value()),
        })
    }
}

/// The zones' shares, if every node that counts tells zone and processors, and there are at least two.
pub(super) fn ratios<'a>(nodes: impl Iterator<Item = &'a Facts>) -> Option<Ratios> {
    let mut by_zone: BTreeMap<&str, i128> = BTreeMap::new();
    for node in nodes.filter(|node| node.ready && !node.excluded) {
        let zone = node.zone.as_deref().filter(|_| node.milli_cpu > 0)?;
        *by_zone.entry(zone).or_default() += i128::from(node.milli_cpu);
    }
    let total: i128 = by_zone.values().sum();
    let share = |(zone, cpu): (&str, i128)| (zone.to_owned(), cpu as f64 / total as f64);
    (by_zone.len() >= 2).then(|| by_zone.into_iter().map(share).collect())
}

/// How many endpoints a zone is to use.
#[derive(Debug, Clone, Copy)]
struct Allocation {
    most: usize,
    desired: f64,
}

/// How many of `endpoints` each zone is to use; an error says why they cannot be shared out.
fn allocations(ratios: Option<&Ratios>, endpoints: usize) -> Result<BTreeMap<String, Allocation>, String> {
    const NO_NODES: &str =
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
    const OVERLOADED: &str =
        "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold";
    let ratios = ratios.ok_or(NO_NODES)?;
    let count = |why: &str| format!("{why} ({endpoints} endpoints, {} zones)", ratios.len());
    if ratios.len() > endpoints {
        return Err(count("Insufficient number of endpoints"));
    }
    let desired = |ratio: f64| ratio * endpoints as f64;
    let least = |ratio: f64| (desired(ratio) / (1.0 + OVERLOAD)).ceil() as usize;
    let spare = endpoints.checked_sub(ratios.values().map(|ratio| least(*ratio)).sum());
    let spare = spare.ok_or_else(|| count(OVERLOADED))?;
    let allocation = |(zone, ratio): (&String, &f64)| {
        let least = least(*ratio);
        (zone.clone(), Allocation { most: least + spare, desired: desired(*ratio).max(least as f64) })
    };
    Ok(ratios.iter().map(allocation).collect())
}

/// Shares the endpoints of a family out; gives how many each zone is to use. An error says why not, and then hints may
/// stand in the drafts that are to go.
pub(super) fn share(drafts: &mut Drafts, ratios: Option<&Ratios>) -> Result<Counts, String> {
    let written = drafts.written().map(|draft| ready(&draft.endpoints)).sum::<usize>();
    let same: usize = drafts.same.iter().map(|slice| ready(&slice.endpoints)).sum();
    let allocations = allocations(ratios, written + same)?;
    let mut counts = Counts::new();
    drafts.rewrite(|slice| match hinted(slice, &counts, &allocations) {
        Some(more) => {
            more.into_iter().for_each(|(zone, count)| *counts.entry(zone).or_default() += count);
            false
        }
        None => true,
    });
    // Everybody for his own zone at first.
    for draft in drafts.written() {
        for endpoint in &mut draft.endpoints {
            endpoint.hints = None;
            if endpoint.is_ready() {
                let zone =
                    endpoint.zone.clone().ok_or("One or more endpoints do not have a zone specified")?;
                endpoint.hints = for_zone(&zone);
                *counts.entry(zone).or_default() += 1;
            }
        }
    }
    let mut moves = moves(&allocations, &counts);
    let all = drafts.written().flat_map(|draft| &mut draft.endpoints).filter(|endpoint| endpoint.is_ready());
    for endpoint in all {
        let own = endpoint.zone.clone().unwrap_or_default();
        let Some(at) = moves.iter().position(|(from, _)| *from == own) else { continue };
        let (from, to) = moves.swap_remove(at);
        endpoint.hints = for_zone(&to);
        counts.entry(from).and_modify(|count| *count = count.saturating_sub(1));
        *counts.entry(to).or_default() += 1;
    }
    if counts.is_empty() { Err("No hints allocated for zones".into()) } else { Ok(counts) }
}

fn for_zone(zone: &str) -> Option<Hints> {
    Some(Hints { for_zones: vec![Named { name: zone.to_owned() }], for_nodes: Vec::new() })
}

fn ready(endpoints: &[Endpoint]) -> usize {
    endpoints.iter().filter(|endpoint| endpoint.is_ready()).count()
}

/// How many endpoints of an unchanged slice each zone uses; none if the slice has to change: an endpoint has no hint, or one
/// for a zone that needs none, or a zone has too many by it. Source: `getHintsByZone`.
fn hinted(slice: &Slice, before: &Counts, allocations: &BTreeMap<String, Allocation>) -> Option<Counts> {
    let mut counts = Counts::new();
    for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.is_ready()) {
        let zones = &endpoint.hints.as_ref()?.for_zones;
        if zones.is_empty() {
            return None;
        }
        for zone in zones {
            *counts.entry(zone.name.clone()).or_default() += 1;
        }
    }
    let fits = |(zone, count): (&String, &usize)| {
        allocations.get(zone).is_some_and(|held| count + before.get(zone).unwrap_or(&0) <= held.most)
    };
    counts.iter().all(fits).then_some(counts)
}

/// Which zone gives an endpoint to which, one by one. Source: `getGivingAndReceivingZones`.
fn moves(allocations: &BTreeMap<String, Allocation>, counts: &Counts) -> Vec<(String, String)> {
    let surplus = |(zone, held): (&String, &Allocation)| {
        (zone.clone(), *counts.get(zone).unwrap_or(&0) as f64 - held.desired)
    };
    let mut surplus: BTreeMap<String, f64> = allocations.iter().map(surplus).collect();
    let mut moves = Vec::new();
    loop {
        let most = |sign: f64| {
            let zones = surplus.iter().map(|(zone, amount)| (zone.clone(), amount * sign));
            zones.filter(|(_, amount)| *amount > 0.0).max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let (Some((from, gives)), Some((to, takes))) = (most(1.0), most(-1.0)) else { return moves };
        if (gives < 1.0 && takes < 1.0) || gives < 0.5 || takes < 0.5 {
            return moves;
        }
        surplus.entry(from.clone()).and_modify(|amount| *amount -= 1.0);
        surplus.entry(to.clone()).and_modify(|amount| *amount += 1.0);
        moves.push((from, to));
    }
}

/// Whether a zone has too few endpoints for its share. Source: `serviceOverloaded`.
fn is_overloaded(counts: &Counts, ratios: Option<&Ratios>) -> bool {
    if counts.is_empty() {
        return false;
    }
    let Some(ratios) = ratios else { return true };
    let total = counts.values().sum::<usize>() as f64;
    ratios.iter().any(|(zone, ratio)| {
        let least = (total * ratio / (1.0 + OVERLOAD)).ceil() as usize;
        counts.get(zone).is_none_or(|count| *count < least)
    })
}

/// The nodes' zones and processors, and which Services have been shared out over them.
#[derive(Default)]
pub(super) struct Zones {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    nodes: HashMap<String, Facts>,
    ratios: Option<Arc<Ratios>>,
    services: BTreeMap<Key, Shared>,
}

#[derive(Default)]
struct Shared {
    families: BTreeMap<&'static str, Counts>,
    hinted: bool,
}

impl Zones {
    /// A node came, went or changed; tells whether the shares have to be looked at.
    pub(super) fn node_changed(&self, name: &str, node: Option<&Object>) -> bool {
        let facts = node.and_then(Facts::of);
        let mut held = self.held.lock();
        let old = match facts.clone() {
            Some(facts) => held.nodes.insert(name.to_owned(), facts),
            None => held.nodes.remove(name),
        };
        old != facts
    }

    /// Counts the shares anew; gives the Services of which a zone has too few endpoints by them.
    pub(super) fn count(&self) -> Vec<Key> {
        let mut held = self.held.lock();
        held.ratios = ratios(held.nodes.values()).map(Arc::new);
        let ratios = held.ratios.as_deref();
        let overloaded =
            |shared: &Shared| shared.families.values().any(|counts| is_overloaded(counts, ratios));
        let services = held.services.iter().filter(|(_, shared)| overloaded(shared));
        services.map(|(key, _)| key.clone()).collect()
    }

    /// The shares, and whether a Service has been shared out.
    pub(super) fn of(&self, service: &Key) -> (Option<Arc<Ratios>>, bool) {
        let held = self.held.lock();
        (held.ratios.clone(), held.services.get(service).is_some_and(|shared| shared.hinted))
    }

    /// How a Service has been shared out.
    pub(super) fn set(&self, service: &Key, families: BTreeMap<&'static str, Counts>, hinted: bool) {
        let mut held = self.held.lock();
        if families.is_empty() && !hinted {
            held.services.remove(service);
        } else {
            held.services.insert(service.clone(), Shared { families, hinted });
        }
    }
}
