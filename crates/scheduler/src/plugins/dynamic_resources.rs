//! Devices: a pod goes where its claims have devices, or can get them. Source: `plugins/dynamicresources`.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::cluster::groups::Slot;
use crate::cluster::{Cluster, NodeState};
use crate::config::args::DeviceArgs;
use crate::devices::bind::Plan;
use crate::devices::of_pod::{DEALLOCATED, DELETED, ELSEWHERE, PodClaims, Timeouts, claims};
use crate::framework::{
    Check, Event, Freed, Plugin, Point, PreFilter, Preparation, Rate, Refusal, Relief, normalize_to_max,
};
use crate::storage::types::Version;
use crate::types::Pod;

/// The claims of a pod have devices on its node, or get them.
pub(super) struct DynamicResources {
    timeouts: Timeouts,
}

impl DynamicResources {
    pub(super) fn new(args: &DeviceArgs) -> Self {
        Self { timeouts: Timeouts { filter: args.filter_timeout(), binding: args.binding_timeout() } }
    }
}

/// Pods that come or go change nothing, so that each node is looked at once.
struct Reaches<'a> {
    claims: PodClaims<'a>,
    known: RefCell<HashMap<Slot, Option<Refusal>>>,
    failure: RefCell<Option<String>>,
    pod: &'a str,
    /// A claim that nobody else uses, and whose devices are in the way on a node.
    frees: RefCell<Option<Version>>,
}

impl Check for Reaches<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        if let Some(known) = self.known.borrow().get(&state.slot) {
            return known.clone();
        }
        let refusal = match self.claims.refusal(state.node()) {
            Ok(refused) => {
                if let Some(claim) =
                    self.claims.in_the_way(self.pod, state.node()).filter(|_| refused == Some(ELSEWHERE))
                {
                    self.frees.borrow_mut().get_or_insert_with(|| claim.version.clone());
                }
                refused.map(Refusal::lasting)
            }
            Err(why) => {
                self.failure.borrow_mut().get_or_insert_with(|| why.clone());
                Some(Refusal::lasting(why))
            }
        };
        self.known.borrow_mut().insert(state.slot, refusal.clone());
        refusal
    }

    fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    fn relief(&self) -> Option<Relief> {
        let left_over = self.claims.left_over().map(|claim| claim.version.clone());
        match (self.frees.borrow().clone(), left_over) {
            (Some(claim), _) => Some(Relief { said: DEALLOCATED, frees: Some(Freed::Devices(claim.into())) }),
            (None, Some(claim)) => Some(Relief { said: DELETED, frees: Some(Freed::Claim(claim.into())) }),
            (None, None) => None,
        }
    }
}

/// Claims rather get what they ask for first.
struct Preferred<'a>(PodClaims<'a>);

impl Rate for Preferred<'_> {
    fn score(&self, state: &NodeState) -> i64 {
        self.0.preference(state.node())
    }

    fn normalize(&self, scores: &mut [i64], _nodes: &[&NodeState]) {
        normalize_to_max(scores, false);
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn points(&self) -> &'static [Point] {
        use Point::{Filter, PostFilter, PreBind, PreEnqueue, PreFilter, Reserve, Score};
        &[PreEnqueue, PreFilter, Filter, PostFilter, Score, Reserve, PreBind]
    }

    fn gate(&self, pod: &Pod, cluster: &Cluster) -> Option<String> {
        claims(pod, &cluster.devices).err()
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        match PodClaims::of(pod, &cluster.devices, self.timeouts) {
            Ok(None) => PreFilter::Skip,
            Ok(Some(claims)) => {
                let (known, failure, frees) = Default::default();
                PreFilter::Check(Box::new(Reaches { claims, known, failure, pod: &pod.uid, frees }))
            }
            Err(why) => PreFilter::Refuse(Refusal::lasting(why)),
        }
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let claims = PodClaims::of(pod, &cluster.devices, self.timeouts).ok()??;
        claims.prefers().then(|| Box::new(Preferred(claims)) as Box<dyn Rate + 'a>)
    }

    fn reserve(&self, pod: &Pod, node: &str, cluster: &mut Cluster) -> Option<Preparation> {
        let found = match PodClaims::of(pod, &cluster.devices, self.timeouts) {
            Ok(None) => return None,
            Ok(Some(claims)) => match cluster.node(node) {
                Some(node) => claims.plan(node),
                None => Err(format!("node {node:?} not found")),
            },
            Err(why) => Err(why),
        };
        if let Ok(found) = &found {
            let own = found.gets.iter().filter_map(|(claim, allocation)| Some((claim, allocation.as_ref()?)));
            let special = found.special.iter().map(|special| (&special.claim, &special.allocation));
            for (claim, allocation) in own.chain(special) {
                cluster.devices.decide(claim, allocation.clone(), &pod.uid);
            }
        }
        Some(Preparation::Devices(Plan { found, timeout: self.timeouts.binding }))
    }

    fn relieves(&self) -> bool {
        true
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{DeviceClass, NodeAdded, NodeChanged, ResourceClaim, ResourceClaimGone, ResourceSlice};
        let of_nodes = matches!(event, NodeAdded(_) | NodeChanged(..));
        let of_devices = matches!(event, ResourceSlice(_) | DeviceClass(..));
        of_nodes || of_devices || matches!(event, ResourceClaim(..) | ResourceClaimGone(_))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) | Event::ResourceSlice(_) | Event::DeviceClass(..) => true,
            // One that was made for extended resources goes with its devices.
            Event::ResourceClaimGone(claim) => {
                claim.allocation.is_some() || (claim.special && claim.owner == *pod.uid)
            }
            Event::NodeChanged(old, new) => old.labels != new.labels || old.allocatable != new.allocatable,
            // Devices that are free again may be had by anybody.
            Event::ResourceClaim(Some(old), new) => {
                (old.allocation.is_some() && new.allocation.is_none())
                    || (pod.names(&new.version.key) && !old.says_the_same(new))
            }
            Event::ResourceClaim(None, new) => pod.names(&new.version.key),
            Event::OwnChanged(old, new) => old.devices != new.devices,
            _ => false,
        }
    }
}
