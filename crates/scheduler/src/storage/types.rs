//! What the scheduler keeps of claims, volumes, their classes, and of what drivers say.

use std::collections::{BTreeMap, BTreeSet};

use api::quantity::Quantity;
use api::selectors::LabelSelectorSpec;
use api::{Key, Object};
use base::BoxError;
use reconcile::node_affinity::NodeSelector;
use serde::Deserialize;

use crate::types::{Labels, Node, Selector};

/// The class, as it was named before it was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The node that the scheduler chose for the first pod of a claim. Source: `volume.AnnSelectedNode`.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The binding is complete. Source: `volume.AnnBindCompleted`.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// A class of this provisioner has volumes that somebody makes by hand. Source: `volume.NotSupportedProvisioner`.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Where an object is and which version of it this is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// Namespace and name.
    pub key: Key,
    /// Uid.
    pub uid: String,
    /// Its version.
    pub revision: i64,
}

impl Version {
    fn of(object: &Object) -> Self {
        Self { key: object.key(), uid: object.meta().uid.clone(), revision: object.revision() }
    }
}

/// `core/v1.PersistentVolumeClaim`.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// Which.
    pub version: Version,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether its volume is gone.
    pub lost: bool,
    /// The uid of its controller; empty if it has none.
    pub owner: String,
    /// Its class; empty if it has none.
    pub class: String,
    /// How much it asks for.
    pub size: Option<Quantity>,
    /// `Filesystem` or `Block`.
    pub mode: String,
    /// The access modes that it asks for.
    pub access: Vec<String>,
    /// The volumes that it takes, if not any.
    pub selector: Option<Selector>,
    /// Its volume attributes class; empty if it has none.
    pub attributes: String,
    /// Its volume; empty if it has none.
    pub volume: String,
    /// Whether claim and volume say of each other that they belong together.
    pub bound: bool,
    /// The node for which its volume is made.
    pub node: Option<String>,
}

/// `core/v1.PersistentVolume`.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Which; it has no namespace.
    pub version: Version,
    /// Labels.
    pub labels: Labels,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether nobody has it.
    pub available: bool,
    /// The claim that has it, or for which it is kept.
    pub claim: Option<Holder>,
    /// Its class; empty if it has none.
    pub class: String,
    /// How large it is.
    pub size: Quantity,
    /// `Filesystem` or `Block`.
    pub mode: String,
    /// The access modes that it has.
    pub access: Vec<String>,
    /// Its volume attributes class; empty if it has none.
    pub attributes: String,
    /// The nodes that reach it, if not all do.
    pub affinity: Option<NodeSelector>,
    /// Its driver, and the driver's name of it.
    pub driver: Option<(String, String)>,
}

/// A claim, as a volume names it. Without a uid the volume is only kept for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// Namespace and name.
    pub key: Key,
    /// Uid.
    pub uid: String,
}

impl Holder {
    /// Whether it is this claim. Source: `volume.IsVolumeBoundToClaim`.
    pub fn is(&self, claim: &Claim) -> bool {
        self.key == claim.version.key && (self.uid.is_empty() || self.uid == claim.version.uid)
    }
}

/// `storage/v1.StorageClass`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Class {
    /// Name.
    pub name: String,
    /// Who makes its volumes; empty if nobody does.
    pub provisioner: String,
    /// `Immediate` or `WaitForFirstConsumer`.
    pub mode: String,
    /// The nodes for which its volumes can be made: alternatives of labels with their values. None: all.
    pub topologies: Vec<Vec<(String, Vec<String>)>>,
}

/// `storage/v1.CSINode`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CsiNode {
    /// The node's name.
    pub name: String,
    /// The drivers that are there.
    pub drivers: BTreeSet<String>,
    /// How many volumes each driver can have on the node, if it says so.
    pub limits: BTreeMap<String, i64>,
}

/// `storage/v1.CSIDriver`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Driver {
    /// It tells how much storage it has left.
    pub tells_capacity: bool,
    /// Pods with volumes of it go only where it is.
    pub needed: bool,
}

/// `storage/v1.CSIStorageCapacity`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Capacity {
    /// The class.
    pub class: String,
    /// The nodes.
    pub nodes: Selector,
    /// How large a volume can be made there.
    pub limit: Option<Quantity>,
    /// How much is left there.
    pub left: Option<Quantity>,
}

impl Claim {
    /// Whether its volume waits for its first pod, given its class. Source: `volume.IsDelayBindingMode`.
    pub fn is_late(&self, class: Option<&Class>) -> bool {
        self.volume.is_empty() && class.is_some_and(|class| class.mode == "WaitForFirstConsumer")
    }

    /// Whether nothing that matters differs.
    pub fn same(&self, other: &Self) -> bool {
        (self.terminating, self.lost, self.bound, &self.node, &self.volume)
            == (other.terminating, other.lost, other.bound, &other.node, &other.volume)
            && (&self.version.uid, &self.class, self.size, &self.attributes)
                == (&other.version.uid, &other.class, other.size, &other.attributes)
    }
}

impl Volume {
    /// Whether a node reaches it. Source: `volume.CheckNodeAffinity`.
    pub fn reaches(&self, node: &Node) -> bool {
        self.affinity.as_ref().is_none_or(|affinity| affinity.matches("", &node.labels))
    }

    /// Whether nothing that matters differs.
    pub fn same(&self, other: &Self) -> bool {
        (self.terminating, self.available, &self.claim, &self.labels)
            == (other.terminating, other.available, &other.claim, &other.labels)
            && (&self.version.uid, &self.class, self.size, &self.attributes, &self.affinity)
                == (&other.version.uid, &other.class, other.size, &other.attributes, &other.affinity)
    }
}

impl Class {
    /// Whether somebody makes its volumes.
    pub fn provisions(&self) -> bool {
        !self.provisioner.is_empty() && self.provisioner != NO_PROVISIONER
    }

    /// Whether its volumes can be made for a node. Source: `helper.MatchTopologySelectorTerms`.
    pub fn allows(&self, node: &Node) -> bool {
        let has = |(key, values): &(String, Vec<String>)| {
            node.labels.get(key).is_some_and(|value| values.contains(value))
        };
        let holds = |term: &Vec<(String, Vec<String>)>| !term.is_empty() && term.iter().all(has);
        self.topologies.is_empty() || self.topologies.iter().any(holds)
    }
}

impl Capacity {
    /// How large a volume may be. Source: `volumeLimit`.
    pub fn most(&self) -> Option<Quantity> {
        self.limit.or(self.left)
    }
}

/// Annotations are not among what is known of every object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotated {
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimBody {
    metadata: Annotated,
    spec: ClaimSpec,
    status: Phase,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    access_modes: Vec<String>,
    resources: Requests,
    storage_class_name: Option<String>,
    volume_name: String,
    volume_mode: Option<String>,
    selector: Option<LabelSelectorSpec>,
    volume_attributes_class_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requests {
    requests: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Phase {
    phase: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeBody {
    metadata: Annotated,
    spec: VolumeSpec,
    status: Phase,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    capacity: BTreeMap<String, String>,
    access_modes: Vec<String>,
    claim_ref: Option<ClaimRef>,
    storage_class_name: String,
    volume_mode: Option<String>,
    volume_attributes_class_name: Option<String>,
    node_affinity: Option<Affinity>,
    csi: Option<CsiSource>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClaimRef {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Affinity {
    required: Option<NodeSelector>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CsiSource {
    driver: String,
    volume_handle: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClassBody {
    provisioner: String,
    volume_binding_mode: String,
    allowed_topologies: Vec<Topology>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Topology {
    match_label_expressions: Vec<TopologyLabel>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TopologyLabel {
    key: String,
    values: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CsiNodeBody {
    spec: CsiNodeSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CsiNodeSpec {
    drivers: Vec<CsiNodeDriver>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CsiNodeDriver {
    name: String,
    allocatable: Option<Allocatable>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Allocatable {
    count: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CapacityBody {
    storage_class_name: String,
    node_topology: Option<LabelSelectorSpec>,
    capacity: Option<String>,
    maximum_volume_size: Option<String>,
}

fn read<T: serde::de::DeserializeOwned>(object: &Object, kind: &str) -> Result<T, BoxError> {
    object.decode().map_err(|error| format!("cannot read {kind} {}: {error}", object.key()).into())
}

fn storage(amounts: &BTreeMap<String, String>) -> Option<Quantity> {
    amounts.get("storage")?.parse().ok()
}

fn mode(mode: Option<String>) -> String {
    mode.unwrap_or_else(|| "Filesystem".to_owned())
}

impl Claim {
    /// Decodes a claim.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let ClaimBody { metadata, spec, status } = read(object, "claim")?;
        let meta = object.meta();
        let annotation = |name: &str| metadata.annotations.get(name).cloned();
        Ok(Self {
            version: Version::of(object),
            terminating: meta.is_terminating(),
            lost: status.phase == "Lost",
            owner: meta.controller().map(|owner| owner.uid.clone()).unwrap_or_default(),
            class: annotation(CLASS).or(spec.storage_class_name).unwrap_or_default(),
            size: storage(&spec.resources.requests),
            mode: mode(spec.volume_mode),
            access: spec.access_modes,
            selector: spec.selector.map(|selector| Selector::new(Some(selector))),
            attributes: spec.volume_attributes_class_name.unwrap_or_default(),
            bound: !spec.volume_name.is_empty() && metadata.annotations.contains_key(BIND_COMPLETED),
            volume: spec.volume_name,
            node: annotation(SELECTED_NODE),
        })
    }
}

impl Volume {
    /// Decodes a volume.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let VolumeBody { metadata, spec, status } = read(object, "volume")?;
        let meta = object.meta();
        Ok(Self {
            version: Version::of(object),
            labels: meta.labels.clone(),
            terminating: meta.is_terminating(),
            available: status.phase == "Available",
            claim: spec
                .claim_ref
                .map(|held| Holder { key: Key::new(held.namespace, held.name), uid: held.uid }),
            class: metadata.annotations.get(CLASS).cloned().unwrap_or(spec.storage_class_name),
            size: storage(&spec.capacity).unwrap_or(Quantity::ZERO),
            mode: mode(spec.volume_mode),
            access: spec.access_modes,
            attributes: spec.volume_attributes_class_name.unwrap_or_default(),
            affinity: spec.node_affinity.and_then(|affinity| affinity.required),
            driver: spec.csi.map(|csi| (csi.driver, csi.volume_handle)),
        })
    }
}

impl Class {
    /// Decodes a class.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: ClassBody = read(object, "storage class")?;
        let labels = |term: Topology| {
            term.match_label_expressions.into_iter().map(|label| (label.key, label.values)).collect()
        };
        Ok(Self {
            name: object.meta().name.clone(),
            provisioner: body.provisioner,
            mode: body.volume_binding_mode,
            topologies: body.allowed_topologies.into_iter().map(labels).collect(),
        })
    }
}

impl CsiNode {
    /// Decodes what the drivers of a node say.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: CsiNodeBody = read(object, "CSINode")?;
        let limit = |driver: CsiNodeDriver| Some((driver.name, driver.allocatable?.count?));
        Ok(Self {
            name: object.meta().name.clone(),
            drivers: body.spec.drivers.iter().map(|driver| driver.name.clone()).collect(),
            limits: body.spec.drivers.into_iter().filter_map(limit).collect(),
        })
    }
}

impl Capacity {
    /// Decodes what a driver says of what it has left. Without nodes it is of none.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: CapacityBody = read(object, "CSIStorageCapacity")?;
        let amount = |text: Option<String>| text.and_then(|text| text.parse().ok());
        Ok(Self {
            class: body.storage_class_name,
            nodes: Selector::new(body.node_topology),
            limit: amount(body.maximum_volume_size),
            left: amount(body.capacity),
        })
    }
}

/// Node and volume of a `storage/v1.VolumeAttachment`, if it names a volume.
pub(super) fn attachment(object: &Object) -> Option<(String, String)> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Body {
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        node_name: String,
        source: Source,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Source {
        persistent_volume_name: Option<String>,
    }
    let spec = object.decode::<Body>().ok()?.spec;
    Some((spec.node_name, spec.source.persistent_volume_name?))
}

impl Driver {
    /// Decodes what a driver says of itself; one that cannot be read says nothing.
    pub fn decode(object: &Object) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Spec {
            storage_capacity: bool,
            prevent_pod_scheduling_if_missing: bool,
        }
        let spec = object.decode::<Body>().unwrap_or_default().spec;
        Self { tells_capacity: spec.storage_capacity, needed: spec.prevent_pod_scheduling_if_missing }
    }
}
