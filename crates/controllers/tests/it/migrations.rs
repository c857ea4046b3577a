//! Objects are written anew as their resource is stored now.

use std::sync::Arc;

use api::{GroupVersionResource, Key, PatchType};
use controllers::Ctx;
use controllers::storage_migration::StorageMigrations;
use reconcile::kinds::{self, CUSTOM_RESOURCE_DEFINITIONS, Catalog, STORAGE_VERSION_MIGRATIONS};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::condition;
use crate::loops::at_rest;

const QUEUE: &str = "storage-version-migrator-controller";

/// A server and nobody but the migrator, with what it takes for served.
async fn start() -> (Cluster, Catalog) {
    let catalog = Catalog::new(Arc::new(api::catalog::Catalog::builtin()));
    let known = catalog.clone();
    let cluster = Cluster::start(|cluster| {
        let (client, informers) = (cluster.component("controllers"), cluster.informers.clone());
        let ctx = Ctx {
            client,
            informers,
            clock: cluster.clock.clone(),
            catalog: known,
            queues: cluster.queues.clone(),
            figures: None,
            root_ca_pem: cluster.root_ca_pem.subscribe(),
        };
        vec![Arc::new(StorageMigrations::new(&ctx))]
    })
    .await;
    (cluster, catalog)
}

async fn migrate(cluster: &Cluster, name: &str, group: &str, resource: &str) -> Key {
    let body = json!({ "metadata": { "name": name },
        "spec": { "resource": { "group": group, "resource": resource } } });
    cluster.create(&STORAGE_VERSION_MIGRATIONS, "", body).await;
    Key::new("", name)
}

fn has_ended(migration: &Value) -> bool {
    let ended = |kind: &str| condition(migration, kind)["status"] == "True";
    (ended("Succeeded") || ended("Failed")) && condition(migration, "Running").is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_of_a_resource_run_one_by_one_and_end() {
    let (cluster, _) = start().await;
    for index in 0..60 {
        let map = json!({ "metadata": { "name": format!("m{index}") } });
        cluster.create(&kinds::CONFIG_MAPS, "default", map).await;
    }
    let first = migrate(&cluster, "first", "", "configmaps").await;
    let second = migrate(&cluster, "second", "", "configmaps").await;
    let unfit = migrate(&cluster, "unfit", "", "bindings").await;
    for key in [first, second] {
        let held = cluster.until(STORAGE_VERSION_MIGRATIONS, &key, has_ended).await;
        assert_eq!(condition(&held, "Succeeded")["reason"], "StorageVersionMigrationSucceeded", "{held:#}");
        assert!(held["status"]["resourceVersion"].as_str().unwrap().parse::<i64>().unwrap() > 0);
    }
    let failed = |held: &Value| condition(held, "Failed")["status"] == "True";
    let held = cluster.until(STORAGE_VERSION_MIGRATIONS, &unfit, failed).await;
    let told = (&condition(&held, "Failed")["reason"], &condition(&held, "Failed")["message"]);
    assert_eq!(
        told,
        (&json!("StorageVersionMigrationFailed"), &json!("resource does not exist in discovery"))
    );
    let worked = at_rest(&cluster, &[QUEUE]).await;
    assert!(worked <= 24, "{worked}");
}

fn definition(stored: &str) -> Value {
    let version = |name: &str| {
        json!({ "name": name, "served": true, "storage": name == stored, "schema": { "openAPIV3Schema": {
            "type": "object", "properties": { "spec": { "type": "object",
                "x-kubernetes-preserve-unknown-fields": true } } } } })
    };
    json!({ "metadata": { "name": "boats.example.com" }, "spec": { "group": "example.com", "scope": "Namespaced",
        "names": { "plural": "boats", "kind": "Boat" }, "versions": [version("v1"), version("v2")] } })
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_are_stored_in_one_version_afterwards() {
    let (cluster, catalog) = start().await;
    let (definitions, key) = (CUSTOM_RESOURCE_DEFINITIONS, Key::new("", "boats.example.com"));
    cluster.create(&definitions, "", definition("v1")).await;
    let established = |held: &Value| condition(held, "Established")["status"] == "True";
    cluster.until(definitions, &key, established).await;
    let boats = GroupVersionResource::new("example.com", "v1", "boats");
    let boat = json!({ "apiVersion": "example.com/v1", "kind": "Boat", "metadata": { "name": "b" } });
    let before = cluster.client.create(&boats, "default", &boat).await.unwrap();
    let versions = json!({ "spec": { "versions": definition("v2")["spec"]["versions"] } });
    let merge = PatchType::Merge;
    cluster.client.patch(&definitions.gvr(), &key, "", merge, &versions).await.unwrap();
    let both = |held: &Value| held["status"]["storedVersions"] == json!(["v1", "v2"]);
    cluster.until(definitions, &key, both).await;
    // Nobody has told the migrator of boats: it waits for them.
    let migration = migrate(&cluster, "boats", "example.com", "boats").await;
    let begun = |held: &Value| condition(held, "Running")["status"] == "True";
    cluster.until(STORAGE_VERSION_MIGRATIONS, &migration, begun).await;
    at_rest(&cluster, &[QUEUE]).await;
    let waits = cluster.client.get(&STORAGE_VERSION_MIGRATIONS.gvr(), &migration).await.unwrap();
    let waits: Value = waits.decode().unwrap();
    assert!(begun(&waits) && condition(&waits, "Failed").is_null(), "{waits:#}");
    catalog.set(cluster.rows());
    let held = cluster.until(STORAGE_VERSION_MIGRATIONS, &migration, has_ended).await;
    assert_eq!(condition(&held, "Succeeded")["status"], "True", "{held:#}");
    let held =
        cluster.until(definitions, &key, |held| held["status"]["storedVersions"] == json!(["v2"])).await;
    let told = condition(&held, "StorageMigrating");
    assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("MigrationSucceeded")));
    assert!(established(&held), "what others said stays: {held:#}");
    let after = cluster.client.get(&boats, &Key::new("default", "b")).await.unwrap();
    assert!(after.revision() > before.revision(), "it was not written");
    let worked = at_rest(&cluster, &[QUEUE]).await;
    assert!(worked <= 16, "{worked}");
}
