//! Tables per plugin: which nodes take a pod, in which words others refuse it, what helps, and which are better.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::framework::{Decision, Event, Profile, Turn};
use crate::types::{Labels, Node, Pod};

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) fn object(value: &Value) -> api::Object {
    api::Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()
}

pub(super) fn node_of(name: &str, change: &Value) -> Arc<Node> {
    let mut value = json!({ "metadata": { "name": name, "labels": { HOST: name } }, "spec": {},
        "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10", "ephemeral-storage": "10Gi" } } });
    merge(&mut value, change);
    Arc::new(Node::decode(&object(&value)).unwrap())
}

/// RFC 7386, enough of it.
pub(super) fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

pub(super) fn pod_of(name: &str, spec: &Value, app: &str) -> Arc<Pod> {
    let value = json!({ "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": { "app": app } },
        "spec": spec });
    Arc::new(Pod::decode(&object(&value)).unwrap())
}

pub(super) fn profile(config: &str) -> Profile {
    let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
    Config::parse(&format!("{head}{config}")).unwrap().profiles.pop().unwrap()
}

/// Where a pod goes, or what is said of it (but for what is done about it).
pub(super) fn decide(profile: &Profile, pod: &Arc<Pod>, cluster: &mut Cluster) -> String {
    match profile.decide(pod, cluster, &mut Turn::default()) {
        Decision::Node(said) | Decision::Failed(said) => said,
        Decision::Refused(refused) | Decision::Preempt(refused, _) => {
            let message = refused.message;
            let said = message.split(" preemption:").next();
            said.unwrap_or_default().to_owned()
        }
    }
}

fn cluster(nodes: &[(&str, Value)]) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, change) in nodes {
        cluster.put_node(node_of(name, change));
    }
    cluster
}

fn put(cluster: &mut Cluster, name: &str, node: &str, spec: &Value, app: &str) {
    let mut spec = spec.clone();
    spec["nodeName"] = node.into();
    cluster.put_pod(pod_of(name, &spec, app));
}

fn requests(list: Value) -> Value {
    json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": list } }] })
}

#[test]
fn one_node_takes_the_pod_or_says_why_not() {
    let only = |operator: &str, values: Value| {
        json!({ "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions":
            [{ "key": "disk", "operator": operator, "values": values }] }] } } } })
    };
    let named = |names: Value| {
        json!({ "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchFields":
            [{ "key": "metadata.name", "operator": "In", "values": names }] }] } } } })
    };
    let taint =
        |effect: &str| json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": effect }] } });
    let port = |host: Value| json!({ "containers": [{ "ports": [host] }] });
    let disk = json!({ "metadata": { "labels": { "disk": "ssd", "n": "5" } } });
    let gpu = json!({ "status": { "allocatable": { "example.com/gpu": "2" } } });
    let says = |what: &str| format!("0/1 nodes are available: 1 {what}.");
    for (node, pod, decision) in [
        (json!({}), json!({}), "n".to_owned()),
        (json!({ "spec": { "unschedulable": true } }), json!({}), says("node(s) were unschedulable")),
        (
            json!({ "spec": { "unschedulable": true } }),
            json!({ "tolerations": [{ "key": "node.kubernetes.io/unschedulable", "operator": "Exists" }] }),
            "n".into(),
        ),
        (taint("NoSchedule"), json!({}), says("node(s) had untolerated taint(s)")),
        (taint("NoExecute"), json!({}), says("node(s) had untolerated taint(s)")),
        (taint("PreferNoSchedule"), json!({}), "n".into()),
        (taint("NoSchedule"), json!({ "tolerations": [{ "key": "k", "value": "v" }] }), "n".into()),
        (
            taint("NoSchedule"),
            json!({ "tolerations": [{ "key": "k", "value": "w" }] }),
            says("node(s) had untolerated taint(s)"),
        ),
        (json!({}), json!({ "nodeSelector": { "disk": "ssd" } }), says("node(s) didn't match Pod's node affinity/selector")),
        (disk.clone(), json!({ "nodeSelector": { "disk": "ssd" } }), "n".into()),
        (disk.clone(), only("In", json!(["hdd", "ssd"])), "n".into()),
        (disk.clone(), only("NotIn", json!(["ssd"])), says("node(s) didn't match Pod's node affinity/selector")),
        (disk.clone(), only("Exists", json!([])), "n".into()),
        (json!({}), only("DoesNotExist", json!([])), "n".into()),
        (disk, only("Gt", json!(["4"])), says("node(s) didn't match Pod's node affinity/selector")),
        (json!({}), named(json!(["n"])), "n".into()),
        (
            json!({}),
            named(json!(["other"])),
            says("node(s) didn't satisfy plugin(s) [NodeAffinity]"),
        ),
        (json!({}), requests(json!({ "cpu": "4", "memory": "8Gi" })), "n".into()),
        (json!({}), requests(json!({ "cpu": "4001m" })), says("Insufficient cpu")),
        (
            json!({}),
            requests(json!({ "cpu": "5", "memory": "9Gi", "ephemeral-storage": "11Gi" })),
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient ephemeral-storage, 1 Insufficient memory."
                .into(),
        ),
        (json!({}), requests(json!({ "example.com/gpu": "1" })), says("Insufficient example.com/gpu")),
        (gpu.clone(), requests(json!({ "example.com/gpu": "2" })), "n".into()),
        (gpu, requests(json!({ "hugepages-2Mi": "2Mi" })), says("Insufficient hugepages-2Mi")),
        (json!({ "status": { "allocatable": { "pods": "0" } } }), json!({}), says("Too many pods")),
        (json!({}), port(json!({ "hostPort": 80, "protocol": "UDP" })), "n".into()),
        (
            json!({}),
            port(json!({ "hostPort": 90, "hostIP": "10.0.0.2" })),
            says("node(s) didn't have free ports for the requested pod ports"),
        ),
        (
            json!({}),
            port(json!({ "hostPort": 80, "hostIP": "10.0.0.1" })),
            says("node(s) didn't have free ports for the requested pod ports"),
        ),
        (json!({}), port(json!({ "hostPort": 91, "hostIP": "10.0.0.2" })), "n".into()),
    ] {
        let mut cluster = cluster(&[("n", node.clone())]);
        if pod.to_string().contains("hostPort") {
            put(&mut cluster, "web", "n", &port(json!({ "hostPort": 80 })), "x");
            put(&mut cluster, "dns", "n", &port(json!({ "hostPort": 90 })), "x");
            put(&mut cluster, "one", "n", &port(json!({ "hostPort": 91, "hostIP": "10.0.0.1" })), "x");
        }
        assert_eq!(decide(&profile(""), &pod_of("p", &pod, "x"), &mut cluster), decision, "{node} {pod}");
    }
}

#[test]
fn a_pod_goes_where_what_it_needs_is_declared() {
    let declares = |features: Value| json!({ "status": { "declaredFeatures": features } });
    let restarts = json!({ "name": "c", "restartPolicy": "Never", "restartPolicyRules": [{ "action": "RestartAllContainers",
        "exitCodes": { "operator": "In", "values": [42] } }] });
    let mounts = json!({ "name": "c", "volumeMounts": [{ "name": "v", "mountPath": "/v", "bindMountOptions": ["noexec"] }] });
    let plain = json!({ "name": "c", "restartPolicyRules": [{ "action": "Restart" }],
        "volumeMounts": [{ "name": "v", "mountPath": "/v", "bindMountOptions": [] }] });
    let (all, users, options) = (
        "RestartAllContainersOnContainerExits",
        "UserNamespacesHostNetworkSupport",
        "VolumeBindMountOptions",
    );
    let nowhere = "0/1 nodes are available: 1 node(s) didn't match Pod's required features.";
    let own = profile("");
    for (features, pod, decision) in [
        (json!([]), json!({ "containers": [restarts] }), nowhere),
        (json!([users]), json!({ "initContainers": [restarts] }), nowhere),
        (json!([users, all]), json!({ "containers": [restarts] }), "n"),
        (json!([all]), json!({ "hostNetwork": true, "hostUsers": false }), nowhere),
        (json!([users]), json!({ "hostNetwork": true, "hostUsers": false }), "n"),
        (json!([]), json!({ "hostNetwork": true, "hostUsers": true }), "n"),
        (json!([]), json!({ "hostUsers": false }), "n"),
        (json!([]), json!({ "containers": [mounts] }), nowhere),
        (json!([]), json!({ "ephemeralContainers": [mounts] }), nowhere),
        (json!([options]), json!({ "initContainers": [mounts] }), "n"),
        (json!([options]), json!({ "containers": [mounts, restarts] }), nowhere),
        (json!([]), json!({ "containers": [plain] }), "n"),
    ] {
        let mut cluster = cluster(&[("n", declares(features.clone()))]);
        assert_eq!(decide(&own, &pod_of("p", &pod, "x"), &mut cluster), decision, "{features} {pod}");
    }
    let (pod, by) = (pod_of("p", &json!({ "containers": [restarts] }), "x"), ["NodeDeclaredFeatures"].into());
    let (before, after) = (node_of("n", &json!({})), node_of("n", &declares(json!([all]))));
    for (event, helps) in [
        (Event::NodeChanged(before.clone(), after.clone()), true),
        (Event::NodeChanged(after.clone(), after), false),
        (Event::NodeAdded(before), true),
        (Event::AttachmentGone, false),
    ] {
        assert_eq!(own.may_help(&pod, &by, &event, &Cluster::default()), helps, "{event:?}");
    }
}

#[test]
fn arguments_change_what_plugins_say() {
    let plugin = |name: &str, args: &str| {
        profile(&format!("profiles: [{{pluginConfig: [{{name: {name}, args: {args}}}]}}]\n"))
    };
    let ignoring =
        plugin("NodeResourcesFit", "{ignoredResources: [example.com/a], ignoredResourceGroups: [other.io]}");
    let mut one = cluster(&[("n", json!({}))]);
    let asks = |name: &str| pod_of("p", &requests(json!({ name: "1" })), "x");
    assert_eq!(decide(&ignoring, &asks("example.com/a"), &mut one), "n");
    assert_eq!(decide(&ignoring, &asks("other.io/b"), &mut one), "n");
    let large = node_of("m", &json!({}));
    let by = ["NodeResourcesFit"].into();
    assert!(ignoring.may_help(
        &asks("example.com/a"),
        &by,
        &Event::NodeAdded(large.clone()),
        &Cluster::default()
    ));
    assert!(!ignoring.may_help(&asks("example.com/b"), &by, &Event::NodeAdded(large), &Cluster::default()));
    assert!(decide(&ignoring, &asks("example.com/b"), &mut one).contains("1 Insufficient example.com/b"));
    let added = plugin(
        "NodeAffinity",
        "{addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: \
         [{matchExpressions: [{key: pool, operator: Exists}]}]}}}",
    );
    assert!(
        decide(&added, &pod_of("p", &json!({}), "x"), &mut one)
            .contains("1 node(s) didn't match scheduler-enforced node affinity")
    );
    let most = plugin("NodeResourcesFit", "{scoringStrategy: {type: MostAllocated}}");
    let mut two = cluster(&[("a", json!({})), ("b", json!({}))]);
    put(&mut two, "there", "b", &requests(json!({ "cpu": "1", "memory": "2Gi" })), "x");
    let small = pod_of("p", &requests(json!({ "cpu": "1", "memory": "2Gi" })), "x");
    assert_eq!(decide(&profile(""), &small, &mut two), "a");
    assert_eq!(decide(&most, &small, &mut two), "b");
    let ratio = plugin(
        "NodeResourcesFit",
        "{scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: \
         {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}}",
    );
    assert_eq!(decide(&ratio, &small, &mut two), "b");
}

#[test]
fn some_nodes_are_better() {
    let soft = json!({ "spec": { "taints": [{ "key": "k", "effect": "PreferNoSchedule" }] } });
    let disk = json!({ "metadata": { "labels": { "disk": "ssd" } } });
    let image = json!({ "status": { "images": [{ "names": ["i:latest"], "sizeBytes": 900 << 20 }] } });
    let likes_disk = json!({ "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution":
        [{ "weight": 1, "preference": { "matchExpressions": [{ "key": "disk", "operator": "Exists" }] } }] } } });
    let near = |kind: &str| {
        json!({ "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution":
        [{ "weight": 100, "podAffinityTerm": { "topologyKey": HOST, "labelSelector": { "matchLabels": { "app": "db" } } } }] } } })
    };
    let spread = json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": HOST,
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": { "matchLabels": { "app": "db" } } }] });
    let picture = json!({ "containers": [{ "name": "c", "image": "i" }] });
    for (a, b, pod, better) in [
        (soft, json!({}), json!({}), "b"),
        (json!({}), disk, likes_disk, "b"),
        (json!({}), image, picture, "b"),
        (json!({}), json!({}), near("podAffinity"), "a"),
        (json!({}), json!({}), near("podAntiAffinity"), "b"),
        (json!({}), json!({}), spread, "b"),
    ] {
        let mut cluster = cluster(&[("a", a), ("b", b)]);
        put(&mut cluster, "db", "a", &json!({}), "db");
        // As much elsewhere, so that nothing else decides.
        put(&mut cluster, "other", "b", &json!({}), "other");
        assert_eq!(decide(&profile(""), &pod_of("p", &pod, "x"), &mut cluster), better, "{pod}");
    }
}

#[test]
fn pods_of_a_service_spread_without_being_told_to() {
    let mut cluster = cluster(&[("a", json!({})), ("b", json!({})), ("c", json!({}))]);
    cluster.selected.put_service("ns", "web", Some(Labels::from([("app".into(), "web".into())])));
    let mut places = Vec::new();
    for number in 0..6 {
        let name = format!("p{number}");
        let node = decide(&profile(""), &pod_of(&name, &json!({}), "web"), &mut cluster);
        put(&mut cluster, &name, &node, &json!({}), "web");
        places.push(node);
    }
    places.sort();
    assert_eq!(places, ["a", "a", "b", "b", "c", "c"]);
}

#[test]
fn neighbours_decide() {
    let zoned = |zone: &str| json!({ "metadata": { "labels": { ZONE: zone } } });
    let term = |app: &str, key: &str| {
        json!({ "requiredDuringSchedulingIgnoredDuringExecution":
        [{ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } }] })
    };
    let with = |app: &str, key: &str| json!({ "affinity": { "podAffinity": term(app, key) } });
    let without = |app: &str, key: &str| json!({ "affinity": { "podAntiAffinity": term(app, key) } });
    let mut cluster = cluster(&[("a", zoned("1")), ("b", zoned("2")), ("c", json!({}))]);
    put(&mut cluster, "db", "a", &json!({}), "db");
    put(&mut cluster, "shy", "b", &without("web", HOST), "shy");
    let own = profile("");
    for (pod, app, decision) in [
        (with("db", ZONE), "x", "a"),
        (without("db", ZONE), "web", "c"),
        // The first of its kind is with itself, where the label is.
        (with("new", HOST), "new", "a b c"),
        (with("gone", HOST), "x", "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."),
        (
            json!({ "affinity": { "podAffinity": term("db", ZONE), "podAntiAffinity": term("db", HOST) } }),
            "x",
            "0/3 nodes are available: 1 node(s) didn't match pod anti-affinity rules, 2 node(s) didn't match pod \
             affinity rules.",
        ),
        (
            json!({ "nodeSelector": { HOST: "b" } }),
            "web",
            "0/3 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules, 2 node(s) didn't \
             match Pod's node affinity/selector.",
        ),
    ] {
        let said = decide(&own, &pod_of("p", &pod, app), &mut cluster);
        assert!(said == decision || decision.split(' ').any(|node| node == said), "{pod}: {said}");
    }
}

#[test]
fn places_are_filled_evenly_where_that_is_asked_for() {
    let zoned = |zone: &str| json!({ "metadata": { "labels": { ZONE: zone } } });
    let even = |more: Value| {
        let mut constraint = json!({ "maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "web" } } });
        merge(&mut constraint, &more);
        json!({ "topologySpreadConstraints": [constraint] })
    };
    let mut cluster = cluster(&[("a", zoned("1")), ("b", zoned("2")), ("c", json!({}))]);
    let own = profile("");
    put(&mut cluster, "w1", "a", &json!({}), "web");
    assert_eq!(decide(&own, &pod_of("p", &even(json!({})), "web"), &mut cluster), "b");
    put(&mut cluster, "w2", "b", &json!({}), "web");
    assert_eq!(
        decide(&own, &pod_of("p", &even(json!({ "minDomains": 3 })), "web"), &mut cluster),
        "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         2 node(s) didn't match pod topology spread constraints."
    );
    // A cordoned-off zone is a place of its own unless the pod's affinity leaves it out.
    cluster.put_node(node_of("d", &json!({ "metadata": { "labels": { ZONE: "3", "far": "yes" } } })));
    let mut near = even(json!({}));
    near["affinity"] = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "far", "operator": "DoesNotExist" }] }] } } });
    let said = decide(&own, &pod_of("p", &near, "web"), &mut cluster);
    assert!(["a", "b"].contains(&said.as_str()), "{said}");
    near["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = "Ignore".into();
    assert!(decide(&own, &pod_of("p", &near, "web"), &mut cluster).starts_with("0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) didn't match pod topology spread constraints (missing required label), 2 node(s) didn't match pod topology spread constraints"));
}

#[test]
fn events_wake_only_whom_they_help() {
    let own = profile("");
    let small = node_of("a", &json!({ "status": { "allocatable": { "cpu": "1" } } }));
    let big = node_of("a", &json!({}));
    let cordoned = node_of("a", &json!({ "spec": { "unschedulable": true } }));
    let wants = pod_of("p", &requests(json!({ "cpu": "2" })), "x");
    let web = pod_of("w", &json!({ "containers": [{ "ports": [{ "hostPort": 80 }] }] }), "web");
    let grew = Event::NodeChanged(small.clone(), big.clone());
    let shrank = Event::NodeChanged(big.clone(), small);
    let opened = Event::NodeChanged(cordoned, big.clone());
    let left = Event::PodLeft(web.clone());
    let near = pod_of(
        "n",
        &json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
        [{ "topologyKey": HOST, "labelSelector": { "matchLabels": { "app": "web" } } }] } } }),
        "x",
    );
    // The last of those whom a pod has to be with has gone: the first of a series may go anywhere.
    let like = json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
        [{ "topologyKey": HOST, "labelSelector": { "matchLabels": { "app": "web" } } }] } } });
    let (one, another) = (pod_of("one", &like, "web"), pod_of("another", &like, "web"));
    let renamed = Event::PodChanged(web.clone(), wants.clone());
    for (pod, plugin, event, helps) in [
        (&another, "InterPodAffinity", &Event::PodLeft(one), true),
        (&another, "InterPodAffinity", &renamed, true),
        (&near, "InterPodAffinity", &left, false),
        (&wants, "NodeResourcesFit", &grew, true),
        (&wants, "NodeResourcesFit", &shrank, false),
        (&wants, "NodeResourcesFit", &left, true),
        (&wants, "NodeUnschedulable", &grew, false),
        (&wants, "NodeUnschedulable", &opened, true),
        (&wants, "TaintToleration", &left, false),
        (&web, "NodePorts", &left, true),
        (&wants, "NodePorts", &left, false),
        (&near, "InterPodAffinity", &Event::PodPlaced(web.clone()), true),
        (&near, "InterPodAffinity", &Event::PodPlaced(wants.clone()), false),
        (&wants, "DefaultPreemption", &left, false),
        (&wants, "SchedulingGates", &opened, false),
    ] {
        let by = std::collections::HashSet::from([plugin]);
        assert_eq!(own.may_help(pod, &by, event, &Cluster::default()), helps, "{plugin} {event:?}");
        assert!(!helps || own.heeds(plugin, event), "{plugin} {event:?}");
    }
}
