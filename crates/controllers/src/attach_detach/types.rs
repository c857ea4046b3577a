//! What is used of pods, claims, volumes, drivers, nodes and attachments.

use api::ObjectMeta;
use reconcile::taints::Taint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pods::{Condition, PodState};

/// The node leaves attaching to this controller. Source: `volumeutil.ControllerManagedAttachAnnotation`.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// The node keeps volumes of pods that have ended. Source: `volumeutil.KeepTerminatedPodVolumesAnnotation`.
const KEEPS: &str = "volumes.kubernetes.io/keep-terminated-pod-volumes";
/// Source: `v1.TaintNodeOutOfService`.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A projection of `core/v1.Pod`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: PodSpec,
    pub(super) status: PodState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) node_name: String,
    pub(super) volumes: Vec<PodVolume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodVolume {
    pub(super) name: String,
    pub(super) persistent_volume_claim: Option<ClaimSource>,
    /// Present for a volume that has a claim of its own.
    pub(super) ephemeral: Option<Value>,
    #[serde(flatten)]
    pub(super) in_tree: InTreeSources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimSource {
    pub(super) claim_name: String,
}

impl Pod {
    /// Whether none of its containers runs or will run.
    pub(super) fn is_terminated(&self) -> bool {
        self.status.is_terminated(self.metadata.is_terminating())
    }
}

/// The sources of volumes that drivers took over from Kubernetes' own plugins, as pods and volumes name them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct InTreeSources {
    pub(super) aws_elastic_block_store: Option<InTree>,
    pub(super) gce_persistent_disk: Option<InTree>,
    pub(super) azure_disk: Option<InTree>,
    pub(super) azure_file: Option<InTree>,
    pub(super) vsphere_volume: Option<InTree>,
    pub(super) portworx_volume: Option<InTree>,
    pub(super) cinder: Option<InTree>,
}

/// One of them: every field that any of them has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct InTree {
    #[serde(rename = "volumeID")]
    pub(super) volume_id: String,
    pub(super) pd_name: String,
    #[serde(rename = "diskURI")]
    pub(super) disk_uri: String,
    pub(super) disk_name: String,
    pub(super) caching_mode: String,
    pub(super) kind: String,
    pub(super) secret_name: String,
    pub(super) secret_namespace: Option<String>,
    pub(super) share_name: String,
    pub(super) volume_path: String,
    pub(super) storage_policy_name: String,
    pub(super) fs_type: String,
    pub(super) partition: i64,
    pub(super) read_only: bool,
}

/// A projection of `core/v1.PersistentVolumeClaim`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Claim {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: ClaimSpec,
    pub(super) status: ClaimStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimSpec {
    pub(super) volume_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClaimStatus {
    pub(super) phase: String,
}

/// A projection of `core/v1.PersistentVolume`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: VolumeSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeSpec {
    pub(super) access_modes: Vec<String>,
    pub(super) claim_ref: Option<ClaimRef>,
    pub(super) csi: Option<Csi>,
    #[serde(flatten)]
    pub(super) in_tree: InTreeSources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClaimRef {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Csi {
    pub(super) driver: String,
    pub(super) volume_handle: String,
}

/// A projection of `storage/v1.CSIDriver`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Driver {
    pub(super) spec: DriverSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DriverSpec {
    pub(super) attach_required: Option<bool>,
}

/// A projection of `storage/v1.VolumeAttachment`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attachment {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: AttachmentSpec,
    pub(super) status: AttachmentStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AttachmentSpec {
    pub(super) attacher: String,
    pub(super) node_name: String,
    pub(super) source: AttachmentSource,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AttachmentSource {
    pub(super) persistent_volume_name: Option<String>,
    pub(super) inline_volume_spec: Option<VolumeSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AttachmentStatus {
    pub(super) attached: bool,
    pub(super) attach_error: Option<Failure>,
}

/// `storage/v1.VolumeError`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    pub(super) time: String,
    pub(super) message: String,
}

/// A projection of `core/v1.Node`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: NodeSpec,
    pub(super) status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeSpec {
    pub(super) taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeStatus {
    pub(super) conditions: Vec<Condition>,
    pub(super) volumes_attached: Vec<AttachedVolume>,
    pub(super) volumes_in_use: Vec<String>,
}

/// `core/v1.AttachedVolume`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AttachedVolume {
    pub(super) name: String,
    /// Always empty for drivers: the name of the attachment tells where the device is.
    pub(super) device_path: String,
}

impl Node {
    pub(super) fn is_managed(&self) -> bool {
        self.metadata.annotations.contains_key(MANAGED)
    }

    pub(super) fn traits(&self) -> Traits {
        let keeps = self.metadata.annotations.get(KEEPS).is_some_and(|value| value == "true");
        Traits { managed: self.is_managed(), keeps }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.status.conditions.iter().any(|held| held.r#type == "Ready" && held.status == "True")
    }

    pub(super) fn is_out_of_service(&self) -> bool {
        self.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
    }
}

/// What a node says of itself once and for all, or nearly so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// It leaves attaching to this controller.
    pub(super) managed: bool,
    /// It keeps volumes of pods that have ended.
    pub(super) keeps: bool,
}
