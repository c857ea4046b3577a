//! Changes in the cluster that may let a pod fit that did not.

use std::sync::Arc;

use crate::devices::types as devices;
use crate::storage::types::{Capacity, Claim, Class, CsiNode, Volume};
use crate::types::{Node, Pod};

/// A change.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node came.
    NodeAdded(Arc<Node>),
    /// A node changed: before and after.
    NodeChanged(Arc<Node>, Arc<Node>),
    /// A node went.
    NodeGone(Arc<Node>),
    /// A pod came to a node.
    PodPlaced(Arc<Pod>),
    /// A pod on a node changed: before and after.
    PodChanged(Arc<Pod>, Arc<Pod>),
    /// A pod left its node.
    PodLeft(Arc<Pod>),
    /// The pod that waits changed itself: before and after.
    OwnChanged(Arc<Pod>, Arc<Pod>),
    /// A namespace's labels changed.
    NamespaceChanged,
    /// A claim came or changed: before, if it was there, and after.
    Claim(Option<Arc<Claim>>, Arc<Claim>),
    /// A volume came or changed, or may be had again.
    Volume(Option<Arc<Volume>>, Arc<Volume>),
    /// A storage class came or changed.
    Class(Option<Arc<Class>>, Arc<Class>),
    /// What the drivers of a node say came or changed.
    CsiNode(Option<Arc<CsiNode>>, Arc<CsiNode>),
    /// How much storage is left somewhere.
    Capacity(Option<Arc<Capacity>>, Arc<Capacity>),
    /// A claim of devices came or changed: before, if it was there, and after.
    ResourceClaim(Option<Arc<devices::Claim>>, Arc<devices::Claim>),
    /// A claim of devices went.
    ResourceClaimGone(Arc<devices::Claim>),
    /// What a driver offers came or changed; whether it was there.
    ResourceSlice(bool),
    /// A class of devices came or changed: before, if it was there, and after.
    DeviceClass(Option<Arc<devices::Class>>, Arc<devices::Class>),
    /// A volume is not attached to a node any more.
    AttachmentGone,
    /// A driver does not tell any more how much it has left, or need not be on a node any more, so that nobody asks.
    DriverEased,
}

impl Event {
    /// Upstream's name of it. Source: `ClusterEvent.Label` of `kube-scheduler/framework`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NodeAdded(_) => "NodeAdd",
            Self::NodeChanged(..) => "NodeUpdate",
            Self::NodeGone(_) => "NodeDelete",
            Self::PodPlaced(_) => "AssignedPodAdd",
            Self::PodChanged(..) => "AssignedPodUpdate",
            Self::PodLeft(_) => "AssignedPodDelete",
            Self::OwnChanged(..) => "UnscheduledPodUpdate",
            Self::NamespaceChanged => "NamespaceUpdate",
            Self::Claim(None, _) => "PersistentVolumeClaimAdd",
            Self::Claim(..) => "PersistentVolumeClaimUpdate",
            Self::Volume(None, _) => "PersistentVolumeAdd",
            Self::Volume(..) => "PersistentVolumeUpdate",
            Self::Class(None, _) => "storage.k8s.io/StorageClassAdd",
            Self::Class(..) => "storage.k8s.io/StorageClassUpdate",
            Self::CsiNode(None, _) => "storage.k8s.io/CSINodeAdd",
            Self::CsiNode(..) => "storage.k8s.io/CSINodeUpdate",
            Self::Capacity(None, _) => "storage.k8s.io/CSIStorageCapacityAdd",
            Self::Capacity(..) => "storage.k8s.io/CSIStorageCapacityUpdate",
            Self::DriverEased => "storage.k8s.io/CSIDriverUpdate",
            Self::ResourceClaim(None, _) => "resource.k8s.io/ResourceClaimAdd",
            Self::ResourceClaim(..) => "resource.k8s.io/ResourceClaimUpdate",
            Self::ResourceClaimGone(_) => "resource.k8s.io/ResourceClaimDelete",
            Self::ResourceSlice(false) => "resource.k8s.io/ResourceSliceAdd",
            Self::ResourceSlice(true) => "resource.k8s.io/ResourceSliceUpdate",
            Self::DeviceClass(None, _) => "resource.k8s.io/DeviceClassAdd",
            Self::DeviceClass(..) => "resource.k8s.io/DeviceClassUpdate",
            Self::AttachmentGone => "storage.k8s.io/VolumeAttachmentDelete",
        }
    }
}
