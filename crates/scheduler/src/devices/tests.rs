//! What claims get, and what is known of devices while that is written.

mod bounds;
mod extended;
mod pools;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object};
use serde_json::{Value, json};

use super::Devices;
use super::allocate::{Purse, Refused, Search};
use super::bind::{deadline, still_holds};
use super::of_pod::{PodClaims, Timeouts, claims, is_ready};
use super::types::{Allocation, Claim, Class, Slice, TaintRule};
use crate::framework::Event;
use crate::types::{DeviceClaim, Labels, Node, Pod};

const DRIVER: &str = "gpu.example.com";
const TIMEOUTS: Timeouts = Timeouts { filter: Duration::ZERO, binding: Duration::from_secs(600) };

fn object(value: &Value) -> Object {
    Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()
}

/// A claim of these devices.
fn claim(name: &str, devices: Value) -> Arc<Claim> {
    claim_with(name, devices, json!({}))
}

fn claim_with(name: &str, devices: Value, status: Value) -> Arc<Claim> {
    let meta =
        json!({ "namespace": "ns", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "5" });
    let value = json!({ "metadata": meta, "spec": { "devices": devices }, "status": status });
    Arc::new(Claim::decode(&object(&value)).unwrap())
}

/// Requests, each with what it asks for.
fn requests(asks: &[(&str, Value)]) -> Value {
    json!({ "requests": asks.iter().map(|(name, ask)| json!({ "name": name, "exactly": ask })).collect::<Vec<_>>() })
}

fn exactly(count: i64) -> Value {
    json!({ "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count })
}

fn with(mut ask: Value, field: &str, value: Value) -> Value {
    ask[field] = value;
    ask
}

/// A slice of the node n1.
fn slice(name: &str, devices: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "driver": DRIVER, "nodeName": "n1", "devices": devices,
        "pool": { "name": "n1", "generation": 1, "resourceSliceCount": 1 } } })
}

fn named(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>().into()
}

/// With the class `gpu`, which selects the devices of the driver.
fn devices(slices: &[Value]) -> Devices {
    let mut devices = Devices::default();
    let selector = json!([{ "cel": { "expression": format!("device.driver == '{DRIVER}'") } }]);
    let config = json!([{ "opaque": { "driver": DRIVER, "parameters": { "of": "class" } } }]);
    let class = json!({ "metadata": { "name": "gpu" }, "spec": { "selectors": selector, "config": config } });
    devices.put_class("gpu", Some(Arc::new(Class::decode(&object(&class)).unwrap())));
    for value in slices {
        let slice = Slice::decode(&object(value)).unwrap();
        devices.put_slice(&slice.name.clone(), Some(Arc::new(slice)));
    }
    devices
}

fn node(name: &str, labels: &[(&str, &str)]) -> Node {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Node { name: name.to_owned(), labels: labels.collect::<Labels>(), ..Node::default() }
}

/// What claims get on the node n1: request and device.
fn got(devices: &Devices, claims: &[Arc<Claim>]) -> Result<Vec<String>, Refused> {
    got_on(devices, claims, &node("n1", &[]))
}

fn got_on(devices: &Devices, claims: &[Arc<Claim>], node: &Node) -> Result<Vec<String>, Refused> {
    let search = Search::new(devices, claims.to_vec(), &Purse::default()).map_err(Refused::Wrong)?;
    let solutions = search.allocate(node, None)?;
    let told = solutions.iter().zip(claims).flat_map(|(solution, claim)| {
        let told = |chosen: &super::allocate::Chosen<'_>| {
            let request = claim.requests[chosen.request].full_name(chosen.ask);
            format!("{request}={}", chosen.device.id.device)
        };
        solution.devices.iter().map(told).collect::<Vec<_>>()
    });
    Ok(told.collect())
}

fn texts(texts: &[&str]) -> Result<Vec<String>, Refused> {
    Ok(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn wrong(why: &str) -> Result<Vec<String>, Refused> {
    Err(Refused::Wrong(why.to_owned()))
}

/// A claim with a device.
fn holder(name: &str, result: Value) -> Arc<Claim> {
    let mut result = result;
    for (field, value) in [("request", "r"), ("driver", DRIVER), ("pool", "n1")] {
        result[field] = value.into();
    }
    claim_with(name, json!({}), json!({ "allocation": { "devices": { "results": [result] } } }))
}

#[test]
fn devices_are_taken_in_their_order_and_none_twice() {
    let mut devices = devices(&[slice("s", named(&["a", "b", "c"]))]);
    let of = |count: i64| claim("c", requests(&[("r", exactly(count))]));
    assert_eq!(got(&devices, &[of(2)]), texts(&["r=a", "r=b"]));
    assert_eq!(
        got(&devices, &[of(2), claim("d", requests(&[("x", exactly(1))]))]),
        texts(&["r=a", "r=b", "x=c"])
    );
    assert_eq!(got(&devices, &[of(4)]), Err(Refused::Cannot));
    assert_eq!(
        got(&devices, &[of(33)]),
        wrong("claim ns/c: number of requested devices 33 exceeds the claim limit of 32")
    );
    assert_eq!(got_on(&devices, &[of(1)], &node("n2", &[])), Err(Refused::Cannot));
    // What another claim has is not to be had, what an administrator looks at is.
    let key = Key::new("ns", "other");
    devices.put_claim(&key, Some(holder("other", json!({ "device": "a" }))));
    assert_eq!(got(&devices, &[of(2)]), texts(&["r=b", "r=c"]));
    assert_eq!(got(&devices, &[of(3)]), Err(Refused::Cannot));
    let admin = claim("c", requests(&[("r", with(exactly(2), "adminAccess", true.into()))]));
    assert_eq!(got(&devices, &[admin]), texts(&["r=a", "r=b"]));
    devices.put_claim(&key, Some(holder("other", json!({ "device": "a", "adminAccess": true }))));
    assert_eq!(got(&devices, &[of(3)]), texts(&["r=a", "r=b", "r=c"]));
    devices.put_claim(&key, None);
    assert!(devices.used.is_empty());
}

#[test]
fn all_devices_are_all_that_are_selected_and_at_least_one() {
    let attributes = |model: &str| json!({ "model": { "string": model } });
    let two = json!([{ "name": "a", "attributes": attributes("x") }, { "name": "b", "attributes": attributes("y") },
        { "name": "c", "attributes": attributes("x") }]);
    let mut devices = devices(&[slice("s", two)]);
    let of = |model: &str| {
        let selector = format!("device.attributes['{DRIVER}'].model == '{model}'");
        let ask = json!({ "deviceClassName": "gpu", "allocationMode": "All", "selectors": [{ "cel": { "expression": selector } }] });
        claim("c", requests(&[("r", ask)]))
    };
    assert_eq!(got(&devices, &[of("x")]), texts(&["r=a", "r=c"]));
    assert_eq!(got(&devices, &[of("z")]), Err(Refused::Cannot));
    devices.put_claim(&Key::new("ns", "o"), Some(holder("o", json!({ "device": "c" }))));
    assert_eq!(got(&devices, &[of("x")]), Err(Refused::Cannot));
    assert_eq!(got(&devices, &[of("y")]), texts(&["r=b"]));
    // More slices are to come: nobody knows yet what all is, but some can be had of other pools.
    let mut more = slice("t", named(&["d"]));
    more["spec"]["pool"] = json!({ "name": "p", "generation": 1, "resourceSliceCount": 2 });
    devices.put_slice("t", Some(Arc::new(Slice::decode(&object(&more)).unwrap())));
    let why = "claim ns/c, request r: asks for all devices, but resource pool gpu.example.com/p is currently being updated";
    assert_eq!(got(&devices, &[of("y")]), wrong(why));
    assert_eq!(got(&devices, &[claim("c", requests(&[("r", exactly(2))]))]), texts(&["r=a", "r=b"]));
}

#[test]
fn pools_are_what_their_newest_slices_say_once_all_are_there() {
    let of = |name: &str, generation: i64, count: i64, device: &str| {
        let mut slice = slice(name, named(&[device]));
        slice["spec"]["pool"] = json!({ "name": "p", "generation": generation, "resourceSliceCount": count });
        slice
    };
    let one = claim("c", requests(&[("r", exactly(1))]));
    let can = |slices: &[Value]| got(&devices(slices), std::slice::from_ref(&one));
    assert_eq!(can(&[of("s1", 1, 1, "old"), of("s2", 2, 1, "new")]), texts(&["r=new"]));
    assert_eq!(can(&[of("s1", 1, 1, "old"), of("s2", 2, 2, "new")]), Err(Refused::Cannot));
    // By name, whatever order they came in.
    assert_eq!(can(&[of("s2", 1, 2, "b"), of("s1", 1, 2, "a")]), texts(&["r=a"]));
    assert_eq!(can(&[of("s2", 1, 2, "a"), of("s1", 1, 2, "a")]), Err(Refused::Invalid));
    // A part of the pool is on another node: the pool is whole all the same, or replaced.
    let elsewhere = |mut slice: Value| {
        slice["spec"]["nodeName"] = "n2".into();
        slice
    };
    assert_eq!(can(&[of("s1", 1, 2, "a"), elsewhere(of("s2", 1, 2, "b"))]), texts(&["r=a"]));
    assert_eq!(can(&[of("s1", 1, 2, "a"), elsewhere(of("s2", 2, 1, "b"))]), Err(Refused::Cannot));
}

#[test]
fn devices_are_on_the_nodes_that_slices_or_they_themselves_name() {
    let zone = |zone: &str| json!({ "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": [zone] }] }] });
    let mut place = slice("s", named(&["a"]));
    place["spec"]["nodeName"] = "".into();
    let one = [claim("c", requests(&[("r", exactly(1))]))];
    let (near, far) = (node("n1", &[("zone", "a")]), node("n2", &[("zone", "b")]));
    let by_name = json!({ "nodeSelectorTerms": [{ "matchFields": [
        { "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] });
    for (spec, device, near_has, far_has, selector) in [
        (json!({ "allNodes": true }), json!({}), true, true, Value::Null),
        (json!({ "allNodes": true }), json!({ "bindsToNode": true }), true, true, by_name.clone()),
        (json!({ "nodeSelector": zone("a") }), json!({}), true, false, zone("a")),
        (json!({ "nodeName": "n1" }), json!({}), true, false, by_name.clone()),
        (json!({ "perDeviceNodeSelection": true }), json!({ "nodeName": "n1" }), true, false, by_name),
        (json!({ "perDeviceNodeSelection": true }), json!({ "allNodes": true }), true, true, Value::Null),
        (
            json!({ "perDeviceNodeSelection": true }),
            json!({ "nodeSelector": zone("a") }),
            true,
            false,
            zone("a"),
        ),
        (json!({ "perDeviceNodeSelection": true }), json!({}), false, false, Value::Null),
        (json!({}), json!({}), false, false, Value::Null),
    ] {
        let mut value = place.clone();
        for (field, said) in spec.as_object().unwrap() {
            value["spec"][field] = said.clone();
        }
        for (field, said) in device.as_object().unwrap() {
            value["spec"]["devices"][0][field] = said.clone();
        }
        let devices = devices(&[value]);
        assert_eq!(got_on(&devices, &one, &near).is_ok(), near_has, "{spec} {device}");
        assert_eq!(got_on(&devices, &one, &far).is_ok(), far_has, "{spec} {device}");
        if near_has {
            let search = Search::new(&devices, one.to_vec(), &Purse::default()).unwrap();
            let found = search.allocate(&near, None).unwrap();
            let written = super::outcome::allocation(&one[0], &found[0], &near).unwrap();
            assert_eq!(written.raw["nodeSelector"], selector, "{spec} {device}");
        }
    }
}

#[test]
fn the_first_alternative_that_can_be_had_is_taken() {
    let devices = devices(&[slice("s", named(&["a", "b", "c"]))]);
    let alternative = |name: &str, count: i64| json!({ "name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count });
    let of = |counts: &[i64]| {
        let asks = ["x", "y", "z"].iter().zip(counts).map(|(name, count)| alternative(name, *count));
        claim("c", json!({ "requests": [{ "name": "r", "firstAvailable": asks.collect::<Vec<_>>() }] }))
    };
    assert_eq!(got(&devices, &[of(&[2, 1])]), texts(&["r/x=a", "r/x=b"]));
    assert_eq!(got(&devices, &[of(&[4, 3, 1])]), texts(&["r/y=a", "r/y=b", "r/y=c"]));
    assert_eq!(got(&devices, &[of(&[4, 5])]), Err(Refused::Cannot));
    // A claim that comes later decides what is left for the one before.
    let two = claim("d", requests(&[("q", exactly(2))]));
    assert_eq!(got(&devices, &[of(&[2, 1]), two.clone()]), texts(&["r/y=a", "q=b", "q=c"]));
    // Too many for one claim: a smaller alternative will do.
    let many: Vec<String> = (0..40).map(|number| format!("d{number:02}")).collect();
    let many = self::devices(&[slice("s", named(&many.iter().map(String::as_str).collect::<Vec<_>>()))]);
    let mut with_more = json!({ "requests": [{ "name": "r", "firstAvailable": [alternative("x", 20), alternative("y", 2)] }] });
    with_more["requests"].as_array_mut().unwrap().push(json!({ "name": "q", "exactly": exactly(20) }));
    let found = got(&many, &[claim("c", with_more)]).unwrap();
    assert_eq!((found.len(), found[0].as_str()), (22, "r/y=d00"));
}

#[test]
fn constraints_hold_over_the_devices_of_a_claim() {
    let device = |name: &str, numa: i64| json!({ "name": name, "attributes": { "numa": { "int": numa } } });
    let four = json!([device("a", 0), device("b", 1), device("c", 1), { "name": "d" }]);
    let devices = devices(&[slice("s", four)]);
    let full = format!("{DRIVER}/numa");
    let of = |asks: &[(&str, Value)], constraint: Value| {
        let mut devices = requests(asks);
        devices["constraints"] = json!([constraint]);
        [claim("c", devices)]
    };
    let same = json!({ "matchAttribute": full });
    assert_eq!(got(&devices, &of(&[("r", exactly(2))], same.clone())), texts(&["r=b", "r=c"]));
    assert_eq!(got(&devices, &of(&[("r", exactly(3))], same.clone())), Err(Refused::Cannot));
    let distinct = json!({ "distinctAttribute": full });
    assert_eq!(got(&devices, &of(&[("r", exactly(2))], distinct.clone())), texts(&["r=a", "r=b"]));
    assert_eq!(got(&devices, &of(&[("r", exactly(3))], distinct)), Err(Refused::Cannot));
    // Of some requests alone.
    let some = json!({ "matchAttribute": full, "requests": ["q"] });
    assert_eq!(
        got(&devices, &of(&[("r", exactly(1)), ("q", exactly(2))], some)),
        texts(&["r=a", "q=b", "q=c"])
    );
    let all = json!({ "deviceClassName": "gpu", "allocationMode": "All" });
    let why = "claim ns/c, request r: cannot add device gpu.example.com/n1/b because a claim constraint would not be satisfied";
    assert_eq!(got(&devices, &of(&[("r", all)], same)), wrong(why));
    assert!(matches!(got(&devices, &of(&[("r", exactly(1))], json!({}))), Err(Refused::Wrong(_))));
}

#[test]
fn tainted_devices_go_to_those_who_bear_the_taint() {
    let taint = json!([{ "key": "broken", "value": "yes", "effect": "NoExecute" }]);
    let mut devices = devices(&[slice("s", json!([{ "name": "a", "taints": taint }, { "name": "b" }]))]);
    let of =
        |tolerations: Value| [claim("c", requests(&[("r", with(exactly(1), "tolerations", tolerations))]))];
    assert_eq!(got(&devices, &of(json!([]))), texts(&["r=b"]));
    for (toleration, first) in [
        (json!({ "operator": "Exists" }), "r=a"),
        (json!({ "key": "broken", "operator": "Equal", "value": "yes" }), "r=a"),
        (json!({ "key": "broken", "operator": "Equal", "value": "no" }), "r=b"),
        (json!({ "key": "broken", "operator": "Exists", "effect": "NoSchedule" }), "r=b"),
    ] {
        assert_eq!(got(&devices, &of(json!([toleration]))), texts(&[first]), "{toleration}");
    }
    let rule = |device: &str, effect: &str| {
        let spec = json!({ "deviceSelector": { "driver": DRIVER, "device": device }, "taint": { "key": "x", "effect": effect } });
        TaintRule::decode(&object(&json!({ "metadata": { "name": "rule" }, "spec": spec }))).unwrap()
    };
    devices.put_rule("rule", Some(rule("b", "None")));
    assert_eq!(got(&devices, &of(json!([]))), texts(&["r=b"]));
    devices.put_rule("rule", Some(rule("b", "NoSchedule")));
    assert_eq!(got(&devices, &of(json!([]))), Err(Refused::Cannot));
}

#[test]
fn devices_share_counters_and_claims_share_devices() {
    let takes = |name: &str, memory: &str| json!({ "name": name, "consumesCounters": [{ "counterSet": "card", "counters": { "memory": { "value": memory } } }] });
    let pool = json!({ "name": "n1", "generation": 1, "resourceSliceCount": 2 });
    let mut counters = slice("counters", json!([]));
    counters["spec"]["sharedCounters"] =
        json!([{ "name": "card", "counters": { "memory": { "value": "40Gi" } } }]);
    let mut parts =
        slice("parts", json!([takes("whole", "40Gi"), takes("half", "20Gi"), takes("other", "20Gi")]));
    for slice in [&mut counters, &mut parts] {
        slice["spec"]["pool"] = pool.clone();
    }
    let mut devices = self::devices(&[counters.clone(), parts.clone()]);
    let of = |count: i64| [claim("c", requests(&[("r", exactly(count))]))];
    assert_eq!(got(&devices, &of(1)), texts(&["r=whole"]));
    assert_eq!(got(&devices, &of(2)), texts(&["r=half", "r=other"]));
    assert_eq!(got(&devices, &of(3)), Err(Refused::Cannot));
    devices.put_claim(&Key::new("ns", "o"), Some(holder("o", json!({ "device": "half" }))));
    assert_eq!(got(&devices, &of(1)), texts(&["r=other"]));
    // Counters that nobody has: the pool makes no sense.
    counters["spec"]["sharedCounters"][0]["name"] = "none".into();
    assert_eq!(got(&self::devices(&[counters, parts]), &of(1)), Err(Refused::Invalid));

    let shared = json!([{ "name": "a", "allowMultipleAllocations": true, "capacity": { "memory": { "value": "10Gi" } } }]);
    let mut devices = self::devices(&[slice("s", shared)]);
    let part = |name: &str, memory: &str| {
        claim(
            name,
            requests(&[("r", with(exactly(1), "capacity", json!({ "requests": { "memory": memory } })))]),
        )
    };
    assert_eq!(got(&devices, &[part("c", "4Gi"), part("d", "6Gi")]), texts(&["r=a", "r=a"]));
    assert_eq!(got(&devices, &[part("c", "4Gi"), part("d", "7Gi")]), Err(Refused::Cannot));
    let share = json!({ "device": "a", "shareID": "s1", "consumedCapacity": { "memory": "5Gi" } });
    devices.put_claim(&Key::new("ns", "o"), Some(holder("o", share)));
    assert_eq!(got(&devices, &[part("c", "5Gi")]), texts(&["r=a"]));
    assert_eq!(got(&devices, &[part("c", "6Gi")]), Err(Refused::Cannot));
    let claims = [part("c", "4Gi")];
    let search = Search::new(&devices, claims.to_vec(), &Purse::default()).unwrap();
    let found = search.allocate(&node("n1", &[]), None).unwrap();
    let written = super::outcome::allocation(&claims[0], &found[0], &node("n1", &[])).unwrap();
    let result = &written.raw["devices"]["results"][0];
    assert_eq!(result["consumedCapacity"], json!({ "memory": "4Gi" }));
    assert_eq!(result["shareID"].as_str().map(str::len), Some(36));
}

#[test]
fn what_is_said_to_drivers_names_the_requests_it_is_about() {
    let devices = devices(&[slice("s", named(&["a", "b"]))]);
    let opaque = |of: &str| json!({ "driver": DRIVER, "parameters": { "of": of } });
    let mut spec = requests(&[
        ("r", with(exactly(1), "tolerations", json!([{ "operator": "Exists" }]))),
        ("q", exactly(1)),
    ]);
    spec["config"] = json!([{ "opaque": opaque("all") }, { "requests": ["q"], "opaque": opaque("q") },
        { "requests": ["other"], "opaque": opaque("none") }]);
    let claims = [claim("c", spec)];
    let search = Search::new(&devices, claims.to_vec(), &Purse::default()).unwrap();
    let found = search.allocate(&node("n1", &[]), None).unwrap();
    let written = super::outcome::allocation(&claims[0], &found[0], &node("n1", &[])).unwrap();
    assert_eq!(
        written.raw["devices"],
        json!({
            "results": [
                { "request": "r", "driver": DRIVER, "pool": "n1", "device": "a", "tolerations": [{ "operator": "Exists" }] },
                { "request": "q", "driver": DRIVER, "pool": "n1", "device": "b" },
            ],
            "config": [
                { "source": "FromClass", "opaque": opaque("class") },
                { "source": "FromClaim", "opaque": opaque("all") },
                { "source": "FromClaim", "requests": ["q"], "opaque": opaque("q") },
            ],
        })
    );
}

#[test]
fn what_expressions_do_wrong_is_told_and_what_they_cost_is_bounded() {
    let devices = devices(&[slice("s", named(&["a"]))]);
    let of = |expression: &str| {
        [claim(
            "c",
            requests(&[(
                "r",
                with(exactly(1), "selectors", json!([{ "cel": { "expression": expression } }])),
            )]),
        )]
    };
    let why = "claim ns/c: selector #0 on device gpu.example.com/n1/a: CEL runtime error: no such key: x";
    assert_eq!(got(&devices, &of("device.attributes['d'].x == 1")), wrong(why));
    let why = got(&devices, &of("device.")).unwrap_err();
    assert!(
        matches!(&why, Refused::Wrong(why) if why.starts_with("claim ns/c: selector #0: CEL compile error: ")),
        "{why:?}"
    );
    let none = claim("c", requests(&[("r", with(exactly(1), "deviceClassName", "none".into()))]));
    assert_eq!(got(&devices, &[none]), wrong("request r: device class none does not exist"));

    // Every choice of 16 of 32 devices is a dead end: the search gives up, and needs no stack for its depth.
    let names: Vec<String> = (0..32).map(|number| format!("d{number:02}")).collect();
    let many = self::devices(&[slice("s", named(&names.iter().map(String::as_str).collect::<Vec<_>>()))]);
    let dead = |name: &str| claim(name, requests(&[("r", exactly(16))]));
    assert_eq!(got(&many, &[dead("c"), dead("d"), dead("e")]), Err(Refused::Late));
    let deep: Vec<_> = (0..20_000).map(|number| claim(&format!("c{number}"), json!({}))).collect();
    assert_eq!(got(&many, &deep), texts(&[]));
}

#[test]
fn what_is_decided_counts_until_it_is_read_back() {
    let mut devices = devices(&[slice("s", named(&["a"]))]);
    let (mine, other) =
        (claim("c", requests(&[("r", exactly(1))])), claim("d", requests(&[("r", exactly(1))])));
    let (key, pod) = (Key::new("ns", "c"), Arc::<str>::from("pod"));
    devices.put_claim(&key, Some(mine.clone()));
    let result = json!({ "devices": { "results": [{ "request": "r", "driver": DRIVER, "pool": "n1", "device": "a" }] } });
    let allocation = || Arc::new(Allocation::read(result.clone()).unwrap());
    let free = |devices: &Devices| got(devices, std::slice::from_ref(&other)).is_ok();
    assert!(free(&devices));
    devices.decide(&mine, allocation(), &pod);
    assert!(!free(&devices) && devices.is_decided(&key));
    assert_eq!(devices.give_back("pod").len(), 1);
    assert!(free(&devices) && !devices.is_decided(&key));

    devices.decide(&mine, allocation(), &pod);
    devices.written(&key, 7);
    // What is written is not given back, and what was told before it says nothing.
    assert!(devices.give_back("pod").is_empty() && !free(&devices));
    devices.put_claim(&key, Some(mine.clone()));
    assert!(!free(&devices) && devices.is_decided(&key));
    let told = claim_with("c", requests(&[("r", exactly(1))]), json!({ "allocation": result }));
    devices.put_claim(&key, Some(told));
    assert!(!free(&devices) && !devices.is_decided(&key));
    devices.put_claim(&key, Some(mine));
    assert!(free(&devices) && devices.used.is_empty());
}

fn pod(names: Vec<DeviceClaim>) -> Pod {
    Pod { key: Key::new("ns", "p"), uid: "pod".into(), devices: names.into(), ..Pod::default() }
}

#[test]
fn a_pod_uses_claims_that_are_there_and_its_own() {
    let mut devices = devices(&[]);
    devices.put_claim(&Key::new("ns", "c"), Some(claim("c", json!({}))));
    let mut gone = Arc::try_unwrap(claim("gone", json!({}))).unwrap();
    gone.terminating = true;
    devices.put_claim(&Key::new("ns", "gone"), Some(Arc::new(gone)));
    let named = |name: &str| DeviceClaim::Named(name.to_owned());
    for (names, wanted) in [
        (vec![named("c"), named("c"), DeviceClaim::Made(None)], Ok(1)),
        (vec![named("none")], Err("could not find ResourceClaim \"ns/none\"")),
        (vec![named("gone")], Err("resourceclaim \"gone\" is being deleted")),
        (vec![DeviceClaim::Awaited], Err("pod \"ns/p\": ResourceClaim not created yet")),
        (
            vec![DeviceClaim::Made(Some("c".to_owned()))],
            Err("ResourceClaim ns/c was not created for Pod ns/p (Pod is not owner)"),
        ),
        (
            vec![DeviceClaim::Unknown("x".to_owned())],
            Err("pod \"ns/p\", spec.resourceClaim \"x\": none of the supported fields are set"),
        ),
    ] {
        let found = claims(&pod(names.clone()), &devices).map(|claims| claims.len());
        assert_eq!(found, wanted.map_err(str::to_owned), "{names:?}");
    }
    // A claim that is being allocated for another pod is waited for.
    devices.decide(&claim("c", json!({})), Arc::default(), &"other".into());
    let waits = PodClaims::of(&pod(vec![named("c")]), &devices, TIMEOUTS).err();
    assert_eq!(waits.as_deref(), Some("resource claim ns/c is in the process of being allocated"));
}

#[test]
fn a_claim_that_is_in_the_way_loses_its_devices_if_nobody_else_uses_it() {
    let on_n1 = json!({ "devices": {}, "nodeSelector": { "nodeSelectorTerms": [{ "matchFields": [
        { "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] } });
    let users = |uids: &[&str]| uids.iter().map(|uid| json!({ "uid": uid })).collect::<Vec<_>>();
    for (uids, frees) in [(&[][..], true), (&["pod"], true), (&["other"], false), (&["pod", "other"], false)]
    {
        let mut devices = devices(&[]);
        let held = claim_with("c", json!({}), json!({ "allocation": on_n1, "reservedFor": users(uids) }));
        devices.put_claim(&Key::new("ns", "c"), Some(held));
        let pod = pod(vec![DeviceClaim::Named("c".to_owned())]);
        let claims = PodClaims::of(&pod, &devices, TIMEOUTS).unwrap().unwrap();
        let (near, far) = (node("n1", &[]), node("n2", &[]));
        assert_eq!(claims.refusal(&near), Ok(None));
        assert_eq!(claims.refusal(&far), Ok(Some("resourceclaim not available on the node")));
        assert_eq!(claims.in_the_way("pod", &far).is_some(), frees, "{uids:?}");
        assert!(claims.in_the_way("pod", &near).is_none(), "{uids:?}");
    }
}

#[test]
fn devices_that_have_to_be_ready_are_waited_for() {
    let result = json!({ "driver": DRIVER, "pool": "n1", "device": "a", "bindingConditions": ["Ready"],
        "bindingFailureConditions": ["Failed"] });
    let allocation =
        json!({ "devices": { "results": [result] }, "allocationTimestamp": "2026-01-01T00:00:00Z" });
    let of = |conditions: &[(&str, &str)]| {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status)| json!({ "type": kind, "status": status, "reason": "Why", "message": "so" }))
            .collect();
        let told = json!([{ "driver": DRIVER, "pool": "n1", "device": "a", "conditions": conditions }]);
        claim_with("c", json!({}), json!({ "allocation": allocation, "devices": told }))
    };
    let failed = "claim c binding failed: reason=Why, message=\"so\"";
    let cases = BTreeMap::from([
        (vec![], Ok(false)),
        (vec![("Ready", "False")], Ok(false)),
        (vec![("Ready", "True")], Ok(true)),
        (vec![("Failed", "True"), ("Ready", "True")], Err(failed)),
    ]);
    for (conditions, wanted) in cases {
        assert_eq!(is_ready(&of(&conditions)), wanted.map_err(str::to_owned), "{conditions:?}");
    }
    // What has not become ready in time is let go.
    let mut devices = devices(&[]);
    devices.put_claim(&Key::new("ns", "c"), Some(of(&[])));
    let pod = pod(vec![DeviceClaim::Named("c".to_owned())]);
    for (now, lost) in [("2026-01-01T00:09:00Z", false), ("2026-01-01T00:11:00Z", true)] {
        devices.now = now.parse().unwrap();
        let claims = PodClaims::of(&pod, &devices, TIMEOUTS).unwrap().unwrap();
        assert_eq!(claims.refusal(&node("n1", &[])).unwrap().is_some(), lost, "{now}");
        assert_eq!(claims.in_the_way("pod", &node("n1", &[])).is_some(), lost, "{now}");
    }
}

#[test]
fn a_plan_is_carried_out_on_the_claim_that_it_was_made_for() {
    let of = |device: &str| json!({ "devices": { "results": [{ "driver": DRIVER, "pool": "n1", "device": device }] } });
    let (open, held) = (claim("c", json!({})), claim_with("c", json!({}), json!({ "allocation": of("a") })));
    let users = json!([{ "resource": "pods", "name": "p", "uid": "other" }]);
    let shared = claim_with("c", json!({}), json!({ "allocation": of("a"), "reservedFor": users }));
    let moved = claim_with("c", json!({}), json!({ "allocation": of("b") }));
    let anew = |claim: &Claim| {
        let version = crate::storage::types::Version { uid: "another".to_owned(), ..claim.version.clone() };
        Arc::new(Claim { version, allocation: claim.allocation.clone(), ..Claim::default() })
    };
    let going = Arc::new(Claim { version: open.version.clone(), terminating: true, ..Claim::default() });
    for (planned, now, gets, wanted) in [
        (&open, &open, true, None),
        (&open, &anew(&open), true, Some("got replaced by another one")),
        (&open, &going, true, Some("got deleted")),
        (&open, &held, true, Some("got allocated elsewhere")),
        (&held, &held, false, None),
        (&held, &shared, false, None),
        (&held, &anew(&held), false, Some("got replaced by another one")),
        (&held, &moved, false, Some("got other devices")),
        (&held, &open, false, Some("got deallocated")),
    ] {
        let wanted = wanted.map_or(Ok(()), |what| Err(format!("claim ns/c {what} in the meantime")));
        assert_eq!(still_holds(planned, now, gets), wanted);
    }
}

#[test]
fn devices_have_no_more_time_in_a_later_attempt() {
    let given = |at: &str| {
        claim_with("c", json!({}), json!({ "allocation": { "devices": {}, "allocationTimestamp": at } }))
    };
    let untold = claim_with("c", json!({}), json!({ "allocation": { "devices": {} } }));
    let (early, now) = (given("2026-01-01T00:00:00Z"), given("2026-01-01T00:05:00Z"));
    let late = given("2026-01-01T00:09:00Z");
    for (claims, wanted) in [
        (vec![], "2026-01-01T00:15:00Z"),
        (vec![untold], "2026-01-01T00:15:00Z"),
        (vec![now.clone()], "2026-01-01T00:15:00Z"),
        (vec![now, early], "2026-01-01T00:10:00Z"),
        (vec![late], "2026-01-01T00:15:00Z"),
    ] {
        let begun = "2026-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(deadline(begun, TIMEOUTS.binding, &claims), wanted.parse().unwrap());
    }
}

fn plugin() -> Arc<dyn crate::framework::Plugin> {
    crate::plugins::named("DynamicResources", &crate::config::args::Args::default()).unwrap()
}

#[test]
fn what_may_let_a_pod_in_is_a_change_of_its_claims_or_of_what_there_is() {
    let result = json!({ "devices": { "results": [{ "driver": DRIVER, "pool": "n1", "device": "a" }] } });
    let (open, held) = (
        |name: &str| claim(name, json!({})),
        |name: &str| claim_with(name, json!({}), json!({ "allocation": result })),
    );
    let waits = pod(vec![DeviceClaim::Named("c".to_owned())]);
    let made = Arc::new(pod(vec![DeviceClaim::Made(Some("c".to_owned()))]));
    let awaited = Arc::new(pod(vec![DeviceClaim::Awaited]));
    let (bare, labelled) = (Arc::new(node("n", &[])), Arc::new(node("n", &[("zone", "a")])));
    for (event, helps) in [
        (Event::ResourceClaim(None, open("c")), true),
        (Event::ResourceClaim(None, open("d")), false),
        (Event::ResourceClaim(Some(open("c")), open("c")), false),
        (Event::ResourceClaim(Some(open("c")), held("c")), true),
        (Event::ResourceClaim(Some(open("d")), held("d")), false),
        (Event::ResourceClaim(Some(held("d")), open("d")), true),
        (Event::ResourceSlice(false), true),
        (Event::DeviceClass(None, Arc::default()), true),
        (Event::ResourceClaimGone(held("d")), true),
        (Event::ResourceClaimGone(open("c")), false),
        (Event::NodeAdded(bare.clone()), true),
        (Event::NodeChanged(bare.clone(), bare.clone()), false),
        (Event::NodeChanged(bare.clone(), labelled), true),
        (Event::NodeGone(bare), false),
        (Event::OwnChanged(awaited.clone(), made), true),
        (Event::OwnChanged(awaited.clone(), awaited), false),
        (Event::NamespaceChanged, false),
    ] {
        assert_eq!(plugin().may_help(&waits, &event), helps, "{event:?}");
        assert!(!helps || plugin().heeds(&event) || matches!(event, Event::OwnChanged(..)), "{event:?}");
    }
}

#[test]
fn a_node_with_the_better_alternative_is_better() {
    let mut cluster = crate::cluster::Cluster::default();
    let alternative = |name: &str, count: i64| json!({ "name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count });
    let mut far = slice("far", named(&["a"]));
    far["spec"]["nodeName"] = "n2".into();
    far["spec"]["pool"]["name"] = "n2".into();
    cluster.devices = devices(&[slice("near", named(&["a", "b"])), far]);
    let asks = json!({ "requests": [{ "name": "r", "firstAvailable": [alternative("two", 2), alternative("one", 1)] }] });
    cluster.devices.put_claim(&Key::new("ns", "c"), Some(claim("c", asks)));
    for name in ["n1", "n2"] {
        cluster.put_node(Arc::new(node(name, &[])));
    }
    let (plugin, pod) = (plugin(), pod(vec![DeviceClaim::Named("c".to_owned())]));
    let states: Vec<_> = cluster.states().collect();
    let rate = plugin.rate(&pod, &cluster, &states).unwrap();
    let mut scores: Vec<i64> = ["n1", "n2"].map(|name| rate.score(cluster.named(name).unwrap())).to_vec();
    assert_eq!(scores, [8, 7]);
    rate.normalize(&mut scores, &states);
    assert_eq!(scores, [100, 87]);
}
