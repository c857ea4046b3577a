//! What is to become of claims and volumes that are directories of a node. Pure. The rules are those of external
//! provisioners (`sig-storage-lib-external-provisioner`, KEP-2644), the limits those of rancher's local-path-provisioner.

use std::collections::BTreeMap;

use api::names::DEFAULT_STORAGE_CLASS;
use api::{Object, ObjectMeta};
use reconcile::local_path::{PROVISIONER, REMOVAL, REMOVE, REMOVED, ROOT, directory, removal};
use serde::Deserialize;
use serde_json::{Value, json};

/// The class of claims that name none.
pub(super) const CLASS: &str = "local-path";
/// Keeps a volume until its directory is gone.
pub(super) const FINALIZER: &str = "skiff.dev/local-path";
/// Annotation of a volume: the node that has its directory.
pub(super) const NODE: &str = "skiff.dev/local-path-node";
/// Annotation of the namespace `kube-system`: the class was made once. Who deletes it means it.
pub(super) const CLASS_MADE: &str = "skiff.dev/local-path-class";
/// Annotation of a claim: the node that the scheduler chose.
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const ASKED: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Removals that one node is asked for at once: a Node's annotations are bounded.
pub(super) const REMOVALS_MAX: usize = 200;

/// A projection of `core/v1.PersistentVolumeClaim`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Claim {
    pub(super) metadata: ObjectMeta,
    spec: ClaimSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    volume_name: String,
    volume_mode: Option<String>,
    access_modes: Vec<String>,
    pub(super) storage_class_name: Option<String>,
    selector: Option<Value>,
    data_source: Option<Value>,
    data_source_ref: Option<Value>,
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    requests: BTreeMap<String, Value>,
}

/// A projection of `storage/v1.StorageClass`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Class {
    metadata: ObjectMeta,
    provisioner: String,
    reclaim_policy: Option<String>,
}

/// A projection of `core/v1.PersistentVolume`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) metadata: ObjectMeta,
    spec: VolumeSpec,
    status: VolumeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    persistent_volume_reclaim_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VolumeStatus {
    phase: String,
}

impl Claim {
    /// The name of its class.
    pub(super) fn class(&self) -> &str {
        self.spec.storage_class_name.as_deref().unwrap_or_default()
    }

    /// The node that was chosen for it.
    pub(super) fn node(&self) -> Option<&str> {
        self.metadata.annotations.get(SELECTED_NODE).map(String::as_str)
    }
}

impl Volume {
    /// The node that has its directory.
    pub(super) fn node(&self) -> &str {
        self.metadata.annotations.get(NODE).map_or("", String::as_str)
    }
}

/// What is to become of a claim.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// Nothing of this controller's.
    Leave,
    /// Its volume is made, by this body.
    Make(Value),
    /// The node is gone, or has no such volumes: the scheduler is to choose anew.
    Reschedule(String),
    /// It cannot be had, and why.
    Refuse(String),
}

/// Decides about a claim; `node` is the one that was chosen for it, where it is there.
pub(super) fn plan_claim(claim: &Claim, class: Option<&Class>, node: Option<&ObjectMeta>) -> ClaimStep {
    let asked =
        ASKED.iter().any(|key| claim.metadata.annotations.get(*key).is_some_and(|name| name == PROVISIONER));
    if !asked || claim.metadata.is_terminating() || !claim.spec.volume_name.is_empty() {
        return ClaimStep::Leave;
    }
    let Some(class) = class.filter(|class| class.provisioner == PROVISIONER) else { return ClaimStep::Leave };
    if let Some(why) = unfit(claim) {
        return ClaimStep::Refuse(why);
    }
    let Some(name) = claim.node() else {
        return ClaimStep::Refuse(format!(
            "a directory needs to know its node before it is made: give StorageClass {:?} volumeBindingMode WaitForFirstConsumer",
            class.metadata.name
        ));
    };
    let Some(node) = node else { return ClaimStep::Reschedule(format!("node {name:?} is gone")) };
    let (Some(root), Some(hostname)) = (node.annotations.get(ROOT), node.labels.get(HOSTNAME)) else {
        return ClaimStep::Reschedule(format!(
            "node {name:?} offers no directories for volumes: it is no node of Skiff's, or an older one; upgrade it"
        ));
    };
    ClaimStep::Make(body(claim, class, (name, hostname, root)))
}

/// Why a directory cannot be what a claim asks for.
fn unfit(claim: &Claim) -> Option<String> {
    let spec = &claim.spec;
    if spec.volume_mode.as_deref().is_some_and(|mode| mode != "Filesystem") {
        return Some("volumes of this class are directories: ask for volumeMode Filesystem".into());
    }
    if let Some(mode) = spec.access_modes.iter().find(|mode| !mode.starts_with("ReadWriteOnce")) {
        return Some(format!(
            "volumes of this class are directories of one node, which {mode} is not for: ask for ReadWriteOnce or ReadWriteOncePod"
        ));
    }
    if spec.selector.is_some() {
        return Some("claim.spec.selector is not supported by this class: leave it out".into());
    }
    let copied = spec.data_source.is_some() || spec.data_source_ref.is_some();
    copied
        .then(|| "volumes of this class begin empty: leave out spec.dataSource and spec.dataSourceRef".into())
}

/// The volume for a claim, on a node with this name, host name and root.
fn body(claim: &Claim, class: &Class, (node, hostname, root): (&str, &str, &str)) -> Value {
    let meta = &claim.metadata;
    let name = format!("pvc-{}", meta.uid);
    let path = format!("{root}/{}", directory(&name, &meta.namespace, &meta.name));
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "finalizers": [FINALIZER],
            "annotations": { PROVISIONED_BY: PROVISIONER, NODE: node },
        },
        "spec": {
            "capacity": { "storage": claim.spec.resources.requests.get("storage") },
            "accessModes": claim.spec.access_modes,
            "volumeMode": "Filesystem",
            "claimRef": { "kind": "PersistentVolumeClaim", "apiVersion": "v1",
                "namespace": meta.namespace, "name": meta.name, "uid": meta.uid },
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "local": { "path": path },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": HOSTNAME, "operator": "In", "values": [hostname] },
            ] }] } },
        },
    })
}

/// What is to become of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// Nothing now.
    Leave,
    /// Nobody has it any more: it is deleted.
    Delete,
    /// Its node is asked to remove the directory.
    Ask,
    /// It may go.
    LetGo,
}

/// Decides about a volume; `node` is the one that has its directory, where it is there.
pub(super) fn plan_volume(volume: &Volume, node: Option<&ObjectMeta>) -> VolumeStep {
    let meta = &volume.metadata;
    let ours = meta.annotations.get(PROVISIONED_BY).is_some_and(|maker| maker == PROVISIONER);
    if !ours || !meta.finalizers.iter().any(|held| held == FINALIZER) {
        return VolumeStep::Leave;
    }
    let to_delete = volume.spec.persistent_volume_reclaim_policy == "Delete";
    if !meta.is_terminating() {
        let unused = volume.status.phase == "Released";
        return if unused && to_delete { VolumeStep::Delete } else { VolumeStep::Leave };
    }
    // Others have it still: its claim, above all.
    if meta.finalizers.len() > 1 {
        return VolumeStep::Leave;
    }
    if !to_delete {
        return VolumeStep::LetGo;
    }
    // What lay on a node that is gone is nobody's any more.
    let Some(node) = node else { return VolumeStep::LetGo };
    match node.annotations.get(&removal(&meta.name)).map(String::as_str) {
        Some(REMOVED) => VolumeStep::LetGo,
        Some(_) => VolumeStep::Leave,
        None if removals(node).count() >= REMOVALS_MAX => VolumeStep::Leave,
        None => VolumeStep::Ask,
    }
}

/// The volumes about whose removal a Node's annotations tell something.
pub(super) fn removals(node: &ObjectMeta) -> impl Iterator<Item = &str> {
    node.annotations.keys().filter_map(|key| key.strip_prefix(REMOVAL))
}

/// The volumes of whose removal a Node says something else than before.
pub(super) fn changed_removals<'a>(
    old: &'a BTreeMap<String, String>,
    new: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = &'a str> {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let other = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| key);
    gone.chain(other).filter_map(|key| key.strip_prefix(REMOVAL))
}

/// The patch by which a node is asked.
pub(super) fn asking(volume: &str) -> Value {
    json!({ "metadata": { "annotations": { removal(volume): REMOVE } } })
}

/// The class, which is the default one where there is none yet.
pub(super) fn class(default: bool) -> Value {
    let annotations = if default { json!({ DEFAULT_STORAGE_CLASS[0]: "true" }) } else { json!({}) };
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": { "name": CLASS, "annotations": annotations },
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// Whether a class is the one of claims that name none.
pub(super) fn is_default(class: &Object) -> bool {
    DEFAULT_STORAGE_CLASS.iter().any(|name| class.annotation(name).is_some_and(|value| value == "true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Value);

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn claim(change: impl Fn(&mut Value)) -> Claim {
        let mut value = json!({
            "metadata": { "name": "c", "namespace": "ns", "uid": "u",
                "annotations": { ASKED[0]: PROVISIONER, SELECTED_NODE: "n1" } },
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
                "resources": { "requests": { "storage": "1Gi" } } },
        });
        change(&mut value);
        read(value)
    }

    fn node() -> ObjectMeta {
        read(
            json!({ "name": "n1", "annotations": { ROOT: "/data/local-path" }, "labels": { HOSTNAME: "host-1" } }),
        )
    }

    fn step(claim: &Claim) -> ClaimStep {
        plan_claim(claim, Some(&read(class(true))), Some(&node()))
    }

    #[test]
    fn a_class_is_the_default_by_either_name() {
        let class = |annotations: Value| {
            let body = json!({ "metadata": { "name": "c", "annotations": annotations } });
            Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap()
        };
        assert!(DEFAULT_STORAGE_CLASS.iter().all(|name| is_default(&class(json!({ *name: "true" })))));
        assert!(!is_default(&class(json!({ DEFAULT_STORAGE_CLASS[0]: "false" }))));
    }

    #[test]
    fn a_claim_gets_a_directory_on_the_node_that_was_chosen() {
        let ClaimStep::Make(made) = step(&claim(|_| {})) else { panic!("not made") };
        assert_eq!(made["metadata"]["name"], "pvc-u");
        assert_eq!(made["metadata"]["annotations"], json!({ PROVISIONED_BY: PROVISIONER, NODE: "n1" }));
        let spec = &made["spec"];
        assert_eq!(spec["local"]["path"], "/data/local-path/pvc-u_ns_c");
        assert_eq!(spec["capacity"]["storage"], "1Gi");
        assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
        assert_eq!(spec["claimRef"]["uid"], "u");
        let term = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        assert_eq!(*term, json!({ "key": HOSTNAME, "operator": "In", "values": ["host-1"] }));
    }

    #[test]
    fn what_is_not_ours_or_not_due_is_left() {
        let left: [Change; 3] = [
            |claim| claim["metadata"]["annotations"][ASKED[0]] = "other.example".into(),
            |claim| claim["spec"]["volumeName"] = "pv".into(),
            |claim| claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(),
        ];
        for change in left {
            assert_eq!(step(&claim(change)), ClaimStep::Leave);
        }
        assert_eq!(plan_claim(&claim(|_| {}), None, Some(&node())), ClaimStep::Leave);
        let gone = plan_claim(&claim(|_| {}), Some(&read(class(true))), None);
        assert_eq!(gone, ClaimStep::Reschedule("node \"n1\" is gone".into()));
    }

    #[test]
    fn what_a_directory_cannot_be_is_refused_with_a_remedy() {
        let refused: [(Change, &str); 5] = [
            (|claim| claim["spec"]["volumeMode"] = "Block".into(), "volumeMode Filesystem"),
            (|claim| claim["spec"]["accessModes"] = json!(["ReadWriteMany"]), "ReadWriteOncePod"),
            (|claim| claim["spec"]["selector"] = json!({}), "leave it out"),
            (|claim| claim["spec"]["dataSource"] = json!({ "kind": "VolumeSnapshot" }), "begin empty"),
            (
                |claim| {
                    claim["metadata"]["annotations"].as_object_mut().unwrap().remove(SELECTED_NODE);
                },
                "WaitForFirstConsumer",
            ),
        ];
        for (change, remedy) in refused {
            let ClaimStep::Refuse(why) = step(&claim(change)) else { panic!("{remedy}") };
            assert!(why.contains(remedy), "{why}");
        }
        let mut other = node();
        other.annotations.clear();
        let step = plan_claim(&claim(|_| {}), Some(&read(class(true))), Some(&other));
        assert!(matches!(step, ClaimStep::Reschedule(why) if why.contains("offers no directories")));
    }

    #[test]
    fn only_the_volumes_of_which_a_node_says_something_else_are_looked_at() {
        let said = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(volume, value)| (removal(volume), (*value).to_owned())).collect()
        };
        let (old, new) =
            (said(&[("a", REMOVE), ("b", REMOVE), ("c", REMOVED)]), said(&[("a", REMOVED), ("b", REMOVE)]));
        let mut changed: Vec<&str> = changed_removals(&old, &new).collect();
        changed.sort_unstable();
        assert_eq!(changed, ["a", "c"]);
    }

    fn volume(phase: &str, policy: &str, going: bool, finalizers: &[&str]) -> Volume {
        let mut value = json!({
            "metadata": { "name": "v", "finalizers": finalizers, "annotations": { PROVISIONED_BY: PROVISIONER, NODE: "n1" } },
            "spec": { "persistentVolumeReclaimPolicy": policy }, "status": { "phase": phase },
        });
        if going {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        read(value)
    }

    #[test]
    fn a_directory_goes_before_its_volume_and_only_when_nobody_has_it() {
        let protected = [FINALIZER, "kubernetes.io/pv-protection"];
        let told = |value: &str| {
            let mut node = node();
            node.annotations.insert(removal("v"), value.into());
            node
        };
        let cases = [
            (volume("Bound", "Delete", false, &protected), Some(node()), VolumeStep::Leave),
            (volume("Released", "Retain", false, &protected), Some(node()), VolumeStep::Leave),
            (volume("Released", "Delete", false, &protected), Some(node()), VolumeStep::Delete),
            (volume("Bound", "Delete", true, &protected), Some(node()), VolumeStep::Leave),
            (volume("Released", "Delete", true, &[FINALIZER]), Some(node()), VolumeStep::Ask),
            (volume("Released", "Delete", true, &[FINALIZER]), Some(told(REMOVE)), VolumeStep::Leave),
            (volume("Released", "Delete", true, &[FINALIZER]), Some(told(REMOVED)), VolumeStep::LetGo),
            // Its data stay where they are.
            (volume("Released", "Retain", true, &[FINALIZER]), Some(node()), VolumeStep::LetGo),
            (volume("Released", "Delete", true, &[FINALIZER]), None, VolumeStep::LetGo),
            (volume("Released", "Delete", true, &[]), Some(node()), VolumeStep::Leave),
        ];
        for (volume, node, wanted) in cases {
            assert_eq!(plan_volume(&volume, node.as_ref()), wanted, "{volume:?} {node:?}");
        }
    }
}
