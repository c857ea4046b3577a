//! Volumes of drivers (CSI): staged once on the node, published to each pod. What is begun is noted before the driver is
//! asked, in the pod's ledger and beside the staged volume, so that whoever comes after a crash undoes it. Drivers may
//! hang: each volume waits for its own alone. Source: `pkg/volume/csi`, `csi_mounter.go` and `csi_attacher.go`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::CSIVolumeSource;
use parking_lot::Mutex;
use protos::csi::v1::volume_capability::access_mode::Mode;
use protos::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use protos::csi::v1::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    VolumeCapability,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::claim::{self, Usable};
use super::ledger::{Entry, Ledger};
use super::ownership::{self, Group};
use super::set_up::Setup;
use super::staged;
use super::threads::{Threads, Unfinished};
use super::{PodDirectories, VolumeError};
use crate::plugins::driver::{Capabilities, Driver, Texts, text};
use crate::pod::PodView;

/// A volume that does not come in this time is tried again. Source: upstream's `podAttachAndMountTimeout`.
const PATIENCE: Duration = Duration::from_secs(123);
/// The plugin that volumes of drivers have upstream, as a part of paths.
const PLUGIN: &str = "kubernetes.io~csi";
const PERSISTENT: &str = "Persistent";
const EPHEMERAL: &str = "Ephemeral";

/// A Secret that a driver is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct SecretRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// `spec.csi` of a PersistentVolume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CsiSource {
    pub(crate) driver: String,
    pub(crate) volume_handle: String,
    pub(crate) fs_type: String,
    pub(crate) volume_attributes: BTreeMap<String, String>,
    pub(crate) node_stage_secret_ref: Option<SecretRef>,
    pub(crate) node_publish_secret_ref: Option<SecretRef>,
    pub(crate) node_expand_secret_ref: Option<SecretRef>,
}

/// A file system that is smaller than its volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    /// The claim, which has not been told.
    pub(crate) claim: String,
    /// What the volume has, in the API's words and in bytes.
    pub(crate) size: String,
    pub(crate) bytes: i64,
}

/// A projection of `storage.k8s.io/v1.CSIDriver`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct DriverView {
    spec: DriverSpec,
}

impl DriverView {
    /// Whether its volumes are to be published again and again, for what is in them is renewed so.
    pub(crate) fn republishes(&self) -> bool {
        self.spec.requires_republish
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DriverSpec {
    attach_required: Option<bool>,
    pod_info_on_mount: bool,
    fs_group_policy: Option<String>,
    volume_lifecycle_modes: Vec<String>,
    token_requests: Vec<TokenRequest>,
    requires_republish: bool,
    service_account_token_in_secrets: bool,
}

/// A token of the pod's ServiceAccount that a driver wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TokenRequest {
    pub(crate) audience: String,
    pub(crate) expiration_seconds: Option<i64>,
}

/// What a driver is asked for, decided from API objects alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mounting {
    source: CsiSource,
    access_modes: Vec<String>,
    mount_options: Vec<String>,
    read_only: bool,
    object: DriverView,
    /// It lives with its pod and was never made by a controller.
    ephemeral: bool,
    /// Containers use it as a device.
    device: bool,
    growth: Option<Growth>,
}

/// What the ledger knows of a volume of a driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// Where it is staged, if its driver stages volumes; `None`: it lives with its pod.
    pub(crate) staging: Option<PathBuf>,
    /// What the node calls it among those that are attached, if it has to be attached.
    pub(crate) attached_as: Option<String>,
}

/// What is around the mounting of volumes: the node and the API.
#[async_trait]
pub(crate) trait Around: Send + Sync {
    /// A driver that has registered.
    fn driver(&self, name: &str) -> Option<Arc<Driver>>;
    /// A path of the node's as drivers are told it: in their containers the node's directory may have another name.
    fn told(&self, path: &Path) -> PathBuf;
    /// What drivers have done so far.
    fn mounted(&self) -> &Mounted;
    /// A Secret's values.
    async fn secret(&self, secret: &SecretRef) -> Result<Texts, String>;
    /// Tokens for a driver, as JSON by audience.
    async fn tokens(&self, pod: &PodView, requests: &[TokenRequest]) -> Result<String, String>;
    /// Returns when the Node says that it uses an attached volume: from then on nobody detaches it.
    async fn in_use(&self, name: &str) -> Result<(), String>;
    /// The file system of a claim's volume has grown.
    async fn grown(&self, pod: &PodView, growth: &Growth, volume: &str) -> Result<(), String>;
    /// The file system of a volume will not grow for this pod, which is told why.
    fn not_grown(&self, pod: &PodView, message: String);
    /// Nobody on the node uses the volume any more.
    fn not_in_use(&self, name: &str);
    /// Returns when the Node says that a volume is attached, with what the attachment `object` says of it.
    async fn attached(&self, name: &str, object: &str) -> Result<Texts, String>;
}

/// What drivers have done since the process began, and who is at which volume. Each volume is worked at by one at a time,
/// as the specification asks.
#[derive(Default)]
pub(crate) struct Mounted {
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    staged: Mutex<HashSet<String>>,
    /// Pods and their volumes' names.
    published: Mutex<HashSet<(String, String)>>,
    /// Those that were told that theirs does not grow.
    told_not_to_grow: Mutex<HashSet<(String, String)>>,
}

impl Mounted {
    /// The right to work at a volume.
    pub(crate) async fn lock(&self, driver: &str, handle: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            let slot = locks.entry(unique_name(driver, handle)).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let fresh = Arc::default();
                *slot = Arc::downgrade(&fresh);
                fresh
            })
        };
        lock.lock_owned().await
    }

    /// A volume is staged no more.
    pub(crate) fn unstaged(&self, driver: &str, handle: &str) {
        self.staged.lock().remove(&unique_name(driver, handle));
    }
}

/// The name of a volume in `status.volumesAttached` and `volumesInUse` of nodes. Source: `util.GetUniqueVolumeName`.
pub(crate) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of the object that attaches a volume to a node. Source: `getAttachmentName`.
fn attachment(source: &CsiSource, node: &str) -> String {
    let mut hash = Sha256::new();
    [&source.volume_handle, &source.driver, node].iter().for_each(|part| hash.update(part));
    format!("csi-{:x}", hash.finalize())
}

impl Mounting {
    /// Of a volume that a claim is bound to. `object`: what the cluster knows of the driver, if anything.
    pub(crate) fn persistent(
        source: CsiSource,
        access_modes: &[String],
        mount_options: &[String],
        object: Option<&DriverView>,
    ) -> Result<Self, String> {
        check_lifecycle(&source.driver, PERSISTENT, object)?;
        Ok(Self {
            source,
            access_modes: access_modes.to_vec(),
            mount_options: mount_options.to_vec(),
            object: object.cloned().unwrap_or_default(),
            ..Self::default()
        })
    }

    /// Of a volume that a pod names itself. Source: `makeVolumeHandle`.
    pub(crate) fn ephemeral(
        pod: &PodView,
        name: &str,
        source: &CSIVolumeSource,
        object: Option<&DriverView>,
    ) -> Result<Self, String> {
        check_lifecycle(&source.driver, EPHEMERAL, object)?;
        let mut hash = Sha256::new();
        [pod.uid(), name].iter().for_each(|part| hash.update(part));
        let secret = source.node_publish_secret_ref.as_ref();
        let namespace = pod.metadata.namespace.clone();
        let source_of = CsiSource {
            driver: source.driver.clone(),
            volume_handle: format!("csi-{:x}", hash.finalize()),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            volume_attributes: source.volume_attributes.clone().unwrap_or_default(),
            node_publish_secret_ref: secret.map(|named| SecretRef { namespace, name: named.name.clone() }),
            ..CsiSource::default()
        };
        Ok(Self {
            source: source_of,
            // As upstream mounts them, whose group they are given to by that. Source: `getAccessMode`, `supportsFSGroup`.
            access_modes: vec!["ReadWriteOnce".to_owned()],
            object: object.cloned().unwrap_or_default(),
            read_only: source.read_only.unwrap_or(false),
            ephemeral: true,
            ..Self::default()
        })
    }

    /// As the ledger notes it. `volume`: the PersistentVolume, or the pod's own name of one that lives with it.
    pub(crate) fn entry(&self, directories: &PodDirectories, name: &str, volume: &str) -> Entry {
        let CsiSource { driver, volume_handle: handle, .. } = &self.source;
        let staging = (!self.ephemeral).then(|| staged::global_mount(directories.root(), driver, handle));
        let attached = !self.ephemeral && self.object.spec.attach_required != Some(false);
        Entry {
            name: name.to_owned(),
            volume: volume.to_owned(),
            claim_uid: String::new(),
            path: match self.device {
                true => directories.plugin_device(PLUGIN, volume),
                false => directories.plugin_volume(PLUGIN, volume).join("mount"),
            },
            read_only: self.read_only,
            device: self.device,
            csi: Some(Noted {
                driver: driver.clone(),
                handle: handle.clone(),
                staging,
                attached_as: attached.then(|| unique_name(driver, handle)),
            }),
        }
    }

    /// The pod only reads it.
    pub(crate) fn only_read(&mut self, read_only: bool) {
        self.read_only |= read_only;
    }

    /// Containers use it as a device, or as what is mounted from it.
    pub(crate) fn is_device(&mut self, device: bool) {
        self.device = device;
    }

    pub(crate) fn grows(&mut self, growth: Option<Growth>) {
        self.growth = growth;
    }

    /// Whether it is to be published again and again.
    fn is_republished(&self) -> bool {
        self.object.republishes()
    }

    fn capability(&self, can: Capabilities, group: Option<Group>) -> VolumeCapability {
        let mount = || MountVolume {
            fs_type: self.source.fs_type.clone(),
            mount_flags: self.mount_options.clone(),
            volume_mount_group: group.map(|group| group.gid.to_string()).unwrap_or_default(),
        };
        let access = if self.device { AccessType::Block(BlockVolume {}) } else { AccessType::Mount(mount()) };
        let mode = self.access_modes.first().map_or("ReadWriteOnce", String::as_str);
        VolumeCapability {
            access_mode: Some(AccessMode { mode: access_mode(mode, can).into() }),
            access_type: Some(access),
        }
    }

    /// Whether the node gives the volume to the pod's group. Source: `supportsFSGroup`.
    fn is_given(&self) -> bool {
        if self.read_only || self.device {
            return false;
        }
        let once = ["ReadWriteOnce", "ReadWriteOncePod"];
        match self.object.spec.fs_group_policy.as_deref() {
            Some("None") => false,
            Some("File") => true,
            _ => {
                !self.source.fs_type.is_empty()
                    && self.access_modes.iter().any(|mode| once.contains(&mode.as_str()))
            }
        }
    }

    /// What the driver is told of the pod. Source: `podAttributes`.
    fn pod_attributes(&self, pod: &PodView) -> Texts {
        if !self.object.spec.pod_info_on_mount {
            return Texts::new();
        }
        let meta = &pod.metadata;
        let account = pod.spec.service_account_name.clone().unwrap_or_default();
        let told = [
            ("pod.name", meta.name.clone()),
            ("pod.namespace", meta.namespace.clone()),
            ("pod.uid", meta.uid.clone()),
            ("serviceAccount.name", account),
            ("ephemeral", self.ephemeral.to_string()),
        ];
        told.map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value)).into()
    }
}

/// Source: `supportsVolumeLifecycleMode`.
fn check_lifecycle(driver: &str, mode: &str, object: Option<&DriverView>) -> Result<(), String> {
    let Some(object) = object else {
        return match mode {
            PERSISTENT => Ok(()),
            _ => Err(format!(
                "volume mode {mode:?} not supported by driver {driver} (no CSIDriver object): install the driver"
            )),
        };
    };
    let modes = &object.spec.volume_lifecycle_modes;
    if modes.iter().any(|known| known == mode) || (modes.is_empty() && mode == PERSISTENT) {
        return Ok(());
    }
    Err(format!("volume mode {mode:?} not supported by driver {driver} (only supports {modes:?})"))
}

/// Source: `asCSIAccessModeV1`, `asSingleNodeMultiWriterCapableCSIAccessModeV1`.
fn access_mode(mode: &str, can: Capabilities) -> Mode {
    match (mode, can.single_node_multi_writer) {
        ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
        ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
        ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
        ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
        ("ReadWriteOnce" | "ReadWriteOncePod", false) => Mode::SingleNodeWriter,
        _ => Mode::Unknown,
    }
}

/// Has a volume staged and published, and gives it to the pod's group. Cancel safe: what was begun is noted.
pub(super) async fn set_up(
    setup: &Setup,
    threads: &Threads,
    usable: &Usable,
    mounting: &Mounting,
    group: Option<Group>,
) -> Result<(), VolumeError> {
    let work = Work { setup, threads, usable, mounting, group };
    let volume = &usable.entry.volume;
    let failed = |failure| match failure {
        Failure::Staging(cause) => {
            VolumeError::Stage { volume: volume.clone(), device: mounting.device, cause }
        }
        Failure::Growth(cause) => VolumeError::Growth { volume: volume.clone(), cause },
        Failure::Other(cause) => claim::failed(volume, mounting.device, cause),
    };
    match tokio::time::timeout(PATIENCE, work.mount()).await {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(VolumeError::Unprocessed {
            volume: usable.entry.name.clone(),
            cause: "timed out waiting for the condition: the volume is not attached, or its driver does not answer"
                .to_owned(),
        }),
    }
}

/// Why a volume cannot be had: the two have different names.
enum Failure {
    Staging(String),
    /// Of what is in use already.
    Growth(String),
    Other(String),
}

impl From<String> for Failure {
    fn from(cause: String) -> Self {
        Self::Other(cause)
    }
}

/// The mounting of one volume for one pod.
struct Work<'a> {
    setup: &'a Setup,
    threads: &'a Threads,
    usable: &'a Usable,
    mounting: &'a Mounting,
    group: Option<Group>,
}

impl Work<'_> {
    async fn mount(&self) -> Result<(), Failure> {
        let around = &*self.setup.around;
        let source = &self.mounting.source;
        let driver = around.driver(&source.driver).ok_or_else(|| not_registered(&source.driver))?;
        let _alone = around.mounted().lock(&source.driver, &source.volume_handle).await;
        let done = (self.setup.pod.uid().to_owned(), self.usable.entry.name.clone());
        let again = around.mounted().published.lock().contains(&done);
        if again && !self.mounting.is_republished() {
            return match self.mounting.growth {
                Some(_) => {
                    let can = driver.capabilities().await?;
                    self.grow(&driver, can).await.map_err(Failure::Growth)
                }
                None => Ok(()),
            };
        }
        let can = driver.capabilities().await?;
        let context = self.attach().await?;
        let staging = self.stage(&driver, can, &context).await.map_err(Failure::Staging)?;
        self.publish(&driver, can, context, staging).await?;
        self.check().await?;
        let of = &self.usable.entry.volume;
        let not_grown = |error| format!("NodeExpandVolume failed for volume \"{of}\" : {error}");
        self.grow(&driver, can).await.map_err(not_grown)?;
        if !again && !can.mount_group {
            self.give().await?;
        }
        around.mounted().published.lock().insert(done);
        Ok(())
    }

    fn noted(&self) -> Noted {
        self.usable.entry.csi.clone().unwrap_or_default()
    }

    /// Says that the volume is in use, and then waits until it is attached: in this order nobody takes it away.
    async fn attach(&self) -> Result<Texts, String> {
        let Some(name) = self.noted().attached_as else { return Ok(Texts::new()) };
        let around = &*self.setup.around;
        around.in_use(&name).await?;
        around.attached(&name, &attachment(&self.mounting.source, &self.setup.node.name)).await
    }

    /// The group that the driver itself is to give the volume to: which it does is the driver's to say, and no policy's.
    /// Source: `SetUpAt`, `MountDevice`.
    fn drivers_group(&self, can: Capabilities) -> Option<Group> {
        self.group.filter(|_| can.mount_group)
    }

    async fn secret(&self, named: Option<&SecretRef>) -> Result<Texts, String> {
        match named {
            None => Ok(Texts::new()),
            Some(named) => self.setup.around.secret(named).await.map_err(|error| {
                format!("fetching secret {}/{} failed: {error}", named.namespace, named.name)
            }),
        }
    }

    /// Stages the volume where its driver does that, once in the life of this process: the driver is asked again after a
    /// restart, and answers the same.
    async fn stage(
        &self,
        driver: &Driver,
        can: Capabilities,
        context: &Texts,
    ) -> Result<Option<PathBuf>, String> {
        let Some(staging) = self.noted().staging.filter(|_| can.stage) else { return Ok(None) };
        let source = &self.mounting.source;
        let name = unique_name(&source.driver, &source.volume_handle);
        let mounted = self.setup.around.mounted();
        if mounted.staged.lock().contains(&name) {
            return Ok(Some(staging));
        }
        let secrets = self.secret(source.node_stage_secret_ref.as_ref()).await?;
        let record = staged::Record::new(&source.driver, &source.volume_handle, &self.usable.entry);
        let place = staging.clone();
        self.blocking(move || staged::note(&place, &record)).await?;
        let request = NodeStageVolumeRequest {
            volume_id: source.volume_handle.clone(),
            publish_context: context.clone(),
            staging_target_path: text(&self.setup.around.told(&staging))?,
            volume_capability: Some(self.mounting.capability(can, self.drivers_group(can))),
            secrets,
            volume_context: source.volume_attributes.clone().into_iter().collect(),
        };
        driver.stage(request).await?;
        mounted.staged.lock().insert(name);
        Ok(Some(staging))
    }

    async fn publish(
        &self,
        driver: &Driver,
        can: Capabilities,
        context: Texts,
        staging: Option<PathBuf>,
    ) -> Result<(), String> {
        let source = &self.mounting.source;
        let spec = &self.mounting.object.spec;
        let pod = &*self.setup.pod;
        let mut secrets = self.secret(source.node_publish_secret_ref.as_ref()).await?;
        let mut attributes: Texts = source.volume_attributes.clone().into_iter().collect();
        attributes.extend(self.mounting.pod_attributes(pod));
        if !spec.token_requests.is_empty() {
            let tokens = self.setup.around.tokens(pod, &spec.token_requests).await?;
            let place = if spec.service_account_token_in_secrets { &mut secrets } else { &mut attributes };
            place.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens);
        }
        let target = self.usable.entry.path.clone();
        let parent = target.parent().map(Path::to_owned).unwrap_or_default();
        self.blocking(move || std::fs::create_dir_all(parent)).await?;
        let request = NodePublishVolumeRequest {
            volume_id: source.volume_handle.clone(),
            publish_context: context,
            staging_target_path: match staging {
                Some(staging) => text(&self.setup.around.told(&staging))?,
                None => String::new(),
            },
            target_path: text(&self.setup.around.told(&target))?,
            volume_capability: Some(self.mounting.capability(can, self.drivers_group(can))),
            readonly: self.mounting.read_only,
            secrets,
            volume_context: attributes,
        };
        driver.publish(request).await
    }

    /// A driver that says it is done has made the directory, or the device: containers would be given something of the
    /// host otherwise.
    async fn check(&self) -> Result<(), String> {
        let (target, device) = (self.usable.entry.path.clone(), self.mounting.device);
        let there = self.blocking(move || {
            let kind = std::fs::symlink_metadata(target)?.file_type();
            Ok(if device { kind.is_block_device() } else { kind.is_dir() })
        });
        let wanted = if device { "device" } else { "directory" };
        match there.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(format!("the driver has put something else than a {wanted} where the volume was to be"))
            }
            Err(error) => {
                Err(format!("the driver says that the volume is published, and it is not there: {error}"))
            }
        }
    }

    /// Has the file system grown to what the volume has, and tells the claim. A driver that does not do that has nothing
    /// left to do. Source: `nodeExpandVolume`, `OperationGenerator`.
    async fn grow(&self, driver: &Driver, can: Capabilities) -> Result<(), String> {
        let (Mounting { source, growth, .. }, volume) = (self.mounting, &self.usable.entry.volume);
        let Some(growth) = growth else { return Ok(()) };
        if self.mounting.read_only {
            self.does_not_grow("requested read-only file system");
            return Ok(());
        }
        if self.setup.around.mounted().told_not_to_grow.lock().contains(&self.of()) {
            return Ok(());
        }
        if can.expand {
            let target = text(&self.setup.around.told(&self.usable.entry.path))?;
            let staging = self.noted().staging.filter(|_| can.stage);
            let staging = staging.map(|staging| text(&self.setup.around.told(&staging))).transpose()?;
            let request = NodeExpandVolumeRequest {
                volume_id: source.volume_handle.clone(),
                volume_path: staging.clone().unwrap_or(target),
                capacity_range: Some(CapacityRange { required_bytes: growth.bytes, limit_bytes: 0 }),
                staging_target_path: staging.unwrap_or_default(),
                volume_capability: Some(self.mounting.capability(can, self.drivers_group(can))),
                secrets: self.secret(source.node_expand_secret_ref.as_ref()).await?,
            };
            if let Some(why) = driver.expand(request).await? {
                self.does_not_grow(&why);
                return Ok(());
            }
        }
        self.setup.around.grown(&self.setup.pod, growth, volume).await
    }

    /// The pod and its name of the volume.
    fn of(&self) -> (String, String) {
        (self.setup.pod.uid().to_owned(), self.usable.entry.name.clone())
    }

    /// Says once why the file system stays as it is while the pod has it.
    fn does_not_grow(&self, why: &str) {
        let (around, pod) = (&*self.setup.around, &*self.setup.pod);
        if around.mounted().told_not_to_grow.lock().insert(self.of()) {
            let volume = &self.usable.entry.volume;
            let message = format!("MountVolume.NodeExpandVolume failed for volume \"{volume}\" {why}");
            around.not_grown(pod, message);
        }
    }

    async fn give(&self) -> Result<(), String> {
        let Some(group) = self.group.filter(|_| self.mounting.is_given()) else { return Ok(()) };
        let target = self.usable.entry.path.clone();
        let given = self.blocking(move || ownership::hand_over(&target, group)).await;
        given.map_err(|error| {
            format!("applyFSGroup failed for vol {}: {error}", self.mounting.source.volume_handle)
        })
    }

    /// Work at a file system, which may never come back.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let name = (self.setup.pod.uid().to_owned(), self.usable.entry.name.clone());
        run(self.threads, name, work).await
    }
}

async fn run<T: Send + 'static>(
    threads: &Threads,
    name: super::threads::Name,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let done = threads.run(name, work).await.map_err(|error: Unfinished| error.to_string())?;
    done.map_err(|error| error.to_string())
}

fn not_registered(driver: &str) -> String {
    format!(
        "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name {driver} not found in the list of registered CSI drivers: install the driver, or wait until its pod on this node runs"
    )
}

/// Takes the volumes of drivers away from a pod whose containers have ended. Repeated, it goes on where it failed.
pub(crate) async fn tear_down(
    around: &dyn Around,
    threads: &Threads,
    directories: &PodDirectories,
    uid: &str,
) -> Result<(), String> {
    let path = directories.ledger();
    let ledger = run(threads, (uid.to_owned(), String::new()), move || Ledger::read(&path)).await?;
    let mut failed = Ok(());
    for entry in ledger.entries().filter(|entry| entry.csi.is_some()) {
        let release = Release { around, threads, directories, uid, entry };
        let released = release.run().await.map_err(|error| {
            format!("UnmountVolume.TearDown failed for volume \"{}\" : {error}", entry.volume)
        });
        // One driver that does not answer keeps no other volume.
        failed = failed.and(released);
    }
    failed
}

/// The unmounting of one volume.
struct Release<'a> {
    around: &'a dyn Around,
    threads: &'a Threads,
    directories: &'a PodDirectories,
    uid: &'a str,
    entry: &'a Entry,
}

impl Release<'_> {
    async fn run(&self) -> Result<(), String> {
        let noted = self.entry.csi.clone().unwrap_or_default();
        let mounted = self.around.mounted();
        let _alone = mounted.lock(&noted.driver, &noted.handle).await;
        let of = (self.uid.to_owned(), self.entry.name.clone());
        mounted.published.lock().remove(&of);
        mounted.told_not_to_grow.lock().remove(&of);
        let users = (self.directories.root(), self.uid);
        if self.may_have_begun(&noted).await? {
            let driver = self.around.driver(&noted.driver).ok_or_else(|| not_registered(&noted.driver))?;
            driver.unpublish(&noted.handle, &self.around.told(&self.entry.path)).await?;
            unstage_unused(self.around, self.threads, &driver, &noted, users).await?;
        } else if let Some(name) = &noted.attached_as
            && !is_used(self.threads, &noted, users).await?
        {
            self.around.not_in_use(name);
        }
        self.forget().await
    }

    /// Whether the driver may have been asked for anything: before that directories are made. One that never came here
    /// keeps nobody's pod.
    async fn may_have_begun(&self, noted: &Noted) -> Result<bool, String> {
        let parent = self.entry.path.parent().map(Path::to_owned).unwrap_or_default();
        if self.is_there(noted, parent).await? {
            return Ok(true);
        }
        let Some(staging) = noted.staging.clone() else { return Ok(false) };
        if !self.is_there(noted, staging).await? {
            return Ok(false);
        }
        // What is staged may be another pod's alone.
        is_used(self.threads, noted, (self.directories.root(), self.uid)).await.map(|used| !used)
    }

    async fn is_there(&self, noted: &Noted, path: PathBuf) -> Result<bool, String> {
        run(self.threads, (self.uid.to_owned(), noted.handle.clone()), move || path.try_exists()).await
    }

    async fn forget(&self) -> Result<(), String> {
        let (path, name) = (self.directories.ledger(), self.entry.name.clone());
        run(self.threads, (self.uid.to_owned(), String::new()), move || {
            let mut ledger = Ledger::read(&path)?;
            if ledger.remove(&name) { ledger.write(&path) } else { Ok(()) }
        })
        .await
    }
}

/// Whether a pod other than `uid` has a volume.
async fn is_used(threads: &Threads, noted: &Noted, (root, uid): (&Path, &str)) -> Result<bool, String> {
    let (place, of, but) = (root.to_owned(), noted.clone(), uid.to_owned());
    let name = (uid.to_owned(), noted.handle.clone());
    run(threads, name, move || staged::is_used(&place, &of, &but)).await
}

/// Has a volume unstaged that no other pod has, and tells that it is in use no more. Called with the volume locked.
pub(crate) async fn unstage_unused(
    around: &dyn Around,
    threads: &Threads,
    driver: &Driver,
    noted: &Noted,
    (root, uid): (&Path, &str),
) -> Result<(), String> {
    if is_used(threads, noted, (root, uid)).await? {
        return Ok(());
    }
    let name = (uid.to_owned(), noted.handle.clone());
    if let Some(staging) = noted.staging.clone() {
        let place = staging.clone();
        if run(threads, name.clone(), move || place.try_exists()).await? {
            around.mounted().unstaged(&noted.driver, &noted.handle);
            driver
                .unstage(&noted.handle, &around.told(&staging))
                .await
                .map_err(|error| format!("UnmountDevice failed for volume \"{}\" : {error}", noted.handle))?;
            run(threads, name, move || staged::forget(&staging)).await?;
        }
    }
    if let Some(name) = &noted.attached_as {
        around.not_in_use(name);
    }
    Ok(())
}

/// Tokens as drivers are given them. Source: `podServiceAccountTokenAttrs`.
pub(crate) fn tokens_of(answers: &[(String, String, String)]) -> String {
    let by_audience = answers.iter().map(|(audience, token, expires)| {
        (audience.clone(), json!({ "token": token, "expirationTimestamp": expires }))
    });
    serde_json::Value::Object(by_audience.collect()).to_string()
}

#[cfg(test)]
#[path = "csi_tests.rs"]
pub(super) mod tests;
