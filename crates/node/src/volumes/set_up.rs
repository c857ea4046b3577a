//! Sets a pod's volumes up, all at once and each for itself: one that does not answer holds up none of the others. All of
//! it is idempotent: a node that comes back does it again.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;

use super::claim::{self, Claims, NodeLabels, Source, Usable};
use super::csi::{self, Around, Mounting};
use super::kind::Kind;
use super::ledger::Ledger;
use super::ownership::Group;
use super::payload::Objects;
use super::threads::{Threads, Unfinished};
use super::{PodDirectories, VolumeError, empty_dir, host_path, nfs, objects};
use crate::pod::PodView;
use crate::pod::fields::FieldContext;

/// What volumes are made from.
pub(crate) struct Setup {
    pub(crate) pod: Arc<PodView>,
    pub(crate) directories: PodDirectories,
    pub(crate) fields: FieldContext,
    pub(crate) objects: Box<dyn Objects>,
    pub(crate) claims: Claims,
    pub(crate) node: NodeLabels,
    /// What drivers of volumes need.
    pub(crate) around: Arc<dyn Around>,
    /// Where the node makes directories that are volumes of their own.
    pub(crate) local_paths: PathBuf,
    pub(crate) now: Timestamp,
}

/// Makes and fills every volume of the pod; repeated, it brings them up to date. Tells of the first that cannot be had;
/// the others are set up all the same. Cancel safe.
pub(crate) async fn set_up(setup: Arc<Setup>, threads: &Threads) -> Result<(), VolumeError> {
    let claimed = claimed(&setup, threads).await?;
    let volumes = setup.pod.spec.volumes.iter().flatten();
    let works = volumes.map(|volume| {
        let found = claimed.iter().find(|(name, _)| *name == volume.name).map(|(_, found)| found.clone());
        set_up_one(&setup, threads, volume, found)
    });
    join_all(works).await.into_iter().collect()
}

/// By their names in the pod, the volumes that it has through claims.
type Claimed = Vec<(String, Result<Usable, VolumeError>)>;

/// Decides about the volumes that are not the pod's own, and notes them before anything is done with them.
async fn claimed(setup: &Arc<Setup>, threads: &Threads) -> Result<Claimed, VolumeError> {
    let name = &setup.pod.metadata.name;
    if !setup.pod.spec.volumes.iter().flatten().any(|volume| Kind::is_noted(name, volume)) {
        return Ok(Vec::new());
    }
    let of = setup.clone();
    let noted = threads.run((setup.pod.uid().to_owned(), String::new()), move || decide_and_note(&of)).await;
    noted.map_err(|error| error.to_string()).flatten().map_err(VolumeError::Ledger)
}

fn decide_and_note(setup: &Setup) -> Result<Claimed, String> {
    let path = setup.directories.ledger();
    let mut ledger = Ledger::read(&path).map_err(|error| error.to_string())?;
    let mut claimed = Vec::new();
    let mut news = false;
    for volume in setup.pod.spec.volumes.iter().flatten() {
        let Some(found) = usable(setup, volume, &ledger) else { continue };
        if let Ok(usable) = &found {
            news |= ledger.put(usable.entry.clone());
        }
        claimed.push((volume.name.clone(), found));
    }
    if news {
        ledger.write(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(claimed)
}

/// A volume that is noted, if it may be used; `None` for the others.
fn usable(setup: &Setup, volume: &Volume, ledger: &Ledger) -> Option<Result<Usable, VolumeError>> {
    let Setup { pod, claims, node, directories, .. } = setup;
    if let Some(source) = &volume.csi {
        let object = claims.drivers.get(&source.driver);
        let mounting = Mounting::ephemeral(pod, &volume.name, source, object);
        let failed = |cause| VolumeError::SetUp { volume: volume.name.clone(), cause };
        return Some(mounting.map_err(failed).map(|mounting| {
            let entry = mounting.entry(directories, &volume.name, &volume.name);
            Usable { entry, source: Source::Csi(Box::new(mounting)) }
        }));
    }
    let of = Kind::claim(&pod.metadata.name, volume)?;
    let known = ledger.get(&volume.name);
    Some(claim::usable(pod, &volume.name, &of, claims, (node, directories), known))
}

async fn set_up_one(
    setup: &Arc<Setup>,
    threads: &Threads,
    volume: &Volume,
    claimed: Option<Result<Usable, VolumeError>>,
) -> Result<(), VolumeError> {
    let usable = claimed.transpose()?;
    if let Some((usable, Source::Csi(mounting))) = usable.as_ref().map(|usable| (usable, &usable.source)) {
        return csi::set_up(setup, threads, usable, mounting, group(&setup.pod)).await;
    }
    // The volume's own name, where it has one.
    let named = usable.as_ref().map_or(&volume.name, |usable| &usable.entry.volume).clone();
    let device = usable.as_ref().is_some_and(|usable| usable.entry.device);
    let (of, asked) = (setup.clone(), volume.clone());
    let name = (setup.pod.uid().to_owned(), volume.name.clone());
    match threads.run(name, move || prepare(&of, &asked, usable.as_ref())).await {
        Ok(done) => done.map_err(|cause| claim::failed(&named, device, cause)),
        Err(Unfinished::TimedOut) => Err(VolumeError::Unprocessed {
            volume: volume.name.clone(),
            cause: Unfinished::TimedOut.to_string(),
        }),
        Err(error) => Err(claim::failed(&named, device, error.to_string())),
    }
}

/// Blocks, for ever where a file system does not answer.
fn prepare(setup: &Setup, volume: &Volume, usable: Option<&Usable>) -> Result<(), String> {
    match Kind::of(&setup.pod.metadata.name, volume)? {
        Kind::HostPath(source) => {
            host_path::prepare(source.path.as_ref(), source.type_.as_deref().unwrap_or_default())
        }
        Kind::EmptyDir(source) => {
            empty_dir::prepare(setup, &volume.name, source).map_err(|error| error.to_string())
        }
        Kind::Objects => objects::prepare(setup, volume),
        Kind::Nfs(source) => {
            let read_only = source.read_only == Some(true);
            let export = nfs::Export::of::<&str>(&source.server, &source.path, read_only, &[])?;
            nfs::prepare(&export, &setup.directories.mounted(&volume.name))
        }
        // Its image is pulled and mounted beside this.
        Kind::Image(_) => Ok(()),
        Kind::Claim(of) => {
            let usable = usable.ok_or_else(|| format!("claim {} was not looked at", of.name))?;
            prepare_claimed(setup, usable)
        }
        Kind::Csi(source) => Err(format!("driver {} was not asked", source.driver)),
    }
}

/// A volume is given to the pod's group once: what others have changed in it since is theirs to say.
fn prepare_claimed(setup: &Setup, usable: &Usable) -> Result<(), String> {
    let given = setup.directories.handed_over(&usable.entry.name);
    let group = group(&setup.pod).filter(|_| !given.exists());
    let mounted = setup.directories.mounted(&usable.entry.name);
    claim::prepare(usable, &setup.local_paths, &mounted, group)?;
    if group.is_some() {
        let noted = empty_dir::make_directory(&given, 0o700);
        noted.map_err(|error| format!("{}: {error}", given.display()))?;
    }
    Ok(())
}

/// The group of the pod's volumes.
pub(super) fn fs_group(pod: &PodView) -> Option<u32> {
    let gid = pod.spec.security_context.as_ref().and_then(|context| context.fs_group)?;
    u32::try_from(gid).ok()
}

fn group(pod: &PodView) -> Option<Group> {
    let gid = fs_group(pod)?;
    let context = pod.spec.security_context.as_ref();
    let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
    Some(Group { gid, on_root_mismatch: policy == Some("OnRootMismatch") })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    use k8s_openapi::api::core::v1::{
        ClusterTrustBundleProjection, PodCertificateProjection, ServiceAccountTokenProjection,
    };
    use serde_json::json;

    use super::super::payload::Data;
    use super::super::{device, mounts, tear_down};
    use super::*;
    use crate::pod::tests::pod;

    struct Maps(&'static str);

    impl Objects for Maps {
        fn config_map(&self, name: &str) -> Option<Data> {
            (name == "cm").then(|| BTreeMap::from([("k".to_owned(), self.0.as_bytes().to_vec())]))
        }
        fn secret(&self, _: &str) -> Option<Data> {
            None
        }
        fn token(&self, _: &ServiceAccountTokenProjection) -> Option<Vec<u8>> {
            None
        }
        fn credential(&self, _: &PodCertificateProjection) -> Option<crate::certificates::Credential> {
            None
        }
        fn trust_anchors(&self, _: &ClusterTrustBundleProjection) -> Result<String, String> {
            Err("none".to_owned())
        }
    }

    impl Setup {
        /// A set-up of a pod with nothing around it.
        pub(in super::super) fn of(pod: Arc<PodView>, directories: PodDirectories) -> Self {
            Self {
                pod,
                directories,
                fields: FieldContext::default(),
                objects: Box::new(Maps("1")),
                claims: Claims::default(),
                node: NodeLabels::default(),
                around: Arc::new(csi::tests::Alone::default()),
                local_paths: PathBuf::from("/nowhere"),
                now: Timestamp::now(),
            }
        }
    }

    async fn run(pod: &PodView, directories: &PodDirectories, text: &'static str) -> Result<(), VolumeError> {
        let mut setup = Setup::of(Arc::new(pod.clone()), directories.clone());
        setup.objects = Box::new(Maps(text));
        set_up(Arc::new(setup), &Threads::default()).await
    }

    /// Claim `c` and its local volume at `path`.
    fn bound_to(path: &Path) -> Claims {
        let claim = json!({ "metadata": { "name": "c", "namespace": "default", "uid": "cu" },
            "spec": { "volumeName": "pv" }, "status": { "phase": "Bound" } });
        let volume = json!({ "metadata": { "name": "pv" }, "spec": { "local": { "path": path },
            "claimRef": { "uid": "cu" } } });
        Claims {
            claims: [("c".to_owned(), serde_json::from_value(claim).unwrap())].into(),
            volumes: [("pv".to_owned(), serde_json::from_value(volume).unwrap())].into(),
            ..Claims::default()
        }
    }

    #[tokio::test]
    async fn volumes_are_made_updated_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let pod = pod(json!({
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "cm"}}],
            "containers": [{"name": "main", "volumeMounts": [
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "conf", "mountPath": "/conf"}]}]}));
        run(&pod, &directories, "1").await.unwrap();
        std::fs::write(directories.disk_volume("scratch").join("x"), "kept").unwrap();
        run(&pod, &directories, "2").await.unwrap();
        assert_eq!(std::fs::read_to_string(directories.memory_volume("conf").join("k")).unwrap(), "2");
        assert!(directories.disk_volume("scratch").join("x").exists());
        assert!(!directories.ledger().exists(), "nothing outlives the pod");

        mounts::write_etc(&directories, "resolv.conf", "nameserver 10.0.0.1\n").unwrap();
        let mounts =
            mounts::container_mounts(&pod, &directories, &pod.spec.containers[0], 0, &|_| None).unwrap();
        let targets: Vec<_> =
            mounts.iter().map(|mount| (mount.target.to_str().unwrap(), mount.read_only)).collect();
        let wanted = [
            ("/scratch", false),
            ("/conf", true),
            ("/dev/termination-log", false),
            ("/etc/resolv.conf", false),
        ];
        assert_eq!(targets, wanted);

        tear_down::tear_down(&directories).unwrap();
        assert!(!directories.data().exists() && !directories.run().exists());
    }

    #[tokio::test]
    async fn a_failure_names_the_volume_and_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(dir.path(), dir.path(), "u1");
        let pod = pod(json!({"containers": [],
            "volumes": [{"name": "conf", "configMap": {"name": "none"}}, {"name": "scratch", "emptyDir": {}}]}));
        let error = run(&pod, &directories, "1").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "MountVolume.SetUp failed for volume \"conf\" : configmap \"none\" not found"
        );
        assert!(directories.disk_volume("scratch").is_dir());
    }

    #[tokio::test]
    async fn only_the_nodes_own_directories_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let pod = Arc::new(pod(json!({ "containers": [],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]})));
        let run = async |path: &Path| {
            let mut setup = Setup::of(pod.clone(), directories.clone());
            setup.claims = bound_to(path);
            setup.local_paths = dir.path().join("own");
            set_up(Arc::new(setup), &Threads::default()).await
        };
        let own = dir.path().join("own/pvc-1_ns_c");
        run(&own).await.unwrap();
        std::fs::write(own.join("db"), "kept").unwrap();
        assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o777);
        run(&own).await.unwrap();
        assert!(own.join("db").exists());
        let others = dir.path().join("disk/pvc-1_ns_c");
        assert!(run(&others).await.unwrap_err().to_string().ends_with("does not exist"));
    }

    #[tokio::test]
    async fn a_claimed_volume_is_given_to_its_group_once() {
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("users");
        std::fs::create_dir(&users).unwrap();
        let file = users.join("f");
        std::fs::write(&file, "x").unwrap();
        let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let now = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        let gid = std::fs::metadata(&users).unwrap().gid();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let pod = Arc::new(pod(json!({ "securityContext": {"fsGroup": gid}, "containers": [],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]})));
        let again = async || {
            let mut setup = Setup::of(pod.clone(), directories.clone());
            setup.claims = bound_to(&users);
            set_up(Arc::new(setup), &Threads::default()).await.unwrap();
        };
        mode(0o600);
        again().await;
        assert_eq!(now(), 0o660);
        mode(0o600);
        again().await;
        assert_eq!(now(), 0o600);
    }

    #[tokio::test]
    async fn a_claimed_volume_is_noted_and_mounted_from_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("users");
        std::fs::create_dir_all(users.join("part")).unwrap();
        std::fs::write(users.join("db"), "kept").unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let pod = pod(json!({
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}],
            "containers": [{"name": "main", "volumeMounts": [
                {"name": "data", "mountPath": "/data"},
                {"name": "data", "mountPath": "/part", "subPath": "part"}]}]}));
        let mut setup = Setup::of(Arc::new(pod.clone()), directories.clone());
        let mounts = || mounts::container_mounts(&pod, &directories, &pod.spec.containers[0], 0, &|_| None);
        assert!(mounts().unwrap_err().contains("was not set up"));
        setup.claims = bound_to(&users);
        set_up(Arc::new(setup), &Threads::default()).await.unwrap();
        // Whoever starts the container may be another process than the one that set the volume up.
        let made = mounts().unwrap();
        assert_eq!(made[0].source, engine_api::MountSource::Bind(users.clone()));
        assert!(made[0].read_only && made[1].read_only);
        tear_down::tear_down(&directories).unwrap();
        assert!(!directories.data().exists() && !directories.run().exists());
        assert_eq!(std::fs::read_to_string(users.join("db")).unwrap(), "kept");
        assert!(users.join("part").is_dir());
    }

    #[tokio::test]
    async fn a_device_is_a_volume_with_its_file_system_or_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let disk = device::tests::Loop::of_size(dir.path(), 16 << 20);
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let spec = |mounts: &str, more: serde_json::Value| {
            let mut container = json!({"name": "main"});
            container[mounts] = json!([more]);
            pod(json!({"containers": [container],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]}))
        };
        let run = async |pod: &PodView, mode: &str| {
            let mut setup = Setup::of(Arc::new(pod.clone()), directories.clone());
            setup.claims = bound_to(&disk.0);
            setup.claims.volumes =
                setup.claims.volumes.into_iter().map(|(name, volume)| (name, volume.of_mode(mode))).collect();
            set_up(Arc::new(setup), &Threads::default()).await
        };
        let with_files = spec("volumeMounts", json!({"name": "data", "mountPath": "/data"}));
        run(&with_files, "Filesystem").await.unwrap();
        let main = &with_files.spec.containers[0];
        let made = mounts::container_mounts(&with_files, &directories, main, 0, &|_| None).unwrap();
        let engine_api::MountSource::Bind(source) = &made[0].source else { panic!("{made:?}") };
        std::fs::write(source.join("db"), "kept").unwrap();
        assert_eq!(mounts::container_devices(&directories, main), Ok(Vec::new()));
        tear_down::tear_down(&directories).unwrap();
        assert!(!source.exists() && !directories.run().exists());

        let with_device = spec("volumeDevices", json!({"name": "data", "devicePath": "/dev/xvda"}));
        let main = &with_device.spec.containers[0];
        assert!(
            mounts::container_devices(&directories, main)
                .unwrap_err()
                .contains("cannot find volume \"data\"")
        );
        run(&with_device, "Block").await.unwrap();
        let given = mounts::container_devices(&directories, main).unwrap();
        let wanted =
            engine_api::Device { host: disk.0.clone(), path: "/dev/xvda".into(), access: "rwm".into() };
        assert_eq!(given, [wanted]);
        let raw = std::fs::read(dir.path().join("disk")).unwrap();
        assert!(raw.windows(4).any(|bytes| bytes == b"kept"), "what was written is on the device");
        tear_down::tear_down(&directories).unwrap();
    }
}
