//! How much lies in volumes that are not the pod's own: a driver tells it (`NodeGetVolumeStats`), or the file system does.
//! Either may never answer. Source: `csi_metrics.go`, `metrics_statfs.go` of `pkg/volume`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protos::csi::v1::volume_usage::Unit;
use protos::csi::v1::{NodeGetVolumeStatsResponse, VolumeUsage};

use super::PodDirectories;
use super::csi::Around;
use super::kind::Kind;
use super::ledger::{Entry, Ledger};
use super::threads::Threads;
use crate::plugins::driver::text;
use crate::pod::PodView;

/// How long somebody may take to tell.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// What is passed on of a driver's words.
const WORDS_MAX: usize = 1000;

/// So much there is of something, as far as it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) all: Option<u64>,
    pub(crate) used: Option<u64>,
    pub(crate) left: Option<u64>,
}

/// What a volume holds, and how it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) bytes: Share,
    pub(crate) inodes: Share,
    /// What its driver says of its health: nothing, or that something is wrong, and what.
    pub(crate) condition: Option<Condition>,
}

/// A volume's health. Source: CSI's `VolumeCondition`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) abnormal: bool,
    pub(crate) message: String,
}

/// Who knows what is in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Teller {
    /// The driver that mounted it, there.
    Driver { name: String, handle: String, path: PathBuf },
    /// The file system that lies at the first of these that is a directory.
    FileSystem(Vec<PathBuf>),
}

/// A question about one volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// Its name in the pod.
    pub(crate) volume: String,
    /// The claim through which the pod has it.
    pub(crate) claim: Option<String>,
    pub(crate) teller: Teller,
}

/// What there is to be asked of a pod's volumes. Reads what is noted of them: blocks.
pub(crate) fn questions(pod: &PodView, directories: &PodDirectories) -> Vec<Question> {
    let name = &pod.metadata.name;
    let volumes = || pod.spec.volumes.iter().flatten();
    let noted = match volumes().any(|volume| Kind::is_noted(name, volume)) {
        // One that cannot be read is told of where volumes are set up.
        true => Ledger::read(&directories.ledger()).unwrap_or_default(),
        false => Ledger::default(),
    };
    let question = |volume: &k8s_openapi::api::core::v1::Volume| {
        let mounted = directories.mounted(&volume.name);
        let (claim, teller) = match Kind::of(name, volume).ok()? {
            Kind::Nfs(_) => (None, Teller::FileSystem(vec![mounted])),
            Kind::Csi(_) => (None, teller(noted.get(&volume.name)?, mounted)?),
            Kind::Claim(of) => (Some(of.name), teller(noted.get(&volume.name)?, mounted)?),
            Kind::EmptyDir(_) | Kind::HostPath(_) | Kind::Objects | Kind::Image(_) => return None,
        };
        Some(Question { volume: volume.name.clone(), claim, teller })
    };
    volumes().filter_map(question).collect()
}

fn teller(entry: &Entry, mounted: PathBuf) -> Option<Teller> {
    let path = entry.path.clone();
    match &entry.csi {
        Some(noted) => {
            Some(Teller::Driver { name: noted.driver.clone(), handle: noted.handle.clone(), path })
        }
        // There is no file system on it that the node knows of.
        None if entry.device => None,
        None => Some(Teller::FileSystem(vec![mounted, path])),
    }
}

/// Asks. `None`: nobody tells, or not in time. `who` is a name for the question, of which one is asked at a time.
pub(crate) async fn ask(
    around: &dyn Around,
    threads: &Threads,
    who: (String, String),
    teller: &Teller,
) -> Option<Amounts> {
    let answer = async {
        match teller {
            Teller::Driver { name, handle, path } => ask_driver(around, name, handle, path).await,
            Teller::FileSystem(paths) => {
                let paths = paths.clone();
                let told = threads.run(who, move || file_system(&paths)).await;
                told.map_err(|error| error.to_string())?.map(Some).map_err(|error| error.to_string())
            }
        }
    };
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => {
            tracing::debug!(?teller, %error, "what is in a volume is not told");
            None
        }
        Err(_) => None,
    }
}

async fn ask_driver(
    around: &dyn Around,
    name: &str,
    handle: &str,
    path: &Path,
) -> Result<Option<Amounts>, String> {
    let Some(driver) = around.driver(name) else { return Ok(None) };
    let can = driver.capabilities().await?;
    if !can.volume_stats {
        return Ok(None);
    }
    let answer = driver.volume_stats(handle, &text(&around.told(path))?).await?;
    Amounts::of(answer, can.volume_condition).map(Some)
}

/// Blocks, for ever where a server is away.
fn file_system(paths: &[PathBuf]) -> io::Result<Amounts> {
    let found = paths.iter().find(|path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()));
    let read = rustix::fs::statvfs(found.ok_or(io::ErrorKind::NotFound)?)?;
    let bytes = |blocks: u64| Some(blocks.saturating_mul(read.f_frsize));
    Ok(Amounts {
        bytes: Share {
            all: bytes(read.f_blocks),
            used: bytes(read.f_blocks.saturating_sub(read.f_bfree)),
            left: bytes(read.f_bavail),
        },
        inodes: Share {
            all: Some(read.f_files),
            used: Some(read.f_files.saturating_sub(read.f_ffree)),
            left: Some(read.f_ffree),
        },
        condition: None,
    })
}

impl Amounts {
    /// As a driver tells them. Amounts below nothing are lies, and left out. Source: `NodeGetVolumeStats` of `csi_client.go`.
    fn of(answer: NodeGetVolumeStatsResponse, with_condition: bool) -> Result<Self, String> {
        if answer.usage.is_empty() {
            return Err("failed to get usage from response. usage is nil".to_owned());
        }
        let mut told = Self::default();
        for usage in &answer.usage {
            match usage.unit() {
                Unit::Bytes => told.bytes = Share::of(usage),
                Unit::Inodes => told.inodes = Share::of(usage),
                Unit::Unknown => {}
            }
        }
        told.condition = answer.volume_condition.filter(|_| with_condition).map(|condition| Condition {
            abnormal: condition.abnormal,
            message: condition.message.chars().take(WORDS_MAX).collect(),
        });
        Ok(told)
    }
}

impl Share {
    fn of(usage: &VolumeUsage) -> Self {
        let amount = |number: i64| u64::try_from(number).ok();
        Self { all: amount(usage.total), used: amount(usage.used), left: amount(usage.available) }
    }
}

#[cfg(test)]
mod tests {
    use protos::csi::v1::VolumeCondition;
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_drivers_amounts_are_taken_as_far_as_they_are_any() {
        let usage =
            |unit: Unit, total, used, available| VolumeUsage { unit: unit.into(), total, used, available };
        let condition = VolumeCondition { abnormal: true, message: "x".repeat(5000) };
        let answer = |usage| NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition.clone()) };
        let usages = vec![usage(Unit::Bytes, 10, 4, 6), usage(Unit::Unknown, 9, 9, 9)];
        let told = Amounts::of(answer(usages.clone()), false).unwrap();
        assert_eq!(told.bytes, Share { all: Some(10), used: Some(4), left: Some(6) });
        assert_eq!((told.inodes, told.condition), (Share::default(), None));
        let told = Amounts::of(answer(vec![usage(Unit::Inodes, 10, -4, 6)]), true).unwrap();
        assert_eq!(told.inodes, Share { all: Some(10), used: None, left: Some(6) });
        let condition = told.condition.unwrap();
        assert_eq!((condition.abnormal, condition.message.len()), (true, WORDS_MAX));
        assert!(Amounts::of(answer(Vec::new()), true).is_err());
    }

    #[test]
    fn only_volumes_that_others_keep_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let pod = pod(json!({ "containers": [], "volumes": [
            { "name": "scratch", "emptyDir": {} }, { "name": "share", "nfs": { "server": "s", "path": "/" } },
            { "name": "data", "persistentVolumeClaim": { "claimName": "c" } },
            { "name": "raw", "persistentVolumeClaim": { "claimName": "r" } },
            { "name": "later", "persistentVolumeClaim": { "claimName": "l" } }] }));
        let entry = |name: &str, device| Entry {
            name: name.to_owned(),
            volume: "pv".to_owned(),
            claim_uid: String::new(),
            path: dir.path().join("disks").join(name),
            read_only: false,
            device,
            csi: None,
        };
        let mut ledger = Ledger::default();
        ledger.put(entry("data", false));
        ledger.put(entry("raw", true));
        ledger.write(&directories.ledger()).unwrap();
        let asked = questions(&pod, &directories);
        let names: Vec<_> = asked.iter().map(|asked| (&*asked.volume, asked.claim.as_deref())).collect();
        assert_eq!(names, [("share", None), ("data", Some("c"))]);
        let Teller::FileSystem(paths) = &asked[1].teller else { panic!("{asked:?}") };
        assert!(file_system(paths).is_err(), "it was noted and is not there yet");
        fs::create_dir_all(dir.path().join("disks/data")).unwrap();
        let told = file_system(paths).unwrap();
        assert!(told.bytes.all > told.bytes.left && told.inodes.all > Some(0), "{told:?}");
    }
}
