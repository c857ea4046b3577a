//! Addresses and node ports: claimed with the Service, given back with it.

use api::{Call, DeleteOptions, ListOptions, PatchType, Response};
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    service
}

async fn addresses(cluster: &Cluster) -> Vec<String> {
    let call = Call::List(ListOptions::default());
    let resource = resource("networking.k8s.io", "v1", "ipaddresses");
    let Ok(Response::List(list)) = cluster.call(&resource, "", "", "", call).await else { panic!("no list") };
    list.items.iter().map(|item| item.meta().name.clone()).collect()
}

#[tokio::test]
async fn an_address_belongs_to_one_service_at_a_time() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let made = cluster.create(&services, "default", service("a", json!({}))).await.unwrap();
    let address = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(addresses(&cluster).await.contains(&address));
    let taken = json!({ "clusterIP": address });
    let refused = cluster.create(&services, "default", service("b", taken.clone())).await.unwrap_err();
    assert!(refused.message.contains("already allocated"), "{}", refused.message);
    let outside = service("b", json!({ "clusterIP": "192.0.2.1" }));
    let refused = cluster.create(&services, "default", outside).await.unwrap_err();
    assert!(refused.message.contains("not in the valid range"), "{}", refused.message);
    cluster.delete(&services, "default", "a", DeleteOptions::default()).await.unwrap();
    assert!(!addresses(&cluster).await.contains(&address));
    cluster.create(&services, "default", service("b", taken)).await.unwrap();
}

#[tokio::test]
async fn node_ports_run_out_and_come_back() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let exposed = || json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30001 }] });
    cluster.create(&services, "default", service("a", exposed())).await.unwrap();
    let refused = cluster.create(&services, "default", service("b", exposed())).await.unwrap_err();
    assert!(refused.message.contains("already allocated"), "{}", refused.message);
    let patch = json!({ "spec": { "type": "ClusterIP" } });
    let plain =
        cluster.patch(&services, ("default", "a", ""), PatchType::Merge, patch, options()).await.unwrap();
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
    cluster.create(&services, "default", service("b", exposed())).await.unwrap();
}

#[tokio::test]
async fn an_update_that_leaves_the_address_out_keeps_it() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let made =
        cluster.create(&services, "default", service("a", json!({ "type": "NodePort" }))).await.unwrap();
    let bare = service("a", json!({ "type": "NodePort", "selector": { "x": "y" } }));
    let kept = cluster.update(&services, ("default", "a", ""), &bare).await.unwrap();
    assert_eq!(kept["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], made["spec"]["ports"][0]["nodePort"]);
    let headless = service("h", json!({ "clusterIP": "None" }));
    let headless = cluster.create(&services, "default", headless).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn the_api_servers_own_service_comes_back() {
    use futures::StreamExt;
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let before = cluster.get(&services, "default", "kubernetes").await.unwrap();
    let version = before["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let options = ListOptions {
        field_selector: "metadata.name=kubernetes".into(),
        resource_version: version,
        ..ListOptions::default()
    };
    let call = Call::Watch(options);
    let Ok(Response::Watch(mut stream)) = cluster.call(&services, "default", "", "", call).await else {
        panic!("no watch");
    };
    cluster.delete(&services, "default", "kubernetes", DeleteOptions::default()).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        kinds.extend(stream.next().await.unwrap().unwrap().into_iter().map(|event| event.kind));
    }
    assert_eq!(kinds, [api::WatchEventKind::Deleted, api::WatchEventKind::Added]);
    let after = cluster.get(&services, "default", "kubernetes").await.unwrap();
    assert_eq!(after["spec"]["clusterIP"], before["spec"]["clusterIP"]);
}
