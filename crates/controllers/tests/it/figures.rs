//! Controllers count what they do, for whoever shows it.

use std::sync::Arc;

use api::{Key, PatchType};
use base::clock::SystemClock;
use controllers::Ctx;
use controllers::figures::Figures;
use prometheus::{Registry, TextEncoder};
use reconcile::kinds::{self, Catalog};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::loops::at_rest;
use crate::play;

async fn start() -> (Cluster, Registry) {
    let registry = Registry::new();
    let figures = Arc::new(Figures::new(&registry).unwrap());
    let cluster = Cluster::start(|cluster| {
        controllers::all(&Ctx {
            client: cluster.client.clone(),
            informers: cluster.informers.clone(),
            clock: Arc::new(SystemClock),
            catalog: Catalog::new(Arc::new(api::catalog::Catalog::builtin())),
            queues: cluster.queues.clone(),
            figures: Some(figures),
            root_ca_pem: cluster.root_ca_pem.subscribe(),
        })
    })
    .await;
    play(&cluster).await;
    cluster.takes_pods("default").await;
    (cluster, registry)
}

/// What is shown under a name with its labels.
fn shown(registry: &Registry, name: &str) -> Option<f64> {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let values: Vec<f64> =
        text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).collect();
    values.first().copied()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    let (cluster, registry) = start().await;
    let service = json!({ "metadata": { "name": "db" }, "spec": { "ports": [{ "port": 5432 }] } });
    cluster.create(&kinds::SERVICES, "default", service).await;
    let subsets = json!([{ "addresses": [{ "ip": "192.0.2.7" }], "ports": [{ "port": 5432 }] }]);
    let endpoints = json!({ "metadata": { "name": "db" }, "subsets": subsets });
    cluster.create(&kinds::ENDPOINTS, "default", endpoints).await;

    let storage = json!({ "storage": "1Gi" });
    let volume = json!({ "metadata": { "name": "pv" }, "spec": { "capacity": storage, "storageClassName": "manual",
        "accessModes": ["ReadWriteOnce"], "csi": { "driver": "d.example.com", "volumeHandle": "v" } } });
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", volume).await;
    let claim = json!({ "metadata": { "name": "d" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "storageClassName": "manual", "volumeName": "pv", "resources": { "requests": storage } } });
    cluster.create(&kinds::PERSISTENT_VOLUME_CLAIMS, "default", claim).await;
    let bound = |held: &Value| held["status"]["phase"] == "Bound";
    cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, &Key::new("default", "d"), bound).await;
    cluster.until(kinds::PERSISTENT_VOLUMES, &Key::new("", "pv"), bound).await;

    let containers = json!([{ "name": "c", "image": "a" }]);
    let job = json!({ "metadata": { "name": "theirs" }, "spec": { "managedBy": "example.com/queue",
        "template": { "spec": { "restartPolicy": "Never", "containers": containers } } } });
    cluster.create(&kinds::JOBS, "default", job).await;
    let job = json!({ "metadata": { "name": "ours" }, "spec": { "parallelism": 2,
        "template": { "spec": { "restartPolicy": "Never", "containers": containers,
            "tolerations": [{ "operator": "Exists" }] } } } });
    cluster.create(&kinds::JOBS, "default", job).await;
    let active = |held: &Value| held["status"]["active"] == 2;
    cluster.until(kinds::JOBS, &Key::new("default", "ours"), active).await;

    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n1", "containers": containers,
        "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "d" } }] } });
    cluster.create(&kinds::PODS, "default", pod).await;
    let queues = [
        "endpoint_slice_mirroring",
        "job",
        "pvcs",
        "claims",
        "volumes",
        "pvcprotection",
        "root_ca_cert_publisher",
        "ca_cert_publisher_cluster_trust_bundles",
    ];
    at_rest(&cluster, &queues).await;
    for (name, at_least) in [
        ("endpoint_slice_mirroring_controller_endpoints_desired", 1.0),
        ("endpoint_slice_mirroring_controller_changes{operation=\"create\"}", 1.0),
        ("endpoint_slice_mirroring_controller_endpoints_sync_duration_count", 1.0),
        ("pv_collector_bound_pv_count{storage_class=\"manual\"}", 1.0),
        (
            "pv_collector_total_pv_count{plugin_name=\"kubernetes.io/csi:d.example.com\",volume_mode=\"Filesystem\"}",
            1.0,
        ),
        (
            "pv_collector_bound_pvc_count{namespace=\"default\",storage_class=\"manual\",volume_attributes_class=\"\"}",
            1.0,
        ),
        (
            "attachdetach_controller_total_volumes{plugin_name=\"kubernetes.io/csi:d.example.com\",\
             state=\"desired_state_of_world\"}",
            1.0,
        ),
        (
            "storage_count_attachable_volumes_in_use{node=\"n1\",volume_plugin=\"kubernetes.io/csi:d.example.com\"}",
            1.0,
        ),
        ("job_controller_jobs_by_external_controller_total{controller_name=\"example.com/queue\"}", 1.0),
        ("job_controller_job_pods_creation_total{reason=\"new\",status=\"succeeded\"}", 2.0),
        ("pvc_protection_controller_unused_condition_syncs_total{result=\"success\"}", 1.0),
        ("root_ca_cert_publisher_sync_total{code=\"200\"}", 1.0),
        ("clustertrustbundle_publisher_sync_total{code=\"200\"}", 1.0),
        ("garbagecollector_controller_resources_sync_error_total", 0.0),
        ("node_collector_zone_size{zone=\"\"}", 1.0),
        ("node_collector_zone_health{zone=\"\"}", 100.0),
        ("node_collector_unhealthy_nodes_in_zone{zone=\"\"}", 0.0),
    ] {
        let held = shown(&registry, name);
        assert!(held.is_some_and(|held| held >= at_least), "{name} is {held:?}");
    }

    let taints = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] } });
    let (nodes, node) = (kinds::NODES.gvr(), Key::new("", "n1"));
    cluster.client.patch(&nodes, &node, "", PatchType::Merge, &taints).await.unwrap();
    cluster.until(kinds::PODS, &Key::new("default", "p"), Value::is_null).await;
    at_rest(&cluster, &["noexec_taint_pod"]).await;
    let gone = shown(&registry, "taint_eviction_controller_pod_deletions_total");
    assert!(gone.is_some_and(|gone| gone >= 1.0), "{gone:?}");
}
