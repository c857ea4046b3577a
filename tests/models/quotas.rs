//! Resource quotas: objects come, end and go, limits change, also to below what is used. What is let in fits, and at rest
//! a quota says what is used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, Status};
use controllers::quota::Quotas;
use reconcile::kinds::{
    CONFIG_MAPS, Kind, PERSISTENT_VOLUME_CLAIMS, PODS, PRIORITY_CLASSES, RESOURCE_QUOTAS, SECRETS, SERVICES,
    VOLUME_ATTRIBUTES_CLASSES,
};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, is_active, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 110;
/// One quota of everything, one of a scope, and one that selects by a scope.
const NAMES: [&str; 3] = ["all", "scoped", "selected"];
const KINDS: [Kind; 5] = [PODS, CONFIG_MAPS, SECRETS, SERVICES, PERSISTENT_VOLUME_CLAIMS];
const SCOPES: [&str; 4] = ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort"];
/// Classes of priority and of attributes of volumes; nobody makes objects of the last.
const CLASSES: [&str; 3] = ["high", "low", "none"];

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| vec![Arc::new(Quotas::new(ctx))]).await;
    for (name, number) in [("high", 1000), ("low", 10)] {
        world.create(&PRIORITY_CLASSES, &json!({ "metadata": { "name": name }, "value": number })).await;
        let class = json!({ "metadata": { "name": name }, "driverName": "a.example.com", "parameters": { "a": name } });
        world.create(&VOLUME_ATTRIBUTES_CLASSES, &class).await;
    }
    let witness = Witness::of(&world, &[&[RESOURCE_QUOTAS], &KINDS[..]].concat()).await;
    (world, witness)
}

/// Amounts in thousandths, or as the number that they are.
type Amounts = BTreeMap<String, i64>;

fn amount(value: &Value) -> i64 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: i64 = number.parse().unwrap();
    match unit {
        "" => number * 1000,
        "m" => number,
        "Gi" => number * 1000 * (1 << 30),
        other => panic!("an amount in {other}: {text}"),
    }
}

fn amounts(list: &Value) -> Amounts {
    list.as_object().into_iter().flatten().map(|(name, held)| (name.clone(), amount(held))).collect()
}

/// What an object uses.
fn usage(kind: &str, object: &Value) -> Amounts {
    let names: Vec<(&str, i64)> = match kind {
        "Pod" => {
            let cpu = &object["spec"]["containers"][0]["resources"]["requests"]["cpu"];
            vec![("pods", 1000), ("requests.cpu", if cpu.is_null() { 0 } else { amount(cpu) })]
        }
        "ConfigMap" => vec![("configmaps", 1000)],
        "Secret" => vec![("count/secrets", 1000)],
        "Service" => {
            let nodes = if object["spec"]["type"] == "NodePort" { 1000 } else { 0 };
            vec![("services", 1000), ("services.nodeports", nodes)]
        }
        _ => {
            let storage = amount(&object["spec"]["resources"]["requests"]["storage"]);
            vec![("persistentvolumeclaims", 1000), ("requests.storage", storage)]
        }
    };
    names.into_iter().map(|(name, used)| (name.to_owned(), used)).collect()
}

/// Whether a class is one that a requirement is about. Source: `ScopedResourceSelectorRequirementsAsSelector`.
fn selects(one: &Value, class: &Value) -> bool {
    let listed = one["values"].as_array().is_some_and(|values| values.contains(class));
    match one["operator"].as_str().unwrap() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => !class.is_null(),
        _ => class.is_null(),
    }
}

fn is_in_scope(kind: &str, quota: &Value, object: &Value) -> bool {
    let ends = !object["spec"]["activeDeadlineSeconds"].is_null();
    let best_effort = object["spec"]["containers"][0]["resources"]["requests"]["cpu"].is_null();
    let plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let plain = plain.map(|scope| json!({ "scopeName": scope, "operator": "Exists" }));
    let selected = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    plain.chain(selected.cloned()).all(|one| match (one["scopeName"].as_str().unwrap(), kind) {
        ("VolumeAttributesClass", "PersistentVolumeClaim") => {
            selects(&one, &object["spec"]["volumeAttributesClassName"])
        }
        ("Terminating", "Pod") => ends,
        ("NotTerminating", "Pod") => !ends,
        ("BestEffort", "Pod") => best_effort,
        ("NotBestEffort", "Pod") => !best_effort,
        ("PriorityClass", "Pod") => selects(&one, &object["spec"]["priorityClassName"]),
        ("CrossNamespacePodAffinity", "Pod") => !object["spec"]["affinity"].is_null(),
        _ => false,
    })
}

/// What all objects use of what a quota limits. Pods that have ended do not count, and none that should have.
fn used(witness: &Witness, quota: &Value) -> Amounts {
    let mut used: Amounts = amounts(&quota["spec"]["hard"]).into_keys().map(|name| (name, 0)).collect();
    for kind in KINDS {
        let counts = |object: &&Arc<Object>| kind.kind != "Pod" || is_active(object);
        for object in witness.all(kind.kind).filter(counts).map(|object| value(object)) {
            if !is_in_scope(kind.kind, quota, &object) {
                continue;
            }
            for (name, more) in usage(kind.kind, &object) {
                used.entry(name).and_modify(|sum| *sum += more);
            }
        }
    }
    used
}

/// What always holds.
struct Always {
    /// In every other story nobody misses an object for long, and quotas change when everybody has seen all objects. Else
    /// a count may be one of before, and what is then let in too much. Upstream's controller does not know better.
    strict: bool,
    /// Objects that were there, by uid.
    known: BTreeSet<String>,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        let Some(new) = &seen.after else { return };
        if seen.kind == "ResourceQuota" || !self.known.insert(new.meta().uid.clone()) || !self.strict {
            return;
        }
        let object = value(new);
        for quota in witness.all("ResourceQuota").map(|quota| value(quota)) {
            if !is_in_scope(seen.kind, &quota, &object) {
                continue;
            }
            let (hard, used) = (amounts(&quota["status"]["hard"]), used(witness, &quota));
            for (name, more) in usage(seen.kind, &object).into_iter().filter(|(_, more)| *more > 0) {
                let (Some(most), Some(sum)) = (hard.get(&name), used.get(&name)) else { continue };
                assert!(sum <= most, "{} with {more} makes {sum} {name} of {most}: {quota:#}", new.key());
            }
        }
    }
}

fn limits(chance: &mut fastrand::Rng, scoped: Option<&str>) -> Value {
    match scoped {
        Some("VolumeAttributesClass") => {
            let (number, storage) = (chance.u8(0..4).to_string(), format!("{}Gi", chance.u8(0..6)));
            return json!({ "persistentvolumeclaims": number, "requests.storage": storage });
        }
        Some("PriorityClass" | "CrossNamespacePodAffinity") => {
            return json!({ "pods": chance.u8(0..4).to_string(), "requests.cpu": format!("{}m", chance.u16(0..600)) });
        }
        Some(_) => return json!({ "pods": chance.u8(0..4).to_string() }),
        None => {}
    }
    let rows = [
        ("pods", 6, ""),
        ("requests.cpu", 900, "m"),
        ("configmaps", 5, ""),
        ("count/secrets", 4, ""),
        ("services", 4, ""),
        ("services.nodeports", 2, ""),
        ("persistentvolumeclaims", 4, ""),
        ("requests.storage", 8, "Gi"),
    ];
    let chosen: Vec<_> = rows.into_iter().filter(|_| chance.u8(0..3) > 0).collect();
    let limit = |(name, most, unit): (&str, u16, &str)| {
        (name.to_owned(), Value::from(format!("{}{unit}", chance.u16(0..=most))))
    };
    Value::Object(chosen.into_iter().map(limit).collect())
}

/// One that selects by classes, as chance has it.
fn requirement(chance: &mut fastrand::Rng) -> Value {
    let scope =
        *chance.choice(&["PriorityClass", "VolumeAttributesClass", "CrossNamespacePodAffinity"]).unwrap();
    if scope == "CrossNamespacePodAffinity" {
        return json!({ "scopeName": scope, "operator": "Exists" });
    }
    let operator = *chance.choice(&["In", "NotIn", "Exists", "DoesNotExist"]).unwrap();
    let values = operator.ends_with("In").then(|| json!([chance.choice(&CLASSES)]));
    json!({ "scopeName": scope, "operator": operator, "values": values })
}

/// What a quota limits follows from what it selects, which nobody changes.
fn wish(chance: &mut fastrand::Rng, name: &str, held: &Value) -> Value {
    let mut spec = held.clone();
    match name {
        "scoped" if spec.is_null() => spec = json!({ "scopes": [chance.choice(&SCOPES)] }),
        "selected" if spec.is_null() => {
            spec = json!({ "scopeSelector": { "matchExpressions": [requirement(chance)] } });
        }
        _ => {}
    }
    let scope = [&spec["scopes"][0], &spec["scopeSelector"]["matchExpressions"][0]["scopeName"]];
    let scope = scope.into_iter().find_map(|scope| scope.as_str().map(str::to_owned));
    let hard = limits(chance, scope.as_deref());
    if spec.is_null() {
        spec = json!({});
    }
    spec["hard"] = hard;
    spec
}

/// An object of a kind; its name may be taken, by which it fails after it was charged.
fn object(chance: &mut fastrand::Rng, kind: &Kind) -> Value {
    let spec = match kind.kind {
        "Pod" => {
            let mut container = json!({ "name": "c", "image": "c:1" });
            if let Some(cpu) = chance.choice(&[None, Some("100m"), Some("250m")]).copied().flatten() {
                container["resources"] = json!({ "requests": { "cpu": cpu } });
            }
            let elsewhere =
                json!({ "topologyKey": "zone", "namespaces": ["elsewhere"], "labelSelector": {} });
            let affinity = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [elsewhere] } });
            json!({
                "containers": [container], "activeDeadlineSeconds": chance.bool().then_some(600),
                "priorityClassName": chance.choice(&CLASSES[..2]).filter(|_| chance.bool()),
                "affinity": (chance.u8(0..3) == 0).then_some(affinity),
            })
        }
        "Service" => {
            let kind = if chance.u8(0..3) == 0 { "NodePort" } else { "ClusterIP" };
            json!({ "type": kind, "ports": [{ "port": 80 }] })
        }
        "PersistentVolumeClaim" => {
            let storage = format!("{}Gi", chance.u8(1..4));
            let class = chance.choice(&CLASSES[..2]).filter(|_| chance.bool());
            json!({
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": storage } },
                "volumeAttributesClassName": class,
            })
        }
        _ => Value::Null,
    };
    let mut object = json!({ "metadata": { "name": format!("x-{}", chance.u8(0..10)) } });
    if !spec.is_null() {
        object["spec"] = spec;
    }
    object
}

/// It may not fit, or be there already.
fn or_refused(done: Result<(), Status>) {
    if let Err(status) = done {
        assert!(matches!(status.code, 403 | 404 | 409), "{status:?}");
    }
}

fn some(world: &mut World, witness: &Witness, kinds: &[Kind]) -> Option<(Kind, Arc<Object>)> {
    let kind = *world.chance.choice(kinds)?;
    let held: Vec<_> =
        witness.all(kind.kind).filter(|held| held.meta().name.starts_with("x-")).cloned().collect();
    Some((kind, world.chance.choice(&held)?.clone()))
}

async fn change_quota(world: &mut World, witness: &Witness, strict: bool) {
    if strict {
        world.settle().await;
    }
    let name = *world.chance.choice(&NAMES).unwrap();
    let there = witness.all("ResourceQuota").find(|quota| quota.meta().name == name).cloned();
    match (world.chance.u8(0..4), there) {
        (_, None) => {
            let spec = wish(&mut world.chance, name, &Value::Null);
            world.create(&RESOURCE_QUOTAS, &json!({ "metadata": { "name": name }, "spec": spec })).await;
        }
        (0, Some(_)) => world.delete(&RESOURCE_QUOTAS, name, None).await,
        (_, Some(quota)) => {
            let spec = wish(&mut world.chance, name, &value(&quota)["spec"]);
            let patch = json!([{ "op": "replace", "path": "/spec/hard", "value": spec["hard"] }]);
            let (key, kind) = (Key::new(NAMESPACE, name), api::PatchType::Json);
            world.user.patch(&RESOURCE_QUOTAS.gvr(), &key, "", kind, &patch).await.unwrap();
        }
    }
    if strict {
        world.settle().await;
    }
}

async fn step(world: &mut World, witness: &Witness, strict: bool) {
    match world.chance.u8(0..24) {
        0..=9 => {
            let kind = *world.chance.choice(&KINDS).unwrap();
            let object = object(&mut world.chance, &kind);
            or_refused(world.user.create(&kind.gvr(), NAMESPACE, &object).await.map(drop));
        }
        10..=12 => {
            let Some((kind, object)) = some(world, witness, &KINDS) else { return };
            or_too_late(world.user.delete(&kind.gvr(), &object.key(), DeleteOptions::default()).await);
        }
        13 | 14 => change_quota(world, witness, strict).await,
        15 => {
            // It counts for the other scope from now on, or is what is limited.
            let Some((kind, object)) = some(world, witness, &[PODS, SERVICES]) else { return };
            let node = world.chance.bool();
            let spec = match kind.kind {
                "Pod" => json!({ "activeDeadlineSeconds": 500 }),
                _ => json!({ "type": if node { "NodePort" } else { "ClusterIP" } }),
            };
            or_refused(world.try_merge(&kind, &object.meta().name, &json!({ "spec": spec })).await);
        }
        16 => {
            let Some((_, pod)) = some(world, witness, &[PODS]) else { return };
            if pod.node_name().is_some() && is_active(&pod) {
                world.tell(&pod, "Succeeded", false).await;
            }
        }
        17 | 18 => drop(world.kubelet(witness, false).await),
        19 => world.restart(),
        20 | 21 => {
            let seconds = world.chance.u64(1..60);
            world.pass(Duration::from_secs(seconds)).await;
        }
        _ => world.settle().await,
    }
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always { strict: !seed.is_multiple_of(2), known: BTreeSet::new() };
    world.faults.set_apart(if always.strict { 0 } else { 20 }, "resourcequotas", 20);
    for _ in 0..STEPS {
        step(&mut world, &witness, always.strict).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    world.faults.set(0);
    // Whoever waits for another try gets it, and what only time changes is counted anew.
    world.pass(Duration::from_secs(1200)).await;
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    for quota in witness.all("ResourceQuota").map(|quota| value(quota)) {
        assert_eq!(amounts(&quota["status"]["hard"]), amounts(&quota["spec"]["hard"]), "{quota:#}");
        assert_eq!(amounts(&quota["status"]["used"]), used(&witness, &quota), "{quota:#}");
    }
    world.rest().await;
}

#[tokio::test]
async fn whatever_happens_what_is_let_in_fits() {
    for seed in seeds(10) {
        println!("seed {seed}");
        story(seed).await;
    }
}
