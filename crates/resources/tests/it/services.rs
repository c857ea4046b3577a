//! Addresses and node ports: claimed with the Service, given back with it.

use api::{Call, DeleteOptions, GroupVersionResource, ListOptions, PatchType, Response};
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
async fn a_node_port_is_named_once_and_within_the_range() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let with = |second: Value| {
        let mut ports = json!([{ "name": "a", "port": 80, "nodePort": 30001 }, { "name": "b", "port": 81 }]);
        ports[1].as_object_mut().unwrap().extend(second.as_object().unwrap().clone());
        service("s", json!({ "type": "NodePort", "ports": ports }))
    };
    for (second, wrong) in [
        (json!({ "nodePort": 30001 }), "spec.ports[1].nodePort: Duplicate value: 30001"),
        (
            json!({ "nodePort": 70000 }),
            "spec.ports[1].nodePort: Invalid value: 70000: provided port is not in the",
        ),
        (json!({ "nodePort": -1 }), "spec.ports[1].nodePort: Invalid value: -1: provided port is not in the"),
    ] {
        let refused = cluster.create(&services, "default", with(second)).await.unwrap_err();
        assert!(refused.message.contains(wrong), "{}", refused.message);
    }
    let same = json!({ "nodePort": 30001, "protocol": "UDP" });
    cluster.create(&services, "default", with(same)).await.unwrap();
}

#[tokio::test]
async fn addresses_come_from_the_service_cidrs_that_are_ready() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let cidrs = resource("networking.k8s.io", "v1", "servicecidrs");
    let range = |name: &str, cidr: &str| json!({ "metadata": { "name": name }, "spec": { "cidrs": [cidr] } });
    let refused = cluster.create(&cidrs, "", range("far", "192.0.2.0/24")).await.unwrap_err();
    assert!(refused.message.contains("spec.cidrs[0]: Invalid value"), "{}", refused.message);
    assert!(refused.message.contains("10.96.0.0/24"), "{}", refused.message);

    cluster.create(&cidrs, "", range("few", "10.96.0.64/29")).await.unwrap();
    let ready = |status: &str| {
        json!({ "status": { "conditions": [{
        "type": "Ready", "status": status, "reason": "t", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z",
    }] } })
    };
    let set = |name: &'static str, status: &'static str| {
        let patch = ready(status);
        let (cluster, cidrs) = (&cluster, &cidrs);
        async move {
            cluster.patch(cidrs, ("", name, "status"), PatchType::Merge, patch, options()).await.unwrap();
            // A list of the newest state waits for the cache: what is decided after it sees the change.
            cluster.call(cidrs, "", "", "", Call::List(ListOptions::default())).await.map(drop).unwrap();
        }
    };
    set("kubernetes", "False").await;
    let mut taken = Vec::new();
    // Six addresses are usable in a /29.
    for number in 0..6 {
        let made =
            cluster.create(&services, "default", service(&format!("s{number}"), json!({}))).await.unwrap();
        taken.push(made["spec"]["clusterIP"].as_str().unwrap().to_owned());
    }
    taken.sort();
    let all: Vec<String> = (65..71).map(|host| format!("10.96.0.{host}")).collect();
    assert_eq!(taken, all);
    let refused = cluster.create(&services, "default", service("more", json!({}))).await.unwrap_err();
    assert!(refused.message.contains("10.96.0.64/29 is full"), "{}", refused.message);
    let outside = service("more", json!({ "clusterIP": "10.96.0.200" }));
    let refused = cluster.create(&services, "default", outside).await.unwrap_err();
    assert!(refused.message.contains("The range of valid IPs is 10.96.0.64/29"), "{}", refused.message);
    set("kubernetes", "True").await;
    cluster.create(&services, "default", service("more", json!({}))).await.unwrap();
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

/// Waits until an object of this name has gone and another has come.
async fn replaced(cluster: &Cluster, resource: &GroupVersionResource, namespace: &str, name: &str) -> Value {
    use futures::StreamExt;
    let before = cluster.get(resource, namespace, name).await.unwrap();
    let options = ListOptions {
        field_selector: format!("metadata.name={name}"),
        resource_version: before["metadata"]["resourceVersion"].as_str().unwrap().to_owned(),
        ..ListOptions::default()
    };
    let Ok(Response::Watch(mut stream)) =
        cluster.call(resource, namespace, "", "", Call::Watch(options)).await
    else {
        panic!("no watch");
    };
    cluster.delete(resource, namespace, name, DeleteOptions::default()).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        kinds.extend(stream.next().await.unwrap().unwrap().into_iter().map(|event| event.kind));
    }
    assert_eq!(kinds, [api::WatchEventKind::Deleted, api::WatchEventKind::Added], "{name}");
    let after = cluster.get(resource, namespace, name).await.unwrap();
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"], before["spec"]);
    after
}

#[tokio::test]
async fn what_everything_rests_on_comes_back() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let slices = resource("discovery.k8s.io", "v1", "endpointslices");
    // Each more than once: whoever brings them back goes on watching.
    for _ in 0..2 {
        replaced(&cluster, &services, "default", "kubernetes").await;
        replaced(&cluster, &services, "kube-system", "kube-dns").await;
        replaced(&cluster, &slices, "default", "kubernetes").await;
        replaced(&cluster, &resource("", "v1", "endpoints"), "default", "kubernetes").await;
    }
}

/// `kubectl delete services --all -A`: a collection in each namespace.
#[tokio::test]
async fn deleting_all_services_leaves_the_system_its_own() {
    use futures::StreamExt;
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    cluster.create(&services, "default", service("web", json!({}))).await.unwrap();
    for (namespace, name) in [("default", "kubernetes"), ("kube-system", "kube-dns")] {
        let before = cluster.get(&services, namespace, name).await.unwrap();
        let all = Call::DeleteCollection(DeleteOptions::default(), ListOptions::default());
        cluster.call(&services, namespace, "", "", all).await.unwrap();
        let here = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
        let Ok(Response::Watch(mut stream)) =
            cluster.call(&services, namespace, "", "", Call::Watch(here)).await
        else {
            panic!("no watch");
        };
        let back = loop {
            let batch = stream.next().await.unwrap().unwrap();
            let old = before["metadata"]["uid"].as_str().unwrap();
            let new = |event: &api::WatchEvent| {
                event.kind == api::WatchEventKind::Added && event.object.meta().uid != old
            };
            if let Some(event) = batch.into_iter().find(new) {
                break event.object.decode::<Value>().unwrap();
            }
        };
        assert_eq!(back["spec"]["clusterIP"], before["spec"]["clusterIP"]);
    }
    assert!(cluster.get(&services, "default", "web").await.is_err());
}

#[tokio::test]
async fn what_is_free_is_given_and_what_is_full_says_so() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let exposed = |name: usize| service(&format!("s{name}"), json!({ "type": "NodePort" }));
    // Eleven ports, all but two of them taken at the same time: writers meet, and each gets one.
    let all = (0..9).map(|name| cluster.create(&services, "default", exposed(name)));
    let mut ports = std::collections::BTreeSet::new();
    for made in futures::future::join_all(all).await {
        ports.insert(made.unwrap()["spec"]["ports"][0]["nodePort"].as_u64().unwrap());
    }
    let free: Vec<u64> = (30_000..=30_010).filter(|port| !ports.contains(port)).collect();
    assert_eq!(free.len(), 2);
    // A free port and a free address that are named are not to blame for the chosen port, which is hard to find.
    let both = json!({ "type": "NodePort", "clusterIP": "10.96.0.5", "ports": [
        { "name": "a", "port": 80, "nodePort": free[0] }, { "name": "b", "port": 81 },
    ] });
    let made = cluster.create(&services, "default", service("both", both)).await.unwrap();
    assert_eq!(made["spec"]["ports"][1]["nodePort"], free[1]);
    let full = cluster.create(&services, "default", exposed(99)).await.unwrap_err();
    assert!(full.message.contains("range 30000-30010 is full"), "{}", full.message);
    let named = json!({ "type": "NodePort", "ports": [
        { "name": "a", "port": 80 }, { "name": "b", "port": 81, "nodePort": free[0] },
    ] });
    let patched = json!({ "spec": { "type": "ClusterIP" } });
    cluster.patch(&services, ("default", "s0", ""), PatchType::Merge, patched, options()).await.unwrap();
    let taken = cluster.create(&services, "default", service("named", named)).await.unwrap_err();
    assert_eq!(taken.details.causes[0].field, "spec.ports[1].nodePort");
    assert!(taken.message.contains("already allocated"), "{}", taken.message);
}

#[tokio::test]
async fn a_full_range_of_addresses_is_used_to_its_end_and_says_so() {
    use futures::StreamExt;
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let before = addresses(&cluster).await.len();
    let rest = 254 - before;
    let all =
        (0..rest).map(|name| cluster.create(&services, "default", service(&format!("s{name}"), json!({}))));
    // Some at once, so that they meet; all at once is more than a loaded machine's cache shows within a request's patience.
    let mut answers = futures::stream::iter(all).buffer_unordered(16);
    while let Some(made) = answers.next().await {
        made.unwrap();
    }
    assert_eq!(addresses(&cluster).await.len(), 254);
    let full = cluster.create(&services, "default", service("more", json!({}))).await.unwrap_err();
    assert!(full.message.contains("range 10.96.0.0/24 is full"), "{}", full.message);
}

#[tokio::test]
async fn an_address_is_owned_by_the_server_and_never_changes() {
    let cluster = Cluster::start().await;
    let (services, ips) =
        (resource("", "v1", "services"), resource("networking.k8s.io", "v1", "ipaddresses"));
    let made = cluster
        .create(&services, "default", service("a", json!({ "clusterIP": "10.96.0.7" })))
        .await
        .unwrap();
    let address = cluster.get(&ips, "", "10.96.0.7").await.unwrap();
    let owner = &address["metadata"]["managedFields"][0];
    assert_eq!(
        (&owner["manager"], &owner["apiVersion"]),
        (&json!("skiff-apiserver"), &json!("networking.k8s.io/v1"))
    );
    assert!(owner["fieldsV1"]["f:spec"].get("f:parentRef").is_some(), "{owner}");
    for patch in [json!({ "clusterIP": "10.96.0.9" }), json!({ "clusterIPs": ["10.96.0.9"] })] {
        let patch = json!({ "spec": patch });
        let place = ("default", "a", "");
        let frozen = cluster.patch(&services, place, PatchType::Merge, patch, options()).await.unwrap_err();
        let cause = &frozen.details.causes[0];
        assert_eq!(cause.field, "spec.clusterIPs[0]");
        assert_eq!(cause.message, "Invalid value: [\"10.96.0.9\"]: may not change once set");
    }
    assert_eq!(cluster.get(&services, "default", "a").await.unwrap()["spec"], made["spec"]);
}

/// The server's ranges are IPv4 alone.
#[tokio::test]
async fn a_cluster_of_one_family_gives_no_other_and_no_edge_address() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    for (spec, wrong) in [
        (
            json!({ "ipFamilies": ["IPv6"] }),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({ "ipFamilyPolicy": "RequireDualStack" }),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
             services",
        ),
        (json!({ "clusterIP": "10.96.0.0" }), "the provided IP (10.96.0.0) is not in the valid range"),
        (json!({ "clusterIP": "10.96.0.255" }), "the provided IP (10.96.0.255) is not in the valid range"),
    ] {
        let mut asked = service("a", spec);
        asked["spec"]["selector"] = json!({ "app": "a" });
        let refused = cluster.create(&services, "default", asked).await.unwrap_err();
        assert_eq!((refused.code, refused.message.contains(wrong)), (422, true), "{}", refused.message);
    }
    let free = service("free", json!({ "clusterIP": "None" }));
    let made = cluster.create(&services, "default", free).await.unwrap();
    let families = (&made["spec"]["ipFamilyPolicy"], &made["spec"]["ipFamilies"]);
    assert_eq!(families, (&json!("RequireDualStack"), &json!(["IPv4", "IPv6"])));
}

#[tokio::test]
async fn a_dry_run_is_told_what_is_taken() {
    let cluster = Cluster::start().await;
    let services = resource("", "v1", "services");
    let exposed = |name: &str| {
        service(name, json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30001 }] }))
    };
    let made = cluster.create(&services, "default", exposed("a")).await.unwrap();
    let dry = |object: Value| {
        let options = api::WriteOptions { dry_run: true, ..options() };
        let call = Call::Create { body: object.to_string().into(), options };
        cluster.call(&services, "default", "", "", call)
    };
    let refused = dry(exposed("b")).await.err().unwrap();
    let wanted = "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated";
    assert_eq!((refused.code, refused.message.contains(wanted)), (422, true), "{}", refused.message);
    let same = service("b", json!({ "clusterIP": made["spec"]["clusterIP"] }));
    let refused = dry(same).await.err().unwrap();
    assert!(refused.message.contains("provided IP is already allocated"), "{}", refused.message);
    // What is free may be had, also after the dry run.
    for _ in 0..2 {
        let free = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30002 }] });
        assert!(dry(service("b", free)).await.is_ok());
    }
}

/// Whoever may write endpoints reaches neither the servers' loopback nor a cloud's metadata by them.
#[tokio::test]
async fn endpoints_lead_to_no_special_address() {
    let cluster = Cluster::start().await;
    let endpoints = resource("", "v1", "endpoints");
    let slices = resource("discovery.k8s.io", "v1", "endpointslices");
    let slice = |address: &str| json!({ "metadata": { "name": "s" }, "addressType": "IPv4", "endpoints": [{ "addresses": [address] }] });
    let old_form = |address: &str| json!({ "metadata": { "name": "s" }, "subsets": [{ "addresses": [{ "ip": address }] }] });
    for (address, why) in
        [("127.0.0.1", "may not be in the loopback range"), ("169.254.169.254", "link-local range")]
    {
        let refused = cluster.create(&slices, "default", slice(address)).await.unwrap_err();
        let field = "endpoints[0].addresses[0]: Invalid value";
        assert!(refused.message.contains(field) && refused.message.contains(why), "{}", refused.message);
        let refused = cluster.create(&endpoints, "default", old_form(address)).await.unwrap_err();
        let field = "subsets[0].addresses[0].ip: Invalid value";
        assert!(refused.message.contains(field) && refused.message.contains(why), "{}", refused.message);
    }
    cluster.create(&slices, "default", slice("192.0.2.1")).await.unwrap();
    let place = ("default", "s", "");
    let refused = cluster.update(&slices, place, &slice("127.0.0.1")).await.unwrap_err();
    assert!(refused.message.contains("loopback"), "{}", refused.message);
    // The server's own: it listens on loopback alone.
    let own = cluster.get(&slices, "default", "kubernetes").await.unwrap();
    assert_eq!(own["endpoints"][0]["addresses"], json!(["127.0.0.1"]));
    let labelled = json!({ "metadata": { "labels": { "a": "b" } } });
    let place = ("default", "kubernetes", "");
    cluster.patch(&slices, place, PatchType::Merge, labelled, options()).await.unwrap();
}
