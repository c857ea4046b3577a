//! Who has which CPUs, on disk, in the form that upstream's `cpu_manager_state` has: version 2 of it, which all of its
//! kubelets read. Source: `pkg/kubelet/cm/cpumanager/state/checkpoint.go`, `pkg/kubelet/checkpointmanager/checksum`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::book::State;

/// Larger ones are not the node's.
const MAX_BYTES: u64 = 16 << 20;

type Entries = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Checkpoint {
    #[serde(rename = "policyName")]
    policy: String,
    #[serde(rename = "defaultCpuSet", alias = "defaultCPUSet")]
    pool: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: Entries,
    checksum: u32,
}

impl Checkpoint {
    /// Upstream's sum: FNV-1a of what Go's `spew` prints of the structure.
    fn sum(&self) -> u32 {
        let mut text = format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string)map[",
            self.policy, self.pool
        );
        for (at, (uid, containers)) in self.entries.iter().enumerate() {
            let listed: Vec<String> =
                containers.iter().map(|(name, cpus)| format!("{name}:{cpus}")).collect();
            let space = if at == 0 { "" } else { " " };
            let _ = write!(text, "{space}{uid}:map[{}]", listed.join(" "));
        }
        text.push_str("] Checksum:(checksum.Checksum)0}");
        text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    /// A sum of 0 is none.
    fn check(&self, policy: &str) -> Result<(), String> {
        if self.checksum != 0 && self.checksum != self.sum() {
            return Err("checkpoint is corrupted".to_owned());
        }
        if self.policy != policy {
            return Err(format!(
                "configured policy {policy:?} differs from state checkpoint policy {:?}",
                self.policy
            ));
        }
        Ok(())
    }

    fn state(self) -> Result<State, String> {
        let pool = self.pool.parse().map_err(|error| format!("could not parse default cpu set: {error}"))?;
        let mut given = BTreeMap::new();
        for (uid, containers) in self.entries {
            let mut of_pod = BTreeMap::new();
            for (name, cpus) in containers {
                let told =
                    |error| format!("could not parse cpuset of container {name:?} in pod {uid:?}: {error}");
                of_pod.insert(name.clone(), cpus.parse().map_err(told)?);
            }
            given.insert(uid, of_pod);
        }
        Ok(State { pool, given })
    }
}

/// Reads what `policy` left; `None` where there is nothing. Blocks.
///
/// # Errors
/// If it is unreadable, damaged or of another policy, in words without a remedy.
pub(super) fn read(path: &Path, policy: &str) -> Result<Option<State>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let bytes = sys::files::read_bounded(file, MAX_BYTES).map_err(|error| error.to_string())?;
    let found: Checkpoint = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    found.check(policy)?;
    found.state().map(Some)
}

/// Writes it whole, and on disk. Blocks.
pub(super) fn write(path: &Path, policy: &str, state: &State) -> io::Result<()> {
    let texts = |containers: &BTreeMap<String, super::CpuSet>| {
        containers.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect()
    };
    let entries = state.given.iter().map(|(uid, containers)| (uid.clone(), texts(containers))).collect();
    let mut checkpoint =
        Checkpoint { policy: policy.to_owned(), pool: state.pool.to_string(), entries, checksum: 0 };
    checkpoint.checksum = checkpoint.sum();
    sys::files::write_durable(path, &serde_json::to_vec(&checkpoint)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of upstream's `TestCheckpointStateRestore`, with the sums that they have there.
    #[test]
    fn upstreams_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cpu_manager_state");
        let found = |text: &str| {
            fs::write(&path, text).unwrap();
            read(&path, "none")
        };
        let empty = r#"{"policyName": "none", "defaultCPUSet": "4-6", "entries": {}, "checksum": 354655845}"#;
        let state = found(empty).unwrap().unwrap();
        assert_eq!((state.pool.to_string().as_str(), state.given.len()), ("4-6", 0));
        let entries = r#""entries": {"pod": {"container1": "4-6", "container2": "1-3"}}"#;
        let text =
            format!(r#"{{"policyName": "none", "defaultCPUSet": "1-3", {entries}, "checksum": 3610638499}}"#);
        assert_eq!(found(&text).unwrap().unwrap().given["pod"]["container1"].to_string(), "4-6");
        for (text, told) in [
            (text.replace("4-6", "4-7"), "checkpoint is corrupted"),
            (text.replace("3610638499", "0").replace("4-6", "x"), "could not parse cpuset of container"),
            (empty.replace("354655845", "0").replace("4-6", "6-4"), "could not parse default cpu set"),
            ("{".to_owned(), "EOF while parsing"),
            (
                r#"{"policyName": "static", "defaultCpuSet": "0-1", "checksum": 0}"#.to_owned(),
                "configured policy \"none\" differs from state checkpoint policy \"static\"",
            ),
        ] {
            let error = found(&text).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
    }

    #[test]
    fn what_was_given_is_known_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cpu_manager_state");
        assert_eq!(read(&path, "static"), Ok(None));
        let of_pod: BTreeMap<_, _> = [("main".to_owned(), "1".parse().unwrap())].into();
        let state = State { pool: "0".parse().unwrap(), given: [("u1".to_owned(), of_pod)].into() };
        write(&path, "static", &state).unwrap();
        assert_eq!(read(&path, "static"), Ok(Some(state)));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(
            r#"{"policyName":"static","defaultCpuSet":"0","entries":{"u1":{"main":"1"}},"checksum":"#
        ));
    }
}
