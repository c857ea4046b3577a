//! Extended resources that are had as devices.

use super::super::extended::{self, Mapping};
use super::*;
use crate::cluster::Cluster;
use crate::plugins::named as plugin_named;
use crate::resources::Resources;

const GPU: &str = "example.com/gpu";
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/gpu";

fn class(name: &str, extended: Option<&str>, created: &str) -> Arc<Class> {
    let meta = json!({ "name": name, "creationTimestamp": created });
    let value = json!({ "metadata": meta, "spec": { "extendedResourceName": extended } });
    Arc::new(Class::decode(&object(&value)).unwrap())
}

/// With the class `gpu`, which stands for `example.com/gpu`.
fn world(slices: &[Value]) -> Devices {
    let mut world = devices(slices);
    let selector = json!([{ "cel": { "expression": format!("device.driver == '{DRIVER}'") } }]);
    let spec = json!({ "selectors": selector, "extendedResourceName": GPU });
    let class = json!({ "metadata": { "name": "gpu" }, "spec": spec });
    world.put_class("gpu", Some(Arc::new(Class::decode(&object(&class)).unwrap())));
    world
}

fn container(name: &str, requests: Value) -> Value {
    json!({ "name": name, "resources": { "requests": requests } })
}

fn pod_of(containers: Value, init: Value) -> Arc<Pod> {
    let spec = json!({ "containers": containers, "initContainers": init });
    let value = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "pod" }, "spec": spec });
    Arc::new(Pod::decode(&object(&value)).unwrap())
}

fn asking(count: i64) -> Arc<Pod> {
    pod_of(json!([container("c", json!({ GPU: count }))]), json!([]))
}

fn offering(name: &str, count: Option<&str>) -> Node {
    let offered = count.into_iter().map(|count| (GPU.to_owned(), json!(count))).collect();
    Node { allocatable: Resources::parse(&offered), pods_max: 10, ..node(name, &[]) }
}

#[test]
fn the_youngest_class_stands_for_a_resource_and_each_for_its_own() {
    let mut devices = Devices::default();
    let stands =
        |devices: &Devices, resource: &str| devices.class_for(resource).map(|class| class.name.clone());
    let put = |devices: &mut Devices, name: &str, extended: Option<&str>, created: &str| {
        devices.put_class(name, Some(class(name, extended, created)));
    };
    put(&mut devices, "old", Some(GPU), "2025-01-01T00:00:00Z");
    put(&mut devices, "young", Some(GPU), "2026-01-01T00:00:00Z");
    put(&mut devices, "other", Some(GPU), "2026-01-01T00:00:00Z");
    put(&mut devices, "gpu", None, "2026-01-01T00:00:00Z");
    for (resource, wanted) in
        [(GPU, Some("other")), (IMPLICIT, Some("gpu")), ("example.com/fpga", None), ("cpu", None)]
    {
        assert_eq!(stands(&devices, resource).as_deref(), wanted, "{resource}");
    }
    devices.put_class("other", None);
    assert_eq!(stands(&devices, GPU).as_deref(), Some("young"));
    put(&mut devices, "young", Some("example.com/fpga"), "2026-01-01T00:00:00Z");
    assert_eq!(stands(&devices, GPU).as_deref(), Some("old"));
    assert_eq!(stands(&devices, "example.com/fpga").as_deref(), Some("young"));
    for name in ["old", "young", "gpu"] {
        devices.put_class(name, None);
    }
    assert!(devices.standing.is_empty());
}

/// The requests of the claim, and what they are for.
fn asked(pod: &Pod, devices: &Devices, resources: &[&str]) -> (Vec<(String, i64)>, Vec<String>) {
    let (claim, mappings) = extended::claim(pod, resources, devices);
    let requests = claim.requests.iter().map(|request| (request.name.clone(), request.asks[0].count));
    let told = |mapping: &Mapping| {
        let said = mapping.to_json();
        let part = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        format!("{}:{}={}", part("containerName"), part("resourceName"), part("requestName"))
    };
    (requests.collect(), mappings.iter().map(told).collect())
}

#[test]
fn a_claim_asks_for_what_containers_ask_for_and_early_ones_use_what_later_ones_get() {
    let devices = world(&[]);
    let sidecar = |mut container: Value| {
        container["restartPolicy"] = "Always".into();
        container
    };
    let of = |name: &str, count: i64| {
        container(name, json!({ GPU: count.to_string(), "cpu": "1", "memory": "1" }))
    };
    for (containers, init, requests, mappings) in [
        (
            json!([of("a", 2), container("b", json!({ "cpu": "1" })), of("c", 1)]),
            json!([]),
            vec![("container-0-request-1", 2), ("container-2-request-1", 1)],
            vec!["a=container-0-request-1", "c=container-2-request-1"],
        ),
        // Enough for an early one is had by the later.
        (
            json!([of("a", 2), of("b", 1)]),
            json!([of("i", 2)]),
            vec![("container-1-request-1", 2), ("container-2-request-1", 1)],
            vec!["a=container-1-request-1", "b=container-2-request-1", "i=container-1-request-1"],
        ),
        // What is missing is asked for once, for all early ones.
        (
            json!([of("a", 1)]),
            json!([of("i", 2), of("j", 4)]),
            vec![("container-1-request-1", 3), ("container-2-request-1", 1)],
            vec![
                "a=container-2-request-1",
                "i=container-2-request-1",
                "i=container-1-request-1",
                "j=container-2-request-1",
                "j=container-1-request-1",
            ],
        ),
        // A sidecar keeps what it has; who comes after it cannot use it.
        (
            json!([of("a", 1)]),
            json!([sidecar(of("s", 1)), of("i", 2)]),
            vec![("container-0-request-1", 1), ("container-1-request-1", 1), ("container-2-request-1", 1)],
            vec![
                "s=container-0-request-1",
                "a=container-2-request-1",
                "i=container-2-request-1",
                "i=container-1-request-1",
            ],
        ),
        (json!([of("a", 0), container("b", json!({ GPU: "500m" }))]), json!([]), vec![], vec![]),
    ] {
        let pod = pod_of(containers.clone(), init.clone());
        let (found, told) = asked(&pod, &devices, &[GPU]);
        let requests: Vec<(String, i64)> =
            requests.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        let mappings: Vec<String> =
            mappings.iter().map(|told| told.replace('=', &format!(":{GPU}="))).collect();
        assert_eq!((found, told), (requests, mappings), "{containers} {init}");
    }
    // Two resources of one class; ten containers are sorted by name.
    let many: Vec<Value> =
        (0..11).map(|at| container(&format!("c{at}"), json!({ GPU: "1", IMPLICIT: "1" }))).collect();
    let (found, told) = asked(&pod_of(many.into(), json!([])), &devices, &[IMPLICIT, GPU]);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names[..4],
        ["container-0-request-0", "container-0-request-1", "container-1-request-0", "container-1-request-1"]
    );
    assert_eq!((names[4], names.len(), told.len()), ("container-10-request-0", 22, 22));
}

#[test]
fn what_a_node_offers_is_not_had_as_devices() {
    let world = world(&[slice("s", named(&["a", "b"]))]);
    let two = asking(2);
    let refusal =
        |pod: &Pod, node: &Node| PodClaims::of(pod, &world, TIMEOUTS).unwrap().unwrap().refusal(node);
    let (bare, none, own) = (offering("n1", None), offering("n1", Some("0")), offering("n1", Some("4")));
    for (pod, node, wanted) in [
        (&two, &bare, None),
        (&two, &none, None),
        (&two, &own, None),
        (&two, &offering("n2", None), Some("cannot allocate all claims")),
        (&two, &offering("n2", Some("4")), None),
        (&asking(3), &bare, Some("cannot allocate all claims")),
        (&asking(3), &own, None),
        (
            &pod_of(json!([container("c", json!({ GPU: "1", "example.com/none": "1" }))]), json!([])),
            &bare,
            Some("cannot fit resource"),
        ),
    ] {
        assert_eq!(refusal(pod, node), Ok(wanted), "{:?} {:?}", pod.spec.extended, node.allocatable);
    }
    let plan =
        |node: &Node| PodClaims::of(&two, &world, TIMEOUTS).unwrap().unwrap().plan(node).unwrap().special;
    assert!(plan(&own).is_none());
    let special = plan(&bare).unwrap();
    assert!(special.claim.is_unmade());
    let results: Vec<&Value> = special.allocation.raw["devices"]["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|got| &got["device"])
        .collect();
    assert_eq!(results, ["a", "b"]);
    assert_eq!(
        extended::body(&two, &special.claim),
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {
                "generateName": "p-extended-resources-", "namespace": "ns",
                "annotations": { "resource.kubernetes.io/extended-resource-claim": "true" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod", "controller": true }],
            },
            "spec": { "devices": { "requests": [{ "name": "container-0-request-0", "exactly": {
                "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2 } }] } },
        })
    );
    // Nobody stands for it: it is the node's matter alone.
    assert!(PodClaims::of(&two, &devices(&[]), TIMEOUTS).unwrap().is_none());
}

/// A claim that an attempt before made for the pod.
fn left(uid: &str, annotation: &str, allocation: Value) -> Arc<Claim> {
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true }]);
    let meta = json!({ "namespace": "ns", "name": "p-extended-resources-x", "uid": "special", "resourceVersion": "5",
        "ownerReferences": owner, "annotations": { extended::ANNOTATION: annotation } });
    let value = json!({ "metadata": meta, "status": { "allocation": allocation } });
    Arc::new(Claim::decode(&object(&value)).unwrap())
}

#[test]
fn a_claim_that_is_left_over_is_deleted_first() {
    let plugin = plugin_named("DynamicResources", &crate::config::args::Args::default()).unwrap();
    let key = Key::new("ns", "p-extended-resources-x");
    for (claim, is_left) in [
        (left("pod", "true", Value::Null), true),
        (left("pod", "true", json!({ "devices": {} })), true),
        (left("other", "true", Value::Null), false),
        (left("pod", "false", Value::Null), false),
    ] {
        let mut world = world(&[slice("s", named(&["a"]))]);
        world.put_claim(&key, Some(claim.clone()));
        let pod = asking(1);
        let claims = PodClaims::of(&pod, &world, TIMEOUTS).unwrap().unwrap();
        let wanted = is_left.then_some("cannot schedule extended resource claim");
        assert_eq!(claims.refusal(&offering("n1", None)), Ok(wanted));
        assert_eq!(claims.left_over().is_some(), is_left);
        assert_eq!(
            plugin.may_help(&pod, &Event::ResourceClaimGone(claim.clone())),
            is_left || claim.allocation.is_some()
        );
        // A pod that asks for nothing of the kind has none to delete.
        assert!(PodClaims::of(&pod_of(json!([]), json!([])), &world, TIMEOUTS).unwrap().is_none());
        world.put_claim(&key, None);
        assert!(world.special.is_empty());
        assert_eq!(
            PodClaims::of(&pod, &world, TIMEOUTS).unwrap().unwrap().refusal(&offering("n1", None)),
            Ok(None)
        );
    }
}

#[test]
fn devices_of_a_claim_that_is_still_to_be_made_are_taken_once() {
    let key = Key::new("ns", "p-extended-resources-x");
    let free = |world: &Devices| got(world, &[claim("d", requests(&[("r", exactly(1))]))]).is_ok();
    let decided = |world: &mut Devices, pod: &str| {
        let asking = Arc::new(Pod { uid: pod.into(), ..(*asking(1)).clone() });
        let found = PodClaims::of(&asking, world, TIMEOUTS).unwrap().unwrap().plan(&offering("n1", None));
        let special = found.unwrap().special.unwrap();
        world.decide(&special.claim, special.allocation.clone(), &asking.uid);
        special
    };
    let mut world = world(&[slice("s", named(&["a", "b"]))]);
    // Two pods of a namespace, each with a claim without a name.
    decided(&mut world, "pod");
    assert!(free(&world));
    decided(&mut world, "other");
    assert!(!free(&world));
    let back = world.give_back("other");
    assert_eq!((back.len(), back[0].is_unmade(), free(&world)), (1, true, true));
    decided(&mut world, "other");

    let result = |device: &str| json!({ "devices": { "results": [{ "driver": DRIVER, "pool": "n1", "device": device }] } });
    let made = left("pod", "true", Value::Null);
    let given = |revision: i64| {
        let mut claim = Arc::try_unwrap(left("pod", "true", result("a"))).unwrap();
        claim.version.revision = revision;
        Arc::new(claim)
    };
    // It is read back without its devices first, after they are written.
    world.made(&given(7), &"pod".into());
    assert!(world.give_back("pod").is_empty() && !free(&world));
    world.put_claim(&key, Some(made.clone()));
    assert!(!free(&world) && world.is_decided(&key));
    world.put_claim(&key, Some(given(7)));
    assert!(!free(&world) && !world.is_decided(&key));
    world.put_claim(&key, None);
    assert!(free(&world));
    // Or with them, before that is known here.
    decided(&mut world, "pod");
    world.put_claim(&key, Some(given(7)));
    world.made(&given(7), &"pod".into());
    assert!(!free(&world) && !world.is_decided(&key));
    world.put_claim(&key, None);
    assert!(free(&world));
    // Or never, because it was deleted at once.
    decided(&mut world, "pod");
    world.made(&given(7), &"pod".into());
    assert!(!free(&world));
    world.deleted(&key);
    assert!(free(&world));
}

#[test]
fn room_for_what_is_had_as_devices_is_not_looked_for_on_the_node() {
    let fit = plugin_named("NodeResourcesFit", &crate::config::args::Args::default()).unwrap();
    let mut cluster = Cluster::default();
    let nodes = [("bare", None), ("none", Some("0")), ("own", Some("1"))];
    cluster.devices = world(&[slice("s", named(&["a"]))]);
    for (name, count) in nodes {
        cluster.put_node(Arc::new(offering(name, count)));
    }
    let refused = |cluster: &Cluster, pod: &Pod| -> Vec<bool> {
        let crate::framework::PreFilter::Check(check) = fit.filter(pod, cluster) else { panic!("no filter") };
        nodes.iter().map(|(name, _)| check.refusal(cluster.named(name).unwrap()).is_some()).collect()
    };
    assert_eq!(refused(&cluster, &asking(2)), [false, false, true]);
    let (old, new) =
        (Arc::new(offering("n", None)), Arc::new(Node { unschedulable: true, ..offering("n", None) }));
    let stands = class("new", Some(GPU), "2026-01-01T00:00:00Z");
    let for_another = class("new", Some("example.com/fpga"), "2026-01-01T00:00:00Z");
    let implicit = class("gpu", None, "2026-01-01T00:00:00Z");
    let by_name = pod_of(json!([container("c", json!({ IMPLICIT: "1" }))]), json!([]));
    let by_resource = asking(2);
    for (pod, event, helps) in [
        (&by_resource, Event::NodeAdded(old.clone()), true),
        (&by_resource, Event::NodeChanged(old.clone(), new.clone()), true),
        (&by_resource, Event::NodeAdded(Arc::new(offering("n", Some("1")))), false),
        (&by_resource, Event::DeviceClass(None, stands.clone()), true),
        (&by_resource, Event::DeviceClass(Some(stands.clone()), stands.clone()), false),
        (&by_resource, Event::DeviceClass(Some(for_another.clone()), stands.clone()), true),
        (&by_resource, Event::DeviceClass(None, for_another), false),
        (&by_resource, Event::DeviceClass(None, implicit.clone()), false),
        (&by_name, Event::DeviceClass(None, implicit.clone()), true),
        (&by_name, Event::DeviceClass(Some(stands), implicit), false),
    ] {
        assert_eq!(fit.may_help_in(pod, &event, &cluster), helps, "{event:?}");
        assert!(fit.heeds(&event));
    }
    cluster.devices.put_class("gpu", None);
    assert_eq!(refused(&cluster, &asking(2)), [true, true, true]);
    assert!(!fit.may_help_in(&by_resource, &Event::NodeAdded(old.clone()), &cluster));
    assert!(!fit.may_help_in(&by_resource, &Event::NodeChanged(old, new), &cluster));
}
