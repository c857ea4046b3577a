//! The claims of devices of one pod. Source: `resourceclaim.Name`, `IsForPod`, `DynamicResources.PreFilter` and `Filter`.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Key;

use super::Devices;
use super::allocate::{Refused, Search, Solution};
use super::types::{Allocation, Claim};
use crate::types::{DeviceClaim, Node, Pod};

/// What is said once a claim has lost its devices, so that it may get others.
pub const DEALLOCATED: &str = "deallocation of ResourceClaim completed";
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

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The search for devices on one node; zero: as long as it takes.
    pub filter: Duration,
    /// Devices, to become ready.
    pub binding: Duration,
}

/// The claims of a pod that is to be placed.
#[derive(Debug)]
pub struct PodClaims<'a> {
    /// Those that have devices.
    allocated: Vec<&'a Arc<Claim>>,
    /// For those that have none.
    search: Option<Search<'a>>,
    timeouts: Timeouts,
    now: jiff::Timestamp,
}

impl<'a> PodClaims<'a> {
    /// The claims of a pod; `None`: it has none. The failure is why it cannot be placed anywhere now.
    pub fn of(pod: &Pod, devices: &'a Devices, timeouts: Timeouts) -> Result<Option<Self>, String> {
        if pod.devices.is_empty() {
            return Ok(None);
        }
        let claims = claims(pod, devices)?;
        if claims.is_empty() {
            return Ok(None);
        }
        let (allocated, open): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claim.allocation.is_some());
        if let Some(claim) = open.iter().find(|claim| devices.is_decided(&claim.version.key)) {
            let key = &claim.version.key;
            return Err(format!("resource claim {key} is in the process of being allocated"));
        }
        let search = if open.is_empty() { None } else { Some(Search::new(devices, open)?) };
        Ok(Some(Self { allocated, search, timeouts, now: devices.now }))
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

    /// The claims that get devices, with what they get on a node.
    fn found(&self, node: &Node) -> Result<Vec<(&'a Arc<Claim>, Solution<'a>)>, Refused> {
        let Some(search) = &self.search else { return Ok(Vec::new()) };
        let limit = self.timeouts.filter;
        let deadline = Instant::now().checked_add(limit).filter(|_| !limit.is_zero());
        let solutions = search.allocate(node, deadline)?;
        Ok(search.claims().iter().copied().zip(solutions).collect())
    }

    /// Why the pod cannot go to a node; `None`: it can. The failure is what is wrong wherever it goes.
    pub fn refusal(&self, node: &Node) -> Result<Option<&'static str>, String> {
        match self.found(node) {
            Err(Refused::Cannot) => Ok(Some(CANNOT)),
            Err(Refused::Invalid) => Ok(Some(INVALID)),
            Err(Refused::Late) => Ok(Some(LATE)),
            Err(Refused::Wrong(why)) => Err(why),
            Ok(_) => Ok(self.unavailable(node).next().map(|_| ELSEWHERE)),
        }
    }

    /// How far up the lists of alternatives the asks are that can be had on a node; `None`: there are no such lists.
    /// Source: `computeScore`.
    pub fn preference(&self, node: &Node) -> i64 {
        let found = self.found(node).unwrap_or_default();
        found.iter().map(|(claim, solution)| preference(claim, solution)).sum()
    }

    /// Whether a claim that gets devices would rather have some than others.
    pub fn prefers(&self) -> bool {
        let open = self.search.iter().flat_map(Search::claims);
        open.into_iter().any(|claim| claim.requests.iter().any(|request| request.ordered))
    }

    /// What every claim gets on a node, those included that have devices; the failure is why they get nothing.
    pub fn plan(&self, node: &Node) -> Result<Gets, String> {
        let missing = |_| "claim allocation not found for node".to_owned();
        let found = self.found(node).map_err(missing)?;
        let mut plan = Vec::with_capacity(self.allocated.len() + found.len());
        plan.extend(self.allocated.iter().map(|claim| (Arc::clone(claim), None)));
        for (claim, solution) in found {
            let allocation = super::outcome::allocation(claim, &solution, node)
                .map_err(|why| format!("create NodeSelector for claim {}: {why}", claim.version.key.name))?;
            plan.push((claim.clone(), Some(Arc::new(allocation))));
        }
        Ok(plan)
    }

    /// A claim whose devices are in the way on a node, and that nobody else uses than a pod.
    pub fn in_the_way(&self, pod: &str, node: &Node) -> Option<&'a Arc<Claim>> {
        self.unavailable(node).find(|claim| claim.is_only_for(pod))
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
