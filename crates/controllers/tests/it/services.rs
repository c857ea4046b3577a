//! Cluster addresses of Services and the ranges that they come from.

use std::sync::Arc;

use api::{DeleteOptions, Key};
use base::clock::Clock as _;
use reconcile::kinds;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{condition, hurry, pass, start, start_virtual};

async fn service(cluster: &Cluster, name: &str) -> (Key, Key) {
    let body = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
    let made: Value = cluster.create(&kinds::SERVICES, "default", body).await.decode().unwrap();
    (Key::new("default", name), Key::new("", made["spec"]["clusterIP"].as_str().unwrap()))
}

async fn delete(cluster: &Cluster, kind: reconcile::Kind, key: &Key) {
    cluster.client.delete(&kind.gvr(), key, DeleteOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_taken_again_when_its_object_is_deleted() {
    let cluster = start().await;
    let (_, address) = service(&cluster, "web").await;
    let before = cluster.until(kinds::IP_ADDRESSES, &address, |held| !held.is_null()).await;
    delete(&cluster, kinds::IP_ADDRESSES, &address).await;
    let uid = before["metadata"]["uid"].clone();
    let back = |held: &Value| !held.is_null() && held["metadata"]["uid"] != uid;
    let after = cluster.until(kinds::IP_ADDRESSES, &address, back).await;
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"]);
    let told = |event: &Arc<api::Object>| {
        event.decode::<Value>().is_ok_and(|event| event["reason"] == "ClusterIPNotAllocated")
    };
    cluster.until_all(kinds::EVENTS, "default", |events| events.iter().any(told)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_goes_with_its_service_and_without_one() {
    let (clock, cluster) = start_virtual().await;
    let (web, address) = service(&cluster, "web").await;
    cluster.until(kinds::IP_ADDRESSES, &address, |held| !held.is_null()).await;
    delete(&cluster, kinds::SERVICES, &web).await;
    cluster.until(kinds::IP_ADDRESSES, &address, Value::is_null).await;

    let leaked = |name: &str, by: &str| {
        json!({
            "metadata": { "name": name, "labels": { "ipaddress.kubernetes.io/managed-by": by } },
            "spec": { "parentRef": { "resource": "services", "namespace": "default", "name": "gone" } },
        })
    };
    cluster.create(&kinds::IP_ADDRESSES, "", leaked("10.96.9.8", "somebody")).await;
    cluster.create(&kinds::IP_ADDRESSES, "", leaked("10.96.9.9", "ipallocator.k8s.io")).await;
    let gone = Key::new("", "10.96.9.9");
    hurry(&clock, cluster.until(kinds::IP_ADDRESSES, &gone, Value::is_null)).await;
    // Whoever manages an address themselves keeps it.
    let theirs = cluster.client.get(&kinds::IP_ADDRESSES.gvr(), &Key::new("", "10.96.9.8")).await;
    assert!(theirs.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_say_who_should_use_which_endpoint_and_since_when() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let near = json!({ "metadata": { "name": "near" }, "spec": { "selector": { "app": "near" },
        "ports": [{ "port": 80 }], "trafficDistribution": "PreferSameNode" } });
    cluster.create(&kinds::SERVICES, "default", near).await;
    let pod = json!({ "metadata": { "name": "p", "labels": { "app": "near" } },
        "spec": { "containers": [{ "name": "c", "image": "a" }] } });
    cluster.create(&kinds::PODS, "default", pod).await;
    let slice_with = async |hints: Value| {
        let wanted = |slice: &&Arc<api::Object>| {
            slice.decode::<Value>().is_ok_and(|slice| slice["endpoints"][0]["hints"] == hints)
        };
        let all = cluster
            .until_all(kinds::ENDPOINT_SLICES, "default", |slices| slices.iter().any(|slice| wanted(&slice)));
        all.await.iter().find(wanted).unwrap().decode::<Value>().unwrap()
    };
    let slice = slice_with(json!({ "forNodes": [{ "name": "n1" }] })).await;
    let since = "endpoints.kubernetes.io/last-change-trigger-time";
    assert!(slice["metadata"]["annotations"][since].is_string(), "{slice:#}");
    // The node comes into a zone.
    let zone = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "a" } } });
    cluster.merge(&kinds::NODES, &Key::new("", "n1"), zone).await;
    slice_with(json!({ "forNodes": [{ "name": "n1" }], "forZones": [{ "name": "a" }] })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_cidr_is_ready_and_stays_while_it_is_needed() {
    let (clock, cluster) = start_virtual().await;
    let (own, part) = (Key::new("", "kubernetes"), Key::new("", "part"));
    let finalizer = json!(["networking.k8s.io/service-cidr-finalizer"]);
    let welcomed = |held: &Value| {
        condition(held, "Ready")["status"] == "True" && held["metadata"]["finalizers"] == finalizer
    };
    cluster.until(kinds::SERVICE_CIDRS, &own, welcomed).await;
    // A part of the cluster's range is covered by the whole: it may go, after its grace.
    let body = json!({ "metadata": { "name": "part" }, "spec": { "cidrs": ["10.96.0.0/24"] } });
    cluster.create(&kinds::SERVICE_CIDRS, "", body).await;
    cluster.until(kinds::SERVICE_CIDRS, &part, welcomed).await;
    delete(&cluster, kinds::SERVICE_CIDRS, &part).await;
    hurry(&clock, cluster.until(kinds::SERVICE_CIDRS, &part, Value::is_null)).await;
    // The whole holds the address of the API server itself.
    delete(&cluster, kinds::SERVICE_CIDRS, &own).await;
    let held = cluster
        .until(kinds::SERVICE_CIDRS, &own, |held| condition(held, "Ready")["reason"] == "Terminating")
        .await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let refused = json!({ "metadata": { "name": "late" }, "spec": { "ports": [{ "port": 80 }] } });
    let refused = cluster.client.create(&kinds::SERVICES.gvr(), "default", &refused).await.unwrap_err();
    assert!(refused.message.contains("no ServiceCIDR for IPv4 is Ready"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_authority_reaches_every_namespace() {
    let cluster = start().await;
    cluster.create(&kinds::NAMESPACES, "", json!({ "metadata": { "name": "more" } })).await;
    let published = |namespace: &str| Key::new(namespace, "kube-root-ca.crt");
    let holds = |pem: &'static str| move |held: &Value| held["data"]["ca.crt"] == pem;
    for namespace in ["default", "kube-system", "more"] {
        cluster.until(kinds::CONFIG_MAPS, &published(namespace), |held| !held.is_null()).await;
    }
    cluster.root_ca_pem.send_replace("renewed".into());
    for namespace in ["default", "kube-system", "more"] {
        cluster.until(kinds::CONFIG_MAPS, &published(namespace), holds("renewed")).await;
    }

    // Whoever deletes or alters it has it back.
    let key = published("more");
    let deleted = cluster.until(kinds::CONFIG_MAPS, &key, holds("renewed")).await;
    delete(&cluster, kinds::CONFIG_MAPS, &key).await;
    let is_new = |held: &Value| held["metadata"]["uid"] != deleted["metadata"]["uid"];
    let made = cluster.until(kinds::CONFIG_MAPS, &key, |held| holds("renewed")(held) && is_new(held)).await;
    let altered = json!({ "data": { "ca.crt": "altered", "added": "too" } });
    let altered = cluster.merge(&kinds::CONFIG_MAPS, &key, altered).await;
    let before = [&made["metadata"]["resourceVersion"], &json!(altered.meta().resource_version)];
    let restored = |held: &Value| {
        held["data"] == made["data"] && !before.contains(&&held["metadata"]["resourceVersion"])
    };
    cluster.until(kinds::CONFIG_MAPS, &key, restored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_beside_the_server_carries_its_role() {
    let cluster = start().await;
    cluster.create(&kinds::NODES, "", json!({ "metadata": { "name": "n2" } })).await;
    let role = |held: &Value| held["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] == "";
    let own = Key::new("", "n1");
    cluster.until(kinds::NODES, &own, role).await;
    let without = json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": null } } });
    cluster.merge(&kinds::NODES, &own, without).await;
    cluster.until(kinds::NODES, &own, role).await;
    let other = cluster.until(kinds::NODES, &Key::new("", "n2"), |held| !held.is_null()).await;
    assert!(!role(&other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_goes_when_it_has_ended() {
    let (clock, cluster) = start_virtual().await;
    let until = clock.now() + std::time::Duration::from_secs(3600);
    let token = |name: &str, kind: &str| {
        json!({
            "metadata": { "name": name }, "type": kind,
            "stringData": { "token-id": "abcdef", "token-secret": "0123456789abcdef", "expiration": format!("{until:.0}") },
        })
    };
    cluster.create(&kinds::SECRETS, "kube-system", token("other", "Opaque")).await;
    let body = token("bootstrap-token-abcdef", "bootstrap.kubernetes.io/token");
    cluster.create(&kinds::SECRETS, "kube-system", body).await;
    let key = Key::new("kube-system", "bootstrap-token-abcdef");
    cluster.until(kinds::SECRETS, &key, |held| !held.is_null()).await;
    pass(&clock, std::time::Duration::from_secs(3600)).await;
    cluster.until(kinds::SECRETS, &key, Value::is_null).await;
    assert!(clock.now() >= until, "it was taken away before its end");
    let other = Key::new("kube-system", "other");
    assert!(cluster.client.get(&kinds::SECRETS.gvr(), &other).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_garbage_collector_reaches_every_served_kind() {
    let cluster = start().await;
    let owner = json!({ "metadata": { "name": "owner" } });
    let owner = cluster.create(&kinds::NAMESPACES, "", owner).await;
    let classes = api::GroupVersionResource::new("networking.k8s.io", "v1", "ingressclasses");
    let body = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": { "name": "owned", "ownerReferences": [{
            "apiVersion": "v1", "kind": "Namespace", "name": "owner", "uid": owner.meta().uid,
        }] },
        "spec": { "controller": "example.com/c" },
    });
    cluster.client.create(&classes, "", &body).await.unwrap();
    let informer = cluster.informers.get(classes);
    let mut changes = informer.subscribe();
    let key = Key::new("", "owned");
    while informer.get(&key).is_none() {
        changes.changed().await;
    }
    delete(&cluster, kinds::NAMESPACES, &Key::new("", "owner")).await;
    let collected = async {
        while informer.get(&key).is_some() {
            changes.changed().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(120), collected).await.unwrap();
}
