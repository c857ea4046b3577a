//! Which volumes pods get on which node, and what others see of what was decided and not written yet.

use std::collections::BTreeSet;
use std::time::Duration;

use api::Object;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::matching::{BIND_CONFLICT, NO_SPACE, NO_VOLUME, NODE_CONFLICT, PodClaims, UNBOUND};
use super::types::Driver;
use super::*;
use crate::types::Node;

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.iter().for_each(|(key, value)| merge(into.entry(key.clone()).or_insert(Value::Null), value));
        }
        (into, more) => *into = more.clone(),
    }
}

fn object(mut value: Value, more: &Value) -> Object {
    merge(&mut value, more);
    Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap()
}

/// A claim of 5 GiB of the class `late`.
fn claim(name: &str, more: &Value) -> Arc<Claim> {
    let claim = json!({ "metadata": { "name": name, "namespace": "ns", "uid": format!("u-{name}"), "resourceVersion": "5" },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "late",
            "resources": { "requests": { "storage": "5Gi" } } } });
    Arc::new(Claim::decode(&object(claim, more)).unwrap())
}

/// A volume of 5 GiB of the class `late` that nodes of one zone reach.
fn volume(name: &str, zone: &str, more: &Value) -> Arc<Volume> {
    let zone = json!([{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": [zone] }] }]);
    let volume = json!({ "metadata": { "name": name, "uid": format!("u-{name}"), "resourceVersion": "7" },
        "spec": { "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "5Gi" }, "storageClassName": "late",
            "nodeAffinity": { "required": { "nodeSelectorTerms": zone } } },
        "status": { "phase": "Available" } });
    Arc::new(Volume::decode(&object(volume, more)).unwrap())
}

fn class(name: &str, provisioner: &str, mode: &str, more: &Value) -> Arc<Class> {
    let class =
        json!({ "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": mode });
    Arc::new(Class::decode(&object(class, more)).unwrap())
}

fn node(name: &str, zone: &str) -> Node {
    Node { name: name.into(), labels: [("zone".to_owned(), zone.to_owned())].into(), ..Node::default() }
}

fn pod(claims: &[&str]) -> Pod {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } }))
        .collect();
    let pod =
        json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "p" }, "spec": { "volumes": volumes } });
    Pod::decode(&object(pod, &json!({}))).unwrap()
}

fn storage(claims: &[Arc<Claim>], volumes: &[Arc<Volume>]) -> Storage {
    let mut storage = Storage::default();
    let nobody = "kubernetes.io/no-provisioner";
    storage.put_class("late", Some(class("late", nobody, "WaitForFirstConsumer", &json!({}))));
    storage.put_class("soon", Some(class("soon", "example.com/p", "Immediate", &json!({}))));
    storage.put_class("made", Some(class("made", "example.com/p", "WaitForFirstConsumer", &json!({}))));
    let topologies =
        json!({ "allowedTopologies": [{ "matchLabelExpressions": [{ "key": "zone", "values": ["a"] }] }] });
    storage.put_class("near", Some(class("near", "example.com/p", "WaitForFirstConsumer", &topologies)));
    for claim in claims {
        storage.put_claim(&claim.version.key, Some(claim.clone()));
    }
    for volume in volumes {
        storage.put_volume(&volume.version.key.name, Some(volume.clone()));
    }
    storage
}

/// What a pod's claims get on a node: `claim=volume`, or `claim` where a volume is to be made.
fn found(storage: &Storage, pod: &Pod, node: &Node) -> Result<BTreeSet<String>, Vec<&'static str>> {
    let claims = PodClaims::of(pod, storage).unwrap().unwrap();
    let found = claims.find(node)?;
    let bindings = found
        .bindings
        .iter()
        .map(|(volume, claim)| format!("{}={}", claim.version.key.name, volume.version.key.name));
    let provisions = found.provisions.iter().map(|claim| claim.version.key.name.clone());
    Ok(bindings.chain(provisions).collect())
}

fn bound(volume: &str) -> Value {
    json!({ "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
        "spec": { "volumeName": volume } })
}

fn of_class(class: &str) -> Value {
    json!({ "spec": { "storageClassName": class } })
}

#[test]
fn claims_say_why_a_pod_can_go_nowhere() {
    let own = json!({ "name": "v", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
    let own =
        json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "p" }, "spec": { "volumes": [own] } });
    let own = Pod::decode(&object(own, &json!({}))).unwrap();
    for (pod, claims, says) in [
        (pod(&["c"]), vec![], "persistentvolumeclaim \"c\" not found"),
        (
            own.clone(),
            vec![],
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"",
        ),
        (own, vec![claim("p-v", &bound("v"))], "PVC ns/p-v was not created for pod ns/p (pod is not owner)"),
        (
            pod(&["c"]),
            vec![claim("c", &json!({ "spec": { "volumeName": "v" }, "status": { "phase": "Lost" } }))],
            "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\"",
        ),
        (
            pod(&["c"]),
            vec![claim("c", &json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }))],
            "persistentvolumeclaim \"c\" is being deleted",
        ),
        (pod(&["c"]), vec![claim("c", &of_class("soon"))], UNBOUND),
        (pod(&["c"]), vec![claim("c", &of_class("absent"))], UNBOUND),
        // The claim asks for a volume by name, which the binder has to give it.
        (pod(&["c"]), vec![claim("c", &json!({ "spec": { "volumeName": "v" } }))], UNBOUND),
        (pod(&["c", "d"]), vec![claim("c", &of_class("soon"))], "persistentvolumeclaim \"d\" not found"),
    ] {
        assert_eq!(PodClaims::of(&pod, &storage(&claims, &[])).err().as_deref(), Some(says));
    }
    assert!(PodClaims::of(&pod(&[]), &Storage::default()).unwrap().is_none());
}

#[test]
fn a_bound_claims_volume_has_to_be_reached() {
    let storage =
        storage(&[claim("c", &bound("v")), claim("d", &bound("gone"))], &[volume("v", "a", &json!({}))]);
    assert_eq!(found(&storage, &pod(&["c"]), &node("n", "a")), Ok(BTreeSet::new()));
    assert_eq!(found(&storage, &pod(&["c"]), &node("n", "b")), Err(vec![NODE_CONFLICT]));
    assert_eq!(found(&storage, &pod(&["d"]), &node("n", "a")), Err(vec![NO_VOLUME]));
    assert_eq!(found(&storage, &pod(&["c", "d"]), &node("n", "b")), Err(vec![NODE_CONFLICT]));
}

#[test]
fn claims_that_waited_get_the_smallest_volume_that_fits_and_is_near() {
    let size = |size: &str| json!({ "spec": { "capacity": { "storage": size } } });
    let kept = |uid: &str| json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c", "uid": uid } } });
    let none: Result<&[&str], Vec<&str>> = Err(vec![BIND_CONFLICT]);
    let some = |names: &'static [&'static str]| Ok::<_, Vec<&str>>(names);
    let plain = || claim("c", &json!({}));
    for (claims, volumes, gets) in [
        (vec![plain()], vec![], none.clone()),
        (vec![plain()], vec![volume("v", "a", &json!({}))], some(&["c=v"])),
        (vec![plain()], vec![volume("v", "b", &json!({}))], none.clone()),
        (vec![plain()], vec![volume("l", "a", &size("9Gi")), volume("m", "a", &size("6Gi"))], some(&["c=m"])),
        (vec![plain()], vec![volume("v", "a", &size("4Gi"))], none.clone()),
        (vec![plain()], vec![volume("v", "a", &json!({ "spec": { "volumeMode": "Block" } }))], none.clone()),
        (
            vec![plain()],
            vec![volume("v", "a", &json!({ "spec": { "accessModes": ["ReadOnlyMany"] } }))],
            none.clone(),
        ),
        (vec![plain()], vec![volume("v", "a", &json!({ "status": { "phase": "Released" } }))], none.clone()),
        (vec![plain()], vec![volume("v", "a", &of_class("other"))], none.clone()),
        (
            vec![plain()],
            vec![volume("v", "a", &json!({ "spec": { "volumeAttributesClassName": "gold" } }))],
            none.clone(),
        ),
        (
            vec![plain()],
            vec![volume("v", "a", &json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }))],
            none.clone(),
        ),
        // What is kept for the claim goes before what fits better, also where it is not reached.
        (vec![plain()], vec![volume("a", "a", &json!({})), volume("k", "a", &kept(""))], some(&["c=k"])),
        (vec![plain()], vec![volume("l", "a", &json!({})), volume("k", "b", &kept("u-c"))], none.clone()),
        (vec![plain()], vec![volume("k", "a", &kept("another"))], none.clone()),
        // The smaller claim chooses first, so that both find one.
        (
            vec![
                claim("c", &json!({ "spec": { "resources": { "requests": { "storage": "8Gi" } } } })),
                claim("d", &json!({})),
            ],
            vec![volume("l", "a", &size("9Gi")), volume("s", "a", &size("5Gi"))],
            some(&["c=l", "d=s"]),
        ),
        (vec![plain(), claim("d", &json!({}))], vec![volume("v", "a", &json!({}))], none.clone()),
        (
            vec![claim("c", &json!({ "spec": { "selector": { "matchLabels": { "tier": "x" } } } }))],
            vec![
                volume("a", "a", &json!({})),
                volume("t", "a", &json!({ "metadata": { "labels": { "tier": "x" } } })),
            ],
            some(&["c=t"]),
        ),
        // Some are there, others are made.
        (
            vec![plain(), claim("d", &of_class("made"))],
            vec![volume("v", "a", &json!({}))],
            some(&["c=v", "d"]),
        ),
        (vec![claim("c", &of_class("near"))], vec![], some(&["c"])),
    ] {
        let names: Vec<&str> = claims.iter().map(|claim| claim.version.key.name.as_str()).collect();
        let gets = gets.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let storage = storage(&claims, &volumes);
        assert_eq!(found(&storage, &pod(&names), &node("n", "a")), gets, "{claims:?} {volumes:?}");
    }
}

#[test]
fn volumes_are_made_where_the_class_allows_and_there_is_room() {
    let asked = |class: &str| storage(&[claim("c", &of_class(class))], &[]);
    let (here, there) = (node("n", "a"), node("m", "b"));
    let made = Ok(BTreeSet::from(["c".to_owned()]));
    assert_eq!(found(&asked("near"), &pod(&["c"]), &there), Err(vec![BIND_CONFLICT]));
    assert_eq!(found(&asked("made"), &pod(&["c"]), &there), made);
    // The volume is being made for another node already.
    let chosen = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n" } } });
    let mut both = of_class("made");
    merge(&mut both, &chosen);
    let chosen = storage(&[claim("c", &both)], &[]);
    assert_eq!(found(&chosen, &pod(&["c"]), &here), made);
    assert_eq!(found(&chosen, &pod(&["c"]), &there), Err(vec![BIND_CONFLICT]));

    let mut storage = asked("made");
    let capacity = |zone: &str, left: &str, more: Value| {
        let capacity = json!({ "metadata": { "name": "x" }, "storageClassName": "made", "capacity": left,
            "nodeTopology": { "matchLabels": { "zone": zone } } });
        Arc::new(Capacity::decode(&object(capacity, &more)).unwrap())
    };
    storage.put_driver("example.com/p", Some(Driver { tells_capacity: true, needed: false }));
    assert_eq!(found(&storage, &pod(&["c"]), &here), Err(vec![NO_SPACE]));
    for (capacity, enough) in [
        (capacity("a", "5Gi", json!({})), true),
        (capacity("b", "5Gi", json!({})), false),
        (capacity("a", "4Gi", json!({})), false),
        (capacity("a", "9Gi", json!({ "maximumVolumeSize": "4Gi" })), false),
        (capacity("a", "1Gi", json!({ "maximumVolumeSize": "6Gi" })), true),
        (capacity("a", "9Gi", json!({ "nodeTopology": null })), false),
    ] {
        storage.put_capacity(&Key::new("ns", "x"), capacity.clone());
        assert_eq!(found(&storage, &pod(&["c"]), &here).is_ok(), enough, "{capacity:?}");
    }
    storage.remove_capacity(&Key::new("ns", "x"), "made");
    assert!(storage.capacities.is_empty());
    storage.put_driver("example.com/p", Some(Driver::default()));
    assert_eq!(found(&storage, &pod(&["c"]), &here), made);
}

#[test]
fn what_is_decided_is_seen_until_it_is_told_or_taken_back() {
    let claims = [claim("c", &json!({})), claim("d", &json!({})), claim("m", &of_class("made"))];
    let mut storage = storage(&claims, &[volume("v", "a", &json!({}))]);
    let (here, there) = (node("n", "a"), node("m", "a"));
    let plan = |storage: &Storage, names: &[&str]| {
        PodClaims::of(&pod(names), storage).unwrap().unwrap().plan(&here, Duration::ZERO)
    };
    let first = plan(&storage, &["c", "m"]).unwrap();
    assert_eq!((first.bindings.len(), first.provisions.len(), first.node.as_str()), (1, 1, "n"));
    let uid: Arc<str> = "first".into();
    storage.reserve(&first, &uid);
    // Another claim does not get the volume, the same one does; the other's volume is made for that node alone.
    assert_eq!(found(&storage, &pod(&["d"]), &here), Err(vec![BIND_CONFLICT]));
    assert!(found(&storage, &pod(&["c"]), &there).is_ok());
    assert_eq!(found(&storage, &pod(&["m"]), &there), Err(vec![BIND_CONFLICT]));
    assert_eq!(storage.unreserve("first").len(), 1);
    assert!(found(&storage, &pod(&["d"]), &here).is_ok() && found(&storage, &pod(&["m"]), &there).is_ok());

    // What is written stays decided until its news come.
    storage.reserve(&first, &uid);
    storage.volume_written("v", 9);
    storage.claim_written(&Key::new("ns", "m"), 9);
    assert!(storage.unreserve("first").is_empty());
    assert_eq!(found(&storage, &pod(&["d"]), &here), Err(vec![BIND_CONFLICT]));
    storage.put_volume("v", Some(volume("v", "a", &json!({ "metadata": { "resourceVersion": "8" } }))));
    assert_eq!(found(&storage, &pod(&["d"]), &here), Err(vec![BIND_CONFLICT]));
    let news = json!({ "metadata": { "resourceVersion": "9" } });
    storage.put_volume("v", Some(volume("v", "a", &news)));
    let mut made = of_class("made");
    merge(&mut made, &news);
    storage.put_claim(&Key::new("ns", "m"), Some(claim("m", &made)));
    assert!(found(&storage, &pod(&["d"]), &here).is_ok() && found(&storage, &pod(&["m"]), &there).is_ok());
    assert!(storage.kept.is_empty() && storage.chosen.is_empty());
}

#[test]
fn who_waits_for_a_claim_is_told_and_forgotten() {
    let mut storage = storage(&[claim("c", &json!({}))], &[]);
    let told = storage.waiting.follow([&Key::new("ns", "c")].into_iter());
    let asked = |told: &Notify| {
        let mut asked = std::pin::pin!(told.notified());
        asked.as_mut().enable()
    };
    assert!(!asked(&told));
    storage.put_volume(
        "v",
        Some(volume("v", "a", &json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c" } } }))),
    );
    assert!(asked(&told) && !asked(&told));
    storage.pod_left(&pod(&["c"]));
    assert!(asked(&told));
    drop(told);
    storage.put_claim(&Key::new("ns", "c"), None);
    assert!(storage.waiting.is_empty());
}
