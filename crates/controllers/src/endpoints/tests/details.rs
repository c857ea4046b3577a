//! What upstream's controllers do in single cases.

use super::super::trigger::{TRIGGER_TIME, Triggers};
use super::*;
use crate::figures::mirroring::Mirrored;

fn all(slices: &BTreeMap<String, Slice>) -> Vec<Slice> {
    slices.values().cloned().collect()
}

#[test]
fn endpoints_are_packed_with_few_writes() {
    // Slices of such sizes are there, so many endpoints come: sizes afterwards, and how many slices are new.
    for (held, come, expected, new) in [
        (vec![100, 40], 10, vec![50, 100], 0),
        // They go where they leave the least room, all into one.
        (vec![30, 70, 60], 25, vec![30, 60, 95], 0),
        // What does not fit into one gets a new one.
        (vec![60, 70], 50, vec![50, 60, 70], 1),
        (vec![10], 100, vec![10, 100], 1),
        (vec![10], 150, vec![60, 100], 1),
    ] {
        let (mut slices, mut made, mut pods) = (BTreeMap::new(), 0, Vec::new());
        for count in held {
            let more: Vec<Pod> = (0..count).map(|at| pod(at + pods.len() as u32, true, false)).collect();
            apply(&mut slices, steps(&http(), &more, Vec::new()), &mut made);
            pods.extend(more);
        }
        let before = made;
        pods.extend((0..come).map(|number| pod(4000 + number, true, false)));
        let todo = steps(&http(), &pods, all(&slices));
        assert!(todo.len() <= 2);
        apply(&mut slices, todo, &mut made);
        let mut sizes: Vec<usize> = slices.values().map(|slice| slice.endpoints.len()).collect();
        sizes.sort_unstable();
        assert_eq!((sizes, made - before), (expected, new));
    }
}

#[test]
fn slices_of_an_older_service_go_and_are_not_written_over() {
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    let mut older = http();
    older.metadata.uid = "older".into();
    apply(&mut slices, steps(&older, &[pod(1, true, false)], Vec::new()), &mut made);
    let todo = steps(&http(), &[pod(1, true, false)], all(&slices));
    assert!(matches!(&todo[..], [Step::Create(_), Step::Delete { .. }]), "{todo:?}");
}

#[test]
fn a_service_that_goes_gets_no_new_slices() {
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    apply(&mut slices, steps(&http(), &[pod(1, true, false)], Vec::new()), &mut made);
    let mut going = http();
    going.metadata.deletion_timestamp = Some("2024-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(steps(&going, &[], Vec::new()), []);
    let todo = steps(&going, &[pod(1, false, false)], all(&slices));
    assert!(matches!(&todo[..], [Step::Patch { .. }]), "{todo:?}");
}

#[test]
fn pods_on_nodes_that_are_not_there_are_left_out_and_looked_at_again() {
    let pods = [pod(1, true, false), on(pod(2, true, false), "x-9")];
    let seen = outcome(&http(), &pods, Vec::new(), None, false);
    assert_eq!(seen.stray, ["skipping Pod p0002 for Service ns/web: Node x-9 Not Found"]);
    assert_eq!((seen.added, seen.endpoints), (1, 1));
    let mut early = http();
    early.spec.publish_not_ready_addresses = true;
    let seen = outcome(&early, &pods, Vec::new(), None, false);
    assert_eq!((seen.stray.len(), seen.endpoints), (0, 2));
}

#[test]
fn families_are_those_of_the_service() {
    let mut both = pod(1, true, false);
    both.status.pod_ips =
        ["10.0.0.2", "fd00::2"].map(|ip| crate::pods::PodIp { ip: ip.into() }).into_iter().collect();
    for (spec, families) in [
        (json!({ "clusterIP": "10.96.0.1" }), vec!["IPv4"]),
        (json!({ "clusterIP": "fd01::1" }), vec!["IPv6"]),
        (json!({ "clusterIP": "None" }), vec!["IPv4", "IPv6"]),
        (json!({ "clusterIP": "10.96.0.1", "ipFamilies": ["IPv6", "IPv4"] }), vec!["IPv4", "IPv6"]),
        (json!({ "clusterIP": "None", "ipFamilies": ["IPv6"] }), vec!["IPv6"]),
    ] {
        let mut spec = spec;
        spec["selector"] = json!({ "app": "web" });
        spec["ports"] = json!([{ "port": 80 }]);
        let service = service(spec);
        let (mut slices, mut made) = (BTreeMap::new(), 0);
        apply(&mut slices, steps(&service, std::slice::from_ref(&both), Vec::new()), &mut made);
        let seen: Vec<_> = slices.values().map(|slice| slice.address_type.clone()).collect();
        assert_eq!(seen, families);
        assert!(slices.values().all(|slice| slice.endpoints.len() == 1 && slice.ports[0].name.is_empty()));
        // A family that the Service has no more goes.
        let mut other = service;
        other.spec.ip_families = vec!["IPv4".into()];
        let todo = steps(&other, std::slice::from_ref(&both), all(&slices));
        apply(&mut slices, todo, &mut made);
        let seen: Vec<_> = slices.values().map(|slice| slice.address_type.clone()).collect();
        assert_eq!(seen, ["IPv4"]);
    }
}

#[test]
fn labels_are_the_services_and_annotations_are_not() {
    let mut service = http();
    for (name, value) in
        [("team", "a"), ("kubernetes.io/service-name", "x"), ("service.kubernetes.io/headless", "")]
    {
        service.metadata.labels.insert(name.into(), value.into());
    }
    service.metadata.annotations.insert("note".into(), "x".into());
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    apply(&mut slices, steps(&service, &[pod(1, true, false)], Vec::new()), &mut made);
    let meta = &slices.values().next().unwrap().metadata;
    let labels = [
        ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"),
        ("kubernetes.io/service-name", "web"),
        ("team", "a"),
    ];
    assert_eq!(meta.labels, labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
    assert!(meta.annotations.is_empty());
    service.metadata.labels = BTreeMap::from([("team".into(), "b".into())]);
    let todo = steps(&service, &[pod(1, true, false)], all(&slices));
    assert_eq!(todo.len(), 1);
    apply(&mut slices, todo, &mut made);
    assert_eq!(slices.values().next().unwrap().metadata.labels["team"], "b");
    // Labels of the controller's own are no reason for a write.
    let first = slices.values_mut().next().unwrap();
    first.metadata.labels.insert("service.kubernetes.io/headless".into(), String::new());
    assert_eq!(steps(&service, &[pod(1, true, false)], all(&slices)), []);
}

#[test]
fn containers_beside_the_others_serve_named_ports() {
    for (policy, ports) in
        [("Always", json!([{ "name": "http", "port": 9000, "protocol": "TCP" }])), ("", json!([]))]
    {
        let mut pod = pod(1, true, false);
        pod.spec.containers.clear();
        pod.spec.init_containers = serde_json::from_value(json!([
            { "name": "mesh", "restartPolicy": policy, "ports": [{ "name": "http", "containerPort": 9000 }] }]))
        .unwrap();
        let [Step::Create(body)] = &steps(&http(), &[pod], Vec::new())[..] else { panic!("one slice") };
        assert_eq!(body["ports"], ports, "{policy}");
    }
}

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

fn since(pod: Pod, moment: &str) -> Pod {
    let mut pod = pod;
    pod.status.conditions[0].last_transition_time = Some(at(moment));
    pod
}

#[test]
fn slices_tell_of_the_oldest_change_that_made_them() {
    let (made, early, late) = ("2024-01-01T00:00:00Z", "2024-01-01T00:01:00Z", "2024-01-01T00:02:00Z");
    let mut service = http();
    service.metadata.creation_timestamp = Some(at(made));
    let (triggers, key) = (Triggers::default(), api::Key::new("ns", "web"));
    let look = |pods: &[Pod]| triggers.next(&key, &service, pods).map(|at| at.to_string());
    let one = since(pod(1, true, false), early);
    assert_eq!(look(std::slice::from_ref(&one)).as_deref(), Some(made));
    assert_eq!(look(std::slice::from_ref(&one)), None);
    // Two that are new: the older one counts.
    let both = [since(pod(2, true, false), late), since(pod(3, true, false), early), one];
    assert_eq!(look(&both).as_deref(), Some(early));
    // One that has gone says nothing of when.
    assert_eq!(look(&both[..2]), None);
    triggers.forget(&key);
    assert_eq!(triggers.next(&key, &service, &both), Some(at(made)));

    let tell = |trigger: Option<&str>, pods: &[Pod], slices: Vec<Slice>| {
        let trigger = trigger.map(at);
        let known = Known { service: &http(), pods, slices, trigger, ratios: None, hinted: false };
        plan::plan(known, place).steps
    };
    let (mut slices, mut count) = (BTreeMap::new(), 0);
    apply(&mut slices, tell(Some(made), &both, Vec::new()), &mut count);
    let told = |slices: &BTreeMap<String, Slice>| {
        slices.values().next().unwrap().metadata.annotations.get(TRIGGER_TIME).cloned()
    };
    assert_eq!(told(&slices).as_deref(), Some(made));
    // It is no reason for a write.
    assert_eq!(tell(Some(late), &both, all(&slices)), []);
    // A write for a reason without a moment takes it away.
    let todo = tell(None, &both[..2], all(&slices));
    apply(&mut slices, todo, &mut count);
    assert_eq!(told(&slices), None);
}

fn held(body: Value) -> legacy::Endpoints {
    serde_json::from_value(body).unwrap()
}

#[test]
fn endpoints_are_in_order_and_written_when_they_differ() {
    let pods: Vec<Pod> = [12, 3, 1].map(|number| pod(number, true, false)).into();
    let mut service = http();
    service.metadata.labels.insert("team".into(), "a".into());
    let moment = Some(at("2024-01-01T00:00:00Z"));
    let body = legacy::body(&service, &pods, moment);
    let ips = body["subsets"][0]["addresses"].as_array().unwrap().iter().map(|entry| entry["ip"].clone());
    assert_eq!(ips.collect::<Vec<_>>(), ["10.0.0.13", "10.0.0.2", "10.0.0.4"]);
    assert_eq!(body["metadata"]["annotations"], json!({ TRIGGER_TIME: "2024-01-01T00:00:00Z" }));
    assert_eq!(legacy::patch(&held(body.clone()), &legacy::body(&service, &pods, None)), None);
    // Labels that the Service has no more go, and so does what somebody said of its address.
    let mut stale = body.clone();
    stale["metadata"]["labels"]["old"] = "x".into();
    stale["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    let patch = legacy::patch(&held(stale), &legacy::body(&service, &pods, None)).unwrap();
    let labels = &patch["metadata"]["labels"];
    assert_eq!(labels["team"], "a");
    for gone in ["old", "service.kubernetes.io/headless"] {
        assert!(labels.as_object().unwrap().contains_key(gone) && labels[gone].is_null());
    }
    assert!(patch["metadata"]["annotations"][TRIGGER_TIME].is_null());
    // A headless Service whose named port a pod does not have is not served by it.
    let headless = super::service(json!({ "selector": { "app": "web" }, "clusterIP": "None",
        "ports": [{ "name": "db", "port": 1, "targetPort": "db" }] }));
    assert_eq!(legacy::body(&headless, &pods, None)["subsets"], json!([]));
}

#[test]
fn endpoints_hold_a_thousand_addresses_of_each_subset_in_proportion() {
    // Ready and other pods whose port is 8080, and ready and other pods whose port is 9090.
    for (counts, expected) in [
        ([600, 0, 300, 100], [600, 0, 300, 100]),
        ([900, 300, 0, 100], [900, 75, 0, 25]),
        ([1500, 10, 500, 10], [750, 0, 250, 0]),
    ] {
        let mut pods = Vec::new();
        for (index, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let mut pod = pod(pods.len() as u32, index % 2 == 0, false);
                pod.spec.containers[0].ports[0].container_port = if index < 2 { 8080 } else { 9090 };
                pods.push(pod);
            }
        }
        let body = legacy::body(&http(), &pods, None);
        let count =
            |subset: usize, field: &str| body["subsets"][subset][field].as_array().map_or(0, Vec::len);
        let (ready, other) = ("addresses", "notReadyAddresses");
        assert_eq!([count(0, ready), count(0, other), count(1, ready), count(1, other)], expected);
        let over = counts.iter().sum::<usize>() > 1000;
        let told = body["metadata"]["annotations"].get("endpoints.kubernetes.io/over-capacity");
        assert_eq!(told.is_some(), over);
        assert_eq!(legacy::patch(&held(body.clone()), &body), None);
    }
}

#[test]
fn mirrors_say_what_the_endpoints_say_and_no_more() {
    let subsets = json!([{ "addresses": [{ "ip": "192.0.2.1", "targetRef": { "kind": "Pod", "name": "p", "apiVersion": "v1" } }],
        "notReadyAddresses": [{ "ip": "192.0.2.2" }], "ports": [{ "port": 80, "protocol": "TCP" }] }]);
    let mut endpoints = by_hand(subsets);
    let annotate = |endpoints: &mut mirror::Endpoints, name: &str| {
        endpoints.metadata.annotations.insert(name.into(), "x".into());
    };
    for name in ["note", TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"] {
        annotate(&mut endpoints, name);
    }
    let (mut slices, mut made) = (BTreeMap::new(), 0);
    let first = mirror::plan(Some(&endpoints), Vec::new());
    let count = |added, updated, removed, endpoints| Mirrored {
        added,
        updated,
        removed,
        endpoints,
        slices: 1,
        ..Mirrored::default()
    };
    assert_eq!(first.count, count(2, 0, 0, 2));
    apply(&mut slices, first.steps, &mut made);
    let swapped = json!([{ "addresses": [{ "ip": "192.0.2.2" }], "notReadyAddresses": [{ "ip": "192.0.2.1",
        "targetRef": { "kind": "Pod", "name": "p", "apiVersion": "v1" } }], "ports": [{ "port": 80, "protocol": "TCP" }] }]);
    assert_eq!(mirror::plan(Some(&by_hand(swapped)), all(&slices)).count, count(0, 2, 0, 2));
    let slice = slices.values().next().unwrap();
    assert_eq!(slice.metadata.annotations, BTreeMap::from([("note".into(), "x".into())]));
    let written = json!(slice.endpoints);
    assert_eq!(
        written,
        json!([
            { "addresses": ["192.0.2.1"], "conditions": { "ready": true },
              "targetRef": { "kind": "Pod", "name": "p", "apiVersion": "v1" } },
            { "addresses": ["192.0.2.2"], "conditions": { "ready": false } },
        ])
    );
    annotate(&mut endpoints, "more");
    let todo = mirror::plan(Some(&endpoints), all(&slices)).steps;
    assert!(matches!(&todo[..], [Step::Patch { .. }]));
    apply(&mut slices, todo, &mut made);
    assert_eq!(mirror::plan(Some(&endpoints), all(&slices)).steps, []);
    // Other ports: the slice is written over.
    let mut moved = by_hand(
        json!([{ "addresses": [{ "ip": "192.0.2.1" }], "ports": [{ "port": 81, "protocol": "TCP" }] }]),
    );
    let mirror::Plan { steps: todo, count: counted, .. } = mirror::plan(Some(&moved), all(&slices));
    assert_eq!(counted, count(1, 0, 2, 1));
    assert!(matches!(&todo[..], [Step::Patch { .. }]), "{todo:?}");
    apply(&mut slices, todo, &mut made);
    assert_eq!((slices.values().next().unwrap().ports[0].port, made), (81, 1));
    // Endpoints that go get no more slices.
    moved.metadata.deletion_timestamp = Some(at("2024-01-01T00:00:00Z"));
    assert_eq!(mirror::plan(Some(&moved), Vec::new()).steps, []);
    // The longest of names leaves no room for a dash.
    moved.metadata.deletion_timestamp = None;
    moved.metadata.name = "n".repeat(253);
    let [Step::Create(body)] = &mirror::plan(Some(&moved), Vec::new()).steps[..] else { panic!("one slice") };
    assert_eq!(body["metadata"]["generateName"].as_str(), Some(moved.metadata.name.as_str()));
}

#[test]
fn what_mirrors_cannot_hold_is_told() {
    let many = |count: u32| (0..count).map(|at| json!({ "ip": format!("10.0.{}.{}", at / 250, at % 250) }));
    let ports = json!([{ "port": 80, "protocol": "TCP" }]);
    let invalid = "Skipped 1 invalid IP addresses when mirroring to EndpointSlices";
    let too_many = "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 3 addresses were skipped";
    for (addresses, kept, expected) in [
        (many(1000).collect::<Vec<_>>(), 1000, vec![]),
        (
            [json!({ "ip": "nonsense" })].into_iter().chain(many(2)).collect(),
            2,
            vec![("InvalidIPAddress", invalid)],
        ),
        (many(1003).collect(), 1000, vec![("TooManyAddressesToMirror", too_many)]),
    ] {
        let plan =
            mirror::plan(Some(&by_hand(json!([{ "addresses": addresses, "ports": ports }]))), Vec::new());
        let told = plan.complaints();
        let told: Vec<_> = told.iter().map(|(reason, message)| (*reason, message.as_str())).collect();
        assert_eq!(told, expected);
        let [Step::Create(body)] = &plan.steps[..] else { panic!("one slice") };
        assert_eq!(body["endpoints"].as_array().unwrap().len(), kept);
    }
}
