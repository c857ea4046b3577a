//! What pools are, compared with a slow and plain reading of all slices for each node.

use super::super::pools::Problem;
use super::*;

/// The next number below `bound`.
fn below(chance: &mut u64, bound: u64) -> u64 {
    *chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*chance >> 33) % bound
}

fn some_slice(name: &str, chance: &mut u64) -> Value {
    let pool = json!({ "name": format!("p{}", below(chance, 2)), "generation": 1 + below(chance, 2),
        "resourceSliceCount": 1 + below(chance, 3) });
    let mut spec = json!({ "driver": DRIVER, "pool": pool });
    match below(chance, 4) {
        0 => spec["allNodes"] = true.into(),
        node => spec["nodeName"] = format!("n{node}").into(),
    }
    let amount = json!({ "memory": { "value": "1" } });
    if below(chance, 4) == 0 {
        spec["sharedCounters"] = json!([{ "name": format!("set{}", below(chance, 2)), "counters": amount }]);
        return json!({ "metadata": { "name": name }, "spec": spec });
    }
    let mut device = json!({ "name": format!("{name}-a") });
    if below(chance, 6) == 0 {
        device["name"] = "same".into();
    }
    if below(chance, 4) == 0 {
        let set = format!("set{}", below(chance, 2));
        device["consumesCounters"] = json!([{ "counterSet": set, "counters": amount }]);
    }
    if below(chance, 5) == 0 {
        device["bindingConditions"] = json!(["Ready"]);
    }
    spec["devices"] = json!([device, { "name": format!("{name}-b") }]);
    json!({ "metadata": { "name": name }, "spec": spec })
}

fn text<'v>(slice: &'v Value, path: &str) -> &'v str {
    slice.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'v>(slice: &'v Value, path: &str) -> &'v [Value] {
    slice.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Driver and pool, the problem if there is one, and the names of its devices. Source: `GatherPools`, `buildPool`.
type Told = (String, Option<Problem>, Vec<String>);

fn slowly(slices: &BTreeMap<String, Value>, node: &str) -> Vec<Told> {
    let is_here = |slice: &&Value| slice["spec"]["allNodes"] == true || text(slice, "/spec/nodeName") == node;
    let generation = |slice: &Value| slice["spec"]["pool"]["generation"].as_i64().unwrap();
    let (mut ready, mut waiting) = (Vec::new(), Vec::new());
    for pool in ["p0", "p1"] {
        let all: Vec<&Value> =
            slices.values().filter(|slice| text(slice, "/spec/pool/name") == pool).collect();
        let here: Vec<&Value> = all.iter().copied().filter(is_here).collect();
        let Some(newest) = here.iter().map(|slice| generation(slice)).max() else { continue };
        let here: Vec<&Value> = here.into_iter().filter(|slice| generation(slice) == newest).collect();
        // Those of the node come first, and what the first says of their number counts.
        let first = here.iter().find(|slice| text(slice, "/spec/nodeName") == node).unwrap_or(&here[0]);
        let count = usize::try_from(first["spec"]["pool"]["resourceSliceCount"].as_i64().unwrap()).unwrap();
        let mut looked_at = here.clone();
        if here.len() != count {
            if all.iter().any(|slice| generation(slice) > newest) {
                continue;
            }
            looked_at = all.into_iter().filter(|slice| generation(slice) == newest).collect();
        }
        let names = |slices: &[&Value]| -> Vec<String> {
            let devices = slices.iter().flat_map(|slice| list(slice, "/spec/devices"));
            devices.map(|device| text(device, "/name").to_owned()).collect()
        };
        let sets: Vec<&str> = looked_at
            .iter()
            .flat_map(|slice| list(slice, "/spec/sharedCounters"))
            .map(|set| text(set, "/name"))
            .collect();
        let twice = |names: &[String]| (1..names.len()).any(|at| names[..at].contains(&names[at]));
        let consumed = looked_at.iter().flat_map(|slice| list(slice, "/spec/devices"));
        let unknown = consumed
            .flat_map(|device| list(device, "/consumesCounters"))
            .any(|consumed| !sets.contains(&text(consumed, "/counterSet")));
        let own_sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let problem = if looked_at.len() != count {
            Some(Problem::Incomplete)
        } else {
            (twice(&names(&here)) || twice(&own_sets) || unknown).then_some(Problem::Invalid)
        };
        let waits = here
            .iter()
            .flat_map(|slice| list(slice, "/spec/devices"))
            .any(|device| device.get("bindingConditions").is_some());
        let told = (format!("{DRIVER}/{pool}"), problem, names(&here));
        if waits && problem.is_none() { waiting.push(told) } else { ready.push(told) }
    }
    ready.into_iter().chain(waiting).collect()
}

#[test]
fn pools_are_after_each_change_what_a_slow_reading_says() {
    let mut seen = [0; 3];
    for seed in 0..60 {
        let (mut chance, mut devices, mut slices) = (seed, Devices::default(), BTreeMap::new());
        for _ in 0..120 {
            let name = format!("s{}", below(&mut chance, 6));
            if below(&mut chance, 4) == 0 {
                slices.remove(&name);
                devices.put_slice(&name, None);
            } else {
                let slice = some_slice(&name, &mut chance);
                devices.put_slice(&name, Some(Arc::new(Slice::decode(&object(&slice)).unwrap())));
                slices.insert(name, slice);
            }
            for name in ["n1", "n2"] {
                let pools = devices.pools(&node(name, &[]));
                let told: Vec<Told> = pools
                    .iter()
                    .map(|pool| {
                        let names = pool.devices().map(|(_, device)| device.id.device.clone());
                        (pool.id(), pool.problem, names.collect())
                    })
                    .collect();
                assert_eq!(told, slowly(&slices, name), "seed {seed}, {name}: {slices:#?}");
                for (_, problem, _) in told {
                    seen[problem.map_or(0, |problem| 1 + usize::from(problem == Problem::Invalid))] += 1;
                }
            }
        }
        for (name, _) in std::mem::take(&mut slices) {
            devices.put_slice(&name, None);
        }
        assert!(devices.pools.is_empty());
    }
    assert!(seen.iter().all(|times| *times > 200), "the test must reach what it is about: {seen:?}");
}

#[test]
fn what_slices_say_together_is_found_out_once_after_a_change() {
    let mut devices = devices(&[slice("s", named(&["a"]))]);
    let known = |devices: &Devices| {
        devices.pools.values().flat_map(BTreeMap::values).all(super::super::pools::Generation::is_known)
    };
    assert!(!known(&devices));
    assert_eq!(devices.pools(&node("n1", &[])).len(), 1);
    assert!(known(&devices));
    devices.put_slice("s", Some(Arc::new(Slice::decode(&object(&slice("s", named(&["b"])))).unwrap())));
    assert!(!known(&devices));
}
