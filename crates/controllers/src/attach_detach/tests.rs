//! Plans over made-up volumes and nodes, names, and the index of what is wanted and there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::{
    ATTACH_TIMEOUT, Detach, Part, Side, Step, UNMOUNT_TIMEOUT, elsewhere, plan_node, plan_volume, said_by,
};
use super::source::{Handle, handle_of, inline, is_own_name, is_shared, modes_of};
use super::types::{Failure, InTreeSources, Node, Pod, Volume};
use super::world::{Held, Item, Need, PodNeeds, Source, Told, Want, World};

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn handle(name: &str) -> Handle {
    Handle { driver: "d.example.com".into(), handle: name.into() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

#[test]
fn attachments_and_volumes_are_named_as_upstream_names_them() {
    let volume = handle("vol-1");
    let name = volume.attachment_on("n1");
    assert_eq!(name, "csi-30f6d22005837af41fef7d63fe7b3970943d7d3f3347148ba9b313bbaab0f238");
    assert!(is_own_name(&name) && !is_own_name("csi-1") && !is_own_name("va-1"));
    assert_eq!(volume.unique_name(), "kubernetes.io/csi/d.example.com^vol-1");
    assert_eq!(Handle::of_unique_name(&volume.unique_name()), Some(volume));
    assert_eq!(Handle::of_unique_name("kubernetes.io/nfs/x"), None);
}

#[test]
fn volumes_of_old_plugins_are_their_drivers() {
    let zones = |zones: &str| json!({ "name": "pv", "labels": { "topology.kubernetes.io/zone": zones } });
    let plain = || json!({ "name": "pv" });
    let file = json!({ "secretName": "azure-storage-account-st-secret", "shareName": "share" });
    let gce = || json!({ "gcePersistentDisk": { "pdName": "d" } });
    let cases = [
        (plain(), json!({ "csi": { "driver": "x.y", "volumeHandle": "h" } }), "x.y h"),
        (plain(), json!({ "awsElasticBlockStore": { "volumeID": "vol-1" } }), "ebs.csi.aws.com vol-1"),
        (
            plain(),
            json!({ "awsElasticBlockStore": { "volumeID": "aws://z/vol-1" } }),
            "ebs.csi.aws.com vol-1",
        ),
        (plain(), json!({ "awsElasticBlockStore": { "volumeID": "aws:///vol-1" } }), "ebs.csi.aws.com vol-1"),
        (plain(), json!({ "awsElasticBlockStore": { "volumeID": "aws://z/disk" } }), ""),
        (plain(), gce(), "pd.csi.storage.gke.io projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d"),
        (zones("a-b1-c"), gce(), "pd.csi.storage.gke.io projects/UNSPECIFIED/zones/a-b1-c/disks/d"),
        (zones("a-b1-c__a-b1-d"), gce(), "pd.csi.storage.gke.io projects/UNSPECIFIED/regions/a-b1/disks/d"),
        (zones("a-b1-c__a-b2-d"), gce(), ""),
        (plain(), json!({ "azureDisk": { "diskURI": "/u", "diskName": "n" } }), "disk.csi.azure.com /u"),
        (plain(), json!({ "azureFile": file }), ""),
        (
            plain(),
            json!({ "azureFile": file, "claimRef": { "namespace": "ns" } }),
            "file.csi.azure.com #st#share#pv#ns",
        ),
        (plain(), json!({ "vsphereVolume": { "volumePath": "p" } }), "csi.vsphere.vmware.com p"),
        (plain(), json!({ "portworxVolume": { "volumeID": "p" } }), "pxd.portworx.com p"),
        (plain(), json!({ "cinder": { "volumeID": "c" } }), "cinder.csi.openstack.org c"),
        (plain(), json!({ "hostPath": { "path": "/" } }), ""),
    ];
    for (metadata, spec, wanted) in cases {
        let volume: Volume = read(json!({ "metadata": metadata, "spec": spec }));
        let found = handle_of(&volume).map(|held| format!("{} {}", held.driver, held.handle));
        assert_eq!(found.unwrap_or_default(), wanted, "{spec}");
    }
}

#[test]
fn a_pod_s_own_volume_stands_for_a_spec() {
    let made = |source: Value| inline(&read::<InTreeSources>(source), "data", "ns");
    let aws =
        made(json!({ "awsElasticBlockStore": { "volumeID": "vol-1", "fsType": "ext4", "readOnly": true } }));
    let aws = aws.unwrap();
    assert_eq!(aws.name, "ebs.csi.aws.com-vol-1");
    assert_eq!(
        aws.spec,
        json!({ "accessModes": ["ReadWriteOnce"], "csi": { "driver": "ebs.csi.aws.com", "volumeHandle": "vol-1",
            "fsType": "ext4", "readOnly": true, "volumeAttributes": { "partition": "0" } } })
    );
    let file = made(json!({ "azureFile": { "secretName": "s", "shareName": "share" } })).unwrap();
    assert_eq!(file.handle.handle, "#s#share#data#ns");
    assert_eq!(file.spec["csi"]["nodeStageSecretRef"], json!({ "name": "s", "namespace": "ns" }));
    assert!(is_shared(&file.modes) && !is_shared(&aws.modes));
    assert_eq!(made(json!({ "csi": { "driver": "x" } })), None);
}

#[test]
fn modes_say_whether_several_nodes_may_have_a_volume() {
    let shared = |source: &str, modes: &[&str]| {
        let volume: Volume = read(json!({ "spec": { source: { "pdName": "d" }, "accessModes": modes } }));
        is_shared(&modes_of(&volume))
    };
    assert!(shared("cinder", &[]) && shared("cinder", &["ReadWriteMany"]));
    assert!(shared("cinder", &["ReadWriteOnce", "ReadOnlyMany"]));
    assert!(!shared("cinder", &["ReadWriteOnce"]) && !shared("cinder", &["ReadWriteOncePod"]));
    // Its plugin never looked.
    assert!(!shared("gcePersistentDisk", &["ReadWriteMany"]));
    assert!(!shared("gcePersistentDisk", &["ReadWriteOnce", "ReadOnlyMany"]));
    assert!(shared("gcePersistentDisk", &["ReadOnlyMany"]));
}

#[test]
fn a_pod_needs_nothing_once_none_of_its_containers_runs() {
    let terminated = |deleted: bool, phase: &str, state: Value| {
        let pod: Pod = read(json!({
            "metadata": { "deletionTimestamp": deleted.then_some("2024-01-01T00:00:00Z") },
            "status": { "phase": phase, "containerStatuses": [{ "state": state }] } }));
        pod.is_terminated()
    };
    let runs = || json!({ "running": {} });
    assert!(terminated(false, "Failed", runs()) && terminated(false, "Succeeded", runs()));
    assert!(!terminated(false, "Running", json!({ "terminated": {} })));
    assert!(!terminated(true, "Running", runs()));
    assert!(terminated(true, "Running", json!({ "terminated": {} })));
    assert!(terminated(true, "Pending", json!({ "waiting": {} })));
}

fn need(node: &str, shared: bool) -> Arc<Need> {
    let volume = handle("vol-1");
    let (id, source) = (volume.attachment_on(node), Source::Volume("pv".into()));
    Arc::new(Need { id, volume, node: node.into(), source, name: "pv".into(), shared })
}

fn want(node: &str, shared: bool) -> Want {
    let pods = [(Key::new("ns", format!("on-{node}")), "u".to_owned())].into();
    Want { need: need(node, shared), pods, asked: None, told: None }
}

fn held(node: &str) -> Held {
    Held { uid: "h".into(), node: node.into(), volume: Some(handle("vol-1")), ..Held::default() }
}

fn attached(node: &str) -> Held {
    Held { attached: true, ..held(node) }
}

fn failed(node: &str, message: &str) -> Held {
    let failure = Failure { time: "t".into(), message: message.into() };
    Held { failure: Some(failure), ..held(node) }
}

fn side<'a>(node: &'a str, want: Option<&'a Want>, held: Option<&'a Held>) -> Side<'a> {
    Side { node, want, held, managed: true, kept: false }
}

fn steps(sides: &[Side<'_>]) -> Vec<(String, Step)> {
    plan_volume(sides, at(0)).steps
}

#[test]
fn what_is_needed_is_asked_for_once_and_its_end_is_told() {
    let fresh = want("n1", false);
    let one = |step: Step| vec![("n1".to_owned(), step)];
    assert_eq!(steps(&[side("n1", Some(&fresh), None)]), one(Step::Create));
    let unmanaged = Side { managed: false, ..side("n1", Some(&fresh), None) };
    assert_eq!(steps(&[unmanaged]), []);
    // One that was asked for before this process began.
    let plan = plan_volume(&[side("n1", Some(&fresh), Some(&held("n1")))], at(0));
    assert_eq!((plan.steps, plan.wait), (one(Step::Pending), Some(ATTACH_TIMEOUT)));
    assert_eq!(steps(&[side("n1", Some(&fresh), Some(&attached("n1")))]), []);
    let asked = Want { asked: Some(at(-20)), ..fresh.clone() };
    let plan = plan_volume(&[side("n1", Some(&asked), Some(&held("n1")))], at(0));
    assert_eq!((plan.steps, plan.wait), (vec![], Some(Duration::from_secs(100))));
    assert_eq!(steps(&[side("n1", Some(&asked), Some(&attached("n1")))]), one(Step::Attached));
    let late = Want { asked: Some(at(-120)), ..fresh.clone() };
    let plan = plan_volume(&[side("n1", Some(&late), Some(&held("n1")))], at(0));
    assert_eq!((plan.steps, plan.wait), (one(Step::TimedOut), Some(ATTACH_TIMEOUT)));
}

#[test]
fn each_failure_is_told_once() {
    let fresh = want("n1", false);
    let broken = failed("n1", "no disk");
    let [(_, Step::Failed(told, why))] = &steps(&[side("n1", Some(&fresh), Some(&broken))])[..] else {
        panic!("a failure is told");
    };
    assert_eq!(why, "no disk");
    let knows = Want { told: Some(told.clone()), ..fresh.clone() };
    assert_eq!(steps(&[side("n1", Some(&knows), Some(&broken))]), []);
    let again = failed("n1", "still no disk");
    assert_eq!(steps(&[side("n1", Some(&knows), Some(&again))]).len(), 1);
    // Somebody deletes it: that is a failure, but not where it was this controller.
    let ending = Held { terminating: true, ..attached("n1") };
    let told = steps(&[side("n1", Some(&fresh), Some(&ending))]);
    assert!(matches!(&told[..], [(_, Step::Failed(_, why))] if why == "volume attachment is being deleted"));
    let released = Held { released: true, ..ending };
    assert_eq!(steps(&[side("n1", Some(&fresh), Some(&released))]), []);
}

#[test]
fn a_volume_of_one_node_is_not_asked_for_on_another() {
    let (here, there) = (want("n1", false), want("n2", false));
    let asked = Want { asked: Some(at(-1)), ..here.clone() };
    // `kept`: whether the node uses it still.
    let second = |want: Option<&Want>, first: Option<&Held>, kept: bool| {
        let one = Side { kept, ..side("n1", want, first) };
        steps(&[one, side("n2", Some(&there), None)])
    };
    let two = |step: Step| vec![("n2".to_owned(), step)];
    let others = |pods: &[Key]| two(Step::Elsewhere(pods.to_vec()));
    let user = Key::new("ns", "on-n1");
    assert_eq!(second(Some(&here), Some(&attached("n1")), false), others(&[user]));
    assert_eq!(second(None, Some(&attached("n1")), true), others(&[]));
    // It is about to be detached, or attached: who waits need not know.
    assert_eq!(second(None, Some(&attached("n1")), false), []);
    assert_eq!(second(None, Some(&held("n1")), false), []);
    assert_eq!(second(Some(&asked), Some(&held("n1")), false), []);
    assert_eq!(second(Some(&asked), None, false), [("n1".to_owned(), Step::Create)]);
    let ending = Held { terminating: true, ..attached("n1") };
    assert_eq!(second(None, Some(&ending), true), []);
    // Where it failed nobody has it.
    let failing = failed("n1", "x");
    let told = failing.failure.clone().map(Told::Failed);
    let knows = Want { told, ..asked.clone() };
    assert_eq!(second(Some(&knows), Some(&failing), false), two(Step::Create));
    // Both at once: only one is asked for.
    assert_eq!(second(Some(&here), None, false), [("n1".to_owned(), Step::Create)]);
    // What was told is not told again.
    let knows = Want { told: Some(Told::Elsewhere), ..there.clone() };
    let first = attached("n1");
    assert_eq!(steps(&[side("n1", Some(&here), Some(&first)), side("n2", Some(&knows), None)]), []);
    // Several nodes may have what is shared.
    let shared = want("n2", true);
    let both = [side("n1", Some(&here), Some(&first)), side("n2", Some(&shared), None)];
    assert_eq!(steps(&both), two(Step::Create));
}

#[test]
fn users_are_told_of_pods_in_their_namespace_alone() {
    let pod = Key::new("a", "p");
    let told = |others: &[(&str, &str)]| {
        let others: Vec<Key> = others.iter().map(|(namespace, name)| Key::new(*namespace, *name)).collect();
        elsewhere("pv", &pod, &others)
    };
    let begin = "Multi-Attach error for volume \"pv\" Volume is already";
    assert_eq!(
        told(&[]),
        format!("{begin} exclusively attached to one node and can't be attached to another")
    );
    assert_eq!(told(&[("a", "y"), ("a", "x")]), format!("{begin} used by pod(s) x, y"));
    assert_eq!(
        told(&[("a", "x"), ("b", "z")]),
        format!("{begin} used by pod(s) x and 1 pod(s) in different namespaces")
    );
    assert_eq!(told(&[("b", "z")]), format!("{begin} used by 1 pod(s) in different namespaces"));
}

fn node(ready: bool, taints: Value, attached: &[&str], in_use: &[&str]) -> Node {
    let attached: Vec<Value> =
        attached.iter().map(|name| json!({ "name": name, "devicePath": "" })).collect();
    read(json!({
        "metadata": { "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" } },
        "spec": { "taints": taints },
        "status": {
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "Unknown" } }],
            "volumesAttached": attached, "volumesInUse": in_use,
        },
    }))
}

const NAME: &str = "kubernetes.io/csi/d.example.com^vol-1";

fn detached(forced: bool, off: bool) -> Vec<Detach> {
    vec![Detach { id: handle("vol-1").attachment_on("n1"), uid: "h".into(), forced, off }]
}

fn names(attached: Option<Vec<super::types::AttachedVolume>>) -> Option<Vec<String>> {
    attached.map(|all| all.into_iter().map(|held| held.name).collect())
}

#[test]
fn what_a_node_uses_is_detached_only_when_the_node_is_lost() {
    let id = handle("vol-1").attachment_on("n1");
    let plan = |held: &Held, wanted: bool, node: Option<&Node>| {
        plan_node("n1", node, &[Part { id: &id, held, wanted }], at(0))
    };
    let off = json!([{ "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" }]);
    let held = attached("n1");
    let idle = |since: i64| Held { idle_since: Some(at(since)), ..attached("n1") };
    let uses = |ready: bool, taints: Value| node(ready, taints, &[NAME], &[NAME]);
    assert_eq!(plan(&held, true, Some(&uses(true, json!([])))), Default::default());
    // Used: it stays, and for a healthy node it stays for ever.
    let plan_used = plan(&held, false, Some(&uses(true, json!([]))));
    assert_eq!((&plan_used.detach[..], plan_used.idle.len(), plan_used.wait), (&[][..], 1, None));
    assert_eq!(plan(&idle(-9999), false, Some(&uses(true, json!([])))).detach, []);
    // A node that is lost is waited for, or not if somebody says that it is off.
    assert_eq!(plan(&held, false, Some(&uses(false, json!([])))).wait, Some(UNMOUNT_TIMEOUT));
    assert_eq!(plan(&idle(-359), false, Some(&uses(false, json!([])))).wait, Some(Duration::from_secs(1)));
    let lost = plan(&idle(-360), false, Some(&uses(false, json!([]))));
    assert_eq!((lost.detach, names(lost.attached)), (detached(true, false), Some(vec![])));
    assert_eq!(plan(&held, false, Some(&uses(true, off.clone()))).detach, detached(true, true));
    assert_eq!(plan(&held, true, Some(&uses(true, off))).detach, []);
    // Of a node whose object is gone nobody knows what it uses.
    let gone = plan(&held, false, None);
    assert_eq!((gone.detach, gone.wait, gone.attached), (vec![], Some(UNMOUNT_TIMEOUT), None));
    let gone = plan(&idle(-360), false, None);
    assert_eq!((gone.detach, gone.attached), (detached(true, false), None));
    // Not used.
    let free = plan(&held, false, Some(&node(true, json!([]), &[NAME], &[])));
    assert_eq!((free.detach, names(free.attached)), (detached(false, false), Some(vec![])));
    // What goes already is not deleted twice, and a node that attaches for itself is left alone.
    let ending = Held { terminating: true, ..held.clone() };
    assert_eq!(plan(&ending, false, Some(&node(true, json!([]), &[], &[]))), Default::default());
    let mut alone = node(true, json!([]), &[], &[]);
    alone.metadata.annotations.clear();
    assert_eq!(plan(&held, false, Some(&alone)), Default::default());
}

#[test]
fn a_node_s_status_says_what_is_attached_and_stays() {
    let second = handle("vol-2");
    let (first, second) = (handle("vol-1").attachment_on("n1"), second.attachment_on("n1"));
    let other = "kubernetes.io/csi/d.example.com^vol-2";
    let both = |one: &Held, two: &Held, node: &Node| {
        let part = |id, held| Part { id, held, wanted: true };
        names(plan_node("n1", Some(node), &[part(&first, one), part(&second, two)], at(0)).attached)
    };
    let (one, pending) = (attached("n1"), Held { volume: Some(handle("vol-2")), ..held("n1") });
    let two = Held { attached: true, ..pending.clone() };
    let says = |attached: &[&str]| node(true, json!([]), attached, &[]);
    let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert_eq!(both(&one, &pending, &says(&[])), list(&[NAME]));
    assert_eq!(both(&one, &two, &says(&[other])), list(&[other, NAME]));
    assert_eq!(both(&one, &two, &says(&[other, NAME])), None);
    assert_eq!(
        both(&one, &two, &says(&["kubernetes.io/x/y", NAME])),
        list(&["kubernetes.io/x/y", NAME, other])
    );
    // Nobody has heard of this one.
    assert_eq!(both(&one, &two, &says(&[NAME, other, "kubernetes.io/csi/a^b"])), list(&[NAME, other]));
    let ending = Held { terminating: true, ..two.clone() };
    assert_eq!(both(&one, &ending, &says(&[NAME, other])), list(&[NAME]));
    // The volume's object is gone, and with it what the attachment is of: its node still knows.
    let unknown = Held { volume: None, ..two };
    assert_eq!(both(&one, &unknown, &says(&[NAME, other])), None);
    assert_eq!(both(&one, &unknown, &says(&[NAME])), None);
}

fn pod_needs(uid: &str, node: &str) -> PodNeeds {
    let needs: BTreeMap<String, Arc<Need>> = [("data".to_owned(), need(node, false))].into();
    let claims = BTreeSet::from([Key::new("ns", "claim")]);
    PodNeeds { uid: uid.into(), node: node.into(), needs, claims }
}

#[test]
fn the_world_knows_who_needs_what_and_forgets_what_is_gone() {
    let mut world = World::default();
    let (a, b) = (Key::new("ns", "a"), Key::new("ns", "b"));
    let both = vec![Item::Volume(handle("vol-1")), Item::Node("n1".into())];
    let id = handle("vol-1").attachment_on("n1");
    assert_eq!(world.put_pod(&a, Some(pod_needs("1", "n1"))), both);
    assert_eq!(world.put_pod(&a, Some(pod_needs("1", "n1"))), []);
    assert_eq!(world.put_pod(&b, Some(pod_needs("2", "n1"))), both);
    assert_eq!(world.pods_of_claim(&Key::new("ns", "claim")), [a.clone(), b.clone()]);
    world.put_attachment(&id, Some(held("n1")));
    world.held_mut(&id).unwrap().idle_since = Some(at(0));
    // A version that does not say of which volume it is, of the same object.
    world.put_attachment(&id, Some(Held { volume: None, attached: true, ..held("n1") }));
    let known = world.held(&id).unwrap();
    assert_eq!((known.idle_since, known.volume.clone()), (Some(at(0)), Some(handle("vol-1"))));
    // Another object is looked at anew.
    world.put_attachment(&id, Some(Held { uid: "i".into(), ..held("n1") }));
    assert_eq!(world.held(&id).unwrap().idle_since, None);
    assert_eq!(world.put_pod(&a, None), both);
    assert!(world.want(&id).is_some());
    assert_eq!(world.put_pod(&b, Some(PodNeeds { needs: BTreeMap::new(), ..pod_needs("2", "n1") })), both);
    assert!(world.want(&id).is_none() && world.of_volume(&handle("vol-1")) == [id.clone()]);
    assert_eq!(world.put_pod(&b, None), []);
    assert!(world.knows_node("n1"));
    world.put_attachment(&id, None);
    assert!(!world.knows_node("n1") && world.of_volume(&handle("vol-1")).is_empty());
    assert!(world.pods().is_empty() && world.pods_of_claim(&Key::new("ns", "claim")).is_empty());
}

#[test]
fn a_node_tells_of_which_volume_an_attachment_is() {
    let (first, second) = (handle("vol-1"), handle("vol-2"));
    let node: Node = read(json!({ "status": {
        "volumesAttached": [{ "name": "kubernetes.io/nfs/x" }, { "name": first.unique_name() }],
        "volumesInUse": [second.unique_name()],
    } }));
    for volume in [first, second] {
        assert_eq!(said_by(&node, "n1", &volume.attachment_on("n1")), Some(volume.clone()));
        assert_eq!(said_by(&node, "n1", &volume.attachment_on("n2")), None);
    }
    assert_eq!(said_by(&node, "n1", &handle("vol-3").attachment_on("n1")), None);
}
