//! The claims of devices of one pod. Source: `resourceclaim.Name`, `IsForPod`, `DynamicResources.PreFilter` and `Filter`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Key;

use super::Devices;
use super::allocate::{Purse, Refused, Search, Solution};
use super::extended::Mapping;
use super::types::{Allocation, Claim};
use crate::types::{DeviceClaim, Node, Pod};

/// What is said once a claim has lost its devices, so that it may get others.
pub const DEALLOCATED: &str = "deallocation of ResourceClaim completed";
/// What is said once a claim is deleted that was left over, so that another can be made.
pub const DELETED: &str = "deletion of ResourceClaim completed";
const LEFT: &str = "cannot schedule extended resource claim";
const UNFIT: &str = "cannot fit resource";
const CANNOT: &str = "cannot allocate all claims";
const INVALID: &str = "invalid resource pools were encountered";
const LATE: &str = "timed out trying to allocate devices";
/// The devices of a claim are of other nodes, or do not become ready.
pub const ELSEWHERE: &str = "resourceclaim not available on the node";

/// The claims that a pod names, if all are there and may be used by it. None: of those that it does not need.
pub fn claims<'a>(pod: &Pod, devices: &'a Devices) -> Result<Vec<&'a Arc<Claim>>, String> {
    let mut claims = Vec::with_capacity(pod.devices.len());
    let mut seen = HashSet::new();
    for named in &pod.devices {
        let name = match named {
            DeviceClaim::Named(name) | DeviceClaim::Made(Some(name)) => name,
            DeviceClaim::Made(None) => continue,
            DeviceClaim::Awaited => {
                return Err(format!("pod \"{}\": ResourceClaim not created yet", pod.key));
            }
            DeviceClaim::Unknown(name) => {
                let what = "none of the supported fields are set";
                return Err(format!("pod \"{}\", spec.resourceClaim {name:?}: {what}", pod.key));
            }
        };
        let key = Key::new(pod.key.namespace.as_str(), name.as_str());
        let claim = devices.claim(&key).ok_or_else(|| format!("could not find ResourceClaim \"{key}\""))?;
        if claim.terminating {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        if matches!(named, DeviceClaim::Made(_)) && claim.owner != *pod.uid {
            return Err(format!(
                "ResourceClaim {key} was not created for Pod {} (Pod is not owner)",
                pod.key
            ));
        }
        // A pod may name one claim several times.
        if seen.insert(name.as_str()) {
            claims.push(claim);
        }
    }
    Ok(claims)
}

/// Whether the devices of a claim are ready; the failure is why they will not be. Source: `isClaimReadyForBinding`.
pub fn is_ready(claim: &Claim) -> Result<bool, String> {
    let devices = claim.allocation.iter().flat_map(|allocation| &allocation.devices);
    for device in devices.filter(|device| !device.binding_conditions.is_empty()) {
        let Some(told) = claim.told.iter().find(|told| told.is_of(device)) else { return Ok(false) };
        let mut failures = device.binding_failure_conditions.iter();
        if let Some(failed) = failures.find_map(|condition| told.holds(condition)) {
            let (name, reason, message) = (&claim.version.key.name, &failed.reason, &failed.message);
            return Err(format!("claim {name} binding failed: reason={reason}, message={message:?}"));
        }
        if device.binding_conditions.iter().any(|condition| told.holds(condition).is_none()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Claims, with what those get that have nothing.
pub type Gets = Vec<(Arc<Claim>, Option<Arc<Allocation>>)>;

/// What a pod's claims get on a node.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The claims that it names.
    pub gets: Gets,
    /// The claim that is made for its extended resources, if it needs one there.
    pub special: Option<Special>,
}

/// A claim that is to be made for a pod.
#[derive(Debug, Clone)]
pub struct Special {
    /// The claim.
    pub claim: Arc<Claim>,
    /// What it gets.
    pub allocation: Arc<Allocation>,
    /// What its requests are for.
    pub mappings: Vec<Mapping>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The search for devices on one node; zero: as long as it takes.
    pub filter: Duration,
    /// Devices, to become ready.
    pub binding: Duration,
}

/// Extended resources of a pod that may be had as devices.
#[derive(Debug)]
enum Extended<'a> {
    /// It asks for none.
    None,
    /// A claim for them is left over from an attempt that failed.
    Left(&'a Arc<Claim>),
    /// Each node has a claim made for what it does not offer itself.
    Asked(&'a Pod),
}

/// What is looked for on nodes that lack the same of what a pod asks for.
#[derive(Debug)]
struct Wanted<'a> {
    /// For the claims that have no devices; the last is the one to be made, if one is.
    search: Search<'a>,
    mappings: Vec<Mapping>,
}

/// The claims of a pod that is to be placed.
#[derive(Debug)]
pub struct PodClaims<'a> {
    devices: &'a Devices,
    /// Those that have devices.
    allocated: Vec<&'a Arc<Claim>>,
    /// Those that have none.
    open: Vec<Arc<Claim>>,
    extended: Extended<'a>,
    /// By what of the pod's extended resources nodes lack.
    wanted: RefCell<HashMap<Vec<&'a str>, Rc<Wanted<'a>>>>,
    purse: Purse,
    timeouts: Timeouts,
    now: jiff::Timestamp,
}

/// What a node is for a pod's claims.
enum There<'a> {
    /// A claim has to be deleted first.
    Left,
    /// It lacks something that no class stands for.
    Unfit,
    /// No devices are looked for.
    Nothing,
    /// These are.
    Wanted(Rc<Wanted<'a>>),
}

impl<'a> PodClaims<'a> {
    /// The claims of a pod; `None`: it has none. The failure is why it cannot be placed anywhere now.
    pub fn of(pod: &'a Pod, devices: &'a Devices, timeouts: Timeouts) -> Result<Option<Self>, String> {
        if pod.devices.is_empty() && pod.spec.extended.is_empty() {
            return Ok(None);
        }
        let claims = claims(pod, devices)?;
        let extended = match devices.special_of(&pod.uid) {
            _ if !super::extended::asks(pod, devices) => Extended::None,
            Some(left) => Extended::Left(left),
            None => Extended::Asked(pod),
        };
        if claims.is_empty() && matches!(extended, Extended::None) {
            return Ok(None);
        }
        let (allocated, open): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claim.allocation.is_some());
        if let Some(claim) = open.iter().find(|claim| devices.is_decided(&claim.version.key)) {
            let key = &claim.version.key;
            return Err(format!("resource claim {key} is in the process of being allocated"));
        }
        let open: Vec<Arc<Claim>> = open.into_iter().cloned().collect();
        let (purse, wanted, now) = (Purse::default(), RefCell::default(), devices.now);
        let of_pod = Self { devices, allocated, open, extended, wanted, purse, timeouts, now };
        // What is wrong with the claims that the pod names is wrong wherever it goes.
        if !of_pod.open.is_empty() {
            of_pod.wanted(Vec::new())?;
        }
        Ok(Some(of_pod))
    }

    /// What is looked for on nodes that lack these of the pod's extended resources.
    fn wanted(&self, lacking: Vec<&'a str>) -> Result<Rc<Wanted<'a>>, String> {
        if let Some(known) = self.wanted.borrow().get(&lacking) {
            return Ok(known.clone());
        }
        let (mut claims, mut mappings) = (self.open.clone(), Vec::new());
        if let Extended::Asked(pod) = self.extended
            && !lacking.is_empty()
        {
            let (claim, of_claim) = super::extended::claim(pod, &lacking, self.devices);
            mappings = of_claim;
            claims.extend((!mappings.is_empty()).then(|| Arc::new(claim)));
        }
        let search = Search::new(self.devices, claims, &self.purse)?;
        let wanted = Rc::new(Wanted { search, mappings });
        self.wanted.borrow_mut().insert(lacking, wanted.clone());
        Ok(wanted)
    }

    fn there(&self, node: &Node) -> Result<There<'a>, String> {
        let lacking = match self.extended {
            Extended::Left(_) => return Ok(There::Left),
            Extended::None => Vec::new(),
            Extended::Asked(pod) => match super::extended::lacking(pod, node, self.devices) {
                Some(lacking) => lacking,
                None => return Ok(There::Unfit),
            },
        };
        if lacking.is_empty() && self.open.is_empty() {
            return Ok(There::Nothing);
        }
        self.wanted(lacking).map(There::Wanted)
    }

    /// The claims with devices that do not let the pod go to a node.
    fn unavailable(&self, node: &Node) -> impl Iterator<Item = &'a Arc<Claim>> {
        self.allocated.iter().copied().filter(|claim| self.is_lost(claim) || !is_on(claim, node))
    }

    /// Whether the devices of a claim have not become ready, and will not.
    fn is_lost(&self, claim: &Claim) -> bool {
        let since = claim.allocation.as_ref().and_then(|allocation| allocation.since);
        let late = || {
            let end = since.and_then(|since| since.saturating_add(self.timeouts.binding).ok());
            end.is_some_and(|end| end < self.now)
        };
        is_ready(claim).map_or(true, |ready| !ready && late())
    }

    /// What the claims that are looked for get on a node, each in its place.
    fn found<'w>(&self, wanted: &'w Wanted<'a>, node: &Node) -> Result<Vec<Solution<'w>>, Refused> {
        let limit = self.timeouts.filter;
        let deadline = Instant::now().checked_add(limit).filter(|_| !limit.is_zero());
        wanted.search.allocate(node, deadline)
    }

    /// Why the pod cannot go to a node; `None`: it can. The failure is what is wrong wherever it goes.
    pub fn refusal(&self, node: &Node) -> Result<Option<&'static str>, String> {
        let found = match self.there(node)? {
            There::Left => return Ok(Some(LEFT)),
            There::Unfit => return Ok(Some(UNFIT)),
            There::Nothing => Ok(()),
            There::Wanted(wanted) => self.found(&wanted, node).map(drop),
        };
        match found {
            Err(Refused::Cannot) => Ok(Some(CANNOT)),
            Err(Refused::Invalid) => Ok(Some(INVALID)),
            Err(Refused::Late) => Ok(Some(LATE)),
            Err(Refused::Wrong(why)) => Err(why),
            Ok(()) => Ok(self.unavailable(node).next().map(|_| ELSEWHERE)),
        }
    }

    /// How far up the lists of alternatives the asks are that can be had on a node. Source: `computeScore`.
    pub fn preference(&self, node: &Node) -> i64 {
        let Ok(There::Wanted(wanted)) = self.there(node) else { return 0 };
        let found = self.found(&wanted, node).unwrap_or_default();
        wanted.search.claims().iter().zip(&found).map(|(claim, solution)| preference(claim, solution)).sum()
    }

    /// Whether a claim that gets devices would rather have some than others.
    pub fn prefers(&self) -> bool {
        self.open.iter().any(|claim| claim.requests.iter().any(|request| request.ordered))
    }

    /// What every claim gets on a node, those included that have devices; the failure is why they get nothing.
    pub fn plan(&self, node: &Node) -> Result<Found, String> {
        let missing = || "claim allocation not found for node".to_owned();
        let mut plan = Found::default();
        plan.gets.extend(self.allocated.iter().map(|claim| (Arc::clone(claim), None)));
        let wanted = match self.there(node)? {
            There::Left | There::Unfit => return Err(missing()),
            There::Nothing => return Ok(plan),
            There::Wanted(wanted) => wanted,
        };
        let found = self.found(&wanted, node).map_err(|_| missing())?;
        for (claim, solution) in wanted.search.claims().iter().zip(found) {
            let allocation = super::outcome::allocation(claim, &solution, node)
                .map_err(|why| format!("create NodeSelector for claim {}: {why}", claim.version.key.name))?;
            let (claim, allocation) = (claim.clone(), Arc::new(allocation));
            if claim.is_unmade() {
                plan.special = Some(Special { claim, allocation, mappings: wanted.mappings.clone() });
            } else {
                plan.gets.push((claim, Some(allocation)));
            }
        }
        Ok(plan)
    }

    /// A claim whose devices are in the way on a node, and that nobody else uses than a pod.
    pub fn in_the_way(&self, pod: &str, node: &Node) -> Option<&'a Arc<Claim>> {
        self.unavailable(node).find(|claim| claim.is_only_for(pod))
    }

    /// A claim that is left over from an attempt that failed.
    pub fn left_over(&self) -> Option<&'a Arc<Claim>> {
        match self.extended {
            Extended::Left(claim) => Some(claim),
            Extended::None | Extended::Asked(_) => None,
        }
    }
}

/// Whether the devices of a claim can be used on a node.
fn is_on(claim: &Claim, node: &Node) -> bool {
    let nodes = claim.allocation.as_ref().and_then(|allocation| allocation.nodes.as_ref());
    nodes.is_none_or(|nodes| nodes.matches(&node.name, &node.labels))
}

fn preference(claim: &Claim, solution: &Solution<'_>) -> i64 {
    /// Source: `FirstAvailableDeviceRequestMaxSize`.
    const ALTERNATIVES_MAX: i64 = 8;
    let got: BTreeSet<usize> = solution.devices.iter().map(|chosen| chosen.request).collect();
    let asks = claim.requests.iter().zip(&solution.asks).enumerate();
    asks.filter(|(number, (request, _))| request.ordered && got.contains(number))
        .map(|(_, (request, (ask, _)))| {
            let place = request.asks.iter().position(|held| std::ptr::eq(held, *ask)).unwrap_or(0);
            ALTERNATIVES_MAX.saturating_sub(i64::try_from(place).unwrap_or(i64::MAX))
        })
        .sum()
}
