//! Garbage collection over graphs of owners: several owners, circles, owners that never were, owners of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, OwnerReference, Propagation};
use controllers::garbage::GarbageCollector;
use reconcile::kinds::{CLUSTER_ROLES, CONFIG_MAPS, Kind, SECRETS};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Rules, Seen, Witness, tell};
use crate::world::{World, home, seeds};

const STEPS: u32 = 80;
const KINDS: [Kind; 3] = [CONFIG_MAPS, SECRETS, CLUSTER_ROLES];

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| vec![Arc::new(GarbageCollector::new(ctx))]).await;
    let witness = Witness::of(&world, &KINDS).await;
    (world, witness)
}

fn kind_of(object: &Object) -> Kind {
    let name = &object.meta().name;
    let wanted = if name.starts_with("x-c") { 0 } else { 1 + usize::from(name.starts_with("x-r")) };
    KINDS[wanted]
}

/// The objects of the story, and not what a cluster begins with.
fn all(witness: &Witness) -> Vec<Arc<Object>> {
    let kinds = KINDS.iter().flat_map(|kind| witness.all(kind.kind));
    kinds.filter(|object| object.meta().name.starts_with("x-")).cloned().collect()
}

fn owners(object: &Object) -> &[OwnerReference] {
    &object.meta().owner_references
}

fn waits(object: &Object) -> bool {
    object.meta().is_terminating() && object.meta().finalizers.iter().any(|held| held == "foregroundDeletion")
}

fn blocks(object: &Object, owner_uid: &str) -> bool {
    owners(object).iter().any(|owner| owner.uid == owner_uid && owner.block_owner_deletion == Some(true))
}

/// What waits for something that waits, round in a circle. Upstream's collector does not come out of it either: it
/// unblocks a circle only while one in it is not yet being deleted.
fn stuck(held: &[Arc<Object>]) -> BTreeSet<String> {
    let mut stuck: Vec<&Arc<Object>> = held.iter().filter(|object| waits(object)).collect();
    loop {
        let blocked = |owner: &&Arc<Object>| stuck.iter().any(|held| blocks(held, &owner.meta().uid));
        let left: Vec<_> = stuck.iter().copied().filter(blocked).collect();
        if left.len() == stuck.len() {
            return stuck.iter().map(|object| object.meta().uid.clone()).collect();
        }
        stuck = left;
    }
}

#[derive(Default)]
struct Always {
    /// The uids of what users deleted.
    asked: BTreeSet<String>,
    /// The uids of what users deleted not in the foreground: that ends a wait for dependents.
    hurried: BTreeSet<String>,
    /// Of what users deleted and said that its dependents stay: the dependents that had been there for long.
    spared: BTreeMap<String, BTreeSet<String>>,
    /// What everybody had time to see, by uid and version.
    known: BTreeSet<(String, i64)>,
}

impl Rules for Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        let Some(before) = seen.before.as_deref().filter(|held| held.meta().name.starts_with("x-")) else {
            return;
        };
        let begins = seen.after.as_ref().is_none_or(|after| after.meta().is_terminating());
        if begins && !before.meta().is_terminating() && !self.asked.contains(&before.meta().uid) {
            self.see_collected(witness, before);
        }
        if seen.after.is_none() && waits(before) && !self.hurried.contains(&before.meta().uid) {
            self.see_end_of_wait(witness, before);
        }
    }
}

impl Always {
    fn see_collected(&self, witness: &Witness, object: &Object) {
        let uid = &object.meta().uid;
        assert!(!owners(object).is_empty(), "{} has no owners and is collected", object.key());
        for owner in owners(object) {
            let held = all(witness).into_iter().find(|held| held.meta().uid == owner.uid);
            let lives = held.is_some_and(|held| !held.meta().is_terminating());
            assert!(!lives, "{} is collected though {} lives", object.key(), owner.name);
            let spared = self.spared.get(&owner.uid).is_some_and(|spared| spared.contains(uid));
            assert!(!spared, "{} is collected, an orphan of {}", object.key(), owner.name);
        }
    }

    fn see_end_of_wait(&self, witness: &Witness, owner: &Object) {
        for object in all(witness) {
            let known = self.known.contains(&(object.meta().uid.clone(), object.revision()));
            let held_up = known && blocks(&object, &owner.meta().uid);
            assert!(!held_up, "{} is gone before {}", owner.key(), object.key());
        }
    }
}

fn reference(chance: &mut fastrand::Rng, owner: &Object) -> Value {
    let kind = kind_of(owner);
    json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "name": owner.meta().name, "uid": owner.meta().uid,
        "blockOwnerDeletion": chance.bool(),
    })
}

/// Some owners for an object of this kind, now and then one that never was.
fn some_owners(chance: &mut fastrand::Rng, witness: &Witness, kind: &Kind) -> Vec<Value> {
    let mut pool: Vec<_> =
        all(witness).into_iter().filter(|held| kind.namespaced || !kind_of(held).namespaced).collect();
    chance.shuffle(&mut pool);
    let count = chance.usize(0..3);
    let mut owners: Vec<Value> = pool.iter().take(count).map(|owner| reference(chance, owner)).collect();
    if chance.u8(0..8) == 0 {
        owners.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "name": "x-never", "uid": "never",
        }));
    }
    owners
}

async fn step(world: &mut World, witness: &mut Witness, always: &mut Always, number: u32) {
    let held = all(witness);
    match world.chance.u8(0..20) {
        0..=6 => {
            let at = world.chance.usize(0..3);
            let (kind, letter) = (KINDS[at], ["c", "s", "r"][at]);
            let owners = some_owners(&mut world.chance, witness, &kind);
            let metadata = json!({ "name": format!("x-{letter}{number}"), "ownerReferences": owners });
            world.create(&kind, &json!({ "metadata": metadata })).await;
        }
        7..=9 => {
            let Some(object) = world.chance.choice(&held) else { return };
            let kind = kind_of(object);
            let owners = some_owners(&mut world.chance, witness, &kind);
            let patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": owners } });
            or_too_late(world.try_merge(&kind, &object.meta().name, &patch).await);
        }
        10..=12 => {
            let Some(object) = world.chance.choice(&held).cloned() else { return };
            let ways = [Propagation::Foreground, Propagation::Background, Propagation::Orphan];
            let way = *world.chance.choice(&ways).unwrap();
            let uid = object.meta().uid.clone();
            if way == Propagation::Orphan && !object.meta().is_terminating() {
                let known = |held: &&Arc<Object>| {
                    always.known.contains(&(held.meta().uid.clone(), held.revision()))
                        && owners(held).iter().any(|owner| owner.uid == uid)
                };
                let spared = held.iter().filter(known).map(|held| held.meta().uid.clone()).collect();
                always.spared.insert(uid.clone(), spared);
            }
            if way != Propagation::Orphan {
                // A later word counts, while the first is not yet carried out.
                always.spared.remove(&uid);
            }
            if way != Propagation::Foreground {
                always.hurried.insert(uid.clone());
            }
            always.asked.insert(uid);
            world.delete(&kind_of(&object), &object.meta().name, Some(way)).await;
        }
        13 => world.restart(),
        14 => {
            // For once nothing fails, and everybody sees what is there.
            world.faults.set(0);
            world.pass(Duration::from_secs(900)).await;
            witness.hold(always).await;
            always.known =
                all(witness).iter().map(|held| (held.meta().uid.clone(), held.revision())).collect();
            world.faults.set(20);
        }
        15 | 16 => {
            let seconds = world.chance.u64(1..300);
            world.pass(Duration::from_secs(seconds)).await;
        }
        _ => world.settle().await,
    }
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::default();
    tell((&mut world, &mut witness, &mut always), STEPS, step).await;
    world.faults.set(0);
    world.pass(Duration::from_secs(7200)).await;
    witness.hold(&mut always).await;
    let held = all(&witness);
    let uids: BTreeSet<&String> = held.iter().map(|object| &object.meta().uid).collect();
    let stuck = stuck(&held);
    for object in &held {
        if stuck.contains(&object.meta().uid) {
            continue;
        }
        assert!(!object.meta().is_terminating(), "{} never goes: {:?}", object.key(), object.meta());
        let lives = |owner: &OwnerReference| uids.contains(&owner.uid);
        let stays = owners(object).is_empty() || owners(object).iter().any(lives);
        assert!(stays, "{} in {:?} has no owner left", object.key(), home(&kind_of(object)));
    }
    world.rest().await;
}

#[tokio::test]
async fn whatever_happens_what_is_owned_stays_and_the_rest_goes() {
    for seed in seeds(10) {
        println!("seed {seed}");
        story(seed).await;
    }
}

#[tokio::test]
async fn what_waits_for_itself_does_so_at_rest() {
    let (world, mut witness) = world(1).await;
    world.create(&CONFIG_MAPS, &json!({ "metadata": { "name": "x-c1" } })).await;
    witness.catch_up(|_, _| {}).await;
    let itself = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "x-c1", "uid": all(&witness)[0].meta().uid,
        "blockOwnerDeletion": true,
    }]);
    world.merge(&CONFIG_MAPS, "x-c1", &json!({ "metadata": { "ownerReferences": itself } })).await;
    world.delete(&CONFIG_MAPS, "x-c1", Some(Propagation::Foreground)).await;
    world.settle().await;
    world.rest().await;
    witness.catch_up(|_, _| {}).await;
    assert_eq!(stuck(&all(&witness)).len(), 1);
    world.merge(&CONFIG_MAPS, "x-c1", &json!({ "metadata": { "ownerReferences": [] } })).await;
    world.settle().await;
    witness.catch_up(|_, _| {}).await;
    assert!(all(&witness).is_empty());
}
