//! Namespaces that come, are filled, are deleted and come again: their content goes, pods first, nothing of theirs
//! outlives them, and what lives is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Status};
use controllers::namespace::Namespaces;
use controllers::per_namespace::{Kept, PerNamespace};
use reconcile::kinds::{CONFIG_MAPS, Kind, LEASES, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS};
use serde_json::json;

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, value};
use crate::world::{World, seeds};

const STEPS: usize = 80;
const NAMES: [&str; 3] = ["x-0", "x-1", "x-2"];
/// What users fill namespaces with.
const CONTENT: [Kind; 4] = [PODS, CONFIG_MAPS, SECRETS, LEASES];
const FINALIZERS: [&str; 2] = ["story.example/a", "story.example/b"];

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(Namespaces::new(ctx)),
            Arc::new(PerNamespace::new(ctx, Kept::ServiceAccount)),
            Arc::new(PerNamespace::new(ctx, Kept::RootCa)),
        ]
    })
    .await;
    let kinds = [&[NAMESPACES, SERVICE_ACCOUNTS], &CONTENT[..]].concat();
    let witness = Witness::everywhere(&world, &kinds).await;
    (world, witness)
}

/// Everything in a namespace.
fn content<'a>(witness: &'a Witness, namespace: &'a str) -> impl Iterator<Item = (Kind, &'a Arc<Object>)> {
    let kinds = CONTENT.iter().chain([&SERVICE_ACCOUNTS]);
    let all = kinds.flat_map(|kind| witness.all(kind.kind).map(|object| (*kind, object)));
    all.filter(move |(_, object)| object.meta().namespace == namespace)
}

fn namespace<'a>(witness: &'a Witness, name: &str) -> Option<&'a Arc<Object>> {
    witness.all("Namespace").find(|held| held.meta().name == name)
}

fn is_final(namespace: &Object) -> bool {
    value(namespace)["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// The uids of what users deleted themselves.
    asked: BTreeSet<String>,
}

impl Always {
    fn look(&self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("Namespace", Some(before), after) => {
                let ends = after.as_ref().is_none_or(|after| is_final(after));
                if ends && !is_final(before) || after.is_none() {
                    let name = &before.meta().name;
                    let left: Vec<_> =
                        content(witness, name).map(|(kind, left)| (kind.kind, left.key())).collect();
                    assert!(left.is_empty(), "{name} ends with {left:?} in it");
                }
            }
            ("Namespace", ..) => {}
            (_, None, Some(new)) => {
                let home = namespace(witness, &new.meta().namespace);
                assert!(home.is_some_and(|home| !is_final(home)), "{} comes where nothing may", new.key());
            }
            (kind, Some(before), after) => {
                let begins = after.as_ref().is_none_or(|after| after.meta().is_terminating());
                if begins && !before.meta().is_terminating() && !self.asked.contains(&before.meta().uid) {
                    see_deletion(witness, kind, before);
                }
            }
            _ => {}
        }
    }
}

/// The controller deletes something: its namespace ends, and pods go first (KEP-5080).
fn see_deletion(witness: &Witness, kind: &str, object: &Object) {
    let name = &object.meta().namespace;
    let ends = namespace(witness, name).is_some_and(|home| home.meta().is_terminating());
    assert!(ends, "{kind} {} is deleted, and its namespace lives", object.key());
    let pods = content(witness, name).filter(|(kind, _)| kind.kind == "Pod").count();
    assert!(kind == "Pod" || pods == 0, "{kind} {} is deleted before {pods} pods", object.key());
}

fn some_finalizers(chance: &mut fastrand::Rng) -> Vec<&'static str> {
    FINALIZERS.into_iter().filter(|_| chance.u8(0..4) == 0).collect()
}

/// Fills a namespace, if it takes it.
async fn fill(world: &mut World, made: &mut u32) {
    *made += 1;
    let (kind, home) = (*world.chance.choice(&CONTENT).unwrap(), *world.chance.choice(&NAMES).unwrap());
    let finalizers = some_finalizers(&mut world.chance);
    let mut object = json!({ "metadata": { "name": format!("x-{made}"), "finalizers": finalizers } });
    if kind.kind == "Pod" {
        object["spec"] = json!({ "containers": [{ "name": "c", "image": "c:1" }] });
    }
    let create = async |world: &World| world.user.create(&kind.gvr(), home, &object).await.map(drop);
    // Sometimes just when the namespace is told to go; a pod may then come after the look at the pods.
    let races = kind.kind != "Pod" && world.chance.u8(0..6) == 0;
    let created = if races {
        let (created, ()) = tokio::join!(create(world), delete_namespace(world, home));
        created
    } else {
        create(world).await
    };
    or_not_there(created);
}

/// A namespace may be missing, on its way out, or without its service account.
fn or_not_there(done: Result<(), Status>) {
    if let Err(status) = done {
        assert!(matches!(status.code, 403 | 404), "{status:?}");
    }
}

async fn delete_namespace(world: &World, name: &str) {
    let key = Key::new("", name);
    or_too_late(world.user.delete(&NAMESPACES.gvr(), &key, DeleteOptions::default()).await);
}

/// Takes all finalizers of the story from an object.
async fn let_go(world: &World, kind: &Kind, object: &Object) {
    let patch = json!({ "metadata": { "uid": object.meta().uid, "finalizers": null } });
    or_too_late(world.user.patch(&kind.gvr(), &object.key(), "", PatchType::Merge, &patch).await);
}

/// What finalizers of the story hold.
fn held(witness: &Witness) -> Vec<(Kind, Arc<Object>)> {
    let kinds = CONTENT.iter().chain([&NAMESPACES]);
    let all = kinds.flat_map(|kind| witness.all(kind.kind).map(|object| (*kind, object.clone())));
    all.filter(|(_, object)| object.meta().finalizers.iter().any(|one| FINALIZERS.contains(&one.as_str())))
        .collect()
}

async fn step(world: &mut World, witness: &Witness, always: &mut Always, made: &mut u32) {
    match world.chance.u8(0..24) {
        0..=2 => {
            let finalizers = some_finalizers(&mut world.chance);
            let name = *world.chance.choice(&NAMES).unwrap();
            let object = json!({ "metadata": { "name": name, "finalizers": finalizers } });
            or_too_late(world.user.create(&NAMESPACES.gvr(), "", &object).await);
        }
        3..=9 => fill(world, made).await,
        10 | 11 => {
            let name = *world.chance.choice(&NAMES).unwrap();
            delete_namespace(world, name).await;
        }
        12 => {
            let all: Vec<_> = NAMES.iter().flat_map(|name| content(witness, name)).collect();
            let Some((kind, object)) = world.chance.choice(&all) else { return };
            always.asked.insert(object.meta().uid.clone());
            or_too_late(world.user.delete(&kind.gvr(), &object.key(), DeleteOptions::default()).await);
        }
        13 | 14 => {
            let held = held(witness);
            let Some((kind, object)) = world.chance.choice(&held) else { return };
            let_go(world, kind, object).await;
        }
        15 | 16 => drop(world.kubelet(witness, false).await),
        17 => world.restart(),
        18 => {
            // One look at a namespace is dozens of requests.
            let percent = *world.chance.choice(&[0, 2, 20]).unwrap();
            world.faults.set_apart(percent, "namespaces", 30);
        }
        19..=21 => {
            let seconds = world.chance.u64(1..30);
            world.pass(Duration::from_secs(seconds)).await;
        }
        _ => world.settle().await,
    }
}

/// `NAME. has COUNT resource instances, …` for what is there, or nothing.
fn told(counts: &BTreeMap<String, usize>, what: &str) -> String {
    let parts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{name}{what}{count} resource instances")).collect();
    parts.join(", ")
}

/// What the conditions of a namespace say that cannot end is what is left in it.
fn check_conditions(witness: &Witness, home: &Object) {
    let (mut counts, mut finalizers) = (BTreeMap::new(), BTreeMap::new());
    let name = &home.meta().name;
    let pods_first = content(witness, name).any(|(kind, _)| kind.kind == "Pod");
    for (kind, object) in content(witness, name).filter(|(kind, _)| !pods_first || kind.kind == "Pod") {
        let resource = kind.gvr();
        *counts.entry(api::status::qualified(&resource.group, &resource.resource)).or_insert(0) += 1;
        for finalizer in &object.meta().finalizers {
            *finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
    }
    let expected = [
        ("NamespaceContentRemaining", told(&counts, ". has ")),
        ("NamespaceFinalizersRemaining", told(&finalizers, " in ")),
        ("NamespaceDeletionContentFailure", String::new()),
    ];
    let shown = value(home);
    for (kind, text) in expected {
        let conditions = shown["status"]["conditions"].as_array();
        let condition = conditions.and_then(|held| held.iter().find(|one| one["type"] == kind));
        let condition = condition.unwrap_or_else(|| panic!("{name} does not say {kind}: {shown:#}"));
        assert_eq!(condition["status"], if text.is_empty() { "False" } else { "True" }, "{condition}");
        let message = condition["message"].as_str().unwrap();
        assert!(text.is_empty() || message.ends_with(&format!(": {text}")), "{message} and not {text}");
    }
    assert!(!counts.is_empty(), "{name} is empty and stays: {shown:#}");
}

fn ending(witness: &Witness) -> Vec<Arc<Object>> {
    witness.all("Namespace").filter(|home| home.meta().is_terminating()).cloned().collect()
}

async fn complete(world: &mut World, witness: &mut Witness, always: &Always) {
    world.faults.set(0);
    world.pass(Duration::from_secs(45)).await;
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    for home in ending(witness).iter().filter(|home| !is_final(home)) {
        check_conditions(witness, home);
    }
    // Pods end, then the rest, then the namespaces.
    for _ in 0..3 {
        for (kind, object) in held(witness) {
            let_go(world, &kind, &object).await;
        }
        for _ in 0..100 {
            if !world.kubelet(witness, false).await {
                break;
            }
            witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        }
        world.pass(Duration::from_secs(45)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    let left = ending(witness);
    assert!(left.is_empty(), "what ends does not come to its end: {left:?}");
    for home in witness.all("Namespace") {
        let name = &home.meta().name;
        for (kind, what) in [("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")] {
            let there =
                witness.all(kind).any(|held| held.meta().namespace == *name && held.meta().name == what);
            assert!(there, "{name} has no {kind} {what}");
        }
    }
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::default();
    world.faults.set_apart(2, "namespaces", 30);
    let mut made = 0;
    for _ in 0..STEPS {
        step(&mut world, &witness, &mut always, &mut made).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    complete(&mut world, &mut witness, &always).await;
}

#[tokio::test]
async fn whatever_happens_nothing_outlives_its_namespace() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}

/// A controller that has not heard that a namespace is gone looks at another one of the same name.
#[tokio::test]
async fn a_namespace_that_comes_again_keeps_what_is_put_in_it() {
    let (mut world, mut witness) = world(1).await;
    let (name, always) = (NAMES[0], Always::default());
    let home = json!({ "metadata": { "name": name } });
    let thing = |name: &str| json!({ "metadata": { "name": name } });
    let mut pod = thing("x-pod");
    pod["spec"] = json!({ "containers": [{ "name": "c", "image": "c:1" }] });
    world.user.create(&NAMESPACES.gvr(), "", &home).await.unwrap();
    world.settle().await;
    world.user.create(&PODS.gvr(), name, &pod).await.unwrap();
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    assert!(world.kubelet(&witness, false).await, "the pod is on its node, and takes its time to end");
    delete_namespace(&world, name).await;
    world.settle().await;
    world.faults.deafen(Some("namespaces"));
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    assert!(world.kubelet(&witness, false).await, "the pod ends");
    world.settle().await;
    world.user.create(&NAMESPACES.gvr(), "", &home).await.expect("the first one is gone");
    for (kind, thing) in [(SERVICE_ACCOUNTS, thing("default")), (CONFIG_MAPS, thing("x-kept")), (PODS, pod)] {
        world.user.create(&kind.gvr(), name, &thing).await.unwrap();
    }
    let key = Key::new(name, "x-pod");
    world.settle().await;
    world.user.delete(&PODS.gvr(), &key, DeleteOptions::default()).await.unwrap();
    world.pass(Duration::from_secs(20)).await;
    let kept = world.user.get(&CONFIG_MAPS.gvr(), &Key::new(name, "x-kept")).await;
    assert!(kept.is_ok_and(|kept| !kept.meta().is_terminating()), "what was put in it is gone");
    world.faults.deafen(None);
    world.pass(Duration::from_secs(3600)).await;
    world.rest().await;
}
