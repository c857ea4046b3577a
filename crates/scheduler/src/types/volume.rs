//! Volumes of pods, as far as placing them goes.

use std::borrow::Cow;

use serde::Deserialize;

use super::Pod;

/// A volume that bears on where its pod can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodVolume {
    /// A claim, by its name.
    Claim(String),
    /// A claim of the pod's own, by the name of the volume.
    Ephemeral(String),
    /// A disk that the pod names itself.
    Disk(Disk),
}

/// A disk that few can have at once. Shapes: `core/v1.VolumeSource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// `gcePersistentDisk`: its name, and whether it is only read.
    Gce(String, bool),
    /// `awsElasticBlockStore`: its id.
    Aws(String),
    /// `iscsi`: its qualified name, and whether it is only read.
    Iscsi(String, bool),
    /// `rbd`: monitors, pool and image, and whether it is only read.
    Rbd(Vec<String>, String, String, bool),
}

impl Disk {
    /// Whether both cannot be had on one node. Source: `volumerestrictions.isVolumeConflict`.
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Gce(name, reads), Self::Gce(held, held_reads))
            | (Self::Iscsi(name, reads), Self::Iscsi(held, held_reads)) => {
                name == held && !(*reads && *held_reads)
            }
            (Self::Aws(id), Self::Aws(held)) => id == held,
            (Self::Rbd(monitors, pool, image, reads), Self::Rbd(held, held_pool, held_image, held_reads)) => {
                monitors.iter().any(|monitor| held.contains(monitor))
                    && pool == held_pool
                    && image == held_image
                    && !(*reads && *held_reads)
            }
            _ => false,
        }
    }
}

/// `core/v1.Volume`, the parts that are kept.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Source {
    name: String,
    pub(super) image: Option<Image>,
    persistent_volume_claim: Option<ClaimSource>,
    ephemeral: Option<serde::de::IgnoredAny>,
    gce_persistent_disk: Option<DiskSource>,
    aws_elastic_block_store: Option<DiskSource>,
    iscsi: Option<DiskSource>,
    rbd: Option<RbdSource>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    pub(super) reference: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSource {
    claim_name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DiskSource {
    #[serde(alias = "pdName", alias = "volumeID", alias = "iqn")]
    id: String,
    read_only: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RbdSource {
    monitors: Vec<String>,
    pool: String,
    image: String,
    read_only: bool,
}

impl Source {
    /// What is kept of it, if anything.
    pub(super) fn read(self) -> Option<PodVolume> {
        if let Some(claim) = self.persistent_volume_claim {
            return Some(PodVolume::Claim(claim.claim_name));
        }
        if self.ephemeral.is_some() {
            return Some(PodVolume::Ephemeral(self.name));
        }
        let disk = if let Some(disk) = self.gce_persistent_disk {
            Disk::Gce(disk.id, disk.read_only)
        } else if let Some(disk) = self.aws_elastic_block_store {
            Disk::Aws(disk.id)
        } else if let Some(disk) = self.iscsi {
            Disk::Iscsi(disk.id, disk.read_only)
        } else {
            let rbd = self.rbd?;
            Disk::Rbd(rbd.monitors, rbd.pool, rbd.image, rbd.read_only)
        };
        Some(PodVolume::Disk(disk))
    }
}

/// A claim as a pod uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used<'a> {
    /// Its name, in the pod's namespace.
    pub name: Cow<'a, str>,
    /// Whether it is the pod's own, made for it.
    pub own: bool,
}

impl Pod {
    /// The claims that it uses. Source: `ephemeral.VolumeClaimName`.
    pub fn claims(&self) -> impl Iterator<Item = Used<'_>> {
        self.spec.volumes.iter().filter_map(|volume| match volume {
            PodVolume::Claim(name) => Some(Used { name: Cow::Borrowed(name), own: false }),
            PodVolume::Ephemeral(volume) => {
                Some(Used { name: Cow::Owned(format!("{}-{volume}", self.key.name)), own: true })
            }
            PodVolume::Disk(_) => None,
        })
    }

    /// Whether it uses this claim of its namespace.
    pub fn uses(&self, claim: &api::Key) -> bool {
        claim.namespace == self.key.namespace && self.claims().any(|used| used.name == claim.name)
    }

    /// The disks that it names itself.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.spec.volumes.iter().filter_map(|volume| match volume {
            PodVolume::Disk(disk) => Some(disk),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::types::Spec;

    fn read(value: serde_json::Value) -> Option<PodVolume> {
        serde_json::from_value::<Source>(value).unwrap().read()
    }

    #[test]
    fn claims_and_disks_are_kept_and_nothing_else() {
        let claim = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "c", "readOnly": true } });
        let own = json!({ "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
        let volumes: Vec<_> = [read(claim), read(own), read(json!({ "name": "e", "emptyDir": {} }))]
            .into_iter()
            .flatten()
            .collect();
        let spec = Arc::new(Spec { volumes, ..Spec::default() });
        let pod = Pod { key: api::Key::new("ns", "web"), spec, ..Pod::default() };
        let names: Vec<_> = pod.claims().map(|used| (used.name.into_owned(), used.own)).collect();
        assert_eq!(names, [("c".to_owned(), false), ("web-scratch".to_owned(), true)]);
        assert!(pod.uses(&api::Key::new("ns", "c")) && !pod.uses(&api::Key::new("other", "c")));
    }

    #[test]
    fn disks_conflict_unless_all_only_read() {
        let disk = |value: serde_json::Value| match read(value) {
            Some(PodVolume::Disk(disk)) => disk,
            other => panic!("{other:?}"),
        };
        let gce = |name: &str, reads: bool| {
            disk(json!({ "gcePersistentDisk": { "pdName": name, "readOnly": reads } }))
        };
        let iscsi = |name: &str, reads: bool| disk(json!({ "iscsi": { "iqn": name, "readOnly": reads } }));
        let aws = |id: &str| disk(json!({ "awsElasticBlockStore": { "volumeID": id, "readOnly": true } }));
        let rbd = |monitors: [&str; 2], image: &str, reads: bool| {
            disk(json!({ "rbd": { "monitors": monitors, "pool": "p", "image": image, "readOnly": reads } }))
        };
        for (one, other, conflict) in [
            (gce("a", false), gce("a", true), true),
            (gce("a", true), gce("a", true), false),
            (gce("a", false), gce("b", false), false),
            (aws("a"), aws("a"), true),
            (aws("a"), gce("a", false), false),
            (iscsi("a", true), iscsi("a", false), true),
            (iscsi("a", true), iscsi("a", true), false),
            (rbd(["m", "n"], "i", false), rbd(["n", "o"], "i", true), true),
            (rbd(["m", "n"], "i", false), rbd(["o", "p"], "i", false), false),
            (rbd(["m", "n"], "i", false), rbd(["m", "n"], "j", false), false),
        ] {
            assert_eq!(one.conflicts(&other), conflict, "{one:?} {other:?}");
        }
    }
}
