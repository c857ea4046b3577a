//! What several kinds of workloads have in common: `scale`, `status`, collections, adoption, answers.

use serde_json::{Value, json};

use super::space::{Kind, SERVES, Space, condition, controller, is_ready, of, pod, pod_spec, text, uid};

/// `scale` is read, updated and patched, and the object follows.
pub(crate) fn scales(space: &Space<'_>, kind: Kind) {
    let name = "scaled";
    space.make(&kind.of(name, 1));
    space.ready_pods(name, 1);
    let (what, part) = (kind.named(name), "--subresource=scale");
    let scale = space.get(&[&what, part]);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)), "{scale}");
    // kubectl replaces a scale by its path only: no resource is a Scale by itself.
    let mut scale = scale;
    scale["spec"]["replicas"] = 2.into();
    let ran = space.feed(&["replace", "--raw", &space.path(&format!("{what}/scale"))], &scale);
    assert_eq!(ran.code, 0, "{ran:?}");
    let updated: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(updated["spec"]["replicas"], 2, "{updated}");
    assert_eq!(space.get(&[&what])["spec"]["replicas"], 2);
    space.ready_pods(name, 2);
    let patched = space.patch_with(&[&what, part], &json!({"spec": {"replicas": 3}}));
    assert_eq!(patched["spec"]["replicas"], 3, "{patched}");
    assert_eq!(space.get(&[&what])["spec"]["replicas"], 3);
    space.until_one(kind.1, name, "three replicas in its status", |set| set["status"]["replicas"] == 3);
    assert_eq!(space.get(&[&what, part])["status"]["replicas"], 3);
}

/// `status` is read, updated and patched, and what was written stays.
pub(crate) fn has_a_status(space: &Space<'_>, kind: Kind, pods: usize) {
    let name = "status";
    space.make(&kind.of(name, 1));
    space.ready_pods(name, pods);
    let (what, part) = (kind.named(name), "--subresource=status");
    let read = space.get(&[&what, part]);
    assert_eq!(read["metadata"]["name"], name, "{read}");
    let ours = |kind: &str| json!({"type": kind, "status": "True", "reason": "Shown", "message": "by hand"});
    space.update(&[&what, part], |object| match object["status"]["conditions"].as_array_mut() {
        Some(conditions) => conditions.push(ours("StatusUpdate")),
        None => object["status"]["conditions"] = json!([ours("StatusUpdate")]),
    });
    space.until_one(kind.1, name, "the updated status", |set| condition(set, "StatusUpdate") == "True");
    let patch = json!({"metadata": {"annotations": {"patched": "yes"}},
        "status": {"conditions": [ours("StatusPatched")]}});
    let patched = space.patch_with(&[&what, part], &patch);
    assert_eq!(condition(&patched, "StatusPatched"), "True", "{patched}");
    space.until_one(kind.1, name, "the patched status", |set| condition(set, "StatusPatched") == "True");
}

/// Objects are listed by label, here and everywhere, and deleted at once.
pub(crate) fn is_a_collection(space: &Space<'_>, kind: Kind, objects: &[Value]) {
    let label = format!("test={}", space.name);
    let (_, value) = label.split_once('=').unwrap();
    for object in objects {
        let mut object = object.clone();
        object["metadata"]["labels"]["test"] = value.into();
        space.make(&object);
    }
    for place in [&["-l", &label][..], &["-A", "-l", &label]] {
        assert_eq!(space.list(&[&[kind.1], place].concat()).len(), objects.len(), "{place:?}");
    }
    space.delete_collection(kind.1, &label);
    space.until_gone(&format!("{}?labelSelector=test%3D{value}", kind.1));
}

/// A pod that nobody owns becomes the set's.
pub(crate) fn adopts(space: &Space<'_>, kind: Kind) -> Value {
    let name = "adopting";
    let mut orphan = pod("orphan", name);
    orphan["spec"] = pod_spec(SERVES);
    space.make(&orphan);
    space.ready_pods(name, 1);
    space.make(&kind.of(name, 1));
    let set = space.get(&[&kind.named(name)]);
    let adopted = space.until_one("pods", "orphan", "adopted", |pod| controller(pod) == uid(&set));
    assert_eq!(adopted["metadata"]["ownerReferences"][0]["kind"], kind.0, "{adopted}");
    space.until_one(kind.1, name, "counts it", |set| set["status"]["replicas"] == 1);
    assert_eq!(space.list(&["pods", "-l", &format!("app={name}")]).len(), 1, "and makes no other");
    set
}

/// A pod that the set no longer selects is nobody's, and another one takes its place.
pub(crate) fn releases(space: &Space<'_>, set: &Value) {
    let name = text(&set["metadata"]["name"]);
    let mine = space.ready_pods(&name, 1);
    let pod = mine.keys().next().unwrap();
    space.run(&["label", "pod", pod, "--overwrite", "app=released"]);
    let released = space.until_one("pods", pod, "released", |pod| controller(pod).is_empty());
    assert!(released["metadata"]["ownerReferences"].is_null(), "{released}");
    let next = space.until(&of(&name), "another in its place", |pods| pods.values().any(is_ready));
    assert!(next.values().all(|pod| controller(pod) == uid(set)), "{next:#?}");
}

/// Each pod answers with its own name.
pub(crate) fn serves(space: &Space<'_>, kind: Kind) {
    let name = "serving";
    let mut set = kind.of(name, 2);
    set["spec"]["template"]["spec"] = pod_spec(SERVES);
    let probe = json!({"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1});
    set["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = probe;
    space.make(&set);
    for pod in space.ready_pods(name, 2).keys() {
        let answer = space.run(&["get", "--raw", &space.path(&format!("pods/{pod}:80/proxy/"))]);
        assert_eq!(answer.trim(), pod);
    }
}
