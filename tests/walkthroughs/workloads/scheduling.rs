//! Limits, what a node must have for a pod, and who gives way to whom.

use serde_json::{Value, json};

use super::space::{REPLICA_SET, Space, is_ending, is_ready, of, pod, uid};

/// A condition of pods that no node takes.
#[track_caller]
fn unschedulable(space: &Space<'_>, name: &str, why: &str) {
    let reason = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions
            .filter(|known| known["reason"] == "Unschedulable")
            .any(|known| known["message"].as_str().is_some_and(|message| message.contains(why)))
    };
    let pod = space.until_one("pods", name, why, reason);
    assert!(pod["spec"]["nodeName"].is_null(), "{pod}");
}

fn requests(name: &str, app: &str, what: &Value) -> Value {
    let mut pod = pod(name, app);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": what, "limits": what});
    pod
}

fn limit_range(name: &str) -> Value {
    let of = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": name}, "spec": {"limits": [{
        "type": "Container", "min": of("50m", "100Mi"), "max": of("500m", "500Mi"),
        "defaultRequest": of("100m", "200Mi"), "default": of("300m", "400Mi")}]}})
}

pub(crate) fn a_limit_range_gives_defaults_and_keeps_its_bounds(space: &Space<'_>) {
    space.make(&limit_range("bounds"));
    assert_eq!(space.list(&["limitranges"]).len(), 1);
    let resources = |name: &str| space.get(&["pod", name])["spec"]["containers"][0]["resources"].clone();
    space.make(&pod("none", "limited"));
    assert_eq!(
        resources("none"),
        json!({"requests": {"cpu": "100m", "memory": "200Mi"},
        "limits": {"cpu": "300m", "memory": "400Mi"}})
    );
    let mut part = pod("part", "limited");
    part["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "150m"}, "limits": {"memory": "300Mi"}});
    space.make(&part);
    assert_eq!(
        resources("part"),
        json!({"requests": {"cpu": "150m", "memory": "300Mi"},
        "limits": {"cpu": "300m", "memory": "300Mi"}}),
        "a limit stands for its request"
    );

    let little = requests("little", "limited", &json!({"cpu": "10m", "memory": "150Mi"}));
    let much = requests("much", "limited", &json!({"cpu": "600m", "memory": "150Mi"}));
    let said = space.refused(&little);
    assert!(said.contains("minimum cpu usage per Container is 50m"), "{said}");
    let said = space.refused(&much);
    assert!(said.contains("maximum cpu usage per Container is 500m"), "{said}");
    space.update(&["limitrange/bounds"], |range| {
        range["spec"]["limits"][0]["min"] = json!({"cpu": "9m", "memory": "9Mi"});
    });
    space.make(&little);
    space.refused(&much);
    let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
    assert_eq!(space.patch("limitrange/bounds", &patch)["metadata"]["labels"]["patched"], "yes");
    space.run(&["delete", "limitrange", "-l", "patched=yes"]);
    assert!(space.list(&["limitranges"]).is_empty());
    space.make(&much);
}

/// A volume that only one node reaches.
fn local_volume(name: &str, class: &str, node: &str) -> Value {
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "local": {"path": "/nowhere"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}}})
}

pub(crate) fn a_claim_is_bound_where_its_first_pod_goes(space: &Space<'_>) {
    // These are the cluster's, whose names others may want.
    let class = space.name.as_str();
    let far = space.cluster.nodes()[1];
    space.make(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}),
    );
    space.make(&local_volume(class, class, far));
    space.make(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "500Mi"}}}}));
    space.run(&["wait", "--for=jsonpath={.status.phase}=Pending", "pvc/data", "--timeout=240s"]);
    let mut user = pod("user", "stores");
    user["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    space.make(&user);
    let user = space.until_one("pods", "user", "it has a node", |pod| !pod["spec"]["nodeName"].is_null());
    assert_eq!(user["spec"]["nodeName"], far, "{user}");
    space.run(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data", "--timeout=240s"]);
    assert_eq!(space.get(&["pvc", "data"])["spec"]["volumeName"], class);
    let volume = space.get(&["pv", class]);
    assert_eq!(volume["spec"]["claimRef"]["name"], "data", "{volume}");
    space.run(&["delete", "pod/user", "pvc/data", "--now"]);
    space.run(&["delete", "pv", class]);
    space.run(&["delete", "storageclass", class]);
}

/// What a quantity of CPU is in thousandths.
fn thousandths(cpu: &Value) -> u64 {
    let cpu = cpu.as_str().unwrap_or_default();
    match cpu.strip_suffix('m') {
        Some(thousandths) => thousandths.parse().unwrap(),
        None => cpu.parse::<u64>().unwrap() * 1000,
    }
}

/// A pod on each node takes most of its CPU; half a node's is then nowhere, until one of them goes.
pub(crate) fn a_pod_that_exceeds_what_is_left_waits(space: &Space<'_>) {
    let nodes = space.list(&["nodes"]);
    let half = nodes.iter().map(|node| thousandths(&node["status"]["allocatable"]["cpu"])).max().unwrap() / 2;
    for node in &nodes {
        let most = thousandths(&node["status"]["allocatable"]["cpu"]) * 7 / 10;
        let name = node["metadata"]["name"].as_str().unwrap();
        let mut filler = requests(&format!("filler-{name}"), "filler", &json!({"cpu": format!("{most}m")}));
        filler["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": name});
        space.make(&filler);
    }
    space.ready_pods("filler", nodes.len());
    let wanted = json!({"cpu": format!("{half}m")});
    space.make(&requests("more", "more", &wanted));
    unschedulable(space, "more", "Insufficient cpu");
    space.run(&["delete", "pod", "-l", "app=filler", "--wait=false"]);
    space.ready_pods("more", 1);
}

pub(crate) fn a_pod_goes_to_the_node_that_its_selector_names(space: &Space<'_>) {
    for node in space.cluster.nodes() {
        space.run(&["label", "node", node, "test.example/word=42"]);
        let mut chosen = pod(&format!("on-{node}"), "chosen");
        chosen["spec"]["nodeSelector"] = json!({"test.example/word": "42"});
        space.make(&chosen);
        let pods = space.ready_pods("chosen", 1);
        assert!(pods.values().all(|pod| pod["spec"]["nodeName"] == node), "{pods:#?}");
        space.run(&["label", "node", node, "test.example/word-"]);
        space.run(&["delete", "pod", "-l", "app=chosen"]);
    }
}

pub(crate) fn a_pod_whose_selector_names_no_node_waits(space: &Space<'_>) {
    let mut nowhere = pod("nowhere", "nowhere");
    nowhere["spec"]["nodeSelector"] = json!({"test.example/label": "nonempty"});
    space.make(&nowhere);
    unschedulable(space, "nowhere", "didn't match Pod's node affinity/selector");
}

fn at_port(name: &str, node: &str, address: &str, protocol: &str) -> Value {
    let mut pod = pod(name, "ported");
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    pod["spec"]["containers"][0]["ports"] =
        json!([{"containerPort": 80, "hostPort": 24322, "hostIP": address, "protocol": protocol}]);
    pod
}

pub(crate) fn all_addresses_and_one_of_them_are_the_same_port(space: &Space<'_>) {
    let (node, address) = (space.cluster.nodes()[1], &*space.cluster.second.address);
    space.make(&at_port("all", node, "0.0.0.0", "TCP"));
    space.ready_pods("ported", 1);
    space.make(&at_port("one", node, address, "TCP"));
    unschedulable(space, "one", "didn't have free ports");
    space.make(&at_port("other", node, address, "UDP"));
    space.run(&["wait", "pod/other", "--for=condition=Ready", "--timeout=240s"]);
}

/// Gives nodes some of a resource that nothing else has.
fn give(space: &Space<'_>, nodes: &[&str], resource: &str, amount: &str) {
    for node in nodes {
        let has = json!({resource: amount});
        let what = format!("nodes/{node}");
        let status = json!({"status": {"capacity": has, "allocatable": has}});
        space.patch_with(&[&what, "--subresource=status"], &status);
    }
}

fn class(name: &str, value: i64) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value})
}

/// Four pods fill a resource of both nodes, the first of them of a lower class than the others.
fn fill(space: &Space<'_>, prefix: &str, resource: &str) {
    give(space, &space.cluster.nodes(), resource, "2");
    space.make(&class(&format!("{prefix}-low"), 1));
    space.make(&class(&format!("{prefix}-medium"), 100));
    space.make(&class(&format!("{prefix}-high"), 1000));
    for (at, class) in ["low", "medium", "medium", "medium"].iter().enumerate() {
        let mut pod = requests(&format!("pod-{at}"), "filling", &json!({resource: "1"}));
        pod["spec"]["priorityClassName"] = format!("{prefix}-{class}").into();
        space.make(&pod);
    }
    space.ready_pods("filling", 4);
}

/// The first pod has given way, and nobody else.
#[track_caller]
fn gave_way(space: &Space<'_>) {
    let left = space.until(&of("filling"), "the low one is gone", |pods| !pods.contains_key("pod-0"));
    assert!(left.len() == 3 && left.values().all(is_ready), "{left:#?}");
}

fn remove_classes(space: &Space<'_>, names: &[String]) {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    space.run(&[&["delete", "priorityclass"], &names[..]].concat());
}

pub(crate) fn a_pod_of_low_priority_gives_way(space: &Space<'_>) {
    fill(space, "basic", "test.example/basic");
    let mut preemptor = requests("preemptor", "preemptor", &json!({"test.example/basic": "1"}));
    preemptor["spec"]["priorityClassName"] = "basic-high".into();
    space.make(&preemptor);
    space.ready_pods("preemptor", 1);
    gave_way(space);
    remove_classes(space, &["low", "medium", "high"].map(|name| format!("basic-{name}")));
}

pub(crate) fn a_pod_of_low_priority_gives_way_to_a_critical_one(space: &Space<'_>) {
    fill(space, "critical", "test.example/critical");
    let system = Space { cluster: space.cluster, name: "kube-system".to_owned() };
    let mut critical = requests("workloads-critical", "critical", &json!({"test.example/critical": "1"}));
    critical["spec"]["priorityClassName"] = "system-cluster-critical".into();
    system.make(&critical);
    system.ready_pods("critical", 1);
    gave_way(space);
    system.run(&["delete", "pod", "workloads-critical"]);
    remove_classes(space, &["low", "medium", "high"].map(|name| format!("critical-{name}")));
}

fn ranked(name: &str, amount: &str, replicas: u32) -> Value {
    let mut set = REPLICA_SET.of(name, replicas);
    let wanted = json!({"test.example/ranked": amount});
    let spec = &mut set["spec"]["template"]["spec"];
    spec["priorityClassName"] = name.into();
    spec["containers"][0]["resources"] = json!({"requests": wanted, "limits": wanted});
    set
}

/// Eight tenths of a node's resource are taken by three ranks; the fourth wants half of it. As many as possible stay,
/// the higher ones first: both of the third rank and one of the second.
pub(crate) fn replica_sets_give_way_by_their_ranks(space: &Space<'_>) {
    give(space, &space.cluster.nodes()[..1], "test.example/ranked", "1000");
    let ranks = ["rank-1", "rank-2", "rank-3", "rank-4"];
    for (value, name) in (1..).zip(ranks) {
        space.make(&class(name, value));
    }
    let before = [("rank-1", "100"), ("rank-2", "100"), ("rank-3", "200")].map(|(name, amount)| {
        space.make(&ranked(name, amount, 2));
        space.ready_pods(name, 2)
    });
    space.make(&ranked("rank-4", "500", 1));
    space.ready_pods("rank-4", 1);
    for ((name, kept), before) in ranks.into_iter().zip([0, 1, 2]).zip(&before) {
        let pods = space.until(&of(name), "as many pods as wanted, and none that ends", |pods| {
            pods.len() == 2 && !pods.values().any(is_ending)
        });
        let left =
            pods.iter().filter(|(name, pod)| before.get(*name).is_some_and(|old| uid(old) == uid(pod)));
        assert_eq!(left.count(), kept, "{name}: {pods:#?}");
        space.until_one("replicasets", name, "counts what is Ready", |set| {
            set["status"]["readyReplicas"].as_u64().unwrap_or_default() == kept as u64
        });
    }
    space.run(&["delete", "replicaset", "--all"]);
    remove_classes(space, &ranks.map(str::to_owned));
}

pub(crate) fn priority_classes_have_every_verb_and_keep_their_values(space: &Space<'_>) {
    for (name, value) in [("verbs-1", 1), ("verbs-2", 2)] {
        let mut class = class(name, value);
        class["metadata"]["labels"] = json!({"test": "verbs"});
        space.make(&class);
    }
    assert_eq!(space.list(&["priorityclasses", "-l", "test=verbs"]).len(), 2);
    let what = "priorityclasses/verbs-1";
    let patched = space.patch(what, &json!({"description": "patched"}));
    assert_eq!((&patched["description"], &patched["value"]), (&json!("patched"), &json!(1)));
    let updated = space.update(&[what], |class| class["description"] = "updated".into());
    assert_eq!(updated["description"], "updated");
    let refused = space.try_run(&["patch", what, "--type=merge", "-p", r#"{"value": 7}"#]);
    assert!(refused.code == 1 && refused.err.contains("may not be changed in an update"), "{refused:?}");
    let mut other = space.get(&[what]);
    other["value"] = 7.into();
    let refused = space.feed(&["replace"], &other);
    assert!(refused.code == 1 && refused.err.contains("may not be changed in an update"), "{refused:?}");
    assert_eq!(space.get(&[what])["value"], 1);
    space.run(&["delete", "--raw", "/apis/scheduling.k8s.io/v1/priorityclasses?labelSelector=test%3Dverbs"]);
    assert!(space.list(&["priorityclasses", "-l", "test=verbs"]).is_empty());
}
