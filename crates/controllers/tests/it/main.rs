//! The controllers against a real API server.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod attach;
mod cluster;
mod daemons;
mod devices;
mod disruption;
mod figures;
mod horizontal;
mod jobs;
mod local_path;
mod loops;
mod migrations;
mod services;
mod small;
mod stateful;
mod storage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Propagation, Reason};
use base::clock::{SharedClock, SystemClock, VirtualClock};
use cluster::Cluster;
use controllers::Ctx;
use parking_lot::Mutex;
use reconcile::kinds::{self, Catalog, Extensions};
use serde_json::{Value, json};

async fn start() -> Cluster {
    start_at(Arc::new(SystemClock)).await
}

/// A cluster whose controllers' clock stands still until it is moved; it begins with a whole second, as times in objects.
async fn start_virtual() -> (VirtualClock, Cluster) {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
    let clock = VirtualClock::new(now);
    let cluster = start_at(Arc::new(clock.clone())).await;
    (clock, cluster)
}

/// A cluster whose controllers go by a clock of their own.
async fn start_at(clock: SharedClock) -> Cluster {
    let cluster = start_alone(clock).await;
    play(&cluster).await;
    cluster
}

/// The same with nobody who runs pods.
async fn start_alone(clock: SharedClock) -> Cluster {
    start_with(clock, Catalog::new(Arc::new(api::catalog::Catalog::builtin()))).await
}

/// The same where other servers serve something beside.
async fn start_with(clock: SharedClock, catalog: Catalog) -> Cluster {
    Cluster::start(|cluster| {
        let ctx = Ctx {
            client: cluster.client.clone(),
            informers: cluster.informers.clone(),
            clock,
            catalog,
            queues: cluster.queues.clone(),
            figures: None,
            root_ca_pem: cluster.root_ca_pem.subscribe(),
        };
        let mut all = controllers::all(&ctx);
        let tokens = controllers::service_account_tokens::ServiceAccountTokens::new(&ctx, Arc::new(Signer));
        all.push(Arc::new(tokens));
        all.push(Arc::new(controllers::node_role::NodeRole::new(&ctx, "n1")));
        all
    })
    .await
}

/// Signs by saying for whom.
struct Signer;

impl reconcile::ports::SecretTokens for Signer {
    fn sign(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, base::BoxError> {
        Ok(format!("{secret} of {namespace}/{}", account.0))
    }
}

/// Nodes and a scheduler that stand in. The node says that it is ready: of one that does not the pods are not ready.
async fn play(cluster: &Cluster) {
    cluster.play_nodes(true);
    cluster.create(&kinds::NODES, "", json!({ "metadata": { "name": "n1" } })).await;
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] } });
    let (nodes, strategic) = (kinds::NODES.gvr(), PatchType::StrategicMerge);
    cluster.client.patch(&nodes, &Key::new("", "n1"), "status", strategic, &ready).await.unwrap();
}

fn web(replicas: u32, image: &str) -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 1 } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            },
        },
    })
}

fn image(version: &str) -> Value {
    json!({ "spec": { "template": { "spec": { "containers": [
        { "name": "web", "image": version, "ports": [{ "name": "http", "containerPort": 8080 }] },
    ] } } } })
}

fn is_complete(deployment: &Value, replicas: i64) -> bool {
    let status = &deployment["status"];
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    counts.iter().all(|count| status[count].as_i64() == Some(replicas))
        && status["observedGeneration"] == deployment["metadata"]["generation"]
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|held| held["type"] == kind)).unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_serves_rolls_back_and_goes() {
    let cluster = start().await;
    let key = Key::new("default", "web");
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" },
        "ports": [{ "port": 80, "targetPort": "http" }] } });
    cluster.create(&kinds::SERVICES, "default", service).await;
    cluster.create(&kinds::DEPLOYMENTS, "default", web(4, "web:1")).await;
    let first = cluster.until(kinds::DEPLOYMENTS, &key, |held| is_complete(held, 4)).await;
    assert_eq!(condition(&first, "Progressing")["reason"], "NewReplicaSetAvailable");
    assert_eq!(condition(&first, "Available")["status"], "True");
    assert_eq!(first["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    serves(&cluster, 4).await;

    // While the next version comes, the bounds hold at every single change. The surge bounds what the sets are told to have:
    // one of them may still be on its way down.
    let (most, least) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let (sets, seen) = (cluster.informers.get(kinds::REPLICA_SETS), most.clone());
    let all = sets.clone();
    let sized = sets.on_change(move |_| {
        let sizes = all.in_namespace("default").into_iter().map(|set| {
            let set: Value = set.decode().unwrap();
            set["spec"]["replicas"].as_i64().unwrap()
        });
        seen.fetch_max(sizes.sum(), Ordering::Relaxed);
    });
    let (pods, seen) = (cluster.informers.get(kinds::PODS), least.clone());
    let all = pods.clone();
    let watching = pods.on_change(move |_| {
        let alive = all.in_namespace("default").into_iter().filter(|pod| !pod.meta().is_terminating());
        seen.fetch_min(alive.filter(|pod| is_ready(pod)).count(), Ordering::Relaxed);
    });
    cluster.merge(&kinds::DEPLOYMENTS, &key, image("web:2")).await;
    cluster
        .until(kinds::DEPLOYMENTS, &key, |held| {
            is_complete(held, 4)
                && held["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
        })
        .await;
    drop((sized, watching));
    let (most, least) = (most.load(Ordering::Relaxed), least.load(Ordering::Relaxed));
    assert!(most == 5 && least >= 3, "{most} pods are wanted at most, {least} ready at least");
    serves(&cluster, 4).await;

    // Back to the first template: its set is used again.
    cluster.merge(&kinds::DEPLOYMENTS, &key, image("web:1")).await;
    cluster
        .until(kinds::DEPLOYMENTS, &key, |held| {
            is_complete(held, 4)
                && held["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
        })
        .await;
    assert_eq!(cluster.informers.get(kinds::REPLICA_SETS).in_namespace("default").len(), 2);
    // The sets tell when the last old pod has ended.
    let ended = |held: &Value| held["status"]["terminatingReplicas"] == 0;
    cluster.until(kinds::DEPLOYMENTS, &key, ended).await;

    let events = cluster.until_all(kinds::EVENTS, "default", |events| {
        events.iter().any(|event| reason(event) == "ScalingReplicaSet")
            && events.iter().any(|event| reason(event) == "SuccessfulCreate")
    });
    events.await;

    cluster.client.delete(&kinds::DEPLOYMENTS.gvr(), &key, DeleteOptions::default()).await.unwrap();
    cluster.until_all(kinds::PODS, "default", <[_]>::is_empty).await;
    cluster.until_all(kinds::REPLICA_SETS, "default", <[_]>::is_empty).await;
    serves(&cluster, 0).await;

    let told = cluster.queues.figures();
    for name in [
        "daemonset",
        "statefulset",
        "job",
        "job_orphan_pod",
        "cronjob",
        "disruption",
        "volume_expand",
        "stale_pod_disruption",
        "horizontalpodautoscaler",
        "ttl_jobs_to_delete",
        "ttlcontroller",
        "claims",
        "volumes",
        "orphaned_pods_nodes",
        "bootstrap_signer_queue",
        "ephemeral_volume",
        "pvcs",
        "pvcprotection",
        "pvprotection",
        "vacprotection",
        "services",
        "ipaddresses",
    ] {
        assert!(told.contains_key(name), "{name}");
    }
    for name in ["deployment", "replicaset", "endpoint", "endpoint_slice"] {
        let figures = &told[name];
        assert!(
            figures.adds > 0 && figures.waited.count > 0 && figures.worked.count > 0,
            "{name}: {figures:?}"
        );
    }
}

fn reason(event: &Object) -> String {
    event.decode::<Value>().unwrap()["reason"].as_str().unwrap_or("").to_owned()
}

fn is_ready(pod: &Object) -> bool {
    condition(&pod.decode::<Value>().unwrap(), "Ready")["status"] == "True"
}

/// Waits until slices and Endpoints of `web` name so many ready pods.
async fn serves(cluster: &Cluster, count: usize) {
    cluster
        .until_all(kinds::ENDPOINT_SLICES, "default", |slices| {
            let slices = slices.iter().map(|slice| slice.decode::<Value>().unwrap());
            let web: Vec<Value> = slices
                .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web")
                .collect();
            let ready =
                web.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
            !web.is_empty()
                && ready.filter(|endpoint| endpoint["conditions"]["ready"] == true).count() == count
        })
        .await;
    let key = Key::new("default", "web");
    cluster
        .until(kinds::ENDPOINTS, &key, |held| {
            let addresses = held["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
            !held.is_null()
                && addresses == count
                && (count == 0 || held["subsets"][0]["ports"][0]["port"] == 8080)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_replace_adopt_and_release_pods() {
    let cluster = start().await;
    let orphan = json!({ "metadata": { "name": "early", "labels": { "app": "db" } },
        "spec": { "containers": [{ "name": "c", "image": "db" }] } });
    cluster.takes_pods("default").await;
    cluster.create(&kinds::PODS, "default", orphan).await;
    // Whoever of several is too many, it is not the one that runs: also where the controller sees the orphan late.
    let early = Key::new("default", "early");
    cluster.until(kinds::PODS, &early, |held| held["status"]["phase"] == "Running").await;
    let set = json!({ "metadata": { "name": "db" }, "spec": { "replicas": 2, "selector": { "app": "db" },
        "template": { "metadata": { "labels": { "app": "db" } }, "spec": { "containers": [{ "name": "c", "image": "db" }] } } } });
    let set = cluster.create(&kinds::REPLICATION_CONTROLLERS, "default", set).await;
    let uid = set.meta().uid.clone();
    let owned = |pods: &[Arc<Object>]| {
        pods.iter().filter(|pod| pod.meta().controller().is_some_and(|owner| owner.uid == uid)).count()
    };
    let pods = cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 2 && owned(pods) == 2).await;
    assert!(pods.iter().any(|pod| pod.meta().name == "early"), "the orphan was adopted");

    cluster.client.delete(&kinds::PODS.gvr(), &early, DeleteOptions::default()).await.unwrap();
    let pods = cluster
        .until_all(kinds::PODS, "default", |pods| {
            owned(pods) == 2 && pods.iter().all(|pod| pod.meta().name != "early")
        })
        .await;
    // A pod whose labels change is let go, and replaced.
    let released = pods[0].key();
    cluster.merge(&kinds::PODS, &released, json!({ "metadata": { "labels": { "app": "else" } } })).await;
    cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 3 && owned(pods) == 2).await;
    let status = |held: &Value| held["status"]["readyReplicas"] == 2 && held["status"]["replicas"] == 2;
    cluster.until(kinds::REPLICATION_CONTROLLERS, &Key::new("default", "db"), status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_come_with_their_defaults_and_go_with_their_content() {
    let cluster = start().await;
    cluster.create(&kinds::NAMESPACES, "", json!({ "metadata": { "name": "team" } })).await;
    cluster.takes_pods("team").await;
    let ca = cluster
        .until(kinds::CONFIG_MAPS, &Key::new("team", "kube-root-ca.crt"), |held| !held.is_null())
        .await;
    assert_eq!(ca["data"]["ca.crt"], **cluster.root_ca_pem.borrow());
    cluster.create(&kinds::DEPLOYMENTS, "team", web(2, "web:1")).await;
    cluster.until(kinds::DEPLOYMENTS, &Key::new("team", "web"), |held| is_complete(held, 2)).await;
    let service = json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80 }] } });
    cluster.create(&kinds::SERVICES, "team", service).await;
    let held = json!({ "metadata": { "name": "held", "finalizers": ["example.com/hold"] } });
    cluster.create(&kinds::CONFIG_MAPS, "team", held).await;

    let team = Key::new("", "team");
    cluster.client.delete(&kinds::NAMESPACES.gvr(), &team, DeleteOptions::default()).await.unwrap();
    let waiting = cluster
        .until(kinds::NAMESPACES, &team, |held| {
            condition(held, "NamespaceFinalizersRemaining")["status"] == "True"
        })
        .await;
    let message = condition(&waiting, "NamespaceFinalizersRemaining")["message"].as_str().unwrap();
    assert!(message.contains("example.com/hold in 1 resource instances"), "{message}");
    let held = Key::new("team", "held");
    cluster.merge(&kinds::CONFIG_MAPS, &held, json!({ "metadata": { "finalizers": null } })).await;
    cluster.until(kinds::NAMESPACES, &team, Value::is_null).await;
    for kind in [kinds::PODS, kinds::SERVICES] {
        cluster.until_all(kind, "team", <[_]>::is_empty).await;
    }
    let gone = cluster.client.get(&kinds::SERVICES.gvr(), &Key::new("team", "web")).await;
    assert!(gone.is_err_and(|status| status.reason == Reason::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_namespace_goes_before_it_is_known_what_is_served() {
    let catalog = Catalog::new(Arc::new(api::catalog::Catalog::builtin())).incomplete();
    let cluster = start_with(Arc::new(SystemClock), catalog.clone()).await;
    let team = Key::new("", "team");
    cluster.create(&kinds::NAMESPACES, "", json!({ "metadata": { "name": "team" } })).await;
    cluster.client.delete(&kinds::NAMESPACES.gvr(), &team, DeleteOptions::default()).await.unwrap();
    cluster.until(kinds::NAMESPACES, &team, |held| !held["metadata"]["deletionTimestamp"].is_null()).await;
    // What was told of waits, and is not worked on.
    loops::at_rest(&cluster, &["namespace"]).await;
    assert_eq!(cluster.queues.figures().get("namespace").map(|queue| queue.worked.count), Some(0));
    assert!(cluster.client.get(&kinds::NAMESPACES.gvr(), &team).await.is_ok());
    catalog.complete();
    cluster.until(kinds::NAMESPACES, &team, Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_stays_while_nobody_knows_what_another_server_has_in_it() {
    let silent = Arc::new(AtomicBool::new(true));
    let told = silent.clone();
    let extensions = move || {
        let silent = told.load(Ordering::Relaxed).then(|| "wardle.example.com/v1".to_owned());
        Extensions { silent: silent.into_iter().collect(), ..Extensions::default() }
    };
    let clock = VirtualClock::new(jiff::Timestamp::now());
    let catalog = Catalog::new(Arc::new(api::catalog::Catalog::builtin())).extended(extensions);
    let cluster = start_with(Arc::new(clock.clone()), catalog).await;
    let team = Key::new("", "team");
    cluster.create(&kinds::NAMESPACES, "", json!({ "metadata": { "name": "team" } })).await;
    let map = json!({ "metadata": { "name": "map" } });
    cluster.create(&kinds::CONFIG_MAPS, "team", map).await;
    cluster.client.delete(&kinds::NAMESPACES.gvr(), &team, DeleteOptions::default()).await.unwrap();
    let failure = |held: &Value| condition(held, "NamespaceDeletionDiscoveryFailure")["status"] == "True";
    let waiting = cluster.until(kinds::NAMESPACES, &team, failure).await;
    let said = condition(&waiting, "NamespaceDeletionDiscoveryFailure");
    assert_eq!(said["reason"], "DiscoveryFailed");
    // All else goes meanwhile.
    cluster.until(kinds::CONFIG_MAPS, &Key::new("team", "map"), Value::is_null).await;
    silent.store(false, Ordering::Relaxed);
    let time_passes = async {
        loop {
            clock.go_on(Duration::from_secs(10)).await;
        }
    };
    tokio::select! {
        _ = cluster.until(kinds::NAMESPACES, &team, Value::is_null) => {}
        () = time_passes => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_go_before_after_or_without_their_dependents() {
    let cluster = start().await;
    cluster.create(&kinds::DEPLOYMENTS, "default", web(2, "web:1")).await;
    let key = Key::new("default", "web");
    cluster.until(kinds::DEPLOYMENTS, &key, |held| is_complete(held, 2)).await;
    let delete = |propagation| DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
    let deployments = kinds::DEPLOYMENTS.gvr();

    cluster.client.delete(&deployments, &key, delete(Propagation::Orphan)).await.unwrap();
    cluster.until(kinds::DEPLOYMENTS, &key, Value::is_null).await;
    let sets = cluster.until_all(kinds::REPLICA_SETS, "default", |sets| {
        sets.len() == 1 && sets[0].meta().owner_references.is_empty()
    });
    let set = sets.await[0].key();
    assert_eq!(cluster.informers.get(kinds::PODS).in_namespace("default").len(), 2);

    // A Deployment made anew adopts the set; deleted in the foreground, it is the last to go.
    let again = cluster.create(&kinds::DEPLOYMENTS, "default", web(2, "web:1")).await;
    cluster
        .until(kinds::REPLICA_SETS, &set, |held| {
            held["metadata"]["ownerReferences"][0]["uid"] == again.meta().uid
        })
        .await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let watch = |kind: reconcile::Kind| {
        let order = order.clone();
        cluster.informers.get(kind).on_change(move |change| {
            if change.new.is_none() {
                order.lock().push(kind.kind);
            }
        })
    };
    let _watching = [watch(kinds::PODS), watch(kinds::REPLICA_SETS), watch(kinds::DEPLOYMENTS)];
    cluster.client.delete(&deployments, &key, delete(Propagation::Foreground)).await.unwrap();
    cluster.until(kinds::DEPLOYMENTS, &key, Value::is_null).await;
    assert_eq!(*order.lock(), ["Pod", "Pod", "ReplicaSet", "Deployment"]);

    // In the background it is the first.
    cluster.create(&kinds::DEPLOYMENTS, "default", web(2, "web:1")).await;
    cluster.until(kinds::DEPLOYMENTS, &key, |held| is_complete(held, 2)).await;
    order.lock().clear();
    cluster.client.delete(&deployments, &key, delete(Propagation::Background)).await.unwrap();
    cluster.until_all(kinds::REPLICA_SETS, "default", <[_]>::is_empty).await;
    cluster.until_all(kinds::PODS, "default", <[_]>::is_empty).await;
    assert_eq!(order.lock().first(), Some(&"Deployment"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_owners_does_not_keep_itself_alive() {
    let cluster = start().await;
    let names = ["a", "b", "c"];
    let mut uids = Vec::new();
    for name in names {
        let map = json!({ "metadata": { "name": name } });
        uids.push(cluster.create(&kinds::CONFIG_MAPS, "default", map).await.meta().uid.clone());
    }
    let maps = kinds::CONFIG_MAPS.gvr();
    for (index, name) in names.into_iter().enumerate() {
        let owner = (index + 1) % 3;
        let (uid, owner) = (&uids[owner], names[owner]);
        let owners = json!({ "metadata": { "ownerReferences": [{
            "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        }] } });
        cluster.client.patch(&maps, &Key::new("default", name), "", PatchType::Merge, &owners).await.unwrap();
    }
    let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
    cluster.client.delete(&maps, &Key::new("default", "a"), foreground).await.unwrap();
    for name in names {
        cluster.until(kinds::CONFIG_MAPS, &Key::new("default", name), Value::is_null).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_in_another_namespace_is_none_and_told_of() {
    let cluster = start().await;
    cluster.create(&kinds::NAMESPACES, "", json!({ "metadata": { "name": "far" } })).await;
    let owner = cluster.create(&kinds::CONFIG_MAPS, "far", json!({ "metadata": { "name": "o" } })).await;
    let owners = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": owner.meta().uid }]);
    let owned = |name: &str| json!({ "metadata": { "name": name, "ownerReferences": owners } });
    cluster.create(&kinds::CLUSTER_ROLES, "", owned("nowhere")).await;
    cluster.create(&kinds::CONFIG_MAPS, "default", owned("here")).await;
    cluster.until(kinds::CONFIG_MAPS, &Key::new("default", "here"), Value::is_null).await;
    for (name, namespace) in [("here", "default"), ("nowhere", "")] {
        let message = format!(
            "ownerRef [v1/ConfigMap, namespace: {namespace}, name: o, uid: {}] does not exist in namespace \"{namespace}\"",
            owner.meta().uid
        );
        told(&cluster, name, "OwnerRefInvalidNamespace", &message).await;
    }
    // What is in no namespace stays, and is told of no more often than it changes.
    let nowhere = cluster.client.get(&kinds::CLUSTER_ROLES.gvr(), &Key::new("", "nowhere")).await.unwrap();
    assert!(!nowhere.meta().is_terminating());
}

/// How far one step of [`hurry`] goes: the longest of the controllers' short waits. What is set for later than that is
/// waited for by [`pass`].
const STEP_MAX: Duration = Duration::from_secs(65);

/// Lets the controllers' time pass from timer to timer while `work` goes on.
async fn hurry<T>(clock: &VirtualClock, work: impl Future<Output = T>) -> T {
    in_steps(clock, STEP_MAX, work).await
}

/// The same with steps that are no longer than `step`: longer timers do not run off, but as far as shorter ones bring them
/// nearer.
async fn in_steps<T>(clock: &VirtualClock, step: Duration, work: impl Future<Output = T>) -> T {
    let passing = async {
        loop {
            clock.go_on(step).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { biased; done = work => done, () = passing => unreachable!() }
}

/// Waits until a timer of the controllers is set for a moment that is about as far away, and lets it run off.
async fn pass(clock: &VirtualClock, about: Duration) {
    let tolerance = Duration::from_secs(3);
    clock.go_to_deadline(about.saturating_sub(tolerance), about + tolerance).await;
}

fn taints(node: &Value) -> Vec<String> {
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let text = |taint: &Value| format!("{}:{}", taint["key"], taint["effect"]).replace('"', "");
    taints.iter().map(text).collect()
}

/// Waits for an event about an object.
async fn told(cluster: &Cluster, name: &str, reason: &str, message: &str) {
    let says = |event: &Arc<Object>| {
        let event: Value = event.decode().unwrap();
        event["involvedObject"]["name"] == name && event["reason"] == reason && event["message"] == message
    };
    cluster.until_all(kinds::EVENTS, "default", |events| events.iter().any(says)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_pods_and_a_removed_one_leaves_none() {
    let (clock, cluster) = start_virtual().await;
    let (node, nodes) = (Key::new("", "n1"), kinds::NODES.gvr());
    let pod = |name: &str, seconds: Option<u32>, on: Option<&str>| {
        let toleration = seconds.map(|seconds| {
            json!([{ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds }])
        });
        json!({
            "metadata": { "name": name },
            "spec": { "nodeName": on, "tolerations": toleration, "containers": [{ "name": "a", "image": "a:1" }] },
        })
    };
    cluster.create(&kinds::PODS, "default", pod("brief", Some(10), None)).await;
    let brief = Key::new("default", "brief");
    cluster.until(kinds::PODS, &brief, |held| held["status"]["phase"] == "Running").await;

    // Where no node answers, nobody knows who is cut off: its pods stay.
    let unreachable =
        ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
    let lost = cluster.until(kinds::NODES, &node, |held| taints(held) == unreachable[..1]);
    let lost = hurry(&clock, lost).await;
    assert_eq!(condition(&lost, "Ready")["reason"], "NodeStatusUnknown");
    cluster.until(kinds::PODS, &brief, |held| condition(held, "Ready")["status"] == "False").await;
    told(&cluster, "n1", "RegisteredNode", "Node n1 event: Registered Node n1 in Controller").await;
    told(&cluster, "n1", "NodeNotReady", "Node n1 status is now: NodeNotReady").await;

    let other = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    cluster.create(&kinds::NODES, "", json!({ "metadata": { "name": "n2" } })).await;
    cluster.client.patch(&nodes, &Key::new("", "n2"), "status", PatchType::Merge, &other).await.unwrap();
    // The other one is heard of long enough.
    let step = Duration::from_secs(11);
    in_steps(&clock, step, cluster.until(kinds::NODES, &node, |held| taints(held) == unreachable)).await;
    in_steps(&clock, step, cluster.until(kinds::PODS, &brief, Value::is_null)).await;

    told(&cluster, "brief", "TaintManagerEviction", "Marking for deletion Pod default/brief").await;

    // Of a pod whose node does not exist nobody reports any more.
    cluster.client.delete(&nodes, &node, DeleteOptions::default()).await.unwrap();
    cluster.create(&kinds::PODS, "default", pod("stray", None, Some("n1"))).await;
    hurry(&clock, cluster.until(kinds::PODS, &Key::new("default", "stray"), Value::is_null)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_made_by_hand_become_slices() {
    let cluster = start().await;
    let service = json!({ "metadata": { "name": "db" }, "spec": { "ports": [{ "port": 5432 }] } });
    cluster.create(&kinds::SERVICES, "default", service).await;
    let endpoints = json!({
        "metadata": { "name": "db" },
        "subsets": [{ "addresses": [{ "ip": "192.0.2.7" }], "ports": [{ "port": 5432 }] }],
    });
    cluster.create(&kinds::ENDPOINTS, "default", endpoints).await;
    let slices = async |count: usize| {
        let of_service = |slice: &&Arc<Object>| {
            slice.meta().labels.get("kubernetes.io/service-name").is_some_and(|name| name == "db")
        };
        cluster
            .until_all(kinds::ENDPOINT_SLICES, "default", |slices| {
                slices.iter().filter(of_service).count() == count
            })
            .await
            .into_iter()
            .find(|slice| of_service(&slice))
    };
    let slice: Value = slices(1).await.unwrap().decode().unwrap();
    assert_eq!(
        (&slice["endpoints"][0]["addresses"][0], &slice["ports"][0]["port"]),
        (&json!("192.0.2.7"), &json!(5432))
    );
    let db = Key::new("default", "db");
    cluster
        .merge(
            &kinds::ENDPOINTS,
            &db,
            json!({ "metadata": { "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } } }),
        )
        .await;
    slices(0).await;
}

#[tokio::test]
async fn the_roles_of_users_gather_those_that_are_meant_for_them() {
    let cluster = start().await;
    let own = json!({ "apiGroups": ["example.com"], "resources": ["boats"], "verbs": ["get"] });
    let labels = json!({ "rbac.authorization.k8s.io/aggregate-to-view": "true" });
    let role = json!({ "metadata": { "name": "boats", "labels": labels }, "rules": [own] });
    cluster.create(&kinds::CLUSTER_ROLES, "", role).await;
    let holds = |role: &Value| role["rules"].as_array().is_some_and(|rules| rules.contains(&own));
    // A view is part of what editors may do, and that of what administrators of a namespace may.
    for name in ["view", "edit", "admin"] {
        cluster.until(kinds::CLUSTER_ROLES, &Key::new("", name), holds).await;
    }
    let boats = Key::new("", "boats");
    cluster.client.delete(&kinds::CLUSTER_ROLES.gvr(), &boats, DeleteOptions::default()).await.unwrap();
    for name in ["view", "edit", "admin"] {
        cluster.until(kinds::CLUSTER_ROLES, &Key::new("", name), |role| !holds(role)).await;
    }
}
