//! Endpoints: Services whose selectors, ports and pods change. At rest slices and Endpoints say who serves, each pod once,
//! and nothing of a Service outlives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Object};
use controllers::endpoints::{EndpointSliceMirroring, EndpointSlices, EndpointsController};
use controllers::garbage::GarbageCollector;
use reconcile::kinds::{ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES};
use serde_json::{Value, json};

use crate::kubelet::{NODE, or_too_late};
use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{World, seeds};

const STEPS: usize = 80;
const NAMES: [&str; 2] = ["s-0", "s-1"];
const PER_SLICE: usize = 100;

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(EndpointSlices::new(ctx)),
            Arc::new(EndpointsController::new(ctx)),
            Arc::new(EndpointSliceMirroring::new(ctx)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    // Pods on a node that is not there do not serve.
    world.create(&NODES, &json!({ "metadata": { "name": NODE } })).await;
    let witness = Witness::of(&world, &[SERVICES, PODS, ENDPOINTS, ENDPOINT_SLICES]).await;
    (world, witness)
}

fn ports(chance: &mut fastrand::Rng) -> Value {
    let target = chance.choice(&[json!("http"), json!(8080), json!(9090)]).cloned();
    let first = json!({ "name": "a", "port": chance.u16(80..82), "targetPort": target });
    let second = json!({ "name": "b", "port": 443, "targetPort": 8443 });
    if chance.bool() { json!([first]) } else { json!([first, second]) }
}

fn selector(chance: &mut fastrand::Rng) -> Value {
    json!({ "app": *chance.choice(&["a", "b"]).unwrap() })
}

fn service(chance: &mut fastrand::Rng, name: &str) -> Value {
    let mut spec = json!({ "selector": selector(chance), "ports": ports(chance) });
    if chance.u8(0..3) == 0 {
        spec["clusterIP"] = "None".into();
    }
    spec["publishNotReadyAddresses"] = (chance.u8(0..4) == 0).into();
    json!({ "metadata": { "name": name, "labels": { "of": "story" } }, "spec": spec })
}

fn pod(chance: &mut fastrand::Rng, number: u32) -> Value {
    let port = json!({ "name": "http", "containerPort": chance.u16(8000..8002) });
    json!({
        "metadata": { "name": format!("p-{number}"), "labels": selector(chance) },
        "spec": { "containers": [{ "name": "c", "image": "c:1", "ports": [port] }] },
    })
}

/// Who serves, at which address and ports, and how: `ready`, `serving`, `terminating`.
type Endpoint = (String, String, BTreeSet<(String, i64)>, [bool; 3]);

fn ip(pod: &Object) -> Option<String> {
    value(pod)["status"]["podIP"].as_str().map(str::to_owned)
}

fn resolved(service: &Value, pod: &Value) -> BTreeSet<(String, i64)> {
    let port = |port: &Value| {
        let named = &pod["spec"]["containers"][0]["ports"][0]["containerPort"];
        let target = &port["targetPort"];
        let number = target.as_i64().or_else(|| named.as_i64()).unwrap();
        (port["name"].as_str().unwrap_or_default().to_owned(), number)
    };
    service["spec"]["ports"].as_array().into_iter().flatten().map(port).collect()
}

/// Who has to serve a Service.
fn wanted(witness: &Witness, service: &Object) -> BTreeSet<Endpoint> {
    let service = value(service);
    let publishes = service["spec"]["publishNotReadyAddresses"] == true;
    let selects =
        |pod: &&Arc<Object>| value(pod)["metadata"]["labels"]["app"] == service["spec"]["selector"]["app"];
    let ended = |pod: &Arc<Object>| {
        let phase = &value(pod)["status"]["phase"];
        phase == "Failed" || phase == "Succeeded"
    };
    let pods = witness.all("Pod").filter(selects).filter(|pod| !ended(pod));
    pods.filter_map(|pod| {
        let (serving, terminating) = (condition(pod, "Ready"), pod.meta().is_terminating());
        let how = [publishes || (serving && !terminating), serving, terminating];
        Some((pod.meta().uid.clone(), ip(pod)?, resolved(&service, &value(pod)), how))
    })
    .collect()
}

fn named_ports(ports: &Value) -> BTreeSet<(String, i64)> {
    let ports = ports.as_array().into_iter().flatten();
    ports
        .map(|port| (port["name"].as_str().unwrap_or_default().to_owned(), port["port"].as_i64().unwrap()))
        .collect()
}

fn slices<'a>(witness: &'a Witness, service: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
    witness.all("EndpointSlice").filter(move |slice| {
        slice.meta().labels.get("kubernetes.io/service-name").is_some_and(|of| of == service)
    })
}

fn uids(slice: &Object) -> Vec<String> {
    let slice = value(slice);
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints.map(|held| held["targetRef"]["uid"].as_str().unwrap().to_owned()).collect()
}

/// A slice is never too long, and has nobody twice.
fn look(_: &Witness, seen: &Seen) {
    let ours = |slice: &&Arc<Object>| seen.kind == "EndpointSlice" && slice.meta().name != "kubernetes";
    let Some(slice) = seen.after.as_ref().filter(ours) else { return };
    let uids = uids(slice);
    assert!(uids.len() <= PER_SLICE, "{} has {} endpoints", slice.key(), uids.len());
    let different: BTreeSet<_> = uids.iter().collect();
    assert_eq!(different.len(), uids.len(), "{} has somebody twice", slice.key());
}

fn check_slices(witness: &Witness, service: &Object) {
    let name = &service.meta().name;
    let mut told: Vec<Endpoint> = Vec::new();
    for slice in slices(witness, name) {
        let owner = slice.meta().controller().map(|owner| owner.uid.clone());
        assert_eq!(owner.as_ref(), Some(&service.meta().uid), "{} is of another Service", slice.key());
        let slice = value(slice);
        for held in slice["endpoints"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let how = ["ready", "serving", "terminating"].map(|one| held["conditions"][one] == true);
            let (uid, ip) = (text(&held["targetRef"]["uid"]), text(&held["addresses"][0]));
            told.push((uid, ip, named_ports(&slice["ports"]), how));
        }
    }
    let wanted = wanted(witness, service);
    assert_eq!(told.len(), wanted.len(), "{name}: {told:?}");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), wanted, "{name}");
    assert!(slices(witness, name).next().is_some(), "{name} has no slice");
}

/// Endpoints say the same by another word: ready and other addresses, and nobody who is on the way out.
fn check_endpoints(witness: &Witness, service: &Object) {
    let name = &service.meta().name;
    let held = witness.all("Endpoints").find(|held| held.meta().name == *name);
    let held = held.unwrap_or_else(|| panic!("{name} has no Endpoints"));
    let publishes = value(service)["spec"]["publishNotReadyAddresses"] == true;
    let mut told = BTreeMap::new();
    for subset in value(held)["subsets"].as_array().into_iter().flatten() {
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset[field].as_array().into_iter().flatten() {
                let uid = address["targetRef"]["uid"].as_str().unwrap().to_owned();
                let before = told.insert(uid, (ready, named_ports(&subset["ports"])));
                assert!(before.is_none(), "{name} has somebody twice: {subset}");
            }
        }
    }
    let wanted = wanted(witness, service).into_iter();
    let wanted = wanted.filter(|(.., [_, _, terminating])| publishes || !terminating);
    let wanted: BTreeMap<_, _> = wanted.map(|(uid, _, ports, [ready, ..])| (uid, (ready, ports))).collect();
    assert_eq!(told, wanted, "{name}");
    let of_service: BTreeMap<_, _> = service.meta().labels.iter().collect();
    let own = |name: &String| name.starts_with("endpoints.kubernetes.io/") || name.contains("headless");
    let labels: BTreeMap<_, _> = held.meta().labels.iter().filter(|(name, _)| !own(name)).collect();
    assert_eq!(labels, of_service, "{name}");
}

/// A pod gets on with its life.
async fn live(world: &mut World, witness: &Witness) {
    let pods: Vec<Arc<Object>> = witness.all("Pod").cloned().collect();
    let Some(pod) = world.chance.choice(&pods) else { return };
    if pod.node_name().is_none() {
        world.bind(pod).await;
    } else if !is_active(pod) {
        world.end(pod).await;
    } else if ip(pod).is_none() {
        run(world, pod).await;
    } else if world.chance.u8(0..4) > 0 {
        let ready = !condition(pod, "Ready");
        world.tell(pod, "Running", ready).await;
    } else {
        world.tell(pod, "Succeeded", false).await;
    }
}

async fn run(world: &World, pod: &Object) {
    let number: u32 = pod.meta().name.trim_start_matches("p-").parse().unwrap();
    let ip = format!("10.1.{}.{}", number / 200, number % 200 + 1);
    let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": null });
    let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [ready] });
    world.status(pod, &status).await;
}

async fn change(world: &mut World, witness: &Witness) {
    let name = *world.chance.choice(&NAMES).unwrap();
    let there = witness.all("Service").any(|held| held.meta().name == name);
    let chance = &mut world.chance;
    if !there {
        let service = service(chance, name);
        return world.create(&SERVICES, &service).await;
    }
    let patch = match chance.u8(0..8) {
        0..=2 => json!({ "spec": { "selector": selector(chance) } }),
        3 | 4 => json!({ "spec": { "ports": ports(chance) } }),
        5 => json!({ "spec": { "publishNotReadyAddresses": chance.bool() } }),
        6 => {
            let label = chance.bool().then_some("x");
            json!({ "metadata": { "labels": { "now": label } } })
        }
        _ => return world.delete(&SERVICES, name, None).await,
    };
    or_too_late(world.try_merge(&SERVICES, name, &patch).await);
}

async fn step(world: &mut World, witness: &Witness, made: &mut u32) {
    match world.chance.u8(0..24) {
        0..=5 => {
            // Now and then so many that they fill slices.
            let many = if world.chance.u8(0..60) == 0 { 110 } else { 1 };
            for _ in 0..many {
                *made += 1;
                let pod = pod(&mut world.chance, *made);
                world.create(&PODS, &pod).await;
            }
        }
        6..=9 => change(world, witness).await,
        10 => {
            let labels = selector(&mut world.chance);
            let pods: Vec<Arc<Object>> = witness.all("Pod").cloned().collect();
            let Some(pod) = world.chance.choice(&pods) else { return };
            let patch = json!({ "metadata": { "labels": labels } });
            or_too_late(world.try_merge(&PODS, &pod.meta().name, &patch).await);
        }
        11 | 12 => world.delete_pod(witness).await,
        13 => {
            let slices: Vec<_> = witness.all("EndpointSlice").map(|slice| slice.key()).collect();
            let Some(slice) = world.chance.choice(&slices) else { return };
            let options = DeleteOptions::default();
            or_too_late(world.user.delete(&ENDPOINT_SLICES.gvr(), slice, options).await);
        }
        14 => world.restart(),
        15 => {
            let seconds = world.chance.u64(1..300);
            world.pass(Duration::from_secs(seconds)).await;
        }
        16 | 17 => world.settle().await,
        18 => {
            // All pods get up at once.
            let new = |pod: &&Arc<Object>| is_active(pod) && ip(pod).is_none();
            let pods: Vec<_> = witness.all("Pod").filter(new).cloned().collect();
            for pod in pods {
                world.bind(&pod).await;
                run(world, &pod).await;
            }
        }
        _ => live(world, witness).await,
    }
}

async fn complete(world: &mut World, witness: &mut Witness) {
    world.faults.set(0);
    world.pass(Duration::from_secs(1200)).await;
    witness.catch_up(look).await;
    for service in witness.all("Service").filter(|service| service.meta().name != "kubernetes") {
        check_slices(witness, service);
        check_endpoints(witness, service);
    }
    for kind in ["EndpointSlice", "Endpoints"] {
        for held in witness.all(kind) {
            let name = held.meta().labels.get("kubernetes.io/service-name").unwrap_or(&held.meta().name);
            let lives =
                name == "kubernetes" || witness.all("Service").any(|service| service.meta().name == *name);
            assert!(lives, "{kind} {} outlives its Service", held.key());
        }
    }
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    world.faults.set(20);
    let mut made = 0;
    for _ in 0..STEPS {
        step(&mut world, &witness, &mut made).await;
        witness.catch_up(look).await;
    }
    complete(&mut world, &mut witness).await;
    for name in NAMES {
        world.delete(&SERVICES, name, None).await;
    }
    complete(&mut world, &mut witness).await;
}

#[tokio::test]
async fn whatever_happens_slices_say_who_serves() {
    for seed in seeds(8) {
        println!("seed {seed}");
        story(seed).await;
    }
}

#[tokio::test]
async fn labels_that_go_from_a_service_go_from_its_endpoints() {
    let (mut world, mut witness) = world(1).await;
    let service = service(&mut world.chance, NAMES[0]);
    world.create(&SERVICES, &service).await;
    world.settle().await;
    let labels = |label: Value| json!({ "metadata": { "labels": { "now": label } } });
    for label in [json!("x"), Value::Null] {
        world.merge(&SERVICES, NAMES[0], &labels(label)).await;
        complete(&mut world, &mut witness).await;
    }
}
