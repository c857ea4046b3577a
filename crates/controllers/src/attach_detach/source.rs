//! Which driver a volume is of and how that calls it, and the names that follow from it. Pure.
//! Source: `pkg/volume/csi/csi_attacher.go`, `csi-translation-lib/plugins`.
//!
//! The plugins that Kubernetes had of its own are gone, and what names one of them is its driver's on every node, as
//! `csimigration.PluginManager.IsMigrationCompleteForPlugin` says.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::types::{InTree, InTreeSources, Volume};

/// What volumes of drivers are called in a node's status begins so.
const UNIQUE: &str = "kubernetes.io/csi/";
/// What was once known of a zone. Source: `v1.LabelFailureDomainBetaZone`, `v1.LabelTopologyZone`.
const ZONES: [&str; 2] = ["failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"];
/// Between zones of a label. Source: `labelMultiZoneDelimiter`.
const ZONE_DELIMITER: &str = "__";
const RESOURCE_GROUP: &str = "kubernetes.io/azure-file-resource-group";
const READ_WRITE_MANY: &str = "ReadWriteMany";
const READ_WRITE_ONCE: &str = "ReadWriteOnce";
const READ_ONLY_MANY: &str = "ReadOnlyMany";

/// A volume as its driver knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Handle {
    pub(super) driver: String,
    pub(super) handle: String,
}

impl Handle {
    fn new(driver: &str, handle: impl Into<String>) -> Self {
        Self { driver: driver.to_owned(), handle: handle.into() }
    }

    /// Its name in `status.volumesAttached` and `volumesInUse` of nodes. Source: `util.GetUniqueVolumeName`.
    pub(super) fn unique_name(&self) -> String {
        format!("{UNIQUE}{}^{}", self.driver, self.handle)
    }

    /// What its plugin is called where volumes are counted. Source: `GetFullQualifiedPluginNameForVolume`.
    pub(super) fn plugin(&self) -> String {
        format!("kubernetes.io/csi:{}", self.driver)
    }

    /// The other way round; nothing for volumes of no driver.
    pub(super) fn of_unique_name(name: &str) -> Option<Self> {
        let (driver, handle) = name.strip_prefix(UNIQUE)?.split_once('^')?;
        Some(Self::new(driver, handle))
    }

    /// The name of the object that attaches it to a node. Source: `getAttachmentName`.
    pub(super) fn attachment_on(&self, node: &str) -> String {
        let mut hash = Sha256::new();
        [&self.handle, &self.driver, node].iter().for_each(|part| hash.update(part));
        format!("csi-{:x}", hash.finalize())
    }
}

/// Whether an attachment is named as [`Handle::attachment_on`] names them.
pub(super) fn is_own_name(attachment: &str) -> bool {
    attachment
        .strip_prefix("csi-")
        .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A volume that a pod names without a claim, as a driver sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inline {
    pub(super) handle: Handle,
    /// The name of a volume that would be the same.
    pub(super) name: String,
    /// That volume's spec.
    pub(super) spec: Value,
    pub(super) modes: Vec<String>,
}

/// A volume's driver and handle; nothing for one of no driver.
pub(super) fn handle_of(volume: &Volume) -> Option<Handle> {
    if let Some(csi) = &volume.spec.csi {
        return Some(Handle::new(&csi.driver, csi.volume_handle.as_str()));
    }
    let held = &volume.spec.in_tree;
    if let Some(file) = &held.azure_file {
        return azure_file_volume(file, volume);
    }
    if let Some(disk) = &held.gce_persistent_disk {
        return Some(Handle::new(GCE, gce_handle(disk, volume)?));
    }
    Some(simple(held)?.0)
}

/// With which modes a volume may be used: one driver refuses some that its plugin took for others.
/// Source: `backwardCompatibleAccessModes`.
pub(super) fn modes_of(volume: &Volume) -> Vec<String> {
    let modes = &volume.spec.access_modes;
    if volume.spec.in_tree.gce_persistent_disk.is_none() || modes.is_empty() {
        return modes.clone();
    }
    let given: BTreeSet<&str> = modes.iter().map(String::as_str).collect();
    let mode =
        if given.len() == 1 && given.contains(READ_ONLY_MANY) { READ_ONLY_MANY } else { READ_WRITE_ONCE };
    vec![mode.to_owned()]
}

/// Whether a volume may be attached to several nodes at once. Source: `util.IsMultiAttachAllowed`.
pub(super) fn is_shared(modes: &[String]) -> bool {
    modes.is_empty() || modes.iter().any(|mode| mode == READ_WRITE_MANY || mode == READ_ONLY_MANY)
}

/// What a volume of a pod, which is called `name` there, is to its driver.
pub(super) fn inline(sources: &InTreeSources, name: &str, namespace: &str) -> Option<Inline> {
    if let Some(file) = &sources.azure_file {
        return Some(azure_file_inline(file, name, namespace));
    }
    if let Some(disk) = &sources.gce_persistent_disk {
        let handle = Handle::new(GCE, format!("projects/{ANY}/zones/{ANY}/disks/{}", disk.pd_name));
        let partition = if disk.partition == 0 { String::new() } else { disk.partition.to_string() };
        let mode = if disk.read_only { READ_ONLY_MANY } else { READ_WRITE_ONCE };
        let mut made = inlined(handle, &disk.pd_name, disk, json!({ "partition": partition }), mode);
        made.spec["volumeMode"] = "Filesystem".into();
        return Some(made);
    }
    let (handle, source) = simple(sources)?;
    let (name, attributes) = match handle.driver.as_str() {
        AWS => (handle.handle.clone(), json!({ "partition": source.partition.to_string() })),
        AZURE_DISK => {
            let mut attributes = json!({ "kind": "Managed" });
            for (name, value) in [("cachingMode", &source.caching_mode), ("kind", &source.kind)] {
                if !value.is_empty() {
                    attributes[name] = value.as_str().into();
                }
            }
            (source.disk_name.clone(), attributes)
        }
        VSPHERE if !source.storage_policy_name.is_empty() => {
            (handle.handle.clone(), json!({ "storagepolicyname": source.storage_policy_name }))
        }
        _ => (handle.handle.clone(), Value::Null),
    };
    Some(inlined(handle, &name, source, attributes, READ_WRITE_ONCE))
}

const AWS: &str = "ebs.csi.aws.com";
const GCE: &str = "pd.csi.storage.gke.io";
const AZURE_DISK: &str = "disk.csi.azure.com";
const AZURE_FILE: &str = "file.csi.azure.com";
const VSPHERE: &str = "csi.vsphere.vmware.com";
const PORTWORX: &str = "pxd.portworx.com";
const CINDER: &str = "cinder.csi.openstack.org";
/// What the driver finds out for itself. Source: `UnspecifiedValue`.
const ANY: &str = "UNSPECIFIED";

/// Those whose handle stands in their source.
fn simple(sources: &InTreeSources) -> Option<(Handle, &InTree)> {
    if let Some(source) = &sources.aws_elastic_block_store {
        return Some((Handle::new(AWS, aws_id(&source.volume_id)?), source));
    }
    let named = [
        (AZURE_DISK, sources.azure_disk.as_ref(), (|held| &held.disk_uri) as fn(&InTree) -> &String),
        (VSPHERE, sources.vsphere_volume.as_ref(), |held| &held.volume_path),
        (PORTWORX, sources.portworx_volume.as_ref(), |held| &held.volume_id),
        (CINDER, sources.cinder.as_ref(), |held| &held.volume_id),
    ];
    named.into_iter().find_map(|(driver, source, id)| {
        source.map(|source| (Handle::new(driver, id(source).as_str()), source))
    })
}

/// An id, or `aws://zone/id`. Source: `KubernetesVolumeIDToEBSVolumeID`.
fn aws_id(id: &str) -> Option<&str> {
    let Some(rest) = id.strip_prefix("aws://") else { return Some(id) };
    let id = rest.split_once('/')?.1.trim_matches('/');
    (id.starts_with("vol-") && !id.contains('/')).then_some(id)
}

/// Nothing if its zones are of no one region.
fn gce_handle(disk: &InTree, volume: &Volume) -> Option<String> {
    let labels = &volume.metadata.labels;
    let named = ZONES.iter().filter_map(|label| labels.get(*label)).find(|zones| !zones.is_empty());
    let zones: Vec<&str> = named.map(|zones| zones.split(ZONE_DELIMITER).collect()).unwrap_or_default();
    let name = &disk.pd_name;
    Some(match zones[..] {
        [] => format!("projects/{ANY}/zones/{ANY}/disks/{name}"),
        [zone] => format!("projects/{ANY}/zones/{zone}/disks/{name}"),
        _ => format!("projects/{ANY}/regions/{}/disks/{name}", region(&zones)?),
    })
}

/// Source: `getRegionFromZones`.
fn region<'a>(zones: &[&'a str]) -> Option<&'a str> {
    let regions: Option<BTreeSet<&str>> = zones
        .iter()
        .map(|zone| {
            zone.rsplit_once('-').map(|(region, _)| region).filter(|held| held.matches('-').count() == 1)
        })
        .collect();
    let mut regions = regions?.into_iter();
    let first = regions.next()?;
    regions.next().is_none().then_some(first)
}

/// What stands between the words of a secret's name, or the name. Source: `getStorageAccountName`.
fn azure_account(secret: &str) -> &str {
    let between = || {
        let (_, rest) = secret.split_once("azure-storage-account-")?;
        rest.rsplit_once("-secret").map(|(account, _)| account).filter(|account| !account.is_empty())
    };
    between().unwrap_or(secret)
}

/// Nothing if nobody says where its secret is.
fn azure_file_volume(file: &InTree, volume: &Volume) -> Option<Handle> {
    let claimed = || volume.spec.claim_ref.as_ref().map(|held| held.namespace.as_str());
    let namespace =
        file.secret_namespace.as_deref().or_else(claimed).filter(|namespace| !namespace.is_empty())?;
    let group = volume.metadata.annotations.get(RESOURCE_GROUP).map_or("", String::as_str);
    Some(azure_file(file, group, &volume.metadata.name, namespace))
}

fn azure_file(file: &InTree, group: &str, name: &str, namespace: &str) -> Handle {
    let account = azure_account(&file.secret_name);
    Handle::new(AZURE_FILE, format!("{group}#{account}#{}#{name}#{namespace}", file.share_name))
}

fn azure_file_inline(file: &InTree, name: &str, namespace: &str) -> Inline {
    let handle = azure_file(file, "", name, namespace);
    let attributes = json!({ "sharename": file.share_name });
    let mut made = inlined(handle, "", file, attributes, READ_WRITE_MANY);
    made.name.clone_from(&made.handle.handle);
    made.spec["csi"]["nodeStageSecretRef"] = json!({ "name": file.secret_name, "namespace": namespace });
    made
}

fn inlined(handle: Handle, name: &str, source: &InTree, attributes: Value, mode: &str) -> Inline {
    let mut csi = json!({ "driver": handle.driver, "volumeHandle": handle.handle });
    if source.read_only {
        csi["readOnly"] = true.into();
    }
    if !source.fs_type.is_empty() {
        csi["fsType"] = source.fs_type.as_str().into();
    }
    if attributes.is_object() {
        csi["volumeAttributes"] = attributes;
    }
    Inline {
        name: format!("{}-{name}", handle.driver),
        spec: json!({ "accessModes": [mode], "csi": csi }),
        modes: vec![mode.to_owned()],
        handle,
    }
}
