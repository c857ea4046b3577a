//! The plans over tables, and a model in which claims and volumes come and go while the controller's cache lags and its
//! writes break off: no volume is ever two claims', and whatever fits comes together.

use std::collections::BTreeMap;
use std::sync::Arc;

use reconcile::EventType;
use serde_json::{Value, json};

use super::plan::{Around, ClaimStep, Reclaim, VolumeStep, is_own_binding, plan_claim, plan_volume};
use super::types::{BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, ClaimRef, Class, Volume};

fn claim(more: Value) -> Claim {
    let mut claim = json!({
        "metadata": { "name": "c", "namespace": "ns", "uid": "u" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "5Gi" } }, "storageClassName": "s" },
        "status": { "phase": "Pending" },
    });
    merge(&mut claim, more);
    serde_json::from_value(claim).unwrap()
}

fn volume(name: &str, more: Value) -> Volume {
    let mut volume = json!({
        "metadata": { "name": name },
        "spec": { "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "5Gi" }, "storageClassName": "s",
            "persistentVolumeReclaimPolicy": "Retain" },
        "status": { "phase": "Available" },
    });
    merge(&mut volume, more);
    serde_json::from_value(volume).unwrap()
}

fn merge(into: &mut Value, more: Value) {
    match more {
        Value::Object(more) => more.into_iter().for_each(|(name, value)| merge(&mut into[name], value)),
        other => *into = other,
    }
}

fn class(mode: &str, provisioner: &str) -> Class {
    serde_json::from_value(
        json!({ "metadata": { "name": "s" }, "provisioner": provisioner, "volumeBindingMode": mode }),
    )
    .unwrap()
}

fn step(claim: &Claim, volumes: &[Volume], class: Option<&Class>) -> ClaimStep {
    let volumes: Vec<_> = volumes.iter().cloned().map(Arc::new).collect();
    plan_claim(claim, &Around { volumes: &volumes, class, default_class: Some("d"), waiting: &[] })
}

fn bind(name: &str) -> ClaimStep {
    ClaimStep::Bind(name.into())
}

#[test]
fn the_smallest_volume_that_fits_is_taken() {
    let made = class("Immediate", "example.com/p");
    let size = |size: &str| json!({ "spec": { "capacity": { "storage": size } } });
    let volumes = [
        volume("large", size("9Gi")),
        volume("fits", size("6Gi")),
        volume("small", size("4Gi")),
        volume("other-class", json!({ "spec": { "storageClassName": "t" } })),
        volume("block", json!({ "spec": { "volumeMode": "Block" } })),
        volume("attributes", json!({ "spec": { "volumeAttributesClassName": "gold" } })),
        volume("taken", json!({ "spec": { "claimRef": { "namespace": "ns", "name": "x", "uid": "x" } } })),
        volume("read", json!({ "spec": { "accessModes": ["ReadOnlyMany"] } })),
        volume("many", json!({ "spec": { "accessModes": ["ReadWriteOnce", "ReadOnlyMany"] } })),
        volume("released", json!({ "status": { "phase": "Released" } })),
        volume("going", json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } })),
    ];
    assert_eq!(step(&claim(json!({})), &volumes, Some(&made)), bind("fits"));
    let read = claim(json!({ "spec": { "accessModes": ["ReadOnlyMany"] } }));
    assert_eq!(step(&read, &volumes, Some(&made)), bind("read"));
    let both = claim(json!({ "spec": { "accessModes": ["ReadWriteOnce", "ReadOnlyMany"] } }));
    assert_eq!(step(&both, &volumes, Some(&made)), bind("many"));
    let block = claim(json!({ "spec": { "volumeMode": "Block" } }));
    assert_eq!(step(&block, &volumes, Some(&made)), bind("block"));
    let gold = claim(json!({ "spec": { "volumeAttributesClassName": "gold" } }));
    assert_eq!(step(&gold, &volumes, Some(&made)), bind("attributes"));
    // What is kept for the claim goes before what fits better.
    let mut volumes = volumes.to_vec();
    volumes.push(volume(
        "kept",
        json!({ "spec": { "capacity": { "storage": "99Gi" },
        "claimRef": { "namespace": "ns", "name": "c" } } }),
    ));
    assert_eq!(step(&claim(json!({})), &volumes, Some(&made)), bind("kept"));
    let selecting = claim(json!({ "spec": { "selector": { "matchLabels": { "tier": "a" } } } }));
    volumes.pop();
    assert_eq!(step(&selecting, &volumes, Some(&made)), ClaimStep::Provision("example.com/p".into()));
    volumes.push(volume("labelled", json!({ "metadata": { "labels": { "tier": "a" } } })));
    assert_eq!(step(&selecting, &volumes, Some(&made)), bind("labelled"));
}

#[test]
fn late_binding_waits_for_the_scheduler() {
    let late = class("WaitForFirstConsumer", "example.com/p");
    let free = [volume("v", json!({}))];
    let said = |step: ClaimStep| match step {
        ClaimStep::Wait(Some((EventType::Normal, reason, message))) => (reason, message),
        other => panic!("{other:?}"),
    };
    let (reason, message) = said(step(&claim(json!({})), &free, Some(&late)));
    assert_eq!(
        (reason, message.as_str()),
        ("WaitForFirstConsumer", "waiting for first consumer to be created before binding")
    );
    let waiting = ["p".to_owned(), "q".to_owned()];
    let shared = free.clone().map(Arc::new);
    let around = |count: usize| Around {
        volumes: &shared,
        class: Some(&late),
        default_class: None,
        waiting: &waiting[..count],
    };
    let claimed = claim(json!({}));
    assert_eq!(said(plan_claim(&claimed, &around(1))).1, "waiting for pod p to be scheduled");
    assert_eq!(
        said(plan_claim(&claimed, &around(2))),
        ("WaitForPodScheduled", "waiting for pods p,q to be scheduled".into())
    );
    let placed =
        claim(json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n" } } }));
    assert_eq!(step(&placed, &free, Some(&late)), ClaimStep::Provision("example.com/p".into()));
    // The scheduler itself has kept a volume for the claim.
    let kept =
        [volume("v", json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c", "uid": "u" } } }))];
    assert_eq!(step(&placed, &kept, Some(&late)), bind("v"));
}

#[test]
fn what_plugins_of_old_made_their_drivers_make() {
    for (plugin, driver) in
        [("kubernetes.io/aws-ebs", "ebs.csi.aws.com"), ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io")]
    {
        let class = class("Immediate", plugin);
        assert_eq!(
            step(&claim(json!({})), &[], Some(&class)),
            ClaimStep::Provision(driver.into()),
            "{plugin}"
        );
    }
}

#[test]
fn claims_without_a_volume_say_why() {
    let none = claim(json!({ "spec": { "storageClassName": "" } }));
    let message = "no persistent volumes available for this claim and no storage class is set";
    let said = Some((EventType::Normal, "FailedBinding", message.into()));
    assert_eq!(step(&none, &[], None), ClaimStep::Wait(said));
    let unsaid = claim(json!({ "spec": { "storageClassName": null } }));
    assert_eq!(step(&unsaid, &[], None), ClaimStep::Classify("d".into()));
    let lost = ClaimStep::Unprovisionable("storageclass.storage.k8s.io \"s\" not found".into());
    assert_eq!(step(&claim(json!({})), &[], None), lost);
    let local = class("Immediate", "kubernetes.io/no-provisioner");
    let lost =
        ClaimStep::Unprovisionable("no volume plugin matched name: kubernetes.io/no-provisioner".into());
    assert_eq!(step(&claim(json!({})), &[], Some(&local)), lost);
}

#[test]
fn a_volume_by_name_has_to_fit() {
    let named = claim(json!({ "spec": { "volumeName": "v" } }));
    let said = |more: Value| match step(&named, &[volume("v", more)], None) {
        ClaimStep::Wait(Some((EventType::Warning, reason, message))) => (reason, message),
        other => panic!("{other:?}"),
    };
    assert_eq!(step(&named, &[], None), ClaimStep::Wait(None));
    assert_eq!(step(&named, &[volume("v", json!({}))], None), bind("v"));
    let small = said(json!({ "spec": { "capacity": { "storage": "1Gi" } } }));
    assert_eq!(
        small,
        ("VolumeMismatch", "Cannot bind to requested volume \"v\": requested PV is too small".into())
    );
    assert!(
        said(json!({ "spec": { "storageClassName": "t" } })).1.ends_with("storageClassName does not match")
    );
    assert!(said(json!({ "spec": { "volumeMode": "Block" } })).1.ends_with("incompatible volumeMode"));
    assert!(
        said(json!({ "spec": { "accessModes": ["ReadOnlyMany"] } })).1.ends_with("incompatible accessMode")
    );
    let taken = said(json!({ "spec": { "claimRef": { "namespace": "ns", "name": "x", "uid": "x" } } }));
    assert_eq!(taken, ("FailedBinding", "volume \"v\" already bound to a different claim.".into()));
}

#[test]
fn bound_claims_are_lost_with_their_volume() {
    let bound = |name: &str| {
        claim(json!({ "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
            "spec": { "volumeName": name } }))
    };
    let reason = |step: ClaimStep| match step {
        ClaimStep::Lost(reason, _) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(step(&bound(""), &[], None)), "ClaimLost");
    assert_eq!(reason(step(&bound("v"), &[], None)), "ClaimLost");
    let held = |uid: &str| {
        [volume("v", json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c", "uid": uid } } }))]
    };
    assert_eq!(reason(step(&bound("v"), &held("x"), None)), "ClaimMisbound");
    assert_eq!(step(&bound("v"), &held("u"), None), bind("v"));
}

#[test]
fn volumes_follow_their_claims() {
    let held = |more: Value| {
        let mut held = json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c", "uid": "u" } } });
        merge(&mut held, more);
        volume("v", held)
    };
    assert_eq!(plan_volume(&volume("v", json!({})), None), VolumeStep::Available);
    let kept = volume("v", json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c" } } }));
    assert_eq!(plan_volume(&kept, None), VolumeStep::Available);
    let named = |name: &str| claim(json!({ "spec": { "volumeName": name } }));
    assert_eq!(plan_volume(&held(json!({})), Some(&named("v"))), VolumeStep::Bound);
    assert_eq!(plan_volume(&held(json!({})), Some(&named(""))), VolumeStep::Wake);
    assert_eq!(plan_volume(&held(json!({})), Some(&named("w"))), VolumeStep::Unbind);
    let block = held(json!({ "spec": { "volumeMode": "Block" } }));
    assert!(matches!(plan_volume(&block, Some(&named(""))), VolumeStep::Mismatch(..)));
    let released = |more: Value| match plan_volume(&held(more), None) {
        VolumeStep::Release(Reclaim::Leave) => "",
        VolumeStep::Release(Reclaim::Fail(reason, _)) => reason,
        other => panic!("{other:?}"),
    };
    let policy = |policy: &str, maker: &str| {
        json!({ "metadata": { "annotations": { "pv.kubernetes.io/provisioned-by": maker } },
            "spec": { "persistentVolumeReclaimPolicy": policy } })
    };
    assert_eq!(released(policy("Retain", "")), "");
    assert_eq!(released(policy("Delete", "example.com/p")), "");
    assert_eq!(released(policy("Delete", "")), "VolumeFailedDelete");
    assert_eq!(released(policy("Recycle", "")), "VolumeFailedRecycle");
    // It was made for the claim, which has another one.
    let spare = held(policy("Delete", "example.com/p"));
    assert_eq!(plan_volume(&spare, Some(&named("w"))), VolumeStep::Release(Reclaim::Leave));
}

/// A small deterministic source of chance (xorshift64*), so that a failure names its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound as u64).unwrap()
    }
}

/// The server's objects with their versions, and what the controller's cache shows of them.
#[derive(Default)]
struct Model {
    claims: BTreeMap<String, Claim>,
    volumes: BTreeMap<String, Volume>,
    seen_claims: BTreeMap<String, Claim>,
    seen_volumes: BTreeMap<String, Volume>,
    version: u64,
}

impl Model {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// Writes a volume over the version that was read; false is a conflict.
    fn put_volume(&mut self, volume: &mut Volume) -> bool {
        let live = self.volumes.get(&volume.metadata.name).map(|live| live.metadata.resource_version.clone());
        if live.as_ref() != Some(&volume.metadata.resource_version) {
            return false;
        }
        volume.metadata.resource_version = self.next();
        self.volumes.insert(volume.metadata.name.clone(), volume.clone());
        true
    }

    fn put_claim(&mut self, claim: &mut Claim) -> bool {
        let live = self.claims.get(&claim.metadata.name).map(|live| live.metadata.resource_version.clone());
        if live.as_ref() != Some(&claim.metadata.resource_version) {
            return false;
        }
        claim.metadata.resource_version = self.next();
        self.claims.insert(claim.metadata.name.clone(), claim.clone());
        true
    }

    /// As `apply` does it; `left` writes are done before the process ends.
    fn bind(&mut self, mut claim: Claim, name: &str, mut left: usize) {
        let Some(mut volume) = self.seen_volumes.get(name).cloned() else { return };
        let mut may = || {
            left = left.saturating_sub(1);
            left > 0
        };
        let own = volume.is_for(&claim);
        if !own || volume.spec.claim_ref.as_ref().is_some_and(|held| held.uid.is_empty()) {
            volume.spec.claim_ref = Some(ClaimRef {
                namespace: "ns".into(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                ..ClaimRef::default()
            });
            if !own {
                volume.metadata.annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
            }
            if !may() || !self.put_volume(&mut volume) {
                return;
            }
        }
        if volume.status.phase != "Bound" {
            volume.status.phase = "Bound".into();
            if !may() || !self.put_volume(&mut volume) {
                return;
            }
        }
        if claim.spec.volume_name != name || !claim.has(BIND_COMPLETED) {
            claim.spec.volume_name = name.into();
            claim.metadata.annotations.insert(BIND_COMPLETED.into(), "yes".into());
            if !may() || !self.put_claim(&mut claim) {
                return;
            }
        }
        if claim.status.phase != "Bound" {
            claim.status.phase = "Bound".into();
            self.put_claim(&mut claim);
        }
    }

    fn sync_claim(&mut self, name: &str, writes: usize) {
        let Some(claim) = self.seen_claims.get(name).cloned() else { return };
        let volumes: Vec<Volume> = self.seen_volumes.values().cloned().collect();
        match step(&claim, &volumes, None) {
            ClaimStep::Bind(volume) => self.bind(claim, &volume, writes),
            ClaimStep::Lost(..) if claim.status.phase != "Lost" => {
                let mut claim = claim;
                claim.status.phase = "Lost".into();
                self.put_claim(&mut claim);
            }
            _ => {}
        }
    }

    fn sync_volume(&mut self, name: &str) {
        let Some(mut volume) = self.seen_volumes.get(name).cloned() else { return };
        let held = volume.spec.claim_ref.clone().unwrap_or_default();
        // The server is asked where the cache shows no claim.
        let claim = self.seen_claims.get(&held.name).or_else(|| self.claims.get(&held.name)).cloned();
        let claim = claim.filter(|claim| claim.metadata.uid == held.uid);
        let phase = match plan_volume(&volume, claim.as_ref()) {
            VolumeStep::Available => "Available",
            VolumeStep::Bound => "Bound",
            VolumeStep::Release(_) => "Released",
            VolumeStep::Unbind => {
                if is_own_binding(&volume) {
                    volume.spec.claim_ref = None;
                    volume.metadata.annotations.clear();
                } else if let Some(held) = &mut volume.spec.claim_ref {
                    held.uid.clear();
                }
                "Available"
            }
            VolumeStep::Wake | VolumeStep::Mismatch(..) => return,
        };
        if volume.status.phase != phase || phase == "Available" {
            volume.status.phase = phase.into();
            self.put_volume(&mut volume);
        }
    }

    fn look(&mut self) {
        (self.seen_claims, self.seen_volumes) = (self.claims.clone(), self.volumes.clone());
    }

    /// Something happens outside.
    fn change(&mut self, chance: &mut Chance) {
        let number = chance.below(6);
        let version = self.next();
        match chance.below(4) {
            0 => {
                let meta =
                    json!({ "name": format!("c{number}"), "uid": version, "resourceVersion": version });
                let made = claim(json!({ "metadata": meta }));
                self.claims.entry(format!("c{number}")).or_insert(made);
            }
            1 | 2 => {
                let name = format!("v{number}");
                let mut made = volume(
                    &name,
                    json!({ "metadata": { "resourceVersion": version }, "status": { "phase": "Pending" } }),
                );
                if chance.below(3) == 0 {
                    let claim = format!("c{}", chance.below(6));
                    made.spec.claim_ref =
                        Some(ClaimRef { namespace: "ns".into(), name: claim, ..ClaimRef::default() });
                }
                self.volumes.entry(name).or_insert(made);
            }
            _ if chance.below(3) == 0 => drop(self.claims.remove(&format!("c{number}"))),
            _ => {}
        }
    }

    fn holders(&self, volume: &str) -> usize {
        let bound = |claim: &&Claim| claim.status.phase == "Bound" && claim.spec.volume_name == volume;
        self.claims.values().filter(bound).count()
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            self.look();
            let (claims, volumes): (Vec<_>, Vec<_>) =
                (self.claims.keys().cloned().collect(), self.volumes.keys().cloned().collect());
            volumes.iter().for_each(|name| self.sync_volume(name));
            self.look();
            for name in &claims {
                self.sync_claim(name, 9);
                self.look();
            }
        }
    }
}

#[test]
fn no_volume_is_two_claims_whatever_happens() {
    let mut bound = 0;
    for seed in 1..=300 {
        let (mut chance, mut model) = (Chance(seed), Model::default());
        for pass in 0..200 {
            match chance.below(5) {
                0 => model.change(&mut chance),
                1 => model.look(),
                2 => model.sync_volume(&format!("v{}", chance.below(6))),
                _ => {
                    let (name, writes) = (format!("c{}", chance.below(6)), 1 + chance.below(6));
                    model.sync_claim(&name, writes);
                }
            }
            for name in model.volumes.keys() {
                assert!(model.holders(name) <= 1, "seed {seed}, pass {pass}: {name} has several claims");
            }
        }
        model.settle();
        for (name, volume) in model.volumes.iter().filter(|(_, volume)| volume.status.phase == "Bound") {
            let held = volume.spec.claim_ref.as_ref().map(|held| held.uid.as_str()).unwrap_or_default();
            let has = |claim: &Claim| claim.metadata.uid == held && claim.spec.volume_name == *name;
            assert!(model.claims.values().any(has), "seed {seed}: {name} is kept from everybody");
        }
        for claim in model.claims.values() {
            let (phase, name) = (claim.status.phase.as_str(), &claim.metadata.name);
            if phase == "Bound" {
                bound += 1;
                let volume = &model.volumes[&claim.spec.volume_name];
                let held = volume.spec.claim_ref.as_ref().map(|held| held.uid.as_str());
                assert_eq!(
                    (held, volume.status.phase.as_str()),
                    (Some(claim.metadata.uid.as_str()), "Bound"),
                    "seed {seed}"
                );
                continue;
            }
            // Whoever has none is right: there is no free one.
            let free = model
                .volumes
                .values()
                .find(|volume| volume.status.phase == "Available" && volume.spec.claim_ref.is_none());
            assert!(
                free.is_none(),
                "seed {seed}: {name} is {phase} beside {:?}",
                free.map(|free| &free.metadata.name)
            );
        }
    }
    assert!(bound > 300, "only {bound} claims were bound at all");
}
