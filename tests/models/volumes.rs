//! Volumes and claims: both come and go, wait for each other, are kept for each other and are made by a driver, while the
//! binder is killed and its writes fail. A claim has one volume and a volume one claim, always, and what one claim has
//! written no other gets to see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, Status};
use controllers::persistent_volume::PersistentVolumes;
use controllers::storage_protection::StorageProtection;
use reconcile::kinds::{PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES, STORAGE_CLASSES};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 90;
const DRIVER: &str = "driver.example.com";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const NODE: &str = "volume.kubernetes.io/selected-node";
const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const MAKER: &str = "pv.kubernetes.io/provisioned-by";

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![Arc::new(PersistentVolumes::new(ctx)), Arc::new(StorageProtection::new(ctx))]
    })
    .await;
    for (name, mode) in [("fast", "Immediate"), ("late", "WaitForFirstConsumer")] {
        let class = json!({ "metadata": { "name": name }, "provisioner": DRIVER, "volumeBindingMode": mode });
        world.create(&STORAGE_CLASSES, &class).await;
    }
    let witness = Witness::of(&world, &[CLAIMS, VOLUMES]).await;
    (world, witness)
}

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().fold(value, |value, name| &value[*name]).as_str().unwrap_or_default()
}

fn owner(volume: &Object) -> String {
    text(&value(volume), &["spec", "claimRef", "uid"]).to_owned()
}

fn phase(object: &Object) -> String {
    text(&value(object), &["status", "phase"]).to_owned()
}

fn volume_name(claim: &Object) -> String {
    text(&value(claim), &["spec", "volumeName"]).to_owned()
}

fn size(object: &Value, path: &[&str]) -> u64 {
    text(object, path).trim_end_matches("Gi").parse().unwrap()
}

/// Whether a free volume is what a claim asks for. Source: `FindMatchingVolume`.
fn fits(claim: &Value, volume: &Value) -> bool {
    let asked = claim["spec"]["accessModes"].as_array().unwrap();
    let has = volume["spec"]["accessModes"].as_array().unwrap();
    let tier = &claim["spec"]["selector"]["matchLabels"]["tier"];
    volume["metadata"]["deletionTimestamp"].is_null()
        && volume["status"]["phase"] == "Available"
        && volume["spec"]["claimRef"].is_null()
        && asked.iter().all(|mode| has.contains(mode))
        && (tier.is_null() || volume["metadata"]["labels"]["tier"] == *tier)
        && text(claim, &["spec", "storageClassName"]) == text(volume, &["spec", "storageClassName"])
        && size(volume, &["spec", "capacity", "storage"])
            >= size(claim, &["spec", "resources", "requests", "storage"])
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// Which volumes claims have named, by uid.
    named: BTreeMap<String, BTreeSet<String>>,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("PersistentVolumeClaim", before, Some(after)) => {
                self.see_claim(witness, before.as_deref(), after);
            }
            ("PersistentVolume", Some(before), Some(after)) => self.see_volume(witness, before, after),
            _ => {}
        }
    }

    fn see_claim(&mut self, witness: &Witness, before: Option<&Object>, claim: &Object) {
        let named = volume_name(claim);
        let was = before.map(volume_name).unwrap_or_default();
        assert!(was.is_empty() || was == named, "{} changes from {was} to {named}", claim.key());
        if !named.is_empty() {
            self.named.entry(claim.meta().uid.clone()).or_default().insert(named.clone());
        }
        if phase(claim) != "Bound" || before.is_some_and(|before| phase(before) == "Bound") {
            return;
        }
        let volume = witness.all("PersistentVolume").find(|volume| volume.meta().name == named);
        let owner = volume.map(|volume| owner(volume));
        assert_eq!(owner.as_ref(), Some(&claim.meta().uid), "{} is bound to {named}", claim.key());
        let others = witness.all("PersistentVolumeClaim").filter(|other| phase(other) == "Bound");
        let same: Vec<_> =
            others.filter(|other| volume_name(other) == named).map(|other| other.key()).collect();
        assert_eq!(same.len(), 1, "{named} is bound to {same:?}");
    }

    fn see_volume(&self, witness: &Witness, before: &Object, after: &Object) {
        let (was, is) = (owner(before), owner(after));
        let claim =
            |uid: &str| witness.all("PersistentVolumeClaim").find(|claim| claim.meta().uid == uid).cloned();
        let name = &after.meta().name;
        if !was.is_empty() && was != is {
            assert!(is.is_empty(), "{name} goes from the claim {was} to {is}");
            // It is let go only where its claim has another one.
            let others = self.named.get(&was).is_some_and(|named| named.iter().any(|held| held != name));
            assert!(others, "{name} is taken from its claim {was}");
        }
        let (before, after_phase) = (phase(before), phase(after));
        if before != after_phase && matches!(after_phase.as_str(), "Released" | "Failed") {
            let holds = claim(&is).is_some_and(|claim| volume_name(&claim) == *name);
            assert!(!holds, "{name} is {after_phase} though its claim is there");
        }
    }
}

fn modes(chance: &mut fastrand::Rng) -> Value {
    let modes = [json!(["ReadWriteOnce"]), json!(["ReadWriteOnce", "ReadOnlyMany"]), json!(["ReadOnlyMany"])];
    chance.choice(&modes).cloned().unwrap()
}

fn volume(chance: &mut fastrand::Rng, number: u32) -> Value {
    let class = chance.choice(["", "", "fast", "late"]);
    let policy = chance.choice(["Retain", "Retain", "Delete", "Recycle"]);
    let kept = chance.u8(0..3) == 0;
    let claim = json!({ "namespace": NAMESPACE, "name": format!("c{}", chance.u8(0..6)) });
    json!({
        "metadata": { "name": format!("v{number}"), "labels": { "tier": chance.choice(["x", "y"]) } },
        "spec": {
            "capacity": { "storage": format!("{}Gi", chance.u8(1..6)) }, "accessModes": modes(chance),
            "storageClassName": class, "persistentVolumeReclaimPolicy": policy,
            "claimRef": kept.then_some(claim), "hostPath": { "path": "/tmp/x" },
        },
    })
}

fn claim(chance: &mut fastrand::Rng, volumes: u32) -> Value {
    let classes = [json!(""), json!(""), json!("fast"), json!("late"), json!("none"), Value::Null];
    let named = chance.u8(0..4) == 0;
    let tier = chance.bool().then(|| json!({ "matchLabels": { "tier": chance.choice(["x", "y"]) } }));
    json!({
        "metadata": { "name": format!("c{}", chance.u8(0..6)) },
        "spec": {
            "accessModes": modes(chance), "storageClassName": chance.choice(&classes), "selector": tier,
            "resources": { "requests": { "storage": format!("{}Gi", chance.u8(1..6)) } },
            "volumeName": named.then(|| format!("v{}", chance.u32(0..=volumes))),
        },
    })
}

fn or_there(done: Result<Arc<Object>, Status>) {
    if let Err(status) = done {
        assert_eq!(status.code, 409, "{status:?}");
    }
}

/// The driver makes what a claim waits for, and takes away what is released; whether there was something to do.
async fn drive(world: &mut World, witness: &Witness) -> bool {
    let waits = |claim: &&Arc<Object>| {
        let held = value(claim);
        let annotations = &held["metadata"]["annotations"];
        let late = held["spec"]["storageClassName"] == "late";
        annotations[PROVISIONER] == DRIVER
            && volume_name(claim).is_empty()
            && !claim.meta().is_terminating()
            && (!late || !annotations[NODE].is_null())
    };
    let made = |claim: &&Arc<Object>| {
        let name = format!("pvc-{}", claim.meta().uid);
        witness.all("PersistentVolume").all(|volume| volume.meta().name != name)
    };
    let due: Vec<_> = witness.all("PersistentVolumeClaim").filter(waits).filter(made).cloned().collect();
    if let Some(claim) = world.chance.choice(&due) {
        let held = value(claim);
        let volume = json!({
            "metadata": { "name": format!("pvc-{}", claim.meta().uid), "annotations": { MAKER: DRIVER } },
            "spec": {
                "capacity": held["spec"]["resources"]["requests"], "accessModes": held["spec"]["accessModes"],
                "storageClassName": held["spec"]["storageClassName"], "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": { "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": NAMESPACE,
                    "name": claim.meta().name, "uid": claim.meta().uid },
                "csi": { "driver": DRIVER, "volumeHandle": claim.meta().uid },
            },
        });
        or_there(world.user.create(&VOLUMES.gvr(), "", &volume).await);
        return true;
    }
    let released = |volume: &&Arc<Object>| {
        let held = value(volume);
        held["metadata"]["annotations"][MAKER] == DRIVER
            && held["status"]["phase"] == "Released"
            && !volume.meta().is_terminating()
    };
    let released: Vec<_> = witness.all("PersistentVolume").filter(released).cloned().collect();
    let Some(volume) = world.chance.choice(&released) else { return false };
    or_too_late(world.user.delete(&VOLUMES.gvr(), &volume.key(), DeleteOptions::default()).await);
    true
}

fn some(world: &mut World, witness: &Witness, kind: &'static str) -> Option<Arc<Object>> {
    let held: Vec<_> = witness.all(kind).cloned().collect();
    world.chance.choice(&held).cloned()
}

async fn set_default(world: &World, class: &str, default: bool) {
    let name = "storageclass.kubernetes.io/is-default-class";
    let patch = json!({ "metadata": { "annotations": { name: default.to_string() } } });
    world.merge(&STORAGE_CLASSES, class, &patch).await;
}

async fn step(world: &mut World, witness: &Witness, made: &mut u32) {
    match world.chance.u8(0..28) {
        0..=4 => {
            *made += 1;
            let volume = volume(&mut world.chance, *made);
            world.create(&VOLUMES, &volume).await;
        }
        5..=10 => {
            let claim = claim(&mut world.chance, *made + 2);
            or_there(world.user.create(&CLAIMS.gvr(), NAMESPACE, &claim).await);
        }
        11..=13 => {
            let Some(claim) = some(world, witness, "PersistentVolumeClaim") else { return };
            or_too_late(world.user.delete(&CLAIMS.gvr(), &claim.key(), DeleteOptions::default()).await);
        }
        14 => {
            let Some(volume) = some(world, witness, "PersistentVolume") else { return };
            or_too_late(world.user.delete(&VOLUMES.gvr(), &volume.key(), DeleteOptions::default()).await);
        }
        15 => {
            // The scheduler has chosen a node for the first pod.
            let Some(claim) = some(world, witness, "PersistentVolumeClaim") else { return };
            let patch = json!({ "metadata": { "annotations": { NODE: "node-0" } } });
            or_too_late(world.try_merge(&CLAIMS, &claim.meta().name, &patch).await);
        }
        16 => {
            let default = world.chance.bool();
            set_default(world, "fast", default).await;
        }
        17 => world.restart(),
        18 | 19 => {
            let seconds = world.chance.u64(1..200);
            world.pass(Duration::from_secs(seconds)).await;
        }
        20..=23 => drop(drive(world, witness).await),
        _ => world.settle().await,
    }
}

fn check_claim(witness: &Witness, object: &Object) {
    let claim = value(object);
    let told = phase(object);
    let named = volume_name(object);
    if told == "Bound" {
        let volume = witness.all("PersistentVolume").find(|volume| volume.meta().name == named).unwrap();
        assert_eq!(
            (phase(volume).as_str(), owner(volume)),
            ("Bound", object.meta().uid.clone()),
            "{claim:#}"
        );
        return;
    }
    if told == "Lost" {
        assert_eq!(claim["metadata"]["annotations"][COMPLETED], "yes", "{claim:#}");
        return;
    }
    assert_eq!(told, "Pending", "{claim:#}");
    let late = claim["spec"]["storageClassName"] == "late";
    if named.is_empty() && !late {
        let free = witness.all("PersistentVolume").find(|volume| fits(&claim, &value(volume)));
        assert!(free.is_none(), "{:?} would do for {claim:#}", free.map(|volume| volume.key()));
        assert_ne!(claim["spec"]["storageClassName"], "fast", "nobody makes the volume of {claim:#}");
        assert!(!claim["spec"]["storageClassName"].is_null(), "there is a default class: {claim:#}");
    }
}

fn check_volume(witness: &Witness, object: &Object) {
    let volume = value(object);
    let (told, owner) = (phase(object), owner(object));
    let claim = witness.all("PersistentVolumeClaim").find(|claim| claim.meta().uid == owner);
    assert!(!object.meta().is_terminating() || told == "Bound", "{volume:#} never goes");
    let wanted: &[&str] = match claim {
        _ if owner.is_empty() => &["Available"],
        Some(_) => &["Bound"],
        None if volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain" => &["Released"],
        None => &["Failed"],
    };
    assert!(wanted.contains(&told.as_str()), "{wanted:?} {volume:#}");
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::default();
    world.faults.set(20);
    let mut made = 0;
    for _ in 0..STEPS {
        step(&mut world, &witness, &mut made).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    world.faults.set(0);
    set_default(&world, "fast", true).await;
    loop {
        world.pass(Duration::from_secs(1200)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        if !drive(&mut world, &witness).await {
            break;
        }
    }
    witness.all("PersistentVolumeClaim").for_each(|claim| check_claim(&witness, claim));
    witness.all("PersistentVolume").for_each(|volume| check_volume(&witness, volume));
    world.rest().await;
    // Without claims nobody has a volume.
    let claims: Vec<Key> = witness.all("PersistentVolumeClaim").map(|claim| claim.key()).collect();
    for claim in claims {
        or_too_late(world.user.delete(&CLAIMS.gvr(), &claim, DeleteOptions::default()).await);
    }
    loop {
        world.pass(Duration::from_secs(1200)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        if !drive(&mut world, &witness).await {
            break;
        }
    }
    assert_eq!(witness.all("PersistentVolumeClaim").count(), 0, "claims that nobody uses stay");
    witness.all("PersistentVolume").for_each(|volume| check_volume(&witness, volume));
    world.rest().await;
}

#[tokio::test]
async fn whatever_happens_a_claim_has_one_volume_and_a_volume_one_claim() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}
