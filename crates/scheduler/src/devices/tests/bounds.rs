//! What a search may take of time, and that it finds the same although it is bounded.

use std::time::Instant;

use super::*;

fn numbered(count: usize) -> Value {
    let names: Vec<String> = (0..count).map(|number| format!("d{number:02}")).collect();
    named(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn selecting(ask: Value, expression: &str) -> Value {
    with(ask, "selectors", json!([{ "cel": { "expression": expression } }]))
}

/// What a search on the node n1 finds, and how many steps it takes.
fn steps(devices: &Devices, claim: &Arc<Claim>) -> (Result<usize, Refused>, u64) {
    let search = Search::new(devices, vec![claim.clone()], &Purse::default()).unwrap();
    let before = search.steps.get();
    let found = search.allocate(&node("n1", &[]), None).map(|found| found[0].devices.len());
    (found, before - search.steps.get())
}

#[test]
fn too_few_devices_are_found_out_without_trying_every_choice() {
    let taint = json!([{ "key": "broken", "effect": "NoExecute" }]);
    let mut offered = numbered(32);
    for device in &mut offered.as_array_mut().unwrap()[..3] {
        device["taints"] = taint.clone();
    }
    for device in &mut offered.as_array_mut().unwrap()[3..7] {
        device["attributes"] = json!({ "old": { "bool": true } });
    }
    let mut devices = devices(&[slice("s", offered)]);
    devices.put_claim(&Key::new("ns", "o"), Some(holder("o", json!({ "device": "d20" }))));
    // 24 are left: three are tainted, four not selected, one is another's.
    let of = |count: i64| {
        let young = format!("!has(device.attributes['{DRIVER}'].old)");
        claim("c", requests(&[("r", selecting(exactly(count), &young))]))
    };
    assert_eq!(steps(&devices, &of(24)).0, Ok(24));
    for count in 25..=32 {
        let (found, steps) = steps(&devices, &of(count));
        assert_eq!(found, Err(Refused::Cannot), "{count}");
        assert!(steps < 2_000, "{count}: {steps}");
    }
    // A request that comes later in the claim has too few whatever the one before it gets.
    let two = claim("c", requests(&[("q", exactly(2)), ("r", exactly(28))]));
    let (found, steps) = steps(&devices, &two);
    assert_eq!(found, Err(Refused::Cannot));
    assert!(steps < 100_000, "{steps}");
}

#[test]
fn an_expression_that_fails_is_told_of_as_soon_as_it_has_to_be_asked() {
    let mut offered = numbered(4);
    for device in &mut offered.as_array_mut().unwrap()[..3] {
        device["attributes"] = json!({ "ready": { "bool": true } });
    }
    let devices = devices(&[slice("s", offered)]);
    let ready = format!("device.attributes['{DRIVER}'].ready");
    let of = |count: i64| [claim("c", requests(&[("r", selecting(exactly(count), &ready))]))];
    assert_eq!(got(&devices, &of(3)), texts(&["r=d00", "r=d01", "r=d02"]));
    for count in [4, 9] {
        let found = got(&devices, &of(count));
        assert!(matches!(&found, Err(Refused::Wrong(why)) if why.contains("n1/d03")), "{count}: {found:?}");
    }
}

#[test]
fn the_work_of_expressions_is_paid_and_takes_no_longer_than_it_may() {
    let devices = devices(&[slice("s", numbered(2))]);
    let large = [claim("c", requests(&[("r", selecting(exactly(1), r"'a'.matches('\\pL{9}')"))]))];
    let search = || Search::new(&devices, large.to_vec(), &Purse::default()).unwrap();
    let paid = search();
    let before = paid.cost.get();
    assert_eq!(paid.allocate(&node("n1", &[]), None).err(), Some(Refused::Cannot));
    assert!(before - paid.cost.get() > 2_000, "{}", before - paid.cost.get());
    // Who cannot pay has nothing left, and is not let on to another node.
    let poor = search();
    poor.cost.set(500);
    assert_eq!(poor.allocate(&node("n1", &[]), None).err(), Some(Refused::Late));
    assert_eq!(poor.cost.get(), 0);
    let late = search();
    late.cost.set(35_000);
    late.pay_cost(1, Some(Instant::now())).unwrap();
    assert_eq!(late.pay_cost(10_000, Some(Instant::now())), Err(Refused::Late));
    assert_eq!(late.pay_cost(10_000, None), Ok(()));
}

#[test]
fn nodes_are_paid_until_nothing_is_left() {
    let devices = devices(&[slice("s", numbered(10))]);
    let asks = [claim("c", requests(&[("r", exactly(1)), ("q", exactly(1))]))];
    let search = Search::new(&devices, asks.to_vec(), &Purse::default()).unwrap();
    // Two asks, a slice and ten devices are gathered before anything is looked at.
    for (left, after) in [(12, 0), (13, 0), (0, 0), (100, 100 - 13 - 8)] {
        search.steps.set(left);
        let found = search.allocate(&node("n1", &[]), None);
        assert_eq!((found.is_ok(), search.steps.get()), (left == 100, after), "{left}");
    }
    search.cost.set(0);
    assert_eq!(search.allocate(&node("n1", &[]), None).err(), Some(Refused::Late));
    assert_eq!(search.steps.get(), 79);
    // On another node there is nothing to gather, but the asks are paid all the same.
    search.cost.set(1_000);
    assert_eq!(search.allocate(&node("n2", &[]), None).err(), Some(Refused::Cannot));
    assert!(search.steps.get() < 79, "{}", search.steps.get());
}

#[test]
fn negative_amounts_make_no_room_in_a_shared_device() {
    let shared = json!([{ "name": "a", "allowMultipleAllocations": true, "capacity": { "memory": { "value": "10Gi" } } }]);
    let mut devices = self::devices(&[slice("s", shared)]);
    let part = |memory: &str| {
        [claim(
            "c",
            requests(&[("r", with(exactly(1), "capacity", json!({ "requests": { "memory": memory } })))]),
        )]
    };
    assert_eq!(got(&devices, &part("-1Gi")), Err(Refused::Cannot));
    let share = |id: &str, memory: &str| json!({ "device": "a", "shareID": id, "consumedCapacity": { "memory": memory } });
    devices.put_claim(&Key::new("ns", "o"), Some(holder("o", share("s1", "6Gi"))));
    devices.put_claim(&Key::new("ns", "p"), Some(holder("p", share("s2", "-6Gi"))));
    assert_eq!(got(&devices, &part("5Gi")), Err(Refused::Cannot));
    assert_eq!(got(&devices, &part("4Gi")), texts(&["r=a"]));
    devices.put_claim(&Key::new("ns", "p"), None);
    assert_eq!(got(&devices, &part("5Gi")), Err(Refused::Cannot));
}
