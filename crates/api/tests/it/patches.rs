//! Strategic merges and applies over Deployments: what is repeated changes nothing, nothing is lost that nobody touched,
//! and who owns what is exactly who said it last.

use std::sync::{Arc, LazyLock};

use api::catalog::{Catalog, Row};
use api::patch::apply::{Writer, apply};
use api::patch::{merge_patch, strategic};
use api::schema::Place;
use serde_json::{Map, Value, json};

use crate::Random;

const ROUNDS: u64 = 500;

static DEPLOYMENT: LazyLock<Arc<Row>> =
    LazyLock::new(|| Catalog::builtin().by_api_version("apps/v1", "Deployment").unwrap().clone());

fn place() -> Option<Place<'static>> {
    DEPLOYMENT.typed().place()
}

fn entries(random: &mut Random, names: &[&str]) -> Value {
    let entry = |name: &&str, random: &mut Random| ((*name).to_owned(), json!(random.below(3).to_string()));
    let chosen = random.some(names);
    Value::Object(chosen.iter().map(|name| entry(name, random)).collect())
}

/// A part of a Deployment: maps, lists that merge by a key and lists in them.
fn deployment(random: &mut Random) -> Value {
    let mut containers = Vec::new();
    for name in random.some(&["a", "b", "c"]) {
        let environment: Vec<Value> = random
            .some(&["X", "Y"])
            .into_iter()
            .map(|name| json!({ "name": name, "value": random.below(3).to_string() }))
            .collect();
        let mut container = json!({ "name": name, "image": format!("i:{}", random.below(3)) });
        if !environment.is_empty() {
            container["env"] = environment.into();
        }
        containers.push(container);
    }
    let mut spec = Map::new();
    if random.below(2) == 0 {
        spec.insert("replicas".into(), json!(random.below(4)));
    }
    if !containers.is_empty() {
        spec.insert("template".into(), json!({ "spec": { "containers": containers } }));
    }
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "spec": spec,
        "metadata": { "name": "d", "labels": entries(random, &["k", "l", "m"]) } })
}

/// Whether everything that a patch says stands in an object; items of lists are found by their name.
fn holds(object: &Value, patch: &Value) -> bool {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            patch.iter().all(|(name, part)| object.get(name).is_some_and(|object| holds(object, part)))
        }
        (Value::Array(items), Value::Array(patches)) => patches
            .iter()
            .all(|patch| items.iter().any(|item| item["name"] == patch["name"] && holds(item, patch))),
        _ => object == patch,
    }
}

#[test]
fn a_strategic_merge_holds_what_it_says_keeps_the_rest_and_may_be_repeated() {
    for seed in 0..ROUNDS {
        let mut random = Random::new(seed);
        let (object, patch) = (deployment(&mut random), deployment(&mut random));
        let once = strategic::apply(object.clone(), patch.clone(), place()).unwrap();
        assert!(holds(&once, &patch), "{seed}: {patch} in {once}");
        assert_eq!(strategic::apply(once.clone(), patch.clone(), place()).unwrap(), once, "{seed}");
        assert_eq!(strategic::apply(once.clone(), json!({}), place()).unwrap(), once, "{seed}");
        // What the patch says over the object is the object's where the patch is silent.
        let back = strategic::apply(once.clone(), object.clone(), place()).unwrap();
        assert!(holds(&back, &object), "{seed}: {object} in {back}");
    }
}

#[test]
fn a_merge_patch_holds_what_it_says_and_may_be_repeated() {
    for seed in 0..ROUNDS {
        let mut random = Random::new(seed);
        let (mut object, patch) = (deployment(&mut random), deployment(&mut random));
        merge_patch(&mut object, patch.to_string().as_bytes()).unwrap();
        let once = object.clone();
        merge_patch(&mut object, patch.to_string().as_bytes()).unwrap();
        assert_eq!(object, once, "{seed}");
        for (key, value) in patch["metadata"]["labels"].as_object().unwrap() {
            assert_eq!(&object["metadata"]["labels"][key], value, "{seed}");
        }
    }
}

fn writer(manager: &str) -> Writer {
    Writer {
        manager: manager.into(),
        api_version: "apps/v1".into(),
        subresource: String::new(),
        time: "2026-01-01T00:00:00Z".into(),
    }
}

fn managers(object: &Value) -> Vec<&str> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["manager"].as_str()).collect()
}

fn without_record(mut object: Value) -> Value {
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

#[test]
fn an_apply_holds_what_it_says_may_be_repeated_and_takes_back_what_it_gave() {
    for seed in 0..ROUNDS {
        let mut random = Random::new(seed);
        let (theirs, ours) = (deployment(&mut random), deployment(&mut random));
        let base = apply(&Value::Null, theirs.clone(), place(), &writer("they"), false).unwrap();
        assert!(holds(&base, &theirs), "{seed}");
        let live = apply(&base, ours.clone(), place(), &writer("we"), true).unwrap();
        assert!(holds(&live, &ours), "{seed}: {ours} in {live}");
        assert_eq!(apply(&live, ours.clone(), place(), &writer("we"), false).unwrap(), live, "{seed}");

        // A conflict is what force would change, and changes nothing; without one force is not needed.
        match apply(&base, ours.clone(), place(), &writer("we"), false) {
            Ok(agreed) => assert_eq!(agreed, live, "{seed}"),
            Err(status) => {
                assert_eq!(status.code, 409, "{seed}");
                assert!(!holds(&base, &ours), "{seed}: a conflict about what is there: {}", status.message);
            }
        }
        // Who says nothing any more owns nothing, and what only they said is gone.
        let nothing = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" } });
        let left = apply(&live, nothing.clone(), place(), &writer("we"), false).unwrap();
        assert!(!managers(&left).contains(&"we"), "{seed}: {left}");
        let gone = apply(&left, nothing.clone(), place(), &writer("they"), false).unwrap();
        assert_eq!(managers(&gone), Vec::<&str>::new(), "{seed}");
        assert_eq!(without_record(gone), nothing, "{seed}");
    }
}
