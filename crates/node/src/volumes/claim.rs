//! Volumes that a pod has through a claim: whether the claim and its volume are fit to be used, and where the volume lies.
//! Their data belong to users and outlive the pod: they are bound into containers from where they lie, and what has to be
//! mounted first is unmounted before anything of the pod is deleted. Source: `volumemanager/populator`, `pkg/volume/{local,host_path}`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use api::ObjectMeta;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use reconcile::node_affinity::NodeSelector;
use serde::Deserialize;
use serde_json::{Map, Value};
use sys::mount_options::Options;

use super::csi::{CsiSource, DriverView, Growth, Mounting};
use super::kind::ClaimOf;
use super::ledger::Entry;
use super::{PodDirectories, VolumeError, device, host_path, nfs, ownership};
use crate::pod::{PodView, quantity};

/// A projection of `core/v1.PersistentVolumeClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimView {
    metadata: ObjectMeta,
    spec: ClaimSpec,
    status: ClaimStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    volume_name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClaimStatus {
    phase: String,
    capacity: BTreeMap<String, Quantity>,
}

/// A projection of `core/v1.PersistentVolume`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct VolumeView {
    metadata: ObjectMeta,
    spec: VolumeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    claim_ref: Option<ClaimRef>,
    volume_mode: Option<String>,
    node_affinity: Affinity,
    host_path: Option<HostPath>,
    local: Option<Local>,
    nfs: Option<Nfs>,
    csi: Option<CsiSource>,
    access_modes: Vec<String>,
    mount_options: Vec<String>,
    capacity: BTreeMap<String, Quantity>,
    /// Everything else, the other sources among it.
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClaimRef {
    uid: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Affinity {
    required: Option<NodeSelector>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct HostPath {
    path: String,
    r#type: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Local {
    path: String,
    fs_type: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Nfs {
    server: String,
    path: String,
    read_only: bool,
}

impl VolumeView {
    /// The driver that mounts it, if one does.
    pub(crate) fn driver(&self) -> Option<&str> {
        self.spec.csi.as_ref().map(|source| source.driver.as_str())
    }
}

impl ClaimView {
    /// The volume that it is bound to; empty while it is not.
    pub(crate) fn volume_name(&self) -> &str {
        &self.spec.volume_name
    }
}

#[cfg(test)]
impl VolumeView {
    pub(super) fn of_mode(mut self, mode: &str) -> Self {
        self.spec.volume_mode = Some(mode.to_owned());
        self
    }
}

/// Claims of a pod, and their volumes, by their names: those that are there.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) claims: HashMap<String, ClaimView>,
    pub(crate) volumes: HashMap<String, VolumeView>,
    /// What the cluster knows of the drivers of the pod's volumes.
    pub(crate) drivers: HashMap<String, DriverView>,
}

impl Claims {
    /// Whether a driver wants a volume published again and again.
    pub(crate) fn republishes(&self) -> bool {
        self.drivers.values().any(DriverView::republishes)
    }
}

/// The node as volumes ask for it.
#[derive(Debug, Default)]
pub(crate) struct NodeLabels {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// How a volume is made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    HostPath {
        kind: String,
    },
    /// A directory, or a device with a file system.
    Local(device::Asked),
    Nfs(nfs::Export),
    /// A device, used as one.
    Device,
    /// A driver mounts it, where the node says.
    Csi(Box<Mounting>),
}

/// A volume that the pod may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usable {
    pub(crate) entry: Entry,
    pub(crate) source: Source,
}

/// Drivers that stand in for plugins of old. Source: `csi-translation-lib`.
const MIGRATED: [(&str, &str); 7] = [
    ("awsElasticBlockStore", "ebs.csi.aws.com"),
    ("azureDisk", "disk.csi.azure.com"),
    ("azureFile", "file.csi.azure.com"),
    ("cinder", "cinder.csi.openstack.org"),
    ("gcePersistentDisk", "pd.csi.storage.gke.io"),
    ("portworxVolume", "pxd.portworx.com"),
    ("vsphereVolume", "csi.vsphere.vmware.com"),
];

/// The volume `name` of a pod, if it may be used. `known`: it was in use before, according to the ledger: then what only
/// forbids a beginning does not count. `directories`: where it is mounted, if it has to be. Pure.
pub(crate) fn usable(
    pod: &PodView,
    name: &str,
    of: &ClaimOf,
    around: &Claims,
    (node, directories): (&NodeLabels, &PodDirectories),
    known: Option<&Entry>,
) -> Result<Usable, VolumeError> {
    let refused = |cause: String| {
        let cause = format!("error processing PVC {}/{}: {cause}", pod.metadata.namespace, of.name);
        VolumeError::Unprocessed { volume: name.to_owned(), cause }
    };
    let claim = around.claims.get(&of.name).ok_or_else(|| {
        refused(format!(
            "failed to fetch PVC from API server: persistentvolumeclaim \"{}\" not found",
            of.name
        ))
    })?;
    check_claim(pod, claim, of, known).map_err(refused)?;
    let volume = around.volumes.get(&claim.spec.volume_name);
    let volume = check_volume(claim, volume).map_err(refused)?;
    let device = check_mode(pod, name, volume)
        .map_err(|cause| VolumeError::Unprocessed { volume: name.to_owned(), cause })?;
    let begun = known.is_some_and(|known| known.claim_uid == claim.metadata.uid);
    let here = |wanted: &NodeSelector| wanted.matches(&node.name, &node.labels);
    if !begun && volume.spec.node_affinity.required.as_ref().is_some_and(|wanted| !here(wanted)) {
        return Err(VolumeError::Elsewhere(volume.metadata.name.clone()));
    }
    let failed = |cause: String| failed(&volume.metadata.name, device, cause);
    if let Some(source) = &volume.spec.csi {
        let spec = &volume.spec;
        let object = around.drivers.get(&source.driver);
        let mounting = Mounting::persistent(source.clone(), &spec.access_modes, &spec.mount_options, object);
        let mut mounting = mounting.map_err(failed)?;
        mounting.only_read(of.read_only);
        mounting.is_device(device);
        mounting.grows(growth(claim, volume));
        let mut entry = mounting.entry(directories, name, &volume.metadata.name);
        entry.claim_uid.clone_from(&claim.metadata.uid);
        return Ok(Usable { entry, source: Source::Csi(Box::new(mounting)) });
    }
    let (path, source) = source_of(&volume.spec, device, &directories.mounted(name)).map_err(failed)?;
    let entry = Entry {
        name: name.to_owned(),
        volume: volume.metadata.name.clone(),
        claim_uid: claim.metadata.uid.clone(),
        path,
        read_only: of.read_only,
        device,
        csi: None,
    };
    Ok(Usable { entry, source })
}

/// A volume that cannot be made ready, for use as a device or otherwise.
pub(crate) fn failed(volume: &str, device: bool, cause: String) -> VolumeError {
    let volume = volume.to_owned();
    if device { VolumeError::Map { volume, cause } } else { VolumeError::SetUp { volume, cause } }
}

/// A volume that has become larger than its claim says: its file system has not. Source: `nodeExpandVolume`.
fn growth(claim: &ClaimView, volume: &VolumeView) -> Option<Growth> {
    let has = claim.status.capacity.get("storage")?;
    let gets = volume.spec.capacity.get("storage")?;
    let bytes = quantity::value(gets);
    (bytes > quantity::value(has)).then(|| Growth {
        claim: claim.metadata.name.clone(),
        size: gets.0.clone(),
        bytes,
    })
}

/// Source: `getPVCExtractPV`, `ephemeral.VolumeIsForPod`.
fn check_claim(pod: &PodView, claim: &ClaimView, of: &ClaimOf, known: Option<&Entry>) -> Result<(), String> {
    let meta = &claim.metadata;
    let owned =
        || meta.owner_references.iter().any(|owner| owner.uid == pod.uid() && owner.controller == Some(true));
    if of.ephemeral && !owned() {
        return Err(format!(
            "PVC {}/{} was not created for pod {} (pod is not owner): delete that claim, or rename the pod",
            meta.namespace,
            meta.name,
            pod.key()
        ));
    }
    if meta.is_terminating() && known.is_none_or(|known| known.claim_uid != meta.uid) {
        return Err("PVC is being deleted".to_owned());
    }
    if claim.status.phase != "Bound" {
        return Err("PVC is not bound".to_owned());
    }
    if claim.spec.volume_name.is_empty() {
        return Err("PVC has empty pvc.Spec.VolumeName".to_owned());
    }
    Ok(())
}

/// Source: `getPVSpec`.
fn check_volume<'a>(claim: &ClaimView, volume: Option<&'a VolumeView>) -> Result<&'a VolumeView, String> {
    let name = &claim.spec.volume_name;
    let Some(volume) = volume else {
        return Err(format!(
            "failed to fetch PV {name} from API server: persistentvolume \"{name}\" not found"
        ));
    };
    let uid = &claim.metadata.uid;
    match &volume.spec.claim_ref {
        None => Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        )),
        Some(held) if held.uid != *uid => Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {uid}",
            held.uid
        )),
        Some(_) => Ok(volume),
    }
}

/// Whether containers use the volume as a device. Source: `createVolumeSpec`.
fn check_mode(pod: &PodView, name: &str, volume: &VolumeView) -> Result<bool, String> {
    let mode = volume.spec.volume_mode.as_deref().unwrap_or("Filesystem");
    let mut containers = pod.containers().map(|(_, container)| container);
    if mode == "Filesystem" {
        let as_device = containers
            .any(|container| container.volume_devices.iter().flatten().any(|device| device.name == name));
        return match as_device {
            true => Err(format!("volume {name} has volumeMode {mode}, but is specified in volumeDevices")),
            false => Ok(false),
        };
    }
    if containers.any(|container| container.volume_mounts.iter().flatten().any(|mount| mount.name == name)) {
        return Err(format!("volume {name} has volumeMode {mode}, but is specified in volumeMounts"));
    }
    Ok(true)
}

/// Where the volume lies, and how it is made ready. `mounted`: where it is mounted, if it has to be.
fn source_of(spec: &VolumeSpec, device: bool, mounted: &Path) -> Result<(PathBuf, Source), String> {
    let (path, source) = match (&spec.local, &spec.host_path, &spec.nfs) {
        (Some(Local { path, .. }), ..) | (None, Some(HostPath { path, .. }), _) if device => {
            (path, Source::Device)
        }
        (Some(local), ..) => {
            let options = Options::parse(&spec.mount_options)?;
            (&local.path, Source::Local(device::Asked { fs_type: local.fs_type.clone(), options }))
        }
        (None, Some(host), _) => {
            (&host.path, Source::HostPath { kind: host.r#type.clone().unwrap_or_default() })
        }
        (None, None, Some(_)) if device => {
            return Err(
                "a volume of type nfs is no device: use a claim with volumeMode Filesystem".to_owned()
            );
        }
        (None, None, Some(Nfs { server, path, read_only })) => {
            let export = nfs::Export::of(server, path, *read_only, &spec.mount_options)?;
            return Ok((mounted.to_owned(), Source::Nfs(export)));
        }
        (None, None, None) => return Err(missing(&spec.others)),
    };
    let path = PathBuf::from(path);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("path \"{}\" must be absolute and must not contain '..'", path.display()));
    }
    Ok((path, source))
}

/// What is missing for a volume of another source.
fn missing(others: &Map<String, Value>) -> String {
    let migrated = MIGRATED.iter().find(|(source, _)| others.contains_key(*source));
    if let Some((source, driver)) = migrated {
        return format!(
            "driver name {driver} not found in the list of registered CSI drivers: this node serves no volumes of type {source}, use one of type csi with that driver"
        );
    }
    const KNOWN: [&str; 8] =
        ["iscsi", "fc", "cephfs", "rbd", "glusterfs", "flexVolume", "storageos", "scaleIO"];
    let source = KNOWN.iter().find(|source| others.contains_key(**source)).unwrap_or(&"an unknown type");
    format!("no volume plugin matched: this node has none for {source}, use a local or hostPath volume")
}

/// Makes the volume ready where it lies. Blocks, for ever where its file system does not answer.
///
/// Of a volume whose directory is in `own` the node is the maker. `mounted`: where a device with a file system is mounted.
pub(crate) fn prepare(
    usable: &Usable,
    own: &Path,
    mounted: &Path,
    group: Option<ownership::Group>,
) -> Result<(), String> {
    let path = &usable.entry.path;
    if matches!(usable.source, Source::Local(_)) && path.parent() == Some(own) {
        // Whoever the pod runs as may write: what keeps others out is the directory above.
        super::empty_dir::make_directory(path, 0o777)
            .map_err(|error| format!("path \"{}\": {error}", path.display()))?;
    }
    match &usable.source {
        Source::HostPath { kind } => host_path::prepare(path, kind),
        Source::Local(asked) => {
            prepare_local(path, (asked, mounted), group.filter(|_| !usable.entry.read_only))
        }
        Source::Nfs(export) => nfs::prepare(export, path),
        Source::Device => device::check(path),
        Source::Csi(_) => Err("the volume is its driver's to mount".to_owned()),
    }
}

/// Source: `pkg/volume/local/local.go`.
fn prepare_local<'p>(
    mut path: &'p Path,
    (asked, mounted): (&device::Asked, &'p Path),
    group: Option<ownership::Group>,
) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("path \"{}\" does not exist", path.display()),
        _ => format!("path \"{}\": {error}", path.display()),
    })?;
    if metadata.file_type().is_block_device() {
        device::prepare(path, mounted, asked)?;
        path = mounted;
    } else if !metadata.is_dir() {
        return Err(format!("path \"{}\" must be a directory", path.display()));
    }
    match group {
        Some(group) => ownership::hand_over(path, group)
            .map_err(|error| format!("applyFSGroup failed for path {}: {error}", path.display())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    fn around(claim: Value, volume: Value) -> Claims {
        let claim: ClaimView = serde_json::from_value(claim).unwrap();
        let volume: VolumeView = serde_json::from_value(volume).unwrap();
        Claims {
            claims: [("c".to_owned(), claim)].into(),
            volumes: [("pv".to_owned(), volume)].into(),
            ..Claims::default()
        }
    }

    fn bound() -> Value {
        json!({ "metadata": { "name": "c", "namespace": "default", "uid": "cu" },
            "spec": { "volumeName": "pv" }, "status": { "phase": "Bound" } })
    }

    fn local() -> Value {
        json!({ "metadata": { "name": "pv" }, "spec": { "local": { "path": "/data" },
            "claimRef": { "namespace": "default", "name": "c", "uid": "cu" },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"] }] }] } } } })
    }

    fn with(mut value: Value, path: &str, to: Value) -> Value {
        *value.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = to;
        value
    }

    fn nowhere() -> PodDirectories {
        PodDirectories::new(Path::new("/d"), Path::new("/r"), "u1")
    }

    fn plain() -> device::Asked {
        device::Asked { fs_type: None, options: Options::default() }
    }

    fn ask(claims: &Claims, node: &str, known: Option<&Entry>) -> Result<Usable, String> {
        let pod = pod(
            json!({"containers": [{"name": "main", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}),
        );
        let of = ClaimOf { name: "c".into(), read_only: true, ephemeral: false };
        let labels = [("kubernetes.io/hostname".to_owned(), node.to_owned())].into();
        let node = NodeLabels { name: node.into(), labels };
        usable(&pod, "data", &of, claims, (&node, &nowhere()), known).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bound_claim_leads_to_its_volume() {
        let found = ask(&around(bound(), local()), "n1", None).unwrap();
        let entry = Entry {
            name: "data".into(),
            volume: "pv".into(),
            claim_uid: "cu".into(),
            path: "/data".into(),
            read_only: true,
            device: false,
            csi: None,
        };
        assert_eq!(found, Usable { entry: entry.clone(), source: Source::Local(plain()) });
        let elsewhere = ask(&around(bound(), local()), "n2", None).unwrap_err();
        assert_eq!(
            elsewhere,
            "MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms"
        );
        assert!(ask(&around(bound(), local()), "n2", Some(&entry)).is_ok(), "it has begun");
    }

    #[test]
    fn what_is_not_fit_waits_with_upstreams_words() {
        let head = "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: ";
        let says = |claims: &Claims, wanted: &str| {
            let error = ask(claims, "n1", None).unwrap_err();
            let cause = error.strip_prefix(head).unwrap_or_else(|| panic!("{error}"));
            assert_eq!(cause, wanted);
        };
        let of_claim = "error processing PVC default/c: ";
        says(
            &Claims::default(),
            &format!("{of_claim}failed to fetch PVC from API server: persistentvolumeclaim \"c\" not found"),
        );
        let pending = with(bound(), "/status/phase", "Pending".into());
        says(&around(pending, local()), &format!("{of_claim}PVC is not bound"));
        let mut going = bound();
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        says(&around(going.clone(), local()), &format!("{of_claim}PVC is being deleted"));
        let known = ask(&around(bound(), local()), "n1", None).unwrap().entry;
        assert!(ask(&around(going, local()), "n1", Some(&known)).is_ok(), "the pod has it already");
        let others = with(local(), "/spec/claimRef/uid", "xx".into());
        says(
            &around(bound(), others),
            &format!(
                "{of_claim}found PV object pv but its pv.Spec.ClaimRef.UID xx does not point to claim.UID cu"
            ),
        );
        let mut block = local();
        block["spec"]["volumeMode"] = "Block".into();
        says(&around(bound(), block), "volume data has volumeMode Block, but is specified in volumeMounts");
    }

    #[test]
    fn a_claim_of_a_name_only_is_no_pods_own() {
        let pod = pod(json!({"containers": []}));
        let of = ClaimOf { name: "c".into(), read_only: false, ephemeral: true };
        let node = NodeLabels::default();
        let ask = |claims: &Claims| usable(&pod, "data", &of, claims, (&node, &nowhere()), None);
        let mut volume = local();
        volume["spec"]["nodeAffinity"] = json!({});
        let error = ask(&around(bound(), volume.clone())).unwrap_err().to_string();
        assert!(error.contains("PVC default/c was not created for pod"), "{error}");
        let mut own = bound();
        own["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "web",
            "uid": pod.uid(), "controller": true }]);
        assert!(ask(&around(own, volume)).is_ok());
    }

    #[test]
    fn other_sources_name_what_is_missing() {
        let of = |source: &str, value: Value| {
            let mut volume = local();
            volume["spec"].as_object_mut().unwrap().remove("local");
            volume["spec"][source] = value;
            ask(&around(bound(), volume), "n1", None).unwrap_err()
        };
        let error = of("gcePersistentDisk", json!({ "pdName": "x" }));
        let wanted = "MountVolume.SetUp failed for volume \"pv\" : driver name pd.csi.storage.gke.io not found in the list of registered CSI drivers";
        assert!(error.starts_with(wanted), "{error}");
        assert!(of("glusterfs", json!({ "path": "/" })).contains("none for glusterfs"));
        assert!(of("nfs", json!({ "server": "s", "path": "x" })).contains("nfs.path \"x\" must be absolute"));
        assert!(of("local", json!({ "path": "/a/../b" })).contains("must not contain"));
    }

    #[test]
    fn a_local_directory_has_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let prepare = |path: &Path| prepare_local(path, (&plain(), Path::new("/nowhere")), None);
        assert!(prepare(&missing).unwrap_err().ends_with("does not exist"));
        assert!(!missing.exists(), "nothing is made where a disk is not mounted");
        prepare(dir.path()).unwrap();
        assert!(prepare(Path::new("/dev/null")).unwrap_err().ends_with("must be a directory"));
    }

    #[test]
    fn a_directory_of_a_server_is_mounted_in_a_place_of_the_pods() {
        let mut volume = local();
        volume["spec"].as_object_mut().unwrap().remove("local");
        volume["spec"]["nfs"] = json!({ "server": "s", "path": "/x", "readOnly": true });
        volume["spec"]["mountOptions"] = json!(["hard"]);
        let found = ask(&around(bound(), volume.clone()), "n1", None).unwrap();
        let export = nfs::Export::of("s", "/x", true, &["hard"]).unwrap();
        assert_eq!((found.entry.path, found.source), (nowhere().mounted("data"), Source::Nfs(export)));
        volume["spec"]["mountOptions"] = json!(["remount"]);
        assert!(ask(&around(bound(), volume), "n1", None).unwrap_err().contains("mount option \"remount\""));
    }

    #[test]
    fn a_volume_of_blocks_is_a_device_for_those_who_ask_for_one() {
        let pod = pod(
            json!({"containers": [{"name": "main", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]}),
        );
        let of = ClaimOf { name: "c".into(), read_only: false, ephemeral: false };
        let node = NodeLabels {
            name: "n1".into(),
            labels: [("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into(),
        };
        let ask =
            |volume: Value| usable(&pod, "data", &of, &around(bound(), volume), (&node, &nowhere()), None);
        let mut volume = with(local(), "/spec/local/path", "/dev/sdx".into());
        let error = ask(volume.clone()).unwrap_err();
        assert!(
            error.to_string().contains("has volumeMode Filesystem, but is specified in volumeDevices"),
            "{error}"
        );
        volume["spec"]["volumeMode"] = "Block".into();
        let found = ask(volume.clone()).unwrap();
        assert_eq!((found.entry.device, found.entry.path.as_path()), (true, Path::new("/dev/sdx")));
        assert_eq!(found.source, Source::Device);
        volume["spec"].as_object_mut().unwrap().remove("local");
        let error = ask(volume).unwrap_err();
        assert_eq!(error.reason(), "FailedMapVolume");
        assert!(
            error.to_string().starts_with("MapVolume.MapPodDevice failed for volume \"pv\" : "),
            "{error}"
        );
    }
}
