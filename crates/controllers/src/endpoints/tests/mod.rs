//! Plans over small Services, and random changes after which the slices must say exactly who serves.

mod details;
mod sharing;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::legacy;
use super::mirror;
use super::plan::{self, Known, Outcome, Place, Step};
use super::topology::Ratios;
use super::types::{Service, Slice};
use crate::pods::Pod;

fn service(spec: Value) -> Service {
    serde_json::from_value(
        json!({ "metadata": { "name": "web", "namespace": "ns", "uid": "s" }, "spec": spec }),
    )
    .unwrap()
}

fn http() -> Service {
    service(json!({ "selector": { "app": "web" }, "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] }))
}

/// Everything is in zone `z`.
fn steps(service: &Service, pods: &[Pod], slices: Vec<Slice>) -> Vec<Step> {
    outcome(service, pods, slices, None, false).steps
}

fn outcome(
    service: &Service,
    pods: &[Pod],
    slices: Vec<Slice>,
    ratios: Option<&Ratios>,
    hinted: bool,
) -> Outcome {
    let known = Known { service, pods, slices, trigger: None, ratios, hinted };
    plan::plan(known, place)
}

/// Nodes are in the zone that their name begins with; those of `x` are not there.
fn place(node: &str) -> Option<Place> {
    let zone = node.split('-').next().unwrap_or_default().to_owned();
    (zone != "x").then(|| Place { zone: Some(zone).filter(|zone| !zone.is_empty()) })
}

/// The pod on another node.
fn on(pod: Pod, node: &str) -> Pod {
    Pod { spec: crate::pods::PodSpec { node_name: node.into(), ..pod.spec }, ..pod }
}

fn pod(number: u32, ready: bool, terminating: bool) -> Pod {
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": format!("p{number:04}"), "namespace": "ns", "uid": format!("u{number:04}") },
        "spec": { "nodeName": "z-1", "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIP": format!("10.0.{}.{}", number / 250, number % 250 + 1),
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
    }))
    .unwrap();
    if terminating {
        pod.metadata.deletion_timestamp = Some("2024-01-01T00:00:00Z".parse().unwrap());
    }
    pod
}

fn merge(map: &mut BTreeMap<String, String>, patch: &Value) {
    for (name, value) in patch.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(value) => drop(map.insert(name.clone(), value.to_owned())),
            None => drop(map.remove(name)),
        }
    }
}

/// Applies steps to slices as the API server would.
fn apply(slices: &mut BTreeMap<String, Slice>, steps: Vec<Step>, made: &mut u32) {
    for step in steps {
        match step {
            Step::Create(body) => {
                *made += 1;
                let mut slice: Slice = serde_json::from_value(body).unwrap();
                slice.metadata.name = format!("web-{made}");
                slices.insert(slice.metadata.name.clone(), slice);
            }
            Step::Patch { name, patch } => {
                let slice = slices.get_mut(&name).unwrap();
                slice.endpoints = serde_json::from_value(patch["endpoints"].clone()).unwrap();
                if !patch["ports"].is_null() {
                    slice.ports = serde_json::from_value(patch["ports"].clone()).unwrap();
                }
                merge(&mut slice.metadata.labels, &patch["metadata"]["labels"]);
                merge(&mut slice.metadata.annotations, &patch["metadata"]["annotations"]);
            }
            Step::Delete { name } => drop(slices.remove(&name)),
        }
    }
}

#[test]
fn conditions_follow_readiness_and_termination() {
    let pods = [pod(1, true, false), pod(2, false, false), pod(3, true, true)];
    let [Step::Create(body)] = &steps(&http(), &pods, Vec::new())[..] else { panic!("one slice is made") };
    let conditions: Vec<_> =
        body["endpoints"].as_array().unwrap().iter().map(|held| held["conditions"].clone()).collect();
    let expect = |ready: bool, serving: bool, terminating: bool| json!({ "ready": ready, "serving": serving, "terminating": terminating });
    assert_eq!(
        conditions,
        [expect(true, true, false), expect(false, false, false), expect(false, true, true)]
    );
    assert_eq!(body["ports"], json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]));
    assert_eq!(
        (&body["endpoints"][0]["zone"], &body["endpoints"][0]["nodeName"]),
        (&json!("z"), &json!("z-1"))
    );
    let early = Service {
        spec: super::types::ServiceSpec { publish_not_ready_addresses: true, ..http().spec },
        ..http()
    };
    let [Step::Create(body)] = &steps(&early, &pods[1..2], Vec::new())[..] else { panic!("one slice") };
    assert_eq!(body["endpoints"][0]["conditions"]["ready"], true);
}

#[test]
fn nobody_serving_is_said_once() {
    let mut slices = BTreeMap::new();
    let mut made = 0;
    for _ in 0..2 {
        let todo = steps(&http(), &[], slices.values().cloned().collect());
        apply(&mut slices, todo, &mut made);
    }
    assert_eq!((slices.len(), made), (1, 1));
    // The first endpoint is written over it, and the last one leaves it behind.
    for (pods, ports) in [(vec![pod(1, true, false)], 1), (Vec::new(), 0)] {
        let todo = steps(&http(), &pods, slices.values().cloned().collect());
        assert!(matches!(&todo[..], [Step::Patch { .. }]), "{todo:?}");
        apply(&mut slices, todo, &mut made);
        let slice = slices.values().next().unwrap();
        assert_eq!((slice.ports.len(), slice.endpoints.len()), (ports, ports));
    }
}

#[test]
fn a_changed_pod_changes_one_slice() {
    let mut pods: Vec<Pod> = (0..250).map(|number| pod(number, true, false)).collect();
    let mut slices = BTreeMap::new();
    let mut made = 0;
    apply(&mut slices, steps(&http(), &pods, Vec::new()), &mut made);
    assert_eq!(slices.len(), 3);
    pods[7].metadata.deletion_timestamp = Some("2024-01-01T00:00:00Z".parse().unwrap());
    let todo = steps(&http(), &pods, slices.values().cloned().collect());
    assert!(matches!(&todo[..], [Step::Patch { .. }]));
    apply(&mut slices, todo, &mut made);
    assert!(steps(&http(), &pods, slices.values().cloned().collect()).is_empty());
}

#[test]
fn after_any_changes_the_slices_say_who_serves() {
    let mut seed = 9_u64;
    let mut chance = move |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    };
    let mut pods: BTreeMap<u32, Pod> = BTreeMap::new();
    let mut slices = BTreeMap::new();
    let mut made = 0;
    for number in 0..600 {
        for _ in 0..chance(20) {
            match chance(3) {
                0 => drop(pods.pop_first()),
                1 => drop(pods.insert(number * 20, pod(number * 20 % 5000, chance(2) == 0, chance(2) == 0))),
                _ => {
                    let next = pods.len() as u32 + number * 7;
                    pods.insert(next, pod(next % 5000, true, false));
                }
            }
        }
        let mut unique: BTreeMap<String, Pod> = BTreeMap::new();
        for pod in pods.values() {
            unique.insert(pod.metadata.uid.clone(), pod.clone());
        }
        let list: Vec<Pod> = unique.values().cloned().collect();
        let todo = steps(&http(), &list, slices.values().cloned().collect());
        apply(&mut slices, todo, &mut made);
        let mut said: Vec<_> = slices
            .values()
            .flat_map(|slice| &slice.endpoints)
            .map(|held| (held.target_ref.clone().unwrap().uid, held.is_ready()))
            .collect();
        said.sort();
        let wanted: Vec<_> = list
            .iter()
            .map(|pod| (pod.metadata.uid.clone(), pod.is_ready() && !pod.metadata.is_terminating()))
            .collect();
        assert_eq!(said, wanted);
        assert!(slices.values().all(|slice| slice.endpoints.len() <= 100));
    }
}

#[test]
fn endpoints_split_ready_from_other_and_leave_terminating_out() {
    let pods = [pod(2, true, false), pod(1, true, false), pod(3, false, false), pod(4, true, true)];
    let body = legacy::body(&http(), &pods, None);
    let ips = |field: &str| -> Vec<String> {
        let list = body["subsets"][0][field].as_array().unwrap();
        list.iter().map(|entry| entry["ip"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (ips("addresses"), ips("notReadyAddresses")),
        (vec!["10.0.0.2".into(), "10.0.0.3".into()], vec!["10.0.0.4".to_owned()])
    );
    assert_eq!(body["subsets"].as_array().unwrap().len(), 1);
    let headless = service(json!({ "selector": { "app": "web" }, "clusterIP": "None" }));
    let body = legacy::body(&headless, &pods[..1], None);
    assert_eq!(body["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    assert!(body["subsets"][0].get("ports").is_none());
}

/// Family, port, and addresses with their readiness.
type Seen = (String, i32, Vec<(String, bool)>);

fn by_hand(subsets: Value) -> mirror::Endpoints {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "e", "labels": { "team": "a" } }, "subsets": subsets,
    }))
    .unwrap()
}

#[test]
fn endpoints_made_by_hand_are_mirrored_by_family_and_ports() {
    let http = json!([{ "name": "http", "port": 80, "protocol": "TCP" }]);
    let endpoints = by_hand(json!([
        { "addresses": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }], "notReadyAddresses": [{ "ip": "192.0.2.2" }], "ports": http },
        { "addresses": [{ "ip": "192.0.2.3", "hostname": "c" }], "ports": [{ "port": 81, "protocol": "TCP" }] },
    ]));
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    apply(&mut slices, mirror::plan(Some(&endpoints), Vec::new()).steps, &mut made);
    let seen = |slices: &BTreeMap<String, Slice>| -> Vec<Seen> {
        slices
            .values()
            .map(|slice| {
                let endpoints = slice.endpoints.iter();
                let all = endpoints.map(|one| (one.addresses[0].clone(), one.is_ready())).collect();
                (slice.address_type.clone(), slice.ports[0].port, all)
            })
            .collect()
    };
    let one = |ip: &str, ready| (ip.to_owned(), ready);
    let expected = [
        ("IPv4".to_owned(), 81, vec![one("192.0.2.3", true)]),
        ("IPv4".to_owned(), 80, vec![one("192.0.2.1", true), one("192.0.2.2", false)]),
        ("IPv6".to_owned(), 80, vec![one("2001:db8::1", true)]),
    ];
    let mut found = seen(&slices);
    found.sort_by_key(|(family, port, _)| (family.clone(), -port));
    assert_eq!(found, expected);
    let labels = &slices.values().next().unwrap().metadata.labels;
    assert_eq!((labels["team"].as_str(), labels[super::types::SERVICE_NAME].as_str()), ("a", "web"));
    assert!(mirror::plan(Some(&endpoints), slices.values().cloned().collect()).steps.is_empty());

    let fewer = by_hand(json!([{ "addresses": [{ "ip": "192.0.2.9" }], "ports": http }]));
    let todo = mirror::plan(Some(&fewer), slices.values().cloned().collect()).steps;
    apply(&mut slices, todo, &mut made);
    assert_eq!(seen(&slices), [("IPv4".to_owned(), 80, vec![one("192.0.2.9", true)])]);
    assert_eq!(made, 3, "a slice that stays is changed and not made anew");
    let todo = mirror::plan(None, slices.values().cloned().collect()).steps;
    apply(&mut slices, todo, &mut made);
    assert!(slices.is_empty());
}

#[test]
fn most_changes_of_a_pod_are_none_to_services() {
    let pod = |label: &str, ready: &str, restarts: u32| {
        let body = json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u", "labels": { "app": label } },
            "spec": { "nodeName": "n" },
            "status": { "podIP": "10.0.0.1", "conditions": [{ "type": "Ready", "status": ready }],
                "containerStatuses": [{ "name": "c", "restartCount": restarts }] },
        });
        api::Object::parse(body.to_string().into()).unwrap()
    };
    let before = pod("web", "True", 0);
    assert!(super::serves_alike(&before, &pod("web", "True", 1)));
    assert!(!super::serves_alike(&before, &pod("web", "False", 0)));
    assert!(!super::serves_alike(&before, &pod("db", "True", 0)));
}

#[test]
fn endpoints_are_of_the_first_family_and_no_subset_is_empty() {
    let mut both = http();
    both.spec.ip_families = vec!["IPv6".into(), "IPv4".into()];
    assert_eq!((both.first_family(), both.families()), ("IPv6", vec!["IPv4", "IPv6"]));
    // A named port has another number in the last of 1,001 pods: all the room goes to the others.
    let mut pods: Vec<Pod> = (0..1001).map(|number| pod(number, true, false)).collect();
    pods[1000].spec.containers[0].ports[0].container_port = 9090;
    let body = legacy::body(&http(), &pods, None);
    let subsets = body["subsets"].as_array().unwrap();
    let lengths: Vec<usize> =
        subsets.iter().map(|held| held["addresses"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(lengths, [1000]);
}
