//! Who should use which endpoint.

use super::super::topology::{Facts, Zones, ratios};
use super::*;

/// Hints of the endpoints, in order: zones, then nodes.
fn hints(slices: &BTreeMap<String, Slice>) -> Vec<String> {
    let endpoints = slices.values().flat_map(|slice| &slice.endpoints);
    endpoints
        .map(|endpoint| {
            let hints = endpoint.hints.clone().unwrap_or_default();
            let named = hints.for_zones.iter().chain(&hints.for_nodes).map(|held| held.name.as_str());
            named.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn traffic_is_distributed_as_the_service_says() {
    let pods = [
        on(pod(1, true, false), "a-1"),
        on(pod(2, true, false), "b-1"),
        on(pod(3, false, false), "b-2"),
        // A node without a zone.
        on(pod(4, true, false), "-4"),
    ];
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    // Each step begins with the slices of the one before.
    for (distribution, expected) in [
        ("", ["", "", "", ""]),
        ("PreferClose", ["a", "b", "", ""]),
        ("PreferSameNode", ["a a-1", "b b-1", "", "-4"]),
        ("PreferSameZone", ["a", "b", "", ""]),
        ("", ["", "", "", ""]),
        ("Unknown", ["", "", "", ""]),
    ] {
        let mut service = http();
        service.spec.traffic_distribution = distribution.into();
        let todo = steps(&service, &pods, slices.values().cloned().collect());
        apply(&mut slices, todo, &mut made);
        assert_eq!(hints(&slices), expected, "{distribution}");
        let again = steps(&service, &pods, slices.values().cloned().collect());
        assert_eq!(again, [], "{distribution}");
    }
    assert_eq!(made, 1);
}

fn auto(annotation: &str) -> Service {
    let mut service = http();
    service.metadata.annotations.insert(annotation.into(), "Auto".into());
    service
}

fn shares(shares: &[(&str, f64)]) -> Ratios {
    shares.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect()
}

#[test]
fn endpoints_are_shared_out_by_the_zones_processors() {
    // Zone `a` has all endpoints, and half of the processors.
    let pods: Vec<Pod> = (0..4).map(|number| on(pod(number, true, false), "a-1")).collect();
    let halves = shares(&[("a", 0.5), ("b", 0.5)]);
    let service = auto("service.kubernetes.io/topology-mode");
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    let first = outcome(&service, &pods, Vec::new(), Some(&halves), false);
    assert_eq!(first.zones["IPv4"], BTreeMap::from([("a".into(), 2), ("b".into(), 2)]));
    assert_eq!(first.notes[0].message, "Topology Aware Hints has been enabled, addressType: IPv4");
    assert!(first.hinted);
    apply(&mut slices, first.steps, &mut made);
    let mut seen = hints(&slices);
    seen.sort();
    assert_eq!(seen, ["a", "a", "b", "b"]);
    // What is well stays.
    let second = outcome(&service, &pods, slices.values().cloned().collect(), Some(&halves), true);
    assert_eq!((second.steps, second.notes), (Vec::new(), Vec::new()));
    // A Service that does not ask any more has none.
    let last = outcome(&http(), &pods, slices.values().cloned().collect(), Some(&halves), true);
    assert_eq!(last.notes[0].message, "Topology Aware Hints has been disabled, addressType: IPv4");
    apply(&mut slices, last.steps, &mut made);
    assert_eq!((hints(&slices).concat(), last.hinted), (String::new(), false));
}

#[test]
fn endpoints_that_cannot_be_shared_out_are_everybodys() {
    let zoned = |zones: &[&str]| -> Vec<Pod> {
        let pods = zones.iter().zip(0..);
        pods.map(|(zone, number)| on(pod(number, true, false), &format!("{zone}-1"))).collect()
    };
    let halves = || Some(shares(&[("a", 0.5), ("b", 0.5)]));
    let nodes = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
    let few = "Insufficient number of endpoints (1 endpoints, 2 zones)";
    let over = "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
                (3 endpoints, 2 zones)";
    let zoneless = "One or more endpoints do not have a zone specified";
    for (pods, ratios, why) in [
        (zoned(&["a", "b"]), None, nodes),
        (zoned(&["a"]), halves(), few),
        (zoned(&["a", "b", "b"]), halves(), over),
        (zoned(&["a", ""]), halves(), zoneless),
    ] {
        let service = auto("service.kubernetes.io/topology-aware-hints");
        let (mut slices, mut made) = (BTreeMap::new(), 0);
        let seen = outcome(&service, &pods, Vec::new(), ratios.as_ref(), false);
        assert_eq!(seen.notes[0].message, format!("{why}, addressType: IPv4"));
        assert_eq!((seen.notes[0].reason, seen.hinted), ("TopologyAwareHintsDisabled", false));
        apply(&mut slices, seen.steps, &mut made);
        assert_eq!(hints(&slices).concat(), "", "{why}");
    }
}

#[test]
fn zones_are_weighed_by_ready_nodes_that_tell_everything() {
    let node = |zone: &str, milli_cpu: i64| Facts {
        zone: Some(zone.to_owned()).filter(|zone| !zone.is_empty()),
        ready: true,
        excluded: false,
        milli_cpu,
    };
    let (one, two) = (node("a", 1000), node("b", 3000));
    let down = Facts { ready: false, ..node("", 0) };
    let control = Facts { excluded: true, ..node("c", 9000) };
    let table = [
        (vec![one.clone(), two.clone(), down, control], Some(shares(&[("a", 0.25), ("b", 0.75)]))),
        (vec![one.clone(), one.clone()], None),
        (vec![one.clone(), two.clone(), node("", 1000)], None),
        (vec![one, two, node("c", 0)], None),
        (Vec::new(), None),
    ];
    for (nodes, expected) in table {
        assert_eq!(ratios(nodes.iter()), expected, "{nodes:?}");
    }
}

#[test]
fn services_of_which_a_zone_has_too_few_are_looked_at_again() {
    let object = |zone: &str, cpu: &str| {
        let node = json!({ "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": zone, "resourceVersion": "1", "labels": { "topology.kubernetes.io/zone": zone } },
            "status": { "allocatable": { "cpu": cpu }, "conditions": [{ "type": "Ready", "status": "True" }] } });
        api::Object::parse(serde_json::to_vec(&node).unwrap().into()).unwrap()
    };
    let zones = Zones::default();
    let service = api::Key::new("ns", "web");
    for zone in ["a", "b"] {
        assert!(zones.node_changed(zone, Some(&object(zone, "2"))));
        assert!(!zones.node_changed(zone, Some(&object(zone, "2"))), "nothing that counts has changed");
    }
    assert!(zones.count().is_empty());
    let counts =
        |a, b| BTreeMap::from([("IPv4", BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]))]);
    for (a, b, overloaded) in [(5, 5, false), (4, 6, true), (6, 5, false)] {
        zones.set(&service, counts(a, b), true);
        assert_eq!(zones.count().len(), usize::from(overloaded), "{a} {b}");
    }
    zones.node_changed("b", None);
    assert_eq!(zones.count(), std::slice::from_ref(&service));
    assert_eq!(zones.of(&service), (None, true));
    zones.set(&service, BTreeMap::new(), false);
    assert!(zones.count().is_empty());
}
