//! What is used of claims, volumes and their classes.

use std::collections::BTreeMap;

use api::ObjectMeta;
use api::quantity::Quantity;
use serde::{Deserialize, Serialize};

use crate::amount::storage;
use crate::selector::LabelSelector;

/// The binding is complete: only then a claim without its volume is lost.
pub(super) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// This controller bound it, so it may unbind it.
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Who made a volume.
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Whose driver stands in for a plugin of old.
pub(super) const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// Who is to make the volume of a claim; the old name is still read.
pub(super) const PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// The node that the scheduler chose for the first pod of a claim.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The class, as it was named before it was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// A projection of `core/v1.PersistentVolumeClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Claim {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: ClaimSpec,
    pub(super) status: ClaimStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimSpec {
    pub(super) access_modes: Vec<String>,
    pub(super) resources: Requests,
    pub(super) storage_class_name: Option<String>,
    pub(super) volume_name: String,
    pub(super) volume_mode: Option<String>,
    pub(super) selector: Option<LabelSelector>,
    pub(super) volume_attributes_class_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Requests {
    pub(super) requests: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimStatus {
    pub(super) phase: String,
    pub(super) access_modes: Vec<String>,
    pub(super) capacity: BTreeMap<String, String>,
    pub(super) current_volume_attributes_class_name: Option<String>,
}

/// A projection of `core/v1.PersistentVolume`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: VolumeSpec,
    pub(super) status: VolumeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeSpec {
    pub(super) capacity: BTreeMap<String, String>,
    pub(super) access_modes: Vec<String>,
    pub(super) claim_ref: Option<ClaimRef>,
    pub(super) persistent_volume_reclaim_policy: String,
    pub(super) storage_class_name: String,
    pub(super) volume_mode: Option<String>,
    pub(super) volume_attributes_class_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct VolumeStatus {
    pub(super) phase: String,
}

/// The claim of a volume. Shape: `core/v1.ObjectReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimRef {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Empty while the volume is only kept for the claim.
    pub(super) uid: String,
    pub(super) api_version: String,
    pub(super) resource_version: String,
}

/// A projection of `storage/v1.StorageClass`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Class {
    pub(super) metadata: ObjectMeta,
    pub(super) provisioner: String,
    pub(super) volume_binding_mode: String,
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

impl Claim {
    /// The class; none is the empty one.
    pub(super) fn class(&self) -> &str {
        let named = self.metadata.annotations.get(CLASS).or(self.spec.storage_class_name.as_ref());
        named.map_or("", String::as_str)
    }

    /// Whether it says which class it is of, be it none.
    pub(super) fn says_class(&self) -> bool {
        self.metadata.annotations.contains_key(CLASS) || self.spec.storage_class_name.is_some()
    }

    pub(super) fn has(&self, annotation: &str) -> bool {
        self.metadata.annotations.contains_key(annotation)
    }

    /// Whether the scheduler has chosen where its volume is to be made.
    pub(super) fn has_node(&self) -> bool {
        self.has(SELECTED_NODE)
    }

    pub(super) fn size(&self) -> Quantity {
        storage(&self.spec.resources.requests)
    }

    pub(super) fn mode(&self) -> &str {
        mode(self.spec.volume_mode.as_ref())
    }

    pub(super) fn attributes(&self) -> &str {
        self.spec.volume_attributes_class_name.as_deref().unwrap_or_default()
    }
}

impl Volume {
    pub(super) fn class(&self) -> &str {
        self.metadata.annotations.get(CLASS).unwrap_or(&self.spec.storage_class_name)
    }

    pub(super) fn has(&self, annotation: &str) -> bool {
        self.metadata.annotations.contains_key(annotation)
    }

    pub(super) fn size(&self) -> Quantity {
        storage(&self.spec.capacity)
    }

    pub(super) fn mode(&self) -> &str {
        mode(self.spec.volume_mode.as_ref())
    }

    pub(super) fn attributes(&self) -> &str {
        self.spec.volume_attributes_class_name.as_deref().unwrap_or_default()
    }

    /// Whether it is bound to, or kept for, a claim. Source: `IsVolumeBoundToClaim`.
    pub(super) fn is_for(&self, claim: &Claim) -> bool {
        self.spec.claim_ref.as_ref().is_some_and(|held| {
            held.name == claim.metadata.name
                && held.namespace == claim.metadata.namespace
                && (held.uid.is_empty() || held.uid == claim.metadata.uid)
        })
    }

    pub(super) fn allows(&self, modes: &[String]) -> bool {
        modes.iter().all(|mode| self.spec.access_modes.contains(mode))
    }
}
