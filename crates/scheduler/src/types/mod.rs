//! What the scheduler keeps of pods and nodes.

pub mod intern;
pub mod node;
pub mod selector;
pub mod volume;

pub(crate) mod decode;

use std::sync::Arc;

use api::Key;
use jiff::Timestamp;
use reconcile::taints::Toleration;

pub use node::{Node, NodeAffinity};
pub use selector::{Labels, Matcher, Selector, Term};
pub use volume::PodVolume;

use crate::resources::Resources;

/// The scheduler that pods without a name of one ask for.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// A pod, as far as placing it goes. What many pods have in common is shared.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// Uid.
    pub uid: Arc<str>,
    /// Counts changes of its desired state.
    pub generation: i64,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether it is being deleted to make room for another.
    pub preempted: bool,
    /// Ran to its end: it uses nothing any more.
    pub finished: bool,
    /// The node that it is on; empty while it is on none.
    pub node: Arc<str>,
    /// The node on which room is made for it; empty if there is none.
    pub nominated: Box<str>,
    /// Whether scheduling gates hold it back: their names.
    pub gates: Box<[String]>,
    /// The claims of devices that it names.
    pub devices: Box<[DeviceClaim]>,
    /// When it began to run.
    pub started: Option<Timestamp>,
    /// What its node says of its resources, as one number that is another when it says something else.
    pub reported: u64,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// What it asks for.
    pub spec: Arc<Spec>,
}

/// A claim of devices, as a pod names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceClaim {
    /// One of this name.
    Named(String),
    /// One that was made for the pod, of this name; none if it needs none.
    Made(Option<String>),
    /// One that is still to be made for it.
    Awaited,
    /// Nothing that is known, by its name within the pod.
    Unknown(String),
}

impl DeviceClaim {
    /// The claim's name, if there is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Made(name) => name.as_deref(),
            Self::Awaited | Self::Unknown(_) => None,
        }
    }
}

/// What a pod asks for of a node and of its neighbours.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spec {
    /// The scheduler that it asks for.
    pub scheduler_name: String,
    /// Higher goes first.
    pub priority: i64,
    /// Whether it takes no other pod's place (`preemptionPolicy: Never`).
    pub never_preempts: bool,
    /// Its controller: kind, name and uid.
    pub owner: Option<Owner>,
    /// What it asks for.
    pub requests: Resources,
    /// Its containers that ask for resources which may be had as devices, in their order.
    pub extended: Vec<Asking>,
    /// The same for comparing nodes: thousandths of cores, bytes of memory.
    pub compared: (i128, i128),
    /// Host ports.
    pub ports: Vec<HostPort>,
    /// Labels that the node must have.
    pub node_selector: Labels,
    /// Where it must go, and where it would like to go.
    pub node_affinity: NodeAffinity,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// Pods that it must be with.
    pub affinity: Vec<Arc<Term>>,
    /// Pods that it must not be with.
    pub anti_affinity: Vec<Arc<Term>>,
    /// Pods that it would like to be with; those with a weight below 0, not to be with.
    pub preferred: Vec<(i64, Arc<Term>)>,
    /// How it and its like spread.
    pub spread: Vec<SpreadConstraint>,
    /// The images that it needs, by normalized name.
    pub images: Vec<String>,
    /// What its node has to be able to do that not every node can.
    pub features: Vec<&'static str>,
    /// Its volumes, as far as they bear on where it can be.
    pub volumes: Vec<PodVolume>,
}

/// What a container asks for of resources that may be had as devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// Its place among the pod's init containers and, after them, its containers.
    pub place: usize,
    /// Its name.
    pub name: String,
    /// Whether it runs to its end before others begin.
    pub brief: bool,
    /// The resources, by name.
    pub resources: Vec<Asked>,
}

/// How much of a resource a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The resource.
    pub resource: String,
    /// Its place among all that the container asks for, by name.
    pub place: usize,
    /// How much.
    pub count: i64,
}

/// Who manages a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// A port of the host that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Address, `0.0.0.0` for all.
    pub address: Box<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// Number.
    pub port: u16,
}

impl HostPort {
    /// Whether both cannot be had on one node. Source: `HostPortInfo.CheckConflict`.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || &*self.address == any || &*other.address == any)
    }
}

/// `core/v1.TopologySpreadConstraint`, with its defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpreadConstraint {
    /// How far domains may be apart.
    pub max_skew: i64,
    /// The label whose values are the domains.
    pub topology_key: String,
    /// Whether it must hold (`DoNotSchedule`), or is only better (`ScheduleAnyway`).
    pub hard: bool,
    /// The pods that are counted.
    pub selector: Selector,
    /// With fewer domains the least count is 0.
    pub min_domains: usize,
    /// Whether nodes that the pod's own affinity excludes are left out.
    pub honors_affinity: bool,
    /// Whether nodes with taints that the pod does not bear are left out.
    pub honors_taints: bool,
}

impl Pod {
    /// Whether it waits for a node.
    pub fn waits(&self) -> bool {
        self.node.is_empty() && !self.terminating && !self.finished
    }

    /// Whether it uses up something of a node.
    pub fn occupies(&self) -> bool {
        !self.node.is_empty() && !self.finished
    }

    /// Whether it names this claim of devices.
    pub fn names(&self, claim: &Key) -> bool {
        claim.namespace == self.key.namespace
            && self.devices.iter().any(|named| named.name() == Some(&claim.name))
    }

    /// Its priority.
    pub fn priority(&self) -> i64 {
        self.spec.priority
    }
}
